"""Scans, sorting and selection on the host: sizes past every switch between algorithms, and results as long as the data say.

What conformance does (every dtype, layout, special value) is not repeated here.
"""
from __future__ import annotations

import numpy as np
import pytest
from haian.hal.errors import ArgumentError, DTypeError
from haian.kernels.ops import OPS

import haian
from haian import ops


@pytest.fixture(params=(1, 2, 3))
def threads(request):
    before = haian.num_threads()
    haian.set_num_threads(request.param)
    yield request.param
    haian.set_num_threads(before)


def test_long_sums_do_not_depend_on_threads():
    x = np.random.default_rng(1).standard_normal(200_003).astype("f")
    bits, before = set(), haian.num_threads()
    for n in (1, 2, 3):
        haian.set_num_threads(n)
        bits.add(ops.cumsum(haian.asarray(x), 0).numpy().tobytes())
    haian.set_num_threads(before)
    assert len(bits) == 1
    exact = np.cumsum(x, dtype=np.float64)
    assert np.abs(np.frombuffer(bits.pop(), "f") - exact).max() <= 4e-7 * np.abs(exact).max()


def test_sum_of_equal_terms_does_not_drift():
    y = ops.cumsum(haian.asarray(np.full(1 << 20, 0.1, "f")), 0).numpy()
    assert abs(y[-1] / (np.float32(0.1) * np.float64(1 << 20)) - 1) < 1e-6


def test_integers_sum_in_64_bits():
    x = np.full((3, 5), 2**31 - 1, np.int32)
    for dim in (0, 1):
        assert (ops.cumsum(haian.asarray(x), dim).numpy() == np.cumsum(x, dim, dtype=np.int64)).all()


def rows(kind: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    return {"random": lambda: rng.standard_normal(n), "ascending": lambda: np.arange(n), "descending": lambda: -np.arange(n),
            "equal": lambda: np.zeros(n), "few": lambda: rng.integers(0, 4, n), "organ pipe": lambda: np.minimum(np.arange(n), n - np.arange(n)),
            "special": lambda: rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], n)}[kind]()


KINDS = ("random", "ascending", "descending", "equal", "few", "organ pipe", "special")


@pytest.mark.parametrize("kind,dtype", [(k, d) for k in KINDS for d in ("float32", "float64", "float16", "int64", "uint8")
                                        if k != "special" or d.startswith("float")])  # integers have none
def test_every_way_to_sort(kind, dtype, threads):
    for n in (40, 41, 256, 257, 4096, 4097, 16383, 16384):  # past insertion, the shortest stream, short digits, one thread's row
        x = rows(kind, n).astype(dtype)
        for descending in (False, True):
            values, at = (t.numpy() for t in ops.sort(haian.asarray(x), 0, descending))
            _, want = OPS["sort"].reference(x, dim=0, descending=descending)
            assert (at == want).all(), (n, descending)
            assert values.tobytes() == x[want].tobytes(), (n, descending)
        want = OPS["sort"].reference(x, dim=0, descending=False)[1]
        for k in (1, 7, n // 3, n):
            values, at = (t.numpy() for t in ops.topk(haian.asarray(x), k, 0, False))
            assert (at == want[:k]).all() and values.tobytes() == x[want[:k]].tobytes(), (n, k)
            value, place = (t.numpy() for t in ops.kthvalue(haian.asarray(x), k, 0))
            assert place == want[k - 1] and value.tobytes() == x[place].tobytes(), (n, k)


@pytest.mark.parametrize("n", (0, 1, 512, 513, 8192, 8193, 70_001))
def test_nonzero_in_blocks(n, threads):
    for x in (np.random.default_rng(n).random(n) < 0.5, np.ones(n, bool), np.zeros(n, bool)):
        want = np.flatnonzero(x)
        assert (ops.nonzero(haian.asarray(x)).numpy() == want[:, None]).all()
        few = ops.nonzero_static(haian.asarray(x), size=n // 3 + 2, fill_value=-7).numpy()[:, 0]
        kept = want[:len(few)]
        assert (few[:len(kept)] == kept).all() and (few[len(kept):] == -7).all()


def test_results_as_long_as_the_data_say():
    x = np.random.default_rng(3).integers(0, 9, (7, 11))
    values, inverse, counts = (t.numpy() for t in ops.unique(haian.asarray(x), True, True, True))
    want = np.unique(x, return_inverse=True, return_counts=True)
    assert (values == want[0]).all() and (inverse == want[1].reshape(x.shape)).all() and (counts == want[2]).all()
    mask = x > 4
    assert (ops.masked_select(haian.asarray(x).transpose(0, 1), haian.asarray(mask).transpose(0, 1)).numpy() == x.T[mask.T]).all()
    assert isinstance(ops.nonzero(x), np.ndarray)  # the caller's own kind of array
    assert "at most" in haian.explain(ops.nonzero, x) and "other operators" in haian.explain("unique", x)


def test_results_of_unknown_length_take_no_out():
    x = haian.asarray(np.ones(3))
    for call in (lambda **k: ops.nonzero(x, **k), lambda **k: ops.masked_select(x, x.numpy() > 0, **k)):
        with pytest.raises(ArgumentError, match="out came, but how large the result is depends on the data"):
            call(out=x)
    with pytest.raises(DTypeError, match="masked_select: mask has dtype float64; needs bool"):
        ops.masked_select(x, x)


def test_results_of_unknown_length_on_a_device():
    pytest.importorskip("triton", reason="the simulated device runs Triton kernels")
    x = np.random.default_rng(5).standard_normal((2, 33)).astype("f")
    on = haian.asarray(x, device="sim:0")
    assert ops.nonzero(on).device.name == "sim:0"
    assert (ops.unique(on)[0].cpu().numpy() == np.unique(x)).all()
