"""nonzero_static: elements are marked, the marks summed, and each hit writes its indices at the place that its sum says.

Not here: what the operator means (kernels/ops/select.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.dtype import BY_NAME
from ...hal.tensor import Tensor
from .launch import I64, Data, by_signature, capped, lacks, launch, programs
from .rows import contiguous, device_of, writable
from .scan import cumulate

__all__ = ["KERNELS", "WHEN", "matrix"]

BLOCK = 1024
LARGE = 2**30  # half of int32: room for a block past the end


@triton.jit
def mark_kernel(x_ptr, mark_ptr, n, WIDE: tl.constexpr, BIG: tl.constexpr, BLOCK: tl.constexpr):
    """mark (n,) = whether x is not zero; 16-bit floats are told by float32."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        at = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < n, other=0)
        if WIDE:
            x = x.to(tl.float32)
        tl.store(mark_ptr + at, (x != 0).to(mark_ptr.dtype.element_ty), mask=at < n)


@triton.jit
def fill_kernel(y_ptr, n, value, BIG: tl.constexpr, BLOCK: tl.constexpr):
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        at = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y_ptr + at, tl.zeros((BLOCK,), tl.int64) + value, mask=at < n)


@triton.jit
def place_kernel(sum_ptr, y_ptr, n, size, axes, axis, extent, step, BIG: tl.constexpr, BLOCK: tl.constexpr):
    """y[sum - 1, axis] = the index of each hit along an axis of ``extent`` whose neighbours lie ``step`` apart; a hit raises the sum."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        at = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        live = at < n
        total = tl.load(sum_ptr + at, mask=live, other=0)
        before = tl.load(sum_ptr + at - 1, mask=live & (at > 0), other=0)
        hit = live & (total > before) & (total <= size)
        tl.store(y_ptr + (total - 1).to(tl.int64) * axes + axis, (at // step % extent).to(tl.int64), mask=hit)


def nonzero_static(x: Tensor, *, size: int, fill_value: int, out: Tensor) -> None:
    n, axes = x.numel, x.ndim
    if size * axes == 0:
        return
    device, big = device_of(out), n >= LARGE
    with writable(out) as y:
        launch(fill_kernel, (capped(device, programs(size * axes, BLOCK)),), y, size * axes, I64(fill_value), BIG=size * axes >= LARGE, BLOCK=BLOCK)
        if n == 0:
            return
        kind = BY_NAME["int64" if big else "int32"]
        marks, sums = device.empty((n,), kind), device.empty((n,), kind)
        grid = (capped(device, programs(n, BLOCK)),)
        launch(mark_kernel, grid, contiguous(x), marks, n, WIDE=x.dtype.is_floating and x.itemsize == 2, BIG=big, BLOCK=BLOCK)
        cumulate(marks, sums, (1, n, 1), kind)
        step = 1
        for axis in reversed(range(axes)):
            launch(place_kernel, grid, sums, y, n, Data(size), axes, Data(axis), x.shape[axis], step, BIG=big, BLOCK=BLOCK)
            step *= x.shape[axis]


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    why = lacks(facts, *(("float64",) if specs[0].dtype.name == "float64" else ()), "int64")
    return why or ("" if facts.int64_math else "the device has no 64-bit integer vectors")


KERNELS = {"nonzero_static": nonzero_static}
WHEN = {"nonzero_static": _when}


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    some, i32 = ("i32", True), ("i32", False)
    yield "mark *fp32", mark_kernel, (("*fp32", True), ("*i32", True), some), {"WIDE": False, "BIG": False, "BLOCK": BLOCK}, 4
    yield "mark *bf16", mark_kernel, (("*bf16", True), ("*i32", True), some), {"WIDE": True, "BIG": False, "BLOCK": BLOCK}, 4
    yield "place", place_kernel, (("*i32", True), ("*i64", True), some, i32, i32, i32, some, some), {"BIG": False, "BLOCK": BLOCK}, 4
