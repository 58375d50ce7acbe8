"""Stream (ordered work on a device) and Event (a mark in a stream).

Devices without streams get synchronous ones with the same methods: work is finished when its call returns.
Not here: what runs in a stream (memory.copy, module.Kernel.launch, the operators).
"""
from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .device import Device, _current
from .errors import ArgumentError, Busy, InvalidHandle, NotReady, Unsupported, wrong_type

if TYPE_CHECKING:
    from .memory import Buffer
    from .tensor import Tensor

__all__ = ["Event", "Stream"]

_LONGEST_S = 9e9  # 285 years: what the system's clocks count to in 63 bits of nanoseconds


class Stream:
    """``Stream(device)``: work in it runs in order; work in two streams may run at the same time.

    ``with stream:`` makes it the calling thread's current stream of its device.  A stream that is no longer referenced
    is destroyed, after its queued work, at a later call on its device.

    Attributes:
        device: the device.
        handle: the driver's number; 0 for the default stream and wherever the device has no streams.
    """

    def __init__(self, device: Device, *, _handle: int | None = None) -> None:
        self._alive: bool = False
        self.handle: int = 0
        if not isinstance(device, Device):
            raise wrong_type("Stream", device, "a device, haian.device(...)")
        self.device = device
        self._alive = True
        # (mark, object): objects that queued work still reads, released once their mark has passed.
        self._held: deque[tuple[Event, object]] = deque()
        self._lock = threading.Lock()
        self._recording: Recording | None = None  # of module.Graph: takes what queued work uses
        if _handle is None:
            device._reap()
            if device.capabilities.streams:
                self.handle = device.driver.stream_create(device.index)
                device.allocator.stream_opened(self.handle)
                device._opened(self)
        else:
            self.handle = _handle

    def __repr__(self) -> str:
        return f"<haian stream {self.handle:#x} of {self.device.name}{'' if self._alive else ', closed'}>"

    @property
    def synchronous(self) -> bool:
        """Whether work is finished when the call that queued it returns."""
        return self.handle == 0

    @property
    def native(self) -> int:
        """What a native launch passes on: the driver's own pointer where its ``native_stream`` says one, else the handle."""
        own = getattr(self.device.driver, "native_stream", None)
        return own(self.handle) if own else self.handle

    def _check(self) -> None:
        if not self._alive:
            raise InvalidHandle(f"{self!r}: it was closed; make a new one with device.stream()")

    def synchronize(self) -> None:
        """Waits for all work queued here; raises its first asynchronous error, once."""
        self._check()
        if self.handle:
            self.device.driver.stream_sync(self.handle)
        else:  # handle 0 names no device in the driver's stream calls
            self.device.driver.sync(self.device.index)
        self._release()

    def query(self) -> bool:
        """Whether nothing is queued or running; raises the stream's asynchronous error, once."""
        self._check()
        if self.handle:
            return self.device.driver.stream_query(self.handle)
        return self.record().query()  # copies here are synchronous, launches may not be (CUDA's are not)

    def wait(self, event: Event) -> None:
        """Later work here waits for the event's latest record; a no-op for an event never recorded.

        Events of another device are waited for by the host, since drivers promise nothing across devices.
        """
        self._check()
        try:
            if not event.recorded:
                return
        except AttributeError:
            raise wrong_type(f"{self!r}: wait", event, "an event of device.event()") from None
        if self.handle and event.handle and event.device == self.device:
            self.device.driver.stream_wait_event(self.handle, event.handle)
        else:
            event.synchronize()

    def record(self, event: Event | None = None) -> Event:
        """Marks the work queued so far; returns the event (a new one without timing by default)."""
        self._check()
        made = Event(self.device, timing=False) if event is None else event
        made.record(self)
        return made

    def host_func(self, fn: Callable[[], None]) -> None:
        """Runs ``fn`` once on the host after the work queued so far.  It must not call back into this stream."""
        self._check()
        if not callable(fn):
            raise wrong_type(f"{self!r}: host_func", fn, "a function without arguments")
        if self.handle:
            try:
                self.device.driver.host_func(self.handle, fn)
                return
            except Unsupported:  # documented: then the host waits and calls
                self.synchronize()
        else:
            self.record().synchronize()
        fn()

    def close(self) -> None:
        """Destroys the stream after its queued work, raising that work's asynchronous error if there is one.

        A second call is a no-op, and so is closing the default stream.
        """
        if self._recording is not None:
            raise Busy(f"{self!r}: a Graph records it; end the block first")
        with self._lock:
            if not self._alive or not self.handle:
                return
            self._alive = False
        try:
            destroy(self.device, self.handle)
        finally:
            self._held.clear()

    def __enter__(self) -> Stream:
        self._check()
        here = self.device.position
        _current.outer.append(_current.by_position.get(here))
        _current.by_position[here] = self
        return self

    def __exit__(self, *exc: object) -> None:
        outer = _current.outer.pop()
        if outer is None:
            _current.by_position.pop(self.device.position, None)
        else:
            _current.by_position[self.device.position] = outer

    def __del__(self) -> None:
        if getattr(self, "_alive", False) and self.handle:
            self.device._abandoned.append((self.handle, self._held))

    # ---- for memory.py and module.py ---------------------------------------------------------------------------------
    def hold(self, *objects: object) -> None:
        """Keeps objects alive until the work queued so far has passed; while a Graph records, as long as the graph."""
        if self._recording is not None:
            self._recording.held += objects
            return
        if not self.handle or not self.device.capabilities.events:
            if self.handle:
                self.device.driver.stream_sync(self.handle)  # no way to know later: wait now
            return
        self._release()
        mark = self.record()
        with self._lock:
            self._held.append((mark, objects))

    def _release(self) -> None:
        dead = []  # destroyed outside the lock: their finalisers are anyone's code
        with self._lock:
            while self._held and self._held[0][0].query():
                dead.append(self._held.popleft())


