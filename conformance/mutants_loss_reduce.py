"""Mutants of element-wise losses, further reductions, distances, norms and optimisers.

How they are run: mutants.py; the makers: mutate.py.
"""

from __future__ import annotations

import numpy as np

from .mutate import Row, attr, contiguous_reads, inputs, no_checks, precise, result

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
)
