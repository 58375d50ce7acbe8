"""permute, transpose, expand, slice, split, ...: operators whose result is a view of their input.

What they do to sizes and strides is hal/geometry.py; nothing is computed, so there are no kernels.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...hal.errors import ArgumentError, IndexOutOfBounds, ShapeError
from ...hal.geometry import (
    MAX_RANK,
    Geometry,
    as_strided,
    axis,
    contiguous,
    diagonal,
    expand,
    permute,
    pieces,
    select,
    slice_,
    squeeze,
    transpose,
    unfold,
    unsqueeze,
)
from ...hal.geometry import view as viewed
from .budget import Exact
from .gradient import unbroadcast
from .infer import same_dtype
from .record import ANY, Bad, Cost, In, Sample, Spec, op


def _view(g: Geometry, *, size: Sequence[int]) -> Geometry:
    made = viewed(g, size)
    if not isinstance(made, Geometry):
        raise ShapeError(f"view: {g.shape} with strides {g.strides} has no view of {made}; use Tensor.reshape, which copies")
    return made


def _squeeze(g: Geometry, *, dim: Sequence[int] | None) -> Geometry:
    return squeeze(g, dim)


def _split(g: Geometry, *, split_size: int, dim: int) -> tuple[Geometry, ...]:
    d = axis("split", dim, len(g.shape))
    n = g.shape[d] if g.shape else 1
    if split_size < 0 or (split_size == 0 and n):
        raise ArgumentError(f"split: split_size {split_size} of an axis of {n}; needs 1 or more")
    whole, rest = divmod(n, split_size) if split_size else (1, 0)
    sizes = [split_size] * whole + [rest] * (rest > 0 or n == 0 and split_size > 0)
    return pieces(g, sizes, dim, "split")


def _unbind(g: Geometry, *, dim: int) -> tuple[Geometry, ...]:
    if not g.shape:
        raise ShapeError("unbind: a 0-d tensor has no axis; needs one at least")
    return tuple(select(g, dim, i) for i in range(g.shape[axis("unbind", dim, len(g.shape))]))


def _meshgrid(*gs: Geometry, indexing: str) -> tuple[tuple[int, Geometry], ...]:
    """ij: axis i belongs to vector i; xy: the first two axes exchanged."""
    for i, g in enumerate(gs):
        if len(g.shape) > 1:
            raise ShapeError(f"meshgrid: tensors[{i}] has shape {g.shape}; needs one axis at most")
    if len(gs) > MAX_RANK:
        raise ShapeError(f"meshgrid: {len(gs)} tensors; haian tensors have at most {MAX_RANK} axes")
    order = list(range(len(gs)))
    if indexing == "xy" and len(gs) > 1:
        order[:2] = 1, 0
    sizes = [gs[i].numel for i in order]
    found = []
    for i, g in enumerate(gs):
        strides = [0] * len(gs)
        strides[order.index(i)] = g.strides[0] if g.shape else 1
        found.append((i, Geometry(tuple(sizes), tuple(strides))))
    return tuple(found)


def _infer(name: str, view: Callable[..., Any]) -> Callable[..., Any]:
    """Shapes of the views of row-major tensors."""
    def infer(*given: Any, **attrs: Any) -> Spec | tuple[Spec, ...]:
        specs = given[0] if isinstance(given[0], (tuple, list)) else given
        if not specs:
            raise ArgumentError(f"{name}: no tensors came; needs one at least")
        kind = same_dtype(name, *specs)
        made = view(*(contiguous(s.shape) for s in specs), **attrs)
        if isinstance(made, Geometry):
            return Spec(made.shape, kind)
        return tuple(Spec((m[1] if isinstance(m[0], int) else m).shape, kind) for m in made)

    return infer


def _samples(*rows: tuple[str, tuple[int, ...], dict[str, Any]]) -> list[Sample]:
    return [Sample(name, (In(shape, "wide"),), attrs) for name, shape, attrs in rows]


def define(schema: str, view: Callable[..., Any], reference: Callable[..., Any], doc: str, samples: Sequence[Sample], bad: Sequence[Bad],
           aten: tuple[str, ...], grad: Callable[..., tuple] | None = None, by_strides: bool = False, **names: tuple[str, ...]) -> None:
    """A view operator: the result is on the input's memory, whatever the dtype."""
    name = schema.partition("(")[0]
    op(schema, family="view", dtypes=ANY, infer=_infer(name, view), view=view, reference=reference, budget=Exact(signed_zero=True),
       doc=f"{doc}  A view: it shares the memory of its input.", cost=lambda item, *specs, **attrs: Cost(0, 0), samples=samples, bad=bad,
       grad=grad, by_strides=by_strides, names={"aten": aten, **names})


