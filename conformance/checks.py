"""Runs one case on one target and says what came of it.  Which cases there are: cases.py; what is right: compare.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..hal.dtype import BY_NAME, DType
from ..hal.dtype import dtype as to_dtype
from ..hal.errors import AliasError, DTypeError, HaianError, ShapeError
from ..kernels.ops import OPS, draw
from ..kernels.ops.budget import Composite, Conditioned, Reduction
from ..kernels.ops.record import Bad, In, Op, Sample
from . import memory
from .cases import Case, attributes, sample_of
from .compare import Verdict, judge, reference, result_specs, uniform
from .target import Target, unsupported

__all__ = ["Outcome", "run_case"]

# Below the epsilons of the norms; into the tails of erf and tanh, and past exp's range where a row is normalised.
SCALES = {"tiny": lambda rule: 2.0**-9, "large": lambda rule: 64.0 if isinstance(rule, Conditioned) else 16.0}


@dataclass(frozen=True)
class Outcome:
    """result: pass, fail, not-offered.  worst: error over budget.  ns: the operator's calls and the judging together.

    fallbacks: calls that the host computed for the device, of the operator itself and of those its gradient calls.
    """

    id: str
    result: str
    message: str = ""
    worst: float = 0.0
    metric: str = ""
    ns: int = 0
    fallbacks: int = 0

    def line(self) -> dict[str, Any]:
        return dict(vars(self))


class Refused(Exception):
    """A check failed; the text is the reason."""


def run_case(case: Case, target: Target, seed: int = 0, factor: float = 1.0) -> Outcome:
    """Run and judge one case.

    Args:
        factor: the vendor's declared tolerance for it (1: none).
    """
    op, dt = OPS[case.op], BY_NAME[case.dtype]
    missing = "" if case.kind == "bad" else target.offers(op, dt)  # what is refused need not be computable
    if missing:
        return Outcome(case.id, "not-offered", missing)
    before, start = target.fallbacks(), time.perf_counter_ns()
    try:
        verdict = _CHECKS[case.kind](Run(case, op, dt, target, seed, factor))
        result = Outcome(case.id, "pass", "", verdict.worst, verdict.metric)
    except Refused as why:
        worst = why.args[1] if len(why.args) > 1 else math.inf
        result = Outcome(case.id, "fail", why.args[0], worst, why.args[2] if len(why.args) > 2 else case.kind)
    except Exception as error:  # noqa: BLE001  whatever an implementation raises is a result, not the end of the run
        kind = "not-offered" if unsupported(error) else "fail"
        result = Outcome(
            case.id, kind, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", math.inf, case.kind
        )
    elapsed = time.perf_counter_ns() - start
    # of every operator: a gradient calls others, and what the host computed for one of them is no pass of the device's
    fell = {name: n - before.get(name, 0) for name, n in target.fallbacks().items() if n > before.get(name, 0)}
    if fell and result.result == "pass":
        said = ", ".join(f"{name} in {n} calls" for name, n in fell.items())
        result = Outcome(case.id, "not-offered", f"fell back to the host: {said}", result.worst, result.metric)
    return replace(result, ns=elapsed, fallbacks=sum(fell.values()))


@dataclass
class Run:
    """One case while it runs."""

    case: Case
    op: Op
    dt: DType
    target: Target
    seed: int
    factor: float

    def __post_init__(self) -> None:
        self.sample = sample_of(self.case)
        self.rng = memory.generator(self.case.id, self.seed)
        given = self.sample.attrs
        self.attrs = self.op.attributes(given) if self.case.kind == "bad" else attributes(self.op, given, self.dt)

    # ---- inputs --------------------------------------------------------------------------------------------------------
    def draws(self) -> tuple:
        return draw.inputs(Sample(self.sample.name, self.sample.inputs), self.dt, self.rng)

    def placed(self, arrays: tuple, layout: str = "contiguous") -> tuple:
        return _each(lambda x: memory.place(np.asarray(x), layout), arrays)

    def outputs(
        self, inputs: tuple, layout: str = "contiguous", expected: tuple[np.ndarray, ...] | None = None
    ) -> tuple[memory.Placed, ...]:
        """Memory for the results; with ``expected`` it holds what would not pass for them."""
        specs, found = result_specs(self.op, _views(inputs), self.attrs), []
        for i, s in enumerate(specs):
            one = memory.mixed(self.case.id, i) if layout == "mixed" else layout
            found.append(memory.place(np.empty(s.shape, s.dtype.numpy), "sliced" if one == "stride0" else one, fill=True))
            if expected is not None and expected[i].shape == s.shape:
                found[i].view[...] = memory.unlike(expected[i], s.dtype.numpy)
                found[i].freeze()
        return tuple(found)

    # ---- running and judging ---------------------------------------------------------------------------------------------
    def call(
        self, inputs: tuple, outs: tuple | None = None, attrs: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, ...]:
        return self.target.run(self.op, inputs, self.attrs if attrs is None else attrs, outs)

    def accept(self, arrays: tuple, got: tuple, **more: Any) -> Verdict:
        verdict = judge(
            self.op, arrays, self.attrs, got, capabilities=self.target.capabilities, factor=self.factor, **more
        )
        if not verdict.ok:
            raise Refused(verdict.message, verdict.worst, verdict.metric)
        return verdict

    def unchanged(self, inputs: tuple, but: memory.Placed | None = None) -> None:
        for i, p in enumerate(_flat(inputs)):
            if p is not but and (but is None or p.base is not but.base) and not p.untouched():
                raise Refused(f"input {i} was changed, or bytes beside it")

    def guarded(self, outs: tuple[memory.Placed, ...]) -> None:
        for i, p in enumerate(outs):
            if not p.guards_intact():
                raise Refused(f"bytes outside out {i} were written (shape {p.shape}, strides {p.strides})")


def _each(fn: Callable, inputs: tuple) -> tuple:
    return tuple(None if x is None else tuple(map(fn, x)) if isinstance(x, tuple) else fn(x) for x in inputs)


def _flat(inputs: tuple) -> list:
    return [x for i in inputs if i is not None for x in (i if isinstance(i, tuple) else (i,))]


def _views(inputs: tuple) -> tuple:
    return _each(lambda p: np.array(p.view), inputs)


# ---- the kinds of case ----------------------------------------------------------------------------------------------------
def _value(run: Run) -> Verdict:
    arrays = run.draws()
    if run.case.variant in SCALES:
        arrays = tuple(
            _scaled(x, i, SCALES[run.case.variant](run.op.budget)) for x, i in zip(arrays, run.sample.inputs)
        )
    if run.case.variant == "mixed":
        return _mixed(run, arrays)
    inputs = run.placed(arrays, run.case.variant if run.case.variant in memory.LAYOUTS else "contiguous")
    assert isinstance(run.sample, Sample)  # sample_of, for a case of this kind
    if run.sample.cover == "once" and run.target.set_threads(3):
        return _alone(run, inputs)
    return _compare(run, inputs, constant=run.case.variant == "stride0")


def _mixed(run: Run, arrays: tuple) -> Verdict:
    """Every input in another layout."""
    number = iter(range(10**6))

    def lay(x: Any) -> memory.Placed:
        x, layout = np.asarray(x), memory.mixed(run.case.id, next(number))
        # places and ends that belong together would not after the first of them is repeated
        return memory.place(x, layout if layout != "stride0" or to_dtype(x.dtype).is_floating else "sliced")

    inputs = _each(lay, arrays)
    return _compare(run, inputs, constant=any(0 in p.strides for p in _flat(inputs)))


def _alone(run: Run, inputs: tuple) -> Verdict:
    """A value on three threads (set by the caller) and on one: the same bits."""
    try:
        first = run.call(inputs)
        run.target.set_threads(1)
        _same_bits(run.call(inputs), first, "3 threads gave other bits than 1")
    finally:
        run.target.set_threads(0)
    run.unchanged(inputs)
    return run.accept(_views(inputs), first)


def _scaled(x: Any, i: In | tuple | None, factor: float) -> Any:
    if isinstance(i, In) and i.draw in ("normal", "uniform") and i.dtype is None and i.values is None:
        with np.errstate(all="ignore"):
            return (x.astype(np.float64) * factor).astype(x.dtype)
    return x


def _compare(run: Run, inputs: tuple, **more: Any) -> Verdict:
    arrays = _views(inputs)
    got = run.call(inputs)
    run.unchanged(inputs)
    return run.accept(arrays, got, **more)


def _special(run: Run) -> Verdict:
    """Special values in every drawn input where results are elementwise, in one of them where they spread."""
    arrays = list(run.draws())
    floating = run.dt.is_floating
    open_ = [
        i
        for i, (x, s) in enumerate(zip(arrays, run.sample.inputs))
        if isinstance(x, np.ndarray)
        and s.values is None
        and (to_dtype(x.dtype).is_floating if floating else s.dtype is None and to_dtype(x.dtype).is_integer)
    ]
    rule = run.op.budget
    kinds = "moderate" if isinstance(rule, Composite) and len(open_) > 1 else "all"
    if isinstance(rule, (Conditioned, Reduction)) and open_:  # lists of tensors are left as they are
        open_ = [open_[int(run.rng.integers(len(open_)))]]
        kinds = "infinite" if isinstance(rule, Reduction) or run.op.family == "softmax" and len(arrays) == 1 else "nan"
    for i, x in zip(open_, memory.sprinkle([arrays[i] for i in open_], run.rng, kinds)):
        arrays[i] = x
    return _compare(run, run.placed(tuple(arrays)))


def _probe(run: Run) -> Verdict:
    """Integer inputs whose every partial sum is exact: equality, whatever the order of summation."""
    arrays = list(run.draws())
    rule, specs = run.op.budget, _each(lambda x: _spec(x), tuple(arrays))
    assert isinstance(rule, Reduction)  # only sums have a probe
    n = int(rule.terms(*specs, **run.attrs)) if rule.terms else 1
    factors, ones = _factors(run.op, arrays), _ones(run)
    for i, x in enumerate(arrays):
        if isinstance(x, np.ndarray) and to_dtype(x.dtype) is run.dt and run.sample.inputs[i].values is None:
            axis, turn = factors.get(i, (None, 0))
            arrays[i] = memory.integers(x.shape, run.dt, n, run.rng, axis, turn)
            if i in ones:
                arrays[i] = np.where(x < 0, -1, 1).astype(x.dtype)
    return _compare(run, run.placed(tuple(arrays)), probe=True)


def _factors(op: Op, arrays: list) -> dict[int, tuple[int, int]]:
    """Of a matrix product: position of each factor -> (axis summed over, turn)."""
    if op.family != "matmul" and op.name != "grouped_mm":
        return {}
    names = [p.name for p in op.tensors]
    if "weight" in names:  # linear: rows of weight
        return {0: (-1, 0), names.index("weight"): (-1, 1)}
    a, b = (0, 1) if len(names) == 2 or names[0] == "a" else (1, 2)
    return {a: (-1, 0), b: (-2 if arrays[b].ndim > 1 else -1, 1)}


def _ones(run: Run) -> tuple[int, ...]:
    """Of a convolution: the factors that are -1 or 1, so that each product keeps the bits of the other; the input (or dy) or
    the weight, turn and turn about from case to case (its sums run over several axes at once, unlike a matrix product's)."""
    names = [p.name for p in run.op.tensors]
    if run.op.family != "conv" or "weight" not in names:
        return ()
    first = [names.index("dy") if "dy" in names else 0]
    other = [i for i, name in enumerate(names) if i not in first and name != "bias"]
    return tuple(first if run.rng.integers(2) else other)


def _spec(x: np.ndarray):
    from ..kernels.ops.record import Spec

    return Spec(tuple(x.shape), to_dtype(x.dtype))


def _out(run: Run) -> Verdict:
    inputs = run.placed(run.draws())
    arrays = _views(inputs)
    expected = reference(run.op, arrays, run.attrs)
    outs = run.outputs(inputs, run.case.variant.removeprefix("out_") or "contiguous", expected)
    got = run.call(inputs, outs)
    run.unchanged(inputs)
    run.guarded(outs)
    return run.accept(arrays, got, expected=expected)


def _alias(run: Run) -> Verdict:
    """out is an input, or lies one element beside it, or so and backwards: the right result or AliasError with nothing written."""
    arrays = run.draws()
    spec = result_specs(run.op, arrays, run.attrs)[0]
    at = next(i for i, x in enumerate(arrays) if isinstance(x, np.ndarray) and _spec(x) == spec)
    inputs = list(run.placed(tuple(np.array(x, order="C") if isinstance(x, np.ndarray) else x for x in arrays)))
    shared = inputs[at]
    strides, offset = shared.strides, shared.offset + bool(run.case.variant)
    if run.case.variant == "overlap_reversed":  # begins behind the input's end and reaches back into it
        offset += sum((n - 1) * s for n, s in zip(shared.shape, strides))
        strides = tuple(-s for s in strides)
    out = memory.Placed(shared.base, shared.shape, strides, offset, shared.fresh)
    before = _views(tuple(inputs))
    try:
        got = run.call(tuple(inputs), (out if run.case.variant else shared,))
    except AliasError:
        if not shared.untouched():
            raise Refused("refused the aliased out, but wrote to it first") from None
        return Verdict(True, "", 0.0, "refused")
    run.unchanged(tuple(inputs), but=shared)
    run.guarded((out,))
    return run.accept(before, got)


def _wrong_out(run: Run) -> Verdict:
    inputs = run.placed(run.draws())
    good = run.outputs(inputs)
    first = good[0]
    error: type[HaianError]
    layout = "contiguous"
    if run.case.variant == "out_shape":
        wrong, error = np.empty((*first.shape, 2), first.base.dtype), ShapeError
    elif run.case.variant == "out_expanded":  # two results in one place
        wrong, error, layout = np.empty(first.shape, first.base.dtype), AliasError, "stride0"
    else:
        other = "float64" if to_dtype(first.base.dtype).name != "float64" else "int32"
        wrong, error = np.empty(first.shape, BY_NAME[other].numpy), DTypeError
    outs = (memory.place(wrong, layout, fill=True), *good[1:])
    _refusal(run, lambda: run.call(inputs, outs), error, ())
    for p in outs:
        if not p.untouched():
            raise Refused(f"refused the wrong out ({run.case.variant}), but wrote to it")
    run.unchanged(inputs)
    return Verdict(True, "", 0.0, "refused")


def _refusal(run: Run, call: Callable[[], Any], error: type[Exception], words: tuple[str, ...]) -> None:
    try:
        call()
    except error as e:
        text = str(e)
        lacking = [w for w in words if w not in text]
        if lacking:
            raise Refused(f"the {error.__name__} says {text!r}; it needs {', '.join(map(repr, lacking))}") from None
        if "\n" in text or not text:
            raise Refused(f"the {error.__name__} needs one line of text, says {text!r}") from None
        return
    except HaianError as e:
        if unsupported(e):
            raise
        raise Refused(f"raised {type(e).__name__} ({e}); needs {error.__name__}") from None
    raise Refused(f"was accepted; needs {error.__name__}")


def _bad(run: Run) -> Verdict:
    """Refused with the right error, nothing written, and the operator still works afterwards."""
    bad = run.sample
    assert isinstance(bad, Bad)  # sample_of, for a case of this kind
    inputs = run.placed(run.draws())
    _refusal(run, lambda: run.call(inputs), bad.error, bad.words)
    run.unchanged(inputs)
    alive = next((s for s in run.op.samples if s.level == "core"), None)
    if alive is not None:
        dt = run.op.dtypes[0]
        arrays = draw.inputs(alive, dt, run.rng)
        attrs = attributes(run.op, alive.attrs, dt)
        verdict = judge(
            run.op, arrays, attrs, run.call(run.placed(arrays), attrs=attrs), capabilities=run.target.capabilities
        )
        if not verdict.ok:
            raise Refused(f"wrong after an error was raised: {verdict.message}")
    return Verdict(True, "", 0.0, "refused")


def _twice(run: Run) -> Verdict:
    inputs = run.placed(run.draws())
    first = run.call(inputs)
    for _ in range(2):
        _same_bits(first, run.call(inputs), "the same call gave other bits")
    return run.accept(_views(inputs), first)


def _threads(run: Run) -> Verdict:
    inputs = run.placed(run.draws())
    if not run.target.set_threads(1):
        return _twice(run)
    try:
        first = run.call(inputs)
        for n in (2, 3):
            run.target.set_threads(n)
            _same_bits(first, run.call(inputs), f"{n} threads gave other bits than 1")
    finally:
        run.target.set_threads(0)
    return run.accept(_views(inputs), first)


def _same_bits(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...], message: str) -> None:
    for x, y in zip(a, b):
        if x.tobytes() != y.tobytes():
            raise Refused(message)


