"""scatter, scatter_reduce, index, index_put, index_fill, index_copy, masked_scatter, scatters into a view on Triton.

Atomics stand only where their order does not matter: of several values for one place the last wins, and which term that is comes
from an atomic maximum of positions (winner_kernel); a second launch writes each place once.  Sums, products and means of floats
are not independent of order, so there a program owns a block of places and goes through the terms in theirs; integers and extremes
share that kernel.  Every index is checked on the device before anything is written.  Not here: what the operators mean
(kernels/ops/scatter.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import triton
import triton.language as tl

from ... import _native
from ...hal import geometry
from ...hal.dtype import BY_NAME
from ...hal.errors import IndexOutOfBounds
from ...hal.tensor import Tensor, with_geometry
from ..ops.gradient import count
from . import scalar as m
from .index import _ACC, FAR, TILE, _add_rows, _check, _far, _reached, _take, first_outside
from .launch import Data, by_signature, capped, lacks, launch, programs
from .pointwise import move
from .rows import contiguous, cut, device_of, writable
from .shape import copy, full

__all__ = ["KERNELS", "WHEN", "matrix", "raw"]

INF = float("inf")
_I32 = BY_NAME["int32"]


_RAW = {1: BY_NAME["uint8"], 2: BY_NAME["int16"], 4: _I32, 8: BY_NAME["int64"]}


def raw(t: Tensor) -> Tensor:
    """The tensor as integers of its size: what is only moved is compiled once a size, not once a dtype."""
    kind = _RAW[t.itemsize]
    if t.dtype is kind:
        return t
    owner = t.owner
    return _native.wrap(t.address, kind.code, t.shape, t.strides, t.device_index, t if owner is None else owner)


# ---- the last of several values -------------------------------------------------------------------------------------------
@triton.jit
def winner_kernel(index_ptr, winner_ptr, n, length, inner, terms, blocks, EACH: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """winner = the largest j whose index names the place: (n,) for index (length,), or with EACH (outer, n, inner)."""
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        t = tl.arange(0, BLOCK)
        if FAR:
            t = t.to(tl.int64)
        t += block * BLOCK
        live = t < terms
        index = tl.load(index_ptr + t, mask=live, other=0).to(t.dtype)
        index = tl.where(index < 0, index + n, index)
        if EACH:
            j = t // inner % length
            at = (t // (length * inner) * n + index) * inner + t % inner
        else:
            j = t
            at = index
        tl.atomic_max(winner_ptr + at, j.to(tl.int32), mask=live)


@triton.jit
def put_kernel(x_ptr, winner_ptr, source_ptr, y_ptr, n, length, inner, total, blocks, EACH: tl.constexpr, VALUE: tl.constexpr,
               FAR: tl.constexpr, BLOCK: tl.constexpr):
    """y (outer, n, inner) = source (outer, length, inner) at the winner of each place, x where there is none; VALUE: one number."""
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        at = tl.arange(0, BLOCK)
        if FAR:
            at = at.to(tl.int64)
        at += block * BLOCK
        live = at < total
        row = at // inner
        if EACH:
            winner = tl.load(winner_ptr + at, mask=live, other=-1)
        else:
            winner = tl.load(winner_ptr + row % n, mask=live, other=-1)
        hit = winner >= 0
        if VALUE:
            put = tl.load(source_ptr)
        else:
            put = tl.load(source_ptr + (row // n * length + winner) * inner + at % inner, mask=live & hit, other=0)
        kept = tl.load(x_ptr + at, mask=live & (winner < 0), other=0)
        tl.store(y_ptr + at, tl.where(hit, put, kept), mask=live)


def _put(x: Tensor, index: Tensor, source: Tensor, y: Tensor, shape: tuple[int, int, int], length: int, each: bool, value: bool = False) -> None:
    """y = x with source at a checked index; all contiguous, x and y as ``shape`` (outer, n, inner), source as (outer, length, inner)."""
    outer, n, inner = shape
    total, terms = outer * n * inner, index.numel
    device = device_of(y)
    winner = device.empty((total if each else n,), "int32")
    full(shape=winner.shape, value=-1, dtype=_I32, out=winner)
    far = max(total, outer * length * inner) + TILE >= FAR
    blocks = programs(terms, TILE)
    if terms:
        launch(winner_kernel, (capped(device, blocks),), index, winner, Data(n), Data(length), Data(inner), terms, Data(blocks), EACH=each, FAR=far,
               BLOCK=TILE)
    blocks = programs(total, TILE)
    launch(put_kernel, (capped(device, blocks),), raw(x), winner, raw(source), raw(y), Data(n), Data(length), inner, total, Data(blocks),
           EACH=each, VALUE=value, FAR=far, BLOCK=TILE)


@contextmanager
def _target(x: Tensor, index: Tensor, dim: int, out: Tensor) -> Iterator[tuple[Tensor, Tensor] | None]:
    """(x, out) as far as an index of x's rank reaches, contiguous; the rest of out is x already.  None: nothing is reached."""
    axis = dim % max(x.ndim, 1)
    part = _reached(x, index.shape, axis)
    with ExitStack() as stack:
        if part is not x:
            copy(x, out=out)
        if part.numel == 0 or index.numel == 0:
            if part is x:
                copy(x, out=out)
            yield None
        else:
            yield contiguous(part), stack.enter_context(writable(_reached(out, index.shape, axis)))


