"""fused_linear_cross_entropy in several chunks on a device: chunks there are larger than the suite's samples."""
from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="device kernels")

from haian.kernels.ops import OPS
from haian.kernels.triton import fused_loss

import haian
from haian import ops


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_chunks_add_up(monkeypatch, name):
    monkeypatch.setattr(fused_loss, "LOGITS", 64)
    monkeypatch.setattr(fused_loss, "LEAST", 4)
    rng = np.random.default_rng(3)
    kind = haian.dtype(name).numpy
    x, w, b = (rng.standard_normal(s).astype(kind) for s in ((19, 5), (23, 5), (23,)))
    target = rng.integers(0, 23, 19)
    target[4] = -100
    attrs = {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.1}
    there = [haian.asarray(a, device="sim:0") for a in (x, w, target, b)]
    loss, lse = ops.fused_linear_cross_entropy(*there, **attrs)
    wide = [a.astype(np.float64) for a in (x, w)] + [target, b.astype(np.float64)]
    want, want_lse = OPS["fused_linear_cross_entropy"].reference(*wide, **attrs)
    loose = 1e-5 if name == "float32" else 1e-2
    np.testing.assert_allclose(loss.numpy().astype(np.float64), want, rtol=loose)
    np.testing.assert_allclose(lse.numpy().astype(np.float64), want_lse, rtol=1e-5, atol=1e-5)
    dy = haian.asarray(np.ones((), kind), device="sim:0")
    got = ops.fused_linear_cross_entropy_backward(dy, *there, lse, **attrs)
    wanted = OPS["fused_linear_cross_entropy_backward"].reference(np.ones(()), *wide, want_lse, **attrs)
    for y, r in zip(got, wanted, strict=True):
        np.testing.assert_allclose(y.numpy().astype(np.float64), r, rtol=loose, atol=loose * np.abs(r).max())
