"""convolution, its gradients, causal_conv1d, im2col and col2im on Triton.

A convolution is a product of pixels and channels, tap by tap, that gathers the input where it lies (implicit GEMM through tl.dot); one
input channel a group is summed directly.  The adjoint is the same with the places of a tap turned around.  Gradients of weights are sums
over pixels in fixed pieces, added in order, so results repeat.  Tensors are packed first; spatial axes are three, missing ones 1.
Not here: what the operators mean (kernels/ops/conv.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from . import scalar as m
from .launch import Data, by_signature, capped, lacks, launch, next_power_of_2, programs
from .reduce import fold
from .rows import contiguous, device_of, writable
from .tiles import FAR, dot_takes_float64

__all__ = ["KERNELS", "WHEN", "matrix"]

# bytes of an element -> pixels, channels out, channels in of a tile, warps
# Eight warps: with four, the pointers of a tile spill on sm_80 and sm_90 (128 x 64 x 32 in 16 bit 360 and 277 stores, 64 x 64 x 16 in
# float32 114 and 57 stores); these spill nowhere.
TILES = {2: (64, 64, 32, 8), 4: (64, 32, 16, 8), 8: (32, 32, 16, 4)}
FLAT = 1024  # elements of a program without tiles: 8 a thread at 4 warps of 32
PIECE = 4096  # pixels that one program of the weights' gradient adds up at least
PIECES = 64  # and how many such pieces there are at most


@triton.jit
def seen_at(o, k, step, pad, dilation, size, BACK: tl.constexpr):
    """Position along an axis that tap k of result o reads, -1 for none.  BACK: of the adjoint, whose windows lie in the results."""
    if BACK:
        t = o + pad - k * dilation
        at = t // step
        at = tl.where((t >= 0) & (at * step == t) & (at < size), at, -1)
    else:
        at = o * step - pad + k * dilation
        at = tl.where((at >= 0) & (at < size), at, -1)
    return at


@triton.jit
def conv_kernel(x_ptr, w_ptr, b_ptr, y_ptr, pixels, CG, OG, groups, ID, IH, IW, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW, DD, DH, DW,
                stride_wg, stride_wo, stride_wc, blocks, blocks_n, BIAS: tl.constexpr, BACK: tl.constexpr, FAR: tl.constexpr,
                DOT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """y (N, groups * OG, OD, OH, OW) of x (N, groups * CG, ID, IH, IW); a program owns BLOCK_M pixels of BLOCK_N channels of a group."""
    acc: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    INDEX: tl.constexpr = tl.int64 if FAR else tl.int32
    area = OD * OH * OW
    volume = ID * IH * IW
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        rm = (block // (blocks_n * groups)).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,) pixels of all images
        group = block // blocks_n % groups
        rn = block % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        rk = tl.arange(0, BLOCK_K)
        live_m = rm < pixels
        live_n = rn < OG
        image = rm // area
        at = rm % area
        od = at // (OH * OW)
        oh = at // OW % OH
        ow = at % OW
        x_image = x_ptr + (image * groups + group) * CG * volume
        w_group = w_ptr + group.to(INDEX) * stride_wg + rn * stride_wo
        total = tl.zeros((BLOCK_M, BLOCK_N), acc)
        for tap in range(KD * KH * KW):
            d = seen_at(od, tap // (KH * KW), SD, PD, DD, ID, BACK)
            h = seen_at(oh, tap // KW % KH, SH, PH, DH, IH, BACK)
            w = seen_at(ow, tap % KW, SW, PW, DW, IW, BACK)
            inside = live_m & (d >= 0) & (h >= 0) & (w >= 0)
            x_at = x_image + (d * IH + h) * IW + w
            if DOT:
                for start in range(0, CG, BLOCK_K):
                    live_k = rk < CG - start
                    c = (start + rk).to(INDEX)
                    xs = tl.load(x_at[:, None] + (c * volume)[None, :], mask=inside[:, None] & live_k[None, :], other=0.0)
                    ws = tl.load(w_group[None, :] + (c * stride_wc)[:, None] + tap, mask=live_k[:, None] & live_n[None, :], other=0.0)
                    total = tl.dot(xs, ws, total, input_precision=PRECISION, out_dtype=acc)
            else:
                for c in range(CG):
                    xs = tl.load(x_at + c * volume, mask=inside, other=0.0).to(acc)
                    ws = tl.load(w_group + c * stride_wc + tap, mask=live_n, other=0.0).to(acc)
                    total += xs[:, None] * ws[None, :]
        out = group * OG + rn
        if BIAS:
            total += tl.load(b_ptr + out, mask=live_n, other=0.0).to(acc)[None, :]
        y_at = y_ptr + (image * groups * OG * area + at)[:, None] + (out.to(INDEX) * area)[None, :]
        tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=live_m[:, None] & live_n[None, :])


@triton.jit
def direct_kernel(x_ptr, w_ptr, b_ptr, y_ptr, n_elements, OG, groups, ID, IH, IW, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW, DD, DH, DW,
                  stride_wg, stride_wo, blocks, BIAS: tl.constexpr, BACK: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """The same where a group has one input channel: elements of y one by one."""
    acc: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    INDEX: tl.constexpr = tl.int64 if FAR else tl.int32
    area = OD * OH * OW
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        e = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        live = e < n_elements
        at = e % area
        plane = e // area
        out = plane % (groups * OG)
        group = out // OG
        od = at // (OH * OW)
        oh = at // OW % OH
        ow = at % OW
        x_plane = x_ptr + (plane // (groups * OG) * groups + group) * ID * IH * IW
        w_at = w_ptr + group * stride_wg + out % OG * stride_wo
        total = tl.zeros((BLOCK,), acc)
        for tap in range(KD * KH * KW):
            d = seen_at(od, tap // (KH * KW), SD, PD, DD, ID, BACK)
            h = seen_at(oh, tap // KW % KH, SH, PH, DH, IH, BACK)
            w = seen_at(ow, tap % KW, SW, PW, DW, IW, BACK)
            x = tl.load(x_plane + (d * IH + h) * IW + w, mask=live & (d >= 0) & (h >= 0) & (w >= 0), other=0.0).to(acc)
            total += x * tl.load(w_at + tap, mask=live, other=0.0).to(acc)
        if BIAS:
            total += tl.load(b_ptr + out, mask=live, other=0.0).to(acc)
        tl.store(y_ptr + e, total.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def weight_kernel(x_ptr, y_ptr, part_ptr, pixels, piece, pieces, CG, OG, groups, ID, IH, IW, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW,
                  DD, DH, DW, blocks, blocks_m, blocks_n, FAR: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """part (pieces, groups * OG, CG, taps): sums over a piece of the pixels of y (N, groups * OG, OD, OH, OW) times what the tap reads."""
    acc: tl.constexpr = tl.float64 if part_ptr.dtype.element_ty == tl.float64 else tl.float32
    INDEX: tl.constexpr = tl.int64 if FAR else tl.int32
    area = OD * OH * OW
    volume = ID * IH * IW
    taps = KD * KH * KW
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        rn = block % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,) channels of x
        rm = block // blocks_n % blocks_m * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,) channels of y
        rest = block // (blocks_n * blocks_m)
        tap = rest % taps
        group = rest // taps % groups
        number = rest // (taps * groups)
        live_m = rm < OG
        live_n = rn < CG
        y_rows = y_ptr + (group * OG + rm).to(INDEX) * area
        x_rows = x_ptr + (group * CG + rn).to(INDEX) * volume
        total = tl.zeros((BLOCK_M, BLOCK_N), acc)
        first = number.to(INDEX) * piece
        for start in range(0, piece, BLOCK_K):
            p = first + start + tl.arange(0, BLOCK_K)
            live = (p < pixels) & (p < first + piece)
            image = p // area
            at = p % area
            d = seen_at(at // (OH * OW), tap // (KH * KW), SD, PD, DD, ID, False)
            h = seen_at(at // OW % OH, tap // KW % KH, SH, PH, DH, IH, False)
            w = seen_at(at % OW, tap % KW, SW, PW, DW, IW, False)
            inside = live & (d >= 0) & (h >= 0) & (w >= 0)
            ys = tl.load(y_rows[:, None] + (image * groups * OG * area + at)[None, :], mask=live_m[:, None] & live[None, :], other=0.0)
            xs = tl.load(x_rows[None, :] + (image * groups * CG * volume + (d * IH + h) * IW + w)[:, None],
                         mask=inside[:, None] & live_n[None, :], other=0.0)
            if DOT:
                total = tl.dot(ys, xs, total, input_precision=PRECISION, out_dtype=acc)
            else:
                total += tl.sum(ys.to(acc)[:, :, None] * xs.to(acc)[None, :, :], 1)
        to = (number.to(INDEX) * groups * OG + group * OG + rm)[:, None] * CG + rn[None, :]
        tl.store(part_ptr + to * taps + tap, total, mask=live_m[:, None] & live_n[None, :])


@triton.jit
def causal_kernel(x_ptr, w_ptr, b_ptr, y_ptr, n_elements, channels, length, width, blocks, BIAS: tl.constexpr, SILU: tl.constexpr,
                  FAR: tl.constexpr, BLOCK: tl.constexpr):
    """y[b, c, t] = bias[c] + sum over j of w[c, j] x[b, c, t - width + 1 + j], of contiguous tensors."""
    acc: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    INDEX: tl.constexpr = tl.int64 if FAR else tl.int32
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        e = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        live = e < n_elements
        t = e % length
        c = e // length % channels
        total = tl.zeros((BLOCK,), acc)
        for j in range(width):
            back = width - 1 - j
            x = tl.load(x_ptr + e - back, mask=live & (t >= back), other=0.0).to(acc)
            total += x * tl.load(w_ptr + c * width + j, mask=live, other=0.0).to(acc)
        if BIAS:
            total += tl.load(b_ptr + c, mask=live, other=0.0).to(acc)
        if SILU:
            total = m.div(total, 1.0 + m.exp(-total))
        tl.store(y_ptr + e, total.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def unfold_kernel(x_ptr, y_ptr, n_elements, IH, IW, OH, OW, KH, KW, SH, SW, PH, PW, DH, DW, blocks, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """y (planes, taps, OH * OW) of x (planes, IH, IW)."""
    INDEX: tl.constexpr = tl.int64 if FAR else tl.int32
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        e = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        live = e < n_elements
        tap = e // (OH * OW) % (KH * KW)
        h = seen_at(e // OW % OH, tap // KW, SH, PH, DH, IH, False)
        w = seen_at(e % OW, tap % KW, SW, PW, DW, IW, False)
        x_at = (e // (OH * OW * KH * KW) * IH + h) * IW + w
        x = tl.load(x_ptr + x_at, mask=live & (h >= 0) & (w >= 0), other=0.0)
        tl.store(y_ptr + e, x, mask=live)


@triton.jit
def fold_kernel(x_ptr, y_ptr, n_elements, IH, IW, OH, OW, KH, KW, SH, SW, PH, PW, DH, DW, blocks, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """y (planes, IH, IW): sums of what x (planes, taps, OH * OW) says of a place."""
    acc: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    INDEX: tl.constexpr = tl.int64 if FAR else tl.int32
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        e = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        live = e < n_elements
        ih = e // IW % IH
        iw = e % IW
        total = tl.zeros((BLOCK,), acc)
        for tap in range(KH * KW):
            h = seen_at(ih, tap // KW, SH, PH, DH, OH, True)
            w = seen_at(iw, tap % KW, SW, PW, DW, OW, True)
            x_at = ((e // (IH * IW) * (KH * KW) + tap) * OH + h) * OW + w
            total += tl.load(x_ptr + x_at, mask=live & (h >= 0) & (w >= 0), other=0.0).to(acc)
        tl.store(y_ptr + e, total.to(y_ptr.dtype.element_ty), mask=live)


# ---- planning ------------------------------------------------------------------------------------------------------------
def three(value: Sequence[int], axes: int, missing: int) -> tuple[int, ...]:
    """An attribute or spatial shape as (d, h, w)."""
    given = tuple(value)
    given = given * axes if len(given) == 1 else given
    return (missing,) * (3 - axes) + given


def far(*tensors: Tensor) -> bool:
    """Whether offsets into one of the tensors, or into what a last block reaches, need 64 bits."""
    return max(t.numel for t in tensors) + 2**20 >= FAR


def _tile(item: int, rows: int, columns: int, depth: int) -> tuple[int, int, int, int]:
    block_m, block_n, block_k, warps = TILES[item]
    return (min(block_m, max(16, next_power_of_2(rows))), min(block_n, max(16, next_power_of_2(columns))),
            min(block_k, max(16, next_power_of_2(depth))), warps)


def _precision(item: int, facts: Any) -> str | None:
    return None if item == 2 else facts.reduced_matmul if item == 4 and facts.reduced_matmul == "tf32" else "ieee"


def _geometry(x: Tensor, y: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> tuple[Data, ...]:
    """The kernels' ID .. DW: sizes of x and y, kernel, stride, padding, dilation."""
    axes = x.ndim - 2
    rows = ((x.shape[2:], 1), (y.shape[2:], 1), (kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
    return tuple(Data(v) for value, missing in rows for v in three(value, axes, missing))


def _product(x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, groups: int, back: bool, stride: Any, padding: Any, dilation: Any) -> None:
    """y of contiguous x: w (O, C / groups, ...), or with back (C, O / groups, ...)."""
    if y.numel == 0:
        return
    device, item = device_of(y), y.itemsize
    cg, og, taps = x.shape[1] // groups, y.shape[1] // groups, _count(w.shape[2:])
    wo, wc = (taps, og * taps) if back else (cg * taps, taps)
    geometry = _geometry(x, y, w.shape[2:], stride, padding, dilation)
    b = y if bias is None else bias
    constants = {"BIAS": bias is not None, "BACK": back, "FAR": far(x, w, y)}
    if cg == 1:
        blocks = programs(y.numel, FLAT)
        launch(direct_kernel, (capped(device, blocks),), x, w, b, y, y.numel, Data(og), Data(groups), *geometry, Data(cg * og * taps), Data(wo),
               Data(blocks), **constants, BLOCK=FLAT)
        return
    pixels = y.shape[0] * _count(y.shape[2:])
    block_m, block_n, block_k, warps = _tile(item, pixels, og, cg)
    blocks_n = programs(og, block_n)
    blocks = programs(pixels, block_m) * groups * blocks_n
    launch(conv_kernel, (capped(device, blocks),), x, w, b, y, Data(pixels), Data(cg), Data(og), Data(groups), *geometry, Data(cg * og * taps),
           Data(wo), Data(wc), Data(blocks), Data(blocks_n), num_warps=warps, **constants, DOT=item < 8 or dot_takes_float64(),
           PRECISION=_precision(item, device.capabilities), BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k)


def _weights(x: Tensor, y: Tensor, dw: Tensor, groups: int, stride: Any, padding: Any, dilation: Any) -> None:
    """dw (Y, X / groups, ...): what y (N, Y, ...) weighs of the taps over x (N, X, ...), both contiguous."""
    if dw.numel == 0:
        return
    device, item = device_of(dw), dw.itemsize
    kernel = dw.shape[2:]
    cg, og, taps, pixels = x.shape[1] // groups, y.shape[1] // groups, _count(kernel), y.shape[0] * _count(y.shape[2:])
    pieces = min(max(programs(pixels, PIECE), 1), PIECES)
    piece = programs(pixels, pieces)
    block_m, block_n, block_k, warps = _tile(item, og, cg, piece)
    dot = item < 8 or dot_takes_float64()
    if not dot:
        block_m = block_n = block_k = 16  # the cube of products stays in registers
    blocks_m, blocks_n = programs(og, block_m), programs(cg, block_n)
    part = device.empty((pieces, dw.shape[0], cg, taps), accumulator(dw.dtype))
    blocks = pieces * groups * taps * blocks_m * blocks_n
    launch(weight_kernel, (capped(device, blocks),), x, y, part, Data(pixels), Data(piece), Data(pieces), Data(cg), Data(og), Data(groups),
           *_geometry(x, y, kernel, stride, padding, dilation), Data(blocks), Data(blocks_m), Data(blocks_n), num_warps=warps, FAR=far(x, y, part),
           DOT=dot, PRECISION=_precision(item, device.capabilities), BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k)
    fold("sum", part.reshape((pieces, *dw.shape)), (0,), dw)


def _count(shape: Sequence[int]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


# ---- operators -----------------------------------------------------------------------------------------------------------
def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Any, padding: Any, dilation: Any, transposed: bool,
                output_padding: Any, groups: int, out: Tensor) -> None:
    with writable(out) as y:
        _product(contiguous(input), contiguous(weight), None if bias is None else contiguous(bias), y, groups, bool(transposed), stride, padding,
                 dilation)


def convolution_backward(dy: Tensor, input: Tensor, weight: Tensor, *, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
                         transposed: bool, output_padding: Any, groups: int, output_mask: Any, out: tuple[Tensor, ...]) -> None:
    dinput, dweight, dbias = out
    dy, x = contiguous(dy), contiguous(input)
    if output_mask[0]:
        with writable(dinput) as dx:
            _product(dy, contiguous(weight), None, dx, groups, not transposed, stride, padding, dilation)
    if output_mask[1]:
        _weights(dy if transposed else x, x if transposed else dy, dweight, groups, stride, padding, dilation)
    if output_mask[2]:
        fold("sum", dy, (0, *range(2, dy.ndim)), dbias)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str, out: Tensor) -> None:
    if out.numel == 0:
        return
    device, blocks = device_of(out), programs(out.numel, FLAT)
    with writable(out) as y:
        launch(causal_kernel, (capped(device, blocks),), contiguous(x), contiguous(weight), y if bias is None else contiguous(bias), y, y.numel,
               Data(x.shape[1]), Data(x.shape[2]), Data(weight.shape[1]), Data(blocks), BIAS=bias is not None, SILU=activation == "silu",
               FAR=far(y), BLOCK=FLAT)


def _columns(kernel: Any, x: Tensor, y: Tensor, image: Tensor, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> None:
    """``image`` is the one of x and y that holds images."""
    size, k, d, p, s = image.shape[-2:], *(three(v, 2, 1)[1:] for v in (kernel_size, dilation, padding, stride))
    blocks_of = tuple((n + 2 * q - e * (a - 1) - 1) // c + 1 for n, a, e, q, c in zip(size, k, d, p, s))
    if y.numel == 0:
        return
    device, blocks = device_of(y), programs(y.numel, FLAT)
    launch(kernel, (capped(device, blocks),), x, y, y.numel, *map(Data, (*size, *blocks_of, *k, *s, *p, *d)), Data(blocks), FAR=far(x, y),
           BLOCK=FLAT)


def im2col(x: Tensor, *, kernel_size: Any, dilation: Any, padding: Any, stride: Any, out: Tensor) -> None:
    with writable(out) as y:
        _columns(unfold_kernel, contiguous(x), y, x, kernel_size, dilation, padding, stride)


def col2im(x: Tensor, *, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any, out: Tensor) -> None:
    with writable(out) as y:
        _columns(fold_kernel, contiguous(x), y, y, kernel_size, dilation, padding, stride)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, accumulator(specs[0].dtype).name)


KERNELS = {"convolution": convolution, "convolution_backward": convolution_backward, "causal_conv1d": causal_conv1d, "im2col": im2col,
           "col2im": col2im}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    number = ("i32", False)
    for t, item in (("*fp16", 2), ("*bf16", 2), ("*fp32", 4)):
        precision = None if item == 2 else "ieee"
        block_m, block_n, block_k, warps = TILES[item]
        tile = {"FAR": False, "DOT": True, "PRECISION": precision, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
        for back in (False, True):
            yield f"conv {t} {'back' if back else ''}", conv_kernel, ((t, True),) * 4 + (number,) * 27, {"BIAS": True, "BACK": back, **tile}, warps
        part = "*fp32"
        yield f"weights {t}", weight_kernel, ((t, True), (t, True), (part, True), *(number,) * 27), tile, warps
        flat = {"FAR": False, "BLOCK": FLAT}
        size = ("i32", True)
        yield f"depthwise {t}", direct_kernel, ((t, True),) * 4 + (size,) + (number,) * 23, {"BIAS": False, "BACK": False, **flat}, 4
        yield f"causal {t}", causal_kernel, ((t, True),) * 4 + (size,) + (number,) * 4, {"BIAS": True, "SILU": True, **flat}, 4
        yield f"im2col {t}", unfold_kernel, ((t, True),) * 2 + (size,) + (number,) * 13, flat, 4
        yield f"col2im {t}", fold_kernel, ((t, True),) * 2 + (size,) + (number,) * 13, flat, 4
