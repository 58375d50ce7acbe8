"""What gradients of several families share.

``o`` is the namespace of operators a gradient is written with; its tensors have shape, ndim, dtype and the views
reshape(shape), expand(shape), permute(dims), transpose(a, b).  ``dy`` belongs to the first result; others have none.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .infer import axes, reduced

__all__ = ["count", "scaled", "spread", "unbroadcast", "zeros"]


def count(shape: Sequence[int]) -> int:
    """Elements of a shape."""
    n = 1
    for s in shape:
        n *= s
    return n


def zeros(o: Any, shape: Sequence[int], dtype: Any) -> Any:
    """A tensor of zeros."""
    return o.full(tuple(shape), 0.0, dtype=dtype)


def scaled(o: Any, x: Any, factor: float) -> Any:
    """factor * x with one rounding: a factor stored in bfloat16 would itself be wrong by 2^-9."""
    return o.add(zeros(o, (), x.dtype), x, alpha=float(factor))


def unbroadcast(o: Any, dy: Any, shape: Sequence[int]) -> Any:
    """Sums dy over the axes along which an input of ``shape`` was broadcast; the result has that shape."""
    shape = tuple(shape)
    if tuple(dy.shape) == shape:
        return dy
    extra = dy.ndim - len(shape)
    over = tuple(i for i in range(dy.ndim) if i < extra or (shape[i - extra] == 1 and dy.shape[i] != 1))
    return (o.sum(dy, over, True) if over else dy).reshape(shape)


def spread(dy: Any, shape: Sequence[int], dim: int | Sequence[int] | None) -> Any:
    """dy, the gradient of a result that was reduced over ``dim``, as a view of the unreduced shape."""
    shape = tuple(shape)
    return dy.reshape(reduced(shape, axes("gradient", dim, len(shape)), True)).expand(shape)
