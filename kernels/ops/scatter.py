"""scatter, scatter_reduce, index and index_put by several tensors, index_fill, index_copy, masked_scatter, scatters into a view:
what they are.

Index tensors of ``index`` and ``index_put`` are eight optional parameters, one an axis, since a list has no place for a missing one.
How they are computed: kernels/cpu/scatter.c, index_put.c, kernels/triton/scatter.py.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, IndexOutOfBounds, ShapeError
from .budget import Exact, Reduction
from .gradient import count, unbroadcast, zeros
from .index import _INDEX, _fits_all_but, _line, _need_index, _vector, check_bounds
from .infer import axis, broadcast, need, need_dtype, same_dtype
from .record import ANY, NUMBERS, Bad, Cost, In, Sample, Spec, op

_RANK = 8  # axes of a tensor at most
_BOOL = BY_NAME["bool"]
_I64 = BY_NAME["int64"]


# ---- shapes ------------------------------------------------------------------------------------------------------------
def _scattered(name: str, x: Spec, index: Spec, src: Spec, dim: int) -> Spec:
    same_dtype(name, x, src)
    _need_index(name, "index", index)
    _fits_all_but(name, index, x, axis(name, dim, x.ndim))
    if src.ndim or not x.ndim:
        _fits_all_but(name, index, src, None, "src")
    return x


def _infer_scatter(x: Spec, index: Spec, src: Spec, *, dim: int) -> Spec:
    need_dtype("scatter", "x", x, ANY)
    return _scattered("scatter", x, index, src, dim)


def _infer_scatter_reduce(x: Spec, index: Spec, src: Spec, *, dim: int, reduce: str, include_self: bool) -> Spec:
    need_dtype("scatter_reduce", "x", x, NUMBERS)
    _fits_all_but("scatter_reduce", index, src, None, "src")
    return _scattered("scatter_reduce", x, index, src, dim)


def picked(name: str, x: Spec, indices: Sequence[Spec | None]) -> tuple[tuple[int, ...], int, list[int], tuple[int, ...]]:
    """(shape of the broadcast index tensors, where their axes stand in the result, x's other axes, the result's shape).

    As in aten and NumPy: in place of the indexed axes where those stand together, else in front.

    Raises:
        ShapeError: an index for an axis that x lacks, index tensors that do not broadcast, more than 8 axes.
        DTypeError: an index tensor that is not int64 or int32.  ArgumentError: no index tensor.
    """
    given = [d for d, i in enumerate(indices) if i is not None]
    need(bool(given), f"{name}: no index tensor came; needs one at least")
    for d in given:
        if indices[d].dtype not in _INDEX:  # type: ignore[union-attr]
            raise DTypeError(f"{name}: index{d} has dtype {indices[d].dtype}; needs int64 or int32; a mask becomes indices by "  # type: ignore[union-attr]
                             "nonzero first")
    if given[-1] >= x.ndim:
        raise ShapeError(f"{name}: index{given[-1]} came and x is {x.shape}; x has no axis {given[-1]}")
    shape = broadcast(name, *(i.shape for i in indices if i is not None))
    rest = [d for d in range(x.ndim) if d not in given]
    at = given[0] if given[-1] - given[0] == len(given) - 1 else 0
    result = (*(x.shape[d] for d in rest[:at]), *shape, *(x.shape[d] for d in rest[at:]))
    if len(result) > _RANK:
        raise ShapeError(f"{name}: the result would have {len(result)} axes; at most {_RANK}")
    return shape, at, rest, result


def _infer_index(x: Spec, *indices: Spec | None) -> Spec:
    need_dtype("index", "x", x, ANY)
    return Spec(picked("index", x, indices)[3], x.dtype)


def _infer_index_put(x: Spec, values: Spec, *indices: Spec | None, accumulate: bool) -> Spec:
    need_dtype("index_put", "x", x, ANY)
    same_dtype("index_put", x, values)
    result = picked("index_put", x, indices)[3]
    if values.ndim > len(result) or broadcast("index_put", values.shape, result) != result:
        raise ShapeError(f"index_put: values is {values.shape}; needs to broadcast to {result}, what the index tensors name")
    return x


def _infer_index_fill(x: Spec, index: Spec, value: Spec, *, dim: int) -> Spec:
    need_dtype("index_fill", "x", x, ANY)
    same_dtype("index_fill", x, value)
    if value.ndim:
        raise ShapeError(f"index_fill: value is {value.shape}; needs a number or a tensor without axes")
    _line("index_fill", index)
    axis("index_fill", dim, x.ndim)
    return x


def _infer_index_copy(x: Spec, index: Spec, source: Spec, *, dim: int) -> Spec:
    need_dtype("index_copy", "x", x, ANY)
    same_dtype("index_copy", x, source)
    n, d = _line("index_copy", index), axis("index_copy", dim, x.ndim)
    want = (*x.shape[:d], n, *x.shape[d + 1:]) if x.ndim else ()
    if source.shape != want or n != 1 and not x.ndim:
        raise ShapeError(f"index_copy: source is {source.shape}, x {x.shape} and index {index.shape}; source needs shape {want} and "
                         "index a value for each slice")
    return x


def _infer_masked_scatter(x: Spec, mask: Spec, source: Spec) -> Spec:
    need_dtype("masked_scatter", "x", x, ANY)
    need_dtype("masked_scatter", "mask", mask, (_BOOL,))
    same_dtype("masked_scatter", x, source)
    return Spec(broadcast("masked_scatter", x.shape, mask.shape), x.dtype)


def _part(name: str, x: Spec, src: Spec, shape: tuple[int, ...]) -> Spec:
    need_dtype(name, "x", x, ANY)
    same_dtype(name, x, src)
    if src.shape != shape:
        raise ShapeError(f"{name}: src is {src.shape}; needs {shape}, the part of x {x.shape} it goes to")
    return x


def _needs_axis(name: str, x: Spec | np.ndarray, least: int = 1) -> None:
    if x.ndim < least:
        raise ShapeError(f"{name}: x has shape {tuple(x.shape)}; needs {least} {'axis' if least == 1 else 'axes'} at least")


def _infer_select_scatter(x: Spec, src: Spec, *, dim: int, index: int) -> Spec:
    _needs_axis("select_scatter", x)
    d = axis("select_scatter", dim, x.ndim)
    n = x.shape[d]
    if not -n <= index < n:
        raise IndexOutOfBounds(f"select_scatter: index {index} is outside {-n} <= index < {n}")
    return _part("select_scatter", x, src, x.shape[:d] + x.shape[d + 1:])


def _infer_slice_scatter(x: Spec, src: Spec, *, dim: int, start: int | None, end: int | None, step: int) -> Spec:
    _needs_axis("slice_scatter", x)
    d = axis("slice_scatter", dim, x.ndim)
    need(step > 0, f"slice_scatter: step {step}; needs 1 or more")
    n = len(range(*slice(start, end, step).indices(x.shape[d])))
    return _part("slice_scatter", x, src, (*x.shape[:d], n, *x.shape[d + 1:]))


def _diagonal(name: str, shape: Sequence[int], offset: int, dim1: int, dim2: int) -> tuple[int, int, int]:
    """(axis, axis, length) of a diagonal."""
    a, b = axis(name, dim1, len(shape)), axis(name, dim2, len(shape))
    if a == b:
        raise ShapeError(f"{name}: dim1 {dim1} and dim2 {dim2} are the same axis; they must differ")
    return a, b, max(min(shape[a], shape[b] - offset) if offset >= 0 else min(shape[a] + offset, shape[b]), 0)


def _infer_diagonal_scatter(x: Spec, src: Spec, *, offset: int, dim1: int, dim2: int) -> Spec:
    _needs_axis("diagonal_scatter", x, 2)
    a, b, n = _diagonal("diagonal_scatter", x.shape, offset, dim1, dim2)
    return _part("diagonal_scatter", x, src, (*(s for d, s in enumerate(x.shape) if d not in (a, b)), n))


# ---- references ----------------------------------------------------------------------------------------------------------
def _line_of(size: int, index: np.ndarray) -> np.ndarray:
    return np.where(index < 0, index + size, index)


def check_within(name: str, what: str, index: np.ndarray, size: int) -> None:
    """Raises IndexOutOfBounds for the first value outside -size <= value < size; position counts in row-major order."""
    flat = index.reshape(-1)
    bad = (flat < -size) | (flat >= size)
    if bad.any():
        at = int(bad.argmax())
        raise IndexOutOfBounds(f"{name}: {what} {flat[at]} at position {at} is outside {-size} <= {what} < {size}")


def _scatter(x, index, src, *, dim):
    check_bounds("scatter", "index", index, x.shape[dim] if x.ndim else 1)
    out = _vector(x.copy())
    i = _vector(index)
    s = np.broadcast_to(src, i.shape) if not src.ndim else _vector(src)[tuple(slice(n) for n in i.shape)]
    d = dim % out.ndim
    where = list(np.indices(i.shape))
    for j in range(i.shape[d]):  # one term of each column at a time: the last one stays
        at = tuple(slice(j, j + 1) if k == d else slice(None) for k in range(i.ndim))
        place = [w[at] for w in where]
        place[d] = i[at]
        out[tuple(place)] = s[at]
    return out.reshape(x.shape)


_UFUNC = {"sum": np.add, "mean": np.add, "prod": np.multiply, "amax": np.maximum, "amin": np.minimum}


def _scatter_reduce(x, index, src, *, dim, reduce, include_self):
    check_bounds("scatter_reduce", "index", index, x.shape[dim] if x.ndim else 1)
    out, i, s = _vector(x.copy()), _vector(index), _vector(src)
    where = list(np.indices(i.shape))
    where[dim % out.ndim] = i
    place = tuple(where)
    if not include_self:
        low, high = (-np.inf, np.inf) if out.dtype.kind == "f" else (np.iinfo(out.dtype).min, np.iinfo(out.dtype).max)
        out[place] = {"prod": 1, "amax": low, "amin": high}.get(reduce, 0)
    _UFUNC[reduce].at(out, place, s[tuple(slice(n) for n in i.shape)])
    if reduce == "mean":
        n = np.zeros(out.shape, np.int64)
        np.add.at(n, place, 1)
        n = np.where(n > 0, n + include_self, 1)
        out = out / n if out.dtype.kind == "f" else (out.astype(np.int64) // n).astype(out.dtype)
    return out.reshape(x.shape)


def _scatter_reduce_magnitude(x, index, src, *, dim, reduce, include_self):
    size = _scatter_reduce(np.abs(x), index, np.abs(src), dim=dim, reduce="sum" if reduce in ("amax", "amin") else reduce,
                           include_self=include_self)
    return np.maximum(size, np.abs(x)) if reduce in ("amax", "amin") else size


def _wrapped(name, x, indices):
    """Index tensors that are given as non-negative int64 arrays of their common shape, and the axes they belong to."""
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    shape = np.broadcast_shapes(*(i.shape for _, i in given))
    if count(shape):
        for d, i in given:
            check_within(name, f"index{d}", i, x.shape[d])
    return [d for d, _ in given], [np.broadcast_to(_line_of(x.shape[d], i.astype(np.int64)), shape) for d, i in given]


def _index(x, *indices):
    axes, where = _wrapped("index", x, indices)
    key = [slice(None)] * x.ndim
    for d, i in zip(axes, where, strict=True):
        key[d] = i
    return x[tuple(key)]


def _index_put(x, values, *indices, accumulate):
    """Terms in the order of the index tensors, one place after another."""
    axes, where = _wrapped("index_put", x, indices)
    shape, at, rest, result = picked("index_put", Spec(x.shape, BY_NAME["float64"]),
                                     tuple(None if i is None else Spec(i.shape, _I64) for i in indices))
    out = x.copy()
    front = np.moveaxis(out, axes, range(len(axes)))
    terms = np.moveaxis(np.broadcast_to(values, result), range(at, at + len(shape)), range(len(shape)))
    terms = terms.reshape(-1 if count(shape) else 0, *(x.shape[d] for d in rest)) if len(terms.shape) else terms.reshape(1)
    flat = [w.reshape(-1) for w in where]
    if accumulate:
        (np.logical_or if x.dtype.kind == "b" else np.add).at(front, tuple(flat), terms)
        return out
    sizes = [x.shape[d] for d in axes]
    if not count(shape):
        return out
    keys = np.ravel_multi_index(flat, sizes)
    last, position = np.unique(keys[::-1], return_index=True)
    front[np.unravel_index(last, sizes)] = terms[len(keys) - 1 - position]
    return out


def _index_put_magnitude(x, values, *indices, accumulate):
    return _index_put(np.abs(x), np.abs(values), *indices, accumulate=accumulate)


def _along(x, dim):
    """A copy of x (at least one axis), and its view with axis dim in front."""
    out = _vector(x.copy())
    return out, np.moveaxis(out, dim, 0)


def _index_fill(x, index, value, *, dim):
    size = x.shape[dim] if x.ndim else 1
    check_within("index_fill", "index", index, size)
    out, front = _along(x, dim)
    front[_line_of(size, _vector(index))] = value
    return out.reshape(x.shape)


def _index_copy(x, index, source, *, dim):
    check_bounds("index_copy", "index", index, x.shape[dim] if x.ndim else 1)
    out, front = _along(x, dim)
    slices = np.moveaxis(_vector(source), dim, 0)
    for j, i in enumerate(_vector(index)):
        front[i] = slices[j]
    return out.reshape(x.shape)


def _masked_scatter(x, mask, source):
    shape = np.broadcast_shapes(x.shape, mask.shape)
    out, m = np.array(np.broadcast_to(x, shape)), np.broadcast_to(mask, shape)
    n = int(m.sum())
    if n > source.size:
        raise IndexOutOfBounds(f"masked_scatter: mask selects {n} elements and source has {source.size}; needs as many at least")
    out[m] = source.reshape(-1)[:n]
    return out


def _select_scatter(x, src, *, dim, index):
    out = x.copy()
    np.moveaxis(out, dim, 0)[index] = src
    return out


def _slice_scatter(x, src, *, dim, start, end, step):
    out = x.copy()
    np.moveaxis(out, dim, 0)[slice(start, end, step)] = np.moveaxis(src, dim, 0)
    return out


def _diagonal_scatter(x, src, *, offset, dim1, dim2):
    out = x.copy()
    n = src.shape[-1]
    front = np.moveaxis(out, (dim1, dim2), (0, 1))
    i = np.arange(n)
    if n:
        front[i + max(-offset, 0), i + max(offset, 0)] = np.moveaxis(src, -1, 0)
    return out


# ---- cost ------------------------------------------------------------------------------------------------------------------
def _bytes(*specs: Spec | None) -> int:
    return sum(s.size * s.dtype.itemsize for s in specs if s is not None)


def _writes(item: int, x: Spec, *others: Spec | None, **_: Any) -> Cost:
    """x read and written once, the others read once."""
    return Cost(flops=0, bytes=2 * _bytes(x) + _bytes(*others))


def _reduces(item: int, x: Spec, index: Spec, src: Spec, **_: Any) -> Cost:
    return Cost(flops=index.size, bytes=2 * _bytes(x) + 2 * _bytes(index))


def _index_cost(item: int, x: Spec, *indices: Spec | None) -> Cost:
    return Cost(flops=0, bytes=2 * _bytes(_infer_index(x, *indices)) + _bytes(*indices))


def _masked_cost(item: int, x: Spec, mask: Spec, source: Spec) -> Cost:
    return Cost(flops=0, bytes=2 * count(broadcast("", x.shape, mask.shape)) * x.dtype.itemsize + _bytes(mask))


# ---- gradients -----------------------------------------------------------------------------------------------------------
def _pad_to(o: Any, d: Any, shape: Sequence[int]) -> Any:
    """d with zeros behind it, to a larger shape: what index does not reach of src gets 0."""
    if tuple(d.shape) == tuple(shape):
        return d
    pad = [p for i in reversed(range(d.ndim)) for p in (0, shape[i] - d.shape[i])]
    return o.constant_pad_nd(d, pad, 0.0)


def _as(o: Any, x: Any, value: float) -> Any:
    return o.full(tuple(x.shape), value, dtype=x.dtype)


def _scatter_grad(o, dy, inputs, y, attrs):
    """Of terms that meet in one place the last one counts: it is found by scattering positions."""
    x, index, src = inputs
    dim = attrs["dim"]
    dx = o.scatter(dy, dim, index, zeros(o, (), dy.dtype))
    n = count(index.shape)
    mine = o.arange(0.0, float(n), 1.0, dtype=_I64).reshape(tuple(index.shape))
    last = o.gather(o.scatter(o.full(tuple(x.shape), -1.0, dtype=_I64), dim, index, mine), dim, index)
    d = o.gather(dy, dim, index)
    d = o.where(o.eq(last, mine), d, zeros(o, d.shape, dy.dtype))
    return dx, None, o.sum(d) if not src.ndim and x.ndim else _pad_to(o, d, src.shape)


def _scatter_reduce_grad(o, dy, inputs, y, attrs):
    """aten's: extremes share dy among those that reach them; a product divides by each factor, which must not be 0."""
    x, index, src = inputs
    dim, reduce, own = attrs["dim"], attrs["reduce"], attrs["include_self"]
    ones = o.full(tuple(index.shape), 1.0, dtype=dy.dtype)
    hits = o.scatter_add(zeros(o, x.shape, dy.dtype), dim, index, ones)
    untouched = o.eq(hits, zeros(o, x.shape, dy.dtype))
    part = src
    for i in range(src.ndim):
        if src.shape[i] != index.shape[i]:
            part = o.index_select(part, i, o.arange(0.0, float(index.shape[i]), 1.0, dtype=_I64))
    if reduce in ("sum", "mean"):
        share = dy
        if reduce == "mean":
            n = o.add(hits, o.full((), 1.0, dtype=dy.dtype)) if own else hits
            share = o.where(untouched, dy, o.div(dy, n))
        dx, d = share, o.gather(share, dim, index)
    elif reduce == "prod":
        dx, d = o.div(o.mul(dy, y), x), o.gather(dy, dim, index)
        d = o.div(o.mul(d, o.gather(y, dim, index)), part)
    else:
        mine = o.cast(o.eq(part, o.gather(y, dim, index)), dtype=dy.dtype)
        first = o.cast(o.eq(x, y), dtype=dy.dtype)
        if not own:
            first = o.where(untouched, first, zeros(o, x.shape, dy.dtype))
        share = o.div(dy, o.scatter_add(first, dim, index, mine))
        dx, d = o.mul(share, first), o.mul(o.gather(share, dim, index), mine)
    if not own:
        dx = o.where(untouched, dy, zeros(o, x.shape, dy.dtype))
    return dx, None, _pad_to(o, d, src.shape)


