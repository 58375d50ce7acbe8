"""The engine and every table of CUDA's shape, each over its stand-in runtime: calling conventions, not hardware."""
from __future__ import annotations

import ctypes
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest
import standins
from haian.adapters.engine.library import bind, find, parse
from haian.adapters.engine.table import CALLS
from haian.conformance.allowances import Allowances
from haian.hal.driver import Capabilities, Copy, Driver, Launch
from haian.hal.errors import (
    ArgumentError,
    DeviceLost,
    EnvironmentMissing,
    HaianError,
    InternalError,
    InvalidHandle,
    NotReady,
    OutOfMemory,
    Timeout,
    Unsupported,
)

from haian import _native

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="stand-ins are compiled: no C compiler here")
SHAPED = [n for n, (front, _, _) in standins.STANDINS.items() if front in ("runtime.c", "cuda_driver.c")]
_drivers: dict[str, Driver] = {}


@pytest.fixture(params=SHAPED)
def driver(request):
    """One driver a vendor for the whole file; every test must leave it as it was."""
    made = _drivers.get(request.param)
    if made is None:
        made = _drivers[request.param] = standins.driver(request.param)
    before = (len(made._memory), len(made._handles._live))
    yield made
    assert (len(made._memory), len(made._handles._live)) == before, "the test left objects behind"


def h2d(driver, device, address, array, stream=0):
    driver.copy(device, Copy("h2d", address, array.ctypes.data, array.nbytes), stream)


def d2h(driver, device, array, address, stream=0):
    driver.copy(device, Copy("d2h", array.ctypes.data, address, array.nbytes), stream)


def fmt(driver) -> str:
    return driver.props(0).image_format


# ---- facts ---------------------------------------------------------------------------------------------------------------
def test_two_devices_with_facts(driver):
    assert driver.device_count() == 2 and not driver.why_none
    a, b = driver.props(0), driver.props(1)
    assert isinstance(a, Capabilities) and (a.model.startswith("stand-in") or "properties" not in driver._calls)
    assert a.total_bytes == (64 << 20 if driver.offers("mem_info") else driver.table.defaults["total_bytes"])
    if driver.table.attributes and "attribute" in driver._calls:
        assert a.max_threads == 1024 and a.multiprocessors == 4 and a.max_grid == (2**31 - 1, 65535, 65535) and a.max_shared_bytes == 64 << 10
    assert a.uuid == "" or a.uuid != b.uuid
    assert a.streams and a.events and a.async_copy and a.vendor == f"{driver.vendor} (stand-in)"
    assert driver.props(0) == a
    if driver.offers("module"):
        backend, arch, warp = a.triton_target
        assert backend and arch and warp >= 1 and a.image_format
    for word in ("visible_devices", "query_tool"):
        assert word in a.extra


def test_bad_ordinals_are_refused(driver):
    for device in (-1, 2, 2**31 - 1):
        for call in (lambda d, made=driver: made.alloc(d, 64), driver.props, driver.sync, driver.reset, driver.stream_create, driver.event_create):
            with pytest.raises(ArgumentError, match="device"):
                call(device)


def test_what_a_table_claims_and_the_library_lacks_is_named(driver):
    assert all("|" in m or m.isidentifier() for m in driver.missing)
    assert all(k and v for k, v in driver.unconfirmed.items())


# ---- memory ----------------------------------------------------------------------------------------------------------------
def test_round_trip_at_odd_sizes_and_offsets(driver):
    rng = np.random.default_rng(1)
    for device in (0, 1):
        base = driver.alloc(device, 70000)
        for n in (1, 3, 63, 65, 4097, 65537):
            for offset in (0, 1, 7):
                there, back = rng.integers(0, 256, n, dtype=np.uint8), np.zeros(n, np.uint8)
                h2d(driver, device, base + offset, there)
                d2h(driver, device, back, base + offset)
                assert np.array_equal(there, back)
        driver.free(device, base)


def test_device_to_device_peer_and_2d(driver):
    data, back = np.arange(4096, dtype=np.uint8), np.zeros(4096, np.uint8)
    a, b, far = driver.alloc(0, 4096), driver.alloc(0, 4096), driver.alloc(1, 4096)
    h2d(driver, 0, a, data)
    driver.copy(0, Copy("d2d", b, a, 4096))
    if driver.props(0).peer:
        driver.copy(0, Copy("peer", far, b, 4096, dst_device=1))
        d2h(driver, 1, back, far)
        assert np.array_equal(back, data)
    driver.fill(0, b, b"\0", 4096)
    driver.copy(0, Copy("d2d", b, a, nbytes=10, rows=5, dst_pitch=100, src_pitch=64))
    d2h(driver, 0, back, b)
    wanted = np.zeros(4096, np.uint8)
    for row in range(5):
        wanted[row * 100:row * 100 + 10] = data[row * 64:row * 64 + 10]
    assert np.array_equal(back, wanted)
    with pytest.raises(Unsupported, match="onto itself"):
        driver.copy(0, Copy("d2d", a + 1, a, 100))
    driver.copy(0, Copy("h2d", a, 0, 0))  # nothing: a success
    for device, address in ((0, a), (0, b), (1, far)):
        driver.free(device, address)


