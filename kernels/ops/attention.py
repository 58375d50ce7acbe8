"""Scaled dot-product attention and its gradient: what they are.  How: kernels/cpu/attention.c,
kernels/triton/attention.py.

Axes: B batch, H query heads, G key heads, L queries, S keys, E width of query and key, V width of value.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Conditioned
from .infer import accumulator, broadcast, need, need_dtype, need_rank, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op


def _check(name, query, key, value, mask, gqa):
    for what, t in (("query", query), ("key", key), ("value", value)):
        need_dtype(name, what, t, FLOATS)
        need_rank(name, what, t, 4)
    same_dtype(name, query, key, value)
    (b, h, n_q, e), (kb, g, n_k, ke) = query.shape, key.shape
    if kb != b or value.shape[0] != b:
        raise ShapeError(f"{name}: query is {query.shape}, key {key.shape}, value {value.shape}; batches must be equal")
    if ke != e:
        raise ShapeError(f"{name}: query is {query.shape}, key {key.shape}; last axes {e} and {ke} must be equal")
    if value.shape[1:3] != key.shape[1:3]:
        raise ShapeError(f"{name}: key is {key.shape}, value {value.shape}; axes 1 and 2 (heads, keys) must be equal")
    if gqa and (g == 0 or h % g):
        raise ShapeError(f"{name}: query has {h} heads and key {g}; the first must be divisible by the second")
    if not gqa and g != h:
        raise ShapeError(f"{name}: query has {h} heads and key {g}; needs equal numbers, or enable_gqa where the "
                         "operator has it")
    if mask is not None:
        if mask.dtype is not BY_NAME["bool"] and mask.dtype is not query.dtype:
            raise DTypeError(f"{name}: attn_mask has dtype {mask.dtype}; needs bool or {query.dtype}; cast it first")
        full = (b, h, n_q, n_k)
        if mask.ndim > 4 or broadcast(name, mask.shape, full) != full:
            raise ShapeError(f"{name}: attn_mask of shape {mask.shape} does not broadcast to {full}; needs each axis "
                             "equal or 1")
    return Spec((b, h, n_q, value.shape[3]), query.dtype)


def _infer_sdpa(query: Spec, key: Spec, value: Spec, attn_mask: Spec | None, *, dropout_p: float, is_causal: bool,
                scale: float | None, enable_gqa: bool) -> Spec:
    name = "scaled_dot_product_attention"
    need(dropout_p == 0, f"{name}: dropout_p is {dropout_p:g}; attention has no dropout here, pass 0 and use "
                         "haian.ops.dropout")
    return _check(name, query, key, value, attn_mask, enable_gqa)


def _infer_flash(query: Spec, key: Spec, value: Spec, attn_mask: Spec | None, *, is_causal: bool,
                 scale: float | None) -> tuple[Spec, ...]:
    out = _check("scaled_dot_product_flash_attention", query, key, value, attn_mask, True)
    return out, Spec(out.shape[:3], accumulator(query.dtype))


def _infer_backward(dy: Spec, query: Spec, key: Spec, value: Spec, out: Spec, logsumexp: Spec, attn_mask: Spec | None,
                    *, is_causal: bool, scale: float | None) -> tuple[Spec, ...]:
    name = "scaled_dot_product_flash_attention_backward"
    want = _check(name, query, key, value, attn_mask, True)
    for what, t in (("dy", dy), ("out", out)):
        if t.shape != want.shape:
            raise ShapeError(f"{name}: {what} is {t.shape}; needs the result's shape {want.shape}")
    same_dtype(name, query, dy, out)
    if logsumexp.shape != want.shape[:3]:
        raise ShapeError(f"{name}: logsumexp is {logsumexp.shape}; needs {want.shape[:3]}")
    if logsumexp.dtype is not accumulator(query.dtype):
        raise DTypeError(f"{name}: logsumexp has dtype {logsumexp.dtype}; needs {accumulator(query.dtype)} for "
                         f"{query.dtype} input")
    return query, key, value


def _scores(query, key, mask, is_causal, scale):
    """(B, H, L, S) scores; -inf where a key is not to be seen."""
    n_q, n_k = query.shape[2], key.shape[2]
    with np.errstate(all="ignore"):
        s = np.matmul(query, key.swapaxes(-1, -2)) * _scale(query, scale)
        if mask is not None:
            s = np.where(mask, s, -np.inf) if mask.dtype == np.bool_ else s + mask
    return np.where(np.tri(n_q, n_k, dtype=bool), s, -np.inf) if is_causal else s


def _scale(query, scale):
    e = query.shape[-1]
    return scale if scale is not None else 1.0 / np.sqrt(np.float64(e)) if e else 1.0


def _shared(query, *tensors):
    """Key-side tensors with each head repeated for the query heads that share it; their number."""
    groups = query.shape[1] // tensors[0].shape[1] if tensors[0].shape[1] else 1
    return (*(np.repeat(t, groups, axis=1) for t in tensors), groups)


def _flash(query, key, value, attn_mask, *, is_causal, scale):
    key, value, _ = _shared(query, key, value)
    s = _scores(query, key, attn_mask, is_causal, scale)
    with np.errstate(all="ignore"):
        top = s.max(axis=-1, keepdims=True, initial=-np.inf)
        top = np.where(np.isneginf(top), 0.0, top)
        p = np.exp(s - top)
        total = p.sum(axis=-1, keepdims=True)
        out = np.matmul(p, value) / np.where(total == 0, 1.0, total)
        return out, (top + np.log(total))[..., 0]


def _sdpa(query, key, value, attn_mask, *, dropout_p, is_causal, scale, enable_gqa):
    return _flash(query, key, value, attn_mask, is_causal=is_causal, scale=scale)[0]


def _backward(dy, query, key, value, out, logsumexp, attn_mask, *, is_causal, scale):
    """P = exp(scores - logsumexp), dP = dy value^T, dS = P (dP - sum(dy out)); Dao et al. 2022, appendix B.4."""
    key, value, groups = _shared(query, key, value)
    s = _scores(query, key, attn_mask, is_causal, scale)
    with np.errstate(all="ignore"):
        p = np.where(np.isneginf(s), 0.0, np.exp(s - logsumexp[..., None]))
    ds = p * (np.matmul(dy, value.swapaxes(-1, -2)) - (dy * out).sum(axis=-1, keepdims=True)) * _scale(query, scale)
    sides = np.matmul(ds.swapaxes(-1, -2), query), np.matmul(p.swapaxes(-1, -2), dy)
    if groups > 1:  # a shared head's gradient is the sum over the query heads that share it
        sides = tuple(t.reshape(t.shape[0], -1, groups, *t.shape[2:]).sum(axis=2) for t in sides)
    return np.matmul(ds, key), *sides


def _terms(query: Spec, key: Spec, *_: Any, **__: Any) -> int:
    return query.shape[-1] + key.shape[-2]


def _backward_terms(dy: Spec, query: Spec, key: Spec, *_: Any, **__: Any) -> int:
    return query.shape[-1] + max(key.shape[-2], query.shape[-2])


def _cost(infer, products, first=0):
    """products: how many (L, S, E) products; a causal mask leaves half of each."""
    def cost(item: int, *given: Spec | None, **attrs: Any) -> Cost:
        out = infer(*given, **attrs)
        out = out if isinstance(out, tuple) else (out,)
        query, key, value = given[first:first + 3]
        assert query is not None and key is not None and value is not None  # required in every schema here
        b, h, n_q, e = query.shape
        pairs = b * h * n_q * key.shape[2]
        if attrs["is_causal"]:
            pairs = b * h * sum(min(i + 1, key.shape[2]) for i in range(n_q))
        return Cost(flops=pairs * (products * (e + value.shape[3]) + 5),
                    bytes=sum(s.size * s.dtype.itemsize for s in (*given, *out) if s is not None))

    return cost


def _flash_grad(o, dy, inputs, outputs, attrs):
    """Masks have no gradient, as in aten's flash attention."""
    query, key, value, mask = inputs
    return (*o.scaled_dot_product_flash_attention_backward(
        dy, query, key, value, outputs[0], outputs[1], mask, is_causal=attrs["is_causal"], scale=attrs["scale"]), None)


