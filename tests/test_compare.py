"""conformance/compare.py: right implementations accepted, wrong ones refused, on data the constants were not fitted on."""
from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from haian.conformance import compare
from haian.conformance.compare import judge, ulp, uniform
from haian.hal.driver import Capabilities
from haian.hal.dtype import BY_NAME
from haian.kernels.ops import OPS
from haian.kernels.ops.budget import Conditioned, Index, Reduction
from haian.kernels.ops.record import FLOATS, Op, Spec

f32, BF16 = np.float32, np.dtype(ml_dtypes.bfloat16)
SEEDS = (101, 202)  # none of those used while the constants were chosen


def made(name, reference, infer, budget, family="matmul"):
    """A record of one or two float tensors that is not in OPS."""
    params = "Tensor a, Tensor b" if family == "matmul" else "Tensor x"
    return Op(schema=f"{name}({params}) -> Tensor", family=family, doc="", dtypes=FLOATS, infer=infer, reference=reference, budget=budget,
              samples=())


PRODUCT = made("product", lambda a, b: a @ b, lambda a, b: Spec((a.shape[0], b.shape[1]), a.dtype), Reduction(terms=lambda a, b: a.shape[1]))


def tf32(x):
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(f32)


def half(x):
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(f32)


def cut(x, dt):
    """Rounded towards zero to ``dt``."""
    y = x.astype(dt)
    return np.where(np.abs(y.astype(f32)) > np.abs(x), np.nextafter(y, dt.type(0)), y)


def matrices(rng, kind, m, k, n):
    draw = rng.random if kind == "uniform01" else rng.standard_normal
    a, b = draw((m, k)).astype(f32), draw((k, n)).astype(f32)
    if kind == "scaled":
        a, b = a * np.exp2(rng.integers(-6, 6, (m, 1))).astype(f32), b * np.exp2(rng.integers(-6, 6, (1, n))).astype(f32)
    return a, b


def products(a, b):
    """Products that are right, by several orders of summation, in the dtype of a."""
    k = a.shape[1]
    one_by_one = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(k):
        one_by_one += a[:, i:i + 1] * b[i:i + 1]
    blocked = sum((a[:, i:i + 32] @ b[i:i + 32] for i in range(0, k, 32)), np.zeros_like(one_by_one))
    return {"blas": a @ b, "sequential": one_by_one, "blocked": blocked, "split": a[:, ::2] @ b[::2] + a[:, 1::2] @ b[1::2],
            "reversed": a[:, ::-1] @ b[::-1]}


@pytest.mark.parametrize("dt", [np.dtype(f32), np.dtype(np.float16), BF16, np.dtype(np.float64)], ids=str)
def test_products_in_any_order_are_accepted(dt):
    worst = 0.0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        for kind in ("randn", "uniform01", "scaled"):
            for m, k, n in ((13, 1, 11), (13, 7, 11), (24, 97, 24), (9, 1031, 17), (5, 4099, 16)):
                a, b = (x.astype(dt) for x in matrices(rng, kind, m, k, n))
                wide = (a, b) if dt == np.float64 else (a.astype(f32), b.astype(f32))
                ways = products(*wide)
                for name, y in ways.items():
                    verdict = judge(PRODUCT, (a, b), {}, y.astype(dt))
                    assert verdict.ok, (name, kind, k, verdict.message)
                    worst = max(worst, verdict.worst)
    assert 0.05 < worst < 0.97  # a budget that nothing comes near would refuse nothing


@pytest.mark.parametrize("k", [16, 300, 1024, 4099])
@pytest.mark.parametrize("kind", ["randn", "uniform01", "scaled"])
def test_wrong_float32_products_are_refused(k, kind):
    a, b = matrices(np.random.default_rng((77, k)), kind, 24, k, 24)
    right = a @ b
    wrong = {"float16 inputs": half(a) @ half(b), "tf32 inputs": tf32(a) @ tf32(b), "drops the last k": a[:, :-1] @ b[:-1],
             "float16 result": half(right), "one k twice": right + a[:, :1] * b[:1], "rows swapped": right[np.r_[1, 0, 2:24]],
             "float16 sums of 64": sum((half(a[:, i:i + 64] @ b[i:i + 64]) for i in range(0, k, 64)), np.zeros_like(right))}
    for name, y in wrong.items():
        assert not judge(PRODUCT, (a, b), {}, y).ok, name


