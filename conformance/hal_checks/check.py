"""What a check of the HAL suite is, and what it gets: the record, the decorator, and the subject under test.

To write a check, put a function into a file of this package (every file of it is imported by ``load_checks``):

    @check(14, "zero_bytes", "C", validation="both")
    def zero_bytes(s: Subject) -> None:
        \"\"\"alloc of zero bytes is refused.\"\"\"          # the first line stands in the report
        s.expect(ArgumentError, s.driver.alloc, s.device, 0)

- A check returns (pass), raises through ``require``/``expect`` (fail), or raises ``NotOffered(reason)``.  Any other
  exception fails it as well, with its type and message; a driver's unexpected HaianError is the usual one.
- ``needs`` says what must be there, else the check is not offered: groups of ``hal.driver.GROUPS`` ("stream"), methods a group
  may leave out ("host_func"), capabilities ("caps.peer") and "devices>1".
- ``validation``: "both" runs it on the bare driver (id ends in /off) and under ``hal.validate`` (/on); "on" where the
  validation layer is what is tested; "off" where it would hide what is tested.  ``s.validated`` says which one runs.
- Make streams, events and memory with ``s.stream()``, ``s.event()``, ``s.alloc()``: what is left of them is given back after the
  check, also after a failure, and blocked streams are released before.  One driver object serves many checks, so leave it
  as you found it; a check that cannot (reset, fini, lost device) works on ``s.fresh()``.  After a failure the object is replaced.
- Checks run on slow chips and loaded machines: wait with ``s.until`` for what must happen (seconds), use ``s.quiet`` for what must
  not (milliseconds), and bound times from one side only.
- Block one stream at a time: a runtime may run all host functions on one thread.

Not here: how checks are run (runner.py), which level they grant (levels.py).
"""
from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...hal.driver import DEVICE_TO_HOST, GROUPS, HOST_TO_DEVICE, Capabilities, Copy, Driver, offers
from ...hal.errors import ArgumentError, EnvironmentMissing, HaianError
from ...hal.validate import Validated, validate

__all__ = ["CHECKS", "Check", "Guarded", "HAL_VERSION", "NotOffered", "Subject", "check", "load_checks", "of_device", "require"]

HAL_VERSION = "1.1"  # a change of a check's meaning is a new version
LEVELS = ("C", "S", "P", "X")  # core, stream, performance-relevant, optional group
BLOCK_S = 15.0  # a blocked stream frees itself after this time, so that a failing check does not hang its successors
_GUARD = 64  # bytes on each side of a Guarded range
_GUARD_BYTE = 0xA5


class NotOffered(Exception):
    """The driver does not claim what the check needs; the message is the reason.  Never a pass."""


