"""cast on Triton: any element type to any, rounding once, with the results of kernels/cpu/cast.h.

float8 is read and written as bytes: the conversions of targets that have float8 saturate, those of others do not exist.
Not here: the loop over elements (pointwise.py).
"""
import triton
import triton.language as tl

from ...hal.dtype import DType

__all__ = ["conversion"]


@triton.jit
def _odd(near, above, inexact):
    """float32 rounded to odd from float32 rounded to nearest: a second rounding to fewer bits is then right."""
    bits = near.to(tl.int32, bitcast=True)
    odd = tl.where(above, bits - 1, bits) | 1
    return tl.where(inexact, odd, bits).to(tl.float32, bitcast=True)


@triton.jit
def double_to_odd(x):
    """float64 to float32, rounded to odd."""
    near = x.to(tl.float32)
    back = near.to(tl.float64)
    return _odd(near, tl.abs(back) > tl.abs(x), back != x)


@triton.jit
def int_to_odd(x):
    """int32 or int64 to float32, rounded to odd; large ones halved first, since 2**63 is a float32 but no int64."""
    x = x.to(tl.int64)
    large = (x >= 1073741824) | (x <= -1073741824)
    y = tl.where(large, (x >> 1) | (x & 1), x)
    near = y.to(tl.float32)
    back = near.to(tl.int64)
    r = _odd(near, (back > y) == (y > 0), back != y)
    return tl.where(large, r * 2.0, r)


@triton.jit
def uint64_to_odd(x):
    """uint64 to float32, rounded to odd: from 2**63 on, which is no int64, halved first."""
    large = x.to(tl.int64, bitcast=True) < 0
    half = ((x >> 1) | (x & 1)).to(tl.int64, bitcast=True)
    r = int_to_odd(tl.where(large, half, x.to(tl.int64, bitcast=True)))
    return tl.where(large, r * 2.0, r)


@triton.jit
def float_to_int32(x):
    """Truncated; NaN and what int32 cannot hold become its least value."""
    fits = (x >= -2147483648.0) & (x < 2147483648.0)
    return tl.where(fits, tl.where(fits, x, 0.0).to(tl.int32), -2147483648)


@triton.jit
def float_to_int64(x):
    fits = (x >= -9223372036854775808.0) & (x < 9223372036854775808.0)
    least = tl.full(x.shape, -9223372036854775808, tl.int64)
    return tl.where(fits, tl.where(fits, x, 0.0).to(tl.int64), least)


@triton.jit
def float_to_uint64(x):
    """Through int64 below 2**63, shifted by 2**63 above; what lies outside becomes 2**63, int64's least value."""
    above = (x >= 9223372036854775808.0) & (x < 18446744073709551616.0)
    low = float_to_int64(tl.where(above, x - 9223372036854775808.0, x))
    return tl.where(above, low ^ tl.full(x.shape, -9223372036854775808, tl.int64), low).to(tl.uint64, bitcast=True)


@triton.jit
def float_to_e4m3(x):
    """float32 to the byte of float8_e4m3fn (bias 7, 3 bits): to nearest even; beyond 448 (464 rounds down) NaN."""
    bits = x.to(tl.int32, bitcast=True)
    a = bits & 0x7FFFFFFF
    normal = ((a + 0x7FFFF + ((a >> 20) & 1)) >> 20) - 960  # (127 - 7) << 3
    # below 2**-6 the spacing is 2**-9, that of float32 at 2**14
    small = (a.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(a < 0x3C800000, small, tl.where((normal > 0x7E) | (a >= 0x7F800000), 0x7F, normal))
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def float_to_e5m2(x):
    """float32 to the byte of float8_e5m2 (bias 15, 2 bits): to nearest even; from 61440 on infinity."""
    bits = x.to(tl.int32, bitcast=True)
    a = bits & 0x7FFFFFFF
    normal = ((a + 0xFFFFF + ((a >> 21) & 1)) >> 21) - 448  # (127 - 15) << 2
    small = (a.to(tl.float32, bitcast=True) + 128.0).to(tl.int32, bitcast=True) - 0x43000000
    code = tl.where(a < 0x38800000, small, tl.where((normal > 0x7C) | (a == 0x7F800000), 0x7C, normal))
    return (tl.where(a > 0x7F800000, 0x7E, code) | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def e4m3_to_float(byte):
    b = byte.to(tl.int32)
    a = b & 0x7F
    value = tl.where(a < 8, a.to(tl.float32) * 0.001953125, ((a << 20) + 0x3C000000).to(tl.float32, bitcast=True))  # 2**-9; 120 << 23
    return tl.where(a == 0x7F, float("nan"), tl.where(b > 0x7F, -value, value))


@triton.jit
def e5m2_to_float(byte):
    b = byte.to(tl.int32)
    a = b & 0x7F
    value = tl.where(a < 4, a.to(tl.float32) * 1.52587890625e-05, ((a << 21) + 0x38000000).to(tl.float32, bitcast=True))  # 2**-16; 112 << 23
    value = tl.where(a == 0x7C, float("inf"), tl.where(a > 0x7C, float("nan"), value))
    return tl.where(b > 0x7F, -value, value)


_FROM_BYTE = {"float8_e4m3fn": "e4m3_to_float", "float8_e5m2": "e5m2_to_float"}
_TO_BYTE = {"float8_e4m3fn": "float_to_e4m3", "float8_e5m2": "float_to_e5m2"}


def conversion(source: DType, target: DType, value: str) -> str:
    """Triton source of ``value`` (loaded as ``source``, float8 as uint8) converted to what is stored as ``target``."""
    floating = source.is_floating
    if source.name in _FROM_BYTE:
        value, source_size = f"convert.{_FROM_BYTE[source.name]}({value})", 4
    elif floating and source.itemsize == 2:
        value, source_size = f"{value}.to(tl.float32)", 4
    else:
        source_size = source.itemsize
    if target.kind == "b":
        return f"({value} != 0).to(tl.int8)"
    if not target.is_floating:
        if floating:
            wide = target.name in ("int64", "uint32")
            value = f"convert.float_to_{'uint64' if target.name == 'uint64' else 'int64' if wide else 'int32'}({value})"
        return f"{value}.to(tl.{target.name})"
    narrow = target.itemsize < 4
    if narrow and floating and source_size == 8:
        value = f"convert.double_to_odd({value})"
    elif narrow and not floating:
        odd = "uint64_to_odd" if source.name == "uint64" else "int_to_odd"
        value = f"convert.{odd}({value})" if source_size >= 4 else f"{value}.to(tl.float32)"  # 16 bits are a float32
    if target.name in _TO_BYTE:
        return f"convert.{_TO_BYTE[target.name]}({value}{'.to(tl.float32)' if not narrow else ''})"
    return f"{value}.to(tl.{target.name})"
