"""Operators of language-model servers against one another: caches written in place and read by attention, experts from their parts,
the law of what is sampled.
"""
from __future__ import annotations

import numpy as np
import pytest

import haian
from haian import ops


def tensor(x, dtype=np.float32):
    return haian.asarray(np.ascontiguousarray(np.asarray(x, dtype)))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filled_cache(n, heads, width, per=4, seed=0):
    """Caches of keys and values whose n tokens lie in blocks out of order, the table, and the packed keys and values."""
    blocks = -(-n // per)
    table = np.random.default_rng(seed).permutation(blocks + 2)[:blocks].astype(np.int32)
    k, v = normal(n, heads, width, seed=seed + 1), normal(n, heads, width, seed=seed + 2)
    slots = table[np.arange(n) // per].astype(np.int64) * per + np.arange(n) % per
    caches = [tensor(np.full((blocks + 2, per, heads, width), np.nan)) for _ in range(2)]
    ops.reshape_and_cache(tensor(k), tensor(v), *caches, tensor(slots, np.int64), out=tuple(caches))
    return (*caches, table, k, v)


def test_a_quarter_turn():
    """cos 0, sin 1 turns (1, 0) into (0, 1), in halves or in neighbours."""
    table, one = tensor([[0.0, 0.0, 1.0, 1.0]]), tensor([[1, 2, 3, 4]])
    position = tensor([0], np.int64)
    halves, _ = ops.rotary_embedding(position, one, one, 4, table)
    pairs, _ = ops.rotary_embedding(position, one, one, 4, table, False)
    assert halves.tolist() == [[-3, -4, 1, 2]] and pairs.tolist() == [[-2, 1, -4, 3]]
    back, _ = ops.rope_backward(position, halves, halves, 4, table)
    assert back.tolist() == one.tolist()


def test_rotary_in_place():
    q, k, table = normal(5, 8), normal(5, 4, seed=1), normal(9, 4, seed=2)
    position = tensor([0, 8, 3, 3, 1], np.int64)
    want = ops.rotary_embedding(position, tensor(q), tensor(k), 4, tensor(table))
    given = tensor(q), tensor(k)
    ops.rotary_embedding(position, *given, 4, tensor(table), out=given)
    for got, right in zip(given, want, strict=True):
        np.testing.assert_array_equal(got.numpy(), right.numpy())
    same = tensor(q), tensor(normal(5, 8, seed=3))
    want = ops.rotary_embedding(position, *same, 4, tensor(table))
    ops.rotary_embedding(position, *same, 4, tensor(table), out=same[::-1])  # each written where the other was
    for got, right in zip(same[::-1], want, strict=True):
        np.testing.assert_array_equal(got.numpy(), right.numpy())


def test_caches_are_written_in_place():
    keys, values = tensor(np.zeros((3, 2, 1, 2))), tensor(np.ones((3, 2, 1, 2)))
    new = tensor(np.arange(8.0).reshape(4, 1, 2) + 10)
    got = ops.reshape_and_cache(new, new, keys, values, tensor([5, -1, 0, 5], np.int64), out=(keys, values))
    assert got[0] is keys and got[1] is values
    want = np.zeros((6, 2))
    want[0], want[5] = (14, 15), (16, 17)  # of two tokens in slot 5 the last one
    np.testing.assert_array_equal(keys.numpy().reshape(6, 2), want)
    assert values.numpy().reshape(6, 2)[[0, 5]].tolist() == [[14, 15], [16, 17]] and (values.numpy().reshape(6, 2)[1:5] == 1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_caches_exchanged_by_out(dtype):
    keys, values, new = (np.arange(8, dtype=dtype).reshape(2, 2, 1, 2) + s for s in (0, 100, 1000))
    slots = tensor([3], np.int64)
    a, b, one = tensor(keys, dtype), tensor(values, dtype), tensor(new[0, :1], dtype)
    want = [t.numpy() for t in ops.reshape_and_cache(one, one, a, b, slots)]
    ops.reshape_and_cache(one, one, a, b, slots, out=(b, a))
    np.testing.assert_array_equal(b.numpy(), want[0])
    np.testing.assert_array_equal(a.numpy(), want[1])


def test_a_source_that_is_the_result():
    rows = tensor(np.arange(6.0).reshape(3, 1, 2))
    ops.destindex_copy_kv(rows, tensor([2, 0, 1], np.int64), tensor(np.zeros((3, 1, 2))), out=rows)
    assert rows.numpy().reshape(3, 2).tolist() == [[2, 3], [4, 5], [0, 1]]


def test_paged_attention_is_attention_of_the_last_query():
    heads, shared, width, lengths = 6, 3, 8, (13, 4)
    made = [filled_cache(n, heads // shared, width, seed=10 * i) for i, n in enumerate(lengths)]
    q = normal(2, heads, width, seed=5)
    for i, (keys, values, table, k, v) in enumerate(made):
        n = lengths[i]
        for more, window in (({}, 0), ({"softcap": 1.5}, 0), ({}, 3)):
            paged = ops.paged_attention(tensor(q[i:i + 1]), keys, values, tensor(table[None], np.int32), tensor([n], np.int32), window=window, **more)
            packed = ops.attention_varlen(tensor(q[i:i + 1]), tensor(k), tensor(v), tensor([0, 1], np.int32), tensor([0, n], np.int32), is_causal=True,
                                          window_left=window - 1, **more)
            np.testing.assert_allclose(paged.numpy(), packed.numpy(), rtol=2e-5, atol=2e-6)


def test_latent_attention_is_paged_attention_over_one_head():
    heads, latent, rotary, n = 5, 12, 4, 21
    keys, _, table, _, _ = filled_cache(n, 1, latent + rotary, seed=3)
    q = normal(1, heads, latent + rotary, seed=4)
    cache = keys.numpy()[:, :, 0]
    got = ops.mla_decode(tensor(q[..., :latent]), tensor(q[..., latent:]), tensor(cache), tensor(table[None], np.int32), tensor([n], np.int32), scale=0.3)
    want = ops.paged_attention(tensor(q), keys, tensor(keys.numpy()[..., :latent]), tensor(table[None], np.int32), tensor([n], np.int32), scale=0.3)
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=2e-5, atol=2e-6)


def test_one_group_without_bias_is_plain_routing():
    x = tensor(normal(9, 12))
    plain = ops.topk_softmax(x, 3, True)
    grouped = ops.grouped_topk(x, topk=3, num_groups=1, topk_group=1)
    np.testing.assert_array_equal(plain[1].numpy(), grouped[1].numpy())
    np.testing.assert_allclose(plain[0].numpy(), grouped[0].numpy(), rtol=1e-6)


def test_a_layer_is_its_parts():
    """Rows sorted by expert, two products by group, the gate between them, weights, and the sum over experts."""
    tokens, d, inner, experts, k = 11, 16, 8, 5, 2
    x, w1, w2 = normal(tokens, d), normal(experts, 2 * inner, d, seed=1), normal(experts, d, inner, seed=2)
    weights, ids, _ = ops.topk_softmax(tensor(normal(tokens, experts, seed=3)), k, True)
    places, _, used = ops.moe_align_block_size(ids, experts, 1)
    order = places.numpy()[:used.item()]
    assert (np.sort(order) == np.arange(tokens * k)).all()
    flat = ids.numpy().reshape(-1)
    ends = tensor(np.cumsum(np.bincount(flat, minlength=experts)), np.int32)
    hidden = ops.grouped_mm(tensor(x[order // k]), tensor(w1.transpose(0, 2, 1)), ends)
    y = ops.grouped_mm(ops.swiglu(hidden), tensor(w2.transpose(0, 2, 1)), ends).numpy()
    back = np.empty_like(y)
    back[order] = y * weights.numpy().reshape(-1)[order, None]
    want = ops.moe_sum(tensor(back.reshape(tokens, k, d)))
    got = ops.fused_experts(tensor(x), tensor(w1), tensor(w2), weights, ids)
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=2e-4, atol=2e-4)


def test_samples_follow_the_law():
    """6000 rows of one distribution: what is kept is drawn as often as its probability says (chi-square), the rest never."""
    rows, logits = 6000, np.log(np.array([0.05, 0.3, 0.1, 0.25, 0.02, 0.28]))
    x = tensor(np.broadcast_to(logits, (rows, 6)))
    for k, p, kept in ((None, None, range(6)), (3, None, (1, 3, 5)), (None, 0.8, (1, 3, 5)), (4, 0.5, (1, 5)), (1, 0.1, (1,))):
        got = ops.top_k_top_p_sample(x, k and tensor([k] * rows, np.int64), p and tensor([p] * rows), seed=9).numpy()
        counts = np.bincount(got, minlength=6)
        assert set(np.flatnonzero(counts)) == set(kept), (k, p, counts)
        share = np.exp(logits)[list(kept)]
        expected = rows * share / share.sum()
        assert ((counts[list(kept)] - expected) ** 2 / expected).sum() < 35  # 5 degrees of freedom: p = 1.5e-6
    again = ops.top_k_top_p_sample(x, seed=9)
    np.testing.assert_array_equal(again.numpy(), ops.top_k_top_p_sample(x, seed=9).numpy())
    assert (again.numpy() != ops.top_k_top_p_sample(x, seed=9, offset=1).numpy()).any()
