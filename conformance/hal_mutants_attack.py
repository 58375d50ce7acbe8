"""Wrong drivers: sizes, pitches and streams of copies and fills, early ends, memory's counts, claims, stream 0 and many threads.

Each is a right driver with one mistake that only shows beyond the simplest call; hal_mutants.py runs them.
"""
from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..hal import host_memory
from ..hal.driver import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, PEER, Capabilities, Copy, Launch, PointerInfo
from ..hal.dtype import BY_NAME
from ..hal.errors import InternalError, OutOfMemory
from ..hal.host_queues import WORK, Event, Mark, Work
from .hal_bases import SimDriver
from .hal_mutants_core import CopyHoldsGil

__all__ = ["ROWS"]

_LARGE = 66_000  # bytes: just above the sizes that small copies and fills are tried with


# ---- copies -------------------------------------------------------------------------------------------------------------------
class _Copies(SimDriver):
    """``changed`` gives the copy that is done instead."""

    def changed(self, desc: Copy, stream: int) -> Copy:
        return desc

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        super().copy(device, self.changed(desc, stream), stream)


class TailOfLargeH2D(_Copies):
    """copies to the device of more than 1 MiB lose their last byte"""

    def changed(self, desc: Copy, stream: int) -> Copy:
        return desc._replace(nbytes=desc.nbytes - 1) if desc.kind == HOST_TO_DEVICE and desc.nbytes > 1 << 20 else desc


class TailOfLargeD2D(_Copies):
    """copies on the device of more than 64 KiB lose their last 64 bytes"""

    def changed(self, desc: Copy, stream: int) -> Copy:
        large = desc.kind == DEVICE_TO_DEVICE and desc.rows == 1 and desc.nbytes > _LARGE
        return desc._replace(nbytes=desc.nbytes - 64) if large else desc


class TailOfLargeD2H(_Copies):
    """copies to the host of more than 1 MiB lose their last page"""

    def changed(self, desc: Copy, stream: int) -> Copy:
        return desc._replace(nbytes=desc.nbytes - 4096) if desc.kind == DEVICE_TO_HOST and desc.nbytes > 1 << 20 else desc


class PitchOnStreams(_Copies):
    """on a stream, the pitches of source and destination are swapped"""

    def changed(self, desc: Copy, stream: int) -> Copy:
        return desc._replace(dst_pitch=desc.src_pitch, src_pitch=desc.dst_pitch) if stream and desc.rows > 1 else desc


class RowsOnStreams(_Copies):
    """on a stream, the first row of a copy moves only"""

    def changed(self, desc: Copy, stream: int) -> Copy:
        return desc._replace(rows=min(desc.rows, 1)) if stream else desc


class ManyRows(_Copies):
    """a copy moves 32 rows at most"""

    def changed(self, desc: Copy, stream: int) -> Copy:
        return desc._replace(rows=min(desc.rows, 32))


class PeerRows(_Copies):
    """copies to another device move the first row only"""

    def changed(self, desc: Copy, stream: int) -> Copy:
        return desc._replace(rows=min(desc.rows, 1)) if desc.kind == PEER else desc


class PeerTail(_Copies):
    """copies to another device end after 64 KiB"""

    def changed(self, desc: Copy, stream: int) -> Copy:
        return desc._replace(nbytes=min(desc.nbytes, 65536)) if desc.kind == PEER else desc


class PeerNow(SimDriver):
    """copies to another device happen as they are queued"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        super().copy(device, desc, 0 if desc.kind == PEER else stream)


class PeerNeighbour(SimDriver):
    """copies to the third device do nothing"""

    devices = 3

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        if desc.kind != PEER or desc.dst_device in (0, 1, device):
            super().copy(device, desc, stream)


class OverlapOnStream(SimDriver):
    """on a stream, overlapping copies run forwards"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        step = desc.dst - desc.src
        if not stream or desc.kind != DEVICE_TO_DEVICE or desc.rows != 1 or not 0 < step < desc.nbytes:
            super().copy(device, desc, stream)
            return
        for at in range(0, desc.nbytes, step):
            super().copy(device, Copy(desc.kind, desc.dst + at, desc.src + at, min(step, desc.nbytes - at)), stream)


