"""ctc_loss_forward and its gradient on Triton: one launch a time step over all sequences and states.

A step reads what the one before it wrote for neighbouring states; separate launches need no barrier inside a program and spread long
sequences over the whole device.  Not here: what the operators are (kernels/ops/ctc.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import triton
import triton.language as tl

from ...hal.errors import IndexOutOfBounds
from ...hal.tensor import Tensor
from . import scalar as m
from .launch import Data, by_signature, capped, lacks, launch, next_power_of_2, programs
from .rows import contiguous, device_of, writable

__all__ = ["KERNELS", "WHEN", "matrix"]

STATES = 512  # states of a program
CLASSES = 128  # classes of a program of the gradient


@triton.jit
def _label(target_ptr, k, live, blank):
    """The class of states k of a sequence: blank, or the label between two blanks."""
    return tl.where(k % 2 == 1, tl.load(target_ptr + k // 2, mask=live & (k % 2 == 1), other=0), blank)


@triton.jit
def _reach(line_ptr, target_ptr, k, count, blank, OVER: tl.constexpr):
    """log of what reaches states k from themselves and the one and two states OVER of them."""
    live = k < count
    none = -float("inf")
    one = k - OVER
    two = k - 2 * OVER
    u = tl.load(line_ptr + k, mask=live, other=none)
    v = tl.load(line_ptr + one, mask=live & (one >= 0) & (one < count), other=none)
    there = live & (two >= 0) & (two < count) & (k % 2 == 1)
    other = _label(target_ptr, two, there, blank)
    w = tl.load(line_ptr + two, mask=there & (other != _label(target_ptr, k, live, blank)), other=none)
    top = m.maximum(m.maximum(u, v), w)
    shift = tl.where(top == none, 0.0, top)
    return m.log(m.exp(u - shift) + m.exp(v - shift) + m.exp(w - shift)) + shift


@triton.jit
def alpha_kernel(logp_ptr, target_ptr, steps_ptr, labels_ptr, alpha_ptr, t, T, batch, classes, labels, states, blank, BLOCK: tl.constexpr):
    """alpha (batch, T, states) at step t."""
    blocks = tl.cdiv(states, BLOCK)
    for block in range(tl.program_id(0), batch * blocks, tl.num_programs(0)):
        n = (block // blocks).to(tl.int64)
        k = block % blocks * BLOCK + tl.arange(0, BLOCK)
        count = 2 * tl.load(labels_ptr + n) + 1
        targets = target_ptr + n * labels
        here = alpha_ptr + (n * T + t) * states
        live = (k < count) & (t < tl.load(steps_ptr + n))
        emit = tl.load(logp_ptr + (t.to(tl.int64) * batch + n) * classes + _label(targets, k, live, blank), mask=live, other=0.0)
        if t == 0:
            y = tl.where(k < 2, emit, -float("inf"))
        else:
            y = emit + _reach(here - states, targets, k, count, blank, 1)
        tl.store(here + k, tl.where(live, y, -float("inf")), mask=k < states)


@triton.jit
def likelihood_kernel(alpha_ptr, steps_ptr, labels_ptr, nll_ptr, T, batch, states):
    for i in range(tl.program_id(0), batch, tl.num_programs(0)):
        n = i + tl.arange(0, 1).to(tl.int64)
        steps = tl.load(steps_ptr + n)
        labels = tl.load(labels_ptr + n)
        last = alpha_ptr + (n * T + steps - 1) * states + 2 * labels
        u = tl.load(last, mask=steps > 0, other=-float("inf"))
        v = tl.load(last - 1, mask=(steps > 0) & (labels > 0), other=-float("inf"))
        top = m.maximum(u, v)
        shift = tl.where(top == -float("inf"), 0.0, top)
        y = -(m.log(m.exp(u - shift) + m.exp(v - shift)) + shift)
        tl.store(nll_ptr + n, tl.where((steps == 0) & (labels == 0), 0.0, y))


@triton.jit
def beta_kernel(logp_ptr, target_ptr, steps_ptr, labels_ptr, nll_ptr, chance_ptr, before_ptr, now_ptr, t, T, batch, classes, labels, states, blank,
                BLOCK: tl.constexpr):
    """beta (batch, states) at step t from that of step t + 1; chance (batch, T, states): log alpha on entry, the chance of a state afterwards."""
    blocks = tl.cdiv(states, BLOCK)
    for block in range(tl.program_id(0), batch * blocks, tl.num_programs(0)):
        n = (block // blocks).to(tl.int64)
        k = block % blocks * BLOCK + tl.arange(0, BLOCK)
        count = 2 * tl.load(labels_ptr + n) + 1
        steps = tl.load(steps_ptr + n)
        targets = target_ptr + n * labels
        live = (k < count) & (t < steps)
        emit = tl.load(logp_ptr + (t.to(tl.int64) * batch + n) * classes + _label(targets, k, live, blank), mask=live, other=0.0)
        reached = _reach(before_ptr + n * states, targets, k, count, blank, -1)
        beta = tl.where(t == steps - 1, tl.where(k >= count - 2, emit, -float("inf")), emit + reached)
        beta = tl.where(live, beta, -float("inf"))
        tl.store(now_ptr + n * states + k, beta, mask=k < states)
        at = chance_ptr + (n * T + t) * states + k
        both = tl.load(at, mask=live, other=-float("inf")) + beta
        chance = tl.where(both == -float("inf"), 0.0, m.exp(both - emit + tl.load(nll_ptr + n)))
        tl.store(at, tl.where(live, chance, 0.0), mask=k < states)


@triton.jit
def slope_kernel(dy_ptr, logp_ptr, target_ptr, steps_ptr, labels_ptr, nll_ptr, chance_ptr, grad_ptr, T, batch, classes, labels, states, blank,
                 ZERO: tl.constexpr, BLOCK: tl.constexpr):
    """grad (T, batch, classes) = dy (exp(log_probs) - the chances of a class's states, in order)."""
    blocks = tl.cdiv(classes, BLOCK)
    for block in range(tl.program_id(0), T * batch * blocks, tl.num_programs(0)):
        c = block % blocks * BLOCK + tl.arange(0, BLOCK)
        n = (block // blocks % batch).to(tl.int64)
        t = (block // blocks // batch).to(tl.int64)
        live = c < classes
        at = (t * batch + n) * classes + c
        g = m.exp(tl.load(logp_ptr + at, mask=live, other=0.0))
        steps = tl.load(steps_ptr + n)
        count = tl.load(labels_ptr + n)
        chance = chance_ptr + (n * T + t) * states
        spent = tl.zeros((BLOCK,), g.dtype)
        for k in range(0, count + 1):
            spent += tl.where(c == blank, tl.load(chance + 2 * k), 0.0)
        for k in range(0, count):
            spent += tl.where(c == tl.load(target_ptr + n * labels + k), tl.load(chance + 2 * k + 1), 0.0)
        nll = tl.load(nll_ptr + n)
        g = (g - spent) * tl.load(dy_ptr + n)
        lost = (nll < float("inf")) == 0
        if ZERO:
            g = tl.where(nll == float("inf"), 0.0, tl.where(lost, float("nan"), g))
        else:
            g = tl.where(lost, float("nan"), g)
        tl.store(grad_ptr + at, tl.where(t < steps, g, 0.0), mask=live)


@triton.jit
def fill_kernel(y_ptr, n, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y_ptr + i, tl.full((BLOCK,), -float("inf"), y_ptr.dtype.element_ty), mask=i < n)


def _given(name: str, log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor) -> tuple[Tensor, ...]:
    """Packed operands, after their values were looked at: no kernel reads past a sequence."""
    steps, _, classes = log_probs.shape
    rows, inputs, lengths = (np.asarray(t.numpy()) for t in (targets, input_lengths, target_lengths))
    short = (inputs < 0) | (inputs > steps) | (lengths < 0) | (lengths > rows.shape[1])
    if short.any():
        n = int(short.argmax())
        raise IndexOutOfBounds(f"{name}: sequence {n} has input length {inputs[n]} and target length {lengths[n]}; needs at most {steps} and "
                               f"{rows.shape[1]}")
    bad = ((rows < 0) | (rows >= classes)) & (np.arange(rows.shape[1]) < lengths[:, None])
    if bad.any():
        n, s = (int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
        raise IndexOutOfBounds(f"{name}: target {rows[n, s]} at position ({n}, {s}) is outside 0 <= target < {classes}")
    return tuple(map(contiguous, (log_probs, targets, input_lengths, target_lengths)))


def ctc_loss_forward(log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, *, blank: int, out: tuple[Tensor, Tensor]) -> None:
    logp, rows, steps, labels = _given("ctc_loss_forward", log_probs, targets, input_lengths, target_lengths)
    last, batch, classes = logp.shape
    if not batch:
        return
    states = 2 * rows.shape[1] + 1
    device, block = device_of(logp), min(next_power_of_2(states), STATES)
    with writable(out[0]) as nll, writable(out[1]) as alpha:
        for t in range(last):
            launch(alpha_kernel, (capped(device, batch * programs(states, block)),), logp, rows, steps, labels, alpha, Data(t), last, batch, classes,
                   Data(rows.shape[1]), states, Data(blank), BLOCK=block)
        launch(likelihood_kernel, (capped(device, batch),), alpha, steps, labels, nll, last, batch, states)


def ctc_loss_backward(dy: Tensor, log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, neg_log_likelihood: Tensor,
                      log_alpha: Tensor, *, blank: int, zero_infinity: bool, out: Tensor) -> None:
    logp, rows, steps, labels = _given("ctc_loss_backward", log_probs, targets, input_lengths, target_lengths)
    last, batch, classes = logp.shape
    if out.numel == 0:
        return
    states, nll, given = 2 * rows.shape[1] + 1, contiguous(neg_log_likelihood), contiguous(dy)
    device, block = device_of(logp), min(next_power_of_2(states), STATES)
    from .shape import copy
    chance = device.empty(log_alpha.shape, log_alpha.dtype)
    copy(log_alpha, out=chance)
    lines = [device.empty((batch, states), logp.dtype) for _ in range(2)]
    launch(fill_kernel, (capped(device, programs(batch * states, 1024)),), lines[0], batch * states, BLOCK=1024)
    for i, t in enumerate(range(last - 1, -1, -1)):
        launch(beta_kernel, (capped(device, batch * programs(states, block)),), logp, rows, steps, labels, nll, chance, lines[i % 2], lines[(i + 1) % 2],
               Data(t), last, batch, classes, Data(rows.shape[1]), states, Data(blank), BLOCK=block)
    block = min(next_power_of_2(classes), CLASSES)
    with writable(out) as grad:
        launch(slope_kernel, (capped(device, last * batch * programs(classes, block)),), given, logp, rows, steps, labels, nll, chance, grad, last, batch,
               classes, Data(rows.shape[1]), states, Data(blank), ZERO=zero_infinity, BLOCK=block)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, specs[0].dtype.name) or lacks(facts, "int64")


KERNELS = {"ctc_loss_forward": ctc_loss_forward, "ctc_loss_backward": ctc_loss_backward}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    x, t, i32 = ("*fp32", True), ("*i64", True), ("i32", False)
    yield "ctc alpha", alpha_kernel, (x, t, t, t, x, *(i32,) * 7), {"BLOCK": 128}, 4
    yield "ctc beta", beta_kernel, (x, t, t, t, x, x, x, x, *(i32,) * 7), {"BLOCK": 128}, 4
    yield "ctc slope", slope_kernel, (x, x, t, t, t, x, x, x, *(i32,) * 6), {"ZERO": True, "BLOCK": 32}, 4
