"""MetaX GPUs through the MACA runtime."""
from __future__ import annotations

__all__ = ["MetaxDriver"]


def __getattr__(name: str) -> object:
    if name != "MetaxDriver":
        raise AttributeError(f"haian.adapters.metax has no attribute {name!r}; it has MetaxDriver")
    from .runtime import MetaxDriver
    return MetaxDriver
