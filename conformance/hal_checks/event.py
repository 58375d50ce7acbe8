"""Checks 49 to 57: events order streams, answer questions, time out, and measure in nanoseconds."""
from __future__ import annotations

import threading
import time
from contextlib import suppress

import numpy as np

from ...hal.driver import DEVICE_TO_DEVICE, Copy
from ...hal.errors import ArgumentError, HaianError, InvalidHandle, NotReady, Timeout, Unsupported
from .check import BLOCK_S, NotOffered, Subject, check, require
from .stream import holds, start, sync_within

_N = 4096
_STILL_S = 0.05
_DELAY_S = 0.02  # the host delay that elapsed times are compared with
_REUSES = 10_000
_COME_AND_GO = 25_000  # events made and destroyed: a training step makes a hundred
_LARGE = (2 << 20) + 1  # bytes of a copy that another engine than the stream's own may run
_S = 1_000_000_000  # ns
_COARSEST_NS = 1_000_000  # a resolution beyond which event times excuse anything; runtimes have 0.5 to 1 us


def _sync_event(s: Subject, event: int, what: str, timeout_ns: int = 5 * _S) -> None:
    s.until(start(s, lambda: s.driver.event_sync(event, timeout_ns)), what, 6)


@check(49, "record_wait", "S", needs=("stream", "event", "stream_wait_event"))
def record_wait(s: Subject) -> None:
    """A stream that waits for an event sees what the other did before it, also when that one is late."""
    producer, consumer, event = s.stream(), s.stream(), s.event()
    address, other = s.alloc(_N), s.alloc(_N)
    _ordered(s, producer, consumer, event, address, other, 11)
    _after_copy(s, producer, consumer, event)
    with suppress(NotOffered), s.blocked(producer) as gate:
        seen = _chain(s, producer, consumer, event, address, other, 12)
        s.quiet(lambda: s.driver.stream_query(consumer), "a stream is ready while it waits for an event that has not happened", _STILL_S)
        require(not s.driver.event_query(event), "an event behind blocked work is ready")
        require(not seen.any(), "a stream passed an event that has not happened")
        gate.set()
        sync_within(s, consumer, "a stream whose event has happened")
        require(holds(seen, 12), f"the waiting stream read {seen[0]}; needs 12, written before the event")
    with suppress(NotOffered):
        _all_wait(s, producer, event)


def _after_copy(s: Subject, producer: int, consumer: int, event: int) -> None:
    """A record behind a large copy on the device, which another engine of the chip may run, waits for it."""
    n = min(_LARGE, s.caps.max_alloc_bytes)
    source, target, data = s.alloc(n), s.alloc(n), s.pattern(n)
    for how in ("another stream", "event_sync"):
        s.upload(source, data)
        s.fill(target, 0, n)
        s.driver.copy(s.device, Copy(DEVICE_TO_DEVICE, target, source, n), producer)
        s.driver.event_record(event, producer)
        if how == "event_sync":
            _sync_event(s, event, "an event behind a large copy")
        else:
            s.driver.stream_wait_event(consumer, event)
        seen = s.download(target, n, consumer)
        sync_within(s, consumer, "a stream that waited for an event")
        require((seen == data).all(), f"{how} passed an event in front of which a copy of {n} bytes had not ended")
        data = data[::-1].copy()
    s.free(source)
    s.free(target)


