"""cdist and pdist on Triton: a program owns a tile of pairs and walks the coordinates in blocks; pdist keeps the upper triangle.

Not here: what the operators are (kernels/ops/distance.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from . import scalar as m
from .launch import F64, capped, lacks, launch, programs
from .rows import contiguous, device_of, writable

__all__ = ["KERNELS", "WHEN", "matrix"]

POINTS = 16  # of each set in a tile: with 16 coordinates 4096 differences, 32 a thread at 4 warps of 32
DEEP = 16  # coordinates of a block


@triton.jit
def distance_kernel(a_ptr, b_ptr, y_ptr, rows, columns, n, tiles, p, KIND: tl.constexpr, PAIRS: tl.constexpr, WIDE: tl.constexpr,
                    POINTS: tl.constexpr, DEEP: tl.constexpr):
    """y (batch, rows, columns), or with PAIRS its elements above the diagonal in order, from a (batch, rows, n), b (batch, columns, n)."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    across = tl.cdiv(columns, POINTS)
    down = tl.cdiv(rows, POINTS)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        batch = (tile // (across * down)).to(tl.int64)
        i = (tile // across) % down * POINTS + tl.arange(0, POINTS)
        j = tile % across * POINTS + tl.arange(0, POINTS)
        from_a = a_ptr + (batch * rows + i) * n
        from_b = b_ptr + (batch * columns + j) * n
        total = tl.zeros((POINTS, POINTS), acc)
        for start in range(0, n, DEEP):
            k = start + tl.arange(0, DEEP)
            x = tl.load(from_a[:, None] + k[None, :], mask=(i < rows)[:, None] & (k < n)[None, :], other=0.0).to(acc)
            z = tl.load(from_b[:, None] + k[None, :], mask=(j < columns)[:, None] & (k < n)[None, :], other=0.0).to(acc)
            d = tl.abs(x[:, None, :] - z[None, :, :])  # (POINTS, POINTS, DEEP); 0 past the last coordinate
            if KIND == "unequal":
                total += tl.sum((x[:, None, :] != z[None, :, :]).to(acc), 2)
            elif KIND == "one":
                total += tl.sum(d, 2)
            elif KIND == "two":
                total += tl.sum(d * d, 2)
            elif KIND == "largest":
                total = m.maximum(total, m.max(d, 2))
            else:
                total += tl.sum(tl.where((k < n)[None, None, :], m.pow(d, tl.zeros((POINTS, POINTS, DEEP), acc) + p), 0.0), 2)
        if KIND == "two":
            total = m.sqrt(total)
        elif KIND == "power":
            total = m.pow(total, m.div(tl.full((POINTS, POINTS), 1.0, acc), tl.zeros((POINTS, POINTS), acc) + p))
        live = (i < rows)[:, None] & (j < columns)[None, :]
        if PAIRS:
            live = live & (j[None, :] > i[:, None])
            far = i.to(tl.int64)[:, None]
            at = far * (2 * columns - far - 1) // 2 + (j[None, :] - far - 1)
        else:
            at = (batch * rows + i)[:, None] * columns + j[None, :]
        tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=live)


_KINDS = {0.0: "unequal", 1.0: "one", 2.0: "two", float("inf"): "largest"}


def _run(a: Tensor, b: Tensor, rows: int, columns: int, batch: int, p: float, pairs: bool, out: Tensor) -> None:
    if out.numel == 0:
        return
    tiles = batch * programs(rows, POINTS) * programs(columns, POINTS)
    wide = a.dtype.name == "float64"
    with writable(out) as y:
        launch(distance_kernel, (capped(device_of(a), tiles),), a, b, y, rows, columns, a.shape[-1], tiles, F64(p) if wide else float(p),
               KIND=_KINDS.get(float(p), "power"), PAIRS=pairs, WIDE=wide, POINTS=POINTS, DEEP=DEEP)


def cdist(x1: Tensor, x2: Tensor, *, p: float, compute_mode: int | None, out: Tensor) -> None:
    lead = out.shape[:-2]
    a = contiguous(x1.expand(*lead, *x1.shape[-2:]))
    b = contiguous(x2.expand(*lead, *x2.shape[-2:]))
    batch = 1
    for s in lead:
        batch *= s
    _run(a, b, x1.shape[-2], x2.shape[-2], batch, p, False, out)


def pdist(x: Tensor, *, p: float, out: Tensor) -> None:
    x = contiguous(x)
    _run(x, x, x.shape[0], x.shape[0], 1, p, True, out)


def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    """Other powers than 0, 1, 2 and inf are taken in float64 (scalar.pow)."""
    return lacks(facts, accumulator(specs[0].dtype).name, *(() if float(attrs["p"]) in _KINDS else ("float64",)))


KERNELS = {"cdist": cdist, "pdist": pdist}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    i32 = ("i32", True)
    for t in ("*fp32", "*bf16"):
        for kind, pairs in (("two", False), ("one", True), ("power", False)):
            yield f"distance {t} {kind}{' pairs' if pairs else ''}", distance_kernel, \
                ((t, True), (t, True), (t, True), i32, i32, i32, ("i32", False), ("fp32", False)), \
                {"KIND": kind, "PAIRS": pairs, "WIDE": False, "POINTS": POINTS, "DEEP": DEEP}, 4
