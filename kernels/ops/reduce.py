"""sum, mean, amax, amin, argmax, argmin, var, any, all: what they are.

How they are computed: kernels/cpu/reduce.c, kernels/triton/reduce.py.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import DTypeError, ShapeError
from .budget import Conditioned, Exact, Index, Reduction
from .gradient import count, scaled, spread, zeros
from .infer import axes, axis, need_dtype, reduced
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
_SQUARES = (("square_last", (4096, 4096), -1), ("square_full", (4096, 4096), None), ("square_first", (4096, 4096), 0))
_MODELS = (("resnet_pool", (1, 2048, 7, 7), (2, 3), "ResNet-50 global pooling", "inference", ("full", "vision")),
           ("bert_hidden", (128, 768), -1, "BERT-base hidden state", "inference", ("full",)),
           ("small", (16,), None, "", "full", ("full",)),
           ("flat_200x40999x3", (200, 40999, 3), 1, "", "full", ()))


def _samples(draw="normal", empty=True, quick=(), bench=("full",)):
    ugly = [Sample(n, (In(s, draw),), {"dim": d, "keepdim": k}) for n, s, d, k in _SHAPES + (_EMPTY if empty else ())]
    models = [Sample(n, (In(s, draw),), {"dim": d}, m, level, b) for n, s, d, m, level, b in _MODELS]
    return ugly + models + [Sample(n, (In(s, draw),), {"dim": d}, "", "full",
                                   (("quick",) if n in quick else ()) + bench)
                            for n, s, d in _SQUARES]


def _arg_samples():
    ugly = [Sample(n, (In(s),), {"dim": d, "keepdim": k}) for n, s, d, k in _SHAPES if d is None or isinstance(d, int)]
    nan = float("nan")
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
   samples=_samples(quick=("square_last",)) + _DOUBLE, bad=(*_BAD, _BAD_NARROW), grad=_sum_grad,
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
       names={"aten": (_name,), "onnx": (f"Reduce{_onnx}",), "paddle": (_name,)})

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
   samples=_samples() + [Sample("population", (In((7, 65)),), {"dim": 1, "correction": 0.0}),
                         Sample("far_from_zero", (In((2, 5), values=(1001, 1002, 1000, 1003, 1001, 5, 5, 5, 5, 5)),),
                                {"dim": 1}),
                         Sample("overcorrected", (In((2, 2)),), {"dim": 1, "correction": 3.0})],
   bad=(*_BAD, _BAD_INT), grad=_var_grad, names={"aten": ("var.correction",), "paddle": ("var",)})

for _name, _test in (("any", np.any), ("all", np.all)):
    _infer_logical = _fold(_name, ANY, lambda name, x, dtype: _BOOL)
    op(f"{_name}(Tensor x, int[]? dim=None, bool keepdim=false) -> Tensor", family="reduce", dtypes=ANY,
       infer=_infer_logical, rule="reduce", reference=_logical(_test), budget=Exact(), cost=_cost(_infer_logical),
       doc=f"Whether {_name} elements along the axes dim are not zero (NaN is not zero); bool.  Of no elements: "
           f"{'False' if _name == 'any' else 'True'}.",
       samples=[*_samples("int" if _name == "any" else "positive"),
                Sample("mask", (In((33, 5), "mask", "bool"),), {"dim": 0})],
       bad=_BAD, names={"aten": (_name, f"{_name}.dim", f"{_name}.dims"), "paddle": (_name,)})
