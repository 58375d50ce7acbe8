"""Kernels on the simulated chip: results against float64 references, and what it must refuse.

Every kernel is compiled by Triton for the target ``haian_sim`` and launched through SimDriver.  Not here: streams,
events and handles (test_sim_driver.py).
"""
from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from haian.adapters.sim import SimDriver, execute, numeric
from haian.hal.driver import Copy, Launch
from haian.hal.errors import ArgumentError, InternalError, OutOfRange, Unsupported

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

TRITON_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64", "float8_e4m3fn": "fp8e4nv",
                "float8_e5m2": "fp8e5"}  # fmt: skip
BF16 = np.dtype(ml_dtypes.bfloat16)
# Triton 3.0 prints fp8e4nv as f8E4M3FNUZ, has no gather, no bfloat16 atomics, and a sort that multiplies by 0 (inf -> NaN)
since_3_1 = pytest.mark.skipif(tuple(map(int, triton.__version__.split(".")[:2])) < (3, 1), reason="Triton 3.1 or newer")
FP8 = pytest.param(ml_dtypes.float8_e4m3fn, marks=since_3_1)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture(scope="module")
def driver():
    return SimDriver(devices=1)


def type_of(value) -> str:
    if isinstance(value, np.ndarray):
        name = str(value.dtype)
        return "*" + TRITON_TYPES.get(name, name.replace("uint", "u").replace("int", "i").replace("bool", "i1"))
    return "fp32" if isinstance(value, float) else "i64" if abs(value) >= 2**31 else "i32"


def compiled(kernel, types, constants, **options):
    from haian.adapters.sim.triton_backend import TARGET, register
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    register()
    names = kernel.arg_names
    free = iter(types)
    signature = {n: "constexpr" if n in constants else next(free) for n in names}
    try:
        source = ASTSource(fn=kernel, signature=signature, constexprs={(names.index(n),): v for n, v in constants.items()})
    except TypeError:  # before Triton 3.3
        types_only = {n: t for n, t in signature.items() if t != "constexpr"}
        source = ASTSource(fn=kernel, signature=types_only, constants=constants)
    return triton.compile(source, target=GPUTarget(*TARGET), options=options)


def to_device(driver, array: np.ndarray) -> int:
    array = np.ascontiguousarray(array)
    address = driver.alloc(0, max(1, array.nbytes))
    driver.copy(0, Copy("h2d", address, array.ctypes.data, array.nbytes))
    return address


def from_device(driver, address: int, like: np.ndarray) -> np.ndarray:
    out = np.empty(like.shape, like.dtype)
    driver.copy(0, Copy("d2h", out.ctypes.data, address, out.nbytes))
    return out


def run_image(driver, image: bytes, name: str, grid, *args):
    """Launch; returns what the arrays among args hold afterwards."""
    addresses = [to_device(driver, a) if isinstance(a, np.ndarray) else None for a in args]
    module = driver.module_load(0, image, "ttir")
    values = [(type_of(a), a if d is None else d) for a, d in zip(args, addresses)]
    try:
        driver.launch(0, Launch(driver.get_kernel(module, name), (*grid, 1, 1)[:3], 1, 0, values))
        return [from_device(driver, d, a) for a, d in zip(args, addresses) if d is not None]
    finally:
        driver.module_unload(module)
        for address in addresses:
            if address is not None:
                driver.free(0, address)


def run(driver, kernel, grid, *args, options=None, **constants):
    binary = compiled(kernel, [type_of(a) for a in args], constants, **(options or {}))
    return run_image(driver, binary.asm["simbin"], binary.metadata.name, grid, *args)


def rng():
    return np.random.default_rng(7)


# ---- pointwise -------------------------------------------------------------------------------------------------------------
@triton.jit
def add(x, y, o, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    tl.store(o + i, tl.load(x + i, mask=m) + tl.load(y + i, mask=m), mask=m)


@pytest.mark.parametrize("n", [1, 2, 1023, 1025, 100_003])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16, np.int32, np.int8])
def test_add(driver, n, dtype):
    x, y = (rng().standard_normal((2, n)) * 100).astype(dtype)
    got = run(driver, add, (math.ceil(n / 1024),), x, y, np.zeros(n, dtype), n, BLOCK=1024)[2]
    np.testing.assert_array_equal(got, x + y)  # ml_dtypes and NumPy round one addition correctly


def test_bf16_is_rounded_to_even_after_each_operation(driver):
    x = np.array([1.0, 1.0, -1.0, 3.0], BF16)
    y = np.array([2.0**-8, 3 * 2.0**-8, -(2.0**-8), 2.0**-7], BF16)  # ties: 1 + 2^-8 -> 1, 1 + 3 * 2^-8 -> 1 + 2^-6
    got = run(driver, add, (1,), x, y, np.zeros(4, BF16), 4, BLOCK=4)[2]
    np.testing.assert_array_equal(got.astype(float), [1.0, 1.015625, -1.0, 3.0])


