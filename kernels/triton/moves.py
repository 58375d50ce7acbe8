"""flip, roll, repeat, repeat_interleave, stack, diag_embed, one_hot, fill, linspace on Triton.

All but one_hot and linspace are a few calls of the strided copy of pointwise.py over views.  Not here: what the operators mean
(kernels/ops/moves.py).
"""
from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal import geometry
from ...hal.dtype import DType
from ...hal.errors import IndexOutOfBounds
from ...hal.geometry import Geometry
from ...hal.tensor import Tensor, with_geometry
from . import pointwise
from .index import FAR, first_outside
from .launch import F64, Data, by_signature, capped, lacks, launch, programs
from .rows import contiguous, device_of, writable
from .scatter import raw
from .shape import full

__all__ = ["KERNELS", "WHEN", "matrix"]

BLOCK = 1024  # elements a program holds: 8 a thread at 4 warps of 32
MAX_AXES = 8  # of a tensor


def move(x: Tensor, *, out: Tensor) -> None:
    """x into ``out``, whatever the dtype."""
    pointwise.move(raw(x), out=raw(out))


def flip(x: Tensor, *, dims: Sequence[int], out: Tensor) -> None:
    turned = {d % max(x.ndim, 1) for d in dims} if x.numel else set()
    offset = sum((n - 1) * s for d, (n, s) in enumerate(zip(x.shape, x.strides)) if d in turned)
    strides = tuple(-s if d in turned else s for d, s in enumerate(x.strides))
    move(with_geometry(x, Geometry(x.shape, strides, offset)), out=out)


