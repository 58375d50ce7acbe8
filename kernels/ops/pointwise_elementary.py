"""Pointwise operators of the usual mathematics beyond pointwise.py's: rounding, remainders, logarithms, trigonometry.

Same decorator, same rules as pointwise.py.  Not here: activations of networks (pointwise_activation.py).
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from .budget import Composite, Exact, Faithful
from .formula import m
from .gradient import scaled, zeros
from .pointwise import TWO_OVER_SQRT_PI, _binary, _unary, pointwise
from .record import ANY, FLOATS, NUMBERS

__all__: list[str] = []

INFINITY = math.inf
PI = math.pi
LN2 = math.log(2)
LN10 = math.log(10)
FAR = 80.0  # exp stays finite up to 88.7 in float32; beyond this sinh and cosh square exp(x / 2)
HUGE = 1e18  # from here on sqrt(x^2 +- 1) is x in float32 and float64


def _one(o: Any, x: Any) -> Any:
    return o.full((), 1.0, dtype=x.dtype)


def _flat(o: Any, dy: Any, x: Any, y: Any, a: Any) -> Any:
    """The gradient of a step function."""
    return zeros(o, x.shape, x.dtype)


def _kept(rounding: Any) -> Any:
    """NumPy's rounding to integers, which leaves integers as they are (NumPy 1 made floats of them)."""
    return lambda x: rounding(x) if x.dtype.kind == "f" else x


# ---- rounding ----------------------------------------------------------------------------------------------------------
@pointwise(_kept(np.floor), dtypes=NUMBERS, budget=Exact(signed_zero=True), grad=_unary(_flat), golden=((-1.5, -2.0), (2.5, 2.0)),
           aten=("floor",), onnx=("Floor",), paddle=("floor",))
def floor(x):
    """The largest integer not above x; integers stay."""
    return m.floor(x)


@pointwise(_kept(np.ceil), dtypes=NUMBERS, budget=Exact(signed_zero=True), grad=_unary(_flat), golden=((-1.5, -1.0), (2.5, 3.0)),
           aten=("ceil",), onnx=("Ceil",), paddle=("ceil",))
def ceil(x):
    """The least integer not below x; integers stay."""
    return m.ceil(x)


@pointwise(_kept(np.trunc), dtypes=NUMBERS, budget=Exact(signed_zero=True), grad=_unary(_flat), golden=((-1.5, -1.0), (2.5, 2.0)),
           aten=("trunc",), paddle=("trunc",))
def trunc(x):
    """x without its fraction, towards zero; integers stay."""
    return m.trunc(x)


@pointwise(_kept(np.rint), dtypes=NUMBERS, budget=Exact(signed_zero=True), grad=_unary(_flat), golden=((0.5, 0.0), (1.5, 2.0), (-2.5, -2.0)),
           domain=(-8.0, 8.0), aten=("round",), onnx=("Round",), paddle=("round",))
def round(x):
    """The integer nearest to x, the even one of two; integers stay."""
    return m.round(x)


# ---- division ----------------------------------------------------------------------------------------------------------


@pointwise(np.fmod, dtypes=NUMBERS, budget=Exact(), draws=("wide", "positive"), golden=((-7.0, 3.0, -1.0), (7.5, 2.0, 1.5)),
           aten=("fmod.Tensor", "fmod.Scalar"), onnx=("Mod",),
           grad=_binary(lambda o, dy, x, y, r, a: dy, lambda o, dy, x, y, r, a: o.neg(o.mul(dy, o.trunc(o.div(x, y))))))
def fmod(x, y):
    """Remainder of x / y with the sign of x, exact; NaN for y = 0.  Division of an integer by 0 gives 0."""
    return m.fmod(x, y)


@pointwise(np.remainder, dtypes=NUMBERS, budget=Faithful(k=0.5), draws=("wide", "positive"), golden=((-7.0, 3.0, 2.0), (7.5, -2.0, -0.5)),
           aten=("remainder.Tensor", "remainder.Scalar"), paddle=("remainder", "mod"),
           grad=_binary(lambda o, dy, x, y, r, a: dy, lambda o, dy, x, y, r, a: o.neg(o.mul(dy, o.floor_divide(x, y)))))
