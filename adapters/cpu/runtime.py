"""Driver of the host: addresses are host pointers, streams are worker threads started on first use.

Also the complete, plain example of a driver with everything but modules: the host's kernels are C functions that the
operators call directly (kernels/cpu).  Host tensors do not come from here but from the native allocator.
"""
from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
import weakref
from bisect import bisect_right, insort
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from haian.hal.driver import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, PEER, Capabilities, Copy, Driver
from haian.hal.dtype import ALL
from haian.hal.errors import (
    ArgumentError,
    Busy,
    HaianError,
    InternalError,
    InvalidHandle,
    NotReady,
    OutOfMemory,
    Timeout,
)

__all__ = ["CpuDriver"]

ALIGN = 64  # cache line, and what the native allocator gives
_KINDS = (HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, PEER)


class _Table:
    """Objects by handle: generation << 32 | index, so that a stale handle never finds a newer object."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._rows: list[tuple[int, object]] = [(0, None)]  # (generation, object); index 0 is never alive
        self._spare: list[int] = []

    def add(self, value: object) -> int:
        with self._lock:
            index = self._spare.pop() if self._spare else len(self._rows)
            if index == len(self._rows):
                self._rows.append((0, None))
            generation = self._rows[index][0] + 1
            self._rows[index] = (generation, value)
            return generation << 32 | index

    def get(self, handle: int):
        index = handle & 0xFFFFFFFF
        generation, value = self._rows[index] if 0 < index < len(self._rows) else (0, None)
        if value is None or generation != handle >> 32:
            raise InvalidHandle(f"cpu: {self._what} {handle:#x} is not alive; create it first, or drop this reference")
        return value

    def pop(self, handle: int):
        with self._lock:
            value = self.get(handle)
            index = handle & 0xFFFFFFFF
            self._rows[index] = (self._rows[index][0], None)
            self._spare.append(index)
            return value

    def values(self) -> list:
        with self._lock:
            return [v for _, v in self._rows if v is not None]

    def clear(self) -> list:
        with self._lock:
            gone = [v for _, v in self._rows if v is not None]
            self._spare = list(range(1, len(self._rows)))
            self._rows = [(g, None) for g, _ in self._rows]
            return gone


class _Stream:
    """A queue and, from its first task on, a thread that empties it in order."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._change = threading.Condition()
        self._pending = 0  # queued and running
        self._error: HaianError | None = None
        self._thread: threading.Thread | None = None

    def push(self, task: Callable[[], None]) -> None:
        with self._change:
            self._pending += 1
            self._tasks.put(task)  # inside, so that the count and the order of two pushing threads agree
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="haian-cpu-stream", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            error: HaianError | None = None
            try:
                task()
            except HaianError as e:
                error = e
            except Exception as e:  # noqa: BLE001 - a user's host function: it must not kill the stream
                error = InternalError(f"cpu: a host function raised {type(e).__name__}: {e}")
                error.__cause__ = e
            del task  # what it kept alive goes before the stream counts as idle
            with self._change:
                self._error = self._error or error
                self._pending -= 1
                if not self._pending:
                    self._change.notify_all()

    def drain(self) -> None:
        if threading.current_thread() is self._thread:
            raise Busy("cpu: a host function waits for its own stream; wait from another thread")
        with self._change:
            self._change.wait_for(lambda: not self._pending)

    def deliver(self) -> None:
        """Raises the sticky error, once."""
        with self._change:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def idle(self) -> bool:
        return not self._pending

    def end(self) -> None:
        self._tasks.put(None)


class _Record:
    """One recording of an event; waits hold the record they saw, so a later recording does not move them."""

    __slots__ = ("passed", "ns")

    def __init__(self) -> None:
        self.passed = threading.Event()
        self.ns = 0

    def mark(self) -> None:
        self.ns = time.monotonic_ns()
        self.passed.set()

    def wait(self) -> None:
        self.passed.wait()


class _Event:
    def __init__(self, timing: bool) -> None:
        self.timing = timing
        self.record: _Record | None = None


