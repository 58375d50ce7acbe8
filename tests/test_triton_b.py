"""Triton kernels of matmul, attention, index and loss on the simulated chip.

Every core sample of the records in one of its dtypes and layouts (conformance runs all of them), and the paths that those
shapes do not reach: several tiles and launches, 64-bit offsets, split keys, masks of the lowest number, indices far in.
Judged by the records' references, NumPy in float64, and torch.
"""
from __future__ import annotations

import os
import subprocess
import sys
import zlib
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("triton")

from haian.conformance.compare import judge
from haian.hal.driver import Capabilities
from haian.hal.errors import IndexOutOfBounds
from haian.kernels.dispatch import counters
from haian.kernels.ops import OPS, draw
from haian.kernels.triton import attention, index, loss, matmul, tiles
from haian.kernels.triton.launch import build

import haian

ops = haian.ops
NAMES = [n for n, o in OPS.items() if o.family in ("matmul", "attention", "index", "loss")]
LAYOUTS = ("plain", "transposed", "sliced", "reversed")


def on(a, dtype=None):
    return haian.asarray(np.asarray(a, dtype), device="sim:0")


def laid(a: np.ndarray, layout: str):
    """A device tensor of a's elements in another layout; NaN or -1 lies between the elements of slices."""
    if layout == "plain" or a.ndim == 0 or a.size == 0:
        return on(a)
    if layout == "transposed" and a.ndim > 1:
        return on(np.ascontiguousarray(a.swapaxes(-1, -2))).transpose(-1, -2)
    if layout == "reversed":
        return on(np.ascontiguousarray(np.flip(a)))[tuple(slice(None, None, -1) for _ in a.shape)]
    spaced = np.full(tuple(2 * n + 1 for n in a.shape), np.nan if a.dtype.kind in "fV" else -1).astype(a.dtype)
    every = tuple(slice(1, None, 2) for _ in a.shape)
    spaced[every] = a
    return on(spaced)[every]


def call(op, tensors, attrs, **more):
    """Results of a call as arrays; the host must not have computed them."""
    given = iter(tensors)
    values = {p.name: next(given) if p.is_tensor else attrs[p.name] for p in op.params}
    before = counters[op.name]
    y = getattr(ops, op.name)(*(values[p.name] for p in op.params if not p.keyword_only),
                              **{p.name: values[p.name] for p in op.params if p.keyword_only}, **more)
    assert counters[op.name] == before, f"{op.name} fell back to the host"
    return tuple(t.numpy() for t in y) if isinstance(y, tuple) else y.numpy()


def close(y, r, k=8.0):
    """y equals the float64 r within k units of its dtype's roundoff, of r's largest element."""
    u = {2: 2.0**-8 if y.dtype == ml_dtypes.bfloat16 else 2.0**-11, 4: 2.0**-24, 8: 2.0**-53}[y.dtype.itemsize]
    np.testing.assert_allclose(y.astype(np.float64), r, rtol=0, atol=k * u * max(1.0, np.abs(r[np.isfinite(r)]).max(initial=0.0)))


def rng_of(*key):
    return np.random.default_rng(zlib.crc32("/".join(map(str, key)).encode()))


