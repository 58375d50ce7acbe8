"""Mixtures of experts on Triton: choosing experts, sorting tokens by expert, products by group, the whole layer.

The layer sorts tokens into blocks of one expert each, multiplies block by block (gate and up together), and adds a token's results up in
order.  Experts are checked before the launch.  Not here: what the operators mean (kernels/ops/moe.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl

from ...hal.driver import Capabilities
from ...hal.errors import IndexOutOfBounds
from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from ..ops.llm import check_ends
from . import scalar as m
from .index import first_outside
from .launch import F64, Data, Step, by_signature, capped, lacks, launch, next_power_of_2, programs
from .matmul import product
from .rows import contiguous, device_of, writable
from .shape import full
from .tiles import Call, dot_takes_float64, run, stages_within

__all__ = ["KERNELS", "WHEN", "matrix"]

TILE = 1024  # elements of a program of the small kernels
# rows of a block, BLOCK_N, BLOCK_K, warps, stages by bytes of an element, for so many rows an expert: the first that is not larger
TILES = {2: ((128, 128, 64, 32, 8, 3), (64, 64, 64, 64, 4, 3), (32, 32, 64, 64, 4, 3), (0, 16, 64, 64, 4, 3)),
         4: ((64, 64, 32, 32, 8, 2), (32, 32, 32, 32, 4, 2), (0, 16, 32, 32, 4, 2)), 8: ((0, 16, 16, 16, 4, 1),)}


# ---- choosing experts ------------------------------------------------------------------------------------------------------
@triton.jit
def _softmax(x, live):
    e = tl.where(live, m.exp(x - tl.max(x, 0)), 0.0)
    return m.div(e, tl.sum(e, 0))


@triton.jit
def topk_kernel(x_ptr, w_ptr, index_ptr, row_ptr, tokens, experts, topk, RENORMALIZE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
                BLOCK_K: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    i = tl.arange(0, BLOCK)
    at = tl.arange(0, BLOCK_K)
    for t in range(tl.program_id(0), tokens, tl.num_programs(0)):
        live = i < experts
        x = tl.load(x_ptr + t.to(tl.int64) * experts + i, mask=live, other=float("-inf")).to(acc)
        p = _softmax(x, live)
        weights = tl.zeros((BLOCK_K,), acc)
        chosen = tl.zeros((BLOCK_K,), tl.int32)
        for k in range(topk):
            best = tl.max(tl.where(live, x, float("-inf")), 0)
            place = tl.minimum(tl.min(tl.where(live & (x == best), i, BLOCK), 0), experts - 1)
            weights = tl.where(at == k, tl.sum(tl.where(i == place, p, 0.0), 0), weights)
            chosen = tl.where(at == k, place, chosen)
            live = live & (i != place)
        if RENORMALIZE:
            weights = m.div(weights, tl.sum(weights, 0))
        to = t.to(tl.int64) * topk + at
        tl.store(w_ptr + to, weights, mask=at < topk)
        tl.store(index_ptr + to, chosen, mask=at < topk)
        tl.store(row_ptr + to, at * tokens + t, mask=at < topk)


def topk_softmax(gating: Tensor, *, topk: int, renormalize: bool, out: tuple[Tensor, Tensor, Tensor]) -> None:
    if out[0].numel == 0:
        return
    tokens, experts = gating.shape
    with writable(out[0]) as w, writable(out[1]) as index, writable(out[2]) as rows:
        launch(topk_kernel, (capped(device_of(w), tokens),), contiguous(gating), w, index, rows, Data(tokens), experts, Data(topk), RENORMALIZE=renormalize,
               WIDE=w.dtype.name == "float64", BLOCK=next_power_of_2(experts), BLOCK_K=next_power_of_2(topk))


@triton.jit
def grouped_kernel(x_ptr, bias_ptr, w_ptr, index_ptr, tokens, groups, size, topk, topk_group, factor, BIAS: tl.constexpr, SIGMOID: tl.constexpr,
                   RENORMALIZE: tl.constexpr, WIDE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr):
    """The experts of a token as (BLOCK_G groups, BLOCK_S members)."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    g = tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    at = tl.arange(0, BLOCK_K)
    expert = g[:, None] * size + s[None, :]
    there = (g < groups)[:, None] & (s < size)[None, :]
    LAST: tl.constexpr = 2147483647
    for t in range(tl.program_id(0), tokens, tl.num_programs(0)):
        x = tl.load(x_ptr + t.to(tl.int64) * (groups * size) + expert, mask=there, other=float("-inf")).to(acc)
        if SIGMOID:
            e = m.exp(-tl.abs(x))
            score = tl.where(x < 0, m.div(e, 1.0 + e), m.div(tl.zeros_like(e) + 1.0, 1.0 + e))
        else:
            e = tl.where(there, m.exp(x - tl.max(tl.max(x, 1), 0)), 0.0)
            score = m.div(e, tl.sum(tl.sum(e, 1), 0))
        choice = score
        if BIAS:
            choice = score + tl.load(bias_ptr + expert, mask=there, other=0.0).to(acc)
        choice = tl.where(there, choice, float("-inf"))
        value = tl.max(choice, 1)  # (BLOCK_G,)
        if BIAS:
            first = tl.min(tl.where(choice == value[:, None], s[None, :], BLOCK_S), 1)
            second = tl.max(tl.where(s[None, :] == first[:, None], float("-inf"), choice), 1)
            value = tl.where(size > 1, value + second, value)
        left = g < groups
        kept = g < 0
        for _ in range(topk_group):
            best = tl.max(tl.where(left, value, float("-inf")), 0)
            place = tl.min(tl.where(left & (value == best), g, BLOCK_G), 0)
            kept = kept | (g == place)
            left = left & (g != place)
        live = there & kept[:, None]
        weights = tl.zeros((BLOCK_K,), acc)
        chosen = tl.zeros((BLOCK_K,), tl.int32)
        for k in range(topk):
            best = tl.max(tl.max(tl.where(live, choice, float("-inf")), 1), 0)
            place = tl.min(tl.min(tl.where(live & (choice == best), expert, LAST), 1), 0)
            place = tl.minimum(place, groups * size - 1)
            own = expert == place
            weights = tl.where(at == k, tl.sum(tl.sum(tl.where(own & there, score, 0.0), 1), 0), weights)
            chosen = tl.where(at == k, place, chosen)
            live = live & (expert != place)
        if RENORMALIZE:
            weights = m.div(weights, tl.sum(weights, 0))
        to = t.to(tl.int64) * topk + at
        tl.store(w_ptr + to, weights * factor, mask=at < topk)
        tl.store(index_ptr + to, chosen, mask=at < topk)


