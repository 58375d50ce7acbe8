"""Quantised tensors: quantize_per_token_group, dequantize_per_group, and products of quantised matrices, what they are.

How: kernels/cpu/quant.c, kernels/triton/quant.py.  Not here: choosing scales from data (calibration), int8 convolution.
"""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ...hal.dtype import BY_NAME, DType
from ...hal.errors import ArgumentError, DTypeError, ShapeError
from .budget import Exact, Faithful, Reduction
from .infer import need, need_dtype, need_rank, same_dtype
from .record import Bad, Cost, In, Sample, Spec, op

_NUMBERS = tuple(BY_NAME[n] for n in ("float32", "bfloat16", "float16"))
_F32, _I8, _U8, _E4M3, _E5M2 = (BY_NAME[n] for n in ("float32", "int8", "uint8", "float8_e4m3fn", "float8_e5m2"))
_MOST = {"int8": 127.0, "float8_e4m3fn": 448.0}  # the largest code
_MOST_TERMS = 131071  # of -128 * -128 that an int32 sum holds


# ---- by group ------------------------------------------------------------------------------------------------------------
def _groups(name: str, x: Spec, group_size: int) -> tuple[int, ...]:
    """The shape of one number a group of the last axis."""
    need(group_size >= 1, f"{name}: group_size is {group_size}; needs 1 or more")
    if x.ndim == 0 or x.shape[-1] % group_size:
        raise ShapeError(f"{name}: {x.shape} in groups of {group_size}; the last axis needs whole groups")
    return (*x.shape[:-1], x.shape[-1] // group_size)


def _infer_quantize(x: Spec, *, group_size: int, dtype: DType, eps: float) -> tuple[Spec, Spec]:
    name = "quantize_per_token_group"
    need_dtype(name, "x", x, _NUMBERS)
    if dtype.name not in _MOST:
        raise DTypeError(f"{name}: codes would be {dtype}; makes {' and '.join(_MOST)}")
    need(1e-30 <= eps <= 1e30, f"{name}: eps is {eps:g}; needs 1e-30 <= eps <= 1e30")
    return Spec(x.shape, dtype), Spec(_groups(name, x, group_size), _F32)


def _quantize(x, *, group_size, dtype, eps):
    """float32 throughout, since the codes are promised to the bit."""
    groups = np.asarray(x, np.float32).reshape(*x.shape[:-1], x.shape[-1] // group_size, group_size)
    with np.errstate(all="ignore"):
        most = np.maximum(np.abs(groups).max(-1, initial=0.0), np.float32(eps))
        scales = (most / np.float32(_MOST[dtype.name])).astype(np.float32)
        codes = np.clip(groups / scales[..., None], -_MOST[dtype.name], _MOST[dtype.name]).reshape(x.shape)
        if dtype.is_integer:
            return np.where(np.isnan(codes), 0, np.rint(codes)).astype(np.int8), scales
        return codes.astype(ml_dtypes.float8_e4m3fn).astype(np.float64), scales


def _quantize_cost(item: int, x: Spec, **attrs: Any) -> Cost:
    codes, scales = _infer_quantize(x, **attrs)
    return Cost(flops=3 * x.size, bytes=x.size * x.dtype.itemsize + codes.size + 4 * scales.size)


def _infer_dequantize(codes: Spec, scales: Spec, zeros: Spec | None, *, group_size: int, dtype: DType | None) -> Spec:
    name = "dequantize_per_group"
    need_dtype(name, "codes", codes, (_I8, _U8, _E4M3, _E5M2))
    need_dtype(name, "scales", scales, _NUMBERS)
    same_dtype(name, scales, zeros)
    made = dtype or scales.dtype
    if made not in _NUMBERS:
        raise DTypeError(f"{name}: the result would be {made}; makes float32, bfloat16, float16")
    shape = _groups(name, codes, group_size)
    for what, t in (("scales", scales), ("zeros", zeros)):
        if t is not None and t.shape != shape:
            raise ShapeError(f"{name}: {what} is {t.shape} for codes {codes.shape} in groups of {group_size}; needs {shape}")
    return Spec(codes.shape, made)


def _dequantize(codes, scales, zeros, *, group_size, dtype):
    groups = codes.reshape(*codes.shape[:-1], codes.shape[-1] // group_size, group_size).astype(scales.dtype)
    with np.errstate(all="ignore"):
        return ((groups - (0.0 if zeros is None else zeros[..., None])) * scales[..., None]).reshape(codes.shape)


def _dequantize_cost(item: int, codes: Spec, scales: Spec, zeros: Spec | None, **attrs: Any) -> Cost:
    y = _infer_dequantize(codes, scales, zeros, **attrs)
    return Cost(flops=2 * y.size, bytes=codes.size + y.size * y.dtype.itemsize + sum(s.size * s.dtype.itemsize for s in (scales, zeros) if s))


# name, shape, group: sizes around the host's lines of 256 and the Triton tile of 1024
_GROUPS = (("one", (1,), 1), ("prime", (7, 13), 13), ("pairs", (3, 5, 8), 2), ("by_element", (5, 7), 1), ("tokens_128", (5, 384), 128),
           ("line", (3, 256), 256), ("past_line", (3, 514), 257), ("past_tile", (2, 2050), 1025), ("nothing", (3, 0), 4))
_QUANTIZE = [Sample(n, (In(s),), {"group_size": g, "dtype": (_I8, _E4M3)[i % 2]}) for i, (n, s, g) in enumerate(_GROUPS)] + [
    # halves of the step, and a group of zeros: its scale is eps / 127
    Sample("halves", (In((2, 5), values=(127.0, 0.5, 1.5, 2.5, -2.5, 0.0, 0.0, -0.0, 0.0, 0.0)),), {"group_size": 5, "dtype": _I8}),
    Sample("eps", (In((3, 8)),), {"group_size": 4, "dtype": _I8, "eps": 1.0}),
    Sample("many_groups", (In((67, 257)),), {"group_size": 1, "dtype": _E4M3}, cover="once"),
    Sample("threads", (In((131, 256)),), {"group_size": 64, "dtype": _I8}, cover="once"),
    Sample("deepseek_tokens", (In((128, 7168)),), {"group_size": 128, "dtype": _E4M3}, "DeepSeek-V3 hidden states in groups of 128, 128 tokens",
           "llm", ("full", "llm")),
    Sample("llama_tokens", (In((128, 4096)),), {"group_size": 4096, "dtype": _I8}, "Llama-7B hidden states, a scale a token", "llm", ("llm",))]
_DEQUANTIZE = [Sample(n, (In(s, "wide" if d in ("int8", "uint8") else "normal", d), In((*s[:-1], s[-1] // g)),
                          In((*s[:-1], s[-1] // g)) if i % 3 else None), {"group_size": g})
               for i, (n, s, g) in enumerate(_GROUPS) for d in [("int8", "uint8", "int8", "float8_e4m3fn")[i % 4]]] + [
    Sample("e5m2", (In((3, 8), "normal", "float8_e5m2"), In((3, 2)), None), {"group_size": 4}),
    Sample("to_bf16", (In((3, 8), "wide", "int8"), In((3, 2)), In((3, 2))), {"group_size": 4, "dtype": BY_NAME["bfloat16"]}),
    Sample("many_groups", (In((67, 257), "wide", "int8"), In((67, 257)), None), {"group_size": 1}, cover="once"),
    Sample("threads", (In((131, 256), "wide", "uint8"), In((131, 4)), In((131, 4))), {"group_size": 64}, cover="once"),
    Sample("llama_weight", (In((4096, 4096), "wide", "int8"), In((4096, 32)), In((4096, 32))), {"group_size": 128},
           "Llama-7B projection, groups of 128", "full", ("full", "llm"))]

op("quantize_per_token_group(Tensor x, int group_size, *, dtype dtype=int8, float eps=1e-10) -> (Tensor codes, Tensor scales)",
   family="quant", dtypes=_NUMBERS, infer=_infer_quantize, reference=_quantize, budget=Exact(), cost=_quantize_cost, samples=_QUANTIZE,
   doc="Codes of x in groups of group_size along the last axis, and a float32 scale a group: max(|x|, eps) / 127, or / 448 for "
       "float8_e4m3fn; a code is x / scale to the nearest, halves to even.  All in float32, each division rounded once.  A group with NaN "
       "has the scale NaN, and codes 0 (int8) or NaN.", names={"vllm": ("per_token_group_quant_int8", "per_token_group_quant_fp8")},
   bad=(Bad("part_of_a_group", (In((3, 10)),), ShapeError, ("(3, 10)", "4", "whole groups"), {"group_size": 4}),
        Bad("group_0", (In((3, 10)),), ArgumentError, ("group_size is 0",), {"group_size": 0}),
        Bad("eps_0", (In((3, 8)),), ArgumentError, ("eps is 0", "1e-30"), {"group_size": 4, "eps": 0.0}),
        Bad("to_int16", (In((3, 8)),), DTypeError, ("int16", "int8"), {"group_size": 4, "dtype": BY_NAME["int16"]})))

op("dequantize_per_group(Tensor codes, Tensor scales, Tensor? zeros, int group_size, *, dtype? dtype=None) -> Tensor",
   family="quant", dtypes=_NUMBERS, infer=_infer_dequantize, reference=_dequantize, budget=Faithful(k=2), cost=_dequantize_cost,
   samples=_DEQUANTIZE,
   doc="(code - zero) * scale, with one scale and, where given, one zero point for each group_size codes of the last axis; computed in "
       "float32, stored as the scales are where dtype is left out.  codes: int8, uint8, float8_e4m3fn or float8_e5m2.",
   names={"onnx": ("DequantizeLinear",), "torchao": ("dequantize_affine",)},
   bad=(Bad("scales_of_rows", (In((3, 8), "int", "int8"), In((3, 1)), None), ShapeError, ("(3, 1)", "(3, 2)"), {"group_size": 4}),
        Bad("zeros", (In((3, 8), "int", "int8"), In((3, 2)), In((3, 1))), ShapeError, ("zeros", "(3, 1)"), {"group_size": 4}),
        Bad("int16", (In((3, 8), "int", "int16"), In((3, 2)), None), DTypeError, ("int16", "int8"), {"group_size": 4})))


# ---- products ------------------------------------------------------------------------------------------------------------
def _vector(name: str, what: str, t: Spec | None, n: int, single: bool) -> None:
    if t is not None and t.shape != (n,) and not (single and t.shape == (1,)):
        raise ShapeError(f"{name}: {what} is {t.shape}; needs {(n,)}{' or (1,)' if single else ''}")


def _operands(name: str, x: Spec, weight: Spec, terms: int, what: str = "weight") -> None:
    need_rank(name, "x", x, 2)
    need_rank(name, what, weight, 2)
    if x.shape[1] != terms:
        raise ShapeError(f"{name}: x is {x.shape} and {what} {weight.shape}; x has {x.shape[1]} terms, {what} {terms}")


def _infer_int8(x: Spec, weight: Spec, scales: Spec) -> Spec:
    name = "weight_int8_mm"
    need_dtype(name, "x", x, _NUMBERS)
    need_dtype(name, "weight", weight, (_I8,))
    same_dtype(name, x, scales)
    _operands(name, x, weight, weight.shape[-1] if weight.ndim else 0)
    _vector(name, "scales", scales, weight.shape[0], False)
    return Spec((x.shape[0], weight.shape[0]), x.dtype)


def _infer_int4(x: Spec, weight: Spec, scales: Spec, zeros: Spec, *, group_size: int) -> Spec:
    name = "weight_int4_mm"
    need_dtype(name, "x", x, _NUMBERS)
    need_dtype(name, "weight", weight, (_U8,))
    same_dtype(name, x, scales, zeros)
    _operands(name, x, weight, 2 * weight.shape[-1] if weight.ndim else 0)
    shape = _groups(name, Spec((weight.shape[0], x.shape[1]), _U8), group_size)
    for what, t in (("scales", scales), ("zeros", zeros)):
        if t.shape != shape:
            raise ShapeError(f"{name}: {what} is {t.shape}; needs {shape}: a number for each {group_size} terms of each row of weight")
    return Spec((x.shape[0], weight.shape[0]), x.dtype)


def _scaled(name: str, scale_a: Spec, scale_b: Spec, bias: Spec | None, m: int, n: int, made: DType, names: tuple[str, str]) -> Spec:
    for what, t, size, single in ((names[0], scale_a, m, True), (names[1], scale_b, n, True), ("bias", bias, n, False)):
        if t is not None:
            need_dtype(name, what, t, (_F32,))
            _vector(name, what, t, size, single)
    if made not in _NUMBERS:
        raise DTypeError(f"{name}: the result would be {made}; makes float32, bfloat16, float16")
    return Spec((m, n), made)


def _infer_fp8(a: Spec, b: Spec, scale_a: Spec, scale_b: Spec, bias: Spec | None, *, dtype: DType) -> Spec:
    name = "scaled_mm_fp8"
    for what, t in (("a", a), ("b", b)):
        need_dtype(name, what, t, (_E4M3, _E5M2))
    _operands(name, a, b, b.shape[0] if b.ndim else 0, "b")
    return _scaled(name, scale_a, scale_b, bias, a.shape[0], b.shape[1], dtype, ("scale_a", "scale_b"))


def _infer_qlinear(x: Spec, weight: Spec, scale_x: Spec, scale_weight: Spec, bias: Spec | None, *, dtype: DType) -> Spec:
    name = "qlinear_int8"
    for what, t in (("x", x), ("weight", weight)):
        need_dtype(name, what, t, (_I8,))
    _operands(name, x, weight, weight.shape[-1] if weight.ndim else 0)
    if x.shape[1] > _MOST_TERMS:
        raise ShapeError(f"{name}: {x.shape[1]} terms; int32 sums hold {_MOST_TERMS} at most")
    return _scaled(name, scale_x, scale_weight, bias, x.shape[0], weight.shape[0], dtype, ("scale_x", "scale_weight"))


def _real(x):
    """Integers as they enter a float product."""
    return x if x.dtype.kind == "f" else x.astype(np.float64)


def _int8(x, weight, scales):
    with np.errstate(all="ignore"):
        return (x @ weight.T.astype(x.dtype)) * scales


def _int4_weight(weight, scales, zeros, group_size):
    n, half = weight.shape
    codes = np.stack([weight & 15, weight >> 4], -1).reshape(n, 2 * half // group_size, group_size).astype(scales.dtype)
    return ((codes - zeros[..., None]) * scales[..., None]).reshape(n, 2 * half)


def _int4(x, weight, scales, zeros, *, group_size):
    with np.errstate(all="ignore"):
        return x @ _int4_weight(weight, scales, zeros, group_size).T


def _times_scales(sums, scale_a, scale_b, bias):
    with np.errstate(all="ignore"):
        y = sums * scale_a[:, None] * scale_b
        return y if bias is None else y + bias


def _fp8(a, b, scale_a, scale_b, bias, *, dtype):
    with np.errstate(all="ignore"):
        return _times_scales(_real(a) @ _real(b), scale_a, scale_b, bias)


def _qlinear(x, weight, scale_x, scale_weight, bias, *, dtype):
    sums = _real(x) @ _real(weight).T  # whole numbers below 2^31: exact in float64
    return _times_scales(sums.astype(scale_x.dtype), scale_x, scale_weight, bias)


def _int8_magnitude(x, weight, scales):
    return _int8(np.abs(x), np.abs(weight.astype(np.float64)), np.abs(scales))


def _int4_magnitude(x, weight, scales, zeros, *, group_size):
    return np.abs(x) @ _int4_weight(weight, np.abs(scales), -np.abs(zeros), group_size).T


def _scaled_magnitude(a, b, scale_a, scale_b, bias):
    """Infinite, no promise, where the sum times the row's factor leaves the normal numbers of float32 on the way."""
    with np.errstate(all="ignore"):
        large, way = (np.abs(a) @ np.abs(b)) * np.abs(scale_a)[:, None], np.abs(a @ b) * np.abs(scale_a)[:, None]
        s = large * np.abs(scale_b) + (0.0 if bias is None else np.abs(bias))
        return np.where((large > 3.4e38) | ((way > 0) & (way < 2.0**-126)), np.inf, s)


def _fp8_magnitude(a, b, scale_a, scale_b, bias, *, dtype):
    return _scaled_magnitude(_real(a), _real(b), scale_a, scale_b, bias)


def _qlinear_magnitude(x, weight, scale_x, scale_weight, bias, *, dtype):
    return _scaled_magnitude(_real(x), _real(weight).T, scale_x, scale_weight, bias)


def _terms(x: Spec, *others: Any, **_: Any) -> int:
    return x.shape[1] + 3


def _product_cost(infer):
    def cost(item: int, x: Spec, *given: Spec | None, **attrs: Any) -> Cost:
        y = infer(x, *given, **attrs)
        return Cost(flops=2 * y.size * x.shape[1], bytes=sum(s.size * s.dtype.itemsize for s in (x, *given, y) if s is not None))

    return cost


def _int8_grad(o, dy, inputs, y, attrs):
    x, weight, scales = inputs
    n, k = weight.shape
    if k == 0:
        return o.full(tuple(x.shape), 0.0, dtype=x.dtype), None, None
    return o.mm(dy, o.dequantize_per_group(weight, scales.reshape((n, 1)), None, k)), None, None


# M, K, N: the host reads the weight once up to 4 rows, in lines of 256 terms and tasks of 128 columns, 512 rows at a time; Triton
# takes tiles of 16 to 64
_MKN = (("one", 1, 2, 1), ("prime", 7, 26, 11), ("no_terms", 5, 0, 3), ("no_rows", 0, 4, 3), ("no_columns", 3, 4, 0), ("row", 1, 258, 33),
        ("four_rows", 4, 514, 17), ("five_rows", 5, 514, 17), ("past_tile", 17, 66, 131))
_PAST = (("past_rows", 515, 10, 5), ("past_columns", 33, 258, 137), ("threads", 2, 1032, 301))
_MODELS = (("llama_decode", 1, 4096, 11008, "Llama-7B ffn, decode", "full", ("full", "llm")),
           ("llama_prefill", 128, 4096, 4096, "Llama-7B projection, 128 tokens", "full", ("full", "llm")),
           ("bert_ffn", 128, 768, 3072, "BERT-base ffn, 128 tokens", "inference", ("full",)))


def _samples(build):
    """build(m, k, n, number) -> inputs, attrs."""
    rows = [(n, mkn, "", "core", (), "") for n, *mkn in _MKN] + [(n, mkn, "", "core", (), "once") for n, *mkn in _PAST]
    rows += [(n, mkn, model, level, bench, "") for n, *mkn, model, level, bench in _MODELS]
    return [Sample(n, *build(*mkn, i), model, level, bench, cover) for i, (n, mkn, model, level, bench, cover) in enumerate(rows)]


def _build_int8(m, k, n, i):
    return (In((m, k)), In((n, k), "wide", "int8"), In((n,), "unit")), {}


def _build_int4(m, k, n, i):
    group = next(g for g in ((128, 32, 2) if i % 2 else (64, 26, 6, 2)) if k % g == 0)
    return (In((m, k)), In((n, k // 2), "wide", "uint8"), In((n, k // group), "unit"), In((n, k // group), "positive")), {"group_size": group}


_MADE = (BY_NAME["bfloat16"], _F32, BY_NAME["float16"])


def _build_fp8(m, k, n, i):
    return (In((m, k), "normal", "float8_e5m2" if i % 5 == 4 else "float8_e4m3fn"),
            In((k, n), "normal", "float8_e4m3fn", layout="transposed" if i % 2 else ""),
            In((m if i % 3 else 1,), "positive"), In((n if i % 4 else 1,), "positive"), In((n,)) if i % 2 else None), {"dtype": _MADE[i % 3]}


def _build_qlinear(m, k, n, i):
    return (In((m, k), "wide", "int8"), In((n, k), "wide", "int8"), In((m if i % 3 else 1,), "unit"), In((n if i % 4 else 1,), "unit"),
            In((n,)) if i % 2 else None), {"dtype": _MADE[(i + 1) % 3]}


_INT8 = (In((3, 4)), In((5, 4), "int", "int8"), In((5,)))
_INT4 = (In((3, 8)), In((5, 4), "int", "uint8"), In((5, 2)), In((5, 2)))
_FP8 = (In((3, 4), dtype="float8_e4m3fn"), In((4, 5), dtype="float8_e4m3fn"), In((3,)), In((5,)), None)
_QLINEAR = (In((3, 4), "int", "int8"), In((5, 4), "int", "int8"), In((3,)), In((5,)), None)


def _with(inputs: tuple, at: int, other: In) -> tuple:
    return (*inputs[:at], other, *inputs[at + 1:])


op("weight_int8_mm(Tensor x, Tensor weight, Tensor scales) -> Tensor", family="quant", dtypes=_NUMBERS, infer=_infer_int8, reference=_int8,
   budget=Reduction(terms=_terms, magnitude=_int8_magnitude, probe=False), cost=_product_cost(_infer_int8), samples=_samples(_build_int8),
   doc="x (m, k) times an int8 weight (n, k), transposed, times scales (n,), a scale a row of weight: (m, n).  Sums in float32.",
   grad=_int8_grad, names={"aten": ("_weight_int8pack_mm",)},
   bad=(Bad("terms", _with(_INT8, 1, In((5, 3), "int", "int8")), ShapeError, ("(3, 4)", "(5, 3)", "terms")),
        Bad("scales", _with(_INT8, 2, In((4,))), ShapeError, ("scales", "(4,)", "(5,)")),
        Bad("uint8", _with(_INT8, 1, In((5, 4), "int", "uint8")), DTypeError, ("uint8", "int8"))))

op("weight_int4_mm(Tensor x, Tensor weight, Tensor scales, Tensor zeros, int group_size) -> Tensor", family="quant", dtypes=_NUMBERS,
   infer=_infer_int4, reference=_int4, budget=Reduction(terms=_terms, magnitude=_int4_magnitude, probe=False),
   cost=_product_cost(_infer_int4), samples=_samples(_build_int4),
   doc="x (m, k) times a weight of 4-bit codes, transposed: (m, n).  weight (n, k / 2) uint8 has term 2 i in the low and 2 i + 1 in the high "
       "half of byte i; a term is (code - zero) * scale, zeros and scales (n, k / group_size).  Weights and sums in float32.",
   names={"onnxruntime": ("MatMulNBits",)},
   bad=(Bad("terms", _with(_INT4, 1, In((5, 8), "int", "uint8")), ShapeError, ("(3, 8)", "(5, 8)", "terms"), {"group_size": 4}),
        Bad("scales", _with(_INT4, 2, In((5, 4))), ShapeError, ("scales", "(5, 4)", "(5, 2)"), {"group_size": 4}),
        Bad("part_of_a_group", _INT4, ShapeError, ("whole groups", "3"), {"group_size": 3}),
        Bad("int8", _with(_INT4, 1, In((5, 4), "int", "int8")), DTypeError, ("int8", "uint8"), {"group_size": 4})))

op("scaled_mm_fp8(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor? bias=None, *, dtype dtype=bfloat16) -> Tensor", family="quant",
   dtypes=(_F32,), infer=_infer_fp8, reference=_fp8, budget=Reduction(terms=_terms, magnitude=_fp8_magnitude, probe=False),
   cost=_product_cost(_infer_fp8), samples=_samples(_build_fp8),
   doc="(a b) * scale_a * scale_b + bias: a (m, k) and b (k, n) float8_e4m3fn or float8_e5m2; scale_a (m,) or (1,), scale_b (n,) or (1,) and "
       "bias (n,) float32; the result (m, n) float32, bfloat16 or float16.  Sums in float32.", names={"vllm": ("cutlass_scaled_mm",)},
   bad=(Bad("terms", _with(_FP8, 1, In((3, 5), dtype="float8_e4m3fn")), ShapeError, ("(3, 4)", "(3, 5)", "terms")),
        Bad("scale", _with(_FP8, 2, In((2,))), ShapeError, ("scale_a", "(2,)", "(3,)")),
        Bad("float16", _with(_FP8, 0, In((3, 4), dtype="float16")), DTypeError, ("float16", "float8_e4m3fn")),
        Bad("to_float64", _FP8, DTypeError, ("float64", "bfloat16"), {"dtype": BY_NAME["float64"]})))

op("qlinear_int8(Tensor x, Tensor weight, Tensor scale_x, Tensor scale_weight, Tensor? bias=None, *, dtype dtype=float32) -> Tensor",
   family="quant", dtypes=(_F32,), infer=_infer_qlinear, reference=_qlinear,
   budget=Reduction(terms=_terms, magnitude=_qlinear_magnitude, probe=False), cost=_product_cost(_infer_qlinear),
   samples=_samples(_build_qlinear),
   doc="x (m, k) int8 times weight (n, k) int8, transposed, summed in int32, times scale_x (m,) or (1,) and scale_weight (n,) or (1,), plus bias "
       "(n,), all float32; the result (m, n) float32, bfloat16 or float16.", names={"torchao": ("int_scaled_matmul",)},
   bad=(Bad("terms", _with(_QLINEAR, 1, In((5, 3), "int", "int8")), ShapeError, ("(3, 4)", "(5, 3)", "terms")),
        Bad("bias", (*_QLINEAR[:4], In((1,))), ShapeError, ("bias", "(1,)", "(5,)")),
        Bad("uint8", _with(_QLINEAR, 0, In((3, 4), "int", "uint8")), DTypeError, ("uint8", "int8")),
        Bad("too_long", (In((1, 131072), "int", "int8"), In((1, 131072), "int", "int8"), In((1,)), In((1,)), None), ShapeError,
            ("131072", "131071"))))
