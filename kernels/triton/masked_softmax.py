"""Masked softmax on Triton: a program owns rows of scores; a row that fits is read once, a longer one twice with its sum kept online.

Not here: what the operators are (kernels/ops/masked_softmax.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from . import scalar as m
from .launch import F64, Step, by_signature, capped, lacks, launch, next_power_of_2, programs
from .rows import contiguous, device_of, writable
from .tiles import broadcast_steps

__all__ = ["KERNELS", "WHEN", "matrix"]

TILE = 1024  # elements a program holds at least: 8 a thread at 4 warps of 32
KEPT = 8192  # longest row held in registers: 32 elements a thread at 8 warps of 32


@triton.jit
def _scores(x_ptr, mask_ptr, at, col, live, step_k, query, scale, acc: tl.constexpr, CAUSAL: tl.constexpr):
    """Scaled scores, -inf where they do not count.  at: (R, C) offsets; mask_ptr: (R,) pointers to rows of the mask."""
    if CAUSAL:
        seen = live & (col[None, :] <= query[:, None])
    else:
        seen = live & (tl.load(mask_ptr[:, None] + col[None, :] * step_k, mask=live, other=1) == 0)
    x = tl.load(x_ptr + at, mask=seen, other=0.0).to(acc) * scale
    return tl.where(seen, x, -float("inf"))


@triton.jit
def masked_kernel(x_ptr, mask_ptr, y_ptr, rows, n, queries, heads, step_b, step_h, step_q, step_k, scale, CAUSAL: tl.constexpr, WIDE: tl.constexpr,
                  BIG: tl.constexpr, SINGLE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr):
    """x, y (batch, heads, queries, n) packed, rows = batch heads queries; the mask has a stride for each of these axes."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_R), tl.num_programs(0)):
        row = block.to(INDEX) * BLOCK_R + tl.arange(0, BLOCK_R)
        live = row < rows
        query = row % queries
        of_head = row // queries
        hidden = mask_ptr + (of_head // heads) * step_b + (of_head % heads) * step_h + query * step_q
        if SINGLE:
            col = tl.arange(0, BLOCK_N).to(INDEX)
            mask = live[:, None] & (col < n)[None, :]
            at = row[:, None] * n + col[None, :]
            z = _scores(x_ptr, hidden, at, col, mask, step_k, query, scale, acc, CAUSAL)
            top = m.max(z, 1)
            e = m.exp(z - tl.where(top == -float("inf"), 0.0, top)[:, None])
            y = tl.where(z == -float("inf"), 0.0, m.div(e, tl.sum(e, 1)[:, None]))
            tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
        else:
            top = tl.full((BLOCK_R,), -float("inf"), acc)
            total = tl.zeros((BLOCK_R,), acc)
            for start in range(0, n, BLOCK_N):
                col = (start + tl.arange(0, BLOCK_N)).to(INDEX)
                mask = live[:, None] & (col < n)[None, :]
                z = _scores(x_ptr, hidden, row[:, None] * n + col[None, :], col, mask, step_k, query, scale, acc, CAUSAL)
                above = m.maximum(top, m.max(z, 1))
                shift = tl.where(above == -float("inf"), 0.0, above)
                total = total * m.exp(top - shift) + tl.sum(m.exp(z - shift[:, None]), 1)
                top = above
            shift = tl.where(top == -float("inf"), 0.0, top)
            for start in range(0, n, BLOCK_N):
                col = (start + tl.arange(0, BLOCK_N)).to(INDEX)
                mask = live[:, None] & (col < n)[None, :]
                at = row[:, None] * n + col[None, :]
                z = _scores(x_ptr, hidden, at, col, mask, step_k, query, scale, acc, CAUSAL)
                y = tl.where(z == -float("inf"), 0.0, m.div(m.exp(z - shift[:, None]), total[:, None]))
                tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


def _blocks(n: int, rows: int) -> tuple[int, int, int]:
    """(BLOCK_R, BLOCK_N, warps)."""
    along = min(next_power_of_2(n), KEPT)
    if along < n:
        return 1, 4096, 8
    return min(max(TILE // along, 1), next_power_of_2(rows)), along, 4 if along <= 2048 else 8


def _run(x: Tensor, mask: Tensor | None, scale: float, out: Tensor) -> None:
    if out.numel == 0:
        return
    n = x.shape[-1]
    rows = out.numel // n
    queries = x.shape[-2]
    heads = x.shape[-3] if x.ndim > 2 else 1
    steps: tuple[int, ...] = (0, 0, 0, 0)
    if mask is not None:
        if x.ndim > 4 or mask.ndim > 4:
            mask = contiguous(mask.expand(*x.shape))
            steps = (heads * queries * n, queries * n, n, 1)
        else:
            steps = broadcast_steps(mask, ((1,) * (4 - x.ndim) + tuple(x.shape)))
    block_r, block_n, warps = _blocks(n, rows)
    wide = x.dtype.name == "float64"
    with writable(out) as y:
        launch(masked_kernel, (capped(device_of(x), programs(rows, block_r)),), contiguous(x), y if mask is None else mask, y, rows, n, queries,
               heads, *map(Step, steps), F64(scale) if wide else float(scale), num_warps=warps, CAUSAL=mask is None, WIDE=wide,
               BIG=out.numel + block_n >= 2**30 or max(map(abs, steps)) * max(x.shape) >= 2**30, SINGLE=block_n >= n, BLOCK_R=block_r,
               BLOCK_N=block_n)


def scaled_masked_softmax(x: Tensor, mask: Tensor, *, scale: float, out: Tensor) -> None:
    _run(x, mask, scale, out)


def scaled_upper_triang_masked_softmax(x: Tensor, *, scale: float, out: Tensor) -> None:
    _run(x, None, scale, out)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, accumulator(specs[0].dtype).name)


KERNELS = {"scaled_masked_softmax": scaled_masked_softmax, "scaled_upper_triang_masked_softmax": scaled_upper_triang_masked_softmax}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    i32, none, one, number = ("i32", True), ("=0", False), ("=1", False), ("fp32", False)
    for t in ("*fp32", "*bf16"):
        for causal, n in ((False, 1024), (True, 1024), (False, 16384)):
            block_r, block_n, warps = _blocks(n, 4096)
            steps = (none,) * 4 if causal else (i32, none, i32, one)
            yield f"masked softmax {t} {'causal ' if causal else ''}{n}", masked_kernel, \
                ((t, True), (t if causal else "*i8", True), (t, True), i32, i32, i32, ("i32", False), *steps, number), \
                {"CAUSAL": causal, "WIDE": False, "BIG": False, "SINGLE": block_n >= n, "BLOCK_R": block_r, "BLOCK_N": block_n}, warps