def _none(n: int) -> tuple[None, ...]:
    return (None,) * n


def _index_grad(o, dy, inputs, y, attrs):
    x, *indices = inputs
    return (o.index_put(zeros(o, x.shape, dy.dtype), dy, *indices, accumulate=True), *_none(len(indices)))


def _index_put_grad(o, dy, inputs, y, attrs):
    """Without accumulate the last of the terms that meet counts: it is found by putting positions."""
    x, values, *indices = inputs
    d = o.index(dy, *indices)
    dx = dy
    if not attrs["accumulate"]:
        dx = o.index_put(dy, zeros(o, (), dy.dtype), *indices)
        mine = o.arange(0.0, float(count(d.shape)), 1.0, dtype=_I64).reshape(tuple(d.shape))
        last = o.index(o.index_put(o.full(tuple(x.shape), -1.0, dtype=_I64), mine, *indices), *indices)
        d = o.where(o.eq(last, mine), d, zeros(o, d.shape, dy.dtype))
    return (dx, unbroadcast(o, d, values.shape), *_none(len(indices)))


def _index_fill_grad(o, dy, inputs, y, attrs):
    x, index, _ = inputs
    dx = o.index_fill(dy, attrs["dim"], index, zeros(o, (), dy.dtype))
    return dx, None, o.sum(o.sub(dy, dx))