def _sdpa_grad(o, dy, inputs, y, attrs):
    more = {"is_causal": attrs["is_causal"], "scale": attrs["scale"]}
    return _flash_grad(o, dy, inputs, o.scaled_dot_product_flash_attention(*inputs, **more), more)


_FALSE_ROW = tuple(float(i != 1) for i in range(3) for _ in range(5))  # the second of three queries sees no key


def _shapes():
    """name, (B, H, G, L, S, E, V), mask, attributes, GQA or unequal widths (not in every operator)."""
    causal = {"is_causal": True}
    yield from (("one", (1, 1, 1, 1, 1, 1, 1), None, {}), ("prime", (2, 3, 3, 7, 13, 8, 8), None, {}),
                ("past_tile", (1, 2, 2, 65, 129, 16, 16), None, {}),
                ("causal", (1, 2, 2, 33, 33, 16, 16), None, causal),
                ("causal_more_keys", (1, 1, 1, 5, 9, 4, 4), None, causal),
                ("causal_more_queries", (1, 1, 1, 9, 5, 4, 4), None, causal),
                ("causal_past_tile", (1, 1, 1, 130, 130, 8, 8), None, causal),
                ("bool_mask", (2, 2, 2, 5, 67, 8, 8), In((2, 1, 5, 67), "mask", "bool"), {}),
                ("float_mask", (2, 2, 2, 5, 67, 8, 8), In((5, 67)), {}),
                ("padding_mask", (2, 2, 2, 5, 67, 8, 8), In((2, 1, 1, 67), "float_mask"), {}),
                ("row_sees_nothing", (1, 2, 2, 3, 5, 4, 4), In((3, 5), "mask", "bool", values=_FALSE_ROW), {}),
                ("row_all_minus_inf", (1, 2, 2, 3, 5, 4, 4),
                 In((3, 5), "float_mask", values=tuple(0.0 if v else float("-inf") for v in _FALSE_ROW)), {}),
                ("causal_and_mask", (1, 2, 2, 9, 9, 4, 4), In((9, 9), "mask", "bool"), causal),
                ("scale", (1, 2, 2, 5, 7, 8, 8), None, {"scale": 0.5}),
                ("odd_width", (1, 2, 2, 5, 7, 13, 13), None, {}),
                ("one_query", (1, 2, 2, 1, 1025, 16, 16), None, {}), ("no_keys", (1, 2, 2, 3, 0, 4, 4), None, {}),
                ("no_queries", (1, 2, 2, 0, 5, 4, 4), None, {}), ("no_batch", (0, 2, 2, 3, 5, 4, 4), None, {}),
                ("wide_value", (1, 2, 2, 5, 7, 8, 12), None, {}),
                ("head_mask", (2, 3, 3, 19, 35, 8, 8), In((2, 3, 19, 35), "mask", "bool"), {}),
                ("head_bias", (2, 3, 3, 5, 13, 8, 8), In((1, 3, 1, 13)), {}),
                ("batch_bias", (3, 2, 2, 5, 13, 8, 8), In((3, 1, 5, 1)), {}))


