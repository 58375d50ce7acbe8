"""Wrong drivers: modules, graphs, communicators, sharing, profiles, sensors, operators.  Each is a right driver with one mistake."""
from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..hal.driver import DEVICE_TO_DEVICE, Copy, Driver, KernelInfo, Launch, ProfileRecord, Telemetry
from ..hal.dtype import BY_NAME
from ..hal.errors import ArgumentError, InvalidHandle, Unsupported
from ..hal.host_queues import Executable, Graph, Work
from .hal_bases import CpuDriver, SimDriver

__all__ = ["ROWS"]


# ---- modules ------------------------------------------------------------------------------------------------------------------
class TakesAnyImage(SimDriver):
    """an image that cannot be read gives a module without kernels"""

    def module_load(self, device: int, image: bytes, format: str) -> int:
        try:
            return super().module_load(device, image, format)
        except ArgumentError:
            if format != "ttir":
                raise
            return super().module_load(device, b"module {\n  tt.func public @nothing() {\n    tt.return\n  }\n}\n", format)


class TakesAnyFormat(CpuDriver):
    """the image's format is not looked at"""

    def module_load(self, device: int, image: bytes, format: str) -> int:
        return super().module_load(device, image, "so")


class FirstKernel(SimDriver):
    """a kernel that is not there is the module's first one"""

    def get_kernel(self, module: int, name: str) -> int:
        try:
            return super().get_kernel(module, name)
        except ArgumentError:
            return super().get_kernel(module, "conform_axpy")


class ArgumentsUncounted(SimDriver):
    """missing arguments are zeros, further ones are dropped"""

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        try:
            super().launch(device, desc, stream)
        except ArgumentError:
            if len(desc.args) == 3:
                raise


class SizesUnchecked(CpuDriver):
    """an argument of another size is cut to fit"""

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        args = [("fp32", float(v)) if kind == "fp64" else (kind, v) for kind, v in desc.args]
        super().launch(device, desc._replace(args=args), stream)


class EmptyGrids(SimDriver):
    """a grid of 0 programs is a success"""

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        if min(desc.grid) > 0:
            super().launch(device, desc, stream)


class BlocksClipped(SimDriver):
    """more threads than a block may have are clipped"""

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        super().launch(device, desc._replace(threads=min(desc.threads, self.props(device).max_threads)), stream)


class LastProgramMissing(CpuDriver):
    """the last program of a grid does not run"""

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        x, y, z = desc.grid
        super().launch(device, desc._replace(grid=(max(x - 1, 1) if x else 0, y, z)), stream)


class UnloadDropsLaunches(SimDriver):
    """unloading a module drops its queued launches"""

    def _begin(self) -> None:
        super()._begin()
        self._gone: set[int] = set()
        self._owner: dict[int, int] = {}  # kernel -> module
        self._launching = threading.local()

    def _do(self, device: int, stream: int, work: Work) -> None:
        owner = getattr(self._launching, "owner", None)
        if owner is not None:
            run = work.run
            work = Work(work.kind, lambda: None if owner in self._gone else run(), work.what, work.name, work.nbytes)
        super()._do(device, stream, work)

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        self._launching.owner = self._owner.get(desc.kernel)
        try:
            super().launch(device, desc, stream)
        finally:
            self._launching.owner = None

    def get_kernel(self, module: int, name: str) -> int:
        made = super().get_kernel(module, name)
        self._owner[made] = module
        return made

    def module_unload(self, module: int) -> None:
        super().module_unload(module)
        self._gone.add(module)


class InfoCountsWrong(SimDriver):
    """kernel_info leaves the last argument out"""

    def kernel_info(self, kernel: int) -> KernelInfo:
        found = super().kernel_info(kernel)
        return replace(found, args=(found.args or ())[:-1])


# ---- graphs -------------------------------------------------------------------------------------------------------------------
class RecordsAndRuns(SimDriver):
    """work that is recorded runs as well"""

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        super().copy(device, desc, stream)
        if stream and self._stream(stream).recording is not None:
            super().copy(device, desc)


