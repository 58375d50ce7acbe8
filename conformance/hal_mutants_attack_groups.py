"""Wrong drivers: launches, graphs, sharing, profiles, sensors and communicators beyond the simplest call.

Each is a right driver with one mistake; hal_mutants.py runs them.
"""
from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..hal import host_memory
from ..hal.driver import HOST_TO_DEVICE, Copy, KernelInfo, Launch, ProfileRecord, Telemetry
from ..hal.dtype import BY_NAME
from ..hal.errors import InternalError
from ..hal.host_queues import Executable, Graph, Work
from .hal_bases import CpuDriver, SimDriver

__all__ = ["ROWS"]

Args = list[tuple[str, int | float]]
Grid = tuple[int, int, int]


# ---- launches -----------------------------------------------------------------------------------------------------------------
class _Grids:
    """``grid`` gives the grid that is launched instead."""

    def grid(self, x: int, y: int, z: int) -> Grid:
        return x, y, z

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        super().launch(device, desc._replace(grid=self.grid(*desc.grid)), stream)  # type: ignore[misc]


class GridYZ(_Grids, SimDriver):
    """y and z of a grid are swapped"""

    def grid(self, x: int, y: int, z: int) -> Grid:
        return x, z, y


class GridOnlyX(_Grids, CpuDriver):
    """a grid has its first row only"""

    def grid(self, x: int, y: int, z: int) -> Grid:
        return x, min(y, 1), min(z, 1)


class GridOf64(_Grids, SimDriver):
    """a grid has 64 programs at most along x"""

    def grid(self, x: int, y: int, z: int) -> Grid:
        return min(x, 64), y, z


class _Args:
    """``args`` gives what the kernel gets instead."""

    def args(self, args: Args) -> Args:
        return args

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        super().launch(device, desc._replace(args=self.args(list(desc.args))), stream)  # type: ignore[misc]


class ArgsInts(_Args, CpuDriver):
    """integer arguments have 15 bits"""

    def args(self, args: Args) -> Args:
        return [(t, int(v) & 0x7FFF if t in ("i32", "i64") else v) for t, v in args]


class ArgsNegative(_Args, CpuDriver):
    """arguments lose their sign"""

    def args(self, args: Args) -> Args:
        return [(t, abs(v)) for t, v in args]


class ArgsPacked(_Args, CpuDriver):
    """pointers come first, whatever their place"""

    def args(self, args: Args) -> Args:
        return sorted(args, key=lambda a: not a[0].startswith("*"))


class ArgsFourth(_Args, SimDriver):
    """the fourth argument is 0"""

    def args(self, args: Args) -> Args:
        return [(t, 0 if i == 3 else v) for i, (t, v) in enumerate(args)]


class ArgsFp64(_Args, CpuDriver):
    """fp64 arguments pass through float32"""

    def args(self, args: Args) -> Args:
        return [(t, float(np.float32(v)) if t == "fp64" else v) for t, v in args]


class ThreadsRepeat(CpuDriver):
    """every thread of a program runs all of it"""

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        for _ in range(min(max(desc.threads, 1), 4)):
            super().launch(device, desc, stream)


class ModuleByName(SimDriver):
    """a kernel's name stands for the first code under it"""

    def module_load(self, device: int, image: bytes, format: str) -> int:
        made = super().module_load(device, image, format)
        module, known = self._handles.get(made, object), self.__dict__.setdefault("_known", {})
        module.kernels = {name: known.setdefault(name, code) for name, code in module.kernels.items()}
        return made


class ModuleByLength(SimDriver):
    """an image of a known length is taken for the known one"""

    def module_load(self, device: int, image: bytes, format: str) -> int:
        made = super().module_load(device, image, format)
        known = self.__dict__.setdefault("_known", {}).setdefault(len(image), bytes(image))
        return made if known == image else super().module_load(device, known, format)


class InfoLies(SimDriver):
    """kernel_info makes its numbers up"""

    def kernel_info(self, kernel: int) -> KernelInfo:
        super().kernel_info(kernel)
        return KernelInfo("x", None, 1, 1 << 40, 10**6, -7)


# ---- graphs -------------------------------------------------------------------------------------------------------------------
class _Recordings(SimDriver):
    """``kept`` gives the work that a recording keeps."""

    def kept(self, works: list[Work]) -> list[Work]:
        return works

    def graph_end(self, stream: int, abort: bool = False) -> int:
        made = super().graph_end(stream, abort)
        if made:
            graph = self._handles.get(made, Graph)
            graph.works = self.kept(graph.works)
        return made


