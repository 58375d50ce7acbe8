"""Huawei Ascend NPUs through AscendCL."""
from __future__ import annotations

__all__ = ["AscendDriver"]


def __getattr__(name: str) -> object:
    if name != "AscendDriver":
        raise AttributeError(f"haian.adapters.ascend has no attribute {name!r}; it has AscendDriver")
    from .runtime import AscendDriver
    return AscendDriver
