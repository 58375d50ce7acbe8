"""constant_pad_nd, reflection and replication pads with their gradients, and pad, on Triton.

One kernel for every mode and up to three padded axes behind a batch: each element of the result works out where it comes from.
Constant pads of more axes are a fill and a copy.  A gradient gathers, so it needs no atomics: each element of dx adds what shows it,
in a fixed order.  Not here: what the operators mean (kernels/ops/pad.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.geometry import Geometry
from ...hal.tensor import Tensor, with_geometry
from ..ops.pad import pairs
from .launch import F64, Data, by_signature, capped, lacks, launch, programs
from .pointwise import move
from .rows import contiguous, device_of, writable
from .scatter import raw
from .shape import _single, full

__all__ = ["KERNELS", "WHEN", "matrix"]

BLOCK = 1024  # elements a program holds: 8 a thread at 4 warps of 32
BACK = 512  # of a gradient, whose places along three axes are kept besides: 1024 spill on sm_80
FAR = 2**31  # offsets from here on need 64 bits


@triton.jit
def source(o, before, n, MODE: tl.constexpr):
    """Where position o of a padded axis comes from; outside 0 <= i < n in constant mode."""
    i = o - before
    if MODE == "reflect":
        i = tl.where(i < 0, -i, i)
        i = tl.where(i >= n, 2 * (n - 1) - i, i)
    elif MODE == "replicate":
        i = tl.where(i < 0, 0, i)
        i = tl.where(i >= n, n - 1, i)
    elif MODE == "circular":
        i = tl.where(i < 0, i + n, i)
        i = tl.where(i >= n, i - n, i)
    return i


@triton.jit
def pad_kernel(x_ptr, y_ptr, value, n1, n2, n3, m1, m2, m3, b1, b2, b3, total, blocks, MODE: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """y (batch, m1, m2, m3) from x (batch, n1, n2, n3) with b elements before it along each axis."""
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        at = tl.arange(0, BLOCK)
        if FAR:
            at = at.to(tl.int64)
        at += block * BLOCK
        live = at < total
        i3 = source(at % m3, b3, n3, MODE)
        i2 = source(at // m3 % m2, b2, n2, MODE)
        i1 = source(at // (m3 * m2) % m1, b1, n1, MODE)
        inside = live
        if MODE == "constant":
            inside = live & (i3 >= 0) & (i3 < n3) & (i2 >= 0) & (i2 < n2) & (i1 >= 0) & (i1 < n1)
        x = tl.load(x_ptr + ((at // (m3 * m2 * m1) * n1 + i1) * n2 + i2) * n3 + i3, mask=inside, other=0)
        if MODE == "constant":
            x = tl.where(inside, x, tl.full((BLOCK,), 0, y_ptr.dtype.element_ty) + value.to(y_ptr.dtype.element_ty))
        tl.store(y_ptr + at, x, mask=live)


def _number(value: float, dtype: Any) -> float | int:
    if dtype.is_integer:
        return Data(value)
    if dtype.kind == "b":
        return Data(value != 0)
    return F64(value) if dtype.name == "float64" else _single(value)


def _three(sizes: list[tuple[int, int, int]]) -> tuple[list[int], list[int], list[int]]:
    """(n, m, before) of three axes, missing ones in front of size 1."""
    sizes = [(1, 1, 0)] * (3 - len(sizes)) + sizes
    return [s[0] for s in sizes], [s[1] for s in sizes], [s[2] for s in sizes]


def _sizes(sizes: list[int]) -> tuple[int, ...]:
    """As arguments: only the innermost one's divisibility makes loads wider."""
    return Data(sizes[0]), Data(sizes[1]), sizes[2]


def _padded(x: Tensor, pad: Sequence[int], mode: str, value: float, out: Tensor) -> None:
    if out.numel == 0:
        return
    if mode == "circular":  # goes around in what is left of a crop
        own = pairs("pad", pad, x.ndim, x.ndim)
        x = x[tuple(slice(max(-b, 0), n - max(-a, 0)) for n, (b, a) in zip(x.shape, own, strict=True))] if own else x
        pad = tuple(max(p, 0) for p in pad)
    axes: list[tuple[int, int, int]] = []  # (n, m, before) from the first padded axis on
    for n, m, (before, after) in zip(x.shape, out.shape, pairs("pad", pad, x.ndim, x.ndim), strict=True):
        if before or after or (axes and mode != "constant"):
            axes.append((n, m, before))
        elif axes:  # what is not padded joins the axis in front
            axes[-1] = (axes[-1][0] * n, axes[-1][1] * n, axes[-1][2] * n)
    if len(axes) > 3:
        full(shape=out.shape, value=value, dtype=out.dtype, out=out)
        _inner(x, pad, out)
        return
    n, m, before = _three(axes)
    total = out.numel
    blocks = programs(total, BLOCK)
    with writable(out) as y:
        moved = mode != "constant" or out.dtype.kind == "b"  # a value is stored in the dtype itself
        packed, number = contiguous(x), _number(value, out.dtype) if mode == "constant" else Data(0)
        launch(pad_kernel, (capped(device_of(out), blocks),), raw(packed) if moved else packed, raw(y) if moved else y, number,
               *_sizes(n), *_sizes(m), *map(Data, before), total, Data(blocks), MODE=mode, FAR=max(total, x.numel) + BLOCK >= FAR, BLOCK=BLOCK)


