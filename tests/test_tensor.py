"""Tensors against NumPy and torch: sharing memory, views, DLPack rules, devices, printing, errors."""
import array
import copy as copying
import gc
import threading
import weakref

import ml_dtypes
import numpy as np
import pytest
from haian.hal.dtype import ALL, BY_NAME
from haian.hal.errors import ArgumentError, DTypeError, IndexOutOfBounds, InvalidHandle, OutOfMemory, ShapeError
from haian.hal.registry import device as device_named
from haian.hal.tensor import Tensor, asarray, empty, from_dlpack
from hal_support import no_leaks, registered
from hypothesis import given, settings
from hypothesis import strategies as st

STANDARD = [d for d in ALL if d.numpy.kind != "V" and not d.name.startswith(("float8", "bfloat"))]


@pytest.fixture(scope="module")
def sims():
    found = registered(2)
    yield found
    no_leaks(*found)


@pytest.fixture(params=["host", "sim"])
def place(request, sims):
    return device_named("cpu") if request.param == "host" else sims[0]


def sample(d, shape=(3, 5)):
    n = int(np.prod(shape))
    if d.kind == "b":
        return (np.arange(n) % 3 == 0).reshape(shape)
    return (np.arange(n) % 7).reshape(shape).astype(d.numpy)


# ---- making ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(), 3, (0,), (1,), (2, 0, 3), (7, 13), [4, 1], (1,) * 8, np.int64(5)])
@pytest.mark.parametrize("d", [BY_NAME["float32"], BY_NAME["bfloat16"], BY_NAME["complex128"], BY_NAME["bool"]], ids=str)
def test_empty(place, shape, d):
    t = empty(shape, d, place)
    ref = np.empty(shape, d.numpy)
    assert t.shape == ref.shape and t.dtype is d and t.device == place and t.device_index == place.position
    assert t.strides == tuple(s // d.itemsize for s in ref.strides) or ref.size <= 1 or 0 in ref.shape
    assert (t.ndim, t.numel, t.nbytes, t.itemsize) == (ref.ndim, ref.size, ref.nbytes, ref.itemsize)
    assert t.is_contiguous and (t.numel == 0 or t.address % 64 == 0)


@pytest.mark.parametrize("shape", [(-1,), (2, -3), (1,) * 9, "ab", 1.5, (1.5,), None, (2**62, 4), (2**40, 2**40)])
def test_empty_refuses(place, shape):
    with pytest.raises((ShapeError, OutOfMemory)) as e:
        empty(shape, device=place)
    assert "\n" not in str(e.value)


def test_host_out_of_memory():
    with pytest.raises(OutOfMemory):
        empty((2**46,), "uint8")
    assert empty((4,)).numel == 4


@pytest.mark.parametrize("d", ALL, ids=str)
@pytest.mark.parametrize("layout", ["plain", "transposed", "reversed", "strided", "broadcast", "zero", "scalar"])
def test_numpy_round_trip_shares_memory(d, layout):
    base = sample(d)
    a = {"plain": base, "transposed": base.T, "reversed": base[::-1, ::-1], "strided": base[::2, 1::2],
         "broadcast": np.broadcast_to(base[0], (4, 5)), "zero": base[:0], "scalar": base[1, 2, ...]}[layout]
    t = asarray(a)
    assert t.dtype is d and t.shape == a.shape and t.device.is_host
    if t.numel:
        assert t.address == a.__array_interface__["data"][0]
    back = t.numpy()
    assert back.dtype == a.dtype and back.shape == a.shape
    np.testing.assert_array_equal(back.astype(np.complex128), a.astype(np.complex128))
    if a.size and a.flags.writeable:
        back[(0,) * a.ndim] = 5
        assert a[(0,) * a.ndim] == (True if d.kind == "b" else d.numpy.type(5))


def test_foreign_memory_lives_as_long_as_views_of_it():
    a = array.array("d", range(6))  # NumPy arrays take no weak references
    gone = weakref.ref(a)
    t = asarray(np.asarray(a))[1:][::2].reshape(3)
    back = t.numpy()
    del a, t
    gc.collect()
    assert gone() is not None and back.tolist() == [1, 3, 5]
    del back
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("obj", [[[1, 2], [3, 4]], [1.5, 2.5], 3, 2.5, True, 1 + 2j, [], [[]], (1, 2), np.float32(3), np.int8(4), range(3)])
def test_lists_and_scalars_become_what_numpy_makes(obj):
    a = np.asarray(obj)
    t = asarray(obj)
    assert t.dtype.numpy == a.dtype and t.tolist() == a.tolist()


def test_buffers_share_memory():
    for obj, ref in ((bytearray(b"abcd"), [97, 98, 99, 100]), (array.array("f", [1, 2, 3]), [1, 2, 3]),
                     (memoryview(bytearray(8)).cast("i"), [0, 0])):
        t = asarray(obj)
        assert t.tolist() == ref and not t.readonly
        t[0] = 7
        assert memoryview(obj)[0] == 7
    assert asarray(b"abc").readonly and asarray(b"abc").dtype.name == "uint8"


@pytest.mark.parametrize("bad", ["text", ["a"], object(), None, [object()], np.array(["2020-01-01"], "M8[D]"), np.zeros(2, [("a", "f4")])])
def test_other_element_types_are_refused(bad):
    with pytest.raises(DTypeError):
        asarray(bad)


def test_byte_swapped_and_misaligned_arrays_are_copied_or_refused():
    swapped = np.arange(5, dtype=">i4")
    assert asarray(swapped).tolist() == [0, 1, 2, 3, 4]
    packed = np.zeros(4, [("a", "u1"), ("b", "<f8")])
    packed["b"] = [1, 2, 3, 4]
    assert asarray(packed["b"]).tolist() == [1, 2, 3, 4]
    for a in (swapped, packed["b"]):
        with pytest.raises(ArgumentError, match="copy"):
            asarray(a, copy=False)


def test_read_only_stays_read_only():
    a = np.arange(3.0)
    a.flags.writeable = False
    t = asarray(a)
    assert t.readonly and t[1:].readonly and not t.clone().readonly and not t.numpy().flags.writeable
    with pytest.raises(ArgumentError, match="read-only"):
        t[0] = 1
    with pytest.raises(BufferError, match="read-only"):
        t.__dlpack__()
    assert np.from_dlpack(t).flags.writeable is False


def test_copy_argument(place):
    a = np.arange(4, dtype=np.float32)
    t = asarray(a)
    assert asarray(t) is t and asarray(t, "float32", "cpu", copy=False) is t
    c = asarray(a, copy=True)
    c[0] = 9
    assert a[0] == 0 and asarray(t, copy=True).address != t.address
    assert asarray(t, "float64").dtype.name == "float64"
    for wrong in ({"dtype": "int8"}, {"device": place} if not place.is_host else {"dtype": "int8"}):
        with pytest.raises(ArgumentError, match="copy=False"):
            asarray(t, copy=False, **wrong)
    with pytest.raises(ArgumentError, match="copy=False"):
        asarray([1, 2], copy=False)
    moved = asarray(a, device=place)
    assert moved.device == place and moved.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("to", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int32", "bool", "float64"])
def test_change_of_dtype_is_numpys(place, to):
    a = np.array([[0.0, -0.0, 1.0], [1.0625, 3.14159, -250.5]], np.float32)
    t = asarray(a[:, ::-1], to, place)
    np.testing.assert_array_equal(t.numpy().astype(np.float64), a[:, ::-1].astype(BY_NAME[to].numpy).astype(np.float64))


# ---- devices ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("d", ALL, ids=str)
def test_to_a_device_and_back(sims, d):
    a = sample(d, (5, 3, 7))
    t = asarray(a).to(sims[0])
    assert t.device == sims[0] and t.cpu().device.is_host and t.to(sims[0]) is t
    for u in (t, t.to(sims[1]), t.to(sims[1].name).to(sims[0])):
        np.testing.assert_array_equal(u.numpy(), a)
    with pytest.raises(BufferError, match="no buffer"):
        memoryview(t)


def test_views_keep_a_device_buffer_alive(sims):
    t = asarray(np.arange(1000, dtype=np.int32)).to(sims[0])[10:20]
    noise = [empty((1000,), "int32", sims[0]) for _ in range(5)]
    for n in noise:
        n[:] = -1
    assert t.tolist() == list(range(10, 20)) and t.owner is t[1:].owner


def test_zero_size_on_a_device(sims):
    t = empty((0, 3), "float16", sims[0])
    assert t.owner is None and t.address == 0 and t.T.shape == (3, 0) and t.tolist() == [] and t.cpu().shape == (0, 3)
    assert t.contiguous() is t and t[:, 1].shape == (0,)


def test_threads_with_their_own_streams(sims):
    wrong = []

    def work(k):
        rng = np.random.default_rng(k)
        with sims[0].stream() as s:
            for _ in range(15):
                a = rng.standard_normal((rng.integers(1, 40), rng.integers(1, 40)))
                if not np.array_equal(asarray(a).to(sims[0]).T.contiguous().numpy(), a.T):
                    wrong.append(k)
        s.close()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    [t.start() for t in threads]
    [t.join(60) for t in threads]
    assert not wrong


# ---- views against NumPy ---------------------------------------------------------------------------------------------
@st.composite
def indexed(draw):
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=0, max_size=4)))
    key = []
    for n in shape[:draw(st.integers(0, len(shape)))]:
        options = [st.builds(slice, *[st.none() | st.integers(-7, 7)] * 2, st.none() | st.integers(-3, 3).filter(bool))]
        if n:
            options.append(st.integers(-n, n - 1))
        key.append(draw(st.one_of(options)))
    if draw(st.booleans()):
        key.insert(draw(st.integers(0, len(key))), None)
    if draw(st.booleans()):
        key.insert(draw(st.integers(0, len(key))), Ellipsis)
    order = draw(st.permutations(range(len(shape))))
    return shape, tuple(key), order