def _all_wait(s: Subject, producer: int, event: int) -> None:
    """Every stream that waits for a record is held back, stream 0 as well."""
    streams, address = [s.stream() for _ in range(3)], s.alloc(_N)
    passed = [np.zeros(_N, np.uint8) for _ in streams]
    s.upload(address, np.zeros(_N, np.uint8))
    found: list[np.ndarray] = []

    def on_zero() -> None:
        if not s.validated:  # the layer takes no wait on stream 0
            s.driver.stream_wait_event(0, event)
            found.append(s.download(address, _N))

    with s.blocked(producer) as gate:
        s.fill(address, 13, _N, producer)
        s.driver.event_record(event, producer)
        for i, stream in enumerate(streams):
            s.driver.stream_wait_event(stream, event)
            passed[i] = s.download(address, _N, stream)
        ended = start(s, on_zero)
        s.quiet(lambda: not s.validated and ended() or any(s.driver.stream_query(h) for h in streams), "of several streams that wait for one event, stream 0 among them, "
                "one passed it before it happened", _STILL_S)
        gate.set()
        for stream in streams:
            sync_within(s, stream, "a stream whose event has happened")
        s.until(ended, "stream 0, whose event has happened")
    require(all(holds(seen, 13) for seen in (*passed, *found)), "a stream that waited for an event did not see what was written before it")


def _chain(s: Subject, producer: int, consumer: int, event: int, address: int, other: int, byte: int) -> np.ndarray:
    """The producer fills and records; the consumer waits and copies to the host."""
    s.fill(address, byte, _N, producer)
    s.driver.event_record(event, producer)
    s.driver.stream_wait_event(consumer, event)
    s.driver.copy(s.device, Copy(DEVICE_TO_DEVICE, other, address, _N), consumer)
    return s.download(other, _N, consumer)


def _ordered(s: Subject, producer: int, consumer: int, event: int, address: int, other: int, byte: int) -> None:
    seen = _chain(s, producer, consumer, event, address, other, byte)
    sync_within(s, consumer, "a stream that waited for an event")
    require(holds(seen, byte), f"the waiting stream read {seen[0]}; needs {byte}, written before the event")


@check(50, "wait_snapshot", "S", needs=("stream", "event", "stream_wait_event"))
def wait_snapshot(s: Subject) -> None:
    """A wait before any record does nothing; a wait keeps the record it saw, whatever is recorded later."""
    held, waits, idle = s.stream(), s.stream(), s.stream()
    event, door = s.event(), s.event()
    address = s.alloc(_N)
    s.driver.stream_wait_event(waits, event)
    s.fill(address, 1, _N, waits)
    sync_within(s, waits, "a stream that waits for an event never recorded")
    require(holds(s.download(address, _N), 1), "work behind a wait for an event never recorded did not happen")
    with suppress(NotOffered):
        _snapshot(s, held, waits, idle, event, door, address)


def _snapshot(s: Subject, held: int, waits: int, idle: int, event: int, door: int, address: int) -> None:
    with s.blocked(held) as gate:  # the record seen is late, a later one is early
        s.driver.event_record(event, held)
        s.driver.stream_wait_event(waits, event)
        s.fill(address, 2, _N, waits)
        s.driver.event_record(event, idle)
        sync_within(s, idle, "an idle stream")
        s.quiet(lambda: s.driver.stream_query(waits), "a wait went on when its event was recorded again; needs the record it saw", _STILL_S)
        gate.set()
        sync_within(s, waits, "a stream whose event has happened")
    sync_within(s, held, "a released stream")

    # The record seen is early, a later one is late; the wait itself is reached after both were made.
    second = threading.Event()
    s._gates.append(second)  # released at the end of the check at the latest
    s.driver.event_record(event, idle)
    sync_within(s, idle, "an idle stream")

    def stand() -> None:
        second.wait(BLOCK_S)

    with s.blocked(held) as gate:
        s.driver.event_record(door, held)
        s.driver.host_func(held, stand)
        s.driver.stream_wait_event(waits, door)
        s.driver.stream_wait_event(waits, event)
        s.fill(address, 3, _N, waits)
        s.driver.event_record(event, held)
        gate.set()
        try:
            sync_within(s, waits, "a wait for a record that had happened, its event recorded again on a blocked stream")
        finally:
            second.set()
    sync_within(s, held, "a released stream")
    require(holds(s.download(address, _N), 3), "work behind the wait did not happen")


