"""Adapter sim: a simulated chip whose machine code is Triton IR.  See README.md.

Importing this package imports neither NumPy's users nor triton; ``SimDriver`` loads on first use.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runtime import SimDriver

__all__ = ["SimDriver"]


def __getattr__(name: str) -> object:
    if name != "SimDriver":
        raise AttributeError(f"haian.adapters.sim has no attribute {name!r}; it has SimDriver")
    from .runtime import SimDriver

    globals()[name] = SimDriver
    return SimDriver
