"""nll_loss, cross_entropy and their gradients: what they are.  How: kernels/cpu/loss.c, kernels/triton/loss.py."""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, IndexOutOfBounds, ShapeError
from .budget import Conditioned, Faithful, Reduction
from .gradient import scaled
from .infer import need, need_dtype, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op

_INT64 = BY_NAME["int64"]


def _check(name, x, target, weight):
    need_dtype(name, "x", x, FLOATS)
    if x.ndim not in (1, 2):
        raise ShapeError(f"{name}: x has shape {x.shape}; needs (N, C) or (C,); move the classes last and reshape")
    if target.dtype is not _INT64:
        raise DTypeError(f"{name}: target has dtype {target.dtype}; needs int64 class numbers; cast it first")
    if target.shape != x.shape[:-1]:
        raise ShapeError(f"{name}: x is {x.shape} and target {target.shape}; target needs shape {x.shape[:-1]}")
    if weight is not None:
        same_dtype(name, x, weight)
        if weight.shape != x.shape[-1:]:
            raise ShapeError(f"{name}: weight is {weight.shape} for {x.shape[-1]} classes; needs {x.shape[-1:]}")


def _loss(name, pair=False):
    def infer(x: Spec, target: Spec, weight: Spec | None, *, reduction: str, ignore_index: int,
              label_smoothing: float = 0.0) -> Any:
        _check(name, x, target, weight)
        need(0 <= label_smoothing <= 1, f"{name}: label_smoothing is {label_smoothing:g}; needs 0 <= label_smoothing "
                                        "<= 1")
        y = Spec(target.shape if reduction == "none" else (), x.dtype)
        return (y, Spec((), x.dtype)) if pair else y

    return infer


def _infer_backward(dy: Spec, x: Spec, target: Spec, weight: Spec | None, total_weight: Spec, *, reduction: str,
                    ignore_index: int) -> Spec:
    name = "nll_loss_backward"
    _check(name, x, target, weight)
    same_dtype(name, x, dy, total_weight)
    want = target.shape if reduction == "none" else ()
    if dy.shape != want:
        raise ShapeError(f"{name}: dy is {dy.shape}; needs {want} for reduction {reduction} and x of shape {x.shape}")
    if total_weight.shape != ():
        raise ShapeError(f"{name}: total_weight is {total_weight.shape}; needs one number, shape ()")
    return x


def _kept(name, classes, target, weight, ignore_index):
    """Per row: whether it counts, its class (0 where ignored), its weight (0 where ignored)."""
    t = target.reshape(-1)
    keep = t != ignore_index
    bad = keep & ((t < 0) | (t >= classes))
    if bad.any():
        at = int(bad.argmax())
        raise IndexOutOfBounds(f"{name}: target {t[at]} at position {at} is outside 0 <= target < {classes} and is not "
                               f"ignore_index ({ignore_index})")
    t = np.where(keep, t, 0)
    if not classes:
        return keep, t, np.zeros(t.shape)
    return keep, t, np.where(keep, 1.0 if weight is None else weight[t], 0.0)


def _nll(name, x, target, weight, reduction, ignore_index):
    """Losses reduced, and the sum of the weights that counted (0 for reduction none, as aten)."""
    x2 = x.reshape(-1, x.shape[-1]) if x.size else np.zeros((target.size, x.shape[-1]))
    keep, t, w = _kept(name, x2.shape[-1], target, weight, ignore_index)
    with np.errstate(all="ignore"):
        losses = np.where(keep, -w * x2[np.arange(len(t)), t], 0.0) if x2.shape[-1] else np.zeros(len(t))
        if reduction == "none":
            return losses.reshape(target.shape), np.float64(0)
        total = w.sum()
        return np.asarray(losses.sum() / total if reduction == "mean" else losses.sum()), np.asarray(total)


def _nll_loss_forward(x, target, weight, *, reduction, ignore_index):
    return _nll("nll_loss_forward", x, target, weight, reduction, ignore_index)


def _nll_loss(x, target, weight, *, reduction, ignore_index):
    return _nll("nll_loss", x, target, weight, reduction, ignore_index)[0]


def _magnitude(reference):
    def magnitude(x, target, weight, **attrs):
        return reference(-np.abs(x), target, None if weight is None else np.abs(weight), **attrs)

    return magnitude


