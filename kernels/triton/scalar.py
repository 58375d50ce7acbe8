"""The scalar vocabulary in Triton: what ``m.exp``, ``m.maximum``, ... of a formula mean on a device.

float32 and float64 tensors (callers upcast lower floats), integers where the name makes sense.  A vendor whose compiler
lacks a name replaces it here.  float32 exp, log, tanh, sigmoid, erf: the polynomials of kernels/cpu/simd.h, because Triton's
own compile to approximate instructions on NVIDIA (ex2.approx: error grows with |x|); division and sqrt are the rounded ones.
"""
import triton
import triton.language as tl

__all__ = ["abs", "acos", "asin", "atan", "ceil", "copysign", "cos", "div", "erf", "erfinv", "exp", "exp2", "expm1",
           "floor", "floor_divide", "fmod", "like", "log", "log10", "log1p", "log2", "max", "maximum",
           "min", "minimum", "pow", "remainder", "round", "rsqrt", "sigmoid", "signbit", "sin", "sqrt", "tan",
           "tanh", "trunc", "where"]


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


@triton.jit
def copysign(x, y):
    """|x| with y's sign bit."""
    if x.dtype == tl.float64:
        r = ((x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF) | (y.to(tl.int64, bitcast=True) & (-0x7FFFFFFFFFFFFFFF - 1))).to(tl.float64, bitcast=True)
    else:
        r = ((x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) | (y.to(tl.int32, bitcast=True) & (-0x7FFFFFFF - 1))).to(tl.float32, bitcast=True)
    return r


@triton.jit
def signbit(x):
    """Whether the sign bit is set; of integers: x < 0."""
    if x.dtype == tl.float64:
        s = x.to(tl.int64, bitcast=True) < 0
    elif x.dtype == tl.float32:
        s = x.to(tl.int32, bitcast=True) < 0
    else:
        s = x < 0
    return s


@triton.jit
def floor(x):
    if x.dtype.is_floating():
        x = tl.floor(x)
    return x


@triton.jit
def ceil(x):
    if x.dtype.is_floating():
        x = tl.ceil(x)
    return x


@triton.jit
def trunc(x):
    if x.dtype.is_floating():
        x = copysign(tl.floor(tl.abs(x)), x)
    return x


@triton.jit
def round(x):
    if x.dtype.is_floating():
        size = tl.abs(x)
        whole = tl.floor(size)
        rest = size - whole
        odd = whole - 2.0 * tl.floor(whole * 0.5) != 0.0
        x = copysign(tl.where((rest > 0.5) | ((rest == 0.5) & odd), whole + 1.0, whole), x)
    return x


@triton.jit
def expm1(x):
    if x.dtype == tl.float64:
        a = maximum(x, -40.0)
        y = tl.where(a > 600.0, tl.exp(a), _expm1_64(minimum(a, 600.0)))
        y = tl.where(tl.abs(x) < 1.1102230246251565e-16, x, y)
    else:
        a = minimum(maximum(x, -25.0), 89.0)
        t = a * 1.4426950216293335 + 12582912.0
        n = t - 12582912.0
        r = (a - n * 0.693115234375) - n * 3.194618329871446e-05
        p = 0.0001966363488463685 * r + 0.0013935021124780178
        p = p * r + 0.008333643898367882
        p = p * r + 0.04166646674275398
        p = p * r + 0.1666666567325592
        p = p * r + 0.5
        p = p * (r * r) + r
        s = _power_of_2(t.to(tl.int32, bitcast=True) - 0x4B400001)  # 2^(n - 1): n = 128 needs no case of its own
        y = tl.where(tl.abs(x) < 5.960464477539063e-08, x, 2.0 * (p * s + (s - 0.5)))
    return y


@triton.jit
def log1p(x):
    """log u + (x - (u - 1)) / u, u = 1 + x rounded."""
    u = 1.0 + x
    y = log(u)
    y = tl.where((u > 0.0) & (u < float("inf")), y + div(x - (u - 1.0), u), y)
    return tl.where(tl.abs(x) < 2.7755575615628914e-17, x, y)


@triton.jit
def exp2(x):
    if x.dtype == tl.float64:
        y = tl.exp2(x)
    else:
        x = minimum(maximum(x, -151.0), 129.0)
        t = x + 12582912.0
        n = t - 12582912.0
        r = (x - n) * 0.6931471824645996
        p = 0.0013838786398991942 * r + 0.00836919154971838
        p = p * r + 0.04166810214519501
        p = p * r + 0.16666516661643982
        p = p * r + 0.4999999403953552
        p = p * (r * r) + r
        k = t.to(tl.int32, bitcast=True) - 0x4B400000
        half = k >> 1
        y = ((p + 1.0) * _power_of_2(half)) * _power_of_2(k - half)
    return y