class Recording:
    """What the work of a recording uses: tensors and buffers (reads, writes) and held objects."""

    def __init__(self) -> None:
        self.reads: list[Tensor | Buffer] = []
        self.writes: list[Tensor | Buffer] = []
        self.held: list[object] = []


def destroy(device: Device, handle: int) -> None:
    """Waits for a stream's work and destroys it; raises the work's asynchronous error afterwards."""
    try:
        device.driver.stream_sync(handle)
    finally:
        device.allocator.stream_close(handle)


class Event:
    """``Event(device, timing=True)``: a point in a stream that others wait for or measure from.

    Where the driver has no events, recording waits for the stream and notes the host's clock.

    Attributes:
        device: the device.
        handle: the driver's number; 0 where the driver has no events.
        recorded: whether ``record`` was called.
    """

    def __init__(self, device: Device, timing: bool = True) -> None:
        if not isinstance(device, Device):
            raise wrong_type("Event", device, "a device, haian.device(...)")
        if not isinstance(timing, int):
            raise wrong_type(f"{device.name}: event timing", timing, "True or False")
        self.device = device
        self.timing = timing
        device._reap()
        self.recorded = False
        self._host_ns = 0
        self.handle = device.driver.event_create(device.index, timing) if device.capabilities.events else 0

    def __repr__(self) -> str:
        return f"<haian event {self.handle:#x} of {self.device.name}>"

    def record(self, stream: Stream | None = None) -> None:
        """Marks the work queued in ``stream`` (the current one) so far.

        Raises:
            ArgumentError: the stream is another device's.
        """
        stream = self.device.current_stream if stream is None else stream
        if not isinstance(stream, Stream):
            raise wrong_type(f"{self!r}: record", stream, f"a stream of {self.device.name} or None")
        if stream.device != self.device:
            raise ArgumentError(f"{self!r}: cannot be recorded in a stream of {stream.device.name}; make an event of that device")
        stream._check()
        if self.handle:
            self.device.driver.event_record(self.handle, stream.handle)
        else:
            stream.synchronize()
            self._host_ns = time.monotonic_ns()
        self.recorded = True

    def query(self) -> bool:
        """Whether the latest record has passed; true for an event never recorded."""
        return self.device.driver.event_query(self.handle) if self.handle else True

    def synchronize(self, timeout_s: float | None = None) -> None:
        """Waits for the latest record.

        Raises:
            Timeout: it did not pass within ``timeout_s`` seconds; the event stays usable.
        """
        try:
            limit = -1 if timeout_s is None else max(0, int(min(timeout_s, _LONGEST_S) * 1e9))
        except (TypeError, ValueError):  # no number, or NaN
            raise wrong_type(f"{self!r}: synchronize timeout_s", timeout_s, "a number of seconds, or None to wait for ever") from None
        if self.handle:
            self.device.driver.event_sync(self.handle, limit)

    def elapsed_ns(self, other: Event) -> int:
        """Nanoseconds from this event's record to the other's.

        Raises:
            NotReady: one was never recorded or has not passed.  ArgumentError: another device, or made without timing.
        """
        if not isinstance(other, Event):
            raise wrong_type(f"{self!r}: elapsed_ns", other, "an event of the same device")
        if other.device != self.device:
            raise ArgumentError(f"elapsed_ns: events of {self.device.name} and {other.device.name} share no clock; use one device's")
        if not (self.timing and other.timing):
            raise ArgumentError("elapsed_ns: an event was made with timing=False; make both with timing=True")
        if not (self.recorded and other.recorded):
            raise NotReady("elapsed_ns: an event was never recorded; record both and wait for the later one")
        if self.handle:
            return self.device.driver.event_elapsed_ns(self.handle, other.handle)
        return other._host_ns - self._host_ns

    def __del__(self) -> None:
        handle = getattr(self, "handle", 0)
        if handle:
            self.device._later.append(partial(self.device.driver.event_destroy, handle))
