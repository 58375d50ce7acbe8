"""Pointwise operators on the host: every record against its reference, measured errors of the elementary functions,
and that an element's bits depend on nothing but its inputs: not on layout, length, threads or where the result goes.
"""
from __future__ import annotations

import os
import subprocess
import sys
import zlib

import ml_dtypes
import numpy as np
import pytest
from haian.conformance.compare import judge, ulp
from haian.hal.dtype import BY_NAME
from haian.hal.errors import ArgumentError, DTypeError, ShapeError
from haian.kernels.ops import OPS, draw
from haian.kernels.ops.pointwise import CASTABLE
from scipy import special

import haian
from haian import _native

NAMES = [n for n, o in OPS.items() if o.family == "pointwise"]
F32 = BY_NAME["float32"]
BF16 = np.dtype(ml_dtypes.bfloat16)


def run(name, *arrays, **attrs):
    return getattr(haian.ops, name)(*(haian.asarray(a) for a in arrays), **attrs).numpy()


def rng_of(*key):
    return np.random.default_rng(zlib.crc32("/".join(map(str, key)).encode()))


def bits(a):
    return np.ascontiguousarray(a).view(f"u{a.dtype.itemsize}")


def small(s):
    return all(np.prod(i.shape) < 200_000 for i in s.inputs)


@pytest.mark.parametrize("name", NAMES)
def test_every_record(name):
    op = OPS[name]
    for case in op.dtypes:
        for s in filter(small, op.samples):
            x, attrs = draw.inputs(s, case, rng_of(name, case, s.name)), op.attributes(s.attrs)
            y = run(name, *x, **s.attrs)
            verdict = judge(op, x, attrs, y)
            assert verdict.ok, f"{case} {s.name}: {verdict.message}"


# name: (reference in float64, most ulp of float32 anywhere); the kernels' own polynomials are measured, not trusted
MEASURED = {"exp": (np.exp, 1.1), "log": (np.log, 0.9), "tanh": (np.tanh, 2.5), "sigmoid": (special.expit, 2.3),
            "erf": (special.erf, 1.9), "sin": (np.sin, 0.57), "cos": (np.cos, 0.57), "sqrt": (np.sqrt, 0.501),
            "rsqrt": (lambda x: 1 / np.sqrt(x), 1.51), "reciprocal": (lambda x: 1 / x, 0.501)}


def every_float(rng):
    """Half a million float32 spread over all exponents, and all around the places where branches would be."""
    edges = np.float32([0, 1e-45, 1.17549435e-38, 0.35, 0.7071, 1, 1.4142135, 4, 9, 10, 86, 87.3, 88.72283, 89, 103.9, 104, 1e6, 3.4e38, np.inf])
    near = (edges.view(np.uint32)[:, None].astype(np.int64) + np.arange(-300, 300)).clip(0, 0x7F800001).astype(np.uint32)
    x = np.concatenate([rng.integers(0, 2**31, 500_000, dtype=np.uint32), near.reshape(-1)]).view(np.float32)
    return np.concatenate([x, -x])


@pytest.mark.parametrize("name", MEASURED)
def test_error_of_elementary_functions(name):
    reference, most = MEASURED[name]
    x = every_float(rng_of(name))
    with np.errstate(all="ignore"):
        r = reference(x.astype(np.float64))
        rounded = r.astype(np.float32)
    y = run(name, x)
    finite = np.isfinite(rounded) & np.isfinite(y)
    assert np.array_equal(np.isnan(y), np.isnan(rounded))
    odd = ~finite & ~np.isnan(y)
    assert np.array_equal(y[odd], rounded[odd]), "infinities sit where the reference's sit"
    assert not (np.signbit(y) != np.signbit(rounded))[finite & (r == 0)].any(), "zeros keep their sign"
    error = np.abs(y[finite].astype(np.float64) - r[finite]) / ulp(r[finite], F32)
    assert error.max() <= most, f"{error.max():.3f} ulp at {x[finite][error.argmax()]!r}"


def test_pow_special_cases_are_c99s():
    special_values = np.float32([0.0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 3, -3, np.inf, -np.inf, np.nan, 1e-40, 3.4e38, 16777215, -16777215, 1.5])
    x, y = (a.reshape(-1) for a in np.meshgrid(special_values, special_values))
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    got = run("pow", x, y)
    assert np.array_equal(got, want, equal_nan=True)
    assert np.array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(want[~np.isnan(want)]))


