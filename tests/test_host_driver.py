"""The optional groups that cpu and sim share: graphs, profiles, pinned memory, ipc, telemetry, init and fini.

On the bare drivers, since the checks above them are validate.py's; what is one driver's own is in test_cpu_driver.py and
test_sim_driver.py.
"""
from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from haian.adapters.cpu import CpuDriver
from haian.adapters.sim import SimDriver
from haian.hal.driver import GROUPS, Copy, offers
from haian.hal.errors import ArgumentError, Busy, HaianError, InternalError, InvalidHandle, Unsupported
from haian.hal.validate import validate

WAIT_S = 5.0  # longer than anything here takes; reached only by a failure
MAKE = {"cpu": CpuDriver, "sim": lambda: SimDriver(total_bytes=1 << 30)}


@pytest.fixture(params=MAKE)
def driver(request):
    return MAKE[request.param]()


def put(driver, array, stream=0):
    address = driver.alloc(0, array.nbytes)
    driver.copy(0, Copy("h2d", address, array.ctypes.data, array.nbytes), stream)
    return address


def get(driver, address, like):
    out = np.empty_like(like)
    driver.copy(0, Copy("d2h", out.ctypes.data, address, out.nbytes))
    return out


def test_every_group_is_offered(driver):
    assert [g for g in GROUPS if not offers(driver, g)] == {"cpu": ["op"], "sim": ["comm"]}[driver.name]
    assert all(offers(validate(driver), g) == offers(driver, g) for g in GROUPS)


def test_facts(driver):
    facts = [driver.props(d) for d in range(driver.device_count())]
    assert facts == [driver.props(d) for d in range(driver.device_count())]
    assert len({f.uuid for f in facts}) == len(facts)
    for f in facts:
        assert f.vendor and f.arch and f.driver_version and f.memmove and f.default_stream == "independent" and not f.fatal_errors
        assert f.peer == (len(facts) > 1) and f.image_format == {"cpu": "so", "sim": "ttir"}[driver.name]


# ---- begin and end -------------------------------------------------------------------------------------------------------
def _usage():
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd")), int(open("/proc/self/statm").read().split()[1]) * 4096


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts threads and files in /proc")
def test_twenty_cycles_leave_nothing(driver):
    def cycle():
        driver.init()
        stream, event = driver.stream_create(0), driver.event_create(0)
        a = driver.alloc(0, 4 << 20)
        driver.fill(0, a, b"\x05", 4 << 20, stream)
        driver.event_record(event, stream)
        driver.host_alloc(0, 1 << 20)
        driver.graph_begin(stream)
        driver.fill(0, a, b"\x06", 64, stream)
        driver.graph_end(stream)
        driver.fini()
        for call in (lambda: driver.stream_sync(stream), lambda: driver.event_query(event), lambda: driver.free(0, a)):
            with pytest.raises(InvalidHandle):
                call()

    for _ in range(3):
        cycle()
    before = _usage()
    for _ in range(20):
        cycle()
    after = _usage()
    assert after[:2] == before[:2] and after[2] - before[2] < 4 << 20  # one cycle's block alone is as much


def _in_child(driver, stream, pipe):
    try:
        driver.stream_sync(stream)
        pipe.send("the parent's stream was taken")
    except InvalidHandle:
        a = put(driver, np.arange(4.0))
        pipe.send(get(driver, a, np.empty(4)).tolist())


def test_a_child_of_fork_starts_anew_and_leaves_the_parent_alone(driver):
    stream, gate = driver.stream_create(0), threading.Event()
    x = np.arange(1000.0)
    a = put(driver, x)
    driver.host_func(stream, lambda: gate.wait(WAIT_S))
    mine, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(driver, stream, theirs))
    child.start()
    assert mine.poll(WAIT_S) and mine.recv() == [0, 1, 2, 3]
    child.join(WAIT_S)
    gate.set()
    driver.stream_sync(stream)
    np.testing.assert_array_equal(get(driver, a, x), x)  # the pages are shared: the child must not have emptied them


