"""Attention as servers run it: packed sequences, caches in blocks, latent caches.  How: kernels/cpu/attention_serve.c,
kernels/triton/attention_serve.py.

Axes: B sequences, T tokens of all of them, H query heads, G key heads, E width of query and key, V of value, N blocks of P positions.
Not here: attention of equal lengths (attention.py), writing caches (llm.py).
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.errors import IndexOutOfBounds, ShapeError
from .budget import Conditioned
from .index import check_bounds
from .infer import need, need_dtype, need_rank, same_dtype
from .llm import _i, _need_acc, _need_index, _need_shape, _v, check_ends
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op


def _heads(name, query, key, value, lead):
    """(H, G, E, V) of query (lead, H, E), key (..., G, E), value (..., G, V)."""
    for what, t in (("query", query), (f"key{lead}", key), (f"value{lead}", value)):
        need_dtype(name, what, t, FLOATS)
    same_dtype(name, query, key, value)
    (h, e), (g, ke), v = query.shape[-2:], key.shape[-2:], value.shape[-1]
    if ke != e:
        raise ShapeError(f"{name}: query is {query.shape}, key {key.shape}; last axes {e} and {ke} must be equal")
    if value.shape[:-1] != key.shape[:-1]:
        raise ShapeError(f"{name}: key is {key.shape}, value {value.shape}; all axes but the last must be equal")
    if g == 0 or h % g:
        raise ShapeError(f"{name}: query has {h} heads and key {g}; the first must be divisible by the second")
    return h, g, e, v


def _check_slopes(name, slopes, query, sequences):
    if slopes is None:
        return
    _need_acc(name, "alibi_slopes", slopes, query)
    heads = query.shape[-2]
    if slopes.shape not in ((heads,), (sequences, heads)):
        raise ShapeError(f"{name}: alibi_slopes is {slopes.shape}; needs ({heads},) or ({sequences}, {heads})")


def _check_softcap(name, softcap):
    need(softcap >= 0, f"{name}: softcap is {softcap:g}; needs 0 (none) or more")


def _scale(e, scale):
    return scale if scale is not None else 1.0 / np.sqrt(np.float64(e)) if e else 1.0


def _weights(s, seen):
    """Rows of probabilities over the seen keys and their sums' inverse; a row that sees none is 0."""
    with np.errstate(all="ignore"):
        s = np.where(seen, s, -np.inf)
        top = s.max(axis=-1, keepdims=True, initial=-np.inf)
        p = np.exp(s - np.where(np.isneginf(top), 0.0, top))
        total = p.sum(axis=-1, keepdims=True)
        return p, 1.0 / np.where(total == 0, 1.0, total)


def _capped(s, softcap):
    return softcap * np.tanh(s / softcap) if softcap > 0 else s


# ---- packed sequences ------------------------------------------------------------------------------------------------------
def _infer_varlen(query: Spec, key: Spec, value: Spec, cu_seqlens_q: Spec, cu_seqlens_k: Spec, alibi_slopes: Spec | None, *, scale: float | None,
                  is_causal: bool, window_left: int, window_right: int, softcap: float) -> Spec:
    name = "attention_varlen"
    for what, t in (("query", query), ("key", key), ("value", value)):
        need_rank(name, what, t, 3)
    h, _, _, v = _heads(name, query, key, value, "")
    _need_index(name, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    same_dtype(name, cu_seqlens_q, cu_seqlens_k)
    need_rank(name, "cu_seqlens_q", cu_seqlens_q, 1)
    if cu_seqlens_q.shape[0] == 0:
        raise ShapeError(f"{name}: cu_seqlens_q is (0,); needs one end more than sequences")
    _need_shape(name, "cu_seqlens_k", cu_seqlens_k, cu_seqlens_q.shape)
    _check_slopes(name, alibi_slopes, query, cu_seqlens_q.shape[0] - 1)
    _check_softcap(name, softcap)
    return Spec((query.shape[0], h, v), query.dtype)


def _varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, alibi_slopes, *, scale, is_causal, window_left, window_right, softcap):
    name = "attention_varlen"
    check_ends(name, "cu_seqlens_q", cu_seqlens_q, query.shape[0])
    check_ends(name, "cu_seqlens_k", cu_seqlens_k, key.shape[0])
    groups = query.shape[1] // key.shape[1]
    out = np.zeros((*query.shape[:2], value.shape[2]))
    for b in range(len(cu_seqlens_q) - 1):
        at, of = slice(*cu_seqlens_q[b:b + 2]), slice(*cu_seqlens_k[b:b + 2])
        q = query[at].swapaxes(0, 1)  # (H, tokens, width)
        k, v = (np.repeat(t[of], groups, axis=1).swapaxes(0, 1) for t in (key, value))
        ahead = np.arange(k.shape[1]) - (np.arange(q.shape[1]) + k.shape[1] - q.shape[1])[:, None]  # how far key j stands past query i
        seen = np.ones(ahead.shape, bool)
        if is_causal:
            seen &= ahead <= 0
        if window_right >= 0:
            seen &= ahead <= window_right
        if window_left >= 0:
            seen &= ahead >= -window_left
        with np.errstate(all="ignore"):
            s = _capped(np.matmul(q, k.swapaxes(1, 2)) * _scale(q.shape[-1], scale), softcap)
            if alibi_slopes is not None:
                slopes = alibi_slopes if alibi_slopes.ndim == 1 else alibi_slopes[b]
                s = s - slopes[:, None, None] * np.abs(ahead)
            p, inverse = _weights(s, seen)
            out[at] = (np.matmul(p, v) * inverse).swapaxes(0, 1)
    return out


