"""sum, mean, prod, extremes and their places, variances, norms, logsumexp, any, all, count_nonzero on Triton.

x is seen as (outer, n, inner) with a stride each: one result a row of n elements.  A program owns BLOCK_I rows and keeps
BLOCK_N running values of each, so that loads are coalesced whether the axis or its neighbour is contiguous.  Few long rows are cut
into pieces whose partial results a second launch combines in order: no atomics, the same bits on every run and device.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import triton
import triton.language as tl

from ...hal.dtype import BY_NAME, DType
from ...hal.tensor import Tensor
from ..ops.infer import accumulator, axes
from . import scalar as m
from .launch import F64, Step, by_signature, capped, lacks, launch, next_power_of_2, programs
from .rows import contiguous, device_of, writable

__all__ = ["KERNELS", "WHEN", "fold", "matrix"]

TILE = 2048  # elements a program holds: 16 a thread at 4 warps of 32
SPREAD = 1024  # programs a long reduction is cut into: 7 a multiprocessor of the largest chips; independent of the device
RUN = tl.constexpr(32)  # blocks added up before they join the total: keeps the error of a sum near sqrt(n) for constant data too
_INT32 = BY_NAME["int32"]


# ---- kernels -----------------------------------------------------------------------------------------------------------
@triton.jit
def product(a, b):
    return a * b


@triton.jit
def reduce_kernel(x_ptr, centre_ptr, y_ptr, rows, inner, n, piece, pieces, stride_o, stride_n, stride_i, divisor, power, OP: tl.constexpr,
                  MAP: tl.constexpr, END: tl.constexpr, ACC: tl.constexpr, IDENTITY: tl.constexpr, DIVIDE: tl.constexpr,
                  BIG: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr):
    """y (pieces, rows) = OP over each piece of n, then END.

    OP: "sum", "prod", "max" or "min".  MAP: of x itself (""), of x != 0 ("truth"), (x - centre)^2 ("distance"), exp(x - centre) ("exp"),
    |x| ("size"), x^2 ("square") or |x|^power ("power").  END: nothing (""), the root ("sqrt"), the power 1 / power ("root") or the
    logarithm plus centre ("log").  An infinite centre of exp counts as 0.
    """
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_I) * pieces, tl.num_programs(0)):
        number = block % pieces
        row = (block // pieces).to(INDEX) * BLOCK_I + tl.arange(0, BLOCK_I)
        live = row < rows
        base = (row // inner) * stride_o + (row % inner) * stride_i
        if MAP == "distance" or MAP == "exp" or END == "log":
            centre = tl.load(centre_ptr + row, mask=live, other=0)
            if MAP == "exp" or END == "log":
                centre = tl.where(tl.abs(centre) == float("inf"), 0.0, centre)
        total = tl.full((BLOCK_N, BLOCK_I), IDENTITY, ACC)
        last = tl.minimum((number + 1) * piece, n)
        for far in range(number * piece, last, BLOCK_N * RUN):
            some = tl.full((BLOCK_N, BLOCK_I), IDENTITY, ACC)
            for start in range(far, tl.minimum(far + BLOCK_N * RUN, last), BLOCK_N):
                at = start.to(INDEX) + tl.arange(0, BLOCK_N)
                mask = (at < last)[:, None] & live[None, :]
                x = tl.load(x_ptr + base[None, :] + at[:, None] * stride_n, mask=mask, other=0)
                if MAP == "truth":
                    v = (x != 0).to(ACC)
                else:
                    v = x.to(ACC)
                if MAP == "distance":
                    v = (v - centre[None, :]) * (v - centre[None, :])
                elif MAP == "exp":
                    v = m.exp(v - centre[None, :])
                elif MAP == "size":
                    v = tl.abs(v)
                elif MAP == "square":
                    v = v * v
                elif MAP == "power":
                    v = m.pow(tl.abs(v), tl.zeros((BLOCK_N, BLOCK_I), ACC) + power)
                v = tl.where(mask, v, IDENTITY)
                if OP == "max":
                    some = m.maximum(some, v)
                elif OP == "min":
                    some = m.minimum(some, v)
                elif OP == "prod":
                    some *= v
                else:
                    some += v
            if OP == "max":
                total = m.maximum(total, some)
            elif OP == "min":
                total = m.minimum(total, some)
            elif OP == "prod":
                total *= some
            else:
                total += some
        if OP == "max":
            y = m.max(total, 0)
        elif OP == "min":
            y = m.min(total, 0)
        elif OP == "prod":
            y = tl.reduce(total, 0, product)
        else:
            y = tl.sum(total, 0)
        if DIVIDE:
            y = m.div(y, tl.full((BLOCK_I,), 0, ACC) + divisor)
        if END == "sqrt":
            y = m.sqrt(y)
        elif END == "root":
            y = m.pow(y, m.div(tl.full((BLOCK_I,), 1, ACC), tl.full((BLOCK_I,), 0, ACC) + power))
        elif END == "log":
            y = m.log(y) + centre
        tl.store(y_ptr + number.to(INDEX) * rows + row, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def first_largest(a, i, b, j):
    """The larger value and its index: NaN above all, then the lower index."""
    a_nan = a != a
    b_nan = b != b
    tie = (a == b) | (a_nan & b_nan)
    left = (tie & (i < j)) | ((a_nan | (a > b)) & (b_nan == 0))
    return tl.where(left, a, b), tl.where(left, i, j)


@triton.jit
def arg_kernel(x_ptr, index_ptr, y_ptr, where_ptr, rows, inner, n, piece, pieces, stride_o, stride_n, stride_i, ACC: tl.constexpr,
               LOWEST: tl.constexpr, SMALLEST: tl.constexpr, INDEXED: tl.constexpr, KEEP: tl.constexpr, BIG: tl.constexpr, BLOCK_N: tl.constexpr,
               BLOCK_I: tl.constexpr):
    """where (pieces, rows): index of the first largest of each piece; y, if KEEP, that element.  SMALLEST reverses the order
    (-x, ~x for integers) first.  INDEXED: x holds such elements already, index (n, rows) where they came from."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_I) * pieces, tl.num_programs(0)):
        number = block % pieces
        row = (block // pieces).to(INDEX) * BLOCK_I + tl.arange(0, BLOCK_I)
        live = row < rows
        base = (row // inner) * stride_o + (row % inner) * stride_i
        best = tl.full((BLOCK_N, BLOCK_I), LOWEST, ACC)
        place = tl.zeros((BLOCK_N, BLOCK_I), INDEX) + n  # behind every real index
        last = tl.minimum((number + 1) * piece, n)
        for start in range(number * piece, last, BLOCK_N):
            at = start.to(INDEX) + tl.arange(0, BLOCK_N)
            mask = (at < last)[:, None] & live[None, :]
            x = tl.load(x_ptr + base[None, :] + at[:, None] * stride_n, mask=mask, other=0).to(ACC)
            if SMALLEST:
                if ACC.is_floating():
                    x = -x
                else:
                    x = ~x
            x = tl.where(mask, x, LOWEST)
            here = tl.where(mask, tl.zeros((BLOCK_N, BLOCK_I), INDEX) + at[:, None], n)
            best, place = first_largest(best, place, x, here)
        value, found = tl.reduce((best, place), 0, first_largest)
        if INDEXED:
            found = tl.load(index_ptr + found * rows + row, mask=live, other=0)
        at_y = number.to(INDEX) * rows + row
        if KEEP:
            tl.store(y_ptr + at_y, value, mask=live)
        tl.store(where_ptr + at_y, found.to(where_ptr.dtype.element_ty), mask=live)


@triton.jit
def take_kernel(x_ptr, where_ptr, y_ptr, rows, inner, stride_o, stride_n, stride_i, BIG: tl.constexpr, BLOCK: tl.constexpr):
    """y (rows,): the element of each row that where (rows,) names."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK), tl.num_programs(0)):
        row = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        live = row < rows
        found = tl.load(where_ptr + row, mask=live, other=0).to(INDEX)
        x = tl.load(x_ptr + (row // inner) * stride_o + (row % inner) * stride_i + found * stride_n, mask=live, other=0)
        tl.store(y_ptr + row, x, mask=live)


# ---- the way through x -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rows:
    """x as (outer, n, inner), a stride each; results stand in row-major order of (outer, inner)."""

    outer: int
    n: int
    inner: int
    stride_o: int
    stride_n: int
    stride_i: int

    @cached_property
    def rows(self) -> int:
        return self.outer * self.inner

    @cached_property
    def reach(self) -> int:
        """A bound on offsets and indices."""
        return max(self.outer * abs(self.stride_o) + self.n * abs(self.stride_n) + self.inner * abs(self.stride_i), self.n, self.rows)

    @cached_property
    def block(self) -> tuple[int, int]:
        """(BLOCK_N, BLOCK_I): along the row where its elements are neighbours, across rows where those are."""
        if abs(self.stride_n) <= abs(self.stride_i) or self.inner == 1:
            along = min(next_power_of_2(self.n), TILE)
            return along, min(max(TILE // 2 // along, 1), next_power_of_2(self.rows))
        across = min(next_power_of_2(self.inner), 64)
        return min(next_power_of_2(self.n), TILE // across), across

    @cached_property
    def pieces(self) -> int:
        """How many pieces a row is cut into: enough programs for a large chip, 8 blocks a piece at least."""
        block_n, block_i = self.block
        return max(min(programs(self.n, 8 * block_n), SPREAD // max(programs(self.rows, block_i), 1)), 1)


def _line(sizes: Sequence[int], strides: Sequence[int], most: int) -> list[tuple[int, int]] | None:
    """Axes merged into (size, stride) pairs; None when more than ``most`` remain."""
    found: list[tuple[int, int]] = []
    for n, s in zip(sizes, strides):
        if n == 1:
            continue
        if found and found[-1][1] == s * n:
            found[-1] = found[-1][0] * n, s
        else:
            found.append((n, s))
    return found if len(found) <= most else None


@lru_cache(maxsize=4096)
def _rows(shape: tuple[int, ...], strides: tuple[int, ...], over: tuple[int, ...]) -> Rows | None:
    """The view of x for a reduction over these axes; None when it takes more than one stride along the row."""
    kept = [k for k in range(len(shape)) if k not in over]
    if 0 in shape:
        rows = n = 1
        for k, s in enumerate(shape):
            rows, n = (rows, n * s) if k in over else (rows * s, n)
        return Rows(rows, n, 1, n, 1, 0)
    along = _line([shape[k] for k in over], [strides[k] for k in over], 1)
    across = _line([shape[k] for k in kept], [strides[k] for k in kept], 2)
    if along is None or across is None:
        return None
    n, stride_n = along[0] if along else (1, 1)
    if len(across) == 2:
        (outer, stride_o), (inner, stride_i) = across
    else:
        # one run of rows: neighbours side by side are "inner", so that tiles lie across them
        size, step = across[0] if across else (1, 0)
        outer, stride_o, inner, stride_i = (1, 0, size, step) if abs(step) < abs(stride_n) else (size, step, 1, 0)
    return Rows(outer, n, inner, stride_o, stride_n, stride_i)


def _view(x: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Rows]:
    """x and its Rows; a packed copy with the reduced axes last where x's own layout has no such view."""
    found = _rows(x.shape, x.strides, over)
    if found is None:
        x = contiguous(x.permute(*(k for k in range(x.ndim) if k not in over), *over))
        kept = x.ndim - len(over)
        found = _rows(x.shape, x.strides, tuple(range(kept, x.ndim)))
        assert found is not None  # a packed tensor merges into (rows, n)
    return x, found


def _steps(view: Rows) -> tuple[int, ...]:
    return Step(view.inner) if view.inner == 1 else view.inner, view.n


def _piece(view: Rows, pieces: int) -> int:
    block_n = view.block[0]
    return programs(programs(view.n, pieces), block_n) * block_n if pieces > 1 else max(view.n, 1)


_LARGE = 2**30  # half of int32: room for a block past the end


# ---- sums and extremes ---------------------------------------------------------------------------------------------------
_ACC = {"float32": tl.float32, "float64": tl.float64, "int32": tl.int32, "int64": tl.int64}
_IDENTITY = {("max", "float32"): float("-inf"), ("max", "float64"): float("-inf"), ("max", "int32"): -(2**31), ("max", "int64"): -(2**63),
             ("min", "float32"): float("inf"), ("min", "float64"): float("inf"), ("min", "int32"): 2**31 - 1, ("min", "int64"): 2**63 - 1,
             **dict.fromkeys((("prod", "float32"), ("prod", "float64"), ("prod", "int32"), ("prod", "int64")), 1)}


def _identity(op: str, acc: str, map: str) -> Any:
    """What changes nothing; of truths, which are 0 and 1 and may be written as bools, 1 for "min"."""
    return int(op == "min") if map == "truth" else _IDENTITY.get((op, acc), 0)


def _fold_rows(op: str, x: Tensor, view: Rows, y: Tensor, acc: DType, divisor: float | None = None, map: str = "",
               centre: Tensor | None = None, end: str = "", power: float = 0.0) -> None:
    """y (contiguous, one element a row) = op over x's rows, in one launch or two; map, centre, end: see the kernel."""
    device = device_of(y)
    pieces = view.pieces
    piece = _piece(view, pieces)
    pieces = max(programs(view.n, piece), 1)
    block_n, block_i = view.block
    target = y if pieces == 1 else device.empty((pieces, view.rows), acc)
    number: Any = F64 if acc.name == "float64" else float
    launch(reduce_kernel, (capped(device, programs(view.rows, block_i) * pieces),), x, x if centre is None else centre, target,
           view.rows, *_steps(view), piece, pieces, Step(view.stride_o), Step(view.stride_n), Step(view.stride_i), number(divisor or 0.0),
           number(power), OP=op, MAP=map, END=end if pieces == 1 else "", ACC=_ACC[acc.name], IDENTITY=_identity(op, acc.name, map),
           DIVIDE=divisor is not None and pieces == 1, BIG=view.reach >= _LARGE, BLOCK_N=block_n, BLOCK_I=block_i)
    if pieces > 1:
        _fold_rows(op, target, Rows(1, pieces, view.rows, 0, view.rows, 1), y, acc, divisor, centre=centre, end=end, power=power)


def fold(op: str, x: Tensor, over: tuple[int, ...], out: Tensor, *, divisor: float | None = None, truth: bool = False, map: str = "",
         end: str = "", power: float = 0.0) -> None:
    """out = op ("sum", "prod", "max", "min") of x (truth: of x != 0) over axes, divided by a number if given; any strides.

    map, end, power: what is done to the elements first and to the result at last (reduce_kernel).
    """
    if out.numel == 0:
        return
    kind = out.dtype if op in ("sum", "prod") or map else x.dtype
    acc = _INT32 if truth or (not kind.is_floating and kind.name != "int64") else accumulator(kind)
    x, view = _view(x, over)
    if truth and op == "sum" and view.n >= _LARGE:
        acc = BY_NAME["int64"]
    with writable(out) as y:
        _fold_rows(op, x, view, y, acc, divisor, "truth" if truth else map, end=end, power=power)


def _over(x: Tensor, dim: Any) -> tuple[int, ...]:
    return axes("reduce", dim, x.ndim)


def _length(x: Tensor, over: tuple[int, ...]) -> int:
    n = 1
    for k in over:
        n *= x.shape[k]
    return n


def sum_(x: Tensor, *, dim: Any, keepdim: bool, dtype: DType | None, out: Tensor) -> None:
    fold("sum", x, _over(x, dim), out)


def mean(x: Tensor, *, dim: Any, keepdim: bool, dtype: DType | None, out: Tensor) -> None:
    over = _over(x, dim)
    fold("sum", x, over, out, divisor=float(_length(x, over)))


def amax(x: Tensor, *, dim: Any, keepdim: bool, out: Tensor) -> None:
    fold("max", x, _over(x, dim), out)


def amin(x: Tensor, *, dim: Any, keepdim: bool, out: Tensor) -> None:
    fold("min", x, _over(x, dim), out)


def any_(x: Tensor, *, dim: Any, keepdim: bool, out: Tensor) -> None:
    fold("max", x, _over(x, dim), out, truth=True)


def all_(x: Tensor, *, dim: Any, keepdim: bool, out: Tensor) -> None:
    fold("min", x, _over(x, dim), out, truth=True)


def prod(x: Tensor, *, dim: Any, keepdim: bool, dtype: DType | None, out: Tensor) -> None:
    fold("prod", x, _over(x, dim), out)


def aminmax(x: Tensor, *, dim: Any, keepdim: bool, out: tuple[Tensor, Tensor]) -> None:
    for op, y in zip(("min", "max"), out):
        fold(op, x, _over(x, dim), y)


def count_nonzero(x: Tensor, *, dim: Any, keepdim: bool, out: Tensor) -> None:
    fold("sum", x, _over(x, dim), out, truth=True)


def linalg_vector_norm(x: Tensor, *, ord: float, dim: Any, keepdim: bool, dtype: DType | None, out: Tensor) -> None:
    over, size = _over(x, dim), float(ord)
    if size in (float("inf"), -float("inf")):
        fold("max" if size > 0 else "min", x, over, out, map="size")
    elif size == 0.0:
        fold("sum", x, over, out, map="truth")
    else:
        how = {1.0: ("size", ""), 2.0: ("square", "sqrt")}.get(size, ("power", "root"))
        fold("sum", x, over, out, map=how[0], end=how[1], power=size)


def _centred(x: Tensor, op: str, over: tuple[int, ...], out: Tensor, divisors: tuple[float | None, float | None], map: str, end: str,
             first: Tensor | None = None) -> None:
    """out = a sum of what lies around ``op`` of the elements: two readings, no cancellation.  first: a second result, op itself."""
    if out.numel == 0:
        return
    acc = accumulator(x.dtype)
    x, view = _view(x, over)
    centre = device_of(x).empty((view.rows,), acc)
    _fold_rows(op, x, view, centre, acc, divisors[0])
    with writable(out) as y:
        _fold_rows("sum", x, view, y, acc, divisors[1], map, centre, end)
    if first is not None:
        with writable(first) as y:
            _fold_rows("max", centre, Rows(view.rows, 1, 1, 1, 1, 0), y, acc)


def _spread(end: str, pair: bool) -> Any:
    def run(x: Tensor, *, dim: Any, correction: float, keepdim: bool, out: Any) -> None:
        over = _over(x, dim)
        n = _length(x, over)
        y, mean = out if pair else (out, None)
        _centred(x, "sum", over, y, (float(n), max(n - correction, 0.0)), "distance", end, mean)

    return run


def logsumexp(x: Tensor, *, dim: Any, keepdim: bool, out: Tensor) -> None:
    _centred(x, "max", _over(x, dim), out, (None, None), "exp", "log")


# ---- indices -------------------------------------------------------------------------------------------------------------
def _arg(x: Tensor, dim: int | None, smallest: bool, out: Tensor) -> None:
    if out.numel == 0:
        return
    x, view = _view(x, _over(x, dim))
    with writable(out) as y:
        _arg_rows(x, view, smallest, y)


def _arg_rows(x: Tensor, view: Rows, smallest: bool, y: Tensor) -> None:
    """y (contiguous, int64): the place of the first extreme of each row."""
    device = device_of(y)
    acc = accumulator(x.dtype) if x.dtype.is_floating or x.dtype.name == "int64" else _INT32
    pieces = view.pieces
    piece = _piece(view, pieces)
    pieces = max(programs(view.n, piece), 1)
    big = view.reach >= _LARGE
    constants: dict[str, Any] = {"ACC": _ACC[acc.name], "LOWEST": _IDENTITY["max", acc.name], "BIG": big}
    if pieces == 1:
        _launch_arg(x, y, y, y, view, piece, 1, {**constants, "SMALLEST": smallest, "INDEXED": False, "KEEP": False})
        return
    values = device.empty((pieces, view.rows), acc)
    places = device.empty((pieces, view.rows), "int64" if big else "int32")
    _launch_arg(x, y, values, places, view, piece, pieces, {**constants, "SMALLEST": smallest, "INDEXED": False, "KEEP": True})
    parts = Rows(1, pieces, view.rows, 0, view.rows, 1)
    _launch_arg(values, places, values, y, parts, pieces, 1, {**constants, "SMALLEST": False, "INDEXED": True, "KEEP": False})


def _launch_arg(x: Tensor, index: Tensor, values: Tensor, places: Tensor, view: Rows, piece: int, pieces: int, constants: dict[str, Any]) -> None:
    block_n, block_i = view.block
    launch(arg_kernel, (capped(device_of(x), programs(view.rows, block_i) * pieces),), x, index, values, places, view.rows, *_steps(view),
           piece, pieces, Step(view.stride_o), Step(view.stride_n), Step(view.stride_i), **constants, BLOCK_N=block_n, BLOCK_I=block_i)


def argmax(x: Tensor, *, dim: int | None, keepdim: bool, out: Tensor) -> None:
    _arg(x, dim, False, out)


def argmin(x: Tensor, *, dim: int | None, keepdim: bool, out: Tensor) -> None:
    _arg(x, dim, True, out)


def _extreme(smallest: bool) -> Any:
    def run(x: Tensor, *, dim: int, keepdim: bool, out: tuple[Tensor, Tensor]) -> None:
        values, places = out
        if values.numel == 0:
            return
        x, view = _view(x, _over(x, dim))
        device = device_of(x)
        with writable(places) as found:
            _arg_rows(x, view, smallest, found)
            with writable(values) as y:
                launch(take_kernel, (capped(device, programs(view.rows, TILE // 2)),), x, found, y, view.rows, _steps(view)[0], Step(view.stride_o),
                       Step(view.stride_n), Step(view.stride_i), BIG=view.reach >= _LARGE, BLOCK=TILE // 2)

    return run


# ---- what the device must have -------------------------------------------------------------------------------------------
def _when(result: str = "") -> Any:
    """result: dtype of the results where it is not x's ("int64" of argmax; "sum" makes it of integers)."""
    @by_signature
    def when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
        x = specs[0].dtype
        made = attrs.get("dtype") or (BY_NAME["int64"] if result == "int64" or (result == "sum" and not x.is_floating) else x)
        for d in (x, made):
            if d.name in ("int64", "float64"):
                why = lacks(facts, d.name)
                if why or (d.name == "int64" and not facts.int64_math):
                    return why or "the device has no 64-bit integer vectors"
        return ""
    return when


_of_dtype = _when()


def _when_norm(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    """Other powers than these are taken in float64 (scalar.pow)."""
    plain = abs(float(attrs["ord"])) in (0.0, 1.0, 2.0, float("inf")) and attrs["ord"] not in (-1, -2)
    return _of_dtype(specs, attrs, facts) or ("" if plain else lacks(facts, "float64"))


var, std, var_mean, std_mean = _spread("", False), _spread("sqrt", False), _spread("", True), _spread("sqrt", True)
KERNELS = {"sum": sum_, "mean": mean, "prod": prod, "amax": amax, "amin": amin, "aminmax": aminmax, "argmax": argmax, "argmin": argmin,
           "max": _extreme(False), "min": _extreme(True), "var": var, "std": std, "var_mean": var_mean, "std_mean": std_mean,
           "linalg_vector_norm": linalg_vector_norm, "logsumexp": logsumexp, "any": any_, "all": all_, "count_nonzero": count_nonzero}
_PLACES = ("argmax", "argmin", "max", "min", "count_nonzero")
WHEN = {name: _when("int64" if name in _PLACES else "sum" if name == "prod" else name) for name in KERNELS} | {"linalg_vector_norm": _when_norm}


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    last = (("i32", True), ("=1", False), ("i32", True), ("i32", True), ("i32", False), ("i32", True), ("=1", False), ("=0", False))
    first = (("i32", True), ("i32", True), ("i32", True), ("i32", True), ("i32", False), ("=0", False), ("i32", True), ("=1", False))
    for op, t, acc, how, end in (("sum", "*fp32", "float32", "", ""), ("sum", "*bf16", "float32", "", ""), ("max", "*fp32", "float32", "", ""),
                                 ("sum", "*i64", "int64", "", ""), ("sum", "*fp64", "float64", "", ""), ("prod", "*fp32", "float32", "", ""),
                                 ("sum", "*fp32", "float32", "exp", "log"), ("sum", "*fp32", "float32", "power", "root")):
        for where, sizes, block in (("last axis", last, (TILE, 1)), ("first axis", first, (TILE // 64, 64))):
            yield f"{op} {how} {t} {where}", reduce_kernel, ((t, True), (t, True), (t, True), *sizes, *((("fp64" if acc == "float64" else "fp32"), False),) * 2), \
                {"OP": op, "MAP": how, "END": end, "ACC": _ACC[acc], "IDENTITY": _identity(op, acc, how), "DIVIDE": False,
                 "BIG": False, "BLOCK_N": block[0], "BLOCK_I": block[1]}, 4
    for where, sizes, block in (("last axis", last, (TILE, 1)), ("first axis", first, (TILE // 64, 64))):
        yield f"argmax *fp32 {where}", arg_kernel, (("*fp32", True), ("*i64", True), ("*fp32", True), ("*i64", True), *sizes), \
            {"ACC": tl.float32, "LOWEST": float("-inf"), "SMALLEST": False, "INDEXED": False, "KEEP": False, "BIG": False,
             "BLOCK_N": block[0], "BLOCK_I": block[1]}, 4
