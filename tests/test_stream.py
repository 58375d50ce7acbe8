"""Streams and events: order, overlap, snapshots, timing, errors, on every driver and on one that has neither."""
import gc
import threading
import time

import pytest
from haian.adapters.cpu import CpuDriver
from haian.hal.device import Device
from haian.hal.driver import Capabilities, Driver
from haian.hal.errors import ArgumentError, HaianError, InternalError, InvalidHandle, NotReady, Timeout
from haian.hal.stream import Event
from haian.hal.validate import validate
from hal_support import bare, blocked, no_leaks


@pytest.fixture(params=["cpu", "sim"])
def device(request):
    dev = bare(request.param)
    yield dev
    no_leaks(dev)


class Plain(Driver):
    """Only what is required: no streams, no events."""

    name = "plain"

    def __init__(self):
        self._host = CpuDriver()

    def device_count(self):
        return 1

    def props(self, device):
        return Capabilities(model="plain", total_bytes=1 << 20, max_alloc_bytes=1 << 20, align_bytes=64)

    def sync(self, device):
        self._host.sync(device)

    def alloc(self, device, nbytes, align=0):
        return self._host.alloc(device, nbytes, align)

    def free(self, device, address):
        self._host.free(device, address)

    def copy(self, device, desc, stream=0):
        assert stream == 0
        self._host.copy(device, desc)


def test_handles_are_distinct(device):
    streams = [device.stream() for _ in range(8)]
    handles = {s.handle for s in streams}
    assert len(handles) == 8 and 0 not in handles
    for s in streams:
        s.close()


def test_closed_stream_is_refused_even_after_its_slot_is_reused(device):
    s = device.stream()
    s.close()
    s.close()
    with pytest.raises(InvalidHandle, match="closed"):
        s.synchronize()
    t = device.stream()
    for call in (device.driver.stream_sync, device.driver.inner.stream_sync):  # also without validation
        with pytest.raises(InvalidHandle):
            call(s.handle)
    t.close()


def test_in_order(device):
    s, seen = device.stream(), []
    for i in range(64):
        s.host_func(lambda i=i: seen.append(i))
    s.synchronize()
    assert seen == list(range(64))
    s.close()


def test_submission_returns_while_the_stream_is_blocked(device):
    s = device.stream()
    with blocked(s):
        start = time.monotonic()
        s.host_func(lambda: None)
        assert time.monotonic() - start < 1 and not s.query()
    s.synchronize()
    assert s.query()
    s.close()


def test_not_idle_while_the_last_task_runs(device):
    s = device.stream()
    with blocked(s):  # nothing is queued behind the running task
        assert not s.query()
    s.close()


def test_streams_overlap(device):
    a, b = device.stream(), device.stream()
    done = threading.Event()
    with blocked(a):
        b.host_func(done.set)
        assert done.wait(5), "a blocked stream held another one up"
    a.close()
    b.close()


def test_close_drains(device):
    s, seen = device.stream(), []
    s.host_func(lambda: time.sleep(0.03))
    s.host_func(lambda: seen.append(1))
    s.close()
    assert seen == [1]


def test_device_synchronize_covers_all_streams(device):
    streams, seen = [device.stream() for _ in range(3)], []
    for i, s in enumerate(streams):
        s.host_func(lambda i=i: (time.sleep(0.02), seen.append(i)))
    device.synchronize()
    assert sorted(seen) == [0, 1, 2]
    for s in streams:
        s.close()


def test_a_thousand_streams(device):
    streams = [device.stream() for _ in range(1000)]
    before = threading.active_count()
    assert len({s.handle for s in streams}) == 1000
    assert before < 900 or device.name.startswith("sim"), "idle streams cost a thread each"
    for s in streams:
        s.close()


def test_dropped_stream_finishes_its_work(device):
    s, seen = device.stream(), []
    s.host_func(lambda: (time.sleep(0.05), seen.append(1)))
    del s
    gc.collect()
    device.event()  # other calls do not wait for it
    device.synchronize()
    assert seen == [1]


