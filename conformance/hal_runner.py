"""Runs the checks of the HAL suite: in a warm child process (``run_hal``), or in this one (``check_driver``, for mutants).

Not here: what a check does (hal_checks/), the child process, the report and progress (runner.py, report.py).
"""
from __future__ import annotations

import fnmatch
import hashlib
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hal.driver import GROUPS, Driver, devices_of, offers
from ..hal.errors import ArgumentError, EnvironmentMissing, HaianError
from .child import refusal
from .hal_checks.check import HAL_VERSION, Check, NotOffered, Subject, find, load_checks, of_device
from .hal_checks.claims import claims
from .levels import HAL_LEVELS, hal_level, select

if TYPE_CHECKING:  # the child needs neither: they bring the operators, 0.4 s of importing
    from .allowances import Allowances
    from .runner import Summary

__all__ = ["HalCase", "check_driver", "hal_cases", "hal_counts", "hal_digest", "run_hal"]

TIMEOUT_S = 20.0
_CORE = ("stream", "event")  # what level L2 is about: a check that lacks one of them is never excused


@dataclass(frozen=True)
class HalCase:
    """One check in one mode, with the fields every suite's case has.

    op: the file it stands in; dtype: "on" or "off", the validation; kind: C, S, P or X.
    """

    id: str
    op: str
    dtype: str
    kind: str
    level: str
    check: Check
    preferred: bool = True

    def matches(self, pattern: str) -> bool:
        """Whether a pattern means it: an id, one without its mode, a file, or a number ("14", "hal/3?_*", "memory")."""
        names = (self.id, self.id.rpartition("/")[0], self.op, str(self.check.number), f"{self.check.number:02d}_{self.check.name}")
        return any(fnmatch.fnmatchcase(n, pattern) for n in names)


def hal_cases(level: str = "", patterns: Sequence[str] = (), shard: tuple[int, int] = (1, 1)) -> list[HalCase]:
    """The checks of a level ("" all, else L0..L3 and those before), in the order of their numbers.

    Raises:
        ArgumentError: no such level, or a pattern that matches none of its checks.
    """
    if level and level not in HAL_LEVELS:
        raise ArgumentError(f"level {level!r}; the HAL suite needs one of {', '.join(HAL_LEVELS)}")
    found = []
    for c in load_checks().values():
        case_level = hal_level(c.number, c.level)
        if level and (not case_level or HAL_LEVELS.index(case_level) > HAL_LEVELS.index(level)):
            continue
        for mode in c.modes:
            found.append(HalCase(c.id(mode), c.run.__module__.rpartition(".")[2], mode, c.level, case_level, c))
    chosen = select(found, patterns, HalCase.matches, "check of the HAL suite; `haian conformance list --suite hal` prints them")
    return chosen[shard[0] - 1 :: shard[1]]


def hal_counts() -> dict[str, int]:
    """How many results each level adds."""
    return {level: sum(c.level == level for c in hal_cases()) for level in HAL_LEVELS}


def hal_digest() -> str:
    """Names all ids in 16 hexadecimal digits: reports of different suites are not comparable."""
    return hashlib.blake2b("\n".join(c.id for c in hal_cases()).encode(), digest_size=8).hexdigest()


# ---- one check ------------------------------------------------------------------------------------------------------------
def _run_one(case: HalCase, raw: Driver, device: int, factory: Callable[..., Driver], arguments: tuple, seed: int) -> dict[str, Any]:
    """The result, message and nanoseconds of a check, with its leftovers given back."""
    start = time.perf_counter_ns()
    line: dict[str, Any] = {"result": "pass", "message": ""}
    subject: Subject | None = None
    try:
        subject = Subject(raw, device, case.dtype == "on", factory, arguments, seed, case.id)
        subject.need(*case.check.needs)
        case.check.run(subject)
    except NotOffered as reason:
        absent = case.kind == "S" and not all(offers(raw, group) for group in _CORE)
        line = {"result": "not-offered", "message": str(reason), "exempt": case.check.exempt and not absent}
    except AssertionError as error:
        line = {"result": "fail", "message": str(error) or "an assertion without a message"}
    except Exception as error:  # noqa: BLE001 - a driver's, a check's or Python's own: none of them is a pass
        line = {"result": "fail", "message": f"{type(error).__name__}: {error}"}
    ns = time.perf_counter_ns() - start
    if subject is not None:
        try:
            subject.close()
        except Exception as error:  # noqa: BLE001 - giving back what is left is the driver's code too
            if line["result"] == "pass":
                line = {"result": "fail", "message": f"giving back what is left: {type(error).__name__}: {error}"}
    return {**line, "ns": ns}


