"""Triton kernels of pointwise, shape, reduce, softmax, norm, random, and launch.py, on the simulated chip.

The records' own samples run in the conformance suite; here stand the paths that those shapes do not reach, and launch's rules.
Judged by NumPy in float64, ml_dtypes and the host kernels' bits.
"""
from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("triton")

from haian.hal.dtype import BY_NAME
from haian.hal.errors import ArgumentError, Unsupported
from haian.kernels.ops import OPS
from haian.kernels.triton import launch as launching
from haian.kernels.triton import norm, pointwise, random, reduce, shape, softmax
from haian.kernels.triton.launch import F64, I64, Data, Step, compile_for, signature_of

import haian

ops = haian.ops
rng = np.random.default_rng(7)


def on(a):
    return haian.asarray(a, device="sim:0")


def strided(a: np.ndarray, order: tuple[int, ...], slices: tuple[slice, ...]):
    """(array, device tensor) of the same strided view."""
    return a.transpose(order)[slices], on(a).permute(*order)[slices]


# ---- launch ------------------------------------------------------------------------------------------------------------
def test_signature_says_type_and_multiple():
    x = on(np.zeros(8, np.float32))
    assert x.address % 16 == 0
    assert signature_of((x, x[1:], 16, 17, 2**31, I64(3), Data(16), True, 0.5, F64(0.5))) == (
        ("*fp32", True), ("*fp32", False), ("i32", True), ("i32", False), ("i64", True), ("i64", False), ("i32", False), ("i1", False),
        ("fp32", False), ("fp64", False))
    assert signature_of((Step(0), Step(1), Step(2), Step(2**40))) == (("=0", False), ("=1", False), ("i32", False), ("i64", True))
    assert signature_of((on(np.zeros(1, bool)),))[0][0] == "*i8"
    with pytest.raises(ArgumentError, match="NoneType"):
        signature_of((None,))


def test_compile_for_counts_arguments_and_names_images():
    constants = {"UPPER": False, "BLOCK": 64}
    arguments = (("*fp32", True), ("*fp32", True), ("i32", True), ("i32", False), ("i32", False), ("i32", False))
    sim = ("haian_sim", "sim0", 1)
    compiled = compile_for(shape.triangle_kernel, sim, "ttir", arguments, constants)
    assert compiled.types == ("*fp32", "*fp32", "i32", "i32", "i32", "i32") and compiled.hidden == 0 and b"tt.func" in compiled.image
    with pytest.raises(ArgumentError, match="5 arguments for parameters x_ptr"):
        compile_for(shape.triangle_kernel, sim, "ttir", arguments[:-1], constants)
    with pytest.raises(Unsupported, match="cubin"):
        compile_for(shape.triangle_kernel, sim, "cubin", arguments, constants)


def test_compiled_in_strides_do_not_travel():
    arguments = (("*fp32", True), ("*fp32", True), ("i32", True), ("=1", False), ("i32", True))
    constants = {"LOG": False, "WIDE": False, "BIG": False, "SINGLE": True, "BLOCK_N": 1024, "BLOCK_I": 1}
    compiled = compile_for(softmax.softmax_kernel, ("cuda", 80, 32), "cubin", arguments, constants)
    assert compiled.types == ("*fp32", "*fp32", "i32", "", "i32") and compiled.threads == 128
    built = launching.build(softmax.softmax_kernel, ("cuda", 80, 32), arguments, constants)
    listed = built.asm["ptx"].split(".entry")[1].split(")")[0].count(".param")
    assert 4 + compiled.hidden == listed
    assert "ld.global.v4" in built.asm["ptx"], "rows of 1024 float32 load 16 bytes a thread"


def test_the_simulator_registers_itself_where_triton_missed_it():
    from triton.backends import backends
    found = backends.pop("haian_sim", None)
    try:
        launching._register_simulator()
        assert "haian_sim" in backends
    finally:
        if found is not None:
            backends["haian_sim"] = found


def test_capped_by_the_device_not_by_its_name():
    class Small:
        capabilities = type("C", (), {"max_grid": (65535, 65535, 65535), "max_grid_product": 1000})

    assert launching.capped(Small, 7) == 7 and launching.capped(Small, 70000) == 1000


