"""Checks 69 to 72: memory shared with other processes, profiles, sensors, the vendor's own operators."""
from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ...hal.driver import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, Copy, Driver, Launch, ProfileRecord
from ...hal.dtype import BY_NAME, DType
from ...hal.errors import HaianError, OutOfMemory, Unsupported
from .check import NotOffered, Subject, check, host, require
from .module import Axpy
from .stream import sync_within

_N = 8192
_SHARED = (1 << 20) + 8192  # bytes that another process opens
_WORK = 40  # rounds of launches, copies and fills that a profile must show: more than a small buffer of records holds
_LONG_S = 0.02  # of a host function whose record must be as long


# ---- sharing ------------------------------------------------------------------------------------------------------------------
@check(69, "ipc", "X", needs=("ipc",), timeout_s=40)
def ipc(s: Subject) -> None:
    """Memory exported here is read and written by another process; closing twice is refused.

    Memory of two devices, where there are, larger than a page; events too, where they can be shared.
    """
    handles, blocks = [], []
    for device in [s.device] + ([s.other()] if s.count > 1 else []):
        address, data = s.alloc(_SHARED, device=device), s.pattern(_SHARED)
        s.upload(address, data, device=device)
        s.free(s.alloc(_SHARED, device=device), device=device)
        newest = s.alloc(_SHARED, device=device)  # is not what is exported
        handle = s.driver.ipc_export(device, address)
        require(isinstance(handle, bytes) and 0 < len(handle) <= 64, f"ipc_export gave {handle!r}; needs 1 to 64 bytes")
        require(s.driver.ipc_export(device, address), "a second export of the same memory gave nothing")
        handles.append((device, handle))
        blocks.append((device, address, data, newest))
    shared = b""
    if s.offers("stream") and s.offers("ipc_event_export") and s.offers("ipc_event_open"):
        event, stream = s.event(timing=False), s.stream()
        s.driver.event_record(event, stream)
        s.driver.stream_sync(stream)
        shared = s.driver.ipc_event_export(event)
    answers = s.elsewhere(_open_there, handles, shared, timeout_s=30)
    for (device, address, data, newest), (seen, twice) in zip(blocks, answers):
        wrong = np.flatnonzero(np.frombuffer(seen, np.uint8) != data)
        require(not wrong.size, f"another process read {wrong.size} of {_SHARED} bytes of device {device} that are not those exported, the first at {wrong[:1]}")
        require(twice == "InvalidHandle", f"the second ipc_close gave {twice}; needs InvalidHandle")
        written = s.download(address, _SHARED, device=device)
        require((written == 255 - data).all(), f"what another process wrote to device {device} is not seen here")
        s.free(address, device=device)
        s.free(newest, device=device)
        again = s.alloc(_SHARED, device=device)
        s.upload(again, data, device=device)
        require((s.download(again, _SHARED, device=device) == data).all(), "memory does not work after shared memory was freed")


def _open_there(factory: Callable[..., Driver], arguments: tuple, handles: list[tuple[int, bytes]], event: bytes) -> list[tuple[bytes, str]]:
    """In another process: (bytes found, what the second close raised) of each handle; the bytes are replaced by 255 minus them."""
    driver = factory(*arguments)
    driver.init()
    driver.device_count()
    answers = []
    for device, handle in handles:
        address = driver.ipc_open(device, handle)
        seen = np.zeros(_SHARED, np.uint8)
        driver.copy(device, Copy(DEVICE_TO_HOST, host(seen), address, _SHARED))
        new = 255 - seen
        driver.copy(device, Copy(HOST_TO_DEVICE, address, host(new), _SHARED))
        driver.sync(device)
        driver.ipc_close(device, address)
        try:
            driver.ipc_close(device, address)
            twice = "success"
        except HaianError as error:
            twice = type(error).__name__
        answers.append((seen.tobytes(), twice))
    if event:  # it has happened there
        mine = driver.ipc_event_open(handles[0][0], event)
        driver.event_sync(mine, 5_000_000_000)
        require(driver.event_query(mine) is True, "an event that has happened in another process is not ready here")
        driver.event_destroy(mine)
    return answers


