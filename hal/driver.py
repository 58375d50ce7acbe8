"""The page a vendor implements: one class with these method names, or a .so that c_driver.py wraps in one.

Seven methods are required and come first; the optional ones stand in groups, and each says what the host does without it.
Handles and addresses are plain integers, 0 is never alive.  A handle is ``generation << 32 | index``, below 2**56.
Drivers do not validate: ``validate.py`` does, above them.  They raise the classes of ``errors.py``.
The same page in C is include/haian_hal.h; a function there and a method here have one meaning.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import ArgumentError, Unsupported

__all__ = ["Capabilities", "Copy", "DEVICE_TO_DEVICE", "DEVICE_TO_HOST", "Driver", "GROUPS", "HOST_TO_DEVICE", "KernelInfo", "Launch",
           "MAX_DEVICES", "PEER", "PointerInfo", "ProfileRecord", "Telemetry", "devices_of", "offers"]

MAX_DEVICES = 256  # of one driver

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, PEER = "h2d", "d2h", "d2d", "peer"

# The optional groups: a driver has a group when it has every method named here; "?" marks those it may still leave out.
GROUPS: dict[str, tuple[str, ...]] = {
    "fill": ("fill",), "mem_info": ("mem_info",), "pinned": ("host_alloc", "host_register?", "host_unregister?"),
    "ptr_info": ("ptr_info",), "pool_trim": ("pool_trim",),
    "stream": ("stream_create", "stream_destroy", "stream_sync", "stream_query", "stream_wait_event?", "host_func?"),
    "event": ("event_create", "event_destroy", "event_record", "event_query", "event_sync", "event_elapsed_ns?"),
    "module": ("module_load", "module_unload", "get_kernel", "launch", "kernel_info?"),
    "graph": ("graph_begin", "graph_end", "graph_instantiate", "graph_launch", "graph_destroy"),
    "comm": ("comm_unique_id", "comm_init", "comm_destroy", "comm_abort", "comm_all_reduce", "comm_all_gather", "comm_reduce_scatter",
             "comm_broadcast", "comm_send", "comm_recv", "comm_group_begin", "comm_group_end", "comm_async_error"),
    "ipc": ("ipc_export", "ipc_open", "ipc_close", "ipc_event_export?", "ipc_event_open?"),
    "prof": ("prof_start", "prof_stop", "prof_drain"), "telemetry": ("telemetry",), "op": ("op_query", "op_run"),
}


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
    vendor: str = ""
    arch: str = ""  # as the vendor's compiler names it: "sm_90", "gfx942", "Ascend910B3"
    uuid: str = ""  # unique among devices; "" where the runtime has none
    driver_version: str = ""
    warp_size: int = 0  # lanes that run together; 0: the chip has no such notion
    peer: bool = False  # copies between two devices of this driver
    memmove: bool = True  # d2d ranges may overlap; otherwise such a copy is refused
    thread_safe_streams: bool = True  # False: the host serialises calls on one stream
    default_stream: str = "independent"  # stream 0: "independent" of all others, or "blocking": it waits for them and they for it
    cross_device_events: bool = False  # a stream may wait for another device's event
    fatal_errors: bool = False  # an asynchronous error loses the whole device until reset (CUDA), not one stream
    init_once: bool = False  # the runtime cannot be initialised again after fini (AscendCL)
    extra: dict[str, object] = field(default_factory=dict)


class Copy(NamedTuple):
    """One copy: ``rows`` rows of ``nbytes`` bytes; pitches in bytes, used when rows > 1.

    Host addresses must stay valid until the stream has passed the copy.  Ranges of a d2d copy may overlap where
    ``Capabilities.memmove`` says so, and the result is memmove's.
    """

    kind: str  # h2d, d2h, d2d, peer
    dst: int
    src: int
    nbytes: int
    rows: int = 1
    dst_pitch: int = 0
    src_pitch: int = 0
    dst_device: int = -1  # peer copies only


class Launch(NamedTuple):
    """One kernel launch.  ``args`` are (type, value) pairs: type is Triton's name (``*fp32``, ``i32``, ``fp32``)."""

    kernel: int
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    args: Sequence[tuple[str, int | float]]
    cluster: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True)
