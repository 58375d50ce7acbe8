"""Mutants of scans, sorting, selection and recurrences.  How they are run: mutants.py; the makers: mutate.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from .mutate import (
    Row,
    attr,
    contiguous_reads,
    gradient,
    inputs,
    no_checks,
    noise,
    reads_back,
    result,
    results,
    threads_order,
)

__all__ = ["ROWS"]

f32 = np.float32


def _exclusive(y: np.ndarray, t: list[Any], a: dict[str, Any]) -> np.ndarray:
    """What came before each element, without itself."""
    x = t[0].astype(y.dtype)
    return y - x if y.size else y


def _forgets(block: int):
    """The sum starts anew at every block of a long axis."""

    def fn(y, t, a):
        if not y.ndim or y.shape[a["dim"]] <= block:
            return y
        v, x = np.array(np.moveaxis(y, a["dim"], -1)), np.moveaxis(t[0].astype(y.dtype), a["dim"], -1)
        for at in range(block, v.shape[-1], block):
            v[..., at : at + block] = np.cumsum(x[..., at : at + block], -1)
        return np.moveaxis(v, -1, a["dim"])

    return result(fn)


def _narrow(y: np.ndarray, t: list[Any], a: dict[str, Any]) -> np.ndarray:
    """Integers kept in 32 bits."""
    return y.astype(np.int32).astype(np.int64) if y.dtype == np.int64 else y


def _first_tie(pick: Any):
    """The first of equal elements instead of the last one."""

    def fn(y, t, a):
        values, at = y
        if not values.ndim or not values.size:
            return y
        v, x, w = (np.moveaxis(z, a["dim"], 0) for z in (values, t[0], np.array(at)))
        for i in range(1, len(v)):
            same = (v[i] == v[i - 1]) & (x[i] == v[i])
            w[i] = np.where(same, w[i - 1], w[i])
        return values, np.moveaxis(w, 0, a["dim"])

    return results(fn)


def _skips_nan(fill: float):
    return inputs(lambda t: [np.where(np.isnan(t[0]), t[0].dtype.type(fill), t[0]) if t[0].dtype.kind == "f" else t[0]])


def _naive_logs(y: np.ndarray, t: list[Any], a: dict[str, Any]) -> np.ndarray:
    """No shift by the largest element."""
    x = t[0].astype(f32)
    return np.log(np.cumsum(np.exp(x), a["dim"])).astype(y.dtype) if x.ndim else y


def _spread_evenly(o: Any, dy: Any, inputs_: Any, y: Any, attrs: dict[str, Any]) -> tuple:
    return (dy,)


def _cumprod_without_zeros(o: Any, dy: Any, inputs_: Any, y: Any, attrs: dict[str, Any]) -> tuple:
    total = o.sum(o.mul(dy, y), attrs["dim"], True) if dy.ndim else o.mul(dy, y)
    return (o.div(o.add(o.sub(total, o.cumsum(o.mul(dy, y), attrs["dim"])), o.mul(dy, y)), inputs_[0]),)


def _unstable(y: Any, t: list[Any], a: dict[str, Any]) -> Any:
    """Of equal elements the last one first."""
    values, at = (y[0], y[-1]) if len(y) > 1 else (t[0], y[0])
    if not at.ndim or not at.size:
        return y
    d = a["dim"]
    v, w = np.moveaxis(np.take_along_axis(t[0], at, d), d, -1), np.array(np.moveaxis(at, d, -1))
    for i in range(1, w.shape[-1], 2):
        same = v[..., i] == v[..., i - 1]
        w[..., i], w[..., i - 1] = np.where(same, w[..., i - 1], w[..., i]), np.where(same, w[..., i], w[..., i - 1])
    w = np.ascontiguousarray(np.moveaxis(w, -1, d))
    return (values, w) if len(y) > 1 else (w,)


def _reversed_ascending(y: Any, t: list[Any], a: dict[str, Any]) -> Any:
    """A descending order made by reading the ascending one backwards."""
    if not a["descending"] or not t[0].ndim:
        return y
    at = np.flip(np.argsort(t[0].astype(np.float64), axis=a["dim"], kind="stable"), a["dim"])
    return (np.take_along_axis(t[0], at, a["dim"]), at) if len(y) > 1 else (at,)


def _unmerged(block: int):
    """Blocks are sorted and never merged."""

    def fn(y, t, a):
        x, d = t[0], a["dim"]
        if not x.ndim or x.shape[d] <= block:
            return y
        at = np.array(y[-1])
        v, w = np.moveaxis(x, d, -1), np.moveaxis(at, d, -1)
        for i in range(0, v.shape[-1], block):
            w[..., i : i + block] = i + np.argsort(v[..., i : i + block].astype(np.float64), axis=-1, kind="stable")
        return (np.take_along_axis(x, at, d), at) if len(y) > 1 else (at,)

    return results(fn)


def _nan_first(y: Any, t: list[Any], a: dict[str, Any]) -> Any:
    """NaN counts as smaller than every number."""
    x, d = t[0], a["dim"]
    if x.dtype.kind != "f" or not x.ndim or not np.isnan(x).any() or a["descending"]:
        return y
    at = np.argsort(np.where(np.isnan(x), -np.inf, x).astype(np.float64), axis=d, kind="stable")
    return np.take_along_axis(x, at, d), at


def _same_place(y: Any, t: list[Any], a: dict[str, Any]) -> Any:
    """Equal elements are all given the place of the first one."""
    values, at = y
    if not at.ndim or not at.size:
        return y
    v, w = np.moveaxis(values, a["dim"], -1), np.array(np.moveaxis(at, a["dim"], -1))
    for i in range(1, w.shape[-1]):
        w[..., i] = np.where(v[..., i] == v[..., i - 1], w[..., i - 1], w[..., i])
    return values, np.moveaxis(w, -1, a["dim"])


def _shuffled(y: Any, t: list[Any], a: dict[str, Any]) -> Any:
    """The chosen elements in any order."""
    return tuple(np.flip(v, a["dim"]) if v.ndim else v for v in y)


def _without(i: int):
    """An optional input is ignored."""
    return inputs(lambda t: [None if j == i else x for j, x in enumerate(t)])


def _first_group(t: list[Any]) -> list[Any]:
    """Every channel reads the first group's B."""
    if t[3].ndim == 4:
        t[3] = np.repeat(t[3][:, :1], t[3].shape[1], axis=1)
    return t


