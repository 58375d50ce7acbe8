"""layer_norm, rms_norm and their gradients: what they are.  How: kernels/cpu/norm.c, kernels/triton/norm.py."""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.errors import DTypeError, ShapeError
from .budget import Conditioned
from .gradient import count
from .infer import accumulator, need_dtype, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op


def _tail(name, x, normalized_shape):
    """normalized_shape as a tuple, checked against the last axes of x."""
    need_dtype(name, "x", x, FLOATS)
    tail = tuple(normalized_shape)
    if not tail or x.ndim < len(tail) or x.shape[x.ndim - len(tail):] != tail:
        raise ShapeError(f"{name}: normalized_shape {tail} and x of shape {x.shape}; needs the last axes of x, one at "
                         "least")
    return tail


def _affine(name, x, tail, **given):
    for what, w in given.items():
        if w is None:
            continue
        same_dtype(name, x, w)
        if w.shape != tail:
            raise ShapeError(f"{name}: {what} has shape {w.shape}; needs the normalized shape {tail}")


def _stats(name, x, tail, **given):
    """mean and rstd: one for each row, in the accumulator's dtype."""
    shape, dtype = x.shape[:x.ndim - len(tail)] + (1,) * len(tail), accumulator(x.dtype)
    for what, s in given.items():
        if s.shape != shape:
            raise ShapeError(f"{name}: {what} has shape {s.shape}; needs {shape} for x of shape {x.shape}")
        if s.dtype is not dtype:
            raise DTypeError(f"{name}: {what} has dtype {s.dtype}; needs {dtype} for {x.dtype} input")
    return Spec(shape, dtype)


def _infer_layer_norm(x: Spec, weight: Spec | None, bias: Spec | None, *, normalized_shape: Any, eps: float) -> Spec:
    _affine("layer_norm", x, _tail("layer_norm", x, normalized_shape), weight=weight, bias=bias)
    return x


def _infer_native(x: Spec, weight: Spec | None, bias: Spec | None, *, normalized_shape: Any,
                  eps: float) -> tuple[Spec, ...]:
    tail = _tail("native_layer_norm", x, normalized_shape)
    _affine("native_layer_norm", x, tail, weight=weight, bias=bias)
    s = _stats("native_layer_norm", x, tail)
    return x, s, s


def _infer_native_backward(dy: Spec, x: Spec, mean: Spec, rstd: Spec, weight: Spec | None, bias: Spec | None, *,
                           normalized_shape: Any) -> tuple[Spec, ...]:
    name = "native_layer_norm_backward"
    tail = _tail(name, x, normalized_shape)
    _same_shape(name, dy, x)
    _affine(name, x, tail, weight=weight, bias=bias)
    _stats(name, x, tail, mean=mean, rstd=rstd)
    return x, Spec(tail, x.dtype), Spec(tail, x.dtype)


def _same_shape(name, dy, x):
    same_dtype(name, dy, x)
    if dy.shape != x.shape:
        raise ShapeError(f"{name}: dy is {dy.shape} and x is {x.shape}; they must be equal")


def _infer_rms_norm(x: Spec, weight: Spec | None, *, eps: float) -> Spec:
    need_dtype("rms_norm", "x", x, FLOATS)
    if x.ndim == 0 or weight is not None and weight.ndim == 0:
        raise ShapeError(f"rms_norm: x has shape {x.shape}{' and weight ()' if x.ndim else ''}; needs an axis to "
                         "normalise over")
    if weight is not None:
        same_dtype("rms_norm", x, weight)
        if x.shape[max(x.ndim - weight.ndim, 0):] != weight.shape:
            raise ShapeError(f"rms_norm: weight has shape {weight.shape} and x {x.shape}; needs the last axes of x")
    return x


def _infer_fused(x: Spec, weight: Spec | None, *, normalized_shape: Any, eps: float) -> tuple[Spec, ...]:
    tail = _tail("fused_rms_norm", x, normalized_shape)
    _affine("fused_rms_norm", x, tail, weight=weight)
    return x, _stats("fused_rms_norm", x, tail)


def _infer_fused_backward(dy: Spec, x: Spec, rstd: Spec, weight: Spec | None, *,
                          normalized_shape: Any) -> tuple[Spec, ...]:
    name = "fused_rms_norm_backward"
    tail = _tail(name, x, normalized_shape)
    _same_shape(name, dy, x)
    _affine(name, x, tail, weight=weight)
    _stats(name, x, tail, rstd=rstd)
    return x, Spec(tail, x.dtype)


def _over(x, tail):
    return tuple(range(x.ndim - len(tail), x.ndim)), tuple(range(x.ndim - len(tail)))


