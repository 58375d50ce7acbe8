"""rand, uniform, normal, randint, bernoulli, dropout, native_dropout on Triton: Philox 4x32-10, the same bits as kernels/cpu/random.c and ops/random.py.

Element i takes word i % 4 of the block with counter (i // 4, offset) and key seed, in row-major order whatever the layout.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.dtype import DType
from ...hal.tensor import Tensor
from . import scalar as m
from .launch import F64, I64, Data, by_signature, capped, lacks, launch, programs
from .rows import contiguous, device_of, writable

__all__ = ["KERNELS", "WHEN", "matrix"]

BLOCK = 256  # Philox blocks a program makes: 1024 words, 8 a thread at 4 warps of 32


@triton.jit
def philox(first, seed_low, seed_high, offset_low, offset_high, BLOCK: tl.constexpr):
    """Four words (BLOCK,) of each of the BLOCK counters from ``first`` (a scalar, a multiple of BLOCK) on.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0 = (first & 0xFFFFFFFF).to(tl.uint32) + tl.arange(0, BLOCK).to(tl.uint32)
    zero = tl.zeros((BLOCK,), tl.uint32)
    c1 = zero + (first >> 32).to(tl.uint32)
    c2 = zero + offset_low.to(tl.uint32)
    c3 = zero + offset_high.to(tl.uint32)
    k0 = zero + seed_low.to(tl.uint32)
    k1 = zero + seed_high.to(tl.uint32)
    m0 = tl.full((BLOCK,), 0xD2511F53, tl.uint32)
    m1 = tl.full((BLOCK,), 0xCD9E8D57, tl.uint32)
    w0 = tl.full((BLOCK,), 0x9E3779B9, tl.uint32)
    w1 = tl.full((BLOCK,), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, m0)
        high1 = tl.umulhi(c2, m1)
        low0 = c0 * m0
        low1 = c2 * m1
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += w0
        k1 += w1
    return c0, c1, c2, c3


@triton.jit
def words(first, seed_low, seed_high, offset_low, offset_high, BLOCK: tl.constexpr):
    """The 4 * BLOCK words from counter ``first`` on, in order."""
    c0, c1, c2, c3 = philox(first, seed_low, seed_high, offset_low, offset_high, BLOCK)
    return tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3))


