"""Formulas to C: writes pointwise_tiles.inc, a tile function per operator, choice and dtype.  Run by CMake:  python generate.py OUTDIR

Needs numpy and ml_dtypes only; haian is read from the source tree, nothing is installed yet.  The loops around tiles,
threads, strides and conversions are pointwise.c's.
"""
from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]

if TYPE_CHECKING:
    from haian.kernels.ops.formula import Body
    from haian.kernels.ops.record import Op

STORAGE = {"f32": "float", "bf16": "uint16_t", "f64": "double", "b8": "uint8_t", "u8": "uint8_t", "bits8": "uint8_t", "bits16": "uint16_t",
           "bits32": "uint32_t", "bits64": "uint64_t", **{f"i{n}": f"int{n}_t" for n in (8, 16, 32, 64)}}
# the same bits come out whether an integer is signed or not: one tile serves int8 and uint8
SIGNLESS = {"name", "const", "+", "-", "*", "neg", "&", "|", "^", "~", "==", "!=", "where"}
BLOCK = 256  # elements looked at together for arguments that need libm
# float functions whose vector form is right up to a limit -> the test of an argument beyond it; haian_far_<name>f then asks libm
_ANGLE = "(haian_absf({0}) > HAIAN_TRIG_MAX)"
_QUOTIENT = "(haian_absf({0}) > HAIAN_FMOD_MAX * haian_absf({1}))"
FAR = {"sin": _ANGLE, "cos": _ANGLE, "tan": _ANGLE, "fmod": _QUOTIENT, "remainder": _QUOTIENT, "floor_divide": _QUOTIENT}


def source_tree() -> None:
    """Makes haian.hal and haian.kernels.ops importable from the checkout, without running the __init__ files above the records."""
    sys.dont_write_bytecode = True
    for name, folder in (("haian", "src/haian"), ("haian.hal", "hal"), ("haian.kernels", "kernels")):
        module = ModuleType(name)
        module.__path__ = [str(ROOT / folder)]
        sys.modules[name] = module


def moves(body: Body) -> bool:
    """Whether the formula only chooses among its inputs: then float16 needs no arithmetic, and dtypes share tiles by size."""
    return {n.op for n in body.nodes()} <= {"name", "where"} and not body.attrs


def attributes(body: Body, kind: str) -> list[str]:
    floating, c = kind in ("f32", "f64", "bf16"), {"b8": "int32_t", "bf16": "float"}.get(kind, STORAGE[kind])
    read = "haian_attr_float" if floating else "haian_attr_truth" if kind == "b8" else "haian_attr_int"
    used = {n.value for n in body.nodes() if n.op == "name"}
    return [f"const {c} {name} = ({c}){read}(attr + {at});" for name, at in body.attrs if name in used]


def tile(body: Body, kind: str) -> str:
    """The C function of one formula for one compute type."""
    out = "uint8_t" if body.boolean else STORAGE[kind]
    c_kind = "u8" if kind.startswith("bits") else "f32" if kind == "bf16" else kind
    lines = [f"static void {body.name}_{kind}(const void *const *in, void *out, int64_t n, const haian_attr *attr) {{"]
    used = {n.value for n in body.nodes() if n.op == "name"}
    loads = []
    for at, name in enumerate(body.tensors):
        if name not in used:
            continue
        c = "uint8_t" if name in body.booleans else STORAGE[kind]
        lines.append(f"  const {c} *in{at} = in[{at}];")
        boolean = name in body.booleans
        element = "bool" if boolean else {"b8": "int32_t", "bf16": "float"}.get(kind, c)
        value = f"haian_bf16_load(in{at}[i])" if kind == "bf16" and not boolean else f"in{at}[i]{' != 0' if element != c else ''}"
        loads.append(f"const {element} {name} = {value};")
    lines += ["  (void)attr;", *(f"  {line}" for line in attributes(body, kind))]
    lines.append(f"  {out} *result = out;")

    def loop(indent: str, lo: str, hi: str, spell: Any = None, instead: str = "") -> list[str]:
        steps, value = body.c_lines(c_kind, spell)
        if not body.boolean:
            value = f"{value} != 0" if kind == "b8" else f"haian_bf16_store({value})" if kind == "bf16" else value
        store = instead or f"result[i] = {value};"
        inner = [f"{indent}  {line}" for line in (*loads, *steps, store)]
        return [f"{indent}HAIAN_INDEPENDENT for (int64_t i = {lo}; i < {hi}; i++) {{", *inner, indent + "}"]

    limited = [n for n in body.nodes() if n.op in FAR] if c_kind == "f32" else []
    if limited:
        test = " | ".join(FAR[n.op].format(*(body.c_expression(a, c_kind) for a in n.args)) for n in limited)
        lines += [f"  for (int64_t lo = 0; lo < n; lo += {BLOCK}) {{", f"    const int64_t hi = lo + {BLOCK} < n ? lo + {BLOCK} : n;",
                  "    int far = 0;", *loop("    ", "lo", "hi", instead=f"far |= {test};"), "    if (far) {",
                  *loop("      ", "lo", "hi", lambda name: f"haian_far_{name}f" if name in FAR else ""), "    } else {",
                  *loop("      ", "lo", "hi"), "    }", "  }"]
    else:
        lines += loop("  ", "0", "n")
    return "\n".join([*lines, "}"]) + "\n"


