"""Mutants of scatters, advanced indexing, padding and movement.  How they are run: mutants.py; the makers: mutate.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels.ops import OPS
from ..kernels.ops import pad as pads
from .mutate import (
    Row,
    attr,
    contiguous_reads,
    gradient,
    ignores_out,
    inputs,
    no_checks,
    noise,
    precise,
    reads_back,
    result,
    results,
    writes_input,
)

__all__ = ["ROWS"]


def _with(fn: Callable) -> Any:
    """Inputs replaced in sight of the attributes."""
    return lambda op, right: lambda t, a: right(fn(list(t), a), a)


def _clip(i: int, size_of: Callable) -> Any:
    """Bad indices are clamped into range instead of refused."""
    return no_checks(lambda t, a: [np.clip(x, 0, max(size_of(t, a) - 1, 0)) if j == i else x for j, x in enumerate(t)])


def _size_along(t: list[Any], a: dict[str, Any]) -> int:
    return t[0].shape[a["dim"]] if t[0].ndim else 1


def _first_axis(t: list[Any], a: dict[str, Any]) -> int:
    return t[0].shape[0]


def _backwards(t: list[Any], a: dict[str, Any]) -> list[Any]:
    """Terms taken from the last to the first: of several for one place the first stays."""
    x, index, source = t
    if index.ndim == 0:
        return t
    if index.ndim != x.ndim:  # a vector along one axis
        return [x, index[::-1], np.flip(source, a["dim"]) if source.ndim else source]
    cut = tuple(slice(n) for n in index.shape) if x.ndim > 1 or source.shape != index.shape else ()
    return [x, np.flip(index, a["dim"]), np.flip(source[cut], a["dim"]) if source.ndim else source]


def _first_index(t: list[Any]) -> list[Any]:
    return [t[0], t[1].reshape(-1)[:1], *t[2:]]


def _no_negative(t: list[Any]) -> list[Any]:
    """Values that count from the end are taken for 0."""
    return [t[0], *(x if x is None or x.dtype.kind != "i" else np.maximum(x, 0) for x in t[1:])]


def _in_front(y: np.ndarray, t: list[Any], a: dict[str, Any]) -> np.ndarray:
    """The axes of the index tensors always stand in front."""
    given = [d for d, i in enumerate(t[1:]) if i is not None]
    together = given[-1] - given[0] == len(given) - 1
    n = max(i.ndim for i in t[1:] if i is not None)
    return np.moveaxis(y, range(given[0], given[0] + n), range(n)) if together else y


def _terms_backwards(op: Any, right: Callable) -> Callable:
    """index_put that goes through the first axis of its terms from the end."""

    def call(t: Any, a: dict[str, Any]) -> Any:
        x, values, *indices = t
        shape = np.broadcast_shapes(*(i.shape for i in indices if i is not None))
        given = [d for d, i in enumerate(indices) if i is not None]
        if a["accumulate"] or not shape or given[0]:
            return right(t, a)
        wide = [None if i is None else np.broadcast_to(i, shape)[::-1] for i in indices]
        result = (*shape, *(s for d, s in enumerate(x.shape) if d not in given))
        return right([x, np.broadcast_to(values, result)[::-1], *wide], a)

    return call


def _aligned(y: np.ndarray, t: list[Any], a: dict[str, Any]) -> np.ndarray:
    """Selected places take the element of source at their own place instead of the next one."""
    n = y.size
    return np.where(np.broadcast_to(t[1], y.shape), np.resize(t[2], n).reshape(y.shape), t[0]) if t[2].size else y


def _mode(mode: str) -> Any:
    """Padding of another mode."""

    def make(op: Any, right: Callable) -> Callable:
        def call(t: Any, a: dict[str, Any]) -> Any:
            return (OPS["pad"].reference(np.asarray(t[0]), pad=a["pad"], mode=mode, value=0.0),)

        return call

    return make


def _overwritten(mode: str) -> Any:
    """Of several places that show an element the last one's gradient is taken instead of the sum."""

    def make(op: Any, right: Callable) -> Callable:
        def call(t: Any, a: dict[str, Any]) -> Any:
            dy, x = np.asarray(t[0]), np.asarray(t[1])
            dx = np.zeros(x.shape, dy.dtype)
            dx[np.ix_(*pads._maps(op.name, x.shape, a["pad"], mode))] = dy
            return (dx,)

        return call

    return make


