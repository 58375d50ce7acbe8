"""rand, dropout, native_dropout over Philox 4x32-10: what they are.  How: kernels/{cpu/random.c,triton/random.py}.

The bits are part of the standard: the same (seed, offset) gives the same values on every device and for any layout.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME, DType
from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Exact, Faithful
from .gradient import count
from .infer import need, need_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op

_M32 = np.uint64(0xFFFFFFFF)
# Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011: multipliers and Weyl constants.
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
# (counter, key, result): the authors' known answers for 10 rounds.
PHILOX_GOLDEN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)))


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[np.ndarray, ...]:
    """Ten rounds of Philox 4x32.  counter: four, key: two integers or uint64 arrays below 2^32 that broadcast."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = (np.asarray(k, np.uint64) for k in key)
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & _M32, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & _M32
        k0, k1 = (k0 + _WEYL[0]) & _M32, (k1 + _WEYL[1]) & _M32
    return c0, c1, c2, c3


def words(n: int, seed: int, offset: int) -> np.ndarray:
    """The first n 32-bit words (as uint64): word i is word i % 4 of the block of counter (i // 4, offset), key seed."""
    block = np.arange((n + 3) // 4, dtype=np.uint64)
    seed, offset = seed % 2**64, offset % 2**64
    four = philox4x32((block & _M32, block >> np.uint64(32), offset & 0xFFFFFFFF, offset >> 32),
                      (seed & 0xFFFFFFFF, seed >> 32))
    return np.stack(np.broadcast_arrays(*four), axis=-1).reshape(-1)[:n]


def uniform(n: int, seed: int, offset: int, dtype: DType) -> np.ndarray:
    """n numbers in [0, 1), exact in dtype: as many leading bits of a word as dtype has digits (float64: two words)."""
    if dtype.name == "float64":
        w = words(2 * n, seed, offset)
        return ((w[0::2] << np.uint64(21)) ^ (w[1::2] >> np.uint64(11))) * 2.0**-53
    return (words(n, seed, offset) >> np.uint64(32 - dtype.digits)) * 2.0**-dtype.digits


def _infer_rand(*, shape: Any, seed: int, offset: int, dtype: DType) -> Spec:
    if dtype not in FLOATS:
        raise DTypeError(f"rand: dtype is {dtype}; accepts {', '.join(map(str, FLOATS))}")
    shape = tuple(shape)
    if any(s < 0 for s in shape):
        raise ShapeError(f"rand: shape is {shape}; sizes must not be negative")
    return Spec(shape, dtype)


def _check_dropout(name, x, p):
    need_dtype(name, "x", x, FLOATS)
    need(0 <= p <= 1, f"{name}: p is {p:g}; needs a probability, 0 <= p <= 1")
    return x


def _infer_dropout(x: Spec, *, p: float, seed: int, offset: int) -> Spec:
    return _check_dropout("dropout", x, p)


def _infer_native_dropout(x: Spec, *, p: float, seed: int, offset: int) -> tuple[Spec, Spec]:
    return _check_dropout("native_dropout", x, p), Spec(x.shape, BY_NAME["bool"])


def _rand(*, shape, seed, offset, dtype):
    return uniform(count(shape), seed, offset, dtype).reshape(tuple(shape))


def _native_dropout(x, *, p, seed, offset):
    keep = (uniform(x.size, seed, offset, BY_NAME["float32"]) >= p).reshape(x.shape)
    with np.errstate(all="ignore"):
        return np.where(keep, x * (1.0 / (1.0 - p) if p < 1 else 0.0), 0.0), keep


def _dropout(x, *, p, seed, offset):
    return _native_dropout(x, p=p, seed=seed, offset=offset)[0]


def _cost(mask_bytes):
    def cost(item: int, x: Spec, **_: Any) -> Cost:
        return Cost(flops=x.size, bytes=x.size * (2 * x.dtype.itemsize + mask_bytes))

    return cost


def _rand_cost(item: int, **attrs: Any) -> Cost:
    y = _infer_rand(**attrs)
    return Cost(flops=0, bytes=y.size * y.dtype.itemsize)


# sizes around the four words of a block, one past a tile, zero sizes, 0-d
_SHAPES = (("scalar", ()), ("one", (1,)), ("three", (3,)), ("four", (4,)), ("five", (5,)), ("prime", (7, 13)),
           ("nothing", (3, 0)), ("past_tile", (3, 1025)), ("long", (4099,)))
_SEEDS = ({"seed": 0}, {"seed": 1, "offset": 1}, {"seed": 2**40 + 7, "offset": 2**33 + 1}, {"seed": -1, "offset": 4})
_RAND = [Sample(n, (), {"shape": s, **_SEEDS[i % 4]}) for i, (n, s) in enumerate(_SHAPES)] + [
    Sample("past_span", (), {"shape": (37, 1013), "seed": 7}, cover="once"),
    Sample("square_4096", (), {"shape": (4096, 4096), "seed": 7}, "", "full", ("full",))]
_DROPOUT = [Sample(n, (In(s),), {"p": (0.5, 0.1, 0.9)[i % 3], **_SEEDS[i % 4]}) for i, (n, s) in enumerate(_SHAPES)] + [
    Sample("keeps_all", (In((33,)),), {"p": 0.0, "seed": 3}), Sample("drops_all", (In((33,), "wide"),),
                                                                     {"p": 1.0, "seed": 3}),
    Sample("special", (In((129,), "wide"),), {"p": 0.5, "seed": 5}),
    # word 5 of seed 21 begins with the 24 bits 9136096: kept at just that probability, dropped half a step above
    Sample("at_the_threshold", (In((9,)),), {"p": 9136096 * 2.0**-24, "seed": 21}),
    Sample("above_the_threshold", (In((9,)),), {"p": 9136096.5 * 2.0**-24, "seed": 21}),
    # strided, and enough for several threads (C, two times 16384)
    Sample("past_span", (In((17, 2111), layout="transposed"),), {"p": 0.3, "seed": 11}, cover="once"),
    Sample("transposed", (In((17, 9), layout="transposed"),), {"p": 0.3, "seed": 11}),
    Sample("bert_hidden", (In((1, 128, 768)),), {"p": 0.1, "seed": 42, "offset": 9}, "BERT-base hidden dropout",
           "training", ("full",)),
    Sample("square_4096", (In((4096, 4096)),), {"p": 0.1, "seed": 7}, "", "full", ("full",))]
_BAD = (Bad("p_above_1", (In((3,)),), ArgumentError, ("p is 1.5", "0 <= p <= 1"), {"p": 1.5}),
        Bad("p_negative", (In((3,)),), ArgumentError, ("p is -0.1", "0 <= p <= 1"), {"p": -0.1}),
        Bad("p_nan", (In((3,)),), ArgumentError, ("p is nan",), {"p": float("nan")}),
        Bad("int32", (In((3,), "int"),), DTypeError, ("int32", "float32"), dtype="int32"))
_DOC = ("x / (1 - p) where a uniform float32 number, (word i >> 8) * 2^-24 for element i in row-major order, is at "
        "least p; 0 elsewhere, whatever stood there (p = 1: everywhere).")

op("rand(int[] shape, *, int seed=0, int offset=0, dtype dtype=float32) -> Tensor", family="random", dtypes=FLOATS,
   infer=_infer_rand, reference=_rand, budget=Exact(), cost=_rand_cost, samples=_RAND, random=True,
   doc="Uniform numbers in [0, 1) from Philox 4x32-10: key seed, counter (i // 4, offset), element i the leading 24, "
       "11 or 8 bits of word i % 4; float64: 53 bits of words 2i and 2i + 1.", names={"paddle": ("rand",)},
   bad=(Bad("negative_size", (), ShapeError, ("(2, -1)", "negative"), {"shape": (2, -1)}),
        Bad("int32", (), DTypeError, ("int32", "float32"), {"shape": (2,), "dtype": BY_NAME["int32"]})))

op("dropout(Tensor x, *, float p=0.5, int seed=0, int offset=0) -> Tensor", family="random", dtypes=FLOATS,
   infer=_infer_dropout,
   rule="same", reference=_dropout, budget=Faithful(k=2), cost=_cost(0), samples=_DROPOUT, bad=_BAD, doc=_DOC,
   random=True,
   grad=lambda o, dy, inputs, y, attrs: (o.dropout(dy, p=attrs["p"], seed=attrs["seed"], offset=attrs["offset"]),),
   names={"onnx": ("Dropout",), "paddle": ("dropout",)})

op("native_dropout(Tensor x, *, float p=0.5, int seed=0, int offset=0) -> (Tensor out, Tensor mask)", family="random",
   dtypes=FLOATS,
   infer=_infer_native_dropout, reference=_native_dropout, budget=Faithful(k=2), cost=_cost(1), samples=_DROPOUT,
   bad=_BAD, random=True,
   doc=_DOC + "  mask (bool): where x was kept.",
   grad=lambda o, dy, inputs, outputs, attrs: (
       o.native_dropout_backward(dy, outputs[1], scale=1 / (1 - attrs["p"]) if attrs["p"] < 1 else 0.0),),
   names={"aten": ("native_dropout",)})
