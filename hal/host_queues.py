"""Queues of work on worker threads, marks for events, recordings, and the handle table: for drivers that run on this host.

A stream's thread starts with its first task and ends after a few idle seconds, so a thousand idle streams cost none.
Nothing here knows what a task does, and nothing here is a driver (host_driver.py is).
"""
from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from .driver import ProfileRecord
from .errors import Busy, HaianError, InternalError, InvalidHandle, OutOfMemory

__all__ = ["CALL", "MARK", "WORK", "Event", "Executable", "Graph", "Handles", "Mark", "Profile", "Recorded", "Stream", "Wait", "Work"]

_IDLE_S = 2.0  # how long a worker waits for its next task before it ends

# kinds of task, by what happens to them once the stream has failed or was reset
WORK = 0  # skipped after a failure, skipped after a reset
CALL = 1  # runs after a failure (nobody who waits for it may hang), skipped after a reset
MARK = 2  # always runs


class Work:
    """One task.  ``what``, ``name`` and ``nbytes`` go into a ProfileRecord; without ``what`` there is none."""

    __slots__ = ("kind", "run", "what", "name", "nbytes")

    def __init__(self, kind: int, run: Callable[[], object], what: str = "", name: str = "", nbytes: int = 0) -> None:
        self.kind, self.run, self.what, self.name, self.nbytes = kind, run, what, name, nbytes

    def now(self) -> Work | None:
        """What to queue, asked once a submission and once a replay of a recording; None: nothing."""
        return self

    def timed(self, stream: int, profile: Profile) -> Work:
        """The same with its record, where one is wanted."""
        return Work(self.kind, lambda: profile.measure(self, stream)) if profile.on and self.what else self


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


class Recorded(Work):
    """Records an event; every replay is a record of its own."""

    __slots__ = ("event",)

    def __init__(self, event: Event) -> None:
        super().__init__(MARK, lambda: None)
        self.event = event

    def now(self) -> Work:
        mark = self.event.mark = Mark()
        return Work(MARK, mark.complete)


class Wait(Work):
    """Waits for the record that the event has at the submission: a later one does not change the wait."""

    __slots__ = ("event",)

    def __init__(self, event: Event) -> None:
        super().__init__(CALL, lambda: None)
        self.event = event

    def now(self) -> Work | None:
        mark = self.event.mark
        return None if mark is None or mark.done.is_set() else Work(CALL, mark.done.wait)


class Graph:
    """Work recorded on a stream, in order."""

    def __init__(self, device: int, works: tuple[Work, ...] = ()) -> None:
        self.device = device
        self.works: list[Work] = list(works)


class Executable(Graph):
    """What ``graph_instantiate`` makes: a copy, so that the graph may go."""


class Profile:
    """Records of one device."""

    def __init__(self) -> None:
        self.on = False
        self._records: list[ProfileRecord] = []
        self._lock = threading.Lock()

    def measure(self, work: Work, stream: int) -> None:
        """Runs the work and notes when; work that fails leaves no record."""
        start = time.monotonic_ns()
        work.run()
        made = ProfileRecord(work.what, work.name, stream, start, time.monotonic_ns(), work.nbytes)
        with self._lock:
            self._records.append(made)

    def drain(self) -> list[ProfileRecord]:
        with self._lock:
            found, self._records = self._records, []
        return sorted(found, key=lambda r: r.start_ns)


