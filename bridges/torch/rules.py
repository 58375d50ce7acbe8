"""How each aten overload becomes a haian operator: RULES, overload name -> rule(make, *aten arguments).

Pointwise overloads are made from the records (their aten names); the others are written out, a few lines each.  Rules are
for functional overloads; in-place and out= overloads are derived from schemas in overloads.py.  A rule raises Pass for a
call it leaves to torch.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as KIND
from torch._prims_common import compute_elementwise_output_strides, elementwise_dtypes, suggest_memory_format

from ...kernels import api as ops
from ...kernels.ops import OPS
from ...kernels.ops.record import Op
from ..common import Pass
from .tensors import DTYPES, Make, apart, cast, number, wrap, writable

__all__ = ["RULES"]

RULES: dict[str, Callable[..., None]] = {}
REDUCTIONS = ("none", "mean", "sum")  # aten's numbers of loss reductions


def rule(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def add(fn: Callable[..., None]) -> Callable[..., None]:
        for name in names:
            RULES["aten." + name] = fn
        return fn

    return add


def floating(*tensors: torch.Tensor | None) -> torch.dtype:
    """The one floating dtype of the tensors; Pass otherwise."""
    dtypes = {t.dtype for t in tensors if t is not None}
    dtype = dtypes.pop()
    if dtypes or not dtype.is_floating_point or dtype not in DTYPES:
        raise Pass(f"dtypes {dtype} {' '.join(map(str, dtypes))}".strip())
    return dtype


# ---- pointwise: from the records -----------------------------------------------------------------------------------------
_BOOL_RESULT = {"eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "logical_not", "isnan", "isinf", "isfinite", "signbit"}
_INT_TO_FLOAT = {"div", "exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh", "sigmoid", "erf"}
# whose memory order aten's result takes: the first operand's, but here the second's (the order in which aten's iterator gets them),
# or nobody's (masked_fill clones row by row; number ** tensor names its result's shape only)
_SECOND_LEADS = {"threshold_backward", "leaky_relu_backward"}
_ROW_MAJOR = {"masked_fill"}


def _promotion(name: str) -> KIND:
    if name in _BOOL_RESULT:
        return KIND.ALWAYS_BOOL
    return KIND.INT_TO_FLOAT if name in _INT_TO_FLOAT else KIND.DEFAULT


def _compute_dtype(name: str, data: list[Any]) -> torch.dtype:
    """The dtype operands are brought to: aten's promotion, numbers and 0-d tensors being weak."""
    first = next(v for v in data if isinstance(v, torch.Tensor))
    if all(v.dtype is first.dtype if isinstance(v, torch.Tensor) else type(v) is not complex for v in data) and first.dtype.is_floating_point:
        return first.dtype
    if name.startswith("logical_"):  # the truth of each operand in its own dtype
        return first.dtype
    _, result = elementwise_dtypes(*data, type_promotion_kind=KIND.DEFAULT if _promotion(name) is KIND.ALWAYS_BOOL else _promotion(name))
    return result


def _shape_and_strides(tensors: list[torch.Tensor]) -> tuple[Any, tuple[int, ...] | None]:
    """Broadcast shape, and strides where aten would not give row-major ones."""
    first = tensors[0]
    if all(t.shape == first.shape for t in tensors):
        if all(t.is_contiguous() for t in tensors):
            return first.shape, None
        shape = first.shape
    else:
        shape = torch.broadcast_shapes(*(t.shape for t in tensors))
        if all(t.is_contiguous() for t in tensors):
            return shape, None
    expanded = [t.expand(shape) for t in tensors]
    return shape, tuple(compute_elementwise_output_strides(*expanded))