@settings(max_examples=150, deadline=None)
@given(indexed())
def test_basic_indexing(case):
    shape, key, order = case
    a = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape).transpose(order)
    want = None
    try:
        want = a[key]
    except IndexError:
        pass
    t = asarray(a)
    if want is None:
        with pytest.raises((IndexOutOfBounds, ShapeError)):
            t[key]
        return
    got = t[key]
    assert got.shape == np.shape(want)
    np.testing.assert_array_equal(got.numpy(), want)
    if got.numel and got.ndim:
        assert got.address == np.asarray(want).__array_interface__["data"][0]


@pytest.mark.parametrize("key,error,text", [
    (3, IndexOutOfBounds, "axis 0 of size 3"), (-4, IndexOutOfBounds, "-3 <= index < 3"), ((0, 0, 0), ShapeError, "3 indices for 2 axes"),
    ((..., ...), ArgumentError, "more than one"), ([0, 1], ArgumentError, "index_select"), (np.array([0]), ArgumentError, "gather"),
    (True, ArgumentError, "gather"), ("a", ArgumentError, "gather"), (1.0, ArgumentError, "views take"), (slice(None, None, 0), ValueError, "zero")])
def test_other_indexing_is_refused(key, error, text):
    with pytest.raises(error, match=text):
        asarray(np.zeros((3, 5)))[key]


