"""reglu, geglu, swiglu and their gradients: an activation of the first half of the last axis, times the second half.

How they are computed: the pointwise kernels of relu_and_mul, gelu_and_mul and silu_and_mul (pointwise_activation.py) over
two views of the tensor, on every device; nothing is copied.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.errors import DTypeError, ShapeError
from . import pointwise_activation as units
from .budget import Composite
from .formula import magnitude
from .infer import need_dtype, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op


def _half(name: str, x: Spec) -> tuple[int, ...]:
    if not x.ndim or x.shape[-1] % 2:
        raise ShapeError(f"{name}: x is {x.shape}; needs a last axis of even size, gate and up side by side; pad it")
    return (*x.shape[:-1], x.shape[-1] // 2)


def _parts(x: Any) -> tuple[Any, Any]:
    n = x.shape[-1] // 2
    return x[..., :n], x[..., n:]


_UGLY = (("two", (2,)), ("lanes", (3, 34)), ("prime", (7, 262)), ("past_tile", (2, 2050)), ("rank4", (2, 3, 1, 10)), ("empty", (0,)),
         ("empty_rows", (0, 6)), ("no_columns", (3, 0)))


def _samples(attrs: dict[str, Any], others: tuple[dict[str, Any], ...], backward: bool) -> list[Sample]:
    def ins(shape: tuple[int, ...], layout: str = "") -> tuple[In, ...]:
        x = In(shape, layout=layout)
        return (In((*shape[:-1], shape[-1] // 2)), x) if backward else (x,)

    out = [Sample(n, ins(s), attrs) for n, s in _UGLY]
    out += [Sample("transposed", ins((65, 130), "transposed"), attrs)]
    out += [Sample(f"past_tile_{i}", ins((2, 2050)), other) for i, other in enumerate(others)]
    return [*out, Sample("llama_gate_up", ins((128, 22016)), attrs, "Llama-7B gated feed-forward, sequence 128", "full", ("full", "llm"))]


def _define(name: str, unit: str, doc: str, choices: str = "", all_attrs: tuple[dict[str, Any], ...] = ({},), **names: tuple[str, ...]) -> None:
    """One gate and its gradient over the record ``<unit>_and_mul``."""
    forward, slope = getattr(units, f"{unit}_and_mul"), getattr(units, f"{unit}_and_mul_backward")
    of, slope_of = units.OPS[f"{unit}_and_mul"].reference, units.OPS[f"{unit}_and_mul_backward"].reference
    operations = 8
    back = f"{name}_backward"

    def size(x: Any, **attrs: Any) -> Any:  # gate up may overflow where the result does not
        gate, up = _parts(x)
        return np.maximum(magnitude(forward, gate, up, **attrs), np.abs(gate * up))

    def infer(x: Spec, **_: Any) -> Spec:
        need_dtype(name, "x", x, FLOATS)
        return Spec(_half(name, x), x.dtype)

    def infer_back(dy: Spec, x: Spec, **_: Any) -> Spec:
        need_dtype(back, "x", x, FLOATS)
        same_dtype(back, dy, x)
        if dy.shape != (want := _half(back, x)):
            raise ShapeError(f"{back}: dy is {dy.shape} and x {x.shape}; dy needs shape {want}")
        return x

    def reference_back(dy: Any, x: Any, **attrs: Any) -> Any:
        gate, up = _parts(x)
        return np.concatenate([slope_of(dy, gate, up, **attrs), of(gate, dy, **attrs)], -1)

    def magnitude_back(dy: Any, x: Any, **attrs: Any) -> Any:
        gate, up = _parts(x)
        return np.concatenate([magnitude(slope, dy, gate, up, **attrs), magnitude(forward, gate, dy, **attrs)], -1)

    def grad(o: Any, dy: Any, inputs: tuple, y: Any, attrs: dict[str, Any]) -> tuple:
        return (getattr(o, back)(dy, inputs[0], **attrs),)

    first, *others = all_attrs
    listed = f", *, {choices}" if choices else ""
    op(f"{name}(Tensor x{listed}) -> Tensor", family="gated", dtypes=FLOATS, infer=infer, reference=lambda x, **a: of(*_parts(x), **a),
       doc=f"{doc} of the first half of the last axis of x (..., 2 n), times the second half: (..., n).",
       budget=Composite(magnitude=size), samples=_samples(first, tuple(others), False), grad=grad,
       cost=lambda item, x, **_: Cost(flops=operations * x.size // 2, bytes=item * (x.size + x.size // 2)), names=names,
       bad=(Bad("odd", (In((2, 5)),), ShapeError, (name, "(2, 5)", "even"), first), Bad("scalar", (In(()),), ShapeError, ("()", "even"), first),
            Bad("integers", (In((4,)),), DTypeError, ("int32",), first, "int32")))
    op(f"{back}(Tensor dy, Tensor x{listed}) -> Tensor", family="gated", dtypes=FLOATS, infer=infer_back, reference=reference_back,
       doc=f"Gradient of {name} at x (..., 2 n), times dy (..., n).", budget=Composite(magnitude=magnitude_back),
       samples=_samples(first, tuple(others), True),
       cost=lambda item, dy, x, **_: Cost(flops=2 * operations * dy.size, bytes=item * (dy.size + 2 * x.size)),
       names={k: tuple(f"{n}_grad" for n in v) for k, v in names.items()},
       bad=(Bad("dy_shape", (In((2, 3)), In((2, 8))), ShapeError, (back, "(2, 3)", "(2, 4)"), first),
            Bad("odd", (In((2, 2)), In((2, 5))), ShapeError, (back, "(2, 5)", "even"), first),
            Bad("dtypes", (In((2,), dtype="float64"), In((4,))), DTypeError, ("float64", "float32"), first)))


_define("swiglu", "silu", "silu", paddle=("fused_swiglu",))
_define("geglu", "gelu", "gelu", "{none|tanh} approximate='none'", ({"approximate": "none"}, {"approximate": "tanh"}), paddle=("fused_geglu",))
_define("reglu", "relu", "relu", paddle=("fused_reglu",))
