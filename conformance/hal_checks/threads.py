"""Checks 61 to 65: many threads on one driver."""
from __future__ import annotations

import contextlib
import sys
import threading
import time
from contextlib import suppress

import numpy as np

from ...hal.driver import DEVICE_TO_HOST, HOST_TO_DEVICE, Copy
from ...hal.errors import InvalidHandle
from .check import NotOffered, Subject, check, host, require
from .stream import holds, start, sync_within

_THREADS = 8
_ROUNDS = 40
_SWITCH_S = sys.getswitchinterval()
_TASKS = 150  # a thread, on one stream


@check(61, "parallel_memory", "C")
def parallel_memory(s: Subject) -> None:
    """Eight threads allocate, copy and free at once: bytes are exact and totals return.

    First all on one device, then on two where there are.
    """
    devices = [s.device, s.other()] if s.count > 1 else [s.device]
    counted = s.offers("mem_info") and not s.caps.host_access  # on the host, other processes come and go
    before = s.driver.mem_info(s.device)[0] if counted else 0
    inputs = [s.pattern(16384 + 64 * i) for i in range(_THREADS)]

    def work(i: int) -> None:
        data, out = inputs[i], np.zeros(inputs[i].size, np.uint8)
        for k in range(_ROUNDS):
            n, device = data.size - k, devices[i % len(devices)] if k >= _ROUNDS // 2 else s.device  # first all on one
            address = s.driver.alloc(device, n)
            try:
                s.driver.copy(device, Copy(HOST_TO_DEVICE, address, host(data), n))
                out[:] = 0
                s.driver.copy(device, Copy(DEVICE_TO_HOST, host(out), address, n))
                require((out[:n] == data[:n]).all(), f"thread {i}, round {k}: a round trip of {n} bytes on device {device} gave wrong bytes")
                if s.offers("fill"):
                    s.driver.fill(device, address, bytes([i + 1]), n)
                    s.driver.copy(device, Copy(DEVICE_TO_HOST, host(out), address, n))
                    require(holds(out[:n], i + 1), f"thread {i}, round {k}: a fill of {n} bytes with {i + 1} on device {device} left other bytes")
            finally:
                s.driver.free(device, address)

    s.threads(_THREADS, work)
    if counted:
        s.until(lambda: s.driver.mem_info(s.device)[0] == before, f"the free bytes return to {before} after eight threads freed all")


@check(62, "shared_stream", "S", needs=("stream",))
def shared_stream(s: Subject) -> None:
    """Eight threads queue on one stream: every task runs once, and each thread's own in order."""
    stream, address = s.stream(), s.alloc(_THREADS * 64)
    turns: contextlib.AbstractContextManager[object] = threading.Lock()  # what the host does for a driver that asks for it
    if s.caps.thread_safe_streams:
        turns = contextlib.nullcontext()
    ran: list[tuple[int, int]] = []
    calls = s.offers("host_func")

    def work(i: int) -> None:
        for k in range(_TASKS):
            with turns:
                s.fill(address + 64 * i, (k + i) % 251, 64, stream)
            if calls:
                with turns:
                    s.driver.host_func(stream, lambda k=k: ran.append((i, k)))  # type: ignore[misc]

    s.threads(_THREADS, work)
    sync_within(s, stream, "a stream that eight threads filled", 10)
    if calls:
        require(len(ran) == _THREADS * _TASKS and len(set(ran)) == len(ran),
                f"{_THREADS * _TASKS} tasks of eight threads ran {len(ran)} times, {len(set(ran))} of them different")
        for i in range(_THREADS):
            order = [k for j, k in ran if j == i]
            require(order == sorted(order), f"the tasks of thread {i} on one stream ran out of order")
    seen = s.download(address, _THREADS * 64).reshape(_THREADS, 64)
    late = [i for i in range(_THREADS) if not holds(seen[i], (_TASKS - 1 + i) % 251)]
    require(not late, f"the last fills of the threads {late} on one stream were lost or overtaken")


@check(63, "create_destroy_race", "S", needs=("stream",))
def create_destroy_race(s: Subject) -> None:
    """Eight threads create and destroy streams and events: every handle is given once."""
    events = s.offers("event")
    made: list[list[int]] = [[] for _ in range(_THREADS)]
    marks: list[list[int]] = [[] for _ in range(_THREADS)]

    def work(i: int) -> None:
        for _ in range(_ROUNDS):
            mine = [s.driver.stream_create(s.device) for _ in range(3)]
            made[i] += mine
            if events:
                event = s.driver.event_create(s.device)
                marks[i].append(event)
                s.driver.event_record(event, mine[0])
                s.driver.event_sync(event, 5_000_000_000)
                s.driver.event_destroy(event)
            for h in mine:
                require(s.driver.stream_query(h) is True or events, "a stream of its own is not ready")
                s.driver.stream_destroy(h)

    s.threads(_THREADS, work)
    for what, handles in (("stream", sum(made, [])), ("event", sum(marks, []))):
        require(len(set(handles)) == len(handles), f"{len(handles)} {what}s of eight threads had {len(set(handles))} different handles")
    for h in made[0][:3] + made[-1][-3:]:
        s.expect(InvalidHandle, s.driver.stream_query, h)
    if events and s.offers("event_elapsed_ns"):
        _times_at_once(s)