def test_many_threads_on_one_stream(device):
    s, seen = device.stream(), []
    threads = [threading.Thread(target=lambda k=k: [s.host_func(lambda i=i: seen.append((k, i))) for i in range(50)]) for k in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    s.synchronize()
    assert len(seen) == len(set(seen)) == 400
    assert all([i for k, i in seen if k == j] == list(range(50)) for j in range(8))
    s.close()


def test_create_and_close_race(device):
    handles, lock = [], threading.Lock()

    def work():
        for _ in range(20):
            s = device.stream()
            with lock:
                assert s.handle not in handles
                handles.append(s.handle)
            s.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(handles) == 160


def test_synchronize_releases_the_interpreter(device):
    s = device.stream()
    with blocked(s) as gate:
        threading.Timer(0.05, gate.set).start()
        s.synchronize()  # would never end if it held the interpreter's lock
    s.close()


# ---- the current stream ----------------------------------------------------------------------------------------------
def test_current_stream_is_per_thread_and_nests(device):
    a, b, other = device.stream(), device.stream(), []
    assert device.current_stream is device.default_stream
    with a:
        assert device.current_stream is a
        with b, a:
            assert device.current_stream is a
        assert device.current_stream is a
        t = threading.Thread(target=lambda: other.append(device.current_stream))
        t.start()
        t.join()
        with pytest.raises(ZeroDivisionError), b:
            raise ZeroDivisionError
        assert device.current_stream is a
    assert device.current_stream is device.default_stream and other == [device.default_stream]
    a.close()
    b.close()
    with pytest.raises(InvalidHandle), a:
        pass


def test_two_threads_in_one_stream(device):
    s, barrier, seen = device.stream(), threading.Barrier(2), []

    def work(own):
        with own or device.default_stream:
            with s:
                barrier.wait()
            barrier.wait()
            seen.append((own, device.current_stream))

    mine = device.stream()
    t = threading.Thread(target=work, args=(mine,))
    t.start()
    work(None)
    t.join()
    assert {a or device.default_stream for a, _ in seen} == {b for _, b in seen} and all((a or device.default_stream) is b for a, b in seen)
    s.close()
    mine.close()


# ---- events ----------------------------------------------------------------------------------------------------------
def test_wait_orders_two_streams(device):
    a, b, seen = device.stream(), device.stream(), []
    with blocked(a):
        a.host_func(lambda: seen.append("a"))
        e = a.record()
        b.wait(e)
        b.host_func(lambda: seen.append("b"))
        time.sleep(0.03)
        assert not e.query() and not seen
    b.synchronize()
    assert seen == ["a", "b"]
    a.close()
    b.close()


def test_wait_keeps_the_record_it_saw(device):
    a, b, done = device.stream(), device.stream(), threading.Event()
    e = a.record()
    a.synchronize()
    with blocked(b) as gate, blocked(a):
        b.wait(e)  # of the first record, which has passed
        e.record(a)  # of the second, which cannot pass
        b.host_func(done.set)
        gate.set()
        assert done.wait(5), "a later record moved an earlier wait"
    a.close()
    b.close()


def test_unrecorded_event(device):
    s, e = device.stream(), device.event()
    assert e.query() and not e.recorded
    e.synchronize(0.1)
    s.wait(e)
    s.synchronize()
    with pytest.raises(NotReady, match="never recorded"):
        e.elapsed_ns(e)
    s.close()


def test_out_of_order_completion(device):
    a, b = device.stream(), device.stream()
    with blocked(a):
        first, second = a.record(), b.record()
        second.synchronize(5)
        assert second.query() and not first.query()
    first.synchronize(5)
    assert first.query()
    a.close()
    b.close()


def test_timeout_leaves_the_event_usable(device):
    s = device.stream()
    with blocked(s):
        e = s.record()
        start = time.monotonic()
        with pytest.raises(Timeout):
            e.synchronize(0.05)
        assert 0.04 < time.monotonic() - start < 3
    e.synchronize(5)
    s.close()


def test_elapsed_time_in_nanoseconds(device):
    s, x, y = device.stream(), device.event(), device.event()
    s.record(x)
    s.host_func(lambda: time.sleep(0.03))
    s.record(y)
    with pytest.raises(NotReady):
        x.elapsed_ns(y)
    s.synchronize()
    assert 25e6 < x.elapsed_ns(y) < 3e9 and y.elapsed_ns(x) == -x.elapsed_ns(y)
    with pytest.raises(ArgumentError, match="timing"):
        x.elapsed_ns(device.event(timing=False))
    s.close()


def test_event_of_another_device_is_refused():
    a, b = bare("sim"), bare("sim")
    s, e = b.stream(), a.event()
    with pytest.raises(ArgumentError, match="make an event of that device"):
        s.record(e)
    with pytest.raises(ArgumentError, match="clock"):
        e.elapsed_ns(b.event())
    s.close()


def test_waiting_for_another_devices_event_orders_too():
    a, b = bare("sim"), bare("cpu")
    s, t, seen = a.stream(), b.stream(), []
    s.host_func(lambda: (time.sleep(0.05), seen.append(1)))
    t.wait(s.record())
    t.host_func(lambda: seen.append(2))
    t.synchronize()
    assert seen == [1, 2]
    s.close()
    t.close()


def test_two_threads_wait_for_one_event(device):
    s, woken = device.stream(), []
    with blocked(s):
        e = s.record()
        threads = [threading.Thread(target=lambda: (e.synchronize(10), woken.append(1))) for _ in range(2)]
        [t.start() for t in threads]
    [t.join(10) for t in threads]
    assert woken == [1, 1]
    s.close()


def test_event_dropped_while_pending_and_reused_often(device):
    s = device.stream()
    with blocked(s):
        s.record()
        gc.collect()
    e = device.event()
    for _ in range(2000):
        e.record(s)
    e.synchronize(20)
    s.close()


# ---- errors ----------------------------------------------------------------------------------------------------------
def fail():
    raise ValueError("the host function's own fault")


def test_asynchronous_error_comes_once_at_the_next_sync(device):
    s, other, seen = device.stream(), device.stream(), []
    s.host_func(fail)
    other.host_func(lambda: seen.append(1))
    with pytest.raises(HaianError, match="own fault"):
        s.synchronize()
    s.synchronize()
    s.host_func(lambda: seen.append(2))
    other.synchronize()
    s.synchronize()
    assert sorted(seen) == [1, 2]
    s.close()
    other.close()


def test_asynchronous_error_comes_at_device_synchronize(device):
    s = device.stream()
    s.host_func(fail)
    with pytest.raises(HaianError, match="own fault"):
        device.synchronize()
    device.synchronize()
    s.close()


def test_asynchronous_error_is_not_lost_by_close(device):
    s = device.stream()
    s.host_func(fail)
    with pytest.raises(HaianError, match="own fault"):
        s.close()
    with pytest.raises(InvalidHandle):
        s.synchronize()


def test_host_function_that_waits_for_its_own_stream_is_refused():
    device = bare("cpu")
    s = device.stream()
    s.host_func(lambda: device.driver.stream_sync(s.handle))
    with pytest.raises(HaianError, match="its own stream"):
        s.synchronize()
    s.close()


# ---- a device without streams ----------------------------------------------------------------------------------------
def test_synchronous_device():
    device = Device(validate(Plain()), 0, 1)
    s, seen = device.stream(), []
    assert s.synchronous and s.query() and not device.capabilities.streams
    x, y = Event(device), Event(device)
    with s:
        s.record(x)
        s.host_func(lambda: seen.append(1))
        assert seen == [1]
        time.sleep(0.01)
        s.record(y)
        s.wait(y)
        s.synchronize()
    assert 5e6 < x.elapsed_ns(y) < 1e9 and x.query()
    a = device.allocate(1000, s)
    address = a.address
    del a
    assert device.allocate(1000).address == address
    s.close()
    device.synchronize()


def test_default_stream_is_synchronous(device):
    s, seen = device.default_stream, []
    s.host_func(lambda: seen.append(1))
    assert seen == [1] and s.query() and s.synchronous
    e = s.record()
    e.synchronize(5)
    t = device.stream()
    t.wait(e)
    t.close()
    s.close()
    s.synchronize()  # cannot be closed


def test_error_of_a_python_function_names_it():
    device = bare("cpu")
    s = device.stream()
    s.host_func(fail)
    with pytest.raises(InternalError, match="ValueError") as e:
        s.synchronize()
    assert isinstance(e.value.__cause__, ValueError)
    s.close()