@check(51, "unrecorded", "S", needs=("stream", "event"))
def unrecorded(s: Subject) -> None:
    """An event never recorded is ready, sync returns, and it has no time."""
    for timing in (True, False):
        event = s.event(timing)
        require(s.driver.event_query(event) is True, f"event_query of an event never recorded gave {s.driver.event_query(event)!r}; needs True")
        _sync_event(s, event, "event_sync of an event never recorded")
        _sync_event(s, event, "event_sync of an event never recorded, without a limit", -1)
    if s.offers("event_elapsed_ns"):
        event, recorded, stream = s.event(), s.event(), s.stream()
        s.driver.event_record(recorded, stream)
        s.driver.stream_sync(stream)
        s.expect(NotReady, s.driver.event_elapsed_ns, event, recorded)
        s.expect(NotReady, s.driver.event_elapsed_ns, recorded, event)


@check(52, "out_of_order", "S", needs=("stream", "event", "host_func", "caps.async_copy"))
def out_of_order(s: Subject) -> None:
    """The event of a free stream is ready before an earlier one of a blocked stream."""
    held, free = s.stream(), s.stream()
    first, second = s.event(), s.event()
    with s.blocked(held):
        s.driver.event_record(first, held)
        s.driver.event_record(second, free)
        s.until(lambda: s.driver.event_query(second), "the event of a free stream becomes ready")
        _sync_event(s, second, "event_sync beside a blocked stream")
        s.quiet(lambda: s.driver.event_query(first), "the event of a blocked stream is ready")
        if s.offers("event_elapsed_ns"):
            s.expect(NotReady, s.driver.event_elapsed_ns, first, second)
    _sync_event(s, first, "the event of a released stream")
    require(s.driver.event_query(first) and s.driver.event_query(second), "an event is not ready after event_sync")


@check(53, "timeout", "S", needs=("stream", "event", "host_func", "caps.async_copy"))
def timeout(s: Subject) -> None:
    """event_sync gives up after its time, not before, and the event goes on working."""
    stream, event, address = s.stream(), s.event(), s.alloc(_N)
    took: list[float] = []

    def wait(timeout_ns: int) -> None:
        begin = time.monotonic()
        s.expect(Timeout, s.driver.event_sync, event, timeout_ns)
        took.append(time.monotonic() - begin)

    s.driver.event_record(event, stream)  # an earlier record that is complete changes nothing
    _sync_event(s, event, "an event on an idle stream")
    with s.blocked(stream):
        s.fill(address, 1, _N, stream)
        s.driver.event_record(event, stream)
        for ns in (0, 30_000_000):
            s.until(start(s, lambda ns=ns: wait(ns)), f"event_sync with a timeout of {ns} ns on a blocked stream")  # type: ignore[misc]
        require(took[1] > 0.02, f"event_sync with a timeout of 30 ms gave up after {took[1] * 1e3:.1f} ms")
        require(not s.driver.event_query(event), "an event is ready after a timeout")
    _sync_event(s, event, "an event that timed out before")
    require(s.driver.event_query(event), "an event is not ready after event_sync")
    require(holds(s.download(address, _N), 1), "the work before the event did not happen")
    s.driver.event_record(event, stream)
    _sync_event(s, event, "an event that timed out before, recorded again")


