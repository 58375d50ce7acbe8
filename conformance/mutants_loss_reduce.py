"""Mutants of element-wise losses, further reductions, distances, norms and optimisers.

How they are run: mutants.py; the makers: mutate.py.
"""

from __future__ import annotations

import numpy as np

from .mutate import Row, attr, contiguous_reads, forget_axis_end, inputs, no_checks, precise, result, results

__all__ = ["ROWS"]

_EACH = attr(reduction="sum")


def _times(factor):
    """The result times ``factor(inputs, attrs)``."""
    return result(lambda y, t, a: (y.astype(np.float64) * factor(t, a)).astype(y.dtype))


def _one_too_few(y, t, a):
    """A mean over n - 1."""
    n = max((x.size for x in t if x is not None), default=0)
    return (y * (n / (n - 1))).astype(y.dtype) if a["reduction"] == "mean" and n > 1 else y


def _without(i):
    return inputs(lambda t: [None if k == i else x for k, x in enumerate(t)])


def _part(i, fn):
    """Result number i replaced by ``fn(results, inputs, attrs)``."""

    def put(ys, t, a):
        ys = list(ys)
        ys[i] = np.asarray(fn(ys, t, a)).astype(ys[i].dtype)
        return ys

    return results(put)


def _with_last(x, value):
    x = np.array(x)
    if x.size > 8:
        x.reshape(-1)[-1] = value
    return x


def _last_of(x, a, find):
    """Where the last extreme along dim stands."""
    if not x.ndim:
        return np.zeros((), np.int64)
    at = x.shape[a["dim"]] - 1 - find(np.flip(x, a["dim"]), axis=a["dim"], keepdims=True)
    return at if a["keepdim"] else np.squeeze(at, a["dim"])


def _by_products(a, b):
    """Distances by |a|^2 + |b|^2 - 2 a b in float32."""
    a, b = (x.astype(np.float32) for x in (a, b))
    squares = (a * a).sum(-1)[..., :, None] + (b * b).sum(-1)[..., None, :] - 2 * (a @ b.swapaxes(-1, -2))
    return np.sqrt(np.maximum(squares, 0))


def _soft(z):
    if not z.size:
        return z
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _apart(targets, classes, blank):
    """The second of two equal labels becomes another one."""
    found = targets.copy()
    for row in found:
        for s in range(1, len(row)):
            if row[s] == row[s - 1]:
                row[s] = next((c for c in range(classes) if c not in (row[s], blank)), row[s])
    return found


# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    # ---- element-wise losses
    ("mse_loss", "the mean is a sum", "value", attr(reduction=lambda r: "sum" if r == "mean" else r)),
    ("mse_loss", "float16 arithmetic", "value", precise(np.float16)),
    ("mse_loss", "strides ignored", "transposed", contiguous_reads()),
    ("mse_loss", "shapes are not checked", "bad", no_checks(lambda t, a: [t[0], t[0]], skip=True)),
    ("mse_loss_backward", "half the slope", "value", _times(lambda t, a: 0.5)),
    ("mse_loss_backward", "not divided for the mean", "value", _EACH),
    ("l1_loss", "a mean over n - 1", "value", result(_one_too_few)),
    ("l1_loss", "target is not broadcast", "value", result(
        lambda y, t, a: y if t[0].shape == t[1].shape or not y.size else np.full_like(y, y.reshape(-1)[0]))),
    ("smooth_l1_loss", "beta taken for 1", "value", attr(beta=1.0)),
    ("smooth_l1_loss_backward", "not divided by beta", "value", lambda op, right: lambda t, a: tuple(
        (y.astype(np.float64) * np.where(np.abs(t[1].astype(np.float64) - t[2]) < a["beta"], a["beta"], 1.0)).astype(y.dtype) for y in right(t, a))),
    ("huber_loss", "delta taken for 1", "value", attr(delta=1.0)),
    ("huber_loss", "nothing is subtracted outside delta", "value", lambda op, right: lambda t, a: right(t, a | {"delta": a["delta"] * 1.05})),
    ("huber_loss_backward", "smooth_l1's slope", "value", _times(lambda t, a: 1 / a["delta"])),
    ("binary_cross_entropy", "weight ignored", "value", _without(2)),
    ("binary_cross_entropy", "x and target exchanged", "value", inputs(lambda t: [t[1], t[0], t[2]])),
    ("binary_cross_entropy_backward", "weight ignored", "value", _without(3)),
    ("binary_cross_entropy_with_logits", "pos_weight ignored", "value", _without(3)),
    ("binary_cross_entropy_with_logits", "overflows in exp", "large", result(
        lambda y, t, a: y if all(np.abs(t[0].reshape(-1).astype(np.float64)) < 88) else (y * np.inf).astype(y.dtype))),
    ("binary_cross_entropy_with_logits_backward", "pos_weight on both sides", "value", lambda op, right: lambda t, a: right(
        [*t[:3], t[3] if t[4] is None else (t[4] * (1 if t[3] is None else t[3])).astype(t[4].dtype), None], a)),
    ("kl_div", "log_target ignored", "value", attr(log_target=False)),
    ("kl_div", "target log target left out", "value", result(
        lambda y, t, a: y - y if a["log_target"] or a["reduction"] != "mean" or not t[0].size else (
            -(t[0].astype(np.float64) * t[1]).mean() * np.ones(())).astype(y.dtype))),
    ("sigmoid_focal_loss", "gamma taken for 2", "value", attr(gamma=2.0)),
    ("sigmoid_focal_loss", "no weight", "value", attr(alpha=-1.0)),
    ("sigmoid_focal_loss_backward", "the factor taken for a constant", "value", attr(gamma=0.0)),
    # ---- reductions
    ("prod", "the last factor is left out", "value", inputs(lambda t: [_with_last(t[0], 1)])),
    ("prod", "integers stay in 32 bits", "value", result(
        lambda y, t, a: y.astype(np.int32).astype(y.dtype) if y.dtype == np.int64 else (y + (y > 1e3) * y * 0.01).astype(y.dtype))),
    ("std", "n in place of n - 1", "value", attr(correction=0.0)),
    ("std", "float16 arithmetic", "value", precise(np.float16)),
    ("std", "the variance", "value", result(lambda y, t, a: (y * y).astype(y.dtype))),
    ("var_mean", "n in place of n - 1", "value", attr(correction=0.0)),
    ("var_mean", "the mean is the first element's", "value", _part(1, lambda ys, t, a: ys[1] * 0 + t[0].reshape(-1)[0] if t[0].size else ys[1])),
    ("std_mean", "n in place of n - 1", "value", attr(correction=0.0)),
    ("std_mean", "the deviation is the variance", "value", _part(0, lambda ys, t, a: ys[0] * ys[0])),
    ("aminmax", "exchanged", "value", results(lambda ys, t, a: ys[::-1])),
    ("aminmax", "NaN is passed over", "value", results(lambda ys, t, a: [
        f(t[0], axis=a["dim"], keepdims=a["keepdim"]) if t[0].ndim and t[0].dtype == np.float32 else y
        for f, y in zip((np.fmin.reduce, np.fmax.reduce), ys)])),
    ("max", "the last of equals", "value", _part(1, lambda ys, t, a: _last_of(t[0], a, np.argmax))),
    ("max", "the value at the first place", "value", _part(0, lambda ys, t, a: np.take(t[0], [0], a["dim"]).reshape(ys[0].shape) if t[0].ndim else ys[0])),
    ("min", "the last of equals", "value", _part(1, lambda ys, t, a: _last_of(t[0], a, np.argmin))),
    ("min", "strides ignored", "transposed", contiguous_reads()),
    ("count_nonzero", "NaN counts as zero", "value", inputs(lambda t: [np.where(t[0] != t[0], t[0].dtype.type(0), t[0])])),
    ("count_nonzero", "counts wrap at 256", "value", result(lambda y, t, a: y % 256)),
    ("logsumexp", "overflows", "value", result(lambda y, t, a: np.where(np.abs(y) > 88, np.inf, y).astype(y.dtype))),
    ("logsumexp", "of -inf alone NaN", "value", result(lambda y, t, a: np.where(y == -np.inf, np.nan, y).astype(y.dtype))),
    ("linalg_vector_norm", "always the root of squares", "value", attr(ord=2.0)),
    ("linalg_vector_norm", "without the root", "value", result(lambda y, t, a: (y * y).astype(y.dtype) if a["ord"] == 2 else y)),
    ("linalg_vector_norm", "tiles of 1024 drop the rest", "value", forget_axis_end()),
    # ---- distances
    ("cdist", "differences of squares", "value", lambda op, right: lambda t, a: (_by_products(t[0], t[1]).astype(t[0].dtype),)
     if a["p"] == 2 and t[0].shape[-1] else right(t, a)),
    ("cdist", "p taken for 2", "value", attr(p=2.0)),
    ("cdist", "batches are not broadcast", "value", lambda op, right: lambda t, a: right(
        [np.broadcast_to(t[0][:1], t[0].shape) if t[0].ndim > 3 else t[0], t[1]], a)),
    ("pdist", "without the root", "value", result(lambda y, t, a: (y * y).astype(y.dtype) if a["p"] == 2 else y)),
    ("pdist", "pairs in the order of columns", "value", result(
        lambda y, t, a: y[np.lexsort(np.triu_indices(t[0].shape[0], 1))] if y.size else y)),
    # ---- normalised sums
    ("add_rms_norm", "the sum is x", "value", _part(1, lambda ys, t, a: t[0])),
    ("add_rms_norm", "eps left out", "tiny", attr(eps=1e-30)),
    ("add_rms_norm", "float16 arithmetic", "value", precise(np.float16)),
    ("add_layer_norm", "the residual is normalised", "value", inputs(lambda t: [t[1], t[1], *t[2:]])),
    ("add_layer_norm", "beta ignored", "value", _without(3)),
    ("skip_layer_norm", "bias ignored", "value", _without(4)),
    ("skip_layer_norm", "bias not in the sum", "value", _part(1, lambda ys, t, a: t[0].astype(np.float64) + t[1])),
    # ---- masked softmax
    ("scaled_masked_softmax", "True is seen", "value", inputs(lambda t: [t[0], ~t[1]])),
    ("scaled_masked_softmax", "scale ignored", "value", attr(scale=1.0)),
    ("scaled_masked_softmax", "rows of nothing are NaN", "value", result(
        lambda y, t, a: np.where(np.broadcast_to(t[1], y.shape).all(-1, keepdims=True), np.nan, y).astype(y.dtype) if y.size else y)),
    ("scaled_upper_triang_masked_softmax", "the diagonal is masked", "value", result(
        lambda y, t, a: (y * np.tri(y.shape[-2], y.shape[-1], -1)).astype(y.dtype))),
    ("scaled_upper_triang_masked_softmax", "masked after the sum", "value", lambda op, right: lambda t, a: (
        (_soft(t[0].astype(np.float64) * a["scale"]) * np.tri(t[0].shape[-2], t[0].shape[-1])).astype(t[0].dtype),)),
    # ---- a linear layer's cross entropy, connectionist temporal classification
    ("fused_linear_cross_entropy", "bias ignored", "value", _without(3)),
    ("fused_linear_cross_entropy", "ignored rows count in the mean", "value", _part(
        0, lambda ys, t, a: ys[0] * (t[2] != a["ignore_index"]).mean() if a["reduction"] == "mean" and t[2].size else ys[0])),
    ("fused_linear_cross_entropy", "smoothing over one class too few", "value", attr(label_smoothing=lambda e: e * 0.9)),
    ("fused_linear_cross_entropy", "logsumexp without the maximum", "value", _part(
        1, lambda ys, t, a: ys[1] - (t[0].astype(np.float64) @ t[1].T.astype(np.float64)).max(1, initial=-np.inf) if t[0].shape[0] else ys[1])),
    ("fused_linear_cross_entropy_backward", "the target is not subtracted", "value", attr(label_smoothing=1.0)),
    ("fused_linear_cross_entropy_backward", "dweight of the last chunk alone", "value", _part(
        1, lambda ys, t, a: np.where(np.arange(len(ys[1]))[:, None] < len(ys[1]) // 512 * 512, 0, ys[1]) if len(ys[1]) > 512 else ys[1])),
    ("fused_linear_cross_entropy_backward", "dbias is its mean", "value", _part(2, lambda ys, t, a: ys[2] / max(t[1].shape[0], 1))),
    ("ctc_loss_forward", "equal labels follow one another", "value", lambda op, right: lambda t, a: right(
        [t[0], _apart(t[1], t[0].shape[2], a["blank"]), *t[2:]], a)),
    ("ctc_loss_forward", "input lengths ignored", "value", inputs(lambda t: [*t[:2], np.full_like(t[2], t[0].shape[0]), t[3]])),
    ("ctc_loss_forward", "blank taken for 0", "value", attr(blank=0)),
    ("ctc_loss_backward", "exp(log_probs) left out", "value", result(lambda y, t, a: (y - np.exp(t[1].astype(np.float64)) * t[0][:, None]).astype(y.dtype))),
    ("ctc_loss_backward", "infinite losses count", "value", attr(zero_infinity=False)),
    # ---- what is made of norms
    ("normalize", "eps added", "value", lambda op, right: lambda t, a: (
        (t[0] / (np.linalg.norm(t[0].astype(np.float64), a["p"], a["dim"], True) + 1e-3)).astype(t[0].dtype),) if t[0].ndim and t[0].size else right(t, a)),
    ("normalize", "always the square norm", "value", attr(p=2.0)),
    ("weight_norm", "norm over the last axes", "value", lambda op, right: lambda t, a: right(t, a) if a["dim"] % t[0].ndim != t[0].ndim - 1 or t[0].ndim < 2
     else tuple((y * 1.01).astype(y.dtype) for y in right(t, a))),
    ("weight_norm", "g ignored", "value", inputs(lambda t: [t[0], np.ones_like(t[1])])),
    ("total_norm", "a sum of norms", "value", lambda op, right: lambda t, a: (sum(right([[x]], a)[0].astype(np.float64) for x in t[0] if x.size)
                                                                          * np.ones((), t[0][0].dtype),) if len(t[0]) > 1 else right(t, a)),
    ("total_norm", "always the square norm", "value", attr(norm_type=2.0)),
)
