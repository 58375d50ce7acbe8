"""softmax, log_softmax and their gradients: what they are.  How: kernels/cpu/softmax.c, kernels/triton/softmax.py."""
from __future__ import annotations

import numpy as np

from ...hal.errors import DTypeError, ShapeError
from .budget import Conditioned
from .infer import axis, need_dtype, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op


def _like_x(name):
    def infer(x: Spec, *, dim: int) -> Spec:
        need_dtype(name, "x", x, FLOATS)
        axis(name, dim, x.ndim)
        return x

    return infer


def _like_dy(name):
    def infer(dy: Spec, y: Spec, *, dim: int) -> Spec:
        need_dtype(name, "dy", dy, FLOATS)
        same_dtype(name, dy, y)
        if dy.shape != y.shape:
            raise ShapeError(f"{name}: dy is {dy.shape} and y is {y.shape}; they must be equal")
        axis(name, dim, y.ndim)
        return y

    return infer


def _softmax(x, *, dim):
    if x.size == 0:
        return x.copy()
    with np.errstate(all="ignore"):
        over = dim if x.ndim else None
        e = np.exp(x - x.max(axis=over, keepdims=True))
        return e / e.sum(axis=over, keepdims=True)


def _log_softmax(x, *, dim):
    if x.size == 0:
        return x.copy()
    with np.errstate(all="ignore"):
        over = dim if x.ndim else None
        z = x - x.max(axis=over, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=over, keepdims=True))


def _softmax_backward(dy, y, *, dim):
    return y * (dy - (dy * y).sum(axis=dim if y.ndim else None, keepdims=True))


def _log_softmax_backward(dy, y, *, dim):
    return dy - np.exp(y) * dy.sum(axis=dim if y.ndim else None, keepdims=True)


def _length(*specs: Spec, dim: int) -> int:
    return specs[0].shape[dim] if specs[0].ndim else 1


def _cost(per_element: int):
    def cost(item: int, *specs: Spec, dim: int) -> Cost:
        return Cost(flops=per_element * specs[0].size, bytes=item * specs[0].size * (len(specs) + 1))

    return cost


# 1s, primes, one past a tile (1024 is the widest block of the row kernels), an inner axis, zero sizes, 0-d
_SHAPES = (("scalar", (), -1), ("one", (1,), 0), ("prime", (7, 13), 1), ("past_tile", (3, 1025), -1), ("inner", (5, 33, 3), 1),
           ("first", (129, 4), 0), ("empty_rows", (0, 5), 1), ("empty_axis", (4, 0), 1), ("wide", (2, 4099), -1),
           ("columns", (3, 19, 33), 1))
# just past where kernels change their way: rows kept in registers (Triton, 8192) or L2 (C, 32768), rows for several threads,
# columns side by side too many to keep (C, 32768 / 64 and more), results written past the caches (C, 4 MiB)
_PAST = [Sample(name, (In(shape, dtype=dt),), {"dim": dim}, cover="once") for name, shape, dim, dt in (
    ("past_row", (2, 32801), -1, None), ("many_rows", (4099, 5), -1, None), ("past_columns", (2053, 17), 0, None),
    ("streamed", (517, 1019), 1, "float64"))]
_MODELS = (("bert_scores", (8, 12, 128, 128), "BERT-base attention scores", "inference", ("full",)),
           ("square_4096", (4096, 4096), "", "full", ("full",)), ("llama_vocab", (128, 32000), "Llama-7B logits", "full", ("full", "llm")))


def _samples(*draws: str, quick=()):
    """quick: names of samples that the short benchmark times too."""
    ugly = [Sample(name, tuple(In(shape, d) for d in draws), {"dim": dim}) for name, shape, dim in _SHAPES]
    return ugly + [Sample(name, tuple(In(shape, d) for d in draws), {"dim": -1}, model, level,
                          ("quick", *bench) if name in quick else bench) for name, shape, model, level, bench in _MODELS]


_NOTHING = float("-inf")
_HIDDEN = [Sample("row_of_minus_inf", (In((2, 5), values=(1, _NOTHING, 2, 3, 4, *(_NOTHING,) * 5)),), {"dim": 1}, cover="each"),
           Sample("column_of_minus_inf", (In((2, 17), values=tuple(_NOTHING if i in (2, 19) else float(i % 5) for i in range(34))),),
                  {"dim": 0}, cover="each")]
_BAD_DIM = Bad("dim_2_of_2", (In((3, 4)),), ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim": 2})
_BAD_INT = Bad("int32", (In((3, 4), "int"),), DTypeError, ("int32", "float32"), {"dim": -1}, dtype="int32")
_BAD_PAIR = Bad("shapes_differ", (In((3, 4)), In((4, 3))), ShapeError, ("(3, 4)", "(4, 3)"), {"dim": -1})

op("softmax(Tensor x, int dim=-1) -> Tensor", family="softmax", dtypes=FLOATS, infer=_like_x("softmax"), rule="same",
   doc="exp(x) divided by its sum along dim, shifted by the maximum so that nothing overflows.",
   reference=_softmax, budget=Conditioned(k=4, terms=_length), cost=_cost(5),
   samples=_samples("normal", quick=("square_4096",)) + _HIDDEN + _PAST,
   bad=(_BAD_DIM, _BAD_INT),
   grad=lambda o, dy, inputs, y, attrs: (o.softmax_backward(dy, y, attrs["dim"]),),
   names={"aten": ("_softmax",), "onnx": ("Softmax",), "paddle": ("softmax",)})

op("log_softmax(Tensor x, int dim=-1) -> Tensor", family="softmax", dtypes=FLOATS, infer=_like_x("log_softmax"), rule="same",
   doc="Logarithm of softmax along dim, computed without forming the quotient.",
   reference=_log_softmax, budget=Conditioned(k=4, terms=_length), cost=_cost(5), samples=_samples("normal") + _HIDDEN + _PAST[:1],
   bad=(_BAD_DIM, _BAD_INT), grad=lambda o, dy, inputs, y, attrs: (o.log_softmax_backward(dy, y, attrs["dim"]),),
   names={"aten": ("_log_softmax",), "onnx": ("LogSoftmax",), "paddle": ("log_softmax",)})

op("softmax_backward(Tensor dy, Tensor y, int dim=-1) -> Tensor", family="softmax", dtypes=FLOATS,
   infer=_like_dy("softmax_backward"), rule="same", doc="Gradient of softmax from its result y: y (dy - sum(dy y)).",
   reference=_softmax_backward, budget=Conditioned(k=4, terms=_length), cost=_cost(4), samples=_samples("normal", "prob"),
   bad=(_BAD_PAIR,), names={"aten": ("_softmax_backward_data",)})

op("log_softmax_backward(Tensor dy, Tensor y, int dim=-1) -> Tensor", family="softmax", dtypes=FLOATS,
   infer=_like_dy("log_softmax_backward"), rule="same",
   doc="Gradient of log_softmax from its result y: dy - exp(y) sum(dy).", reference=_log_softmax_backward,
   budget=Conditioned(k=4, terms=_length), cost=_cost(4), samples=_samples("normal", "logp"), bad=(_BAD_PAIR,),
   names={"aten": ("_log_softmax_backward_data",)})
