"""Losses element by element and their gradients: one kernel, the formula chosen at compile time.

A loss that is reduced is summed while it is computed, a piece a program; ``fold`` adds the pieces up in order.  float32 arithmetic,
float64 for float64.  Not here: what the losses are (kernels/ops/element_loss.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from ..ops.infer import accumulator, broadcast
from . import scalar as m
from .launch import F64, by_signature, capped, lacks, launch, next_power_of_2, programs
from .reduce import fold
from .rows import contiguous, device_of, writable

__all__ = ["KERNELS", "WHEN", "matrix"]

BLOCK = 1024  # elements of a program: 8 a thread at 4 warps of 32
SPREAD = 1024  # pieces of a sum at most; independent of the device
FAR = 2**30  # offsets from here on need 64 bits


# ---- kernels -----------------------------------------------------------------------------------------------------------
@triton.jit
def _read(ptr, i, live, inner, size, acc: tl.constexpr, WAY: tl.constexpr):
    """Elements i of an operand: as it lies, one number, or ``size`` numbers of which each repeats ``inner`` times."""
    if WAY == "one":
        v = tl.load(ptr).to(acc) + tl.zeros(i.shape, acc)
    elif WAY == "full":
        v = tl.load(ptr + i, mask=live, other=0.0).to(acc)
    else:
        v = tl.load(ptr + (i // inner) % size, mask=live, other=0.0).to(acc)
    return v


@triton.jit
def _logit(x):
    """sigmoid(x), sigmoid(-x), log(1 + exp(-|x|))."""
    e = m.exp(-tl.abs(x))
    whole = m.div(m.like(1.0, x), 1.0 + e)
    small = e * whole
    return tl.where(x < 0.0, small, whole), tl.where(x < 0.0, whole, small), m.log1p(e)


@triton.jit
def _logit_loss(x, t, w, l):
    rest = 1.0 - t
    return tl.where(x >= 0.0, rest, -w * t) * x + (w * t + rest) * l


@triton.jit
def _power(base, gamma, GAMMA: tl.constexpr):
    """base^gamma; GAMMA: 0, 1, 2 where it is one of them, else -1."""
    if GAMMA == 0:
        y = m.like(1.0, base)
    elif GAMMA == 1:
        y = base
    elif GAMMA == 2:
        y = base * base
    else:
        y = m.pow(base, tl.zeros(base.shape, base.dtype) + gamma)
    return y


@triton.jit
def _value(x, t, w, a, b, KIND: tl.constexpr, GAMMA: tl.constexpr):
    d = x - t
    size = tl.abs(d)
    if KIND == "l1_loss":
        y = size
    elif KIND == "mse_loss":
        y = d * d
    elif KIND == "smooth_l1_loss":
        y = tl.where(size < a, d * d * m.div(m.like(0.5, x), m.like(0.0, x) + a), size - 0.5 * a)
    elif KIND == "huber_loss":
        y = tl.where(size <= a, 0.5 * d * d, a * (size - 0.5 * a))
    elif KIND == "binary_cross_entropy":
        y = (t - 1.0) * m.maximum(m.log1p(-x), m.like(-100.0, x)) - t * m.maximum(m.log(x), m.like(-100.0, x))
    elif KIND == "binary_cross_entropy_with_logits":
        p, q, l = _logit(x)
        y = _logit_loss(x, t, w, l)
    elif KIND == "kl_div":
        y = tl.where(t == 0.0, 0.0, t * m.log(t)) - t * x
    elif KIND == "kl_div_log":
        y = m.exp(t) * (t - x)
    else:
        p, q, l = _logit(x)
        y = _logit_loss(x, t, m.like(1.0, x), l) * _power(p * (1.0 - t) + q * t, b, GAMMA)
        if KIND == "sigmoid_focal_loss":
            y *= a * t + (1.0 - a) * (1.0 - t)
    return y


@triton.jit
def _slope(x, t, w, a, b, KIND: tl.constexpr, GAMMA: tl.constexpr):
    d = x - t
    if KIND == "mse_loss":
        y = 2.0 * d
    elif KIND == "smooth_l1_loss":
        y = tl.where(d <= -a, -1.0, tl.where(d >= a, 1.0, m.div(d, m.like(0.0, x) + a)))
    elif KIND == "huber_loss":
        y = tl.where(d <= -a, -a, tl.where(d >= a, a, d))
    elif KIND == "binary_cross_entropy":
        y = m.div(d, m.maximum((1.0 - x) * x, m.like(1e-12, x)))
    elif KIND == "binary_cross_entropy_with_logits":
        p, q, l = _logit(x)
        y = (1.0 - t) * p - t * w * q
    else:
        p, q, l = _logit(x)
        miss = p * (1.0 - t) + q * t
        y = _power(miss, b, GAMMA) * ((1.0 - t) * p - t * q)
        if GAMMA != 0:
            lower: tl.constexpr = GAMMA - 1 if GAMMA > 0 else -1
            loss = _logit_loss(x, t, m.like(1.0, x), l)
            y += b * _power(miss, b - 1.0, lower) * (p * q * (1.0 - 2.0 * t)) * loss
        if KIND == "sigmoid_focal_loss":
            y *= a * t + (1.0 - a) * (1.0 - t)
    return y


@triton.jit
def loss_kernel(dy_ptr, x_ptr, t_ptr, w_ptr, p_ptr, y_ptr, n, piece, pieces, x_inner, x_size, t_inner, t_size, w_inner, w_size, p_inner, p_size,
                a, b, scale, KIND: tl.constexpr, SLOPE: tl.constexpr, REDUCE: tl.constexpr, GAMMA: tl.constexpr, WEIGHT: tl.constexpr,
                POSITIVE: tl.constexpr, DY_WAY: tl.constexpr, X_WAY: tl.constexpr, T_WAY: tl.constexpr, W_WAY: tl.constexpr,
                P_WAY: tl.constexpr, WIDE: tl.constexpr, BIG: tl.constexpr, BLOCK: tl.constexpr):
    """y (n,) = losses, with SLOPE derivatives times dy scale; with REDUCE y (pieces,) = their sum over each piece."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for number in range(tl.program_id(0), pieces, tl.num_programs(0)):
        total = tl.zeros((BLOCK,), acc)
        first = number.to(INDEX) * piece
        last = tl.minimum(first + piece, n)
        for start in range(first, last, BLOCK):
            i = start + tl.arange(0, BLOCK)
            live = i < last
            x = _read(x_ptr, i, live, x_inner, x_size, acc, X_WAY)
            t = _read(t_ptr, i, live, t_inner, t_size, acc, T_WAY)
            w = m.like(1.0, x)
            if POSITIVE:
                w = _read(p_ptr, i, live, p_inner, p_size, acc, P_WAY)
            if SLOPE:
                v = _slope(x, t, w, a, b, KIND, GAMMA)
            else:
                v = _value(x, t, w, a, b, KIND, GAMMA)
            if WEIGHT:
                v *= _read(w_ptr, i, live, w_inner, w_size, acc, W_WAY)
            if SLOPE:
                v = v * _read(dy_ptr, i, live, 1, 1, acc, DY_WAY) * scale
            if REDUCE:
                total += tl.where(live, v, 0.0)
            else:
                tl.store(y_ptr + i, v.to(y_ptr.dtype.element_ty), mask=live)
        if REDUCE:
            tl.store(y_ptr + number, tl.sum(total, 0))


