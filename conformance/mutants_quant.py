"""Mutants of quantised tensors: codes, scales and products.

How they are run: mutants.py; the makers: mutate.py.
"""

from __future__ import annotations

import numpy as np

from ..hal.dtype import BY_NAME
from .mutate import Row, attr, inputs, results

__all__ = ["ROWS"]


def _halves_up(y, t, a):
    codes, scales = y
    if codes.dtype != np.int8:
        return y
    size = a["group_size"]
    with np.errstate(all="ignore"):
        q = t[0].astype(np.float32).reshape(*scales.shape, size) / scales[..., None]
    return np.trunc(q + np.copysign(np.float32(0.5), q)).clip(-127, 127).astype(np.int8).reshape(codes.shape), scales


def _truncated(y, t, a):
    codes, scales = y
    with np.errstate(all="ignore"):
        q = (t[0].astype(np.float32).reshape(*scales.shape, a["group_size"]) / scales[..., None]).reshape(codes.shape)
    return (np.trunc(q).astype(np.int8) if codes.dtype == np.int8 else codes), scales


def _high_half_first(t):
    w = t[1]
    return [t[0], (w << 4 | w >> 4).astype(np.uint8), *t[2:]]


def _sums_of_16_bits(op, right):
    def call(t, a):
        sums = (t[0].astype(np.int64) @ t[1].T.astype(np.int64)).astype(np.int16).astype(np.float32)
        y = sums * t[2][:, None] * t[3]
        return ((y if t[4] is None else y + t[4]).astype(right(t, a)[0].dtype),)

    return call


def _first_of(i: int):
    """The first value of a vector of factors counts for all."""
    return inputs(lambda t: [np.broadcast_to(x[:1], x.shape).copy() if j == i and x.size else x for j, x in enumerate(t)])


def _bias_scaled(op, right):
    def call(t, a):
        if t[4] is None:
            return right(t, a)
        y = right([*t[:4], None], a | {"dtype": BY_NAME["float32"]})[0]
        return ((y + t[2][:, None] * t[4]).astype(right(t, a)[0].dtype),)

    return call


# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    ("quantize_per_token_group", "halves away from zero", "halves", results(_halves_up)),
    ("quantize_per_token_group", "codes cut", "value", results(_truncated)),
    ("quantize_per_token_group", "eps ignored", "eps", attr(eps=1e-10)),
    ("quantize_per_token_group", "the largest magnitude is the largest value", "value", lambda op, right: lambda t, a: (
        right(t, a)[0], right([np.maximum(t[0], t[0].dtype.type(0))], a)[1])),
    ("dequantize_per_group", "zero points ignored", "value", lambda op, right: lambda t, a: right([t[0], t[1], None], a)),
    ("dequantize_per_group", "bytes read as signed", "value", inputs(lambda t: [t[0].astype(np.int8) if t[0].dtype == np.uint8 else t[0], *t[1:]])),
    ("dequantize_per_group", "the first row's scales", "value", inputs(
        lambda t: [t[0], np.broadcast_to(t[1].reshape(-1, t[1].shape[-1])[:1], t[1].shape).copy() if t[1].size and t[1].ndim == 2 else t[1], t[2]])),
    ("weight_int8_mm", "scales missing", "value", inputs(lambda t: [t[0], t[1], np.ones_like(t[2])])),
    ("weight_int8_mm", "bytes read as unsigned", "value", inputs(lambda t: [t[0], np.abs(t[1].astype(np.int16)).clip(0, 127).astype(np.int8), t[2]])),
    ("weight_int4_mm", "high half first", "value", inputs(_high_half_first)),
    ("weight_int4_mm", "zero points ignored", "value", inputs(lambda t: [*t[:3], np.zeros_like(t[3])])),
    ("weight_int4_mm", "the first group's scale", "past_tile", inputs(
        lambda t: [*t[:2], np.broadcast_to(t[2][:, :1], t[2].shape).copy() if t[2].size else t[2], t[3]])),
    ("scaled_mm_fp8", "one scale for all rows", "value", _first_of(2)),
    ("scaled_mm_fp8", "bias times the row's scale", "value", _bias_scaled),
    ("qlinear_int8", "sums of 16 bits", "value", _sums_of_16_bits),
    ("qlinear_int8", "one scale for all columns", "value", _first_of(3)),
    ("qlinear_int8", "bias times the row's scale", "value", _bias_scaled),
)
