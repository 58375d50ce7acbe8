"""SimDriver as a device: memory, asynchrony, events, handles, faults and personas.

Kernels here are handwritten Triton IR, so that these tests need no triton.  Results of kernels: test_sim_execute.py.
"""
from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from haian.adapters.sim import SimDriver
from haian.hal.driver import Copy, Launch
from haian.hal.errors import (
    ArgumentError,
    DeviceLost,
    InternalError,
    InvalidHandle,
    NotReady,
    OutOfMemory,
    OutOfRange,
    Timeout,
    Unsupported,
)  # fmt: skip

WAIT_S = 5.0  # longer than anything here takes; reached only by a failure


@pytest.fixture
def driver():
    return SimDriver(total_bytes=1 << 30)


def put(driver, array, stream=0, device=0):
    address = driver.alloc(device, array.nbytes)
    driver.copy(device, Copy("h2d", address, array.ctypes.data, array.nbytes), stream)
    return address


def get(driver, address, like, stream=0, device=0):
    out = np.empty_like(like)
    driver.copy(device, Copy("d2h", out.ctypes.data, address, out.nbytes), stream)
    return out


class Gate:
    """Blocks a stream until opened."""

    def __init__(self, driver, stream):
        self.reached, self.opened = threading.Event(), threading.Event()
        driver.host_func(stream, self)

    def __call__(self):
        self.reached.set()
        assert self.opened.wait(WAIT_S)

    def open(self):
        self.opened.set()


# o[i] = x[i] + a for one element per program
KERNEL = """module {
  tt.func public @axpy(%x: !tt.ptr<f32>, %o: !tt.ptr<f32>, %a: f32) {
    %p = tt.get_program_id x : i32
    %px = tt.addptr %x, %p : !tt.ptr<f32>, i32
    %v = tt.load %px : !tt.ptr<f32>
    %y = arith.addf %v, %a : f32
    %po = tt.addptr %o, %p : !tt.ptr<f32>, i32
    tt.store %po, %y : !tt.ptr<f32>
    tt.return
  }
}
"""


def kernel_of(driver, text=KERNEL, name="axpy", device=0):
    return driver.get_kernel(driver.module_load(device, text.encode(), "ttir"), name)


def axpy(kernel, x, o, n, a=1.0, **other):
    return Launch(kernel, (n, 1, 1), 1, 0, [("*fp32", x), ("*fp32", o), ("fp32", a)], **other)


# ---- device and memory ---------------------------------------------------------------------------------------------------
def test_props_and_ordinals(driver):
    caps = driver.props(1)
    assert driver.device_count() == 2 and caps.total_bytes == 1 << 30 and caps.image_format == "ttir"
    assert caps.streams and caps.async_copy and caps.events and not caps.host_access
    for bad in (-1, 2, 2**31 - 1):
        for call in (driver.props, driver.sync, driver.reset, driver.mem_info, driver.stream_create, driver.event_create):
            with pytest.raises(ArgumentError):
                call(bad)


def test_importing_the_adapter_imports_no_triton():
    code = "import sys, haian.adapters.sim.runtime; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_alloc_bounds_and_alignment(driver):
    for bad in (0, -1):
        with pytest.raises(ArgumentError):
            driver.alloc(0, bad)
    with pytest.raises(ArgumentError):
        driver.alloc(0, 8, align=3)
    for align in (0, 64, 256, 4096, 1 << 20):
        assert driver.alloc(0, 5, align) % max(align, 256) == 0
    for huge in ((1 << 30) + 1, 1 << 63):
        with pytest.raises(OutOfMemory):
            driver.alloc(0, huge)


def test_totals_return_after_filling_the_device(driver):
    start = driver.mem_info(0)
    held = []
    with pytest.raises(OutOfMemory):
        while True:
            held.append(driver.alloc(0, 100 << 20))
    assert len(held) == 10  # 1 GiB holds ten times 100 MiB
    for address in held:
        driver.free(0, address)
    assert driver.mem_info(0) == start
    driver.free(0, driver.alloc(0, 1 << 30))