def chooser(op: Op, formula: Any, kind: str) -> str:
    """A tile that looks at the attributes and calls the variant's tile."""
    lines = [f"static void pick_{op.name}_{kind}(const void *const *in, void *out, int64_t n, const haian_attr *attr) {{"]
    slots = list(formula.attrs)
    for at, variant in enumerate(formula.variants()):
        tests = []
        for name, value in variant.items():
            slot = slots.index(name)
            if name in formula.choices:
                tests.append(f"attr[{slot}].i == {formula.choices[name].index(value)}")
            else:
                tests.append(f"attr[{slot}].kind {'==' if value is None else '!='} HAIAN_NONE")
        lines.append(f"  {'else ' if at else ''}if ({' && '.join(tests)}) {formula.body(**variant).name}_{kind}(in, out, n, attr);")
    return "\n".join([*lines, "}"]) + "\n"


def half(name: str, body: Body) -> str:
    """A tile of float16: float32 tiles between two conversions (bfloat16 converts in the loop, which vectorises)."""
    mask = sum(1 << i for i, t in enumerate(body.tensors) if t in body.booleans)
    return (f"static void {name}_f16(const void *const *in, void *out, int64_t n, const haian_attr *attr) {{\n"
            f"  haian_half_tile({name}_f32, {len(body.tensors)}, {mask}, {int(body.boolean)}, in, out, n, attr);\n}}\n")


def operator(op: Op) -> str:
    """All tiles of one operator, its descriptor and its kernel."""
    from haian.kernels.ops.formula import read

    f = read(op.formula)
    variants = [f.body(**v) for v in f.variants()]
    first = variants[0]
    text: list[str] = []
    table: list[tuple[str, str]] = []
    done: set[str] = set()

    def need(kind: str) -> str:
        name = f.name if len(variants) == 1 else f"pick_{f.name}"
        if kind not in done:
            done.add(kind)
            text.extend(tile(b, kind) for b in variants)
            if len(variants) > 1:
                text.append(chooser(op, f, kind))
        return f"{name}_{kind}"

    for d in op.dtypes:
        code = f"HAIAN_{d.short.upper()}".replace("HAIAN_B8", "HAIAN_BOOL")
        if all(moves(b) for b in variants):
            table.append((code, need(f"bits{8 * d.itemsize}")))
        elif d.short == "f16":
            name = need("f32")[:-4]
            text.append(half(name, first))
            table.append((code, f"{name}_f16"))
        else:
            signless = d.short == "u8" and {n.op for b in variants for n in b.nodes()} <= SIGNLESS
            table.append((code, need("i8" if signless else d.short)))
    numbers = sum(1 << i for i, a in enumerate(f.attrs) if a not in f.choices)
    mask = sum(1 << i for i, t in enumerate(f.tensors) if t in f.booleans)

    def quoted(names: Any) -> str:
        return ", ".join(f'"{n}"' for n in names) or "NULL"

    text.append(f"static const haian_pointwise pointwise_{f.name} = {{\n"
                f'  "{f.name}", {len(f.tensors)}, {mask}, {"HAIAN_RESULT_BOOL" if first.boolean else "HAIAN_RESULT_SAME"}, '
                f"{len(f.attrs)}, {numbers}, {{{quoted(f.tensors)}}}, {{{quoted(f.attrs)}}},\n"
                f"  {{{', '.join(f'[{code}] = {name}' for code, name in table)}}}}};\n"
                f"static int32_t run_{f.name}(const haian_args *args) {{ return haian_pointwise_run(&pointwise_{f.name}, args); }}\n")
    return "".join(text)


