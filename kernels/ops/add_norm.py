"""Layer and RMS normalisation of x plus a residual, the sum being a second result: what they are.

How: kernels/cpu/add_norm.c, kernels/triton/add_norm.py, one reading of both operands.  Not here: normalisation alone (norm.py).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...hal.errors import DTypeError, ShapeError
from .budget import Conditioned
from .infer import need_dtype, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op


def _infer(name: str, words: tuple[str, ...]) -> Callable[..., tuple[Spec, Spec]]:
    def infer(x: Spec, residual: Spec, *rows: Spec | None, eps: float) -> tuple[Spec, Spec]:
        need_dtype(name, "x", x, FLOATS)
        same_dtype(name, x, residual, *rows)
        if not x.ndim:
            raise ShapeError(f"{name}: x has shape (); needs an axis to normalise over")
        if residual.shape != x.shape:
            raise ShapeError(f"{name}: x is {x.shape} and the residual {residual.shape}; they must be equal")
        for word, row in zip(words, rows, strict=True):
            if row is not None and row.shape != x.shape[-1:]:
                raise ShapeError(f"{name}: {word} is {row.shape} for x of {x.shape}; needs {x.shape[-1:]}")
        return x, x

    return infer


def _sum(x, residual, bias=None):
    return x + residual if bias is None else x + residual + bias


def _norm(z, weight, beta, eps, layer):
    if not z.size:
        return z
    with np.errstate(all="ignore"):
        if layer:
            z = z - z.mean(axis=-1, keepdims=True)
        y = z / np.sqrt((z * z).mean(axis=-1, keepdims=True) + eps)
        y = y if weight is None else y * weight
        return y if beta is None else y + beta


def _add_rms(x, residual, weight, *, eps):
    z = _sum(x, residual)
    return _norm(z, weight, None, eps, False), z


def _add_layer(x, residual, weight, beta, *, eps):
    z = _sum(x, residual)
    return _norm(z, weight, beta, eps, True), z


def _skip_layer(x, skip, gamma, beta, bias, *, eps):
    z = _sum(x, skip, bias)
    return _norm(z, gamma, beta, eps, True), z


def _length(x: Spec, *_: Any, **__: Any) -> int:
    return x.shape[-1] if x.ndim else 1


def _cost(item: int, x: Spec, *rest: Spec | None, **_: Any) -> Cost:
    return Cost(flops=9 * x.size, bytes=item * (4 * x.size + sum(s.size for s in rest[1:] if s is not None)))


def _rms_grad(o, dy, inputs, outputs, attrs):
    """Of the first result; of both operands alike."""
    x, _, weight = inputs
    z, shape = outputs[1], (x.shape[-1],)
    mean = o.mean(o.mul(z, z), (-1,), True)
    rstd = o.rsqrt(o.add(mean, o.full((), attrs["eps"], dtype=x.dtype)))
    dx, dw = o.fused_rms_norm_backward(dy, z, shape, rstd, weight)
    return dx, dx, None if weight is None else dw


def _layer_grad(o, dy, inputs, outputs, attrs):
    x, _, weight, beta, *bias = inputs
    z, shape = outputs[1], (x.shape[-1],)
    _, mean, rstd = o.native_layer_norm(z, shape, weight, beta, attrs["eps"])
    dx, dw, db = o.native_layer_norm_backward(dy, z, shape, mean, rstd, weight, beta)
    extra = (None if bias[0] is None else o.sum(dx, tuple(range(x.ndim - 1)), False) if x.ndim > 1 else dx,) if bias else ()
    return dx, dx, None if weight is None else dw, None if beta is None else db, *extra


# 1s, primes, one past a run of 1024, one past what the stack of the host kernel holds (2048) and what a Triton program holds (8192)
_SHAPES = (("one", (1, 1)), ("vector", (5,)), ("prime", (7, 13)), ("rank3", (2, 3, 33)), ("past_run", (3, 1025)), ("past_stack", (2, 2053)),
           ("past_block", (1, 8195)), ("empty_rows", (0, 5)), ("no_elements", (3, 0)))


def _samples(given: tuple[bool, ...], eps: float) -> list[Sample]:
    """given: which of the optional rows a sample has by turns; the required ones always."""
    found = []
    for i, (name, shape) in enumerate(_SHAPES):
        rows = [In(shape[-1:]) if not optional or (i + k) % 2 == 0 else None for k, optional in enumerate(given)]
        found.append(Sample(name, (In(shape), In(shape), *rows), {"eps": eps}))
    rows = [In((65,)) for _ in given]
    found.append(Sample("all", (In((9, 65)), In((9, 65)), *rows), {"eps": 0.1}))
    found.append(Sample("none", (In((9, 65)), In((9, 65)), *(In((65,)) if not optional else None for optional in given)), {"eps": eps}))
    for name, shape, model in (("bert_hidden", (128, 768), "BERT-base residual stream, 128 words"), ("llama_hidden", (128, 4096), "Llama-7B residual stream, 128 words")):
        found.append(Sample(name, (In(shape), In(shape), *(In(shape[-1:]) for _ in given)), {"eps": eps}, model, "inference", ("full", "llm")))
    return found


def _bad(given: tuple[bool, ...]) -> tuple[Bad, ...]:
    x, rest = In((3, 4)), [In((4,)) for _ in given]
    return (Bad("residual_shape", (x, In((4, 3)), *rest), ShapeError, ("(3, 4)", "(4, 3)")),
            Bad("weight_shape", (x, x, In((3,)), *rest[1:]), ShapeError, ("(3,)", "(4,)")),
            Bad("weight_dtype", (x, x, In((4,), dtype="float64"), *rest[1:]), DTypeError, ("float32", "float64")),
            Bad("scalar", (In(()), In(()), *(In(()) for _ in given)), ShapeError, ("()", "axis")))


_FAMILY: dict[str, Any] = {"family": "add_norm", "dtypes": FLOATS, "cost": _cost, "budget": Conditioned(k=4, terms=_length)}
_SUM = "  sum: the sum itself, rounded once; the normalisation is that of the sum before rounding."

op("add_rms_norm(Tensor x, Tensor residual, Tensor? weight=None, *, float eps=1e-6) -> (Tensor out, Tensor sum)", **_FAMILY,
   infer=_infer("add_rms_norm", ("weight",)), reference=_add_rms, samples=_samples((True,), 1e-6), bad=_bad((True,)), grad=_rms_grad,
   doc="z / sqrt(mean(z^2) + eps) over the last axis of z = x + residual, times weight." + _SUM,
   names={"vllm": ("fused_add_rms_norm",), "ascend": ("npu_add_rms_norm",)})

op("add_layer_norm(Tensor x, Tensor residual, Tensor? weight=None, Tensor? beta=None, *, float eps=1e-5) -> (Tensor out, Tensor sum)", **_FAMILY,
   infer=_infer("add_layer_norm", ("weight", "beta")), reference=_add_layer, samples=_samples((True, True), 1e-5), bad=_bad((True, True)),
   grad=_layer_grad, doc="layer_norm over the last axis of x + residual." + _SUM, names={"ascend": ("npu_add_layer_norm",)})

op("skip_layer_norm(Tensor x, Tensor skip, Tensor gamma, Tensor? beta=None, Tensor? bias=None, *, float eps=1e-12) -> (Tensor out, Tensor sum)",
   **_FAMILY, infer=_infer("skip_layer_norm", ("gamma", "beta", "bias")), reference=_skip_layer, samples=_samples((False, True, True), 1e-12),
   bad=_bad((False, True, True)), grad=_layer_grad,
   doc="layer_norm over the last axis of x + skip + bias, with weight gamma and bias beta: ONNX Runtime's SkipLayerNormalization." + _SUM,
   names={"onnxruntime": ("SkipLayerNormalization",)})