def test_numpy_integers_index():
    assert asarray(np.arange(6).reshape(2, 3))[np.int64(1), np.int8(-1)].item() == 5


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_reshape_is_numpys_and_view_only_when_it_shares(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=0, max_size=4))
    a = np.arange(int(np.prod(shape)), dtype=np.int16).reshape(shape).transpose(data.draw(st.permutations(range(len(shape)))))
    a = a[(*(slice(None, None, data.draw(st.sampled_from([1, 1, 2, -1]))) for _ in shape), ...)]
    n, sizes = a.size, []
    for _ in range(data.draw(st.integers(0, 4))):
        f = data.draw(st.sampled_from([x for x in range(1, n + 1) if n % x == 0] or [1]))
        sizes.append(f)
        n //= f
    sizes.append(n)
    if data.draw(st.booleans()):
        sizes[data.draw(st.integers(0, len(sizes) - 1))] = -1
    want = a.reshape(sizes)
    t = asarray(a)
    got = t.reshape(sizes)
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.numpy(), want)
    # NumPy finds a view exactly when one exists; so must we.
    if want.size and np.shares_memory(a, want):
        assert got.address == t.address
        assert t.view(*sizes).numpy().tolist() == want.tolist()
    elif want.size:
        with pytest.raises(ShapeError, match="use reshape"):
            t.view(sizes)


