"""Collective libraries of the NCCL kind as tables: names, argument orders, numbers; one class runs any of them.

Takes plain numbers: device addresses, streams as the vendor's pointers, communicators as the library's pointers.  A driver
gets its comm group by mixing VendorCommunicators in.
Not here: the vendors' runtimes (adapters/engine), the host's own communicators (adapters/cpu/comm.py), any header's text.
"""
from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from haian.hal.comm import check_call, check_world
from haian.hal.driver import DEVICE_TO_DEVICE, Copy
from haian.hal.dtype import BY_NAME
from haian.hal.errors import (
    ArgumentError,
    EnvironmentMissing,
    HaianError,
    InternalError,
    InvalidHandle,
    OutOfMemory,
    Timeout,
    Unsupported,
)
from haian.hal.host_queues import Handles

__all__ = ["BKCL", "CNCL", "ECCL", "HCCL", "LIBRARIES", "MCCL_MACA", "MCCL_MUSA", "NCCL", "PCCL", "RCCL", "Collectives", "Library", "VendorCommunicators"]

# What an argument is -> its C type.  "[]" marks an array of one, ">" what the library writes.
_TYPES = {
    "comm": "void *", "comm>": "void **", "comm[]": "void **", "send": "const void *", "recv": "void *", "buffer": "void *", "count": "uint64_t",
    "dtype": "int", "op": "int", "root": "int", "peer": "int", "stream": "void *", "world": "int", "rank": "int", "one": "int",
    "device[]": "const int *", "rank[]": "const int *", "id": "{id}", "id*": "{id} *", "id>": "{id} *", "status>": "int *", "code": "int",
}
_REQUIRED = ("unique_id", "init", "destroy", "all_reduce", "all_gather", "reduce_scatter", "broadcast", "send", "recv")
_MAX_UNKNOWN_ID = 4096  # bytes kept for ids whose size is in no public text; the library writes what it needs of them


@dataclass(frozen=True)
class Collectives:
    """One vendor's library.

    Attributes:
        name: for messages.
        libraries: where to look, in order; ``$NAME`` and ``*`` are expanded, what does not expand is skipped.
        calls: role -> (symbol or alternates, argument order).  Roles that are absent: see Library.
        dtypes, reductions: numbers by haian's names; what is absent the library does not have.
        id_bytes: size of the unique id.
        witness: a symbol that only the right one has, where two vendors' libraries share a file name.
        headers: files of the installed SDK that give the numbers, where no public text does, with the enumerators' names.
        errors: result numbers that mean something to haian; others are InternalErrors.
        fine: result numbers that are no errors.
        note: what is known of it and from where.
    """

    name: str
    libraries: tuple[str, ...]
    calls: Mapping[str, tuple[str | tuple[str, ...], str]]
    dtypes: Mapping[str, int]
    reductions: Mapping[str, int]
    id_bytes: int = 128
    witness: str = ""
    headers: tuple[str, ...] = ()
    enumerators: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[int, type[HaianError]] = field(default_factory=dict)
    fine: tuple[int, ...] = (0,)
    note: str = ""


def _nccl_calls(prefix: str) -> dict[str, tuple[str | tuple[str, ...], str]]:
    return {
        "unique_id": (f"{prefix}GetUniqueId", "id>"), "init": (f"{prefix}CommInitRank", "comm> world id rank"),
        "destroy": (f"{prefix}CommDestroy", "comm"), "abort": (f"{prefix}CommAbort", "comm"),
        "async_error": (f"{prefix}CommGetAsyncError", "comm status>"), "error_text": (f"{prefix}GetErrorString", "code"),
        "all_reduce": (f"{prefix}AllReduce", "send recv count dtype op comm stream"),
        "all_gather": (f"{prefix}AllGather", "send recv count dtype comm stream"),
        "reduce_scatter": (f"{prefix}ReduceScatter", "send recv count dtype op comm stream"),
        "broadcast": (f"{prefix}Broadcast", "send recv count dtype root comm stream"),
        "send": (f"{prefix}Send", "send count dtype peer comm stream"), "recv": (f"{prefix}Recv", "recv count dtype peer comm stream"),
        "group_begin": (f"{prefix}GroupStart", ""), "group_end": (f"{prefix}GroupEnd", ""),
    }