def _tiled_heads(t: list[Any]) -> list[Any]:
    """Heads of q and k repeat as 0, 1, 0, 1 instead of 0, 0, 1, 1."""
    each = t[2].shape[2] // t[0].shape[2]
    t[0], t[1] = (np.tile(x, (1, 1, each, 1)) for x in t[:2])
    return t


def _column_major(y: Any, t: list[Any], a: dict[str, Any]) -> Any:
    """Indices sorted by the last axis first."""
    at = y[0]
    return (at[np.lexsort(at.T)] if at.ndim == 2 and at.shape[1] > 1 else at, *y[1:])


def _nan_is_zero(t: list[Any]) -> list[Any]:
    return [np.where(np.isnan(t[0]), t[0].dtype.type(0), t[0]) if t[0].dtype.kind == "f" else t[0], *t[1:]]


def _no_fill(y: np.ndarray, t: list[Any], a: dict[str, Any]) -> np.ndarray:
    """Rows past the last hit repeat it."""
    y, hits = np.array(y), int((t[0] != 0).sum())
    if 0 < hits < len(y):
        y[hits:] = y[hits - 1]
    return y


def _one_nan(y: Any, t: list[Any], a: dict[str, Any]) -> Any:
    """All NaN are one value."""
    v = y[0]
    if v.dtype.kind != "f" or not np.isnan(v).any():
        return y
    return (np.concatenate([v[~np.isnan(v)], v[np.isnan(v)][:1]]), *y[1:])


def _ordered_as_met(y: Any, t: list[Any], a: dict[str, Any]) -> Any:
    """Values in the order they come in."""
    x = t[0].reshape(-1)
    _, first = np.unique(x.astype(np.float64), return_index=True)
    return (x[np.sort(first)], *y[1:]) if len(first) == len(y[0]) else y


def _to_the_left(t: list[Any]) -> list[Any]:
    """The mask is lined up with the first axes."""
    x, mask = t
    if mask.ndim and x.ndim == mask.ndim and x.shape == mask.shape:
        mask = np.roll(mask, 1, axis=-1)
    return [x, mask]