class KernelInfo:
    """What is known of a loaded kernel; -1 where the runtime cannot say.  ``args`` are Triton's type names."""

    name: str
    args: tuple[str, ...] | None = None
    max_threads: int = -1
    shared_bytes: int = -1
    registers: int = -1
    local_bytes: int = -1  # spilled, a thread


@dataclass(frozen=True)
class PointerInfo:
    """What an address is: ``kind`` device, pinned, managed or unknown; ``base`` and ``nbytes`` of the allocation around it."""

    kind: str
    device: int = -1
    base: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class ProfileRecord:
    """One piece of work that ran: ``kind`` launch, copy, fill, host or comm; times on the clock of the device's events."""

    kind: str
    name: str
    stream: int
    start_ns: int
    end_ns: int
    nbytes: int = 0


@dataclass(frozen=True)
class Telemetry:
    """A sample of the device's sensors; NaN where it has none."""

    util_percent: float = float("nan")
    temperature_c: float = float("nan")
    power_w: float = float("nan")
    clock_mhz: float = float("nan")
    mem_used_bytes: float = float("nan")


class Driver:
    """What an adapter's entry point returns (a class or factory without arguments).

    Threads: calls on different handles may come from many threads at once; ``alloc``, ``free`` and ``props`` always.
    Asynchronous errors are sticky per stream and raised once, by the next ``stream_sync`` or ``stream_query``.
    """

    name = ""  # "mychip": devices are "mychip:0", "mychip:1"
    vendor = ""
    version = ""

    # ---- optional: begin and end (absent: nothing to do) -------------------------------------------------------------
    def init(self) -> None:
        """Called once before any other method, and again after ``fini`` unless ``Capabilities.init_once``."""

    def fini(self) -> None:
        """Gives back everything: threads, files, memory."""

    # ---- required: core --------------------------------------------------------------------------------------------
    def device_count(self) -> int:
        """Devices present; the same number for the life of the process.  0 is a legal answer."""
        raise Unsupported(f"{self.name}: no device_count; every driver needs it")

    def props(self, device: int) -> Capabilities:
        raise Unsupported(f"{self.name}: no props; every driver needs it")

    def sync(self, device: int) -> None:
        """Wait for everything queued on the device."""
        raise Unsupported(f"{self.name}: no sync; every driver needs it")

    def reset(self, device: int) -> None:
        """Drop all handles and allocations of the device and clear DeviceLost."""
        raise Unsupported(f"{self.name}: no reset; every driver needs it")

    # ---- required: memory ------------------------------------------------------------------------------------------
    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        """A device address, above 0, of at least ``nbytes`` bytes.  OutOfMemory when there is none; ArgumentError for 0."""
        raise Unsupported(f"{self.name}: no alloc; every driver needs it")

    def free(self, device: int, address: int) -> None:
        """Of memory that queued work uses: waits for that work, takes effect behind it, or is Busy; the work sees its own bytes."""
        raise Unsupported(f"{self.name}: no free; every driver needs it")

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        """Copy in stream order.  With stream 0, a synchronous copy."""
        raise Unsupported(f"{self.name}: no copy; every driver needs it")

    # ---- optional: memory ------------------------------------------------------------------------------------------
    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        """Repeat a 1, 2 or 4 byte pattern.  Absent: the host stages the bytes and copies them."""
        raise Unsupported(f"{self.name}: no fill; the host stages it")

    def mem_info(self, device: int) -> tuple[int, int]:
        """(free, total) bytes; free is at most total less what alloc gave (with ``host_access``: less what of it was written).

        Absent: the allocator's own count is used.
        """
        raise Unsupported(f"{self.name}: no mem_info; haian's allocator counts")

    def host_alloc(self, device: int, nbytes: int, managed: bool = False) -> int:
        """Page-locked host memory, given back by ``free``; managed: also usable by kernels.  Absent: ordinary host memory."""
        raise Unsupported(f"{self.name}: no pinned memory; use ordinary host memory")

    def host_register(self, device: int, address: int, nbytes: int) -> None:
        """Page-lock host memory of others.  ArgumentError when it is registered already."""
        raise Unsupported(f"{self.name}: no host_register; copy from ordinary memory")

    def host_unregister(self, device: int, address: int) -> None:
        """InvalidHandle for an address that is not registered."""
        raise Unsupported(f"{self.name}: no host_register")

    def ptr_info(self, device: int, address: int) -> PointerInfo:
        """Absent: only the validation layer knows."""
        raise Unsupported(f"{self.name}: no ptr_info")

    def pool_trim(self, device: int, keep_bytes: int = 0) -> int:
        """Give the runtime's own cached memory back; bytes released.  Absent: the runtime is taken to cache nothing."""
        raise Unsupported(f"{self.name}: no pool_trim")

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
        """The handle is dead at once; a record or wait of it that is queued still happens."""
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

    def kernel_info(self, kernel: int) -> KernelInfo:
        """Absent: nothing is known, and a wrong number of arguments cannot be refused."""
        raise Unsupported(f"{self.name}: no kernel_info")

    # ---- optional: graphs (absent: the host replays calls one by one) ------------------------------------------------
    def graph_begin(self, stream: int) -> None:
        """From now on work queued on the stream is recorded and does not run."""
        raise Unsupported(f"{self.name}: no graphs; queue the work again instead")

    def graph_end(self, stream: int, abort: bool = False) -> int:
        """The recorded graph; with ``abort`` 0, and the stream works as before ``graph_begin``."""
        raise Unsupported(f"{self.name}: no graphs")

    def graph_instantiate(self, graph: int) -> int:
        """Something that ``graph_launch`` takes; destroyed by ``graph_destroy`` like the graph itself."""
        raise Unsupported(f"{self.name}: no graphs")

    def graph_launch(self, executable: int, stream: int) -> None:
        raise Unsupported(f"{self.name}: no graphs")

    def graph_destroy(self, graph: int) -> None:
        raise Unsupported(f"{self.name}: no graphs")

    # ---- optional: communicators (absent: the host stages collectives, see comm.py) ----------------------------------
    # Addresses are device addresses; dtype is a name of dtype.py; count is in elements; op is sum, prod, max, min or avg.
    def comm_unique_id(self) -> bytes:
        """Bytes that one rank makes and every rank passes to ``comm_init``: at most 128 in C, in Python as many as it takes."""
        raise Unsupported(f"{self.name}: no communicators; collectives go through the host")

    def comm_init(self, device: int, world: int, rank: int, unique_id: bytes) -> int:
        """Blocks until all ranks have come: where the driver can, no longer than ``hal.comm.timeout_s()``, then Timeout.

        A driver whose calls keep that limit too sets ``comm_keeps_timeout = True``; otherwise the host watches and aborts.
        """
        raise Unsupported(f"{self.name}: no communicators")

    def comm_destroy(self, comm: int) -> None:
        raise Unsupported(f"{self.name}: no communicators")

    def comm_abort(self, comm: int) -> None:
        """Ends queued collectives that wait for others; the communicator is then dead but for ``comm_destroy``."""
        raise Unsupported(f"{self.name}: no communicators")

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        raise Unsupported(f"{self.name}: no communicators")

    def comm_all_gather(self, comm: int, send: int, recv: int, count: int, dtype: str, stream: int) -> None:
        """``count`` elements from each rank; recv holds world * count."""
        raise Unsupported(f"{self.name}: no communicators")

    def comm_reduce_scatter(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        """``count`` elements to each rank; send holds world * count."""
        raise Unsupported(f"{self.name}: no communicators")

    def comm_broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        raise Unsupported(f"{self.name}: no communicators")

    def comm_send(self, comm: int, send: int, count: int, dtype: str, peer: int, stream: int) -> None:
        raise Unsupported(f"{self.name}: no communicators")

    def comm_recv(self, comm: int, recv: int, count: int, dtype: str, peer: int, stream: int) -> None:
        raise Unsupported(f"{self.name}: no communicators")

    def comm_group_begin(self, comm: int) -> None:
        """Sends and receives up to ``comm_group_end`` make progress together, so that none waits for another's turn."""
        raise Unsupported(f"{self.name}: no communicators")

    def comm_group_end(self, comm: int) -> None:
        raise Unsupported(f"{self.name}: no communicators")

    def comm_async_error(self, comm: int) -> None:
        """Raises what went wrong in a queued collective; Timeout where a rank did not come or counts differ (RanksDiffer where that is seen)."""
        raise Unsupported(f"{self.name}: no communicators")

    # ---- optional: sharing with other processes ------------------------------------------------------------------------
    def ipc_export(self, device: int, address: int) -> bytes:
        """At most 64 bytes that another process passes to ``ipc_open``; address is the base of an allocation."""
        raise Unsupported(f"{self.name}: no ipc")

    def ipc_open(self, device: int, handle: bytes) -> int:
        raise Unsupported(f"{self.name}: no ipc")

    def ipc_close(self, device: int, address: int) -> None:
        """InvalidHandle when it is closed already."""
        raise Unsupported(f"{self.name}: no ipc")

    def ipc_event_export(self, event: int) -> bytes:
        raise Unsupported(f"{self.name}: no ipc of events")

    def ipc_event_open(self, device: int, handle: bytes) -> int:
        raise Unsupported(f"{self.name}: no ipc of events")

    # ---- optional: profiling and sensors -------------------------------------------------------------------------------
    def prof_start(self, device: int) -> None:
        raise Unsupported(f"{self.name}: no profiler; the host times events")

    def prof_stop(self, device: int) -> None:
        raise Unsupported(f"{self.name}: no profiler")

    def prof_drain(self, device: int) -> list[ProfileRecord]:
        """Records since the last drain, in order of their start."""
        raise Unsupported(f"{self.name}: no profiler")

    def telemetry(self, device: int) -> Telemetry:
        raise Unsupported(f"{self.name}: no telemetry")

    # ---- optional: operators of the vendor's own library ---------------------------------------------------------------
    def op_query(self, device: int, name: str, dtypes: Sequence[str], contiguous: bool) -> str:
        """``""`` not offered, ``supported``, or ``preferred`` over haian's kernels.  Pure: the same answer every time."""
        raise Unsupported(f"{self.name}: no operators of its own")

    def op_run(self, device: int, name: str, inputs: Sequence[object], outputs: Sequence[object], attrs: dict[str, object],
               stream: int = 0) -> None:
        """Runs the operator of haian's standard on tensors of this device, in stream order; inputs may hold None."""
        raise Unsupported(f"{self.name}: no operators of its own")

    # ---- optional: what a vendor brings of its own -------------------------------------------------------------------
    def kernels(self) -> Sequence[object]:
        """Operator candidates as data: dicts of the arguments of ``haian.register_kernel`` but ``device``.  Absent: none.

        They come behind those of ``register_kernel`` and before haian's own; adapters/sim/library.py is an example.
        """
        return ()


def devices_of(driver: Driver) -> int:
    """The driver's answer to ``device_count``, where it can be one.

    Raises:
        ArgumentError: no whole number from 0 to MAX_DEVICES; whoever asked would count, ask and wait for that many.
    """
    count = driver.device_count()
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_DEVICES:
        raise ArgumentError(f"adapter {driver.name!r}: device_count() gave {count!r}; needs 0 to {MAX_DEVICES}, a handle names its device in 8 bits")
    return count


def offers(driver: Driver, group: str) -> bool:
    """Whether a driver has an optional group of ``GROUPS``: every method of it that is not marked "?".

    A driver that wraps another (validation, a C table) answers for itself through a method ``offers(group)``.
    """
    own = getattr(driver, "offers", None)
    if own is not None:
        return bool(own(group))
    return all(_overrides(driver, name) for name in GROUPS[group] if not name.endswith("?"))


def _overrides(driver: Driver, name: str) -> bool:
    found = getattr(driver, name, None)
    return found is not None and getattr(found, "__func__", found) is not getattr(Driver, name)
