"""SimDriver: the simulated chip behind the HAL's driver contract, with real asynchrony and faults on demand.

Kernels run in ``execute.py`` on the memory of ``memory.py``; streams, events, graphs and profiles are those of every driver
that lives in this process (hal/host_driver.py).  Stream 0 runs at once on the calling thread and waits for no other stream.
"""
from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...hal import host_memory
from ...hal.driver import (
    DEVICE_TO_HOST,
    HOST_TO_DEVICE,
    PEER,
    Capabilities,
    Copy,
    KernelInfo,
    Launch,
    PointerInfo,
    Telemetry,
)
from ...hal.errors import ArgumentError, DeviceLost, OutOfMemory, Unsupported
from ...hal.host_driver import HostDriver
from ...hal.host_queues import WORK, Stream, Work
from . import library
from .execute import Kernel, compile_module
from .memory import Heap
from .personas import check, with_persona
from .to_c.native import Native

__all__ = ["SimDriver"]

_MAX_SHARED = 64 << 20  # there is no such memory in TTIR; a bound, so that an absurd request is refused

# Parsing costs 1 to 25 ms a kernel and a suite loads the same ones again and again; compiled modules never change.
@functools.lru_cache(maxsize=512)
def _compiled(image: bytes) -> dict[str, tuple[Kernel, Native]]:
    kernels = compile_module(image)
    return {name: (kernel, Native(image, name, k)) for k, (name, kernel) in enumerate(kernels.items())}


class _Module:
    def __init__(self, device: int, kernels: dict[str, tuple[Kernel, Native]]) -> None:
        self.device, self.kernels = device, kernels


class _Function:
    def __init__(self, module: _Module, kernel: Kernel, native: Native) -> None:
        self.device, self.module, self.kernel, self.native = module.device, module, kernel, native


class _Device:
    """One simulated device."""

    def __init__(self, index: int, heap: Heap) -> None:
        self.index, self.heap = index, heap
        self.lost = False
        self.leaving: list[tuple[int, list[tuple[Stream, int]]]] = []  # freed addresses and the work they wait for


