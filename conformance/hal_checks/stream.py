"""Checks 37 to 48: streams keep their order, run beside each other, and end with their work done.

Asynchrony is seen by holding a stream with a host function (``Subject.blocked``); drivers that run work as it is queued are
checked for the results only.
"""
from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from ...hal.driver import DEVICE_TO_DEVICE, DEVICE_TO_HOST, Copy, Launch
from ...hal.errors import ArgumentError, HaianError, InvalidHandle, OutOfMemory
from .check import NotOffered, Subject, check, host, require
from .images import image_of

_N = 4096  # bytes of most buffers here
_MANY = 1000
_STREAMS = 12  # that sync of a device waits for
_STILL_S = 0.05  # how long something that must wait is watched


def start(s: Subject, function: Callable[[], object]) -> Callable[[], bool]:
    """``function()`` on a thread of its own; what is returned says whether it has ended, and raises what it raised."""
    failed: list[BaseException] = []
    done = threading.Event()

    def body() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that judges
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=body, daemon=True).start()

    def ended() -> bool:
        if done.is_set() and failed:
            raise failed[0]
        return done.is_set()

    return ended


def sync_within(s: Subject, stream: int, what: str, seconds: float = 5.0) -> None:
    """Waits for the stream, but not for ever."""
    s.until(start(s, lambda: s.driver.stream_sync(stream)), what, seconds)


def holds(data: np.ndarray, byte: int) -> bool:
    return bool((data == byte).all())


@check(37, "create", "S", needs=("stream",))
def create(s: Subject) -> None:
    """Eight streams have handles that are not 0, below 2^63 and different."""
    made = [s.stream() for _ in range(8)]
    require(all(isinstance(h, int) and 0 < h < 2**63 for h in made), f"handles {[hex(h) for h in made]}; needs integers from 1 to 2^63 - 1")
    require(len(set(made)) == 8, f"8 live streams have {len(set(made))} different handles")
    for h in made:
        s.driver.stream_sync(h)
        require(s.driver.stream_query(h) is True, f"stream_query of an idle stream gave {s.driver.stream_query(h)!r}; needs True")


@check(38, "stale_handle", "S", needs=("stream",))
def stale_handle(s: Subject) -> None:
    """A destroyed stream is refused, also after its place is used again."""
    stale = [s.stream() for _ in range(4)]
    for h in stale:
        s.destroy(h)
    address = s.alloc(64)
    data = s.pattern(64)
    for again in (False, True):
        if again:
            made = [s.stream() for _ in range(8)]
            require(not set(made) & set(stale), f"a new stream has the handle {next(iter(set(made) & set(stale)), 0):#x} of a destroyed one")
        for h in stale:
            s.expect(InvalidHandle, s.driver.stream_sync, h)
            s.expect(InvalidHandle, s.driver.stream_query, h)
            s.expect(InvalidHandle, s.upload, address, data, h)
            s.expect(InvalidHandle, s.driver.stream_destroy, h)


@check(39, "in_order", "S", needs=("stream",))
def in_order(s: Subject) -> None:
    """Sixty-four overlapping fills leave what their order says, and a copy behind them sees it."""
    stream, address, step = s.stream(), s.alloc(64 * 64), 64
    for i in range(64):
        s.fill(address + i * step, i + 1, 64 * 64 - i * step, stream)
    seen = s.download(address, 64 * 64, stream)
    s.driver.stream_sync(stream)
    wanted = np.repeat(np.arange(1, 65, dtype=np.uint8), step)
    wrong = np.flatnonzero(seen != wanted)
    require(not wrong.size, f"{wrong.size} bytes are of another fill than the last over them, the first at {wrong[:1]}")
    for n in (65_537, min((2 << 20) + 1, s.caps.max_alloc_bytes)):
        _relay(s, stream, n)


def _relay(s: Subject, stream: int, n: int) -> None:
    """Copies that follow each other see what the one before brought, and all is there when the stream counts as done."""
    a, b, data = s.alloc(n), s.alloc(n), s.pattern(n)
    for end in ("sync", "query"):
        s.fill(a, 0, n)
        s.fill(b, 0, n)
        s.upload(a, data, stream)
        s.driver.copy(s.device, Copy(DEVICE_TO_DEVICE, b, a, n), stream)
        seen = s.download(b, n, stream)
        if end == "sync":
            s.driver.stream_sync(stream)
        else:
            s.until(lambda: s.driver.stream_query(stream), f"a stream with copies of {n} bytes becomes ready")
        require((seen == data).all(), f"a copy of {n} bytes to the device, on it and back: {int((seen != data).sum())} bytes were not there after stream_{end}")
    s.free(a)
    s.free(b)