class CpuDriver(Driver):
    """One device: the host."""

    name = "cpu"
    vendor = "host"
    version = "1"

    def __init__(self) -> None:
        self._facts: Capabilities | None = None
        self._begin()
        _drivers.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._blocks: dict[int, object] = {}  # base address: the array that owns the memory
        self._bases: list[tuple[int, int]] = []  # sorted (base, bytes)
        self._streams = _Table("stream")
        self._events = _Table("event")

    # ---- core ------------------------------------------------------------------------------------------------------
    def device_count(self) -> int:
        return 1

    def props(self, device: int) -> Capabilities:
        self._check(device)
        if self._facts is None:
            total = _memory()[1]
            names = tuple(d.name for d in ALL)
            self._facts = Capabilities(
                model=_model(), total_bytes=total, max_alloc_bytes=total, align_bytes=ALIGN, host_access=True, async_copy=True,
                streams=True, events=True, dtypes_load=names, dtypes_math=names, multiprocessors=_cores(),
                bf16_atomics=True, extra={"machine": platform.machine(), "system": platform.system()})
        return self._facts

    def sync(self, device: int) -> None:
        self._check(device)
        for stream in self._streams.values():
            stream.drain()

    def reset(self, device: int) -> None:
        self._check(device)
        for stream in self._streams.clear():
            stream.drain()
            stream.end()
        self._events.clear()
        with self._lock:
            self._blocks.clear()
            self._bases.clear()

    # ---- memory ----------------------------------------------------------------------------------------------------
    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        self._check(device)
        if nbytes <= 0 or align < 0 or align & (align - 1):
            raise ArgumentError(f"cpu: alloc of {nbytes} bytes aligned to {align}; needs at least 1 byte and a power of two")
        limit = self.props(device).max_alloc_bytes
        if nbytes > limit:
            raise OutOfMemory(f"cpu: {nbytes} bytes asked for; the machine has {limit}; use smaller tensors")
        step = max(align, ALIGN)
        try:
            block = np.empty(nbytes + step, np.uint8)
        except MemoryError:
            raise OutOfMemory(f"cpu: {nbytes} bytes asked for; the system has none left; free tensors or use smaller ones") from None
        base = block.__array_interface__["data"][0]
        base += -base % step
        with self._lock:
            self._blocks[base] = block
            insort(self._bases, (base, nbytes))
        return base

    def free(self, device: int, address: int) -> None:
        """Queued work that uses the bytes keeps them alive until it has run."""
        self._check(device)
        with self._lock:
            if address not in self._blocks:
                raise InvalidHandle(f"cpu: free of {address:#x}, which alloc did not give or free took already")
            del self._blocks[address]
            del self._bases[bisect_right(self._bases, (address,))]

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        self._check(device)
        if desc.kind not in _KINDS:
            raise ArgumentError(f"cpu: copy kind {desc.kind!r}; one of {', '.join(_KINDS)}")
        kept = (self._owner(desc.dst), self._owner(desc.src))
        self._do(stream, partial(_move, desc, kept))

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        self._check(device)
        if len(pattern) not in (1, 2, 4) or nbytes % len(pattern):
            raise ArgumentError(f"cpu: fill of {nbytes} bytes with a pattern of {len(pattern)}; needs 1, 2 or 4, and whole patterns")
        kept = self._owner(address)
        self._do(stream, partial(_fill, address, pattern, nbytes, kept))

    def mem_info(self, device: int) -> tuple[int, int]:
        self._check(device)
        return _memory()

    # ---- streams ---------------------------------------------------------------------------------------------------
    def stream_create(self, device: int) -> int:
        self._check(device)
        return self._streams.add(_Stream())

    def stream_destroy(self, stream: int) -> None:
        gone = self._streams.pop(stream)
        gone.drain()
        gone.end()

    def stream_sync(self, stream: int) -> None:
        found = self._streams.get(stream)
        found.drain()
        found.deliver()

    def stream_query(self, stream: int) -> bool:
        found = self._streams.get(stream)
        found.deliver()
        return found.idle()

    def stream_wait_event(self, stream: int, event: int) -> None:
        record = self._events.get(event).record
        if record is not None:
            self._do(stream, record.wait)

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        self._do(stream, fn)

    # ---- events ----------------------------------------------------------------------------------------------------
    def event_create(self, device: int, timing: bool = True) -> int:
        self._check(device)
        return self._events.add(_Event(timing))

    def event_destroy(self, event: int) -> None:
        self._events.pop(event)

    def event_record(self, event: int, stream: int) -> None:
        found = self._events.get(event)
        record = _Record()
        self._do(stream, record.mark)
        found.record = record

    def event_query(self, event: int) -> bool:
        record = self._events.get(event).record
        return record is None or record.passed.is_set()

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        record = self._events.get(event).record
        if record is not None and not record.passed.wait(None if timeout_ns < 0 else timeout_ns / 1e9):
            raise Timeout(f"cpu: event not passed after {timeout_ns / 1e9:g} s; wait longer or look at its stream")

    def event_elapsed_ns(self, start: int, end: int) -> int:
        a, b = self._events.get(start), self._events.get(end)
        if not (a.timing and b.timing):
            raise ArgumentError("cpu: elapsed time of an event made with timing=False; make it with timing=True")
        if not all(e.record is not None and e.record.passed.is_set() for e in (a, b)):
            raise NotReady("cpu: elapsed time of an event that has not passed; wait for it first")
        return b.record.ns - a.record.ns

    # ---- inside ----------------------------------------------------------------------------------------------------
    @staticmethod
    def _check(device: int) -> None:
        if device != 0:
            raise ArgumentError(f"cpu: device {device}; there is only 0")

    def _do(self, stream: int, task: Callable[[], None]) -> None:
        """Runs a task in stream order; stream 0 is synchronous and ordered with no other."""
        if stream:
            self._streams.get(stream).push(task)
        else:
            task()

    def _owner(self, address: int) -> object:
        """What keeps the bytes at an address of ours alive; None for addresses of others."""
        with self._lock:
            i = bisect_right(self._bases, (address, 1 << 64)) - 1
            if i >= 0 and address < sum(self._bases[i]):
                return self._blocks[self._bases[i][0]]
        return None


