"""Attention over packed sequences and over caches in blocks on Triton (Dao et al. 2022, flash decoding for caches).

Packed: a program owns BLOCK_M queries of one head of one sequence.  Caches: a program owns the query heads that share a key head, and one
part of a sequence's keys; the parts are combined as in attention.py.  Lengths and blocks are checked before the launch.
Not here: what the operators mean (kernels/ops/attention_serve.py).  Axes: B, H, G, E, V as there.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl

from ...hal.driver import Capabilities
from ...hal.tensor import Tensor
from ..ops.index import check_bounds
from ..ops.llm import check_ends
from . import scalar as m
from .attention import _exp, _rowwise, _scale, combine_kernel
from .launch import F64, Data, lacks, next_power_of_2, programs
from .rows import contiguous, device_of, writable
from .shape import full
from .tables import check_used
from .tiles import Call, dot_takes_float64, run, stages_within

__all__ = ["KERNELS", "WHEN", "matrix"]

# BLOCK_M queries, BLOCK_N keys, warps, stages by bytes of an element, for heads up to a width
VARLEN = {2: ((64, 128, 64, 8, 2), (128, 128, 64, 8, 2), (256, 32, 32, 8, 1), (512, 16, 16, 8, 1)),
          4: ((64, 64, 32, 8, 2), (128, 32, 32, 8, 1), (256, 16, 16, 4, 1), (512, 16, 16, 8, 1)),
          8: ((64, 16, 16, 4, 1), (128, 16, 16, 4, 1), (256, 16, 16, 4, 1), (512, 16, 16, 8, 1))}
# keys at a time, warps by bytes of an element, for caches up to a width
CACHE = {2: ((128, 64, 4), (256, 32, 4), (512, 16, 8)), 4: ((128, 32, 8), (256, 16, 4), (512, 16, 8)), 8: ((128, 16, 4), (256, 16, 4), (512, 16, 8))}
WIDEST = 512  # of a head: what registers and shared memory hold of one row
SPLIT_KEYS = 256  # keys of one part of a cache, at least
HEADS = 64  # query heads that a program takes at most of those that share a key head


@triton.jit
def _capped(s, softcap, CAP: tl.constexpr):
    if CAP:
        s = softcap * m.tanh(m.div(s, softcap))
    return s


@triton.jit
def varlen_kernel(q_ptr, k_ptr, v_ptr, ends_q_ptr, ends_k_ptr, slope_ptr, out_ptr, H, groups, blocks, E, V, ql, qh, kl, kh, vl, vh, ol, oh, sb, sh, scale,
                  softcap, left, right, first, LEFT: tl.constexpr, RIGHT: tl.constexpr, CAP: tl.constexpr, SLOPES: tl.constexpr, FAST: tl.constexpr,
                  PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr):
    """Queries [block * BLOCK_M, ...) of one head of one sequence: softmax(q k^T scale, capped and biased) v."""
    acc: tl.constexpr = tl.float64 if q_ptr.dtype.element_ty == tl.float64 else tl.float32
    tile = first + tl.program_id(0)
    block = blocks - 1 - tile % blocks  # the longest rows of a causal mask start first
    head = (tile // blocks % H).to(tl.int64)
    batch = tile // blocks // H
    q_from = tl.load(ends_q_ptr + batch).to(tl.int64)
    k_from = tl.load(ends_k_ptr + batch).to(tl.int64)
    L = (tl.load(ends_q_ptr + batch + 1) - q_from).to(tl.int32)
    S = (tl.load(ends_k_ptr + batch + 1) - k_from).to(tl.int32)
    if block * BLOCK_M < L:
        rows = block * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
        places = rows + (S - L)  # where the queries stand among the keys
        e = tl.arange(0, BLOCK_E)
        c = tl.arange(0, BLOCK_V)
        live_m = rows < L
        q_ptr += q_from * ql + head * qh
        k_ptr += k_from * kl + head // groups * kh
        v_ptr += k_from * vl + head // groups * vh
        q = tl.load(q_ptr + (rows.to(tl.int64)[:, None] * ql + e[None, :]), mask=live_m[:, None] & (e < E)[None, :], other=0.0)
        if SLOPES:
            slope = tl.load(slope_ptr + batch.to(tl.int64) * sb + head * sh).to(acc)
        highest = tl.full((BLOCK_M,), float("-inf"), acc)
        total = tl.zeros((BLOCK_M,), acc)
        result = tl.zeros((BLOCK_M, BLOCK_V), acc)
        start = 0
        end = S
        if LEFT:
            start = tl.maximum(block * BLOCK_M + (S - L) - left, 0) // BLOCK_N * BLOCK_N
        if RIGHT:
            end = tl.minimum(end, (block + 1) * BLOCK_M + (S - L) + right)
        for n in range(start, end, BLOCK_N):
            cols = n + tl.arange(0, BLOCK_N)
            live_n = cols < S
            wide = cols.to(tl.int64)
            k = tl.load(k_ptr + (wide[None, :] * kl + e[:, None]), mask=live_n[None, :] & (e < E)[:, None], other=0.0)
            s = _capped(tl.dot(q, k, input_precision=PRECISION, out_dtype=acc) * scale, softcap, CAP)
            ahead = cols[None, :] - places[:, None]
            if SLOPES:
                s -= slope * tl.abs(ahead).to(acc)
            seen = live_n[None, :]
            if LEFT:
                seen = seen & (ahead >= -left)
            if RIGHT:
                seen = seen & (ahead <= right)
            s = tl.where(seen, s, float("-inf"))
            above = tl.maximum(highest, tl.max(s, 1))
            shift = tl.where(above == float("-inf"), 0.0, above)
            shrink = _exp(highest - shift, FAST)
            p = _exp(s - shift[:, None], FAST)
            total = total * shrink + tl.sum(p, 1)
            v = tl.load(v_ptr + (wide[:, None] * vl + c[None, :]), mask=live_n[:, None] & (c < V)[None, :], other=0.0)
            result = tl.dot(p.to(v.dtype), v, result * shrink[:, None], input_precision=PRECISION, out_dtype=acc)
            highest = above
        result = m.div(result, tl.where(total == 0.0, 1.0, total)[:, None])
        out_ptr += q_from * ol + head * oh
        tl.store(out_ptr + (rows.to(tl.int64)[:, None] * ol + c[None, :]), result.to(out_ptr.dtype.element_ty), mask=live_m[:, None] & (c < V)[None, :])


@triton.jit
def cache_kernel(q_ptr, pe_ptr, k_ptr, v_ptr, table_ptr, length_ptr, slope_ptr, out_ptr, lse_ptr, G, tiles, splits, chunk, rows, E, E2, V, positions, columns,
                 qb, qh, pb, ph, kn, kp, kg, vn, vp, vg, sb, sh, ob, oh, osplit, lsplit, scale, softcap, window, first, PE: tl.constexpr,
                 WINDOW: tl.constexpr, CAP: tl.constexpr, SLOPES: tl.constexpr, LSE: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
                 BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_V: tl.constexpr):
    """Keys [split * chunk, (split + 1) * chunk) of one sequence for BLOCK_M of the ``rows`` query heads that share key head g.

    With PE keys have a second part of width E2 behind the first, which meets pe.  lse (splits, B, H) is written where parts are combined.
    """
    acc: tl.constexpr = tl.float64 if q_ptr.dtype.element_ty == tl.float64 else tl.float32
    at = first + tl.program_id(0)
    tile = at % tiles
    g = (at // tiles % G).to(tl.int64)
    split = at // tiles // G % splits
    batch = (at // tiles // G // splits).to(tl.int64)
    r = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,) of the heads that share g
    head = g * rows + r
    live_m = r < rows
    e = tl.arange(0, BLOCK_E)
    c = tl.arange(0, BLOCK_V)
    q = tl.load(q_ptr + batch * qb + (head[:, None] * qh + e[None, :]), mask=live_m[:, None] & (e < E)[None, :], other=0.0)
    if PE:
        e2 = tl.arange(0, BLOCK_P)
        pe = tl.load(pe_ptr + batch * pb + (head[:, None] * ph + e2[None, :]), mask=live_m[:, None] & (e2 < E2)[None, :], other=0.0)
    if SLOPES:
        slope = tl.load(slope_ptr + batch * sb + head * sh, mask=live_m, other=0.0).to(acc)
    S = tl.load(length_ptr + batch).to(tl.int32)
    start = split * chunk
    end = tl.minimum(start + chunk, S)
    if WINDOW:
        start = tl.maximum(start, tl.maximum(S - window, 0) // BLOCK_N * BLOCK_N)
    highest = tl.full((BLOCK_M,), float("-inf"), acc)
    total = tl.zeros((BLOCK_M,), acc)
    result = tl.zeros((BLOCK_M, BLOCK_V), acc)
    for n in range(start, end, BLOCK_N):
        cols = n + tl.arange(0, BLOCK_N)
        live_n = cols < end
        page = tl.load(table_ptr + batch * columns + cols // positions, mask=live_n, other=0).to(tl.int64)
        k_at = page * kn + (cols % positions) * kp + g * kg
        k = tl.load(k_ptr + (k_at[None, :] + e[:, None]), mask=live_n[None, :] & (e < E)[:, None], other=0.0)
        s = tl.dot(q, k, input_precision=PRECISION, out_dtype=acc)
        if PE:
            k2 = tl.load(k_ptr + (k_at[None, :] + E + e2[:, None]), mask=live_n[None, :] & (e2 < E2)[:, None], other=0.0)
            s = tl.dot(pe, k2, s, input_precision=PRECISION, out_dtype=acc)
        s = _capped(s * scale, softcap, CAP)
        if SLOPES:
            s -= slope[:, None] * (S - 1 - cols)[None, :].to(acc)
        seen = live_n
        if WINDOW:
            seen = seen & (S - 1 - cols < window)
        s = tl.where(seen[None, :], s, float("-inf"))
        above = tl.maximum(highest, tl.max(s, 1))
        shift = tl.where(above == float("-inf"), 0.0, above)
        shrink = _exp(highest - shift, FAST)
        p = _exp(s - shift[:, None], FAST)
        total = total * shrink + tl.sum(p, 1)
        v_at = page * vn + (cols % positions) * vp + g * vg
        v = tl.load(v_ptr + (v_at[:, None] + c[None, :]), mask=live_n[:, None] & (c < V)[None, :], other=0.0)
        result = tl.dot(p.to(v.dtype), v, result * shrink[:, None], input_precision=PRECISION, out_dtype=acc)
        highest = above
    result = m.div(result, tl.where(total == 0.0, 1.0, total)[:, None])
    out_ptr += batch * ob + split.to(tl.int64) * osplit
    tl.store(out_ptr + (head[:, None] * oh + c[None, :]), result.to(out_ptr.dtype.element_ty), mask=live_m[:, None] & (c < V)[None, :])
    if LSE:
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        tl.store(lse_ptr + split.to(tl.int64) * lsplit + batch * (G * rows) + head, (shift + m.log(total)).to(lse_ptr.dtype.element_ty), mask=live_m)


# ---- planning ------------------------------------------------------------------------------------------------------------
def _common(query: Tensor, facts: Capabilities) -> dict[str, Any]:
    item = query.itemsize
    return {"FAST": item == 2, "PRECISION": None if item == 2 else facts.reduced_matmul if facts.reduced_matmul == "tf32" and item == 4 else "ieee"}


def _number(query: Tensor, x: float) -> float:
    return F64(x) if query.itemsize == 8 else float(x)


def _varlen(query: Tensor, key: Tensor, value: Tensor, ends_q: Tensor, ends_k: Tensor, slopes: Tensor | None, out: Tensor, longest: tuple[int, int],
            scale: float | None, left: int, right: int, softcap: float, facts: Capabilities) -> Call:
    (_, h, e), (_, g, v) = query.shape, value.shape
    block_e, block_v = max(16, next_power_of_2(e)), max(16, next_power_of_2(v))
    _, most_m, most_n, warps, stages = next(r for r in VARLEN[query.itemsize] if max(block_e, block_v) <= r[0])
    block_m, block_n = min(most_m, max(16, next_power_of_2(longest[0]))), min(most_n, max(16, next_power_of_2(longest[1])))
    blocks = programs(longest[0], block_m)
    stages = stages_within(facts, stages, query.itemsize * (block_n * (block_e + block_v) + block_m * block_e))
    per = (0, 0) if slopes is None else (0, slopes.strides[0]) if slopes.ndim == 1 else slopes.strides
    args = (query, key, value, ends_q, ends_k, query if slopes is None else slopes, out, Data(h), Data(h // g), Data(blocks), e, v, *query.strides[:2],
            *key.strides[:2], *value.strides[:2], *out.strides[:2], *map(Data, per), _scale(query, scale), _number(query, softcap or 1.0), Data(left),
            Data(right))
    if block_m < most_m:
        warps = 4
    return Call(varlen_kernel, blocks * h * (ends_q.numel - 1), args, warps, stages,
                {"LEFT": left >= 0, "RIGHT": right >= 0, "CAP": softcap > 0, "SLOPES": slopes is not None, **_common(query, facts), "BLOCK_M": block_m,
                 "BLOCK_N": block_n, "BLOCK_E": block_e, "BLOCK_V": block_v})


def _cache(query: Tensor, pe: Tensor | None, key: Tensor, value: Tensor, table: Tensor, lengths: Tensor, slopes: Tensor | None, out: Tensor, longest: int,
           scale: float, window: int, softcap: float, facts: Capabilities) -> tuple[Call, Call | None]:
    """key and value (N, P, G, width); with pe the key is as wide as query and pe.  The call, and for split keys the one that combines."""
    (b, h, e), (_, positions, g, v) = query.shape, value.shape
    e2, rows = 0 if pe is None else pe.shape[2], h // g
    block_e, block_v, block_p = (max(16, next_power_of_2(n)) for n in (e, v, e2))
    _, block_n, warps = next(r for r in CACHE[query.itemsize] if max(block_e, block_v) <= r[0])
    block_m = min(max(16, next_power_of_2(rows)), HEADS if max(block_e, block_v) <= 256 else 16)
    tiles = programs(rows, block_m)
    fill = 2 * max(facts.multiprocessors, 4)
    splits = min(programs(longest, SPLIT_KEYS), programs(fill, max(b * g * tiles, 1))) or 1
    chunk = programs(programs(longest, splits), block_n) * block_n
    splits = max(programs(longest, chunk), 1) if chunk else 1
    second, target, lse = None, out, query
    steps = (*out.strides[:2], 0, 0)
    if splits > 1:
        kind = "float64" if query.itemsize == 8 else "float32"
        n = b * h
        target, lse = device_of(query).empty((splits, n, v), kind), device_of(query).empty((splits, n), kind)
        steps = (h * v, v, n * v, n)
        args = (target, lse, out, query, *map(Data, (h, 1, splits)), n, v, *out.strides[:2], 0, 0, 0, 0)
        second = Call(combine_kernel, n, args, 4, 3, {"LSE": False, "BLOCK_V": block_v})
    per = (0, 0) if slopes is None else (0, slopes.strides[0]) if slopes.ndim == 1 else slopes.strides
    args = (query, query if pe is None else pe, key, value, table, lengths, query if slopes is None else slopes, target, lse, Data(g), Data(tiles), Data(splits),
            chunk, Data(rows), e, e2, v, Data(positions), Data(table.shape[1]), *query.strides[:2], *((0, 0) if pe is None else pe.strides[:2]), *key.strides[:3],
            *value.strides[:3], *map(Data, per), *steps, _number(query, scale), _number(query, softcap or 1.0), Data(window))
    stages = stages_within(facts, 2, query.itemsize * (block_n * (block_e + block_v + block_p) + block_m * (block_e + block_p)))
    return Call(cache_kernel, b * g * tiles * splits, args, warps, stages,
                {"PE": e2 > 0, "WINDOW": window > 0, "CAP": softcap > 0, "SLOPES": slopes is not None, "LSE": splits > 1, **_common(query, facts),
                 "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_E": block_e, "BLOCK_P": block_p, "BLOCK_V": block_v}), second


# ---- operators -----------------------------------------------------------------------------------------------------------
def attention_varlen(query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, alibi_slopes: Tensor | None, *,
                     scale: float | None, is_causal: bool, window_left: int, window_right: int, softcap: float, out: Tensor) -> None:
    name = "attention_varlen"
    ends_q, ends_k = cu_seqlens_q.numpy(), cu_seqlens_k.numpy()
    check_ends(name, "cu_seqlens_q", ends_q, query.shape[0])
    check_ends(name, "cu_seqlens_k", ends_k, key.shape[0])
    if out.numel == 0:
        return
    longest = tuple(int((e[1:] - e[:-1]).max(initial=0)) for e in (ends_q, ends_k))
    furthest = 2**30
    left, right = min(window_left, furthest), 0 if is_causal else min(window_right, furthest)
    device = device_of(query)
    with writable(out) as y:
        for rows in (y[:int(ends_q[0])], y[int(ends_q[-1]):]):
            if rows.numel:  # rows of no sequence
                full(shape=rows.shape, value=0.0, dtype=rows.dtype, out=rows)
        if longest[0]:
            call = _varlen(_rowwise(query), _rowwise(key), _rowwise(value), contiguous(cu_seqlens_q), contiguous(cu_seqlens_k), alibi_slopes, y,
                           (longest[0], longest[1]), scale, left, right, softcap, device.capabilities)
            run(device, call)


def _decode(name: str, query: Tensor, pe: Tensor | None, key: Tensor, value: Tensor, block_tables: Tensor, seq_lens: Tensor, slopes: Tensor | None,
            out: Tensor, scale: float, window: int, softcap: float) -> None:
    lengths, positions = seq_lens.numpy(), key.shape[1]
    check_bounds(name, "seq_lens", lengths, block_tables.shape[1] * positions + 1)
    table, sizes = contiguous(block_tables), contiguous(seq_lens)
    check_used(name, "block", table, sizes, positions, key.shape[0])
    if out.numel == 0:
        return
    device = device_of(query)
    with writable(out) as y:
        for call in _cache(query, pe, key, value, table, sizes, slopes, y, int(lengths.max(initial=0)), scale, window, softcap, device.capabilities):
            if call is not None:
                run(device, call)


def paged_attention(query: Tensor, key_cache: Tensor, value_cache: Tensor, block_tables: Tensor, seq_lens: Tensor, alibi_slopes: Tensor | None, *,
                    scale: float | None, window: int, softcap: float, out: Tensor) -> None:
    _decode("paged_attention", _rowwise(query), None, _rowwise(key_cache), _rowwise(value_cache), block_tables, seq_lens, alibi_slopes, out,
            _scale(query, scale), window, softcap)


def mla_decode(q_nope: Tensor, q_pe: Tensor, kv_cache: Tensor, block_tables: Tensor, seq_lens: Tensor, *, scale: float, out: Tensor) -> None:
    keys = _rowwise(kv_cache).unsqueeze(2)
    _decode("mla_decode", _rowwise(q_nope), _rowwise(q_pe), keys, keys[..., :q_nope.shape[2]], block_tables, seq_lens, None, out, scale, 0, 0.0)


def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    """Heads too wide for a tile, and float64 where Triton's tl.dot does not take it."""
    widest = max(specs[0].shape[-1], 0 if "window" not in attrs and "window_left" not in attrs else specs[2].shape[-1])
    if widest > WIDEST:
        return f"heads are {widest} wide; the kernel takes {WIDEST} at most"
    if specs[0].dtype.name == "float64" and not dot_takes_float64():
        return "this Triton's tl.dot does not take float64; 3.6 does"
    return lacks(facts, "float64") if specs[0].dtype.name == "float64" else ""


