"""From ir.py's tree to C: values, fused element loops, control flow, and where in the arena each tile lives.

A program is one run of the function's body over its own tiles, so the grid is a plain loop.  Pure elementwise operations are
gathered into groups of one loop nest each; everything else (tiles.py) is a statement between them.  A value that is the
same along an axis is computed once along it, a splat in a scalar.  Not here: one lane's arithmetic (scalars.py), memory and
trees (tiles.py), the C compiler (build.py).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..control import TERMINATORS
from ..execute import _result_types
from ..ir import Block, Function, Module, Op, Type
from ..memory import Site
from ..vector import ELEMENTWISE
from .scalars import NUMPY_LOOPS, NoCode, c_type, expression, literal, literals

__all__ = ["Buffer", "Call", "Emitter", "Group", "Source", "Value", "contiguous"]

MAX_ARENA = 1 << 28  # bytes of tiles one program may take; beyond it NumPy's slabs are no worse
MAX_TEXT = 1 << 20  # characters; the compiler takes seconds for more


@dataclass(eq=False)
class Buffer:
    """A contiguous piece of the arena.  first, last: positions of the statements that touch it first and last."""

    name: str
    elem: str  # TTIR's element type
    count: int
    first: int = 1 << 60
    last: int = -1
    offset: int = 0

    @property
    def ctype(self) -> str:
        return c_type(self.elem)

    @property
    def nbytes(self) -> int:
        return self.count * {"uint8_t": 1, "int8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4, "float": 4}.get(self.ctype, 8)


@dataclass(eq=False)
class Lane:
    """A value computed in a group; ``buffer`` once somebody outside the group wants it."""

    group: Group
    name: str
    elem: str
    buffer: Buffer | None = None


@dataclass(frozen=True)
class Range:
    """tt.make_range: the element at index i is start + i."""

    start: int


Source = str | Lane | Range | Buffer  # a str is a C expression, the same for all lanes


@dataclass(frozen=True)
class Value:
    """A typed view of a source.  strides: elements per axis of the type's shape, 0 where it is the same all along."""

    type: Type
    source: Source
    strides: tuple[int, ...] = ()
    offset: int = 0

    @property
    def uniform(self) -> bool:
        return isinstance(self.source, str)

    def varies(self, axis: int) -> bool:
        return self.type.shape[axis] > 1 and self.strides[axis] != 0


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides in elements; 0 along axes of length 1."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step if n > 1 else 0)
        step *= n
    return tuple(reversed(strides))


def text_of(scalar: str) -> Value:
    return Value(Type((), "i64"), scalar)


# ---- statements -----------------------------------------------------------------------------------------------------------------
class Statement:
    def buffers(self) -> list[Buffer]:
        """The arena's pieces it reads or writes."""
        return []

    def lines(self) -> Iterator[str]:
        raise NotImplementedError


@dataclass(eq=False)
class Call(Statement):
    """Lines of C over buffers; ``text`` is asked for when all is known."""

    text: Callable[[], str] | str
    uses: list[Buffer] = field(default_factory=list)

    def buffers(self) -> list[Buffer]:
        return self.uses

    def lines(self) -> Iterator[str]:
        body = self.text if isinstance(self.text, str) else self.text()
        if not self.uses:
            yield body
            return
        yield "{"
        for b in dict.fromkeys(self.uses):
            yield f"{b.ctype} *const {b.name} = ({b.ctype} *)(M + {b.offset});"
        yield body
        yield "}"


