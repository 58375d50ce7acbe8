"""Group, instance and batch norm and their gradients on Triton, over x packed as (N, C, inner).

Sums are taken row by row (a row is one channel of one sample), then over the rows of a unit that shares statistics: a group of
channels of a sample, or a channel of all samples.  What is written is pointwise with the unit's numbers looked up.
Not here: what the operators mean (kernels/ops/batch_norm.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from ...hal.tensor import Tensor
from ..ops.infer import accumulator
from . import scalar as m
from .launch import F64, by_signature, capped, lacks, launch, next_power_of_2, programs
from .reduce import fold
from .rows import contiguous, device_of, writable
from .shape import copy, full

__all__ = ["KERNELS", "WHEN", "matrix"]

TILE = 1024  # elements a program holds: 8 a thread at 4 warps of 32


# ---- kernels -------------------------------------------------------------------------------------------------------------
@triton.jit
def rows_kernel(v_ptr, x_ptr, mean_ptr, rstd_ptr, plain_ptr, product_ptr, rows, n, channels, d, TASK: tl.constexpr, GROUPED: tl.constexpr,
                WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr):
    """plain (rows,) = sum of v ("sum"), of (v - mean)^2 ("square"); "pair": of v, and product (rows,) of v (x - mean) rstd.

    A unit's statistics stand at row // d (GROUPED) or at the channel, row % channels.
    """
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_R), tl.num_programs(0)):
        row = block * BLOCK_R + tl.arange(0, BLOCK_R)
        live = row < rows
        if GROUPED:
            unit = row // d
        else:
            unit = row % channels
        mean = tl.zeros((BLOCK_R,), acc)
        rstd = tl.zeros((BLOCK_R,), acc)
        if TASK != "sum":
            mean = tl.load(mean_ptr + unit, mask=live, other=0.0).to(acc)
        if TASK == "pair":
            rstd = tl.load(rstd_ptr + unit, mask=live, other=0.0).to(acc)
        at_row = row.to(tl.int64) * n
        plain = tl.zeros((BLOCK_R, BLOCK_N), acc)
        product = tl.zeros((BLOCK_R, BLOCK_N), acc)
        for start in range(0, n, BLOCK_N):
            c = start + tl.arange(0, BLOCK_N)
            mask = live[:, None] & (c < n)[None, :]
            v = tl.load(v_ptr + at_row[:, None] + c[None, :], mask=mask, other=0.0).to(acc)
            if TASK == "square":
                v = tl.where(mask, v - mean[:, None], 0.0)
                plain += v * v
            else:
                plain += v
            if TASK == "pair":
                x = tl.load(x_ptr + at_row[:, None] + c[None, :], mask=mask, other=0.0).to(acc)
                product += v * ((x - mean[:, None]) * rstd[:, None])
        tl.store(plain_ptr + row, tl.sum(plain, 1), mask=live)
        if TASK == "pair":
            tl.store(product_ptr + row, tl.sum(product, 1), mask=live)


@triton.jit
def stats_kernel(sum_ptr, mean_ptr, out_ptr, old_ptr, new_ptr, n, terms, eps, momentum, TASK: tl.constexpr, RUNNING: tl.constexpr,
                 BLOCK: tl.constexpr):
    """n units.  "mean": mean = sum / terms.  "rstd": out = 1 / sqrt(sum / terms + eps), "variance": 1 / sqrt(sum + eps).
    RUNNING: new = (1 - momentum) old + momentum (mean, or the unbiased variance sum / (terms - 1))."""
    acc: tl.constexpr = out_ptr.dtype.element_ty
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        i = block * BLOCK + tl.arange(0, BLOCK)
        live = i < n
        total = tl.load(sum_ptr + i, mask=live, other=0.0).to(acc)
        count = tl.zeros((BLOCK,), acc) + terms
        if TASK == "variance":
            y = m.div(tl.full((BLOCK,), 1.0, acc), m.sqrt(total + eps))
            latest = total
        elif TASK == "mean":
            y = m.div(total, count)
            latest = y
        else:
            y = m.div(tl.full((BLOCK,), 1.0, acc), m.sqrt(m.div(total, count) + eps))
            latest = m.div(total, count - 1.0)
        tl.store(out_ptr + i, y, mask=live)
        if RUNNING:
            old = tl.load(old_ptr + i, mask=live, other=0.0).to(acc)
            latest = (1.0 - momentum) * old + momentum * latest
            tl.store(new_ptr + i, latest.to(new_ptr.dtype.element_ty), mask=live)


@triton.jit
def affine_kernel(x_ptr, mean_ptr, rstd_ptr, w_ptr, b_ptr, y_ptr, numel, n, channels, d, GROUPED: tl.constexpr, WEIGHT: tl.constexpr,
                  BIAS: tl.constexpr, WIDE: tl.constexpr, BIG: tl.constexpr, BLOCK: tl.constexpr):
    """y = (x - mean) rstd w + b."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(numel, BLOCK), tl.num_programs(0)):
        i = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        live = i < numel
        row = i // n
        c = row % channels
        unit = row // d if GROUPED else c
        y = tl.load(x_ptr + i, mask=live, other=0.0).to(acc) - tl.load(mean_ptr + unit, mask=live, other=0.0).to(acc)
        y *= tl.load(rstd_ptr + unit, mask=live, other=0.0).to(acc)
        if WEIGHT:
            y *= tl.load(w_ptr + c, mask=live, other=0.0).to(acc)
        if BIAS:
            y += tl.load(b_ptr + c, mask=live, other=0.0).to(acc)
        tl.store(y_ptr + i, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def weigh_kernel(plain_ptr, product_ptr, w_ptr, level_ptr, along_ptr, units, d, groups, terms, WEIGHT: tl.constexpr, TRAIN: tl.constexpr,
                 BLOCK_U: tl.constexpr, BLOCK_D: tl.constexpr):
    """level, along (units,) = sums of w plain and w product over a unit's d rows, divided by terms; 0 unless TRAIN."""
    acc: tl.constexpr = level_ptr.dtype.element_ty
    for block in range(tl.program_id(0), tl.cdiv(units, BLOCK_U), tl.num_programs(0)):
        unit = block * BLOCK_U + tl.arange(0, BLOCK_U)
        live = unit < units
        level = tl.zeros((BLOCK_U, BLOCK_D), acc)
        along = tl.zeros((BLOCK_U, BLOCK_D), acc)
        for start in range(0, d, BLOCK_D):
            k = start + tl.arange(0, BLOCK_D)
            mask = live[:, None] & (k < d)[None, :]
            w = tl.full((BLOCK_U, BLOCK_D), 1.0, acc)
            if WEIGHT:
                w = tl.load(w_ptr + (unit % groups)[:, None] * d + k[None, :], mask=mask, other=0.0).to(acc)
            at = unit[:, None] * d + k[None, :]
            level += tl.load(plain_ptr + at, mask=mask, other=0.0).to(acc) * w
            along += tl.load(product_ptr + at, mask=mask, other=0.0).to(acc) * w
        count = tl.zeros((BLOCK_U,), acc) + terms
        first = m.div(tl.sum(level, 1), count)
        second = m.div(tl.sum(along, 1), count)
        if TRAIN == 0:
            first = first * 0.0
            second = second * 0.0
        tl.store(level_ptr + unit, first, mask=live)
        tl.store(along_ptr + unit, second, mask=live)


@triton.jit
def dx_kernel(dy_ptr, x_ptr, mean_ptr, rstd_ptr, w_ptr, level_ptr, along_ptr, dx_ptr, numel, n, channels, d, GROUPED: tl.constexpr,
              WEIGHT: tl.constexpr, THROUGH: tl.constexpr, WIDE: tl.constexpr, BIG: tl.constexpr, BLOCK: tl.constexpr):
    """dx = (dy w - level - (x - mean) rstd along) rstd; without THROUGH (statistics are constants) dy w rstd."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    INDEX: tl.constexpr = tl.int64 if BIG else tl.int32
    for block in range(tl.program_id(0), tl.cdiv(numel, BLOCK), tl.num_programs(0)):
        i = block.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
        live = i < numel
        row = i // n
        c = row % channels
        unit = row // d if GROUPED else c
        g = tl.load(dy_ptr + i, mask=live, other=0.0).to(acc)
        rstd = tl.load(rstd_ptr + unit, mask=live, other=0.0).to(acc)
        if WEIGHT:
            g *= tl.load(w_ptr + c, mask=live, other=0.0).to(acc)
        if THROUGH:
            normal = (tl.load(x_ptr + i, mask=live, other=0.0).to(acc) - tl.load(mean_ptr + unit, mask=live, other=0.0).to(acc)) * rstd
            level = tl.load(level_ptr + unit, mask=live, other=0.0).to(acc)
            g = (g - level) - normal * tl.load(along_ptr + unit, mask=live, other=0.0).to(acc)
        tl.store(dx_ptr + i, (g * rstd).to(dx_ptr.dtype.element_ty), mask=live)


@triton.jit
def scale_kernel(a_ptr, rstd_ptr, w_ptr, counts_ptr, y_ptr, n, devices, TASK: tl.constexpr, WEIGHT: tl.constexpr, BLOCK: tl.constexpr):
    """"times": y = a rstd.  "level": y = a w / sum(counts); "along": y = a rstd w / sum(counts)."""
    acc: tl.constexpr = rstd_ptr.dtype.element_ty
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        i = block * BLOCK + tl.arange(0, BLOCK)
        live = i < n
        y = tl.load(a_ptr + i, mask=live, other=0.0).to(acc)
        if TASK != "level":
            y *= tl.load(rstd_ptr + i, mask=live, other=0.0)
        if TASK != "times":
            total = tl.zeros((BLOCK,), acc)
            for k in range(0, devices):
                total += tl.load(counts_ptr + k).to(acc)
            y = m.div(y, total)
            if WEIGHT:
                y *= tl.load(w_ptr + i, mask=live, other=0.0).to(acc)
        tl.store(y_ptr + i, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def gather_kernel(mean_ptr, rstd_ptr, counts_ptr, run_mean_ptr, run_var_ptr, mean_out_ptr, rstd_out_ptr, new_mean_ptr, new_var_ptr, devices,
                  channels, eps, momentum, MEAN: tl.constexpr, VAR: tl.constexpr, BLOCK: tl.constexpr):
    """Statistics of all devices: squared distances within each, and of each one's mean from the common one (Chan et al. 1979)."""
    acc: tl.constexpr = mean_out_ptr.dtype.element_ty
    for block in range(tl.program_id(0), tl.cdiv(channels, BLOCK), tl.num_programs(0)):
        c = block * BLOCK + tl.arange(0, BLOCK)
        live = c < channels
        total = tl.zeros((BLOCK,), acc)
        mean = tl.zeros((BLOCK,), acc)
        for k in range(0, devices):
            count = tl.load(counts_ptr + k)
            total += count
            mean += count * tl.load(mean_ptr + k * channels + c, mask=live, other=0.0)
        mean = m.div(mean, total)
        squares = tl.zeros((BLOCK,), acc)
        for k in range(0, devices):
            count = tl.load(counts_ptr + k)
            rstd = tl.load(rstd_ptr + k * channels + c, mask=live, other=1.0)
            away = tl.load(mean_ptr + k * channels + c, mask=live, other=0.0) - mean
            squares += ((m.div(tl.full((BLOCK,), 1.0, acc), rstd * rstd) - eps) + away * away) * count
        tl.store(mean_out_ptr + c, mean, mask=live)
        tl.store(rstd_out_ptr + c, m.div(tl.full((BLOCK,), 1.0, acc), m.sqrt(m.div(squares, total) + eps)), mask=live)
        if MEAN:
            old = tl.load(run_mean_ptr + c, mask=live, other=0.0).to(acc)
            tl.store(new_mean_ptr + c, ((1.0 - momentum) * old + momentum * mean).to(new_mean_ptr.dtype.element_ty), mask=live)
        if VAR:
            old = tl.load(run_var_ptr + c, mask=live, other=0.0).to(acc)
            unbiased = m.div(squares, total - 1.0)
            tl.store(new_var_ptr + c, ((1.0 - momentum) * old + momentum * unbiased).to(new_var_ptr.dtype.element_ty), mask=live)


# ---- launching -----------------------------------------------------------------------------------------------------------
class _Units:
    """x as rows of n elements and units of statistics: groups 0 for a channel of all samples."""

    def __init__(self, x: Tensor, groups: int = 0) -> None:
        self.samples, self.channels = x.shape[:2]
        self.n = 1
        for s in x.shape[2:]:
            self.n *= s
        self.rows = self.samples * self.channels
        self.groups, self.grouped = groups, groups > 0
        self.d = self.channels // groups if groups else 1
        self.units = self.samples * groups if groups else self.channels
        self.terms = self.d * self.n if groups else self.samples * self.n
        self.device, self.acc = device_of(x), accumulator(x.dtype)
        self.wide = x.dtype.name == "float64"
        self.number: Any = F64 if self.wide else float

    def empty(self, *shape: int) -> Tensor:
        return self.device.empty(shape, self.acc)

    def sums(self, task: str, v: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> list[Tensor]:
        """Sums of each row, (samples, channels)."""
        found = [self.empty(self.samples, self.channels) for _ in range(1 + (task == "pair"))]
        along = min(next_power_of_2(self.n), TILE)
        tall = min(max(TILE // along, 1), next_power_of_2(self.rows))
        launch(rows_kernel, (capped(self.device, programs(self.rows, tall)),), v, x, mean, rstd, found[0], found[-1], self.rows, self.n,
               self.channels, self.d, TASK=task, GROUPED=self.grouped, WIDE=self.wide, BLOCK_R=tall, BLOCK_N=along)
        return found

    def join(self, part: Tensor) -> Tensor:
        """Sums of rows to sums of units."""
        whole = self.empty(self.units)
        view = part.reshape(self.units, self.d) if self.grouped else part
        fold("sum", view, (1,) if self.grouped else (0,), whole)
        return whole

    def stats(self, task: str, total: Tensor, out: Tensor, eps: float = 0.0, momentum: float = 0.0, old: Tensor | None = None,
              new: Tensor | None = None) -> None:
        running = old is not None and new is not None
        launch(stats_kernel, (capped(self.device, programs(out.numel, TILE)),), total, total, out, total if old is None else old,
               out if new is None else new, out.numel, self.number(self.terms), self.number(eps), self.number(momentum), TASK=task,
               RUNNING=running, BLOCK=min(next_power_of_2(out.numel), TILE))

    def moments(self, x: Tensor, eps: float, mean: Tensor | None = None, rstd: Tensor | None = None, momentum: float = 0.0,
                old: Sequence[Tensor | None] = (None, None), new: Sequence[Tensor | None] = (None, None)) -> tuple[Tensor, Tensor]:
        """mean and rstd (units,) of packed x, written to those given; running statistics too."""
        mean = self.empty(self.units) if mean is None else mean.reshape(self.units)
        rstd = self.empty(self.units) if rstd is None else rstd.reshape(self.units)
        if self.units == 0:
            return mean, rstd
        if self.terms == 0:
            for t in (mean, rstd):
                full(shape=t.shape, value=float("nan"), dtype=t.dtype, out=t)
            for o, t in zip(old, new):
                if o is not None and t is not None:
                    copy(o, out=t)
            return mean, rstd
        self.stats("mean", self.join(self.sums("sum", x, x, x, x)[0]), mean, 0.0, momentum, old[0], new[0])
        self.stats("rstd", self.join(self.sums("square", x, x, mean, x)[0]), rstd, eps, momentum, old[1], new[1])
        return mean, rstd

    def _flat(self) -> dict[str, Any]:
        numel = self.rows * self.n
        return {"GROUPED": self.grouped, "WIDE": self.wide, "BIG": numel >= 2**30, "BLOCK": TILE}

    def affine(self, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None, out: Tensor) -> None:
        if out.numel == 0:
            return
        with writable(out) as y:
            launch(affine_kernel, (capped(self.device, programs(out.numel, TILE)),), x, mean, rstd, x if weight is None else contiguous(weight),
                   x if bias is None else contiguous(bias), y, out.numel, self.n, self.channels, self.d, WEIGHT=weight is not None,
                   BIAS=bias is not None, **self._flat())

    def dx(self, dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, level: Tensor | None, along: Tensor | None,
           out: Tensor) -> None:
        if out.numel == 0:
            return
        with writable(out) as y:
            launch(dx_kernel, (capped(self.device, programs(out.numel, TILE)),), dy, x, mean, rstd, x if weight is None else contiguous(weight),
                   x if level is None else level, x if along is None else along, y, out.numel, self.n, self.channels, self.d,
                   WEIGHT=weight is not None, THROUGH=level is not None, **self._flat())


def _flat_stats(t: Tensor) -> Tensor:
    t = contiguous(t)
    return t.reshape(t.numel)


def _group(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, out: Tensor, mean: Tensor | None,
           rstd: Tensor | None) -> None:
    units, x = _Units(x, groups), contiguous(x)
    found = units.moments(x, eps, mean, rstd)
    units.affine(x, *found, weight, bias, out)


def native_group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, N: int, C: int, HxW: int, group: int, eps: float,
                      out: tuple[Tensor, Tensor, Tensor]) -> None:
    y, mean, rstd = out
    with writable(mean) as a, writable(rstd) as b:
        _group(x, weight, bias, group, eps, y, a, b)


def group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, num_groups: int, eps: float, out: Tensor) -> None:
    _group(x, weight, bias, num_groups, eps, out, None, None)


def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, out: Tensor) -> None:
    _group(x, weight, bias, max(x.shape[1], 1), eps, out, None, None)


def native_group_norm_backward(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, *, N: int, C: int, HxW: int, group: int,
                               out: tuple[Tensor, Tensor, Tensor]) -> None:
    units = _Units(x, group)
    dy, x, mean, rstd = contiguous(dy), contiguous(x), _flat_stats(mean), _flat_stats(rstd)
    dx, dweight, dbias = out
    if C == 0:
        return
    plain, product = units.sums("pair", dy, x, mean, rstd)
    if dx.numel:
        level, along = units.empty(units.units), units.empty(units.units)
        across = min(next_power_of_2(units.d), TILE)
        tall = max(TILE // across, 1)
        launch(weigh_kernel, (capped(units.device, programs(units.units, tall)),), plain, product, plain if weight is None else contiguous(weight),
               level, along, units.units, units.d, group, units.number(units.terms), WEIGHT=weight is not None, TRAIN=True, BLOCK_U=tall,
               BLOCK_D=across)
        units.dx(dy, x, mean, rstd, weight, level, along, dx)
    fold("sum", product, (0,), dweight)
    fold("sum", plain, (0,), dbias)


def _batch(x: Tensor, weight: Tensor | None, bias: Tensor | None, old: tuple[Tensor | None, Tensor | None], training: bool, momentum: float,
           eps: float, out: Tensor, mean: Tensor | None = None, rstd: Tensor | None = None,
           new: tuple[Tensor | None, Tensor | None] = (None, None)) -> None:
    units, x = _Units(x), contiguous(x)
    running = tuple(None if t is None else contiguous(t) for t in old)
    if training:
        kept = [None if o is None else t for o, t in zip(old, new)]
        found = units.moments(x, eps, mean, rstd, momentum, running, kept)
        units.affine(x, *found, weight, bias, out)
        return
    assert running[0] is not None and running[1] is not None  # infer refuses otherwise
    if x.shape[1]:
        by = units.empty(units.units)
        units.stats("variance", running[1], by, eps)
        units.affine(x, running[0], by, weight, bias, out)
    for o, t in zip(running, new):
        if o is not None and t is not None and t.numel:
            copy(o, out=t)


def native_batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None, *,
                      training: bool, momentum: float, eps: float, out: tuple[Tensor, ...]) -> None:
    y, mean, rstd, new_mean, new_var = out
    with writable(mean) as a, writable(rstd) as b, writable(new_mean) as c, writable(new_var) as d:
        _batch(x, weight, bias, (running_mean, running_var), training, momentum, eps, y, a if training else None, b if training else None, (c, d))


def native_batch_norm_no_training(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *,
                                  momentum: float, eps: float, out: tuple[Tensor, Tensor, Tensor]) -> None:
    _batch(x, weight, bias, (running_mean, running_var), False, momentum, eps, out[0])


def native_batch_norm_no_stats(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, momentum: float, eps: float,
                               out: tuple[Tensor, Tensor, Tensor]) -> None:
    with writable(out[1]) as a, writable(out[2]) as b:
        _batch(x, weight, bias, (None, None), True, momentum, eps, out[0], a, b)


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None, *, training: bool,
               momentum: float, eps: float, out: Tensor) -> None:
    _batch(x, weight, bias, (running_mean, running_var), training, momentum, eps, out)


