"""docs/operators.md from the records: `haian ops page > docs/operators.md`.  tests/test_operators_page.py compares the two."""
from __future__ import annotations

from typing import Any

__all__ = ["ELSEWHERE", "page"]

#: What other libraries count as operators and haian serves outside of haian.ops: their name -> what to use.
ELSEWHERE = {
    "empty": "haian.empty(shape, dtype, device): memory with no values yet",
    "empty_strided": "haian.empty and Tensor.permute or haian.ops.as_strided",
    "_local_scalar_dense": "Tensor.item(): the value of one element in Python",
    "resize": "haian.empty of the new shape and haian.ops.copy: a haian tensor never changes its shape",
    "reshape": "Tensor.reshape: a view where strides allow, else a copy",
    "contiguous": "Tensor.contiguous",
    "to": "Tensor.to(device), haian.ops.cast(x, dtype=...)",
}


def _dtypes(record: Any) -> str:
    names = [d.short for d in record.dtypes]
    for word, group in (("floats", ["f32", "f16", "bf16", "f64"]), ("integers", ["i8", "i16", "i32", "i64", "u8"])):
        if set(group) <= set(names):
            names = [n for n in names if n not in group] + [word]
    return ", ".join(names)


def _how(record: Any) -> str:
    if record.views:
        return "view"
    if record.composite:
        return f"of others: {record.composite}"
    return "C, Triton"


def _names(record: Any) -> str:
    return "; ".join(f"{world} {', '.join(names)}" for world, names in record.names.items() if names)


def page() -> str:
    """The page's text (Markdown)."""
    from .kernels.ops import OPS
    families: dict[str, list[Any]] = {}
    for record in OPS.values():
        families.setdefault(record.family, []).append(record)
    version = max(r.since for r in OPS.values())
    lines = ["# Operators", "",
             f"{len(OPS)} operators in {len(families)} families, operator standard version {version}. Made from the records of `kernels/ops` by "
             "`haian ops page`; do not edit.", "",
             "`haian ops show NAME` prints one with its samples and errors. Error classes: docs/numerics.md (E exact, F faithful, FC composite "
             "formula, R reduction, C conditioned, I index). *of others*: made of other operators, with the reason; *view*: shares its input's "
             "memory. A mark in *grad*: it has a gradient, checked against central differences in float64.", ""]
    for family in sorted(families):
        lines += [f"## {family}", "", "| operator | what | dtypes | class | kernels | grad | known as |", "|---|---|---|---|---|---|---|"]
        for record in sorted(families[family], key=lambda r: r.name):
            cells = (f"`{record.schema}`", record.doc, _dtypes(record), record.budget.letter, _how(record), "yes" if record.grad else "",
                     _names(record))
            lines.append("| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in cells) + " |")
        lines.append("")
    lines += ["## Elsewhere", "", "| name | use |", "|---|---|", *(f"| {name} | {what} |" for name, what in ELSEWHERE.items()), ""]
    return "\n".join(lines)
