"""Mutants of convolution and pooling.  How they are run: mutants.py; the makers: mutate.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.ops import OPS
from ..kernels.ops.infer import inner
from .mutate import (
    Row,
    attr,
    bf16_cut,
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
    tf32,
    writes_input,
)

__all__ = ["ROWS"]


def _zero_margin(y: np.ndarray) -> np.ndarray:
    """Results that saw padding left at 0."""
    y = np.array(y)
    if y.ndim >= 3 and y.shape[-1] > 1:
        y[..., 0] = 0
    return y


def _tail_columns(y: np.ndarray, tile: int) -> np.ndarray:
    """A last, partial tile of columns is never stored."""
    y = np.array(y)
    flat = y.reshape(*y.shape[:2], -1) if y.ndim > 2 and y.size else None
    if flat is not None and flat.shape[2] > tile:
        flat[:, :, flat.shape[2] // tile * tile :] = 0
    return y


def _flipped(t: list[Any], i: int) -> list[Any]:
    t[i] = t[i][inner((slice(None, None, -1),) * (t[i].ndim - 2))]
    return t


def _first_group(t: list[Any], a: dict[str, Any]) -> list[Any]:
    """Every group reads the first group's channels."""
    if a["groups"] > 1 and not a["transposed"]:
        n = t[0].shape[1] // a["groups"]
        t[0] = np.concatenate([t[0][:, :n]] * a["groups"], axis=1)
    return t


def _with(fn: Any) -> Any:
    """Inputs replaced in sight of the attributes."""
    return lambda op, right: lambda t, a: right(fn(list(t), a), a)


def _last_of_equals(y: np.ndarray, t: list[Any]) -> np.ndarray:
    """Index of the same value's last position in the image, where there are several."""
    out, images = np.array(y), t[0].reshape(-1, t[0][0, 0].size) if t[0].ndim == 4 and t[0].size else None
    if images is None:
        return out
    found = out.reshape(images.shape[0], -1)
    for i, image in enumerate(images):
        for j, at in enumerate(found[i]):
            if image[at] == image[min(at + 1, image.size - 1)]:
                found[i, j] = min(at + 1, image.size - 1)
    return out


def _transposed_index(y: np.ndarray, t: list[Any], axes: int) -> np.ndarray:
    """Column-major positions."""
    shape = t[0].shape[-axes:]
    place = np.unravel_index(y, shape)
    return np.ravel_multi_index(place[::-1], shape[::-1]).astype(np.int64)


def _clipped(t: list[Any], a: dict[str, Any]) -> list[Any]:
    """Bad indices are bent into the image instead of refused."""
    axes = len(a["kernel_size"]) if "kernel_size" in a and len(a["kernel_size"]) > 1 else t[1].ndim - 2
    size = int(np.prod(t[1].shape[-axes:]))
    return [t[0], t[1], np.clip(t[2], 0, size - 1)]


def _overwritten(ys: tuple, t: list[Any], a: dict[str, Any]) -> list[Any]:
    """The last window that chose a place wins instead of the sum."""
    dy, x, index = t
    out = np.zeros_like(x)
    n = index.size and int(np.prod(x.shape[-(x.ndim - 2) :]))
    if x.ndim < 4 or not n:
        return list(ys)
    flat = out.reshape(-1, n)
    np.put_along_axis(flat, index.reshape(flat.shape[0], -1), dy.reshape(flat.shape[0], -1), 1)
    return [out]


