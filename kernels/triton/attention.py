"""Scaled dot-product attention without the matrix of scores (Dao et al. 2022), forward and backward, without atomics.

A program owns BLOCK_M queries of one head and walks the keys; few queries of many keys are split along the keys and the
parts combined.  The gradient has one kernel that owns queries (dquery) and one that owns keys (dkey, dvalue).
Not here: what attention means (kernels/ops/attention.py).  Axes: B, H, G, L, S, E, V as there.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl

from ...hal.driver import Capabilities
from ...hal.tensor import Tensor
from ..ops.record import Spec
from . import scalar as m
from .launch import F64, Data, Step, next_power_of_2, programs
from .rows import contiguous, device_of, writable
from .tiles import FAR, Call, broadcast_steps, dot_takes_float64, reach, run

__all__ = ["KERNELS", "WHEN", "matrix"]

# BLOCK_M queries, BLOCK_N keys, warps, stages by bytes of an element, for heads up to a width: the largest that spill no
# register on sm80, sm90 and gfx942 under Triton 3.9
FORWARD = {2: ((64, 128, 64, 8, 3), (128, 128, 64, 8, 3), (256, 32, 32, 8, 2), (512, 32, 16, 8, 1)),
           4: ((64, 64, 32, 8, 2), (128, 32, 32, 8, 2), (256, 32, 16, 4, 1), (512, 16, 16, 4, 1)),
           8: ((64, 32, 16, 4, 1), (128, 16, 16, 4, 1), (256, 16, 16, 4, 1), (512, 16, 16, 8, 1))}
DQUERY = {2: ((64, 64, 32, 4, 2), (128, 64, 32, 8, 2), (256, 32, 16, 4, 1), (512, 16, 16, 8, 1)),
          4: ((64, 32, 32, 4, 1), (128, 32, 16, 4, 1), (256, 16, 16, 4, 1), (512, 16, 16, 8, 1)),
          8: ((64, 16, 16, 4, 1), (128, 16, 16, 4, 1), (256, 16, 16, 8, 1), (512, 16, 16, 8, 1))}
DKEY = {2: ((64, 32, 32, 4, 2), (128, 32, 32, 4, 2), (256, 32, 16, 4, 1), (512, 16, 16, 8, 1)),
        4: ((64, 32, 16, 8, 1), (128, 16, 16, 8, 1), (256, 16, 16, 8, 1), (512, 16, 16, 8, 1)),
        8: ((64, 16, 16, 4, 1), (128, 16, 16, 4, 1), (256, 16, 16, 8, 1), (512, 16, 16, 8, 1))}
WIDEST = 512  # E and V: what registers and shared memory hold of one row
SPLIT_KEYS = 256  # keys of one part, at least, where a few queries see many


@triton.jit
def _exp(x, FAST: tl.constexpr):
    """exp(x); with FAST by the device's own 2^x, whose few units in float32's last place vanish where results are 16-bit."""
    if FAST:
        y = tl.exp2(x * 1.4426950408889634)
    else:
        y = m.exp(x)
    return y


@triton.jit
def _scores(q, k, mask_at, rows, cols, S, scale, live_m, stride_mask_n, CAUSAL: tl.constexpr, MASK: tl.constexpr,
            PRECISION: tl.constexpr, acc: tl.constexpr):
    """(BLOCK_M, BLOCK_N) scores of q (BLOCK_M, E) and k (E, BLOCK_N); -inf where a key is not to be seen.

    mask_at: (BLOCK_M, 1) pointers to the mask's rows.  Scores stay exponents of e: log2 e times a mask of the dtype's lowest
    number, which many models use, would be -inf and empty the row.
    """
    s = tl.dot(q, k, input_precision=PRECISION, out_dtype=acc) * scale
    seen = (cols < S)[None, :]
    if CAUSAL:
        seen = seen & (cols[None, :] <= rows[:, None])
    if MASK != "none":
        at = mask_at + cols[None, :] * stride_mask_n
        present = live_m[:, None] & (cols < S)[None, :]
        if MASK == "bool":
            seen = seen & (tl.load(at, mask=present, other=0) != 0)
        else:
            s += tl.load(at, mask=present, other=0.0).to(acc)
    return tl.where(seen, s, float("-inf"))


@triton.jit
def forward_kernel(q_ptr, k_ptr, v_ptr, mask_ptr, out_ptr, lse_ptr, H, L, S, groups, chunk, splits, E, V,
                   qb, qh, ql, kb, kh, ks, vb, vh, vs, mb, mh, ml, mn, ob, oh, ol, osplit, lb, lh, ll, lsplit, scale, first,
                   CAUSAL: tl.constexpr, MASK: tl.constexpr, FAST: tl.constexpr, FAR: tl.constexpr, PRECISION: tl.constexpr,
                   LSE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr):
    """softmax(q k^T scale + mask) v over keys [split * chunk, (split + 1) * chunk), and the logarithm of its denominator."""
    acc: tl.constexpr = tl.float64 if q_ptr.dtype.element_ty == tl.float64 else tl.float32
    tile = first + tl.program_id(0)
    blocks = tl.cdiv(L, BLOCK_M)
    block = blocks - 1 - tile % blocks  # of a causal mask the longest rows start first
    head = tile // blocks % H
    rest = tile // blocks // H
    split = rest % splits
    batch = (rest // splits).to(tl.int64)
    q_ptr += batch * qb + head.to(tl.int64) * qh
    k_ptr += batch * kb + (head // groups).to(tl.int64) * kh
    v_ptr += batch * vb + (head // groups).to(tl.int64) * vh
    mask_ptr += batch * mb + head.to(tl.int64) * mh
    out_ptr += batch * ob + head.to(tl.int64) * oh + split.to(tl.int64) * osplit
    lse_ptr += batch * lb + head.to(tl.int64) * lh + split.to(tl.int64) * lsplit
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    keys = tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    e = tl.arange(0, BLOCK_E)
    v_col = tl.arange(0, BLOCK_V)
    live_m = rows < L
    if FAR:
        rows = rows.to(tl.int64)
        keys = keys.to(tl.int64)
    q = tl.load(q_ptr + (rows[:, None] * ql + e[None, :]), mask=live_m[:, None] & (e < E)[None, :], other=0.0)
    mask_at = mask_ptr + (rows * ml)[:, None]
    highest = tl.full((BLOCK_M,), float("-inf"), acc)
    total = tl.zeros((BLOCK_M,), acc)
    result = tl.zeros((BLOCK_M, BLOCK_V), acc)
    start = split * chunk
    end = tl.minimum(start + chunk, S)
    if CAUSAL:
        end = tl.minimum(end, (block + 1) * BLOCK_M)
    for n in range(start, end, BLOCK_N):
        cols = n + keys
        live_n = cols < S
        k = tl.load(k_ptr + (cols[None, :] * ks + e[:, None]), mask=live_n[None, :] & (e < E)[:, None], other=0.0)
        s = _scores(q, k, mask_at, rows, cols, end, scale, live_m, mn, CAUSAL, MASK, PRECISION, acc)
        above = tl.maximum(highest, tl.max(s, 1))
        # a row that has seen no key keeps the shift at 0: exp(-inf - -inf) would be NaN
        shift = tl.where(above == float("-inf"), 0.0, above)
        shrink = _exp(highest - shift, FAST)
        p = _exp(s - shift[:, None], FAST)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + (cols[:, None] * vs + v_col[None, :]), mask=live_n[:, None] & (v_col < V)[None, :], other=0.0)
        result = tl.dot(p.to(v.dtype), v, result * shrink[:, None], input_precision=PRECISION, out_dtype=acc)
        highest = above
    result = m.div(result, tl.where(total == 0.0, 1.0, total)[:, None])
    tl.store(out_ptr + (rows[:, None] * ol + v_col[None, :]), result.to(out_ptr.dtype.element_ty),
             mask=live_m[:, None] & (v_col < V)[None, :])
    if LSE:
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        tl.store(lse_ptr + rows * ll, (shift + m.log(total)).to(lse_ptr.dtype.element_ty), mask=live_m)


@triton.jit
def combine_kernel(part_ptr, part_lse_ptr, out_ptr, lse_ptr, H, L, splits, rows, V, ob, oh, ol, lb, lh, ll, first,
                   LSE: tl.constexpr, BLOCK_V: tl.constexpr):
    """One row of the result from its parts (splits, rows, V), each weighted by its share of the denominator."""
    acc: tl.constexpr = part_ptr.dtype.element_ty
    row = first + tl.program_id(0)
    v_col = tl.arange(0, BLOCK_V)
    highest = tl.load(part_lse_ptr + row)
    for i in range(1, splits):
        highest = m.maximum(highest, tl.load(part_lse_ptr + i.to(tl.int64) * rows + row))
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.zeros((1,), acc)
    result = tl.zeros((BLOCK_V,), acc)
    for i in range(0, splits):
        at = i.to(tl.int64) * rows + row
        weight = m.exp(tl.load(part_lse_ptr + at + tl.zeros((1,), tl.int32)) - shift)
        total += weight
        result += weight * tl.load(part_ptr + at * V + v_col, mask=v_col < V, other=0.0)
    result = m.div(result, tl.where(total == 0.0, 1.0, total))
    batch = (row // (H * L)).to(tl.int64)
    head = (row // L % H).to(tl.int64)
    query = (row % L).to(tl.int64)
    tl.store(out_ptr + batch * ob + head * oh + query * ol + v_col, result.to(out_ptr.dtype.element_ty), mask=v_col < V)
    if LSE:
        at = lse_ptr + batch * lb + head * lh + query * ll + tl.arange(0, 1)
        tl.store(at, (shift + m.log(total)).to(lse_ptr.dtype.element_ty))


@triton.jit
def delta_kernel(dy_ptr, out_ptr, delta_ptr, H, L, V, yb, yh, yl, ob, oh, ol, first, FAR: tl.constexpr, BLOCK_M: tl.constexpr,
                 BLOCK_V: tl.constexpr):
    """delta (B, H, L) = sum(dy out) over V."""
    acc: tl.constexpr = delta_ptr.dtype.element_ty
    tile = first + tl.program_id(0)
    blocks = tl.cdiv(L, BLOCK_M)
    head = (tile // blocks % H).to(tl.int64)
    batch = (tile // blocks // H).to(tl.int64)
    rows = tile % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    v_col = tl.arange(0, BLOCK_V)
    live_m = rows < L
    live = live_m[:, None] & (v_col < V)[None, :]
    delta_ptr += (batch * H + head) * L
    if FAR:
        rows = rows.to(tl.int64)
    dy = tl.load(dy_ptr + batch * yb + head * yh + (rows[:, None] * yl + v_col[None, :]), mask=live, other=0.0).to(acc)
    out = tl.load(out_ptr + batch * ob + head * oh + (rows[:, None] * ol + v_col[None, :]), mask=live, other=0.0).to(acc)
    tl.store(delta_ptr + rows, tl.sum(dy * out, 1), mask=live_m)


@triton.jit
def _probabilities(s, lse, FAST: tl.constexpr):
    """exp(s - lse); 0 wherever the score is -inf, whatever lse is."""
    return tl.where(s == float("-inf"), 0.0, _exp(s - lse[:, None], FAST))


@triton.jit
def dquery_kernel(dy_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, mask_ptr, dq_ptr, H, groups, L, S, E, V, yb, yh, yl, qb, qh, ql, kb, kh, ks,
                  vb, vh, vs, lb, lh, ll, mb, mh, ml, mn, db, dh, dl, scale, first, CAUSAL: tl.constexpr, MASK: tl.constexpr,
                  FAST: tl.constexpr, FAR: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                  BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr):
    acc: tl.constexpr = delta_ptr.dtype.element_ty
    tile = first + tl.program_id(0)
    blocks = tl.cdiv(L, BLOCK_M)
    block = blocks - 1 - tile % blocks
    head = (tile // blocks % H).to(tl.int64)
    batch = (tile // blocks // H).to(tl.int64)
    k_ptr += batch * kb + head // groups * kh
    v_ptr += batch * vb + head // groups * vh
    mask_ptr += batch * mb + head * mh
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = tl.arange(0, BLOCK_N)
    e = tl.arange(0, BLOCK_E)
    v_col = tl.arange(0, BLOCK_V)
    live_m = rows < L
    live_e = e < E
    live_v = v_col < V
    delta_ptr += (batch * H + head) * L
    if FAR:
        rows = rows.to(tl.int64)
        keys = keys.to(tl.int64)
    q = tl.load(q_ptr + batch * qb + head * qh + (rows[:, None] * ql + e[None, :]), mask=live_m[:, None] & live_e[None, :], other=0.0)
    dy = tl.load(dy_ptr + batch * yb + head * yh + (rows[:, None] * yl + v_col[None, :]), mask=live_m[:, None] & live_v[None, :], other=0.0)
    lse = tl.load(lse_ptr + batch * lb + head * lh + rows * ll, mask=live_m, other=0.0)
    delta = tl.load(delta_ptr + rows, mask=live_m, other=0.0)
    mask_at = mask_ptr + (rows * ml)[:, None]
    dq = tl.zeros((BLOCK_M, BLOCK_E), acc)
    end = S
    if CAUSAL:
        end = tl.minimum(end, (block + 1) * BLOCK_M)
    for n in range(0, end, BLOCK_N):
        cols = n + keys
        live_n = cols < S
        k = tl.load(k_ptr + (cols[:, None] * ks + e[None, :]), mask=live_n[:, None] & live_e[None, :], other=0.0)
        v = tl.load(v_ptr + (cols[:, None] * vs + v_col[None, :]), mask=live_n[:, None] & live_v[None, :], other=0.0)
        s = _scores(q, tl.trans(k), mask_at, rows, cols, S, scale, live_m, mn, CAUSAL, MASK, PRECISION, acc)
        p = _probabilities(s, lse, FAST)
        dp = tl.dot(dy, tl.trans(v), input_precision=PRECISION, out_dtype=acc)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION, out_dtype=acc)
    tl.store(dq_ptr + batch * db + head * dh + (rows[:, None] * dl + e[None, :]), (dq * scale).to(dq_ptr.dtype.element_ty),
             mask=live_m[:, None] & live_e[None, :])


@triton.jit
def dkey_dvalue_kernel(dy_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, mask_ptr, dk_ptr, dv_ptr, G, groups, L, S, E, V, yb, yh, yl,
                       qb, qh, ql, kb, kh, ks, vb, vh, vs, lb, lh, ll, mb, mh, ml, mn, dkb, dkh, dks, dvb, dvh, dvs, scale, first,
                       CAUSAL: tl.constexpr, MASK: tl.constexpr, FAST: tl.constexpr, FAR: tl.constexpr, PRECISION: tl.constexpr,
                       BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr):
    """The gradients of BLOCK_N keys, summed over the query heads that share them."""
    acc: tl.constexpr = delta_ptr.dtype.element_ty
    tile = first + tl.program_id(0)
    blocks = tl.cdiv(S, BLOCK_N)
    block = tile % blocks
    head = (tile // blocks % G).to(tl.int64)
    batch = (tile // blocks // G).to(tl.int64)
    cols = block * BLOCK_N + tl.arange(0, BLOCK_N)
    queries = tl.arange(0, BLOCK_M)
    e = tl.arange(0, BLOCK_E)
    v_col = tl.arange(0, BLOCK_V)
    live_n = cols < S
    live_e = e < E
    live_v = v_col < V
    if FAR:
        cols = cols.to(tl.int64)
        queries = queries.to(tl.int64)
    k = tl.load(k_ptr + batch * kb + head * kh + (cols[:, None] * ks + e[None, :]), mask=live_n[:, None] & live_e[None, :], other=0.0)
    v = tl.load(v_ptr + batch * vb + head * vh + (cols[:, None] * vs + v_col[None, :]), mask=live_n[:, None] & live_v[None, :], other=0.0)
    dk = tl.zeros((BLOCK_N, BLOCK_E), acc)
    dv = tl.zeros((BLOCK_N, BLOCK_V), acc)
    start = 0
    if CAUSAL:
        start = block * BLOCK_N // BLOCK_M * BLOCK_M  # earlier queries see none of these keys
    for g in range(groups):
        of = head * groups + g
        q_at = q_ptr + batch * qb + of * qh
        dy_at = dy_ptr + batch * yb + of * yh
        lse_at = lse_ptr + batch * lb + of * lh
        delta_at = delta_ptr + (batch * G * groups + of) * L
        mask_at = mask_ptr + batch * mb + of * mh
        for i in range(start, L, BLOCK_M):
            rows = i + queries
            live_m = rows < L
            q = tl.load(q_at + (rows[:, None] * ql + e[None, :]), mask=live_m[:, None] & live_e[None, :], other=0.0)
            dy = tl.load(dy_at + (rows[:, None] * yl + v_col[None, :]), mask=live_m[:, None] & live_v[None, :], other=0.0)
            lse = tl.load(lse_at + rows * ll, mask=live_m, other=0.0)
            delta = tl.load(delta_at + rows, mask=live_m, other=0.0)
            s = _scores(q, tl.trans(k), mask_at + (rows * ml)[:, None], rows, cols, S, scale, live_m, mn, CAUSAL, MASK, PRECISION,
                        acc)
            p = tl.where(live_m[:, None], _probabilities(s, lse, FAST), 0.0)
            dv = tl.dot(tl.trans(p).to(dy.dtype), dy, dv, input_precision=PRECISION, out_dtype=acc)
            dp = tl.dot(dy, tl.trans(v), input_precision=PRECISION, out_dtype=acc)
            ds = p * (dp - delta[:, None])
            dk = tl.dot(tl.trans(ds).to(q.dtype), q, dk, input_precision=PRECISION, out_dtype=acc)
    tl.store(dk_ptr + batch * dkb + head * dkh + (cols[:, None] * dks + e[None, :]), (dk * scale).to(dk_ptr.dtype.element_ty),
             mask=live_n[:, None] & live_e[None, :])
    tl.store(dv_ptr + batch * dvb + head * dvh + (cols[:, None] * dvs + v_col[None, :]), dv.to(dv_ptr.dtype.element_ty),
             mask=live_n[:, None] & live_v[None, :])


# ---- planning ------------------------------------------------------------------------------------------------------------
def _rowwise(t: Tensor) -> Tensor:
    """A tensor whose last axis lies without gaps: itself, or a packed copy."""
    return t if t.shape[-1] <= 1 or t.strides[-1] == 1 else contiguous(t)


def _blocks(table: dict[int, tuple], query: Tensor, v: int, n_k: int, n_q: int, masked: bool, facts: Capabilities) -> tuple[dict[str, int], int, int]:
    """(block sizes, warps, stages) for heads of widths e and v: no larger than the numbers of queries and keys need, and
    within shared memory, where q (and dy) stay and every stage of the pipeline holds keys, values and a tile of the mask."""
    item, e = query.itemsize, query.shape[3]
    block_e, block_v = max(16, next_power_of_2(e)), max(16, next_power_of_2(v))
    _, most_m, block_n, warps, stages = next(r for r in table[item] if max(block_e, block_v) <= r[0])
    block_m, block_n = min(most_m, max(16, next_power_of_2(n_q))), min(block_n, max(16, next_power_of_2(n_k)))

    def needed() -> int:
        stay, walk = (block_n, block_m) if table is DKEY else (block_m, block_n)
        kept = stay * (block_e if table is FORWARD else block_e + block_v) + (0 if table is FORWARD else 2 * block_m * block_n)
        return item * (kept + stages * (walk * (block_e + block_v) + masked * block_m * block_n))

    while facts.max_shared_bytes and needed() > facts.max_shared_bytes and (stages > 1 or block_m > 16 or block_n > 16):
        if stages > 1:
            stages -= 1
        elif block_n >= block_m:
            block_n //= 2
        else:
            block_m //= 2
    if table is FORWARD and block_m < most_m:
        warps = 4  # 64 rows on 8 warps make Triton 3.0 abort on sm90
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_E": block_e, "BLOCK_V": block_v}, warps, stages


def _scale(query: Tensor, scale: float | None) -> float:
    """The factor of the scores, 1 / sqrt(E) by default, as a kernel argument."""
    if scale is None:
        scale = query.shape[-1] ** -0.5 if query.shape[-1] else 1.0
    return F64(scale) if query.itemsize == 8 else float(scale)


def _common(query: Tensor, mask: Tensor | None, is_causal: bool, facts: Capabilities, far: bool) -> dict[str, Any]:
    item = query.itemsize
    return {"CAUSAL": is_causal, "MASK": "none" if mask is None else "bool" if mask.dtype.name == "bool" else "float", "FAST": item == 2,
            "FAR": far, "PRECISION": None if item == 2 else facts.reduced_matmul if facts.reduced_matmul == "tf32" and item == 4 else "ieee"}


def _far(*tensors: tuple[Sequence[int], Sequence[int]]) -> bool:
    """Whether an offset inside one head's matrix, padding included, passes 32 bits."""
    return max(reach(tuple(n + 128 for n in shape), steps) for shape, steps in tensors) >= FAR


