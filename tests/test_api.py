"""haian.ops as a user meets it: binding, conversion, out=, aliasing, errors, threads; values are the conformance suite's job."""
from __future__ import annotations

import array
import gc
import inspect
import threading

import numpy as np
import pytest
from haian.hal.errors import AliasError, ArgumentError, DTypeError, OutOfMemory, ShapeError
from haian.kernels.ops import OPS

import haian

ops = haian.ops


@pytest.mark.parametrize("name", list(OPS))
def test_every_record_is_a_function_with_a_docstring_and_signature(name):
    fn = getattr(ops, name)
    assert fn.__name__ == name
    assert OPS[name].schema in fn.__doc__ and OPS[name].doc in fn.__doc__
    assert set(inspect.signature(fn).parameters) == {p.name for p in OPS[name].params} | ({"out"} if OPS[name].takes_out else set())


def test_unknown_operator_says_where_to_look():
    with pytest.raises(AttributeError, match="haian ops list"):
        ops.no_such_operator  # noqa: B018


def test_out_is_returned_and_written():
    x, y, z = (haian.asarray(np.arange(6, dtype="f") + k) for k in range(3))
    assert ops.add(x, y, out=z) is z
    np.testing.assert_array_equal(z.numpy(), [1, 3, 5, 7, 9, 11])


def test_keywords_out_of_a_dictionary():
    x = haian.asarray(np.array([1.0, -2.0], "f"))
    names = {"".join(["al", "pha"]): 2.0, "".join(["o", "ut"]): haian.asarray(np.zeros(2, "f"))}  # not interned
    np.testing.assert_array_equal(ops.add(x, x, **names).numpy(), [3, -6])


@pytest.mark.parametrize("wrong", [np.zeros((3,), "f"), np.zeros((2, 3), "d")])
def test_wrong_out_is_refused_and_untouched(wrong):
    x = haian.asarray(np.ones((2, 3), "f"))
    out = haian.asarray(wrong)
    with pytest.raises((ShapeError, DTypeError), match=r"out is .*; needs float32 \(2, 3\)"):
        ops.exp(x, out=out)
    assert not wrong.any()


def test_strided_and_transposed_out():
    x = haian.asarray(np.arange(6, dtype="f").reshape(2, 3))
    wide = np.full((3, 4), 7.0, "f")
    ops.neg(x, out=haian.asarray(wide.T[:2]))
    np.testing.assert_array_equal(wide[:, :2], -np.arange(6, dtype="f").reshape(2, 3).T)
    np.testing.assert_array_equal(wide[:, 2:], 7.0)


def test_broadcast_out_is_refused():
    x = haian.asarray(np.ones((3, 2), "f"))
    with pytest.raises(AliasError, match="stride 0"):
        ops.exp(x, out=haian.asarray(np.zeros((1, 2), "f")).expand((3, 2)))


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("name", ["exp", "softmax", "copy"])
def test_overlapping_out_is_exact(name, shift):
    base = np.linspace(-2, 2, 40, dtype="f")
    want = getattr(ops, name)(haian.asarray(base[:32].copy())).numpy()
    t = haian.asarray(base)
    getattr(ops, name)(t[:32], out=t[shift:32 + shift])
    np.testing.assert_array_equal(base[shift:32 + shift], want)


def test_out_that_is_the_other_operand():
    a = np.arange(12, dtype="f").reshape(3, 4).copy()
    t = haian.asarray(a)
    ops.mm(t[:, :3], t[:, :3], out=t[:, 1:4])
    full = np.arange(12, dtype="f").reshape(3, 4)[:, :3]
    np.testing.assert_array_equal(a[:, 1:4], full @ full)


def test_foreign_arrays_come_back_as_they_came():
    assert type(ops.exp(np.zeros(3, "f"))) is np.ndarray
    assert type(ops.add(np.zeros(3, "f"), 1.0)) is np.ndarray
    assert type(ops.add(np.zeros(3, "f"), haian.asarray(np.zeros(3, "f")))) is haian.Tensor
    torch = pytest.importorskip("torch", reason="PyTorch not installed")
    got = ops.softmax(torch.ones(2, 3))
    assert isinstance(got, torch.Tensor) and torch.allclose(got, torch.full((2, 3), 1 / 3))


