"""NumPy as a peer: ufuncs with out=, short compositions in place where NumPy has no function of its own."""
from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .cases import empty_host
from .peers import Peer, Refusal, Work
from .timer import Call

__all__ = ["NumPy"]

# results in the first argument given to out=
_UFUNCS: dict[str, Callable[..., Any]] = {
    "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power, "neg": np.negative, "abs": np.abs, "sign": np.sign,
    "maximum": np.maximum, "minimum": np.minimum, "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "reciprocal": np.reciprocal,
    "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "logical_and": np.logical_and, "logical_or": np.logical_or,
    "logical_not": np.logical_not, "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor,
    "bitwise_not": np.bitwise_not, "add": np.add, "matmul": np.matmul, "mm": np.matmul, "bmm": np.matmul}
_REDUCTIONS: dict[str, Any] = {"sum": np.sum, "mean": np.mean, "amax": np.amax, "amin": np.amin, "any": np.any, "all": np.all}
_BLAS = ("matmul", "mm", "bmm", "addmm", "baddbmm", "linear")


def _axis(dim: Any) -> Any:
    return tuple(dim) if isinstance(dim, (list, tuple)) and dim else dim if isinstance(dim, int) else None


def _sorted(x, dim):
    at = np.argsort(x, dim, kind="stable")
    return np.take_along_axis(x, at, dim), at


def _topk(x, k, dim):
    at = np.take(np.argpartition(x, -k, dim), range(-k, 0), dim)
    at = np.take_along_axis(at, np.flip(np.argsort(np.take_along_axis(x, at, dim), dim), dim), dim)
    return np.take_along_axis(x, at, dim), at


def _kthvalue(x, k, dim):
    at = np.take(np.argpartition(x, k - 1, dim), [k - 1], dim)
    return np.take_along_axis(x, at, dim), at


# ---- compositions: f(o, scratch, *inputs, **attrs) writes o ----------------------------------------------------------
def _relu(o, s, x):
    np.maximum(x, 0, out=o)


def _rsqrt(o, s, x):
    np.sqrt(x, out=o)
    np.reciprocal(o, out=o)


def _sigmoid(o, s, x):
    np.negative(x, out=o)
    np.exp(o, out=o)
    np.add(o, 1, out=o)
    np.reciprocal(o, out=o)


def _silu(o, s, x):
    _sigmoid(o, s, x)
    np.multiply(o, x, out=o)


def _gelu(o, s, x, *, approximate):
    np.multiply(x, x, out=o)
    np.multiply(o, 0.044715, out=o)
    np.add(o, 1, out=o)
    np.multiply(o, x, out=o)
    np.multiply(o, math.sqrt(2 / math.pi), out=o)
    np.tanh(o, out=o)
    np.add(o, 1, out=o)
    np.multiply(o, x, out=o)
    np.multiply(o, 0.5, out=o)


def _masked_fill(o, s, x, mask, *, value):
    np.copyto(o, x)
    np.copyto(o, value, where=mask)


def _addcmul(o, s, x, a, b, *, value):
    np.multiply(a, b, out=o)
    if value != 1:
        np.multiply(o, value, out=o)
    np.add(o, x, out=o)


def _addcdiv(o, s, x, a, b, *, value):
    np.divide(a, b, out=o)
    if value != 1:
        np.multiply(o, value, out=o)
    np.add(o, x, out=o)


def _lerp(o, s, x, end, weight):
    np.subtract(end, x, out=o)
    np.multiply(o, weight, out=o)
    np.add(o, x, out=o)


def _tanh_backward(o, s, dy, y):
    np.multiply(y, y, out=o)
    np.subtract(1, o, out=o)
    np.multiply(o, dy, out=o)


def _sigmoid_backward(o, s, dy, y):
    np.subtract(1, y, out=o)
    np.multiply(o, y, out=o)
    np.multiply(o, dy, out=o)


def _threshold_backward(o, s, dy, x, *, threshold):
    np.greater(x, threshold, out=s)
    np.multiply(dy, s, out=o)


def _native_dropout_backward(o, s, dy, mask, *, scale):
    np.multiply(dy, mask, out=o)
    np.multiply(o, scale, out=o)


def _softmax(o, s, x, *, dim):
    np.subtract(x, x.max(dim, keepdims=True), out=o)
    np.exp(o, out=o)
    np.divide(o, o.sum(dim, keepdims=True), out=o)