KERNELS = {"attention_varlen": attention_varlen, "paged_attention": paged_attention, "mla_decode": mla_decode}
WHEN = dict.fromkeys(KERNELS, _when)


# ---- what is compiled ahead of time ----------------------------------------------------------------------------------------
_TYPICAL = Capabilities(model="", total_bytes=0, max_alloc_bytes=0, multiprocessors=128, max_shared_bytes=160 << 10)


def calls(facts: Capabilities = _TYPICAL) -> Iterator[tuple[str, Call]]:
    """Typical calls on a device with these facts, over host tensors that stand in for the device's."""
    from ...hal.tensor import empty
    ends, lengths, table = empty((5,), "int32"), empty((4,), "int32"), empty((4, 128), "int32")
    for dtype in ("bfloat16", "float32"):
        q, k = empty((1024, 32, 128), dtype), empty((1024, 8, 128), dtype)
        slopes = empty((32,), "float32") if dtype == "float32" else None
        yield f"varlen_{q.dtype.short}", _varlen(q, k, k, ends, ends, slopes, q, (512, 512), None, -1, 0, 0.0, facts)
        cache, one = empty((512, 16, 8, 128), dtype), empty((4, 32, 128), dtype)
        call, second = _cache(one, None, cache, cache, table, lengths, slopes, one, 2048, 0.1, 0, 0.0, facts)
        yield f"paged_{q.dtype.short}", call
        if second is not None:
            yield f"paged_combine_{q.dtype.short}", second
    latent, nope, pe = empty((32, 64, 1, 576), "bfloat16"), empty((4, 128, 512), "bfloat16"), empty((4, 128, 64), "bfloat16")
    yield "mla_bf16", _cache(nope, pe, latent, latent[..., :512], table, lengths, None, nope, 1024, 0.1, 0, 0.0, facts)[0]


def matrix(shared_bytes: int = _TYPICAL.max_shared_bytes) -> Iterator[tuple[str, Any, tuple, dict[str, Any], int, int]]:
    """(name, kernel, signature, constants, num_warps, num_stages) of typical calls, for launch.compile_for."""
    for name, call in calls(replace(_TYPICAL, max_shared_bytes=shared_bytes)):
        yield name, call.kernel, call.signature, call.constants, call.num_warps, call.num_stages
