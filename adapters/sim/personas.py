"""Personas: the simulated chip with a real chip's restrictions, as data, and the check of a kernel against them.

A persona changes capabilities only; arithmetic stays that of Triton IR.  Chosen by HAIAN_SIM_PERSONA or by SimDriver's
argument.  The restrictions are those published for each chip's Triton; "like_" because nothing else is imitated.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...hal.driver import Capabilities
from ...hal.errors import ArgumentError, Unsupported
from .execute import Facts

__all__ = ["ALL_DTYPES", "PERSONAS", "check", "with_persona"]

ALL_DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16",
              "float32", "float64", "float8_e4m3fn", "float8_e5m2")  # fmt: skip
_MATH = tuple(d for d in ALL_DTYPES if not d.startswith("float8"))
_FOLDED_GRID: dict[str, Any] = {"max_grid": (65535, 65535, 65535), "max_grid_product": 65535}


def _without(*names: str) -> dict[str, Any]:
    return {"dtypes_load": tuple(d for d in ALL_DTYPES if d not in names),
            "dtypes_math": tuple(d for d in _MATH if d not in names)}


# Name -> what differs from the default's Capabilities.
PERSONAS: dict[str, dict[str, Any]] = {
    "default":         {"dtypes_load": ALL_DTYPES, "dtypes_math": _MATH},
    # one restriction each: which one a kernel fails by is then plain
    "no_fp64":         _without("float64"),
    "no_int64":        {"int64_math": False, **_without("int64", "uint64")},
    "grid65535":       {**_FOLDED_GRID, "dtypes_load": ALL_DTYPES, "dtypes_math": _MATH},
    "no_bf16_atomics": {"bf16_atomics": False, "dtypes_load": ALL_DTYPES, "dtypes_math": _MATH},
    # what several chips combine
    "like_ascend":     {**_FOLDED_GRID, "bf16_atomics": False, **_without("float64")},
    "like_gcu300":     {**_FOLDED_GRID, "int64_math": False, "bf16_atomics": False, **_without("float64", "int64", "uint64")},
    "like_sunrise":    {"int64_math": False, "bf16_atomics": False,
                        **_without("float64", "int64", "uint64", "bfloat16", "float8_e4m3fn")},
}  # fmt: skip

# TTIR's element types -> haian's names; integers have no sign in TTIR, so the signed name stands for both
_NAMES = {"i1": "bool", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "f16": "float16",
          "bf16": "bfloat16", "f32": "float32", "f64": "float64", "f8E4M3FN": "float8_e4m3fn", "f8E5M2": "float8_e5m2"}


def with_persona(base: Capabilities, name: str) -> Capabilities:
    """base with the persona's restrictions.  ArgumentError for an unknown name."""
    if name not in PERSONAS:
        raise ArgumentError(f"sim: persona {name!r} is unknown; HAIAN_SIM_PERSONA takes {', '.join(PERSONAS)}")
    model = base.model if name == "default" else f"{base.model} {name}"
    return replace(base, model=model, **PERSONAS[name])


def check(kernel: str, facts: Facts, capabilities: Capabilities) -> None:
    """Refuse a kernel that uses what the device lacks.

    Raises:
        Unsupported: names the dtype or the kind of operation.
    """
    def refuse(what: str) -> Unsupported:
        return Unsupported(f"{kernel}: {capabilities.model} has no {what}; take a kernel that avoids it or fall back")

    for elem in sorted(facts.loaded):
        name = _NAMES.get(elem)
        if name and name not in capabilities.dtypes_load:
            raise refuse(f"{name} in memory")
    for elem in sorted(facts.computed):
        name = _NAMES.get(elem)
        if name and name not in capabilities.dtypes_math:
            raise refuse(f"{name} arithmetic")
    if facts.vector_int64 and not capabilities.int64_math:
        raise refuse("int64 vector arithmetic")
    if "bf16" in facts.atomics and not capabilities.bf16_atomics:
        raise refuse("bfloat16 atomics")
