"""Which devices exist: finds adapters, numbers their devices, and says why one was refused.

Three routes and no other: entry points of group ``haian.adapters``, files named in HAIAN_ADAPTER_PATH, ``load_adapter``.
Nothing is loaded at import; a broken adapter is recorded with its error and skipped, and so is one that crashes: adapters that
are not haian's own are tried in a child process first (probe.py).  Which files may be loaded at all is decided in trust.py.
"""
from __future__ import annotations

import importlib.util
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .device import Device
from .driver import Driver, devices_of
from .errors import (
    ArgumentError,
    EnvironmentMissing,
    HaianError,
    InternalError,
    PermissionRefused,
    Unsupported,
    one_line,
)
from .trust import check_file
from .validate import validate

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from .probe import Probe

__all__ = ["AdapterRecord", "Registry", "adapter_file", "at", "device", "devices", "installed", "load_adapter", "records", "report"]

GROUP = "haian.adapters"
HOST = "cpu"  # device 0 of every process; always loaded, since everything can fall back to it
SIMULATED = "sim"  # a device like others, but behind real ones
_NAME = re.compile(r"[a-z][a-z0-9_]*")
TAKEN = ("haian",)  # PyTorch's devices are called haian:0 for all drivers together


@dataclass
class AdapterRecord:
    """One adapter that was looked at: a row of ``haian doctor``.

    Attributes:
        name: what its devices are called.
        source: where it came from: a distribution, a file, ``load_adapter``.
        status: ``loaded``, ``skipped`` (by HAIAN_ADAPTERS) or ``failed``.
        error: why it is not loaded, else ``None``; kept as the exception itself.
        driver: the driver in use, ``None`` unless loaded.
        devices: its devices.
    """

    name: str
    source: str
    status: str
    error: Exception | None = None
    driver: Driver | None = None
    devices: list[Device] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Name, source, status, error and devices (name and model), as plain strings and lists.

        Of drivers made from a table also: ``note`` (why there is no device), ``looked`` (where its library was looked for),
        ``missing`` (symbols the library lacks) and ``unconfirmed`` (what in the table no public source settles).
        """
        found = []
        for dev in self.devices:
            try:
                found.append(f"{dev.name} ({dev.capabilities.model})")
            except Exception as e:  # noqa: BLE001 - third-party code: a device that cannot even say what it is still belongs in the report
                found.append(f"{dev.name} (props failed: {one_line(e)})")
        error = f"{type(self.error).__name__}: {one_line(self.error)}" if self.error else ""
        facts = {"note": "why_none", "looked": "looked", "missing": "missing", "unconfirmed": "unconfirmed"}
        more = {word: getattr(self.driver, name) for word, name in facts.items() if hasattr(self.driver, name)}
        return {"name": self.name, "source": self.source, "status": self.status, "error": error, "devices": found, **more}


def _entry_points() -> Sequence[EntryPoint]:
    """Installed adapters, host first, simulator last, the others by name.  What lies in the current directory is not installed."""
    from importlib.metadata import distributions  # 15 ms to import, needed once

    here = os.path.realpath(os.getcwd())
    paths = [p for p in sys.path if p and (os.path.realpath(p) != here or p.endswith("-packages"))]
    first: dict[str, list[EntryPoint]] = {}  # the distribution that Python would import, by name
    for found in distributions(path=paths):
        name = found.metadata["Name"] if found.read_text("entry_points.txt") else None  # reading all metadata would take 0.2 s
        if name and name not in first:
            first[name] = [e for e in found.entry_points if e.group == GROUP]
    rank = {HOST: 0, SIMULATED: 2}
    return sorted((e for points in first.values() for e in points), key=lambda e: (rank.get(e.name, 1), e.name, e.value))


class Registry:
    """The adapters and devices of a process.  Thread-safe; discovery happens once, on the first question."""

    def __init__(self, entry_points: Callable[[], Sequence[EntryPoint]] = _entry_points) -> None:
        self._entry_points = entry_points
        self._lock = threading.RLock()
        self._ready = False
        self._records: list[AdapterRecord] = []
        self._devices: list[Device] = []
        self._by_name: dict[str, Device] = {}

    # ---- questions -------------------------------------------------------------------------------------------------
    def devices(self) -> list[Device]:
        """All devices; the place in this list is ``Device.position`` and never changes during the process."""
        self._discover()
        return list(self._devices)

    def device(self, spec: Device | str | int) -> Device:
        """The device for ``"sim:1"``, ``"sim"`` (its device 0), a position, or a Device.

        Raises:
            ArgumentError: there is no such device; the message lists those that exist.
        """
        if isinstance(spec, Device):
            return spec
        self._discover()
        if isinstance(spec, str):
            found = self._by_name.get(spec if ":" in spec else f"{spec}:0")
            if found is not None:
                return found
        elif isinstance(spec, int) and not isinstance(spec, bool) and 0 <= spec < len(self._devices):
            return self._devices[spec]
        raise ArgumentError(f"device {spec!r}: there are {', '.join(self._by_name) or 'none'}{self._why(spec)}; "
                            f"`haian doctor` says what was found and why not")

    def at(self, position: int) -> Device:
        """The device with this ``Tensor.device_index``."""
        if position >= len(self._devices):
            self._discover()
        return self._devices[position]

    def records(self) -> list[AdapterRecord]:
        self._discover()
        return list(self._records)

    def report(self) -> list[dict[str, Any]]:
        """One row an adapter that was looked at, see ``AdapterRecord.row``."""
        return [r.row() for r in self.records()]

    def load_adapter(self, source: str | os.PathLike[str] | Driver | type[Driver] | Callable[[], Driver]) -> list[Device]:
        """Adds an adapter now: a Driver (object, class or factory, which may give a path as well), or the absolute path of a
        ``.py`` file, a ``.so`` with ``hal_get_adapter``, or a folder with one of them (``adapter_file``).

        It is loaded into this process at once: what was named by hand is not tried in a child first.

        Returns:
            Its devices, behind all earlier ones.

        Raises:
            EnvironmentMissing: no such file.  PermissionRefused: a relative path, or a file that trust.py refuses.
            VersionMismatch: a ``.so`` of another ABI.
            ArgumentError: no driver in there, its table breaks the contract, or its name is taken.
        """
        self._discover()
        with self._lock:
            if isinstance(source, (str, os.PathLike)):
                path = Path(source)
                record = self._try(path.stem, str(path), lambda: _driver_of_file(path))
            else:
                name = getattr(source, "name", "") or getattr(source, "__name__", "?")
                record = self._try(str(name), "load_adapter", lambda: _driver_of(source))
        if record.error is not None:
            raise record.error
        return record.devices

    # ---- discovery -------------------------------------------------------------------------------------------------
    def _discover(self) -> None:
        if self._ready:
            return
        with self._lock:
            if self._ready:
                return
            self._records, self._devices, self._by_name = [], [], {}
            _validating()  # a wrong value is the user's error, not every adapter's
            wanted = _wanted()
            tries: list[tuple[str, str, Callable[[], Driver], Callable[[], Probe] | None]] = []
            for point in self._entry_points():
                source = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
                if self._skip(point.name, source, {point.name}, wanted):
                    continue
                tries.append((point.name, source, partial(_driver_of_point, point), _probe(point)))
            for path in _adapter_files():
                source = f"HAIAN_ADAPTER_PATH: {path}"
                if not self._skip(path.stem, source, _words(path), wanted):
                    tries.append((path.stem, source, partial(_driver_of_file, path), _probe(path)))
            for name, source, make, probe in tries:  # children of all of them run by now
                self._try(name, source, make, probe)
            found = {r.name for r in self._records} | {word for t in tries for word in (t[0], t[0].removeprefix("lib"))}
            for name in sorted((wanted or set()) - found):
                gone = EnvironmentMissing(f"{name}: HAIAN_ADAPTERS names it, no installed package offers it; install its adapter")
                self._records.append(AdapterRecord(name, "HAIAN_ADAPTERS", "failed", gone))
            host = next((r for r in self._records if r.name == HOST), None)
            if not self._devices or self._devices[0].driver.name != HOST:
                raise EnvironmentMissing(f"adapter cpu: {host.error if host else 'not installed'}; haian's own host adapter is "
                                         f"needed on every machine, reinstall haian")
            self._ready = True

    def _skip(self, name: str, source: str, words: set[str], wanted: set[str] | None) -> bool:
        """Records an adapter that HAIAN_ADAPTERS leaves out; none of its code runs."""
        if wanted is None or words & wanted:
            return False
        why = Unsupported(f"{name}: not in HAIAN_ADAPTERS={os.environ['HAIAN_ADAPTERS']}; add {' or '.join(sorted(words))} there to use it")
        self._records.append(AdapterRecord(name, source, "skipped", why))
        return True

    def _try(self, name: str, source: str, make: Callable[[], Driver], probe: Callable[[], Probe] | None = None) -> AdapterRecord:
        """Makes one driver and numbers its devices; every failure ends in the record, none escapes."""
        record = AdapterRecord(name, source, "failed")
        self._records.append(record)
        try:
            if probe is not None and (outcome := probe()).died:
                raise InternalError(f"adapter {name}: {outcome.died}, in a child process, so nothing else is harmed; "
                                    f"`haian adapter check` shows what it wrote")
            driver = make()
            record.name = driver.name or name
            taken = {d.name.partition(":")[0] for d in self._devices} | {r.name for r in self._records if r.driver}
            if not _NAME.fullmatch(driver.name or ""):
                raise ArgumentError(f"adapter name {driver.name!r}: needs a lower-case word such as 'mychip'; set Driver.name")
            if driver.name in TAKEN:
                raise ArgumentError(f"adapter name {driver.name!r} is haian's own; choose another for Driver.name")
            if driver.name in taken:
                raise ArgumentError(f"adapter {driver.name!r} exists already; rename one or restrict HAIAN_ADAPTERS")
            count = devices_of(driver)
            if _validating():
                driver = validate(driver)
        except SystemExit as e:
            record.error = InternalError(f"adapter {name}: asked the process to end (SystemExit {e.code}); raise a HaianError instead")
            return record
        except Exception as e:  # noqa: BLE001 - third-party code: whatever it raises must not stop the others
            record.error = _in_one_line(name, e)
            return record
        record.status, record.driver = "loaded", driver
        for index in range(count):
            dev = Device(driver, index, len(self._devices))
            self._devices.append(dev)
            self._by_name[dev.name] = dev
            record.devices.append(dev)
        return record

    def _why(self, spec: object) -> str:
        """What is known of an adapter that was asked for and is not there."""
        name = str(spec).partition(":")[0]
        return "".join(f" ({r.name} {r.status}: {r.error})" for r in self._records if r.name == name and r.error)


def _in_one_line(name: str, error: Exception) -> Exception:
    """The exception itself, or one of its kind whose message has no line breaks."""
    if "\n" not in str(error):
        return error
    kind = type(error) if isinstance(error, HaianError) else InternalError
    made = kind(one_line(error) if kind is type(error) else f"adapter {name}: {type(error).__name__}: {one_line(error)}")
    made.__cause__ = error
    return made


def _validating() -> bool:
    text = os.environ.get("HAIAN_VALIDATE") or "0"
    if text not in ("0", "1"):
        raise ArgumentError(f"HAIAN_VALIDATE={text}; needs 0 or 1")
    return text == "1"


def _wanted() -> set[str] | None:
    text = os.environ.get("HAIAN_ADAPTERS", "").strip()
    return {n.strip() for n in text.split(",") if n.strip()} | {HOST} if text else None


def _adapter_files() -> list[Path]:
    """Files and adapters' folders that HAIAN_ADAPTER_PATH names, and all .so files of other folders it names; never of a relative one."""
    out: list[Path] = []
    for part in filter(None, os.environ.get("HAIAN_ADAPTER_PATH", "").split(os.pathsep)):
        path = Path(part)
        if path.is_absolute() and path.is_dir() and not any((path / name).exists() for name in ("runtime.py", "pyproject.toml")):
            out += sorted(path.glob("*.so"))
        else:
            out.append(path)
    return out


