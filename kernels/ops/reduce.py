"""sum, mean, prod, extremes and their places, variances, norms, logsumexp, any, all, count_nonzero: what they are.

How they are computed: kernels/cpu/reduce.c, kernels/cpu/reduce_index.c, kernels/triton/reduce.py.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Conditioned, Exact, Index, Reduction
from .gradient import count, scaled, spread, zeros
from .infer import axes, axis, need, need_dtype, reduced
from .record import ANY, FLOATS, NUMBERS, Bad, Cost, In, Sample, Spec, op

_INT64, _BOOL = BY_NAME["int64"], BY_NAME["bool"]


def _wanted(name, x, dtype):
    """The dtype of a sum or mean: integers and bools sum to int64; an explicit dtype must be able to hold the input."""
    own = x.dtype if x.dtype.is_floating else _INT64
    if dtype is None or dtype is own:
        return own
    if not dtype.is_floating or dtype.itemsize < max(4, x.dtype.itemsize if x.dtype.is_floating else 4):
        raise DTypeError(f"{name}: dtype {dtype} for a {x.dtype} input; needs {own} or a wider floating dtype; cast "
                         "the result")
    return dtype


def _fold(name, accepted, out=lambda name, x, dtype: x.dtype, nonempty=False):
    def infer(x: Spec, *, dim: Any = None, keepdim: bool = False, dtype: Any = None, correction: float = 1) -> Spec:
        need_dtype(name, "x", x, accepted)
        over = axes(name, dim, x.ndim)
        if nonempty and any(x.shape[i] == 0 for i in over):
            raise ShapeError(f"{name}: x has shape {x.shape} and no element along axes {over}; needs one at least")
        return Spec(reduced(x.shape, over, keepdim), out(name, x, dtype))

    return infer


def _arg(name):
    def infer(x: Spec, *, dim: int | None, keepdim: bool) -> Spec:
        need_dtype(name, "x", x, NUMBERS)
        over = axes(name, None if dim is None else axis(name, dim, x.ndim), x.ndim)
        if any(x.shape[i] == 0 for i in over):
            raise ShapeError(f"{name}: x has shape {x.shape} and no element along axes {over}; needs one at least")
        return Spec(reduced(x.shape, over, keepdim), _INT64)

    return infer


def _length(x: Spec, *, dim: Any = None, **_: Any) -> int:
    return count([x.shape[i] for i in axes("reduce", dim, x.ndim)])


def _sum(x, *, dim, keepdim, dtype):
    acc = np.float64 if x.dtype.kind == "f" or (dtype and dtype.is_floating) else np.int64
    return np.asarray(np.sum(x, axis=axes("sum", dim, x.ndim), keepdims=keepdim, dtype=acc))


def _mean(x, *, dim, keepdim, dtype):
    over = axes("mean", dim, x.ndim)
    with np.errstate(all="ignore"):
        return np.asarray(np.sum(x, axis=over, keepdims=keepdim) / np.float64(count([x.shape[i] for i in over])))


def _var(x, *, dim, correction, keepdim):
    over = axes("var", dim, x.ndim)
    n = np.float64(count([x.shape[i] for i in over]))
    with np.errstate(all="ignore"):
        d = x - np.sum(x, axis=over, keepdims=True) / n
        return np.asarray(np.sum(d * d, axis=over, keepdims=keepdim) / np.maximum(n - correction, 0.0))


def _extreme(fold):
    def reference(x, *, dim, keepdim):
        with np.errstate(invalid="ignore"):
            return np.asarray(fold(x, axis=axes("amax", dim, x.ndim), keepdims=keepdim))

    return reference


def _arg_extreme(find):
    def reference(x, *, dim, keepdim):
        if dim is None:
            return np.asarray(find(x.reshape(-1)), np.int64).reshape((1,) * x.ndim if keepdim else ())
        if x.ndim == 0:
            return np.zeros((), np.int64)
        return np.asarray(find(x, axis=dim, keepdims=keepdim), np.int64)

    return reference


def _logical(fold):
    def reference(x, *, dim, keepdim):
        return np.asarray(fold(x != 0, axis=axes("any", dim, x.ndim), keepdims=keepdim))

    return reference


def _cost(infer, per_element=1):
    def cost(item: int, x: Spec, **attrs: Any) -> Cost:
        y = infer(x, **attrs)
        return Cost(flops=per_element * x.size, bytes=x.size * x.dtype.itemsize + y.size * y.dtype.itemsize)

    return cost


def _sum_grad(o, dy, inputs, y, attrs):
    x = inputs[0]
    g = spread(dy, x.shape, attrs["dim"])
    return (o.copy(g) if dy.dtype is x.dtype else o.cast(g, dtype=x.dtype),)


def _mean_grad(o, dy, inputs, y, attrs):
    x = inputs[0]
    n = _length(x, dim=attrs["dim"])
    g = scaled(o, spread(dy, x.shape, attrs["dim"]), 1 / max(n, 1))
    return (g if dy.dtype is x.dtype else o.cast(g, dtype=x.dtype),)


def _extreme_grad(o, dy, inputs, y, attrs):
    """Shared evenly among the elements equal to the extreme, as aten does."""
    x, dim = inputs[0], attrs["dim"]
    hit = o.eq(x, spread(y, x.shape, dim))
    ties = o.cast(o.sum(hit, dim, attrs["keepdim"]), dtype=x.dtype)
    return (o.where(hit, spread(o.div(dy, ties), x.shape, dim), zeros(o, (), x.dtype)),)


def _var_grad(o, dy, inputs, y, attrs):
    x, dim = inputs[0], attrs["dim"]
    free = max(_length(x, dim=dim) - attrs["correction"], 0.0)
    centred = o.sub(x, o.mean(x, dim, True))
    return (scaled(o, o.mul(centred, spread(dy, x.shape, dim)), 2 / free if free else float("nan")),)


# name, shape, dim, keepdim: 1s, primes, one past a block of 1024, inner, first, several, all axes, zero sizes
_SHAPES = (("scalar", (), None, False), ("scalar_dim", (), -1, True), ("one", (1,), 0, False),
           ("prime", (7, 13), 1, False),
           ("first", (129, 4), 0, True), ("inner", (5, 33, 3), 1, False), ("several", (4, 5, 6, 7), (0, 2), False),
           ("outer_two", (5, 3, 17), (-1, 0), True), ("no_dims", (3, 5), (), False),
           ("past_tile", (3, 1025), -1, False),
           ("all_keep", (3, 1025), None, True), ("long", (20011,), None, False), ("tall", (4099, 3), 0, False),
           ("empty_rows", (0, 5), 1, False))
_EMPTY = (("empty_axis", (4, 0), 1, False), ("empty_all", (0,), None, False), ("empty_some", (3, 0, 2), (1, 2), True))
# just past a block of a row (C, 65536), and tall and narrow enough that all threads share each column (C, 2^18 elements)
_PAST = (("past_block", (2, 65637), 1),)
_TALL = [Sample("tall_narrow", (In((16411, 16)),), {"dim": 0}, cover="once")]
_SQUARES = (("square_last", (4096, 4096), -1), ("square_full", (4096, 4096), None), ("square_first", (4096, 4096), 0))
_MODELS = (("resnet_pool", (1, 2048, 7, 7), (2, 3), "ResNet-50 global pooling", "inference", ("full", "vision")),
           ("bert_hidden", (128, 768), -1, "BERT-base hidden state", "inference", ("full",)),
           ("small", (16,), None, "", "full", ("full",)),
           ("flat_200x40999x3", (200, 40999, 3), 1, "", "full", ()))


def _samples(draw="normal", empty=True, quick=(), bench=("full",)):
    ugly = [Sample(n, (In(s, draw),), {"dim": d, "keepdim": k}) for n, s, d, k in _SHAPES + (_EMPTY if empty else ())]
    ugly += [Sample(n, (In(s, draw),), {"dim": d}, cover="once") for n, s, d in _PAST]
    models = [Sample(n, (In(s, draw),), {"dim": d}, m, level, b) for n, s, d, m, level, b in _MODELS]
    return ugly + models + [Sample(n, (In(s, draw),), {"dim": d}, "", "full",
                                   (("quick",) if n in quick else ()) + bench)
                            for n, s, d in _SQUARES]


def _arg_samples():
    ugly = [Sample(n, (In(s),), {"dim": d, "keepdim": k}) for n, s, d, k in _SHAPES if d is None or isinstance(d, int)]
    nan = float("nan")
    ugly += [Sample(n, (In(s, "int"),), {"dim": d}, cover="once") for n, s, d in _PAST]  # ints tie: the first block's wins
    return ugly + [Sample("ties", (In((7, 65), "int"),), {"dim": 1}),
                   Sample("ties_first", (In((65, 7), "int"),), {"dim": 0}),
                   Sample("nan_wins", (In((2, 4), dtype="float32", values=(1, nan, nan, 3, -1, -5, nan, -7)),),
                          {"dim": 1}),
                   Sample("nan_wins_first", (In((3, 2), dtype="float32", values=(1, 2, nan, 5, nan, nan)),),
                          {"dim": 0}),
                   Sample("greedy", (In((1, 32000)),), {"dim": -1}, "Llama-7B logits", "inference", ("full", "llm")),
                   Sample("square_last", (In((4096, 4096)),), {"dim": -1}, "", "full", ("full",))]


_NAN = float("nan")
_NAN_SAMPLES = [Sample("nan", (In((2, 4), dtype="float32", values=(1, _NAN, 3, 2, -1, -5, 4, -7)),), {"dim": 1}),
                Sample("nan_first", (In((3, 2), dtype="float32", values=(1, 2, _NAN, 5, 0, 7)),), {"dim": 0}),
                Sample("wide", (In((3, 67), "wide"),), {"dim": 1})]
_DOUBLE = [Sample("to_float64", (In((5, 33)),), {"dim": 0, "dtype": BY_NAME["float64"]})]

_X = (In((3, 4)),)
_BAD = (Bad("dim_2_of_2", _X, ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim": (2,)}),
        Bad("dim_twice", _X, ShapeError, ("(1, -1)", "twice"), {"dim": (1, -1)}))
_BAD_ARG = (Bad("dim_-3_of_2", _X, ShapeError, ("dim -3", "-2 <= dim < 2"), {"dim": -3}),
            Bad("no_element", (In((4, 0)),), ShapeError, ("(4, 0)", "no element"), {"dim": 1}),
            Bad("nothing_at_all", (In((0,)),), ShapeError, ("(0,)", "no element")),
            Bad("bool", (In((3, 4), "mask"),), DTypeError, ("bool", "accepts"), dtype="bool"))
_BAD_INT = Bad("int32", (In((3, 4), "int"),), DTypeError, ("int32", "float32"), dtype="int32")
_BAD_EMPTY = (Bad("no_element", (In((4, 0)),), ShapeError, ("(4, 0)", "no element"), {"dim": 1}),
              Bad("nothing_at_all", (In((0,)),), ShapeError, ("(0,)", "no element")))
_BAD_NARROW = Bad("narrow_dtype", _X, DTypeError, ("float16", "float32"), {"dtype": BY_NAME["float16"]})

_infer_sum, _infer_mean, _infer_var = _fold("sum", ANY, _wanted), _fold("mean", FLOATS, _wanted), _fold("var", FLOATS)

op("sum(Tensor x, int[]? dim=None, bool keepdim=false, *, dtype? dtype=None) -> Tensor", family="reduce", dtypes=ANY,
   infer=_infer_sum, rule="reduce", reference=_sum, budget=Reduction(terms=_length), cost=_cost(_infer_sum),
   doc="Sum over the axes dim (None or (): all of them), in float32 for float16 and bfloat16; integers and bools sum "
       "to int64 and wrap.  dtype: a wider floating dtype of the result.  The sum of no elements is 0.",
   samples=_samples(quick=("square_last",)) + _DOUBLE + _TALL, bad=(*_BAD, _BAD_NARROW), grad=_sum_grad,
   names={"aten": ("sum", "sum.dim_IntList"), "onnx": ("ReduceSum",), "paddle": ("sum",)})

op("mean(Tensor x, int[]? dim=None, bool keepdim=false, *, dtype? dtype=None) -> Tensor", family="reduce",
   dtypes=FLOATS,
   infer=_infer_mean, rule="reduce", reference=_mean, budget=Reduction(terms=_length, probe=False),
   cost=_cost(_infer_mean),
   doc="Arithmetic mean over the axes dim (None or (): all of them); the mean of no elements is NaN.",
   samples=_samples() + _DOUBLE, bad=(*_BAD, _BAD_INT, _BAD_NARROW), grad=_mean_grad,
   names={"aten": ("mean", "mean.dim"), "onnx": ("ReduceMean",), "paddle": ("mean",)})

for _name, _fn, _find, _onnx in (("amax", np.max, np.argmax, "Max"), ("amin", np.min, np.argmin, "Min")):
    _infer_extreme = _fold(_name, ANY, nonempty=True)
    op(f"{_name}(Tensor x, int[]? dim=None, bool keepdim=false) -> Tensor", family="reduce", dtypes=ANY,
       infer=_infer_extreme, rule="reduce", reference=_extreme(_fn), budget=Exact(), cost=_cost(_infer_extreme),
       doc=f"The {_fn.__name__[-3:]}imum over the axes dim (None or (): all of them); NaN wins over every number.  "
           "A reduced axis without elements is a ShapeError.",
       samples=_samples(empty=False) + _NAN_SAMPLES, bad=(*_BAD, *_BAD_EMPTY), grad=_extreme_grad,
       names={"aten": (_name, _name[1:]), "onnx": (f"Reduce{_onnx}",), "paddle": (_name,)})

for _name, _pick, _onnx in (("argmax", np.argmax, "ArgMax"), ("argmin", np.argmin, "ArgMin")):
    op(f"{_name}(Tensor x, int? dim=None, bool keepdim=false) -> Tensor", family="reduce", dtypes=NUMBERS,
       infer=_arg(_name),
       rule="reduce", reference=_arg_extreme(_pick), budget=Index(stable=True), cost=_cost(_arg(_name)),
       doc=f"Index (int64) of the first {_name[3:]}imum along dim, or in the flattened tensor; the first NaN wins over "
           "every number.  An axis without elements is a ShapeError.",
       samples=_arg_samples(), bad=_BAD_ARG, names={"aten": (_name,), "onnx": (_onnx,), "paddle": (_name,)})

op("var(Tensor x, int[]? dim=None, *, float correction=1, bool keepdim=false) -> Tensor", family="reduce",
   dtypes=FLOATS,
   infer=_infer_var, rule="reduce", reference=_var, budget=Conditioned(k=4, terms=_length), cost=_cost(_infer_var, 3),
   doc="Variance over the axes dim: squared distances from the mean, summed and divided by max(n - correction, 0), so "
       "that fewer elements than that give NaN or infinity.",
   samples=_samples() + _TALL + [Sample("population", (In((7, 65)),), {"dim": 1, "correction": 0.0}),
                         Sample("far_from_zero", (In((2, 5), values=(1001, 1002, 1000, 1003, 1001, 5, 5, 5, 5, 5)),),
                                {"dim": 1}),
                         Sample("overcorrected", (In((2, 2)),), {"dim": 1, "correction": 3.0})],
   bad=(*_BAD, _BAD_INT), grad=_var_grad, names={"aten": ("var.correction",), "paddle": ("var",)})



def _late(hit):
    """Only the last element decides."""
    return Sample("last_decides", (In((65637,), dtype="float32", values=(*(float(not hit),) * 65636, float(hit))),), {}, cover="once")


for _name, _test in (("any", np.any), ("all", np.all)):
    _infer_logical = _fold(_name, ANY, lambda name, x, dtype: _BOOL)
    op(f"{_name}(Tensor x, int[]? dim=None, bool keepdim=false) -> Tensor", family="reduce", dtypes=ANY,
       infer=_infer_logical, rule="reduce", reference=_logical(_test), budget=Exact(), cost=_cost(_infer_logical),
       doc=f"Whether {_name} elements along the axes dim are not zero (NaN is not zero); bool.  Of no elements: "
           f"{'False' if _name == 'any' else 'True'}.",
       samples=[*_samples("int" if _name == "any" else "positive"), _late(_name == "any"),
                Sample("mask", (In((33, 5), "mask", "bool"),), {"dim": 0})],
       bad=_BAD, names={"aten": (_name, f"{_name}.dim", f"{_name}.dims"), "paddle": (_name,)})


# ---- products, standard deviations, extremes with places ----------------------------------------------------------------------
_F64, _INF = BY_NAME["float64"], float("inf")


def _some(draw="normal", quick=(), without=()):
    """A dozen shapes of _SHAPES and a model's: those that take other ways through the kernels."""
    kept = ("scalar", "one", "prime", "first", "inner", "several", "no_dims", "past_tile", "tall", "empty_rows")
    found = [Sample(n, (In(s, draw),), {"dim": d, "keepdim": k}) for n, s, d, k in _SHAPES if n in kept and n not in without]
    return [*found, Sample("resnet_pool", (In((1, 2048, 7, 7), draw),), {"dim": (2, 3)}, "ResNet-50 global pooling", "inference", ("full", "vision")),
            Sample("bert_hidden", (In((128, 768), draw),), {"dim": -1}, "BERT-base hidden state", "inference", ("full",)),
            Sample("square_last", (In((4096, 4096), draw),), {"dim": -1}, "", "full", ("full",)),
            Sample("square_first", (In((4096, 4096), draw),), {"dim": 0}, "", "full", ("full",))]