def _native_layer_norm(x, weight, bias, *, normalized_shape, eps):
    inner, _ = _over(x, tuple(normalized_shape))
    n = np.float64(count(normalized_shape))
    with np.errstate(all="ignore"):
        mean = np.sum(x, axis=inner, keepdims=True) / n
        rstd = 1.0 / np.sqrt(np.sum((x - mean) ** 2, axis=inner, keepdims=True) / n + eps)
        y = (x - mean) * rstd
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, rstd


def _layer_norm(x, weight, bias, *, normalized_shape, eps):
    return _native_layer_norm(x, weight, bias, normalized_shape=normalized_shape, eps=eps)[0]


def _native_layer_norm_backward(dy, x, mean, rstd, weight, bias, *, normalized_shape):
    inner, outer = _over(x, tuple(normalized_shape))
    n = np.float64(max(count(normalized_shape), 1))
    normal = (x - mean) * rstd
    g = dy if weight is None else dy * weight
    along, level = np.sum(g * normal, axis=inner, keepdims=True) / n, np.sum(g, axis=inner, keepdims=True) / n
    dx = rstd * (g - level - normal * along)
    return dx, np.sum(dy * normal, axis=outer), np.sum(dy, axis=outer)


def _fused_rms_norm(x, weight, *, normalized_shape, eps):
    inner, _ = _over(x, tuple(normalized_shape))
    with np.errstate(all="ignore"):
        rstd = 1.0 / np.sqrt(np.sum(x * x, axis=inner, keepdims=True) / np.float64(count(normalized_shape)) + eps)
        return x * rstd if weight is None else x * rstd * weight, rstd


def _rms_norm(x, weight, *, eps):
    return _fused_rms_norm(x, weight, normalized_shape=x.shape[-1:] if weight is None else weight.shape, eps=eps)[0]


def _fused_rms_norm_backward(dy, x, rstd, weight, *, normalized_shape):
    inner, outer = _over(x, tuple(normalized_shape))
    normal = x * rstd
    g = dy if weight is None else dy * weight
    along = np.sum(g * normal, axis=inner, keepdims=True) / np.float64(max(count(normalized_shape), 1))
    dx = rstd * (g - normal * along)
    return dx, np.sum(dy * normal, axis=outer)


