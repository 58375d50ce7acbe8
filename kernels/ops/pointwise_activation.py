"""Activations of networks beyond relu, gelu and silu, their gradients as aten names them, and gates: an activation times a factor.

Same decorator, same rules as pointwise.py.  Not here: gates over the two halves of one tensor (gated.py).
"""
from __future__ import annotations

from typing import Any, Literal

import numpy as np

from .budget import Composite, Exact
from .formula import m
from .gradient import unbroadcast
from .pointwise import GELU_CUBIC, SQRT_HALF, _binary, _same, _unary, pointwise
from .pointwise_grad import gelu_backward, silu_backward
from .record import FLOATS, NUMBERS, OPS

__all__ = ["OPS"]

SQRT_8_OVER_PI = 1.5957691216057308


def _expit(x: Any) -> Any:
    from scipy.special import expit

    return expit(x)


# ---- exponential and leaky units ---------------------------------------------------------------------------------------
_ELU = ({"alpha": 1.0, "scale": 1.0, "input_scale": 1.0}, {"alpha": 1.6732632, "scale": 1.0507009, "input_scale": 1.0},  # the second: selu
        {"alpha": 0.5, "scale": 2.0, "input_scale": 0.25})


@pointwise(lambda x, alpha, scale, input_scale: np.where(x > 0, scale * x, alpha * scale * np.expm1(input_scale * x)), budget=Composite(),
           domain=(-20.0, 5.0), attrs=_ELU, golden=((2.0, 2.0), (-1.0, -0.6321205588285577)), aten=("elu",), onnx=("Elu",), paddle=("elu",),
           grad=_unary(lambda o, dy, x, y, a: o.elu_backward(dy, x, alpha=a["alpha"], scale=a["scale"], input_scale=a["input_scale"])))
def elu(x, *, alpha=1, scale=1, input_scale=1):
    """scale x above 0, else scale alpha (exp(input_scale x) - 1); selu and celu are this with other numbers."""
    return m.where(x > 0.0, scale * x, alpha * scale * m.expm1(input_scale * x))


def _elu_backward(dy, x, alpha, scale, input_scale, is_result):
    below = x + alpha * scale if is_result else alpha * scale * np.exp(input_scale * x)
    return np.where(x <= 0, dy * input_scale * below, dy * scale)


@pointwise(_elu_backward, budget=Composite(), draws=("normal", "normal"), golden=((2.0, 3.0, 2.0),), aten=("elu_backward",), paddle=("elu_grad",),
           attrs=tuple({**a, "is_result": float(i == 1)} for i, a in enumerate(_ELU)))
def elu_backward(dy, x, *, alpha=1, scale=1, input_scale=1, is_result=0):
    """Gradient of elu at x, times dy; x is elu's result where is_result is not 0."""
    below = m.where(is_result != 0.0, x + alpha * scale, alpha * scale * m.exp(input_scale * x))
    return m.where(x <= 0.0, dy * input_scale * below, dy * scale)


@pointwise(lambda x, threshold, value: np.where(x <= threshold, value, x), dtypes=FLOATS, budget=Exact(),
           attrs=({"threshold": 0.5, "value": -2.0}, {"threshold": 0.0, "value": 3.0}), aten=("threshold",),
           onnx=("ThresholdedRelu",), paddle=("thresholded_relu",),
           grad=_unary(lambda o, dy, x, y, a: o.threshold_backward(dy, x, threshold=a["threshold"])))
def threshold(x, *, threshold, value):
    """x where it is above threshold, else value; NaN stays."""
    return m.where(x <= threshold, value, x)


_SLOPES = ({"negative_slope": 0.01}, {"negative_slope": 0.5})