def _prod(x, *, dim, keepdim, dtype):
    acc = np.float64 if x.dtype.kind == "f" or (dtype and dtype.is_floating) else np.int64
    with np.errstate(all="ignore"):
        return np.asarray(np.prod(x, axis=axes("prod", dim, x.ndim), keepdims=keepdim, dtype=acc))


def _prod_grad(o, dy, inputs, y, attrs):
    """dy times the product of all other elements: of those before and of those behind, so that zeros do no harm."""
    x = inputs[0]
    over = axes("gradient", attrs["dim"], x.ndim)
    kept = tuple(i for i in range(x.ndim) if i not in over)
    lead, n = tuple(x.shape[i] for i in kept), count([x.shape[i] for i in over])
    if not n:
        return (zeros(o, x.shape, x.dtype),)
    rows = o.copy(x.permute((*kept, *over))).reshape((*lead, n))
    one = o.full((*lead, 1), 1.0, dtype=x.dtype)

    def others(z):
        return o.cumprod(o.cat((one, o.slice(z, -1, 0, n - 1)), -1), -1)

    around = o.mul(others(rows), o.flip(others(o.flip(rows, (len(lead),))), (len(lead),)))
    g = o.mul(around, o.cast(dy, dtype=x.dtype).reshape((*lead, 1))).reshape((*lead, *(x.shape[i] for i in over)))
    order = (*kept, *over)
    return (o.copy(g.permute(tuple(order.index(i) for i in range(x.ndim)))),)