def _varlen_cost(item: int, query: Spec, key: Spec, value: Spec, cu_seqlens_q: Spec, *_: Spec | None, is_causal: bool, **__: Any) -> Cost:
    """For sequences of equal lengths: the ends are data."""
    sequences = max(cu_seqlens_q.shape[0] - 1, 1)
    pairs = query.shape[0] * key.shape[0] * query.shape[1] // sequences // (2 if is_causal else 1)
    result = query.size // max(query.shape[2], 1) * value.shape[2]
    return Cost(flops=pairs * (2 * (query.shape[2] + value.shape[2]) + 5), bytes=(query.size + key.size + value.size + result) * item)


# name, lengths of queries, of keys, (H, G, E, V), attributes, slopes: "" none, "head", "each"
_C = {"is_causal": True}
_VARLEN: tuple[tuple[Any, ...], ...] = (
    ("one", (1,), (1,), (1, 1, 1, 1), {}, ""), ("prime", (7, 0, 3), (5, 4, 13), (3, 3, 8, 8), {}, ""),
    ("causal", (7, 13), (7, 13), (2, 2, 8, 8), _C, ""), ("causal_more_keys", (3, 5), (9, 5), (2, 1, 4, 4), _C, ""),
    ("causal_more_queries", (9, 2), (4, 2), (1, 1, 4, 4), _C, ""), ("gqa", (5, 33), (5, 33), (6, 2, 8, 8), _C, ""),
    ("past_tile", (65, 3), (70, 270), (2, 1, 16, 16), {}, ""), ("causal_past_tile", (130,), (300,), (1, 1, 8, 8), _C, ""),
    ("window", (40, 7), (40, 9), (2, 2, 4, 4), {**_C, "window_left": 5}, ""), ("window_both", (20,), (33,), (2, 1, 4, 4), {"window_left": 3, "window_right": 2}, ""),
    ("window_past_tile", (70,), (600,), (1, 1, 4, 4), {"window_left": 17, "window_right": 0}, ""),
    ("softcap", (9, 5), (9, 7), (2, 2, 8, 8), {"softcap": 1.5, "scale": 0.7}, ""), ("alibi", (9, 5), (11, 5), (4, 2, 8, 8), _C, "head"),
    ("alibi_each", (9, 70), (11, 5), (2, 2, 8, 8), {"softcap": 2.0}, "each"), ("wide_value", (5, 3), (7, 3), (2, 1, 13, 12), {}, ""),
    ("no_keys", (3, 2), (0, 4), (2, 2, 4, 4), {}, ""), ("no_sequences", (), (), (2, 1, 4, 4), {}, ""), ("unused_tail", (3, 2), (2, 2), (2, 1, 4, 4), {}, ""))


def _ends(lengths):
    return tuple(int(n) for n in np.concatenate(([0], np.cumsum(lengths))))


def _varlen_sample(name, queries, keys, dims, attrs, slopes, **more):
    h, g, e, v = dims
    spare = 4 if name == "unused_tail" else 0
    n_q, n_k = sum(queries) + spare, sum(keys) + spare
    kind = "int64" if name == "prime" else "int32"
    shape = {"head": (h,), "each": (len(queries), h)}.get(slopes)
    return Sample(name, (In((n_q, h, e)), In((n_k, g, e)), In((n_k, g, v)), _v(*_ends(queries), dtype=kind), _v(*_ends(keys), dtype=kind),
                         None if shape is None else In(shape, "unit", "acc" if name == "alibi" else None)), attrs, **more)


