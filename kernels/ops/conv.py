"""convolution and its gradients, causal_conv1d, im2col, col2im: what they are.  How: kernels/cpu/conv.c, kernels/triton/conv.py.

Layouts are (N, C, D, H, W) with one to three spatial axes; attributes with one entry hold for every spatial axis.
Not here: pooling (pool.py).
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...hal.errors import ArgumentError, ShapeError
from .budget import Composite, Exact, Reduction
from .gradient import count, zeros
from .infer import inner, need, need_dtype, need_rank, same_dtype
from .record import FLOATS, Bad, Cost, In, Sample, Spec, op


# ---- attributes ---------------------------------------------------------------------------------------------------
def spread_over(name: str, what: str, value: Sequence[int], axes: int, least: int) -> tuple[int, ...]:
    """An attribute as one integer an axis, each at least ``least``.

    Raises:
        ShapeError: neither one entry nor one an axis.
        ArgumentError: an entry below ``least``.
    """
    given = tuple(value)
    if len(given) not in (1, axes):
        raise ShapeError(f"{name}: {what} {given} has {len(given)} entries; needs 1 or {axes}, one a spatial axis")
    need(min(given) >= least, f"{name}: {what} {given}; needs {least} or more in every entry")
    return given * axes if len(given) == 1 else given


def _reach(kernel: int, dilation: int) -> int:
    """Input positions from the first to the last tap."""
    return dilation * (kernel - 1) + 1


def _geometry(name, input, weight, stride, padding, dilation, transposed, output_padding, groups):
    """(stride, padding, dilation, output_padding, result shape), all checked."""
    need_dtype(name, "input", input, FLOATS)
    same_dtype(name, input, weight)
    need_rank(name, "input", input, 3, 4, 5)
    if weight.ndim != input.ndim:
        raise ShapeError(f"{name}: input is {input.shape} and weight {weight.shape}; both need the same number of axes")
    n = input.ndim - 2
    s, d = (spread_over(name, w, v, n, 1) for w, v in (("stride", stride), ("dilation", dilation)))
    p, extra = (spread_over(name, w, v, n, 0) for w, v in (("padding", padding), ("output_padding", output_padding)))
    need(groups >= 1, f"{name}: groups {groups}; needs 1 or more")
    kernel = weight.shape[2:]
    if 0 in kernel:
        raise ShapeError(f"{name}: weight is {weight.shape}; every spatial axis of it needs one tap at least")
    channels = input.shape[1]
    takes = weight.shape[0] if transposed else weight.shape[1] * groups
    if channels != takes or weight.shape[0] % groups:
        raise ShapeError(f"{name}: input is {input.shape} and weight {weight.shape} with groups {groups}; weight takes {takes} "
                         f"channels, input has {channels}, and weight's first axis must be a multiple of groups")
    out = []
    for i in range(n):
        if transposed:
            size = (input.shape[2 + i] - 1) * s[i] - 2 * p[i] + _reach(kernel[i], d[i]) + extra[i]
            need(extra[i] < max(s[i], d[i]), f"{name}: output_padding {extra} with stride {s} and dilation {d}; needs less than "
                                             f"the larger of the two")
        else:
            size = (input.shape[2 + i] + 2 * p[i] - _reach(kernel[i], d[i])) // s[i] + 1
        if size < 1:
            raise ShapeError(f"{name}: input is {input.shape}, weight {weight.shape}, stride {s}, padding {p}, dilation {d}; spatial "
                             f"axis {i} of the result would have {size} elements; needs 1 or more")
        out.append(size)
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    return s, p, d, extra, (input.shape[0], outputs, *out)


def _infer_convolution(input: Spec, weight: Spec, bias: Spec | None, *, stride: Any, padding: Any, dilation: Any, transposed: bool,
                       output_padding: Any, groups: int) -> Spec:
    name = "convolution"
    shape = _geometry(name, input, weight, stride, padding, dilation, transposed, output_padding, groups)[-1]
    if bias is not None:
        same_dtype(name, input, bias)
        if bias.shape != shape[1:2]:
            raise ShapeError(f"{name}: bias is {bias.shape}; needs ({shape[1]},), one an output channel")
    return Spec(shape, input.dtype)


def _infer_backward(dy: Spec, input: Spec, weight: Spec, *, bias_sizes: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
                    output_padding: Any, groups: int, output_mask: Any) -> tuple[Spec, ...]:
    name = "convolution_backward"
    shape = _geometry(name, input, weight, stride, padding, dilation, transposed, output_padding, groups)[-1]
    same_dtype(name, dy, input)
    if dy.shape != shape:
        raise ShapeError(f"{name}: dy is {dy.shape}; needs {shape}, as the result of the convolution")
    if bias_sizes is not None and tuple(bias_sizes) != shape[1:2]:
        raise ShapeError(f"{name}: bias_sizes {tuple(bias_sizes)}; needs ({shape[1]},) or None")
    need(len(tuple(output_mask)) == 3, f"{name}: output_mask {tuple(output_mask)}; needs 3 entries: input, weight, bias")
    shapes = (input.shape, weight.shape, shape[1:2])
    return tuple(Spec(s if m else (0,), input.dtype) for s, m in zip(shapes, output_mask))


# ---- references: taps one after another, channels as matrix products -----------------------------------------------------
def _padded(x, padding):
    return np.pad(x, [(0, 0)] * (x.ndim - len(padding)) + [(p, p) for p in padding])


def _windows(x, kernel, stride, padding, dilation, out):
    """(tap, view of x (N, C, *out) that the tap reads) for every tap."""
    x = _padded(x, padding)
    for tap in itertools.product(*map(range, kernel)):
        at = tuple(slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in zip(tap, dilation, stride, out))
        yield tap, x[inner(at)]


def _grouped(x, groups):
    """(groups, N, C / groups, elements)."""
    n, c = x.shape[:2]
    return np.moveaxis(x.reshape(n, groups, c // groups, count(x.shape[2:])), 1, 0)


def _forward(x, w, s, p, d, groups, out):
    """(N, O, *out) of w (O, C / groups, *kernel)."""
    y = np.zeros((groups, x.shape[0], w.shape[0] // groups, count(out)))
    wg = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    for tap, seen in _windows(x, w.shape[2:], s, p, d, out):
        y += np.matmul(wg[inner(tap)][:, None], _grouped(seen, groups))
    return np.moveaxis(y, 0, 1).reshape(x.shape[0], w.shape[0], *out)


def _scatter(x, w, s, p, d, groups, out):
    """The adjoint of _forward: x (N, I, ...), w (I, O / groups, *kernel) -> (N, O, *out)."""
    o = w.shape[1] * groups
    y = np.zeros((x.shape[0], o, *(n + 2 * q for n, q in zip(out, p))))
    wg = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    for tap in itertools.product(*map(range, w.shape[2:])):
        part = np.matmul(wg[inner(tap)].swapaxes(1, 2)[:, None], _grouped(x, groups))
        at = tuple(slice(t * e, t * e + q * (n - 1) + 1, q) for t, e, q, n in zip(tap, d, s, x.shape[2:]))
        y[inner(at)] += np.moveaxis(part, 0, 1).reshape(x.shape[0], o, *x.shape[2:])
    return y[inner(tuple(slice(q, q + n) for q, n in zip(p, out)))]


def _weights(x, dy, kernel, s, p, d, groups):
    """The gradient of _forward's weight: x (N, C, ...), dy (N, O, *out) -> (O, C / groups, *kernel)."""
    g = _grouped(dy, groups)
    dw = np.zeros((groups, g.shape[2], x.shape[1] // groups, *kernel))
    for tap, seen in _windows(x, kernel, s, p, d, dy.shape[2:]):
        dw[inner(tap)] = np.matmul(g, _grouped(seen, groups).swapaxes(2, 3)).sum(1)
    return dw.reshape(dy.shape[1], x.shape[1] // groups, *kernel)


def _sizes(x, w, stride, padding, dilation, transposed, output_padding, groups):
    wide = (Spec(t.shape, FLOATS[-1]) for t in (x, w))
    return _geometry("convolution", *wide, stride, padding, dilation, transposed, output_padding, groups)


def _convolution(input, weight, bias, *, stride, padding, dilation, transposed, output_padding, groups):
    s, p, d, extra, shape = _sizes(input, weight, stride, padding, dilation, transposed, output_padding, groups)
    with np.errstate(all="ignore"):
        y = (_scatter if transposed else _forward)(input, weight, s, p, d, groups, shape[2:])
        return y if bias is None else y + bias.reshape(-1, *(1,) * (y.ndim - 2))


def _backward(dy, input, weight, *, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, output_mask):
    s, p, d, extra, shape = _sizes(input, weight, stride, padding, dilation, transposed, output_padding, groups)
    kernel, nothing = weight.shape[2:], np.zeros((0,))
    with np.errstate(all="ignore"):
        dx = dw = db = nothing
        if output_mask[0]:
            dx = (_forward if transposed else _scatter)(dy, weight, s, p, d, groups, input.shape[2:])
        if output_mask[1]:
            dw = _weights(dy, input, kernel, s, p, d, groups) if transposed else _weights(input, dy, kernel, s, p, d, groups)
        if output_mask[2]:
            db = dy.sum((0, *range(2, dy.ndim)))
        return dx, dw, db


def _terms(input: Spec, weight: Spec, bias: Spec | None, **a: Any) -> int:
    return count(weight.shape[2:]) * (weight.shape[0] // a["groups"] if a["transposed"] else weight.shape[1]) + 1


def _backward_terms(dy: Spec, input: Spec, weight: Spec, **a: Any) -> int:
    pixels = dy.shape[0] * max(count(dy.shape[2:]), count(input.shape[2:]))
    return max(pixels, count(weight.shape[2:]) * max(weight.shape[:2]), 1)


def _cost(input: Spec, weight: Spec, y: tuple[int, ...], transposed: bool) -> int:
    """Multiplications and additions of one product with all taps."""
    pixels = count(input.shape[2:]) if transposed else count(y[2:])
    return 2 * input.shape[0] * weight.size * pixels


def _convolution_cost(item: int, input: Spec, weight: Spec, bias: Spec | None, **a: Any) -> Cost:
    y = _infer_convolution(input, weight, bias, **a)
    return Cost(flops=_cost(input, weight, y.shape, a["transposed"]),
                bytes=item * (input.size + weight.size + y.size + (bias.size if bias is not None else 0)))


def _backward_cost(item: int, dy: Spec, input: Spec, weight: Spec, **a: Any) -> Cost:
    given = [m for m in a["output_mask"]]
    once = _cost(input, weight, dy.shape, a["transposed"])
    results = _infer_backward(dy, input, weight, **a)
    return Cost(flops=once * (bool(given[0]) + bool(given[1])) + dy.size * bool(given[2]),
                bytes=item * (dy.size + input.size + weight.size + sum(r.size for r in results)))


def _convolution_grad(o, dy, inputs, y, attrs):
    x, w, bias = inputs
    a = {k: attrs[k] for k in ("stride", "padding", "dilation", "transposed", "output_padding", "groups")}
    dx, dw, db = o.convolution_backward(dy, x, w, None, **a, output_mask=(1, 1, int(bias is not None)))
    return dx, dw, None if bias is None else db


# name, input, weight, bias, attributes: 1s, primes, one past a tile of 32 columns, groups, depthwise, every rank, transposed
_CASES: tuple[tuple[str, tuple[int, ...], tuple[int, ...], bool, dict[str, Any]], ...] = (
    ("one", (1, 1, 1), (1, 1, 1), True, {}),
    ("line", (2, 3, 17), (5, 3, 4), True, {"stride": (2,), "padding": (3,), "dilation": (2,)}),
    ("line_long", (1, 2, 131), (3, 2, 7), False, {"padding": (3,)}),
    ("plane", (2, 3, 7, 11), (5, 3, 3, 3), True, {"padding": (1, 1)}),
    ("plane_strided", (2, 5, 13, 9), (4, 5, 3, 2), True, {"stride": (2, 3), "padding": (1, 0)}),
    ("plane_dilated", (1, 4, 12, 15), (3, 4, 3, 3), False, {"dilation": (2, 3), "padding": (2, 3)}),
    ("past_tile", (1, 17, 6, 11), (15, 17, 3, 3), True, {"padding": (1, 1)}),
    ("wide_row", (1, 3, 3, 67), (2, 3, 3, 3), False, {"padding": (1, 2)}),
    ("pointwise", (2, 7, 5, 3), (11, 7, 1, 1), True, {}),
    ("pointwise_strided", (2, 6, 5, 7), (4, 6, 1, 1), False, {"stride": (2, 2)}),
    ("groups", (2, 6, 7, 5), (8, 3, 3, 3), True, {"groups": 2, "padding": (1, 1)}),
    ("pointwise_groups", (2, 6, 4, 5), (9, 2, 1, 1), True, {"groups": 3}),
    ("depthwise", (2, 5, 9, 37), (5, 1, 3, 3), True, {"groups": 5, "padding": (1, 1)}),
    ("depthwise_strided", (1, 3, 11, 13), (6, 1, 3, 5), False, {"groups": 3, "stride": (2, 2), "padding": (1, 2)}),
    ("volume", (1, 2, 5, 6, 7), (3, 2, 2, 3, 3), True, {"padding": (1, 0, 1), "stride": (1, 2, 1)}),
    ("volume_dilated", (1, 3, 4, 5, 5), (2, 3, 2, 2, 2), False, {"dilation": (1, 2, 2)}),
    ("no_batch", (0, 3, 5, 5), (4, 3, 3, 3), True, {}),
    ("long_sum", (1, 67, 4, 4), (2, 67, 3, 3), True, {"padding": (1, 1)}),
    ("up_line", (2, 3, 9), (3, 4, 5), True, {"transposed": True, "stride": (2,), "padding": (1,), "output_padding": (1,)}),
    ("up_plane", (1, 5, 4, 6), (5, 3, 4, 4), True, {"transposed": True, "stride": (2, 2), "padding": (1, 1)}),
    ("up_dilated", (2, 3, 5, 4), (3, 2, 3, 2), False, {"transposed": True, "dilation": (2, 1), "stride": (1, 3), "padding": (3, 0)}),
    ("up_groups", (1, 4, 5, 5), (4, 3, 3, 3), True, {"transposed": True, "groups": 2, "stride": (3, 2), "output_padding": (2, 1)}),
    ("up_pointwise", (2, 3, 4, 5), (3, 6, 1, 1), True, {"transposed": True}),
    ("up_depthwise", (1, 3, 6, 7), (3, 1, 3, 3), True, {"transposed": True, "groups": 3, "stride": (2, 2), "padding": (1, 1)}),
    ("up_volume", (1, 2, 3, 4, 3), (2, 3, 2, 3, 2), True, {"transposed": True, "stride": (2, 1, 2)}),
)
# just past a task of the packed product (C): 256 columns, 256 rows
_PAST: tuple[tuple[str, tuple[int, ...], tuple[int, ...], bool, dict[str, Any]], ...] = (
    ("past_columns", (1, 3, 17, 19), (5, 3, 3, 3), True, {"padding": (1, 1)}),
    ("past_rows", (1, 3, 5, 7), (263, 3, 3, 3), True, {"padding": (1, 1)}))
_NAN, _INF = float("nan"), float("inf")
_HOSTILE = Sample("nan_stays", (In((1, 1, 1, 8), values=(1, _NAN, 2, 3, _INF, 4, 5, -_INF)), In((1, 1, 1, 2), values=(1, 2)), None))
# name, input, weight, bias, attributes, model, level, bench suites
_MODELS: tuple[tuple[Any, ...], ...] = (
    ("resnet_conv1", (1, 3, 224, 224), (64, 3, 7, 7), False, {"stride": (2, 2), "padding": (3, 3)}, "ResNet-50 conv1", "full",
     ("full", "vision")),
    ("resnet_conv2", (1, 64, 56, 56), (64, 64, 3, 3), False, {"padding": (1, 1)}, "ResNet-50 conv2_x 3x3", "inference",
     ("quick", "full", "vision")),
    ("resnet_conv3", (1, 128, 28, 28), (128, 128, 3, 3), False, {"padding": (1, 1)}, "ResNet-50 conv3_x 3x3", "full",
     ("full", "vision")),
    ("resnet_conv4", (1, 256, 14, 14), (256, 256, 3, 3), False, {"padding": (1, 1)}, "ResNet-50 conv4_x 3x3", "full",
     ("full", "vision")),
    ("resnet_conv5", (1, 512, 7, 7), (512, 512, 3, 3), False, {"padding": (1, 1)}, "ResNet-50 conv5_x 3x3", "full",
     ("full", "vision")),
    ("resnet_down", (1, 256, 56, 56), (512, 256, 1, 1), False, {"stride": (2, 2)}, "ResNet-50 conv3_1 shortcut", "full", ("vision",)),
    ("resnet_1x1", (1, 64, 56, 56), (256, 64, 1, 1), False, {}, "ResNet-50 conv2_x 1x1", "inference", ("full", "vision")),
    ("mobilenet_depthwise", (1, 144, 56, 56), (144, 1, 3, 3), False, {"groups": 144, "padding": (1, 1)}, "MobileNetV2 depthwise",
     "inference", ("quick", "full", "vision")),
    ("mobilenet_depthwise_down", (1, 144, 56, 56), (144, 1, 3, 3), False, {"groups": 144, "padding": (1, 1), "stride": (2, 2)},
     "MobileNetV2 depthwise, stride 2", "full", ("vision",)),
    ("whisper_conv2", (1, 384, 3000), (384, 384, 3), True, {"stride": (2,), "padding": (1,)}, "Whisper tiny conv2", "full", ("full",)),
    ("unet_up", (1, 128, 28, 28), (128, 64, 2, 2), True, {"transposed": True, "stride": (2, 2)}, "U-Net up-convolution", "full",
     ("full", "vision")),
    ("dcgan_up", (1, 256, 16, 16), (256, 128, 4, 4), False, {"transposed": True, "stride": (2, 2), "padding": (1, 1)},
     "DCGAN generator", "full", ("vision",)),
    ("r3d_conv2", (1, 64, 8, 28, 28), (64, 64, 3, 3, 3), False, {"padding": (1, 1, 1)}, "R3D-18 layer1", "full", ("vision",)),
)


def _sample(name, x, w, b, attrs, model="", level="core", bench=(), cover=""):
    outputs = w[1] * attrs.get("groups", 1) if attrs.get("transposed") else w[0]
    return Sample(name, (In(x), In(w), In((outputs,)) if b else None), attrs, model, level, bench, cover)


def _backward_sample(name, x, w, b, attrs, model="", *, level="core", bench=(), cover=""):
    full = {"stride": (1,), "padding": (0,), "dilation": (1,), "transposed": False, "output_padding": (0,), "groups": 1} | attrs
    wide = (Spec(s, FLOATS[0]) for s in (x, w))
    y = _geometry("convolution_backward", *wide, **full)[-1]
    mask = {} if b or model else {"output_mask": (1, 1, 0)}
    return Sample(name, (In(y), In(x), In(w)), {"bias_sizes": None, **full, **mask}, model, level, bench, cover)


_BACKWARD = [_backward_sample(*c) for c in _CASES] + [_backward_sample(*c, cover="once") for c in _PAST] + [
    Sample("only_input", (In((1, 2, 4, 4)), In((1, 3, 4, 4)), In((2, 3, 3, 3))),
           {"bias_sizes": (2,), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "transposed": False, "output_padding": (0, 0),
            "groups": 1, "output_mask": (1, 0, 0)}),
    *(_backward_sample(*m[:6], level="training" if m[0] in ("resnet_conv2", "mobilenet_depthwise") else "full",
                       bench=tuple(b for b in m[7] if b != "quick")) for m in _MODELS
      if m[0] in ("resnet_conv2", "resnet_conv4", "mobilenet_depthwise", "unet_up"))]

_X4, _W4 = In((1, 4, 5, 5)), In((6, 4, 3, 3))
_BAD = (Bad("channels", (In((1, 3, 5, 5)), _W4, None), ShapeError, ("(1, 3, 5, 5)", "(6, 4, 3, 3)", "groups 1")),
        Bad("groups", (_X4, In((3, 2, 3, 3)), None), ShapeError, ("(3, 2, 3, 3)", "groups 2"), {"groups": 2}),
        Bad("no_groups", (_X4, _W4, None), ArgumentError, ("groups 0", "1 or more"), {"groups": 0}),
        Bad("rank", (In((4, 5)), In((4, 5)), None), ShapeError, ("(4, 5)", "3 or 4 or 5 axes")),
        Bad("ranks_differ", (_X4, In((6, 4, 3)), None), ShapeError, ("(6, 4, 3)", "same number of axes")),
        Bad("kernel_too_large", (_X4, In((6, 4, 7, 3)), None), ShapeError, ("(6, 4, 7, 3)", "1 or more")),
        Bad("stride_0", (_X4, _W4, None), ArgumentError, ("stride (0,)", "1 or more"), {"stride": (0,)}),
        Bad("padding_negative", (_X4, _W4, None), ArgumentError, ("padding (-1, 0)", "0 or more"), {"padding": (-1, 0)}),
        Bad("stride_entries", (_X4, _W4, None), ShapeError, ("stride (1, 1, 1)", "1 or 2"), {"stride": (1, 1, 1)}),
        Bad("output_padding", (_X4, In((4, 2, 3, 3)), None), ArgumentError, ("output_padding", "less than"),
            {"transposed": True, "output_padding": (1,)}),
        Bad("bias_shape", (_X4, _W4, In((4,))), ShapeError, ("(4,)", "(6,)")))

op("convolution(Tensor input, Tensor weight, Tensor? bias=None, int[] stride=[1], int[] padding=[0], int[] dilation=[1], "
   "bool transposed=false, int[] output_padding=[0], int groups=1) -> Tensor", family="conv", dtypes=FLOATS,
   infer=_infer_convolution, reference=_convolution, budget=Reduction(terms=_terms), cost=_convolution_cost,
   doc="Cross-correlation of input (N, C, ...) with weight (O, C / groups, ...) over one to three spatial axes, plus bias (O,); "
       "positions outside the input count as 0.  transposed: its adjoint, weight (C, O / groups, ...), result larger by "
       "output_padding.  The conv1d to conv3d and conv_transpose1d to conv_transpose3d of frameworks are this operator.",
   samples=[_sample(*c) for c in _CASES] + [_sample(*c, cover="once") for c in _PAST] + [_HOSTILE] + [_sample(*m) for m in _MODELS], bad=_BAD, grad=_convolution_grad,
   names={"aten": ("convolution",), "onnx": ("Conv", "ConvTranspose"),
          "torch": tuple(f"{k}{n}d" for k in ("conv", "conv_transpose") for n in (1, 2, 3)),
          "paddle": ("conv2d", "conv3d", "depthwise_conv2d", "conv2d_transpose", "conv3d_transpose")})

op("convolution_backward(Tensor dy, Tensor input, Tensor weight, int[]? bias_sizes, int[] stride, int[] padding, int[] dilation, "
   "bool transposed, int[] output_padding, int groups, int[] output_mask=[1,1,1]) -> (Tensor dinput, Tensor dweight, Tensor dbias)",
   family="conv", dtypes=FLOATS, infer=_infer_backward, reference=_backward, budget=Reduction(terms=_backward_terms),
   doc="Gradients of convolution for dy, the gradient of its result.  A result whose entry of output_mask is 0 is not computed "
       "and has shape (0,).", cost=_backward_cost, samples=_BACKWARD,
   bad=(Bad("dy_shape", (In((1, 6, 4, 4)), _X4, _W4), ShapeError, ("(1, 6, 4, 4)", "(1, 6, 3, 3)"), dict(_BACKWARD[0].attrs)),
        Bad("mask", (In((1, 6, 3, 3)), _X4, _W4), ArgumentError, ("output_mask (1, 1)", "3 entries"),
            {**_BACKWARD[0].attrs, "output_mask": (1, 1)}),
        Bad("bias_sizes", (In((1, 6, 3, 3)), _X4, _W4), ShapeError, ("bias_sizes (4,)", "(6,)"),
            {**_BACKWARD[0].attrs, "bias_sizes": (4,)})),
   names={"aten": ("convolution_backward",), "paddle": ("conv2d_grad", "conv3d_grad")})


# ---- causal_conv1d --------------------------------------------------------------------------------------------------------
def _infer_causal(x: Spec, weight: Spec, bias: Spec | None, *, activation: str) -> Spec:
    name = "causal_conv1d"
    need_dtype(name, "x", x, FLOATS)
    same_dtype(name, x, weight, bias)
    need_rank(name, "x", x, 3)
    need_rank(name, "weight", weight, 2)
    if weight.shape[0] != x.shape[1] or weight.shape[1] < 1:
        raise ShapeError(f"{name}: x is {x.shape} and weight {weight.shape}; weight needs ({x.shape[1]}, width), width 1 or more")
    if bias is not None and bias.shape != x.shape[1:2]:
        raise ShapeError(f"{name}: bias is {bias.shape}; needs ({x.shape[1]},)")
    return x


def _causal(x, weight, bias, *, activation):
    width, length = weight.shape[1], x.shape[2]
    with np.errstate(all="ignore"):
        behind = np.concatenate([np.zeros((*x.shape[:2], width - 1)), x], axis=2)
        y = np.zeros(x.shape)
        for t in range(width):
            y = y + weight[None, :, t, None] * behind[:, :, t:t + length]
        y = y if bias is None else y + bias[None, :, None]
        return y / (1.0 + np.exp(-y)) if activation == "silu" else y


def _causal_magnitude(x, weight, bias, *, activation):
    return _causal(np.abs(x), np.abs(weight), None if bias is None else np.abs(bias), activation="none")


def _causal_grad(o, dy, inputs, y, attrs):
    """Through convolution padded on both sides: the results behind the last input get a gradient of 0."""
    x, weight, bias = inputs
    width, channels = weight.shape[1], x.shape[1]
    if attrs["activation"] == "silu":
        dy = o.silu_backward(dy, o.causal_conv1d(x, weight, bias, "none"))
    if width > 1:
        dy = o.cat((dy, zeros(o, (*x.shape[:2], width - 1), x.dtype)), 2)
    dx, dw, db = o.convolution_backward(dy, x, weight.reshape((channels, 1, width)), None, (1,), (width - 1,), (1,), False, (0,), channels,
                                        (1, 1, int(bias is not None)))
    return dx, dw.reshape((channels, width)), None if bias is None else db


_CAUSAL = [Sample(n, (In(x), In((x[1], w)), In((x[1],)) if b else None), {"activation": act}) for n, x, w, b, act in (
    ("one", (1, 1, 1), 1, True, "none"), ("prime", (2, 5, 13), 4, True, "silu"), ("plain", (2, 3, 7), 3, False, "none"),
    ("shorter_than_width", (1, 3, 2), 4, True, "silu"), ("past_tile", (1, 2, 1025), 4, False, "silu"), ("no_length", (2, 3, 0), 4, True, "none"),
    ("wide", (1, 33, 65), 7, True, "none"))] + [
    Sample("mamba_prefill", (In((1, 1536, 512)), In((1536, 4)), In((1536,))), {"activation": "silu"}, "Mamba-130M, 512 tokens", "full",
           ("full", "llm")),
    Sample("mamba_decode", (In((8, 1536, 4)), In((1536, 4)), In((1536,))), {"activation": "silu"}, "Mamba-130M decode window", "inference",
           ())]

op("causal_conv1d(Tensor x, Tensor weight, Tensor? bias=None, {none|silu} activation='none') -> Tensor", family="conv", dtypes=FLOATS,
   infer=_infer_causal, reference=_causal, budget=Composite(k=8, magnitude=_causal_magnitude),
   doc="Depthwise convolution over time that sees the present and the past: y[b, c, t] = bias[c] + sum over j < width of "
       "weight[c, j] x[b, c, t - width + 1 + j], x (B, C, L), weight (C, width); what lies before the start counts as 0.",
   cost=lambda item, x, w, b, *, activation: Cost(flops=(2 * w.shape[1] + 4 * (activation == "silu")) * x.size,
                                                  bytes=item * (2 * x.size + w.size)), samples=_CAUSAL,
   bad=(Bad("channels", (In((1, 3, 5)), In((4, 2)), None), ShapeError, ("(1, 3, 5)", "(4, 2)")),
        Bad("rank", (In((3, 5)), In((3, 2)), None), ShapeError, ("(3, 5)", "3 axes")),
        Bad("bias_shape", (In((1, 3, 5)), In((3, 2)), In((2,))), ShapeError, ("(2,)", "(3,)"))),
   grad=_causal_grad, names={"causal_conv1d": ("causal_conv1d_fn",)})


# ---- im2col, col2im ---------------------------------------------------------------------------------------------------
def _columns(name, size, kernel_size, dilation, padding, stride):
    """(kernel, dilation, padding, stride, blocks along each axis) of images of ``size``."""
    k, d, s = (spread_over(name, w, v, 2, 1) for w, v in (("kernel_size", kernel_size), ("dilation", dilation), ("stride", stride)))
    p = spread_over(name, "padding", padding, 2, 0)
    blocks = tuple((n + 2 * q - _reach(a, b)) // c + 1 for n, q, a, b, c in zip(size, p, k, d, s))
    if min(blocks) < 1:
        raise ShapeError(f"{name}: images of {tuple(size)} with kernel_size {k}, dilation {d}, padding {p} hold {blocks} blocks; needs 1 or more")
    return k, d, p, s, blocks


def _infer_im2col(x: Spec, *, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Spec:
    need_dtype("im2col", "x", x, FLOATS)
    need_rank("im2col", "x", x, 3, 4)
    k, *_, blocks = _columns("im2col", x.shape[-2:], kernel_size, dilation, padding, stride)
    return Spec((*x.shape[:-3], x.shape[-3] * count(k), count(blocks)), x.dtype)


def _infer_col2im(x: Spec, *, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Spec:
    need_dtype("col2im", "x", x, FLOATS)
    need_rank("col2im", "x", x, 2, 3)
    size = spread_over("col2im", "output_size", output_size, 2, 1)
    k, *_, blocks = _columns("col2im", size, kernel_size, dilation, padding, stride)
    if x.shape[-2] % count(k) or x.shape[-1] != count(blocks):
        raise ShapeError(f"col2im: x is {x.shape}; needs (..., channels * {count(k)}, {count(blocks)}) for kernel_size {k} and {blocks} blocks")
    return Spec((*x.shape[:-2], x.shape[-2] // count(k), *size), x.dtype)


def _im2col(x, *, kernel_size, dilation, padding, stride):
    k, d, p, s, blocks = _columns("im2col", x.shape[-2:], kernel_size, dilation, padding, stride)
    taps = np.stack([seen for _, seen in _windows(x, k, s, p, d, blocks)], axis=-3)
    return taps.reshape(*x.shape[:-3], x.shape[-3] * count(k), count(blocks))


def _col2im(x, *, output_size, kernel_size, dilation, padding, stride):
    size = spread_over("col2im", "output_size", output_size, 2, 1)
    k, d, p, s, blocks = _columns("col2im", size, kernel_size, dilation, padding, stride)
    channels = x.shape[-2] // count(k)
    taps = x.reshape(*x.shape[:-2], channels, count(k), *blocks)
    y = np.zeros((*x.shape[:-2], channels, *(n + 2 * q for n, q in zip(size, p))))
    for i, tap in enumerate(itertools.product(*map(range, k))):
        at = tuple(slice(t * e, t * e + q * (n - 1) + 1, q) for t, e, q, n in zip(tap, d, s, blocks))
        y[inner(at)] += taps[..., i, :, :]
    return y[inner(tuple(slice(q, q + n) for q, n in zip(p, size)))]


# name, image shape, kernel, dilation, padding, stride
_UNFOLD = (("one", (1, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1)), ("prime", (2, 3, 7, 11), (3, 2), (1, 1), (1, 1), (1, 1)),
           ("strided", (2, 2, 9, 13), (3, 3), (1, 1), (1, 0), (2, 3)), ("dilated", (1, 3, 8, 9), (2, 3), (3, 2), (2, 2), (1, 1)),
           ("unbatched", (3, 5, 6), (2, 2), (1, 1), (0, 0), (2, 2)), ("wide", (1, 2, 3, 70), (3, 3), (1, 1), (1, 1), (1, 1)))
_UNFOLD_MODELS = (("vit_patches", (1, 3, 224, 224), (16, 16), (1, 1), (0, 0), (16, 16), "ViT-B/16 patches", "inference", ("full", "vision")),
                  ("resnet_conv2", (1, 64, 56, 56), (3, 3), (1, 1), (1, 1), (1, 1), "ResNet-50 conv2_x as columns", "full", ("vision",)))


def _unfold_attrs(k, d, p, s):
    return {"kernel_size": k, "dilation": d, "padding": p, "stride": s}


def _folded(shape, k, d, p, s):
    return _infer_im2col(Spec(shape, FLOATS[0]), **_unfold_attrs(k, d, p, s)).shape


_NO_ROOM = ("kernel_size (5, 5)", "1 or more")
op("im2col(Tensor x, int[] kernel_size, int[] dilation, int[] padding, int[] stride) -> Tensor", family="conv", dtypes=FLOATS,
   infer=_infer_im2col, reference=_im2col, budget=Exact(signed_zero=True),
   doc="The blocks of kernel_size that a window sees, as columns: x (N, C, H, W) or (C, H, W) -> (N, C * kernel, blocks); positions "
       "outside the image are 0.",
   cost=lambda item, x, **a: Cost(flops=0, bytes=item * (x.size + _infer_im2col(x, **a).size)),
   samples=[Sample(n, (In(x),), _unfold_attrs(*a)) for n, x, *a in _UNFOLD]
   + [Sample(n, (In(x),), _unfold_attrs(*a), m, lv, b) for n, x, *a, m, lv, b in _UNFOLD_MODELS],
   bad=(Bad("kernel_too_large", (In((1, 1, 4, 4)),), ShapeError, _NO_ROOM, _unfold_attrs((5,), (1,), (0,), (1,))),
        Bad("rank", (In((4, 4)),), ShapeError, ("(4, 4)", "3 or 4 axes"), _unfold_attrs((2,), (1,), (0,), (1,)))),
   grad=lambda o, dy, inputs, y, a: (o.col2im(dy, tuple(inputs[0].shape[-2:]), a["kernel_size"], a["dilation"], a["padding"], a["stride"]),),
   names={"aten": ("im2col",), "torch": ("unfold",), "paddle": ("unfold",)})

op("col2im(Tensor x, int[] output_size, int[] kernel_size, int[] dilation, int[] padding, int[] stride) -> Tensor", family="conv",
   dtypes=FLOATS, infer=_infer_col2im, reference=_col2im,
   budget=Reduction(terms=lambda x, **a: count(spread_over("col2im", "kernel_size", a["kernel_size"], 2, 1))),
   doc="The adjoint of im2col: adds the columns x (N, C * kernel, blocks) up at the places of an image (N, C, *output_size).",
   cost=lambda item, x, **a: Cost(flops=x.size, bytes=item * (x.size + _infer_col2im(x, **a).size)),
   samples=[Sample(n, (In(_folded(x, *a)),), {"output_size": x[-2:], **_unfold_attrs(*a)}) for n, x, *a in _UNFOLD]
   + [Sample(n, (In(_folded(x, *a)),), {"output_size": x[-2:], **_unfold_attrs(*a)}, m, lv, b) for n, x, *a, m, lv, b in _UNFOLD_MODELS],
   bad=(Bad("kernel_too_large", (In((1, 25, 1)),), ShapeError, _NO_ROOM, {"output_size": (4, 4), **_unfold_attrs((5,), (1,), (0,), (1,))}),
        Bad("columns", (In((1, 8, 3)),), ShapeError, ("(1, 8, 3)", "channels * 4"),
            {"output_size": (2, 2), **_unfold_attrs((2,), (1,), (0,), (1,))})),
   grad=lambda o, dy, inputs, y, a: (o.im2col(dy, a["kernel_size"], a["dilation"], a["padding"], a["stride"]),),
   names={"aten": ("col2im",), "torch": ("fold",), "onnx": ("Col2Im",), "paddle": ("fold",)})
