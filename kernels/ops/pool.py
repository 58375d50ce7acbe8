"""Average and maximum pooling, adaptive pooling and their gradients: what they are.  How: kernels/cpu/pooling.c, kernels/triton/pool.py.

Images are (N, C, ...) or (C, ...) with one to three spatial axes; attributes with one entry hold for every spatial axis.
An index counts positions of one image in row-major order.  Not here: convolution (conv.py), means over whole axes (reduce.py).
"""
from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, IndexOutOfBounds, ShapeError
from .budget import Exact, Reduction
from .conv import spread_over
from .gradient import count
from .infer import inner, need, need_dtype, need_rank, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op

_I64 = BY_NAME["int64"]


# ---- windows --------------------------------------------------------------------------------------------------------
class Window(NamedTuple):
    """What one result sees along one axis: ``positions`` inside the image, and how many count for a mean."""

    positions: range
    counted: int


def _result_size(size: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> int:
    """How many windows fit; with ceil_mode the last may start inside the image or its left padding and end outside."""
    room = size + 2 * p - d * (k - 1) - 1
    n = (room + (s - 1 if ceil_mode else 0)) // s + 1
    return n - 1 if ceil_mode and (n - 1) * s >= size + p else n


def _along(size: int, k: int, s: int, p: int, d: int, n: int, include_pad: bool) -> list[Window]:
    found = []
    for i in range(n):
        start = i * s - p
        seen = range(start + -(min(start, 0) // d) * d, min(start + d * (k - 1) + 1, size), d)
        found.append(Window(seen, min(start + k, size + p) - start if include_pad else len(seen)))
    return found


def _parts(size: int, n: int) -> list[Window]:
    """Adaptive pooling: n windows from floor(i size / n) to ceil((i + 1) size / n)."""
    spans = [range(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]
    return [Window(r, len(r)) for r in spans]


def _images(name: str, what: str, x: Spec, axes: int) -> tuple[int, ...]:
    """The spatial shape."""
    need_dtype(name, what, x, FLOATS)
    need_rank(name, what, x, axes + 1, axes + 2)
    if 0 in x.shape[-axes - 1:]:
        raise ShapeError(f"{name}: {what} is {x.shape}; only the batch may be empty")
    return x.shape[-axes:]


def _geometry(name: str, size: Sequence[int], kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool):
    """(kernel, stride, padding, dilation, result size), checked."""
    axes = len(size)
    k = spread_over(name, "kernel_size", kernel_size, axes, 1)
    s = spread_over(name, "stride", stride, axes, 1) if tuple(stride) else k
    p, d = spread_over(name, "padding", padding, axes, 0), spread_over(name, "dilation", dilation, axes, 1)
    for a, b, e in zip(p, k, d):
        need(2 * a <= e * (b - 1) + 1, f"{name}: padding {p} with kernel_size {k}; needs half of the kernel at most")
    out = tuple(_result_size(n, b, a, c, e, ceil_mode) for n, b, a, c, e in zip(size, k, s, p, d))
    if min(out) < 1:
        raise ShapeError(f"{name}: images of {tuple(size)} with kernel_size {k}, stride {s}, padding {p}, dilation {d} give {out}; "
                         f"needs 1 or more along each axis")
    for n, a, b, e in zip(size, s, p, d):  # dilation past the image: the taps of a window in the padding may step over it
        if n < e and any((i * a - b) % e >= n for i in range(-(-b // a))):
            raise ShapeError(f"{name}: images of {tuple(size)} with padding {p}, dilation {d}: a window sees no position of the image")
    return k, s, p, d, out


def _grid(size, k, s, p, d, out, include_pad=False) -> list[list[Window]]:
    return [_along(n, b, a, c, e, y, include_pad) for n, b, a, c, e, y in zip(size, k, s, p, d, out)]


def _cells(grid: list[list[Window]]) -> Iterator[tuple[tuple[int, ...], tuple[range, ...], int]]:
    """(place in the result, positions along each axis, product of the counts)."""
    for at in itertools.product(*(range(len(g)) for g in grid)):
        seen = [g[i] for g, i in zip(grid, at)]
        yield at, tuple(w.positions for w in seen), count([w.counted for w in seen])


def _slices(seen: tuple[range, ...]) -> tuple[slice, ...]:
    return tuple(slice(r.start, r.stop, r.step) for r in seen)


# ---- references -------------------------------------------------------------------------------------------------------
def _mean_of(x, grid, divisor=None):
    y = np.zeros((*x.shape[:-len(grid)], *map(len, grid)))
    over = tuple(range(-len(grid), 0))
    with np.errstate(all="ignore"):
        for at, seen, n in _cells(grid):
            y[inner(at)] = x[inner(_slices(seen))].sum(over) / (divisor or n)
    return y


def _mean_back(dy, shape, grid, divisor=None):
    dx = np.zeros(shape)
    with np.errstate(all="ignore"):
        for at, seen, n in _cells(grid):
            dx[inner(_slices(seen))] += (dy[inner(at)] / (divisor or n))[inner((None,) * len(grid))]
    return dx


def _max_of(x, grid):
    """The largest of each window and its index: the first of equals, but the last NaN (as aten's loop finds them)."""
    axes, lead = len(grid), x.shape[:-len(grid)]
    flat = np.arange(count(x.shape[-axes:])).reshape(x.shape[-axes:])
    y, index = np.zeros((*lead, *map(len, grid))), np.zeros((*lead, *map(len, grid)), np.int64)
    for at, seen, _ in _cells(grid):
        window = x[inner(_slices(seen))].reshape(*lead, count([len(r) for r in seen]))
        nan = np.isnan(window)
        best = np.where(nan.any(-1), window.shape[-1] - 1 - nan[..., ::-1].argmax(-1), np.where(nan, -np.inf, window).argmax(-1))
        y[inner(at)] = np.take_along_axis(window, best[..., None], -1)[..., 0]
        index[inner(at)] = flat[_slices(seen)].reshape(-1)[best]
    return y, index


def _max_back(name, dy, x, index):
    axes = 3 if "3d" in name else 2
    size = count(x.shape[-axes:])
    i = index.reshape(-1, count(dy.shape[-axes:]))
    bad = np.flatnonzero((index < 0) | (index >= size))
    if bad.size:
        raise IndexOutOfBounds(f"{name}: index {index.reshape(-1)[bad[0]]} at position {bad[0]} is outside 0 <= index < {size}")
    dx = np.zeros((i.shape[0], size))
    with np.errstate(all="ignore"):
        np.add.at(dx, (np.arange(i.shape[0])[:, None], i), dy.reshape(i.shape))
    return dx.reshape(x.shape)


# ---- average ----------------------------------------------------------------------------------------------------------
def _avg_windows(name, size, a):
    k, s, p, d, out = _geometry(name, size, a["kernel_size"], a["stride"], a["padding"], (1,), a["ceil_mode"])
    divisor = a.get("divisor_override")
    need(divisor != 0, f"{name}: divisor_override 0; needs another number, or None")
    return _grid(size, k, s, p, d, out, a["count_include_pad"]), out


def _make_avg(axes: int) -> None:
    name, back = f"avg_pool{axes}d", f"avg_pool{axes}d_backward"
    more = "" if axes == 1 else ", int? divisor_override=None"
    schema = f"int[] kernel_size, int[] stride=[], int[] padding=[0], bool ceil_mode=false, bool count_include_pad=true{more}"

    def infer(x: Spec, **a: Any) -> Spec:
        return Spec((*x.shape[:-axes], *_avg_windows(name, _images(name, "x", x, axes), a)[1]), x.dtype)

    def infer_back(dy: Spec, x: Spec, **a: Any) -> Spec:
        y = Spec((*x.shape[:-axes], *_avg_windows(back, _images(back, "x", x, axes), a)[1]), x.dtype)
        _same_as_result(back, dy, y)
        return x

    def grad(o, dy, inputs, y, a):
        x = inputs[0]
        if axes > 1:
            return (getattr(o, back)(dy, x, *(a[k] for k in ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
                                                             "divisor_override"))),)
        flat = o.avg_pool2d_backward(_flat(dy), _flat(x), *(_flat_attr(a[k], v) for k, v in (("kernel_size", 1), ("stride", 1), ("padding", 0))),
                                     a["ceil_mode"], a["count_include_pad"], None)
        return (flat.reshape(tuple(x.shape)),)

    def terms(x: Spec, **a: Any) -> int:
        return count(spread_over(name, "kernel_size", a["kernel_size"], axes, 1))

    def back_terms(dy: Spec, x: Spec, **a: Any) -> int:
        k = spread_over(name, "kernel_size", a["kernel_size"], axes, 1)
        s = spread_over(name, "stride", a["stride"], axes, 1) if tuple(a["stride"]) else k
        return count([-(-m // n) for m, n in zip(k, s)])

    samples = [Sample(n, (In(x),), dict(a)) for n, x, a in _AVG[axes]]
    if axes > 1:
        samples.append(Sample("divisor", (In(_AVG[axes][1][1]),), {**_AVG[axes][1][2], "divisor_override": 7}))
    models = [Sample(n, (In(x),), a, m, lv, b) for n, x, a, m, lv, b in _AVG_MODELS.get(axes, ())]
    small = (1, 2, *(4,) * axes)
    bad = _bad(small, {"kernel_size": (2,)})
    op(f"{name}(Tensor x, {schema}) -> Tensor", family="pool", dtypes=FLOATS, infer=infer,
       reference=lambda x, **a: _mean_of(x, _avg_windows(name, x.shape[-axes:], a)[0], a.get("divisor_override")),
       budget=Reduction(terms=terms, probe=False), cost=_window_cost(infer, terms), samples=samples + models, bad=bad, grad=grad,
       doc=f"Mean of each window of {axes} spatial {'axis' if axes == 1 else 'axes'}; stride () is kernel_size.  Positions outside the "
           "image add 0 and count with count_include_pad." + ("" if axes == 1 else "  divisor_override divides instead of the count."),
       names={"onnx": ("AveragePool",), "paddle": ("pool2d",) if axes == 2 else ("pool3d",) if axes == 3 else ("avg_pool1d",)}
       | ({} if axes == 1 else {"aten": (name,)}))
    if axes == 1:
        return

    def back_sample(s: Sample) -> Sample:
        full = {"stride": (), "padding": (0,), "ceil_mode": False, "count_include_pad": True, "divisor_override": None} | s.attrs
        y = infer(Spec(s.inputs[0].shape, FLOATS[0]), **full)
        return Sample(s.name, (In(y.shape), s.inputs[0]), full, s.model, "full" if s.model else s.level, tuple(b for b in s.bench if b != "quick"))

    full = back_sample(samples[0]).attrs | {"kernel_size": (2,)}
    op(f"{back}(Tensor dy, Tensor x, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, "
       "int? divisor_override) -> Tensor", family="pool", dtypes=FLOATS, infer=infer_back,
       reference=lambda dy, x, **a: _mean_back(dy, x.shape, _avg_windows(back, x.shape[-axes:], a)[0], a["divisor_override"]),
       budget=Reduction(terms=back_terms, probe=False), doc=f"Gradient of {name} at x, of which only the shape counts.",
       cost=lambda item, dy, x, **a: Cost(flops=dy.size * terms(x, **a), bytes=item * (dy.size + x.size)),
       samples=[back_sample(s) for s in samples + models], names={"aten": (back,), "paddle": (f"pool{axes}d_grad",)},
       bad=(Bad("dy_shape", (In((1, 2, *(3,) * axes)), In(small)), ShapeError, (str((1, 2, *(3,) * axes)), str((1, 2, *(2,) * axes))), full),
            Bad("stride_0", (In(small), In(small)), ArgumentError, ("stride (0,)", "1 or more"), {**full, "stride": (0,)})))


def _flat(t):
    """(..., L) as an image of one row."""
    return t.reshape((*tuple(t.shape)[:-1], 1, t.shape[-1]))


def _flat_attr(value, first):
    return (first, *tuple(value)) if tuple(value) else ()


def _same_as_result(name: str, dy: Spec, y: Spec) -> None:
    same_dtype(name, dy, y)
    if dy.shape != y.shape:
        raise ShapeError(f"{name}: dy is {dy.shape}; needs {y.shape}, as the result of the forward operator")


def _window_cost(infer, terms):
    def cost(item: int, x: Spec, **a: Any) -> Cost:
        out = infer(x, **a)
        out = out if isinstance(out, tuple) else (out,)
        return Cost(flops=out[0].size * terms(x, **a), bytes=item * x.size + sum(y.size * y.dtype.itemsize for y in out))

    return cost


def _bad(small: tuple[int, ...], attrs: dict[str, Any]) -> tuple[Bad, ...]:
    axes = len(small) - 2
    big = (9,) * axes
    return (Bad("rank", (In((4,)),), ShapeError, ("(4,)", f"{axes + 1} or {axes + 2} axes"), attrs),
            Bad("kernel_too_large", (In(small),), ShapeError, (f"kernel_size {big}", "1 or more"), {**attrs, "kernel_size": big}),
            Bad("kernel_entries", (In(small),), ShapeError, ("kernel_size (2, 2, 2, 2)", "needs 1 or"), {**attrs, "kernel_size": (2, 2, 2, 2)}),
            Bad("stride_0", (In(small),), ArgumentError, ("stride (0,)", "1 or more"), {**attrs, "stride": (0,)}),
            Bad("padding_too_large", (In(small),), ArgumentError, ("padding", "half of the kernel"), {**attrs, "padding": (2,)}),
            Bad("no_channel", (In((1, 0, *(4,) * axes)),), ShapeError, ("only the batch",), attrs),
            Bad("int32", (In(small, "int"),), DTypeError, ("int32", "float32"), attrs, dtype="int32"))


# name, image, attributes: 1s, primes, one past 16 and 64 columns, overlapping and gapped windows, ceil_mode, unbatched
_AVG: dict[int, tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...]] = {
    1: (("one", (1, 1, 1), {"kernel_size": (1,)}), ("prime", (2, 3, 17), {"kernel_size": (3,), "stride": (2,), "padding": (1,)}),
        ("ceil", (1, 2, 12), {"kernel_size": (5,), "stride": (3,), "padding": (2,), "ceil_mode": True}),
        ("no_pad_counted", (3, 11), {"kernel_size": (4,), "stride": (1,), "padding": (2,), "count_include_pad": False}),
        ("long", (1, 2, 1031), {"kernel_size": (7,), "stride": (3,)}), ("no_batch", (0, 3, 7), {"kernel_size": (2,)})),
    2: (("one", (1, 1, 1, 1), {"kernel_size": (1, 1)}),
        ("prime", (2, 3, 7, 11), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 1)}),
        ("ceil", (1, 2, 12, 10), {"kernel_size": (5, 3), "stride": (3, 2), "padding": (2, 1), "ceil_mode": True}),
        ("ceil_no_pad", (1, 2, 9, 8), {"kernel_size": (2,), "stride": (2,), "padding": (1,), "ceil_mode": True, "count_include_pad": False}),
        ("unbatched", (3, 9, 35), {"kernel_size": (3,), "stride": (1,), "padding": (1,), "count_include_pad": False}),
        ("gaps", (1, 2, 11, 67), {"kernel_size": (2, 2), "stride": (3, 4)}), ("no_batch", (0, 3, 5, 5), {"kernel_size": (2,)})),
    3: (("one", (1, 1, 1, 1, 1), {"kernel_size": (1,)}),
        ("prime", (1, 2, 5, 7, 6), {"kernel_size": (2, 3, 2), "stride": (1, 2, 2), "padding": (1, 1, 0)}),
        ("ceil", (1, 2, 6, 5, 8), {"kernel_size": (3,), "stride": (2,), "padding": (1,), "ceil_mode": True, "count_include_pad": False}),
        ("unbatched", (2, 4, 4, 19), {"kernel_size": (2,)})),
}
_AVG_MODELS: dict[int, tuple[tuple[Any, ...], ...]] = {
    2: (("densenet_transition", (1, 128, 56, 56), {"kernel_size": (2, 2), "stride": (2, 2)}, "DenseNet-121 transition", "inference",
         ("full", "vision")),
        ("inception_branch", (1, 192, 35, 35), {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1)}, "Inception v3 pool branch", "full",
         ("vision",)))}


# ---- maximum --------------------------------------------------------------------------------------------------------
def _max_windows(name, size, a):
    k, s, p, d, out = _geometry(name, size, a["kernel_size"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])
    return _grid(size, k, s, p, d, out), out


_ARGS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def _own_indices(x: tuple[int, ...], axes: int, grid: list[list[Window]]) -> tuple[int, ...]:
    """For every result of images of shape x an index inside its own window, another one from result to result."""
    size = x[-axes:]
    found: list[int] = []
    for _ in range(count(x[:-axes])):
        for _, seen, _ in _cells(grid):
            at = 0
            for r, n in zip(seen, size):
                at = at * n + r[(len(found) * 7 + 3) % len(r)]
            found.append(at)
    return tuple(found)


def _make_max(axes: int) -> None:
    plain, name = f"max_pool{axes}d", f"max_pool{axes}d_with_indices"
    back = f"{name}_backward"
    schema = "int[] kernel_size, int[] stride=[], int[] padding=[0], int[] dilation=[1], bool ceil_mode=false"

    def shape_of(who: str, x: Spec, a: dict[str, Any]) -> tuple[int, ...]:
        return (*x.shape[:-axes], *_max_windows(who, _images(who, "x", x, axes), a)[1])

    def infer(x: Spec, **a: Any) -> Spec:
        return Spec(shape_of(plain, x, a), x.dtype)

    def infer_both(x: Spec, **a: Any) -> tuple[Spec, ...]:
        shape = shape_of(name, x, a)
        return Spec(shape, x.dtype), Spec(shape, _I64)

    def infer_back(dy: Spec, x: Spec, indices: Spec, **a: Any) -> Spec:
        _same_as_result(back, dy, Spec(shape_of(back, x, a), x.dtype))
        _check_indices(back, dy, indices)
        return x

    def terms(x: Spec, **a: Any) -> int:
        return count(spread_over(name, "kernel_size", a["kernel_size"], axes, 1))

    def grad(o, dy, inputs, y, a):
        x = inputs[0]
        if axes == 1:
            flat = _flat(x)
            b = [_flat_attr(a[k], v) for k, v in zip(_ARGS, (1, 1, 0, 1))] + [a["ceil_mode"]]
            index = o.max_pool2d_with_indices(flat, *b)[1]
            return (o.max_pool2d_with_indices_backward(_flat(dy), flat, *b, index).reshape(tuple(x.shape)),)
        b = [a[k] for k in _ARGS]
        index = y[1] if isinstance(y, tuple) else getattr(o, name)(x, *b)[1]
        return (getattr(o, back)(dy, x, *b, index),)

    samples = [Sample(n, (In(x),), dict(a)) for n, x, a in _MAX[axes]]
    rare = [Sample(n, (In(x, values=v),), {"kernel_size": k}) for n, x, v, k in _MAX_RARE.get(axes, ())]
    models = [Sample(n, (In(x),), a, m, lv, b) for n, x, a, m, lv, b in _MAX_MODELS.get(axes, ())]
    small = (1, 2, *(4,) * axes)
    bad = (*_bad(small, {"kernel_size": (2,)}),
           Bad("dilation_0", (In(small),), ArgumentError, ("dilation (0,)", "1 or more"), {"kernel_size": (2,), "dilation": (0,)}))
    doc = f"Largest of each window of {axes} spatial {'axis' if axes == 1 else 'axes'}; stride () is kernel_size; NaN wins."
    paddle = {"paddle": (f"max_pool{axes}d_with_index",) if axes > 1 else ("max_pool1d",)}
    op(f"{plain}(Tensor x, {schema}) -> Tensor", family="pool", dtypes=FLOATS, infer=infer,
       reference=lambda x, **a: _max_of(x, _max_windows(plain, x.shape[-axes:], a)[0])[0], budget=Exact(),
       cost=_window_cost(infer, terms), samples=samples + rare + models, bad=bad, grad=grad, doc=doc,
       names={"onnx": ("MaxPool",), "torch": (plain,)})
    if axes == 1:
        return
    op(f"{name}(Tensor x, {schema}) -> (Tensor values, Tensor indices)", family="pool", dtypes=FLOATS, infer=infer_both,
       reference=lambda x, **a: _max_of(x, _max_windows(name, x.shape[-axes:], a)[0]), budget=Exact(),
       cost=_window_cost(infer_both, terms), samples=samples + rare + [
           Sample(s.name, s.inputs, s.attrs, s.model, s.level, tuple(b for b in s.bench if b != "quick")) for s in models], bad=bad, grad=grad,
       doc=doc + "  indices (int64) says where it stood in the image: the first of equals, the last NaN.",
       names={"aten": (name,), "onnx": ("MaxPool",)} | paddle)

    def back_sample(s: Sample) -> Sample:
        x = s.inputs[0].shape
        full = {"stride": (), "padding": (0,), "dilation": (1,), "ceil_mode": False} | s.attrs
        grid, out = _max_windows(name, x[-axes:], full)
        y = (*x[:-axes], *out)
        return Sample(s.name, (In(y), In(x), In(y, "index", "int64", values=_own_indices(x, axes, grid))), full, s.model, s.level,
                      tuple(b for b in s.bench if b != "quick"))

    full = back_sample(samples[0]).attrs | {"kernel_size": (2,)}
    y = (1, 2, *(2,) * axes)
    op(f"{back}(Tensor dy, Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, Tensor indices) -> Tensor",
       family="pool", dtypes=FLOATS, infer=infer_back, reference=lambda dy, x, indices, **a: _max_back(back, dy, x, indices),
       budget=Reduction(terms=lambda dy, x, i, **a: terms(x, **a), magnitude=lambda dy, x, i, **a: _max_back(back, np.abs(dy), x, i)),
       doc=f"Gradient of {name} at x, of which only the shape counts; indices are the forward's own, each inside its window.",
       cost=lambda item, dy, x, i, **a: Cost(flops=dy.size, bytes=item * (dy.size + x.size) + 8 * dy.size),
       samples=[back_sample(s) for s in samples] + [back_sample(s) for s in models[:1]],
       names={"aten": (back,), "paddle": (f"max_pool{axes}d_with_index_grad",)},
       bad=(*_bad_indices(y, small, full), Bad("dy_shape", (In(small), In(small), In(small, "index", "int64", 4)), ShapeError,
                                               (str(small), str(y)), full)))


def _check_indices(name: str, dy: Spec, indices: Spec) -> None:
    need_dtype(name, "indices", indices, (_I64,))
    if indices.shape != dy.shape:
        raise ShapeError(f"{name}: indices is {indices.shape} and dy {dy.shape}; they must be equal")


def _bad_indices(y: tuple[int, ...], x: tuple[int, ...], attrs: dict[str, Any]) -> tuple[Bad, ...]:
    n, inside = count(y), count(x[2:])
    return (Bad("index_outside", (In(y), In(x), In(y, dtype="int64", values=(*(0,) * (n - 1), inside))), IndexOutOfBounds,
                (f"index {inside}", f"< {inside}"), attrs),
            Bad("index_negative", (In(y), In(x), In(y, dtype="int64", values=(-1, *(0,) * (n - 1)))), IndexOutOfBounds,
                ("index -1", f"< {inside}"), attrs),
            Bad("index_dtype", (In(y), In(x), In(y, "index", "int32", 4)), DTypeError, ("int32", "int64"), attrs),
            Bad("index_shape", (In(y), In(x), In(y[1:], "index", "int64", 4)), ShapeError, (str(y[1:]), str(y)), attrs))


_MAX: dict[int, tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...]] = {
    1: (("one", (1, 1, 1), {"kernel_size": (1,)}), ("prime", (2, 3, 17), {"kernel_size": (3,), "stride": (2,), "padding": (1,)}),
        ("dilated", (3, 19), {"kernel_size": (3,), "stride": (1,), "dilation": (4,), "padding": (1,)}),
        ("ceil", (1, 2, 12), {"kernel_size": (5,), "stride": (3,), "padding": (2,), "ceil_mode": True}),
        ("long", (1, 2, 1031), {"kernel_size": (7,), "stride": (3,)}), ("no_batch", (0, 3, 7), {"kernel_size": (2,)})),
    2: (("one", (1, 1, 1, 1), {"kernel_size": (1, 1)}),
        ("prime", (2, 3, 7, 11), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 1)}),
        ("dilated", (1, 2, 9, 13), {"kernel_size": (3, 2), "stride": (1, 2), "dilation": (2, 3), "padding": (1, 1)}),
        ("ceil", (1, 2, 12, 10), {"kernel_size": (5, 3), "stride": (3, 2), "padding": (2, 1), "ceil_mode": True}),
        ("unbatched", (3, 9, 35), {"kernel_size": (3,), "stride": (1,), "padding": (1,)}),
        ("gaps", (1, 2, 11, 67), {"kernel_size": (2, 2), "stride": (3, 4)}), ("no_batch", (0, 3, 5, 5), {"kernel_size": (2,)})),
    3: (("one", (1, 1, 1, 1, 1), {"kernel_size": (1,)}),
        ("prime", (1, 2, 5, 7, 6), {"kernel_size": (2, 3, 2), "stride": (1, 2, 2), "padding": (1, 1, 0)}),
        ("dilated", (1, 2, 6, 5, 8), {"kernel_size": (2,), "stride": (2, 1, 1), "dilation": (2, 1, 3), "ceil_mode": True}),
        ("unbatched", (2, 4, 4, 19), {"kernel_size": (2,)})),
}
_NAN, _INF = float("nan"), float("inf")
_MAX_RARE: dict[int, tuple[tuple[Any, ...], ...]] = {
    2: (("ties", (1, 1, 4, 4), (2, 2, 1, 3, 2, 0, 3, 1, 0, 0, -1, -1, 0, 0, -1, -1), (2, 2)),
        ("nan_wins", (1, 1, 2, 6), (_NAN, 1, 2, _NAN, -_INF, -_INF, 5, _NAN, 3, _INF, -_INF, -_INF), (2, 2)))}
_MAX_MODELS: dict[int, tuple[tuple[Any, ...], ...]] = {
    2: (("resnet_pool1", (1, 64, 112, 112), {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}, "ResNet-50 max pooling", "full",
         ("quick", "full", "vision")),
        ("vgg_pool2", (1, 128, 112, 112), {"kernel_size": (2, 2), "stride": (2, 2)}, "VGG-16 pool2", "full", ("full", "vision")),
        ("inception_pool", (1, 192, 35, 35), {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1)}, "Inception pool branch", "full",
         ("vision",)))}


# ---- adaptive ---------------------------------------------------------------------------------------------------------
def _adaptive_grid(name: str, x: Spec | Any, output_size: Any, axes: int) -> list[list[Window]]:
    out = spread_over(name, "output_size", output_size, axes, 1)
    return [_parts(*row) for row in zip(x.shape[-axes:], out)]


_ADAPTIVE: dict[int, tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]] = {
    1: (("one", (1, 1, 1), (1,)), ("prime", (2, 3, 17), (5,)), ("unbatched", (3, 19), (7,)), ("more", (1, 2, 3), (7,)), ("long", (1, 2, 1031), (3,)),
        ("no_batch", (0, 3, 7), (2,))),
    2: (("one", (1, 1, 1, 1), (1, 1)), ("prime", (2, 3, 7, 11), (3, 4)), ("unbatched", (3, 9, 35), (4, 33)), ("global", (2, 5, 7, 7), (1, 1)),
        ("more", (1, 2, 3, 2), (5, 4)), ("wide", (1, 2, 2, 131), (1, 5)), ("no_batch", (0, 3, 5, 5), (2, 2))),
    3: (("one", (1, 1, 1, 1, 1), (1, 1, 1)), ("prime", (1, 2, 5, 7, 6), (2, 3, 4)), ("unbatched", (2, 4, 4, 19), (3, 1, 5)),
        ("global", (2, 3, 3, 4, 5), (1, 1, 1))),
}
_ADAPTIVE_MODELS: dict[int, tuple[tuple[Any, ...], ...]] = {
    2: (("resnet_head", (8, 2048, 7, 7), (1, 1), "ResNet-50 global pooling, batch 8", "full", ("full", "vision")),
        ("vgg_head", (1, 512, 14, 14), (7, 7), "VGG-16 pooling before the classifier", "inference", ("vision",)))}


