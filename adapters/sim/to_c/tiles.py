"""Operations that are no element loop, as C: shapes, memory, atomics, reduce, scan, dot, loops and branches.

``STRUCTURAL`` maps TTIR's name to a function (emitter, op, operands, result types, scope) -> result values.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..ir import Block, Op, Type
from ..memory import RMW_KINDS
from .emit import Buffer, Emitter, Nest, Range, Value, contiguous
from .scalars import BITS, LOOPS, NUMPY_LOOPS, NoCode, c_type, down, from_f64, up

__all__ = ["STRUCTURAL"]

Build = Callable[[Emitter, Op, list[Value], list[Type], dict[str, Value]], list[Value]]
STRUCTURAL: dict[str, Build] = {}
GUESSED_TRIPS = 8  # rounds of a loop whose bounds are not constants, for the estimate of work


def _register(*names: str) -> Callable[[Build], Build]:
    def add(build: Build) -> Build:
        for name in names:
            STRUCTURAL[name] = build
        return build

    return add


# ---- grid and shapes ------------------------------------------------------------------------------------------------------------
@_register("tt.get_program_id")
def _program_id(em, op, args, outs, scope):
    return [Value(outs[0], f"pid_{op.words[0]}")]


@_register("tt.get_num_programs")
def _num_programs(em, op, args, outs, scope):
    return [Value(outs[0], f"E->grid[{'xyz'.index(op.words[0])}]")]


@_register("llvm.intr.assume")
def _assume(em, op, args, outs, scope):
    return []


@_register("tt.make_range")
def _make_range(em, op, args, outs, scope):
    return [Value(outs[0], Range(op.attrs["start"]), (1,))]


@_register("tt.splat")
def _splat(em, op, args, outs, scope):
    return [Value(outs[0], em.scalar(args[0]), (0,) * outs[0].rank)]


@_register("tt.unsplat")
def _unsplat(em, op, args, outs, scope):
    return [Value(outs[0], em.scalar(args[0]))]


@_register("tt.broadcast")
def _broadcast(em, op, args, outs, scope):
    strides = tuple(s if n == m else 0 for s, n, m in zip(args[0].strides, args[0].type.shape, outs[0].shape))
    return [replace(args[0], type=outs[0], strides=strides)]


@_register("tt.expand_dims")
def _expand_dims(em, op, args, outs, scope):
    at = op.attrs["axis"]
    return [replace(args[0], type=outs[0], strides=(*args[0].strides[:at], 0, *args[0].strides[at:]))]


@_register("tt.trans")
def _trans(em, op, args, outs, scope):
    return [replace(args[0], type=outs[0], strides=tuple(args[0].strides[k] for k in op.attrs["order"]))]


@_register("tt.reshape", "tt.view")
def _reshape(em, op, args, outs, scope):
    x, shape = args[0], outs[0].shape
    if x.uniform:
        return [replace(x, type=outs[0], strides=(0,) * len(shape))]
    long = [k for k, n in enumerate(x.type.shape) if n > 1]
    where = [k for k, n in enumerate(shape) if n > 1]
    if [x.type.shape[k] for k in long] == [shape[k] for k in where]:  # only axes of length 1 come or go
        strides = [0] * len(shape)
        for a, b in zip(long, where):
            strides[b] = x.strides[a]
        return [replace(x, type=outs[0], strides=tuple(strides))]
    found = em.flat(x)
    return [Value(outs[0], found, contiguous(shape))]


@_register("tt.split")
def _split(em, op, args, outs, scope):
    x = args[0]
    step = x.strides[-1]
    return [replace(x, type=outs[k], strides=x.strides[:-1], offset=x.offset + k * step) for k in (0, 1)]


@_register("tt.join")
def _join(em, op, args, outs, scope):
    n = args[0].type.numel
    parts = [em.flat(v) for v in args]
    out = em.buffer(outs[0].elem, 2 * n)
    em.say(lambda: f"EACH(i, {n}) {{ {out.name}[2 * i] = {parts[0].name}[i]; {out.name}[2 * i + 1] = {parts[1].name}[i]; }}",
           out, *parts)
    return [Value(outs[0], out, contiguous(outs[0].shape))]


@_register("tt.cat")
def _cat(em, op, args, outs, scope):
    parts = [em.flat(v) for v in args]
    out = em.buffer(outs[0].elem, outs[0].numel)
    size = f"sizeof({out.ctype})"
    em.say(lambda: f"memcpy({out.name}, {parts[0].name}, {parts[0].count} * {size}); "
                   f"memcpy({out.name} + {parts[0].count}, {parts[1].name}, {parts[1].count} * {size});", out, *parts)
    return [Value(outs[0], out, contiguous(outs[0].shape))]


def _around(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """(products of the lengths before the axis, its length, product after it)"""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


@_register("tt.gather")
def _gather(em, op, args, outs, scope):
    axis, source, index = op.attrs["axis"], em.flat(args[0]), em.flat(args[1])
    outer, length, inner = _around(args[0].type.shape, axis)
    outer_i, count, inner_i = _around(args[1].type.shape, axis)
    if (outer, inner) != (outer_i, inner_i):
        raise NoCode("tt.gather of other lengths beside its axis")
    out = em.buffer(outs[0].elem, outs[0].numel)
    em.say(lambda: f"EACH(o, {outer}) EACH(j, {count}) EACH(i, {inner}) {{ int64_t k = {index.name}[(o * {count} + j) * {inner} + i]; "
                   f"k = k < 0 ? 0 : k >= {length} ? {length - 1} : k; "
                   f"{out.name}[(o * {count} + j) * {inner} + i] = {source.name}[(o * {length} + k) * {inner} + i]; }}",
           out, source, index)
    return [Value(outs[0], out, contiguous(outs[0].shape))]


@_register("tt.histogram")
def _histogram(em, op, args, outs, scope):
    bins, n = outs[0].shape[0], args[0].type.numel
    uses = [em.flat(v) for v in args]
    out = em.buffer(outs[0].elem, bins)
    on = (lambda: f" && {uses[1].name}[i]") if len(uses) > 1 else lambda: ""
    em.say(lambda: f"memset({out.name}, 0, sizeof({out.ctype}) * {bins}); EACH(i, {n}) {{ int64_t k = {uses[0].name}[i]; "
                   f"if (k >= 0 && k < {bins}{on()}) ++{out.name}[k]; }}", out, *uses)
    return [Value(outs[0], out, contiguous(outs[0].shape))]


# ---- NumPy's loops -----------------------------------------------------------------------------------------------------------------
@_register("numpy loop")
def _numpy_loop(em, op, args, outs, scope):
    """exp and the like on tiles: to float64, one call of NumPy's loop, rounded once."""
    name, elem = op.name, outs[0].elem
    number = list(NUMPY_LOOPS).index(name)
    domain = em.domain(*args)
    n = math.prod(domain)
    f64 = Type(outs[0].shape, "f64")
    steps, uses, once = [], [], []
    for v in args:
        w = v if elem == "f64" else em.elementwise(lambda x: f"(double){up(elem, x[0])}", [v], f64)
        found = em.flat(w, domain)
        once.append(None if isinstance(found, Buffer) else found)
        uses.append(found)
        steps.append(int(isinstance(found, Buffer)))
    out = em.buffer("f64", n)
    real = [u for u in uses if isinstance(u, Buffer)]

    def text() -> str:
        head = "".join(f"const double u{k} = {x}; " for k, x in enumerate(once) if x is not None)
        names = [u.name if isinstance(u, Buffer) else f"&u{k}" for k, u in enumerate(uses)]
        if len(names) == 1:
            return f"{head}map1(E, {number}, {names[0]}, {out.name}, {n});"
        return f"{head}map2(E, {number}, {names[0]}, {steps[0]}, {names[1]}, {steps[1]}, {out.name}, {n});"

    em.say(lambda: "{ " + text() + " }", out, *real)
    em.weight += 8 * n * em.work
    got = Value(f64, out, contiguous(domain))
    return [got if elem == "f64" else em.elementwise(lambda x: from_f64(elem, x[0]), [got], outs[0])]


