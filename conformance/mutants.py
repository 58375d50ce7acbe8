"""How much the suite is worth: wrong implementations of every operator, and how many of them it refuses.

    python -m haian.conformance.mutants        prints killed / total and the survivors

A mutant is a right NumPy implementation with one mistake that kernels make.  Each names the kind of case meant to refuse it.
The tables: ROWS of every mutants_*.py here; the makers: mutate.py.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..hal.errors import HaianError
from ..kernels.ops import OPS
from .cases import Case, cases
from .mutate import Maker
from .runner import BAD, run_in_process
from .target import FunctionTarget
from .witness import in_precision

__all__ = ["MUTANTS", "Killed", "Mutant", "judge_mutant", "main", "run"]


@dataclass(frozen=True)
class Mutant:
    """op: the operator; wrong: the mistake; check: kind of case, or sample, meant to refuse it; make: maker of mutate.py."""

    op: str
    wrong: str
    check: str
    make: Maker


@dataclass(frozen=True)
class Killed:
    """by: id of the first case that refused the mutant, "" where none did; meant: whether a case of the meant kind did."""

    mutant: Mutant
    by: str
    meant: bool
    message: str = ""


MUTANTS: tuple[Mutant, ...] = tuple(
    Mutant(*row)
    for file in sorted(Path(__file__).parent.glob("mutants_*.py"))
    for row in importlib.import_module(f"{__package__}.{file.stem}").ROWS
)


# ---- running them -----------------------------------------------------------------------------------------------------------
def _kind(case: Case) -> str:
    return case.variant or case.kind


def judge_mutant(mutant: Mutant, seed: int = 0) -> Killed:
    """Run the suite on an implementation that is right but for one mistake; stops at the first refusal."""
    target = FunctionTarget("mutant", {name: in_precision(op) for name, op in OPS.items()})
    made = mutant.make(OPS[mutant.op], target.table[mutant.op])
    if isinstance(made, dict):  # a wrong gradient
        target.grads[mutant.op] = made["gradient"]
    else:
        if getattr(made, "wants_target", False):
            made.target = target
        target.table[mutant.op] = made
    own = cases("core", (mutant.op,))
    meant = [c for c in own if mutant.check in (_kind(c), c.sample)]
    for chosen, is_meant in ((meant, True), ([c for c in own if c not in meant], False)):
        for line in run_in_process(target, seed=seed, chosen=chosen, stop_at_failure=True):
            if line["result"] in BAD:
                return Killed(mutant, line["id"], is_meant, line["message"])
    return Killed(mutant, "", False)


def run(
    mutants: Sequence[Mutant] = MUTANTS, seed: int = 0, show: Callable[[Killed], None] | None = None
) -> list[Killed]:
    """Judge mutants; ``show`` is told each verdict as it comes."""
    found = []
    for mutant in mutants:
        verdict = judge_mutant(mutant, seed)
        found.append(verdict)
        if show:
            show(verdict)
    return found


def main() -> int:
    """Print a line a mutant, then killed / total and the survivors; 1 when fewer than 95 % were killed."""
    start = time.perf_counter()

    def show(k: Killed) -> None:
        how = "SURVIVED" if not k.by else f"{k.by}{'' if k.meant else f'  (meant: {k.mutant.check})'}"
        print(f"{k.mutant.op:44} {k.mutant.wrong:52} {how}")

    found = run(show=show)
    killed = [k for k in found if k.by]
    print(
        f"{len(killed)} of {len(found)} mutants killed over {len({k.mutant.op for k in found})} operators, {sum(k.meant for k in killed)} by the "
        f"check that was meant; {time.perf_counter() - start:.1f} s"
    )
    for k in found:
        if not k.by:
            print(f"survived: {k.mutant.op}: {k.mutant.wrong}")
    return int(len(killed) < 0.95 * len(found))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HaianError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