def grouped_topk(gating: Tensor, bias: Tensor | None, *, topk: int, num_groups: int, topk_group: int, scoring: str, renormalize: bool,
                 routed_scaling_factor: float, out: tuple[Tensor, Tensor]) -> None:
    if out[0].numel == 0:
        return
    tokens, experts = gating.shape
    x, wide, size = contiguous(gating), out[0].dtype.name == "float64", experts // num_groups
    with writable(out[0]) as w, writable(out[1]) as index:
        launch(grouped_kernel, (capped(device_of(w), tokens),), x, x if bias is None else contiguous(bias), w, index, Data(tokens), Data(num_groups), Data(size),
               Data(topk), Data(topk_group), F64(routed_scaling_factor) if wide else float(routed_scaling_factor), BIAS=bias is not None,
               SIGMOID=scoring == "sigmoid", RENORMALIZE=renormalize, WIDE=wide, BLOCK_G=next_power_of_2(num_groups), BLOCK_S=next_power_of_2(size),
               BLOCK_K=next_power_of_2(topk))


# ---- tokens by expert ------------------------------------------------------------------------------------------------------
@triton.jit
def count_kernel(id_ptr, count_ptr, n, experts, BLOCK: tl.constexpr):
    """count (experts,): how many ids name each."""
    for x in range(tl.program_id(0), experts, tl.num_programs(0)):
        total = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, n, BLOCK):
            i = start + tl.arange(0, BLOCK)
            total += ((i < n) & (tl.load(id_ptr + i, mask=i < n, other=0) == x)).to(tl.int32)
        tl.store(count_ptr + x, tl.sum(total, 0))