@pointwise(lambda x, negative_slope: np.where(x > 0, x, x * negative_slope), budget=Composite(k=2), attrs=_SLOPES,
           golden=((2.0, 2.0), (-1.0, -0.01)), aten=("leaky_relu",), onnx=("LeakyRelu",), paddle=("leaky_relu",),
           grad=_unary(lambda o, dy, x, y, a: o.leaky_relu_backward(dy, x, negative_slope=a["negative_slope"])))
def leaky_relu(x, *, negative_slope=0.01):
    """x above 0, else negative_slope x."""
    return m.where(x > 0.0, x, x * negative_slope)


@pointwise(lambda dy, x, negative_slope, self_is_result: np.where(x > 0, dy, dy * negative_slope), budget=Composite(k=2),
           draws=("normal", "normal"), attrs=tuple({**a, "self_is_result": 0.0} for a in _SLOPES), aten=("leaky_relu_backward",), paddle=("leaky_relu_grad",))
def leaky_relu_backward(dy, x, *, negative_slope, self_is_result=0):
    """Gradient of leaky_relu at x, times dy; x may be the result, whose sign is the same (self_is_result changes nothing)."""
    return m.where(x > 0.0, dy, dy * negative_slope)


# ---- piecewise linear units --------------------------------------------------------------------------------------------
@pointwise(lambda x: x * np.clip(x + 3, 0, 6) / 6, budget=Composite(), domain=(-5.0, 5.0), golden=((3.0, 3.0), (-3.0, 0.0)), aten=("hardswish",),
           onnx=("HardSwish",), paddle=("hardswish",), grad=_unary(lambda o, dy, x, y, a: o.hardswish_backward(dy, x)))
def hardswish(x):
    """x min(max(x + 3, 0), 6) / 6."""
    return x * m.minimum(m.maximum(x + 3.0, 0.0), 6.0) / 6.0


@pointwise(lambda dy, x: np.where(x < -3, 0 * dy, np.where(x <= 3, dy * (x / 3 + 0.5), dy)), budget=Composite(), draws=("normal", "normal"),
           golden=((2.0, 0.0, 1.0), (2.0, 4.0, 2.0)), aten=("hardswish_backward",), paddle=("hardswish_grad",))
def hardswish_backward(dy, x):
    """Gradient of hardswish at x, times dy."""
    return m.where(x < -3.0, 0.0 * dy, m.where(x <= 3.0, dy * (x / 3.0 + 0.5), dy))


@pointwise(lambda x: np.clip(x + 3, 0, 6) / 6, budget=Composite(), domain=(-5.0, 5.0), golden=((0.0, 0.5),), aten=("hardsigmoid",),
           onnx=("HardSigmoid",), paddle=("hardsigmoid",), grad=_unary(lambda o, dy, x, y, a: o.hardsigmoid_backward(dy, x)))
def hardsigmoid(x):
    """min(max(x + 3, 0), 6) / 6."""
    return m.minimum(m.maximum(x + 3.0, 0.0), 6.0) / 6.0


@pointwise(lambda dy, x: np.where((x > -3) & (x < 3), dy / 6, 0.0), budget=Composite(), draws=("normal", "normal"), golden=((6.0, 0.0, 1.0),),
           aten=("hardsigmoid_backward",), paddle=("hardsigmoid_grad",))
def hardsigmoid_backward(dy, x):
    """Gradient of hardsigmoid at x, times dy: dy / 6 between -3 and 3, else 0."""
    return m.where((x > -3.0) & (x < 3.0), dy / 6.0, 0.0)


_HARD = ({"min_val": -1.0, "max_val": 1.0}, {"min_val": 0.0, "max_val": 6.0})


@pointwise(lambda x, min_val, max_val: np.minimum(np.maximum(x, _same(x, min_val)), _same(x, max_val)), dtypes=tuple(d for d in NUMBERS if d.kind != "u"),
           budget=Exact(), attrs=_HARD, golden=((3.0, 1.0), (-0.5, -0.5)), aten=("hardtanh",), paddle=("hardtanh",),
           grad=_unary(lambda o, dy, x, y, a: o.hardtanh_backward(dy, x, min_val=a["min_val"], max_val=a["max_val"])))