@pytest.mark.parametrize("modules", [(pointwise, shape, reduce, softmax, norm, random)])
def test_kernels_loop_when_the_grid_is_capped(modules, monkeypatch):
    for module in modules:
        monkeypatch.setattr(module, "capped", lambda device, blocks: min(blocks, 3))
    x = rng.standard_normal((37, 1030)).astype(np.float32)
    wide = x.astype(np.float64)
    assert np.array_equal(ops.mul(on(x), on(x)).numpy(), x * x)
    assert np.array_equal(ops.copy(on(x).T).numpy(), x.T)
    assert np.array_equal(ops.tril(on(x), 2).numpy(), np.tril(x, 2))
    assert np.array_equal(ops.full((5000,), 2.5, device="sim:0").numpy(), np.full(5000, 2.5, np.float32))
    np.testing.assert_allclose(ops.sum(on(x), 1).numpy(), wide.sum(1), atol=1e-4)
    assert np.array_equal(ops.argmax(on(x), 0).numpy(), x.argmax(0))
    e = np.exp(wide - wide.max(1, keepdims=True))
    np.testing.assert_allclose(ops.softmax(on(x), 1).numpy(), e / e.sum(1, keepdims=True), rtol=1e-5)
    centred = wide - wide.mean(1, keepdims=True)
    np.testing.assert_allclose(ops.layer_norm(on(x), (1030,)).numpy(), centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5), atol=1e-5)
    assert np.array_equal(ops.rand((9000,), seed=5, device="sim:0").numpy(), ops.rand((9000,), seed=5).numpy())


# ---- pointwise ---------------------------------------------------------------------------------------------------------
def test_way_merges_axes_and_finds_the_transposed_one():
    flat = pointwise.way((4, 5, 6), ((30, 6, 1), (30, 6, 1)), 4)
    assert flat.single == (False,) and flat.n == 120
    number = pointwise.way((4, 5), ((0, 0), (5, 1), (5, 1)), 4)
    assert number.single == (True, False)
    row = pointwise.way((64, 48), ((48, 1), (0, 1), (48, 1)), 4)
    assert row.single is None and (row.rows, row.columns) == (64, 48) and row.steps == (48, 1, 0, 1, 48, 1)
    turned = pointwise.way((64, 48), ((1, 64), (48, 1)), 4)
    assert turned.block == (32, 32) and turned.steps == (1, 64, 48, 1)
    heads = pointwise.way((2, 8, 16, 64), ((8192, 64, 512, 1), (8192, 1024, 64, 1)), 2)
    assert len(heads.sizes) == 2 and heads.columns == 64


def test_formulas_over_strided_operands_equal_numpy():
    base = rng.standard_normal((6, 5, 7, 4)).astype(np.float32)
    seen = 0
    for order in itertools.permutations(range(4)):
        cut = (slice(None), slice(None, None, 2), slice(1, None), slice(None, None, -1))
        a, x = strided(base, order, cut)
        b, y = a[:, :, :1, :], x[:, :, :1, :]
        assert np.array_equal(ops.sub(x, y, alpha=2.0).numpy(), a - 2 * b)
        seen += 1
    assert seen == 24


def test_out_of_any_strides_and_exact_alias():
    a = rng.standard_normal((33, 65)).astype(np.float32)
    x, out = on(a), on(np.zeros((65, 33), np.float32)).T
    ops.exp(x, out=out)
    np.testing.assert_allclose(out.numpy(), np.exp(a.astype(np.float64)), rtol=1e-6)
    ops.neg(x, out=x)
    assert np.array_equal(x.numpy(), -a)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_equals_ml_dtypes_for_every_float16(name):
    kind = BY_NAME[name]
    a = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(all="ignore"):
        expected = a.astype(kind.numpy)
    got = ops.cast(on(a), dtype=kind).numpy()
    nan = np.isnan(expected.astype(np.float32))
    assert np.array_equal(np.isnan(got.astype(np.float32)), nan)
    assert np.array_equal(got.view(np.uint8)[~nan], expected.view(np.uint8)[~nan])
    codes = np.arange(256, dtype=np.uint8).view(kind.numpy)
    assert np.array_equal(ops.cast(on(codes), dtype="float32").numpy(), codes.astype(np.float32), equal_nan=True)


