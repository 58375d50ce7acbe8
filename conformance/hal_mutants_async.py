"""Wrong drivers: streams, events, errors and threads.  Each is a right driver with one mistake; hal_mutants.py runs them."""
from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ..hal.driver import DEVICE_TO_HOST, HOST_TO_DEVICE, Capabilities, Copy, Driver
from ..hal.errors import DeviceLost, HaianError, InternalError, NotReady, OutOfMemory, Timeout, Unsupported
from ..hal.host_queues import CALL, Event, Handles, Stream, Work
from .hal_bases import CpuDriver, SimDriver

__all__ = ["ROWS"]

_HANG_S = 1.2  # how long a mutant waits that should wait for ever


# ---- streams ------------------------------------------------------------------------------------------------------------------
class FourStreams(SimDriver):
    """the fifth stream is the first one again"""

    def stream_create(self, device: int) -> int:
        pool = self.__dict__.setdefault("_pool", [])
        live = [h for h in pool if self._alive(h)]
        if len(live) >= 4:
            return live[0]
        pool.append(super().stream_create(device))
        return pool[-1]

    def _alive(self, handle: int) -> bool:
        try:
            self._handles.get(handle, Stream)
        except HaianError:
            return False
        return True


class _Stuck(Handles):
    """Gives a slot again without a new generation."""

    def add(self, thing: object) -> int:
        with self._lock:
            if not self._free:
                self._slots.append((1, thing))
                return 1 << 32 | len(self._slots) - 1
            slot = self._free.pop()
            self._slots[slot] = (self._slots[slot][0], thing)
            return self._slots[slot][0] << 32 | slot


class HandlesComeAgain(CpuDriver):
    """a new stream gets the handle of a destroyed one"""

    def _begin(self) -> None:
        super()._begin()
        self._handles = _Stuck(self.name)


class DestroyedStillWorks(SimDriver):
    """a destroyed stream goes on working"""

    def stream_destroy(self, stream: int) -> None:
        super().stream_sync(stream)


class FillsOvertake(SimDriver):
    """every seventh fill overtakes what is queued before it"""

    _fills = 0

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        self._fills += 1
        super().fill(device, address, pattern, nbytes, 0 if self._fills % 7 == 0 else stream)


class CopiesWaitInside(SimDriver):
    """a copy on a stream waits for it before it returns"""

    apart = True  # the copy ends after its check and its memory

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        super().copy(device, desc, stream)
        if stream and desc.kind == DEVICE_TO_HOST:
            self._stream(stream).wait()


class CopiesAtOnce(SimDriver):
    """copies to the device happen as they are queued"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        super().copy(device, desc, 0 if desc.kind == HOST_TO_DEVICE else stream)


class ReadyWhileLastRuns(SimDriver):
    """a stream counts as ready when its queue is empty, though its last task still runs"""

    def stream_query(self, stream: int) -> bool:
        return super().stream_query(stream) or not self._stream(stream)._tasks


class OneQueue(CpuDriver):
    """all streams share one queue"""

    def stream_create(self, device: int) -> int:
        live = self._streams_of(device)
        if live:
            return self._handles.add(live[0])
        return super().stream_create(device)

    def stream_destroy(self, stream: int) -> None:
        self._stream(stream).wait()
        self._handles.remove(stream, Stream)


class DestroyDrops(SimDriver):
    """stream_destroy forgets what is queued"""

    def stream_destroy(self, stream: int) -> None:
        self._stream(stream)
        found = self._handles.remove(stream, Stream)
        found.drop()
        with self._lock:
            self._streams.discard(found)


class DestroyReturnsEarly(CpuDriver):
    """stream_destroy returns before the queued work has run"""

    apart = True  # the work writes to arrays that are gone

    def stream_destroy(self, stream: int) -> None:
        self._stream(stream)
        found = self._handles.remove(stream, Stream)
        found.close()
        with self._lock:
            self._streams.discard(found)


class SyncsNewest(SimDriver):
    """sync of the device waits for the newest stream only"""

    def sync(self, device: int) -> None:
        self._device(device)
        for stream in sorted(self._streams_of(device), key=lambda s: s.handle)[-1:]:
            stream.wait()


class SyncsOldest(CpuDriver):
    """sync of the device waits for the oldest stream only"""

    def sync(self, device: int) -> None:
        self._check(device)
        for stream in sorted(self._streams_of(device), key=lambda s: s.handle)[:1]:
            stream.wait()


class SaysBlocking(SimDriver):
    """declares a blocking stream 0 that is independent"""

    def props(self, device: int) -> Capabilities:
        return replace(super().props(device), default_stream="blocking")


class BlocksUnsaid(SimDriver):
    """stream 0 waits for all others, though it is declared independent"""

    apart = True  # the copy ends after its check and its memory

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        if not stream:
            self.sync(device)
        super().copy(device, desc, stream)


class HostFuncTwice(SimDriver):
    """a host function runs twice"""

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        def twice() -> None:
            fn()
            fn()

        super().host_func(stream, twice)


class HostFuncLocked(SimDriver):
    """a host function runs with the driver's lock held"""

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        def locked() -> None:
            with self._lock:
                fn()

        super().host_func(stream, locked)


