"""Mutants of rotary embeddings, caches, penalties, sampling, attention over caches and experts.

How they are run: mutants.py; the makers: mutate.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .mutate import Row, attr, inputs, no_checks, precise, result, results, tf32

__all__ = ["ROWS"]


def _with(i: int, fn: Callable):
    """Input i replaced by fn(it, all inputs)."""
    return inputs(lambda t: [fn(x, t) if j == i and x is not None else x for j, x in enumerate(t)])


def _clip(i: int, size: Callable):
    """Bad indices are clamped into range instead of refused."""
    return no_checks(lambda t, a: [np.clip(x, 0, max(size(t) - 1, 0)) if j == i else x for j, x in enumerate(t)])


# ---- rotary embeddings ------------------------------------------------------------------------------------------------------
def _backwards(table, t):
    half = table.shape[1] // 2
    return np.concatenate((table[:, :half], -table[:, half:]), axis=1)


def _tail_lost(ys, t, a):
    """What lies past the rotated width comes back as 0."""
    found = []
    for y in ys:
        y = np.array(y)
        heads = y.reshape(*y.shape[: t[0].ndim], -1, a["head_size"])
        heads[..., t[3].shape[1] :] = 0
        found.append(heads.reshape(y.shape))
    return found


# ---- caches -----------------------------------------------------------------------------------------------------------------
def _slots(t, cache: int, lead: int) -> int:
    return int(np.prod(t[cache].shape[:lead]))


def _first_stands(sources: int, index: int):
    """Of two tokens with one slot the first one stands."""

    def fn(t):
        n = len(t[index])
        return [x[:n][::-1] if i < sources or i == index else x for i, x in enumerate(t)]

    return inputs(fn)


def _from_the_end(index: int, cache: int):
    """A negative slot counts from the end of the cache."""
    return _with(index, lambda x, t: np.where(x < 0, np.maximum(x + _slots(t, cache, 2), -1), x).astype(x.dtype))


def _parts_swapped(y, t, a):
    y, width = np.array(y), t[0].shape[1]
    before = np.array(t[2])
    written = (y != before).any(axis=-1)
    y[written] = np.concatenate((y[..., width:], y[..., :width]), axis=-1)[written]
    return y


# ---- penalties and sampling -------------------------------------------------------------------------------------------------
def _presence_a_count(t):
    """The presence penalty is taken as often as the token was used: as more of the frequency penalty."""
    return [t[0], np.zeros_like(t[1]), (t[1].astype(np.float64) + t[2]).astype(t[2].dtype), *t[3:]]


def _heads_in_turn(t):
    heads, shared = t[0].shape[0], t[1].shape[1]
    return [t[0], np.tile(t[1], (1, heads // shared, 1)), *t[2:]]


def _sampled(keep: Callable):
    """The sample drawn from logits of which only those are left that keep(row, k, p) says."""

    def fn(t):
        x = np.array(t[0], np.float64)
        for b in range(x.shape[0]):
            if np.isfinite(x[b].max()):
                x[b] = np.where(
                    keep(x[b], None if t[1] is None else int(t[1][b]), None if t[2] is None else float(t[2][b])), x[b], -np.inf
                )
        return [x.astype(t[0].dtype), None, None]

    return inputs(fn)


def _by_rank(x, k, p):
    """Exactly k tokens, equal ones cut apart, and p taken of all the probability instead of what k left."""
    order = np.argsort(-x, kind="stable")
    kept = np.ones(x.shape, bool)
    if k is not None and 0 < k < len(x):
        kept[order[k:]] = False
    if p is not None and p < 1:
        w = np.exp(x - x.max())
        above = np.cumsum(w[order]) - w[order]
        kept[order[(above >= p * w.sum()) & (np.arange(len(x)) > 0)]] = False
    return kept


def _one_less(x, k, p):
    kept = np.ones(x.shape, bool)
    if k is not None and 1 < k < len(x):
        kept[x < np.sort(x)[len(x) - k + 1]] = False
    return kept


# ---- attention over packed sequences and caches -----------------------------------------------------------------------------
def _from_the_start(op, right):
    """Positions counted from the first token: a causal mask of more keys than queries hides the last keys."""

    def call(t, a):
        y = np.zeros(right(t, a)[0].shape, t[0].dtype)
        for b in range(len(t[3]) - 1):
            at, of = slice(*t[3][b : b + 2]), slice(*t[4][b : b + 2])
            n = min(at.stop - at.start, of.stop - of.start)
            ends = np.array([0, n], t[3].dtype)
            slopes = t[5] if t[5] is None or t[5].ndim == 1 else t[5][b : b + 1]
            q, k, v = t[0][at][:n], t[1][of][:n], t[2][of][:n]
            y[at][:n] = right((q, k, v, ends, ends, slopes), a)[0]
        return (y,)

    return call


def _one_sequence(t):
    """Ends between sequences ignored: all tokens are one."""
    ends = [np.array([x[0], x[-1]], x.dtype) for x in t[3:5]]
    return [*t[:3], *ends, t[5] if t[5] is None or t[5].ndim == 1 else t[5][:1]]


def _tables_in_order(t):
    """Blocks taken as they lie in the cache instead of through the table."""
    at = next(i for i, x in enumerate(t) if x is not None and x.ndim == 2 and x.dtype.kind == "i")
    cache = t[1] if at == 3 and t[1].ndim == 4 else t[2]
    t[at] = np.broadcast_to(np.arange(t[at].shape[1]) % max(cache.shape[0], 1), t[at].shape).astype(t[at].dtype)
    return t


def _heads_of_cache_in_turn(t):
    heads, shared = t[0].shape[1], t[1].shape[2]
    return [t[0], *(np.tile(x, (1, 1, heads // shared, 1)) for x in t[1:3]), *t[3:]]


def _last_block_whole(op, right):
    """Keys past the length, up to the end of the last block, are seen too."""

    def call(t, a):
        per = t[1].shape[1]
        lengths = np.minimum(-(-t[4] // per) * per, t[3].shape[1] * per).astype(t[4].dtype)
        return right((*t[:4], np.where(t[4] > 0, lengths, 0).astype(t[4].dtype), *t[5:]), a)

    return call


# ---- experts ----------------------------------------------------------------------------------------------------------------
def _last_of_equals(ys, t, a):
    """Of equal values the last expert instead of the first."""
    x = t[0].astype(np.float64)
    n = x.shape[1]
    return ys[0], (n - 1 - np.argsort(-x[:, ::-1], axis=1, kind="stable")[:, : a["topk"]]).astype(np.int32), ys[2]


def _biased_weights(ys, t, a):
    """Weights taken from the biased scores."""
    if t[1] is None:
        return ys
    bias = t[1].astype(np.float64)[ys[1]]
    return (ys[0].astype(np.float64) + bias).astype(ys[0].dtype), ys[1]


def _all_groups(op, right):
    """Experts of every group compared."""
    return lambda t, a: right(t, a | {"topk_group": a["num_groups"]})


def _unsorted_blocks(ys, t, a):
    places = np.array(ys[0])
    places[: t[0].size] = np.arange(t[0].size)
    return places, ys[1], ys[2]


def _not_padded(ys, t, a):
    return ys[0], ys[1], np.array([t[0].size], np.int32)


def _first_k(y, t, a):
    return np.ascontiguousarray(t[0][:, :1].sum(axis=1)).astype(y.dtype) if t[0].shape[1] else y


def _group_late(t):
    """Each group begins one row late."""
    ends = t[2]
    return [t[0], t[1], np.concatenate((np.minimum(ends[:-1] + 1, ends[1:]), ends[-1:])).astype(ends.dtype)] if len(ends) else t


def _up_first(w, t):
    half = w.shape[1] // 2
    return np.concatenate((w[:, half:], w[:, :half]), axis=1)


ROWS: tuple[Row, ...] = (
    # ---- rotary embeddings
    ("rotary_embedding", "neighbours paired though halves should be, or the reverse", "value", attr(is_neox=lambda v: not v)),
    ("rotary_embedding", "turns backwards", "value", _with(3, _backwards)),
    ("rotary_embedding", "zeros past the rotated width", "value", results(_tail_lost)),
    ("rotary_embedding", "a position outside is clamped", "bad", _clip(0, lambda t: t[3].shape[0])),
    ("rope_backward", "turns forwards", "value", _with(3, _backwards)),
    ("rope_backward", "neighbours paired though halves should be, or the reverse", "value", attr(is_neox=lambda v: not v)),
    ("mrope", "time turns all frequencies", "value", _with(0, lambda x, t: np.broadcast_to(x[:1], x.shape))),
    ("mrope", "sections in the reverse order", "value", attr(mrope_section=lambda v: v[::-1])),
    # ---- caches
    ("reshape_and_cache", "of two tokens with one slot the first stands", "value", _first_stands(2, 4)),
    ("reshape_and_cache", "a negative slot counts from the end", "value", _from_the_end(4, 2)),
    ("reshape_and_cache", "a slot outside is clamped", "bad", _clip(4, lambda t: _slots(t, 2, 2))),
    ("concat_and_cache_mla", "parts the other way round", "value", result(_parts_swapped)),
    ("concat_and_cache_mla", "of two tokens with one slot the first stands", "value", _first_stands(2, 3)),
    ("destindex_copy_kv", "of two tokens with one slot the first stands", "value", _first_stands(1, 1)),
    ("destindex_copy_kv", "a slot outside is clamped", "bad", _clip(1, lambda t: t[2].shape[0])),
    # ---- penalties and sampling
    ("apply_repetition_penalties", "only tokens of the prompt", "value", _with(2, lambda x, t: np.zeros_like(x))),
    ("apply_repetition_penalties", "negative logits divided too", "value", _with(0, lambda x, t: np.abs(x))),
    ("apply_penalty", "presence taken as often as the token came", "value", inputs(_presence_a_count)),
    ("apply_penalty", "frequency taken once", "value", _with(5, lambda x, t: np.ones_like(x))),
    ("apply_penalty", "a token outside is clamped", "bad", _clip(4, lambda t: t[0].shape[1])),
    ("token_softmax_reducev", "heads share values in turn", "value", inputs(_heads_in_turn)),
    ("token_softmax_reducev", "sequences start at column 0", "value", _with(4, lambda x, t: np.zeros_like(x))),
    ("top_k_top_p_sample", "equal logits cut apart", "value", _sampled(_by_rank)),
    ("top_k_top_p_sample", "one less than k", "value", _sampled(_one_less)),
    ("top_k_top_p_sample", "the seed's high half ignored", "seed", attr(seed=lambda s: s & 0xFFFFFFFF)),
    # ---- attention over packed sequences and caches
    ("attention_varlen", "positions counted from the first token", "value", _from_the_start),
    ("attention_varlen", "tokens of other sequences seen", "value", inputs(_one_sequence)),
    ("attention_varlen", "softcap ignored", "value", attr(softcap=0.0)),
    ("attention_varlen", "window one too wide", "value", attr(window_left=lambda n: n + 1 if n >= 0 else n)),
    ("attention_varlen", "alibi ignored", "value", _with(5, lambda x, t: np.zeros_like(x))),
    ("paged_attention", "blocks taken as they lie", "value", inputs(_tables_in_order)),
    ("paged_attention", "heads share keys in turn", "value", inputs(_heads_of_cache_in_turn)),
    ("paged_attention", "the last block seen whole", "value", _last_block_whole),
    ("paged_attention", "window one too wide", "value", attr(window=lambda n: n + 1 if n else n)),
    ("paged_attention", "a block outside is clamped", "bad", _clip(3, lambda t: t[1].shape[0])),
    ("mla_decode", "blocks taken as they lie", "value", inputs(_tables_in_order)),
    ("mla_decode", "rotary part left out", "value", _with(1, lambda x, t: np.zeros_like(x))),
    ("mla_decode", "scale ignored", "value", attr(scale=1.0)),
    # ---- experts
    ("topk_softmax", "last of equals", "value", results(_last_of_equals)),
    ("topk_softmax", "renormalize ignored", "value", attr(renormalize=False)),
    ("grouped_topk", "bias in the weights", "value", results(_biased_weights)),
    ("grouped_topk", "groups ignored", "value", _all_groups),
    ("moe_align_block_size", "places not sorted", "value", results(_unsorted_blocks)),
    ("moe_align_block_size", "padding not counted", "value", results(_not_padded)),
    ("moe_align_block_size", "an expert outside is clamped", "bad", no_checks(lambda t, a: [np.clip(t[0], 0, a["num_experts"] - 1)])),
    ("moe_sum", "first expert only", "value", result(_first_k)),
    ("moe_sum", "float16 arithmetic", "probe", precise(np.float16)),
    ("grouped_mm", "groups begin a row late", "value", inputs(_group_late)),
    ("grouped_mm", "float32 inputs rounded to tf32", "probe", tf32()),
    ("fused_experts", "up first, gate second", "value", _with(1, _up_first)),
    ("fused_experts", "weights ignored", "value", _with(3, lambda x, t: np.ones_like(x))),
    ("fused_experts", "an expert outside is clamped", "bad", _clip(4, lambda t: t[1].shape[0])),
)