class GraphDropsFills(_Recordings):
    """fills are not recorded"""

    def kept(self, works: list[Work]) -> list[Work]:
        return [w for w in works if w.what != "fill"]


class GraphDropsHost(_Recordings):
    """host functions are not recorded"""

    def kept(self, works: list[Work]) -> list[Work]:
        return [w for w in works if w.what != "host"]


class GraphOf16(_Recordings):
    """a recording keeps sixteen pieces"""

    def kept(self, works: list[Work]) -> list[Work]:
        return works[:16]


class GraphFirstOnly(SimDriver):
    """every graph replays the first one"""

    def graph_instantiate(self, graph: int) -> int:
        made = super().graph_instantiate(graph)
        run = self._handles.get(made, Executable)
        run.works = list(self.__dict__.setdefault("_first", list(run.works)))
        return made


class GraphKeepsBytes(SimDriver):
    """a replay copies the bytes that the host had when it was recorded"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        if stream and desc.kind == HOST_TO_DEVICE and desc.rows == 1 and self._stream(stream, device).recording is not None:
            kept = ctypes.create_string_buffer(ctypes.string_at(desc.src, desc.nbytes), desc.nbytes)
            self.__dict__.setdefault("_kept", []).append(kept)
            desc = desc._replace(src=ctypes.addressof(kept))
        super().copy(device, desc, stream)


class GraphRunsNow(SimDriver):
    """a replay runs at once, not in its stream's order"""

    def graph_launch(self, executable: int, stream: int) -> None:
        if stream:
            self._stream(stream)
        super().graph_launch(executable, 0)


class GraphForeignStream(SimDriver):
    """a graph is launched on another device's stream"""

    def graph_launch(self, executable: int, stream: int) -> None:
        found = self._handles.get(executable, Executable)
        if stream:
            self._stream(stream).submit(*found.works)
        else:
            super().graph_launch(executable, stream)


# ---- sharing ------------------------------------------------------------------------------------------------------------------
class IpcNewest(SimDriver):
    """ipc_export gives the newest allocation"""

    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        made = super().alloc(device, nbytes, align)
        self.__dict__.setdefault("_newest", {})[device] = made
        return made

    def ipc_export(self, device: int, address: int) -> bytes:
        super().ipc_export(device, address)
        return super().ipc_export(device, self.__dict__["_newest"][device])


class IpcTail(SimDriver):
    """another process gets 8 KiB at most"""

    def ipc_export(self, device: int, address: int) -> bytes:
        handle, at = super().ipc_export(device, address), host_memory._HANDLE.size
        nbytes = min(int.from_bytes(handle[at : at + 8], "little"), 8192)
        return handle[:at] + nbytes.to_bytes(8, "little") + handle[at + 8 :]


class IpcEvents(SimDriver):
    """events are shared, but the handles mean nothing"""

    def ipc_event_export(self, event: int) -> bytes:
        return b"x" * 64

    def ipc_event_open(self, device: int, handle: bytes) -> int:
        return 12345


class IpcDevice0Only(SimDriver):
    """memory of the second device cannot be shared"""

    def ipc_export(self, device: int, address: int) -> bytes:
        if device:
            raise InternalError("sim: only device 0 is shared")
        return super().ipc_export(device, address)


# ---- profiles and sensors -------------------------------------------------------------------------------------------------------
class _Profiles(SimDriver):
    def prof_drain(self, device: int) -> list[ProfileRecord]:
        return self.change(super().prof_drain(device))

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return records


class RecordsOf64(_Profiles):
    """the buffer of records holds 64"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return records[:64]


class RecordsAtZero(_Profiles):
    """records are all at time 0"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return [replace(r, start_ns=0, end_ns=0) for r in records]


class RecordsUploadsOnly(_Profiles):
    """copies to the host and on the device leave no record"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return [r for r in records if r.kind != "copy" or r.name == HOST_TO_DEVICE]


class RecordsNoHost(_Profiles):
    """host functions leave no record"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return [r for r in records if r.kind != "host"]


