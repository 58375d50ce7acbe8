"""Mutants of the operators of one value, and of those made of others.

How they are run: mutants.py; the makers: mutate.py.
"""

from __future__ import annotations

import numpy as np

from .mutate import Row, attr, inputs, result

__all__ = ["ROWS"]

# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    ("zeros_like", "x itself", "value", result(lambda y, t, a: t[0].astype(y.dtype))),
    ("ones_like", "dtype ignored", "value", attr(dtype=None)),
    ("full_like", "value ignored", "value", attr(value=0.0)),
    ("full_like", "flat", "value", result(lambda y, t, a: y.reshape(-1))),
    ("zeros", "ones", "value", result(lambda y, t, a: np.ones_like(y))),
    ("ones", "the last one is lost", "value", lambda op, right: lambda t, a: _without_last(right(t, a))),
    ("scalar_tensor", "whole numbers", "value", result(lambda y, t, a: np.trunc(y) if y.dtype.kind == "f" else y)),
    ("outer", "turned", "value", lambda op, right: lambda t, a: np.ascontiguousarray(right([t[1], t[0]], a))),
    ("matmul_bias_activation", "activation before the bias", "value", lambda op, right: lambda t, a: (
        right([t[0], t[1], None], a) if t[2] is None else (right([t[0], t[1], None], a) + t[2]).astype(t[0].dtype))),
    ("matmul_bias_activation", "always relu", "value", attr(activation="relu")),
    ("round", "halves away from zero", "value", lambda op, right: lambda t, a: (
        np.copysign(np.floor(np.abs(t[0]) + np.asarray(0.5, t[0].dtype)), t[0]).astype(t[0].dtype) if t[0].dtype.kind != "i" and t[0].dtype.kind != "u"
        else right(t, a))),
    ("square", "of the size", "value", inputs(lambda t: [np.abs(t[0]) + np.asarray(1, t[0].dtype)])),
    ("threshold", "at the threshold too", "value", lambda op, right: lambda t, a: right(t, a | {"threshold": np.nextafter(a["threshold"], -1)})),
)


def _without_last(y: np.ndarray) -> np.ndarray:
    y = np.array(y)
    if y.size > 1:
        y.reshape(-1)[-1] = 0
    return y
