"""nonzero, nonzero_static, masked_select, unique, unique_consecutive: what they are.

How nonzero_static is computed: kernels/cpu/select.c, kernels/triton/select.py.  The others' results are as long as the data say: they
count first, then call operators whose results have known shapes.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Exact
from .gradient import count, unbroadcast, zeros
from .infer import axis, broadcast, need_dtype
from .record import ANY, Bad, Cost, In, Sample, Spec, op

_INT64, _BOOL = BY_NAME["int64"], BY_NAME["bool"]


# ---- nonzero -------------------------------------------------------------------------------------------------------------
def _infer_static(x: Spec, *, size: int, fill_value: int) -> Spec:
    need_dtype("nonzero_static", "x", x, ANY)
    if size < 0:
        raise ArgumentError(f"nonzero_static: size is {size}; needs 0 at least")
    return Spec((size, x.ndim), _INT64)


def _infer_nonzero(x: Spec) -> Spec:
    need_dtype("nonzero", "x", x, ANY)
    return Spec((x.size, x.ndim), _INT64)


def _places(x: np.ndarray) -> np.ndarray:
    """(hits, axes) indices of the elements that are not zero, in row-major order."""
    if x.ndim == 0:
        return np.zeros((int(bool(x != 0)), 0), np.int64)
    return np.argwhere(x != 0).astype(np.int64)


def _nonzero_static(x, *, size, fill_value):
    found = _places(x)[:size]
    return np.concatenate([found, np.full((size - len(found), x.ndim), fill_value, np.int64)])


def _nonzero(o: Any, x: Any) -> Any:
    return o.nonzero_static(x, size=o.count_nonzero(x).item())


def _places_cost(item: int, x: Spec, **attrs: Any) -> Cost:
    return Cost(flops=x.size, bytes=x.size * x.dtype.itemsize + attrs.get("size", 0) * x.ndim * 8)


# ---- masked_select -------------------------------------------------------------------------------------------------------
def _infer_masked(x: Spec, mask: Spec) -> Spec:
    need_dtype("masked_select", "x", x, ANY)
    if mask.dtype is not _BOOL:
        raise DTypeError(f"masked_select: mask has dtype {mask.dtype}; needs bool; compare it first (haian.ops.ne)")
    return Spec((Spec(broadcast("masked_select", x.shape, mask.shape), x.dtype).size,), x.dtype)


def _chosen(o: Any, x: Any, mask: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """(x broadcast, positions of True in the flattened broadcast mask, the common shape)."""
    shape = broadcast("masked_select", x.shape, mask.shape)
    flat = o.copy(mask.expand(shape)).reshape((-1,)) if tuple(mask.shape) != shape or not mask.is_contiguous else mask.reshape((-1,))
    at = o.nonzero_static(flat, size=o.count_nonzero(flat).item())
    return x.expand(shape), at.reshape((-1,)), shape


def _masked_select(o: Any, x: Any, mask: Any) -> Any:
    x, at, shape = _chosen(o, x, mask)
    return o.index_select((x if x.is_contiguous else o.copy(x)).reshape((-1,)), 0, at)


def _masked_reference(x, mask):
    x, mask = np.broadcast_arrays(x, mask)
    return x[mask]


def _masked_cost(item: int, x: Spec, mask: Spec) -> Cost:
    n = Spec(broadcast("masked_select", x.shape, mask.shape), x.dtype).size
    return Cost(flops=0, bytes=n * (1 + item))


def _masked_grad(o, dy, inputs, y, attrs):
    x, mask = inputs
    shape = broadcast("masked_select", x.shape, mask.shape)
    flat = o.copy(mask.expand(shape)).reshape((-1,))

    at = o.sub(o.cumsum(flat, 0), o.full((), 1, dtype=_INT64))
    if dy.shape[0] == 0:
        return zeros(o, x.shape, dy.dtype), None
    taken = o.index_select(dy, 0, o.maximum(at, o.full((), 0, dtype=_INT64)))
    assert taken.shape[0] == count(shape)
    return unbroadcast(o, o.where(flat, taken, zeros(o, (), dy.dtype)).reshape(shape), x.shape), None


# ---- unique --------------------------------------------------------------------------------------------------------------
def _infer_unique(x: Spec, *, sorted: bool = True, return_inverse: bool, return_counts: bool) -> tuple[Spec, Spec, Spec]:
    need_dtype("unique", "x", x, ANY)
    return _three(x, return_inverse, return_counts)


def _infer_consecutive(x: Spec, *, return_inverse: bool, return_counts: bool, dim: int | None) -> tuple[Spec, Spec, Spec]:
    need_dtype("unique_consecutive", "x", x, ANY)
    if dim is not None:
        axis("unique_consecutive", dim, x.ndim)
        if x.ndim > 1:
            raise ArgumentError(f"unique_consecutive: dim {dim} of a tensor of {x.ndim} axes; compares single elements, so needs dim None")
    return _three(x, return_inverse, return_counts)


def _three(x: Spec, inverse: bool, counts: bool) -> tuple[Spec, Spec, Spec]:
    return (Spec((x.size,), x.dtype), Spec(x.shape if inverse else (0,), _INT64), Spec((x.size,) if counts else (0,), _INT64))


def _runs(v: np.ndarray, inverse: bool, counts: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a line: first elements of runs of equals (no NaN equals another), the number of each element's run, lengths."""
    new = np.ones(len(v), bool)
    new[1:] = v[1:] != v[:-1]
    none = np.zeros(0, np.int64)
    return (v[new], np.cumsum(new, dtype=np.int64) - 1 if inverse else none,
            np.diff(np.append(np.flatnonzero(new), len(v))).astype(np.int64) if counts else none)