def batch_norm_stats(x: Tensor, *, eps: float, out: tuple[Tensor, Tensor]) -> None:
    with writable(out[0]) as a, writable(out[1]) as b:
        _Units(x).moments(contiguous(x), eps, a, b)


def batch_norm_elemt(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, *, eps: float, out: Tensor) -> None:
    _Units(x).affine(contiguous(x), contiguous(mean), contiguous(invstd), weight, bias, out)


def native_batch_norm_backward(dy: Tensor, x: Tensor, weight: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
                               save_mean: Tensor | None, save_invstd: Tensor | None, *, train: bool, eps: float,
                               out: tuple[Tensor, Tensor, Tensor]) -> None:
    units = _Units(x)
    dx, dweight, dbias = out
    if units.units == 0:
        return
    dy, x = contiguous(dy), contiguous(x)
    mean, second = (save_mean, save_invstd) if train else (running_mean, running_var)
    assert mean is not None and second is not None  # infer refuses otherwise
    mean, rstd = contiguous(mean), contiguous(second)
    if not train:
        variance, rstd = rstd, units.empty(units.units)
        units.stats("variance", variance, rstd, eps)
    plain, product = (units.join(p) for p in units.sums("pair", dy, x, mean, rstd))
    if dx.numel:
        level = along = None
        if train:
            level, along = units.empty(units.units), units.empty(units.units)
            launch(weigh_kernel, (capped(units.device, programs(units.units, TILE)),), plain, product,
                   plain if weight is None else contiguous(weight), level, along, units.units, 1, units.units, units.number(units.terms),
                   WEIGHT=weight is not None, TRAIN=True, BLOCK_U=min(next_power_of_2(units.units), TILE), BLOCK_D=1)
        units.dx(dy, x, mean, rstd, weight, level, along, dx)
    for total, gradient in ((product, dweight), (plain, dbias)):
        fold("sum", total.reshape(1, units.units), (0,), gradient)


