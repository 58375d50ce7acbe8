"""Exactly rounded scalar arithmetic on NumPy arrays where NumPy itself rounds twice, truncates or has no function.

Only numbers: no IR, no device.  Every function is elementwise over arrays of any shape and keeps the shape.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable

import ml_dtypes
import numpy as np

__all__ = ["EXTREMES", "cast_float", "cast_float_to_int", "cast_int_to_float", "erf", "erf_table", "fma", "round_tf32", "trunc_div",
           "trunc_rem", "unsigned"]

bfloat16 = np.dtype(ml_dtypes.bfloat16)
_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)
_UNSIGNED = {np.dtype(f"i{n}"): np.dtype(f"u{n}") for n in (1, 2, 4, 8)}
_HALF_GRID = 256  # erf: Taylor centres per unit; the remainder after 7 terms is below 1e-19
_ERF_LIMIT = 6  # erf(6) rounds to 1 in float64


def unsigned(x: np.ndarray) -> np.ndarray:
    """The same bits read as unsigned; bool stays bool."""
    return x.view(_UNSIGNED[x.dtype]) if x.dtype in _UNSIGNED else x


def _to_odd_f32(x: np.ndarray) -> np.ndarray:
    """float64 to float32, rounded to odd: a second rounding to at most 22 bits is then exact (Boldo and Melquiond)."""
    y = x.astype(np.float32)
    back = y.astype(np.float64)
    bits = y.view(np.int32)
    even = (bits & 1) == 0
    inexact = (back != x) & even & np.isfinite(x)
    if inexact.any():
        toward_zero = np.abs(back) > np.abs(x)  # rounded away from zero: the odd neighbour lies one step back
        bits = np.where(inexact, np.where(toward_zero, bits - 1, bits + 1), bits)
        y = bits.view(np.float32)
    return y


def _add_to_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 a + b rounded to odd, by Knuth's TwoSum."""
    s = a + b
    t = s - a
    error = (a - (s - t)) + (b - t)
    bits = s.view(np.int64)
    fix = (error != 0) & ((bits & 1) == 0) & np.isfinite(s)
    if fix.any():
        away = (error > 0) == (s > 0)
        s = np.where(fix, np.where(away, bits + 1, bits - 1), bits).view(np.float64)
    return s


def cast_float(x: np.ndarray, dtype: np.dtype, toward_zero: bool = False) -> np.ndarray:
    """Float to float, to nearest even in one rounding, or toward zero.  Overflow follows ml_dtypes (inf, or NaN)."""
    if x.dtype == dtype:
        return x
    source = x
    if x.dtype == _F64 and dtype.itemsize <= 2 and dtype != np.float16:
        x = _to_odd_f32(x)  # ml_dtypes goes through float32, which would round twice
    elif x.dtype.itemsize < 4 and dtype.itemsize < 4:
        x = x.astype(np.float32)
    y = x.astype(dtype)
    if toward_zero and dtype.itemsize < source.dtype.itemsize:
        wide = np.abs(y.astype(np.float64)) > np.abs(source.astype(np.float64))
        bits = y.view(f"u{dtype.itemsize}")
        y = np.where(wide, bits - bits.dtype.type(1), bits).view(dtype)
    return y


