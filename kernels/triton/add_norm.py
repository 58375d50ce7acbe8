"""Layer and RMS normalisation of a sum on Triton: a program owns rows; a row that fits is read once, a longer sum is read back.

Not here: what the operators are (kernels/ops/add_norm.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from . import scalar as m
from .launch import F64, by_signature, capped, lacks, launch, next_power_of_2, programs
from .rows import contiguous, device_of, writable

__all__ = ["KERNELS", "WHEN", "matrix"]

KEPT = 8192  # longest row held in registers: 32 elements a thread at 8 warps of 32


@triton.jit
def _added(x_ptr, skip_ptr, bias_ptr, at, c, mask, n, acc: tl.constexpr, BIAS: tl.constexpr):
    z = tl.load(x_ptr + at, mask=mask, other=0.0).to(acc) + tl.load(skip_ptr + at, mask=mask, other=0.0).to(acc)
    if BIAS:
        z += tl.load(bias_ptr + c, mask=c < n, other=0.0).to(acc)[None, :]
    return tl.where(mask, z, 0.0)


@triton.jit
def _scaled(y, weight_ptr, beta_ptr, c, n, acc: tl.constexpr, WEIGHT: tl.constexpr, BETA: tl.constexpr):
    if WEIGHT:
        y *= tl.load(weight_ptr + c, mask=c < n, other=0.0).to(acc)[None, :]
    if BETA:
        y += tl.load(beta_ptr + c, mask=c < n, other=0.0).to(acc)[None, :]
    return y


@triton.jit
def add_norm_kernel(x_ptr, skip_ptr, weight_ptr, beta_ptr, bias_ptr, y_ptr, sum_ptr, rows, n, eps, CENTRED: tl.constexpr, WEIGHT: tl.constexpr,
                    BETA: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr, SINGLE: tl.constexpr, BLOCK_R: tl.constexpr,
                    BLOCK_N: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    count = tl.zeros((BLOCK_R,), acc) + n.to(acc)
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_R), tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK_R
        r = tl.arange(0, BLOCK_R)
        live = r < rows - first
        if SINGLE:
            c = tl.arange(0, BLOCK_N)
            mask = live[:, None] & (c < n)[None, :]
            at = first * n + r[:, None] * n + c[None, :]
            z = _added(x_ptr, skip_ptr, bias_ptr, at, c, mask, n, acc, BIAS)
            tl.store(sum_ptr + at, z.to(sum_ptr.dtype.element_ty), mask=mask)
            if CENTRED:
                z = tl.where(mask, z - m.div(tl.sum(z, 1), count)[:, None], 0.0)
            rstd = m.div(tl.full((BLOCK_R,), 1.0, acc), m.sqrt(m.div(tl.sum(z * z, 1), count) + eps))
            y = _scaled(z * rstd[:, None], weight_ptr, beta_ptr, c, n, acc, WEIGHT, BETA)
            tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
        else:
            total = tl.zeros((BLOCK_R, BLOCK_N), acc)
            mean = tl.zeros((BLOCK_R,), acc)
            for start in range(0, n, BLOCK_N):
                c = start + tl.arange(0, BLOCK_N)
                mask = live[:, None] & (c < n)[None, :]
                at = first * n + r[:, None] * n + c[None, :]
                z = _added(x_ptr, skip_ptr, bias_ptr, at, c, mask, n, acc, BIAS)
                tl.store(sum_ptr + at, z.to(sum_ptr.dtype.element_ty), mask=mask)
                if CENTRED:
                    total += z
                else:
                    total += z * z
            if CENTRED:
                mean = m.div(tl.sum(total, 1), count)
                total = tl.zeros((BLOCK_R, BLOCK_N), acc)
                for start in range(0, n, BLOCK_N):
                    c = start + tl.arange(0, BLOCK_N)
                    mask = live[:, None] & (c < n)[None, :]
                    at = first * n + r[:, None] * n + c[None, :]
                    d = _added(x_ptr, skip_ptr, bias_ptr, at, c, mask, n, acc, BIAS) - mean[:, None]
                    total += tl.where(mask, d * d, 0.0)
            rstd = m.div(tl.full((BLOCK_R,), 1.0, acc), m.sqrt(m.div(tl.sum(total, 1), count) + eps))
            for start in range(0, n, BLOCK_N):
                c = start + tl.arange(0, BLOCK_N)
                mask = live[:, None] & (c < n)[None, :]
                at = first * n + r[:, None] * n + c[None, :]
                z = _added(x_ptr, skip_ptr, bias_ptr, at, c, mask, n, acc, BIAS)
                y = _scaled((z - mean[:, None]) * rstd[:, None], weight_ptr, beta_ptr, c, n, acc, WEIGHT, BETA)
                tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


def _blocks(rows: int, n: int) -> tuple[int, int, int]:
    """(BLOCK_R, BLOCK_N, warps)."""
    block = min(next_power_of_2(n), KEPT)
    if block < n:
        return 1, 4096, 8
    return min(max(1024 // block, 1), next_power_of_2(rows)), block, 4 if block <= 2048 else 8


def _run(x: Tensor, skip: Tensor, weight: Tensor | None, beta: Tensor | None, bias: Tensor | None, eps: float, centred: bool,
         out: tuple[Tensor, Tensor]) -> None:
    n = x.shape[-1]
    if x.numel == 0:
        return
    rows, wide = x.numel // n, x.dtype.name == "float64"
    block_r, block_n, warps = _blocks(rows, n)
    x, skip = contiguous(x), contiguous(skip)
    given = [x if t is None else contiguous(t) for t in (weight, beta, bias)]
    with writable(out[0]) as y, writable(out[1]) as z:
        launch(add_norm_kernel, (capped(device_of(x), programs(rows, block_r)),), x, skip, *given, y, z, rows, n, F64(eps) if wide else float(eps),
               num_warps=warps, CENTRED=centred, WEIGHT=weight is not None, BETA=beta is not None, BIAS=bias is not None, WIDE=wide,
               SINGLE=block_n >= n, BLOCK_R=block_r, BLOCK_N=block_n)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, *, eps: float, out: tuple[Tensor, Tensor]) -> None:
    _run(x, residual, weight, None, None, eps, False, out)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor | None, beta: Tensor | None, *, eps: float, out: tuple[Tensor, Tensor]) -> None:
    _run(x, residual, weight, beta, None, eps, True, out)


def skip_layer_norm(x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None, bias: Tensor | None, *, eps: float,
                    out: tuple[Tensor, Tensor]) -> None:
    _run(x, skip, gamma, beta, bias, eps, True, out)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, accumulator(specs[0].dtype).name)


KERNELS = {"add_rms_norm": add_rms_norm, "add_layer_norm": add_layer_norm, "skip_layer_norm": skip_layer_norm}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    for t in ("*fp32", "*bf16"):
        for centred, n in ((False, 4096), (True, 768), (True, 16384)):
            block_r, block_n, warps = _blocks(4096, n)
            yield f"add_norm {t} {'layer' if centred else 'rms'} {n}", add_norm_kernel, \
                (*((t, True),) * 7, ("i32", True), ("i32", True), ("fp32", False)), \
                {"CENTRED": centred, "WEIGHT": True, "BETA": centred, "BIAS": False, "WIDE": False, "SINGLE": block_n >= n, "BLOCK_R": block_r,
                 "BLOCK_N": block_n}, warps