class HostFuncApart(CpuDriver):
    """host functions run on a thread of their own, out of stream order"""

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        gate = threading.Event()

        def apart() -> None:
            fn()
            gate.set()

        threading.Thread(target=apart, daemon=True).start()
        def wait() -> None:
            gate.wait()

        super().host_func(stream, wait)


class HostFuncAtOnce(SimDriver):
    """a host function runs on the thread that queues it"""

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        self._stream(stream)
        fn()


class HundredStreams(SimDriver):
    """the hundredth stream is an InternalError"""

    def stream_create(self, device: int) -> int:
        if len(self._streams_of(device)) >= 100:
            raise InternalError("sim: table full")
        return super().stream_create(device)


class ThousandHandlesFold(CpuDriver):
    """handles have eight bits"""

    def stream_create(self, device: int) -> int:
        live = self.__dict__.setdefault("_low", {})
        made = super().stream_create(device)
        return live.setdefault(made & 0xFF, made) if len(live) >= 256 else live.setdefault(made & 0xFF, made)

    def stream_destroy(self, stream: int) -> None:
        self.__dict__.setdefault("_low", {}).pop(stream & 0xFF, None)
        super().stream_destroy(stream)


class AnyDevicesStream(SimDriver):
    """work is taken on streams of another device"""

    def _stream(self, handle: int, device: int = -1) -> Stream:
        return super()._stream(handle)

    def event_record(self, event: int, stream: int) -> None:
        mark = self._handles.get(event, Event)
        mark.device = self._stream(stream).device if stream else mark.device
        super().event_record(event, stream)


# ---- events -------------------------------------------------------------------------------------------------------------------
class WaitsForNothing(SimDriver):
    """stream_wait_event does nothing"""

    def stream_wait_event(self, stream: int, event: int) -> None:
        self._stream(stream)
        self._handles.get(event, Event)


class WaitsForLatest(SimDriver):
    """a stream waits for the record that the event has when the wait is reached"""

    def stream_wait_event(self, stream: int, event: int) -> None:
        found = self._handles.get(event, Event)

        def wait() -> None:
            mark = found.mark
            if mark is not None:
                mark.done.wait(_HANG_S)

        self._stream(stream).submit(Work(CALL, wait))


class WaitsForNewest(CpuDriver):
    """a queued wait ends when any record of its event happens"""

    def stream_wait_event(self, stream: int, event: int) -> None:
        found = self._handles.get(event, Event)
        seen = found.mark

        def wait() -> None:
            while seen is not None and not seen.done.is_set() and not (found.mark is not None and found.mark.done.is_set()):
                time.sleep(0.001)

        self._stream(stream).submit(Work(CALL, wait))