def _log_softmax(o, s, x, *, dim):
    np.subtract(x, x.max(dim, keepdims=True), out=o)
    np.exp(o, out=s)
    np.subtract(o, np.log(s.sum(dim, keepdims=True)), out=o)


def _softmax_backward(o, s, dy, y, *, dim):
    np.multiply(dy, y, out=s)
    np.subtract(dy, s.sum(dim, keepdims=True), out=o)
    np.multiply(o, y, out=o)


def _log_softmax_backward(o, s, dy, y, *, dim):
    np.exp(y, out=o)
    np.multiply(o, dy.sum(dim, keepdims=True), out=o)
    np.subtract(dy, o, out=o)


def _layer_norm(o, s, x, weight, bias, *, normalized_shape, eps):
    axes = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    np.subtract(x, x.mean(axes, keepdims=True), out=o)
    np.multiply(o, o, out=s)
    np.multiply(o, 1 / np.sqrt(s.mean(axes, keepdims=True) + x.dtype.type(eps)), out=o)
    if weight is not None:
        np.multiply(o, weight, out=o)
    if bias is not None:
        np.add(o, bias, out=o)


def _rms_norm(o, s, x, weight, *, eps):
    axes = tuple(range(x.ndim - (weight.ndim if weight is not None else 1), x.ndim))
    np.multiply(x, x, out=s)
    np.multiply(x, 1 / np.sqrt(s.mean(axes, keepdims=True) + x.dtype.type(eps)), out=o)
    if weight is not None:
        np.multiply(o, weight, out=o)


def _linear(o, s, x, weight, bias):
    np.matmul(x, weight.T, out=o)
    if bias is not None:
        np.add(o, bias, out=o)


def _addmm(o, s, x, a, b, *, beta, alpha):
    np.matmul(a, b, out=o)
    if alpha != 1:
        np.multiply(o, alpha, out=o)
    if beta:
        np.add(o, x if beta == 1 else beta * x, out=o)


def _index_add(o, s, x, index, source, *, dim, alpha):
    np.copyto(o, x)
    np.add.at(np.moveaxis(o, dim, 0), index, np.moveaxis(source if alpha == 1 else alpha * source, dim, 0))


_COMPOSED: dict[str, Callable[..., None]] = {
    "relu": _relu, "rsqrt": _rsqrt, "sigmoid": _sigmoid, "silu": _silu, "gelu": _gelu, "masked_fill": _masked_fill,
    "addcmul": _addcmul, "addcdiv": _addcdiv, "lerp": _lerp, "tanh_backward": _tanh_backward, "sigmoid_backward": _sigmoid_backward,
    "threshold_backward": _threshold_backward, "native_dropout_backward": _native_dropout_backward, "softmax": _softmax,
    "log_softmax": _log_softmax, "softmax_backward": _softmax_backward, "log_softmax_backward": _log_softmax_backward,
    "layer_norm": _layer_norm, "rms_norm": _rms_norm, "linear": _linear, "addmm": _addmm, "baddbmm": _addmm, "index_add": _index_add}
_SCRATCH = {"log_softmax", "softmax_backward", "layer_norm", "rms_norm"}  # one more array of the input's size
_MASK_SCRATCH = {"threshold_backward"}


