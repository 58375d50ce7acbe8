"""fused_linear_cross_entropy on Triton: chunks of logits between matmul.py's products, read by a kernel of rows.

The loss takes chunks of rows, the gradients chunks of classes, so that each row of dweight is one product over all rows.  Not here: what the
operators are (kernels/ops/fused_loss.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from . import scalar as m
from .launch import F64, Data, by_signature, capped, lacks, launch, next_power_of_2, programs
from .loss import check_targets, reduce_kernel
from .matmul import product
from .pointwise import cast
from .reduce import fold
from .rows import contiguous, device_of, writable
from .shape import full

__all__ = ["KERNELS", "WHEN", "matrix"]

LOGITS = 1 << 24  # elements of a chunk: 64 MiB of float32, small beside a vocabulary's 4096 x 128000
LEAST = 128  # rows, and classes, of a chunk at least
BLOCK = 2048  # logits of a row a program looks at at a time


@triton.jit
def losses_kernel(z_ptr, target_ptr, loss_ptr, lse_ptr, kept_ptr, first, rows, classes, ignore, hard, smooth, SMOOTH: tl.constexpr,
                  WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """loss, logsumexp and whether it counts of rows first + i from their logits z (rows, classes)."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for i in range(tl.program_id(0), rows, tl.num_programs(0)):
        one = tl.arange(0, 1)
        target = tl.load(target_ptr + first + i + one)
        kept = target != ignore
        z_row = z_ptr + i.to(tl.int64) * classes
        top = tl.full((1,), -float("inf"), acc)
        total = tl.zeros((1,), acc)
        level = tl.zeros((1,), acc)
        for start in range(0, classes, BLOCK):
            c = start + tl.arange(0, BLOCK)
            z = tl.load(z_row + c, mask=c < classes, other=-float("inf"))[None, :]
            above = m.maximum(top, m.max(z, 1))
            shift = tl.where(above == -float("inf"), 0.0, above)
            total = total * m.exp(top - shift) + tl.sum(m.exp(z - shift[:, None]), 1)
            top = above
        logarithm = m.log(total)
        chosen = tl.load(z_row + tl.where(kept, target, 0))
        loss = logarithm - (chosen - top)
        if SMOOTH:
            for start in range(0, classes, BLOCK):
                c = start + tl.arange(0, BLOCK)
                z = tl.load(z_row + c, mask=c < classes, other=0.0)[None, :]
                level += tl.sum(tl.where((c < classes)[None, :], logarithm[:, None] - (z - top[:, None]), 0.0), 1)
            loss = hard * loss + smooth * level
        tl.store(loss_ptr + first + i + one, tl.where(kept, loss, 0.0).to(loss_ptr.dtype.element_ty))
        tl.store(lse_ptr + first + i + one, tl.where(kept, top + logarithm, 0.0))
        tl.store(kept_ptr + first + i + one, tl.where(kept, 1.0, 0.0).to(acc))


