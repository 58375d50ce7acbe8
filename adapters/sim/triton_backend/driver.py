"""The driver class Triton demands of every backend.  It is never active: haian launches through its own HAL.

What it must still do is answer ``is_active() -> False``, so that Triton's choice of a driver is not disturbed.
"""
from __future__ import annotations

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

__all__ = ["SimTritonDriver"]

_REFUSAL = "haian_sim is launched by haian's HAL, not by Triton's JIT; compile with target= and use haian.hal"


class SimTritonDriver(DriverBase):
    """Answers questions about types and the target; everything that needs a device is refused."""

    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        return "uint64_t" if ty.startswith("*") else ty

    def get_current_target(self):
        return GPUTarget("haian_sim", "sim0", 1)

    def get_active_torch_device(self):
        raise NotImplementedError(_REFUSAL)

    def get_benchmarker(self):
        raise NotImplementedError(_REFUSAL)