class Stream:
    """An in-order queue with one worker thread.  Any thread may submit.

    Args:
        owner: the driver's name, for messages.
        lost: whether the device is; its WORK is then skipped.
    """

    def __init__(self, device: int, owner: str, profile: Profile, lost: Callable[[], bool] = lambda: False) -> None:
        self.device, self.owner, self.profile, self.lost = device, owner, profile, lost
        self.handle = 0
        self.submitted = 0
        self.completed = 0
        self.error: HaianError | None = None  # first failure, until it is delivered
        self.recording: Graph | None = None  # takes what is submitted instead of the worker
        self._tasks: deque[Work] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._sleeping = False  # the worker, for want of tasks
        self._awaited: list[int] = []  # what each waiting thread waits for ``completed`` to reach
        self._closed = False
        self._dropped = False

    def submit(self, *works: Work) -> None:
        """Queues all of them, with nothing of another thread between."""
        with self._changed:
            if self._closed:
                raise InvalidHandle(f"{self.owner}: the stream is being destroyed; create another")
            if self.recording is not None:
                self.recording.works += works
                return
            for work in works:
                ready = work.now()
                if ready is not None:
                    self._tasks.append(ready.timed(self.handle, self.profile))
                    self.submitted += 1
            if not self._tasks:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=f"haian-{self.owner}-stream", daemon=True)
                self._thread.start()
            elif self._sleeping:
                self._changed.notify_all()

    def _loop(self) -> None:
        # One turn of the lock a task, and nobody is woken who cannot go on: a queued copy takes 8 us so, else 14.
        error: HaianError | None = None
        ran = False
        while True:
            with self._changed:
                if ran:
                    if self.error is None:
                        self.error = error
                    self.completed += 1
                    if self._awaited and min(self._awaited) <= self.completed:
                        self._changed.notify_all()
                while not self._tasks:
                    self._sleeping = True
                    awake = self._changed.wait(0 if self._closed else _IDLE_S)
                    self._sleeping = False
                    if not self._tasks and (self._closed or not awake):
                        self._thread = None
                        return
                work = self._tasks.popleft()
                skip = work.kind < MARK and (self._dropped or (work.kind == WORK and (self.error is not None or self.lost())))
            error = None if skip else self._attempt(work)
            ran = True
            del work  # what it kept alive goes before the stream counts as idle

    def _attempt(self, work: Work) -> HaianError | None:
        try:
            work.run()
        except HaianError as e:
            return e
        except MemoryError:
            return OutOfMemory(f"{self.owner}: the host ran out of memory while a task ran; use smaller tensors")
        except Exception as e:  # noqa: BLE001 - host functions are anyone's code; the worker must outlive them
            error = InternalError(f"{self.owner}: a queued task raised {type(e).__name__}: {e}")
            error.__cause__ = e
            return error
        return None

    # ---- recording -------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        with self._changed:
            if self.recording is not None:
                raise Busy(f"{self.owner}: the stream records already; graph_end first")
            self.recording = Graph(self.device)

    def end(self) -> Graph | None:
        with self._changed:
            found, self.recording = self.recording, None
            return found

    def not_recording(self) -> None:
        """Busy while a recording takes the stream's work: nothing of it would ever be done."""
        if self.recording is not None:
            raise Busy(f"{self.owner}: the stream records and runs nothing; graph_end first")

    # ---- waiting ---------------------------------------------------------------------------------------------------
    @property
    def idle(self) -> bool:
        return self.completed == self.submitted

    def wait(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Until everything submitted so far has completed, or ``stop()``; ``poke`` makes it look.

        Raises:
            Busy: called by the stream's own work, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise Busy(f"{self.owner}: a host function waits for its own stream; wait from another thread")
        with self._changed:
            ticket = self.submitted
            self._awaited.append(ticket)
            try:
                while self.completed < ticket and not stop():
                    self._changed.wait()
            finally:
                self._awaited.remove(ticket)

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
            self.recording = None
            self._changed.notify_all()

    def drop(self) -> None:
        """Forget queued work, marks excepted: they complete."""
        with self._changed:
            self._closed = self._dropped = True
            self.recording = None
            self._changed.notify_all()

    def join(self) -> None:
        """Until the worker of a closed stream has ended."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()


class Handles:
    """Integers for objects: generation << 32 | slot, never 0, so that a stale one is recognised."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
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
        raise InvalidHandle(f"{self._owner}: {handle:#x} is not a live {kind.__name__.strip('_').lower()} handle; create one")

    def remove(self, handle: int, kind: type):
        thing = self.get(handle, kind)
        with self._lock:
            slot = handle & 0xFFFFFFFF
            if self._slots[slot] != (handle >> 32, thing):
                raise InvalidHandle(f"{self._owner}: {handle:#x} was destroyed by another thread; destroy each handle once")
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