def _make_adaptive(axes: int) -> None:
    mean, top = f"adaptive_avg_pool{axes}d", f"adaptive_max_pool{axes}d"

    def shape_of(name: str, x: Spec, output_size: Any) -> tuple[int, ...]:
        _images(name, "x", x, axes)
        return (*x.shape[:-axes], *spread_over(name, "output_size", output_size, axes, 1))

    def infer_mean(x: Spec, *, output_size: Any) -> Spec:
        return Spec(shape_of(mean, x, output_size), x.dtype)

    def infer_top(x: Spec, *, output_size: Any) -> tuple[Spec, ...]:
        shape = shape_of(top, x, output_size)
        return Spec(shape, x.dtype), Spec(shape, _I64)

    def terms(x: Spec, *, output_size: Any) -> int:
        return count([max(len(w.positions) for w in g) for g in _adaptive_grid(mean, x, output_size, axes)])

    def mean_grad(o, dy, inputs, y, a):
        x = inputs[0]
        if axes > 1:
            return (getattr(o, f"{mean}_backward")(dy, x),)
        return (o.adaptive_avg_pool2d_backward(_flat(dy), _flat(x)).reshape(tuple(x.shape)),)

    def top_grad(o, dy, inputs, y, a):
        x = inputs[0]
        if axes > 1:
            return (getattr(o, f"{top}_backward")(dy, x, y[1]),)
        return (o.adaptive_max_pool2d_backward(_flat(dy), _flat(x), _flat(y[1])).reshape(tuple(x.shape)),)

    samples = [Sample(n, (In(x),), {"output_size": out}) for n, x, out in _ADAPTIVE[axes]]
    models = [Sample(n, (In(x),), {"output_size": out}, m, lv, b) for n, x, out, m, lv, b in _ADAPTIVE_MODELS.get(axes, ())]
    small = (1, 2, *(4,) * axes)
    bad = (Bad("rank", (In((4,)),), ShapeError, ("(4,)", f"{axes + 1} or {axes + 2} axes"), {"output_size": (2,)}),
           Bad("size_0", (In(small),), ArgumentError, ("output_size (0,)", "1 or more"), {"output_size": (0,)}),
           Bad("entries", (In(small),), ShapeError, ("output_size (2, 2, 2, 2)", "needs 1 or"), {"output_size": (2, 2, 2, 2)}),
           Bad("no_channel", (In((1, 0, *(4,) * axes)),), ShapeError, ("only the batch",), {"output_size": (2,)}))
    aten = {} if axes == 1 else {"aten": (f"_{mean}",)}
    op(f"{mean}(Tensor x, int[] output_size) -> Tensor", family="pool", dtypes=FLOATS, infer=infer_mean,
       reference=lambda x, *, output_size: _mean_of(x, _adaptive_grid(mean, x, output_size, axes)),
       budget=Reduction(terms=terms, probe=False), cost=_window_cost(infer_mean, terms), samples=samples + models, bad=bad, grad=mean_grad,
       doc="Means of output_size windows of nearly equal size: along each axis from floor(i size / n) to ceil((i + 1) size / n).",
       names={"torch": (mean,), "paddle": (mean,)} | ({"onnx": ("GlobalAveragePool",)} if axes == 2 else {}) | aten)
    op(f"{top}(Tensor x, int[] output_size) -> (Tensor values, Tensor indices)", family="pool", dtypes=FLOATS, infer=infer_top,
       reference=lambda x, *, output_size: _max_of(x, _adaptive_grid(top, x, output_size, axes)), budget=Exact(),
       cost=_window_cost(infer_top, terms), samples=samples + models[1:], bad=bad, grad=top_grad,
       doc="Largest of each of adaptive_avg_pool's windows, and where it stood in the image: the first of equals, the last NaN.",
       names={"torch": (top,), "paddle": (top,)} | ({"onnx": ("GlobalMaxPool",)} if axes == 2 else {}) | ({} if axes == 1 else {"aten": (top,)}))
    if axes > 1:
        _make_adaptive_backward(axes, mean, top, samples, models)


