"""How much the HAL suite is worth: wrong drivers, and whether the check meant for each refuses it.

    python -m haian.conformance.hal_mutants          a line a mutant, then kills / total; exit code 1 when one survives
    python -m haian.conformance.hal_mutants NAME...  these mutants only

A mutant is a right driver with one mistake: a subclass of the simulator, of the host's driver or of the validation layer
(tables: ROWS of every hal_mutants_*.py here), or the text of the example driver in C with a few words changed (``C_ROWS``).
Only a refusal by its own check counts as a kill.  Mutants that may crash, or are about
the process, run in a child.
"""
from __future__ import annotations

import contextlib
import functools
import importlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hal.driver import Driver
from ..hal.validate import Validated
from .hal_bases import CpuDriver, SimDriver
from .hal_checks import check as check_module
from .hal_checks.images import compiled, compiler
from .hal_mutants_c import C_ROWS
from .hal_mutants_core import RIGHT
from .hal_runner import HalCase, check_driver, hal_cases

__all__ = ["BASES", "HalKilled", "HalMutant", "MUTANTS", "RIGHT", "judge", "main", "make", "run"]

SIM_BYTES = 256 << 20  # small, so that filling the device is quick
PATIENCE_S = 0.7  # how long a mutant is waited for where a right driver gets seconds
TIMEOUT_S = 12.0  # of one check
CHILD_S = 30.0  # of a mutant in a child process
_NAME = "haian.conformance.hal_mutants"
BASES = ("sim", "cpu", "inline", "layer")


@dataclass(frozen=True)
class HalMutant:
    """One wrong driver.

    Attributes:
        name: unique; story: the mistake.
        base: of BASES: the simulator, the host, the example in C, the validation layer over the simulator.
        change: the subclass, or (old, new) texts of the C file.
        killed_by: number of the check meant to refuse it.
        child: it runs in a process of its own, since it may crash it or is about the process (``apart`` of a subclass).
    """

    name: str
    base: str
    change: type[Driver] | tuple[tuple[str, str], ...]
    killed_by: int
    story: str
    child: bool = False


@dataclass(frozen=True)
class HalKilled:
    """by: id of the check that refused it, "" where none did; own: whether it is the one meant; offered: whether that one ran."""

    mutant: HalMutant
    by: str
    own: bool
    message: str
    seconds: float
    offered: bool = True


def _python_rows() -> Iterator[tuple[type[Driver], int]]:
    for file in sorted(Path(__file__).parent.glob("hal_mutants_*.py")):
        if file.stem != "hal_mutants_c":
            yield from importlib.import_module(f"{__package__}.{file.stem}").ROWS


def _base(change: type[Driver]) -> str:
    return next(name for name, cls in (("layer", Validated), ("sim", SimDriver), ("cpu", CpuDriver)) if issubclass(change, cls))


MUTANTS: dict[str, HalMutant] = {
    **{c.__name__: HalMutant(c.__name__, _base(c), c, number, (c.__doc__ or "").strip(), getattr(c, "apart", False)) for c, number in _python_rows()},
    **{name: HalMutant(name, "inline", edits, number, story, child) for name, number, story, edits, child in C_ROWS},
}


# ---- making them ------------------------------------------------------------------------------------------------------------
def make(name: str) -> Driver:
    """A new driver object: a mutant's, of a base, or one of RIGHT.

    Raises:
        NotOffered: a driver in C without a C compiler.  ValueError: a text to be changed is not in the C file.
    """
    mutant = MUTANTS.get(name)
    base, change = (mutant.base, mutant.change) if mutant else (name, None)
    if base == "inline":
        from ..hal.c_driver import CDriver

        return CDriver(_shared_object(change if isinstance(change, tuple) else (), name))
    cls: Any = change or next((c for c in RIGHT if c.__name__ == name), None)
    if cls in RIGHT:
        base = _base(cls)
    if base == "layer":
        return (cls or Validated)(SimDriver(2, SIM_BYTES))
    if base == "cpu":
        return (cls or CpuDriver)()
    return (cls or SimDriver)(getattr(cls, "devices", 2), getattr(cls, "total_bytes", SIM_BYTES))  # the mistake may need three, or much


_one_folder = threading.Lock()  # functools.cache lets two threads make one each, and the one that is dropped deletes itself


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="haian-mutants-")


@functools.cache
def _shared_object(edits: tuple[tuple[str, str], ...], name: str) -> str:
    """The path of the example in C, changed and compiled."""
    root = Path(__file__).resolve().parent.parent
    text = (root / "examples" / "inline_adapter" / "inline.c").read_text()
    for old, new in edits:
        if text.count(old) != 1:
            raise ValueError(f"mutant {name}: {old!r} stands {text.count(old)} times in inline.c; needs once, so change hal_mutants_c.py")
        text = text.replace(old, new)
    with _one_folder:
        path = Path(_folder().name, f"{name}.so")
    path.write_bytes(compiled(text, str(root / "hal" / "include"), "-O0"))
    return str(path)


