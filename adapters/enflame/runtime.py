"""Enflame's TOPS as a table: the CUDA runtime's names under tops, its own attribute numbers, block.x in warps."""
from __future__ import annotations

import re

from ..engine import CUDA_ERRORS, CUDA_FATAL, Facts, Runtime, TableDriver, cuda_runtime, modules

__all__ = ["EnflameDriver"]

_NARROW = ("bool", "uint8", "int8", "int16", "int32", "float16", "bfloat16", "float32")


def _arch(f: Facts) -> str:
    """gcu300, gcu400, gcu410: a text of the properties struct."""
    found = re.search(r"gcu[0-9]{3}", f.text)
    return found[0] if found else ""


def _math(f: Facts) -> tuple[str, ...]:
    return _NARROW if _arch(f) == "gcu300" else (*_NARROW, "int64")  # gcu300 has no 64-bit types


TABLE = Runtime(
    name="enflame", vendor="Enflame",
    libraries=(("libtopsrt.so",),),
    paths=("/opt/tops/lib",),
    visible_devices="TOPS_VISIBLE_DEVICES",
    calls=cuda_runtime("tops", host_malloc="topsHostMalloc(out, n, 2)", host_free="topsHostFree(ptr)") | modules("tops", "ModuleLaunchKernel"),
    errors=CUDA_ERRORS, fatal=CUDA_FATAL,
    attributes={"max_threads": 9, "grid_x": 6, "grid_y": 7, "grid_z": 8, "multiprocessors": 10, "shared": 11},
    dtypes=(*_NARROW, "int64"),
    # triton's warp size is the whole block here, and a launch gives the number of warps as block.x (at most 4)
    target=lambda f: ("gcu", _arch(f), f["max_threads"]),
    block_unit=lambda f: f["max_threads"],
    arch=_arch,
    formats={"fatbin": ()},
    facts={"max_threads": lambda f: 4 * f["max_threads"], "dtypes_math": _math, "int64_math": lambda f: "int64" in _math(f)},
    xccl="eccl",
    unconfirmed={
        "host_func": "topsLaunchHostFunc is used by FlagCX and is not in the public header",
        "grid": "65535 programs an axis on gcu300 (comments of FlagGems); the attribute is asked",
        "size 0": "topsMalloc of 0 gives a pointer, topsHostMalloc of 0 gives none; haian asks for neither",
        "graph": "the capture calls were not looked up in the header",
        "warps": "at most 4 warps on gcu400 and gcu410; taken for gcu300 too"},
)


class EnflameDriver(TableDriver):
    """Enflame GCUs."""

    table = TABLE