def _same_shape(o, dy, inputs, y, attrs):
    return (dy.reshape(tuple(inputs[0].shape)),)


def _permute_grad(o, dy, inputs, y, attrs):
    dims = [d % max(inputs[0].ndim, 1) for d in attrs["dims"]]
    return (o.permute(dy, tuple(dims.index(i) for i in range(len(dims)))),)


def _slices(x, *, dim, start, end, step):
    at: list[Any] = [slice(None)] * x.ndim
    at[dim] = slice(start, end, step)
    return x[tuple(at)]


def _windows(x, *, dim, size, step):
    if not x.ndim:
        return x.reshape(1)[:size]
    d = dim % x.ndim
    return np.moveaxis(np.stack([np.take(x, range(i, i + size), d) for i in range(0, x.shape[d] - size + 1, step)], d), d + 1, -1)


def _cut(x, sizes, dim):
    return tuple(np.split(x, np.cumsum(sizes)[:-1], dim)) if len(sizes) else ()


def _strided(x, *, size, stride, offset):
    flat, at = x.reshape(-1), np.full(tuple(size), offset)
    for k, (n, s) in enumerate(zip(size, stride)):
        at = at + (np.arange(n) * s).reshape([-1 if i == k else 1 for i in range(len(size))])
    return flat[at.astype(np.int64)] if at.size else np.empty(tuple(size), x.dtype)