def _pointwise(record: Op, make: Make, args: list[Any], attrs: dict[str, Any]) -> None:
    name = record.name
    masks = [i for i, p in enumerate(record.tensors) if p.name in ("condition", "mask") and name != "native_dropout_backward"]
    data = [v for i, v in enumerate(args) if i not in masks]
    tensors = [v for v in args if isinstance(v, torch.Tensor)]
    if not tensors:
        raise Pass("only numbers")
    if all(v.dtype.is_complex for v in tensors) or any(not isinstance(v, torch.Tensor) for i, v in enumerate(args) if i in masks):
        raise Pass("complex tensors")
    if not any(isinstance(v, torch.Tensor) for v in data):
        dtype = torch.result_type(torch.empty((), dtype=torch.int64) if all(isinstance(v, int) for v in data) else torch.empty(()), data[-1])
    else:
        dtype = _compute_dtype(name, data)
    if dtype not in DTYPES or dtype.is_complex:
        raise Pass(f"dtype {dtype}")
    if DTYPES[dtype] not in record.dtypes:
        raise Pass(f"dtype {dtype}")
    if name == "pow" and not dtype.is_floating_point and not isinstance(args[1], torch.Tensor) and args[1] < 0:
        raise Pass("an integer to a negative power, which aten refuses")
    own = name.startswith("logical_")
    inputs = []
    for i, v in enumerate(args):
        if i in masks:
            inputs.append(cast(v, torch.bool))
        elif isinstance(v, torch.Tensor):
            inputs.append(wrap(v) if v.dtype is dtype else cast(v, torch.bool) if own else cast(v, dtype))
        else:
            inputs.append(number(v, dtype))
    shape, strides = _shape_and_strides(tensors[::-1] if name in _SECOND_LEADS else tensors)
    if name in _ROW_MAJOR or name == "pow" and not isinstance(args[0], torch.Tensor):
        strides = None
    out = make(0, shape, torch.bool if name in _BOOL_RESULT else dtype, strides)
    getattr(ops, name)(*inputs, **attrs, out=wrap(out))


def _is_leaf(overload: str) -> bool:
    """CompositeImplicit names must not be overridden below autograd: it would no longer see their parts."""
    name = "aten::" + overload.removesuffix(".default")
    if not torch._C._dispatch_has_kernel(name):  # TorchScript's overloads on lists and scalars are not dispatched
        return False
    return not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


def _pointwise_rule(record: Op, overload: torch._ops.OpOverload) -> Callable[..., None]:
    """Map an overload's parameters to the record's: tensors and numbers in order, attributes by name."""
    schema = overload._schema
    attr_names = {p.name for p in record.attrs}
    renamed = {"threshold": "threshold", "scale": "scale"}
    names = [a.name for a in schema.arguments]
    operands = [n for n in names if n not in attr_names and n not in renamed]
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    if len(operands) != len(record.tensors):
        raise ValueError(f"{record.name}: aten::{overload} has operands {operands}, the record has {[p.name for p in record.tensors]}")

    def run(make: Make, *args: Any, **kwargs: Any) -> None:
        values = {**defaults, **dict(zip(names, args)), **kwargs}
        attrs = {n: values[n] for n in attr_names if n in values}
        if any(isinstance(v, (complex, torch.Tensor)) for v in attrs.values()):
            raise Pass("a tensor or complex attribute")
        if record.name in ("add", "sub") and attrs.get("alpha", 1) == 1:
            attrs = {}
        _pointwise(record, make, [values[n] for n in operands], attrs)

    return run


def _overload(name: str) -> torch._ops.OpOverload | None:
    packet, _, which = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet, None), which or "default", None)


def _add_pointwise() -> None:
    for record in OPS.values():
        if record.formula is None or record.name == "cast":
            continue
        for name in record.names.get("aten", ()):
            overload = _overload(name)
            if overload is None or overload._schema.is_mutable or not _is_leaf(name):
                continue
            full = name if "." in name else f"{name}.default"
            RULES.setdefault(f"aten.{full}", _pointwise_rule(record, overload))


# ---- copies and constants ---------------------------------------------------------------------------------------------------
@rule("clone.default")
def _clone(make: Make, self: torch.Tensor, *, memory_format: Any = None) -> None:
    if memory_format not in (None, torch.preserve_format, torch.contiguous_format):
        raise Pass(f"memory format {memory_format}")
    strides = None
    if memory_format is not torch.contiguous_format:
        strides = self.stride() if self.is_contiguous() else torch.empty_like(self, device="meta").stride()
    out = make(0, self.shape, self.dtype, strides)
    ops.copy(wrap(self), out=wrap(out))


