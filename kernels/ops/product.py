"""outer, matmul_bias_activation: products made of other operators.

How the parts are computed: pointwise and matmul.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.errors import DTypeError, ShapeError
from .budget import Conditioned, Faithful
from .infer import need_dtype, same_dtype
from .matmul import infer_linear
from .record import FLOATS, NUMBERS, Bad, Cost, In, Sample, Spec, op

_ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh")


def _infer_outer(x: Spec, y: Spec) -> Spec:
    kind = same_dtype("outer", x, y)
    need_dtype("outer", "x", x, NUMBERS)
    for name, t in (("x", x), ("y", y)):
        if t.ndim != 1:
            raise ShapeError(f"outer: {name} has shape {t.shape}; needs one axis, flatten it")
    return Spec((*x.shape, *y.shape), kind)


def _compose_outer(o, x, y, *, out):
    o.mul(o.unsqueeze(x, 1), y, out=out)


def _outer_grad(o, dy, inputs, y, attrs):
    a, b = inputs
    return o.sum(o.mul(dy, b), (1,)), o.sum(o.mul(dy, o.unsqueeze(a, 1)), (0,))


op("outer(Tensor x, Tensor y) -> Tensor", family="product", dtypes=NUMBERS, infer=_infer_outer, reference=np.multiply.outer,
   budget=Faithful(k=0.5), composite="mul broadcasts the two vectors and writes each product once", compose=_compose_outer,
   doc="The products of every element of the vector x with every one of y: shape (x, y).  Integers wrap.",
   cost=lambda item, x, y: Cost(x.size * y.size, (x.size + y.size + x.size * y.size) * item), grad=_outer_grad, names={"paddle": ("outer",)},
   samples=[Sample(n, (In((a,)), In((b,)))) for n, a, b in (("one", 1, 1), ("prime", 7, 13), ("nothing", 0, 3), ("past_tile", 3, 1025), ("tall", 257, 2))] + [
       Sample("rope_angles", (In((4096,)), In((64,))), {}, "Llama-7B rotary angles", "llm")],
   bad=(Bad("matrix", (In((2, 3)), In((3,))), ShapeError, ("(2, 3)", "one axis")),
        Bad("dtypes", (In((2,)), In((3,), "int", "int32")), DTypeError, ("float32", "int32"))))


def _infer_fused(x: Spec, weight: Spec, bias: Spec | None, *, activation: str) -> Spec:
    try:
        return infer_linear(x, weight, bias)
    except (ShapeError, DTypeError) as error:
        raise type(error)(str(error).replace("linear: ", "matmul_bias_activation: ", 1)) from None


def _activated(z: np.ndarray, activation: str) -> np.ndarray:
    from scipy.special import erf, expit
    if activation == "gelu":
        return 0.5 * z * (1 + erf(z / np.sqrt(2)))
    if activation == "gelu_tanh":
        return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    return {"none": lambda: z, "relu": lambda: np.maximum(z, 0), "silu": lambda: z * expit(z),
            "tanh": lambda: np.tanh(z)}[activation]()


def _fused(x, weight, bias, *, activation):
    z = x @ weight.T
    return _activated(z if bias is None else z + bias, activation)


def _activate(o: Any, z: Any, activation: str, **out: Any) -> Any:
    if activation in ("gelu", "gelu_tanh"):
        return o.gelu(z, approximate="tanh" if activation == "gelu_tanh" else "none", **out)
    return getattr(o, activation)(z, **out)


def _compose_fused(o, x, weight, bias, *, activation, out):
    o.linear(x, weight, bias, out=out)
    if activation != "none":
        _activate(o, out, activation, out=out)


def _fused_cost(item: int, x: Spec, weight: Spec, bias: Spec | None, *, activation: str) -> Cost:
    rows, k, n = x.size // max(x.shape[-1], 1), x.shape[-1], weight.shape[0]
    return Cost(2 * rows * k * n, (x.size + weight.size + rows * n + (bias.size if bias else 0)) * item)


_SHAPES = (("one", (1, 1), 1), ("prime", (7, 13), 5), ("batch", (2, 3, 33), 17), ("nothing", (0, 4), 3), ("past_tile", (65, 129), 33))
op("matmul_bias_activation(Tensor x, Tensor weight, Tensor? bias=None, *, {" + "|".join(_ACTIVATIONS) + "} activation=none) -> Tensor",
   family="product", dtypes=FLOATS, infer=_infer_fused, reference=_fused,
   budget=Conditioned(k=4, terms=lambda x, weight, bias, **_: x.shape[-1], roundings=1),
   composite="the activation in place costs a pass over the result, K times less than the product", compose=_compose_fused,
   doc="activation(x @ weight^T + bias): x (..., K), weight (N, K), bias (N), result (..., N); the product is rounded to x's dtype first.",
   cost=_fused_cost, names={"vllm": ("fused_linear_activation",), "paddle": ("fused_gemm_epilogue",)},
   samples=[Sample(f"{n}_{a}", (In(s), In((features, s[-1])), In((features,)) if i % 2 else None), {"activation": a})
            for i, a in enumerate(_ACTIVATIONS) for j, (n, s, features) in enumerate(_SHAPES) if (i + j) % 3 == 0 or a in ("relu", "gelu")] + [
       Sample("bert_base_ffn", (In((128, 768)), In((3072, 768)), In((3072,))), {"activation": "gelu"}, "BERT-base feed forward", "inference")],
   bad=(Bad("features", (In((3, 4)), In((6, 5)), None), ShapeError, ("(3, 4)", "(6, 5)")),
        Bad("bias_shape", (In((3, 4)), In((6, 4)), In((4,))), ShapeError, ("bias", "(4,)", "(6,)")),
        Bad("dtypes", (In((3, 4)), In((5, 4), dtype="float64"), None), DTypeError, ("float32", "float64"))))
