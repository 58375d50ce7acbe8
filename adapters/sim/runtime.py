"""SimDriver: the simulated chip behind the HAL's driver contract, with real asynchrony and faults on demand.

Kernels run in ``execute.py`` on the memory of ``memory.py``; queues and handles are ``queues.py``.  Stream 0 runs at
once on the calling thread and waits for no other stream.
"""
from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable

from ...hal.driver import DEVICE_TO_HOST, HOST_TO_DEVICE, PEER, Capabilities, Copy, Driver, Launch
from ...hal.errors import ArgumentError, DeviceLost, NotReady, OutOfMemory, Timeout, Unsupported
from .execute import Kernel, compile_module
from .memory import Heap, move
from .personas import check, with_persona
from .queues import CALL, MARK, WORK, Event, Handles, Mark, Stream

__all__ = ["SimDriver"]

_MAX_SHARED = 64 << 20  # there is no such memory in TTIR; a bound, so that an absurd request is refused

# Parsing costs 1 to 25 ms a kernel and a suite loads the same ones again and again; compiled modules never change.
_compiled = functools.lru_cache(maxsize=512)(compile_module)


class _Module:
    def __init__(self, device: int, kernels: dict[str, Kernel]) -> None:
        self.device, self.kernels = device, kernels


class _Function:
    def __init__(self, module: _Module, kernel: Kernel) -> None:
        self.device, self.module, self.kernel = module.device, module, kernel


class _Device:
    """One simulated device."""

    def __init__(self, index: int, heap: Heap) -> None:
        self.index, self.heap = index, heap
        self.lost = False
        self.leaving: list[tuple[int, list[tuple[Stream, int]]]] = []  # freed addresses and the work they wait for


