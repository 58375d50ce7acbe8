"""Normalisation over channels: group, instance and batch norm, the pieces of a batch norm split over devices, gradients.

x is (N, C, ...); axis 1 holds the channels.  How: kernels/cpu/batch_norm.c, kernels/triton/batch_norm.py.  Not here: norms
over the last axes (norm.py).
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Conditioned
from .gradient import count, zeros
from .infer import accumulator, need, need_dtype, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op


# ---- what fits -----------------------------------------------------------------------------------------------------------
def _channels(name, x, least=2):
    need_dtype(name, "x", x, FLOATS)
    if x.ndim < least:
        raise ShapeError(f"{name}: x has shape {x.shape}; needs (N, C, ...), {least} axes at least")
    return x.shape[1]


def _like_x(name, x, **given):
    for what, t in given.items():
        same_dtype(name, x, t)
        if t.shape != x.shape:
            raise ShapeError(f"{name}: {what} is {t.shape} and x is {x.shape}; they must be equal")


def _vectors(name, x, **given):
    """One number a channel, in x's dtype or its accumulator (float32 parameters beside 16-bit data)."""
    shape = x.shape[1:2]
    for what, t in given.items():
        if t is None:
            continue
        need_dtype(name, what, t, (x.dtype, accumulator(x.dtype)))
        if t.shape != shape:
            raise ShapeError(f"{name}: {what} has shape {t.shape}; needs {shape}, one number a channel of x {x.shape}")


def _stats(name, x, shape, **given):
    """Statistics in the accumulator's dtype."""
    dtype = accumulator(x.dtype)
    for what, t in given.items():
        if t.shape != shape:
            raise ShapeError(f"{name}: {what} has shape {t.shape}; needs {shape} for x of shape {x.shape}")
        if t.dtype is not dtype:
            raise DTypeError(f"{name}: {what} has dtype {t.dtype}; needs {dtype} for {x.dtype} input")
    return Spec(shape, dtype)


def _groups(name, x, groups):
    channels = _channels(name, x)
    need(groups >= 1 and channels % groups == 0, f"{name}: {groups} groups of {channels} channels; needs a number of groups "
                                                 "that divides the channels")
    return x.shape[0], groups


def _sizes(name, x, N, C, HxW, group):
    shape = _groups(name, x, group)
    if (x.shape[0], x.shape[1], count(x.shape[2:])) != (N, C, HxW):
        raise ShapeError(f"{name}: N {N}, C {C}, HxW {HxW} for x of shape {x.shape}; needs {x.shape[0]}, {x.shape[1]}, "
                         f"{count(x.shape[2:])}")
    return shape


def _infer_native_group(x: Spec, weight: Spec | None, bias: Spec | None, *, N: int, C: int, HxW: int, group: int,
                        eps: float) -> tuple[Spec, ...]:
    name = "native_group_norm"
    shape = _sizes(name, x, N, C, HxW, group)
    _vectors(name, x, weight=weight, bias=bias)
    s = _stats(name, x, shape)
    return x, s, s


def _infer_native_group_backward(dy: Spec, x: Spec, mean: Spec, rstd: Spec, weight: Spec | None, *, N: int, C: int, HxW: int,
                                 group: int) -> tuple[Spec, ...]:
    name = "native_group_norm_backward"
    shape = _sizes(name, x, N, C, HxW, group)
    _like_x(name, x, dy=dy)
    _vectors(name, x, weight=weight)
    _stats(name, x, shape, mean=mean, rstd=rstd)
    w = Spec((C,), x.dtype if weight is None else weight.dtype)
    return x, w, w


def _infer_group(x: Spec, weight: Spec | None, bias: Spec | None, *, num_groups: int, eps: float) -> Spec:
    _groups("group_norm", x, num_groups)
    _vectors("group_norm", x, weight=weight, bias=bias)
    return x


def _infer_instance(x: Spec, weight: Spec | None, bias: Spec | None, *, eps: float) -> Spec:
    _channels("instance_norm", x, 3)
    _vectors("instance_norm", x, weight=weight, bias=bias)
    return x


def _running(name, x, mean, var, needed):
    _vectors(name, x, running_mean=mean, running_var=var)
    if needed and (mean is None or var is None):
        raise ArgumentError(f"{name}: no {'running_mean' if mean is None else 'running_var'} and training is false; give both, "
                            "or train")
    none = Spec((0,), accumulator(x.dtype))
    return mean or none, var or none


def _infer_batch(x: Spec, weight: Spec | None, bias: Spec | None, running_mean: Spec | None, running_var: Spec | None, *,
                 training: bool, momentum: float, eps: float) -> Spec:
    _channels("batch_norm", x)
    _vectors("batch_norm", x, weight=weight, bias=bias)
    _running("batch_norm", x, running_mean, running_var, not training)
    return x


def _infer_native_batch(x: Spec, weight: Spec | None, bias: Spec | None, running_mean: Spec | None, running_var: Spec | None, *,
                        training: bool, momentum: float, eps: float) -> tuple[Spec, ...]:
    name = "native_batch_norm"
    channels = _channels(name, x)
    _vectors(name, x, weight=weight, bias=bias)
    new = _running(name, x, running_mean, running_var, not training)
    s = _stats(name, x, (channels if training else 0,))
    return x, s, s, *new