_NCCL_DTYPES = {"int8": 0, "uint8": 1, "int32": 2, "uint32": 3, "int64": 4, "uint64": 5, "float16": 6, "float32": 7, "float64": 8, "bfloat16": 9}
_NCCL_OPS = {"sum": 0, "prod": 1, "max": 2, "min": 3, "avg": 4}
# ncclResult_t: 4 invalid argument, 5 invalid usage, 6 remote error (a rank is gone), 7 in progress
_NCCL_ERRORS: dict[int, type[HaianError]] = {4: ArgumentError, 5: ArgumentError, 6: Timeout}

NCCL = Collectives("nccl", ("libnccl.so.2", "libnccl.so"), _nccl_calls("nccl"), _NCCL_DTYPES, _NCCL_OPS, errors=_NCCL_ERRORS, fine=(0, 7),
                   note="public header of NCCL 2; Iluvatar's IXCCL and T-Head's PCCL come under the same file and symbol names")
RCCL = replace(NCCL, name="rccl", libraries=("librccl.so.1", "librccl.so", "/opt/rocm/lib/librccl.so", "/opt/dtk*/lib/librccl.so"),
               note="public header; symbols are NCCL's; Hygon ships it too")
MCCL_MUSA = replace(NCCL, name="mccl (Moore Threads)", calls=_nccl_calls("mccl"), witness="mcclCommMuDevice",
                    libraries=("$MUSA_HOME/lib/libmccl.so", "$MUSA_PATH/lib/libmccl.so", "/usr/local/musa/lib/libmccl.so", "/opt/musa/lib/libmccl.so", "libmccl.so"),
                    note="NCCL-shaped; its numbers taken to be NCCL's, not read in a header")
MCCL_MACA = replace(NCCL, name="mccl (MetaX)", calls=_nccl_calls("mccl"), witness="mcclCommMcDevice",
                    libraries=("$MACA_PATH/lib/libmccl.so", "/opt/maca/lib/libmccl.so", "libmccl.so"),
                    note="NCCL-shaped; its numbers taken to be NCCL's, not read in a header")
ECCL = replace(NCCL, name="eccl", calls=_nccl_calls("eccl"), libraries=("libeccl.so", "/usr/lib/libeccl.so", "/opt/tops/lib/libeccl.so"),
               note="NCCL-shaped, NCCL's numbers (public Python bindings)")
# bfloat16 stands where NCCL has float64, and there is no float64
PCCL = replace(NCCL, name="pccl", calls=_nccl_calls("pccl"), libraries=("/usr/local/pccl/lib/linux-x86_64/libpccl.so", "libpccl.so"),
               dtypes={**{k: v for k, v in _NCCL_DTYPES.items() if v < 8}, "bfloat16": 8}, note="public header of Sunrise's PCCL")

HCCL = Collectives(
    "hccl", ("libhccl.so", "$ASCEND_HOME_PATH/lib64/libhccl.so", "/usr/local/Ascend/ascend-toolkit/latest/lib64/libhccl.so"),
    {"unique_id": ("HcclGetRootInfo", "id>"), "init": ("HcclCommInitRootInfo", "world id* rank comm>"), "destroy": ("HcclCommDestroy", "comm"),
     "async_error": ("HcclGetCommAsyncError", "comm status>"), "error_text": ("HcclGetErrorString", "code"),
     "all_reduce": ("HcclAllReduce", "send recv count dtype op comm stream"), "all_gather": ("HcclAllGather", "send recv count dtype comm stream"),
     "reduce_scatter": ("HcclReduceScatter", "send recv count dtype op comm stream"), "broadcast": ("HcclBroadcast", "buffer count dtype root comm stream"),
     "send": ("HcclSend", "send count dtype peer comm stream"), "recv": ("HcclRecv", "recv count dtype peer comm stream"),
     "group_begin": ("HcclGroupStart", ""), "group_end": ("HcclGroupEnd", "")},
    {"int8": 0, "int16": 1, "int32": 2, "float16": 3, "float32": 4, "int64": 5, "uint64": 6, "uint8": 7, "uint16": 8, "uint32": 9, "float64": 10,
     "bfloat16": 11},
    {"sum": 0, "prod": 1, "max": 2, "min": 3}, id_bytes=4108,
    errors={1: ArgumentError, 2: ArgumentError, 3: OutOfMemory, 5: Unsupported, 9: Timeout},
    note="public header; broadcast has one buffer, no avg, no abort: queued calls end by HCCL's own time limit")

