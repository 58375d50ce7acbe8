"""Checks above any driver: bounds, stale handles, double free, wrong device, use after free, leaks with their place.

On in the tests and with HAIAN_VALIDATE=1; drivers themselves stay thin.  Costs a search in a sorted list a call.
Not here: whether results are right (conformance).
"""
from __future__ import annotations

import os
import sys
import threading
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .driver import (
    DEVICE_TO_DEVICE,
    DEVICE_TO_HOST,
    HOST_TO_DEVICE,
    PEER,
    Capabilities,
    Copy,
    Driver,
    KernelInfo,
    Launch,
    PointerInfo,
    ProfileRecord,
    Telemetry,
    devices_of,
    offers,
)
from .dtype import BY_NAME
from .errors import ArgumentError, HaianError, InternalError, InvalidHandle, OutOfRange

__all__ = ["Leak", "Validated", "validate"]

_REMEMBERED = 1024  # freed ranges and handles kept, to say "freed" and where instead of "unknown"
_HERE = os.path.dirname(__file__)


@dataclass(frozen=True)
class Leak:
    """Something still alive at ``close``.

    Attributes:
        kind: ``memory``, ``pinned``, ``stream``, ``event``, ``module``, ``graph``, ``comm``.
        handle: the address or handle.
        device: number within the driver.
        nbytes: of memory, else 0.
        where: file:line in function of the calls that made it, innermost first, without haian's own.
    """

    kind: str
    handle: int
    device: int
    nbytes: int
    where: str

    def __str__(self) -> str:
        size = f" of {self.nbytes} bytes" if self.nbytes else ""
        return f"{self.kind} {self.handle:#x}{size} on device {self.device}, made at {self.where}"


@dataclass
class _Range:
    base: int
    nbytes: int
    device: int
    where: str
    inner: _Ranges | None = None  # live blocks of a pooled segment; only they may be touched


class _Ranges:
    """Ranges that do not overlap, found by any address in them."""

    def __init__(self) -> None:
        self._bases: list[int] = []
        self._by_base: dict[int, _Range] = {}

    def add(self, r: _Range) -> None:
        insort(self._bases, r.base)
        self._by_base[r.base] = r

    def pop(self, base: int) -> _Range:
        self._bases.pop(bisect_right(self._bases, base) - 1)
        return self._by_base.pop(base)

    def at(self, address: int) -> _Range | None:
        """The range with this address in it; its end counts as in it only for ranges of no bytes."""
        i = bisect_right(self._bases, address) - 1
        if i >= 0:
            r = self._by_base[self._bases[i]]
            if address < r.base + r.nbytes:
                return r
        return None

    def touching(self, low: int, high: int) -> _Range | None:
        i = bisect_right(self._bases, low) - 1
        for j in (i, i + 1):
            if 0 <= j < len(self._bases):
                r = self._by_base[self._bases[j]]
                if r.base < high and low < r.base + r.nbytes:
                    return r
        return None

    def __contains__(self, base: int) -> bool:
        return base in self._by_base

    def __iter__(self):
        return iter([self._by_base[b] for b in self._bases])


@dataclass
class _Handle:
    device: int
    where: str
    parent: int = 0  # a kernel's module
    timing: bool = True  # an event's
    world: int = 1  # a communicator's ranks


def validate(driver: Driver) -> Validated:
    """A driver that checks every call before the given one sees it; validating twice changes nothing."""
    return driver if isinstance(driver, Validated) else Validated(driver)


