"""Tecorigin chips through the SDAA runtime; declared, not confirmed."""
from __future__ import annotations

__all__ = ["SdaaDriver"]


def __getattr__(name: str) -> object:
    if name != "SdaaDriver":
        raise AttributeError(f"haian.adapters.sdaa has no attribute {name!r}; it has SdaaDriver")
    from .runtime import SdaaDriver
    return SdaaDriver
