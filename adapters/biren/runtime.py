"""Biren's SUPA as a table: CUDA-like, the stream stands before the direction, and two prefixes are in the wild."""
from __future__ import annotations

import re

from ..engine import CUDA_ERRORS, CUDA_FATAL, Runtime, TableDriver, cuda_runtime

__all__ = ["BirenDriver"]

_CALLS = cuda_runtime(
    "su", malloc="suMallocDevice(out, n)", host_malloc="suMallocHost(out, n, 0)", copy_async="suMemcpyAsync(dst, src, n, stream, kind)",
    uuid="", driver_version="", mem_info="suMemGetInfo(free_out, total_out)", managed_malloc="", host_register="", host_unregister="", copy_peer="",
    capture_begin="", capture_end="", graph_instantiate="", graph_launch="", graph_destroy="", exec_destroy="")
_PATHS = ("$SUPA_PATH/lib", "$SUPA_PATH/lib64", "/usr/local/supa/lib", "/usr/local/supa/lib64")

TABLE = Runtime(
    name="biren", vendor="Biren",
    libraries=(("libsupa-runtime.so",),),
    paths=_PATHS,
    visible_devices="SUPA_VISIBLE_DEVICES", query_tool="brsmi",
    calls={k: re.sub(r"\bsu(\w+)\(", r"su\1|supa\1(", v).replace("supaMallocDevice", "supaMalloc") for k, v in _CALLS.items()},
    errors=CUDA_ERRORS, fatal=CUDA_FATAL,
    defaults={"warp": 32, "max_threads": 1024, "shared": 32 << 10, "total_bytes": 32 << 30},
    dtypes=("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"),
    unconfirmed={
        "directions": "the order is CUDA's (host-host, host-device, device-host, device-device); the numbers 0 to 4 are taken from it",
        "prefix": "su is documented, newer code calls supa; with supa the order of suMemcpyAsync's arguments is taken over",
        "errors": "0, 1, 2, 9, 13, 100 and 710 were read; the others, 600 for not ready among them, are CUDA's",
        "flags": "stream and event flags have CUDA's names; CUDA's numbers are taken",
        "mem_info": "suMemGetInfo was not seen; absent, 32 GiB are assumed",
        "pinned": "pinned host memory is read-only for kernels (reference manual)",
        "modules": "no public triton fork: operators run on the host",
        "xccl": "libsuccl.so, its prefix was not seen: collectives go through the host"},
)


class BirenDriver(TableDriver):
    """Biren GPUs, beta: the table was never confirmed on a card."""

    table = TABLE