class SimDriver(HostDriver):
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
            max_shared_bytes=_MAX_SHARED, bf16_atomics=True, vendor=self.vendor, arch="sim0", driver_version=self.version,
            warp_size=1, peer=True, cross_device_events=True,
            extra={"executes": "TTIR semantics, not the binary", "persona": self.persona, "telemetry": "simulated",
                   "page_lock": host_memory.can_lock()},
        )  # fmt: skip
        facts = with_persona(base, self.persona)
        # no two devices share one, and they stay the same from run to run
        self._capabilities = [replace(facts, uuid=f"SIM-{self.persona}-{k:04d}") for k in range(devices)]
        self._devices = [_Device(k, Heap(k, total_bytes, base.align_bytes)) for k in range(devices)]
        self._begin()

    def _begin(self) -> None:
        super()._begin()
        self._devices = [_Device(d.index, d.heap.renew(d.index)) for d in self._devices]
        self._launches = {"c": 0, "numpy": 0}
        self._refused: dict[str, str] = {}
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
        return self._capabilities[device]

    def sync(self, device: int) -> None:
        found = self._device(device)
        for stream in self._streams_of(device):
            stream.wait(lambda: found.lost)
        self._device(device)
        self._reap(found)

    def reset(self, device: int) -> None:
        found = self._ordinal(device)
        self._devices[device] = _Device(device, found.heap.renew(device))
        self._drop(device, wait=False)

    def _ordinal(self, device: int) -> _Device:
        if not 0 <= device < len(self._devices):
            raise ArgumentError(f"sim: device {device} does not exist; there are {len(self._devices)}")
        return self._devices[device]

    def _device(self, device: int) -> _Device:
        found = self._ordinal(device)
        if found.lost:
            raise DeviceLost(f"sim:{device} is lost; reset it")
        return found

    def _check(self, device: int) -> None:
        self._device(device)

    def _lost(self, device: int) -> Callable[[], bool]:
        found = self._devices[device]
        return lambda: found.lost

    # ---- memory ----------------------------------------------------------------------------------------------------------
    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        if align < 0 or align & (align - 1):
            raise ArgumentError(f"sim: alignment {align} is not a power of two")
        return self._room(device, nbytes).alloc(nbytes, align)

    def host_alloc(self, device: int, nbytes: int, managed: bool = False) -> int:
        """At a host address; pinned memory is not for kernels, as a chip without such windows has it."""
        address = self._room(device, nbytes).host_alloc(nbytes, managed)
        host_memory.lock(address, nbytes)
        return address

    def _room(self, device: int, nbytes: int) -> Heap:
        found = self._device(device)
        if nbytes <= 0:
            raise ArgumentError(f"sim: alloc of {nbytes} bytes; needs at least 1")
        with self._lock:
            failing = self._failing_allocs > 0
            self._failing_allocs -= failing
        if failing:
            raise OutOfMemory(f"sim: {nbytes} bytes refused by fail_next_alloc; try again")
        self._reap(found)
        return found.heap

    def free(self, device: int, address: int) -> None:
        found = self._device(device)
        self._leave(found, address, found.heap.free)

    def _leave(self, found: _Device, address: int, end: Callable[..., None]) -> None:
        """Ends a block now, or when the work queued so far has passed."""
        with self._lock:
            busy = [(s, s.submitted) for s in self._streams if not s.idle]  # peers' streams may write here too
        end(address, reserve=bool(busy))
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

    def ptr_info(self, device: int, address: int) -> PointerInfo:
        found = self._device(device).heap.info(device, address)
        return self._registered_info(address) if found.kind == "unknown" else found

    def pool_trim(self, device: int, keep_bytes: int = 0) -> int:
        """Nothing is cached: what is unmapped goes back to the host at once."""
        self._reap(self._device(device))
        return 0

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        found = self._device(device)
        if desc.nbytes < 0 or desc.rows < 0:
            raise ArgumentError(f"sim: copy of {desc.rows} rows of {desc.nbytes} bytes; needs 0 or more")
        if desc.rows > 1 and min(desc.dst_pitch, desc.src_pitch) < desc.nbytes:
            raise ArgumentError(f"sim: rows of {desc.nbytes} bytes, pitches {desc.dst_pitch} and {desc.src_pitch}; a pitch "
                                "must hold a row")
        target = self._device(desc.dst_device) if desc.kind == PEER else found
        if desc.nbytes and desc.rows:
            run = functools.partial(self._copy, found.heap, target.heap, desc)
            self._do(device, stream, Work(WORK, run, "copy", desc.kind, desc.nbytes * desc.rows))

    def _copy(self, heap: Heap, target: Heap, desc: Copy) -> None:
        if self._copy_delay_s:
            time.sleep(self._copy_delay_s)
        dst, src = desc.dst, desc.src
        held = []  # a free on another thread must not unmap what is being copied
        if desc.kind != DEVICE_TO_HOST:
            dst, block = target.pin(dst, (desc.rows - 1) * desc.dst_pitch + desc.nbytes, f"{desc.kind} copy")
            held.append(block)
        if desc.kind != HOST_TO_DEVICE:
            src, block = heap.pin(src, (desc.rows - 1) * desc.src_pitch + desc.nbytes, f"{desc.kind} copy")
            held.append(block)
        host_memory.move(dst, src, desc.nbytes, desc.rows, desc.dst_pitch, desc.src_pitch)
        held.clear()

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        found = self._device(device)
        if len(pattern) not in (1, 2, 4) or nbytes < 0 or nbytes % len(pattern):
            raise ArgumentError(f"sim: fill of {nbytes} bytes with a pattern of {len(pattern)}; the pattern has 1, 2 or 4 "
                                "bytes and divides the length")
        if nbytes:
            run = functools.partial(found.heap.fill, address, bytes(pattern), nbytes)
            self._do(device, stream, Work(WORK, run, "fill", f"fill{len(pattern)}", nbytes))

    # ---- sharing with other processes --------------------------------------------------------------------------------------
    def ipc_export(self, device: int, address: int) -> bytes:
        """For a SimDriver in another process; good as long as the memory is alive here."""
        return self._device(device).heap.base(address, "export", "device", "managed", "pinned").pages.export("sim")

    def ipc_open(self, device: int, handle: bytes) -> int:
        return self._device(device).heap.open(host_memory.open_shared(bytes(handle), "sim"))

    def ipc_close(self, device: int, address: int) -> None:
        found = self._device(device)
        self._leave(found, address, found.heap.close)

    # ---- modules and launch -----------------------------------------------------------------------------------------------------
    def module_load(self, device: int, image: bytes, format: str) -> int:
        self._device(device)
        if format != "ttir":
            raise ArgumentError(f"sim: image format {format!r}; takes 'ttir', compile for ('haian_sim', 'sim0', 1)")
        return self._handles.add(_Module(device, _compiled(bytes(image))))

    def module_unload(self, module: int) -> None:
        """Queued launches still run."""
        found = self._handles.remove(module, _Module)
        self._handles.remove_if(lambda thing: isinstance(thing, _Function) and thing.module is found)

    def get_kernel(self, module: int, name: str) -> int:
        found = self._handles.get(module, _Module)
        self._device(found.device)
        kernel = found.kernels.get(name)
        if kernel is None:
            raise ArgumentError(f"sim: no kernel {name!r} in the module; it has {', '.join(found.kernels)}")
        return self._handles.add(_Function(found, *kernel))

    def kernel_info(self, kernel: int) -> KernelInfo:
        """Arguments as the TTIR declares them; an integer's sign is not in it.  There are no registers to count."""
        found = self._handles.get(kernel, _Function)
        caps = self._capabilities[found.device]
        return KernelInfo(found.kernel.name, found.kernel.signature, caps.max_threads)

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        found = self._device(device)
        function = self._handles.get(desc.kernel, _Function)
        if function.device != device:
            raise ArgumentError(f"sim: a kernel loaded on device {function.device} was launched on {device}; load it there")
        kernel, caps, grid = function.kernel, self._capabilities[device], tuple(desc.grid)
        if len(grid) != 3 or min(grid) < 1 or any(g > m for g, m in zip(grid, caps.max_grid)):
            raise ArgumentError(f"{kernel.name}: grid {grid}; each axis lies in 1 .. {caps.max_grid}, loop in the kernel")
        if grid[0] * grid[1] * grid[2] > caps.max_grid_product:
            raise ArgumentError(f"{kernel.name}: grid {grid} has more than {caps.max_grid_product} programs; loop in the kernel")
        if not 1 <= desc.threads <= caps.max_threads or not 0 <= desc.shared_bytes <= caps.max_shared_bytes:
            raise ArgumentError(f"{kernel.name}: {desc.threads} threads and {desc.shared_bytes} bytes of shared memory; 1 to "
                                f"{caps.max_threads} and at most {caps.max_shared_bytes}")
        if tuple(desc.cluster) != (1, 1, 1):
            raise Unsupported(f"{kernel.name}: cluster {desc.cluster}; sim has none, launch with (1, 1, 1)")
        check(kernel.name, kernel.facts, caps)
        values = kernel.arguments(desc.args)
        run = functools.partial(self._execute, function, found.heap, grid, values)
        self._do(device, stream, Work(WORK, run, "launch", kernel.name))

    def _execute(self, function: _Function, heap: Heap, grid: tuple[int, int, int], values: list[np.ndarray]) -> None:
        native = function.native
        in_c = native.run(function.kernel, heap, grid, values)
        with self._lock:
            self._launches["c" if in_c else "numpy"] += 1
            if native.refusal and not in_c:
                self._refused[native.name] = native.refusal

    @property
    def compiled(self) -> dict[str, Any]:
        """Launches by executor (``c``, ``numpy``) and ``refused``: kernel -> why it has no C form or could not be compiled."""
        with self._lock:
            return {**self._launches, "refused": dict(self._refused)}

    # ---- sensors ------------------------------------------------------------------------------------------------------------------
    def telemetry(self, device: int) -> Telemetry:
        """Simulated but for the memory: a chip of 1000 MHz that idles at 40 C and 20 W and works at 70 C and 200 W."""
        heap = self._device(device).heap
        busy = any(not s.idle for s in self._streams_of(device))
        return Telemetry(100.0 if busy else 0.0, 70.0 if busy else 40.0, 200.0 if busy else 20.0, 1000.0, float(heap.used_bytes))

    # ---- simblas: operators of the chip's own library -------------------------------------------------------------------------------
    def op_query(self, device: int, name: str, dtypes: Sequence[str], contiguous: bool) -> str:
        self._device(device)
        return library.query(self._capabilities[device], name, dtypes)

    def op_run(self, device: int, name: str, inputs: Sequence[object], outputs: Sequence[object], attrs: dict[str, object],
               stream: int = 0) -> None:
        found = self._device(device)
        if not self.op_query(device, name, [t.dtype.name for t in inputs if t is not None], True):  # type: ignore[attr-defined]
            raise Unsupported(f"sim: simblas has no {name} for these dtypes; op_query says what it has")
        run = library.prepare(found.heap, name, inputs, outputs, attrs)
        self._do(device, stream, Work(WORK, run, "launch", f"simblas_{name}"))

    def kernels(self) -> Sequence[object]:
        """simblas in front of haian's kernels where HAIAN_SIM_LIBRARY=1; otherwise shown and refused."""
        return library.candidates()
