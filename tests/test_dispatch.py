"""Candidates, policy and counting of fallbacks, registered kernels, explain."""
from __future__ import annotations

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from haian.hal.errors import ArgumentError, DTypeError, Unsupported
from haian.kernels import dispatch
from haian.kernels.ops import OPS

import haian

ops = haian.ops


@pytest.fixture
def clean():
    """Registered kernels and the policy as they were."""
    registered, policy = {k: list(v) for k, v in dispatch._registered.items()}, haian.fallback_policy()
    yield
    dispatch._registered.clear()
    dispatch._registered.update(registered)
    dispatch._warned.clear()
    haian.set_fallback_policy(policy)


def on_sim(a):
    return haian.asarray(a).to("sim:0")


def test_every_operator_has_a_host_kernel():
    lacking = [n for n, r in OPS.items() if not r.views and not r.composite and dispatch._host(r) is None]
    assert not lacking


def test_triton_serves_sim(clean):
    haian.set_fallback_policy("error")
    x = on_sim(np.array([[1.0, 2.0, 3.0]], "f"))
    np.testing.assert_allclose(ops.softmax(x).numpy(), ops.softmax(haian.asarray(x.numpy())).numpy(), rtol=1e-6)
    assert "softmax__triton" in haian.explain(ops.softmax, x)


def test_a_registered_kernel_goes_first_and_its_refusal_is_explained(clean):
    def mine(x, *, out):
        out.copy_(haian.asarray(np.full(x.shape, 42, "f")))

    def short_only(specs, attrs, facts):
        return "" if specs[0].size < 10 else "more than 9 elements"

    haian.register_kernel("exp", mine, device="sim", dtypes=["float32"], when=short_only, name="exp__mine")
    np.testing.assert_array_equal(ops.exp(on_sim(np.zeros(3, "f"))).numpy(), 42)
    told = haian.explain(ops.exp, on_sim(np.zeros(30, "f")))
    assert "exp__mine" in told and "refused: more than 9 elements" in told
    np.testing.assert_array_equal(ops.exp(on_sim(np.zeros(30, "f"))).numpy(), 1)  # another size of the same signature
    half = haian.explain(ops.exp, on_sim(np.zeros(3, "e")))
    assert "float16 is not among its dtypes" in half


def test_registering_for_no_operator():
    with pytest.raises(ArgumentError, match="no operator 'nope'"):
        haian.register_kernel("nope", lambda: None, device="sim")


def test_registering_what_cannot_be_called():
    for wrong in ({"fn": 3}, {"fn": None}, {"fn": len, "when": "float32"}):
        with pytest.raises(ArgumentError, match="register_kernel: tanh: .*; needs a function"):
            haian.register_kernel("tanh", wrong.pop("fn"), device="sim", **wrong)
    with pytest.raises(DTypeError, match="register_kernel: tanh: dtype 'f3'"):
        haian.register_kernel("tanh", len, device="sim", dtypes=["f3"])


def test_without_triton_the_host_computes_and_the_reason_is_told(clean, monkeypatch, caplog):
    """As where Triton is not installed: its import fails."""
    for name in [n for n in sys.modules if n == "triton" or n.startswith(("triton.", "haian.kernels.triton."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(dispatch, "_cache", {})
    monkeypatch.setattr(dispatch, "_warned", set())  # an earlier test may have had its one warning of exp
    haian.set_fallback_policy("warn")
    from haian.kernels import api
    api.forget()
    x = on_sim(np.array([0.0, 1.0], "f"))
    before = dispatch.counters["exp"]
    with caplog.at_level(logging.WARNING, "haian"):
        np.testing.assert_allclose(ops.exp(x).numpy(), np.exp([0.0, 1.0]), rtol=1e-6)
    assert dispatch.counters["exp"] == before + 1
    assert [r for r in caplog.records if "Triton" in r.getMessage() and "haian[triton]" in r.getMessage()]
    assert "refused: its kernels need Triton" in haian.explain(ops.exp, x)
    assert "Triton" in dispatch.lacks_triton(haian.device("sim:0")) and not dispatch.lacks_triton(haian.device("cpu:0"))
    haian.set_fallback_policy("error")
    with pytest.raises(Unsupported, match="need Triton"):
        ops.exp(x)


def _without_triton(monkeypatch):
    monkeypatch.setattr(dispatch, "_triton", lambda record, device: [])
    monkeypatch.setattr(dispatch, "_cache", {})
    monkeypatch.setattr(dispatch, "_warned", set())
    from haian.kernels import api
    api.forget()


def test_fallback_is_counted_warned_once_or_refused(clean, monkeypatch, caplog):
    _without_triton(monkeypatch)
    x = on_sim(np.array([0.0, 1.0], "f"))
    haian.set_fallback_policy("warn")
    before = dispatch.counters["exp"]
    with caplog.at_level(logging.WARNING, "haian"):
        got = ops.exp(x)
        ops.exp(x)
    assert got.device.name == "sim:0"
    np.testing.assert_allclose(got.numpy(), np.exp([0.0, 1.0]), rtol=1e-6)
    assert dispatch.counters["exp"] == before + 2
    assert len([r for r in caplog.records if "exp" in r.message]) == 1
    assert "fallback to the host" in haian.explain(ops.exp, x)
    haian.set_fallback_policy("error")
    with pytest.raises(Unsupported, match="fallback policy is 'error'"):
        ops.exp(x)
    with pytest.raises(ArgumentError, match="policy 'never'"):
        haian.set_fallback_policy("never")


def test_a_policy_from_the_environment_is_checked():
    code = "import haian.ops"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HAIAN_FALLBACK": "foo"})
    assert done.returncode == 1 and "HAIAN_FALLBACK=foo; needs one of error, warn, allow" in done.stderr.splitlines()[-1]


def test_what_explain_does_not_know():
    for wrong in (None, 3, "nope", len):
        with pytest.raises(ArgumentError, match="haian ops list"):
            haian.explain(wrong)


def test_explain_runs_nothing():
    x = haian.asarray(np.ones(3, "f"))
    told = haian.explain("add", x, x)
    assert told.splitlines()[0] == "add on cpu:0 -> float32 (3,)"
    assert "taken" in told
