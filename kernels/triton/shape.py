"""copy, cat, tril, triu, arange, full on Triton: movement and creation.

copy and cat are the strided loops of pointwise.py without a formula (tiles where one side is transposed).  Not here: views,
which cost nothing (hal/tensor.py).
"""
from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.dtype import DType
from ...hal.tensor import Tensor
from .launch import F64, Data, by_signature, capped, lacks, launch, programs
from .pointwise import move
from .rows import contiguous, device_of, writable

__all__ = ["KERNELS", "WHEN", "copy", "matrix"]

BLOCK = 1024  # elements a program holds: 8 a thread at 4 warps of 32


def copy(x: Tensor, *, out: Tensor) -> None:
    """x into ``out``, any strides to any strides."""
    move(x, out=out)


def cat(*tensors: Tensor, dim: int, out: Tensor) -> None:
    """One copy a tensor, into its part of ``out``; a tensor of shape (0,) is nothing, as in aten."""
    axis = dim % max(out.ndim, 1)
    first = 0
    for t in tensors:
        if t.numel == 0:
            first += t.shape[axis] if t.ndim == out.ndim else 0
            continue
        last = first + t.shape[axis]
        move(t, out=out[(slice(None),) * axis + (slice(first, last),)])
        first = last


@triton.jit
def triangle_kernel(x_ptr, y_ptr, n, rows, columns, diagonal, UPPER: tl.constexpr, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        # positions of the block's first element; a block may lie past 2**31
        start = block.to(tl.int64) * BLOCK
        at = tl.arange(0, BLOCK)
        live = at < n - start
        lead = start // columns
        place = (start - lead * columns).to(tl.int32) + at
        row = ((lead % rows).to(tl.int32) + place // columns) % rows
        apart = place % columns - row
        if UPPER:
            keep = apart >= diagonal
        else:
            keep = apart <= diagonal
        x = tl.load(x_ptr + start + at, mask=live & keep, other=0)
        tl.store(y_ptr + start + at, x, mask=live)


def _triangle(x: Tensor, diagonal: int, upper: bool, out: Tensor) -> None:
    if out.numel == 0:
        return
    rows, columns = out.shape[-2:]
    reach = max(-rows, min(diagonal, columns))  # beyond, all or nothing is kept
    with writable(out) as y:
        launch(triangle_kernel, (capped(device_of(out), programs(out.numel, BLOCK)),), contiguous(x), y, out.numel, rows, columns,
               Data(reach), UPPER=upper, BLOCK=BLOCK)


def tril(x: Tensor, *, diagonal: int, out: Tensor) -> None:
    _triangle(x, diagonal, False, out)


def triu(x: Tensor, *, diagonal: int, out: Tensor) -> None:
    _triangle(x, diagonal, True, out)


@triton.jit
def arange_kernel(y_ptr, start, step, n, ACC: tl.constexpr, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        i = tl.arange(0, BLOCK)
        # the block's first index is a scalar: only it needs 64 bits
        base = start.to(ACC) + first.to(ACC) * step.to(ACC)
        y = base + i.to(ACC) * step.to(ACC)
        tl.store(y_ptr + first + i, y.to(y_ptr.dtype.element_ty), mask=i < n - first)


@triton.jit
def arange_float_kernel(y_ptr, start, step, n, ACC: tl.constexpr, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        i = tl.arange(0, BLOCK)
        # start + i step with i added up as a float: one rounding of the product, wherever the block begins
        y = tl.fma(first.to(ACC) + i.to(ACC), step, start)
        tl.store(y_ptr + first + i, y.to(y_ptr.dtype.element_ty), mask=i < n - first)


def arange(*, start: float, end: float, step: float, dtype: DType, out: Tensor) -> None:
    n = out.numel
    kernel: Any = arange_float_kernel
    numbers: tuple[float | int, ...] = (start, step)
    if dtype.is_integer:
        kernel, acc, numbers = arange_kernel, tl.int64 if dtype.itemsize == 8 else tl.int32, (Data(start), Data(step))
    elif dtype.name == "float64":
        acc, numbers = tl.float64, (F64(start), F64(step))
    else:
        acc = tl.float32
    if n:
        with writable(out) as y:
            launch(kernel, (capped(device_of(out), programs(n, BLOCK)),), y, *numbers, n, ACC=acc, BLOCK=BLOCK)


@triton.jit
def full_kernel(y_ptr, value, n, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        first = block.to(tl.int64) * BLOCK
        i = tl.arange(0, BLOCK)
        live = i < tl.minimum(n - first, BLOCK).to(tl.int32)  # vectors of 64 bits are not every chip's
        tl.store(y_ptr + first + i, tl.full((BLOCK,), 0, y_ptr.dtype.element_ty) + value.to(y_ptr.dtype.element_ty), mask=live)


def full(*, shape: Sequence[int], value: float, dtype: DType, out: Tensor) -> None:
    number: float | int = Data(value) if dtype.is_integer else Data(value != 0) if dtype.kind == "b" else \
        F64(value) if dtype.name == "float64" else _single(value) if dtype.itemsize == 4 else _odd(value)
    if out.numel:
        with writable(out) as y:
            launch(full_kernel, (capped(device_of(out), programs(out.numel, BLOCK)),), y, number, out.numel, BLOCK=BLOCK)


def _odd(value: float) -> float:
    """A float32 rounded to odd: the device rounds it to 16 bits, and nothing is rounded twice (Boldo & Melquiond 2008)."""
    if math.isinf(_single(value)) or math.isnan(value):
        return _single(value)
    near = struct.unpack("<f", struct.pack("<f", value))[0]
    if near == value:
        return value
    bits = struct.unpack("<I", struct.pack("<f", near))[0] - (abs(near) > abs(value)) | 1
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def _single(value: float) -> float:
    """The value as a float32 holds it; what is too large becomes infinite."""
    return math.copysign(math.inf, value) if abs(value) >= 2.0**128 * (1 - 2.0**-25) else value


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    used = [s.dtype for s in specs if s is not None] + ([attrs["dtype"]] if "dtype" in attrs else [])
    if facts.dtypes_load:
        for d in used:
            if d.name not in facts.dtypes_load:
                return f"the device does not store {d}"
    return lacks(facts, *(d.name for d in used if d.name == "float64")) if "start" in attrs or "value" in attrs else ""


KERNELS = {"copy": copy, "cat": cat, "tril": tril, "triu": triu, "arange": arange, "full": full}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    for t in ("*fp32", "*fp16", "*i64", "*i8"):
        yield f"triangle {t}", triangle_kernel, ((t, True), (t, True), ("i32", True), ("i32", True), ("i32", True), ("i32", False)), \
            {"UPPER": False, "BLOCK": BLOCK}, 4
    yield "arange i64", arange_kernel, (("*i64", True), ("i32", False), ("i32", False), ("i32", True)), {"ACC": tl.int64, "BLOCK": BLOCK}, 4
    yield "arange f32", arange_float_kernel, (("*fp32", True), ("fp32", False), ("fp32", False), ("i32", True)), {"ACC": tl.float32, "BLOCK": BLOCK}, 4
    for t, number in (("*fp32", "fp32"), ("*bf16", "fp32"), ("*i8", "i32")):
        yield f"full {t}", full_kernel, ((t, True), (number, False), ("i32", True)), {"BLOCK": BLOCK}, 4