class ReplaysOnce(CpuDriver):
    """a graph runs only the first time"""

    def graph_launch(self, executable: int, stream: int) -> None:
        done = self.__dict__.setdefault("_done", set())
        if executable not in done:
            super().graph_launch(executable, stream)
        done.add(executable)


class ForgetsTheEnd(SimDriver):
    """the last piece of recorded work is lost"""

    def graph_instantiate(self, graph: int) -> int:
        found = self._handles.get(graph, Graph)
        return self._handles.add(Executable(found.device, tuple(found.works[:-1])))


class AbortRuns(SimDriver):
    """aborting a recording runs what it holds"""

    def graph_end(self, stream: int, abort: bool = False) -> int:
        if abort:
            made = super().graph_end(stream)
            super().graph_launch(super().graph_instantiate(made), stream)
            return 0
        return super().graph_end(stream)


class AbortGoesOn(CpuDriver):
    """after an aborted recording the stream goes on recording"""

    def graph_end(self, stream: int, abort: bool = False) -> int:
        if abort:
            super().graph_end(stream, True)
            super().graph_begin(stream)
            return 0
        return super().graph_end(stream)


class DiesWithItsGraph(SimDriver):
    """what was made of a graph ends with the graph"""

    def graph_instantiate(self, graph: int) -> int:
        made = super().graph_instantiate(graph)
        self.__dict__.setdefault("_made", {})[graph] = made
        return made

    def graph_destroy(self, graph: int) -> None:
        super().graph_destroy(graph)
        made = self.__dict__.setdefault("_made", {}).pop(graph, 0)
        if made:
            super().graph_destroy(made)


# ---- communicators --------------------------------------------------------------------------------------------------------------
class AverageIsSum(CpuDriver):
    """avg does not divide"""

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        super().comm_all_reduce(comm, send, recv, count, dtype, "sum" if op == "avg" else op, stream)


