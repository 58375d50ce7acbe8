"""rand, dropout, native_dropout on Triton: Philox 4x32-10, the same bits as kernels/cpu/random.c and ops/random.py.

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
from .launch import F64, Data, by_signature, capped, lacks, launch, programs
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
    return lacks(facts, *used) or ("float64 numbers need 64-bit integers" if "dtype" in attrs and "float64" in used and not facts.int64_math else "")


KERNELS = {"rand": rand, "dropout": dropout, "native_dropout": native_dropout}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    words_of = (("i32", False),) * 4
    for t, digits in (("*fp32", 24), ("*fp16", 11), ("*bf16", 8), ("*fp64", 53)):
        yield f"rand {t}", rand_kernel, ((t, True), *words_of, ("i32", True)), {"DIGITS": digits, "BLOCK": BLOCK}, 4
    for t in ("*fp32", "*bf16"):
        yield f"native_dropout {t}", dropout_kernel, ((t, True), (t, True), ("*i8", True), *words_of, ("i32", False), ("fp32", False), ("i32", True)), \
            {"MASK": True, "WIDE": False, "BLOCK": BLOCK}, 4
