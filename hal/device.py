"""Device: one numbered unit of a driver, with its facts, its memory and its streams.

Not here: which devices exist (registry.py), what runs on them (module.py and the operators).
"""
from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .._native import Buffer
from .driver import Capabilities, Driver, ProfileRecord, Telemetry
from .errors import HaianError, OutOfMemory, Unsupported, wrong_type

if TYPE_CHECKING:
    from .memory import Allocator
    from .stream import Event, Stream
    from .tensor import Tensor

__all__ = ["Device"]

_log = logging.getLogger("haian")


class _Current(threading.local):
    """The calling thread's stream of each device, by position; absent: the default stream."""

    def __init__(self) -> None:
        self.by_position: dict[int, Stream] = {}
        self.outer: list[Stream | None] = []  # what each open ``with stream:`` replaced


_current = _Current()


class Device:
    """Made by the registry: ``haian.device("sim:0")``.  Equal when driver and index are.

    Attributes:
        driver: the adapter's driver.
        index: number within the driver.
        position: number among all devices of the process, ``Tensor.device_index``.  0 is the host.
        name: ``"sim:0"``.
    """

    def __init__(self, driver: Driver, index: int, position: int) -> None:
        self.driver = driver
        self.index = index
        self.position = position
        self.name = f"{driver.name}:{index}"
        self._lock = threading.Lock()
        # Finalisers may run inside a driver's lock, so they only queue work here (deque.append is atomic).
        self._later: deque[Callable[[], None]] = deque()
        self._unloads: deque[Callable[[], None]] = deque()  # of modules: they wait for the device first
        self._abandoned: deque[tuple[int, object]] = deque()  # streams nobody holds: handle, what their work reads
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"haian.device({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.driver is other.driver and self.index == other.index

    def __hash__(self) -> int:
        return hash((id(self.driver), self.index))

    def __reduce__(self) -> tuple[Any, ...]:
        from .registry import device
        return (device, (self.name,))

    @property
    def is_host(self) -> bool:
        """Whether this is the process's own memory, whose tensors are plain host tensors."""
        return self.position == 0

    @cached_property
    def capabilities(self) -> Capabilities:
        """Facts asked of the adapter once."""
        return self.driver.props(self.index)

    # ---- memory ----------------------------------------------------------------------------------------------------
    @cached_property
    def allocator(self) -> Allocator:
        """The caching allocator above the driver.  Host tensors come from the native one instead."""
        from .memory import Allocator
        facts = self.capabilities
        with self._lock:  # cached_property alone makes two in a race from Python 3.12 on
            return self.__dict__.setdefault("allocator", Allocator(self.driver, self.index, self.name, facts))

    def allocate(self, nbytes: int, stream: Stream | None = None) -> Buffer:
        """``nbytes`` uninitialised bytes, first usable on ``stream`` (the current one).

        Raises:
            OutOfMemory: even after giving the cache back.  ArgumentError: nbytes < 1, another device's stream.  InvalidHandle: a closed one.
        """
        if self._later or self._abandoned:
            self._reap()
        if stream is None:
            stream = self.current_stream
        elif not getattr(stream, "_alive", True):
            stream._check()
        try:
            return Buffer(self, nbytes, stream)
        except (TypeError, AttributeError):
            if not hasattr(stream, "handle"):
                raise wrong_type(f"{self.name}: allocate", stream, f"a stream of {self.name} or None") from None
            if not hasattr(nbytes, "__index__"):
                raise wrong_type(f"{self.name}: allocate", nbytes, "a whole number of bytes") from None
            raise
        except OutOfMemory:
            if nbytes >= 1 << 64:  # the native side counts in 64 bits
                raise OutOfMemory(f"{self.name}: {nbytes} bytes asked for; one allocation may have {self.capabilities.max_alloc_bytes}; "
                                  f"split the tensor") from None
            raise

    def empty(self, shape: tuple[int, ...] | list[int] | int, dtype: object = "float32") -> Tensor:
        """An uninitialised contiguous tensor here."""
        from .tensor import empty
        return empty(shape, dtype, self)

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes as the driver sees them, or as the allocator counts where the driver cannot say."""
        try:
            return self.driver.mem_info(self.index)
        except Unsupported:
            total = self.capabilities.total_bytes
            return total - self.allocator.stats()["reserved_bytes"], total

    def memory_stats(self) -> dict[str, int]:
        """live_bytes, cached_bytes, peak_bytes, allocations, hits of the caching allocator."""
        if self.is_host:
            from .. import _native
            return _native.alloc_stats()
        return self.allocator.stats()

    def trim(self) -> int:
        """Gives cached memory back to the driver; returns how many bytes."""
        if self.is_host:
            from .. import _native
            return _native.alloc_trim()
        self._reap()
        return self.allocator.trim()

    # ---- streams ---------------------------------------------------------------------------------------------------
    @cached_property
    def default_stream(self) -> Stream:
        """The device's synchronous stream, handle 0."""
        from .stream import Stream
        with self._lock:
            return self.__dict__.setdefault("default_stream", Stream(self, _handle=0))

    def stream(self) -> Stream:
        """A new stream; a synchronous one where the driver has none."""
        from .stream import Stream
        return Stream(self)

    def event(self, timing: bool = True) -> Event:
        """A new event."""
        from .stream import Event
        return Event(self, timing)

    @property
    def current_stream(self) -> Stream:
        """What ``with stream:`` set on the calling thread, else the default stream."""
        return _current.by_position.get(self.position) or self.default_stream

    def synchronize(self) -> None:
        """Waits for everything queued here, then raises the first asynchronous error of its streams."""
        self.driver.sync(self.index)
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            if stream._alive and stream._recording is None:
                stream.synchronize()
        self._run(self._unloads)
        self._reap()

    # ---- how it is doing ---------------------------------------------------------------------------------------------
    def telemetry(self) -> Telemetry:
        """A sample of the sensors: load, temperature, power, clock, memory used; NaN where there is none.

        Raises:
            Unsupported: the driver has no sensors.
        """
        return self.driver.telemetry(self.index)

    @contextmanager
    def profile(self) -> Iterator[list[ProfileRecord]]:
        """The list holds, after the block, what ran of the work queued in it, in order of start; the end waits for the device.

            with device.profile() as records:
                haian.ops.matmul(a, b)

        Raises:
            Unsupported: the driver has no profiler.
        """
        records: list[ProfileRecord] = []
        self.driver.prof_start(self.index)
        self.driver.prof_drain(self.index)  # what an earlier use left
        try:
            yield records
            self.synchronize()
        finally:
            self.driver.prof_stop(self.index)
            records += self.driver.prof_drain(self.index)

    # ---- what finalisers left to do ----------------------------------------------------------------------------------
    def _opened(self, stream: Stream) -> None:
        with self._lock:
            self._streams.add(stream)

    @staticmethod
    def _run(queue: deque[Callable[[], None]]) -> None:
        while True:
            try:
                work = queue.popleft()
            except IndexError:  # empty, or another thread was quicker
                return
            with suppress(HaianError):  # after a reset of the device the handle is gone already
                work()

    def _reap(self) -> None:
        """Destroys what is no longer referenced, as far as that waits for nothing."""
        self._run(self._later)
        for _ in range(len(self._abandoned)):
            try:
                handle, held = self._abandoned.popleft()
            except IndexError:  # another thread was quicker
                break
            try:
                idle = self.driver.stream_query(handle)
            except HaianError as e:
                _log.warning("%s: work of a stream that nobody holds failed: %s; synchronize streams before dropping them", self.name, e)
                idle = True
            if idle:
                from .stream import destroy
                with suppress(HaianError):  # as above
                    destroy(self, handle)
            else:
                self._abandoned.append((handle, held))
