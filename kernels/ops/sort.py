"""sort, argsort, topk, kthvalue: what they are.  How they are computed: kernels/cpu/sort.c, kernels/triton/sort.py.

The order: NaN is larger than every number, -0 equals 0, and of equal elements the first one comes first.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import DTypeError, ShapeError
from .budget import Index
from .gradient import zeros
from .infer import axis, need_dtype, reduced
from .record import ANY, NUMBERS, Bad, Cost, In, Sample, Spec, op

_INT64 = BY_NAME["int64"]


def _infer_sort(x: Spec, *, dim: int, descending: bool) -> tuple[Spec, Spec]:
    need_dtype("sort", "x", x, ANY)
    axis("sort", dim, x.ndim)
    return x, Spec(x.shape, _INT64)


def _infer_argsort(x: Spec, *, dim: int, descending: bool) -> Spec:
    need_dtype("argsort", "x", x, ANY)
    axis("argsort", dim, x.ndim)
    return Spec(x.shape, _INT64)


def _infer_topk(x: Spec, *, k: int, dim: int, largest: bool, sorted: bool) -> tuple[Spec, Spec]:
    need_dtype("topk", "x", x, NUMBERS)
    d = axis("topk", dim, x.ndim)
    n = x.shape[d] if x.ndim else 1
    if not (0 if x.ndim else 1) <= k <= n:
        raise ShapeError(f"topk: k is {k} for an axis of {n}; needs {0 if x.ndim else 1} <= k <= {n}")
    shape = (*x.shape[:d], k, *x.shape[d + 1:]) if x.ndim else ()
    return Spec(shape, x.dtype), Spec(shape, _INT64)


def _infer_kthvalue(x: Spec, *, k: int, dim: int, keepdim: bool) -> tuple[Spec, Spec]:
    need_dtype("kthvalue", "x", x, NUMBERS)
    d = axis("kthvalue", dim, x.ndim)
    n = x.shape[d] if x.ndim else 1
    if not 1 <= k <= n:
        raise ShapeError(f"kthvalue: k is {k} for an axis of {n}; needs 1 <= k <= {n}")
    shape = reduced(x.shape, (d,), keepdim) if x.ndim else ()
    return Spec(shape, x.dtype), Spec(shape, _INT64)


def _vector(x):
    return x.reshape(1) if x.ndim == 0 else x


def order(x: np.ndarray, dim: int, descending: bool) -> np.ndarray:
    """Indices that sort x along dim, of x's shape."""
    v = _vector(x)
    if descending:  # the stable order of the reversed line, read backwards
        n = v.shape[dim]
        return np.flip(n - 1 - np.argsort(np.flip(v, dim), axis=dim, kind="stable"), dim).reshape(x.shape)
    return np.argsort(v, axis=dim, kind="stable").reshape(x.shape)


def _picked(x, at, dim):
    return np.take_along_axis(_vector(x), _vector(at), dim).reshape(at.shape)


def _sort(x, *, dim, descending):
    at = order(x, dim, descending)
    return _picked(x, at, dim), at


def _topk(x, *, k, dim, largest, sorted):
    at = _vector(order(x, dim, largest))
    at = np.take(at, range(k), axis=dim)
    at = at if x.ndim else at.reshape(())
    return _picked(x, at, dim), at


def _kthvalue(x, *, k, dim, keepdim):
    at = np.take(_vector(order(x, dim, False)), [k - 1], axis=dim)
    values = np.take_along_axis(_vector(x), at, dim)
    if x.ndim and keepdim:
        return values, at
    shape = [n for i, n in enumerate(values.shape) if i != dim % values.ndim]
    return values.reshape(shape), at.reshape(shape)


def _cost(infer, passes=4):
    """passes: comparisons an element, and how often a long row goes through memory."""
    def cost(item: int, x: Spec, **attrs: Any) -> Cost:
        made = infer(x, **attrs)
        return Cost(flops=passes * x.size, bytes=x.size * x.dtype.itemsize + sum(
            y.size * y.dtype.itemsize for y in (made if isinstance(made, tuple) else (made,))))

    return cost


def _scattered(o, dy, inputs, y, attrs):
    return (o.scatter_add(zeros(o, inputs[0].shape, dy.dtype), attrs["dim"], y[1], dy),)