def _index_copy_grad(o, dy, inputs, y, attrs):
    x, index, source = inputs
    dim = attrs["dim"]
    dx = o.index_fill(dy, dim, index, zeros(o, (), dy.dtype))
    if not x.ndim:
        return dx, None, dy
    n = index.shape[0] if index.ndim else 1
    mine = o.arange(0.0, float(n), 1.0, dtype=_I64)
    last = o.index_select(o.index_copy(o.full((x.shape[dim],), -1.0, dtype=_I64), 0, index, mine), 0, index)
    keep = o.eq(last, mine).reshape(tuple(n if d == dim % x.ndim else 1 for d in range(x.ndim)))
    d = o.index_select(dy, dim, index)
    return dx, None, o.where(keep, d, zeros(o, (), dy.dtype))


def _masked_scatter_grad(o, dy, inputs, y, attrs):
    """Position k of source goes to the k-th true place; places are numbered by masked_scatter itself."""
    x, mask, source = inputs
    n, m = count(source.shape), count(dy.shape)
    number = o.masked_scatter(o.full(tuple(dy.shape), float(n), dtype=_I64), mask, o.arange(0.0, float(m), 1.0, dtype=_I64))
    place = number.reshape((m,))  # what is not taken from source goes to one place more, which is dropped
    d = o.index_add(zeros(o, (n + 1,), dy.dtype), 0, place, dy.reshape((m,)))
    keep = o.index_select(d, 0, o.arange(0.0, float(n), 1.0, dtype=_I64)).reshape(tuple(source.shape))
    return unbroadcast(o, o.masked_fill(dy, mask, value=0.0), x.shape), None, keep