def _shares(run: Run) -> Verdict:
    inputs = run.placed(run.draws())
    if not run.target.shares(run.op, inputs, run.attrs):
        raise Refused("the result is a copy; it needs to be a view on its input's memory")
    return run.accept(_views(inputs), run.call(inputs))


def _seed(run: Run) -> Verdict:
    """The same (seed, offset) gives the same bits, another one others (unless p leaves nothing to chance)."""
    inputs = run.placed(run.draws())
    first = run.call(inputs)
    _same_bits(first, run.call(inputs), "the same seed gave other bits")
    for change in (
        {"seed": run.attrs["seed"] + 1},
        {"seed": run.attrs["seed"] + 2**32},
        {"offset": run.attrs["offset"] + 1},
    ):
        other = run.call(inputs, attrs=run.attrs | change)
        if not _chance(run, inputs, change):
            continue
        if all(x.tobytes() == y.tobytes() for x, y in zip(first, other)):
            raise Refused(f"{next(iter(change))} is ignored: another one gave the same bits")
    if run.op.name == "rand" and first[0].size >= 1000:
        law = uniform(first[0])
        if not law.ok:
            raise Refused(law.message, law.worst, law.metric)
    return run.accept(_views(inputs), first)


def _chance(run: Run, inputs: tuple, change: dict[str, int]) -> bool:
    arrays = _views(inputs)
    pairs = zip(reference(run.op, arrays, run.attrs), reference(run.op, arrays, run.attrs | change))
    return any(a.tobytes() != b.tobytes() for a, b in pairs)