def test_numbers_take_the_tensor_s_dtype_or_are_refused():
    x = haian.asarray(np.array([1, 2], "i4"))
    assert ops.add(x, 3).dtype is haian.int32
    np.testing.assert_array_equal(ops.mul(x, True).numpy(), [1, 2])
    with pytest.raises(DTypeError, match="int32 cannot hold"):
        ops.add(x, 2.5)
    with pytest.raises(DTypeError, match="int32 cannot hold"):
        ops.add(x, 2**40)
    with pytest.raises(ArgumentError, match="only numbers"):
        ops.add(1, 2)


@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda x: ops.add(x), ArgumentError, "'y' is missing"),
    (lambda x: ops.add(x, x, x), ArgumentError, "positional"),
    (lambda x: ops.add(x, x, beta=1), ArgumentError, "unknown argument 'beta'"),
    (lambda x: ops.add(x, y=x, x=x), ArgumentError, "twice"),
    (lambda x: ops.add(x, "two"), DTypeError, "y is a str"),
    (lambda x: ops.add(x, None), ArgumentError, "y is None"),
    (lambda x: ops.softmax(x, "last"), ArgumentError, "dim is 'last'"),
    (lambda x: ops.softmax(x, True), ArgumentError, "dim is True"),
    (lambda x: ops.softmax(x, 2**70), ArgumentError, "64 bits"),
    (lambda x: ops.gelu(x, approximate="cubic"), ArgumentError, "none, tanh"),
    (lambda x: ops.sum(x, (0,) * 20), ShapeError, "8 axes"),
    (lambda x: ops.cast(x, dtype="float128"), DTypeError, "not one of haian's"),
    (lambda x: ops.cat([]), ArgumentError, "no tensors"),
    (lambda x: ops.cat(x), DTypeError, "needs a list"),
    (lambda x: ops.exp(x, out=3), DTypeError, "out is an int"),
    (lambda x: ops.add(x, haian.asarray(np.ones(5, "f"))), ShapeError, "do not broadcast"),
    (lambda x: ops.add(x, haian.asarray(np.ones(3, "d"))), DTypeError, "differ"),
    (lambda x: ops.exp(np.ndarray), DTypeError, "exp: x is a type"),
    (lambda x: ops.exp(x, out=np.ndarray), DTypeError, "exp: out is a type"),
    (lambda x: ops.exp(x, out=np.float32(3)), DTypeError, "exp: out is a float32"),
    (lambda x: ops.exp(x, out=bytes(12)), DTypeError, "exp: out is uint8"),
    (lambda x: ops.add(x, np.zeros(3, "O")), DTypeError, "add: y is a ndarray: NumPy dtype object"),
    (lambda x: ops.exp(np.zeros(3, "U2")), DTypeError, "exp: x is a ndarray: NumPy dtype <U2"),
    (lambda x: ops.exp(np.zeros(3, "M8[s]")), DTypeError, "exp: x is a ndarray: NumPy dtype datetime64"),
    (lambda x: ops.exp(x, out=np.zeros(3, [("a", "f4")])), DTypeError, "exp: out is a ndarray: NumPy dtype"),
    (lambda x: ops.cast(x, dtype="f4,,"), DTypeError, "cast: dtype is 'f4,,'"),
    (lambda x: ops.cast(x, dtype={"a": 1}), DTypeError, "cast: dtype is {'a': 1}"),
    (lambda x: ops.cast(x, dtype=3), ArgumentError, "cast: dtype is 3"),
    (lambda x: ops.sum(x, [True]), ArgumentError, r"sum: dim is \[True\]"),
    (lambda x: ops.sum(x, True), ArgumentError, "sum: dim is True"),
    (lambda x: ops.arange(0, 1e30, 1, dtype="float32"), ShapeError, "arange: axis 0"),
    (lambda x: ops.arange(0, 1, 1e-300, dtype="float32"), ShapeError, "arange: axis 0"),
    (lambda x: ops.arange(0, 2**62, 1), ShapeError, r"arange: int64 of shape \(4611686018427387904,\)"),
    (lambda x: ops.full([2**62], 1), ShapeError, r"full: float32 of shape \(4611686018427387904,\)"),
    (lambda x: ops.rand([2**62]), ShapeError, r"rand: float32 of shape \(4611686018427387904,\)"),
    (lambda x: ops.full([2**62], 1, device="sim:0"), ShapeError, r"full: float32 of shape \(4611686018427387904,\)"),
    (lambda x: ops.full([2**45], 1), OutOfMemory, r"full: float32 of shape .* needs 140737488355328 bytes on cpu:0"),
    (lambda x: ops.full([2**45], 1, device="sim:0"), OutOfMemory, "full: sim:0"),
    (lambda x: ops.add(haian.empty((2**24, 1)), haian.empty((1, 2**24))), OutOfMemory, "add: float32"),
])
def test_errors_name_the_operator_and_what_came(call, error, words):
    x = haian.asarray(np.ones(3, "f"))
    with pytest.raises(error, match=words) as info:
        call(x)
    assert "\n" not in str(info.value)
    np.testing.assert_array_equal(x.numpy(), 1.0)


