"""Matrix products and attention on the host: every record against its reference, sizes one past each tile, layouts,
exact integers, and that bits depend on neither threads nor how C is cut into tiles.  Not here: speed, other devices.
"""
from __future__ import annotations

import zlib

import ml_dtypes
import numpy as np
import pytest
from haian.conformance.compare import judge
from haian.hal.errors import DTypeError, ShapeError
from haian.kernels.ops import OPS, draw

import haian

BF16 = np.dtype(ml_dtypes.bfloat16)
NAMES = ["matmul", "mm", "bmm", "addmm", "baddbmm", "linear", "scaled_dot_product_attention",
         "scaled_dot_product_flash_attention", "scaled_dot_product_flash_attention_backward"]
FLOATS = [np.dtype(np.float32), BF16, np.dtype(np.float16), np.dtype(np.float64)]
# one row, micro-kernel rows 14 and 6, the last two panels sharing their rows, 16 rows read in place, K blocks of 512
# (from 769 on there are two), columns 32 and 16
SIZES = [(1, 1, 1), (1, 33, 700), (14, 32, 16), (15, 33, 17), (7, 47, 769), (29, 31, 37), (16, 40, 1030), (17, 65, 70),
         (100, 3, 60), (43, 257, 65), (5, 5, 0), (0, 4, 3), (57, 95, 1600), (3, 1, 5)]


def run(name, *arrays, **attrs):
    y = getattr(haian.ops, name)(*(None if a is None else haian.asarray(a) for a in arrays), **attrs)
    return tuple(t.numpy() for t in y) if isinstance(y, (tuple, list)) else y.numpy()


def rng_of(*key):
    return np.random.default_rng(zlib.crc32("/".join(map(str, key)).encode()))


def bits(a):
    return np.ascontiguousarray(a).view(f"u{a.dtype.itemsize}")


def small(s):
    return all(i is None or np.prod(i.shape) < 300_000 for i in s.inputs)


@pytest.mark.parametrize("name", NAMES)
def test_every_record(name):
    op = OPS[name]
    for case in op.dtypes:
        for s in filter(small, op.samples):
            x, attrs = draw.inputs(s, case, rng_of(name, case, s.name)), op.attributes(s.attrs)
            verdict = judge(op, x, attrs, run(name, *x, **s.attrs))
            assert verdict.ok, f"{case} {s.name}: {verdict.message}"


LAYOUTS = {
    "rows": lambda a: a,
    "columns": lambda a: np.ascontiguousarray(a.T).T,
    "every_second": lambda a: np.repeat(np.repeat(a, 2, 0), 2, 1)[::2, ::2],
    "reversed": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
    "offset": lambda a: np.concatenate([a[:, :0], np.zeros((len(a), 3), a.dtype), a], 1)[:, 3:],
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("a_layout", LAYOUTS)
def test_sizes_and_layouts(dtype, a_layout):
    op, rng = OPS["mm"], rng_of("mm", dtype, a_layout)
    for m, n, k in SIZES:
        for b_layout in LAYOUTS:
            a = LAYOUTS[a_layout](rng.standard_normal((m, k)).astype(dtype))
            b = LAYOUTS[b_layout](rng.standard_normal((k, n)).astype(dtype))
            verdict = judge(op, (a, b), {}, run("mm", a, b))
            assert verdict.ok, f"{(m, n, k)} b {b_layout}: {verdict.message}"


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float64], ids=str)
def test_integers_come_back_exactly(dtype):
    """sum |a b| < 2^24, a of up to 12 bits where the dtype holds them: reduced inputs or a lost term would show."""
    rng = rng_of("exact", np.dtype(dtype))
    for m, n, k in SIZES:
        high = int(min(200 if np.dtype(dtype) == BF16 else 4000, 2**24 / 3 / max(k, 1)))
        a = rng.integers(-high, high + 1, (m, k)).astype(dtype)
        for turned in (False, True):
            b = rng.integers(-3, 4, (n, k) if turned else (k, n)).astype(dtype)
            b = b.T if turned else b
            want = (a.astype(np.float64) @ b.astype(np.float64)).astype(dtype)
            assert np.array_equal(run("mm", a, b), want), (m, n, k, turned)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bits_do_not_depend_on_threads(dtype):
    rng = rng_of("threads", dtype)

    def draws(*shapes):
        return [rng.standard_normal(s).astype(dtype) for s in shapes]

    cases = [("mm", draws((70, 700), (700, 300)), {}), ("mm", draws((1, 1100), (1100, 3000)), {}),
             ("linear", [*draws((3, 2000), (500, 2000)), None], {}), ("mm", draws((300, 900), (900, 3)), {}),
             ("bmm", draws((5, 33, 50), (5, 50, 77)), {}),
             ("scaled_dot_product_attention", [*draws((1, 2, 200, 16), (1, 2, 600, 16), (1, 2, 600, 16)), None],
              {"is_causal": True}),
             ("scaled_dot_product_attention", [*draws((2, 4, 1, 32), (2, 2, 3000, 32), (2, 2, 3000, 32)), None],
              {"enable_gqa": True})]
    before = haian.num_threads()
    try:
        for name, x, attrs in cases:
            haian.set_num_threads(1)
            one = run(name, *x, **attrs)
            for threads in (2, 3, 5):
                haian.set_num_threads(threads)
                assert np.array_equal(bits(run(name, *x, **attrs)), bits(one)), (name, threads)
    finally:
        haian.set_num_threads(before)


