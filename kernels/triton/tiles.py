"""A kernel call as data, planned before it is launched: for kernels with one program a tile (matmul, attention).

Their grids are cut into several launches where a device bounds them; a loop over tiles inside the kernel would cost the
pipelined inner loop its registers.  Not here: block sizes (the family files).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...hal.device import Device
from ...hal.tensor import Tensor
from .launch import Data, Step, launch, signature_of

__all__ = ["FAR", "Call", "broadcast_steps", "dot_takes_float64", "reach", "run", "stages_within"]

FAR = 2**31  # offsets from here on need 64 bits


class Call(NamedTuple):
    """One kernel call.  ``args`` are all arguments but the last, the number of the first tile."""

    kernel: Any
    tiles: int
    args: tuple[Any, ...]
    num_warps: int
    num_stages: int
    constants: dict[str, Any]

    @property
    def signature(self) -> tuple[tuple[str, bool], ...]:
        """As launch.compile_for takes it."""
        return signature_of((*self.args, Data(0)))


def run(device: Device, call: Call) -> None:
    """Launch a call, in several pieces where the device's grid is smaller than the number of tiles."""
    facts = device.capabilities
    piece = min(facts.max_grid[0], facts.max_grid_product)
    for first in range(0, call.tiles, piece):
        launch(call.kernel, (min(piece, call.tiles - first),), *call.args, Data(first), num_warps=call.num_warps, num_stages=call.num_stages,
               **call.constants)


def stages_within(facts: Any, stages: int, bytes_a_stage: int) -> int:
    """At most so many stages of a software pipeline as shared memory holds; 1 at least."""
    if facts.max_shared_bytes:
        stages = min(stages, facts.max_shared_bytes // bytes_a_stage)
    return max(stages, 1)


def broadcast_steps(t: Tensor, shape: Sequence[int]) -> tuple[Step, ...]:
    """Strides of a tensor broadcast to ``shape``: 0 on the axes that repeat."""
    lead = len(shape) - t.ndim
    return (Step(0),) * lead + tuple(Step(0 if n == 1 else s) for n, s in zip(t.shape, t.strides))


def reach(sizes: Sequence[int], steps: Sequence[int]) -> int:
    """The largest distance in elements between two elements of a strided block."""
    return sum((n - 1) * abs(s) for n, s in zip(sizes, steps) if n)


def dot_takes_float64() -> bool:
    """Whether the installed Triton's tl.dot multiplies float64 (3.6 does, 3.0 refuses)."""
    import triton
    return tuple(int(p) for p in triton.__version__.split(".")[:2]) >= (3, 6)