def scatter(x: Tensor, index: Tensor, src: Tensor, *, dim: int, out: Tensor) -> None:
    packed, shape = contiguous(index), cut(x.shape, dim)
    _check("scatter", packed, shape[1])
    with _target(x, index, dim, out) as reached:
        if reached is not None:
            part, y = reached
            value = src.ndim == 0 and x.ndim > 0
            source = src if value else contiguous(_reached(src, index.shape, -1))
            _put(part, packed, source, y, cut(y.shape, dim), cut(index.shape, dim)[1], True, value)


def _check_within(name: str, what: str, index: Tensor, size: int) -> Tensor:
    """A contiguous index with -size <= value < size as 0 <= value < size; raises IndexOutOfBounds for the first one outside."""
    wrapped = device_of(index).empty(index.shape, index.dtype)
    if index.numel:
        blocks = programs(index.numel, TILE)
        launch(wrap_kernel, (capped(device_of(index), blocks),), index, wrapped, Data(size), index.numel, Data(blocks), BLOCK=TILE)
    bad = first_outside(wrapped, size)
    if bad is not None:
        value = index.view(index.numel)[bad[0]].item()
        raise IndexOutOfBounds(f"{name}: {what} {value} at position {bad[0]} is outside {-size} <= {what} < {size}")
    return wrapped


