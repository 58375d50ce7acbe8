"""Quantised tensors on Triton: codes and scales by group, back again, products with quantised operands.

8-bit operands are multiplied in a type that holds them exactly (int8 in float16 or bfloat16 or as int8, float8 in float16), 4-bit weights
in float32 behind their zero points and scales.  float8 is read and written as bytes (convert.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.dtype import DType
from ...hal.tensor import Tensor
from . import convert
from . import scalar as m
from .launch import Step, by_signature, capped, lacks, launch, next_power_of_2, programs
from .pointwise import _bytes_view as as_bytes
from .rows import contiguous, device_of, writable

__all__ = ["KERNELS", "WHEN", "matrix"]

TILE = 1024  # elements of a tile of groups
KIND = {"int8": 0, "uint8": 0, "float8_e4m3fn": 1, "float8_e5m2": 2}


# ---- by group --------------------------------------------------------------------------------------------------------------
@triton.jit
def quantize_kernel(x_ptr, code_ptr, scale_ptr, groups, size, eps, MOST: tl.constexpr, KIND: tl.constexpr, BLOCK_G: tl.constexpr,
                    BLOCK: tl.constexpr):
    """Magnitudes are in order of their bits, NaN above all."""
    for tile in range(tl.program_id(0), tl.cdiv(groups, BLOCK_G), tl.num_programs(0)):
        g = tile * BLOCK_G + tl.arange(0, BLOCK_G)
        first = g.to(tl.int64) * size
        i = tl.arange(0, BLOCK)
        most = tl.zeros((BLOCK_G,), tl.int32)
        for start in range(0, size, BLOCK):
            live = (g < groups)[:, None] & (i < size - start)[None, :]
            x = tl.load(x_ptr + first[:, None] + (start + i)[None, :], mask=live, other=0.0).to(tl.float32)
            most = tl.maximum(most, tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1))
        least = tl.zeros((BLOCK_G,), tl.float32) + eps
        most = tl.maximum(most, least.to(tl.int32, bitcast=True))
        scale = m.div(most.to(tl.float32, bitcast=True), tl.zeros((BLOCK_G,), tl.float32) + MOST)
        tl.store(scale_ptr + g, scale, mask=g < groups)
        for start in range(0, size, BLOCK):
            live = (g < groups)[:, None] & (i < size - start)[None, :]
            at = first[:, None] + (start + i)[None, :]
            x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
            q = m.div(x, tl.zeros((BLOCK_G, BLOCK), tl.float32) + scale[:, None])
            q = tl.where(q > MOST, MOST, tl.where(q < -MOST, -MOST, q))
            if KIND == 0:
                # 1.5 * 2**23 leaves whole numbers, halves to even
                whole = (q + 12582912.0) - 12582912.0
                tl.store(code_ptr + at, tl.where(whole == whole, whole, 0.0).to(tl.int32).to(tl.int8), mask=live)
            else:
                tl.store(code_ptr + at, convert.float_to_e4m3(q), mask=live)


@triton.jit
def decoded(code, KIND: tl.constexpr):
    """Codes as float32.  KIND: 0 integers, 1 float8_e4m3fn, 2 float8_e5m2 (both as bytes)."""
    if KIND == 0:
        value = code.to(tl.int32).to(tl.float32)
    elif KIND == 1:
        value = convert.e4m3_to_float(code)
    else:
        value = convert.e5m2_to_float(code)
    return value


@triton.jit
def dequantize_kernel(code_ptr, scale_ptr, zero_ptr, y_ptr, n, size, KIND: tl.constexpr, ZEROS: tl.constexpr, BLOCK: tl.constexpr):
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        at = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        live = at < n
        value = decoded(tl.load(code_ptr + at, mask=live, other=0), KIND)
        group = at // size
        if ZEROS:
            value -= tl.load(zero_ptr + group, mask=live, other=0.0).to(tl.float32)
        value *= tl.load(scale_ptr + group, mask=live, other=0.0).to(tl.float32)
        tl.store(y_ptr + at, value.to(y_ptr.dtype.element_ty), mask=live)


def quantize_per_token_group(x: Tensor, *, group_size: int, dtype: DType, eps: float, out: tuple[Tensor, Tensor]) -> None:
    if x.numel == 0:
        return
    block = min(next_power_of_2(group_size), TILE)
    groups, rows = x.numel // group_size, TILE // block
    with writable(out[0]) as codes, writable(out[1]) as scales:
        launch(quantize_kernel, (capped(device_of(x), programs(groups, rows)),), contiguous(x), as_bytes(codes), scales, groups, group_size,
               float(eps), MOST=127.0 if dtype.is_integer else 448.0, KIND=KIND[dtype.name], BLOCK_G=rows, BLOCK=block)


def dequantize_per_group(codes: Tensor, scales: Tensor, zeros: Tensor | None, *, group_size: int, dtype: DType | None, out: Tensor) -> None:
    if out.numel == 0:
        return
    kind, scales = KIND[codes.dtype.name], contiguous(scales)
    with writable(out) as y:
        launch(dequantize_kernel, (capped(device_of(out), programs(out.numel, TILE)),), as_bytes(contiguous(codes)), scales,
               scales if zeros is None else contiguous(zeros), y, out.numel, group_size, KIND=kind, ZEROS=zeros is not None, BLOCK=TILE)


# ---- products --------------------------------------------------------------------------------------------------------------
@triton.jit
def product_kernel(a_ptr, b_ptr, row_ptr, column_ptr, bias_ptr, scale_ptr, zero_ptr, y_ptr, M, N, K, size, stride_am, stride_ak, stride_bk,
                   stride_bn, stride_row, stride_column, A: tl.constexpr, B: tl.constexpr, INT: tl.constexpr, NIBBLES: tl.constexpr,
                   ROW: tl.constexpr, COLUMN: tl.constexpr, BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                   BLOCK_K: tl.constexpr):
    """y = (a b) * row * column + bias.

    A, B: what the operand is read as: -1 as it is, 0 to 2 codes (see decoded).  INT: int8 products summed in int32.  NIBBLES: b holds two
    terms a byte; its terms are (code - zero) * scale, groups of ``size``.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    for tile in range(tl.program_id(0), tl.cdiv(M, BLOCK_M) * tiles_n, tl.num_programs(0)):
        rm = ((tile // tiles_n) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        rn = ((tile % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        live_m = rm < M
        live_n = rn < N
        if INT:
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        else:
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, K, BLOCK_K):
            rk = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
            live_k = rk < K
            a = tl.load(a_ptr + (rm[:, None] * stride_am + rk[None, :] * stride_ak), mask=live_m[:, None] & live_k[None, :], other=0)
            live = live_k[:, None] & live_n[None, :]
            if NIBBLES:
                b = tl.load(b_ptr + ((rk // 2)[:, None] * stride_bk + rn[None, :] * stride_bn), mask=live, other=0).to(tl.int32)
                b = ((b >> ((rk % 2) * 4).to(tl.int32)[:, None]) & 15).to(tl.float32)
                at = rn[None, :] * (K // size) + (rk // size)[:, None]
                b -= tl.load(zero_ptr + at, mask=live, other=0.0).to(tl.float32)
                b *= tl.load(scale_ptr + at, mask=live, other=0.0).to(tl.float32)
                total = tl.dot(a.to(tl.float32), b, total, input_precision="ieee")
            else:
                b = tl.load(b_ptr + (rk[:, None] * stride_bk + rn[None, :] * stride_bn), mask=live, other=0)
                if INT:
                    total = tl.dot(a, b, total, out_dtype=tl.int32)
                elif A >= 0:
                    total = tl.dot(decoded(a, A).to(tl.float16), decoded(b, B).to(tl.float16), total)
                elif a_ptr.dtype.element_ty == tl.float32:
                    total = tl.dot(a, decoded(b, B), total, input_precision="ieee")
                else:
                    total = tl.dot(a, decoded(b, B).to(a_ptr.dtype.element_ty), total)
        y = total.to(tl.float32)
        if ROW:
            y *= tl.load(row_ptr + rm * stride_row, mask=live_m, other=0.0).to(tl.float32)[:, None]
        if COLUMN:
            y *= tl.load(column_ptr + rn * stride_column, mask=live_n, other=0.0).to(tl.float32)[None, :]
        if BIAS:
            y += tl.load(bias_ptr + rn, mask=live_n, other=0.0)[None, :]
        tl.store(y_ptr + rm[:, None] * N + rn[None, :], y.to(y_ptr.dtype.element_ty), mask=live_m[:, None] & live_n[None, :])


def _step(t: Tensor | None) -> Step:
    """From one value to the next; one value counts everywhere."""
    return Step(0 if t is None or t.shape[0] == 1 else t.strides[0])


def _product(a: Tensor, b: Tensor, out: Tensor, row: Tensor | None = None, column: Tensor | None = None, bias: Tensor | None = None, *,
             b_steps: tuple[int, int], read: tuple[int, int] = (-1, 0), integers: bool = False,
             groups: tuple[Tensor, Tensor, int] | None = None) -> None:
    """a (m, k) times b, read with ``b_steps`` along k and n, into out."""
    if out.numel == 0:
        return
    rows, columns, terms = *out.shape, a.shape[1]
    block_m = min(64, max(16, next_power_of_2(rows)))
    block_n, block_k = (64, 32) if block_m > 16 else (32, 64)
    with writable(out) as y:
        scales, zeros, size = (contiguous(groups[0]), contiguous(groups[1]), groups[2]) if groups else (y, y, 1)
        launch(product_kernel, (capped(device_of(out), programs(rows, block_m) * programs(columns, block_n)),), as_bytes(a), as_bytes(b),
               y if row is None else row, y if column is None else column, y if bias is None else contiguous(bias), scales, zeros, y,
               rows, columns, terms, size, *map(Step, (*a.strides, *b_steps)), _step(row), _step(column), A=read[0], B=read[1], INT=integers,
               NIBBLES=groups is not None, ROW=row is not None, COLUMN=column is not None, BIAS=bias is not None, BLOCK_M=block_m,
               BLOCK_N=block_n, BLOCK_K=block_k)


def weight_int8_mm(x: Tensor, weight: Tensor, scales: Tensor, *, out: Tensor) -> None:
    _product(x, weight, out, column=scales, b_steps=(weight.strides[1], weight.strides[0]))


def weight_int4_mm(x: Tensor, weight: Tensor, scales: Tensor, zeros: Tensor, *, group_size: int, out: Tensor) -> None:
    _product(x, weight, out, b_steps=(weight.strides[1], weight.strides[0]), groups=(scales, zeros, group_size))


def scaled_mm_fp8(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None, *, dtype: DType, out: Tensor) -> None:
    _product(a, b, out, scale_a, scale_b, bias, b_steps=b.strides, read=(KIND[a.dtype.name], KIND[b.dtype.name]))


def qlinear_int8(x: Tensor, weight: Tensor, scale_x: Tensor, scale_weight: Tensor, bias: Tensor | None, *, dtype: DType, out: Tensor) -> None:
    _product(x, weight, out, scale_x, scale_weight, bias, b_steps=(weight.strides[1], weight.strides[0]), integers=True)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    used = [s.dtype.name for s in specs if s is not None] + ([attrs["dtype"].name] if attrs.get("dtype") else [])
    return lacks(facts, "float32", *(n for n in used if not n.startswith("float8"))) or ("" if facts.int64_math else "offsets need 64-bit integers")


KERNELS = {"quantize_per_token_group": quantize_per_token_group, "dequantize_per_group": dequantize_per_group, "weight_int8_mm": weight_int8_mm,
           "weight_int4_mm": weight_int4_mm, "scaled_mm_fp8": scaled_mm_fp8, "qlinear_int8": qlinear_int8}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    for kind, code, most in ((0, "*i8", 127.0), (1, "*u8", 448.0)):
        yield f"quantize {code}", quantize_kernel, (("*bf16", True), (code, True), ("*fp32", True), ("i32", False), ("i32", True), ("fp32", False)), \
            {"MOST": most, "KIND": kind, "BLOCK_G": 8, "BLOCK": 128}, 4
        yield f"dequantize {code}", dequantize_kernel, ((code, True), ("*bf16", True), ("*bf16", True), ("*bf16", True), ("i32", True), ("i32", True)), \
            {"KIND": kind, "ZEROS": True, "BLOCK": TILE}, 4
    steps = (("i32", True), ("=1", False), ("=1", False), ("i32", True), ("=1", False), ("=1", False))
    for name, a, b, code, integers, nibbles in (("int8", "*bf16", "*i8", -1, False, False), ("int4", "*bf16", "*u8", -1, False, True),
                                                ("fp8", "*u8", "*u8", 1, False, False), ("qlinear", "*i8", "*i8", -1, True, False)):
        scales, plain = "*bf16" if a == "*bf16" else "*fp32", a == "*bf16"
        for block_m, block_n, block_k in ((64, 64, 32), (16, 32, 64)):
            pointers = ((a, True), (b, True), (scales, True), (scales, True), ("*fp32", True), (scales, True), (scales, True), ("*bf16", True))
            yield f"{name} {block_m}", product_kernel, (*pointers, *((("i32", True),) * 4), *steps), \
                {"A": code, "B": max(code, 0), "INT": integers, "NIBBLES": nibbles, "ROW": not plain, "COLUMN": not nibbles, "BIAS": not plain,
                 "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}, 4