@triton.jit
def mathematics(x, o, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=1.0)
    tl.store(o + i, tl.exp(v), mask=i < n)
    tl.store(o + n + i, tl.log(tl.abs(v)), mask=i < n)
    tl.store(o + 2 * n + i, tl.erf(v), mask=i < n)
    tl.store(o + 3 * n + i, tl.rsqrt(tl.abs(v)), mask=i < n)
    tl.store(o + 4 * n + i, tl.sin(v), mask=i < n)
    tl.store(o + 5 * n + i, tl.fma(v, v, -1.0), mask=i < n)
    tl.store(o + 6 * n + i, tl.exp2(v), mask=i < n)
    tl.store(o + 7 * n + i, tl.floor(v), mask=i < n)
    tl.store(o + 8 * n + i, tl.div_rn(1.0, v), mask=i < n)
    tl.store(o + 9 * n + i, tl.sqrt_rn(tl.abs(v)), mask=i < n)
    tl.store(o + 10 * n + i, tl.clamp(v, -0.5, 0.5), mask=i < n)


def test_math_is_correctly_rounded(driver):
    special = pytest.importorskip("scipy.special")
    x = np.concatenate([rng().standard_normal(997) * 4, [1e-30, -1e-8, 0.0]]).astype(np.float32)
    got = run(driver, mathematics, (1,), x, np.zeros((11, 1000), np.float32), 1000, BLOCK=1024)[1]
    w = x.astype(np.float64)
    with np.errstate(divide="ignore"):
        want = np.stack([np.exp(w), np.log(abs(w)), special.erf(w), 1 / np.sqrt(abs(w)), np.sin(w), w * w - 1, np.exp2(w),
                         np.floor(w), 1 / w, np.sqrt(abs(w)), np.clip(w, -0.5, 0.5)])
        np.testing.assert_array_equal(got, want.astype(np.float32))


@triton.jit
def extremes(x, y, o, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    b = tl.load(y + i)
    tl.store(o + i, tl.maximum(a, b))
    tl.store(o + n + i, tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL))
    tl.store(o + 2 * n + i, tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL))


def test_nan_in_maximum(driver):
    x, y = np.array([1, np.nan, np.nan, 4], np.float32), np.array([np.nan, 2, np.nan, -4], np.float32)
    got = run(driver, extremes, (1,), x, y, np.zeros((3, 4), np.float32), 4, BLOCK=4)[2]
    np.testing.assert_array_equal(got, [np.fmax(x, y), np.maximum(x, y), np.minimum(x, y)])


@triton.jit
def integers(x, y, o, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    b = tl.load(y + i)
    tl.store(o + i, a * b + a - b)
    tl.store(o + n + i, a // b)
    tl.store(o + 2 * n + i, a % b)
    tl.store(o + 3 * n + i, (a >> 3) ^ (a << 2))
    tl.store(o + 4 * n + i, tl.where(a < b, a, b) & 0x55)
    tl.store(o + 5 * n + i, (a.to(tl.float32) * 3.7).to(o.dtype.element_ty))


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint8", "uint32"])
def test_integers_wrap_and_divide_toward_zero(driver, dtype):
    info = np.iinfo(dtype)
    a = rng().integers(info.min, info.max, 256, dtype=dtype, endpoint=True)
    b = rng().integers(1, 100, 256).astype(dtype)
    if info.min < 0:
        b[::2] *= -1
    got = run(driver, integers, (1,), a, b, np.zeros((6, 256), dtype), 256, BLOCK=256)[2]
    wide_a, wide_b = a.astype(object), b.astype(object)
    quotient = np.array([abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1) for p, q in zip(wide_a, wide_b)], object)
    wrap = lambda v: np.array([(int(n) - info.min) % (info.max - info.min + 1) + info.min for n in v], dtype)  # noqa: E731
    np.testing.assert_array_equal(got[0], wrap(wide_a * wide_b + wide_a - wide_b))
    np.testing.assert_array_equal(got[1], wrap(quotient))
    np.testing.assert_array_equal(got[2], wrap(wide_a - quotient * wide_b))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got[3], (a >> 3) ^ (a << 2))
    np.testing.assert_array_equal(got[4], np.minimum(a, b) & 0x55)


@triton.jit
def cast(x, o, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(o + i, tl.load(x + i, mask=i < n).to(o.dtype.element_ty), mask=i < n)


@pytest.mark.parametrize("dtype", [FP8, ml_dtypes.float8_e5m2, BF16, np.float16])
def test_narrow_casts(driver, dtype):
    every = np.arange(256, dtype=np.uint8).view(dtype) if np.dtype(dtype).itemsize == 1 else \
        np.arange(65536, dtype=np.uint16).view(dtype)
    x = np.concatenate([rng().standard_normal(5000) * 10, [1e-8, -0.0, 0.0]]).astype(np.float32)
    got = run(driver, cast, (math.ceil(x.size / 512),), x, np.zeros(x.size, dtype), x.size, BLOCK=512)[1]
    np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), x.astype(dtype).view(f"u{got.itemsize}"))
    back = run(driver, cast, (math.ceil(every.size / 512),), every, np.zeros(every.size, np.float32), every.size, BLOCK=512)
    np.testing.assert_array_equal(back[1], every.astype(np.float32))