def _unique_reference(x, *, sorted, return_inverse, return_counts):
    v = x.reshape(-1)
    at = np.argsort(v, kind="stable")
    values, number, counts = _runs(v[at], True, return_counts)
    inverse = np.zeros(len(v), np.int64)
    inverse[at] = number
    return values, inverse.reshape(x.shape) if return_inverse else number[:0], counts


def _consecutive_reference(x, *, return_inverse, return_counts, dim):
    values, inverse, counts = _runs(x.reshape(-1), return_inverse, return_counts)
    return values, inverse.reshape(x.shape) if return_inverse else inverse, counts


def _line(o: Any, x: Any) -> Any:
    return (x if x.is_contiguous else o.copy(x)).reshape((-1,))


def _run_starts(o: Any, v: Any) -> tuple[Any, Any]:
    """(whether each element of a line begins a run, where those stand)."""
    n = v.shape[0]
    first = o.full((1,), True, dtype=_BOOL)
    new = o.cat((first, o.ne(v[1:], v[:-1])), 0) if n > 1 else first
    return new, o.nonzero_static(new, size=o.count_nonzero(new).item()).reshape((-1,))


def _of_runs(o: Any, v: Any, counts: bool) -> tuple[Any, Any, Any]:
    """(values, whether each element begins a run, counts) of a line of one element at least."""
    new, starts = _run_starts(o, v)
    none = o.full((0,), 0, dtype=_INT64)
    lengths = o.sub(o.cat((starts[1:], o.full((1,), v.shape[0], dtype=_INT64)), 0), starts) if counts else none
    return o.index_select(v, 0, starts), new, lengths


def _numbers(o: Any, new: Any) -> Any:
    return o.sub(o.cumsum(new, 0), o.full((), 1, dtype=_INT64))


def _unique(o: Any, x: Any, *, sorted: bool, return_inverse: bool, return_counts: bool) -> tuple[Any, Any, Any]:
    none = o.full((0,), 0, dtype=_INT64)
    v = _line(o, x)
    if v.shape[0] == 0:
        return o.copy(v), o.full(tuple(x.shape), 0, dtype=_INT64) if return_inverse else none, none
    v, at = o.sort(v, 0)
    values, new, counts = _of_runs(o, v, return_counts)
    if not return_inverse:
        return values, none, counts
    inverse = o.scatter_add(o.full((v.shape[0],), 0, dtype=_INT64), 0, at, _numbers(o, new))
    return values, inverse.reshape(tuple(x.shape)), counts


def _unique_consecutive(o: Any, x: Any, *, return_inverse: bool, return_counts: bool, dim: int | None) -> tuple[Any, Any, Any]:
    none = o.full((0,), 0, dtype=_INT64)
    v = _line(o, x)
    if v.shape[0] == 0:
        return o.copy(v), o.full(tuple(x.shape), 0, dtype=_INT64) if return_inverse else none, none
    values, new, counts = _of_runs(o, v, return_counts)
    return values, _numbers(o, new).reshape(tuple(x.shape)) if return_inverse else none, counts


def _unique_cost(item: int, x: Spec, **_: Any) -> Cost:
    return Cost(flops=4 * x.size, bytes=2 * x.size * x.dtype.itemsize)


# ---- records -------------------------------------------------------------------------------------------------------------
# the host kernel counts blocks of 8192 and looks at runs of 512; a device scans blocks of 1024
_SHAPES = (("scalar", ()), ("one", (1,)), ("prime", (7, 13)), ("past_run", (3, 515)), ("past_block", (2, 4099)), ("deep", (3, 2, 5, 3)),
           ("empty", (0, 5)))
_NAN = float("nan")
_WHY = "how long the result is depends on the data: that is counted first, and operators of known shape make it"
_FEW = In((2, 6), dtype="float32", values=(0, -0.0, _NAN, 1, 0, -2, _NAN, 0, 0, 3, -0.0, 5))


