"""Cambricon's CNRT 6 as a table, modules from CNDrv; MLU counts programs in tasks of cores and clusters, memory in MiB.

Names, argument order and numbers of CNRT are those of its header 6.14; those of CNDrv are what public launchers call.
"""
from __future__ import annotations

import math
from typing import Any

from ...hal.driver import Launch
from ...hal.errors import ArgumentError, EnvironmentMissing, InvalidHandle, NotReady, OutOfMemory, Unsupported
from ..engine import Runtime, TableDriver
from ..engine.handles import Slot

__all__ = ["CambriconDriver"]

_PATHS = ("$NEUWARE_HOME/lib64", "/usr/local/neuware/lib64")
_UNTIMED = 4
_MAX_WARPS = 4  # more fall back to 4 in the compiler, 2 and 3 to 1

TABLE = Runtime(
    name="cambricon", vendor="Cambricon",
    libraries=(("libcnrt.so",), ("libcndrv.so",)),
    paths=_PATHS,
    visible_devices="MLU_VISIBLE_DEVICES", query_tool="cnmon",
    calls={
        "error_text": "text cnrtGetErrorStr(code)", "clear_error": "cnrtGetLastError()",
        "device_count": "cnrtGetDeviceCount(count)", "set_device": "cnrtSetDevice(device)", "device_sync": "cnrtSyncDevice()",
        "device_reset": "cnrtDeviceReset()", "attribute": "cnrtDeviceGetAttribute(value_out, attribute, cu_device)",
        "properties": "cnrtGetDeviceProperties_V3|cnrtGetDeviceProperties(text, device)", "uuid": "cnrtDeviceGetPCIBusId(text, length, cu_device)",
        "mem_info": "cnrtMemGetInfo(free_out, total_out)", "malloc": "cnrtMalloc(out, n)", "free": "cnrtFree(ptr)",
        "host_malloc": "cnrtHostMalloc(out, n)", "host_free": "cnrtFreeHost(ptr)",
        # the queue stands before the direction; a wait begins with the notifier; elapsed time ends with its output, in ms
        "copy": "cnrtMemcpy(dst, src, n, kind)", "copy_async": "cnrtMemcpyAsync_V3|cnrtMemcpyAsync_V2|cnrtMemcpyAsync(dst, src, n, stream, kind)",
        "copy_peer": "cnrtMemcpyPeerAsync(dst, dst_device, src, src_device, n, stream)",
        "memset": "cnrtMemset(ptr, value, n)", "memset_async": "cnrtMemsetAsync(ptr, value, n, stream)",
        "stream_new": "cnrtQueueCreate(out)", "stream_destroy": "cnrtQueueDestroy(stream)", "stream_sync": "cnrtQueueSync(stream)",
        "stream_query": "cnrtQueueQuery(stream)", "stream_wait": "cnrtQueueWaitNotifier(event, stream, 0)",
        "host_func": "cnrtInvokeHostFunc(stream, fn, user)",
        "event_new": "cnrtNotifierCreateWithFlags(out, 0)", "event_new_untimed": f"cnrtNotifierCreateWithFlags(out, {_UNTIMED})",
        "event_destroy": "cnrtNotifierDestroy(event)", "event_record": "cnrtPlaceNotifier(event, stream)", "event_query": "cnrtQueryNotifier(event)",
        "event_sync": "cnrtWaitNotifier(event)", "elapsed": "cnrtNotifierElapsedTime(start, end, ms)",
        "driver_init": "cnInit(0)", "context_retain": "cnSharedContextAcquire(out, cu_device)",
        "context_release": "cnSharedContextRelease(cu_device)", "set_context": "cnCtxSetCurrent(context)", "module_load": "cnModuleLoadFatBinary(image, out)", "module_unload": "cnModuleUnload(module)",
        "module_function": "cnModuleGetKernel(module, name, out)",
        "launch": "cnInvokeKernel(function, gx, gy, gz, bx, 0, stream, params, 0:uintptr_t)"},
    directions={"h2d": 0, "d2d": 1, "d2h": 2},
    not_ready=frozenset({1, 632014}),  # queues say the first, notifiers of older releases the second
    errors={1: NotReady, 100002: EnvironmentMissing, 100004: EnvironmentMissing, 100005: ArgumentError, 100006: ArgumentError, 100010: OutOfMemory,
            100050: Unsupported, 100100: OutOfMemory, 632013: ArgumentError, 632014: NotReady, 632015: InvalidHandle},
    fatal=frozenset({999991}),
    attributes={"major": 0x01, "minor": 0x02, "grid_x": 0x201, "grid_y": 0x202, "grid_z": 0x203, "clusters": 0x205, "cores": 0x206, "isa": 0x20A,
                "nram_bytes": 0x302, "shared": 0x306, "memory_mib": 0x405},
    defaults={"clusters": 1, "cores": 4, "isa": 0, "max_threads": _MAX_WARPS},
    dtypes=("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"),
    more_dtypes=lambda f: ("float8_e4m3fn", "float8_e5m2") if f["isa"] >= 600 else (),
    target=lambda f: ("mlu", f["isa"], 0),
    arch=lambda f: f"mtp_{f['isa']}",
    formats={"cnbin": ()},
    default_shared=2**31 - 1,
    facts={"default_stream": "blocking", "multiprocessors": lambda f: f["clusters"] * f["cores"]},
    xccl="cncl",
    unconfirmed={
        "release": "cnrt.h 6.14; the line before 6 (CNRT_RET_*) has other numbers and does not work",
        "errors": "CNDrv's numbers are taken to be CNRT's; 999991 (unknown) is taken for a fault that loses the device",
        "wait": "the symbol cnrtQueueWaitNotifier and its order (notifier, queue, flags)",
        "context": "cnSharedContextRelease is the counterpart of what public launchers call; they never release",
        "queue": "cnrtQueueCreate's queues are taken to wait for the default queue, and it for them",
        "align": "256 bytes is CUDA's; CNRT's is not documented",
        "launch": "a program is a task of one core, or with num_warps 4 of four; the union of a cluster is taken where the grid fits it (Triton's rule)",
        "image": "how a cnbin begins is not public; the driver judges it"},
)


