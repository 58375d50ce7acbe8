"""The table of every aten overload haian serves: functional ones from RULES, in-place and out= ones derived by schema."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import rules
from .tensors import Make, apart

__all__ = ["aten_table"]

_table: dict[str, Callable[..., Any]] = {}


def _functional(rule: Callable[..., None]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        make = Make()
        rule(make, *args, **kwargs)
        return make.finish()

    return call


def _in_place(rule: Callable[..., None]) -> Callable[..., Any]:
    def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        apart(self, args)
        make = Make((self,))
        rule(make, self, *args, **kwargs)
        return make.finish()

    return call


def _out(rule: Callable[..., None], names: tuple[str, ...]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        outs = tuple(kwargs.pop(n) for n in names)
        inputs = [t for a in args for t in (a if isinstance(a, (list, tuple)) else (a,))]
        for out in outs:
            apart(out, inputs)
        make = Make(outs, resize=True)
        rule(make, *args, **kwargs)
        return make.finish()

    return call


def _signature(schema: Any, without: frozenset[str] = frozenset()) -> tuple[Any, ...]:
    return tuple((a.name, str(a.type)) for a in schema.arguments if a.name not in without)


def _siblings(packet: str) -> Iterator[tuple[str, Any]]:
    for base in (packet, packet + "_"):
        found = getattr(torch.ops.aten, base, None)
        if found is not None:
            for which in found.overloads():
                yield f"{base}.{which}", getattr(found, which)


def _derive(name: str, rule: Callable[..., None]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The overload, its in-place twin and its out= twin: the same parameters, plus outputs that are written."""
    packet, _, which = name.removeprefix("aten.").partition(".")
    functional = getattr(getattr(torch.ops.aten, packet), which)
    yield name, _functional(rule)
    wanted = _signature(functional._schema)
    for other, overload in _siblings(packet):
        schema = overload._schema
        if not schema.is_mutable or not rules._is_leaf(other):
            continue
        written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
        if schema.arguments[-1].is_out and _signature(schema, frozenset(written)) == wanted and len(written) == len(schema.returns):
            yield f"aten.{other}", _out(rule, written)
        elif other.startswith(packet + "_.") and written == (schema.arguments[0].name,) and _signature(schema) == wanted:
            yield f"aten.{other}", _in_place(rule)


def aten_table() -> dict[str, Callable[..., Any]]:
    """Every aten overload haian serves, as a function of torch CPU tensors: ``aten_table()["aten.add.Tensor"](x, y)``.

    A function raises ``haian.bridges.common.Pass`` for arguments it would leave to torch.
    """
    if not _table:
        for name, rule in rules.RULES.items():
            packet, _, which = name.removeprefix("aten.").partition(".")
            if which not in getattr(getattr(torch.ops.aten, packet, None), "overloads", list)() or not rules._is_leaf(name.removeprefix("aten.")):
                continue  # this torch has no such leaf
            for derived, fn in _derive(name, rule):
                _table.setdefault(derived, fn)
        _table["aten.copy_.default"] = rules.copy_into
        _table["aten.fill_.Scalar"] = _table["aten.fill_.Tensor"] = rules.fill
        _table["aten.zero_.default"] = rules.fill
        _table["aten.native_layer_norm_backward.default"] = rules.layer_norm_backward
    return dict(_table)