@triton.jit
def slopes_kernel(z_ptr, target_ptr, lse_ptr, dy_ptr, count_ptr, g_ptr, first, rows, classes, ignore, hard, level, EACH: tl.constexpr,
                  MEAN: tl.constexpr, NARROW: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Logits z (rows, classes) of classes first + c become their slopes; with NARROW g takes them too, in its dtype."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    blocks = tl.cdiv(classes, BLOCK)
    for block in range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row = (block // blocks).to(tl.int64)
        c = block % blocks * BLOCK + tl.arange(0, BLOCK)
        target = tl.load(target_ptr + row)
        scale = tl.load(dy_ptr + row * EACH).to(acc) + tl.zeros((BLOCK,), acc)
        if MEAN:
            scale = m.div(scale, tl.load(count_ptr).to(acc) + tl.zeros((BLOCK,), acc))
        at = row * classes + c
        z = tl.load(z_ptr + at, mask=c < classes, other=0.0)
        g = scale * (m.exp(z - tl.load(lse_ptr + row)) - level - tl.where(c + first == target, hard, 0.0))
        g = tl.where(target != ignore, g, 0.0)
        tl.store(z_ptr + at, g, mask=c < classes)
        if NARROW:
            tl.store(g_ptr + at, g.to(g_ptr.dtype.element_ty), mask=c < classes)


def _chunk(all_of_them: int, others: int) -> int:
    return min(max(LOGITS // max(others, 1), LEAST), max(all_of_them, 1))


def fused_linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, *, reduction: str, ignore_index: int,
                               label_smoothing: float, out: tuple[Tensor, Tensor]) -> None:
    rows, classes, device = x.shape[0], weight.shape[0], device_of(x)
    target = contiguous(target)
    check_targets("fused_linear_cross_entropy", target, classes, ignore_index)
    acc, wide = accumulator(x.dtype), x.dtype.name == "float64"
    number = F64 if wide else float
    chunk = _chunk(rows, classes)
    logits, kept = device.empty((chunk, classes), acc), device.empty((rows,), acc)
    with writable(out[1]) as lse, writable(out[0]) as y:
        loss = y if reduction == "none" else device.empty((rows,), acc)
        for first in range(0, rows, chunk):
            n = min(chunk, rows - first)
            z = logits[:n]
            product(x[first:first + n], weight.transpose(0, 1), z, bias)
            launch(losses_kernel, (capped(device, n),), z, target, loss, lse, kept, Data(first), n, classes, Data(ignore_index),
                   number(1.0 - label_smoothing), number(label_smoothing / classes), SMOOTH=label_smoothing != 0.0, WIDE=wide,
                   BLOCK=min(next_power_of_2(classes), BLOCK))
        if reduction != "none":
            launch(reduce_kernel, (1,), loss, kept, y, y, rows, MEAN=reduction == "mean", TOTAL=False, BLOCK=min(next_power_of_2(rows), 1024))


def fused_linear_cross_entropy_backward(dy: Tensor, x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, logsumexp: Tensor, *,
                                        reduction: str, ignore_index: int, label_smoothing: float, out: tuple[Tensor, Tensor, Tensor]) -> None:
    rows, classes, device = x.shape[0], weight.shape[0], device_of(x)
    target, dy, lse = contiguous(target), contiguous(dy), contiguous(logsumexp)
    check_targets("fused_linear_cross_entropy_backward", target, classes, ignore_index)
    acc, wide, (dx, dw, db) = accumulator(x.dtype), x.dtype.name == "float64", out
    number = F64 if wide else float
    if not rows:
        for t in (dw, db):
            full(shape=t.shape, value=0.0, dtype=t.dtype, out=t)
        return
    narrow = acc is not x.dtype
    chunk = _chunk(classes, rows)
    logits = device.empty((chunk * rows,), acc)
    rounded = device.empty((chunk * rows,), x.dtype) if narrow else logits
    count = device.empty((), acc)
    if reduction == "mean":
        marks = device.empty((rows,), acc)
        launch(marks_kernel, (capped(device, programs(rows, 1024)),), target, marks, rows, Data(ignore_index), BLOCK=1024)
        fold("sum", marks, (0,), count)
    total = device.empty(x.shape, acc) if narrow else dx
    for first in range(0, classes, chunk):
        n = min(chunk, classes - first)
        z, g = (t[:rows * n].reshape(rows, n) for t in (logits, rounded))
        product(x, weight[first:first + n].transpose(0, 1), z, None if bias is None else bias[first:first + n])
        block = min(next_power_of_2(n), BLOCK)
        launch(slopes_kernel, (capped(device, rows * programs(n, block)),), z, target, lse, dy, count, g, Data(first), rows, n, Data(ignore_index),
               number(1.0 - label_smoothing), number(label_smoothing / classes), EACH=reduction == "none", MEAN=reduction == "mean", NARROW=narrow,
               WIDE=wide, BLOCK=block)
        product(g.transpose(0, 1), x, dw[first:first + n])
        fold("sum", z, (0,), db[first:first + n])
        product(g, weight[first:first + n], total, total if first else None)
    if narrow:
        cast(total, dtype=dx.dtype, out=dx)


@triton.jit
def marks_kernel(target_ptr, mark_ptr, n, ignore, BLOCK: tl.constexpr):
    """1 for targets that count, 0 for the others."""
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        i = block * BLOCK + tl.arange(0, BLOCK)
        target = tl.load(target_ptr + i, mask=i < n, other=0)
        tl.store(mark_ptr + i, tl.where(target != ignore, 1.0, 0.0).to(mark_ptr.dtype.element_ty), mask=i < n)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    floating = next(s for s in specs if s.dtype.is_floating)
    return lacks(facts, accumulator(floating.dtype).name) or lacks(facts, "int64")


KERNELS = {"fused_linear_cross_entropy": fused_linear_cross_entropy, "fused_linear_cross_entropy_backward": fused_linear_cross_entropy_backward}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    i32, number = ("i32", False), ("fp32", False)
    z, t = ("*fp32", True), ("*i64", True)
    yield "linear losses", losses_kernel, (z, t, z, z, z, i32, i32, ("i32", True), i32, number, number), {"SMOOTH": False, "WIDE": False, "BLOCK": BLOCK}, 4
    for g in ("*fp32", "*bf16"):
        yield f"linear slopes {g}", slopes_kernel, (z, t, z, (g, True), z, (g, True), i32, i32, ("i32", True), i32, number, number), \
            {"EACH": False, "MEAN": True, "NARROW": g != "*fp32", "WIDE": False, "BLOCK": BLOCK}, 4