class RowsEarly(SimDriver):
    """copies of rows to the host happen as they are queued"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        super().copy(device, desc, 0 if desc.kind == DEVICE_TO_HOST and desc.rows > 1 else stream)


class PinnedReadEarly(SimDriver):
    """a copy from pinned memory reads it as it is queued"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        if stream and desc.kind == HOST_TO_DEVICE and desc.rows == 1:
            kept = ctypes.create_string_buffer(ctypes.string_at(desc.src, desc.nbytes), max(desc.nbytes, 1))
            self.__dict__.setdefault("_kept", []).append(kept)
            desc = desc._replace(src=ctypes.addressof(kept))
        super().copy(device, desc, stream)


class Pitch32(_Copies):
    """pitches of the destination have 32 bits"""

    total_bytes = 8 << 30

    def changed(self, desc: Copy, stream: int) -> Copy:
        return desc._replace(dst_pitch=desc.dst_pitch & 0xFFFFFFFF)


# ---- fills --------------------------------------------------------------------------------------------------------------------
class _Fills(SimDriver):
    """``changed`` gives the (pattern, bytes) that are filled instead."""

    def changed(self, device: int, pattern: bytes, nbytes: int, stream: int) -> tuple[bytes, int]:
        return pattern, nbytes

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        super().fill(device, address, *self.changed(device, pattern, nbytes, stream), stream)


class FillWidthOnStream(_Fills):
    """on a stream, a fill writes the first byte of its pattern"""

    def changed(self, device: int, pattern: bytes, nbytes: int, stream: int) -> tuple[bytes, int]:
        return pattern[:1] if stream else pattern, nbytes


class FillTailLarge(_Fills):
    """fills end after 66,000 bytes"""

    def changed(self, device: int, pattern: bytes, nbytes: int, stream: int) -> tuple[bytes, int]:
        return pattern, min(nbytes, _LARGE)


class FillsHalfElsewhere(_Fills):
    """fills of the second device write half"""

    def changed(self, device: int, pattern: bytes, nbytes: int, stream: int) -> tuple[bytes, int]:
        return pattern, nbytes // 8 * 4 if device and nbytes >= 8 else nbytes


class WidePatternsNow(SimDriver):
    """fills of 2 and 4 byte patterns happen as they are queued"""

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        super().fill(device, address, pattern, nbytes, stream if len(pattern) == 1 else 0)


class Fill32(SimDriver):
    """offsets of fills have 32 bits"""

    total_bytes = 8 << 30

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        found = self.ptr_info(device, address)
        super().fill(device, found.base + (address - found.base & 0xFFFFFFFF) if found.base else address, pattern, nbytes, stream)


# ---- early ends ---------------------------------------------------------------------------------------------------------------
class _Late(SimDriver):
    """Copies on a stream that ``late`` picks count as done, and end ``delay_s`` later."""

    delay_s = 0.02

    def late(self, desc: Copy) -> bool:
        return False

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        if not stream or not self.late(desc):
            super().copy(device, desc, stream)
            return
        heap, target = self._devices[device].heap, self._devices[desc.dst_device if desc.kind == PEER else device].heap

        def run() -> None:
            threading.Timer(self.delay_s, lambda: self._copy(heap, target, desc)).start()

        self._do(device, stream, Work(WORK, run, "copy", desc.kind, desc.nbytes))


class LargeEndLate(_Late):
    """copies of 64 KiB and more count as done 20 ms before they are"""

    apart = True  # the copy ends after its check and its memory

    def late(self, desc: Copy) -> bool:
        return desc.nbytes >= 65536


class EventEarlyByCopy(_Late):
    """an event does not wait for a large copy on the device in front of it"""

    apart = True  # as above
    delay_s = 0.05

    def late(self, desc: Copy) -> bool:
        return desc.kind == DEVICE_TO_DEVICE and desc.nbytes > 1 << 20


class LaunchNow(SimDriver):
    """launches happen as they are queued"""

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        if stream:
            self._stream(stream, device)
        super().launch(device, desc, 0)


class _LateLaunch:
    def _do(self, device: int, stream: int, work: Work) -> None:
        if stream and work.what == "launch":
            run = work.run
            work = Work(work.kind, lambda: threading.Timer(0.01, run).start(), "launch", work.name)
        super()._do(device, stream, work)  # type: ignore[misc]


class LaunchEndsLate(_LateLaunch, SimDriver):
    """launches count as done 10 ms before they are"""

    apart = True  # a kernel runs after its check and its memory


class SyncSkipsDevice1(SimDriver):
    """sync of the second device waits for nothing"""

    def sync(self, device: int) -> None:
        if device == 1:
            self._device(device)
        else:
            super().sync(device)