def cast_int_to_float(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Integer to float, to nearest even in one rounding."""
    if dtype.kind == "f":
        return x.astype(dtype)  # the C conversion rounds once; beyond float16's range all roundings meet at inf
    if x.dtype.itemsize == 8:
        # keep 53 significant bits and a sticky bit: exact in float64, so that only the last step rounds
        low = x & x.dtype.type(0x7FF)
        sticky = (x ^ low) | ((low != 0).astype(x.dtype) << x.dtype.type(11))
        small = (x < 2**53) & (x > -(2**53)) if x.dtype.kind == "i" else x < 2**53
        x = np.where(small, x, sticky)
    return _to_odd_f32(x.astype(np.float64)).astype(dtype)


def cast_float_to_int(x: np.ndarray, dtype: np.dtype, signed: bool = True) -> np.ndarray:
    """Float to integer toward zero, saturating at 32 or 64 bits with NaN to 0, then wrapped to narrower types (as PTX)."""
    bits = 64 if dtype.itemsize == 8 else 32
    if not signed and dtype.itemsize < 4:
        signed = True
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)) if signed else (0.0, 2.0**bits)
    wide = np.trunc(x.astype(np.float64))
    kind = np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    limits = np.iinfo(kind)
    inside = (wide >= low) & (wide < high)
    if inside.all():
        return wide.astype(kind).astype(dtype)
    y = np.where(inside, wide, 0.0).astype(kind)
    y = np.where(wide >= high, kind.type(limits.max), np.where(wide < low, kind.type(limits.min), y))
    return y.astype(dtype)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c with one rounding, for float16, bfloat16, float32 and float64."""
    dtype = a.dtype
    if dtype != _F64:
        product = a.astype(np.float64) * b.astype(np.float64)  # exact: at most 48 bits
        total = _add_to_odd(product, np.broadcast_to(c.astype(np.float64), np.broadcast_shapes(product.shape, c.shape)))
        return cast_float(total, dtype)
    high = a * b
    plain = high + c
    # Boldo and Melquiond 2008, "Emulation of FMA": exact product (Dekker), two exact sums, one rounding to odd
    split = 134217729.0  # 2**27 + 1
    ah = split * a - (split * a - a)
    bh = split * b - (split * b - b)
    al, bl = a - ah, b - bh
    low = ((ah * bh - high) + ah * bl + al * bh) + al * bl
    th = c + low
    t = th - c
    tl = (c - (th - t)) + (low - t)
    vh = high + th
    v = vh - high
    vl = (high - (vh - v)) + (th - v)
    exact = vh + _add_to_odd(tl, vl)
    return np.where(np.isfinite(exact) & np.isfinite(plain), exact, plain)


def trunc_rem(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Remainder with the dividend's sign (C's %).  Division by zero gives 0: undefined in the IR."""
    return np.fmod(a, b)


def trunc_div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quotient toward zero (C's /).  Division by zero gives 0: undefined in the IR."""
    if a.dtype.kind == "u":
        return a // b
    if a.dtype.itemsize < 8 and b.size > 1:
        # float64 holds both operands, and a correctly rounded quotient cannot cross an integer below 2**31
        q = np.divide(a, b, dtype=np.float64)
        q[~np.isfinite(q)] = 0.0
        return q.astype(np.int64).astype(a.dtype)
    q = a // b
    if a.size and (a.min() < 0 or b.min() < 0):
        inexact = (a < 0) != (b < 0)
        inexact &= q * b != a
        inexact &= b != 0
        q = q + inexact.astype(q.dtype)
    return q


def _extreme(ufunc: np.ufunc, of_zeros: np.ufunc) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """ufunc with +0 above -0 (IEEE 754-2019), where NumPy returns either, by instruction set and position."""
    def extreme(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        y = ufunc(a, b)
        zero = y == 0
        if zero.any():
            tie = zero & (a == b)
            if tie.any():
                bits = np.dtype(f"u{y.dtype.itemsize}")
                y = np.where(tie, of_zeros(a.view(bits), b.view(bits)).view(y.dtype), y)
        return y

    return extreme


EXTREMES = {
    "arith.maximumf": _extreme(np.maximum, np.bitwise_and), "arith.minimumf": _extreme(np.minimum, np.bitwise_or),
    "arith.maxnumf": _extreme(np.fmax, np.bitwise_and), "arith.minnumf": _extreme(np.fmin, np.bitwise_or),
}  # fmt: skip


def round_tf32(x: np.ndarray) -> np.ndarray:
    """float32 with 10 fraction bits, ties away from zero, as tensor cores round their inputs."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    kept = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), kept, x)


@functools.cache
def erf_table() -> np.ndarray:
    """Taylor coefficients of erf up to degree 6 at k / 256, k = 0 .. 6 * 256.  # (7, centres)"""
    x = np.arange(_ERF_LIMIT * _HALF_GRID + 1) / _HALF_GRID
    slope = 2.0 / math.sqrt(math.pi) * np.exp(-x * x)
    hermite = [np.ones_like(x), 2.0 * x]  # derivative n + 1 of erf is (-1)^n H_n(x) slope
    for n in range(1, 5):
        hermite.append(2.0 * x * hermite[n] - 2.0 * n * hermite[n - 1])
    table = [np.array([math.erf(v) for v in x])]
    for n in range(6):
        table.append((-1.0) ** n * hermite[n] * slope / math.factorial(n + 1))
    return np.stack(table)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, computed in float64 (within 3 ulp there) and rounded once to x's dtype."""
    wide = x.astype(np.float64)
    size = np.minimum(np.abs(wide), float(_ERF_LIMIT))
    near = np.where(np.isnan(size), 0.0, np.rint(size * _HALF_GRID)).astype(np.intp)
    step = size - near / _HALF_GRID
    table = erf_table()
    y = table[6][near]
    for n in range(5, -1, -1):
        y *= step
        y += table[n][near]
    return cast_float(np.copysign(y, wide), x.dtype)
