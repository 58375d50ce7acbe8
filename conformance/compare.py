"""Decides whether a result is right: one function, ``judge``, for every operator, dtype and error class.

The classes are data (kernels/ops/budget.py); their reasons and measured rejection rates stand in docs/numerics.md.
Not here: which inputs are tried (cases.py) and how a device is called (target.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..hal.dtype import BY_NAME, DType
from ..hal.dtype import dtype as to_dtype
from ..kernels.ops import budget as classes
from ..kernels.ops.formula import read
from ..kernels.ops.record import Op, Spec

__all__ = ["Verdict", "judge", "reference", "result_specs", "rounded", "specs_of", "ulp", "uniform"]

PATTERNS = 8  # random runs that measure kappa: all of them below a tenth of its size has probability 2e-9 an element, with 4 it is 4e-5
RMS_FROM = 64  # outputs from which a root mean square is a sharp statistic (its own spread is then below 9 %)
SUM_FACTOR = 6.0  # c of the sqrt(n) bound: P(one right output refused) <= 2 exp(-c^2 / 2) = 3e-8 (Higham & Mary 2019)
SLACK = 0.1  # ulp over k: MKL's square root, which torch and many chips use, is off by up to 0.54; truncation is by 1
REDUCED = {"": 0.0, "tf32": 2.0**-11, "f16": 2.0**-11, "bf16": 2.0**-8, "bf16x2": 2.0**-15, "bf16x3": 2.0**-21}
_EMIN = {"float64": -1022, "float32": -126, "float16": -14, "bfloat16": -126, "float8_e4m3fn": -6, "float8_e5m2": -14}
_MAX = {
    "float64": 1.7976931348623157e308,
    "float32": 3.4028234663852886e38,
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float8_e4m3fn": 448.0,
    "float8_e5m2": 57344.0,
}


@dataclass(frozen=True)
class Verdict:
    """What judge says.  worst: largest error divided by what was allowed (0 exact, above 1 refused); metric: its name."""

    ok: bool
    message: str = ""
    worst: float = 0.0
    metric: str = ""


def ulp(r: np.ndarray, dt: DType) -> np.ndarray:
    """Spacing of ``dt`` around the float64 values r; never below its smallest subnormal."""
    a = np.abs(np.asarray(r, np.float64))
    _, e = np.frexp(np.where(np.isfinite(a), a, 0.0))
    e = np.maximum(np.where(a > 0, e - 1, _EMIN[dt.name]), _EMIN[dt.name])
    return np.ldexp(1.0, e - (dt.digits - 1))


def accumulator(dt: DType) -> DType:
    """The type arithmetic of ``dt`` is done in: float64 for itself, float32 for all narrower ones."""
    return dt if dt.digits > 24 else BY_NAME["float32"]


# ---- arguments and the reference ------------------------------------------------------------------------------------
def _each(fn, inputs: Sequence[Any]) -> tuple:
    return tuple(None if x is None else tuple(fn(y) for y in x) if isinstance(x, tuple) else fn(x) for x in inputs)


def _is_float(x: np.ndarray) -> bool:
    return to_dtype(x.dtype).is_floating


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if _is_float(x) else x


def specs_of(inputs: Sequence[Any]) -> tuple:
    """Specs of arrays; None and tuples of arrays keep their place."""
    return _each(lambda x: Spec(tuple(x.shape), to_dtype(x.dtype)), inputs)


def result_specs(op: Op, inputs: Sequence[Any], attrs: dict[str, Any]) -> tuple[Spec, ...]:
    """What the operator promises to return; raises what ``op.infer`` raises."""
    out = op.infer(*specs_of(inputs), **attrs)
    out = out if isinstance(out, tuple) else (out,)
    if op.dynamic is None:
        return out
    return tuple(Spec(r.shape, s.dtype) for r, s in zip(reference(op, inputs, attrs), out))  # infer gives the largest


def reference(op: Op, inputs: Sequence[Any], attrs: dict[str, Any], wide: bool = True) -> tuple[np.ndarray, ...]:
    """The record's reference on float64 copies of the inputs (``wide=False``: on the inputs as they are)."""
    with np.errstate(all="ignore"):
        out = op.reference(*(_each(_wide, inputs) if wide else inputs), **attrs)
    return tuple(np.asarray(o) for o in out) if isinstance(out, (tuple, list)) else (np.asarray(out),)


