"""Average and maximum pooling, adaptive pooling and their gradients on Triton: elements of the result one by one.

Forward an element walks its window; backward an element of the image walks the windows that see it and takes its share, so nothing is
added atomically and results repeat.  Tensors are packed first; spatial axes are three, missing ones 1.
Not here: what the operators mean (kernels/ops/pool.py).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.errors import IndexOutOfBounds
from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from . import scalar as m
from .conv import far, three
from .index import first_outside
from .launch import Data, by_signature, capped, lacks, launch, programs
from .rows import contiguous, device_of, writable

__all__ = ["KERNELS", "WHEN", "matrix"]

FLAT = 1024  # elements of a program: 8 a thread at 4 warps of 32


# ---- windows along one axis: result o of O sees positions start, start + D, ... of I ------------------------------------------
@triton.jit
def start_of(o, I, O, S, P, ADAPTIVE: tl.constexpr):
    if ADAPTIVE:
        at = (o.to(tl.int64) * I // O).to(o.dtype)
    else:
        at = o * S - P
    return at


@triton.jit
def length_of(o, I, O, K, ADAPTIVE: tl.constexpr):
    """Taps of the window."""
    if ADAPTIVE:
        wide = o.to(tl.int64)
        n = (((wide + 1) * I + O - 1) // O - wide * I // O).to(o.dtype)
    else:
        n = o * 0 + K
    return n


@triton.jit
def counted_of(o, I, O, K, S, P, ADAPTIVE: tl.constexpr, PAD: tl.constexpr):
    """Positions that count for a mean."""
    start = start_of(o, I, O, S, P, ADAPTIVE)
    end = start + length_of(o, I, O, K, ADAPTIVE)
    if PAD:
        n = tl.minimum(end, I + P) - start
    else:
        n = tl.minimum(end, I) - tl.maximum(start, 0)
    return n


@triton.jit
def first_window(i, I, O, K, S, P, D, ADAPTIVE: tl.constexpr):
    """The first result that may see position i."""
    if ADAPTIVE:
        o = (i.to(tl.int64) * O // I).to(i.dtype)
    else:
        o = tl.maximum(i + P - (K - 1) * D + S - 1, 0) // S
    return o


@triton.jit
def sees(o, i, I, O, K, S, P, D, ADAPTIVE: tl.constexpr):
    """Whether result o sees position i."""
    off = i - start_of(o, I, O, S, P, ADAPTIVE)
    if ADAPTIVE:
        yes = (o < O) & (off >= 0) & (off < length_of(o, I, O, K, ADAPTIVE))
    else:
        yes = (o < O) & (off >= 0) & (off % D == 0) & (off // D < K)
    return yes


@triton.jit
def pool_kernel(x_ptr, y_ptr, index_ptr, n_elements, ID, IH, IW, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW, DD, DH, DW, divisor, blocks,
                MEAN: tl.constexpr, INDEX: tl.constexpr, ADAPTIVE: tl.constexpr, PAD: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """y (planes, OD, OH, OW) of x (planes, ID, IH, IW); K: taps of the largest window.  divisor 0: the count."""
    acc: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    OFFSET: tl.constexpr = tl.int64 if FAR else tl.int32
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        e = block.to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
        live = e < n_elements
        od = e // (OH * OW) % OD
        oh = e // OW % OH
        ow = e % OW
        plane = x_ptr + e // (OD * OH * OW) * (ID * IH * IW)
        d0 = start_of(od, ID, OD, SD, PD, ADAPTIVE)
        h0 = start_of(oh, IH, OH, SH, PH, ADAPTIVE)
        w0 = start_of(ow, IW, OW, SW, PW, ADAPTIVE)
        nd = length_of(od, ID, OD, KD, ADAPTIVE)
        nh = length_of(oh, IH, OH, KH, ADAPTIVE)
        nw = length_of(ow, IW, OW, KW, ADAPTIVE)
        if MEAN:
            total = tl.zeros((BLOCK,), acc)
        else:
            total = tl.full((BLOCK,), -float("inf"), acc)
        best = e * 0 - 1
        for tap in range(KD * KH * KW):
            td = tap // (KH * KW)
            th = tap // KW % KH
            tw = tap % KW
            d = d0 + td * DD
            h = h0 + th * DH
            w = w0 + tw * DW
            inside = live & (td < nd) & (th < nh) & (tw < nw) & (d >= 0) & (d < ID) & (h >= 0) & (h < IH) & (w >= 0) & (w < IW)
            at = (d * IH + h) * IW + w
            if MEAN:
                total += tl.load(plane + at, mask=inside, other=0.0).to(acc)
            else:
                x = tl.load(plane + at, mask=inside, other=-float("inf")).to(acc)
                wins = inside & ((x > total) | (x != x) | (best < 0))
                total = tl.where(wins, x, total)
                best = tl.where(wins, at, best)
        if MEAN:
            count = counted_of(od, ID, OD, KD, SD, PD, ADAPTIVE, PAD) * counted_of(oh, IH, OH, KH, SH, PH, ADAPTIVE, PAD) \
                * counted_of(ow, IW, OW, KW, SW, PW, ADAPTIVE, PAD)
            count = tl.where(live, tl.where(divisor != 0, divisor, count), 1)
            total = m.div(total, count.to(acc))
        tl.store(y_ptr + e, total.to(y_ptr.dtype.element_ty), mask=live)
        if INDEX:
            tl.store(index_ptr + e, best.to(tl.int64), mask=live)


@triton.jit
def back_kernel(dy_ptr, index_ptr, dx_ptr, n_elements, ID, IH, IW, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW, DD, DH, DW, divisor, CD, CH,
                CW, blocks, MEAN: tl.constexpr, ADAPTIVE: tl.constexpr, PAD: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """dx (planes, ID, IH, IW) of dy (planes, OD, OH, OW): its share of each window that sees it; C: most of them along an axis."""
    acc: tl.constexpr = tl.float64 if dx_ptr.dtype.element_ty == tl.float64 else tl.float32
    OFFSET: tl.constexpr = tl.int64 if FAR else tl.int32
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        e = block.to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
        live = e < n_elements
        here = e % (ID * IH * IW)
        d = e // (IH * IW) % ID
        h = e // IW % IH
        w = e % IW
        plane = e // (ID * IH * IW) * (OD * OH * OW)
        d0 = first_window(d, ID, OD, KD, SD, PD, DD, ADAPTIVE)
        h0 = first_window(h, IH, OH, KH, SH, PH, DH, ADAPTIVE)
        w0 = first_window(w, IW, OW, KW, SW, PW, DW, ADAPTIVE)
        total = tl.zeros((BLOCK,), acc)
        for near in range(CD * CH * CW):
            od = d0 + near // (CH * CW)
            oh = h0 + near // CW % CH
            ow = w0 + near % CW
            mine = live & sees(od, d, ID, OD, KD, SD, PD, DD, ADAPTIVE) & sees(oh, h, IH, OH, KH, SH, PH, DH, ADAPTIVE)
            mine = mine & sees(ow, w, IW, OW, KW, SW, PW, DW, ADAPTIVE)
            at = plane + (od * OH + oh) * OW + ow
            if MEAN:
                count = counted_of(od, ID, OD, KD, SD, PD, ADAPTIVE, PAD) * counted_of(oh, IH, OH, KH, SH, PH, ADAPTIVE, PAD) \
                    * counted_of(ow, IW, OW, KW, SW, PW, ADAPTIVE, PAD)
                count = tl.where(mine, tl.where(divisor != 0, divisor, count), 1)
                total += m.div(tl.load(dy_ptr + at, mask=mine, other=0.0).to(acc), count.to(acc))
            else:
                mine = mine & (tl.load(index_ptr + at, mask=mine, other=-1) == here)
                total += tl.load(dy_ptr + at, mask=mine, other=0.0).to(acc)
        tl.store(dx_ptr + e, total.to(dx_ptr.dtype.element_ty), mask=live)


# ---- planning ------------------------------------------------------------------------------------------------------------
_NONE = {"stride": (1,), "padding": (0,), "dilation": (1,)}


def _geometry(axes: int, x: Sequence[int], y: Sequence[int], kernel: Sequence[int], a: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    """(sizes of x, of y, kernel, stride, padding, dilation) along three axes."""
    stride = a["stride"] if tuple(a["stride"]) else kernel
    return (three(x[-axes:], axes, 1), three(y[-axes:], axes, 1), three(kernel, axes, 1), three(stride, axes, 1),
            three(a["padding"], axes, 0), three(a.get("dilation", (1,)), axes, 1))


def _adaptive(axes: int, x: Sequence[int], y: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The same of adaptive windows: as many taps as the longest has."""
    longest = [max(-(-(i + 1) * n // o) - i * n // o for i in range(o)) if n % o else n // o for n, o in zip(x[-axes:], y[-axes:])]
    return _geometry(axes, x, y, longest, _NONE)


def _forward(x: Tensor, y: Tensor, index: Tensor | None, rows: tuple[tuple[int, ...], ...], mean: bool, adaptive: bool, pad: bool = False,
             divisor: int = 0) -> None:
    if y.numel == 0:
        return
    device, blocks = device_of(y), programs(y.numel, FLAT)
    x = contiguous(x)
    with writable(y) as to, writable(y if index is None else index) as at:
        launch(pool_kernel, (capped(device, blocks),), x, to, at, y.numel, *(Data(v) for row in rows for v in row), Data(divisor), Data(blocks),
               MEAN=mean, INDEX=index is not None, ADAPTIVE=adaptive, PAD=pad, FAR=far(x, y), BLOCK=FLAT)


def _backward(dy: Tensor, dx: Tensor, index: Tensor | None, rows: tuple[tuple[int, ...], ...], adaptive: bool, pad: bool = False,
              divisor: int = 0) -> None:
    if dx.numel == 0:
        return
    size, out, kernel, stride, _, dilation = rows
    near = [o // i + 2 if adaptive else (k - 1) * d // s + 1 for i, o, k, s, d in zip(size, out, kernel, stride, dilation)]
    near = [min(n, o) for n, o in zip(near, out)]
    device, blocks = device_of(dx), programs(dx.numel, FLAT)
    dy = contiguous(dy)
    with writable(dx) as to:
        launch(back_kernel, (capped(device, blocks),), dy, dy if index is None else index, to, dx.numel, *(Data(v) for row in rows for v in row),
               Data(divisor), *map(Data, near), Data(blocks), MEAN=index is None, ADAPTIVE=adaptive, PAD=pad, FAR=far(dy, dx), BLOCK=FLAT)


def _inside(name: str, indices: Tensor, x: Tensor, axes: int) -> Tensor:
    """The indices packed, after each was found inside an image."""
    index, size = contiguous(indices), 1
    for n in x.shape[-axes:]:
        size *= n
    bad = first_outside(index, size)
    if bad is not None:
        raise IndexOutOfBounds(f"{name}: index {bad[1]} at position {bad[0]} is outside 0 <= index < {size}")
    return index


# ---- operators -----------------------------------------------------------------------------------------------------------
def _avg(axes: int) -> Callable[..., None]:
    def run(x: Tensor, *, out: Tensor, **a: Any) -> None:
        _forward(x, out, None, _geometry(axes, x.shape, out.shape, a["kernel_size"], a), True, False, a["count_include_pad"],
                 a.get("divisor_override") or 0)

    return run


def _avg_back(axes: int) -> Callable[..., None]:
    def run(dy: Tensor, x: Tensor, *, out: Tensor, **a: Any) -> None:
        _backward(dy, out, None, _geometry(axes, x.shape, dy.shape, a["kernel_size"], a), False, a["count_include_pad"],
                  a["divisor_override"] or 0)

    return run


def _max(axes: int) -> Callable[..., None]:
    def run(x: Tensor, *, out: Any, **a: Any) -> None:
        y, index = out if isinstance(out, tuple) else (out, None)
        _forward(x, y, index, _geometry(axes, x.shape, y.shape, a["kernel_size"], a), False, False)

    return run


def _max_back(axes: int) -> Callable[..., None]:
    def run(dy: Tensor, x: Tensor, indices: Tensor, *, out: Tensor, **a: Any) -> None:
        index = _inside(f"max_pool{axes}d_with_indices_backward", indices, x, axes)
        _backward(dy, out, index, _geometry(axes, x.shape, dy.shape, a["kernel_size"], a), False)

    return run


def _adaptive_avg(axes: int) -> Callable[..., None]:
    def run(x: Tensor, *, output_size: Any, out: Tensor) -> None:
        _forward(x, out, None, _adaptive(axes, x.shape, out.shape), True, True)

    return run


def _adaptive_max(axes: int) -> Callable[..., None]:
    def run(x: Tensor, *, output_size: Any, out: tuple[Tensor, Tensor]) -> None:
        _forward(x, out[0], out[1], _adaptive(axes, x.shape, out[0].shape), False, True)

    return run


def _adaptive_avg_back(axes: int) -> Callable[..., None]:
    def run(dy: Tensor, x: Tensor, *, out: Tensor) -> None:
        _backward(dy, out, None, _adaptive(axes, x.shape, dy.shape), True)

    return run


def _adaptive_max_back(axes: int) -> Callable[..., None]:
    def run(dy: Tensor, x: Tensor, indices: Tensor, *, out: Tensor) -> None:
        index = _inside(f"adaptive_max_pool{axes}d_backward", indices, x, axes)
        _backward(dy, out, index, _adaptive(axes, x.shape, dy.shape), True)

    return run


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, accumulator(specs[0].dtype).name)


KERNELS = {
    "avg_pool1d": _avg(1), "avg_pool2d": _avg(2), "avg_pool3d": _avg(3),
    "avg_pool2d_backward": _avg_back(2), "avg_pool3d_backward": _avg_back(3),
    "max_pool1d": _max(1), "max_pool2d": _max(2), "max_pool3d": _max(3),
    "max_pool2d_with_indices": _max(2), "max_pool3d_with_indices": _max(3),
    "max_pool2d_with_indices_backward": _max_back(2), "max_pool3d_with_indices_backward": _max_back(3),
    "adaptive_avg_pool1d": _adaptive_avg(1), "adaptive_avg_pool2d": _adaptive_avg(2), "adaptive_avg_pool3d": _adaptive_avg(3),
    "adaptive_max_pool1d": _adaptive_max(1), "adaptive_max_pool2d": _adaptive_max(2), "adaptive_max_pool3d": _adaptive_max(3),
    "adaptive_avg_pool2d_backward": _adaptive_avg_back(2), "adaptive_avg_pool3d_backward": _adaptive_avg_back(3),
    "adaptive_max_pool2d_backward": _adaptive_max_back(2), "adaptive_max_pool3d_backward": _adaptive_max_back(3),
}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    number, size = ("i32", False), ("i32", True)
    for t in ("*fp32", "*bf16"):
        for name, mean, index, adaptive in (("avg", True, False, False), ("max", False, True, False), ("adaptive_avg", True, False, True)):
            flat = {"ADAPTIVE": adaptive, "PAD": False, "FAR": False, "BLOCK": FLAT}
            at = ("*i64" if index else t, True)
            yield f"{name} {t}", pool_kernel, ((t, True), (t, True), at, size, *(number,) * 20), {"MEAN": mean, "INDEX": index, **flat}, 4
            yield f"{name}_backward {t}", back_kernel, ((t, True), at, (t, True), size, *(number,) * 23), {"MEAN": mean, **flat}, 4