@dataclass(eq=False)
class Group(Statement):
    """One loop nest over ``dims`` (no axis of length 1) with elementwise code in it."""

    dims: tuple[int, ...]
    code: list[tuple[Lane, str]] = field(default_factory=list)
    reads: list[Buffer] = field(default_factory=list)
    closed: bool = False

    def buffers(self) -> list[Buffer]:
        if not any(lane.buffer for lane, _ in self.code):
            return []
        return [*self.reads, *(lane.buffer for lane, _ in self.code if lane.buffer)]

    def lines(self) -> Iterator[str]:
        stored = {lane.buffer for lane, _ in self.code if lane.buffer}
        if not stored:
            return  # nobody wanted any of it
        yield "{"
        for b in dict.fromkeys(self.buffers()):
            const = "" if b in stored else "const "
            yield f"{const}{b.ctype} *restrict const {b.name} = ({b.ctype} *)__builtin_assume_aligned(M + {b.offset}, 64);"
        for k, n in enumerate(self.dims):
            yield f"for (int64_t i{k} = 0; i{k} < {n}; ++i{k}) {{"
        at = index_text(contiguous(self.dims), 0)
        for lane, code in self.code:
            yield f"const {c_type(lane.elem)} {lane.name} = {code};"
            if lane.buffer:
                yield f"{lane.buffer.name}[{at}] = {lane.name};"
        yield "}" * len(self.dims) + "}"


@dataclass(eq=False)
class Nest(Statement):
    """A loop or branch around statements.  kept: buffers that live as long as the whole (carried values)."""

    parts: list[tuple[Callable[[], str] | str, list[Statement]]]
    end: str
    loops: bool
    kept: list[Buffer] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        for head, body in self.parts:
            yield head if isinstance(head, str) else head()
            for statement in body:
                yield from statement.lines()
        yield self.end


def index_text(strides: Sequence[int], offset: int) -> str:
    terms = [f"i{k} * {s}" if s != 1 else f"i{k}" for k, s in enumerate(strides) if s]
    return " + ".join(terms + ([str(offset)] if offset or not terms else []))