@pytest.mark.parametrize("sizes", [(7,), (-1, 7), (-1, -1), (2, -2), (0, -1), (0,), (1,) * 9, (2, 3, 5)])
def test_reshape_refuses(sizes):
    with pytest.raises(ShapeError, match="reshape"):
        asarray(np.arange(6)).reshape(*sizes)


def test_reshape_of_nothing():
    t = asarray(np.zeros((0, 4)))
    assert t.reshape(2, 0).shape == (2, 0) and t.reshape(-1, 4).shape == (0, 4)
    assert asarray(5).reshape(1, 1).shape == (1, 1) and asarray([5]).reshape(()).item() == 5


def test_movements_are_torchs(place):
    torch = pytest.importorskip("torch")
    x = torch.arange(24, dtype=torch.int32).reshape(2, 3, 4)
    t = asarray(x.numpy()).to(place)
    cases = [(t.permute(2, 0, 1), x.permute(2, 0, 1)), (t.permute([-1, 0, 1]), x.permute(-1, 0, 1)), (t.transpose(0, -1), x.transpose(0, -1)),
             (t.mT, x.mT), (t[0].T, x[0].T), (t[:, :1].expand(2, 3, 4), x[:, :1].expand(2, 3, 4)), (t.expand(5, -1, -1, 4), x.expand(5, -1, -1, 4)),
             (t[:, :1].squeeze(), x[:, :1].squeeze()), (t[:1, :1].squeeze(0), x[:1, :1].squeeze(0)), (t.squeeze(1), x.squeeze(1)),
             (t[:1, :1].squeeze((0, 1)), x[:1, :1].squeeze((0, 1))), (t.unsqueeze(0), x.unsqueeze(0)), (t.unsqueeze(-1), x.unsqueeze(-1)),
             (t.unsqueeze(1), x.unsqueeze(1)), (t.mT.contiguous(), x.mT.contiguous()), (t.mT.reshape(-1), x.mT.reshape(-1)), (t.clone(), x.clone()),
             (t.expand(2, 2, 3, 4).reshape(4, 3, 4), x.expand(2, 2, 3, 4).reshape(4, 3, 4)), (t.view(6, 4), x.view(6, 4))]
    for i, (got, want) in enumerate(cases):
        assert got.shape == tuple(want.shape), i
        np.testing.assert_array_equal(got.numpy(), want.numpy(), err_msg=str(i))
        assert got.device == place
    assert t.mT.strides == tuple(x.mT.stride()) and t.permute(2, 0, 1).strides == tuple(x.permute(2, 0, 1).stride())


@pytest.mark.parametrize("call,text", [
    (lambda t: t.permute(0), "name each axis once"), (lambda t: t.permute(0, 0), "once"), (lambda t: t.permute(0, 2), "dim 2"),
    (lambda t: t.transpose(0, 2), "dim 2"), (lambda t: t[0].T, "needs 2"), (lambda t: t[0].mT, "at least 2"),
    (lambda t: t.expand(3), "at least 2 axes"), (lambda t: t.expand(4, 3), "only size 1 repeats"), (lambda t: t.expand(-1, 2, 3), "only size 1"),
    (lambda t: t.squeeze(5), "dim 5"), (lambda t: t.unsqueeze(4), "dim 4"), (lambda t: t.unsqueeze(0).expand(2, *(1,) * 6, 2, 3), "most 8"),
    (lambda t: t.item(), "needs 1")])
