"""Views as arithmetic on (shape, strides, offset): what permute, expand, slicing... do to a tensor, without a tensor.

Tensor's methods (tensor.py) and the standard's view operators (kernels/ops/view.py) are these functions.
Not here: memory, dtypes, and anything that copies.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from .errors import ArgumentError, IndexOutOfBounds, ShapeError

__all__ = ["MAX_RANK", "Geometry", "as_strided", "axis", "contiguous", "diagonal", "expand", "index", "permute", "pieces", "reach", "select", "slice_",
           "squeeze", "strides_of", "transpose", "unfold", "unsqueeze", "view"]

MAX_RANK = 8


class Geometry(NamedTuple):
    """Sizes and steps of each axis, and the place of the first element; steps and place in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides."""
    out, step = [], 1
    for n in reversed(shape):
        out.append(step)
        step *= max(n, 1)
    return tuple(reversed(out))


def contiguous(shape: Sequence[int]) -> Geometry:
    return Geometry(tuple(shape), strides_of(shape))


def axis(what: str, dim: int, ndim: int) -> int:
    """``dim`` counted from the front.  Raises ShapeError: outside -ndim <= dim < ndim (a 0-d tensor counts as one axis)."""
    n = max(ndim, 1)
    if not -n <= dim < n:
        raise ShapeError(f"{what}: dim {dim} is outside a tensor of {ndim} axes; needs {-n} <= dim < {n}")
    return dim % n


def _own_axis(what: str, dim: int, ndim: int) -> int:
    """As ``axis``, for views that need an axis to cut."""
    if not ndim:
        raise ShapeError(f"{what}: a 0-d tensor has no axis; needs one at least")
    return axis(what, dim, ndim)


def _filled(what: str, g: Geometry, shape: Sequence[int]) -> tuple[int, ...]:
    """``shape`` with its -1 filled in."""
    shape = tuple(shape)
    if len(shape) > MAX_RANK:
        raise ShapeError(f"{what}: {len(shape)} axes; haian tensors have at most {MAX_RANK}")
    if shape.count(-1) > 1 or any(n < -1 for n in shape):
        raise ShapeError(f"{what}: {shape} has more than one unknown size; give one -1 at most")
    if -1 in shape:
        known = math.prod(n for n in shape if n != -1)
        if known == 0 or g.numel % known:
            raise ShapeError(f"{what}: {g.numel} elements of {g.shape} do not fill {shape}; the sizes must multiply to {g.numel}")
        shape = tuple(g.numel // known if n == -1 else n for n in shape)
    if math.prod(shape) != g.numel:
        raise ShapeError(f"{what}: {g.numel} elements of {g.shape} do not fill {shape}; the sizes must multiply to {g.numel}")
    return shape


def view(g: Geometry, shape: Sequence[int], what: str = "view") -> Geometry | tuple[int, ...]:
    """The same elements in row-major order under ``shape`` (one size may be -1); the sizes alone where no strides give it.

    Raises:
        ShapeError: the sizes do not multiply to the number of elements.
    """
    shape = _filled(what, g, shape)
    if all(n == 1 or s == c for n, s, c in zip(g.shape, g.strides, strides_of(g.shape))) or not g.numel:
        return Geometry(shape, strides_of(shape), g.offset)
    old = [(n, s) for n, s in zip(g.shape, g.strides) if n != 1]
    out = [0] * len(shape)
    j = len(shape) - 1
    i = len(old) - 1
    while i >= 0:
        run, step = old[i]  # the longest run of old axes that is one arithmetic sequence
        while i > 0 and old[i - 1][1] == old[i][0] * old[i][1]:
            i -= 1
            run *= old[i][0]
        i -= 1
        while run > 1 and j >= 0:
            if shape[j] != 1:
                if run % shape[j]:
                    return shape
                out[j] = step
                step *= shape[j]
                run //= shape[j]
            j -= 1
        if run > 1:
            return shape
    return Geometry(shape, tuple(out), g.offset)


def permute(g: Geometry, dims: Sequence[int]) -> Geometry:
    """Axis ``i`` of the result is axis ``dims[i]``."""
    order = tuple(axis("permute", d, len(g.shape)) for d in dims)
    if len(order) != len(g.shape) or len(set(order)) != len(g.shape):
        raise ShapeError(f"permute: dims {tuple(dims)} for {len(g.shape)} axes; name each axis once")
    return Geometry(tuple(g.shape[d] for d in order), tuple(g.strides[d] for d in order), g.offset)


def transpose(g: Geometry, dim0: int, dim1: int) -> Geometry:
    """Two axes exchanged."""
    a, b = axis("transpose", dim0, len(g.shape)), axis("transpose", dim1, len(g.shape))
    order = list(range(len(g.shape)))
    if order:
        order[a], order[b] = order[b], order[a]
    return permute(g, order)


def expand(g: Geometry, shape: Sequence[int]) -> Geometry:
    """Axes of size 1, and new ones in front, repeat with stride 0; -1 keeps a size."""
    shape = tuple(shape)
    lead = len(shape) - len(g.shape)
    if lead < 0:
        raise ShapeError(f"expand: {g.shape} to {shape}; needs at least {len(g.shape)} axes")
    if len(shape) > MAX_RANK:
        raise ShapeError(f"expand: {len(shape)} axes; haian tensors have at most {MAX_RANK}")
    sizes, steps = [], []
    for i, n in enumerate(shape):
        old, step = (g.shape[i - lead], g.strides[i - lead]) if i >= lead else (1, 0)
        if n == -1 and i >= lead:
            n = old
        if n < 0 or old not in (1, n):
            raise ShapeError(f"expand: {g.shape} to {shape}; axis {i} has size {old}, only size 1 repeats")
        sizes.append(n)
        steps.append(step if n == old and i >= lead else 0)
    return Geometry(tuple(sizes), tuple(steps), g.offset)


def squeeze(g: Geometry, dims: Sequence[int] | None = None) -> Geometry:
    """Without axes of size 1: all of them, or those named (named axes of other sizes stay)."""
    drop = {axis("squeeze", d, len(g.shape)) for d in (range(len(g.shape)) if dims is None else dims)}
    keep = [i for i in range(len(g.shape)) if i not in drop or g.shape[i] != 1]
    return Geometry(tuple(g.shape[i] for i in keep), tuple(g.strides[i] for i in keep), g.offset)


def unsqueeze(g: Geometry, dim: int) -> Geometry:
    """A new axis of size 1 at ``dim``."""
    at = axis("unsqueeze", dim, len(g.shape) + 1)
    step = g.shape[at] * g.strides[at] if at < len(g.shape) else 1
    return Geometry((*g.shape[:at], 1, *g.shape[at:]), (*g.strides[:at], step, *g.strides[at:]), g.offset)


def select(g: Geometry, dim: int, at: int) -> Geometry:
    """Element ``at`` of axis ``dim``, which goes away.  Raises IndexOutOfBounds."""
    d = _own_axis("select", dim, len(g.shape))
    n = g.shape[d]
    if not -n <= at < n:
        raise IndexOutOfBounds(f"select: index {at} on axis {d} of size {n}; needs {-n} <= index < {n}")
    return Geometry(g.shape[:d] + g.shape[d + 1:], g.strides[:d] + g.strides[d + 1:], g.offset + at % n * g.strides[d])


def slice_(g: Geometry, dim: int, start: int | None, end: int | None, step: int = 1) -> Geometry:
    """Elements start, start + step, ... below end of axis ``dim``; start and end count from the back when negative and stop at the axis."""
    d = _own_axis("slice", dim, len(g.shape))
    if step < 1:
        raise ArgumentError(f"slice: step {step}; needs 1 or more, flip reverses an axis")
    first, last, _ = slice(start, end, step).indices(g.shape[d])
    count = len(range(first, last, step))
    sizes, steps = list(g.shape), list(g.strides)
    sizes[d], steps[d] = count, g.strides[d] * step
    return Geometry(tuple(sizes), tuple(steps), g.offset + (first * g.strides[d] if count else 0))


def pieces(g: Geometry, sizes: Sequence[int], dim: int, what: str = "split_with_sizes") -> tuple[Geometry, ...]:
    """The axis ``dim`` cut into pieces of ``sizes``.  Raises ShapeError: a negative size, or they do not add up to the axis."""
    d = _own_axis(what, dim, len(g.shape))
    if any(n < 0 for n in sizes) or sum(sizes) != g.shape[d]:
        raise ShapeError(f"{what}: sizes {tuple(sizes)} of an axis of {g.shape[d]}; needs sizes of 0 or more that add up to it")
    found, at = [], 0
    for n in sizes:
        found.append(slice_(g, d, at, at + n))
        at += n
    return tuple(found)


def diagonal(g: Geometry, offset: int, dim1: int, dim2: int) -> Geometry:
    """The diagonal of the planes of dim1 and dim2 as a new last axis; ``offset`` above 0 counts towards dim2."""
    if len(g.shape) < 2:
        raise ShapeError(f"diagonal: {len(g.shape)} axes; needs 2 at least")
    a, b = axis("diagonal", dim1, len(g.shape)), axis("diagonal", dim2, len(g.shape))
    if a == b:
        raise ShapeError(f"diagonal: dim1 and dim2 are both axis {a}; needs two axes")
    rows, columns = max(g.shape[a] + min(offset, 0), 0), max(g.shape[b] - max(offset, 0), 0)
    n = min(rows, columns)
    start = g.strides[b] * offset if offset > 0 else -g.strides[a] * offset
    rest = [i for i in range(len(g.shape)) if i not in (a, b)]
    return Geometry((*(g.shape[i] for i in rest), n), (*(g.strides[i] for i in rest), g.strides[a] + g.strides[b]),
                    g.offset + (start if n else 0))


def unfold(g: Geometry, dim: int, size: int, step: int) -> Geometry:
    """Windows of ``size`` elements, ``step`` apart, along ``dim``: the axis counts windows, a new last one their elements."""
    d = axis("unfold", dim, len(g.shape))
    n, stride = (g.shape[d], g.strides[d]) if g.shape else (1, 1)
    if not 0 <= size <= n or step < 1:
        raise ShapeError(f"unfold: windows of {size}, {step} apart, on an axis of {n}; needs 0 <= size <= {n} and a step of 1 or more")
    if not g.shape:
        return Geometry((size,), (1,), g.offset)
    sizes, steps = list(g.shape), list(g.strides)
    sizes[d], steps[d] = (n - size) // step + 1, stride * step
    return Geometry((*sizes, size), (*steps, stride), g.offset)


def reach(g: Geometry) -> tuple[int, int]:
    """First and last place that the elements take; (offset, offset - 1) for none."""
    if not g.numel:
        return g.offset, g.offset - 1
    return (g.offset + sum((n - 1) * min(s, 0) for n, s in zip(g.shape, g.strides)),
            g.offset + sum((n - 1) * max(s, 0) for n, s in zip(g.shape, g.strides)))


def as_strided(g: Geometry, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> Geometry:
    """Any geometry within the reach of ``g``; ``offset`` counts from its first element.

    Raises:
        ShapeError: different numbers of sizes and strides, a negative size, or an element outside.
    """
    made = Geometry(tuple(shape), tuple(strides), g.offset + offset)
    if len(made.shape) != len(made.strides):
        raise ShapeError(f"as_strided: {len(made.shape)} sizes and {len(made.strides)} strides; needs as many of each")
    if len(made.shape) > MAX_RANK or any(n < 0 for n in made.shape):
        raise ShapeError(f"as_strided: sizes {made.shape}; needs at most {MAX_RANK}, each 0 or more")
    (low, high), (first, last) = reach(made), reach(g)
    if made.numel and (low < first or high > last):
        raise ShapeError(f"as_strided: sizes {made.shape} with strides {made.strides} from {offset} reach elements {low} to {high}; "
                         f"the tensor has {first} to {last}")
    return made


def index(g: Geometry, keys: Sequence[Any]) -> Geometry:
    """Basic indexing: integers, slices (negative steps too), None and ``...`` at most once.

    Raises:
        IndexOutOfBounds: an integer outside its axis.  ShapeError: more indices than axes.  ArgumentError: another ``...``.
    """
    used = sum(1 for k in keys if k is not None and k is not Ellipsis)
    dots = sum(1 for k in keys if k is Ellipsis)
    if dots > 1:
        raise ArgumentError("index: more than one '...'; give one at most")
    if used > len(g.shape):
        raise ShapeError(f"index: {used} indices for {len(g.shape)} axes of {g.shape}; give at most {len(g.shape)}")
    shape: list[int] = []
    strides: list[int] = []
    offset, at = g.offset, 0
    for k in keys if dots else (*keys, Ellipsis):
        if k is None:
            shape.append(1)
            strides.append(0)
        elif k is Ellipsis:
            for _ in range(len(g.shape) - used):
                shape.append(g.shape[at])
                strides.append(g.strides[at])
                at += 1
        elif isinstance(k, slice):
            first, last, step = k.indices(g.shape[at])
            count = len(range(first, last, step))
            shape.append(count)
            strides.append(g.strides[at] * step)
            offset += first * g.strides[at] if count else 0
            at += 1
        else:
            n, i = g.shape[at], k.__index__()
            if not -n <= i < n:
                raise IndexOutOfBounds(f"index: {i} on axis {at} of size {n}; needs {-n} <= index < {n}")
            offset += i % n * g.strides[at]
            at += 1
    return Geometry(tuple(shape), tuple(strides), offset)
