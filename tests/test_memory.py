"""The caching allocator's rules, OOM, and copies of any strides against NumPy."""
import gc
import random
import threading
import time

import numpy as np
import pytest
from haian.adapters.sim import SimDriver
from haian.hal.device import Device
from haian.hal.driver import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, Copy
from haian.hal.errors import AliasError, ArgumentError, DTypeError, InvalidHandle, OutOfMemory, ShapeError
from haian.hal.memory import Buffer, _Pieces, copy, use
from hal_support import bare, blocked, no_leaks, registered
from hypothesis import given, settings
from hypothesis import strategies as st

from haian import hal

KIB, MIB = 1 << 10, 1 << 20
ALONE = 12 * MIB  # fills a segment of its own, so that nothing is left over for a second request


@pytest.fixture(params=["cpu", "sim"])
def device(request):
    dev = bare(request.param)
    yield dev
    no_leaks(dev)


@pytest.fixture
def sim():
    dev = bare("sim")
    yield dev
    no_leaks(dev)


@pytest.fixture(scope="module")
def pair():
    """Two registered devices of one driver."""
    found = registered(2)
    yield found
    no_leaks(*found)


def put(device, buffer, data: bytes):
    raw = np.frombuffer(data, np.uint8)
    device.driver.copy(device.index, Copy(HOST_TO_DEVICE, buffer.address, raw.__array_interface__["data"][0], len(data)))


def get(device, buffer, n: int) -> bytes:
    out = np.empty(n, np.uint8)
    device.driver.copy(device.index, Copy(DEVICE_TO_HOST, out.__array_interface__["data"][0], buffer.address, n))
    return out.tobytes()


