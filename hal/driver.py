"""The page a vendor implements: one class with these method names, or a .so that c_driver.py wraps in one.

Ten methods are required and come first; every optional one says what the host does without it.
Handles and addresses are plain integers, 0 is never alive, the device index is explicit in every call.
Drivers do not validate: ``validate.py`` does, above them.  They raise the classes of ``errors.py``.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .errors import Unsupported

__all__ = ["Capabilities", "Copy", "Driver", "Launch", "HOST_TO_DEVICE", "DEVICE_TO_HOST", "DEVICE_TO_DEVICE", "PEER"]

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, PEER = "h2d", "d2h", "d2d", "peer"


@dataclass(frozen=True)
class Capabilities:
    """Facts about one device, asked once.  A claimed capability that fails its check fails the suite."""

    model: str  # marketing name, also the key of tuning tables
    total_bytes: int
    max_alloc_bytes: int
    align_bytes: int = 256  # power of two; every allocation starts on it
    host_access: bool = False  # the host may dereference device addresses
    async_copy: bool = False  # copies return before they happen
    streams: bool = False
    events: bool = False
    event_unit_ns: int = 1  # resolution of event times
    dtypes_load: tuple[str, ...] = ()  # dtypes kernels may load and store
    dtypes_math: tuple[str, ...] = ()  # dtypes kernels may compute in
    triton_target: tuple[str, object, int] | None = None  # (backend, arch, warp size) for triton's GPUTarget
    image_format: str = ""  # what module_load takes: "ttir", "cubin", "hsaco", ...
    max_grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    max_grid_product: int = 2**63 - 1  # some chips bound the whole grid (65535 programs)
    max_threads: int = 1024
    max_shared_bytes: int = 0
    multiprocessors: int = 1
    bf16_atomics: bool = False
    int64_math: bool = True
    flushes_subnormals: bool = False
    reduced_matmul: str = ""  # "tf32" where float32 products are rounded first; stands on the report's first page
    extra: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Copy:
    """One copy: ``rows`` rows of ``nbytes`` bytes; pitches in bytes, used when rows > 1.

    Host addresses must stay valid until the stream has passed the copy.  Ranges of a d2d copy may overlap (memmove).
    """

    kind: str  # h2d, d2h, d2d, peer
    dst: int
    src: int
    nbytes: int
    rows: int = 1
    dst_pitch: int = 0
    src_pitch: int = 0
    dst_device: int = -1  # peer copies only


@dataclass(frozen=True)
class Launch:
    """One kernel launch.  ``args`` are (type, value) pairs: type is Triton's name (``*fp32``, ``i32``, ``fp32``)."""

    kernel: int
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    args: Sequence[tuple[str, int | float]]
    cluster: tuple[int, int, int] = (1, 1, 1)


class Driver:
    """What an adapter's entry point returns (a class or factory without arguments).

    Threads: calls on different handles may come from many threads at once; ``alloc``, ``free`` and ``props`` always.
    Asynchronous errors are sticky per stream and raised once, by the next ``stream_sync`` or ``stream_query``.
    """

    name = ""  # "mychip": devices are "mychip:0", "mychip:1"
    vendor = ""
    version = ""

    # ---- required: core --------------------------------------------------------------------------------------------
    def device_count(self) -> int:
        """Devices present; the same number for the life of the process.  0 is a legal answer."""
        raise NotImplementedError

    def props(self, device: int) -> Capabilities:
        raise NotImplementedError

    def sync(self, device: int) -> None:
        """Wait for everything queued on the device."""
        raise NotImplementedError

    def reset(self, device: int) -> None:
        """Drop all handles and allocations of the device and clear DeviceLost."""
        raise NotImplementedError

    # ---- required: memory ------------------------------------------------------------------------------------------
    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        """A device address of at least ``nbytes`` bytes.  OutOfMemory when there is none; ArgumentError for 0."""
        raise NotImplementedError

    def free(self, device: int, address: int) -> None:
        raise NotImplementedError

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        """Copy in stream order.  With stream 0, a synchronous copy."""
        raise NotImplementedError

    # ---- optional: memory ------------------------------------------------------------------------------------------
    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        """Repeat a 1, 2 or 4 byte pattern.  Absent: the host stages the bytes and copies them."""
        raise Unsupported(f"{self.name}: no fill; the host stages it")

    def mem_info(self, device: int) -> tuple[int, int]:
        """(free, total) bytes.  Absent: the allocator's own count is used."""
        raise Unsupported(f"{self.name}: no mem_info; haian's allocator counts")

    # ---- optional: streams (all or none; absent: everything runs synchronously and reports say async=no) -----------
    def stream_create(self, device: int) -> int:
        raise Unsupported(f"{self.name}: no streams; work runs synchronously")

    def stream_destroy(self, stream: int) -> None:
        """Drains queued work first."""
        raise Unsupported(f"{self.name}: no streams")

    def stream_sync(self, stream: int) -> None:
        raise Unsupported(f"{self.name}: no streams")

    def stream_query(self, stream: int) -> bool:
        """True when nothing is queued or running."""
        raise Unsupported(f"{self.name}: no streams")

    def stream_wait_event(self, stream: int, event: int) -> None:
        """Later work of the stream waits for the event's latest record; a no-op before the first one."""
        raise Unsupported(f"{self.name}: no streams")

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        """Run ``fn`` once on the host, in stream order, with no driver lock held."""
        raise Unsupported(f"{self.name}: no host functions")

    # ---- optional: events (all or none) ----------------------------------------------------------------------------
    def event_create(self, device: int, timing: bool = True) -> int:
        raise Unsupported(f"{self.name}: no events")

    def event_destroy(self, event: int) -> None:
        raise Unsupported(f"{self.name}: no events")

    def event_record(self, event: int, stream: int) -> None:
        raise Unsupported(f"{self.name}: no events")

    def event_query(self, event: int) -> bool:
        raise Unsupported(f"{self.name}: no events")

    def event_sync(self, event: int, timeout_ns: int = -1) -> None:
        """Wait for the latest record; Timeout after ``timeout_ns`` (negative: for ever)."""
        raise Unsupported(f"{self.name}: no events")

    def event_elapsed_ns(self, start: int, end: int) -> int:
        """Nanoseconds between two completed records; NotReady otherwise."""
        raise Unsupported(f"{self.name}: no event timing")

    # ---- optional: modules and launch (absent: the device has no kernels of its own; operators fall back) -----------
    def module_load(self, device: int, image: bytes, format: str) -> int:
        raise Unsupported(f"{self.name}: no modules")

    def module_unload(self, module: int) -> None:
        raise Unsupported(f"{self.name}: no modules")

    def get_kernel(self, module: int, name: str) -> int:
        raise Unsupported(f"{self.name}: no modules")

    def launch(self, device: int, desc: Launch, stream: int = 0) -> None:
        raise Unsupported(f"{self.name}: no launch")

    # ---- optional: what a vendor brings of its own -------------------------------------------------------------------
    def kernels(self) -> Sequence[object]:
        """Operator candidates as data, see ``haian.register_kernel``.  Absent: none."""
        return ()
