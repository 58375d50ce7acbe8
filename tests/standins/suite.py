"""A child process that runs the HAL suite, or some traps, over stand-ins, and prints one line of JSON a result.

    python tests/standins/suite.py suite VENDOR [PATTERN_NOT_RUN ...]
    python tests/standins/suite.py traps NUMBER OF_HOW_MANY
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

__all__ = ["suite"]


def suite(vendor: str, excused: list[str]) -> list[dict[str, object]]:
    """The lines of a run; cases that ``excused`` means are not run, and are lines without a message."""
    from haian.conformance.hal_runner import check_driver, hal_cases

    import standins

    cases = hal_cases()
    absent = [c for c in cases if any(c.matches(p) for p in excused)]
    ran = check_driver(standins.driver, (vendor,), chosen=[c for c in cases if c not in absent])
    return [*ran, *({"id": c.id, "result": "not-offered", "message": ""} for c in absent)]


def main(what: str, *words: str) -> None:
    if what == "suite":
        for line in suite(words[0], list(words[1:])):
            print(json.dumps(line))
        return
    from standins.traps import TRAPS, caught

    number, count = map(int, words)
    for trap in TRAPS[number::count]:
        print(json.dumps({"name": trap.name, "vendor": trap.vendor, "check": trap.check, "said": caught(trap)}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main(*sys.argv[1:])
    sys.stdout.flush()