# ---- the records' own samples --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_core_samples(name):
    op = OPS[name]
    samples = [s for s in op.samples if s.level == "core"]
    for i, s in enumerate(samples):
        case, layout = op.dtypes[i % len(op.dtypes)], LAYOUTS[i // 2 % len(LAYOUTS)]
        inputs = draw.inputs(s, case, rng_of(name, s.name))
        got = call(op, [None if x is None else laid(x, layout) for x in inputs], op.attributes(s.attrs))
        verdict = judge(op, inputs, op.attributes(s.attrs), got)
        assert verdict.ok, f"{s.name} {case} {layout}: {verdict.message}"


@pytest.mark.parametrize("name", NAMES)
def test_bad_inputs_are_refused_in_the_records_words(name):
    op = OPS[name]
    for b in op.bad:
        case = haian.hal.dtype.dtype(b.dtype)
        tensors = [None if i is None else on(draw.draw(i, case, rng_of(b.name))) for i in b.inputs]
        with pytest.raises(b.error) as raised:
            call(op, tensors, op.attributes(b.attrs))
        assert all(w in str(raised.value) for w in b.words), f"{b.name}: {raised.value}"


# ---- matmul --------------------------------------------------------------------------------------------------------------
def small_tiles(monkeypatch):
    monkeypatch.setattr(matmul, "TILES", {item: ((16, 32, 16, 4, 2),) for item in (2, 4, 8)})


def test_many_tiles_in_groups_and_launches(monkeypatch):
    """11 x 7 tiles: a last group of 3 rows; launches of 16 tiles, as on a device with a small grid."""
    small_tiles(monkeypatch)
    device = haian.device("sim:0")
    monkeypatch.setitem(device.__dict__, "capabilities", replace(device.capabilities, max_grid_product=16))
    rng = rng_of("tiles")
    a, b, x = rng.standard_normal((171, 37)), rng.standard_normal((37, 215)), rng.standard_normal((171, 1))
    y = ops.addmm(on(x, "f4"), on(a, "f4"), on(b, "f4"), beta=0.5, alpha=-2.0).numpy()
    close(y, -2 * a @ b + 0.5 * x, 32)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_offsets_of_64_bits(monkeypatch, dtype):
    monkeypatch.setattr(matmul, "FAR", 0)
    rng = rng_of("far", dtype)
    a, b = rng.standard_normal((3, 70, 50)).astype(dtype), rng.standard_normal((50, 65)).astype(dtype)
    close(ops.matmul(on(a), on(b)).numpy(), a.astype("f8") @ b.astype("f8"), 32)
    close(ops.mm(on(a[0, :1]), on(b)).numpy(), a[0, :1].astype("f8") @ b.astype("f8"), 32)


def test_float64_without_tl_dot(monkeypatch):
    monkeypatch.setattr(matmul, "dot_takes_float64", lambda: False)
    rng = rng_of("sums")
    a, b = rng.standard_normal((2, 33, 17)), rng.standard_normal((2, 17, 35))
    close(ops.bmm(on(a), on(b)).numpy(), a @ b, 32)


@pytest.mark.parametrize("left,right", [((2, 1, 3, 1, 5, 7), (1, 4, 3, 2, 7, 6)), ((2, 1, 3, 1, 2, 2, 3, 4), (1, 3, 1, 2, 1, 2, 4, 1)),
                                        ((3, 1, 1, 7), (2, 7, 5)), ((2, 3, 1, 7), (7, 5)), ((7,), (2, 3, 7, 5)), ((2, 3, 5, 7), (7,))])
def test_batches_broadcast(left, right):
    rng = rng_of(left, right)
    a, b = rng.standard_normal(left), rng.standard_normal(right)
    for first in (a, a.swapaxes(0, -2)) if a.ndim > 1 and left[0] == left[-2] else (a,):
        close(ops.matmul(on(first), on(b)).numpy(), np.matmul(first, b), 32)


def test_batch_permuted_out_of_place_and_into_a_view():
    rng = rng_of("view")
    a, b = rng.standard_normal((5, 2, 9)).astype("f4"), rng.standard_normal((2, 9, 4)).astype("f4")
    out = haian.asarray(np.full((4, 5, 2, 2), 7.0, "f4"), device="sim:0")
    ops.matmul(on(a).permute(1, 0, 2), on(b), out=out[:, :, 1, :].permute(2, 1, 0))
    got = out.numpy()
    close(got[:, :, 1].transpose(2, 1, 0), a.transpose(1, 0, 2).astype("f8") @ b, 32)
    assert (got[:, :, 0] == 7).all(), "elements beside the view stay"


def test_what_lies_behind_k_is_not_read():
    """K = 17 of rows of 32: NaN behind the last term must not come in, neither through tiles nor through vectors."""
    rng = rng_of("behind")
    a, b = np.full((20, 32), np.nan, "f4"), np.full((32, 40), np.nan, "f4")
    a[:, :17], b[:17, :33] = rng.standard_normal((20, 17)), rng.standard_normal((17, 33))
    r = a[:, :17].astype("f8") @ b[:17, :33]
    close(ops.mm(on(a)[:, :17], on(b)[:17, :33]).numpy(), r, 32)
    close(ops.mm(on(a)[:1, :17], on(b)[:17, :33]).numpy(), r[:1], 32)
    close(ops.mm(on(a)[:, :17], on(b)[:17, :1]).numpy(), r[:, :1], 32)


def test_reduced_precision_only_where_the_device_declares_it():
    facts = Capabilities(model="", total_bytes=0, max_alloc_bytes=0, multiprocessors=64)
    for kind, declared, expected in (("f4", "", "ieee"), ("f4", "tf32", "tf32"), ("f8", "tf32", "ieee"), ("f2", "tf32", None)):
        t = haian.empty((64, 64), np.dtype(kind))
        plan = matmul._plan(t, t, None, t, 1.0, 0.0, replace(facts, reduced_matmul=declared))
        assert plan.constants["PRECISION"] == expected


def test_tiles_shrink_until_they_fill_the_device():
    assert matmul.tile_for(2, 8192, 8192, 4096, 1, 132)[:2] == (128, 256)
    assert matmul.tile_for(2, 128, 4096, 4096, 1, 132)[:2] == (64, 64)
    assert matmul.tile_for(2, 5, 4096, 4096, 1, 132)[0] == 16
    assert matmul.tile_for(4, 3, 3, 3, 1, 132)[:3] == (16, 16, 16)
    assert tiles.stages_within(Capabilities("", 0, 0, max_shared_bytes=65536), 4, 24576) == 2


def test_compiled_for_a_real_target():
    """Loads of 16 bytes and the matrix unit, without a GPU."""
    names = {name: c for name, c in matmul.calls()}
    decode = names["matmul_decode_f16"]
    assert "ld.global.v4" in build(decode.kernel, ("cuda", 90, 32), decode.signature, decode.constants, decode.num_warps).asm["ptx"]
    batch = names["matmul_batch_f16"]
    assert "wgmma" in build(batch.kernel, ("cuda", 90, 32), batch.signature, batch.constants, batch.num_warps, batch.num_stages).asm["ptx"]


# ---- attention -----------------------------------------------------------------------------------------------------------
def qkv(rng, b, h, g, n_q, n_k, e, v=None, dtype="f4"):
    return (rng.standard_normal((b, h, n_q, e)).astype(dtype), rng.standard_normal((b, g, n_k, e)).astype(dtype),
            rng.standard_normal((b, g, n_k, v or e)).astype(dtype))


@pytest.mark.parametrize("e,v", [(80, 80), (192, 128), (257, 40), (40, 300)])
def test_wide_heads_against_torch(e, v):
    torch = pytest.importorskip("torch")
    q, k, value = qkv(rng_of(e, v), 1, 2, 2, 19, 37, e, v)
    r = torch.nn.functional.scaled_dot_product_attention(*(torch.tensor(t, dtype=torch.float64) for t in (q, k, value)), is_causal=True)
    close(call(OPS["scaled_dot_product_attention"], [on(q), on(k), on(value), None],
               {"dropout_p": 0.0, "is_causal": True, "scale": None, "enable_gqa": False}), r.numpy(), 32)


def test_gradient_against_torch():
    torch = pytest.importorskip("torch")
    rng = rng_of("gradient")
    q, k, v = qkv(rng, 2, 4, 2, 37, 45, 24)
    dy, mask = rng.standard_normal(q.shape).astype("f4"), rng.random((2, 1, 37, 45)) < 0.7
    leaves = [torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (q, k, v)]
    torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=torch.tensor(mask), enable_gqa=True).backward(torch.tensor(dy, dtype=torch.float64))
    tensors = [on(t) for t in (q, k, v)]
    out, lse = ops.scaled_dot_product_flash_attention(*tensors, on(mask))
    grads = [ops.scaled_dot_product_flash_attention_backward(on(dy), *tensors, out, lse, on(mask)) for _ in range(2)]
    for got, again, leaf in zip(*grads, leaves):
        close(got.numpy(), leaf.grad.numpy(), 64)
        assert np.array_equal(got.numpy(), again.numpy()), "the same bits every time"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_mask_of_the_lowest_number_is_no_minus_infinity(dtype):
    """Rows masked throughout by finfo.min are uniform, not empty: log2 e times it would be -inf."""
    kind = haian.hal.dtype.dtype(dtype).numpy
    rng = rng_of("lowest")
    q, k, v = (t.astype(kind) for t in qkv(rng, 1, 1, 1, 3, 40, 8))
    mask = np.zeros((3, 40), kind)
    mask[1] = ml_dtypes.finfo(kind).min
    inputs = (q, k, v, mask)
    y = ops.scaled_dot_product_attention(*(on(t) for t in inputs)).numpy()
    if dtype != "float16":  # whose lowest number, -65504, leaves float32 scores their differences
        close(y[0, 0, 1], v[0, 0].astype("f8").mean(0), 4)
    assert judge(OPS["scaled_dot_product_attention"], inputs, OPS["scaled_dot_product_attention"].attributes({}), y).ok