def _pair(name):
    one = _fold(name, FLOATS)

    def infer(x: Spec, *, dim: Any = None, keepdim: bool = False, correction: float = 1) -> tuple[Spec, Spec]:
        y = one(x, dim=dim, keepdim=keepdim, correction=correction)
        return y, y

    return infer


def _mean_of(x, dim, keepdim):
    return _mean(x, dim=dim, keepdim=keepdim, dtype=None)


def _std_grad(o, dy, inputs, y, attrs):
    """Through the variance; 0 where all elements are equal, as aten does."""
    x = inputs[0]
    deviation = y[0] if isinstance(y, tuple) else y
    half = o.masked_fill(o.div(dy, deviation), o.eq(deviation, zeros(o, (), x.dtype)), value=0.0)
    return _var_grad(o, scaled(o, half, 0.5), inputs, y, attrs)


_infer_prod, _infer_std = _fold("prod", ANY, _wanted), _fold("std", FLOATS)
# products that stay near 1, so that no order of the factors overflows or vanishes
_BALANCED = tuple((1.25, -0.75, 0.875, 1.3125)[i % 4] for i in range(1025))

op("prod(Tensor x, int[]? dim=None, bool keepdim=false, *, dtype? dtype=None) -> Tensor", family="reduce", dtypes=ANY,
   infer=_infer_prod, rule="reduce", reference=_prod, budget=Reduction(terms=_length, probe=False), cost=_cost(_infer_prod),
   doc="Product over the axes dim (None or (): all of them), in float32 for float16 and bfloat16; integers and bools to int64, where "
       "it wraps.  dtype: a wider floating dtype of the result.  The product of no elements is 1.",
   samples=[*(s for s in _some(without=("tall", "past_tile")) if s.name != "bert_hidden"), Sample("long", (In((1025,), values=_BALANCED),), {"dim": 0}),
            Sample("empty_axis", (In((4, 0)),), {"dim": 1}), Sample("to_float64", (In((5, 33)),), {"dim": 0, "dtype": _F64})],
   bad=(*_BAD, _BAD_NARROW), grad=_prod_grad, names={"aten": ("prod", "prod.dim_int"), "onnx": ("ReduceProd",), "paddle": ("prod",)})