# ---- launching -----------------------------------------------------------------------------------------------------------
def _way(t: Tensor, shape: Sequence[int]) -> tuple[Tensor, str, int, int]:
    """An operand as the kernel reads it: (packed tensor, way, inner, size); packed in full where it repeats in two places."""
    n = 1
    for s in shape:
        n *= s
    if t.numel == n:
        return contiguous(t), "full", 1, 1
    if t.numel == 1:
        return contiguous(t), "one", 1, 1
    sizes = (1,) * (len(shape) - t.ndim) + tuple(t.shape)
    kept = [k for k, s in enumerate(sizes) if s != 1]
    if all(sizes[k] == shape[k] for k in range(kept[0], kept[-1] + 1)):
        inner = 1
        for s in shape[kept[-1] + 1:]:
            inner *= s
        return contiguous(t), "repeated", inner, t.numel
    return contiguous(t.expand(*shape)), "full", 1, 1


def _run(kind: str, dy: Tensor | None, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: str, out: Tensor,
         a: float = 0.0, b: float = 0.0) -> None:
    shape = broadcast(kind, *(t.shape for t in (x, target, weight, pos_weight) if t is not None))
    n = 1
    for s in shape:
        n *= s
    reduce, wide = dy is None and reduction != "none", x.dtype.name == "float64"
    if n == 0 and not reduce:
        return
    device, number = device_of(x), F64 if wide else float
    block = min(BLOCK, next_power_of_2(n))
    pieces = programs(n, block)
    if reduce:
        pieces = min(programs(n, 4 * block), SPREAD)
    piece = programs(programs(n, max(pieces, 1)), block) * block
    pieces = programs(n, piece) if n else 0
    ways = [_way(t if t is not None else x, shape) for t in (x, target, weight, pos_weight)]
    tensors = [way[0] for way in ways]
    numbers = [v for _, _, inner, size in ways for v in (inner, size)]
    given = {"DY_WAY": "one" if dy is None or dy.numel == 1 else "full",
             **{f"{k}_WAY": way for k, (_, way, _, _) in zip(("X", "T", "W", "P"), ways)}}
    gamma = int(b) if b in (0.0, 1.0, 2.0) else -1

    def go(y: Tensor) -> None:
        launch(loss_kernel, (capped(device, pieces),), tensors[0] if dy is None else contiguous(dy), *tensors, y, n, piece, pieces, *numbers,
               number(a), number(b), number(1.0 / n if reduction == "mean" and n else 1.0), KIND=kind, SLOPE=dy is not None, REDUCE=reduce,
               GAMMA=gamma, WEIGHT=weight is not None, POSITIVE=pos_weight is not None, **given, WIDE=wide, BIG=n + piece >= FAR, BLOCK=block)

    if reduce:
        part = device.empty((pieces,), accumulator(x.dtype))
        go(part)
        fold("sum", part, (0,), out, divisor=float(n) if reduction == "mean" else None)
    else:
        with writable(out) as y:
            go(y)


