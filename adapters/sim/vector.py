"""What each pure TTIR operation computes: a table from the operation's name to a builder of a NumPy function.

A value of type tensor<S x T> is an array (P, *S), P programs; a scalar is (P,).  Any axis may have length 1 instead,
meaning "the same all along it": splat and broadcast cost nothing, and arithmetic on what is uniform stays small.
Memory, control flow, reduce and scan are in ``memory.py`` and ``execute.py``.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ...hal.errors import Unsupported
from . import numeric
from .ir import Op, Type

__all__ = ["BUILDERS", "ELEMENTWISE", "UFUNCS", "fill", "numpy_type"]

Function = Callable[..., Any]  # arrays in, an array (or a list of arrays) out
Builder = Callable[[Op, list[Type], list[Type]], Function]

_ELEMENTS = {
    "i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "index": np.int64,
    "ptr": np.int64,
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64,
    "f8E4M3FN": ml_dtypes.float8_e4m3fn, "f8E5M2": ml_dtypes.float8_e5m2,
    "f8E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "f8E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}  # fmt: skip
_NUMPY = {name: np.dtype(t) for name, t in _ELEMENTS.items()}
_BOOL, _F32, _F64 = np.dtype(bool), np.dtype(np.float32), np.dtype(np.float64)
BUILDERS: dict[str, Builder] = {}
ELEMENTWISE: set[str] = set()  # operations whose result at a point depends on the operands at that point alone


def numpy_type(t: Type | str) -> np.dtype:
    """The NumPy type of a TTIR element.  Signless integers are kept signed; addresses are int64."""
    name = t if isinstance(t, str) else t.elem
    found = _NUMPY.get(name)
    if found is None:
        raise Unsupported(f"element type {name} is not one of {', '.join(_NUMPY)}")
    return found


def fill(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """x with every axis but the programs' at its full length (a view)."""
    return x if x.shape[1:] == shape else np.broadcast_to(x, (x.shape[0], *shape))


def _register(*names: str, elementwise: bool = False):
    def add(builder: Builder) -> Builder:
        for name in names:
            BUILDERS[name] = builder
            if elementwise:
                ELEMENTWISE.add(name)
        return builder

    return add


def _table(functions: Mapping[str, Function]) -> None:
    """Operations that need neither attributes nor types; a later row replaces an earlier one of the same name."""
    for name, function in functions.items():
        BUILDERS[name] = _always(function)
        ELEMENTWISE.add(name)


def _always(function: Function) -> Builder:
    return lambda op, args, outs: function


# ---- integers ---------------------------------------------------------------------------------------------------------
def _on_unsigned(f: Function) -> Function:
    return lambda a, b: f(numeric.unsigned(a), numeric.unsigned(b)).view(a.dtype)


def _bool_as(f: Function, boolean: Function) -> Function:
    """i1 wraps at 1 bit, where NumPy's bool does not wrap at all."""
    return lambda a, b: boolean(a, b) if a.dtype == _BOOL else f(a, b)


def _signed(x: np.ndarray) -> np.ndarray:
    return -x.view(np.int8) if x.dtype == _BOOL else x  # a set i1 is -1 when read as signed


def _floor_div(a, b):
    return a // b


