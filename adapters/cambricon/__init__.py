"""Cambricon MLUs through CNRT and CNDrv."""
from __future__ import annotations

__all__ = ["CambriconDriver"]


def __getattr__(name: str) -> object:
    if name != "CambriconDriver":
        raise AttributeError(f"haian.adapters.cambricon has no attribute {name!r}; it has CambriconDriver")
    from .runtime import CambriconDriver
    return CambriconDriver
