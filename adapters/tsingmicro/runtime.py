"""Tsingmicro's TX runtime as a table, from what FlagCX and FlagTree call; its header is closed."""
from __future__ import annotations

from ...hal.errors import ArgumentError, InvalidHandle, NotReady, OutOfMemory
from ..engine import Runtime, TableDriver

__all__ = ["TsingmicroDriver"]

_PATHS = ("$KUIPER_PATH/lib", "$TX8_DEPS_ROOT/lib", "/usr/local/kuiper/lib")

TABLE = Runtime(
    name="tsingmicro", vendor="Tsingmicro",
    libraries=(("libhpgr.so", "libtx8_runtime.so"),),
    paths=_PATHS,
    visible_devices="TXDA_VISIBLE_DEVICES", query_tool="tsm_smi",
    calls={
        "device_count": "txGetDeviceCount(count)", "set_device": "txSetDevice(device)", "device_sync": "txDeviceSynchronize()",
        "malloc": "txMalloc(out, n)", "free": "txFree(ptr)", "host_malloc": "txMallocHost(out, n)", "host_free": "txFreeHost(ptr)",
        "copy": "txMemcpy(dst, src, n, kind)", "copy_async": "txMemcpyAsync(dst, src, n, kind, stream)",
        "stream_new": "txStreamCreate(out)", "stream_destroy": "txStreamDestroy(stream)", "stream_sync": "txStreamSynchronize(stream)",
        "stream_query": "txStreamQuery(stream)", "stream_wait": "txStreamWaitEvent(stream, event)", "host_func": "txLaunchHostFunc(stream, fn, user)",
        "event_new": "txEventCreate(out)", "event_destroy": "txEventDestroy(event)", "event_record": "txEventRecord(event, stream)",
        "event_query": "txEventQuery(event)", "event_sync": "txEventSynchronize(event)", "elapsed": "txEventElapsedTime(ms, start, end)"},
    errors={1: ArgumentError, 2: OutOfMemory, 101: ArgumentError, 400: InvalidHandle, 600: NotReady},
    defaults={"warp": 16, "shared": 3 << 20, "grid_x": 65535, "total_bytes": 32 << 30},
    dtypes=("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"),
    dtypes_math=("bool", "uint8", "int8", "int16", "int32", "float16", "bfloat16", "float32"),
    facts={"default_stream": "blocking"},
    unconfirmed={
        "errors": "no number of txError_t is published; CUDA's are taken, success is 0",
        "directions": "0 to 3 come from a comment in a note",
        "widths": "integer widths of the closed header are taken from its callers",
        "memory": "the runtime has no memory info; 32 GiB are assumed", "fill": "txMemset is announced, not there; haian copies a pattern",
        "modules": "a launch gives the ELF and the kernel's name in one call (txLaunchKernelGGL): not wired, operators run on the host",
        "stream": "txStreamCreate takes no flags; stream 0 is taken to wait for the others",
        "xccl": "libtccl.so is NCCL-shaped (tccl), its numbers were not read: collectives go through the host"},
)


class TsingmicroDriver(TableDriver):
    """Tsingmicro TX8, beta: the table was never confirmed on a chip."""

    table = TABLE
