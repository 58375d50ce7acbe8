"""Reductions on the host past the sizes where their work is cut up: long rows in blocks, tall columns in parts.

The suite's core samples stay below these sizes; its full level reaches them.
"""
from __future__ import annotations

import numpy as np
import pytest

from haian import ops

rng = np.random.default_rng(11)
# prod: factors near 1, whose product stays far from both ends of float32
NEAR_ONE = {shape: (1 + 0.01 * rng.standard_normal(shape)).astype(np.float32) for shape in ((200_003,), (4099, 70))}
DATA = {shape: rng.standard_normal(shape).astype(np.float32) for shape in NEAR_ONE}
CASES = {
    "prod": (lambda x, d: (ops.prod(x, d),), lambda x, d: (x.prod(d),)),
    "logsumexp": (lambda x, d: (ops.logsumexp(x, d),), lambda x, d: (np.log(np.exp(x).sum(d)),)),
    "aminmax": (lambda x, d: ops.aminmax(x, dim=d), lambda x, d: (x.min(d), x.max(d))),
    "std_mean": (lambda x, d: ops.std_mean(x, d), lambda x, d: (x.std(d, ddof=1), x.mean(d))),
    "count_nonzero": (lambda x, d: (ops.count_nonzero(x, d),), lambda x, d: ((x != 0).sum(d),)),
    "max": (lambda x, d: ops.max(x, d), lambda x, d: (x.max(d), x.argmax(d))),
    "min": (lambda x, d: ops.min(x, d), lambda x, d: (x.min(d), x.argmin(d))),
    **{f"norm_{p:g}": (lambda x, d, p=p: (ops.linalg_vector_norm(x, p, d),), lambda x, d, p=p: (np.linalg.norm(x, p, d),))
       for p in (0.0, 1.0, 2.0, 3.0, float("inf"), -float("inf"))}}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", DATA)
def test_large(name, shape):
    ours, numpy = CASES[name]
    x = (NEAR_ONE if name == "prod" else DATA)[shape].copy()
    x.reshape(-1)[::97] = 1.0 if name == "prod" else 0.0
    for y, r in zip(ours(x, 0), numpy(x.astype(np.float64), 0), strict=True):
        np.testing.assert_allclose(np.asarray(y, np.float64), r, rtol=2e-5, atol=1e-6)


def test_norm_of_extreme_values():
    """Squares of float32 are summed in double on the host: neither 1e30 nor 1e-30 leaves its range."""
    for size in (1e30, 1e-30):
        x = np.full((3, 1030), size, np.float32)
        np.testing.assert_allclose(ops.linalg_vector_norm(x, 2.0, 1), size * np.sqrt(1030), rtol=1e-6)
        np.testing.assert_allclose(ops.linalg_vector_norm(x.T.copy(), 2.0, 0), size * np.sqrt(1030), rtol=1e-6)
