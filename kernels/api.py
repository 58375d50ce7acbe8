"""haian.ops: one function an operator, made from the records.  ``haian.ops.softmax(x, -1, out=y)``.

Not here: meaning (kernels/ops), choice of kernel (dispatch.py), the call itself (native/py_op.c).
"""
from __future__ import annotations

import inspect
from typing import Any

from .. import _native
from ..hal import tensor as _tensor  # noqa: F401  completes the native Tensor: dtypes, errors, cold methods
from ..hal.dtype import DType, dtype
from .dispatch import Resolver, look, naming
from .ops import OPS
from .ops.record import Op, Param

__all__ = list(OPS)

_KIND = {"tensor": 0, "tensors": 1, "int": 2, "float": 3, "bool": 4, "ints": 5, "dtype": 6, "choice": 7}  # KIND_* of py_op.c


def _allocate(device_index: int, dtype_code: int, shape: tuple[int, ...], operator: str) -> Any:
    from ..hal.registry import at
    with naming(operator):
        return at(device_index).empty(shape, dtype(dtype_code))


def _param(p: Param) -> tuple[Any, ...]:
    given = p.default is not inspect.Parameter.empty
    return p.name, _KIND[p.kind], p.optional, p.keyword_only, given, p.default if given else None, p.choices


def docstring(record: Op) -> str:
    """Schema, meaning, dtypes and errors of an operator, as ``help`` shows them."""
    errors = sorted({f"{b.error.__name__} ({b.name.replace('_', ' ')})" for b in record.bad})
    lines = [record.schema, "", record.doc, "", f"dtypes: {', '.join(d.name for d in record.dtypes)}"]
    if record.takes_out:
        lines.append("out: tensor for the result (a tuple for several); any strides; may overlap inputs")
    if errors:
        lines.append(f"raises: {', '.join(errors)}")
    aten = record.names.get("aten")
    if aten:
        lines.append(f"as: aten {', '.join(aten)}")
    return "\n".join(lines)


def native_op(record: Op, resolve: Any, resolver: Resolver) -> Any:
    """The native callable of an operator; ``resolve`` chooses its kernels, ``resolver`` has its other hooks."""
    return _native.Op(record.name, tuple(_param(p) for p in record.params), len(record.results), resolve, resolver.call_slowly,
                      resolver.infer, docstring(record))


class Unplanned:
    """The callable of an operator without kernels and plans of its own: a view, or a result whose shape depends on the data."""

    def __init__(self, record: Op) -> None:
        self.record, self.__name__, self.__qualname__, self.__doc__ = record, record.name, record.name, docstring(record)
        self.__signature__ = signature(record)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return look(self.record, args, kwargs)

    def __repr__(self) -> str:
        return f"<operator {self.record.name}>"

    def forget(self) -> None:
        """Nothing was planned."""


def _make(record: Op) -> Any:
    if not record.takes_out:
        return Unplanned(record)
    resolver = Resolver(record)
    native = resolver.native = native_op(record, resolver.resolve, resolver)
    native.__signature__ = signature(record)
    return native


def signature(record: Op) -> inspect.Signature:
    parameters = []
    for p in record.params:
        default = None if p.optional and p.default is inspect.Parameter.empty else p.default
        parameters.append(inspect.Parameter(p.name, inspect.Parameter.KEYWORD_ONLY if p.keyword_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                                            default=default))
    if record.takes_out:
        parameters.append(inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None))
    return inspect.Signature(_ordered(parameters))


def _ordered(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """A required parameter behind an optional one (aten has those) is shown as keyword."""
    seen_default, out, keywords = False, [], []
    for p in parameters:
        if p.kind is inspect.Parameter.KEYWORD_ONLY or (seen_default and p.default is inspect.Parameter.empty):
            keywords.append(p.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        else:
            out.append(p)
        seen_default = seen_default or p.default is not inspect.Parameter.empty
    return out + keywords


_native.set_hooks(_allocate, DType)
_made: dict[str, Any] = {}


def __getattr__(name: str) -> Any:
    record = OPS.get(name)
    if record is None:
        raise AttributeError(f"haian.ops has no operator {name!r}; `haian ops list` names them")
    made = _made[name] = globals()[name] = _make(record)
    return made


def __dir__() -> list[str]:
    return list(OPS)


_users: list[Any] = []  # users' own operators (user.py), as long as the process


def keep(made: Any) -> None:
    """Counts an operator that is not of OPS among those whose plans are dropped."""
    _users.append(made)


def forget() -> None:
    """Drop every plan: candidates or the fallback policy changed."""
    for made in (*_made.values(), *_users):
        made.forget()
