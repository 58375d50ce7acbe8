"""Runs a parsed TTIR kernel in NumPy with the whole grid, or a slab of it, as the first axis of every array.

``compile_module`` turns the tree into lists of closures over numbered registers, once per module_load; it refuses
unknown operations by name.  ``Kernel.run`` walks those lists.  Programs that a branch or loop leaves out are masked.
Not here: what the operations compute (``vector.py``), memory (``memory.py``), streams (hal/host_driver.py).
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...hal.errors import ArgumentError, InternalError, Unsupported
from . import control, memory, numeric
from .ir import Block, Function, Module, Op, Type, parse
from .vector import BUILDERS, ELEMENTWISE, UFUNCS, fill, numpy_type

__all__ = ["Facts", "Kernel", "compile_module"]

# Bytes of live values one slab of programs may take.  Measured, adding 1e6 floats: 12 ms from 1 to 8 MiB, 15 at 16,
# 28 at 64 (page faults); a kernel of many small programs pays the interpreter once per slab, so the upper end is taken.
SLAB_BYTES = 8 << 20

Step = Callable[["Slab", list], None]


@dataclass
class Facts:
    """What a kernel uses, in TTIR's words; personas are checked against it."""

    loaded: set[str] = field(default_factory=set)
    computed: set[str] = field(default_factory=set)  # float element types of arithmetic, on any shape
    vector_int64: bool = False  # 64-bit integer arithmetic on tensors (scalars stay allowed everywhere)
    atomics: set[str] = field(default_factory=set)