# ---- profiles -----------------------------------------------------------------------------------------------------------------
@check(70, "profile", "X", needs=("prof",))
def profile(s: Subject) -> None:
    """A profile has one record a piece of work, each with a start before its end, inside the events around them.

    Records are of this device's work only, and say its name, bytes, stream and time.
    """
    d, device = s.driver, s.device
    stream = s.stream() if s.offers("stream") else 0
    address, other, data = s.alloc(_N), s.alloc(_N), s.pattern(_N)
    aside = s.alloc(_N, device=s.other()) if s.count > 1 else 0
    timed = stream and s.offers("event") and s.offers("event_elapsed_ns")
    events = (s.event(), s.event()) if timed else (0, 0)
    calls = bool(stream) and s.offers("host_func")
    work = grid = None
    with suppress(NotOffered):
        work = Axpy(s)
        grid = d.get_kernel(work.module, work.image.grid) if work.image.grid else None
    out = s.alloc(24)
    s.upload(address, data, stream)  # before: leaves no record
    d.sync(device)
    d.prof_drain(device)
    d.prof_start(device)
    began = time.monotonic_ns()
    if timed:
        d.event_record(events[0], stream)
    for _ in range(_WORK):
        s.upload(address, data, stream)
        d.copy(device, Copy(DEVICE_TO_DEVICE, other, address, _N), stream)
        s.download(other, _N, stream)
        if s.offers("fill"):
            d.fill(device, address, b"ab", _N, stream)
        if work is not None:
            work.launch(stream)
        if grid is not None:
            d.launch(device, Launch(grid, (1, 1, 1), 1, 0, [("*i32", out)]), stream)
        if aside:
            s.upload(aside, data, device=s.other())
        if calls:
            d.host_func(stream, _nothing)
    took: list[int] = []

    def long() -> None:
        start = time.monotonic_ns()
        time.sleep(_LONG_S)
        took.append(time.monotonic_ns() - start)

    if calls:
        d.host_func(stream, long)
    if timed:
        d.event_record(events[1], stream)
    if stream:
        sync_within(s, stream, "a profiled stream")
    d.sync(device)
    wall = time.monotonic_ns() - began
    d.prof_stop(device)
    s.upload(address, data, stream)  # after: leaves no record either
    d.sync(device)
    records = d.prof_drain(device)
    launches = _WORK * ((work is not None) + (grid is not None))
    for kind, count, nbytes in (("copy", 3 * _WORK, _N), ("fill", _WORK * s.offers("fill"), _N), ("launch", launches, -1), ("host", (_WORK + 1) * calls, -1)):
        mine = [r for r in records if r.kind == kind]
        require(len(mine) == count, f"{count} pieces of work of kind {kind} left {len(mine)} records")
        odd = [r for r in mine if nbytes >= 0 and r.nbytes != nbytes]
        require(not odd, f"a {kind} of {nbytes} bytes has a record of {odd[0].nbytes if odd else 0}")
        odd = [r for r in mine if r.stream != stream]
        require(not odd, f"a {kind} on stream {stream:#x} has a record of stream {odd[0].stream if odd else 0:#x}")
    for name in [] if work is None else [work.image.name, work.image.grid] if grid is not None else [work.image.name]:
        named = sum(name in r.name for r in records if r.kind == "launch")
        require(named == _WORK, f"{named} of {_WORK} launches of {name!r} have its name")
    _times(s, records, d.event_elapsed_ns(*events) if timed else wall)
    if calls:
        longest = max(r.end_ns - r.start_ns for r in records if r.kind == "host")
        require(longest >= 0.9 * took[0], f"a host function of {took[0]} ns has a record of {longest} ns")
    require(not d.prof_drain(device), "a second drain gives records again")
    if work is not None:
        work.unload()


def _nothing() -> None:
    """A host function that a profile must show."""


def _times(s: Subject, records: list[ProfileRecord], between_ns: int) -> None:
    """Records start before they end, in order, at different times, and all within ``between_ns``."""
    back = [r for r in records if not 0 <= r.start_ns <= r.end_ns]
    require(not back, f"a {back[0].kind if back else ''} record starts at {back[0].start_ns if back else 0} and ends at {back[0].end_ns if back else 0} ns")
    starts = [r.start_ns for r in records]
    require(starts == sorted(starts), "records are not in the order of their start")
    require(len(set(starts)) > 1, f"all {len(records)} records start at {starts[0]} ns")
    span, limit = max(r.end_ns for r in records) - min(starts), between_ns + 2 * s.caps.event_unit_ns
    require(span <= 1.05 * limit, f"records span {span} ns between events {limit} ns apart")


