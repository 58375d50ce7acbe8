"""layer_norm, rms_norm and their gradients on Triton: a program owns BLOCK_R rows.

A row that fits (SINGLE: BLOCK_N >= n) is read once and kept; a longer one is walked three times.  The gradients of weight and bias are
sums over rows: each program sums a piece of the rows for a strip of columns, a reduction adds the pieces in order.
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
from .reduce import fold
from .rows import contiguous, device_of, writable

__all__ = ["KERNELS", "WHEN", "matrix"]

KEPT = 8192  # longest row held in registers: 32 elements a thread at 8 warps of 32; 16384 spills on sm_80
STRIP = 64  # columns of a program that sums over rows: 128 bytes of float16
PIECES = 128  # pieces of the rows, whatever the device


@triton.jit
def forward_kernel(x_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, rows, n, eps, WIDE: tl.constexpr, CENTRED: tl.constexpr,
                   WEIGHT: tl.constexpr, BIAS: tl.constexpr, STATS: tl.constexpr, SINGLE: tl.constexpr, BLOCK_R: tl.constexpr,
                   BLOCK_N: tl.constexpr):
    """y = (x - mean) rstd weight + bias by row, mean 0 unless CENTRED (rms_norm); STATS: mean (rows,) and rstd (rows,) too."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    count = tl.zeros((BLOCK_R,), acc) + n.to(acc)
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_R), tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK_R
        r = tl.arange(0, BLOCK_R)
        live = r < rows - first
        x_row = x_ptr + first * n + r[:, None] * n
        y_row = y_ptr + first * n + r[:, None] * n
        mean = tl.zeros((BLOCK_R,), acc)
        if SINGLE:
            c = tl.arange(0, BLOCK_N)
            mask = live[:, None] & (c < n)[None, :]
            x = tl.load(x_row + c[None, :], mask=mask, other=0.0).to(acc)
            if CENTRED:
                mean = m.div(tl.sum(x, 1), count)
            d = tl.where(mask, x - mean[:, None], 0.0)
            square = tl.sum(d * d, 1)
        else:
            if CENTRED:
                total = tl.zeros((BLOCK_R, BLOCK_N), acc)
                for start in range(0, n, BLOCK_N):
                    c = start + tl.arange(0, BLOCK_N)
                    total += tl.load(x_row + c[None, :], mask=live[:, None] & (c < n)[None, :], other=0.0).to(acc)
                mean = m.div(tl.sum(total, 1), count)
            total = tl.zeros((BLOCK_R, BLOCK_N), acc)
            for start in range(0, n, BLOCK_N):
                c = start + tl.arange(0, BLOCK_N)
                mask = live[:, None] & (c < n)[None, :]
                d = tl.load(x_row + c[None, :], mask=mask, other=0.0).to(acc) - mean[:, None]
                total += tl.where(mask, d * d, 0.0)
            square = tl.sum(total, 1)
        rstd = m.div(tl.full((BLOCK_R,), 1.0, acc), m.sqrt(m.div(square, count) + eps))
        if STATS:
            if CENTRED:
                tl.store(mean_ptr + first + r, mean, mask=live)
            tl.store(rstd_ptr + first + r, rstd, mask=live)
        if SINGLE:
            y = d * rstd[:, None]
            if WEIGHT:
                y *= tl.load(weight_ptr + c, mask=c < n, other=0.0).to(acc)[None, :]
            if BIAS:
                y += tl.load(bias_ptr + c, mask=c < n, other=0.0).to(acc)[None, :]
            tl.store(y_row + c[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
        else:
            for start in range(0, n, BLOCK_N):
                c = start + tl.arange(0, BLOCK_N)
                mask = live[:, None] & (c < n)[None, :]
                y = (tl.load(x_row + c[None, :], mask=mask, other=0.0).to(acc) - mean[:, None]) * rstd[:, None]
                if WEIGHT:
                    y *= tl.load(weight_ptr + c, mask=c < n, other=0.0).to(acc)[None, :]
                if BIAS:
                    y += tl.load(bias_ptr + c, mask=c < n, other=0.0).to(acc)[None, :]
                tl.store(y_row + c[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(dy_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, dx_ptr, rows, n, WIDE: tl.constexpr, CENTRED: tl.constexpr,
                    WEIGHT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr):
    """dx = rstd (g - mean(g) - normal mean(g normal)) with g = dy weight, normal = (x - mean) rstd; mean(g) only if CENTRED.

    The row is read twice; the second time it comes from the cache.
    """
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    count = tl.zeros((BLOCK_R,), acc) + n.to(acc)
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_R), tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK_R
        r = tl.arange(0, BLOCK_R)
        live = r < rows - first
        rstd = tl.load(rstd_ptr + first + r, mask=live, other=0.0).to(acc)
        mean = tl.zeros((BLOCK_R,), acc)
        if CENTRED:
            mean = tl.load(mean_ptr + first + r, mask=live, other=0.0).to(acc)
        along = tl.zeros((BLOCK_R, BLOCK_N), acc)
        level = tl.zeros((BLOCK_R, BLOCK_N), acc)
        for start in range(0, n, BLOCK_N):
            c = start + tl.arange(0, BLOCK_N)
            mask = live[:, None] & (c < n)[None, :]
            at = first * n + r[:, None] * n + c[None, :]
            g = tl.load(dy_ptr + at, mask=mask, other=0.0).to(acc)
            if WEIGHT:
                g *= tl.load(weight_ptr + c, mask=c < n, other=0.0).to(acc)[None, :]
            normal = (tl.load(x_ptr + at, mask=mask, other=0.0).to(acc) - mean[:, None]) * rstd[:, None]
            along += g * normal  # 0 where masked: g is
            if CENTRED:
                level += g
        slope = m.div(tl.sum(along, 1), count)[:, None]
        shift = m.div(tl.sum(level, 1), count)[:, None]
        for start in range(0, n, BLOCK_N):
            c = start + tl.arange(0, BLOCK_N)
            mask = live[:, None] & (c < n)[None, :]
            at = first * n + r[:, None] * n + c[None, :]
            g = tl.load(dy_ptr + at, mask=mask, other=0.0).to(acc)
            if WEIGHT:
                g *= tl.load(weight_ptr + c, mask=c < n, other=0.0).to(acc)[None, :]
            normal = (tl.load(x_ptr + at, mask=mask, other=0.0).to(acc) - mean[:, None]) * rstd[:, None]
            dx = rstd[:, None] * (g - shift - normal * slope)
            tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def weight_kernel(dy_ptr, x_ptr, mean_ptr, rstd_ptr, dweight_ptr, dbias_ptr, rows, n, piece, pieces, WIDE: tl.constexpr, CENTRED: tl.constexpr,
                  BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """dweight (pieces, n) = sum of dy normal over each piece of the rows; dbias, if CENTRED, the sum of dy."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK_C) * pieces, tl.num_programs(0)):
        number = block % pieces
        c = (block // pieces) * BLOCK_C + tl.arange(0, BLOCK_C)
        dweight = tl.zeros((BLOCK_R, BLOCK_C), acc)
        dbias = tl.zeros((BLOCK_R, BLOCK_C), acc)
        last = tl.minimum((number + 1) * piece, rows)
        for start in range(number * piece, last, BLOCK_R):
            r = tl.arange(0, BLOCK_R)
            live = r < last - start
            mask = live[:, None] & (c < n)[None, :]
            at = start.to(tl.int64) * n + r[:, None] * n + c[None, :]
            dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(acc)
            normal = tl.load(x_ptr + at, mask=mask, other=0.0).to(acc)
            if CENTRED:
                normal -= tl.load(mean_ptr + start + r, mask=live, other=0.0).to(acc)[:, None]
                dbias += dy
            normal *= tl.load(rstd_ptr + start + r, mask=live, other=0.0).to(acc)[:, None]
            dweight += dy * normal
        out = number.to(tl.int64) * n + c
        tl.store(dweight_ptr + out, tl.sum(dweight, 0).to(dweight_ptr.dtype.element_ty), mask=c < n)
        if CENTRED:
            tl.store(dbias_ptr + out, tl.sum(dbias, 0).to(dbias_ptr.dtype.element_ty), mask=c < n)


# ---- running -------------------------------------------------------------------------------------------------------------
def _cut(shape: Sequence[int], axes: int) -> tuple[int, int]:
    """(rows, n) with the last ``axes`` axes normalised."""
    rows = n = 1
    for k, s in enumerate(shape):
        rows, n = (rows, n * s) if k >= len(shape) - axes else (rows * s, n)
    return rows, n


def _tile(rows: int, n: int, most: int) -> tuple[int, int, int]:
    """(BLOCK_R, BLOCK_N, warps): short rows share a program, long ones get more threads."""
    block = min(next_power_of_2(n), most)
    return min(max(1024 // block, 1), next_power_of_2(rows)), block, 4 if block <= 2048 else 8


def _forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: int, eps: float, centred: bool, out: Tensor,
             mean: Tensor | None, rstd: Tensor | None) -> None:
    rows, n = _cut(x.shape, axes)
    if not rows or not (n or rstd is not None):
        return
    wide = x.dtype.name == "float64"
    block_r, block_n, warps = _tile(rows, n, KEPT)
    single = block_n >= n
    if not single:
        block_n, warps = 4096, 8
    with writable(out) as y:
        x = contiguous(x)
        stats = rstd is not None
        launch(forward_kernel, (capped(device_of(x), programs(rows, block_r)),), x, x if weight is None else contiguous(weight),
               x if bias is None else contiguous(bias), y, x if mean is None else mean, x if rstd is None else rstd, rows, n,
               F64(eps) if wide else float(eps), num_warps=warps, WIDE=wide, CENTRED=centred, WEIGHT=weight is not None, BIAS=bias is not None,
               STATS=stats, SINGLE=single, BLOCK_R=block_r, BLOCK_N=block_n)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, normalized_shape: Sequence[int], eps: float, out: Tensor) -> None:
    _forward(x, weight, bias, len(normalized_shape), eps, True, out, None, None)


def native_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, normalized_shape: Sequence[int], eps: float,
                      out: tuple[Tensor, Tensor, Tensor]) -> None:
    y, mean, rstd = out
    with writable(mean) as a, writable(rstd) as b:
        _forward(x, weight, bias, len(normalized_shape), eps, True, y, a, b)


def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float, out: Tensor) -> None:
    _forward(x, weight, None, 1 if weight is None else weight.ndim, eps, False, out, None, None)


def fused_rms_norm(x: Tensor, weight: Tensor | None, *, normalized_shape: Sequence[int], eps: float, out: tuple[Tensor, Tensor]) -> None:
    y, rstd = out
    with writable(rstd) as b:
        _forward(x, weight, None, len(normalized_shape), eps, False, y, None, b)


def _backward(dy: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, weight: Tensor | None, axes: int, dx: Tensor, dweight: Tensor,
              dbias: Tensor | None) -> None:
    rows, n = _cut(x.shape, axes)
    if n == 0:
        return
    device = device_of(x)
    centred = mean is not None
    wide = x.dtype.name == "float64"
    dy, x, rstd = contiguous(dy), contiguous(x), contiguous(rstd)
    mean = rstd if mean is None else contiguous(mean)
    if rows:
        block_r, block_n, warps = _tile(rows, n, 4096)
        with writable(dx) as y:
            launch(backward_kernel, (capped(device, programs(rows, block_r)),), dy, x, mean, rstd, x if weight is None else contiguous(weight), y,
                   rows, n, num_warps=warps, WIDE=wide, CENTRED=centred, WEIGHT=weight is not None, BLOCK_R=block_r, BLOCK_N=block_n)
    strip = min(next_power_of_2(n), STRIP)
    tall = min(next_power_of_2(rows), 2048 // strip)
    pieces = max(min(programs(rows, 4 * tall), PIECES), 1)
    piece = max(programs(programs(rows, pieces), tall) * tall, 1)
    pieces = max(programs(rows, piece), 1)
    acc = accumulator(x.dtype)
    parts = [device.empty((pieces, n), acc) for _ in range(1 + centred)]
    launch(weight_kernel, (capped(device, programs(n, strip) * pieces),), dy, x, mean, rstd, parts[0], parts[-1], rows, n, piece, pieces,
           WIDE=wide, CENTRED=centred, BLOCK_R=tall, BLOCK_C=strip)
    for part, gradient in zip(parts, (dweight, dbias)):
        if gradient is not None:
            fold("sum", part.reshape(pieces, *gradient.shape), (0,), gradient)


def native_layer_norm_backward(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None, *,
                               normalized_shape: Sequence[int], out: tuple[Tensor, Tensor, Tensor]) -> None:
    _backward(dy, x, mean, rstd, weight, len(normalized_shape), *out)


def fused_rms_norm_backward(dy: Tensor, x: Tensor, rstd: Tensor, weight: Tensor | None, *, normalized_shape: Sequence[int],
                            out: tuple[Tensor, Tensor]) -> None:
    _backward(dy, x, None, rstd, weight, len(normalized_shape), *out, None)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, accumulator(specs[0].dtype).name)


KERNELS = {"layer_norm": layer_norm, "native_layer_norm": native_layer_norm, "native_layer_norm_backward": native_layer_norm_backward,
           "rms_norm": rms_norm, "fused_rms_norm": fused_rms_norm, "fused_rms_norm_backward": fused_rms_norm_backward}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    size = (("i32", True), ("i32", True))
    for t, stat in (("*fp32", "*fp32"), ("*bf16", "*fp32")):
        for n in (768, 4096, KEPT):
            block_r, block_n, warps = _tile(4096, n, KEPT)
            yield f"layer_norm {t} {n}", forward_kernel, (*((t, True),) * 4, (stat, True), (stat, True), *size, ("fp32", False)), \
                {"WIDE": False, "CENTRED": True, "WEIGHT": True, "BIAS": True, "STATS": True, "SINGLE": True, "BLOCK_R": block_r, "BLOCK_N": block_n}, warps
        block_r, block_n, warps = _tile(4096, 4096, 4096)
        yield f"layer_norm_backward {t} 4096", backward_kernel, ((t, True), (t, True), (stat, True), (stat, True), (t, True), (t, True), *size), \
            {"WIDE": False, "CENTRED": True, "WEIGHT": True, "BLOCK_R": block_r, "BLOCK_N": block_n}, warps
        yield f"layer_norm weights {t}", weight_kernel, ((t, True), (t, True), *((stat, True),) * 4, *size, ("i32", True), ("i32", True)), \
            {"WIDE": False, "CENTRED": True, "BLOCK_R": 32, "BLOCK_C": STRIP}, 4
