"""Writes kernel_tables.h: which family tables each instruction set has.  Run by CMake:  python tables.py OUT ISA=FILE,FILE ISA=..."""
from __future__ import annotations

import re
import sys
from pathlib import Path

TABLE = re.compile(r"^const haian_kernel_entry HAIAN_TABLE\((\w+)\)\[\]", re.M)


def families(files: list[str]) -> list[str]:
    """Families whose table stands in one of the C files, in order."""
    return [name for f in files for name in TABLE.findall(Path(f).read_text())]


def header(variants: dict[str, list[str]]) -> str:
    """The text of kernel_tables.h; variants stand most specific first."""
    out = ["/* Made by kernels/cpu/tables.py; do not edit. */", '#include "kernel.h"', ""]
    for isa, names in variants.items():
        out += [f"extern const haian_kernel_entry haian_table_{n}__{isa}[];" for n in names]
        rows = "".join(f"haian_table_{n}__{isa}, " for n in names)
        out.append(f"static const haian_kernel_entry *const haian_variant_{isa}[] = {{{rows}NULL}};")
    out.append("#define HAIAN_VARIANTS(X) " + " ".join(f"X({isa})" for isa in variants))
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    pairs = [arg.partition("=")[::2] for arg in sys.argv[2:]]
    Path(sys.argv[1]).write_text(header({isa: families(files.split(",")) for isa, files in pairs}))