op("std(Tensor x, int[]? dim=None, *, float correction=1, bool keepdim=false) -> Tensor", family="reduce", dtypes=FLOATS,
   infer=_infer_std, rule="reduce", reference=lambda x, **a: np.sqrt(_var(x, **a)), budget=Conditioned(k=4, terms=_length),
   cost=_cost(_infer_std, 3), samples=[*_some(), Sample("population", (In((7, 65)),), {"dim": 1, "correction": 0.0}),
                                       Sample("empty_axis", (In((4, 0)),), {"dim": 1})],
   doc="Square root of var.", bad=(*_BAD, _BAD_INT), grad=_std_grad, names={"aten": ("std.correction",), "paddle": ("std",)})

for _name, _root in (("var_mean", False), ("std_mean", True)):
    op(f"{_name}(Tensor x, int[]? dim=None, *, float correction=1, bool keepdim=false) -> (Tensor {_name[:3]}, Tensor mean)", family="reduce",
       dtypes=FLOATS, infer=_pair(_name),
       reference=lambda x, *, dim, correction, keepdim, _root=_root: (
           np.sqrt(_var(x, dim=dim, correction=correction, keepdim=keepdim)) if _root else _var(x, dim=dim, correction=correction, keepdim=keepdim),
           _mean_of(x, dim, keepdim)),
       budget=Conditioned(k=4, terms=_length), cost=lambda item, x, **a: Cost(flops=3 * x.size, bytes=item * x.size),
       samples=[*_some(), Sample("population", (In((7, 65)),), {"dim": 1, "correction": 0.0}), Sample("empty_axis", (In((4, 0)),), {"dim": 1})],
       doc=f"{_name[:3]} and mean in one reading.", bad=(*_BAD, _BAD_INT), grad=_std_grad if _root else _var_grad,
       names={"aten": (f"{_name}.correction",)})


