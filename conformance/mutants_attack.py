"""Mutants of sizes and layouts: mistakes that only show just past a size where kernels go another way, where operands lie
differently, where batches and heads differ, and at the edges of conversions.

Each stands for a wrong kernel that an earlier suite let pass.  How they are run: mutants.py; the makers: mutate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ..hal.dtype import dtype as to_dtype
from ..hal.errors import AliasError, DTypeError, ShapeError
from .compare import result_specs
from .mutate import Row, attr, inputs, no_checks, raw, result, results, strides_of

__all__ = ["ROWS"]

f32, f64 = np.float32, np.float64
Edit = Callable[[np.ndarray, list, dict], Any]


# ---- makers ------------------------------------------------------------------------------------------------------------------
def _when(large: Callable[[list, dict], bool], fn: Edit, i: int = 0) -> Any:
    """Result ``i`` edited in place (or replaced by what fn returns) where ``large(inputs, attrs)`` holds."""

    def put(ys, t, a):
        ys = [np.array(y) for y in ys]
        if large(t, a):
            y = fn(ys[i], t, a)
            ys[i] = ys[i] if y is None else np.asarray(y).astype(ys[i].dtype).reshape(ys[i].shape)
        return ys

    return results(put)


def _set(at: Any, value: Any = 0) -> Edit:
    def fn(y, t, a):
        y[at] = value

    return fn


def _tail(cut: Callable[[int], int]) -> Edit:
    """Elements from ``cut(size)`` on, in row-major order, stay 0."""

    def fn(y, t, a):
        y.reshape(-1)[cut(y.size) :] = 0

    return fn


def _row(n: int) -> Callable[[list, dict], bool]:
    """The last axis of the first input is longer than n."""
    return lambda t, a: t[0].ndim > 0 and t[0].shape[-1] > n


def _rows(n: int, i: int = 0) -> Callable[[list, dict], bool]:
    """Input i has more than n rows along its first axis."""
    return lambda t, a: t[i].ndim > 0 and t[i].shape[0] > n


def _size(n: int) -> Callable[[list, dict], bool]:
    return lambda t, a: t[0].size > n


def _bytes(y: np.ndarray) -> int:
    return y.size * y.itemsize


STREAM = 4 << 20


def _streamed(fn: Edit) -> Any:
    """Only where the result has 4 MiB and more."""
    return result(lambda y, t, a: y if _bytes(y) < STREAM else _edited(y, fn, t, a))


def _edited(y: np.ndarray, fn: Edit, t: list, a: dict) -> np.ndarray:
    y = np.array(y)
    got = fn(y, t, a)
    return y if got is None else got


def _only_inputs(large: Callable[[list, dict], bool], fn: Callable[[list, dict], list]) -> Any:
    """Inputs replaced where ``large`` holds."""
    return lambda op, right: lambda t, a: right(fn(list(t), a) if large(t, a) else t, a)


def _unscaled(x: np.ndarray, block: int) -> np.ndarray:
    """The sum of exp(x - maximum so far) along the last axis, earlier blocks left as they were."""
    top, total = np.full(x.shape[:-1], -np.inf), np.zeros(x.shape[:-1])
    for at in range(0, x.shape[-1], block):
        part = x[..., at : at + block].astype(f64)
        top = np.maximum(top, part.max(-1))
        total = total + np.exp(part - top[..., None]).sum(-1)
    return total


def _soft_unscaled(y, t, a):
    x = t[0].astype(f64)
    return np.exp(x - x.max(-1, keepdims=True)) / _unscaled(x, 4096)[..., None]


def _entropy_unscaled(y, t, a):
    x = t[0].astype(f64)
    right = np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1))
    return y.astype(f64) + np.mean(np.log(_unscaled(x, 2048)) - right)


def _weights_anew(y, t, a):
    """The weight begins again every 1024 elements of a long row."""
    w = t[1]
    normal = (y.astype(f64) - (0 if len(t) < 3 or t[2] is None else t[2])) / w
    return normal * w[np.arange(w.size) % 1024] + (0 if len(t) < 3 or t[2] is None else t[2])


def _drop_rows(first: int, i: int) -> Any:
    """Rows from ``first`` on do not count in the sums over rows (result i)."""
    return lambda op, right: lambda t, a: _one_of(
        right(t, a), i, lambda: right([x[:first] if k < 4 and x is not None and x.shape[:1] == t[0].shape[:1] else x for k, x in enumerate(t)], a)[i]
    ) if t[0].shape[0] > first else right(t, a)


def _one_of(ys: tuple, i: int, other: Callable[[], np.ndarray]) -> tuple:
    return tuple(other() if k == i else y for k, y in enumerate(ys))


def _first(i: int, axis: int) -> Any:
    """Input i of the first head (batch) is used for all."""

    def fn(t):
        if t[i] is not None and t[i].ndim > -axis - 1 and t[i].ndim + axis >= 0:
            t[i] = np.broadcast_to(np.take(t[i], [0], axis), t[i].shape)
        return t

    return inputs(fn)


def _accept(i: int, size: Callable[[list, dict], int], when: Callable[[np.ndarray, np.ndarray], bool]) -> Any:
    """Indices outside are taken for the nearest one inside, where ``when(index, positions outside)`` holds."""

    def bend(t, a):
        at = np.nonzero((t[i].reshape(-1) < 0) | (t[i].reshape(-1) >= size(t, a)))[0]
        if at.size and when(t[i], at):
            t[i] = np.clip(t[i], 0, size(t, a) - 1)
        return t

    return no_checks(bend)


def _late(index, at):
    return at.min() >= 1024


def _int32(index, at):
    return index.dtype == np.int32


def _rest(index, at):
    return index.size >= 1 << 16 and at.min() >= index.size // (1 << 14) * (1 << 14)


def _along(t, a):
    return t[0].shape[a["dim"]] if t[0].ndim else 1


def _flushed_tiles(y, t, a):
    """Keys from 257 on: what was gathered before is not rescaled to the new maximum."""
    q, k, v = (x.astype(f64) for x in t[:3])
    s = np.matmul(q, k.swapaxes(-1, -2)) * (a["scale"] or q.shape[-1] ** -0.5) + (0 if t[3] is None else t[3].astype(f64))
    top = s.max(-1, keepdims=True)
    total = np.exp(s - top).sum(-1, keepdims=True)
    first = np.exp(s[..., :256] - s[..., :256].max(-1, keepdims=True)) @ v[..., :256, :]
    return (first + np.exp(s[..., 256:] - top) @ v[..., 256:, :]) / total


def _mask_again(t, a):
    t[3] = t[3][..., np.arange(t[3].shape[-1]) % 1024]
    return t


def _fits(outs: tuple, y: tuple, repeats: bool = False) -> None:
    """The checks of out that a mutant of its own keeps."""
    for o, v in zip(outs, y):
        if not repeats and any(n > 1 and not s for n, s in zip(o.shape, o.strides)):
            raise AliasError(f"out has strides {o.strides} that let elements share memory")
        if o.shape != v.shape:
            raise ShapeError(f"out has shape {o.shape}; needs {v.shape}")
        if o.dtype != v.dtype:
            raise DTypeError(f"out has dtype {o.dtype}; needs {v.dtype}")


def _writes_as(i: int, j: int) -> Any:
    """Result i is written with the strides of result j, where those differ."""

    def make(op, right):
        def call(t, a, outs):
            y = right(t, a)
            if outs is None:
                return y
            _fits(outs, y)
            for k, (o, v) in enumerate(zip(outs, y)):
                o[...] = v if k != i or o.strides == outs[j].strides or v.size < 2 else np.roll(v, 1)
            return outs

        return raw(call)

    return make


def _expands(op, right):
    """An out is taken as it is, one that repeats elements too."""

    def call(t, a, outs):
        result_specs(op, tuple(t), a)
        y = right(t, a)
        if outs is not None:
            _fits(outs, y, repeats=True)
            for o, v in zip(outs, y):
                o[...] = v
        return y if outs is None else outs

    return raw(call)


def _forwards(op, right):
    """An out of negative strides is written as if they were positive, from its lowest address."""

    def call(t, a, outs):
        result_specs(op, tuple(t), a)
        y = right(t, a)
        if outs is None:
            return y
        _fits(outs, y)
        outs[0][...] = y[0][tuple(slice(None, None, -1 if s < 0 else 1) for s in outs[0].strides)]
        return outs

    return raw(call)


def _runs_over(op, right):
    """Overlap with an out of negative strides is not seen: results go out one by one and are read again."""

    def call(t, a, outs):
        y = right(t, a)
        if outs is None or outs[0].strides == t[0].strides or not np.shares_memory(outs[0], t[0]) or not any(s < 0 for s in outs[0].strides):
            if outs is not None:
                _fits(outs, y)
                outs[0][...] = y[0]
            return y if outs is None else outs
        to, x = outs[0], t[0]
        for at in np.ndindex(*x.shape):
            to[at] = right([x[at][None]], a)[0][0]
        return outs

    return raw(call)


def _writes_falses(op, right):
    """Only what is false is written."""

    def call(t, a, outs):
        result_specs(op, tuple(t), a)
        y = right(t, a)
        if outs is None:
            return y
        _fits(outs, y)
        np.copyto(outs[0], False, where=~y[0])
        return outs

    return raw(call)


# ---- conversions ---------------------------------------------------------------------------------------------------------------
def _cast_to(*names: str, source: str = "") -> Callable[[list, dict], bool]:
    return lambda t, a: a["dtype"].name in names and source in ("", to_dtype(t[0].dtype).name)


def _saturated(y, t, a):
    info = np.iinfo(y.dtype)
    x = np.nan_to_num(t[0].astype(f64), nan=0.0)
    return np.where(x >= info.max, info.max, np.where(x <= info.min, info.min, y))


def _through_f32(y, t, a):
    with np.errstate(all="ignore"):
        return t[0].astype(f32).astype(y.dtype)


def _away_from_zero(y, t, a):
    """Halves away from 0 instead of to even."""
    with np.errstate(all="ignore"):
        up = (t[0].astype(f64) * (1 + 2.0**-40)).astype(f32)
        return np.where(np.isfinite(t[0]), np.nextafter(up, np.copysign(f32(np.inf), up)), t[0]).astype(y.dtype)


def _nan_rounded(y, t, a):
    u = t[0].astype(f32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16 & 0xFFFF).astype(np.uint16).view(ml_dtypes.bfloat16)


def _at_top(y, t, a):
    return np.where(np.isnan(y.astype(f32)) & ~np.isnan(t[0]), np.copysign(f32(448), t[0]), y.astype(f32)).astype(y.dtype)


def _or_one(y, t, a):
    v = a["value"]
    near = np.array(v, f32)
    if float(near) == v or not np.isfinite(v):
        return y
    return np.full(y.shape, (near.view(np.uint32) | np.uint32(1)).view(f32).astype(y.dtype))


def _odd_infinity(y, t, a):
    x, p = t[0], t[1]
    return np.where((x < 0) & np.isinf(p), -np.abs(y), y)


# ---- products ------------------------------------------------------------------------------------------------------------------
def _batch_steps(keep: Callable[[tuple], tuple]) -> Any:
    """Of b only some batch axes are stepped along; the others stay at 0."""

    def fn(t):
        b = t[1]
        at = tuple(slice(None) if k else slice(0, 1) for k in keep(b.shape[:-2]))
        t[1] = np.broadcast_to(b[at], b.shape) if b.ndim > 2 else b
        return t

    return inputs(fn)


def _beta_rounded(op, right):
    def call(t, a):
        x = (t[0].astype(f32) * f32(a["beta"])).astype(t[0].dtype)
        return right([x, *t[1:]], a | {"beta": 1.0}) if a["beta"] else right(t, a)

    return call


def _partial_rows(rows: int) -> Edit:
    def fn(y, t, a):
        y[rows:] = 0

    return fn


def _drop_threshold(op, right):
    """p in 24 bits, cut."""
    return lambda t, a: right(t, a | {"p": int(a["p"] * 2**24) * 2.0**-24})


def _keeps_above(op, right):
    return lambda t, a: right(t, a | {"p": float(np.nextafter(a["p"], 1))})


# operator, mistake, kind of case (or sample) meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    # ---- rows and columns
    ("softmax", "rows past 8192: the sum so far is not rescaled", "past_row", _when(_row(8192), _soft_unscaled)),
    ("softmax", "rows past 32768: every chunk written from the first", "past_row", _when(
        _row(32768), lambda y, t, a: y[..., np.arange(y.shape[-1]) % 2048])),
    ("softmax", "the last of more than 4096 rows is not written", "many_rows", _when(_rows(4096), _set(-1))),
    ("softmax", "columns too long to keep: the last tile is not divided", "past_columns", _when(
        lambda t, a: a["dim"] == 0 and t[0].shape[0] > 2048, lambda y, t, a: np.where(np.arange(y.shape[1]) > 15, y * 2, y))),
    ("softmax", "the last line of results past the caches is not written", "streamed", _streamed(_tail(lambda n: n - 8))),
    ("softmax", "a column of -inf gives 0", "column_of_minus_inf", _when(
        lambda t, a: a["dim"] == 0 and t[0].ndim == 2, lambda y, t, a: np.where(np.isneginf(t[0]).all(0), 0, y))),
    ("log_softmax", "a row of -inf gives -inf", "row_of_minus_inf", _when(
        lambda t, a: t[0].ndim == 2 and a["dim"] == 1, lambda y, t, a: np.where(np.isneginf(t[0]).all(1, keepdims=True), -np.inf, y))),
    ("log_softmax", "rows past 32768: the last chunk does not count", "past_row", _when(
        _row(32768), lambda y, t, a: y - np.log1p(-np.exp(y[..., 32768:].astype(f64)).sum(-1, keepdims=True)))),
    ("log_softmax_backward", "y read with the strides of dy", "mixed", strides_of(1, 0)),
    ("softmax_backward", "dy read with the strides of y", "mixed", strides_of(0, 1)),
    ("sum", "rows past 65536: the last block is dropped", "past_block", _only_inputs(_row(65536), lambda t, a: [t[0][..., :65536]])),
    ("mean", "rows past 65536: the last block is dropped", "past_block", _when(_row(65536), lambda y, t, a: t[0][..., :65536].sum(-1) / t[0].shape[-1])),
    ("sum", "tall and narrow: the last part is dropped", "tall_narrow", _only_inputs(
        _size(1 << 18), lambda t, a: [t[0][: t[0].shape[0] * 15 // 16]])),
    ("var", "tall and narrow: the last part is dropped", "tall_narrow", _only_inputs(
        _size(1 << 18), lambda t, a: [t[0][: t[0].shape[0] * 15 // 16]])),
    ("argmax", "of equal values the last block's wins", "past_block", _when(
        _row(65536), lambda y, t, a: np.where(t[0][:, 65536:].max(-1) >= t[0].max(-1), 65536 + t[0][:, 65536:].argmax(-1), y))),
    ("any", "only the first 65536 elements", "last_decides", _only_inputs(_size(1 << 16), lambda t, a: [t[0][..., :65536]])),
    ("all", "only the first 65536 elements", "last_decides", _only_inputs(_size(1 << 16), lambda t, a: [t[0][..., :65536]])),
    # ---- norms
    ("layer_norm", "rows past 8192: the weight begins anew", "past_row", _when(_row(8192), _weights_anew)),
    ("rms_norm", "rows past 8192: the weight begins anew", "past_row", _when(_row(8192), _weights_anew)),
    ("native_layer_norm", "rstd written with the strides of mean", "out_mixed", _writes_as(2, 1)),
    ("native_layer_norm_backward", "dweight: rows past 1024 are dropped", "many_rows", _drop_rows(1024, 1)),
    ("native_layer_norm_backward", "x read with the strides of dy", "mixed", strides_of(1, 0)),
    ("fused_rms_norm_backward", "dweight: rows past 1024 are dropped", "many_rows", _drop_rows(1024, 1)),
    # ---- losses
    ("cross_entropy", "past 2048 classes the sum so far is not rescaled", "past_classes", _when(_row(2048), _entropy_unscaled)),
    ("cross_entropy", "smoothing past 2048 classes: the weight begins anew", "smooth_past_classes", lambda op, right: lambda t, a: (
        (right(t, a)[0] + a["label_smoothing"] * (right([t[0], t[1], t[2][np.arange(t[2].size) % 2048]], a)[0] - right(t, a)[0]),)
        if a["label_smoothing"] and t[2] is not None and t[0].shape[-1] > 2048 else right(t, a))),
    ("cross_entropy", "smoothing past 2048 classes reads the first again", "smooth_past_classes_plain", lambda op, right: lambda t, a: (
        (right(t, a)[0] + (t[0].astype(f64).mean() - t[0][:, np.arange(t[0].shape[1]) % 2048].astype(f64).mean()).astype(t[0].dtype) * a["label_smoothing"],)
        if a["label_smoothing"] and t[2] is None and t[0].shape[-1] > 2048 else right(t, a))),
    ("nll_loss", "rows past 512 do not count", "many_rows", _only_inputs(_rows(512), lambda t, a: [t[0][:512], t[1][:512], t[2]])),
    ("nll_loss_forward", "the weights of rows past 512 do not count", "many_rows", _when(
        _rows(512), lambda y, t, a: y * (t[2][t[1][:512]].sum() / t[2][t[1]].sum()), 1)),
    ("nll_loss_backward", "classes past 2048 are not cleared", "past_classes", _when(
        lambda t, a: t[1].shape[-1] > 2048, lambda y, t, a: np.where(np.arange(y.shape[-1]) < 2048, y, np.where(y == 0, 1, y)))),
    ("nll_loss", "targets past 1024 are not checked", "bad", _accept(1, lambda t, a: t[0].shape[-1], _late)),
    # ---- indices
    ("embedding", "indices past 1024 are not checked", "bad", _accept(1, lambda t, a: t[0].shape[0], _late)),
    ("embedding", "int32 indices are not checked", "bad", _accept(1, lambda t, a: t[0].shape[0], _int32)),
    ("gather", "int32 indices are not checked", "bad", _accept(1, _along, _int32)),
    ("index_select", "the rest of 65536 and more is not checked", "bad", _accept(1, _along, _rest)),
    ("index_add", "indices past 1024 are not checked", "bad", _accept(1, _along, _late)),
    ("scatter_add", "int32 indices are not checked", "bad", _accept(1, _along, _int32)),
    ("embedding_dense_backward", "int32 indices are not checked", "bad", _accept(1, lambda t, a: a["num_weights"], _int32)),
    ("gather", "one row: what is left of blocks of 8192 is not written", "past_blocks", _when(
        lambda t, a: t[1].ndim == 1 and t[1].size > 16384, lambda y, t, a: _edited(y, _set(slice(16384, None)), t, a))),
    ("index_add", "columns past 512 get one term less", "past_blocks", _when(_row(512), lambda y, t, a: np.where(
        np.arange(y.shape[-1]) >= 512, t[0], y))),
    ("scatter_add", "index read with the strides of src", "mixed", strides_of(1, 2)),
    ("index_select", "the last row past the caches is not written", "streamed", _streamed(_set(-1))),
    # ---- pointwise, movement
    ("add", "a rest below the grain of threads is not computed", "past_span", _when(_size(32768), _tail(lambda n: n // 16384 * 16384))),
    ("exp", "a rest below the grain of threads is not computed", "past_span", _when(_size(32768), _tail(lambda n: n // 16384 * 16384))),
    ("where", "past 32768 the condition begins anew", "past_span", _only_inputs(
        _size(32768), lambda t, a: [t[0].reshape(-1)[np.arange(t[0].size) % 32768].reshape(t[0].shape), *t[1:]])),
    ("masked_fill", "past 32768 the mask begins anew", "past_span", _only_inputs(
        _size(32768), lambda t, a: [t[0], t[1].reshape(-1)[np.arange(t[1].size) % 32768].reshape(t[1].shape)])),
    ("add", "past the caches the last part of a tile is not written", "streamed_int64", _streamed(_tail(lambda n: n // 256 * 256))),
    ("add", "past the caches the last column of a row is not written", "streamed_rows_int64", _streamed(
        lambda y, t, a: _edited(y, _set((..., -1)), t, a) if y.ndim == 2 else y)),
    ("sub", "y read with the strides of x", "mixed", strides_of(1, 0)),
    ("lerp", "weight read with the strides of end", "mixed", strides_of(2, 1)),
    ("where", "x read with the strides of the condition", "mixed", strides_of(1, 0)),
    ("pow", "an infinite exponent is taken for odd", "crossed", result(lambda y, t, a: _odd_infinity(y, t, a) if y.dtype.kind == "f" else y)),
    ("mul", "an out of negative strides is written forwards", "out_negative", _forwards),
    ("neg", "overlap is not seen where out runs backwards", "overlap_reversed", _runs_over),
    ("tanh", "an out that repeats elements is taken", "out_expanded", _expands),
    ("eq", "true is not written", "out", _writes_falses),
    ("copy", "the last piece of a long row is not written", "past_piece", _when(_size(16384), _tail(lambda n: n // 16384 * 16384))),
    ("copy", "turned: columns past 512 are not written", "streamed_turned", _when(
        lambda t, a: t[0].ndim == 2 and t[0].shape[1] > 512, _set((slice(None), slice(512, None))))),
    ("cat", "past the caches the last tensor is not written", "streamed", _streamed(lambda y, t, a: _edited(y, _set((..., -1)), t, a))),
    ("tril", "diagonal in 16 bits", "far_diagonal", attr(diagonal=lambda d: (d + 2**15) % 2**16 - 2**15)),
    ("triu", "elements past 1024 counted from the first matrix", "past_batch", _when(
        lambda t, a: t[0].ndim == 3 and t[0].size > 1024,
        lambda y, t, a: np.where(np.arange(y.size).reshape(y.shape) < 1024, y, 0))),
    ("full", "rounded to odd by setting the last bit", "below_middle_bfloat16", result(
        lambda y, t, a: _or_one(y, t, a) if y.dtype == ml_dtypes.bfloat16 else y)),
    ("full", "rounded twice", "above_middle_float16", result(
        lambda y, t, a: np.full(y.shape, f32(a["value"]).astype(y.dtype)) if y.dtype == np.float16 else y)),
    # ---- conversions
    ("cast", "float to integer saturates", "beyond_to_int32", _when(_cast_to("int32"), _saturated)),
    ("cast", "float to uint32 by way of int32", "beyond_to_uint32", _when(_cast_to("uint32", source="float32"), lambda y, t, a: np.where(
        np.abs(t[0]) < 2**31, y, 2**31))),
    ("cast", "float64 to bfloat16 rounded twice", "twice_to_bfloat16", _when(_cast_to("bfloat16", source="float64"), _through_f32)),
    ("cast", "float64 to float16 rounded twice", "twice_to_float16", _when(_cast_to("float16", source="float64"), _through_f32)),
    ("cast", "int64 to bfloat16 rounded twice", "larger_to_bfloat16", _when(_cast_to("bfloat16", source="int64"), _through_f32)),
    ("cast", "int32 to float16 rounded twice", "large_to_bfloat16", _when(_cast_to("bfloat16", source="int32"), _through_f32)),
    ("cast", "sign lost on the way to float8", "middles_e4m3fn_to_float8_e4m3fn", _when(
        _cast_to("float8_e4m3fn"), lambda y, t, a: np.abs(y.astype(f32)).astype(y.dtype))),
    ("cast", "middles away from 0", "middles_e5m2_to_float8_e5m2", _when(_cast_to("float8_e5m2", source="float32"), _away_from_zero)),
    ("cast", "too large for float8 becomes its largest number", "middles_e4m3fn_to_float8_e4m3fn", _when(_cast_to("float8_e4m3fn"), _at_top)),
    ("cast", "float8's largest numbers read as NaN", "codes_e4m3fn_to_float32", _when(
        _cast_to("float32", source="float8_e4m3fn"), lambda y, t, a: np.where(np.abs(y) >= 448, np.nan, y))),
    ("cast", "NaN to bfloat16 rounded as a number", "nans_to_bfloat16", _when(_cast_to("bfloat16", source="float32"), _nan_rounded)),
    # ---- products
    ("mm", "past 512 terms the earlier ones are forgotten", "past_k", _only_inputs(
        lambda t, a: t[0].shape[1] > 768, lambda t, a: [t[0][:, 512:], t[1][512:]])),
    ("mm", "rows past 8 tiles of 128 are not computed", "past_m", _when(_rows(1024), _partial_rows(1024))),
    ("mm", "columns past 2048 are not computed", "past_n", _when(lambda t, a: t[1].shape[1] > 2048, _set((slice(None), slice(2048, None))))),
    ("matmul", "of b's batch axes only the last is stepped along", "broadcast_outer", _batch_steps(lambda n: tuple(i == len(n) - 1 for i in range(len(n))))),
    ("matmul", "of b's batch axes the first is not stepped along", "broadcast_left", _batch_steps(lambda n: tuple(i > 0 for i in range(len(n))))),
    ("addmm", "beta x rounded to the tensors' dtype", "cancels", _beta_rounded),
    ("addmm", "beta ignored for more than 64 rows", "past_blocks", lambda op, right: lambda t, a: right(t, a | {"beta": 1.0} if t[1].shape[0] > 64 and a["beta"] else a)),
    ("baddbmm", "the first batch's input for all", "batch_input", inputs(
        lambda t: [np.broadcast_to(t[0][:1], t[0].shape) if t[0].ndim == 3 else t[0], *t[1:]])),
    ("linear", "weight read with the strides of x", "mixed", strides_of(1, 0)),
    ("convolution", "columns past 256 are not computed", "past_columns", _when(
        lambda t, a: t[0].shape[-2:] == (17, 19), lambda y, t, a: np.where(np.arange(y[0, 0].size).reshape(y.shape[2:]) < 256, y, 0))),
    ("convolution", "channels past 256 are not computed", "past_rows", _when(lambda t, a: t[1].shape[0] > 256, _set((slice(None), slice(256, None))))),
    # ---- attention
    ("scaled_dot_product_attention", "the first head's mask for all", "head_mask", _first(3, -3)),
    ("scaled_dot_product_attention", "the first batch's mask for all", "value", _first(3, -4)),
    ("scaled_dot_product_flash_attention", "the first head's bias for all", "head_bias", _first(3, -3)),
    ("scaled_dot_product_flash_attention", "past 256 keys the result so far is not rescaled", "past_keys", _when(
        lambda t, a: t[1].shape[2] > 256 and t[0].shape[2] > 16 and not a["is_causal"], _flushed_tiles)),
    ("scaled_dot_product_flash_attention", "decoding: past 1024 keys the mask begins anew", "decode_mask", _only_inputs(
        lambda t, a: t[3] is not None and t[3].shape[-1] > 1024, _mask_again)),
    ("scaled_dot_product_flash_attention", "value read with the strides of key", "mixed", strides_of(2, 1)),
    ("scaled_dot_product_flash_attention_backward", "the first head's mask for all", "head_mask", _first(6, -3)),
    ("scaled_dot_product_flash_attention_backward", "dquery of the keys past 256 alone", "past_keys", lambda op, right: lambda t, a: (
        _one_of(right(t, a), 0, lambda: right([*t[:2], t[2][:, :, 256:], t[3][:, :, 256:], *t[4:6], None if t[6] is None else t[6][..., 256:]], a)[0])
        if t[2].shape[2] > 256 else right(t, a))),
    # ---- random numbers
    ("dropout", "threshold cut to 24 bits", "above_the_threshold", _drop_threshold),
    ("native_dropout", "kept above the threshold only", "at_the_threshold", _keeps_above),
    ("dropout", "strided: every thread begins at element 0", "past_span", _when(_size(32768), lambda y, t, a: np.concatenate(
        [y.reshape(-1)[:16384], y.reshape(-1)[: y.size - 16384]]))),
)