_VARLEN_SAMPLES = [_varlen_sample(*r) for r in _VARLEN] + [
    _varlen_sample("llama3_prompts", (24, 7, 33), (24, 7, 33), (32, 8, 128, 128), _C, "", model="Llama-3-8B prefill of three short prompts", level="llm"),
    _varlen_sample("llama3_prefill", (384, 128, 512), (384, 128, 512), (32, 8, 128, 128), _C, "", model="Llama-3-8B prefill of three prompts", level="full",
                   bench=("full", "llm"))]


def _varlen_bad(name, error, words, q=(0, 2, 4), k=(0, 3, 5), key=(5, 2, 8), value=(5, 2, 8), slopes=None, **attrs):
    return Bad(name, (In((4, 4, 8)), In(key), In(value), _v(*q), _v(*k), slopes and In(slopes)), error, words, attrs)


op("attention_varlen(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor? alibi_slopes=None, *, float? scale=None, "
   "bool is_causal=false, int window_left=-1, int window_right=-1, float softcap=0.0) -> Tensor", family="attention_serve", dtypes=FLOATS,
   infer=_infer_varlen, reference=_varlen, cost=_varlen_cost, samples=_VARLEN_SAMPLES,
   budget=Conditioned(k=4, terms=lambda query, key, *_, **__: query.shape[2] + key.shape[0], roundings=1),
   doc="Attention of sequences packed one behind the other: query (T, H, E), key (S, G, E), value (S, G, V), H a multiple of G; sequence b has the "
       "queries cu_seqlens_q[b] : cu_seqlens_q[b + 1] and the keys of cu_seqlens_k; result (T, H, V), 0 for rows of no sequence and for queries that see "
       "no key.  Positions are counted from the end, so that the last query stands at the last key; is_causal keeps keys up to the query's position, "
       "window_left and window_right as many before and behind it (-1: all).  Scores are query key^T * scale (1 / sqrt(E)), then softcap * tanh(scores / "
       "softcap) where softcap is above 0, less alibi_slopes ((H,) or (B, H)) times the distance.  Ends out of order or past the tokens are an "
       "IndexOutOfBounds.",
   names={"flash_attn": ("flash_attn_varlen_func",), "paddle": ("flash_attn_unpadded",)},
   bad=(_varlen_bad("end_past", IndexOutOfBounds, ("cu_seqlens_q 7", "position 2", "4"), q=(0, 2, 7)),
        _varlen_bad("end_backwards", IndexOutOfBounds, ("cu_seqlens_k 1", "position 2", "3"), k=(0, 3, 1)),
        _varlen_bad("sequences", ShapeError, ("cu_seqlens_k", "(2,)", "(3,)"), k=(0, 3)),
        _varlen_bad("heads", ShapeError, ("4 heads", "3", "divisible"), key=(5, 3, 8), value=(5, 3, 8)),
        _varlen_bad("widths", ShapeError, ("8 and 6", "equal"), key=(5, 2, 6)),
        _varlen_bad("slopes", ShapeError, ("alibi_slopes", "(3,)", "(2, 4)"), slopes=(3,))))


# ---- caches in blocks ------------------------------------------------------------------------------------------------------
def _check_tables(name, query, cache, block_tables, seq_lens):
    _need_index(name, block_tables=block_tables, seq_lens=seq_lens)
    same_dtype(name, block_tables, seq_lens)
    need_rank(name, "block_tables", block_tables, 2)
    if block_tables.shape[0] != query.shape[0]:
        raise ShapeError(f"{name}: block_tables is {block_tables.shape} for {query.shape[0]} sequences; needs a row each")
    _need_shape(name, "seq_lens", seq_lens, query.shape[:1])
    if cache.shape[1] == 0:
        raise ShapeError(f"{name}: the cache is {cache.shape}; its blocks need a position or more")


