"""The scalar vocabulary in Triton: what ``m.exp``, ``m.maximum``, ... of a formula mean on a device.

float32 and float64 tensors (callers upcast lower floats), integers where the name makes sense.  A vendor whose compiler
lacks a name replaces it here.  float32 exp, log, tanh, sigmoid, erf: the polynomials of kernels/cpu/simd.h, because Triton's
own compile to approximate instructions on NVIDIA (ex2.approx: error grows with |x|); division and sqrt are the rounded ones.
"""
import triton
import triton.language as tl

__all__ = ["abs", "cos", "div", "erf", "exp", "like", "log", "max", "maximum", "min", "minimum", "pow", "rsqrt", "sigmoid",
           "sin", "sqrt", "tanh", "where"]


@triton.jit
def like(c, x):
    """The number c as a tensor of x's shape and dtype."""
    return tl.full(x.shape, c, x.dtype)


@triton.jit
def div(x, y):
    """Correctly rounded; one of the two may be a number."""
    if (x + y).dtype == tl.float32:
        q = tl.div_rn(x, y)
    else:
        q = x / y
    return q


@triton.jit
def sqrt(x):
    """Correctly rounded."""
    if x.dtype == tl.float32:
        r = tl.sqrt_rn(x)
    else:
        r = tl.sqrt(x)
    return r


@triton.jit
def rsqrt(x):
    return div(like(1.0, x), sqrt(x))


