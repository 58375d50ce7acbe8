"""How a sample becomes arrays: what every draw of record.In means.  Conformance, bench and tests share it."""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME, DType
from .infer import accumulator
from .record import In, Op, Sample, Spec

__all__ = ["attributes", "draw", "inputs", "resolve", "specs"]


def resolve(i: In, case: DType) -> DType:
    """The dtype of an input in a case of dtype ``case``."""
    return case if i.dtype is None else accumulator(case) if i.dtype == "acc" else BY_NAME[i.dtype]


def attributes(op: Op, attrs: dict[str, Any], case: DType) -> dict[str, Any]:
    """All attributes of a call; operators without tensors take the dtype of the case unless attrs has one."""
    if not op.tensors and "dtype" not in attrs and any(p.name == "dtype" for p in op.attrs):
        attrs = {**attrs, "dtype": case}
    return op.attributes(attrs)


def _each(sample: Sample, fn: Any) -> tuple[Any, ...]:
    return tuple(None if i is None else tuple(map(fn, i)) if isinstance(i, tuple) else fn(i) for i in sample.inputs)


def specs(sample: Sample, case: DType) -> tuple[Any, ...]:
    """The Specs of a sample's inputs, in schema order (None and tuples as in the sample)."""
    return _each(sample, lambda i: Spec(tuple(i.shape), resolve(i, case)))


def inputs(sample: Sample, case: DType, rng: np.random.Generator) -> tuple[Any, ...]:
    """The arrays of a sample, of the NumPy types of their dtypes (ml_dtypes' for bfloat16), in schema order."""
    return _each(sample, lambda i: draw(i, case, rng))


def _real(i: In, d: DType, rng: np.random.Generator) -> np.ndarray:
    n = Spec(i.shape, d).size
    if i.draw == "normal":
        return rng.standard_normal(n)
    if i.draw == "uniform":
        return rng.uniform(-1, 1, n)
    if i.draw == "positive":
        return rng.uniform(0.1, 4, n)
    if i.draw == "unit":
        return rng.uniform(0, 1, n)
    if i.draw == "float_mask":
        return np.where(rng.random(n) < 0.3, -np.inf, 0.0)
    if i.draw == "distinct":
        return rng.permutation(n) - n // 2
    if i.draw in ("prob", "logp"):
        z = rng.standard_normal(i.shape)
        e = np.exp(z)
        p = e / e.sum(-1, keepdims=True) if i.shape else np.ones(())
        return (p if i.draw == "prob" else np.log(p)).reshape(-1)
    if i.draw == "wide":  # six decades either side of 1, a tenth of it special
        x = rng.choice([-1.0, 1.0], n) * 10.0 ** rng.uniform(-6, 6, n)
        special = rng.choice([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan], n)
        return np.where(rng.random(n) < 0.1, special, x)
    raise ValueError(f"In: unknown draw {i.draw!r}; record.In lists them")


def draw(i: In, case: DType, rng: np.random.Generator) -> np.ndarray:
    """One input of shape i.shape.  Integers stand in for real draws by -9..9 (0..9 unsigned), bools by a fair coin.

    Raises:
        ValueError: an unknown draw.
    """
    d = resolve(i, case)
    if i.values is not None:
        x = np.asarray(i.values)
    elif i.draw == "index":
        x = rng.integers(0, max(i.high, 1), Spec(i.shape, d).size)
    elif i.draw == "mask" or d.kind == "b":
        x = rng.random(Spec(i.shape, d).size) < 0.5
    elif i.draw == "int" or d.is_integer:
        info = np.iinfo(d.numpy) if d.is_integer else None
        if i.draw == "wide" and info:  # the whole range, its ends among it
            x = rng.integers(info.min, info.max, Spec(i.shape, d).size, dtype=d.numpy, endpoint=True)
            x[: len(x) // 8] = rng.choice([info.min, info.max, 0, 1], len(x) // 8)
        else:
            low = 0 if d.kind == "u" else 1 if i.draw in ("positive", "unit", "prob") else -9
            x = rng.integers(low, 10, Spec(i.shape, d).size)
    else:
        x = _real(i, d, rng)
    with np.errstate(over="ignore", invalid="ignore"):
        a = x.astype(d.numpy).reshape(i.shape)
    if i.layout == "transposed":
        return np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)
    if i.layout:
        raise ValueError(f"In: unknown layout {i.layout!r}; one of '' and 'transposed'")
    return a