@pytest.mark.parametrize("dt", [np.dtype(np.float16), BF16], ids=str)
def test_truncated_low_precision_products_are_refused(dt):
    for k in (7, 64, 300, 1024):
        a, b = (x.astype(dt) for x in matrices(np.random.default_rng((5, k)), "randn", 24, k, 24))
        exact = a.astype(f32) @ b.astype(f32)
        assert judge(PRODUCT, (a, b), {}, exact.astype(dt)).ok
        assert judge(PRODUCT, (a, b), {}, cut(exact, dt)).metric in ("rms", "R")


def test_probe_wants_the_exact_integers():
    from haian.conformance.memory import integers

    rng = np.random.default_rng(3)
    for k in (16, 300, 4099):
        a = integers((24, k), BY_NAME["float32"], k, rng, axis=-1, turn=0)
        b = integers((k, 24), BY_NAME["float32"], k, rng, axis=-2, turn=1)
        for name, y in products(a, b).items():
            assert judge(PRODUCT, (a, b), {}, y, probe=True).ok, name
        right = a @ b
        for name, y in {"tf32 a": tf32(a) @ b, "tf32 b": a @ tf32(b), "float16": half(a) @ b, "last k": a[:, :-1] @ b[:-1],
                        "first k twice": right + a[:, :1] * b[:1]}.items():
            assert not judge(PRODUCT, (a, b), {}, y, probe=True).ok, (name, k)


def test_tf32_passes_only_where_it_is_declared():
    a, b = matrices(np.random.default_rng(9), "randn", 24, 1024, 24)
    y = tf32(a) @ tf32(b)
    declared = Capabilities(model="", total_bytes=0, max_alloc_bytes=0, reduced_matmul="tf32")
    assert not judge(PRODUCT, (a, b), {}, y).ok
    assert judge(PRODUCT, (a, b), {}, y, capabilities=declared).ok
    assert not judge(PRODUCT, (a, b), {}, (a.astype(BF16).astype(f32) @ b.astype(BF16).astype(f32)), capabilities=declared).ok


def test_a_sum_that_returns_zero_is_refused_where_others_pass_it():
    """FlagGems' tolerance for float32 sums over 40999 elements is 1.3e-6 |r| + 1e-4 * 40999 = 4.1, which zero meets."""
    x = np.random.default_rng(1).standard_normal((4, 40999, 3)).astype(f32)
    attrs = OPS["sum"].attributes({"dim": 1})
    assert judge(OPS["sum"], (x,), attrs, x.sum(axis=1)).ok
    assert not judge(OPS["sum"], (x,), attrs, np.zeros((4, 3), f32)).ok


# ---- class C -------------------------------------------------------------------------------------------------------------
def _length(x, **_):
    return x.shape[-1]


def _rows(name, reference, infer=lambda x: x):
    return made(name, reference, infer, Conditioned(k=4, terms=_length), family="norm")


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _log_softmax(x):
    z = x - x.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _norm(x):
    m = x.mean(-1, keepdims=True)
    return (x - m) / np.sqrt(((x - m) ** 2).mean(-1, keepdims=True) + x.dtype.type(1e-5))


def _rms(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(1e-6))


def _sequential(x):
    total = np.zeros(x.shape[:-1] + (1,), x.dtype)
    for i in range(x.shape[-1]):
        total = total + x[..., i:i + 1]
    return total


def _online(x):
    m, s = np.full(x.shape[:-1] + (1,), -np.inf, x.dtype), np.zeros(x.shape[:-1] + (1,), x.dtype)
    for i in range(0, x.shape[-1], 16):
        block = x[..., i:i + 16]
        new = np.maximum(m, block.max(-1, keepdims=True))
        m, s = new, s * np.exp(m - new) + np.exp(block - new).sum(-1, keepdims=True)
    return np.exp(x - m) / s


def _norm_sequential(x):
    n = x.dtype.type(x.shape[-1])
    m = _sequential(x) / n
    return (x - m) * (x.dtype.type(1) / np.sqrt(_sequential((x - m) ** 2) / n + x.dtype.type(1e-5)))


ROWS = {"softmax": (_rows("softmax_", _softmax), (_softmax, _online)), "log_softmax": (_rows("log_softmax_", _log_softmax), (_log_softmax,)),
        "layer_norm": (_rows("layer_norm_", _norm), (_norm, _norm_sequential)), "rms_norm": (_rows("rms_norm_", _rms), (_rms,)),
        "var": (_rows("var_", lambda x: x.var(-1), lambda x: Spec(x.shape[:-1], x.dtype)), (lambda x: x.var(-1),))}