# ---- judging ----------------------------------------------------------------------------------------------------------
def judge(
    op: Op,
    inputs: Sequence[Any],
    attrs: dict[str, Any],
    got: Any,
    expected: Sequence[np.ndarray] | None = None,
    capabilities: object | None = None,
    probe: bool = False,
    constant: bool = False,
    factor: float = 1.0,
) -> Verdict:
    """Whether ``got`` is a right result of ``op`` on ``inputs``.

    Args:
        op: the record.
        inputs: NumPy arrays in their own dtypes, in schema order; None for an optional one, a tuple for a list.
        attrs: every attribute (``op.attributes(given)``).
        got: the result as an array, or a tuple of arrays.
        expected: the reference's results where the caller has them already.
        capabilities: ``reduced_matmul`` and ``flushes_subnormals`` are read from it; None: neither.
        probe: inputs are the integers of the exact probe: results must be the rounded exact ones.
        constant: inputs repeat along an axis (stride 0): every rounding of a sum then errs the same way, so that the bound is
            n u instead of sqrt(n) u.
        factor: a vendor's declared tolerance: every budget is multiplied by it (1: none; the report lists the others).

    Returns:
        Verdict; the message of a refusal names the output, how many elements, the worst one and what was allowed.
    """
    got = tuple(got) if isinstance(got, (tuple, list)) else (got,)
    specs = result_specs(op, inputs, attrs)
    expected = reference(op, inputs, attrs) if expected is None else tuple(expected)
    names = [f"result {i}" for i in range(len(specs))] if op.lists else [n or "result" for n in op.results]
    if len(got) != len(specs):
        return Verdict(False, f"returned {len(got)} results, needs {len(specs)}", math.inf, "results")
    worst = Verdict(True, "", 0.0, op.budget.letter)
    for i, (y, spec) in enumerate(zip(got, specs)):
        y = np.asarray(y)
        if to_dtype(y.dtype) is not spec.dtype:
            return Verdict(False, f"{names[i]} has dtype {y.dtype}, needs {spec.dtype}", math.inf, "dtype")
        if tuple(y.shape) != tuple(spec.shape):
            return Verdict(
                False, f"{names[i]} has shape {tuple(y.shape)}, needs {tuple(spec.shape)}", math.inf, "shape"
            )
        r = np.asarray(expected[i])
        if tuple(r.shape) != tuple(spec.shape):
            return Verdict(
                False,
                f"{op.name}: the record is wrong: its reference gives shape {tuple(r.shape)}, its infer "
                f"{tuple(spec.shape)}",
                math.inf,
                "record",
            )
        if y.dtype.kind == "b" and (strange := np.ascontiguousarray(y).view(np.uint8) > 1).any():
            return Verdict(False, f"{names[i]}: {int(strange.sum())} bools are neither 0 nor 1; was it written?", math.inf, "bool")
        verdict = _judge_one(op, inputs, attrs, i, y, r, spec, capabilities, probe, constant, factor)
        if not verdict.ok:
            return Verdict(False, f"{names[i]}: {verdict.message}", verdict.worst, verdict.metric)
        if verdict.worst >= worst.worst:
            worst = verdict
    return worst


