"""The native caching allocator: statistics, addresses, orders, failures of drivers, threads, C drivers' tables."""
import ctypes
import gc
import os
import random
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
from haian.adapters.sim import SimDriver
from haian.bench import allocator as bench
from haian.bench import fragmentation
from haian.hal.c_driver import CDriver
from haian.hal.device import Device
from haian.hal.driver import Capabilities, Driver
from haian.hal.errors import ArgumentError, DeviceLost, InvalidHandle, OutOfMemory, Unsupported
from haian.hal.memory import Allocator, Buffer
from haian.hal.validate import validate
from hal_support import bare, blocked, no_leaks

from haian import _native

KIB, MIB = 1 << 10, 1 << 20
ROOT = Path(__file__).resolve().parent.parent


class Paper(Driver):
    """Addresses and no memory; events pass when told; counts calls."""

    name = "paper"

    def __init__(self, total=1 << 30, events=True, streams=True, **facts):
        self.facts = Capabilities("paper", total, total, events=events, streams=streams, **facts)
        self.live, self.top, self.calls, self.passed, self.events = {}, MIB, [], set(), 0
        self.fail = {}  # method: exceptions to raise, first first

    def _called(self, name, *args):
        self.calls.append((name, *args))
        if self.fail.get(name):
            raise self.fail[name].pop(0)

    def device_count(self):
        return 1

    def props(self, device):
        return self.facts

    def alloc(self, device, nbytes, align=0):
        self._called("alloc", nbytes)
        if sum(self.live.values()) + nbytes > self.facts.total_bytes:
            raise OutOfMemory("paper: full")
        self.top = -(-self.top // align) * align
        address, self.top = self.top, self.top + nbytes
        self.live[address] = nbytes
        return address

    def free(self, device, address):
        self._called("free", address)
        del self.live[address]

    def sync(self, device):
        self._called("sync")

    def stream_sync(self, stream):
        self._called("stream_sync", stream)

    def stream_destroy(self, stream):
        self._called("stream_destroy", stream)

    def stream_wait_event(self, stream, event):
        self._called("stream_wait_event", stream, event)

    def event_create(self, device, timing=True):
        assert timing is False
        self._called("event_create")
        self.events += 1
        return self.events

    def event_record(self, event, stream):
        self._called("event_record", event, stream)
        self.passed.discard(event)

    def event_query(self, event):
        self._called("event_query", event)
        return event in self.passed

    def event_sync(self, event, timeout_ns=-1):
        self._called("event_sync", event)
        self.passed.add(event)

    def count(self, name):
        return sum(c[0] == name for c in self.calls)


def made(**facts):
    driver = Paper(**facts)
    return driver, Allocator(driver, 0, "paper:0", driver.facts)


# ---- take, give, statistics ------------------------------------------------------------------------------------------
def test_statistics_are_exact():
    driver, a = made()
    x, y = a.take(1), a.take(1000)
    assert a.stats() == {"live_bytes": 256 + 1024, "cached_bytes": 2 * MIB - 1280, "peak_bytes": 1280, "reserved_bytes": 2 * MIB,
                         "allocations": 2, "hits": 1, "segments": 1, "oom_retries": 0}
    a.give(x)
    a.give(y)
    z = a.take(1)
    assert z == x and a.stats()["live_bytes"] == 256 and a.stats()["hits"] == 2 and driver.count("alloc") == 1
    a.give(z)
    assert a.trim() == 2 * MIB and not driver.live
    assert a.stats()["segments"] == a.stats()["reserved_bytes"] == a.stats()["cached_bytes"] == 0


def test_addresses_are_given_once():
    _, a = made()
    x = a.take(100)
    for wrong in (x + 256, 0, 1 << 63):
        with pytest.raises(InvalidHandle, match="not taken here"):
            a.give(wrong)
    a.give(x)
    with pytest.raises(InvalidHandle, match="given back already"):
        a.give(x)
    many = [a.take(1 + i) for i in range(1000)]  # the table of addresses grows
    random.Random(0).shuffle(many)
    for address in many:
        a.give(address)
    assert len(set(many)) == 1000 and a.stats()["live_bytes"] == 0


@pytest.mark.parametrize("nbytes, error", [(0, ArgumentError), (-1, ArgumentError), (1 << 40, OutOfMemory), (1 << 64, OutOfMemory),
                                           (1 << 80, OutOfMemory), ("1", (TypeError, ArgumentError)), (1.0, (TypeError, ArgumentError))])
def test_sizes_that_are_refused(nbytes, error):
    driver, a = made()
    with pytest.raises(error):
        a.take(nbytes)
    assert not driver.calls and a.stats()["allocations"] == 0
    device = bare("sim")
    with pytest.raises(error):
        device.allocate(nbytes)
    no_leaks(device)


def test_numpy_integers_are_sizes():
    np = pytest.importorskip("numpy")
    device = bare("cpu")
    assert device.allocate(np.int64(300)).nbytes == 300
    no_leaks(device)


def test_freeing_merges_blocks_of_any_sizes_in_any_order():
    """A model of what is live beside the allocator; in the end one free block must be left."""
    driver, a = made()
    rng, live = random.Random(5), {}
    for i in range(20000):
        if live and (len(live) > 200 or rng.random() < 0.5):
            a.give(live.pop(rng.choice(list(live)))[0])
        else:
            n = int(2 ** rng.uniform(0, 17))
            live[i] = a.take(n), n
        if i % 500 == 0:
            spans = sorted((p, p + n) for p, n in live.values())
            assert all(e <= s for (_, e), (s, _) in zip(spans, spans[1:])), "live blocks overlap"
            segments = a._segments
            assert all(any(s <= p and e <= s + n for s, n in segments.items()) for p, e in spans), "a block outside all segments"
            assert a.stats()["live_bytes"] == sum(-(-n // 256) * 256 for _, n in live.values())
    for address, _ in live.values():
        a.give(address)
    assert a.trim() == sum(c[1] for c in driver.calls if c[0] == "alloc") and not driver.live and not a._segments


def test_alignment_of_the_device():
    _, a = made(align_bytes=4096)
    assert all(a.take(n) % 4096 == 0 for n in (1, 5000, 100, 70000))
    assert a.stats()["live_bytes"] == 4096 + 8192 + 4096 + 73728


# ---- streams ---------------------------------------------------------------------------------------------------------
def test_one_stream_never_makes_an_event():
    driver, a = made()
    a.stream_opened(7)
    for n in (100, 5000, MIB, 100):
        a.give(a.take(n, 7), (7,))
    a.trim()
    assert not driver.count("event_create")


def test_a_mark_is_made_once_and_asked_until_it_passes():
    driver, a = made()
    for s in (7, 8):
        a.stream_opened(s)
    x = a.take(12 * MIB, 7)
    a.give(x, (7,))
    others = [a.take(12 * MIB, 8) for _ in range(3)]
    assert x not in others and driver.count("event_record") == 1 and driver.count("event_query") >= 3
    driver.passed.add(1)
    assert a.take(12 * MIB, 8) == x and driver.count("event_record") == 1


def test_users_delay_reuse_and_closed_streams_do_not():
    driver, a = made()
    for s in (7, 8):
        a.stream_opened(s)
    x = a.take(12 * MIB, 7)
    a.give(x, (7, 8))
    assert a.take(12 * MIB, 7) != x and driver.count("event_record") == 1
    driver.passed.add(1)
    assert a.take(12 * MIB, 7) == x
    a.give(x, (7, 8))
    a.stream_close(8)
    driver.passed.add(1)
    assert a.take(12 * MIB, 7) == x
    a.give(x, (7, 8))  # 8 is gone
    a.stream_close(7)
    assert a.take(12 * MIB, 0) == x and driver.count("stream_destroy") == 2


def test_without_events_users_are_waited_for():
    driver, a = made(events=False)
    for s in (7, 8):
        a.stream_opened(s)
    x = a.take(12 * MIB, 7)
    a.give(x, (7, 8))
    assert a.take(12 * MIB, 7) == x and ("stream_sync", 8) in driver.calls and not driver.count("event_create")
    a.order((8, 7, 99), 7)
    assert driver.count("stream_sync") == 2  # 8 again; 7 is in order with itself, 99 unknown


def test_order_of_streams_and_host():
    driver, a = made()
    for s in (7, 8):
        a.stream_opened(s)
    a.order((7, 8, 99), 8)
    assert driver.calls == [("event_create",), ("event_record", 1, 7), ("stream_wait_event", 8, 1)]
    a.order((8,), 0)
    assert driver.calls[3:] == [("event_record", 1, 8), ("event_sync", 1)]


def test_a_thousand_streams_find_their_own_blocks():
    _, a = made()
    for s in range(1, 1001):
        a.stream_opened(s)
    mine = {s: a.take(300, s) for s in range(1, 1001)}
    for s, address in mine.items():
        a.give(address, (s,))
    for s in random.Random(0).sample(range(1, 1001), 1000):
        assert a.take(300, s) == mine[s]
    for s, address in mine.items():
        a.give(address, (s,))
        a.stream_close(s)
    a.trim()
    assert a.stats()["reserved_bytes"] == 0


# ---- failures --------------------------------------------------------------------------------------------------------
def test_out_of_memory_retries_after_giving_the_cache_back():
    driver, a = made(total=64 * MIB)
    a.give(a.take(40 * MIB))
    assert a.take(41 * MIB) and a.stats()["oom_retries"] == 1 and len(driver.live) == 1
    with pytest.raises(OutOfMemory, match=r"paper:0: 26214400 bytes asked for, .* of 67108864 free, 42991616 in live .*release"):
        a.take(25 * MIB)
    assert a.stats()["oom_retries"] == 2 and a.take(MIB)


@pytest.mark.parametrize("method", ["alloc", "sync", "free", "event_record", "event_query", "event_create"])
@pytest.mark.parametrize("error", [DeviceLost("paper: gone"), KeyboardInterrupt()], ids=["haian", "other"])
def test_errors_of_the_driver_pass_and_leave_books_that_balance(method, error):
    driver, a = made(total=64 * MIB)
    for s in (7, 8):
        a.stream_opened(s)
    blocks = [(a.take(12 * MIB, 7), (7,)), (a.take(12 * MIB, 7), (7, 8)), (a.take(100, 8), (8,))]
    for address, users in blocks:
        a.give(address, users)
    driver.fail[method] = [error]
    raised = []
    for step in (lambda: a.take(13 * MIB, 8), lambda: a.take(12 * MIB, 8), a.trim, a.trim, a.stats):
        try:
            step()
        except (DeviceLost, KeyboardInterrupt) as e:
            raised.append(e)
    assert raised == [error]
    driver.passed.update(range(1, 20))
    a.trim()
    stats = a.stats()
    assert stats["reserved_bytes"] == sum(driver.live.values()) and stats["segments"] == len(driver.live)
    assert stats["live_bytes"] in (0, 12 * MIB, 13 * MIB, 25 * MIB)


def test_a_default_stream_that_takes_no_marks_is_waited_for():
    driver, a = made()
    a.stream_opened(7)
    x = a.take(12 * MIB, 0)
    a.give(x, (0,))
    driver.fail["event_record"] = [Unsupported("paper: no mark in stream 0")]
    assert a.take(12 * MIB, 7) != x and driver.count("sync") == 1
    driver.passed.add(1)
    assert a.take(12 * MIB, 7) == x


def test_a_driver_may_free_buffers_and_allocate_within_its_calls():
    """Finalisers and weak references run anywhere: nothing may be locked while the driver is called."""
    inner = []

    class Busy(Paper):
        def _called(self, name, *args):
            super()._called(name, *args)
            if inner and not self.nested and len(self.calls) % 3 == 0:
                self.nested = True
                try:
                    allocator.give(inner.pop(), (0, 7))
                    inner.append(allocator.take(2000, 7))
                    allocator.stats()
                finally:
                    self.nested = False

    driver = Busy()
    driver.nested = True
    allocator = Allocator(driver, 0, "busy:0", driver.facts)
    allocator.stream_opened(7)
    allocator.stream_opened(8)
    inner.append(allocator.take(100, 7))
    driver.nested = False
    for i in range(50):
        for s in (7, 8, 0):
            allocator.give(allocator.take(12 * MIB + i, s), (s, 8))
        driver.passed.update(range(1, driver.events + 1))
        if i % 10 == 0:
            allocator.trim()
    allocator.order((7, 0), 8)
    allocator.stream_close(8)
    driver.nested = True
    allocator.give(inner.pop(), (7,))
    allocator.trim()
    assert allocator.stats()["live_bytes"] == 0 and not driver.live


def test_a_stream_closed_while_it_is_marked_is_destroyed_afterwards():
    class Closing(Paper):
        def event_record(self, event, stream):
            super().event_record(event, stream)
            if stream == 7:
                allocator.stream_close(7)
                assert not self.count("stream_destroy"), "destroyed under the driver's hands"

    driver = Closing()
    allocator = Allocator(driver, 0, "closing:0", driver.facts)
    for s in (7, 8):
        allocator.stream_opened(s)
    x = allocator.take(12 * MIB, 7)
    allocator.give(x, (7,))
    allocator.take(12 * MIB, 8)
    assert driver.calls.count(("stream_destroy", 7)) == 1
    assert allocator.take(12 * MIB, 8) == x  # a closed stream's memory is anyone's


# ---- buffers ---------------------------------------------------------------------------------------------------------
def test_buffers_hold_their_device_and_the_allocator_nothing_back():
    device = bare("sim")
    buffer, ref = device.allocate(100), weakref.ref(device)
    del device
    gc.collect()
    assert ref() is buffer.device and buffer.alive and "100 bytes" in repr(buffer)
    del buffer
    gc.collect()
    assert ref() is None


def test_streams_are_told_apart_after_their_address_is_used_again():
    """Buffer keeps a stream's handle by its identity; a dead stream's must never be taken for a new one's."""
    device = bare("cpu")
    for _ in range(200):
        stream = device.stream()
        assert device.allocate(100, stream)._users == [stream.handle]
        stream.close()
        del stream
    other = bare("cpu")
    for _ in range(2):
        with pytest.raises(ArgumentError, match="memory for a stream of"):
            Buffer(device, 100, other.default_stream)
    no_leaks(device)


def test_buffers_cannot_be_made_by_hand():
    device = bare("cpu")
    for wrong in ((), (device,), (device, 100), (object(), 100, device.default_stream), (device, 100, object())):
        with pytest.raises((TypeError, AttributeError)):
            Buffer(*wrong)
    with pytest.raises(TypeError):
        Buffer.__new__(Buffer)
    with pytest.raises(AttributeError):
        device.allocate(100).nbytes = 3


def test_many_streams_use_one_buffer():
    device = bare("cpu")
    streams = [device.stream() for _ in range(30)]
    buffer = device.allocate(12 * MIB, streams[0])
    address = buffer.address
    for stream in streams + streams:
        buffer.used_on(stream)
    assert buffer._users == [s.handle for s in streams]
    with blocked(streams[-1]):
        del buffer
        assert device.allocate(12 * MIB, streams[0]).address != address
    for stream in streams:
        stream.close()
    no_leaks(device)


# ---- threads ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("total", [256 * MIB, 24 * MIB], ids=["roomy", "scarce"])
@pytest.mark.parametrize("checked", [False, True], ids=["bare", "validated"])
def test_threads_lose_nothing(total, checked):
    driver = SimDriver(total_bytes=total)
    device = Device(validate(driver) if checked else driver, 0, 1)
    count = bench.stress(device, 0.7, 8, largest=MIB)
    assert count.allocations > 50 and not count.wrong and not count.unbalanced, count
    assert count.refused == 0 or total < 64 * MIB


def test_threads_on_one_allocator_count_exactly():
    _, a = made()
    for s in range(1, 9):
        a.stream_opened(s)

    def work(stream):
        rng, held = random.Random(stream), []
        for _ in range(3000):
            held.append(a.take(rng.choice((100, 1000, 70000)), stream))
            if len(held) > 20:
                a.give(held.pop(rng.randrange(20)), (stream, rng.randrange(1, 9)))
        for address in held:
            a.give(address, (stream,))

    threads = [threading.Thread(target=work, args=(s,)) for s in range(1, 9)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    stats = a.stats()
    assert stats["allocations"] == 24000 and stats["live_bytes"] == 0
    a.trim()
    assert a.stats()["reserved_bytes"] == 0


@pytest.mark.parametrize("mib", [64, 6], ids=["roomy", "scarce"])
def test_threads_without_an_interpreter_lock(tmp_path_factory, mib):
    """cache_threads.c over the core alone, under the thread sanitizer where the compiler has it."""
    program = tmp_path_factory.getbasetemp() / "cache_threads"
    if not program.exists():
        native = ROOT / "hal/native"
        sources = [ROOT / "tests/cache_threads.c", *(native / name for name in ("cache.c", "cache_blocks.c", "status.c"))]
        command = [os.environ.get("CC", "cc"), "-std=gnu11", "-g", "-O1", f"-I{native}", *map(str, sources), "-o", str(program), "-lpthread"]
        checked = subprocess.run([*command, "-fsanitize=thread"], capture_output=True).returncode == 0
        if not checked or subprocess.run([str(program), "1", "1"], capture_output=True).returncode:  # some kernels do not let it run
            subprocess.run(command, check=True)
    done = subprocess.run([str(program), "4", "1000", str(mib)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (" refused 0 " in done.stdout) == (mib == 64), done.stdout


# ---- drivers in C ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def c_driver(tmp_path_factory):
    out = tmp_path_factory.mktemp("c") / "inline.so"
    subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-O1", "-fPIC", "-shared", f"-I{ROOT / 'hal/include'}",
                    str(ROOT / "examples/inline_adapter/inline.c"), "-o", str(out), "-lpthread"], check=True)
    driver = CDriver(out)
    driver.init()
    return driver


def test_the_table_of_a_c_driver_is_called_without_python(c_driver, monkeypatch):
    def never(*args):
        raise AssertionError("the Python method was called")

    device = Device(c_driver, 0, 1)
    for method in ("alloc", "free", "sync"):
        monkeypatch.setattr(c_driver, method, never)
    a = device.allocator
    x = a.take(12 * MIB)
    a.give(x)
    assert a.take(12 * MIB) == x and a.stats()["hits"] == 1
    with pytest.raises(OutOfMemory, match="split the tensor"):
        a.take(1 << 62)
    a.give(x)
    assert a.trim() >= 12 * MIB


@pytest.mark.parametrize("checked", [False, True], ids=["table", "validated"])
def test_threads_lose_nothing_over_a_c_driver(c_driver, checked):
    device = Device(validate(c_driver) if checked else c_driver, 0, 1)
    count = bench.stress(device, 0.7, 8, largest=MIB)
    assert count.allocations > 50 and not count.wrong and not count.unbalanced, count


def test_a_c_program_allocates_without_python(c_driver):
    """libhaian alone: ctypes gives up the GIL and nothing below takes it."""
    lib = ctypes.CDLL(str(Path(_native.__file__).with_name("libhaian.so")))
    pointer, u64 = ctypes.c_void_p, ctypes.c_uint64
    lib.haian_cache_give.argtypes = [pointer, pointer, ctypes.POINTER(u64), ctypes.c_uint32]
    lib.haian_cache_take.argtypes = [pointer, u64, u64, ctypes.POINTER(pointer)]
    cache, block, released = pointer(), pointer(), u64()
    assert lib.haian_cache_over(pointer(c_driver.hal_table), 0, ctypes.byref(cache)) == 0

    def work():
        for i in range(300):
            mine = pointer()
            assert lib.haian_cache_take(cache, 1 + 977 * i, 0, ctypes.byref(mine)) == 0
            lib.haian_cache_give(cache, mine, ctypes.byref(u64(0)), 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert lib.haian_cache_take(cache, 0, 0, ctypes.byref(block)) == ArgumentError.code and not block
    assert lib.haian_cache_take(cache, 1 << 62, 0, ctypes.byref(block)) == OutOfMemory.code
    assert lib.haian_cache_trim(cache, ctypes.byref(released)) == 0 and released.value >= 2 * MIB
    lib.haian_cache_destroy(cache)


# ---- the bench -------------------------------------------------------------------------------------------------------
def test_the_policy_wastes_less_than_bins():
    haian = fragmentation.measure(fragmentation.cache_growth, fragmentation.POLICIES["haian"])
    bins = fragmentation.measure(fragmentation.cache_growth, fragmentation.POLICIES["power-of-two bins"])
    exact = fragmentation.measure(fragmentation.cache_growth, fragmentation.POLICIES["segments of exact size"])
    assert 1 <= haian.ratio < 1.6 < bins.ratio < exact.ratio and haian.segments < 10


def test_fragmentation_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "haian.bench.fragmentation"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert len(rows) == 1 + len(fragmentation.POLICIES) and all(name in rows[0] for name in fragmentation.TRACES)


def test_costs_of_a_pair_are_measured():
    figures = bench.costs(bare("cpu"))
    assert min(figures.values()) > 0 and "Buffer(device, n, stream)" in figures


def test_the_types_are_native():
    assert Allocator is _native.Allocator and Buffer is _native.Buffer