# ---- pinned memory and what an address is ----------------------------------------------------------------------------------
def test_pinned_and_managed_memory(driver):
    x = np.arange(500, dtype=np.float32)
    for managed in (False, True):
        host = driver.host_alloc(0, x.nbytes, managed)
        assert driver.ptr_info(0, host) == driver.ptr_info(0, host + x.nbytes - 1)
        assert driver.ptr_info(0, host).kind == ("managed" if managed else "pinned")
        view = np.frombuffer((np.ctypeslib.ctypes.c_float * 500).from_address(host), np.float32)
        view[:] = x
        a = driver.alloc(0, x.nbytes)
        driver.copy(0, Copy("h2d", a, host, x.nbytes))
        np.testing.assert_array_equal(get(driver, a, x), x)
        del view
        driver.free(0, host)
        driver.free(0, a)
        with pytest.raises(InvalidHandle):
            driver.free(0, host)
    for bad in (0, -1):
        with pytest.raises(ArgumentError):
            driver.host_alloc(0, bad)


def test_register(driver):
    x = np.zeros(10000, np.uint8)
    at = x.ctypes.data
    driver.host_register(0, at, 10000)
    for again in (at, at + 5000):
        with pytest.raises(ArgumentError, match="registered already"):
            driver.host_register(0, again, 100)
    info = driver.ptr_info(0, at + 9999)
    assert (info.kind, info.base, info.nbytes) == ("pinned", at, 10000)
    driver.host_unregister(0, at)
    assert driver.ptr_info(0, at).kind == "unknown"
    for unknown in (at, at + 1):
        with pytest.raises(InvalidHandle):
            driver.host_unregister(0, unknown)
    with pytest.raises(ArgumentError):
        driver.host_register(0, at, 0)


@pytest.mark.parametrize("nbytes", [1, 100, 4096, 1 << 20])
def test_ptr_info(driver, nbytes):
    bases = [driver.alloc(0, nbytes) for _ in range(3)]
    for base in bases:
        for address in (base, base + nbytes - 1):
            info = driver.ptr_info(0, address)
            assert (info.kind, info.device, info.base, info.nbytes) == ("device", 0, base, nbytes)
        assert driver.ptr_info(0, base + nbytes).kind == "unknown"
    driver.free(0, bases[1])
    assert driver.ptr_info(0, bases[1]).kind == "unknown"
    assert driver.ptr_info(0, np.zeros(4).ctypes.data).kind == "unknown"
    assert driver.pool_trim(0) == 0


# ---- graphs ------------------------------------------------------------------------------------------------------------------
def test_captured_work_runs_only_when_replayed(driver):
    stream, event = driver.stream_create(0), driver.event_create(0)
    x = np.arange(8, dtype=np.uint8)
    a, b = put(driver, x), put(driver, np.zeros(8, np.uint8))
    calls = []
    driver.graph_begin(stream)
    driver.copy(0, Copy("d2d", b, a, 8), stream)
    driver.fill(0, b + 2, b"\x09\x08", 4, stream)
    driver.host_func(stream, lambda: calls.append(1))
    driver.event_record(event, stream)
    driver.stream_wait_event(stream, event)
    for call in (lambda: driver.stream_sync(stream), lambda: driver.stream_query(stream), lambda: driver.graph_begin(stream)):
        with pytest.raises(Busy, match="graph_end first"):
            call()
    driver.sync(0)
    graph = driver.graph_end(stream)
    driver.stream_sync(stream)
    assert not calls and not get(driver, b, x).any()
    executable = driver.graph_instantiate(graph)
    driver.graph_destroy(graph)
    for k in range(100):
        driver.copy(0, Copy("h2d", a, (x + np.uint8(k)).ctypes.data, 8))
        driver.graph_launch(executable, stream if k % 2 else 0)
        if k % 2:
            driver.event_sync(event)  # a replay is a record of its own
        want = x + np.uint8(k)
        want[2:6] = (9, 8, 9, 8)
        np.testing.assert_array_equal(get(driver, b, x), want)
    assert len(calls) == 100
    driver.graph_destroy(executable)
    for call in (lambda: driver.graph_launch(executable, stream), lambda: driver.graph_destroy(executable),
                 lambda: driver.graph_instantiate(graph), lambda: driver.graph_launch(graph, stream)):
        with pytest.raises(InvalidHandle):
            call()


