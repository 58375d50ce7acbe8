"""Optimiser steps on Triton: one pointwise kernel a rule over packed tensors, float32 for 16-bit ones.

Not here: what the rules are (kernels/ops/optim.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from . import scalar as m
from .launch import F64, by_signature, capped, lacks, launch, programs
from .rows import contiguous, device_of, writable
from .shape import copy

__all__ = ["KERNELS", "WHEN", "matrix"]

BLOCK = 1024  # elements of a program: 8 a thread at 4 warps of 32


# ---- kernels -------------------------------------------------------------------------------------------------------------
@triton.jit
def sgd_kernel(p_ptr, g_ptr, a_ptr, y_ptr, ya_ptr, n, lr, momentum, fresh, decay, sign, WIDE: tl.constexpr, MOMENTUM: tl.constexpr,
               NESTEROV: tl.constexpr, FIRST: tl.constexpr, DECAY: tl.constexpr, BLOCK: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        live = i < n
        p = tl.load(p_ptr + i, mask=live, other=0.0).to(acc)
        g = tl.load(g_ptr + i, mask=live, other=0.0).to(acc) * sign
        if DECAY:
            g += decay * p
        d = g
        if MOMENTUM:
            if FIRST:
                buffer = g
            else:
                buffer = momentum * tl.load(a_ptr + i, mask=live, other=0.0).to(acc) + fresh * g
            tl.store(ya_ptr + i, buffer.to(ya_ptr.dtype.element_ty), mask=live)
            if NESTEROV:
                d = g + momentum * buffer
            else:
                d = buffer
        tl.store(y_ptr + i, (p - lr * d).to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def adam_kernel(p_ptr, g_ptr, a_ptr, b_ptr, c_ptr, y_ptr, ya_ptr, yb_ptr, yc_ptr, n, size, scale, beta1, new1, beta2, new2, decay, keep, eps,
                sign, WIDE: tl.constexpr, AMSGRAD: tl.constexpr, DECAY: tl.constexpr, BLOCK: tl.constexpr):
    """size = lr / (1 - beta1^step), scale = 1 / sqrt(1 - beta2^step), keep = 1 - lr weight_decay (adamw; else 1)."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        live = i < n
        p = tl.load(p_ptr + i, mask=live, other=0.0).to(acc)
        g = tl.load(g_ptr + i, mask=live, other=0.0).to(acc) * sign
        if DECAY:
            g += decay * p
        a = tl.load(a_ptr + i, mask=live, other=0.0).to(acc) * beta1 + g * new1
        b = tl.load(b_ptr + i, mask=live, other=0.0).to(acc) * beta2 + g * g * new2
        top = b
        if AMSGRAD:
            top = m.maximum(b, tl.load(c_ptr + i, mask=live, other=0.0).to(acc))
            tl.store(yc_ptr + i, top.to(yc_ptr.dtype.element_ty), mask=live)
        y = p * keep - size * m.div(a, m.sqrt(top) * scale + eps)
        tl.store(y_ptr + i, y.to(y_ptr.dtype.element_ty), mask=live)
        tl.store(ya_ptr + i, a.to(ya_ptr.dtype.element_ty), mask=live)
        tl.store(yb_ptr + i, b.to(yb_ptr.dtype.element_ty), mask=live)


