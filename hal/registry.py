"""Which devices exist: finds adapters, numbers their devices, and says why one was refused.

Three routes and no other: entry points of group ``haian.adapters``, files named in HAIAN_ADAPTER_PATH, ``load_adapter``.
Nothing is loaded at import; a broken adapter is recorded with its error and skipped.
"""
from __future__ import annotations

import importlib.util
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .device import Device
from .driver import Driver
from .errors import ArgumentError, EnvironmentMissing, HaianError, PermissionRefused, Unsupported
from .validate import validate

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["AdapterRecord", "Registry", "at", "device", "devices", "load_adapter", "report"]

GROUP = "haian.adapters"
HOST = "cpu"  # device 0 of every process; always loaded, since everything can fall back to it
SIMULATED = "sim"  # a device like others, but behind real ones
_NAME = re.compile(r"[a-z][a-z0-9_]*")


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
            except HaianError as e:  # a device that cannot even say what it is still belongs in the report
                found.append(f"{dev.name} (props failed: {e})")
        error = f"{type(self.error).__name__}: {self.error}" if self.error else ""
        facts = {"note": "why_none", "looked": "looked", "missing": "missing", "unconfirmed": "unconfirmed"}
        more = {word: getattr(self.driver, name) for word, name in facts.items() if hasattr(self.driver, name)}
        return {"name": self.name, "source": self.source, "status": self.status, "error": error, "devices": found, **more}


def _entry_points() -> Sequence[EntryPoint]:
    """Installed adapters, host first, simulator last, the others by name."""
    from importlib.metadata import entry_points  # 15 ms to import, needed once

    rank = {HOST: 0, SIMULATED: 2}
    return sorted(entry_points(group=GROUP), key=lambda e: (rank.get(e.name, 1), e.name, e.value))


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
        """Adds an adapter now: a Driver (object, class or factory), a ``.py`` file, a folder with
        ``runtime.py``, or a ``.so`` with ``hal_get_adapter``.

        Returns:
            Its devices, behind all earlier ones.

        Raises:
            EnvironmentMissing: no such file.  PermissionRefused: the file or its folder is writable by everyone.
            VersionMismatch: a ``.so`` of another ABI.
            ArgumentError: no driver in there, its table breaks the contract, or its name is taken.
        """
        self._discover()
        with self._lock:
            if isinstance(source, (str, os.PathLike)):
                path = Path(source).absolute()
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
            wanted = _wanted()
            found = set()
            for point in self._entry_points():
                found.add(point.name)
                source = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
                if wanted is not None and point.name not in wanted:
                    why = Unsupported(f"{point.name}: not in HAIAN_ADAPTERS={os.environ['HAIAN_ADAPTERS']}; add it there to use it")
                    self._records.append(AdapterRecord(point.name, source, "skipped", why))
                    continue
                self._try(point.name, source, partial(_driver_of_point, point))
            for path in _adapter_files():
                self._try(path.stem, f"HAIAN_ADAPTER_PATH: {path}", partial(_driver_of_file, path))
                found.add(path.stem)
            for name in sorted((wanted or set()) - found):
                gone = EnvironmentMissing(f"{name}: HAIAN_ADAPTERS names it, no installed package offers it; install its adapter")
                self._records.append(AdapterRecord(name, "HAIAN_ADAPTERS", "failed", gone))
            host = next((r for r in self._records if r.name == HOST), None)
            if not self._devices or self._devices[0].driver.name != HOST:
                raise EnvironmentMissing(f"adapter cpu: {host.error if host else 'not installed'}; haian's own host adapter is "
                                         f"needed on every machine, reinstall haian")
            self._ready = True

    def _try(self, name: str, source: str, make: Callable[[], Driver]) -> AdapterRecord:
        """Makes one driver and numbers its devices; every failure ends in the record, none escapes."""
        record = AdapterRecord(name, source, "failed")
        self._records.append(record)
        try:
            driver = make()
            record.name = driver.name or name
            taken = {d.name.partition(":")[0] for d in self._devices} | {r.name for r in self._records if r.driver}
            if not _NAME.fullmatch(driver.name or ""):
                raise ArgumentError(f"adapter name {driver.name!r}: needs a lower-case word such as 'mychip'; set Driver.name")
            if driver.name in taken:
                raise ArgumentError(f"adapter {driver.name!r} exists already; rename one or restrict HAIAN_ADAPTERS")
            count = driver.device_count()
            if not isinstance(count, int) or count < 0:
                raise ArgumentError(f"adapter {driver.name!r}: device_count() gave {count!r}; needs 0 or more")
            if os.environ.get("HAIAN_VALIDATE", "0") not in ("", "0"):
                driver = validate(driver)
        except Exception as e:  # noqa: BLE001 - third-party code: whatever it raises must not stop the others
            record.error = e
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


def _wanted() -> set[str] | None:
    text = os.environ.get("HAIAN_ADAPTERS", "").strip()
    return {n.strip() for n in text.split(",") if n.strip()} | {HOST} if text else None


def _adapter_files() -> list[Path]:
    """Files of HAIAN_ADAPTER_PATH: those named, and the .so files of folders named; never a relative path."""
    out: list[Path] = []
    for part in filter(None, os.environ.get("HAIAN_ADAPTER_PATH", "").split(os.pathsep)):
        path = Path(part)
        out += sorted(path.glob("*.so")) if path.is_absolute() and path.is_dir() else [path]
    return out


def _driver_of_point(point: EntryPoint) -> Driver:
    return _driver_of(point.load())


def _driver_of(source: object) -> Driver:
    driver = source() if callable(source) and not isinstance(source, Driver) else source
    if not isinstance(driver, Driver):
        raise ArgumentError(f"an adapter must give a haian.hal.Driver; {source!r} gave a {type(driver).__name__}; "
                            f"clone adapters/null")
    return driver


def _driver_of_file(path: Path) -> Driver:
    """The one Driver class a file defines.  Loading code is trust, so files anyone could have written are refused."""
    if not path.is_absolute():
        raise PermissionRefused(f"adapter {path}: a relative path could name anything; give the absolute one")
    package = path.is_dir()
    file = path / "runtime.py" if package else path
    if not file.is_file():
        raise EnvironmentMissing(f"adapter {file}: no such file; give a .py file, a folder with runtime.py or a .so")
    for p in (file, file.parent):
        mode = p.stat().st_mode
        if mode & stat.S_IWOTH and not (p.is_dir() and mode & stat.S_ISVTX):
            raise PermissionRefused(f"adapter {p}: writable by everyone; chmod o-w it")
    if file.suffix == ".so":
        from .c_driver import CDriver
        return CDriver(file)
    if file.suffix != ".py":
        raise ArgumentError(f"adapter {file}: needs a .py file, a folder with runtime.py or a .so")
    name = f"haian_adapter_{path.stem}"
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


def report() -> list[dict[str, Any]]:
    """One row an adapter looked at: name, source, status, error, devices.  ``haian doctor`` prints it."""
    return _registry.report()


def load_adapter(source: str | os.PathLike[str] | Driver | type[Driver] | Callable[[], Driver]) -> list[Device]:
    """Adds an adapter by hand, see ``Registry.load_adapter``; its devices come behind all others."""
    return _registry.load_adapter(source)
