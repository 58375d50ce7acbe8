"""NVIDIA GPUs through the CUDA driver API; PyTorch and the CUDA toolkit are not needed."""
from __future__ import annotations

__all__ = ["CudaDriver"]


def __getattr__(name: str) -> object:
    if name != "CudaDriver":
        raise AttributeError(f"haian.adapters.cuda has no attribute {name!r}; it has CudaDriver")
    from .runtime import CudaDriver
    return CudaDriver