def test_split_keys_and_their_combination():
    """Decoding over 1500 keys is split.  A part that is masked throughout has no share, one part's scores are hundreds above
    the others', a query that sees nothing is 0."""
    rng = rng_of("split")
    q, k, v = qkv(rng, 1, 4, 2, 1, 1500, 16)
    k[:, :, 1000:1010] *= 60
    mask = np.ones((1, 4, 1, 1500), bool)
    mask[0, :2, :, :900] = False
    mask[0, 3] = False
    call_, second = attention._forward(on(q), on(k), on(v), on(mask), on(q), None, False, None, haian.device("sim:0").capabilities)
    assert second is not None and call_.tiles > 2
    op, attrs = OPS["scaled_dot_product_flash_attention"], {"is_causal": False, "scale": None}
    out, lse = call(op, [on(q), on(k), on(v), on(mask)], attrs)
    verdict = judge(op, (q, k, v, mask), attrs, (out, lse))
    assert verdict.ok, verdict.message
    assert lse.max() > 150 and np.isneginf(lse[0, 3]).all() and (out[0, 3] == 0).all()


def test_infinite_keys_stay_out_of_other_gradients():
    """Key 3 is infinite and every score of it -inf: its own gradients are 0, although rows of the tile lie behind the last query."""
    q, k, v = qkv(rng_of("infinite"), 1, 1, 1, 5, 7, 8)
    q[..., 0], k[..., 3, 0] = -1, np.inf
    op, attrs = OPS["scaled_dot_product_flash_attention_backward"], {"is_causal": False, "scale": None}
    inputs = (v[:, :, :5], q, k, v, v[:, :, :5], np.ones((1, 1, 5), "f4"), None)
    got = call(op, [None if t is None else on(t) for t in inputs], attrs)
    assert judge(op, inputs, attrs, got).ok and np.isfinite(got[1]).all() and np.isfinite(got[2]).all()