def _positions(o: Any, shape: Sequence[int]) -> Any:
    return o.arange(0.0, float(count(shape)), 1.0, dtype=_I64).reshape(tuple(shape))


def _view_grad(name: str) -> Any:
    """Of a scatter into a view: where positions of src, scattered the same way, stand, dy belongs to src."""
    def grad(o, dy, inputs, y, attrs):
        x, src = inputs
        fn = getattr(o, name)
        none = zeros(o, src.shape, dy.dtype)
        dx = fn(dy, none, **attrs)
        n = count(src.shape)
        place = fn(o.full(tuple(x.shape), float(n), dtype=_I64), _positions(o, src.shape), **attrs).reshape((count(x.shape),))
        d = o.index_add(zeros(o, (n + 1,), dy.dtype), 0, place, dy.reshape((count(x.shape),)))
        return dx, o.index_select(d, 0, o.arange(0.0, float(n), 1.0, dtype=_I64)).reshape(tuple(src.shape))

    return grad


# ---- samples ---------------------------------------------------------------------------------------------------------------
def _i(shape: tuple[int, ...], high: int, dtype: str = "int64", values: tuple[int, ...] | None = None) -> In:
    return In(shape, "index", dtype, high, values)


# name, x, index, src, dim.  1027 terms and 70 columns pass what a group of columns and a Triton block hold
_SCATTERS = (("scalar", (), (), (), 0), ("one", (1,), (1,), (1,), 0), ("vector", (13,), (7,), (9,), 0), ("longer", (3,), (129,), (129,), 0),
             ("rows", (7, 13), (5, 13), (5, 13), 0), ("columns", (7, 13), (7, 5), (8, 6), -1), ("inner", (3, 5, 7), (3, 9, 7), (3, 9, 7), 1),
             ("part", (4, 70), (20, 67), (21, 68), 0), ("nothing", (3, 4), (3, 0), (3, 2), 1), ("no_rows", (0, 4), (0, 4), (0, 4), 1),
             ("past_tile", (2, 1025), (2, 1027), (2, 1027), 1))