class _Warm:
    """The driver object that serves check after check; another one after a failure."""

    def __init__(self, factory: Callable[..., Driver], arguments: tuple) -> None:
        self.factory, self.arguments = factory, arguments
        self.driver = factory(*arguments)
        if not getattr(self.driver, "path", ""):  # a .so is begun by its first device_count, once for all objects of it
            self.driver.init()

    def renew(self) -> None:
        """A .so and a runtime that starts only once stay what they are."""
        try:
            once = self.driver.props(0).init_once
        except Exception:  # noqa: BLE001 - a driver that cannot even say that is dropped as it is
            once = False
        if not getattr(self.driver, "path", "") and not once:
            self.driver = self.factory(*self.arguments)
            self.driver.init()


# ---- in this process --------------------------------------------------------------------------------------------------------
def check_driver(factory: Callable[..., Driver], arguments: tuple = (), device: int = 0, seed: int = 0, timeout_s: float = TIMEOUT_S,
                 chosen: Iterable[HalCase] | None = None, stop_at_failure: bool = False) -> list[dict[str, Any]]:
    """The lines of a run in this process: for drivers in Python, and for mutants of them.

    A check runs on a thread of its own; one that does not end in time is a timeout, and its thread is left behind.  A
    crash is not caught: drivers in C go to ``run_hal``.
    """
    warm = _Warm(factory, arguments)
    lines = []
    for case in hal_cases() if chosen is None else chosen:
        answer: list[dict[str, Any]] = []

        def body() -> None:
            answer.append(_run_one(case, warm.driver, device, factory, arguments, seed))  # noqa: B023 - the thread ends, or is left, in this round

        worker = threading.Thread(target=body, name=case.id, daemon=True)
        worker.start()
        limit = case.check.timeout_s or timeout_s
        worker.join(limit)
        line = answer[0] if answer else {"result": "timeout", "message": f"no answer within {limit:g} s", "ns": int(limit * 1e9)}
        lines.append({"id": case.id, "op": case.op, "dtype": case.dtype, "kind": case.kind, "level": case.level, **line})
        if line["result"] in ("fail", "timeout"):
            if stop_at_failure:
                break
            warm.renew()
    return lines


# ---- in a child process -----------------------------------------------------------------------------------------------------
def _serve(connection: Connection, stacks: str, factory: Callable[..., Driver], arguments: tuple, device: int, seed: int) -> None:
    """Answers ids with results until the pipe closes.  First answer: facts about the driver, or why there is none."""
    import faulthandler

    try:
        warm = _Warm(factory, arguments)
        connection.send({"facts": _facts(warm.driver, device)})
    except EnvironmentMissing as error:
        connection.send({"facts": {"absent": str(error)}})
        return
    except (HaianError, NotImplementedError, ImportError, OSError) as error:
        connection.send(refusal(error))
        return
    cases = {c.id: c for c in hal_cases()}
    where = open(stacks, "w")
    while True:
        try:
            case_id, _, timeout_s = connection.recv()
        except EOFError:
            return
        faulthandler.dump_traceback_later(timeout_s * 0.9, file=where)  # says where a hang sits
        line = _run_one(cases[case_id], warm.driver, device, factory, arguments, seed)
        if line["result"] == "fail":
            warm.renew()
        faulthandler.cancel_dump_traceback_later()
        connection.send(line)


def _facts(driver: Driver, device: int) -> dict[str, Any]:
    """What the header says of a driver; ``absent`` where there is no such device."""
    count = devices_of(driver)
    facts: dict[str, Any] = {"driver": driver.name, "vendor": driver.vendor, "driver_version": driver.version, "devices": count,
                             "groups": [g for g in GROUPS if offers(driver, g)], "adapter_path": str(getattr(driver, "path", ""))}
    if library := str(getattr(driver, "library_path", "")):  # a table over a vendor's library, or over what stands in for it
        remark = str(getattr(driver, "remark", ""))
        facts |= {"library": library, "stand_in": str(getattr(driver, "stand_in", "")), "unconfirmed": dict(getattr(driver, "unconfirmed", {})),
                  "vendor": f"{driver.vendor} ({remark})" if remark else driver.vendor}
    facts["extra"] = {"haian": _haian(), "adapter sha256": _digest(driver), "not offered, so not checked": ", ".join(g for g in GROUPS if not offers(driver, g)) or "-",
                      "runs": "every check bare and, where it means something, under the validation layer; HAIAN_VALIDATE changes neither"}
    if not 0 <= device < count:
        return {**facts, "absent": f"{driver.name} has {count} devices, numbered from 0; number {device} was asked for"}
    try:
        p = driver.props(device)
        facts |= {"model": p.model, "runtime_version": p.driver_version, "async": p.async_copy, "image_format": p.image_format,
                  "claims": claims(driver, p)}
    except HaianError as error:  # a finding of check 10; the run goes on
        facts |= {"model": f"props failed: {error}"}
    return facts


def _digest(driver: Driver) -> str:
    """Of the file that defines the driver, and its name: what a report is about.  "-" where there is no file."""
    defined = getattr(sys.modules.get(type(driver).__module__), "__file__", None)
    path = Path(getattr(driver, "path", "") or defined or "")
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()} of {path.name}" if path.is_file() else "-"