def test_attention_with_64_bit_offsets(monkeypatch):
    monkeypatch.setattr(attention, "FAR", 0)
    rng = rng_of("far attention")
    q, k, v = qkv(rng, 1, 2, 2, 33, 40, 8)
    mask = np.where(rng.random((33, 40)) < 0.3, -np.inf, 0).astype("f4")
    flash, back = OPS["scaled_dot_product_flash_attention"], OPS["scaled_dot_product_flash_attention_backward"]
    attrs = {"is_causal": True, "scale": 0.3}
    out, lse = call(flash, [on(t) for t in (q, k, v, mask)], attrs)
    assert judge(flash, (q, k, v, mask), attrs, (out, lse)).ok
    inputs = (rng.standard_normal(out.shape).astype("f4"), q, k, v, out, lse, mask)
    assert judge(back, inputs, attrs, call(back, [on(t) for t in inputs], attrs)).ok


def test_into_views_of_any_strides():
    q, k, v = qkv(rng_of("views"), 1, 2, 2, 5, 7, 8)
    out = haian.asarray(np.zeros((1, 2, 8, 5), "f4"), device="sim:0").transpose(2, 3)
    lse = haian.asarray(np.zeros((5, 2, 1), "f4"), device="sim:0").permute(2, 1, 0)
    op = OPS["scaled_dot_product_flash_attention"]
    got = call(op, [on(q), on(k), on(v), None], {"is_causal": False, "scale": None}, out=(out, lse))
    assert judge(op, (q, k, v, None), {"is_causal": False, "scale": None}, got).ok