def remainder(x, y):
    """x - y floor(x / y), with the sign of y; NaN for y = 0.  Division of an integer by 0 gives 0."""
    return m.remainder(x, y)


@pointwise(np.floor_divide, dtypes=NUMBERS, budget=Faithful(k=2), draws=("wide", "positive"), golden=((-7.0, 2.0, -4.0), (7.5, 2.0, 3.0)),
           aten=("floor_divide", "floor_divide.Scalar"), paddle=("floor_divide",),
           grad=_binary(lambda o, dy, x, y, r, a: zeros(o, r.shape, r.dtype), lambda o, dy, x, y, r, a: zeros(o, r.shape, r.dtype)))
def floor_divide(x, y):
    """floor(x / y) of the exact quotient; x / y for y = 0.  Division of an integer by 0 gives 0."""
    return m.floor_divide(x, y)


# ---- exponentials and logarithms ----------------------------------------------------------------------------------------
@pointwise(np.expm1, domain=(-110.0, 95.0), grad=_unary(lambda o, dy, x, y, a: o.add(dy, o.mul(dy, y))), golden=((1.0, math.expm1(1.0)),),
           aten=("expm1",), paddle=("expm1",))
def expm1(x):
    """exp(x) - 1 without cancellation near 0."""
    return m.expm1(x)


@pointwise(np.exp2, domain=(-155.0, 130.0), grad=_unary(lambda o, dy, x, y, a: scaled(o, o.mul(dy, y), LN2)), golden=((3.0, 8.0), (-1.0, 0.5)),
           aten=("exp2",), paddle=("exp2",))
def exp2(x):
    """2 to the power x; exact for integers."""
    return m.exp2(x)


@pointwise(np.log1p, domain=(-1.0, 4.0), draws=("positive",), grad=_unary(lambda o, dy, x, y, a: o.div(dy, o.add(x, _one(o, x)))),
           golden=((1.0, LN2),), aten=("log1p",), paddle=("log1p",))
def log1p(x):
    """log(1 + x) without cancellation near 0; -inf at -1, NaN below."""
    return m.log1p(x)


@pointwise(np.log2, domain=(0.0, 4.0), draws=("positive",), grad=_unary(lambda o, dy, x, y, a: o.div(scaled(o, dy, 1 / LN2), x)),
           golden=((8.0, 3.0), (0.5, -1.0)), aten=("log2",), paddle=("log2",))
def log2(x):
    """Logarithm to base 2; exact for powers of two, -inf at 0, NaN below."""
    return m.log2(x)


@pointwise(np.log10, domain=(0.0, 4.0), draws=("positive",), grad=_unary(lambda o, dy, x, y, a: o.div(scaled(o, dy, 1 / LN10), x)),
           golden=((1000.0, 3.0),), aten=("log10",), paddle=("log10",))
def log10(x):
    """Logarithm to base 10; -inf at 0, NaN below."""
    return m.log10(x)


@pointwise(np.logaddexp, budget=Composite(), draws=("normal", "normal"), golden=((0.0, 0.0, LN2), (1000.0, 1000.0, 1000.0 + LN2)),
           aten=("logaddexp",), paddle=("logaddexp",),
           grad=_binary(lambda o, dy, x, y, r, a: o.mul(dy, o.sigmoid(o.sub(x, y))), lambda o, dy, x, y, r, a: o.mul(dy, o.sigmoid(o.sub(y, x)))))
def logaddexp(x, y):
    """log(exp(x) + exp(y)) without overflow."""
    return m.where(x == y, x + LN2, m.maximum(x, y) + m.log1p(m.exp(-m.abs(x - y))))


# ---- circular functions ------------------------------------------------------------------------------------------------
@pointwise(np.tan, domain=(-30.0, 30.0), draws=("uniform",), grad=_unary(lambda o, dy, x, y, a: o.mul(dy, o.add(_one(o, x), o.mul(y, y)))),
           golden=((1.0, math.tan(1.0)),), aten=("tan",), onnx=("Tan",), paddle=("tan",))
def tan(x):
    """Tangent of x in radians, right for every finite x; NaN for infinities."""
    return m.tan(x)


