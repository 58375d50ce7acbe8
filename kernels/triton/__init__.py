"""Operators as Triton kernels, one file a family, each with KERNELS: operator name -> run(*tensors, **attrs, out).

A family file imports triton and is itself imported only when a device with a Triton target needs it; nothing here
knows a vendor or a framework.
"""
from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ops.record import Op

__all__ = ["has"]


@cache
def _names(family: str) -> frozenset[str]:
    """Keys of a family file's KERNELS, read from its text: the file itself imports triton."""
    file = Path(__file__).with_name(f"{family}.py")
    if not file.exists():
        return frozenset()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "KERNELS" for t in node.targets) and isinstance(node.value, ast.Dict):
            return frozenset(k.value for k in node.value.keys if isinstance(k, ast.Constant))
    return frozenset()


def has(record: Op) -> bool:
    """Whether an operator has a Triton kernel; does not import triton.  A formula is a kernel by itself."""
    return record.formula is not None or record.name in _names(record.family)