def rows(rng, kind, n):
    x = rng.standard_normal((17, n))
    return {"normal": x, "offset": x + 10, "scaled": x * np.exp2(rng.integers(-8, 4, (17, 1))), "big": x * 20}[kind]


@pytest.mark.parametrize("dt", [np.dtype(f32), np.dtype(np.float16), BF16, np.dtype(np.float64)], ids=str)
def test_conditioned_operators_in_any_order_are_accepted(dt):
    for seed in SEEDS:
        for n in (2, 3, 17, 129, 1025):
            for kind in ("normal", "offset", "scaled", "big"):
                x = rows(np.random.default_rng((seed, n)), kind, n).astype(dt)
                compute = x if dt == np.float64 else x.astype(f32)
                for name, (op, ways) in ROWS.items():
                    for way in ways:
                        with np.errstate(all="ignore"):
                            verdict = judge(op, (x,), {}, way(compute).astype(dt))
                        assert verdict.ok, (name, kind, n, verdict.message)


def test_wrong_conditioned_operators_are_refused():
    rng = np.random.default_rng(6)
    for n in (17, 129, 1025):
        x = rows(rng, "normal", n).astype(f32)
        wrong = {"softmax": (_softmax(half(x)), half(_softmax(x)), _softmax(x) * f32(1 + 1e-4)),
                 "log_softmax": (_log_softmax(half(x)), _log_softmax(x) * f32(1.4427)),
                 "layer_norm": (_norm(half(x)), _norm(x[..., ::-1]), x / x.std(-1, keepdims=True)), "rms_norm": (_rms(half(x)), _norm(x)),
                 "var": (x.var(-1, ddof=1),)}
        for name, results in wrong.items():
            for i, y in enumerate(results):
                assert not judge(ROWS[name][0], (x,), {}, y).ok, (name, i, n)
    small = (rows(rng, "normal", 129) * 2.0**-9).astype(f32)  # where eps matters
    assert not judge(ROWS["rms_norm"][0], (small,), {}, small / np.sqrt((small * small).mean(-1, keepdims=True))).ok
    assert not judge(ROWS["layer_norm"][0], (small,), {}, (small - small.mean(-1, keepdims=True)) / (small.std(-1, keepdims=True) + f32(1e-5))).ok


def test_kappa_sees_what_is_lost_between_the_steps():
    """layer_norm of two elements is +-1 however the inputs move; x - mean(x) far from zero loses digits all the same."""
    x = np.array([[1000.0, 1000.5]], f32)
    r = compare.reference(ROWS["layer_norm"][0], (x,), {})[0]
    assert compare._kappa(ROWS["layer_norm"][0], (x,), {}, 0, r).min() > 100


# ---- the elementwise classes ---------------------------------------------------------------------------------------------
def test_ulp_is_the_spacing():
    for name in ("float32", "float16", "bfloat16", "float64"):
        dt = BY_NAME[name]
        x = np.array([1.0, 1.5, 2.0, 3.9, 1e-3, 100.0, 0.0], np.float64).astype(dt.numpy)
        np.testing.assert_array_equal(ulp(x.astype(np.float64), dt), np.abs(np.spacing(x)).astype(np.float64))
    assert ulp(np.float64(1e-45), BY_NAME["float32"]) == 2.0**-149


def test_faithful_is_half_an_ulp_and_a_cut_is_not():
    rng = np.random.default_rng(2)
    x, y = (rng.standard_normal(4099).astype(f32) for _ in range(2))
    attrs = OPS["add"].attributes({})
    assert judge(OPS["add"], (x, y), attrs, x + y).ok
    verdict = judge(OPS["add"], (x, y), attrs, np.nextafter(x + y, f32(np.inf)))
    assert not verdict.ok and verdict.worst > 1
    a, b = x.astype(BF16), y.astype(BF16)
    exact = a.astype(f32) + b.astype(f32)
    assert judge(OPS["add"], (a, b), attrs, exact.astype(BF16)).ok
    assert not judge(OPS["add"], (a, b), attrs, cut(exact, BF16)).ok


def test_special_values_sit_where_the_references_do():
    x = np.array([np.nan, np.inf, -np.inf, 1.0, 88.0, 100.0], f32)
    with np.errstate(over="ignore"):
        good = np.exp(x)
    assert judge(OPS["exp"], (x,), {}, good).ok
    for at, value in ((0, 0.0), (1, 1e38), (2, np.nan), (3, np.inf), (5, 3.4e38), (5, -np.inf)):
        bad = good.copy()
        bad[at] = value
        assert not judge(OPS["exp"], (x,), {}, bad).ok, (at, value)
    edge = np.array([88.7228390], f32)  # exp rounds to the largest float32 or to infinity: both are within rounding
    for right in (np.finfo(f32).max, np.inf):
        assert judge(OPS["exp"], (edge,), {}, np.array([right], f32)).ok