def _make_adaptive_backward(axes: int, mean: str, top: str, samples: list[Sample], models: list[Sample]) -> None:
    mean_back, top_back = f"{mean}_backward", f"{top}_backward"

    def check(name: str, dy: Spec, x: Spec) -> Spec:
        _images(name, "x", x, axes)
        same_dtype(name, dy, x)
        if dy.ndim != x.ndim or dy.shape[:-axes] != x.shape[:-axes] or 0 in dy.shape[-axes:]:
            raise ShapeError(f"{name}: dy is {dy.shape} and x {x.shape}; only the last {axes} axes may differ, and none of dy's be empty")
        return x

    def infer_mean(dy: Spec, x: Spec) -> Spec:
        return check(mean_back, dy, x)

    def infer_top(dy: Spec, x: Spec, indices: Spec) -> Spec:
        check(top_back, dy, x)
        _check_indices(top_back, dy, indices)
        return x

    def overlap(dy: Spec, x: Spec) -> int:
        return count([n // m + 2 for n, m in zip(dy.shape[-axes:], x.shape[-axes:])])

    def back_sample(s: Sample, indexed: bool) -> Sample:
        x, out = s.inputs[0].shape, s.attrs["output_size"]
        y = (*x[:-axes], *out)
        grid = [_parts(*row) for row in zip(x[-axes:], out)]
        more = (In(y, "index", "int64", values=_own_indices(x, axes, grid)),) if indexed else ()
        return Sample(s.name, (In(y), In(x), *more), {}, s.model, s.level, s.bench)

    small, y = (1, 2, *(4,) * axes), (1, 2, *(2,) * axes)
    other = Bad("channels", (In((1, 3, *(2,) * axes)), In(small)), ShapeError, (str((1, 3, *(2,) * axes)), str(small)))
    op(f"{mean_back}(Tensor dy, Tensor x) -> Tensor", family="pool", dtypes=FLOATS, infer=infer_mean,
       reference=lambda dy, x: _mean_back(dy, x.shape, [_parts(*row) for row in zip(x.shape[-axes:], dy.shape[-axes:])]),
       budget=Reduction(terms=overlap, probe=False), doc=f"Gradient of {mean} at x, of which only the shape counts.",
       cost=lambda item, dy, x: Cost(flops=x.size, bytes=item * (dy.size + x.size)),
       samples=[back_sample(s, False) for s in samples + models], bad=(other,), names={"aten": (f"_{mean_back}",)})
    op(f"{top_back}(Tensor dy, Tensor x, Tensor indices) -> Tensor", family="pool", dtypes=FLOATS, infer=infer_top,
       reference=lambda dy, x, indices: _max_back(top_back, dy, x, indices),
       budget=Reduction(terms=lambda dy, x, i: overlap(dy, x), magnitude=lambda dy, x, i: _max_back(top_back, np.abs(dy), x, i)),
       doc=f"Gradient of {top} at x, of which only the shape counts; indices are the forward's own, each inside its window.",
       cost=lambda item, dy, x, i: Cost(flops=dy.size, bytes=item * (dy.size + x.size) + 8 * dy.size),
       samples=[back_sample(s, True) for s in samples], names={"aten": (top_back,)},
       bad=(Bad(other.name, (*other.inputs, In((1, 3, *(2,) * axes), "index", "int64", 4)), ShapeError, other.words), *_bad_indices(y, small, {})))


for _axes in (1, 2, 3):
    _make_avg(_axes)
    _make_max(_axes)
    _make_adaptive(_axes)