def _times_at_once(s: Subject) -> None:
    """Threads that ask for the times of different events get what one thread alone got."""
    stream, pairs = s.stream(), [(s.event(), s.event()) for _ in range(_THREADS)]
    for i, (a, b) in enumerate(pairs):
        s.driver.event_record(a, stream)
        time.sleep(0.0005 * (i + 1))
        s.driver.event_record(b, stream)
    sync_within(s, stream, "a stream with records")
    alone = [s.driver.event_elapsed_ns(a, b) for a, b in pairs]

    def ask(i: int) -> None:
        for _ in range(_ROUNDS):
            ns = s.driver.event_elapsed_ns(*pairs[i])
            require(ns == alone[i], f"event_elapsed_ns gave {ns} while other threads asked too, {alone[i]} before")

    s.threads(_THREADS, ask)


@check(64, "two_waiters", "S", needs=("stream", "event", "host_func", "caps.async_copy"))
def two_waiters(s: Subject) -> None:
    """Two threads that wait for one event both wake, and so do two that wait for its stream."""
    stream, event, address = s.stream(), s.event(), s.alloc(64)
    with s.blocked(stream) as gate:
        s.fill(address, 1, 64, stream)
        s.driver.event_record(event, stream)
        waits = [start(s, lambda: s.driver.event_sync(event, -1)), start(s, lambda: s.driver.event_sync(event, 10_000_000_000)),
                 start(s, lambda: s.driver.stream_sync(stream)), start(s, lambda: s.driver.stream_sync(stream))]
        s.quiet(lambda: any(w() for w in waits), "a wait for a blocked stream returned", 0.05)
        gate.set()
        for i, w in enumerate(waits):
            s.until(w, f"thread {i % 2 + 1} of 2 that wait for one {'event' if i < 2 else 'stream'} wakes")
    require(holds(s.download(address, 64), 1), "the work before the event did not happen")


@check(65, "releases_gil", "C")
def releases_gil(s: Subject) -> None:
    """Other Python threads run while a call waits or copies."""
    with suppress(NotOffered):
        _during_sync(s)
    _during_copy(s)


def _during_sync(s: Subject) -> None:
    """A thread counts to 20 and only then releases the stream that this one waits for."""
    s.need("stream", "host_func")
    stream = s.stream()
    with s.blocked(stream) as gate:
        waiting, steps = threading.Event(), []

        def count() -> None:
            waiting.wait(5)
            for _ in range(20):
                time.sleep(0.001)
                steps.append(time.monotonic())
            gate.set()

        threading.Thread(target=count, daemon=True).start()
        began = time.monotonic()
        waiting.set()
        s.driver.stream_sync(stream)
        ended = time.monotonic()
    during = sum(began < t < ended for t in steps)
    # A driver that holds the lock in slices lets the other thread take a step between two of them; 20 of 1 ms then take long.
    require(during >= 19, f"another thread took {during} of 20 steps of 1 ms while stream_sync waited; release the GIL")
    require(ended - began < 2.0, f"20 steps of 1 ms on another thread took {ended - began:.2f} s while stream_sync waited; release the GIL")


def _during_copy(s: Subject) -> None:
    """Another thread takes steps in the middle of single large copies.

    Python is told not to change threads by itself meanwhile, so whatever the load the other one runs only while a call has
    released the lock: a driver that keeps it gets no step at all.
    """
    nbytes = min(256 << 20, s.caps.max_alloc_bytes // 4)
    address, data = s.alloc(nbytes), np.zeros(nbytes, np.uint8)
    end = threading.Event()
    steps: list[float] = []

    def count() -> None:
        while not end.is_set():
            time.sleep(0.0005)
            steps.append(time.monotonic())

    threading.Thread(target=count, daemon=True).start()
    lively = judged = 0
    sys.setswitchinterval(1000.0)
    try:
        limit = time.monotonic() + 3
        while lively < 3 and judged < 40 and time.monotonic() < limit:
            steps.clear()
            began = time.monotonic()
            s.upload(address, data)
            took = time.monotonic() - began
            if took > 0.004:  # shorter ones may end before the other thread wakes
                judged += 1
                lively += any(0.1 * took < t - began < 0.9 * took for t in list(steps))
        many = 0
        if not judged:  # a device of few bytes: of many short copies some must let the other thread in
            steps.clear()
            limit = time.monotonic() + 3
            while not steps and time.monotonic() < limit:
                s.driver.copy(s.device, Copy(HOST_TO_DEVICE, address, host(data), nbytes))
                many += 1
            lively, judged = len(steps), 1
    finally:
        sys.setswitchinterval(_SWITCH_S)
        end.set()
    require(not many or lively, f"in {many} copies of {nbytes >> 10} KiB one after another no other thread, which wakes every 0.5 ms, could run; release the GIL")
    require(lively >= min(3, judged), f"in {lively} of {judged} copies of {nbytes >> 20} MiB another thread, which wakes every 0.5 ms, could run; "
            "release the GIL")
