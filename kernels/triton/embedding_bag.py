"""embedding_bag on Triton: a program has one bag and a block of columns, and goes through the bag's rows in their order.

Not here: what the operator means (kernels/ops/embedding_bag.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import triton
import triton.language as tl

from ...hal.errors import IndexOutOfBounds
from ...hal.tensor import Tensor
from . import scalar as m
from .index import _ACC, FAR, TILE, first_outside
from .launch import Data, by_signature, capped, lacks, launch, next_power_of_2, programs
from .rows import contiguous, device_of, writable
from .shape import copy, full

__all__ = ["KERNELS", "WHEN", "matrix"]


@triton.jit
def bag_kernel(weight_ptr, index_ptr, offset_ptr, scale_ptr, y_ptr, bag_ptr, size_ptr, top_ptr, offsets, n, columns, padding, blocks, blocks_c,
               MODE: tl.constexpr, SCALED: tl.constexpr, FAR: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """y (bags, columns): rows of weight reduced; a program has one bag and BLOCK columns, and goes through the rows in order."""
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        bag = block // blocks_c
        part = block % blocks_c
        col = part * BLOCK + tl.arange(0, BLOCK)
        live = col < columns
        first = tl.load(offset_ptr + bag).to(tl.int32)
        last = n
        if bag + 1 < offsets:
            last = tl.load(offset_ptr + bag + 1).to(tl.int32)
        total = tl.zeros((BLOCK,), ACC)
        top = tl.full((BLOCK,), -1, top_ptr.dtype.element_ty)
        met = 0
        for i in range(first, last):
            row = tl.load(index_ptr + i)
            if part == 0:
                tl.store(bag_ptr + i, bag.to(bag_ptr.dtype.element_ty))
            if row != padding:
                if FAR:
                    at = row.to(tl.int64) * columns + col
                else:
                    at = row.to(tl.int32) * columns + col
                w = tl.load(weight_ptr + at, mask=live, other=0).to(ACC)
                if MODE == "max":
                    more = (w > total) | (met == 0)
                    total = tl.where(more, w, total)
                    top = tl.where(more, row.to(top_ptr.dtype.element_ty), top)
                elif SCALED:
                    total += w * tl.load(scale_ptr + i).to(ACC)
                else:
                    total += w
                met += 1
        if MODE == "mean":
            total = m.div(total, tl.zeros((BLOCK,), ACC) + tl.maximum(met, 1).to(ACC))
        to = bag * columns + col
        if FAR:
            to = bag.to(tl.int64) * columns + col
        tl.store(y_ptr + to, total.to(y_ptr.dtype.element_ty), mask=live)
        if MODE == "max":
            tl.store(top_ptr + to, top, mask=live)
        if part == 0:
            tl.store(size_ptr + bag, tl.zeros((), size_ptr.dtype.element_ty) + met)


def _check_offsets(offsets: np.ndarray, n: int) -> None:
    """Offsets are few: they are read to the host."""
    before = np.concatenate([np.zeros(1, offsets.dtype), offsets[:-1]])
    bad = (offsets < before) | (offsets > n)
    bad[:1] |= offsets[:1] != 0
    if bad.any():
        at = int(bad.argmax())
        raise IndexOutOfBounds(f"embedding_bag: offset {offsets[at]} at position {at}; needs offsets that begin with 0, do not fall and end "
                               f"within {n} indices")


def embedding_bag(weight: Tensor, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, *, mode: str, include_last_offset: bool,
                  padding_idx: int, out: tuple[Tensor, ...]) -> None:
    n, columns = indices.numel, weight.shape[1]
    indices = contiguous(indices)
    bad = first_outside(indices, weight.shape[0])
    if bad is not None:
        raise IndexOutOfBounds(f"embedding_bag: indices {bad[1]} at position {bad[0]} is outside 0 <= indices < {weight.shape[0]}")
    _check_offsets(offsets.cpu().numpy(), n)
    bags = offsets.numel - include_last_offset
    if n:
        full(shape=(n,), value=bags, dtype=out[1].dtype, out=out[1])
    if not bags:
        return
    device = device_of(out[0])
    block = min(next_power_of_2(columns), TILE)
    blocks_c = max(programs(columns, block), 1)
    weight = contiguous(weight)
    scale = weight if per_sample_weights is None else contiguous(per_sample_weights)
    with ExitStack() as stack:
        y, bag, size, top = (stack.enter_context(writable(o)) for o in out)
        if bag is not out[1] and n:
            copy(out[1], out=bag)
        launch(bag_kernel, (capped(device, bags * blocks_c),), weight, indices, contiguous(offsets), scale, y, bag, size, top, Data(offsets.numel), Data(n), columns,
               Data(padding_idx), Data(bags * blocks_c), Data(blocks_c), MODE=mode, SCALED=per_sample_weights is not None,
               FAR=max(weight.numel, y.numel) + TILE >= FAR, ACC=_ACC.get(y.dtype.name, tl.float32), BLOCK=block)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    """Rows are added in the weight's dtype."""
    return lacks(facts, *(s.dtype.name for s in specs if s is not None and s.dtype.name == "float64"))


KERNELS = {"embedding_bag": embedding_bag}
WHEN = {"embedding_bag": _when}


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps), for launch.compile_for."""
    i32, some = ("i32", False), ("i32", True)
    for mode, t in (("sum", "*fp32"), ("max", "*bf16")):
        yield f"bag {mode} {t[1:]}", bag_kernel, \
            ((t, True), ("*i64", True), ("*i64", True), (t, True), (t, True), ("*i64", True), ("*i64", True), ("*i64", True), some, some, some, i32, i32, i32), \
            {"MODE": mode, "SCALED": False, "FAR": False, "ACC": tl.float32, "BLOCK": 128}, 4