def test_free_refuses_what_is_not_a_live_base(driver):
    address = driver.alloc(0, 100)
    with pytest.raises(InvalidHandle):
        driver.free(0, address + 4)
    with pytest.raises(InvalidHandle):
        driver.free(1, address)
    driver.free(0, address)
    with pytest.raises(InvalidHandle):
        driver.free(0, address)
    assert driver.alloc(0, 100) != address  # addresses are never used again


def test_the_host_cannot_touch_device_memory(driver):
    address = driver.alloc(0, 4096)
    code = f"import ctypes; ctypes.string_at({address}, 1)"
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode < 0  # killed by a signal


@pytest.mark.parametrize("nbytes", [1, 3, 63, 64, 65, 4097])
@pytest.mark.parametrize("at", [0, 1, 7])
def test_round_trip_leaves_neighbours_alone(driver, nbytes, at):
    data = np.arange(nbytes, dtype=np.uint32).astype(np.uint8)
    address = put(driver, np.full(nbytes + 16, 0xAA, np.uint8))
    driver.copy(0, Copy("h2d", address + at, data.ctypes.data, nbytes))
    got = get(driver, address, np.empty(nbytes + 16, np.uint8))
    assert (got[at : at + nbytes] == data).all()
    assert (got[:at] == 0xAA).all() and (got[at + nbytes :] == 0xAA).all()


def test_copy_2d_overlap_peer_and_zero(driver):
    grid = np.arange(60, dtype=np.uint8).reshape(5, 12)
    address = put(driver, np.zeros((5, 16), np.uint8))
    driver.copy(0, Copy("h2d", address, grid.ctypes.data, 12, 5, 16, 12))
    got = get(driver, address, np.empty((5, 16), np.uint8))
    assert (got[:, :12] == grid).all() and (got[:, 12:] == 0).all()
    with pytest.raises(ArgumentError, match="pitch"):
        driver.copy(0, Copy("h2d", address, grid.ctypes.data, 12, 5, 11, 12))
    driver.copy(0, Copy("d2d", address + 1, address, 79))  # overlapping: as memmove
    assert (get(driver, address, np.empty(80, np.uint8))[1:] == got.reshape(-1)[:79]).all()
    other = driver.alloc(1, 79)
    driver.copy(0, Copy("peer", other, address, 79, dst_device=1))
    assert (get(driver, other, np.empty(79, np.uint8), device=1)[1:] == got.reshape(-1)[:78]).all()
    driver.copy(0, Copy("h2d", 12345, 67890, 0))  # zero bytes touch nothing
    with pytest.raises(OutOfRange):
        driver.copy(0, Copy("h2d", address + 1, grid.ctypes.data, 80))


