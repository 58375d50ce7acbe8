"""Shape and dtype rules that operators share.  Each takes Specs, returns a Spec, and names the operator in its errors."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...hal.dtype import BY_NAME, DType
from ...hal.errors import ArgumentError, DTypeError, ShapeError
from ...hal.geometry import axis
from .record import Spec

__all__ = ["accumulator", "inner", "axes", "axis", "broadcast", "need", "need_dtype", "need_rank",
           "reduced",
           "same_dtype"]


def inner(at: Sequence[Any]) -> tuple[Any, ...]:
    """An index of the last axes: ``x[inner((i, j))]`` is x[..., i, j] for any number of axes before."""
    return (..., *at)


def broadcast(name: str, *shapes: Sequence[int]) -> tuple[int, ...]:
    """NumPy broadcasting of shapes.

    Raises:
        ShapeError: two sizes differ and neither is 1.
    """
    rank = max((len(s) for s in shapes), default=0)
    out = []
    for i in range(rank):
        sizes = {s[i - rank + len(s)] for s in shapes if i - rank + len(s) >= 0} - {1}
        if len(sizes) > 1:
            raise ShapeError(f"{name}: shapes {', '.join(map(str, map(tuple, shapes)))} do not broadcast: axis {i - rank} has "
                             f"sizes {' and '.join(map(str, sorted(sizes)))}; make them equal or 1")
        out.append(sizes.pop() if sizes else 1)
    return tuple(out)


def axes(name: str, dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Axes of a reduction, sorted: None and () mean all of them.

    Raises:
        ShapeError: an axis out of range or named twice.
    """
    if dim is None:
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if not dims:
        return tuple(range(ndim))
    found = [axis(name, d, ndim) for d in dims]
    if len(set(found)) < len(found):
        raise ShapeError(f"{name}: dim {dims} names an axis twice; name each once")
    return tuple(sorted(found)) if ndim else ()


def reduced(shape: Sequence[int], over: Sequence[int], keepdim: bool) -> tuple[int, ...]:
    """The shape after reducing the axes ``over``."""
    if keepdim:
        return tuple(1 if i in over else s for i, s in enumerate(shape))
    return tuple(s for i, s in enumerate(shape) if i not in over)


def accumulator(d: DType) -> DType:
    """The dtype that d's sums and statistics are kept in: float32 for float16 and bfloat16, else d itself."""
    return BY_NAME["float32"] if d.is_floating and d.itemsize == 2 else d


def same_dtype(name: str, *specs: Spec | None) -> DType:
    """The one dtype of all given tensors.

    Raises:
        DTypeError: they differ.
    """
    dtypes = [s.dtype for s in specs if s is not None]
    for d in dtypes[1:]:
        if d is not dtypes[0]:
            raise DTypeError(f"{name}: dtypes {' and '.join(str(x) for x in dtypes)} differ; cast one first (haian.ops.cast)")
    return dtypes[0]


def need_dtype(name: str, what: str, spec: Spec, accepted: Sequence[DType]) -> None:
    """Raises DTypeError unless the tensor's dtype is accepted."""
    if spec.dtype not in accepted:
        raise DTypeError(f"{name}: {what} has dtype {spec.dtype}; accepts {', '.join(str(d) for d in accepted)}; cast it first")


def need_rank(name: str, what: str, spec: Spec, *ranks: int) -> None:
    """Raises ShapeError unless the tensor's rank is one of ``ranks``."""
    if spec.ndim not in ranks:
        raise ShapeError(f"{name}: {what} has shape {spec.shape}; needs {' or '.join(map(str, ranks))} axes")


def need(condition: bool, message: str) -> None:
    """Raises ArgumentError with the message unless the condition holds."""
    if not condition:
        raise ArgumentError(message)
