"""MetaX's MACA as a table: the CUDA runtime's names under mc, modules in the same library."""
from __future__ import annotations

from ...hal.errors import Busy, OutOfMemory
from ..engine import CUDA_ERRORS, CUDA_FATAL, Runtime, TableDriver, cuda_runtime, modules

__all__ = ["MetaxDriver"]

_PATHS = ("$MACA_PATH/lib64", "$MACA_PATH/lib", "/opt/maca/lib64", "/opt/maca/lib")

TABLE = Runtime(
    name="metax", vendor="MetaX",
    libraries=(("libmcruntime.so",),),
    paths=_PATHS,
    visible_devices="MACA_VISIBLE_DEVICES", query_tool="mx-smi",
    calls=cuda_runtime("mc") | modules("mc", "ModuleLaunchKernel"),
    errors=CUDA_ERRORS | {10007: OutOfMemory, 10012: OutOfMemory, 10031: Busy}, fatal=CUDA_FATAL,
    # MACA counts its attributes from 0 on: not CUDA's numbers
    attributes={"max_threads": 0, "grid_x": 4, "grid_y": 5, "grid_z": 6, "shared": 7, "warp": 9, "multiprocessors": 16, "major": 21, "minor": 22},
    target=lambda f: ("maca", f.capability, 64),
    arch=lambda f: f"xcore{10 * f.capability}",
    formats={"mcfatbin": ()},
    default_shared=64 << 10,
    xccl="mccl_maca",
    unconfirmed={
        "attributes": "positions were counted in a copy of the enum; the original may start elsewhere",
        "flags": "stream and event flags have CUDA's names; CUDA's numbers are taken",
        "graph": "the capture error codes exist, the calls themselves were not seen in a header",
        "shared": "64 KiB a block is unconfirmed; the attribute is asked",
        "arch": "only xcore1000 was seen",
        "align": "256 bytes is CUDA's; MACA's is not documented"},
)


class MetaxDriver(TableDriver):
    """MetaX GPUs."""

    table = TABLE
