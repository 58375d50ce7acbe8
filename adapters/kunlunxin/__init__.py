"""Kunlunxin XPUs through XRE, or through its CUDA-named runtime where that is installed."""
from __future__ import annotations

__all__ = ["KunlunxinDriver", "XcudartDriver", "kunlunxin"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"haian.adapters.kunlunxin has no attribute {name!r}; it has {', '.join(__all__)}")
    from . import runtime
    return getattr(runtime, name)
