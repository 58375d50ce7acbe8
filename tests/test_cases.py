"""conformance/cases.py, memory.py, levels.py: ids, coverage, what lies in memory, when a level is granted."""
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from haian.conformance import checks, memory, witness
from haian.conformance.cases import cases, count_cases, counts, digest, find, matching
from haian.conformance.levels import LEVELS, granted, included
from haian.conformance.target import FunctionTarget
from haian.hal.dtype import BY_NAME
from haian.hal.errors import ArgumentError
from haian.kernels.ops import OPS
from haian.kernels.ops.budget import Reduction
from haian.kernels.ops.record import FLOATS

CORE = cases("core")


def test_ids_are_unique_and_find_their_case():
    ids = [c.id for c in cases("full")]
    assert len(ids) == len(set(ids)) == sum(counts().values())
    for c in CORE[::97]:
        assert find(c.id) is c or find(c.id) == c
    with pytest.raises(ArgumentError, match="no case"):
        find("softmax/f32/nowhere")


def test_every_operator_is_covered():
    kinds: dict[str, Counter] = {name: Counter() for name in OPS}
    for c in CORE:
        kinds[c.op][c.variant or c.kind] += 1
    for name, op in OPS.items():
        have = kinds[name]
        assert count_cases(op) >= sum(have.values()) > 10, name
        assert have["bad"] == len(op.bad)
        if op.views:
            assert have["twice"] and have["shares"], (name, have)
        elif op.dynamic:
            assert have["twice"] and have["threads"], (name, have)
        else:
            assert have["twice"] and have["threads"] and have["out"] and have["out_shape"] and have["out_dtype"], (name, have)
        if op.tensors and not op.by_strides:
            flat = [i for s in op.samples for x in s.inputs if x is not None for i in (x if isinstance(x, tuple) else (x,))]
            assert set(have) >= {k for k in memory.LAYOUTS if any(memory.fits(i.shape, k) for i in flat)}, (name, have)
        assert {c.dtype for c in CORE if c.op == name} >= {d.name for d in op.dtypes}
        if op.grad is not None:
            assert have["gradient"], name
        if isinstance(op.budget, Reduction) and op.budget.probe and op.dtypes == FLOATS:
            assert have["probe"] >= len(op.dtypes), name


def test_shards_are_a_partition():
    parts = [{c.id for c in cases("core", ("softmax", "mm*"), (i, 3))} for i in (1, 2, 3)]
    assert set.union(*parts) == {c.id for c in cases("core", ("softmax", "mm*"))} and sum(map(len, parts)) == len(set.union(*parts))


def test_patterns_take_operators_ids_and_long_dtype_names():
    c = find("softmax/f32/prime")
    assert all(matching(c, (p,)) for p in ("softmax", "soft*", "softmax/*", "*/f32/*", "softmax/float32/*", c.id))
    assert not any(matching(c, (p,)) for p in ("log_softmax", "softmax/f16/*", "softmax/f32"))


def test_inputs_depend_on_id_and_seed_only():
    target = witness.numpy_target()

    def drawn(case_id, seed):
        c = find(case_id)
        run = checks.Run(c, OPS[c.op], BY_NAME[c.dtype], target, seed, 1.0)
        return run.draws()[0].tobytes()

    assert drawn("softmax/f32/prime", 3) == drawn("softmax/f32/prime", 3)
    assert drawn("softmax/f32/prime", 3) != drawn("softmax/f32/prime", 4)
    assert drawn("softmax/f32/prime", 3) != drawn("softmax/f32/prime/twice" if "softmax/f32/prime/twice" in {c.id for c in CORE}
                                                  else "log_softmax/f32/prime", 3)
    assert digest() == digest() and len(digest()) == 16


def test_every_seed_case_can_fail():
    """A target that takes every seed for 0 is refused by each of them."""
    class Deaf(FunctionTarget):
        def call(self, op, tensors, attrs, outs):
            return super().call(op, tensors, attrs | {"seed": 0}, outs)

    target = Deaf("deaf", witness.numpy_target().table)
    chosen = [c for c in CORE if c.kind == "seed"]
    assert {c.op for c in chosen} == {name for name, op in OPS.items() if op.random}
    for c in chosen:
        assert "seed is ignored" in checks.run_case(c, target).message, c.id


# ---- memory ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dt", ["float32", "bfloat16", "int64", "bool", "uint8"])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (3, 5), (2, 0, 4), (4, 3, 5)], ids=str)
def test_layouts_hold_the_values(shape, dt):
    n = int(np.prod(shape))
    x = (np.arange(n) % 2 if dt == "bool" else np.arange(n) % 100).reshape(shape).astype(BY_NAME[dt].numpy)
    for layout in ("contiguous", *memory.LAYOUTS):
        placed = memory.place(x, layout)
        view = placed.view
        if layout != "stride0" or not memory.fits(shape, layout):
            np.testing.assert_array_equal(np.asarray(view, np.float64), np.asarray(x, np.float64))
        elif n:
            assert 0 in placed.strides
        assert view.shape == shape and placed.untouched() and placed.guards_intact()
    if n > 1 and len(shape) > 1:
        assert memory.place(x, "negative").view.strides[-1] < 0 and not memory.place(x, "transposed").view.flags.c_contiguous
        assert memory.place(x, "offset").view.ctypes.data % 64 == BY_NAME[dt].itemsize % 64
        assert memory.place(x).view.ctypes.data % 64 == 0