@pytest.mark.parametrize("pattern", [b"\x07", b"\x01\x02", b"\x01\x02\x03\xf4", b"\xff\xff\xff\xff"])
def test_fill_leaves_its_neighbours_alone(driver, pattern):
    n = 70000 * len(pattern)
    a, back = driver.alloc(0, n + 16), np.zeros(n + 16, np.uint8)
    driver.fill(0, a, b"\x55", n + 16)
    driver.fill(0, a + 8, pattern, n)
    d2h(driver, 0, back, a)
    assert bytes(back[8:-8]) == pattern * 70000 and set(back[:8]) == {0x55} == set(back[-8:])
    for bad in (b"", b"abc"):
        with pytest.raises(ArgumentError):
            driver.fill(0, a, bad, 12)
    with pytest.raises(ArgumentError):
        driver.fill(0, a, b"ab", 13)
    driver.free(0, a)


def test_the_host_cannot_touch_device_memory():
    code = "import standins, ctypes; d = standins.driver('hip'); ctypes.string_at(d.alloc(0, 64), 1)"
    done = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(__file__), capture_output=True)
    assert done.returncode == -11  # SIGSEGV


def test_sizes_alignment_and_wrong_frees(driver):
    for bad in ((0, 0), (-1, 0), (64, 3)):
        with pytest.raises(ArgumentError):
            driver.alloc(0, *bad)
    for align in (0, 64, 256, 4096):
        address = driver.alloc(0, 100, align)
        assert address % (align or 256) == 0
        with pytest.raises(InvalidHandle):
            driver.free(0, address + 1)
        with pytest.raises(InvalidHandle):
            driver.free(1, address)
        driver.free(0, address)
        with pytest.raises(InvalidHandle):
            driver.free(0, address)


def test_out_of_memory_leaves_everything_usable(driver):
    for much in ((64 << 20) + 1, 2**63, 2**64 - 1, 2**70):
        with pytest.raises(OutOfMemory):
            driver.alloc(1, much)
    free = driver.mem_info(1)[0] if driver.offers("mem_info") else 64 << 20
    held = []
    with pytest.raises(OutOfMemory, match=r"failed with \d+|bytes"):
        while True:
            held.append(driver.alloc(1, 5 << 20))
    assert len(held) == free // (5 << 20)
    for address in held:
        driver.free(1, address)
    assert not driver.offers("mem_info") or driver.mem_info(1)[0] == free
    driver.free(1, driver.alloc(1, free))


def test_pinned_managed_and_registered_memory(driver):
    if driver.offers("pinned"):
        a, p = driver.alloc(0, 64), driver.host_alloc(0, 64)
        ctypes.memset(p, 9, 64)
        driver.copy(0, Copy("h2d", a, p, 64))
        ctypes.memset(p, 0, 64)
        driver.copy(0, Copy("d2h", p, a, 64))
        assert ctypes.string_at(p, 64) == b"\x09" * 64
        assert driver.ptr_info(0, a + 63).kind == "device" and driver.ptr_info(0, p + 1).kind == "pinned" and driver.ptr_info(0, 1).kind == "unknown"
        driver.free(0, p)
        driver.free(0, a)
    if "managed_malloc" in driver._calls:
        m = driver.host_alloc(0, 64, managed=True)
        ctypes.memset(m, 1, 64)
        driver.free(0, m)
    if "host_register" in driver._calls:
        host = np.zeros(4096, np.uint8)
        driver.host_register(0, host.ctypes.data, 4096)
        with pytest.raises(ArgumentError):
            driver.host_register(0, host.ctypes.data, 4096)
        driver.host_unregister(0, host.ctypes.data)
        with pytest.raises(InvalidHandle):
            driver.host_unregister(0, host.ctypes.data)


# ---- streams -----------------------------------------------------------------------------------------------------------------
def test_asynchronous_copies_happen_later_and_in_order(driver):
    stream, a = driver.stream_create(0), driver.alloc(0, 1 << 20)
    data, back = np.full(1 << 20, 3, np.uint8), np.zeros(1 << 20, np.uint8)
    gate = threading.Event()
    driver.host_func(stream, gate.wait)
    h2d(driver, 0, a, data, stream)
    driver.fill(0, a, b"\x04", 10, stream)
    d2h(driver, 0, back, a, stream)
    assert not driver.stream_query(stream) and not back.any()
    gate.set()
    driver.stream_sync(stream)
    assert driver.stream_query(stream) and set(back[:10]) == {4} and set(back[10:]) == {3}
    driver.stream_destroy(stream)
    driver.free(0, a)