# ---- blocks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("nbytes", [1, 63, 64, 65, 255, 257, 4097, 65536, 65537, MIB + 1, 3 * MIB])
def test_holds_what_was_asked(device, nbytes):
    a = device.allocate(nbytes)
    assert a.address % device.capabilities.align_bytes == 0
    data = bytes(i * 37 & 255 for i in range(256)) * (nbytes // 256 + 1)
    put(device, a, data[:nbytes])
    b = device.allocate(nbytes)
    put(device, b, b"\xff" * nbytes)
    assert get(device, a, nbytes) == data[:nbytes]


def test_zero_bytes_refused(device):
    with pytest.raises(ArgumentError, match="at least 1"):
        device.allocate(0)


def test_freed_memory_is_reused_on_its_stream_at_once(device):
    with device.stream() as s, blocked(s):
        a = device.allocate(5000)
        address = a.address
        del a
        b = device.allocate(5000)  # the stream is still blocked: order makes this right
        assert b.address == address
        del b
    s.close()
    assert device.memory_stats()["hits"] == 1


def test_freed_memory_waits_for_its_stream_elsewhere(device):
    a, b = device.stream(), device.stream()
    with blocked(a):
        x = device.allocate(ALONE, a)
        address = x.address
        del x
        seen = [device.allocate(ALONE, b) for _ in range(4)]
        assert address not in [y.address for y in seen], "memory that blocked work of stream a may still use was given to stream b"
    a.synchronize()
    y = device.allocate(ALONE, b)
    assert y.address == address, "memory was not reused although its stream has passed"
    del seen, y
    a.close()
    b.close()


def test_use_on_another_stream_delays_reuse(device):
    a, b = device.stream(), device.stream()
    x = device.allocate(ALONE, a)
    address = x.address
    x.used_on(b)
    with blocked(b):
        del x
        y = device.allocate(ALONE, a)
        assert y.address != address, "memory in use on stream b was reused on stream a"
        del y
    b.synchronize()
    held = [device.allocate(ALONE, a) for _ in range(2)]
    assert address in [y.address for y in held]
    del held
    a.close()
    b.close()


def test_later_work_does_not_delay_reuse(device):
    """Once the mark behind a freed block has passed, the block is anyone's, however busy its stream is again."""
    a, b = device.stream(), device.stream()
    with blocked(a):
        x = device.allocate(ALONE, a)
        address = x.address
        del x
        y = device.allocate(ALONE, b)  # makes the mark, which cannot pass yet
        assert y.address != address
    a.synchronize()
    with blocked(a):
        assert device.allocate(ALONE, b).address == address
    del y
    a.close()
    b.close()


def test_memory_of_a_closed_stream_is_anyones(device):
    a = device.stream()
    x, y = device.allocate(5000, a), device.allocate(7000, a)
    address = x.address
    del x
    a.close()
    del y
    assert device.allocate(5000).address == address


def test_split_and_coalesce(device):
    blocks = [device.allocate(10 * KIB) for _ in range(100)]
    addresses = sorted(b.address for b in blocks)
    assert device.memory_stats()["segments"] == 1
    random.Random(1).shuffle(blocks)
    while blocks:
        blocks.pop()
    big = device.allocate(60 * KIB)
    assert big.address == addresses[0] and device.memory_stats()["segments"] == 1, "neighbours were not merged"


def test_live_ranges_never_overlap(device):
    rng, live = random.Random(7), {}
    streams = [device.stream() for _ in range(3)]
    for i in range(1000):
        if live and rng.random() < 0.48:
            del live[rng.choice(list(live))]
        else:
            n = int(2 ** rng.uniform(0, 18))
            live[i] = device.allocate(n, rng.choice(streams))
        if i % 50 == 0:
            spans = sorted((b.address, b.address + b.nbytes) for b in live.values())
            assert all(e <= s for (_, e), (s, _) in zip(spans, spans[1:]))
    stats = device.memory_stats()
    assert stats["live_bytes"] >= sum(b.nbytes for b in live.values()) and stats["peak_bytes"] >= stats["live_bytes"]
    live.clear()
    del streams
    assert device.memory_stats()["live_bytes"] == 0


def test_trim_returns_everything(sim):
    free, total = sim.memory_info()
    a = sim.allocate(3 * MIB)
    b = sim.allocate(100)
    assert sim.memory_info()[0] < free
    kept = b.address
    del a
    assert sim.trim() >= 3 * MIB
    assert b.address == kept and sim.memory_stats()["reserved_bytes"] == 2 * MIB
    del b
    sim.trim()
    assert sim.memory_info() == (free, total) and sim.memory_stats()["reserved_bytes"] == 0


def test_growing_cache_wastes_little():
    """Key-value caches that grow by a token a step: bins of sizes reserve 2.5 to 12 times the peak, exact segments 96."""
    dev = bare("sim")
    kv = [dev.allocate(32 * 128 * 4 * 8) for _ in range(8)]
    for token in range(2, 120):
        for layer in range(8):
            kv[layer] = dev.allocate(32 * token * 128 * 2)
            work = [dev.allocate(4096 * 2), dev.allocate(11008 * 2), dev.allocate(11008 * 2)]
            del work
    stats = dev.memory_stats()
    assert stats["reserved_bytes"] / stats["peak_bytes"] < 2.5, stats
    assert stats["segments"] <= 4 and stats["hits"] / stats["allocations"] > 0.99


def test_double_free_and_use_after_free(device):
    a = device.allocate(100)
    a.free()
    assert not a.alive
    with pytest.raises(InvalidHandle, match="freed twice"):
        a.free()
    with pytest.raises(InvalidHandle, match="freed"):
        device.memory_stats()  # takes in what was freed
        put(device, a, b"x")


def test_finalisers_inside_the_allocator_do_not_deadlock(sim):
    """Cycles of buffers are collected while the allocator holds its lock."""
    old = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(300):
            cycle = [sim.allocate(300)]
            cycle.append(cycle)
            del cycle
            sim.allocate(5000)
    finally:
        gc.set_threshold(*old)
    gc.collect()
    assert sim.memory_stats()["live_bytes"] == 0


def test_eight_threads(device):
    wrong = []

    def work(k):
        rng = random.Random(k)
        with device.stream() as s:
            for i in range(40):
                n = rng.randrange(1, 20000)
                b = device.allocate(n)
                data = bytes([k * 16 + i & 255]) * n
                put(device, b, data)
                if get(device, b, n) != data:
                    wrong.append((k, i))
        s.close()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    [t.start() for t in threads]
    [t.join(60) for t in threads]
    assert not wrong and device.memory_stats()["live_bytes"] == 0 and device.memory_stats()["allocations"] == 320


# ---- out of memory ---------------------------------------------------------------------------------------------------
def test_out_of_memory_leaves_everything_usable(sim):
    free, total = sim.memory_info()
    first = sim.allocate(1000)
    put(sim, first, b"a" * 1000)
    live = [first]
    with pytest.raises(OutOfMemory) as e:
        while True:
            live.append(sim.allocate(30 * MIB))
    assert len(live) == 9
    assert "31457280 bytes" in str(e.value) and "free" in str(e.value) and "release" in str(e.value) and "\n" not in str(e.value)
    assert get(sim, first, 1000) == b"a" * 1000
    live.append(sim.allocate(MIB))
    del live, first
    sim.trim()
    assert sim.memory_info() == (free, total)
    assert sim.allocate(200 * MIB).alive


def test_cache_is_given_back_before_giving_up(sim):
    parts = [sim.allocate(40 * MIB) for _ in range(6)]
    del parts
    assert sim.memory_stats()["cached_bytes"] >= 240 * MIB
    assert sim.allocate(220 * MIB).nbytes == 220 * MIB  # fits only once the 40 MiB segments are gone


def test_cache_of_a_busy_stream_is_waited_for(sim):
    s = sim.stream()
    big = sim.allocate(200 * MIB, s)
    s.host_func(lambda: time.sleep(0.05))
    del big
    assert sim.allocate(201 * MIB).alive
    s.close()


def test_driver_that_refuses_once_is_asked_again(sim):
    sim.driver.fail_next_alloc(2)  # the roomy segment and the exact one
    assert sim.allocate(100).alive
    sim.trim()
    sim.driver.fail_next_alloc(100)
    with pytest.raises(OutOfMemory):
        sim.allocate(100)
    sim.driver.fail_next_alloc(0)
    assert sim.allocate(100).alive


@pytest.mark.parametrize("nbytes", [2**63, 2**40])
def test_more_than_the_device_has(device, nbytes):
    with pytest.raises(OutOfMemory, match="split the tensor"):
        device.allocate(nbytes)


# ---- copies ----------------------------------------------------------------------------------------------------------
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T,
    "middle": lambda x: x[1:-1, 2:-1] if min(x.shape) > 3 else x,
    "every_second_row": lambda x: x[::2],
    "every_third_column": lambda x: x[:, ::3],
    "reversed": lambda x: x[::-1, ::-1],
    "reversed_columns": lambda x: x[:, ::-1],
    "reversed_strided": lambda x: x.T[::-2, 1::2],
}


