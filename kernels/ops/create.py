"""zeros, ones, full_like, ...: tensors of one value, what they are; full (shape.py) writes them all."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME, DType
from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Exact
from .record import ANY, Bad, Cost, In, Sample, Spec, op
from .shape import infer_full

_WHY = "full writes the same bytes at the same speed"


def _cast(value: float, dtype: DType) -> Any:
    return value if dtype.is_floating else bool(value) if dtype is BY_NAME["bool"] else int(value)


def _like_infer(name: str, constant: float | None) -> Callable[..., Spec]:
    def infer(x: Spec, *, value: float = 0.0, dtype: DType | None = None) -> Spec:
        made = dtype or x.dtype
        if made not in ANY:
            raise DTypeError(f"{name}: dtype is {made}; accepts {', '.join(map(str, ANY))}")
        if constant is None:
            try:
                infer_full(shape=x.shape, value=value, dtype=made)
            except ArgumentError as error:  # a value that the dtype cannot hold
                raise ArgumentError(str(error).replace("full: ", f"{name}: ", 1)) from None
        return Spec(x.shape, made)

    return infer


def _like_reference(constant: float | None) -> Callable[..., np.ndarray]:
    def reference(x, *, value=0.0, dtype=None):
        y = np.empty(x.shape, dtype.numpy if dtype is not None and not dtype.is_floating else np.float64 if dtype is not None else x.dtype)
        v = value if constant is None else constant
        y[...] = v if y.dtype.kind == "f" else bool(v) if y.dtype.kind == "b" else int(v)
        return y

    return reference


def _compose_like(constant: float | None) -> Callable[..., None]:
    def compose(o, x, *, out, value=0.0, dtype=None):
        o.full(tuple(out.shape), value if constant is None else constant, dtype=out.dtype, out=out)

    return compose


def _like_cost(item: int, x: Spec, **_: Any) -> Cost:
    return Cost(flops=0, bytes=x.size * item)


def _like_grad(o, dy, inputs, y, attrs):
    return (o.full(tuple(inputs[0].shape), 0.0, dtype=inputs[0].dtype),)


_SHAPES = (("scalar", ()), ("one", (1,)), ("prime", (7, 13)), ("nothing", (3, 0)), ("past_tile", (3, 1025)))
_MODEL = Sample("hidden", (In((32, 128, 768)),), {}, "BERT-base hidden states", "inference")


def _like(name: str, constant: float | None, aten: tuple[str, ...], **names: tuple[str, ...]) -> None:
    """x's shape filled with ``constant``, or with the attribute value."""
    free = constant is None
    value, what = ("float value, ", "value") if free else ("", f"{constant:g}")

    def attrs(number: float, **more: Any) -> dict[str, Any]:
        return {"value": number, **more} if free else more

    op(f"{name}(Tensor x, {value}*, dtype? dtype=None) -> Tensor", family="create", dtypes=ANY,
       infer=_like_infer(name, constant), reference=_like_reference(constant), budget=Exact(), composite=_WHY, compose=_compose_like(constant),
       doc=f"A tensor of x's shape filled with {what}; of x's dtype where dtype is left out.", cost=_like_cost,
       samples=[*(Sample(n, (In(s),), attrs(1.0 if n == "one" else 3.0)) for n, s in _SHAPES),
                Sample("other_dtype", (In((5, 3)),), attrs(2.75, dtype=BY_NAME["bfloat16"])),
                Sample("to_bool", (In((5, 3)),), attrs(2.0, dtype=BY_NAME["bool"])),
                Sample(_MODEL.name, _MODEL.inputs, attrs(1.0), _MODEL.model, "inference")],
       bad=((Bad("too_large", (In((2,), "int"),), ArgumentError, ("300", "uint8", "255"), {"value": 300.0, "dtype": BY_NAME["uint8"]}),
             Bad("nan_as_int", (In((2,)),), ArgumentError, ("nan", "int32"), {"value": float("nan"), "dtype": BY_NAME["int32"]})) if free else
            (Bad("complex64", (In((2,)),), DTypeError, ("complex64", "accepts"), {"dtype": BY_NAME["complex64"]}),)),
       grad=_like_grad, names={"aten": aten, **names})


def _new(name: str, constant: float, **names: tuple[str, ...]) -> None:
    """A new tensor filled with ``constant``."""
    def infer(*, shape: Any, dtype: DType) -> Spec:
        try:
            return infer_full(shape=shape, value=constant, dtype=dtype)
        except (DTypeError, ShapeError) as error:
            raise type(error)(str(error).replace("full: ", f"{name}: ", 1)) from None

    def compose(o, *, out, shape, dtype):
        o.full(tuple(shape), constant, dtype=dtype, out=out)

    def cost(item: int, **attrs: Any) -> Cost:
        y = infer(**attrs)
        return Cost(flops=0, bytes=y.size * y.dtype.itemsize)

    op(f"{name}(int[] shape, *, dtype dtype=float32) -> Tensor", family="create", dtypes=ANY, infer=infer,
       reference=lambda *, shape, dtype: np.full(tuple(shape), _cast(constant, dtype)), budget=Exact(), composite=_WHY, compose=compose,
       doc=f"A tensor filled with {constant:g}.", cost=cost, samples=[
           *(Sample(n, (), {"shape": s}) for n, s in _SHAPES), Sample("bf16", (), {"shape": (5,), "dtype": BY_NAME["bfloat16"]}),
           Sample("hidden", (), {"shape": (32, 128, 768)}, "BERT-base hidden states", "inference")],
       bad=(Bad("negative_size", (), ShapeError, ("(2, -1)", "negative"), {"shape": (2, -1)}),
            Bad("complex64", (), DTypeError, ("complex64", "accepts"), {"shape": (2,), "dtype": BY_NAME["complex64"]})),
       names={"aten": (name,), **names})


_like("full_like", None, ("full_like",), paddle=("full_like",))
_like("zeros_like", 0.0, ("zeros_like", "zero"), paddle=("zeros_like",))
_like("ones_like", 1.0, ("ones_like",), paddle=("ones_like",))
_new("zeros", 0.0, paddle=("zeros",))
_new("ones", 1.0, paddle=("ones",))


def _scalar_infer(*, value: float, dtype: DType) -> Spec:
    return _like_infer("scalar_tensor", None)(Spec((), dtype), value=value)


op("scalar_tensor(float value, *, dtype dtype=float32) -> Tensor", family="create", dtypes=ANY,
   infer=_scalar_infer, reference=lambda *, value, dtype: np.full((), _cast(value, dtype)),
   budget=Exact(), composite=_WHY, compose=lambda o, *, out, value, dtype: o.full((), value, dtype=dtype, out=out),
   doc="A 0-d tensor of one value.", cost=lambda item, *, value, dtype: Cost(0, dtype.itemsize),
   samples=[Sample(n, (), {"value": v}) for n, v in (("one", 1.0), ("zero", 0.0), ("three", 3.0))] + [
       Sample("fraction", (), {"value": 0.1, "dtype": BY_NAME["float32"]}), Sample("rounds", (), {"value": 0.1, "dtype": BY_NAME["bfloat16"]}), Sample("nan", (), {"value": float("nan"), "dtype": BY_NAME["float32"]})],
   bad=(Bad("too_large", (), ArgumentError, ("300", "uint8", "255"), {"value": 300.0, "dtype": BY_NAME["uint8"]}),),
   names={"aten": ("scalar_tensor",)})