def _scatter_samples(draw: str, **attrs: Any) -> list[Sample]:
    return [Sample(n, (In(x, draw), _i(i, x[d] if x else 1, "int32" if n == "inner" else "int64"), In(s, draw)), {"dim": d, **attrs})
            for n, x, i, s, d in _SCATTERS]


_MOE = ("Mixtral-8x7B routing weights of 512 tokens", (In((512, 8)), _i((512, 2), 8), In((512, 2))), {"dim": 1})
_GNN = "GraphSAGE mean over neighbours, ogbn-arxiv sized features"
_REDUCES = [Sample(f"{n}_{reduce}{'' if own else '_alone'}", (In(x, draw), _i(i, x[d] if x else 1), In(s, draw)),
                   {"dim": d, "reduce": reduce, "include_self": own})
            for (n, x, i, s, d), (reduce, own, draw) in zip(
                (_SCATTERS[4], _SCATTERS[3], _SCATTERS[6], _SCATTERS[5], _SCATTERS[7], _SCATTERS[4], _SCATTERS[10], _SCATTERS[0],
                 _SCATTERS[5], _SCATTERS[3], _SCATTERS[8], _SCATTERS[9], _SCATTERS[7]),
                (("sum", True, "normal"), ("sum", False, "normal"), ("mean", True, "normal"), ("mean", False, "normal"),
                 ("amax", True, "normal"), ("amax", False, "normal"), ("amin", True, "normal"), ("amin", False, "normal"),
                 ("prod", True, "positive"), ("prod", False, "unit"), ("mean", False, "normal"), ("sum", True, "normal"),
                 ("mean", True, "normal")), strict=True)]

# name, x, index tensors (shape, or shape and values; None: left out)
_INDEXES: tuple[tuple[str, tuple[int, ...], tuple[Any, ...]], ...] = (
    ("vector", (13,), ((7,),)), ("scalar_index", (5, 3), ((),)), ("rows", (7, 13), ((5,),)), ("columns", (7, 13), (None, (20,))),
    ("matrix", (11, 4), ((3, 5),)), ("pair", (7, 13), ((9,), (9,))), ("crossed", (7, 13), ((4, 1), (3,))), ("apart", (3, 5, 7), ((4,), None, (4,))),
    ("middle", (3, 5, 7, 2), (None, (2, 4), (4,))), ("from_the_end", (6, 3), (((5,), (-1, 0, -6, 5, -1)),)),
    ("both_from_the_end", (4, 3), (((3,), (-1, 0, -4)), ((3,), (2, -3, -1)))),
    ("nothing", (3, 4), ((0,),)), ("no_rows", (0, 4), ((0,),)), ("past_tile", (3, 1025), (None, (1027,))), ("all", (5, 3, 4), ((33,), (33,), (33,))),
    ("wide_rows", (3, 2055), ((4,),)))


def _index_tensors(x: tuple[int, ...], given: tuple[Any, ...], dtype: str = "int64") -> tuple[In | None, ...]:
    made: list[In | None] = []
    for d, g in enumerate(given):
        if g is None:
            made.append(None)
        elif len(g) == 2 and isinstance(g[0], tuple):
            made.append(_i(g[0], x[d], dtype, g[1]))
        else:
            made.append(_i(g, x[d], dtype))
    return (*made, *_none(_RANK - len(made)))


def _result(x: tuple[int, ...], tensors: tuple[In | None, ...]) -> tuple[int, ...]:
    return picked("", Spec(x, _I64), tuple(None if i is None else Spec(i.shape, _I64) for i in tensors))[3]


_ROPE = ("Llama-7B rotary table by position, 512 tokens", (4096, 128), ((1, 512),))
_KV = ("Llama-7B paged key cache, 16 new tokens", (64, 16, 32, 128), ((16,), (16,)))
_INDEX_SAMPLES = [Sample(n, (In(x, "wide"), *_index_tensors(x, g, "int32" if n == "matrix" else "int64"))) for n, x, g in _INDEXES] + [
    Sample("rotary_rows", (In(_ROPE[1]), *_index_tensors(_ROPE[1], _ROPE[2])), {}, _ROPE[0], "inference", ("full", "llm"))]


