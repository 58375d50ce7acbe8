"""Wrong drivers: loading, devices, memory, copies and fills.  Each is a right driver with one mistake; hal_mutants.py runs them."""
from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
import weakref
from dataclasses import replace
from typing import Any

from ..hal.driver import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, PEER, Capabilities, Copy, Driver, PointerInfo
from ..hal.errors import ArgumentError, HaianError, InvalidHandle, OutOfMemory, OutOfRange
from ..hal.validate import Validated
from .hal_bases import CpuDriver, SimDriver

__all__ = ["RIGHT", "ROWS"]

# ---- loading ------------------------------------------------------------------------------------------------------------------


class NoVersion(CpuDriver):
    """the version is empty"""

    version = ""


class HalfAGraph(SimDriver):
    """a group is there but for one function"""

    graph_instantiate = Driver.graph_instantiate


class LeaksThreads(CpuDriver):
    """every init starts a thread that fini does not end"""

    apart = True  # other mutants start threads too

    def init(self) -> None:
        super().init()
        threading.Thread(target=threading.Event().wait, args=(20,), daemon=True).start()


class LeaksFiles(SimDriver):
    """every init opens a file that fini does not close"""

    apart = True  # other mutants open files too

    def init(self) -> None:
        super().init()
        self.__dict__.setdefault("_files", []).append(os.open(os.devnull, os.O_RDONLY))


class OpensAtLoad(CpuDriver):
    """making the driver object opens the device"""

    def __init__(self) -> None:
        super().__init__()
        self._file = os.open("/dev/full", os.O_WRONLY) if os.path.exists("/dev/full") else -1


class DiesInForks(CpuDriver):
    """the child of a fork crashes in the runtime"""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def device_count(self) -> int:
        if os.getpid() != self.__dict__.get("_pid", os.getpid()):
            os._exit(70)
        return super().device_count()


# ---- devices ------------------------------------------------------------------------------------------------------------------
class PropsDrift(SimDriver):
    """properties differ from call to call"""

    _calls = 0

    def props(self, device: int) -> Capabilities:
        self._calls += 1
        return replace(super().props(device), driver_version=f"1.{self._calls}")


class OneUuid(SimDriver):
    """all devices have one uuid"""

    def props(self, device: int) -> Capabilities:
        return replace(super().props(device), uuid="SIM-0")


class CountGrows(SimDriver):
    """device_count counts the contexts made so far"""

    _asked = 0

    def device_count(self) -> int:
        self._asked += 1
        return super().device_count() + (self._asked > 4)


class AllocAboveTotal(SimDriver):
    """max_alloc_bytes exceeds total_bytes"""

    def props(self, device: int) -> Capabilities:
        p = super().props(device)
        return replace(p, max_alloc_bytes=2 * p.total_bytes)


class MathWithoutLoad(CpuDriver):
    """computes in a dtype that it cannot load"""

    def props(self, device: int) -> Capabilities:
        p = super().props(device)
        return replace(p, dtypes_load=tuple(d for d in p.dtypes_load if d != "float16"))


class DeviceIgnored(SimDriver):
    """mem_info takes any device number for a good one"""

    def mem_info(self, device: int) -> tuple[int, int]:
        return super().mem_info(device % 2)


class DeviceFromTheEnd(SimDriver):
    """device -1 is the last one"""

    def stream_create(self, device: int) -> int:
        return super().stream_create(device + 2 if device < 0 else device)


# ---- memory -------------------------------------------------------------------------------------------------------------------
class ZeroBytes(SimDriver):
    """alloc of zero bytes succeeds"""

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        return super().alloc(device, nbytes or 1, align)


class AlignIgnored(SimDriver):
    """the alignment asked for is ignored"""

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        return super().alloc(device, nbytes)


