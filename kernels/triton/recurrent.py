"""selective_scan: a program owns one channel and scans blocks of time as pairs (decay, input), so that loads along time are
coalesced.  gated_delta_rule: a program owns some columns of one head's state, which do not meet, and walks time step by step.

Arithmetic and states are float32 (float64 for float64).  Not here: what the operators mean (kernels/ops/recurrent.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from . import scalar as m
from .launch import F64, by_signature, capped, lacks, launch, next_power_of_2, programs
from .rows import contiguous, device_of, writable

__all__ = ["KERNELS", "WHEN", "matrix"]

PAIRS = 2048  # (decay, input) pairs a program scans at once: 16 of each a thread at 4 warps of 32
STATE = 4096  # elements of a delta state a program holds: 32 a thread at 4 warps of 32
LARGE = 2**30  # half of int32: room for a block past the end


@triton.jit
def then(a, b, c, d):
    """h -> a h + b, then h -> c h + d."""
    return a * c, b * c + d


@triton.jit
def softplus(x):
    """log(1 + exp(x))."""
    return tl.where(x > 20.0, x + m.exp(-x), m.log1p(m.exp(tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL))))


@triton.jit
def selective_scan_kernel(u_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, skip_ptr, z_ptr, bias_ptr, out_ptr, last_ptr, channels, dim, length, state,
                          b_groups, c_groups, b_steps, c_steps, SOFTPLUS: tl.constexpr, SKIP: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, B_FIXED: tl.constexpr,
                          C_FIXED: tl.constexpr, ACC: tl.constexpr, BIG: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """u, delta, z, out (channels, length), channels = batch * dim; a (dim, state); b, c (batch, groups, state, length) or (dim, state)."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for task in range(tl.program_id(0), channels, tl.num_programs(0)):
        channel = task.to(INDEX)
        batch = channel // dim
        d = channel % dim
        s = tl.arange(0, BLOCK_S).to(INDEX)  # (BLOCK_S,)
        has = s < state
        a = tl.load(a_ptr + d * state + s, mask=has, other=0).to(ACC)
        h = tl.zeros((BLOCK_S,), ACC)
        b_base = d * state
        if not B_FIXED:
            b_base = (batch * b_groups + d // (dim // b_groups)) * state * length
        c_base = d * state
        if not C_FIXED:
            c_base = (batch * c_groups + d // (dim // c_groups)) * state * length
        for start in range(0, length, BLOCK_T):
            t = start.to(INDEX) + tl.arange(0, BLOCK_T)  # (BLOCK_T,)
            live = t < length
            at = channel * length + t
            u = tl.load(u_ptr + at, mask=live, other=0).to(ACC)
            dt = tl.load(delta_ptr + at, mask=live, other=0).to(ACC)
            if BIAS:
                dt += tl.load(bias_ptr + d).to(ACC)
            if SOFTPLUS:
                dt = softplus(dt)
            both = live[:, None] & has[None, :]
            b = tl.load(b_ptr + b_base + s[None, :] * b_steps + (t * (b_steps != 1))[:, None], mask=both, other=0).to(ACC)
            c = tl.load(c_ptr + c_base + s[None, :] * c_steps + (t * (c_steps != 1))[:, None], mask=both, other=0).to(ACC)
            decay = tl.where(both, m.exp(dt[:, None] * a[None, :]), 1.0)  # past the end the state stays
            into = tl.where(both, (dt * u)[:, None] * b, 0.0)
            decays, sums = tl.associative_scan((decay, into), 0, then)
            states = decays * h[None, :] + sums
            y = tl.sum(tl.where(both, states * c, 0.0), 1)
            h = tl.sum(tl.where((tl.arange(0, BLOCK_T) == BLOCK_T - 1)[:, None], states, 0.0), 0)
            if SKIP:
                y += tl.load(skip_ptr + d).to(ACC) * u
            if GATE:
                z = tl.load(z_ptr + at, mask=live, other=0).to(ACC)
                y = y * m.div(z, 1.0 + m.exp(-z))
            tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=live)
        tl.store(last_ptr + channel * state + s, h, mask=has)


@triton.jit
def delta_rule_kernel(q_ptr, k_ptr, v_ptr, g_ptr, beta_ptr, first_ptr, out_ptr, last_ptr, lines, heads, v_heads, length, width, values, tiles,
                      scale, STARTED: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr, BIG: tl.constexpr, BLOCK_K: tl.constexpr,
                      BLOCK_V: tl.constexpr):
    """q, k (batch, length, heads, width); v, out (batch, length, v_heads, values); states (lines, width, values), lines = batch * v_heads."""
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for task in range(tl.program_id(0), lines * tiles, tl.num_programs(0)):
        line = (task // tiles).to(INDEX)
        batch = line // v_heads
        head = line % v_heads
        i = tl.arange(0, BLOCK_K)  # (BLOCK_K,)
        j = task % tiles * BLOCK_V + tl.arange(0, BLOCK_V)  # (BLOCK_V,)
        row = i < width
        col = j < values
        both = row[:, None] & col[None, :]
        at = line * width * values + i[:, None] * values + j[None, :]
        state = tl.zeros((BLOCK_K, BLOCK_V), ACC)
        if STARTED:
            state += tl.load(first_ptr + at, mask=both, other=0).to(ACC)
        for t in range(0, length):
            step = batch * length + t
            qk_at = (step * heads + head // (v_heads // heads)) * width + i
            q = tl.load(q_ptr + qk_at, mask=row, other=0).to(ACC)
            k = tl.load(k_ptr + qk_at, mask=row, other=0).to(ACC)
            if UNIT:
                q = m.div(q, m.sqrt(tl.zeros((BLOCK_K,), ACC) + (tl.sum(q * q, 0) + 1e-6)))
                k = m.div(k, m.sqrt(tl.zeros((BLOCK_K,), ACC) + (tl.sum(k * k, 0) + 1e-6)))
            q = q * scale
            v_at = (step * v_heads + head) * values + j
            v = tl.load(v_ptr + v_at, mask=col, other=0).to(ACC)
            decay = m.exp(tl.zeros((BLOCK_V,), ACC) + tl.load(g_ptr + step * v_heads + head).to(ACC))
            beta = tl.load(beta_ptr + step * v_heads + head).to(ACC)
            state = state * decay[None, :]
            new = (v - tl.sum(state * k[:, None], 0)) * beta
            state += k[:, None] * new[None, :]
            y = tl.sum(state * q[:, None], 0)
            tl.store(out_ptr + v_at, y.to(out_ptr.dtype.element_ty), mask=col)
        tl.store(last_ptr + at, state, mask=both)


_ACC = {"float32": tl.float32, "float64": tl.float64}


def _dense(t: Tensor | None, other: Tensor) -> Tensor:
    return other if t is None else contiguous(t)


def _blocks(length: int, state: int) -> tuple[int, int]:
    """(BLOCK_T, BLOCK_S): at most PAIRS of both, 256 steps at most."""
    block_s = next_power_of_2(state)
    return min(next_power_of_2(length), max(PAIRS // block_s, 1), 256), block_s


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None,
                   *, delta_softplus: bool, out: tuple[Tensor, Tensor]) -> None:
    batch, dim, length = u.shape
    state = A.shape[1]
    if batch * dim == 0 or length * state == 0 and out[0].numel == 0 and out[1].numel == 0:
        return
    block_t, block_s = _blocks(length, state)
    fixed = [p.ndim == 2 for p in (B, C)]
    groups = [p.shape[1] if p.ndim == 4 else 1 for p in (B, C)]
    u = contiguous(u)
    with writable(out[0]) as y, writable(out[1]) as last:
        launch(selective_scan_kernel, (capped(device_of(u), batch * dim),), u, contiguous(delta), contiguous(A), contiguous(B), contiguous(C),
               _dense(D, u), _dense(z, u), _dense(delta_bias, u), y, last, batch * dim, dim, length, state, *groups,
               *(1 if f else length for f in fixed), SOFTPLUS=delta_softplus, SKIP=D is not None, GATE=z is not None, BIAS=delta_bias is not None,
               B_FIXED=fixed[0], C_FIXED=fixed[1], ACC=_ACC[accumulator(u.dtype).name],
               BIG=max(u.numel, B.numel, C.numel, batch * dim * state) >= LARGE, BLOCK_T=block_t, BLOCK_S=block_s)


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, *, scale: float | None,
                     use_qk_l2norm: bool, out: tuple[Tensor, Tensor]) -> None:
    batch, length, heads, width = q.shape
    v_heads, values = v.shape[2:]
    lines = batch * v_heads
    if lines * values == 0:
        return
    block_k = next_power_of_2(width)
    block_v = min(next_power_of_2(values), max(STATE // block_k, 8))
    tiles = programs(values, block_v)
    number = width**-0.5 if scale is None else scale
    with writable(out[0]) as y, writable(out[1]) as last:
        launch(delta_rule_kernel, (capped(device_of(q), lines * tiles),), *(contiguous(t) for t in (q, k, v, g, beta)),
               _dense(initial_state, last), y, last, lines, heads, v_heads, length, width, values, tiles,
               F64(number) if q.dtype.name == "float64" else float(number), STARTED=initial_state is not None, UNIT=use_qk_l2norm,
               ACC=_ACC[accumulator(q.dtype).name], BIG=max(q.numel, v.numel, lines * width * values) >= LARGE, BLOCK_K=block_k, BLOCK_V=block_v)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, accumulator(specs[0].dtype).name)


KERNELS = {"selective_scan": selective_scan, "gated_delta_rule": gated_delta_rule}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    some, i32, one = ("i32", True), ("i32", False), ("i32", False)
    block_t, block_s = _blocks(2048, 16)
    for t in ("*fp32", "*bf16"):
        x, f = (t, True), ("*fp32", True)
        yield f"selective_scan {t}", selective_scan_kernel, (x, x, f, x, x, f, x, f, x, f, some, some, some, some, one, one, some, some), \
            {"SOFTPLUS": True, "SKIP": True, "GATE": True, "BIAS": True, "B_FIXED": False, "C_FIXED": False, "ACC": tl.float32, "BIG": False,
             "BLOCK_T": block_t, "BLOCK_S": block_s}, 4
        yield f"gated_delta_rule {t}", delta_rule_kernel, (x, x, x, f, x, f, x, f, some, some, some, some, some, some, i32, ("fp32", False)), \
            {"STARTED": True, "UNIT": True, "ACC": tl.float32, "BIG": False, "BLOCK_K": 128, "BLOCK_V": 32}, 4