@pytest.mark.parametrize("name", [n for n in NAMES if len(OPS[n].tensors) == 1 and n != "cast" and OPS[n].dtypes[0] is F32])
@pytest.mark.parametrize("case", ["float16", "bfloat16"])
def test_every_16_bit_float(name, case):
    op, x = OPS[name], np.arange(65536, dtype=np.uint16).view(BY_NAME[case].numpy)
    s = op.samples[0]
    verdict = judge(op, (x,), op.attributes(s.attrs), run(name, x, **s.attrs))
    assert verdict.ok, verdict.message


@pytest.mark.parametrize("name", ["add", "gelu", "where", "lerp", "lt", "silu_backward"])
@pytest.mark.parametrize("case", ["float32", "bfloat16", "float16", "float64"])
def test_layouts_give_the_same_bits(name, case):
    """Transposed, sliced, reversed and broadcast operands against the same values laid out in rows."""
    op, d, rng = OPS[name], BY_NAME[case].numpy, rng_of(name, case)

    def make(t, shape):
        return rng.random(shape) < 0.5 if t.name in ("condition", "mask") else rng.standard_normal(shape).astype(d)

    def rows(*x):
        return run(name, *(np.ascontiguousarray(np.broadcast_to(v, np.broadcast_shapes(*(w.shape for w in x)))) for v in x))

    for view, shape in ((lambda a: a.T, (70, 131)), (lambda a: a[::2, ::-1], (70, 131)), (lambda a: a[:, 3:20], (70, 131)),
                        (lambda a: a[::-3, 5::7], (70, 131)), (lambda a: a.transpose(2, 0, 1), (6, 9, 40)),
                        (lambda a: a.transpose(2, 1, 0), (37, 6, 65)), (lambda a: a[:, :1, 2:], (5, 3, 9))):
        for turned in range(len(op.tensors)):
            x = [make(t, shape) for t in op.tensors]
            x = [view(v) if k <= turned else np.ascontiguousarray(view(v)) for k, v in enumerate(x)]
            assert np.array_equal(bits(run(name, *x)), bits(rows(*x)))
    for shapes in (((1, 131), (70, 1), (70, 131)), ((131,), (70, 1), ()), ((5, 1, 7), (3, 1), (7,)), ((0, 4), (1,), (0, 1))):
        if len(op.tensors) > 1:
            x = [make(t, s) for t, s in zip(op.tensors, shapes)]
            assert np.array_equal(bits(run(name, *x)), bits(rows(*x)))


@pytest.mark.parametrize("name", ["exp", "tanh", "erf", "sigmoid", "log", "sin", "gelu", "pow", "addcmul", "add"])
def test_bits_do_not_depend_on_length_or_threads(name):
    op, rng = OPS[name], rng_of(name)
    x = [rng.standard_normal(60_013).astype(np.float32) * 30 for _ in op.tensors]
    if name == "sin":
        x[0][::97] *= 1e8  # beyond the vector form's bound: neighbours must not change
    whole = bits(run(name, *x))
    for lo, hi in ((0, 1), (1, 2), (7, 30), (15, 16), (100, 1125), (59_000, 60_013)):
        assert np.array_equal(bits(run(name, *(v[lo:hi] for v in x))), whole[lo:hi])
    before = haian.num_threads()
    try:
        for threads in (1, 2, 3):
            haian.set_num_threads(threads)
            assert np.array_equal(bits(run(name, *x)), whole)
    finally:
        haian.set_num_threads(before)


@pytest.mark.parametrize("case", ["float32", "bool", "bfloat16"])
def test_outputs_of_dram_size(case):
    """Past 16 MB results are stored around the caches: same bits, row by row, from contiguous, broadcast and transposed inputs."""
    d, name = BY_NAME[case].numpy, "logical_and" if case == "bool" else "add"
    shape = (4099, 2051 if case == "float32" else 4111)
    x, y = (rng_of(case, i).integers(0, 2, shape).astype(d) for i in (1, 2))
    pick = [0, 1, 2047, 4098]
    for a, b in ((x, y), (x, y[:1]), (x, y[:, :1]), (x.T, y.T), (np.ascontiguousarray(x.T), y.T), (x[::-1], y)):
        whole = run(name, a, b)
        for r in pick:
            if r < whole.shape[0]:
                assert np.array_equal(bits(whole[r]), bits(run(name, np.ascontiguousarray(np.broadcast_to(a, whole.shape)[r]),
                                                               np.ascontiguousarray(np.broadcast_to(b, whole.shape)[r]))))