class ProductIsSum(CpuDriver):
    """prod is computed as sum"""

    def comm_reduce_scatter(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        super().comm_reduce_scatter(comm, send, recv, count, dtype, "sum" if op == "prod" else op, stream)


class OnlyABarrier(CpuDriver):
    """all_gather only waits for the others"""

    def comm_all_gather(self, comm: int, send: int, recv: int, count: int, dtype: str, stream: int) -> None:
        super().comm_all_gather(comm, send, recv, 0, dtype, stream)


class RootIsZero(CpuDriver):
    """broadcast takes rank 0's values, whatever the root"""

    def comm_broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        super().comm_broadcast(comm, send, recv, count, dtype, 0, stream)


class ScattersFirstPart(CpuDriver):
    """in-place reduce_scatter leaves the result in the first part"""

    def comm_reduce_scatter(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        inside = send < recv < send + 2 * count * BY_NAME[dtype].itemsize
        super().comm_reduce_scatter(comm, send, send if inside else recv, count, dtype, op, stream)


class BfloatIsHalf(CpuDriver):
    """bfloat16 is reduced as float16"""

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        super().comm_all_reduce(comm, send, recv, count, "float16" if dtype == "bfloat16" else dtype, op, stream)


class NoEmptyCalls(CpuDriver):
    """a collective of 0 elements is an error"""

    def comm_broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        if not count:
            raise ArgumentError("cpu: 0 elements")
        super().comm_broadcast(comm, send, recv, count, dtype, root, stream)


class CountsUnchecked(CpuDriver):
    """ranks with other counts go on with the smallest"""

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        super().comm_all_reduce(comm, send, recv, 32 if count == 40 else count, dtype, op, stream)


class AbortIgnored(CpuDriver):
    """comm_abort does nothing"""

    apart = True  # sockets are closed under a call that uses them

    def comm_abort(self, comm: int) -> None:
        pass


class AbortForgotten(CpuDriver):
    """after an abort further calls are taken and dropped"""

    apart = True  # sockets are closed under a call that uses them

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        try:
            super().comm_all_reduce(comm, send, recv, count, dtype, op, stream)
        except InvalidHandle:
            pass


class LargeCallsCut(CpuDriver):
    """only the first mebibyte of a large collective is done"""

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        super().comm_all_reduce(comm, send, recv, min(count, 1 << 18), dtype, op, stream)


class OneId(CpuDriver):
    """every unique id is the same"""

    _id = b""

    def comm_unique_id(self) -> bytes:
        type(self)._id = self._id or super().comm_unique_id()
        return self._id


# ---- sharing --------------------------------------------------------------------------------------------------------------------
class SharesACopy(SimDriver):
    """another process opens a copy of the memory"""

    def ipc_open(self, device: int, handle: bytes) -> int:
        found = super().ipc_open(device, handle)
        out = self.alloc(device, 8192)
        self.copy(device, Copy(DEVICE_TO_DEVICE, out, found, 8192))
        super().ipc_close(device, found)
        return out

    def ipc_close(self, device: int, address: int) -> None:
        self.free(device, address)


class ClosesTwice(CpuDriver):
    """shared memory can be closed twice"""

    def ipc_close(self, device: int, address: int) -> None:
        try:
            super().ipc_close(device, address)
        except InvalidHandle:
            pass


class OpensOthers(CpuDriver):
    """another process gets memory, but not the one exported"""

    def ipc_open(self, device: int, handle: bytes) -> int:
        super().ipc_open(device, handle)
        return self.alloc(device, 8192)

    def ipc_close(self, device: int, address: int) -> None:
        self.free(device, address)


# ---- profiles and sensors -------------------------------------------------------------------------------------------------------
class _Records(SimDriver):
    def prof_drain(self, device: int) -> list[ProfileRecord]:
        return self.change(super().prof_drain(device))

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return records


class RecordsTwice(_Records):
    """every piece of work has two records"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return [r for r in records for _ in (0, 1)]


class RecordsLost(_Records):
    """the buffer of records holds sixteen"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return records[:16]


class RecordsBackwards(_Records):
    """records end before they start"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return [replace(r, start_ns=r.end_ns, end_ns=r.start_ns) for r in records]


class RecordsUnsorted(_Records):
    """records come in the order of their end, newest first"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return records[::-1]


class RecordsStretch(_Records):
    """times of records count another clock's ticks"""

    def change(self, records: list[ProfileRecord]) -> list[ProfileRecord]:
        return [replace(r, start_ns=r.start_ns * 24, end_ns=r.end_ns * 24) for r in records]


class DrainsAgain(SimDriver):
    """a drain leaves the records where they are"""

    def prof_drain(self, device: int) -> list[ProfileRecord]:
        kept = self.__dict__.setdefault("_records", [])
        kept += super().prof_drain(device)
        return sorted(kept, key=lambda r: r.start_ns)


class NeverStops(CpuDriver):
    """prof_stop does not stop"""

    def prof_stop(self, device: int) -> None:
        self._check(device)


class _Sensors(SimDriver):
    values: dict[str, Any] = {}

    def telemetry(self, device: int) -> Telemetry:
        return replace(super().telemetry(device), **self.values)


class PermilleUtil(_Sensors):
    """the load is given in permille"""

    values = {"util_percent": 312.0}


class UnknownIsZero(_Sensors):
    """a sensor that is not there says 0"""

    values = {"temperature_c": 0.0}


class UnknownIsMinusOne(_Sensors):
    """a sensor that is not there says -1"""

    values = {"power_w": -1.0}


class MilliWatts(_Sensors):
    """the power is given in milliwatts"""

    values = {"power_w": 200_000.0}


class HertzClock(_Sensors):
    """the clock is given in Hz"""

    values = {"clock_mhz": 1e9}


class MemoryOfAll(SimDriver):
    """the memory in use is that of the whole machine"""

    def telemetry(self, device: int) -> Telemetry:
        t = super().telemetry(device)
        return replace(t, mem_used_bytes=t.mem_used_bytes + self.props(device).total_bytes)


# ---- operators ------------------------------------------------------------------------------------------------------------------
class QueryChanges(SimDriver):
    """op_query says preferred once it was asked before"""

    def op_query(self, device: int, name: str, dtypes: Sequence[str], contiguous: bool) -> str:
        found = super().op_query(device, name, dtypes, contiguous)
        asked = self.__dict__.setdefault("_asked", set())
        key = (name, tuple(dtypes), contiguous)
        answer = "preferred" if found and key in asked else found
        asked.add(key)
        return answer


class QueryPromises(SimDriver):
    """op_query says supported of what op_run has not"""

    def op_query(self, device: int, name: str, dtypes: Sequence[str], contiguous: bool) -> str:
        return super().op_query(device, name, dtypes, contiguous) or ("supported" if name == "relu" and dtypes[0] == "float32" else "")

    def op_run(self, device: int, name: str, inputs: Sequence[Any], outputs: Sequence[Any], attrs: dict[str, object], stream: int = 0) -> None:
        if name == "relu":
            raise Unsupported("sim: simblas has no relu")
        super().op_run(device, name, inputs, outputs, attrs, stream)


class RunsNothing(SimDriver):
    """an operator that is not there is a silent success"""

    def op_run(self, device: int, name: str, inputs: Sequence[Any], outputs: Sequence[Any], attrs: dict[str, object], stream: int = 0) -> None:
        try:
            super().op_run(device, name, inputs, outputs, attrs, stream)
        except Unsupported:
            pass


class AttributesIgnored(SimDriver):
    """softmax runs over axis 0, whatever dim is"""

    def op_run(self, device: int, name: str, inputs: Sequence[Any], outputs: Sequence[Any], attrs: dict[str, object], stream: int = 0) -> None:
        super().op_run(device, name, inputs, outputs, {"dim": 0} if attrs else attrs, stream)


class AnswersYes(SimDriver):
    """op_query answers with True"""

    def op_query(self, device: int, name: str, dtypes: Sequence[str], contiguous: bool) -> str:
        return super().op_query(device, name, dtypes, contiguous) and True  # type: ignore[return-value]


# (mutant, the check meant to refuse it)
ROWS: tuple[tuple[type[Driver], int], ...] = (
    (TakesAnyImage, 66), (TakesAnyFormat, 66), (FirstKernel, 66), (ArgumentsUncounted, 66), (SizesUnchecked, 66), (EmptyGrids, 66),
    (BlocksClipped, 66), (LastProgramMissing, 66), (UnloadDropsLaunches, 66), (InfoCountsWrong, 66), (RecordsAndRuns, 67), (ReplaysOnce, 67),
    (ForgetsTheEnd, 67), (AbortRuns, 67), (AbortGoesOn, 67), (DiesWithItsGraph, 67), (AverageIsSum, 68), (ProductIsSum, 68), (OnlyABarrier, 68),
    (RootIsZero, 68), (ScattersFirstPart, 68), (BfloatIsHalf, 68), (NoEmptyCalls, 68), (CountsUnchecked, 68), (AbortIgnored, 68),
    (AbortForgotten, 68), (LargeCallsCut, 68), (OneId, 68), (SharesACopy, 69), (ClosesTwice, 69), (OpensOthers, 69), (RecordsTwice, 70),
    (RecordsLost, 70), (RecordsBackwards, 70), (RecordsUnsorted, 70), (RecordsStretch, 70), (DrainsAgain, 70), (NeverStops, 70),
    (PermilleUtil, 71), (UnknownIsZero, 71), (UnknownIsMinusOne, 71), (MilliWatts, 71), (HertzClock, 71), (MemoryOfAll, 71), (QueryChanges, 72),
    (QueryPromises, 72), (RunsNothing, 72), (AttributesIgnored, 72), (AnswersYes, 72),
)  # fmt: skip