def test_streams_are_independent_and_destroy_drains(driver):
    a, b = driver.stream_create(0), driver.stream_create(0)
    gate, done = threading.Event(), []
    driver.host_func(a, gate.wait)
    driver.host_func(b, lambda: done.append(1))
    driver.stream_sync(b)
    assert done == [1] and not driver.stream_query(a)
    m = driver.alloc(0, 16)
    if driver.props(0).default_stream == "independent":
        driver.copy(0, Copy("h2d", m, np.zeros(16, np.uint8).ctypes.data, 16))  # stream 0 does not wait for a blocked stream
    driver.host_func(a, lambda: done.append(2))
    gate.set()
    driver.stream_destroy(a)
    assert done == [1, 2]
    driver.stream_destroy(b)
    driver.free(0, m)


def test_handles_are_small_distinct_and_die(driver):
    handles = [driver.stream_create(0) for _ in range(8)]
    assert len(set(handles)) == 8 and all(0 < h < 2**56 for h in handles)
    for h in handles:
        driver.stream_destroy(h)
    again = driver.stream_create(0)
    assert again not in handles
    for use in (driver.stream_sync, driver.stream_query, driver.stream_destroy, driver.event_query, driver.module_unload):
        with pytest.raises(InvalidHandle):
            use(handles[0])
    with pytest.raises(InvalidHandle):
        driver.event_sync(again)  # alive, but a stream
    assert driver.native(again) != 0
    driver.stream_destroy(again)


def test_what_a_host_function_raises_is_delivered_once(driver):
    stream = driver.stream_create(0)

    def fail():
        raise ValueError("mine")

    driver.host_func(stream, fail)
    with pytest.raises(InternalError, match="mine"):
        driver.stream_sync(stream)
    driver.stream_sync(stream)
    driver.stream_destroy(stream)


def test_threads_have_a_current_device_each(driver):
    failed = []

    def work(i: int) -> None:
        try:
            for k in range(20):
                device, there, back = (i + k) % 2, np.full(1000, i, np.uint8), np.zeros(1000, np.uint8)
                a = driver.alloc(device, 1000)
                h2d(driver, device, a, there)
                d2h(driver, device, back, a)
                driver.free(device, a)
                assert np.array_equal(there, back)
        except BaseException as e:  # noqa: BLE001 - shown by the test's own thread
            failed.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failed


# ---- events ------------------------------------------------------------------------------------------------------------------
def test_events_order_streams_and_keep_time(driver):
    a, b = driver.stream_create(0), driver.stream_create(0)
    start, end = driver.event_create(0), driver.event_create(0)
    order, gate = [], threading.Event()
    driver.stream_wait_event(b, start)  # before the first record: nothing to wait for
    driver.stream_sync(b)
    assert driver.event_query(start)
    driver.event_sync(start)
    with pytest.raises(NotReady):
        driver.event_elapsed_ns(start, end)
    driver.event_record(start, a)
    driver.event_sync(start)
    driver.host_func(a, lambda: (gate.wait(), order.append("a")))
    driver.event_record(end, a)
    driver.stream_wait_event(b, end)
    driver.host_func(b, lambda: order.append("b"))
    assert not driver.event_query(end) and not driver.stream_query(b)
    with pytest.raises(Timeout):
        driver.event_sync(end, 2_000_000)
    with pytest.raises(NotReady):
        driver.event_elapsed_ns(start, end)
    gate.set()
    driver.stream_sync(b)
    assert order == ["a", "b"]
    driver.event_sync(end, 10**9)
    passed = driver.event_elapsed_ns(start, end)
    assert 2_000_000 <= passed < 10**10 and driver.event_elapsed_ns(end, start) == -passed
    for e in (start, end):
        driver.event_destroy(e)
    for s in (a, b):
        driver.stream_destroy(s)


def test_events_without_timing_keep_none(driver):
    stream, a, b = driver.stream_create(0), driver.event_create(0, timing=False), driver.event_create(0, timing=False)
    driver.event_record(a, stream)
    driver.event_record(b, stream)
    driver.event_sync(b)
    if "event_new_untimed" in driver._calls:
        with pytest.raises(InvalidHandle):
            driver.event_elapsed_ns(a, b)
    driver.event_destroy(a)
    driver.event_destroy(b)
    driver.stream_destroy(stream)


