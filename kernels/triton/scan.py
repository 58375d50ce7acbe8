"""cumsum, cumprod, cummax, cummin, logcumsumexp: a program owns BLOCK_I neighbouring rows and walks them in blocks of
BLOCK_N, carrying what came before; few long rows are summed in pieces whose totals are scanned first.

Neighbouring rows lie side by side when the axis is not the last one, so loads are coalesced both ways.  Arithmetic is
float32 (float64 for float64 results), int64 for integers.  Not here: what the operators mean (kernels/ops/scan.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.dtype import DType
from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from . import scalar as m
from .launch import Step, by_signature, capped, lacks, launch, next_power_of_2, programs
from .rows import contiguous, cut, device_of, writable

__all__ = ["KERNELS", "WHEN", "cumulate", "matrix"]

TILE = 1024  # elements a program holds: 8 a thread at 4 warps of 32
SPREAD = 512  # programs that are enough for a large chip
LARGE = 2**30  # half of int32: room for a block past the end


@triton.jit
def multiply(a, b):
    return a * b


@triton.jit
def fold_scan_kernel(x_ptr, y_ptr, before_ptr, n, inner, rows, piece, pieces, PRODUCT: tl.constexpr, TOTALS: tl.constexpr,
                     STARTED: tl.constexpr, ACC: tl.constexpr, BIG: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr):
    """y (outer, n, inner) = sums (products) of x along n.  TOTALS: y (pieces, rows) becomes the total of each piece instead;
    STARTED: a piece goes on from before (pieces, rows) of the piece in front of it."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    FILL: tl.constexpr = 1 if PRODUCT else 0
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_I) * pieces, tl.num_programs(0)):
        number = block % pieces
        row = (block // pieces).to(INDEX) * BLOCK_I + tl.arange(0, BLOCK_I)  # (BLOCK_I,)
        live = row < rows
        base = (row // inner) * n * inner + row % inner
        carry = tl.full((BLOCK_I,), FILL, ACC)
        if STARTED:
            carry += tl.load(before_ptr + (number - 1).to(INDEX) * rows + row, mask=live & (number > 0), other=0)
        last = tl.minimum((number + 1) * piece, n)
        for start in range(number * piece, last, BLOCK_N):
            col = start.to(INDEX) + tl.arange(0, BLOCK_N)
            mask = (col < last)[:, None] & live[None, :]
            at = base[None, :] + col[:, None] * inner
            x = tl.load(x_ptr + at, mask=mask, other=FILL).to(ACC)
            if PRODUCT:
                y = tl.associative_scan(x, 0, multiply) * carry[None, :]
                carry = carry * tl.reduce(x, 0, multiply)
            else:
                if not TOTALS:
                    y = tl.cumsum(x, 0) + carry[None, :]
                carry += tl.sum(x, 0)
            if not TOTALS:
                tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
        if TOTALS:
            tl.store(y_ptr + number.to(INDEX) * rows + row, carry, mask=live)


@triton.jit
def last_largest(a, i, b, j):
    """The larger value and its index: NaN above all, of equals the later one."""
    a_nan = a != a
    b_nan = b != b
    tie = (a == b) | (a_nan & b_nan)
    right = (tie & (j > i)) | ((b_nan | (b > a)) & (a_nan == 0) & (tie == 0))
    return tl.where(right, b, a), tl.where(right, j, i)


@triton.jit
def extreme_scan_kernel(x_ptr, y_ptr, where_ptr, n, inner, rows, SMALLEST: tl.constexpr, LOWEST: tl.constexpr, ACC: tl.constexpr,
                        BIG: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr):
    """y, where (outer, n, inner): the largest so far and its index.  SMALLEST reverses the order (-x, ~x for integers)."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_I), tl.num_programs(0)):
        row = block.to(INDEX) * BLOCK_I + tl.arange(0, BLOCK_I)
        live = row < rows
        base = (row // inner) * n * inner + row % inner
        best = tl.full((BLOCK_I,), LOWEST, ACC)
        place = tl.full((BLOCK_I,), -1, INDEX)
        for start in range(0, n, BLOCK_N):
            col = (start + tl.arange(0, BLOCK_N)).to(INDEX)
            mask = (col < n)[:, None] & live[None, :]
            at = base[None, :] + col[:, None] * inner
            x = tl.load(x_ptr + at, mask=mask, other=0).to(ACC)
            if SMALLEST:
                if ACC.is_floating():
                    x = -x
                else:
                    x = ~x
            x = tl.where(mask, x, LOWEST)
            here = tl.where(mask, tl.zeros((BLOCK_N, BLOCK_I), INDEX) + col[:, None], -1)
            y, found = tl.associative_scan((x, here), 0, last_largest)
            y, found = last_largest(tl.zeros((BLOCK_N, BLOCK_I), ACC) + best[None, :], tl.zeros((BLOCK_N, BLOCK_I), INDEX) + place[None, :],
                                    y, found)
            top, top_at = tl.reduce((x, here), 0, last_largest)
            best, place = last_largest(best, place, top, top_at)
            if SMALLEST:
                if ACC.is_floating():
                    y = -y
                else:
                    y = ~y
            tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
            tl.store(where_ptr + at, found.to(tl.int64), mask=mask)


@triton.jit
def add_logs(a, s, b, t):
    """(largest, sum of exponentials relative to it) of both."""
    high = m.maximum(a, b)
    # two infinities of one sign have no difference
    left = tl.where(a == high, 1.0, m.exp(a - high))
    right = tl.where(b == high, 1.0, m.exp(b - high))
    return high, s * left + t * right


@triton.jit
def log_scan_kernel(x_ptr, y_ptr, n, inner, rows, ACC: tl.constexpr, BIG: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr):
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_I), tl.num_programs(0)):
        row = block.to(INDEX) * BLOCK_I + tl.arange(0, BLOCK_I)
        live = row < rows
        base = (row // inner) * n * inner + row % inner
        top = tl.full((BLOCK_I,), -float("inf"), ACC)
        total = tl.zeros((BLOCK_I,), ACC)
        for start in range(0, n, BLOCK_N):
            col = (start + tl.arange(0, BLOCK_N)).to(INDEX)
            mask = (col < n)[:, None] & live[None, :]
            at = base[None, :] + col[:, None] * inner
            x = tl.load(x_ptr + at, mask=mask, other=-float("inf")).to(ACC)
            one = tl.where(mask, tl.full((BLOCK_N, BLOCK_I), 1.0, ACC), 0.0)
            a, s = tl.associative_scan((x, one), 0, add_logs)
            a, s = add_logs(tl.zeros((BLOCK_N, BLOCK_I), ACC) + top[None, :], tl.zeros((BLOCK_N, BLOCK_I), ACC) + total[None, :], a, s)
            b, t = tl.reduce((x, one), 0, add_logs)
            top, total = add_logs(top, total, b, t)
            tl.store(y_ptr + at, (a + m.log(s)).to(y_ptr.dtype.element_ty), mask=mask)


# ---- launches ------------------------------------------------------------------------------------------------------------
_ACC = {"float32": tl.float32, "float64": tl.float64, "int32": tl.int32, "int64": tl.int64}
_LOWEST = {"float32": float("-inf"), "float64": float("-inf"), "int32": -(2**31), "int64": -(2**63)}


def _tile(n: int, inner: int, rows: int) -> tuple[int, int]:
    """(BLOCK_N, BLOCK_I): along the row where its elements are neighbours, across rows where those are."""
    if inner == 1:
        along = min(next_power_of_2(n), TILE)
        return along, min(max(TILE // along, 1), next_power_of_2(rows))
    across = min(next_power_of_2(inner), 64)
    return min(next_power_of_2(n), TILE // across), across


def _sizes(n: int, inner: int, rows: int) -> tuple[int, int, int]:
    return n, Step(inner) if inner == 1 else inner, rows


def cumulate(x: Tensor, y: Tensor, shape: tuple[int, int, int], acc: DType, product: bool = False) -> None:
    """y = cumulative sums (products) of x, both contiguous (outer, n, inner), kept in ``acc``; in three launches for few long rows."""
    outer, n, inner = shape
    rows = outer * inner
    if n * rows == 0:
        return
    device = device_of(y)
    block_n, block_i = _tile(n, inner, rows)
    blocks = programs(rows, block_i)
    pieces = 1 if product else max(min(programs(n, 8 * block_n), SPREAD // blocks), 1)
    piece = programs(programs(n, pieces), block_n) * block_n
    pieces = programs(n, piece)
    constants: dict[str, Any] = {"PRODUCT": product, "ACC": _ACC[acc.name], "BIG": n * rows >= LARGE, "BLOCK_N": block_n, "BLOCK_I": block_i}
    grid = (capped(device, blocks * pieces),)
    before = y
    if pieces > 1:
        totals, before = device.empty((pieces, rows), acc), device.empty((pieces, rows), acc)
        launch(fold_scan_kernel, grid, x, totals, totals, *_sizes(n, inner, rows), piece, pieces, TOTALS=True, STARTED=False, **constants)
        cumulate(totals, before, (1, pieces, rows), acc)
    launch(fold_scan_kernel, grid, x, y, before, *_sizes(n, inner, rows), piece, pieces, TOTALS=False, STARTED=pieces > 1, **constants)


def _fold(x: Tensor, dim: int, out: Tensor, product: bool) -> None:
    with writable(out) as y:
        cumulate(contiguous(x), y, cut(x.shape, dim), accumulator(out.dtype), product)


def cumsum(x: Tensor, *, dim: int, dtype: DType | None, out: Tensor) -> None:
    _fold(x, dim, out, False)


def cumprod(x: Tensor, *, dim: int, dtype: DType | None, out: Tensor) -> None:
    _fold(x, dim, out, True)


def _extreme(x: Tensor, dim: int, smallest: bool, out: tuple[Tensor, Tensor]) -> None:
    outer, n, inner = cut(x.shape, dim)
    rows = outer * inner
    if n * rows == 0:
        return
    kind = accumulator(x.dtype).name if x.dtype.is_floating else "int64" if x.dtype.name == "int64" else "int32"
    block_n, block_i = _tile(n, inner, rows)
    with writable(out[0]) as y, writable(out[1]) as where:
        launch(extreme_scan_kernel, (capped(device_of(y), programs(rows, block_i)),), contiguous(x), y, where, *_sizes(n, inner, rows),
               SMALLEST=smallest, LOWEST=_LOWEST[kind], ACC=_ACC[kind], BIG=n * rows >= LARGE, BLOCK_N=block_n, BLOCK_I=block_i)


def cummax(x: Tensor, *, dim: int, out: tuple[Tensor, Tensor]) -> None:
    _extreme(x, dim, False, out)


def cummin(x: Tensor, *, dim: int, out: tuple[Tensor, Tensor]) -> None:
    _extreme(x, dim, True, out)


def logcumsumexp(x: Tensor, *, dim: int, out: Tensor) -> None:
    outer, n, inner = cut(x.shape, dim)
    rows = outer * inner
    if n * rows == 0:
        return
    block_n, block_i = _tile(n, inner, rows)
    with writable(out) as y:
        launch(log_scan_kernel, (capped(device_of(y), programs(rows, block_i)),), contiguous(x), y, *_sizes(n, inner, rows),
               num_warps=8, ACC=_ACC[accumulator(x.dtype).name], BIG=n * rows >= LARGE, BLOCK_N=block_n, BLOCK_I=block_i)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    """The result of integers is int64, and so are the indices of extremes."""
    x, wanted = specs[0].dtype, attrs.get("dtype")
    kind = wanted or x
    if kind.is_floating and "dtype" in attrs:
        return lacks(facts, accumulator(x).name if x.is_floating else x.name, accumulator(kind).name)
    why = lacks(facts, accumulator(x).name if x.is_floating else "int64", "int64")
    return why or ("" if facts.int64_math else "the device has no 64-bit integer vectors")


@by_signature
def _when_log(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, accumulator(specs[0].dtype).name)


KERNELS = {"cumsum": cumsum, "cumprod": cumprod, "cummax": cummax, "cummin": cummin, "logcumsumexp": logcumsumexp}
WHEN = dict.fromkeys(KERNELS, _when) | {"logcumsumexp": _when_log}


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    sizes = {"last axis": ((("i32", True), ("=1", False), ("i32", True)), (TILE, 1)),
             "first axis": ((("i32", True), ("i32", True), ("i32", True)), (TILE // 64, 64))}
    rest = (("i32", True), ("i32", False))
    for where, (size, (block_n, block_i)) in sizes.items():
        blocks = {"BIG": False, "BLOCK_N": block_n, "BLOCK_I": block_i}
        for t, acc in (("*fp32", tl.float32), ("*bf16", tl.float32), ("*i64", tl.int64)):
            yield f"cumsum {t} {where}", fold_scan_kernel, ((t, True), (t, True), ("*i64" if t == "*i64" else "*fp32", True), *size, *rest), \
                {"PRODUCT": False, "TOTALS": False, "STARTED": True, "ACC": acc, **blocks}, 4
        yield f"cumprod *fp32 {where}", fold_scan_kernel, (("*fp32", True),) * 3 + size + rest, \
            {"PRODUCT": True, "TOTALS": False, "STARTED": False, "ACC": tl.float32, **blocks}, 4
        yield f"cummax *fp32 {where}", extreme_scan_kernel, (("*fp32", True), ("*fp32", True), ("*i64", True), *size), \
            {"SMALLEST": False, "LOWEST": float("-inf"), "ACC": tl.float32, **blocks}, 4
        yield f"logcumsumexp *fp32 {where}", log_scan_kernel, (("*fp32", True), ("*fp32", True), *size), {"ACC": tl.float32, **blocks}, 8
