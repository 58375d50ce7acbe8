"""Tsingmicro TX8 through the TX runtime; declared, not confirmed."""
from __future__ import annotations

__all__ = ["TsingmicroDriver"]


def __getattr__(name: str) -> object:
    if name != "TsingmicroDriver":
        raise AttributeError(f"haian.adapters.tsingmicro has no attribute {name!r}; it has TsingmicroDriver")
    from .runtime import TsingmicroDriver
    return TsingmicroDriver