def test_guards_see_a_byte_on_either_side_and_in_the_gaps():
    for layout, at in (("contiguous", memory.GUARD - 1), ("contiguous", memory.GUARD + 15), ("sliced", memory.GUARD + 1)):
        out = memory.place(np.zeros((3, 5), np.float32), layout, fill=True)
        out.view[...] = 1.0
        assert out.guards_intact()
        out.base[at] = 1.0
        assert not out.guards_intact()
    placed = memory.place(np.ones(4, np.float32))
    placed.view[0] = 1.0
    assert placed.untouched()  # the same value again
    placed.view[0] = 2.0
    assert not placed.untouched()


def test_special_values_meet_each_other():
    rng = np.random.default_rng(0)
    x, y = memory.sprinkle([np.zeros(99, np.float32), np.zeros(99, np.float32)], rng)
    assert (np.isnan(x) & np.isnan(y)).any() and (np.isinf(x) & (x == y)).any() and (np.isnan(x) ^ np.isnan(y)).any()
    one = memory.sprinkle([np.zeros(1, np.float16)], rng)[0]
    assert np.isnan(one).all()
    limits = memory.specials(BY_NAME["int8"])
    assert {-128, 127, 126, -1, 0} <= set(limits.tolist())


def test_probe_integers_stay_exact_in_any_order():
    rng = np.random.default_rng(1)
    for name, most in (("float32", 2**24), ("float16", 2**24), ("bfloat16", 2**24), ("float64", 2**53)):
        for n in (7, 300, 20011):
            x = memory.integers((n,), BY_NAME[name], n, rng).astype(np.float64)
            assert np.abs(x).sum() < most and (x == np.rint(x)).all() and x[0] != 0 and x[-1] != 0
            assert abs(x.sum()) < float(np.finfo(np.float16).max) or name != "float16"
    x = memory.integers((5000,), BY_NAME["float32"], 5000, rng).astype(np.float64)
    assert (np.abs(x) > 2**11).any()  # more significant bits than float16 and tf32 have


# ---- levels ---------------------------------------------------------------------------------------------------------------
def test_levels_include_the_ones_before():
    assert included("training") == ("core", "inference", "training")
    sizes = [len(cases(level)) for level in LEVELS]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    with pytest.raises(ValueError, match="core, inference"):
        included("gold")


def test_a_level_is_granted_by_its_lines_only():
    expected = {"core": 2, "inference": 1}

    def lines(**results):
        return [{"id": k, "level": "inference" if k == "c" else "core", "result": v, "preferred": k != "b"} for k, v in results.items()]

    assert granted(lines(a="pass", b="pass", c="pass"), expected)[0] == "full"
    assert granted(lines(a="pass", b="not-offered", c="pass"), expected)[0] == "full"
    assert granted(lines(a="not-offered", b="pass", c="pass"), expected) == ("", "core: a: not-offered")
    assert granted(lines(a="pass", b="pass", c="fail"), expected) == ("core", "inference: c: fail")
    assert granted(lines(a="pass", b="pass"), expected)[0] == "core"
    for bad in ("fail", "crash", "timeout", "xpass", "xfail"):
        assert granted(lines(a="pass", b=bad, c="pass"), expected)[0] == ""


def test_samples_just_past_a_size_run_once():
    for op in OPS.values():
        for s in (s for s in op.samples if s.cover):
            assert s.cover in ("once", "each") and s.level == "core", (op.name, s.name)
            mine = [c for c in CORE if c.op == op.name and c.sample == s.name]
            if s.cover == "once":
                assert [(c.kind, c.variant, c.dtype) for c in mine] == [("value", "", op.dtypes[0].name)], (op.name, s.name)
            else:
                assert {c.dtype for c in mine if c.kind == "value" and not c.variant} == {d.name for d in op.dtypes}, (op.name, s.name)


def test_what_a_chip_need_not_have_is_not_needed_for_a_level():
    needed = {c.id: c.preferred for c in CORE if c.op == "cast"}
    assert needed["cast/f32/past_tile_to_bfloat16"] and not needed["cast/f32/past_tile_to_float64"]
    assert not needed["cast/f32/codes_e5m2_to_float32"] and not needed["cast/f32/twice_to_bfloat16"]


def test_outputs_begin_unlike_what_is_expected():
    for dt in ("float32", "bfloat16", "float64", "int8", "int64", "uint8", "bool"):
        kind = BY_NAME[dt].numpy
        for expected in (np.array([0.0, 1.0, np.nan]), np.frombuffer(bytes([memory.FILL] * 24), kind).astype(np.float64)):
            if not BY_NAME[dt].is_floating:
                expected = np.nan_to_num(expected).astype(kind)
            start = memory.unlike(expected, kind)
            assert start.dtype == kind and start.shape == expected.shape
            if dt == "bool":
                assert (start.view(np.uint8) > 1).all()
            elif BY_NAME[dt].is_floating:
                assert (np.isnan(start.astype(np.float64)) != np.isnan(expected)).all()
            else:
                assert (start != expected).all()


def test_mixed_layouts_differ_from_one_input_to_the_next():
    for case_id in ("a", "b", "softmax_backward/f32/prime/mixed"):
        found = [memory.place(np.arange(7.0), memory.mixed(case_id, i)).strides for i in range(6)]
        assert all(a != b for a, b in zip(found, found[1:])), found


def test_hostile_nans_stay_nan_and_differ():
    for name in ("float32", "float16", "bfloat16", "float64"):
        values = memory.specials(BY_NAME[name])
        bits = values[np.isnan(values.astype(np.float64))].view(f"u{values.itemsize}")
        assert len(set(bits.tolist())) == 3 and (bits == (1 << 8 * values.itemsize - 1) - 1).any()