# ---- memory -------------------------------------------------------------------------------------------------------------------------
def _pointer(op: Op, v: Value) -> str:
    if v.type.elem != "ptr":
        raise NoCode(f"{op.name} on {v.type}")
    return v.type.pointee


class _Operands:
    """C arguments for values that are buffers or one shared element: ``(pointer, step)``."""

    def __init__(self) -> None:
        self.head = ""
        self.uses: list[Any] = []

    def add(self, em: Emitter, value: Value | None, domain: Sequence[int], ctype: str, many: bool = False) -> Callable[[], tuple[str, int]]:
        """many: the callee knows no step, so that a shared element is spread."""
        if value is None:
            return lambda: ("0", 0)
        if many and value.uniform and math.prod(domain) > 1:
            found: Buffer | str = em.flat(replace(value, type=Type(tuple(domain), value.type.elem, value.type.pointee),
                                                  strides=(0,) * len(domain)))
        else:
            found = em.flat(value, domain)
        if isinstance(found, Buffer):
            self.uses.append(found)
            return lambda: (found.name, 1)
        name = em.name("u")
        self.head += f"const {ctype} {name} = {found}; "
        return lambda: (f"&{name}", 0)


@_register("tt.load")
def _load(em, op, args, outs, scope):
    elem = _pointer(op, args[0])
    p, m, o = (args + [None, None])[:3]
    domain, site, bits = em.domain(p, m, o), em.site(op, "load"), BITS[c_elem(elem)]
    n = math.prod(domain)
    with_operands = _Operands()
    at = with_operands.add(em, p, domain, "int64_t", many=True)
    mask = with_operands.add(em, m, domain, "uint8_t")
    other = with_operands.add(em, o, domain, c_type(elem))
    out = em.buffer(elem, n)
    em.weight += 3 * n * em.work

    def text() -> str:
        (pp, _), (mp, ms), (op_, os) = at(), mask(), other()
        boolean = f" EACH(i, {n}) {out.name}[i] = {out.name}[i] != 0;" if elem == "i1" else ""
        return (f"{{ {with_operands.head}if ((status = load_{bits}(E, {site}, {pp}, {mp}, {ms}, {op_}, {os}, {out.name}, {n}))) "
                f"goto fail;{boolean} }}")

    em.say(text, out, *with_operands.uses)
    return [em.spread(outs[0], out, domain)]