@triton.jit
def rmsprop_kernel(p_ptr, g_ptr, a_ptr, b_ptr, c_ptr, y_ptr, ya_ptr, yb_ptr, yc_ptr, n, lr, alpha, fresh, decay, momentum, eps, sign,
                   WIDE: tl.constexpr, MOMENTUM: tl.constexpr, CENTERED: tl.constexpr, DECAY: tl.constexpr, BLOCK: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        live = i < n
        p = tl.load(p_ptr + i, mask=live, other=0.0).to(acc)
        g = tl.load(g_ptr + i, mask=live, other=0.0).to(acc) * sign
        if DECAY:
            g += decay * p
        square = tl.load(a_ptr + i, mask=live, other=0.0).to(acc) * alpha + g * g * fresh
        tl.store(ya_ptr + i, square.to(ya_ptr.dtype.element_ty), mask=live)
        if CENTERED:
            average = tl.load(c_ptr + i, mask=live, other=0.0).to(acc) * alpha + g * fresh
            tl.store(yc_ptr + i, average.to(yc_ptr.dtype.element_ty), mask=live)
            square = square - average * average
        d = m.div(g, m.sqrt(square) + eps)
        if MOMENTUM:
            d = momentum * tl.load(b_ptr + i, mask=live, other=0.0).to(acc) + d
            tl.store(yb_ptr + i, d.to(yb_ptr.dtype.element_ty), mask=live)
        tl.store(y_ptr + i, (p - lr * d).to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def adadelta_kernel(p_ptr, g_ptr, a_ptr, b_ptr, y_ptr, ya_ptr, yb_ptr, n, lr, rho, fresh, decay, eps, sign, WIDE: tl.constexpr,
                    DECAY: tl.constexpr, BLOCK: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        live = i < n
        p = tl.load(p_ptr + i, mask=live, other=0.0).to(acc)
        g = tl.load(g_ptr + i, mask=live, other=0.0).to(acc) * sign
        if DECAY:
            g += decay * p
        square = tl.load(a_ptr + i, mask=live, other=0.0).to(acc) * rho + g * g * fresh
        old = tl.load(b_ptr + i, mask=live, other=0.0).to(acc)
        delta = m.div(m.sqrt(old + eps), m.sqrt(square + eps)) * g
        tl.store(y_ptr + i, (p - lr * delta).to(y_ptr.dtype.element_ty), mask=live)
        tl.store(ya_ptr + i, square.to(ya_ptr.dtype.element_ty), mask=live)
        tl.store(yb_ptr + i, (old * rho + delta * delta * fresh).to(yb_ptr.dtype.element_ty), mask=live)


# ---- launching -----------------------------------------------------------------------------------------------------------
def _run(kernel: Any, tensors: Sequence[Tensor | None], out: Sequence[Tensor], numbers: Sequence[float], **constants: Any) -> None:
    """tensors: param, grad, states; a state that is not given travels as param, and its result is not written."""
    param = tensors[0]
    assert param is not None  # only states are optional
    if param.numel == 0:
        return
    wide = param.dtype.name == "float64"
    number: Any = F64 if wide else float
    packed = [contiguous(t) if t is not None else contiguous(param) for t in tensors]
    states = [t for i, t in enumerate(tensors) if i != 1]
    targets = [writable(o if s is not None else out[0]) for o, s in zip(out, states)]
    with targets[0] as first:
        written = [first]
        _enter(targets[1:], states[1:], first, written, lambda: launch(
            kernel, (capped(device_of(param), programs(param.numel, BLOCK)),), *packed, *written, param.numel, *map(number, numbers), WIDE=wide,
            BLOCK=BLOCK, **constants))


def _enter(targets: Sequence[Any], states: Sequence[Any], first: Tensor, written: list[Tensor], then: Any) -> None:
    """Opens the results one by one around ``then``; one that is not there stands in as the first."""
    if not targets:
        then()
    elif states[0] is None:
        written.append(first)
        _enter(targets[1:], states[1:], first, written, then)
    else:
        with targets[0] as y:
            written.append(y)
            _enter(targets[1:], states[1:], first, written, then)


def _keep(state: Tensor | None, out: Tensor, unchanged: bool) -> None:
    """A state given that the rule does not use comes back as it was."""
    if state is not None and unchanged and out.numel:
        copy(state, out=out)


def sgd(param: Tensor, grad: Tensor, momentum_buffer: Tensor | None, *, lr: float, momentum: float, dampening: float, weight_decay: float,
        nesterov: bool, maximize: bool, first_step: bool, out: tuple[Tensor, Tensor]) -> None:
    _run(sgd_kernel, (param, grad, momentum_buffer), out, (lr, momentum, 1 - dampening, weight_decay, -1.0 if maximize else 1.0),
         MOMENTUM=momentum != 0, NESTEROV=nesterov, FIRST=first_step, DECAY=weight_decay != 0)
    _keep(momentum_buffer, out[1], momentum == 0)


def _adam(decoupled: bool) -> Any:
    def run(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, max_exp_avg_sq: Tensor | None, *, step: int, lr: float, beta1: float,
            beta2: float, weight_decay: float, eps: float, maximize: bool, out: tuple[Tensor, ...]) -> None:
        numbers = (lr / (1 - beta1**step), (1 - beta2**step) ** -0.5, beta1, 1 - beta1, beta2, 1 - beta2, weight_decay,
                   1 - lr * weight_decay if decoupled else 1.0, eps, -1.0 if maximize else 1.0)
        _run(adam_kernel, (param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq), out, numbers, AMSGRAD=max_exp_avg_sq is not None,
             DECAY=weight_decay != 0 and not decoupled)

    return run


def rmsprop(param: Tensor, grad: Tensor, square_avg: Tensor, momentum_buffer: Tensor | None, grad_avg: Tensor | None, *, lr: float, alpha: float,
            eps: float, weight_decay: float, momentum: float, centered: bool, maximize: bool, out: tuple[Tensor, ...]) -> None:
    _run(rmsprop_kernel, (param, grad, square_avg, momentum_buffer, grad_avg), out,
         (lr, alpha, 1 - alpha, weight_decay, momentum, eps, -1.0 if maximize else 1.0), MOMENTUM=momentum != 0, CENTERED=centered,
         DECAY=weight_decay != 0)
    _keep(momentum_buffer, out[2], momentum == 0)
    _keep(grad_avg, out[3], not centered)


def adadelta(param: Tensor, grad: Tensor, square_avg: Tensor, acc_delta: Tensor, *, lr: float, rho: float, eps: float, weight_decay: float,
             maximize: bool, out: tuple[Tensor, Tensor, Tensor]) -> None:
    _run(adadelta_kernel, (param, grad, square_avg, acc_delta), out, (lr, rho, 1 - rho, weight_decay, eps, -1.0 if maximize else 1.0),
         DECAY=weight_decay != 0)


adam, adamw = _adam(False), _adam(True)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, accumulator(specs[0].dtype).name)


KERNELS = {"sgd": sgd, "adam": adam, "adamw": adamw, "rmsprop": rmsprop, "adadelta": adadelta}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    n, number = ("i32", True), ("fp32", False)
    for t in ("*fp32", "*bf16"):
        x, s = (t, True), ("*fp32", True)
        common = {"WIDE": False, "DECAY": True, "BLOCK": BLOCK}
        yield f"sgd {t}", sgd_kernel, (x, x, s, x, s, n, *(number,) * 5), {**common, "MOMENTUM": True, "NESTEROV": True, "FIRST": False}, 4
        yield f"adam {t}", adam_kernel, (x, x, s, s, s, x, s, s, s, n, *(number,) * 10), {**common, "AMSGRAD": True}, 4
        yield f"rmsprop {t}", rmsprop_kernel, (x, x, s, s, s, x, s, s, s, n, *(number,) * 7), {**common, "MOMENTUM": True, "CENTERED": True}, 4
        yield f"adadelta {t}", adadelta_kernel, (x, x, s, s, x, s, s, n, *(number,) * 6), common, 4