def hardtanh(x, *, min_val=-1, max_val=1):
    """x limited to [min_val, max_val]; NaN stays.  relu6 is hardtanh from 0 to 6."""
    return m.minimum(m.maximum(x, min_val), max_val)


@pointwise(lambda dy, x, min_val, max_val: np.where((x <= min_val) | (x >= max_val), 0.0, dy), budget=Exact(), draws=("normal", "normal"),
           attrs=_HARD, aten=("hardtanh_backward",), paddle=("hardtanh_grad",))
def hardtanh_backward(dy, x, *, min_val, max_val):
    """dy where min_val < x < max_val (or x is NaN), else 0."""
    return m.where((x <= min_val) | (x >= max_val), 0.0, dy)


# ---- softplus ----------------------------------------------------------------------------------------------------------
_SOFT = ({"beta": 1.0, "threshold": 20.0}, {"beta": 2.0, "threshold": 5.0})


@pointwise(lambda x, beta, threshold: np.where(x * beta > threshold, x, np.log1p(np.exp(x * beta)) / beta), budget=Composite(),
           domain=(-30.0, 30.0), attrs=_SOFT, golden=((0.0, 0.6931471805599453), (30.0, 30.0)), aten=("softplus",), onnx=("Softplus",),
           paddle=("softplus",), grad=_unary(lambda o, dy, x, y, a: o.softplus_backward(dy, x, beta=a["beta"], threshold=a["threshold"])))
