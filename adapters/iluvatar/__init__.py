"""Iluvatar GPUs through CoreX's CUDA runtime."""
from __future__ import annotations

__all__ = ["IluvatarDriver"]


def __getattr__(name: str) -> object:
    if name != "IluvatarDriver":
        raise AttributeError(f"haian.adapters.iluvatar has no attribute {name!r}; it has IluvatarDriver")
    from .runtime import IluvatarDriver
    return IluvatarDriver