def _words(path: Path) -> set[str]:
    """What HAIAN_ADAPTERS may call a file by, since its driver's name is known only after loading: mychip for libmychip.so."""
    names = {path.stem} | ({path.parent.name} if path.name == "runtime.py" else set())
    return names | {n.removeprefix("lib") for n in names} | {n.removeprefix("haian_") for n in names}


def _own(point: EntryPoint) -> bool:
    return point.value.startswith("haian.")


def _probe(source: Path | EntryPoint) -> Callable[[], Probe] | None:
    """Begins to try somebody else's adapter in a child process; None where there is nothing to try."""
    from importlib.metadata import EntryPoint

    from . import probe

    limit = probe.limit_s()
    if not limit:
        return None
    try:
        if isinstance(source, Path):
            file = adapter_file(source)
            check_file(file)
            return probe.start(file, limit)
        if not isinstance(source, EntryPoint) or _own(source):  # a stand-in for an entry point exists in this process only
            return None
        _check_point(source)
        return probe.start(source, limit)
    except HaianError:  # nothing of it may run; loading it raises the same
        return None


def _check_point(point: EntryPoint) -> None:
    """Refuses an installed package that somebody else could have written (trust.py); looks for it without running it."""
    if _own(point):
        return
    top = point.value.partition(":")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return  # not importable, or made by hand: loading it says so
    if spec is not None and spec.origin and os.path.isabs(spec.origin):
        check_file(Path(spec.origin))