def test_too_wide_heads_are_left_to_the_host():
    spec = haian.kernels.ops.record.Spec
    wide, fits, mask = (spec(s, haian.hal.dtype.dtype("float32")) for s in ((1, 1, 2, 513), (1, 1, 2, 512), (1, 1, 2, 4096)))
    when = attention.WHEN["scaled_dot_product_attention"]
    assert "513" in when((wide, wide, fits, None), {}, None)
    assert when((fits, fits, fits, mask), {}, None) == ""


@pytest.mark.parametrize("shared", [48 << 10, 64 << 10, 160 << 10, 227 << 10])
def test_blocks_within_shared_memory(shared):
    """q, and stages of keys, values and mask: what the tile keeps in shared memory, for every width."""
    facts = Capabilities("", 0, 0, max_shared_bytes=shared)
    for dtype in ("float16", "float32"):
        for width in (16, 64, 128, 256):
            q = haian.empty((1, 1, 1024, width), dtype)
            sizes, _, stages = attention._blocks(attention.FORWARD, q, width, 1024, 1024, False, facts)
            used = q.itemsize * width * (sizes["BLOCK_M"] + 2 * stages * sizes["BLOCK_N"])
            assert used <= shared and min(sizes.values()) >= 16


# ---- index ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_first_index_outside(dtype):
    """200,000 indices: more than 128 programs check in one round.  The earliest counts, whichever program finds it."""
    x = np.arange(200_000, dtype=dtype) % 1000
    assert index.first_outside(on(x), 1000) is None
    assert index.first_outside(on(x), 999) == (999, 999)
    assert index.first_outside(on(x), 2**40) is None, "no int32 is outside so large a size"
    x[[199_999, 131_073, 150_000]] = -1, 1000, -7
    assert index.first_outside(on(x), 1000) == (131_073, 1000)
    assert index.first_outside(on(x), 1000, ignore=1000) == (150_000, -7)
    assert index.first_outside(on(x[:0]), 1000) is None


@pytest.mark.parametrize("name,inputs,attrs", [
    ("embedding", (np.zeros((5, 3), "f4"), [1, 5]), {}),
    ("embedding_dense_backward", (np.zeros((2, 3), "f4"), [1, 5]), {"num_weights": 5, "padding_idx": 5}),
    ("gather", (np.zeros((5, 3), "f4"), [[1, 0, 5]]), {"dim": 0}),
    ("scatter_add", (np.zeros((5, 3), "f4"), [[1, 0, 5]], np.zeros((1, 3), "f4")), {"dim": 0}),
    ("index_select", (np.zeros((5, 3), "f4"), [1, 5]), {"dim": 0}),
    ("index_add", (np.zeros((5, 3), "f4"), [1, 5], np.zeros((2, 3), "f4")), {"dim": 0, "alpha": 1.0}),
    ("nll_loss", (np.zeros((2, 5), "f4"), [1, 5], None), {"reduction": "none", "ignore_index": -100})])
def test_nothing_is_written_before_every_index_is_known_to_be_right(name, inputs, attrs):
    op = OPS[name]
    tensors = [None if t is None else on(t) for t in inputs]
    specs = [None if t is None else haian.kernels.ops.record.Spec(t.shape, t.dtype) for t in tensors]
    out = on(np.full(op.infer(*specs, **attrs).shape, 7, "f4"))
    with pytest.raises(IndexOutOfBounds, match="5"):
        call(op, tensors, attrs, out=out)
    assert (out.numpy() == 7).all()