def test_casts_round_once():
    # just above the middle of two bfloat16: float32 would round to the middle first, then to even
    x = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, -(1 + 3 * 2.0**-8 - 2.0**-40), 1e300, np.nan, -np.inf, 1e-45])
    assert ops.cast(on(x), dtype="bfloat16").numpy().tolist()[:4] == [1 + 2.0**-7, 1.0, -(1 + 2.0**-7), np.inf]
    n = np.array([2**40 + 2**32 + 1, -(2**40 + 2**32 + 1), 2**40 + 2**32, 2**63 - 1, -(2**63), 5], np.int64)
    assert [float(v) for v in ops.cast(on(n), dtype="bfloat16").numpy()] == [2.0**40 + 2**33, -(2.0**40 + 2**33), 2.0**40, 2.0**63, -(2.0**63), 5.0]


def test_floats_beyond_an_integer_become_its_least_value():
    x = np.array([1e20, -1e20, np.nan, np.inf, 2.9, -2.9, 2147483648.0], np.float32)
    least = -(2**31)
    assert ops.cast(on(x), dtype="int32").numpy().tolist() == [least, least, least, least, 2, -2, least]
    assert np.array_equal(ops.cast(on(x), dtype="int64").numpy(), ops.cast(haian.asarray(x), dtype="int64").numpy())


def test_users_own_formula_may_name_operands_as_the_loop_names_its_variables():
    from haian.kernels.triton.pointwise import elementwise
    a, b = (rng.standard_normal((9, 5)).astype(np.float32) for _ in range(2))
    out = on(np.zeros((9, 5), np.float32))
    elementwise(_clash, on(a), on(b).T.T, out=out, rest=3.0)
    np.testing.assert_allclose(out.numpy(), a * 3 + b, rtol=1e-6)
    elementwise(_clash, on(a), on(np.ascontiguousarray(b.T)).T, out=out, rest=3.0)
    np.testing.assert_allclose(out.numpy(), a * 3 + b, rtol=1e-6)


def _clash(block, live, *, rest=1.0):
    return block * rest + live


def test_every_formula_has_a_kernel():
    assert set(pointwise.KERNELS) == {o.name for o in OPS.values() if o.formula is not None}
    assert pointwise.KERNELS.get("matmul") is None


# ---- reductions --------------------------------------------------------------------------------------------------------
def test_few_long_rows_are_cut_and_added_in_order():
    x = rng.standard_normal((2, 70001)).astype(np.float32)
    assert reduce._rows(x.shape, (70001, 1), (1,)).pieces > 1
    y = ops.sum(on(x), 1).numpy()
    assert np.abs(y - x.astype(np.float64).sum(1)).max() < 2e-3
    assert np.array_equal(y, ops.sum(on(x), 1).numpy()), "the same bits each time"
    whole = rng.integers(-2000, 2000, 70001).astype(np.float32)
    assert float(ops.sum(on(whole)).numpy()) == whole.astype(np.int64).sum()
    np.testing.assert_allclose(ops.var(on(x), dim=1).numpy(), x.astype(np.float64).var(1, ddof=1), rtol=1e-5)
    assert bool(ops.any(on(x == 9)).numpy()) is False and bool(ops.all(on(np.ones(70001, np.int8))).numpy()) is True


def test_constant_data_keeps_the_bound_of_a_sum():
    x = np.full(1 << 20, 0.1, np.float32)
    exact = float(x[0]) * x.size
    assert abs(float(ops.sum(on(x)).numpy()) - exact) <= 0.5 * np.sqrt(x.size) * 2.0**-24 * exact


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8", "int64"])
def test_first_of_ties_across_pieces(dtype):
    x = np.zeros((3, 60000), dtype)
    x[0, [41234, 59999]] = 7
    x[1] = np.iinfo(dtype).min if dtype != "float32" else -np.inf
    x[2, 17:] = 1
    assert ops.argmax(on(x), 1).numpy().tolist() == [41234, 0, 17]
    assert ops.argmin(on(x), 1).numpy().tolist() == x.argmin(1).tolist()
    if dtype == "float32":
        x[0, [50000, 55000]] = np.nan
        assert ops.argmax(on(x), 1).numpy().tolist()[0] == ops.argmin(on(x), 1).numpy().tolist()[0] == 50000


def test_axes_in_any_order_and_layout():
    a = rng.integers(-50, 50, (3, 5, 4, 7)).astype(np.int32)
    for over in ((0,), (1,), (3,), (0, 2), (1, 3), (0, 1, 3), (0, 1, 2, 3)):
        for view, x in (strided(a, (0, 1, 2, 3), (slice(None),) * 4), strided(a, (2, 0, 3, 1), (slice(None), slice(None, None, -1)))):
            assert np.array_equal(ops.sum(x, over).numpy(), view.astype(np.int64).sum(over))
            assert np.array_equal(ops.amax(x, over, True).numpy(), view.max(over, keepdims=True))
    turned = np.zeros((5, 3), np.int64)
    out = on(turned).T
    ops.sum(on(a), (2, 3), out=out)
    assert np.array_equal(out.numpy(), a.astype(np.int64).sum((2, 3)))