def _put_samples() -> list[Sample]:
    made = []
    for k, (n, x, g) in enumerate(_INDEXES):
        tensors = _index_tensors(x, g, "int32" if n == "matrix" else "int64")
        for accumulate in (False, True) if n in ("rows", "crossed", "all", "past_tile", "wide_rows") else (bool(k % 2),):
            values = () if n == "columns" else _result(x, tensors)
            if n == "crossed":
                values = (values[0], 1)
            made.append(Sample(f"{n}_added" if accumulate else n, (In(x), In(values), *tensors), {"accumulate": accumulate}))
    many = ((700,), (700,))  # more terms than one pass of the sort tells apart: 2400 places
    made.append(Sample("many", (In((60, 40, 9)), In((700, 9)), *_index_tensors((60, 40, 9), many)), {"accumulate": True}))
    kv = _index_tensors(_KV[1], _KV[2])
    return [*made, Sample("paged_keys", (In(_KV[1]), In((16, 32, 128)), *kv), {"accumulate": False}, _KV[0], "inference", ("full", "llm"))]


_LINES = (("scalar", (), (1,), 0), ("scalar_index", (5, 3), (), 1), ("vector", (13,), (7,), 0), ("rows", (7, 13), (5,), 0),
          ("columns", (7, 13), (20,), -1), ("inner", (3, 5, 7), (9,), 1), ("nothing", (3, 4), (0,), 1), ("no_rows", (0, 4), (3,), 1),
          ("past_tile", (3, 1025), (1027,), 1), ("long_rows", (3, 2049), (4,), 0))


def _slices(x: tuple[int, ...], i: tuple[int, ...], d: int) -> tuple[int, ...]:
    n = len(x)
    return (*x[:d % n], *(i or (1,)), *x[d % n + 1:]) if n else ()


_FILL_SAMPLES = [Sample(n, (In(x), _i(i, x[d] if x else 1, "int32" if n == "inner" else "int64"), In(())), {"dim": d})
                 for n, x, i, d in _LINES] + [
    Sample("from_the_end", (In((6, 3)), _i((4,), 6, values=(-1, 0, -6, 3)), In(())), {"dim": 0}),
    Sample("masked_tokens", (In((128, 768)), _i((19,), 128), In(())), {"dim": 0}, "BERT-base, 15 % of 128 tokens masked", "inference",
           ("full",))]
_COPY_SAMPLES = [Sample(n, (In(x), _i(i, x[d] if x else 1, "int32" if n == "inner" else "int64"), In(_slices(x, i, d))), {"dim": d})
                 for n, x, i, d in _LINES] + [
    Sample("static_cache", (In((1, 32, 1024, 128)), _i((16,), 1024), In((1, 32, 16, 128))), {"dim": 2}, "Llama-7B static key cache",
           "inference", ("full", "llm"))]
_MASKED = [Sample(n, (In(x, "wide"), In(m, "mask", "bool"), In(s, "wide"))) for n, x, m, s in (
    ("one", (1,), (1,), (1,)), ("vector", (13,), (13,), (13,)), ("matrix", (7, 5), (7, 5), (6, 6)), ("scalar", (), (), (1,)),
    ("mask_row", (7, 5), (5,), (5, 7)), ("x_row", (5,), (7, 5), (40,)), ("nothing", (3, 0), (3, 0), (0,)),
    ("past_tile", (3, 1025), (3, 1025), (3100,)), ("past_chunk", (1, 16411), (1, 16411), (16411,)))] + [
    Sample("none_selected", (In((4, 3)), In((4, 3), "mask", "bool", values=(0,) * 12), In((0,)))),
    Sample("image_tokens", (In((1, 1024, 768)), In((1, 1024, 1), "mask", "bool"), In((1024, 768))), {},
           "LLaVA image features into a prompt", "inference", ("full", "llm"))]
_SELECTED = [Sample(n, (In(x, "wide"), In(x[:d % len(x)] + x[d % len(x) + 1:], "wide")), {"dim": d, "index": i}) for n, x, d, i in (
    ("vector", (5,), 0, 2), ("rows", (5, 7), 0, -1), ("columns", (5, 7), -1, 3), ("inner", (2, 3, 5), 1, 0), ("nothing", (3, 0, 2), 0, 1),
    ("past_tile", (3, 1025), 0, 2))] + [
    Sample("last_token", (In((1, 128, 4096)), In((1, 4096))), {"dim": 1, "index": -1}, "Llama-7B last hidden state", "inference", ("full", "llm"))]
_SLICED = [Sample(n, (In(x, "wide"), In((*x[:d % len(x)], m, *x[d % len(x) + 1:]), "wide")), {"dim": d, "start": a, "end": b, "step": s})
           for n, x, m, d, a, b, s in (
    ("vector", (7,), 3, 0, 2, 5, 1), ("all", (5, 3), 5, 0, None, None, 1), ("rows", (7, 3), 2, 0, -2, None, 1),
    ("columns", (5, 13), 4, -1, 1, 12, 3), ("beyond", (5, 3), 2, 0, 3, 100, 1), ("nothing", (5, 3), 0, 0, 4, 2, 1),
    ("no_rows", (0, 3), 0, 0, 0, 5, 1), ("past_tile", (2, 1027), 1025, 1, 1, 1026, 1))] + [
    Sample("kv_prefix", (In((1, 32, 1024, 128)), In((1, 32, 128, 128))), {"dim": 2, "start": 0, "end": 128, "step": 1},
           "Llama-7B key cache, prefill of 128 tokens", "inference", ("full", "llm"))]