def on(device, array, layout):
    """``layout(array)`` as a view of a device tensor that holds ``array``."""
    return LAYOUTS[layout](hal.asarray(array).to(device) if device else hal.asarray(array.copy()))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (13, 1), (5, 7), (64, 65), (0, 3), (129, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_down(pair, layout, shape):
    a = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
    np.testing.assert_array_equal(on(pair[0], a, layout).numpy(), LAYOUTS[layout](a))


@pytest.mark.parametrize("place", ["host", "same", "peer"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_into_any_strides(pair, target, layout, place):
    a = np.arange(30 * 30, dtype=np.int16).reshape(30, 30)
    ref = np.full((30, 30), -1, np.int16)
    want = LAYOUTS[layout](a)
    room = LAYOUTS[target](ref)
    n, m = min(want.shape[0], room.shape[0]), min(want.shape[1], room.shape[1])
    room[:n, :m] = want[:n, :m]
    src = on({"host": None, "same": pair[0], "peer": pair[1]}[place], a, layout)[:n, :m]
    dst = hal.asarray(np.full((30, 30), -1, np.int16)).to(pair[0])
    copy(LAYOUTS[target](dst)[:n, :m], src)
    np.testing.assert_array_equal(dst.numpy(), ref)  # every other element untouched


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pieces_cover_each_element_once(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=0, max_size=4))
    item = data.draw(st.sampled_from([1, 2, 4]))

    def strides():
        order = data.draw(st.permutations(range(len(shape))))
        out, step = [0] * len(shape), 1
        for axis in order:
            step *= data.draw(st.integers(1, 2))
            out[axis] = step * data.draw(st.sampled_from([1, -1]))
            step *= shape[axis]
        return out

    dst, src = strides(), strides()
    p = _Pieces(shape, dst, src, item)
    moved = {}
    for d, s in p:
        for r in range(p.rows):
            for b in range(p.nbytes):
                at = d + r * p.dst_pitch + b
                assert at not in moved
                moved[at] = s + r * p.src_pitch + b
    want = {sum(i * x for i, x in zip(index, dst)) * item + b: sum(i * x for i, x in zip(index, src)) * item + b
            for index in np.ndindex(*shape) for b in range(item)}
    assert moved == want and p.count == len(list(p))
    assert p.rows == 1 or min(p.dst_pitch, p.src_pitch) >= p.nbytes


def test_common_layouts_need_one_piece():
    assert _Pieces((64, 32), (32, 1), (32, 1), 4).count == 1
    assert _Pieces((64, 32), (100, 1), (32, 1), 4).count == 1  # a slice of columns
    assert _Pieces((8, 64, 32), (6400, 100, 1), (2048, 32, 1), 4).count == 1  # the same in a batch
    assert _Pieces((1000,), (7,), (1,), 2).count == 1  # every seventh element
    assert _Pieces((64, 32), (-32, -1), (-32, -1), 4).nbytes == 8192  # both reversed: one run
    assert _Pieces((64, 32), (-100, 1), (-32, 1), 4).count == 1
    assert _Pieces((50, 60), (1, 50), (60, 1), 4).count == 50  # a transpose: one piece a column of the smaller axis


def test_broadcast_source_and_self_overlapping_target(pair):
    row = hal.asarray(np.arange(5, dtype=np.float32)).to(pair[0])
    np.testing.assert_array_equal(row.expand(4, 5).numpy(), np.tile(np.arange(5, dtype=np.float32), (4, 1)))
    dst = hal.empty((4, 5), device=pair[0])
    copy(dst, row.expand(4, 5))
    np.testing.assert_array_equal(dst.numpy(), np.tile(np.arange(5, dtype=np.float32), (4, 1)))
    with pytest.raises(AliasError, match="overlap"):
        copy(row.expand(4, 5), dst)


def test_overlapping_move_on_the_device(pair):
    x = hal.asarray(np.arange(100, dtype=np.int32)).to(pair[0])
    copy(x[1:], x[:-1])
    np.testing.assert_array_equal(x.numpy(), [0, *range(99)])
    y = hal.asarray(np.arange(100, dtype=np.int32)).to(pair[0])
    copy(y, y[::-1])
    np.testing.assert_array_equal(y.numpy(), np.arange(100)[::-1])


def test_mismatches_write_nothing(pair):
    x, y = hal.asarray(np.zeros(4, np.float32)).to(pair[0]), hal.asarray(np.ones(5, np.float32))
    with pytest.raises(ShapeError, match=r"src is \(5,\), dst is \(4,\)"):
        copy(x, y)
    with pytest.raises(DTypeError, match="cast first"):
        copy(x, hal.asarray(np.ones(4, np.int32)))
    assert x.tolist() == [0, 0, 0, 0]
    frozen = np.zeros(4, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ArgumentError, match="read-only"):
        copy(hal.asarray(frozen), x)
    with pytest.raises(ArgumentError, match="stream of"):
        copy(x, y[:4], pair[1].default_stream)


def test_source_is_captured_by_a_blocking_copy(pair):
    with pair[0].stream():
        a = np.arange(1000, dtype=np.int32)
        x = hal.asarray(a).to(pair[0])
        a[:] = -1
    np.testing.assert_array_equal(x.numpy(), np.arange(1000))


def test_queued_copy_keeps_its_source(pair):
    """The only reference to the source goes while the copy waits; its memory must not be handed out again."""
    with pair[0].stream() as s:
        with blocked(s):
            x = hal.asarray(np.arange(5000, dtype=np.int32).copy()).to(pair[0], blocking=False)
            y = hal.asarray(np.arange(5000, dtype=np.int32).copy())[::-1].to(pair[0], blocking=False)
            gc.collect()
            noise = [np.full(5000, -7, np.int32) for _ in range(50)]
        s.synchronize()
        assert not s._held
        np.testing.assert_array_equal(x.numpy(), np.arange(5000))
        np.testing.assert_array_equal(y.numpy(), np.arange(5000)[::-1])
    assert len(noise) == 50


def test_queued_copy_down_arrives_when_the_stream_has_passed(pair):
    x = hal.asarray(np.arange(6000, dtype=np.int32).reshape(60, 100)).to(pair[0])
    scattered = x.T[::-1]
    with pair[0].stream() as s:
        with blocked(s):
            a, b = hal.empty(x.shape, "int32"), hal.empty(scattered.shape, "int32")
            a.numpy()[:] = 0
            b.numpy()[:] = 0
            copy(a, x, blocking=False)
            copy(b, scattered, blocking=False)
            assert not a.numpy().any() and not b.numpy().any()
        s.synchronize()
    np.testing.assert_array_equal(a.numpy(), x.numpy())
    np.testing.assert_array_equal(b.numpy(), scattered.numpy())


def test_reading_waits_for_the_stream_that_writes(pair):
    """numpy() on the default stream, while the copy that fills the tensor is still queued on another."""
    x = hal.asarray(np.full(100, -5, np.int32)).to(pair[0])
    with pair[0].stream() as s:
        s.host_func(lambda: time.sleep(0.1))
        copy(x, hal.asarray(np.arange(100, dtype=np.int32)), blocking=False)
    np.testing.assert_array_equal(x.numpy(), np.arange(100))


def test_readers_in_two_streams_do_not_wait_for_each_other(pair):
    x = hal.asarray(np.arange(100, dtype=np.int32)).to(pair[0])
    a, b = pair[0].stream(), pair[0].stream()
    with blocked(a):
        use(a, reads=[x])
        out = hal.empty((100,), "int32")
        copy(out, x, b)  # would wait for ever behind a reader in stream a
        assert out.tolist() == list(range(100))
        use(b, writes=[x])  # but a write comes after every read
        done = b.record()
        time.sleep(0.02)
        assert not done.query()
    b.synchronize()
    with blocked(b):
        use(b, writes=[x])
        use(a, reads=[x])
        assert not a.record().query()
    a.close()
    b.close()


def test_a_reader_that_comes_while_a_writer_waits_in_the_driver_is_kept():
    """Or the block would be reused under the reader's queued work."""
    inside, go = threading.Event(), threading.Event()

    class Slow(SimDriver):
        slow = False

        def stream_wait_event(self, stream, event):
            if self.slow:
                inside.set()
                assert go.wait(20)
            super().stream_wait_event(stream, event)

    driver = Slow(total_bytes=64 * MIB)
    dev = Device(driver, 0, 1)
    first, writer, reader, again = (dev.stream() for _ in range(4))
    buffer = dev.allocate(4096, first)
    buffer._reads(again.handle)  # an old reader, which reads once more meanwhile
    driver.slow = True
    thread = threading.Thread(target=buffer._writes, args=(writer.handle,))
    thread.start()
    assert inside.wait(20)
    driver.slow = False
    buffer._reads(reader.handle)
    buffer._reads(again.handle)
    go.set()
    thread.join(20)
    assert set(buffer._users) == {writer.handle, reader.handle, again.handle}
    buffer._writes(first.handle)  # comes after all of them, so that nobody else is left
    assert buffer._users == [first.handle]
    for stream in (first, writer, reader, again):
        stream.close()


def test_copy_into_a_freed_buffer_is_refused(pair):
    x = hal.empty((10,), device=pair[0])
    owner = x.owner
    assert isinstance(owner, Buffer)
    owner.free()
    with pytest.raises(InvalidHandle, match="freed"):
        x.numpy()


def test_driver_copies_two_dimensions_and_leaves_gaps(device):
    a, b = device.allocate(64 * 4), device.allocate(64 * 4)
    put(device, a, b"." * 256)
    put(device, b, bytes(range(256)))
    device.driver.copy(0, Copy(DEVICE_TO_DEVICE, a.address + 3, b.address + 1, 5, 4, 64, 32))
    want = bytearray(b"." * 256)
    for r in range(4):
        want[3 + 64 * r:8 + 64 * r] = bytes(range(1 + 32 * r, 6 + 32 * r))
    assert get(device, a, 256) == bytes(want)