@triton.jit
def wrap_kernel(index_ptr, y_ptr, size, n, blocks, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        i = tl.arange(0, BLOCK)
        live = i < tl.minimum(n - first, BLOCK).to(tl.int32)
        index = tl.load(index_ptr + first + i, mask=live, other=0)
        tl.store(y_ptr + first + i, tl.where(index < 0, index + size.to(index.dtype), index), mask=live)


def index_fill(x: Tensor, index: Tensor, value: Tensor, *, dim: int, out: Tensor) -> None:
    shape = cut(x.shape, dim)
    packed = _check_within("index_fill", "index", contiguous(index), shape[1])
    if out.numel:
        with writable(out) as y:
            _put(contiguous(x), packed, value, y, shape, packed.numel, False, True)


def index_copy(x: Tensor, index: Tensor, source: Tensor, *, dim: int, out: Tensor) -> None:
    packed, shape = contiguous(index), cut(x.shape, dim)
    _check("index_copy", packed, shape[1])
    if out.numel:
        with writable(out) as y:
            _put(contiguous(x), packed, contiguous(source), y, shape, packed.numel, False)


# ---- reductions ------------------------------------------------------------------------------------------------------------
@triton.jit
def product(a, b):
    return a * b


@triton.jit
def reduce_kernel(x_ptr, index_ptr, source_ptr, y_ptr, n, length, inner, columns, blocks, blocks_c, own, mean, OP: tl.constexpr,
                  IDENTITY: tl.constexpr, WHOLE: tl.constexpr, FAR: tl.constexpr, BLOCK_N: tl.constexpr,
                  BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr, ACC: tl.constexpr):
    """y (outer, n, inner) = x and all source[o, j, i] whose index[o, j, i] names the place, reduced; without x unless own.

    WHOLE: integers, whose mean rounds down.
    """
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = block // blocks_c * BLOCK_N + tl.arange(0, BLOCK_N)
        col = block % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
        if FAR:
            row = row.to(tl.int64)
            col = col.to(tl.int64)
        live_c = col < columns
        live = (row < n)[:, None] & live_c[None, :]
        at = (col // inner * n * inner + col % inner)[None, :] + row[:, None] * inner
        from_at = col // inner * length * inner + col % inner
        x = tl.load(x_ptr + at, mask=live, other=0)
        total = tl.where(own != 0, x.to(ACC), tl.full((BLOCK_N, BLOCK_C), IDENTITY, ACC))
        met = tl.zeros((BLOCK_N, BLOCK_C), tl.int32)
        for start in range(0, length, BLOCK_J):
            j = start + tl.arange(0, BLOCK_J)
            present = (j < length)[:, None] & live_c[None, :]
            if FAR:
                j = j.to(tl.int64)
            index = tl.load(index_ptr + from_at[None, :] + (j * inner)[:, None], mask=present, other=-1)
            term = tl.load(source_ptr + from_at[None, :] + (j * inner)[:, None], mask=present, other=0).to(ACC)
            hit = index[None, :, :] == row[:, None, None]
            some = tl.where(hit, term[None, :, :], IDENTITY)
            if OP == "max":
                total = m.maximum(total, m.max(some, 1))
            elif OP == "min":
                total = m.minimum(total, m.min(some, 1))
            elif OP == "prod":
                total *= tl.reduce(some, 1, product).to(ACC)
            else:
                total += tl.sum(some, 1).to(ACC)
            met += tl.sum(hit.to(tl.int32), 1)
        if mean != 0:
            parts = tl.maximum(met + own, 1).to(ACC)
            if WHOLE:
                total = total.to(y_ptr.dtype.element_ty).to(ACC)  # a sum wraps before it is divided
                quotient = total // parts
                total = tl.where(quotient * parts > total, quotient - 1, quotient)
            else:
                total = m.div(total, parts)
        y = total.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + at, tl.where(met > 0, y, x), mask=live)


_OP = {"sum": "sum", "mean": "sum", "prod": "prod", "amax": "max", "amin": "min"}


def _identity(reduce: str, dtype: Any) -> int | float:
    if reduce == "prod":
        return 1
    if reduce not in ("amax", "amin"):
        return 0
    if dtype.is_floating:
        return -INF if reduce == "amax" else INF
    info = np.iinfo(dtype.numpy)
    return int(info.min if reduce == "amax" else info.max)


def scatter_reduce(x: Tensor, index: Tensor, src: Tensor, *, dim: int, reduce: str, include_self: bool, out: Tensor) -> None:
    packed = contiguous(index)
    _check("scatter_reduce", packed, cut(x.shape, dim)[1])
    with _target(x, index, dim, out) as reached:
        if reached is None:
            return
        part, y = reached
        outer, n, inner = cut(y.shape, dim)
        columns, length = outer * inner, cut(index.shape, dim)[1]
        block_n, block_c = (64, 16) if columns <= 16 else (16, 64)  # two shapes of blocks only: each is compiled for every reduction
        blocks_c = programs(columns, block_c)
        blocks = programs(n, block_n) * blocks_c
        launch(reduce_kernel, (capped(device_of(y), blocks),), part, packed, contiguous(_reached(src, index.shape, -1)), y, Data(n), Data(length),
               inner, Data(columns), Data(blocks), Data(blocks_c), Data(include_self), Data(reduce == "mean"), OP=_OP[reduce], IDENTITY=_identity(reduce, y.dtype),
               WHOLE=y.dtype.is_integer, FAR=_far(columns * n, columns * length), BLOCK_N=block_n, BLOCK_C=block_c, BLOCK_J=4,
               ACC=_ACC.get(y.dtype.name, tl.float32))


# ---- several index tensors -------------------------------------------------------------------------------------------------
@triton.jit
def linear_kernel(index_ptr, y_ptr, step, n, blocks, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    """y = index * step, added to what y holds unless FIRST."""
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        i = tl.arange(0, BLOCK)
        live = i < tl.minimum(n - first, BLOCK).to(tl.int32)
        y = tl.load(index_ptr + first + i, mask=live, other=0).to(y_ptr.dtype.element_ty) * step.to(y_ptr.dtype.element_ty)
        if not FIRST:
            y += tl.load(y_ptr + first + i, mask=live, other=0)
        tl.store(y_ptr + first + i, y, mask=live)


def _places(name: str, x: Tensor, indices: Sequence[Tensor | None]) -> tuple[Tensor | None, list[int], int]:
    """(number of the place among the indexed axes, for every term; the order of x's axes that puts those together; how many stand before).

    None for no terms at all.
    """
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    axes = [d for d, _ in given]
    shape = np.broadcast_shapes(*(i.shape for _, i in given))
    at = axes[0] if axes[-1] - axes[0] == len(axes) - 1 else 0
    rest = [d for d in range(x.ndim) if d not in axes]
    order = [*rest[:at], *axes, *rest[at:]]
    terms = count(shape)
    if not terms:
        return None, order, at
    places = count([x.shape[d] for d in axes])
    wide = places >= 2**31 or any(i.itemsize == 8 for _, i in given)
    wrapped = [_check_within(name, f"index{d}", contiguous(i), x.shape[d]) for d, i in given]
    if len(given) == 1:
        return contiguous(wrapped[0].expand(shape)), order, at
    y = device_of(x).empty(shape, "int64" if wide else "int32")
    step, blocks = places, programs(terms, TILE)
    for k, (d, w) in enumerate(zip(axes, wrapped, strict=True)):
        step //= max(x.shape[d], 1)
        launch(linear_kernel, (capped(device_of(x), blocks),), contiguous(w.expand(shape)), y, Data(step), terms, Data(blocks), FIRST=k == 0, BLOCK=TILE)
    return y, order, at


def _shape_around(t: Tensor, at: int, axes: int) -> tuple[int, int, int]:
    """(outer, n, inner) around ``axes`` axes from ``at`` on."""
    return count(t.shape[:at]), count(t.shape[at:at + axes]), count(t.shape[at + axes:])


def index(x: Tensor, *indices: Tensor | None, out: Tensor) -> None:
    places, order, at = _places("index", x, indices)
    if out.numel == 0 or places is None:
        return
    front = contiguous(x.permute(order))
    shape = _shape_around(front, at, sum(i is not None for i in indices))
    with writable(out) as y:
        _take(raw(front), places, raw(y), shape, places.numel, False)


def index_put(x: Tensor, values: Tensor, *indices: Tensor | None, accumulate: bool, out: Tensor) -> None:
    places, order, at = _places("index_put", x, indices)
    if out.numel == 0:
        return
    if places is None:
        copy(x, out=out)
        return
    front, target = contiguous(x.permute(order)), out.permute(order)
    axes = sum(i is not None for i in indices)
    shape = _shape_around(front, at, axes)
    result = (*front.shape[:at], *places.shape, *front.shape[at + axes:])
    source = contiguous(values.expand(result))
    with writable(target) as y:
        if not accumulate:
            _put(front, places, source, y, shape, places.numel, False)
        elif y.dtype.kind == "b":  # an or is a sum that is not 0
            total = device_of(y).empty(y.shape, "int32")
            _add_rows(raw(front), places, raw(source), total, shape, 1.0, None)
            move(total, out=y)
        else:
            _add_rows(front, places, source, y, shape, 1.0, None)


# ---- masked_scatter ----------------------------------------------------------------------------------------------------------
@triton.jit
def count_kernel(mask_ptr, counts_ptr, n, blocks, BLOCK: tl.constexpr):
    """counts (blocks,): how many of each block the mask selects."""
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        i = tl.arange(0, BLOCK)
        mask = tl.load(mask_ptr + first + i, mask=i < tl.minimum(n - first, BLOCK).to(tl.int32), other=0)
        tl.store(counts_ptr + block, tl.sum((mask != 0).to(tl.int32), 0))


@triton.jit
def before_kernel(counts_ptr, before_ptr, blocks, BLOCK: tl.constexpr):
    """before (blocks + 1,): how many are selected in front of each block, and in all; one program."""
    base = tl.zeros((), before_ptr.dtype.element_ty)
    for start in range(0, blocks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        here = tl.load(counts_ptr + at, mask=at < blocks, other=0)
        tl.store(before_ptr + at, base + (tl.cumsum(here, 0) - here).to(before_ptr.dtype.element_ty), mask=at < blocks)
        base += tl.sum(here, 0).to(before_ptr.dtype.element_ty)
    tl.store(before_ptr + blocks, base)


@triton.jit
def place_kernel(x_ptr, mask_ptr, source_ptr, before_ptr, y_ptr, n, blocks, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        i = tl.arange(0, BLOCK)
        live = i < tl.minimum(n - first, BLOCK).to(tl.int32)
        here = tl.load(mask_ptr + first + i, mask=live, other=0) != 0
        rank = tl.cumsum(here.to(tl.int32), 0) - here.to(tl.int32)
        taken = tl.load(source_ptr + tl.load(before_ptr + block) + rank, mask=here, other=0)
        kept = tl.load(x_ptr + first + i, mask=live & (here == 0), other=0)
        tl.store(y_ptr + first + i, tl.where(here, taken, kept), mask=live)


def masked_scatter(x: Tensor, mask: Tensor, source: Tensor, *, out: Tensor) -> None:
    n = out.numel
    if n == 0:
        return
    device, blocks = device_of(out), programs(n, TILE)
    packed = raw(contiguous(mask.expand(out.shape)))
    counts, before = device.empty((blocks,), "int32"), device.empty((blocks + 1,), "int64" if n >= FAR else "int32")
    launch(count_kernel, (capped(device, blocks),), packed, counts, n, Data(blocks), BLOCK=TILE)
    launch(before_kernel, (1,), counts, before, Data(blocks), BLOCK=TILE)
    selected = before[blocks].item()
    if selected > source.numel:
        raise IndexOutOfBounds(f"masked_scatter: mask selects {selected} elements and source has {source.numel}; needs as many at least")
    if not selected:
        copy(x.expand(out.shape), out=out)
        return
    with writable(out) as y:
        launch(place_kernel, (capped(device, blocks),), raw(contiguous(x.expand(out.shape))), packed, raw(contiguous(source)), before,
               raw(y), n, Data(blocks), BLOCK=TILE)


# ---- scatters into a view --------------------------------------------------------------------------------------------------------
def _into(x: Tensor, src: Tensor, view: geometry.Geometry, out: Tensor) -> None:
    out = raw(out)
    move(raw(x), out=out)
    move(raw(src), out=with_geometry(out, view))


def _geometry(t: Tensor) -> geometry.Geometry:
    return geometry.Geometry(t.shape, t.strides)


def select_scatter(x: Tensor, src: Tensor, *, dim: int, index: int, out: Tensor) -> None:
    _into(x, src, geometry.select(_geometry(out), dim, index), out)


def slice_scatter(x: Tensor, src: Tensor, *, dim: int, start: int | None, end: int | None, step: int, out: Tensor) -> None:
    _into(x, src, geometry.slice_(_geometry(out), dim, start, end, step), out)


def diagonal_scatter(x: Tensor, src: Tensor, *, offset: int, dim1: int, dim2: int, out: Tensor) -> None:
    _into(x, src, geometry.diagonal(_geometry(out), offset, dim1, dim2), out)


# ---- what they take ------------------------------------------------------------------------------------------------------------------
@by_signature
def _adds(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    """Sums and means compute in the tensors' dtype."""
    return lacks(facts, *(s.dtype.name for s in specs if s is not None and s.dtype.name == "float64"))


KERNELS = {"scatter": scatter, "scatter_reduce": scatter_reduce, "index": index, "index_put": index_put, "index_fill": index_fill,
           "index_copy": index_copy, "masked_scatter": masked_scatter, "select_scatter": select_scatter, "slice_scatter": slice_scatter,
           "diagonal_scatter": diagonal_scatter}
WHEN = {name: _adds for name in ("scatter_reduce", "index_put")}


# ---- what is compiled ahead of time ----------------------------------------------------------------------------------------------------
def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps), for launch.compile_for."""
    i32, some = ("i32", False), ("i32", True)
    for each in (True, False):
        yield f"winner each {each}", winner_kernel, (("*i64", True), ("*i32", True), some, some, some, some, i32), \
            {"EACH": each, "FAR": False, "BLOCK": TILE}, 4
        for t in ("*fp32", "*bf16", "*i8"):
            yield f"put each {each} {t[1:]}", put_kernel, ((t, True), ("*i32", True), (t, True), (t, True), some, some, some, some, i32), \
                {"EACH": each, "VALUE": False, "FAR": False, "BLOCK": TILE}, 4
    for t, op, acc, identity in (("*fp32", "sum", tl.float32, 0), ("*fp16", "max", tl.float32, -INF), ("*i32", "sum", tl.int32, 0),
                                 ("*fp32", "prod", tl.float32, 1)):
        yield f"reduce {op} {t[1:]}", reduce_kernel, ((t, True), ("*i64", True), (t, True), (t, True), some, some, some, some, i32, i32, i32, i32), \
            {"OP": op, "IDENTITY": identity, "WHOLE": t == "*i32", "FAR": False, "BLOCK_N": 16, "BLOCK_C": 64,
             "BLOCK_J": 4, "ACC": acc}, 4
    yield "wrap", wrap_kernel, (("*i64", True), ("*i64", True), i32, some, i32), {"BLOCK": TILE}, 4
    yield "linear", linear_kernel, (("*i64", True), ("*i64", True), i32, some, i32), {"FIRST": False, "BLOCK": TILE}, 4
    yield "count", count_kernel, (("*u8", True), ("*i32", True), some, i32), {"BLOCK": TILE}, 4
    yield "before", before_kernel, (("*i32", True), ("*i32", True), i32), {"BLOCK": TILE}, 4
    yield "place fp32", place_kernel, (("*fp32", True), ("*u8", True), ("*fp32", True), ("*i32", True), ("*fp32", True), some, i32), {"BLOCK": TILE}, 4