@check(40, "submission_returns", "S", needs=("stream", "host_func", "caps.async_copy"))
def submission_returns(s: Subject) -> None:
    """Work queued on a blocked stream returns at once and does not happen before its turn."""
    stream, address, other = s.stream(), s.alloc(_N), s.alloc(_N)
    aside = s.stream()  # to look while the stream is blocked: stream 0 may be one that waits for it
    data = s.pattern(_N)
    s.upload(address, np.zeros(_N, np.uint8))
    s.upload(other, np.zeros(_N, np.uint8))
    found: list[np.ndarray] = []

    def submit() -> None:
        s.upload(address, data, stream)
        s.driver.copy(s.device, Copy(DEVICE_TO_DEVICE, other, address, _N), stream)
        found.append(s.download(other, _N, stream))
        found.append(np.zeros(_N // 2, np.uint8))
        s._kept.append(found[1])
        s.driver.copy(s.device, Copy(DEVICE_TO_HOST, host(found[1]), other, 64, _N // 128, 64, 128), stream)
        if s.offers("fill"):
            s.driver.fill(s.device, other, b"\x01\x02\x03\x04", _N, stream)
        s.fill(address, 7, _N, stream)
        s.driver.host_func(stream, lambda: None)

    with s.blocked(stream):
        s.until(start(s, submit), "queueing copies and fills on a blocked stream")
        s.quiet(lambda: found[0].any() or found[1].any(), "a copy queued behind a blocked host function has happened already")
        seen = s.download(address, _N, aside), s.download(other, _N, aside)
        sync_within(s, aside, "a stream beside a blocked one")
        require(not seen[0].any() and not seen[1].any(), "work queued behind a blocked host function has reached the device already")
    sync_within(s, stream, "a released stream")
    require((found[0] == data).all(), "the copies queued while the stream was blocked gave wrong bytes")
    require((found[1] == data.reshape(-1, 2, 64)[:, 0].reshape(-1)).all(), "a copy of rows queued while the stream was blocked gave wrong bytes")
    require(holds(s.download(address, _N), 7), "the fill queued while the stream was blocked did not happen")


@check(41, "query_last_task", "S", needs=("stream", "host_func"))
def query_last_task(s: Subject) -> None:
    """A stream is not ready while its last task runs, and ready after it."""
    stream, address = s.stream(), s.alloc(_N)
    require(s.driver.stream_query(stream) is True, "a new stream is not ready")
    with s.blocked(stream):
        s.quiet(lambda: s.driver.stream_query(stream), "stream_query says ready while the stream's last task runs")
        s.fill(address, 1, _N, stream)
        s.quiet(lambda: s.driver.stream_query(stream), "stream_query says ready with work running and queued")
    s.until(lambda: s.driver.stream_query(stream), "a released stream becomes ready")
    require(holds(s.download(address, _N), 1), "the stream is ready before its fill has happened")


@check(42, "independent", "S", needs=("stream", "host_func", "caps.async_copy"))
def independent(s: Subject) -> None:
    """A blocked stream holds up no other."""
    held, free, address = s.stream(), s.stream(), s.alloc(2 * _N)
    s.upload(address, np.zeros(2 * _N, np.uint8))
    with s.blocked(held):
        s.fill(address, 1, _N, held)
        s.fill(address + _N, 2, _N, free)
        seen = s.download(address, 2 * _N, free)
        sync_within(s, free, "a stream beside a blocked one")
        require(holds(seen[_N:], 2), "a stream beside a blocked one did not do its work")
        require(not seen[:_N].any(), "work queued behind a blocked host function has happened already")
    sync_within(s, held, "a released stream")


@check(43, "destroy_drains", "S", needs=("stream",))
def destroy_drains(s: Subject) -> None:
    """Destroying a stream does its queued work first."""
    address = s.alloc(_N)
    for held in (True, False) if s.offers("host_func") else (False,):
        s.upload(address, np.zeros(_N, np.uint8))
        stream = s.stream()

        def end(stream: int = stream) -> None:
            s.destroy(stream)

        if not held:
            seen = _queue(s, stream, address)
            s.until(start(s, end), "stream_destroy of a busy stream")
        else:
            try:
                with s.blocked(stream) as gate:
                    seen = _queue(s, stream, address)
                    ended = start(s, end)
                    s.quiet(ended, "stream_destroy returned before the work queued on the stream had run", _STILL_S)
                    gate.set()
                    s.until(ended, "stream_destroy of a released stream")
            except NotOffered:
                continue
        require(holds(seen, 64), "a copy queued before stream_destroy did not happen")
        require(holds(s.download(address, _N), 65), "a fill queued before stream_destroy did not happen")


def _queue(s: Subject, stream: int, address: int) -> np.ndarray:
    for i in range(64):
        s.fill(address, i + 1, _N, stream)
    seen = s.download(address, _N, stream)
    s.fill(address, 65, _N, stream)
    return seen


@check(44, "device_sync", "S", needs=("stream",))
def device_sync(s: Subject) -> None:
    """sync of the device waits for every stream of it."""
    _syncs(s, s.device, (0, 5, _STREAMS - 1))
    if s.count > 1:
        _syncs(s, s.other(), (1,))


def _syncs(s: Subject, device: int, blocked: tuple[int, ...]) -> None:
    """Blocks one stream after another of many, with an event recorded on each second one."""
    streams = [s.stream(device=device) for _ in range(_STREAMS)]
    events = [s.event(device=device) for _ in streams[::2]] if s.offers("event") else []
    address = s.alloc(_STREAMS * _N, device=device)

    def queue() -> None:
        for i, stream in enumerate(streams):
            s.fill(address + i * _N, i + 1, _N, stream, device=device)
        for event, stream in zip(events, streams[::2]):
            s.driver.event_record(event, stream)

    for at in blocked if s.offers("host_func") else ():
        s.upload(address, np.zeros(_STREAMS * _N, np.uint8), device=device)
        try:
            with s.blocked(streams[at]) as gate:
                queue()
                ended = start(s, lambda: s.driver.sync(device))
                s.quiet(ended, f"sync of device {device} returned while stream {at + 1} of {_STREAMS} was blocked", _STILL_S)
                gate.set()
                s.until(ended, "sync of the device after its blocked stream was released")
        except NotOffered:
            break
        _all(s, address, device)
    s.upload(address, np.zeros(_STREAMS * _N, np.uint8), device=device)
    queue()
    s.until(start(s, lambda: s.driver.sync(device)), "sync of the device")
    _all(s, address, device)


def _all(s: Subject, address: int, device: int) -> None:
    seen = s.download(address, _STREAMS * _N, device=device).reshape(_STREAMS, _N)
    late = [i + 1 for i in range(_STREAMS) if not holds(seen[i], i + 1)]
    require(not late, f"after sync of device {device}, work of the streams {late} of {_STREAMS} has not happened")


@check(45, "stream_zero", "S", needs=("stream", "host_func", "caps.async_copy"))
def stream_zero(s: Subject) -> None:
    """Stream 0 is ordered with the others as default_stream says."""
    stream, address = s.stream(), s.alloc(_N)
    blocking = s.caps.default_stream == "blocking"
    s.upload(address, np.zeros(_N, np.uint8))
    found: list[np.ndarray] = []
    with s.blocked(stream) as gate:
        s.fill(address, 5, _N, stream)
        ended = start(s, lambda: found.append(s.download(address, _N)))
        if blocking:
            s.quiet(ended, "default_stream is blocking, but a copy on stream 0 passed a blocked stream", _STILL_S)
        else:
            s.until(ended, "default_stream is independent, but a copy on stream 0 beside a blocked stream")
        gate.set()
        s.until(ended, "a copy on stream 0 after the release")
    sync_within(s, stream, "a released stream")
    require(holds(found[0], 5 if blocking else 0), f"a copy on stream 0 saw {found[0][0]}; {s.caps.default_stream} means {5 if blocking else 0}")
    require(holds(s.download(address, _N), 5), "stream 0 after sync of another stream does not see its work")


@check(46, "host_func", "S", needs=("stream", "host_func"))
def host_func(s: Subject) -> None:
    """A host function runs once, in stream order, and holds no lock of the driver."""
    stream, other, address = s.stream(), s.stream(), s.alloc(_N)
    calls: list[tuple[int, bool]] = []
    expected = 20
    for i in range(expected):
        s.fill(address, i + 1, _N, stream)
        seen = s.download(address, _N, stream)

        def note(i: int = i, seen: np.ndarray = seen) -> None:
            calls.append((i, holds(seen, i + 1)))

        s.driver.host_func(stream, note)
        s.fill(address, 99, _N, stream)
    sync_within(s, stream, "a stream with host functions")
    s.quiet(lambda: len(calls) > expected, "a host function ran again after sync")
    require([i for i, _ in calls] == list(range(expected)), f"{expected} host functions ran as {[i for i, _ in calls]}; needs each once, in order")
    require(all(good for _, good in calls), "a host function ran before the copy queued in front of it")

    def use() -> None:
        s.driver.props(s.device)
        require(s.driver.stream_query(other) is True, "an idle stream is not ready")
        s.driver.stream_query(stream)
        mine = s.alloc(_N)
        fresh = s.stream()
        s.fill(mine, 3, _N, fresh)
        s.driver.stream_sync(fresh)

    with suppress(NotOffered), s.blocked(stream):  # the driver must work on while a host function runs
        s.until(start(s, use), "calls on other handles while a host function runs (it must not run with a lock held)")
    sync_within(s, stream, "a released stream")
    if s.validated:  # the layer takes no host function and no wait on stream 0
        return
    zero: list[int] = []
    s.driver.host_func(0, lambda: zero.append(1))
    s.until(lambda: zero, "a host function on stream 0 runs")
    s.quiet(lambda: len(zero) > 1, "a host function on stream 0 ran twice", 0.005)


@check(47, "many_streams", "S", needs=("stream",))
def many_streams(s: Subject) -> None:
    """A thousand streams, or a clean OutOfMemory; then all of them work and go."""
    made: list[int] = []
    try:
        for _ in range(_MANY):
            made.append(s.stream())
    except OutOfMemory:
        require(made, "not one stream could be made")
    require(len(set(made)) == len(made), f"{len(made)} live streams have {len(set(made))} different handles")
    address = s.alloc(len(made))
    picked = range(0, len(made), 50)
    s.upload(address, np.zeros(len(made), np.uint8))
    for i in picked:
        s.fill(address + i, 1 + i // 50, 1, made[i])
    s.until(start(s, lambda: s.driver.sync(s.device)), "sync of a device with many streams")
    seen = s.download(address, len(made))
    require(all(seen[i] == 1 + i // 50 for i in picked), "some of many streams did not do their work")
    for h in list(made):
        s.destroy(h)
    s.driver.stream_sync(s.stream())


@check(48, "wrong_device", "S", needs=("stream", "devices>1"), exempt=True)
def wrong_device(s: Subject) -> None:
    """A stream of another device is refused, and the work does not happen.

    So is a kernel of another device.
    """
    other = s.other()
    stream, address = s.stream(device=other), s.alloc(_N)
    s.upload(address, np.zeros(_N, np.uint8))
    refused = (ArgumentError, InvalidHandle)
    s.expect(refused, s.upload, address, s.pattern(_N), stream)
    out = np.zeros(_N, np.uint8)
    s.expect(refused, s.driver.copy, s.device, Copy(DEVICE_TO_HOST, host(out), address, _N), stream)
    if s.offers("fill"):
        s.expect(refused, s.driver.fill, s.device, address, b"a", _N, stream)
    if s.offers("event"):
        s.expect(refused, s.driver.event_record, s.event(), stream)
    with suppress(NotOffered):
        image = image_of(s.caps, s.offers("module"))
        module = s.driver.module_load(s.device, image.data, image.format)
        desc = Launch(s.driver.get_kernel(module, image.name), (_N // 8, 1, 1), 1, 0, [("*fp32", address), ("*fp32", address + _N // 2), ("fp32", 1.0)])
        s.expect(refused, s.driver.launch, s.device, desc, stream)
        s.expect(refused, s.driver.launch, other, desc)
        s.driver.module_unload(module)
    try:
        s.driver.stream_sync(stream)
    except HaianError as error:
        require(False, f"a stream that refused work of another device is broken: {error}")
    require(not s.download(address, _N).any(), "work on a stream of another device was refused, and happened")