@pytest.mark.parametrize("dtype", [FP8, BF16])
def test_float64_is_rounded_once(driver, dtype):
    bits = 4 if np.dtype(dtype).itemsize == 1 else 8
    x = np.array([1 + 2.0**-bits + 2.0**-40, 1 + 3 * 2.0**-bits - 2.0**-40, 1.5])  # just beside ties: float32 sits on them
    got = run(driver, cast, (1,), x, np.zeros(3, dtype), 3, BLOCK=4)[1]
    np.testing.assert_array_equal(got.astype(float), [1 + 2.0 ** (1 - bits), 1 + 2.0 ** (1 - bits), 1.5])


def test_float_to_int_saturates(driver):
    x = np.array([3e9, -3e9, np.nan, np.inf, -1.9, 1.9], np.float32)
    got = run(driver, cast, (1,), x, np.zeros(6, np.int32), 6, BLOCK=8)[1]
    np.testing.assert_array_equal(got, [2**31 - 1, -(2**31), 0, 2**31 - 1, -1, 1])


# ---- rows ------------------------------------------------------------------------------------------------------------------
@triton.jit
def softmax(x, o, stride, n, BLOCK: tl.constexpr):
    r = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    m = c < n
    v = tl.load(x + r * stride + c, mask=m, other=-float("inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(o + r * stride + c, e / tl.sum(e, 0), mask=m)


@pytest.mark.parametrize("rows,n", [(1, 1), (3, 7), (256, 500), (5, 513)])
def test_softmax(driver, rows, n):
    x = rng().standard_normal((rows, n)).astype(np.float32)
    got = run(driver, softmax, (rows,), x, np.zeros_like(x), n, n, BLOCK=triton.next_power_of_2(n))[1]
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(got, e / e.sum(1, keepdims=True), rtol=1e-6)


@triton.jit
def layer_norm(x, w, b, o, n, eps, BLOCK: tl.constexpr):
    r = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    m = c < n
    v = tl.load(x + r * n + c, mask=m, other=0.0).to(tl.float32)
    mean = tl.sum(v, 0) / n
    d = tl.where(m, v - mean, 0.0)
    y = d * tl.rsqrt(tl.sum(d * d, 0) / n + eps) * tl.load(w + c, mask=m) + tl.load(b + c, mask=m)
    tl.store(o + r * n + c, y, mask=m)


def test_layer_norm(driver):
    x = rng().standard_normal((31, 257)).astype(np.float32)
    w, b = rng().standard_normal((2, 257)).astype(np.float32)
    got = run(driver, layer_norm, (31,), x, w, b, np.zeros_like(x), 257, 1e-5, BLOCK=512)[3]
    mean, var = x.mean(1, keepdims=True, dtype="d"), x.var(1, keepdims=True, dtype="d")
    np.testing.assert_allclose(got, (x - mean) / np.sqrt(var + 1e-5) * w + b, atol=3e-6)


@triton.jit
def argmax(x, o, v, n, BLOCK: tl.constexpr):
    r = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    best, at = tl.max(tl.load(x + r * n + c, mask=c < n, other=-float("inf")), 0, return_indices=True)
    tl.store(o + r, at)
    tl.store(v + r, best)


def test_argmax_takes_the_first_of_equals(driver):
    x = rng().integers(0, 10, (17, 61)).astype(np.float32)
    _, at, best = run(driver, argmax, (17,), x, np.zeros(17, np.int32), np.zeros(17, np.float32), 61, BLOCK=64)
    np.testing.assert_array_equal(at, x.argmax(1))
    np.testing.assert_array_equal(best, x.max(1))


@triton.jit
def _linear(a1, b1, a2, b2):
    return a1 * a2, b1 * a2 + b2


@triton.jit
def recurrence(a, x, o, n, BLOCK: tl.constexpr, REVERSE: tl.constexpr):
    r = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    va = tl.load(a + r * n + i, mask=i < n, other=1.0)
    vx = tl.load(x + r * n + i, mask=i < n, other=0.0)
    _, h = tl.associative_scan((va, vx), 0, _linear, reverse=REVERSE)
    tl.store(o + r * n + i, h, mask=i < n)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n", [1, 2, 100, 128])
def test_scan_of_pairs(driver, n, reverse):
    a, x = rng().random((3, n)).astype(np.float32), rng().standard_normal((3, n)).astype(np.float32)
    got = run(driver, recurrence, (3,), a, x, np.zeros_like(x), n, BLOCK=triton.next_power_of_2(n), REVERSE=reverse)[2]
    want, h = np.zeros((3, n)), np.zeros(3)
    for k in reversed(range(n)) if reverse else range(n):
        h = h * a[:, k].astype(np.float64) + x[:, k]
        want[:, k] = h
    np.testing.assert_allclose(got, want, atol=1e-5)


@triton.jit
def cumulative(x, o, p, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0)
    tl.store(o + i, tl.cumsum(v, 0), mask=i < n)
    tl.store(p + i, tl.cumprod(v, 0), mask=i < n)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_cumulative(driver, dtype):
    x = rng().integers(-3, 4, 100).astype(dtype)
    x[x == 0] = 1
    x[5:] = np.sign(x[5:])
    _, s, p = run(driver, cumulative, (1,), x, x * 0, x * 0, 100, BLOCK=128)
    np.testing.assert_array_equal(s, np.cumsum(x))  # small integers: exact in both dtypes
    np.testing.assert_array_equal(p, np.cumprod(x))


@triton.jit
def sort(x, o, n, BLOCK: tl.constexpr):
    r = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    tl.store(o + r * BLOCK + i, tl.sort(tl.load(x + r * n + i, mask=i < n, other=float("inf"))))


@pytest.mark.parametrize("rows,n", [(1, 2), pytest.param(3, 100, marks=since_3_1), (40, 64)])
def test_sort(driver, rows, n):
    x = rng().standard_normal((rows, n)).astype(np.float32)
    block = triton.next_power_of_2(n)
    got = run(driver, sort, (rows,), x, np.zeros((rows, block), np.float32), n, BLOCK=block)[1]
    np.testing.assert_array_equal(got[:, :n], np.sort(x, 1))


@triton.jit
def shapes(x, o, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    w = tl.join(v, v * 10)  # (BLOCK, 2)
    a, b = tl.split(tl.trans(tl.reshape(w, (2, BLOCK))))
    tl.store(o + i, a - b)
    tl.store(o + BLOCK + i, tl.interleave(tl.flip(v, 0), v).reshape(2, BLOCK).sum(0))
    tl.store(o + 2 * BLOCK + i, tl.gather(v, (i * 7) % BLOCK, 0))
    tl.store(o + 3 * BLOCK + i, tl.histogram(v.to(tl.int32) % BLOCK, BLOCK).to(tl.float32))
    tl.store(o + 4 * BLOCK + i, tl.sum(tl.cat(v, v, can_reorder=True), 0) + tl.zeros_like(v))


@since_3_1
def test_shapes(driver):
    x = np.arange(16, dtype=np.float32) ** 2
    got = run(driver, shapes, (1,), x, np.zeros((5, 16), np.float32), BLOCK=16)[1]
    pair = np.stack([x, x * 10], 1).reshape(2, 16)
    np.testing.assert_array_equal(got[0], pair[0] - pair[1])
    np.testing.assert_array_equal(got[1], np.stack([x[::-1], x], 1).reshape(2, 16).sum(0))
    np.testing.assert_array_equal(got[2], x[np.arange(16) * 7 % 16])
    np.testing.assert_array_equal(got[3], np.bincount(x.astype(int) % 16, minlength=16))
    np.testing.assert_array_equal(got[4], np.full(16, 2 * x.sum()))


# ---- matrices ----------------------------------------------------------------------------------------------------------------
@triton.jit
def matmul(a, b, c, M, N, K, sam, sak, sbk, sbn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), ACC)
    for k in range(0, K, BK):
        ma = (rm[:, None] < M) & (rk[None, :] + k < K)
        mb = (rk[:, None] + k < K) & (rn[None, :] < N)
        ta = tl.load(a + rm[:, None] * sam + (rk[None, :] + k) * sak, mask=ma, other=0.0)
        tb = tl.load(b + (rk[:, None] + k) * sbk + rn[None, :] * sbn, mask=mb, other=0.0)
        acc = tl.dot(ta, tb, acc, out_dtype=ACC)
    tl.store(c + rm[:, None] * N + rn[None, :], acc.to(c.dtype.element_ty), mask=(rm[:, None] < M) & (rn[None, :] < N))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16, FP8])
