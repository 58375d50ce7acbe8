"""nll_loss, its forward with the sum of weights, its gradient, and cross_entropy with the log-softmax fused in.

A program owns some rows and writes their losses (none), or their sum and the sum of their weights, which a last program
adds up in a fixed order.  Sums are float32, float64 for float64.  Not here: the gradient of cross_entropy, which the
record makes of log_softmax and these; what the operators mean (kernels/ops/loss.py).
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from ...hal.errors import IndexOutOfBounds
from ...hal.tensor import Tensor
from . import scalar as m
from .index import first_outside
from .launch import F64, Data, Step, capped, launch, next_power_of_2, programs
from .rows import contiguous, device_of, writable
from .shape import full

__all__ = ["KERNELS", "matrix"]

TILE = 1024  # elements a program holds: 8 a thread at 4 warps of 32
ROWS = 512  # rows of a program of nll_kernel: 1024 spill on sm80 under Triton 3.0
FAR = 2**31  # offsets from here on need 64 bits


# ---- kernels -------------------------------------------------------------------------------------------------------------
@triton.jit
def _weights(target_ptr, weight_ptr, row, live, ignore, acc: tl.constexpr, WEIGHTED: tl.constexpr):
    """(class, weight, counts) of rows; class and weight are 0 where the row does not count."""
    target = tl.load(target_ptr + row, mask=live, other=0)
    kept = live & (target != ignore)
    target = tl.where(kept, target, 0)
    if WEIGHTED:
        w = tl.load(weight_ptr + target, mask=kept, other=0.0).to(acc)
    else:
        w = tl.where(kept, 1.0, 0.0).to(acc)
    return target, w, kept


@triton.jit
def nll_kernel(x_ptr, target_ptr, weight_ptr, loss_ptr, total_ptr, n, stride_xn, stride_xc, ignore, blocks, WEIGHTED: tl.constexpr,
               REDUCE: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """Losses of n rows, or with REDUCE a block's sum of losses and of weights at loss[block] and total[block]."""
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = block * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
        live = row < n
        if FAR:
            row = row.to(tl.int64)
        target, w, kept = _weights(target_ptr, weight_ptr, row, live, ignore, acc, WEIGHTED)
        x = tl.load(x_ptr + row * stride_xn + target.to(row.dtype) * stride_xc, mask=kept, other=0.0).to(acc)
        loss = tl.where(kept, -w * x, 0.0)
        if REDUCE:
            tl.store(loss_ptr + block, tl.sum(loss, 0))
            tl.store(total_ptr + block, tl.sum(w, 0))
        else:
            tl.store(loss_ptr + row, loss.to(loss_ptr.dtype.element_ty), mask=live)


