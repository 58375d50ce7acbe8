"""Device: facts, identity, memory, what survives fork and threads."""
import copy
import os
import pickle
import threading
import time

import numpy as np
import pytest
from haian.hal.device import Device
from haian.hal.driver import Capabilities, Driver
from haian.hal.dtype import BY_NAME
from haian.hal.errors import ArgumentError, DeviceLost, InvalidHandle, OutOfMemory
from haian.hal.registry import device as device_named
from haian.hal.validate import validate
from hal_support import bare, no_leaks

from haian import hal


@pytest.fixture(params=["cpu", "sim"])
def device(request):
    dev = bare(request.param)
    yield dev
    no_leaks(dev)


def test_facts_are_sane(device):
    facts = device.capabilities
    assert facts is device.capabilities and facts == device.driver.inner.props(0)
    assert facts.model and "\n" not in facts.model
    assert 0 < facts.max_alloc_bytes <= facts.total_bytes
    assert facts.align_bytes & (facts.align_bytes - 1) == 0
    assert set(facts.dtypes_math) <= set(facts.dtypes_load) <= set(BY_NAME)
    free, total = device.memory_info()
    assert 0 <= free <= total == facts.total_bytes


def test_cpu_facts_are_the_machines():
    facts = device_named("cpu").capabilities
    with open("/proc/meminfo") as f:
        total = int(next(line for line in f if line.startswith("MemTotal")).split()[1]) * 1024
    assert 0 < facts.total_bytes <= total
    assert facts.host_access and facts.multiprocessors == len(os.sched_getaffinity(0))


def test_identity(device):
    twin, other = Device(device.driver, 0, 1), Device(device.driver, 1, 2)
    assert device == twin and hash(device) == hash(twin) and device != other and device != device.name
    assert repr(device) == f"haian.device('{device.name}')"


def test_pickles_by_name():
    dev = device_named("sim:0")
    assert pickle.loads(pickle.dumps(dev)) is dev and copy.deepcopy(dev) is dev


@pytest.mark.parametrize("index", [-1, 1000, 2**31 - 1])
@pytest.mark.parametrize("name", ["cpu", "sim"])
def test_bad_ordinal_is_refused_everywhere(name, index):
    driver = bare(name).driver
    for d in (driver, driver.inner):  # the adapter itself too
        for call in (d.props, d.sync, d.reset, d.mem_info, d.stream_create, d.event_create):
            with pytest.raises(ArgumentError):
                call(index)
        with pytest.raises(ArgumentError):
            d.alloc(index, 64)
        with pytest.raises(ArgumentError):
            d.free(index, 64)


@pytest.mark.parametrize("name", ["cpu", "sim"])
def test_adapters_refuse_absurd_sizes_themselves(name):
    driver = bare(name).driver.inner
    with pytest.raises(ArgumentError):
        driver.alloc(0, 0)
    with pytest.raises(ArgumentError):
        driver.alloc(0, 64, 3)
    for n in (driver.props(0).max_alloc_bytes + 1, 2**63):
        with pytest.raises(OutOfMemory):
            driver.alloc(0, n)
    for align in (0, 64, 256, 4096):
        p = driver.alloc(0, 100, align)
        assert p % max(align, driver.props(0).align_bytes) == 0
        driver.free(0, p)


def test_a_driver_without_mem_info_counts():
    class Silent(Driver):
        name = "silent"

        def device_count(self):
            return 1

        def props(self, device):
            return Capabilities(model="s", total_bytes=1 << 20, max_alloc_bytes=1 << 20)

        def sync(self, device):
            pass

        def alloc(self, device, nbytes, align=0):
            return 1 << 40

        def free(self, device, address):
            pass

    device = Device(validate(Silent()), 0, 1)
    assert device.memory_info() == (1 << 20, 1 << 20)
    a = device.allocate(1000)
    free, total = device.memory_info()
    assert total - 65536 <= free < total and a.alive
    del a
    device.trim()
    assert device.memory_info() == (1 << 20, 1 << 20)


