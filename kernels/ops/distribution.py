"""uniform, normal, randint, bernoulli and what is made of them, over the Philox stream of random.py: what they are.

How: kernels/{cpu/random.c,triton/random.py}.  Element i of the row-major order takes word i, float64 words 2 i and 2 i + 1.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME, DType
from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Composite, Exact, Faithful
from .gradient import count
from .infer import need, need_dtype
from .random import uniform, words
from .record import FLOATS, INTEGERS, Bad, Cost, In, Sample, Spec, op

_F32, _I32, _I64 = BY_NAME["float32"], BY_NAME["int32"], BY_NAME["int64"]


def _made(name: str, shape: Any, dtype: DType, dtypes: tuple[DType, ...] = FLOATS) -> Spec:
    if dtype not in dtypes:
        raise DTypeError(f"{name}: dtype is {dtype}; accepts {', '.join(map(str, dtypes))}")
    shape = tuple(shape)
    if any(s < 0 for s in shape):
        raise ShapeError(f"{name}: shape is {shape}; sizes must not be negative")
    return Spec(shape, dtype)


def _infer_uniform(*, shape: Any, low: float, high: float, seed: int, offset: int, dtype: DType) -> Spec:
    need(-np.inf < low <= high < np.inf and high - low < np.inf, f"uniform: low is {low:g} and high {high:g}; needs finite low <= high")
    return _made("uniform", shape, dtype)


def _infer_normal(*, shape: Any, mean: float, std: float, seed: int, offset: int, dtype: DType) -> Spec:
    need(-np.inf < mean < np.inf and 0 <= std < np.inf, f"normal: mean is {mean:g} and std {std:g}; needs finite ones, std 0 or more")
    return _made("normal", shape, dtype)


def _infer_randint(*, shape: Any, low: int, high: int, seed: int, offset: int, dtype: DType) -> Spec:
    y = _made("randint", shape, dtype, INTEGERS)
    info = np.iinfo(dtype.numpy)
    need(low < high and info.min <= low and high - 1 <= info.max and high - low <= 2**32,
         f"randint: low is {low} and high {high}; needs low < high, at most 2^32 numbers, all of them {dtype}")
    return y


def _infer_bernoulli(p: Spec, *, seed: int, offset: int) -> Spec:
    need_dtype("bernoulli", "p", p, FLOATS)
    return p


def _fraction(n: int, seed: int, offset: int, dtype: DType) -> np.ndarray:
    return uniform(n, seed, offset, dtype if dtype.name == "float64" else _F32)


def _uniform(*, shape, low, high, seed, offset, dtype):
    return (low + (high - low) * _fraction(count(shape), seed, offset, dtype)).reshape(tuple(shape))


def _standard(n: int, seed: int, offset: int, dtype: DType) -> np.ndarray:
    """Box & Muller, "A note on the generation of random normal deviates", 1958: pairs r cos(2 pi v), r sin(2 pi v).

    v's quarter turns are taken off exactly, so that the float64 reference keeps digits where a result is near 0.
    """
    two = _fraction(n + n % 2, seed, offset, dtype)
    u, t = two[0::2] + (2.0**-53 if dtype.name == "float64" else 2.0**-24), 4 * two[1::2]
    turns = np.rint(t)
    s, c = np.sin((t - turns) * (np.pi / 2)), np.cos((t - turns) * (np.pi / 2))
    quarter = turns.astype(np.int64) % 4
    r = np.sqrt(-2 * np.log(u))
    pairs = np.stack([r * np.choose(quarter, (c, -s, -c, s)), r * np.choose(quarter, (s, c, -s, -c))], -1)
    return pairs.reshape(-1)[:n]


def _normal(*, shape, mean, std, seed, offset, dtype):
    return (mean + std * _standard(count(shape), seed, offset, dtype)).reshape(tuple(shape))


def _normal_magnitude(*, shape, mean, std, seed, offset, dtype):
    return abs(mean) + np.abs(_normal(shape=shape, mean=0.0, std=std, seed=seed, offset=offset, dtype=dtype))


def _uniform_magnitude(*, shape, low, high, **_):
    return np.full(tuple(shape), abs(low) + abs(high - low))


def _randint(*, shape, low, high, seed, offset, dtype):
    whole = words(count(shape), seed, offset).astype(object) * (high - low) // 2**32 + low
    return whole.astype(np.int64).astype(dtype.numpy).reshape(tuple(shape))


def _bernoulli(p, *, seed, offset):
    with np.errstate(invalid="ignore"):
        return (_fraction(p.size, seed, offset, _F32).reshape(p.shape) < p).astype(p.dtype)


def _write_cost(infer: Callable[..., Spec]) -> Callable[..., Cost]:
    def cost(item: int, **attrs: Any) -> Cost:
        y = infer(**attrs)
        return Cost(flops=0, bytes=y.size * y.dtype.itemsize)

    return cost


# sizes around the four words of a block, one past a tile of 1024, past the host's groups of 256 on several threads
_SHAPES = (("scalar", ()), ("one", (1,)), ("three", (3,)), ("five", (5,)), ("prime", (7, 13)), ("nothing", (3, 0)), ("past_group", (257,)),
           ("past_tile", (3, 1025)))
_SEEDS = ({"seed": 0}, {"seed": 1, "offset": 1}, {"seed": 2**40 + 7, "offset": 2**33 + 1}, {"seed": -1, "offset": 4})


def _samples(*numbers: dict[str, Any], large: str = "square_4096") -> list[Sample]:
    return [Sample(n, (), {"shape": s, **_SEEDS[i % 4], **numbers[i % len(numbers)]}) for i, (n, s) in enumerate(_SHAPES)] + [
        Sample("past_span", (), {"shape": (37, 1013), "seed": 7, **numbers[0]}, cover="once"),
        Sample(large, (), {"shape": (4096, 4096), "seed": 7, **numbers[0]}, "", "full", ("full",))]


_BAD = (Bad("negative_size", (), ShapeError, ("(2, -1)", "negative"), {"shape": (2, -1)}),
        Bad("int32", (), DTypeError, ("int32", "float32"), {"shape": (2,), "dtype": _I32}))
_FROM_PAIRS = ("pairs of float32 numbers of Philox words: r cos(2 pi v) and r sin(2 pi v), r = sqrt(-2 log u), u = (word 2 j >> 8 + 1) 2^-24, "
               "v = (word 2 j + 1 >> 8) 2^-24; float64: 53 bits of two words each")

op("uniform(int[] shape, float low=0.0, float high=1.0, *, int seed=0, int offset=0, dtype dtype=float32) -> Tensor", family="random",
   dtypes=FLOATS, infer=_infer_uniform, reference=_uniform, budget=Composite(k=2, magnitude=_uniform_magnitude), random=True,
   cost=_write_cost(_infer_uniform), samples=_samples({"low": -1.5, "high": 2.0}, {"low": 3.0, "high": 3.0}, {}, {"low": -0.02, "high": 0.02}),
   doc="low + (high - low) u, u uniform in [0, 1): the leading 24 bits of word i, float64: 53 bits of words 2 i and 2 i + 1.",
   names={"onnx": ("RandomUniform",), "paddle": ("uniform",)},
   bad=(*_BAD, Bad("order", (), ArgumentError, ("low is 2", "high 1"), {"shape": (2,), "low": 2.0, "high": 1.0})))

op("normal(int[] shape, float mean=0.0, float std=1.0, *, int seed=0, int offset=0, dtype dtype=float32) -> Tensor", family="random",
   dtypes=FLOATS, infer=_infer_normal, reference=_normal, budget=Composite(k=8, magnitude=_normal_magnitude), random=True,
   cost=_write_cost(_infer_normal), samples=_samples({"mean": 1.5, "std": 2.0}, {"mean": 3.0, "std": 0.0}, {}, {"std": 0.02}),
   doc=f"mean + std z with z normal: {_FROM_PAIRS}.", names={"onnx": ("RandomNormal",), "paddle": ("normal",)},
   bad=(*_BAD, Bad("std", (), ArgumentError, ("std -1", "0 or more"), {"shape": (2,), "std": -1.0})))

op("randint(int[] shape, int low, int high, *, int seed=0, int offset=0, dtype dtype=int64) -> Tensor", family="random",
   dtypes=(_I64, _I32, *(d for d in INTEGERS if d not in (_I64, _I32))), infer=_infer_randint, reference=_randint, budget=Exact(), random=True,
   cost=_write_cost(_infer_randint),
   samples=[*_samples({"low": 0, "high": 100}, {"low": 5, "high": 6}, {"low": 0, "high": 128}),
            Sample("negative", (), {"shape": (5, 7), "low": -128, "high": 127, "seed": 3, "dtype": BY_NAME["int8"]}),
            Sample("all_of_int32", (), {"shape": (67,), "low": -(2**31), "high": 2**31, "seed": 3, "dtype": _I32}),
            Sample("far", (), {"shape": (67,), "low": 2**40, "high": 2**40 + 2**32, "seed": 3, "dtype": _I64})],
   doc="low + (word i * (high - low) >> 32): low <= y < high, at most 2^32 numbers apart.", names={"paddle": ("randint",)},
   bad=(Bad("nothing_between", (), ArgumentError, ("low is 5", "high 5"), {"shape": (2,), "low": 5, "high": 5}, "int64"),
        Bad("too_large", (), ArgumentError, ("300", "uint8"), {"shape": (2,), "low": 0, "high": 300, "dtype": BY_NAME["uint8"]}),
        Bad("float32", (), DTypeError, ("float32", "int64"), {"shape": (2,), "low": 0, "high": 3, "dtype": _F32})))

op("bernoulli(Tensor p, *, int seed=0, int offset=0) -> Tensor", family="random", dtypes=FLOATS, infer=_infer_bernoulli, rule="same",
   reference=_bernoulli, budget=Exact(), random=True, cost=lambda item, p, **_: Cost(flops=p.size, bytes=2 * p.size * p.dtype.itemsize),
   samples=[*(Sample(n, (In(s, "unit"),), _SEEDS[i % 4]) for i, (n, s) in enumerate(_SHAPES)),
            # word 5 of seed 21 begins with the 24 bits 9136096: 0 at just that probability, 1 a step above
            Sample("at_the_number", (In((9,), values=(9136096 * 2.0**-24,) * 9),), {"seed": 21}),
            Sample("above_the_number", (In((9,), values=(9136097 * 2.0**-24,) * 9),), {"seed": 21}),
            Sample("ends", (In((7,), values=(0.0, 1.0, -1.0, 2.0, float("nan"), 1.0, 0.0)),), {"seed": 5}),
            Sample("transposed", (In((17, 9), "unit", layout="transposed"),), {"seed": 11}),
            Sample("past_span", (In((37, 1013), "unit"),), {"seed": 7}, cover="once"),
            Sample("square_4096", (In((4096, 4096), "unit"),), {"seed": 7}, "", "full", ("full",))],
   doc="1 where the float32 number (word i >> 8) 2^-24 is below p's element i, else 0: 0 for p at or below 0 and NaN, 1 from p = 1 on.",
   names={"onnx": ("Bernoulli",), "paddle": ("bernoulli",)}, bad=(Bad("int32", (In((3,), "int"),), DTypeError, ("int32", "float32"), dtype="int32"),))


# ---- made of others --------------------------------------------------------------------------------------------------------
def _infer_randn(*, shape: Any, seed: int, offset: int, dtype: DType) -> Spec:
    return _made("randn", shape, dtype)


op("randn(int[] shape, *, int seed=0, int offset=0, dtype dtype=float32) -> Tensor", family="random", dtypes=FLOATS, infer=_infer_randn,
   reference=lambda *, shape, seed, offset, dtype: _normal(shape=shape, mean=0.0, std=1.0, seed=seed, offset=offset, dtype=dtype),
   budget=Faithful(k=8), random=True, cost=_write_cost(_infer_randn), samples=_samples({}), composite="normal of mean 0 and std 1 writes the same numbers",
   compose=lambda o, *, out, shape, seed, offset, dtype: o.normal(tuple(shape), 0.0, 1.0, seed=seed, offset=offset, dtype=dtype, out=out),
   doc=f"Normal numbers of mean 0 and standard deviation 1: {_FROM_PAIRS}.", names={"paddle": ("randn",)}, bad=_BAD)


def _like(name: str, of: str, fill: Callable[..., np.ndarray], budget: Any, onnx: str) -> None:
    def infer(x: Spec, *, seed: int, offset: int, dtype: DType | None) -> Spec:
        return _made(name, x.shape, dtype or x.dtype)

    def reference(x, *, seed, offset, dtype):
        # the reference sees float64 copies; what x was decides the number of bits, so samples say dtype
        return fill(count(x.shape), seed, offset, dtype).reshape(x.shape)

    def compose(o: Any, x: Any, *, out: Any, seed: int, offset: int, dtype: DType | None) -> None:
        getattr(o, of)(tuple(out.shape), seed=seed, offset=offset, dtype=out.dtype, out=out)

    op(f"{name}(Tensor x, *, int seed=0, int offset=0, dtype? dtype=None) -> Tensor", family="random", dtypes=FLOATS, infer=infer,
       reference=reference, budget=budget, random=True, composite=f"{of} writes the same numbers", compose=compose,
       cost=lambda item, x, *, dtype=None, **_: Cost(flops=0, bytes=x.size * (dtype or x.dtype).itemsize),
       samples=[Sample(n, (In(s),), {**_SEEDS[i % 4], "dtype": d}) for i, (n, s) in enumerate(_SHAPES)
                for d in [(_F32, BY_NAME["float16"], BY_NAME["bfloat16"])[i % 3]]],
       doc=f"{of} of x's shape, and of x's dtype where dtype is left out.", names={"onnx": (onnx,)},
       bad=(Bad("to_int32", (In((3,)),), DTypeError, ("int32", "float32"), {"dtype": _I32}),))


_like("rand_like", "rand", uniform, Exact(), "RandomUniformLike")
_like("randn_like", "randn", _standard, Faithful(k=8), "RandomNormalLike")


def _infer_randperm(*, n: int, seed: int, offset: int) -> Spec:
    need(0 <= n < 2**31, f"randperm: n is {n}; needs 0 <= n < 2^31")
    return Spec((n,), _I64)


def _compose_randperm(o: Any, *, out: Any, n: int, seed: int, offset: int) -> None:
    if n:
        keys = o.zeros_like(out, dtype=_I32)  # on out's device
        o.randint((n,), -(2**31), 2**31, seed=seed, offset=offset, dtype=_I32, out=keys)
        o.argsort(keys, out=out)


op("randperm(int n, *, int seed=0, int offset=0) -> Tensor", family="random", dtypes=(_I64,), infer=_infer_randperm,
   reference=lambda *, n, seed, offset: np.argsort(words(n, seed, offset), kind="stable").astype(np.int64), budget=Exact(), random=True,
   cost=lambda item, *, n, **_: Cost(flops=0, bytes=8 * n), composite="argsort of Philox words is a sort by itself", compose=_compose_randperm,
   samples=[*(Sample(f"n_{n}", (), {"n": n, **_SEEDS[i % 4]}) for i, n in enumerate((0, 1, 2, 3, 37, 257, 1025))),
            Sample("past_span", (), {"n": 40009, "seed": 7}, cover="once"),
            Sample("million", (), {"n": 1 << 20, "seed": 7}, "", "full", ("full",))],
   doc="The numbers 0 to n - 1 in the order of Philox words 0 to n - 1, equal words in their own.", names={"paddle": ("randperm",)},
   bad=(Bad("negative", (), ArgumentError, ("n is -1",), {"n": -1}), Bad("too_long", (), ArgumentError, ("2147483648", "2^31"), {"n": 2**31})))


def _infer_dropout2d(x: Spec, *, p: float, seed: int, offset: int) -> Spec:
    need_dtype("dropout2d", "x", x, FLOATS)
    if x.ndim < 2:
        raise ShapeError(f"dropout2d: x has shape {x.shape}; needs (batch, channels, ...)")
    need(0 <= p <= 1, f"dropout2d: p is {p:g}; needs a probability, 0 <= p <= 1")
    return x


def _dropout2d(x, *, p, seed, offset):
    keep = uniform(x.shape[0] * x.shape[1], seed, offset, _F32) >= p
    factor = np.where(keep, 1.0 / (1.0 - p) if p < 1 else 0.0, 0.0).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
    with np.errstate(invalid="ignore"):
        return x * factor


def _compose_dropout2d(o: Any, x: Any, *, out: Any, p: float, seed: int, offset: int) -> None:
    if not out.numel:
        return
    channels = x
    for d in range(2, x.ndim):
        channels = o.slice(channels, d, 0, 1)
    ones = o.ones_like(channels, dtype=_F32 if x.dtype.itemsize == 2 else x.dtype)
    kept = o.dropout(ones, p=p, seed=seed, offset=offset)
    if kept.dtype is x.dtype:
        o.mul(x, kept, out=out)
    else:  # the factor is no number of 16 bits: one rounding, at the end
        o.cast(o.mul(o.cast(x, dtype=kept.dtype), kept), dtype=x.dtype, out=out)


op("dropout2d(Tensor x, *, float p=0.5, int seed=0, int offset=0) -> Tensor", family="random", dtypes=FLOATS, infer=_infer_dropout2d,
   reference=_dropout2d, budget=Faithful(k=2), random=True, cost=lambda item, x, **_: Cost(flops=x.size, bytes=2 * item * x.size),
   composite="dropout makes one factor a channel, and mul by it runs at the speed of memory", compose=_compose_dropout2d,
   samples=[Sample(n, (In(s),), {"p": (0.5, 0.1, 0.9)[i % 3], **_SEEDS[i % 4]}) for i, (n, s) in enumerate(
       (("one", (1, 1)), ("vectors", (7, 13)), ("prime", (3, 5, 7)), ("image", (2, 13, 5, 7)), ("volume", (2, 3, 3, 2, 5)), ("nothing", (3, 4, 0)),
        ("past_tile", (2, 33, 1025))))] + [
       Sample("keeps_all", (In((3, 11, 2)),), {"p": 0.0, "seed": 3}), Sample("drops_all", (In((3, 11, 2)),), {"p": 1.0, "seed": 3}),
       Sample("resnet_conv2", (In((1, 256, 56, 56)),), {"p": 0.2, "seed": 42}, "ResNet-50 conv2_x feature maps", "training", ("vision",))],
   doc="x with whole channels (the second axis) dropped: times 1 / (1 - p) where a uniform float32 number, (word c >> 8) 2^-24 for channel c "
       "of all batches in row-major order, is at least p; times 0 elsewhere.", names={"paddle": ("dropout2d",)},
   grad=lambda o, dy, inputs, y, attrs: (o.dropout2d(dy, p=attrs["p"], seed=attrs["seed"], offset=attrs["offset"]),),
   bad=(Bad("vector", (In((3,)),), ShapeError, ("(3,)", "channels")), Bad("p_above_1", (In((3, 2)),), ArgumentError, ("p is 1.5",), {"p": 1.5})))
