"""Opening a vendor's library and calling it: what TableDriver (driver.py) stands on.

Nothing is opened before ``device_count``; a machine without the vendor's library has 0 devices and ``why_none`` says where it
was looked for.
"""
from __future__ import annotations

import itertools
import os
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ...hal.driver import (
    DEVICE_TO_DEVICE,
    DEVICE_TO_HOST,
    GROUPS,
    HOST_TO_DEVICE,
    MAX_DEVICES,
    Capabilities,
    Driver,
)
from ...hal.errors import (
    ArgumentError,
    DeviceLost,
    HaianError,
    InternalError,
    InvalidHandle,
    Unsupported,
)
from ..xccl import LIBRARIES, Collectives, VendorCommunicators
from .handles import Handles, Slot
from .library import Bound, Found, bind, find
from .table import REQUIRED, TOGETHER, Facts, Runtime

__all__ = ["Core"]

# Calls that an optional group needs; "|" separates alternatives.  Groups not named here are offered by subclasses only.
_NEEDS: dict[str, tuple[str, ...]] = {
    "fill": ("memset_async|memset|copy_async|copy_h2d|copy",), "mem_info": ("mem_info",), "pinned": ("host_malloc", "host_free"), "ptr_info": ("malloc",),
    "stream": ("stream_new", "stream_destroy", "stream_sync", "stream_query"),
    "event": ("event_new", "event_destroy", "event_record", "event_query", "event_sync"),
    "module": ("module_load", "module_unload", "module_function", "launch"),
    "graph": ("capture_begin", "capture_end", "graph_instantiate", "graph_launch", "graph_destroy", "exec_destroy"),
}
_LAUNCH_SHAPE = "function, gx, gy, gz, bx, by, bz, shared, stream, params, 0:uintptr_t)"
_opened: weakref.WeakSet[Core] = weakref.WeakSet()


def _after_fork() -> None:
    for driver in _opened:
        driver._forked = True


os.register_at_fork(after_in_child=_after_fork)


