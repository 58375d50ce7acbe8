"""Whether a contestant computed the case: its result against the record's reference, before anything is timed.

A kernel that computes something else, or nothing, has no time.  Not here: budgets of rounding (haian.conformance decides
those); the tolerances below only tell one computation from another.
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..hal.errors import EnvironmentMissing, InternalError
from ..kernels.ops.record import Spec
from .cases import Case

__all__ = ["CHECKED", "expected", "proved", "same", "spoil", "spoiled"]

CHECKED = 4096  # results compared on at most this many elements, evenly spread
# relative to the largest magnitude
CLOSE = {"float64": 1e-6, "float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
LAW = 1000  # elements from which on the mean of a random result says something


def _pick(size: int) -> np.ndarray:
    return np.linspace(0, size - 1, min(size, CHECKED)).astype(np.int64) if size else np.zeros(0, np.int64)


def _wide(x: Any) -> Any:
    if x is None or isinstance(x, tuple):
        return x and tuple(map(_wide, x))
    return x if x.dtype.kind in "iub" else x.astype(np.float64)


def expected(case: Case, arrays: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    """The reference's results, float64 or exact, on an evenly spread part of each.

    Of a pointwise operator only that part is computed: 16 million elements in float64 take seconds.

    Raises:
        EnvironmentMissing: the reference needs a library that is not installed.
    """
    record = case.record
    if record.formula is not None:
        shape = case.outputs[0].shape or (1,)
        at = np.unravel_index(_pick(math.prod(shape)), shape) if math.prod(shape) else (slice(0, 0),) * len(shape)
        arrays = tuple(None if x is None else np.broadcast_to(x, shape)[at] for x in arrays)
    try:
        with np.errstate(all="ignore"):
            found = record.reference(*_wide(arrays), **case.attrs)
    except ImportError as missing:
        raise EnvironmentMissing(f"{record.name}: its reference needs {missing.name}, so no time could be trusted; install haian[bench]") from missing
    values = [np.asarray(v) for v in (found if isinstance(found, (tuple, list)) else (found,))]
    return tuple(v.reshape(-1) if record.formula is not None else v.reshape(-1)[_pick(v.size)] for v in values)


def same(got: Any, want: tuple[np.ndarray, ...], case: Case, ours: bool = True) -> bool:
    """Whether results are those of ``expected``.  Of random operators only haian's bits are the standard's (``ours``)."""
    results = got if isinstance(got, (tuple, list)) else (got,)
    return all(_close(np.asarray(y), r, spec, case, ours) for y, r, spec in zip(results, want, case.outputs))


def _close(y: np.ndarray, r: np.ndarray, spec: Spec, case: Case, ours: bool) -> bool:
    if y.size != math.prod(spec.shape):
        return False
    y = y.reshape(-1)[_pick(y.size)]
    name = spec.dtype.name
    if case.record.random and not ours:
        # as many drawn, within six standard deviations of a mean: 6 * 0.5 / sqrt(size)
        return y.size < LAW or abs(np.mean(_wide(y) != 0) - np.mean(r != 0)) < 3 / math.sqrt(y.size)
    if name not in CLOSE:
        return np.array_equal(y, r.astype(y.dtype))
    tolerance = max(CLOSE[name], CLOSE.get(case.dtype.name, 0.0))
    y, r = y.astype(np.float64), r.astype(np.float64)
    most = float(np.finfo(np.float32).max) if name == "bfloat16" else float(np.finfo(spec.dtype.numpy).max)
    r = np.where(np.abs(r) > most, np.copysign(math.inf, r), r)
    scale = np.max(np.abs(r), initial=0.0, where=np.isfinite(r))
    return np.allclose(y, r, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def spoiled(spec: Spec) -> np.ndarray:
    """What no kernel computes: NaN, -1, every other truth value.  Memory handed to a contestant before its result is checked."""
    bad = np.empty(spec.shape, spec.dtype.numpy)
    bytes_ = bad.reshape(-1).view(np.uint8)
    bytes_[...] = 0xFF if spec.dtype.name != "bool" else 0
    if spec.dtype.name == "bool":
        bytes_[::2] = 1
    return bad


def spoil(tensors: tuple[Any, ...]) -> None:
    """Fill haian tensors so that a kernel which writes nothing is seen, even in memory that held the result before."""
    import haian

    for t in tensors:
        t.copy_(haian.asarray(spoiled(Spec(t.shape, t.dtype))))


def proved(call: Any, want: tuple[np.ndarray, ...], case: Case) -> None:
    """Runs a call of haian's and compares.

    Raises:
        InternalError: its result is not the reference's.
    """
    got = call()
    got = call.result(got) if call.result else got
    if not same(got, want, case):
        raise InternalError(f"{case.record.name}: haian's result on {case.id} is not the reference's, so it has no time; "
                            f"`haian conformance run --ops {case.record.name}` shows where")