def _aminmax_infer(x: Spec, *, dim: int | None, keepdim: bool) -> tuple[Spec, Spec]:
    y = _fold("aminmax", ANY, nonempty=True)(x, dim=None if dim is None else axis("aminmax", dim, x.ndim), keepdim=keepdim)
    return y, y


def _aminmax(x, *, dim, keepdim):
    over = axes("aminmax", dim, x.ndim)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.min(x, axis=over, keepdims=keepdim)), np.asarray(np.max(x, axis=over, keepdims=keepdim))


def _one_axis(samples):
    return [s for s in samples if s.attrs["dim"] is None or isinstance(s.attrs["dim"], int)]


def _whole(samples):
    return [s for s in samples if isinstance(s.attrs["dim"], int)]


_BAD_ONE = (Bad("dim_-3_of_2", _X, ShapeError, ("dim -3", "-2 <= dim < 2"), {"dim": -3}),
            Bad("no_element", (In((4, 0)),), ShapeError, ("(4, 0)", "no element"), {"dim": 1}))

op("aminmax(Tensor x, *, int? dim=None, bool keepdim=false) -> (Tensor min, Tensor max)", family="reduce", dtypes=ANY, infer=_aminmax_infer,
   reference=_aminmax, budget=Exact(), cost=lambda item, x, **a: Cost(flops=2 * x.size, bytes=item * x.size),
   samples=_one_axis(_some()) + _NAN_SAMPLES[:2], bad=_BAD_ONE,
   doc="Minimum and maximum along dim, or of all elements, in one reading; NaN wins over every number.  No element is a ShapeError.",
   names={"aten": ("aminmax",)})