def _past():
    """Just past a tile of keys (C, 256), of queries that share packed keys (C, 1024), and of keys of one task in decoding
    (C, 1024; Triton, 256), with masks that differ from tile to tile."""
    yield from (("past_keys", (1, 2, 2, 20, 301, 8, 8), In((1, 2, 20, 301)), {}),
                ("past_keys_causal", (1, 1, 1, 262, 270, 4, 4), None, {"is_causal": True}),
                ("past_queries", (1, 1, 1, 1031, 5, 4, 4), None, {}),
                ("decode_mask", (1, 2, 2, 1, 1103, 8, 8), In((1, 2, 1, 1103), "mask", "bool"), {}),
                ("decode_bias", (2, 1, 1, 1, 1103, 8, 8), In((2, 1, 1, 1103)), {}))


def _gqa_shapes():
    gqa = {"enable_gqa": True}
    yield from (("gqa", (2, 4, 2, 5, 7, 8, 8), None, gqa),
                ("multi_query", (1, 6, 1, 5, 33, 8, 8), None, {**gqa, "is_causal": True}),
                ("gqa_decode", (1, 8, 2, 1, 65, 16, 16), None, gqa))


# B, H, G, L, S, E, V
_MODELS: tuple[tuple[Any, ...], ...] = (("bert", (1, 12, 12, 128, 128, 64, 64), {}, "BERT-base attention, 128 tokens", "inference", ("full",)),
           ("llama_prefill_1024", (1, 32, 32, 1024, 1024, 128, 128), {}, "Llama-7B attention, 1024 tokens, no mask",
            "full", ("quick", "full", "llm")),
           ("llama_prefill_causal", (1, 32, 32, 1024, 1024, 128, 128), {"is_causal": True},
            "Llama-7B prefill, 1024 tokens", "full", ("llm",)),
           ("llama_decode_4096", (1, 32, 32, 1, 4096, 128, 128), {}, "Llama-7B decode, 4096 keys", "full",
            ("quick", "full", "llm")))


