"""PyTorch as a peer, on the host or on the same accelerator: eager mode, inference mode, out= where the operator has it."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ..kernels.ops import OPS
from .peers import Peer, Refusal, Work
from .timer import Call

__all__ = ["Torch"]

_SAME = ("neg", "abs", "sign", "maximum", "minimum", "exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh", "sigmoid", "erf",
         "mul", "div", "pow", "lerp", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "bitwise_and",
         "bitwise_or", "bitwise_xor", "bitwise_not", "matmul", "mm", "bmm", "floor", "ceil", "trunc", "round", "square", "outer", "fmod", "remainder", "floor_divide",
         "expm1", "exp2", "log1p", "log2", "log10", "logaddexp", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh",
         "atanh", "erfinv", "signbit", "logical_xor")  # torch.NAME(*inputs, out=)
_REDUCTION = {"none": 0, "mean": 1, "sum": 2}
_Build = Callable[[tuple, tuple, dict[str, Any]], "Call | list[Call]"]


def _alpha(name: str, a: dict[str, Any]) -> dict[str, Any]:
    return {} if a["alpha"] == 1 else {"alpha": a["alpha"]}


def _table(torch: Any) -> dict[str, _Build]:
    """name -> build(inputs, outs, attrs); the results stand in outs unless the Call allocates."""
    aten, nn = torch.ops.aten, torch._C._nn

    def rms(i: tuple, o: tuple, a: dict[str, Any]) -> list[Call]:
        x, w = i
        shape = tuple(x.shape[-1:] if w is None else w.shape)
        n, y = x.shape[-1], o[0]

        def composed() -> None:  # torch.rms_norm makes several passes and arrays on the host
            scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(n).add_(a["eps"]).rsqrt_()
            torch.mul(x, scale, out=y)
            if w is not None:
                y.mul_(w)

        fused = Call(torch.rms_norm, (x, shape, w, a["eps"]), allocates=True)
        return [fused, Call(composed, result=lambda _: y)] if len(shape) == 1 and x.dtype == torch.float32 else [fused]

    def linear(i: tuple, o: tuple, a: dict[str, Any]) -> Call:
        x, w, b = i
        x2, y2 = x.reshape(-1, x.shape[-1]), o[0].view(-1, w.shape[0])
        if b is None:
            return Call(torch.mm, (x2, w.t()), {"out": y2}, result=lambda _: o[0])
        return Call(torch.addmm, (b, x2, w.t()), {"out": y2}, result=lambda _: o[0])

    def reduce(fn: Any, whole: Any) -> _Build:
        def build(i: tuple, o: tuple, a: dict[str, Any]) -> Call:
            dim = a["dim"]
            if dim is None or dim == ():
                return Call(fn, (i[0], whole), {"keepdim": a["keepdim"], "out": o[0]})
            return Call(fn, (i[0], dim), {"keepdim": a["keepdim"], "out": o[0]})

        return build

    def logical(fn: Any) -> _Build:
        def build(i: tuple, o: tuple, a: dict[str, Any]) -> Call:
            if a["dim"] is None:
                return Call(fn, (i[0],), {"out": o[0]})
            return Call(fn, (i[0], a["dim"], a["keepdim"]), {"out": o[0]})

        return build

    def backward(overload: str, *attrs: str) -> _Build:
        name, _, kind = overload.partition(".")
        fn = getattr(getattr(aten, name), kind)

        def build(i: tuple, o: tuple, a: dict[str, Any]) -> Call:
            return Call(fn, (*i, *(a[k] for k in attrs)), {"grad_input": o[0]})

        return build

    def plain(fn: Any) -> _Build:
        return lambda i, o, a: Call(fn, i, {"out": o[0]})

    def softmax_backward(overload: Any, out: str) -> _Build:
        return lambda i, o, a: Call(overload, (*i, a["dim"], i[1].dtype), {out: o[0]})

    def new(fn: Any, args: Callable[[tuple, dict[str, Any]], tuple], **kwargs: str) -> _Build:
        """An operator that makes its own result; kwargs: torch's name -> the attribute's."""
        return lambda i, o, a: Call(fn, args(i, a), {k: a[v] for k, v in kwargs.items()}, allocates=True)

    def along(fn: Callable) -> _Build:
        return lambda i, o, a: Call(fn, (i[0], a["dim"]), {"out": tuple(o) if len(o) > 1 else o[0]})

    def nn_out(name: str) -> _Build:
        return lambda i, o, a: Call(getattr(nn, name), (*i, *own(name, a).values()), {"out": o[0]})

    def own(name: str, a: dict[str, Any]) -> dict[str, Any]:
        """The operator's attributes without its tensors, in schema order."""
        return {p.name: a[p.name] for p in OPS[name].attrs}

    def pairs(a: dict[str, Any], axes: int) -> dict[str, Any]:
        """Attributes with one number an axis: aten wants them all."""
        return {k: list(v) * axes if len(v) == 1 else list(v) for k, v in a.items() if isinstance(v, tuple)}

    def convolution_back(i: tuple, a: dict[str, Any]) -> tuple:
        rest = {k: v for k, v in own("convolution_backward", a).items() if k not in ("bias_sizes", "output_mask")}
        return (*i, [i[0].shape[1]], *rest.values(), [bool(m) for m in a["output_mask"]])

    def pool(name: str) -> _Build:
        fn = getattr(aten, "_" + name if name.startswith("adaptive_avg") and "1d" not in name else name)
        axes = int(name[name.index("pool") + 4])

        def args(i: tuple, a: dict[str, Any]) -> tuple:
            mine = own(name, a)
            given = tuple((mine | pairs(mine, axes)).values())
            return (*i[:2], *given, i[2]) if name.startswith("max") and name.endswith("backward") else (*i, *given)

        return new(fn, args)

    def element_loss(name: str) -> _Build:
        fn = getattr(aten, name).default
        return new(fn, lambda i, a: (*i, *(_REDUCTION[v] if k == "reduction" else v for k, v in own(name, a).items())))

    def nll(i: tuple, o: tuple, a: dict[str, Any]) -> Call:
        return Call(nn.nll_loss, (*i, _REDUCTION[a["reduction"]], a["ignore_index"]), {"out": o[0]})

    def nll_forward(i: tuple, o: tuple, a: dict[str, Any]) -> Call:
        return Call(aten.nll_loss_forward.output, (*i, _REDUCTION[a["reduction"]], a["ignore_index"]), {"output": o[0], "total_weight": o[1]})

    def nll_backward(i: tuple, o: tuple, a: dict[str, Any]) -> Call:
        dy, x, target, weight, total = i
        return Call(aten.nll_loss_backward.grad_input, (dy, x, target, weight, _REDUCTION[a["reduction"]], a["ignore_index"], total),
                    {"grad_input": o[0]})

    def bag(i: tuple, o: tuple, a: dict[str, Any]) -> Call:
        kind = ("sum", "mean", "max").index(a["mode"])
        bags = i[2].shape[0] - a["include_last_offset"]

        def complete(made: tuple) -> tuple:  # aten leaves these out where nobody differentiates
            of = torch.bucketize(torch.arange(i[1].shape[0], device=i[1].device), i[2], right=True) - 1
            return made[0], of, torch.bincount(of[i[1] != a["padding_idx"]], minlength=bags), made[3] if kind == 2 else of[:0]

        return Call(aten._embedding_bag.default, (*i[:3], False, kind, False, i[3], a["include_last_offset"], a["padding_idx"]), allocates=True,
                    result=complete)

    flash, flash_backward = aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention_for_cpu_backward
    table: dict[str, _Build] = {
        "add": lambda i, o, a: Call(torch.add, i, {**_alpha("add", a), "out": o[0]}),
        "sub": lambda i, o, a: Call(torch.sub, i, {**_alpha("sub", a), "out": o[0]}),
        "clamp": lambda i, o, a: Call(torch.clamp, (i[0], a["min"], a["max"]), {"out": o[0]}),
        "relu": lambda i, o, a: Call(torch.clamp_min, (i[0], 0), {"out": o[0]}),
        "gelu": lambda i, o, a: Call(nn.gelu, i, {"approximate": a["approximate"], "out": o[0]}),
        "silu": lambda i, o, a: Call(nn.silu, i, {"out": o[0]}),
        "where": lambda i, o, a: Call(torch.where, i, {"out": o[0]}),
        "masked_fill": lambda i, o, a: Call(torch.where, (i[1], torch.tensor(a["value"], dtype=i[0].dtype, device=i[0].device), i[0]), {"out": o[0]}),
        "addcmul": lambda i, o, a: Call(torch.addcmul, i, {"value": a["value"], "out": o[0]}),
        "addcdiv": lambda i, o, a: Call(torch.addcdiv, i, {"value": a["value"], "out": o[0]}),
        "cast": lambda i, o, a: Call(o[0].copy_, i),
        "copy": lambda i, o, a: Call(o[0].copy_, i),
        "gelu_backward": lambda i, o, a: Call(aten.gelu_backward.grad_input, i, {"approximate": a["approximate"], "grad_input": o[0]}),
        "silu_backward": backward("silu_backward.grad_input"), "tanh_backward": backward("tanh_backward.grad_input"),
        "sigmoid_backward": backward("sigmoid_backward.grad_input"),
        "threshold_backward": backward("threshold_backward.grad_input", "threshold"),
        "native_dropout_backward": new(aten.native_dropout_backward.default, lambda i, a: (*i, a["scale"])),
        "softmax": lambda i, o, a: Call(torch.softmax, (i[0], a["dim"]), {"out": o[0]}),
        "log_softmax": lambda i, o, a: Call(torch.log_softmax, (i[0], a["dim"]), {"out": o[0]}),
        "softmax_backward": softmax_backward(aten._softmax_backward_data.out, "grad_input"),
        "log_softmax_backward": softmax_backward(aten._log_softmax_backward_data.out, "out"),
        "sum": reduce(torch.sum, None), "mean": reduce(torch.mean, None), "amax": reduce(torch.amax, ()), "amin": reduce(torch.amin, ()),
        "argmax": lambda i, o, a: Call(torch.argmax, (i[0], a["dim"], a["keepdim"]), {"out": o[0]}),
        "argmin": lambda i, o, a: Call(torch.argmin, (i[0], a["dim"], a["keepdim"]), {"out": o[0]}),
        "var": lambda i, o, a: Call(torch.var, (i[0], a["dim"]), {"correction": a["correction"], "keepdim": a["keepdim"], "out": o[0]}),
        "any": logical(torch.any), "all": logical(torch.all),
        "prod": new(torch.prod, lambda i, a: (i[0], *(() if a["dim"] is None else (a["dim"], a["keepdim"])))),
        **{name: new(getattr(torch, name), lambda i, a: (i[0], a["dim"]), correction="correction", keepdim="keepdim") for name in ("std", "std_mean", "var_mean")},
        "aminmax": new(torch.aminmax, lambda i, a: i, dim="dim", keepdim="keepdim"),
        "max": lambda i, o, a: Call(torch.max, (i[0], a["dim"], a["keepdim"]), {"out": tuple(o)}),
        "min": lambda i, o, a: Call(torch.min, (i[0], a["dim"], a["keepdim"]), {"out": tuple(o)}),
        "count_nonzero": new(torch.count_nonzero, lambda i, a: (i[0], a["dim"])),
        "logsumexp": lambda i, o, a: Call(torch.logsumexp, (i[0], a["dim"], a["keepdim"]), {"out": o[0]}),
        "linalg_vector_norm": lambda i, o, a: Call(torch.linalg.vector_norm, (i[0], a["ord"], a["dim"], a["keepdim"]), {"out": o[0]}),
        "cdist": new(aten._cdist_forward.default, lambda i, a: (*i, a["p"], None)), "pdist": new(torch.pdist, lambda i, a: (i[0], a["p"])),
        **{name: element_loss(name) for name in ("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "mse_loss_backward",
                                                 "smooth_l1_loss_backward", "huber_loss_backward", "binary_cross_entropy_backward",
                                                 "binary_cross_entropy_with_logits")},
        "l1_loss": new(torch.nn.functional.l1_loss, lambda i, a: i, reduction="reduction"),
        "kl_div": new(torch.kl_div, lambda i, a: (*i, _REDUCTION[a["reduction"]]), log_target="log_target"),
        "scaled_masked_softmax": new(lambda x, mask, scale: torch.softmax((x * scale).masked_fill(mask, -torch.inf), -1), lambda i, a: (*i, a["scale"])),
        "scaled_upper_triang_masked_softmax": new(
            lambda x, scale: torch.softmax((x * scale).masked_fill(torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).triu(1), -torch.inf), -1),
            lambda i, a: (*i, a["scale"])),
        "add_rms_norm": new(lambda x, r, w, eps: (torch.rms_norm(z := x + r, x.shape[-1:], w, eps), z), lambda i, a: (*i, a["eps"])),
        **{name: new(lambda x, r, w, b, eps, extra=None: (torch.layer_norm(z := x + r if extra is None else x + r + extra, x.shape[-1:], w, b, eps), z),
                     lambda i, a: (*i[:4], a["eps"], *i[4:])) for name in ("add_layer_norm", "skip_layer_norm")},
        "normalize": new(torch.nn.functional.normalize, lambda i, a: (i[0], a["p"], a["dim"], a["eps"])),
        "weight_norm": new(lambda v, g, dim: torch._weight_norm(v, g, dim), lambda i, a: (*i, a["dim"])),
        "total_norm": new(torch.nn.utils.get_total_norm, lambda i, a: (i[0], a["norm_type"])),
        "ctc_loss_forward": new(aten._ctc_loss.default, lambda i, a: (*i[:2], i[2].tolist(), i[3].tolist(), a["blank"])),
        "ctc_loss_backward": new(aten._ctc_loss_backward.default, lambda i, a: (*i[:3], i[3].tolist(), i[4].tolist(), *i[5:], a["blank"], a["zero_infinity"])),
        "fused_linear_cross_entropy": new(
            lambda x, w, t, b, **k: (torch.nn.functional.cross_entropy(z := torch.nn.functional.linear(x, w, b), t, **k), torch.logsumexp(z, -1)),
            lambda i, a: i, reduction="reduction", ignore_index="ignore_index", label_smoothing="label_smoothing"),
        **{name: along(getattr(torch, name)) for name in ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")},
        "sort": lambda i, o, a: Call(torch.sort, i, {"stable": True, "dim": a["dim"], "descending": a["descending"], "out": tuple(o)}),
        "argsort": lambda i, o, a: Call(torch.argsort, i, {"stable": True, "dim": a["dim"], "descending": a["descending"]}, allocates=True),
        "topk": lambda i, o, a: Call(torch.topk, (i[0], a["k"], a["dim"], a["largest"], a["sorted"]), {"out": tuple(o)}),
        "kthvalue": lambda i, o, a: Call(torch.kthvalue, (i[0], a["k"], a["dim"], a["keepdim"]), {"out": tuple(o)}),
        "nonzero_static": lambda i, o, a: Call(torch.nonzero_static, i, {"size": a["size"], "fill_value": a["fill_value"], "out": o[0]}),
        "embedding": lambda i, o, a: Call(torch.index_select, (i[0], 0, i[1].reshape(-1)), {"out": o[0].view(-1, i[0].shape[1])}, result=lambda _: o[0]),
        "embedding_dense_backward": new(aten.embedding_dense_backward.default, lambda i, a: (*i, a["num_weights"], a["padding_idx"], False)),
        "gather": lambda i, o, a: Call(torch.gather, (i[0], a["dim"], i[1]), {"out": o[0]}),
        "scatter_add": lambda i, o, a: Call(torch.scatter_add, (i[0], a["dim"], i[1], i[2]), {"out": o[0]}),
        "index_select": lambda i, o, a: Call(torch.index_select, (i[0], a["dim"], i[1]), {"out": o[0]}),
        "index_add": lambda i, o, a: Call(torch.index_add, (i[0], a["dim"], i[1], i[2]), {**_alpha("index_add", a), "out": o[0]}),
        "scatter": lambda i, o, a: Call(torch.scatter, (i[0], a["dim"], i[1], i[2]), {"out": o[0]}),
        "scatter_reduce": lambda i, o, a: Call(torch.scatter_reduce, (i[0], a["dim"], i[1], i[2], a["reduce"]),
                                               {"include_self": a["include_self"], "out": o[0]}),
        "index": new(aten.index.Tensor, lambda i, a: (i[0], list(i[1:1 + i[0].ndim]))),
        "index_put": new(aten.index_put.default, lambda i, a: (i[0], list(i[2:2 + i[0].ndim]), i[1], a["accumulate"])),
        "index_fill": new(torch.index_fill, lambda i, a: (i[0], a["dim"], i[1], i[2])),
        "index_copy": lambda i, o, a: Call(torch.index_copy, (i[0], a["dim"], i[1], i[2]), {"out": o[0]}),
        "masked_scatter": new(torch.masked_scatter, lambda i, a: i),
        **{name: new(getattr(torch, name), lambda i, a, name=name: (*i, *own(name, a).values()))  # type: ignore[misc]
           for name in ("select_scatter", "slice_scatter", "diagonal_scatter")},
        "embedding_bag": bag,
        "constant_pad_nd": new(torch.constant_pad_nd, lambda i, a: (i[0], a["pad"], a["value"])),
        "pad": new(torch.nn.functional.pad, lambda i, a: (i[0].reshape(-1, *i[0].shape[-(len(a["pad"]) // 2):]), a["pad"], a["mode"])),
        **{name: new(getattr(aten, name).default, lambda i, a: (*i, a["pad"])) for name in OPS if "tion_pad" in name},
        "flip": new(torch.flip, lambda i, a: (i[0], a["dims"])),
        "roll": new(torch.roll, lambda i, a: (i[0], a["shifts"], a["dims"])),
        "repeat": new(aten.repeat.default, lambda i, a: (i[0], a["repeats"])),
        "repeat_interleave": new(torch.repeat_interleave, lambda i, a: (i[0], a["repeats"], a["dim"])),
        "stack": lambda i, o, a: Call(torch.stack, (i[0], a["dim"]), {"out": o[0]}),
        "diag_embed": new(torch.diag_embed, lambda i, a: (i[0], a["offset"], a["dim1"], a["dim2"])),
        "one_hot": new(torch.nn.functional.one_hot, lambda i, a: (i[0], a["num_classes"])),
        "fill": lambda i, o, a: Call(o[0].fill_, (i[1],)),
        "linspace": lambda i, o, a: Call(torch.linspace, (a["start"], a["end"], a["steps"]), {"out": o[0]}),
        "addmm": lambda i, o, a: Call(torch.addmm, i, {"beta": a["beta"], "alpha": a["alpha"], "out": o[0]}),
        "baddbmm": lambda i, o, a: Call(torch.baddbmm, i, {"beta": a["beta"], "alpha": a["alpha"], "out": o[0]}),
        "linear": linear,
        "cat": lambda i, o, a: Call(torch.cat, (i[0], a["dim"]), {"out": o[0]}),
        "tril": lambda i, o, a: Call(torch.tril, (i[0], a["diagonal"]), {"out": o[0]}),
        "triu": lambda i, o, a: Call(torch.triu, (i[0], a["diagonal"]), {"out": o[0]}),
        "arange": lambda i, o, a: Call(torch.arange, (a["start"], a["end"], a["step"]), {"out": o[0]}),
        "full": lambda i, o, a: Call(o[0].fill_, (a["value"],)),
        **{name: lambda i, o, a, value=value: Call(o[0].fill_, (a.get("value", 0.0) if value is None else value,))  # type: ignore[misc]
           for name, value in (("full_like", None), ("scalar_tensor", None), ("zeros_like", 0.0), ("zeros", 0.0), ("ones_like", 1.0), ("ones", 1.0))},
        "threshold": lambda i, o, a: Call(aten.threshold.out, (i[0], a["threshold"], a["value"]), {"out": o[0]}),
        "layer_norm": new(torch.layer_norm, lambda i, a: (i[0], a["normalized_shape"], i[1], i[2], a["eps"])),
        "native_layer_norm": new(torch.native_layer_norm, lambda i, a: (i[0], a["normalized_shape"], i[1], i[2], a["eps"])),
        "native_layer_norm_backward": new(  # on the host it wants the statistics in x's dtype
            aten.native_layer_norm_backward.default,
            lambda i, a: (i[0], i[1], a["normalized_shape"], *(t.to(i[1].dtype) for t in i[2:4]), *i[4:], [True, True, True])),
        "group_norm": new(torch.group_norm, lambda i, a: (i[0], a["num_groups"], i[1], i[2], a["eps"])),
        "instance_norm": new(torch.group_norm, lambda i, a: (i[0], i[0].shape[1], i[1], i[2], a["eps"])),
        "native_group_norm": new(torch.native_group_norm, lambda i, a: (*i, a["N"], a["C"], a["HxW"], a["group"], a["eps"])),
        "native_group_norm_backward": new(
            aten.native_group_norm_backward.default,
            lambda i, a: (*i[:2], *(t.to(i[1].dtype) for t in i[2:4]), i[4], a["N"], a["C"], a["HxW"], a["group"], [True, True, True])),
        **{name: new(getattr(torch, name), lambda i, a: i) for name in ("isnan", "isinf", "isfinite")},
        **{name: nn_out(name) for name in ("elu", "leaky_relu", "hardswish", "hardsigmoid", "hardtanh", "softplus")},
        "elu_backward": new(aten.elu_backward.default, lambda i, a: (i[0], a["alpha"], a["scale"], a["input_scale"], bool(a["is_result"]), i[1])),
        "leaky_relu_backward": new(aten.leaky_relu_backward.default, lambda i, a: (*i, a["negative_slope"], False)),
        "hardswish_backward": new(aten.hardswish_backward.default, lambda i, a: i),
        "hardsigmoid_backward": new(aten.hardsigmoid_backward.default, lambda i, a: i),
        "hardtanh_backward": new(aten.hardtanh_backward.default, lambda i, a: (*i, a["min_val"], a["max_val"])),
        "softplus_backward": new(aten.softplus_backward.default, lambda i, a: (*i, a["beta"], a["threshold"])),
        "convolution": new(aten.convolution.default, lambda i, a: (*i, *own("convolution", a).values())),
        "convolution_backward": new(aten.convolution_backward.default, convolution_back),
        "im2col": new(aten.im2col.default, lambda i, a: (*i, *pairs(own("im2col", a), 2).values())),
        "col2im": new(aten.col2im.default, lambda i, a: (*i, *pairs(own("col2im", a), 2).values())),
        **{name: pool(name) for name in OPS if OPS[name].family == "pool"},
        "rms_norm": rms,
        "fused_rms_norm": new(aten._fused_rms_norm.default, lambda i, a: (i[0], a["normalized_shape"], i[1], a["eps"])),
        "fused_rms_norm_backward": new(aten._fused_rms_norm_backward.default,
                                       lambda i, a: (i[0], i[1], a["normalized_shape"], *i[2:], [True, True])),
        "rand": lambda i, o, a: Call(torch.rand, (a["shape"],), {"out": o[0]}),
        "dropout": new(torch.dropout, lambda i, a: (i[0], a["p"], True)),
        "native_dropout": new(torch.native_dropout, lambda i, a: (i[0], a["p"], True)),
        "nll_loss": nll, "nll_loss_forward": nll_forward, "nll_loss_backward": nll_backward,
        "cross_entropy": new(torch.nn.functional.cross_entropy, lambda i, a: i[:2], weight="weight", reduction="reduction",
                             ignore_index="ignore_index", label_smoothing="label_smoothing"),
        "scaled_dot_product_attention": new(torch.nn.functional.scaled_dot_product_attention,
                                            lambda i, a: (*i, a["dropout_p"], a["is_causal"]), scale="scale", enable_gqa="enable_gqa"),
        "scaled_dot_product_flash_attention": new(flash.default, lambda i, a: (*i[:3], 0.0, a["is_causal"]), attn_mask="attn_mask", scale="scale"),
        "scaled_dot_product_flash_attention_backward": new(flash_backward.default, lambda i, a: (*i[:6], 0.0, a["is_causal"]),
                                                           attn_mask="attn_mask", scale="scale")}
    return {**table, **{name: plain(getattr(torch, name)) for name in _SAME}}


class Torch(Peer):
    name = "torch"

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        self.version = torch.__version__
        family, _, index = device.partition(":")
        self._place = "cpu"
        if family != "cpu":
            if family != "cuda" or not torch.cuda.is_available():
                raise Refusal(f"has no {device} here")
            self._place = f"cuda:{index}"
        self._table = _table(torch)

    def set_threads(self, n: int) -> None:
        self._torch.set_num_threads(n)

    def session(self) -> AbstractContextManager[Any]:
        return self._torch.inference_mode()

    def tensor(self, array: np.ndarray) -> Any:
        """The array's memory as a tensor; a copy on an accelerator."""
        kind = {"bfloat16": (np.uint16, self._torch.bfloat16), "float8_e4m3fn": (np.uint8, self._torch.float8_e4m3fn),
                "float8_e5m2": (np.uint8, self._torch.float8_e5m2)}.get(array.dtype.name)
        t = self._torch.from_numpy(array.view(kind[0])).view(kind[1]) if kind else self._torch.from_numpy(array)
        return t if self._place == "cpu" else t.to(self._place)

    def _array(self, t: Any) -> np.ndarray:
        t = t.detach().cpu()
        return t.float().numpy() if t.dtype in (self._torch.bfloat16, self._torch.float8_e4m3fn, self._torch.float8_e5m2) else t.numpy()

    def calls(self, work: Work) -> list[Call]:
        case = work.case
        build = self._table.get(case.record.name)
        if build is None:
            raise Refusal("no such operator")
        inputs = tuple(None if a is None else [self.tensor(x) for x in a] if isinstance(a, tuple) else self.tensor(a) for a in work.arrays)
        outs = tuple(self.tensor(a) for a in work.outs())
        attrs = {**case.attrs, "weight": None, "attn_mask": None}  # tensors that torch takes by keyword
        for p, t in zip(case.record.tensors, inputs):
            attrs[p.name] = t
        built = build(inputs, outs, attrs)
        return [self._finish(c, outs) for c in (built if isinstance(built, list) else [built])]

    def _finish(self, call: Call, outs: tuple) -> Call:
        """Results as arrays; waits for the device."""
        torch, mine = self._torch, call.result

        def result(returned: Any) -> Any:
            value = mine(returned) if mine else returned if call.allocates else outs if len(outs) > 1 else outs[0]
            return tuple(self._array(t) for t in value[:len(outs)]) if isinstance(value, (tuple, list)) else self._array(value)

        sync = None if self._place == "cpu" else torch.cuda.synchronize
        return Call(call.fn, call.args, call.kwargs, result, call.allocates, sync, call.spelling)