# ---- the emitter ------------------------------------------------------------------------------------------------------------------
class Emitter:
    """Translates one public function.  ``text()`` is its C; ``sites`` what its accesses are called in messages."""

    def __init__(self, module: Module, function: Function) -> None:
        self.module, self.function = module, function
        self.body: list[Statement] = []
        self.open: dict[tuple[int, ...], Group] = {}
        self.made: list[Buffer] = []
        self.tables: list[str] = []
        self.sites: list[Site] = []
        self.names = 0
        self.weight = 0.0  # lanes computed by one program, loops counted once
        self.work = 1.0  # how many of these loops are around
        self.trips: list[float] = []

    def name(self, letter: str) -> str:
        self.names += 1
        return f"{letter}{self.names}"

    def site(self, op: Op, what: str) -> int:
        self.sites.append(Site(self.function.name, what, self.module.where(op.loc)))
        return len(self.sites) - 1

    def buffer(self, elem: str, count: int) -> Buffer:
        made = Buffer(self.name("b"), elem, count)
        self.made.append(made)
        return made

    def say(self, text: Callable[[], str] | str, *uses: Buffer) -> None:
        self.body.append(Call(text, list(uses)))

    # ---- groups ---------------------------------------------------------------------------------------------------------------------
    def close(self, group: Group | None = None) -> None:
        """End a group (or all): what follows may rely on its results."""
        for key in [k for k, g in self.open.items() if group is None or g is group]:
            done = self.open.pop(key)
            done.closed = True
            self.body.append(done)

    def store(self, lane: Lane) -> Buffer:
        """Where the lane's values lie, for users outside its group, which ends."""
        if lane.buffer is None:
            lane.buffer = self.buffer(lane.elem, math.prod(lane.group.dims))
        if not lane.group.closed:
            self.close(lane.group)
        return lane.buffer

    def read(self, value: Value, axes: Sequence[int], group: Group) -> str:
        """C for the value at the group's indices; ``axes`` are the type's axes that the group loops over."""
        if isinstance(value.source, str):
            return value.source
        strides = tuple(value.strides[a] if value.type.shape[a] > 1 else 0 for a in axes)
        if isinstance(value.source, Range):
            return f"(int32_t)({index_text(strides, value.source.start + value.offset)})"
        source = value.source
        if isinstance(source, Lane):
            if source.group is group:
                return source.name
            source = self.store(source)
        if source not in group.reads:
            group.reads.append(source)
        return f"{source.name}[{index_text(strides, value.offset)}]"

    def group_for(self, values: Sequence[Value], axes: Sequence[int], dims: tuple[int, ...]) -> Group:
        """The open group of these dims, or a new one where the values cannot be had inside it."""
        mine = self.open.get(dims)
        for v in values:
            if isinstance(v.source, Lane) and not v.source.group.closed:
                strides = tuple(v.strides[a] if v.type.shape[a] > 1 else 0 for a in axes)
                if v.source.group is not mine or strides != contiguous(dims) or v.offset:
                    self.store(v.source)
        mine = self.open.get(dims)
        if mine is None:
            mine = self.open[dims] = Group(dims)
        return mine

    def elementwise(self, build: Callable[[Sequence[str]], str], values: Sequence[Value], out: Type,
                    full: bool = False) -> Value:
        """A new value, computed lane by lane from values of the same shape (or scalars).

        Args:
            build: C operands to a C expression.
            full: every axis at its length, even where nothing varies.
        """
        tiles = [v for v in values if v.type.shape]
        axes = [a for a, n in enumerate(out.shape) if n > 1 and (full or any(v.varies(a) for v in tiles))]
        if not axes and not full:
            operands = [self.scalar(v) for v in values]
            name = self.name("v")
            self.say(f"const {c_type(out.elem)} {name} = {build(operands)};")
            return Value(out, name, (0,) * out.rank)
        dims = tuple(out.shape[a] for a in axes)
        self.weight += math.prod(dims) * self.work
        group = self.group_for(values, axes, dims)
        operands = [self.read(v, axes, group) if v.type.shape else self.scalar(v) for v in values]
        lane = Lane(group, self.name("t"), out.elem)
        group.code.append((lane, build(operands)))
        strides = [0] * out.rank
        for a, s in zip(axes, contiguous(dims)):
            strides[a] = s
        return Value(out, lane, tuple(strides))

    def scalar(self, value: Value) -> str:
        """A value that is the same in all lanes, as a C expression (short)."""
        if isinstance(value.source, str):
            return value.source
        if isinstance(value.source, Range):
            return f"({value.source.start + value.offset})"
        buffer = self.store(value.source) if isinstance(value.source, Lane) else value.source
        name = self.name("v")
        offset = value.offset
        self.say(f"{buffer.ctype} {name};")
        self.say(lambda: f"{name} = {buffer.name}[{offset}];", buffer)
        return name

    def flat(self, value: Value, shape: Sequence[int] | None = None) -> Buffer | str:
        """The value's lanes in row-major order, or the C expression they all share.

        Args:
            shape: lengths to lay out, 1 where the value does not vary; None: the type's shape, filled, never an expression.
        """
        full = shape is None
        want = tuple(value.type.shape if shape is None else shape)
        if value.uniform and not full:
            return str(value.source)
        same = contiguous(want) == tuple(s if n > 1 else 0 for s, n in zip(value.strides, want))
        if same and not value.offset and not value.uniform:
            if isinstance(value.source, Lane) and math.prod(value.source.group.dims) == math.prod(want):
                return self.store(value.source)
            if isinstance(value.source, Buffer) and value.source.count == math.prod(want):
                return value.source
        axes = [a for a, n in enumerate(want) if n > 1]
        dims = tuple(want[a] for a in axes)
        group = self.group_for([value], axes, dims)
        lane = Lane(group, self.name("t"), value.type.elem)
        group.code.append((lane, self.read(value, axes, group)))
        return self.store(lane)

    def domain(self, *values: Value | None) -> tuple[int, ...]:
        """Lengths along which any of the values varies, 1 elsewhere."""
        some = [v for v in values if v is not None and v.type.shape]
        shape = some[0].type.shape if some else ()
        return tuple(n if any(v.varies(a) for v in some) else 1 for a, n in enumerate(shape))

    def spread(self, out: Type, buffer: Buffer, domain: Sequence[int]) -> Value:
        """The buffer, contiguous over the domain, as a value of the type; a scalar where it holds one element."""
        if not out.shape:
            return Value(out, self.scalar(Value(out, buffer)))
        return Value(out, buffer, contiguous(domain))

    # ---- operations -------------------------------------------------------------------------------------------------------------------
    def op(self, op: Op, scope: dict[str, Value]) -> None:
        from .tiles import STRUCTURAL

        args = [self.lookup(n, scope) for n in op.operands]
        types = [v.type for v in args]
        outs = _result_types(op, types)[: len(op.results)] if op.results else []
        build = STRUCTURAL.get(op.name)
        if build is not None:
            found = build(self, op, args, outs, scope)
        elif op.name in ("arith.constant", "ub.poison"):
            found = [self.constant(op, outs[0])]
        elif op.name in NUMPY_LOOPS and any(any(v.varies(a) for a in range(v.type.rank)) for v in args):
            found = [STRUCTURAL["numpy loop"](self, op, args, outs, scope)[0]]
        else:
            out = outs[0] if outs else None
            if out is None:
                raise NoCode(f"operation {op.name}")
            spread = [v if v.type.shape or not out.shape else replace(v, type=Type(out.shape, v.type.elem, v.type.pointee),
                                                                    strides=(0,) * out.rank) for v in args]
            found = [self.elementwise(lambda x: expression(op, types, out, x), spread, out)]
        for name, value in zip(op.results, found):
            scope[name] = value

    def lookup(self, name: str, scope: dict[str, Value]) -> Value:
        found = scope.get(name) or scope.get(f"{name}#0")
        if found is None:
            raise NoCode(f"value {name} is not defined")
        return found

    def constant(self, op: Op, out: Type) -> Value:
        data = literals(op, out)
        if data.size == 1:
            return Value(out, literal(data[0], out.elem), (0,) * out.rank)
        name = self.name("k")
        self.tables.append(f"static const {c_type(out.elem)} {name}[{data.size}] = {{{', '.join(literal(v, out.elem) for v in data)}}};")
        buffer = self.buffer(out.elem, data.size)
        self.say(lambda: f"memcpy({buffer.name}, {name}, sizeof {name});", buffer)
        return Value(out, buffer, contiguous(out.shape))

    def combine(self, op: Op, scope: dict[str, Value], left: Sequence[str], right: Sequence[str]) -> tuple[str, list[str]]:
        """The body of a tt.reduce or tt.scan on one pair of lanes: (C declarations, C results)."""
        block = op.regions[0][0]
        inner: dict[str, tuple[str, Type]] = {}
        for (name, t), x in zip(block.args, (*left, *right)):
            inner[name] = (x, t)
        lines: list[str] = []

        def get(name: str) -> tuple[str, Type]:
            if name in inner:
                return inner[name]
            value = self.lookup(name, scope)
            if not isinstance(value.source, str):
                raise NoCode(f"{op.name} reads a tile in its body")
            return value.source, value.type

        for o in block.ops[:-1]:
            operands = [get(n) for n in o.operands]
            types = [t for _, t in operands]
            out = _result_types(o, types)[0]
            if o.name == "arith.constant":
                inner[o.results[0]] = (literal(literals(o, out)[0], out.elem), out)
                continue
            if o.name not in ELEMENTWISE or len(o.results) != 1:
                raise NoCode(f"operation {o.name} in the body of {op.name}")
            name = self.name("r")
            lines.append(f"const {c_type(out.elem)} {name} = {expression(o, types, out, [x for x, _ in operands])};")
            inner[o.results[0]] = (name, out)
        return " ".join(lines), [get(n)[0] for n in block.ops[-1].operands]

    # ---- blocks and control flow ----------------------------------------------------------------------------------------------------------
    def block(self, ops: Sequence[Op], scope: dict[str, Value]) -> Op | None:
        """Emit the operations; returns the terminator.  All groups are closed afterwards."""
        end = ops[-1] if ops and ops[-1].name in TERMINATORS else None
        for op in ops[:-1] if end else ops:
            self.op(op, scope)
        return end

    def inside(self, run: Callable[[], None]) -> list[Statement]:
        """The statements that run() emits, apart."""
        outer, self.body = self.body, []
        run()
        self.close()
        made, self.body = self.body, outer
        return made

    def carried(self, t: Type) -> Value:
        """A variable: a C variable for a scalar, a buffer for a tile."""
        if not t.shape:
            name = self.name("x")
            self.say(f"{c_type(t.elem)} {name};")
            return Value(t, name)
        return Value(t, self.buffer(t.elem, t.numel), contiguous(t.shape))

    def assign(self, variables: Sequence[Value], values: Sequence[Value]) -> None:
        """variables = values, as if at once."""
        mine = {id(v.source) for v in variables if not v.uniform}
        names = {v.source for v in variables if v.uniform}
        ready: list[Any] = []
        for variable, value in zip(variables, values):
            if value.source is variable.source and value.strides == variable.strides and value.offset == variable.offset:
                ready.append(None)
            elif not variable.type.shape:
                text = self.scalar(value)
                if text in names:
                    kept = self.name("v")
                    self.say(f"const {c_type(variable.type.elem)} {kept} = {text};")
                    text = kept
                ready.append(text)
            else:
                found = self.flat(value)
                assert isinstance(found, Buffer)
                if id(found) in mine:  # another variable, which may be overwritten before it is read
                    apart = self.buffer(found.elem, found.count)
                    self.copy(apart, found)
                    found = apart
                ready.append(found)
        for variable, value in zip(variables, ready):
            if isinstance(value, str):
                self.say(f"{variable.source} = {value};")
            elif value is not None:
                self.copy(variable.source, value)

    def copy(self, to: Any, source: Buffer) -> None:
        self.say(lambda: f"memcpy({to.name}, {source.name}, sizeof({to.ctype}) * {to.count});", to, source)

    def function_text(self, symbol: str) -> str:
        """The C function ``int symbol(sim_env *E, const sim_arg *A, int64_t first, int64_t last)``.

        Raises:
            NoCode: something in the function has no C form.
        """
        scope: dict[str, Value] = {}
        head = []
        for k, (name, t) in enumerate(self.function.args):
            if t.shape:
                raise NoCode("a tensor among the parameters")
            member = {"f32": f"(float)A[{k}].d", "f64": f"A[{k}].d"}.get(t.elem, f"({c_type(t.elem)})A[{k}].i")
            head.append(f"const {c_type(t.elem)} a{k} = {member};")
            scope[name] = Value(t, f"a{k}")
        blocks = self.function.blocks
        if len(blocks) == 1:
            self.block(blocks[0].ops, scope)
            self.close()
        else:
            self.graph(blocks, scope)
        if self.function.results:
            raise NoCode("a public function with results")
        position = mark(self.body, 0)
        arena = place(self.made)
        if arena > MAX_ARENA:
            raise NoCode(f"tiles of {arena} bytes a program")
        lines = [line for statement in self.body for line in statement.lines()]
        text = "\n".join([
            *self.tables, f"int {symbol}(sim_env *E, const sim_arg *A, int64_t first, int64_t last) {{",
            f"/* {position} statements, {arena} bytes of tiles */",
            f"int status = SIM_OK; char *M = aligned_alloc(64, {max(64, arena)}); (void)A;",
            "if (!M) return SIM_MEMORY;", *head, "for (int64_t P = first; P < last; ++P) {",
            "const int32_t pid_x = (int32_t)(P % E->grid[0]), pid_y = (int32_t)(P / E->grid[0] % E->grid[1]);",
            "const int32_t pid_z = (int32_t)(P / ((int64_t)E->grid[0] * E->grid[1])); (void)pid_x, (void)pid_y, (void)pid_z;",
            *lines, "goto next; next:;", "}", "goto fail; fail:;", "free(M);", "return status;", "}", ""])  # fmt: skip
        if len(text) > MAX_TEXT:
            raise NoCode(f"{len(text)} characters of C")
        return text

    def graph(self, blocks: list[Block], scope: dict[str, Value]) -> None:
        """Blocks that jump forward: labels and goto."""
        numbers = {b.label: k for k, b in enumerate(blocks)}
        variables = {}
        for b in blocks[1:]:
            variables[b.label] = [self.carried(t) for _, t in b.args]
            scope.update(zip((n for n, _ in b.args), variables[b.label]))

        def jump(label: str, names: list[str], here: int) -> Callable[[], None]:
            number = int(label.strip("^b"))
            if number <= here:
                raise NoCode("a jump back")
            target = blocks[number]

            def go() -> None:
                self.assign(variables[target.label], [self.lookup(n, scope) for n in names])
                self.say(f"goto block{number};")

            return go

        for here, b in enumerate(blocks):
            if here:
                self.say(f"block{here}:;")
            end = self.block(b.ops, scope)
            self.close()
            if end is None:
                raise NoCode("a block without an end")
            goes = [jump(numbers_label(label, numbers), names, here) for label, names in end.successors]
            if end.name == "tt.return":
                self.say("goto next;")
            elif end.name == "cf.br":
                goes[0]()
            else:
                flag = self.scalar(self.lookup(end.operands[0], scope))
                self.body.append(Nest([(f"if ({flag}) {{", self.inside(goes[0])), ("} else {", self.inside(goes[1]))], "}", False))