def test_views_refuse(call, text):
    with pytest.raises(ShapeError, match=text):
        call(asarray(np.zeros((2, 3))))


def test_contiguous_is_itself_when_it_is():
    t = asarray(np.zeros((3, 4)))
    assert t.contiguous() is t and t.T.contiguous() is not t.T and t.T.contiguous().is_contiguous
    assert asarray(np.zeros((3, 1, 4)))[:, ::2].is_contiguous  # an axis of one element has no gaps


def test_setitem(place):
    ref = np.zeros((4, 5), np.float32)
    t = asarray(ref).to(place) if not place.is_host else asarray(ref.copy())
    for key, value in [((1,), 3), ((slice(None), 2), [1, 2, 3, 4]), ((slice(None, None, -2), slice(1, 4)), np.full((2, 1), 7.5)),
                       ((..., -1), asarray(np.arange(4))), ((0, 0), True)]:
        ref[key] = value.numpy() if isinstance(value, Tensor) else value
        t[key] = value
        np.testing.assert_array_equal(t.numpy(), ref)
    with pytest.raises(ShapeError, match="only size 1 repeats"):
        t[0] = [1, 2]


def test_copy_into(place):
    t = asarray(np.zeros((2, 3), np.float32)).to(place)
    assert t.copy_(np.array([1, 2, 3])) is t and t.T[1:].copy_(asarray(7).to(place)).shape == (2, 2)
    assert t.tolist() == [[1, 7, 7], [1, 7, 7]]


# ---- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("d", ALL, ids=str)
def test_item_and_tolist_are_python_numbers(place, d):
    t = asarray(sample(d, (2, 2))).to(place)
    kind = {"b": bool, "u": int, "i": int, "f": float, "c": complex}[d.kind]
    assert type(t[0, 1].item()) is kind and all(type(v) is kind for row in t.tolist() for v in row)
    assert t.tolist() == sample(d, (2, 2)).astype({"f": np.float64, "c": np.complex128}.get(d.kind, d.numpy)).tolist()


def test_scalars():
    assert float(asarray(2.5)) == 2.5 and int(asarray([3])) == 3 and bool(asarray(0)) is False and complex(asarray(1j)) == 1j
    with pytest.raises(ShapeError):
        bool(asarray([1, 2]))
    assert len(asarray(np.zeros((3, 2)))) == 3 and [r.tolist() for r in asarray([[1], [2]])] == [[1], [2]]
    with pytest.raises(TypeError, match="no length"):
        len(asarray(1))


def test_numpy_functions_take_tensors(place):
    t = asarray(np.arange(4, dtype=ml_dtypes.bfloat16)).to(place)
    assert np.asarray(t).dtype == ml_dtypes.bfloat16 and np.asarray(t, np.float32).tolist() == [0, 1, 2, 3]
    u = asarray(np.arange(4.0)).to(place)
    assert np.sum(u) == 6 and np.asarray(u, np.int8).tolist() == [0, 1, 2, 3]


def test_repr(place):
    where = f"device='{place.name}'"
    t = asarray(np.arange(6, dtype=np.float32).reshape(2, 3)).to(place)
    assert repr(t) == f"haian.tensor([[0., 1., 2.],\n              [3., 4., 5.]], dtype=float32, {where})"
    assert repr(t.T[1]) == f"haian.tensor([1., 4.], dtype=float32, {where})"
    assert repr(asarray(np.zeros((0, 3))).to(place)) == f"haian.tensor([], shape=(0, 3), dtype=float64, {where})"
    assert repr(asarray(7).to(place)) == f"haian.tensor(7, dtype=int64, {where})"
    assert repr(asarray(np.array([1.5, -2], ml_dtypes.bfloat16)).to(place)) == f"haian.tensor([ 1.5, -2. ], dtype=bfloat16, {where})"


@pytest.mark.parametrize("shape", [(100, 200), (2000,), (3, 4, 500), (7, 2, 7, 20)])
def test_repr_of_large_tensors_is_numpys_summary(place, shape):
    a = np.arange(int(np.prod(shape))).reshape(shape) % 90 + 10  # two digits everywhere, as NumPy pads by what it shows
    with np.printoptions(threshold=1000):
        want = np.array2string(a, separator=", ", prefix="haian.tensor(")
    text = repr(asarray(a).to(place))
    assert text == f"haian.tensor({want}, shape={shape}, dtype=int64, device='{place.name}')"