class CambriconDriver(TableDriver):
    """Cambricon MLUs."""

    table = TABLE

    def _make_current(self, device: int) -> None:
        """CNRT's device and CNDrv's context are two things, and each thread needs both."""
        self._check(self._call("set_device")(device), "set_device", device)
        if "context_retain" in self._calls and "set_context" in self._calls:
            self._check(self._calls["set_context"](self._context(device)), "set_context", device)

    def _total(self, device: int) -> int:
        """The attribute counts MiB; where it is missing, what cnrtMemGetInfo says."""
        value = self._ffi.new("int *")
        if "attribute" in self._calls and self._calls["attribute"](value, self.table.attributes["memory_mib"], device) == self.table.success and value[0]:
            return value[0] << 20
        return super()._total(device)

    def _run_kernel(self, device: int, slot: Slot, desc: Launch, params: Any, stream: int) -> None:
        """x counts cores; the class of the task is the number of cores that run together: 1, or a cluster's."""
        facts, limit = self._facts(device), self.props(device).max_threads
        if min(desc.grid) < 1 or desc.threads > limit:
            raise ArgumentError(f"{self.name}: grid {desc.grid} with num_warps {desc.threads}; needs at least one program and at most {limit}")
        warps = _MAX_WARPS if desc.threads == _MAX_WARPS else 1
        grid = (desc.grid[0] * warps, *desc.grid[1:])
        whole = warps == 1 and grid[0] % facts["cores"] == 0 and math.prod(grid) <= facts["clusters"] * facts["cores"]
        super()._run_kernel(device, slot, desc._replace(grid=grid, threads=facts["cores"] if whole else warps), params, stream)