def _scaled(units: _Units, task: str, a: Tensor, rstd: Tensor, weight: Tensor | None, counts: Tensor | None, y: Tensor) -> None:
    launch(scale_kernel, (capped(units.device, programs(units.units, TILE)),), a, rstd, rstd if weight is None else contiguous(weight),
           rstd if counts is None else counts, y, units.units, 0 if counts is None else counts.numel, TASK=task, WEIGHT=weight is not None,
           BLOCK=min(next_power_of_2(units.units), TILE))


def batch_norm_backward_reduce(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, *,
                               out: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    units = _Units(x)
    if units.units == 0:
        return
    ones = units.empty(units.units)
    full(shape=ones.shape, value=1.0, dtype=ones.dtype, out=ones)
    plain, product = (units.join(p) for p in units.sums("pair", contiguous(dy), contiguous(x), contiguous(mean), ones))
    for total, y in zip((plain, product, None, plain), out):
        if total is not None:
            fold("sum", total.reshape(1, units.units), (0,), y)
    with writable(out[2]) as dweight:
        _scaled(units, "times", product, contiguous(invstd), None, None, dweight)


def batch_norm_backward_elemt(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, sum_dy: Tensor, sum_dy_xmu: Tensor,
                              counts: Tensor, *, out: Tensor) -> None:
    units = _Units(x)
    if out.numel == 0:
        return
    rstd, counts = contiguous(invstd), contiguous(counts)
    level, along = units.empty(units.units), units.empty(units.units)
    _scaled(units, "level", contiguous(sum_dy), rstd, weight, counts, level)
    _scaled(units, "along", contiguous(sum_dy_xmu), rstd, weight, counts, along)
    units.dx(contiguous(dy), contiguous(x), contiguous(mean), rstd, weight, level, along, out)


def batch_norm_gather_stats_with_counts(x: Tensor, mean: Tensor, invstd: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
                                        counts: Tensor, *, momentum: float, eps: float, out: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    units = _Units(x)
    if units.units == 0:
        return
    mean, invstd = contiguous(mean), contiguous(invstd)
    with writable(out[0]) as a, writable(out[1]) as b, writable(out[2]) as c, writable(out[3]) as d:
        launch(gather_kernel, (capped(units.device, programs(units.units, 256)),), mean, invstd, contiguous(counts),
               mean if running_mean is None else contiguous(running_mean), mean if running_var is None else contiguous(running_var), a, b, c, d,
               counts.numel, units.units, units.number(eps), units.number(momentum), MEAN=running_mean is not None,
               VAR=running_var is not None, BLOCK=256)


@by_signature
def _when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
    return lacks(facts, accumulator(specs[0].dtype).name)


KERNELS = {"native_group_norm": native_group_norm, "native_group_norm_backward": native_group_norm_backward, "group_norm": group_norm,
           "instance_norm": instance_norm, "native_batch_norm": native_batch_norm,
           "native_batch_norm_no_training": native_batch_norm_no_training, "native_batch_norm_no_stats": native_batch_norm_no_stats,
           "batch_norm": batch_norm, "native_batch_norm_backward": native_batch_norm_backward, "batch_norm_stats": batch_norm_stats,
           "batch_norm_elemt": batch_norm_elemt, "batch_norm_backward_reduce": batch_norm_backward_reduce,
           "batch_norm_backward_elemt": batch_norm_backward_elemt,
           "batch_norm_gather_stats_with_counts": batch_norm_gather_stats_with_counts}
WHEN = dict.fromkeys(KERNELS, _when)


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    i32, some, number = ("i32", False), ("i32", True), ("fp32", False)
    for t in ("*fp32", "*bf16"):
        x, s = (t, True), ("*fp32", True)
        for task in ("sum", "square", "pair"):
            yield f"batch_norm {task} {t}", rows_kernel, (x, x, s, s, s, s, some, some, some, i32), \
                {"TASK": task, "GROUPED": False, "WIDE": False, "BLOCK_R": 1, "BLOCK_N": TILE}, 4
        flat = {"GROUPED": True, "WEIGHT": True, "WIDE": False, "BIG": False, "BLOCK": TILE}
        yield f"batch_norm affine {t}", affine_kernel, (x, s, s, x, x, x, some, some, some, i32), {**flat, "BIAS": True}, 4
        yield f"batch_norm dx {t}", dx_kernel, (x, x, s, s, x, s, s, x, some, some, some, i32), {**flat, "THROUGH": True}, 4
        yield f"group_norm weigh {t}", weigh_kernel, (s, s, x, s, s, some, i32, some, number), \
            {"WEIGHT": True, "TRAIN": True, "BLOCK_U": 64, "BLOCK_D": 16}, 4
    s = ("*fp32", True)
    yield "batch_norm rstd", stats_kernel, (s, s, s, s, s, some, number, number, number), {"TASK": "rstd", "RUNNING": True, "BLOCK": TILE}, 4
    yield "batch_norm scale", scale_kernel, (s, s, s, ("*i32", True), s, some, i32), {"TASK": "along", "WEIGHT": True, "BLOCK": TILE}, 4
    yield "batch_norm gather", gather_kernel, (s,) * 9 + (i32, some, number, number), {"MEAN": True, "VAR": True, "BLOCK": 256}, 4
