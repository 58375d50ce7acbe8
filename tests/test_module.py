"""Modules and launches on the simulator, whose machine code is Triton IR."""
import gc
import time

import numpy as np
import pytest
from haian.hal.errors import ArgumentError, Busy, EnvironmentMissing, HaianError, InvalidHandle, Unsupported
from haian.hal.memory import copy
from haian.hal.module import Graph, Module
from haian.hal.tensor import asarray, empty
from hal_support import bare, blocked, no_leaks, registered

BLOCK = 64
# out = x + alpha * y over n elements, BLOCK a program: what Triton makes of the usual three lines.
IMAGE = f"""
module {{
  tt.func public @axpy(%x: !tt.ptr<f32>, %y: !tt.ptr<f32>, %out: !tt.ptr<f32>, %n: i32, %alpha: f32) attributes {{noinline = false}} {{
    %c = arith.constant {BLOCK} : i32
    %p = tt.get_program_id x : i32
    %s = arith.muli %p, %c : i32
    %r = tt.make_range {{end = {BLOCK} : i32, start = 0 : i32}} : tensor<{BLOCK}xi32>
    %t = tt.splat %s : i32 -> tensor<{BLOCK}xi32>
    %i = arith.addi %t, %r : tensor<{BLOCK}xi32>
    %m = tt.splat %n : i32 -> tensor<{BLOCK}xi32>
    %k = arith.cmpi slt, %i, %m : tensor<{BLOCK}xi32>
    %0 = tt.splat %out : !tt.ptr<f32> -> tensor<{BLOCK}x!tt.ptr<f32>>
    %1 = tt.addptr %0, %i : tensor<{BLOCK}x!tt.ptr<f32>>, tensor<{BLOCK}xi32>
    %2 = tt.splat %x : !tt.ptr<f32> -> tensor<{BLOCK}x!tt.ptr<f32>>
    %3 = tt.addptr %2, %i : tensor<{BLOCK}x!tt.ptr<f32>>, tensor<{BLOCK}xi32>
    %4 = tt.load %3, %k : tensor<{BLOCK}x!tt.ptr<f32>>
    %5 = tt.splat %y : !tt.ptr<f32> -> tensor<{BLOCK}x!tt.ptr<f32>>
    %6 = tt.addptr %5, %i : tensor<{BLOCK}x!tt.ptr<f32>>, tensor<{BLOCK}xi32>
    %7 = tt.load %6, %k : tensor<{BLOCK}x!tt.ptr<f32>>
    %8 = tt.splat %alpha : f32 -> tensor<{BLOCK}xf32>
    %9 = arith.mulf %8, %7 : tensor<{BLOCK}xf32>
    %10 = arith.addf %4, %9 : tensor<{BLOCK}xf32>
    tt.store %1, %10, %k : tensor<{BLOCK}x!tt.ptr<f32>>
    tt.return
  }}
}}
""".encode()


@pytest.fixture(scope="module")
def pair():
    found = registered(2)
    yield found
    no_leaks(*found)


