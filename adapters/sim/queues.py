"""Queues of work on worker threads, marks for events, and the handle table.

A stream's thread starts with its first task and ends after a few idle seconds, so a thousand idle streams cost none.
Nothing here knows what a task does.
"""
from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ...hal.errors import HaianError, InternalError, InvalidHandle, OutOfMemory

__all__ = ["Event", "Handles", "Mark", "Stream"]

_IDLE_S = 2.0  # how long a worker waits for its next task before it ends

# kinds of task, by what happens to them once the stream has failed or was reset
WORK = 0  # skipped after a failure, skipped after a reset
CALL = 1  # runs after a failure (nobody who waits for it may hang), skipped after a reset
MARK = 2  # always runs


class Mark:
    """One record of an event: completed once, at ``time_ns`` of the monotonic clock."""

    __slots__ = ("done", "time_ns")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.time_ns = 0

    def complete(self) -> None:
        self.time_ns = time.monotonic_ns()
        self.done.set()


class Event:
    """What an event handle stands for; ``mark`` is its latest record."""

    def __init__(self, device: int, timing: bool) -> None:
        self.device, self.timing = device, timing
        self.mark: Mark | None = None


class Stream:
    """An in-order queue with one worker thread.  Any thread may submit."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.submitted = 0
        self.completed = 0
        self.error: HaianError | None = None  # first failure, until it is delivered
        self._tasks: deque[tuple[int, Callable[[], object]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._dropped = False

    def submit(self, kind: int, task: Callable[[], object]) -> None:
        with self._changed:
            if self._closed:
                raise InvalidHandle("sim: the stream is being destroyed; create another")
            self._tasks.append((kind, task))
            self.submitted += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="haian-sim-stream", daemon=True)
                self._thread.start()
            else:
                self._changed.notify_all()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._tasks:
                    awake = self._changed.wait(0 if self._closed else _IDLE_S)
                    if not self._tasks and (self._closed or not awake):
                        self._thread = None
                        return
                kind, task = self._tasks.popleft()
                skip = kind < MARK and (self._dropped or (kind == WORK and self.error is not None))
            error = None
            if not skip:
                try:
                    task()
                except HaianError as e:
                    error = e
                except MemoryError:
                    error = OutOfMemory("sim: the host ran out of memory while a task ran; use smaller tensors")
                except Exception as e:  # noqa: BLE001 - host functions are anyone's code; the worker must outlive them
                    error = InternalError(f"sim: a queued task raised {type(e).__name__}: {e}")
            with self._changed:
                if error is not None and self.error is None:
                    self.error = error
                self.completed += 1
                self._changed.notify_all()

    @property
    def idle(self) -> bool:
        return self.completed == self.submitted

    def wait(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Until everything submitted so far has completed, or ``stop()``; ``poke`` makes it look."""
        with self._changed:
            ticket = self.submitted
            while self.completed < ticket and not stop():
                self._changed.wait()

    def poke(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def take_error(self) -> HaianError | None:
        with self._changed:
            error, self.error = self.error, None
            return error

    def close(self) -> None:
        """Refuse new work; the worker ends after what is queued."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drop(self) -> None:
        """Forget queued work, marks excepted: they complete."""
        with self._changed:
            self._closed = self._dropped = True
            self._changed.notify_all()


class Handles:
    """Integers for objects: generation << 32 | slot, never 0, so that a stale one is recognised."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: list[tuple[int, object | None]] = []
        self._free: list[int] = []

    def add(self, thing: object) -> int:
        with self._lock:
            if self._free:
                slot = self._free.pop()
                generation = self._slots[slot][0] + 1
                self._slots[slot] = (generation, thing)
            else:
                slot, generation = len(self._slots), 1
                self._slots.append((generation, thing))
        return generation << 32 | slot

    def get(self, handle: int, kind: type):
        """The object; InvalidHandle when the handle is stale, unknown or of another kind."""
        slot = handle & 0xFFFFFFFF
        if 0 < handle and slot < len(self._slots):
            generation, thing = self._slots[slot]
            if generation == handle >> 32 and isinstance(thing, kind):
                return thing
        raise InvalidHandle(f"sim: {handle:#x} is not a live {kind.__name__.strip('_').lower()} handle; create one")

    def remove(self, handle: int, kind: type):
        thing = self.get(handle, kind)
        with self._lock:
            slot = handle & 0xFFFFFFFF
            if self._slots[slot] != (handle >> 32, thing):
                raise InvalidHandle(f"sim: {handle:#x} was destroyed by another thread; destroy each handle once")
            self._slots[slot] = (handle >> 32, None)
            self._free.append(slot)
        return thing

    def remove_if(self, condition: Callable[[object], bool]) -> list[object]:
        """Remove every object for which the condition holds, and return them."""
        with self._lock:
            found = []
            for slot, (generation, thing) in enumerate(self._slots):
                if thing is not None and condition(thing):
                    self._slots[slot] = (generation, None)
                    self._free.append(slot)
                    found.append(thing)
            return found
