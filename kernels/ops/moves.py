"""flip, roll, repeat, repeat_interleave, stack, diag_embed, one_hot, fill, linspace: movement and creation, what they are.

How they are computed: kernels/cpu/moves.c, kernels/triton/moves.py.  Not here: copy, cat, tril, triu, arange, full (shape.py).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...hal.dtype import BY_NAME, DType
from ...hal.errors import ArgumentError, DTypeError, IndexOutOfBounds, ShapeError
from .budget import Composite, Exact
from .gradient import count, zeros
from .infer import axis, need, need_dtype, same_dtype
from .record import ANY, FLOATS, Bad, Cost, In, Sample, Spec, op

_I64 = BY_NAME["int64"]
_RANK = 8  # axes of a tensor at most


def _dims(name: str, dims: Sequence[int], ndim: int) -> list[int]:
    found = [axis(name, d, ndim) for d in dims]
    if len(set(found)) < len(found):
        raise ShapeError(f"{name}: dims {tuple(dims)} name an axis twice; name each once")
    return found


def _infer_flip(x: Spec, *, dims: Sequence[int]) -> Spec:
    need_dtype("flip", "x", x, ANY)
    _dims("flip", dims, x.ndim)
    return x


def _infer_roll(x: Spec, *, shifts: Sequence[int], dims: Sequence[int]) -> Spec:
    need_dtype("roll", "x", x, ANY)
    if len(shifts) != len(dims) and (len(dims) or len(shifts) != 1):
        raise ShapeError(f"roll: {len(shifts)} shifts and {len(dims)} dims; needs a shift an axis, or one shift and no dims")
    for d in dims:
        axis("roll", d, x.ndim)
    return x


def _infer_repeat(x: Spec, *, repeats: Sequence[int]) -> Spec:
    need_dtype("repeat", "x", x, ANY)
    if len(repeats) < x.ndim:
        raise ShapeError(f"repeat: repeats {tuple(repeats)} has {len(repeats)} entries and x {x.ndim} axes; needs one an axis at least")
    need(all(r >= 0 for r in repeats), f"repeat: repeats {tuple(repeats)}; needs 0 or more in every entry")
    shape = (1,) * (len(repeats) - x.ndim) + x.shape
    return Spec(tuple(r * s for r, s in zip(repeats, shape)), x.dtype)


def _infer_repeat_interleave(x: Spec, *, repeats: int, dim: int | None) -> Spec:
    need_dtype("repeat_interleave", "x", x, ANY)
    need(repeats >= 0, f"repeat_interleave: repeats {repeats}; needs 0 or more")
    if dim is None:
        return Spec((x.size * repeats,), x.dtype)
    d = axis("repeat_interleave", dim, x.ndim)
    shape = x.shape or (1,)
    return Spec((*shape[:d], shape[d] * repeats, *shape[d + 1:]), x.dtype)


def _infer_stack(tensors: tuple[Spec, ...], *, dim: int) -> Spec:
    need(len(tensors) > 0, "stack: no tensors came; needs one at least")
    dtype = same_dtype("stack", *tensors)
    need_dtype("stack", "tensors[0]", tensors[0], ANY)
    first = tensors[0].shape
    for i, t in enumerate(tensors):
        if t.shape != first:
            raise ShapeError(f"stack: tensors[0] is {first} and tensors[{i}] is {t.shape}; they must be equal")
    if len(first) == _RANK:
        raise ShapeError(f"stack: tensors of {_RANK} axes; the result would have one more than a tensor may")
    d = axis("stack", dim, len(first) + 1)
    return Spec((*first[:d], len(tensors), *first[d:]), dtype)


def _infer_diag_embed(x: Spec, *, offset: int, dim1: int, dim2: int) -> Spec:
    need_dtype("diag_embed", "x", x, ANY)
    if not 1 <= x.ndim < _RANK:
        raise ShapeError(f"diag_embed: x has shape {x.shape}; needs 1 to {_RANK - 1} axes")
    a, b = axis("diag_embed", dim1, x.ndim + 1), axis("diag_embed", dim2, x.ndim + 1)
    if a == b:
        raise ShapeError(f"diag_embed: dim1 {dim1} and dim2 {dim2} are the same axis; they must differ")
    n, rest = x.shape[-1] + abs(offset), iter(x.shape[:-1])
    return Spec(tuple(n if d in (a, b) else next(rest) for d in range(x.ndim + 1)), x.dtype)


def _infer_one_hot(x: Spec, *, num_classes: int) -> Spec:
    need_dtype("one_hot", "x", x, (_I64, BY_NAME["int32"]))
    need(num_classes > 0, f"one_hot: num_classes is {num_classes}; needs 1 or more")
    if x.ndim == _RANK:
        raise ShapeError(f"one_hot: x has {_RANK} axes; the result would have one more than a tensor may")
    return Spec((*x.shape, num_classes), _I64)


def _infer_fill(x: Spec, value: Spec) -> Spec:
    need_dtype("fill", "x", x, ANY)
    same_dtype("fill", x, value)
    if value.ndim:
        raise ShapeError(f"fill: value is {value.shape}; needs a number or a tensor without axes")
    return x


def _infer_linspace(*, start: float, end: float, steps: int, dtype: DType) -> Spec:
    if dtype not in FLOATS:
        raise DTypeError(f"linspace: dtype is {dtype}; accepts {', '.join(map(str, FLOATS))}")
    need(math.isfinite(start) and math.isfinite(end), f"linspace: start {start:g}, end {end:g}; both must be finite")
    need(steps >= 0, f"linspace: steps is {steps}; needs 0 or more")
    return Spec((steps,), dtype)


# ---- references ----------------------------------------------------------------------------------------------------------
def _flip(x, *, dims):
    return np.flip(x, tuple(dims)).copy() if x.ndim else x.copy()


def _roll(x, *, shifts, dims):
    if not x.ndim or not x.size:
        return x.copy()
    return np.roll(x, tuple(shifts), tuple(dims)) if len(dims) else np.roll(x, shifts[0])


def _diag_embed(x, *, offset, dim1, dim2):
    n = x.shape[-1]
    out = np.zeros((*x.shape[:-1], n + abs(offset), n + abs(offset)), x.dtype)
    i = np.arange(n)
    out[..., i + max(-offset, 0), i + max(offset, 0)] = x
    return np.moveaxis(out, (-2, -1), (dim1, dim2))


def _one_hot(x, *, num_classes):
    flat = x.reshape(-1)
    bad = (flat < 0) | (flat >= num_classes)
    if bad.any():
        at = int(bad.argmax())
        raise IndexOutOfBounds(f"one_hot: class {flat[at]} at position {at} is outside 0 <= class < {num_classes}")
    return (x[..., None] == np.arange(num_classes)).astype(np.int64)


def _linspace(*, start, end, steps, dtype):
    return np.linspace(start, end, steps)


def _linspace_magnitude(*, start, end, steps, dtype):
    return np.full(steps, abs(start) + abs(end))


# ---- cost, gradients -------------------------------------------------------------------------------------------------------
def _moves(infer: Any) -> Any:
    """What is needed of x read, the result written once."""
    def cost(item: int, *given: Any, **a: Any) -> Cost:
        y = infer(*given, **a)
        flat = [s for g in given for s in (g if isinstance(g, (tuple, list)) else (g,))]
        read = sum(s.size * s.dtype.itemsize for s in flat)
        return Cost(flops=0, bytes=min(read, y.size * y.dtype.itemsize) + y.size * y.dtype.itemsize)

    return cost


def _repeat_grad(o, dy, inputs, y, a):
    """Axis by axis: (before, repeats, size, behind) summed over the second."""
    shape = tuple(inputs[0].shape)
    times = a["repeats"]
    sizes = (1,) * (len(times) - len(shape)) + shape
    for d, r in enumerate(times):
        behind = count(dy.shape[d + 1:])
        done = sizes[:d + 1] + tuple(dy.shape[d + 1:])
        dy = o.sum(dy.reshape((count(sizes[:d]), r, sizes[d] * behind)), 1).reshape(done)
    return (dy.reshape(shape),)


def _repeat_interleave_grad(o, dy, inputs, y, a):
    shape = tuple(inputs[0].shape)
    d = len(shape) - 1 if a["dim"] is None or not shape else axis("", a["dim"], len(shape))
    before, behind = count(shape[:d + 1]), count(shape[d + 1:])
    return (o.sum(dy.reshape((before, a["repeats"], behind)), 1).reshape(shape),)


def _stack_grad(o, dy, inputs, y, a):
    d = axis("stack", a["dim"], dy.ndim)
    parts = (o.index_select(dy, d, o.full((1,), float(i), dtype=_I64)) for i in range(dy.shape[d]))
    return (tuple(p.reshape(tuple(t.shape)) for p, t in zip(parts, inputs[0])),)


def _diag_embed_grad(o, dy, inputs, y, a):
    x, offset = inputs[0], a["offset"]
    n = x.shape[-1]
    one, two = axis("", a["dim1"], dy.ndim), axis("", a["dim2"], dy.ndim)
    rest = [d for d in range(dy.ndim) if d not in (one, two)]
    i = [o.arange(float(max(k, 0)), float(max(k, 0) + n), 1.0, dtype=_I64) for k in (-offset, offset)]
    return (o.index(dy.permute((*rest, one, two)), *(None,) * len(rest), *i),)


def _fill_grad(o, dy, inputs, y, a):
    return zeros(o, inputs[0].shape, dy.dtype), o.sum(dy)


# ---- samples -------------------------------------------------------------------------------------------------------------
def _of(rows: Any, *names: str) -> list[Sample]:
    return [Sample(n, (In(x, "wide"),), dict(zip(names, a))) for n, x, *a in rows]


_FLIPS = _of((("vector", (5,), (0,)), ("none", (3, 4), ()), ("scalar", (), (0,)), ("one", (1, 1), (0, 1)), ("rows", (3, 5), (0,)),
              ("columns", (7, 13), (-1,)), ("both", (2, 3, 5), (0, 2)), ("nothing", (0, 4), (0, 1)), ("past_tile", (3, 1025), (1,))), "dims") + [
    Sample("mirrored_images", (In((8, 3, 224, 224)),), {"dims": (3,)}, "ImageNet batch of 8 mirrored", "full", ("full", "vision")),
    Sample("mirrored_image", (In((1, 3, 224, 224)),), {"dims": (3,)}, "ImageNet image mirrored", "inference")]
_ROLLS = _of((("vector", (5,), (2,), (0,)), ("flat", (3, 5), (4,), ()), ("backwards", (7, 13), (-3,), (1,)), ("both", (4, 5, 3), (1, -2), (0, 2)),
              ("twice", (5, 3), (1, 2), (0, 0)), ("far", (5, 3), (17,), (0,)), ("scalar", (), (3,), (0,)), ("still", (4, 3), (4,), (0,)),
              ("nothing", (0, 3), (1,), (0,)), ("past_tile", (2, 1025), (1000,), (1,))), "shifts", "dims") + [
    Sample("flat_transposed", (In((3, 5), "wide", layout="transposed"),), {"shifts": (-4,), "dims": ()}),
    Sample("swin_shift", (In((1, 56, 56, 96)),), {"shifts": (-3, -3), "dims": (1, 2)}, "Swin-T shifted windows, stage 1", "inference",
           ("full", "vision"))]
_REPEATS = _of((("vector", (5,), (3,)), ("scalar", (), (4,)), ("more_axes", (3, 4), (2, 1, 3)), ("rows", (3, 5), (4, 1)), ("columns", (3, 5), (1, 4)),
                ("none", (2, 3), (1, 1)), ("zero", (2, 3), (0, 2)), ("nothing", (0, 3), (2, 2)), ("past_tile", (2, 1025), (2, 2)),
                ("many_axes", (2, 2, 2, 2, 2), (2, 2, 2, 2, 2))), "repeats") + [
    Sample("query_tokens", (In((1, 32, 768)),), {"repeats": (8, 1, 1)}, "BLIP-2 query tokens, batch 8", "inference", ("full", "vision"))]
_INTERLEAVES = _of((("vector", (5,), 3, 0), ("fourfold", (7,), 4, -1), ("flat", (3, 4), 2, None), ("scalar", (), 3, 0), ("rows", (3, 5), 4, 0), ("columns", (3, 5), 2, -1),
                    ("inner", (2, 3, 4), 3, 1), ("zero", (2, 3), 0, 0), ("once", (2, 3), 1, 1), ("nothing", (0, 3), 2, 1),
                    ("eight_axes", (2,) * 8, 2, 3), ("eight_flat", (2,) * 8, 2, None), ("past_tile", (2, 1025), 2, 1)),
                   "repeats", "dim") + [
    Sample("shared_keys", (In((1, 8, 512, 128)),), {"repeats": 4, "dim": 1}, "Llama-3-8B keys for 32 query heads", "inference", ("full", "llm"))]
_STACKS = [Sample(n, (tuple(In(s, "wide") for _ in range(k)),), {"dim": d}) for n, s, k, d in (
    ("one_tensor", (5,), 1, 0), ("vectors", (7,), 3, 0), ("scalars", (), 4, 0), ("columns", (7,), 3, -1), ("inner", (3, 5), 2, 1), ("last", (3, 5), 4, 2),
    ("nothing", (0, 3), 2, 1), ("past_tile", (1025,), 2, 1), ("many", (2,), 13, 0))] + [
    Sample("rotary_pairs", (tuple(In((1, 512, 32, 64)) for _ in range(2)),), {"dim": -1}, "GPT-J rotary halves", "inference", ("full", "llm"))]
_DIAGONALS = _of((("vector", (5,), 0, -2, -1), ("above", (4,), 2, -2, -1), ("below", (3,), -1, -2, -1), ("batch", (2, 3, 4), 0, -2, -1),
                  ("front", (2, 4), 1, 0, 1), ("swapped", (2, 4), 1, -1, 0), ("one", (1,), 0, 0, 1), ("nothing", (3, 0), 0, -2, -1),
                  ("no_batch", (0, 3), 1, -2, -1), ("past_tile", (2, 33), 0, -2, -1)), "offset", "dim1", "dim2") + [
    Sample("ssm_state", (In((4, 256, 64)),), {}, "S4 diagonal state matrices", "inference", ("full",))]
_HOTS = [Sample(n, (In(x, "index", t, k),), {"num_classes": k}) for n, x, t, k in (
    ("vector", (13,), "int64", 7), ("scalar", (), "int64", 3), ("one", (1,), "int64", 1), ("matrix", (3, 5), "int32", 11), ("nothing", (0, 4), "int64", 5),
    ("long", (1030,), "int64", 3), ("past_tile", (3,), "int64", 1027))] + [
    Sample("expert_mask", (In((4096, 2), "index", "int64", 8),), {"num_classes": 8}, "Mixtral-8x7B expert mask of 4096 tokens", "inference",
           ("full", "llm"))]
_FILLS = [Sample(n, (In(x), In(()))) for n, x in (("scalar", ()), ("one", (1,)), ("prime", (7, 13)), ("nothing", (3, 0)), ("past_tile", (3, 1025)))] + [
    Sample("nan", (In((3,)), In((), values=(float("nan"),), dtype=None))), Sample("square_2048", (In((2048, 2048)), In(())), {}, "", "full", ("full",)),
    Sample("attention_mask", (In((1, 12, 128, 128)), In(())), {}, "BERT-base attention mask", "inference")]
_F32 = {"dtype": BY_NAME["float32"]}
_LINES = [Sample(n, (), {"start": a, "end": b, "steps": k, **more}) for n, a, b, k, more in (
    ("unit", 0.0, 1.0, 11, {}), ("one", 3.0, 7.0, 1, {}), ("two", -1.0, 1.0, 2, {}), ("nothing", 0.0, 1.0, 0, {}), ("down", 5.0, -3.0, 17, {}),
    ("still", 2.5, 2.5, 4, {}), ("past_tile", -1.0, 1.0, 1027, _F32), ("tenths", 0.0, 200.0, 2001, _F32), ("thirds", 0.1, 0.7, 10, _F32))] + [
    Sample("diffusion_betas", (), {"start": 0.00085**0.5, "end": 0.012**0.5, "steps": 1000, **_F32}, "Stable Diffusion noise schedule", "inference",
           ("full",))]
_E = Exact(signed_zero=True)

op("flip(Tensor x, int[] dims) -> Tensor", family="moves", dtypes=ANY, infer=_infer_flip, rule="same", reference=_flip, budget=_E,
   cost=_moves(_infer_flip), samples=_FLIPS, doc="x backwards along each of dims.", grad=lambda o, dy, inputs, y, a: (o.flip(dy, a["dims"]),),
   names={"aten": ("flip",), "paddle": ("flip",)},
   bad=(Bad("dim", (In((3, 4)),), ShapeError, ("dim 2", "-2 <= dim < 2"), {"dims": (2,)}),
        Bad("twice", (In((3, 4)),), ShapeError, ("(0, -2)", "twice"), {"dims": (0, -2)})))

op("roll(Tensor x, int[] shifts, int[] dims=[]) -> Tensor", family="moves", dtypes=ANY, infer=_infer_roll, rule="same", reference=_roll, budget=_E,
   cost=_moves(_infer_roll), samples=_ROLLS, names={"aten": ("roll",), "paddle": ("roll",)},
   doc="x moved by shifts along dims, what leaves at one end entering at the other; without dims along the flattened x.",
   grad=lambda o, dy, inputs, y, a: (o.roll(dy, tuple(-s for s in a["shifts"]), a["dims"]),),
   bad=(Bad("lengths", (In((3, 4)),), ShapeError, ("2 shifts", "1 dims"), {"shifts": (1, 2), "dims": (0,)}),
        Bad("dim", (In((3, 4)),), ShapeError, ("dim 2", "-2 <= dim < 2"), {"shifts": (1,), "dims": (2,)})))

op("repeat(Tensor x, int[] repeats) -> Tensor", family="moves", dtypes=ANY, infer=_infer_repeat, budget=_E, cost=_moves(_infer_repeat), samples=_REPEATS,
   reference=lambda x, *, repeats: np.tile(x, tuple(repeats)), names={"aten": ("repeat",), "onnx": ("Tile",), "paddle": ("tile",)}, grad=_repeat_grad,
   doc="x as often as repeats says along each axis, one copy after another; more entries than axes are new axes in front.",
   bad=(Bad("few", (In((3, 4)),), ShapeError, ("(2,)", "2 axes"), {"repeats": (2,)}),
        Bad("negative", (In((3,)),), ArgumentError, ("(-1,)", "0 or more"), {"repeats": (-1,)})))

op("repeat_interleave(Tensor x, int repeats, int? dim=None) -> Tensor", family="moves", dtypes=ANY, infer=_infer_repeat_interleave, budget=_E,
   reference=lambda x, *, repeats, dim: np.repeat(x, repeats, dim), cost=_moves(_infer_repeat_interleave), samples=_INTERLEAVES,
   doc="Each element of x (dim None: of the flattened x; else each slice along dim) repeats times, one after the other.",
   names={"torch": ("repeat_interleave",), "paddle": ("repeat_interleave",)}, grad=_repeat_interleave_grad,
   bad=(Bad("negative", (In((3,)),), ArgumentError, ("repeats -1", "0 or more"), {"repeats": -1}),
        Bad("dim", (In((3,)),), ShapeError, ("dim 1", "-1 <= dim < 1"), {"repeats": 2, "dim": 1})))

op("stack(Tensor[] tensors, int dim=0) -> Tensor", family="moves", dtypes=ANY, infer=_infer_stack, budget=_E, cost=_moves(_infer_stack), samples=_STACKS,
   reference=lambda tensors, *, dim: np.stack(tensors, dim), doc="Tensors of one shape side by side along a new axis dim.", grad=_stack_grad,
   names={"aten": ("stack",), "onnx": ("ConcatFromSequence",), "paddle": ("stack",)},
   bad=(Bad("sizes", ((In((2, 3)), In((3, 3))),), ShapeError, ("tensors[1]", "(2, 3)", "(3, 3)")), Bad("none", ((),), ArgumentError, ("no tensors",)),
        Bad("dim", ((In((2, 3)), In((2, 3))),), ShapeError, ("dim 3", "-3 <= dim < 3"), {"dim": 3}),
        Bad("dtypes", ((In((2,)), In((2,), "int", "int32")),), DTypeError, ("float32", "int32"))))

op("diag_embed(Tensor x, int offset=0, int dim1=-2, int dim2=-1) -> Tensor", family="moves", dtypes=ANY, infer=_infer_diag_embed, budget=_E,
   reference=_diag_embed, cost=_moves(_infer_diag_embed), samples=_DIAGONALS, names={"aten": ("diag_embed",), "paddle": ("diag_embed",)},
   doc="Matrices of axes dim1 and dim2 whose diagonal, offset above the main one, is the last axis of x; 0 elsewhere.", grad=_diag_embed_grad,
   bad=(Bad("scalar", (In(()),), ShapeError, ("()", "1 to 7 axes")), Bad("axes", (In((3,)),), ShapeError, ("dim1 0", "dim2 -2"), {"dim1": 0, "dim2": -2})))

op("one_hot(Tensor x, int num_classes) -> Tensor", family="moves", dtypes=(_I64,), infer=_infer_one_hot, budget=Exact(), reference=_one_hot,
   cost=_moves(_infer_one_hot), samples=_HOTS, names={"torch": ("one_hot",), "onnx": ("OneHot",), "paddle": ("one_hot",)},
   doc="1 at each class of x (int64 or int32) along a new last axis of num_classes, 0 elsewhere; int64.",
   bad=(*(Bad(f"class_{v[-1]}_of_5".replace("-", "minus_"), (In((3,), dtype="int64", values=v),), IndexOutOfBounds, (str(v[-1]), "position 2", "5"),
              {"num_classes": 5}, dtype="int64") for v in ((0, 4, 5), (0, 4, -1))),
        Bad("classes", (In((3,), dtype="int64", values=(0, 0, 0)),), ArgumentError, ("num_classes is 0",), {"num_classes": 0}, dtype="int64"),
        Bad("float", (In((3,), dtype="float32"),), DTypeError, ("float32", "int64"), {"num_classes": 3}, dtype="int64")))

op("fill(Tensor x, Tensor value) -> Tensor", family="moves", dtypes=ANY, infer=_infer_fill, rule="same", budget=_E, samples=_FILLS, grad=_fill_grad,
   reference=lambda x, value: np.full(x.shape, value), cost=lambda item, x, value: Cost(flops=0, bytes=x.size * x.dtype.itemsize),
   doc="A tensor of x's shape and dtype that holds one value, a number or a tensor without axes.",
   names={"aten": ("fill.Scalar", "fill.Tensor"), "paddle": ("fill",)},
   bad=(Bad("vector", (In((3,)), In((1,))), ShapeError, ("value", "(1,)")),
        Bad("dtypes", (In((3,)), In((), dtype="float64")), DTypeError, ("float32", "float64"))))

op("linspace(float start, float end, int steps, *, dtype dtype=float32) -> Tensor", family="moves", dtypes=FLOATS, infer=_infer_linspace,
   reference=_linspace, budget=Composite(k=4, magnitude=_linspace_magnitude), samples=_LINES,
   cost=lambda item, **a: Cost(flops=2 * a["steps"], bytes=a["steps"] * a["dtype"].itemsize), names={"aten": ("linspace",), "paddle": ("linspace",)},
   doc="steps numbers from start to end, both among them, at equal distances; counted from the nearer end.",
   bad=(Bad("steps", (), ArgumentError, ("steps is -1",), {"start": 0.0, "end": 1.0, "steps": -1}),
        Bad("infinite", (), ArgumentError, ("inf", "finite"), {"start": 0.0, "end": float("inf"), "steps": 3}),
        Bad("int32", (), DTypeError, ("int32", "accepts"), {"start": 0.0, "end": 1.0, "steps": 3, "dtype": BY_NAME["int32"]})))