def test_beta_zero_does_not_read_input():
    nan = np.full((3, 4), np.nan, np.float32)
    a, b = np.ones((3, 2), np.float32), np.ones((2, 4), np.float32)
    assert (run("addmm", nan, a, b, beta=0.0) == 2).all()


def test_nan_and_infinity_stay_in_their_rows_and_columns():
    a, b = np.ones((20, 40), np.float32), np.ones((40, 50), np.float32)
    a[3, 7], b[5, 9] = np.nan, np.inf
    y = run("mm", a, b)
    odd = np.zeros_like(y, bool)
    odd[3, :], odd[:, 9] = True, True
    assert np.isfinite(y[~odd]).all() and np.isnan(y[3]).all() and np.isinf(np.delete(y[:, 9], 3)).all()


def test_attention_equals_torch():
    torch = pytest.importorskip("torch")
    rng = rng_of("torch")
    for causal, mask in ((False, None), (True, None), (False, "bool"), (False, "float")):
        q, k, v = (rng.standard_normal((2, 3, n, 24)).astype(np.float32) for n in (70, 300, 300))
        m = {None: None, "bool": rng.random((2, 1, 70, 300)) < 0.5,
             "float": rng.standard_normal((70, 300)).astype("f")}[mask]
        y = run("scaled_dot_product_attention", q, k, v, m, is_causal=causal)
        want = torch.nn.functional.scaled_dot_product_attention(
            *(torch.from_numpy(t) for t in (q, k, v)), attn_mask=None if m is None else torch.from_numpy(m),
            is_causal=causal)
        np.testing.assert_allclose(y, want.numpy(), rtol=2e-5, atol=2e-6)


def test_a_query_that_sees_nothing_gives_zeros():
    q, k = np.ones((1, 1, 40, 8), np.float32), np.ones((1, 1, 5, 8), np.float32)
    mask = np.ones((40, 5), bool)
    mask[7] = False
    y, lse = run("scaled_dot_product_flash_attention", q, k, k, mask)
    assert (y[0, 0, 7] == 0).all() and (np.delete(y[0, 0], 7, 0) == 1).all()
    assert np.isneginf(lse[0, 0, 7]) and np.isfinite(np.delete(lse[0, 0], 7)).all()


def test_bad_operands_are_refused():
    a = np.ones((2, 3), np.float32)
    with pytest.raises(ShapeError, match="mm"):
        run("mm", a, a)
    with pytest.raises(DTypeError, match="mm"):
        run("mm", a, np.ones((3, 2), np.float64))
