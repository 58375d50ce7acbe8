"""Optimiser steps in place: out= names the parameter and states themselves, on hosts without a copy, on devices with one."""
from __future__ import annotations

import numpy as np
import pytest

import haian
from haian import ops

STATES = {"sgd": ("uniform",), "adam": ("uniform", "square", "square"), "adamw": ("uniform", "square", None),
          "rmsprop": ("square", "uniform", "square"), "adadelta": ("square", "square")}
NUMBERS = {"sgd": {"lr": 0.1, "momentum": 0.9}, "adam": {"step": 2}, "adamw": {"step": 2}, "rmsprop": {"momentum": 0.5}, "adadelta": {}}


def tensors(name, dtype="float32", n=3001):
    rng = np.random.default_rng(7)
    made = [rng.standard_normal(n), rng.standard_normal(n)]
    made += [None if s is None else rng.standard_normal(n) ** (2 if s == "square" else 1) for s in STATES[name]]
    return [None if x is None else ops.cast(haian.asarray(x.astype("float32")), dtype=dtype) for x in made]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STATES)
def test_in_place_gives_the_same_bits(name, dtype):
    step = getattr(ops, name)
    want = step(*tensors(name, dtype), **NUMBERS[name])
    given = tensors(name, dtype)
    empty = haian.asarray(np.zeros(0, "f"))
    out = tuple(empty if t is None else t for i, t in enumerate(given) if i != 1)
    got = step(*given, **NUMBERS[name], out=out)
    for y, r, o in zip(got, want, out, strict=True):
        assert y is o
        np.testing.assert_array_equal(np.asarray(y.numpy(), "f"), np.asarray(r.numpy(), "f"))


def test_results_may_change_places():
    """exp_avg written where exp_avg_sq was and the other way round: each run is read before it is written."""
    param, grad, m, v, _ = tensors("adamw")
    want = ops.adamw(param, grad, m, v, step=2)
    ops.adamw(param, grad, m, v, step=2, out=(param, v, m, haian.asarray(np.zeros(0, "f"))))
    np.testing.assert_array_equal(v.numpy(), want[1].numpy())
    np.testing.assert_array_equal(m.numpy(), want[2].numpy())
    np.testing.assert_array_equal(param.numpy(), want[0].numpy())


def test_results_do_not_depend_on_threads():
    threads = haian.num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            haian.set_num_threads(n)
            found.append(ops.adam(*tensors("adam", n=300_007), step=5)[0].numpy().copy())
    finally:
        haian.set_num_threads(threads)
    assert all((f == found[0]).all() for f in found)
