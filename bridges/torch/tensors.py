"""torch tensors as haian tensors and back: no copy, the torch tensor is the owner.

Not here: which operator serves which overload (rules.py).
"""
from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes

from ... import _native
from ...hal.dtype import BY_NAME, DType
from ...kernels import api as ops
from ..common import Pass

__all__ = ["DTYPES", "NUMBER", "Make", "apart", "boxed", "cast", "number", "wrap", "writable"]

NUMBER = (bool, int, float, complex)

DTYPES: dict[torch.dtype, DType] = {getattr(torch, name): d for name, d in BY_NAME.items() if hasattr(torch, name)}
_CODES = {t: d.code for t, d in DTYPES.items()}


def wrap(t: torch.Tensor) -> Any:
    """A haian tensor over a torch CPU tensor's memory; keeps the torch tensor alive.

    Raises:
        Pass: sparse, quantised, conjugated, or more than 8 axes.
    """
    code = _CODES.get(t.dtype)
    if code is None:
        raise Pass(f"dtype {t.dtype}")
    if t.layout is not torch.strided or t.ndim > 8 or t.is_conj() or t.is_neg():
        raise Pass(f"layout {t.layout}, {t.ndim} axes, or a lazy conjugate or negative")
    return _native.wrap(t.data_ptr(), code, t.shape, t.stride(), 0, t)


def cast(t: torch.Tensor, dtype: torch.dtype) -> Any:
    """A haian tensor with the values of ``t`` in ``dtype``."""
    x = wrap(t)
    return x if t.dtype is dtype else ops.cast(x, dtype=DTYPES[dtype])


@lru_cache(maxsize=4096)
def _number(value: float, kind: type, negative_zero: bool, dtype: torch.dtype) -> Any:
    return wrap(torch.tensor(value, dtype=dtype))


def number(value: bool | int | float, dtype: torch.dtype) -> Any:
    """A 0-d haian tensor of a Python number; never written to, so it is kept.

    Kept by type and sign as well, since ``1 == 1.0 == True`` and ``0.0 == -0.0``.
    """
    if isinstance(value, complex):
        raise Pass("a complex number")
    if dtype not in DTYPES:
        raise Pass(f"dtype {dtype}")
    kind: type = type(value)
    return _number(value, kind, value == 0 and str(value)[0] == "-", dtype)


def boxed(value: complex, args: tuple[Any, ...]) -> torch.Tensor:
    """A number that stands where C++ has a 0-d tensor, in the dtype that the call's promotion arrives at: a 0-d tensor weighs more
    than a number there, so any other dtype could change the result's."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    data = [t for t in tensors if t.dtype is not torch.bool] or tensors  # a mask takes no part in promotion
    if not data:
        return torch.tensor(value)
    _, dtype = elementwise_dtypes(*data, value, type_promotion_kind=ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT)
    try:
        return torch.tensor(value, dtype=dtype)
    except (OverflowError, RuntimeError):  # 300 beside uint8: aten's own conversion decides
        return torch.tensor(value)


def writable(out: torch.Tensor) -> torch.Tensor:
    """``out``, unless elements of it share memory, which aten refuses.

    Raises:
        Pass: they do.
    """
    if any(step == 0 and size > 1 for size, step in zip(out.shape, out.stride())):
        raise Pass("elements of the written tensor share memory")
    return out


def _reach(t: torch.Tensor) -> tuple[int, int]:
    """First byte and the one behind the last."""
    start = t.data_ptr()
    return start, start + t.element_size() * (1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride())))


def apart(out: torch.Tensor, args: Iterable[Any]) -> None:
    """Nothing where ``out`` shares no byte with a tensor of ``args``, or lies exactly upon it; aten refuses everything between.

    Raises:
        Pass: memory that overlaps, or may (columns that alternate).
    """
    for a in args:
        alias = isinstance(a, torch.Tensor) and a is not out and torch._C._is_alias_of(a, out)  # type: ignore[attr-defined]
        if alias and a.numel() and out.numel():
            if a.data_ptr() == out.data_ptr() and a.shape == out.shape and a.stride() == out.stride():
                continue
            (low, high), (first, last) = _reach(a), _reach(out)
            if low < last and first < high:
                raise Pass("the written tensor overlaps an input")


class Make:
    """Makes the results of one call: new tensors, or the caller's (in-place and out= overloads).

    A rule calls ``make(index, shape, dtype)`` once a result and writes into what it gets; ``finish`` copies where the
    caller's tensor had another dtype (in place) or was empty (out=).  Either raises Pass before anything is written.
    """

    __slots__ = ("given", "made", "resize")

    def __init__(self, given: tuple[torch.Tensor, ...] | None = None, resize: bool = False) -> None:
        self.given = given
        self.resize = resize
        self.made: list[torch.Tensor] = []

    def __call__(self, index: int, shape: Any, dtype: torch.dtype, strides: tuple[int, ...] | None = None) -> torch.Tensor:
        if self.given is not None:
            out = writable(self.given[index])
            if out.dtype is dtype and out.shape == torch.Size(shape):
                self.made.append(out)
                return out
            if self.resize and (out.dtype is not dtype or out.numel()):
                raise Pass("out has another dtype, or another shape and elements")  # some of aten's overloads cast and resize, others refuse
        fresh = torch.empty(shape, dtype=dtype) if strides is None else torch.empty_strided(shape, strides, dtype=dtype)
        self.made.append(fresh)
        return fresh

    def finish(self) -> Any:
        """The results as the overload returns them."""
        if self.given is None:
            return self.made[0] if len(self.made) == 1 else tuple(self.made)
        for out, result in zip(self.given, self.made):
            if out is result:
                continue
            if self.resize:  # an empty one, with the result's strides as aten's resize_output gives them
                out.resize_(result.shape)
                if not result.is_contiguous():
                    out.as_strided_(result.shape, result.stride())
            elif out.shape != result.shape or not torch.can_cast(result.dtype, out.dtype):
                raise Pass(f"a result {result.dtype} {tuple(result.shape)} for {out.dtype} {tuple(out.shape)} in place")
            out.copy_(result)
        return self.given[0] if len(self.given) == 1 else self.given
