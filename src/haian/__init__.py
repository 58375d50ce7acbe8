"""haian: the layer between AI frameworks and AI chips.

    import haian
    haian.devices()                          what is there
    x = haian.asarray([1.0, 2.0], device="cpu:0")
    haian.ops.exp(x)                         one function an operator
    haian.explain(haian.ops.exp, x)          which kernel, and why

Names load on first use: importing haian starts nothing and needs no framework.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> module that defines it; a module under its own name is the module itself
_WHERE = {
    **dict.fromkeys(("device", "devices", "load_adapter"), ".hal.registry"),
    **dict.fromkeys(("Tensor", "asarray", "empty", "from_dlpack"), ".hal.tensor"),
    **dict.fromkeys(("Stream", "Event"), ".hal.stream"),
    **dict.fromkeys(("explain", "register_kernel", "set_fallback_policy", "fallback_policy", "set_num_threads"), ".kernels.dispatch"),
    **dict.fromkeys(("DType", "dtype"), ".hal.dtype"),
    "pointwise": ".kernels.user", "m": ".kernels.user",
    "num_threads": "._native",
    "HaianError": ".hal.errors",
}
_MODULES = {"ops": ".kernels.api", "hal": ".hal", "kernels": ".kernels", "bridges": ".bridges", "conformance": ".conformance", "bench": ".bench"}
_DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
           "float8_e4m3fn", "float8_e5m2", "complex64", "complex128")

__all__ = [*_WHERE, *_DTYPES, "ops"]

if TYPE_CHECKING:
    from .hal.dtype import DType as DType
    from .hal.registry import device as device
    from .hal.registry import devices as devices
    from .hal.tensor import Tensor as Tensor
    from .hal.tensor import asarray as asarray
    from .kernels import api as ops
    from .kernels.dispatch import explain as explain
    from .kernels.user import m as m
    from .kernels.user import pointwise as pointwise


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name], __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name], __name__)
    elif name in _DTYPES:
        value = importlib.import_module(".hal.dtype", __name__).BY_NAME[name]
    else:
        raise AttributeError(f"haian has no attribute {name!r}; it has {', '.join(sorted({*_WHERE, *_MODULES}))} and the dtypes")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_MODULES, *_DTYPES})
