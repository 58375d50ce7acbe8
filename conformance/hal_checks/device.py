"""Checks 10 to 13: what a driver says of its devices, and how it refuses those that are not there."""
from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ...hal.driver import HOST_TO_DEVICE, Copy, Launch
from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, HaianError, InvalidHandle
from .check import Subject, check, host, require


@check(10, "enumeration", "C")
def enumeration(s: Subject) -> None:
    """The number of devices and their properties never change; numbers are places; uuids differ."""
    count = s.driver.device_count()
    require(isinstance(count, int) and count > 0, f"device_count gave {count!r}; needs 1 or more, since device {s.device} is under test")
    first = [s.driver.props(d) for d in range(count)]
    for _ in range(5):
        require(s.driver.device_count() == count, f"device_count was {count}, now {s.driver.device_count()}")
    for driver in (s.driver, s.fresh()):
        require(driver.device_count() == count, f"another driver object counts {driver.device_count()} devices, not {count}")
        again = [driver.props(d) for d in range(count)]
        changed = [f"{k} of device {d}: {v!r}, now {vars(b)[k]!r}" for d, (a, b) in enumerate(zip(first, again)) for k, v in vars(a).items()
                   if vars(b)[k] != v]
        require(not changed, f"properties changed between calls: {'; '.join(changed)}")
    uuids = [p.uuid for p in first if p.uuid]
    require(len(set(uuids)) == len(uuids), f"two devices share a uuid: {', '.join(uuids)}")
    if s.path:
        raw: Any = s.raw
        for d in range(count):
            p = raw.ffi.new("hal_props *")
            p.struct_size = raw.ffi.sizeof("hal_props")
            require(raw.table.core.props(d, p) == 0 and p.index == d, f"props of device {d} has index {p.index}")


@check(11, "properties", "C", validation="off")
def properties(s: Subject) -> None:
    """Properties are possible and agree with each other and with the groups offered."""
    p = s.caps
    unknown = [d for d in (*p.dtypes_load, *p.dtypes_math) if d not in BY_NAME]
    extra = sorted(set(p.dtypes_math) - set(p.dtypes_load))
    modules = s.offers("module")
    facts = [
        (p.model.strip(), f"model {p.model!r}; needs a name"),
        (p.total_bytes > 0, f"total_bytes {p.total_bytes}; needs more than 0"),
        (0 < p.max_alloc_bytes <= p.total_bytes, f"max_alloc_bytes {p.max_alloc_bytes} with total_bytes {p.total_bytes}; needs 1 .. total"),
        (p.align_bytes > 0 and not p.align_bytes & (p.align_bytes - 1), f"align_bytes {p.align_bytes}; needs a power of two"),
        (not unknown, f"unknown dtypes {', '.join(unknown)}; use the names of hal/dtype.py"),
        (not extra, f"dtypes_math has {', '.join(extra)}, which dtypes_load lacks"),
        (p.streams == s.offers("stream"), f"claims streams={p.streams}, group offered: {s.offers('stream')}"),
        (p.events == s.offers("event"), f"claims events={p.events}, group offered: {s.offers('event')}"),
        (p.streams or not p.async_copy, "claims async_copy without streams"),
        (p.event_unit_ns >= 1, f"event_unit_ns {p.event_unit_ns}; needs 1 or more"),
        (not modules or p.image_format, "offers modules without saying the image_format they take"),
        (len(p.max_grid) == 3 and min(p.max_grid) >= 1 and p.max_grid_product >= 1, f"max_grid {p.max_grid}, product {p.max_grid_product}"),
        (p.max_threads >= 1 and p.multiprocessors >= 1, f"max_threads {p.max_threads}, multiprocessors {p.multiprocessors}; need 1 or more"),
        (p.max_shared_bytes >= 0 and p.warp_size >= 0, f"max_shared_bytes {p.max_shared_bytes}, warp_size {p.warp_size}; need 0 or more"),
        (p.default_stream in ("independent", "blocking"), f"default_stream {p.default_stream!r}; independent or blocking"),
    ]
    wrong = [what for holds, what in facts if not holds]
    require(not wrong, "; ".join(wrong))
    if p.host_access:
        _host_access(s)