ROWS: tuple[Row, ...] = (
    # ---- scans
    ("cumsum", "exclusive", "value", result(_exclusive)),
    ("cumsum", "starts anew at 2048", "value", _forgets(2048)),
    ("cumsum", "integers in 32 bits", "special", result(_narrow)),
    ("cumsum", "dim ignored", "value", attr(dim=lambda d: -1)),
    ("cumsum", "strides ignored", "transposed", contiguous_reads()),
    ("cumsum", "order follows threads", "threads", threads_order()),
    ("cumsum", "gradient not summed", "gradient", gradient(_spread_evenly)),
    ("cumsum", "narrow dtype accepted", "bad", no_checks(None, skip=True)),
    ("cumprod", "exclusive sums", "value", result(_exclusive)),
    ("cumprod", "strides ignored", "sliced", contiguous_reads()),
    ("cumprod", "gradient divides by x", "gradient", gradient(_cumprod_without_zeros)),
    ("cummax", "first of equals", "value", _first_tie(np.less_equal)),
    ("cummax", "NaN skipped", "special", _skips_nan(-np.inf)),
    ("cummax", "dim ignored", "value", attr(dim=lambda d: -1)),
    ("cummin", "first of equals", "value", _first_tie(np.greater_equal)),
    ("cummin", "NaN skipped", "special", _skips_nan(np.inf)),
    ("cummin", "strided out as packed", "out_transposed", reads_back()),
    ("logcumsumexp", "no shift", "large", result(_naive_logs)),
    ("logcumsumexp", "bits differ from call to call", "twice", noise()),
    # ---- sorting
    ("sort", "equal elements change places", "value", results(_unstable)),
    ("sort", "descending reads ascending backwards", "value", results(_reversed_ascending)),
    ("sort", "NaN first", "special", results(_nan_first)),
    ("sort", "blocks of 1024 not merged", "value", _unmerged(1024)),
    ("sort", "dim ignored", "value", attr(dim=lambda d: -1)),
    ("sort", "strides ignored", "transposed", contiguous_reads()),
    ("sort", "gradient in sorted order", "gradient", gradient(_spread_evenly)),
    ("argsort", "equal elements change places", "value", results(_unstable)),
    ("argsort", "blocks of 512 not merged", "value", _unmerged(512)),
    ("argsort", "strided out as packed", "out_transposed", reads_back()),
    ("topk", "k smallest", "value", attr(largest=lambda up: not up)),
    ("topk", "one place for equal elements", "value", results(_same_place)),
    ("topk", "not sorted", "value", results(_shuffled)),
    ("topk", "NaN skipped", "special", _skips_nan(-np.inf)),
    ("topk", "strides ignored", "sliced", contiguous_reads()),
    ("kthvalue", "counts from 0", "value", attr(k=lambda k: max(k - 1, 1))),
    ("kthvalue", "NaN smallest", "special", _skips_nan(-np.inf)),
    ("kthvalue", "strides ignored", "transposed", contiguous_reads()),
    # ---- recurrences
    ("selective_scan", "no softplus", "value", attr(delta_softplus=lambda s: False)),
    ("selective_scan", "D ignored", "value", _without(5)),
    ("selective_scan", "delta_bias ignored", "value", _without(7)),
    ("selective_scan", "first group for all", "value", inputs(_first_group)),
    ("selective_scan", "last state of the step before", "value", results(lambda y, t, a: (y[0], y[1] * y[1].dtype.type(0.5)))),
    ("selective_scan", "strides ignored", "transposed", contiguous_reads()),
    ("gated_delta_rule", "heads repeat in turn", "value", inputs(_tiled_heads)),
    ("gated_delta_rule", "initial state ignored", "value", _without(5)),
    ("gated_delta_rule", "no scale", "value", attr(scale=lambda s: 1.0)),
    ("gated_delta_rule", "q and k not divided by their length", "value", attr(use_qk_l2norm=lambda s: False)),
    ("gated_delta_rule", "decay not an exponent", "value", inputs(lambda t: [*t[:3], t[3] / 2, *t[4:]])),
    ("gated_delta_rule", "strides ignored", "sliced", contiguous_reads()),
    # ---- selection
    ("nonzero_static", "column by column", "value", results(_column_major)),
    ("nonzero_static", "NaN is zero", "value", inputs(_nan_is_zero)),
    ("nonzero_static", "no fill value", "value", result(_no_fill)),
    ("nonzero_static", "strides ignored", "transposed", contiguous_reads()),
    ("nonzero", "column by column", "value", results(_column_major)),
    ("nonzero", "NaN is zero", "value", inputs(_nan_is_zero)),
    ("masked_select", "mask one to the side", "value", inputs(_to_the_left)),
    ("masked_select", "strides ignored", "transposed", contiguous_reads()),
    ("unique", "NaN all the same", "value", results(_one_nan)),
    ("unique", "not sorted", "value", results(_ordered_as_met)),
    ("unique", "counts start at 0", "value", results(lambda y, t, a: (*y[:2], y[2] - 1))),
    ("unique_consecutive", "sorted first", "value", inputs(lambda t: [np.sort(t[0].reshape(-1)).reshape(t[0].shape)])),
    ("unique_consecutive", "NaN all the same", "value", results(_one_nan)),
)
