"""The levels of conformance, each including the ones before, and when one is granted.

core: every operator on ugly shapes.  inference, training: the shapes of BERT and ResNet layers.  llm: Llama's.  full: everything,
large tensors too.  A record's samples say which level they first belong to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["LEVELS", "granted", "included"]

LEVELS = ("core", "inference", "training", "llm", "full")


def included(level: str) -> tuple[str, ...]:
    """The levels that ``level`` runs.

    Raises:
        ValueError: no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r}; needs one of {', '.join(LEVELS)}")
    return LEVELS[: LEVELS.index(level) + 1]


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