def require(condition: object, message: str) -> None:
    """Fails the check unless the condition holds.  The message says what came and what was needed."""
    if not condition:
        raise AssertionError(message)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        number: of the suite, 1 to 72; name: its id is ``hal/14_zero_bytes``, with /on or /off behind.
        level: C core, S streams, P performance-relevant, X optional group.
        run: the check itself.
        needs: what the driver must offer (module docstring).
        validation: "on", "off" or "both".
        exempt: it may be not offered and the level still be granted: it is about something a driver need not have (a C
            table, a second device).  All other C checks must pass for L0 and L1.
        timeout_s: its time limit, 0 for the run's.
    """

    number: int
    name: str
    level: str
    run: Callable[[Subject], None]
    needs: tuple[str, ...] = ()
    validation: str = "both"
    exempt: bool = False
    timeout_s: float = 0.0

    @property
    def title(self) -> str:
        return (self.run.__doc__ or self.name).strip().splitlines()[0]

    @property
    def modes(self) -> tuple[str, ...]:
        """The last parts of its ids: "on", "off"."""
        return ("off", "on") if self.validation == "both" else (self.validation,)

    def id(self, mode: str) -> str:
        return f"hal/{self.number:02d}_{self.name}/{mode}"


CHECKS: dict[int, Check] = {}


def check(number: int, name: str, level: str, needs: Sequence[str] = (), validation: str = "both", exempt: bool = False,
          timeout_s: float = 0.0) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Puts a function of one Subject into CHECKS.

    Raises:
        ValueError: a number that is taken or out of 1..72, or a level, need or validation that does not exist.
    """
    methods = {m.rstrip("?") for group in GROUPS.values() for m in group}
    known = [n in GROUPS or n in methods or n.startswith("caps.") or n == "devices>1" for n in needs]
    if not 1 <= number <= 72 or level not in LEVELS or validation not in ("on", "off", "both") or not all(known):
        raise ValueError(f"check {number} {name!r}: number 1..72, level one of {', '.join(LEVELS)}, validation on, off or both, needs known")

    def add(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        if number in CHECKS and CHECKS[number].run.__qualname__ != function.__qualname__:
            raise ValueError(f"check {number} is {CHECKS[number].name!r} already, cannot be {name!r} too")
        CHECKS[number] = Check(number, name, level, function, tuple(needs), validation, exempt, timeout_s)
        return function

    return add


def load_checks() -> dict[int, Check]:
    """CHECKS with every file of the package imported, by number."""
    for file in sorted(p.stem for p in Path(__file__).parent.glob("*.py")):
        if file != "__init__":
            importlib.import_module(f"{__package__}.{file}")
    return dict(sorted(CHECKS.items()))


# ---- where drivers come from ------------------------------------------------------------------------------------------------
def of_device(spec: str) -> tuple[Callable[..., Driver], tuple, int]:
    """(factory, arguments, device index) of ``"sim:0"`` or of the file of an adapter, ``"/opt/x/libx.so"`` or ``"...so:1"``."""
    name, _, index = spec.rpartition(":") if spec.rpartition(":")[2].isdigit() else (spec, "", "0")
    return (of_file if os.sep in name else of_name), (name,), int(index)


def driver_class(name: str) -> Any:
    """The Driver class of an installed adapter, for drivers that derive from it (Any: a class the type checker cannot see)."""
    return type(of_name(name))


def of_name(name: str) -> Driver:
    """A new driver object of an installed adapter, or of one in HAIAN_ADAPTER_PATH.

    Raises:
        EnvironmentMissing: there is none of this name; the message says what was found of it.
    """
    from ...hal import registry

    for point in registry._entry_points():
        if point.name == name:
            return registry._driver_of_point(point)
    for path in sorted(registry._adapter_files(), key=lambda p: name not in registry._words(p)):  # the likely one first
        try:
            driver = registry._driver_of_file(path)
        except HaianError:
            if name in registry._words(path):
                raise
            continue  # another one, broken: no concern of this device
        if driver.name == name:
            return driver
    raise EnvironmentMissing(f"adapter {name!r}: not installed and not in HAIAN_ADAPTER_PATH; `haian doctor` says what was found")


def of_file(path: str) -> Driver:
    """A new driver object of an adapter's file: .so, .py or a folder with runtime.py."""
    from ...hal import registry

    return registry._driver_of_file(Path(path))


# ---- the subject ------------------------------------------------------------------------------------------------------------
class Subject:
    """What a check gets: a driver, a device of it, and helpers.

    Attributes:
        driver: under test, wrapped by ``validate`` when ``validated``; raw: without the wrapper.
        device: the index under test; count: how many there are.
        caps: its capabilities.
        path: of the adapter's .so, "" for a Python driver.  C tables: ``raw.ffi``, ``raw.table``, ``raw.lib``.
        factory, arguments: make another driver object (see ``fresh``, ``elsewhere``).
        rng: NumPy generator drawn from the seed and the check.
    """

    def __init__(self, raw: Driver, device: int, validated: bool, factory: Callable[..., Driver], arguments: tuple = (), seed: int = 0,
                 check_id: str = "") -> None:
        self.raw, self.device, self.validated = raw, device, validated
        self.driver: Driver = validate(raw) if validated else raw
        self.factory, self.arguments, self.seed = factory, arguments, seed
        self.count = raw.device_count()
        self.path = str(getattr(raw, "path", "") or "")
        self.rng = np.random.default_rng([seed, zlib.crc32(check_id.encode())])
        self._caps: Capabilities | None = None
        self._memory: list[tuple[Driver, int, int]] = []
        self._streams: list[tuple[Driver, int]] = []
        self._events: list[tuple[Driver, int]] = []
        self._gates: list[threading.Event] = []
        self._fresh: list[Driver] = []
        self._kept: list[object] = []  # host memory of asynchronous copies

    @property
    def caps(self) -> Capabilities:
        if self._caps is None:
            self._caps = self.raw.props(self.device)
        return self._caps

    # ---- what is there ---------------------------------------------------------------------------------------------
    def offers(self, name: str) -> bool:
        """Whether the driver has a group of GROUPS, or a method that a group may leave out (its group included)."""
        if name in GROUPS:
            return offers(self.raw, name)
        group = next(g for g, methods in GROUPS.items() if name in methods or f"{name}?" in methods)
        if not offers(self.raw, group):
            return False
        if self.path:  # a C table: a function is there or NULL
            from ...hal.c_driver import _CALLS

            return _CALLS[name] in self.raw._functions  # type: ignore[attr-defined]
        found = getattr(self.raw, name, None)
        return found is not None and getattr(found, "__func__", found) is not getattr(Driver, name)

    def need(self, *needs: str) -> None:
        """Raises NotOffered when something is missing; the words are those of ``check(needs=...)``."""
        for n in needs:
            if n == "devices>1":
                if self.count < 2:
                    raise NotOffered(f"{self.count} device; needs two")
            elif n.startswith("caps."):
                if not getattr(self.caps, n[5:]):
                    raise NotOffered(f"capability {n[5:]} is not claimed")
            elif not self.offers(n):
                raise NotOffered(f"the driver has no {n}")

    def other(self) -> int:
        """Another device's index; NotOffered where there is one device only."""
        self.need("devices>1")
        return (self.device + 1) % self.count

    # ---- other drivers ---------------------------------------------------------------------------------------------
    def fresh(self, validated: bool | None = None) -> Driver:
        """Another driver object of the same factory, initialised, wrapped like the one under test; ended after the check.

        A .so keeps its state in globals, and some runtimes start only once: there it is the object under test again,
        with a wrapper of its own.  ``reset`` it, but do not end it; what needs ``fini`` goes ``elsewhere``.
        """
        if self.path or self.caps.init_once:
            driver = self.raw
        else:
            driver = self.factory(*self.arguments)
            driver.init()
            self._fresh.append(driver)
        return validate(driver) if (self.validated if validated is None else validated) else driver

    def second(self) -> tuple[Driver, int]:
        """(driver, device) of another adapter: the simulator, or the host where the simulator is under test."""
        driver = of_name("cpu" if self.raw.name == "sim" else "sim")
        driver.init()
        self._fresh.append(driver)
        return validate(driver), 0

    def elsewhere(self, function: Callable[..., Any], *args: Any, timeout_s: float = 15.0) -> Any:
        """``function(factory, arguments, *args)`` in a new process; its result.  The function must be importable by name.

        NotOffered where the factory cannot be named there (a class defined in a function).  An exception in there fails
        the check.
        """
        try:
            job = pickle.dumps((function, (self.factory, self.arguments, *args), list(sys.path)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise NotOffered(f"the driver cannot be made in another process: {error}") from None
        try:
            # the path first, then the pickle: what it names may lie in a folder of this process's path only
            done = subprocess.run([sys.executable, "-c", _ELSEWHERE, *sys.path], input=job, capture_output=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{function.__name__} in another process: not done after {timeout_s:g} s") from None
        require(done.returncode == 0, f"{function.__name__} in another process: exit code {done.returncode}; "
                + (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing on stderr"])[-1])
        return pickle.loads(done.stdout[done.stdout.rindex(_MARK) + len(_MARK):])

    # ---- memory and handles, given back after the check ---------------------------------------------------------------
    def alloc(self, nbytes: int, align: int = 0, device: int = -1) -> int:
        device = self.device if device < 0 else device
        address = self.driver.alloc(device, nbytes, align)
        self._memory.append((self.driver, device, address))
        return address

    def free(self, address: int, device: int = -1) -> None:
        device = self.device if device < 0 else device
        self.driver.free(device, address)
        with contextlib.suppress(ValueError):
            self._memory.remove((self.driver, device, address))

    def stream(self, device: int = -1) -> int:
        handle = self.driver.stream_create(self.device if device < 0 else device)
        self._streams.append((self.driver, handle))
        return handle

    def event(self, timing: bool = True, device: int = -1) -> int:
        handle = self.driver.event_create(self.device if device < 0 else device, timing)
        self._events.append((self.driver, handle))
        return handle

    def destroy(self, handle: int) -> None:
        """Destroy a stream or event that ``stream()`` or ``event()`` made."""
        for made, end in ((self._streams, "stream_destroy"), (self._events, "event_destroy")):
            if (self.driver, handle) in made:
                made.remove((self.driver, handle))
                getattr(self.driver, end)(handle)
                return
        raise ValueError(f"{handle:#x} is no stream or event of this check")

    # ---- bytes -----------------------------------------------------------------------------------------------------
    def pattern(self, nbytes: int) -> np.ndarray:
        """Random bytes, different at every call.  # (nbytes,) uint8"""
        return self.rng.integers(0, 256, nbytes, np.uint8)

    def upload(self, address: int, data: bytes | np.ndarray, stream: int = 0, device: int = -1, driver: Driver | None = None) -> None:
        """Copy to the device.  The bytes are kept until the check ends, so that a stream may read them later."""
        array = np.frombuffer(data, np.uint8) if isinstance(data, (bytes, bytearray)) else np.ascontiguousarray(data)
        self._kept.append(array)
        if array.nbytes:
            (driver or self.driver).copy(self.device if device < 0 else device, Copy(HOST_TO_DEVICE, address, host(array), array.nbytes), stream)

    def download(self, address: int, nbytes: int, stream: int = 0, device: int = -1, driver: Driver | None = None) -> np.ndarray:
        """Copy from the device.  # (nbytes,) uint8; on a stream other than 0 it is filled once that stream has passed."""
        array = np.zeros(nbytes, np.uint8)
        self._kept.append(array)
        if nbytes:
            (driver or self.driver).copy(self.device if device < 0 else device, Copy(DEVICE_TO_HOST, host(array), address, nbytes), stream)
        return array

    def fill(self, address: int, byte: int, nbytes: int, stream: int = 0, device: int = -1) -> None:
        """Set bytes; through ``upload`` where the driver has no fill."""
        if self.offers("fill"):
            self.driver.fill(self.device if device < 0 else device, address, bytes([byte]), nbytes, stream)
        else:
            self.upload(address, np.full(nbytes, byte, np.uint8), stream, device)

    def guard(self, nbytes: int, offset: int = 0, device: int = -1) -> Guarded:
        """Memory for ``nbytes`` bytes with known bytes before and behind; ``offset`` shifts it off the alignment."""
        return Guarded(self, nbytes, offset, device)

    # ---- order and time ---------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def blocked(self, stream: int, driver: Driver | None = None) -> Iterator[threading.Event]:
        """Inside, the stream stands still (a host function waits in it); set the yielded gate to release it earlier.

        NotOffered where the driver has no host_func: nothing else can hold a stream without knowing the chip.
        """
        self.need("stream", "host_func")
        gate, started = threading.Event(), threading.Event()
        self._gates.append(gate)
        caller, inline = threading.get_ident(), []

        def stand() -> None:
            started.set()
            if threading.get_ident() == caller:
                inline.append(True)
            else:
                gate.wait(BLOCK_S)

        try:
            (driver or self.driver).host_func(stream, stand)
            require(started.wait(5), "a host function did not start within 5 s on an idle stream")
            if inline:
                require(not self.caps.async_copy, "claims async_copy, but a host function ran on the thread that queued it")
                raise NotOffered("work runs as it is queued: nothing can hold a stream")
            yield gate
        finally:
            gate.set()

    def until(self, condition: Callable[[], object], what: str, seconds: float = 5.0) -> None:
        """Waits for the condition; fails the check with ``what`` when it does not come true."""
        end = time.monotonic() + seconds
        while not condition():
            require(time.monotonic() < end, f"{what}: not within {seconds:g} s")
            time.sleep(0.0005)

    def quiet(self, condition: Callable[[], object], what: str, seconds: float = 0.02) -> None:
        """Fails the check with ``what`` when the condition comes true within that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            require(not condition(), what)
            time.sleep(0.001)

    def threads(self, count: int, function: Callable[[int], None], seconds: float = 15.0) -> None:
        """``function(i)`` on ``count`` threads that start together; the first exception of any is raised here."""
        barrier, failed = threading.Barrier(count), []

        def body(i: int) -> None:
            try:
                barrier.wait(10)
                function(i)
            except BaseException as error:  # noqa: BLE001 - carried over to the thread that judges
                failed.append(error)

        workers = [threading.Thread(target=body, args=(i,), daemon=True) for i in range(count)]
        for w in workers:
            w.start()
        end = time.monotonic() + seconds
        for w in workers:
            w.join(max(end - time.monotonic(), 0.0))
        if failed:
            raise failed[0]
        require(not any(w.is_alive() for w in workers), f"{sum(w.is_alive() for w in workers)} of {count} threads not done after {seconds:g} s")

    # ---- judging ------------------------------------------------------------------------------------------------------
    def expect(self, errors: type[HaianError] | tuple[type[HaianError], ...], function: Callable[..., object], *args: Any, **kwargs: Any) -> HaianError:
        """Calls, and fails the check unless one of these errors is raised; returns it."""
        wanted = errors if isinstance(errors, tuple) else (errors,)
        names = " or ".join(e.__name__ for e in wanted)
        said = f"{getattr(function, '__name__', function)}({', '.join(_short(a) for a in args)})"
        try:
            result = function(*args, **kwargs)
        except wanted as error:
            require(str(error), f"{said} raised {type(error).__name__} without a message; say what came and what was needed")
            return error
        except Exception as error:  # whatever a driver raises instead is the finding
            raise AssertionError(f"{said} raised {type(error).__name__}: {error}; needs {names}") from error
        raise AssertionError(f"{said} succeeded (gave {_short(result)}); needs {names}")

    # ---- the end -------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Releases blocked streams and gives back what is left.  Faults in here were, or will be, another check's finding."""
        for gate in self._gates:
            gate.set()
        for driver, handle in self._streams:
            with contextlib.suppress(HaianError):
                driver.stream_destroy(handle)
        for driver, handle in self._events:
            with contextlib.suppress(HaianError):
                driver.event_destroy(handle)
        for driver, device, address in self._memory:
            with contextlib.suppress(HaianError):
                driver.free(device, address)
        if isinstance(self.driver, Validated):  # what a check made without the helpers
            for leak in self.driver.leaks():
                if leak.kind == "memory":
                    with contextlib.suppress(HaianError):
                        self.raw.free(leak.device, leak.handle)
        for driver in self._fresh:
            with contextlib.suppress(HaianError):
                driver.fini()


class Guarded:
    """``nbytes`` bytes at ``address`` with guard bytes around; ``check()`` fails when one of those changed.

    The bytes inside start as the guard byte too; ``read()`` brings them back.
    """

    def __init__(self, subject: Subject, nbytes: int, offset: int = 0, device: int = -1) -> None:
        self._s, self._device, self.nbytes = subject, subject.device if device < 0 else device, nbytes
        self.base = subject.alloc(2 * _GUARD + offset + nbytes, device=self._device)
        self._before, self._whole = _GUARD + offset, 2 * _GUARD + offset + nbytes
        self.address = self.base + self._before
        subject.upload(self.base, np.full(self._whole, _GUARD_BYTE, np.uint8), device=self._device)

    def read(self) -> np.ndarray:
        """The bytes inside.  # (nbytes,) uint8"""
        return self._s.download(self.base, self._whole, device=self._device)[self._before : self._before + self.nbytes]

    def check(self, what: str) -> np.ndarray:
        """Requires all guard bytes to be whole; returns the bytes inside."""
        seen = self._s.download(self.base, self._whole, device=self._device)
        inside = slice(self._before, self._before + self.nbytes)
        around = np.concatenate([seen[: inside.start], seen[inside.stop :]])
        changed = np.flatnonzero(around != _GUARD_BYTE)
        if changed.size:
            first = int(changed[0])
            at = first - self._before + (self.nbytes if first >= inside.start else 0)
            raise AssertionError(f"{what}: {changed.size} bytes outside the {self.nbytes} asked for were changed, the first at {at:+d}")
        return seen[inside]


def host(array: np.ndarray) -> int:
    """The address of an array's bytes."""
    return array.__array_interface__["data"][0]


def _short(value: object) -> str:
    text = f"{value:#x}" if isinstance(value, int) and value > 4096 else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_MARK = b"\nhaian result\n"
_ELSEWHERE = """
import sys
sys.path[:] = sys.argv[1:]
import pickle
function, args, _ = pickle.loads(sys.stdin.buffer.read())
result = function(*args)
sys.stdout.flush()
sys.stdout.buffer.write(b"\\nhaian result\\n" + pickle.dumps(result))
"""


def find(check_id: str) -> tuple[Check, str]:
    """(check, mode) of ``hal/14_zero_bytes/off``; without a mode, its first.

    Raises:
        ArgumentError: the suite has no such check.
    """
    for c in load_checks().values():
        for mode in c.modes:
            if check_id in (c.id(mode), c.id(mode).rpartition("/")[0]):
                return c, mode
    raise ArgumentError(f"no check {check_id!r} in the HAL suite {HAL_VERSION}; `haian conformance list --suite hal` prints them")