def softplus(x, *, beta=1, threshold=20):
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above threshold."""
    return m.where(x * beta > threshold, x, m.log1p(m.exp(x * beta)) / beta)


@pointwise(lambda dy, x, beta, threshold: np.where(x * beta > threshold, dy, dy * _expit(x * beta)), budget=Composite(), draws=("normal", "normal"),
           attrs=_SOFT, aten=("softplus_backward",), paddle=("softplus_grad",))
def softplus_backward(dy, x, *, beta, threshold):
    """Gradient of softplus at x, times dy."""
    return m.where(x * beta > threshold, dy, dy * m.sigmoid(x * beta))

# ---- gates: activation(gate) times up ----------------------------------------------------------------------------------
_GATE = (("llama_gate", (11008,), "Llama-7B gated feed-forward, one token", "llm", ("llm",)),
         ("square_4096", (4096, 4096), "", "full", ("full",)))


def _gated(gate, share, up):
    """gate share up in the order in which float64 neither overflows nor loses a subnormal on the way."""
    return np.where(np.abs(gate) < 1, gate * up * share, gate * share * up)


@pointwise(lambda gate, up: _gated(gate, _expit(gate), up), budget=Composite(), draws=("normal", "normal"), models=_GATE,
           golden=((1.0, 2.0, 1.4621171572600098),), paddle=("swiglu",), vllm=("silu_and_mul",),
           grad=_binary(lambda o, dy, gate, up, y, a: o.silu_and_mul_backward(dy, gate, up), lambda o, dy, gate, up, y, a: o.silu_and_mul(gate, dy)))
def silu_and_mul(gate, up):
    """silu(gate) up, both tensors given apart; swiglu takes them as halves of one."""
    return gate * up * m.sigmoid(gate)


@pointwise(lambda dy, gate, up: dy * up * (_expit(gate) + gate * _expit(gate) * _expit(-gate)), budget=Composite(), draws=("normal",) * 3,
           models=_GATE[1:], golden=((1.0, 0.0, 3.0, 1.5),), paddle=("swiglu_grad",))
def silu_and_mul_backward(dy, gate, up):
    """Gradient of silu_and_mul for gate; the one for up is silu_and_mul(gate, dy)."""
    return silu_backward(dy * up, gate)


def _gelu_share(x, approximate):
    """gelu(x) / x."""
    from scipy.special import ndtr

    return _expit(1.5957691216057308 * (x + 0.044715 * x**3)) if approximate == "tanh" else ndtr(x)


def _gelu_slope(x, approximate):
    from scipy.special import ndtr

    if approximate == "none":
        return ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    z = 1.5957691216057308 * (x + 0.044715 * x**3)
    return _expit(z) + x * _expit(z) * _expit(-z) * 1.5957691216057308 * (1 + 3 * 0.044715 * x * x)


_APPROXIMATE = ({"approximate": "none"}, {"approximate": "tanh"})


def _gelu_and_mul_grad(o, dy, inputs, y, a):
    gate, up = inputs
    parts = (o.gelu_and_mul_backward(dy, gate, up, approximate=a["approximate"]), gate), (o.gelu_and_mul(gate, dy, approximate=a["approximate"]), up)
    return tuple(unbroadcast(o, g, t.shape) for g, t in parts)


@pointwise(lambda gate, up, approximate: _gated(gate, _gelu_share(gate, approximate), up), budget=Composite(), draws=("normal", "normal"), attrs=_APPROXIMATE,
           models=_GATE, golden=((1.0, 2.0, 1.6826894921370859),), grad=_gelu_and_mul_grad, vllm=("gelu_and_mul",))
def gelu_and_mul(gate, up, *, approximate: Literal["none", "tanh"] = "none"):
    """gelu(gate) up, both tensors given apart; geglu takes them as halves of one."""
    if approximate == "tanh":  # (1 + tanh z) / 2 = sigmoid(2 z)
        return gate * up * m.sigmoid(SQRT_8_OVER_PI * (gate + GELU_CUBIC * gate * gate * gate))
    return 0.5 * (gate * up) * (1.0 + m.erf(gate * SQRT_HALF))


@pointwise(lambda dy, gate, up, approximate: dy * up * _gelu_slope(gate, approximate), budget=Composite(), draws=("normal",) * 3,
           attrs=_APPROXIMATE, models=_GATE[1:], golden=((1.0, 0.0, 3.0, 1.5),), paddle=("geglu_grad",))
def gelu_and_mul_backward(dy, gate, up, *, approximate: Literal["none", "tanh"] = "none"):
    """Gradient of gelu_and_mul for gate; the one for up is gelu_and_mul(gate, dy)."""
    if approximate == "tanh":  # by sigmoid, whose small values keep their digits
        square = gate * gate
        share = m.sigmoid(SQRT_8_OVER_PI * (gate + GELU_CUBIC * square * gate))
        rise = SQRT_8_OVER_PI * (1.0 + 3.0 * GELU_CUBIC * square)
        return dy * up * (share + gate * (share * (1.0 - share)) * rise)
    return gelu_backward(dy * up, gate)


@pointwise(lambda gate, up: np.maximum(gate, 0) * up, budget=Composite(k=2), draws=("normal", "normal"), models=_GATE[1:],
           golden=((2.0, 3.0, 6.0), (-2.0, 3.0, 0.0)), vllm=("relu_and_mul",),
           grad=_binary(lambda o, dy, gate, up, y, a: o.relu_and_mul_backward(dy, gate, up), lambda o, dy, gate, up, y, a: o.relu_and_mul(gate, dy)))
def relu_and_mul(gate, up):
    """relu(gate) up, both tensors given apart; reglu takes them as halves of one."""
    return m.maximum(gate, 0.0) * up


@pointwise(lambda dy, gate, up: np.where(gate <= 0, 0.0, dy * up), budget=Composite(k=2), draws=("normal",) * 3, models=_GATE[1:],
           golden=((2.0, 1.0, 3.0, 6.0),), paddle=("reglu_grad",))
def relu_and_mul_backward(dy, gate, up):
    """Gradient of relu_and_mul for gate; the one for up is relu_and_mul(gate, dy)."""
    return m.where(gate <= 0.0, 0.0, dy * up)