class WaitsForFirstRecord(CpuDriver):
    """a wait before the first record waits for that"""

    def stream_wait_event(self, stream: int, event: int) -> None:
        found = self._handles.get(event, Event)

        def wait() -> None:
            end = time.monotonic() + _HANG_S
            while found.mark is None and time.monotonic() < end:
                time.sleep(0.001)

        if found.mark is None:
            self._stream(stream).submit(Work(CALL, wait))
        else:
            super().stream_wait_event(stream, event)


class UnrecordedIsBusy(SimDriver):
    """an event never recorded is not ready"""

    def event_query(self, event: int) -> bool:
        return self._handles.get(event, Event).mark is not None and super().event_query(event)


class UnrecordedHasTime(CpuDriver):
    """the time of an event never recorded is 0"""

    def event_elapsed_ns(self, start: int, end: int) -> int:
        try:
            return super().event_elapsed_ns(start, end)
        except NotReady:
            return 0


class ReadyInOrder(SimDriver):
    """events become ready in the order of their records, whatever their streams"""

    def event_record(self, event: int, stream: int) -> None:
        super().event_record(event, stream)
        self.__dict__.setdefault("_marks", []).append(self._handles.get(event, Event).mark)

    def event_query(self, event: int) -> bool:
        mark = self._handles.get(event, Event).mark
        before = list(itertools.takewhile(lambda m: m is not mark, self.__dict__.get("_marks", [])))
        return super().event_query(event) and all(m.done.is_set() for m in before[-8:])


class ReadyOnceRecorded(CpuDriver):
    """an event is ready as soon as its record is queued"""

    def event_query(self, event: int) -> bool:
        self._handles.get(event, Event)
        return True


class TimeoutIgnored(SimDriver):
    """event_sync waits without a limit"""

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        super().event_sync(event, int(_HANG_S * 1e9))


class TimeoutIsSuccess(CpuDriver):
    """event_sync returns well after its time"""

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        try:
            super().event_sync(event, timeout_ns)
        except Timeout:
            pass


class TimeoutAtOnce(SimDriver):
    """event_sync gives up at once"""

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        super().event_sync(event, 0 if 0 < timeout_ns < 1_000_000_000 else timeout_ns)


class Microseconds(SimDriver):
    """elapsed times are microseconds"""

    def event_elapsed_ns(self, start: int, end: int) -> int:
        return super().event_elapsed_ns(start, end) // 1000


class Unsigned(CpuDriver):
    """elapsed times are unsigned"""

    def event_elapsed_ns(self, start: int, end: int) -> int:
        return super().event_elapsed_ns(start, end) % 2**64


class Absolute(SimDriver):
    """elapsed times have no sign"""

    def event_elapsed_ns(self, start: int, end: int) -> int:
        return abs(super().event_elapsed_ns(start, end))


class Processor(SimDriver):
    """elapsed times count the processor's time, not the clock's"""

    apart = True  # other mutants use the processor too
    _at: dict[int, int]

    def event_record(self, event: int, stream: int) -> None:
        super().event_record(event, stream)
        self.__dict__.setdefault("_at", {})[event] = time.process_time_ns()

    def event_elapsed_ns(self, start: int, end: int) -> int:
        super().event_elapsed_ns(start, end)
        return self._at[end] - self._at[start]


class TimesWithoutFlag(CpuDriver):
    """events made without timing have times all the same"""

    def event_create(self, device: int, timing: bool = True) -> int:
        return super().event_create(device, True)


class DestroyFiresEvent(SimDriver):
    """destroying an event lets those pass that wait for it"""

    def event_destroy(self, event: int) -> None:
        mark = self._handles.get(event, Event).mark
        super().event_destroy(event)
        if mark is not None:
            mark.done.set()


class DestroyWaitsForever(CpuDriver):
    """a wait for a destroyed event never ends"""

    def stream_wait_event(self, stream: int, event: int) -> None:
        def wait() -> None:
            try:
                self._handles.get(event, Event)
            except HaianError:
                time.sleep(_HANG_S)

        super().stream_wait_event(stream, event)
        self._stream(stream).submit(Work(CALL, wait))


