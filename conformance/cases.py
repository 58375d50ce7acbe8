"""Which cases there are: every operator x dtype x sample x layout x special values x out and aliasing x bad input x gradient
x determinism, by a deterministic covering choice instead of the full product.

An id (``softmax/f32/prime/transposed``, ``add/f32/bad/shapes``, ``sum/f16/probe/long``) says everything: inputs are drawn
from (id, seed).  Not here: how a case is run and judged (checks.py).
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..hal.dtype import BY_NAME, DType
from ..hal.errors import ArgumentError, HaianError
from ..kernels.ops import OPS, draw
from ..kernels.ops.budget import Composite, Conditioned, Exact, Index, Reduction
from ..kernels.ops.record import Bad, Op, Sample, Spec
from . import memory
from .compare import reference
from .levels import LEVELS, included, select

__all__ = [
    "Case",
    "SUITE_VERSION",
    "attributes",
    "cases",
    "count_cases",
    "counts",
    "digest",
    "find",
    "matching",
    "sample_of",
]

SUITE_VERSION = "1.0"  # a change of a case's meaning or of a budget is a new version
LARGE = 200_000  # elements; layouts, special values and out= are not tried on larger samples
GRADIENT_SIZE = 4000  # elements of all inputs; central differences call the reference twice a direction


@dataclass(frozen=True)
class Case:
    """One case.  preferred: of the operator's preferred dtype, so that a level needs it to pass."""

    id: str
    op: str
    dtype: str
    sample: str
    kind: str
    variant: str = ""
    level: str = "core"
    preferred: bool = True


def attributes(op: Op, given: dict[str, Any], dt: DType) -> dict[str, Any]:
    """Every attribute of a sample; operators without tensors take the case's dtype where they have such an attribute."""
    attrs = op.attributes(given)
    if "dtype" in attrs and "dtype" not in given and not op.tensors:
        attrs["dtype"] = dt
    return attrs


def _infer(op: Op, sample: Sample, dt: DType) -> tuple[Spec, ...] | None:
    """Result specs, None where the record does not accept this dtype with this sample."""
    try:
        out = op.infer(*draw.specs(sample, dt), **attributes(op, sample.attrs, dt))
    except HaianError:
        return None
    return out if isinstance(out, tuple) else (out,)


def _foreign(sample: Sample, preferred: DType) -> bool:
    """Whether a sample names a dtype that a chip need not have: float64, 8-bit floats, unsigned integers of more than 8 bits."""
    named = {x.dtype for x in _flat(sample.inputs)} | {v.name for v in sample.attrs.values() if isinstance(v, DType)}
    return bool({n for n in named if n and n != preferred.name and n.startswith(("float64", "float8", "uint16", "uint32", "uint64"))})


def _flat(inputs: Iterable[Any]) -> list[Any]:
    return [x for i in inputs if i is not None for x in (i if isinstance(i, tuple) else (i,))]


def _size(sample: Sample, dt: DType) -> int:
    return sum(s.size for s in _flat(draw.specs(sample, dt)))


def _pick(items: Sequence[Any], key: str, count: int = 1) -> list[Any]:
    """``count`` of the items, a different stretch for every key."""
    if not items:
        return []
    start = zlib.crc32(key.encode()) % len(items)
    return [items[(start + i) % len(items)] for i in range(min(count, len(items)))]


def _varied(op: Op, dt: DType, samples: list[Sample], count: int) -> list[Sample]:
    """A few samples: the largest, then one stretch of the others."""
    if len(samples) <= count:
        return samples
    largest = max(samples, key=lambda s: _size(s, dt))
    return [largest] + _pick([s for s in samples if s is not largest], f"{op.name}/{dt.short}", count - 1)