# ---- gradients ------------------------------------------------------------------------------------------------------------
def _gradient(run: Run) -> Verdict:
    """op.grad on the target against central differences of the reference in float64, along random directions.

    dy is the gradient of the first result (records' convention).  Each input is moved alone, so that no gradient hides
    another.  Tolerance: 1e-6 of sum(|gradient * direction|) for curvature (h = 1e-6 squared) and rounding, and 1e-9 of
    sum(|dy * y|), which is float64's roundoff over h; a target without float64 is held to 1e-3.
    """
    op, arrays = run.op, _smooth(run)
    y = reference(op, arrays, run.attrs)
    dy = tuple(
        run.rng.standard_normal(v.shape).astype(s.dtype.numpy) if s.dtype.is_floating else v
        for v, s in zip(y, result_specs(op, arrays, run.attrs))
    )
    _, grads = run.target.gradient(op, arrays, run.attrs, dy[0])
    if len(grads) != len(op.tensors):
        raise Refused(f"grad returned {len(grads)} gradients for {len(op.tensors)} tensors")
    if not np.isfinite(y[0]).all():
        return Verdict(True, "", 0.0, "gradient")  # no slope where there is no value (a mean of nothing)
    weight, worst = dy[0].astype(np.float64), 0.0
    relative = 1e-6 if run.dt.name == "float64" else 1e-3
    noise = float(np.sum(np.abs(weight * y[0]))) * relative * 1e-3
    for i, g in enumerate(grads):
        pairs = (
            [(None, arrays[i], g)]
            if not isinstance(arrays[i], tuple)
            else [(j, x, g[j]) for j, x in enumerate(arrays[i])]
        )
        for j, x, one in pairs:
            if one is None or x is None or not to_dtype(x.dtype).is_floating:
                continue
            if tuple(one.shape) != tuple(x.shape):
                raise Refused(f"gradient of {op.tensors[i].name} has shape {tuple(one.shape)}, needs {tuple(x.shape)}")
            if to_dtype(one.dtype) is not to_dtype(x.dtype):
                raise Refused(f"gradient of {op.tensors[i].name} has dtype {one.dtype}, needs {x.dtype}")
            for _ in range(2):
                size = np.clip(np.abs(x), 0.01, None)  # steps in proportion, so that 1 / x stays straight near 0
                direction = np.where(np.isfinite(x), run.rng.standard_normal(x.shape) * size, 0.0)
                slope = _slope(op, arrays, run.attrs, weight, i, j, direction)
                found = np.where(direction == 0, 0.0, one.astype(np.float64)) * direction
                allowed = relative * float(np.sum(np.abs(found))) + noise + 1e-9
                error = abs(float(np.sum(found)) - slope)
                worst = max(worst, error / allowed)
                if not error <= allowed:
                    raise Refused(
                        f"gradient of {op.tensors[i].name}: slope {float(np.sum(found)):.9g} along a random direction, "
                        f"central differences give {slope:.9g}, allowed error {allowed:.2g}",
                        error / allowed,
                        "gradient",
                    )
    return Verdict(True, "", worst, "gradient")