class CrossUnclaimed(SimDriver):
    """claims waits for other devices' events and refuses them"""

    def stream_wait_event(self, stream: int, event: int) -> None:
        if self._stream(stream).device != self._handles.get(event, Event).device:
            raise Unsupported("sim: an event of another device")
        super().stream_wait_event(stream, event)


class CrossIgnored(SimDriver):
    """a wait for another device's event does nothing"""

    def stream_wait_event(self, stream: int, event: int) -> None:
        if self._stream(stream).device == self._handles.get(event, Event).device:
            super().stream_wait_event(stream, event)


class RecordsRunOut(SimDriver):
    """an event has room for 4,096 records"""

    def event_record(self, event: int, stream: int) -> None:
        count = self.__dict__.setdefault("_counts", {})
        count[event] = count.get(event, 0) + 1
        if count[event] > 4096:
            raise OutOfMemory("sim: no record left of 4096")
        super().event_record(event, stream)


class OldRecordStays(CpuDriver):
    """after many records an event keeps its first time"""

    def event_elapsed_ns(self, start: int, end: int) -> int:
        known = self.__dict__.setdefault("_known", {})
        return known.setdefault((start, end), super().event_elapsed_ns(start, end))


# ---- errors -------------------------------------------------------------------------------------------------------------------
class ErrorTwice(SimDriver):
    """a stream's failure is raised by every sync"""

    def stream_sync(self, stream: int) -> None:
        kept = self.__dict__.setdefault("_kept", {})
        try:
            super().stream_sync(stream)
        except DeviceLost:
            raise
        except HaianError as error:
            kept[stream] = error
        if stream in kept:
            raise kept[stream]


class ErrorNever(SimDriver):
    """a stream's failure is never raised"""

    def stream_sync(self, stream: int) -> None:
        try:
            super().stream_sync(stream)
        except DeviceLost:
            raise
        except HaianError:
            pass


class ErrorNotByQuery(SimDriver):
    """stream_query answers without looking for a failure"""

    def stream_query(self, stream: int) -> bool:
        return self._stream(stream).idle


class ErrorElsewhere(CpuDriver):
    """a failure is raised by whatever stream is waited for first"""

    def stream_sync(self, stream: int) -> None:
        super().stream_sync(stream)
        for other in self._streams_of(0):
            error = other.take_error()
            if error is not None:
                raise error


class ErrorKillsStream(SimDriver):
    """after a failure the stream takes no more work"""

    def stream_sync(self, stream: int) -> None:
        try:
            super().stream_sync(stream)
        except DeviceLost:
            raise
        except HaianError:
            self._stream(stream)._dropped = True
            raise


class ResetKeepsHandles(SimDriver):
    """handles outlive a reset"""

    def _drop(self, device: int, wait: bool) -> None:
        pass


class ResetBreaks(CpuDriver):
    """after a reset the device gives no memory"""

    _broken = False

    def reset(self, device: int) -> None:
        super().reset(device)
        self._broken = True

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        if self._broken:
            raise OutOfMemory("cpu: the pool is gone")
        return super().alloc(device, nbytes, align)


class LossForgotten(SimDriver):
    """a lost device says so once"""

    def _check(self, device: int) -> None:
        try:
            super()._check(device)
        except DeviceLost:
            self._devices[device].lost = False
            raise

    def sync(self, device: int) -> None:
        self._check(device)
        super().sync(device)


class LossSleeps(SimDriver):
    """calls that wait do not notice that their device is lost"""

    def lose_device(self, device: int) -> None:
        self._ordinal(device).lost = True


class LossSpreads(SimDriver):
    """all devices are lost with one"""

    def lose_device(self, device: int) -> None:
        for d in range(self.device_count()):
            super().lose_device(d)


class LossStays(SimDriver):
    """reset of a lost device says that it worked and did nothing"""

    def reset(self, device: int) -> None:
        if not self._ordinal(device).lost:
            super().reset(device)