_DIAGONALS = [Sample(n, (In(x, "wide"), In(s, "wide")), {"offset": k, "dim1": a, "dim2": b}) for n, x, s, k, a, b in (
    ("square", (5, 5), (5,), 0, 0, 1), ("above", (5, 7), (5,), 2, 0, 1), ("below", (5, 7), (3,), -2, 0, 1), ("batch", (2, 3, 4), (2, 3), 0, -2, -1),
    ("crossed", (3, 2, 4), (2, 3), 1, 0, 2), ("swapped", (3, 4), (2,), 1, 1, 0), ("beyond", (3, 4), (0,), 9, 0, 1), ("past_tile", (1027, 2), (2,), 0, 0, 1))] + [
    Sample("square_2048", (In((2048, 2048)), In((2048,))), {"offset": 0, "dim1": 0, "dim2": 1}, "kernel matrix with a set diagonal", "full", ("full",))]
def _outside(before: tuple[Any, ...], after: tuple[Any, ...], values: tuple[tuple[int, ...], ...], **attrs: Any) -> tuple[Bad, ...]:
    """The value behind three good ones is the bad one, of an axis of 5."""
    return tuple(Bad(f"index_{v[-1]}_of_5", (*before, In((4,), dtype="int64", values=v), *after), IndexOutOfBounds,
                     (str(v[-1]), "position 3", "5"), attrs) for v in values)


_ABOVE, _BELOW, _FAR_BELOW = (0, 1, 4, 77), (0, 1, 4, -2), (0, -5, 4, -6)
_E, _SUM = Exact(signed_zero=True), Reduction(terms=lambda x, values, *i, **a: max((s.size for s in i if s is not None), default=0) + 1,
                                              magnitude=_index_put_magnitude)
_NO_INDEX = _none(_RANK)


