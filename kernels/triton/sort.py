"""sort, argsort, topk, kthvalue: blocks of a line are sorted by counting who comes before whom, then merged in pairs, twice as
long each time, by binary search; the few largest of a long line are picked block by block until one block is left.

Elements become integer keys in that order (NaN last, -0 as 0, all bits reversed for a descending one).  Keys and places stand in
scratch memory as (rows, length).  Not here: what the operators mean (kernels/ops/sort.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.device import Device
from ...hal.tensor import Tensor
from .launch import Step, by_signature, capped, lacks, launch, next_power_of_2, programs
from .rows import contiguous, cut, device_of, writable

__all__ = ["KERNELS", "WHEN", "matrix", "sort_lines"]

BLOCK = 512  # elements a program sorts: 256 K comparisons
CHUNK = 8  # of them compared with all at once: 16 comparisons a thread; 32 of them spill
LARGE = 2**30  # half of int32: room for a block past the end


@triton.jit
def key_of(x, DESCENDING: tl.constexpr):
    """An int32 or int64 that orders as x does; float32, float64, or an integer of at most its own size."""
    if x.dtype == tl.float32:
        b = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
        key = tl.where(x == x, b ^ ((b >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)
    elif x.dtype == tl.float64:
        c = tl.where(x == 0.0, 0.0, x).to(tl.int64, bitcast=True)
        key = tl.where(x == x, c ^ ((c >> 63) & 0x7FFFFFFFFFFFFFFF), 0x7FFFFFFFFFFFFFFF)
    else:
        key = x
    if DESCENDING:
        key = ~key
    return key


@triton.jit
def block_sort_kernel(x_ptr, place_ptr, key_out_ptr, place_out_ptr, n, keep, made, inner, lines, blocks, KEYED: tl.constexpr, DESCENDING: tl.constexpr,
                      ACC: tl.constexpr, BIG: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """The first ``keep`` of each block of each line, sorted: keys and places (lines, made), made = blocks * keep but for a short last block.

    x (outer, n, inner); KEYED: x holds keys (lines, n) already and place where they came from.
    """
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for task in range(tl.program_id(0), lines * blocks, tl.num_programs(0)):
        line = (task // blocks).to(INDEX)
        number = task % blocks
        base = (line // inner) * n * inner + line % inner
        at = number * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,) positions in the line
        live = at < n
        x = tl.load(x_ptr + base + at.to(INDEX) * inner, mask=live, other=0)
        if KEYED:
            key = x
            place = tl.load(place_ptr + base + at.to(INDEX), mask=live, other=0)
        else:
            key = key_of(x.to(ACC), DESCENDING)
            place = at
        rank = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, tl.minimum(n - number * BLOCK, BLOCK), CHUNK):
            other_at = number * BLOCK + start + tl.arange(0, CHUNK)  # (CHUNK,)
            y = tl.load(x_ptr + base + other_at.to(INDEX) * inner, mask=other_at < n, other=0)
            if KEYED:
                other = y
            else:
                other = key_of(y.to(ACC), DESCENDING)
            before = (other[None, :] < key[:, None]) | ((other[None, :] == key[:, None]) & (other_at[None, :] < at[:, None]))
            rank += tl.sum((before & (other_at < n)[None, :]).to(tl.int32), 1)
        to = line * made + number * keep + rank
        chosen = live & (rank < keep)
        tl.store(key_out_ptr + to, key, mask=chosen)
        tl.store(place_out_ptr + to, place.to(place_out_ptr.dtype.element_ty), mask=chosen)


@triton.jit
def merge_kernel(key_ptr, place_ptr, key_out_ptr, place_out_ptr, n, run, steps, lines, blocks, BIG: tl.constexpr, BLOCK: tl.constexpr):
    """Sorted runs of ``run`` merged in pairs: an element goes behind those of its own run and those of the other before it."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for task in range(tl.program_id(0), lines * blocks, tl.num_programs(0)):
        base = (task // blocks).to(INDEX) * n
        at = (task % blocks).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        live = at < n
        key = tl.load(key_ptr + base + at, mask=live, other=0)
        place = tl.load(place_ptr + base + at, mask=live, other=0)
        mine = at // run
        second = mine % 2 == 1  # of equal keys those of the first run come first
        other = tl.where(second, mine - 1, mine + 1) * run
        low = tl.minimum(other, n)
        start = low
        high = tl.minimum(other + run, n)
        for _ in range(0, steps):
            middle = (low + high) // 2
            open_ = low < high
            probe = tl.load(key_ptr + base + middle, mask=live & open_, other=0)
            go = open_ & ((probe < key) | ((probe == key) & second))
            low = tl.where(go, middle + 1, low)
            high = tl.where(open_ & (go == 0), middle, high)
        to = (mine // 2) * 2 * run + at % run + low - start
        tl.store(key_out_ptr + base + to, key, mask=live)
        tl.store(place_out_ptr + base + to, place, mask=live)


@triton.jit
def pick_kernel(x_ptr, place_ptr, y_ptr, where_ptr, n, length, first, count, inner, total, VALUES: tl.constexpr, PLACES: tl.constexpr,
                BIG: tl.constexpr, BLOCK: tl.constexpr):
    """y, where (outer, count, inner): elements of x (outer, n, inner) at places (lines, length) from ``first`` on, and those places."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(total, BLOCK), tl.num_programs(0)):
        at = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        live = at < total
        rest = at % inner
        outer = at // (inner * count)
        line = outer * inner + rest
        place = tl.load(place_ptr + line * length + first + at // inner % count, mask=live, other=0)
        if VALUES:
            tl.store(y_ptr + at, tl.load(x_ptr + (outer * n + place.to(INDEX)) * inner + rest, mask=live), mask=live)
        if PLACES:
            tl.store(where_ptr + at, place.to(tl.int64), mask=live)


def _acc(x: Tensor) -> Any:
    """What keys are made from: float32 holds the narrower floats, int32 the narrower integers."""
    name = x.dtype.name
    return {"float64": tl.float64, "int64": tl.int64}.get(name, tl.float32 if x.dtype.is_floating else tl.int32)


def _warps(block: int) -> int:
    return 1 if block <= 64 else 4 if block <= 256 else 8


def sort_lines(x: Tensor, shape: tuple[int, int, int], descending: bool, k: int) -> tuple[Tensor, int]:
    """(places (lines, length), length): where the k smallest of each line of contiguous x (outer, n, inner) stand, in order; k >= 1."""
    outer, n, inner = shape
    lines, device, acc = outer * inner, device_of(x), _acc(x)
    big = lines * n >= LARGE
    kind, places = "int64" if x.itemsize == 8 else "int32", "int64" if big else "int32"
    source, origin, length, given = x, None, n, inner
    while True:
        block = max(min(next_power_of_2(length), BLOCK), 16)
        blocks = programs(length, block)
        keep = k if k < block // 2 else block
        made = (blocks - 1) * keep + min(length - (blocks - 1) * block, keep)
        keys, at = device.empty((lines, made), kind), device.empty((lines, made), places)
        launch(block_sort_kernel, (capped(device, lines * blocks),), source, at if origin is None else origin, keys, at, length, keep, made,
               Step(given) if given == 1 else given, lines, blocks, KEYED=origin is not None, DESCENDING=descending, ACC=acc, BIG=big,
               BLOCK=block, CHUNK=min(CHUNK, block), num_warps=_warps(block))
        source, origin, length, given = keys, at, made, 1
        if blocks == 1:
            return at, made
        if keep == block:
            return _merged(device, keys, at, lines, made, block, big), made


def _merged(device: Device, keys: Tensor, at: Tensor, lines: int, n: int, run: int, big: bool) -> Tensor:
    """Places of the sorted runs of keys (lines, n), all merged into one."""
    other_keys, other_at = device.empty(keys.shape, keys.dtype), device.empty(at.shape, at.dtype)
    blocks = programs(n, BLOCK)
    while run < n:
        launch(merge_kernel, (capped(device, lines * blocks),), keys, at, other_keys, other_at, n, run, run.bit_length(), lines, blocks,
               BIG=big, BLOCK=BLOCK)
        keys, at, other_keys, other_at = other_keys, other_at, keys, at
        run *= 2
    return at


def _run(x: Tensor, dim: int, descending: bool, first: int, k: int, values: Tensor | None, where: Tensor | None) -> None:
    outer, n, inner = cut(x.shape, dim)
    total = outer * (k - first) * inner
    if total == 0:
        return
    x = contiguous(x)
    places, length = sort_lines(x, (outer, n, inner), descending, k)
    with writable(values if values is not None else places) as y, writable(where if where is not None else places) as w:
        launch(pick_kernel, (capped(device_of(x), programs(total, 2 * BLOCK)),), x, places, y if values is not None else x,
               w if where is not None else places, n, length, first, k - first, Step(inner) if inner == 1 else inner, total,
               VALUES=values is not None, PLACES=where is not None, BIG=outer * inner * n >= LARGE, BLOCK=2 * BLOCK)


def sort(x: Tensor, *, dim: int, descending: bool, out: tuple[Tensor, Tensor]) -> None:
    _run(x, dim, descending, 0, cut(x.shape, dim)[1], *out)


def argsort(x: Tensor, *, dim: int, descending: bool, out: Tensor) -> None:
    _run(x, dim, descending, 0, cut(x.shape, dim)[1], None, out)


def topk(x: Tensor, *, k: int, dim: int, largest: bool, sorted: bool, out: tuple[Tensor, Tensor]) -> None:
    _run(x, dim, largest, 0, k, *out)


def kthvalue(x: Tensor, *, k: int, dim: int, keepdim: bool, out: tuple[Tensor, Tensor]) -> None:
    _run(x, dim, False, k - 1, k, *out)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    """Places are int64, and the keys of 8-byte elements."""
    why = lacks(facts, *(("float64",) if specs[0].dtype.name == "float64" else ()), "int64")
    return why or ("" if facts.int64_math else "the device has no 64-bit integer vectors")


KERNELS = {"sort": sort, "argsort": argsort, "topk": topk, "kthvalue": kthvalue}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    some, one, i32 = ("i32", True), ("=1", False), ("i32", False)
    for t, key, acc in (("*fp32", "*i32", tl.float32), ("*bf16", "*i32", tl.float32), ("*i64", "*i64", tl.int64)):
        for block in (64, BLOCK):
            yield f"block sort {t} {block}", block_sort_kernel, ((t, True), ("*i32", True), (key, True), ("*i32", True), some, some, some, one, some, i32), \
                {"KEYED": False, "DESCENDING": True, "ACC": acc, "BIG": False, "BLOCK": block, "CHUNK": CHUNK}, _warps(block)
    yield "block sort keyed", block_sort_kernel, (("*i32", True), ("*i32", True), ("*i32", True), ("*i32", True), some, some, some, one, some, i32), \
        {"KEYED": True, "DESCENDING": False, "ACC": tl.float32, "BIG": False, "BLOCK": BLOCK, "CHUNK": CHUNK}, 8
    for key in ("*i32", "*i64"):
        yield f"merge {key}", merge_kernel, ((key, True), ("*i32", True), (key, True), ("*i32", True), some, some, i32, some, i32), \
            {"BIG": False, "BLOCK": BLOCK}, 4
    yield "pick *fp32", pick_kernel, (("*fp32", True), ("*i32", True), ("*fp32", True), ("*i64", True), some, some, i32, some, one, some), \
        {"VALUES": True, "PLACES": True, "BIG": False, "BLOCK": 2 * BLOCK}, 4
