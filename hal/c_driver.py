"""A driver in C: wraps the table of a .so (include/haian_hal.h) in the Driver class, so that everything above sees one protocol.

Calls that happen often go through ``haian._native.DriverTable``; the rest through cffi, whose declarations are the header's own
text.  Which files may be loaded is decided in registry.py.
"""
from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .driver import (
    GROUPS,
    Capabilities,
    Driver,
    KernelInfo,
    PointerInfo,
    ProfileRecord,
    Telemetry,
)
from .dtype import ALL, BY_NAME
from .errors import (
    ArgumentError,
    EnvironmentMissing,
    InternalError,
    InvalidHandle,
    Unsupported,
    VersionMismatch,
    from_code,
)

__all__ = ["ABI_MAJOR", "ABI_MINOR", "CDriver", "header"]

ABI_MAJOR, ABI_MINOR = 1, 0
HEADER = Path(__file__).parent / "include" / "haian_hal.h"

_SHIFT, _MASK = 56, (1 << 56) - 1  # a Python handle is device << 56 | the driver's own
_CAPS = {"host_access": 0x1, "async_copy": 0x2, "memmove": 0x4, "peer": 0x8, "cross_device_events": 0x40, "fatal_errors": 0x80,
         "init_once": 0x100, "bf16_atomics": 0x200, "flushes_subnormals": 0x800}
_SERIAL_STREAMS, _BLOCKING_DEFAULT, _NO_INT64, _TF32 = 0x10, 0x20, 0x400, 0x1000
_KNOWN_CAPS = 0x1FFF
_MEMORY = {0: "device", 1: "pinned", 2: "managed"}
_REDUCE = {"sum": 0, "prod": 1, "max": 2, "min": 3, "avg": 4}
_WORK = ("launch", "copy", "fill", "host", "comm")
_LOG = {0: logging.DEBUG, 1: logging.INFO, 2: logging.WARNING, 3: logging.ERROR}
# method of the page -> (group, function) of the table
_CALLS = {
    "props": ("core", "props"), "reset": ("core", "reset"),
    "fill": ("mem", "fill"), "mem_info": ("mem", "info"), "host_alloc": ("mem", "alloc"), "host_register": ("mem", "host_register"),
    "host_unregister": ("mem", "host_unregister"), "ptr_info": ("mem", "ptr_info"), "pool_trim": ("mem", "pool_trim"),
    "module_load": ("module", "load"), "module_unload": ("module", "unload"), "get_kernel": ("module", "get_kernel"),
    "kernel_info": ("module", "kernel_info"), "launch": ("module", "launch"), "comm_unique_id": ("comm", "unique_id"),
    "comm_init": ("comm", "init_rank"), "ipc_export": ("ipc", "mem_export"), "ipc_open": ("ipc", "mem_open"),
    "ipc_close": ("ipc", "mem_close"), "ipc_event_export": ("ipc", "event_export"), "ipc_event_open": ("ipc", "event_open"),
    "telemetry": ("telemetry", "sample"), "host_func": ("stream", "host_func"),
    **{f"{g}_{f}": (g, f) for g, names in {
        "stream": ("create", "destroy", "sync", "query", "wait_event"), "prof": ("start", "stop", "drain"), "op": ("query", "run"),
        "event": ("create", "destroy", "record", "query", "sync", "elapsed_ns"),
        "graph": ("begin", "end", "instantiate", "launch", "destroy"),
        "comm": ("destroy", "abort", "all_reduce", "all_gather", "reduce_scatter", "broadcast", "send", "recv", "group_begin",
                 "group_end", "async_error")}.items() for f in names},
}
_REQUIRED = {"core": ("init", "fini", "device_count", "props", "sync", "reset", "last_error"), "mem": ("alloc", "free", "copy")}


def header() -> str:
    """The declarations of haian_hal.h, as cffi reads them."""
    text = HEADER.read_text(encoding="utf-8")
    return text.partition("/* CFFI-BEGIN */")[2].partition("/* CFFI-END */")[0]


