"""``python -m haian.conformance [DEVICE [LEVEL [REPORT]]]``: the suite without the command line's extras."""
from __future__ import annotations

import sys

from ..hal.errors import ArgumentError, HaianError
from .runner import run

if __name__ == "__main__":
    names = ("device", "level", "report")
    try:
        summary = run(**dict(zip(names, sys.argv[1:])))  # type: ignore[arg-type]
    except HaianError as error:
        print(f"haian.conformance: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ArgumentError) else 3)
    print(summary)
    sys.exit(0 if summary.ok else 1)