# ---- softmax and norms: rows past what a program keeps --------------------------------------------------------------------
def test_rows_longer_than_a_program_keeps():
    n = softmax.KEPT + 809
    x = rng.standard_normal((2, n)).astype(np.float32)
    x[1, :5000] = -np.inf
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(1, keepdims=True))
    y = ops.softmax(on(x), 1).numpy()
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=2e-6, atol=1e-12)
    np.testing.assert_allclose(ops.log_softmax(on(x[:1]), 1).numpy(), np.log(e[:1] / e[:1].sum(1, keepdims=True)), rtol=1e-5)
    x = rng.standard_normal((2, n)).astype(np.float32) + 100
    wide, w = x.astype(np.float64), rng.standard_normal(n).astype(np.float32)
    centred = wide - wide.mean(1, keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(ops.layer_norm(on(x), (n,), on(w)).numpy(), centred * rstd * w, atol=2e-4)
    rms = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-6) * w
    np.testing.assert_allclose(ops.rms_norm(on(x), on(w)).numpy(), rms, rtol=1e-5, atol=1e-6)


def test_gradient_of_weights_over_many_rows():
    rows, n = 1500, 70
    dy, x = (rng.standard_normal((rows, n)) for _ in range(2))
    mean, rstd = x.mean(1, keepdims=True), 1 / x.std(1, keepdims=True)
    normal = (x - mean) * rstd
    _, dw, db = ops.native_layer_norm_backward(on(dy), on(x), (n,), on(mean), on(rstd))
    np.testing.assert_allclose(dw.numpy(), (dy * normal).sum(0), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(db.numpy(), dy.sum(0), rtol=1e-11, atol=1e-11)


# ---- random --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_bits_equal_the_hosts(dtype):
    for n, seed, offset in ((5003, 2**63 - 1, 2**32), (1, -5, 0), (4099, 16, 2**40 + 16)):
        a = ops.rand((n,), seed=seed, offset=offset, dtype=dtype, device="sim:0").numpy()
        b = ops.rand((n,), seed=seed, offset=offset, dtype=dtype).numpy()
        assert np.array_equal(a.view(np.uint8), b.view(np.uint8))


def test_dropout_follows_the_logical_order():
    a = rng.standard_normal((31, 67)).astype(np.float32)
    x = on(np.ascontiguousarray(a.T)).T
    y, mask = ops.native_dropout(x, p=0.3, seed=9)
    expected, kept = ops.native_dropout(haian.asarray(a), p=0.3, seed=9)
    assert np.array_equal(mask.numpy(), kept.numpy()) and np.array_equal(y.numpy(), expected.numpy())
    assert np.array_equal(ops.dropout(x, p=0.3, seed=9).numpy(), y.numpy())


# ---- shape ---------------------------------------------------------------------------------------------------------------
def test_copies_between_layouts():
    a = rng.integers(0, 255, (3, 70, 5, 66)).astype(np.uint8)
    for order in itertools.permutations(range(4)):
        view, x = strided(a, order, (slice(None, None, -1), slice(1, None)))
        assert np.array_equal(ops.copy(x).numpy(), view)
    out = on(np.zeros((66, 70), np.float32)).T
    b = rng.standard_normal((70, 66)).astype(np.float32)
    ops.copy(on(b), out=out)
    assert np.array_equal(out.numpy(), b)


def test_cat_into_strided_parts():
    a, b = (rng.standard_normal((4, k, 3)).astype(np.float16) for k in (5, 2))
    assert np.array_equal(ops.cat([on(a).permute(0, 2, 1), on(b).permute(0, 2, 1)], 2).numpy(), np.concatenate([a, b], 1).transpose(0, 2, 1))


def test_bfloat16_full_and_arange():
    assert ops.full((3,), 0.1, dtype="bfloat16", device="sim:0").numpy()[0] == ml_dtypes.bfloat16(0.1)
    assert np.array_equal(ops.arange(5.0, -3000.0, -7.0, dtype="int64", device="sim:0").numpy(), np.arange(5, -3000, -7))