def test_repr_of_a_device_tensor_fetches_the_corners_only(sims):
    t = empty((3000, 3000), "float32", sims[0])
    fetched = []
    inner, real = sims[0].driver.inner, sims[0].driver.inner.copy
    inner.copy = lambda device, desc, stream=0: (fetched.append(desc.nbytes * desc.rows), real(device, desc, stream))[1]
    try:
        repr(t)
    finally:
        del inner.copy
    assert 0 < sum(fetched) < 1000


# ---- DLPack ----------------------------------------------------------------------------------------------------------
def test_torch_both_ways_without_a_copy():
    torch = pytest.importorskip("torch")
    for kind in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8, torch.complex64):
        for view in (lambda x: x, lambda x: x.T, lambda x: x[::2, 1:], lambda x: x[:0], lambda x: x[1, 1]):
            x = view(torch.arange(12).reshape(3, 4).to(kind))
            t = from_dlpack(x)
            assert t.shape == tuple(x.shape) and (not x.numel() or t.address == x.data_ptr()) and t.dtype.name == str(kind)[6:]
            back = torch.from_dlpack(t)
            assert back.dtype == kind and torch.equal(back, x) and (not x.numel() or back.data_ptr() == x.data_ptr())
            assert asarray(x).address == t.address


def test_dlpack_keeps_memory_alive_both_ways():
    torch = pytest.importorskip("torch")
    y = torch.from_dlpack(asarray(np.arange(5000.0)).clone())
    t = from_dlpack(torch.arange(5000) * 2)
    gc.collect()
    noise = [np.full(5000, -1.0) for _ in range(20)]
    assert y[4999] == 4999 and t[4999].item() == 9998 and len(noise) == 20


@pytest.mark.parametrize("d", [d for d in STANDARD if d.name != "bool" or np.lib.NumpyVersion(np.__version__) >= "2.0.0"], ids=str)
def test_numpy_by_dlpack(d):
    a = sample(d)[::2, ::-1]
    t = from_dlpack(a)
    assert t.dtype is d and t.address == a.__array_interface__["data"][0]
    b = np.from_dlpack(t)
    assert np.shares_memory(a, b) and np.array_equal(a, b)


def test_old_and_new_capsules():
    t = asarray(np.arange(3.0))
    assert "dltensor_versioned" in repr(t.__dlpack__(max_version=(1, 0))) and "dltensor_versioned" in repr(t.__dlpack__(max_version=(2, 3)))
    for old in ({}, {"max_version": None}, {"max_version": (0, 8)}):
        assert '"dltensor"' in repr(t.__dlpack__(**old))

    class Old:  # an exporter from before version 1
        def __dlpack__(self, stream=None):
            return t.__dlpack__()

        def __dlpack_device__(self):
            return t.__dlpack_device__()

    u = from_dlpack(Old())
    assert u.address == t.address and u.tolist() == [0, 1, 2]


def test_capsule_is_consumed_once():
    class Twice:
        capsule = asarray([1, 2]).__dlpack__()

        def __dlpack__(self, **_):
            return self.capsule

        def __dlpack_device__(self):
            return (1, 0)

    assert from_dlpack(Twice()).tolist() == [1, 2]
    with pytest.raises(InvalidHandle, match="already consumed"):
        from_dlpack(Twice())


def test_unused_capsule_frees_its_tensor():
    host = device_named("cpu")
    before = host.memory_stats()["live_bytes"]
    for version in (None, (1, 0)):
        capsule = empty((1 << 20,)).__dlpack__(max_version=version)
        assert host.memory_stats()["live_bytes"] > before
        del capsule
        assert host.memory_stats()["live_bytes"] <= before