def _extreme_at(name):
    def infer(x: Spec, *, dim: int, keepdim: bool) -> tuple[Spec, Spec]:
        places = _arg(name)(x, dim=dim, keepdim=keepdim)
        return Spec(places.shape, x.dtype), places

    return infer


def _extreme_of(find):
    def reference(x, *, dim, keepdim):
        if x.ndim == 0:
            return x.copy(), np.zeros((), np.int64)
        at = np.asarray(find(x, axis=dim, keepdims=True), np.int64)
        values = np.take_along_axis(x, at, dim)
        return (values, at) if keepdim else (np.squeeze(values, dim), np.squeeze(at, dim))

    return reference


def _extreme_at_grad(o, dy, inputs, y, attrs):
    x, dim, shape = inputs[0], attrs["dim"], None
    if not x.ndim:
        return (o.copy(dy),)
    shape = reduced(x.shape, axes("gradient", dim, x.ndim), True)
    return (o.scatter_add(zeros(o, x.shape, x.dtype), dim, y[1].reshape(shape), dy.reshape(shape)),)


# equal elements have no derivative: the infinite ones keep these samples out of its tests
_TIED = tuple(float(i * 7 % 5) for i in range(129)) + (-_INF, -_INF, -_INF)
_TIES = [Sample("ties", (In((4, 33), dtype="float32", values=_TIED),), {"dim": 1}),
         Sample("ties_first", (In((6, 22), dtype="float32", values=_TIED),), {"dim": 0})]