def _of(op: Op) -> list[Case]:
    found: dict[str, Case] = {}
    preferred = op.dtypes[0]
    foreign = {s.name for s in op.samples if _foreign(s, preferred)}

    def add(dt: DType, sample: str, kind: str, variant: str = "", level: str = "core") -> None:
        if kind in ("bad", "probe"):
            name = f"{op.name}/{dt.short}/{kind}/{sample}"
        else:
            name = f"{op.name}/{dt.short}/{sample}" + (f"/{variant or kind}" if kind != "value" or variant else "")
        needed = dt is preferred and sample not in foreign
        found.setdefault(name, Case(name, op.name, dt.name, sample, kind, variant, level, needed))

    for i, dt in enumerate(op.dtypes):
        specs = {s.name: r for s in op.samples if (r := _infer(op, s, dt)) is not None}
        valid = [s for s in op.samples if s.name in specs]
        if dt is not preferred:  # a sample that fixes all dtypes is the same in every dtype
            valid = [
                s
                for s in valid
                if (any(x.dtype in (None, "acc") for x in _flat(s.inputs)) if op.tensors else "dtype" not in s.attrs)
            ]
        once = [s for s in valid if s.level == "core" and s.cover == "once"]
        core = [s for s in valid if s.level == "core" and s.cover != "once"]
        small = [s for s in core if 0 < _size(s, dt) <= LARGE] or core
        main = dt is preferred
        for s in core + once if main else _varied(op, dt, core, 3) + [s for s in core if s.cover == "each"]:
            add(dt, s.name, "value")
        for s in valid:
            if s.level != "core" and (main or (dt.name == "bfloat16" and s.level != "full")):
                add(dt, s.name, "value", level=s.level)
        if op.tensors and not op.by_strides:
            _layouts(op, dt, i, small, main, add)
        if op.tensors:
            _values(op, dt, small, specs, main, add)
        _conventions(op, dt, small or valid, specs, main, add)
    for bad in op.bad:
        add(BY_NAME[bad.dtype], bad.name, "bad")
    return list(found.values())


def _layouts(op: Op, dt: DType, i: int, small: list[Sample], main: bool, add: Any) -> None:
    choice = memory.LAYOUTS if main else (memory.LAYOUTS[i % len(memory.LAYOUTS)],)
    for layout in choice:
        fit = [
            s for s in small if any(memory.fits(tuple(x.shape), layout) for x in _flat(s.inputs)) and _size(s, dt) > 3
        ]
        for s in _pick(fit, f"{op.name}/{dt.short}/{layout}", 2 if main else 1):
            add(dt, s.name, "value", layout)
    if main or dt.name == "bfloat16":  # each input in a layout of its own
        fit = [s for s in small if sum(memory.fits(tuple(x.shape), "offset") for x in _flat(s.inputs)) > 1 and _size(s, dt) > 3]
        for s in _pick(fit, f"{op.name}/{dt.short}/mixed", 2 if main else 1):
            add(dt, s.name, "value", "mixed")