@functools.cache
def _ffi() -> Any:
    """One cffi for all drivers; importing and parsing takes 60 ms, so only when a driver in C is loaded."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(header())
    return ffi


class CDriver(Driver):
    """The adapter in the shared object at ``path``.

    Attributes:
        path: the file.
        ffi, lib, table: cffi's view of the header, of the file, and of its ``hal_adapter``.

    Raises:
        EnvironmentMissing: the file cannot be loaded, or has no ``hal_get_adapter``.
        VersionMismatch: it speaks another major version.  ArgumentError: its table breaks the contract.
    """

    def __init__(self, path: str | os.PathLike[str], *, host_size: int | None = None, host_major: int = ABI_MAJOR) -> None:
        """host_size, host_major: what this host says of itself; other values only for tests of the contract."""
        from .. import _native

        self.path = str(path)
        self.ffi = ffi = _ffi()
        try:
            self.lib = ffi.dlopen(self.path, ffi.RTLD_NOW | ffi.RTLD_LOCAL)
            get = self.lib.hal_get_adapter
        except (OSError, AttributeError) as e:
            said = str(e).partition(".  Additionally, ctypes.util")[0]  # cffi looks for it in vain elsewhere too
            for words in (f"cannot load library {self.path!r}: ", f"function/symbol 'hal_get_adapter' not found in library {self.path!r}: ", f"{self.path}: "):
                said = said.removeprefix(words)
            raise EnvironmentMissing(f"adapter {self.path}: {said}; needs a shared object with hal_get_adapter (haian_hal.h)") from None
        self._log = ffi.callback("void(void *, int32_t, const char *)", self._said)
        size = ffi.sizeof("hal_host") if host_size is None else host_size
        self._host = ffi.new("hal_host *", {"struct_size": min(size, ffi.sizeof("hal_host")), "abi_major": host_major, "abi_minor": ABI_MINOR, "log": self._log})
        table = get(self._host)
        if table == ffi.NULL:
            raise VersionMismatch(f"adapter {self.path}: refuses hosts of ABI {host_major}.{ABI_MINOR}; build it against this haian's haian_hal.h")
        self.table = table
        if table.abi_major != host_major:
            raise VersionMismatch(f"adapter {self.path}: ABI {table.abi_major}.{table.abi_minor}, the host has {host_major}.{ABI_MINOR}; "
                                  f"build it against this haian's haian_hal.h")
        self.name, self.vendor, self.version = (self._text(field) for field in ("name", "vendor", "version"))
        self._functions: dict[tuple[str, str], Any] = {}
        self._read_tables()
        # One callable a host function with its stream, kept until it has run; C gets its number.
        self._waiting: dict[int, tuple[int, Callable[[], None]]] = {}
        self._failed: dict[int, InternalError] = {}  # stream -> what a host function of it raised, for its next sync or query
        self._next = 1
        self._lock = threading.Lock()
        self._call_back = ffi.callback("void(void *)", self._run_host_func)
        self._started = False
        # Keeps calls on streams apart where the driver asks for it; one lock, since such drivers are rare.
        self._serial = threading.RLock()
        hot = self.hot = _native.DriverTable(int(ffi.cast("uintptr_t", table)))
        self.hal_table = hot.address
        for method in ("sync", "alloc", "free", "copy", "stream_sync", "stream_query", "stream_wait_event", "event_record", "event_query",
                       "event_sync", "launch"):
            if method not in _CALLS or _CALLS[method] in self._functions:
                setattr(self, method, getattr(hot, method))  # the native method itself: no Python frame in between

    # ---- reading the table -------------------------------------------------------------------------------------------
    def _text(self, field: str) -> str:
        if not self._has(self.table, field):
            raise ArgumentError(f"adapter {self.path}: hal_adapter.struct_size is {self.table.struct_size}, which ends before {field}; "
                                f"set it to sizeof(hal_adapter), {self.ffi.sizeof('hal_adapter')} bytes here")
        value = getattr(self.table, field)
        text = self.ffi.string(value).decode(errors="replace") if value != self.ffi.NULL else ""
        if not text:
            raise ArgumentError(f"adapter {self.path}: its table has no {field}; set hal_adapter.{field}")
        return text

    def _has(self, struct: Any, field: str) -> bool:
        """Rule 2 of the header: inside the declared size."""
        kind = self.ffi.typeof(struct).item
        return self.ffi.offsetof(kind, field) + self.ffi.sizeof(dict(kind.fields)[field].type) <= struct.struct_size

    def _read_tables(self) -> None:
        ffi = self.ffi
        for group, required in {**_REQUIRED, **{g: () for g, _ in _CALLS.values() if g not in _REQUIRED}}.items():
            table = getattr(self.table, group) if self._has(self.table, group) else ffi.NULL
            if table == ffi.NULL:
                if required:
                    raise ArgumentError(f"adapter {self.path}: has no {group} group; it is required")
                continue
            beyond = [name for name in required if not self._has(table, name)]
            if beyond:
                raise ArgumentError(f"adapter {self.path}: group {group} lacks {', '.join(beyond)}: hal_{group}.struct_size is {table.struct_size}, "
                                    f"which ends before; set it to sizeof(hal_{group}), {ffi.sizeof(f'hal_{group}')} bytes here")
            for name, _ in ffi.typeof(table).item.fields:
                if name in ("struct_size", "reserved") or not self._has(table, name):
                    continue
                if getattr(table, name) != ffi.NULL:
                    self._functions[group, name] = getattr(table, name)
            lacking = [name for name in required if (group, name) not in self._functions]
            if lacking:
                raise ArgumentError(f"adapter {self.path}: group {group} lacks {', '.join(lacking)}; required")

    def _serialise(self) -> None:
        """Calls that queue work take turns; waits stay free, or one waiting thread would stop all others."""
        self._serialised = True

        def turns(call: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(call)
            def one(*args: Any) -> Any:
                with self._serial:
                    return call(*args)
            return one

        for method in ("copy", "fill", "launch", "event_record", "stream_wait_event", "host_func", "graph_launch"):
            setattr(self, method, turns(getattr(self, method)))

    def offers(self, group: str) -> bool:
        """Whether the table has every function of a group of ``driver.GROUPS`` that may not be left out."""
        if group == "pinned":  # an allocation kind, not a function: only a call tells, and host_register shows the intent
            return ("mem", "host_register") in self._functions
        return all(_CALLS[name] in self._functions for name in GROUPS[group] if not name.endswith("?"))

    def _function(self, method: str) -> Any:
        found = self._functions.get(_CALLS[method])
        if found is None:
            raise Unsupported(f"{self.name}: no {method}; its table leaves {'.'.join(_CALLS[method])} out")
        return found

    def _check(self, call: str, status: int) -> None:
        if status:
            raise from_code(status, f"{self.name}: {call}: {self.last_error() or 'no message from the driver'}")

    def _call(self, method: str, *args: Any) -> None:
        function = self._function(method)
        try:
            status = function(*args)
        except (OverflowError, TypeError) as e:  # cffi's, for a value that is no number of the argument's kind
            raise ArgumentError(f"{self.name}: {method}: {e}; needs numbers as haian_hal.h has them") from None
        self._check(method, status)

    def _address(self, method: str, out: Any) -> int:
        if not out[0]:
            raise InternalError(f"{self.name}: {method} succeeded and gave address 0; needs one above 0, or HAL_OUT_OF_MEMORY")
        return int(out[0])

    def last_error(self, capacity: int = 400) -> str:
        """The calling thread's message of its last failure, cut at ``capacity`` - 1 bytes."""
        text = self.ffi.new("char[]", max(capacity, 1))
        self._functions["core", "last_error"](text, capacity)
        return self.ffi.string(text).decode(errors="replace")

    def _said(self, _user: Any, level: int, message: Any) -> None:
        logging.getLogger("haian").log(_LOG.get(level, logging.INFO), "%s: %s", self.path, self.ffi.string(message).decode(errors="replace"))

    def _handle(self, device: int, out: Any, call: str) -> int:
        """The Python handle of a new object of the driver's."""
        raw = int(out[0])
        if not 0 < raw <= _MASK:
            raise InternalError(f"{self.name}: {call} gave the handle {raw:#x}; needs one from 1 to 2^56 - 1")
        return device << _SHIFT | raw

    @staticmethod
    def _split(handle: int) -> tuple[int, int]:
        return handle >> _SHIFT, handle & _MASK

    def _stream(self, device: int, stream: int) -> int:
        if stream and stream >> _SHIFT != device:
            raise InvalidHandle(f"{self.name}: stream {stream:#x} is of device {stream >> _SHIFT}, not {device}; use one of that device")
        return stream & _MASK

    # ---- core --------------------------------------------------------------------------------------------------------
    def init(self) -> None:
        self._check("init", self._functions["core", "init"]())
        self._started = True

    def fini(self) -> None:
        self._check("fini", self._functions["core", "fini"]())
        self._started = False

    def device_count(self) -> int:
        if not self._started:
            self.init()
        out = self.ffi.new("int32_t *")
        self._check("device_count", self._functions["core", "device_count"](out))
        return int(out[0])

    def props(self, device: int) -> Capabilities:
        p = self.ffi.new("hal_props *")
        p.struct_size = self.ffi.sizeof("hal_props")
        self._call("props", device, p)
        if p.caps & _SERIAL_STREAMS and "_serialised" not in self.__dict__:
            self._serialise()
        self.hot.inline_copies = int(bool(p.caps & _CAPS["host_access"]) and not p.caps & _BLOCKING_DEFAULT)
        if p.caps & ~_KNOWN_CAPS:
            raise InternalError(f"{self.name}: props claims unknown capability bits {p.caps & ~_KNOWN_CAPS:#x}; clear them")

        def text(field: Any) -> str:
            return self.ffi.string(field).decode(errors="replace")

        def dtypes(bits: int) -> tuple[str, ...]:
            return tuple(d.name for d in ALL if bits >> d.code & 1)

        arch: object = text(p.triton_arch)
        target = (text(p.triton_backend), int(str(arch)) if str(arch).isdigit() else arch, int(p.warp_size)) if text(p.triton_backend) else None
        return Capabilities(
            model=text(p.model), total_bytes=p.total_bytes, max_alloc_bytes=p.max_alloc_bytes, align_bytes=p.align_bytes,
            streams=self.offers("stream"), events=self.offers("event"), event_unit_ns=max(p.event_unit_ns, 1),
            dtypes_load=dtypes(p.dtypes_load), dtypes_math=dtypes(p.dtypes_math), triton_target=target, image_format=text(p.image_format),
            max_grid=(p.max_grid[0] or 2**31 - 1, p.max_grid[1] or 65535, p.max_grid[2] or 65535),
            max_grid_product=p.max_grid_product or 2**63 - 1, max_threads=p.max_threads or 1, max_shared_bytes=p.max_shared_bytes,
            multiprocessors=p.compute_units or 1, int64_math=not p.caps & _NO_INT64, reduced_matmul="tf32" if p.caps & _TF32 else "",
            vendor=text(p.vendor), arch=text(p.arch), uuid=text(p.uuid), driver_version=text(p.driver_version), warp_size=p.warp_size,
            thread_safe_streams=not p.caps & _SERIAL_STREAMS,
            default_stream="blocking" if p.caps & _BLOCKING_DEFAULT else "independent",
            extra={"adapter": self.path, "abi": f"{self.table.abi_major}.{self.table.abi_minor}"},
            **{name: bool(p.caps & bit) for name, bit in _CAPS.items()})

    def reset(self, device: int) -> None:
        self._call("reset", device)

    # ---- memory ------------------------------------------------------------------------------------------------------
    def fill(self, device: int, address: int, pattern: bytes, nbytes: int, stream: int = 0) -> None:
        if not 1 <= len(pattern) <= 4:
            raise ArgumentError(f"{self.name}: fill with a pattern of {len(pattern)} bytes; needs 1, 2 or 4")
        self._call("fill", device, self._stream(device, stream), address, int.from_bytes(pattern, "little"), len(pattern), nbytes)

    def mem_info(self, device: int) -> tuple[int, int]:
        free, total = self.ffi.new("uint64_t *"), self.ffi.new("uint64_t *")
        self._call("mem_info", device, free, total)
        return int(free[0]), int(total[0])

    def host_alloc(self, device: int, nbytes: int, managed: bool = False) -> int:
        out = self.ffi.new("hal_dptr *")
        desc = self.ffi.new("hal_alloc_desc *", {"struct_size": self.ffi.sizeof("hal_alloc_desc"), "kind": 2 if managed else 1, "bytes": nbytes})
        self._call("host_alloc", device, desc, out)
        return self._address("host_alloc", out)

    def host_register(self, device: int, address: int, nbytes: int) -> None:
        self._call("host_register", device, address, nbytes)

    def host_unregister(self, device: int, address: int) -> None:
        self._call("host_unregister", device, address)

    def ptr_info(self, device: int, address: int) -> PointerInfo:
        info = self.ffi.new("hal_ptr_info *", {"struct_size": self.ffi.sizeof("hal_ptr_info")})
        self._call("ptr_info", device, address, info)
        kind = _MEMORY.get(info.kind, "unknown")
        return PointerInfo(kind, info.device, int(info.base), int(info.bytes)) if kind != "unknown" else PointerInfo(kind)

    def pool_trim(self, device: int, keep_bytes: int = 0) -> int:
        out = self.ffi.new("uint64_t *")
        self._call("pool_trim", device, keep_bytes, out)
        return int(out[0])

    # ---- streams and events ------------------------------------------------------------------------------------------
    def stream_create(self, device: int) -> int:
        out = self.ffi.new("hal_handle *")
        self._call("stream_create", device, 0, out)
        return self._handle(device, out, "stream_create")

    def stream_destroy(self, stream: int) -> None:
        self._call("stream_destroy", *self._split(stream))
        self._failed.pop(stream, None)

    def host_func(self, stream: int, fn: Callable[[], None]) -> None:
        function = self._function("host_func")
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._waiting[number] = stream, fn
            if stream and "stream_sync" in self.__dict__:  # native methods otherwise: they know nothing of what Python raised
                self.stream_sync = functools.partial(self._deliver, self.hot.stream_sync)  # type: ignore[assignment,method-assign]
                self.stream_query = functools.partial(self._deliver, self.hot.stream_query)  # type: ignore[assignment,method-assign]
        status = function(*self._split(stream), self._call_back, self.ffi.cast("void *", number))
        if status:
            self._waiting.pop(number, None)
        self._check("host_func", status)

    def _run_host_func(self, number: Any) -> None:
        stream, fn = self._waiting[key := int(self.ffi.cast("uintptr_t", number))]
        try:
            fn()
        except BaseException as error:
            if stream:
                self._failed[stream] = InternalError(f"{self.name}: a host function raised {type(error).__name__}: {error}")
            else:
                logging.getLogger("haian").exception("%s: a host function of stream 0 raised", self.name)
        finally:
            del self._waiting[key]

    def _deliver(self, method: Callable[[int], bool | None], stream: int) -> bool | None:
        """stream_sync or stream_query while host functions are about: raises what one of this stream raised, once."""
        answer = method(stream)
        if answer is False:  # work is queued yet
            return answer
        with self._lock:
            error = self._failed.pop(stream, None)
            if not self._waiting and not self._failed:
                self.stream_sync, self.stream_query = self.hot.stream_sync, self.hot.stream_query  # type: ignore[method-assign]
        if error is not None:
            raise error
        return answer

    def event_create(self, device: int, timing: bool = True) -> int:
        out = self.ffi.new("hal_handle *")
        self._call("event_create", device, int(timing), out)
        return self._handle(device, out, "event_create")

    def event_destroy(self, event: int) -> None:
        self._call("event_destroy", *self._split(event))

    def event_elapsed_ns(self, start: int, end: int) -> int:
        (device, a), (other, b) = self._split(start), self._split(end)
        if device != other:
            raise ArgumentError(f"{self.name}: events of devices {device} and {other} share no clock; use one device's")
        out = self.ffi.new("int64_t *")
        self._call("event_elapsed_ns", device, a, b, out)
        return int(out[0])

    # ---- modules -----------------------------------------------------------------------------------------------------
    def module_load(self, device: int, image: bytes, format: str) -> int:
        out = self.ffi.new("hal_handle *")
        self._call("module_load", device, self.ffi.from_buffer(image), len(image), format.encode(), out)
        return self._handle(device, out, "module_load")

    def module_unload(self, module: int) -> None:
        self._call("module_unload", *self._split(module))

    def get_kernel(self, module: int, name: str) -> int:
        out = self.ffi.new("hal_handle *")
        device, raw = self._split(module)
        self._call("get_kernel", device, raw, name.encode(), out)
        return self._handle(device, out, "get_kernel")

    def kernel_info(self, kernel: int) -> KernelInfo:
        info = self.ffi.new("hal_kernel_info *", {"struct_size": self.ffi.sizeof("hal_kernel_info"), "arg_count": -1, "max_threads": -1,
                                                  "shared_bytes": -1, "registers": -1, "local_bytes": -1})
        self._call("kernel_info", *self._split(kernel), info)
        args = None if info.arg_count < 0 else ("",) * info.arg_count
        return KernelInfo("", args, info.max_threads, info.shared_bytes, info.registers, info.local_bytes)

    # ---- graphs ------------------------------------------------------------------------------------------------------
    def graph_begin(self, stream: int) -> None:
        self._call("graph_begin", *self._split(stream))

    def graph_end(self, stream: int, abort: bool = False) -> int:
        device, raw = self._split(stream)
        out = self.ffi.NULL if abort else self.ffi.new("hal_handle *")
        self._call("graph_end", device, raw, out)
        return 0 if abort else self._handle(device, out, "graph_end")

    def graph_instantiate(self, graph: int) -> int:
        device, raw = self._split(graph)
        out = self.ffi.new("hal_handle *")
        self._call("graph_instantiate", device, raw, out)
        return self._handle(device, out, "graph_instantiate")

    def graph_launch(self, executable: int, stream: int) -> None:
        device, raw = self._split(executable)
        self._call("graph_launch", device, raw, self._stream(device, stream))

    def graph_destroy(self, graph: int) -> None:
        self._call("graph_destroy", *self._split(graph))

    # ---- communicators -----------------------------------------------------------------------------------------------
    def comm_unique_id(self) -> bytes:
        out = self.ffi.new("hal_comm_id *")
        self._call("comm_unique_id", out)
        return bytes(self.ffi.buffer(out))

    def comm_init(self, device: int, world: int, rank: int, unique_id: bytes) -> int:
        if not 0 <= rank < world < 1 << 31:
            raise ArgumentError(f"{self.name}: comm_init of rank {rank} of {world}; needs 0 <= rank < world")
        out, key = self.ffi.new("hal_handle *"), self.ffi.new("hal_comm_id *")
        if len(unique_id) > self.ffi.sizeof(key[0]):
            raise ArgumentError(f"{self.name}: a unique id of {len(unique_id)} bytes; needs what comm_unique_id gave")
        self.ffi.memmove(key, unique_id, len(unique_id))
        self._call("comm_init", device, world, rank, key, out)
        return self._handle(device, out, "comm_init")

    def comm_destroy(self, comm: int) -> None:
        self._call("comm_destroy", *self._split(comm))

    def comm_abort(self, comm: int) -> None:
        self._call("comm_abort", *self._split(comm))

    def _collective(self, method: str, comm: int, stream: int, *rest: Any) -> None:
        device, raw = self._split(comm)
        self._call(method, device, raw, self._stream(device, stream), *rest)

    def _code(self, dtype: str) -> int:
        if dtype not in BY_NAME:
            raise ArgumentError(f"{self.name}: dtype {dtype!r}; one of {', '.join(BY_NAME)}")
        return BY_NAME[dtype].code

    def _reduction(self, op: str) -> int:
        if op not in _REDUCE:
            raise ArgumentError(f"{self.name}: reduction {op!r}; one of {', '.join(_REDUCE)}")
        return _REDUCE[op]

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        self._collective("comm_all_reduce", comm, stream, send, recv, count, self._code(dtype), self._reduction(op))

    def comm_all_gather(self, comm: int, send: int, recv: int, count: int, dtype: str, stream: int) -> None:
        self._collective("comm_all_gather", comm, stream, send, recv, count, self._code(dtype))

    def comm_reduce_scatter(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        self._collective("comm_reduce_scatter", comm, stream, send, recv, count, self._code(dtype), self._reduction(op))

    def comm_broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        self._collective("comm_broadcast", comm, stream, send, recv, count, self._code(dtype), root)

    def comm_send(self, comm: int, send: int, count: int, dtype: str, peer: int, stream: int) -> None:
        self._collective("comm_send", comm, stream, send, count, self._code(dtype), peer)

    def comm_recv(self, comm: int, recv: int, count: int, dtype: str, peer: int, stream: int) -> None:
        self._collective("comm_recv", comm, stream, recv, count, self._code(dtype), peer)

    def comm_group_begin(self, comm: int) -> None:
        self._call("comm_group_begin", *self._split(comm))

    def comm_group_end(self, comm: int) -> None:
        self._call("comm_group_end", *self._split(comm))

    def comm_async_error(self, comm: int) -> None:
        self._call("comm_async_error", *self._split(comm))

    # ---- sharing with other processes --------------------------------------------------------------------------------
    def _ipc_handle(self, handle: bytes) -> Any:
        key = self.ffi.new("hal_ipc_handle *")
        if len(handle) > self.ffi.sizeof(key[0]):
            raise ArgumentError(f"{self.name}: an ipc handle of {len(handle)} bytes; needs what the export gave")
        self.ffi.memmove(key, handle, len(handle))
        return key

    def ipc_export(self, device: int, address: int) -> bytes:
        out = self.ffi.new("hal_ipc_handle *")
        self._call("ipc_export", device, address, out)
        return bytes(self.ffi.buffer(out))

    def ipc_open(self, device: int, handle: bytes) -> int:
        out = self.ffi.new("hal_dptr *")
        self._call("ipc_open", device, self._ipc_handle(handle), out)
        return self._address("ipc_open", out)

    def ipc_close(self, device: int, address: int) -> None:
        self._call("ipc_close", device, address)

    def ipc_event_export(self, event: int) -> bytes:
        out = self.ffi.new("hal_ipc_handle *")
        device, raw = self._split(event)
        self._call("ipc_event_export", device, raw, out)
        return bytes(self.ffi.buffer(out))

    def ipc_event_open(self, device: int, handle: bytes) -> int:
        out = self.ffi.new("hal_handle *")
        self._call("ipc_event_open", device, self._ipc_handle(handle), out)
        return self._handle(device, out, "ipc_event_open")

    # ---- profiling and sensors ---------------------------------------------------------------------------------------
    def prof_start(self, device: int) -> None:
        self._call("prof_start", device)

    def prof_stop(self, device: int) -> None:
        self._call("prof_stop", device)

    def prof_drain(self, device: int) -> list[ProfileRecord]:
        ffi, room = self.ffi, 256
        records, count = ffi.new("hal_prof_record[]", room), ffi.new("uint64_t *")
        found: list[ProfileRecord] = []
        while True:
            for i in range(room):
                records[i].struct_size = ffi.sizeof("hal_prof_record")
            self._call("prof_drain", device, records, room, count)
            for i in range(int(count[0])):
                r = records[i]
                found.append(ProfileRecord(_WORK[r.kind] if 0 <= r.kind < len(_WORK) else "other", ffi.string(r.name).decode(errors="replace"),
                                           device << _SHIFT | r.stream if r.stream else 0, r.start_ns, r.end_ns, int(r.bytes)))
            if int(count[0]) < room:
                return sorted(found, key=lambda r: r.start_ns)

    def telemetry(self, device: int) -> Telemetry:
        t = self.ffi.new("hal_telemetry *")
        nan = float("nan")
        t.struct_size = self.ffi.sizeof("hal_telemetry")
        t.util_percent = t.temperature_c = t.power_w = t.clock_mhz = t.mem_used_bytes = nan
        self._call("telemetry", device, t)
        return Telemetry(t.util_percent, t.temperature_c, t.power_w, t.clock_mhz, t.mem_used_bytes)

    # ---- operators of its own ----------------------------------------------------------------------------------------
    def op_query(self, device: int, name: str, dtypes: Sequence[str], contiguous: bool) -> str:
        out = self.ffi.new("int32_t *")
        codes = self.ffi.new("hal_dtype[]", [self._code(d) for d in dtypes])
        status = self._function("op_query")(device, name.encode(), codes, len(dtypes), int(contiguous), out)
        if status == Unsupported.code:
            return ""
        self._check("op_query", status)
        return {1: "supported", 2: "preferred"}.get(int(out[0]), "")

    def op_run(self, device: int, name: str, inputs: Sequence[object], outputs: Sequence[object], attrs: dict[str, object],
               stream: int = 0) -> None:
        keep: list[Any] = []
        ins, outs = (self._tensors(side, keep) for side in (inputs, outputs))
        numbers = self._attrs(attrs, keep)
        self._call("op_run", device, self._stream(device, stream), name.encode(), ins, len(inputs), outs, len(outputs), numbers, len(attrs))

    def _tensors(self, tensors: Sequence[Any], keep: list[Any]) -> Any:
        """An array of hal_tensor; one with ndim -1 stands for None."""
        out = self.ffi.new("hal_tensor[]", len(tensors))
        for row, t in zip(out, tensors):
            row.struct_size, row.ndim = self.ffi.sizeof("hal_tensor"), -1
            if t is not None:
                shape, strides = self.ffi.new("int64_t[]", list(t.shape)), self.ffi.new("int64_t[]", list(t.strides))
                keep += [shape, strides]
                row.dtype, row.data, row.ndim, row.shape, row.strides = t.dtype.code, t.address, t.ndim, shape, strides
        return out

    def _attrs(self, attrs: dict[str, Any], keep: list[Any]) -> Any:
        out = self.ffi.new("hal_attr[]", len(attrs))
        for row, (name, value) in zip(out, attrs.items()):
            keep.append(self.ffi.new("char[]", name.encode()))
            row.name = keep[-1]
            if isinstance(value, float):
                row.kind, row.f = 2, value
            elif isinstance(value, (tuple, list)):
                keep.append(self.ffi.new("int64_t[]", list(value)))
                row.kind, row.count, row.ints = 3, len(value), keep[-1]
            elif value is not None:
                row.kind, row.i = 1, int(getattr(value, "code", value))
        return out
