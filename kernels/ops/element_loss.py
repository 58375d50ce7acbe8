"""Losses of a prediction and a target element by element, and their gradients: what they are.

How: kernels/cpu/element_loss.c, kernels/triton/element_loss.py, one reading of the operands whatever the reduction is.
Not here: losses over class numbers (loss.py).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Conditioned
from .gradient import count, scaled, unbroadcast
from .infer import broadcast, need, need_dtype, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op

_NEEDS = {"beta": (lambda v: v >= 0, "0 or more"), "delta": (lambda v: v > 0, "more than 0"), "gamma": (lambda v: v >= 0, "0 or more")}


# ---- shapes ---------------------------------------------------------------------------------------------------------------
def _shape(name: str, x: Spec, target: Spec, weights: tuple[Spec | None, ...], equal: bool, attrs: dict[str, Any]) -> tuple[int, ...]:
    """The common shape of the operands; with ``equal`` x and target have it already and weights repeat along it."""
    need_dtype(name, "x", x, FLOATS)
    same_dtype(name, x, target, *weights)
    for key, (holds, words) in _NEEDS.items():
        if key in attrs:
            need(holds(attrs[key]), f"{name}: {key} is {attrs[key]:g}; needs {words}")
    if equal and x.shape != target.shape:
        raise ShapeError(f"{name}: x is {x.shape} and target {target.shape}; they must be equal")
    shape = broadcast(name, x.shape, target.shape, *(w.shape for w in weights if w is not None))
    if equal and shape != x.shape:
        raise ShapeError(f"{name}: the weights broadcast x from {x.shape} to {shape}; they must fit into x")
    return shape


def _forward(name: str, equal: bool) -> Callable[..., Spec]:
    def infer(x: Spec, target: Spec, *weights: Spec | None, reduction: str, **attrs: Any) -> Spec:
        shape = _shape(name, x, target, weights, equal, attrs)
        return Spec(shape if reduction == "none" else (), x.dtype)

    return infer


def _backward(name: str, equal: bool) -> Callable[..., Spec]:
    def infer(dy: Spec, x: Spec, target: Spec, *weights: Spec | None, reduction: str, **attrs: Any) -> Spec:
        shape = _shape(name, x, target, weights, equal, attrs)
        same_dtype(name, x, dy)
        if dy.shape not in ((), shape if reduction == "none" else ()):
            raise ShapeError(f"{name}: dy is {dy.shape}; needs {shape if reduction == 'none' else ()} for reduction {reduction}")
        return Spec(shape, x.dtype)

    return infer


# ---- references -------------------------------------------------------------------------------------------------------------
def _xlogy(x, y):
    from scipy.special import xlogy

    return xlogy(x, y)


def _expit(x):
    from scipy.special import expit

    return expit(x)


def _logits(x, target, pos_weight=None):
    """-(w t log sigmoid(x) + (1 - t) log(1 - sigmoid(x))), w: pos_weight."""
    w = 1.0 if pos_weight is None else pos_weight
    return target * w * np.logaddexp(0.0, -x) + (1 - target) * np.logaddexp(0.0, x)


def _logits_slope(x, target, pos_weight=None):
    w = 1.0 if pos_weight is None else pos_weight
    return (1 - target) * _expit(x) - target * w * _expit(-x)


def _smooth(x, target, *, beta):
    a = np.abs(x - target)
    return np.where(a < beta, 0.5 * a * a / (beta or 1.0), a - 0.5 * beta)


def _smooth_slope(x, target, *, beta):
    d = x - target
    return np.clip(d / beta, -1.0, 1.0) if beta else np.where(d > 0, 1.0, np.where(d <= 0, -1.0, d))


def _huber(x, target, *, delta):
    a = np.abs(x - target)
    return np.where(a <= delta, 0.5 * a * a, delta * (a - 0.5 * delta))


def _huber_slope(x, target, *, delta):
    return np.clip(x - target, -delta, delta)


def _entropy(x, target):
    return (target - 1) * np.maximum(np.log1p(-x), -100.0) - target * np.maximum(np.log(x), -100.0)


def _entropy_slope(x, target):
    return (x - target) / np.maximum((1 - x) * x, 1e-12)


def _divergence(x, target, *, log_target):
    return np.exp(target) * (target - x) if log_target else _xlogy(target, target) - target * x


def _focal_parts(x, target, alpha):
    """(1 - the probability of the target, its derivative, the weight of the class)."""
    p, q = _expit(x), _expit(-x)
    return p * (1 - target) + q * target, p * q * (1 - 2 * target), alpha * target + (1 - alpha) * (1 - target) if alpha >= 0 else 1.0


def _focal(x, target, *, alpha, gamma):
    miss, _, weight = _focal_parts(x, target, alpha)
    return weight * _logits(x, target) * miss**gamma


def _focal_slope(x, target, *, alpha, gamma):
    miss, slope, weight = _focal_parts(x, target, alpha)
    tail = gamma * miss ** (gamma - 1) * slope * _logits(x, target) if gamma else 0.0
    return weight * (miss**gamma * _logits_slope(x, target) + tail)


def _reduced(value: Callable, factor: bool) -> Callable:
    """The loss from its formula; factor: the first weight multiplies it, the second belongs to the formula."""
    def reference(x, target, *weights, reduction, **attrs):
        with np.errstate(all="ignore"):
            y = value(x, target, *weights[1:], **attrs)
            if factor and weights[0] is not None:
                y = y * weights[0]
            y = np.asarray(y)
            if reduction == "none":
                return y
            return np.asarray(y.sum() / np.float64(y.size) if reduction == "mean" else y.sum())

    return reference


def _slope(slope: Callable, factor: bool) -> Callable:
    def reference(dy, x, target, *weights, reduction, **attrs):
        with np.errstate(all="ignore"):
            g = slope(x, target, *weights[1:], **attrs)
            if factor and weights[0] is not None:
                g = g * weights[0]
            g = np.asarray(dy * g)
            return g / np.float64(g.size) if reduction == "mean" else g

    return reference


# ---- cost, gradients ----------------------------------------------------------------------------------------------------------
def _terms(x: Spec, target: Spec, *weights: Spec | None, reduction: str, **_: Any) -> int:
    return 1 if reduction == "none" else count(broadcast("loss", x.shape, target.shape, *(w.shape for w in weights if w is not None)))


def _cost(infer: Callable, operations: int) -> Callable:
    def cost(item: int, *given: Spec | None, **attrs: Any) -> Cost:
        y = infer(*given, **attrs)
        tensors = [s for s in given if s is not None]
        return Cost(flops=operations * max(s.size for s in tensors), bytes=item * (y.size + sum(s.size for s in tensors)))

    return cost


def _expanded(o: Any, dy: Any, x: Any, target: Any, weights: tuple[Any, ...], reduction: str) -> Any:
    """dy for every element, divided by their number for the mean."""
    shape = broadcast("loss", x.shape, target.shape, *(w.shape for w in weights if w is not None))
    if reduction == "mean":
        dy = scaled(o, dy, 1 / max(count(shape), 1))
    return dy.reshape(shape) if reduction == "none" else dy.expand(shape)


def _grad(name: str, symmetric: bool, attributes: tuple[str, ...]) -> Callable:
    """Through ``<name>_backward``; symmetric: target's gradient is that of the exchanged operands."""
    def grad(o, dy, inputs, y, attrs):
        x, target, *weights = inputs
        call = getattr(o, f"{name}_backward")
        more = [attrs[k] for k in attributes]
        dx = unbroadcast(o, call(dy, x, target, *weights, *more), x.shape)
        dt = unbroadcast(o, call(dy, target, x, *weights, *more), target.shape) if symmetric else None
        return dx, dt, *(None for _ in weights)

    return grad


