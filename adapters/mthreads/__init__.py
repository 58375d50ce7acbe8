"""Moore Threads GPUs through the MUSA runtime and driver."""
from __future__ import annotations

__all__ = ["MthreadsDriver"]


def __getattr__(name: str) -> object:
    if name != "MthreadsDriver":
        raise AttributeError(f"haian.adapters.mthreads has no attribute {name!r}; it has MthreadsDriver")
    from .runtime import MthreadsDriver
    return MthreadsDriver
