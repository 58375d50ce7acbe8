"""Sunrise S2 chips through the TANG runtime and driver."""
from __future__ import annotations

__all__ = ["SunriseDriver"]


def __getattr__(name: str) -> object:
    if name != "SunriseDriver":
        raise AttributeError(f"haian.adapters.sunrise has no attribute {name!r}; it has SunriseDriver")
    from .runtime import SunriseDriver
    return SunriseDriver