def _judge_one(op, inputs, attrs, i, y, r, spec, capabilities, probe, constant, factor) -> Verdict:
    rule = op.budget
    if isinstance(rule, classes.Index) and not rule.stable:
        return _index(op, inputs, attrs, i, y, r)
    if not spec.dtype.is_floating:
        return _exact(y, r, False)
    if isinstance(rule, (classes.Exact, classes.Index)):  # the values that stable indices select
        return _exact(y, r, getattr(rule, "signed_zero", False))
    if probe:
        return _exact(y, r, False, "probe")
    if isinstance(rule, classes.Faithful) and rule.ties:
        verdict = _exact(y, rounded(r, spec.dtype), True, rule.letter)
        if not verdict.ok and getattr(capabilities, "flushes_subnormals", False):
            return _flushed(op, inputs, attrs, i, y, r, spec, _allowed(op, inputs, attrs, i, r, spec, None, False, 0), verdict)
        return verdict
    # kappa only widens a budget, and costs a run of the reference a pattern: ask for all of them where it matters.
    for patterns in {classes.Conditioned: (2, PATTERNS), classes.Composite: (0, PATTERNS)}.get(type(rule), (0,)):
        allowed = _allowed(op, inputs, attrs, i, r, spec, capabilities, constant, patterns)
        if allowed is None:
            return _exact(y, r, False)
        if factor != 1.0:
            allowed = _Allowed(allowed.most * factor, allowed.typical * factor, allowed.anything)
        verdict = _close(y, r, spec.dtype, allowed, rule.letter)
        if verdict.ok:
            break
    if not verdict.ok and getattr(capabilities, "flushes_subnormals", False) and spec.dtype.digits:
        verdict = _flushed(op, inputs, attrs, i, y, r, spec, allowed, verdict)
    return verdict


@dataclass(frozen=True)
class _Allowed:
    most: np.ndarray  # largest error of one element
    typical: np.ndarray  # root mean square over the outputs
    anything: np.ndarray | bool  # where an intermediate passes the largest finite number: no promise


