"""torch tensors as haian tensors and back: no copy, the torch tensor is the owner.

Not here: which operator serves which overload (rules.py).
"""
from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from ... import _native
from ...hal.dtype import BY_NAME, DType
from ...kernels import api as ops
from ..common import Pass

__all__ = ["DTYPES", "Make", "cast", "number", "wrap"]

DTYPES: dict[torch.dtype, DType] = {getattr(torch, name): d for name, d in BY_NAME.items() if hasattr(torch, name)}
_TORCH: dict[DType, torch.dtype] = {d: t for t, d in DTYPES.items()}
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
def _number(value: float, kind: type, dtype: torch.dtype) -> Any:
    return wrap(torch.tensor(value, dtype=dtype))


def number(value: bool | int | float, dtype: torch.dtype) -> Any:
    """A 0-d haian tensor of a Python number; never written to, so it is kept."""
    if isinstance(value, complex):
        raise Pass("a complex number")
    if dtype not in DTYPES:
        raise Pass(f"dtype {dtype}")
    kind: type = type(value)
    return _number(value, kind, dtype)


class Make:
    """Makes the results of one call: new tensors, or the caller's (in-place and out= overloads).

    A rule calls ``make(index, shape, dtype)`` once a result and writes into what it gets; ``finish`` copies where the
    caller's tensor had another shape or dtype.
    """

    __slots__ = ("given", "made", "resize")

    def __init__(self, given: tuple[torch.Tensor, ...] | None = None, resize: bool = False) -> None:
        self.given = given
        self.resize = resize
        self.made: list[torch.Tensor] = []

    def __call__(self, index: int, shape: Any, dtype: torch.dtype, strides: tuple[int, ...] | None = None) -> torch.Tensor:
        if self.given is not None:
            out = self.given[index]
            if out.dtype is dtype and out.shape == torch.Size(shape):
                self.made.append(out)
                return out
        fresh = torch.empty(shape, dtype=dtype) if strides is None else torch.empty_strided(shape, strides, dtype=dtype)
        self.made.append(fresh)
        return fresh

    def finish(self) -> Any:
        """The results as the overload returns them."""
        if self.given is None:
            return self.made[0] if len(self.made) == 1 else tuple(self.made)
        for out, result in zip(self.given, self.made):
            if out is not result:
                if self.resize and out.shape != result.shape:
                    out.resize_(result.shape)
                if not torch.can_cast(result.dtype, out.dtype):
                    raise RuntimeError(f"result type {result.dtype} can't be cast to the desired output type {out.dtype}")
                if out.shape != result.shape:
                    raise RuntimeError(f"output with shape {list(out.shape)} doesn't match the broadcast shape {list(result.shape)}")
                out.copy_(result)
        return self.given[0] if len(self.given) == 1 else self.given


def to_torch_dtype(d: DType) -> torch.dtype:
    return _TORCH[d]