def _kth_grad(o, dy, inputs, y, attrs):
    x, d = inputs[0], attrs["dim"]
    if x.ndim == 0:
        return (o.copy(dy),)
    shape = reduced(x.shape, (d % x.ndim,), True)
    return (o.scatter_add(zeros(o, x.shape, dy.dtype), d, y[1].reshape(shape), dy.reshape(shape)),)


# name, shape, dim: the host kernel sorts 40 elements by insertion, up to 4096 by digits of 8 bits, from 16384 on in shares; a device
# block holds 512
_SHAPES = (("scalar", (), 0), ("one", (1,), -1), ("prime", (7, 13), 1), ("past_insertion", (5, 41), -1), ("past_block", (2, 1030), -1),
           ("past_short", (1, 4099), 1), ("first", (67, 4), 0), ("inner", (3, 33, 5), 1), ("long", (16387,), 0),
           ("empty_rows", (0, 5), 1), ("empty_axis", (4, 0), 1))
_NAN, _INF = float("nan"), float("inf")
_ROWS = (_NAN, 3, -0.0, _INF, 0, _NAN, -_INF, 3, 1, -0.0, 0, 2)
_NANS = In((2, 12), dtype="float32", values=_ROWS + _ROWS[::-1])
_TIES = In((3, 600), dtype="float32", values=tuple((i * i * 7) % 23 // 4 * 1.0 for i in range(1799)) + (_NAN,))
_SPREAD = tuple((i * i * 7) % 599 * 1.0 for i in range(1799)) + (_INF,)  # where a result is infinite, slopes are not asked for
_DESCENDING = ("prime", "past_insertion", "first", "past_short")


def _samples():
    return [*(Sample(n, (In(s, "wide"),), {"dim": d}) for n, s, d in _SHAPES),
            *(Sample(f"{n}_descending", (In(s, "wide"),), {"dim": d, "descending": True}) for n, s, d in _SHAPES if n in _DESCENDING),
            Sample("nan", (_NANS,), {"dim": 1}), Sample("nan_descending", (_NANS,), {"dim": 1, "descending": True}),
            Sample("ties", (_TIES,), {"dim": 1}), Sample("ties_descending", (_TIES,), {"dim": 1, "descending": True}),
            Sample("nucleus", (In((8, 32000)),), {"dim": -1, "descending": True}, "Llama-7B nucleus sampling", "llm", ("full", "llm")),
            Sample("million", (In((1000000,)),), {"dim": -1}, "", "full", ("full",))]


# name, shape, k, dim, largest
_TOPK = (("scalar", (), 1, 0, True), ("one", (1,), 1, -1, False), ("prime", (7, 13), 3, 1, True), ("past_insertion", (5, 41), 5, -1, False),
         ("few_of_many", (2, 4099), 7, -1, True), ("smallest", (1, 5003), 50, 1, False), ("half", (3, 1030), 515, 1, True),
         ("merged", (1, 4100), 600, 1, True), ("first", (67, 5), 4, 0, True), ("inner", (3, 33, 5), 33, 1, False), ("none", (3, 5), 0, 1, True),
         ("empty_rows", (0, 5), 2, 1, True))
_KTH = (("scalar", (), 1, 0, False), ("one", (1,), 1, -1, True), ("prime", (7, 13), 5, 1, False), ("past_block", (2, 1030), 17, -1, True),
        ("median", (3, 1031), 516, -1, False), ("first", (67, 5), 67, 0, False), ("inner", (3, 33, 5), 1, 1, True),
        ("empty_rows", (0, 5), 2, 1, False))
_ASCENDING = In((1, 3000), dtype="float32", values=tuple(float(i) for i in range(2999)) + (_NAN,))


def _topk_samples():
    return [*(Sample(n, (In(s, "wide" if n != "first" else "normal"),), {"k": k, "dim": d, "largest": up}) for n, s, k, d, up in _TOPK),
            Sample("nan", (_NANS,), {"k": 5, "dim": 1}), Sample("nan_smallest", (_NANS,), {"k": 11, "dim": 1, "largest": False}),
            Sample("ties", (_TIES,), {"k": 100, "dim": 1}), Sample("ascending", (_ASCENDING,), {"k": 9, "dim": 1}),
            Sample("unsorted", (In((3, 600), dtype="float32", values=_SPREAD),), {"k": 9, "dim": 1, "sorted": False}),
            Sample("vocabulary", (In((1, 32000)),), {"k": 50}, "Llama-7B sampling", "llm", ("full", "llm")),
            Sample("experts", (In((512, 128)),), {"k": 8}, "Qwen3-MoE router", "llm", ("full", "llm")),
            Sample("vocabulary_128", (In((128, 32000)),), {"k": 50}, "Llama-7B sampling, 128 rows", "full", ("full",))]


_X = (In((3, 4)),)
_BAD_DIM = Bad("dim_2_of_2", _X, ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim": 2})

op("sort(Tensor x, int dim=-1, bool descending=false) -> (Tensor values, Tensor indices)", family="sort", dtypes=ANY,
   infer=_infer_sort, reference=_sort, budget=Index(stable=True), cost=_cost(_infer_sort), samples=_samples(), grad=_scattered,
   doc="The elements of each line along dim in ascending (descending) order, and where they stood (int64).  Equal elements keep "
       "their order; NaN counts as larger than every number, -0 as 0.",
   bad=(_BAD_DIM,), names={"aten": ("sort", "sort.stable"), "paddle": ("sort",)})

op("argsort(Tensor x, int dim=-1, bool descending=false) -> Tensor", family="sort", dtypes=ANY, infer=_infer_argsort,
   reference=lambda x, *, dim, descending: order(x, dim, descending), budget=Index(stable=True), cost=_cost(_infer_argsort),
   samples=[s for s in _samples() if s.name not in ("scalar", "past_short_descending", "nan", "past_insertion", "first_descending")],
   doc="Where the elements of each line along dim stand in ascending (descending) order, int64; the indices of sort without its values.",
   bad=(_BAD_DIM,), names={"paddle": ("argsort",)})

op("topk(Tensor x, int k, int dim=-1, bool largest=true, bool sorted=true) -> (Tensor values, Tensor indices)", family="sort",
   dtypes=NUMBERS, infer=_infer_topk, reference=_topk, budget=Index(stable=False), cost=_cost(_infer_topk, 2), samples=_topk_samples(),
   doc="The k largest (smallest) elements of each line along dim and where they stand (int64), the best first; without sorted their "
       "order is open.  Which of equal elements are taken is open; NaN counts as larger than every number.", grad=_scattered,
   bad=(Bad("dim_2_of_2", _X, ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim": 2, "k": 1}),
        Bad("k_5_of_4", _X, ShapeError, ("k is 5", "axis of 4"), {"k": 5}), Bad("k_negative", _X, ShapeError, ("k is -1",), {"k": -1}),
        Bad("bool", (In((3, 4), "mask"),), DTypeError, ("bool", "accepts"), {"k": 1}, dtype="bool")),
   names={"aten": ("topk",), "onnx": ("TopK",), "paddle": ("topk",)})

op("kthvalue(Tensor x, int k, int dim=-1, bool keepdim=false) -> (Tensor values, Tensor indices)", family="sort", dtypes=NUMBERS,
   infer=_infer_kthvalue, reference=_kthvalue, budget=Index(stable=False), cost=_cost(_infer_kthvalue, 2), grad=_kth_grad,
   doc="The k-th smallest element (from 1 on) of each line along dim and where it stands (int64); NaN counts as larger than every "
       "number; which of equal elements is named is open.",
   samples=[*(Sample(n, (In(s, "wide"),), {"k": k, "dim": d, "keepdim": keep}) for n, s, k, d, keep in _KTH),
            Sample("nan", (_NANS,), {"k": 11, "dim": 1}),
            Sample("quantile", (In((64, 1000)),), {"k": 950}, "95th percentile of 1000 latencies", "inference", ("full",))],
   bad=(Bad("k_0", _X, ShapeError, ("k is 0", "axis of 4"), {"k": 0}), Bad("k_5_of_4", _X, ShapeError, ("k is 5", "axis of 4"), {"k": 5}),
        Bad("dim_2_of_2", _X, ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim": 2, "k": 1})),
   names={"aten": ("kthvalue",), "paddle": ("kthvalue",)})
