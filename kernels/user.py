"""Users' own pointwise operators: ``@haian.pointwise`` on a function of three lines, which then runs on every device.

    @haian.pointwise
    def swish(x, *, beta=1.0):
        \"\"\"x sigmoid(beta x).\"\"\"
        return x * haian.m.sigmoid(beta * x)

    swish(tensor, beta=2.0)

On hosts the formula is a program for precompiled loops (kernels/ops/program.py), on devices with a Triton target the same Triton
code that haian's own pointwise operators are.  The language: the top of kernels/ops/formula.py.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from .. import _native
from ..hal.dtype import DType, dtype
from ..hal.errors import ArgumentError
from . import api
from .dispatch import Resolver
from .ops import formula
from .ops.budget import Composite
from .ops.formula import FormulaError, m
from .ops.pointwise import described
from .ops.program import compiled
from .ops.record import ANY, FLOATS, Op

__all__ = ["m", "pointwise", "record_of"]

_records: dict[int, Op] = {}  # by id of the operator, which api.keep holds for good


def record_of(operator: Any) -> Op | None:
    """The record of an operator that ``pointwise`` made; None for anything else."""
    return _records.get(id(operator))


@overload
def pointwise(fn: Callable[..., Any], /) -> Any: ...
@overload
def pointwise(*, dtypes: Sequence[object] = ...) -> Callable[[Callable[..., Any]], Any]: ...


def pointwise(fn: Callable[..., Any] | None = None, /, *, dtypes: Sequence[object] = FLOATS) -> Any:
    """Make an operator of a function in the scalar language.

    Args:
        fn: one to four tensors, then number attributes behind ``*`` (``def f(x, y, *, alpha=1.0)``); its body is assignments and a
            return over ``+ - * /``, comparisons and ``haian.m``'s functions; a parameter annotated ``bool`` is a condition.  Its
            source must be in a file.
        dtypes: dtypes it takes (integers compute as integers, float16 and bfloat16 in float32); floats by default.

    Returns:
        A callable as those of ``haian.ops``: broadcasting, any strides, ``out=``, every device.  At most 64 in a process.

    Raises:
        FormulaError: a construct outside the language, with its place.  DTypeError: no such dtype.
        ArgumentError: fn is no function.
    """
    if fn is None:
        return lambda f: pointwise_of(f, dtypes)
    return pointwise_of(fn, dtypes)


def pointwise_of(fn: Callable[..., Any], dtypes: Sequence[object]) -> Any:
    if not callable(fn):
        raise ArgumentError(f"pointwise: a {type(fn).__name__} came; needs a function in the scalar language")
    f = formula.read(fn)
    if f.choices or None in f.attrs.values():
        raise FormulaError(f"{f.name}: attributes that are choices or may be None; a user's operator has number attributes only")
    taken: tuple[DType, ...] = tuple(dtype(d) for d in dtypes)
    strange = [d for d in taken if d not in ANY]
    if strange or not taken:
        raise ArgumentError(f"{f.name}: dtypes {', '.join(map(str, strange)) or '()'}; a pointwise operator takes some of {', '.join(map(str, ANY))}")
    body = f.body()
    for d in taken:
        if not d.is_floating:
            body.c_lines(d.short)  # raises for what integers do not have
    program = compiled(body)
    slot = _native.define_program(f.name, list(f.tensors), list(f.attrs), program.boolean, program.boolean_result,
                                  sum(1 << d.code for d in taken), program.steps, program.constants, program.result)
    given = {name: 1.0 if not isinstance(default, (int, float)) else default for name, default in f.attrs.items()}
    record = Op(**described(f, f, taken, given), budget=Composite(), samples=(), slot=slot)
    resolver = Resolver(record)
    made = resolver.native = api.native_op(record, resolver.resolve, resolver)
    made.__signature__ = api.signature(record)
    _records[id(made)] = record
    api.keep(made)
    return made
