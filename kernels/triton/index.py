"""embedding, gather, index_select, and sums by index (scatter_add, index_add, embedding_dense_backward), without atomics.

Every index is checked on the device before anything is written.  In the sums a program owns a block of the destination
and scans the indices in their order, so results are the same in every run; 16-bit floats are summed in float32 and
rounded once.  Not here: what the operators mean (kernels/ops/index.py).
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import triton
import triton.language as tl

from ...hal.errors import IndexOutOfBounds
from ...hal.tensor import Tensor
from .launch import F64, I64, Data, capped, launch, next_power_of_2, programs
from .rows import contiguous, cut, device_of, writable

__all__ = ["KERNELS", "first_outside", "matrix"]

TILE = 1024  # elements a program holds: 8 a thread at 4 warps of 32
CHECKS = 128  # programs that check indices at most; each writes one position, read by a last program
FAR = 2**31  # offsets from here on need 64 bits


# ---- bounds --------------------------------------------------------------------------------------------------------------
@triton.jit
def outside_kernel(index_ptr, found_ptr, n, size, ignore, blocks, IGNORE: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """found (programs,): the first position of a program's blocks whose index is outside 0 <= index < size; n for none."""
    first = n
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        at = tl.arange(0, BLOCK)
        if FAR:
            at = at.to(tl.int64)
        at += block * BLOCK
        index = tl.load(index_ptr + at, mask=at < n, other=0)
        bad = (at < n) & ((index < 0) | (index >= size))
        if IGNORE:
            bad = bad & (index != ignore)
        first = tl.minimum(first, tl.min(tl.where(bad, at, n), 0))
    tl.store(found_ptr + tl.program_id(0), first)


@triton.jit
def least_kernel(found_ptr, n, BLOCK: tl.constexpr):
    """found[0] = the least of found (n,)."""
    at = tl.arange(0, BLOCK)
    first = tl.min(tl.load(found_ptr + tl.where(at < n, at, 0)), 0)
    tl.store(found_ptr, first)


def first_outside(index: Tensor, size: int, ignore: int | None = None) -> tuple[int, int] | None:
    """(position, value) of the first element of a contiguous index outside 0 <= value < size and not ``ignore``.

    Reads 4 or 8 bytes back, so it waits for the device.
    """
    n = index.numel
    if n == 0:
        return None
    device, far = device_of(index), n + TILE >= FAR
    blocks = programs(n, TILE)
    grid = min(capped(device, blocks), CHECKS)
    found = device.empty((grid,), "int64" if far else "int32")
    size = size if index.itemsize == 8 else min(size, 2**31 - 1)  # an int32 index is below any larger size
    launch(outside_kernel, (grid,), index, found, I64(n) if far else n, Data(size), Data(ignore or 0), I64(blocks) if far else blocks,
           IGNORE=ignore is not None, FAR=far, BLOCK=TILE)
    if grid > 1:
        launch(least_kernel, (1,), found, grid, num_warps=1, BLOCK=CHECKS)
    at = found[0].item()
    return None if at == n else (at, index.view(n)[at].item())


def _check(name: str, index: Tensor, size: int) -> None:
    """Raises IndexOutOfBounds for the first index outside 0 <= index < size."""
    bad = first_outside(index, size)
    if bad is not None:
        raise IndexOutOfBounds(f"{name}: index {bad[1]} at position {bad[0]} is outside 0 <= index < {size}")


