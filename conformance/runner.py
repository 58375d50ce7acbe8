"""Runs cases on a device in a warm child process, and writes one line a case as it goes.

A crash or a hang is a result: the child is replaced and the run goes on.  Not here: how a case is judged (checks.py), what
the report looks like (report.py).
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hal.errors import ArgumentError, HaianError
from . import allowances
from .allowances import Allowances
from .cases import SUITE_VERSION, Case, cases, counts, digest, find
from .checks import run_case
from .levels import granted, granted_hal
from .target import DeviceTarget, Target

if TYPE_CHECKING:
    from .hal_runner import HalCase

__all__ = ["BAD", "RESULTS", "Child", "Summary", "done", "lines_of", "parse_shard", "patterns", "record", "run", "run_in_process", "summarise"]

RESULTS = ("pass", "fail", "crash", "timeout", "not-offered", "xfail", "xpass")
BAD = ("fail", "crash", "timeout", "xpass")
TIMEOUT_S = 60.0  # a case's, unless the caller says otherwise
START_S = 120.0  # a child may import, find devices and compile its first kernel in this time


@dataclass
class Summary:
    """What a run came to.  level: the highest granted; why: what kept the next one; present: there is such a device."""

    device: str
    counts: dict[str, int]
    level: str
    why: str
    seconds: float
    report: str = ""
    failures: list[dict[str, Any]] = field(default_factory=list)
    fallbacks: dict[str, int] = field(default_factory=dict)
    present: bool = True

    @property
    def ok(self) -> bool:
        """Whether something was run, and nothing failed, crashed, hung or passed unexpectedly."""
        return self.present and not any(self.counts.get(r) for r in BAD)

    def __str__(self) -> str:
        if not self.present:
            return f"{self.device}: not present ({self.why}); nothing was checked"
        said = ", ".join(f"{n} {r}" for r, n in self.counts.items() if n)
        level = f"level {self.level} granted" if self.level else "no level granted"
        fell = f"; {sum(self.fallbacks.values())} calls fell back to the host" if self.fallbacks else ""
        where = f"; report in {self.report}" if self.report else ""
        return (
            f"{self.device}: {said}; {level}{f' ({self.why})' if self.why else ''}{fell}; {self.seconds:.1f} s{where}"
        )


def parse_shard(text: str) -> tuple[int, int]:
    """``"3/8"`` -> (3, 8).

    Raises:
        ArgumentError: not i/n with 1 <= i <= n.
    """
    try:
        i, n = (int(part) for part in text.split("/"))
    except ValueError:
        i, n = 0, 0
    if not 1 <= i <= n:
        raise ArgumentError(f"shard {text!r}; needs i/n with 1 <= i <= n, such as 3/8")
    return i, n


# ---- the child ------------------------------------------------------------------------------------------------------------
def _serve(
    connection: Connection, stacks: str, make: Callable[..., Target], arguments: tuple, seed: int, allowed: Allowances
) -> None:
    """Answers case ids with outcomes until the pipe closes.  First answer: facts about the target, or why there is none."""
    try:
        target = make(*arguments)
        target.capabilities = allowed.capabilities(target.capabilities)
        counts()  # builds the table of cases, so that no case's time has it
        connection.send({"facts": asdict(target.capabilities)})
    except (HaianError, ImportError, OSError) as error:
        connection.send({"error": f"{type(error).__name__}: {error}"})
        return
    where = open(stacks, "w")
    while True:
        try:
            case_id, factor, timeout_s = connection.recv()
        except EOFError:
            return
        faulthandler.dump_traceback_later(timeout_s * 0.9, file=where)  # says where a hang sits
        line = run_case(find(case_id), target, seed, factor).line()
        faulthandler.cancel_dump_traceback_later()
        connection.send(line)


class Child:
    """One warm process that runs cases.

    ``serve(connection, stacks, *arguments)`` runs in it: it sends {"facts": ...} or {"error": ...}, then answers every
    (id, factor, seconds) it receives with a line; ``stacks`` is the file that faulthandler writes to.
    """

    def __init__(self, serve: Callable[..., None], arguments: tuple) -> None:
        self._serve, self._arguments = serve, arguments
        self._folder = tempfile.TemporaryDirectory(prefix="haian-")
        self._stacks = os.path.join(self._folder.name, "stacks")
        self.facts: dict[str, Any] = {}
        self._dead = ""  # why there is no process any more
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit driver state that drivers do not survive
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=self._serve, args=(theirs, self._stacks, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        answer = self._answer(START_S)
        if "facts" not in answer:
            self.close()
            raise ArgumentError(f"conformance: {answer.get('error') or answer['message']}")
        self.facts = answer["facts"]

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        if not self._pipe.poll(timeout_s):
            return {"result": "timeout", "message": f"no answer within {timeout_s:g} s"}
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            code = self._process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return {"result": "crash", "message": f"the process died: {how}"}

    def run(self, case: Case | HalCase, factor: float, timeout_s: float) -> dict[str, Any]:
        if self._dead:
            return {"result": "crash", "message": f"not run: {self._dead}"}
        self._pipe.send((case.id, factor, timeout_s))
        line = self._answer(timeout_s)
        if line["result"] == "timeout":
            line["message"] += self._hanging()
        if line["result"] in ("crash", "timeout"):
            self.close()
            try:
                self._start()
                self._dead = self.facts.get("absent", "")
            except ArgumentError as error:  # the device did not survive; the other cases must be in the report too
                self._dead = f"after {case.id} no new process could be started: {error}"
        return line

    def _hanging(self) -> str:
        """Where the main thread of a hung child is: the innermost lines faulthandler wrote shortly before the limit."""
        text = Path(self._stacks).read_text(encoding="utf-8", errors="replace") if os.path.exists(self._stacks) else ""
        main = re.split(r"\n(?=Thread |Current thread )", text.strip())[-1]  # the main thread comes last
        frames = re.findall(r'File "[^"]*?([^/"]+)", line (\d+) in (\S+)', main)[:4]
        return "; in " + " < ".join(f"{name}:{line} {function}" for name, line, function in frames) if frames else ""

    def close(self) -> None:
        self._pipe.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join(5)


# ---- the parent -----------------------------------------------------------------------------------------------------------
def lines_of(
    chosen: Iterable[Any], ask: Callable[[Any, float], dict[str, Any]], allowed: Allowances
) -> Iterator[dict[str, Any]]:
    """One result line a case, with the vendor's allowances applied."""
    for case in chosen:
        common = {
            "id": case.id,
            "op": case.op,
            "dtype": case.dtype,
            "kind": case.kind,
            "level": case.level,
            "preferred": case.preferred,
        }
        missing = allowed.missing(case)
        line = (
            {"result": "not-offered", "message": f"declared: {missing}"} if missing else ask(case, allowed.factor(case))
        )
        line = {"message": "", "worst": 0.0, "metric": "", "ns": 0, "fallbacks": 0, **line, **common}
        expected = allowed.failure(case)
        if expected and line["result"] == "pass":
            line |= {"result": "xpass", "message": f"passed, but was expected to fail: {expected}; remove the rule"}
        elif expected and line["result"] != "not-offered":
            line |= {"result": "xfail", "message": f"{expected}: {line['result']}: {line['message']}"}
        yield line