def _l1_grad(o, dy, inputs, y, attrs):
    x, target = inputs
    g = o.mul(o.sign(o.sub(x, target)), _expanded(o, dy, x, target, (), attrs["reduction"]))
    return unbroadcast(o, g, x.shape), unbroadcast(o, o.neg(g), target.shape)


def _divergence_grad(o, dy, inputs, y, attrs):
    x, target = inputs
    g = _expanded(o, dy, x, target, (), attrs["reduction"])
    p = o.exp(target) if attrs["log_target"] else target
    return unbroadcast(o, o.neg(o.mul(p, g)), x.shape), None


# ---- samples ------------------------------------------------------------------------------------------------------------------
# name, shape, reduction: 0-d, 1s, primes, one past a run of 1024, one past a block of 8192, zero sizes
_SHAPES = (("scalar", (), "mean"), ("one", (1,), "none"), ("prime", (7, 13), "none"), ("mean", (7, 13), "mean"),
           ("past_run", (3, 1025), "sum"), ("past_block", (8209,), "mean"), ("cube", (5, 33, 3), "none"), ("empty_none", (0, 5), "none"),
           ("empty_mean", (0, 5), "mean"))
_FEW = ("scalar", "prime", "mean", "past_run", "empty_none")


def _samples(draws: tuple[str, str], weights: int, attrs: dict[str, Any], others: tuple[dict[str, Any], ...], model: tuple[str, tuple[int, ...], str],
             equal: bool, backward: bool) -> list[Sample]:
    """others: attributes of further samples; weights: how many optional ones there are."""
    def inputs(shape: tuple[int, ...], reduction: str, given: tuple[tuple[int, ...], ...] = (), target: tuple[int, ...] | None = None) -> tuple:
        more = [In(s, "positive") for s in given] + [None] * (weights - len(given))
        dy = (In(shape if reduction == "none" else ()),) if backward else ()
        return (*dy, In(shape, draws[0]), In(shape if target is None else target, draws[1]), *more)

    found = [Sample(n, inputs(s, r), {**attrs, "reduction": r}) for n, s, r in _SHAPES if not backward or n in _FEW]
    found += [Sample(f"attrs_{i}", inputs((5, 67), r), {**attrs, **a, "reduction": r})
              for i, a in enumerate(others) for r in (("none", "mean")[i % 2],)]
    if not equal:
        found.append(Sample("broadcast", inputs((4, 3, 5), "none", target=(3, 1)), {**attrs, "reduction": "none"}))
        found.append(Sample("rows", inputs((33, 5), "mean", target=(5,)), {**attrs, "reduction": "mean"}))
    if weights:
        found.append(Sample("weight", inputs((9, 31), "mean", ((9, 31),)), {**attrs, "reduction": "mean"}))
        found.append(Sample("row_weight", inputs((9, 31), "none", ((9, 1),)), {**attrs, "reduction": "none"}))
    if weights > 1:
        found.append(Sample("both", inputs((9, 31), "sum", ((31,), (31,))), {**attrs, "reduction": "sum"}))
    name, shape, text = model
    return [*found, Sample(name, inputs(shape, "mean"), {**attrs, "reduction": "mean"}, text, "training", ("full",))]


