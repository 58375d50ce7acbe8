"""cumsum, cumprod, cummax, cummin, logcumsumexp: what they are.

How they are computed: kernels/cpu/scan.c, kernels/triton/scan.py.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import DTypeError, ShapeError
from .budget import Conditioned, Index, Reduction
from .gradient import zeros
from .infer import axis, need_dtype
from .record import ANY, FLOATS, Bad, Cost, In, Sample, Spec, op

_INT64 = BY_NAME["int64"]


def _accumulated(name):
    """A sum or product: integers and bools give int64; an explicit dtype must be able to hold the input."""
    def infer(x: Spec, *, dim: int, dtype: Any) -> Spec:
        need_dtype(name, "x", x, ANY)
        axis(name, dim, x.ndim)
        own = x.dtype if x.dtype.is_floating else _INT64
        if dtype is None or dtype is own:
            return Spec(x.shape, own)
        if not dtype.is_floating or dtype.itemsize < max(4, x.dtype.itemsize if x.dtype.is_floating else 4):
            raise DTypeError(f"{name}: dtype {dtype} for a {x.dtype} input; needs {own} or a wider floating dtype; cast "
                             "the result")
        return Spec(x.shape, dtype)

    return infer


def _like_x(name):
    def infer(x: Spec, *, dim: int) -> Spec:
        need_dtype(name, "x", x, FLOATS)
        axis(name, dim, x.ndim)
        return x

    return infer


def _with_indices(name):
    def infer(x: Spec, *, dim: int) -> tuple[Spec, Spec]:
        need_dtype(name, "x", x, ANY)
        axis(name, dim, x.ndim)
        return x, Spec(x.shape, _INT64)

    return infer


def _vector(x):
    return x.reshape(1) if x.ndim == 0 else x


def _running(fold):
    def reference(x, *, dim, dtype):
        acc = np.float64 if x.dtype.kind == "f" or (dtype and dtype.is_floating) else np.int64
        with np.errstate(all="ignore"):
            return fold(_vector(x).astype(acc) if x.dtype.kind != "f" else _vector(x), axis=dim).reshape(x.shape)

    return reference


def _logcumsumexp(x, *, dim):
    with np.errstate(all="ignore"):
        return np.logaddexp.accumulate(_vector(x), axis=dim).reshape(x.shape)


def _running_extreme(better):
    """better(a, b): whether b takes the place of a; of equals the last one does, and a NaN of anything."""
    def reference(x, *, dim):
        v = np.moveaxis(_vector(x), dim, 0)
        values, at = np.empty(v.shape, v.dtype), np.zeros(v.shape, np.int64)
        best, place = None, np.zeros(v.shape[1:], np.int64)
        for i, row in enumerate(v):
            if best is None:
                best = np.array(row)
            else:
                take = (better(best, row) & (best == best)) | (row != row)
                best, place = np.where(take, row, best), np.where(take, i, place)
            values[i], at[i] = best, place
        return tuple(np.moveaxis(a, 0, dim).reshape(x.shape) for a in (values, at))

    return reference


def _length(x: Spec, *, dim: int, **_: Any) -> int:
    return x.shape[dim] if x.ndim else 1


def _cost(infer, per_element=1):
    def cost(item: int, x: Spec, **attrs: Any) -> Cost:
        made = infer(x, **attrs)
        return Cost(flops=per_element * x.size, bytes=x.size * x.dtype.itemsize + sum(
            y.size * y.dtype.itemsize for y in (made if isinstance(made, tuple) else (made,))))

    return cost


# ---- gradients ---------------------------------------------------------------------------------------------------------
def _backwards(o, x, dim):
    """x with the order along dim reversed."""
    if x.ndim == 0:
        return x
    return o.index_select(x, dim, o.arange(x.shape[dim] - 1, -1, -1, dtype=_INT64))


def _after(o, x, dim):
    """At each place the sum of x from there to the end of dim."""
    return _backwards(o, o.cumsum(_backwards(o, x, dim), dim), dim)


def _cast(o, x, dtype):
    return x if x.dtype is dtype else o.cast(x, dtype=dtype)


def _cumsum_grad(o, dy, inputs, y, attrs):
    return (_cast(o, _after(o, dy, attrs["dim"]), inputs[0].dtype),)


def _cumprod_grad(o, dy, inputs, y, attrs):
    """Behind the first 0 of a line nothing counts; at it, products leave it out; before it, y / x does."""
    x, dim = inputs[0], attrs["dim"]
    wide = _cast(o, x, dy.dtype)
    zero = o.eq(wide, zeros(o, (), dy.dtype))
    seen = o.cumsum(zero, dim)
    one = o.full((), 1, dtype=_INT64)
    first = o.logical_and(zero, o.eq(seen, one))
    without = o.where(first, o.full((), 1.0, dtype=dy.dtype), wide)
    at_first = _after(o, o.mul(dy, o.cumprod(without, dim)), dim)
    safe = o.where(zero, o.full((), 1.0, dtype=dy.dtype), wide)
    before = o.where(o.ge(seen, one), zeros(o, (), dy.dtype), o.div(_after(o, o.mul(dy, y), dim), safe))
    return (_cast(o, o.where(first, at_first, before), x.dtype),)


def _logcumsumexp_grad(o, dy, inputs, y, attrs):
    """exp(x) times the sum from there on of dy exp(-y), the positive and the negative part of dy apart, as logarithms."""
    x, dim = inputs[0], attrs["dim"]
    none = zeros(o, (), dy.dtype)

    def part(d):
        logs = _backwards(o, o.sub(o.log(o.maximum(d, none)), y), dim)
        return o.exp(o.add(_backwards(o, o.logcumsumexp(logs, dim), dim), x))

    return (o.sub(part(dy), part(o.neg(dy))),)


def _extreme_grad(o, dy, inputs, y, attrs):
    return (o.scatter_add(zeros(o, inputs[0].shape, dy.dtype), attrs["dim"], y[1], dy),)


# ---- samples -------------------------------------------------------------------------------------------------------------
# name, shape, dim: a chunk of the host kernel is 2048 values, a strip 1024 columns, a block 32768; a device block 1024
_SHAPES = (("scalar", (), 0), ("one", (1,), 0), ("prime", (7, 13), 1), ("past_chunk", (2, 2051), -1), ("first", (129, 4), 0),
           ("inner", (3, 33, 17), 1), ("columns", (3, 1027), 0), ("empty_rows", (0, 5), 1), ("empty_axis", (4, 0), 1))
_LONG = ("long", (66003,), 0)
_SQUARES = (("square_last", (4096, 4096), -1), ("square_first", (4096, 4096), 0))
_TOP_P = ("top_p", (8, 32000), -1, "Llama-7B nucleus sampling: sums of sorted probabilities", "llm", ("full", "llm"))


def _samples(draw, long=False, bench=True):
    ugly = [Sample(n, (In(s, draw),), {"dim": d}) for n, s, d in (*_SHAPES, *((_LONG,) if long else ()))]
    return ugly + ([Sample(n, (In(s, draw),), {"dim": d}, "", "full", ("full",)) for n, s, d in _SQUARES] if bench else [])


_NAN, _INF = float("nan"), float("inf")
_FEW = (*((i * i * 7 + i * 3) % 23 // 5 * 1.0 for i in range(454)), _NAN)  # five values; where one is NaN, slopes are not asked for
_TIES = (Sample("ties", (In((7, 65), dtype="float32", values=_FEW),), {"dim": 1}),
         Sample("ties_first", (In((65, 7), dtype="float32", values=_FEW),), {"dim": 0}),
         Sample("nan", (In((2, 6), dtype="float32", values=(1, 3, 3, _NAN, 9, _NAN, _NAN, 1, 2, -_INF, _INF, _INF)),), {"dim": 1}),
         Sample("nan_first", (In((3, 8), dtype="float32", values=(1, _NAN, 3, 2, 0, -0.0, 5, 5, 7, 8, _NAN, 2, -0.0, 0, 5, 4, 8, 9, _NAN,
                                                                  1, 0, 0, 5, 6)),), {"dim": 0}))
_DOUBLE = (Sample("to_float64", (In((5, 33)),), {"dim": 0, "dtype": BY_NAME["float64"]}),)
_FACTORS = tuple((1.25, 0.8, -1.0, 1.5, 0.6875)[i % 5] for i in range(2051))  # products of five are -1.03
_PRODUCTS = (Sample("zeros", (In((3, 5), values=(1, 2, 0, 3, 4, 0, 2, 0, 1, 5, 1, 2, 3, 4, 0)),), {"dim": 1}),
             Sample("long_product", (In((1, 2051), values=_FACTORS),), {"dim": 1}),
             Sample("columns_product", (In((3, 1027), "positive"),), {"dim": 0}))

_X = (In((3, 4)),)
_BAD = (Bad("dim_2_of_2", _X, ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim": 2}),)
_BAD_NARROW = Bad("narrow_dtype", _X, DTypeError, ("float16", "float32"), {"dim": 0, "dtype": BY_NAME["float16"]})
_BAD_INT = Bad("int32", (In((3, 4), "int"),), DTypeError, ("int32", "float32"), {"dim": 0}, dtype="int32")

_infer_cumsum, _infer_cumprod = _accumulated("cumsum"), _accumulated("cumprod")

op("cumsum(Tensor x, int dim, *, dtype? dtype=None) -> Tensor", family="scan", dtypes=ANY, infer=_infer_cumsum,
   reference=_running(np.cumsum), budget=Reduction(terms=_length), cost=_cost(_infer_cumsum),
   doc="Sum of the elements up to and with each one along dim, in float32 for float16 and bfloat16; integers and bools sum "
       "to int64 and wrap.  dtype: a wider floating dtype of the result.",
   samples=[*_samples("normal", long=True), *_DOUBLE, Sample(_TOP_P[0], (In(_TOP_P[1], "prob"),), {"dim": -1}, *_TOP_P[3:])],
   bad=(*_BAD, _BAD_NARROW), grad=_cumsum_grad, names={"aten": ("cumsum",), "onnx": ("CumSum",), "paddle": ("cumsum",)})

op("cumprod(Tensor x, int dim, *, dtype? dtype=None) -> Tensor", family="scan", dtypes=ANY, infer=_infer_cumprod,
   reference=_running(np.cumprod), budget=Conditioned(k=4, terms=_length), cost=_cost(_infer_cumprod),
   doc="Product of the elements up to and with each one along dim, in float32 at least; integers and bools multiply in int64 "
       "and wrap.  dtype: a wider floating dtype of the result.",
   samples=[*_PRODUCTS, *_DOUBLE,
            *(s for s in _samples("positive") if s.name not in ("past_chunk", "first", "columns", "square_last", "square_first")),
            Sample("alphas", (In((64, 1024), "unit"),), {"dim": 1}, "diffusion schedules: products of 1 - beta", "inference", ("full",))],
   bad=(*_BAD, _BAD_NARROW), grad=_cumprod_grad, names={"aten": ("cumprod",), "onnx": ("CumProd",), "paddle": ("cumprod",)})

op("logcumsumexp(Tensor x, int dim) -> Tensor", family="scan", dtypes=FLOATS, infer=_like_x("logcumsumexp"), rule="same",
   reference=_logcumsumexp, budget=Conditioned(k=4, terms=_length), cost=_cost(_like_x("logcumsumexp"), 8),
   doc="Logarithm of the cumulative sum of exp(x) along dim, relative to the largest element so far, so that nothing overflows.",
   samples=[*_samples("normal", bench=False),
            Sample("far_apart", (In((2, 5), values=(-500, 1, 500, 0, -500, -_INF, -_INF, 3, _INF, 1)),), {"dim": 1}),
            Sample("decay", (In((16, 2048)),), {"dim": 1}, "log-space gates of a linear recurrence", "inference", ("full",))],
   bad=(*_BAD, _BAD_INT), grad=_logcumsumexp_grad,
   names={"aten": ("logcumsumexp", "_logcumsumexp"), "paddle": ("logcumsumexp",)})

for _name, _better in (("cummax", np.less_equal), ("cummin", np.greater_equal)):
    op(f"{_name}(Tensor x, int dim) -> (Tensor values, Tensor indices)", family="scan", dtypes=ANY,
       infer=_with_indices(_name), reference=_running_extreme(_better), budget=Index(stable=True), cost=_cost(_with_indices(_name)),
       doc=f"The {_name[3:]}imum of the elements up to and with each one along dim, and its index (int64): of equal elements the "
           "last one so far; a NaN wins over every number, for good.",
       samples=[*_samples("normal"), *_TIES,
                Sample("drawdown", (In((64, 2520), "normal"),), {"dim": 1}, "ten years of daily returns", "inference", ("full",))],
       bad=_BAD, grad=_extreme_grad, names={"aten": (_name,), "paddle": (_name,)})
