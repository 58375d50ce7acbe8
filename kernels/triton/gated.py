"""reglu, geglu, swiglu and their gradients: the pointwise kernels over two views of a tensor's halves."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...hal.tensor import Tensor
from .pointwise import KERNELS as POINTWISE
from .pointwise import WHEN as POINTWISE_WHEN

__all__ = ["KERNELS", "WHEN"]


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    n = x.shape[-1] // 2
    return x[..., :n], x[..., n:]


def _gate(unit: str) -> Callable[..., None]:
    def run(x: Tensor, *, out: Tensor, **attrs: Any) -> None:
        POINTWISE[f"{unit}_and_mul"](*_halves(x), out=out, **attrs)

    return run


def _gate_backward(unit: str) -> Callable[..., None]:
    def run(dy: Tensor, x: Tensor, *, out: Tensor, **attrs: Any) -> None:
        gate, up = _halves(x)
        left, right = _halves(out)
        POINTWISE[f"{unit}_and_mul_backward"](dy, gate, up, out=left, **attrs)
        POINTWISE[f"{unit}_and_mul"](gate, dy, out=right, **attrs)

    return run


KERNELS = {"swiglu": _gate("silu"), "swiglu_backward": _gate_backward("silu"), "geglu": _gate("gelu"), "geglu_backward": _gate_backward("gelu"),
           "reglu": _gate("relu"), "reglu_backward": _gate_backward("relu")}
WHEN = {name: POINTWISE_WHEN["silu_and_mul"] for name in KERNELS}
