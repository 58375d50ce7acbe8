"""The elementary functions of the host measured over all exponents of float32 and, with mpmath, in float64; remainders exact."""
from __future__ import annotations

import mpmath
import numpy as np
import pytest
from haian.conformance.compare import ulp
from haian.hal.dtype import BY_NAME
from scipy import special

import haian

F32 = BY_NAME["float32"]
# name: (reference in float64, most ulp of float32 anywhere, most ulp of float64, interval of the float64 samples)
MEASURED = {
    "expm1": (np.expm1, 1.45, 1.5, (-30, 30)), "exp2": (np.exp2, 1.05, 1.1, (-30, 30)), "log1p": (np.log1p, 1.5, 1.5, (-1, 10)),
    "log2": (np.log2, 1.7, 1.2, (0, 10)), "log10": (np.log10, 1.9, 1.5, (0, 10)), "tan": (np.tan, 1.0, 1.0, (-30, 30)),
    "asin": (np.arcsin, 2.4, 2.0, (-1, 1)), "acos": (np.arccos, 1.6, 1.6, (-1, 1)), "atan": (np.arctan, 2.6, 1.6, (-30, 30)),
    "sinh": (np.sinh, 2.6, 2.0, (-30, 30)), "cosh": (np.cosh, 2.6, 2.0, (-30, 30)), "asinh": (np.arcsinh, 2.1, 2.0, (-30, 30)),
    "acosh": (np.arccosh, 2.5, 3.5, (1, 20)), "atanh": (np.arctanh, 2.4, 2.4, (-1, 1)), "erfinv": (special.erfinv, 2.8, 2.5, (-1, 1)),
}


def run(name, *arrays):
    return getattr(haian.ops, name)(*(haian.asarray(a) for a in arrays)).numpy()


def every_float(rng):
    """Half a million float32 over all exponents, the unit and hundreds more finely, and all around where branches lie."""
    edges = np.float32([0, 1e-45, 1.17549435e-38, 6e-8, 0.4142136, 0.5, 0.7071, 1, 1.4142135, 2.4142137, 17.3, 25, 80, 87.3, 88.72283, 89.415, 104,
                        126, 128, 149, 1e6, 1e18, 3.4e38, np.inf])
    near = (edges.view(np.uint32)[:, None].astype(np.int64) + np.arange(-300, 300)).clip(0, 0x7F800001).astype(np.uint32)
    x = np.concatenate([rng.integers(0, 2**31, 250_000, dtype=np.uint32), near.reshape(-1)]).view(np.float32)
    return np.concatenate([x, -x, rng.uniform(-1, 1, 200_000).astype(np.float32), rng.uniform(-100, 100, 200_000).astype(np.float32)])


@pytest.mark.parametrize("name", MEASURED)
def test_error_in_float32(name):
    reference, most, _, _ = MEASURED[name]
    x = every_float(np.random.default_rng(5))
    with np.errstate(all="ignore"):
        r = reference(x.astype(np.float64))
        rounded = r.astype(np.float32)
    y = run(name, x)
    assert np.array_equal(np.isnan(y), np.isnan(rounded))
    finite = np.isfinite(rounded) & np.isfinite(y)
    odd = ~finite & ~np.isnan(y)
    assert np.array_equal(y[odd], rounded[odd]), "infinities sit where the reference's sit"
    if name not in ("log2", "log10", "cosh", "acos", "acosh"):
        assert (np.signbit(y) == np.signbit(x))[(x == 0)].all() or name == "exp2", "zeros keep their sign"
    error = np.abs(y[finite].astype(np.float64) - r[finite]) / ulp(r[finite], F32)
    assert error.max() <= most, f"{error.max():.3f} ulp at {x[finite][error.argmax()]!r}"


@pytest.mark.parametrize("name", MEASURED)
def test_error_in_float64(name):
    _, _, most, (low, high) = MEASURED[name]
    rng = np.random.default_rng(6)
    near = 10.0 ** rng.uniform(-12, 0, 60) * min(high, 1) + (1 if name == "acosh" else 0)
    x = np.concatenate([rng.uniform(low, high, 200), near, 1 - 10.0 ** rng.uniform(-15, -1, 60) if high == 1 else near])
    with mpmath.workdps(40):
        exact = {"exp2": lambda v: mpmath.mpf(2) ** v, "log2": lambda v: mpmath.log(v, 2)}.get(name) or getattr(mpmath, name)
        for value, y in zip(x, run(name, x)):
            r = exact(mpmath.mpf(float(value)))
            assert abs(mpmath.mpf(float(y)) - r) <= most * np.spacing(abs(float(r))), (value, y)


def test_exact_at_powers():
    n = np.arange(-126, 128, dtype=np.float32)
    assert np.array_equal(run("exp2", n), np.float32(2) ** n) and np.array_equal(run("log2", np.float32(2) ** n), n)
    assert np.array_equal(run("log10", 10.0 ** np.arange(23)), np.arange(23.0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_remainders_are_exact(dtype):
    """Against NumPy's, over quotients from far below 1 to far beyond 2^53, and the special values."""
    rng = np.random.default_rng(7)
    x, y = (rng.choice([-1, 1], 20_000) * 10.0 ** rng.uniform(-30, 30, 20_000) for _ in range(2))
    special_values = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 7.5])
    a, b = (v.reshape(-1) for v in np.meshgrid(special_values, special_values))
    x, y = np.concatenate([x, a]).astype(dtype), np.concatenate([y, b]).astype(dtype)
    with np.errstate(all="ignore"):
        for name, reference in (("fmod", np.fmod), ("remainder", np.remainder), ("floor_divide", np.floor_divide)):
            assert np.array_equal(run(name, x, y), reference(x, y), equal_nan=True), name


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8"])
def test_integer_division_never_traps(dtype):
    info = np.iinfo(dtype)
    v = np.array([info.min, info.max, 0, 1, 2, 7, info.max - 1] + ([-1, -2, -7] if info.min else []), dtype)
    x, y = (t.reshape(-1) for t in np.meshgrid(v, v))
    with np.errstate(all="ignore"):
        for name, reference in (("fmod", np.fmod), ("remainder", np.remainder), ("floor_divide", np.floor_divide)):
            assert np.array_equal(run(name, x, y), reference(x, y)), name


def test_atan2_knows_every_quadrant():
    v = np.float32([0.0, -0.0, 1, -1, np.inf, -np.inf, 1e-45, 3.4e38, -2])
    y, x = (t.reshape(-1) for t in np.meshgrid(v, v))
    got, want = run("atan2", y, x), np.arctan2(y.astype(np.float64), x.astype(np.float64)).astype(np.float32)
    assert np.array_equal(np.signbit(got), np.signbit(want)) and np.allclose(got, want, rtol=3e-7, atol=0)
