"""softmax, log_softmax and their gradients: a program owns BLOCK_I neighbouring rows and walks them in blocks of BLOCK_N.

Neighbouring rows lie side by side when the axis is not the last one, so loads are coalesced both ways.  Arithmetic is
float32 (float64 for float64 tensors); the maximum and the sum are kept online, so a row of any length is read twice.
"""
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from . import scalar as m
from .launch import I64, launch, next_power_of_2, programs
from .rows import contiguous, cut, writable

__all__ = ["KERNELS"]

TILE = 1024  # elements a program holds: 8 a thread at 4 warps of 32


@triton.jit
def softmax_kernel(x_ptr, y_ptr, n, inner, rows, LOG: tl.constexpr, WIDE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    row = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)  # (BLOCK_I,)
    live = row < rows
    base = (row.to(tl.int64) // inner) * n * inner + row % inner
    highest = tl.full((BLOCK_I,), -float("inf"), acc)
    total = tl.zeros((BLOCK_I,), acc)
    for start in range(0, n, BLOCK_N):
        col = start + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        mask = (col < n)[:, None] & live[None, :]
        x = tl.load(x_ptr + base[None, :] + col.to(tl.int64)[:, None] * inner, mask=mask, other=-float("inf")).to(acc)
        above = m.maximum(highest, m.max(x, 0))
        # a row of -inf so far keeps the shift at 0: exp(-inf - -inf) would be NaN before the row is known
        shift = tl.where(above == -float("inf"), 0.0, above)
        total = total * m.exp(highest - shift) + tl.sum(m.exp(x - shift[None, :]), 0)
        highest = above
    for start in range(0, n, BLOCK_N):
        col = start + tl.arange(0, BLOCK_N)
        mask = (col < n)[:, None] & live[None, :]
        at = base[None, :] + col.to(tl.int64)[:, None] * inner
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(acc)
        z = x - highest[None, :]
        if LOG:
            y = z - m.log(total)[None, :]
        else:
            y = m.div(m.exp(z), total[None, :])
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def softmax_backward_kernel(dy_ptr, y_ptr, dx_ptr, n, inner, rows, LOG: tl.constexpr, WIDE: tl.constexpr, BLOCK_N: tl.constexpr,
                            BLOCK_I: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    row = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    live = row < rows
    base = (row.to(tl.int64) // inner) * n * inner + row % inner
    total = tl.zeros((BLOCK_I,), acc)
    for start in range(0, n, BLOCK_N):
        col = start + tl.arange(0, BLOCK_N)
        mask = (col < n)[:, None] & live[None, :]
        at = base[None, :] + col.to(tl.int64)[:, None] * inner
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(acc)
        if LOG:
            total += tl.sum(dy, 0)
        else:
            total += tl.sum(dy * tl.load(y_ptr + at, mask=mask, other=0.0).to(acc), 0)
    for start in range(0, n, BLOCK_N):
        col = start + tl.arange(0, BLOCK_N)
        mask = (col < n)[:, None] & live[None, :]
        at = base[None, :] + col.to(tl.int64)[:, None] * inner
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(acc)
        y = tl.load(y_ptr + at, mask=mask, other=0.0).to(acc)
        if LOG:
            dx = dy - m.exp(y) * total[None, :]
        else:
            dx = y * (dy - total[None, :])
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def tile(n: int, inner: int) -> tuple[int, int]:
    """(BLOCK_N, BLOCK_I): along the row where rows are contiguous, across rows where they lie side by side."""
    if inner == 1:
        return min(next_power_of_2(n), TILE), 1
    across = min(next_power_of_2(inner), 64)
    return min(next_power_of_2(n), max(TILE // across, 1)), across


def _run(kernel: Any, tensors: tuple[Tensor, ...], dim: int, log: bool, out: Tensor) -> None:
    outer, n, inner = cut(out.shape, dim)
    if out.numel == 0:
        return
    block_n, block_i = tile(n, inner)
    with writable(out) as y:
        launch(kernel, (programs(outer * inner, block_i),), *(contiguous(t) for t in tensors), y, n, I64(inner), I64(outer * inner),
               LOG=log, WIDE=out.dtype.name == "float64", BLOCK_N=block_n, BLOCK_I=block_i)


def softmax(x: Tensor, *, dim: int, out: Tensor) -> None:
    _run(softmax_kernel, (x,), dim, False, out)


def log_softmax(x: Tensor, *, dim: int, out: Tensor) -> None:
    _run(softmax_kernel, (x,), dim, True, out)


def softmax_backward(dy: Tensor, y: Tensor, *, dim: int, out: Tensor) -> None:
    _run(softmax_backward_kernel, (dy, y), dim, False, out)


def log_softmax_backward(dy: Tensor, y: Tensor, *, dim: int, out: Tensor) -> None:
    _run(softmax_backward_kernel, (dy, y), dim, True, out)


KERNELS = {"softmax": softmax, "log_softmax": log_softmax, "softmax_backward": softmax_backward, "log_softmax_backward": log_softmax_backward}
