"""A child process that runs the HAL suite, or some traps, over stand-ins, and prints one line of JSON a result.

    python tests/standins/suite.py suite VENDOR          python tests/standins/suite.py traps NUMBER OF_HOW_MANY
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

__all__ = ["suite"]


def suite(vendor: str) -> list[dict[str, object]]:
    """The lines of a run; what the adapter's conformance.toml calls not offered is not run, and says so."""
    from haian.conformance import allowances
    from haian.conformance.hal_runner import check_driver, hal_cases

    import standins

    rules = allowances.load(vendor.partition("-")[0]).not_offered
    chosen, excused = [], []
    for case in hal_cases():
        reason = next((r.reason for r in rules if case.matches(r.cases)), "")
        if reason:
            excused.append({"id": case.id, "result": "not-offered", "message": f"conformance.toml: {reason}"})
        else:
            chosen.append(case)
    return [*check_driver(standins.driver, (vendor,), chosen=chosen), *excused]


def main(what: str, *words: str) -> None:
    if what == "suite":
        for line in suite(words[0]):
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