def c_elem(elem: str) -> str:
    c_type(elem)
    return elem


@_register("tt.store")
def _store(em, op, args, outs, scope):
    elem = _pointer(op, args[0])
    p, v, m = (args + [None])[:3]
    domain, site, bits = em.domain(p, v, m), em.site(op, "store"), BITS[c_elem(elem)]
    n = math.prod(domain)
    with_operands = _Operands()
    at = with_operands.add(em, p, domain, "int64_t", many=True)
    value = with_operands.add(em, v, domain, c_type(elem))
    mask = with_operands.add(em, m, domain, "uint8_t")
    em.weight += 3 * n * em.work

    def text() -> str:
        (pp, _), (vp, vs), (mp, ms) = at(), value(), mask()
        return f"{{ {with_operands.head}if ((status = store_{bits}(E, {site}, {pp}, {mp}, {ms}, {vp}, {vs}, {n}))) goto fail; }}"

    em.say(text, *with_operands.uses)
    return []


_RMW = {"add": "{0} + {1}", "max": "{0} > {1} ? {0} : {1}", "min": "{0} < {1} ? {0} : {1}", "umax": "({U}){0} > ({U}){1} ? {0} : {1}",
        "umin": "({U}){0} < ({U}){1} ? {0} : {1}", "and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "exch": "{1}",
        "xchg": "{1}"}  # fmt: skip


def _atomic(em: Emitter, op: Op, pointer: Value, operands: list[Value], mask: Value | None, out: Type | None, what: str,
            update: str) -> list[Value]:
    """Lane after lane: ``old`` from memory, ``update`` (C, of old and x0, x1) back."""
    elem, n = pointer.type.pointee, pointer.type.numel
    site, ctype = em.site(op, what), c_type(elem)
    shape = pointer.type.shape
    uses = _Operands()
    at = uses.add(em, pointer, shape, "int64_t", many=True)
    values = [uses.add(em, v, shape, ctype) for v in operands]
    on = uses.add(em, mask, shape, "uint8_t")
    result = em.buffer(elem, n)
    em.weight += 8 * n * em.work
    size = BITS[elem] // 8

    def text() -> str:
        (pp, _), (mp, ms) = at(), on()
        xs = "".join(f"const {ctype} x{k} = ({v()[0]})[i * {v()[1]}]; " for k, v in enumerate(values))
        skip = f"if (!({mp})[i * {ms}]) {{ {result.name}[i] = 0; continue; }} " if mask is not None else ""
        return (f"{{ {uses.head}int64_t delta; int one; if ((status = sim_check(E, {site}, {size}, {pp}, {mp}, {ms}, {n}, &delta, &one))) "
                f"goto fail; EACH(i, {n}) {{ {skip}{ctype} *at = ({ctype} *)(one ? (char *)(intptr_t)(({pp})[i] + delta) : "
                f"sim_host(E, ({pp})[i], {size})); const {ctype} old = *at; {xs}*at = {update}; {result.name}[i] = old; }} }}")

    em.say(text, result, *uses.uses)
    return [em.spread(out, result, shape)] if out is not None else []