_CUBE = (3, 5, 7)
_AXIS = Bad("dim", (In((2, 3)),), ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim": 2})

define("alias(Tensor x) -> Tensor", lambda g: g, lambda x: x, "x itself as another tensor.",
       _samples(("scalar", (), {}), ("prime", (7, 13), {}), ("nothing", (0, 3), {})),
       (), ("alias", "detach"), grad=lambda o, dy, inputs, y, attrs: (dy,))
define("permute(Tensor x, int[] dims) -> Tensor", lambda g, *, dims: permute(g, dims), lambda x, *, dims: x.transpose(dims),
       "Axis i of the result is axis dims[i].",
       _samples(("scalar", (), {"dims": ()}), ("matrix", (7, 13), {"dims": (1, 0)}), ("turn", _CUBE, {"dims": (2, 0, 1)}),
                ("negative", _CUBE, {"dims": (-1, 0, -2)}), ("same", _CUBE, {"dims": (0, 1, 2)}), ("nothing", (0, 3), {"dims": (1, 0)}),
                ("heads", (2, 33, 4, 8), {"dims": (0, 2, 1, 3)})),
       (Bad("twice", (In((2, 3)),), ShapeError, ("(0, 0)", "once"), {"dims": (0, 0)}),
        Bad("too_few", (In((2, 3)),), ShapeError, ("(0,)", "2 axes"), {"dims": (0,)}),
        Bad("outside", (In((2, 3)),), ShapeError, ("dim 2",), {"dims": (0, 2)})),
       ("permute",), _permute_grad, onnx=("Transpose",), paddle=("transpose",))
define("transpose(Tensor x, int dim0, int dim1) -> Tensor", lambda g, *, dim0, dim1: transpose(g, dim0, dim1),
       lambda x, *, dim0, dim1: np.swapaxes(x, dim0, dim1) if x.ndim else x, "x with two axes exchanged.",
       _samples(("scalar", (), {"dim0": 0, "dim1": -1}), ("matrix", (7, 13), {"dim0": 0, "dim1": 1}),
                ("last", _CUBE, {"dim0": -1, "dim1": -2}), ("same", _CUBE, {"dim0": 1, "dim1": 1}), ("nothing", (0, 3), {"dim0": 0, "dim1": 1})),
       (Bad("outside", (In((2, 3)),), ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim0": 0, "dim1": 2}),), ("transpose.int",),
       lambda o, dy, inputs, y, attrs: (o.transpose(dy, attrs["dim0"], attrs["dim1"]),))
define("view(Tensor x, int[] size) -> Tensor", _view, lambda x, *, size: x.reshape(size),
       "The same elements in row-major order under another shape, one size of which may be -1; refused where strides cannot express it.",
       _samples(("scalar", (), {"size": (1, 1)}), ("flat", _CUBE, {"size": (-1,)}), ("split", (6, 35), {"size": (2, 3, 5, 7)}),
                ("to_scalar", (1,), {"size": ()}), ("unknown", _CUBE, {"size": (5, -1, 7)}), ("nothing", (0, 3), {"size": (4, 0)})),
       (Bad("sizes", (In((2, 3)),), ShapeError, ("(4, 2)", "6"), {"size": (4, 2)}),
        Bad("two_unknown", (In((2, 3)),), ShapeError, ("one -1",), {"size": (-1, -1)}),
        Bad("indivisible", (In((2, 3)),), ShapeError, ("(4, -1)",), {"size": (4, -1)})),
       ("view", "_reshape_alias", "_unsafe_view"), _same_shape, by_strides=True, onnx=("Reshape",), paddle=("reshape",))
define("expand(Tensor x, int[] size) -> Tensor", lambda g, *, size: expand(g, size),
       lambda x, *, size: np.broadcast_to(x, [x.shape[i - len(size) + x.ndim] if n == -1 else n for i, n in enumerate(size)]),
       "Axes of size 1, and new ones in front, repeated to size; -1 keeps a size.",
       _samples(("scalar", (), {"size": (3, 2)}), ("rows", (1, 7), {"size": (5, 7)}), ("front", (7,), {"size": (2, 3, 7)}),
                ("keeps", (3, 1, 5), {"size": (2, -1, 4, -1)}), ("to_nothing", (1, 3), {"size": (0, 3)}), ("same", _CUBE, {"size": _CUBE})),
       (Bad("sizes", (In((2, 3)),), ShapeError, ("(4, 3)", "only size 1"), {"size": (4, 3)}),
        Bad("fewer", (In((2, 3)),), ShapeError, ("at least 2 axes",), {"size": (3,)})),
       ("expand",), lambda o, dy, inputs, y, attrs: (unbroadcast(o, dy, inputs[0].shape),), onnx=("Expand",), paddle=("expand",))
define("squeeze(Tensor x, int[]? dim=None) -> Tensor", _squeeze,
       lambda x, *, dim: x.reshape([n for i, n in enumerate(x.shape) if n != 1 or (dim is not None and i not in [d % x.ndim for d in dim])]),
       "x without its axes of size 1, or without those of them that dim names.",
       _samples(("all", (1, 7, 1, 3), {}), ("one", (1, 7, 1), {"dim": (0,)}), ("kept", (2, 1, 3), {"dim": (0, -2)}), ("to_scalar", (1, 1), {}),
                ("scalar", (), {}), ("nothing", (1, 0), {})),
       (Bad("outside", (In((2, 1)),), ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim": (2,)}),), ("squeeze", "squeeze.dim", "squeeze.dims"), _same_shape,
       onnx=("Squeeze",), paddle=("squeeze",))
define("unsqueeze(Tensor x, int dim) -> Tensor", lambda g, *, dim: unsqueeze(g, dim), lambda x, *, dim: np.expand_dims(x, dim),
       "x with a new axis of size 1 at dim.",
       _samples(("scalar", (), {"dim": 0}), ("front", (7, 13), {"dim": 0}), ("middle", (7, 13), {"dim": 1}), ("end", (7, 13), {"dim": -1}),
                ("nothing", (0,), {"dim": 1})),
       (Bad("outside", (In((2, 3)),), ShapeError, ("dim 3", "-3 <= dim < 3"), {"dim": 3}),), ("unsqueeze",), _same_shape, onnx=("Unsqueeze",),
       paddle=("unsqueeze",))
define("select(Tensor x, int dim, int index) -> Tensor", lambda g, *, dim, index: select(g, dim, index),
       lambda x, *, dim, index: np.take(x, index, dim), "Element index of axis dim, which goes away.",
       _samples(("vector", (7,), {"dim": 0, "index": 6}), ("middle", _CUBE, {"dim": 1, "index": 2}), ("last", _CUBE, {"dim": -1, "index": -1}),
                ("nothing_left", (3, 0), {"dim": 0, "index": 1})),
       (Bad("index", (In((2, 3)),), IndexOutOfBounds, ("index 3", "-3 <= index < 3"), {"dim": 1, "index": 3}),
        Bad("scalar", (In(()),), ShapeError, ("no axis",), {"dim": 0, "index": 0}),
        Bad("dim", (In((2, 3)),), ShapeError, ("dim 2",), {"dim": 2, "index": 0})), ("select.int",))
define("slice(Tensor x, int dim=0, int? start=None, int? end=None, int step=1) -> Tensor",
       lambda g, *, dim, start, end, step: slice_(g, dim, start, end, step), _slices,
       "Elements start, start + step, ... below end of axis dim; negative ones count from the back, and the axis bounds both.",
       _samples(("all", (7, 3), {}), ("part", (7, 3), {"start": 2, "end": 5}), ("back", (7, 3), {"dim": -1, "start": -2}),
                ("step", (2, 13), {"dim": 1, "start": 1, "step": 5}), ("beyond", (7,), {"start": 5, "end": 2**62}),
                ("crossed", (7,), {"start": 5, "end": 2}), ("nothing", (0, 3), {"end": 4})),
       (Bad("step_0", (In((3,)),), ArgumentError, ("step 0", "1 or more"), {"step": 0}),
        Bad("step_back", (In((3,)),), ArgumentError, ("step -1", "flip"), {"step": -1}),
        Bad("scalar", (In(()),), ShapeError, ("no axis",)), _AXIS), ("slice.Tensor",), onnx=("Slice",), paddle=("slice",))
define("split(Tensor x, int split_size, int dim=0) -> Tensor[]", _split,
       lambda x, *, split_size, dim: _cut(x, [len(r) for r in np.array_split(np.arange(x.shape[dim]), np.arange(split_size, x.shape[dim], split_size))]
                                          if split_size else [0], dim),
       "The axis dim in pieces of split_size, the last one what is left.",
       _samples(("even", (6, 3), {"split_size": 2}), ("rest", (7, 3), {"split_size": 3}), ("whole", (5,), {"split_size": 9}),
                ("inner", _CUBE, {"split_size": 2, "dim": -1})),
       (Bad("zero", (In((3,)),), ArgumentError, ("split_size 0", "1 or more"), {"split_size": 0}),
        Bad("dim", (In((2, 3)),), ShapeError, ("dim 2",), {"split_size": 1, "dim": 2})), ("split.Tensor",), onnx=("Split",), paddle=("split",))
define("split_with_sizes(Tensor x, int[] sizes, int dim=0) -> Tensor[]", lambda g, *, sizes, dim: pieces(g, sizes, dim),
       lambda x, *, sizes, dim: _cut(x, sizes, dim), "The axis dim in pieces of the sizes given, which add up to it.",
       _samples(("three", (7, 3), {"sizes": (2, 0, 5)}), ("one", (5,), {"sizes": (5,)}), ("inner", _CUBE, {"sizes": (3, 4), "dim": -1})),
       (Bad("sum", (In((5,)),), ShapeError, ("(2, 2)", "5", "add up"), {"sizes": (2, 2)}),
        Bad("negative", (In((5,)),), ShapeError, ("(6, -1)",), {"sizes": (6, -1)})), ("split_with_sizes",), onnx=(), paddle=("split",))
define("unbind(Tensor x, int dim=0) -> Tensor[]", _unbind, lambda x, *, dim: tuple(np.moveaxis(x, dim, 0)),
       "The elements of axis dim one by one.",
       _samples(("rows", (5, 3), {}), ("columns", (2, 7), {"dim": -1}), ("vector", (3,), {})),
       (Bad("scalar", (In(()),), ShapeError, ("no axis",)), _AXIS), ("unbind.int",), paddle=("unbind",))
define("diagonal(Tensor x, int offset=0, int dim1=0, int dim2=1) -> Tensor",
       lambda g, *, offset, dim1, dim2: diagonal(g, offset, dim1, dim2),
       lambda x, *, offset, dim1, dim2: np.diagonal(x, offset, dim1, dim2) if -x.shape[dim1] < offset < x.shape[dim2] else
       np.diagonal(x, 0, dim1, dim2)[..., :0],
       "The diagonals of the planes of dim1 and dim2 as a new last axis; offset above 0 counts towards dim2.",
       _samples(("square", (7, 7), {}), ("wide", (5, 13), {"offset": 3}), ("below", (13, 5), {"offset": -9}), ("batch", _CUBE, {"dim1": 1, "dim2": 2}),
                ("turned", _CUBE, {"dim1": -1, "dim2": 0, "offset": 1}), ("beyond", (3, 3), {"offset": 9}), ("nothing", (0, 3), {})),
       (Bad("vector", (In((3,)),), ShapeError, ("1 axes", "2")), Bad("same", (In((3, 3)),), ShapeError, ("two axes",), {"dim1": 1, "dim2": -1})),
       ("diagonal",), paddle=("diagonal",))
define("unfold(Tensor x, int dim, int size, int step) -> Tensor", lambda g, *, dim, size, step: unfold(g, dim, size, step), _windows,
       "Windows of size elements, step apart, along dim: that axis counts windows, a new last one their elements.",
       _samples(("vector", (13,), {"dim": 0, "size": 3, "step": 2}), ("rows", (7, 5), {"dim": 0, "size": 2, "step": 1}),
                ("columns", (3, 11), {"dim": -1, "size": 4, "step": 5}), ("whole", (5,), {"dim": 0, "size": 5, "step": 1})),
       (Bad("size", (In((3,)),), ShapeError, ("windows of 4", "3"), {"dim": 0, "size": 4, "step": 1}),
        Bad("step", (In((3,)),), ShapeError, ("step of 1",), {"dim": 0, "size": 2, "step": 0})), ("unfold",))
define("as_strided(Tensor x, int[] size, int[] stride, int offset=0) -> Tensor",
       lambda g, *, size, stride, offset: as_strided(g, size, stride, offset), _strided,
       "Any sizes and strides within the reach of x; offset counts elements from its first one.",
       _samples(("rows", (7, 13), {"size": (3, 4), "stride": (26, 2), "offset": 5}), ("overlapping", (13,), {"size": (11, 3), "stride": (1, 1)}),
                ("repeated", (5,), {"size": (3, 5), "stride": (0, 1)}), ("nothing", (3,), {"size": (0, 9), "stride": (9, 1)}),
                ("scalar", (3,), {"size": (), "stride": (), "offset": 2})),
       (Bad("outside", (In((5,)),), ShapeError, ("elements 0 to 5", "0 to 4"), {"size": (6,), "stride": (1,)}),
        Bad("lengths", (In((5,)),), ShapeError, ("1 sizes and 2 strides",), {"size": (2,), "stride": (1, 1)}),
        Bad("before", (In((5,)),), ShapeError, ("elements -1",), {"size": (2,), "stride": (1,), "offset": -1})), ("as_strided",), by_strides=True)
define("meshgrid(Tensor[] tensors, {ij|xy} indexing=ij) -> Tensor[]", _meshgrid,
       lambda tensors, *, indexing: tuple(np.meshgrid(*(t.reshape(-1) for t in tensors), indexing=indexing)),
       "One grid a vector: grid i holds vector i along axis i (xy: the first two axes exchanged).",
       [Sample(n, (tuple(In(s, "wide") for s in shapes),), {"indexing": how}) for n, shapes, how in (
           ("two", ((3,), (5,)), "ij"), ("xy", ((3,), (5,)), "xy"), ("three", ((2,), (3,), (4,)), "xy"), ("one", ((4,),), "ij"),
           ("scalars", ((), (3,)), "ij"), ("empty", ((0,), (3,)), "ij"))],
       (Bad("matrix", ((In((2, 3)), In((3,))),), ShapeError, ("(2, 3)", "one axis")),), (), paddle=("meshgrid",))