@pytest.mark.parametrize("pattern", [b"\x07", b"\x01\x02", b"\x01\x02\x03\x04"])
def test_fill(driver, pattern):
    address = put(driver, np.zeros(48, np.uint8))
    driver.fill(0, address + 4, pattern, 40)
    got = get(driver, address, np.empty(48, np.uint8)).tobytes()
    assert got == bytes(4) + pattern * (40 // len(pattern)) + bytes(4)
    for bad in ((b"", 4), (b"123", 3), (b"1234", 6)):
        with pytest.raises(ArgumentError):
            driver.fill(0, address, *bad)


def test_fresh_memory_is_not_zero(driver):
    assert np.isnan(get(driver, driver.alloc(0, 64), np.empty(16, np.float32))).all()


# ---- streams -----------------------------------------------------------------------------------------------------------------
def test_submission_returns_while_the_stream_is_blocked_and_order_is_kept(driver):
    stream, kernel = driver.stream_create(0), kernel_of(driver)
    gate = Gate(driver, stream)
    x = np.zeros(64, np.float32)
    a = driver.alloc(0, x.nbytes)
    driver.copy(0, Copy("h2d", a, x.ctypes.data, x.nbytes), stream)
    for k in range(20):
        driver.launch(0, axpy(kernel, a, a, 64, float(k)), stream)
    out = get(driver, a, x, stream)
    x += 1  # an asynchronous copy reads its source when its turn comes
    assert gate.reached.wait(WAIT_S) and not driver.stream_query(stream)
    gate.open()
    driver.stream_sync(stream)
    assert driver.stream_query(stream)
    np.testing.assert_array_equal(out, np.full(64, 1 + sum(range(20)), np.float32))


def test_one_blocked_stream_does_not_block_another(driver):
    first, second = driver.stream_create(0), driver.stream_create(0)
    gate = Gate(driver, first)
    ran = threading.Event()
    driver.host_func(second, ran.set)
    assert ran.wait(WAIT_S)
    driver.stream_sync(second)
    gate.open()
    driver.sync(0)
    assert driver.stream_query(first)


def test_destroy_drains_and_the_handle_is_stale_for_ever(driver):
    stream = driver.stream_create(0)
    done = []
    for k in range(50):
        driver.host_func(stream, lambda k=k: done.append(k))
    driver.stream_destroy(stream)
    assert done == list(range(50))
    again = driver.stream_create(0)
    assert again & 0xFFFFFFFF == stream & 0xFFFFFFFF and again != stream  # the slot is reused, the handle is not
    for call in (driver.stream_sync, driver.stream_query, driver.stream_destroy):
        with pytest.raises(InvalidHandle):
            call(stream)
    with pytest.raises(InvalidHandle):
        driver.event_record(stream, 0)


def test_many_streams_many_threads(driver):
    streams = [driver.stream_create(0) for _ in range(1000)]
    assert len(set(streams)) == 1000 and 0 not in streams
    before = threading.active_count()
    assert before < 100  # idle streams have no thread
    lock, count = threading.Lock(), [0]

    def bump():
        with lock:
            count[0] += 1

    workers = [threading.Thread(target=lambda: [driver.host_func(streams[0], bump) for _ in range(100)]) for _ in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    driver.stream_sync(streams[0])
    assert count == [800]
    for s in streams:
        driver.stream_destroy(s)


def test_work_of_another_device_is_refused(driver):
    stream = driver.stream_create(1)
    with pytest.raises(ArgumentError):
        driver.fill(0, driver.alloc(0, 4), b"a", 4, stream)
    with pytest.raises(ArgumentError):
        driver.event_record(driver.event_create(0), stream)
    with pytest.raises(ArgumentError):
        driver.launch(1, axpy(kernel_of(driver), 0, 0, 1))


def test_free_waits_for_queued_work(driver):
    stream = driver.stream_create(0)
    x = np.arange(100, dtype=np.float32)
    a = put(driver, x)
    free = driver.mem_info(0)[0]
    gate = Gate(driver, stream)
    out = get(driver, a, x, stream)
    driver.free(0, a)
    assert driver.mem_info(0)[0] == free + x.nbytes
    with pytest.raises(InvalidHandle):
        driver.free(0, a)
    gate.open()
    driver.stream_sync(stream)
    np.testing.assert_array_equal(out, x)
    driver.mem_info(0), driver.alloc(0, 4)  # any allocation notices that the work has passed
    with pytest.raises(OutOfRange):
        get(driver, a, x)


# ---- events --------------------------------------------------------------------------------------------------------------------
def test_event_orders_two_streams(driver):
    producer, consumer = driver.stream_create(0), driver.stream_create(1)
    event = driver.event_create(0)
    order = []
    gate = Gate(driver, producer)
    driver.host_func(producer, lambda: order.append("produced"))
    driver.event_record(event, producer)
    driver.stream_wait_event(consumer, event)
    driver.host_func(consumer, lambda: order.append("consumed"))
    assert not driver.event_query(event)
    with pytest.raises(Timeout):
        driver.event_sync(event, 1_000_000)
    gate.open()
    driver.stream_sync(consumer)
    assert order == ["produced", "consumed"]
    driver.event_sync(event)


def test_wait_sees_the_record_of_its_time(driver):
    first, second, third = (driver.stream_create(0) for _ in range(3))
    event = driver.event_create(0)
    driver.stream_wait_event(second, event)  # before any record: no wait
    driver.stream_sync(second)
    assert driver.event_query(event)
    driver.event_sync(event)
    with pytest.raises(NotReady):
        driver.event_elapsed_ns(event, event)
    one = Gate(driver, first)
    driver.event_record(event, first)
    two = Gate(driver, second)
    driver.stream_wait_event(second, event)
    other = Gate(driver, third)
    driver.event_record(event, third)  # later record: the wait above, though not begun, does not look at it
    one.open()
    two.open()
    driver.stream_sync(second)
    assert not driver.event_query(event)
    driver.event_destroy(event)  # while its record is pending
    other.open()
    driver.sync(0)
    with pytest.raises(InvalidHandle):
        driver.event_query(event)


def test_elapsed_is_nanoseconds(driver):
    stream = driver.stream_create(0)
    start, end, plain = driver.event_create(0), driver.event_create(0), driver.event_create(0, timing=False)
    driver.event_record(start, stream)
    driver.host_func(stream, lambda: time.sleep(0.02))
    driver.event_record(end, stream)
    driver.event_record(plain, stream)
    driver.stream_sync(stream)
    elapsed = driver.event_elapsed_ns(start, end)
    assert 20_000_000 <= elapsed < 2_000_000_000
    assert driver.event_elapsed_ns(end, start) == -elapsed
    with pytest.raises(ArgumentError, match="timing"):
        driver.event_elapsed_ns(start, plain)


# ---- errors --------------------------------------------------------------------------------------------------------------------
def test_asynchronous_error_surfaces_once_and_harms_no_other_stream(driver):
    bad, good, kernel = driver.stream_create(0), driver.stream_create(0), kernel_of(driver)
    x = np.ones(4, np.float32)
    a, b = put(driver, x), put(driver, x)
    driver.launch(0, axpy(kernel, a, a, 5), bad)  # one program too many
    driver.launch(0, axpy(kernel, b, b, 4), bad)  # skipped: the stream has failed
    driver.launch(0, axpy(kernel, a, a, 4), good)
    driver.stream_sync(good)
    event = driver.event_create(0)
    driver.event_record(event, bad)
    driver.event_sync(event, int(WAIT_S * 1e9))  # events still complete
    with pytest.raises(OutOfRange, match="axpy.*1 of 5 lanes"):
        driver.stream_sync(bad)
    driver.stream_sync(bad)
    np.testing.assert_array_equal(get(driver, a, x), x + 1)
    np.testing.assert_array_equal(get(driver, b, x), x)
    driver.launch(0, axpy(kernel, b, b, 4), bad)
    driver.stream_sync(bad)
    np.testing.assert_array_equal(get(driver, b, x), x + 1)


def test_error_of_a_host_function_comes_from_query(driver):
    stream = driver.stream_create(0)
    driver.host_func(stream, lambda: 1 // 0)
    driver.sync(0)
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        driver.stream_query(stream)
    assert driver.stream_query(stream)


def test_lost_device_stays_lost_until_reset(driver):
    stream, kernel = driver.stream_create(0), kernel_of(driver)
    address = driver.alloc(0, 16)
    gate = Gate(driver, stream)
    waiting = []

    def wait():
        try:
            driver.stream_sync(stream)
        except DeviceLost as e:
            waiting.append(e)

    thread = threading.Thread(target=wait)
    thread.start()
    driver.lose_device(0)
    thread.join(WAIT_S)
    assert len(waiting) == 1  # a wait that had begun ends
    for call in (lambda: driver.alloc(0, 4), lambda: driver.sync(0), lambda: driver.free(0, address),
                 lambda: driver.launch(0, axpy(kernel, address, address, 1)), lambda: driver.stream_query(stream)):
        for _ in range(2):
            with pytest.raises(DeviceLost):
                call()
    driver.free(1, driver.alloc(1, 4))  # the other device goes on
    driver.reset(0)
    gate.open()
    assert driver.mem_info(0) == (1 << 30, 1 << 30)
    for call in (lambda: driver.free(0, address), lambda: driver.stream_query(stream),
                 lambda: driver.launch(0, axpy(kernel, address, address, 1))):
        with pytest.raises(InvalidHandle):
            call()
    x = np.ones(3, np.float32)
    a = put(driver, x)
    driver.launch(0, axpy(kernel_of(driver), a, a, 3))
    np.testing.assert_array_equal(get(driver, a, x), x + 1)


def test_injected_faults(driver):
    driver.fail_next_alloc(2)
    for _ in range(2):
        with pytest.raises(OutOfMemory):
            driver.alloc(0, 4)
    x = np.ones(4, np.float32)
    address = put(driver, x)
    driver.slow_copies(0.02)
    start = time.monotonic()
    get(driver, address, x)
    assert time.monotonic() - start >= 0.02
    driver.slow_copies(0)


# ---- modules and launch ----------------------------------------------------------------------------------------------------------
def test_launch_refuses_what_does_not_fit(driver):
    module = driver.module_load(0, KERNEL.encode(), "ttir")
    kernel = driver.get_kernel(module, "axpy")
    a = driver.alloc(0, 64)
    good = [("*fp32", a), ("*fp32", a), ("fp32", 1.0)]
    for grid in ((0, 1, 1), (1, 65536, 1), (-1, 1, 1)):
        with pytest.raises(ArgumentError, match="grid"):
            driver.launch(0, Launch(kernel, grid, 1, 0, good))
    for args in (good[:2], [*good, ("i32", 1)], [("i64", a), *good[1:]], [*good[:2], ("i32", 1)], [*good[:2], ("*fp32", a)]):
        with pytest.raises(ArgumentError, match="argument"):
            driver.launch(0, Launch(kernel, (1, 1, 1), 1, 0, args))
    with pytest.raises(ArgumentError, match="threads"):
        driver.launch(0, Launch(kernel, (1, 1, 1), 2048, 0, good))
    with pytest.raises(Unsupported, match="cluster"):
        driver.launch(0, axpy(kernel, a, a, 1, cluster=(2, 1, 1)))
    with pytest.raises(ArgumentError, match="cubin"):
        driver.module_load(0, KERNEL.encode(), "cubin")
    with pytest.raises(ArgumentError, match="axpy"):
        driver.get_kernel(module, "nothing")
    driver.module_unload(module)
    for call in (lambda: driver.get_kernel(module, "axpy"), lambda: driver.launch(0, axpy(kernel, a, a, 1))):
        with pytest.raises(InvalidHandle):
            call()


def test_unload_while_the_launch_is_queued(driver):
    stream = driver.stream_create(0)
    module = driver.module_load(0, KERNEL.encode(), "ttir")
    x = np.ones(8, np.float32)
    a = put(driver, x)
    gate = Gate(driver, stream)
    driver.launch(0, axpy(driver.get_kernel(module, "axpy"), a, a, 8, 2.5), stream)
    driver.module_unload(module)
    gate.open()
    driver.stream_sync(stream)
    np.testing.assert_array_equal(get(driver, a, x), x + 2.5)


BODIES = {
    "float64 arithmetic": "%y = arith.extf %v : f32 to f64\n %z = arith.mulf %y, %y : f64\n",
    "int64 vector arithmetic": "%y = tt.splat %n : i64 -> tensor<4xi64>\n %z = arith.addi %y, %y : tensor<4xi64>\n",
    "int64 in memory": "%q = tt.bitcast %x : !tt.ptr<f32> -> !tt.ptr<i64>\n %z = tt.load %q : !tt.ptr<i64>\n",
    "bfloat16 atomics": "%q = tt.bitcast %x : !tt.ptr<f32> -> !tt.ptr<i32>\n"
                        " %i = tt.ptr_to_int %q : !tt.ptr<i32> -> i64\n %b = tt.int_to_ptr %i : i64 -> !tt.ptr<bf16>\n"
                        " %t = arith.constant true\n %w = arith.truncf %v : f32 to bf16\n"
                        " %z = tt.atomic_rmw fadd, acq_rel, gpu, %b, %w, %t : (!tt.ptr<bf16>, bf16, i1) -> bf16\n",
    "": "%z = arith.addi %n, %n : i64\n",  # 64-bit scalar arithmetic is allowed everywhere
}  # fmt: skip


def persona_text(body):
    return ("module {\n tt.func public @k(%x: !tt.ptr<f32>, %n: i64) {\n %v = tt.load %x : !tt.ptr<f32>\n " + body
            + " tt.return\n }\n}\n")


@pytest.mark.parametrize("persona,refused", [
    ("default", set()),
    ("no_fp64", {"float64 arithmetic"}),
    ("no_int64", {"int64 vector arithmetic", "int64 in memory"}),
    ("no_bf16_atomics", {"bfloat16 atomics"}),
    ("like_gcu300", {"float64 arithmetic", "int64 vector arithmetic", "int64 in memory", "bfloat16 atomics"}),
])  # fmt: skip
def test_personas_refuse_what_they_lack(persona, refused):
    driver = SimDriver(devices=1, persona=persona)
    x = put(driver, np.ones(4, np.float32))
    for what, body in BODIES.items():
        kernel = kernel_of(driver, persona_text(body), "k")
        launch = Launch(kernel, (1, 1, 1), 1, 0, [("*fp32", x), ("i64", 3)])
        if what in refused:
            with pytest.raises(Unsupported, match=what):
                driver.launch(0, launch)
        else:
            driver.launch(0, launch)


def test_persona_from_the_environment(monkeypatch):
    monkeypatch.setenv("HAIAN_SIM_PERSONA", "grid65535")
    driver = SimDriver(devices=1)
    x = np.ones(70_000, np.float32)
    a = put(driver, x)
    kernel = kernel_of(driver)
    driver.launch(0, axpy(kernel, a, a, 65535))
    with pytest.raises(ArgumentError, match="grid"):
        driver.launch(0, axpy(kernel, a, a, 65536))
    with pytest.raises(ArgumentError, match="65535 programs"):
        driver.launch(0, Launch(kernel, (256, 256, 1), 1, 0, [("*fp32", a), ("*fp32", a), ("fp32", 1.0)]))
    np.testing.assert_array_equal(get(driver, a, x), 1.0 + (np.arange(70_000) < 65535))
    monkeypatch.setenv("HAIAN_SIM_PERSONA", "nobody")
    with pytest.raises(ArgumentError, match="no_fp64"):
        SimDriver()


def test_kernel_info_comes_from_the_ttir(driver):
    text = """module {
  tt.func public @kinds(%a: !tt.ptr<bf16>, %b: !tt.ptr<i1>, %c: i64, %d: f64, %e: !tt.ptr<f8E5M2>) {
    tt.return
  }
}
"""
    info = driver.kernel_info(kernel_of(driver, text, "kinds"))
    assert (info.name, info.args, info.max_threads, info.registers) == ("kinds", ("*bf16", "*i1", "i64", "fp64", "*fp8e5"), 1024, -1)
    a = driver.alloc(0, 64)
    kernel = kernel_of(driver)
    for threads in (0, -1, 1025):
        with pytest.raises(ArgumentError, match="threads"):
            driver.launch(0, Launch(kernel, (1, 1, 1), threads, 0, [("*fp32", a), ("*fp32", a), ("fp32", 1.0)]))


# ---- what only some memory is for --------------------------------------------------------------------------------------------
def test_kernels_use_managed_memory_and_not_pinned(driver):
    kernel, x = kernel_of(driver), np.arange(4, dtype=np.float32)
    managed, pinned = driver.host_alloc(0, 16, True), driver.host_alloc(0, 16)
    assert driver.mem_info(0)[0] == 1 << 30  # neither takes device memory
    for address in (managed, pinned):
        np.ctypeslib.ctypes.memmove(address, x.ctypes.data, 16)
    driver.launch(0, axpy(kernel, managed, managed, 4))
    assert np.ctypeslib.ctypes.string_at(managed, 16) == (x + 1).tobytes()
    with pytest.raises(OutOfRange):
        driver.launch(0, axpy(kernel, pinned, managed, 4))
    device = driver.alloc(0, 16)  # addresses above and below the host's at once
    driver.copy(0, Copy("d2d", device, managed, 16))
    driver.launch(0, axpy(kernel, device, managed, 4))
    assert np.ctypeslib.ctypes.string_at(managed, 16) == (x + 2).tobytes()
    stream = driver.stream_create(0)
    gate = Gate(driver, stream)
    driver.copy(0, Copy("h2d", device, pinned, 16), stream)
    driver.free(0, pinned)  # stays until the copy has passed
    with pytest.raises(InvalidHandle):
        driver.free(0, pinned)
    gate.open()
    driver.stream_sync(stream)
    np.testing.assert_array_equal(get(driver, device, x), x)


def test_a_lost_device_skips_replays(driver):
    stream = driver.stream_create(0)
    a = put(driver, np.zeros(4, np.uint8))
    driver.graph_begin(stream)
    driver.fill(0, a, b"\1", 4, stream)
    executable = driver.graph_instantiate(driver.graph_end(stream))
    driver.lose_device(0)
    for call in (lambda: driver.graph_launch(executable, stream), lambda: driver.graph_begin(stream), lambda: driver.prof_start(0),
                 lambda: driver.host_alloc(0, 4), lambda: driver.telemetry(0), lambda: driver.ptr_info(0, a), lambda: driver.ipc_export(0, a)):
        with pytest.raises(DeviceLost):
            call()
    driver.reset(0)
    with pytest.raises(InvalidHandle):
        driver.graph_launch(executable, driver.stream_create(0))


def test_events_order_streams_of_two_devices(driver):
    assert driver.props(0).cross_device_events and driver.props(0).peer
    one, two, event, order = driver.stream_create(0), driver.stream_create(1), driver.event_create(0), []
    gate = Gate(driver, one)
    driver.host_func(one, lambda: order.append(1))
    driver.event_record(event, one)
    driver.stream_wait_event(two, event)
    driver.host_func(two, lambda: order.append(2))
    gate.open()
    driver.stream_sync(two)
    assert order == [1, 2]


def test_telemetry_is_a_simulation_and_says_so(driver):
    assert driver.props(0).extra["telemetry"] == "simulated"
    stream = driver.stream_create(0)
    driver.alloc(0, 1000)
    idle = driver.telemetry(0)
    gate = Gate(driver, stream)
    busy = driver.telemetry(0)
    gate.open()
    assert (idle.util_percent, busy.util_percent, idle.mem_used_bytes) == (0, 100, 1000)
    assert busy.temperature_c > idle.temperature_c and busy.power_w > idle.power_w and busy.clock_mhz == idle.clock_mhz


# ---- simblas -----------------------------------------------------------------------------------------------------------------
class Operand:
    """What op_run reads of a tensor."""

    def __init__(self, driver, array):
        from haian.hal.dtype import dtype
        self.address = put(driver, np.ascontiguousarray(array))
        self.shape, self.dtype = array.shape, dtype(array.dtype)
        self.strides = tuple(s // array.itemsize for s in np.ascontiguousarray(array).strides)

    def transposed(self):
        self.shape, self.strides = self.shape[::-1], self.strides[::-1]
        return self


def test_op_query_is_pure_and_agrees_with_run(driver):
    for _ in range(2):
        assert driver.op_query(0, "matmul", ["float32", "float32"], True) == "supported"
        assert driver.op_query(0, "softmax", ["bfloat16"], False) == "supported"
        for name, dtypes in (("conv2d", ["float32"]), ("matmul", ["float32", "float64"]), ("softmax", ["int32"]), ("softmax", [])):
            assert driver.op_query(0, name, dtypes, True) == ""
    lacking = SimDriver(1, persona="no_fp64")
    assert lacking.op_query(0, "softmax", ["float64"], True) == "" and lacking.op_query(0, "softmax", ["float32"], True)
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(12, dtype=np.float32).reshape(4, 3)
    out = Operand(driver, np.zeros((2, 4), np.float32))
    stream = driver.stream_create(0)
    gate = Gate(driver, stream)
    driver.prof_start(0)
    driver.op_run(0, "matmul", [Operand(driver, a), Operand(driver, b).transposed()], [out], {}, stream)
    assert not get(driver, out.address, np.empty((2, 4), np.float32)).any()  # in stream order
    gate.open()
    driver.stream_sync(stream)
    np.testing.assert_array_equal(get(driver, out.address, np.empty((2, 4), np.float32)), a @ b.T)
    assert [(r.kind, r.name) for r in driver.prof_drain(0) if r.kind == "launch"] == [("launch", "simblas_matmul")]
    x = Operand(driver, np.array([[0.0, np.log(3)], [5, 5]]))
    driver.op_run(0, "softmax", [x], [x], {"dim": -1})
    np.testing.assert_allclose(get(driver, x.address, np.empty((2, 2))), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-15)
    with pytest.raises(Unsupported, match="simblas"):
        driver.op_run(0, "conv2d", [x], [x], {})
    driver.free(0, x.address)
    with pytest.raises(OutOfRange):
        driver.op_run(0, "softmax", [x], [x], {"dim": -1})


SIMBLAS = """
import numpy as np, haian
from haian.kernels import dispatch
x = haian.asarray(np.arange(12, dtype=np.float32).reshape(3, 4)).to("sim")
print(haian.explain(haian.ops.softmax, x, dim=0))
with haian.device("sim").profile() as records:
    got = haian.ops.softmax(x, dim=0), haian.ops.matmul(x, x.T), haian.ops.matmul(haian.asarray(np.zeros((2, 0, 4), "f4")).to("sim"), x.T)
e = np.exp(x.numpy() - x.numpy().max(0))
assert np.allclose(got[0].numpy(), e / e.sum(0), rtol=1e-6)
assert (got[1].numpy() == x.numpy() @ x.numpy().T).all() and got[2].shape == (2, 0, 3)
print(sorted({r.name.split("_")[0] for r in records if r.kind == "launch"}))
print(sorted(dispatch.chosen))
"""


@pytest.mark.parametrize("on", ["", "1"])
def test_simblas_is_a_candidate_of_dispatch(on):
    import os
    pytest.importorskip("triton", reason="haian's own kernels for sim are Triton's")
    done = subprocess.run([sys.executable, "-c", SIMBLAS], env=os.environ | {"HAIAN_SIM_LIBRARY": on}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split(maxsplit=1) == ["softmax__simblas", "taken" if on else "refused: simblas is off, HAIAN_SIM_LIBRARY=1 turns it on"]
    assert lines[2].split(maxsplit=1) == ["softmax__triton", "not needed" if on else "taken"]
    if on:
        assert lines[-2] == "['simblas']" and "('matmul', 'matmul__simblas')" in lines[-1]
    else:
        assert "simblas" not in lines[-2] + lines[-1]