def _over_root(o: Any, dy: Any, square: Any) -> Any:
    """dy / sqrt(square)."""
    return o.mul(dy, o.rsqrt(square))


@pointwise(np.arcsin, domain=(-1.0, 1.0), draws=("normal",), golden=((0.5, math.asin(0.5)), (1.0, PI / 2)), aten=("asin",), onnx=("Asin",),
           paddle=("asin",), grad=_unary(lambda o, dy, x, y, a: _over_root(o, dy, o.sub(_one(o, x), o.mul(x, x)))))
def asin(x):
    """Angle in [-pi/2, pi/2] whose sine is x; NaN outside [-1, 1]."""
    return m.asin(x)


@pointwise(np.arccos, domain=(-1.0, 1.0), draws=("normal",), golden=((0.5, math.acos(0.5)), (-1.0, PI)), aten=("acos",), onnx=("Acos",),
           paddle=("acos",))
def acos(x):
    """Angle in [0, pi] whose cosine is x; NaN outside [-1, 1]."""
    return m.acos(x)


@pointwise(np.arctan, domain=(-10.0, 10.0), golden=((1.0, PI / 4),), aten=("atan",), onnx=("Atan",), paddle=("atan",),
           grad=_unary(lambda o, dy, x, y, a: o.div(dy, o.add(_one(o, x), o.mul(x, x)))))
def atan(x):
    """Angle in [-pi/2, pi/2] whose tangent is x."""
    return m.atan(x)


def _atan2_grad(o: Any, dy: Any, part: Any, y: Any, x: Any) -> Any:
    return o.mul(dy, o.div(part, o.add(o.mul(x, x), o.mul(y, y))))


@pointwise(np.arctan2, golden=((1.0, -1.0, 3 * PI / 4), (-1.0, 0.0, -PI / 2)), domain=(-4.0, 4.0), aten=("atan2",), paddle=("atan2",),
           grad=_binary(lambda o, dy, y, x, r, a: _atan2_grad(o, dy, x, y, x), lambda o, dy, y, x, r, a: o.neg(_atan2_grad(o, dy, y, y, x))))
def atan2(y, x):
    """Angle in [-pi, pi] of the point (x, y); C99's values at zeros and infinities."""
    up = m.abs(y)
    right = m.abs(x)
    endless = (up == INFINITY) & (right == INFINITY)
    nowhere = (up == 0.0) & (right == 0.0)
    steep = m.where(endless, 1.0, m.where(nowhere, 0.0, up / right))
    angle = m.atan(steep)
    return m.copysign(m.where(m.signbit(x), PI - angle, angle), y)


# ---- hyperbolic functions ----------------------------------------------------------------------------------------------
@pointwise(np.sinh, domain=(-95.0, 95.0), golden=((1.0, math.sinh(1.0)),), aten=("sinh",), onnx=("Sinh",), paddle=("sinh",),
           grad=_unary(lambda o, dy, x, y, a: o.mul(dy, o.cosh(x))))
def sinh(x):
    """Hyperbolic sine."""
    size = m.abs(x)
    grown = m.expm1(m.minimum(size, FAR))
    root = m.exp(0.5 * size)
    return m.copysign(m.where(size > FAR, (0.5 * root) * root, 0.5 * (grown + grown / (grown + 1.0))), x)


@pointwise(np.cosh, domain=(-95.0, 95.0), golden=((1.0, math.cosh(1.0)),), aten=("cosh",), onnx=("Cosh",), paddle=("cosh",),
           grad=_unary(lambda o, dy, x, y, a: o.mul(dy, o.sinh(x))))
def cosh(x):
    """Hyperbolic cosine."""
    size = m.abs(x)
    grown = m.exp(m.minimum(size, FAR))
    root = m.exp(0.5 * size)
    return m.where(size > FAR, (0.5 * root) * root, 0.5 * grown + 0.5 / grown)


@pointwise(np.arcsinh, domain=(-10.0, 10.0), golden=((1.0, math.asinh(1.0)),), aten=("asinh",), onnx=("Asinh",), paddle=("asinh",),
           grad=_unary(lambda o, dy, x, y, a: _over_root(o, dy, o.add(o.mul(x, x), _one(o, x)))))