def _steps(t: Tensor) -> tuple[int, ...]:
    """Strides of a tensor's first three axes, as plain integers, which are not compiled in."""
    return t.strides[:3]


def _forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor | None, is_causal: bool,
             scale: float | None, facts: Capabilities) -> tuple[Call, Call | None]:
    """The call, and for split keys the one that combines the parts."""
    (b, h, n_q, e), (_, g, n_k, v) = query.shape, value.shape
    q, o = _steps(query), _steps(out)
    z = (0, 0, 0) if lse is None else _steps(lse)
    s_mask = (0, 0, 0, 0) if mask is None else broadcast_steps(mask, (b, h, n_q, n_k))
    groups = h // g if g else 1
    if groups > 1 and n_q == 1 and not is_causal:  # the heads that share keys become the rows of one tile
        h, n_q, groups = g, groups, 1
        q, o, z = ((t[0], t[1] * n_q, t[1]) for t in (q, o, z))
        s_mask = (s_mask[0], s_mask[1] * n_q, s_mask[1], s_mask[3])
    far = _far(((n_q, e), (q[2], 1)), ((n_k, e), (key.strides[2], 1)), ((n_k, v), (value.strides[2], 1)), ((n_q, n_k), s_mask[2:]),
               ((n_q, v), (o[2], 1)))
    common = _common(query, mask, is_causal, facts, far)
    sizes, warps, stages = _blocks(FORWARD, query, v, n_k, n_q, mask is not None, facts)
    tiles = programs(n_q, sizes["BLOCK_M"]) * b * h
    # enough parts to fill the device twice over, of SPLIT_KEYS keys at least; causal rows would have unequal parts
    fill = max(facts.multiprocessors, 4)
    splits = 1 if is_causal or 4 * tiles >= 3 * fill else min(programs(n_k, SPLIT_KEYS), programs(2 * fill, tiles))
    chunk = programs(programs(n_k, max(splits, 1)), sizes["BLOCK_N"]) * sizes["BLOCK_N"]
    splits = max(programs(n_k, chunk), 1) if chunk else 1
    second = None
    target, target_lse, o_steps, z_steps = out, query if lse is None else lse, (*o, 0), (*z, 0)
    if splits > 1:
        kind = "float64" if query.itemsize == 8 else "float32"
        rows = b * h * n_q
        target, target_lse = device_of(query).empty((splits, rows, v), kind), device_of(query).empty((splits, rows), kind)
        o_steps, z_steps = (h * n_q * v, n_q * v, v, rows * v), (h * n_q, n_q, 1, rows)
        args = (target, target_lse, out, query if lse is None else lse, *map(Data, (h, n_q, splits)), rows, v, *o, *z)
        second = Call(combine_kernel, rows, args, 4, 3, {"LSE": lse is not None, "BLOCK_V": sizes["BLOCK_V"]})
    args = (query, key, value, query if mask is None else mask, target, target_lse, Data(h), Data(n_q), n_k, Data(groups), chunk, Data(splits), e, v, *q,
            *_steps(key), *_steps(value), *s_mask[:2], *map(Step, s_mask[2:]), *o_steps, *z_steps, _scale(query, scale))
    return Call(forward_kernel, tiles * splits, args, warps, stages,
                {**common, "LSE": lse is not None or splits > 1, **sizes}), second