def _inner(x: Tensor, pad: Sequence[int], out: Tensor) -> None:
    """The part of x that is not cropped, into its place in out."""
    shape, x_from, y_from = [], 0, 0
    for n, m, xs, ys, (before, _) in zip(x.shape, out.shape, x.strides, out.strides, pairs("pad", pad, x.ndim, x.ndim), strict=True):
        first = max(-before, 0)
        last = min(n, m - before)
        if last <= first:
            return
        shape.append(last - first)
        x_from += first * xs
        y_from += (first + before) * ys
    move(raw(with_geometry(x, Geometry(tuple(shape), x.strides, x_from))), out=raw(with_geometry(out, Geometry(tuple(shape), out.strides, y_from))))


def constant_pad_nd(x: Tensor, *, pad: Sequence[int], value: float, out: Tensor) -> None:
    _padded(x, pad, "constant", value, out)


def pad(x: Tensor, *, pad: Sequence[int], mode: str, value: float, out: Tensor) -> None:
    _padded(x, pad, mode, value, out)


def _spatial(mode: str) -> Any:
    return lambda x, *, pad, out: _padded(x, pad, mode, 0.0, out)


@triton.jit
def shown(i, k, n, m, before, REFLECT: tl.constexpr):
    """The k-th position of a padded axis that shows i, and whether there is one."""
    if REFLECT:  # the place itself, the mirror in front, the mirror behind
        o = tl.where(k == 0, i + before, tl.where(k == 1, before - i, before + 2 * (n - 1) - i))
        there = (k == 0) | ((k == 1) & (i >= 1)) | ((k == 2) & (i <= n - 2))
    else:
        first = tl.where(i == 0, 0, i + before)
        o = tl.where(first < 0, 0, first) + k
        there = o < tl.where(i == n - 1, m, i + before + 1)
    return o, there & (o >= 0) & (o < m)


@triton.jit
def back_kernel(dy_ptr, dx_ptr, n1, n2, n3, m1, m2, m3, b1, b2, b3, c1, c2, c3, total, blocks, REFLECT: tl.constexpr, FAR: tl.constexpr,
                ACC: tl.constexpr, BLOCK: tl.constexpr):
    """dx (batch, n1, n2, n3) = the sum of dy (batch, m1, m2, m3) where it shows each element; at most c positions along an axis do."""
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        at = tl.arange(0, BLOCK)
        if FAR:
            at = at.to(tl.int64)
        at += block * BLOCK
        live = at < total
        i3 = at % n3
        i2 = at // n3 % n2
        i1 = at // (n3 * n2) % n1
        image = at // (n3 * n2 * n1) * m1
        dx = tl.zeros((BLOCK,), ACC)
        for k1 in range(0, c1):
            o1, there1 = shown(i1, k1, n1, m1, b1, REFLECT)
            for k2 in range(0, c2):
                o2, there2 = shown(i2, k2, n2, m2, b2, REFLECT)
                for k3 in range(0, c3):
                    o3, there3 = shown(i3, k3, n3, m3, b3, REFLECT)
                    dx += tl.load(dy_ptr + ((image + o1) * m2 + o2) * m3 + o3, mask=live & there1 & there2 & there3, other=0).to(ACC)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=live)


def _back(reflect: bool, axes: int) -> Any:
    def run(dy: Tensor, x: Tensor, *, pad: Sequence[int], out: Tensor) -> None:
        total = out.numel
        if total == 0:
            return
        own = pairs("pad", pad, x.ndim, axes)[-axes:]
        n, m, before = _three([(a, b, p[0]) for a, b, p in zip(x.shape[-axes:], dy.shape[-axes:], own, strict=True)])
        most = [1] * (3 - axes) + [3 if reflect else 1 + max(b, 0) + max(a, 0) for b, a in own]
        blocks = programs(total, BACK)
        with writable(out) as dx:
            launch(back_kernel, (capped(device_of(out), blocks),), contiguous(dy), dx, *_sizes(n), *_sizes(m), *map(Data, before), *map(Data, most), total,
                   Data(blocks), REFLECT=reflect, FAR=max(total, dy.numel) + BACK >= FAR, ACC=tl.float64 if out.dtype.name == "float64" else tl.float32,
                   BLOCK=BACK)

    return run


@by_signature
def _takes(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    """A value travels as float64, a gradient adds in it."""
    return lacks(facts, *(s.dtype.name for s in specs if s is not None and s.dtype.name == "float64"))


KERNELS = {
    "constant_pad_nd": constant_pad_nd, "pad": pad,
    "reflection_pad1d": _spatial("reflect"), "reflection_pad2d": _spatial("reflect"), "reflection_pad3d": _spatial("reflect"),
    "replication_pad1d": _spatial("replicate"), "replication_pad2d": _spatial("replicate"), "replication_pad3d": _spatial("replicate"),
    "reflection_pad1d_backward": _back(True, 1), "reflection_pad2d_backward": _back(True, 2), "reflection_pad3d_backward": _back(True, 3),
    "replication_pad1d_backward": _back(False, 1), "replication_pad2d_backward": _back(False, 2), "replication_pad3d_backward": _back(False, 3),
}
WHEN = dict.fromkeys(KERNELS, _takes)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps), for launch.compile_for."""
    i32, some = ("i32", False), ("i32", True)
    for mode, t, number in (("constant", "*fp32", "fp32"), ("constant", "*bf16", "fp32"), ("reflect", "*fp32", "fp32"), ("replicate", "*fp16", "fp32"),
                            ("circular", "*i8", "i32")):
        yield f"pad {mode} {t[1:]}", pad_kernel, ((t, True), (t, True), (number, False), *(i32,) * 9, some, i32), \
            {"MODE": mode, "FAR": False, "BLOCK": BLOCK}, 4
    for reflect in (True, False):
        yield f"back reflect {reflect}", back_kernel, (("*fp32", True), ("*fp32", True), *(i32,) * 12, some, i32), \
            {"REFLECT": reflect, "FAR": False, "ACC": tl.float32, "BLOCK": BACK}, 4