def _driver_of_point(point: EntryPoint) -> Driver:
    from importlib.metadata import EntryPoint

    if isinstance(point, EntryPoint):
        _check_point(point)
    return _driver_of(point.load())


def _driver_of(source: object) -> Driver:
    """The driver that a Driver, a class, a factory, or the path of a file gives."""
    made = source() if callable(source) and not isinstance(source, Driver) else source
    if isinstance(made, (str, os.PathLike)):
        return _driver_of_file(Path(made))
    if not isinstance(made, Driver):
        raise ArgumentError(f"an adapter must give a haian.hal.Driver or the path of a .so; {source!r} gave a {type(made).__name__}; "
                            f"`haian adapter new` writes one")
    return made


def adapter_file(path: Path) -> Path:
    """The .py or .so that a path means: itself; of a folder its ``runtime.py`` or only ``.so``; of a project, its ``haian_*`` folder's.

    Raises:
        EnvironmentMissing: there is none.  ArgumentError: several.  PermissionRefused: a relative path.
    """
    if not path.is_absolute():
        raise PermissionRefused(f"adapter {path}: a relative path could name anything; give the absolute one")
    if not path.is_dir():
        return path
    if (path / "runtime.py").is_file():
        return path / "runtime.py"
    # packages only: an installation leaves haian_mychip.egg-info beside haian_mychip
    inside = sorted(p for p in path.glob("haian_*") if p.is_dir() and p.name.isidentifier()) if (path / "pyproject.toml").is_file() else []
    if len(inside) == 1:
        return adapter_file(inside[0])
    found = sorted(path.glob("*.so"))
    if len(found) > 1:
        raise ArgumentError(f"adapter {path}: holds {len(found)} .so files, {', '.join(p.name for p in found[:3])}; name one")
    if not found:
        built = "; build it first, `make`" if next(path.glob("*.c"), None) else ""
        raise EnvironmentMissing(f"adapter {path}: no such file as runtime.py or a .so in it{built}")
    return found[0]


