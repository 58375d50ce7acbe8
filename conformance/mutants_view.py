"""Mutants of views and of operators made of others.

How they are run: mutants.py; the makers: mutate.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .mutate import Row, attr, result

__all__ = ["ROWS"]


def _attr(fn: Any) -> Any:
    """Attributes changed by ``fn(attributes)``."""
    return lambda op, right: lambda t, a: right(t, a | fn(a))


def _last_lost(op: Any, right: Any) -> Any:
    """A list without its last piece."""
    return lambda t, a: right(t, a)[:-1]


def _beside(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """y with only as many elements right as x has."""
    y = np.array(y)
    y.reshape(-1)[x.size:] = 0
    return y


# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    ("permute", "the inverse permutation", "value", _attr(lambda a: {"dims": tuple(np.argsort([d % len(a["dims"]) for d in a["dims"]]))})),
    ("slice", "end included", "value", _attr(lambda a: {"end": None if a["end"] is None else a["end"] + 1})),
    ("slice", "step ignored", "value", attr(step=1)),
    ("diagonal", "offset counted down", "value", _attr(lambda a: {"offset": -a["offset"]})),
    ("select", "always the first", "value", attr(index=0)),
    ("unfold", "windows one apart", "value", attr(step=1)),
    ("split", "the rest is lost", "value", _last_lost),
    ("split_with_sizes", "sizes in the other order", "value", _attr(lambda a: {"sizes": tuple(reversed(a["sizes"]))})),
    ("unbind", "along the first axis", "value", attr(dim=0)),
    ("as_strided", "offset ignored", "value", attr(offset=0)),
    ("transpose", "the last two axes", "value", result(lambda y, t, a: y if t[0].ndim < 2 else np.swapaxes(t[0], -1, -2))),
    ("view", "columns first", "value", result(lambda y, t, a: np.reshape(t[0], y.shape, order="F"))),
    ("expand", "zeros beside the first", "value", result(lambda y, t, a: _beside(y, t[0]))),
    ("squeeze", "axes of size 1 stay", "value", lambda op, right: lambda t, a: t[0]),
    ("unsqueeze", "always in front", "value", attr(dim=0)),
    ("alias", "the first element only", "value", result(lambda y, t, a: _beside(y, t[0].reshape(-1)[:1]))),
    ("meshgrid", "ij for xy", "value", attr(indexing="ij")),
)
