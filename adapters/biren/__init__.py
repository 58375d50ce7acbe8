"""Biren GPUs through the SUPA runtime; declared, not confirmed."""
from __future__ import annotations

__all__ = ["BirenDriver"]


def __getattr__(name: str) -> object:
    if name != "BirenDriver":
        raise AttributeError(f"haian.adapters.biren has no attribute {name!r}; it has BirenDriver")
    from .runtime import BirenDriver
    return BirenDriver