def copy_into(self: torch.Tensor, src: torch.Tensor | complex, non_blocking: bool = False) -> torch.Tensor:
    """aten.copy_: any dtype, any strides, broadcasting; a number (C++ sees a 0-d tensor) fills."""
    if not isinstance(src, torch.Tensor):
        return fill(self, src)
    if self.device.type != "cpu" or src.device.type != "cpu":
        raise Pass("a copy between devices")
    apart(self, (src,))
    source = src.expand(self.shape) if src.shape != self.shape else src
    if self.dtype is src.dtype:
        ops.copy(wrap(source), out=wrap(writable(self)))
    else:
        ops.cast(wrap(source), dtype=DTYPES.get(self.dtype) or _no_dtype(self.dtype), out=wrap(writable(self)))
    return self


def _no_dtype(dtype: torch.dtype) -> Any:
    raise Pass(f"dtype {dtype}")


def fill(self: torch.Tensor, value: Any = 0) -> torch.Tensor:
    """aten.fill_.Scalar and aten.zero_."""
    if isinstance(value, torch.Tensor):
        return copy_into(self, value)
    if isinstance(value, complex) or self.dtype not in DTYPES or self.dtype.is_complex:
        raise Pass("a complex fill")
    if isinstance(value, int) and abs(value) > 2**53:
        raise Pass("an integer past 2**53")
    ops.full(tuple(self.shape), float(value), dtype=DTYPES[self.dtype], out=wrap(writable(self)))
    return self