# ---- sensors ------------------------------------------------------------------------------------------------------------------
@check(71, "telemetry", "X", needs=("telemetry",))
def telemetry(s: Subject) -> None:
    """Sensors lie in the ranges of chips; what is not known is NaN, not 0 or -1."""
    total = s.caps.total_bytes
    try:
        address = s.alloc(min(total // 4, s.caps.max_alloc_bytes) if not s.caps.host_access else 1 << 20)  # much, so that it shows
    except OutOfMemory:  # others use the device too
        address = s.alloc(1 << 20)
    for _ in range(5):
        t = s.driver.telemetry(s.device)
        rows = (("util_percent", t.util_percent, 0.0, 100.0), ("temperature_c", t.temperature_c, 1.0, 150.0), ("power_w", t.power_w, 0.01, 5000.0),
                ("clock_mhz", t.clock_mhz, 1.0, 10_000.0), ("mem_used_bytes", t.mem_used_bytes, 0.0, float(total)))
        for field, value, low, high in rows:
            require(isinstance(value, float), f"{field} is {value!r}; needs a float")
            require(math.isnan(value) or low <= value <= high, f"{field} is {value:g}; needs {low:g} to {high:g}, or NaN where it is not known")
    if s.offers("mem_info") and not s.caps.host_access and not math.isnan(t.mem_used_bytes):
        free, whole = s.driver.mem_info(s.device)
        used = whole - free
        require(abs(t.mem_used_bytes - used) <= max(0.02 * whole, 0.5 * used), f"mem_used_bytes is {t.mem_used_bytes:g}, mem_info says {used} of {whole} are used")
    s.free(address)


# ---- operators ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Operand:
    """As much of a tensor as ``op_run`` reads."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    dtype: DType

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        return True


# name: (input shapes, output shape, attributes, reference in float64)
_OPS: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[int, ...], dict[str, object], Callable[..., np.ndarray]]] = {
    "add": (((5, 7), (5, 7)), (5, 7), {}, lambda a, b: a + b),
    "mul": (((5, 7), (5, 7)), (5, 7), {}, lambda a, b: a * b),
    "relu": (((5, 7),), (5, 7), {}, lambda a: np.maximum(a, 0)),
    "exp": (((5, 7),), (5, 7), {}, np.exp),
    "matmul": (((5, 7), (7, 3)), (5, 3), {}, lambda a, b: a @ b),
    "softmax": (((5, 7),), (5, 7), {"dim": -1}, lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True)),
}
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int32", "bool")


@check(72, "op_query", "X", needs=("op",))
def op_query(s: Subject) -> None:
    """op_query always gives the same answer, op_run does what it promises, and anything else is Unsupported."""
    d, device = s.driver, s.device
    asked = [(name, (dtype,) * len(spec[0]), contiguous) for name, spec in _OPS.items() for dtype in _DTYPES for contiguous in (True, False)]
    asked.append(("no_such_operator", ("float32",), True))
    first = [d.op_query(device, *question) for question in asked]
    odd = [a for a in first if a not in ("", "supported", "preferred")]
    require(not odd, f"op_query gave {odd[:1]}; needs '', 'supported' or 'preferred'")
    require(first[-1] == "", f"op_query says {first[-1]!r} of an operator that does not exist")
    other = [d.op_query(device, *question) for question in reversed(asked)][::-1]
    require(first == other, f"op_query changed its answer for {[q for q, a, b in zip(asked, first, other) if a != b][:1]}")
    ran = 0
    for (name, dtypes, contiguous), answer in zip(asked, first):
        if not contiguous or name not in _OPS:
            continue
        ran += _run(s, name, dtypes[0], answer)
    require([d.op_query(device, *question) for question in asked] == first, "op_query changed its answers after op_run")
    operand = Operand(s.alloc(64), (4,), (1,), BY_NAME["float32"])
    s.expect(Unsupported, d.op_run, device, "no_such_operator", [operand], [operand], {}, 0)


def _run(s: Subject, name: str, dtype: str, answer: str) -> int:
    """One operator against its reference, or refused; 1 where it ran."""
    shapes, out_shape, attrs, reference = _OPS[name]
    kind = BY_NAME[dtype]
    arrays = [(s.rng.integers(-4, 5, shape) / 2).astype(kind.numpy) for shape in shapes]
    operands = []
    for array in (*arrays, np.zeros(out_shape, kind.numpy)):
        address = s.alloc(array.nbytes)
        s.upload(address, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        strides = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
        operands.append(Operand(address, array.shape, strides, kind))
    stream = s.stream() if s.offers("stream") else 0
    call = (s.device, name, operands[:-1], operands[-1:], dict(attrs), stream)
    if not answer:
        s.expect(Unsupported, s.driver.op_run, *call)
        return 0
    s.driver.op_run(*call)
    if stream:
        sync_within(s, stream, f"a stream with {name}")
    s.driver.sync(s.device)
    seen = s.download(operands[-1].address, operands[-1].nbytes).view(kind.numpy).reshape(out_shape).astype(np.float64)
    wanted = np.asarray(reference(*(a.astype(np.float64) for a in arrays)), np.float64)
    allowed = {"float16": 2e-3, "bfloat16": 2e-2}.get(dtype, 2e-6) * np.maximum(np.abs(wanted), 1.0)
    require((np.abs(seen - wanted) <= allowed).all(), f"op_query says {answer!r} of {name} in {dtype}, but op_run is off by {np.abs(seen - wanted).max():g}")
    return 1