def numbers_label(label: str, numbers: dict[str, int]) -> str:
    """^bb<position>, whatever the printed label is (execute.py may have renumbered it already)."""
    return f"^bb{numbers[label]}" if label in numbers else label


# ---- the arena ------------------------------------------------------------------------------------------------------------------------
def mark(body: list[Statement], at: int) -> int:
    """Numbers the statements and notes where each buffer is touched first and last; returns the next number."""
    for statement in body:
        at += 1
        if isinstance(statement, Nest):
            start = at
            for b in statement.kept:
                b.first = min(b.first, start)
            for _, inner in statement.parts:
                at = mark(inner, at)
            at += 1
            inside = [b for _, inner in statement.parts for b in all_buffers(inner)]
            for b in (*inside, *statement.kept):
                # what came from outside is read again in the next round
                if statement.loops and b.first <= start:
                    b.last = max(b.last, at)
            for b in statement.kept:
                b.last = max(b.last, at)
        else:
            for b in statement.buffers():
                b.first, b.last = min(b.first, at), max(b.last, at)
    return at


def all_buffers(body: list[Statement]) -> Iterator[Buffer]:
    for statement in body:
        if isinstance(statement, Nest):
            yield from statement.kept
            for _, inner in statement.parts:
                yield from all_buffers(inner)
        else:
            yield from statement.buffers()


def place(buffers: list[Buffer]) -> int:
    """First fit, in order of first use; returns the bytes of the arena."""
    live: list[Buffer] = []
    top = 0
    for b in sorted((b for b in buffers if b.last >= 0), key=lambda b: b.first):
        live = [x for x in live if x.last >= b.first]
        at, need = 0, -(-b.nbytes // 64) * 64
        for x in sorted(live, key=lambda x: x.offset):
            if at + need <= x.offset:
                break
            at = max(at, x.offset + -(-x.nbytes // 64) * 64)
        b.offset = at
        live.append(b)
        top = max(top, at + need)
    return top