@check(54, "elapsed", "S", needs=("stream", "event", "event_elapsed_ns"))
def elapsed(s: Subject) -> None:
    """Times between events are nanoseconds: as long as the host's, antisymmetric, never backwards."""
    stream, other = s.stream(), s.stream()
    unit = s.caps.event_unit_ns
    require(unit <= _COARSEST_NS, f"event_unit_ns is {unit}; needs at most {_COARSEST_NS}, else times of work say nothing")

    def mark(event: int, stream: int = stream) -> None:
        s.driver.event_record(event, stream)
        _sync_event(s, event, "an event on an idle stream")

    def apart(first: int, second: int) -> tuple[int, int, int]:
        """(nanoseconds, two events) of events on two streams, as long apart as the host saw."""
        a, b = s.event(), s.event()
        before = time.monotonic_ns()
        mark(a, first)
        low = time.monotonic_ns()
        time.sleep(_DELAY_S)
        low = time.monotonic_ns() - low
        mark(b, second)
        high = time.monotonic_ns() - before
        ns = s.driver.event_elapsed_ns(a, b)
        require(isinstance(ns, int), f"event_elapsed_ns gave {ns!r}; needs an integer")
        where = "" if first == second == stream else " on stream 0" if not second else " on two streams"
        require(0.95 * low - 2 * unit <= ns <= 1.05 * high + 2 * unit, f"elapsed {ns} for events{where} that the host saw {low} to {high} ns apart")
        return ns, a, b

    apart(stream, other)
    apart(0, 0)
    with suppress(NotOffered):
        _when_reached(s, stream, unit)
    ns, a, b = apart(stream, stream)
    back = s.driver.event_elapsed_ns(b, a)
    require(abs(ns + back) <= 2 * unit, f"elapsed {ns} one way and {back} the other; needs the same with the other sign")
    require(abs(s.driver.event_elapsed_ns(a, a)) <= unit, f"elapsed {s.driver.event_elapsed_ns(a, a)} from an event to itself")
    events = [s.event() for _ in range(100)]
    for e in events:
        s.driver.event_record(e, stream)
    _sync_event(s, events[-1], "the last of 100 events")
    times = [s.driver.event_elapsed_ns(a, e) for e in events]
    late = [i for i in range(1, 100) if times[i] < times[i - 1]]
    require(not late, f"event {late[:1]} of 100 in one stream is earlier than the one before")
    require(times[0] >= ns - 2 * unit, f"an event recorded later is {times[0]} ns after the first, an earlier one {ns}")
    plain = s.event(timing=False)
    mark(plain)
    refused = (ArgumentError, Unsupported, InvalidHandle)
    s.expect(refused, s.driver.event_elapsed_ns, a, plain)
    s.expect(refused, s.driver.event_elapsed_ns, plain, a)


def _when_reached(s: Subject, stream: int, unit: int) -> None:
    """An event's time is when its stream has come to it, not when it was queued."""
    a, b = s.event(), s.event()
    with s.blocked(stream) as gate:
        s.driver.event_record(a, stream)
        s.driver.host_func(stream, lambda: time.sleep(_DELAY_S))
        s.driver.event_record(b, stream)
        gate.set()
        _sync_event(s, b, "an event behind a host function")
    ns = s.driver.event_elapsed_ns(a, b)
    require(ns >= 0.9e9 * _DELAY_S - 2 * unit, f"elapsed {ns} ns around a host function of {_DELAY_S * 1e3:g} ms; an event's time is when its stream reaches it")


@check(55, "destroy_pending", "S", needs=("stream", "event"))
def destroy_pending(s: Subject) -> None:
    """An event may be destroyed while a record and a wait of it are queued."""
    producer, consumer = s.stream(), s.stream()
    address, waits = s.alloc(_N), s.offers("stream_wait_event")

    def queue(byte: int) -> tuple[int, np.ndarray]:
        event = s.event()
        s.fill(address, byte, _N, producer)
        s.driver.event_record(event, producer)
        if waits:
            s.driver.stream_wait_event(consumer, event)
        seen = s.download(address, _N, consumer if waits else producer)
        s.destroy(event)
        s.expect(InvalidHandle, s.driver.event_query, event)
        s.expect(InvalidHandle, s.driver.event_destroy, event)
        return event, seen

    def finish(gone: int, seen: np.ndarray, byte: int) -> None:
        sync_within(s, producer, "a stream that recorded a destroyed event")
        sync_within(s, consumer, "a stream that waits for a destroyed event")
        require(holds(seen, byte), f"the stream that waited for a destroyed event read {seen[0]}; needs {byte}")
        again = s.event()
        require(again != gone, f"a new event has the handle {gone:#x} of a destroyed one")
        s.driver.event_record(again, producer)
        _sync_event(s, again, "a new event")
        s.expect(InvalidHandle, s.driver.event_query, gone)

    finish(*queue(1), 1)
    with suppress(NotOffered), s.blocked(producer) as gate:
        gone, seen = queue(2)
        if waits:
            s.quiet(lambda: s.driver.stream_query(consumer), "destroying an event let a stream pass that waits for it", _STILL_S)
        gate.set()
        finish(gone, seen, 2)