@pytest.fixture
def axpy(pair):
    return Module(pair[0], IMAGE).kernel("axpy")


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1000])
def test_launch_is_exact(pair, axpy, n):
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((2, n)).astype(np.float32)
    x, y, out = asarray(a).to(pair[0]), asarray(b).to(pair[0]), empty((n + 1,), device=pair[0])
    out[:] = -7
    axpy.launch(-(-n // BLOCK), [x, y, out, ("i32", n), ("fp32", 0.5)])
    np.testing.assert_array_equal(out.numpy()[:n], a + np.float32(0.5) * b)
    assert out.numpy()[n] == -7


def test_views_and_buffers_as_arguments(pair, axpy):
    x = asarray(np.arange(100, dtype=np.float32)).to(pair[0])
    raw = pair[0].allocate(40)
    axpy.launch((1, 1, 1), [x[50:], x[:10], ("*fp32", raw), ("i32", 10), ("fp32", 2.0)])
    axpy.launch(1, [("*fp32", raw.address), x, x[90:], ("i32", 10), ("fp32", 0.0)])
    assert x[90:].tolist() == [50 + 3 * i for i in range(10)]


def test_launch_waits_for_the_stream_that_fills_its_arguments(pair, axpy):
    n = 1000
    a, b = pair[0].stream(), pair[0].stream()
    x, y, out = (asarray(np.full(n, -5, np.float32)).to(pair[0]) for _ in range(3))
    with blocked(a) as gate:
        copy(x, asarray(np.arange(n, dtype=np.float32)), a, blocking=False)
        copy(y, asarray(np.ones(n, np.float32)), a, blocking=False)
        axpy.launch(-(-n // BLOCK), [x, y, out, ("i32", n), ("fp32", 1.0)], stream=b)
        time.sleep(0.03)
        assert not b.query()
        gate.set()
    np.testing.assert_array_equal(out.numpy(), np.arange(n) + 1)  # and reading waits for stream b
    a.close()
    b.close()


def test_arguments_outlive_a_queued_launch(pair, axpy):
    n = 1000
    x, y, out = asarray(np.arange(n, dtype=np.float32)).to(pair[0]), asarray(np.ones(n, np.float32)).to(pair[0]), empty((n,), device=pair[0])
    b = pair[0].stream()
    with blocked(b):
        axpy.launch(-(-n // BLOCK), [x, y, out, ("i32", n), ("fp32", 1.0)], stream=b)
        del x, y
        gc.collect()
        noise = [empty((n,), device=pair[0]) for _ in range(4)]  # in the default stream
        for t in noise:
            t[:] = -1
    np.testing.assert_array_equal(out.numpy(), np.arange(n) + 1)
    b.close()


def test_unknown_images_formats_and_kernels(pair):
    with pytest.raises(HaianError):
        Module(pair[0], b"not an image")
    with pytest.raises((ArgumentError, Unsupported)):
        Module(pair[0], IMAGE, "cubin")
    with pytest.raises((ArgumentError, EnvironmentMissing), match="axpy"):
        Module(pair[0], IMAGE).kernel("nothing")
    with pytest.raises(ArgumentError, match="not a shared object"):
        Module(bare("cpu"), IMAGE)


@pytest.mark.parametrize("grid", [0, (), (1, 1, 1, 1), (1, 0), (-1,), (1.0,), (1, 65536), 2**31])
def test_grids_are_checked(axpy, grid):
    with pytest.raises(ArgumentError, match="axpy: grid"):
        axpy.launch(grid, [])


def test_limits_and_arguments_are_checked(pair, axpy):
    x = asarray(np.zeros(4, np.float32)).to(pair[0])
    with pytest.raises(ArgumentError, match="threads"):
        axpy.launch(1, [], threads=0)
    with pytest.raises(ArgumentError, match="shared"):
        axpy.launch(1, [], shared_bytes=1 << 40)
    with pytest.raises(ArgumentError, match="argument 1 is on .*:1"):
        axpy.launch(1, [x, x.to(pair[1]), x, ("i32", 4), ("fp32", 1.0)])
    with pytest.raises(ArgumentError, match=r"\('i32', 7\)"):
        axpy.launch(1, [x, x, x, 4, 1.0])
    with pytest.raises(ArgumentError, match="stream of"):
        axpy.launch(1, [x, x, x, ("i32", 4), ("fp32", 1.0)], stream=pair[1].default_stream)
    with pytest.raises(HaianError):  # too few: the driver knows the kernel
        axpy.launch(1, [x, x])
    dead = pair[0].allocate(16)
    dead.free()
    with pytest.raises(ArgumentError, match="freed"):
        axpy.launch(1, [x, x, ("*fp32", dead), ("i32", 4), ("fp32", 1.0)])


def test_unload(pair):
    module = Module(pair[0], IMAGE)
    kernel = module.kernel("axpy")
    x, s = asarray(np.ones(4, np.float32)).to(pair[0]), pair[0].stream()
    s.host_func(lambda: time.sleep(0.03))
    kernel.launch(1, [x, x, x, ("i32", 4), ("fp32", 1.0)], stream=s)
    module.unload()  # waits for the launch
    module.unload()
    assert x.tolist() == [2, 2, 2, 2]
    for call in (lambda: kernel.launch(1, [x, x, x, ("i32", 4), ("fp32", 1.0)]), lambda: module.kernel("axpy")):
        with pytest.raises(InvalidHandle, match="load it again"):
            call()
    s.close()


def test_dropped_module_is_unloaded_after_its_work(pair):
    x, s = asarray(np.ones(4, np.float32)).to(pair[0]), pair[0].stream()
    s.host_func(lambda: time.sleep(0.03))
    Module(pair[0], IMAGE).kernel("axpy").launch(1, [x, x, x, ("i32", 4), ("fp32", 1.0)], stream=s)
    gc.collect()
    pair[0].synchronize()
    assert x.tolist() == [2, 2, 2, 2] and not [k for k in pair[0].driver.leaks() if k.kind == "module"]
    s.close()


# ---- graphs ------------------------------------------------------------------------------------------------------------------
def test_graph_replays_equal_eager_work(pair, axpy):
    s, done = pair[0].stream(), pair[0].event()
    x, y, out = (asarray(np.full(100, k, np.float32)).to(pair[0]) for k in (1, 2, 0))
    seen = []
    with Graph.capture(s) as graph:
        axpy.launch(2, [x, y, out, ("i32", 100), ("fp32", 0.5)])
        axpy.launch(2, [out, y, x, ("i32", 100), ("fp32", -1.0)])
        s.host_func(lambda: seen.append(1))
        s.record(done)
        for refused in (s.synchronize, s.query):
            with pytest.raises(Busy):
                refused()
        with pytest.raises(InvalidHandle, match="still being recorded"):
            graph.launch(s)
        pair[0].synchronize()  # waits for the others
    assert not seen and out.tolist() == [0] * 100
    with s:
        for _ in range(100):
            graph.launch()
    done.synchronize()
    assert len(seen) == 100
    want = np.float32(1)
    for _ in range(100):
        last = np.float32(want + np.float32(0.5) * 2)
        want = np.float32(last - 2)
    assert out.tolist() == [last] * 100 and x.tolist() == [want] * 100
    graph.close()
    graph.close()
    with pytest.raises(InvalidHandle, match="closed"):
        graph.launch(s)
    s.close()


def test_graph_keeps_its_memory_and_waits_for_other_streams(pair, axpy):
    a, b = pair[0].stream(), pair[0].stream()
    x, out = asarray(np.ones(10, np.float32)).to(pair[0]), empty((10,), device=pair[0])
    with Graph.capture(a) as graph:
        t = empty((10,), device=pair[0])  # a temporary of the recording
        axpy.launch(1, [x, x, t, ("i32", 10), ("fp32", 1.0)])
        axpy.launch(1, [t, t, out, ("i32", 10), ("fp32", 1.0)])
        host = asarray(np.full(10, 7, np.float32))
        copy(x, host, a, blocking=False)
    del t, host
    gc.collect()
    noise = [asarray(np.zeros(10, np.float32)).to(pair[0]) for _ in range(50)]
    with blocked(b):
        copy(x, asarray(np.full(10, 3, np.float32)), b, blocking=False)
        graph.launch(a)  # behind b, which fills x
        assert not a.query()
    a.synchronize()
    assert out.tolist() == [12] * 10 and x.tolist() == [7] * 10 and not any(t.tolist()[0] for t in noise)
    del graph
    gc.collect()
    a.close()
    b.close()


def test_operators_are_recorded():
    pytest.importorskip("triton", reason="sim's operators are Triton kernels")
    from haian import ops
    sim = registered(1)[0]  # not of the pair: the operators' modules stay loaded
    x, s = asarray(np.arange(8, dtype=np.float32)).to(sim), sim.stream()
    with s:
        ops.softmax(ops.add(x, x))  # compiled before: loading a module is not work of a stream
    with Graph.capture(s) as graph:
        y = ops.softmax(ops.add(x, x))
    for k in (0, 1):
        x[:] = k
        x[0:1] = 0
        graph.launch(s)
        e = np.exp(2.0 * x.numpy())
        np.testing.assert_allclose(y.numpy(), e / e.sum(), rtol=1e-6)
    s.close()


def test_an_exception_drops_the_recording(pair, axpy):
    s = pair[0].stream()
    x = asarray(np.ones(4, np.float32)).to(pair[0])
    with pytest.raises(ZeroDivisionError):
        with Graph.capture(s):
            axpy.launch(1, [x, x, x, ("i32", 4), ("fp32", 1.0)])
            raise ZeroDivisionError
    axpy.launch(1, [x, x, x, ("i32", 4), ("fp32", 1.0)], stream=s)
    s.synchronize()
    assert x.tolist() == [2] * 4
    for wrong in (s.close, lambda: Graph.capture(s).__enter__()):
        with pytest.raises(Busy):
            with Graph.capture(s):
                wrong()
    with pytest.raises(ArgumentError, match=r"device\.stream"):
        with Graph.capture(pair[0].default_stream):
            pass
    with Graph.capture(pair[0].stream()) as graph:
        pass
    graph.instantiate().launch()  # empty, on the default stream
    with pytest.raises(ArgumentError, match="needs one of"):
        graph.launch(pair[1].default_stream)


def test_profile_and_telemetry(pair, axpy):
    x = asarray(np.ones(4, np.float32)).to(pair[0])
    with pair[0].profile() as records:
        for _ in range(5):
            axpy.launch(1, [x, x, x, ("i32", 4), ("fp32", 1.0)])
        assert not records
    axpy.launch(1, [x, x, x, ("i32", 4), ("fp32", 1.0)])
    assert [(r.kind, r.name) for r in records] == [("launch", "axpy")] * 5
    with pair[0].profile() as records:
        pass
    assert records == []
    assert pair[0].telemetry().mem_used_bytes > 0


def test_the_host_records_too():
    cpu = bare("cpu")
    s, n = cpu.stream(), []
    with Graph.capture(s) as graph:
        s.host_func(lambda: n.append(1))
    for _ in range(3):
        graph.launch(s)
    s.close()
    assert len(n) == 3