class SimDriver(Driver):
    """Devices sim:0, sim:1, ...

    Args:
        devices: how many.
        total_bytes: memory of each device; backed by host memory only as it is touched.
        persona: a name of ``personas.PERSONAS``; ``None`` takes HAIAN_SIM_PERSONA, else "default".

    ``fail_next_alloc``, ``lose_device`` and ``slow_copies`` inject faults; nothing in the environment does.
    """

    name = "sim"
    vendor = "haian"
    version = "1.0"

    def __init__(self, devices: int = 2, total_bytes: int = 8 << 30, persona: str | None = None) -> None:
        self.persona = persona or os.environ.get("HAIAN_SIM_PERSONA", "") or "default"
        base = Capabilities(
            model="haian sim0", total_bytes=total_bytes, max_alloc_bytes=total_bytes, align_bytes=256, async_copy=True,
            streams=True, events=True, triton_target=("haian_sim", "sim0", 1), image_format="ttir",
            max_shared_bytes=_MAX_SHARED, bf16_atomics=True,
            extra={"executes": "TTIR semantics, not the binary", "persona": self.persona},
        )  # fmt: skip
        self._capabilities = with_persona(base, self.persona)
        self._devices = [_Device(k, Heap(k, total_bytes, base.align_bytes)) for k in range(devices)]
        self._handles = Handles()
        self._lock = threading.Lock()
        self._streams: set[Stream] = set()
        self._failing_allocs = 0
        self._copy_delay_s = 0.0

    # ---- faults on demand ----------------------------------------------------------------------------------------------
    def fail_next_alloc(self, n: int = 1) -> None:
        """The next ``n`` allocations, on any device, raise OutOfMemory."""
        with self._lock:
            self._failing_allocs = n

    def lose_device(self, device: int) -> None:
        """The device stops: every call but ``reset`` and ``props`` raises DeviceLost, waiting ones included."""
        found = self._ordinal(device)
        found.lost = True
        for stream in self._streams_of(device):
            stream.poke()

    def slow_copies(self, seconds: float) -> None:
        """Every later copy takes at least this long; 0 ends it."""
        self._copy_delay_s = seconds

    # ---- core ------------------------------------------------------------------------------------------------------------
    def device_count(self) -> int:
        return len(self._devices)

    def props(self, device: int) -> Capabilities:
        self._ordinal(device)
        return self._capabilities

    def sync(self, device: int) -> None:
        found = self._device(device)
        for stream in self._streams_of(device):
            stream.wait(lambda: found.lost)
        self._device(device)
        self._reap(found)

    def reset(self, device: int) -> None:
        found = self._ordinal(device)
        with self._lock:
            dropped = {s for s in self._streams if s.device == device}
            self._streams -= dropped
            self._devices[device] = _Device(device, found.heap.renew(device))
        self._handles.remove_if(lambda thing: getattr(thing, "device", -1) == device)
        for stream in dropped:
            stream.drop()

    def _ordinal(self, device: int) -> _Device:
        if not 0 <= device < len(self._devices):
            raise ArgumentError(f"sim: device {device} does not exist; there are {len(self._devices)}")
        return self._devices[device]

    def _device(self, device: int) -> _Device:
        found = self._ordinal(device)
        if found.lost:
            raise DeviceLost(f"sim:{device} is lost; reset it")
        return found

    def _streams_of(self, device: int) -> list[Stream]:
        with self._lock:
            return [s for s in self._streams if s.device == device]

    # ---- memory ----------------------------------------------------------------------------------------------------------
    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        found = self._device(device)
        if nbytes <= 0:
            raise ArgumentError(f"sim: alloc of {nbytes} bytes; needs at least 1")
        if align < 0 or align & (align - 1):
            raise ArgumentError(f"sim: alignment {align} is not a power of two")
        with self._lock:
            failing = self._failing_allocs > 0
            self._failing_allocs -= failing
        if failing:
            raise OutOfMemory(f"sim: {nbytes} bytes refused by fail_next_alloc; try again")
        self._reap(found)
        return found.heap.alloc(nbytes, align)

    def free(self, device: int, address: int) -> None:
        found = self._device(device)
        with self._lock:
            busy = [(s, s.submitted) for s in self._streams if not s.idle]  # peers' streams may write here too
        found.heap.free(address, reserve=bool(busy))
        if busy:
            with self._lock:
                found.leaving.append((address, busy))
        self._reap(found)

    def _reap(self, found: _Device) -> None:
        """Unmap freed blocks once the work queued before has passed."""
        if not found.leaving:
            return
        with self._lock:
            waiting = [(a, busy) for a, busy in found.leaving if any(s.completed < n for s, n in busy)]
            gone = [a for a, busy in found.leaving if all(s.completed >= n for s, n in busy)]
            found.leaving = waiting
        for address in gone:
            found.heap.release(address)

    def mem_info(self, device: int) -> tuple[int, int]:
        heap = self._device(device).heap
        return heap.total_bytes - heap.used_bytes, heap.total_bytes

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        found = self._device(device)
        if desc.rows > 1 and min(desc.dst_pitch, desc.src_pitch) < desc.nbytes:
            raise ArgumentError(f"sim: rows of {desc.nbytes} bytes, pitches {desc.dst_pitch} and {desc.src_pitch}; a pitch "
                                "must hold a row")
        target = self._device(desc.dst_device) if desc.kind == PEER else found
        if desc.nbytes and desc.rows:
            self._enqueue(device, stream, functools.partial(self._copy, found.heap, target.heap, desc))

    def _copy(self, heap: Heap, target: Heap, desc: Copy) -> None:
        if self._copy_delay_s:
            time.sleep(self._copy_delay_s)
        dst, src = desc.dst, desc.src
        if desc.kind != DEVICE_TO_HOST:
            dst = target.host_pointer(dst, (desc.rows - 1) * desc.dst_pitch + desc.nbytes, f"{desc.kind} copy")
        if desc.kind != HOST_TO_DEVICE:
            src = heap.host_pointer(src, (desc.rows - 1) * desc.src_pitch + desc.nbytes, f"{desc.kind} copy")
        move(dst, src, desc.nbytes, desc.rows, desc.dst_pitch, desc.src_pitch)

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        found = self._device(device)
        if len(pattern) not in (1, 2, 4) or nbytes % len(pattern):
            raise ArgumentError(f"sim: fill of {nbytes} bytes with a pattern of {len(pattern)}; the pattern has 1, 2 or 4 "
                                "bytes and divides the length")
        if nbytes:
            self._enqueue(device, stream, functools.partial(found.heap.fill, address, bytes(pattern), nbytes))

    # ---- streams -----------------------------------------------------------------------------------------------------------
    def _enqueue(self, device: int, stream: int, task: Callable[[], None]) -> None:
        if stream == 0:
            task()
            return
        queue = self._stream(stream)
        if queue.device != device:
            raise ArgumentError(f"sim: a stream of device {queue.device} was given work of device {device}; use its own")
        found = self._devices[device]

        def unless_lost() -> None:
            if not found.lost:
                task()

        queue.submit(WORK, unless_lost)

    def _stream(self, handle: int) -> Stream:
        stream = self._handles.get(handle, Stream)
        self._device(stream.device)
        return stream

    def stream_create(self, device: int) -> int:
        self._device(device)
        stream = Stream(device)
        with self._lock:
            self._streams.add(stream)
        return self._handles.add(stream)

    def stream_destroy(self, stream: int) -> None:
        self._stream(stream)
        found = self._handles.remove(stream, Stream)
        found.close()
        found.wait(lambda: self._devices[found.device].lost)
        with self._lock:
            self._streams.discard(found)

    def stream_sync(self, stream: int) -> None:
        if stream == 0:
            return
        found = self._stream(stream)
        device = self._devices[found.device]
        found.wait(lambda: device.lost)
        if device.lost:
            raise DeviceLost(f"sim:{found.device} is lost; reset it")
        error = found.take_error()
        if error is not None:
            raise error

    def stream_query(self, stream: int) -> bool:
        if stream == 0:
            return True
        found = self._stream(stream)
        error = found.take_error()
        if error is not None:
            raise error
        return found.idle

    def stream_wait_event(self, stream: int, event: int) -> None:
        mark = self._handles.get(event, Event).mark  # the record seen now: a later one does not change the wait
        if stream == 0:
            if mark is not None:
                mark.done.wait()
            return
        found = self._stream(stream)
        if mark is not None and not mark.done.is_set():
            found.submit(CALL, mark.done.wait)

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        if stream == 0:
            fn()
        else:
            self._stream(stream).submit(CALL, fn)

    # ---- events --------------------------------------------------------------------------------------------------------------
    def event_create(self, device: int, timing: bool = True) -> int:
        self._device(device)
        return self._handles.add(Event(device, timing))

    def event_destroy(self, event: int) -> None:
        self._handles.remove(event, Event)

    def event_record(self, event: int, stream: int) -> None:
        found = self._handles.get(event, Event)
        self._device(found.device)
        mark = Mark()
        if stream == 0:
            mark.complete()
        else:
            queue = self._stream(stream)
            if queue.device != found.device:
                raise ArgumentError(f"sim: an event of device {found.device} cannot be recorded on a stream of device "
                                    f"{queue.device}; create it there")
            queue.submit(MARK, mark.complete)
        found.mark = mark

    def event_query(self, event: int) -> bool:
        mark = self._handles.get(event, Event).mark
        return mark is None or mark.done.is_set()

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        found = self._handles.get(event, Event)
        self._device(found.device)
        if found.mark is not None and not found.mark.done.wait(None if timeout_ns < 0 else timeout_ns * 1e-9):
            raise Timeout(f"sim: the event did not complete in {timeout_ns} ns; wait again")

    def event_elapsed_ns(self, start: int, end: int) -> int:
        first, second = (self._handles.get(e, Event) for e in (start, end))
        if not (first.timing and second.timing):
            raise ArgumentError("sim: an event was created without timing; create both with timing=True")
        if any(e.mark is None or not e.mark.done.is_set() for e in (first, second)):
            raise NotReady("sim: an event has no completed record; synchronize first")
        return second.mark.time_ns - first.mark.time_ns

    # ---- modules and launch -----------------------------------------------------------------------------------------------------
    def module_load(self, device: int, image: bytes, format: str) -> int:
        self._device(device)
        if format != "ttir":
            raise ArgumentError(f"sim: image format {format!r}; takes 'ttir', compile for ('haian_sim', 'sim0', 1)")
        return self._handles.add(_Module(device, _compiled(bytes(image))))

    def module_unload(self, module: int) -> None:
        found = self._handles.remove(module, _Module)
        self._handles.remove_if(lambda thing: isinstance(thing, _Function) and thing.module is found)

    def get_kernel(self, module: int, name: str) -> int:
        found = self._handles.get(module, _Module)
        self._device(found.device)
        kernel = found.kernels.get(name)
        if kernel is None:
            raise ArgumentError(f"sim: no kernel {name!r} in the module; it has {', '.join(found.kernels)}")
        return self._handles.add(_Function(found, kernel))

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        found = self._device(device)
        function = self._handles.get(desc.kernel, _Function)
        if function.device != device:
            raise ArgumentError(f"sim: a kernel loaded on device {function.device} was launched on {device}; load it there")
        kernel, caps, grid = function.kernel, self._capabilities, tuple(desc.grid)
        if len(grid) != 3 or min(grid) < 1 or any(g > m for g, m in zip(grid, caps.max_grid)):
            raise ArgumentError(f"{kernel.name}: grid {grid}; each axis lies in 1 .. {caps.max_grid}, loop in the kernel")
        if grid[0] * grid[1] * grid[2] > caps.max_grid_product:
            raise ArgumentError(f"{kernel.name}: grid {grid} has more than {caps.max_grid_product} programs; loop in the kernel")
        if not 0 <= desc.threads <= caps.max_threads or not 0 <= desc.shared_bytes <= caps.max_shared_bytes:
            raise ArgumentError(f"{kernel.name}: {desc.threads} threads and {desc.shared_bytes} bytes of shared memory; at "
                                f"most {caps.max_threads} and {caps.max_shared_bytes}")
        if tuple(desc.cluster) != (1, 1, 1):
            raise Unsupported(f"{kernel.name}: cluster {desc.cluster}; sim has none, launch with (1, 1, 1)")
        check(kernel.name, kernel.facts, caps)
        values = kernel.arguments(desc.args)
        self._enqueue(device, stream, functools.partial(kernel.run, found.heap, grid, values))