def test_host_memory_has_statistics():
    host = device_named("cpu")
    before = host.memory_stats()
    x = hal.empty((1000, 1000))
    during = host.memory_stats()
    assert during["live_bytes"] - before["live_bytes"] >= x.nbytes and during["allocations"] > before["allocations"]
    del x
    assert host.memory_stats()["live_bytes"] <= before["live_bytes"] and host.trim() >= 0


def test_one_allocator_for_many_threads():
    for _ in range(20):
        dev, found, barrier = bare("sim"), [], threading.Barrier(8)

        def work(dev=dev, found=found, barrier=barrier):
            barrier.wait()
            found.append((dev.allocator, dev.default_stream))

        threads = [threading.Thread(target=work) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len({id(a) for a, _ in found}) == len({id(s) for _, s in found}) == 1


def test_lost_device_is_sticky_and_reset_revives_it():
    device = bare("sim")
    x, s = device.allocate(100), device.stream()
    device.driver.lose_device(0)
    with pytest.raises(DeviceLost):
        device.synchronize()
    with pytest.raises(DeviceLost):
        device.allocate(10 << 20)
    device.driver.reset(0)
    with pytest.raises(InvalidHandle):
        s.synchronize()
    with pytest.raises(InvalidHandle):
        device.driver.free(0, x.address)
    fresh = Device(device.driver, 0, 1)
    assert fresh.allocate(100).alive


def test_reset_of_the_host_drops_handles():
    driver = bare("cpu").driver.inner
    p, s, e = driver.alloc(0, 100), driver.stream_create(0), driver.event_create(0)
    driver.reset(0)
    for call in (lambda: driver.free(0, p), lambda: driver.stream_sync(s), lambda: driver.event_query(e)):
        with pytest.raises(InvalidHandle):
            call()
    driver.free(0, driver.alloc(0, 100))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_refuses_the_parents_streams_and_works():
    driver = bare("cpu").driver.inner
    s = driver.stream_create(0)
    driver.host_func(s, lambda: time.sleep(0.2))
    child = os.fork()
    if not child:
        code = 1
        try:
            try:
                driver.stream_sync(s)
            except InvalidHandle:
                code = 2
            t = driver.stream_create(0)
            seen = []
            driver.host_func(t, lambda: seen.append(1))
            driver.stream_sync(t)
            code += 40 * (seen == [1])
        finally:
            os._exit(code)
    end = time.monotonic() + 20
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        assert time.monotonic() < end, "the child hangs"
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(status) == 42
    driver.stream_sync(s)


@pytest.mark.parametrize("name", ["cpu", "sim"])
def test_adapters_drain_a_stream_they_destroy(name):
    driver = bare(name).driver.inner
    s, seen = driver.stream_create(0), []
    driver.host_func(s, lambda: time.sleep(0.05))
    driver.host_func(s, lambda: seen.append(1))
    driver.stream_destroy(s)
    assert seen == [1]


def test_copy_races_with_free():
    """Freeing memory whose copy is queued: deferred, never corrupt."""
    for name in ("cpu", "sim"):
        device = bare(name)
        driver = device.driver.inner
        s, gate = driver.stream_create(0), threading.Event()
        p = driver.alloc(0, 1 << 16)
        src, out = np.full(1 << 16, 7, np.uint8), np.zeros(1 << 16, np.uint8)
        at = [a.__array_interface__["data"][0] for a in (src, out)]
        driver.host_func(s, lambda gate=gate: gate.wait(10))
        driver.copy(0, hal.Copy("h2d", p, at[0], 1 << 16), s)
        driver.copy(0, hal.Copy("d2h", at[1], p, 1 << 16), s)
        driver.free(0, p)
        others = [driver.alloc(0, 1 << 16) for _ in range(8)]
        for q in others:
            driver.fill(0, q, b"\xee", 1 << 16)
        gate.set()
        driver.stream_sync(s)
        assert (out == 7).all()
        sample = np.zeros(1 << 16, np.uint8)
        for q in others:
            driver.copy(0, hal.Copy("d2h", sample.__array_interface__["data"][0], q, 1 << 16))
            assert (sample == 0xEE).all()