@check(56, "cross_device_wait", "S", needs=("stream", "event", "stream_wait_event", "devices>1"), exempt=True)
def cross_device_wait(s: Subject) -> None:
    """A wait for another device's event orders, or is refused where cross_device_events is not claimed."""
    other = s.other()
    producer, consumer, event = s.stream(device=other), s.stream(), s.event(device=other)
    aside = s.stream()  # to look while the consumer waits: stream 0 may be one that waits for it
    theirs, mine = s.alloc(_N, device=other), s.alloc(_N)
    s.upload(mine, np.zeros(_N, np.uint8))
    s.driver.event_record(event, producer)
    try:
        s.driver.stream_wait_event(consumer, event)
    except HaianError as error:
        require(not s.caps.cross_device_events, f"claims cross_device_events, but the wait raised {type(error).__name__}: {error}")
        require(isinstance(error, (ArgumentError, InvalidHandle, Unsupported)), f"the wait was refused with {type(error).__name__}; needs "
                "ArgumentError, InvalidHandle or Unsupported")
        return
    sync_within(s, consumer, "a stream that waited for another device's event")
    with suppress(NotOffered), s.blocked(producer) as gate:
        s.fill(theirs, 9, _N, producer, device=other)
        s.driver.event_record(event, producer)
        s.driver.stream_wait_event(consumer, event)
        s.fill(mine, 1, _N, consumer)
        s.quiet(lambda: s.driver.stream_query(consumer), "a stream passed another device's event that has not happened", _STILL_S)
        seen = s.download(mine, _N, aside)
        sync_within(s, aside, "a stream beside a waiting one")
        require(not seen.any(), "a stream passed another device's event that has not happened")
        gate.set()
        sync_within(s, consumer, "a stream whose event on another device has happened")
        require(holds(s.download(theirs, _N, device=other), 9), "the event of another device happened before the work in front of it")
        require(holds(s.download(mine, _N), 1), "work behind a wait for another device's event did not happen")


@check(57, "reuse", "S", needs=("stream", "event"))
def reuse(s: Subject) -> None:
    """One event is recorded ten thousand times.

    More events than that come and go.
    """
    stream, other, event, begin = s.stream(), s.stream(), s.event(), s.event()
    s.driver.event_record(begin, stream)
    last, waits, timed = -1, s.offers("stream_wait_event"), s.offers("event_elapsed_ns")
    for i in range(1, _REUSES + 1):
        s.driver.event_record(event, stream)
        if i % 100 == 0 and waits:
            s.driver.stream_wait_event(other, event)
        if i % 1000 == 0:
            _sync_event(s, event, f"an event recorded {i} times")
            require(s.driver.event_query(event), f"an event recorded {i} times is not ready after event_sync")
            if timed:
                now = s.driver.event_elapsed_ns(begin, event)
                require(now > last, f"the time of an event recorded {i} times is {now} ns, {last} before")
                last = now
    sync_within(s, stream, "a stream with many records")
    sync_within(s, other, "a stream with many waits")
    if not s.validated:  # the layer above passes the same calls on
        for i in range(_COME_AND_GO):
            passing = s.driver.event_create(s.device, bool(i % 2))
            if i % 1000 == 0:
                s.driver.event_record(passing, stream)
                _sync_event(s, passing, f"event {i} of {_COME_AND_GO} that come and go")
            s.driver.event_destroy(passing)