def _backward(dy: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None, is_causal: bool,
              scale: float | None, delta: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, facts: Capabilities) -> tuple[Call, Call, Call]:
    """(delta, dquery, dkey and dvalue), to run in this order."""
    (b, h, n_q, e), (_, g, n_k, v) = query.shape, value.shape
    groups = h // g
    s_mask = (0, 0, 0, 0) if mask is None else broadcast_steps(mask, (b, h, n_q, n_k))
    far = _far(*((t.shape[2:], t.strides[2:]) for t in (dy, query, key, value, out, dq, dk, dv)), ((n_q, n_k), s_mask[2:]))
    common = _common(query, mask, is_causal, facts, far)
    sizes, warps, stages = _blocks(DQUERY, query, v, n_k, n_q, mask is not None, facts)
    key_sizes, key_warps, key_stages = _blocks(DKEY, query, v, n_k, n_q, mask is not None, facts)
    inputs = (dy, query, key, value, lse, delta, query if mask is None else mask)
    steps = (*_steps(dy), *_steps(query), *_steps(key), *_steps(value), *_steps(lse), *s_mask[:2], *map(Step, s_mask[2:]))
    block = min(32, max(16, next_power_of_2(n_q)))  # rows of a program of delta
    return (Call(delta_kernel, programs(n_q, block) * b * h, (dy, out, delta, Data(h), Data(n_q), v, *_steps(dy), *_steps(out)), 4, 3,
                 {"FAR": far, "BLOCK_M": block, "BLOCK_V": sizes["BLOCK_V"]}),
            Call(dquery_kernel, programs(n_q, sizes["BLOCK_M"]) * b * h,
                 (*inputs, dq, Data(h), Data(groups), Data(n_q), n_k, e, v, *steps, *_steps(dq), _scale(query, scale)), warps, stages, {**common, **sizes}),
            Call(dkey_dvalue_kernel, programs(n_k, key_sizes["BLOCK_N"]) * b * g,
                 (*inputs, dk, dv, Data(g), Data(groups), Data(n_q), n_k, e, v, *steps, *_steps(dk), *_steps(dv), _scale(query, scale)), key_warps, key_stages,
                 {**common, **key_sizes}))


