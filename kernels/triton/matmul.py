"""matmul, mm, bmm, addmm, baddbmm, linear: all of them are alpha a b + beta x over tiles, any strides, batches broadcast.

16-bit and float32 products go through tl.dot and accumulate in float32; float64 goes through tl.dot where Triton has
that and through sums of products elsewhere.  One row or one column is a matrix-vector product, bound by memory.
Not here: what the operators mean (kernels/ops/matmul.py).
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...hal.driver import Capabilities
from ...hal.tensor import Tensor
from .launch import F64, Data, Step, next_power_of_2, programs
from .rows import device_of
from .tiles import FAR, Call, broadcast_steps, dot_takes_float64, reach, run, stages_within

__all__ = ["KERNELS", "matrix"]

# BLOCK_M, BLOCK_N, BLOCK_K, warps, stages by bytes of an element, largest first: the first one that fits the matrix and
# makes enough tiles to fill the device is taken, else the last one that fits.
TILES = {
    2: ((128, 256, 64, 8, 3),
        (128, 128, 64, 8, 3),
        (64, 128, 64, 4, 4),
        (64, 64, 64, 4, 4),
        (32, 64, 64, 4, 4),
        (16, 128, 64, 4, 4),
        (16, 64, 128, 4, 4)),
    4: ((128, 128, 16, 8, 3),
        (64, 64, 16, 4, 3),
        (32, 64, 32, 4, 3),
        (32, 32, 32, 4, 3),
        (16, 64, 32, 4, 3),
        (16, 32, 64, 4, 3)),
    8: ((64, 64, 16, 4, 3),
        (32, 32, 16, 4, 3),
        (16, 32, 16, 4, 3)),
}
GROUP_M = 8  # rows of tiles that run side by side, so that their columns of b stay in the second-level cache
# BLOCK_R rows of outputs, BLOCK_K terms of a matrix-vector product, by whether the terms lie side by side
VECTOR_TILES = {True: (4, 512), False: (64, 32)}


@triton.jit
def matmul_kernel(a_ptr, b_ptr, x_ptr, c_ptr, M, N, K, inner, stride_am, stride_ak, stride_bk, stride_bn, stride_xm, stride_xn,
                  stride_cm, stride_cn, a_outer, a_inner, b_outer, b_inner, x_outer, x_inner, c_outer, c_inner, alpha, beta,
                  first, ADD: tl.constexpr, BATCHED: tl.constexpr, FAR: tl.constexpr, DOT: tl.constexpr,
                  PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                  GROUP_M: tl.constexpr):
    acc: tl.constexpr = tl.float64 if c_ptr.dtype.element_ty == tl.float64 else tl.float32
    tile = first + tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    if BATCHED:
        batch = tile // (tiles_m * tiles_n)
        tile = tile % (tiles_m * tiles_n)
        outer = (batch // inner).to(tl.int64)
        within = (batch % inner).to(tl.int64)
        a_ptr += outer * a_outer + within * a_inner
        b_ptr += outer * b_outer + within * b_inner
        x_ptr += outer * x_outer + within * x_inner
        c_ptr += outer * c_outer + within * c_inner
    group = tile // (GROUP_M * tiles_n)
    rows_of_group = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    in_group = tile % (GROUP_M * tiles_n)
    rm = (group * GROUP_M + in_group % rows_of_group) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    rn = (in_group // rows_of_group) * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    rk = tl.arange(0, BLOCK_K)
    live_m = rm < M
    live_n = rn < N
    if FAR:
        rm = rm.to(tl.int64)
        rn = rn.to(tl.int64)
        rk = rk.to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), acc)
    if DOT:
        a_at = a_ptr + (rm[:, None] * stride_am + rk[None, :] * stride_ak)
        b_at = b_ptr + (rk[:, None] * stride_bk + rn[None, :] * stride_bn)
        for start in range(0, K, BLOCK_K):
            live_k = rk < K - start
            a = tl.load(a_at, mask=live_m[:, None] & live_k[None, :], other=0.0)
            b = tl.load(b_at, mask=live_k[:, None] & live_n[None, :], other=0.0)
            total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=acc)
            a_at += BLOCK_K * stride_ak
            b_at += BLOCK_K * stride_bk
    else:
        a_at = a_ptr + rm * stride_am
        b_at = b_ptr + rn * stride_bn
        for _ in range(K):
            a = tl.load(a_at, mask=live_m, other=0.0).to(acc)
            b = tl.load(b_at, mask=live_n, other=0.0).to(acc)
            total += a[:, None] * b[None, :]
            a_at += stride_ak
            b_at += stride_bk
    total = total * alpha
    live = live_m[:, None] & live_n[None, :]
    if ADD:
        x = tl.load(x_ptr + (rm[:, None] * stride_xm + rn[None, :] * stride_xn), mask=live, other=0.0)
        total += beta * x.to(acc)
    tl.store(c_ptr + (rm[:, None] * stride_cm + rn[None, :] * stride_cn), total.to(c_ptr.dtype.element_ty), mask=live)


@triton.jit
def vector_kernel(w_ptr, v_ptr, x_ptr, y_ptr, R, K, inner, stride_wr, stride_wk, stride_vk, stride_xr, stride_yr, w_outer, w_inner,
                  v_outer, v_inner, x_outer, x_inner, y_outer, y_inner, alpha, beta, first, ADD: tl.constexpr,
                  BATCHED: tl.constexpr, FAR: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    """y[r] = alpha sum_k w[r, k] v[k] + beta x[r]: every lane keeps its own sum, added up once at the end."""
    acc: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    tile = first + tl.program_id(0)
    tiles = tl.cdiv(R, BLOCK_R)
    if BATCHED:
        batch = tile // tiles
        tile = tile % tiles
        outer = (batch // inner).to(tl.int64)
        within = (batch % inner).to(tl.int64)
        w_ptr += outer * w_outer + within * w_inner
        v_ptr += outer * v_outer + within * v_inner
        x_ptr += outer * x_outer + within * x_inner
        y_ptr += outer * y_outer + within * y_inner
    r = tile * BLOCK_R + tl.arange(0, BLOCK_R)  # (BLOCK_R,)
    k = tl.arange(0, BLOCK_K)
    live = r < R
    if FAR:
        r = r.to(tl.int64)
        k = k.to(tl.int64)
    total = tl.zeros((BLOCK_R, BLOCK_K), acc)
    w_at = w_ptr + (r[:, None] * stride_wr + k[None, :] * stride_wk)
    v_at = v_ptr + k * stride_vk
    for start in range(0, K, BLOCK_K):
        live_k = k < K - start
        v = tl.load(v_at, mask=live_k, other=0.0).to(acc)
        w = tl.load(w_at, mask=live[:, None] & live_k[None, :], other=0.0).to(acc)
        total += w * v[None, :]
        w_at += BLOCK_K * stride_wk
        v_at += BLOCK_K * stride_vk
    y = tl.sum(total, 1) * alpha
    if ADD:
        y += beta * tl.load(x_ptr + r * stride_xr, mask=live, other=0.0).to(acc)
    tl.store(y_ptr + r * stride_yr, y.to(y_ptr.dtype.element_ty), mask=live)


# ---- planning ------------------------------------------------------------------------------------------------------------
class _Batch(NamedTuple):
    """One axis of matrices: how many, and the step from one to the next in a, b, x and c."""

    size: int
    steps: tuple[int, int, int, int]


def _fold(shape: tuple[int, ...], steps: list[tuple[Step, ...]]) -> list[_Batch]:
    """Batch axes without those of size 1, neighbours merged where all four tensors allow it; outermost first."""
    found: list[_Batch] = []
    for i, n in enumerate(shape):
        axis = _Batch(n, tuple(s[i] for s in steps))
        if n == 1:
            continue
        if found and all(outer == inner * n for outer, inner in zip(found[-1].steps, axis.steps)):
            axis = _Batch(found.pop().size * n, axis.steps)
        found.append(axis)
    return found


def _plan(a: Tensor, b: Tensor, x: Tensor | None, c: Tensor, alpha: float, beta: float, facts: Capabilities) -> Call | None:
    """The call for c = alpha a b + beta x: a (..., M, K), b (..., K, N), c (..., M, N), x broadcast to c.

    None where more than two batch axes remain after merging.
    """
    shape, lead = c.shape, c.shape[:-2]
    m, n, k = shape[-2], shape[-1], a.shape[-1]
    added = c if x is None else x
    sa = broadcast_steps(a, (*lead, m, k))
    sb = broadcast_steps(b, (*lead, k, n))
    sx, sc = broadcast_steps(added, shape), broadcast_steps(c, shape)
    axes = _fold(lead, [sa[:-2], sb[:-2], sx[:-2], sc[:-2]])
    (am, ak), (bk, bn), (xm, xn), (cm, cn) = sa[-2:], sb[-2:], sx[-2:], sc[-2:]
    if axes and axes[-1].steps[1] == 0:  # one b for the innermost axis: its matrices are further rows of a
        size, (da, _, dx, dc) = axes[-1]
        if m == 1 or all(d == s * m for d, s in ((da, am), (dx, xm), (dc, cm))):
            am, xm, cm = (da, dx, dc) if m == 1 else (am, xm, cm)
            m *= size
            axes.pop()
    if len(axes) > 2:
        return None
    axes = [_Batch(1, (0, 0, 0, 0))] * (2 - len(axes)) + axes
    outer, inner = axes
    # a step to the next matrix is no unit to compile in: plain integers
    batches = tuple(int(s) for pair in zip(outer.steps, inner.steps) for s in pair)
    far = max(reach((m, k), (am, ak)), reach((k, n), (bk, bn)), reach((m, n), (xm, xn)), reach((m, n), (cm, cn))) + 2**20 >= FAR
    number = F64 if c.dtype.name == "float64" else float
    constants = {"ADD": x is not None, "BATCHED": outer.size * inner.size > 1, "FAR": far}
    scalars = (number(alpha), number(beta))
    if m == 1 or n == 1:
        along = ak if n == 1 else bk  # the matrix is a, or b transposed
        block_r, block_k = VECTOR_TILES[along == 1]
        rows = m if n == 1 else n
        block_r, block_k = min(block_r, next_power_of_2(rows)), min(block_k, next_power_of_2(k))
        first = (a, b) if n == 1 else (b, a)
        swap = batches[0:4] if n == 1 else batches[2:4] + batches[0:2]
        steps = (am, ak, bk, xm, cm) if n == 1 else (bn, bk, ak, xn, cn)
        args = (*first, added, c, rows, k, Data(inner.size), *map(Step, steps), *swap, *batches[4:], *scalars)
        return Call(vector_kernel, programs(rows, block_r) * outer.size * inner.size, args, 4, 3,
                    constants | {"BLOCK_R": block_r, "BLOCK_K": block_k})
    item = c.itemsize
    block_m, block_n, block_k, warps, stages = tile_for(item, m, n, k, outer.size * inner.size, facts.multiprocessors)
    args = (a, b, added, c, m, n, k, Data(inner.size), *map(Step, (am, ak, bk, bn, xm, xn, cm, cn)), *batches, *scalars)
    precision = None if item == 2 else facts.reduced_matmul if item == 4 and facts.reduced_matmul == "tf32" else "ieee"
    constants |= {"DOT": item < 8 or dot_takes_float64(), "PRECISION": precision, "BLOCK_M": block_m, "BLOCK_N": block_n,
                  "BLOCK_K": block_k, "GROUP_M": GROUP_M}
    return Call(matmul_kernel, programs(m, block_m) * programs(n, block_n) * outer.size * inner.size, args, warps,
                stages_within(facts, stages, (block_m + block_n) * block_k * item), constants)


def tile_for(item: int, m: int, n: int, k: int, batch: int, multiprocessors: int) -> tuple[int, int, int, int, int]:
    """(BLOCK_M, BLOCK_N, BLOCK_K, warps, stages) for a product of elements of ``item`` bytes."""
    most_m, most_n, most_k = (max(16, next_power_of_2(s)) for s in (m, n, k))
    fitting = [t for t in TILES[item] if t[0] <= most_m and t[1] <= most_n] or [TILES[item][-1]]
    chosen = next((t for t in fitting if 4 * programs(m, t[0]) * programs(n, t[1]) * batch >= 3 * multiprocessors), fitting[-1])
    block_m, block_n, block_k, warps, stages = chosen
    return min(block_m, most_m), min(block_n, most_n), min(block_k, most_k), warps, stages


def product(a: Tensor, b: Tensor, c: Tensor, x: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0) -> None:
    """c = alpha a b + beta x on the tensors' device; x may be None and is not read when beta is 0."""
    if c.numel == 0:
        return
    x = x if beta else None
    device = device_of(c)
    call = _plan(a, b, x, c, alpha, beta, device.capabilities)
    if call is not None:
        run(device, call)
        return
    for i in range(c.shape[0]):  # three and more batch axes that no stride joins: one after another
        part = [t if t is None or t.ndim < c.ndim else t[i if t.shape[0] > 1 else 0] for t in (a, b, x)]
        product(part[0], part[1], c[i], part[2], alpha, beta)


