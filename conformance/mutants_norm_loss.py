"""Mutants of norms over channels, losses, optimiser steps and the later reductions.

How they are run: mutants.py; the makers: mutate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .mutate import Row, attr, contiguous_reads, inputs, no_checks, precise, result, results

__all__ = ["ROWS"]

f32 = np.float32


def _without(*at: int) -> Any:
    """Optional inputs numbered ``at`` are ignored."""
    return inputs(lambda t: [None if i in at else x for i, x in enumerate(t)])


def _scaled(by: Callable) -> Any:
    """The first result times ``by(inputs, attrs)``."""
    return result(lambda y, t, a: (y.astype(np.float64) * by(t, a)).astype(y.dtype))


def _part(i: int, fn: Callable) -> Any:
    """Result number i replaced by ``fn(results, inputs, attrs)``."""

    def put(ys, t, a):
        ys = list(ys)
        ys[i] = np.asarray(fn(ys, t, a)).astype(ys[i].dtype)
        return ys

    return results(put)


def _elements(x: np.ndarray) -> float:
    """Of one channel."""
    return x.size / max(x.shape[1], 1)


def _by_sample(op: Any, right: Callable) -> Callable:
    """Statistics of each sample by itself where they belong to the whole batch."""

    def call(t, a):
        if t[0].shape[0] < 2:
            return right(t, a)
        parts = [right([t[0][i : i + 1], *t[1:]], a) for i in range(t[0].shape[0])]
        return (np.concatenate([p[0] for p in parts]), *parts[0][1:])

    return call


def _neighbours(t: list) -> list:
    """Channels taken as if those of a group lay ``groups`` apart."""
    x = t[0]
    return [np.ascontiguousarray(x[:, np.argsort(np.arange(x.shape[1]) % 2, kind="stable")]), *t[1:]]


def _biased(which: int, old: int) -> Any:
    """The new running variance from the biased one."""

    def fn(ys, t, a):
        y, n = ys[which].astype(np.float64), _elements(t[0])
        kept = (1 - a["momentum"]) * (t[old].astype(np.float64) if t[old] is not None else 0)
        return kept + (y - kept) * (n - 1) / n if a.get("training", True) and n > 1 and y.size else y

    return _part(which, fn)


def _momentum_swapped(which: int) -> Any:
    return lambda op, right: lambda t, a: tuple(
        y if i != which else right(t, a | {"momentum": 1 - a["momentum"]})[i] for i, y in enumerate(right(t, a))
    )


# operator, mistake, kind of case meant to refuse it, maker
ROWS: tuple[Row, ...] = (
    # ---- group, instance and batch norm
    ("native_group_norm", "a group's channels strided", "value", inputs(_neighbours)),
    ("native_group_norm", "rstd without eps", "tiny", _part(2, lambda ys, t, a: 1 / np.sqrt(np.maximum(1 / ys[2].astype(np.float64) ** 2 - a["eps"], 1e-30)))),
    ("native_group_norm_backward", "weight ignored", "value", _without(4)),
    ("native_group_norm_backward", "dbias is dweight", "value", _part(2, lambda ys, t, a: ys[1])),
    ("group_norm", "one group", "value", attr(num_groups=1)),
    ("group_norm", "bias ignored", "value", _without(2)),
    ("group_norm", "strides ignored", "transposed", contiguous_reads()),
    ("group_norm", "groups that do not divide the channels are accepted", "bad", no_checks(lambda t, a: t, skip=True)),
    ("instance_norm", "weight ignored", "value", _without(1)),
    ("instance_norm", "float16 arithmetic", "value", precise(np.float16)),
    ("native_batch_norm", "statistics of each sample", "value", _by_sample),
    ("native_batch_norm", "running variance biased", "value", _biased(4, 4)),
    ("native_batch_norm", "momentum and 1 - momentum exchanged", "value", _momentum_swapped(3)),
    ("native_batch_norm", "running mean not updated", "value", _part(3, lambda ys, t, a: ys[3] if t[3] is None else t[3])),
    ("native_batch_norm_no_training", "variance taken for deviation", "value", inputs(lambda t: [*t[:4], t[4] ** 2])),
    ("native_batch_norm_no_training", "weight and bias exchanged", "value", inputs(lambda t: [t[0], t[2], t[1], *t[3:]])),
    ("native_batch_norm_no_stats", "save_invstd is the variance", "value", _part(2, lambda ys, t, a: 1 / ys[2].astype(np.float64) ** 2)),
    ("native_batch_norm_no_stats", "divides by n - 1", "value", _scaled(lambda t, a: np.sqrt(max(_elements(t[0]) - 1, 0) / max(_elements(t[0]), 1)))),
    ("batch_norm", "always trains", "value", attr(training=True)),
    ("batch_norm", "eps ignored", "value", attr(eps=0.0)),
    ("native_batch_norm_backward", "statistics taken for constants", "value", lambda op, right: lambda t, a: right(
        [*t[:3], t[5], 1 / t[6] ** 2 - f32(a["eps"]), None, None] if a["train"] else t, a | {"train": False})),
    ("native_batch_norm_backward", "dweight not normalised", "value", _part(1, lambda ys, t, a: ys[1] / t[6] if a["train"] else ys[1])),
    ("batch_norm_stats", "unbiased", "value", _part(1, lambda ys, t, a: ys[1] * np.sqrt(max(1 - 1 / max(_elements(t[0]), 1), 0)))),
    ("batch_norm_stats", "float16 arithmetic", "value", precise(np.float16)),
    ("batch_norm_elemt", "eps added again", "value", inputs(lambda t: [*t[:4], (1 / np.sqrt(1 / t[4].astype(np.float64) ** 2 + 1e-3)).astype(t[4].dtype)])),
    ("batch_norm_elemt", "bias before weight", "value", lambda op, right: lambda t, a: right(
        [t[0], t[1], None if t[2] is None else (t[2] if t[1] is None else t[2] * t[1].astype(t[2].dtype)), *t[3:]], a)),
    ("batch_norm_gather_stats_with_counts", "counts ignored", "value", inputs(lambda t: [*t[:5], np.ones_like(t[5])])),
    ("batch_norm_gather_stats_with_counts", "distances of the means left out", "value", inputs(
        lambda t: [t[0], np.broadcast_to(t[1].mean(0), t[1].shape), *t[2:]])),
    ("batch_norm_backward_reduce", "mean not subtracted", "value", _part(1, lambda ys, t, a: (
        t[0].astype(np.float64) * t[1]).sum((0, *range(2, t[0].ndim))))),
    ("batch_norm_backward_reduce", "dweight without invstd", "value", _part(2, lambda ys, t, a: ys[1])),
    ("batch_norm_backward_elemt", "counts of one device", "value", inputs(lambda t: [*t[:7], t[7][:1]])),
    ("batch_norm_backward_elemt", "weight ignored", "value", _without(4)),
    # ---- optimisers
    ("sgd", "dampening ignored", "value", attr(dampening=0.0)),
    ("sgd", "nesterov ignored", "value", attr(nesterov=False)),
    ("sgd", "the first step counts the buffer", "value", attr(first_step=False)),
    ("adam", "no correction of the first average", "value", lambda op, right: lambda t, a: right(
        t, a | {"lr": a["lr"] * (1 - a["beta1"] ** a["step"])})),
    ("adam", "maximize ignored", "value", attr(maximize=False)),
    ("adam", "amsgrad keeps the latest", "value", inputs(lambda t: [*t[:4], None if t[4] is None else t[4] * 0])),
    ("adam", "decoupled weight decay", "value", lambda op, right: lambda t, a: right(
        [(t[0] * (1 - a["lr"] * a["weight_decay"])).astype(t[0].dtype), *t[1:]], a | {"weight_decay": 0.0})),
    ("adamw", "decay added to the gradient", "value", lambda op, right: lambda t, a: right(
        [t[0], (t[1] + a["weight_decay"] * t[0]).astype(t[1].dtype), *t[2:]], a | {"weight_decay": 0.0})),
    ("adamw", "eps under the root", "value", _part(0, lambda ys, t, a: t[0].astype(np.float64) * (1 - a["lr"] * a["weight_decay"]) - a["lr"] / (
        1 - a["beta1"] ** a["step"]) * ys[1].astype(np.float64) / np.sqrt(
            (ys[2] if t[4] is None else ys[3]).astype(np.float64) / (1 - a["beta2"] ** a["step"]) + 1e-3))),
    ("rmsprop", "never centered", "value", attr(centered=False)),
    ("rmsprop", "momentum ignored", "value", attr(momentum=0.0)),
    ("adadelta", "old square average under the gradient", "value", _part(0, lambda ys, t, a: t[0] - a["lr"] * np.sqrt(t[3] + a["eps"]) / np.sqrt(
        t[2] + a["eps"]) * t[1].astype(np.float64))),
    ("adadelta", "acc_delta not updated", "value", _part(2, lambda ys, t, a: t[3])),
)