def _sizes(shape):
    n = Spec(shape, _BOOL).size
    return ({"size": n // 3, "fill_value": 7}, {"size": n + 3})


op("nonzero_static(Tensor x, *, int size, int fill_value=-1) -> Tensor", family="select", dtypes=ANY, infer=_infer_static,
   reference=_nonzero_static, budget=Exact(), cost=_places_cost,
   doc="Indices (size, axes), int64, of the elements of x that are not zero (NaN is not), in row-major order: the first size of them, or all "
       "and then rows of fill_value.",
   samples=[*(Sample(n, (In(s, "mask", "bool") if n in ("deep", "past_run") else In(s, "int"),), _sizes(s)[i % 2]) for i, (n, s) in enumerate(_SHAPES)),
            Sample("nan", (_FEW,), {"size": 9}), Sample("none_wanted", (In((3, 4)),), {"size": 0}),
            Sample("boxes", (In((8, 8400), "mask", "bool"),), {"size": 40000}, "YOLO detections above a threshold", "inference", ("full",))],
   bad=(Bad("size_negative", (In((3, 4)),), ArgumentError, ("size is -1",), {"size": -1}),), names={"aten": ("nonzero_static",)})

op("nonzero(Tensor x) -> Tensor", family="select", dtypes=ANY, infer=_infer_nonzero, reference=_places, budget=Exact(), cost=_places_cost,
   composite=_WHY, dynamic=_nonzero, doc="Indices (hits, axes), int64, of the elements of x that are not zero (NaN is not), in row-major order.",
   samples=[*(Sample(n, (In(s, "int"),)) for n, s in _SHAPES), Sample("nan", (_FEW,)), Sample("nothing", (In((5,), values=(0,) * 5),)),
            Sample("boxes", (In((8, 8400), "mask", "bool"),), {}, "YOLO detections above a threshold", "inference")],
   names={"aten": ("nonzero",), "onnx": ("NonZero",), "paddle": ("nonzero",)})

op("masked_select(Tensor x, Tensor mask) -> Tensor", family="select", dtypes=ANY, infer=_infer_masked, reference=_masked_reference,
   budget=Exact(signed_zero=True), cost=_masked_cost, composite=_WHY, dynamic=_masked_select, grad=_masked_grad,
   doc="The elements of x where the bool mask is True, in row-major order, a vector; x and mask broadcast against one another.",
   samples=[*(Sample(n, (In(s, "wide"), In(s, "mask", "bool"))) for n, s in _SHAPES),
            Sample("broadcast_mask", (In((5, 3, 4)), In((3, 1), "mask", "bool"))), Sample("broadcast_x", (In((4,)), In((6, 4), "mask", "bool"))),
            Sample("nothing", (In((4,)), In((4,), dtype="bool", values=(0,) * 4))),
            Sample("tokens", (In((8, 128, 768)), In((8, 128, 1), "mask", "bool")), {}, "BERT-base tokens that are masked", "inference")],
   bad=(Bad("shapes", (In((3, 4)), In((3, 5), "mask", "bool")), ShapeError, ("(3, 4)", "(3, 5)")),
        Bad("float_mask", (In((3, 4)), In((3, 4))), DTypeError, ("float32", "bool"))),
   names={"aten": ("masked_select",), "paddle": ("masked_select",)})

_EQUALS = [*(Sample(n, (In(s, "int"),), {"return_inverse": True, "return_counts": True}) for n, s in _SHAPES),
           Sample("nan", (_FEW,), {"return_inverse": True, "return_counts": True}), Sample("values_only", (In((5, 41), "int"),)),
           Sample("counts_only", (In((67,), "int"),), {"return_counts": True})]

op("unique(Tensor x, bool sorted=true, bool return_inverse=false, bool return_counts=false) -> (Tensor values, Tensor inverse, Tensor counts)",
   family="select", dtypes=ANY, infer=_infer_unique, reference=_unique_reference, budget=Exact(), cost=_unique_cost, composite=_WHY, dynamic=_unique,
   doc="The different elements of x in ascending order (whatever sorted says), where each element of x stands among them (inverse, of x's "
       "shape) and how often each occurs (counts), int64; what is not asked for is empty.  No NaN equals another; -0 equals 0.",
   samples=[*_EQUALS, Sample("tokens", (In((8, 512), "index", "int64", 32000),), {"return_inverse": True},
                             "Llama-7B: different tokens of a batch", "inference")],
   names={"aten": ("_unique2",), "onnx": ("Unique",), "paddle": ("unique",)})

op("unique_consecutive(Tensor x, bool return_inverse=false, bool return_counts=false, int? dim=None) -> "
   "(Tensor values, Tensor inverse, Tensor counts)", family="select", dtypes=ANY, infer=_infer_consecutive, reference=_consecutive_reference,
   budget=Exact(), cost=_unique_cost, composite=_WHY, dynamic=_unique_consecutive,
   doc="The first of every run of equal elements of flattened x, the run each element belongs to (inverse, of x's shape) and how long each "
       "run is (counts), int64; what is not asked for is empty.",
   samples=[*_EQUALS, Sample("alignment", (In((8, 1500), "index", "int64", 3),), {"return_counts": True},
                             "CTC: frames of one symbol", "inference")],
   bad=(Bad("dim", (In((3, 4)),), ArgumentError, ("dim 0", "2 axes"), {"dim": 0}),),
   names={"aten": ("unique_consecutive",), "paddle": ("unique_consecutive",)})
