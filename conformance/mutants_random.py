"""Mutants of random numbers other than rand and dropout.

How they are run: mutants.py; the makers: mutate.py.
"""

from __future__ import annotations

import numpy as np

from ..hal.dtype import BY_NAME
from ..kernels.ops import OPS
from ..kernels.ops.random import uniform as fractions
from ..kernels.ops.random import words
from .mutate import Row, attr, result

__all__ = ["ROWS"]


def _pairs_swapped(y, t, a):
    y = np.array(y)
    flat = y.reshape(-1)
    even = flat.size // 2 * 2
    flat[:even] = flat[:even].reshape(-1, 2)[:, ::-1].reshape(-1)
    return y


def _words_modulo(op, right):
    """The remainder of the word: other numbers of the same law."""
    def call(t, a):
        y = right(t, a)[0]
        w = words(y.size, a["seed"], a["offset"]).astype(object)
        return ((w % (a["high"] - a["low"]) + a["low"]).astype(np.int64).astype(y.dtype).reshape(y.shape),)

    return call


def _up_to_the_number(op, right):
    def call(t, a):
        u = fractions(t[0].size, a["seed"], a["offset"], BY_NAME["float32"]).reshape(t[0].shape)
        return ((u <= t[0].astype(np.float64)).astype(t[0].dtype),)

    return call


def _of_elements(op, right):
    """Elements are dropped, not channels."""
    def call(t, a):
        y = OPS["dropout"].reference(t[0].astype(np.float64), **a)
        return (np.asarray(y).astype(t[0].dtype),)

    return call


# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    ("uniform", "seed ignored", "seed", attr(seed=0)),
    ("uniform", "high is the width", "value", attr(high=lambda h: h + 0.125)),
    ("normal", "variance for deviation", "value", attr(std=lambda s: s * s)),
    ("normal", "sine before cosine", "value", result(_pairs_swapped)),
    ("randn", "offset ignored", "seed", attr(offset=0)),
    ("randn", "sine before cosine", "value", result(_pairs_swapped)),
    ("randint", "remainder of the word", "value", _words_modulo),
    ("randint", "high is drawn too", "value", attr(high=lambda h: h + 1)),
    ("bernoulli", "1 at the number itself", "at_the_number", _up_to_the_number),
    ("bernoulli", "0 and 1 swapped", "value", result(lambda y, t, a: (1 - y).astype(y.dtype))),
    ("rand_like", "seed ignored", "seed", attr(seed=0)),
    ("randn_like", "uniform numbers", "value", lambda op, right: lambda t, a: (
        fractions(t[0].size, a["seed"], a["offset"], a["dtype"]).reshape(t[0].shape).astype(a["dtype"].numpy),)),
    ("randperm", "in descending order", "value", result(lambda y, t, a: y[::-1].copy())),
    ("randperm", "offset ignored", "seed", attr(offset=0)),
    ("dropout2d", "elements are dropped", "value", _of_elements),
    ("dropout2d", "not scaled by 1 / (1 - p)", "value", result(lambda y, t, a: (y * (1 - a["p"])).astype(y.dtype))),
)