@_register("tt.atomic_rmw")
def _atomic_rmw(em, op, args, outs, scope):
    elem, kind = c_elem(_pointer(op, args[0])), op.words[0]
    if kind not in RMW_KINDS or elem == "i1":
        raise NoCode(f"atomic {kind} on {elem}")
    if kind == "fadd" or (kind == "add" and elem[0] != "i"):
        update = down(elem, f"({up(elem, 'old')} + {up(elem, 'x0')})")
    elif kind in _RMW and (elem[0] == "i" or kind in ("exch", "xchg")):
        update = f"({c_type(elem)})(" + _RMW[kind].format("old", "x0", U=f"uint{BITS[elem]}_t") + ")"
    else:
        raise NoCode(f"atomic {kind} on {elem}")
    return _atomic(em, op, args[0], args[1:2], args[2] if len(args) > 2 else None, outs[0] if outs else None, f"atomic {kind}", update)


@_register("tt.atomic_cas")
def _atomic_cas(em, op, args, outs, scope):
    c_elem(_pointer(op, args[0]))
    equal = "memcmp(&old, &x0, sizeof old) == 0 ? x1 : old"
    return _atomic(em, op, args[0], args[1:3], None, outs[0] if outs else None, "atomic cas", equal)


@_register("tt.assert")
def _assert(em, op, args, outs, scope):
    c, text_of = args[0], " ".join(op.words)
    site = em.site(op, "device assertion failed")
    em.sites[site] = replace(em.sites[site], what=f"device assertion failed: {text_of}")
    domain = em.domain(c)
    uses = _Operands()
    flag = uses.add(em, c, domain, "uint8_t", many=True)
    em.say(lambda: f"{{ {uses.head}if ((status = sim_assert(E, {site}, {flag()[0]}, {math.prod(domain)}))) goto fail; }}", *uses.uses)
    return []


# ---- trees -----------------------------------------------------------------------------------------------------------------------------
def _tree_operands(em: Emitter, args: list[Value], axis: int) -> tuple[list[Buffer], tuple[int, ...]]:
    """Operands laid out alike, the axis at full length; (buffers, lengths)."""
    domain = list(em.domain(*args))
    domain[axis] = args[0].type.shape[axis]
    found: list[Buffer] = []
    for v in args:
        buffer = em.flat(v, domain)
        if not isinstance(buffer, Buffer):
            buffer = em.flat(replace(v, type=Type(tuple(domain), v.type.elem, v.type.pointee), strides=(0,) * len(domain)))
        assert isinstance(buffer, Buffer)
        found.append(buffer)
    return found, tuple(domain)


def _pair(em: Emitter, op: Op, scope: dict[str, Value], left: list[str], right: list[str], to: list[str]) -> str:
    """One combination: declarations, then all results at once (they may overwrite what was read)."""
    lines, results = em.combine(op, scope, left, right)
    elems = [t.elem for _, t in op.regions[0][0].args[len(left):]]
    kept = [em.name("y") for _ in results]
    held = " ".join(f"const {c_type(e)} {k} = {r};" for e, k, r in zip(elems, kept, results))
    return f"{lines} {held} " + " ".join(f"{t} = {k};" for t, k in zip(to, kept))