@pytest.mark.parametrize("n", [5, 4099, 5_000_011])
@pytest.mark.parametrize("case", ["float32", "float16", "bfloat16", "int64"])
def test_output_may_be_an_input(case, n):
    d = BY_NAME[case].numpy
    a, b = (rng_of(n, i).integers(-9, 9, n).astype(d) for i in (1, 2))
    want = bits(run("sub", a, b))
    for which in (0, 1):
        x, y = haian.asarray(a.copy()), haian.asarray(b.copy())
        out = (x, y)[which]
        assert haian.ops.sub(x, y, out=out) is out
        assert np.array_equal(bits(out.numpy()), want)
    t = haian.asarray(np.stack([a, a], 1))  # strided, in place
    column = t.transpose(0, 1)
    haian.ops.neg(column, out=column)
    assert np.array_equal(t.numpy(), np.stack([-a, -a], 1))


def test_integers_wrap():
    i8, u8 = np.int8([-128, 127, 3, -1, 0]), np.uint8([255, 0, 3, 128, 7])
    with np.errstate(all="ignore"):
        for x in (i8, u8, i8.astype(np.int64) << 56):
            for name, fn in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
                assert np.array_equal(run(name, x, x[::-1].copy()), fn(x, x[::-1]))
            assert np.array_equal(run("neg", x), np.negative(x)) and np.array_equal(run("abs", x), np.abs(x))
    assert run("pow", np.int32([2, -1, -1, 0, 3, 7]), np.int32([-1, -3, -4, -2, 40, 0])).tolist() == [
        0, -1, 1, 0, (3**40 + 2**31) % 2**32 - 2**31, 1]


def test_bools_follow_aten():
    t, f = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert run("add", t, f).tolist() == [True, True, True, False] and run("mul", t, f).tolist() == [True, False, False, False]
    assert run("bitwise_not", t).tolist() == [False, False, True, True] and run("bitwise_xor", t, f).tolist() == [False, True, True, False]
    assert run("logical_not", np.float32([0, -0.0, np.nan, 2])).tolist() == [True, True, False, False]
    for name in ("sub", "neg", "abs", "relu"):
        with pytest.raises(DTypeError, match="bool"):
            run(name, *[t] * len(OPS[name].tensors))


