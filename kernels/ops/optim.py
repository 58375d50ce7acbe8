"""Steps of optimisers on one tensor: sgd, adam, adamw, rmsprop, adadelta.  How: kernels/cpu/optim.c, kernels/triton/optim.py.

Results are the new parameter and states; out= may name the old ones themselves, which makes the step in place.  Meaning and order of
operations are those of torch.optim's single-tensor steps.  Not here: lists of parameters, schedules.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Conditioned
from .infer import accumulator, need, need_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op


def _step(name, rates, first=0, together=()):
    """infer of a step: states of param's shape, in its dtype or its accumulator's; a state that is not given comes back as (0,).

    rates: attributes that must not be negative; first: the least number of steps (0: has none); together: attributes above 0 that need
    the state named beside them.
    """
    def infer(param: Spec, grad: Spec, *states: Spec | None, **attrs: Any) -> tuple[Spec, ...]:
        need_dtype(name, "param", param, FLOATS)
        for i, t in enumerate((grad, *states)):
            what = "grad" if i == 0 else f"state {i}"
            if t is None:
                continue
            if t.dtype not in (param.dtype, accumulator(param.dtype)):
                raise DTypeError(f"{name}: {what} has dtype {t.dtype} and param {param.dtype}; needs that or {accumulator(param.dtype)}")
            if t.shape != param.shape:
                raise ShapeError(f"{name}: {what} is {t.shape} and param {param.shape}; they must be equal")
        for key in rates:
            need(attrs[key] >= 0, f"{name}: {key} is {attrs[key]:g}; needs 0 or more")
        if first:
            need(attrs["step"] >= first, f"{name}: step is {attrs['step']}; the first one is {first}")
        for key, at in together:
            if attrs[key] and states[at] is None:
                raise ArgumentError(f"{name}: {key} is set and state {at + 1} was not given; give a tensor of zeros before the first step")
        none = Spec((0,), accumulator(param.dtype))
        return param, *(none if s is None else s for s in states)

    return infer


def _or_none(state, given):
    return np.zeros(0) if given is None else state


def _gradient(param, grad, a):
    g = -grad if a["maximize"] else grad
    return g + a["weight_decay"] * param if a["weight_decay"] else g


def _sgd(param, grad, momentum_buffer, **a):
    with np.errstate(all="ignore"):
        g = d = _gradient(param, grad, a)
        buffer = momentum_buffer
        if a["momentum"]:
            buffer = g + 0.0 if a["first_step"] else a["momentum"] * momentum_buffer + (1 - a["dampening"]) * g
            d = g + a["momentum"] * buffer if a["nesterov"] else buffer
        return param - a["lr"] * d, _or_none(buffer, momentum_buffer)


def _adam(decoupled):
    def reference(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, **a):
        with np.errstate(all="ignore"):
            g = -grad if a["maximize"] else grad
            if decoupled:
                param = param * (1 - a["lr"] * a["weight_decay"])
            elif a["weight_decay"]:
                g = g + a["weight_decay"] * param
            m = exp_avg * a["beta1"] + g * (1 - a["beta1"])
            v = exp_avg_sq * a["beta2"] + g * g * (1 - a["beta2"])
            top = v if max_exp_avg_sq is None else np.maximum(max_exp_avg_sq, v)
            denominator = np.sqrt(top / (1 - a["beta2"] ** a["step"])) + a["eps"]
            return param - a["lr"] / (1 - a["beta1"] ** a["step"]) * (m / denominator), m, v, _or_none(top, max_exp_avg_sq)

    return reference


def _rmsprop(param, grad, square_avg, momentum_buffer, grad_avg, **a):
    with np.errstate(all="ignore"):
        g = _gradient(param, grad, a)
        square = square_avg * a["alpha"] + g * g * (1 - a["alpha"])
        average, buffer, variance = grad_avg, momentum_buffer, square
        if a["centered"]:
            average = grad_avg * a["alpha"] + g * (1 - a["alpha"])
            variance = square - average * average
        d = g / (np.sqrt(variance) + a["eps"])
        if a["momentum"]:
            buffer = d = a["momentum"] * momentum_buffer + d
        return param - a["lr"] * d, square, _or_none(buffer, momentum_buffer), _or_none(average, grad_avg)


def _adadelta(param, grad, square_avg, acc_delta, **a):
    with np.errstate(all="ignore"):
        g = _gradient(param, grad, a)
        square = square_avg * a["rho"] + g * g * (1 - a["rho"])
        delta = np.sqrt(acc_delta + a["eps"]) / np.sqrt(square + a["eps"]) * g
        return param - a["lr"] * delta, square, acc_delta * a["rho"] + delta * delta * (1 - a["rho"])


def _cost(per_element):
    def cost(item: int, *given: Spec | None, **_: Any) -> Cost:
        tensors = [s for s in given if s is not None]
        return Cost(flops=per_element * tensors[0].size, bytes=sum(s.size * s.dtype.itemsize for s in tensors)
                    + sum(s.size * s.dtype.itemsize for i, s in enumerate(tensors) if i != 1))

    return cost


# 0-d, 1s, primes, one past a block of 1024, zero sizes
_SHAPES = (("scalar", ()), ("one", (1,)), ("prime", (7, 13)), ("past_tile", (3, 1025)), ("cube", (5, 33, 3)), ("empty", (0, 5)))
_MODELS = (("bert_ffn", (3072, 768), "BERT-base ffn weight", "training", ("full",)),
           ("llama_mlp", (4096, 11008), "Llama-7B mlp weight", "full", ("full", "llm")))


def _samples(states, optional, attrs, variants):
    """states: draws of those always given; optional: draws of the others; variants: name -> (others given, attributes)."""
    def inputs(shape, given, dtype=None):
        s = [In(shape, d, dtype) for d in states] + [In(shape, d, dtype) if k else None for d, k in zip(optional, given)]
        return (In(shape), In(shape), *s)

    none = (False,) * len(optional)
    found = [Sample(n, inputs(s, none), attrs) for n, s in _SHAPES]
    found += [Sample(n, inputs((5, 67), given), {**attrs, **a}) for n, (given, a) in variants.items()]
    found.append(Sample("states_float32", inputs((9, 31), none, "acc"), attrs))
    return found + [Sample(n, inputs(s, none), attrs, m, level, b) for n, s, m, level, b in _MODELS]


def _bad(states, attrs, extra=()):
    x = In((3, 4))
    rest = (In((3, 4), "positive"),) * states[0] + (None,) * states[1]
    return (Bad("grad_shape", (x, In((4, 3)), *rest), ShapeError, ("grad", "(4, 3)", "(3, 4)"), attrs),
            Bad("int32", (In((3, 4), "int"), In((3, 4), "int"), *rest), DTypeError, ("int32", "float32"), attrs, dtype="int32"),
            Bad("grad_dtype", (x, In((3, 4), dtype="float64"), *rest), DTypeError, ("grad", "float64", "float32"), attrs),
            Bad("negative_lr", (x, x, *rest), ArgumentError, ("lr", "-1"), {**attrs, "lr": -1.0}),
            *(Bad(n, (x, x, *rest), ArgumentError, w, {**attrs, **a}) for n, a, w in extra))


_FAMILY: dict[str, Any] = {"family": "optim", "dtypes": FLOATS, "budget": Conditioned(k=4, terms=lambda *_, **__: 1)}
_STATES = ("  States have param's shape and its dtype or the accumulator's (float32 for 16-bit param); one that is not given comes back as "
           "(0,).  out= may be the inputs themselves.")
_BETAS = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8, "step": 3}
_ADAM = _samples(("uniform", "positive"), ("positive",), _BETAS, {
    "amsgrad": ((True,), {}), "decay": ((False,), {"weight_decay": 0.1}), "maximize": ((False,), {"maximize": True}),
    "first": ((False,), {"step": 1}), "late": ((True,), {"step": 100000, "weight_decay": 0.01})})
_BAD_ADAM = _bad((2, 1), _BETAS, (("step_0", {"step": 0}, ("step is 0",)), ("negative_eps", {"eps": -1.0}, ("eps", "-1"))))

op("sgd(Tensor param, Tensor grad, Tensor? momentum_buffer=None, *, float lr, float momentum=0.0, float dampening=0.0, float "
   "weight_decay=0.0, bool nesterov=false, bool maximize=false, bool first_step=false) -> (Tensor new_param, Tensor new_momentum_buffer)",
   **_FAMILY, infer=_step("sgd", ("lr", "momentum", "weight_decay"), together=(("momentum", 0),)), reference=_sgd, cost=_cost(4),
   samples=_samples((), ("uniform",), {"lr": 0.1}, {
       "momentum": ((True,), {"momentum": 0.9}), "nesterov": ((True,), {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
       "first": ((True,), {"momentum": 0.9, "dampening": 0.5, "first_step": True}), "dampened": ((True,), {"momentum": 0.5, "dampening": 0.25}),
       "maximize": ((False,), {"maximize": True, "weight_decay": 0.1}), "unused": ((True,), {})}),
   bad=_bad((0, 1), {"lr": 0.1}, (("no_buffer", {"momentum": 0.9}, ("momentum is set", "state 1")),)),
   names={"torch": ("optim.SGD",), "paddle": ("momentum_",)},
   doc="param - lr d: d is the gradient (negated by maximize, plus weight_decay param) or with momentum the buffer, momentum old + (1 - "
       "dampening) gradient (the gradient itself on the first step); nesterov adds momentum buffer to the gradient instead." + _STATES)

for _name, _decoupled, _torch in (("adam", False, "Adam"), ("adamw", True, "AdamW")):
    op(f"{_name}(Tensor param, Tensor grad, Tensor exp_avg, Tensor exp_avg_sq, Tensor? max_exp_avg_sq=None, *, int step, float lr=0.001, float "
       f"beta1=0.9, float beta2=0.999, float weight_decay={0.01 if _decoupled else 0.0}, float eps=1e-8, bool maximize=false) -> (Tensor "
       "new_param, Tensor new_exp_avg, Tensor new_exp_avg_sq, Tensor new_max_exp_avg_sq)",
       **_FAMILY, infer=_step(_name, ("lr", "beta1", "beta2", "weight_decay", "eps"), first=1), reference=_adam(_decoupled), cost=_cost(12),
       samples=_ADAM, bad=_BAD_ADAM, names={"torch": (f"optim.{_torch}",), "paddle": (f"{_name}_",)},
       doc="param - lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps) with m and v the moving averages of the gradient and its "
           "square after this step, step counting from 1; max_exp_avg_sq given (amsgrad): the largest v so far instead of v.  "
           + ("param is first scaled by 1 - lr weight_decay." if _decoupled else "weight_decay param is added to the gradient.") + _STATES)

op("rmsprop(Tensor param, Tensor grad, Tensor square_avg, Tensor? momentum_buffer=None, Tensor? grad_avg=None, *, float lr=0.01, float "
   "alpha=0.99, float eps=1e-8, float weight_decay=0.0, float momentum=0.0, bool centered=false, bool maximize=false) -> (Tensor new_param, "
   "Tensor new_square_avg, Tensor new_momentum_buffer, Tensor new_grad_avg)",
   **_FAMILY, infer=_step("rmsprop", ("lr", "alpha", "eps", "weight_decay", "momentum"), together=(("momentum", 1), ("centered", 2))),
   reference=_rmsprop, cost=_cost(10),
   samples=_samples(("positive",), ("uniform", "unit"), {}, {
       "momentum": ((True, False), {"momentum": 0.9}), "centered": ((False, True), {"centered": True}),
       "all": ((True, True), {"momentum": 0.5, "centered": True, "weight_decay": 0.1, "maximize": True})}),
   bad=_bad((1, 2), {}, (("no_buffer", {"momentum": 0.9}, ("momentum is set", "state 2")),
                         ("no_average", {"centered": True}, ("centered is set", "state 3")))),
   names={"torch": ("optim.RMSprop",), "paddle": ("rmsprop_",)},
   doc="param - lr gradient / (sqrt(average of its square) + eps); centered subtracts the square of the average gradient under the root; "
       "momentum adds the quotients up in momentum_buffer." + _STATES)

op("adadelta(Tensor param, Tensor grad, Tensor square_avg, Tensor acc_delta, *, float lr=1.0, float rho=0.9, float eps=1e-6, float "
   "weight_decay=0.0, bool maximize=false) -> (Tensor new_param, Tensor new_square_avg, Tensor new_acc_delta)",
   **_FAMILY, infer=_step("adadelta", ("lr", "rho", "eps", "weight_decay")), reference=_adadelta, cost=_cost(12),
   samples=_samples(("positive", "positive"), (), {}, {"decay": ((), {"weight_decay": 0.1, "lr": 0.5}), "maximize": ((), {"maximize": True})}),
   bad=_bad((2, 0), {}), names={"torch": ("optim.Adadelta",), "paddle": ("adadelta_",)},
   doc="param - lr delta with delta = sqrt(acc_delta + eps) / sqrt(square_avg + eps) gradient, square_avg after this step; acc_delta then "
       "averages delta^2." + _STATES)