@pytest.mark.parametrize("M,N,K", [(1, 1, 1), (33, 17, 65), (97, 130, 31)])
def test_matmul(driver, M, N, K, dtype):
    a, b = rng().standard_normal((M, K)).astype(dtype), rng().standard_normal((N, K)).astype(dtype)
    grid = (math.ceil(M / 32), math.ceil(N / 32))
    got = run(driver, matmul, grid, a, b, np.zeros((M, N), np.float32), M, N, K, K, 1, 1, K, BM=32, BN=32, BK=32,
              ACC=tl.float32)[2]
    np.testing.assert_allclose(got, a.astype("d") @ b.astype("d").T, atol=2e-6 * K)


@pytest.mark.parametrize("K", [32, 2048])
def test_matmul_int8_is_exact(driver, K):
    a, b = rng().integers(-128, 128, (32, K)).astype(np.int8), rng().integers(-128, 128, (K, 32)).astype(np.int8)
    a[0], b[:, 0], b[0, 0] = -127, 127, 126  # at K = 2048 an odd sum past 2^24: float32 would round it
    got = run(driver, matmul, (1, 1), a, b, np.zeros((32, 32), np.int32), 32, 32, K, K, 1, 32, 1, BM=32, BN=32, BK=K,
              ACC=tl.int32)[2]
    np.testing.assert_array_equal(got, a.astype(np.int64) @ b.astype(np.int64))