# ---- judging them -----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def hasty() -> Iterator[None]:
    """Inside, checks lose patience after PATIENCE_S: wrong drivers are waited for often."""
    until, threads = check_module.Subject.until, check_module.Subject.threads

    def soon(self: Any, condition: Callable[[], object], what: str, seconds: float = 5.0) -> None:
        until(self, condition, what, min(seconds, PATIENCE_S))

    def soon_threads(self: Any, count: int, function: Callable[[int], None], seconds: float = 15.0) -> None:
        threads(self, count, function, min(seconds, 6.0))

    check_module.Subject.until, check_module.Subject.threads = soon, soon_threads  # type: ignore[method-assign]
    try:
        yield
    finally:
        check_module.Subject.until, check_module.Subject.threads = until, threads  # type: ignore[method-assign]


def cases_of(*numbers: int) -> list[HalCase]:
    return [c for c in hal_cases() if c.check.number in numbers]


def _lines(name: str, numbers: Sequence[int]) -> list[dict[str, Any]]:
    return check_driver(make, (name,), timeout_s=TIMEOUT_S, chosen=cases_of(*numbers), stop_at_failure=True)


def _lines_in_child(name: str, numbers: Sequence[int]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", _NAME, "--lines", name, ",".join(map(str, numbers))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_S)
    except subprocess.TimeoutExpired:
        return [{"id": cases_of(numbers[0])[0].id, "result": "timeout", "message": f"no answer within {CHILD_S:g} s"}]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return [{"id": cases_of(numbers[0])[0].id, "result": "crash", "message": f"exit code {done.returncode} {last}"}]
    return json.loads(done.stdout.strip().splitlines()[-1])


def judge(mutant: HalMutant, others: bool = True) -> HalKilled:
    """Runs the meant check and, where that passes and ``others``, all further ones.  Inside ``hasty``, unless patience is wanted."""
    start = time.perf_counter()
    lines = _lines_in_child if mutant.child else _lines
    own = lines(mutant.name, [mutant.killed_by])
    bad = next((x for x in own if x["result"] in ("fail", "timeout", "crash")), None)
    meant = bad is not None
    if bad is None and others:
        rest = [n for n in sorted({c.check.number for c in hal_cases()}) if n != mutant.killed_by]
        bad = next((x for x in _lines_in_child(mutant.name, rest) if x["result"] in ("fail", "timeout", "crash")), None)
    seconds = time.perf_counter() - start
    offered = any(x["result"] != "not-offered" for x in own)
    if bad is None:
        return HalKilled(mutant, "", False, "", seconds, offered)
    return HalKilled(mutant, bad["id"], meant, bad["message"] if bad["result"] == "fail" else f"{bad['result']}: {bad['message']}", seconds, offered)


def run(mutants: Sequence[HalMutant] | None = None, others: bool = True, show: Callable[[HalKilled], None] | None = None,
        workers: int = 1) -> list[HalKilled]:
    """Judges mutants, those in C only where there is a C compiler; ``show`` is told each verdict as it comes.

    Most of the time is waiting for what a wrong driver never does, so several ``workers`` (threads) end sooner.
    """
    chosen = [m for m in (MUTANTS.values() if mutants is None else mutants) if m.base != "inline" or compiler()]
    found = []
    with hasty(), ThreadPoolExecutor(workers) as pool:
        for verdict in pool.map(functools.partial(judge, others=others), chosen):
            found.append(verdict)
            if show:
                show(verdict)
    return found


def main(arguments: Sequence[str] = ()) -> int:
    """Prints the table; 1 when a mutant survives its own check."""
    if arguments[:1] == ("--lines",):
        with hasty():
            print(json.dumps(_lines(arguments[1], [int(n) for n in arguments[2].split(",")])))
        return 0
    unknown = [name for name in arguments if name not in MUTANTS]
    if unknown:
        print(f"no mutant {unknown[0]!r}; there are {', '.join(MUTANTS)}", file=sys.stderr)
        return 2
    start = time.perf_counter()

    def show(k: HalKilled) -> None:
        how = k.by if k.own else f"SURVIVED {k.mutant.killed_by}" + (f", refused by {k.by}" if k.by else "") + ("" if k.offered else " (not offered)")
        print(f"{k.mutant.name:22} {k.mutant.base:6} {k.mutant.story:76} {k.mutant.killed_by:3} {k.seconds:5.1f} s  {how}", flush=True)

    found = run([MUTANTS[name] for name in arguments] or None, show=show)
    own = [k for k in found if k.own]
    print(f"{len(own)} of {len(found)} wrong drivers refused by the check meant for them, over {len({k.mutant.killed_by for k in found})} checks; "
          f"{time.perf_counter() - start:.1f} s")
    skipped = len(arguments or MUTANTS) - len(found)
    if skipped:
        print(f"{skipped} wrong drivers in C were not made: no C compiler (CC, cc, gcc, clang)")
    return int(len(own) < len(found))


if __name__ == "__main__":
    # by its name, so that other processes find ``make`` too
    sys.exit(importlib.import_module(_NAME).main(tuple(sys.argv[1:])))
