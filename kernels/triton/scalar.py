"""The scalar vocabulary in Triton: what ``m.exp``, ``m.maximum``, ... of a formula mean on a device.

float32 and float64 tensors (lower floats are upcast before), integers where the name makes sense.  A vendor whose
compiler lacks a name replaces it here.  float32 exp, log, tanh, sigmoid, erf: the polynomials of kernels/cpu/simd.h, because
Triton's own compile to approximate instructions (ex2.approx: error grows with |x|); division and sqrt are the rounded ones.
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
    if x.dtype == tl.float32:
        q = tl.div_rn(x, y)
    else:
        q = x / y
    return q


@triton.jit
def sqrt(x):
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
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)  # PTX max.NaN.f32; plain max drops NaN


@triton.jit
def minimum(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def max(x, axis: tl.constexpr):
    """The largest along an axis; NaN wins (tl.max drops it)."""
    return tl.reduce(x, axis, maximum)


@triton.jit
def min(x, axis: tl.constexpr):
    """The smallest along an axis; NaN wins."""
    return tl.reduce(x, axis, minimum)


@triton.jit
def where(c, x, y):
    return tl.where(c, x, y)


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
        p = 0.0013838786398991942
        p = p * r + 0.00836919154971838
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
    p = 0.0001966363488463685
    p = p * r + 0.0013935021124780178
    p = p * r + 0.008333643898367882
    p = p * r + 0.04166646674275398
    p = p * r + 0.1666666567325592
    p = p * r + 0.5
    p = p * (r * r) + r
    s = _power_of_2(t.to(tl.int32, bitcast=True) - 0x4B400000)
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
        p = 0.0674663782119751
        p = p * f - 0.11675652861595154
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
        e = tl.exp(-2.0 * a)
        far = (1.0 - e) / (1.0 + e)
        s = x * x  # below 0.02 the series: 1 - e would cancel
        near = a * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835 + s * (-1382.0 / 155925))))))
        y = tl.where(a < 0.02, near, far)
    else:
        m = _expm1(2.0 * minimum(a, 10.0))
        y = div(m, m + 2.0)
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
        s = x * x
        p = 7.853857823647559e-05
        p = p * s - 0.0008010191959328949
        p = p * s + 0.00518832728266716
        p = p * s - 0.026853810995817184
        p = p * s + 0.1128358542919159
        p = p * s - 0.3761262595653534
        p = p * s + 0.12837916612625122
        p = p * x + x
        b = tl.abs(x)
        a = tl.minimum(b, 4.1)
        q = -0.00018882055883295834
        q = q * a + 0.0029724128544330597
        q = q * a - 0.021940317004919052
        q = q * a + 0.10332711786031723
        q = q * a + 0.6378833651542664
        q = q * a + 1.1272512674331665
        q = q * a + 0.0003004639293067157
        q = 1.0 - exp(-q)
        y = tl.where(b > 1.0, tl.where(x < 0.0, -q, q), p)
    return y


@triton.jit
def _pow_int(x, y):
    power = tl.where(x == x, 1, 1).to(x.dtype)
    base = x
    e = y
    for _ in tl.static_range(x.dtype.primitive_bitwidth):
        power = tl.where((e & 1) != 0, power * base, power).to(x.dtype)
        base = (base * base).to(x.dtype)
        e = e >> 1
    odd = tl.where((y & 1) != 0, x, power * 0 + 1)
    inverse = tl.where(x == 1, x, tl.where(x == -1, odd, x * 0))
    return tl.where(y < 0, inverse, power).to(x.dtype)


@triton.jit
def pow(x, y):
    """C99's pow; through float64 logarithms for float32, so that a large exponent does not amplify their error."""
    if x.dtype.is_floating():
        a = tl.abs(x).to(tl.float64)
        l = tl.log2(a)
        w = tl.where(a == 1.0, 0.0, y.to(tl.float64) * l)
        v = tl.exp2(w).to(x.dtype)
        v = tl.where((a == 1.0) & (y == y), 1.0, v)
        whole = tl.floor(y) == y
        half = y * 0.5
        odd = whole & (tl.floor(half) != half) & (tl.abs(y) < float("inf"))
        negative = x.to(tl.int64, bitcast=True) < 0 if x.dtype == tl.float64 else x.to(tl.int32, bitcast=True) < 0
        v = tl.where(odd & negative, -v, v)
        v = tl.where((x < 0.0) & (whole == 0) & (a < float("inf")) & (tl.abs(y) < float("inf")), float("nan"), v)
        v = tl.where((x != x) | (y != y), x + y, v)
        v = tl.where((x == 1.0) | (y == 0.0), 1.0, v)
    else:
        v = _pow_int(x, y)
    return v
