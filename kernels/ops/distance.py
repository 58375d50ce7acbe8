"""Distances between points: cdist (of two sets), pdist (within one).  How: kernels/cpu/distance.c, kernels/triton/distance.py."""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Conditioned
from .gradient import unbroadcast, zeros
from .infer import broadcast, need, need_dtype, need_rank, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op

_INF = float("inf")


def _infer_cdist(x1: Spec, x2: Spec, *, p: float, compute_mode: int | None) -> Spec:
    need_dtype("cdist", "x1", x1, FLOATS)
    same_dtype("cdist", x1, x2)
    need(p >= 0, f"cdist: p is {p:g}; needs 0 or more")
    if x1.ndim < 2 or x2.ndim < 2 or x1.shape[-1] != x2.shape[-1]:
        raise ShapeError(f"cdist: x1 is {x1.shape} and x2 {x2.shape}; both need (..., points, length) with one length")
    return Spec((*broadcast("cdist", x1.shape[:-2], x2.shape[:-2]), x1.shape[-2], x2.shape[-2]), x1.dtype)


def _infer_pdist(x: Spec, *, p: float) -> Spec:
    need_dtype("pdist", "x", x, FLOATS)
    need_rank("pdist", "x", x, 2)
    need(p >= 0, f"pdist: p is {p:g}; needs 0 or more")
    return Spec((x.shape[0] * (x.shape[0] - 1) // 2,), x.dtype)


def _distance(a, b, p):
    """Of points in the last axis."""
    with np.errstate(all="ignore"):
        if p == 0:
            return ((a != b) * 1.0).sum(axis=-1)
        d = np.abs(a - b)
        if p == _INF:
            return d.max(axis=-1, initial=0.0)
        if p == 1:
            return d.sum(axis=-1)
        return np.sqrt((d * d).sum(axis=-1)) if p == 2 else (d**p).sum(axis=-1) ** (1 / p)


def _cdist(x1, x2, *, p, compute_mode):
    return _distance(x1[..., :, None, :], x2[..., None, :, :], p)


def _pdist(x, *, p):
    i, j = np.triu_indices(x.shape[0], 1)
    return _distance(x[i], x[j], p)


def _cdist_grad(o, dy, inputs, y, attrs):
    """Through the differences, which are formed here; 0 where a distance is, as aten takes it."""
    x1, x2 = inputs
    p, none = attrs["p"], zeros(o, (), x1.dtype)
    if p == 0:
        return zeros(o, x1.shape, x1.dtype), zeros(o, x2.shape, x2.dtype)
    d = o.sub(x1.reshape((*x1.shape[:-1], 1, x1.shape[-1])), x2.reshape((*x2.shape[:-2], 1, *x2.shape[-2:])))
    whole, g = (t.reshape((*t.shape, 1)) for t in (y, dy))
    size = o.abs(d)
    if p == _INF:
        part = o.where(o.eq(size, whole), g, none)
    elif p == 1:
        part = g
    else:
        ratio = o.masked_fill(o.div(size, whole), o.eq(whole, none), value=0.0)
        part = o.mul(g, ratio if p == 2 else o.pow(ratio, o.full((), p - 1, dtype=x1.dtype)))
    each = o.mul(o.sign(d), part)
    lead = each.ndim - 3
    first, second = o.sum(each, (lead + 1,), False), o.neg(o.sum(each, (lead,), False))
    return unbroadcast(o, first, x1.shape), unbroadcast(o, second, x2.shape)


def _cost_cdist(item: int, x1: Spec, x2: Spec, **attrs: Any) -> Cost:
    y = _infer_cdist(x1, x2, **attrs)
    return Cost(flops=3 * y.size * x1.shape[-1], bytes=item * (x1.size + x2.size + y.size))


def _cost_pdist(item: int, x: Spec, **attrs: Any) -> Cost:
    y = _infer_pdist(x, **attrs)
    return Cost(flops=3 * y.size * x.shape[-1], bytes=item * (x.size + y.size))


def _terms(x: Spec, *_: Any, **__: Any) -> int:
    return x.shape[-1]


# x1, x2, p: 1s, primes, one past a panel of 64 points, of 64 rows, of 256 coordinates, batches, zero sizes
_PAIRS = (("one", (1, 1), (1, 1), 2.0), ("prime", (7, 5), (13, 5), 2.0), ("past_panel", (3, 7), (65, 7), 2.0), ("past_rows", (67, 3), (5, 3), 1.0),
          ("deep", (5, 259), (6, 259), 2.0), ("batch", (2, 1, 5, 3), (3, 4, 3), 2.0), ("largest", (9, 17), (33, 17), _INF),
          ("unequal", (9, 17), (33, 17), 0.0), ("cubes", (9, 17), (33, 17), 3.0), ("half", (5, 6), (7, 6), 0.5), ("deep_largest", (2, 300), (3, 300), _INF),
          ("no_coordinates", (3, 0), (4, 0), 2.0), ("no_points", (0, 5), (4, 5), 1.0))

op("cdist(Tensor x1, Tensor x2, float p=2.0, int? compute_mode=None) -> Tensor", family="distance", dtypes=FLOATS, infer=_infer_cdist,
   reference=_cdist, budget=Conditioned(k=4, terms=_terms), cost=_cost_cdist, grad=_cdist_grad,
   samples=[*(Sample(n, (In(a), In(b)), {"p": p}) for n, a, b, p in _PAIRS),
            Sample("equal_points", (In((2, 3), values=(1, 2, 3, 4, 5, 6)), In((2, 3), values=(4, 5, 6, 1, 2, 3.5))), {}),
            Sample("pointnet", (In((4, 512, 3)), In((4, 128, 3))), {}, "PointNet++ ball query, 512 points", "inference", ("full",)),
            Sample("sentences", (In((64, 384)), In((2048, 384))), {}, "MiniLM sentence vectors, 64 queries", "inference", ("full",))],
   bad=(Bad("lengths", (In((3, 4)), In((3, 5))), ShapeError, ("(3, 4)", "(3, 5)", "one length")),
        Bad("vector", (In((4,)), In((3, 4))), ShapeError, ("(4,)", "(..., points, length)")),
        Bad("p_-1", (In((3, 4)), In((3, 4))), ArgumentError, ("p is -1",), {"p": -1.0}),
        Bad("dtypes", (In((3, 4)), In((3, 4), dtype="float64")), DTypeError, ("float32", "float64"))),
   doc="p-norms of the differences between the points of x1 (..., P, M) and of x2 (..., R, M): (..., P, R), batches broadcast; p 0 counts unequal "
       "coordinates, inf takes the largest difference.  compute_mode is aten's and changes nothing: differences are always formed.",
   names={"aten": ("_cdist_forward",), "paddle": ("cdist",)})

op("pdist(Tensor x, float p=2.0) -> Tensor", family="distance", dtypes=FLOATS, infer=_infer_pdist, reference=_pdist,
   budget=Conditioned(k=4, terms=_terms), cost=_cost_pdist,
   samples=[*(Sample(n, (In(s),), {"p": p}) for n, s, p in (
       ("two", (2, 1), 2.0), ("prime", (7, 5), 2.0), ("past_panel", (66, 7), 2.0), ("past_rows", (131, 3), 1.0), ("largest", (33, 17), _INF),
       ("unequal", (9, 17), 0.0), ("cubes", (33, 5), 3.0), ("one_point", (1, 4), 2.0), ("no_points", (0, 5), 1.0), ("no_coordinates", (3, 0), 2.0))),
            Sample("sentences", (In((512, 384)),), {}, "MiniLM sentence vectors", "inference", ("full",))],
   bad=(Bad("vector", (In((4,)),), ShapeError, ("(4,)", "2 axes")), Bad("p_-1", (In((3, 4)),), ArgumentError, ("p is -1",), {"p": -1.0}),
        Bad("int32", (In((3, 4), "int"),), DTypeError, ("int32", "float32"), dtype="int32")),
   doc="cdist of the rows of x (N, M) among themselves, pairs i < j in row-major order: (N (N - 1) / 2,).",
   names={"aten": ("_pdist_forward",), "paddle": ("pdist",)})
