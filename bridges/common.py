"""What all bridges share: counting which calls haian served and which it passed on.

A model that runs "green" while the framework computed everything itself proves nothing, so every bridge counts.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Hits", "Pass"]


class Pass(Exception):
    """Raised by a rule that leaves a call to the framework; the message is the reason and is counted with it."""


@dataclass
class Hits:
    """Calls by the framework's own operator name.

    Attributes:
        hits: served by haian.
        passed: seen by the bridge but left to the framework.
        reasons: (name, reason) of those.
    """

    hits: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)

    def served(self, name: str) -> None:
        self.hits[name] += 1

    def left(self, name: str, reason: str) -> None:
        self.passed[name] += 1
        self.reasons[name, reason] += 1

    def __str__(self) -> str:
        lines = [f"{sum(self.hits.values())} calls served, {sum(self.passed.values())} passed on"]
        lines += [f"  {n:>7} {name}: {reason}" for (name, reason), n in self.reasons.most_common()]
        return "\n".join(lines)
