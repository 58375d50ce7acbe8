"""@haian.pointwise: users' own operators on hosts and on the simulated chip, beside NumPy; what the language refuses; many of them."""
from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import pytest
from haian.hal.dtype import BY_NAME
from haian.hal.errors import ArgumentError, DTypeError, ShapeError
from haian.kernels.ops import OPS, formula
from haian.kernels.ops.formula import VOCABULARY, FormulaError
from haian.kernels.ops.program import STEPS, compiled

import haian
from haian import m


@haian.pointwise
def swish(x, *, beta=1.0):
    """x sigmoid(beta x)."""
    return x * m.sigmoid(beta * x)


@haian.pointwise(dtypes=("float32", "bfloat16", "int32", "int8", "uint8", "bool"))
def pick(keep: bool, x, y):
    """The larger where keep, else the smaller."""
    return m.where(keep, m.maximum(x, y), m.minimum(x, y))


@haian.pointwise
def between(x, low, high):
    """Whether low <= x < high."""
    return (x >= low) & (x < high)


@haian.pointwise
def long_one(a, b, c, d):
    """Many values at once, some of them read late: registers are used again."""
    p = a * b + c * d
    q = m.exp(-p * p) + m.sin(a + b)
    r = m.where(~(p > q), p, q) - m.log1p(m.abs(c))
    s = (a - b) * (c - d) + r * r
    return p + q * r - s / (1.0 + m.abs(s)) + m.tanh(a) * m.sqrt(m.abs(d))


@haian.pointwise(dtypes=("int64", "int16"))
def whole(x, y):
    """Integer arithmetic wraps; bits."""
    return m.remainder(x * y + 3, 7) + (x & y) - (~x)


@pytest.mark.parametrize("device", ["cpu:0", "sim:0"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (255,), (256,), (257,), (3, 1025), (0, 4)])
def test_values(device, shape):
    rng = np.random.default_rng(len(shape) + sum(shape))
    x = rng.standard_normal(shape).astype("f")
    got = swish(haian.asarray(x, device=device), beta=2.0).cpu().numpy()
    np.testing.assert_allclose(got, x / (1 + np.exp(-2.0 * x.astype("d"))), rtol=2e-6, atol=1e-30)
    args = [rng.standard_normal(shape).astype("f") for _ in range(4)]
    got = long_one(*(haian.asarray(a, device=device) for a in args)).cpu().numpy()
    want = formula.read(long_one_formula())(*(a.astype("d") for a in args))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def long_one_formula():
    from haian.kernels.user import record_of
    return record_of(long_one).formula


