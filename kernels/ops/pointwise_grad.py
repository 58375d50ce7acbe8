"""Gradients of pointwise operators that are operators themselves, as aten names them.  The decorator: pointwise.py."""
from __future__ import annotations

from typing import Literal

import numpy as np

from .budget import Composite, Exact
from .formula import m
from .pointwise import GELU_CUBIC, INV_SQRT_2PI, SQRT_2_OVER_PI, SQRT_HALF, pointwise

__all__: list[str] = []


def _gelu_backward(dy, x, approximate):
    from scipy.special import expit, ndtr

    if approximate == "none":
        return dy * (ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi))
    z = 2 * SQRT_2_OVER_PI * (x + GELU_CUBIC * x**3)
    return dy * (expit(z) + x * expit(z) * expit(-z) * 2 * SQRT_2_OVER_PI * (1 + 3 * GELU_CUBIC * x * x))


@pointwise(_gelu_backward, budget=Composite(), draws=("normal", "normal"), attrs=({"approximate": "none"}, {"approximate": "tanh"}),
           golden=((1.0, 0.0, 0.5), (1.0, 1.0, 1.0833154705876864)), aten=("gelu_backward",), paddle=("gelu_grad",))
def gelu_backward(dy, x, *, approximate: Literal["none", "tanh"] = "none"):
    """Gradient of gelu at x, times dy."""
    if approximate == "tanh":
        x2 = x * x
        t = m.tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x2 * x))
        slope = SQRT_2_OVER_PI * (1.0 + 3.0 * GELU_CUBIC * x2)
        return dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
    cdf = 0.5 * (1.0 + m.erf(x * SQRT_HALF))
    pdf = INV_SQRT_2PI * m.exp(-0.5 * x * x)
    return dy * (cdf + x * pdf)


def _silu_backward(dy, x):
    from scipy.special import expit

    return dy * (expit(x) + x * expit(x) * expit(-x))


@pointwise(_silu_backward, budget=Composite(), draws=("normal", "normal"), golden=((1.0, 0.0, 0.5),), aten=("silu_backward",),
           paddle=("silu_grad",))
def silu_backward(dy, x):
    """Gradient of silu at x, times dy."""
    s = m.sigmoid(x)
    return dy * (s * (1.0 + x * (1.0 - s)))


@pointwise(lambda dy, y: dy * (1 - y * y), budget=Composite(), draws=("normal", "uniform"), golden=((2.0, 0.5, 1.5),),
           aten=("tanh_backward",), paddle=("tanh_grad",))
def tanh_backward(dy, y):
    """Gradient of tanh from its result y, times dy: dy (1 - y^2)."""
    return dy * (1.0 - y * y)


@pointwise(lambda dy, y: dy * y * (1 - y), budget=Composite(), draws=("normal", "unit"), golden=((2.0, 0.5, 0.5),),
           aten=("sigmoid_backward",), paddle=("sigmoid_grad",))
def sigmoid_backward(dy, y):
    """Gradient of sigmoid from its result y, times dy: dy y (1 - y)."""
    return dy * (1.0 - y) * y


@pointwise(lambda dy, x, threshold: np.where(x <= threshold, 0.0, dy), budget=Exact(), draws=("normal", "normal"),
           attrs=({"threshold": 0.0}, {"threshold": 0.5}), golden=((2.0, 0.5, 2.0), (2.0, -0.5, 0.0), (2.0, 0.0, 0.0)),
           aten=("threshold_backward",), paddle=("relu_grad",))
def threshold_backward(dy, x, *, threshold=0):
    """dy where x > threshold (or x is NaN), else 0: the gradient of relu from its input or result."""
    return m.where(x <= threshold, 0.0, dy)


@pointwise(lambda dy, mask, scale: dy * (mask * np.float64(scale)), budget=Composite(k=1), draws=("normal", "mask"),
           attrs=({"scale": 2.0}, {"scale": 1.0}), aten=("native_dropout_backward",), paddle=("dropout_grad",))
def native_dropout_backward(dy, mask: bool, *, scale):
    """dy scale where the dropout mask kept the element, else 0."""
    return dy * m.where(mask, scale, 0.0)