def test_abort_restores_the_stream(driver):
    stream, order = driver.stream_create(0), []
    for call in (lambda: driver.graph_end(stream), lambda: driver.graph_begin(0), lambda: driver.graph_end(0)):
        with pytest.raises(ArgumentError, match="graph_begin"):
            call()
    driver.graph_begin(stream)
    driver.host_func(stream, lambda: order.append("captured"))
    assert driver.graph_end(stream, abort=True) == 0
    driver.host_func(stream, lambda: order.append("run"))
    driver.stream_sync(stream)
    assert order == ["run"] and driver.stream_query(stream)
    driver.graph_begin(stream)
    driver.stream_destroy(stream)  # the recording goes with it
    with pytest.raises(InvalidHandle):
        driver.graph_end(stream)


def test_a_graph_is_not_an_executable_and_a_stream_no_graph(driver):
    stream = driver.stream_create(0)
    driver.graph_begin(stream)
    graph = driver.graph_end(stream)
    for call in (lambda: driver.graph_launch(graph, stream), lambda: driver.graph_destroy(stream), lambda: driver.graph_instantiate(stream)):
        with pytest.raises(InvalidHandle):
            call()
    driver.graph_launch(driver.graph_instantiate(graph), stream)  # empty: nothing happens
    driver.stream_sync(stream)


