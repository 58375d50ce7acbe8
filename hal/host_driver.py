"""HostDriver: the optional groups of the driver page that are the same for every device that lives in this process.

A driver on it (adapters/cpu, adapters/sim) brings its memory, its kernels and its facts; streams, events, graphs, profiles,
page locking and what happens after a fork are here.  Streams are worker threads, their queues are host_queues.py.
"""
from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable

from . import host_memory
from .driver import GROUPS, Driver, PointerInfo, ProfileRecord
from .errors import ArgumentError, InvalidHandle, NotReady, Timeout
from .host_queues import CALL, WORK, Event, Executable, Graph, Handles, Profile, Recorded, Stream, Wait, Work

__all__ = ["HostDriver"]


class HostDriver(Driver):
    """Streams, events, graphs, profiles.  A subclass calls ``_begin`` when it is made.

    ``_work``: WORK where a failure stops what is queued behind it until it is delivered, CALL where it does not.
    """

    _work = WORK

    def _begin(self) -> None:
        """Starts anew: when made, after ``fini``, and in a child of fork, which has none of the parent's threads."""
        self._lock = threading.Lock()
        self._handles = Handles(self.name)
        self._streams: set[Stream] = set()
        self._profiles = [Profile() for _ in range(self.device_count())]
        self._registered: list[tuple[int, int, int]] = []  # sorted (address, bytes, device)
        _drivers.add(self)

    # ---- for the subclass ----------------------------------------------------------------------------------------------
    def _check(self, device: int) -> None:
        """ArgumentError for a device that does not exist, DeviceLost for one that is lost."""
        if not isinstance(device, int) or not 0 <= device < self.device_count():
            raise ArgumentError(f"{self.name}: device {device}; there are {self.device_count()}, numbered from 0")

    def _lost(self, device: int) -> Callable[[], bool]:
        """A question that says whether the device, as it is now, is lost."""
        return lambda: False

    def _do(self, device: int, stream: int, work: Work) -> None:
        """Runs work in stream order; stream 0 runs at once and is ordered with no other."""
        if stream:
            self._stream(stream, device).submit(work)
        else:
            self._now(device, work)

    def _now(self, device: int, *works: Work) -> None:
        for work in works:
            ready = work.now()
            if ready is not None:
                ready.timed(0, self._profiles[device]).run()

    def _stream(self, handle: int, device: int = -1) -> Stream:
        """A live stream, of that device where one is given."""
        found = self._handles.get(handle, Stream)
        self._check(found.device)
        if device not in (-1, found.device):
            raise ArgumentError(f"{self.name}: a stream of device {found.device} was given work of device {device}; use its own")
        return found

    def _streams_of(self, device: int) -> list[Stream]:
        with self._lock:
            return [s for s in self._streams if s.device == device]

    def _drop(self, device: int, wait: bool) -> None:
        """Ends the device's streams and forgets its handles; with ``wait`` after what is queued."""
        with self._lock:
            dropped = {s for s in self._streams if s.device == device}
            self._streams -= dropped
            self._registered = [r for r in self._registered if r[2] != device]
        self._handles.remove_if(lambda thing: getattr(thing, "device", -1) == device)
        for stream in dropped:
            if wait:
                stream.close()
            else:
                stream.drop()
        for stream in dropped if wait else ():
            stream.join()
        self._profiles[device] = Profile()

    def offers(self, group: str) -> bool:
        """As driver.offers; memory can be shared only where the system has memory files."""
        own = all(getattr(type(self), n) is not getattr(Driver, n) for n in GROUPS[group] if not n.endswith("?"))
        return own and (group != "ipc" or host_memory.can_share())

    # ---- begin and end ---------------------------------------------------------------------------------------------------
    def init(self) -> None:
        """Nothing: a driver is ready when it is made, and again after ``fini``."""

    def fini(self) -> None:
        """Drains and ends everything; the driver may be used again."""
        for device in range(self.device_count()):
            self._drop(device, wait=True)
        self._begin()

    # ---- page locking ------------------------------------------------------------------------------------------------------
    def host_register(self, device: int, address: int, nbytes: int) -> None:
        """Locked where the system allows it (``Capabilities.extra["page_lock"]``), noted in any case."""
        self._check(device)
        if address <= 0 or nbytes <= 0:
            raise ArgumentError(f"{self.name}: host_register of {nbytes} bytes at {address:#x}; needs an address and at least 1 byte")
        with self._lock:
            for base, size, _ in self._registered:
                if base < address + nbytes and address < base + size:
                    raise ArgumentError(f"{self.name}: host_register of {address:#x}: registered already ({size} bytes from {base:#x}); "
                                        f"unregister it first")
            self._registered.append((address, nbytes, device))
            self._registered.sort()
        host_memory.lock(address, nbytes)

    def host_unregister(self, device: int, address: int) -> None:
        self._check(device)
        with self._lock:
            found = next((r for r in self._registered if r[0] == address), None)
            if found is None:
                raise InvalidHandle(f"{self.name}: host_unregister of {address:#x}, which is not registered; pass the address registered")
            self._registered.remove(found)
        host_memory.unlock(address, found[1])

    def _registered_info(self, address: int) -> PointerInfo:
        """Registered memory is pinned; anything else that the subclass does not know is unknown."""
        with self._lock:
            i = bisect_right(self._registered, (address, 1 << 64, 0)) - 1
            if i >= 0:
                base, nbytes, device = self._registered[i]
                if address < base + nbytes:
                    return PointerInfo("pinned", device, base, nbytes)
        return PointerInfo("unknown")

    # ---- streams -----------------------------------------------------------------------------------------------------------
    def stream_create(self, device: int) -> int:
        self._check(device)
        made = Stream(device, self.name, self._profiles[device], self._lost(device))
        with self._lock:
            self._streams.add(made)
        made.handle = self._handles.add(made)
        return made.handle

    def stream_destroy(self, stream: int) -> None:
        self._stream(stream)
        found = self._handles.remove(stream, Stream)
        found.close()
        found.wait(found.lost)
        with self._lock:
            self._streams.discard(found)

    def stream_sync(self, stream: int) -> None:
        if stream == 0:
            return
        found = self._stream(stream)
        found.not_recording()
        found.wait(found.lost)
        self._check(found.device)  # lost meanwhile?
        error = found.take_error()
        if error is not None:
            raise error

    def stream_query(self, stream: int) -> bool:
        if stream == 0:
            return True
        found = self._stream(stream)
        found.not_recording()
        error = found.take_error()
        if error is not None:
            raise error
        return found.idle

    def stream_wait_event(self, stream: int, event: int) -> None:
        wait = Wait(self._handles.get(event, Event))
        if stream:
            self._stream(stream).submit(wait)
        else:
            ready = wait.now()
            if ready is not None:
                ready.run()

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        if stream:
            self._stream(stream).submit(Work(CALL, fn, "host", getattr(fn, "__qualname__", "")))
        else:
            fn()

    # ---- events --------------------------------------------------------------------------------------------------------------
    def event_create(self, device: int, timing: bool = True) -> int:
        self._check(device)
        return self._handles.add(Event(device, timing))

    def event_destroy(self, event: int) -> None:
        self._handles.remove(event, Event)

    def event_record(self, event: int, stream: int) -> None:
        found = self._handles.get(event, Event)
        self._check(found.device)
        if stream == 0:
            Recorded(found).now().run()
            return
        queue = self._stream(stream)
        if queue.device != found.device:
            raise ArgumentError(f"{self.name}: an event of device {found.device} cannot be recorded on a stream of device "
                                f"{queue.device}; create it there")
        queue.submit(Recorded(found))

    def event_query(self, event: int) -> bool:
        mark = self._handles.get(event, Event).mark
        return mark is None or mark.done.is_set()

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        found = self._handles.get(event, Event)
        self._check(found.device)
        mark = found.mark
        if mark is not None and not mark.done.wait(None if timeout_ns < 0 else timeout_ns * 1e-9):
            raise Timeout(f"{self.name}: the event did not complete in {timeout_ns} ns; wait again or look at its stream")

    def event_elapsed_ns(self, start: int, end: int) -> int:
        first, second = (self._handles.get(e, Event) for e in (start, end))
        if not (first.timing and second.timing):
            raise ArgumentError(f"{self.name}: an event was created without timing; create both with timing=True")
        if any(e.mark is None or not e.mark.done.is_set() for e in (first, second)):
            raise NotReady(f"{self.name}: an event has no completed record; synchronize first")
        return second.mark.time_ns - first.mark.time_ns

    # ---- graphs --------------------------------------------------------------------------------------------------------------
    def graph_begin(self, stream: int) -> None:
        """An event recorded meanwhile is recorded by each replay; one waited for, as it stands when a replay is queued."""
        if stream == 0:
            raise ArgumentError(f"{self.name}: stream 0 runs at once and records nothing; graph_begin takes a stream of stream_create")
        self._stream(stream).begin()

    def graph_end(self, stream: int, abort: bool = False) -> int:
        found = self._stream(stream).end() if stream else None
        if found is None:
            raise ArgumentError(f"{self.name}: graph_end on a stream that does not record; graph_begin first")
        return 0 if abort else self._handles.add(found)

    def graph_instantiate(self, graph: int) -> int:
        found = self._handles.get(graph, Graph)
        return self._handles.add(Executable(found.device, tuple(found.works)))

    def graph_launch(self, executable: int, stream: int) -> None:
        found = self._handles.get(executable, Executable)
        self._check(found.device)
        if stream:
            self._stream(stream, found.device).submit(*found.works)
        else:
            self._now(found.device, *found.works)

    def graph_destroy(self, graph: int) -> None:
        """Replays already queued still run."""
        self._handles.remove(graph, Graph)

    # ---- profiles ------------------------------------------------------------------------------------------------------------
    def prof_start(self, device: int) -> None:
        """Work queued from now on leaves a record when it has run."""
        self._check(device)
        self._profiles[device].on = True

    def prof_stop(self, device: int) -> None:
        self._check(device)
        self._profiles[device].on = False

    def prof_drain(self, device: int) -> list[ProfileRecord]:
        self._check(device)
        return self._profiles[device].drain()


# A child of fork has none of the worker threads: its drivers start anew, so old handles are refused instead of hanging.
_drivers: weakref.WeakSet[HostDriver] = weakref.WeakSet()


def _after_fork() -> None:
    for driver in list(_drivers):
        driver._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