class _Bytes:
    """Shows memory to NumPy as rows of bytes."""

    __slots__ = ("__array_interface__",)

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": shape, "strides": strides, "typestr": "|u1", "version": 3}


def _move(desc: Copy, _kept: object) -> None:
    """_kept: owners of the memory, alive as long as the task that holds these arguments."""
    if desc.nbytes == 0 or desc.rows == 0:
        return
    if desc.rows == 1:
        ctypes.memmove(desc.dst, desc.src, desc.nbytes)
        return
    shape = (desc.rows, desc.nbytes)
    dst = np.asarray(_Bytes(desc.dst, shape, (desc.dst_pitch, 1)))
    src = np.asarray(_Bytes(desc.src, shape, (desc.src_pitch, 1)))
    np.copyto(dst, src)  # through a temporary where they overlap


def _fill(address: int, pattern: bytes, nbytes: int, _kept: object) -> None:
    if len(set(pattern)) == 1:
        ctypes.memset(address, pattern[0], nbytes)
    elif nbytes:
        shape = (nbytes // len(pattern), len(pattern))
        np.asarray(_Bytes(address, shape, (len(pattern), 1)))[:] = np.frombuffer(pattern, np.uint8)


def _model() -> str:
    """The processor's marketing name; keys tuning tables."""
    fields = ("model name", "Model Name", "cpu model", "Hardware", "uarch")  # x86; LoongArch; MIPS; Arm; RISC-V
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for field in fields:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == field and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown processor"


def _memory() -> tuple[int, int]:
    """(free, total) bytes: the machine's, or the control group's where that is less."""
    free = total = 0
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == "MemTotal":
                total = int(value.split()[0]) * 1024
            elif key == "MemAvailable":
                free = int(value.split()[0]) * 1024
    except OSError:  # no /proc: not Linux
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = total
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no group, or "max"
        return free, total
    return min(free, max(limit - used, 0)), min(total, limit)


def _cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# A child of fork has none of the worker threads: its driver starts anew, so old handles are refused instead of hanging.
_drivers: weakref.WeakSet[CpuDriver] = weakref.WeakSet()


def _after_fork() -> None:
    for driver in list(_drivers):
        driver._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
