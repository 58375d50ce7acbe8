"""copy, cat, tril, triu, arange, full: movement and creation, what they are.

How they are computed: kernels/cpu/shape.c, kernels/triton/shape.py.
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME, DType
from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Composite, Exact
from .infer import axis, need, need_dtype, same_dtype
from .record import ANY, NUMBERS, Bad, Cost, In, Sample, Spec, op


def _infer_copy(x: Spec) -> Spec:
    need_dtype("copy", "x", x, ANY)
    return x


def _infer_cat(tensors: tuple[Spec, ...], *, dim: int) -> Spec:
    """As aten, a tensor of shape (0,) is nothing, whatever the rank of the others."""
    need(len(tensors) > 0, "cat: no tensors came; needs one at least")
    dtype = same_dtype("cat", *tensors)
    need_dtype("cat", "tensors[0]", tensors[0], ANY)
    for i, t in enumerate(tensors):
        if t.ndim == 0:
            raise ShapeError(f"cat: tensors[{i}] has no axis; needs one at least; reshape it to (1,)")
    real = [(i, t) for i, t in enumerate(tensors) if t.shape != (0,)]
    if not real:
        axis("cat", dim, 1)
        return Spec((0,), dtype)
    at, first = real[0]
    d = axis("cat", dim, first.ndim)
    for i, t in real[1:]:
        if t.ndim != first.ndim or t.shape[:d] + t.shape[d + 1:] != first.shape[:d] + first.shape[d + 1:]:
            raise ShapeError(f"cat: tensors[{at}] is {first.shape} and tensors[{i}] is {t.shape}; they may differ only "
                             f"along dim {d}")
    return Spec((*first.shape[:d], sum(t.shape[d] for _, t in real), *first.shape[d + 1:]), dtype)


def _infer_triangle(name):
    def infer(x: Spec, *, diagonal: int) -> Spec:
        need_dtype(name, "x", x, ANY)
        if x.ndim < 2:
            raise ShapeError(f"{name}: x has shape {x.shape}; needs 2 axes at least")
        return x

    return infer


def _range_length(start, end, step):
    """Elements from start up to, not including, end: ceil((end - start) / step), in float64."""
    return max(math.ceil((end - start) / step), 0)


def _infer_arange(*, start: float, end: float, step: float, dtype: DType) -> Spec:
    if dtype not in NUMBERS:
        raise DTypeError(f"arange: dtype is {dtype}; accepts {', '.join(map(str, NUMBERS))}")
    said = f"arange: start {start:g}, end {end:g}, step {step:g}"
    need(all(map(math.isfinite, (start, end, step))), f"{said}; all three must be finite")
    need(step != 0, f"{said}; step must not be 0")
    need((end - start) * step >= 0, f"{said}; the sign of step does not lead from start to end; negate it")
    n = _range_length(start, end, step)
    if dtype.is_integer:
        need(all(v == int(v) for v in (start, end, step)), f"{said}; dtype {dtype} needs whole numbers; choose a "
                                                           "floating dtype")
        info = np.iinfo(dtype.numpy)
        last = start + step * max(n - 1, 0)
        need(n == 0 or (info.min <= min(start, last) and max(start, last) <= info.max),
             f"{said}; values up to {last:g} do not fit {dtype} ({info.min} to {info.max}); choose a wider dtype")
    return Spec((n,), dtype)


def infer_full(*, shape: Any, value: float, dtype: DType) -> Spec:
    if dtype not in ANY:
        raise DTypeError(f"full: dtype is {dtype}; accepts {', '.join(map(str, ANY))}")
    shape = tuple(shape)
    if any(s < 0 for s in shape):
        raise ShapeError(f"full: shape is {shape}; sizes must not be negative")
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        need(math.isfinite(value) and info.min <= int(value) <= info.max,
             f"full: value {value:g} does not fit {dtype} ({info.min} to {info.max}); choose another dtype")
    return Spec(shape, dtype)


def _cat(tensors, *, dim):
    real = [t for t in tensors if t.shape != (0,)]
    return np.concatenate(real, axis=dim) if real else tensors[0].copy()


def _triangle(keep):
    def reference(x, *, diagonal):
        row, column = np.indices(x.shape[-2:])
        return np.where(keep(column - row, diagonal), x, np.zeros((), x.dtype))

    return reference


def _arange(*, start, end, step, dtype):
    i = np.arange(_range_length(start, end, step), dtype=np.int64)
    return i * int(step) + int(start) if dtype.is_integer else i.astype(np.float64) * step + start


def _arange_magnitude(*, start, end, step, dtype):
    return abs(start) + np.abs(np.arange(_range_length(start, end, step)) * float(step))


def _full(*, shape, value, dtype):
    return np.full(tuple(shape),
                   value if dtype.is_floating else bool(value) if dtype is BY_NAME["bool"] else int(value))


def _copy_cost(item: int, x: Spec, **_: Any) -> Cost:
    return Cost(flops=0, bytes=2 * x.size * x.dtype.itemsize)


def _cat_cost(item: int, tensors: tuple[Spec, ...], **_: Any) -> Cost:
    return Cost(flops=0, bytes=2 * sum(t.size * t.dtype.itemsize for t in tensors))


def _write_cost(infer):
    def cost(item: int, **attrs: Any) -> Cost:
        y = infer(**attrs)
        return Cost(flops=0, bytes=y.size * y.dtype.itemsize)

    return cost


def _cat_grad(o, dy, inputs, y, attrs):
    """The part of dy that came from each tensor."""
    tensors, at, grads = inputs[0], 0, []
    d = axis("cat", attrs["dim"], dy.ndim)
    for t in tensors:
        n = 0 if tuple(t.shape) == (0,) else t.shape[d]
        part = o.index_select(dy, d, o.arange(float(at), float(at + n), 1.0, dtype=BY_NAME["int64"]))
        grads.append(part.reshape(tuple(t.shape)) if n == 0 and tuple(t.shape) == (0,) else part)
        at += n
    return (tuple(grads),)


_COPY = [Sample(n, (In(s, "wide", layout=layout),), {}, "", "core") for n, s, layout in (
    ("scalar", (), ""), ("one", (1,), ""), ("prime", (7, 13), ""), ("nothing", (0,), ""), ("past_tile", (3, 1025), ""),
    ("transposed", (33, 65), "transposed"), ("transposed_small", (2, 3), "transposed"),
    ("transposed_batch", (3, 17, 5), "transposed"),
    ("transposed_nothing", (4, 0), "transposed"), ("transposed_tall", (1025, 3), "transposed"))] + [
    Sample("attention_heads", (In((1, 12, 64, 128), layout="transposed"),), {}, "BERT-base keys", "inference",
           ("full",)),
    Sample("square_4096", (In((4096, 4096)),), {}, "", "full", ("full",)),
    Sample("square_4096_transposed", (In((4096, 4096), layout="transposed"),), {}, "", "full", ("quick", "full"))]
# pieces of a long row (C, 64 KiB), results written past the caches (C, 4 MiB; turned ones from 1 MiB, in blocks of 512 x 1024)
_COPY += [Sample("past_piece", (In((16411,)),), cover="once"), Sample("streamed", (In((1031, 521), dtype="int64"),), cover="once"),
          Sample("streamed_turned", (In((1043, 521), "normal", layout="transposed"),), cover="once")]
_CAT = [Sample(n, (tuple(In(s, "wide") for s in shapes),), {"dim": d}, "", "core") for n, shapes, d in (
    ("one_tensor", ((5,),), 0), ("vectors", ((1,), (7,), (0,), (13,)), 0), ("rows", ((3, 5), (2, 5)), 0),
    ("columns", ((3, 5), (3, 2)), -1),
    ("inner", ((2, 3, 5), (2, 1, 5), (2, 4, 5)), 1), ("empty_part", ((3, 0), (3, 4)), 1),
    ("all_empty", ((0, 4), (0, 3)), 1),
    ("legacy_empty", ((0,), (2, 3)), 1), ("legacy_all_empty", ((0,), (0,)), 0), ("past_tile", ((2, 1025), (2, 3)), 1),
    ("many", tuple((2, i) for i in range(1, 12)), 1))] + [
    Sample("streamed", ((In((131, 2503), dtype="int64"), In((131, 1553), dtype="int64")),), {"dim": 1}, cover="once"),
    Sample("kv_cache", ((In((1, 32, 511, 128)), In((1, 32, 1, 128))),), {"dim": 2}, "Llama-7B key cache, decode",
           "full", ("full", "llm")),
    Sample("rotary_halves", ((In((1, 4, 33, 16)), In((1, 4, 33, 16))),), {"dim": -1}, "Llama-7B rotary embedding",
           "inference")]
_TRIANGLES = [Sample(f"{n}_{k}".replace("-", "minus_"), (In(s, "wide"),), {"diagonal": k}) for n, s, k in (
    ("one", (1, 1), 0), ("square", (7, 7), 0), ("square", (7, 7), 1), ("square", (7, 7), -1), ("wide", (5, 13), 3),
    ("tall", (13, 5), -4), ("batch", (3, 7, 5), 0), ("beyond", (3, 5), 100), ("beyond", (3, 5), -100),
    ("no_rows", (0, 4), 0), ("no_columns", (4, 0), 0),
    ("no_batch", (0, 3, 3), 0), ("past_tile", (65, 129), 5))] + [
    Sample("transposed", (In((9, 17), "wide", layout="transposed"),), {"diagonal": 1}),
    Sample("past_batch", (In((7, 33, 17), "wide"),), {"diagonal": -2}),
    Sample("far_diagonal", (In((2, 33013)),), {"diagonal": 32901}, cover="once"),
    Sample("streamed", (In((3, 521, 347), dtype="int64"),), {"diagonal": 3}, cover="once"),
    Sample("causal_mask", (In((128, 128), "mask", "bool"),), {}, "causal mask, 128 tokens", "inference"),
    Sample("square_4096", (In((4096, 4096)),), {}, "", "full", ("full",))]
_INT, _F32 = {"dtype": BY_NAME["int64"]}, {"dtype": BY_NAME["float32"]}
_ARANGES = [Sample("count", (), {"start": 0.0, "end": 7.0}), Sample("one", (), {"start": 3.0, "end": 4.0}),
            Sample("nothing", (), {"start": 5.0, "end": 5.0}),
            Sample("step", (), {"start": 2.0, "end": 101.0, "step": 3.0}),
            Sample("down", (), {"start": 100.0, "end": 0.0, "step": -7.0}),
            Sample("negative", (), {"start": -13.0, "end": 13.0, "step": 2.0, **_INT}),
            Sample("past_tile", (), {"start": 0.0, "end": 1025.0, **_INT}),
            Sample("past_tile_float", (), {"start": 0.0, "end": 1025.0, **_F32}),
            Sample("fraction", (), {"start": 0.0, "end": 1.0, "step": 0.1, **_F32}),
            Sample("tenths", (), {"start": 0.0, "end": 200.0, "step": 0.1, **_F32}),
            Sample("cancels", (), {"start": -3.0, "end": 3.0, "step": 0.3, **_F32}),
            Sample("large_int", (), {"start": 2.0**40, "end": 2.0**40 + 9, **_INT}),
            Sample("positions", (), {"start": 0.0, "end": 4096.0, **_INT}, "Llama-7B positions", "inference",
                   ("full",))]
_FULLS = [Sample("scalar", (), {"shape": (), "value": 3.0}), Sample("one", (), {"shape": (1,), "value": 1.0}),
          Sample("nothing", (), {"shape": (3, 0), "value": 1.0}), Sample("prime", (), {"shape": (7, 13), "value": 0.0}),
          Sample("past_tile", (), {"shape": (3, 1025), "value": 7.0}),
          Sample("fraction", (), {"shape": (5,), "value": 2.75, **_F32}),
          Sample("truncates", (), {"shape": (5,), "value": -2.75, **_INT}),
          Sample("rounds", (), {"shape": (3,), "value": 0.1, "dtype": BY_NAME["bfloat16"]}),
          # beside the middle of two neighbours: rounded through float32 each would go the other way
          *(Sample(f"{side}_middle_{to}", (), {"shape": (3,), "value": 1 + step + (2.0**-40 if side == "above" else -(2.0**-40)),
                                               "dtype": BY_NAME[to]})
            for to, step in (("bfloat16", 2.0**-8), ("float16", 2.0**-11)) for side in ("above", "below")),
          *(Sample(f"below_odd_middle_{to}", (), {"shape": (3,), "value": 1 + 3 * step - 2.0**-40, "dtype": BY_NAME[to]})
            for to, step in (("bfloat16", 2.0**-8), ("float16", 2.0**-11))),
          Sample("streamed", (), {"shape": (1031, 521), "value": 3.0, **_INT}, cover="once"),
          Sample("infinite", (), {"shape": (3,), "value": float("-inf"), **_F32}),
          Sample("nan", (), {"shape": (3,), "value": float("nan"), **_F32}),
          Sample("square_4096", (), {"shape": (4096, 4096), "value": 1.0, **_F32}, "", "full", ("full",))]

_E = Exact(signed_zero=True)

op("copy(Tensor x) -> Tensor", family="shape", dtypes=ANY, infer=_infer_copy, rule="same", reference=np.array,
   doc="A contiguous copy of x; with out=, a copy into any strides.", budget=_E, cost=_copy_cost, samples=_COPY,
   bad=(Bad("complex64", (In((3,), dtype="complex64"),), DTypeError, ("complex64", "accepts")),),
   grad=lambda o, dy, inputs, y, attrs: (dy,), names={"aten": ("clone", "copy_"), "onnx": ("Identity",),
                                                      "paddle": ("assign",)})

op("cat(Tensor[] tensors, int dim=0) -> Tensor", family="shape", dtypes=ANY, infer=_infer_cat, reference=_cat,
   budget=_E,
   doc="The tensors one after another along dim; other sizes and dtypes are equal.  A tensor of shape (0,) is skipped.",
   cost=_cat_cost, samples=_CAT, grad=_cat_grad, names={"aten": ("cat",), "onnx": ("Concat",), "paddle": ("concat",)},
   bad=(Bad("sizes", ((In((2, 3)), In((3, 3))),), ShapeError, ("tensors[1]", "(2, 3)", "(3, 3)"), {"dim": 1}),
        Bad("ranks", ((In((2, 3)), In((3,))),), ShapeError, ("(2, 3)", "(3,)"), {"dim": 0}),
        Bad("scalars", ((In(()), In(())),), ShapeError, ("tensors[0]", "no axis")),
        Bad("none", ((),), ArgumentError, ("no tensors",)),
        Bad("dim", ((In((2, 3)), In((2, 3))),), ShapeError, ("dim 2", "-2 <= dim < 2"), {"dim": 2}),
        Bad("dtypes", ((In((2,)), In((2,), "int", "int32")),), DTypeError, ("float32", "int32"))))

for _name, _keep, _side, _upper in (("tril", np.less_equal, "below", "0"), ("triu", np.greater_equal, "above", "1")):
    op(f"{_name}(Tensor x, int diagonal=0) -> Tensor", family="shape", dtypes=ANY, infer=_infer_triangle(_name),
       rule="same", reference=_triangle(_keep), budget=_E, cost=_copy_cost, samples=_TRIANGLES,
       doc=f"The elements on and {_side} the diagonal (0 the main one, 1 the next above) of each matrix of the last "
           "two axes; 0 elsewhere, whatever stood there.",
       grad=lambda o, dy, inputs, y, attrs, _name=_name: (getattr(o, _name)(dy, attrs["diagonal"]),),
       bad=(Bad("vector", (In((3,)),), ShapeError, ("(3,)", "2 axes")),
            Bad("scalar", (In(()),), ShapeError, ("()", "2 axes"))),
       names={"aten": (_name,), "onnx": ("Trilu",), "paddle": (_name,)})

op("arange(float start, float end, float step=1, *, dtype dtype=int64) -> Tensor", family="shape", dtypes=NUMBERS,
   infer=_infer_arange, reference=_arange, budget=Composite(k=4, magnitude=_arange_magnitude),
   cost=_write_cost(_infer_arange),
   doc="start, start + step, ... up to and without end: ceil((end - start) / step) numbers, each start + i * step.  "
       "Integer dtypes are exact and need whole arguments.", samples=_ARANGES,
   names={"aten": ("arange.start_step",), "onnx": ("Range",), "paddle": ("arange",)},
   bad=(Bad("step_0", (), ArgumentError, ("step 0", "must not be 0"), {"start": 0.0, "end": 5.0, "step": 0.0}),
        Bad("wrong_way", (), ArgumentError, ("start 0", "end -3", "sign"), {"start": 0.0, "end": -3.0}),
        Bad("not_finite", (), ArgumentError, ("inf", "finite"), {"start": 0.0, "end": float("inf")}),
        Bad("not_whole", (), ArgumentError, ("0.5", "whole"), {"start": 0.0, "end": 3.0, "step": 0.5, **_INT}),
        Bad("too_large", (), ArgumentError, ("uint8", "255"), {"start": 0.0, "end": 300.0, "dtype": BY_NAME["uint8"]}),
        Bad("bool", (), DTypeError, ("bool", "accepts"), {"start": 0.0, "end": 2.0, "dtype": BY_NAME["bool"]})))

op("full(int[] shape, float value, *, dtype dtype=float32) -> Tensor", family="shape", dtypes=ANY, infer=infer_full,
   reference=_full,
   doc="A tensor of one value, rounded to a floating dtype, truncated towards 0 to an integer one, compared with 0 for "
       "bool.",
   budget=Exact(), cost=_write_cost(infer_full), samples=_FULLS,
   names={"aten": ("full",), "onnx": ("ConstantOfShape",), "paddle": ("full",)},
   bad=(Bad("negative_size", (), ShapeError, ("(2, -1)", "negative"), {"shape": (2, -1), "value": 0.0}),
        Bad("too_large", (), ArgumentError, ("300", "uint8", "255"),
            {"shape": (2,), "value": 300.0, "dtype": BY_NAME["uint8"]}),
        Bad("nan_as_int", (), ArgumentError, ("nan", "int32"),
            {"shape": (2,), "value": float("nan"), "dtype": BY_NAME["int32"]}),
        Bad("complex64", (), DTypeError, ("complex64", "accepts"),
            {"shape": (2,), "value": 0.0, "dtype": BY_NAME["complex64"]})))