# ---- modules -----------------------------------------------------------------------------------------------------------------
def test_launch_computes_and_says_its_geometry(driver):
    if not driver.offers("module"):
        with pytest.raises(Unsupported):
            driver.module_load(0, b"", "x")
        return
    module = driver.module_load(0, standins.image("axpy", "geometry"), fmt(driver))
    axpy, geometry = driver.get_kernel(module, "axpy"), driver.get_kernel(module, "geometry")
    n, stream = 1000, driver.stream_create(0)
    x, y = np.arange(n, dtype=np.float32), np.ones(n, np.float32)
    px, py = driver.alloc(0, 4 * n), driver.alloc(0, 4 * n)
    h2d(driver, 0, px, x)
    h2d(driver, 0, py, y)
    unit = driver.table.block_unit(driver._facts(0)) if driver.table.block_unit else 1
    driver.launch(0, Launch(axpy, (8, 1, 1), 128, 0, [("*fp32", px), ("*fp32", py), ("fp32", 0.5), ("i32", n)]), stream)
    driver.stream_sync(stream)
    back = np.zeros(n, np.float32)
    d2h(driver, 0, back, py)
    assert np.array_equal(back, y + np.float32(0.5) * x)
    driver.launch(0, Launch(geometry, (7, 3, 2), 64, 1024, [("*i32", px)]))
    driver.sync(0)
    said = np.zeros(7, np.uint32)
    d2h(driver, 0, said, px)
    assert said.tolist() == [7, 3, 2, -(-64 // unit) * unit, 1, 1, 1024]  # whole units of the launch
    driver.launch(0, Launch(geometry, (1, 1, 1), 512, 0, [("*i32", px)]))
    driver.sync(0)
    d2h(driver, 0, said, px)
    assert said[3] == 512
    with pytest.raises(ArgumentError):
        driver.launch(0, Launch(geometry, (1, 1, 1), 1025, 0, [("*i32", px)]))
    if "function_attribute" in driver._calls:
        assert driver.kernel_info(axpy).max_threads == 1024 and driver.kernel_info(axpy).name == "axpy"
    with pytest.raises(ArgumentError):
        driver.get_kernel(module, "nothing")
    with pytest.raises(ArgumentError):
        driver.launch(0, Launch(axpy, (0, 1, 1), 128, 0, [("*fp32", px), ("*fp32", py), ("fp32", 0.5), ("i32", n)]))
    with pytest.raises(ArgumentError, match="launch arguments"):
        driver.launch(0, Launch(axpy, (1, 1, 1), 128, 0, [("*fp32", px), ("tensor", 1)]))
    driver.module_unload(module)
    with pytest.raises(InvalidHandle):
        driver.launch(0, Launch(axpy, (1, 1, 1), 1, 0, []))
    for address in (px, py):
        driver.free(0, address)
    driver.stream_destroy(stream)


def test_bad_images_are_refused(driver):
    if driver.offers("module"):
        begins = driver.table.formats[fmt(driver)]
        for bad in (b"", b"nonsense", (begins[0] if begins else b"") + b"garbage"):
            with pytest.raises(ArgumentError):
                driver.module_load(0, bad, fmt(driver))
        with pytest.raises(Unsupported):
            driver.module_load(0, standins.image("axpy"), "floppy")


def test_native_launch_through_the_symbol(driver):
    """``_native.Launcher`` over a vendor's function: packed and called without Python of ours in between, errors translated."""
    if not driver.launch_symbol:
        assert not driver.offers("module") or driver.table.block_unit or "launch" in driver.table.calls
        return
    module = driver.module_load(0, standins.image("increment"), fmt(driver))
    kernel, stream, p = driver.get_kernel(module, "increment"), driver.stream_create(0), driver.alloc(0, 64)
    driver.fill(0, p, b"\0", 64)
    how = {"name": "increment", "device": 0, "tensor_device": 99, "shared_bytes": 0, "types": ("*i32", "", "i32"), **driver.native_launch(kernel, 16, 0)}
    launcher = _native.Launcher(**how)
    driver.make_current(0)
    launcher(driver.native_stream(stream), 1, 1, 1, p, "compiled in", 16)
    driver.stream_sync(stream)
    back = np.zeros(16, np.int32)
    d2h(driver, 0, back, p)
    assert back.tolist() == [1] * 16
    with pytest.raises(ArgumentError, match="needs a stream, three grid sizes and 3"):
        launcher(driver.native_stream(stream), 1, 1, 1, p)
    with pytest.raises(ArgumentError, match="grid of 0"):
        launcher(driver.native_stream(stream), 0, 1, 1, p, None, 16)
    with pytest.raises(HaianError, match=driver.name):  # 65536 threads a program: the runtime's own refusal
        _native.Launcher(**{**how, "threads": 65536})(driver.native_stream(stream), 1, 1, 1, p, None, 16)
    driver.module_unload(module)
    driver.stream_destroy(stream)
    driver.free(0, p)


def test_a_captured_graph_replays(driver):
    if not (driver.offers("graph") and driver.offers("module")):
        return
    module = driver.module_load(0, standins.image("increment"), fmt(driver))
    kernel, stream, p = driver.get_kernel(module, "increment"), driver.stream_create(0), driver.alloc(0, 64)
    driver.fill(0, p, b"\0", 64)
    launch = Launch(kernel, (1, 1, 1), 16, 0, [("*i32", p), ("i32", 16)])
    driver.graph_begin(stream)
    driver.launch(0, launch, stream)
    driver.launch(0, launch, stream)
    graph = driver.graph_end(stream)
    ready = driver.graph_instantiate(graph)
    driver.graph_destroy(graph)
    for _ in range(10):
        driver.graph_launch(ready, stream)
    driver.stream_sync(stream)
    back = np.zeros(16, np.int32)
    d2h(driver, 0, back, p)
    assert back.tolist() == [20] * 16
    driver.graph_begin(stream)
    driver.launch(0, launch, stream)
    assert driver.graph_end(stream, abort=True) == 0
    driver.stream_sync(stream)
    d2h(driver, 0, back, p)
    assert back.tolist() == [20] * 16
    driver.graph_destroy(ready)
    driver.module_unload(module)
    driver.stream_destroy(stream)
    driver.free(0, p)


# ---- errors ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SHAPED)
def test_a_fault_loses_its_device_only(name):
    driver = standins.driver(name, private=True)
    if not driver.offers("module"):
        return
    module, stream = driver.module_load(0, standins.image("fault"), fmt(driver)), driver.stream_create(0)
    kept = driver.alloc(0, 64)
    driver.launch(0, Launch(driver.get_kernel(module, "fault"), (1, 1, 1), 1, 0, []), stream)
    with pytest.raises(DeviceLost, match="700"):
        driver.stream_sync(stream)
    for call in (lambda: driver.alloc(0, 64), lambda: driver.stream_query(stream), lambda: driver.sync(0)):
        with pytest.raises(DeviceLost):
            call()
    driver.free(1, driver.alloc(1, 64))
    if "device_reset" not in driver._calls:  # the CUDA driver API: contexts do not recover
        with pytest.raises(DeviceLost, match="new process"):
            driver.reset(0)
        return
    driver.reset(0)
    with pytest.raises(InvalidHandle):
        driver.stream_sync(stream)
    with pytest.raises(InvalidHandle):
        driver.free(0, kept)
    driver.free(0, driver.alloc(0, 64))


@pytest.mark.parametrize("name", SHAPED)
def test_reset_and_fini_drop_everything(name):
    driver = standins.driver(name)
    for _ in range(3):
        driver.init()
        stream, event, address = driver.stream_create(0), driver.event_create(0), driver.alloc(0, 1 << 20)
        other = driver.alloc(1, 64)
        free = driver.mem_info(0)[0] if driver.offers("mem_info") else 0
        driver.reset(0)
        for use, dead in ((driver.stream_sync, (stream,)), (driver.event_query, (event,)), (driver.free, (0, address))):
            with pytest.raises(InvalidHandle):
                use(*dead)
        assert not free or driver.mem_info(0)[0] == free + (1 << 20)
        driver.free(1, other)
        driver.stream_destroy(driver.stream_create(0))
        driver.fini()
        assert driver.device_count() == 2


def test_wrong_directions_have_a_number(driver):
    """A table with another vendor's direction numbers is refused by the runtime, not silently obeyed."""
    if "copy" not in driver._calls:
        return
    a = driver.alloc(0, 64)
    host = np.zeros(64, np.uint8)
    assert driver._calls["copy"](a, host.ctypes.data, 64, 9) == 21
    assert driver._calls["copy"](a, host.ctypes.data, 64, driver.table.directions["d2h"]) == 1
    driver.free(0, a)


def test_a_forked_child_is_refused_cleanly():
    code = ("import os, sys, standins; d = standins.driver('hip'); d.alloc(0, 64); p = os.fork()\n"
            "if p == 0:\n"
            "    try: d.alloc(0, 64)\n"
            "    except Exception as e: os._exit(7 if 'fork' in str(e) else 8)\n"
            "    os._exit(9)\n"
            "sys.exit(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))")
    assert subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(__file__)).returncode == 7


# ---- traps: a table that is wrong is caught by its stand-in -------------------------------------------------------------------
def wrong(name: str, **changes: object) -> Driver:
    """The driver of a vendor with a table that is wrong in one place, over the right stand-in."""
    right = standins.driver(name, private=True)
    cls = type("Wrong", (type(right),), {"table": dataclasses.replace(right.table, **changes)})
    made = cls(str(standins.build(name)))
    assert made.device_count() == 2, made.why_none
    return made


def round_trip(driver: Driver) -> None:
    data, back = np.arange(100, dtype=np.uint8), np.zeros(100, np.uint8)
    stream, a = driver.stream_create(0), driver.alloc(0, 100)
    try:
        h2d(driver, 0, a, data, stream)
        d2h(driver, 0, back, a, stream)
        driver.stream_sync(stream)
    finally:
        driver.stream_destroy(stream)
        driver.free(0, a)
    assert np.array_equal(data, back)


@pytest.mark.parametrize("name", [n for n in SHAPED if n not in ("cuda", "thead")])
def test_another_vendors_direction_numbers_are_caught(name):
    round_trip(standins.driver(name))
    with pytest.raises(ArgumentError):
        round_trip(wrong(name, directions={"h2d": 0, "d2h": 2, "d2d": 1}))  # CNRT's
    with pytest.raises(ArgumentError):
        round_trip(wrong(name, directions={"h2d": 1, "d2h": 0, "d2d": 2}))  # XRE's


@pytest.mark.parametrize(("name", "call", "spec"), [
    ("biren", "copy_async", "suMemcpyAsync(dst, src, n, kind, stream)"),  # CUDA's order
    ("hip", "copy_async", "hipMemcpyAsync(dst, src, n, stream, kind)"),  # Biren's order
    ("hip", "copy_async", "hipMemcpyAsync(src, dst, n, kind, stream)"),
])
def test_another_vendors_argument_order_is_caught(name, call, spec):
    calls = dict(standins.driver(name).table.calls) | {call: spec}
    with pytest.raises((ArgumentError, InvalidHandle)):
        round_trip(wrong(name, calls=calls))


def test_a_direction_that_a_runtime_does_not_have():
    """TANG has no automatic direction: its number 4 is refused where HIP takes it."""
    auto = {"h2d": 4, "d2h": 4, "d2d": 4}
    round_trip(wrong("hip", directions=auto))
    with pytest.raises(ArgumentError, match="21"):
        round_trip(wrong("sunrise", directions=auto))


def test_modules_need_their_own_arguments_and_beginning():
    calls = dict(standins.driver("sunrise").table.calls) | {"module_load": "taModuleLoadData(out, image, 0:size_t)"}  # CUDA's two, the size is missing
    with pytest.raises(ArgumentError):
        wrong("sunrise", calls=calls).module_load(0, standins.image("axpy"), "stcu")
    driver = standins.driver("mthreads", private=True)
    calls = {k: v for k, v in driver.table.calls.items() if k != "driver_init"}
    cls = type("Wrong", (type(driver),), {"table": dataclasses.replace(driver.table, calls=calls)})
    with tempfile.TemporaryDirectory() as scratch:
        late = cls(str(shutil.copy(standins.build("mthreads"), scratch)))
        late.device_count()
    with pytest.raises(EnvironmentMissing, match="failed with 3"):  # muInit was not called
        late.module_load(0, standins.image("axpy"), "mubin")


def test_the_vendors_own_codes():
    for name, number in (("hip", 2), ("metax", 10007), ("sunrise", 3006)):
        driver = standins.driver(name)
        out = driver._ffi.new("uintptr_t *")
        assert driver._calls["malloc"](out, 65 << 20) == number
        assert isinstance(driver._error(number, "malloc"), OutOfMemory)


def test_cuda_wants_its_context():
    """cuInit, a current context, and a CUdevice that is not the ordinal: each missing step has its code."""
    driver = standins.driver("cuda", private=True)
    value = driver._ffi.new("int *")
    assert driver._calls["attribute"](value, 16, 0) == 101 and driver._calls["attribute"](value, 16, driver._ordinal(0)) == 0
    out = driver._ffi.new("uintptr_t *")
    assert driver._calls["malloc"](out, 64) == 201
    driver.free(0, driver.alloc(0, 64))
    seen = []
    other = threading.Thread(target=lambda: (seen.append(driver._calls["malloc"](out, 64)), driver.free(1, driver.alloc(1, 64))))
    other.start()
    other.join()
    assert seen == [201]  # a context is current for one thread


def test_work_without_waiting_is_seen_too_early():
    driver = standins.driver("hip")
    stream, a = driver.stream_create(0), driver.alloc(0, 1 << 20)
    data, back = np.full(1 << 20, 5, np.uint8), np.zeros(1 << 20, np.uint8)
    h2d(driver, 0, a, data, stream)
    d2h(driver, 0, back, a, stream)
    assert not back.all()  # nobody waited
    driver.stream_sync(stream)
    assert back.all()
    driver.stream_destroy(stream)
    driver.free(0, a)


# ---- looking for it ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SHAPED)
def test_an_absent_library_is_no_error(name):
    driver = type(standins.driver(name))()
    assert driver.device_count() == 0 and driver.why_none
    assert driver.looked or "not here" in driver.why_none or "another vendor" in driver.why_none
    with pytest.raises(ArgumentError, match="there are 0"):
        driver.alloc(0, 64)
    assert not driver.offers("stream")


def test_it_is_found_by_the_vendors_variable_and_nothing_is_writable(monkeypatch, tmp_path):
    cls = type(standins.driver("hip"))
    (tmp_path / "lib").mkdir()
    shutil.copy(standins.build("hip"), tmp_path / "lib" / "libamdhip64.so.6")
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    found = cls()
    assert found.device_count() == 2 and found.looked[0].startswith(str(tmp_path))
    (tmp_path / "lib" / "libamdhip64.so.6").chmod(0o777)
    refused = cls()
    assert refused.device_count() == 0 and "writable by everyone" in refused.why_none


def test_a_library_of_another_vendor_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("PPU_SDK", str(tmp_path))
    assert "another vendor" in find(type(standins.driver("cuda")).table).why


def test_a_library_that_lacks_symbols_loses_groups_only(tmp_path):
    source = tmp_path / "less.c"
    source.write_text("int hipGetDeviceCount(int *n) { *n = 1; return 0; }\nint hipSetDevice(int d) { return d; }\n"
                      "int hipMalloc(void **p, unsigned long n) { *p = (void *)(n + 4096); return 0; }\n"
                      "int hipFree(void *p) { return !p; }\nint hipDeviceSynchronize(void) { return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "less.so"), str(source)], check=True)
    driver = type(standins.driver("hip"))(str(tmp_path / "less.so"))
    assert driver.device_count() == 1 and "hipStreamQuery" in driver.missing
    assert not any(map(driver.offers, ("stream", "event", "module", "graph", "fill", "mem_info", "pinned", "comm")))
    with pytest.raises(Unsupported, match="hipStreamCreateWithFlags"):
        driver.stream_create(0)
    source.write_text("int hipGetDeviceCount(int *n) { *n = 1; return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "none.so"), str(source)], check=True)
    driver = type(standins.driver("hip"))(str(tmp_path / "none.so"))
    assert driver.device_count() == 0 and "hipMalloc" in driver.why_none


@pytest.mark.parametrize("name, symbol", [("ascend", "aclrtProcessReport"), ("ascend", "aclrtSubscribeReport"), ("cambricon", "cnSharedContextRelease"),
                                          ("cuda", "cuCtxSetCurrent")])
def test_half_of_what_belongs_together_is_refused_as_it_is_opened(name, symbol, tmp_path):
    """Or a stream's sync would wait for a thread that died, and fini would raise KeyError."""
    path, source = tmp_path / "less.so", standins.build(name)
    raw, word = source.read_bytes(), symbol.encode()
    assert b"\0" + word + b"\0" in raw
    path.write_bytes(raw.replace(b"\0" + word + b"\0", b"\0Q" + word[1:] + b"\0"))
    driver = type(standins.driver(name))(str(path))
    assert driver.device_count() == 0 and f"lacks {symbol}(" in driver.why_none and "another version is needed" in driver.why_none
    driver.fini()


def test_a_stand_in_is_named_so_and_other_libraries_by_their_path(monkeypatch, tmp_path):
    cls = type(standins.driver("tsingmicro"))
    (tmp_path / "a").mkdir()
    shutil.copy(standins.build("tsingmicro"), tmp_path / "a" / "libhpgr.so")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "a"))
    for made in (cls(), cls(str(tmp_path / "a" / "libhpgr.so"))):
        assert made.device_count() == 2 and made.stand_in == "host memory behind the vendor's names"
        facts = made.props(0)
        assert (facts.model, facts.vendor) == ("Tsingmicro (stand-in)", "Tsingmicro (stand-in)")
        assert facts.extra["library"] == str(tmp_path / "a" / "libhpgr.so") and facts.extra["unconfirmed"] and facts.extra["stand-in"] == made.stand_in
    raw = standins.build("tsingmicro").read_bytes()  # one that does not say so: the path says where it came from
    (tmp_path / "b").mkdir()
    silent = tmp_path / "b" / "libhpgr.so"
    silent.write_bytes(raw.replace(b"\0haian_stand_in\0", b"\0qaian_stand_in\0"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "b"))
    for made in (cls(), cls(str(silent))):
        assert made.device_count() == 2 and made.props(0).model == f"Tsingmicro (library {silent})" == made.props(0).vendor
    monkeypatch.delenv("LD_LIBRARY_PATH")
    installed = type("Installed", (cls,), {"table": dataclasses.replace(cls.table, paths=(str(tmp_path / "b"),))})()
    assert installed.device_count() == 2 and installed.props(0).model == installed.props(0).vendor == "Tsingmicro"


def test_reports_of_a_stand_in_say_so_on_top(tmp_path):
    from haian.conformance.hal_runner import _facts, _header
    from haian.conformance.report import _page

    for name in ("ascend", "tsingmicro"):
        driver = standins.driver(name)
        facts = _facts(driver, 0)
        assert facts["model"].endswith("(stand-in)") and facts["vendor"] == f"{driver.vendor} (stand-in)"
        assert facts["unconfirmed"] == driver.unconfirmed and facts["library"] == driver.library_path and facts["stand_in"]
        header = _header(f"{name}:0", "", 0, facts, Allowances(), (), (1, 1), 0)
        page = _page(header, [], 0.1, "L2", "")
        top = page[: page.index("Failures (")]
        assert "A stand-in (host memory" in top and driver.library_path in top and all(k in top for k in driver.unconfirmed)


BROKEN = {"constant face": "xMalloc(out, face)", "octal": "xMalloc(out, n, 010)", "minus": "xMalloc(out, n, -)", "a type that is none": "xMalloc(out, n:nonsense)",
          "a type with a semicolon": "xMalloc(out, n:int); int system(char *s)", "an empty type": "xMalloc(out, n:)", "no symbol": "(out, n)", "half an alternate": "|x(out, n)",
          "a keyword of C": "int(out, n)", "a struct by value": "xMalloc(out, n:struct foo)", "None": None, "bytes": b"xMalloc(out, n)", "an empty argument": "xMalloc(out,,n)",
          "a symbol that begins with a digit": "1x(out, n)", "not of the call": "xMalloc(out, bytes)"}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_broken_line_of_a_table_is_named(line):
    cls = type(standins.driver("hip"))
    broken = type("Broken", (cls,), {"table": dataclasses.replace(cls.table, calls={**cls.table.calls, "malloc": line})})
    with pytest.raises(ArgumentError) as said:
        bind(broken.table, [str(standins.build("hip"))])
    assert "'malloc'" in str(said.value) and repr(line) in str(said.value) and "\n" not in str(said.value)
    driver = broken(str(standins.build("hip")))
    assert driver.device_count() == 0 and repr(line) in driver.why_none


def test_negative_codes_are_nobodys_and_a_count_is_a_count(tmp_path):
    source = tmp_path / "odd.c"
    driver_class = type(standins.driver("hip"))
    for count, code in ((1, -2), (1, -600), (-1, 0), (2147483647, 0)):
        source.write_text(f"int hipGetDeviceCount(int *n) {{ *n = {count}; return 0; }}\nint hipSetDevice(int d) {{ (void)d; return 0; }}\n"
                          "int hipMalloc(void **p, unsigned long n) { *p = (void *)(n + 4096); return 0; }\n"
                          f"int hipFree(void *p) {{ return !p; }}\nint hipDeviceSynchronize(void) {{ return {code}; }}\n")
        path = tmp_path / f"odd{count}{code}.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
        driver = driver_class(str(path))
        if count != 1:
            assert driver.device_count() == 0 and f"counts {count} devices; needs 0 to 256" in driver.why_none
            continue
        with pytest.raises(InternalError, match=f"failed with {code}"):
            driver.sync(0)


def test_lines_of_a_table():
    assert parse("memset", "aclrtMemset(ptr, n, value, n)")[2] == [("ptr", "uintptr_t"), ("n", "size_t"), ("value", "int"), ("n", "size_t")]
    assert parse("error_text", "text aGetErrorString(code)") == (True, ("aGetErrorString",), [("code", "int")])
    assert parse("malloc", "x|y(out, n, 0:int)")[1:] == (("x", "y"), [("out", "uintptr_t *"), ("n", "size_t"), ("0", "int")])
    for call, spec in (("nothing", "f()"), ("malloc", "f(stream)"), ("malloc", "f")):
        with pytest.raises(ArgumentError):
            parse(call, spec)
    for name in SHAPED:
        table = type(standins.driver(name)).table
        assert all(parse(call, spec) for call, spec in table.calls.items()) and set(table.calls) <= set(CALLS)


def test_doctor_says_what_is_unconfirmed_and_where_it_looked(tmp_path):
    (tmp_path / "lib").mkdir()
    shutil.copy(standins.build("metax"), tmp_path / "lib" / "libmcruntime.so")
    env = os.environ | {"MACA_PATH": str(tmp_path), "HAIAN_ADAPTERS": "metax,hip"}
    said = subprocess.run([sys.executable, "-m", "haian.cli", "doctor", "--verbose"], env=env, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "metax:0 (stand-in C500)" in said and "counted in a copy of the enum" in said
    assert "no libamdhip64.so" in said and "/opt/rocm/lib" in said