def _nll_loss_backward(dy, x, target, weight, total_weight, *, reduction, ignore_index):
    keep, t, w = _kept("nll_loss_backward", x.shape[-1], target, weight, ignore_index)
    dx = np.zeros((target.size, x.shape[-1]))
    with np.errstate(all="ignore"):
        g = -w * dy.reshape(-1)
        g = g / total_weight if reduction == "mean" else g
    dx[np.nonzero(keep)[0], t[keep]] = g[keep]
    return dx.reshape(x.shape)


def _cross_entropy(x, target, weight, *, reduction, ignore_index, label_smoothing):
    with np.errstate(all="ignore"):
        z = x - x.max(axis=-1, keepdims=True, initial=-np.inf)
        logp = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    nll, total = _nll("cross_entropy", logp, target, weight, reduction, ignore_index)
    if not label_smoothing:
        return nll
    keep, _, _ = _kept("cross_entropy", x.shape[-1], target, weight, ignore_index)
    smooth = np.where(keep, -(logp if weight is None else logp * weight).sum(axis=-1).reshape(-1), 0.0)
    with np.errstate(all="ignore"):
        if reduction == "none":
            smooth = smooth.reshape(target.shape)
        else:
            smooth = smooth.sum() / (total if reduction == "mean" else 1.0)
    return np.asarray((1 - label_smoothing) * nll + label_smoothing / x.shape[-1] * smooth)


def _rows(x: Spec, *_: Any, **__: Any) -> int:
    return x.shape[0] if x.ndim == 2 else 1


def _entropy_terms(x: Spec, *_: Any, **__: Any) -> int:
    return x.shape[-1] + _rows(x)


def _nll_cost(item: int, x: Spec, target: Spec, weight: Spec | None, **_: Any) -> Cost:
    """One element of each row is read."""
    return Cost(flops=2 * target.size,
                bytes=target.size * (item + target.dtype.itemsize) + (weight.size * item if weight else 0))


def _backward_cost(item: int, dy: Spec, x: Spec, target: Spec, *_: Any, **__: Any) -> Cost:
    return Cost(flops=2 * target.size, bytes=x.size * item + target.size * target.dtype.itemsize + dy.size * item)


def _entropy_cost(item: int, x: Spec, target: Spec, *_: Any, **__: Any) -> Cost:
    return Cost(flops=5 * x.size, bytes=x.size * item + target.size * target.dtype.itemsize)


def _nll_forward_grad(o, dy, inputs, outputs, attrs):
    x, target, weight = inputs
    return o.nll_loss_backward(dy, x, target, weight, attrs["reduction"], attrs["ignore_index"], outputs[1]), None, None


def _nll_grad(o, dy, inputs, y, attrs):
    outputs = o.nll_loss_forward(*inputs, attrs["reduction"], attrs["ignore_index"])
    return _nll_forward_grad(o, dy, inputs, outputs, attrs)


def _cross_entropy_grad(o, dy, inputs, y, attrs):
    x, target, weight = inputs
    reduction, ignore, smoothing = attrs["reduction"], attrs["ignore_index"], attrs["label_smoothing"]
    logp = o.log_softmax(x, -1)
    outputs = o.nll_loss_forward(logp, target, weight, reduction, ignore)
    d, _, _ = _nll_forward_grad(o, dy, (logp, target, weight), outputs, attrs)
    if smoothing:
        column = (*target.shape, 1)
        kept = o.cast(o.ne(target, o.full((), float(ignore), dtype=_INT64)), dtype=x.dtype).reshape(column)
        g = o.mul(kept,
                  dy.reshape(column) if reduction == "none" else o.div(dy, outputs[1]) if reduction == "mean" else dy)
        g = g if weight is None else o.mul(g, weight)
        d = o.add(scaled(o, d, 1 - smoothing), g, alpha=-smoothing / x.shape[-1])
    return o.log_softmax_backward(d, logp, -1), None, None


