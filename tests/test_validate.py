"""The validation layer: what it must refuse, what it must let through, and the wrong drivers it must catch."""
import threading

import numpy as np
import pytest
from haian.adapters.cpu import CpuDriver
from haian.adapters.sim import SimDriver
from haian.hal.device import Device
from haian.hal.driver import Capabilities, Copy, Launch
from haian.hal.errors import ArgumentError, HaianError, InternalError, InvalidHandle, OutOfRange, Unsupported
from haian.hal.validate import Validated, validate
from hal_support import bare

SIM = lambda: SimDriver(devices=2, total_bytes=64 << 20)  # noqa: E731
HOST = np.arange(4096, dtype=np.uint8)
HOST_ADDRESS = HOST.__array_interface__["data"][0]


@pytest.fixture(params=[CpuDriver, SIM], ids=["cpu", "sim"])
def driver(request):
    return validate(request.param())


@pytest.fixture
def sim():
    return validate(SIM())


def test_wraps_once_and_passes_everything_on(driver):
    assert validate(driver) is driver and driver.name == driver.inner.name
    assert driver.props(0) == driver.inner.props(0) and driver.device_count() == driver.inner.device_count()
    assert validate(SIM()).persona == "default"  # what a driver has beyond the page
    with pytest.raises(AttributeError):
        _ = driver.nonsense


def test_alloc_arguments(driver):
    for nbytes, align in ((0, 0), (-1, 0), (64, 3), (64, -8)):
        with pytest.raises(ArgumentError):
            driver.alloc(0, nbytes, align)


def test_free_refuses_with_the_reason(driver):
    p = driver.alloc(0, 256)
    with pytest.raises(InvalidHandle, match=r"inside the allocation .* made at test_validate.py:\d+ in test_free"):
        driver.free(0, p + 8)
    driver.free(0, p)
    with pytest.raises(InvalidHandle, match=r"freed at test_validate.py:\d+ in test_free"):
        driver.free(0, p)
    with pytest.raises(InvalidHandle, match="never allocated"):
        driver.free(0, HOST_ADDRESS)


def test_wrong_device(sim):
    p, s = sim.alloc(0, 64), sim.stream_create(1)
    with pytest.raises(InvalidHandle, match="memory of device 0, not 1"):
        sim.free(1, p)
    with pytest.raises(InvalidHandle, match="memory of device 0, not 1"):
        sim.fill(1, p, b"\0", 64)
    with pytest.raises(ArgumentError, match="another device"):
        sim.fill(0, p, b"\0", 64, s)
    with pytest.raises(ArgumentError, match="another device"):
        sim.event_record(sim.event_create(0), s)
    with pytest.raises(ArgumentError, match="there are 2"):
        sim.copy(0, Copy("peer", p, p, 8, dst_device=2))


@pytest.mark.parametrize("offset,nbytes", [(0, 65), (1, 64), (63, 2), (64, 1)])
def test_out_of_range_by_one_byte(sim, offset, nbytes):
    p, q = sim.alloc(0, 64), sim.alloc(0, 4096)
    for call in (lambda: sim.copy(0, Copy("h2d", p + offset, HOST_ADDRESS, nbytes)), lambda: sim.copy(0, Copy("d2h", HOST_ADDRESS, p + offset, nbytes)),
                 lambda: sim.copy(0, Copy("d2d", q, p + offset, nbytes)), lambda: sim.copy(0, Copy("d2d", p + offset, q, nbytes)),
                 lambda: sim.fill(0, p + offset, b"a", nbytes)):
        with pytest.raises((OutOfRange, InvalidHandle)):
            call()


def test_out_of_range_on_the_host_device():
    driver = validate(CpuDriver())
    p = driver.alloc(0, 64)
    with pytest.raises(OutOfRange, match=r"63 left in the allocation .* of 64 made at test_validate"):
        driver.fill(0, p + 1, b"a", 64)
    driver.fill(0, HOST_ADDRESS, b"\0", 16)  # ordinary memory of the host is no business of this layer
    assert not HOST[:16].any()
    driver.free(0, p)
    with pytest.raises(InvalidHandle, match="freed"):
        driver.fill(0, p, b"a", 1)


def test_two_dimensional_bounds(sim):
    p, q = sim.alloc(0, 256), sim.alloc(0, 256)
    sim.copy(0, Copy("d2d", p, q, 16, 4, 80, 64))  # the last row ends at 256
    with pytest.raises(OutOfRange):
        sim.copy(0, Copy("d2d", p + 1, q, 16, 4, 80, 64))
    with pytest.raises(ArgumentError, match="pitch of 8 for rows of 16"):
        sim.copy(0, Copy("d2d", p, q, 16, 4, 8, 64))
    with pytest.raises(ArgumentError, match="kind"):
        sim.copy(0, Copy("d2x", p, q, 16))
    with pytest.raises(ArgumentError, match="needs 0 or more"):
        sim.copy(0, Copy("d2d", p, q, -16))