@_register("tt.reduce")
def _reduce(em, op, args, outs, scope):
    axis = op.attrs["axis"]
    sources, domain = _tree_operands(em, args, axis)
    outer, n, inner = _around(domain, axis)
    rest = domain[:axis] + domain[axis + 1 :]
    results = [em.buffer(t.elem, outer * inner) for t in outs]
    temps = [em.buffer(v.type.elem, max(1, n // 2) * inner) for v in args]
    em.weight += 2 * outer * n * inner * em.work
    half = n // 2

    def text() -> str:
        s, t, r = ([b.name for b in some] for some in (sources, temps, results))
        if n == 1:
            return " ".join(f"memcpy({a}, {b}, sizeof(*{a}) * {outer * inner});" for a, b in zip(r, s))
        begin = _pair(em, op, scope, [f"{b}[base + q]" for b in s], [f"{b}[base + q + {half * inner}]" for b in s], [f"{b}[q]" for b in t])
        again = _pair(em, op, scope, [f"{b}[q]" for b in t], [f"{b}[q + h * {inner}]" for b in t], [f"{b}[q]" for b in t])
        return (f"EACH(o, {outer}) {{ const int64_t base = o * {n * inner};\n#pragma GCC ivdep\nEACH(q, {half * inner}) {{ {begin} }}\n"
                f"for (int64_t h = {half // 2}; h >= 1; h /= 2)\n#pragma GCC ivdep\nEACH(q, h * {inner}) {{ {again} }}\n"
                + " ".join(f"memcpy({a} + o * {inner}, {b}, sizeof(*{a}) * {inner});" for a, b in zip(r, t)) + " }")

    text()  # what has no C form is refused now
    em.say(text, *results, *temps, *sources)
    return [em.spread(t, b, rest) for t, b in zip(outs, results)]


@_register("tt.scan")
def _scan(em, op, args, outs, scope):
    axis, reverse = op.attrs["axis"], bool(op.attrs.get("reverse", False))
    sources, domain = _tree_operands(em, args, axis)
    outer, n, inner = _around(domain, axis)
    results = [em.buffer(t.elem, math.prod(domain)) for t in outs]
    em.weight += 4 * outer * n * inner * em.work

    def at(b: str, k: str) -> str:
        return f"{b}[(base + {f'({n - 1} - ({k}))' if reverse else f'({k})'}) * {inner} + i]"

    def text() -> str:
        s, r = [b.name for b in sources], [b.name for b in results]
        copies = " ".join(f"memcpy({a}, {b}, sizeof(*{a}) * {math.prod(domain)});" for a, b in zip(r, s))
        up_ = _pair(em, op, scope, [at(b, "k - d") for b in r], [at(b, "k") for b in r], [at(b, "k") for b in r])
        down_ = _pair(em, op, scope, [at(b, "k") for b in r], [at(b, "k + d") for b in r], [at(b, "k + d") for b in r])
        return (f"{copies} EACH(o, {outer}) {{ const int64_t base = o * {n};\n"
                f"for (int64_t d = 1; d < {n}; d *= 2) for (int64_t k = 2 * d - 1; k < {n}; k += 2 * d) EACH(i, {inner}) {{ {up_} }}\n"
                f"for (int64_t d = {n // 4}; d >= 1; d /= 2) for (int64_t k = 2 * d - 1; k + d < {n}; k += 2 * d) "
                f"EACH(i, {inner}) {{ {down_} }} }}")

    text()
    em.say(text, *results, *sources)
    return [Value(t, b, contiguous(domain)) for t, b in zip(outs, results)]


# ---- matrix product ------------------------------------------------------------------------------------------------------------------------
@_register("tt.dot")
def _dot(em, op, args, outs, scope):
    left, right, total = args
    elem, kind = left.type.elem, outs[0].elem
    depth = left.type.shape[-1]
    if kind[0] == "i":
        work = "f32" if elem == "i8" and depth << 14 <= 1 << 24 else "f64"
    else:
        work = "f64" if kind == "f64" else "f32"
    if elem == "f64" and work == "f32":
        raise NoCode("tt.dot of float64 into float32")
    tf32 = op.attrs.get("inputPrecision") == "tf32" and elem == "f32"

    def widen(v: Value) -> Buffer:
        if v.type.elem == work and not tf32:
            return em.flat(v)  # type: ignore[return-value]

        def build(x: Sequence[str]) -> str:
            value = x[0] if v.type.elem[0] == "i" else up(v.type.elem, x[0])
            return f"tf32({value})" if tf32 else f"({c_type(work)}){value}"

        return em.flat(em.elementwise(build, [v], Type(v.type.shape, work)))  # type: ignore[return-value]

    a, b = widen(left), widen(right)
    *batch, m, n = outs[0].shape
    y = em.buffer(work, outs[0].numel)
    item = 4 if work == "f32" else 8
    number = LOOPS.index(("matmul", "f" if work == "f32" else "d"))
    em.say(lambda: f"matmul(E, {number}, {item}, {a.name}, {b.name}, {y.name}, {math.prod(batch)}, {m}, {depth}, {n});", y, a, b)
    em.weight += 0.5 * outs[0].numel * depth * em.work
    product = Value(Type(outs[0].shape, work), y, contiguous(outs[0].shape))

    def add(x: Sequence[str]) -> str:
        if kind[0] == "i":
            return f"({c_type(kind)})(({c_type(kind)}){x[0]} + {x[1]})"
        return x[0] + " + " + x[1] if kind == work else down(kind, f"({x[0]} + {up(kind, x[1])})")

    return [em.elementwise(add, [product, total], outs[0])]


# ---- control flow --------------------------------------------------------------------------------------------------------------------------
def _block_args(op: Op, types: Sequence[Type]) -> list[tuple[str, Type]]:
    block = op.regions[0][0]
    return block.args or [(name, t) for (name, _), t in zip(op.pairs, types)]


def _one(blocks: list[Block]) -> Block:
    if len(blocks) != 1:
        raise NoCode("a region of several blocks")
    return blocks[0]


def _body(em: Emitter, block: Block, inner: dict[str, Value], then: Callable[[list[Value]], None], work: float = 1.0):
    """Statements of a region; then(values of its terminator) emits what follows them."""
    outer = em.work
    em.work *= work

    def run() -> None:
        end = em.block(block.ops, inner)
        em.close()
        then([em.lookup(n, inner) for n in end.operands] if end else [])

    made = em.inside(run)
    em.work = outer
    return made


def _tiles(variables: Sequence[Value]) -> list[Buffer]:
    return [v.source for v in variables if isinstance(v.source, Buffer)]


@_register("scf.for")
def _for(em, op, args, outs, scope):
    low, high, step = (em.scalar(v) for v in args[:3])
    em.close()
    names = _block_args(op, [args[0].type, *(v.type for v in args[3:])])
    elem, unsigned = args[0].type.elem, "unsigned" in op.words
    ctype = f"uint{BITS[elem]}_t" if unsigned else c_type(elem)
    variables = [em.carried(t) for _, t in names[1:]]
    em.assign(variables, args[3:])
    em.close()
    index = em.name("x")
    inner = dict(scope)
    inner[names[0][0]] = Value(args[0].type, index)
    inner.update(zip((n for n, _ in names[1:]), variables))
    try:
        trips = max(0.0, (_number(high) - _number(low)) / max(1, _number(step)))
    except ValueError:
        trips = float(GUESSED_TRIPS)
    body = _body(em, _one(op.regions[0]), inner, lambda values: em.assign(variables, values), trips)
    # the bound is compared before the step is added, which could pass the type's end
    head = (f"for ({ctype} {index}_ = ({ctype}){low}, go_{index} = 1, to_{index} = ({ctype}){high}, by_{index} = ({ctype}){step}; go_{index} && "
            f"{index}_ < to_{index}; go_{index} = by_{index} > 0 && (uint{BITS[elem]}_t)(to_{index} - {index}_) > (uint{BITS[elem]}_t)by_{index}, "
            f"{index}_ = ({ctype})({index}_ + by_{index})) {{ const {c_type(elem)} {index} = ({c_type(elem)}){index}_;")
    em.body.append(Nest([(head, body)], "}", True, _tiles(variables)))
    return variables


def _number(text: str) -> float:
    return float(text.strip("()"))


@_register("scf.while")
def _while(em, op, args, outs, scope):
    before, after = _one(op.regions[0]), _one(op.regions[1])
    if not before.ops or before.ops[-1].name != "scf.condition":
        raise NoCode("scf.while without scf.condition")
    names = before.args or [(name, v.type) for (name, _), v in zip(op.pairs, args)]
    em.close()
    variables = [em.carried(t) for _, t in names]
    passed = [em.carried(t) for t in outs]
    em.assign(variables, args)
    em.close()
    inner = dict(scope)
    inner.update(zip((n for n, _ in names), variables))

    def test(values: list[Value]) -> None:
        flag = em.scalar(values[0])
        em.assign(passed, values[1:])
        em.say(f"if (!({flag})) break;")

    head = _body(em, before, inner, test, GUESSED_TRIPS)
    inner = dict(scope)
    inner.update(zip((n for n, _ in after.args), passed))
    body = _body(em, after, inner, lambda values: em.assign(variables, values), GUESSED_TRIPS)
    em.body.append(Nest([("for (;;) {", head + body)], "}", True, _tiles([*variables, *passed])))
    return passed


@_register("scf.if")
def _if(em, op, args, outs, scope):
    flag = em.scalar(args[0])
    em.close()
    results = [em.carried(t) for t in outs]
    parts = []
    for head, region in zip((f"if ({flag}) {{", "} else {"), op.regions):
        parts.append((head, _body(em, _one(region), dict(scope), lambda values: em.assign(results, values))))
    em.body.append(Nest(parts, "}", False, _tiles(results)))
    return results


