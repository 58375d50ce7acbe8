"""How much the suite is worth: wrong implementations of every operator, and how many of them it refuses.

    python -m haian.conformance.mutants        prints killed / total and the survivors

A mutant is a right NumPy implementation with one mistake that kernels make.  Each names the kind of case meant to refuse it.
The makers stand in mutate.py; here is the table.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..hal.errors import HaianError
from ..kernels.ops import OPS
from .cases import Case, cases
from .mutate import (Maker, attr, bf16_cut, contiguous_reads, drop_tail, element_by_element, f16_sums, flush, forget_axis_end, gradient, ignores_out,
                     inputs, noise, no_checks, only_first, past_end, precise, reads_back, result, results, swap, tf32, threads_order, widths,
                     writes_input)
from .runner import BAD, run_in_process
from .target import FunctionTarget
from .witness import in_precision

__all__ = ["MUTANTS", "Killed", "Mutant", "judge_mutant", "main", "run"]

f32 = np.float32


@dataclass(frozen=True)
class Mutant:
    """op: the operator; wrong: the mistake; check: kind of case meant to refuse it; make: maker of mutate.py."""

    op: str
    wrong: str
    check: str
    make: Maker


@dataclass(frozen=True)
class Killed:
    """by: id of the first case that refused the mutant, "" where none did; meant: whether a case of the meant kind did."""

    mutant: Mutant
    by: str
    meant: bool
    message: str = ""


def _fmax(x, y):
    return np.where(np.isnan(x), y, np.where(np.isnan(y), x, np.maximum(x, y)))


def _fmin(x, y):
    return np.where(np.isnan(x), y, np.where(np.isnan(y), x, np.minimum(x, y)))


def _sig(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def _rows(x):
    return x.reshape(-1, x.shape[-1]) if x.ndim else x.reshape(1, 1)


def _moved(x, dim):
    return np.argmax(np.moveaxis(x, dim, 0)[::-1], axis=0) if x.ndim else np.int64(0)


def _last_tie(pick: Callable):
    def fn(y, t, a):
        x, dim = t[0], a["dim"]
        if dim is None:
            return np.asarray(x.size - 1 - pick(x.reshape(-1)[::-1])).reshape(y.shape)
        if x.ndim == 0:
            return y
        return (x.shape[dim] - 1 - pick(np.flip(x, dim), axis=dim, keepdims=a["keepdim"])).astype(y.dtype)

    return result(fn)


def _skips_nan(pick: Callable, fill: float):
    def fn(t):
        x = t[0]
        return [np.where(np.isnan(x), x.dtype.type(fill), x) if x.dtype.kind == "f" else x]

    return inputs(fn)


def _causal_wrong(shift):
    """The mask moved by ``shift``, or aligned to the end for ``None``, given as a float mask instead of is_causal."""
    def make(op, right):
        def call(t, a):
            if not a["is_causal"]:
                return right(t, a)
            n, m = t[0].shape[2], t[1].shape[2]
            k = (m - n) if shift is None else shift
            return right((*t[:3], np.tri(n, m, k=k, dtype=bool)), a | {"is_causal": False})

        return call

    return make


def _mask(fn):
    return inputs(lambda t: [*t[:3], None if t[3] is None else fn(t[3])])


def _bool_as_number(m):
    return m if m.dtype != np.bool_ else m.astype(f32)


def _gqa(t):
    q, k, v = t[:3]
    groups = q.shape[1] // k.shape[1] if k.shape[1] else 1
    return [q, *(np.tile(x, (1, groups, 1, 1)) for x in (k, v)), t[3]]


def _target_at(index: int, fn: Callable):
    return inputs(lambda t: [fn(x) if i == index else x for i, x in enumerate(t)])


def _clip(i: int, size_of: Callable):
    """Bad indices are clamped into range instead of refused."""
    return no_checks(lambda t, a: [np.clip(x, 0, max(size_of(t, a) - 1, 0)) if j == i else x for j, x in enumerate(t)])


def _mean_of_all(y, t, a):
    if a["reduction"] != "mean":
        return y
    x, target, weight = t[:3]
    keep = target.reshape(-1) != a["ignore_index"]
    total = (keep if weight is None else np.where(keep, weight[np.where(keep, target.reshape(-1), 0)], 0)).sum()
    return (y.astype(np.float64) * total / max(keep.sum(), 1)).astype(y.dtype)


def _eps_outside(t, a, y):
    x = t[0].astype(np.float64)
    over = tuple(range(x.ndim - len(a["normalized_shape"]), x.ndim))
    z = (x - x.mean(over, keepdims=True)) / (x.std(over, keepdims=True) + a["eps"])
    z = z if t[1] is None else z * t[1].astype(np.float64)
    return (z if t[2] is None else z + t[2].astype(np.float64)).astype(y.dtype)


def _overwrites(fn_index: int, source: int):
    def make(op, right):
        def call(t, a):
            y = np.array(t[0])
            if t[fn_index].ndim and y.ndim and len(t) == 3:
                if op.name == "scatter_add":
                    np.put_along_axis(y[tuple(slice(0, n) if i != a["dim"] % y.ndim else slice(None) for i, n in enumerate(t[1].shape))],
                                      t[1].astype(np.int64), t[source][tuple(slice(0, n) for n in t[1].shape)], a["dim"])
                else:
                    at = [slice(None)] * y.ndim
                    at[a["dim"]] = t[1].reshape(-1).astype(np.int64)
                    y[tuple(at)] += (t[source] * a["alpha"]).astype(y.dtype)
                return (y,)
            return right(t, a)

        return call

    return make


_M: list[tuple[str, str, str, Maker]] = [
    # ---- pointwise
    ("add", "alpha ignored", "value", attr(alpha=1.0)),
    ("add", "inputs rounded to float16", "value", precise(np.float16)),
    ("add", "reads strided inputs as if contiguous", "sliced", contiguous_reads()),
    ("add", "the last element is left out", "value", drop_tail(1)),
    ("add", "subnormals flushed, undeclared", "special", flush()),
    ("add", "bfloat16 result cut instead of rounded", "value", bf16_cut()),
    ("add", "overlapping out written while inputs are still read", "overlap", element_by_element()),
    ("add", "int8 saturates instead of wrapping", "value", result(lambda y, t, a: np.clip(
        t[0].astype(np.int64) + int(a["alpha"]) * t[1].astype(np.int64), -128, 127).astype(np.int8) if y.dtype == np.int8 else y)),
    ("add", "shapes that do not broadcast are accepted", "bad", no_checks(lambda t, a: [x.reshape(-1)[:1].reshape(()) for x in t])),
    ("sub", "operands swapped", "value", swap(0, 1)),
    ("sub", "stride 0 read as stride 1", "stride0", contiguous_reads(lambda x: 0 in x.strides)),
    ("mul", "negative strides read forwards", "negative", contiguous_reads(lambda x: any(s < 0 for s in x.strides))),
    ("mul", "float32 products rounded to tf32 inputs", "value", tf32()),
    ("mul", "8 bytes written past the end of out", "out", past_end(8)),
    ("div", "times a rounded reciprocal", "value", result(lambda y, t, a: (t[0] * (y.dtype.type(1) / t[1])).astype(y.dtype))),
    ("div", "sign of a zero divisor lost", "special", inputs(lambda t: [t[0], t[1] + t[1].dtype.type(0)])),
    ("pow", "exp(y log x): negative bases give NaN", "value", result(lambda y, t, a: np.exp(
        t[1].astype(np.float64) * np.log(t[0].astype(np.float64))).astype(y.dtype) if y.dtype.kind == "f" else y)),
    ("neg", "0 - x: -0 lost", "value", result(lambda y, t, a: (0 - t[0]).astype(y.dtype))),
    ("abs", "negative zero stays negative", "value", result(lambda y, t, a: np.where(t[0] < 0, -t[0], t[0]).astype(y.dtype))),
    ("sign", "sign of NaN is NaN", "special", result(lambda y, t, a: np.where(t[0] != t[0], t[0], y))),
    ("exp", "clamped at 80", "value", inputs(lambda t: [np.minimum(t[0], t[0].dtype.type(80))])),
    ("exp", "float32 through 2**(x * rounded log2 e)", "value", result(lambda y, t, a: np.exp2(
        (t[0] * f32(1.442695)).astype(f32)).astype(y.dtype) if y.dtype == f32 else y)),
    ("log", "log of 0 is the smallest float", "value", result(lambda y, t, a: np.where(np.isneginf(y), np.finfo(f32).min, y).astype(y.dtype))),
    ("log", "subnormal inputs taken for 0", "special", inputs(lambda t: [np.where(np.abs(t[0]) < 2.0**-126, t[0] * 0, t[0])])),
    ("sqrt", "x times the rounded reciprocal root", "value", result(lambda y, t, a: (t[0] * (1 / np.sqrt(t[0].astype(f32))).astype(f32)).astype(y.dtype))),
    ("rsqrt", "two Newton steps from a float16 estimate", "value", precise(np.float16)),
    ("reciprocal", "infinity gives NaN", "special", result(lambda y, t, a: np.where(np.isinf(t[0]), np.nan, y).astype(y.dtype))),
    ("sin", "argument reduced by float32 2 pi", "value", inputs(lambda t: [np.fmod(t[0], f32(6.2831855)).astype(t[0].dtype)])),
    ("cos", "sine with the argument moved by float32 pi / 2", "value", result(lambda y, t, a: np.sin(
        (t[0].astype(f32) + f32(1.5707964)).astype(f32)).astype(y.dtype))),
    ("tanh", "(e^2x - 1) / (e^2x + 1)", "value", result(lambda y, t, a: ((np.exp(2 * t[0].astype(f32)) - 1) / (np.exp(2 * t[0].astype(f32)) + 1)).astype(y.dtype))),
    ("sigmoid", "e^x / (1 + e^x) overflows to NaN", "value", result(lambda y, t, a: (np.exp(t[0].astype(f32)) / (1 + np.exp(t[0].astype(f32)))).astype(y.dtype))),
    ("erf", "tanh approximation", "value", result(lambda y, t, a: np.tanh(t[0].astype(np.float64) * 1.1283791671 * (1 + 0.08943 * t[0].astype(np.float64)**2)).astype(y.dtype))),
    ("gelu", "tanh and erf swapped", "value", attr(approximate=lambda v: "tanh" if v == "none" else "none")),
    ("gelu", "rounded to bfloat16 before the product", "value", result(lambda y, t, a: (t[0].astype(f32) * _bf16(
        np.where(t[0] == 0, 0.5, y.astype(f32) / t[0].astype(f32)))).astype(y.dtype))),
    ("silu", "x sigmoid(1.702 x)", "value", result(lambda y, t, a: (t[0] * _sig(1.702 * t[0].astype(np.float64))).astype(y.dtype))),
    ("relu", "NaN swallowed", "special", result(lambda y, t, a: np.where(np.isnan(t[0]), 0, y).astype(y.dtype) if y.dtype.kind == "f" else y)),
    ("maximum", "NaN swallowed", "special", result(lambda y, t, a: _fmax(*t).astype(y.dtype) if y.dtype.kind == "f" else y)),
    ("minimum", "NaN swallowed", "special", result(lambda y, t, a: _fmin(*t).astype(y.dtype) if y.dtype.kind == "f" else y)),
    ("minimum", "unsigned compared as signed", "value", result(lambda y, t, a: np.minimum(t[0].view(np.int8), t[1].view(np.int8)).view(np.uint8)
                                                              if y.dtype == np.uint8 else y)),
    ("where", "condition inverted", "value", inputs(lambda t: [~t[0], t[1], t[2]])),
    ("where", "0 times the other branch added", "special", result(lambda y, t, a: (y + 0 * t[1]).astype(y.dtype) if y.dtype.kind == "f" else y)),
    ("clamp", "NaN clamped to the bound", "special", result(lambda y, t, a: np.where(np.isnan(t[0]), 0 if a["min"] is None else a["min"], y).astype(y.dtype)
                                                           if y.dtype.kind == "f" else y)),
    ("clamp", "min above max gives min", "value", result(lambda y, t, a: np.maximum(y, y.dtype.type(a["min"])) if a["min"] is not None else y)),
    ("eq", "NaN equals NaN", "special", result(lambda y, t, a: y | ((t[0] != t[0]) & (t[1] != t[1])))),
    ("ne", "by the difference: infinity differs from itself", "special", result(lambda y, t, a: (t[0] - t[1]) != 0 if t[0].dtype.kind == "f" else y)),
    ("lt", "less or equal", "value", result(lambda y, t, a: t[0] <= t[1])),
    ("le", "not greater: true for NaN", "special", result(lambda y, t, a: ~(t[0] > t[1]))),
    ("gt", "int64 compared in float64", "special", result(lambda y, t, a: t[0].astype(np.float64) > t[1].astype(np.float64))),
    ("ge", "int64 compared by its low 32 bits", "special", result(lambda y, t, a: t[0].astype(np.int32) >= t[1].astype(np.int32) if t[0].dtype == np.int64 else y)),
    ("logical_and", "bits instead of truth", "value", result(lambda y, t, a: (t[0] & t[1]) != 0 if t[0].dtype.kind in "iub" else y)),
    ("logical_or", "NaN taken for false", "special", result(lambda y, t, a: ((t[0] != 0) & (t[0] == t[0])) | ((t[1] != 0) & (t[1] == t[1])))),
    ("logical_not", "sign bit decides: -0 is true", "special", result(lambda y, t, a: y & ~np.signbit(t[0]) if t[0].dtype.kind == "f" else y)),
    ("bitwise_and", "or", "value", result(lambda y, t, a: t[0] | t[1])),
    ("bitwise_or", "exclusive", "value", result(lambda y, t, a: t[0] ^ t[1])),
    ("bitwise_xor", "only the low byte", "value", result(lambda y, t, a: (t[0] ^ (t[1] & np.array(127, t[1].dtype))) if y.dtype.kind in "iu" else y)),
    ("bitwise_not", "negated", "value", result(lambda y, t, a: (-t[0]).astype(y.dtype) if y.dtype.kind in "iu" else y)),
    ("cast", "rounds to integers instead of cutting", "value", result(lambda y, t, a: np.rint(t[0].astype(np.float64)).astype(y.dtype)
                                                                  if y.dtype.kind in "iu" and t[0].dtype.kind not in "iub" else y)),
    ("cast", "bfloat16 cut instead of rounded", "value", bf16_cut(source=lambda t: t[0])),
    ("cast", "bool through an integer: 0.5 is false", "value", result(lambda y, t, a: t[0].astype(np.int64) != 0 if y.dtype == np.bool_ and t[0].dtype.kind == "f" else y)),
    ("addcmul", "value ignored", "value", attr(value=1.0)),
    ("addcdiv", "denominator and numerator swapped", "value", swap(1, 2)),
    ("lerp", "ends swapped", "value", swap(0, 1)),
    ("masked_fill", "mask inverted", "value", inputs(lambda t: [t[0], ~t[1]])),
    ("gelu_backward", "density term missing", "value", result(lambda y, t, a: (t[0] * np.where(t[1] > 0, 1.0, 0.0)).astype(y.dtype))),
    ("silu_backward", "x sigmoid' missing", "value", result(lambda y, t, a: (t[0] * _sig(t[1])).astype(y.dtype))),
    ("tanh_backward", "1 - y instead of 1 - y y", "value", result(lambda y, t, a: (t[0] * (1 - t[1])).astype(y.dtype))),
    ("sigmoid_backward", "1 - y missing", "value", result(lambda y, t, a: (t[0] * t[1]).astype(y.dtype))),
    ("threshold_backward", "threshold ignored", "value", attr(threshold=0.0)),
    ("native_dropout_backward", "scale missing", "value", attr(scale=1.0)),
    # ---- reduce
    ("sum", "returns 0", "value", result(lambda y, t, a: y * 0)),
    ("sum", "last tile dropped", "value", forget_axis_end()),
    ("sum", "keepdim ignored", "value", no_checks(None, lambda y, t, a: y.reshape([n for n in y.shape if n != 1]))),
    ("sum", "float16 sums kept in float16", "probe", f16_sums()),
    ("sum", "float32 inputs rounded to tf32", "probe", tf32()),
    ("sum", "int8 summed in int8", "special", result(lambda y, t, a: y.astype(np.int8).astype(y.dtype) if t[0].dtype == np.int8 else y)),
    ("sum", "an empty sum is NaN", "value", result(lambda y, t, a: y * np.nan if t[0].size == 0 and y.dtype.kind == "f" else y)),
    ("sum", "order depends on the number of threads", "threads", threads_order()),
    ("mean", "divides by n - 1", "value", result(lambda y, t, a: (y * (t[0].size / max(y.size, 1)) / max(t[0].size / max(y.size, 1) - 1, 1)).astype(y.dtype))),
    ("mean", "mean of nothing is 0", "value", result(lambda y, t, a: np.nan_to_num(y) if t[0].size == 0 else y)),
    ("amax", "starts from 0", "value", result(lambda y, t, a: np.where(y < 0, 0, y).astype(y.dtype))),
    ("amax", "NaN swallowed", "special", inputs(lambda t: [np.where(t[0] != t[0], np.array(-np.inf, t[0].dtype), t[0]) if t[0].dtype.kind == "f" else t[0]])),
    ("amin", "wrong axis of two", "value", attr(dim=lambda d: (0,) if d == (1,) else 0 if d == 1 else d)),
    ("argmax", "last of equal elements", "value", _last_tie(np.argmax)),
    ("argmax", "NaN skipped", "value", _skips_nan(np.argmax, -np.inf)),
    ("argmin", "index within a tile of 1024", "value", result(lambda y, t, a: y % 1024)),
    ("argmin", "last of equal elements", "value", _last_tie(np.argmin)),
    ("var", "correction ignored", "value", attr(correction=0.0)),
    ("var", "mean of squares less square of mean", "value", result(lambda y, t, a: y if a["dim"] in (None, ()) or t[0].ndim == 0 else _naive_var(y, t[0], a))),
    ("any", "only the first element of each row", "value", only_first()),
    ("any", "NaN taken for false", "special", inputs(lambda t: [np.nan_to_num(t[0], nan=0.0) if t[0].dtype.kind == "f" else t[0]])),
    ("all", "any", "value", result(lambda y, t, a: np.any(t[0], axis=a["dim"] if a["dim"] != () else None, keepdims=a["keepdim"]) if t[0].ndim else y)),
    # ---- softmax
    ("softmax", "wrong axis", "value", attr(dim=lambda d: 0)),
    ("softmax", "not shifted by the maximum", "special", result(lambda y, t, a: _unshifted(y, t, a))),
    ("softmax", "last element left out of the sum", "value", result(lambda y, t, a: _short_sum(y, t[0], a["dim"]))),
    ("softmax", "float16 arithmetic", "value", precise(np.float16)),
    ("softmax", "noise of one ulp a call", "twice", noise()),
    ("softmax", "input overwritten", "value", writes_input()),
    ("softmax", "inner axis read as contiguous", "transposed", contiguous_reads()),
    ("log_softmax", "log of softmax", "large", result(lambda y, t, a: np.log(_soft(
        t[0], a["dim"], np.float64 if y.dtype == np.float64 else f32)).astype(y.dtype) if y.size and y.ndim else y)),
    ("log_softmax", "base 2", "value", result(lambda y, t, a: (y * 1.4426950408889634).astype(y.dtype))),
    ("softmax_backward", "sum term missing", "value", result(lambda y, t, a: (t[0] * t[1]).astype(y.dtype))),
    ("log_softmax_backward", "exp missing", "value", result(lambda y, t, a: (t[0] - t[1] * t[0].sum(a["dim"], keepdims=True)).astype(y.dtype) if y.ndim else y)),
    ("softmax", "its gradient forgets the sum", "gradient", gradient(lambda o, dy, inputs, y, attrs: (o.mul(dy, y),))),
    # ---- norm
    ("layer_norm", "eps outside the root", "tiny", result(lambda y, t, a: _eps_outside(t, a, y) if y.size else y)),
    ("layer_norm", "bias ignored", "value", inputs(lambda t: [t[0], t[1], None])),
    ("layer_norm", "weight ignored", "value", inputs(lambda t: [t[0], None, t[2]])),
    ("layer_norm", "a normalized_shape that does not fit is accepted", "bad", no_checks(lambda t, a: t, skip=True)),
    ("native_layer_norm", "rstd is the variance", "value", results(lambda ys, t, a: (ys[0], ys[1], (1 / ys[2] ** 2).astype(ys[2].dtype)))),
    ("native_layer_norm", "statistics rounded to bfloat16", "value", results(lambda ys, t, a: (ys[0], _bf16(ys[1]).astype(ys[1].dtype), ys[2]))),
    ("native_layer_norm_backward", "mean of dy not taken off", "value", results(lambda ys, t, a: ((ys[0] + t[3] * np.mean(
        t[0] * (1 if t[4] is None else t[4]), tuple(range(t[0].ndim - len(a["normalized_shape"]), t[0].ndim)), keepdims=True)).astype(ys[0].dtype), *ys[1:]))),
    ("native_layer_norm_backward", "dbias averaged", "value", results(lambda ys, t, a: (*ys[:2], (ys[2] / max(t[0].size // max(ys[2].size, 1), 1)).astype(ys[2].dtype)))),
    ("rms_norm", "eps missing", "tiny", attr(eps=0.0)),
    ("rms_norm", "mean taken off first", "value", inputs(lambda t: [(t[0] - t[0].mean(-1, keepdims=True)).astype(t[0].dtype) if t[0].size else t[0], t[1]])),
    ("fused_rms_norm", "rstd without the root", "value", results(lambda ys, t, a: (ys[0], (ys[1] ** 2).astype(ys[1].dtype)))),
    ("fused_rms_norm_backward", "dweight from x instead of x rstd", "value", results(lambda ys, t, a: (ys[0], (ys[1] * 1.01).astype(ys[1].dtype)))),
    # ---- matmul
    ("matmul", "tf32 inputs", "probe", tf32()),
    ("matmul", "float16 accumulated in float16", "probe", f16_sums()),
    ("matmul", "last of K left out", "value", inputs(lambda t: [_zero_last(t[0], -1), t[1]])),
    ("matmul", "broadcast batch always 0", "value", inputs(lambda t: [t[0], np.broadcast_to(t[1][:1], t[1].shape) if t[1].ndim > 2 and t[1].shape[0] else t[1]])),
    ("mm", "transposed operand read as contiguous", "value", contiguous_reads()),
    ("mm", "last row of a tile of 64 + 1 lost", "value", result(lambda y, t, a: _zero_rows(y, 64))),
    ("mm", "bfloat16 result cut instead of rounded", "value", bf16_cut()),
    ("bmm", "batch stride of the first used for both", "value", inputs(lambda t: [t[0], np.broadcast_to(t[1][:1], t[1].shape)] if t[0].shape[0] else t)),
    ("addmm", "alpha applied to the whole", "value", result(lambda y, t, a: (y + (a["alpha"] - 1) * a["beta"] * t[0]).astype(y.dtype))),
    ("addmm", "beta 0 still reads NaN", "value", result(lambda y, t, a: (y + a["beta"] * t[0]).astype(y.dtype) if a["beta"] == 0 else y)),
    ("baddbmm", "beta ignored", "value", attr(beta=1.0)),
    ("linear", "bias ignored", "value", inputs(lambda t: [t[0], t[1], None])),
    ("linear", "weight not transposed where it is square", "probe", inputs(lambda t: [t[0][..., ::-1], t[1], t[2]])),
    ("matmul", "its gradient scaled by 2", "gradient", gradient(lambda o, dy, i, y, a: tuple(g * 2 for g in OPS["matmul"].grad(o, dy, i, y, a)))),
    # ---- attention
    ("scaled_dot_product_attention", "causal mask one too far", "value", _causal_wrong(1)),
    ("scaled_dot_product_attention", "causal mask aligned to the last key", "value", _causal_wrong(None)),
    ("scaled_dot_product_attention", "boolean mask inverted", "value", _mask(lambda m: ~m if m.dtype == np.bool_ else m)),
    ("scaled_dot_product_attention", "boolean mask added as a number", "value", _mask(_bool_as_number)),
    ("scaled_dot_product_attention", "float mask scaled too", "value", _mask(lambda m: m if m.dtype == np.bool_ else (m * 0.5).astype(m.dtype))),
    ("scaled_dot_product_attention", "scale missing", "value", attr(scale=lambda s: 1.0 if s is None else s)),
    ("scaled_dot_product_attention", "key heads tiled instead of repeated", "value", lambda op, right: lambda t, a: right(
        _gqa(t), a | {"enable_gqa": False}) if a["enable_gqa"] else right(t, a)),
    ("scaled_dot_product_flash_attention", "logsumexp to base 2", "value", results(lambda ys, t, a: (ys[0], (ys[1] * 1.44269504).astype(ys[1].dtype)))),
    ("scaled_dot_product_flash_attention", "last key skipped", "value", inputs(lambda t: [t[0], _toward_first(t[1]), _toward_first(t[2]), t[3]])),
    ("scaled_dot_product_flash_attention_backward", "dkey not scaled", "value", results(lambda ys, t, a: (
        ys[0], (ys[1] / (a["scale"] or (t[1].shape[-1] ** -0.5 if t[1].shape[-1] else 1))).astype(ys[1].dtype), ys[2]))),
    ("scaled_dot_product_flash_attention_backward", "sum(dy out) missing", "value", inputs(lambda t: [*t[:4], t[4] * 0, *t[5:]])),
    # ---- shape
    ("copy", "transposed input copied as it lies", "transposed", contiguous_reads()),
    ("copy", "subnormals flushed", "special", flush()),
    ("copy", "strided out written as contiguous", "out_sliced", reads_back()),
    ("neg", "offsets wrap (at 4096 elements here)", "value", widths(4096)),
    ("cat", "last tensor left out", "value", result(lambda y, t, a: _without_last(y, t[0], a["dim"]))),
    ("tril", "diagonal off by one", "value", attr(diagonal=lambda d: d + 1)),
    ("triu", "strict", "value", attr(diagonal=lambda d: d + 1)),
    ("arange", "adds the step n times in float32", "value", result(lambda y, t, a: np.concatenate([[a["start"]], a["start"] + np.cumsum(
        np.full(max(y.size - 1, 0), a["step"], f32), dtype=f32)])[:y.size].astype(y.dtype) if y.dtype.kind == "f" else y)),
    ("full", "negative values lost", "value", result(lambda y, t, a: np.abs(y))),
    ("full", "out ignored", "out", ignores_out()),
    # ---- index
    ("embedding", "index clamped instead of refused", "bad", _clip(1, lambda t, a: t[0].shape[0])),
    ("embedding", "row 0 skipped", "value", result(lambda y, t, a: (y * (t[1] != 0)[..., None]).astype(y.dtype))),
    ("embedding_dense_backward", "padding row counted", "value", attr(padding_idx=-1)),
    ("embedding_dense_backward", "repeated indices lost", "value", result(lambda y, t, a: _last_wins(y, t, a))),
    ("gather", "index clamped instead of refused", "bad", _clip(1, lambda t, a: t[0].shape[a["dim"]] if t[0].ndim else 1)),
    ("gather", "index strides ignored", "sliced", contiguous_reads(lambda x: x.dtype.kind == "i")),
    ("scatter_add", "repeated indices overwrite", "value", _overwrites(1, 2)),
    ("index_select", "index taken modulo the size", "bad", no_checks(lambda t, a: [t[0], t[1] % max(t[0].shape[a["dim"]] if t[0].ndim else 1, 1)])),
    ("index_select", "first index for all", "value", inputs(lambda t: [t[0], np.broadcast_to(t[1][:1], t[1].shape) if t[1].ndim else t[1]])),
    ("index_add", "alpha ignored", "value", attr(alpha=1.0)),
    ("index_add", "repeated indices lost", "value", _overwrites(1, 2)),
    # ---- random
    ("rand", "seed ignored", "seed", attr(seed=0)),
    ("rand", "high half of the seed ignored", "seed", attr(seed=lambda s: s % 2**32)),
    ("rand", "offset ignored", "seed", attr(offset=0)),
    ("rand", "values up to 1 inclusive", "value", result(lambda y, t, a: (y * (1 + 2.0**-24) + 2.0**-24).astype(y.dtype))),
    ("dropout", "not scaled by 1 / (1 - p)", "value", result(lambda y, t, a: (y * (1 - a["p"])).astype(y.dtype))),
    ("dropout", "drops what it should keep", "value", attr(p=lambda p: 1 - p)),
    ("dropout", "elements numbered as they lie in memory", "transposed", lambda op, right: lambda t, a: tuple(
        np.swapaxes(y, -1, -2) for y in right([np.swapaxes(t[0], -1, -2)], a)) if t[0].ndim > 1 and t[0].strides[-1] > t[0].strides[-2] else right(t, a)),
    ("native_dropout", "mask in the dtype of x", "value", no_checks(None, None, lambda ys, t, a: (ys[0], ys[1].astype(ys[0].dtype)))),
    # ---- loss
    ("nll_loss", "ignored rows counted in the mean", "value", result(lambda y, t, a: (y * np.mean(t[1] != a["ignore_index"])).astype(y.dtype)
                                                                   if a["reduction"] == "mean" else y)),
    ("nll_loss", "mean not divided by the weights", "value", result(_mean_of_all)),
    ("nll_loss", "a target out of range is clamped", "bad", _clip(1, lambda t, a: t[0].shape[-1])),
    ("nll_loss_forward", "total_weight counts rows", "value", results(lambda ys, t, a: (ys[0], np.asarray(t[1].size, ys[1].dtype)))),
    ("nll_loss_backward", "ignored rows get a gradient", "value", attr(ignore_index=-100)),
    ("nll_loss_backward", "not divided by total_weight", "value", result(lambda y, t, a: (y * t[4]).astype(y.dtype) if a["reduction"] == "mean" else y)),
    ("cross_entropy", "label smoothing ignored", "value", attr(label_smoothing=0.0)),
    ("cross_entropy", "ignore_index counted as class 0", "value", lambda op, right: lambda t, a: right(
        [t[0], np.where(t[1] == a["ignore_index"], 0, t[1]), t[2]], a)),
]


# ---- what some rows need --------------------------------------------------------------------------------------------------
def _bf16(x):
    import ml_dtypes

    return x.astype(ml_dtypes.bfloat16).astype(x.dtype)


def _naive_var(y, x, a):
    dim, v = a["dim"], x.astype(f32)
    n = x.size / max(y.size, 1)
    if n <= a["correction"]:
        return y
    square, mean = (v * v).mean(dim, keepdims=a["keepdim"]), v.mean(dim, keepdims=a["keepdim"])
    return ((square - mean * mean) * n / (n - a["correction"])).astype(y.dtype)


def _soft(x, dim, dt):
    e = np.exp(x.astype(dt) - x.astype(dt).max(dim, keepdims=True))
    return e / e.sum(dim, keepdims=True)


def _unshifted(y, t, a):
    if not y.size or not y.ndim:
        return y
    e = np.exp(t[0].astype(f32))
    return (e / e.sum(a["dim"], keepdims=True)).astype(y.dtype)


def _short_sum(y, x, dim):
    if not y.ndim or y.shape[dim] < 2:
        return y
    last = np.take(y, [-1], dim).astype(np.float64)
    return (y / (1 - last)).astype(y.dtype)


def _zero_last(x, axis):
    x = np.array(x)
    if x.shape[axis] > 1:
        x[..., -1] = 0
    return x


def _zero_rows(y, tile):
    y = np.array(y)
    if y.shape[0] > tile:
        y[tile:] = 0
    return y


def _toward_first(x):
    x = np.array(x)
    if x.shape[2] > 1:
        x[:, :, -1] = x[:, :, 0]
    return x


def _without_last(y, tensors, dim):
    y = np.array(y)
    n = tensors[-1].shape[dim] if tensors[-1].ndim else 0
    if n and y.size:
        at = [slice(None)] * y.ndim
        at[dim] = slice(y.shape[dim] - n, None)
        y[tuple(at)] = 0
    return y


def _last_wins(y, t, a):
    dy, i = t[0].reshape(-1, t[0].shape[-1]), t[1].reshape(-1)
    out = np.zeros_like(y)
    keep = i != a["padding_idx"]
    out[i[keep]] = dy[keep]
    return out


MUTANTS: tuple[Mutant, ...] = tuple(Mutant(*row) for row in _M)


# ---- running them -----------------------------------------------------------------------------------------------------------
def _kind(case: Case) -> str:
    return case.variant or case.kind


def judge_mutant(mutant: Mutant, seed: int = 0) -> Killed:
    """Run the suite on an implementation that is right but for one mistake; stops at the first refusal."""
    target = FunctionTarget("mutant", {name: in_precision(op) for name, op in OPS.items()})
    made = mutant.make(OPS[mutant.op], target.table[mutant.op])
    if isinstance(made, dict):  # a wrong gradient
        target.grads[mutant.op] = made["gradient"]
    else:
        if getattr(made, "wants_target", False):
            made.target = target
        target.table[mutant.op] = made
    own = cases("core", (mutant.op,))
    meant = [c for c in own if _kind(c) == mutant.check]
    for chosen, is_meant in ((meant, True), ([c for c in own if _kind(c) != mutant.check], False)):
        for line in run_in_process(target, seed=seed, chosen=chosen, stop_at_failure=True):
            if line["result"] in BAD:
                return Killed(mutant, line["id"], is_meant, line["message"])
    return Killed(mutant, "", False)


def run(mutants: Sequence[Mutant] = MUTANTS, seed: int = 0, show: Callable[[Killed], None] | None = None) -> list[Killed]:
    """Judge mutants; ``show`` is told each verdict as it comes."""
    found = []
    for mutant in mutants:
        verdict = judge_mutant(mutant, seed)
        found.append(verdict)
        if show:
            show(verdict)
    return found


def main() -> int:
    """Print a line a mutant, then killed / total and the survivors; 1 when fewer than 95 % were killed."""
    start = time.perf_counter()

    def show(k: Killed) -> None:
        how = "SURVIVED" if not k.by else f"{k.by}{'' if k.meant else f'  (meant: {k.mutant.check})'}"
        print(f"{k.mutant.op:44} {k.mutant.wrong:52} {how}")

    found = run(show=show)
    killed = [k for k in found if k.by]
    print(f"{len(killed)} of {len(found)} mutants killed over {len({k.mutant.op for k in found})} operators, {sum(k.meant for k in killed)} by the "
          f"check that was meant; {time.perf_counter() - start:.1f} s")
    for k in found:
        if not k.by:
            print(f"survived: {k.mutant.op}: {k.mutant.wrong}")
    return int(len(killed) < 0.95 * len(found))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HaianError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