class Slab:
    """The state of one run: which programs, which of them are alive, and the memory they see."""

    def __init__(self, heap: memory.Heap, grid: tuple[int, int, int], first: int, count: int) -> None:
        self.heap, self.grid, self.count, self.first = heap, grid, count, first
        self.live: np.ndarray | None = None  # (count,) bool, or None while all are
        linear = np.arange(first, first + count, dtype=np.int64)
        x, y, _ = grid
        ids = (linear % x, linear // x % y, linear // (x * y))
        self.ids = [(i[:1] if n == 1 else i).astype(np.int32) for i, n in zip(ids, grid)]

    def mask(self, mask: np.ndarray | None, rank: int) -> np.ndarray | None:
        """mask and the programs alive, for values of ``rank`` axes."""
        if self.live is None:
            return mask
        live = self.live.reshape(-1, *(1,) * rank)
        return live if mask is None else mask & live


class Code:
    """One block: steps in order, the registers each one is the last to read, and the block's own registers."""

    __slots__ = ("steps", "args", "yields", "end", "peak", "targets", "defined")

    def __init__(self) -> None:
        self.steps: list[tuple[Step, tuple[int, ...]]] = []
        self.args: list[int] = []
        self.yields: list[int] = []
        self.end = ""  # name of the terminator
        self.peak = 0  # bytes per program that are alive at once, at most
        self.targets: list[tuple[int, list[int]]] = []  # successors: block number, registers
        self.defined: list[int] = []

    def run(self, slab: Slab, regs: list) -> list:
        """Execute and return the values of the terminator's operands."""
        for step, dead in self.steps:
            step(slab, regs)
            for k in dead:
                regs[k] = None
        return [regs[k] for k in self.yields]


class _Compiler:
    """Compiles one function; registers are numbered over the whole function, regions included."""

    def __init__(self, module: Module, function: Function, callees: dict[str, Routine], facts: Facts) -> None:
        self.module, self.function, self.callees, self.facts = module, function, callees, facts
        self.types: list[Type] = []
        self.private = 0  # depth of reduce and scan bodies

    def site(self, op: Op, what: str) -> memory.Site:
        return memory.Site(self.function.name, what, self.module.where(op.loc))

    def refuse(self, op: Op, why: str = "is not offered by sim"):
        where = self.module.where(op.loc) or f"line {op.line}"
        return Unsupported(f"{self.function.name}: operation {op.name} at {where} {why}; use another operation there")

    def new(self, t: Type) -> int:
        self.types.append(t)
        return len(self.types) - 1

    # ---- blocks --------------------------------------------------------------------------------------------------------
    def region(self, blocks: list[Block], scope: dict[str, int]) -> Code:
        """A region of one block (all of scf and tt; only functions have several)."""
        if len(blocks) != 1:
            raise Unsupported(f"{self.function.name}: a region of {len(blocks)} blocks inside a structured operation")
        return self.block(blocks[0], dict(scope))

    def block(self, block: Block, scope: dict[str, int], keep: bool = False) -> Code:
        """Compile one block.  ``keep``: registers outlive it (blocks of a control-flow graph)."""
        code = Code()
        for name, t in block.args:
            scope[name] = self.new(t)
            code.args.append(scope[name])
        compiled: list[tuple[Step, set[int], list[int], int]] = []  # step, reads, writes, inner peak
        if not block.ops:
            code.end = "scf.yield"
        for op in block.ops:
            if op is block.ops[-1] and (op.name in control.TERMINATORS):
                code.end = op.name
                code.yields = [self.lookup(op, n, scope) for n in op.operands]
                code.targets = [(int(label.strip("^b")), [self.lookup(op, n, scope) for n in names])
                                for label, names in op.successors]
                break
            compiled.append(self.op(op, scope))
        last: dict[int, int] = {}
        for position, (_, reads, writes, _) in enumerate(compiled):
            for k in (*reads, *writes):
                last[k] = position
        for k in (*code.yields, *(k for _, names in code.targets for k in names)):
            last[k] = len(compiled)
        code.defined = [*code.args, *(k for _, _, writes, _ in compiled for k in writes)]
        mine = set(code.defined)
        alive = sum(_nbytes(self.types[k]) for k in code.args)
        code.peak = alive
        for position, (step, reads, writes, inner) in enumerate(compiled):
            dead = () if keep else tuple(k for k in {*reads, *writes} if k in mine and last[k] == position)
            alive += sum(_nbytes(self.types[k]) for k in writes)
            code.peak = max(code.peak, alive + inner)
            alive -= sum(_nbytes(self.types[k]) for k in dead)
            code.steps.append((step, dead))
        return code

    def lookup(self, op: Op, name: str, scope: dict[str, int]) -> int:
        found = scope.get(name)
        if found is None and f"{name}#0" in scope:
            found = scope[f"{name}#0"]
        if found is None:
            raise ArgumentError(f"{self.function.name}: {op.name} on line {op.line} reads {name}, which is not defined")
        return found

    # ---- operations ----------------------------------------------------------------------------------------------------
    def op(self, op: Op, scope: dict[str, int]) -> tuple[Step, set[int], list[int], int]:
        ins = [self.lookup(op, n, scope) for n in op.operands]
        args = [self.types[k] for k in ins]
        outs = _result_types(op, args)
        if len(outs) < len(op.results):
            raise self.refuse(op, f"has {len(op.results)} results but {len(outs)} types")
        outs = outs[: len(op.results)] if op.results else []
        self.note(op, args, outs)
        special = getattr(self, "op_" + op.name.replace(".", "_"), None)
        if special is not None:
            if self.private:
                raise self.refuse(op, "cannot stand in the body of tt.reduce or tt.scan")
            writes = [self.new(t) for t in outs]
            before = len(self.types)
            step, inner, reads = special(op, ins, args, outs, writes, scope)
            reads = {k for k in (*ins, *reads) if k < before}
        else:
            builder = BUILDERS.get(op.name)
            if builder is None:
                raise self.refuse(op)
            if self.private and op.name not in ELEMENTWISE:
                raise self.refuse(op, "cannot stand in the body of tt.reduce or tt.scan")
            try:
                function = builder(op, args, outs)
            except (KeyError, IndexError, ValueError) as error:
                raise self.refuse(op, f"has a form sim does not know ({error!r})") from None
            writes = [self.new(t) for t in outs]
            step, inner, reads = _pure(function, ins, writes), 0, set(ins)
        scope.update(zip(op.results, writes))
        return step, reads, writes, inner

    def note(self, op: Op, args: list[Type], outs: list[Type]) -> None:
        """Collect facts for personas."""
        dialect = op.name.split(".")[0]
        if op.name in ("tt.load", "tt.store"):
            self.facts.loaded.add(args[0].pointee)
        elif op.name in ("tt.atomic_rmw", "tt.atomic_cas"):
            self.facts.loaded.add(args[0].pointee)
            self.facts.atomics.add(args[0].pointee)
        elif dialect in ("arith", "math") or op.name in ("tt.dot", "tt.precise_divf", "tt.precise_sqrt", "tt.clampf"):
            casts = op.name in ("arith.extf", "arith.truncf", "arith.constant", "arith.bitcast", "arith.select")
            for t in outs if op.name == "tt.dot" else (*args, *outs):
                if t.elem[0] in "fb" and not casts:
                    self.facts.computed.add(t.elem)
                if t.elem == "i64" and t.shape and op.name != "arith.constant":
                    self.facts.vector_int64 = True
                if t.elem == "f64":
                    self.facts.computed.add("f64")

    # program and grid
    def op_tt_get_program_id(self, op, ins, args, outs, writes, scope):
        axis, out = "xyz".index(op.words[0]), writes[0]

        def step(slab, regs):
            regs[out] = slab.ids[axis]

        return step, 0, ()

    def op_tt_get_num_programs(self, op, ins, args, outs, writes, scope):
        axis, out = "xyz".index(op.words[0]), writes[0]

        def step(slab, regs):
            regs[out] = np.full(1, slab.grid[axis], np.int32)

        return step, 0, ()

    def op_tt_addptr(self, op, ins, args, outs, writes, scope):
        (p, o), out, size = ins, writes[0], _pointee_bytes(args[0])

        def step(slab, regs):
            offset = regs[o]
            if size > 1:
                offset = np.multiply(offset, size, dtype=np.int64)
            regs[out] = regs[p] + offset

        return step, 0, ()

    # memory
    def op_tt_load(self, op, ins, args, outs, writes, scope):
        self.pointer_operand(op, args[0])
        site, dtype, rank = self.site(op, "load"), numpy_type(args[0].pointee), args[0].rank
        p, out = ins[0], writes[0]
        m = ins[1] if len(ins) > 1 else None
        o = ins[2] if len(ins) > 2 else None

        def step(slab, regs):
            mask = slab.mask(None if m is None else regs[m], rank)
            regs[out] = memory.load(slab.heap, regs[p], mask, None if o is None else regs[o], dtype, site)

        return step, 3 * _nbytes(args[0]), ()

    def op_tt_store(self, op, ins, args, outs, writes, scope):
        self.pointer_operand(op, args[0])
        site, rank = self.site(op, "store"), args[0].rank
        p, v = ins[:2]
        m = ins[2] if len(ins) > 2 else None

        def step(slab, regs):
            mask = slab.mask(None if m is None else regs[m], rank)
            memory.store(slab.heap, regs[p], regs[v], mask, site)

        return step, 3 * _nbytes(args[0]), ()

    def op_tt_atomic_rmw(self, op, ins, args, outs, writes, scope):
        self.pointer_operand(op, args[0])
        kind, site, t = op.words[0], self.site(op, f"atomic {op.words[0]}"), args[0]
        if kind not in memory.RMW_KINDS:
            raise self.refuse(op, f"of kind {kind} is not offered by sim")
        p, v = ins[:2]
        m = ins[2] if len(ins) > 2 else None
        out = writes[0] if writes else None
        used = bool(writes) and any(op.results[0] in o.operands for o in _all_ops(self.function.blocks))

        def step(slab, regs):
            mask = slab.mask(None if m is None else regs[m], t.rank)
            shape = (slab.count, *t.shape)
            old = memory.atomic_rmw(slab.heap, kind, regs[p], regs[v], mask, shape, used, site)
            if out is not None:
                regs[out] = old

        return step, 4 * _nbytes(t), ()

    def op_tt_atomic_cas(self, op, ins, args, outs, writes, scope):
        self.pointer_operand(op, args[0])
        (p, c, v), t, site = ins, args[0], self.site(op, "atomic cas")
        out = writes[0] if writes else None

        def step(slab, regs):
            mask, shape = slab.mask(None, t.rank), (slab.count, *t.shape)
            old = memory.atomic_cas(slab.heap, regs[p], regs[c], regs[v], mask, shape, site)
            if out is not None:
                regs[out] = old

        return step, 4 * _nbytes(t), ()

    def pointer_operand(self, op: Op, t: Type) -> None:
        if t.elem != "ptr":
            raise self.refuse(op, f"on {t} is not offered by sim")

    # messages
    def op_tt_assert(self, op, ins, args, outs, writes, scope):
        site, text, rank = self.site(op, "device assertion failed"), " ".join(op.words), args[0].rank
        c = ins[0]

        def step(slab, regs):
            bad = slab.mask(~regs[c], rank)
            if bad.any():
                raise InternalError(f"{site}: {text} in {int(bad.sum())} lanes; see the assertion")

        return step, 0, ()

    def op_tt_print(self, op, ins, args, outs, writes, scope):
        prefix, name = (op.words[0] if op.words else "").strip(), self.function.name

        def step(slab, regs):
            shown = " ".join(np.array2string(regs[k], threshold=16) for k in ins)
            sys.stderr.write(f"{name}, programs {slab.first}..{slab.first + slab.count - 1}: {prefix} {shown}\n")

        return step, 0, ()

    def op_llvm_intr_assume(self, op, ins, args, outs, writes, scope):
        return (lambda slab, regs: None), 0, ()

    # reduce, scan
    def combiner(self, op: Op, scope: dict[str, int]):
        """(function of 2n values -> n values, the ufunc it amounts to or None, the registers it reads from outside)."""
        block = op.regions[0][0]
        names = [n for n, _ in block.args]
        ufunc = None
        if len(block.ops) == 2 and block.ops[1].operands == block.ops[0].results:
            inner = block.ops[0]
            if inner.operands in (names, names[::-1]) and block.args[0][1].elem != "i1":
                ufunc = UFUNCS.get(inner.name) or ({"arith.addf": np.add, "arith.mulf": np.multiply}.get(inner.name))
        self.private += 1
        code = self.region(op.regions[0], scope)
        self.private -= 1
        captured = sorted({scope[n] for o in block.ops for n in o.operands if n not in names and n in scope})

        def combine(slab, regs, left, right):
            saved = [(k, regs[k]) for k in captured]
            rank = left[0].ndim
            for k, value in saved:  # scalars of the function meet lanes here: align them with the programs' axis
                regs[k] = value.reshape(value.shape[0], *(1,) * (rank - 1))
            for k, value in zip(code.args, (*left, *right)):
                regs[k] = value
            found = code.run(slab, regs)
            for k, value in saved:
                regs[k] = value
            return found

        return combine, ufunc, captured

    def quick(self, op: Op, ufunc, t: Type):
        """(the combination as one call, or None; whether NumPy may take any order; whether a zero's sign then tells the order)."""
        if ufunc is None:
            return None, False, False
        whole = t.elem[0] == "i"
        extreme = None if whole else numeric.EXTREMES.get(op.regions[0][0].ops[0].name)
        function = extreme or ufunc
        return (lambda left, right: [function(left[0], right[0])]), whole or extreme is not None, extreme is not None

    def op_tt_reduce(self, op, ins, args, outs, writes, scope):
        combine, ufunc, captured = self.combiner(op, scope)
        axis, shape = op.attrs["axis"] + 1, args[0].shape
        one, exact, zeros = self.quick(op, ufunc, args[0])

        def step(slab, regs):
            values = [fill(regs[k], shape) for k in ins]
            if exact:
                found = ufunc.reduce(values[0], axis=axis, dtype=values[0].dtype)
                if not zeros or (found != 0).all():
                    regs[writes[0]] = found
                    return
            result = control.reduce_tree(one or (lambda l, r: combine(slab, regs, l, r)), values, axis)
            for k, value in zip(writes, result):
                regs[k] = value

        return step, sum(map(_nbytes, args)), captured

    def op_tt_scan(self, op, ins, args, outs, writes, scope):
        combine, ufunc, captured = self.combiner(op, scope)
        axis, shape, reverse = op.attrs["axis"] + 1, args[0].shape, bool(op.attrs.get("reverse", False))
        one, exact, zeros = self.quick(op, ufunc, args[0])

        def step(slab, regs):
            values = [fill(regs[k], shape) for k in ins]
            if reverse:
                values = [np.flip(v, axis) for v in values]
            result = [ufunc.accumulate(values[0], axis=axis, dtype=values[0].dtype)] if exact else []
            if not exact or (zeros and not (result[0] != 0).all()):
                result = control.scan_tree(one or (lambda l, r: combine(slab, regs, l, r)), values, axis)
            for k, value in zip(writes, result):
                regs[k] = np.flip(value, axis) if reverse else value

        return step, 3 * sum(map(_nbytes, args)), captured

    # structured control flow
    def op_scf_for(self, op, ins, args, outs, writes, scope):
        body = self.region([self.with_args(op, args)], scope)
        step = control.for_loop(ins[:3], ins[3:], body, writes, numpy_type(args[0]), "unsigned" in op.words)
        return step, body.peak, self.captured(op.regions, scope)

    def with_args(self, op: Op, args: list[Type]) -> Block:
        """The loop body with the induction variable and iter_args as its block arguments."""
        block = op.regions[0][0]
        if block.args:
            return block
        types = [args[0], *args[3:]]
        return Block("", [(name, t) for (name, _), t in zip(op.pairs, types)], block.ops)

    def op_scf_while(self, op, ins, args, outs, writes, scope):
        before = op.regions[0][0]
        if not before.args:
            before = Block("", [(name, t) for (name, _), t in zip(op.pairs, args)], before.ops)
        head = self.region([before], scope)
        body = self.region(op.regions[1], scope)
        if head.end != "scf.condition":
            raise self.refuse(op, "has no scf.condition")
        return control.while_loop(ins, head, body, writes), head.peak + body.peak, self.captured(op.regions, scope)

    def op_scf_if(self, op, ins, args, outs, writes, scope):
        yes = self.region(op.regions[0], scope)
        no = self.region(op.regions[1], scope) if len(op.regions) > 1 else Code()
        return control.branch(ins[0], yes, no, writes), yes.peak + no.peak, self.captured(op.regions, scope)

    def captured(self, regions: list[list[Block]], scope: dict[str, int]) -> set[int]:
        """Registers of this scope that the regions read: they must live as long as the operation."""
        return {scope[n] for blocks in regions for o in _all_ops(blocks)
                for n in (*o.operands, *(x for _, names in o.successors for x in names)) if n in scope}

    def op_tt_call(self, op, ins, args, outs, writes, scope):
        routine = self.callees.get(op.symbol)
        if routine is None:
            raise ArgumentError(f"{self.function.name}: tt.call of @{op.symbol}, which is missing or calls itself")

        def step(slab, regs):
            for k, value in zip(writes, routine.run(slab, [regs[k] for k in ins])):
                regs[k] = value

        return step, routine.peak, ()

    # ---- whole functions -------------------------------------------------------------------------------------------------
    def compile(self) -> Routine:
        scope: dict[str, int] = {}
        params = []
        for name, t in self.function.args:
            scope[name] = self.new(t)
            params.append(scope[name])
        blocks = self.function.blocks
        if len(blocks) == 1:
            codes = [self.block(blocks[0], scope)]
        else:
            numbers = {b.label: k for k, b in enumerate(blocks)}
            for b in blocks:
                for o in b.ops:
                    o.successors = [(f"^bb{numbers[label]}", names) for label, names in o.successors]
            codes = [self.block(b, scope, keep=True) for b in blocks]
        peak = sum(c.peak for c in codes) + sum(_nbytes(self.types[k]) for k in params)
        return Routine(self.function, params, codes, len(self.types), peak)


class Routine:
    """A compiled function."""

    def __init__(self, function: Function, params: list[int], codes: list[Code], registers: int, peak: int) -> None:
        self.function, self.params, self.codes, self.registers, self.peak = function, params, codes, registers, peak

    def run(self, slab: Slab, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        regs: list = [None] * self.registers
        for k, value in zip(self.params, values):
            regs[k] = value
        if len(self.codes) == 1:
            return self.codes[0].run(slab, regs)
        return control.flow_graph(self.codes, slab, regs)


class Kernel:
    """A public function, ready to launch."""

    def __init__(self, routine: Routine, facts: Facts) -> None:
        self.routine, self.facts = routine, facts
        self.name = routine.function.name
        self.params = [t for _, t in routine.function.args]
        self.signature = tuple(f"*{_triton_name(t.pointee)}" if t.elem == "ptr" else _triton_name(t.elem) for t in self.params)

    def arguments(self, args: Sequence[tuple[str, int | float]]) -> list[np.ndarray]:
        """Launch arguments as uniform values (1,).  ArgumentError on a wrong number or type."""
        if len(args) != len(self.params):
            raise ArgumentError(f"{self.name}: {len(args)} arguments came, {len(self.params)} are needed; pass the ones "
                                "that are not constexpr")
        found = []
        for k, ((kind, value), t) in enumerate(zip(args, self.params)):
            if not _fits(kind, t):
                raise ArgumentError(f"{self.name}: argument {k} came as {kind}, the kernel takes {t}; pass it as that")
            dtype = numpy_type(t)
            if dtype.kind in "ib":
                size = dtype.itemsize
                bits = int(value) & (1 << (8 * size)) - 1
                found.append(np.frombuffer((bits & 1 if t.elem == "i1" else bits).to_bytes(size, "little"), dtype))
            else:
                found.append(np.array([value], np.float64).astype(dtype))
        return found

    def run(self, heap: memory.Heap, grid: tuple[int, int, int], values: Sequence[np.ndarray]) -> None:
        """Execute every program of the grid; memory is the only result.

        Raises:
            OutOfRange, ArgumentError: an access outside the live allocations, or misaligned.
            InternalError: a device assertion failed.
        """
        for first, after in self.slabs(grid[0] * grid[1] * grid[2]):
            self.run_slab(heap, grid, values, first, after)

    def slabs(self, total: int) -> list[tuple[int, int]]:
        """Ranges of programs that run together."""
        count = max(1, min(total, SLAB_BYTES // max(1, self.routine.peak)))
        return [(first, min(first + count, total)) for first in range(0, total, count)]

    def run_slab(self, heap: memory.Heap, grid: tuple[int, int, int], values: Sequence[np.ndarray], first: int, after: int) -> None:
        """Execute programs first .. after - 1."""
        with np.errstate(all="ignore"):
            self.routine.run(Slab(heap, grid, first, after - first), values)


# ---- helpers -----------------------------------------------------------------------------------------------------------------
def _pure(function, ins: list[int], outs: list[int]) -> Step:
    """A step that calls function on registers; written out by operand count, this being the innermost loop."""
    if len(outs) != 1:
        def several(slab, regs):
            for k, value in zip(outs, function(*[regs[i] for i in ins])):
                regs[k] = value

        return several
    out = outs[0]
    if len(ins) == 2:
        a, b = ins

        def two(slab, regs):
            regs[out] = function(regs[a], regs[b])

        return two
    if len(ins) == 1:
        a = ins[0]

        def one(slab, regs):
            regs[out] = function(regs[a])

        return one

    def many(slab, regs):
        regs[out] = function(*[regs[i] for i in ins])

    return many


def _nbytes(t: Type) -> int:
    """Bytes of one program's value; unknown element types count as 8."""
    try:
        return t.numel * numpy_type(t).itemsize
    except Unsupported:
        return 8 * t.numel


def _pointee_bytes(pointer: Type) -> int:
    """Bytes one step of tt.addptr moves."""
    return numpy_type(pointer.pointee).itemsize


def _all_ops(blocks: list[Block]):
    for block in blocks:
        for op in block.ops:
            yield op
            for region in op.regions:
                yield from _all_ops(region)


_NONE = ("tt.store", "tt.assert", "tt.print", "llvm.intr.assume")


def _result_types(op: Op, args: list[Type]) -> list[Type]:
    """Result types where the text leaves them out, by the rule of each operation's printed form."""
    if op.name == "tt.split":  # both results have the one type that is printed
        return [Type(args[0].shape[:-1], args[0].elem, args[0].pointee)] * 2
    if op.out_types:
        return op.out_types
    if op.name in _NONE:
        return []
    if op.name == "tt.load":
        return [Type(args[0].shape, args[0].pointee)]
    if op.name in ("arith.cmpi", "arith.cmpf"):
        return [Type(args[0].shape, "i1")]
    if op.name == "tt.addptr":
        return [args[0]]
    if op.name == "arith.select":
        return [args[1]]
    return op.in_types[-1:] or args[:1]


_TRITON_NAMES = {"f16": "fp16", "bf16": "bf16", "f32": "fp32", "f64": "fp64"}
_FLOAT8 = {"f8E4M3FN": "fp8e4nv", "f8E4M3FNUZ": "fp8e4nv", "f8E5M2": "fp8e5"}  # Triton 3.0 prints fp8e4nv with UZ


def _triton_name(elem: str) -> str:
    """Triton's name of a TTIR element type."""
    return _TRITON_NAMES.get(elem) or _FLOAT8.get(elem, elem)


def _fits(kind: str, t: Type) -> bool:
    if t.elem == "ptr":
        return kind.startswith("*")
    if kind.startswith("*"):
        return False
    if t.elem in _TRITON_NAMES:
        return kind in (_TRITON_NAMES[t.elem], t.elem)
    return kind.replace("u", "i", 1) == t.elem if kind[:1] in "iu" else kind == t.elem


def compile_module(image: bytes) -> dict[str, Kernel]:
    """The public functions of a TTIR module, ready to run.

    Raises:
        ArgumentError: the bytes are not TTIR.
        Unsupported: an operation or element type that sim lacks, by name.
    """
    try:
        text = image.decode()
    except UnicodeDecodeError:
        raise ArgumentError("the image is not TTIR text; compile for the target ('haian_sim', 'sim0', 1)") from None
    module = parse(text)
    routines: dict[str, Routine] = {}
    facts: dict[str, Facts] = {}

    def build(name: str, above: tuple[str, ...]) -> None:
        if name in routines or name in above or name not in module.functions:
            return
        function = module.functions[name]
        mine = facts[name] = Facts()
        for op in _all_ops(function.blocks):
            if op.name == "tt.call":
                build(op.symbol, (*above, name))
                inner = facts.get(op.symbol, Facts())
                mine.loaded |= inner.loaded
                mine.computed |= inner.computed
                mine.atomics |= inner.atomics
                mine.vector_int64 |= inner.vector_int64
        routines[name] = _Compiler(module, function, routines, mine).compile()

    for name in module.functions:
        build(name, ())
    return {n: Kernel(r, facts[n]) for n, r in routines.items() if r.function.public}
