"""``python -m haian.adapters.sim.compare``: the conformance suite on sim with every launch through both executors.

Prints how many kernels were compared, which have no C form, and every difference; exit code 1 where there is one.  The
comparison itself is HAIAN_SIM_EXECUTOR=both (to_c/both.py), which any program can be run under.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m haian.adapters.sim.compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("--ops", default="", help="operators, comma separated patterns; none: all")
    parser.add_argument("--level", default="core", help="core, inference, training, llm or full")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "both.jsonl"
        log.touch()
        command = [sys.executable, "-m", "haian.cli", "conformance", "run", "--device", "sim:0", "--level", given.level]
        command += ["--ops", given.ops] if given.ops else []
        env = {**os.environ, "HAIAN_SIM_EXECUTOR": "both", "HAIAN_SIM_BOTH_LOG": str(log)}
        status = subprocess.run([*command, "--report", str(Path(folder) / "report")], env=env).returncode
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    kernels = [line for line in lines if "refused" in line]
    different = [line for line in lines if "different" in line]
    refused = Counter(line["refused"] for line in kernels if line["refused"])
    print(f"{len(kernels)} kernels, {len(kernels) - sum(refused.values())} in C, {len(different)} launches differ")
    for why, count in refused.most_common():
        print(f"  {count} not in C: {why}")
    for line in different:
        print(f"  {line['kernel']} grid {line['grid']}: {line['different']}")
    if not kernels:
        print("  nothing was launched: is triton installed?")
    return 1 if different or not kernels else status if status > 2 else 0


if __name__ == "__main__":
    raise SystemExit(main())