@triton.jit
def _log_parts(x):
    """(log(1 + f), e) of float32 x = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2))."""
    tiny = x < 1.1754943508222875e-38
    u = tl.where(tiny, x * 8388608.0, x).to(tl.int32, bitcast=True) - 0x3F3504F3
    e = (u >> 23).to(tl.float32) - tl.where(tiny, 23.0, 0.0)
    return log(((u & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)), e


@triton.jit
def _log_ends(x, y):
    y = tl.where(x < float("inf"), y, x)
    y = tl.where(x == 0.0, float("-inf"), y)
    return tl.where(x < 0.0, float("nan"), y)


@triton.jit
def log2(x):
    if x.dtype == tl.float64:
        y = tl.log2(x)
    else:
        part, e = _log_parts(x)
        y = _log_ends(x, e + part * 1.4426950216293335)
    return y


@triton.jit
def log10(x):
    if x.dtype == tl.float64:
        y = tl.log(x) * 0.4342944819032518
    else:
        part, e = _log_parts(x)
        y = _log_ends(x, e * 0.301025390625 + (e * 4.605039066518657e-06 + part * 0.4342944920063019))
    return y


@triton.jit
def tan(x):
    return div(tl.sin(x), tl.cos(x))


@triton.jit
def _asin_core(a, far):
    """asin(a), a <= 1/2; with far asin(sqrt((1 - a) / 2))."""
    z = tl.where(far, (1.0 - a) * 0.5, a * a)
    s = tl.where(far, sqrt(z), a)
    if a.dtype == tl.float64:
        p = 0.03132004849299907 * z - 0.01883757923036904
        p = p * z + 0.020126183648823764
        p = p * z + 0.004380902884320169
        p = p * z + 0.010594415615702995
        p = p * z + 0.011433523481312848
        p = p * z + 0.013976389778303833
        p = p * z + 0.017352000594650103
        p = p * z + 0.022372192150252743
        p = p * z + 0.030381943567433844
        p = p * z + 0.04464285715551421
        p = p * z + 0.0749999999999224
        p = p * z + 0.16666666666666677
    else:
        p = 0.041114840656518936 * z + 0.024855462834239006
        p = p * z + 0.045317936688661575
        p = p * z + 0.0749669149518013
        p = p * z + 0.16666710376739502
    return s + s * (z * p)


@triton.jit
def asin(x):
    a = tl.abs(x)
    far = a > 0.5
    r = _asin_core(a, far)
    return copysign(tl.where(far, 1.5707963267948966 - (r + r), r), x)


@triton.jit
def acos(x):
    a = tl.abs(x)
    far = a > 0.5
    r = _asin_core(a, far)
    outer = tl.where(x > 0.0, r + r, 3.141592653589793 - (r + r))
    return tl.where(far, outer, 1.5707963267948966 - copysign(r, x))


@triton.jit
def atan(x):
    """base + atan t, t = |x|, (|x| - 1) / (|x| + 1) or -1 / |x|, |t| <= tan(pi / 8)."""
    a = tl.abs(x)
    high = a > 2.414213562373095
    middle = (a > 0.41421356237309503) & (a <= 2.414213562373095)
    t = div(tl.where(high, -1.0, tl.where(middle, a - 1.0, a)), tl.where(high, a, tl.where(middle, a + 1.0, 1.0)))
    z = t * t
    if x.dtype == tl.float64:
        p = 0.015674662878521317 * z - 0.033971838824791836
        p = p * z + 0.045261330132776556
        p = p * z - 0.05224297699306143
        p = p * z + 0.05877997379996541
        p = p * z - 0.06666333427010411
        p = p * z + 0.076922905339108
        p = p * z - 0.09090908516845406
        p = p * z + 0.11111111099422691
        p = p * z - 0.14285714285585924
        p = p * z + 0.1999999999999941
        p = p * z - 0.3333333333333333
    else:
        p = -0.06223225221037865 * z + 0.10656584054231644
        p = p * z - 0.14253008365631104
        p = p * z + 0.19999045133590698
        p = p * z - 0.33333325386047363
    base = like(1.5707963267948966, x)
    base = tl.where(high, base, tl.where(middle, 0.5 * base, 0.0))
    return copysign(base + (t + t * (z * p)), x)


@triton.jit
def erfinv(x):
    a = tl.abs(x)
    w = -log((1.0 - a) * (1.0 + a))
    r = sqrt(w)
    if x.dtype == tl.float64:
        v = w - 3.125
        p = -2.828593727264108e-23 * v - 3.4116294171618187e-22
        p = p * v + 4.916634322992295e-21
        p = p * v + 1.8927360264347853e-20
        p = p * v - 3.9349706628028694e-19
        p = p * v + 6.348495804179839e-19
        p = p * v + 1.6225839764790488e-17
        p = p * v - 1.2255964912943468e-16
        p = p * v - 4.6488235403445575e-17
        p = p * v + 6.525105678870282e-15
        p = p * v - 3.997313084760932e-14
        p = p * v - 8.074256765047181e-14
        p = p * v + 2.6303167008319504e-12
        p = p * v - 1.2978709280350458e-11
        p = p * v - 5.414240039597492e-11
        p = p * v + 1.0512231162404871e-09
        p = p * v - 4.112661679917971e-09
        p = p * v - 2.9070390826795802e-08
        p = p * v + 4.234788183307108e-07
        p = p * v - 1.3654691763344248e-06
        p = p * v - 1.388252339498186e-05
        p = p * v + 0.0001867342080200511
        p = p * v - 0.0007407025341543209
        p = p * v - 0.0060336708714269
        p = p * v + 0.2401581824255883
        p = p * v + 1.6536545626831027
        v = r - 3.25
        q = 7.646156568510693e-09 * v - 1.5283556400128068e-08
        q = q * v - 2.0820170945737903e-08
        q = q * v + 1.3152840748886176e-07
        q = q * v - 2.456091456569311e-07
        q = q * v - 2.7551814932293733e-08
        q = q * v + 1.4816698593908534e-06
        q = q * v - 3.98574603911169e-06
        q = q * v + 2.9325502414171073e-06
        q = q * v + 1.2465042837988085e-05
        q = q * v - 4.732067385247343e-05
        q = q * v + 6.828711417450971e-05
        q = q * v + 2.4031511868436947e-05
        q = q * v - 0.00035503781336921556
        q = q * v + 0.0009532893416628127
        q = q * v - 0.0016882755354779683
        q = q * v + 0.0024914420979534444
        q = q * v - 0.003751208508223809
        q = q * v + 0.00537091455355509
        q = q * v + 1.0052589676941655
        q = q * v + 3.0838856104922208
        v = r - 5.0
        t = -8.371635841901461e-13 * v + 5.8675476601314926e-12
        t = t * v - 1.6235094154378332e-11
        t = t * v + 1.478603346994977e-11
        t = t * v + 6.076547489956922e-11
        t = t * v - 3.8086172628536934e-10
        t = t * v + 1.3263804115661671e-09
        t = t * v - 3.5340869184223557e-09
        t = t * v + 7.813962326915919e-09
        t = t * v - 1.521367356144261e-08
        t = t * v + 2.9022011832255012e-08
        t = t * v - 6.757274239704456e-08
        t = t * v + 2.2905188727065209e-07
        t = t * v - 9.930254928039296e-07
        t = t * v + 4.526052675173267e-06
        t = t * v - 1.9681771196104803e-05
        t = t * v + 7.59952780845742e-05
        t = t * v - 0.00021503011979919658
        t = t * v - 0.000138719318379757
        t = t * v + 1.0103004648645448
        t = t * v + 4.849906401408584
        y = tl.where(w < 6.25, p, tl.where(w < 16.0, q, t)) * x
    else:
        v = w - 2.5
        p = 3.355221933620811e-10 * v - 8.772816251223503e-09
        p = p * v + 1.8037498605849578e-08
        p = p * v + 4.658920147448953e-07
        p = p * v - 3.4346135180385318e-06
        p = p * v - 4.961911599821178e-06
        p = p * v + 0.00021828262833878398
        p = p * v - 0.0012527446961030364
        p = p * v - 0.0041773393750190735
        p = p * v + 0.24664029479026794
        p = p * v + 1.5014094114303589
        v = r - 3.0
        q = -2.9219079806352966e-05 * v + 0.0001603394775884226
        q = q * v - 0.00027801384567283094
        q = q * v - 0.00011975802044617012
        q = q * v + 0.0014754515141248703
        q = q * v - 0.003567212028428912
        q = q * v + 0.005687604192644358
        q = q * v - 0.007642747834324837
        q = q * v + 0.009445312432944775
        q = q * v + 1.0016752481460571
        q = q * v + 2.832976818084717
        y = tl.where(w < 5.0, p, q) * x
    return tl.where(a == 1.0, x * float("inf"), y)


@triton.jit
def _fmod_32(x, y):
    """Exact: |x| = mx 2^ex and |y| = my 2^ey with 24-bit mx, my; mx 2^(ex - ey) mod my, 38 bits of the shift at a time."""
    xb = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    yb = y.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    ex = tl.maximum(xb >> 23, 1)
    ey = tl.maximum(yb >> 23, 1)
    mx = (tl.where(xb >= 0x00800000, 0x00800000, 0) | (xb & 0x007FFFFF)).to(tl.int64)
    my = (tl.where(yb >= 0x00800000, 0x00800000, 0) | (yb & 0x007FFFFF)).to(tl.int64)
    my = tl.where(yb == 0, 1, my)
    smaller = xb < yb
    shift = tl.where(smaller, 0, ex - ey)
    r = mx % my
    for _ in range(8):  # 253 binades apart at most, beyond the mantissas
        step = tl.minimum(tl.maximum(shift, 0), 38)
        r = (r << step.to(tl.int64)) % my
        shift -= step
    # r < 2^24 times 2^(ey - 150), in two factors so that the first is normal
    scale = ey - 150
    low = tl.maximum(scale, -126)
    f = (r.to(tl.float32) * _power_of_2(low)) * _power_of_2(scale - low)
    f = tl.where(smaller, tl.abs(x), f)
    return tl.where((yb == 0) | (xb >= 0x7F800000) | (yb > 0x7F800000), float("nan"), f)


@triton.jit
def _fmod_64(x, y):
    """As _fmod_32, 10 bits at a time: right for any exponents, and slow."""
    xb = x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    yb = y.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    ex = tl.maximum(xb >> 52, 1)
    ey = tl.maximum(yb >> 52, 1)
    my = tl.where(yb >= 0x0010000000000000, 0x0010000000000000, 0) | (yb & 0x000FFFFFFFFFFFFF)
    my = tl.where(yb == 0, 1, my)
    smaller = xb < yb
    shift = tl.where(smaller, 0, ex - ey)
    r = (tl.where(xb >= 0x0010000000000000, 0x0010000000000000, 0) | (xb & 0x000FFFFFFFFFFFFF)) % my
    for _ in range(205):  # 2045 binades apart at most
        step = tl.minimum(tl.maximum(shift, 0), 10)
        r = (r << step) % my
        shift -= step
    scale = ey - 1075
    low = tl.maximum(scale, -1022)
    f = r.to(tl.float64) * ((low + 1023) << 52).to(tl.float64, bitcast=True)
    f = f * ((scale - low + 1023) << 52).to(tl.float64, bitcast=True)
    f = tl.where(smaller, tl.abs(x), f)
    return tl.where((yb == 0) | (xb >= 0x7FF0000000000000) | (yb > 0x7FF0000000000000), float("nan"), f)


@triton.jit
def _divisor(y):
    """y where an integer may be divided by it without a trap, else 1."""
    safe = tl.where(y == 0, 1, y)
    if not y.dtype.is_int_unsigned():
        safe = tl.where(y == -1, 1, safe)
    return safe.to(y.dtype)


@triton.jit
def fmod(x, y):
    """Exact remainder with x's sign; of integers by 0: 0."""
    if x.dtype == tl.float64:
        r = copysign(_fmod_64(x, y), x)
    elif x.dtype == tl.float32:
        r = copysign(_fmod_32(x, y), x)
    else:
        r = tl.where(y == 0, 0, x % _divisor(y)).to(x.dtype)
    return r


@triton.jit
def remainder(x, y):
    """fmod moved to y's sign, as Python's %."""
    r = fmod(x, y)
    return tl.where((r != 0) & ((r < 0) != (y < 0)), r + y, r).to(x.dtype)


@triton.jit
def floor_divide(x, y):
    """floor(x / y) as Python's //; integers by 0: 0."""
    r = fmod(x, y)
    off = (r != 0) & ((r < 0) != (y < 0))
    if x.dtype.is_floating():
        d = div(x - r, y)
        d = tl.where(off, d - 1.0, d)
        w = tl.floor(d)
        w = tl.where(d - w > 0.5, w + 1.0, w)
        q = div(x, y)
        w = tl.where(d == 0.0, copysign(like(0.0, x), q), w)
        w = tl.where(y == 0.0, q, w)
    else:
        w = x // _divisor(y)
        if not y.dtype.is_int_unsigned():
            w = tl.where(y == -1, -x, w)
        w = tl.where(y == 0, 0, tl.where(off, w - 1, w)).to(x.dtype)
    return w