def _host_access(s: Subject) -> None:
    """The host reads and writes device memory where that is claimed: the system does it through a pipe, and says EFAULT instead of crashing."""
    n = 512  # what a pipe takes at once anywhere
    address, data = s.alloc(n), s.pattern(n)
    s.upload(address, data)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.read.argtypes = libc.write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    reads, writes = os.pipe()
    try:
        done = libc.write(writes, address, n)
        require(done == n, f"claims host_access, but the host cannot read {address:#x}: {os.strerror(ctypes.get_errno())}")
        require(os.read(reads, n) == data.tobytes(), "claims host_access, but the host reads other bytes than the device has")
        new = s.pattern(n)
        os.write(writes, new.tobytes())
        done = libc.read(reads, address, n)
        require(done == n, f"claims host_access, but the host cannot write {address:#x}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(reads)
        os.close(writes)
    require((s.download(address, n) == new).all(), "claims host_access, but the device does not see what the host wrote")


@check(12, "bad_ordinal", "C")
def bad_ordinal(s: Subject) -> None:
    """Every function that takes a device refuses -1, the count and 2^31 - 1."""
    d, address, data = s.driver, s.alloc(4096), np.zeros(64, np.uint8)
    absent = (-1, s.count, 2**31 - 1, 2**32 + s.device, s.device - 2**32, 2**63)  # some of them this device in 32 bits
    calls: list[tuple[str, Callable[..., object], tuple]] = [
        ("", d.props, ()), ("", d.sync, ()), ("", d.reset, ()), ("", d.alloc, (64,)), ("", d.free, (address,)),
        ("", d.copy, (Copy(HOST_TO_DEVICE, address, host(data), 64),)), ("fill", d.fill, (address, b"a", 64)), ("mem_info", d.mem_info, ()),
        ("pinned", d.host_alloc, (64,)), ("host_register", d.host_register, (host(data), 64)),
        ("host_unregister", d.host_unregister, (host(data),)), ("ptr_info", d.ptr_info, (address,)), ("pool_trim", d.pool_trim, ()),
        ("stream", d.stream_create, ()), ("event", d.event_create, ()), ("module", d.module_load, (b"image", s.caps.image_format)),
        ("ipc", d.ipc_export, (address,)), ("ipc", d.ipc_close, (address,)), ("prof", d.prof_start, ()), ("prof", d.prof_stop, ()),
        ("prof", d.prof_drain, ()), ("telemetry", d.telemetry, ()), ("op", d.op_query, ("add", ("float32", "float32"), True)),
        ("op", d.op_run, ("add", (), (), {})), ("ipc", d.ipc_open, (bytes(64),)),
    ]
    for group, call, rest in calls:
        if not group or s.offers(group):
            for device in absent:
                s.expect(ArgumentError, call, device, *rest)
    if s.offers("module"):
        for device in absent:  # kernel 0 is never alive: which of the two is refused first is the driver's affair
            s.expect((ArgumentError, InvalidHandle), d.launch, device, Launch(0, (1, 1, 1), 1, 0, ()))
    if s.offers("comm"):
        unique = d.comm_unique_id()
        for device in absent:
            s.expect(ArgumentError, d.comm_init, device, 1, 0, unique)
    s.upload(address, data)
    require(not s.download(address, 64).any(), "the device under test does not work any more")


@check(13, "last_error", "C")
def last_error(s: Subject) -> None:
    """A failure leaves its message with the thread it happened in, on one line, and the next call works."""
    said: dict[int, str] = {}

    def fail(i: int) -> None:
        for _ in range(50):
            try:
                s.driver.alloc(s.device, 0) if i else s.driver.props(s.count + 7)
            except HaianError as error:
                said[i] = str(error)
            address = s.driver.alloc(s.device, 64)
            s.driver.free(s.device, address)

    s.threads(2, fail)
    require(said.get(0) and said.get(1), f"messages {said}; needs one for each thread's failure")
    require(said[0] != said[1], f"two different failures at the same time have one message: {said[0]!r}")
    require(all("\n" not in m.strip() for m in said.values()), "a message has several lines; needs one")
    if s.path:
        _table_error(s)


def _table_error(s: Subject) -> None:
    """core.last_error: kept for its thread, cut at the capacity with a NUL."""
    raw: Any = s.raw
    ffi, core, mem = raw.ffi, raw.table.core, raw.table.mem
    out = ffi.new("hal_dptr *")
    desc = ffi.new("hal_alloc_desc *", {"struct_size": ffi.sizeof("hal_alloc_desc"), "bytes": 0})

    def read(capacity: int) -> tuple[int, bytes]:
        memory = ffi.new("char[]", b"\xa5" * (capacity + 64))
        return int(core.last_error(memory, capacity)), bytes(ffi.buffer(memory, capacity + 64))

    require(mem.alloc(s.device, desc, out) != 0, "alloc of zero bytes succeeded")
    length, whole = read(4096)
    message = whole.split(b"\0")[0]
    require(message and len(message) == length, f"last_error returned {length} for the message {message!r}; needs its whole length")

    def elsewhere(i: int) -> None:
        good = ffi.new("hal_alloc_desc *", {"struct_size": ffi.sizeof("hal_alloc_desc"), "bytes": 64})
        mine = ffi.new("hal_dptr *")
        require(mem.alloc(s.device, good, mine) == 0 and mem.free(s.device, mine[0]) == 0, "a good alloc on another thread failed")
        require(read(4096)[1].split(b"\0")[0] != message, "last_error of another thread is seen here; keep it per thread")

    s.threads(1, elsewhere)
    require(read(4096)[1].split(b"\0")[0] == message, "a success on another thread changed this thread's last_error")
    for capacity in (0, 1, 8):
        length, seen = read(capacity)
        require(length == len(message), f"last_error with capacity {capacity} returned {length}, not the whole length {len(message)}")
        require(seen[capacity:] == b"\xa5" * 64, f"last_error wrote behind its capacity of {capacity}")
        if capacity:
            cut = message[: capacity - 1]
            require(seen[: len(cut) + 1] == cut + b"\0", f"last_error with capacity {capacity} gave {seen[:capacity]!r}; needs {cut!r} and a NUL")