class Validated(Driver):
    """The checks.  What the inner driver raises passes through unchanged.

    Addresses on a device whose memory the host may touch (``host_access``) can also be ordinary host memory, of which
    nothing is known here; only what ``alloc`` gave is checked there.
    """

    def __init__(self, inner: Driver) -> None:
        self.inner = inner
        self.name, self.vendor, self.version = inner.name, inner.vendor, inner.version
        self._lock = threading.Lock()
        self._count = devices_of(inner)
        self._facts: dict[int, Capabilities] = {}
        self._memory: dict[int, _Ranges] = {d: _Ranges() for d in range(self._count)}
        self._pinned: dict[int, _Ranges] = {d: _Ranges() for d in range(self._count)}
        self._shared: dict[int, set[int]] = {d: set() for d in range(self._count)}  # other processes' memory; its size is not known
        # Freed ranges, oldest first: base: (bytes, where freed).
        self._graves: dict[int, dict[int, tuple[int, str]]] = {d: {} for d in range(self._count)}
        self._grave_end = dict.fromkeys(range(self._count), 0)  # none reaches further: new addresses need no search of 1024 graves
        self._handles: dict[tuple[str, int], _Handle] = {}  # by (kind, handle): drivers number each kind for itself
        self._gone: dict[tuple[str, int], str] = {}  # where destroyed

    def __getattr__(self, name: str) -> Any:  # what a driver has beyond the page, such as fault injection
        if name == "inner":  # not set yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def offers(self, group: str) -> bool:
        """The inner driver's answer."""
        return offers(self.inner, group)

    # ---- core ------------------------------------------------------------------------------------------------------
    def device_count(self) -> int:
        count = self.inner.device_count()
        if count != self._count:
            raise InternalError(f"{self.name}: device_count was {self._count}, now {count}; it must not change")
        return count

    def props(self, device: int) -> Capabilities:
        self._device(device, "props")
        if device not in self._facts:
            facts = self.inner.props(device)
            if facts.align_bytes < 1 or facts.align_bytes & (facts.align_bytes - 1):
                raise InternalError(f"{self.name}: align_bytes {facts.align_bytes} of device {device}; needs a power of two")
            if facts.max_alloc_bytes > facts.total_bytes:
                raise InternalError(f"{self.name}: max_alloc_bytes {facts.max_alloc_bytes} exceeds total_bytes {facts.total_bytes}")
            odd = set(facts.dtypes_math) - set(facts.dtypes_load)
            if odd:
                raise InternalError(f"{self.name}: dtypes_math has {', '.join(sorted(odd))}, which dtypes_load lacks")
            self._facts[device] = facts
        return self._facts[device]

    def sync(self, device: int) -> None:
        self._device(device, "sync")
        self.inner.sync(device)

    def reset(self, device: int) -> None:
        self._device(device, "reset")
        self.inner.reset(device)
        with self._lock:
            for r in self._memory[device]:
                self._bury(r, "reset")
            self._memory[device], self._pinned[device], self._shared[device] = _Ranges(), _Ranges(), set()
            for key in [k for k, h in self._handles.items() if h.device == device]:
                del self._handles[key]
                self._gone[key] = "reset"

    # ---- memory ----------------------------------------------------------------------------------------------------
    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        self._device(device, "alloc")
        if nbytes <= 0:
            raise ArgumentError(f"{self.name}: alloc of {nbytes} bytes; needs at least 1")
        if align < 0 or align & (align - 1):
            raise ArgumentError(f"{self.name}: alloc aligned to {align}; needs a power of two, or 0")
        address = self.inner.alloc(device, nbytes, align)
        wanted = max(align, self.props(device).align_bytes)
        if address <= 0 or address % wanted:
            raise InternalError(f"{self.name}: alloc gave {address:#x}; needs a multiple of {wanted} above 0")
        with self._lock:
            other = self._memory[device].touching(address, address + nbytes)
            if other is not None:
                raise InternalError(f"{self.name}: alloc gave {address:#x} of {nbytes} bytes, inside the live {other.base:#x} "
                                    f"of {other.nbytes} made at {other.where}")
            self._memory[device].add(_Range(address, nbytes, device, _where()))
            graves = self._graves[device]
            if address < self._grave_end[device]:
                for base in [b for b, (n, _) in graves.items() if b < address + nbytes and address < b + n]:
                    del graves[base]
        return address

    def free(self, device: int, address: int) -> None:
        self._device(device, "free")
        where = _where()
        with self._lock:  # out of the table first: as soon as the driver has it back, another thread may be given the address
            ranges = self._pinned[device] if address in self._pinned[device] else self._memory[device]
            if address not in ranges:
                raise InvalidHandle(f"{self.name}: free of {address:#x}: {self._what(device, address)}; free each base address once")
            live = ranges._by_base[address].inner
            if live is not None and any(True for _ in live):
                raise InternalError(f"{self.name}: free of the segment {address:#x} that still has live blocks")
            gone = ranges.pop(address)
            if ranges is self._memory[device]:
                self._bury(gone, where)
        try:
            self.inner.free(device, address)
        except HaianError:  # Busy, lost: it is still there
            with self._lock:
                ranges.add(gone)
                self._graves[device].pop(address, None)
            raise

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        self._device(device, "copy")
        self._stream(stream, device)
        if desc.kind not in (HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, PEER):
            raise ArgumentError(f"{self.name}: copy kind {desc.kind!r}; one of h2d, d2h, d2d, peer")
        if desc.nbytes < 0 or desc.rows < 0:
            raise ArgumentError(f"{self.name}: copy of {desc.rows} rows of {desc.nbytes} bytes; needs 0 or more")
        if desc.rows > 1:
            for side, pitch in (("dst", desc.dst_pitch), ("src", desc.src_pitch)):
                if pitch < desc.nbytes:
                    raise ArgumentError(f"{self.name}: copy with a {side} pitch of {pitch} for rows of {desc.nbytes} bytes; "
                                        f"the pitch must be at least the row")
        other = device
        if desc.kind == PEER:
            other = desc.dst_device
            self._device(other, "peer copy")
        if desc.nbytes and desc.rows:
            span_dst = (desc.rows - 1) * desc.dst_pitch + desc.nbytes
            span_src = (desc.rows - 1) * desc.src_pitch + desc.nbytes
            if desc.kind != DEVICE_TO_HOST:
                self._bounds(other, desc.dst, span_dst, "copy to")
            elif not desc.dst:
                raise ArgumentError(f"{self.name}: copy to host address 0")
            if desc.kind != HOST_TO_DEVICE:
                self._bounds(device, desc.src, span_src, "copy from")
            elif not desc.src:
                raise ArgumentError(f"{self.name}: copy from host address 0")
        self.inner.copy(device, desc, stream)

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        self._device(device, "fill")
        self._stream(stream, device)
        if len(pattern) not in (1, 2, 4) or nbytes < 0 or nbytes % len(pattern):
            raise ArgumentError(f"{self.name}: fill of {nbytes} bytes with a pattern of {len(pattern)}; needs 1, 2 or 4 bytes and a multiple")
        if nbytes:
            self._bounds(device, address, nbytes, "fill of")
        self.inner.fill(device, address, pattern, nbytes, stream)

    def mem_info(self, device: int) -> tuple[int, int]:
        self._device(device, "mem_info")
        free, total = self.inner.mem_info(device)
        if not 0 <= free <= total:
            raise InternalError(f"{self.name}: mem_info gave {free} free of {total}")
        return free, total

    def host_alloc(self, device: int, nbytes: int, managed: bool = False) -> int:
        self._device(device, "host_alloc")
        if nbytes <= 0:
            raise ArgumentError(f"{self.name}: host_alloc of {nbytes} bytes; needs at least 1")
        address = self.inner.host_alloc(device, nbytes, managed)
        if address <= 0:
            raise InternalError(f"{self.name}: host_alloc gave {address:#x}; needs an address above 0")
        with self._lock:  # managed memory is the device's too: kernels and copies on it may touch it
            (self._memory if managed else self._pinned)[device].add(_Range(address, nbytes, device, _where()))
            self._graves[device].pop(address, None)
        return address

    def host_register(self, device: int, address: int, nbytes: int) -> None:
        self._device(device, "host_register")
        if not address or nbytes <= 0:
            raise ArgumentError(f"{self.name}: host_register of {nbytes} bytes at {address:#x}; needs an address and at least 1 byte")
        self.inner.host_register(device, address, nbytes)

    def host_unregister(self, device: int, address: int) -> None:
        self._device(device, "host_unregister")
        self.inner.host_unregister(device, address)

    def ptr_info(self, device: int, address: int) -> PointerInfo:
        self._device(device, "ptr_info")
        return self.inner.ptr_info(device, address)

    def pool_trim(self, device: int, keep_bytes: int = 0) -> int:
        self._device(device, "pool_trim")
        if keep_bytes < 0:
            raise ArgumentError(f"{self.name}: pool_trim to {keep_bytes} bytes; needs 0 or more")
        return self.inner.pool_trim(device, keep_bytes)

    # ---- blocks within an allocation: the caching allocator tells, so that bounds are those of the block ------------
    def pool(self, device: int, address: int) -> None:
        """From now on only carved blocks of this allocation may be touched."""
        with self._lock:
            self._memory[device]._by_base[address].inner = _Ranges()

    def carve(self, device: int, address: int, nbytes: int) -> None:
        """These bytes of a pooled allocation are live."""
        with self._lock:
            segment = self._memory[device].at(address)
            if segment is None or segment.inner is None or address + nbytes > segment.base + segment.nbytes:
                raise InternalError(f"{self.name}: block {address:#x} of {nbytes} bytes lies in no pooled allocation")
            other = segment.inner.touching(address, address + nbytes)
            if other is not None:
                raise InternalError(f"{self.name}: block {address:#x} of {nbytes} bytes overlaps the live {other.base:#x} of {other.nbytes}")
            segment.inner.add(_Range(address, nbytes, device, _where()))
            self._graves[device].pop(address, None)

    def uncarve(self, device: int, address: int) -> None:
        """The block is free."""
        with self._lock:
            segment = self._memory[device].at(address)
            if segment is not None and segment.inner is not None and address in segment.inner:  # else: the device was reset
                self._bury(segment.inner.pop(address), "its tensor's end")

    # ---- streams ---------------------------------------------------------------------------------------------------
    def stream_create(self, device: int) -> int:
        self._device(device, "stream_create")
        return self._new("stream", device, self.inner.stream_create(device))

    def stream_destroy(self, stream: int) -> None:
        self._known("stream", stream)
        self._end("stream", stream)
        self.inner.stream_destroy(stream)

    def stream_sync(self, stream: int) -> None:
        self._known("stream", stream)
        self.inner.stream_sync(stream)

    def stream_query(self, stream: int) -> bool:
        self._known("stream", stream)
        return self.inner.stream_query(stream)

    def stream_wait_event(self, stream: int, event: int) -> None:
        self._known("stream", stream)
        self._known("event", event)
        self.inner.stream_wait_event(stream, event)

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        self._known("stream", stream)
        if not callable(fn):
            raise ArgumentError(f"{self.name}: host_func of {fn!r}; needs a function without arguments")
        self.inner.host_func(stream, fn)

    # ---- events ----------------------------------------------------------------------------------------------------
    def event_create(self, device: int, timing: bool = True) -> int:
        self._device(device, "event_create")
        handle = self._new("event", device, self.inner.event_create(device, timing))
        self._handles["event", handle].timing = timing
        return handle

    def event_destroy(self, event: int) -> None:
        self._known("event", event)
        self._end("event", event)
        self.inner.event_destroy(event)

    def event_record(self, event: int, stream: int) -> None:
        device = self._known("event", event).device
        self._stream(stream, device)
        self.inner.event_record(event, stream)

    def event_query(self, event: int) -> bool:
        self._known("event", event)
        return self.inner.event_query(event)

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        self._known("event", event)
        self.inner.event_sync(event, timeout_ns)

    def event_elapsed_ns(self, start: int, end: int) -> int:
        a, b = self._known("event", start), self._known("event", end)
        if a.device != b.device:
            raise ArgumentError(f"{self.name}: elapsed time between events of devices {a.device} and {b.device}; they share no clock")
        if not (a.timing and b.timing):
            raise ArgumentError(f"{self.name}: elapsed time of an event made with timing=False; make it with timing=True")
        return self.inner.event_elapsed_ns(start, end)

    # ---- modules ---------------------------------------------------------------------------------------------------
    def module_load(self, device: int, image: bytes, format: str) -> int:
        self._device(device, "module_load")
        if not isinstance(image, bytes) or not image:
            raise ArgumentError(f"{self.name}: module_load of {type(image).__name__} with {len(image)} bytes; needs bytes")
        return self._new("module", device, self.inner.module_load(device, image, format))

    def module_unload(self, module: int) -> None:
        self._known("module", module)
        with self._lock:
            for key in [k for k, h in self._handles.items() if k[0] == "kernel" and h.parent == module]:
                del self._handles[key]
                self._gone[key] = "the end of its module"
        self._end("module", module)
        self.inner.module_unload(module)

    def get_kernel(self, module: int, name: str) -> int:
        device = self._known("module", module).device
        handle = self.inner.get_kernel(module, name)
        with self._lock:  # the same kernel may be asked for twice
            self._gone.pop(("kernel", handle), None)
            self._handles.setdefault(("kernel", handle), _Handle(device, _where(), parent=module))
        return handle

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        self._device(device, "launch")
        self._stream(stream, device)
        kernel = self._known("kernel", desc.kernel)
        facts = self.props(device)
        if kernel.device != device:
            raise InvalidHandle(f"{self.name}: launch on device {device} of a kernel loaded on {kernel.device}; load it there")
        grid = desc.grid
        if len(grid) != 3 or min(grid) < 1 or any(n > m for n, m in zip(grid, facts.max_grid)) \
                or grid[0] * grid[1] * grid[2] > facts.max_grid_product:
            raise ArgumentError(f"{self.name}: launch with grid {grid}; needs three sizes from 1 to {facts.max_grid}, "
                                f"{facts.max_grid_product} in all")
        if not 0 < desc.threads <= facts.max_threads or not 0 <= desc.shared_bytes <= facts.max_shared_bytes:
            raise ArgumentError(f"{self.name}: launch with {desc.threads} threads and {desc.shared_bytes} shared bytes; the device takes "
                                f"{facts.max_threads} and {facts.max_shared_bytes}")
        for i, (kind, value) in enumerate(desc.args):
            if kind.startswith("*") and value and not facts.host_access:  # 0: a tensor without elements
                self._bounds(device, int(value), 1, f"launch argument {i} points to")
        self.inner.launch(device, desc, stream)

    def kernel_info(self, kernel: int) -> KernelInfo:
        self._known("kernel", kernel)
        return self.inner.kernel_info(kernel)

    # ---- graphs ----------------------------------------------------------------------------------------------------
    def graph_begin(self, stream: int) -> None:
        self._known("stream", stream)
        self.inner.graph_begin(stream)

    def graph_end(self, stream: int, abort: bool = False) -> int:
        device = self._known("stream", stream).device
        handle = self.inner.graph_end(stream, abort)
        return 0 if abort else self._new("graph", device, handle)

    def graph_instantiate(self, graph: int) -> int:
        device = self._known("graph", graph).device
        return self._new("graph", device, self.inner.graph_instantiate(graph))

    def graph_launch(self, executable: int, stream: int) -> None:
        self._stream(stream, self._known("graph", executable).device)
        self.inner.graph_launch(executable, stream)

    def graph_destroy(self, graph: int) -> None:
        self._known("graph", graph)
        self._end("graph", graph)
        self.inner.graph_destroy(graph)

    # ---- communicators -----------------------------------------------------------------------------------------------
    def comm_unique_id(self) -> bytes:
        return self.inner.comm_unique_id()

    def comm_init(self, device: int, world: int, rank: int, unique_id: bytes) -> int:
        self._device(device, "comm_init")
        if world < 1 or not 0 <= rank < world:
            raise ArgumentError(f"{self.name}: comm_init of rank {rank} of {world}; ranks count from 0")
        handle = self._new("comm", device, self.inner.comm_init(device, world, rank, unique_id))
        self._handles["comm", handle].world = world
        return handle

    def comm_destroy(self, comm: int) -> None:
        self._known("comm", comm)
        self._end("comm", comm)
        self.inner.comm_destroy(comm)

    def comm_abort(self, comm: int) -> None:
        self._known("comm", comm)
        self.inner.comm_abort(comm)

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        self._collective("all_reduce", comm, stream, count, dtype, ((send, 1), (recv, 1)), op)
        self.inner.comm_all_reduce(comm, send, recv, count, dtype, op, stream)

    def comm_all_gather(self, comm: int, send: int, recv: int, count: int, dtype: str, stream: int) -> None:
        self._collective("all_gather", comm, stream, count, dtype, ((send, 1), (recv, 0)))
        self.inner.comm_all_gather(comm, send, recv, count, dtype, stream)

    def comm_reduce_scatter(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        self._collective("reduce_scatter", comm, stream, count, dtype, ((send, 0), (recv, 1)), op)
        self.inner.comm_reduce_scatter(comm, send, recv, count, dtype, op, stream)

    def comm_broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        world = self._known("comm", comm).world
        if not 0 <= root < world:
            raise ArgumentError(f"{self.name}: broadcast from rank {root}; there are {world}")
        self._collective("broadcast", comm, stream, count, dtype, ((recv, 1),))  # send is read on the root only
        self.inner.comm_broadcast(comm, send, recv, count, dtype, root, stream)

    def comm_send(self, comm: int, send: int, count: int, dtype: str, peer: int, stream: int) -> None:
        self._collective("send", comm, stream, count, dtype, ((send, 1),), peer=peer)
        self.inner.comm_send(comm, send, count, dtype, peer, stream)

    def comm_recv(self, comm: int, recv: int, count: int, dtype: str, peer: int, stream: int) -> None:
        self._collective("recv", comm, stream, count, dtype, ((recv, 1),), peer=peer)
        self.inner.comm_recv(comm, recv, count, dtype, peer, stream)

    def comm_group_begin(self, comm: int) -> None:
        self._known("comm", comm)
        self.inner.comm_group_begin(comm)

    def comm_group_end(self, comm: int) -> None:
        self._known("comm", comm)
        self.inner.comm_group_end(comm)

    def comm_async_error(self, comm: int) -> None:
        self._known("comm", comm)
        self.inner.comm_async_error(comm)

    def _collective(self, what: str, comm: int, stream: int, count: int, dtype: str, sides: Sequence[tuple[int, int]], op: str = "sum",
                    peer: int = 0) -> None:
        """sides: (address, parts) of ``count`` elements each; 0 parts stand for one a rank."""
        known = self._known("comm", comm)
        self._stream(stream, known.device)
        if dtype not in BY_NAME or count < 0:
            raise ArgumentError(f"{self.name}: {what} of {count} elements of {dtype!r}; needs 0 or more, of a dtype of haian")
        if op not in ("sum", "prod", "max", "min", "avg"):
            raise ArgumentError(f"{self.name}: {what} with {op!r}; needs sum, prod, max, min or avg")
        if not 0 <= peer < known.world:
            raise ArgumentError(f"{self.name}: {what} with rank {peer}; there are {known.world}")
        nbytes = count * BY_NAME[dtype].itemsize
        for address, parts in sides:
            if nbytes:
                self._bounds(known.device, address, nbytes * (parts or known.world), f"{what} of")

    # ---- sharing, profiling, sensors, operators --------------------------------------------------------------------------
    def ipc_export(self, device: int, address: int) -> bytes:
        self._device(device, "ipc_export")
        with self._lock:
            if address not in self._memory[device]:
                raise InvalidHandle(f"{self.name}: ipc_export of {address:#x}: {self._what(device, address)}; give a base address")
        return self.inner.ipc_export(device, address)

    def ipc_open(self, device: int, handle: bytes) -> int:
        self._device(device, "ipc_open")
        address = self.inner.ipc_open(device, handle)
        with self._lock:
            self._shared[device].add(address)
        return address

    def ipc_close(self, device: int, address: int) -> None:
        self._device(device, "ipc_close")
        with self._lock:
            if address not in self._shared[device]:
                raise InvalidHandle(f"{self.name}: ipc_close of {address:#x}, which ipc_open did not give or ipc_close took already")
            self._shared[device].discard(address)
        self.inner.ipc_close(device, address)

    def ipc_event_export(self, event: int) -> bytes:
        self._known("event", event)
        return self.inner.ipc_event_export(event)

    def ipc_event_open(self, device: int, handle: bytes) -> int:
        self._device(device, "ipc_event_open")
        return self._new("event", device, self.inner.ipc_event_open(device, handle))

    def prof_start(self, device: int) -> None:
        self._device(device, "prof_start")
        self.inner.prof_start(device)

    def prof_stop(self, device: int) -> None:
        self._device(device, "prof_stop")
        self.inner.prof_stop(device)

    def prof_drain(self, device: int) -> list[ProfileRecord]:
        self._device(device, "prof_drain")
        return self.inner.prof_drain(device)

    def telemetry(self, device: int) -> Telemetry:
        self._device(device, "telemetry")
        return self.inner.telemetry(device)

    def op_query(self, device: int, name: str, dtypes: Sequence[str], contiguous: bool) -> str:
        self._device(device, "op_query")
        return self.inner.op_query(device, name, dtypes, contiguous)

    def op_run(self, device: int, name: str, inputs: Sequence[object], outputs: Sequence[object], attrs: dict[str, object],
               stream: int = 0) -> None:
        self._device(device, "op_run")
        self._stream(stream, device)
        self.inner.op_run(device, name, inputs, outputs, attrs, stream)

    def kernels(self) -> Sequence[object]:
        return self.inner.kernels()

    # ---- begin -----------------------------------------------------------------------------------------------------
    def init(self) -> None:
        self.inner.init()

    def fini(self) -> None:
        self.inner.fini()

    # ---- the end ---------------------------------------------------------------------------------------------------
    def leaks(self) -> list[Leak]:
        """What is alive now: blocks in use (not cached memory), streams, events, modules."""
        with self._lock:
            found = [Leak("memory", r.base, r.device, r.nbytes, r.where)
                     for ranges in self._memory.values() for outer in ranges
                     for r in (outer.inner if outer.inner is not None else [outer])]
            found += [Leak("pinned", r.base, r.device, r.nbytes, r.where) for ranges in self._pinned.values() for r in ranges]
            found += [Leak(kind, handle, h.device, 0, h.where) for (kind, handle), h in self._handles.items() if kind != "kernel"]
            return found

    def close(self) -> list[Leak]:
        """Waits for all devices and returns what was never freed.  The inner driver stays usable."""
        for device in range(self._count):
            self.inner.sync(device)
        return self.leaks()

    # ---- inside ----------------------------------------------------------------------------------------------------
    def _device(self, device: int, what: str) -> None:
        if not isinstance(device, int) or not 0 <= device < self._count:
            raise ArgumentError(f"{self.name}: {what} on device {device!r}; there are {self._count}, numbered from 0")

    def _bounds(self, device: int, address: int, nbytes: int, what: str) -> None:
        with self._lock:
            r = self._memory[device].at(address)
            if r is not None and r.inner is not None:
                r = r.inner.at(address)
            if r is None:
                if self.props(device).host_access and not self._grave(device, address) and self._memory[device].at(address) is None:
                    return
                if self._shared[device] and not self._grave(device, address):
                    return
                raise InvalidHandle(f"{self.name}: {what} {address:#x}: {self._what(device, address)}")
            if address + nbytes > r.base + r.nbytes:
                raise OutOfRange(f"{self.name}: {what} {nbytes} bytes at {address:#x}, {r.base + r.nbytes - address} left in the allocation "
                                 f"{r.base:#x} of {r.nbytes} made at {r.where}")

    def _grave(self, device: int, address: int) -> tuple[int, str] | None:
        for base, (nbytes, where) in self._graves[device].items():
            if base <= address < base + nbytes:
                return base, where
        return None

    def _bury(self, r: _Range, where: str) -> None:
        graves = self._graves[r.device]
        graves.pop(r.base, None)
        graves[r.base] = (r.nbytes, where)
        self._grave_end[r.device] = max(self._grave_end[r.device], r.base + r.nbytes)
        _forget_oldest(graves)

    def _what(self, device: int, address: int) -> str:
        """What is known about an address that is not what was needed."""
        inside = self._memory[device].at(address)
        if inside is not None and inside.inner is None and inside.base != address:
            return f"an address inside the allocation {inside.base:#x} made at {inside.where}"
        for other, ranges in self._memory.items():
            if other != device and ranges.at(address) is not None:
                return f"memory of device {other}, not {device}"
        grave = self._grave(device, address)
        if grave is not None:
            return f"freed at {grave[1]}"
        return "cached memory that belongs to no tensor" if inside is not None else "never allocated here"

    def _new(self, kind: str, device: int, handle: int) -> int:
        with self._lock:
            if handle == 0 or (kind, handle) in self._handles:
                raise InternalError(f"{self.name}: a new {kind} got handle {handle:#x}, which is {'never alive' if not handle else 'alive'}; "
                                    f"give each its own")
            self._handles[kind, handle] = _Handle(device, _where())
            self._gone.pop((kind, handle), None)
        return handle

    def _end(self, kind: str, handle: int) -> None:
        with self._lock:
            del self._handles[kind, handle]
            self._gone[kind, handle] = _where()
            _forget_oldest(self._gone)

    def _known(self, kind: str, handle: int) -> _Handle:
        found = self._handles.get((kind, handle))
        if found is None:
            gone = self._gone.get((kind, handle))
            raise InvalidHandle(f"{self.name}: {kind} {handle:#x}: {f'destroyed at {gone}' if gone else 'never created'}; use a live {kind}")
        return found

    def _stream(self, stream: int, device: int) -> None:
        if stream and self._known("stream", stream).device != device:
            raise ArgumentError(f"{self.name}: stream {stream:#x} of another device used on {device}; use a stream of device {device}")


def _forget_oldest(table: dict) -> None:
    while len(table) > _REMEMBERED:
        del table[next(iter(table))]


def _where() -> str:
    """The three calls outside hal that led here, innermost first."""
    out: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(out) < 3:  # walking by hand: traceback.extract_stack reads source files, 100 us a call
        code = frame.f_code
        if os.path.dirname(code.co_filename) != _HERE:
            out.append(f"{os.path.basename(code.co_filename)}:{frame.f_lineno} in {code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(out) or "haian"