# The id is a struct of 128 bytes and a 64-bit hash, passed by address; async_error returns the state instead of writing it.
CNCL = Collectives(
    "cncl", ("libcncl.so", "$NEUWARE_HOME/lib64/libcncl.so", "/usr/local/neuware/lib64/libcncl.so"),
    {"unique_id": ("cnclGetCliqueId", "id>"), "init": ("cnclInitComms", "comm> one device[] rank[] world id*"),
     "destroy": (("cnclFreeComm", "cnclDestroyComms"), "comm"), "abort": ("cnclAbortComm", "comm"), "async_error": ("cnclGetCommAsyncError", "comm"),
     "error_text": ("cnclGetErrorStr", "code"),
     "all_reduce": ("cnclAllReduce", "send recv count dtype op comm stream"), "all_gather": ("cnclAllGather", "send recv count dtype comm stream"),
     "reduce_scatter": ("cnclReduceScatter", "send recv count dtype op comm stream"),
     "broadcast": ("cnclBroadcast", "send recv count dtype root comm stream"),
     "send": ("cnclSend", "buffer count dtype peer comm stream"), "recv": ("cnclRecv", "buffer count dtype peer comm stream"),
     "group_begin": ("cnclGroupStart", ""), "group_end": ("cnclGroupEnd", "")},
    {"float16": 0x10, "bfloat16": 0x11, "float32": 0x12, "int8": 0x20, "int16": 0x21, "int32": 0x22, "int64": 0x23, "uint8": 0x30, "uint16": 0x31,
     "uint32": 0x32, "uint64": 0x33},
    {"sum": 0, "prod": 1, "max": 2, "min": 3}, id_bytes=136, errors={0x05: InternalError, 0x07: ArgumentError, 0x08: OutOfMemory, 0x16: Timeout},
    fine=(0, 0x06), note="public copy of the header; no float64, no avg")

# Context first; rank before world; count before recv in all_gather, peer before dtype in messages.
BKCL = Collectives(
    "bkcl", ("libbkcl.so", "$XCCL_TOOLKIT_ROOT/so/libbkcl.so", "/usr/local/xccl/so/libbkcl.so"),
    {"unique_id": ("bkcl_get_unique_id", "id>"), "init": ("bkcl_init_rank", "comm> rank world id*"), "destroy": ("bkcl_destroy_context", "comm"),
     "abort": ("bkcl_comm_abort", "comm"),
     "all_reduce": ("bkcl_all_reduce", "comm send recv count dtype op stream"), "all_gather": ("bkcl_all_gather", "comm send count recv dtype stream"),
     "reduce_scatter": ("bkcl_reduce_scatter", "comm send recv count dtype op stream"),
     "broadcast": ("bkcl_broadcast", "comm send recv count dtype root stream"),
     "send": ("bkcl_send", "comm send count peer dtype stream"), "recv": ("bkcl_recv", "comm recv count peer dtype stream"),
     "group_begin": ("bkcl_group_start", ""), "group_end": ("bkcl_group_end", "")},
    {}, {}, id_bytes=_MAX_UNKNOWN_ID, headers=("$XCCL_TOOLKIT_ROOT/include/bkcl.h", "/usr/local/xccl/include/bkcl.h"),
    enumerators={"float32": "BKCL_FLOAT", "float16": "BKCL_FLOAT16", "float64": "BKCL_FLOAT64", "bfloat16": "BKCL_BFLOAT16", "int32": "BKCL_INT32",
                 "int64": "BKCL_INT64", "uint8": "BKCL_UINT8", "sum": "BKCL_ADD", "prod": "BKCL_PRODUCT", "max": "BKCL_MAX", "min": "BKCL_MIN",
                 "avg": "BKCL_AVG"},
    note="argument orders from public callers; numbers are read from the installed bkcl.h, since no public text has them")