def _loss(kind: str) -> Any:
    def run(x: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, *, reduction: str, out: Tensor,
            beta: float = 0.0, delta: float = 0.0) -> None:
        _run(kind, None, x, target, weight, pos_weight, reduction, out, beta or delta)

    return run


def _gradient(kind: str) -> Any:
    def run(dy: Tensor, x: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, *, reduction: str, out: Tensor,
            beta: float = 0.0, delta: float = 0.0) -> None:
        _run(kind, dy, x, target, weight, pos_weight, reduction, out, beta or delta)

    return run


def kl_div(x: Tensor, target: Tensor, *, reduction: str, log_target: bool, out: Tensor) -> None:
    _run("kl_div_log" if log_target else "kl_div", None, x, target, None, None, reduction, out)


def _focal(alpha: float) -> str:
    return "sigmoid_focal_loss" if alpha >= 0 else "sigmoid_focal_loss_plain"


def sigmoid_focal_loss(x: Tensor, target: Tensor, *, alpha: float, gamma: float, reduction: str, out: Tensor) -> None:
    _run(_focal(alpha), None, x, target, None, None, reduction, out, alpha, gamma)


def sigmoid_focal_loss_backward(dy: Tensor, x: Tensor, target: Tensor, *, alpha: float, gamma: float, reduction: str, out: Tensor) -> None:
    _run(_focal(alpha), dy, x, target, None, None, reduction, out, alpha, gamma)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, accumulator(specs[0].dtype).name)


KERNELS = {
    "mse_loss": _loss("mse_loss"), "mse_loss_backward": _gradient("mse_loss"), "l1_loss": _loss("l1_loss"),
    "smooth_l1_loss": _loss("smooth_l1_loss"), "smooth_l1_loss_backward": _gradient("smooth_l1_loss"),
    "huber_loss": _loss("huber_loss"), "huber_loss_backward": _gradient("huber_loss"),
    "binary_cross_entropy": _loss("binary_cross_entropy"), "binary_cross_entropy_backward": _gradient("binary_cross_entropy"),
    "binary_cross_entropy_with_logits": _loss("binary_cross_entropy_with_logits"),
    "binary_cross_entropy_with_logits_backward": _gradient("binary_cross_entropy_with_logits"), "kl_div": kl_div,
    "sigmoid_focal_loss": sigmoid_focal_loss, "sigmoid_focal_loss_backward": sigmoid_focal_loss_backward}
WHEN = dict.fromkeys(KERNELS, _when)


# ---- what is compiled ahead of time ----------------------------------------------------------------------------------------
def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    i32, one, number = ("i32", True), ("=1", False), ("fp32", False)
    ways = dict.fromkeys(("DY_WAY", "X_WAY", "T_WAY", "W_WAY", "P_WAY"), "full")
    for t in ("*fp32", "*bf16"):
        for kind, slope, reduce in (("mse_loss", False, True), ("binary_cross_entropy_with_logits", False, True), ("sigmoid_focal_loss", True, False)):
            yield f"{kind} {t} {'slope' if slope else 'sum'}", loss_kernel, \
                (*((t, True),) * 5, ("*fp32" if reduce else t, True), i32, i32, i32, *(one,) * 6, i32, i32, number, number, number), \
                {"KIND": kind, "SLOPE": slope, "REDUCE": reduce, "GAMMA": 2, "WEIGHT": False, "POSITIVE": kind.startswith("binary"), **ways,
                 "P_WAY": "repeated", "WIDE": False, "BIG": False, "BLOCK": BLOCK}, 4