def _positions(name, cache, block_tables, seq_lens):
    """Of every sequence the (block, position) index arrays of its keys."""
    per = cache.shape[1]
    check_bounds(name, "seq_lens", seq_lens, block_tables.shape[1] * per + 1)
    found = []
    for row, n in zip(block_tables, seq_lens):
        at = np.arange(n)
        check_bounds(name, "block", row[:-(-int(n) // per)], cache.shape[0])
        found.append((row[at // per], at % per))
    return found


def _infer_paged(query: Spec, key_cache: Spec, value_cache: Spec, block_tables: Spec, seq_lens: Spec, alibi_slopes: Spec | None, *, scale: float | None,
                 window: int, softcap: float) -> Spec:
    name = "paged_attention"
    need_rank(name, "query", query, 3)
    for what, t in (("key_cache", key_cache), ("value_cache", value_cache)):
        need_rank(name, what, t, 4)
    h, _, _, v = _heads(name, query, key_cache, value_cache, "_cache")
    _check_tables(name, query, key_cache, block_tables, seq_lens)
    _check_slopes(name, alibi_slopes, query, query.shape[0])
    _check_softcap(name, softcap)
    need(window >= 0, f"{name}: window is {window}; needs 0 (all keys) or more")
    return Spec((query.shape[0], h, v), query.dtype)


def _paged(query, key_cache, value_cache, block_tables, seq_lens, alibi_slopes, *, scale, window, softcap):
    groups = query.shape[1] // key_cache.shape[2]
    out = np.zeros((*query.shape[:2], value_cache.shape[3]))
    for b, at in enumerate(_positions("paged_attention", key_cache, block_tables, seq_lens)):
        k, v = (np.repeat(t[at], groups, axis=1) for t in (key_cache, value_cache))  # (keys, H, width)
        behind = len(k) - 1 - np.arange(len(k))
        with np.errstate(all="ignore"):
            s = _capped(np.einsum("he,khe->hk", query[b], k) * _scale(query.shape[2], scale), softcap)
            if alibi_slopes is not None:
                s = s - (alibi_slopes if alibi_slopes.ndim == 1 else alibi_slopes[b])[:, None] * behind
            p, inverse = _weights(s, behind < window if window else np.ones(len(k), bool))
            out[b] = np.einsum("hk,khv->hv", p, v) * inverse
    return out


def _keys(block_tables: Spec, cache: Spec) -> int:
    return block_tables.shape[1] * cache.shape[1]


def _paged_cost(item: int, query: Spec, key_cache: Spec, value_cache: Spec, block_tables: Spec, *_: Spec | None, **__: Any) -> Cost:
    """For sequences that fill their rows of blocks: the lengths are data."""
    keys = query.shape[0] * _keys(block_tables, key_cache)
    (h, e), (g, v) = query.shape[1:], value_cache.shape[2:]
    return Cost(flops=keys * h * (2 * (e + v) + 5), bytes=(keys * g * (e + v) + query.size + query.shape[0] * h * v) * item)


# name, (H, G, E, V), blocks, positions of each, most blocks of a sequence, lengths, attributes, slopes
_PAGED: tuple[tuple[Any, ...], ...] = (
    ("one", (1, 1, 1, 1), 1, 1, 1, (1,), {}, ""), ("prime", (3, 3, 8, 8), 7, 5, 3, (13, 1, 15), {}, ""), ("gqa", (8, 2, 16, 16), 9, 4, 6, (21, 8), {}, ""),
    ("multi_query", (20, 1, 8, 8), 9, 4, 6, (21, 8), {"scale": 0.5}, ""), ("empty_sequence", (2, 1, 4, 4), 3, 2, 2, (3, 0, 4), {}, ""),
    ("no_sequences", (2, 1, 4, 4), 3, 2, 2, (), {}, ""), ("window", (2, 2, 8, 8), 9, 4, 8, (30, 3), {"window": 7}, ""),
    ("window_past_split", (1, 1, 4, 4), 20, 16, 70, (1100, 5), {"window": 570}, ""), ("softcap", (2, 1, 8, 8), 9, 4, 6, (21, 8), {"softcap": 1.5}, ""),
    ("alibi", (4, 2, 8, 8), 9, 4, 6, (21, 8), {}, "head"), ("alibi_each", (4, 2, 8, 8), 9, 4, 6, (21, 8), {"softcap": 2.0}, "each"),
    ("past_split", (2, 1, 8, 8), 40, 16, 36, (531, 560), {}, ""), ("wide_value", (2, 1, 13, 12), 9, 3, 4, (10, 12), {}, ""))


def _paged_inputs(name, dims, blocks, per, most, lengths, attrs, slopes):
    h, g, e, v = dims
    kind, n = "int64" if name == "prime" else "int32", len(lengths)
    shape = {"head": (h,), "each": (n, h)}.get(slopes)
    return (In((n, h, e)), In((blocks, per, g, e)), In((blocks, per, g, v)), _i((n, most), blocks, kind), _v(*lengths, dtype=kind),
            None if shape is None else In(shape, "unit", "acc" if name == "alibi" else None))


_LLAMA_DECODE: tuple[Any, ...] = ("llama3_decode", (32, 8, 128, 128), 512, 16, 128, (2048, 1024, 1536, 2048), {}, "")
_LLAMA_SHORT: tuple[Any, ...] = ("llama3_short", (32, 8, 128, 128), 32, 16, 16, (256, 100), {}, "")
_PAGED_SAMPLES = [Sample(r[0], _paged_inputs(*r), r[6]) for r in _PAGED] + [
    Sample("llama3_short", _paged_inputs(*_LLAMA_SHORT), {}, "Llama-3-8B decode, 2 sequences of up to 256 tokens", "llm"),
    Sample("llama3_decode", _paged_inputs(*_LLAMA_DECODE), {}, "Llama-3-8B decode, 4 sequences of up to 2048 tokens", "full", ("full", "llm"))]


def _paged_bad(name, error, words, table=(0, 1, 2, 3), lengths=(3, 4), key=(5, 2, 2, 8), value=None, shape=(2, 2), **attrs):
    return Bad(name, (In((2, 4, 8)), In(key), In(value or key), In(shape, dtype="int64", values=table), _v(*lengths), None), error, words, attrs)


op("paged_attention(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_tables, Tensor seq_lens, Tensor? alibi_slopes=None, *, float? "
   "scale=None, int window=0, float softcap=0.0) -> Tensor", family="attention_serve", dtypes=FLOATS, infer=_infer_paged, reference=_paged, cost=_paged_cost,
   budget=Conditioned(k=4, terms=lambda query, cache, _, tables, *__, **___: query.shape[2] + _keys(tables, cache), roundings=1), samples=_PAGED_SAMPLES,
   doc="Attention of one query a sequence, its last token, over a cache in blocks: query (B, H, E), key_cache (N, P, G, E), value_cache (N, P, G, V), "
       "block_tables (B, blocks) and seq_lens (B,): key j of sequence b lies in block block_tables[b, j // P] at j % P; result (B, H, V), 0 for an empty "
       "sequence.  window: only the last so many keys (0: all); scale, softcap and alibi_slopes as in attention_varlen.  A length or a used block that is "
       "not there is an IndexOutOfBounds.",
   names={"vllm": ("paged_attention_v1", "paged_attention_v2"), "flash_attn": ("flash_attn_with_kvcache",)},
   bad=(_paged_bad("block_77_of_5", IndexOutOfBounds, ("77", "position 1", "5"), table=(0, 1, 2, 77)),
        _paged_bad("length_5_of_4", IndexOutOfBounds, ("seq_lens 5", "position 0", "5"), lengths=(5, 4)),
        _paged_bad("length_negative", IndexOutOfBounds, ("-1", "position 1"), lengths=(3, -1)),
        _paged_bad("heads", ShapeError, ("4 heads", "3", "divisible"), key=(5, 2, 3, 8)),
        _paged_bad("value_cache", ShapeError, ("(5, 2, 2, 8)", "(5, 3, 2, 8)"), value=(5, 3, 2, 8)),
        _paged_bad("tables", ShapeError, ("block_tables", "(1, 4)", "2 sequences"), shape=(1, 4))))


# ---- latent caches ---------------------------------------------------------------------------------------------------------
def _infer_mla(q_nope: Spec, q_pe: Spec, kv_cache: Spec, block_tables: Spec, seq_lens: Spec, *, scale: float) -> Spec:
    name = "mla_decode"
    for what, t in (("q_nope", q_nope), ("q_pe", q_pe), ("kv_cache", kv_cache)):
        need_dtype(name, what, t, FLOATS)
        need_rank(name, what, t, 3)
    same_dtype(name, q_nope, q_pe, kv_cache)
    if q_nope.shape[:2] != q_pe.shape[:2]:
        raise ShapeError(f"{name}: q_nope is {q_nope.shape} and q_pe {q_pe.shape}; sequences and heads must be equal")
    if kv_cache.shape[2] != q_nope.shape[2] + q_pe.shape[2]:
        raise ShapeError(f"{name}: kv_cache is {kv_cache.shape}; needs rows of {q_nope.shape[2]} + {q_pe.shape[2]}, the widths of q_nope and q_pe")
    _check_tables(name, q_nope, kv_cache, block_tables, seq_lens)
    return q_nope


def _mla(q_nope, q_pe, kv_cache, block_tables, seq_lens, *, scale):
    query, width = np.concatenate((q_nope, q_pe), axis=2), q_nope.shape[2]
    out = np.zeros(q_nope.shape)
    for b, at in enumerate(_positions("mla_decode", kv_cache, block_tables, seq_lens)):
        k = kv_cache[at]
        with np.errstate(all="ignore"):
            p, inverse = _weights(np.matmul(query[b], k.T) * scale, np.ones(len(k), bool))
            out[b] = np.matmul(p, k[:, :width]) * inverse
    return out


def _mla_cost(item: int, q_nope: Spec, q_pe: Spec, kv_cache: Spec, block_tables: Spec, *_: Spec, **__: Any) -> Cost:
    keys = q_nope.shape[0] * _keys(block_tables, kv_cache)
    return Cost(flops=keys * q_nope.shape[1] * (2 * (2 * q_nope.shape[2] + q_pe.shape[2]) + 5),
                bytes=(keys * kv_cache.shape[2] + 2 * q_nope.size + q_pe.size) * item)


# name, H, latent width, rotary width, blocks, positions, most blocks, lengths
_MLAS: tuple[tuple[Any, ...], ...] = (
    ("one", 1, 1, 1, 1, 1, 1, (1,)), ("prime", 3, 13, 7, 7, 5, 3, (13, 1, 15)), ("many_heads", 33, 16, 8, 9, 4, 6, (21, 8)),
    ("empty_sequence", 2, 4, 4, 3, 2, 2, (3, 0, 4)), ("no_sequences", 2, 4, 2, 3, 2, 2, ()), ("past_split", 2, 20, 6, 40, 16, 36, (531, 560)),
    ("no_rotary", 2, 8, 0, 4, 4, 2, (7, 8)))


def _mla_sample(name, h, r, p, blocks, per, most, lengths, **more):
    kind, n = "int64" if name == "prime" else "int32", len(lengths)
    return Sample(name, (In((n, h, r)), In((n, h, p)), In((blocks, per, r + p)), _i((n, most), blocks, kind), _v(*lengths, dtype=kind)),
                  {"scale": (r + p) ** -0.5}, **more)


_MLA_SAMPLES = [_mla_sample(*r) for r in _MLAS] + [
    _mla_sample("deepseek_v3_short", 16, 512, 64, 8, 64, 4, (250, 129), model="DeepSeek-V3 decode, an eighth of its heads", level="llm"),
    _mla_sample("deepseek_v3", 128, 512, 64, 32, 64, 16, (1024, 777), model="DeepSeek-V3 decode, 2 sequences", level="full", bench=("full", "llm"))]


def _mla_bad(name, error, words, table=(0, 1, 2, 3), lengths=(3, 4), q_pe=(2, 4, 3), cache=(5, 2, 11)):
    return Bad(name, (In((2, 4, 8)), In(q_pe), In(cache), In((2, 2), dtype="int64", values=table), _v(*lengths)), error, words, {"scale": 0.3})


op("mla_decode(Tensor q_nope, Tensor q_pe, Tensor kv_cache, Tensor block_tables, Tensor seq_lens, *, float scale) -> Tensor", family="attention_serve",
   dtypes=FLOATS, infer=_infer_mla, reference=_mla, cost=_mla_cost, samples=_MLA_SAMPLES,
   budget=Conditioned(k=4, terms=lambda q, pe, cache, tables, *_, **__: cache.shape[2] + _keys(tables, cache), roundings=1),
   doc="Multi-head latent attention of one query a sequence (DeepSeek-V2, 2024, after absorption): q_nope (B, H, R) and q_pe (B, H, P) meet rows of "
       "kv_cache (N, positions, R + P), whose first R elements are the values too; result (B, H, R).  block_tables and seq_lens as in paged_attention; "
       "scale is the model's, 1 / sqrt of the width before absorption.",
   names={"vllm": ("cutlass_mla_decode",), "flash_mla": ("flash_mla_with_kvcache",)},
   bad=(_mla_bad("block_77_of_5", IndexOutOfBounds, ("77", "position 1", "5"), table=(0, 1, 2, 77)),
        _mla_bad("length_5_of_4", IndexOutOfBounds, ("seq_lens 5", "position 0", "5"), lengths=(5, 4)),
        _mla_bad("cache_width", ShapeError, ("kv_cache", "(5, 2, 12)", "8 + 3"), cache=(5, 2, 12)),
        _mla_bad("heads", ShapeError, ("(2, 4, 8)", "(2, 5, 3)"), q_pe=(2, 5, 3))))