@triton.jit
def maximum(x, y):
    """NaN if either is NaN: PTX max.NaN.f32; plain tl.maximum drops it.  Integers too."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def max(x, axis: tl.constexpr):
    """The largest along an axis; NaN if there is one (tl.max drops it)."""
    return tl.reduce(x, axis, maximum)


@triton.jit
def min(x, axis: tl.constexpr):
    return tl.reduce(x, axis, minimum)


@triton.jit
def where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def abs(x):
    return tl.abs(x)


@triton.jit
def sin(x):
    return tl.sin(x)


@triton.jit
def cos(x):
    return tl.cos(x)


@triton.jit
def _power_of_2(n):
    """2^n as float32, int32 n in [-126, 127]."""
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exp(x):
    if x.dtype == tl.float64:
        y = tl.exp(x)
    else:
        x = minimum(maximum(x, -104.0), 89.0)
        t = x * 1.4426950216293335 + 12582912.0  # 1.5 * 2^23: the integer n stands in the low bits
        n = t - 12582912.0
        r = (x - n * 0.693115234375) - n * 3.194618329871446e-05
        p = 0.0013838786398991942 * r + 0.00836919154971838
        p = p * r + 0.04166810214519501
        p = p * r + 0.16666516661643982
        p = p * r + 0.4999999403953552
        p = p * (r * r) + r
        k = t.to(tl.int32, bitcast=True) - 0x4B400000
        half = k >> 1
        y = ((p + 1.0) * _power_of_2(half)) * _power_of_2(k - half)  # two factors: a subnormal result is rounded once
    return y


@triton.jit
def _expm1(x):
    """exp(x) - 1 for float32 |x| <= 88."""
    t = x * 1.4426950216293335 + 12582912.0
    n = t - 12582912.0
    r = (x - n * 0.693115234375) - n * 3.194618329871446e-05
    p = 0.0001966363488463685 * r + 0.0013935021124780178
    p = p * r + 0.008333643898367882
    p = p * r + 0.04166646674275398
    p = p * r + 0.1666666567325592
    p = p * r + 0.5
    p = p * (r * r) + r
    s = _power_of_2(t.to(tl.int32, bitcast=True) - 0x4B400000)
    return p * s + (s - 1.0)


@triton.jit
def _expm1_64(x):
    """exp(x) - 1 for float64 |x| <= 700."""
    t = x * 1.4426950408889634 + 6755399441055744.0  # 1.5 * 2^52
    n = t - 6755399441055744.0
    r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10
    p = 1.605970421034029e-10 * r + 2.0921421060660376e-09
    p = p * r + 2.505216779695392e-08
    p = p * r + 2.7557252461625376e-07
    p = p * r + 2.755731911746806e-06
    p = p * r + 2.4801587349385703e-05
    p = p * r + 0.00019841269841342846
    p = p * r + 0.0013888888888872314
    p = p * r + 0.008333333333333312
    p = p * r + 0.04166666666666669
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * (r * r) + r
    s = ((t.to(tl.int64, bitcast=True) - 0x4338000000000000 + 1023) << 52).to(tl.float64, bitcast=True)
    return p * s + (s - 1.0)


@triton.jit
def log(x):
    if x.dtype == tl.float64:
        y = tl.log(x)
    else:
        tiny = x < 1.1754943508222875e-38
        u = tl.where(tiny, x * 8388608.0, x).to(tl.int32, bitcast=True) - 0x3F3504F3  # bits of sqrt(1/2)
        e = (u >> 23).to(tl.float32) - tl.where(tiny, 23.0, 0.0)
        f = ((u & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
        f2 = f * f
        p = 0.0674663782119751 * f - 0.11675652861595154
        p = p * f + 0.11888164281845093
        p = p * f - 0.1240558922290802
        p = p * f + 0.14219552278518677
        p = p * f - 0.1666799634695053
        p = p * f + 0.2000211924314499
        p = p * f - 0.25000008940696716
        p = p * f + 0.3333331346511841
        p = p * f * f2 + (e * 3.194618329871446e-05 - 0.5 * f2)
        y = (p + f) + e * 0.693115234375
        y = tl.where(x < float("inf"), y, x)
        y = tl.where(x == 0.0, float("-inf"), y)
        y = tl.where(x < 0.0, float("nan"), y)
    return y


@triton.jit
def tanh(x):
    a = tl.abs(x)
    if x.dtype == tl.float64:
        e = _expm1_64(2.0 * minimum(a, 20.0))
    else:
        e = _expm1(2.0 * minimum(a, 10.0))
    y = div(e, e + 2.0)
    return tl.where(x < 0.0, -y, tl.where(x == 0.0, x, y))


@triton.jit
def sigmoid(x):
    e = exp(-tl.abs(x))
    return div(tl.where(x < 0.0, e, 1.0), 1.0 + e)


@triton.jit
def erf(x):
    if x.dtype == tl.float64:
        y = tl.erf(x)
    else:
        a = minimum(tl.abs(x), 4.0)
        p = -9.256139492208604e-06 * a + 0.00011764031660277396
        p = p * a - 0.0006328338640742004
        p = p * a + 0.0016670223558321595
        p = p * a - 0.0001603910350240767
        p = p * a - 0.019153065979480743
        p = p * a + 0.10277783125638962
        p = p * a + 0.6366193890571594
        p = p * a + 0.12837916612625122
        y = -_expm1(-(p * a + a))
        y = tl.where(x < 0.0, -y, tl.where(x == 0.0, x, y))
    return y


@triton.jit
def _pow_int(x, y):
    """By squaring, wrapping.  A negative exponent gives 0, or 1 and +-1 for x = 1 and -1 (aten)."""
    BITS: tl.constexpr = x.dtype.primitive_bitwidth
    power = tl.full(x.shape, 1, x.dtype)
    base = x
    left = y
    for _ in tl.static_range(BITS):
        power = tl.where((left & 1) != 0, power * base, power).to(x.dtype)
        base = (base * base).to(x.dtype)
        left = left >> 1
    if not x.dtype.is_int_unsigned():
        one = tl.full(x.shape, 1, x.dtype)
        inverse = tl.where(x == 1, one, tl.where(x == -1, tl.where((y & 1) != 0, x, one), one - 1))
        power = tl.where(y < 0, inverse, power)
    return power.to(x.dtype)


@triton.jit
def _product_error(x, y, p):
    """x y - p for p = round(x y): Dekker 1971, without relying on a fused multiply-add."""
    u = x * 134217729.0
    xh = u - (u - x)
    v = y * 134217729.0
    yh = v - (v - y)
    return ((xh * yh - p) + xh * (y - yh) + (x - xh) * yh) + (x - xh) * (y - yh)


@triton.jit
def _pow_64(x, y):
    """x^y for float64 x > 0: exp(y log x) with 11 more bits in the logarithm than float64 holds."""
    tiny = x < 2.2250738585072014e-308
    u = tl.where(tiny, x * 18014398509481984.0, x).to(tl.int64, bitcast=True) - 0x3FE6A09E667F3BCD  # bits of sqrt(1/2)
    e = (u >> 52).to(tl.float64) - tl.where(tiny, 54.0, 0.0)
    f = ((u & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).to(tl.float64, bitcast=True)
    n = f - 1.0
    d = f + 1.0
    s = n / d
    t = s * d
    low = (((n - t) - _product_error(s, d, t)) - s * (f - (d - 1.0))) / d  # (f - 1) / (f + 1) = s + low
    z = s * s
    p = 0.14795978178014407
    p = p * z + 0.1531404786164732
    p = p * z + 0.1818356442514736
    p = p * z + 0.22222198571395557
    p = p * z + 0.28571428742403976
    p = p * z + 0.3999999999941461
    p = p * z + 0.6666666666666734
    a = e * 0.6931471803691238  # 33 bits of ln 2: exact
    b = s + s
    high = a + b
    c = high - a
    low = ((a - (high - c)) + (b - c)) + ((low + low) + s * z * p + e * 1.9082149292705877e-10)
    total = high + low
    low = (high - total) + low
    y = minimum(maximum(y, -1e20), 1e20)  # beyond, the result is 0, 1 or infinity all the same
    w = y * total
    rest = _product_error(y, total, w) + y * low
    far = tl.abs(w) > 800.0
    return tl.exp(w) * (1.0 + tl.where(far, 0.0, rest))


@triton.jit
def pow(x, y):
    """C99's pow.  float32 goes through float64, so that a large exponent does not amplify the logarithm's error."""
    if x.dtype.is_floating():
        a = tl.abs(x)
        if x.dtype == tl.float64:
            v = _pow_64(a, y)
            negative = x.to(tl.int64, bitcast=True) < 0
        else:
            v = tl.exp2(y.to(tl.float64) * tl.log2(a.to(tl.float64))).to(x.dtype)
            negative = x.to(tl.int32, bitcast=True) < 0
        v = tl.where(a == 0.0, tl.where(y > 0.0, 0.0, float("inf")), v)
        v = tl.where(a == float("inf"), tl.where(y > 0.0, float("inf"), 0.0), v)
        v = tl.where((a == 1.0) & (y == y), 1.0, v)
        whole = tl.floor(y) == y
        half = y * 0.5
        odd = whole & (tl.floor(half) != half) & (tl.abs(y) < float("inf"))
        v = tl.where(odd & negative, -v, v)
        v = tl.where((x < 0.0) & (whole == 0) & (a < float("inf")) & (tl.abs(y) < float("inf")), float("nan"), v)
        v = tl.where((x != x) | (y != y), x + y, v)
        v = tl.where((x == 1.0) | (y == 0.0), 1.0, v)
    else:
        v = _pow_int(x, y)
    return v