@pytest.mark.parametrize("far", [False, True])
def test_index_kernels_loop_when_the_grid_is_capped(monkeypatch, far):
    for module in (index, loss):
        monkeypatch.setattr(module, "capped", lambda device, blocks: min(blocks, 3))
        monkeypatch.setattr(module, "FAR", 0 if far else 2**31)
    rng = rng_of("capped", far)
    x, i = rng.standard_normal((70, 1100)).astype("f4"), rng.integers(0, 70, 90)
    assert np.array_equal(ops.embedding(on(x), on(i)).numpy(), x[i])
    assert np.array_equal(ops.gather(on(x), 0, on(np.broadcast_to(i[:, None], (90, 1100)).copy())).numpy(), x[i])
    source = rng.standard_normal((90, 1100)).astype("f4")
    r = x.astype("f8")
    np.add.at(r, i, 2.0 * source)
    close(ops.index_add(on(x), 0, on(i), on(source), alpha=2.0).numpy(), r, 16)
    each = rng.integers(0, 70, (9, 1100))
    r = x.astype("f8")
    np.add.at(r, (each, np.arange(1100)[None]), source[:9])
    close(ops.scatter_add(on(x), 0, on(each), on(source)).numpy(), r, 16)
    target = rng.integers(0, 1100, 70)
    op = OPS["cross_entropy"]
    attrs = op.attributes({"label_smoothing": 0.2})
    assert judge(op, (x, target, None), attrs, call(op, [on(x), on(target), None], attrs)).ok
    long = rng.standard_normal((5000, 3)).astype("f4")
    labels = rng.integers(0, 3, 5000)
    close(ops.nll_loss(on(long), on(labels)).numpy(), -long[np.arange(5000), labels].astype("f8").mean(), 16)
    dx = ops.nll_loss_backward(on(np.float32(1)), on(long), on(labels), None, "sum", -100, on(np.float32(1))).numpy()
    assert np.array_equal(dx, -np.eye(3, dtype="f4")[labels])


def test_16_bit_sums_are_kept_in_float32():
    """4097 ones in float16: a float16 sum stays at 2048."""
    ones, zero = np.ones((4097, 2), "f2"), np.zeros(4097, "i8")
    for y in (ops.index_add(on(np.zeros((3, 2), "f2")), 0, on(zero), on(ones)), ops.embedding_dense_backward(on(ones), on(zero), 3),
              ops.scatter_add(on(np.zeros((3, 2), "f2")), 0, on(np.zeros((4097, 2), "i8")), on(ones))):
        assert np.array_equal(y.numpy(), [[4096, 4096], [0, 0], [0, 0]])  # 4097 rounds to even


def test_integers_wrap():
    x, ones = np.array([100, 0], "i1"), np.full(500, 3, "i1")
    r = np.array([(100 + 1500 + 128) % 256 - 128, 0], "i1")
    i = np.zeros(500, "i8")
    assert np.array_equal(ops.scatter_add(on(x), 0, on(i), on(ones)).numpy(), r)
    assert np.array_equal(ops.index_add(on(x), 0, on(i), on(np.ones(500, "i1")), alpha=3.0).numpy(), r)
    big = np.array([2**62, 5], "i8")
    assert np.array_equal(ops.index_add(on(big), 0, on([0]), on([2**62]), alpha=2.0).numpy(), [2**62 - 2**63, 5])


def test_infinity_and_nan_stay_in_their_rows():
    dy = np.array([[np.inf, 1], [np.nan, 2], [3, 4]], "f4")
    y = ops.embedding_dense_backward(on(dy), on([2, 0, 4]), 5).numpy()
    assert np.array_equal(y, [[np.nan, 2], [0, 0], [np.inf, 1], [0, 0], [3, 4]], equal_nan=True)
    z = ops.scatter_add(on(np.zeros((5, 2), "f4")), 0, on(np.array([[2, 2], [0, 0], [4, 4]])), on(dy)).numpy()
    assert np.array_equal(z, y, equal_nan=True)