class RecordsHalfTime(_Profiles):
    """records say half the time"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return [replace(r, end_ns=(r.start_ns + r.end_ns) // 2) for r in records]


class RecordsOneName(_Profiles):
    """every launch has the name of the first kernel"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        first = next((r.name for r in records if r.kind == "launch"), "")
        return [replace(r, name=first) if r.kind == "launch" else r for r in records]


class RecordsNameless(_Profiles):
    """launches have no name"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return [replace(r, name="") if r.kind == "launch" else r for r in records]


class RecordsNoBytes(_Profiles):
    """records of copies say 0 bytes"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return [replace(r, nbytes=0) if r.kind == "copy" else r for r in records]


class RecordsOnZero(_Profiles):
    """records are all of stream 0"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return [replace(r, stream=0) for r in records]


class RecordsOfAll(SimDriver):
    """a device's profile has the work of all"""

    def prof_start(self, device: int) -> None:
        self._check(device)
        for profile in self._profiles:
            profile.on = True

    def prof_drain(self, device: int) -> list[ProfileRecord]:
        self._check(device)
        return sorted((r for p in self._profiles for r in p.drain()), key=lambda r: r.start_ns)


class SensorsOfOther(SimDriver):
    """the sensors are the next device's"""

    def telemetry(self, device: int) -> Telemetry:
        self._device(device)
        return super().telemetry((device + 1) % self.device_count())


# ---- communicators --------------------------------------------------------------------------------------------------------------
class _Comm(CpuDriver):
    def _then(self, stream: int, fn: Callable[[], object]) -> None:
        """After the collective queued last."""
        if stream:
            self.host_func(stream, fn)  # type: ignore[arg-type]
        else:
            fn()

    @staticmethod
    def _array(address: int, count: int, dtype: str) -> np.ndarray:
        kind = BY_NAME[dtype].numpy
        memory = memoryview((ctypes.c_char * (count * kind.itemsize)).from_address(address)) if count else memoryview(bytearray())
        return np.frombuffer(memory, kind)