def _values(op: Op, dt: DType, small: list[Sample], specs: dict, main: bool, add: Any) -> None:
    """Special values, other scales, the exact probe, gradients."""
    rule, key = op.budget, f"{op.name}/{dt.short}"
    floats = [s for s in small if any(draw.resolve(x, dt).is_floating and x.values is None for x in _flat(s.inputs))]
    open_ = (
        floats
        if dt.is_floating
        else [
            s for s in small if any(x.dtype is None and x.draw != "mask" and x.values is None for x in _flat(s.inputs))
        ]
        if dt.is_integer
        else []
    )
    # NaN and infinity have no integer; attention with NaN behind a mask has no single right answer
    open_ = [
        s
        for s in open_
        if not (dt.is_floating and any(r.dtype.is_integer for r in specs[s.name]) and not isinstance(rule, Index))
    ]
    # padding times an infinite weight is 0 to implementations that skip it and NaN to those that multiply
    spreads = op.family in ("attention", "attention_serve") or (op.family == "conv" and not isinstance(rule, Exact))
    if not spreads:
        for s in _pick([s for s in open_ if _size(s, dt) > 20] or open_, key + "/special", 2 if main else 1):
            add(dt, s.name, "special")
        for s in [
            s for s in open_ if main and sum(x.draw != "mask" for x in _flat(s.inputs)) == 1 and _size(s, dt) == 1
        ][:1]:
            add(dt, s.name, "special")
    drawn = [s for s in floats if any(x.draw in ("normal", "uniform") and x.dtype is None for x in _flat(s.inputs))]
    if isinstance(rule, (Conditioned, Reduction, Composite)) and dt.is_floating:
        for scale in ("tiny", "large") if main else _pick(("tiny", "large"), key + "/scale"):
            # statistics saved from other inputs ("acc") do not belong to scaled ones: exp(scores - logsumexp) overflows
            fit = [s for s in drawn if not any(x.dtype == "acc" for x in _flat(s.inputs))]
            for s in _pick(
                [s for s in fit if _size(s, dt) > 20] or fit,
                key + scale,
                2 if main and isinstance(rule, Conditioned) else 1,
            ):
                add(dt, s.name, "value", scale)
    if isinstance(rule, Reduction) and rule.probe and dt.is_floating:
        fit = [s for s in drawn if _exact_attributes(s) and specs[s.name][0].dtype is dt and _size(s, dt) > 8]
        longest = sorted(fit, key=lambda s: -_terms(op, s, dt))[:1]
        widest = sorted(fit, key=lambda s: -specs[s.name][0].size)[:1]
        for s in dict.fromkeys(x.name for x in longest + widest + (fit if main else [])):
            add(dt, s, "probe")
    if op.grad is not None and dt is (BY_NAME["float64"] if BY_NAME["float64"] in op.dtypes else op.dtypes[0]):
        fit = [
            s
            for s in small
            if 0 < _size(s, dt) <= GRADIENT_SIZE and specs[s.name][0].size and specs[s.name][0].dtype.is_floating
        ]
        for s in fit[:2] + _pick(fit[2:], key + "/gradient", 3):
            add(dt, s.name, "gradient")


def _conventions(op: Op, dt: DType, small: list[Sample], specs: dict, main: bool, add: Any) -> None:
    """out=, aliasing, wrong out, repeatability."""
    key = f"{op.name}/{dt.short}"
    sized = [s for s in small if specs[s.name][0].size > 1] or small
    if op.takes_out and main:
        for s in _pick(sized, key + "/out", 2):
            add(dt, s.name, "out")
        empty = [s for s in op.samples if s.name in specs and s.level == "core" and specs[s.name][0].size == 0]
        for s in empty[:1]:
            add(dt, s.name, "out")
        for variant in ("sliced", "transposed", "negative"):
            fit = [s for s in sized if memory.fits(specs[s.name][0].shape, variant)]
            for s in _pick(fit, key + "/out" + variant):
                add(dt, s.name, "out", f"out_{variant}")
        several = [s for s in sized if sum(memory.fits(r.shape, "offset") for r in specs[s.name]) > 1]
        for s in _pick(several, key + "/outmixed"):
            add(dt, s.name, "out", "out_mixed")
        for s in _pick(sized, key + "/wrong"):
            add(dt, s.name, "wrong_out", "out_shape")
            add(dt, s.name, "wrong_out", "out_dtype")
        for s in _pick([s for s in sized if any(n > 1 for n in specs[s.name][0].shape)], key + "/expanded"):
            add(dt, s.name, "wrong_out", "out_expanded")
        same = [s for s in sized if _like_an_input(s, dt, specs[s.name]) is not None]
        for s in _pick(same, key + "/alias", 2):
            add(dt, s.name, "alias")
        lying = [s for s in same if specs[s.name][0].shape]
        for s in _pick(lying, key + "/overlap", 2):
            add(dt, s.name, "alias", "overlap")
        # more than a tile, or the kernel has read everything before it writes
        for s in sorted((s for s in lying if 2 < specs[s.name][0].size <= 10_000), key=lambda s: specs[s.name][0].size)[-1:]:
            add(dt, s.name, "alias", "overlap_reversed")
    elif op.takes_out:
        for s in _pick(sized, key + "/out"):
            add(dt, s.name, "out")
    for s in _pick(sized, key + "/shares", 2) if op.views and main else ():
        add(dt, s.name, "shares")
    for s in _pick(sized, key + "/twice"):
        if main or dt.name in ("bfloat16", "float16", "int32"):
            add(dt, s.name, "twice")
    largest = sorted(sized, key=lambda s: -(_size(s, dt) or specs[s.name][0].size))[:1]
    for s in largest if main or dt.name == "bfloat16" else ():
        add(dt, s.name, "threads")
    if op.random and main:
        for s in _pick([s for s in sized if specs[s.name][0].size >= 32 and _chance(op, s, dt)], key + "/seed"):
            add(dt, s.name, "seed")