@triton.jit
def rand_kernel(y_ptr, seed_low, seed_high, offset_low, offset_high, n, DIGITS: tl.constexpr, BLOCK: tl.constexpr):
    """DIGITS: significand bits of the result; 53 takes two words an element."""
    PER: tl.constexpr = 2 if DIGITS == 53 else 4  # elements of one counter
    for block in range(tl.program_id(0), tl.cdiv(n, PER * BLOCK), tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        if DIGITS == 53:
            c0, c1, c2, c3 = philox(first, seed_low, seed_high, offset_low, offset_high, BLOCK)
            left = (c0.to(tl.int64) << 21) ^ (c1 >> 11).to(tl.int64)
            right = (c2.to(tl.int64) << 21) ^ (c3 >> 11).to(tl.int64)
            y = tl.interleave(left, right).to(tl.float64) * 1.1102230246251565e-16  # 2**-53
        else:
            w = words(first, seed_low, seed_high, offset_low, offset_high, BLOCK)
            y = (w >> (32 - DIGITS)).to(tl.int32).to(tl.float32) * (1.0 / (1 << DIGITS))
        i = tl.arange(0, PER * BLOCK)
        tl.store(y_ptr + first * PER + i, y.to(y_ptr.dtype.element_ty), mask=i < n - first * PER)


@triton.jit
def _doubles(low, high):
    """53 bits of two words, an integer."""
    return (low.to(tl.int64) << 21) ^ (high >> 11).to(tl.int64)


@triton.jit
def _pair(u, t):
    """sqrt(-2 log u) times cosine and sine of t quarter turns, 0 <= t < 4; Taylor series, as kernels/cpu/random.c."""
    turns = tl.floor(t + m.like(0.5, t))
    q = turns.to(tl.int32)
    f = t - turns
    r = m.sqrt(m.like(-2.0, t) * m.log(u))
    x = f * m.like(1.5707963267948966, t)
    z = x * x
    if t.dtype == tl.float64:
        p = z * m.like(1 / 355687428096000.0, z) - m.like(1 / 1307674368000.0, z)
        p = p * z + m.like(1 / 6227020800.0, z)
        p = p * z - m.like(1 / 39916800.0, z)
        p = p * z + m.like(1 / 362880.0, z)
        c = z * m.like(1 / 20922789888000.0, z) - m.like(1 / 87178291200.0, z)
        c = c * z + m.like(1 / 479001600.0, z)
        c = c * z - m.like(1 / 3628800.0, z)
    else:
        p = tl.zeros_like(z) + m.like(1 / 362880.0, z)
        c = tl.zeros_like(z) - m.like(1 / 3628800.0, z)
    p = p * z - m.like(1 / 5040.0, z)
    p = p * z + m.like(1 / 120.0, z)
    p = p * z - m.like(1 / 6.0, z)
    c = c * z + m.like(1 / 40320.0, z)
    c = c * z - m.like(1 / 720.0, z)
    c = c * z + m.like(1 / 24.0, z)
    c = c * z - m.like(0.5, z)
    sine = x + x * (z * p)
    cosine = m.like(1.0, z) + z * c
    odd = (q & 1) == 1
    a = tl.where(odd, -sine, cosine)
    b = tl.where(odd, cosine, sine)
    back = (q & 2) == 2
    return r * tl.where(back, -a, a), r * tl.where(back, -b, b)


@triton.jit
def _float_word(w):
    return (w >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2**-24


@triton.jit
def real_kernel(y_ptr, seed_low, seed_high, offset_low, offset_high, first_value, spread, n, NORMAL: tl.constexpr, WIDE: tl.constexpr,
                BLOCK: tl.constexpr):
    """first_value + spread * z, z uniform in [0, 1) or normal.  WIDE: float64, two words an element."""
    PER: tl.constexpr = 2 if WIDE else 4  # elements of one counter
    for block in range(tl.program_id(0), tl.cdiv(n, PER * BLOCK), tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        c0, c1, c2, c3 = philox(first, seed_low, seed_high, offset_low, offset_high, BLOCK)
        if WIDE:
            left = _doubles(c0, c1)
            right = _doubles(c2, c3)
            if NORMAL:
                u = (left + 1).to(tl.float64) * 1.1102230246251565e-16  # 2**-53
                a, b = _pair(u, right.to(tl.float64) * 4.440892098500626e-16)
                z = tl.interleave(a, b)
            else:
                z = tl.interleave(left, right).to(tl.float64) * 1.1102230246251565e-16
        elif NORMAL:
            a, b = _pair(_float_word(c0) + 5.9604644775390625e-08, _float_word(c1) * 4.0)
            c, d = _pair(_float_word(c2) + 5.9604644775390625e-08, _float_word(c3) * 4.0)
            z = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
        else:
            z = _float_word(tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3)))
        i = tl.arange(0, PER * BLOCK)
        tl.store(y_ptr + first * PER + i, (first_value + spread * z).to(y_ptr.dtype.element_ty), mask=i < n - first * PER)


@triton.jit
def whole_kernel(y_ptr, seed_low, seed_high, offset_low, offset_high, low, numbers, n, ALL: tl.constexpr, BLOCK: tl.constexpr):
    """low + (word * numbers >> 32); ALL: 2**32 numbers.  Narrow integers wrap in 32 bits."""
    for block in range(tl.program_id(0), tl.cdiv(n, 4 * BLOCK), tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        w = words(first, seed_low, seed_high, offset_low, offset_high, BLOCK)
        if not ALL:
            w = tl.umulhi(w, tl.zeros_like(w) + numbers.to(tl.uint32))
        if y_ptr.dtype.element_ty == tl.int64:
            y = w.to(tl.int64) + low
        else:
            y = (w.to(tl.int32, bitcast=True) + low.to(tl.int32)).to(y_ptr.dtype.element_ty)
        i = tl.arange(0, 4 * BLOCK)
        tl.store(y_ptr + first * 4 + i, y, mask=i < n - first * 4)


@triton.jit
def bernoulli_kernel(p_ptr, y_ptr, seed_low, seed_high, offset_low, offset_high, n, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for block in range(tl.program_id(0), tl.cdiv(n, 4 * BLOCK), tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        u = _float_word(words(first, seed_low, seed_high, offset_low, offset_high, BLOCK)).to(acc)
        i = tl.arange(0, 4 * BLOCK)
        live = i < n - first * 4
        p = tl.load(p_ptr + first * 4 + i, mask=live, other=0.0).to(acc)
        tl.store(y_ptr + first * 4 + i, tl.where(u < p, 1.0, 0.0).to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def dropout_kernel(x_ptr, y_ptr, mask_ptr, seed_low, seed_high, offset_low, offset_high, threshold, scale, n, MASK: tl.constexpr,
                   WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Kept where word >> 8 reaches the threshold."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for block in range(tl.program_id(0), tl.cdiv(n, 4 * BLOCK), tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        w = words(first, seed_low, seed_high, offset_low, offset_high, BLOCK)
        keep = (w >> 8).to(tl.int32) >= threshold
        i = tl.arange(0, 4 * BLOCK)
        live = i < n - first * 4
        x = tl.load(x_ptr + first * 4 + i, mask=live, other=0.0).to(acc)  # all of them: wide loads
        tl.store(y_ptr + first * 4 + i, tl.where(keep, x * scale, 0.0).to(y_ptr.dtype.element_ty), mask=live)
        if MASK:
            tl.store(mask_ptr + first * 4 + i, keep.to(tl.int8), mask=live)


def _halves(value: int) -> tuple[Data, Data]:
    """The low and high 32 bits of a 64-bit number, as int32."""
    low, high = value & 0xFFFFFFFF, (value >> 32) & 0xFFFFFFFF
    return Data(low - (low >> 31 << 32)), Data(high - (high >> 31 << 32))


def rand(*, shape: Sequence[int], seed: int, offset: int, dtype: DType, out: Tensor) -> None:
    if out.numel == 0:
        return
    per = 2 if dtype.digits == 53 else 4
    with writable(out) as y:
        launch(rand_kernel, (capped(device_of(out), programs(out.numel, per * BLOCK)),), y, *_halves(seed), *_halves(offset), out.numel,
               DIGITS=dtype.digits, BLOCK=BLOCK)


def _real(normal: bool, first: float, spread: float, seed: int, offset: int, dtype: DType, out: Tensor) -> None:
    if out.numel == 0:
        return
    wide = dtype.name == "float64"
    number = F64 if wide else float
    with writable(out) as y:
        launch(real_kernel, (capped(device_of(out), programs(out.numel, (2 if wide else 4) * BLOCK)),), y, *_halves(seed), *_halves(offset),
               number(first), number(spread), out.numel, NORMAL=normal, WIDE=wide, BLOCK=BLOCK)


def uniform(*, shape: Sequence[int], low: float, high: float, seed: int, offset: int, dtype: DType, out: Tensor) -> None:
    _real(False, low, high - low, seed, offset, dtype, out)


def normal(*, shape: Sequence[int], mean: float, std: float, seed: int, offset: int, dtype: DType, out: Tensor) -> None:
    _real(True, mean, std, seed, offset, dtype, out)


def randint(*, shape: Sequence[int], low: int, high: int, seed: int, offset: int, dtype: DType, out: Tensor) -> None:
    if out.numel == 0:
        return
    with writable(out) as y:
        launch(whole_kernel, (capped(device_of(out), programs(out.numel, 4 * BLOCK)),), y, *_halves(seed), *_halves(offset),
               I64(low) if dtype.itemsize == 8 else Data(low), _halves(high - low)[0], out.numel, ALL=high - low == 2**32, BLOCK=BLOCK)


def bernoulli(p: Tensor, *, seed: int, offset: int, out: Tensor) -> None:
    if out.numel == 0:
        return
    with writable(out) as y:
        launch(bernoulli_kernel, (capped(device_of(out), programs(out.numel, 4 * BLOCK)),), contiguous(p), y, *_halves(seed), *_halves(offset),
               out.numel, WIDE=p.dtype.name == "float64", BLOCK=BLOCK)


def _dropout(x: Tensor, p: float, seed: int, offset: int, out: Tensor, mask: Tensor | None) -> None:
    if out.numel == 0:
        return
    if mask is not None and not mask.is_contiguous:
        with writable(mask) as packed:
            _dropout(x, p, seed, offset, out, packed)
        return
    wide = out.dtype.name == "float64"
    scale = 1.0 / (1.0 - p) if p < 1 else 0.0
    with writable(out) as y:
        launch(dropout_kernel, (capped(device_of(out), programs(out.numel, 4 * BLOCK)),), contiguous(x), y, y if mask is None else mask,
               *_halves(seed), *_halves(offset), Data(math.ceil(p * 2**24)), F64(scale) if wide else scale, out.numel,
               MASK=mask is not None, WIDE=wide, BLOCK=BLOCK)


def dropout(x: Tensor, *, p: float, seed: int, offset: int, out: Tensor) -> None:
    _dropout(x, p, seed, offset, out, None)


def native_dropout(x: Tensor, *, p: float, seed: int, offset: int, out: tuple[Tensor, Tensor]) -> None:
    _dropout(x, p, seed, offset, *out)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    used = [s.dtype.name for s in specs] + ([attrs["dtype"].name] if "dtype" in attrs else [])
    wide = "dtype" in attrs and bool({"float64", "int64"} & set(used))
    return lacks(facts, *used) or ("64-bit numbers need 64-bit integers" if wide and not facts.int64_math else "")


KERNELS = {"rand": rand, "uniform": uniform, "normal": normal, "randint": randint, "bernoulli": bernoulli, "dropout": dropout, "native_dropout": native_dropout}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    words_of = (("i32", False),) * 4
    for t, digits in (("*fp32", 24), ("*fp16", 11), ("*bf16", 8), ("*fp64", 53)):
        yield f"rand {t}", rand_kernel, ((t, True), *words_of, ("i32", True)), {"DIGITS": digits, "BLOCK": BLOCK}, 4
    for t, number in (("*fp32", "fp32"), ("*bf16", "fp32"), ("*fp64", "fp64")):
        for normal_ in (False, True):
            yield f"{'normal' if normal_ else 'uniform'} {t}", real_kernel, ((t, True), *words_of, (number, False), (number, False), ("i32", True)), \
                {"NORMAL": normal_, "WIDE": t == "*fp64", "BLOCK": BLOCK}, 4
    for t, number in (("*i64", "i64"), ("*i32", "i32")):
        yield f"randint {t}", whole_kernel, ((t, True), *words_of, (number, False), ("i32", False), ("i32", True)), {"ALL": False, "BLOCK": BLOCK}, 4
    yield "bernoulli", bernoulli_kernel, (("*fp32", True), ("*fp32", True), *words_of, ("i32", True)), {"WIDE": False, "BLOCK": BLOCK}, 4
    for t in ("*fp32", "*bf16"):
        yield f"native_dropout {t}", dropout_kernel, ((t, True), (t, True), ("*i8", True), *words_of, ("i32", False), ("fp32", False), ("i32", True)), \
            {"MASK": True, "WIDE": False, "BLOCK": BLOCK}, 4