class ScatterClobbers(_Comm):
    """reduce_scatter leaves its result in the input too"""

    def comm_reduce_scatter(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        super().comm_reduce_scatter(comm, send, recv, count, dtype, op, stream)
        size, world = count * BY_NAME[dtype].itemsize, self._handles.get(comm, object).world
        if not send <= recv < send + world * size:
            self._then(stream, lambda: ctypes.memmove(send, recv, size))


class GatherClobbers(_Comm):
    """all_gather zeroes its input"""

    def comm_all_gather(self, comm: int, send: int, recv: int, count: int, dtype: str, stream: int) -> None:
        super().comm_all_gather(comm, send, recv, count, dtype, stream)
        size, world = count * BY_NAME[dtype].itemsize, self._handles.get(comm, object).world
        if not recv <= send < recv + world * size:
            self._then(stream, lambda: ctypes.memset(send, 0, size))


class BroadcastClobbers(_Comm):
    """broadcast writes its result into send too"""

    def comm_broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        super().comm_broadcast(comm, send, recv, count, dtype, root, stream)
        self._then(stream, lambda: ctypes.memmove(send, recv, count * BY_NAME[dtype].itemsize))


class ReduceOverruns(_Comm):
    """all_reduce writes whole lines of 64 bytes"""

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        super().comm_all_reduce(comm, send, recv, count, dtype, op, stream)
        size = count * BY_NAME[dtype].itemsize
        if size:
            self._then(stream, lambda: ctypes.memset(recv + size, 0, -size % 64))


class _Results(_Comm):
    """``change`` is done to the results of all_reduce."""

    def change(self, array: np.ndarray, dtype: str, op: str) -> None:
        pass

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        super().comm_all_reduce(comm, send, recv, count, dtype, op, stream)
        self._then(stream, lambda: self.change(self._array(recv, count, dtype), dtype, op))


class Int64In32(_Results):
    """int64 is reduced in 32 bits"""

    def change(self, array: np.ndarray, dtype: str, op: str) -> None:
        if dtype == "int64":
            array[:] = array.astype(np.int32)


class Fp64In32(_Results):
    """float64 is reduced as float32"""

    def change(self, array: np.ndarray, dtype: str, op: str) -> None:
        if dtype == "float64":
            with np.errstate(over="ignore"):
                array[:] = array.astype(np.float32)


class HalfOf8Bits(_Results):
    """float16 keeps 8 bits"""

    def change(self, array: np.ndarray, dtype: str, op: str) -> None:
        if dtype == "float16":
            array.view(np.uint16)[:] &= 0xFFF8


class NanIsLost(_Results):
    """max and min make 0 of NaN"""

    def change(self, array: np.ndarray, dtype: str, op: str) -> None:
        if op in ("max", "min") and BY_NAME[dtype].kind == "f":
            array[np.isnan(array)] = 0


class SignedAsUnsigned(_Comm):
    """max and min compare int8 as uint8"""

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        super().comm_all_reduce(comm, send, recv, count, "uint8" if dtype == "int8" and op in ("max", "min") else dtype, op, stream)


class CollectivesNow(_Comm):
    """all_reduce does not wait for its stream"""

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        super().comm_all_reduce(comm, send, recv, count, dtype, op, 0 if self._handles.get(comm, object).world == 1 else stream)


class WorldOfThree(_Comm):
    """of three ranks and more, each keeps its own values"""

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        if self._handles.get(comm, object).world >= 3:
            self._then(stream, lambda: ctypes.memmove(recv, send, count * BY_NAME[dtype].itemsize))
        else:
            super().comm_all_reduce(comm, send, recv, count, dtype, op, stream)


class OthersCut(_Comm):
    """broadcasts and messages end after 65,536 elements"""

    def comm_broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        super().comm_broadcast(comm, send, recv, min(count, 65536), dtype, root, stream)

    def comm_send(self, comm: int, send: int, count: int, dtype: str, peer: int, stream: int) -> None:
        super().comm_send(comm, send, min(count, 65536), dtype, peer, stream)

    def comm_recv(self, comm: int, recv: int, count: int, dtype: str, peer: int, stream: int) -> None:
        super().comm_recv(comm, recv, min(count, 65536), dtype, peer, stream)


class OneGroup(_Comm):
    """two communicators share one group"""

    def comm_group_begin(self, comm: int) -> None:
        self.__dict__.setdefault("_group", threading.local()).comm = comm
        super().comm_group_begin(comm)

    def comm_group_end(self, comm: int) -> None:
        super().comm_group_end(self.__dict__["_group"].comm)


class GroupDropsCollectives(_Comm):
    """collectives in a group are dropped"""

    def _queue(self, comm: int, stream: int, call: Any, send: int, recv: int) -> None:
        if self._handles.get(comm, object).group is None or isinstance(call, tuple):
            super()._queue(comm, stream, call, send, recv)


class NoSuchRootIsZero(_Comm):
    """a root that does not exist is taken for rank 0"""

    def comm_broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        there = 0 <= root < self._handles.get(comm, object).world
        super().comm_broadcast(comm, send, recv, count, dtype, root if there else 0, stream)


# (mutant, the check meant to refuse it)
ROWS: tuple[tuple[type[Any], int], ...] = (
    (GridYZ, 66), (GridOnlyX, 66), (GridOf64, 66), (ArgsInts, 66), (ArgsNegative, 66), (ArgsPacked, 66), (ArgsFourth, 66), (ArgsFp64, 66),
    (ThreadsRepeat, 66), (ModuleByName, 66), (ModuleByLength, 66), (InfoLies, 66), (GraphDropsFills, 67), (GraphDropsHost, 67), (GraphOf16, 67),
    (GraphFirstOnly, 67), (GraphKeepsBytes, 67), (GraphRunsNow, 67), (GraphForeignStream, 67), (IpcNewest, 69), (IpcTail, 69),
    (IpcEvents, 69), (IpcDevice0Only, 69), (RecordsOf64, 70), (RecordsAtZero, 70), (RecordsUploadsOnly, 70), (RecordsNoHost, 70),
    (RecordsHalfTime, 70), (RecordsOneName, 70), (RecordsNameless, 70), (RecordsNoBytes, 70), (RecordsOnZero, 70), (RecordsOfAll, 70),
    (SensorsOfOther, 71), (ScatterClobbers, 68), (GatherClobbers, 68), (BroadcastClobbers, 68), (ReduceOverruns, 68), (Int64In32, 68),
    (Fp64In32, 68), (HalfOf8Bits, 68), (NanIsLost, 68), (SignedAsUnsigned, 68), (WorldOfThree, 68), (OthersCut, 68), (OneGroup, 68),
    (GroupDropsCollectives, 68), (CollectivesNow, 68), (NoSuchRootIsZero, 68),
)  # fmt: skip