def _like_an_input(sample: Sample, dt: DType, specs: tuple[Spec, ...]) -> int | None:
    """Which input has the one result's shape and dtype."""
    if len(specs) != 1:
        return None
    for i, s in enumerate(draw.specs(sample, dt)):
        if isinstance(s, Spec) and s == specs[0] and s.size:
            return i
    return None


def _chance(op: Op, sample: Sample, dt: DType) -> bool:
    """Whether the reference's result depends on the seed: with p 0 or 1, or one number to choose from, nothing is left to it."""
    arrays, attrs = draw.inputs(sample, dt, np.random.default_rng(0)), attributes(op, sample.attrs, dt)
    results = [reference(op, arrays, attrs | {"seed": attrs["seed"] + more}) for more in (0, 1)]
    return any(a.tobytes() != b.tobytes() for a, b in zip(*results))


def _exact_attributes(sample: Sample) -> bool:
    return all(not isinstance(v, float) or (v * 2).is_integer() for v in sample.attrs.values())


def _terms(op: Op, sample: Sample, dt: DType) -> float:
    rule = op.budget
    assert isinstance(rule, Reduction)  # only sums have a probe
    return float(rule.terms(*draw.specs(sample, dt), **attributes(op, sample.attrs, dt))) if rule.terms else 1.0


# ---- the table ----------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=1)
def _all() -> dict[str, Case]:
    return {c.id: c for op in OPS.values() for c in _of(op)}


def cases(level: str = "core", ops: Sequence[str] = (), shard: tuple[int, int] = (1, 1)) -> list[Case]:
    """The cases of a level, of the operators and ids that match ``ops``, of one shard of n.

    Args:
        ops: patterns of operator names (``mm*``) or case ids (``softmax/f32/*``); none: all.
        shard: (i, n), 1 <= i <= n: every n-th case.

    Raises:
        ArgumentError: no such level, or a pattern that matches none of its cases.
    """
    levels = included(level)
    chosen = select(
        (c for c in _all().values() if c.level in levels),
        ops,
        lambda c, p: matching(c, (p,)),
        f"case of level {level}; `haian conformance list --level {level}` prints them",
    )
    return chosen[shard[0] - 1 :: shard[1]]


def matching(case: Case, patterns: Sequence[str]) -> bool:
    """Whether a case is meant by one of the patterns of operator names or case ids (no patterns: all are)."""
    long = case.id.replace(f"/{BY_NAME[case.dtype].short}/", f"/{case.dtype}/", 1)  # softmax/float32/...
    return not patterns or any(
        any(fnmatch.fnmatchcase(name, p) for name in ((case.id, long) if "/" in p else (case.op,))) for p in patterns
    )


def find(case_id: str) -> Case:
    """The case of an id.

    Raises:
        ArgumentError: the suite has no such case.
    """
    if case_id not in _all():
        raise ArgumentError(f"no case {case_id!r} in suite {SUITE_VERSION}; `haian conformance list --level full` prints them")
    return _all()[case_id]


def counts() -> dict[str, int]:
    """How many cases each level adds."""
    return {level: sum(c.level == level for c in _all().values()) for level in LEVELS}


def count_cases(op: Op) -> int:
    """How many cases an operator has in all levels."""
    return sum(c.op == op.name for c in _all().values())


def digest() -> str:
    """Names all case ids in 16 hexadecimal digits: reports of different suites are not comparable."""
    return hashlib.blake2b("\n".join(sorted(_all())).encode(), digest_size=8).hexdigest()


def sample_of(case: Case) -> Sample | Bad:
    """The record's sample, or bad input, behind a case."""
    op = OPS[case.op]
    return next(s for s in (op.bad if case.kind == "bad" else op.samples) if s.name == case.sample)