def _ceil_div(a, b):
    return -((-a) // b)


def _mulhi_unsigned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    ua, ub = numeric.unsigned(a), numeric.unsigned(b)
    if a.dtype.itemsize < 8:
        return ((ua.astype(np.uint64) * ub) >> np.uint64(8 * a.dtype.itemsize)).astype(ua.dtype).view(a.dtype)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    al, ah, bl, bh = ua & mask, ua >> half, ub & mask, ub >> half
    mid = ah * bl + ((al * bl) >> half)  # below 2**64: (2**32 - 1)**2 + 2**32 - 1
    mid2 = al * bh + (mid & mask)
    return (ah * bh + (mid >> half) + (mid2 >> half)).view(a.dtype)


UFUNCS: dict[str, np.ufunc] = {  # both operands alike, any order of combination exact: reduce and scan use these too
    "arith.andi": np.bitwise_and, "arith.ori": np.bitwise_or, "arith.xori": np.bitwise_xor,
    "arith.maxsi": np.maximum, "arith.minsi": np.minimum,
    "arith.maximumf": np.maximum, "arith.minimumf": np.minimum,
    "arith.maxnumf": np.fmax, "arith.minnumf": np.fmin,
    "arith.addi": np.add, "arith.muli": np.multiply,
}  # fmt: skip
_table(UFUNCS)
_table(numeric.EXTREMES)
_table({
    "arith.addi": _bool_as(np.add, np.bitwise_xor), "arith.subi": _bool_as(np.subtract, np.bitwise_xor),
    "arith.muli": np.multiply,
    "arith.divsi": numeric.trunc_div, "arith.remsi": numeric.trunc_rem,
    "arith.divui": _on_unsigned(numeric.trunc_div), "arith.remui": _on_unsigned(numeric.trunc_rem),
    "arith.floordivsi": _floor_div, "arith.ceildivsi": _ceil_div,
    "arith.shli": np.left_shift, "arith.shrsi": np.right_shift, "arith.shrui": _on_unsigned(np.right_shift),
    "arith.maxui": _on_unsigned(np.maximum), "arith.minui": _on_unsigned(np.minimum),
    "arith.maxsi": _bool_as(np.maximum, np.bitwise_and), "arith.minsi": _bool_as(np.minimum, np.bitwise_or),
    "tt.mulhiui": _mulhi_unsigned, "math.absi": np.abs,
})  # fmt: skip

# ---- floats -----------------------------------------------------------------------------------------------------------
_table({
    "arith.addf": np.add, "arith.subf": np.subtract, "arith.mulf": np.multiply, "arith.divf": np.divide,
    "arith.remf": np.fmod, "arith.negf": np.negative, "tt.precise_divf": np.divide,
    "math.absf": np.abs, "math.floor": np.floor, "math.ceil": np.ceil, "math.trunc": np.trunc,
    "math.roundeven": np.rint, "math.sqrt": np.sqrt, "tt.precise_sqrt": np.sqrt, "math.copysign": np.copysign,
    "math.fma": numeric.fma, "math.erf": numeric.erf,
})  # fmt: skip


def _through_f64(f: Function) -> Function:
    """Evaluate in float64 and round once: NumPy's own float32 exp and log err by up to 4 ulp and differ by machine."""
    return lambda x: f(x) if x.dtype == _F64 else numeric.cast_float(f(x.astype(np.float64)), x.dtype)


_IN_FLOAT64: dict[str, Function] = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log10": np.log10,
    "log1p": np.log1p, "sin": np.sin, "cos": np.cos, "tan": np.tan, "tanh": np.tanh, "sinh": np.sinh, "cosh": np.cosh,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "cbrt": np.cbrt, "rsqrt": lambda x: 1.0 / np.sqrt(x),
}  # fmt: skip
_table({f"math.{name}": _through_f64(f) for name, f in _IN_FLOAT64.items()})


def _binary_f64(f: Function) -> Function:
    return lambda a, b: numeric.cast_float(f(a.astype(np.float64), b.astype(np.float64)), a.dtype)


_table({"math.powf": _binary_f64(np.power), "math.atan2": _binary_f64(np.arctan2)})


@_register("tt.clampf", elementwise=True)
def _clampf(op, args, outs):
    names = ("maximumf", "minimumf") if op.attrs.get("propagateNan", "none") == "all" else ("maxnumf", "minnumf")
    most, least = (numeric.EXTREMES[f"arith.{n}"] for n in names)
    return lambda x, low, high: least(most(x, low), high)


# ---- comparison and choice ---------------------------------------------------------------------------------------------
_SIGNED = {"eq": np.equal, "ne": np.not_equal, "slt": np.less, "sle": np.less_equal, "sgt": np.greater,
           "sge": np.greater_equal}
_ORDER = {"ult": np.less, "ule": np.less_equal, "ugt": np.greater, "uge": np.greater_equal}
_ORDERED = {"oeq": np.equal, "olt": np.less, "ole": np.less_equal, "ogt": np.greater, "oge": np.greater_equal,
            "une": np.not_equal}
_NEGATED = {"ueq": "one", "ult": "oge", "ule": "ogt", "ugt": "ole", "uge": "olt"}  # true where the other is false


@_register("arith.cmpi", elementwise=True)
def _cmpi(op, args, outs):
    predicate = op.words[0]
    if predicate in _ORDER:
        f = _ORDER[predicate]
        return lambda a, b: f(numeric.unsigned(a), numeric.unsigned(b))
    f = _SIGNED[predicate]
    if args[0].elem == "i1" and predicate not in ("eq", "ne"):
        return lambda a, b: f(_signed(a), _signed(b))
    return f


@_register("arith.cmpf", elementwise=True)
def _cmpf(op, args, outs):
    predicate = op.words[0]
    f = _ORDERED.get(predicate)
    if f is not None:
        return f
    if predicate == "one":
        return lambda a, b: (a < b) | (a > b)
    if predicate == "ueq":
        return lambda a, b: ~((a < b) | (a > b))
    if predicate in _NEGATED:
        g = _ORDERED[_NEGATED[predicate]]
        return lambda a, b: ~g(a, b)
    if predicate in ("ord", "uno"):
        want = predicate == "ord"
        return lambda a, b: ((a == a) & (b == b)) == want
    value = predicate == "true"
    return lambda a, b: np.full(np.broadcast_shapes(a.shape, b.shape), value)


