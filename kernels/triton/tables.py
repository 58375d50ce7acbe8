"""Tables of indices of which each row uses its first entries (block tables, slots of requests): whether those are in range.

Not here: indices that are all used (index.py).
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from ...hal.errors import IndexOutOfBounds
from ...hal.tensor import Tensor
from .launch import Data, capped, launch
from .rows import device_of

__all__ = ["check_used", "matrix"]

BLOCK = 256  # entries of a row that a program reads at a time


@triton.jit
def used_outside_kernel(table_ptr, row_ptr, length_ptr, found_ptr, rows, columns, per, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """found (rows,): the first of a row's first cdiv(length, per) entries outside 0 <= entry < size; columns for none."""
    for b in range(tl.program_id(0), rows, tl.num_programs(0)):
        n = tl.cdiv(tl.load(length_ptr + b), per).to(tl.int32)
        row = b.to(tl.int64)
        if ROWS:
            row = tl.load(row_ptr + b).to(tl.int64)
        first = columns
        for start in range(0, n, BLOCK):
            at = start + tl.arange(0, BLOCK)
            entry = tl.load(table_ptr + row * columns + at, mask=at < n, other=0)
            bad = (at < n) & ((entry < 0) | (entry >= size))
            first = tl.minimum(first, tl.min(tl.where(bad, at, columns), 0))
        tl.store(found_ptr + b, first)


def check_used(name: str, what: str, table: Tensor, length: Tensor, per: int, size: int, rows: Tensor | None = None) -> None:
    """Raises IndexOutOfBounds for an entry outside 0 <= entry < size among the first cdiv(length[b], per) of row b (of rows[b]).

    Contiguous tensors; lengths and rows are known to be in range.  Reads 4 bytes a row back, so it waits for the device.
    """
    n, columns = length.numel, table.shape[1]
    if n == 0 or columns == 0:
        return
    device = device_of(table)
    found = device.empty((n,), "int32")
    launch(used_outside_kernel, (capped(device, n),), table, length if rows is None else rows, length, found, n, columns, Data(per),
           Data(min(size, 2**31 - 1) if table.itemsize == 4 else size), ROWS=rows is not None, BLOCK=BLOCK)
    for b, at in enumerate(found.tolist()):
        if at < columns:
            row = b if rows is None else int(rows[b].item())
            raise IndexOutOfBounds(f"{name}: {what} {table[row][at].item()} at position {at} is outside 0 <= {what} < {size}")


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """(name, kernel, signature, constants, num_warps) of typical calls, for launch.compile_for."""
    number = ("i32", False)
    for t in ("*i32", "*i64"):
        yield f"used_outside {t}", used_outside_kernel, ((t, True), (t, True), (t, True), ("*i32", True), number, ("i32", True), number, number), \
            {"ROWS": t == "*i64", "BLOCK": BLOCK}, 4
