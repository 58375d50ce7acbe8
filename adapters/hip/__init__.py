"""AMD GPUs through the HIP runtime; PyTorch is not needed."""
from __future__ import annotations

__all__ = ["HipDriver"]


def __getattr__(name: str) -> object:
    if name != "HipDriver":
        raise AttributeError(f"haian.adapters.hip has no attribute {name!r}; it has HipDriver")
    from .runtime import HipDriver
    return HipDriver