def _terms(*given: Spec | None, normalized_shape: Any = None, **_: Any) -> int:
    """Forward: the row's length; backward: weights' gradients also sum over the rows."""
    x, weight = given[:2]
    assert x is not None  # only weights are optional
    tail = normalized_shape if normalized_shape is not None else weight.shape if weight else x.shape[-1:]
    n = count(tail)
    return n if len(given) <= 3 else max(n, x.size // max(n, 1))


def _rms_terms(x: Spec, weight: Spec | None, **_: Any) -> int:
    return count(weight.shape if weight else x.shape[-1:])


def _cost(per_element, infer):
    def cost(item: int, *given: Spec | None, **attrs: Any) -> Cost:
        out = infer(*given, **attrs)
        tensors = [s for s in (*given, *(out if isinstance(out, tuple) else (out,))) if s is not None]
        x = given[0]
        assert x is not None  # only weights are optional
        return Cost(flops=per_element * x.size, bytes=sum(s.size * s.dtype.itemsize for s in tensors))

    return cost


def _layer_norm_grad(o, dy, inputs, y, attrs):
    x, weight, bias = inputs
    shape = attrs["normalized_shape"]
    _, mean, rstd = o.native_layer_norm(x, shape, weight, bias, attrs["eps"])
    return _native_grad(o, dy, inputs, (y, mean, rstd), attrs)


def _native_grad(o, dy, inputs, outputs, attrs):
    x, weight, bias = inputs
    dx, dw, db = o.native_layer_norm_backward(dy, x, attrs["normalized_shape"], outputs[1], outputs[2], weight, bias)
    return dx, None if weight is None else dw, None if bias is None else db


def _rms_norm_grad(o, dy, inputs, y, attrs):
    x, weight = inputs
    shape = tuple(x.shape[-1:] if weight is None else weight.shape)
    _, rstd = o.fused_rms_norm(x, shape, weight, attrs["eps"])
    return _fused_grad(o, dy, inputs, (y, rstd), {"normalized_shape": shape})


def _fused_grad(o, dy, inputs, outputs, attrs):
    x, weight = inputs
    dx, dw = o.fused_rms_norm_backward(dy, x, attrs["normalized_shape"], outputs[1], weight)
    return dx, None if weight is None else dw


# name, x, how many trailing axes are normalised, weight given, bias given
_SHAPES = (("one", (1,), 1, True, True), ("vector", (13,), 1, False, False), ("prime", (7, 13), 1, True, True),
           ("two_axes", (5, 3, 11), 2, True, True), ("whole", (3, 7), 2, True, True),
           ("weight_only", (4, 33), 1, True, False),
           ("bias_only", (4, 33), 1, False, True), ("plain", (3, 5, 65), 1, False, False),
           ("past_tile", (3, 1025), 1, True, True),
           ("wide", (2, 4099), 1, True, True), ("tall", (257, 4), 1, True, True), ("empty_rows", (0, 5), 1, True, True))
# just past a row kept in registers or L1 (8192), and past several blocks of rows whose weight gradients are added up (C, 128
# each; Triton, 1024)
_PAST = (("past_row", (2, 8213)), ("many_rows", (1037, 5)))
_MODELS = (("bert_hidden", (128, 768), "BERT-base layer norm", "inference", ("full",)),
           ("llama_decode", (1, 4096), "Llama-7B norm, decode", "inference", ("full", "llm")),
           ("llama_prefill", (128, 4096), "Llama-7B norm, 128 tokens", "full", ("full", "llm")),
           ("square_4096", (4096, 4096), "", "full", ("quick", "full")))


def _samples(build, rms=False, bench=True):
    """build(x shape, trailing axes, weight given, bias given) -> (inputs, attrs)."""
    found = []
    for name, x, k, w, b in _SHAPES:
        if rms and b and not w:
            continue
        found.append(Sample(name, *build(x, k, w, b and not rms)))
    name, x = _PAST[build in (_backward, _rms_backward)]
    found.append(Sample(name, *build(x, 1, True, not rms), cover="once"))
    for name, x, model, level, suites in _MODELS:
        level = "training" if not bench and level == "inference" else level
        found.append(Sample(name, *build(x, 1, True, not rms), model, level, suites if bench else suites[-1:]))
    return found


def _given(want, shape):
    return In(shape, "normal") if want else None


def _forward(x, k, w, b):
    return (In(x), _given(w, x[-k:]), _given(b, x[-k:])), {"normalized_shape": x[-k:], "eps": 1e-5}


def _backward(x, k, w, b):
    row = x[:len(x) - k] + (1,) * k
    inputs = (In(x), In(x), In(row, "uniform", "acc"), In(row, "positive", "acc"), _given(w, x[-k:]), _given(b, x[-k:]))
    return inputs, {"normalized_shape": x[-k:]}


def _rms(x, k, w, b):
    return (In(x), _given(w, x[-k:])), {}


def _rms_fused(x, k, w, b):
    return (In(x), _given(w, x[-k:])), {"normalized_shape": x[-k:], "eps": 1e-6}


def _rms_backward(x, k, w, b):
    row = x[:len(x) - k] + (1,) * k
    return (In(x), In(x), In(row, "positive", "acc"), _given(w, x[-k:])), {"normalized_shape": x[-k:]}


def _bad(extra, eps, **more):
    """The three mistakes every norm with normalized_shape must name; extra: how many optional tensors follow x."""
    attrs = {"eps": eps, **more}
    none = (None,) * (extra - 1)
    return (Bad("not_the_last_axes", (In((3, 4)), None, *none), ShapeError, ("(3,)", "(3, 4)"),
                {"normalized_shape": (3,), **attrs}),
            Bad("no_axis", (In((3, 4)), None, *none), ShapeError, ("()", "(3, 4)"), {"normalized_shape": (), **attrs}),
            Bad("weight_shape", (In((3, 4)), In((3,)), *none), ShapeError, ("weight", "(3,)", "(4,)"),
                {"normalized_shape": (4,), **attrs}),
            Bad("int32", (In((3, 4), "int"), None, *none), DTypeError, ("int32", "float32"),
                {"normalized_shape": (4,), **attrs}, dtype="int32"),
            Bad("weight_dtype", (In((3, 4)), In((4,), dtype="float64"), *none), DTypeError, ("float32", "float64"),
                {"normalized_shape": (4,), **attrs}))


_ROW = {"normalized_shape": (4,)}
_BAD_BACKWARD = (
    Bad("dy_shape", (In((4, 3)), In((3, 4)), In((3, 1)), In((3, 1)), None, None), ShapeError, ("(4, 3)", "(3, 4)"),
        _ROW),
    Bad("mean_shape", (In((3, 4)), In((3, 4)), In((3,)), In((3, 1)), None, None), ShapeError,
        ("mean", "(3,)", "(3, 1)"), _ROW),
    Bad("rstd_dtype", (In((3, 4)), In((3, 4)), In((3, 1)), In((3, 1), dtype="float64"), None, None), DTypeError,
        ("rstd", "float64", "float32"), _ROW))
_BAD_RMS = (Bad("weight_shape", (In((3, 4)), In((3,))), ShapeError, ("(3,)", "(3, 4)")),
            Bad("scalar", (In(()), None), ShapeError, ("()", "axis")),
            Bad("int32", (In((3, 4), "int"), None), DTypeError, ("int32", "float32"), dtype="int32"),
            Bad("weight_dtype", (In((3, 4)), In((4,), dtype="float64")), DTypeError, ("float32", "float64")))
_BAD_RMS_BACKWARD = (
    Bad("dy_shape", (In((4, 3)), In((3, 4)), In((3, 1)), None), ShapeError, ("(4, 3)", "(3, 4)"), _ROW),
    Bad("rstd_shape", (In((3, 4)), In((3, 4)), In((3,)), None), ShapeError, ("rstd", "(3,)", "(3, 1)"), _ROW))

_C = Conditioned(k=4, terms=_terms)
_FAMILY: dict[str, Any] = {"family": "norm", "dtypes": FLOATS}

op("layer_norm(Tensor x, int[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1e-5) -> Tensor",
   **_FAMILY, infer=_infer_layer_norm, rule="same", reference=_layer_norm, budget=_C, cost=_cost(8, _infer_layer_norm),
   doc="(x - mean) / sqrt(var + eps) over the last axes normalized_shape (biased variance), times weight, plus bias; "
       "both of that shape and of x's dtype.",
   samples=[*_samples(_forward), Sample("empty_axis", (In((3, 0)), None, None), {"normalized_shape": (0,)}),
            Sample("constant_rows", (In((2, 5), values=(3, 3, 3, 3, 3, 0, 0, 0, 0, 0)), None, None),
                   {"normalized_shape": (5,)})],
   bad=_bad(2, 1e-5), grad=_layer_norm_grad,
   names={"onnx": ("LayerNormalization",), "paddle": ("layer_norm",)})

op("native_layer_norm(Tensor x, int[] normalized_shape, Tensor? weight, Tensor? bias, float eps) "
   "-> (Tensor out, Tensor mean, Tensor rstd)", **_FAMILY, infer=_infer_native, reference=_native_layer_norm, budget=_C,
   cost=_cost(8, _infer_native), samples=_samples(_forward, bench=False), bad=_bad(2, 1e-5), grad=_native_grad,
   doc="layer_norm with the statistics its gradient needs: mean and rstd = 1 / sqrt(var + eps), of x's shape with the "
       "normalised axes 1, float32 for float16 and bfloat16.", names={"aten": ("native_layer_norm",)})

op("native_layer_norm_backward(Tensor dy, Tensor x, int[] normalized_shape, Tensor mean, Tensor rstd, Tensor? "
   "weight=None, Tensor? bias=None) -> (Tensor dx, Tensor dweight, Tensor dbias)", **_FAMILY,
   infer=_infer_native_backward,
   reference=_native_layer_norm_backward, budget=_C, cost=_cost(14, _infer_native_backward),
   samples=_samples(_backward, bench=False), bad=_BAD_BACKWARD,
   doc="Gradients of layer_norm from mean and rstd as given; dweight and dbias always have the shape normalized_shape.",
   names={"aten": ("native_layer_norm_backward",)})

op("rms_norm(Tensor x, Tensor? weight=None, *, float eps=1e-6) -> Tensor", **_FAMILY, infer=_infer_rms_norm,
   rule="same", reference=_rms_norm, budget=Conditioned(k=4, terms=_rms_terms), cost=_cost(5, _infer_rms_norm),
   doc="x / sqrt(mean(x^2) + eps) over weight's axes (the last one without a weight), times weight.",
   samples=_samples(_rms, rms=True), bad=_BAD_RMS, grad=_rms_norm_grad,
   names={"onnx": ("RMSNormalization",), "paddle": ("rms_norm",)})

op("fused_rms_norm(Tensor x, int[] normalized_shape, Tensor? weight=None, float eps=1e-6) -> (Tensor out, Tensor rstd)",
   **_FAMILY, infer=_infer_fused, reference=_fused_rms_norm, budget=_C, cost=_cost(5, _infer_fused),
   doc="rms_norm over the last axes normalized_shape, with rstd = 1 / sqrt(mean(x^2) + eps) (float32 for float16 and "
       "bfloat16).",
   samples=_samples(_rms_fused, rms=True, bench=False), bad=_bad(1, 1e-6), grad=_fused_grad,
   names={"paddle": ("fused_rms_norm",)})

op("fused_rms_norm_backward(Tensor dy, Tensor x, int[] normalized_shape, Tensor rstd, Tensor? weight=None) -> (Tensor "
   "dx, Tensor dweight)", **_FAMILY, infer=_infer_fused_backward, reference=_fused_rms_norm_backward, budget=_C,
   cost=_cost(11, _infer_fused_backward), samples=_samples(_rms_backward, rms=True, bench=False), bad=_BAD_RMS_BACKWARD,
   doc="Gradients of rms_norm from rstd as given; dweight always has the shape normalized_shape.",
   names={"aten": ("_fused_rms_norm_backward",)})