def generate() -> str:
    """The text of pointwise_tiles.inc: every operator with a formula but cast, and the rows of the family's table."""
    from haian.kernels.ops import OPS

    ops = [o for o in OPS.values() if o.formula is not None and o.name != "cast"]
    rows = []
    for o in ops:
        bits = " | ".join(f"HAIAN_BIT({d.code})" for d in o.dtypes)
        rows.append(f'  {{"{o.name}", run_{o.name}, {bits}, &pointwise_{o.name}}}, \\\n')
    return ("/* Made by `python kernels/cpu/generate.py OUTDIR` from kernels/ops/pointwise*.py; do not edit. */\n"
            + "\n".join(operator(o) for o in ops) + "\n#define HAIAN_POINTWISE_ROWS \\\n" + "".join(rows) + "\n")


def steps() -> str:
    """The text of program_steps.inc: for each compute type, a switch over the steps of users' programs (program.py numbers them)."""
    from haian.kernels.ops.formula import FormulaError, Node
    from haian.kernels.ops.program import STEPS

    types = {"f32": "float", "f64": "double", **{k: STORAGE[k] for k in ("u8", "i8", "i16", "i32", "i64")}}
    operands = [Node("name", value=f"{x}[i]") for x in "abc"]
    truths = [Node("name", value=f"({x}[i] != 0)", boolean=True) for x in "abc"]
    text = ["/* Made by `python kernels/cpu/generate.py OUTDIR` from kernels/ops/program.py; do not edit. */\n"]
    from haian.kernels.ops import formula

    for kind, c in types.items():
        text.append(f"static void program_steps_{kind}(int op, {c} *y, const {c} *a, const {c} *b, const {c} *c, int64_t n) {{\n  switch (op) {{\n")
        for number, (op, arity, boolean) in enumerate(STEPS):
            args = tuple((truths if boolean or (op == "where" and k == 0) else operands)[k] for k in range(arity))
            node = Node(op, args, boolean=boolean or op in formula.COMPARISONS)

            def loop(spell: Any, indent: str, node: Any = node, kind: str = kind, c: str = c) -> str:
                value = formula.c_text(node, kind, spell)
                return f"{indent}HAIAN_INDEPENDENT for (int64_t i = 0; i < n; i++) y[i] = ({c})({value});\n"

            if op in ("&", "|", "^", "~") and not boolean and c in ("float", "double"):
                continue  # bits of numbers are for integers
            try:
                plain = loop(lambda name: "", "      ")
            except FormulaError:
                continue
            text.append(f"    case {number}: {{ /* {op}{' of conditions' if boolean else ''} */\n")
            if kind == "f32" and op in FAR:
                test = FAR[op].format(*(a.value for a in args))
                far = loop(lambda name: f"haian_far_{name}f" if name in FAR else "", "        ")
                text.append(f"      int far = 0;\n      for (int64_t i = 0; i < n; i++) far |= {test};\n      if (far) {{\n{far}        break;\n      }}\n")
            text.append(plain + "      break;\n    }\n")
        text.append("    default: (void)b, (void)c; break;\n  }\n}\n")
    return "".join(text)


def arities() -> str:
    """The text of operators.inc: how many operands and attributes each operator takes, and which inputs it cannot do without."""
    from haian.kernels.ops import OPS

    rows = []
    for o in OPS.values():
        listed = any(p.kind == "tensors" for p in o.params)
        required = sum(1 << i for i, p in enumerate(o.tensors) if not p.optional)
        rows.append(f'    {{"{o.name}", {-1 if listed else len(o.tensors)}, {required}u, {len(o.results)}, {len(o.attrs)}}},\n')
    return "/* Made by `python kernels/cpu/generate.py OUTDIR` from kernels/ops/*.py; do not edit. */\n" + "".join(rows)


def write(target: Path, made: str) -> None:
    """An unchanged file keeps its text: nothing that reads it recompiles for another reason than its time stamp."""
    if not target.exists() or target.read_text() != made:
        target.write_text(made)
    else:
        target.touch()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python generate.py OUTDIR")
    source_tree()
    write(Path(sys.argv[1]) / "pointwise_tiles.inc", generate())
    write(Path(sys.argv[1]) / "operators.inc", arities())
    write(Path(sys.argv[1]) / "program_steps.inc", steps())