@pytest.mark.parametrize("device", ["cpu:0", "sim:0"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int32", "int8", "uint8", "bool"])
def test_dtypes_broadcasting_and_strides(device, kind):
    rng = np.random.default_rng(5)
    numpy = BY_NAME[kind].numpy
    x, y = (rng.integers(0, 2 if kind == "bool" else 100, s).astype(numpy) for s in ((5, 1, 9), (4, 9)))
    keep = rng.integers(0, 2, (5, 4, 18)).astype(bool)[..., ::2]
    got = pick(*(haian.asarray(a, device=device) for a in (keep, x, y))).cpu().numpy()
    want = np.where(keep, np.maximum(x.astype("f"), y.astype("f")), np.minimum(x.astype("f"), y.astype("f")))
    assert got.dtype == numpy
    np.testing.assert_array_equal(got.astype("f"), want)


@pytest.mark.parametrize("device", ["cpu:0", "sim:0"])
def test_conditions_and_integers(device):
    x = np.array([-1, 0, 0.5, 1, np.nan, np.inf], "f")
    got = between(*(haian.asarray(a, device=device) for a in (x, np.zeros_like(x), np.ones_like(x)))).cpu().numpy()
    assert got.dtype == bool and got.tolist() == [False, True, True, False, False, False]
    for kind in ("int64", "int16"):
        a = np.array([0, -1, 300, -32768, 32767, 5], kind)
        b = np.array([9, 7, 300, 3, 2, -5], kind)
        with np.errstate(over="ignore"):
            want = np.remainder(a * b + np.array(3, kind), np.array(7, kind)) + (a & b) - (~a)
        np.testing.assert_array_equal(whole(haian.asarray(a, device=device), haian.asarray(b, device=device)).cpu().numpy(), want)


def test_every_step_of_the_language_equals_the_built_in():
    """Each function of the vocabulary through a program, in float32 and float64, has the bits of the compiled loops."""
    unary = {"exp": "exp", "log": "log", "sqrt": "sqrt", "rsqrt": "rsqrt", "sin": "sin", "cos": "cos", "tanh": "tanh", "sigmoid": "sigmoid",
             "erf": "erf", "abs": "abs", "expm1": "expm1", "log1p": "log1p", "exp2": "exp2", "log2": "log2", "log10": "log10", "tan": "tan",
             "floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "round", "erfinv": "erfinv"}
    x = np.concatenate([np.linspace(-9, 9, 1001), [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, 1e-30, 40000.5]])
    for name, built_in in unary.items():
        if built_in not in OPS or not OPS[built_in].formula:
            continue
        made = haian.pointwise(_call_of(name))
        for kind in ("f", "d"):
            a = haian.asarray(x.astype(kind))
            assert made(a).numpy().tobytes() == getattr(haian.ops, built_in)(a).numpy().tobytes(), (name, kind)


def _call_of(name):
    """A function ``def name_(x): return m.name(x)`` with a source that inspect finds."""
    import linecache
    text = f"def {name}_(x):\n    return m.{name}(x)\n"
    file = f"<test {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    world = {"m": m}
    exec(compile(text, file, "exec"), world)
    return world[f"{name}_"]


def test_out_alias_threads_and_names():
    x = haian.asarray(np.linspace(-3, 3, 1 << 17, dtype="f"))
    want = swish(x).numpy().copy()
    out = haian.asarray(np.zeros(1 << 17, "f"))
    assert swish(x, out=out) is out and out.numpy().tobytes() == want.tobytes()
    before = haian.num_threads()
    try:
        for n in (1, 2, 3):
            haian.set_num_threads(n)
            assert swish(x).numpy().tobytes() == want.tobytes()
    finally:
        haian.set_num_threads(before)
    results = []
    threads = [threading.Thread(target=lambda: results.append(swish(x).numpy().tobytes())) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert set(results) == {want.tobytes()}
    swish(x, out=x)
    assert x.numpy().tobytes() == want.tobytes()
    assert "swish(Tensor x, *, float beta=1.0)" in swish.__doc__ and "x sigmoid" in swish.__doc__
    assert "swish__" in haian.explain(swish, x)
    assert isinstance(swish(np.ones(3, "f")), np.ndarray)


def test_a_name_of_haians_own_means_two_things():
    @haian.pointwise
    def add(x, y):
        """Not the sum."""
        return x - y

    x = haian.asarray(np.full(3, 5, "f"))
    for device in ("cpu:0", "sim:0"):
        t = x.to(device)
        assert add(t, t).cpu().numpy().tolist() == [0, 0, 0] and haian.ops.add(t, t).cpu().numpy().tolist() == [10, 10, 10]


def test_errors_are_one_line():
    x, y = haian.asarray(np.ones(3, "f")), haian.asarray(np.ones(4, "f"))
    with pytest.raises(ShapeError, match="between"):
        between(x, y, x)
    with pytest.raises(DTypeError, match="swish"):
        swish(haian.asarray(np.ones(3, "i4")))
    with pytest.raises(ArgumentError, match="function"):
        haian.pointwise(3)
    with pytest.raises((DTypeError, ArgumentError)):
        haian.pointwise(dtypes=("complex64",))(_call_of("exp"))
    with pytest.raises(FormulaError, match="floating"):
        haian.pointwise(dtypes=("int32",))(_call_of("exp"))

    def loop(x):
        for _ in range(3):
            x = x + 1
        return x

    with pytest.raises(FormulaError, match="For"):
        haian.pointwise(loop)


def test_programs_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match="register"):
        haian._native.define_program("bad", ["x"], [], 0, False, 1 << 12, [(0, 200, 0, 0, 0)], [], 1)
    with pytest.raises(ArgumentError, match="attribute"):
        haian._native.define_program("bad", ["x"], [], 0, False, 1 << 12, [], [(1, 3, 0.0)], 1)
    assert {name for name, _, _ in STEPS} >= set(VOCABULARY)
    body = formula.read(_call_of("exp")).body()
    assert len(compiled(body).steps) == 1


def test_special_dtypes_round_once():
    x = np.arange(-300, 300, dtype="f").astype(ml_dtypes.bfloat16)
    got = swish(haian.asarray(x)).numpy()
    wide = x.astype("d")
    want = (wide / (1 + np.exp(-wide))).astype("f").astype(ml_dtypes.bfloat16)
    assert np.mean(got.view("u2") == want.view("u2")) > 0.99
