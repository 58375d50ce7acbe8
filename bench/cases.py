"""Which rows a suite has: operator, sample and dtype, taken from the records; and their inputs in memory.

Not here: how they are timed (timer.py) and who computes them (runner.py, peers.py).
"""
from __future__ import annotations

import fnmatch
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..hal.dtype import BY_NAME, DType
from ..hal.errors import ArgumentError
from ..kernels.ops import OPS
from ..kernels.ops.draw import attributes, draw, specs
from ..kernels.ops.record import Cost, In, Op, Sample, Spec

__all__ = ["BUDGET_S", "SUITES", "Case", "cases", "empty_host", "host_inputs"]

SUITES = ("quick", "full", "llm", "vision", "calls")
BUDGET_S = {"quick": 0.4, "full": 0.8, "llm": 0.8, "vision": 0.8, "calls": 0.06}  # a row, after everyone's first rounds

_BF16, _F16, _F32 = (BY_NAME[n] for n in ("bfloat16", "float16", "float32"))
_LOW_PRECISION = {"quick": ("matmul", "attention"), "full": ("matmul", "attention", "norm", "softmax"),
                  "llm": ("matmul", "attention", "norm", "softmax", "index"), "vision": ("matmul",), "calls": ()}
_LOW_OPS = {"full": ("add", "mul", "exp", "gelu", "silu"), "llm": ("silu", "mul", "add")}
CALL_SIZE = 16
BLOCK = 1 << 20  # elements drawn; larger inputs repeat them row by row, which no kernel here can notice


@dataclass(frozen=True)
class Case:
    """One row: a sample of an operator in one dtype."""

    record: Op
    sample: Sample
    dtype: DType
    suite: str

    @property
    def id(self) -> str:
        return f"{self.record.name}/{self.sample.name}/{self.dtype.name}"

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """Every attribute of the call."""
        return attributes(self.record, self.sample.attrs, self.dtype)

    @cached_property
    def inputs(self) -> tuple[Any, ...]:
        """Specs of the inputs: None where not given, a tuple for a list of tensors."""
        return specs(self.sample, self.dtype)

    @cached_property
    def outputs(self) -> tuple[Spec, ...]:
        """Specs of the results."""
        found = self.record.infer(*self.inputs, **self.attrs)
        return found if isinstance(found, tuple) else (found,)

    @cached_property
    def cost(self) -> Cost:
        """Least arithmetic and bytes of the call, by the record."""
        if self.record.cost is None:
            return Cost(0, 0)
        return self.record.cost(self.dtype.itemsize, *self.inputs, **self.attrs)

    @property
    def written(self) -> int:
        """Bytes of the results."""
        return sum(s.size * s.dtype.itemsize for s in self.outputs)


def _bytes(sample: Sample) -> int:
    flat = [i for group in sample.inputs if group is not None for i in (group if isinstance(group, tuple) else (group,))]
    return sum(math.prod(i.shape) for i in flat)


def _samples(record: Op, suite: str) -> list[Sample]:
    """full: an operator whose record marks none is timed on its largest sample, so that every operator has a row."""
    if suite == "calls":
        return _calls(record)
    marked = [s for s in record.samples if suite in s.bench]
    return marked if marked or suite != "full" or not record.takes_out else [max(record.samples, key=_bytes)]


def _calls(record: Op) -> list[Sample]:
    """16 elements, with and without out=: what a call costs before it computes anything."""
    if record.family not in ("pointwise", "reduce", "softmax"):
        return []
    like = record.samples[-1] if record.family == "reduce" else next(s for s in reversed(record.samples) if "full" in s.bench)
    ins = tuple(None if i is None else replace(i, shape=(CALL_SIZE,), values=None, layout="") for i in like.inputs)
    attrs = like.attrs
    if record.family == "reduce":  # all axes, or the only one where the operator wants one named
        attrs = {p.name: 0 for p in record.attrs if p.name == "dim" and p.default is inspect.Parameter.empty}
    return [Sample(f"call_{CALL_SIZE}", ins, attrs), Sample(f"call_{CALL_SIZE}_allocating", ins, attrs)]


def _dtypes(record: Op, sample: Sample, suite: str) -> list[DType]:
    if record.name == "cast" and sample.attrs["dtype"] is _F32 and suite != "calls":
        return [_F16, _BF16]
    first = record.dtypes[0]
    low = _BF16 in record.dtypes and (record.family in _LOW_PRECISION[suite] or record.name in _LOW_OPS.get(suite, ()))
    return [first, _BF16] if low else [first]


def cases(suite: str = "quick", ops: str = "") -> list[Case]:
    """The rows of a suite, in the order of the records.

    Args:
        ops: only these operators, comma separated patterns such as ``softmax,mm*``.

    Raises:
        ArgumentError: no such suite, or a pattern that matches none of its cases.
    """
    if suite not in SUITES:
        raise ArgumentError(f"bench: suite {suite!r}; needs one of {', '.join(SUITES)}")
    patterns = [p.strip() for p in ops.split(",") if p.strip()]
    if ops and not patterns:
        raise ArgumentError(f"bench: ops {ops!r} names nothing; needs names or patterns, comma separated, such as 'softmax,mm*'")
    found = [Case(record, sample, d, suite) for record in OPS.values() for sample in _samples(record, suite)
             for d in _dtypes(record, sample, suite)]
    idle = [p for p in patterns if not any(fnmatch.fnmatchcase(c.record.name, p) for c in found)]
    if idle:
        raise ArgumentError(f"bench: {', '.join(map(repr, idle))} matches no case of suite {suite!r}; `haian ops list` names the operators")
    return [c for c in found if not patterns or any(fnmatch.fnmatchcase(c.record.name, p) for p in patterns)]


def empty_host(shape: Sequence[int], kind: Any) -> np.ndarray:
    """Host memory for one array, from haian's allocator whoever uses it: equal alignment and page size for all."""
    from ..hal.tensor import empty
    memory: Any = empty(tuple(shape), np.dtype(kind))
    return memory.numpy()


def _fill(i: In, case: DType, rng: np.random.Generator) -> np.ndarray:
    shape = i.shape if i.layout != "transposed" else (*i.shape[:-2], i.shape[-1], i.shape[-2])
    size = math.prod(shape)
    whole = i.values is not None or i.draw == "distinct" or size <= BLOCK
    rows = 0 if whole else max(1, BLOCK // shape[-1])
    block = draw(replace(i, shape=shape if whole else (rows, shape[-1]), layout=""), case, rng)
    out = empty_host(shape, block.dtype)
    if whole:
        out[...] = block
    else:
        flat = out.reshape(-1, shape[-1])
        for start in range(0, len(flat), rows):
            flat[start:start + rows] = block[:len(flat) - start]
    return out.swapaxes(-1, -2) if i.layout == "transposed" else out


def host_inputs(case: Case, seed: int = 0) -> tuple[Any, ...]:
    """Arrays of a case's inputs in schema order; every contestant reads these very bytes."""
    rng = np.random.default_rng(seed)

    def one(i: In | None) -> Any:
        return None if i is None else _fill(i, case.dtype, rng)

    groups: Sequence[Any] = case.sample.inputs
    return tuple(tuple(one(i) for i in g) if isinstance(g, tuple) else one(g) for g in groups)
