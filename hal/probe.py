"""Tries an adapter in a child process first: one that crashes, exits or hangs while loading costs itself only.

The child loads it, counts its devices, asks each for its facts, and writes what it came to.  Every adapter that is not haian's
own is tried so before this process loads it; HAIAN_ADAPTER_PROBE=0 turns that off, another number is the time limit in seconds.
All children of a discovery run at once.  One costs 170 ms (215 ms for a driver in C; two quiet cores), mostly Python and NumPy starting, beside this process's own start.
Not here: which files may be loaded (trust.py), the loading itself (registry.py).
"""
from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

__all__ = ["Probe", "limit_s", "start"]

LIMIT_S = 20.0  # a runtime that starts eight devices takes some seconds
_STAGES = {"load": "while it was loaded", "device_count": "in device_count", "props": "in props", "offers": "while its groups were asked for"}
_CODE = "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given['path']; from haian.hal.probe import child; child(given)"
_KILLED = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


@dataclass(frozen=True)
class Probe:
    """What trying an adapter came to.

    Attributes:
        died: "" or how the child ended, "died of SIGSEGV while it was loaded"; nothing else is then to be believed.
        error: the exception it raised, as text; the adapter may be loaded, and raises the same again.
        facts: name, vendor, version, abi, path, count, groups, capabilities (one dict a device), and what an engine's table
            says: looked, missing, unconfirmed, why_none.
        said: the last lines it wrote to its output.
        seconds: what trying took.
    """

    died: str = ""
    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    said: str = ""
    seconds: float = 0.0


def limit_s() -> float:
    """Seconds a child may take; 0: adapters are not tried first."""
    try:
        return max(float(os.environ.get("HAIAN_ADAPTER_PROBE", "") or LIMIT_S), 0.0)
    except ValueError:
        return LIMIT_S


_done: dict[tuple[object, ...], Callable[[], Probe]] = {}


def start(source: Path | EntryPoint, limit: float) -> Callable[[], Probe]:
    """Begins to try an adapter; the function returned waits for the outcome.  An unchanged file is tried once a process."""
    key: tuple[object, ...] = ("", source)
    if isinstance(source, Path):
        found = source.stat()
        key = (str(source), found.st_ino, found.st_mtime_ns, found.st_size)
    if key not in _done:
        _done[key] = _Child(source, limit).result
    return _done[key]


class _Child:
    def __init__(self, source: Path | EntryPoint, limit: float) -> None:
        self._begin, self._limit = time.monotonic(), limit
        self._answer, self._output = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        given: dict[str, Any] = {"path": sys.path, "answer": self._answer.fileno()}
        given |= {"file": str(source)} if isinstance(source, Path) else {"point": [source.name, source.value, source.group]}
        # Files instead of pipes: whatever the adapter starts may keep them open, and nobody waits for it.
        self._process = subprocess.Popen(
            [_python(), "-c", _CODE, json.dumps(given)], stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, start_new_session=True,
            pass_fds=(self._answer.fileno(),), env={**os.environ, "HAIAN_ADAPTER_PROBE": "0"})
        self._result: Probe | None = None

    def result(self) -> Probe:
        if self._result is None:
            late = False
            try:
                self._process.wait(max(self._begin + self._limit - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                late = True
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._result = self._read(late)
            self._answer.close()
            self._output.close()
        return self._result

    def _read(self, late: bool) -> Probe:
        self._answer.seek(0)
        lines = [json.loads(line) for line in self._answer.read().splitlines() if line.endswith(b"}")]
        stage = next((line["stage"] for line in reversed(lines) if "stage" in line), "load")
        last = lines[-1] if lines else {}
        self._output.seek(0)
        said = "\n".join(self._output.read()[-4000:].decode(errors="replace").strip().splitlines()[-5:])
        code, died = self._process.returncode, ""
        if late:
            died = f"did not end within {self._limit:g} s {_STAGES[stage]}"
        elif code < 0:
            died = f"died of {signal.Signals(-code).name} {_STAGES[stage]}"
        elif "facts" not in last and "error" not in last:
            died = f"ended the process with exit code {code} {_STAGES[stage]}"
        return Probe(died, last.get("error", ""), last.get("facts", {}), said, time.monotonic() - self._begin)


def _python() -> str:
    """The interpreter, also where another program embeds it and said so to multiprocessing."""
    from multiprocessing import spawn

    found = spawn.get_executable()
    return os.fsdecode(found) if found else sys.executable


# ---- in the child -------------------------------------------------------------------------------------------------------
def child(given: dict[str, Any]) -> None:
    """Tries what ``start`` named, writes its lines, and ends without running anything the adapter left for the end."""
    from . import registry
    from .driver import GROUPS, devices_of, offers
    from .errors import HaianError

    def say(**line: Any) -> None:
        os.write(given["answer"], json.dumps(line, default=str).encode() + b"\n")

    try:
        say(stage="load")
        if "file" in given:
            driver = registry._driver_of_file(Path(given["file"]))
        else:
            driver = registry._driver_of_point(EntryPoint(*given["point"]))
        say(stage="device_count")
        count = devices_of(driver)
        say(stage="props")
        capabilities = []
        for device in range(count):
            try:
                capabilities.append(dataclasses.asdict(driver.props(device)))
            except HaianError as error:  # such a device is listed all the same
                capabilities.append({"error": f"{type(error).__name__}: {error}"})
        say(stage="offers")
        abi: Any = getattr(driver, "table", None)
        facts = {"name": driver.name, "vendor": driver.vendor, "version": driver.version, "path": str(getattr(driver, "path", "")), "count": count,
                 "abi": f"{abi.abi_major}.{abi.abi_minor}" if hasattr(abi, "abi_major") else "", "kind": _kind(driver),
                 "groups": [g for g in GROUPS if offers(driver, g)], "capabilities": capabilities}
        facts |= {name: getattr(driver, name) for name in ("looked", "missing", "unconfirmed", "why_none") if hasattr(driver, name)}
        say(facts=facts)
    except Exception as error:  # noqa: BLE001 - third-party code: whatever it raises is the outcome
        say(error=f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    os._exit(0)


def _kind(driver: object) -> str:
    """How the adapter is made: "C", "table" or "Python"."""
    table = getattr(driver, "table", None)
    return "C" if hasattr(table, "abi_major") else "table" if hasattr(table, "calls") else "Python"