for _name, _pick in (("max", np.argmax), ("min", np.argmin)):
    op(f"{_name}(Tensor x, int dim, bool keepdim=false) -> (Tensor values, Tensor indices)", family="reduce", dtypes=NUMBERS,
       infer=_extreme_at(_name), reference=_extreme_of(_pick), budget=Exact(),
       cost=lambda item, x, **a: Cost(flops=x.size, bytes=item * x.size),
       samples=_whole(_some()) + [s for s in _arg_samples() if s.name in ("nan_wins", "nan_wins_first", "greedy")] + _TIES, bad=(*_BAD_ONE, Bad("bool", (In((3, 4), "mask"),), DTypeError, ("bool", "accepts"), {"dim": 0}, "bool")),
       grad=_extreme_at_grad,
       doc=f"The {_name}imum along dim and the index (int64) of the first of them; the first NaN wins over every number.  An axis without "
           "elements is a ShapeError.", names={"aten": (f"{_name}.dim",), "paddle": (f"{_name}_with_index",)})


# ---- counts, logarithms of sums, norms ------------------------------------------------------------------------------------------
_infer_count = _fold("count_nonzero", ANY, lambda name, x, dtype: _INT64)

op("count_nonzero(Tensor x, int[]? dim=None, bool keepdim=false) -> Tensor", family="reduce", dtypes=ANY, infer=_infer_count, rule="reduce",
   reference=lambda x, *, dim, keepdim: np.asarray(np.sum(x != 0, axis=axes("count_nonzero", dim, x.ndim), keepdims=keepdim, dtype=np.int64)),
   budget=Exact(), cost=_cost(_infer_count), bad=_BAD,
   samples=[*_some("int"), Sample("mask", (In((33, 5), "mask", "bool"),), {"dim": 0}), Sample("bytes", (In((3, 9001), "mask", "bool"),), {"dim": 1}),
            Sample("nan", (In((2, 4), dtype="float32", values=(0, _NAN, -0.0, 1, _INF, 0, 0, _NAN)),), {"dim": 1})],
   doc="How many elements along the axes dim are not zero (NaN is not), int64.", names={"aten": ("count_nonzero.dim_IntList", "count_nonzero")})


def _logsumexp(x, *, dim, keepdim):
    over = axes("logsumexp", dim, x.ndim)
    with np.errstate(all="ignore"):
        top = np.max(x, axis=over, keepdims=True, initial=-np.inf)
        shift = np.where(np.isinf(top), 0.0, top)
        y = np.log(np.sum(np.exp(x - shift), axis=over, keepdims=True)) + shift
    return np.asarray(y if keepdim else np.squeeze(y, over) if over else y)


def _logsumexp_grad(o, dy, inputs, y, attrs):
    x, dim = inputs[0], attrs["dim"]
    return (o.mul(o.exp(o.sub(x, spread(y, x.shape, dim))), spread(dy, x.shape, dim)),)


_infer_logsumexp = _fold("logsumexp", FLOATS)

op("logsumexp(Tensor x, int[]? dim=None, bool keepdim=false) -> Tensor", family="reduce", dtypes=FLOATS, infer=_infer_logsumexp, rule="reduce",
   reference=_logsumexp, budget=Conditioned(k=4, terms=_length), cost=_cost(_infer_logsumexp, 5), grad=_logsumexp_grad, bad=(*_BAD, _BAD_INT),
   samples=[*_some(), Sample("empty_axis", (In((4, 0)),), {"dim": 1}),
            Sample("far", (In((2, 3), values=(1000, 999, 998, -1000, -999, -1001)),), {"dim": 1}),
            Sample("infinite", (In((4, 3), dtype="float32", values=(_INF, 1, 2, -_INF, -_INF, -_INF, -_INF, 1, 2, _INF, _NAN, -_INF)),), {"dim": 1}),
            Sample("infinite_first", (In((2, 3), dtype="float32", values=(_INF, -_INF, -_INF, 1, -_INF, 2)),), {"dim": 0}),
            Sample("llama_vocab", (In((128, 32000)),), {"dim": -1}, "Llama-7B logits", "full", ("full", "llm"))],
   doc="log of the sum of exp(x) over the axes dim, relative to the largest so that nothing overflows; of no elements -inf.",
   names={"aten": ("logsumexp",), "onnx": ("ReduceLogSumExp",), "paddle": ("logsumexp",)})