def _part(t: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    return t[tuple(slice(a, b) for a, b in spans)] if spans else t


def roll(x: Tensor, *, shifts: Sequence[int], dims: Sequence[int], out: Tensor) -> None:
    """Each rolled axis falls into two parts: 2^axes copies."""
    if x.numel == 0:
        return
    if not dims:
        with writable(out) as y:
            _roll(contiguous(x).view(x.numel), (shifts[0] % x.numel,), y.view(x.numel))
        return
    by = [0] * x.ndim
    for d, s in zip(dims, shifts, strict=True):
        if x.ndim:
            by[d] += s
    _roll(x, [b % n for b, n in zip(by, x.shape)], out)


def _roll(x: Tensor, by: Sequence[int], out: Tensor) -> None:
    choices = [((0, 0, n),) if not b else ((0, n - b, n), (b, 0, n - b)) for b, n in zip(by, x.shape)]  # (to, from, end)
    for pick in itertools.product(*choices):
        move(_part(x, [(f, e) for _, f, e in pick]), out=_part(out, [(t, t + e - f) for t, f, e in pick]))


def repeat(x: Tensor, *, repeats: Sequence[int], out: Tensor) -> None:
    if out.numel == 0:
        return
    lead = out.ndim - x.ndim
    axes = [(r, 1 if d < lead else x.shape[d - lead], 0 if d < lead else x.strides[d - lead], out.strides[d]) for d, r in enumerate(repeats)]
    _repeat(x, out, axes, 0)


def _repeat(x: Tensor, out: Tensor, axes: list[tuple[int, int, int, int]], offset: int) -> None:
    """axes: (repeats, size, x's step, out's step); an axis each for both where there is room, else one copy a repeat."""
    pairs = [p for r, n, xs, ys in axes for p in ((r, 0, n * ys), (n, xs, ys)) if p[0] != 1]
    if len(pairs) > MAX_AXES:
        k = next(i for i, a in enumerate(axes) if a[0] > 1)
        r, n, xs, ys = axes[k]
        for i in range(r):
            _repeat(x, out, [*axes[:k], (1, n, xs, ys), *axes[k + 1:]], offset + i * n * ys)
        return
    shape = tuple(p[0] for p in pairs)
    move(with_geometry(x, Geometry(shape, tuple(p[1] for p in pairs))), out=with_geometry(out, Geometry(shape, tuple(p[2] for p in pairs), offset)))


def repeat_interleave(x: Tensor, *, repeats: int, dim: int | None, out: Tensor) -> None:
    if out.numel == 0:
        return
    if dim is None or not x.ndim:
        x, dim = contiguous(x).view(x.numel), 0
    d = dim % x.ndim
    for i in range(repeats if x.ndim == MAX_AXES else 1):
        own = list(out.strides)
        own[d] *= repeats
        if x.ndim == MAX_AXES:
            move(x, out=with_geometry(out, Geometry(x.shape, tuple(own), i * out.strides[d])))
        else:
            shape = (*x.shape, repeats)
            move(with_geometry(x, Geometry(shape, (*x.strides, 0))), out=with_geometry(out, Geometry(shape, (*own, out.strides[d]))))


def stack(*tensors: Tensor, dim: int, out: Tensor) -> None:
    for i, t in enumerate(tensors):
        if t.numel:
            move(t, out=out[(slice(None),) * (dim % out.ndim) + (i,)])


def diag_embed(x: Tensor, *, offset: int, dim1: int, dim2: int, out: Tensor) -> None:
    full(shape=out.shape, value=0.0, dtype=out.dtype, out=out)
    if x.numel:
        move(x, out=with_geometry(out, geometry.diagonal(Geometry(out.shape, out.strides), offset, dim1, dim2)))


@triton.jit
def hot_kernel(x_ptr, y_ptr, classes, total, blocks, FAR: tl.constexpr, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        at = tl.arange(0, BLOCK)
        if FAR:
            at = at.to(tl.int64)
        at += block * BLOCK
        live = at < total
        x = tl.load(x_ptr + at // classes, mask=live, other=-1)
        tl.store(y_ptr + at, (x == at % classes).to(y_ptr.dtype.element_ty), mask=live)


def one_hot(x: Tensor, *, num_classes: int, out: Tensor) -> None:
    packed = contiguous(x)
    bad = first_outside(packed, num_classes)
    if bad is not None:
        raise IndexOutOfBounds(f"one_hot: class {bad[1]} at position {bad[0]} is outside 0 <= class < {num_classes}")
    if out.numel:
        with writable(out) as y:
            blocks = programs(out.numel, BLOCK)
            launch(hot_kernel, (capped(device_of(out), blocks),), packed, y, Data(num_classes), out.numel, Data(blocks), FAR=out.numel + BLOCK >= FAR,
                   BLOCK=BLOCK)


def fill(x: Tensor, value: Tensor, *, out: Tensor) -> None:
    if out.numel:
        move(value.expand(out.shape), out=out)


@triton.jit
def line_kernel(y_ptr, start, end, step, n, blocks, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """From the nearer end, so that both are exact."""
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        i = block * BLOCK + tl.arange(0, BLOCK)
        back = n - 1 - i
        y = tl.where((i < n // 2) | (n == 1), tl.fma(i.to(ACC), step, start), tl.fma(back.to(ACC), -step, end))
        tl.store(y_ptr + i, y.to(y_ptr.dtype.element_ty), mask=i < n)


def linspace(*, start: float, end: float, steps: int, dtype: DType, out: Tensor) -> None:
    if not steps:
        return
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    wide = dtype.name == "float64"
    numbers = (F64(start), F64(end), F64(step)) if wide else (start, end, step)
    blocks = programs(steps, BLOCK)
    with writable(out) as y:
        launch(line_kernel, (capped(device_of(out), blocks),), y, *numbers, steps, Data(blocks), ACC=tl.float64 if wide else tl.float32, BLOCK=BLOCK)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    used = [s.dtype for s in specs if s is not None] + ([attrs["dtype"]] if "dtype" in attrs else [])
    if facts.dtypes_load:
        for d in used:
            if d.name not in facts.dtypes_load:
                return f"the device does not store {d}"
    return lacks(facts, *(d.name for d in used if d.name == "float64")) if "steps" in attrs else ""


KERNELS = {"flip": flip, "roll": roll, "repeat": repeat, "repeat_interleave": repeat_interleave, "stack": stack, "diag_embed": diag_embed,
           "one_hot": one_hot, "fill": fill, "linspace": linspace}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps), for launch.compile_for."""
    i32, some = ("i32", False), ("i32", True)
    for t in ("*i64", "*i32"):
        yield f"hot {t[1:]}", hot_kernel, ((t, True), ("*i64", True), i32, some, i32), {"FAR": False, "BLOCK": BLOCK}, 4
    yield "line fp32", line_kernel, (("*fp32", True), *(("fp32", False),) * 3, some, i32), {"ACC": tl.float32, "BLOCK": BLOCK}, 4