def _edge_zero(y: np.ndarray, t: list[Any], a: dict[str, Any]) -> np.ndarray:
    y = np.array(y)
    if y.ndim and y.shape[-1] > 1 and a["pad"][1] > 0:
        y[..., -1] = 0
    return y


def _each_repeated(y: np.ndarray, t: list[Any], a: dict[str, Any]) -> np.ndarray:
    """Elements repeated in place, not the whole."""
    x = np.reshape(t[0], (1,) * (len(a["repeats"]) - t[0].ndim) + t[0].shape)
    for d, r in enumerate(a["repeats"]):
        x = np.repeat(x, r, d)
    return x


def _whole_repeated(y: np.ndarray, t: list[Any], a: dict[str, Any]) -> np.ndarray:
    """The whole repeated, not its elements."""
    if a["dim"] is None:
        return np.tile(t[0].reshape(-1), a["repeats"])
    x = np.reshape(t[0], t[0].shape or (1,))
    return np.tile(x, [a["repeats"] if d == a["dim"] % x.ndim else 1 for d in range(x.ndim)])


def _empty_is_low(ys: tuple, t: list[Any], a: dict[str, Any]) -> tuple:
    """An empty bag's maximum is left at -infinity."""
    y = np.array(ys[0])
    if a["mode"] == "max":
        y[ys[2] == 0] = -np.inf
    return (y, *ys[1:])


def _doubled(name: str) -> Any:
    def fn(o: Any, dy: Any, i: Any, y: Any, a: Any) -> Any:
        dx, *others = OPS[name].grad(o, dy, i, y, a)  # type: ignore[misc]
        return (o.add(dx, dx), *others)

    return gradient(fn)


_SPATIAL: tuple[Row, ...] = tuple(
    row
    for n in (1, 2, 3)
    for row in (
        (f"reflection_pad{n}d", "edges repeated instead of mirrored", "value", _mode("replicate")),
        (f"replication_pad{n}d", "the last place behind stays 0", "value", result(_edge_zero)),
        (f"reflection_pad{n}d_backward", "the last place wins instead of the sum", "value", _overwritten("reflect")),
        (f"replication_pad{n}d_backward", "the last place wins instead of the sum", "value", _overwritten("replicate")),
        (f"replication_pad{n}d_backward", "float16 arithmetic", "value", precise(np.float16)),
    )
)

# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    # ---- along one axis
    ("scatter", "the first of several values stays", "value", _with(_backwards)),
    ("scatter", "an index outside is clamped", "bad", _clip(1, _size_along)),
    ("scatter", "strides ignored", "transposed", contiguous_reads()),
    ("scatter", "its gradient doubles dx", "gradient", _doubled("scatter")),
    ("scatter_reduce", "include_self ignored", "value", attr(include_self=True)),
    ("scatter_reduce", "mean is a sum", "value", attr(reduce=lambda r: "sum" if r == "mean" else r)),
    ("scatter_reduce", "float16 arithmetic", "value", precise(np.float16)),
    ("scatter_reduce", "an index outside is clamped", "bad", _clip(1, _size_along)),
    ("scatter_reduce", "noise of one ulp a call", "twice", noise()),
    ("index_fill", "only the first index is filled", "value", inputs(_first_index)),
    ("index_fill", "values from the end taken for 0", "value", inputs(_no_negative)),
    ("index_fill", "an index outside is clamped", "bad", _clip(1, _size_along)),
    ("index_copy", "the first of several slices stays", "value", _with(_backwards)),
    ("index_copy", "an index outside is clamped", "bad", _clip(1, _size_along)),
    ("index_copy", "strided out written as packed", "out_sliced", reads_back()),
    # ---- several index tensors, masks, views
    ("index", "index axes always in front", "value", result(_in_front)),
    ("index", "values from the end taken for 0", "value", inputs(_no_negative)),
    ("index", "an index outside is clamped", "bad", _clip(1, _first_axis)),
    ("index_put", "accumulate writes", "value", attr(accumulate=False)),
    ("index_put", "the first of several values stays", "value", _terms_backwards),
    ("index_put", "an index outside is clamped", "bad", _clip(2, _first_axis)),
    ("index_put", "float16 arithmetic", "value", precise(np.float16)),
    ("masked_scatter", "source read at the place itself", "value", result(_aligned)),
    ("masked_scatter", "a source too short starts again", "bad", no_checks(lambda t, a: [t[0], t[1], np.resize(t[2], t[0].size)])),
    ("masked_scatter", "input used as workspace", "value", writes_input()),
    ("select_scatter", "always the first slice", "value", attr(index=0)),
    ("select_scatter", "an index outside is accepted", "bad", no_checks(None, skip=True)),
    ("slice_scatter", "src backwards", "value", _with(lambda t, a: [t[0], np.flip(t[1], a["dim"])])),
    ("slice_scatter", "its gradient doubles dx", "gradient", _doubled("slice_scatter")),
    ("diagonal_scatter", "a diagonal below taken for one above", "value", attr(offset=abs)),
    ("diagonal_scatter", "out never written", "out", ignores_out()),
    ("embedding_bag", "padding rows counted", "value", attr(padding_idx=-1)),
    ("embedding_bag", "an empty bag's maximum is -infinity", "value", results(_empty_is_low)),
    ("embedding_bag", "falling offsets accepted", "bad", no_checks(None, skip=True)),
    ("embedding_bag", "float16 arithmetic", "value", precise(np.float16)),
    # ---- padding
    ("constant_pad_nd", "value ignored", "value", attr(value=0.0)),
    ("constant_pad_nd", "the last place behind stays 0", "value", result(lambda y, t, a: _edge_zero(y, t, a) if len(a["pad"]) else y)),
    ("constant_pad_nd", "strided out written as packed", "out_transposed", reads_back()),
    ("constant_pad_nd", "its gradient doubles dx", "gradient", _doubled("constant_pad_nd")),
    *_SPATIAL,
    ("pad", "circular repeats the edge", "value", attr(mode=lambda v: "replicate" if v == "circular" else v)),
    ("pad", "reflect repeats the edge", "value", attr(mode=lambda v: "replicate" if v == "reflect" else v)),
    # ---- movement
    ("flip", "the first of the axes only", "value", attr(dims=lambda d: d[:1])),
    ("flip", "strides ignored", "negative", contiguous_reads()),
    ("roll", "the other way", "value", attr(shifts=lambda s: tuple(-v for v in s))),
    ("repeat", "elements repeated in place", "value", result(_each_repeated)),
    ("repeat_interleave", "the whole repeated", "value", result(_whole_repeated)),
    ("stack", "tensors from the last to the first", "value", inputs(lambda t: [list(t[0])[::-1]])),
    ("stack", "strides ignored", "transposed", contiguous_reads()),
    ("diag_embed", "a diagonal below taken for one above", "value", attr(offset=abs)),
    ("one_hot", "a class outside is clamped", "bad", _clip(0, lambda t, a: a["num_classes"])),
    ("one_hot", "the last class is nobody's", "value", result(lambda y, t, a: y * (np.arange(y.shape[-1]) < max(y.shape[-1] - 1, 1)))),
    ("fill", "NaN becomes 0", "value", result(lambda y, t, a: np.nan_to_num(y) if y.dtype.kind == "f" else y)),
    ("fill", "out never written", "out", ignores_out()),
    ("linspace", "the end is left out", "value", result(lambda y, t, a: np.linspace(a["start"], a["end"], a["steps"], endpoint=False).astype(y.dtype))),
)
