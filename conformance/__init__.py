"""Does a device conform?  Cases from the operator records, one judge, a report that can be checked again.

    from haian import conformance
    print(conformance.run("cuda:0", level="core", report="report"))

cases.py what is tried, compare.py when it is right, runner.py how it is run, report.py what is said, mutants.py how much the
suite is worth.  hal_checks/ and hal_runner.py: the same for drivers, ``conformance.run("sim:0", suite="hal")``.
"""
from __future__ import annotations

from typing import Any

__all__ = ["Summary", "diff", "list_cases", "run", "verify"]

_WHERE = {"Summary": "runner", "run": "runner", "diff": "report", "verify": "report"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"haian.conformance has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


def list_cases(level: str = "core", ops: str | tuple[str, ...] = "", suite: str = "ops") -> list[str]:
    """The ids of a level's cases, of the operators or ids that match ``ops`` (comma separated patterns)."""
    from .cases import cases
    from .runner import patterns

    if suite == "hal":
        from .hal_runner import hal_cases

        return [c.id for c in hal_cases("" if level == "core" else level, patterns(ops))]
    return [c.id for c in cases(level, patterns(ops))]