def _infer_no_training(x: Spec, weight: Spec | None, bias: Spec | None, running_mean: Spec, running_var: Spec, *, momentum: float,
                       eps: float) -> tuple[Spec, ...]:
    name = "native_batch_norm_no_training"
    _channels(name, x)
    _vectors(name, x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    s = _stats(name, x, (0,))
    return x, s, s


def _infer_no_stats(x: Spec, weight: Spec | None, bias: Spec | None, *, momentum: float, eps: float) -> tuple[Spec, ...]:
    name = "native_batch_norm_no_stats"
    channels = _channels(name, x)
    _vectors(name, x, weight=weight, bias=bias)
    s = _stats(name, x, (channels,))
    return x, s, s


def _infer_native_batch_backward(dy: Spec, x: Spec, weight: Spec | None, running_mean: Spec | None, running_var: Spec | None,
                                 save_mean: Spec | None, save_invstd: Spec | None, *, train: bool, eps: float) -> tuple[Spec, ...]:
    name = "native_batch_norm_backward"
    channels = _channels(name, x)
    _like_x(name, x, dy=dy)
    _vectors(name, x, weight=weight, running_mean=running_mean, running_var=running_var)
    what = ("save_mean", "save_invstd") if train else ("running_mean", "running_var")
    for n, t in zip(what, (save_mean, save_invstd) if train else (running_mean, running_var)):
        if t is None:
            raise ArgumentError(f"{name}: no {n} and train is {str(train).lower()}; give {what[0]} and {what[1]}")
    if train:
        _stats(name, x, (channels,), save_mean=save_mean, save_invstd=save_invstd)
    w = Spec((channels,), x.dtype if weight is None else weight.dtype)
    return x, w, w


def _infer_stats(x: Spec, *, eps: float) -> tuple[Spec, ...]:
    s = _stats("batch_norm_stats", x, (_channels("batch_norm_stats", x),))
    return s, s


def _infer_elemt(x: Spec, weight: Spec | None, bias: Spec | None, mean: Spec, invstd: Spec, *, eps: float) -> Spec:
    name = "batch_norm_elemt"
    channels = _channels(name, x)
    _vectors(name, x, weight=weight, bias=bias)
    _stats(name, x, (channels,), mean=mean, invstd=invstd)
    return x


def _infer_gather(x: Spec, mean: Spec, invstd: Spec, running_mean: Spec | None, running_var: Spec | None, counts: Spec, *,
                  momentum: float, eps: float) -> tuple[Spec, ...]:
    name = "batch_norm_gather_stats_with_counts"
    channels = _channels(name, x)
    if counts.ndim != 1:
        raise ShapeError(f"{name}: counts is {counts.shape}; needs (devices,)")
    new = _running(name, x, running_mean, running_var, False)
    _stats(name, x, (counts.shape[0], channels), mean=mean, invstd=invstd)
    _stats(name, x, counts.shape, counts=counts)
    s = _stats(name, x, (channels,))
    return s, s, *new


def _infer_reduce(dy: Spec, x: Spec, mean: Spec, invstd: Spec, weight: Spec | None) -> tuple[Spec, ...]:
    name = "batch_norm_backward_reduce"
    channels = _channels(name, x)
    _like_x(name, x, dy=dy)
    _vectors(name, x, weight=weight)
    s = _stats(name, x, (channels,), mean=mean, invstd=invstd)
    w = Spec((channels,), x.dtype if weight is None else weight.dtype)
    return s, s, w, w


def _infer_backward_elemt(dy: Spec, x: Spec, mean: Spec, invstd: Spec, weight: Spec | None, sum_dy: Spec, sum_dy_xmu: Spec,
                          counts: Spec) -> Spec:
    name = "batch_norm_backward_elemt"
    channels = _channels(name, x)
    _like_x(name, x, dy=dy)
    _vectors(name, x, weight=weight)
    _stats(name, x, (channels,), mean=mean, invstd=invstd, sum_dy=sum_dy, sum_dy_xmu=sum_dy_xmu)
    if counts.dtype.name != "int32" or counts.ndim != 1:
        raise DTypeError(f"{name}: counts is {counts.dtype} {counts.shape}; needs int32 (devices,)")
    return x


# ---- references ----------------------------------------------------------------------------------------------------------
def _along(v, x):
    """A vector over channels, beside x."""
    return v.reshape((1, -1) + (1,) * (x.ndim - 2))


def _affine(y, weight, bias):
    y = y if weight is None else y * _along(weight, y)
    return y if bias is None else y + _along(bias, y)


def _moments(x, over):
    """mean, variance (biased) and the number of terms."""
    n = np.float64(count([x.shape[i] for i in over]))
    with np.errstate(all="ignore"):
        mean = np.sum(x, axis=over, keepdims=True) / n
        return mean, np.sum((x - mean) ** 2, axis=over, keepdims=True) / n, n


def _native_group_norm(x, weight, bias, *, N, C, HxW, group, eps):
    g = x.reshape(N, group, C // group * HxW) if x.size else np.zeros((N, group, C // group * HxW))
    mean, var, _ = _moments(g, (2,))
    with np.errstate(all="ignore"):
        rstd = 1.0 / np.sqrt(var + eps)
        y = _affine(((g - mean) * rstd).reshape(x.shape), weight, bias)
    return y, mean.reshape(N, group), rstd.reshape(N, group)


def _group_norm(x, weight, bias, *, num_groups, eps):
    return _native_group_norm(x, weight, bias, N=x.shape[0], C=x.shape[1], HxW=count(x.shape[2:]), group=num_groups, eps=eps)[0]


def _instance_norm(x, weight, bias, *, eps):
    return _group_norm(x, weight, bias, num_groups=max(x.shape[1], 1), eps=eps)


def _native_group_norm_backward(dy, x, mean, rstd, weight, *, N, C, HxW, group):
    d = C // group
    shape = (N, group, d, HxW)
    m, r = mean.reshape(N, group, 1, 1), rstd.reshape(N, group, 1, 1)
    normal, g = (x.reshape(shape) - m) * r, dy.reshape(shape)
    gw = g if weight is None else g * weight.reshape(1, group, d, 1)
    n = np.float64(max(d * HxW, 1))
    level, along = np.sum(gw, axis=(2, 3), keepdims=True) / n, np.sum(gw * normal, axis=(2, 3), keepdims=True) / n
    dx = r * (gw - level - normal * along)
    return dx.reshape(x.shape), np.sum(g * normal, axis=(0, 3)).reshape(C), np.sum(g, axis=(0, 3)).reshape(C)


def _but_channels(x):
    return (0, *range(2, x.ndim))


def _training(x, eps):
    """mean, invstd, unbiased variance, each (C,)."""
    mean, var, n = _moments(x, _but_channels(x))
    with np.errstate(all="ignore"):
        return mean.reshape(-1), 1.0 / np.sqrt(var + eps).reshape(-1), var.reshape(-1) * (n / (n - 1))


def _native_batch_norm(x, weight, bias, running_mean, running_var, *, training, momentum, eps):
    none = np.zeros(0)
    old = none if running_mean is None else running_mean, none if running_var is None else running_var
    with np.errstate(all="ignore"):
        if not training:
            y = (x - _along(running_mean, x)) * _along(1.0 / np.sqrt(running_var + eps), x)
            return _affine(y, weight, bias), none, none, old[0] + 0.0, old[1] + 0.0
        mean, invstd, unbiased = _training(x, eps)
        y = _affine((x - _along(mean, x)) * _along(invstd, x), weight, bias)
        new = [o if not o.size or not x.size else (1 - momentum) * o + momentum * s for o, s in zip(old, (mean, unbiased))]
    return y, mean, invstd, new[0] + 0.0, new[1] + 0.0


def _batch_norm(x, weight, bias, running_mean, running_var, *, training, momentum, eps):
    return _native_batch_norm(x, weight, bias, running_mean, running_var, training=training, momentum=momentum, eps=eps)[0]


def _no_training(x, weight, bias, running_mean, running_var, *, momentum, eps):
    return _native_batch_norm(x, weight, bias, running_mean, running_var, training=False, momentum=momentum, eps=eps)[:3]


def _no_stats(x, weight, bias, *, momentum, eps):
    return _native_batch_norm(x, weight, bias, None, None, training=True, momentum=momentum, eps=eps)[:3]


def _native_batch_norm_backward(dy, x, weight, running_mean, running_var, save_mean, save_invstd, *, train, eps):
    over, n = _but_channels(x), np.float64(max(x.size // max(x.shape[1], 1), 1))
    with np.errstate(all="ignore"):
        mean = save_mean if train else running_mean
        invstd = save_invstd if train else 1.0 / np.sqrt(running_var + eps)
        normal = (x - _along(mean, x)) * _along(invstd, x)
        db, dw = np.sum(dy, axis=over), np.sum(dy * normal, axis=over)
        dx = dy - _along(db / n, x) - normal * _along(dw / n, x) if train else dy
        scale = invstd if weight is None else invstd * weight
        return dx * _along(scale, x), dw, db


def _batch_norm_stats(x, *, eps):
    return _training(x, eps)[:2]


def _batch_norm_elemt(x, weight, bias, mean, invstd, *, eps):
    with np.errstate(all="ignore"):
        return _affine((x - _along(mean, x)) * _along(invstd, x), weight, bias)


def _gather_stats(x, mean, invstd, running_mean, running_var, counts, *, momentum, eps):
    c = counts[:, None]
    with np.errstate(all="ignore"):
        total = np.sum(counts)
        centre = np.sum(mean * c, axis=0) / total
        squares = np.sum((1.0 / invstd**2 - eps) * c, axis=0) + np.sum(c * (mean - centre) ** 2, axis=0)
        new = [np.zeros(0) if o is None else (1 - momentum) * o + momentum * s
               for o, s in zip((running_mean, running_var), (centre, squares / (total - 1)))]
        return centre, 1.0 / np.sqrt(squares / total + eps), *new


def _backward_reduce(dy, x, mean, invstd, weight):
    over = _but_channels(x)
    sum_dy, sum_dy_xmu = np.sum(dy, axis=over), np.sum(dy * (x - _along(mean, x)), axis=over)
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy + 0.0


def _backward_elemt(dy, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts):
    with np.errstate(all="ignore"):
        n = np.float64(counts.sum())
        slope = sum_dy_xmu / n * invstd**2
        g = dy - _along(sum_dy / n, x) - (x - _along(mean, x)) * _along(slope, x)
        return g * _along(invstd if weight is None else invstd * weight, x)


# ---- terms, cost, gradients ----------------------------------------------------------------------------------------------
def _terms(first: Spec, *given: Spec | None, **attrs: Any) -> int:
    """Elements of a channel; of a group where groups are smaller than all of it, whose weights' gradients add batches up."""
    groups = attrs.get("group") or attrs.get("num_groups") or 0
    whole = first.size // max(first.shape[1], 1)
    return max(whole, first.size // max(first.shape[0] * groups, 1)) if groups else whole


def _cost(per_element, infer):
    def cost(item: int, *given: Spec | None, **attrs: Any) -> Cost:
        out = infer(*given, **attrs)
        tensors = [s for s in (*given, *(out if isinstance(out, tuple) else (out,))) if s is not None]
        x = given[0]
        assert x is not None  # only weights and running statistics are optional
        return Cost(flops=per_element * x.size, bytes=sum(s.size * s.dtype.itemsize for s in tensors))

    return cost


def _native_group_grad(o, dy, inputs, outputs, attrs):
    x, weight, bias = inputs
    dx, dw, db = o.native_group_norm_backward(dy, x, outputs[1], outputs[2], weight, attrs["N"], attrs["C"], attrs["HxW"],
                                              attrs["group"])
    return dx, None if weight is None else dw, None if bias is None else db


def _group_grad(o, dy, inputs, y, attrs):
    x, weight, bias = inputs
    sizes = {"N": x.shape[0], "C": x.shape[1], "HxW": count(x.shape[2:]), "group": attrs.get("num_groups", x.shape[1])}
    found = o.native_group_norm(x, weight, bias, sizes["N"], sizes["C"], sizes["HxW"], sizes["group"], attrs["eps"])
    return _native_group_grad(o, dy, inputs, found, sizes)


def _batch_backward(o, dy, x, weight, bias, running, saved, train, eps):
    dx, dw, db = o.native_batch_norm_backward(dy, x, weight, *running, *saved, train, eps)
    return dx, None if weight is None else dw, None if bias is None else db


def _native_batch_grad(o, dy, inputs, outputs, attrs):
    x, weight, bias, mean, var = inputs
    train = attrs["training"]
    return (*_batch_backward(o, dy, x, weight, bias, (mean, var), outputs[1:3] if train else (None, None), train, attrs["eps"]),
            None, None)


def _batch_grad(o, dy, inputs, y, attrs):
    x, weight, bias, mean, var = inputs
    train = attrs["training"]
    saved = o.batch_norm_stats(x, attrs["eps"]) if train else (None, None)
    return (*_batch_backward(o, dy, x, weight, bias, (mean, var), saved, train, attrs["eps"]), None, None)


def _no_training_grad(o, dy, inputs, outputs, attrs):
    x, weight, bias, mean, var = inputs
    return (*_batch_backward(o, dy, x, weight, bias, (mean, var), (None, None), False, attrs["eps"]), None, None)


def _no_stats_grad(o, dy, inputs, outputs, attrs):
    x, weight, bias = inputs
    return _batch_backward(o, dy, x, weight, bias, (None, None), outputs[1:3], True, attrs["eps"])


def _elemt_grad(o, dy, inputs, y, attrs):
    """mean and invstd count as given: this is the gradient with the statistics held."""
    x, weight, bias, mean, invstd = inputs
    zero = zeros(o, mean.shape, mean.dtype)
    dx = o.batch_norm_elemt(dy, weight, None, zero, invstd, attrs["eps"])
    _, _, dw, db = o.batch_norm_backward_reduce(dy, x, mean, invstd, weight)
    return dx, None if weight is None else dw, None if bias is None else db, None, None


# ---- samples -------------------------------------------------------------------------------------------------------------
# name, x, groups (0: this shape is for batch norm alone), weight given, bias given: 1s, primes, one past a block of 1024
_SHAPES = (("one", (1, 1), 1, True, True), ("two_axes", (7, 6), 3, True, True), ("prime", (5, 7, 11, 13), 7, True, True),
           ("plain", (3, 4, 33), 2, False, False), ("weight_only", (2, 6, 5, 7), 3, True, False),
           ("bias_only", (2, 6, 17), 2, False, True), ("one_group", (3, 5, 9), 1, True, True),
           ("past_tile", (2, 4, 1025), 2, True, True), ("long", (1, 2, 4099), 1, True, True), ("volume", (2, 4, 3, 5, 7), 2, True, True),
           ("tall", (257, 4), 0, True, True), ("many_channels", (3, 1031, 2), 0, True, True), ("no_batch", (0, 4, 5), 2, True, True),
           ("no_space", (3, 4, 0), 2, True, True))
_MODELS = (("resnet_stem", (8, 64, 56, 56), 32, "ResNet-50 layer 1", "full", ("full", "vision")),
           ("resnet_last", (8, 2048, 7, 7), 32, "ResNet-50 layer 4", "inference", ("full", "vision")),
           ("unet_mid", (2, 640, 32, 32), 32, "Stable Diffusion UNet block", "inference", ("full", "vision")))


def _samples(build, keep=lambda s: True, bench=True, least=2):
    """build(shape, groups, weight given, bias given) -> (inputs, attrs)."""
    found = [Sample(n, *build(x, g, w, b)) for n, x, g, w, b in _SHAPES if keep((n, x, g)) and len(x) >= least]
    for n, x, g, m, level, suites in _MODELS:
        found.append(Sample(n, *build(x, g, True, True), m, level if bench or level == "full" else "training", suites if bench else suites[:1]))
    return found


def _vector(want, x, draw="normal", dtype=None):
    return In(x[1:2], draw, dtype) if want else None


def _of_group(s):
    return s[2] > 0


def _full(s):
    """Shapes with something to sum over."""
    return "no_" not in s[0]


def _native_group(x, g, w, b):
    return (In(x), _vector(w, x), _vector(b, x)), {"N": x[0], "C": x[1], "HxW": count(x[2:]), "group": g, "eps": 1e-5}


def _native_group_back(x, g, w, b):
    s = (x[0], g)
    return ((In(x), In(x), In(s, "uniform", "acc"), In(s, "positive", "acc"), _vector(w, x)),
            {"N": x[0], "C": x[1], "HxW": count(x[2:]), "group": g})


def _group(x, g, w, b):
    return (In(x), _vector(w, x), _vector(b, x)), {"num_groups": g}


def _instance(x, g, w, b):
    return (In(x), _vector(w, x), _vector(b, x)), {}


def _batch(training, defaults=True):
    more = {} if defaults else {"momentum": 0.1, "eps": 1e-5}

    def build(x, g, w, b):
        kept = b or not training  # bias given: running statistics too
        return ((In(x), _vector(w, x), _vector(b, x), _vector(kept, x, "uniform"), _vector(kept, x, "positive")),
                {"training": training, **more})

    return build


def _inference(x, g, w, b):
    inputs, attrs = _batch(False, False)(x, g, w, b)
    return inputs, {k: v for k, v in attrs.items() if k != "training"}


def _alone(x, g, w, b):
    return (In(x), _vector(w, x), _vector(b, x)), {"momentum": 0.1, "eps": 1e-5}


def _batch_back(train):
    def build(x, g, w, b):
        saved = (In(x[1:2], "uniform", "acc"), In(x[1:2], "positive", "acc")) if train else (None, None)
        running = (None, None) if train else (_vector(True, x, "uniform"), _vector(True, x, "positive"))
        return (In(x), In(x), _vector(w, x), *running, *saved), {"train": train, "eps": 1e-5}

    return build


def _stats_only(x, g, w, b):
    return (In(x),), {"eps": 1e-5}


def _given_stats(x):
    return In(x[1:2], "uniform", "acc"), In(x[1:2], "positive", "acc")


def _elemt(x, g, w, b):
    return (In(x), _vector(w, x), _vector(b, x), *_given_stats(x)), {"eps": 1e-5}


def _reduce(x, g, w, b):
    return (In(x), In(x), *_given_stats(x), _vector(w, x)), {}


def _back_elemt(x, g, w, b):
    sums = In(x[1:2], "uniform", "acc"), In(x[1:2], "uniform", "acc")
    return (In(x), In(x), *_given_stats(x), _vector(w, x), *sums, In((3,), "int", "int32", values=(7, 9, 33))), {}


def _gather(devices, channels, running=True, values=None) -> tuple[tuple[In | None, ...], dict[str, Any]]:
    s = (devices, channels)
    kept = (In((channels,), "uniform"), In((channels,), "positive")) if running else (None, None)
    counts = In((devices,), "positive", "acc", values=values)
    return (In((2, channels, 3)), In(s, "uniform", "acc"), In(s, "positive", "acc"), *kept, counts), {"momentum": 0.1, "eps": 1e-5}


def _mixed(build, at, x=(3, 5, 7), g=5):
    """float32 parameters beside 16-bit data: inputs numbered ``at`` in the accumulator's dtype."""
    inputs, attrs = build(x, g, True, True)
    return Sample("mixed", tuple(In(i.shape, i.draw, "acc") if k in at else i for k, i in enumerate(inputs)), attrs)


# ---- bad arguments -------------------------------------------------------------------------------------------------------
_X = In((2, 6, 5))


def _bad(tail, attrs, weight_at=1, channels=6, one_axis=True):
    """Mistakes that every operator here must name; tail: inputs behind x, right ones."""
    def put(i, t):
        given = [_X, *tail]
        given[i] = t
        return tuple(given)

    found = [Bad("int32", put(0, In((2, 6, 5), "int")), DTypeError, ("int32", "float32"), attrs, dtype="int32")]
    if one_axis:
        found.append(Bad("one_axis", put(0, In((6,))), ShapeError, ("(6,)", "(N, C, ...)"), attrs))
    if weight_at:
        found += [Bad("weight_shape", put(weight_at, In((5,))), ShapeError, ("weight", "(5,)", f"({channels},)"), attrs),
                  Bad("weight_dtype", put(weight_at, In((channels,), dtype="float64")), DTypeError, ("weight", "float64", "float32"), attrs)]
    return tuple(found)


_ACC, _POS = In((6,), "uniform", "acc"), In((6,), "positive", "acc")
_SIZES = {"N": 2, "C": 6, "HxW": 5, "group": 3}
_EPS = {"eps": 1e-5}
_BAD_BACK = (
    Bad("dy_shape", (In((2, 5, 6)), _X, In((2, 3), dtype="acc"), In((2, 3), "positive", "acc"), None), ShapeError,
        ("dy", "(2, 5, 6)", "(2, 6, 5)"), _SIZES),
    Bad("mean_shape", (_X, _X, In((2, 6), dtype="acc"), In((2, 3), "positive", "acc"), None), ShapeError,
        ("mean", "(2, 6)", "(2, 3)"), _SIZES),
    Bad("rstd_dtype", (_X, _X, In((2, 3), dtype="acc"), In((2, 3), "positive", "float64"), None), DTypeError,
        ("rstd", "float64", "float32"), _SIZES))
_BAD_BATCH_BACK = (
    Bad("dy_shape", (In((2, 5, 6)), _X, None, None, None, _ACC, _POS), ShapeError, ("dy", "(2, 5, 6)", "(2, 6, 5)"),
        {"train": True, **_EPS}),
    Bad("no_saved", (_X, _X, None, None, None, None, _POS), ArgumentError, ("save_mean", "train is true"), {"train": True, **_EPS}),
    Bad("no_running", (_X, _X, None, None, None, _ACC, _POS), ArgumentError, ("running_mean", "train is false"), {"train": False, **_EPS}),
    Bad("save_mean_shape", (_X, _X, None, None, None, In((5,), dtype="acc"), _POS), ShapeError, ("save_mean", "(5,)", "(6,)"),
        {"train": True, **_EPS}))


def _bad_running(attrs):
    eval_ = {"training": False, **attrs}
    return (Bad("no_running_var", (_X, None, None, In((6,)), None), ArgumentError, ("running_var", "training is false"), eval_),
            Bad("running_shape", (_X, None, None, In((5,)), In((6,))), ShapeError, ("running_mean", "(5,)", "(6,)"), eval_))


# ---- records -------------------------------------------------------------------------------------------------------------
_C = Conditioned(k=4, terms=_terms)
_FAMILY: dict[str, Any] = {"family": "batch_norm", "dtypes": FLOATS, "budget": _C}
_RUNNING = ("running_mean and running_var become (1 - momentum) old + momentum new (new variance unbiased); an x without elements "
            "leaves them as they are.")

op("native_group_norm(Tensor x, Tensor? weight, Tensor? bias, int N, int C, int HxW, int group, float eps) -> (Tensor out, "
   "Tensor mean, Tensor rstd)", **_FAMILY, infer=_infer_native_group, reference=_native_group_norm, cost=_cost(8, _infer_native_group),
   samples=[*_samples(_native_group, _of_group, bench=False), _mixed(_native_group, (1, 2))],
   bad=(*_bad((None, None), {**_SIZES, **_EPS}),
        Bad("sizes", (_X, None, None), ShapeError, ("HxW 4", "(2, 6, 5)"), {**_SIZES, **_EPS, "HxW": 4}),
        Bad("groups", (_X, None, None), ArgumentError, ("4 groups", "6 channels"), {**_SIZES, **_EPS, "group": 4})),
   grad=_native_group_grad, names={"aten": ("native_group_norm",)},
   doc="group_norm with the statistics its gradient needs: mean and rstd = 1 / sqrt(var + eps), (N, group), float32 for float16 and "
       "bfloat16.  N, C, HxW are the sizes of x.")

op("native_group_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, int N, int C, int HxW, int group) -> "
   "(Tensor dx, Tensor dweight, Tensor dbias)", **_FAMILY, infer=_infer_native_group_backward,
   reference=_native_group_norm_backward, cost=_cost(14, _infer_native_group_backward),
   samples=[*_samples(_native_group_back, _of_group, bench=False), _mixed(_native_group_back, (4,))], bad=_BAD_BACK,
   names={"aten": ("native_group_norm_backward",)},
   doc="Gradients of group_norm from mean and rstd as given; dweight and dbias are (C,) of weight's dtype (x's without a weight).")

op("group_norm(Tensor x, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-5) -> Tensor", **_FAMILY,
   infer=_infer_group, rule="same", reference=_group_norm, cost=_cost(8, _infer_group),
   samples=[*_samples(_group, _of_group), _mixed(_group, (1, 2))],
   bad=(*_bad((None, None), {"num_groups": 3}),
        Bad("groups", (_X, None, None), ArgumentError, ("4 groups", "6 channels"), {"num_groups": 4}),
        Bad("no_groups", (_X, None, None), ArgumentError, ("0 groups", "6 channels"), {"num_groups": 0})),
   grad=_group_grad, names={"onnx": ("GroupNormalization",), "paddle": ("group_norm",)},
   doc="(x - mean) / sqrt(var + eps) within each of num_groups groups of neighbouring channels of x (N, C, ...), times weight (C,), "
       "plus bias (C,).")

op("instance_norm(Tensor x, Tensor? weight=None, Tensor? bias=None, *, float eps=1e-5) -> Tensor", **_FAMILY,
   infer=_infer_instance, rule="same", reference=_instance_norm, cost=_cost(8, _infer_instance),
   samples=_samples(_instance, lambda s: len(s[1]) > 2, least=3), bad=_bad((None, None), {}, one_axis=False) + (
       Bad("two_axes", (In((2, 6)), None, None), ShapeError, ("(2, 6)", "3 axes"), {}),), grad=_group_grad,
   names={"onnx": ("InstanceNormalization",), "paddle": ("instance_norm",)},
   doc="group_norm with a group a channel: each channel of each sample of x (N, C, ...) by itself.")

op("native_batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool training, float momentum, "
   "float eps) -> (Tensor out, Tensor save_mean, Tensor save_invstd, Tensor new_running_mean, Tensor new_running_var)", **_FAMILY,
   infer=_infer_native_batch, reference=_native_batch_norm, cost=_cost(8, _infer_native_batch),
   samples=[*_samples(_batch(True, False), bench=False), _mixed(_batch(True, False), (1, 2, 3, 4)),
            Sample("eval", *_batch(False, False)((3, 5, 7), 0, True, True)),
            Sample("eval_plain", *_batch(False, False)((4, 3, 65), 0, False, False))],
   bad=(*_bad((None,) * 4, {"training": True, "momentum": 0.1, **_EPS}), *_bad_running({"momentum": 0.1, **_EPS})),
   grad=_native_batch_grad, names={"aten": ("_native_batch_norm_legit_functional",)},
   doc="batch_norm with all it knows: save_mean and save_invstd = 1 / sqrt(var + eps) of the batch ((C,), float32 for 16-bit x; (0,) "
       "unless training) and the new running statistics ((0,) where none came).  " + _RUNNING + "  aten's in-place form "
       "_native_batch_norm_legit is this with out= giving running_mean and running_var themselves.")

op("native_batch_norm_no_training(Tensor x, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, float momentum, "
   "float eps) -> (Tensor out, Tensor save_mean, Tensor save_invstd)", **_FAMILY, infer=_infer_no_training, reference=_no_training,
   cost=_cost(4, _infer_no_training), samples=[*_samples(_inference), _mixed(_inference, (1, 2, 3, 4))],
   bad=_bad((None, None, _ACC, _POS), {"momentum": 0.1, **_EPS}), grad=_no_training_grad,
   names={"aten": ("_native_batch_norm_legit_no_training",)},
   doc="batch_norm by the running statistics; save_mean and save_invstd are (0,), as aten's are.")

op("native_batch_norm_no_stats(Tensor x, Tensor? weight, Tensor? bias, float momentum, float eps) -> (Tensor out, Tensor save_mean, "
   "Tensor save_invstd)", **_FAMILY, infer=_infer_no_stats, reference=_no_stats, cost=_cost(8, _infer_no_stats),
   samples=_samples(_alone), bad=_bad((None, None), {"momentum": 0.1, **_EPS}), grad=_no_stats_grad,
   names={"aten": ("_native_batch_norm_legit.no_stats",)},
   doc="batch_norm by the batch's own statistics where no running ones are kept; momentum has no effect.")

op("batch_norm(Tensor x, Tensor? weight=None, Tensor? bias=None, Tensor? running_mean=None, Tensor? running_var=None, bool "
   "training=false, float momentum=0.1, float eps=1e-5) -> Tensor", **_FAMILY, infer=_infer_batch, rule="same",
   reference=_batch_norm, cost=_cost(8, _infer_batch),
   samples=[*_samples(_batch(False)), _mixed(_batch(False), (1, 2, 3, 4)), Sample("train", *_batch(True)((3, 5, 7), 0, True, True)),
            Sample("train_plain", *_batch(True)((4, 3, 65), 0, False, False))],
   bad=(*_bad((None,) * 4, {"training": True}), *_bad_running({})), grad=_batch_grad,
   names={"onnx": ("BatchNormalization",), "paddle": ("batch_norm",)},
   doc="(x - mean) / sqrt(var + eps) channel by channel of x (N, C, ...), times weight, plus bias, all (C,) of x's dtype or its "
       "accumulator's; mean and var are the running ones, or with training those of the batch (biased).  Running statistics are not "
       "changed: native_batch_norm returns new ones.")

op("native_batch_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? running_mean, Tensor? running_var, Tensor? save_mean, "
   "Tensor? save_invstd, bool train, float eps) -> (Tensor dx, Tensor dweight, Tensor dbias)", **_FAMILY,
   infer=_infer_native_batch_backward, reference=_native_batch_norm_backward, cost=_cost(14, _infer_native_batch_backward),
   samples=[*_samples(_batch_back(True), bench=False), _mixed(_batch_back(True), (2,)),
            Sample("eval", *_batch_back(False)((3, 5, 7), 0, True, True)),
            Sample("eval_plain", *_batch_back(False)((4, 3, 65), 0, False, False))],
   bad=_BAD_BATCH_BACK, names={"aten": ("native_batch_norm_backward",)},
   doc="Gradients of batch_norm: train: from save_mean and save_invstd; else the statistics are the running ones, constants.  dweight "
       "and dbias are (C,) of weight's dtype (x's without a weight).")

op("batch_norm_stats(Tensor x, float eps) -> (Tensor mean, Tensor invstd)", **_FAMILY, infer=_infer_stats,
   reference=_batch_norm_stats, cost=_cost(4, _infer_stats), samples=_samples(_stats_only, bench=False), bad=_bad((), _EPS, 0),
   names={"aten": ("batch_norm_stats",)},
   doc="Mean and 1 / sqrt(var + eps) of each channel of x (N, C, ...), (C,), float32 for float16 and bfloat16.")

op("batch_norm_elemt(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor invstd, float eps) -> Tensor", **_FAMILY,
   infer=_infer_elemt, rule="same", reference=_batch_norm_elemt, cost=_cost(4, _infer_elemt),
   samples=[*_samples(_elemt, bench=False), _mixed(_elemt, (1, 2, 3, 4))], bad=_bad((None, None, _ACC, _POS), _EPS), grad=_elemt_grad,
   names={"aten": ("batch_norm_elemt",)},
   doc="(x - mean) invstd, times weight, plus bias, channel by channel, from statistics as given; eps has no effect (it is in "
       "invstd).")

op("batch_norm_gather_stats_with_counts(Tensor x, Tensor mean, Tensor invstd, Tensor? running_mean, Tensor? running_var, float momentum, "
   "float eps, Tensor counts) -> (Tensor mean_all, Tensor invstd_all, Tensor new_running_mean, Tensor new_running_var)",
   family="batch_norm", dtypes=FLOATS, infer=_infer_gather, reference=_gather_stats, cost=_cost(8, _infer_gather),
   budget=Conditioned(k=4, terms=lambda x, mean, *_, **__: mean.shape[0]),
   samples=[Sample("one", *_gather(1, 1)), Sample("four_devices", *_gather(4, 33, values=(7, 1, 12, 5))),
            Sample("plain", *_gather(3, 5, False)), Sample("wide", *_gather(2, 1025)), Sample("many_devices", *_gather(67, 3)),
            Sample("no_channels", *_gather(3, 0)), Sample("resnet_sync", *_gather(8, 2048), model="ResNet-50 on 8 devices", level="training", bench=("full",))],
   bad=(Bad("mean_shape", (_X, In((3, 5), dtype="acc"), In((3, 6), dtype="acc"), None, None, In((3,), dtype="acc")), ShapeError,
            ("mean", "(3, 5)", "(3, 6)"), {"momentum": 0.1, **_EPS}),
        Bad("counts_shape", (_X, In((3, 6), dtype="acc"), In((3, 6), dtype="acc"), None, None, In((), dtype="acc")), ShapeError,
            ("counts", "()", "(devices,)"), {"momentum": 0.1, **_EPS}),
        Bad("counts_dtype", (_X, In((3, 6), dtype="acc"), In((3, 6), dtype="acc"), None, None, In((3,), dtype="int32")), DTypeError,
            ("counts", "int32", "float32"), {"momentum": 0.1, **_EPS})),
   names={"aten": ("batch_norm_gather_stats_with_counts",)},
   doc="Statistics of all devices from each one's mean and invstd (devices, C) over counts (devices,) elements a channel.  " + _RUNNING)

op("batch_norm_backward_reduce(Tensor dy, Tensor x, Tensor mean, Tensor invstd, Tensor? weight) -> (Tensor sum_dy, Tensor sum_dy_xmu, "
   "Tensor dweight, Tensor dbias)", **_FAMILY, infer=_infer_reduce, reference=_backward_reduce, cost=_cost(5, _infer_reduce),
   samples=[*_samples(_reduce, bench=False), _mixed(_reduce, (4,))],
   bad=(Bad("dy_shape", (In((2, 5, 6)), _X, _ACC, _POS, None), ShapeError, ("dy", "(2, 5, 6)", "(2, 6, 5)")),
        Bad("mean_shape", (_X, _X, In((5,), dtype="acc"), _POS, None), ShapeError, ("mean", "(5,)", "(6,)")),
        Bad("invstd_dtype", (_X, _X, _ACC, In((6,), dtype="float64"), None), DTypeError, ("invstd", "float64", "float32"))),
   names={"aten": ("batch_norm_backward_reduce",)},
   doc="A device's part of a batch norm's gradient, (C,) each: sums of dy and of dy (x - mean), in the statistics' dtype; dweight = "
       "sum_dy_xmu invstd and dbias = sum_dy in weight's (x's without a weight).")

op("batch_norm_backward_elemt(Tensor dy, Tensor x, Tensor mean, Tensor invstd, Tensor? weight, Tensor sum_dy, Tensor sum_dy_xmu, Tensor "
   "counts) -> Tensor", **_FAMILY, infer=_infer_backward_elemt, reference=_backward_elemt, cost=_cost(8, _infer_backward_elemt), rule="same",
   samples=[*_samples(_back_elemt, bench=False), _mixed(_back_elemt, (4,))],
   bad=(Bad("dy_shape", (In((2, 5, 6)), _X, _ACC, _POS, None, _ACC, _ACC, In((1,), "int", "int32")), ShapeError,
            ("dy", "(2, 5, 6)", "(2, 6, 5)")),
        Bad("sum_shape", (_X, _X, _ACC, _POS, None, _ACC, In((5,), dtype="acc"), In((1,), "int", "int32")), ShapeError,
            ("sum_dy_xmu", "(5,)", "(6,)")),
        Bad("counts_dtype", (_X, _X, _ACC, _POS, None, _ACC, _ACC, In((1,), "int", "int64")), DTypeError, ("counts", "int64", "int32"))),
   names={"aten": ("batch_norm_backward_elemt",)},
   doc="Gradient of batch_norm by x once sum_dy and sum_dy_xmu are those of all devices, over sum(counts) elements a channel: (dy - "
       "sum_dy / n - (x - mean) invstd^2 sum_dy_xmu / n) invstd weight.")