def test_replays_nest_and_fail_like_eager_work(driver):
    stream, seen = driver.stream_create(0), []
    driver.graph_begin(stream)
    driver.host_func(stream, lambda: seen.append("inner"))
    inner = driver.graph_instantiate(driver.graph_end(stream))
    driver.graph_begin(stream)
    driver.graph_launch(inner, stream)
    driver.graph_launch(inner, stream)
    driver.host_func(stream, lambda: 1 // 0)
    outer = driver.graph_instantiate(driver.graph_end(stream))
    assert not seen
    driver.graph_launch(outer, stream)
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        driver.stream_sync(stream)
    driver.stream_sync(stream)
    assert seen == ["inner"] * 2


def test_two_threads_never_mix_their_replays(driver):
    stream, seen = driver.stream_create(0), []
    driver.graph_begin(stream)
    for k in range(5):
        driver.host_func(stream, lambda k=k: seen.append(k))
    executable = driver.graph_instantiate(driver.graph_end(stream))
    threads = [threading.Thread(target=lambda: [driver.graph_launch(executable, stream) for _ in range(50)]) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    driver.stream_sync(stream)
    assert seen == list(range(5)) * 200


def test_a_stream_cannot_wait_for_itself(driver):
    stream, seen = driver.stream_create(0), []

    def wait():
        try:
            driver.stream_sync(stream)
        except Busy as e:
            seen.append(str(e))

    driver.host_func(stream, wait)
    driver.stream_sync(stream)
    assert len(seen) == 1 and "another thread" in seen[0]


# ---- profiles ----------------------------------------------------------------------------------------------------------------
def test_profile_counts_and_lies_between_the_events(driver):
    stream = driver.stream_create(0)
    start, end = driver.event_create(0), driver.event_create(0)
    a = driver.alloc(0, 64)
    driver.fill(0, a, b"\1", 64, stream)
    driver.stream_sync(stream)
    assert driver.prof_drain(0) == []
    driver.prof_start(0)
    driver.event_record(start, stream)
    for _ in range(5):
        driver.fill(0, a, b"\1", 64, stream)
    driver.copy(0, Copy("d2d", a + 32, a, 16), stream)
    driver.host_func(stream, lambda: time.sleep(0.002))
    driver.event_record(end, stream)
    driver.stream_sync(stream)
    driver.fill(0, a, b"\1", 64)
    driver.prof_stop(0)
    driver.fill(0, a, b"\1", 64, stream)
    driver.stream_sync(stream)
    records = driver.prof_drain(0)
    assert [r.kind for r in records] == ["fill"] * 5 + ["copy", "host", "fill"]
    assert [r.nbytes for r in records] == [64] * 5 + [16, 0, 64] and [r.stream for r in records] == [stream] * 7 + [0]
    assert all(r.start_ns <= r.end_ns for r in records) and records == sorted(records, key=lambda r: r.start_ns)
    assert sum(r.end_ns - r.start_ns for r in records[:7]) <= driver.event_elapsed_ns(start, end)
    assert records[6].end_ns - records[6].start_ns >= 2_000_000
    assert driver.prof_drain(0) == []


def test_telemetry(driver):
    stream, gate = driver.stream_create(0), threading.Event()
    driver.host_func(stream, lambda: gate.wait(WAIT_S))
    t = driver.telemetry(0)
    gate.set()
    for value, low, high in ((t.util_percent, 0, 100), (t.temperature_c, -50, 150), (t.power_w, 0, 2000), (t.clock_mhz, 1, 20000)):
        assert np.isnan(value) or low <= value <= high
    assert 0 <= t.mem_used_bytes <= driver.props(0).total_bytes
    for bad in (-1, driver.device_count()):
        with pytest.raises(ArgumentError):
            driver.telemetry(bad)


# ---- memory of another process -------------------------------------------------------------------------------------------------
CHILD = """
import sys, numpy as np
from haian.adapters.{name} import {cls}
from haian.hal.driver import Copy
from haian.hal.errors import InvalidHandle
d, n = {cls}(), {n}
address = d.ipc_open(0, bytes.fromhex(sys.argv[1]))
x = np.empty(n, np.float64)
d.copy(0, Copy("d2h", x.ctypes.data, address, x.nbytes))
info = d.ptr_info(0, address)
assert info.kind == "device" and info.base == address and info.nbytes == x.nbytes, info
d.fill(0, address, bytes(8)[:4], 8)
try:
    d.free(0, address)
    sys.exit("an opened address was freed")
except InvalidHandle:
    pass
d.ipc_close(0, address)
try:
    d.ipc_close(0, address)
    sys.exit("closed twice")
except InvalidHandle:
    pass
print(x.sum())
"""


@pytest.mark.parametrize("n", [3, 100_000])
def test_ipc_in_another_process(driver, n):
    x = np.arange(1.0, n + 1)
    a = put(driver, x)
    handle = driver.ipc_export(0, a)
    assert isinstance(handle, bytes) and len(handle) == 64
    code = CHILD.format(name=driver.name, cls=type(driver).__name__, n=n)
    done = subprocess.run([sys.executable, "-c", code, handle.hex()], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == x.sum()
    got = get(driver, a, x)
    assert got[0] == 0 and (got[1:] == x[1:]).all()  # the other process wrote the first element


def test_ipc_refuses(driver):
    a = driver.alloc(0, 5000)
    for bad in (a + 8, 12345):
        with pytest.raises(InvalidHandle):
            driver.ipc_export(0, bad)
    handle = driver.ipc_export(0, a)
    b = driver.ipc_open(0, handle)  # in the same process: a second address of the same bytes
    driver.fill(0, b, b"\x07", 5000)
    assert (get(driver, a, np.empty(5000, np.uint8)) == 7).all()
    with pytest.raises(InvalidHandle):
        driver.ipc_export(0, b)
    with pytest.raises(InvalidHandle):
        driver.ipc_close(0, a)
    for bad in (handle[:-1], b"\0" * 64, b"other" + handle[5:]):
        with pytest.raises(ArgumentError):
            driver.ipc_open(0, bad)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True).stdout
    gone = handle[:8] + int(dead).to_bytes(4, "little") + handle[12:]
    with pytest.raises(HaianError):
        driver.ipc_open(0, gone)
    driver.ipc_close(0, b)
    with pytest.raises(Unsupported):
        driver.ipc_event_export(driver.event_create(0))
    driver.free(0, a)


def test_freed_pages_cost_nothing(driver):
    """Were freed ranges of the memory file kept, a hundred written ones of 1 MiB would stay in it."""
    before = _usage()[2]
    for _ in range(100):
        a = driver.alloc(0, 64 << 20)
        driver.fill(0, a, b"\1", 1 << 20)
        driver.free(0, a)
    assert _usage()[2] - before < 16 << 20
    if offers(driver, "ipc"):
        a = driver.alloc(0, 1)
        file = int.from_bytes(driver.ipc_export(0, a)[12:16], "little")
        assert os.fstat(file).st_blocks * 512 <= 64 << 10