def test_dlpack_requests(sims):
    t = asarray(np.arange(6.0).reshape(2, 3))
    assert t.__dlpack_device__() == (1, 0)
    assert np.from_dlpack(t, copy=True).base is not None and not np.shares_memory(np.from_dlpack(t, copy=True), t.numpy())
    assert np.shares_memory(np.from_dlpack(t, copy=False), t.numpy())
    with pytest.raises(BufferError, match="stream"):
        t.__dlpack__(stream=5)
    with pytest.raises(BufferError, match="only the host"):
        t.__dlpack__(dl_device=(2, 0))
    far = t.to(sims[0])
    with pytest.raises(BufferError, match="use .cpu"):
        far.__dlpack_device__()
    with pytest.raises(BufferError, match="use .cpu"):
        far.__dlpack__()
    with pytest.raises(BufferError, match="needs a copy"):
        far.__dlpack__(dl_device=(1, 0), copy=False)

    class OnHost:
        def __dlpack__(self, **k):
            return far.__dlpack__(dl_device=(1, 0), **{n: v for n, v in k.items() if n == "max_version"})

        def __dlpack_device__(self):
            return (1, 0)

    assert np.from_dlpack(OnHost()).tolist() == t.tolist()
    assert from_dlpack(t, device=sims[0]).device == sims[0] and from_dlpack(t, copy=True).address != t.address
    with pytest.raises(ArgumentError, match="copy=False"):
        from_dlpack(t.numpy(), device=sims[0], copy=False)


def test_foreign_devices_and_objects_are_refused():
    class Far:
        def __dlpack__(self, **_):
            raise AssertionError("must not be asked")

        def __dlpack_device__(self):
            return (14, 3)

    with pytest.raises(ArgumentError, match=r"\(14, 3\)"):
        from_dlpack(Far())
    with pytest.raises(ArgumentError, match="use asarray"):
        from_dlpack([1, 2])


def test_device_memory_by_dlpack():
    """A device whose driver declares a DLPack type exports and takes memory without a copy."""
    from dataclasses import replace

    from haian.adapters.sim import SimDriver
    from haian.hal.registry import load_adapter
    driver = SimDriver(1, 64 << 20)
    driver.name = "dlsim"
    driver._capabilities = [replace(c, extra={"dlpack_type": 12}) for c in driver._capabilities]
    (dev,) = load_adapter(driver)
    t = asarray(np.arange(6.0).reshape(2, 3)).to(dev)

    class Foreign:
        asked = []

        def __dlpack__(self, *, stream=None, max_version=None):
            self.asked.append(stream)
            return t.__dlpack__(stream=stream, max_version=max_version)

        def __dlpack_device__(self):
            return t.__dlpack_device__()

    assert t.__dlpack_device__() == (12, 0)
    u = from_dlpack(Foreign())
    assert u.address == t.address and u.device == dev and u.T.tolist() == t.T.tolist() and Foreign.asked == [1]
    with dev.stream() as s:
        from_dlpack(Foreign())
    assert Foreign.asked[-1] == s.handle


def test_attributes_are_read_only_and_the_type_is_closed():
    t = asarray([1])
    for name in ("shape", "dtype", "address"):
        with pytest.raises(AttributeError):
            setattr(t, name, None)
    with pytest.raises(TypeError):
        Tensor()
    with pytest.raises(TypeError):
        copying.copy(t)


def test_what_is_no_array_is_refused_by_name():
    for value, error, words in (([[1], [1, 2]], ShapeError, "different lengths"), (np.ndarray, DTypeError, "NumPy dtype object"),
                                (np.zeros(2, "O"), DTypeError, "NumPy dtype object")):
        with pytest.raises(error, match=f"asarray: .*{words}"):
            asarray(value)
    with pytest.raises(ArgumentError, match="a type has no __dlpack_device__"):
        from_dlpack(np.ndarray)


@pytest.mark.parametrize("device", ["cpu:0", "sim:0"])
@pytest.mark.parametrize("size", [2**62, 10**30])
def test_shapes_past_the_address_space_say_so(device, size):
    with pytest.raises(ShapeError, match="empty: .*2.63"):
        empty([size], device=device)