def _haian() -> str:
    """Version, and the revision of a source tree."""
    from .. import __version__

    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return f"{__version__} ({done.stdout.strip()})" if done.returncode == 0 and (root / ".git").exists() else __version__


def _allowed(name: str) -> Allowances:
    """The rules of an adapter, by name or beside its file."""
    from . import allowances

    if os.sep not in name:
        return allowances.load(name)
    rules = allowances.beside(Path(name))
    return allowances.read(rules) if rules else allowances.Allowances()


def run_hal(factory: Callable[..., Driver] | str, arguments: tuple = (), device: int = 0, name: str = "", level: str = "",
            patterns: Sequence[str] = (), case: str = "", shard: tuple[int, int] = (1, 1), resume: bool = False,
            report: str | os.PathLike[str] = "", seed: int = 0, timeout_s: float | None = None, quiet: bool = False,
            allowed: Allowances | None = None) -> Summary:
    """Run the HAL suite on a driver in a child process, and write the report.

    Args:
        factory: makes the driver: something importable by name, or the name itself, ``"package.module:name"``.
        arguments: of the factory; must be picklable.
        device: its number.
        name: stands in the report; "" the driver's.
        level: "" everything, or L0, L1, L2, L3.
        patterns: of ids, files or numbers (HalCase.matches); case: one id.
        shard, resume, report, seed, quiet: as in ``runner.run``.
        timeout_s: seconds a check may take, unless it says otherwise itself; None: 20.
        allowed: the vendor's rules; None: none.

    Returns:
        What it came to; ``present`` is False where there is no such device.

    Raises:
        ArgumentError: an argument out of its range.  Otherwise what the driver raises while it is loaded.
    """
    from . import runner
    from .allowances import Allowances

    start = time.perf_counter()
    make, timeout_s = _resolve(factory), runner.limit(timeout_s, TIMEOUT_S)
    chosen = hal_cases(level, patterns, shard) if not case else [c for c in hal_cases() if c.id == find(case)[0].id(find(case)[1])]
    if not chosen:
        raise ArgumentError(f"conformance: shard {shard[0]}/{shard[1]} holds no check; there are fewer than {shard[0]}")
    allowed, folder = allowed or Allowances(), runner.folder_of(report)
    child = runner.Child(_serve, (make, arguments, device, seed))
    try:
        facts = child.facts
        said = name or f"{facts.get('driver', '?')}:{device}"
        header = _header(said, level, seed, facts, allowed, (case,) if case else patterns, shard, len(chosen))
        absent = facts.get("absent", "")
        if absent:
            lines: list[dict[str, Any]] = []
            header["total"] = 0
        else:
            earlier = runner.done(folder / "report.jsonl", header) if folder and resume else {}
            fresh = runner.lines_of([c for c in chosen if c.id not in earlier],
                                    lambda c, factor: child.run(c, factor, c.check.timeout_s or timeout_s), allowed)
            kept = [earlier[c.id] for c in chosen if c.id in earlier]
            lines = kept + runner.record(fresh, folder, header, kept, len(chosen), quiet, said)
    finally:
        child.close()
    summary = runner.summarise(said, header, lines, time.perf_counter() - start)
    summary.present, summary.why = not absent, absent or summary.why
    if folder:
        from . import report as pages

        summary.report = str(pages.write(folder, header, lines, summary.seconds))
    return summary


def run_device(device: str, **more: Any) -> Summary:
    """``run_hal`` for ``"sim:0"`` or an adapter's file, ``"/opt/x/libx.so:0"``."""
    factory, arguments, index = of_device(device)
    name = "" if os.sep in device else f"{arguments[0]}:{index}"
    return run_hal(factory, arguments, index, name=name, allowed=_allowed(arguments[0]), **more)


def _resolve(factory: Callable[..., Driver] | str) -> Callable[..., Driver]:
    if not isinstance(factory, str):
        return factory
    import importlib

    module, _, name = factory.partition(":")
    found = getattr(importlib.import_module(module), name, None)
    if not callable(found):
        raise ArgumentError(f"conformance: {factory!r} is no factory of drivers; needs 'package.module:name'")
    return found


def _header(name: str, level: str, seed: int, facts: dict[str, Any], allowed: Allowances, patterns: Sequence[str], shard: tuple[int, int],
            total: int) -> dict[str, Any]:
    import numpy

    return {
        "kind": "header", "suite": "hal", "suite_version": HAL_VERSION, "cases": hal_digest(), "device": name, "level": level or "all",
        "seed": seed, "validation": ["off", "on"], "ops": list(patterns), "shard": list(shard), "total": total, "expected": hal_counts(),
        "model": "", **facts, "allowances": allowed.summary(), "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(), "numpy": numpy.__version__, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