# name, x, weight given, attributes; classes are prime, one past a tile, or a vocabulary
_CASES: tuple[tuple[Any, ...], ...] = (("vector", (5,), False, {}), ("one", (1, 1), False, {}), ("prime", (7, 13), False, {}),
          ("none", (7, 13), True, {"reduction": "none"}),
          ("sum", (7, 13), True, {"reduction": "sum"}), ("mean_weighted", (129, 5), True, {}),
          ("vector_none", (5,), True, {"reduction": "none"}),
          ("ignored", (33, 5), False, {"ignore_index": 2}),
          ("ignored_none", (33, 5), True, {"ignore_index": 2, "reduction": "none"}),
          ("ignored_weighted", (33, 5), True, {"ignore_index": 0}),
          ("no_rows_sum", (0, 5), False, {"reduction": "sum"}),
          ("no_rows_none", (0, 5), False, {"reduction": "none"}), ("no_rows_mean", (0, 5), False, {}),
          ("past_tile", (3, 1025), False, {}))
# past a chunk of classes (2048; by enough for the largest to lie behind it) and blocks of rows (C, 256; Triton, 512)
_PAST: tuple[tuple[Any, ...], ...] = (("past_classes", (5, 3083), True, {}), ("many_rows", (523, 5), True, {}))
_PAST_SMOOTH = (("smooth_past_classes", (5, 3083), True, {"label_smoothing": 0.1}),
                ("smooth_past_classes_plain", (5, 3083), False, {"label_smoothing": 0.9}))
_SMOOTH = tuple((f"smooth_{n}", x, w, {**a, "label_smoothing": 0.1}) for n, x, w, a in _CASES if n in (
    "vector", "prime", "none", "sum", "mean_weighted", "ignored", "ignored_none", "ignored_weighted")) + (
    ("uniform_targets", (7, 5), False, {"label_smoothing": 1.0}),)
_BERT = ("bert_labels", (128, 30522), "BERT-base masked words", "training")
_LLAMA = ("llama_labels", (128, 32000), "Llama-7B next words", "full")


def _args(x, weighted, draw="logp", values=None):
    target = In(x[:-1], "index", "int64", x[-1], values)
    return In(x, draw), target, In(x[-1:], "positive") if weighted else None


def _mixed(draw):
    """Ignored rows by the default -100, and every row ignored."""
    return [Sample("ignored_default", _args((5, 7), False, draw, (0, -100, 6, -100, 3)), {}),
            Sample("all_ignored", _args((3, 7), False, draw, (-100, -100, -100)), {}),
            Sample("all_ignored_sum", _args((3, 7), True, draw, (-100, -100, -100)), {"reduction": "sum"})]


def _samples(cases, draw, level_model):
    models = [Sample(n, _args(x, False, draw), {}, m, level, bench) for (n, x, m, level), bench in level_model]
    past = _PAST + (_PAST_SMOOTH if draw == "normal" else ())
    found = [Sample(n, _args(x, w, draw), a) for n, x, w, a in cases]
    return found + [Sample(n, _args(x, w, draw), a, cover="once") for n, x, w, a in past] + _mixed(draw) + models


def _backward_samples():
    found = []
    for s in _samples(_CASES, "logp", ((_BERT, ("full",)),)):
        x, target, weight = s.inputs
        reduction = s.attrs.get("reduction", "mean")
        dy = In(target.shape if reduction == "none" else ())
        attrs = {"ignore_index": -100, "reduction": reduction, **s.attrs}
        found.append(Sample(s.name, (dy, x, target, weight, In((), "positive")), attrs, s.model, s.level, s.bench, s.cover))
    return found


_X, _T = In((4, 5)), In((4,), "index", "int64", 5)
_MEAN = {"reduction": "mean", "ignore_index": -100}


def _bad(before=(), after=(), attrs=None, tail=()):
    attrs = attrs or {}

    def case(name, x, target, weight, error, words):
        return Bad(name, (*before, x, target, weight, *after), error, words, attrs)

    return (case("target_77_of_5", _X, In((4,), dtype="int64", values=(0, 1, 77, 4)), None, IndexOutOfBounds,
                 ("target 77", "position 2", "5")),
            case("target_-1_of_5", _X, In((4,), dtype="int64", values=(0, -1, 3, 4)), None, IndexOutOfBounds,
                 ("target -1", "position 1", "5")),
            case("late_target", In((1100, 5)), In((1100,), dtype="int64", values=(*(1,) * 1090, 5, *(2,) * 9)), None, IndexOutOfBounds,
                 ("target 5", "position 1090", "5")),
            case("target_shape", _X, In((3,), "index", "int64", 5), None, ShapeError, ("(4, 5)", "(3,)", "(4,)")),
            case("target_dtype", _X, In((4,)), None, DTypeError, ("target", "float32", "int64")),
            case("weight_shape", _X, _T, In((4,)), ShapeError, ("weight", "(4,)", "(5,)")),
            case("three_axes", In((4, 5, 2)), _T, None, ShapeError, ("(4, 5, 2)", "(N, C)")),
            case("weight_dtype", _X, _T, In((5,), dtype="float64"), DTypeError, ("float32", "float64")), *tail)