def _infer_norm(x: Spec, *, ord: float, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Spec:
    name = "linalg_vector_norm"
    need(ord == ord, f"{name}: ord is NaN; needs a number, inf or -inf")
    return _fold(name, FLOATS, _wanted, nonempty=ord < 0 or ord == _INF)(x, dim=dim, keepdim=keepdim, dtype=dtype)


def _norm(x, *, ord, dim, keepdim, dtype):
    over, size = axes("linalg_vector_norm", dim, x.ndim), np.abs(x)
    with np.errstate(all="ignore"):
        if ord in (_INF, -_INF):
            return np.asarray((np.max if ord > 0 else np.min)(size, axis=over, keepdims=keepdim))
        if ord == 0:
            return np.asarray(np.sum((x != 0) * 1.0, axis=over, keepdims=keepdim))
        if ord == 2:
            return np.asarray(np.sqrt(np.sum(size * size, axis=over, keepdims=keepdim)))
        total = np.sum(size if ord == 1 else size**ord, axis=over, keepdims=keepdim)
        return np.asarray(total if ord == 1 else total ** (1 / ord))


def norm_grad(o, dy, inputs, y, attrs):
    """0 where the norm is: the subgradient aten takes."""
    x, p, dim = inputs[0], attrs["ord"], attrs["dim"]
    none = zeros(o, (), x.dtype)
    if p == 0:
        return (zeros(o, x.shape, x.dtype),)
    whole, g, sign = spread(y, x.shape, dim), spread(dy, x.shape, dim), o.sign(x)
    if p in (_INF, -_INF):
        hit = o.eq(o.abs(x), whole)
        ties = o.cast(o.sum(hit, dim, attrs["keepdim"]), dtype=x.dtype)
        return (o.mul(sign, o.where(hit, spread(o.div(dy, ties), x.shape, dim), none)),)
    if p == 1:
        return (o.mul(sign, g),)
    ratio = o.masked_fill(o.div(o.abs(x), whole), o.eq(whole, none), value=0.0)
    return (o.mul(o.mul(sign, g), ratio if p == 2 else o.pow(ratio, o.full((), p - 1, dtype=x.dtype))),)


def _norm_samples():
    found = [Sample(s.name, s.inputs, {"ord": (2.0, 1.0, 2.0, 2.0, 0.0)[i % 5], **s.attrs}, s.model, s.level, s.bench) for i, s in enumerate(_some())]
    for i, p in enumerate((_INF, -_INF, 0.0, 3.0, 0.5, -1.0, 1.0, 2.0)):
        found.append(Sample(f"ord_{p:g}", (In((7, 65)),), {"ord": p, "dim": i % 2, "keepdim": i % 3 == 0}))
    return [*found, Sample("empty_axis", (In((4, 0)),), {"ord": 2.0, "dim": 1}), Sample("long", (In((20011,)),), {"ord": 2.0}),
            Sample("zeros", (In((2, 3), values=(0, 0, 0, 0, 3, 4)),), {"ord": 2.0, "dim": 1}),
            Sample("to_float64", (In((5, 33)),), {"ord": 2.0, "dim": 0, "dtype": _F64})]


op("linalg_vector_norm(Tensor x, float ord=2.0, int[]? dim=None, bool keepdim=false, *, dtype? dtype=None) -> Tensor", family="reduce",
   dtypes=FLOATS, infer=_infer_norm, reference=_norm, budget=Conditioned(k=4, terms=_length), cost=_cost(_infer_norm, 2),
   samples=_norm_samples(), grad=norm_grad,
   bad=(*_BAD, _BAD_INT, Bad("inf_of_nothing", (In((4, 0)),), ShapeError, ("(4, 0)", "no element"), {"ord": _INF, "dim": 1}),
        Bad("ord_nan", _X, ArgumentError, ("ord is NaN",), {"ord": _NAN})),
   doc="(sum of |x|^ord)^(1 / ord) over the axes dim (None or (): all of them); ord inf and -inf: the largest and smallest |x|, 0: how many are "
       "not zero.  Powers are summed in float32 at least: where they pass its range, devices without wider sums may give inf or 0.",
   names={"aten": ("linalg_vector_norm",), "onnx": ("ReduceL1", "ReduceL2"), "paddle": ("p_norm",)})