def _bad(weights: int, attrs: dict[str, Any], equal: bool, backward: bool, wrong: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...]) -> tuple[Bad, ...]:
    none, dy, given = (None,) * weights, (In(()),) if backward else (), {**attrs, "reduction": "mean"}
    x = In((3, 4), "unit")
    found = [Bad("shapes", (*dy, x, In((4, 3), "unit"), *none), ShapeError, ("(3, 4)", "(4, 3)"), given),
             Bad("dtypes", (*dy, x, In((3, 4), "unit", "float64"), *none), DTypeError, ("float32", "float64"), given),
             Bad("int32", (*dy, *(In((3, 4), "int"),) * 2, *none), DTypeError, ("int32", "float32"), given, "int32")]
    if backward:
        found.append(Bad("dy_shape", (In((3,)), x, x, *none), ShapeError, ("dy", "(3,)", "()"), given))
    if weights and equal:
        found.append(Bad("weight_shape", (*dy, x, x, In((2, 3, 4), "unit"), *none[1:]), ShapeError, ("(3, 4)", "(2, 3, 4)"), given))
    return *found, *(Bad(n, (*dy, x, x, *none), ArgumentError, w, {**given, **a}) for n, a, w in wrong)


def _define(name: str, doc: str, value: Callable, slope: Callable | None, *, weights: tuple[str, ...] = (), attrs: str = "",
            draws: tuple[str, str] = ("normal", "normal"), others: tuple[dict[str, Any], ...] = (), equal: bool = False,
            model: tuple[str, tuple[int, ...], str], operations: int = 4, grad: Callable | None = None, names: dict[str, tuple[str, ...]],
            back: dict[str, tuple[str, ...]] | None = None, wrong: tuple[Any, ...] = (), start: str = "") -> None:
    """A loss, and with ``slope`` its gradient.

    attrs: more of the schema, behind reduction; with ``start`` (the default reduction) before it, as torchvision has it.
    """
    listed = "".join(f", Tensor? {w}=None" for w in weights)
    required = "".join(f", Tensor? {w}" for w in weights)
    keys = tuple(part.split()[1].split("=")[0] for part in attrs.split(", ") if part.strip("* "))
    whole = _forward(name, equal)
    factor = bool(weights)
    kind = f", {{none|mean|sum}} reduction='{start or 'mean'}'"
    op(f"{name}(Tensor x, Tensor target{listed}{attrs + kind if start else kind + attrs}) -> Tensor", family="element_loss",
       dtypes=FLOATS, infer=whole, reference=_reduced(value, factor), budget=Conditioned(k=4, terms=_terms), cost=_cost(whole, operations),
       samples=_samples(draws, len(weights), {}, others, model, equal, False), bad=_bad(len(weights), {}, equal, False, wrong),
       grad=grad or _grad(name, not weights and not start, (*keys, "reduction") if start else ("reduction", *keys)), names=names,
       doc=f"{doc}; as they are, their mean (NaN of no elements) or their sum.  Operands broadcast together"
           f"{', x and target being equal in shape' if equal else ''}.")
    if slope is None:
        return
    part = _backward(f"{name}_backward", equal)
    plain = "".join(f", {p.split('=')[0]}" for p in attrs.split(", ") if p)
    zero = {k: _DEFAULTS[k] for k in keys}
    kind = ", {none|mean|sum} reduction"
    op(f"{name}_backward(Tensor dy, Tensor x, Tensor target{required}{plain + kind if start else kind + plain}) -> Tensor", family="element_loss",
       dtypes=FLOATS, infer=part, reference=_slope(slope, factor), budget=Conditioned(k=4), cost=_cost(part, operations + 2),
       samples=_samples(draws, len(weights), zero, others, model, equal, True), bad=_bad(len(weights), zero, equal, True, wrong),
       names=back or {k: tuple(f"{n}_grad" for n in v) for k, v in names.items() if k == "paddle"},
       doc=f"Gradient of {name} with respect to x in the operands' common shape, times dy: one number, or one an element for reduction none.")


