"""Mutants of views and of operators made of others.

How they are run: mutants.py; the makers: mutate.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .mutate import Row, attr

__all__ = ["ROWS"]


def _attr(fn: Any) -> Any:
    """Attributes changed by ``fn(attributes)``."""
    return lambda op, right: lambda t, a: right(t, a | fn(a))


def _last_lost(op: Any, right: Any) -> Any:
    """A list without its last piece."""
    return lambda t, a: right(t, a)[:-1]


# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    ("permute", "the inverse permutation", "value", _attr(lambda a: {"dims": tuple(np.argsort([d % len(a["dims"]) for d in a["dims"]]))})),
    ("slice", "end included", "value", _attr(lambda a: {"end": None if a["end"] is None else a["end"] + 1})),
    ("slice", "step ignored", "value", attr(step=1)),
    ("diagonal", "offset counted down", "value", _attr(lambda a: {"offset": -a["offset"]})),
    ("select", "always the first", "value", attr(index=0)),
    ("unfold", "windows one apart", "value", attr(step=1)),
    ("split", "the rest is lost", "value", _last_lost),
    ("meshgrid", "ij for xy", "value", attr(indexing="ij")),
)