@triton.jit
def flash(q, k, v, o, S, scale, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    h = tl.program_id(1) * S * D
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rd = tl.arange(0, D)
    qq = tl.load(q + h + rm[:, None] * D + rd[None, :], mask=rm[:, None] < S, other=0.0)
    mi = tl.full((BM,), -1e30, tl.float32)
    li = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for s in range(0, tl.minimum(S, (tl.program_id(0) + 1) * BM), BN):  # a trip count of its own in each program
        rn = s + tl.arange(0, BN)
        kk = tl.load(k + h + rn[:, None] * D + rd[None, :], mask=rn[:, None] < S, other=0.0)
        qk = tl.dot(qq, tl.trans(kk)) * scale
        qk = tl.where((rn[None, :] < S) & (rm[:, None] >= rn[None, :]), qk, -1e30)
        mn = tl.maximum(mi, tl.max(qk, 1))
        p = tl.exp(qk - mn[:, None])
        alpha = tl.exp(mi - mn)
        li = li * alpha + tl.sum(p, 1)
        vv = tl.load(v + h + rn[:, None] * D + rd[None, :], mask=rn[:, None] < S, other=0.0)
        acc = tl.dot(p.to(vv.dtype), vv, acc * alpha[:, None])
        mi = mn
    tl.store(o + h + rm[:, None] * D + rd[None, :], acc / li[:, None], mask=rm[:, None] < S)


def test_causal_flash_attention(driver):
    S, D = 101, 32
    q, k, v = rng().standard_normal((3, 3, S, D)).astype(np.float32)
    got = run(driver, flash, (math.ceil(S / 16), 3), q, k, v, np.zeros_like(q), S, D**-0.5, D=D, BM=16, BN=32)[3]
    s = np.einsum("hid,hjd->hij", q.astype("d"), k.astype("d")) * D**-0.5
    s = np.where(np.tril(np.ones((S, S), bool)), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    np.testing.assert_allclose(got, p / p.sum(-1, keepdims=True) @ v.astype("d"), atol=2e-6)


# ---- control flow ------------------------------------------------------------------------------------------------------------
@triton.jit
def collatz(x, o, n):
    r = tl.program_id(0)
    v = tl.load(x + r)
    steps = 0
    while v != 1:
        if v % 2 == 0:
            v = v // 2
        else:
            v = 3 * v + 1
        steps += 1
    tl.store(o + r, steps)


def test_while_and_if_diverge(driver):
    x = np.arange(1, 60, dtype=np.int32)
    want = []
    for v in x.tolist():
        steps = 0
        while v != 1:
            v, steps = (v // 2 if v % 2 == 0 else 3 * v + 1), steps + 1
        want.append(steps)
    np.testing.assert_array_equal(run(driver, collatz, (59,), x, x * 0, 59)[1], want)


@triton.jit
def uneven(o, n):
    r = tl.program_id(0)
    total = 0
    for k in range(r % 3, r):
        total += k
    if r % 2 == 0:
        if r > n:
            tl.store(o + r, -total)
        else:
            tl.store(o + r, total)
    else:
        tl.store(o + r, 1000)


def test_loops_of_uneven_length_and_nested_branches(driver):
    got = run(driver, uneven, (37,), np.zeros(37, np.int32), 20)[0]
    want = [1000 if r % 2 else sum(range(r % 3, r)) * (-1 if r > 20 else 1) for r in range(37)]
    np.testing.assert_array_equal(got, want)


@triton.jit
def early(x, o, n):
    r = tl.program_id(0)
    if r >= n:
        return
    if tl.load(x + r) < 0:
        tl.store(o + r, -1.0)
        return
    tl.store(o + r, tl.load(x + r) * 2)


def test_early_return(driver):
    x = rng().standard_normal(13).astype(np.float32)
    got = run(driver, early, (64,), x, np.zeros_like(x), 13)[1]
    np.testing.assert_array_equal(got, np.where(x < 0, np.float32(-1), x * 2))


@triton.jit(noinline=True)
def _polynomial(x, y):
    return x * x + y, x - y


@triton.jit
def calls(x, o):
    i = tl.program_id(0)
    v = tl.load(x + i)
    a, b = _polynomial(v, 2.0)
    c, _ = _polynomial(b, v)
    tl.store(o + i, a + c)


def test_noinline_call(driver):
    x = np.arange(8, dtype=np.float32)
    image = compiled(calls, ["*fp32", "*fp32"], {}).asm["ttir"]
    assert "tt.call" in image
    got = run(driver, calls, (8,), x, np.zeros_like(x))[1]
    np.testing.assert_array_equal(got, x * x + 2 + (x - 2) ** 2 + x)


@triton.jit
def descriptors(x, o, M, N, BM: tl.constexpr, BN: tl.constexpr):
    d = tl.make_tensor_descriptor(x, [M, N], [N, 1], [BM, BN])
    e = tl.make_tensor_descriptor(o, [M, N], [N, 1], [BM, BN])
    at = [tl.program_id(0) * BM, tl.program_id(1) * BN]
    e.store(at, d.load(at) * 2)


@pytest.mark.skipif(not hasattr(tl, "make_tensor_descriptor"), reason="newer Triton only")
def test_tensor_descriptors(driver):
    x = rng().standard_normal((50, 36)).astype(np.float32)
    np.testing.assert_array_equal(run(driver, descriptors, (4, 2), x, x * 0, 50, 36, BM=16, BN=32)[1], x * 2)


# ---- atomics and random -------------------------------------------------------------------------------------------------------
@triton.jit
def atomics(x, o, h, tickets, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    v = tl.load(x + i, mask=m, other=0)
    tl.atomic_add(o, tl.sum(v, 0))
    tl.atomic_max(o + 1, tl.max(v, 0))
    tl.atomic_add(h + (v % 8), 1.0, mask=m)
    tl.store(tickets + i, tl.atomic_add(o + 2 + v % 2, 1, mask=m), mask=m)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, pytest.param(BF16, marks=since_3_1)])
def test_atomics(driver, dtype):
    x = rng().integers(0, 100, 1000).astype(np.int32)
    _, o, h, tickets = run(driver, atomics, (8,), x, np.zeros(4, np.int32), np.zeros(8, dtype), np.zeros(1000, np.int32), 1000,
                           BLOCK=128)
    assert o.tolist() == [x.sum(), x.max(), (x % 2 == 0).sum(), (x % 2).sum()]
    np.testing.assert_array_equal(h.astype(int), np.bincount(x % 8, minlength=8))  # below 256: exact in all three
    for parity in (0, 1):  # the old values are a permutation of 0 .. count - 1, one for each lane
        np.testing.assert_array_equal(np.sort(tickets[x % 2 == parity]), np.arange((x % 2 == parity).sum()))


@triton.jit
def exchange(lock, o, won, v):
    r = tl.program_id(0)
    tl.store(won + r, tl.atomic_cas(lock, 0, r + 1))
    tl.atomic_xchg(o, r.to(tl.float32))
    tl.store(v + r, tl.atomic_add(o + 1, 0.5 * (r + 1).to(tl.float32)))


def test_cas_in_program_order(driver):
    zeros = np.zeros(9, np.float32)
    lock, o, won, v = run(driver, exchange, (9,), np.zeros(1, np.int32), zeros[:2], zeros.astype(np.int32), zeros)
    assert lock.tolist() == [1] and o.tolist() == [8, 0.5 * 45]
    assert won.tolist() == [0] + [1] * 8
    np.testing.assert_array_equal(v, np.concatenate([[0], np.cumsum(0.5 * np.arange(1, 9))]))


@triton.jit
def random(o, seed, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(o + i, tl.randint(seed, i), mask=i < n)


def philox(seed: int, offset: int) -> int:
    """First word of Philox 4x32-10 (Salmon et al. 2011) with counter (offset, 0, 0, 0) and key = seed."""
    c, k = [offset, 0, 0, 0], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[0]


@pytest.mark.parametrize("seed", [42, 0x1234_5678_9ABC])
def test_philox_bits(driver, seed):
    got = run(driver, random, (3,), np.zeros(300, np.int32), seed, 300, BLOCK=128)[0]
    assert got.view(np.uint32).tolist() == [philox(seed, k) for k in range(300)]


# ---- what must be caught --------------------------------------------------------------------------------------------------------
@triton.jit
def overrun(o, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(o + i, i)


def test_out_of_bounds_names_kernel_address_and_lanes(driver):
    with pytest.raises(OutOfRange, match=r"overrun: store \(test_sim_execute.py:\d+\).*0x7f[0-9a-f]+, 28 of 128 lanes"):
        run(driver, overrun, (1,), np.zeros(100, np.int32), BLOCK=128)
    run(driver, overrun, (1,), np.zeros(128, np.int32), BLOCK=128)  # exactly full is legal, and the device still works


def test_read_between_two_live_blocks_is_caught(driver):
    far = np.zeros(4, np.float32)
    x = np.ones(64, np.float32)
    a, b = to_device(driver, x), to_device(driver, far)
    image = compiled(add, ["*fp32"] * 3 + ["i32"], {"BLOCK": 1024})
    kernel = driver.get_kernel(driver.module_load(0, image.asm["simbin"], "ttir"), "add")
    args = [("*fp32", a), ("*fp32", a), ("*fp32", b), ("i32", 64)]
    with pytest.raises(OutOfRange, match="60 of 64 lanes"):
        driver.launch(0, Launch(kernel, (1, 1, 1), 1, 0, args))


def test_misaligned_access_is_caught(driver):
    image = compiled(overrun, ["*i32"], {"BLOCK": 16})
    base = to_device(driver, np.zeros(100, np.int32))
    kernel = driver.get_kernel(driver.module_load(0, image.asm["simbin"], "ttir"), "overrun")
    with pytest.raises(ArgumentError, match="misaligned in 16 of 16 lanes"):
        driver.launch(0, Launch(kernel, (1, 1, 1), 1, 0, [("*i32", base + 2)]))


@triton.jit
def asserting(x):
    tl.device_assert(tl.load(x + tl.program_id(0)) > 0, "positive")


def test_device_assert(driver):
    with pytest.raises(InternalError, match="positive.* in 1 lanes"):
        run(driver, asserting, (3,), np.array([1, 0, 2], np.int32), options={"debug": True})


@triton.jit
def undefined_lanes(x, o, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(o + i, tl.load(x + i, mask=i < n))


def test_masked_lanes_without_other_are_not_zero(driver):
    got = run(driver, undefined_lanes, (1,), np.ones(5, np.float32), np.zeros(8, np.float32), 5, BLOCK=8)[1]
    assert (got[:5] == 1).all() and np.isnan(got[5:]).all()


@triton.jit
def assembly(x, o, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    tl.store(o + i, tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1))


def test_unknown_operation_is_refused_at_load(driver):
    image = compiled(assembly, ["*fp32", "*fp32"], {"BLOCK": 16}).asm["simbin"]
    with pytest.raises(Unsupported, match="assembly: operation tt.elementwise_inline_asm at test_sim_execute.py"):
        driver.module_load(0, image, "ttir")


@pytest.mark.parametrize("image", [b"", b"\xff\xfe", b"not IR", b"module {\n}\n", b"module {\n  tt.func public @f() {\n"])
def test_bad_image_is_refused(driver, image):
    with pytest.raises(ArgumentError):
        driver.module_load(0, image, "ttir")


# ---- slabs, determinism ------------------------------------------------------------------------------------------------------------
def test_results_do_not_depend_on_the_slab(driver, monkeypatch):
    x = rng().standard_normal((64, 300)).astype(np.float32)
    whole = run(driver, softmax, (64,), x, np.zeros_like(x), 300, 300, BLOCK=512)[1]
    monkeypatch.setattr(execute, "SLAB_BYTES", 1)  # one program at a time
    single = run(driver, softmax, (64,), x, np.zeros_like(x), 300, 300, BLOCK=512)[1]
    np.testing.assert_array_equal(whole.view(np.uint32), single.view(np.uint32))


TEXT = """module {
  tt.func public @f(%x: !tt.ptr<f32>, %o: !tt.ptr<f32>) {
    %c = arith.constant dense<[0, 3, 1, 2]> : tensor<4xi32>
    %inf = arith.constant 0xFF800000 : f32
    %bits = arith.constant dense<"0x0000803F000000400000404000008040"> : tensor<4xf32>
    %px = tt.splat %x : !tt.ptr<f32> -> tensor<4x!tt.ptr<f32>>
    %a = tt.addptr %px, %c : tensor<4x!tt.ptr<f32>>, tensor<4xi32>
    %v = tt.load %a : tensor<4x!tt.ptr<f32>>
    %s = tt.splat %inf : f32 -> tensor<4xf32>
    %m = arith.maximumf %v, %s : tensor<4xf32>
    %y = arith.addf %m, %bits : tensor<4xf32>
    %lt = arith.cmpf ult, %y, %s : tensor<4xf32>
    %z = arith.uitofp %lt : tensor<4xi1> to tensor<4xf32>
    %w = arith.subf %y, %z : tensor<4xf32>
    %r = tt.make_range {end = 4 : i32, start = 0 : i32} : tensor<4xi32>
    %po = tt.splat %o : !tt.ptr<f32> -> tensor<4x!tt.ptr<f32>>
    %q = tt.addptr %po, %r : tensor<4x!tt.ptr<f32>>, tensor<4xi32>
    tt.store %q, %w : tensor<4x!tt.ptr<f32>>
    tt.return
  }
}
"""


def test_handwritten_constants(driver):
    x = np.array([10, 20, 30, np.nan], np.float32)
    got = run_image(driver, TEXT.encode(), "f", (1,), x, np.zeros(4, np.float32))[1]
    np.testing.assert_array_equal(got, [11, np.nan, 23, 34])


JUMPS = """module {
  tt.func public @halve(%x: !tt.ptr<i32>, %o: !tt.ptr<i32>) {
    %one = arith.constant 1 : i32
    %p = tt.get_program_id x : i32
    %px = tt.addptr %x, %p : !tt.ptr<i32>, i32
    %po = tt.addptr %o, %p : !tt.ptr<i32>, i32
    %v = tt.load %px : !tt.ptr<i32>
    cf.br ^bb1(%v, %p : i32, i32)
  ^bb1(%a: i32, %n: i32):  // 2 preds: ^bb0, ^bb1
    %half = arith.shrsi %a, %one : i32
    %again = tt.load %px : !tt.ptr<i32>
    %sum = arith.addi %n, %half : i32
    %go = arith.cmpi sgt, %half, %one : i32
    cf.cond_br %go, ^bb1(%half, %sum : i32, i32), ^bb2
  ^bb2:  // pred: ^bb1
    %all = arith.addi %sum, %again : i32
    tt.store %po, %all : !tt.ptr<i32>
    tt.return
  }
}
"""


def test_programs_leave_a_loop_of_jumps_one_by_one(driver):
    x = np.array([5, 900, 2, 77, 1], np.int32)
    want = []
    for p, v in enumerate(x.tolist()):
        total = p
        while True:
            v >>= 1
            total += v
            if v <= 1:
                break
        want.append(total + x[p])
    np.testing.assert_array_equal(run_image(driver, JUMPS.encode(), "halve", (5,), x, x * 0)[1], want)


BOOLS = """module {
  tt.func public @b(%x: i32, %o: !tt.ptr<i32>) {
    %p = tt.get_program_id x : i32
    %t = arith.constant true
    %a = arith.cmpi eq, %p, %x : i32
    %sign = arith.extsi %a : i1 to i32
    %f = arith.sitofp %a : i1 to f32
    %fi = arith.fptosi %f : f32 to i32
    %lt = arith.cmpi slt, %a, %t : i1
    %lti = arith.extui %lt : i1 to i32
    %w = arith.addi %a, %t : i1
    %wi = arith.extui %w : i1 to i32
    %ten = arith.constant 10 : i32
    %m = arith.muli %wi, %ten : i32
    %s0 = arith.addi %sign, %fi : i32
    %s1 = arith.addi %s0, %m : i32
    %hundred = arith.constant 100 : i32
    %l = arith.muli %lti, %hundred : i32
    %s = arith.addi %s1, %l : i32
    %po = tt.addptr %o, %p : !tt.ptr<i32>, i32
    tt.store %po, %s : !tt.ptr<i32>
    tt.return
  }
}
"""


def test_i1_is_minus_one_when_signed_and_wraps(driver):
    # true: -1 (extsi) - 1 (sitofp), 1 + 1 wraps to 0, -1 < -1 is false; false: 0 + 0, 0 + 1 = 1, 0 < -1 is false
    got = run_image(driver, BOOLS.encode(), "b", (3,), 1, np.zeros(3, np.int32))[0]
    np.testing.assert_array_equal(got, [10, -2, 10])


@triton.jit
def far(o, at):
    tl.store(o + at + tl.program_id(0), 7.0)


def test_addresses_past_2_31_bytes(driver):
    address = driver.alloc(0, 2**31 + 64)  # backed by pages only where touched
    image = compiled(far, ["*fp32", "i32"], {})
    kernel = driver.get_kernel(driver.module_load(0, image.asm["simbin"], "ttir"), "far")
    driver.launch(0, Launch(kernel, (2, 1, 1), 1, 0, [("*fp32", address), ("i32", 2**29 + 3)]))
    got = from_device(driver, address + 2**31 + 8, np.zeros(4, np.float32))
    driver.free(0, address)
    np.testing.assert_array_equal(got, [0, 7, 7, 0])


def test_exact_helpers():
    """fma and erf against exact rationals and libm."""
    from fractions import Fraction

    a, b = rng().standard_normal((2, 500))
    c = -(a * b) * (1 + rng().integers(-3, 4, 500) * 2.0**-52)
    want = [float(Fraction(p) * Fraction(q) + Fraction(r)) for p, q, r in zip(a, b, c)]
    np.testing.assert_array_equal(numeric.fma(a, b, c), want)
    x = rng().standard_normal(2000) * 3
    np.testing.assert_array_max_ulp(numeric.erf(x), np.array([math.erf(v) for v in x]), maxulp=4)
    big = np.array([2**62 + 2**54 + 1, -(2**62) - 2**54 - 1, 2**62 + 2**54], np.int64)  # beside and on a bfloat16 tie
    np.testing.assert_array_equal(numeric.cast_int_to_float(big, BF16).astype(float),
                                  [2.0**62 + 2.0**55, -(2.0**62) - 2.0**55, 2.0**62])
