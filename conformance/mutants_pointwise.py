"""Mutants of the pointwise operators.  How they are run: mutants.py; the makers: mutate.py."""

from __future__ import annotations

import numpy as np

from .mutate import (
    Row,
    attr,
    bf16_cut,
    contiguous_reads,
    drop_tail,
    element_by_element,
    flush,
    inputs,
    no_checks,
    past_end,
    precise,
    result,
    swap,
    tf32,
)

__all__ = ["ROWS"]

f32 = np.float32


def _fmax(x, y):
    return np.where(np.isnan(x), y, np.where(np.isnan(y), x, np.maximum(x, y)))


def _fmin(x, y):
    return np.where(np.isnan(x), y, np.where(np.isnan(y), x, np.minimum(x, y)))


def _sig(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def _bf16(x):
    import ml_dtypes

    return x.astype(ml_dtypes.bfloat16).astype(x.dtype)


# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    # ---- pointwise
    ("add", "alpha ignored", "value", attr(alpha=1.0)),
    ("add", "inputs rounded to float16", "value", precise(np.float16)),
    ("add", "reads strided inputs as if contiguous", "sliced", contiguous_reads()),
    ("add", "the last element is left out", "value", drop_tail(1)),
    ("add", "subnormals flushed, undeclared", "special", flush()),
    ("add", "bfloat16 result cut instead of rounded", "value", bf16_cut()),
    ("add", "overlapping out written while inputs are still read", "overlap", element_by_element()),
    (
        "add",
        "int8 saturates instead of wrapping",
        "value",
        result(
            lambda y, t, a: (
                np.clip(t[0].astype(np.int64) + int(a["alpha"]) * t[1].astype(np.int64), -128, 127).astype(np.int8)
                if y.dtype == np.int8
                else y
            )
        ),
    ),
    (
        "add",
        "shapes that do not broadcast are accepted",
        "bad",
        no_checks(lambda t, a: [x.reshape(-1)[:1].reshape(()) for x in t]),
    ),
    ("sub", "operands swapped", "value", swap(0, 1)),
    ("sub", "stride 0 read as stride 1", "stride0", contiguous_reads(lambda x: 0 in x.strides)),
    ("mul", "negative strides read forwards", "negative", contiguous_reads(lambda x: any(s < 0 for s in x.strides))),
    ("mul", "float32 products rounded to tf32 inputs", "value", tf32()),
    ("mul", "8 bytes written past the end of out", "out", past_end(8)),
    (
        "div",
        "times a rounded reciprocal",
        "value",
        result(lambda y, t, a: (t[0] * (y.dtype.type(1) / t[1])).astype(y.dtype)),
    ),
    ("div", "sign of a zero divisor lost", "special", inputs(lambda t: [t[0], t[1] + t[1].dtype.type(0)])),
    (
        "pow",
        "exp(y log x): negative bases give NaN",
        "value",
        result(
            lambda y, t, a: (
                np.exp(t[1].astype(np.float64) * np.log(t[0].astype(np.float64))).astype(y.dtype)
                if y.dtype.kind == "f"
                else y
            )
        ),
    ),
    ("neg", "0 - x: -0 lost", "value", result(lambda y, t, a: (0 - t[0]).astype(y.dtype))),
    (
        "abs",
        "negative zero stays negative",
        "value",
        result(lambda y, t, a: np.where(t[0] < 0, -t[0], t[0]).astype(y.dtype)),
    ),
    ("sign", "sign of NaN is NaN", "special", result(lambda y, t, a: np.where(t[0] != t[0], t[0], y))),
    ("exp", "clamped at 80", "value", inputs(lambda t: [np.minimum(t[0], t[0].dtype.type(80))])),
    (
        "exp",
        "float32 through 2**(x * rounded log2 e)",
        "value",
        result(lambda y, t, a: np.exp2((t[0] * f32(1.442695)).astype(f32)).astype(y.dtype) if y.dtype == f32 else y),
    ),
    (
        "log",
        "log of 0 is the smallest float",
        "value",
        result(lambda y, t, a: np.where(np.isneginf(y), np.finfo(f32).min, y).astype(y.dtype)),
    ),
    (
        "log",
        "subnormal inputs taken for 0",
        "special",
        inputs(lambda t: [np.where(np.abs(t[0]) < 2.0**-126, t[0] * 0, t[0])]),
    ),
    (
        "sqrt",
        "x times the rounded reciprocal root",
        "value",
        result(lambda y, t, a: (t[0] * (1 / np.sqrt(t[0].astype(f32))).astype(f32)).astype(y.dtype)),
    ),
    ("rsqrt", "two Newton steps from a float16 estimate", "value", precise(np.float16)),
    (
        "reciprocal",
        "infinity gives NaN",
        "special",
        result(lambda y, t, a: np.where(np.isinf(t[0]), np.nan, y).astype(y.dtype)),
    ),
    (
        "sin",
        "argument reduced by float32 2 pi",
        "value",
        inputs(lambda t: [np.fmod(t[0], f32(6.2831855)).astype(t[0].dtype)]),
    ),
    (
        "cos",
        "sine with the argument moved by float32 pi / 2",
        "value",
        result(lambda y, t, a: np.sin((t[0].astype(f32) + f32(1.5707964)).astype(f32)).astype(y.dtype)),
    ),
    (
        "tanh",
        "(e^2x - 1) / (e^2x + 1)",
        "value",
        result(
            lambda y, t, a: ((np.exp(2 * t[0].astype(f32)) - 1) / (np.exp(2 * t[0].astype(f32)) + 1)).astype(y.dtype)
        ),
    ),
    (
        "sigmoid",
        "e^x / (1 + e^x) overflows to NaN",
        "value",
        result(lambda y, t, a: (np.exp(t[0].astype(f32)) / (1 + np.exp(t[0].astype(f32)))).astype(y.dtype)),
    ),
    (
        "erf",
        "tanh approximation",
        "value",
        result(
            lambda y, t, a: np.tanh(
                t[0].astype(np.float64) * 1.1283791671 * (1 + 0.08943 * t[0].astype(np.float64) ** 2)
            ).astype(y.dtype)
        ),
    ),
    ("gelu", "tanh and erf swapped", "value", attr(approximate=lambda v: "tanh" if v == "none" else "none")),
    (
        "gelu",
        "rounded to bfloat16 before the product",
        "value",
        result(
            lambda y, t, a: (
                t[0].astype(f32) * _bf16(np.where(t[0] == 0, 0.5, y.astype(f32) / t[0].astype(f32)))
            ).astype(y.dtype)
        ),
    ),
    (
        "silu",
        "x sigmoid(1.702 x)",
        "value",
        result(lambda y, t, a: (t[0] * _sig(1.702 * t[0].astype(np.float64))).astype(y.dtype)),
    ),
    (
        "relu",
        "NaN swallowed",
        "special",
        result(lambda y, t, a: np.where(np.isnan(t[0]), 0, y).astype(y.dtype) if y.dtype.kind == "f" else y),
    ),
    (
        "maximum",
        "NaN swallowed",
        "special",
        result(lambda y, t, a: _fmax(*t).astype(y.dtype) if y.dtype.kind == "f" else y),
    ),
    (
        "minimum",
        "NaN swallowed",
        "special",
        result(lambda y, t, a: _fmin(*t).astype(y.dtype) if y.dtype.kind == "f" else y),
    ),
    (
        "minimum",
        "unsigned compared as signed",
        "value",
        result(
            lambda y, t, a: (
                np.minimum(t[0].view(np.int8), t[1].view(np.int8)).view(np.uint8) if y.dtype == np.uint8 else y
            )
        ),
    ),
    ("where", "condition inverted", "value", inputs(lambda t: [~t[0], t[1], t[2]])),
    (
        "where",
        "0 times the other branch added",
        "special",
        result(lambda y, t, a: (y + 0 * t[1]).astype(y.dtype) if y.dtype.kind == "f" else y),
    ),
    (
        "clamp",
        "NaN clamped to the bound",
        "special",
        result(
            lambda y, t, a: (
                np.where(np.isnan(t[0]), 0 if a["min"] is None else a["min"], y).astype(y.dtype)
                if y.dtype.kind == "f"
                else y
            )
        ),
    ),
    (
        "clamp",
        "min above max gives min",
        "value",
        result(lambda y, t, a: np.maximum(y, y.dtype.type(a["min"])) if a["min"] is not None else y),
    ),
    ("eq", "NaN equals NaN", "special", result(lambda y, t, a: y | ((t[0] != t[0]) & (t[1] != t[1])))),
    (
        "ne",
        "by the difference: infinity differs from itself",
        "special",
        result(lambda y, t, a: (t[0] - t[1]) != 0 if t[0].dtype.kind == "f" else y),
    ),
    ("lt", "less or equal", "value", result(lambda y, t, a: t[0] <= t[1])),
    ("le", "not greater: true for NaN", "special", result(lambda y, t, a: ~(t[0] > t[1]))),
    (
        "gt",
        "int64 compared in float64",
        "special",
        result(lambda y, t, a: t[0].astype(np.float64) > t[1].astype(np.float64)),
    ),
    (
        "ge",
        "int64 compared by its low 32 bits",
        "special",
        result(lambda y, t, a: t[0].astype(np.int32) >= t[1].astype(np.int32) if t[0].dtype == np.int64 else y),
    ),
    (
        "logical_and",
        "bits instead of truth",
        "value",
        result(lambda y, t, a: (t[0] & t[1]) != 0 if t[0].dtype.kind in "iub" else y),
    ),
    (
        "logical_or",
        "NaN taken for false",
        "special",
        result(lambda y, t, a: ((t[0] != 0) & (t[0] == t[0])) | ((t[1] != 0) & (t[1] == t[1]))),
    ),
    (
        "logical_not",
        "sign bit decides: -0 is true",
        "special",
        result(lambda y, t, a: y & ~np.signbit(t[0]) if t[0].dtype.kind == "f" else y),
    ),
    ("bitwise_and", "or", "value", result(lambda y, t, a: t[0] | t[1])),
    ("bitwise_or", "exclusive", "value", result(lambda y, t, a: t[0] ^ t[1])),
    (
        "bitwise_xor",
        "only the low byte",
        "value",
        result(lambda y, t, a: (t[0] ^ (t[1] & np.array(127, t[1].dtype))) if y.dtype.kind in "iu" else y),
    ),
    ("bitwise_not", "negated", "value", result(lambda y, t, a: (-t[0]).astype(y.dtype) if y.dtype.kind in "iu" else y)),
    (
        "cast",
        "rounds to integers instead of cutting",
        "value",
        result(
            lambda y, t, a: (
                np.rint(t[0].astype(np.float64)).astype(y.dtype)
                if y.dtype.kind in "iu" and t[0].dtype.kind not in "iub"
                else y
            )
        ),
    ),
    ("cast", "bfloat16 cut instead of rounded", "value", bf16_cut(source=lambda t: t[0])),
    (
        "cast",
        "bool through an integer: 0.5 is false",
        "value",
        result(lambda y, t, a: t[0].astype(np.int64) != 0 if y.dtype == np.bool_ and t[0].dtype.kind == "f" else y),
    ),
    ("addcmul", "value ignored", "value", attr(value=1.0)),
    ("addcdiv", "denominator and numerator swapped", "value", swap(1, 2)),
    ("lerp", "ends swapped", "value", swap(0, 1)),
    ("masked_fill", "mask inverted", "value", inputs(lambda t: [t[0], ~t[1]])),
    (
        "gelu_backward",
        "density term missing",
        "value",
        result(lambda y, t, a: (t[0] * np.where(t[1] > 0, 1.0, 0.0)).astype(y.dtype)),
    ),
    ("silu_backward", "x sigmoid' missing", "value", result(lambda y, t, a: (t[0] * _sig(t[1])).astype(y.dtype))),
    ("tanh_backward", "1 - y instead of 1 - y y", "value", result(lambda y, t, a: (t[0] * (1 - t[1])).astype(y.dtype))),
    ("sigmoid_backward", "1 - y missing", "value", result(lambda y, t, a: (t[0] * t[1]).astype(y.dtype))),
    ("threshold_backward", "threshold ignored", "value", attr(threshold=0.0)),
    ("native_dropout_backward", "scale missing", "value", attr(scale=1.0)),
)