@_register("arith.select", elementwise=True)
def _select(op, args, outs):
    extra = (1,) * (outs[0].rank - args[0].rank)
    if extra:
        return lambda c, a, b: np.where(c.reshape(c.shape[0], *extra), a, b)
    return np.where


# ---- conversions ------------------------------------------------------------------------------------------------------
@_register("arith.extf", "arith.truncf", "tt.fp_to_fp", elementwise=True)
def _float_cast(op, args, outs):
    dtype = numpy_type(outs[0])
    if op.attrs.get("rounding", "rtne") == "rtz":
        return lambda x: numeric.cast_float(x, dtype, toward_zero=True)
    return lambda x: numeric.cast_float(x, dtype)


@_register("arith.extsi", "arith.trunci", "arith.index_cast", elementwise=True)
def _signed_cast(op, args, outs):
    dtype = numpy_type(outs[0])
    if outs[0].elem == "i1":
        return lambda x: (x & x.dtype.type(1)).astype(bool)
    return lambda x: _signed(x).astype(dtype)


@_register("arith.extui", "arith.index_castui", elementwise=True)
def _unsigned_cast(op, args, outs):
    dtype = numpy_type(outs[0])
    return lambda x: numeric.unsigned(x).astype(dtype)


@_register("arith.sitofp", "arith.uitofp", elementwise=True)
def _int_to_float(op, args, outs):
    dtype, read = numpy_type(outs[0]), _signed if op.name == "arith.sitofp" else numeric.unsigned
    return lambda x: numeric.cast_int_to_float(read(x), dtype)


@_register("arith.fptosi", "arith.fptoui", elementwise=True)
def _float_to_int(op, args, outs):
    dtype, signed = numpy_type(outs[0]), op.name == "arith.fptosi"
    if outs[0].elem == "i1":
        return lambda x: x != 0
    return lambda x: numeric.cast_float_to_int(x, dtype, signed)


@_register("arith.bitcast", "tt.bitcast", "tt.int_to_ptr", "tt.ptr_to_int", elementwise=True)
def _bitcast(op, args, outs):
    dtype = numpy_type(outs[0])
    if dtype.itemsize != numpy_type(args[0]).itemsize:
        raise Unsupported(f"{op.name} from {args[0]} to {outs[0]} changes the size")
    return lambda x: x.view(dtype)


# ---- constants and shapes ----------------------------------------------------------------------------------------------
def _scalar(text: str, dtype: np.dtype) -> Any:
    """One literal of MLIR: true, a decimal, or the bits in hexadecimal."""
    if text in ("true", "false"):
        return np.bool_(text == "true") if dtype == _BOOL else dtype.type(-1 if text == "true" else 0)
    if text.startswith("0x") and dtype.kind != "i":
        return np.frombuffer(int(text, 16).to_bytes(dtype.itemsize, "little"), dtype)[0]
    if dtype.kind in "ib":
        value = int(text, 0) & (1 << (8 * dtype.itemsize)) - 1
        return np.frombuffer(value.to_bytes(dtype.itemsize, "little"), dtype)[0]
    return np.array(float(text)).astype(dtype)[()]


@_register("arith.constant", elementwise=True)
def _constant(op, args, outs):
    dtype, text = numpy_type(outs[0]), str(op.attrs["value"])
    shape = (1,) * (outs[0].rank + 1)
    if text.startswith("dense "):
        text = text[6:]
        if text.startswith('"0x'):
            data = np.frombuffer(bytes.fromhex(text[3:-1]), dtype)
            shape = (1, *outs[0].shape) if data.size > 1 else shape
            value = data.reshape(shape)
        elif text.startswith("["):
            items = [_scalar(t, dtype) for t in re.findall(r"[^\s\[\],]+", text)]
            value = np.array(items, dtype).reshape(1, *outs[0].shape)
        else:
            value = np.full(shape, _scalar(text, dtype), dtype)
    else:
        value = np.full(shape, _scalar(text, dtype), dtype)
    return lambda: value


@_register("ub.poison", elementwise=True)
def _poison(op, args, outs):
    value = np.zeros((1,) * (outs[0].rank + 1), numpy_type(outs[0]))
    return lambda: value


@_register("tt.make_range")
def _make_range(op, args, outs):
    value = np.arange(op.attrs["start"], op.attrs["end"], dtype=np.int32)[None]
    return lambda: value


@_register("tt.splat")
def _splat(op, args, outs):
    extra = (1,) * outs[0].rank
    return lambda x: x.reshape(x.shape[0], *extra)