def _header(
    device: str,
    level: str,
    seed: int,
    facts: dict[str, Any],
    allowed: Allowances,
    ops: Sequence[str],
    shard: tuple[int, int],
    total: int,
) -> dict[str, Any]:
    import numpy

    driver = {
        k: facts.get(k) for k in ("model", "reduced_matmul", "flushes_subnormals", "triton_target", "image_format")
    }
    return {
        "kind": "header",
        "suite": "ops",
        "suite_version": SUITE_VERSION,
        "cases": digest(),
        "device": device,
        "level": level,
        "seed": seed,
        "ops": list(ops),
        "shard": list(shard),
        "total": total,
        "expected": counts(),
        **driver,
        "extra": {k: str(v) for k, v in (facts.get("extra") or {}).items()},
        "allowances": allowed.summary(),
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "compiler": _compiler(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _compiler() -> str:
    try:
        from importlib.metadata import version

        return f"triton {version('triton')}"
    except ImportError:
        return "none"


def done(path: Path, header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Lines of an earlier, cut-off run of the same suite, device and seed, by id.

    Raises:
        ArgumentError: the file is of another run.
    """
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # the line that was being written when the run was cut off
        if line.get("kind") == "header":
            other = [k for k in ("suite_version", "cases", "device", "seed") if line.get(k) != header[k]]
            if other:
                raise ArgumentError(
                    f"resume: {path.name} is of another run ({other[0]} {line.get(other[0])!r}, now "
                    f"{header[other[0]]!r}); choose another report folder"
                )
        elif "id" in line:
            found[line["id"]] = line
    return found


def patterns(text: str | Sequence[str]) -> tuple[str, ...]:
    """``"softmax,mm*"`` -> (``softmax``, ``mm*``)."""
    return tuple(filter(None, (p.strip() for p in text.split(",")))) if isinstance(text, str) else tuple(text)


def run(
    device: str = "cpu:0",
    level: str = "core",
    ops: str | Sequence[str] = (),
    case: str = "",
    shard: str = "",
    resume: bool = False,
    report: str | os.PathLike[str] = "",
    suite: str = "ops",
    seed: int = 0,
    timeout_s: float = 0.0,
    quiet: bool = False,
    make: Callable[..., Target] = DeviceTarget,
    arguments: tuple | None = None,
) -> Summary:
    """Run the suite on a device and write the report.

    Args:
        device: ``"cuda:0"``; in the suite ``hal`` also an adapter's file, ``"/opt/x/libx.so:0"``.
        level: core, inference, training, llm or full; each includes the ones before.  In the suite ``hal``: L0, L1, L2 or
            L3, and ``core`` stands for everything.
        ops: patterns of operators or case ids, a sequence or comma separated; none: all.
        case: only the case with this id, whatever its level.
        shard: ``"3/8"``: every eighth case, from the third; "" all of them.
        resume: continue the run whose report folder this is.
        report: folder for report.jsonl, report.xml and index.html; "": nothing is written.
        suite: ``ops`` (the operators) or ``hal`` (the driver).
        seed: of all inputs.
        timeout_s: seconds a case may take; 0: 60 for operators, 20 for checks of a driver.
        make, arguments: a Target other than the device (``make`` must be importable by name); for implementations.

    Raises:
        ArgumentError: an argument out of its range, no such device.
    """
    pair, wanted = parse_shard(shard) if shard else (1, 1), patterns(ops)
    if suite == "hal":
        from . import hal_runner

        return hal_runner.run_device(device, level="" if level == "core" else level, patterns=wanted, case=case, shard=pair, resume=resume,
                                     report=report, seed=seed, timeout_s=timeout_s or hal_runner.TIMEOUT_S, quiet=quiet)
    if suite != "ops":
        raise ArgumentError(f"conformance: suite {suite!r}; there are 'ops' and 'hal'")
    start = time.perf_counter()
    timeout_s = timeout_s or TIMEOUT_S
    try:
        chosen = [find(case)] if case else cases(level, wanted, pair)
    except (ValueError, KeyError) as error:
        raise ArgumentError(f"conformance: {error.args[0]}") from error
    if not chosen:
        raise ArgumentError(f"conformance: no case matches {', '.join(wanted)}; `haian conformance list` prints them")
    allowed = allowances.load(device)
    child = Child(_serve, (make, (device,) if arguments is None else arguments, seed, allowed))
    try:
        header = _header(device, level, seed, child.facts, allowed, (case,) if case else wanted, pair, len(chosen))
        folder = Path(report) if report else None
        earlier = done(folder / "report.jsonl", header) if folder and resume else {}
        fresh = lines_of(
            [c for c in chosen if c.id not in earlier], lambda c, factor: child.run(c, factor, timeout_s), allowed
        )
        kept = [earlier[c.id] for c in chosen if c.id in earlier]
        lines = kept + record(fresh, folder, header, kept, len(chosen), quiet, device)
    finally:
        child.close()
    summary = summarise(device, header, lines, time.perf_counter() - start)
    if folder:
        from . import report as pages

        summary.report = str(pages.write(folder, header, lines, summary.seconds))
    return summary


def summarise(device: str, header: dict[str, Any], lines: list[dict[str, Any]], seconds: float) -> Summary:
    tally = Counter(line["result"] for line in lines)
    level, why = (granted_hal if header["suite"] == "hal" else granted)(lines, header["expected"])
    fallen: Counter[str] = Counter()
    for line in lines:
        fallen[line["op"]] += line["fallbacks"]
    return Summary(
        device,
        {r: tally[r] for r in RESULTS},
        level,
        why,
        seconds,
        failures=[line for line in lines if line["result"] in BAD],
        fallbacks={k: v for k, v in fallen.items() if v},
    )


def record(
    fresh: Iterator[dict[str, Any]],
    folder: Path | None,
    header: dict[str, Any],
    kept: list[dict[str, Any]],
    total: int,
    quiet: bool,
    device: str,
) -> list[dict[str, Any]]:
    """Write lines as they come, and show how far it is."""
    lines: list[dict[str, Any]] = []
    stream = None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "report.jsonl").open("w", encoding="utf-8")
        for line in (header, *kept):
            stream.write(json.dumps(line) + "\n")
    try:
        with _Progress(total, len(kept), quiet, device) as progress:
            for line in fresh:
                lines.append(line)
                if stream:
                    stream.write(json.dumps(line) + "\n")
                    stream.flush()
                progress.step(line)
    finally:
        if stream:
            stream.close()
    return lines


class _Progress:
    """A bar on a terminal, a line every tenth in a log; failures are printed as they come."""

    def __init__(self, total: int, done: int, quiet: bool, device: str) -> None:
        self.total, self.done, self.quiet, self.bad, self.device = total, done, quiet, 0, device
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
        if not self.quiet and sys.stdout.isatty():
            try:
                from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
            except ImportError:  # rich is in the extra `conformance`; plain lines do
                return self
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[bad]}"),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.device, total=self.total, completed=self.done, bad="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def _say(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def step(self, line: dict[str, Any]) -> None:
        self.done += 1
        if line["result"] in BAD:
            self.bad += 1
            if not self.quiet and self.bad <= 20:
                self._say(f"{line['result'].upper()} {line['id']}: {line['message']}")
            elif not self.quiet and self.bad == 21:
                self._say("more failures stand in the report")
        if self._bar:
            self._bar.update(self._task, completed=self.done, bad=f"{self.bad} bad" if self.bad else "")
        elif not self.quiet and self.done * 10 // self.total > (self.done - 1) * 10 // self.total:
            print(f"{self.device}: {self.done}/{self.total} cases, {self.bad} bad", flush=True)


def run_in_process(
    target: Target,
    level: str = "core",
    ops: Sequence[str] = (),
    seed: int = 0,
    stop_at_failure: bool = False,
    chosen: Iterable[Case] | None = None,
) -> list[dict[str, Any]]:
    """The lines of a run in this process: for implementations that are Python objects, and for mutants."""
    lines = []
    for line in lines_of(
        cases(level, ops) if chosen is None else chosen,
        lambda c, factor: run_case(c, target, seed, factor).line(),
        Allowances(),
    ):
        lines.append(line)
        if stop_at_failure and line["result"] in BAD:
            break
    return lines
