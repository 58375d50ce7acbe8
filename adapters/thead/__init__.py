"""T-Head PPUs through the CUDA-compatible driver of the PPU SDK."""
from __future__ import annotations

__all__ = ["TheadDriver"]


def __getattr__(name: str) -> object:
    if name != "TheadDriver":
        raise AttributeError(f"haian.adapters.thead has no attribute {name!r}; it has TheadDriver")
    from .runtime import TheadDriver
    return TheadDriver