def _floor_only(y: np.ndarray, t: list[Any], a: dict[str, Any]) -> np.ndarray:
    """Adaptive windows that end at floor((i + 1) n / m): overlaps are left out."""
    x, axes = t[0], len(a["output_size"])
    if x.ndim < axes + 1 or not x.size or axes > 1:
        return y
    n, m = x.shape[-1], a["output_size"][-1]
    wide = x.astype(np.float64)
    cells = [wide[..., i * n // m : max((i + 1) * n // m, i * n // m + 1)].mean(-1) for i in range(m)]
    return np.stack(cells, -1).astype(y.dtype)


def _dinput_doubled(o: Any, dy: Any, i: Any, y: Any, a: Any) -> Any:
    dx, *others = OPS["convolution"].grad(o, dy, i, y, a)  # type: ignore[misc]
    return (o.add(dx, dx), *others)


_ZERO_BIAS = inputs(lambda t: [t[0], t[1], None])

# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    # ---- convolution
    ("convolution", "bias ignored", "value", _ZERO_BIAS),
    ("convolution", "kernel flipped", "value", inputs(lambda t: _flipped(t, 1))),
    ("convolution", "results at the padding left at 0", "value", result(lambda y, t, a: _zero_margin(y))),
    ("convolution", "last partial tile of 32 columns dropped", "value", result(lambda y, t, a: _tail_columns(y, 32))),
    ("convolution", "every group reads the first group", "value", _with(_first_group)),
    ("convolution", "float32 inputs rounded to tf32", "probe", tf32()),
    ("convolution", "float16 arithmetic", "value", precise(np.float16)),
    ("convolution", "bfloat16 results cut", "value", bf16_cut()),
    ("convolution", "strides ignored", "transposed", contiguous_reads()),
    ("convolution", "strided out written as packed", "out_sliced", reads_back()),
    ("convolution", "noise of one ulp a call", "twice", noise()),
    ("convolution", "input used as workspace", "value", writes_input()),
    ("convolution", "a stride of 0 is taken for 1", "bad", no_checks(None, skip=True)),
    ("convolution", "its gradient doubles dinput", "gradient", gradient(_dinput_doubled)),
    (
        "convolution_backward",
        "dweight of the first image only",
        "value",
        results(lambda ys, t, a: (ys[0], (ys[1] / max(t[0].shape[0], 1)).astype(ys[1].dtype), ys[2])),
    ),
    (
        "convolution_backward",
        "dinput through an unflipped kernel",
        "value",
        lambda op, right: lambda t, a: (right(_flipped(list(t), 2), a)[0], *right(t, a)[1:]),
    ),
    ("convolution_backward", "dbias forgotten", "value", results(lambda ys, t, a: (ys[0], ys[1], ys[2] * 0))),
    ("convolution_backward", "float32 inputs rounded to tf32", "probe", tf32()),
    ("causal_conv1d", "sees the future", "value", inputs(lambda t: [t[0][..., ::-1], *t[1:]])),
    ("causal_conv1d", "activation left out", "value", attr(activation="none")),
    ("causal_conv1d", "bias ignored", "value", _ZERO_BIAS),
    ("im2col", "padding repeats the edge", "value", result(lambda y, t, a: np.where(y == 0, t[0].dtype.type(1), y))),
    ("im2col", "dilation ignored in the taps", "value", result(lambda y, t, a: y if max(a["dilation"]) == 1 else y[..., ::-1])),
    ("col2im", "overlaps overwrite", "value", result(lambda y, t, a: np.clip(y, -2, 2).astype(y.dtype))),
    ("col2im", "float16 arithmetic", "value", precise(np.float16)),
    # ---- average
    *(
        (f"avg_pool{n}d", "padding counted though it must not be, or the reverse", "value", attr(count_include_pad=lambda v: not v))
        for n in (1, 2, 3)
    ),
    ("avg_pool2d", "divisor_override ignored", "value", attr(divisor_override=None)),
    ("avg_pool2d", "out never written", "out", ignores_out()),
    ("avg_pool2d_backward", "divisor_override ignored", "value", attr(divisor_override=None)),
    ("avg_pool3d_backward", "shares not divided", "value", attr(divisor_override=1)),
    # ---- maximum
    *(
        (f"max_pool{n}d", "padding is 0 instead of -inf", "value", result(lambda y, t, a: np.maximum(y, 0).astype(y.dtype)))
        for n in (1, 2, 3)
    ),
    ("max_pool2d", "NaN swallowed", "value", inputs(lambda t: [np.where(np.isnan(t[0]), t[0].dtype.type(-np.inf), t[0])])),
    (
        "max_pool2d_with_indices",
        "last of equals",
        "value",
        results(lambda ys, t, a: (ys[0], _last_of_equals(ys[1], t))),
    ),
    *(
        (
            f"max_pool{n}d_with_indices",
            "column-major indices",
            "value",
            results(lambda ys, t, a, n=n: (ys[0], _transposed_index(ys[1], t, n))),
        )
        for n in (2, 3)
    ),
    ("max_pool2d_with_indices_backward", "an index outside is clamped", "bad", _with(_clipped)),
    ("max_pool2d_with_indices_backward", "the last window wins", "value", results(_overwritten)),
    ("max_pool3d_with_indices_backward", "an index outside is clamped", "bad", _with(_clipped)),
    # ---- adaptive
    ("adaptive_avg_pool1d", "windows end at floor", "value", result(_floor_only)),
    ("adaptive_avg_pool2d", "wrong divisor", "value", result(lambda y, t, a: (y / 2).astype(y.dtype))),
    ("adaptive_avg_pool3d", "float16 arithmetic", "value", precise(np.float16)),
    *(
        (
            f"adaptive_max_pool{n}d",
            "indices count within the window's row",
            "value",
            results(lambda ys, t, a: (ys[0], ys[1] % t[0].shape[-1] if t[0].ndim > 3 else ys[1] // 2)),
        )
        for n in (1, 2, 3)
    ),
    ("adaptive_avg_pool2d_backward", "whole gradient to every place", "value", result(lambda y, t, a: (y * 2).astype(y.dtype))),
    ("adaptive_avg_pool3d_backward", "float16 arithmetic", "value", precise(np.float16)),
    ("adaptive_max_pool2d_backward", "an index outside is clamped", "bad", _with(_clipped)),
    ("adaptive_max_pool2d_backward", "the last window wins", "value", results(_overwritten)),
    ("adaptive_max_pool3d_backward", "an index outside is clamped", "bad", _with(_clipped)),
)
