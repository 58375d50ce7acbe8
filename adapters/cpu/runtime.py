"""Driver of the host: addresses are host pointers, streams are worker threads started on first use.

Memory, modules and facts are here and beside (modules.py, facts.py); streams, events, graphs and profiles are those of
every driver that lives in this process (hal/host_driver.py).  Host tensors do not come from here but from the native allocator.
"""
from __future__ import annotations

import platform
from bisect import bisect_right, insort
from functools import partial

from haian.hal import host_memory
from haian.hal.driver import (
    DEVICE_TO_DEVICE,
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
from haian.hal.dtype import ALL
from haian.hal.errors import ArgumentError, InvalidHandle, OutOfMemory, Unsupported
from haian.hal.host_driver import HostDriver
from haian.hal.host_queues import CALL, Work

from . import facts
from .comm import HostCommunicators
from .modules import FORMAT, Function, Library

__all__ = ["CpuDriver"]

ALIGN = 64  # cache line, and what the native allocator gives
_KINDS = (HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE)


class _Block:
    """Memory given out.  kind: device, pinned, managed, or opened (another process's)."""

    def __init__(self, kind: str, pages: host_memory.Pages) -> None:
        self.kind, self.pages, self.nbytes = kind, pages, pages.nbytes


class _Module:
    def __init__(self, library: Library) -> None:
        self.device, self.library = 0, library


class _Kernel:
    def __init__(self, module: _Module, function: Function) -> None:
        self.device, self.module, self.function = 0, module, function


class CpuDriver(HostCommunicators, HostDriver):
    """One device: the host."""

    name = "cpu"
    vendor = "host"
    version = "1"
    _work = CALL  # a host function that failed does not stop the copies behind it

    def __init__(self) -> None:
        self._facts: Capabilities | None = None
        self._sensors = facts.Sensors()
        self._begin()

    def _begin(self) -> None:
        super()._begin()
        self._arena = host_memory.Arena()
        self._blocks: dict[int, _Block] = {}  # by base address
        self._bases: list[int] = []  # sorted
        self._live = 0  # bytes given out

    # ---- core ------------------------------------------------------------------------------------------------------
    def device_count(self) -> int:
        return 1

    def props(self, device: int) -> Capabilities:
        self._check(device)
        if self._facts is None:
            total = facts.memory()[1]
            names = tuple(d.name for d in ALL)
            self._facts = Capabilities(
                model=facts.model(), total_bytes=total, max_alloc_bytes=total, align_bytes=ALIGN, host_access=True, async_copy=True,
                streams=True, events=True, dtypes_load=names, dtypes_math=names, multiprocessors=facts.cores(), bf16_atomics=True,
                image_format=FORMAT, max_grid=(2**31 - 1, 65535, 65535), vendor=facts.maker(), arch=platform.machine(), uuid=facts.uuid(),
                driver_version=self.version,
                extra={"machine": platform.machine(), "system": platform.system(), "page_lock": host_memory.can_lock()})
        return self._facts

    def sync(self, device: int) -> None:
        self._check(device)
        for stream in self._streams_of(device):
            stream.wait()

    def reset(self, device: int) -> None:
        self._check(device)
        self._drop(device, wait=True)
        with self._lock:
            self._blocks.clear()
            self._bases.clear()
            self._live = 0

    # ---- memory ----------------------------------------------------------------------------------------------------
    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        self._check(device)
        if align < 0 or align & (align - 1):
            raise ArgumentError(f"cpu: alloc aligned to {align}; needs a power of two, or 0")
        return self._give("device", nbytes, max(align, ALIGN))

    def host_alloc(self, device: int, nbytes: int, managed: bool = False) -> int:
        """Pages, locked where the system allows it; kernels of this device may use any memory."""
        self._check(device)
        address = self._give("managed" if managed else "pinned", nbytes, host_memory.PAGE)
        if not managed:
            host_memory.lock(address, nbytes)
        return address

    def _give(self, kind: str, nbytes: int, align: int) -> int:
        """Whole pages, so that any of it can be shared with another process."""
        if nbytes <= 0:
            raise ArgumentError(f"cpu: alloc of {nbytes} bytes; needs at least 1")
        limit = self.props(0).max_alloc_bytes
        with self._lock:
            if self._live + nbytes > limit:
                raise OutOfMemory(f"cpu: {nbytes} bytes asked for beside {self._live}; the machine has {limit}; free some or use smaller tensors")
            self._live += nbytes
        try:
            pages = self._arena.pages(nbytes, align)
        except (MemoryError, OSError):
            with self._lock:
                self._live -= nbytes
            raise OutOfMemory(f"cpu: {nbytes} bytes asked for; the system has none left; free tensors or use smaller ones") from None
        self._keep(kind, pages)
        return pages.address

    def _keep(self, kind: str, pages: host_memory.Pages) -> None:
        with self._lock:
            self._blocks[pages.address] = _Block(kind, pages)
            insort(self._bases, pages.address)

    def free(self, device: int, address: int) -> None:
        """Queued work that uses the bytes keeps them alive until it has run."""
        self._check(device)
        self._forget(address, "free", ("device", "pinned", "managed"))

    def _forget(self, address: int, what: str, kinds: tuple[str, ...]) -> None:
        with self._lock:
            block = self._blocks.get(address)
            if block is None or block.kind not in kinds:
                raise InvalidHandle(f"cpu: {what} of {address:#x}, which is not the base of something alive; {what} each once")
            del self._blocks[address]
            del self._bases[bisect_right(self._bases, address) - 1]
            self._live -= block.nbytes if block.kind != "opened" else 0

    def _at(self, address: int) -> _Block | None:
        """The block around an address of ours; work that holds it keeps the bytes alive.  None for addresses of others."""
        with self._lock:
            i = bisect_right(self._bases, address) - 1
            if i >= 0:
                block = self._blocks[self._bases[i]]
                if address < self._bases[i] + block.nbytes:
                    return block
        return None

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        self._check(device)
        if desc.kind == PEER:
            raise Unsupported("cpu: no peer copies, there is one device; copy d2d")
        if desc.kind not in _KINDS:
            raise ArgumentError(f"cpu: copy kind {desc.kind!r}; one of {', '.join(_KINDS)}")
        if desc.nbytes < 0 or desc.rows < 0:
            raise ArgumentError(f"cpu: copy of {desc.rows} rows of {desc.nbytes} bytes; needs 0 or more")
        if desc.rows > 1 and min(desc.dst_pitch, desc.src_pitch) < desc.nbytes:
            raise ArgumentError(f"cpu: rows of {desc.nbytes} bytes, pitches {desc.dst_pitch} and {desc.src_pitch}; a pitch must hold a row")
        run = partial(_move, desc, (self._at(desc.dst), self._at(desc.src)))
        self._do(0, stream, Work(self._work, run, "copy", desc.kind, desc.nbytes * desc.rows))

    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        self._check(device)
        if len(pattern) not in (1, 2, 4) or nbytes < 0 or nbytes % len(pattern):
            raise ArgumentError(f"cpu: fill of {nbytes} bytes with a pattern of {len(pattern)}; needs 1, 2 or 4, and whole patterns")
        run = partial(_fill, address, bytes(pattern), nbytes, self._at(address))
        self._do(0, stream, Work(self._work, run, "fill", f"fill{len(pattern)}", nbytes))

    def mem_info(self, device: int) -> tuple[int, int]:
        """The machine's, which other processes use too."""
        self._check(device)
        return facts.memory()

    def ptr_info(self, device: int, address: int) -> PointerInfo:
        self._check(device)
        block = self._at(address)
        if block is None:
            return self._registered_info(address)
        return PointerInfo("device" if block.kind == "opened" else block.kind, 0, block.pages.address, block.nbytes)

    def pool_trim(self, device: int, keep_bytes: int = 0) -> int:
        """Nothing is cached: freed pages go back at once."""
        self._check(device)
        return 0

    # ---- sharing with other processes ------------------------------------------------------------------------------
    def ipc_export(self, device: int, address: int) -> bytes:
        """Names process, file and range; good as long as the memory is alive here."""
        self._check(device)
        block = self._blocks.get(address)
        if block is None or block.kind == "opened":
            raise InvalidHandle(f"cpu: ipc_export of {address:#x}, which is not the base of an allocation of this process")
        return block.pages.export(self.name)

    def ipc_open(self, device: int, handle: bytes) -> int:
        self._check(device)
        pages = host_memory.open_shared(bytes(handle), self.name)
        self._keep("opened", pages)
        return pages.address

    def ipc_close(self, device: int, address: int) -> None:
        self._check(device)
        self._forget(address, "ipc_close", ("opened",))

    # ---- modules ---------------------------------------------------------------------------------------------------
    def module_load(self, device: int, image: bytes, format: str) -> int:
        self._check(device)
        if format != FORMAT:
            raise ArgumentError(f"cpu: image format {format!r}; takes {FORMAT!r}, the bytes of a shared object")
        return self._handles.add(_Module(Library(bytes(image))))

    def module_unload(self, module: int) -> None:
        """Queued launches still run; the object is closed after the last."""
        found = self._handles.remove(module, _Module)
        self._handles.remove_if(lambda thing: isinstance(thing, _Kernel) and thing.module is found)

    def get_kernel(self, module: int, name: str) -> int:
        found = self._handles.get(module, _Module)
        return self._handles.add(_Kernel(found, found.library.function(name)))

    def kernel_info(self, kernel: int) -> KernelInfo:
        found = self._handles.get(kernel, _Kernel).function
        facts_ = self.props(0)
        return KernelInfo(found.name, found.args, facts_.max_threads, facts_.max_shared_bytes)

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        """``threads`` is checked and otherwise without meaning: a program is one call of the function."""
        self._check(device)
        function = self._handles.get(desc.kernel, _Kernel).function
        caps, grid = self.props(device), tuple(desc.grid)
        if len(grid) != 3 or min(grid) < 1 or any(g > m for g, m in zip(grid, caps.max_grid)):
            raise ArgumentError(f"cpu: {function.name}: grid {grid}; each axis lies in 1 .. {caps.max_grid}, loop in the kernel")
        if not 1 <= desc.threads <= caps.max_threads or not 0 <= desc.shared_bytes <= caps.max_shared_bytes:
            raise ArgumentError(f"cpu: {function.name}: {desc.threads} threads and {desc.shared_bytes} bytes of shared memory; takes 1 to "
                                f"{caps.max_threads} and at most {caps.max_shared_bytes}")
        if tuple(desc.cluster) != (1, 1, 1):
            raise Unsupported(f"cpu: {function.name}: cluster {desc.cluster}; there are none, launch with (1, 1, 1)")
        values = function.pack(desc.args)
        kept = [self._at(int(v)) for t, v in desc.args if t.startswith("*")]
        self._do(0, stream, Work(self._work, partial(_launch, function, grid, values, kept), "launch", function.name))

    # ---- sensors ---------------------------------------------------------------------------------------------------
    def telemetry(self, device: int) -> Telemetry:
        """Of the whole machine; power needs rights that a user does not have."""
        self._check(device)
        return self._sensors.sample()


# The last argument of these: owners of the memory, alive as long as the task that holds them.
def _move(desc: Copy, _kept: object) -> None:
    host_memory.move(desc.dst, desc.src, desc.nbytes, desc.rows, desc.dst_pitch, desc.src_pitch)


def _fill(address: int, pattern: bytes, nbytes: int, _kept: object) -> None:
    host_memory.fill(address, pattern, nbytes)


def _launch(function: Function, grid: tuple[int, int, int], values: list, _kept: object) -> None:
    function.run(grid, values)