@triton.jit
def cross_entropy_kernel(x_ptr, target_ptr, weight_ptr, loss_ptr, total_ptr, n, classes, stride_xn, stride_xc, ignore, hard, smooth,
                         blocks, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, REDUCE: tl.constexpr, FAR: tl.constexpr,
                         BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """As nll_kernel, of log_softmax(x): hard * -w[target] logp[target] + smooth * sum over classes of -w logp."""
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = block * BLOCK_R + tl.arange(0, BLOCK_R)  # (BLOCK_R,)
        live = row < n
        if FAR:
            row = row.to(tl.int64)
        target, w, kept = _weights(target_ptr, weight_ptr, row, live, ignore, acc, WEIGHTED)
        at = x_ptr + row * stride_xn
        highest = tl.full((BLOCK_R,), float("-inf"), acc)
        total = tl.zeros((BLOCK_R,), acc)
        for start in range(0, classes, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            live_c = kept[:, None] & (c < classes)[None, :]  # rows that do not count are not read
            if FAR:
                c = c.to(tl.int64)
            x = tl.load(at[:, None] + (c * stride_xc)[None, :], mask=live_c, other=float("-inf")).to(acc)
            above = m.maximum(highest, m.max(x, 1))
            shift = tl.where(above == float("-inf"), 0.0, above)
            total = total * m.exp(highest - shift) + tl.sum(m.exp(x - shift[:, None]), 1)
            highest = above
        # a row of -inf alone is NaN, as -inf - -inf is: the shift stays what the maximum is
        log_total = m.log(total)
        chosen = tl.load(at + target.to(row.dtype) * stride_xc, mask=kept, other=0.0).to(acc)
        loss = w * (log_total - (chosen - highest))
        if SMOOTH:
            spread = tl.zeros((BLOCK_R,), acc)
            for start in range(0, classes, BLOCK_C):
                c = start + tl.arange(0, BLOCK_C)
                live_c = kept[:, None] & (c < classes)[None, :]
                if FAR:
                    c = c.to(tl.int64)
                x = tl.load(at[:, None] + (c * stride_xc)[None, :], mask=live_c, other=0.0).to(acc)
                term = log_total[:, None] - (x - highest[:, None])
                if WEIGHTED:
                    term = term * tl.load(weight_ptr + c, mask=c < classes, other=0.0).to(acc)[None, :]
                spread += tl.sum(tl.where(live_c, term, 0.0), 1)
            loss = hard * loss + smooth * spread
        loss = tl.where(kept, loss, 0.0)
        if REDUCE:
            tl.store(loss_ptr + block, tl.sum(loss, 0))
            tl.store(total_ptr + block, tl.sum(w, 0))
        else:
            tl.store(loss_ptr + row, loss.to(loss_ptr.dtype.element_ty), mask=live)


@triton.jit
def reduce_kernel(loss_ptr, total_ptr, out_ptr, out_total_ptr, n, MEAN: tl.constexpr, TOTAL: tl.constexpr, BLOCK: tl.constexpr):
    """out = sum(loss (n,)), divided by sum(total (n,)) for the mean; the latter to out_total as well with TOTAL."""
    acc: tl.constexpr = loss_ptr.dtype.element_ty
    loss = tl.zeros((BLOCK,), acc)
    weight = tl.zeros((BLOCK,), acc)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        loss += tl.load(loss_ptr + at, mask=at < n, other=0.0)
        weight += tl.load(total_ptr + at, mask=at < n, other=0.0)
    y = tl.sum(loss, 0)
    w = tl.sum(weight, 0)
    if MEAN:
        y = m.div(y, w)
    tl.store(out_ptr, y.to(out_ptr.dtype.element_ty))
    if TOTAL:
        tl.store(out_total_ptr, w.to(out_total_ptr.dtype.element_ty))


@triton.jit
def backward_kernel(dy_ptr, target_ptr, weight_ptr, total_ptr, dx_ptr, n, classes, ignore, blocks, blocks_c, WEIGHTED: tl.constexpr,
                    EACH: tl.constexpr, MEAN: tl.constexpr, FAR: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """dx (n, classes) = -w[target] dy (dy (n,) with EACH, else one number; over total with MEAN) at target, 0 elsewhere."""
    acc: tl.constexpr = tl.float64 if dx_ptr.dtype.element_ty == tl.float64 else tl.float32
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = block // blocks_c * BLOCK_R + tl.arange(0, BLOCK_R)  # (BLOCK_R,)
        c = block % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)  # (BLOCK_C,)
        live = row < n
        if FAR:
            row = row.to(tl.int64)
        target, w, kept = _weights(target_ptr, weight_ptr, row, live, ignore, acc, WEIGHTED)
        if EACH:
            dy = tl.load(dy_ptr + row, mask=live, other=0.0).to(acc)
        else:
            dy = tl.load(dy_ptr).to(acc)
        g = -w * dy
        if MEAN:
            g = m.div(g, tl.load(total_ptr).to(acc) + tl.zeros((BLOCK_R,), acc))
        there = kept[:, None] & (c[None, :] == target[:, None])
        dx = tl.where(there, g[:, None], 0.0)
        tl.store(dx_ptr + row[:, None] * classes + c[None, :], dx.to(dx_ptr.dtype.element_ty), mask=live[:, None] & (c < classes)[None, :])


# ---- launching -----------------------------------------------------------------------------------------------------------
def check_targets(name: str, target: Tensor, classes: int, ignore: int) -> None:
    """Raises IndexOutOfBounds for the first target outside 0 <= target < classes that is not ignore_index."""
    bad = first_outside(target, classes, ignore)
    if bad is not None:
        raise IndexOutOfBounds(f"{name}: target {bad[1]} at position {bad[0]} is outside 0 <= target < {classes} and is not "
                               f"ignore_index ({ignore})")


def _rows(x: Tensor) -> tuple[int, int, Step, Step]:
    """(rows, classes, strides) of x, (N, C) or (C,)."""
    if x.ndim == 1:
        return 1, x.shape[0], Step(0), Step(x.strides[0])
    return *x.shape, Step(x.strides[0]), Step(x.strides[1])


def _tile(classes: int, rows: int, most: int = 2 * TILE) -> tuple[int, int]:
    """(BLOCK_R, BLOCK_C): a row a program where it is long, several short ones."""
    block_c = min(next_power_of_2(classes), most)
    return max(min(next_power_of_2(rows), TILE // block_c), 1), block_c


def _losses(name: str, x: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore: int, smoothing: float | None, output: Tensor,
            total_weight: Tensor | None) -> None:
    """The three losses: cross_entropy where ``smoothing`` is given."""
    target = contiguous(target)
    n, classes, step_n, step_c = _rows(x)
    check_targets(name, target, classes, ignore)
    device, reduce, wide = device_of(x), reduction != "none", x.dtype.name == "float64"
    w = None if weight is None else contiguous(weight)
    block, block_c = (ROWS, 1) if smoothing is None else _tile(classes, n)
    block = min(block, next_power_of_2(n))
    blocks = programs(n, block)
    far = (n + block) * abs(step_n) + (classes + block_c) * abs(step_c) >= FAR
    with writable(output) as y:
        kind = "float64" if wide else "float32"
        part = device.empty((blocks,), kind) if reduce else y
        part_weight = device.empty((blocks,), kind) if reduce else y
        args = (x, target, target if w is None else w, part, part_weight, n)
        constants = {"WEIGHTED": w is not None, "REDUCE": reduce, "FAR": far}
        grid = (capped(device, blocks),)
        if smoothing is None:
            launch(nll_kernel, grid, *args, step_n, step_c, Data(ignore), blocks, BLOCK=block, **constants)
        else:
            number = F64 if wide else float
            launch(cross_entropy_kernel, grid, *args, classes, step_n, step_c, Data(ignore), number(1.0 - smoothing),
                   number(smoothing / classes if classes else 0.0), blocks, SMOOTH=smoothing != 0.0, BLOCK_R=block, BLOCK_C=block_c,
                   **constants)
        if reduce:
            launch(reduce_kernel, (1,), part, part_weight, y, y if total_weight is None else total_weight, blocks, MEAN=reduction == "mean",
                   TOTAL=total_weight is not None, BLOCK=min(next_power_of_2(blocks), TILE))
    if total_weight is not None and not reduce:
        full(shape=(), value=0.0, dtype=total_weight.dtype, out=total_weight)


def nll_loss(x: Tensor, target: Tensor, weight: Tensor | None, *, reduction: str, ignore_index: int, out: Tensor) -> None:
    _losses("nll_loss", x, target, weight, reduction, ignore_index, None, out, None)


def nll_loss_forward(x: Tensor, target: Tensor, weight: Tensor | None, *, reduction: str, ignore_index: int,
                     out: tuple[Tensor, Tensor]) -> None:
    _losses("nll_loss_forward", x, target, weight, reduction, ignore_index, None, *out)


def cross_entropy(x: Tensor, target: Tensor, weight: Tensor | None, *, reduction: str, ignore_index: int, label_smoothing: float,
                  out: Tensor) -> None:
    _losses("cross_entropy", x, target, weight, reduction, ignore_index, label_smoothing, out, None)


def nll_loss_backward(dy: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, total_weight: Tensor, *, reduction: str,
                      ignore_index: int, out: Tensor) -> None:
    target = contiguous(target)
    n, classes, _, _ = _rows(x)
    check_targets("nll_loss_backward", target, classes, ignore_index)
    if out.numel == 0:
        return
    block_r, block_c = _tile(classes, n, TILE)
    blocks_c = programs(classes, block_c)
    blocks = programs(n, block_r) * blocks_c
    w = target if weight is None else contiguous(weight)
    with writable(out) as dx:
        launch(backward_kernel, (capped(device_of(x), blocks),), contiguous(dy), target, w, total_weight, dx, n, classes, Data(ignore_index), blocks,
               blocks_c, WEIGHTED=weight is not None, EACH=reduction == "none" and x.ndim == 2, MEAN=reduction == "mean",
               FAR=(n + block_r) * classes + block_c >= FAR, BLOCK_R=block_r, BLOCK_C=block_c)


KERNELS = {"nll_loss": nll_loss, "nll_loss_forward": nll_loss_forward, "nll_loss_backward": nll_loss_backward, "cross_entropy": cross_entropy}


# ---- what is compiled ahead of time ----------------------------------------------------------------------------------------
def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps), for launch.compile_for."""
    i32, some, one = ("i32", False), ("i32", True), ("=1", False)
    for t, part in (("*fp32", "*fp32"), ("*bf16", "*fp32"), ("*fp64", "*fp64")):
        common = ((t, True), ("*i64", True), (t, True), (part, True), (part, True), some)
        number = (part[1:], False)
        yield f"nll_{t[1:]}", nll_kernel, (*common, some, one, i32, i32), {"WEIGHTED": True, "REDUCE": True, "FAR": False, "BLOCK": ROWS}, 4
        for smooth in (False, True):
            yield f"cross_entropy_{'smooth_' if smooth else ''}{t[1:]}", cross_entropy_kernel, \
                (*common, some, some, one, i32, number, number, i32), \
                {"WEIGHTED": smooth, "SMOOTH": smooth, "REDUCE": True, "FAR": False, "BLOCK_R": 1, "BLOCK_C": 2 * TILE}, 4
        yield f"nll_backward_{t[1:]}", backward_kernel, ((t, True), ("*i64", True), ("*i64", True), (t, True), (t, True), some, some, i32, i32, i32), \
            {"WEIGHTED": False, "EACH": False, "MEAN": True, "FAR": False, "BLOCK_R": 1, "BLOCK_C": TILE}, 4
        yield f"loss_reduce_{t[1:]}", reduce_kernel, ((part, True), (part, True), (t, True), (t, True), i32), \
            {"MEAN": True, "TOTAL": False, "BLOCK": 128}, 4
