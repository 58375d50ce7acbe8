"""Out-of-tree Triton backend of the simulated chip: the two modules Triton looks for, and a way in without entry points.

Triton finds ``.compiler`` and ``.driver`` through the entry point group ``triton.backends``; where the package is not
installed, or a vendor's fork reads no entry points, ``register()`` does the same at run time.  Nothing here imports
triton before ``register()`` is called.
"""
from __future__ import annotations

__all__ = ["NAME", "TARGET", "register"]

NAME = "haian_sim"  # the entry point's name and the target's backend word
TARGET = (NAME, "sim0", 1)  # (backend, arch, warp size) of triton's GPUTarget


def register() -> None:
    """Put the backend into ``triton.backends.backends`` unless it is there already.

    Raises:
        ImportError: triton is not installed.
    """
    from triton.backends import Backend, backends

    if NAME not in backends:
        from .compiler import SimBackend
        from .driver import SimTritonDriver

        backends[NAME] = Backend(SimBackend, SimTritonDriver)
