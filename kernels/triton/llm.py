"""Small operators of language-model servers on Triton: rotary embeddings, writing key-value caches, penalties, sampling.

Indices are checked on the host before anything is launched: they are few, and an index past a cache would be written.
Not here: what the operators mean (kernels/ops/llm.py), attention over caches (attention_serve.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from ..ops.index import check_bounds
from ..ops.infer import accumulator
from ..ops.llm import check_ends, check_slots
from . import scalar as m
from .launch import Data, by_signature, capped, lacks, launch, next_power_of_2, programs
from .random import _halves, philox
from .rows import contiguous, device_of, writable
from .shape import copy
from .tables import check_used

__all__ = ["KERNELS", "WHEN", "matrix"]

TILE = 2048  # elements a program holds: 16 a thread at 4 warps of 32
LATER = 1024  # slots of later tokens compared at a time


# ---- rotary embeddings -----------------------------------------------------------------------------------------------------
@triton.jit
def rope_kernel(x_ptr, y_ptr, position_ptr, table_ptr, tokens, heads, width, half, second, third, blocks_h, blocks, SECTIONS: tl.constexpr,
                NEOX: tl.constexpr, BACKWARD: tl.constexpr, WIDE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """y (tokens, heads, width): each element with its partner; frequencies from ``second`` and ``third`` on turn by the other coordinates."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    w = tl.arange(0, BLOCK_W)
    turns = w < 2 * half
    if NEOX:
        low = w < half
        frequency = tl.where(low, w, w - half)
        partner = tl.where(low, w + half, w - half)
    else:
        low = w % 2 == 0
        frequency = w // 2
        partner = tl.where(low, w + 1, w - 1)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        token = (block // blocks_h).to(tl.int64)
        h = block % blocks_h * BLOCK_H + tl.arange(0, BLOCK_H)
        if SECTIONS:
            axis = (frequency >= second).to(tl.int64) + (frequency >= third).to(tl.int64)
            row = tl.load(position_ptr + axis * tokens + token, mask=turns, other=0).to(tl.int64)
        else:
            row = tl.load(position_ptr + token).to(tl.int64)
        at = row * (2 * half) + frequency
        c = tl.load(table_ptr + at, mask=turns, other=1.0).to(acc)
        s = tl.load(table_ptr + at + half, mask=turns, other=0.0).to(acc)
        s = tl.where(low, -s, s)
        if BACKWARD:
            s = -s
        first = token * heads * width
        live = (h < heads)[:, None] & (w < width)[None, :]
        x = tl.load(x_ptr + first + (h[:, None] * width + w[None, :]), mask=live, other=0.0).to(acc)
        other = tl.load(x_ptr + first + (h[:, None] * width + partner[None, :]), mask=live & turns[None, :], other=0.0).to(acc)
        y = tl.where(turns[None, :], x * c[None, :] + other * s[None, :], x)
        tl.store(y_ptr + first + (h[:, None] * width + w[None, :]), y.to(y_ptr.dtype.element_ty), mask=live)


def _rope(name: str, backward: bool) -> Any:
    def run(positions: Tensor, query: Tensor, key: Tensor, cos_sin_cache: Tensor, *, head_size: int, is_neox: bool, out: tuple[Tensor, Tensor],
            mrope_section: Sequence[int] | None = None) -> None:
        check_bounds(name, "position", positions.numpy(), cos_sin_cache.shape[0])
        half = cos_sin_cache.shape[1] // 2
        second, third = (half, half) if mrope_section is None else (mrope_section[0], mrope_section[0] + mrope_section[1])
        places, table = contiguous(positions), contiguous(cos_sin_cache)
        tokens = positions.numel // (1 if mrope_section is None else 3)
        for x, to in zip((query, key), out):
            if x.numel == 0:
                continue
            heads = x.numel // (tokens * head_size)
            block_w = next_power_of_2(head_size)
            block_h = min(next_power_of_2(heads), max(TILE // block_w, 1))
            blocks_h = programs(heads, block_h)
            with writable(to) as y:
                launch(rope_kernel, (capped(device_of(y), tokens * blocks_h),), contiguous(x), y, places, table, Data(tokens), heads, head_size, half,
                       Data(second), Data(third), Data(blocks_h), Data(tokens * blocks_h), SECTIONS=mrope_section is not None, NEOX=is_neox,
                       BACKWARD=backward, WIDE=x.dtype.name == "float64", BLOCK_H=block_h, BLOCK_W=block_w)

    return run


# ---- writing caches --------------------------------------------------------------------------------------------------------
@triton.jit
def put_kernel(x_ptr, slot_ptr, y_ptr, tokens, width, column, columns, blocks_i, blocks, LATER: tl.constexpr, BLOCK: tl.constexpr):
    """y (slots, columns) from ``column`` on = row t of x (tokens, width) at slot[t] >= 0, unless a later token has that slot."""
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        t = block // blocks_i
        i = block % blocks_i * BLOCK + tl.arange(0, BLOCK)
        slot = tl.load(slot_ptr + t)
        again = 0
        for start in range(t + 1, tokens, LATER):
            at = start + tl.arange(0, LATER)
            later = tl.load(slot_ptr + at, mask=at < tokens, other=-1)
            again += tl.sum((later == slot).to(tl.int32), 0)
        live = (i < width) & (slot >= 0) & (again == 0)
        x = tl.load(x_ptr + t.to(tl.int64) * width + i, mask=live, other=0)
        tl.store(y_ptr + slot.to(tl.int64) * columns + column + i, x, mask=live)


def _put(sources: Sequence[Tensor], cache: Tensor, slots: Tensor, out: Tensor) -> None:
    """out = cache with the rows of the sources side by side in their slots; ``out`` may be the cache."""
    tokens, columns = slots.numel, sum(s.numel // max(s.shape[0], 1) for s in sources)
    with writable(out) as y:
        if y.numel == 0:
            return
        if y.address != cache.address:
            copy(cache, out=y)
        if tokens == 0:
            return
        column = 0
        for source in sources:
            width = source.numel // source.shape[0]
            block = min(next_power_of_2(width), TILE)
            blocks_i = programs(width, block)
            if width:
                launch(put_kernel, (capped(device_of(y), tokens * blocks_i),), contiguous(source), contiguous(slots), y, Data(tokens), width, column, columns,
                       Data(blocks_i), Data(tokens * blocks_i), LATER=min(LATER, next_power_of_2(tokens)), BLOCK=block)
            column += width


def reshape_and_cache(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, *, out: tuple[Tensor, Tensor]) -> None:
    check_slots("reshape_and_cache", slot_mapping.numpy(), key_cache.shape[0] * key_cache.shape[1])
    _put((key,), key_cache, slot_mapping, out[0])
    _put((value,), value_cache, slot_mapping, out[1])


def concat_and_cache_mla(kv_c: Tensor, k_pe: Tensor, kv_cache: Tensor, slot_mapping: Tensor, *, out: Tensor) -> None:
    check_slots("concat_and_cache_mla", slot_mapping.numpy(), kv_cache.shape[0] * kv_cache.shape[1])
    _put((kv_c, k_pe), kv_cache, slot_mapping, out)


def destindex_copy_kv(key: Tensor, dest_index: Tensor, cache: Tensor, *, out: Tensor) -> None:
    check_bounds("destindex_copy_kv", "slot", dest_index.numpy(), cache.shape[0])
    _put((key,), cache, dest_index, out)


# ---- penalties -------------------------------------------------------------------------------------------------------------
@triton.jit
def repetition_kernel(x_ptr, prompt_ptr, output_ptr, penalty_ptr, y_ptr, n, blocks_i, blocks, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = (block // blocks_i).to(tl.int64)
        i = block % blocks_i * BLOCK + tl.arange(0, BLOCK)
        live = i < n
        p = tl.load(penalty_ptr + row).to(acc)
        x = tl.load(x_ptr + row * n + i, mask=live, other=0.0).to(acc)
        seen = (tl.load(prompt_ptr + row * n + i, mask=live, other=0) | tl.load(output_ptr + row * n + i, mask=live, other=0)) != 0
        y = tl.where(seen, tl.where(x > 0, m.div(x, p), x * p), x)
        tl.store(y_ptr + row * n + i, y.to(y_ptr.dtype.element_ty), mask=live)


def apply_repetition_penalties(logits: Tensor, prompt_mask: Tensor, output_mask: Tensor, repetition_penalties: Tensor, *, out: Tensor) -> None:
    if out.numel == 0:
        return
    rows, n = logits.shape
    block = min(next_power_of_2(n), TILE)
    blocks_i = programs(n, block)
    with writable(out) as y:
        launch(repetition_kernel, (capped(device_of(y), rows * blocks_i),), contiguous(logits), contiguous(prompt_mask), contiguous(output_mask),
               contiguous(repetition_penalties), y, n, Data(blocks_i), Data(rows * blocks_i), WIDE=out.dtype.name == "float64", BLOCK=block)


@triton.jit
def penalty_kernel(x_ptr, presence_ptr, frequency_ptr, repetition_ptr, id_ptr, count_ptr, end_ptr, y_ptr, rows, n, WIDE: tl.constexpr,
                   BLOCK: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        presence = tl.load(presence_ptr + row).to(acc)
        frequency = tl.load(frequency_ptr + row).to(acc)
        repetition = tl.load(repetition_ptr + row).to(acc)
        first = row.to(tl.int64) * n
        begin = tl.load(end_ptr + row).to(tl.int32)
        end = tl.load(end_ptr + row + 1).to(tl.int32)
        for start in range(begin, end, BLOCK):
            at = start + tl.arange(0, BLOCK)
            live = at < end
            token = tl.load(id_ptr + at, mask=live, other=0)
            count = tl.load(count_ptr + at, mask=live, other=0).to(acc)
            x = tl.load(x_ptr + first + token, mask=live, other=0.0).to(acc)
            x = tl.where(x > 0, m.div(x, repetition), x * repetition)
            tl.store(y_ptr + first + token, (x - count * frequency - presence).to(y_ptr.dtype.element_ty), mask=live)


def apply_penalty(logits: Tensor, presence_penalty: Tensor, frequency_penalty: Tensor, repetition_penalty: Tensor, token_ids: Tensor,
                  token_counts: Tensor, cumsum_seq_len: Tensor, *, out: Tensor) -> None:
    check_ends("apply_penalty", "cumsum_seq_len", cumsum_seq_len.numpy(), token_ids.numel)
    check_bounds("apply_penalty", "token", token_ids.numpy(), logits.shape[1])
    if out.numel == 0:
        return
    with writable(out) as y:
        if y.address != logits.address:
            copy(logits, out=y)
        given = [contiguous(t) for t in (logits, presence_penalty, frequency_penalty, repetition_penalty, token_ids, token_counts, cumsum_seq_len)]
        launch(penalty_kernel, (capped(device_of(y), logits.shape[0]),), *given, y, Data(logits.shape[0]), logits.shape[1],
               WIDE=out.dtype.name == "float64", BLOCK=min(1024, next_power_of_2(max(token_ids.numel, 1))))


# ---- the second half of lightllm's decode attention -------------------------------------------------------------------------
@triton.jit
def reducev_kernel(x_ptr, v_ptr, table_ptr, request_ptr, start_ptr, length_ptr, y_ptr, heads, shared, total, columns, width, blocks,
                   WIDE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    j = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        b = block // heads
        h = (block % heads).to(tl.int64)
        n = tl.load(length_ptr + b).to(tl.int32)
        row = x_ptr + h * total + tl.load(start_ptr + b)
        slots = table_ptr + tl.load(request_ptr + b).to(tl.int64) * columns
        top = tl.full((BLOCK_N,), float("-inf"), acc)
        for start in range(0, n, BLOCK_N):
            top = tl.maximum(top, tl.load(row + start + j, mask=start + j < n, other=float("-inf")).to(acc))
        highest = tl.max(top, 0)
        sums = tl.zeros((BLOCK_N,), acc)
        result = tl.zeros((BLOCK_D,), acc)
        for start in range(0, n, BLOCK_N):
            live = start + j < n
            x = tl.load(row + start + j, mask=live, other=float("-inf")).to(acc)
            p = tl.where(live, m.exp(x - highest), 0.0)
            sums += p
            slot = tl.load(slots + start + j, mask=live, other=0).to(tl.int64)
            at = (slot[:, None] * (heads // shared) + h // shared) * width + d[None, :]
            v = tl.load(v_ptr + at, mask=live[:, None] & (d < width)[None, :], other=0.0).to(acc)
            result += tl.sum(p[:, None] * v, 0)
        count = tl.sum(sums, 0)
        result = tl.where(n > 0, m.div(result, tl.where(n > 0, count, 1.0)), 0.0)
        tl.store(y_ptr + block.to(tl.int64) * width + d, result.to(y_ptr.dtype.element_ty), mask=d < width)


def token_softmax_reducev(logics: Tensor, v: Tensor, req_to_tokens: Tensor, b_req_idx: Tensor, b_start_loc: Tensor, b_seq_len: Tensor, *,
                          out: Tensor) -> None:
    name = "token_softmax_reducev"
    heads, total = logics.shape
    start, length = b_start_loc.numpy(), b_seq_len.numpy()
    check_bounds(name, "request", b_req_idx.numpy(), req_to_tokens.shape[0])
    check_bounds(name, "b_seq_len", length, min(req_to_tokens.shape[1], total) + 1)
    check_bounds(name, "b_start_loc", start, total + 1)
    check_bounds(name, "end", start + length, total + 1)
    table, request, lengths = contiguous(req_to_tokens), contiguous(b_req_idx), contiguous(b_seq_len)
    check_used(name, "slot", table, lengths, 1, v.shape[0], request)
    if out.numel == 0:
        return
    block_d = next_power_of_2(v.shape[2])
    block_n = max(min(next_power_of_2(max(total, 1)), 2 * TILE // block_d, 128), 1)
    blocks = len(length) * heads
    with writable(out) as y:
        launch(reducev_kernel, (capped(device_of(y), blocks),), contiguous(logics), contiguous(v), table, request, contiguous(b_start_loc), lengths, y,
               Data(heads), Data(heads // v.shape[1]), total, table.shape[1], v.shape[2], Data(blocks), WIDE=out.dtype.name == "float64",
               BLOCK_N=block_n, BLOCK_D=block_d)


# ---- sampling --------------------------------------------------------------------------------------------------------------
@triton.jit
def _key(x, WIDE: tl.constexpr):
    """x as a signed integer in the order of the values; -0 is 0."""
    x = tl.where(x == 0.0, 0.0, x)
    if WIDE:
        bits = x.to(tl.int64, bitcast=True)
        key = bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    else:
        bits = x.to(tl.int32, bitcast=True)
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return key


@triton.jit
def _weights(x_ptr, start, n, top, least, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """(keys, exp(x - top) of the values whose key reaches ``least``, else 0) of a block of a row."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    i = start + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=float("-inf")).to(acc)
    key = _key(x, WIDE)
    return key, tl.where((i < n) & (key >= least), m.exp(x - top), 0.0)


@triton.jit
def sample_kernel(x_ptr, k_ptr, p_ptr, y_ptr, rows, n, seed_low, seed_high, offset_low, offset_high, K: tl.constexpr, P: tl.constexpr,
                  WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Borders of what is kept are found bit by bit of the values' keys, from the top: each bit is a pass over the row."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    whole: tl.constexpr = tl.int64 if WIDE else tl.int32
    BITS: tl.constexpr = 64 if WIDE else 32
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        x_at = x_ptr + row.to(tl.int64) * n
        highest = tl.full((BLOCK,), float("-inf"), acc)
        odd = tl.zeros((BLOCK,), tl.int32)  # NaN
        for start in range(0, n, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(x_at + i, mask=i < n, other=float("-inf")).to(acc)
            odd += (x != x).to(tl.int32)
            highest = tl.maximum(highest, tl.where(x == x, x, float("-inf")))
        top = tl.max(highest, 0)
        finite = (top > float("-inf")) & (top < float("inf")) & (tl.sum(odd, 0) == 0)
        top = tl.where(finite, top, 0.0)
        one = tl.full((1,), 1, whole)
        lowest = one << (BITS - 1)  # (1,): the least key
        least = lowest
        if K:
            k = tl.load(k_ptr + row)
            if (k > 0) & (k < n):
                for bit in range(BITS):
                    candidate = least ^ (one << (BITS - 1 - bit))
                    count = tl.zeros((BLOCK,), tl.int32)
                    for start in range(0, n, BLOCK):
                        i = start + tl.arange(0, BLOCK)
                        x = tl.load(x_at + i, mask=i < n, other=0.0).to(acc)
                        count += ((i < n) & (_key(x, WIDE) >= candidate)).to(tl.int32)
                    least = tl.where(tl.sum(count, 0) >= k, candidate, least)
        if P:
            p = tl.load(p_ptr + row).to(acc)
            if p < 1.0:
                weight = tl.zeros((BLOCK,), acc)
                for start in range(0, n, BLOCK):
                    _, w = _weights(x_at, start, n, top, least, WIDE, BLOCK)
                    weight += w
                target = p * tl.sum(weight, 0)
                border = lowest
                for bit in range(BITS):
                    candidate = border ^ (one << (BITS - 1 - bit))
                    weight = tl.zeros((BLOCK,), acc)
                    for start in range(0, n, BLOCK):
                        key, w = _weights(x_at, start, n, top, least, WIDE, BLOCK)
                        weight += tl.where(key >= candidate, w, 0.0)
                    border = tl.where(tl.sum(weight, 0) >= target, candidate, border)
                border = tl.minimum(border, _key(tl.full((1,), 0.0, acc) + top, WIDE))
                least = tl.maximum(least, border)
        weight = tl.zeros((BLOCK,), acc)
        for start in range(0, n, BLOCK):
            _, w = _weights(x_at, start, n, top, least, WIDE, BLOCK)
            weight += w
        c0, c1, c2, c3 = philox((row // 4).to(tl.int64), seed_low, seed_high, offset_low, offset_high, 1)
        word = row % 4
        bits = tl.where(word == 0, c0, tl.where(word == 1, c1, tl.where(word == 2, c2, c3)))
        u = tl.sum((bits >> 8).to(tl.int32).to(acc) * 5.9604644775390625e-08, 0)  # 2**-24
        target = u * tl.sum(weight, 0)
        before = tl.sum(tl.zeros((1,), acc), 0)
        found = n
        last = 0
        for start in range(0, n, BLOCK):
            _, w = _weights(x_at, start, n, top, least, WIDE, BLOCK)
            i = start + tl.arange(0, BLOCK)
            sums = before + tl.cumsum(w, 0)
            found = tl.minimum(found, tl.min(tl.where((sums > target) & (w > 0.0), i, n), 0))
            last = tl.maximum(last, tl.max(tl.where(w > 0.0, i, 0), 0))
            before += tl.sum(w, 0)
        found = tl.where(found < n, found, last)  # rounding passed all of them by
        tl.store(y_ptr + row, tl.where(finite, found, -1).to(tl.int64))


def top_k_top_p_sample(logits: Tensor, k: Tensor | None, p: Tensor | None, *, seed: int, offset: int, out: Tensor) -> None:
    if out.numel == 0:
        return
    rows, n = logits.shape
    x = contiguous(logits)
    with writable(out) as y:
        launch(sample_kernel, (capped(device_of(y), rows),), x, y if k is None else contiguous(k), x if p is None else contiguous(p), y, Data(rows), n,
               *_halves(seed), *_halves(offset), K=k is not None, P=p is not None, WIDE=logits.dtype.name == "float64",
               BLOCK=min(next_power_of_2(n), 4096))


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    floats = [s.dtype for s in specs if s is not None and s.dtype.is_floating]
    return lacks(facts, *(accumulator(d).name for d in floats))


@by_signature
def _moves(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return ""


@by_signature
def _sampled(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return _when(specs, attrs, facts) or ("indices need 64-bit integers" if not facts.int64_math else "")


KERNELS = {"rotary_embedding": _rope("rotary_embedding", False), "rope_backward": _rope("rope_backward", True), "mrope": _rope("mrope", False),
           "reshape_and_cache": reshape_and_cache, "concat_and_cache_mla": concat_and_cache_mla, "destindex_copy_kv": destindex_copy_kv,
           "apply_repetition_penalties": apply_repetition_penalties, "apply_penalty": apply_penalty,
           "token_softmax_reducev": token_softmax_reducev, "top_k_top_p_sample": top_k_top_p_sample}
_MOVES = ("reshape_and_cache", "concat_and_cache_mla", "destindex_copy_kv")
WHEN = {name: _moves if name in _MOVES else _sampled if name == "top_k_top_p_sample" else _when for name in KERNELS}


# ---- what is compiled ahead of time ----------------------------------------------------------------------------------------
def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """(name, kernel, signature, constants, num_warps) of typical calls, for launch.compile_for."""
    some, data, index = ("i32", True), ("i32", False), ("*i64", True)
    for t, sections, neox in (("*bf16", False, True), ("*fp32", True, True), ("*fp16", False, False)):
        yield f"rope {t}", rope_kernel, ((t, True), (t, True), index, (t, True), data, some, some, some, *(data,) * 4), \
            {"SECTIONS": sections, "NEOX": neox, "BACKWARD": False, "WIDE": False, "BLOCK_H": 16, "BLOCK_W": 128}, 4
        yield f"reducev {t}", reducev_kernel, ((t, True), (t, True), index, index, index, index, (t, True), data, data, some, some, some, data), \
            {"WIDE": False, "BLOCK_N": 32, "BLOCK_D": 128}, 4
        yield f"sample {t}", sample_kernel, ((t, True), index, (t, True), index, data, some, *(data,) * 4), \
            {"K": True, "P": True, "WIDE": False, "BLOCK": 4096}, 4
    for t in ("*bf16", "*i8"):
        yield f"put {t}", put_kernel, ((t, True), index, (t, True), data, some, some, some, data, data), {"LATER": LATER, "BLOCK": TILE}, 4
    for t in ("*bf16", "*fp32"):
        yield f"repetition {t}", repetition_kernel, ((t, True), ("*i8", True), ("*i8", True), ("*fp32", True), (t, True), some, data, data), \
            {"WIDE": False, "BLOCK": TILE}, 4
        yield f"penalty {t}", penalty_kernel, ((t, True), *(("*fp32", True),) * 3, index, index, index, (t, True), data, some), \
            {"WIDE": False, "BLOCK": 1024}, 4
