"""Softmax of scaled attention scores of which some are masked: what it is.

How: kernels/cpu/masked_softmax.c, kernels/triton/masked_softmax.py.  Megatron-LM's and Apex's fused kernels, which write the scaled and
masked scores nowhere.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import DTypeError, ShapeError
from .budget import Conditioned
from .gradient import scaled
from .infer import broadcast, need_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op

_BOOL = BY_NAME["bool"]


def _scores(name: str, x: Spec) -> None:
    need_dtype(name, "x", x, FLOATS)
    if x.ndim < 2:
        raise ShapeError(f"{name}: x has shape {x.shape}; needs (..., queries, keys)")


def _infer_masked(x: Spec, mask: Spec, *, scale: float) -> Spec:
    name = "scaled_masked_softmax"
    _scores(name, x)
    if mask.dtype is not _BOOL:
        raise DTypeError(f"{name}: mask has dtype {mask.dtype}; needs bool, True where a score is masked; cast it first")
    if mask.ndim > x.ndim or broadcast(name, x.shape, mask.shape) != x.shape:
        raise ShapeError(f"{name}: mask is {mask.shape} for x of {x.shape}; it must broadcast to x")
    return x


def _infer_causal(x: Spec, *, scale: float) -> Spec:
    name = "scaled_upper_triang_masked_softmax"
    _scores(name, x)
    if x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"{name}: x is {x.shape}; needs as many queries as keys")
    return x


def _softmax(z):
    """0 for scores of -inf, in rows of nothing else too."""
    if not z.size:
        return z
    with np.errstate(all="ignore"):
        top = z.max(axis=-1, keepdims=True)
        e = np.exp(z - np.where(top == -np.inf, 0.0, top))
        return np.where(z == -np.inf, 0.0, e / e.sum(axis=-1, keepdims=True))


def _masked(x, mask, *, scale):
    with np.errstate(all="ignore"):
        return _softmax(np.where(mask, -np.inf, x * scale))


def _causal(x, *, scale):
    seen = np.tri(x.shape[-2], x.shape[-1], dtype=bool)
    with np.errstate(all="ignore"):
        return _softmax(np.where(seen, x * scale, -np.inf))


def _length(x: Spec, *_: Any, **__: Any) -> int:
    return x.shape[-1]


def _grad(o, dy, inputs, y, attrs):
    return (scaled(o, o.softmax_backward(dy, y, -1), attrs["scale"]), *(None for _ in inputs[1:]))


# 1s, primes, one past a run of 1024, rows longer than the kernels keep, zero sizes
_SHAPES = (("one", (1, 1)), ("prime", (7, 13)), ("past_run", (2, 1025)), ("heads", (2, 3, 5, 33)), ("empty_rows", (0, 3, 5)), ("no_keys", (3, 0)))
_MASKS = {"heads": (2, 1, 5, 33), "prime": (1, 13)}
_SQUARES = (("one", (1, 1)), ("prime", (13, 13)), ("heads", (2, 3, 33, 33)), ("past_run", (1025, 1025)), ("empty", (2, 0, 0)))
_HALF = {"scale": 0.5}
_X = In((3, 4))

op("scaled_masked_softmax(Tensor x, Tensor mask, float scale=1.0) -> Tensor", family="masked_softmax", dtypes=FLOATS, infer=_infer_masked,
   rule="same", reference=_masked, budget=Conditioned(k=4, terms=_length), grad=_grad,
   cost=lambda item, x, mask, **_: Cost(flops=6 * x.size, bytes=2 * item * x.size + mask.size),
   samples=[*(Sample(n, (In(s), In(_MASKS.get(n, s), "mask", "bool")), {"scale": 0.125 if i % 2 else 1.0}) for i, (n, s) in enumerate(_SHAPES)),
            Sample("all_masked", (In((2, 3)), In((2, 3), dtype="bool", values=(1, 1, 1, 0, 1, 0))), _HALF),
            Sample("minus_inf", (In((2, 3), dtype="float32", values=(*(-float("inf"),) * 3, 1, -float("inf"), 2)),
                                 In((2, 3), dtype="bool", values=(0, 0, 1, 0, 0, 1))), _HALF),
            Sample("negative_scale", (In((3, 17)), In((17,), "mask", "bool")), {"scale": -2.0}),
            Sample("long", (In((2, 8209)), In((2, 8209), "mask", "bool")), {}),
            Sample("gpt2_scores", (In((4, 12, 256, 256)), In((4, 1, 256, 256), "mask", "bool")), {"scale": 0.125}, "GPT-2 scores, 256 words",
                   "inference", ("full", "llm"))],
   bad=(Bad("mask_dtype", (_X, In((3, 4))), DTypeError, ("mask", "float32", "bool")),
        Bad("mask_shape", (_X, In((2, 3, 4), "mask", "bool")), ShapeError, ("(2, 3, 4)", "(3, 4)")),
        Bad("vector", (In((4,)), In((4,), "mask", "bool")), ShapeError, ("(4,)", "(..., queries, keys)"))),
   doc="softmax over the last axis of scale x, x (..., queries, keys), with probability 0 where mask is True; mask broadcasts to x.  A row "
       "without a score above -inf is 0 throughout.",
   names={"megatron": ("scaled_masked_softmax",), "apex": ("scaled_masked_softmax",)})

op("scaled_upper_triang_masked_softmax(Tensor x, float scale=1.0) -> Tensor", family="masked_softmax", dtypes=FLOATS, infer=_infer_causal,
   rule="same", reference=_causal, budget=Conditioned(k=4, terms=_length), grad=_grad,
   cost=lambda item, x, **_: Cost(flops=3 * x.size, bytes=2 * item * x.size),
   samples=[*(Sample(n, (In(s),), {"scale": 0.125 if i % 2 else 1.0}, "", "inference" if n == "past_run" else "core")
              for i, (n, s) in enumerate(_SQUARES)),
            Sample("negative_scale", (In((17, 17)),), {"scale": -2.0}),
            Sample("first_infinite", (In((2, 2), dtype="float32", values=(-float("inf"), 1, 0, 2)),), _HALF),
            Sample("gpt2_scores", (In((48, 256, 256)),), {"scale": 0.125}, "GPT-2 scores, 256 words", "inference", ("full", "llm"))],
   bad=(Bad("not_square", (In((3, 4)),), ShapeError, ("(3, 4)", "as many queries as keys")),
        Bad("vector", (In((4,)),), ShapeError, ("(4,)", "(..., queries, keys)")),
        Bad("int32", (In((4, 4), "int"),), DTypeError, ("int32", "float32"), dtype="int32")),
   doc="softmax over the last axis of scale x, x (..., n, n), in which query i sees keys 0 to i; the others have probability 0.",
   names={"megatron": ("scaled_upper_triang_masked_softmax",), "apex": ("scaled_upper_triang_masked_softmax",),
          "paddle": ("fused_softmax_mask_upper_triangle",)})