def asinh(x):
    """Inverse of sinh."""
    size = m.abs(x)
    near = m.minimum(size, HUGE)
    square = near * near
    rest = m.log1p(near + square / (1.0 + m.sqrt(square + 1.0)))
    return m.copysign(m.where(size > HUGE, m.log(size) + LN2, rest), x)


@pointwise(np.arccosh, domain=(1.0, 10.0), draws=("positive",), golden=((2.0, math.acosh(2.0)),), aten=("acosh",), onnx=("Acosh",),
           paddle=("acosh",), grad=_unary(lambda o, dy, x, y, a: _over_root(o, dy, o.sub(o.mul(x, x), _one(o, x)))))
def acosh(x):
    """Inverse of cosh, not negative; NaN below 1."""
    above = m.minimum(x, HUGE) - 1.0
    return m.where(x > HUGE, m.log(x) + LN2, m.log1p(above + m.sqrt(above) * m.sqrt(above + 2.0)))


@pointwise(np.arctanh, domain=(-1.0, 1.0), draws=("normal",), golden=((0.5, math.atanh(0.5)),), aten=("atanh",), onnx=("Atanh",),
           paddle=("atanh",))
def atanh(x):
    """Inverse of tanh; infinities at -1 and 1, NaN outside."""
    size = m.abs(x)
    return m.copysign(0.5 * m.log1p((size + size) / (1.0 - size)), x)


# ---- error function ----------------------------------------------------------------------------------------------------
def _erfinv(x):
    from scipy.special import erfinv

    return erfinv(x)


@pointwise(_erfinv, domain=(-1.0, 1.0), draws=("normal",), golden=((0.5, 0.4769362762044699), (1.0, math.inf)), aten=("erfinv",),
           paddle=("erfinv",), grad=_unary(lambda o, dy, x, y, a: o.mul(scaled(o, dy, 1 / TWO_OVER_SQRT_PI), o.exp(o.mul(y, y)))))
def erfinv(x):
    """Inverse of erf; infinities at -1 and 1, NaN outside."""
    return m.erfinv(x)


# ---- conditions: the result is bool ------------------------------------------------------------------------------------
@pointwise(np.isnan, dtypes=ANY, budget=Exact(), golden=((1.0, 0.0),), aten=("isnan",), onnx=("IsNaN",), paddle=("isnan",))
def isnan(x):
    """Whether x is NaN, a bool; false for integers."""
    return x != x


@pointwise(np.isinf, dtypes=FLOATS, budget=Exact(), golden=((1.0, 0.0),), aten=("isinf",), onnx=("IsInf",), paddle=("isinf",))
def isinf(x):
    """Whether x is an infinity, a bool."""
    return m.abs(x) == INFINITY


@pointwise(np.isfinite, dtypes=FLOATS, budget=Exact(), golden=((1.0, 1.0),), paddle=("isfinite",))
def isfinite(x):
    """Whether x is neither NaN nor an infinity, a bool."""
    return m.abs(x) < INFINITY


@pointwise(lambda x: np.signbit(x) if x.dtype.kind == "f" else x < 0, dtypes=NUMBERS, budget=Exact(), golden=((-0.0, 1.0), (2.0, 0.0)),
           aten=("signbit",))
def signbit(x):
    """Whether the sign bit of x is set (also of -0 and NaN), a bool."""
    return m.signbit(x)


@pointwise(np.logical_xor, dtypes=ANY, budget=Exact(), aten=("logical_xor",), onnx=("Xor",), paddle=("logical_xor",))
def logical_xor(x, y):
    """Whether exactly one is nonzero (NaN is), a bool."""
    return (x != 0) ^ (y != 0)


# ---- powers ------------------------------------------------------------------------------------------------------------
@pointwise(np.square, dtypes=NUMBERS, budget=Exact(), grad=_unary(lambda o, dy, x, y, a: o.mul(dy, scaled(o, x, 2.0))),
           golden=((-3.0, 9.0),), paddle=("square",))
def square(x):
    """x times x.  Integers wrap."""
    return x * x
