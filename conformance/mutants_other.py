"""Mutants of reductions, softmax, norms, products, attention, movement, indexing, random numbers and losses.

How they are run: mutants.py; the makers: mutate.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..kernels.ops import OPS
from .mutate import (
    Row,
    attr,
    bf16_cut,
    contiguous_reads,
    f16_sums,
    flush,
    forget_axis_end,
    gradient,
    ignores_out,
    inputs,
    no_checks,
    noise,
    only_first,
    precise,
    reads_back,
    result,
    results,
    tf32,
    threads_order,
    widths,
    writes_input,
)

__all__ = ["ROWS"]

f32 = np.float32


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
                    np.put_along_axis(
                        y[
                            tuple(
                                slice(0, n) if i != a["dim"] % y.ndim else slice(None) for i, n in enumerate(t[1].shape)
                            )
                        ],
                        t[1].astype(np.int64),
                        t[source][tuple(slice(0, n) for n in t[1].shape)],
                        a["dim"],
                    )
                else:
                    at = [slice(None)] * y.ndim
                    at[a["dim"]] = t[1].reshape(-1).astype(np.int64)
                    y[tuple(at)] += (t[source] * a["alpha"]).astype(y.dtype)
                return (y,)
            return right(t, a)

        return call

    return make


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


def _doubled_grad(o, dy, i, y, a):
    return tuple(g * 2 for g in OPS["matmul"].grad(o, dy, i, y, a))


def _last_wins(y, t, a):
    dy, i = t[0].reshape(-1, t[0].shape[-1]), t[1].reshape(-1)
    out = np.zeros_like(y)
    keep = i != a["padding_idx"]
    out[i[keep]] = dy[keep]
    return out


# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    # ---- reduce
    ("sum", "returns 0", "value", result(lambda y, t, a: y * 0)),
    ("sum", "last tile dropped", "value", forget_axis_end()),
    ("sum", "keepdim ignored", "value", no_checks(None, lambda y, t, a: y.reshape([n for n in y.shape if n != 1]))),
    ("sum", "float16 sums kept in float16", "probe", f16_sums()),
    ("sum", "float32 inputs rounded to tf32", "probe", tf32()),
    (
        "sum",
        "int8 summed in int8",
        "special",
        result(lambda y, t, a: y.astype(np.int8).astype(y.dtype) if t[0].dtype == np.int8 else y),
    ),
    (
        "sum",
        "an empty sum is NaN",
        "value",
        result(lambda y, t, a: y * np.nan if t[0].size == 0 and y.dtype.kind == "f" else y),
    ),
    ("sum", "order depends on the number of threads", "threads", threads_order()),
    (
        "mean",
        "divides by n - 1",
        "value",
        result(
            lambda y, t, a: (y * (t[0].size / max(y.size, 1)) / max(t[0].size / max(y.size, 1) - 1, 1)).astype(y.dtype)
        ),
    ),
    ("mean", "mean of nothing is 0", "value", result(lambda y, t, a: np.nan_to_num(y) if t[0].size == 0 else y)),
    ("amax", "starts from 0", "value", result(lambda y, t, a: np.where(y < 0, 0, y).astype(y.dtype))),
    (
        "amax",
        "NaN swallowed",
        "special",
        inputs(
            lambda t: [np.where(t[0] != t[0], np.array(-np.inf, t[0].dtype), t[0]) if t[0].dtype.kind == "f" else t[0]]
        ),
    ),
    ("amin", "wrong axis of two", "value", attr(dim=lambda d: (0,) if d == (1,) else 0 if d == 1 else d)),
    ("argmax", "last of equal elements", "value", _last_tie(np.argmax)),
    ("argmax", "NaN skipped", "value", _skips_nan(np.argmax, -np.inf)),
    ("argmin", "index within a tile of 1024", "value", result(lambda y, t, a: y % 1024)),
    ("argmin", "last of equal elements", "value", _last_tie(np.argmin)),
    ("var", "correction ignored", "value", attr(correction=0.0)),
    (
        "var",
        "mean of squares less square of mean",
        "value",
        result(lambda y, t, a: y if a["dim"] in (None, ()) or t[0].ndim == 0 else _naive_var(y, t[0], a)),
    ),
    ("any", "only the first element of each row", "value", only_first()),
    (
        "any",
        "NaN taken for false",
        "special",
        inputs(lambda t: [np.nan_to_num(t[0], nan=0.0) if t[0].dtype.kind == "f" else t[0]]),
    ),
    (
        "all",
        "any",
        "value",
        result(
            lambda y, t, a: (
                np.any(t[0], axis=a["dim"] if a["dim"] != () else None, keepdims=a["keepdim"]) if t[0].ndim else y
            )
        ),
    ),
    # ---- softmax
    ("softmax", "wrong axis", "value", attr(dim=lambda d: 0)),
    ("softmax", "not shifted by the maximum", "special", result(lambda y, t, a: _unshifted(y, t, a))),
    ("softmax", "last element left out of the sum", "value", result(lambda y, t, a: _short_sum(y, t[0], a["dim"]))),
    ("softmax", "float16 arithmetic", "value", precise(np.float16)),
    ("softmax", "noise of one ulp a call", "twice", noise()),
    ("softmax", "input overwritten", "value", writes_input()),
    ("softmax", "inner axis read as contiguous", "transposed", contiguous_reads()),
    (
        "log_softmax",
        "log of softmax",
        "large",
        result(
            lambda y, t, a: (
                np.log(_soft(t[0], a["dim"], np.float64 if y.dtype == np.float64 else f32)).astype(y.dtype)
                if y.size and y.ndim
                else y
            )
        ),
    ),
    ("log_softmax", "base 2", "value", result(lambda y, t, a: (y * 1.4426950408889634).astype(y.dtype))),
    ("softmax_backward", "sum term missing", "value", result(lambda y, t, a: (t[0] * t[1]).astype(y.dtype))),
    (
        "log_softmax_backward",
        "exp missing",
        "value",
        result(lambda y, t, a: (t[0] - t[1] * t[0].sum(a["dim"], keepdims=True)).astype(y.dtype) if y.ndim else y),
    ),
    ("softmax", "its gradient forgets the sum", "gradient", gradient(lambda o, dy, inputs, y, attrs: (o.mul(dy, y),))),
    # ---- norm
    ("layer_norm", "eps outside the root", "tiny", result(lambda y, t, a: _eps_outside(t, a, y) if y.size else y)),
    ("layer_norm", "bias ignored", "value", inputs(lambda t: [t[0], t[1], None])),
    ("layer_norm", "weight ignored", "value", inputs(lambda t: [t[0], None, t[2]])),
    ("layer_norm", "a normalized_shape that does not fit is accepted", "bad", no_checks(lambda t, a: t, skip=True)),
    (
        "native_layer_norm",
        "rstd is the variance",
        "value",
        results(lambda ys, t, a: (ys[0], ys[1], (1 / ys[2] ** 2).astype(ys[2].dtype))),
    ),
    (
        "native_layer_norm",
        "statistics rounded to bfloat16",
        "value",
        results(lambda ys, t, a: (ys[0], _bf16(ys[1]).astype(ys[1].dtype), ys[2])),
    ),
    (
        "native_layer_norm_backward",
        "mean of dy not taken off",
        "value",
        results(
            lambda ys, t, a: (
                (
                    ys[0]
                    + t[3]
                    * np.mean(
                        t[0] * (1 if t[4] is None else t[4]),
                        tuple(range(t[0].ndim - len(a["normalized_shape"]), t[0].ndim)),
                        keepdims=True,
                    )
                ).astype(ys[0].dtype),
                *ys[1:],
            )
        ),
    ),
    (
        "native_layer_norm_backward",
        "dbias averaged",
        "value",
        results(lambda ys, t, a: (*ys[:2], (ys[2] / max(t[0].size // max(ys[2].size, 1), 1)).astype(ys[2].dtype))),
    ),
    ("rms_norm", "eps missing", "tiny", attr(eps=0.0)),
    (
        "rms_norm",
        "mean taken off first",
        "value",
        inputs(lambda t: [(t[0] - t[0].mean(-1, keepdims=True)).astype(t[0].dtype) if t[0].size else t[0], t[1]]),
    ),
    (
        "fused_rms_norm",
        "rstd without the root",
        "value",
        results(lambda ys, t, a: (ys[0], (ys[1] ** 2).astype(ys[1].dtype))),
    ),
    (
        "fused_rms_norm_backward",
        "dweight from x instead of x rstd",
        "value",
        results(lambda ys, t, a: (ys[0], (ys[1] * 1.01).astype(ys[1].dtype))),
    ),
    # ---- matmul
    ("matmul", "tf32 inputs", "probe", tf32()),
    ("matmul", "float16 accumulated in float16", "probe", f16_sums()),
    ("matmul", "last of K left out", "value", inputs(lambda t: [_zero_last(t[0], -1), t[1]])),
    (
        "matmul",
        "broadcast batch always 0",
        "value",
        inputs(lambda t: [t[0], np.broadcast_to(t[1][:1], t[1].shape) if t[1].ndim > 2 and t[1].shape[0] else t[1]]),
    ),
    ("mm", "transposed operand read as contiguous", "value", contiguous_reads()),
    ("mm", "last row of a tile of 64 + 1 lost", "value", result(lambda y, t, a: _zero_rows(y, 64))),
    ("mm", "bfloat16 result cut instead of rounded", "value", bf16_cut()),
    (
        "bmm",
        "batch stride of the first used for both",
        "value",
        inputs(lambda t: [t[0], np.broadcast_to(t[1][:1], t[1].shape)] if t[0].shape[0] else t),
    ),
    (
        "addmm",
        "alpha applied to the whole",
        "value",
        result(lambda y, t, a: (y + (a["alpha"] - 1) * a["beta"] * t[0]).astype(y.dtype)),
    ),
    (
        "addmm",
        "beta 0 still reads NaN",
        "value",
        result(lambda y, t, a: (y + a["beta"] * t[0]).astype(y.dtype) if a["beta"] == 0 else y),
    ),
    ("baddbmm", "beta ignored", "value", attr(beta=1.0)),
    ("linear", "bias ignored", "value", inputs(lambda t: [t[0], t[1], None])),
    ("linear", "weight not transposed where it is square", "probe", inputs(lambda t: [t[0][..., ::-1], t[1], t[2]])),
    (
        "matmul",
        "its gradient scaled by 2",
        "gradient",
        gradient(_doubled_grad),
    ),
    # ---- attention
    ("scaled_dot_product_attention", "causal mask one too far", "value", _causal_wrong(1)),
    ("scaled_dot_product_attention", "causal mask aligned to the last key", "value", _causal_wrong(None)),
    (
        "scaled_dot_product_attention",
        "boolean mask inverted",
        "value",
        _mask(lambda m: ~m if m.dtype == np.bool_ else m),
    ),
    ("scaled_dot_product_attention", "boolean mask added as a number", "value", _mask(_bool_as_number)),
    (
        "scaled_dot_product_attention",
        "float mask scaled too",
        "value",
        _mask(lambda m: m if m.dtype == np.bool_ else (m * 0.5).astype(m.dtype)),
    ),
    ("scaled_dot_product_attention", "scale missing", "value", attr(scale=lambda s: 1.0 if s is None else s)),
    (
        "scaled_dot_product_attention",
        "key heads tiled instead of repeated",
        "value",
        lambda op, right: lambda t, a: right(_gqa(t), a | {"enable_gqa": False}) if a["enable_gqa"] else right(t, a),
    ),
    (
        "scaled_dot_product_flash_attention",
        "logsumexp to base 2",
        "value",
        results(lambda ys, t, a: (ys[0], (ys[1] * 1.44269504).astype(ys[1].dtype))),
    ),
    (
        "scaled_dot_product_flash_attention",
        "last key skipped",
        "value",
        inputs(lambda t: [t[0], _toward_first(t[1]), _toward_first(t[2]), t[3]]),
    ),
    (
        "scaled_dot_product_flash_attention_backward",
        "dkey not scaled",
        "value",
        results(
            lambda ys, t, a: (
                ys[0],
                (ys[1] / (a["scale"] or (t[1].shape[-1] ** -0.5 if t[1].shape[-1] else 1))).astype(ys[1].dtype),
                ys[2],
            )
        ),
    ),
    (
        "scaled_dot_product_flash_attention_backward",
        "sum(dy out) missing",
        "value",
        inputs(lambda t: [*t[:4], t[4] * 0, *t[5:]]),
    ),
    # ---- shape
    ("copy", "transposed input copied as it lies", "transposed", contiguous_reads()),
    ("copy", "subnormals flushed", "special", flush()),
    ("copy", "strided out written as contiguous", "out_sliced", reads_back()),
    ("neg", "offsets wrap (at 4096 elements here)", "value", widths(4096)),
    ("cat", "last tensor left out", "value", result(lambda y, t, a: _without_last(y, t[0], a["dim"]))),
    ("tril", "diagonal off by one", "value", attr(diagonal=lambda d: d + 1)),
    ("triu", "strict", "value", attr(diagonal=lambda d: d + 1)),
    (
        "arange",
        "adds the step n times in float32",
        "value",
        result(
            lambda y, t, a: (
                np.concatenate(
                    [[a["start"]], a["start"] + np.cumsum(np.full(max(y.size - 1, 0), a["step"], f32), dtype=f32)]
                )[: y.size].astype(y.dtype)
                if y.dtype.kind == "f"
                else y
            )
        ),
    ),
    ("full", "negative values lost", "value", result(lambda y, t, a: np.abs(y))),
    ("full", "out ignored", "out", ignores_out()),
    # ---- index
    ("embedding", "index clamped instead of refused", "bad", _clip(1, lambda t, a: t[0].shape[0])),
    ("embedding", "row 0 skipped", "value", result(lambda y, t, a: (y * (t[1] != 0)[..., None]).astype(y.dtype))),
    ("embedding_dense_backward", "padding row counted", "value", attr(padding_idx=-1)),
    ("embedding_dense_backward", "repeated indices lost", "value", result(lambda y, t, a: _last_wins(y, t, a))),
    (
        "gather",
        "index clamped instead of refused",
        "bad",
        _clip(1, lambda t, a: t[0].shape[a["dim"]] if t[0].ndim else 1),
    ),
    ("gather", "index strides ignored", "sliced", contiguous_reads(lambda x: x.dtype.kind == "i")),
    ("scatter_add", "repeated indices overwrite", "value", _overwrites(1, 2)),
    (
        "index_select",
        "index taken modulo the size",
        "bad",
        no_checks(lambda t, a: [t[0], t[1] % max(t[0].shape[a["dim"]] if t[0].ndim else 1, 1)]),
    ),
    (
        "index_select",
        "first index for all",
        "value",
        inputs(lambda t: [t[0], np.broadcast_to(t[1][:1], t[1].shape) if t[1].ndim else t[1]]),
    ),
    ("index_add", "alpha ignored", "value", attr(alpha=1.0)),
    ("index_add", "repeated indices lost", "value", _overwrites(1, 2)),
    # ---- random
    ("rand", "seed ignored", "seed", attr(seed=0)),
    ("rand", "high half of the seed ignored", "seed", attr(seed=lambda s: s % 2**32)),
    ("rand", "offset ignored", "seed", attr(offset=0)),
    (
        "rand",
        "values up to 1 inclusive",
        "value",
        result(lambda y, t, a: (y * (1 + 2.0**-24) + 2.0**-24).astype(y.dtype)),
    ),
    ("dropout", "not scaled by 1 / (1 - p)", "value", result(lambda y, t, a: (y * (1 - a["p"])).astype(y.dtype))),
    ("dropout", "drops what it should keep", "value", attr(p=lambda p: 1 - p)),
    (
        "dropout",
        "elements numbered as they lie in memory",
        "transposed",
        lambda op, right: (
            lambda t, a: (
                tuple(np.swapaxes(y, -1, -2) for y in right([np.swapaxes(t[0], -1, -2)], a))
                if t[0].ndim > 1 and t[0].strides[-1] > t[0].strides[-2]
                else right(t, a)
            )
        ),
    ),
    (
        "native_dropout",
        "mask in the dtype of x",
        "value",
        no_checks(None, None, lambda ys, t, a: (ys[0], ys[1].astype(ys[0].dtype))),
    ),
    # ---- loss
    (
        "nll_loss",
        "ignored rows counted in the mean",
        "value",
        result(
            lambda y, t, a: (y * np.mean(t[1] != a["ignore_index"])).astype(y.dtype) if a["reduction"] == "mean" else y
        ),
    ),
    ("nll_loss", "mean not divided by the weights", "value", result(_mean_of_all)),
    ("nll_loss", "a target out of range is clamped", "bad", _clip(1, lambda t, a: t[0].shape[-1])),
    (
        "nll_loss_forward",
        "total_weight counts rows",
        "value",
        results(lambda ys, t, a: (ys[0], np.asarray(t[1].size, ys[1].dtype))),
    ),
    ("nll_loss_backward", "ignored rows get a gradient", "value", attr(ignore_index=-100)),
    (
        "nll_loss_backward",
        "not divided by total_weight",
        "value",
        result(lambda y, t, a: (y * t[4]).astype(y.dtype) if a["reduction"] == "mean" else y),
    ),
    ("cross_entropy", "label smoothing ignored", "value", attr(label_smoothing=0.0)),
    (
        "cross_entropy",
        "ignore_index counted as class 0",
        "value",
        lambda op, right: lambda t, a: right([t[0], np.where(t[1] == a["ignore_index"], 0, t[1]), t[2]], a),
    ),
)