# ---- threads ------------------------------------------------------------------------------------------------------------------
class TasksLost(SimDriver):
    """of two threads that queue at once, one loses its task"""

    _inside = 0

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        if self._inside and threading.get_ident() != self._inside:
            return
        self._inside = threading.get_ident()
        time.sleep(0.0001)
        super().host_func(stream, fn)
        self._inside = 0


class TasksTwice(CpuDriver):
    """a task queued while another thread queues runs twice"""

    _inside = 0

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        if self._inside and threading.get_ident() != self._inside:
            super().host_func(stream, fn)
        self._inside = threading.get_ident()
        time.sleep(0.0001)
        super().host_func(stream, fn)
        self._inside = 0


class _Racy(Handles):
    """Takes slots without its lock."""

    def add(self, thing: object) -> int:
        slot = len(self._slots)
        time.sleep(0.0002)
        if slot < len(self._slots):
            self._slots[slot] = (1, thing)
        else:
            self._slots.append((1, thing))
        return 1 << 32 | slot


class HandleRace(SimDriver):
    """two threads that create at once may get one handle"""

    def _begin(self) -> None:
        super()._begin()
        self._handles = _Racy(self.name)


class WakesOne(SimDriver):
    """of two threads that wait for one event, one wakes"""

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        waiting = self.__dict__.setdefault("_waiting", set())
        if event in waiting:
            time.sleep(_HANG_S)
        waiting.add(event)
        try:
            super().event_sync(event, timeout_ns)
        finally:
            waiting.discard(event)


class SyncHoldsGil(SimDriver):
    """stream_sync keeps Python's lock while it waits, in slices of 110 ms"""

    apart = True  # it stops other mutants too

    def stream_sync(self, stream: int) -> None:
        while not self._stream(stream).idle:
            ctypes.PyDLL(None).usleep(110_000)
        super().stream_sync(stream)


# (mutant, the check meant to refuse it)
ROWS: tuple[tuple[type[Driver], int], ...] = (
    (FourStreams, 37), (HandlesComeAgain, 38), (DestroyedStillWorks, 38), (FillsOvertake, 39), (CopiesWaitInside, 40), (CopiesAtOnce, 40),
    (ReadyWhileLastRuns, 41), (OneQueue, 42), (DestroyDrops, 43), (DestroyReturnsEarly, 43), (SyncsNewest, 44), (SyncsOldest, 44),
    (SaysBlocking, 45), (BlocksUnsaid, 45), (HostFuncTwice, 46), (HostFuncLocked, 46), (HostFuncApart, 46), (HostFuncAtOnce, 46),
    (HundredStreams, 47), (ThousandHandlesFold, 47), (AnyDevicesStream, 48), (WaitsForNothing, 49), (WaitsForLatest, 50), (WaitsForNewest, 50),
    (WaitsForFirstRecord, 50), (UnrecordedIsBusy, 51), (UnrecordedHasTime, 51), (ReadyInOrder, 52), (ReadyOnceRecorded, 52),
    (TimeoutIgnored, 53), (TimeoutIsSuccess, 53), (TimeoutAtOnce, 53), (Microseconds, 54), (Unsigned, 54), (Absolute, 54), (Processor, 54),
    (TimesWithoutFlag, 54), (DestroyFiresEvent, 55), (DestroyWaitsForever, 55), (CrossUnclaimed, 56), (CrossIgnored, 56), (RecordsRunOut, 57),
    (OldRecordStays, 57), (ErrorTwice, 58), (ErrorNever, 58), (ErrorNotByQuery, 58), (ErrorElsewhere, 58), (ErrorKillsStream, 58),
    (ResetKeepsHandles, 59), (ResetBreaks, 59), (LossForgotten, 60), (LossSleeps, 60), (LossSpreads, 60), (LossStays, 60), (TasksLost, 62),
    (TasksTwice, 62), (HandleRace, 63), (WakesOne, 64), (SyncHoldsGil, 65),
)  # fmt: skip
