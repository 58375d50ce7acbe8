"""Hygon DCUs through the HIP runtime of DTK."""
from __future__ import annotations

__all__ = ["HygonDriver"]


def __getattr__(name: str) -> object:
    if name != "HygonDriver":
        raise AttributeError(f"haian.adapters.hygon has no attribute {name!r}; it has HygonDriver")
    from .runtime import HygonDriver
    return HygonDriver
