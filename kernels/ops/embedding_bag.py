"""embedding_bag: sums, means and maxima of bags of an embedding's rows, what it is.

How it is computed: kernels/cpu/embedding_bag.c, kernels/triton/embedding_bag.py.  Not here: embedding itself (index.py).
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, IndexOutOfBounds, ShapeError
from .budget import Reduction
from .gradient import zeros
from .index import _need_index, check_bounds
from .infer import need, need_dtype, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op

_I64 = BY_NAME["int64"]


def _infer_embedding_bag(weight: Spec, indices: Spec, offsets: Spec, per_sample_weights: Spec | None, *, mode: str,
                         include_last_offset: bool, padding_idx: int) -> tuple[Spec, ...]:
    name = "embedding_bag"
    need_dtype(name, "weight", weight, FLOATS)
    _need_index(name, "indices", indices)
    same_dtype(name, indices, offsets)
    if (weight.ndim, indices.ndim, offsets.ndim) != (2, 1, 1):
        raise ShapeError(f"{name}: weight is {weight.shape}, indices {indices.shape}, offsets {offsets.shape}; needs 2, 1 and 1 axes")
    if per_sample_weights is not None:
        same_dtype(name, weight, per_sample_weights)
        need(mode == "sum", f"{name}: per_sample_weights came with mode {mode}; needs mode sum")
        if per_sample_weights.shape != indices.shape:
            raise ShapeError(f"{name}: per_sample_weights is {per_sample_weights.shape} and indices {indices.shape}; they must be equal")
    if include_last_offset and not offsets.size:
        raise ShapeError(f"{name}: offsets is empty; include_last_offset needs one at least")
    bags = offsets.size - include_last_offset
    y = (bags, weight.shape[1])
    return (Spec(y, weight.dtype), Spec(indices.shape, indices.dtype), Spec((bags,), indices.dtype),
            Spec(y if mode == "max" else (0,), indices.dtype))


def _embedding_bag(weight, indices, offsets, per_sample_weights, *, mode, include_last_offset, padding_idx):
    name, n = "embedding_bag", indices.size
    check_bounds(name, "indices", indices, weight.shape[0])
    before = 0
    for i, at in enumerate(offsets):
        if not before <= at <= n or (i == 0 and at):
            raise IndexOutOfBounds(f"{name}: offset {at} at position {i}; needs offsets that begin with 0, do not fall and end within "
                                   f"{n} indices")
        before = at
    ends = offsets[1:] if include_last_offset else np.append(offsets[1:], n)
    bags = len(offsets) - include_last_offset
    y = np.zeros((bags, weight.shape[1]), weight.dtype)
    bag = np.full(n, bags, indices.dtype)
    size = np.zeros(bags, indices.dtype)
    top = np.full(y.shape, -1, indices.dtype)
    for b in range(bags):
        part = slice(int(offsets[b]), int(ends[b]))
        bag[part] = b
        keep = indices[part] != padding_idx
        rows = indices[part][keep]
        size[b] = len(rows)
        if not len(rows):
            continue
        scale = 1 if per_sample_weights is None else per_sample_weights[part][keep][:, None]
        if mode == "max":  # aten's loop: a NaN stays only where it comes first
            y[b], top[b] = weight[rows[0]], rows[0]
            for r in rows[1:]:
                more = weight[r] > y[b]
                y[b], top[b] = np.where(more, weight[r], y[b]), np.where(more, r, top[b])
        else:
            y[b] = (weight[rows] * scale).sum(0) / (len(rows) if mode == "mean" else 1)
    return y, bag, size, top if mode == "max" else np.zeros(0, indices.dtype)


def _bag_magnitude(weight, indices, offsets, per_sample_weights, **attrs):
    p = None if per_sample_weights is None else np.abs(per_sample_weights)
    return (_embedding_bag(np.abs(weight), indices, offsets, p, **attrs)[0], None, None, None)


def _bytes(*specs: Spec | None) -> int:
    return sum(s.size * s.dtype.itemsize for s in specs if s is not None)


def _bag_cost(item: int, weight: Spec, indices: Spec, offsets: Spec, scale: Spec | None, **a: Any) -> Cost:
    out = _infer_embedding_bag(weight, indices, offsets, scale, **a)
    rows = indices.size * weight.shape[1]
    return Cost(flops=rows, bytes=rows * weight.dtype.itemsize + _bytes(indices, offsets, scale, *out))


def _embedding_bag_grad(o, dy, inputs, y, attrs):
    weight, indices, offsets, scale = inputs
    _, bag, size, top = y
    v, d = weight.shape
    if attrs["mode"] == "max":  # an empty bag has top -1: one more row takes it
        row = o.where(o.lt(top, o.full((), 0.0, dtype=top.dtype)), o.full((), float(v), dtype=top.dtype), top)
        dw = o.scatter_add(zeros(o, (v + 1, d), dy.dtype), 0, row, dy)
        return o.index_select(dw, 0, o.arange(0.0, float(v), 1.0, dtype=_I64)), None, None, None
    if attrs["mode"] == "mean":
        n = o.maximum(o.cast(size, dtype=dy.dtype), o.full((), 1.0, dtype=dy.dtype))
        dy = o.div(dy, n.reshape((size.shape[0], 1)))
    rows = o.embedding(o.constant_pad_nd(dy, (0, 0, 0, 1), 0.0), bag)  # indices behind the last bag have number `bags`
    scaled = rows if scale is None else o.mul(rows, scale.reshape((scale.shape[0], 1)))
    dw = o.embedding_dense_backward(scaled, indices, v, attrs["padding_idx"])
    if scale is None:
        return dw, None, None, None
    ds = o.sum(o.mul(rows, o.embedding(weight, indices)), -1)
    pad = o.eq(indices, o.full((), float(attrs["padding_idx"]), dtype=indices.dtype))
    return dw, None, None, o.masked_fill(ds, pad, value=0.0)


# name, weight, indices, offsets, mode, weighted, include_last_offset, padding_idx
_BAGS: tuple[tuple[str, tuple[int, int], int, tuple[int, ...], str, bool, bool, int], ...] = (
    ("sum", (11, 7), 9, (0, 4, 4, 7), "sum", False, False, -1), ("weighted", (11, 7), 9, (0, 3, 5), "sum", True, False, -1),
    ("mean", (11, 7), 9, (0, 4, 4, 7), "mean", False, False, -1), ("max", (11, 7), 9, (0, 4, 4, 7), "max", False, False, -1),
    ("last_offset", (5, 3), 7, (0, 2, 6), "mean", False, True, -1), ("padding", (3, 5), 20, (0, 5, 11), "mean", False, False, 1),
    ("padding_max", (3, 5), 20, (0, 5, 11), "max", False, False, 2), ("padding_weighted", (3, 5), 20, (0, 5), "sum", True, False, 0),
    ("no_indices", (5, 3), 0, (0, 0), "max", False, False, -1), ("no_bags", (5, 3), 0, (), "sum", False, False, -1),
    ("no_columns", (5, 0), 4, (0, 2), "sum", False, False, -1), ("one", (1, 1), 1, (0,), "sum", False, False, -1),
    ("past_tile", (5, 1027), 6, (0, 1), "max", False, False, -1), ("past_block", (4, 515), 5, (0, 3), "sum", False, False, -1))
_BAG_SAMPLES = [Sample(n, (In(w), In((k,), "index", "int32" if n == "mean" else "int64", w[0]),
                           In((len(o),), dtype="int32" if n == "mean" else "int64", values=o), In((k,)) if weighted else None),
                       {"mode": mode, "include_last_offset": last, "padding_idx": pad}) for n, w, k, o, mode, weighted, last, pad in _BAGS] + [
    Sample("dlrm_bags", (In((10000, 128)), In((8192,), "index", "int64", 10000), In((2048,), dtype="int64", values=tuple(range(0, 8192, 4))), None), {"mode": "sum"},
           "DLRM, one table, batch 2048, 4 look-ups a sample", "inference", ("full",))]


_BAG_IN = (In((5, 3)), In((4,), dtype="int64", values=(0, 1, 4, 2)))
op("embedding_bag(Tensor weight, Tensor indices, Tensor offsets, {sum|mean|max} mode=sum, Tensor? per_sample_weights=None, "
   "bool include_last_offset=false, int padding_idx=-1) -> (Tensor output, Tensor offset2bag, Tensor bag_size, Tensor max_indices)",
   family="embedding_bag", dtypes=FLOATS, infer=_infer_embedding_bag, reference=_embedding_bag, cost=_bag_cost, samples=_BAG_SAMPLES,
   budget=Reduction(terms=lambda w, i, *_, **__: i.size + 1, magnitude=_bag_magnitude, probe=False), grad=_embedding_bag_grad,
   names={"aten": ("_embedding_bag",), "paddle": ("embedding_bag",)},
   doc="Bags of rows of weight (V, D) reduced: bag b is indices[offsets[b]:offsets[b + 1]], without padding_idx; output (bags, D), 0 for an "
       "empty one.  offset2bag (n): each index's bag; bag_size (bags): rows without padding; max_indices (bags, D) in mode max: the first "
       "row of each largest value, -1 in an empty bag, else nothing.  include_last_offset: the last offset ends the last bag.",
   bad=(Bad("index_77_of_5", (In((5, 3)), In((4,), dtype="int64", values=(0, 1, 77, 4)), In((1,), dtype="int64", values=(0,)), None), IndexOutOfBounds,
            ("77", "position 2", "5")),
        Bad("offsets", (*_BAG_IN, In((3,), dtype="int64", values=(0, 3, 2)), None), IndexOutOfBounds, ("offset 2", "position 2")),
        Bad("first_offset", (*_BAG_IN, In((2,), dtype="int64", values=(1, 2)), None), IndexOutOfBounds, ("offset 1", "position 0")),
        Bad("weighted_mean", (*_BAG_IN, In((1,), dtype="int64", values=(0,)), In((4,))), ArgumentError, ("per_sample_weights", "mean"), {"mode": "mean"})))
