"""Runs cases on a device in a warm child process (child.py), and writes one line a case as it goes.

Not here: how a case is judged (checks.py), what the report looks like (report.py).
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hal.errors import ArgumentError, EnvironmentMissing, HaianError
from . import allowances
from .allowances import Allowances
from .cases import SUITE_VERSION, Case, cases, counts, digest, find
from .checks import run_case
from .child import Child, refusal
from .levels import granted, granted_hal
from .target import DeviceTarget, Target

if TYPE_CHECKING:
    pass

__all__ = ["BAD", "RESULTS", "Child", "Summary", "done", "folder_of", "limit", "lines_of", "need_references", "parse_shard", "patterns", "record", "run", "run_in_process", "summarise"]

RESULTS = ("pass", "fail", "crash", "timeout", "not-offered", "xfail", "xpass")
BAD = ("fail", "crash", "timeout", "xpass")
TIMEOUT_S = 60.0  # a case's, unless the caller says otherwise
LONGEST_S = 1e6  # poll() counts milliseconds in 32 bits


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
    claims: list[str] = field(default_factory=list)  # of a driver: not proven, or excusing from checks

    @property
    def ok(self) -> bool:
        """Whether something was run, and nothing failed, crashed, hung or passed unexpectedly."""
        return self.present and not any(self.counts.get(r) for r in BAD)

    def __str__(self) -> str:
        if not self.present:
            return f"{self.device}: not present ({self.why}); nothing was checked"
        said = ", ".join(f"{n} {r}" for r, n in self.counts.items() if n)
        level = f"level {self.level} granted" if self.level else "no level granted"
        level += f", claims {', '.join(self.claims)}" if self.claims else ""
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


def limit(timeout_s: float | None, usual: float) -> float:
    """The time limit of a case in seconds; ``usual`` where none is given.

    Raises:
        ArgumentError: not above 0, or too long to wait for.
    """
    if timeout_s is None:
        return usual
    if not 0 < timeout_s <= LONGEST_S:
        raise ArgumentError(f"conformance: timeout_s {timeout_s:g}; needs seconds above 0 and up to {LONGEST_S:g}")
    return timeout_s


def need_references() -> None:
    """Without what the references import every case of theirs would fail, and look like the chip's fault.

    Raises:
        EnvironmentMissing: scipy is not installed.
    """
    if importlib.util.find_spec("scipy") is None:
        raise EnvironmentMissing("conformance: the references need scipy, which is not installed; install haian[conformance]")


def folder_of(report: str | os.PathLike[str]) -> Path | None:
    """The folder a report goes to, made and tried before anything runs; None where none is wanted.

    Raises:
        ArgumentError: it cannot be written to.  EnvironmentMissing: what makes the page is not installed.
    """
    from ..reporting.page import lacking, unwritable

    if not os.fspath(report):
        return None
    if why := lacking():
        raise EnvironmentMissing(f"conformance: {why}; install haian[conformance]")
    if why := unwritable(report):
        raise ArgumentError(f"conformance: {why}")
    return Path(report)


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
    except (HaianError, NotImplementedError, ImportError, OSError) as error:
        connection.send(refusal(error))
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
        if not isinstance(line, dict):
            continue
        if line.get("kind") == "header":
            other = [k for k in ("suite_version", "cases", "device", "seed") if line.get(k) != header[k]]
            if other:
                raise ArgumentError(
                    f"resume: {path.name} is of another run ({other[0]} {line.get(other[0])!r}, now "
                    f"{header[other[0]]!r}); choose another report folder"
                )
        elif {"id", "op", "dtype", "kind", "level", "result", "message", "worst", "ns", "fallbacks"} <= line.keys():
            found[line["id"]] = line
    return found


def patterns(text: str | Sequence[str]) -> tuple[str, ...]:
    """``"softmax,mm*"`` -> (``softmax``, ``mm*``).

    Raises:
        ArgumentError: commas without a name.
    """
    if not isinstance(text, str):
        return tuple(text)
    found = tuple(filter(None, (p.strip() for p in text.split(","))))
    if text and not found:
        raise ArgumentError(f"conformance: {text!r} names nothing; needs names or patterns, comma separated, such as 'softmax,mm*'")
    return found


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
    timeout_s: float | None = None,
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
        timeout_s: seconds a case may take; None: 60 for operators, 20 for checks of a driver.
        make, arguments: a Target other than the device (``make`` must be importable by name); for implementations.

    Raises:
        ArgumentError: an argument out of its range or that means nothing, no such device, a folder that cannot be written to.
        EnvironmentMissing: what the references, the page or the device's kernels need is not installed.
        Otherwise what the device's driver raises when it is asked for its properties.
    """
    if case and (ops or shard):
        raise ArgumentError(f"conformance: case {case!r} together with {'ops' if ops else 'shard'}; one case is no selection, leave one out")
    pair, wanted = parse_shard(shard) if shard else (1, 1), patterns(ops)
    if suite == "hal":
        from . import hal_runner

        return hal_runner.run_device(device, level="" if level == "core" else level, patterns=wanted, case=case, shard=pair, resume=resume,
                                     report=report, seed=seed, timeout_s=timeout_s, quiet=quiet)
    if suite != "ops":
        raise ArgumentError(f"conformance: suite {suite!r}; there are 'ops' and 'hal'")
    start = time.perf_counter()
    seconds = limit(timeout_s, TIMEOUT_S)
    chosen = [find(case)] if case else cases(level, wanted, pair)
    if not chosen:
        raise ArgumentError(f"conformance: shard {shard} holds no case; there are fewer than {pair[0]}")
    need_references()
    allowed, folder = allowances.load(device), folder_of(report)
    child = Child(_serve, (make, (device,) if arguments is None else arguments, seed, allowed))
    try:
        header = _header(device, level, seed, child.facts, allowed, (case,) if case else wanted, pair, len(chosen))
        earlier = done(folder / "report.jsonl", header) if folder and resume else {}
        fresh = lines_of(
            [c for c in chosen if c.id not in earlier], lambda c, factor: child.run(c, factor, seconds), allowed
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
        claims=[row["claim"] for row in header.get("claims", ())],
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