def test_device_allocations_name_the_operator():
    column = ops.full((2**17, 1), 0.0, device="sim:0")
    with pytest.raises(OutOfMemory, match="add: sim:0"):
        ops.add(column, column.reshape(1, 2**17))


def test_whatever_has_a_buffer_is_taken():
    for value in (array.array("f", [1, 2]), memoryview(array.array("f", [1, 2])), np.array([1, 2], "f").data):
        np.testing.assert_array_equal(np.asarray(ops.neg(value)), [-1, -2])
    out = array.array("f", [0, 0])
    assert ops.neg(array.array("f", [1, 2]), out=out) is out and list(out) == [-1, -2]
    with pytest.raises(ArgumentError, match="read-only"):
        ops.neg(np.zeros(2, "u1").view("i1"), out=memoryview(bytes(2)).cast("b"))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_tensors_without_data_or_that_do_not_share_are_refused():
    torch = pytest.importorskip("torch", reason="PyTorch not installed")
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(2)
    x = np.ones(2, "f")
    for call in (lambda: ops.exp(fake), lambda: ops.exp(x, out=fake), lambda: ops.exp(torch.ones(2, device="meta")), lambda: haian.from_dlpack(fake),
                 lambda: ops.exp(x, out=torch.ones(2, requires_grad=True)), lambda: ops.exp(torch.ones(2, requires_grad=True))):
        with pytest.raises(ArgumentError) as info:
            call()
        assert "\n" not in str(info.value)
    np.testing.assert_array_equal(ops.exp(torch.ones(0)), torch.ones(0))  # no elements need no address


def test_full_follows_aten_and_truncates():
    torch = pytest.importorskip("torch", reason="PyTorch not installed")
    for value in (1.5, -1.5):
        np.testing.assert_array_equal(ops.full([2], value, dtype="int32").numpy(), torch.full([2], value, dtype=torch.int32).numpy())


@pytest.mark.parametrize("n", [0, -1, "a", 2.0, True, None, 10**9, 2**40])
def test_thread_counts_are_checked(n):
    before = haian.num_threads()
    with pytest.raises(ArgumentError, match="set_num_threads: "):
        haian.set_num_threads(n)
    assert haian.num_threads() == before


def test_ops_can_be_imported():
    import haian.ops
    from haian.ops import softmax

    assert haian.ops is ops and softmax is ops.softmax


def test_byte_swapped_out_is_refused_not_ignored():
    with pytest.raises(DTypeError, match="byte"):
        ops.exp(np.ones(3, "f"), out=np.zeros(3, ">f4"))


def test_out_whose_rows_overlap_is_refused():
    rows = np.lib.stride_tricks.as_strided(np.zeros(40, "f"), (3, 4), (4, 4))
    with pytest.raises(AliasError, match="overlapping"):
        ops.exp(np.ones((3, 4), "f"), out=haian.asarray(rows))


def test_read_only_memory_is_never_written():
    frozen = np.zeros(3, "f")
    frozen.flags.writeable = False
    for out in (haian.asarray(frozen), haian.asarray(frozen)[1:][:2]):
        with pytest.raises(ArgumentError, match="read-only"):
            ops.exp(haian.asarray(np.ones(out.shape, "f")), out=out)
    assert memoryview(haian.asarray(frozen)).readonly and not frozen.any()


