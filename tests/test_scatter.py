"""Scatters and advanced indexing: what the suite of cases does not say (threads, numbers as values, masks, order).

Values, layouts, errors and gradients are the conformance cases of these operators; not here.
"""
from __future__ import annotations

import numpy as np
import pytest
from haian.hal.errors import ArgumentError, DTypeError, IndexOutOfBounds

import haian

ops = haian.ops
rng = np.random.default_rng(11)


@pytest.fixture
def threads():
    before = haian.num_threads()
    yield haian.set_num_threads
    haian.set_num_threads(before)


def bits(fn, threads):
    found = []
    for n in (1, 2, 3):
        threads(n)
        found.append(np.asarray(fn()).tobytes())
    return found


def test_meeting_terms_give_the_same_bits_for_any_number_of_threads(threads):
    x, values = rng.standard_normal((300, 64)).astype(np.float32), rng.standard_normal((20_000, 64)).astype(np.float32)
    i = rng.integers(-300, 300, 20_000)
    for accumulate in (False, True):
        a, b, c = bits(lambda add=accumulate: ops.index_put(x, values, i, accumulate=add), threads)
        assert a == b == c
    wide = np.broadcast_to(np.abs(i)[:, None] % 300, values.shape)
    for reduce in ("sum", "prod", "mean", "amax", "amin"):
        a, b, c = bits(lambda how=reduce: ops.scatter_reduce(x, 0, wide, values, how), threads)
        assert a == b == c, reduce


@pytest.mark.parametrize("device", ["cpu:0", "sim:0"])
def test_the_last_of_several_values_stays(device):
    def on(a):
        return haian.asarray(a, device=device)

    index, values = np.array([3, 1, 3, 3, 1]), np.arange(5.0, dtype=np.float32)
    want = [0, 4, 0, 3]
    for got in (ops.scatter(on(np.zeros(4, np.float32)), 0, on(index), on(values)), ops.index_copy(on(np.zeros(4, np.float32)), 0, on(index), on(values)),
                ops.index_put(on(np.zeros(4, np.float32)), on(values), on(index))):
        assert got.cpu().numpy().tolist() == want


def test_numbers_stand_for_tensors_without_axes():
    x, i = np.zeros((3, 4), np.float32), np.array([[1], [0], [3]])
    assert ops.scatter(x, 1, i, 2.5).sum() == 7.5
    assert ops.index_put(x, 2, np.array([0, 2])).sum() == 16
    big = 2**53 + 1  # no double
    assert ops.index_fill(np.zeros(3, np.int64), 0, np.array([-1]), big).tolist() == [0, 0, big]
    assert ops.fill(np.zeros(2, np.int64), big).tolist() == [big, big]


def test_index_takes_what_numpy_takes():
    x, i, j = rng.standard_normal((4, 5, 6)), np.array([[0], [3]]), np.array([1, -1, 2])
    assert np.array_equal(ops.index(x, i, j), x[i, j])
    assert np.array_equal(ops.index(x, i, None, j), x[i, :, j])
    assert np.array_equal(ops.index(x, None, i, j), x[:, i, j])
    with pytest.raises(DTypeError, match="nonzero"):
        ops.index(x, np.array([True, False, True, True]))
    with pytest.raises(ArgumentError, match="no index tensor"):
        ops.index(x, None, None)


@pytest.mark.parametrize("device", ["cpu:0", "sim:0"])
def test_nothing_is_written_when_an_index_is_refused(device):
    out = haian.asarray(np.full((5, 3), 9.0, np.float32), device=device)
    x, bad = haian.asarray(np.zeros((5, 3), np.float32), device=device), haian.asarray(np.array([0, 5]), device=device)
    source = haian.asarray(np.ones((2, 3), np.float32), device=device)
    for call in (lambda: ops.index_copy(x, 0, bad, source, out=out), lambda: ops.index_put(x, source, bad, out=out),
                 lambda: ops.index_fill(x, 0, bad, 1.0, out=out)):
        with pytest.raises(IndexOutOfBounds, match="5 at position 1"):
            call()
        assert (out.cpu().numpy() == 9).all()


def test_bags_behind_the_last_offset_belong_to_nobody():
    w = rng.standard_normal((6, 4)).astype(np.float32)
    y, bag, size, top = ops.embedding_bag(w, np.array([0, 1, 2, 3, 4]), np.array([0, 2, 4]), "sum", include_last_offset=True)
    assert np.allclose(y, [w[0] + w[1], w[2] + w[3]]) and bag.tolist() == [0, 0, 1, 1, 2] and size.tolist() == [2, 2] and top.size == 0