@triton.jit
def place_kernel(id_ptr, count_ptr, place_ptr, expert_ptr, used_ptr, n, experts, block, BLOCK: tl.constexpr, BLOCK_X: tl.constexpr):
    """Each expert's places, in order, from where the padded counts of those before it end."""
    for x in range(tl.program_id(0), experts, tl.num_programs(0)):
        first = 0
        total = 0
        own = 0
        for start in range(0, experts, BLOCK_X):
            e = start + tl.arange(0, BLOCK_X)
            count = tl.load(count_ptr + e, mask=e < experts, other=0)
            padded = (count + block - 1) // block * block
            first += tl.sum(tl.where(e < x, padded, 0), 0)
            own += tl.sum(tl.where(e == x, padded, 0), 0)
            total += tl.sum(padded, 0)
        if x == 0:
            tl.store(used_ptr, total)
        for at in range(0, own // block):
            tl.store(expert_ptr + first // block + at, x)
        for start in range(0, n, BLOCK):
            i = start + tl.arange(0, BLOCK)
            mine = (i < n) & (tl.load(id_ptr + i, mask=i < n, other=0) == x)
            ahead = tl.cumsum(mine.to(tl.int32), 0)
            tl.store(place_ptr + first + ahead - 1, i, mask=mine)
            first += tl.sum(mine.to(tl.int32), 0)


def _align(ids: Tensor, experts: int, block: int, places: Tensor, of: Tensor, used: Tensor) -> None:
    """moe_align_block_size into contiguous results."""
    n, device = ids.numel, device_of(places)
    full(shape=places.shape, value=n, dtype=places.dtype, out=places)
    full(shape=of.shape, value=-1, dtype=of.dtype, out=of)
    counts = device.empty((experts,), "int32")
    size = max(min(TILE, next_power_of_2(n)), 16)
    grid = (capped(device, experts),)
    launch(count_kernel, grid, ids, counts, n, Data(experts), BLOCK=size)
    launch(place_kernel, grid, ids, counts, places, of, used, n, Data(experts), Data(block), BLOCK=size, BLOCK_X=min(TILE, next_power_of_2(experts)))


def _check(name: str, ids: Tensor, experts: int) -> None:
    bad = first_outside(ids, experts)
    if bad is not None:
        raise IndexOutOfBounds(f"{name}: expert {bad[1]} at position {bad[0]} is outside 0 <= expert < {experts}")


def moe_align_block_size(topk_ids: Tensor, *, num_experts: int, block_size: int, out: tuple[Tensor, Tensor, Tensor]) -> None:
    ids = contiguous(topk_ids)
    _check("moe_align_block_size", ids, num_experts)
    with writable(out[0]) as places, writable(out[1]) as of, writable(out[2]) as used:
        _align(ids, num_experts, block_size, places, of, used)


# ---- sums and products -----------------------------------------------------------------------------------------------------
@triton.jit
def sum_kernel(x_ptr, y_ptr, per, width, blocks_i, blocks, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        t = (block // blocks_i).to(tl.int64)
        i = block % blocks_i * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), acc)
        for k in range(per):
            total += tl.load(x_ptr + (t * per + k) * width + i, mask=i < width, other=0.0).to(acc)
        tl.store(y_ptr + t * width + i, total.to(y_ptr.dtype.element_ty), mask=i < width)


def _sum(x: Tensor, per: int, y: Tensor) -> None:
    """y (T, D) = the sums of contiguous x (T, per, D) over its second axis."""
    tokens, width = y.shape
    block = min(next_power_of_2(width), TILE)
    blocks_i = programs(width, block)
    launch(sum_kernel, (capped(device_of(y), tokens * blocks_i),), x, y, Data(per), width, Data(blocks_i), Data(tokens * blocks_i),
           WIDE=x.dtype.name == "float64", BLOCK=block)


def moe_sum(x: Tensor, *, out: Tensor) -> None:
    if out.numel:
        with writable(out) as y:
            _sum(contiguous(x) if x.numel else y, x.shape[1], y)


def grouped_mm(a: Tensor, b: Tensor, offs: Tensor, *, out: Tensor) -> None:
    ends = offs.numpy()
    check_ends("grouped_mm", "offs", ends, a.shape[0])
    first = 0
    for g, end in enumerate(ends):
        product(a[first:int(end)], b[g], out[first:int(end)])
        first = int(end)
    rest = out[first:]
    if rest.numel:
        full(shape=rest.shape, value=0.0, dtype=rest.dtype, out=rest)


# ---- the layer -------------------------------------------------------------------------------------------------------------
@triton.jit
def expert_kernel(a_ptr, b_ptr, c_ptr, weight_ptr, place_ptr, expert_ptr, used_ptr, N, K, numel, per, tiles_n, stride_be, stride_bn, stride_bk, first,
                  GATED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Row p of c (numel, N) = row p // per of a (., K) times the transpose of its expert's b (N, K), times weight[p]; with GATED of b (2 N, K):
    silu(gate) * up, not weighted."""
    acc: tl.constexpr = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    tile = first + tl.program_id(0)
    block = tile // tiles_n
    if block * BLOCK_M < tl.load(used_ptr):
        place = tl.load(place_ptr + block * BLOCK_M + tl.arange(0, BLOCK_M))  # (BLOCK_M,)
        b_ptr += tl.load(expert_ptr + block).to(tl.int64) * stride_be
        n = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        live_m = place < numel
        live_n = n < N
        a_at = a_ptr + ((place // per).to(tl.int64)[:, None] * K + k[None, :])
        b_at = b_ptr + (k.to(tl.int64)[:, None] * stride_bk + n.to(tl.int64)[None, :] * stride_bn)
        total = tl.zeros((BLOCK_M, BLOCK_N), acc)
        up = tl.zeros((BLOCK_M, BLOCK_N), acc)
        for start in range(0, K, BLOCK_K):
            live_k = k < K - start
            a = tl.load(a_at, mask=live_m[:, None] & live_k[None, :], other=0.0)
            b = tl.load(b_at, mask=live_k[:, None] & live_n[None, :], other=0.0)
            total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=acc)
            if GATED:
                b = tl.load(b_at + N.to(tl.int64) * stride_bn, mask=live_k[:, None] & live_n[None, :], other=0.0)
                up = tl.dot(a, b, up, input_precision=PRECISION, out_dtype=acc)
            a_at += BLOCK_K
            b_at += BLOCK_K * stride_bk
        if GATED:
            total = m.div(total, 1.0 + m.exp(-total)) * up
        else:
            total = total * tl.load(weight_ptr + place, mask=live_m, other=0.0).to(acc)[:, None]
        c_at = c_ptr + (place.to(tl.int64)[:, None] * N + n[None, :])
        tl.store(c_at, total.to(c_ptr.dtype.element_ty), mask=live_m[:, None] & live_n[None, :])


def _tile(item: int, rows: int) -> tuple[int, int, int, int, int]:
    """(rows of a block, BLOCK_N, BLOCK_K, warps, stages) for so many rows an expert."""
    return next(t for t in TILES[item] if rows >= t[0])[1:]


def _expert_call(a: Tensor, b: Tensor, c: Tensor, weights: Tensor, places: Tensor, of: Tensor, used: Tensor, rows: int, per: int, gated: bool,
                 tile: tuple[int, int, int, int, int], facts: Capabilities) -> Call:
    block_m, block_n, block_k, warps, stages = tile
    n, k, item = c.shape[1], a.shape[1], a.itemsize
    block_n, block_k = min(block_n, max(16, next_power_of_2(n))), min(block_k, max(16, next_power_of_2(k)))
    tiles_n = programs(n, block_n)
    precision = None if item == 2 else facts.reduced_matmul if facts.reduced_matmul == "tf32" and item == 4 else "ieee"
    args = (a, b, c, weights, places, of, used, Data(n) if n == 1 else n, k, Data(rows), Data(per), Data(tiles_n), b.strides[0], Step(b.strides[1]),
            Step(b.strides[2]))
    stages = stages_within(facts, stages, (block_m + (2 if gated else 1) * block_n) * block_k * item)
    return Call(expert_kernel, of.numel * tiles_n, args, warps, stages,
                {"GATED": gated, "PRECISION": precision, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k})


def fused_experts(x: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor, *, out: Tensor) -> None:
    device, experts, inner, rows, per = device_of(x), w1.shape[0], w2.shape[2], topk_ids.numel, topk_ids.shape[1]
    ids = contiguous(topk_ids)
    _check("fused_experts", ids, experts)
    if out.numel == 0:
        return
    if rows == 0 or inner == 0:
        full(shape=out.shape, value=0.0, dtype=out.dtype, out=out)
        return
    tile = _tile(x.itemsize, rows // experts)
    most = rows + experts * (tile[0] - 1)
    blocks = programs(most, tile[0])
    places, of, used = device.empty((blocks * tile[0],), "int32"), device.empty((blocks,), "int32"), device.empty((1,), "int32")
    _align(ids, experts, tile[0], places, of, used)
    acts, results = device.empty((rows, inner), x.dtype), device.empty((rows, x.shape[1]), accumulator(x.dtype))
    weights, facts = contiguous(topk_weights), device.capabilities
    run(device, _expert_call(contiguous(x), w1, acts, weights, places, of, used, rows, per, True, tile, facts))
    run(device, _expert_call(acts, w2, results, weights, places, of, used, rows, 1, False, tile, facts))
    with writable(out) as y:
        _sum(results, per, y)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, *(accumulator(s.dtype).name for s in specs if s is not None and s.dtype.is_floating))


def _routes(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return "more than 16384 experts do not fit a program" if specs[0].shape[1] > 16384 else _when(specs, attrs, facts)


@by_signature
def _layer(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    if specs[0].dtype.name == "float64" and not dot_takes_float64():
        return "this Triton's tl.dot does not take float64; 3.6 does"
    return _when(specs, attrs, facts)


KERNELS = {"topk_softmax": topk_softmax, "grouped_topk": grouped_topk, "moe_align_block_size": moe_align_block_size, "moe_sum": moe_sum,
           "grouped_mm": grouped_mm, "fused_experts": fused_experts}
WHEN = {"topk_softmax": _routes, "grouped_topk": _routes, "moe_align_block_size": _when, "moe_sum": _when, "grouped_mm": _when, "fused_experts": _layer}


# ---- what is compiled ahead of time ----------------------------------------------------------------------------------------
_TYPICAL = Capabilities(model="", total_bytes=0, max_alloc_bytes=0, multiprocessors=128, max_shared_bytes=160 << 10)


def calls(facts: Capabilities = _TYPICAL) -> Iterator[tuple[str, Call]]:
    """Typical products of the layer on a device with these facts, over host tensors that stand in for the device's."""
    from ...hal.tensor import empty
    for name, dtype, rows in (("prefill", "bfloat16", 2048), ("decode", "float16", 16), ("exact", "float32", 512)):
        x, w1, w2 = empty((rows // 2, 1024), dtype), empty((8, 1792, 1024), dtype), empty((8, 1024, 896), dtype)
        tile = _tile(x.itemsize, rows // 8)
        acts, y, weights = empty((rows, 896), dtype), empty((rows, 1024), "float32"), empty((rows,), "float32")
        index = empty((rows + 8 * tile[0],), "int32")
        yield f"experts_gated_{name}_{x.dtype.short}", _expert_call(x, w1, acts, weights, index, index, index, rows, 2, True, tile, facts)
        yield f"experts_{name}_{x.dtype.short}", _expert_call(acts, w2, y, weights, index, index, index, rows, 1, False, tile, facts)


def matrix(shared_bytes: int = _TYPICAL.max_shared_bytes) -> Iterator[tuple[str, Any, tuple, dict[str, Any], int, int]]:
    """(name, kernel, signature, constants, num_warps, num_stages) of typical calls, for launch.compile_for."""
    for name, call in calls(replace(_TYPICAL, max_shared_bytes=shared_bytes)):
        yield name, call.kernel, call.signature, call.constants, call.num_warps, call.num_stages
    data, some, index, wide = ("i32", False), ("i32", True), ("*i32", True), ("*fp32", True)
    for t in ("*bf16", "*fp32"):
        yield f"topk {t}", topk_kernel, ((t, True), wide, index, index, data, some, data), \
            {"RENORMALIZE": True, "WIDE": False, "BLOCK": 128, "BLOCK_K": 8}, 4, 3
        yield f"grouped {t}", grouped_kernel, ((t, True), wide, wide, index, *(data,) * 5, ("fp32", False)), \
            {"BIAS": True, "SIGMOID": True, "RENORMALIZE": True, "WIDE": False, "BLOCK_G": 8, "BLOCK_S": 32, "BLOCK_K": 8}, 4, 3
        yield f"sum {t}", sum_kernel, ((t, True), (t, True), data, some, data, data), {"WIDE": False, "BLOCK": TILE}, 4, 3
    yield "count", count_kernel, (index, index, some, data), {"BLOCK": TILE}, 4, 3
    yield "place", place_kernel, (*(index,) * 5, some, data, data), {"BLOCK": TILE, "BLOCK_X": 256}, 4, 3