# ---- lookups -------------------------------------------------------------------------------------------------------------
@triton.jit
def take_kernel(x_ptr, index_ptr, y_ptr, n, length, inner, rows, blocks, blocks_i, EACH: tl.constexpr, FAR: tl.constexpr,
                BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr):
    """y (outer, length, inner) = x (outer, n, inner) at index: (length,), or with EACH (outer, length, inner)."""
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = block // blocks_i * BLOCK_R + tl.arange(0, BLOCK_R)  # (BLOCK_R,) of outer * length
        col = block % blocks_i * BLOCK_I + tl.arange(0, BLOCK_I)  # (BLOCK_I,) of inner
        if FAR:
            row = row.to(tl.int64)
            col = col.to(tl.int64)
        live = (row < rows)[:, None] & (col < inner)[None, :]
        to = row[:, None] * inner + col[None, :]
        if EACH:
            index = tl.load(index_ptr + to, mask=live, other=0)
        else:
            index = tl.load(index_ptr + row % length, mask=row < rows, other=0)[:, None]
        index = index.to(row.dtype)
        x = tl.load(x_ptr + ((row // length * n)[:, None] + index) * inner + col[None, :], mask=live)
        tl.store(y_ptr + to, x, mask=live)


def _take(x: Tensor, index: Tensor, out: Tensor, shape: tuple[int, int, int], length: int, each: bool) -> None:
    """out = contiguous x as (outer, n, inner) at a contiguous index."""
    outer, n, inner = shape
    rows = outer * length
    block_i = min(next_power_of_2(inner), TILE)
    block_r = min(next_power_of_2(rows), TILE // block_i)
    blocks_i = programs(inner, block_i)
    blocks = programs(rows, block_r) * blocks_i
    device = device_of(out)
    launch(take_kernel, (capped(device, blocks),), x, index, out, n, length, inner, rows, blocks, blocks_i, EACH=each,
           FAR=max(outer * n * inner, rows * inner) + 2 * TILE * max(n, 1) >= FAR, BLOCK_R=block_r, BLOCK_I=block_i)


def _lookup(name: str, x: Tensor, index: Tensor, dim: int, out: Tensor, each: bool) -> None:
    index = contiguous(index)
    shape = cut(x.shape, dim)
    _check(name, index, shape[1])
    if out.numel == 0:
        return
    with writable(out) as y:
        _take(contiguous(x), index, y, shape, cut(index.shape, dim)[1] if each else index.numel, each)


def embedding(weight: Tensor, indices: Tensor, *, out: Tensor) -> None:
    _lookup("embedding", weight, indices, 0, out, False)


def index_select(x: Tensor, index: Tensor, *, dim: int, out: Tensor) -> None:
    _lookup("index_select", x, index, dim, out, False)


def _reached(t: Tensor, shape: tuple[int, ...], dim: int) -> Tensor:
    """The part of t that an index of this shape reaches: all of axis dim, the first elements of the others (dim -1: of all)."""
    if t.shape == shape:
        return t
    return t[tuple(slice(None) if i == dim else slice(n) for i, n in enumerate(shape))]


def gather(x: Tensor, index: Tensor, *, dim: int, out: Tensor) -> None:
    _lookup("gather", _reached(x, index.shape, dim % max(x.ndim, 1)), index, dim, out, True)


# ---- sums ----------------------------------------------------------------------------------------------------------------
@triton.jit
def add_rows_kernel(x_ptr, index_ptr, source_ptr, y_ptr, n, length, inner, columns, alpha, skip, blocks, blocks_c, GIVEN: tl.constexpr,
                    SKIP: tl.constexpr, FAR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr,
                    ACC: tl.constexpr):
    """y (outer, n, inner) = x (0 unless GIVEN) + alpha * the rows of source (outer, length, inner) that index (length,) names.

    A program owns BLOCK_N rows of BLOCK_C columns (of outer * inner) and scans the indices BLOCK_J at a time.
    """
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        low = block // blocks_c * BLOCK_N
        row = low + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        col = block % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)  # (BLOCK_C,)
        if FAR:
            row = row.to(tl.int64)
            col = col.to(tl.int64)
        live_c = col < columns
        live = (row < n)[:, None] & live_c[None, :]
        at = (col // inner * n * inner + col % inner)[None, :] + row[:, None] * inner
        from_at = col // inner * length * inner + col % inner
        if GIVEN:
            total = tl.load(x_ptr + at, mask=live, other=0).to(ACC)
        else:
            total = tl.zeros((BLOCK_N, BLOCK_C), ACC)
        for start in range(0, length, BLOCK_J):
            j = start + tl.arange(0, BLOCK_J)
            index = tl.load(index_ptr + j, mask=j < length, other=-1)
            hit = (index >= low) & (index < low + BLOCK_N)
            if SKIP:
                hit = hit & (index != skip)
            if tl.max(hit.to(tl.int32), 0) > 0:
                for k in range(start, tl.minimum(start + BLOCK_J, length)):
                    mine = tl.load(index_ptr + k)
                    here = (mine >= low) & (mine < low + BLOCK_N)
                    if SKIP:
                        here = here & (mine != skip)
                    if here:
                        if FAR:
                            step = k.to(tl.int64) * inner
                        else:
                            step = k * inner
                        term = tl.load(source_ptr + from_at + step, mask=live_c, other=0).to(ACC) * alpha
                        total += tl.where((row == mine)[:, None], term[None, :], 0)
        tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def add_each_kernel(x_ptr, index_ptr, source_ptr, y_ptr, n, length, inner, columns, blocks, blocks_c, FAR: tl.constexpr,
                    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr, ACC: tl.constexpr):
    """y (outer, n, inner) = x + at [o, index[o, j, i], i] every source[o, j, i]; index and source (outer, length, inner)."""
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
        total = tl.load(x_ptr + at, mask=live, other=0).to(ACC)
        for start in range(0, length, BLOCK_J):
            j = start + tl.arange(0, BLOCK_J)
            present = (j < length)[:, None] & live_c[None, :]
            if FAR:
                j = j.to(tl.int64)
            index = tl.load(index_ptr + from_at[None, :] + (j * inner)[:, None], mask=present, other=-1)
            term = tl.load(source_ptr + from_at[None, :] + (j * inner)[:, None], mask=present, other=0).to(ACC)
            hit = index[None, :, :] == row[:, None, None]
            total += tl.sum(tl.where(hit, term[None, :, :], 0), 1).to(ACC)
        tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=live)


# dtype -> what sums are kept in; 8 and 16-bit integers wrap the same in 32 bits
_ACC = {"float64": tl.float64, "int64": tl.int64, "int32": tl.int32, "int16": tl.int32, "int8": tl.int32, "uint8": tl.int32}


def _alpha(value: float, acc: Any) -> int | float:
    if acc in (tl.float32, tl.float64):
        return F64(value) if acc == tl.float64 else float(value)
    bits = 64 if acc == tl.int64 else 32
    wrapped = (int(value) + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
    return I64(wrapped) if bits == 64 else wrapped


def _far(*sizes: int) -> bool:
    return max(sizes) + TILE * TILE >= FAR


def _add_rows(x: Tensor | None, index: Tensor, source: Tensor, y: Tensor, shape: tuple[int, int, int], alpha: float, skip: int | None) -> None:
    """All contiguous; y and x as ``shape`` (outer, n, inner)."""
    outer, n, inner = shape
    columns, length = outer * inner, index.numel
    block_c = 16 if columns <= 16 else 64 if columns <= 64 else 256  # few sizes of blocks: each is compiled for every dtype
    block_n = min(2 * TILE // block_c, 64)
    blocks_c = programs(columns, block_c)
    blocks = programs(n, block_n) * blocks_c
    acc = _ACC.get(y.dtype.name, tl.float32)
    launch(add_rows_kernel, (capped(device_of(y), blocks),), y if x is None else x, index, source, y, Data(n), Data(length), inner,
           Data(columns), _alpha(alpha, acc), Data(skip or 0), Data(blocks), Data(blocks_c), GIVEN=x is not None,
           SKIP=skip is not None, FAR=_far(columns * n, columns * length), BLOCK_N=block_n, BLOCK_C=block_c,
           BLOCK_J=64 if length <= 64 else 512, ACC=acc)


def embedding_dense_backward(dy: Tensor, indices: Tensor, *, num_weights: int, padding_idx: int, out: Tensor) -> None:
    indices = contiguous(indices)
    _check("embedding_dense_backward", indices, num_weights)
    if out.numel == 0:
        return
    with writable(out) as y:
        skip = padding_idx if 0 <= padding_idx < num_weights else None
        _add_rows(None, indices, contiguous(dy), y, (1, num_weights, out.shape[1]), 1.0, skip)


def index_add(x: Tensor, index: Tensor, source: Tensor, *, dim: int, alpha: float, out: Tensor) -> None:
    index, shape = contiguous(index), cut(x.shape, dim)
    _check("index_add", index, shape[1])
    if out.numel == 0:
        return
    with writable(out) as y:
        _add_rows(contiguous(x), index, contiguous(source), y, shape, alpha, None)


def scatter_add(x: Tensor, index: Tensor, src: Tensor, *, dim: int, out: Tensor) -> None:
    axis = dim % max(x.ndim, 1)
    packed, (_, n, _) = contiguous(index), cut(x.shape, dim)
    _check("scatter_add", packed, n)
    if out.numel == 0:
        return
    src = contiguous(_reached(src, index.shape, -1))
    part = _reached(x, index.shape, axis)
    with ExitStack() as stack:
        if part is not x:  # elements that no index reaches stay as they are
            from .shape import copy
            copy(x, out=out)
            if part.numel == 0:
                return
        target = _reached(out, index.shape, axis)
        y = stack.enter_context(writable(target))
        outer, n, inner = cut(y.shape, dim)
        columns, length = outer * inner, cut(index.shape, dim)[1]
        block_c = min(next_power_of_2(columns), 64)
        block_n = min(next_power_of_2(n), max(TILE // block_c, 16), 64)
        block_j = min(next_power_of_2(length), max(4 * TILE // (block_c * block_n), 1))
        blocks_c = programs(columns, block_c)
        blocks = programs(n, block_n) * blocks_c
        launch(add_each_kernel, (capped(device_of(y), blocks),), contiguous(part), packed, src, y, Data(n), Data(length), inner,
               Data(columns), Data(blocks), Data(blocks_c),
               FAR=_far(columns * n, columns * length), BLOCK_N=block_n, BLOCK_C=block_c, BLOCK_J=block_j,
               ACC=_ACC.get(y.dtype.name, tl.float32))


KERNELS = {"embedding": embedding, "embedding_dense_backward": embedding_dense_backward, "gather": gather, "scatter_add": scatter_add,
           "index_select": index_select, "index_add": index_add}


# ---- what is compiled ahead of time ----------------------------------------------------------------------------------------
def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps), for launch.compile_for."""
    i32, some = ("i32", False), ("i32", True)
    yield "outside_i64", outside_kernel, (("*i64", True), ("*i32", True), some, i32, i32, i32), \
        {"IGNORE": False, "FAR": False, "BLOCK": TILE}, 4
    yield "least", least_kernel, (("*i32", True), i32), {"BLOCK": CHECKS}, 1
    for name, t, each, rows in (("embedding_f32", "*fp32", False, 1), ("embedding_bf16", "*bf16", False, 1), ("gather_f32", "*fp32", True, TILE)):
        yield f"take_{name}", take_kernel, ((t, True), ("*i64", True), (t, True), some, some, some if rows == 1 else i32, some, i32, i32), \
            {"EACH": each, "FAR": False, "BLOCK_R": rows, "BLOCK_I": TILE // rows}, 4
    for t, acc in (("*fp32", tl.float32), ("*fp16", tl.float32), ("*i8", tl.int32)):
        number = "fp32" if acc == tl.float32 else "i32"
        yield f"add_rows_{t[1:]}", add_rows_kernel, \
            ((t, True), ("*i64", True), (t, True), (t, True), some, some, some, some, (number, False), i32, i32, i32), \
            {"GIVEN": True, "SKIP": False, "FAR": False, "BLOCK_N": 8, "BLOCK_C": 256, "BLOCK_J": 512, "ACC": acc}, 4
        yield f"add_each_{t[1:]}", add_each_kernel, ((t, True), ("*i64", True), (t, True), (t, True), some, some, some, some, i32, i32), \
            {"FAR": False, "BLOCK_N": 16, "BLOCK_C": 64, "BLOCK_J": 4, "ACC": acc}, 4
