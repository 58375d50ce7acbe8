"""`make demo`: conformance on every device found, a short benchmark on those that may be timed, one page.

    python -m haian.demo [--report report] [--level core]

Writes REPORT/index.html with one folder per device beside it, prints where, the counts and the time.  Opens nothing.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from . import __version__
from .hal.errors import ArgumentError, HaianError
from .hal.registry import devices


def _chosen() -> list[str]:
    """One device of each adapter: a second one of the same kind runs the same code."""
    first: dict[str, str] = {}
    for d in devices():
        first.setdefault(d.name.partition(":")[0], d.name)
    return list(first.values())


def main(argv: list[str] | None = None) -> int:
    """Runs everything; 0 when every device conforms, 1 otherwise, 2 wrong arguments, 3 something is not installed."""
    try:
        return _run(argv)
    except HaianError as error:
        print(f"haian.demo: {error}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 3


def _run(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, default=Path("report"))
    parser.add_argument("--level", default="core", help="conformance level (default core)")
    given = parser.parse_args(argv)
    from .bench import run as bench_run
    from .conformance import run as conformance_run
    from .conformance.levels import included
    from .conformance.runner import folder_of, need_references
    from .reporting.page import Cell, Facts, Note, Section, Table, render

    started = time.monotonic()
    included(given.level)
    need_references()
    folder_of(given.report)
    summaries: list[Any] = []
    rows: list[list[object]] = []
    for name in _chosen():
        folder = name.replace(":", "_")
        print(f"conformance on {name} ...", flush=True)
        try:
            summary = conformance_run(name, level=given.level, report=str(given.report / folder))
        except HaianError as error:  # one device that does not answer is a row, not the end
            print(f"  {error}", flush=True)
            rows.append([name, "-", "-", "-", "none", "-", Cell(f"not run: {error}", "bad"), ""])
            continue
        summaries.append(summary)
        print(f"  {summary}", flush=True)
        count = summary.counts
        rows.append([name, count.get("pass", 0), sum(count.get(k, 0) for k in ("fail", "crash", "timeout", "xpass")), count.get("not-offered", 0),
                     summary.level or "none", f"{summary.seconds:.0f} s", Cell("conforms", "good") if summary.ok else Cell("does not conform", "bad"),
                     f"{folder}/index.html"])
    benches: list[list[object]] = []
    for name in _chosen():
        if name.startswith("sim:"):
            benches.append([name, "never benchmarked: it is a simulator", ""])
            continue
        print(f"benchmark on {name} ...", flush=True)
        folder = f"bench_{name.replace(':', '_')}"
        try:
            result = bench_run(name, suite="quick", report=str(given.report / folder))
        except HaianError as error:
            print(f"  {error}", flush=True)
            benches.append([name, f"not run: {error}", ""])
            continue
        print(result, flush=True)
        benches.append([name, "quick suite", f"{folder}/index.html"])
    seconds = time.monotonic() - started
    page = render("haian", [
        Section("Summary", [Facts([("haian", __version__), ("devices", ", ".join(str(r[0]) for r in rows)), ("time", f"{seconds:.0f} s")]),
                            Note("sim passes mean the semantics of Triton IR, not a chip's binary.", "warn")]),
        Section("Conformance", [Table(["device", "pass", "fail", "not offered", "level", "time", "verdict", "report"], rows, numbers=(1, 2, 3))]),
        Section("Benchmark", [Table(["device", "suite", "report"], benches)])])
    index = given.report / "index.html"
    index.write_text(page)
    print(f"{index}: {sum(s.counts.get('pass', 0) for s in summaries)} cases passed on {len(summaries)} devices, {seconds:.0f} s")
    return 0 if len(summaries) == len(rows) and all(s.ok for s in summaries) else 1


if __name__ == "__main__":
    sys.exit(main())