def test_flushed_subnormals_pass_only_where_declared():
    x, y = np.array([1e-40, 1.0], f32), np.array([0.0, 2.0], f32)
    attrs = OPS["add"].attributes({})
    facts = Capabilities(model="", total_bytes=0, max_alloc_bytes=0)
    flushed = np.array([0.0, 3.0], f32)
    assert not judge(OPS["add"], (x, y), attrs, flushed, capabilities=facts).ok
    assert judge(OPS["add"], (x, y), attrs, flushed, capabilities=replace(facts, flushes_subnormals=True)).ok
    assert not judge(OPS["add"], (x, y), attrs, flushed * 2, capabilities=replace(facts, flushes_subnormals=True)).ok


def test_exact_observes_the_sign_of_zero_only_where_told():
    x = np.array([0.0, -1.0], f32)
    assert not judge(OPS["neg"], (x,), {}, np.array([0.0, 1.0], f32)).ok
    assert judge(OPS["maximum"], (x, x), {}, np.array([-0.0, -1.0], f32)).ok


def test_form_of_results_is_part_of_the_verdict():
    x = np.ones((2, 3), f32)
    for bad, metric in ((np.exp(x).astype(np.float64), "dtype"), (np.exp(x)[0], "shape"), ((np.exp(x), x), "results")):
        assert judge(OPS["exp"], (x,), {}, bad).metric == metric


def test_index_by_the_values_it_selects():
    op = replace(OPS["argmax"], budget=Index(stable=False))
    x = np.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]], f32)
    attrs = op.attributes({"dim": 1})
    assert judge(op, (x,), attrs, np.array([2, 0])).ok
    assert not judge(OPS["argmax"], (x,), attrs, np.array([2, 0])).ok
    assert not judge(op, (x,), attrs, np.array([0, 0])).ok and not judge(op, (x,), attrs, np.array([1, 3])).ok


def test_uniform_law():
    rng = np.random.default_rng(4)
    assert uniform(rng.random(20000, f32)).ok
    for wrong in (rng.random(20000) ** 1.1, np.sort(rng.random(20000)), np.round(rng.random(20000), 1), rng.random(20000) * 0.98):
        assert not uniform(wrong.astype(f32)).ok


def test_a_declared_tolerance_widens_every_budget():
    x = np.linspace(0.1, 3, 50).astype(f32)
    y = np.exp(x)
    for _ in range(6):
        y = np.nextafter(y, f32(np.inf))
    assert not judge(OPS["exp"], (x,), {}, y).ok and judge(OPS["exp"], (x,), {}, y, factor=2.0).ok


def test_conversions_are_judged_to_the_tie():
    from haian.conformance.compare import rounded
    from haian.hal.dtype import BY_NAME

    op = OPS["cast"]
    for name, x, right in (("bfloat16", 1 + 2.0**-8, 1.0), ("bfloat16", 1 + 3 * 2.0**-8, 1 + 2.0**-6), ("float16", 1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-10),
                           ("float8_e4m3fn", 464.0, 448.0), ("float8_e5m2", 61440.0, np.inf), ("float16", 65519.9, 65504.0),
                           ("float16", 2.0**-25, 0.0), ("float16", -0.0, -0.0)):
        dt = BY_NAME[name]
        assert rounded(np.array([x]), dt).astype(np.float64)[0] == right
        attrs, given = {"dtype": dt}, (np.array([x]),)
        assert judge(op, given, attrs, np.array([right]).astype(dt.numpy)).ok
        step = 1 if right >= 0 and np.isfinite(right) else -1
        other = (np.array([right]).astype(dt.numpy).view(f"u{dt.itemsize}") + np.array(step).astype(f"u{dt.itemsize}")).view(dt.numpy)
        assert not judge(op, given, attrs, other).ok
    assert np.isnan(rounded(np.array([464.1]), BY_NAME["float8_e4m3fn"]).astype(np.float64)[0])


def test_a_bool_that_is_neither_0_nor_1_was_not_written():
    x = np.array([1.0, 2.0], np.float32)
    verdict = judge(OPS["eq"], (x, x), {}, np.array([1, 0xA5], np.uint8).view(bool))
    assert not verdict.ok and "neither 0 nor 1" in verdict.message
