"""A pointwise formula as a program for the host's precompiled loops (kernels/cpu/program.h): steps over vector registers.

Users' operators run so where no C compiler is.  Not here: the formula itself (formula.py), the loops (program_run.h).
"""
from __future__ import annotations

from dataclasses import dataclass, field

from .formula import COMPARISONS, VOCABULARY, Body, FormulaError, Node

__all__ = ["CONSTANTS", "Program", "REGISTERS", "STEPS", "compiled"]

MOST, REGISTERS, CONSTANTS, INPUTS = 96, 24, 24, 4  # kernels/cpu/program.h
# step number -> (operation, operands, whether they are conditions); generate.py prints the loops in this order
STEPS: tuple[tuple[str, int, bool], ...] = (
    *((op, 2, False) for op in ("+", "-", "*", "/", "&", "|", "^")), *((op, 2, False) for op in sorted(COMPARISONS)),
    ("neg", 1, False), ("~", 1, False), *((op, 2, True) for op in ("&", "|", "^")), ("~", 1, True),
    *((name, arity, False) for name, (arity, _) in VOCABULARY.items()))
_NUMBER = {(op, boolean): i for i, (op, _, boolean) in enumerate(STEPS)}


@dataclass
class Program:
    """steps: (operation number, to, a, b, c).  constants: (register, attribute number or -1, value)."""

    inputs: int
    result: int = 0
    boolean: int = 0  # bit i: input i is bool
    boolean_result: bool = False
    steps: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    constants: list[tuple[int, int, float]] = field(default_factory=list)


def compiled(body: Body) -> Program:
    """The program of a formula whose choices are made.

    Raises:
        FormulaError: more inputs, constants, steps or values alive at once than the loops have room for.
    """
    p = Program(len(body.tensors), boolean=sum(1 << i for i, t in enumerate(body.tensors) if t in body.booleans), boolean_result=body.boolean)
    if not 1 <= p.inputs <= INPUTS:
        raise FormulaError(f"{body.name}: {p.inputs} tensors; a pointwise operator takes 1 to {INPUTS}")
    attrs = dict(body.attrs)
    held: dict[str, int] = {t: i for i, t in enumerate(body.tensors)}  # names in registers
    left: dict[int, int] = dict.fromkeys(range(p.inputs), 0)  # reads that a register still has before it
    ahead: dict[str, int] = {}
    for root in (*(e for _, e in body.steps), body.result):
        for name in _names(root):
            ahead[name] = ahead.get(name, 0) + 1
            if name in held:
                left[held[name]] += 1
    numbers: dict[tuple[int, float], int] = {}  # (attribute, value) -> register, for good
    free = list(range(REGISTERS - 1, p.inputs - 1, -1))

    def take() -> int:
        if not free:
            raise FormulaError(f"{body.name}: more than {REGISTERS} values are needed at once; cut the formula in two")
        return free.pop()

    def constant(attr: int, value: float) -> int:
        if (attr, value) not in numbers:
            if len(numbers) == CONSTANTS:
                raise FormulaError(f"{body.name}: more than {CONSTANTS} numbers; cut the formula in two")
            numbers[attr, value] = take()
            p.constants.append((numbers[attr, value], attr, value))
        return numbers[attr, value]

    def value(e: Node) -> int:
        """The register of an operand; whoever reads it takes one from ``left``."""
        if e.op == "const":
            return constant(-1, float(e.value))
        if e.op == "name":
            return constant(attrs[e.value], 0.0) if e.value in attrs else held[e.value]
        parts = [value(a) for a in e.args]
        for at in parts:
            if at in left:  # constants stay
                left[at] -= 1
                if not left[at]:
                    free.append(at)
        to = take()
        left[to] = 1
        conditions = e.op in ("&", "|", "^", "~") and all(a.boolean for a in e.args)
        a, b, c = (parts + [0, 0])[:3]
        p.steps.append((_NUMBER[e.op, conditions], to, a, b, c))
        if len(p.steps) > MOST:
            raise FormulaError(f"{body.name}: more than {MOST} steps; cut the formula in two")
        return to

    for root in (*(e for _, e in body.steps), body.result):  # before any step: their registers are filled once and stay
        for leaf in _leaves(root):
            if leaf.op == "const" or leaf.value in attrs:
                value(leaf)
    for name, e in body.steps:
        held[name] = value(e)
        left[held[name]] = ahead.get(name, 0)
        if not ahead.get(name):
            free.append(held[name])
    p.result = value(body.result)
    return p


def _leaves(e: Node) -> list[Node]:
    return [leaf for a in e.args for leaf in _leaves(a)] if e.args else [e]


def _names(e: Node) -> list[str]:
    return [leaf.value for leaf in _leaves(e) if leaf.op == "name"]
