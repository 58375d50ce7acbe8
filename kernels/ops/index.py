"""embedding, gather, scatter_add, index_select, index_add: what they are.

How they are computed: kernels/cpu/index.c, kernels/triton/index.py.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, IndexOutOfBounds, ShapeError
from .budget import Exact, Reduction
from .gradient import scaled, zeros
from .infer import axis, need, need_dtype, need_rank, same_dtype
from .record import ANY, FLOATS, NUMBERS, Bad, Cost, In, Sample, Spec, op

_INDEX = (BY_NAME["int64"], BY_NAME["int32"])


def check_bounds(name: str, what: str, index: np.ndarray, size: int) -> None:
    """Raises IndexOutOfBounds for the first value outside 0 <= value < size; position counts in row-major order."""
    flat = index.reshape(-1)
    bad = (flat < 0) | (flat >= size)
    if bad.any():
        at = int(bad.argmax())
        raise IndexOutOfBounds(f"{name}: {what} {flat[at]} at position {at} is outside 0 <= {what} < {size}")


def _need_index(name, what, index):
    if index.dtype not in _INDEX:
        raise DTypeError(f"{name}: {what} has dtype {index.dtype}; needs int64 or int32; cast it first")


def _infer_embedding(weight: Spec, indices: Spec) -> Spec:
    need_dtype("embedding", "weight", weight, ANY)
    need_rank("embedding", "weight", weight, 2)
    _need_index("embedding", "indices", indices)
    return Spec((*indices.shape, weight.shape[1]), weight.dtype)


def _infer_embedding_backward(dy: Spec, indices: Spec, *, num_weights: int, padding_idx: int) -> Spec:
    name = "embedding_dense_backward"
    need_dtype(name, "dy", dy, FLOATS)
    _need_index(name, "indices", indices)
    need(num_weights >= 0, f"{name}: num_weights is {num_weights}; needs 0 at least")
    if dy.ndim != indices.ndim + 1 or dy.shape[:-1] != indices.shape:
        raise ShapeError(f"{name}: dy is {dy.shape} and indices {indices.shape}; dy needs the shape of indices and one "
                         "axis more")
    return Spec((num_weights, dy.shape[-1]), dy.dtype)


def _fits_all_but(name, index, x, d, what="x"):
    """index may select less than x, along every axis but d."""
    if index.ndim != x.ndim:
        raise ShapeError(f"{name}: index is {index.shape} and {what} {x.shape}; they need the same number of axes")
    for i, (n, m) in enumerate(zip(index.shape, x.shape, strict=True)):
        if i != d and n > m:
            raise ShapeError(f"{name}: index is {index.shape} and {what} {x.shape}; on axis {i} index ({n}) is larger "
                             f"than {what} ({m})")


def _infer_gather(x: Spec, index: Spec, *, dim: int) -> Spec:
    need_dtype("gather", "x", x, ANY)
    _need_index("gather", "index", index)
    _fits_all_but("gather", index, x, axis("gather", dim, x.ndim))
    return Spec(index.shape, x.dtype)


def _infer_scatter_add(x: Spec, index: Spec, src: Spec, *, dim: int) -> Spec:
    need_dtype("scatter_add", "x", x, NUMBERS)
    same_dtype("scatter_add", x, src)
    _need_index("scatter_add", "index", index)
    _fits_all_but("scatter_add", index, x, axis("scatter_add", dim, x.ndim))
    _fits_all_but("scatter_add", index, src, None, "src")
    return x


def _line(name, index):
    """How many elements a 1-d (or 0-d: one) index selects."""
    _need_index(name, "index", index)
    need_rank(name, "index", index, 0, 1)
    return index.size


def _infer_index_select(x: Spec, index: Spec, *, dim: int) -> Spec:
    need_dtype("index_select", "x", x, ANY)
    n, d = _line("index_select", index), axis("index_select", dim, x.ndim)
    if x.ndim == 0:
        if n != 1:
            raise ShapeError(f"index_select: x has no axis and index {n} elements; needs one; reshape x to (1,)")
        return x
    return Spec((*x.shape[:d], n, *x.shape[d + 1:]), x.dtype)


def _infer_index_add(x: Spec, index: Spec, source: Spec, *, dim: int, alpha: float) -> Spec:
    need_dtype("index_add", "x", x, NUMBERS)
    same_dtype("index_add", x, source)
    n, d = _line("index_add", index), axis("index_add", dim, x.ndim)
    want = (*x.shape[:d], n, *x.shape[d + 1:]) if x.ndim else ()
    if source.shape != want or n != 1 and not x.ndim:
        raise ShapeError(f"index_add: source is {source.shape}, x {x.shape} and index {index.shape}; source needs "
                         f"shape {want} and index a value for each slice")
    if x.dtype.is_integer and alpha != int(alpha):
        raise ArgumentError(f"index_add: alpha is {alpha:g} for {x.dtype} tensors; needs a whole number")
    return x


def _embedding(weight, indices):
    check_bounds("embedding", "index", indices, weight.shape[0])
    return weight[indices]


def _embedding_backward(dy, indices, *, num_weights, padding_idx):
    check_bounds("embedding_dense_backward", "index", indices, num_weights)
    out = np.zeros((num_weights, dy.shape[-1]))
    flat = indices.reshape(-1)
    keep = flat != padding_idx
    np.add.at(out, flat[keep], dy.reshape(len(flat), -1 if flat.size else dy.shape[-1])[keep])
    return out


def _vector(a):
    return a.reshape(1) if a.ndim == 0 else a


def _gather(x, index, *, dim):
    check_bounds("gather", "index", index, x.shape[dim] if x.ndim else 1)
    cut = tuple(slice(None) if i == dim % max(x.ndim, 1) else slice(n) for i, n in enumerate(index.shape))
    return np.take_along_axis(_vector(x[cut]), _vector(index), dim).reshape(index.shape)


def _scatter_add(x, index, src, *, dim):
    check_bounds("scatter_add", "index", index, x.shape[dim] if x.ndim else 1)
    out, i, s = _vector(x.copy()), _vector(index), _vector(src)
    where = list(np.indices(i.shape))
    where[dim % out.ndim] = i
    np.add.at(out, tuple(where), s[tuple(slice(n) for n in i.shape)])
    return out.reshape(x.shape)


def _index_select(x, index, *, dim):
    check_bounds("index_select", "index", index, x.shape[dim] if x.ndim else 1)
    return np.take(x, _vector(index), axis=dim) if x.ndim else x.copy()


def _index_add(x, index, source, *, dim, alpha):
    check_bounds("index_add", "index", index, x.shape[dim] if x.ndim else 1)
    out = _vector(x.copy())
    moved = np.moveaxis(out, dim, 0)
    add = source * (alpha if x.dtype.kind == "f" else np.asarray(int(alpha)).astype(x.dtype))
    np.add.at(moved, _vector(index), np.moveaxis(_vector(add), dim, 0))
    return out.reshape(x.shape)


def _index_add_magnitude(x, index, source, *, dim, alpha):
    return _index_add(np.abs(x), index, np.abs(source), dim=dim, alpha=abs(alpha))


def _reads(which):
    """Selected elements read and written once, indices read; which: position of the index."""
    def cost(item: int, *given: Spec, **attrs: Any) -> Cost:
        index = given[which]
        if which == 1 and "dim" not in attrs:  # embedding: rows
            n = index.size * given[0].shape[1]
        elif index.ndim <= 1 and given[0].ndim:
            x = given[0]
            n = x.size // max(x.shape[attrs["dim"]], 1) * index.size
        else:
            n = index.size
        return Cost(flops=0, bytes=2 * n * item + index.size * index.dtype.itemsize)

    return cost


def _adds(item: int, x: Spec, index: Spec, src: Spec, **_: Any) -> Cost:
    return Cost(flops=src.size, bytes=(2 * x.size + src.size) * item + index.size * index.dtype.itemsize)


def _embedding_backward_cost(item: int, dy: Spec, indices: Spec, *, num_weights: int, padding_idx: int) -> Cost:
    return Cost(flops=dy.size,
                bytes=(dy.size + num_weights * dy.shape[-1]) * item + indices.size * indices.dtype.itemsize)


def _collisions(x: Spec, index: Spec, *_: Any, **__: Any) -> int:
    """At most every index, and what stood there, meet in one element."""
    return index.size + 1


def _gather_grad(o, dy, inputs, y, attrs):
    x, index = inputs
    return o.scatter_add(zeros(o, x.shape, dy.dtype), attrs["dim"], index, dy), None


def _scatter_add_grad(o, dy, inputs, y, attrs):
    """Elements of src that index does not reach get 0."""
    _, index, src = inputs
    d = o.gather(dy, attrs["dim"], index)
    if tuple(index.shape) != tuple(src.shape):
        for i in range(src.ndim):  # pad axis by axis
            missing = src.shape[i] - d.shape[i]
            if missing:
                shape = (*d.shape[:i], missing, *d.shape[i + 1:])
                d = o.cat((d, zeros(o, shape, dy.dtype)), i)
    return dy, None, d


def _index_select_grad(o, dy, inputs, y, attrs):
    x, index = inputs
    return o.index_add(zeros(o, x.shape, dy.dtype), attrs["dim"], index, dy), None


def _index_add_grad(o, dy, inputs, y, attrs):
    d = o.index_select(dy, attrs["dim"], inputs[1])
    return dy, None, d if attrs["alpha"] == 1 else scaled(o, d, attrs["alpha"])


def _i(shape, high, dtype="int64"):
    return In(shape, "index", dtype, high)


# name, weight, indices shape
_EMBEDDINGS = (("one", (1, 1), (1,)), ("scalar_index", (5, 3), ()), ("prime", (13, 7), (11,)),
               ("matrix", (101, 16), (3, 5)),
               ("nothing", (5, 3), (0,)), ("no_columns", (5, 0), (4,)), ("past_tile", (7, 1025), (3,)),
               ("repeats", (3, 5), (129,)))
_EMBEDDING_MODELS = (("bert_tokens", (30522, 768), (1, 128), "BERT-base token embedding", "inference", ("full",)),
                     ("llama_tokens", (32000, 4096), (1, 128), "Llama-7B token embedding", "full", ("full", "llm")),
                     ("rows_8192", (32000, 1024), (8192,), "", "full", ("quick", "full")))
# name, x, index, dim
_GATHERS = (("scalar", (), (), 0), ("one", (1,), (1,), 0), ("vector", (13,), (7,), 0), ("longer", (3,), (129,), 0),
            ("rows", (7, 13), (5, 13), 0), ("columns", (7, 13), (7, 5), -1), ("part", (7, 13), (3, 20), 1),
            ("inner", (3, 5, 7), (3, 9, 7), 1),
            ("nothing", (3, 4), (3, 0), 1), ("no_rows", (0, 4), (0, 4), 1), ("past_tile", (2, 1025), (2, 1027), 1))
# name, x, index, dim, how many indices
_SELECTS = (("scalar", (), (1,), 0), ("scalar_index", (5, 3), (), 1), ("one", (1,), (1,), 0),
            ("vector", (13,), (7,), 0), ("rows", (7, 13), (5,), 0),
            ("columns", (7, 13), (20,), -1), ("inner", (3, 5, 7), (9,), 1), ("nothing", (3, 4), (0,), 1),
            ("no_rows", (0, 4), (3,), 1), ("past_tile", (3, 1025), (1027,), 1))


def _size(x, dim):
    return x[dim] if x else 1


def _embedding_samples():
    return [Sample(n,
                   (In(w, "wide"), _i(i, w[0], "int32" if n == "matrix" else "int64"))) for n, w, i in _EMBEDDINGS] + [
        Sample(n, (In(w), _i(i, w[0])), {}, m, level, bench) for n, w, i, m, level, bench in _EMBEDDING_MODELS]


def _embedding_backward_samples():
    ugly = [Sample(n, (In((*i, w[1])), _i(i, w[0], "int32" if n == "matrix" else "int64")),
                   {"num_weights": w[0]}) for n, w, i in _EMBEDDINGS]
    return [*ugly, Sample("padding", (In((33, 4)), _i((33,), 5)), {"num_weights": 5, "padding_idx": 2}),
            Sample("bert_tokens", (In((1, 128, 768)), _i((1, 128), 30522)), {"num_weights": 30522, "padding_idx": 0},
                   "BERT-base token embedding", "training", ("full",))]


_GATHER_SAMPLES = [Sample(n, (In(x, "wide"), _i(i, _size(x, d), "int32" if n == "inner" else "int64")),
                          {"dim": d}) for n, x, i, d in _GATHERS] + [
    # one row cut into blocks (C, 8192), columns in groups that fit a cache
    Sample("past_blocks", (In((13,), "wide"), _i((16501,), 13)), {"dim": 0}, cover="once"),
    Sample("past_columns", (In((513, 259), "wide"), _i((5, 259), 513)), {"dim": 0}, cover="once"),
    Sample("llama_targets", (In((128, 32000)), _i((128, 1), 32000)), {"dim": 1},
           "Llama-7B log-probabilities of targets", "full", ("full", "llm"))]
_SCATTER_SAMPLES = [Sample(n, (In(x), _i(i, _size(x, d), "int32" if n == "inner" else "int64"), In(i)),
                           {"dim": d}) for n, x, i, d in _GATHERS] + [
    Sample("src_larger", (In((7, 13)), _i((3, 5), 7), In((4, 9))), {"dim": 0}),
    Sample("past_blocks", (In((13, 513)), _i((41, 513), 13), In((41, 513))), {"dim": 0}, cover="once"),
    Sample("one_target", (In((2,)), _i((2049,), 1), In((2049,))), {"dim": 0})]
_SELECT_SAMPLES = [Sample(n, (In(x, "wide"), _i(i, _size(x, d), "int32" if n == "inner" else "int64")),
                          {"dim": d}) for n, x, i, d in _SELECTS] + [
    Sample("streamed", (In((31, 1031), dtype="int64"), _i((521,), 31)), {"dim": 0}, cover="once"),
    Sample("many", (In((5, 3), "wide"), _i((65637,), 5)), {"dim": 0}, cover="once"),
    Sample("llama_last_token", (In((1, 128, 4096)), _i((1,), 128)), {"dim": 1}, "Llama-7B last hidden state", "full",
           ("llm",)),
    Sample("rows_8192", (In((32000, 1024)), _i((8192,), 32000)), {"dim": 0}, "", "full", ("full",))]
_ADD_SAMPLES = [Sample(n, (In(x), _i(i, _size(x, d), "int32" if n == "inner" else "int64"),
                           In((*x[:d % max(len(x), 1)], *(i or (1,)), *x[d % max(len(x), 1) + 1:]) if x else ())),
                       {"dim": d})
                for n, x, i, d in _SELECTS] + [
    Sample("scaled", (In((7, 5)), _i((33,), 7), In((33, 5))), {"dim": 0, "alpha": -2.0}),
    Sample("past_blocks", (In((67, 1031)), _i((131,), 67), In((131, 1031))), {"dim": 0}, cover="once"),
    Sample("one_target", (In((2, 3)), _i((1025,), 1), In((1025, 3))), {"dim": 0})]


def _outside(*before, after=(), late=lambda n: (), **attrs):
    """An index of 77 and one of -2 where 0..4 are allowed, and one of 5 behind many good ones.

    late: inputs (before, after) for a vector of n indices where those for four do not fit.
    """
    found = [Bad(f"index_{bad}_of_5{'' if dtype == 'int64' else '_int32'}", (*before, In((4,), dtype=dtype, values=values), *after),
                 IndexOutOfBounds, (str(bad), f"position {values.index(bad)}", "5"), attrs)
             for dtype in ("int64", "int32") for bad, values in ((77, (0, 1, 77, 4)), (-2, (0, -2, 3, 4)))]
    n = 1100  # the check of more than 1024 runs in several programs
    first, last = late(n) or (before, after)
    values = (*(4.0,) * (n - 10), 5.0, *(0.0,) * 9)
    return (*found, *(Bad(f"late_index_{dtype}", (*first, In((n,), dtype=dtype, values=values), *last), IndexOutOfBounds,
                          ("5", f"position {n - 10}"), attrs) for dtype in ("int64", "int32")))


def _past_threads(*before, **attrs):
    """One in the rest of a vector that threads check in parts (C: from 65536 on, parts of 16384)."""
    return Bad("index_in_the_rest", (*before, In((65637,), dtype="int64", values=(*(1.0,) * 65630, 5.0, *(0.0,) * 6))), IndexOutOfBounds,
               ("5", "position 65630"), attrs)


_E, _R = Exact(signed_zero=True), Reduction(terms=_collisions)

op("embedding(Tensor weight, Tensor indices) -> Tensor", family="index", dtypes=ANY, infer=_infer_embedding,
   reference=_embedding,
   doc="Rows of weight (V, D) by indices of any shape, int64 or int32: result (*indices.shape, D).  An index outside 0 "
       "<= index < V is an IndexOutOfBounds.", budget=_E, cost=_reads(1), samples=_embedding_samples(),
   grad=lambda o, dy, inputs, y, attrs: (o.embedding_dense_backward(dy, inputs[1], inputs[0].shape[0], -1), None),
   names={"aten": ("embedding",), "onnx": ("Gather",), "paddle": ("embedding",)},
   bad=(*_outside(In((5, 3))), _past_threads(In((5, 3))),
        Bad("vector", (In((5,)), _i((4,), 5)), ShapeError, ("weight", "(5,)", "2 axes")),
        Bad("float_indices", (In((5, 3)), In((4,))), DTypeError, ("indices", "float32", "int64"))))

op("embedding_dense_backward(Tensor dy, Tensor indices, int num_weights, int padding_idx=-1) -> Tensor", family="index",
   dtypes=FLOATS,
   infer=_infer_embedding_backward, reference=_embedding_backward, budget=_R, cost=_embedding_backward_cost,
   doc="Gradient of embedding: row v is the sum of dy (*indices.shape, D) where indices is v; row padding_idx stays 0 "
       "(-1: none).",
   samples=_embedding_backward_samples(), names={"aten": ("embedding_dense_backward",)},
   bad=(*_outside(In((4, 3)), late=lambda n: ((In((n, 3)),), ()), num_weights=5),
        Bad("dy_shape", (In((4, 3)), _i((5,), 5)), ShapeError, ("(4, 3)", "(5,)"), {"num_weights": 5}),
        Bad("float_indices", (In((4, 3)), In((4,))), DTypeError, ("indices", "float32", "int64"), {"num_weights": 5}),
        Bad("num_weights", (In((0, 3)), _i((0,), 1)), ArgumentError, ("num_weights", "-1"), {"num_weights": -1})))

op("gather(Tensor x, int dim, Tensor index) -> Tensor", family="index", dtypes=ANY, infer=_infer_gather,
   reference=_gather, budget=_E,
   doc="Along dim, the elements of x that index names: result[i, j] = x[index[i, j], j] for dim 0.  index has x's rank "
       "and is, off dim, at most as large.", cost=_reads(1), samples=_GATHER_SAMPLES, grad=_gather_grad,
   names={"aten": ("gather",), "onnx": ("GatherElements",), "paddle": ("take_along_axis",)},
   bad=(*_outside(In((5,)), dim=0), Bad("ranks", (In((5, 3)), _i((4,), 5)), ShapeError, ("(4,)", "(5, 3)", "axes"),
                                        {"dim": 0}),
        Bad("larger", (In((5, 3)), _i((2, 4), 5)), ShapeError, ("axis 1", "(4)", "(3)"), {"dim": 0}),
        Bad("dim", (In((5,)), _i((4,), 5)), ShapeError, ("dim 1", "-1 <= dim < 1"), {"dim": 1}),
        Bad("float_index", (In((5,)), In((4,))), DTypeError, ("index", "float32", "int64"), {"dim": 0})))

op("scatter_add(Tensor x, int dim, Tensor index, Tensor src) -> Tensor", family="index", dtypes=NUMBERS,
   infer=_infer_scatter_add,
   rule="same", reference=_scatter_add, budget=_R, cost=_adds, samples=_SCATTER_SAMPLES, grad=_scatter_add_grad,
   doc="x with src added along dim at the places index names: result[index[i, j], j] += src[i, j] for dim 0.  index "
       "has x's rank and is at most as large as src, and, off dim, as x.  float16 and bfloat16 are summed in float32 "
       "and rounded once.",
   names={"aten": ("scatter_add",), "paddle": ("put_along_axis",)},
   bad=(*_outside(In((5,)), after=(In((4,)),), late=lambda n: ((In((5,)),), (In((n,)),)), dim=0),
        Bad("src_smaller", (In((5, 3)), _i((4, 3), 5), In((2, 3))), ShapeError, ("src", "(4)", "(2)"), {"dim": 0}),
        Bad("larger", (In((5, 3)), _i((2, 4), 5), In((2, 4))), ShapeError, ("axis 1", "(4)", "(3)"), {"dim": 0}),
        Bad("dtypes", (In((5,)), _i((4,), 5), In((4,), dtype="float64")), DTypeError, ("float32", "float64"),
            {"dim": 0})))

op("index_select(Tensor x, int dim, Tensor index) -> Tensor", family="index", dtypes=ANY, infer=_infer_index_select,
   reference=_index_select, budget=_E, cost=_reads(1), samples=_SELECT_SAMPLES, grad=_index_select_grad,
   doc="The slices of x along dim that a vector of indices names, in its order.",
   names={"aten": ("index_select",), "onnx": ("Gather",), "paddle": ("index_select",)},
   bad=(*_outside(In((5, 3)), dim=0), _past_threads(In((5, 3)), dim=0), Bad("matrix_index", (In((5, 3)), _i((2, 2), 5)), ShapeError, ("index", "(2, 2)"),
                                          {"dim": 0}),
        Bad("dim", (In((5, 3)), _i((4,), 5)), ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim": 2}),
        Bad("float_index", (In((5, 3)), In((4,))), DTypeError, ("index", "float32", "int64"), {"dim": 0})))

op("index_add(Tensor x, int dim, Tensor index, Tensor source, *, float alpha=1) -> Tensor", family="index",
   dtypes=NUMBERS,
   infer=_infer_index_add, rule="same", reference=_index_add, cost=_adds, samples=_ADD_SAMPLES, grad=_index_add_grad,
   budget=Reduction(terms=_collisions, magnitude=_index_add_magnitude),
   doc="x with alpha * source added, slice by slice along dim, at the places a vector of indices names.  float16 and "
       "bfloat16 are summed in float32 and rounded once.", names={"aten": ("index_add",), "paddle": ("index_add",)},
   bad=(*_outside(In((5, 3)), after=(In((4, 3)),), late=lambda n: ((In((5, 3)),), (In((n, 3)),)), dim=0),
        Bad("source_shape", (In((5, 3)), _i((4,), 5), In((3, 3))), ShapeError, ("source", "(3, 3)", "(4, 3)"),
            {"dim": 0}),
        Bad("dtypes", (In((5,)), _i((4,), 5), In((4,), dtype="float64")), DTypeError, ("float32", "float64"),
            {"dim": 0}),
        Bad("fraction_of_int", (In((5,), "int"), _i((4,), 5), In((4,), "int")), ArgumentError,
            ("0.5", "int32", "whole"), {"dim": 0, "alpha": 0.5}, dtype="int32")))