_DEFAULTS = {"beta": 1.0, "delta": 1.0, "alpha": 0.25, "gamma": 2.0}

_define("mse_loss", "Squares of x - target", lambda x, target: (x - target) ** 2, lambda x, target: 2 * (x - target),
        model=("diffusion", (8, 4, 64, 64), "Stable Diffusion 1.5 latent noise, batch 8"), operations=3,
        names={"aten": ("mse_loss",), "paddle": ("mse_loss",)}, back={"aten": ("mse_loss_backward",)})

_define("l1_loss", "Distances |x - target|", lambda x, target: np.abs(x - target), None, grad=_l1_grad, operations=3,
        model=("vae_image", (2, 3, 256, 256), "Stable Diffusion 1.5 autoencoder, images of 256"), names={"torch": ("l1_loss",), "paddle": ("l1_loss",)})

_define("smooth_l1_loss", "d^2 / (2 beta) where d = |x - target| is below beta, d - beta / 2 elsewhere", _smooth, _smooth_slope,
        attrs=", float beta=1.0", others=({"beta": 0.5}, {"beta": 0.11}), model=("ssd_boxes", (8, 8732, 4), "SSD300 box offsets, batch 8"),
        names={"aten": ("smooth_l1_loss",), "paddle": ("smooth_l1_loss",)}, back={"aten": ("smooth_l1_loss_backward",)},
        wrong=(("beta_-1", {"beta": -1.0}, ("beta is -1", "0 or more")),))