@_register("tt.unsplat")
def _unsplat(op, args, outs):
    return lambda x: x.reshape(x.shape[0])


@_register("tt.broadcast")
def _broadcast(op, args, outs):
    return lambda x: x


@_register("tt.expand_dims")
def _expand_dims(op, args, outs):
    axis = op.attrs["axis"] + 1
    return lambda x: np.expand_dims(x, axis)


@_register("tt.reshape", "tt.view")
def _reshape(op, args, outs):
    source, shape = args[0].shape, outs[0].shape
    ones = (1,) * len(shape)
    inserts = [s for s in source if s != 1] == [s for s in shape if s != 1]
    # with only axes of length 1 coming or going, axes not yet spread stay so: (P, 1) to (P, 1, 1) for 64 to 64 x 1
    keep = [k for k, s in enumerate(source) if s != 1]
    where = [k for k, s in enumerate(shape) if s != 1]

    def reshape(x):
        if inserts:
            now = list(ones)
            for a, b in zip(keep, where):
                now[b] = x.shape[a + 1]
            return x.reshape(x.shape[0], *now)
        if x.size == x.shape[0]:
            return x.reshape(x.shape[0], *ones)
        return fill(x, source).reshape(x.shape[0], *shape)

    return reshape


@_register("tt.trans")
def _trans(op, args, outs):
    order = (0, *(k + 1 for k in op.attrs["order"]))
    return lambda x: x.transpose(order)


def _same_programs(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    programs = max(a.shape[0], b.shape[0])
    return np.broadcast_to(a, (programs, *shape)), np.broadcast_to(b, (programs, *shape))


@_register("tt.join")
def _join(op, args, outs):
    shape = args[0].shape
    return lambda a, b: np.stack(_same_programs(a, b, shape), axis=-1)


@_register("tt.cat")
def _cat(op, args, outs):
    def cat(a, b):
        programs = max(a.shape[0], b.shape[0])
        return np.concatenate([np.broadcast_to(x, (programs, *t.shape)) for x, t in zip((a, b), args)], axis=1)

    return cat


@_register("tt.split")
def _split(op, args, outs):
    shape = args[0].shape
    return lambda x: [fill(x, shape)[..., k] for k in (0, 1)]


@_register("tt.gather")
def _gather(op, args, outs):
    axis, source = op.attrs["axis"] + 1, args[0].shape
    length = source[axis - 1]

    def gather(x, index):
        x, index = fill(x, source), fill(index, outs[0].shape)
        programs = max(x.shape[0], index.shape[0])
        index = np.broadcast_to(index, (programs, *index.shape[1:])).astype(np.intp)
        if index.size and not (0 <= index.min() and index.max() < length):
            index = np.clip(index, 0, length - 1)  # undefined in the IR; stay inside the tensor
        return np.take_along_axis(np.broadcast_to(x, (programs, *source)), index, axis)

    return gather


@_register("tt.histogram")
def _histogram(op, args, outs):
    bins, shape = outs[0].shape[0], args[0].shape

    def histogram(x, mask=None):
        programs = x.shape[0] if mask is None else max(x.shape[0], mask.shape[0])
        values = np.broadcast_to(x, (programs, *shape)).astype(np.int64)
        inside = (values >= 0) & (values < bins)
        if mask is not None:
            inside = inside & mask
        rows = np.arange(programs)[:, None] * bins
        counts = np.bincount((values + rows)[inside], minlength=programs * bins)
        return counts.reshape(programs, bins).astype(np.int32)

    return histogram


# ---- matrix product ----------------------------------------------------------------------------------------------------
@_register("tt.dot")
def _dot(op, args, outs):
    left, right, total = args[0], args[1], numpy_type(outs[0])
    depth = left.shape[-1]
    if total.kind == "i":
        # int8 products reach 2**14: sums are exact in float32 up to 2**24, in float64 beyond
        work = _F32 if left.elem == "i8" and depth << 14 <= 1 << 24 else _F64
    else:
        work = _F64 if total == _F64 else _F32
    tf32 = op.attrs.get("inputPrecision") == "tf32" and left.elem == "f32"
    shape, dims_l, dims_r = outs[0].shape, left.shape, right.shape

    def dot(a, b, c):
        # one layout, so that BLAS sums in one order however the operands came to be
        a, b = (np.ascontiguousarray(fill(x, d), work) for x, d in ((a, dims_l), (b, dims_r)))
        if tf32:
            a, b = numeric.round_tf32(a), numeric.round_tf32(b)
        y = np.matmul(a, b)
        if total.kind == "i":
            return y.astype(total) + c
        if c.dtype == work:
            if y.shape[0] < c.shape[0]:
                return y + fill(c, shape)
            y += c
            return y
        return (y + c.astype(work)).astype(total)

    return dot
