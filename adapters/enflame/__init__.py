"""Enflame GCUs through the TOPS runtime."""
from __future__ import annotations

__all__ = ["EnflameDriver"]


def __getattr__(name: str) -> object:
    if name != "EnflameDriver":
        raise AttributeError(f"haian.adapters.enflame has no attribute {name!r}; it has EnflameDriver")
    from .runtime import EnflameDriver
    return EnflameDriver
