"""The error classes of DESIGN section 7, as data; conformance/compare.py decides with them.

u(t) is the unit roundoff of dtype t.  Sources: Higham & Mary 2019 (probabilistic sqrt(n) bound of sums); the table in
docs/numerics.md gives the reason for every constant.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Budget", "Composite", "Conditioned", "Exact", "Faithful", "Index", "Reduction"]


@dataclass(frozen=True)
class Budget:
    """Base of the classes; ``letter`` stands in reports."""

    letter = "?"


@dataclass(frozen=True)
class Exact(Budget):
    """E: bitwise equal; any NaN equals NaN; -0 equals +0 unless ``signed_zero``."""

    signed_zero: bool = False
    letter = "E"


@dataclass(frozen=True)
class Faithful(Budget):
    """F: within k ulp of the reference.  float16 and bfloat16, computed in float32, within ``k_low`` ulp.

    ties: the rounded reference itself, to nearest even, the sign of zero included; the reference must then not have rounded
    where it matters (conversions).
    """

    k: float = 4.0
    k_low: float = 1.0
    ties: bool = False
    letter = "F"


@dataclass(frozen=True)
class Composite(Budget):
    """FC: within k ulp plus k u(acc) M, M the largest intermediate magnitude of the formula at that element."""

    k: float = 8.0
    magnitude: Callable | None = None  # magnitude(*float64 inputs, **attrs); None: evaluate the formula and watch it
    letter = "FC"


@dataclass(frozen=True)
class Reduction(Budget):
    """R: |y - r| <= ulp + 6 sqrt(n) u(acc) S, rms test from 64 outputs on, and the exact-integer probe.

    terms(*Spec, **attrs) -> n.  magnitude(*float64 inputs, **attrs) -> S, per output; None: the reference on abs(inputs).
    probe: whether integer inputs must come back exactly (products and sums only).  Several outputs: magnitude returns a
    tuple with None for outputs that are Exact.
    """

    terms: Callable | None = None
    magnitude: Callable | None = None
    probe: bool = True
    letter = "R"


@dataclass(frozen=True)
class Conditioned(Budget):
    """C: k ulp + kappa (u(acc) + 6 sqrt(n) u(acc)), kappa measured by perturbing inputs by one roundoff.

    roundings: declared intermediate roundings to the tensor's own dtype (P in bf16 flash attention): adds u(t) times the
    magnitude each.
    """

    k: float = 4.0
    terms: Callable | None = None
    roundings: int = 0
    letter = "C"


@dataclass(frozen=True)
class Index(Budget):
    """I: by the values that the returned indices select; ties free unless ``stable`` (then the first one)."""

    stable: bool = True
    letter = "I"