def _allowed(op: Op, inputs, attrs, i, r, spec, capabilities, constant, patterns) -> _Allowed | None:
    """The budget of output i, elementwise; None: exact."""
    rule, dt = op.budget, spec.dtype
    acc, one = accumulator(dt), ulp(r, dt)
    low = dt.digits < 24
    twice = 2.0 if dt.digits > 24 else 1.0  # the float64 reference is no better than what it judges
    u = acc.roundoff * twice
    if isinstance(rule, classes.Faithful):
        k = rule.k_low if low and rule.k > 0.5 else rule.k
        tiny = 2.0 ** _EMIN[acc.name]
        under = (
            np.where(np.abs(r) < 2 * tiny, tiny, 0.0) if k > 0.5 else 0.0
        )  # 1 / (1 + exp(90)) has no float32 intermediate
        return _Allowed((k * twice + SLACK) * one + under, (0.5 if low else k * twice + SLACK) * one + under, False)
    if isinstance(rule, classes.Composite):
        m, overflow = _formula_magnitude(op, inputs, attrs, i, acc)
        if m is None:
            return None
        k = 1.0 if low else rule.k * twice
        with np.errstate(over="ignore", invalid="ignore"):
            m = np.where(np.isnan(m), 0.0, m)
            m = np.maximum(
                m, _kappa(op, inputs, attrs, i, r, patterns)
            )  # an early error may be amplified by later factors (gradients)
            # An intermediate below the smallest normal number may be lost, and is then multiplied by what follows.
            rest = rule.k * u * m + 2.0 ** _EMIN[acc.name] * np.maximum(
                1.0, np.maximum(m, _largest_input(inputs, r.shape))
            )
        return _Allowed(k * one + rest, (0.5 * one if low else k * one) + rest, ~np.isnan(r) & overflow)
    assert isinstance(rule, (classes.Conditioned, classes.Reduction))  # the rest returned above or compares exactly
    specs = specs_of(inputs)
    n = max(float(rule.terms(*specs, **attrs)), 1.0) if rule.terms else 1.0
    grown, usual = (max(SUM_FACTOR * math.sqrt(n), n), n) if constant else (SUM_FACTOR * math.sqrt(n), math.sqrt(n))
    u_in = (
        REDUCED[getattr(capabilities, "reduced_matmul", "") or ""]
        if dt.name == "float32" and op.family in ("matmul", "attention", "attention_serve", "conv", "moe")
        else 0.0
    )
    if isinstance(rule, classes.Reduction):
        s = _part(
            rule.magnitude(*_each(_wide, inputs), **attrs) if rule.magnitude else _on_positive(op, inputs, attrs, np.abs), i
        )
        if s is None:
            return None
        s = np.broadcast_to(np.where(np.isnan(s), math.inf, s), r.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            most = twice * one + grown * u * s
            typical = 0.5 * twice * one + 0.5 * usual * u * s
            if u_in:  # each factor off by u_in: a bias where it cuts (2 u |r|), and a random walk of root sum square q
                q = np.sqrt(_on_positive(op, inputs, attrs, np.square)[i])
                most = most + np.minimum(2 * s, 2 * np.abs(r) + 8 * q) * u_in
                typical = typical + (2 * np.abs(r) + 2 * q) * u_in
        return _Allowed(most, typical, np.isfinite(r) & ~(s < _MAX[acc.name]))
    if isinstance(rule, classes.Conditioned):
        kappa = _kappa(op, inputs, attrs, i, r, patterns)
        rounds = (
            3.0 * rule.roundings * dt.roundoff if low else 0.0
        )  # 3: a uniform rounding's extreme over kappa's spread
        most = rule.k * twice * one + kappa * (u + grown * u + 2 * u_in + rounds)
        typical = (0.5 * one if low else rule.k * twice * one) + kappa * (u + usual * u + u_in + rounds)
        return _Allowed(most, typical, ~np.isnan(r) & ~_stays_finite(op, inputs, attrs, i, acc))
    raise TypeError(f"{op.name}: budget class {type(rule).__name__} has no judge; add it to conformance/compare.py")


def rounded(r: np.ndarray, dt: DType) -> np.ndarray:
    """float64 values as ``dt`` holds them, rounded once to nearest even; ml_dtypes goes through float32."""
    r = np.asarray(r, np.float64)
    if dt.digits > 24:
        return r
    with np.errstate(all="ignore"):
        spacing = ulp(r, dt)
        return np.copysign(np.rint(r / spacing) * spacing, r).astype(dt.numpy)


def _part(value, i: int):
    return value[i] if isinstance(value, (tuple, list)) else value


def _on_positive(op: Op, inputs, attrs, fn) -> tuple[np.ndarray, ...]:
    """The reference on abs or square of the inputs, and of the attributes that multiply (alpha, beta, scale, value)."""
    plus = {
        k: float(fn(v)) if isinstance(v, float) and k in ("alpha", "beta", "scale", "value") else v for k, v in attrs.items()
    }
    positive = _each(lambda x: fn(_wide(x)) if _is_float(x) else x, inputs)
    return tuple(np.abs(np.asarray(s, np.float64)) for s in reference(op, positive, plus))


def _stays_finite(op: Op, inputs, attrs, i, acc: DType) -> np.ndarray:
    """Where finite inputs give results below the accumulator's largest number, in its own arithmetic."""
    if not all(np.isfinite(x.astype(np.float64)).all() for x in inputs if isinstance(x, np.ndarray) and _is_float(x)):
        return np.ones((), bool)  # hostile inputs: the reference decides
    narrow = _each(lambda x: x.astype(acc.numpy) if _is_float(x) else x, inputs)
    return np.abs(reference(op, narrow, attrs, wide=False)[i].astype(np.float64)) < _MAX[acc.name] / 4


def _formula_magnitude(op: Op, inputs, attrs, i, acc: DType) -> tuple[Any, Any]:
    """The largest intermediate of output i, elementwise, and where arithmetic in ``acc`` passes its largest number.

    Where the record's own formula overflows in the accumulator though the exact result is finite, nothing is promised:
    addcmul of 1e30 and 1e20 has no float32 intermediate.  A quarter of the largest number counts as passed: a right
    formula may double before it halves (gelu).
    """
    rule = op.budget
    assert isinstance(rule, classes.Composite)  # the caller's branch
    wide = _each(_wide, inputs)
    with np.errstate(all="ignore"):
        if rule.magnitude is not None:
            m = _part(rule.magnitude(*wide, **attrs), i)
            return (None, False) if m is None else (m, np.asarray(m) >= _MAX[acc.name] / 4)
        if op.formula is not None:
            body = read(op.formula).body(**attrs)
            narrow = _each(lambda x: x.astype(acc.numpy) if _is_float(x) else x, inputs)
            value = np.asarray(body.evaluate(*narrow, **attrs)[0])
            m = body.evaluate(*wide, **attrs)[1]
            finite = functools.reduce(np.logical_and, [np.isfinite(x) for x in wide if x is not None], np.True_)
            other = reference(op, narrow, attrs, wide=False)[
                i
            ]  # another right way to compute it may overflow elsewhere
            return m, ~(m < _MAX[acc.name] / 4) | (finite & ~(np.isfinite(value) & np.isfinite(other)))
    raise TypeError(f"{op.name}: class FC needs budget.magnitude where the record has no formula")


def _largest_input(inputs, shape) -> np.ndarray:
    """The largest finite float input at each element; of inputs that do not broadcast (one a channel), of all elements."""
    most = np.zeros(shape)
    for x in inputs:
        if isinstance(x, np.ndarray) and _is_float(x) and x.size:
            size = np.abs(x.astype(np.float64))
            size = np.where(np.isfinite(size), size, 0.0)
            try:
                most = np.maximum(most, np.broadcast_to(size, shape))
            except ValueError:
                most = np.maximum(most, size.max())
    return most


_EXACT_UFUNCS = frozenset(
    {
        np.maximum,
        np.minimum,
        np.fmax,
        np.fmin,
        np.negative,
        np.positive,
        np.absolute,
        np.fabs,
        np.sign,
        np.copysign,
        np.floor,
        np.ceil,
        np.rint,
        np.trunc,
    }
)


@functools.lru_cache(maxsize=1)
def _normals() -> np.ndarray:
    """Normal numbers to cut stretches from at random places: a third of the time of drawing each."""
    return np.random.default_rng(20240301).standard_normal(1 << 17)


def _noisy(rng: np.random.Generator, step: float) -> tuple[type[np.ndarray], Callable[[Any], Any]]:
    """An array type whose every rounded operation is off by a relative error of normal law, standard deviation ``step``.

    Also the function that puts one such error on a value.

    Signs alone would do for the size, but two of them cancel exactly half of the time, and all 8 patterns of one element do
    once in 256.
    """

    many = _normals()

    def shake(value):
        if not isinstance(value, (np.ndarray, np.floating)) or np.asarray(value).dtype.kind != "f":
            return value
        value = np.asarray(value)
        if value.size > many.size // 2:
            return value * (1.0 + step * rng.standard_normal(value.shape, dtype=np.float32).astype(np.float64))
        first = int(rng.integers(many.size - value.size))
        return value * (1.0 + step * many[first : first + value.size].reshape(value.shape))

    class Noisy(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *args, out=None, **kwargs):
            plain = [a.view(np.ndarray) if isinstance(a, Noisy) else a for a in args]
            if kwargs.get("where", True) is not True:
                kwargs["where"] = np.asarray(kwargs["where"])
            result = getattr(ufunc, method)(*plain, **kwargs)
            if ufunc not in _EXACT_UFUNCS:
                result = tuple(map(shake, result)) if isinstance(result, tuple) else shake(result)
            if out is not None:
                np.asarray(out[0])[...] = result
                return out[0]
            return result.view(Noisy) if isinstance(result, np.ndarray) else result

    return Noisy, shake


def _kappa(op: Op, inputs, attrs, i, r, patterns: int = PATTERNS) -> np.ndarray:
    """How far the result moves per unit of relative error in inputs and intermediates: largest of so many random runs.

    Inputs alone are not enough: layer_norm of two elements is +-1 however the inputs move, and still loses what
    x - mean(x) loses.  2**-30 keeps the difference above float64's own noise by 2**-23 and below any curvature that
    matters.  Of a pointwise operator both the reference and the formula are run: they may lose digits in other places.
    """
    rng, step = np.random.default_rng(20240229), 2.0**-30
    noisy, shake = _noisy(rng, step)
    ways = [lambda moved: reference(op, moved, attrs, wide=False)[i]]
    if op.formula is not None:
        ways.append(lambda moved: read(op.formula).body(**attrs).evaluate(*moved, **attrs)[0])
    kappa = np.zeros(r.shape)
    for way in ways:
        for _ in range(patterns):
            moved = _each(lambda x: shake(x.astype(np.float64)).view(noisy) if _is_float(x) else x, inputs)
            with np.errstate(all="ignore"):
                d = np.abs(np.asarray(way(moved)) - r) / step
            kappa = np.maximum(kappa, np.where(np.isfinite(d), d, 0.0))
    return kappa


# ---- the comparisons --------------------------------------------------------------------------------------------------
def _show(y, r, at, allowed=None) -> str:
    index = tuple(int(j) for j in at)
    text = f"at {index} got {y[at]!s}, expected {r[at]!s}"
    return text if allowed is None else f"{text}, allowed error {allowed[at]:.3g}"


def _first(bad: np.ndarray) -> tuple:
    return tuple(j[0] for j in np.nonzero(bad)) if bad.ndim else ()


def _exact(y: np.ndarray, r: np.ndarray, signed_zero: bool, metric: str = "E") -> Verdict:
    floating = to_dtype(y.dtype).is_floating
    if r.dtype != y.dtype:
        with np.errstate(all="ignore"):
            # references may count in a wider integer (overflow wraps as aten's does) or in float64
            r = rounded(r, to_dtype(y.dtype)).astype(y.dtype) if floating else r.astype(y.dtype)
    if y.shape == r.shape and y.tobytes() == r.tobytes():  # the usual case, and a tenth of what follows
        return Verdict(True, "", 0.0, metric)
    if floating:
        a, b = y.astype(np.float64), r.astype(np.float64)
        bad = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if signed_zero:
            bad |= (a == 0) & (b == 0) & (np.signbit(a) != np.signbit(b))
    else:
        a, b = y, r
        bad = np.asarray(a != b)
    if not bad.any():
        return Verdict(True, "", 0.0, metric)
    return Verdict(
        False, f"{int(bad.sum())} of {bad.size} differ ({metric}), {_show(a, b, _first(bad))}", math.inf, metric
    )


def _close(y: np.ndarray, r: np.ndarray, dt: DType, allowed: _Allowed, letter: str) -> Verdict:
    y, r = y.astype(np.float64), r.astype(np.float64)
    most = np.broadcast_to(allowed.most, r.shape)
    anything = np.broadcast_to(allowed.anything, r.shape)
    top = _MAX[dt.name]
    border = top * (1 + dt.roundoff / 2) if dt.digits <= 24 else math.inf  # rounds to infinity from here on
    with np.errstate(all="ignore"):
        must_nan, must_inf = np.isnan(r), np.isinf(r) | (np.abs(r) - most >= border)
        may_inf = np.abs(r) + most >= border
        wrong = np.isnan(y) != must_nan
        wrong |= ~must_nan & must_inf & ~(np.isinf(y) & (np.sign(y) == np.sign(r)))
        wrong |= ~must_nan & np.isinf(y) & ~(may_inf & (np.sign(y) == np.sign(r)))
    wrong &= ~anything
    if wrong.any():
        return Verdict(
            False,
            f"{int(wrong.sum())} of {wrong.size} have nan or infinity in the wrong place, {_show(y, r, _first(wrong))}",
            math.inf,
            "special",
        )
    finite = np.isfinite(y) & np.isfinite(r) & ~anything
    err = np.where(finite, np.abs(np.where(finite, y, 0) - np.where(finite, r, 0)), 0.0)
    with np.errstate(all="ignore"):
        ratio = np.where(err > 0, err / most, 0.0)
    worst = float(np.max(ratio, initial=0.0))
    bad = err > most * (1 + 1e-9)
    if bad.any():
        at = tuple(int(j) for j in np.unravel_index(int(np.argmax(ratio)), ratio.shape)) if ratio.ndim else ()
        return Verdict(
            False,
            f"{int(bad.sum())} of {bad.size} over budget, worst {worst:.3g}x ({letter}), {_show(y, r, at, most)}",
            worst,
            letter,
        )
    # Each error in units of its own typical one, so that no row's scale hides another's.  Results that cannot be missed
    # (zeros) are left out: they would dilute a truncating implementation.
    typical = np.broadcast_to(allowed.typical, r.shape)
    counted = finite & (r != 0) & (typical > 0) & np.isfinite(typical)
    if counted.sum() >= RMS_FROM:
        rms = math.sqrt(float(np.mean((err[counted] / typical[counted]) ** 2)))
        if rms > 1:
            return Verdict(
                False,
                f"rms error is {rms:.3g}x its budget over {int(counted.sum())} outputs (largest single error "
                f"{worst:.3g}x)",
                rms,
                "rms",
            )
    return Verdict(True, "", worst, letter)


def _flushed(op, inputs, attrs, i, y, r, spec, allowed, verdict) -> Verdict:
    """A device that declares flushed subnormals: inputs, results, or both may have become zero."""
    tiny = 2.0 ** _EMIN[spec.dtype.name]
    flush = _each(
        lambda x: (
            np.where(np.abs(x.astype(np.float64)) < 2.0 ** _EMIN[to_dtype(x.dtype).name], x * 0, x).astype(x.dtype)
            if _is_float(x)
            else x
        ),
        inputs,
    )
    other = reference(op, flush, attrs)[i]
    slack = np.where((np.abs(r) < tiny) | (np.abs(other) < tiny), tiny, 0.0)
    near = _Allowed(allowed.most + slack, allowed.typical + slack, allowed.anything)
    y64 = y.astype(np.float64)
    with np.errstate(all="ignore"):
        nearest = np.where(np.abs(other - y64) < np.abs(r - y64), other, r)
    return _close(y, nearest, spec.dtype, near, verdict.metric)


def _index(op: Op, inputs, attrs, i, y, r) -> Verdict:
    """Indices by the values that they select, none twice; values beside them exactly, in any order where ``sorted`` is False."""
    x, dim = np.asarray(inputs[0]), attrs.get("dim")
    if dim is None:
        x, dim, y, r = x.reshape(-1), 0, y.reshape(1), r.reshape(1)
    elif attrs.get("keepdim") is False and x.ndim:
        y, r = np.expand_dims(y, dim), np.expand_dims(r, dim)
    if x.ndim == 0:
        return _exact(y, r, False, "I")
    if len(op.results) > 1 and i == 0:
        taken, wanted = y, r.astype(y.dtype)
    else:
        if ((y < 0) | (y >= x.shape[dim])).any():
            return Verdict(False, f"an index is outside 0 <= i < {x.shape[dim]}", math.inf, "I")
        if (np.diff(np.sort(y, axis=dim), axis=dim) == 0).any():
            return Verdict(False, "an index stands twice in one line", math.inf, "I")
        taken, wanted = (np.take_along_axis(x, at.astype(np.int64), dim) for at in (y, r))
    if attrs.get("sorted") is False:
        taken, wanted = (np.sort(v.astype(np.float64) if _is_float(v) else v, axis=dim) for v in (taken, wanted))
    return _exact(taken, wanted, False, "I")


def uniform(y: np.ndarray) -> Verdict:
    """Whether y looks drawn from the uniform law on [0, 1): Kolmogorov-Smirnov, 64 bins, correlation of neighbours.

    alpha 1e-9 a test keeps the whole suite's below 1e-6 for up to 1000 of them.  The bits are compared with the
    reference's as well; this watches the reference itself.
    """
    from scipy import special  # not scipy.stats, whose import takes two seconds

    v, alpha, digits = np.sort(y.astype(np.float64).ravel()), 1e-9, to_dtype(y.dtype).digits
    counts, _ = np.histogram(v, bins=64, range=(0, 1))
    chi2 = float(((counts - v.size / 64) ** 2).sum() / (v.size / 64))
    z = (y.astype(np.float64).ravel() - v.mean()) / v.std()
    lag = float(np.mean(z[:-1] * z[1:])) * math.sqrt(v.size)
    p = min(float(special.gammaincc(63 / 2, chi2 / 2)), math.erfc(abs(lag) / math.sqrt(2)))
    if digits > 11:  # a narrower dtype has so few values that their steps show
        rank = np.arange(v.size) / v.size
        distance = float(max((v - rank).max(), (rank + 1 / v.size - v).max()))
        p = min(p, float(special.kolmogorov(math.sqrt(v.size) * distance)))
    return Verdict(
        p > alpha,
        "" if p > alpha else f"not uniform: p = {p:.2g}, needs more than {alpha:g}",
        alpha / max(p, 1e-300),
        "S",
    )