LIBRARIES: dict[str, Collectives] = {"nccl": NCCL, "rccl": RCCL, "hccl": HCCL, "cncl": CNCL, "mccl_musa": MCCL_MUSA, "mccl_maca": MCCL_MACA,
                                     "bkcl": BKCL, "eccl": ECCL, "pccl": PCCL}


def enumerators(text: str) -> dict[str, int]:
    """Names and values of all enums in a C header: explicit, implicit, hexadecimal, or another enumerator's."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.S)
    found: dict[str, int] = {}
    for body in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", text):
        value = -1
        for item in body.split(","):
            name, _, given = (part.strip() for part in item.partition("="))
            if not name:
                continue
            try:
                value = value + 1 if not given else found[given] if given in found else int(given, 0)
            except ValueError:  # an expression: the names behind it have unknown values
                break
            found[name] = value
    return found


def _expand(pattern: str) -> list[str]:
    path = os.path.expandvars(pattern)
    if "$" in path:
        return []
    return sorted(glob.glob(path)) if "*" in path else [path]


class Library:
    """A loaded collective library.  Communicators are its pointers as integers.

    Roles a table may lack: ``abort`` (queued calls end by the library's own limit), ``async_error`` (none is ever seen),
    ``group_begin`` and ``group_end`` (Unsupported), ``error_text`` (the number alone).

    Args:
        path: instead of the table's candidates.
        header: instead of the table's headers.

    Raises:
        EnvironmentMissing: no library, a symbol is missing, or its numbers cannot be found.
    """

    def __init__(self, table: Collectives, path: str | None = None, header: str | None = None) -> None:
        from cffi import FFI
        self.table = self._numbers(table, header)
        self.ffi = FFI()
        self.ffi.cdef(f"typedef struct {{ char bytes[{table.id_bytes}]; }} xccl_id;")
        for role, (symbols, order) in table.calls.items():
            types = ", ".join(_TYPES[word].format(id="xccl_id") for word in order.split()) or "void"
            for symbol in _alternates(symbols):
                self.ffi.cdef(f"{'const char *' if role == 'error_text' else 'int '}{symbol}({types});")
        if table.witness:
            self.ffi.cdef(f"int {table.witness}(void *, int *);")
        self.path, self._lib = self._open([path] if path else [p for c in table.libraries for p in _expand(c)])
        self._calls: dict[str, tuple[Any, list[str]]] = {}
        for role, (symbols, order) in table.calls.items():
            for symbol in _alternates(symbols):
                if hasattr(self._lib, symbol):
                    self._calls[role] = (getattr(self._lib, symbol), order.split())
                    break
        lacks = [" or ".join(_alternates(table.calls[r][0])) for r in _REQUIRED if r not in self._calls]
        if lacks:
            raise EnvironmentMissing(f"{table.name}: {self.path} lacks {', '.join(lacks)}; install a newer library")

    @staticmethod
    def _numbers(table: Collectives, header: str | None) -> Collectives:
        if not table.enumerators:
            return table
        files = [header] if header else [f for h in table.headers for f in _expand(h)]
        text = next((Path(f).read_text(errors="replace") for f in files if Path(f).is_file()), None)
        if text is None:
            raise EnvironmentMissing(f"{table.name}: needs the numbers of its header, none of {', '.join(files) or 'its folders'} is there; "
                                     f"install the SDK or set its root variable")
        known = enumerators(text)
        numbers = {ours: known[theirs] for ours, theirs in table.enumerators.items() if theirs in known}
        return replace(table, dtypes={k: v for k, v in numbers.items() if k in BY_NAME},
                       reductions={k: v for k, v in numbers.items() if k not in BY_NAME})

    def _open(self, candidates: list[str]) -> tuple[str, Any]:
        tried = []
        for path in candidates:
            try:
                lib = self.ffi.dlopen(path)
            except OSError as e:
                tried.append(f"{path} ({e})")
                continue
            if self.table.witness and not hasattr(lib, self.table.witness):
                tried.append(f"{path} (no {self.table.witness}: another vendor's)")
                continue
            return path, lib
        raise EnvironmentMissing(f"{self.table.name}: no library: {'; '.join(tried) or 'no candidate on this machine'}")

    # ---- calls -----------------------------------------------------------------------------------------------------
    def _call(self, role: str, **values: Any) -> int:
        fn, order = self._calls[role]
        return fn(*(values[word.rstrip(">*[]")] if word != "one" else 1 for word in order))

    def _check(self, code: int, role: str) -> None:
        if code in self.table.fine:
            return
        text = ""
        if "error_text" in self._calls:
            said = self._calls["error_text"][0](code)
            text = f" ({self.ffi.string(said).decode(errors='replace')})" if said != self.ffi.NULL else ""
        raise self.table.errors.get(code, InternalError)(f"{self.table.name}: {role} failed with {code}{text}; look at the other ranks")

    def _pointer(self, value: int) -> Any:
        return self.ffi.cast("void *", value)

    def unique_id(self) -> bytes:
        out = self.ffi.new("xccl_id *")
        self._check(self._call("unique_id", id=out), "unique_id")
        return bytes(self.ffi.buffer(out))

    def init(self, device: int, world: int, rank: int, unique_id: bytes) -> int:
        """The calling thread's current device is the rank's already; ``device`` is its number for libraries that ask."""
        if len(unique_id) != self.table.id_bytes:
            raise ArgumentError(f"{self.table.name}: a unique id of {len(unique_id)} bytes; needs the {self.table.id_bytes} that unique_id gave")
        comm, key = self.ffi.new("void **"), self.ffi.new("xccl_id *")
        self.ffi.memmove(key, unique_id, len(unique_id))
        by_address = "id*" in self._calls["init"][1]
        arrays = "rank[]" in self._calls["init"][1]
        devices, ranks = self.ffi.new("int[1]", [device]), self.ffi.new("int[1]", [rank])
        self._check(self._call("init", comm=comm, world=world, id=key if by_address else key[0], rank=ranks if arrays else rank, device=devices), "init")
        return int(self.ffi.cast("uintptr_t", comm[0]))

    def destroy(self, comm: int) -> None:
        self._check(self._call("destroy", comm=self._pointer(comm)), "destroy")

    def abort(self, comm: int) -> bool:
        """Whether the library can."""
        if "abort" not in self._calls:
            return False
        self._check(self._call("abort", comm=self._pointer(comm)), "abort")
        return True

    def async_error(self, comm: int) -> None:
        if "async_error" not in self._calls:
            return
        status = self.ffi.new("int *")
        code = self._call("async_error", comm=self._pointer(comm), status=status)
        self._check(code, "async_error")
        self._check(status[0], "a queued call")

    def all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        self._run("all_reduce", comm, stream, send=send, recv=recv, count=count, dtype=self._reducible(dtype, op), op=self.table.reductions[op])

    def reduce_scatter(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        self._run("reduce_scatter", comm, stream, send=send, recv=recv, count=count, dtype=self._reducible(dtype, op), op=self.table.reductions[op])

    def all_gather(self, comm: int, send: int, recv: int, count: int, dtype: str, stream: int) -> None:
        number, count = self.movable(dtype, count)
        self._run("all_gather", comm, stream, send=send, recv=recv, count=count, dtype=number)

    def broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        """Where the library takes one buffer that is ``recv``, which on the root holds the elements already."""
        number, count = self.movable(dtype, count)
        self._run("broadcast", comm, stream, send=send, recv=recv, buffer=recv, count=count, dtype=number, root=root)

    def send(self, comm: int, send: int, count: int, dtype: str, peer: int, stream: int) -> None:
        number, count = self.movable(dtype, count)
        self._run("send", comm, stream, send=send, buffer=send, count=count, dtype=number, peer=peer)

    def recv(self, comm: int, recv: int, count: int, dtype: str, peer: int, stream: int) -> None:
        number, count = self.movable(dtype, count)
        self._run("recv", comm, stream, recv=recv, buffer=recv, count=count, dtype=number, peer=peer)

    def group_begin(self) -> None:
        self._group("group_begin")

    def group_end(self) -> None:
        self._group("group_end")

    @property
    def one_buffer(self) -> bool:
        """Whether broadcast works in place only."""
        return "buffer" in self._calls["broadcast"][1]

    def _group(self, role: str) -> None:
        if role not in self._calls:
            raise Unsupported(f"{self.table.name}: {self.path} has no groups; send and receive in an order that cannot lock")
        self._check(self._call(role), role)

    def _run(self, role: str, comm: int, stream: int, **values: Any) -> None:
        for name in ("send", "recv", "buffer"):
            if name in values:
                values[name] = self._pointer(values[name])
        self._check(self._call(role, comm=self._pointer(comm), stream=self._pointer(stream), **values), role)

    # ---- numbers ---------------------------------------------------------------------------------------------------
    def _reducible(self, dtype: str, op: str) -> int:
        if op not in self.table.reductions:
            raise Unsupported(f"{self.table.name}: has no {op}; it has {', '.join(self.table.reductions)}")
        if dtype == "bool" and op in ("max", "min"):  # one byte of 0 or 1
            dtype = "uint8"
        if dtype not in self.table.dtypes:
            raise Unsupported(f"{self.table.name}: reduces no {dtype}; it has {', '.join(self.table.dtypes)}, cast first")
        return self.table.dtypes[dtype]

    def movable(self, dtype: str, count: int) -> tuple[int, int]:
        """(number, count) that moves the same bytes: as itself where the library has the dtype, else as another width."""
        if dtype in self.table.dtypes:
            return self.table.dtypes[dtype], count
        size = BY_NAME[dtype].itemsize
        widths = sorted(((BY_NAME[d].itemsize, -n) for d, n in self.table.dtypes.items()), reverse=True)
        for width, number in widths:
            if size % width == 0:
                return -number, count * (size // width)
        raise Unsupported(f"{self.table.name}: cannot move {dtype} of {size} bytes; it has {', '.join(self.table.dtypes)}")


def _alternates(symbols: str | tuple[str, ...]) -> tuple[str, ...]:
    return (symbols,) if isinstance(symbols, str) else symbols


class _Comm:
    """One rank of a vendor's communicator."""

    def __init__(self, device: int, rank: int, pointer: int) -> None:
        self.device, self.rank, self.pointer = device, rank, pointer
        self.gone = False  # aborted: the library has freed it


class VendorCommunicators:
    """The comm group of a driver over a Library, mixed in before Driver (or TableDriver).

    The driver has ``_enter(device)``, which makes the device the thread's current one, and ``_stream(stream)``, the vendor's
    pointer behind a stream handle (TableDriver's are these), or overrides ``_comm_enter`` and ``_comm_stream``; and it sets
    ``collectives``, the table, or ``_library``, one already loaded.
    ``offers("comm")`` is to ask ``has_collectives``: without a library collectives are staged through the host.
    """

    comm_keeps_timeout = False  # these libraries wait for ever: hal/comm.py watches
    collectives: Collectives | None = None
    _library: Library | None = None
    _library_error: HaianError | None = None
    _ranks: Handles | None = None

    def _comm_enter(self, device: int) -> None:
        self._enter(device)  # type: ignore[attr-defined]

    def _comm_stream(self, stream: int) -> int:
        return self._stream(stream)  # type: ignore[attr-defined]

    def _load(self) -> Library:
        """The library, looked for once.

        Raises:
            EnvironmentMissing: there is none, as often as asked.
        """
        if self._library is None and self._library_error is None:
            try:
                if self.collectives is None:
                    raise EnvironmentMissing("no collective library is known for this vendor; collectives go through the host")
                self._library = Library(self.collectives)
            except HaianError as e:
                self._library_error = e
        if self._library is None:
            raise self._library_error or InternalError("no collective library")
        return self._library

    def has_collectives(self) -> bool:
        """Whether the library is there."""
        try:
            self._load()
        except HaianError:  # why stands in _library_error
            return False
        return True

    def _comm_at(self, comm: int) -> _Comm:
        """A live communicator, its device entered."""
        if self._ranks is None:
            raise InvalidHandle(f"communicator {comm:#x} is not alive; make a new one")
        found = self._ranks.get(comm, _Comm)
        if found.gone:
            raise InvalidHandle(f"communicator {comm:#x} was aborted; make a new one")
        self._comm_enter(found.device)
        return found

    def comm_unique_id(self) -> bytes:
        """As long as the library's: 128 bytes for most, 4108 for HCCL, which drivers in C cannot pass on."""
        return self._load().unique_id()

    def comm_init(self, device: int, world: int, rank: int, unique_id: bytes) -> int:
        check_world(self.name, world, rank)  # type: ignore[attr-defined]
        self._comm_enter(device)
        made = _Comm(device, rank, self._load().init(device, world, rank, unique_id))
        if self._ranks is None:
            self._ranks = Handles("communicators")
        return self._ranks.add(made)

    def comm_destroy(self, comm: int) -> None:
        """After an abort there is nothing left to destroy: the library freed it."""
        found = self._ranks.remove(comm, _Comm) if self._ranks is not None else self._comm_at(comm)
        if not found.gone:
            self._comm_enter(found.device)
            self._load().destroy(found.pointer)

    def comm_abort(self, comm: int) -> None:
        found = self._comm_at(comm)
        found.gone = self._load().abort(found.pointer)

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        check_call(self.name, count, dtype)  # type: ignore[attr-defined]
        self._load().all_reduce(self._comm_at(comm).pointer, send, recv, count, dtype, op, self._comm_stream(stream))

    def comm_all_gather(self, comm: int, send: int, recv: int, count: int, dtype: str, stream: int) -> None:
        check_call(self.name, count, dtype)  # type: ignore[attr-defined]
        self._load().all_gather(self._comm_at(comm).pointer, send, recv, count, dtype, self._comm_stream(stream))

    def comm_reduce_scatter(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        check_call(self.name, count, dtype)  # type: ignore[attr-defined]
        self._load().reduce_scatter(self._comm_at(comm).pointer, send, recv, count, dtype, op, self._comm_stream(stream))

    def comm_broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        check_call(self.name, count, dtype)  # type: ignore[attr-defined]
        found, library = self._comm_at(comm), self._load()
        if library.one_buffer and found.rank == root and send != recv and count:
            self.copy(found.device, Copy(DEVICE_TO_DEVICE, recv, send, count * BY_NAME[dtype].itemsize), stream)  # type: ignore[attr-defined]
        library.broadcast(found.pointer, send, recv, count, dtype, root, self._comm_stream(stream))

    def comm_send(self, comm: int, send: int, count: int, dtype: str, peer: int, stream: int) -> None:
        check_call(self.name, count, dtype)  # type: ignore[attr-defined]
        self._load().send(self._comm_at(comm).pointer, send, count, dtype, peer, self._comm_stream(stream))

    def comm_recv(self, comm: int, recv: int, count: int, dtype: str, peer: int, stream: int) -> None:
        check_call(self.name, count, dtype)  # type: ignore[attr-defined]
        self._load().recv(self._comm_at(comm).pointer, recv, count, dtype, peer, self._comm_stream(stream))

    def comm_group_begin(self, comm: int) -> None:
        self._comm_at(comm)
        self._load().group_begin()

    def comm_group_end(self, comm: int) -> None:
        self._comm_at(comm)
        self._load().group_end()

    def comm_async_error(self, comm: int) -> None:
        self._load().async_error(self._comm_at(comm).pointer)
