"""Rows of a tensor for kernels that work along one axis, and the way around layouts they do not take.

A contiguous tensor reduced along ``dim`` is (outer, n, inner): element (o, j, i) lies at (o * n + j) * inner + i.
Not here: reductions over several axes (reduce.py permutes first).
"""
from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...hal.device import Device
from ...hal.registry import at
from ...hal.tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["contiguous", "cut", "device_of", "writable"]


def device_of(t: Tensor) -> Device:
    return at(t.device_index)


def contiguous(t: Tensor) -> Tensor:
    """The tensor, or a packed copy of it on the same device (made by the copy kernel of shape.py)."""
    if t.is_contiguous:
        return t
    from .shape import copy
    packed = device_of(t).empty(t.shape, t.dtype)
    copy(t, out=packed)
    return packed


@contextmanager
def writable(out: Tensor) -> Iterator[Tensor]:
    """A contiguous tensor to write; copied into ``out`` afterwards where ``out`` itself is not contiguous."""
    if out.is_contiguous:
        yield out
        return
    from .shape import copy
    packed = device_of(out).empty(out.shape, out.dtype)
    yield packed
    copy(packed, out=out)


def cut(shape: tuple[int, ...], dim: int) -> tuple[int, int, int]:
    """(outer, n, inner) of a contiguous shape around axis ``dim``; a 0-d tensor is (1, 1, 1)."""
    if not shape:
        return 1, 1, 1
    dim %= len(shape)
    outer = inner = 1
    for s in shape[:dim]:
        outer *= s
    for s in shape[dim + 1:]:
        inner *= s
    return outer, shape[dim], inner
