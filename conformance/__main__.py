"""``python -m haian.conformance [DEVICE [LEVEL [REPORT]]]``: the suite without the command line's extras."""
from __future__ import annotations

import sys

from .runner import run

if __name__ == "__main__":
    names = ("device", "level", "report")
    summary = run(**dict(zip(names, sys.argv[1:])))  # type: ignore[arg-type]
    print(summary)
    sys.exit(0 if summary.ok else 1)