def _qkv(b, h, g, n_q, n_k, e, v):
    return In((b, h, n_q, e)), In((b, g, n_k, e)), In((b, g, n_k, v))


def _saved(b, h, g, n_q, n_k, e, v):
    return In((b, h, n_q, v)), In((b, h, n_q), "positive", "acc")


def _backward_inputs(dims, mask):
    b, h, _, n_q, _, _, v = dims
    return (In((b, h, n_q, v)), *_qkv(*dims), *_saved(*dims), mask)


_SDPA = [Sample(n, (*_qkv(*d), m), a) for n, d, m, a in (*_shapes(), *_gqa_shapes())] + [
    Sample(n, (*_qkv(*d), m), a, cover="once") for n, d, m, a in _past() if n in ("past_keys", "decode_mask")] + [
    Sample(n, (*_qkv(*d), None), a, m, level, bench) for n, d, a, m, level, bench in _MODELS]
_SHARED = [(n, d, m, {k: v for k, v in a.items() if k != "enable_gqa"}) for n, d, m, a in (*_shapes(), *_gqa_shapes())]
_FLASH = [Sample(n, (*_qkv(*d), m), a) for n, d, m, a in _SHARED] + [
    Sample(n, (*_qkv(*d), m), a, cover="once") for n, d, m, a in _past()] + [
    Sample(n, (*_qkv(*d), None), a, m, "training") for n, d, a, m, _, _ in _MODELS[:1]]
_BACKWARD = [Sample(n, _backward_inputs(d, m), a) for n, d, m, a in _SHARED] + [
    Sample(n, _backward_inputs(d, m), a, cover="once") for n, d, m, a in _past() if n == "past_keys"] + [
    Sample(n, _backward_inputs(d, None), a, m, "training", ("full",)) for n, d, a, m, _, _ in _MODELS[:1]]

_Q, _K = In((2, 4, 3, 8)), In((2, 4, 5, 8))
_UNSHARED = (Bad("heads", (_Q, In((2, 2, 5, 8)), In((2, 2, 5, 8)), None), ShapeError, ("4 heads", "2", "enable_gqa")),)
_SHARING = (Bad("heads", (_Q, In((2, 3, 5, 8)), In((2, 3, 5, 8)), None), ShapeError, ("4 heads", "3", "divisible")),)
_BAD = (Bad("three_axes", (In((4, 3, 8)), In((4, 5, 8)), In((4, 5, 8)), None), ShapeError, ("(4, 3, 8)", "4 axes")),
        Bad("widths", (_Q, In((2, 4, 5, 6)), _K, None), ShapeError, ("8 and 6", "equal")),
        Bad("value_keys", (_Q, _K, In((2, 4, 6, 8)), None), ShapeError, ("(2, 4, 5, 8)", "(2, 4, 6, 8)")),
        Bad("batches", (_Q, In((1, 4, 5, 8)), In((1, 4, 5, 8)), None), ShapeError, ("batches", "(1, 4, 5, 8)")),
        Bad("mask_shape", (_Q, _K, _K, In((3, 4), "mask", "bool")), ShapeError, ("3", "4 and 5", "broadcast")),
        Bad("mask_too_large", (In((1, 4, 3, 8)), In((1, 4, 5, 8)), In((1, 4, 5, 8)), In((2, 1, 3, 5), "mask", "bool")),
            ShapeError, ("attn_mask", "(2, 1, 3, 5)", "(1, 4, 3, 5)")),
        Bad("mask_dtype", (_Q, _K, _K, In((3, 5), "int", "int32")), DTypeError, ("attn_mask", "int32", "bool")),
        Bad("dtypes", (_Q, In((2, 4, 5, 8), dtype="float64"), _K, None), DTypeError, ("float32", "float64")))

