"""softmax, log_softmax and their gradients: a program owns BLOCK_I neighbouring rows and walks them in blocks of BLOCK_N.

Neighbouring rows lie side by side when the axis is not the last one, so loads are coalesced both ways.  Arithmetic is
float32 (float64 for float64 tensors).  A row that fits (SINGLE) is read once; for a longer one maximum and sum are kept online.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from . import scalar as m
from .launch import Step, by_signature, capped, lacks, launch, next_power_of_2, programs
from .rows import contiguous, cut, device_of, writable

__all__ = ["KERNELS", "WHEN", "matrix"]

TILE = 1024  # elements a program holds at least: 8 a thread at 4 warps of 32
KEPT = 8192  # longest row held in registers: 32 elements a thread at 8 warps of 32; 16384 spills on sm_80


@triton.jit
def softmax_kernel(x_ptr, y_ptr, n, inner, rows, LOG: tl.constexpr, WIDE: tl.constexpr, BIG: tl.constexpr, SINGLE: tl.constexpr,
                   BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_I), tl.num_programs(0)):
        row = block.to(INDEX) * BLOCK_I + tl.arange(0, BLOCK_I)  # (BLOCK_I,)
        live = row < rows
        base = (row // inner) * n * inner + row % inner
        if SINGLE:
            col = tl.arange(0, BLOCK_N).to(INDEX)  # (BLOCK_N,)
            mask = (col < n)[:, None] & live[None, :]
            at = base[None, :] + col[:, None] * inner
            x = tl.load(x_ptr + at, mask=mask, other=-float("inf")).to(acc)
            z = x - m.max(x, 0)[None, :]
            e = m.exp(z)
            total = tl.sum(e, 0)
            if LOG:
                y = z - m.log(total)[None, :]
            else:
                y = m.div(e, total[None, :])
            tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
        else:
            highest = tl.full((BLOCK_I,), -float("inf"), acc)
            total = tl.zeros((BLOCK_I,), acc)
            for start in range(0, n, BLOCK_N):
                col = (start + tl.arange(0, BLOCK_N)).to(INDEX)
                mask = (col < n)[:, None] & live[None, :]
                x = tl.load(x_ptr + base[None, :] + col[:, None] * inner, mask=mask, other=-float("inf")).to(acc)
                above = m.maximum(highest, m.max(x, 0))
                # a row of -inf so far keeps the shift at 0: exp(-inf - -inf) would be NaN before the row is known
                shift = tl.where(above == -float("inf"), 0.0, above)
                total = total * m.exp(highest - shift) + tl.sum(m.exp(x - shift[None, :]), 0)
                highest = above
            for start in range(0, n, BLOCK_N):
                col = (start + tl.arange(0, BLOCK_N)).to(INDEX)
                mask = (col < n)[:, None] & live[None, :]
                at = base[None, :] + col[:, None] * inner
                z = tl.load(x_ptr + at, mask=mask, other=0.0).to(acc) - highest[None, :]
                if LOG:
                    y = z - m.log(total)[None, :]
                else:
                    y = m.div(m.exp(z), total[None, :])
                tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def softmax_backward_kernel(dy_ptr, y_ptr, dx_ptr, n, inner, rows, LOG: tl.constexpr, WIDE: tl.constexpr, BIG: tl.constexpr,
                            BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_I), tl.num_programs(0)):
        row = block.to(INDEX) * BLOCK_I + tl.arange(0, BLOCK_I)
        live = row < rows
        base = (row // inner) * n * inner + row % inner
        sums = tl.zeros((BLOCK_N, BLOCK_I), acc)
        for start in range(0, n, BLOCK_N):
            col = (start + tl.arange(0, BLOCK_N)).to(INDEX)
            mask = (col < n)[:, None] & live[None, :]
            at = base[None, :] + col[:, None] * inner
            dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(acc)
            if LOG:
                sums += dy
            else:
                sums += dy * tl.load(y_ptr + at, mask=mask, other=0.0).to(acc)
        total = tl.sum(sums, 0)
        for start in range(0, n, BLOCK_N):
            col = (start + tl.arange(0, BLOCK_N)).to(INDEX)
            mask = (col < n)[:, None] & live[None, :]
            at = base[None, :] + col[:, None] * inner
            dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(acc)
            y = tl.load(y_ptr + at, mask=mask, other=0.0).to(acc)
            if LOG:
                dx = dy - m.exp(y) * total[None, :]
            else:
                dx = y * (dy - total[None, :])
            tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def tile(n: int, inner: int, rows: int, most: int) -> tuple[int, int, int]:
    """(BLOCK_N, BLOCK_I, warps): along the row where rows are contiguous, across rows where they lie side by side."""
    if inner == 1:
        along = min(next_power_of_2(n), most)
        return along, min(max(TILE // along, 1), next_power_of_2(rows)), 4 if along <= 2048 else 8
    across = min(next_power_of_2(inner), 64)
    return min(next_power_of_2(n), max(TILE // across, 1)), across, 4


def _run(kernel: Any, tensors: tuple[Tensor, ...], dim: int, log: bool, out: Tensor) -> None:
    outer, n, inner = cut(out.shape, dim)
    rows = outer * inner
    if out.numel == 0:
        return
    backward = kernel is softmax_backward_kernel
    block_n, block_i, warps = tile(n, inner, rows, 4096 if backward else KEPT)
    single = block_n >= n
    if inner == 1 and not single:
        block_n, warps = 4096, 8
    more = {} if backward else {"SINGLE": single}
    with writable(out) as y:
        launch(kernel, (capped(device_of(out), programs(rows, block_i)),), *(contiguous(t) for t in tensors), y, n,
               Step(inner) if inner == 1 else inner, rows, num_warps=warps, LOG=log, WIDE=out.dtype.name == "float64",
               BIG=out.numel >= 2**30, **more, BLOCK_N=block_n, BLOCK_I=block_i)


def softmax(x: Tensor, *, dim: int, out: Tensor) -> None:
    _run(softmax_kernel, (x,), dim, False, out)


def log_softmax(x: Tensor, *, dim: int, out: Tensor) -> None:
    _run(softmax_kernel, (x,), dim, True, out)


def softmax_backward(dy: Tensor, y: Tensor, *, dim: int, out: Tensor) -> None:
    _run(softmax_backward_kernel, (dy, y), dim, False, out)


def log_softmax_backward(dy: Tensor, y: Tensor, *, dim: int, out: Tensor) -> None:
    _run(softmax_backward_kernel, (dy, y), dim, True, out)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, accumulator(specs[0].dtype).name)


KERNELS = {"softmax": softmax, "log_softmax": log_softmax, "softmax_backward": softmax_backward, "log_softmax_backward": log_softmax_backward}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    for t in ("*fp32", "*bf16"):
        for n in (128, 4096, KEPT, 50257):
            block_n, block_i, warps = tile(n, 1, 4096, KEPT)
            single = block_n >= n
            block_n, warps = (block_n, warps) if single else (4096, 8)
            sizes = (("i32", n % 16 == 0), ("=1", False), ("i32", True))
            yield f"softmax {t} {n}", softmax_kernel, ((t, True), (t, True), *sizes), \
                {"LOG": False, "WIDE": False, "BIG": False, "SINGLE": single, "BLOCK_N": block_n, "BLOCK_I": block_i}, warps
        block_n, block_i, warps = tile(512, 512, 4096, KEPT)
        yield f"softmax {t} inner", softmax_kernel, ((t, True), (t, True), ("i32", True), ("i32", True), ("i32", True)), \
            {"LOG": False, "WIDE": False, "BIG": False, "SINGLE": False, "BLOCK_N": block_n, "BLOCK_I": block_i}, warps
        yield f"softmax_backward {t} 4096", softmax_backward_kernel, ((t, True), (t, True), (t, True), ("i32", True), ("=1", False), ("i32", True)), \
            {"LOG": False, "WIDE": False, "BIG": False, "BLOCK_N": 4096, "BLOCK_I": 1}, 8
