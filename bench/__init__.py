"""haian.bench: how fast an operator is, against the device's measured limits and against the frameworks' own kernels.

Cases come from the records (cases.py), the timer interleaves all contestants (timer.py), peers spell the same
computation (peers.py), ceilings are measured in the same run (roofline.py).  Not here: correctness (conformance).
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["compare", "run"]


def run(device: str = "cpu:0", *, suite: str = "quick", peers: str = "torch,numpy,onnxruntime", threads: str = "1", ops: str = "",
        report: str = "", budget_s: float = 0.0) -> Any:
    """Time a suite; returns a Summary whose text is the table, losses first.

    Args:
        device: any real device; ``sim`` is refused, since its speed says nothing about a chip.
        suite: quick, full, llm, vision, or calls (16-element calls from Python).
        peers: comma separated; absent ones are skipped and named in the report.
        threads: comma separated numbers or ``all``: the host's thread counts, for haian and peers alike.
        ops: only these operators, comma separated patterns.
        report: folder for bench.json, index.html and history.jsonl; "" writes nothing.
        budget_s: seconds a row may take once every contestant ran three times; 0: the suite's own.

    Raises:
        ArgumentError: an unknown suite or peer, more threads than CPUs, a pattern that matches nothing, a folder that cannot
            be written to, or a simulated device.  EnvironmentMissing: what makes the report's page is not installed.
    """
    from .runner import run as run_suite
    return run_suite(device, suite=suite, peers=peers, threads=threads, ops=ops, report=report, budget_s=budget_s)


def compare(a: str | Path, b: str | Path) -> str:
    """Two reports, each a folder or its bench.json, side by side, row by row; ratio above 1: ``b`` is faster.

    Raises:
        ArgumentError: a file that is no bench report, or two without a row in common.
    """
    from .report import compare as compare_reports
    return compare_reports(Path(a), Path(b))