_define("huber_loss", "d^2 / 2 where d = |x - target| is at most delta, delta (d - delta / 2) elsewhere", _huber, _huber_slope,
        attrs=", float delta=1.0", others=({"delta": 0.5}, {"delta": 2.0}), model=("atari_q", (512, 18), "DQN temporal differences, batch 512"),
        names={"aten": ("huber_loss",), "paddle": ("huber_loss",)}, back={"aten": ("huber_loss_backward",)},
        wrong=(("delta_0", {"delta": 0.0}, ("delta is 0", "more than 0")),))

_define("binary_cross_entropy", "weight ((target - 1) log(1 - x) - target log x) of probabilities x, logarithms not below -100 (NaN for x "
        "outside 0 <= x <= 1)", _entropy, _entropy_slope, weights=("weight",), draws=("unit", "unit"), equal=True,
        model=("gan", (64, 1, 30, 30), "pix2pix discriminator patches, batch 64"), operations=40,
        names={"aten": ("binary_cross_entropy",), "paddle": ("bce_loss",)}, back={"aten": ("binary_cross_entropy_backward",)})

_define("binary_cross_entropy_with_logits", "-weight (pos_weight target log p + (1 - target) log(1 - p)) with p = sigmoid(x), without forming p",
        lambda x, target, pos_weight: _logits(x, target, pos_weight), lambda x, target, pos_weight: _logits_slope(x, target, pos_weight),
        weights=("weight", "pos_weight"), draws=("normal", "unit"), model=("coco_tags", (256, 1203), "LVIS class logits, 256 boxes"), operations=40,
        names={"aten": ("binary_cross_entropy_with_logits",), "paddle": ("sigmoid_cross_entropy_with_logits",)})

_define("kl_div", "target (log target - x), 0 log 0 being 0; log_target: exp(target) (target - x)", _divergence, None, grad=_divergence_grad,
        attrs=", *, bool log_target=false", draws=("logp", "prob"), others=({"log_target": True}, {"log_target": True}), operations=30,
        model=("distillation", (32, 30522), "DistilBERT soft labels, 32 words"), names={"torch": ("kl_div",), "paddle": ("kldiv_loss",)})

_define("sigmoid_focal_loss", "weight (1 - p)^gamma times binary_cross_entropy_with_logits, p the probability given to the target and weight "
        "alpha for target 1, 1 - alpha for 0 (alpha below 0: 1)", _focal, _focal_slope, attrs=", float alpha=0.25, float gamma=2.0",
        draws=("normal", "unit"), others=({"alpha": -1.0}, {"gamma": 1.5}, {"gamma": 0.0}), start="none",
        model=("retinanet", (1, 12276, 91), "RetinaNet anchors of a level, COCO classes"), operations=80,
        names={"torchvision": ("sigmoid_focal_loss",), "paddle": ("sigmoid_focal_loss",)}, back={"torchvision": ("sigmoid_focal_loss_backward",)},
        wrong=(("gamma_-1", {"gamma": -1.0}, ("gamma is -1", "0 or more")),))