class Core(VendorCommunicators, Driver):
    """What TableDriver stands on: the library, the current device of a thread, errors, handles, streams' numbers."""

    table: Runtime

    def __init__(self, library: str | Sequence[str] | None = None) -> None:
        self.name, self.vendor = self.table.name, self.table.vendor
        self.unconfirmed: dict[str, str] = dict(self.table.unconfirmed)
        self.looked: list[str] = []
        self.missing: list[str] = []
        self.why_none = ""
        self.library_path = ""  # of the first library opened
        self.stand_in = ""  # what the library says of itself where it is no vendor's
        self.remark = ""  # stands behind model and vendor where the library is not known to be the vendor's
        self._given = [library] if isinstance(library, str) else list(library or ())
        self._lock = threading.RLock()
        self._bound: Bound | None = None
        self._calls: dict[str, Callable[..., Any]] = {}
        self._count = -1
        self._forked = False
        self._clear()

    def _clear(self) -> None:
        """Forgets everything that was made; the library stays open."""
        self._local = threading.local()
        self._handles = Handles(self.table.name)
        self._memory: dict[int, tuple[int, int, str, int]] = {}  # address -> (base, nbytes, kind, device)
        self._registered: set[int] = set()
        self._props: dict[int, Capabilities] = {}
        self._facts_of: dict[int, Facts] = {}
        self._ordinals: dict[int, int] = {}  # the vendor's own device numbers
        self._contexts: dict[int, int] = {}
        self._lost: dict[int, str] = {}
        self._pending: dict[int, tuple[Slot | None, Callable[[], None]]] = {}
        self._tokens = itertools.count(1)

    # ---- opening -----------------------------------------------------------------------------------------------------
    def _open(self) -> None:
        if self._count >= 0:
            return
        with self._lock:
            if self._count >= 0:
                return
            found = Found()
            found.paths = list(self._given)
            if not self._given:
                found = find(self.table)
            self.looked, self.why_none = found.looked or found.paths, found.why
            self._count = 0
            if not found.paths:
                return
            self.library_path = found.paths[0]
            try:
                self._count = self._start(found.paths)
                self.stand_in = self._bound.stand_in if self._bound else ""
                self.remark = "stand-in" if self.stand_in else f"library {self.library_path}" if self._given or found.by_search else ""
            except HaianError as error:  # a library that is there but finds no device, or cannot be used: no device
                self._count, self.why_none = 0, str(error)

    def _start(self, paths: list[str]) -> int:
        """Binds the libraries, begins the runtime and counts its devices."""
        bound = bind(self.table, paths)
        self._bound, self._ffi, self._calls, self.missing = bound, bound.ffi, bound.calls, bound.missing
        absent = [c for c in REQUIRED if c not in self._calls]
        if absent:
            raise Unsupported(f"{self.name}: {paths[0]} lacks {', '.join(self.table.calls.get(c, c) for c in absent)}; another version is needed")
        for calls in (*TOGETHER, *self.table.together):
            named = [c for c in calls if c in self.table.calls]
            lacks = [self.table.calls[c] for c in named if c not in self._calls]
            if lacks and len(lacks) < len(named):
                raise Unsupported(f"{self.name}: {paths[0]} lacks {', '.join(lacks)}, but has the calls that need it; another version is needed")
        self._copiers = {kind: self._copier(kind) for kind in (HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE)}
        self._callback = self._ffi.callback("void(void *)", self._run_host_func)
        for call in ("init", "driver_init"):
            if call in self._calls:
                code = self._calls[call]()
                if code not in self.table.ignore:
                    self._check(code, call)
        count = self._ffi.new("int *")
        self._check(self._calls["device_count"](count), "device_count")
        self.version = os.path.basename(paths[0])  # where the runtime does not say
        if "driver_version" in self._calls:
            version = self._ffi.new("int *")
            if self._calls["driver_version"](version) == self.table.success:
                self.version = self.table.version(version[0])
        _opened.add(self)
        if not 0 <= count[0] <= MAX_DEVICES:
            raise InternalError(f"{self.name}: {paths[0]} counts {count[0]} devices; needs 0 to {MAX_DEVICES}")
        if not count[0]:
            self.why_none = f"{paths[0]} finds no device"
        return count[0]

    def init(self) -> None:
        self._open()

    # ---- plumbing ----------------------------------------------------------------------------------------------------
    def offers(self, group: str) -> bool:
        self._open()
        if group in _NEEDS:
            return all(any(c in self._calls for c in call.split("|")) for call in _NEEDS[group])
        if group == "comm":
            return self._count > 0 and self.has_collectives()
        return all(getattr(type(self), m) is not getattr(Driver, m) for m in GROUPS[group] if not m.endswith("?"))

    @property
    def collectives(self) -> Collectives | None:  # type: ignore[override]
        """The vendor's collective library as a table; opened by the first question whether there is one."""
        return LIBRARIES.get(self.table.xccl)

    @property
    def launch_symbol(self) -> int:
        """Address of a function with cuLaunchKernel's arguments, for launches without Python; 0 where there is none."""
        self._open()
        shaped = self._bound is not None and self.table.calls.get("launch", "").partition("(")[2] == _LAUNCH_SHAPE
        return self._bound.addresses.get("launch", 0) if shaped and self._bound else 0

    def native(self, handle: int) -> int:
        """The vendor's own pointer behind a live handle; 0 for stream 0."""
        return self._handles.get(handle, self._handles.kind(handle) or "object").pointer if handle else 0

    def adopt_stream(self, device: int, pointer: int) -> int:
        """A handle for a stream that another library made and keeps; ``stream_destroy`` only forgets it."""
        return self._handles.add(Slot("stream", device, pointer, owned=False)) if pointer else 0

    def forget_current(self) -> None:
        """Call after another library may have changed this thread's current device."""
        self._local.device = None

    def _call(self, name: str) -> Callable[..., Any]:
        """
        Raises:
            Unsupported: the table or the library does not have it.
        """
        try:
            return self._calls[name]
        except KeyError:
            self._open()
            if name in self._calls:
                return self._calls[name]
            spec = self.table.calls.get(name)
            raise Unsupported(f"{self.name}: no {name}; " + (f"the library has no {spec.partition('(')[0]}" if spec else "its runtime has none")) from None

    def _text(self, code: int) -> str:
        if code in self.table.texts:
            return self.table.texts[code]
        call = self._calls.get("error_text")
        if call is None:
            return "no text"
        out = self._ffi.new("char **")
        got = call(code, out)
        got = out[0] if isinstance(got, int) else got
        return self._ffi.string(got).decode(errors="replace") if got != self._ffi.NULL else "unknown error"

    def _check(self, code: int, call: str, device: int = -1, what: str = "") -> None:
        if code != self.table.success:
            raise self._error(code, call, device, what)

    def _error(self, code: int, call: str, device: int = -1, what: str = "") -> HaianError:
        """The exception for a failed call; a fatal code makes the device lost."""
        text = self._text(code)
        if "clear_error" in self._calls:
            self._calls["clear_error"]()  # runtimes of this shape also keep it for whoever asks next
        symbol = re.sub(r"^text |\(.*|\|.*", "", self.table.calls.get(call, call))
        line = f"{self.name}: {symbol}{what} failed with {code} ({text})"
        if code in self.table.fatal:
            self._lost[device] = line
            return DeviceLost(f"{line}; reset the device, or start a new process")
        return self.table.errors.get(code, InternalError)(line)

    def _enter(self, device: int) -> None:
        """Makes ``device`` current on this thread; two dictionary look-ups when it is already."""
        if self._lost and device in self._lost:
            raise DeviceLost(f"{self._lost[device]}; reset the device, or start a new process")
        if getattr(self._local, "device", None) == device and not self._forked:
            return
        self._open()
        if self._forked:
            raise DeviceLost(f"{self.name}: a forked child cannot use its parent's devices; start processes with spawn")
        if not 0 <= device < self._count:
            raise ArgumentError(f"{self.name}: device {device}; there are {self._count}{f' ({self.why_none})' if self.why_none else ''}")
        self._make_current(device)
        self._local.device = device

    def _make_current(self, device: int) -> None:
        if "set_context" in self._calls:
            self._check(self._calls["set_context"](self._context(device)), "set_context", device)
        elif "set_device" in self._calls:
            self._check(self._calls["set_device"](device), "set_device", device)
            if self.table.touch:
                self._check(self._calls["free"](0), "free", device)

    def _context(self, device: int) -> int:
        """The primary context, retained once."""
        with self._lock:
            if device not in self._contexts:
                out = self._ffi.new("uintptr_t *")
                self._check(self._calls["context_retain"](out, self._ordinal(device)), "context_retain", device)
                self._contexts[device] = out[0]
            return self._contexts[device]

    def _ordinal(self, device: int) -> int:
        """The vendor's own number of a device."""
        if "device_get" not in self._calls:
            return device
        if device not in self._ordinals:
            out = self._ffi.new("int *")
            self._check(self._calls["device_get"](out, device), "device_get", device)
            self._ordinals[device] = out[0]
        return self._ordinals[device]

    def _make(self, call: str, kind: str, device: int, *arguments: Any, what: str = "", parent: int = 0, name: str = "") -> int:
        """Calls something that gives an object, and puts it behind a handle."""
        function = self._call(call)
        out = self._ffi.new("uintptr_t *")
        self._check(function(out, *arguments), call, device, what)
        return self._handles.add(Slot(kind, device, out[0], parent=parent, name=name))

    def _slot(self, handle: int, kind: str) -> Slot:
        slot = self._handles.get(handle, kind)
        self._enter(slot.device)
        return slot

    def _stream(self, stream: int, device: int = -1) -> int:
        """The vendor's stream; 0 is the device's default one.  A stream of another device than asked is refused."""
        if not stream:
            return 0
        slot = self._handles.get(stream, "stream")
        if slot.device != device >= 0:
            raise InvalidHandle(f"{self.name}: a stream of device {slot.device}; needs one of device {device}")
        return slot.pointer

    def _done(self, call: str, pointer: int, device: int) -> bool:
        """What a query says; some runtimes answer with the code, others through a status argument."""
        wanted = self.table.ready_status.get(call)
        status = None if wanted is None else self._ffi.new("int *")
        code = self._call(call)(pointer, status)
        if code in self.table.not_ready:
            return False
        if code != self.table.success:
            raise self._error(code, call, device)
        return status is None or status[0] == wanted

    def _deliver(self, slot: Slot) -> None:
        """Raises, once, what a host function of the stream raised."""
        error, slot.error = slot.error, None
        if error is not None:
            raise error if isinstance(error, HaianError) else InternalError(f"{self.name}: a host function raised {type(error).__name__}: {error}") from error

    def _copier(self, kind: str) -> Callable[[int, int, int, int], int] | None:
        """(dst, src, nbytes, stream) -> code for one direction; ``None`` where the runtime copies synchronously only."""
        if f"copy_{kind}" in self._calls:
            return self._calls[f"copy_{kind}"]
        call, direction = self._calls.get("copy_async"), self.table.directions.get(kind)
        if call is None or direction is None:
            return None
        return lambda dst, src, n, stream: call(dst, src, n, direction, stream)

    def _run_host_func(self, token: Any) -> None:
        with self._lock:
            slot, fn = self._pending.pop(int(self._ffi.cast("uintptr_t", token)))
        try:
            fn()
        except BaseException as error:  # noqa: BLE001 - it runs on the vendor's thread: kept for the stream's next sync
            if slot is not None:
                slot.error = error
