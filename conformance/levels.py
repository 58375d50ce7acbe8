"""The levels of conformance, each including the ones before, and when one is granted.

core: every operator on ugly shapes.  inference, training: the shapes of BERT and ResNet layers.  llm: Llama's.  full: everything,
large tensors too.  A record's samples say which level they first belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from ..hal.errors import ArgumentError

__all__ = ["HAL_LEVELS", "LEVELS", "granted", "granted_hal", "hal_level", "included", "select"]

T = TypeVar("T")

LEVELS = ("core", "inference", "training", "llm", "full")

# of the HAL suite: loads (checks 1 to 13), core (all C), asynchronous (all C and S), and then the optional groups it has
HAL_LEVELS = ("L0", "L1", "L2", "L3")


def included(level: str) -> tuple[str, ...]:
    """The levels that ``level`` runs.

    Raises:
        ArgumentError: no such level.
    """
    if level not in LEVELS:
        raise ArgumentError(f"level {level!r}; needs one of {', '.join(LEVELS)}")
    return LEVELS[: LEVELS.index(level) + 1]


def select(found: Iterable[T], patterns: Sequence[str], means: Callable[[T, str], bool], what: str) -> list[T]:
    """What one of the patterns means, in order; everything where there are none.  ``what``: one of them, and where they are listed.

    Raises:
        ArgumentError: a pattern that means nothing, so that a typing error does not pass for a short run.
    """
    found = list(found)
    if not patterns:
        return found
    hits = {p: {i for i, item in enumerate(found) if means(item, p)} for p in patterns}
    idle = [p for p, hit in hits.items() if not hit]
    if idle:
        raise ArgumentError(f"conformance: {', '.join(map(repr, idle))} matches no {what}")
    wanted = set().union(*hits.values())
    return [item for i, item in enumerate(found) if i in wanted]


def granted(lines: Iterable[Mapping[str, object]], expected: Mapping[str, int]) -> tuple[str, str]:
    """The highest level the results grant ("" for none), and why not the next one.

    A level is granted when every one of its cases was run, none failed, crashed, timed out, was expected to fail or
    passed unexpectedly, and every operator passed in its preferred dtype.  Other dtypes may be not-offered: the report
    lists them.  ``expected``: how many cases each level adds (cases.counts).
    """
    seen: dict[str, int] = dict.fromkeys(LEVELS, 0)
    trouble: dict[str, str] = {}
    for line in lines:
        level, result, case = str(line["level"]), str(line["result"]), str(line["id"])
        seen[level] += 1
        if result not in ("pass", "not-offered") or result == "not-offered" and line.get("preferred"):
            trouble.setdefault(level, f"{case}: {result}")
    best = ""
    for level in LEVELS:
        if seen[level] < expected.get(level, 0):
            return best, f"{level}: {seen[level]} of {expected[level]} cases run"
        if level in trouble:
            return best, f"{level}: {trouble[level]}"
        if expected.get(level, 0) or best:
            best = level
    return best, ""


def hal_level(number: int, letter: str) -> str:
    """The level a HAL check belongs to; "" for P, which no level asks for."""
    return "L0" if number <= 13 else {"C": "L1", "S": "L2", "X": "L3"}.get(letter, "")


def granted_hal(lines: Iterable[Mapping[str, object]], expected: Mapping[str, int]) -> tuple[str, str]:
    """The level that results of the HAL suite grant ("" for none), and why not the next one.

    L0 to L2 need every check of theirs run and passed; one that is not offered counts against them unless its line says
    ``exempt`` (it is about a C table, or a second device).  L3 names the optional checks that passed, "L3 (pinned, prof)";
    those not offered are merely not named, one that failed denies it.
    """
    seen: dict[str, int] = dict.fromkeys(HAL_LEVELS, 0)
    trouble: dict[str, str] = {}
    named: dict[str, bool] = {}
    for line in lines:
        level, result, case = str(line["level"]), str(line["result"]), str(line["id"])
        if level not in seen:
            continue
        seen[level] += 1
        absent = result == "not-offered"
        if result != "pass" and not (absent and (level == "L3" or line.get("exempt"))):
            trouble.setdefault(level, f"{case}: {result}")
        if level == "L3":
            name = case.split("/")[1].partition("_")[2]
            named[name] = named.get(name, True) and result == "pass"
    best = ""
    for level in HAL_LEVELS:
        if seen[level] < expected.get(level, 0):
            return best, f"{level}: {seen[level]} of {expected[level]} checks run"
        if level in trouble:
            return best, f"{level}: {trouble[level]}"
        if level == "L3":
            passed = sorted(n for n, holds in named.items() if holds)
            return (f"L3 ({', '.join(passed)})", "") if passed else (best, "L3: no optional group is offered")
        if expected.get(level, 0):
            best = level
    return best, ""
