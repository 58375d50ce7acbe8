"""One TTIR operation on one lane as a C expression, rounded as vector.py and numeric.py round it.

``expression`` knows elementwise operations only; where it lacks one it raises NoCode and the kernel stays with NumPy.
Not here: loops, tiles, memory (emit.py, tiles.py).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir import Op, Type
from ..vector import BUILDERS, numpy_type

__all__ = ["LOOPS", "NUMPY_LOOPS", "NoCode", "c_type", "down", "expression", "literal", "literals", "up", "wide"]


class NoCode(Exception):
    """This kernel has no C form here; the message says which operation.  The NumPy executor runs it."""


C_TYPES = {"i1": "uint8_t", "i8": "int8_t", "i16": "int16_t", "i32": "int32_t", "i64": "int64_t", "index": "int64_t",
           "ptr": "int64_t", "f16": "uint16_t", "bf16": "uint16_t", "f32": "float", "f64": "double",
           "f8E4M3FN": "uint8_t", "f8E5M2": "uint8_t"}  # fmt: skip
BITS = {"i1": 8, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "index": 64, "ptr": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
        "f8E4M3FN": 8, "f8E5M2": 8}  # fmt: skip
_NARROW = ("f16", "bf16", "f8E4M3FN", "f8E5M2")

# What NumPy computes for us: TTIR's name -> the ufunc and its number of operands.  sim.h calls them by position.
NUMPY_LOOPS: dict[str, tuple[str, int]] = {
    "math.exp": ("exp", 1), "math.exp2": ("exp2", 1), "math.expm1": ("expm1", 1), "math.log": ("log", 1),
    "math.log2": ("log2", 1), "math.log10": ("log10", 1), "math.log1p": ("log1p", 1), "math.sin": ("sin", 1),
    "math.cos": ("cos", 1), "math.tan": ("tan", 1), "math.tanh": ("tanh", 1), "math.sinh": ("sinh", 1),
    "math.cosh": ("cosh", 1), "math.asin": ("arcsin", 1), "math.acos": ("arccos", 1), "math.atan": ("arctan", 1),
    "math.cbrt": ("cbrt", 1), "math.powf": ("power", 2), "math.atan2": ("arctan2", 2),
}  # fmt: skip
LOOPS: list[tuple[str, str]] = [(name, "d") for name, _ in NUMPY_LOOPS.values()] + [("matmul", "f"), ("matmul", "d")]


def c_type(elem: str) -> str:
    """C's type of a TTIR element; narrow floats are kept as their bits."""
    found = C_TYPES.get(elem)
    if found is None:
        raise NoCode(f"element type {elem}")
    return found


def wide(elem: str) -> str:
    """The element type arithmetic is done in."""
    return "f64" if elem == "f64" else "f32"


def up(elem: str, x: str) -> str:
    """A float's value in its wide type."""
    return f"{elem}_f32({x})" if elem in _NARROW else x


def down(elem: str, x: str) -> str:
    """The wide value rounded to the element type."""
    return f"f32_{elem}({x})" if elem in _NARROW else x


def from_f64(elem: str, x: str) -> str:
    """A float64 rounded once."""
    return x if elem == "f64" else f"(float)({x})" if elem == "f32" else f"f64_{elem}({x})"


def _is_float(elem: str) -> bool:
    return elem in ("f32", "f64", *_NARROW)


# ---- literals -------------------------------------------------------------------------------------------------------------------
def literal(value: Any, elem: str) -> str:
    """One NumPy scalar as C text."""
    dtype = numpy_type(elem)
    if elem in ("f32", "f64"):
        number = float(value)
        if math.isfinite(number):
            return f"({number.hex()}{'f' if elem == 'f32' else ''})"
        bits = int.from_bytes(np.asarray(value, dtype).tobytes(), "little")
        return f"bits_f32({bits:#x}u)" if elem == "f32" else f"bits_f64({bits:#x}ull)"
    number = int.from_bytes(np.asarray(value, dtype).tobytes(), "little", signed=elem[0] == "i" and elem != "i1" or elem == "ptr")
    if BITS[elem] == 64:
        return f"((int64_t){number & (1 << 64) - 1:#x}ull)"
    return f"(({c_type(elem)}){number})" if BITS[elem] < 32 else f"({number})" if number > -(2**31) else "INT32_MIN"


def literals(op: Op, out: Type) -> np.ndarray:
    """The constant's values: one, or as many as the type has."""
    c_type(out.elem)
    return BUILDERS[op.name](op, [], [out])().reshape(-1)


# ---- tables ---------------------------------------------------------------------------------------------------------------------
Build = Callable[[Op, list[Type], Type, Sequence[str]], str]


