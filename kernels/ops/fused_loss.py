"""The cross entropy of a linear layer's results, without the results: what it is.

How: kernels/cpu/fused_loss.c, kernels/triton/fused_loss.py.  The logits of a vocabulary are the largest tensor of a language model's
training step (Liger-Kernel, arXiv:2410.10989); here they exist a chunk at a time.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, IndexOutOfBounds, ShapeError
from .budget import Conditioned
from .infer import accumulator, need, need_dtype, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op

_INT64 = BY_NAME["int64"]


def _check(name: str, x: Spec, weight: Spec, target: Spec, bias: Spec | None, smoothing: float) -> None:
    need_dtype(name, "x", x, FLOATS)
    same_dtype(name, x, weight, bias)
    if target.dtype is not _INT64:
        raise DTypeError(f"{name}: target has dtype {target.dtype}; needs int64 class numbers; cast it first")
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or not weight.shape[0]:
        raise ShapeError(f"{name}: x is {x.shape} and weight {weight.shape}; needs (rows, n) and (classes, n), a class at least")
    if target.shape != x.shape[:1]:
        raise ShapeError(f"{name}: x is {x.shape} and target {target.shape}; target needs shape {x.shape[:1]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"{name}: bias is {bias.shape} for {weight.shape[0]} classes; needs {weight.shape[:1]}")
    need(0 <= smoothing <= 1, f"{name}: label_smoothing is {smoothing:g}; needs 0 <= label_smoothing <= 1")


def _infer(x: Spec, weight: Spec, target: Spec, bias: Spec | None, *, reduction: str, ignore_index: int, label_smoothing: float) -> tuple[Spec, Spec]:
    _check("fused_linear_cross_entropy", x, weight, target, bias, label_smoothing)
    return Spec(target.shape if reduction == "none" else (), x.dtype), Spec(target.shape, accumulator(x.dtype))


def _infer_backward(dy: Spec, x: Spec, weight: Spec, target: Spec, bias: Spec | None, logsumexp: Spec, *, reduction: str, ignore_index: int,
                    label_smoothing: float) -> tuple[Spec, Spec, Spec]:
    name = "fused_linear_cross_entropy_backward"
    _check(name, x, weight, target, bias, label_smoothing)
    same_dtype(name, x, dy)
    want = target.shape if reduction == "none" else ()
    if dy.shape != want:
        raise ShapeError(f"{name}: dy is {dy.shape}; needs {want} for reduction {reduction} and x of shape {x.shape}")
    if logsumexp.shape != target.shape or logsumexp.dtype is not accumulator(x.dtype):
        raise ShapeError(f"{name}: logsumexp is {logsumexp.dtype} {logsumexp.shape}; needs {accumulator(x.dtype)} {target.shape}")
    return x, weight, Spec(weight.shape[:1], x.dtype)


def _kept(name, target, classes, ignore):
    keep = target != ignore
    bad = keep & ((target < 0) | (target >= classes))
    if bad.any():
        at = int(bad.argmax())
        raise IndexOutOfBounds(f"{name}: target {target[at]} at position {at} is outside 0 <= target < {classes} and is not ignore_index ({ignore})")
    return keep, np.where(keep, target, 0)


def _loss(x, weight, target, bias, *, reduction, ignore_index, label_smoothing):
    keep, t = _kept("fused_linear_cross_entropy", target, weight.shape[0], ignore_index)
    with np.errstate(all="ignore"):
        z = x @ weight.T
        z = z if bias is None else z + bias
        top = z.max(axis=1, keepdims=True, initial=-np.inf)
        d = z - top
        logarithm = np.log(np.exp(d).sum(axis=1))
        hard = logarithm - d[np.arange(len(t)), t]
        smooth = logarithm - d.mean(axis=1) if label_smoothing else 0.0
        each = np.where(keep, (1 - label_smoothing) * hard + label_smoothing * smooth, 0.0)
        lse = np.where(keep, logarithm + top[:, 0], 0.0)
        if reduction == "none":
            return each, lse
        return np.asarray(each.sum() / np.float64(keep.sum()) if reduction == "mean" else each.sum()), lse


def _slopes(dy, x, weight, target, bias, logsumexp, *, reduction, ignore_index, label_smoothing):
    keep, t = _kept("fused_linear_cross_entropy_backward", target, weight.shape[0], ignore_index)
    with np.errstate(all="ignore"):
        z = x @ weight.T
        z = z if bias is None else z + bias
        g = np.exp(z - logsumexp[:, None]) - label_smoothing / weight.shape[0]
        g[np.arange(len(t)), t] -= 1 - label_smoothing
        scale = np.where(keep, dy / np.float64(keep.sum()) if reduction == "mean" else dy, 0.0)
        g = np.where(keep[:, None], g * scale[:, None], 0.0)
        return g @ weight, g.T @ x, g.sum(axis=0)


def _terms(x: Spec, weight: Spec, *_: Any, **__: Any) -> int:
    return x.shape[1] + weight.shape[0] + x.shape[0]


def _terms_backward(dy: Spec, x: Spec, weight: Spec, *_: Any, **__: Any) -> int:
    return _terms(x, weight)


def _cost(item: int, x: Spec, weight: Spec, *_: Any, **__: Any) -> Cost:
    return Cost(flops=2 * x.size * weight.shape[0], bytes=item * (x.size + weight.size))


def _cost_backward(item: int, dy: Spec, x: Spec, weight: Spec, *_: Any, **__: Any) -> Cost:
    return Cost(flops=6 * x.size * weight.shape[0], bytes=2 * item * (x.size + weight.size))


def _grad(o, dy, inputs, outputs, attrs):
    x, weight, target, bias = inputs
    dx, dw, db = o.fused_linear_cross_entropy_backward(dy, x, weight, target, bias, outputs[1], attrs["reduction"], attrs["ignore_index"],
                                                       attrs["label_smoothing"])
    return dx, dw, None, None if bias is None else db


# name, rows, n, classes, bias, attributes; past_chunk: more than 128 rows, and more classes than 65536 / rows
_CASES: tuple[tuple[Any, ...], ...] = (
    ("one", 1, 1, 1, False, {}), ("prime", 7, 5, 13, True, {}), ("none", 7, 5, 13, False, {"reduction": "none"}),
    ("sum", 33, 7, 5, True, {"reduction": "sum"}), ("past_chunk", 129, 3, 517, True, {}), ("wide", 3, 9, 2053, False, {}),
    ("smooth", 9, 5, 31, True, {"label_smoothing": 0.1}), ("smooth_none", 9, 5, 31, False, {"label_smoothing": 0.3, "reduction": "none"}),
    ("ignored", 33, 5, 4, False, {"ignore_index": 2}), ("no_rows", 0, 5, 4, True, {"reduction": "sum"}), ("no_rows_mean", 0, 5, 4, False, {}),
    ("no_length", 3, 0, 4, True, {}))
_MODELS = (("gpt2_head", 128, 768, 8192, "GPT-2 head, 128 words, a sixth of its vocabulary", "training", ("full",)),
           ("llama_head", 256, 4096, 32000, "Llama-7B head, 256 words", "full", ("full", "llm")))


def _samples(backward: bool) -> list[Sample]:
    def inputs(rows: int, n: int, classes: int, bias: bool, attrs: dict[str, Any], values: Any = None) -> tuple[In | None, ...]:
        given = (In((rows, n)), In((classes, n), "uniform"), In((rows,), "index", "int64", classes, values), In((classes,)) if bias else None)
        if not backward:
            return given
        # about log(sum exp) of such logits, so that probabilities stay near 1
        return In((rows,) if attrs.get("reduction") == "none" else ()), *given, In((rows,), "positive", "acc")

    base = {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.0} if backward else {}
    found = [Sample(name, inputs(sizes[0], sizes[1], sizes[2], sizes[3], attrs), {**base, **attrs}) for name, *sizes, attrs in _CASES if not (backward and name in ("wide", "no_rows_mean"))]
    found.append(Sample("ignored_default", inputs(5, 3, 7, True, {}, (0, -100, 6, -100, 3)), base))
    return found + [Sample(name, inputs(rows, n, classes, False, {}), base, model, level, bench) for name, rows, n, classes, model, level, bench in _MODELS
                    if not (backward and n > 1000)]  # drawn logits of long rows are no neighbours of the drawn logsumexp


def _bad(backward: bool) -> tuple[Bad, ...]:
    attrs = {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.0} if backward else {}
    x, w, t = In((4, 3)), In((5, 3)), In((4,), "index", "int64", 5)
    before, after = ((In(()),), (In((4,), dtype="acc"),)) if backward else ((), ())

    def case(name: str, given: tuple[In | None, ...], error: type[Exception], words: tuple[str, ...], more: dict[str, Any] | None = None) -> Bad:
        return Bad(name, (*before, *given, *after), error, words, {**attrs, **(more or {})})

    return (case("target_77_of_5", (x, w, In((4,), dtype="int64", values=(0, 1, 77, 4)), None), IndexOutOfBounds, ("target 77", "position 2", "5")),
            case("lengths", (x, In((5, 4)), t, None), ShapeError, ("(4, 3)", "(5, 4)")),
            case("target_shape", (x, w, In((3,), "index", "int64", 5), None), ShapeError, ("(4, 3)", "(3,)", "(4,)")),
            case("bias_shape", (x, w, t, In((4,))), ShapeError, ("bias", "(4,)", "(5,)")),
            case("weight_dtype", (x, In((5, 3), dtype="float64"), t, None), DTypeError, ("float32", "float64")),
            case("label_smoothing", (x, w, t, None), ArgumentError, ("label_smoothing is 1.5",), {"label_smoothing": 1.5}))


_FAMILY: dict[str, Any] = {"family": "fused_loss", "dtypes": FLOATS}

op("fused_linear_cross_entropy(Tensor x, Tensor weight, Tensor target, Tensor? bias=None, {none|mean|sum} reduction='mean', int ignore_index=-100, "
   "float label_smoothing=0.0) -> (Tensor loss, Tensor logsumexp)", **_FAMILY, infer=_infer, reference=_loss,
   budget=Conditioned(k=4, terms=_terms), cost=_cost, samples=_samples(False), bad=_bad(False), grad=_grad,
   doc="cross_entropy of the logits x weight^T + bias, x (rows, n), weight (classes, n), target (rows,) int64; the logits are made in chunks and "
       "kept nowhere.  logsumexp (rows,), in the accumulator's dtype, is what the gradient needs; 0 for rows that do not count.",
   names={"liger": ("fused_linear_cross_entropy",)})

op("fused_linear_cross_entropy_backward(Tensor dy, Tensor x, Tensor weight, Tensor target, Tensor? bias, Tensor logsumexp, {none|mean|sum} reduction, "
   "int ignore_index, float label_smoothing) -> (Tensor dx, Tensor dweight, Tensor dbias)", **_FAMILY, infer=_infer_backward, reference=_slopes,
   budget=Conditioned(k=4, terms=_terms_backward, roundings=1), cost=_cost_backward, samples=_samples(True), bad=_bad(True),
   doc="Gradients of fused_linear_cross_entropy from its logsumexp; logits are made again, in chunks of classes, and their slopes are rounded to x's "
       "dtype before they are multiplied.  dbias always has the shape (classes,).", names={"liger": ("fused_linear_cross_entropy_backward",)})