def _smooth(run: Run) -> tuple:
    """Inputs at which the operator has a derivative: no special values; inside (0.1, 0.9) where its domain needs it."""
    plain = tuple(_each(_without_wide, (i,))[0] if i is not None else None for i in run.sample.inputs)
    arrays = draw.inputs(Sample(run.sample.name, plain), run.dt, run.rng)
    if all(np.isfinite(v).all() for v in reference(run.op, arrays, run.attrs) if v.dtype.kind == "f"):
        return arrays
    return _each(
        lambda x: (
            run.rng.uniform(0.1, 0.9, x.shape).astype(x.dtype)
            if to_dtype(x.dtype).is_floating and np.isfinite(x).all()
            else x
        ),
        arrays,
    )


def _without_wide(i: In) -> In:
    return In(i.shape, "normal", i.dtype, i.high, i.values, i.layout) if i.draw == "wide" else i


def _slope(
    op: Op, arrays: tuple, attrs: dict[str, Any], weight: np.ndarray, i: int, j: int | None, direction: np.ndarray
) -> float:
    h, values = 1e-6, []
    for sign in (1.0, -1.0):
        moved = list(arrays)
        x = arrays[i] if j is None else arrays[i][j]
        step = x.astype(np.float64) + sign * h * direction
        moved[i] = step if j is None else (*arrays[i][:j], step, *arrays[i][j + 1 :])
        values.append(float(np.sum(weight * reference(op, tuple(moved), attrs)[0])))
    return (values[0] - values[1]) / (2 * h)


_CHECKS: dict[str, Callable[[Run], Verdict]] = {
    "value": _value,
    "special": _special,
    "probe": _probe,
    "out": _out,
    "alias": _alias,
    "wrong_out": _wrong_out,
    "bad": _bad,
    "twice": _twice,
    "threads": _threads,
    "seed": _seed,
    "shares": _shares,
    "gradient": _gradient,
}