# ---- operators -----------------------------------------------------------------------------------------------------------
def matmul(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    if b.ndim == 1:
        b, out = b.unsqueeze(1), out.unsqueeze(out.ndim)
    if a.ndim == 1:
        a, out = a.unsqueeze(0), out.unsqueeze(out.ndim - 1)
    product(a, b, out)


def mm(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    product(a, b, out)


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float, alpha: float, out: Tensor) -> None:
    product(mat1, mat2, out, input, alpha, beta)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    if x.ndim == 1:
        x, out = x.unsqueeze(0), out.unsqueeze(0)
    product(x, weight.transpose(0, 1), out, bias)


KERNELS = {"matmul": matmul, "mm": mm, "bmm": mm, "addmm": addmm, "baddbmm": addmm, "linear": linear}


# ---- what is compiled ahead of time ----------------------------------------------------------------------------------------
_TYPICAL = Capabilities(model="", total_bytes=0, max_alloc_bytes=0, multiprocessors=128, max_shared_bytes=160 << 10)
# name, dtype, batch, M, K, N, b transposed (as linear's weight), x added
_SHAPES = (("cube_1024", "float16", (), 1024, 1024, 1024, False, False), ("cube_1024", "float32", (), 1024, 1024, 1024, False, False),
           ("cube_1024", "float64", (), 1024, 1024, 1024, False, False), ("prefill", "bfloat16", (), 128, 4096, 4096, True, True),
           ("large", "bfloat16", (), 8192, 4096, 8192, True, False), ("decode", "float16", (), 1, 4096, 11008, True, False),
           ("decode_rows", "float32", (), 1, 4096, 11008, False, False), ("decode_16", "float16", (), 16, 4096, 11008, True, False),
           ("batch", "float16", (32,), 256, 128, 256, False, False), ("odd", "float32", (), 65, 129, 33, False, True))


def calls(facts: Capabilities = _TYPICAL) -> Iterator[tuple[str, Call]]:
    """Typical calls on a device with these facts, over host tensors that stand in for the device's."""
    from ...hal.tensor import empty
    for name, dtype, batch, m, k, n, transposed, added in _SHAPES:
        a, c = empty((*batch, m, k), dtype), empty((*batch, m, n), dtype)
        b = empty((*batch, n, k), dtype).transpose(-1, -2) if transposed else empty((*batch, k, n), dtype)
        call = _plan(a, b, empty((n,), dtype) if added else None, c, 1.0, 1.0, facts)
        if call is not None:
            yield f"matmul_{name}_{c.dtype.short}", call


def matrix(shared_bytes: int = _TYPICAL.max_shared_bytes) -> Iterator[tuple[str, Any, tuple, dict[str, Any], int, int]]:
    """(name, kernel, signature, constants, num_warps, num_stages) of typical calls, for launch.compile_for."""
    for name, call in calls(replace(_TYPICAL, max_shared_bytes=shared_bytes)):
        yield name, call.kernel, call.signature, call.constants, call.num_warps, call.num_stages