def _special(name: str, i: tuple, o: tuple, a: dict[str, Any]) -> list[Call]:
    """Operators whose NumPy function takes its arguments otherwise; [] when it has none."""
    out = {"out": o[0]}
    if name == "clamp":
        return [Call(np.clip, (i[0], a["min"], a["max"]), out)]
    if name == "where":
        def two_copies() -> np.ndarray:
            np.copyto(o[0], i[2])
            np.copyto(o[0], i[1], where=i[0])
            return o[0]

        return [Call(np.where, i, allocates=True), Call(two_copies)]
    if name in _REDUCTIONS:
        return [Call(_REDUCTIONS[name], (i[0], _axis(a["dim"])), {**out, "keepdims": a["keepdim"]})]
    if name == "var":
        return [Call(np.var, (i[0], _axis(a["dim"])), {**out, "ddof": a["correction"], "keepdims": a["keepdim"]})]
    if name in ("argmax", "argmin"):
        return [Call(getattr(np, name), (i[0], a["dim"]), {**out, "keepdims": a["keepdim"]})]
    if name in ("cumsum", "cumprod"):
        return [Call(getattr(np, name), (i[0], a["dim"]), {**out, "dtype": o[0].dtype})]
    if name in ("sort", "argsort") and not a["descending"]:
        return [Call(_sorted if name == "sort" else np.argsort, (i[0], a["dim"]), {} if name == "sort" else {"kind": "stable"}, allocates=True)]
    if name == "topk" and a["largest"]:
        return [Call(_topk, (i[0], a["k"], a["dim"]), allocates=True)]
    if name == "kthvalue" and a["keepdim"]:
        return [Call(_kthvalue, (i[0], a["k"], a["dim"]), allocates=True)]
    if name == "embedding":  # mode "raise" would buffer out=
        return [Call(np.take, (i[0], i[1], 0), {**out, "mode": "clip"})]
    if name == "index_select":
        return [Call(np.take, (i[0], i[1], a["dim"]), {**out, "mode": "clip"})]
    if name == "gather":
        return [Call(np.take_along_axis, (i[0], i[1], a["dim"]), allocates=True)]
    if name == "copy":
        return [Call(np.copyto, (o[0], i[0]), result=lambda _: o[0])]
    if name == "cast":
        return [Call(np.copyto, (o[0], i[0]), {"casting": "unsafe"}, result=lambda _: o[0])]
    if name == "cat":
        return [Call(np.concatenate, (i[0], a["dim"]), out)]
    if name in ("tril", "triu"):
        return [Call(getattr(np, name), (i[0], a["diagonal"]), allocates=True)]
    if name == "arange":
        return [Call(np.arange, (a["start"], a["end"], a["step"], o[0].dtype), allocates=True)]
    if name == "full":
        return [Call(o[0].fill, (a["value"],), result=lambda _: o[0])]
    if name == "rand" and o[0].dtype in (np.float32, np.float64):
        return [Call(np.random.default_rng(0).random, (), {"dtype": o[0].dtype, **out})]
    return []


class NumPy(Peer):
    name = "numpy"
    version = np.__version__

    def __init__(self) -> None:
        self._blas = list(_openblas())
        self.note = "" if self._blas else "its BLAS has no thread control that was found; products ran with its default threads"

    def set_threads(self, n: int) -> None:
        for library in self._blas:
            library(n)

    def calls(self, work: Work) -> list[Call]:
        case = work.case
        name, i, a = case.record.name, work.arrays, case.attrs
        kinds = {s.dtype.numpy for s in case.outputs} | {x.dtype for x in i if isinstance(x, np.ndarray)}
        if any(k.kind == "V" or k.isbuiltin != 1 for k in kinds):
            raise Refusal("no bfloat16 arithmetic of its own")
        if name in _BLAS and np.dtype(np.float16) in kinds:
            raise Refusal("no float16 products in its BLAS")
        if name == "add" and a["alpha"] != 1 or name == "sub" and a["alpha"] != 1 or name == "gelu" and a["approximate"] == "none":
            raise Refusal("no such function")
        o = work.outs()
        if name in _UFUNCS:
            return [Call(_UFUNCS[name], i, {"out": o[0]})]
        if name in _COMPOSED:
            like = next(x for x in i if isinstance(x, np.ndarray))
            scratch = (empty_host(like.shape, like.dtype) if name in _SCRATCH else
                       empty_host(like.shape, np.dtype(bool)) if name in _MASK_SCRATCH else None)
            fn = _COMPOSED[name]
            return [Call(lambda: fn(o[0], scratch, *i, **a), result=lambda _: o[0])]
        found = _special(name, i, o, a)
        if not found:
            raise Refusal("no such function")
        return found


def _openblas() -> list[Callable[[int], None]]:
    """set_num_threads of every OpenBLAS that is loaded; NumPy itself has no call for it."""
    maps = Path("/proc/self/maps")
    np.ones((2, 2)) @ np.ones((2, 2))
    if not maps.exists():
        return []
    found = []
    for path in sorted(set(re.findall(r"\S*openblas\S*\.so\S*", maps.read_text()))):
        library = ctypes.CDLL(path)
        for symbol in ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads64_",
                       "openblas_set_num_threads"):
            if hasattr(library, symbol):
                found.append(getattr(library, symbol))
                break
    return found