class SyncsFive(SimDriver):
    """sync of the device waits for its first stream and its last four"""

    def sync(self, device: int) -> None:
        found = self._device(device)
        streams = sorted(self._streams_of(device), key=lambda s: s.handle)
        for stream in streams[:1] + streams[-4:]:
            stream.wait(lambda: found.lost)
        self._device(device)


class SyncSkipsRecorded(SimDriver):
    """sync of the device does not wait for streams with a recorded event"""

    def event_record(self, event: int, stream: int) -> None:
        super().event_record(event, stream)
        self.__dict__.setdefault("_recorded", set()).add(stream)

    def sync(self, device: int) -> None:
        found = self._device(device)
        for stream in self._streams_of(device):
            if stream.handle not in self.__dict__.get("_recorded", ()):
                stream.wait(lambda: found.lost)


# ---- memory -------------------------------------------------------------------------------------------------------------------
class InfoStale(SimDriver):
    """mem_info says what it was at its first call"""

    def mem_info(self, device: int) -> tuple[int, int]:
        return self.__dict__.setdefault("_seen", {}).setdefault(device, super().mem_info(device))


class InfoTotalWrong(SimDriver):
    """mem_info gives twice the device's total"""

    def mem_info(self, device: int) -> tuple[int, int]:
        free, total = super().mem_info(device)
        return free + total, 2 * total


class InfoNothing(SimDriver):
    """mem_info says 0 of 0 bytes"""

    def mem_info(self, device: int) -> tuple[int, int]:
        self._check(device)
        return 0, 0


class ResetKeepsMemory(SimDriver):
    """reset gives no memory back"""

    def reset(self, device: int) -> None:
        used = self._ordinal(device).heap.used_bytes
        super().reset(device)
        self._devices[device].heap.used_bytes = used


class ResetAll(SimDriver):
    """reset of one device resets all"""

    def reset(self, device: int) -> None:
        self._ordinal(device)
        for one in range(self.device_count()):
            super().reset(one)


class TrimLies(SimDriver):
    """pool_trim gives -1"""

    def pool_trim(self, device: int, keep_bytes: int = 0) -> int:
        super().pool_trim(device, keep_bytes)
        return -1


class TrimClobbers(SimDriver):
    """pool_trim clears the first bytes of what is alive"""

    def pool_trim(self, device: int, keep_bytes: int = 0) -> int:
        released = super().pool_trim(device, keep_bytes)
        for block in list(self._devices[device].heap._blocks.values()):
            host_memory.fill(block.pages.address, b"\0", min(16, block.end - block.start))
        return released


class InfoOfDevice0(SimDriver):
    """ptr_info says device 0 of any address"""

    def ptr_info(self, device: int, address: int) -> PointerInfo:
        return replace(super().ptr_info(device, address), device=0)


class ManagedNotForKernels(SimDriver):
    """kernels cannot use managed memory"""

    def host_alloc(self, device: int, nbytes: int, managed: bool = False) -> int:
        return super().host_alloc(device, nbytes, False)


# ---- claims -------------------------------------------------------------------------------------------------------------------
class _Claims(SimDriver):
    claims: dict[str, Any] = {}

    def props(self, device: int) -> Capabilities:
        return replace(super().props(device), **self.claims)


class ClaimsHostAccess(_Claims):
    """claims host_access of addresses that the host cannot read"""

    claims = {"host_access": True}


class ClaimsFlushes(_Claims):
    """claims to flush subnormals, and keeps them"""

    claims = {"flushes_subnormals": True, "int64_math": False, "bf16_atomics": False, "reduced_matmul": "tf32"}


class ClaimsEveryDtype(_Claims):
    """claims to compute in every dtype there is"""

    claims = {"dtypes_load": tuple(BY_NAME), "dtypes_math": tuple(BY_NAME)}


class GridReversed(_Claims):
    """max_grid is given as z, y, x"""

    claims = {"max_grid": (65535, 65535, 2**31 - 1)}


class ThreadsAndUnitsSwapped(SimDriver):
    """multiprocessors and max_threads are swapped"""

    def props(self, device: int) -> Capabilities:
        p = super().props(device)
        return replace(p, multiprocessors=p.max_threads, max_threads=p.multiprocessors)


class SharedTooLarge(SimDriver):
    """max_shared_bytes is ten times what a launch takes"""

    def props(self, device: int) -> Capabilities:
        p = super().props(device)
        return replace(p, max_shared_bytes=p.max_shared_bytes * 10)