def test_a_list_that_changes_while_cat_runs():
    stop = threading.Event()
    parts: list = []

    def churn():
        while not stop.is_set():
            parts.clear()
            parts.extend(haian.asarray(np.ones(40_000, "f")) for _ in range(3))

    churner = threading.Thread(target=churn)
    churner.start()
    try:
        for _ in range(100):
            try:
                got = ops.cat(parts)
            except ArgumentError:  # the list was empty just then
                continue
            assert (got.numpy() == 1).all()
    finally:
        stop.set()
        churner.join()


def test_masked_arrays_are_refused():
    with pytest.raises(ArgumentError, match="mask"):
        ops.exp(np.ma.array([1.0, 2.0], mask=[1, 0]))


def test_read_only_out_is_refused():
    frozen = np.zeros(3, "f")
    frozen.flags.writeable = False
    with pytest.raises(ArgumentError, match="read-only"):
        ops.exp(np.ones(3, "f"), out=frozen)


def test_plans_are_made_once_a_signature():
    op = ops.exp
    op.forget()
    op(haian.empty((4, 4), "float32"))  # haian's own tensors are aligned alike, NumPy's are not
    before = op.misses
    for n in (1, 2, 17):  # the shape is not part of a signature
        op(haian.empty((n, 3), "float32"))
    assert op.misses == before
    op(haian.empty((4, 4), "float64"))
    assert op.misses == before + 1


def test_more_signatures_than_plans():
    rng = np.random.default_rng(0)
    for _ in range(3):
        for dtype in ("float16", "float32", "float64", "bfloat16"):
            for rank in range(8):
                for flip in (False, True):
                    a = rng.standard_normal((2,) * rank).astype(haian.dtype(dtype).numpy)
                    t = haian.asarray(a.T if flip else a)
                    np.testing.assert_array_equal(ops.neg(t).numpy().astype("d"), -np.asarray(a.T if flip else a).astype("d"))


def test_threads_share_operators_while_plans_are_evicted():
    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for i in range(400):
                n = int(rng.integers(1, 40))
                a = rng.standard_normal((n, 3)).astype(("f", "d")[i % 2])
                got = ops.add(haian.asarray(a if i % 3 else a.T), 1.0).numpy()
                np.testing.assert_array_equal(got, (a if i % 3 else a.T) + a.dtype.type(1))
                if i % 50 == 0:
                    ops.add.forget()
        except BaseException as error:  # noqa: BLE001  carried to the main thread
            failures.append(error)

    failures: list[BaseException] = []
    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures[0]


def test_nothing_is_leaked():
    x = haian.asarray(np.ones(1000, "f"))
    gc.collect()
    before = haian.device("cpu").memory_stats()["live_bytes"]
    for _ in range(200):
        y = ops.exp(x)
        with pytest.raises(ShapeError):
            ops.exp(x, out=haian.asarray(np.ones(3, "f")))
        del y
    assert haian.device("cpu").memory_stats()["live_bytes"] == before


def test_host_streams_queue_operators():
    device = haian.device("cpu:0")
    gate = threading.Event()
    stream = device.stream()
    x = haian.asarray(np.ones(4, "f"))
    with stream:
        stream.host_func(gate.wait)
        y = ops.add(x, x)
        z = ops.add(y, 1.0)
        assert not stream.query()
    gate.set()
    stream.synchronize()
    np.testing.assert_array_equal(z.numpy(), 3.0)


def test_creation_on_a_device():
    t = ops.full((2, 3), 4.0, device="sim:0")
    assert t.device.name == "sim:0"
    np.testing.assert_array_equal(t.numpy(), 4.0)
    assert ops.arange(0, 5).dtype is haian.int64


def test_lists_that_are_left_out_take_their_defaults():
    x = haian.asarray(np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8))
    whole = haian.ops.max_pool2d(x, (3, 3), (2, 2), (0,), (1,), False).numpy()
    assert np.array_equal(haian.ops.max_pool2d(x, (3, 3), (2, 2)).numpy(), whole)
    assert haian.ops.max_pool2d(x, (3, 3), (2, 2), (1, 1)).shape == (1, 1, 4, 4)
    y = haian.ops.convolution(x, haian.asarray(np.ones((2, 1, 3, 3), np.float32)), None, (2, 2))
    assert y.shape == (1, 2, 3, 3) and y.numpy()[0, 0, 0, 0] == np.arange(64).reshape(8, 8)[:3, :3].sum()