# ---- operators -----------------------------------------------------------------------------------------------------------
def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor | None, is_causal: bool,
            scale: float | None) -> None:
    if query.shape[0] * query.shape[1] * query.shape[2] == 0:
        return
    device = device_of(query)
    with ExitStack() as stack:
        y = out if out.shape[-1] <= 1 or out.strides[-1] == 1 else stack.enter_context(writable(out))
        calls = _forward(_rowwise(query), _rowwise(key), _rowwise(value), mask, y, lse, is_causal, scale, device.capabilities)
        for call in calls:
            if call is not None:
                run(device, call)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, *, dropout_p: float, is_causal: bool,
                                 scale: float | None, enable_gqa: bool, out: Tensor) -> None:
    _attend(query, key, value, attn_mask, out, None, is_causal, scale)


def scaled_dot_product_flash_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, *, is_causal: bool,
                                       scale: float | None, out: tuple[Tensor, Tensor]) -> None:
    _attend(query, key, value, attn_mask, out[0], out[1], is_causal, scale)


def scaled_dot_product_flash_attention_backward(dy: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, logsumexp: Tensor,
                                                attn_mask: Tensor | None, *, is_causal: bool, scale: float | None,
                                                out: tuple[Tensor, Tensor, Tensor]) -> None:
    device = device_of(query)
    delta = device.empty(query.shape[:3], logsumexp.dtype)
    with ExitStack() as stack:
        results = [t if t.shape[-1] <= 1 or t.strides[-1] == 1 else stack.enter_context(writable(t)) for t in out]
        given = [_rowwise(t) for t in (dy, query, key, value, output)]
        for call in _backward(*given, logsumexp, attn_mask, is_causal, scale, delta, *results, device.capabilities):
            run(device, call)