_FAMILY: dict[str, Any] = {"family": "loss", "dtypes": FLOATS}
_DOC = ("Weighted mean, sum or row by row (none) of -weight[target] x[target] over the rows of log-probabilities x (N, "
        "C) or (C,); rows whose target (int64) is ignore_index do not count; the mean divides by the weights that do "
        "(none: NaN).  Another target outside 0 <= target < C is an IndexOutOfBounds.")

op("nll_loss(Tensor x, Tensor target, Tensor? weight=None, {none|mean|sum} reduction='mean', int ignore_index=-100) "
   "-> Tensor", **_FAMILY, infer=_loss("nll_loss"), reference=_nll_loss,
   budget=Reduction(terms=_rows, magnitude=_magnitude(_nll_loss), probe=False),
   cost=_nll_cost, samples=_samples(_CASES, "logp", ((_BERT, ()), (_LLAMA, ("full", "llm")))), bad=_bad(),
   grad=_nll_grad, doc=_DOC,
   names={"onnx": ("NegativeLogLikelihoodLoss",), "paddle": ("nll_loss",)})

op("nll_loss_forward(Tensor x, Tensor target, Tensor? weight=None, {none|mean|sum} reduction='mean', "
   "int ignore_index=-100) -> (Tensor output, Tensor total_weight)", **_FAMILY, infer=_loss("nll_loss_forward", True),
   reference=_nll_loss_forward,
   budget=Reduction(terms=_rows, magnitude=_magnitude(_nll_loss_forward), probe=False), cost=_nll_cost,
   samples=_samples([c for c in _CASES if c[0] != "vector_none"], "logp", ((_BERT, ()),)), bad=_bad(),
   grad=_nll_forward_grad,
   doc=_DOC + "  total_weight: the sum of the weights that counted, 0 for reduction none.",
   names={"aten": ("nll_loss_forward",)})

op("nll_loss_backward(Tensor dy, Tensor x, Tensor target, Tensor? weight, {none|mean|sum} reduction, int ignore_index, "
   "Tensor total_weight) -> Tensor", **_FAMILY, infer=_infer_backward, reference=_nll_loss_backward,
   budget=Faithful(k=4), cost=_backward_cost, samples=_backward_samples(),
   doc="Gradient of nll_loss: -weight[target] dy (divided by total_weight for the mean) at the target of each row that "
       "counts, 0 elsewhere.",
   names={"aten": ("nll_loss_backward",)},
   bad=_bad((In(()),), (In(()),), _MEAN, (
       Bad("dy_shape", (In((4,)), _X, _T, None, In(())), ShapeError, ("dy", "(4,)", "()"), _MEAN),
       Bad("total_shape", (In(()), _X, _T, None, In((4,))), ShapeError, ("total_weight", "(4,)", "()"), _MEAN))))

op("cross_entropy(Tensor x, Tensor target, Tensor? weight=None, {none|mean|sum} reduction='mean', "
   "int ignore_index=-100, float label_smoothing=0.0) -> Tensor", **_FAMILY,
   infer=_loss("cross_entropy"), reference=_cross_entropy, budget=Conditioned(k=4, terms=_entropy_terms),
   cost=_entropy_cost, grad=_cross_entropy_grad,
   samples=_samples(_CASES + _SMOOTH, "normal", ((_BERT, ("full",)), (_LLAMA, ("full", "llm")))),
   doc="nll_loss of log_softmax(x) over the classes.  label_smoothing e: (1 - e) of it and e / C of the sum over all "
       "classes of -weight log_softmax(x), reduced alike.",
   names={"onnx": ("SoftmaxCrossEntropyLoss",), "paddle": ("cross_entropy",)},
   bad=_bad(tail=(Bad("label_smoothing", (_X, _T, None), ArgumentError, ("label_smoothing is 1.5",),
                      {"label_smoothing": 1.5}),)))
