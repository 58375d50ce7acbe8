"""constant_pad_nd, reflection_pad1d to 3d, replication_pad1d to 3d, their gradients, and pad over them: what they are.

``pad`` holds pairs (before, after), the last axis first, as in aten; negative entries crop.
How they are computed: kernels/cpu/pad.c, kernels/triton/pad.py.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Exact, Reduction
from .gradient import count
from .infer import need, need_dtype, need_rank, same_dtype
from .record import ANY, FLOATS, NUMBERS, Bad, Cost, In, Sample, Spec, op

__all__ = ["pairs", "padded"]

MODES = ("constant", "reflect", "replicate", "circular")


def pairs(name: str, pad: Sequence[int], ndim: int, last: int) -> list[tuple[int, int]]:
    """(before, after) of every axis, in order.

    Raises:
        ShapeError: an odd number of entries, or more than two for each of the ``last`` axes that may be padded.
    """
    if len(pad) % 2 or len(pad) > 2 * last:
        raise ShapeError(f"{name}: pad {tuple(pad)} has {len(pad)} entries; needs a pair an axis, for {last} axes at most")
    given = [(int(pad[k]), int(pad[k + 1])) for k in range(0, len(pad), 2)][::-1]
    return [(0, 0)] * (ndim - len(given)) + given


def padded(name: str, shape: Sequence[int], pad: Sequence[int], mode: str, last: int) -> tuple[int, ...]:
    """The shape with pads.

    Raises:
        ShapeError: a wrong number of entries, a crop below nothing, or more padding than the mode has elements for.
    """
    sizes, first = [], len(shape) - len(pad) // 2
    for d, (n, (before, after)) in enumerate(zip(shape, pairs(name, pad, len(shape), last), strict=True)):
        m = n + before + after
        if m < 0:
            raise ShapeError(f"{name}: pad ({before}, {after}) crops axis {d} of {n} elements below nothing")
        most = n - 1 if mode == "reflect" else n + min(before, 0) + min(after, 0) if mode == "circular" else None
        if mode != "constant" and d >= first:
            if most is not None and max(before, after) > max(most, 0):
                raise ShapeError(f"{name}: pad ({before}, {after}) on axis {d} of {n} elements; mode {mode} takes up to {max(most, 0)}")
            if n == 0 and m:
                raise ShapeError(f"{name}: axis {d} of x is empty; mode {mode} needs an element to repeat")
        sizes.append(m)
    return tuple(sizes)


def _source(n: int, m: int, before: int, mode: str) -> np.ndarray:
    """Where each of m positions comes from among n; -1: from nowhere.  Circular padding goes around in what is left of a crop."""
    i = np.arange(m) - before
    if mode == "constant":
        return np.where((i >= 0) & (i < n), i, -1)
    if mode == "replicate":
        return np.clip(i, 0, max(n - 1, 0))
    if mode == "circular":
        low, after = max(-before, 0), m - n - before
        return low + (i - low) % max(n - low - max(-after, 0), 1)
    return np.where(i < 0, -i, np.where(i >= n, 2 * (n - 1) - i, i))


def _maps(name: str, shape: Sequence[int], pad: Sequence[int], mode: str) -> list[np.ndarray]:
    out = padded(name, shape, pad, mode, len(shape))
    return [_source(n, m, before, mode) for n, m, (before, _) in zip(shape, out, pairs(name, pad, len(shape), len(shape)), strict=True)]


def _pad(x: np.ndarray, pad: Sequence[int], mode: str, value: float) -> np.ndarray:
    maps = _maps("pad", x.shape, pad, mode)
    if not maps:
        return x.copy()
    if mode != "constant":
        return x[np.ix_(*maps)]
    number = value if x.dtype.kind == "f" else bool(value) if x.dtype.kind == "b" else int(value)
    out = np.full([len(m) for m in maps], number, x.dtype)
    inside = [np.nonzero(m >= 0)[0] for m in maps]
    out[np.ix_(*inside)] = x[np.ix_(*(m[k] for m, k in zip(maps, inside)))]
    return out


def _back(dy: np.ndarray, x: np.ndarray, pad: Sequence[int], mode: str) -> np.ndarray:
    dx = np.zeros(x.shape, dy.dtype)
    np.add.at(dx, np.ix_(*_maps("pad", x.shape, pad, mode)), dy)
    return dx


def _check_value(name: str, x: Spec, value: float) -> None:
    if x.dtype.is_integer:
        info = np.iinfo(x.dtype.numpy)
        need(value == value and info.min <= value < info.max + 1, f"{name}: value {value:g} does not fit {x.dtype} ({info.min} to {info.max})")


def _infer_constant(x: Spec, *, pad: Sequence[int], value: float) -> Spec:
    need_dtype("constant_pad_nd", "x", x, ANY)
    _check_value("constant_pad_nd", x, value)
    return Spec(padded("constant_pad_nd", x.shape, pad, "constant", x.ndim), x.dtype)


def _infer_pad(x: Spec, *, pad: Sequence[int], mode: str, value: float) -> Spec:
    need_dtype("pad", "x", x, ANY)
    if mode == "constant":
        _check_value("pad", x, value)
    return Spec(padded("pad", x.shape, pad, mode, x.ndim if mode == "constant" else min(x.ndim, 3)), x.dtype)


def _cost(infer: Any) -> Any:
    def cost(item: int, x: Spec, **a: Any) -> Cost:
        y = infer(x, **a)
        return Cost(flops=0, bytes=(min(x.size, y.size) + y.size) * x.dtype.itemsize)

    return cost


# ---- gradients -----------------------------------------------------------------------------------------------------------
def _negated(pad: Sequence[int]) -> tuple[int, ...]:
    return tuple(-p for p in pad)


def _constant_grad(o, dy, inputs, y, a):
    return (o.constant_pad_nd(dy, _negated(a["pad"]), 0.0),)


def _around(o: Any, dy: Any, d: int, n: int, before: int, after: int) -> Any:
    """Of circular padding along one axis: the middle, and what stood in front and behind added at the other end; 0 where cropped."""
    def cut(t: Any, front: int, back: int) -> Any:
        return o.constant_pad_nd(t, [*(0, 0) * (t.ndim - 1 - d), front, back], 0.0) if front or back else t

    front, back = max(before, 0), max(after, 0)
    left = n + min(before, 0) + min(after, 0)
    dx = cut(dy, -front, -back)
    if front:
        dx = o.add(dx, cut(cut(dy, 0, front - dy.shape[d]), left - front, 0))
    if back:
        dx = o.add(dx, cut(cut(dy, back - dy.shape[d], 0), 0, left - back))
    return cut(dx, max(-before, 0), max(-after, 0))


def _pad_grad(o, dy, inputs, y, a):
    x, pad, mode = inputs[0], a["pad"], a["mode"]
    if mode == "constant" or not pad:
        return _constant_grad(o, dy, inputs, y, a)
    axes = len(pad) // 2
    if mode == "circular":
        for d, (before, after) in enumerate(pairs("pad", pad, x.ndim, x.ndim)):
            if before or after:
                dy = _around(o, dy, d, x.shape[d], before, after)
        return (dy,)
    back = getattr(o, f"{'reflection' if mode == 'reflect' else 'replication'}_pad{axes}d_backward")
    flat = (count(x.shape[:x.ndim - axes]), *x.shape[x.ndim - axes:])
    return (back(dy.reshape((flat[0], *dy.shape[x.ndim - axes:])), x.reshape(flat), pad).reshape(tuple(x.shape)),)


# ---- samples -------------------------------------------------------------------------------------------------------------
# name, x, pad: a crop, a pad of unpadded trailing axes, one past a Triton block, rows longer than a unit of work
_CONSTANTS = (("vector", (5,), (2, 3)), ("none", (3, 4), ()), ("scalar", (), ()), ("one", (1,), (1, 0)), ("rows", (3, 5), (0, 0, 1, 2)),
              ("both", (2, 3, 5), (1, 2, 3, 0)), ("crop", (4, 7), (-2, 1, 1, -3)), ("crop_all", (4, 3), (-3, 0)), ("nothing", (0, 4), (0, 0, 1, 2)),
              ("batch", (2, 0, 3), (1, 1)), ("all_axes", (2, 1, 3, 2), (1, 0, 0, 1, 2, 0, 0, 1)), ("past_tile", (3, 1025), (1, 1)),
              ("long_rows", (2, 16500), (3, 0)))
_CONSTANT = [Sample(n, (In(x, "wide"),), {"pad": p, "value": 3.0 if n in ("both", "crop", "vector") else 0.0}) for n, x, p in _CONSTANTS] + [
    Sample("resnet_conv1", (In((1, 3, 224, 224)),), {"pad": (3, 3, 3, 3)}, "ResNet-50 first convolution", "inference", ("full", "vision")),
    Sample("swin_windows", (In((1, 50, 68, 192)),), {"pad": (0, 0, 0, 2, 0, 6)}, "Swin-L windows of 7 from an 800 x 1088 image", "full", ("vision",))]
_PADS = [Sample(f"{mode}_{n}", (In(x, "wide"),), {"pad": p, "mode": mode}) for mode, n, x, p in (
    ("constant", "both", (2, 3, 5), (1, 2, 3, 0)), ("reflect", "vector", (5,), (4, 2)), ("reflect", "crop", (3, 7), (-2, 3)),
    ("replicate", "matrix", (2, 3, 4), (2, 5, 1, 0)), ("circular", "vector", (5,), (5, 3)), ("circular", "images", (2, 3, 4, 5), (1, 2, 4, 1)),
    ("circular", "crop", (3, 6), (-1, 2)), ("circular", "volume", (1, 2, 3, 4, 5), (1, 0, 2, 1, 0, 3)), ("replicate", "nothing", (0, 3), (1, 1)),
    ("reflect", "past_tile", (2, 1025), (3, 1)))] + [
    Sample("circular_panorama", (In((1, 64, 128, 256)),), {"pad": (3, 3), "mode": "circular"}, "360 degree images, wrapped sideways", "inference",
           ("full", "vision"))]
# axes -> name, x, pad
_SPATIAL: dict[int, tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]] = {
    1: (("one", (1, 2), (1, 0)), ("both", (2, 3, 7), (3, 6)), ("flat", (3, 5), (2, 4)), ("crop", (2, 9), (-3, 4)), ("uncut", (2, 3, 5), (0, 0)),
        ("no_batch", (0, 3, 4), (1, 2)), ("past_tile", (1, 2, 1025), (5, 3)), ("short", (1, 3, 3), (2, 2))),
    2: (("one", (1, 1, 2, 2), (1, 0, 0, 1)), ("both", (2, 3, 5, 7), (3, 2, 1, 4)), ("flat", (3, 5, 4), (2, 3, 4, 0)), ("crop", (2, 4, 9), (-1, 3, 2, -2)),
        ("no_batch", (0, 2, 3, 3), (1, 1, 1, 1)), ("past_tile", (1, 2, 3, 515), (5, 3, 1, 2))),
    3: (("one", (1, 1, 2, 2, 2), (1, 0, 0, 1, 1, 1)), ("both", (1, 2, 3, 4, 5), (3, 2, 1, 3, 2, 1)), ("flat", (2, 3, 4, 3), (2, 1, 0, 3, 1, 2)),
        ("crop", (1, 4, 5, 6), (-2, 1, 2, -1, -1, 2)), ("past_tile", (1, 1, 3, 5, 131), (5, 3, 1, 2, 1, 0)))}
_WIDER: dict[int, tuple[str, tuple[int, ...], tuple[int, ...]]] = {  # more than a reflection has
    1: ("far", (2, 3), (7, 5)), 2: ("far", (1, 2, 3), (4, 7, 5, 6)), 3: ("far", (1, 2, 1, 3), (4, 3, 2, 5, 3, 2))}
_MODELS: dict[int, tuple[tuple[int, ...], tuple[int, ...], dict[str, str]]] = {
    1: ((1, 1, 480000), (200, 200), {"reflect": "Whisper, 30 s of sound before the Fourier transform", "replicate": "Demucs, 30 s of mono sound"}),
    2: ((1, 3, 256, 256), (3, 3, 3, 3), {"reflect": "CycleGAN generator input", "replicate": "SRCNN, edges repeated"}),
    3: ((1, 16, 16, 56, 56), (1, 1, 1, 1, 1, 1), {"reflect": "3D U-Net volume", "replicate": "CogVideoX causal video blocks"})}


def _make(kind: str, mode: str, axes: int) -> None:
    name, back = f"{kind}_pad{axes}d", f"{kind}_pad{axes}d_backward"

    def check(own: str, x: Spec, pad: Sequence[int]) -> tuple[int, ...]:
        need_rank(own, "x", x, axes + 1, axes + 2)
        if len(pad) != 2 * axes:
            raise ShapeError(f"{own}: pad {tuple(pad)} has {len(pad)} entries; needs {2 * axes}, a pair a spatial axis")
        return padded(own, x.shape, pad, mode, axes)

    def infer(x: Spec, *, pad: Sequence[int]) -> Spec:
        need_dtype(name, "x", x, NUMBERS)
        return Spec(check(name, x, pad), x.dtype)

    def infer_back(dy: Spec, x: Spec, *, pad: Sequence[int]) -> Spec:
        need_dtype(back, "dy", dy, FLOATS)
        same_dtype(back, dy, x)
        want = check(back, x, pad)
        if dy.shape != want:
            raise ShapeError(f"{back}: dy is {dy.shape}; needs {want}, x's shape {x.shape} with the pads")
        return x

    def terms(dy: Spec, x: Spec, *, pad: Sequence[int]) -> int:
        each = [3 if mode == "reflect" else 1 + max(*p, 0) for p in pairs(back, pad, x.ndim, x.ndim)[-axes:]]
        return count(each)

    wider = (_WIDER[axes],) if mode == "replicate" else ()
    shapes = _SPATIAL[axes] + wider
    shape, pad, said = _MODELS[axes]
    ones, full = (1, 1) * axes, (1, 2, *(4,) * axes)
    bad = (Bad("rank", (In((4,)),), ShapeError, ("(4,)", f"{axes + 1} or {axes + 2} axes"), {"pad": ones}),
           Bad("entries", (In(full),), ShapeError, (str(ones[1:]), f"needs {2 * axes}"), {"pad": ones[1:]}),
           *((Bad("too_much", (In(full),), ShapeError, ("pad (4, 1)", "4 elements", "up to 3"), {"pad": (4, *ones[1:])}),) if mode == "reflect" else
             (Bad("crop", (In(full),), ShapeError, ("pad (-5, 0)", "4 elements"), {"pad": (-5, 0, *ones[2:])}),)))
    op(f"{name}(Tensor x, int[] pad) -> Tensor", family="pad", dtypes=NUMBERS, infer=infer, reference=lambda x, *, pad: _pad(x, pad, mode, 0),
       budget=Exact(signed_zero=True), cost=_cost(infer),
       samples=[Sample(n, (In(x, "wide"),), {"pad": p}) for n, x, p in shapes] + [
           Sample("model", (In(shape),), {"pad": pad}, said[mode], "inference", ("full", "vision"))],
       doc=f"x with its last {axes} axes padded by {'their mirror image, without the edge itself' if mode == 'reflect' else 'their edges'}; x has "
           f"{axes + 1} or {axes + 2} axes.", bad=bad, names={"aten": (name,), "onnx": ("Pad",), "paddle": (f"pad{axes}d",)},
       grad=lambda o, dy, inputs, y, a: (getattr(o, back)(dy, inputs[0], a["pad"]),))
    op(f"{back}(Tensor dy, Tensor x, int[] pad) -> Tensor", family="pad", dtypes=FLOATS, infer=infer_back,
       reference=lambda dy, x, *, pad: _back(dy, x, pad, mode), budget=Reduction(terms=terms, magnitude=lambda dy, x, *, pad: _back(np.abs(dy), x, pad, mode)),
       cost=lambda item, dy, x, **a: Cost(flops=dy.size, bytes=(dy.size + x.size) * dy.dtype.itemsize),
       samples=[Sample(n, (In(padded("", x, p, mode, axes)), In(x)), {"pad": p}) for n, x, p in shapes] + [
           Sample("model", (In(padded("", shape, pad, mode, axes)), In(shape)), {"pad": pad}, said[mode], "training", ("full",))],
       doc=f"Gradient of {name} at x, of which only the shape counts.", names={"aten": (back,), "paddle": (f"pad{axes}d_grad",)},
       bad=(Bad("dy_shape", (In(full), In(full)), ShapeError, (str(full), str((1, 2, *(6,) * axes))), {"pad": ones}),
            Bad("dtypes", (In((1, 2, *(6,) * axes)), In(full, dtype="float64")), DTypeError, ("float32", "float64"), {"pad": ones})))


op("constant_pad_nd(Tensor x, int[] pad, float value=0) -> Tensor", family="pad", dtypes=ANY, infer=_infer_constant,
   reference=lambda x, *, pad, value: _pad(x, pad, "constant", value), budget=Exact(signed_zero=True), cost=_cost(_infer_constant), samples=_CONSTANT,
   doc="x with value around it: pad holds pairs (before, after), the last axis first; negative entries crop.", grad=_constant_grad,
   names={"aten": ("constant_pad_nd",), "onnx": ("Pad",), "paddle": ("pad",)},
   bad=(Bad("odd", (In((3, 4)),), ShapeError, ("(1, 2, 3)", "3 entries"), {"pad": (1, 2, 3)}),
        Bad("too_many", (In((3,)),), ShapeError, ("4 entries", "1 axes"), {"pad": (1, 1, 1, 1)}),
        Bad("crop", (In((3, 4)),), ShapeError, ("(-3, -2)", "axis 1"), {"pad": (-3, -2)}),
        Bad("value", (In((3,), "int"),), ArgumentError, ("300", "uint8", "255"), {"pad": (1, 1), "value": 300.0}, dtype="uint8")))

for _kind, _mode in (("reflection", "reflect"), ("replication", "replicate")):
    for _axes in (1, 2, 3):
        _make(_kind, _mode, _axes)

op("pad(Tensor x, int[] pad, {constant|reflect|replicate|circular} mode=constant, float value=0) -> Tensor", family="pad", dtypes=ANY,
   infer=_infer_pad, reference=lambda x, *, pad, mode, value: _pad(x, pad, mode, value), budget=Exact(signed_zero=True), cost=_cost(_infer_pad),
   samples=_PADS, doc="x padded by pairs (before, after), the last axis first: with value, the mirror image, the edges, or the other end; "
                      "negative entries crop, before circular padding goes around.  All modes but constant pad 3 axes at most.", grad=_pad_grad,
   names={"torch": ("pad",), "onnx": ("Pad",), "paddle": ("pad3d",)},
   bad=(Bad("reflect", (In((3, 4)),), ShapeError, ("pad (4, 0)", "up to 3"), {"pad": (4, 0), "mode": "reflect"}),
        Bad("circular", (In((3, 4)),), ShapeError, ("pad (5, 0)", "up to 4"), {"pad": (5, 0), "mode": "circular"}),
        Bad("empty", (In((3, 0)),), ShapeError, ("axis 1", "empty"), {"pad": (1, 0), "mode": "replicate"}),
        Bad("axes", (In((1, 1, 2, 2)),), ShapeError, ("8 entries", "3 axes"), {"pad": (1,) * 8, "mode": "replicate"})))