def _float(template: str) -> Build:
    """{0} {1} {2}: operands in the wide type; {F}: f32 or f64; {s}: the suffix of math.h's functions."""
    def build(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
        elem = args[0].elem
        if not _is_float(elem):
            raise NoCode(f"{op.name} on {elem}")
        w = wide(elem)
        return down(elem, template.format(*(up(elem, v) for v in x), F=w, s="" if w == "f64" else "f"))

    return build


def _integer(template: str, boolean: str = "") -> Build:
    """{0} {1}: operands; {N}: bits; {T} and {U}: C's signed and unsigned type."""
    def build(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
        elem = args[0].elem
        if elem == "i1":
            if not boolean:
                raise NoCode(f"{op.name} on i1")
            return boolean.format(*x)
        if _is_float(elem):
            raise NoCode(f"{op.name} on {elem}")
        n = BITS[elem]
        return f"({c_type(elem)})({template.format(*x, N=n, T=c_type(elem), U=f'uint{n}_t')})"

    return build


TABLE: dict[str, Build] = {
    "arith.addi": _integer("{0} + {1}", "({0} ^ {1})"), "arith.subi": _integer("{0} - {1}", "({0} ^ {1})"),
    "arith.muli": _integer("{0} * {1}", "({0} & {1})"),
    "arith.andi": _integer("{0} & {1}", "({0} & {1})"), "arith.ori": _integer("{0} | {1}", "({0} | {1})"),
    "arith.xori": _integer("{0} ^ {1}", "({0} ^ {1})"),
    "arith.divsi": _integer("div_i{N}({0}, {1})"), "arith.remsi": _integer("rem_i{N}({0}, {1})"),
    "arith.divui": _integer("divu_i{N}({0}, {1})"), "arith.remui": _integer("remu_i{N}({0}, {1})"),
    "arith.floordivsi": _integer("floordiv_i{N}({0}, {1})"), "arith.ceildivsi": _integer("ceildiv_i{N}({0}, {1})"),
    "arith.shli": _integer("shl_i{N}({0}, {1})"), "arith.shrsi": _integer("shr_i{N}({0}, {1})"),
    "arith.shrui": _integer("shru_i{N}({0}, {1})"),
    "arith.maxsi": _integer("{0} > {1} ? {0} : {1}", "({0} & {1})"), "arith.minsi": _integer("{0} < {1} ? {0} : {1}", "({0} | {1})"),
    "arith.maxui": _integer("({U}){0} > ({U}){1} ? {0} : {1}", "({0} | {1})"),
    "arith.minui": _integer("({U}){0} < ({U}){1} ? {0} : {1}", "({0} & {1})"),
    "math.absi": _integer("{0} < 0 ? -{0} : {0}"),
    "arith.addf": _float("({0} + {1})"), "arith.subf": _float("({0} - {1})"), "arith.mulf": _float("({0} * {1})"),
    "arith.divf": _float("({0} / {1})"), "tt.precise_divf": _float("({0} / {1})"), "arith.remf": _float("fmod{s}({0}, {1})"),
    "arith.negf": _float("(-{0})"), "math.absf": _float("fabs{s}({0})"), "math.floor": _float("floor{s}({0})"),
    "math.ceil": _float("ceil{s}({0})"), "math.trunc": _float("trunc{s}({0})"), "math.roundeven": _float("rint{s}({0})"),
    "math.sqrt": _float("sqrt{s}({0})"), "tt.precise_sqrt": _float("sqrt{s}({0})"),
    "math.copysign": _float("copysign{s}({0}, {1})"),
    "arith.maximumf": _float("max_{F}({0}, {1})"), "arith.minimumf": _float("min_{F}({0}, {1})"),
    "arith.maxnumf": _float("max_num_{F}({0}, {1})"), "arith.minnumf": _float("min_num_{F}({0}, {1})"),
}  # fmt: skip


def _in_f64(template: str) -> Build:
    """Computed in float64 and rounded once."""
    def build(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
        elem = args[0].elem
        return from_f64(elem, template.format(*(f"(double){up(elem, v)}" for v in x)))

    return build


TABLE["math.erf"] = _in_f64("sim_erf(E->erf, {0})")
TABLE["math.rsqrt"] = _in_f64("(1.0 / sqrt({0}))")
for _k, (_name, (_, _count)) in enumerate(NUMPY_LOOPS.items()):
    TABLE[_name] = _in_f64(f"call{_count}(E, {_k}, {', '.join(('{0}', '{1}')[:_count])})")


def _fma(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    elem = args[0].elem
    if elem == "f64":
        return f"fma_f64({', '.join(x)})"
    return from_f64(elem, f"fma_wide({', '.join(f'(double){up(elem, v)}' for v in x)})")


def _clamp(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    nan = "" if op.attrs.get("propagateNan", "none") == "all" else "_num"
    return _float(f"min{nan}_{{F}}(max{nan}_{{F}}({{0}}, {{1}}), {{2}})")(op, args, out, x)


def _mulhi(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    n = BITS[args[0].elem]
    double = "unsigned __int128" if n == 64 else "uint64_t"
    return f"({c_type(out.elem)})(({double})(uint{n}_t){x[0]} * (uint{n}_t){x[1]} >> {n})"


_COMPARE = {"eq": "==", "ne": "!=", "slt": "<", "sle": "<=", "sgt": ">", "sge": ">=", "ult": "<", "ule": "<=", "ugt": ">", "uge": ">="}


def _cmpi(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    word, elem = op.words[0], args[0].elem
    if elem == "i1":
        read = "-(int){}" if word[0] == "s" else "{}"
    else:
        read = f"(uint{BITS[elem]}_t){{}}" if word[0] == "u" else "{}"
    return f"({read.format(x[0])} {_COMPARE[word]} {read.format(x[1])})"


_CMPF = {"oeq": "({0} == {1})", "olt": "({0} < {1})", "ole": "({0} <= {1})", "ogt": "({0} > {1})", "oge": "({0} >= {1})",
         "une": "({0} != {1})", "one": "({0} < {1} || {0} > {1})", "ueq": "!({0} < {1} || {0} > {1})", "ult": "!({0} >= {1})",
         "ule": "!({0} > {1})", "ugt": "!({0} <= {1})", "uge": "!({0} < {1})", "ord": "({0} == {0} && {1} == {1})",
         "uno": "!({0} == {0} && {1} == {1})", "true": "1", "false": "0"}  # fmt: skip


def _cmpf(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    return _CMPF[op.words[0]].format(*(up(args[0].elem, v) for v in x))


def _select(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    return f"({x[0]} ? {x[1]} : {x[2]})"


def _float_cast(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    a, b = args[0].elem, out.elem
    if a == b:
        return x[0]
    rounded = from_f64(b, x[0]) if a == "f64" else down(b, up(a, x[0])) if b != "f64" else f"(double){up(a, x[0])}"
    if op.attrs.get("rounding", "rtne") != "rtz" or BITS[b] >= BITS[a]:
        return rounded
    if b == "f32":
        raise NoCode("float64 to float32 toward zero")
    # one step back where rounding went away from zero
    return f"({c_type(b)})({rounded} - (fabs((double){up(b, rounded)}) > fabs((double){up(a, x[0])})))"


def _sign_cast(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    if out.elem == "i1":
        return f"({x[0]} & 1)"
    return f"({c_type(out.elem)})(-(int){x[0]})" if args[0].elem == "i1" else f"({c_type(out.elem)}){x[0]}"


def _zero_cast(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    return f"({c_type(out.elem)})(uint{BITS[args[0].elem]}_t){x[0]}"


def _int_to_float(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    a, b, signed = args[0].elem, out.elem, op.name == "arith.sitofp"
    value = x[0]
    if a == "i1":
        value = f"-(int){value}" if signed else value
    elif not signed:
        value = f"(uint{BITS[a]}_t){value}"
    if b in ("f32", "f64"):
        return f"({c_type(b)})({value})"
    if b == "f16":  # beyond its range all roundings meet at infinity
        return f"f32_f16((float)({value}))"
    return from_f64(b, f"{'i64' if signed else 'u64'}_odd({value})")


def _float_to_int(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    value, n = up(args[0].elem, x[0]), BITS[out.elem]
    if out.elem == "i1":
        return f"({value} != 0)"
    signed = op.name == "arith.fptosi" or n < 32
    return f"({c_type(out.elem)})f64_{'s' if signed else 'u'}{max(n, 32)}({value})"


def _bitcast(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    a, b = args[0].elem, out.elem
    if a == b:
        return x[0]
    if BITS[a] != BITS[b] or "i1" in (a, b):
        raise NoCode(f"{op.name} from {a} to {b}")
    if a in ("f32", "f64"):
        return f"({c_type(b)}){a}_bits({x[0]})"
    return f"bits_{b}({x[0]})" if b in ("f32", "f64") else f"({c_type(b)}){x[0]}"


def _addptr(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    return f"({x[0]} + (int64_t){x[1]} * {numpy_type(args[0].pointee).itemsize})"


TABLE.update({
    "math.fma": _fma, "tt.clampf": _clamp, "tt.mulhiui": _mulhi, "arith.cmpi": _cmpi, "arith.cmpf": _cmpf, "arith.select": _select,
    "arith.extf": _float_cast, "arith.truncf": _float_cast, "tt.fp_to_fp": _float_cast, "arith.extsi": _sign_cast,
    "arith.trunci": _sign_cast, "arith.index_cast": _sign_cast, "arith.extui": _zero_cast, "arith.index_castui": _zero_cast,
    "arith.sitofp": _int_to_float, "arith.uitofp": _int_to_float, "arith.fptosi": _float_to_int, "arith.fptoui": _float_to_int,
    "arith.bitcast": _bitcast, "tt.bitcast": _bitcast, "tt.int_to_ptr": _bitcast, "tt.ptr_to_int": _bitcast, "tt.addptr": _addptr,
})  # fmt: skip


def expression(op: Op, args: list[Type], out: Type, x: Sequence[str]) -> str:
    """The C expression of one lane of the result.

    Args:
        x: the operands, C expressions without side effects, short.

    Raises:
        NoCode: there is none.
    """
    build = TABLE.get(op.name)
    if build is None:
        raise NoCode(f"operation {op.name}")
    c_type(out.elem)
    try:
        return build(op, args, out, x)
    except (KeyError, IndexError) as error:
        raise NoCode(f"operation {op.name} in the form {error!r}") from None