def _driver_of_file(path: Path) -> Driver:
    """The driver in a .so, or the one Driver class a .py defines.  Loading code is trust: trust.py decides."""
    file = adapter_file(path)
    check_file(file)
    if file.suffix == ".so":
        from .c_driver import CDriver
        return CDriver(file)
    if file.suffix != ".py":
        raise ArgumentError(f"adapter {file}: needs a .py file, a .so, or a folder with runtime.py or a .so")
    name = f"haian_adapter_{file.parent.name if file.stem == 'runtime' else file.stem}"  # two files may be called runtime.py
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ArgumentError(f"adapter {file}: Python cannot import it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        classes = [c for c in vars(module).values()
                   if isinstance(c, type) and issubclass(c, Driver) and c.__module__ == name]
        if len(classes) != 1:
            raise ArgumentError(f"adapter {file}: defines {len(classes)} Driver classes; needs exactly one")
        return classes[0]()
    except BaseException:
        del sys.modules[name]
        raise


_registry = Registry()


def devices() -> list[Device]:
    """All devices of this machine: the host first, then real ones, then the simulator, then those loaded by hand.

    The place in the list is ``Device.position`` and ``Tensor.device_index``; it never changes during the process.
    """
    return _registry.devices()


def device(spec: Device | str | int = HOST) -> Device:
    """The device for ``"cuda:1"``, ``"sim"`` (its device 0), a position in ``devices()``, or a Device.

    Raises:
        ArgumentError: there is no such device; the message lists those that exist.
    """
    return _registry.device(spec)


def at(position: int) -> Device:
    """The device with this ``Tensor.device_index``."""
    return _registry.at(position)


def records() -> list[AdapterRecord]:
    """The adapters looked at, with their drivers."""
    return _registry.records()


def installed() -> dict[str, EntryPoint]:
    """Installed adapters by name; none of them is loaded."""
    return {point.name: point for point in _entry_points()}


def report() -> list[dict[str, Any]]:
    """One row an adapter looked at: name, source, status, error, devices.  ``haian doctor`` prints it."""
    return _registry.report()


def load_adapter(source: str | os.PathLike[str] | Driver | type[Driver] | Callable[[], Driver]) -> list[Device]:
    """Adds an adapter by hand, see ``Registry.load_adapter``; its devices come behind all others."""
    return _registry.load_adapter(source)
