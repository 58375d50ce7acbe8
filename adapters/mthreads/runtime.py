"""Moore Threads' MUSA as a table: the CUDA runtime's names under musa, modules from the driver library under mu."""
from __future__ import annotations

from ..engine import CUDA_ERRORS, CUDA_FATAL, Runtime, TableDriver, cuda_runtime, modules

__all__ = ["MthreadsDriver"]

_PATHS = ("$MUSA_HOME/lib", "$MUSA_PATH/lib", "/usr/local/musa/lib", "/opt/musa/lib")

TABLE = Runtime(
    name="mthreads", vendor="Moore Threads",
    libraries=(("libmusart.so.5", "libmusart.so.4", "libmusart.so"), ("libmusa.so", "libmusa.so.5", "libmusa.so.4")),
    paths=_PATHS,
    visible_devices="MUSA_VISIBLE_DEVICES", query_tool="mthreads-gmi",
    calls=cuda_runtime("musa") | modules("mu") | {"driver_init": "muInit(0)"},
    errors=CUDA_ERRORS, fatal=CUDA_FATAL, touch=True,
    attributes={"max_threads": 1, "grid_x": 5, "grid_y": 6, "grid_z": 7, "warp": 10, "multiprocessors": 16, "major": 75, "minor": 76, "shared": 97},
    dtypes=("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"),
    more_dtypes=lambda f: ("float8_e4m3fn",) if f.capability >= 31 else (),
    target=lambda f: ("musa", f.capability, 32 if f.capability >= 30 else 128),  # QY1 2.1 and QY2 2.2 run 128 lanes, PH1 3.1 runs 32
    arch=lambda f: f"mp_{f.capability}",
    formats={"mubin": ()},
    xccl="mccl_musa",
    unconfirmed={
        "directions": "0 to 3 come from a note; musaMemcpyDefault exists, its number was not read",
        "flags": "stream and event flags have CUDA's names; CUDA's numbers are taken",
        "attributes": "75 and 76 were read; the others are CUDA's numbers",
        "graph": "the capture error codes exist, the calls themselves were not seen in a header",
        "align": "256 bytes is CUDA's; MUSA's is not documented",
        "atomics": "no float16 or bfloat16 atomic add"},
)


class MthreadsDriver(TableDriver):
    """Moore Threads GPUs."""

    table = TABLE
