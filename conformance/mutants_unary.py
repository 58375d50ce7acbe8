"""Mutants of the operators of pointwise_elementary.py and pointwise_activation.py.  How they are run: mutants.py; the makers: mutate.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .mutate import Maker, Row, attr, inputs, result, swap

__all__ = ["ROWS"]

f32 = np.float32


def _instead(fn: Callable) -> Maker:
    """Floating results by another formula in float32 (float64 stays right: its cases would not show the mistake alone)."""

    def call(y, t, a):
        if y.dtype.kind not in "biu" and y.dtype != np.float64:
            return np.asarray(fn(*(x.astype(f32) for x in t), **a)).astype(y.dtype)
        return y

    return result(call)


def _integers(fn: Callable) -> Maker:
    return result(lambda y, t, a: np.asarray(fn(*t)).astype(y.dtype) if y.dtype.kind in "iu" else y)


def _trunc_divide(x, y):
    return np.where(y == 0, 0, (np.sign(x.astype(np.int64)) * (np.abs(x.astype(np.int64)) // np.maximum(np.abs(y.astype(np.int64)), 1))) * np.sign(y.astype(np.int64)))


# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    ("floor", "cut towards zero", "value", _instead(np.trunc)),
    ("ceil", "floor plus one", "value", _instead(lambda x: np.floor(x) + 1)),
    ("trunc", "through int32", "value", _instead(lambda x: np.clip(np.nan_to_num(x), -(2**31), 2**31 - 1).astype(np.int64))),
    ("fmod", "x - trunc(x / y) y: large quotients lose everything", "value", _instead(lambda x, y: x - np.trunc(x / y) * y)),
    ("fmod", "sign of the divisor", "value", _integers(np.remainder)),
    ("remainder", "sign of the dividend", "value", _integers(np.fmod)),
    ("remainder", "x - floor(x / y) y", "value", _instead(lambda x, y: x - np.floor(x / y) * y)),
    ("floor_divide", "towards zero", "value", _integers(_trunc_divide)),
    ("floor_divide", "floor of the rounded quotient", "value", _instead(lambda x, y: np.floor((x / y).astype(np.float16)))),
    ("expm1", "exp(x) - 1", "value", _instead(lambda x: np.exp(x) - 1)),
    ("exp2", "exp of the rounded product with ln 2", "value", _instead(lambda x: np.exp(x * f32(0.6931472)))),
    ("log1p", "log(1 + x)", "value", _instead(lambda x: np.log(1 + x))),
    ("log2", "negative arguments by their size", "value", inputs(lambda t: [np.abs(t[0])])),
    ("log10", "subnormals taken for 0", "value", inputs(lambda t: [np.where(np.abs(t[0]) < 2.0**-126, t[0] * 0, t[0])])),
    ("logaddexp", "overflows without the maximum", "special", _instead(lambda x, y: np.log(np.exp(x) + np.exp(y)))),
    ("tan", "argument reduced by float32 pi", "value", inputs(lambda t: [np.fmod(t[0], f32(3.1415927)).astype(t[0].dtype)])),
    ("asin", "clamped to [-1, 1] instead of NaN", "value", inputs(lambda t: [np.clip(t[0], -1, 1)])),
    ("acos", "pi / 2 - asin x: digits lost near 1", "value", _instead(lambda x: (f32(1.5707964) - np.arcsin(x)).astype(f32))),
    ("atan", "pi / 2 - 1 / x from 3 on", "value", _instead(lambda x: np.where(x > 3, f32(1.5707964) - 1 / x, np.arctan(x)))),
    ("atan2", "quadrant forgotten", "value", _instead(lambda y, x: np.arctan(y / x))),
    ("atan2", "arguments swapped", "value", swap(0, 1)),
    ("sinh", "(e^x - e^-x) / 2", "value", _instead(lambda x: (np.exp(x) - np.exp(-x)) / 2)),
    ("cosh", "overflows at 88.7 with exp", "value", _instead(lambda x: (np.exp(x) + np.exp(-x)) * f32(0.5))),
    ("asinh", "log(x + sqrt(x x + 1))", "value", _instead(lambda x: np.log(x + np.sqrt(x * x + 1)))),
    ("acosh", "NaN below 1 becomes 0", "value", _instead(lambda x: np.nan_to_num(np.arccosh(x), nan=0.0, posinf=np.inf))),
    ("atanh", "log((1 + x) / (1 - x)) / 2", "value", _instead(lambda x: np.log((1 + x) / (1 - x)) / 2)),
    ("erfinv", "Winitzki's approximation", "value", _instead(lambda x: _winitzki(x))),
    ("isnan", "infinity too", "value", result(lambda y, t, a: ~np.isfinite(t[0].astype(np.float64)) if t[0].dtype.kind not in "iub" else y)),
    ("isinf", "only the positive one", "value", result(lambda y, t, a: np.isposinf(t[0].astype(np.float64)))),
    ("isfinite", "NaN is finite", "value", result(lambda y, t, a: y | (t[0] != t[0]))),
    ("signbit", "less than 0: -0 is positive", "value", result(lambda y, t, a: t[0] < 0)),
    ("logical_xor", "bits instead of truth", "value", result(lambda y, t, a: (t[0] ^ t[1]) != 0 if t[0].dtype.kind in "iu" else y)),
    ("elu", "scale ignored", "value", attr(scale=1.0)),
    ("elu_backward", "the result taken for the input", "value", attr(is_result=0.0)),
    ("leaky_relu", "slope ignored", "value", attr(negative_slope=0.01)),
    ("leaky_relu_backward", "slope on the positive side", "value", inputs(lambda t: [t[0], -t[1]])),
    ("hardswish", "divided by 5", "value", _instead(lambda x: x * np.clip(x + 3, 0, 6) / 5)),
    ("hardswish_backward", "linear part left out", "value", _instead(lambda dy, x: np.where(x < -3, 0 * dy, dy))),
    ("hardsigmoid", "slope 0.2", "value", _instead(lambda x: np.clip(x * f32(0.2) + f32(0.5), 0, 1))),
    ("hardsigmoid_backward", "no gradient on the negative side", "value", _instead(lambda dy, x: np.where((x > 0) & (x < 3), dy / 6, 0))),
    ("hardtanh", "upper limit is minus the lower", "value", attr(max_val=1.0)),
    ("hardtanh_backward", "limits swapped", "value", inputs(lambda t: [t[0], np.where(np.abs(t[1]) < 1, t[1] + 10, t[1] * 0).astype(t[1].dtype)])),
    ("softplus", "beta ignored", "value", attr(beta=1.0)),
    ("softplus", "threshold ignored: exp overflows", "value", _instead(lambda x, beta, threshold: np.log1p(np.exp(x * f32(beta))) / f32(beta))),
    ("softplus_backward", "beta ignored", "value", attr(beta=1.0)),
    ("silu_and_mul", "gate and factor swapped", "value", swap(0, 1)),
    ("silu_and_mul_backward", "dy left out", "value", inputs(lambda t: [np.ones_like(t[0]), *t[1:]])),
    ("gelu_and_mul", "always exact", "value", attr(approximate="none")),
    ("gelu_and_mul_backward", "always exact", "value", attr(approximate="none")),
    ("relu_and_mul", "relu of the factor", "value", swap(0, 1)),
    ("relu_and_mul_backward", "gradient at 0 and below", "value", inputs(lambda t: [t[0], np.abs(t[1]) + 1, t[2]])),
    ("swiglu", "halves swapped", "value", inputs(lambda t: [_swapped(t[0])])),
    ("swiglu", "even and odd elements instead of halves", "value", inputs(lambda t: [_even_odd(t[0])])),
    ("swiglu_backward", "halves of the gradient swapped", "value", result(lambda y, t, a: _swapped(y))),
    ("geglu", "halves swapped", "value", inputs(lambda t: [_swapped(t[0])])),
    ("geglu_backward", "approximate ignored", "value", attr(approximate="none")),
    ("reglu", "the gate unclipped", "value", result(lambda y, t, a: _product(t[0]).astype(y.dtype))),
    ("reglu_backward", "halves of the gradient swapped", "value", result(lambda y, t, a: _swapped(y))),
)  # fmt: skip


def _winitzki(x):
    w = np.log1p(-x * x)
    b = 2 / (np.pi * 0.147) + w / 2
    return np.sign(x) * np.sqrt(np.sqrt(b * b - w / 0.147) - b)


def _halves(x):
    n = x.shape[-1] // 2
    return x[..., :n], x[..., n:]


def _swapped(x):
    return np.concatenate(_halves(x)[::-1], -1)


def _even_odd(x):
    return np.concatenate([x[..., ::2], x[..., 1::2]], -1)


def _product(x):
    gate, up = _halves(x)
    return gate.astype(f32) * up.astype(f32)