def _when(specs: Sequence[Spec | None], attrs: dict[str, Any], capabilities: Any) -> str:
    """Heads too wide for a tile, and float64 where Triton's tl.dot does not take it."""
    widest = max(s.shape[3] for s in specs[:-1] if s is not None and s.ndim == 4)  # the last one is the mask
    if widest > WIDEST:
        return f"heads are {widest} wide; the kernel takes {WIDEST} at most"
    if specs[0] is not None and specs[0].dtype.name == "float64" and not dot_takes_float64():
        return "this Triton's tl.dot does not take float64; 3.6 does"
    return ""


KERNELS = {"scaled_dot_product_attention": scaled_dot_product_attention,
           "scaled_dot_product_flash_attention": scaled_dot_product_flash_attention,
           "scaled_dot_product_flash_attention_backward": scaled_dot_product_flash_attention_backward}
WHEN = dict.fromkeys(KERNELS, _when)


# ---- what is compiled ahead of time ----------------------------------------------------------------------------------------
_TYPICAL = Capabilities(model="", total_bytes=0, max_alloc_bytes=0, multiprocessors=128, max_shared_bytes=160 << 10)
# name, dtype, B, H, G, L, S, E, mask dtype, causal, backward too
_SHAPES = (("bert", "bfloat16", 1, 12, 12, 128, 128, 64, "bfloat16", False, True),
           ("prefill", "float16", 1, 32, 32, 1024, 1024, 128, "", True, True),
           ("decode", "float16", 1, 32, 8, 1, 4096, 128, "", False, False), ("exact", "float32", 1, 12, 12, 128, 128, 64, "bool", False, True),
           ("wide", "float16", 1, 8, 8, 256, 256, 256, "", True, True), ("double", "float64", 1, 2, 2, 65, 65, 16, "", False, True))