def test_rows_of_any_layout_and_bits_that_are_no_number():
    """embedding copies bits: NaN payloads and bools come through, from a transposed weight and sliced indices."""
    weight = np.array([[0x7FC12345, 1, 2], [0xFFC54321, 3, 4]], "u4").view("f4")
    got = ops.embedding(laid(weight, "transposed"), laid(np.array([1, 0, 1]), "sliced")).numpy()
    assert np.array_equal(got.view("u4"), weight.view("u4")[[1, 0, 1]])
    flags = np.array([[True, False], [False, False]])
    assert np.array_equal(ops.index_select(on(flags), 1, on(np.array(0, "i4"))).numpy(), flags[:, [0]])


# ---- loss ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_against_torch(reduction, smoothing):
    torch = pytest.importorskip("torch")
    rng = rng_of(reduction, smoothing)
    x, target = (rng.standard_normal((37, 2500)) * 3 + 1e3).astype("f4"), rng.integers(0, 2500, 37)
    target[5:9] = -100
    weight = rng.uniform(0.1, 2, 2500).astype("f4")
    r = torch.nn.functional.cross_entropy(torch.tensor(x, dtype=torch.float64), torch.tensor(target), torch.tensor(weight, dtype=torch.float64),
                                          reduction=reduction, label_smoothing=smoothing).numpy()
    close(ops.cross_entropy(on(x), on(target), on(weight), reduction, label_smoothing=smoothing).numpy(), r, 64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_infinite_logits(smoothing):
    inf = np.inf
    x = np.array([[0, -inf, 1], [-inf, -inf, -inf], [inf, 0, 1], [np.nan, 0, 1], [0, -inf, 1], [-inf, 2, -inf]], "f4")
    op, target = OPS["cross_entropy"], np.array([0, 0, 0, 1, 1, 1])
    attrs = op.attributes({"reduction": "none", "label_smoothing": smoothing})
    with np.errstate(all="ignore"):
        r = op.reference(x.astype("f8"), target, None, **attrs)
    np.testing.assert_allclose(call(op, [on(x), on(target), None], attrs), r, rtol=1e-6)


# ---- other chips ---------------------------------------------------------------------------------------------------------
_CHIP = """
import numpy as np, haian
haian.set_fallback_policy("error")
on = lambda a: haian.asarray(a, device="sim:0")
r = np.random.default_rng(1)
a, i = r.standard_normal((2, 40, 24)).astype("f4"), np.array([3, 0, 3], "i4")
o = haian.ops
np.testing.assert_allclose(o.matmul(on(a), on(a[0].T.copy())).numpy(), a @ a[0].T, atol=1e-4)
np.testing.assert_allclose(o.mm(on(a[0]), on(a[0, :1].T.copy())).numpy(), a[0] @ a[0, :1].T, atol=1e-4)
q = on(a[None])
out, lse = o.scaled_dot_product_flash_attention(q, q, q, is_causal=True)
o.scaled_dot_product_flash_attention_backward(q, q, q, q, out, lse, is_causal=True)
assert np.array_equal(o.embedding(on(a[0]), on(i)).numpy(), a[0][i])
assert np.array_equal(o.gather(on(a[0]), 0, on(np.ones((2, 24), "i4"))).numpy(), a[0][[1, 1]])
for y in (o.index_add(on(a[0]), 0, on(i), on(a[0][:3])), o.scatter_add(on(a[0]), 0, on(np.repeat(i[:, None], 24, 1)), on(a[0][:3].copy()))):
    want = a[0].astype("f8"); np.add.at(want, i, a[0][:3])
    np.testing.assert_allclose(y.numpy(), want, atol=1e-5)
print("right")
"""


@pytest.mark.parametrize("persona", ["like_ascend", "like_gcu300", "like_sunrise"])
def test_chips_without_float64_or_int64(persona):
    """float32 with int32 indices needs neither float64 nor 64-bit vectors, and no more than 65535 programs."""
    done = subprocess.run([sys.executable, "-c", _CHIP], env={**os.environ, "HAIAN_SIM_PERSONA": persona}, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "right", done.stderr[-2000:]
