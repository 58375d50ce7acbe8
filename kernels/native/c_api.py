"""The C API from the records: writes haian_ops.h and haian_ops.c, a function an operator.  Run by CMake:  python c_api.py OUTDIR

Each function fills arrays and calls haian_context_call (context.c).  Views and operators made of others have none: a program
makes views by itself, and the parts of a composite are here.
"""
from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cpu"))
from generate import source_tree, write  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from haian.kernels.ops.record import Op, Param

# kind of a parameter -> C parameters, and how they become an attribute ({0}: the parameter's name)
_C = {"int": ("int64_t {0}", "{{1, 0, {{.i = {0}}}}}"), "float": ("double {0}", "{{2, 0, {{.f = {0}}}}}"),
      "bool": ("int32_t {0}", "{{1, 0, {{.i = {0} != 0}}}}"), "dtype": ("int32_t {0}", "{{1, 0, {{.i = {0}}}}}"),
      "choice": ("int32_t {0}", "{{1, 0, {{.i = {0}}}}}"), "ints": ("const int64_t *{0}, int32_t n_{0}", "{{3, n_{0}, {{.v = {0}}}}}")}
_C_OPTIONAL = {"int": ("const int64_t *{0}", "{{{0} ? 1 : 0, 0, {{.i = {0} ? *{0} : 0}}}}"),
               "float": ("const double *{0}", "{{{0} ? 2 : 0, 0, {{.f = {0} ? *{0} : 0}}}}"),
               "dtype": ("int32_t {0}", "{{{0} ? 1 : 0, 0, {{.i = {0}}}}}"),
               "ints": ("const int64_t *{0}, int32_t n_{0}", "{{{0} ? 3 : 0, {0} ? n_{0} : 0, {{.v = {0}}}}}")}
# names of parameters that mean something else in C or C++
_TAKEN = {"default", "auto", "double", "float", "int", "long", "short", "signed", "unsigned", "register", "static", "new", "delete", "this",
          "template", "operator", "private", "public", "switch", "case", "union", "c", "in", "out_"}


def name_of(p: Param) -> str:
    return f"{p.name}_" if p.name in _TAKEN else p.name


def _attribute(p: Param) -> tuple[str, str]:
    parameter, value = (_C_OPTIONAL if p.optional else _C)[p.kind]
    return parameter.format(name_of(p)), value.format(name_of(p))


def outputs(op: Op) -> list[str]:
    if len(op.results) == 1:
        return ["out"]
    return [f"out_{name or i}" for i, name in enumerate(op.results)]


def declaration(op: Op) -> str:
    parts = ["haian_context *c"]
    for p in op.params:
        if p.kind == "tensors":
            parts.append(f"const DLTensor *const *{name_of(p)}, int32_t n_{name_of(p)}")
        elif p.kind == "tensor":
            parts.append(f"const DLTensor *{name_of(p)}")
        else:
            parts.append(_attribute(p)[0])
    parts += [f"DLTensor *{o}" for o in outputs(op)]
    return f"int32_t haian_op_{op.name}({', '.join(parts)})"


def _comment(op: Op) -> str:
    lines = [f"{op.schema}", op.doc]
    optional = [name_of(p) for p in op.params if p.optional]
    if optional:
        lines.append(f"May be left out (NULL; a dtype: 0): {', '.join(optional)}.")
    text = "\n * ".join(line for part in lines for line in textwrap.wrap(part, 116))
    return f"/* {text.replace('*/', '* /')} */\n"


def header(ops: list[Op]) -> str:
    parts = ["/* haian_ops.h: the operators of haian for programs without Python.  Made from the records (kernels/ops); do not edit.\n"
             " * How to run them: haian_context.h.  Meaning, errors and dtypes: docs/operators.md. */\n"
             "#ifndef HAIAN_OPS_H\n#define HAIAN_OPS_H\n#include \"haian_context.h\"\n\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n"]
    family = ""
    for op in ops:
        if op.family != family:
            family = op.family
            parts.append(f"/* ---- {family} {'-' * (100 - len(family))} */\n")
        for p in op.params:
            parts += ["#define " + f"HAIAN_{op.name}_{p.name}_{choice} {i}\n".upper().replace("-", "_") for i, choice in enumerate(p.choices)]
        parts.append(_comment(op) + declaration(op) + ";\n\n")
    parts.append("#ifdef __cplusplus\n}\n#endif\n#endif\n")
    return "".join(parts)


def function(op: Op) -> str:
    attrs = ", ".join(f'"{p.name}"' for p in op.attrs)
    lines = [f"static const char *const attrs_{op.name}[] = {{{attrs or 'NULL'}}};",
             f'static const haian_op_info info_{op.name} = {{"{op.name}", {len(op.attrs)}, attrs_{op.name}}};', declaration(op) + " {"]
    listed = [p for p in op.tensors if p.kind == "tensors"]
    if listed:
        tensors, count = name_of(listed[0]), f"n_{name_of(listed[0])}"
    else:
        tensors, count = "in", str(len(op.tensors))
        lines.append(f"  const DLTensor *in[] = {{{', '.join(map(name_of, op.tensors)) or 'NULL'}}};")
    lines.append(f"  DLTensor *out__[] = {{{', '.join(outputs(op))}}};")
    lines.append(f"  const haian_op_attr attr__[] = {{{', '.join(_attribute(p)[1] for p in op.attrs) or '{0, 0, {.i = 0}}'}}};")
    lines.append(f"  return haian_context_call(c, &info_{op.name}, {tensors}, {count}, out__, {len(op.results)}, attr__);\n}}\n")
    return "\n".join(lines)


def source(ops: list[Op]) -> str:
    return ("/* Made from the records by kernels/native/c_api.py; do not edit. */\n#include \"haian_ops.h\"\n\n" + "\n".join(map(function, ops)))


def operators() -> list[Op]:
    """Those with a kernel of their own; a list beside other tensors has no place in a call of one list."""
    from haian.kernels.ops import OPS

    return sorted((o for o in OPS.values() if not o.views and not o.composite), key=lambda o: o.family)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python c_api.py OUTDIR")
    source_tree()
    made = operators()
    write(Path(sys.argv[1]) / "haian_ops.h", header(made))
    write(Path(sys.argv[1]) / "haian_ops.c", source(made))
