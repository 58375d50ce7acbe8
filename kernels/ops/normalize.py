"""normalize, weight_norm and the norm of a list of tensors: made of vector norms and pointwise operators on every device.

Not here: the norms (reduce.py), normalisation by mean and variance (norm.py).
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Conditioned
from .gradient import count, zeros
from .infer import accumulator, axis, need, need_dtype, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op
from .reduce import norm_grad

_INF = float("inf")


def _size(x, p, over):
    with np.errstate(all="ignore"):
        a = np.abs(x)
        if p == _INF:
            return np.max(a, axis=over, keepdims=True, initial=0.0)
        if p == 2:
            return np.sqrt(np.sum(a * a, axis=over, keepdims=True))
        return np.sum(a, axis=over, keepdims=True) if p == 1 else np.sum(a**p, axis=over, keepdims=True) ** (1 / p)


# ---- normalize ------------------------------------------------------------------------------------------------------------
def _infer_normalize(x: Spec, *, p: float, dim: int, eps: float) -> Spec:
    need_dtype("normalize", "x", x, FLOATS)
    axis("normalize", dim, x.ndim)
    need(p > 0, f"normalize: p is {p:g}; needs more than 0")
    need(eps > 0, f"normalize: eps is {eps:g}; needs more than 0")
    return x


def _normalize(x, *, p, dim, eps):
    with np.errstate(all="ignore"):
        return x / np.maximum(_size(x, p, dim if x.ndim else None), eps)


def _compose_normalize(o: Any, x: Any, *, out: Any, p: float, dim: int, eps: float) -> None:
    if x.shape and not x.shape[dim]:
        return  # nothing to divide, and no largest element of nothing
    o.div(x, o.clamp(o.linalg_vector_norm(x, p, (dim,), True), min=eps), out=out)


def _normalize_grad(o, dy, inputs, y, attrs):
    x, p, dim, eps = inputs[0], attrs["p"], attrs["dim"], attrs["eps"]
    norm = o.linalg_vector_norm(x, p, (dim,), True)
    safe = o.clamp(norm, min=eps)
    of_norm = o.neg(o.div(o.sum(o.mul(dy, x), (dim,), True), o.mul(safe, safe)))
    of_norm = o.where(o.gt(norm, o.full((), eps, dtype=x.dtype)), of_norm, zeros(o, (), x.dtype))
    through = norm_grad(o, of_norm, (x,), norm, {"ord": p, "dim": (dim,), "keepdim": True})[0]
    return (o.add(o.div(dy, safe), through),)


_X = In((3, 4))

op("normalize(Tensor x, float p=2.0, int dim=1, float eps=1e-12) -> Tensor", family="normalize", dtypes=FLOATS, infer=_infer_normalize,
   reference=_normalize, budget=Conditioned(k=4, terms=lambda x, *, dim, **_: x.shape[dim] if x.ndim else 1, roundings=1),
   cost=lambda item, x, **_: Cost(flops=3 * x.size, bytes=3 * item * x.size), grad=_normalize_grad, compose=_compose_normalize,
   composite="the norm has its own kernel, and the division by it runs at the speed of memory; as torch.nn.functional.normalize does",
   samples=[*(Sample(n, (In(s),), {"dim": d, "p": p}) for n, s, d, p in (
       ("scalar", (), 0, 2.0), ("one", (1,), 0, 2.0), ("prime", (7, 13), 1, 2.0), ("first", (129, 4), 0, 2.0), ("inner", (5, 33, 3), 1, 1.0),
       ("past_tile", (3, 1025), -1, 2.0), ("largest", (7, 65), 1, _INF), ("cubes", (7, 65), 0, 3.0), ("empty_rows", (0, 5), 1, 2.0),
       ("empty_axis", (4, 0), 1, _INF))),
            Sample("zero_row", (In((2, 3), dtype="float32", values=(0, 0, 0, 3, 0, 4)),), {}),
            Sample("sentences", (In((512, 384)),), {}, "MiniLM sentence vectors", "inference", ("full",))],
   bad=(Bad("dim_2_of_2", (_X,), ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim": 2}), Bad("p_0", (_X,), ArgumentError, ("p is 0",), {"p": 0.0}),
        Bad("eps_0", (_X,), ArgumentError, ("eps is 0",), {"eps": 0.0}), Bad("int32", (In((3, 4), "int"),), DTypeError, ("int32", "float32"), dtype="int32")),
   doc="x divided by its p-norm along dim, or by eps where that is larger.  The norm is rounded to x's dtype, and in float16 eps=1e-12 is 0.",
   names={"torch": ("nn.functional.normalize",), "onnx": ("LpNormalization",), "paddle": ("normalize",)})


# ---- weight_norm -------------------------------------------------------------------------------------------------------------
def _rest(v: Any, dim: int) -> tuple[int, ...]:
    return tuple(i for i in range(v.ndim) if i != dim % v.ndim)


def _infer_weight_norm(v: Spec, g: Spec, *, dim: int) -> tuple[Spec, Spec]:
    need_dtype("weight_norm", "v", v, FLOATS)
    same_dtype("weight_norm", v, g)
    if not v.ndim:
        raise ShapeError("weight_norm: v has shape (); needs an axis")
    at = axis("weight_norm", dim, v.ndim)
    want = tuple(s if i == at else 1 for i, s in enumerate(v.shape))
    if g.shape != want:
        raise ShapeError(f"weight_norm: g is {g.shape} for v of {v.shape} and dim {dim}; needs {want}")
    return v, Spec(want, accumulator(v.dtype))


def _weight_norm(v, g, *, dim):
    norm = _size(v, 2, _rest(v, dim))
    with np.errstate(all="ignore"):
        return v * (g / norm), norm


def _compose_weight_norm(o: Any, v: Any, g: Any, *, out: Any, dim: int) -> None:
    over, wide = _rest(v, dim), accumulator(v.dtype)
    w, norm = out
    if over:
        o.linalg_vector_norm(v, 2.0, over, True, dtype=wide, out=norm)
    else:
        o.abs(v if wide is v.dtype else o.cast(v, dtype=wide), out=norm)
    ratio = o.div(g if wide is g.dtype else o.cast(g, dtype=wide), norm)
    o.mul(v, ratio if wide is v.dtype else o.cast(ratio, dtype=v.dtype), out=w)


def _weight_norm_grad(o, dy, inputs, outputs, attrs):
    """Of w; norm is not differentiated, as in aten."""
    v, g = inputs
    over, norm = _rest(v, attrs["dim"]), outputs[1]
    norm = norm if norm.dtype is v.dtype else o.cast(norm, dtype=v.dtype)
    along = o.mul(dy, v)
    along = o.div(o.sum(along, over, True) if over else along, norm)
    ratio = o.div(g, norm)
    return o.sub(o.mul(dy, ratio), o.mul(v, o.mul(ratio, o.div(along, norm)))), along


def _rows(v: Spec, *_: Any, dim: int) -> int:
    return count([s for i, s in enumerate(v.shape) if i != dim % v.ndim])


op("weight_norm(Tensor v, Tensor g, int dim=0) -> (Tensor w, Tensor norm)", family="normalize", dtypes=FLOATS, infer=_infer_weight_norm,
   reference=_weight_norm, budget=Conditioned(k=4, terms=_rows, roundings=1), grad=_weight_norm_grad, compose=_compose_weight_norm,
   composite="the norms have their own kernel, and the product with them runs at the speed of memory",
   cost=lambda item, v, g, **_: Cost(flops=3 * v.size, bytes=3 * item * v.size),
   samples=[*(Sample(n, (In(s), In(tuple(k if i == d % len(s) else 1 for i, k in enumerate(s)), "positive")), {"dim": d}) for n, s, d in (
       ("one", (1,), 0), ("vector", (5,), 0), ("prime", (7, 13), 0), ("last", (7, 13), 1), ("kernel", (5, 3, 7), 0), ("past_tile", (3, 1025), -2),
       ("inner", (4, 5, 6), 1), ("empty", (0, 5), 0))),
            Sample("wavenet", (In((512, 256, 3)), In((512, 1, 1), "positive")), {}, "WaveNet dilated convolution", "training", ("full",))],
   bad=(Bad("g_shape", (In((3, 4)), In((4,))), ShapeError, ("(4,)", "(3, 1)")), Bad("dim_2_of_2", (In((3, 4)), In((3, 1))), ShapeError, ("dim 2",), {"dim": 2}),
        Bad("dtypes", (In((3, 4)), In((3, 1), dtype="float64")), DTypeError, ("float32", "float64")),
        Bad("scalar", (In(()), In(())), ShapeError, ("()", "axis"))),
   doc="v times g / norm, norm being the square norm of v over all axes but dim; norm keeps v's axes and the accumulator's dtype.",
   names={"aten": ("_weight_norm_interface",)})


# ---- the norm of a list --------------------------------------------------------------------------------------------------------
def _infer_total(tensors: tuple[Spec, ...], *, norm_type: float) -> Spec:
    if not tensors:
        raise ArgumentError("total_norm: no tensors; needs a list of one or more")
    for t in tensors:
        need_dtype("total_norm", "a tensor", t, FLOATS)
    same_dtype("total_norm", *tensors)
    need(norm_type > 0, f"total_norm: norm_type is {norm_type:g}; needs more than 0")
    return Spec((), tensors[0].dtype)


def _total(tensors, *, norm_type):
    return _size(np.concatenate([t.reshape(-1) for t in tensors]), norm_type, (0,)).reshape(())


def _compose_total(o: Any, *tensors: Any, out: Any, norm_type: float) -> None:
    wide = accumulator(out.dtype)
    parts = [o.linalg_vector_norm(t, norm_type, None, False, dtype=wide).reshape(1) for t in tensors if t.numel]
    if not parts:
        o.sum(tensors[0], out=out)
        return
    whole = o.linalg_vector_norm(o.cat(parts, 0), norm_type)
    o.copy(whole if wide is out.dtype else o.cast(whole, dtype=out.dtype), out=out)


def _list(*shapes: tuple[int, ...]) -> tuple[tuple[In, ...]]:
    return (tuple(In(s) for s in shapes),)


op("total_norm(Tensor[] tensors, float norm_type=2.0) -> Tensor", family="normalize", dtypes=FLOATS, infer=_infer_total, reference=_total,
   budget=Conditioned(k=4, terms=lambda tensors, **_: sum(t.size for t in tensors)), compose=_compose_total,
   composite="each tensor's norm has its own kernel; what is left is a handful of numbers",
   cost=lambda item, tensors, **_: Cost(flops=2 * sum(t.size for t in tensors), bytes=item * sum(t.size for t in tensors)),
   samples=[Sample("one", _list((1,)), {}), Sample("prime", _list((7, 13), (5,)), {}), Sample("many", _list(*((3, k) for k in range(1, 12))), {}),
            Sample("scalar", _list((), (3, 1025)), {}), Sample("ones", _list((7, 13), (5,)), {"norm_type": 1.0}),
            Sample("largest", _list((7, 13), (5,)), {"norm_type": _INF}), Sample("cubes", _list((7, 13), (5,)), {"norm_type": 3.0}),
            Sample("some_empty", _list((0, 5), (4,)), {}), Sample("all_empty", _list((0, 5)), {}),
            Sample("bert_layer", _list((768, 768), (768, 768), (768, 768), (768, 768), (3072, 768), (768, 3072), (768,)), {}, "BERT-base layer's gradients",
                   "training", ("full",))],
   bad=(Bad("none", ((),), ArgumentError, ("no tensors",)), Bad("norm_type_0", _list((3,)), ArgumentError, ("norm_type is 0",), {"norm_type": 0.0}),
        Bad("dtypes", ((In((3,)), In((3,), dtype="float64")),), DTypeError, ("float32", "float64"))),
   doc="The norm of all elements of a list of tensors, as clipping gradients needs it; 0 of no elements.",
   names={"torch": ("nn.utils.get_total_norm",)})