# ---- cast ------------------------------------------------------------------------------------------------------------
def castable_values(d):
    rng = rng_of(d)
    if d.kind == "b":
        return np.array([True, False, True])
    if d.itemsize <= 2:
        return np.arange(2 ** (8 * d.itemsize), dtype=f"u{d.itemsize}").view(d.numpy)
    if d.kind == "f":
        spread = rng.standard_normal(3000) * 10.0 ** rng.integers(-9, 20, 3000)
        ties = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 2.0**-24, 2.0**-25, 448, 464, 464.1, 57344, 61440, 2.5, -1.5,
                2.0**31, -(2.0**31), 2.0**63, -(2.0**63), 2.0**64, 1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-8 + 2.0**-30]
        return np.concatenate([spread, ties]).astype(d.numpy)
    info = np.iinfo(d.numpy)
    shrunk = rng.integers(info.min, info.max, 3000, dtype=d.numpy, endpoint=True) >> rng.integers(0, 8 * d.itemsize, 3000).astype(d.numpy)
    return np.concatenate([shrunk, np.array([info.min, info.max, 0, 1, info.max // 2 + 1], d.numpy)])


def odd(x):
    """float32 nearest x with the last bit set where inexact: a second rounding to 16 or 8 bits is then the only one."""
    exact = [int(v) for v in x] if x.dtype.kind in "iu" else None
    if exact is not None:
        shift = [max(abs(v).bit_length() - 24, 0) for v in exact]
        kept = [(abs(v) >> s) | bool(abs(v) & ((1 << s) - 1)) for v, s in zip(exact, shift)]
        return np.array([(-1.0 if v < 0 else 1.0) * k * 2.0**s for v, k, s in zip(exact, kept, shift)], np.float32)
    f = x.astype(np.float32)
    away, inexact = np.abs(f.astype(np.float64)) > np.abs(x), (f.astype(np.float64) != x) & ~np.isnan(x)
    u = f.view(np.uint32) - (away & inexact)
    return np.where(inexact, u | 1, u).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("source", CASTABLE, ids=str)
def test_cast_of_every_pair(source):
    x = castable_values(source)
    for target in CASTABLE:
        y = run("cast", x, dtype=target)
        with np.errstate(all="ignore"):
            if not target.is_floating:
                want = OPS["cast"].reference(x.astype(np.float64) if source.is_floating else x, dtype=target)
            elif target.itemsize <= 2 and source.itemsize >= 4:
                want = (odd(x.astype(np.float64)) if source.is_floating else odd(x)).astype(target.numpy)
            else:
                want = x.astype(target.numpy)
        if target.is_floating:
            y, want = y.astype(np.float64), want.astype(np.float64)
            assert np.array_equal(np.signbit(y[y == y]), np.signbit(want[want == want])), target
        assert np.array_equal(y, want, equal_nan=target.is_floating), (target, x[(y != want) & (y == y)][:4])


# ---- refusals --------------------------------------------------------------------------------------------------------
def test_refusals_name_operator_both_sides_and_next_step():
    one, i = np.ones((3, 4), np.float32), np.ones((3, 4), np.int32)
    for error, words, call in (
        (ShapeError, r"add: .*\(3, 4\).*\(5,\)", lambda: run("add", one, np.ones(5, np.float32))),
        (DTypeError, "add: .*float32 and int32.*cast", lambda: run("add", one, i)),
        (DTypeError, "div: .*int32.*accepts float32", lambda: run("div", i, i)),
        (DTypeError, "where: condition has dtype float32; accepts bool", lambda: run("where", one, one, one)),
        (ArgumentError, "add: alpha is 0.5 .*int32.*integer", lambda: run("add", i, i, alpha=0.5)),
        (ArgumentError, "masked_fill: value is 300.* uint8.*255", lambda: run("masked_fill", np.zeros(3, np.uint8), np.ones(3, bool), value=300.0)),
        (DTypeError, "cast: dtype is complex64", lambda: run("cast", one, dtype=haian.complex64)),
    ):
        with pytest.raises(error, match=words):
            call()


def test_a_refused_call_writes_nothing():
    out = haian.asarray(np.full((3, 4), 7, np.float32))
    for bad in (np.ones((3, 5), np.float32), np.ones((4,), np.int32)):
        with pytest.raises((ShapeError, DTypeError)):
            haian.ops.add(haian.asarray(np.ones((3, 4), np.float32)), haian.asarray(bad), out=out)
    assert (out.numpy() == 7).all()


# ---- every instruction set of this machine ---------------------------------------------------------------------------
OTHER = """
import sys, zlib, numpy as np, haian
from haian.conformance.compare import judge
from haian.kernels.ops import OPS, draw
tried = 0
for name, op in OPS.items():
    if op.family == "pointwise":
        for case in op.dtypes:
            for s in op.samples:
                if s.name in ("past_tile", "domain", "row", "transposed", "past_tile_to_bfloat16", "past_tile_to_int8"):
                    x, attrs = draw.inputs(s, case, np.random.default_rng(zlib.crc32(name.encode()))), op.attributes(s.attrs)
                    verdict = judge(op, x, attrs, getattr(haian.ops, name)(*map(haian.asarray, x), **s.attrs).numpy())
                    assert verdict.ok, (name, str(case), s.name, verdict.message)
                    tried += 1
print(tried)
"""


@pytest.mark.parametrize("isa", ["base", "avx2"])
def test_other_instruction_sets(isa):
    if isa not in _native.isa_list().split(","):
        pytest.skip(f"this processor has no {isa}")
    done = subprocess.run([sys.executable, "-c", OTHER], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "HAIAN_CPU_ISA": isa})
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 500
