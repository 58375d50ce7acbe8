"""Small operators of language-model servers: rotary embeddings, writing key-value caches, penalties, sampling.

How they are computed: kernels/cpu/llm.c, kernels/triton/llm.py.  Not here: attention over caches (attention_serve.py), experts (moe.py).
Axes: T tokens, H heads, D width of a head, N blocks of a cache with P positions each, S slots (N * P), B sequences, V vocabulary.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, IndexOutOfBounds, ShapeError
from .budget import Composite, Conditioned, Exact, Faithful
from .gradient import zeros
from .index import check_bounds
from .infer import accumulator, need, need_dtype, need_rank, same_dtype
from .random import uniform
from .record import ANY, FLOATS, Bad, Cost, In, Sample, Spec, op

_INDEX = (BY_NAME["int64"], BY_NAME["int32"])


def _need_index(name, **tensors):
    for what, t in tensors.items():
        if t.dtype not in _INDEX:
            raise DTypeError(f"{name}: {what} has dtype {t.dtype}; needs int64 or int32; cast it first")


def _need_shape(name, what, t, shape):
    if t.shape != tuple(shape):
        raise ShapeError(f"{name}: {what} is {t.shape}; needs {tuple(shape)}")


def _need_acc(name, what, t, of):
    if t.dtype not in (of.dtype, accumulator(of.dtype)):
        raise DTypeError(f"{name}: {what} has dtype {t.dtype}; needs {of.dtype} or {accumulator(of.dtype)}; cast it first")


def _moved(item: int, *specs: Spec | None, written: int) -> Cost:
    return Cost(flops=0, bytes=sum(s.size * s.dtype.itemsize for s in specs if s is not None) + written * item)


def _i(shape, high, dtype="int64"):
    return In(shape, "index", dtype, high)


def _v(*values, dtype="int64"):
    return In((len(values),), dtype=dtype, values=values)


# ---- rotary embeddings -----------------------------------------------------------------------------------------------------
def _infer_rope(name):
    def infer(positions: Spec, query: Spec, key: Spec, cos_sin_cache: Spec, *, head_size: int, is_neox: bool,
              mrope_section: Any = None) -> tuple[Spec, Spec]:
        _need_index(name, positions=positions)
        need_dtype(name, "query", query, FLOATS)
        same_dtype(name, query, key)
        _need_acc(name, "cos_sin_cache", cos_sin_cache, query)
        need_rank(name, "cos_sin_cache", cos_sin_cache, 2)
        rot = cos_sin_cache.shape[1]
        need(head_size > 0, f"{name}: head_size is {head_size}; needs 1 or more")
        if rot % 2 or rot > head_size:
            raise ShapeError(f"{name}: cos_sin_cache is {cos_sin_cache.shape}; its rows need an even width of head_size ({head_size}) at most")
        tokens = positions.shape
        if mrope_section is not None:
            section = tuple(mrope_section)
            if len(section) != 3 or min(section) < 0 or sum(section) != rot // 2:
                raise ArgumentError(f"{name}: mrope_section is {section}; needs three numbers of frequencies (time, height, width) that "
                                    f"add up to {rot // 2}, half of cos_sin_cache's width")
            if positions.ndim < 2 or tokens[0] != 3:
                raise ShapeError(f"{name}: positions is {tokens}; needs (3, tokens): time, height, width")
            tokens = tokens[1:]
        if len(tokens) not in (1, 2):
            raise ShapeError(f"{name}: positions is {positions.shape}; needs 1 or 2 axes of tokens")
        for what, t in (("query", query), ("key", key)):
            flat = t.shape[:-1] == tokens and t.shape[-1] % head_size == 0
            if not flat and not (t.shape[:-2] == tokens and t.shape[-1] == head_size):
                raise ShapeError(f"{name}: {what} is {t.shape}; needs {tokens} and then heads * {head_size}, or heads and {head_size}")
        return query, key

    return infer


def _angles(name, positions, cos_sin_cache, mrope_section):
    """cos and sin (T, rot / 2)."""
    check_bounds(name, "position", positions, cos_sin_cache.shape[0])
    half = cos_sin_cache.shape[1] // 2
    if mrope_section is None:
        rows = cos_sin_cache[positions.reshape(-1)]
        return rows[:, :half], rows[:, half:]
    axis = np.repeat(np.arange(3), mrope_section)  # which coordinate turns each frequency
    at = positions.reshape(3, -1)[axis].T  # (T, half)
    columns = np.arange(half)
    return cos_sin_cache[at, columns], cos_sin_cache[at, columns + half]


def _turn(x, cos, sin, head_size, is_neox, minus, plus):
    """x1 cos + minus * x2 sin and x2 cos + plus * x1 sin, pair by pair; what lies past the rotated width stays."""
    half = cos.shape[1]
    heads = x.reshape(cos.shape[0], -1 if x.size else 0, head_size)
    y = heads.copy()
    first, second = (np.s_[..., :half], np.s_[..., half:2 * half]) if is_neox else (np.s_[..., :2 * half:2], np.s_[..., 1:2 * half:2])
    c, s = cos[:, None, :], sin[:, None, :]
    with np.errstate(all="ignore"):
        y[first] = heads[first] * c + minus * (heads[second] * s)
        y[second] = heads[second] * c + plus * (heads[first] * s)
    return y.reshape(x.shape)


def _rope(name, minus, plus):
    def reference(positions, query, key, cos_sin_cache, *, head_size, is_neox, mrope_section=None):
        cos, sin = _angles(name, positions, cos_sin_cache, mrope_section)
        return tuple(_turn(x, cos, sin, head_size, is_neox, minus, plus) for x in (query, key))

    return reference


def _rope_magnitude(name):
    sizes = _rope(name, 1.0, 1.0)

    def magnitude(positions, query, key, cos_sin_cache, **attrs):
        return sizes(positions, np.abs(query), np.abs(key), np.abs(cos_sin_cache), **attrs)

    return magnitude


def _rope_cost(item: int, positions: Spec, query: Spec, key: Spec, cos_sin_cache: Spec, **_: Any) -> Cost:
    n, rows = query.size + key.size, min(positions.size, cos_sin_cache.shape[0])
    return Cost(flops=3 * n, bytes=2 * n * item + rows * cos_sin_cache.shape[1] * cos_sin_cache.dtype.itemsize
                + positions.size * positions.dtype.itemsize)


def _rope_grad(o, dy, inputs, outputs, attrs):
    positions, _, key, table = inputs
    return (None, *o.rope_backward(positions, dy, zeros(o, key.shape, dy.dtype), attrs["head_size"], table,
                                   attrs.get("mrope_section"), attrs["is_neox"]), None)


def _back_grad(o, dy, inputs, outputs, attrs):
    """The transpose of a rotation backwards is the rotation."""
    positions, _, key, table = inputs
    none, size, section = zeros(o, key.shape, dy.dtype), attrs["head_size"], attrs["mrope_section"]
    if section is None:
        return (None, *o.rotary_embedding(positions, dy, none, size, table, attrs["is_neox"]), None)
    return (None, *o.mrope(positions, dy, none, size, table, section, attrs["is_neox"]), None)


# name, tokens, heads of query and key, head_size, rotated width, neox, heads as an axis of their own
_ROPES: tuple[tuple[Any, ...], ...] = (
    ("one", (1,), 1, 1, 2, 2, True, False), ("prime", (7,), 3, 1, 10, 10, True, False), ("partial", (5,), 4, 2, 16, 6, True, True),
    ("gptj", (5,), 4, 2, 16, 16, False, False), ("gptj_partial", (2, 3), 3, 1, 12, 4, False, True), ("batch", (2, 5), 4, 2, 8, 8, True, False),
    ("past_tile", (5,), 33, 5, 66, 66, True, False), ("no_tokens", (0,), 2, 1, 8, 8, True, False), ("no_key_heads", (3,), 2, 0, 8, 8, True, True),
    ("no_rotation", (3,), 2, 1, 6, 0, True, False))
_ROPE_MODELS = (("llama3_prefill", (256,), 32, 8, 128, 128, True, False),)


def _rope_sample(name, tokens, heads, key_heads, size, rot, is_neox, apart, section=None, **more):
    shapes = [(*tokens, h, size) if apart else (*tokens, h * size) for h in (heads, key_heads)]
    places = (3, *tokens) if section else tokens
    kind = "int32" if name == "batch" else "int64"
    attrs = {"head_size": size, "is_neox": is_neox} | ({"mrope_section": section} if section else {})
    return Sample(name, (_i(places, 37, kind), In(shapes[0]), In(shapes[1]), In((37, rot), "uniform", "acc" if name == "prime" else None)), attrs, **more)


_ROPE_SAMPLES = [_rope_sample(*r) for r in _ROPES] + [
    _rope_sample(*r, model="Llama-3-8B rotary embedding, 256 tokens", level="llm", bench=("full", "llm")) for r in _ROPE_MODELS]
_MROPE_SAMPLES = [_rope_sample(*r, section=s) for r, s in zip(  # type: ignore[misc]
    (r for r in _ROPES if r[5]), ((1, 0, 0), (1, 2, 2), (0, 0, 3), (2, 3, 3), (1, 1, 0), (1, 1, 2), (9, 12, 12), (2, 1, 1), (2, 1, 1)))] + [
    _rope_sample("qwen2_vl", (128,), 28, 4, 128, 128, True, False, section=(16, 24, 24), model="Qwen2-VL-7B rotary embedding, 128 tokens",
                 level="llm", bench=("full", "llm"))]
_BACK_SAMPLES = _ROPE_SAMPLES[:8] + [_rope_sample("sections", (5,), 4, 2, 16, 12, True, False, section=(1, 2, 3)),
                                     _rope_sample("sections_gptj", (2, 3), 2, 1, 8, 8, False, True, section=(2, 1, 1))] + [
    Sample(s.name, s.inputs, s.attrs, s.model, "training", ("full",)) for s in _ROPE_SAMPLES[-1:]]


def _rope_bad(**attrs):
    given = {"head_size": 8, **attrs}
    q, k = In((4, 16)), In((4, 8))
    places = (3, 4) if attrs.get("mrope_section") else (4,)

    def bad(name, error, words, positions=None, key=k, table=None, **more):
        return Bad(name, (positions or _i(places, 5), q, key, table or In((5, 8))), error, words, {**given, **more})

    hostile = tuple(3 if i != 2 else 77 for i in range(12 if len(places) == 2 else 4))
    return (bad("position_77_of_5", IndexOutOfBounds, ("77", "position 2", "5"), positions=In(places, dtype="int64", values=hostile)),
            bad("odd_table", ShapeError, ("cos_sin_cache", "(5, 7)", "even"), table=In((5, 7))),
            bad("head_size", ShapeError, ("query", "(4, 16)", "heads * 9"), head_size=9),
            bad("dtypes", DTypeError, ("float32", "float64"), key=In((4, 8), dtype="float64")),
            bad("float_positions", DTypeError, ("positions", "float32", "int64"), positions=In(places)))


_ROPE_DOC = ("  positions (tokens) or (batch, tokens); query and key (*tokens, heads * head_size) or (*tokens, heads, head_size); cos_sin_cache "
             "(positions, r), r even: cosines then sines of r / 2 frequencies; of each head the first r elements turn, paired i with i + r / 2 "
             "(is_neox) or 2 i with 2 i + 1, and the others stay.  A position outside the table is an IndexOutOfBounds.")
_ROTATED = "(Tensor query_rotated, Tensor key_rotated)"

op(f"rotary_embedding(Tensor positions, Tensor query, Tensor key, int head_size, Tensor cos_sin_cache, bool is_neox=true) -> {_ROTATED}",
   family="llm", dtypes=FLOATS, infer=_infer_rope("rotary_embedding"), reference=_rope("rotary_embedding", -1.0, 1.0), cost=_rope_cost,
   budget=Composite(k=4, magnitude=_rope_magnitude("rotary_embedding")), samples=_ROPE_SAMPLES, bad=_rope_bad(), grad=_rope_grad,
   doc="Rotary position embedding of queries and keys (Su et al. 2021)." + _ROPE_DOC,
   names={"vllm": ("rotary_embedding",), "onnx": ("RotaryEmbedding",), "paddle": ("fused_rotary_position_embedding",)})

op("rope_backward(Tensor positions, Tensor dquery, Tensor dkey, int head_size, Tensor cos_sin_cache, int[]? mrope_section=None, bool is_neox=true) "
   "-> (Tensor dquery_unrotated, Tensor dkey_unrotated)",
   family="llm", dtypes=FLOATS, infer=_infer_rope("rope_backward"), reference=_rope("rope_backward", 1.0, -1.0), cost=_rope_cost,
   budget=Composite(k=4, magnitude=_rope_magnitude("rope_backward")), samples=_BACK_SAMPLES, grad=_back_grad,
   doc="Gradients of rotary_embedding (and, with mrope_section, of mrope): the rotation backwards." + _ROPE_DOC,
   names={"liger": ("rope_backward",), "paddle": ("fused_rotary_position_embedding_grad",)},
   bad=(*_rope_bad(), Bad("sections", (_i((3, 4), 5), In((4, 16)), In((4, 8)), In((5, 8))), ArgumentError, ("mrope_section", "(1, 1, 1)", "4"),
                          {"head_size": 8, "mrope_section": (1, 1, 1)})))

op(f"mrope(Tensor positions, Tensor query, Tensor key, int head_size, Tensor cos_sin_cache, int[] mrope_section, bool is_neox=true) -> {_ROTATED}",
   family="llm", dtypes=FLOATS, infer=_infer_rope("mrope"), reference=_rope("mrope", -1.0, 1.0), cost=_rope_cost, grad=_rope_grad,
   budget=Composite(k=4, magnitude=_rope_magnitude("mrope")), samples=_MROPE_SAMPLES,
   doc="rotary_embedding with three coordinates a token (Qwen2-VL): positions (3, tokens) are time, height and width, and mrope_section says how "
       "many frequencies turn by each, in this order." + _ROPE_DOC,
   names={"vllm": ("MRotaryEmbedding",)},
   bad=(*_rope_bad(mrope_section=(2, 1, 1)), Bad("two_rows", (_i((2, 4), 5), In((4, 16)), In((4, 8)), In((5, 8))), ShapeError,
                                                ("positions", "(2, 4)", "(3, tokens)"), {"head_size": 8, "mrope_section": (2, 1, 1)}),
        Bad("sections", (_i((3, 4), 5), In((4, 16)), In((4, 8)), In((5, 8))), ArgumentError, ("mrope_section", "(1, 1, 1)", "4"),
            {"head_size": 8, "mrope_section": (1, 1, 1)})))


# ---- writing caches --------------------------------------------------------------------------------------------------------
def check_slots(name, index, slots):
    """Raises IndexOutOfBounds for a slot past the last; negative ones are padding."""
    if (index >= 0).any():
        check_bounds(name, "slot", np.maximum(index, 0), slots)


def _put(name, cache, index, rows, slots, negative):
    """cache with rows (T, ...) at flat slots (T,); the last of several for one slot stands."""
    if negative:
        check_slots(name, index, slots)
    else:
        check_bounds(name, "slot", index, slots)
    out = np.array(cache, order="C")
    flat = out.reshape(slots, *rows.shape[1:]) if out.size else out
    for t, slot in enumerate(index):
        if slot >= 0 and out.size:
            flat[slot] = rows[t]
    return out


def _check_cache(name, what, cache, row, lead):
    """Whether a cache is ``lead`` axes of slots and then a row."""
    if cache.ndim != lead + len(row) or cache.shape[lead:] != tuple(row):
        axes = "blocks, positions" if lead == 2 else "slots"
        raise ShapeError(f"{name}: {what} is {cache.shape}; needs ({axes}, {', '.join(map(str, row))})")


def _check_slots(name, what, index, tokens):
    _need_index(name, **{what: index})
    need_rank(name, what, index, 1)
    if index.shape[0] > tokens:
        raise ShapeError(f"{name}: {what} is {index.shape} for {tokens} tokens; needs a slot a token, or fewer: tokens past it are padding")


def _infer_reshape_and_cache(key: Spec, value: Spec, key_cache: Spec, value_cache: Spec, slot_mapping: Spec) -> tuple[Spec, Spec]:
    name = "reshape_and_cache"
    same_dtype(name, key, value, key_cache, value_cache)
    for what, t, cache in (("key", key, key_cache), ("value", value, value_cache)):
        need_dtype(name, what, t, ANY)
        need_rank(name, what, t, 3)
        _check_cache(name, f"{what}_cache", cache, t.shape[1:], 2)
    if value.shape[:1] != key.shape[:1] or key_cache.shape[:2] != value_cache.shape[:2]:
        raise ShapeError(f"{name}: key is {key.shape}, value {value.shape}, key_cache {key_cache.shape}, value_cache {value_cache.shape}; tokens, "
                         "blocks and positions must be equal")
    _check_slots(name, "slot_mapping", slot_mapping, key.shape[0])
    return key_cache, value_cache


def _reshape_and_cache(key, value, key_cache, value_cache, slot_mapping):
    slots = key_cache.shape[0] * key_cache.shape[1]
    return tuple(_put("reshape_and_cache", c, slot_mapping, x, slots, True) for x, c in ((key, key_cache), (value, value_cache)))


def _infer_mla_cache(kv_c: Spec, k_pe: Spec, kv_cache: Spec, slot_mapping: Spec) -> Spec:
    name = "concat_and_cache_mla"
    same_dtype(name, kv_c, k_pe, kv_cache)
    for what, t in (("kv_c", kv_c), ("k_pe", k_pe)):
        need_dtype(name, what, t, ANY)
        need_rank(name, what, t, 2)
    if kv_c.shape[0] != k_pe.shape[0]:
        raise ShapeError(f"{name}: kv_c is {kv_c.shape} and k_pe {k_pe.shape}; tokens must be equal")
    _check_cache(name, "kv_cache", kv_cache, (kv_c.shape[1] + k_pe.shape[1],), 2)
    _check_slots(name, "slot_mapping", slot_mapping, kv_c.shape[0])
    return kv_cache


def _mla_cache(kv_c, k_pe, kv_cache, slot_mapping):
    rows = np.concatenate((kv_c, k_pe), axis=1)
    return _put("concat_and_cache_mla", kv_cache, slot_mapping, rows, kv_cache.shape[0] * kv_cache.shape[1], True)


def _infer_destindex(key: Spec, dest_index: Spec, cache: Spec) -> Spec:
    name = "destindex_copy_kv"
    same_dtype(name, key, cache)
    need_dtype(name, "key", key, ANY)
    need_rank(name, "key", key, 3)
    _check_cache(name, "cache", cache, key.shape[1:], 1)
    _need_index(name, dest_index=dest_index)
    _need_shape(name, "dest_index", dest_index, key.shape[:1])
    return cache


def _destindex(key, dest_index, cache):
    return _put("destindex_copy_kv", cache, dest_index, key, cache.shape[0], False)


def _cache_cost(sources):
    """The rows read and written, which is all there is to do where out= is the cache itself."""
    def cost(item: int, *given: Spec, **_: Any) -> Cost:
        index = next(s for s in given if s.ndim == 1)
        n = sum(s.size for s in given[:sources])
        return Cost(flops=0, bytes=2 * n * item + index.size * index.dtype.itemsize)

    return cost


# name, tokens, heads, widths of key and value, blocks, positions of a block, slots of the mapping (None: drawn, so with repeats)
_CACHES: tuple[tuple[Any, ...], ...] = (
    ("one", 1, 1, 1, 1, 1, 1, (0,)), ("prime", 7, 3, 5, 5, 4, 3, (0, 11, -1, 5, 6, 2, 9)), ("repeats", 65, 2, 4, 4, 3, 7, None),
    ("widths", 5, 2, 8, 12, 2, 16, (31, 0, 7, -5, 16)), ("padded", 9, 2, 8, 8, 2, 16, (3, 30, 17)), ("no_tokens", 0, 2, 4, 4, 3, 2, ()),
    ("all_padding", 3, 1, 4, 4, 3, 2, (-1, -1, -1)), ("no_blocks", 2, 1, 4, 4, 0, 2, (-1, -1)), ("past_tile", 33, 1, 129, 129, 5, 8, None),
    ("many", 1100, 1, 2, 2, 70, 16, None))


def _mapping(name, slots, tokens, total):
    return _i((tokens,), total) if slots is None else _v(*slots, dtype="int32" if name == "widths" else "int64")


_CACHE_SAMPLES = [Sample(n, (In((t, h, e), "wide"), In((t, h, v), "wide"), In((b, p, h, e), "wide"), In((b, p, h, v)), _mapping(n, s, t, b * p)))
                  for n, t, h, e, v, b, p, s in _CACHES] + [
    Sample("llama3_prefill", (In((128, 8, 128)), In((128, 8, 128)), In((16, 16, 8, 128)), In((16, 16, 8, 128)), _i((128,), 256)), {},
           "Llama-3-8B key-value cache, 128 tokens", "llm", ("full", "llm"))]
_MLA_SAMPLES = [Sample(n, (In((t, e), "wide"), In((t, v), "wide"), In((b, p, e + v), "wide"), _mapping(n, s, t, b * p)))
                for n, t, h, e, v, b, p, s in _CACHES] + [
    Sample("deepseek", (In((128, 512)), In((128, 64)), In((4, 64, 576)), _i((128,), 256)), {}, "DeepSeek-V3 latent cache, 128 tokens", "llm",
           ("full", "llm"))]
_DEST_SAMPLES = [Sample(n, (In((t, h, e), "wide"), _i((t,), b * p, "int32") if s is None or min(s, default=0) < 0 or len(s) < t else _v(*s),
                            In((b * p, h, e), "wide"))) for n, t, h, e, v, b, p, s in _CACHES if b] + [
    Sample("llama3_decode", (In((64, 8, 128)), _i((64,), 512, "int32"), In((512, 8, 128))), {}, "Llama-3-8B key cache, 64 sequences", "llm",
           ("full", "llm"))]
_KV, _CACHE4 = In((4, 2, 3)), In((3, 2, 2, 3))
_SLOT_DOC = ("  Of tokens with one slot the last stands.  out= may be the cache itself.")

op("reshape_and_cache(Tensor key, Tensor value, Tensor key_cache, Tensor value_cache, Tensor slot_mapping) -> "
   "(Tensor key_cache_written, Tensor value_cache_written)", family="llm", dtypes=ANY, infer=_infer_reshape_and_cache, reference=_reshape_and_cache,
   budget=Exact(signed_zero=True), cost=_cache_cost(2), samples=_CACHE_SAMPLES,
   doc="Caches of blocks (blocks, positions, heads, width) with the keys and values (tokens, heads, width) of new tokens in the slots that "
       "slot_mapping (at most tokens,) names: slot s is position s % positions of block s // positions, a negative one skips the token; tokens past "
       "slot_mapping are padding.  A slot past the cache is an IndexOutOfBounds." + _SLOT_DOC,
   names={"vllm": ("reshape_and_cache_flash",)},
   bad=(Bad("slot_77_of_6", (_KV, _KV, _CACHE4, _CACHE4, _v(0, 1, 77, -1)), IndexOutOfBounds, ("77", "position 2", "6")),
        Bad("cache_shape", (_KV, _KV, In((3, 2, 2, 4)), _CACHE4, _i((4,), 6)), ShapeError, ("key_cache", "(3, 2, 2, 4)", "2, 3")),
        Bad("too_many_slots", (_KV, _KV, _CACHE4, _CACHE4, _i((5,), 6)), ShapeError, ("slot_mapping", "(5,)", "4 tokens")),
        Bad("dtypes", (_KV, _KV, In((3, 2, 2, 3), dtype="float16"), _CACHE4, _i((4,), 6)), DTypeError, ("float32", "float16"))))

op("concat_and_cache_mla(Tensor kv_c, Tensor k_pe, Tensor kv_cache, Tensor slot_mapping) -> Tensor", family="llm", dtypes=ANY,
   infer=_infer_mla_cache, reference=_mla_cache, budget=Exact(signed_zero=True), cost=_cache_cost(2), samples=_MLA_SAMPLES,
   doc="The latent cache (blocks, positions, r + p) of multi-head latent attention with kv_c (tokens, r) and k_pe (tokens, p) side by side in the "
       "slots of slot_mapping, as reshape_and_cache counts them." + _SLOT_DOC,
   names={"vllm": ("concat_and_cache_mla",)},
   bad=(Bad("slot_77_of_6", (In((4, 3)), In((4, 2)), In((3, 2, 5)), _v(0, 1, 77, -1)), IndexOutOfBounds, ("77", "position 2", "6")),
        Bad("width", (In((4, 3)), In((4, 2)), In((3, 2, 6)), _i((4,), 6)), ShapeError, ("kv_cache", "(3, 2, 6)", "5")),
        Bad("tokens", (In((4, 3)), In((5, 2)), In((3, 2, 5)), _i((4,), 6)), ShapeError, ("(4, 3)", "(5, 2)"))))

op("destindex_copy_kv(Tensor key, Tensor dest_index, Tensor cache) -> Tensor", family="llm", dtypes=ANY, infer=_infer_destindex,
   reference=_destindex, budget=Exact(signed_zero=True), cost=_cache_cost(1), samples=_DEST_SAMPLES,
   doc="The cache (slots, heads, width) with row t of key (tokens, heads, width) in slot dest_index[t]." + _SLOT_DOC,
   names={"lightllm": ("destindex_copy_kv",)},
   bad=(Bad("slot_77_of_6", (_KV, _v(0, 1, 77, 2), In((6, 2, 3))), IndexOutOfBounds, ("77", "position 2", "6")),
        Bad("slot_minus_2", (_KV, _v(0, -2, 1, 2), In((6, 2, 3))), IndexOutOfBounds, ("-2", "position 1", "6")),
        Bad("index_shape", (_KV, _i((5,), 6), In((6, 2, 3))), ShapeError, ("dest_index", "(5,)", "(4,)"))))


# ---- penalties -------------------------------------------------------------------------------------------------------------
def _repeated(logits, penalty):
    with np.errstate(all="ignore"):
        return np.where(logits > 0, logits / penalty, logits * penalty)


def _infer_repetition(logits: Spec, prompt_mask: Spec, output_mask: Spec, repetition_penalties: Spec) -> Spec:
    name = "apply_repetition_penalties"
    need_dtype(name, "logits", logits, FLOATS)
    need_rank(name, "logits", logits, 2)
    for what, t in (("prompt_mask", prompt_mask), ("output_mask", output_mask)):
        need_dtype(name, what, t, (BY_NAME["bool"],))
        _need_shape(name, what, t, logits.shape)
    _need_acc(name, "repetition_penalties", repetition_penalties, logits)
    _need_shape(name, "repetition_penalties", repetition_penalties, logits.shape[:1])
    return logits


def _repetition(logits, prompt_mask, output_mask, repetition_penalties):
    return np.where(prompt_mask | output_mask, _repeated(logits, repetition_penalties[:, None]), logits)


def _repetition_cost(item: int, logits: Spec, *masks: Spec, **_: Any) -> Cost:
    return Cost(flops=logits.size, bytes=2 * logits.size * item + 2 * logits.size)


def _infer_penalty(logits: Spec, presence_penalty: Spec, frequency_penalty: Spec, repetition_penalty: Spec, token_ids: Spec, token_counts: Spec,
                   cumsum_seq_len: Spec) -> Spec:
    name = "apply_penalty"
    need_dtype(name, "logits", logits, FLOATS)
    need_rank(name, "logits", logits, 2)
    penalties = {"presence_penalty": presence_penalty, "frequency_penalty": frequency_penalty, "repetition_penalty": repetition_penalty}
    for what, t in penalties.items():
        _need_acc(name, what, t, logits)
        _need_shape(name, what, t, logits.shape[:1])
    _need_index(name, token_ids=token_ids, token_counts=token_counts, cumsum_seq_len=cumsum_seq_len)
    same_dtype(name, token_ids, token_counts, cumsum_seq_len)
    need_rank(name, "token_ids", token_ids, 1)
    _need_shape(name, "token_counts", token_counts, token_ids.shape)
    _need_shape(name, "cumsum_seq_len", cumsum_seq_len, (logits.shape[0] + 1,))
    return logits


def check_ends(name, what, ends, size, least=0):
    """Raises IndexOutOfBounds unless ``least`` <= ends[0] <= ends[1] ... <= size."""
    for i, end in enumerate(ends):
        low = ends[i - 1] if i else least
        if not low <= end <= size:
            raise IndexOutOfBounds(f"{name}: {what} {end} at position {i} is outside {low} <= {what} <= {size}; sequences stand one behind the other")


def _penalty(logits, presence_penalty, frequency_penalty, repetition_penalty, token_ids, token_counts, cumsum_seq_len):
    name = "apply_penalty"
    check_ends(name, "cumsum_seq_len", cumsum_seq_len, token_ids.shape[0])
    check_bounds(name, "token", token_ids, logits.shape[1])
    out = np.array(logits)
    for b in range(logits.shape[0]):
        at = slice(cumsum_seq_len[b], cumsum_seq_len[b + 1])
        ids, counts = token_ids[at], token_counts[at]
        with np.errstate(all="ignore"):
            out[b, ids] = _repeated(logits[b, ids], repetition_penalty[b]) - counts * frequency_penalty[b] - presence_penalty[b]
    return out


def _penalty_magnitude(logits, presence_penalty, frequency_penalty, repetition_penalty, token_ids, token_counts, cumsum_seq_len):
    out = np.abs(logits)
    for b in range(logits.shape[0]):
        at = slice(cumsum_seq_len[b], cumsum_seq_len[b + 1])
        ids, counts = token_ids[at], token_counts[at]
        with np.errstate(all="ignore"):
            out[b, ids] = (np.abs(_repeated(logits[b, ids], repetition_penalty[b])) + np.abs(counts * frequency_penalty[b])
                           + np.abs(presence_penalty[b]))
    return out


def _penalty_cost(item: int, logits: Spec, *more: Spec, **_: Any) -> Cost:
    ids = more[3]
    return Cost(flops=4 * ids.size, bytes=2 * logits.size * item + 2 * ids.size * ids.dtype.itemsize)


_VOCABS = (("one", 1, 1), ("prime", 3, 7), ("past_tile", 2, 1025), ("rows", 13, 33), ("nothing", 0, 5), ("no_vocabulary", 3, 0))
_REPETITION_SAMPLES = [Sample(n, (In((b, v), "wide"), In((b, v), "mask", "bool"), In((b, v), "mask", "bool"), In((b,), "positive",
                       "acc" if n == "rows" else None))) for n, b, v in _VOCABS] + [
    Sample("llama3", (In((8, 128256)), In((8, 128256), "mask", "bool"), In((8, 128256), "mask", "bool"), In((8,), "positive", "acc")), {},
           "Llama-3 logits, 8 sequences", "llm", ("full", "llm"))]


def _strides(n, by):
    """n different ids below by * n + 1, out of order."""
    return tuple((i * by + 1) % (by * n + 1) for i in reversed(range(n)))


# name, rows, vocabulary, ids, ends of the sequences
_PENALTIES: tuple[tuple[Any, ...], ...] = (("one", 1, 1, (0,), (0, 1)), ("prime", 3, 7, (6, 0, 3, 5, 1, 3), (0, 2, 2, 6)), ("nothing", 0, 5, (), (0,)),
              ("no_tokens", 2, 5, (), (0, 0, 0)), ("past_tile", 2, 1025, (1024, *_strides(300, 3)), (0, 1, 301)),
              ("unused_tail", 2, 9, (8, 2, 5, 1), (1, 2, 3)), ("long", 1, 4099, _strides(1030, 3), (0, 1030)))


def _penalty_inputs(name, b, v, ids, ends, dtype):
    kind = "acc" if name in ("prime", "llama3") else None
    return (In((b, v)), In((b,), "uniform", kind), In((b,), "uniform", kind), In((b,), "positive", kind), _v(*ids, dtype=dtype),
            In((len(ids),), "positive", dtype), _v(*ends, dtype=dtype))


_PENALTY_SAMPLES = [Sample(r[0], _penalty_inputs(r[0], r[1], r[2], r[3], r[4], "int32" if r[0] == "prime" else "int64")) for r in _PENALTIES] + [
    Sample("llama3", _penalty_inputs("llama3", 2, 128256, _strides(1024, 7) * 2, (0, 1024, 2048), "int32"), {},
           "Llama-3 logits, 1024 tokens each", "llm", ("full", "llm"))]
_L, _MASK, _P = In((2, 5)), In((2, 5), "mask", "bool"), In((2,), "positive")

op("apply_repetition_penalties(Tensor logits, Tensor prompt_mask, Tensor output_mask, Tensor repetition_penalties) -> Tensor", family="llm",
   dtypes=FLOATS, infer=_infer_repetition, reference=_repetition, budget=Faithful(k=1.0), cost=_repetition_cost, samples=_REPETITION_SAMPLES,
   doc="Logits (sequences, vocabulary) divided, where above 0, or multiplied by their sequence's penalty wherever prompt_mask or output_mask is "
       "true; the others stay.", names={"vllm": ("apply_repetition_penalties",)},
   bad=(Bad("mask_shape", (_L, In((2, 4), "mask", "bool"), _MASK, _P), ShapeError, ("prompt_mask", "(2, 4)", "(2, 5)")),
        Bad("mask_dtype", (_L, _MASK, In((2, 5), "int", "int32"), _P), DTypeError, ("output_mask", "int32", "bool")),
        Bad("penalties", (_L, _MASK, _MASK, In((3,))), ShapeError, ("repetition_penalties", "(3,)", "(2,)"))))

op("apply_penalty(Tensor logits, Tensor presence_penalty, Tensor frequency_penalty, Tensor repetition_penalty, Tensor token_ids, Tensor "
   "token_counts, Tensor cumsum_seq_len) -> Tensor", family="llm", dtypes=FLOATS, infer=_infer_penalty, reference=_penalty,
   budget=Composite(k=4, magnitude=_penalty_magnitude), cost=_penalty_cost, samples=_PENALTY_SAMPLES,
   doc="Logits (B, V) of the tokens a sequence has used: divided, where above 0, or multiplied by repetition_penalty, less count * "
       "frequency_penalty, less presence_penalty (each (B,)).  Sequence b used token_ids[cumsum_seq_len[b] : cumsum_seq_len[b + 1]], each id once, "
       "token_counts times.  An id outside the vocabulary or an end out of order is an IndexOutOfBounds.",
   names={"lightllm": ("apply_penalty",)},
   bad=(Bad("token_77_of_5", (_L, _P, _P, _P, _v(0, 77), _v(1, 1), _v(0, 1, 2)), IndexOutOfBounds, ("77", "position 1", "5")),
        Bad("ends", (_L, _P, _P, _P, _v(0, 1), _v(1, 1), _v(0, 2, 1)), IndexOutOfBounds, ("cumsum_seq_len", "position 2", "1")),
        Bad("end_past", (_L, _P, _P, _P, _v(0, 1), _v(1, 1), _v(0, 1, 3)), IndexOutOfBounds, ("cumsum_seq_len 3", "position 2", "2")),
        Bad("counts", (_L, _P, _P, _P, _v(0, 1), _v(1, 1, 1), _v(0, 1, 2)), ShapeError, ("token_counts", "(3,)", "(2,)"))))


# ---- the second half of lightllm's decode attention -------------------------------------------------------------------------
def _infer_reducev(logics: Spec, v: Spec, req_to_tokens: Spec, b_req_idx: Spec, b_start_loc: Spec, b_seq_len: Spec) -> Spec:
    name = "token_softmax_reducev"
    need_dtype(name, "logics", logics, FLOATS)
    need_rank(name, "logics", logics, 2)
    need_rank(name, "v", v, 3)
    _need_acc(name, "logics", logics, v)
    heads, shared = logics.shape[0], v.shape[1]
    if shared == 0 or heads % shared:
        raise ShapeError(f"{name}: logics has {heads} heads and v {shared}; the first must be divisible by the second")
    index = {"req_to_tokens": req_to_tokens, "b_req_idx": b_req_idx, "b_start_loc": b_start_loc, "b_seq_len": b_seq_len}
    _need_index(name, **index)
    same_dtype(name, *index.values())
    need_rank(name, "req_to_tokens", req_to_tokens, 2)
    need_rank(name, "b_req_idx", b_req_idx, 1)
    for what in ("b_start_loc", "b_seq_len"):
        _need_shape(name, what, index[what], b_req_idx.shape)
    return Spec((b_req_idx.shape[0], heads, v.shape[2]), v.dtype)


def _reducev(logics, v, req_to_tokens, b_req_idx, b_start_loc, b_seq_len):
    name = "token_softmax_reducev"
    heads, total = logics.shape
    check_bounds(name, "request", b_req_idx, req_to_tokens.shape[0])
    check_bounds(name, "b_seq_len", b_seq_len, min(req_to_tokens.shape[1], total) + 1)
    check_bounds(name, "b_start_loc", b_start_loc, total + 1)
    check_bounds(name, "end", b_start_loc + b_seq_len, total + 1)
    out = np.zeros((len(b_req_idx), heads, v.shape[2]))
    for b, (r, start, n) in enumerate(zip(b_req_idx, b_start_loc, b_seq_len)):
        slots = req_to_tokens[r, :n]
        check_bounds(name, "slot", slots, v.shape[0])
        if n == 0:
            continue
        with np.errstate(all="ignore"):
            x = logics[:, start:start + n]
            p = np.exp(x - x.max(axis=1, keepdims=True))
            values = np.repeat(v[slots], heads // v.shape[1], axis=1)  # (n, H, D)
            out[b] = np.einsum("hn,nhd->hd", p, values) / p.sum(axis=1, keepdims=True)
    return out


def _reducev_cost(item: int, logics: Spec, v: Spec, req_to_tokens: Spec, b_req_idx: Spec, *_: Spec, **__: Any) -> Cost:
    heads, total = logics.shape
    return Cost(flops=heads * total * (2 * v.shape[2] + 5),
                bytes=logics.size * logics.dtype.itemsize + total * v.shape[1] * v.shape[2] * item + b_req_idx.size * heads * v.shape[2] * item)


# name, heads, of v, width, slots, requests, most tokens, request, start and length of each sequence
_REDUCEV: tuple[tuple[Any, ...], ...] = (
    ("one", 1, 1, 1, 1, 1, 1, (0,), (0,), (1,)), ("prime", 3, 3, 5, 13, 4, 11, (2, 0), (0, 7), (7, 11)),
    ("gqa", 8, 2, 16, 40, 3, 33, (1, 2, 0), (0, 33, 34), (33, 1, 17)), ("empty_sequence", 2, 1, 4, 9, 2, 5, (1, 0), (3, 0), (0, 3)),
    ("no_sequences", 2, 1, 4, 9, 2, 5, (), (), ()), ("past_tile", 2, 1, 33, 300, 1, 270, (0,), (0,), (270,)))


def _reducev_sample(name, h, g, d, slots, requests, most, req, start, length, **more):
    total = max((s + n for s, n in zip(start, length)), default=3)
    kind = "int32" if name == "gqa" else "int64"
    return Sample(name, (In((h, total), "normal", "acc" if name == "prime" else None), In((slots, g, d)), _i((requests, most), slots, kind),
                         *(_v(*x, dtype=kind) for x in (req, start, length))), **more)


_REDUCEV_SAMPLES = [_reducev_sample(*r) for r in _REDUCEV] + [
    _reducev_sample("llama3_short", 32, 8, 128, 512, 2, 128, (0, 1), (0, 128), (128, 128), model="Llama-3-8B decode, 2 x 128 tokens", level="llm"),
    _reducev_sample("llama3_decode", 32, 8, 128, 4096, 4, 1024, (0, 1, 2, 3), (0, 1024, 2048, 3072), (1024,) * 4, model="Llama-3-8B decode, 4 x 1024 tokens",
                    level="full", bench=("full", "llm"))]


def _reducev_bad(name, words, table=None, req=(0, 1), start=(0, 2), length=(2, 3), error=IndexOutOfBounds, shared=1):
    return Bad(name, (In((2, 5)), In((6, shared, 4)), table or _i((2, 3), 6), _v(*req), _v(*start), _v(*length)), error, words)


op("token_softmax_reducev(Tensor logics, Tensor v, Tensor req_to_tokens, Tensor b_req_idx, Tensor b_start_loc, Tensor b_seq_len) -> Tensor",
   family="llm", dtypes=FLOATS, infer=_infer_reducev, reference=_reducev, cost=_reducev_cost, samples=_REDUCEV_SAMPLES,
   budget=Conditioned(k=4, terms=lambda logics, v, table, *_, **__: table.shape[1], roundings=1),
   doc="Decode attention from its scores: softmax of logics (H, tokens) over each sequence's columns b_start_loc .. + b_seq_len, times the values v "
       "(slots, G, D) of its tokens, whose slots stand in row b_req_idx of req_to_tokens; result (sequences, H, D), 0 for an empty sequence.  H is a "
       "multiple of G.  A row, column or slot that is not there is an IndexOutOfBounds.",
   names={"lightllm": ("token_softmax_reducev_fwd",)},
   bad=(_reducev_bad("slot_77_of_6", ("77", "6"), table=In((2, 3), dtype="int64", values=(0, 1, 2, 3, 77, 5))),
        _reducev_bad("request_7_of_2", ("7", "position 1", "2"), req=(0, 7)), _reducev_bad("too_long", ("4", "position 1"), length=(2, 4)),
        _reducev_bad("past_logics", ("end 6", "position 1", "6"), start=(0, 3)),
        _reducev_bad("heads", ("2 heads", "3", "divisible"), error=ShapeError, shared=3)))


# ---- sampling --------------------------------------------------------------------------------------------------------------
def _infer_sample(logits: Spec, k: Spec | None, p: Spec | None, *, seed: int, offset: int) -> Spec:
    name = "top_k_top_p_sample"
    need_dtype(name, "logits", logits, FLOATS)
    need_rank(name, "logits", logits, 2)
    need(logits.shape[1] > 0, f"{name}: logits is {logits.shape}; needs a vocabulary of 1 or more")
    if k is not None:
        _need_index(name, k=k)
        _need_shape(name, "k", k, logits.shape[:1])
    if p is not None:
        _need_acc(name, "p", p, logits)
        _need_shape(name, "p", p, logits.shape[:1])
    return Spec(logits.shape[:1], BY_NAME["int64"])


def _sample(logits, k, p, *, seed, offset):
    rows, vocabulary = logits.shape
    u = uniform(rows, seed, offset, BY_NAME["float32"])
    found = np.full(rows, -1, np.int64)
    for b in range(rows):
        x = logits[b].astype(np.float64)
        top = x.max()
        if not np.isfinite(top):
            continue
        kept = np.ones(vocabulary, bool)
        if k is not None and 0 < k[b] < vocabulary:
            kept = x >= np.sort(x)[vocabulary - k[b]]
        weight = np.where(kept, np.exp(x - top), 0.0)
        if p is not None and float(p[b]) < 1:
            order = np.argsort(-x, kind="stable")
            sums = np.cumsum(weight[order])
            first = np.searchsorted(-x[order], -x)  # the first of x's equals in descending order
            above = np.where(first > 0, sums[np.maximum(first - 1, 0)], 0.0)
            kept &= (above < float(p[b]) * sums[-1]) | (x == top)
            weight = np.where(kept, weight, 0.0)
        sums = np.cumsum(weight)
        found[b] = np.searchsorted(sums, u[b] * sums[-1], side="right")
    return found


def _sample_cost(item: int, logits: Spec, *_: Any, **__: Any) -> Cost:
    return Cost(flops=4 * logits.size, bytes=logits.size * item + logits.shape[0] * 8)


# name, rows, vocabulary, k, p
_SAMPLED: tuple[tuple[Any, ...], ...] = (
    ("one", 1, 1, True, True), ("prime", 5, 7, True, True), ("rows", 67, 50, True, True), ("only_k", 33, 129, True, False),
    ("only_p", 33, 129, False, True), ("neither", 65, 33, False, False), ("past_tile", 3, 2065, True, True), ("no_rows", 0, 5, True, True))
_SAMPLE_SAMPLES = [Sample(n, (In((b, v)), _i((b,), v + 3, "int32" if n == "rows" else "int64") if k else None,
                              In((b,), "unit", "acc" if n == "rows" else None) if p else None), {"seed": i, "offset": 2**33 * i})
                   for i, (n, b, v, k, p) in enumerate(_SAMPLED)] + [
    Sample("ties", (In((40, 30), "int"), _i((40,), 30), In((40,), "unit")), {"seed": -1}),
    Sample("not_finite", (In((4, 3), values=(float("-inf"), 0.0, float("-inf"), *(float("-inf"),) * 3, 0.0, float("nan"), 1.0,
                                              float("inf"), 0.0, 0.0)), _v(2, 2, 2, 2), In((4,), values=(0.5, 0.5, 0.5, 0.5))), {"seed": 3}),
    Sample("p_ends", (In((4, 9)), None, In((4,), values=(0.0, 1.0, -1.0, 2.0))), {"seed": 5}),
    Sample("llama3", (In((4, 128256)), _i((4,), 50, "int32"), In((4,), "unit", "acc")), {"seed": 7}, "Llama-3 logits, 4 sequences", "llm",
           ("full", "llm"))]

op("top_k_top_p_sample(Tensor logits, Tensor? k=None, Tensor? p=None, *, int seed=0, int offset=0) -> Tensor", family="llm", dtypes=FLOATS,
   infer=_infer_sample, reference=_sample, budget=Exact(), cost=_sample_cost, samples=_SAMPLE_SAMPLES, random=True,
   doc="One token (int64) a row of logits (B, V), drawn from softmax over the tokens kept: those that reach the k-th largest logit (k (B,); 0 and "
       "less, and V and more: all), and of them those whose larger ones have less than p (B,) of the probability that k left, and the largest.  "
       "Equal logits are kept or dropped together.  Row b takes the first token, in order of index, at which the sum of probabilities passes the "
       "uniform number (word b >> 8) * 2^-24 of Philox 4x32-10 (key seed, counter (b // 4, offset)).  A row whose largest logit is not finite gives -1.",
   names={"vllm": ("TopKTopPSampler",), "paddle": ("top_p_sampling",)},
   bad=(Bad("k_shape", (_L, _i((3,), 5), None), ShapeError, ("k is (3,)", "(2,)")), Bad("p_shape", (_L, None, In((5,), "unit")), ShapeError,
                                                                                     ("p is (5,)", "(2,)")),
        Bad("no_vocabulary", (In((2, 0)), None, None), ArgumentError, ("logits", "(2, 0)", "vocabulary")),
        Bad("float_k", (_L, In((2,)), None), DTypeError, ("k", "float32", "int64"))))