class UnitExcuses(SimDriver):
    """times are microseconds, and event_unit_ns of 1 s excuses them"""

    def props(self, device: int) -> Capabilities:
        return replace(super().props(device), event_unit_ns=1_000_000_000)

    def event_elapsed_ns(self, start: int, end: int) -> int:
        return int(super().event_elapsed_ns(start, end) / 1000)


class HalfTheTotal(SimDriver):
    """total_bytes is half of what the device has"""

    def props(self, device: int) -> Capabilities:
        p = super().props(device)
        return replace(p, total_bytes=p.total_bytes // 2, max_alloc_bytes=p.max_alloc_bytes // 4)

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        if 0 <= device < 2 and nbytes > self.props(device).max_alloc_bytes:
            raise OutOfMemory(f"sim: {nbytes} bytes are more than max_alloc_bytes")
        return super().alloc(device, nbytes, align)


class LeakHidden(SimDriver):
    """small blocks are never given back, and a claim of host_access hides it"""

    def props(self, device: int) -> Capabilities:
        return replace(super().props(device), host_access=True)

    def mem_info(self, device: int) -> tuple[int, int]:
        return self.__dict__.setdefault("_seen", {}).setdefault(device, super().mem_info(device))

    def free(self, device: int, address: int) -> None:
        heap = self._device(device).heap
        block = heap._blocks.get(address)
        super().free(device, address)
        if block is not None and block.kind == "device" and block.end - block.start <= 65536:
            with heap._lock:
                heap.used_bytes += block.end - block.start


class DevicesFold(SimDriver):
    """device numbers have 32 bits"""

    def sync(self, device: int) -> None:
        super().sync(device & 0xFFFFFFFF if device > 0 else device)


class NamedCpu(SimDriver):
    """another adapter's name"""

    name = "cpu"


# ---- stream 0 and events --------------------------------------------------------------------------------------------------------
class RecordOnZero(SimDriver):
    """a record on stream 0 does nothing"""

    def event_record(self, event: int, stream: int) -> None:
        if stream:
            super().event_record(event, stream)
        else:
            self._handles.get(event, Event)


class WaitOnZero(SimDriver):
    """a wait of stream 0 does nothing"""

    def stream_wait_event(self, stream: int, event: int) -> None:
        if stream:
            super().stream_wait_event(stream, event)
        else:
            self._handles.get(event, Event)


class HostFuncZero(SimDriver):
    """a host function on stream 0 is dropped"""

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        if stream:
            super().host_func(stream, fn)


class OneWaiter(SimDriver):
    """a record holds back the first stream that waits for it, and no other"""

    def stream_wait_event(self, stream: int, event: int) -> None:
        mark = self._handles.get(event, Event).mark
        waited: list[Mark] = self.__dict__.setdefault("_waited", [])
        if mark is None or not any(mark is m for m in waited):
            if mark is not None:
                waited.append(mark)
            super().stream_wait_event(stream, event)


class SyncOfEarlierRecord(SimDriver):
    """event_sync returns when an earlier record of the event is complete"""

    def event_record(self, event: int, stream: int) -> None:
        earlier = self._handles.get(event, Event).mark
        super().event_record(event, stream)
        self.__dict__.setdefault("_earlier", {})[event] = earlier

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        earlier = self.__dict__.get("_earlier", {}).get(event)
        if earlier is None or not earlier.done.is_set():
            super().event_sync(event, timeout_ns)


class ElapsedAcrossIsZero(SimDriver):
    """the time between events of two streams is 0"""

    def event_record(self, event: int, stream: int) -> None:
        super().event_record(event, stream)
        self.__dict__.setdefault("_where", {})[event] = stream

    def event_elapsed_ns(self, start: int, end: int) -> int:
        ns, where = super().event_elapsed_ns(start, end), self.__dict__.get("_where", {})
        return ns if where.get(start) == where.get(end) else 0


class TimeWhenQueued(SimDriver):
    """an event's time is when its record was queued"""

    def event_record(self, event: int, stream: int) -> None:
        self.__dict__.setdefault("_queued", {})[event] = time.monotonic_ns()
        super().event_record(event, stream)

    def event_elapsed_ns(self, start: int, end: int) -> int:
        super().event_elapsed_ns(start, end)
        return self.__dict__["_queued"][end] - self.__dict__["_queued"][start]


class FailureLostByEvent(SimDriver):
    """event_sync swallows the failures of streams"""

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        super().event_sync(event, timeout_ns)
        for stream in list(self._streams):
            stream.take_error()


class LaunchOnForeignStream(SimDriver):
    """a launch is taken on another device's stream"""

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        found = self._stream(stream) if stream else None
        if found is None or found.device == device:
            super().launch(device, desc, stream)
            return
        own, found.device = found.device, device
        try:
            super().launch(device, desc, stream)
        finally:
            found.device = own


class ForeignKernel(SimDriver):
    """a kernel loaded on another device is launched"""

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        function = self._handles.get(desc.kernel, object)
        own = getattr(function, "device", device)
        function.device = device
        try:
            super().launch(device, desc, stream)
        finally:
            function.device = own


# ---- threads --------------------------------------------------------------------------------------------------------------------
class CurrentDevice(SimDriver):
    """one current device for all threads"""

    def _current(self, device: int) -> int:
        self._check(device)
        self.__dict__["_now_on"] = device
        time.sleep(0.0002)
        return self.__dict__["_now_on"]

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        super().fill(device if stream else self._current(device), address, pattern, nbytes, stream)

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        return super().alloc(self._current(device), nbytes, align)


class FillRace(SimDriver):
    """two fills at once share one pattern"""

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        if not stream:
            self.__dict__["_pattern"] = pattern
            time.sleep(0.0005)
            shared = self.__dict__["_pattern"]
            pattern = pattern if nbytes % len(shared) else shared
        super().fill(device, address, pattern, nbytes, stream)


class LaunchRace(SimDriver):
    """two threads that launch at once swap their arguments"""

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        self.__dict__["_args"] = desc.args
        time.sleep(0.0005)
        super().launch(device, desc._replace(args=self.__dict__["_args"]), stream)


class ElapsedRace(SimDriver):
    """two threads that ask for times at once share an event"""

    def event_elapsed_ns(self, start: int, end: int) -> int:
        self.__dict__["_start"] = start
        time.sleep(0.0003)
        return super().event_elapsed_ns(self.__dict__["_start"], end)


class SmallHoldsGil(CopyHoldsGil):
    """a device of 8 MiB, whose copies keep Python's lock"""

    total_bytes = 8 << 20


class EventsRunOut(SimDriver):
    """after 20,000 events there are no more"""

    def event_create(self, device: int, timing: bool = True) -> int:
        self.__dict__["_made"] = self.__dict__.get("_made", 0) + 1
        if self.__dict__["_made"] > 20_000:
            raise InternalError("sim: no event left")
        return super().event_create(device, timing)


# (mutant, the check meant to refuse it)
ROWS: tuple[tuple[type[Any], int], ...] = (
    (TailOfLargeH2D, 27), (TailOfLargeD2D, 27), (TailOfLargeD2H, 27), (PitchOnStreams, 32), (RowsOnStreams, 32), (ManyRows, 32), (PeerRows, 34),
    (PeerTail, 34), (PeerNow, 34), (PeerNeighbour, 34), (OverlapOnStream, 30), (RowsEarly, 40), (PinnedReadEarly, 25), (Pitch32, 36),
    (FillWidthOnStream, 33), (FillTailLarge, 33), (FillsHalfElsewhere, 61), (WidePatternsNow, 40), (Fill32, 36), (LargeEndLate, 39),
    (EventEarlyByCopy, 49), (LaunchNow, 66), (LaunchEndsLate, 66), (SyncSkipsDevice1, 44), (SyncsFive, 44), (SyncSkipsRecorded, 44),
    (InfoStale, 18), (InfoTotalWrong, 18), (InfoNothing, 18), (ResetKeepsMemory, 59), (ResetAll, 59), (TrimLies, 24), (TrimClobbers, 24),
    (InfoOfDevice0, 26), (ManagedNotForKernels, 25), (ClaimsHostAccess, 11), (ClaimsFlushes, 66), (ClaimsEveryDtype, 66), (GridReversed, 66),
    (ThreadsAndUnitsSwapped, 66), (SharedTooLarge, 66), (UnitExcuses, 54), (HalfTheTotal, 18), (LeakHidden, 11), (NamedCpu, 8), (DevicesFold, 12), (RecordOnZero, 54),
    (WaitOnZero, 49), (HostFuncZero, 46), (OneWaiter, 49), (SyncOfEarlierRecord, 53), (ElapsedAcrossIsZero, 54), (TimeWhenQueued, 54),
    (FailureLostByEvent, 58), (LaunchOnForeignStream, 48), (ForeignKernel, 48), (CurrentDevice, 61), (FillRace, 61), (LaunchRace, 66),
    (ElapsedRace, 63), (SmallHoldsGil, 65), (EventsRunOut, 57),
)  # fmt: skip