def _aten(*names: str, **others: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {"aten": names, **others}


op("scatter(Tensor x, int dim, Tensor index, Tensor src) -> Tensor", family="scatter", dtypes=ANY, infer=_infer_scatter, rule="same",
   reference=_scatter, budget=_E, cost=_writes, grad=_scatter_grad,
   doc="x with src written along dim at the places index names: result[index[i, j], j] = src[i, j] for dim 0.  index has x's rank and "
       "is at most as large as src, and, off dim, as x; src without axes is written everywhere.  Of several values for one place the "
       "last along dim stays.",
   samples=[*_scatter_samples("wide"), Sample("value", (In((5, 7)), _i((5, 4), 7), In(())), {"dim": 1}),
            Sample("expert_weights", _MOE[1], _MOE[2], _MOE[0], "inference", ("full", "llm"))],
   names=_aten("scatter.src", "scatter.value", onnx=("ScatterElements",), paddle=("put_along_axis",)),
   bad=(*_outside((In((5,)),), (In((4,)),), (_ABOVE, _BELOW), dim=0),
        Bad("src_smaller", (In((5, 3)), _i((4, 3), 5), In((2, 3))), ShapeError, ("src", "(4)", "(2)"), {"dim": 0}),
        Bad("dtypes", (In((5,)), _i((4,), 5), In((4,), dtype="float64")), DTypeError, ("float32", "float64"), {"dim": 0})))

op("scatter_reduce(Tensor x, int dim, Tensor index, Tensor src, {sum|prod|mean|amax|amin} reduce, *, bool include_self=true) -> Tensor",
   family="scatter", dtypes=NUMBERS, infer=_infer_scatter_reduce, rule="same", reference=_scatter_reduce, cost=_reduces,
   budget=Reduction(terms=lambda x, index, src, **_: index.size + 1, magnitude=_scatter_reduce_magnitude, probe=False),
   doc="x with src reduced along dim into the places index names, in index order; include_self false leaves out what stood there.  "
       "Extremes pass NaN on, integer means round down, float16 and bfloat16 are reduced in float32 and rounded once.",
   grad=_scatter_reduce_grad,
   samples=[*_REDUCES,
            Sample("graph_mean", (In((2000, 128)), _i((8000, 128), 2000), In((8000, 128))), {"dim": 0, "reduce": "mean", "include_self": False},
                   _GNN, "training", ("full",))],
   names=_aten("scatter_reduce.two", onnx=("ScatterElements",), paddle=("put_along_axis",)),
   bad=(*_outside((In((5,)),), (In((4,)),), (_ABOVE, _BELOW), dim=0, reduce="amax"),
        Bad("scalar_src", (In((5,)), _i((4,), 5), In(())), ShapeError, ("src", "axes"), {"dim": 0, "reduce": "sum"}),
        Bad("float_index", (In((5,)), In((4,)), In((4,))), DTypeError, ("index", "float32", "int64"), {"dim": 0, "reduce": "sum"})))

_EIGHT = ", ".join(f"Tensor? index{d}" for d in range(_RANK))
op(f"index(Tensor x, {_EIGHT}) -> Tensor", family="scatter", dtypes=ANY, infer=_infer_index, reference=_index, budget=_E, cost=_index_cost,
   samples=_INDEX_SAMPLES, grad=_index_grad, names=_aten("index.Tensor", onnx=("GatherND",), paddle=("gather_nd",)),
   doc="x at index tensors, one an axis, axes without one kept whole: result[i, ...] = x[index0[i], index1[i], ...].  They broadcast; "
       "values from -size count from the end; their axes stand in place of the indexed ones where those are neighbours, else in front.",
   bad=(*_outside((In((5, 3)),), _none(7), (_ABOVE, _FAR_BELOW)), Bad("none", (In((5,)), *_NO_INDEX), ArgumentError, ("no index tensor",)),
        Bad("axis", (In((5,)), None, _i((4,), 5), *_none(6)), ShapeError, ("index1", "(5,)")),
        Bad("shapes", (In((5, 3)), _i((4,), 5), _i((3,), 3), *_none(6)), ShapeError, ("(4,)", "(3,)", "broadcast"))))

op(f"index_put(Tensor x, Tensor values, {_EIGHT}, *, bool accumulate=false) -> Tensor", family="scatter", dtypes=ANY, infer=_infer_index_put,
   rule="same", reference=_index_put, budget=_SUM, cost=_writes, samples=_put_samples(), grad=_index_put_grad,
   names=_aten("index_put", onnx=("ScatterND",), paddle=("index_put",)),
   doc="x with values written (or added: accumulate) at index tensors, as in index, to whose result values broadcast.  Of several values "
       "for one place the last one stays; sums take them in index order, float16 and bfloat16 in float32 with one rounding.",
   bad=(*_outside((In((5, 3)), In((4, 3))), _none(7), (_ABOVE, _FAR_BELOW)),
        Bad("values", (In((5, 3)), In((2, 3)), _i((4,), 5), *_none(7)), ShapeError, ("(2, 3)", "(4, 3)", "broadcast")),
        Bad("dtypes", (In((5,)), In((4,), dtype="float64"), _i((4,), 5), *_none(7)), DTypeError, ("float32", "float64"))))

op("index_fill(Tensor x, int dim, Tensor index, Tensor value) -> Tensor", family="scatter", dtypes=ANY, infer=_infer_index_fill, rule="same",
   reference=_index_fill, budget=_E, cost=_writes, samples=_FILL_SAMPLES, grad=_index_fill_grad,
   doc="x with one value, a number or a tensor without axes, in the slices along dim that a vector of indices names; values from -size "
       "count from the end.", names=_aten("index_fill.int_Scalar", "index_fill.int_Tensor", paddle=("index_fill",)),
   bad=(*_outside((In((5, 3)),), (In(()),), (_ABOVE, _FAR_BELOW), dim=0),
        Bad("vector", (In((5, 3)), _i((4,), 5), In((4,))), ShapeError, ("value", "(4,)"), {"dim": 0})))

op("index_copy(Tensor x, int dim, Tensor index, Tensor source) -> Tensor", family="scatter", dtypes=ANY, infer=_infer_index_copy, rule="same",
   reference=_index_copy, budget=_E, cost=_writes, samples=_COPY_SAMPLES, grad=_index_copy_grad,
   doc="x with the slices along dim that a vector of indices names replaced by source's, in order; of several for one place the last "
       "stays.", names=_aten("index_copy"),
   bad=(*_outside((In((5, 3)),), (In((4, 3)),), (_ABOVE, _BELOW), dim=0),
        Bad("source_shape", (In((5, 3)), _i((4,), 5), In((3, 3))), ShapeError, ("source", "(3, 3)", "(4, 3)"), {"dim": 0})))

op("masked_scatter(Tensor x, Tensor mask, Tensor source) -> Tensor", family="scatter", dtypes=ANY, infer=_infer_masked_scatter,
   reference=_masked_scatter, budget=_E, cost=_masked_cost, samples=_MASKED, grad=_masked_scatter_grad,
   doc="x, and where mask is true the elements of source one after another, in row-major order; x and mask broadcast, source needs as many "
       "as mask selects.", names=_aten("masked_scatter"),
   bad=(Bad("source_short", (In((3,)), In((3,), "mask", "bool", values=(1, 1, 1)), In((2,))), IndexOutOfBounds, ("3 elements", "has 2")),
        Bad("mask_dtype", (In((3,)), In((3,), "int", "int32"), In((3,))), DTypeError, ("mask", "int32", "bool")),
        Bad("shapes", (In((3,)), In((4,), "mask", "bool"), In((4,))), ShapeError, ("(3,)", "(4,)"))))

op("select_scatter(Tensor x, Tensor src, int dim, int index) -> Tensor", family="scatter", dtypes=ANY, infer=_infer_select_scatter, rule="same",
   reference=_select_scatter, budget=_E, cost=_writes, samples=_SELECTED, grad=_view_grad("select_scatter"), names=_aten("select_scatter"),
   doc="x with its slice number index along dim replaced by src; index counts from the end from -size on.",
   bad=(Bad("index", (In((5, 3)), In((3,))), IndexOutOfBounds, ("5", "-5 <= index < 5"), {"dim": 0, "index": 5}),
        Bad("src", (In((5, 3)), In((5,))), ShapeError, ("(5,)", "(3,)"), {"dim": 0, "index": 0})))

op("slice_scatter(Tensor x, Tensor src, int dim=0, int? start=None, int? end=None, int step=1) -> Tensor", family="scatter", dtypes=ANY,
   infer=_infer_slice_scatter, rule="same", reference=_slice_scatter, budget=_E, cost=_writes, samples=_SLICED, grad=_view_grad("slice_scatter"),
   doc="x with its slices start to end, every step-th, along dim replaced by src; start and end as in Python.", names=_aten("slice_scatter"),
   bad=(Bad("step", (In((5, 3)), In((5, 3))), ArgumentError, ("step 0", "1 or more"), {"step": 0}),
        Bad("src", (In((5, 3)), In((2, 3))), ShapeError, ("(2, 3)", "(3, 3)"), {"start": 2})))

op("diagonal_scatter(Tensor x, Tensor src, int offset=0, int dim1=0, int dim2=1) -> Tensor", family="scatter", dtypes=ANY,
   infer=_infer_diagonal_scatter, rule="same", reference=_diagonal_scatter, budget=_E, cost=_writes, samples=_DIAGONALS,
   grad=_view_grad("diagonal_scatter"), names=_aten("diagonal_scatter"),
   doc="x with the diagonal of axes dim1 and dim2, offset above the main one, replaced by src, whose last axis runs along it.",
   bad=(Bad("axes", (In((3, 3)), In((3,))), ShapeError, ("dim1 0", "dim2 -2"), {"dim2": -2}),
        Bad("src", (In((3, 4)), In((4,))), ShapeError, ("(4,)", "(3,)"))))
