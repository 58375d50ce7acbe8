"""Mixtures of experts: choosing experts, sorting tokens by expert, products by group, the whole layer.

How they are computed: kernels/cpu/moe.c, kernels/triton/moe.py.
Axes: T tokens, X experts, K experts of a token, D width of the model, I width of an expert.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, IndexOutOfBounds, ShapeError
from .budget import Conditioned, Exact, Reduction
from .index import check_bounds
from .infer import accumulator, need, need_dtype, need_rank, same_dtype
from .llm import _i, _need_acc, _need_index, _need_shape, _v, check_ends
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op

_I32, _I64 = BY_NAME["int32"], BY_NAME["int64"]


# ---- choosing experts ------------------------------------------------------------------------------------------------------
def _infer_topk(gating: Spec, *, topk: int, renormalize: bool) -> tuple[Spec, Spec, Spec]:
    name = "topk_softmax"
    need_dtype(name, "gating", gating, FLOATS)
    need_rank(name, "gating", gating, 2)
    need(1 <= topk <= gating.shape[1], f"{name}: topk is {topk} of {gating.shape[1]} experts; needs 1 to as many as there are")
    shape = (gating.shape[0], topk)
    return Spec(shape, accumulator(gating.dtype)), Spec(shape, _I32), Spec(shape, _I32)


def _best(x, k):
    """The k largest of each row, largest first, of equals the first."""
    return np.argsort(-np.asarray(x), axis=1, kind="stable")[:, :k]


def _softmax(x):
    with np.errstate(all="ignore"):
        e = np.exp(x - x.max(axis=1, keepdims=True, initial=-np.inf))
        return e / e.sum(axis=1, keepdims=True)


def _topk(gating, *, topk, renormalize):
    at = _best(gating, topk)
    w = np.take_along_axis(_softmax(gating), at, 1)
    if renormalize:
        w = w / w.sum(axis=1, keepdims=True)
    tokens = gating.shape[0]
    return w, at.astype(np.int32), (np.arange(topk) * tokens + np.arange(tokens)[:, None]).astype(np.int32)


def _infer_grouped(gating: Spec, bias: Spec | None, *, topk: int, num_groups: int, topk_group: int, scoring: str, renormalize: bool,
                   routed_scaling_factor: float) -> tuple[Spec, Spec]:
    name = "grouped_topk"
    need_dtype(name, "gating", gating, FLOATS)
    need_rank(name, "gating", gating, 2)
    experts = gating.shape[1]
    if bias is not None:
        _need_acc(name, "bias", bias, gating)
        _need_shape(name, "bias", bias, (experts,))
    need(num_groups >= 1 and experts % num_groups == 0 and experts > 0, f"{name}: num_groups is {num_groups} for {experts} experts; needs a divisor")
    need(1 <= topk_group <= num_groups, f"{name}: topk_group is {topk_group} of {num_groups} groups; needs 1 to as many as there are")
    most = experts // num_groups * topk_group
    need(1 <= topk <= most, f"{name}: topk is {topk} and {topk_group} groups hold {most} experts; needs 1 to as many as that")
    shape = (gating.shape[0], topk)
    return Spec(shape, accumulator(gating.dtype)), Spec(shape, _I32)


def _grouped(gating, bias, *, topk, num_groups, topk_group, scoring, renormalize, routed_scaling_factor):
    with np.errstate(all="ignore"):
        scores = _softmax(gating) if scoring == "softmax" else 1.0 / (1.0 + np.exp(-gating))
    choice = np.asarray(scores if bias is None else scores + bias)
    groups = choice.reshape(len(choice), num_groups, choice.shape[1] // num_groups)
    ordered = -np.sort(-groups, axis=2)
    value = ordered[..., 0] if bias is None else ordered[..., :2].sum(axis=2)
    keep = np.zeros(value.shape, bool)
    np.put_along_axis(keep, _best(value, topk_group), True, 1)
    at = _best(np.where(np.repeat(keep, groups.shape[2], axis=1), choice, -np.inf), topk)
    w = np.take_along_axis(scores, at, 1)
    if renormalize:
        w = w / w.sum(axis=1, keepdims=True)
    return w * routed_scaling_factor, at.astype(np.int32)


def _gating_cost(item: int, gating: Spec, *_: Any, topk: int, **__: Any) -> Cost:
    return Cost(flops=5 * gating.size, bytes=gating.size * item + gating.shape[0] * topk * 12)


_TOPK_SHAPES = (("one", 1, 1, 1), ("prime", 7, 13, 3), ("all", 3, 8, 8), ("past_tile", 5, 129, 4), ("many_tokens", 257, 8, 2), ("no_tokens", 0, 8, 2))
_TOPK_SAMPLES = [Sample(n, (In((t, x)),), {"topk": k, "renormalize": n in ("prime", "many_tokens")}) for n, t, x, k in _TOPK_SHAPES] + [
    Sample("ties", (In((9, 16), "int"),), {"topk": 5}),
    Sample("mixtral", (In((128, 8)),), {"topk": 2, "renormalize": True}, "Mixtral-8x7B routing, 128 tokens", "llm", ("full", "llm"))]
# name, tokens, experts, topk, groups, groups kept, bias, scoring
_GROUPED: tuple[tuple[Any, ...], ...] = (
    ("one", 1, 1, 1, 1, 1, True, "sigmoid"), ("prime", 7, 15, 4, 5, 3, True, "sigmoid"), ("softmax", 7, 16, 3, 4, 2, False, "softmax"),
    ("softmax_bias", 5, 12, 2, 3, 1, True, "softmax"), ("no_bias", 9, 32, 6, 8, 4, False, "sigmoid"), ("single_groups", 5, 6, 3, 6, 4, True, "sigmoid"),
    ("past_tile", 3, 132, 8, 11, 5, True, "sigmoid"), ("many_tokens", 130, 8, 2, 4, 2, True, "sigmoid"), ("no_tokens", 0, 8, 2, 2, 1, True, "sigmoid"))


def _grouped_sample(name, tokens, experts, topk, groups, kept, bias, scoring, **more):
    # distinct values well inside the sigmoid's straight part: equal scores of unequal inputs would leave the choice to rounding
    return Sample(name, (In((tokens, experts), "positive"), In((experts,), "unit", "acc" if name == "prime" else None) if bias else None),
                  {"topk": topk, "num_groups": groups, "topk_group": kept, "scoring": scoring, "renormalize": name != "no_bias",
                   "routed_scaling_factor": 2.5 if name in ("prime", "deepseek_v3") else 1.0}, **more)


_GROUPED_SAMPLES = [_grouped_sample(*r) for r in _GROUPED] + [
    _grouped_sample("deepseek_v3", 128, 256, 8, 8, 4, True, "sigmoid", model="DeepSeek-V3 routing, 128 tokens", level="llm", bench=("full", "llm"))]

op("topk_softmax(Tensor gating, int topk, bool renormalize=false) -> (Tensor weights, Tensor indices, Tensor token_expert_indices)", family="moe",
   dtypes=FLOATS, infer=_infer_topk, reference=_topk, budget=Conditioned(k=4, terms=lambda gating, **_: gating.shape[1]), cost=_gating_cost,
   samples=_TOPK_SAMPLES,
   doc="The topk experts of each row of gating (T, X), largest first, of equals the first: their softmax probabilities (T, topk; float32 for float16 "
       "and bfloat16), divided by their sum with renormalize, their int32 indices, and int32 k * T + t at (t, k).",
   names={"vllm": ("topk_softmax",)},
   bad=(Bad("topk", (In((3, 4)),), ArgumentError, ("topk is 5", "4 experts"), {"topk": 5}), Bad("none", (In((3, 4)),), ArgumentError, ("topk is 0",), {"topk": 0}),
        Bad("vector", (In((4,)),), ShapeError, ("gating", "(4,)", "2 axes"), {"topk": 1})))

op("grouped_topk(Tensor gating, Tensor? bias=None, *, int topk, int num_groups, int topk_group, {softmax|sigmoid} scoring=softmax, bool renormalize=true, "
   "float routed_scaling_factor=1.0) -> (Tensor weights, Tensor indices)", family="moe", dtypes=FLOATS, infer=_infer_grouped, reference=_grouped,
   budget=Conditioned(k=4, terms=lambda gating, *_, **__: gating.shape[1]), cost=_gating_cost, samples=_GROUPED_SAMPLES,
   doc="The topk experts of each row of gating (T, X) among the topk_group best of num_groups equal groups (DeepSeek-V3, 2024): scores are softmax or "
       "sigmoid of gating; what is compared is the score plus bias (X,), a group counts as its best expert, or its two best together where bias is given; "
       "of equals the first.  Weights (T, topk; float32 for float16 and bfloat16) are the scores without bias, divided by their sum with renormalize, "
       "times routed_scaling_factor; indices are int32.",
   names={"vllm": ("grouped_topk",)},
   bad=(Bad("groups", (In((3, 8)), None), ArgumentError, ("num_groups is 3", "8 experts"), {"topk": 2, "num_groups": 3, "topk_group": 1}),
        Bad("too_few", (In((3, 8)), None), ArgumentError, ("topk is 5", "hold 4"), {"topk": 5, "num_groups": 4, "topk_group": 2}),
        Bad("kept", (In((3, 8)), None), ArgumentError, ("topk_group is 5", "4 groups"), {"topk": 2, "num_groups": 4, "topk_group": 5}),
        Bad("bias", (In((3, 8)), In((4,))), ShapeError, ("bias", "(4,)", "(8,)"), {"topk": 2, "num_groups": 4, "topk_group": 2})))


# ---- tokens by expert ------------------------------------------------------------------------------------------------------
def _infer_align(topk_ids: Spec, *, num_experts: int, block_size: int) -> tuple[Spec, Spec, Spec]:
    name = "moe_align_block_size"
    _need_index(name, topk_ids=topk_ids)
    need(num_experts >= 1, f"{name}: num_experts is {num_experts}; needs 1 or more")
    need(block_size >= 1, f"{name}: block_size is {block_size}; needs 1 or more")
    most = topk_ids.size + num_experts * (block_size - 1)
    return Spec((most,), _I32), Spec((-(-most // block_size),), _I32), Spec((1,), _I32)


def _align(topk_ids, *, num_experts, block_size):
    check_bounds("moe_align_block_size", "expert", topk_ids, num_experts)
    flat = topk_ids.reshape(-1)
    most = flat.size + num_experts * (block_size - 1)
    places, experts, at = np.full(most, flat.size, np.int32), np.full(-(-most // block_size), -1, np.int32), 0
    for x in range(num_experts):
        own = np.flatnonzero(flat == x)
        blocks = -(-own.size // block_size)
        places[at:at + own.size] = own
        experts[at // block_size:at // block_size + blocks] = x
        at += blocks * block_size
    return places, experts, np.array([at], np.int32)


def _align_cost(item: int, topk_ids: Spec, *, num_experts: int, block_size: int) -> Cost:
    return Cost(flops=0, bytes=topk_ids.size * (item + 4) + 4 * num_experts * block_size)


_ALIGNS = (("one", (1, 1), 1, 1), ("prime", (7, 3), 5, 4), ("one_expert", (33, 2), 1, 16), ("many_experts", (9, 2), 70, 8), ("past_tile", (130, 8), 9, 16),
           ("no_tokens", (0, 2), 3, 4), ("block_of_one", (11, 2), 4, 1), ("long", (1100, 2), 6, 64))
_ALIGN_SAMPLES = [Sample(n, (_i(s, x, "int64" if n == "long" else "int32"),), {"num_experts": x, "block_size": b}) for n, s, x, b in _ALIGNS] + [
    Sample("either_dtype", (In((9, 2), values=tuple(i * i % 5 for i in range(18))),), {"num_experts": 5, "block_size": 4}),
    Sample("deepseek_v3", (_i((128, 8), 256, "int32"),), {"num_experts": 256, "block_size": 64}, "DeepSeek-V3 routing, 128 tokens", "llm", ("full", "llm"))]

op("moe_align_block_size(Tensor topk_ids, int num_experts, int block_size) -> (Tensor sorted_token_ids, Tensor expert_ids, Tensor "
   "num_tokens_post_padded)", family="moe", dtypes=(_I32, _I64), infer=_infer_align, reference=_align, budget=Exact(), cost=_align_cost, samples=_ALIGN_SAMPLES,
   doc="Positions of topk_ids (T, K), counted in row-major order, sorted by expert and then by position, each expert's filled up to a multiple of "
       "block_size with the number of elements: sorted_token_ids (elements + num_experts * (block_size - 1),).  expert_ids: the expert of each block, -1 "
       "past the last; num_tokens_post_padded (1,): the places in use.  All int32.  An id outside 0 <= id < num_experts is an IndexOutOfBounds.",
   names={"vllm": ("moe_align_block_size",)},
   bad=(Bad("expert_77_of_5", (In((2, 2), dtype="int32", values=(0, 1, 77, 4)),), IndexOutOfBounds, ("77", "position 2", "5"),
            {"num_experts": 5, "block_size": 4}, dtype="int32"),
        Bad("expert_negative", (In((2, 2), dtype="int32", values=(0, -1, 3, 4)),), IndexOutOfBounds, ("-1", "position 1", "5"),
            {"num_experts": 5, "block_size": 4}, dtype="int32"),
        Bad("block_size", (_i((2, 2), 5, "int32"),), ArgumentError, ("block_size is 0",), {"num_experts": 5, "block_size": 0}, dtype="int32")))


# ---- sums and products -----------------------------------------------------------------------------------------------------
def _infer_sum(x: Spec) -> Spec:
    need_dtype("moe_sum", "x", x, FLOATS)
    need_rank("moe_sum", "x", x, 3)
    return Spec((x.shape[0], x.shape[2]), x.dtype)


def _sum_grad(o, dy, inputs, y, attrs):
    x = inputs[0]
    return (o.copy(dy.reshape((x.shape[0], 1, x.shape[2])).expand(x.shape)),)


op("moe_sum(Tensor x) -> Tensor", family="moe", dtypes=FLOATS, infer=_infer_sum, reference=lambda x: x.sum(axis=1),
   budget=Reduction(terms=lambda x: x.shape[1]), cost=lambda item, x: Cost(flops=x.size, bytes=(x.size + x.shape[0] * x.shape[2]) * item), grad=_sum_grad,
   doc="The sum of the K results of each token: x (T, K, D), result (T, D), added in float32 for float16 and bfloat16.",
   samples=[Sample(n, (In(s),)) for n, s in (("one", (1, 1, 1)), ("prime", (7, 3, 13)), ("past_tile", (2, 2, 1025)), ("many", (33, 8, 33)), ("none", (3, 0, 5)),
                                             ("no_tokens", (0, 2, 5)), ("long", (2, 67, 9)))] + [
       Sample("mixtral", (In((288, 2, 4096)),), {}, "Mixtral-8x7B, 288 tokens", "llm", ("full", "llm"))],
   names={"vllm": ("moe_sum",)},
   bad=(Bad("matrix", (In((3, 4)),), ShapeError, ("x", "(3, 4)", "3 axes")),))


def _infer_grouped_mm(a: Spec, b: Spec, offs: Spec) -> Spec:
    name = "grouped_mm"
    need_dtype(name, "a", a, FLOATS)
    same_dtype(name, a, b)
    need_rank(name, "a", a, 2)
    need_rank(name, "b", b, 3)
    _need_index(name, offs=offs)
    _need_shape(name, "offs", offs, b.shape[:1])
    if a.shape[1] != b.shape[1]:
        raise ShapeError(f"{name}: a is {a.shape} and b {b.shape}; a's last axis ({a.shape[1]}) must equal b's second ({b.shape[1]})")
    return Spec((a.shape[0], b.shape[2]), a.dtype)


def _grouped_mm(a, b, offs):
    check_ends("grouped_mm", "offs", offs, a.shape[0])
    out = np.zeros((a.shape[0], b.shape[2]))
    for g, end in enumerate(offs):
        at = slice(offs[g - 1] if g else 0, end)
        out[at] = np.matmul(a[at], b[g])
    return out


def _grouped_mm_cost(item: int, a: Spec, b: Spec, *_: Spec, **__: Any) -> Cost:
    return Cost(flops=2 * a.size * b.shape[2], bytes=(a.size + b.size + a.shape[0] * b.shape[2]) * item)


# name, K, N, ends, spare rows
_GROUPED_MMS = (("one", 1, 1, (1,), 0), ("prime", 13, 7, (3, 3, 11), 0), ("past_tile", 33, 70, (65, 67, 132), 0), ("spare_rows", 8, 9, (2, 5), 4),
                ("no_terms", 0, 5, (2, 3), 0), ("no_rows", 4, 5, (0, 0), 0), ("no_groups", 4, 5, (), 3), ("long", 300, 5, (1, 4, 4, 9), 0))
_GROUPED_MM_SAMPLES = [Sample(n, (In(((ends[-1] if ends else 0) + spare, k)), In((len(ends), k, c)), _v(*ends, dtype="int64" if n == "prime" else "int32")))
                       for n, k, c, ends, spare in _GROUPED_MMS] + [
    Sample("mixtral_short", (In((64, 256)), In((8, 256, 448)), _v(8, 15, 20, 31, 40, 47, 60, 64, dtype="int32")), {},
           "Mixtral-8x7B gate projection at a sixteenth of its widths, 64 rows", "llm"),
    Sample("mixtral", (In((256, 1024)), In((8, 1024, 1792)), _v(30, 61, 97, 128, 160, 190, 230, 256, dtype="int32")), {},
           "Mixtral-8x7B gate projection at a quarter of its widths, 256 rows", "full", ("full", "llm"))]


def _grouped_mm_bad(name, error, words, ends=(1, 2, 4), b=(3, 5, 2)):
    return Bad(name, (In((4, 5)), In(b), _v(*ends)), error, words)


op("grouped_mm(Tensor a, Tensor b, Tensor offs) -> Tensor", family="moe", dtypes=FLOATS, infer=_infer_grouped_mm, reference=_grouped_mm,
   budget=Reduction(terms=lambda a, *_: a.shape[1]), cost=_grouped_mm_cost, samples=_GROUPED_MM_SAMPLES,
   doc="Products by groups of rows: a (T, K), b (G, K, N), result (T, N); group g has the rows offs[g - 1] : offs[g] (from 0 on) and the matrix b[g]; rows "
       "past the last are 0.  Ends out of order or past the rows are an IndexOutOfBounds.  The case of aten's _grouped_mm in which a has two axes and b three.",
   names={"torch": ("_grouped_mm",)},
   bad=(_grouped_mm_bad("end_past", IndexOutOfBounds, ("offs 7", "position 2", "4"), ends=(1, 2, 7)),
        _grouped_mm_bad("end_backwards", IndexOutOfBounds, ("offs 1", "position 1", "3"), ends=(3, 1, 4)),
        _grouped_mm_bad("ends", ShapeError, ("offs", "(2,)", "(3,)"), ends=(1, 2)),
        _grouped_mm_bad("inner", ShapeError, ("(4, 5)", "(3, 6, 2)"), b=(3, 6, 2))))


# ---- the layer -------------------------------------------------------------------------------------------------------------
def _infer_experts(x: Spec, w1: Spec, w2: Spec, topk_weights: Spec, topk_ids: Spec) -> Spec:
    name = "fused_experts"
    need_dtype(name, "x", x, FLOATS)
    same_dtype(name, x, w1, w2)
    need_rank(name, "x", x, 2)
    for what, t in (("w1", w1), ("w2", w2)):
        need_rank(name, what, t, 3)
    (experts, two, d), (_, out, inner) = w1.shape, w2.shape
    if d != x.shape[1] or out != d or two != 2 * inner or w2.shape[0] != experts:
        raise ShapeError(f"{name}: x is {x.shape}, w1 {w1.shape}, w2 {w2.shape}; needs (tokens, D), (experts, 2 I, D) and (experts, D, I)")
    _need_index(name, topk_ids=topk_ids)
    need_rank(name, "topk_ids", topk_ids, 2)
    if topk_ids.shape[0] != x.shape[0]:
        raise ShapeError(f"{name}: topk_ids is {topk_ids.shape} for {x.shape[0]} tokens; needs a row each")
    _need_acc(name, "topk_weights", topk_weights, x)
    _need_shape(name, "topk_weights", topk_weights, topk_ids.shape)
    return x


def _experts(x, w1, w2, topk_weights, topk_ids):
    check_bounds("fused_experts", "expert", topk_ids, w1.shape[0])
    inner, out = w2.shape[2], np.zeros(x.shape)
    for e in range(w1.shape[0]):
        tokens, k = np.nonzero(topk_ids == e)
        with np.errstate(all="ignore"):
            h = np.matmul(x[tokens], w1[e].T)
            gate, up = h[:, :inner], h[:, inner:]
            y = np.matmul(gate / (1.0 + np.exp(-gate)) * up, w2[e].T) * topk_weights[tokens, k][:, None]
        np.add.at(out, tokens, y)
    return out


def _experts_cost(item: int, x: Spec, w1: Spec, w2: Spec, topk_weights: Spec, topk_ids: Spec) -> Cost:
    rows = topk_ids.size
    used = min(rows, w1.shape[0])
    per = (w1.size + w2.size) // max(w1.shape[0], 1)
    return Cost(flops=2 * rows * per, bytes=(used * per + 2 * x.size) * item + rows * (item + topk_ids.dtype.itemsize))


# name, tokens, D, I, experts, K
_LAYERS = (("one", 1, 1, 1, 1, 1), ("prime", 7, 13, 5, 3, 2), ("decode", 1, 32, 16, 8, 2), ("past_tile", 33, 65, 17, 4, 3), ("idle_experts", 3, 8, 8, 11, 1),
           ("no_tokens", 0, 8, 4, 3, 2), ("no_choice", 3, 8, 4, 3, 0), ("one_expert", 70, 16, 8, 1, 2))


def _layer_sample(name, t, d, inner, experts, k, **more):
    return Sample(name, (In((t, d)), In((experts, 2 * inner, d)), In((experts, d, inner)), In((t, k), "unit", "acc" if name == "prime" else None),
                         _i((t, k), experts, "int64" if name == "prime" else "int32")), **more)


_LAYER_SAMPLES = [_layer_sample(*r) for r in _LAYERS] + [
    _layer_sample("mixtral_short", 16, 128, 224, 8, 2, model="Mixtral-8x7B expert layer at a thirty-second of its widths, 16 tokens", level="llm"),
    _layer_sample("mixtral", 128, 1024, 1792, 8, 2, model="Mixtral-8x7B expert layer at a quarter of its widths, 128 tokens", level="full", bench=("full", "llm"))]


def _layer_bad(name, error, words, ids=(0, 1, 2, 0), w2=(3, 8, 4), x=(2, 8), weights=(2, 2)):
    return Bad(name, (In(x), In((3, 8, 8)), In(w2), In(weights, "unit"), In((2, 2), dtype="int32", values=ids)), error, words)


op("fused_experts(Tensor x, Tensor w1, Tensor w2, Tensor topk_weights, Tensor topk_ids) -> Tensor", family="moe", dtypes=FLOATS, infer=_infer_experts,
   reference=_experts, cost=_experts_cost, samples=_LAYER_SAMPLES,
   budget=Conditioned(k=4, terms=lambda x, w1, w2, weights, ids: x.shape[1] + w2.shape[2] + ids.shape[1], roundings=1),
   doc="A layer of gated experts: x (T, D) through w1 (X, 2 I, D), gate first and then up, silu(gate) * up, w2 (X, D, I), for each of the K experts "
       "topk_ids (T, K) of a token, weighted by topk_weights (T, K) and added; result (T, D).  A token may name an expert twice.  An id outside the experts is "
       "an IndexOutOfBounds.",
   names={"vllm": ("fused_experts",)},
   bad=(_layer_bad("expert_77_of_3", IndexOutOfBounds, ("77", "position 3", "3"), ids=(0, 1, 2, 77)),
        _layer_bad("expert_negative", IndexOutOfBounds, ("-1", "position 0", "3"), ids=(-1, 1, 2, 0)),
        _layer_bad("widths", ShapeError, ("w2 (3, 8, 5)", "2 I"), w2=(3, 8, 5)), _layer_bad("tokens", ShapeError, ("topk_ids", "3 tokens"), x=(3, 8)),
        _layer_bad("weights", ShapeError, ("topk_weights", "(2, 1)", "(2, 2)"), weights=(2, 1))))