op("scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.0, "
   "bool is_causal=false, *, float? scale=None, bool enable_gqa=false) -> Tensor", family="attention", dtypes=FLOATS,
   infer=_infer_sdpa, reference=_sdpa, budget=Conditioned(k=4, terms=_terms, roundings=1), cost=_cost(_infer_sdpa, 2),
   doc="softmax(query key^T * scale + attn_mask) value: query (B, H, L, E), key (B, H, S, E), value (B, H, S, V), "
       "result (B, H, L, V).  A bool mask keeps where True; is_causal keeps key j for query i where j <= i, counted "
       "from the first; a query that sees no key gives zeros.  scale: 1 / sqrt(E) by default.  enable_gqa: H a "
       "multiple of key's heads.",
   samples=_SDPA, grad=_sdpa_grad, names={"onnx": ("Attention",), "paddle": ("scaled_dot_product_attention",)},
   bad=(*_BAD, *_UNSHARED, Bad("dropout", (_Q, _K, _K, None), ArgumentError, ("dropout_p", "0.5"), {"dropout_p": 0.5}),
        Bad("gqa_heads", (_Q, In((2, 3, 5, 8)), In((2, 3, 5, 8)), None), ShapeError, ("4 heads", "3", "divisible"),
            {"enable_gqa": True})))

op("scaled_dot_product_flash_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, *, bool "
   "is_causal=false, float? scale=None) -> (Tensor out, Tensor logsumexp)", family="attention", dtypes=FLOATS,
   infer=_infer_flash, reference=_flash,
   budget=Conditioned(k=4, terms=_terms, roundings=1), cost=_cost(_infer_flash, 2), samples=_FLASH, bad=(*_BAD, *_SHARING),
   grad=_flash_grad,
   doc="scaled_dot_product_attention with the logarithm of each query's softmax denominator, (B, H, L), float32 for "
       "float16 and bfloat16; -inf for a query that sees no key.  Fewer heads of keys are shared, as enable_gqa does.",
   names={"aten": ("_scaled_dot_product_flash_attention_for_cpu",)})

op("scaled_dot_product_flash_attention_backward(Tensor dy, Tensor query, Tensor key, Tensor value, Tensor output, Tensor "
   "logsumexp, Tensor? attn_mask=None, *, bool is_causal=false, float? scale=None) -> (Tensor dquery, Tensor dkey, "
   "Tensor dvalue)",
   family="attention", dtypes=FLOATS, infer=_infer_backward, reference=_backward,
   budget=Conditioned(k=4, terms=_backward_terms, roundings=2), cost=_cost(_infer_backward, 5, 1), samples=_BACKWARD,
   doc="Gradients of attention from its result and logsumexp as given; a masked key has probability 0 whatever "
       "logsumexp is.",
   names={"aten": ("_scaled_dot_product_flash_attention_for_cpu_backward",)},
   bad=(Bad("dy_shape", (In((2, 4, 3, 7)), _Q, _K, _K, _Q, In((2, 4, 3)), None), ShapeError,
            ("dy", "(2, 4, 3, 7)", "(2, 4, 3, 8)")),
        Bad("logsumexp_shape", (_Q, _Q, _K, _K, _Q, In((2, 3, 4)), None), ShapeError,
            ("logsumexp", "(2, 3, 4)", "(2, 4, 3)")),
        Bad("logsumexp_dtype", (_Q, _Q, _K, _K, _Q, In((2, 4, 3), dtype="float64"), None), DTypeError,
            ("logsumexp", "float64", "float32"))))
