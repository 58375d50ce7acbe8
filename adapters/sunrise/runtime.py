"""Sunrise's TANG as a table: the CUDA runtime's names under tang, modules under ta with the image's size."""
from __future__ import annotations

from ...hal.errors import InvalidHandle, OutOfMemory
from ..engine import CUDA_ERRORS, CUDA_FATAL, Runtime, TableDriver, cuda_runtime, modules

__all__ = ["SunriseDriver"]

_PATHS = ("/usr/local/tangrt/targets/linux-x86_64/lib", "/usr/local/tangrt/lib/linux-x86_64")

TABLE = Runtime(
    name="sunrise", vendor="Sunrise",
    libraries=(("libtangrt_shared.so",), ("libtang.so.1", "libtang.so")),
    paths=_PATHS,
    visible_devices="TANG_VISIBLE_DEVICES", query_tool="pt_smi",
    calls=cuda_runtime("tang") | modules("ta", module_load="taModuleLoadData(out, image, size)") | {"driver_init": "taInit(0)"},
    errors={**CUDA_ERRORS, 3006: OutOfMemory, **dict.fromkeys(range(3000, 3006), InvalidHandle)},  # 3000 to 3005: lifetimes
    fatal=CUDA_FATAL, touch=True,
    attributes={"shared": 0, "warp": 2, "max_threads": 4, "grid_x": 8, "grid_y": 9, "grid_z": 10, "multiprocessors": 13},
    dtypes=("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"),
    dtypes_math=("bool", "uint8", "int8", "int16", "int32", "float16", "float32"),  # FlagGems has bfloat16 and int64 off
    target=lambda f: ("tang", "S2", 32),
    arch=lambda f: "S2",
    formats={"stcu": ()},
    xccl="pccl",
    unconfirmed={
        "visible_devices": "TANG_VISIBLE_DEVICES is FlagGems'; the container runtime says PTPU_VISIBLE_DEVICES",
        "peer": "the header has tangMemcpyPeerAsync; an older port answers not supported",
        "graph": "capture error codes are 306 to 314 here; the calls' shapes are CUDA's",
        "align": "256 bytes is CUDA's; TANG's is not documented"},
)


class SunriseDriver(TableDriver):
    """Sunrise S2."""

    table = TABLE
