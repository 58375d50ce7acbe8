"""How the commands print, and their exit codes.  Not here: what they do."""
from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["ENVIRONMENT", "FINDINGS", "USAGE", "size", "table", "usage"]

FINDINGS, USAGE, ENVIRONMENT = 1, 2, 3
console = Console(highlight=False, soft_wrap=True)


def table(columns: list[str], rows: list[list[Any]]) -> None:
    if not console.is_terminal:  # a pipe gets tab-separated lines, whole
        for row in rows:
            print("\t".join(str(cell) for cell in row))
        return
    shown = Table(box=None, pad_edge=False)
    for name in columns:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*(escape(str(cell)) for cell in row))
    console.print(shown)


def size(n: int) -> str:
    """Bytes as a person reads them."""
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def usage(message: str) -> NoReturn:
    """One line on the error output, exit code 2."""
    print(f"haian: {message}", file=sys.stderr)
    raise typer.Exit(USAGE)