def calls(facts: Capabilities = _TYPICAL) -> Iterator[tuple[str, Call]]:
    """Typical calls on a device with these facts, over host tensors that stand in for the device's."""
    from ...hal.tensor import empty
    for name, dtype, b, h, g, n_q, n_k, e, masked, causal, backward in _SHAPES:
        if dtype == "float64" and not dot_takes_float64():
            continue
        q, k, y = empty((b, h, n_q, e), dtype), empty((b, g, n_k, e), dtype), empty((b, h, n_q, e), dtype)
        mask = empty((b, 1, n_q, n_k), masked) if masked else None
        lse = empty((b, h, n_q), "float64" if dtype == "float64" else "float32")
        short = q.dtype.short
        call, second = _forward(q, k, k, mask, y, None if not backward else lse, causal, None, facts)
        yield f"attention_{name}_{short}", call
        if second is not None:
            yield f"attention_combine_{name}_{short}", second
        if backward:
            for what, call in zip(("delta", "dquery", "dkey_dvalue"),
                                  _backward(y, q, k, k, y, lse, mask, causal, None, lse, y, k, k, facts), strict=True):
                yield f"attention_{what}_{name}_{short}", call


def matrix(shared_bytes: int = _TYPICAL.max_shared_bytes) -> Iterator[tuple[str, Any, tuple, dict[str, Any], int, int]]:
    """(name, kernel, signature, constants, num_warps, num_stages) of typical calls, for launch.compile_for."""
    for name, call in calls(replace(_TYPICAL, max_shared_bytes=shared_bytes)):
        yield name, call.kernel, call.signature, call.constants, call.num_warps, call.num_stages