def test_nothing_to_copy_is_fine(sim):
    p = sim.alloc(0, 64)
    sim.copy(0, Copy("h2d", p, 0, 0))
    sim.copy(0, Copy("h2d", p + 64, HOST_ADDRESS, 0))
    sim.copy(0, Copy("d2h", HOST_ADDRESS, p, 8, 0))
    sim.fill(0, p, b"a", 0)
    with pytest.raises(ArgumentError, match="host address 0"):
        sim.copy(0, Copy("h2d", p, 0, 8))


@pytest.mark.parametrize("pattern,nbytes", [(b"ab", 63), (b"abc", 63), (b"", 4), (b"abcd", 6), (b"a", -1)])
def test_fill_patterns(driver, pattern, nbytes):
    p = driver.alloc(0, 64)
    with pytest.raises(ArgumentError):
        driver.fill(0, p, pattern, nbytes)


@pytest.mark.parametrize("pattern", [b"\x07", b"ab", b"abcd", b"aa", b"\0\0\0\0"])
def test_fill_result(driver, pattern):
    p, out = driver.alloc(0, 67), np.zeros(67, np.uint8)
    driver.fill(0, p, b".", 67)
    driver.fill(0, p + 1, pattern, 64)  # misaligned
    driver.copy(0, Copy("d2h", out.__array_interface__["data"][0], p, 67))
    assert out.tobytes() == b"." + pattern * (64 // len(pattern)) + b".."


def test_stale_handles(driver):
    s, e = driver.stream_create(0), driver.event_create(0)
    driver.stream_destroy(s)
    driver.event_destroy(e)
    live = driver.stream_create(0)  # perhaps in the same slot
    for call in (lambda: driver.stream_sync(s), lambda: driver.stream_query(s), lambda: driver.stream_destroy(s),
                 lambda: driver.host_func(s, print), lambda: driver.stream_wait_event(s, e), lambda: driver.stream_wait_event(live, e),
                 lambda: driver.event_query(e), lambda: driver.event_sync(e), lambda: driver.event_record(e, live), lambda: driver.event_destroy(e)):
        with pytest.raises(InvalidHandle, match="destroyed at test_validate.py"):
            call()
    with pytest.raises(InvalidHandle, match="never created"):
        driver.stream_sync(12345)
    with pytest.raises(ArgumentError, match="host_func"):
        driver.host_func(live, 3)


def test_reset_ends_every_handle(sim):
    p, s, e = sim.alloc(0, 64), sim.stream_create(0), sim.event_create(0)
    q, t = sim.alloc(1, 64), sim.stream_create(1)
    sim.reset(0)
    for call in (lambda: sim.free(0, p), lambda: sim.stream_sync(s), lambda: sim.event_query(e)):
        with pytest.raises(InvalidHandle, match="reset"):
            call()
    sim.stream_sync(t)
    sim.free(1, q)


def test_leaks_name_their_place(driver):
    def make_things():
        return driver.alloc(0, 100), driver.stream_create(0), driver.event_create(0)

    assert driver.close() == []
    p, s, e = make_things()
    found = {x.kind: x for x in driver.close()}
    assert set(found) == {"memory", "stream", "event"} and found["memory"].nbytes == 100 and found["memory"].handle == p
    assert all("in make_things < test_validate.py" in x.where for x in found.values())
    assert "memory" in str(found["memory"]) and "100 bytes" in str(found["memory"])
    driver.free(0, p)
    driver.stream_destroy(s)
    driver.event_destroy(e)
    assert driver.close() == []


# ---- above the caching allocator --------------------------------------------------------------------------------------
def test_bounds_are_those_of_the_buffer_not_of_its_segment():
    device = bare("sim")
    a, b = device.allocate(100), device.allocate(100)
    device.driver.fill(0, a.address, b"a", 100)
    with pytest.raises(OutOfRange, match="left in the allocation"):
        device.driver.fill(0, a.address, b"a", 101)
    address = b.address
    del b
    device.memory_stats()
    with pytest.raises(InvalidHandle, match="its tensor's end"):
        device.driver.fill(0, address, b"a", 1)
    with pytest.raises(InvalidHandle, match="belongs to no tensor"):
        device.driver.fill(0, address + 5000, b"a", 1)
    (leak,) = device.driver.leaks()
    assert leak.nbytes == 100 and "test_validate.py" in leak.where
    del a
    device.memory_stats()
    assert not device.driver.leaks()


def test_launch_arguments():
    class Chip(SimDriver):
        def module_load(self, device, image, format):
            return 77

        def get_kernel(self, module, name):
            return 78

        def launch(self, device, desc, stream=0):
            self.launched = desc

        def module_unload(self, module):
            pass

    driver = validate(Chip(total_bytes=1 << 20))
    with pytest.raises(ArgumentError, match="needs bytes"):
        driver.module_load(0, b"", "ttir")
    m = driver.module_load(0, b"x", "ttir")
    k, p = driver.get_kernel(m, "f"), driver.alloc(0, 64)
    assert driver.get_kernel(m, "f") == k
    good = Launch(k, (1, 1, 1), 128, 0, [("*fp32", p), ("i32", 3), ("*fp32", 0)])
    driver.launch(0, good)
    assert driver.inner.launched is good
    for bad, error in ((Launch(k, (0, 1, 1), 128, 0, []), ArgumentError), (Launch(k, (1, 65536, 1), 128, 0, []), ArgumentError),
                       (Launch(k, (1, 1, 1), 100000, 0, []), ArgumentError), (Launch(k, (1, 1, 1), 128, 2**40, []), ArgumentError),
                       (Launch(k, (1, 1, 1), 128, 0, [("*fp32", 12345)]), InvalidHandle), (Launch(k + 1, (1, 1, 1), 128, 0, []), InvalidHandle)):
        with pytest.raises(error):
            driver.launch(0, bad)
    with pytest.raises(InvalidHandle, match="load it there"):
        driver.launch(1, good)
    driver.module_unload(m)
    with pytest.raises(InvalidHandle, match="the end of its module"):
        driver.launch(0, good)


# ---- wrong drivers ---------------------------------------------------------------------------------------------------
def mutant(**methods):
    base = type("Mutant", (SimDriver,), methods)
    return lambda: validate(base(devices=1, total_bytes=1 << 20))


def use(driver):
    p, q = driver.alloc(0, 64), driver.alloc(0, 64)
    driver.props(0)
    driver.mem_info(0)
    driver.device_count()
    driver.device_count()
    s, t = driver.stream_create(0), driver.stream_create(0)
    driver.stream_destroy(s)
    driver.stream_destroy(t)
    driver.free(0, p)
    driver.free(0, q)


COUNT = iter(range(1, 1000))


@pytest.mark.parametrize("make", [
    mutant(alloc=lambda self, d, n, a=0: 0), mutant(alloc=lambda self, d, n, a=0: 4097), mutant(alloc=lambda self, d, n, a=0: 1 << 40),
    mutant(stream_create=lambda self, d: 0), mutant(stream_create=lambda self, d: 7), mutant(mem_info=lambda self, d: (2, 1)),
    mutant(device_count=lambda self: next(COUNT)),
    mutant(props=lambda self, d: Capabilities(model="m", total_bytes=1, max_alloc_bytes=2)),
    mutant(props=lambda self, d: Capabilities(model="m", total_bytes=2, max_alloc_bytes=2, align_bytes=48)),
    mutant(props=lambda self, d: Capabilities(model="m", total_bytes=2, max_alloc_bytes=2, dtypes_math=("float64",))),
], ids=["null", "unaligned", "same_twice", "stream_0", "stream_twice", "free_above_total", "count_changes", "max_above_total", "odd_align", "math_not_loadable"])
def test_wrong_driver_is_caught(make):
    with pytest.raises(InternalError):
        use(make())


def test_right_driver_is_not():
    use(mutant()())


def test_a_wrong_pool_is_caught():
    """Blocks that overlap, or lie outside: the caching allocator itself is under watch."""
    device = bare("sim")
    a = device.allocate(1000)
    with pytest.raises(InternalError, match="overlaps the live"):
        device.driver.carve(0, a.address + 100, 10)
    with pytest.raises(InternalError, match="no pooled allocation"):
        device.driver.carve(0, 12345, 10)
    segment = next(iter(device.allocator._segments))
    with pytest.raises(InternalError, match="still has live blocks"):
        device.driver.free(0, segment)


def test_unsupported_passes_through():
    class Bare(CpuDriver):
        def fill(self, *a, **k):
            raise Unsupported("bare: no fill")

    driver = validate(Bare())
    p = driver.alloc(0, 64)
    with pytest.raises(Unsupported, match="bare: no fill"):
        driver.fill(0, p, b"a", 64)


def test_eight_threads(driver):
    wrong = []

    def work():
        try:
            for _ in range(50):
                p = driver.alloc(0, 100)
                s = driver.stream_create(0)
                driver.fill(0, p, b"a", 100, s)
                driver.stream_destroy(s)
                driver.free(0, p)
        except HaianError as e:
            wrong.append(e)

    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong and driver.close() == []


def test_devices_use_it():
    assert isinstance(Device(validate(CpuDriver()), 0, 1).driver, Validated)