class RoundsDown(SimDriver):
    """allocations are rounded down to 64 bytes"""

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        return super().alloc(device, nbytes // 64 * 64 or nbytes, align)


class WrapsAt63(SimDriver):
    """sizes lose their top bit"""

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        return super().alloc(device, nbytes & (1 << 63) - 1 or int(nbytes > 0), align)


class WrapsAt32(SimDriver):
    """sizes are computed in 32 bits"""

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        return super().alloc(device, nbytes & 0xFFFFFFFF or int(nbytes > 0), align)


class TooLargeIsArgument(SimDriver):
    """more than max_alloc_bytes is an ArgumentError"""

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        if nbytes > self.props(device).max_alloc_bytes:
            raise ArgumentError(f"sim: {nbytes} bytes are too many")
        return super().alloc(device, nbytes, align)


class LeakOnOom(SimDriver):
    """an allocation that fails is counted all the same"""

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        try:
            return super().alloc(device, nbytes, align)
        except OutOfMemory:
            self._devices[device].heap.used_bytes += 64
            raise


class Overlaps(SimDriver):
    """now and then two allocations share their bytes"""

    _last, _calls = 0, 0

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        self._calls += 1
        if self._calls % 50 == 0 and self._last:
            return self._last
        found = super().alloc(device, nbytes, align)
        self._last = found if nbytes > 256 else self._last
        return found

    def free(self, device: int, address: int) -> None:
        if address == self._last:
            self._last = 0
        try:
            super().free(device, address)
        except InvalidHandle:
            pass  # freed through its twin


class FreesTooEarly(SimDriver):
    """free does not look at queued work"""

    def free(self, device: int, address: int) -> None:
        self._device(device).heap.free(address)


class FreeDoesNothing(SimDriver):
    """free does nothing"""

    def free(self, device: int, address: int) -> None:
        self._device(device)


class FreeKeepsABit(SimDriver):
    """free gives back a little less than alloc took"""

    def free(self, device: int, address: int) -> None:
        super().free(device, address)
        self._devices[device].heap.used_bytes += 1


class NeverCoalesces(SimDriver):
    """freed bytes serve only later allocations of their own size"""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._sizes: dict[int, int] = {}
        self._spare: dict[int, int] = {}
        self._carved = 0

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        carve = not self._spare.get(nbytes)
        if carve and self._carved + nbytes > self.props(device).total_bytes:
            raise OutOfMemory(f"sim: no hole of {nbytes} bytes left")
        found = super().alloc(device, nbytes, align)
        self._sizes[found] = nbytes
        if carve:
            self._carved += nbytes
        else:
            self._spare[nbytes] -= 1
        return found

    def free(self, device: int, address: int) -> None:
        super().free(device, address)
        n = self._sizes.pop(address)
        self._spare[n] = self._spare.get(n, 0) + 1


class RegistersTwice(SimDriver):
    """host memory can be registered twice"""

    def host_register(self, device: int, address: int, nbytes: int) -> None:
        try:
            super().host_register(device, address, nbytes)
        except ArgumentError:
            if nbytes <= 0:
                raise


class UnregistersAnything(CpuDriver):
    """host_unregister takes addresses never registered"""

    def host_unregister(self, device: int, address: int) -> None:
        try:
            super().host_unregister(device, address)
        except InvalidHandle:
            pass


class EndIsInside(SimDriver):
    """the address one past the end belongs to the allocation"""

    def ptr_info(self, device: int, address: int) -> PointerInfo:
        found = super().ptr_info(device, address)
        return found if found.kind != "unknown" else super().ptr_info(device, address - 1)


class BaseIsTheAddress(SimDriver):
    """ptr_info gives the address asked for as the base"""

    def ptr_info(self, device: int, address: int) -> PointerInfo:
        found = super().ptr_info(device, address)
        return found if found.kind == "unknown" else replace(found, base=address)


class FreeIsTotal(SimDriver):
    """mem_info says that everything is free"""

    def mem_info(self, device: int) -> tuple[int, int]:
        total = super().mem_info(device)[1]
        return total, total


class FreeStandsStill(SimDriver):
    """mem_info says that nine tenths are free, whatever is in use"""

    def mem_info(self, device: int) -> tuple[int, int]:
        total = super().mem_info(device)[1]
        return total // 10 * 9, total


class HostFreeStandsStill(CpuDriver):
    """mem_info of the host is asked of the system once"""

    def mem_info(self, device: int) -> tuple[int, int]:
        if "_said" not in self.__dict__:
            self._said = super().mem_info(device)
        super().mem_info(device)
        return self._said


class AllocGivesZero(SimDriver):
    """alloc succeeds and gives address 0"""

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        super().free(device, super().alloc(device, nbytes, align))
        return 0

    def free(self, device: int, address: int) -> None:
        if address:
            super().free(device, address)


class AllocRace(SimDriver):
    """two threads that allocate at once may get one block"""

    apart = True  # one thread frees what the other is writing to
    _slot = 0

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        self._slot = super().alloc(device, nbytes, align)
        time.sleep(0.0003)
        return self._slot


# ---- the validation layer -------------------------------------------------------------------------------------------------------
class DoubleFreePasses(Validated):
    """the validation layer lets a double free through"""

    def free(self, device: int, address: int) -> None:
        try:
            super().free(device, address)
        except InvalidHandle:
            if not self._grave(device, address):
                raise


class FreesInside(Validated):
    """the validation layer frees the allocation around an address"""

    def free(self, device: int, address: int) -> None:
        found = self._memory[device].at(address) if 0 <= device < 2 else None
        super().free(device, found.base if found else address)


class BoundsOffByOne(Validated):
    """the validation layer's bounds are one byte too wide"""

    def _bounds(self, device: int, address: int, nbytes: int, what: str) -> None:
        super()._bounds(device, address, max(nbytes - 1, 1), what)

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        try:
            super().copy(device, desc, stream)
        except OutOfRange as error:
            if not str(error).startswith("sim: h2d") and not str(error).startswith("sim: d2"):
                raise


class EndIsLive(Validated):
    """the validation layer lets accesses that begin one past the end through"""

    def _bounds(self, device: int, address: int, nbytes: int, what: str) -> None:
        try:
            super()._bounds(device, address, nbytes, what)
        except InvalidHandle:
            if self._memory[device].at(address - 1) is None:
                raise

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        try:
            super().copy(device, desc, stream)
        except OutOfRange as error:
            if not str(error).startswith("sim: h2d") and not str(error).startswith("sim: d2"):
                raise


class StaleStreams(Validated):
    """the validation layer forgets that a stream was destroyed"""

    def _known(self, kind: str, handle: int) -> Any:
        try:
            return super()._known(kind, handle)
        except InvalidHandle:
            if kind != "stream":
                raise
            return next(h for (k, _), h in self._handles.items() if k == "event" or k != "kernel") if self._handles else self._Any()

    class _Any:
        device = 0

    def stream_sync(self, stream: int) -> None:
        self._known("stream", stream)
        try:
            super().stream_sync(stream)
        except InvalidHandle:
            pass


class OddAlignments(Validated):
    """alignments that are no power of two are rounded up"""

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        return super().alloc(device, nbytes, 1 << (align - 1).bit_length() if align > 0 else align)


# ---- copies and fills -----------------------------------------------------------------------------------------------------------
class CopiesNothingLarge(SimDriver):
    """copies of more than 8 MiB take their time and do nothing"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        if desc.nbytes <= 8 << 20:
            super().copy(device, desc, stream)
        else:
            time.sleep(0.015)


class MovesNothingLarge(SimDriver):
    """copies on the device of more than 1 MiB do nothing"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        if desc.kind != DEVICE_TO_DEVICE or desc.nbytes <= 1 << 20:
            super().copy(device, desc, stream)


class StopsAt32Mib(CpuDriver):
    """copies to the host bring the first 32 MiB"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        super().copy(device, desc._replace(nbytes=min(desc.nbytes, 32 << 20)) if desc.kind == DEVICE_TO_HOST and desc.rows == 1 else desc, stream)


class CopiesWords(SimDriver):
    """copies whole words only"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        super().copy(device, desc._replace(nbytes=desc.nbytes // 4 * 4), stream)


class CopiesWordsUp(SimDriver):
    """rounds copies to the device up to whole words"""

    def _copy(self, heap: Any, target: Any, desc: Copy) -> None:
        super()._copy(heap, target, desc)
        if desc.kind == DEVICE_TO_DEVICE and desc.rows == 1 and desc.nbytes % 4:
            try:
                target.fill(desc.dst + desc.nbytes, b"\0", 4 - desc.nbytes % 4)
            except OutOfRange:
                pass  # nothing behind it


class AlignsAddresses(SimDriver):
    """rounds addresses of copies down to a word"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        super().copy(device, desc._replace(dst=desc.dst & ~3) if desc.kind == HOST_TO_DEVICE else desc, stream)


class FillsWords(CpuDriver):
    """rounds fills up to whole words"""

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        super().fill(device, address, pattern, -(-nbytes // 4) * 4, stream)


class NoZeroCopies(SimDriver):
    """a copy of zero bytes is an error"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        if not desc.nbytes:
            raise ArgumentError("sim: a copy of 0 bytes")
        super().copy(device, desc, stream)


class CopiesForwards(SimDriver):
    """copies on the device run forwards, also where ranges overlap"""

    def _copy(self, heap: Any, target: Any, desc: Copy) -> None:
        if desc.kind != DEVICE_TO_DEVICE or desc.rows != 1 or not desc.src < desc.dst < desc.src + desc.nbytes:
            return super()._copy(heap, target, desc)
        step = desc.dst - desc.src  # pieces of this length show what a loop over bytes does
        for at in range(0, desc.nbytes, step):
            super()._copy(heap, target, desc._replace(dst=desc.dst + at, src=desc.src + at, nbytes=min(step, desc.nbytes - at)))
        return None


class ClobbersGaps(SimDriver):
    """copies of rows write the gap between them too"""

    def _copy(self, heap: Any, target: Any, desc: Copy) -> None:
        super()._copy(heap, target, desc)
        if desc.rows > 1 and desc.kind == DEVICE_TO_DEVICE and desc.dst_pitch > desc.nbytes:
            for row in range(desc.rows - 1):
                target.fill(desc.dst + row * desc.dst_pitch + desc.nbytes, b"\0", desc.dst_pitch - desc.nbytes)


class SourcePitchIgnored(SimDriver):
    """takes the rows of a source to be packed"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        super().copy(device, desc._replace(src_pitch=desc.nbytes) if desc.rows > 1 else desc, stream)


class FillsBytes(SimDriver):
    """fill takes the first byte of the pattern for all of it"""

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        super().fill(device, address, pattern[:1] * len(pattern), nbytes, stream)


class FillsBackwards(CpuDriver):
    """fill writes its pattern in the other byte order"""

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        super().fill(device, address, pattern[::-1], nbytes, stream)


class FillsTooShort(SimDriver):
    """fill forgets the last pattern of a long range"""

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        super().fill(device, address, pattern, nbytes - len(pattern) if nbytes > 4096 else nbytes, stream)


class FillsNothingLarge(SimDriver):
    """fills of more than 8 MiB do nothing"""

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        if nbytes <= 8 << 20:
            super().fill(device, address, pattern, nbytes, stream)


class PeersNothingLarge(SimDriver):
    """peer copies of more than 8 MiB do nothing"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        if desc.kind != PEER or desc.nbytes <= 8 << 20:
            super().copy(device, desc, stream)


class PeerStaysHere(SimDriver):
    """a peer copy copies within its own device"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        if desc.kind == PEER and desc.dst_device != device:
            return  # the address is not this device's: nothing is seen of the copy
        super().copy(device, desc, stream)


class StagesPeers(SimDriver):
    """without the peer capability, peer copies are staged through the host without a word"""

    def props(self, device: int) -> Capabilities:
        return replace(super().props(device), peer=False)


class ReadsLate(SimDriver):
    """a synchronous copy reads the host's bytes after it has returned"""

    apart = True  # they may be gone

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._late: list[threading.Thread] = []

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        for worker in self._late:
            worker.join()
        self._late.clear()
        if stream or desc.kind != HOST_TO_DEVICE:
            return super().copy(device, desc, stream)
        worker = threading.Timer(0.002, super().copy, (device, desc, stream))
        worker.daemon = True
        worker.start()
        self._late.append(worker)
        return None


class ReadsTailLate(SimDriver):
    """of a large synchronous copy, the last page is read after it has returned"""

    apart = True  # it may be gone

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        tail = 4096
        if stream or desc.kind != HOST_TO_DEVICE or desc.rows != 1 or desc.nbytes <= 2 * tail:
            return super().copy(device, desc, stream)
        super().copy(device, desc._replace(nbytes=desc.nbytes - tail))
        late = desc._replace(dst=desc.dst + desc.nbytes - tail, src=desc.src + desc.nbytes - tail, nbytes=tail)
        worker = threading.Timer(0.002, self._quietly, (device, late))
        worker.daemon = True
        worker.start()
        self._tail = worker
        return None

    def _quietly(self, device: int, desc: Copy) -> None:
        try:
            super().copy(device, desc)
        except HaianError:
            pass  # freed meanwhile


class CopyHoldsGil(SimDriver):
    """copies keep Python's lock"""

    apart = True  # they stop other mutants too

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        if stream or desc.kind != HOST_TO_DEVICE or desc.nbytes < 1 << 20:
            return super().copy(device, desc, stream)
        to = self._devices[device].heap.host_pointer(desc.dst, desc.nbytes, "copy")
        ctypes.PyDLL(None).memmove(ctypes.c_void_p(to), ctypes.c_void_p(desc.src), ctypes.c_size_t(desc.nbytes))
        return None


class ReadsBack(CpuDriver):
    """copies to the host bring the bytes in the reverse order where they are few"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        super().copy(device, desc, stream)
        if desc.kind == DEVICE_TO_HOST and desc.nbytes == 3 and stream == 0:
            ctypes.memmove(desc.dst, ctypes.string_at(desc.dst, 3)[::-1], 3)


# ---- right, but unusual: no check may refuse them -----------------------------------------------------------------------------------
def _first_fit(heap: Any, nbytes: int, align: int) -> int:
    align, start = max(align, heap.align_bytes), heap.first
    for base, end in sorted((b.start, b.end) for b in heap._blocks.values() if b.kind in ("device", "opened")):
        if -(-start // align) * align + nbytes <= base:
            break
        start = max(start, end)
    return -(-start // align) * align


class Adjacent(SimDriver):
    """blocks lie side by side, the first hole that fits is taken"""

    def _device(self, device: int) -> Any:
        found = super()._device(device)
        heap = found.heap
        if not hasattr(heap, "first"):
            heap.first = heap._next
            heap._room = functools.partial(_first_fit, weakref.proxy(heap))  # a cycle would keep its memory file open
        return found


RIGHT: tuple[type[Driver], ...] = (Adjacent,)

# (mutant, the check meant to refuse it)
ROWS: tuple[tuple[type[Driver], int], ...] = (
    (NoVersion, 1), (HalfAGraph, 5), (LeaksThreads, 6), (LeaksFiles, 6), (OpensAtLoad, 7), (DiesInForks, 9), (PropsDrift, 10), (OneUuid, 10),
    (CountGrows, 10), (AllocAboveTotal, 11), (MathWithoutLoad, 11), (DeviceIgnored, 12), (DeviceFromTheEnd, 12), (ZeroBytes, 14), (AlignIgnored, 15),
    (RoundsDown, 16), (WrapsAt63, 17), (WrapsAt32, 17), (TooLargeIsArgument, 17), (LeakOnOom, 18), (Overlaps, 21), (FreesTooEarly, 22),
    (FreeDoesNothing, 23), (FreeKeepsABit, 23), (NeverCoalesces, 24), (RegistersTwice, 25), (UnregistersAnything, 25), (EndIsInside, 26),
    (BaseIsTheAddress, 26), (AllocRace, 61), (DoubleFreePasses, 19), (FreesInside, 20), (BoundsOffByOne, 31), (StaleStreams, 38),
    (OddAlignments, 15), (CopiesWords, 27), (ReadsBack, 27), (CopiesWordsUp, 28), (AlignsAddresses, 28), (FillsWords, 28), (NoZeroCopies, 29),
    (CopiesForwards, 30), (ClobbersGaps, 32), (SourcePitchIgnored, 32), (FillsBytes, 33), (FillsBackwards, 33), (FillsTooShort, 33),
    (PeerStaysHere, 34), (StagesPeers, 34), (ReadsLate, 35), (ReadsTailLate, 35), (CopyHoldsGil, 65), (CopiesNothingLarge, 27),
    (MovesNothingLarge, 27), (StopsAt32Mib, 27), (FillsNothingLarge, 33), (PeersNothingLarge, 34), (FreeIsTotal, 18), (FreeStandsStill, 18),
    (HostFreeStandsStill, 18), (AllocGivesZero, 16), (EndIsLive, 31),
)  # fmt: skip
