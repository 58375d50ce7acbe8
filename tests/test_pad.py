"""Padding and movement: what the suite of cases does not say (hostile sizes, other libraries' arrays, threads, NumPy's own answers).

Values, layouts, errors and gradients are the conformance cases of these operators; not here.
"""
from __future__ import annotations

import numpy as np
import pytest
from haian.hal.errors import OutOfMemory, ShapeError

import haian

ops = haian.ops
x = np.arange(60, dtype=np.float32).reshape(3, 4, 5)


@pytest.mark.parametrize("mode,own", [("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")])
@pytest.mark.parametrize("pad", [(2, 3), (0, 4, 3, 1), (1, 0, 2, 3, 0, 2)])
def test_modes_are_those_of_numpy(mode, own, pad):
    wide = [(0, 0)] * (3 - len(pad) // 2) + [(pad[k], pad[k + 1]) for k in range(0, len(pad), 2)][::-1]
    assert np.array_equal(ops.pad(x, pad, mode), np.pad(x, wide, own))


def test_circular_padding_goes_around_in_what_is_left():
    assert ops.pad(np.arange(6.0), (-1, 2), "circular").tolist() == [1, 2, 3, 4, 5, 1, 2]
    with pytest.raises(ShapeError, match="up to 5"):
        ops.pad(np.arange(6.0), (-1, 6), "circular")


@pytest.mark.parametrize("call", [
    lambda: ops.constant_pad_nd(x, (2**62, 2**62)), lambda: ops.constant_pad_nd(x, (-(2**63), 2**63 - 1)), lambda: ops.repeat(x, (2**40, 2**40, 1)),
    lambda: ops.diag_embed(x, -(2**63)), lambda: ops.reflection_pad1d(x, (-(2**63), 2**63 - 1))])
def test_sizes_that_overflow_are_refused(call):
    with pytest.raises(ShapeError):
        call()


@pytest.mark.parametrize("call", [lambda: ops.pad(x, (2**45, 0), "replicate"), lambda: ops.one_hot(np.zeros(3, np.int64), 2**45),
                                  lambda: ops.repeat_interleave(x, 2**45), lambda: ops.linspace(0.0, 1.0, 2**50)])
def test_sizes_beyond_memory_leave_everything_usable(call):
    with pytest.raises(OutOfMemory):
        call()
    assert ops.flip(np.arange(3), (0,)).tolist() == [2, 1, 0]


def test_shifts_and_ends_of_any_size():
    assert np.array_equal(ops.roll(x, (2**63 - 1,), (2,)), np.roll(x, (2**63 - 1) % 5, 2))
    assert np.array_equal(ops.roll(x, (-(2**63),)), np.roll(x, -(2**63) % 60))
    assert np.array_equal(ops.slice_scatter(x, x, 0, -(2**63), 2**63 - 1), x)
    assert np.array_equal(ops.diagonal_scatter(x, np.zeros((5, 0), np.float32), -(2**63)), x)


@pytest.mark.parametrize("device", ["cpu:0", "sim:0"])
def test_both_ends_of_linspace_are_exact(device):
    for start, end, steps in ((0.1, 0.7, 1000), (-3.3, 1e6, 7), (5.0, -0.1, 2), (2.0, 9.0, 1)):
        y = ops.linspace(start, end, steps, device=device).cpu().numpy()
        assert y[0] == np.float32(start) and (steps == 1 or y[-1] == np.float32(end))


def test_gradients_of_pads_have_the_same_bits_for_any_number_of_threads():
    dy, before = np.random.default_rng(3).standard_normal((8, 3, 70, 90)).astype(np.float32), haian.num_threads()
    found = []
    for n in (1, 2, 3):
        haian.set_num_threads(n)
        found += [ops.replication_pad2d_backward(dy, np.empty((8, 3, 60, 81), np.float32), (4, 5, 6, 4)).tobytes()]
    haian.set_num_threads(before)
    assert found[0] == found[1] == found[2]