@rule("arange.start_step")
def _arange(make: Make, start: Any, end: Any, step: Any = 1, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> None:
    if layout not in (None, torch.strided) or (device is not None and torch.device(device).type != "cpu") or pin_memory:
        raise Pass("layout, device or pinned memory")
    if dtype is None:
        dtype = torch.int64 if all(isinstance(v, int) for v in (start, end, step)) else torch.get_default_dtype()
    if dtype not in DTYPES or dtype.is_complex:
        raise Pass(f"dtype {dtype}")
    n = max(math.ceil((end - start) / step), 0)
    out = make(0, (n,), dtype)
    ops.arange(float(start), float(end), float(step), dtype=DTYPES[dtype], out=wrap(out))


@rule("cat.default")
def _cat(make: Make, tensors: list[torch.Tensor], dim: int = 0) -> None:
    kept = [t for t in tensors if not (t.ndim == 1 and t.numel() == 0)]  # aten's legacy: empty vectors join anything
    if not kept or len({t.dtype for t in kept}) > 1 or len(kept) > 14:
        raise Pass("mixed dtypes, nothing to join or more than 14 tensors")
    shape = list(kept[0].shape)
    dim = dim % len(shape)
    shape[dim] = sum(t.shape[dim] for t in kept)
    formats = {suggest_memory_format(t) for t in tensors}  # aten's rule: the inputs' format where they agree
    strides = None if formats == {torch.contiguous_format} or len(formats) > 1 else torch.empty(shape, device="meta", memory_format=formats.pop()).stride()
    ops.cat([wrap(t) for t in kept], dim, out=wrap(make(0, shape, kept[0].dtype, strides)))


@rule("tril.default")
def _tril(make: Make, self: torch.Tensor, diagonal: int = 0) -> None:
    ops.tril(wrap(self), diagonal, out=wrap(make(0, self.shape, self.dtype)))


@rule("triu.default")
def _triu(make: Make, self: torch.Tensor, diagonal: int = 0) -> None:
    ops.triu(wrap(self), diagonal, out=wrap(make(0, self.shape, self.dtype)))


# ---- reductions ---------------------------------------------------------------------------------------------------------------
def _reduced(shape: Any, dim: Any, keepdim: bool) -> tuple[int, ...]:
    n = len(shape)
    dims = set(range(n)) if dim is None or dim == [] or dim == () else {d % n if n else 0 for d in ([dim] if isinstance(dim, int) else dim)}
    return tuple(1 if i in dims else s for i, s in enumerate(shape) if keepdim or i not in dims)


def _reduce(op: Any, make: Make, self: torch.Tensor, dim: Any, keepdim: bool, out_dtype: torch.dtype, **attrs: Any) -> None:
    if isinstance(dim, list):
        dim = tuple(dim)
    out = make(0, _reduced(self.shape, dim, keepdim), out_dtype)
    op(wrap(self), dim=dim, keepdim=keepdim, **attrs, out=wrap(out))


@rule("sum.default")
def _sum_all(make: Make, self: torch.Tensor, *, dtype: Any = None) -> None:
    _sum(make, self, None, False, dtype=dtype)


@rule("sum.dim_IntList")
def _sum(make: Make, self: torch.Tensor, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> None:
    result = dtype or (self.dtype if self.dtype.is_floating_point else torch.int64)
    if result not in DTYPES or result.is_complex or self.dtype.is_complex:
        raise Pass(f"dtype {result}")
    _reduce(ops.sum, make, self, dim, keepdim, result, dtype=DTYPES[result])


@rule("mean.default")
def _mean_all(make: Make, self: torch.Tensor, *, dtype: Any = None) -> None:
    _mean(make, self, None, False, dtype=dtype)


@rule("mean.dim")
def _mean(make: Make, self: torch.Tensor, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> None:
    result = dtype or self.dtype
    if not result.is_floating_point or result not in DTYPES or not self.dtype.is_floating_point:
        raise Pass(f"mean of {self.dtype} to {result}")
    _reduce(ops.mean, make, self, dim, keepdim, result, dtype=DTYPES[result])


@rule("amax.default")
def _amax(make: Make, self: torch.Tensor, dim: Any = (), keepdim: bool = False) -> None:
    _reduce(ops.amax, make, self, dim, keepdim, self.dtype)


@rule("amin.default")
def _amin(make: Make, self: torch.Tensor, dim: Any = (), keepdim: bool = False) -> None:
    _reduce(ops.amin, make, self, dim, keepdim, self.dtype)


@rule("max.default")
def _max(make: Make, self: torch.Tensor) -> None:
    _reduce(ops.amax, make, self, None, False, self.dtype)


@rule("min.default")
def _min(make: Make, self: torch.Tensor) -> None:
    _reduce(ops.amin, make, self, None, False, self.dtype)


@rule("argmax.default")
def _argmax(make: Make, self: torch.Tensor, dim: int | None = None, keepdim: bool = False) -> None:
    if keepdim and dim is None:
        raise Pass("keepdim without dim")
    _reduce(ops.argmax, make, self, dim, keepdim, torch.int64)


@rule("argmin.default")
def _argmin(make: Make, self: torch.Tensor, dim: int | None = None, keepdim: bool = False) -> None:
    if keepdim and dim is None:
        raise Pass("keepdim without dim")
    _reduce(ops.argmin, make, self, dim, keepdim, torch.int64)


@rule("var.correction")
def _var(make: Make, self: torch.Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> None:
    floating(self)
    _reduce(ops.var, make, self, dim, keepdim, self.dtype, correction=1.0 if correction is None else float(correction))


def _truth(op_name: str) -> Callable[..., None]:
    def run(make: Make, self: torch.Tensor, dim: Any = None, keepdim: bool = False) -> None:
        if self.dtype is torch.uint8:  # aten keeps uint8 here
            raise Pass("uint8")
        if dim is not None and dim != 0 and not dim:  # no axis: the truth of each element, unlike sum's
            raise Pass("an empty list of axes")
        _reduce(getattr(ops, op_name), make, self, dim, keepdim, torch.bool)

    return run


for _name in ("any", "all"):
    RULES[f"aten.{_name}.default"] = RULES[f"aten.{_name}.dim"] = RULES[f"aten.{_name}.dims"] = _truth(_name)


# ---- softmax and norms ----------------------------------------------------------------------------------------------------------
def _along(op_name: str) -> Callable[..., None]:
    def run(make: Make, self: torch.Tensor, dim: int, half_to_float: bool = False) -> None:
        dtype = floating(self)
        if half_to_float:
            raise Pass("half_to_float")
        getattr(ops, op_name)(wrap(self), dim, out=wrap(make(0, self.shape, dtype)))

    return run


RULES["aten._softmax.default"] = _along("softmax")
RULES["aten._log_softmax.default"] = _along("log_softmax")


def _along_backward(op_name: str) -> Callable[..., None]:
    def run(make: Make, grad_output: torch.Tensor, output: torch.Tensor, dim: int, input_dtype: torch.dtype) -> None:
        dtype = floating(grad_output, output)
        if input_dtype is not dtype:
            raise Pass("half_to_float")
        getattr(ops, op_name)(wrap(grad_output), wrap(output), dim, out=wrap(make(0, output.shape, dtype)))

    return run


RULES["aten._softmax_backward_data.default"] = _along_backward("softmax_backward")
RULES["aten._log_softmax_backward_data.default"] = _along_backward("log_softmax_backward")


def _optional(t: torch.Tensor | None) -> Any:
    return None if t is None else wrap(t)


def _statistics(x: torch.Tensor, normalized_shape: Any) -> tuple[int, ...]:
    return (*x.shape[: x.ndim - len(normalized_shape)], *(1,) * len(normalized_shape))


@rule("native_layer_norm.default")
def _layer_norm(make: Make, input: torch.Tensor, normalized_shape: Any, weight: Any, bias: Any, eps: float) -> None:
    dtype = floating(input, weight, bias)
    if dtype in (torch.float16, torch.bfloat16):
        raise Pass("aten keeps 16-bit statistics")
    stats = _statistics(input, normalized_shape)
    outs = make(0, input.shape, dtype), make(1, stats, dtype), make(2, stats, dtype)
    ops.native_layer_norm(wrap(input), tuple(normalized_shape), _optional(weight), _optional(bias), eps, out=tuple(wrap(o) for o in outs))


@rule("_fused_rms_norm.default")
def _rms_norm(make: Make, input: torch.Tensor, normalized_shape: Any, weight: Any, eps: float | None) -> None:
    dtype = floating(input, weight)
    if dtype in (torch.float16, torch.bfloat16):
        raise Pass("aten keeps 16-bit statistics")
    outs = make(0, input.shape, dtype), make(1, _statistics(input, normalized_shape), dtype)
    ops.fused_rms_norm(wrap(input), tuple(normalized_shape), _optional(weight), torch.finfo(dtype).eps if eps is None else eps,
                       out=tuple(wrap(o) for o in outs))


def layer_norm_backward(grad_out: torch.Tensor, input: torch.Tensor, normalized_shape: Any, mean: torch.Tensor, rstd: torch.Tensor,
                        weight: Any, bias: Any, output_mask: list[bool]) -> tuple[Any, ...]:
    """aten.native_layer_norm_backward: results that the mask leaves out are None."""
    floating(grad_out, input, mean, rstd, weight, bias)
    results = [torch.empty_like(input, memory_format=torch.contiguous_format)]
    results += [torch.empty(normalized_shape, dtype=input.dtype) for _ in range(2)]
    ops.native_layer_norm_backward(wrap(grad_out), wrap(input), tuple(normalized_shape), wrap(mean), wrap(rstd), _optional(weight), _optional(bias),
                                   out=tuple(wrap(r) for r in results))
    return tuple(r if keep else None for r, keep in zip(results, output_mask))


# ---- products -------------------------------------------------------------------------------------------------------------------
@rule("mm.default")
def _mm(make: Make, self: torch.Tensor, mat2: torch.Tensor) -> None:
    ops.mm(wrap(self), wrap(mat2), out=wrap(make(0, (self.shape[0], mat2.shape[1]), floating(self, mat2))))


@rule("bmm.default")
def _bmm(make: Make, self: torch.Tensor, mat2: torch.Tensor) -> None:
    ops.bmm(wrap(self), wrap(mat2), out=wrap(make(0, (*self.shape[:2], mat2.shape[2]), floating(self, mat2))))


@rule("mv.default")
def _mv(make: Make, self: torch.Tensor, vec: torch.Tensor) -> None:
    ops.matmul(wrap(self), wrap(vec), out=wrap(make(0, self.shape[:1], floating(self, vec))))


@rule("dot.default")
def _dot(make: Make, self: torch.Tensor, tensor: torch.Tensor) -> None:
    ops.matmul(wrap(self), wrap(tensor), out=wrap(make(0, (), floating(self, tensor))))


@rule("addmm.default")
def _addmm(make: Make, self: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor, *, beta: Any = 1, alpha: Any = 1) -> None:
    out = make(0, (mat1.shape[0], mat2.shape[1]), floating(self, mat1, mat2))
    ops.addmm(wrap(self), wrap(mat1), wrap(mat2), beta=float(beta), alpha=float(alpha), out=wrap(out))


@rule("baddbmm.default")
def _baddbmm(make: Make, self: torch.Tensor, batch1: torch.Tensor, batch2: torch.Tensor, *, beta: Any = 1, alpha: Any = 1) -> None:
    out = make(0, (*batch1.shape[:2], batch2.shape[2]), floating(self, batch1, batch2))
    ops.baddbmm(wrap(self), wrap(batch1), wrap(batch2), beta=float(beta), alpha=float(alpha), out=wrap(out))


# ---- attention --------------------------------------------------------------------------------------------------------------------
@rule("_scaled_dot_product_flash_attention_for_cpu.default")
def _attention(make: Make, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
               attn_mask: Any = None, scale: float | None = None) -> None:
    dtype = floating(query, key, value)
    if dropout_p:
        raise Pass("dropout inside attention")
    b, h, length, e = query.shape
    if value.shape[-1] != e:
        raise Pass("values as long as keys")
    out = make(0, query.shape, dtype, torch.empty_like(query, device="meta").stride())
    lse = make(1, (b, h, length), torch.float64 if dtype is torch.float64 else torch.float32, (h * length, 1, h))  # a row of heads a position
    ops.scaled_dot_product_flash_attention(wrap(query), wrap(key), wrap(value), _optional(attn_mask), is_causal=is_causal, scale=scale,
                                           out=(wrap(out), wrap(lse)))


def _heads_inside(t: torch.Tensor) -> tuple[int, ...]:
    """Strides of (batch, heads, length, e) that lies as (batch, length, heads, e) in memory."""
    _, h, length, e = t.shape
    return h * length * e, e, h * e, 1


@rule("_scaled_dot_product_flash_attention_for_cpu_backward.default")
def _attention_backward(make: Make, grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
                        logsumexp: torch.Tensor, dropout_p: float, is_causal: bool, *, attn_mask: Any = None, scale: float | None = None) -> None:
    dtype = floating(grad_out, query, key, value)
    if dropout_p:
        raise Pass("dropout inside attention")
    results = [make(i, t.shape, dtype, _heads_inside(t)) for i, t in enumerate((query, key, value))]
    ops.scaled_dot_product_flash_attention_backward(wrap(grad_out), wrap(query), wrap(key), wrap(value), wrap(out), wrap(logsumexp),
                                                    _optional(attn_mask), is_causal=is_causal, scale=scale, out=tuple(wrap(r) for r in results))


# ---- indexing ---------------------------------------------------------------------------------------------------------------------
def _index(t: torch.Tensor) -> Any:
    if t.dtype not in (torch.int64, torch.int32):
        raise Pass(f"index dtype {t.dtype}")
    return wrap(t)


@rule("embedding.default")
def _embedding(make: Make, weight: torch.Tensor, indices: torch.Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False) -> None:
    ops.embedding(wrap(weight), _index(indices), out=wrap(make(0, (*indices.shape, *weight.shape[1:]), weight.dtype)))


@rule("embedding_dense_backward.default")
def _embedding_backward(make: Make, grad_output: torch.Tensor, indices: torch.Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool) -> None:
    if scale_grad_by_freq:
        raise Pass("scale_grad_by_freq")
    out = make(0, (num_weights, grad_output.shape[-1]), floating(grad_output))
    ops.embedding_dense_backward(wrap(grad_output), _index(indices), num_weights, padding_idx, out=wrap(out))


@rule("gather.default")
def _gather(make: Make, self: torch.Tensor, dim: int, index: torch.Tensor, *, sparse_grad: bool = False) -> None:
    if sparse_grad or self.ndim != index.ndim:
        raise Pass("sparse_grad, or a 0-d mixture")
    ops.gather(wrap(self), dim, _index(index), out=wrap(make(0, index.shape, self.dtype)))


@rule("scatter_add.default")
def _scatter_add(make: Make, self: torch.Tensor, dim: int, index: torch.Tensor, src: torch.Tensor) -> None:
    if self.dtype is not src.dtype or not self.ndim == index.ndim == src.ndim:
        raise Pass("dtypes differ, or a 0-d mixture")
    ops.scatter_add(wrap(self), dim, _index(index), wrap(src), out=wrap(make(0, self.shape, self.dtype)))


@rule("index_select.default")
def _index_select(make: Make, self: torch.Tensor, dim: int, index: torch.Tensor) -> None:
    if self.ndim == 0 or index.ndim != 1:
        raise Pass("0-d tensors")
    shape = list(self.shape)
    shape[dim] = index.shape[0]
    ops.index_select(wrap(self), dim, _index(index), out=wrap(make(0, shape, self.dtype)))


@rule("index_add.default")
def _index_add(make: Make, self: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, *, alpha: Any = 1) -> None:
    if self.ndim == 0 or index.ndim != 1 or self.dtype is not source.dtype:
        raise Pass("0-d tensors or dtypes that differ")
    ops.index_add(wrap(self), dim, _index(index), wrap(source), alpha=float(alpha), out=wrap(make(0, self.shape, self.dtype)))


# ---- losses and dropout -------------------------------------------------------------------------------------------------------------
@rule("nll_loss_forward.default")
def _nll(make: Make, self: torch.Tensor, target: torch.Tensor, weight: Any, reduction: int, ignore_index: int) -> None:
    dtype = floating(self, weight)
    if target.dtype is not torch.int64:
        raise Pass(f"target dtype {target.dtype}")
    shape = target.shape if reduction == 0 else ()
    outs = make(0, shape, dtype), make(1, (), dtype)
    ops.nll_loss_forward(wrap(self), wrap(target), _optional(weight), REDUCTIONS[reduction], ignore_index, out=tuple(wrap(o) for o in outs))


@rule("nll_loss_backward.default")
def _nll_backward(make: Make, grad_output: torch.Tensor, self: torch.Tensor, target: torch.Tensor, weight: Any, reduction: int, ignore_index: int,
                  total_weight: torch.Tensor) -> None:
    dtype = floating(grad_output, self, weight)
    if target.dtype is not torch.int64:
        raise Pass(f"target dtype {target.dtype}")
    ops.nll_loss_backward(wrap(grad_output), wrap(self), wrap(target), _optional(weight), REDUCTIONS[reduction], ignore_index, wrap(total_weight),
                          out=wrap(make(0, self.shape, dtype)))


@rule("native_dropout.default")
def _dropout(make: Make, input: torch.Tensor, p: float, train: bool | None) -> None:
    dtype = floating(input)
    if train is False:
        raise Pass("dropout in evaluation")
    seed = int(torch.empty((), dtype=torch.int64).random_())  # torch's generator decides, so manual_seed repeats it
    outs = make(0, input.shape, dtype), make(1, input.shape, torch.bool)
    ops.native_dropout(wrap(input), p=p, seed=seed, offset=0, out=tuple(wrap(o) for o in outs))


_add_pointwise()
