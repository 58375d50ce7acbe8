"""Every operator with a formula, and cast, as Triton kernels: a loop over elements around the formula's device function.

Two loops.  flat: operands contiguous (or one element), 1-D.  tile: any strides, after merging axes: 2-D tiles over the
axis where the output is contiguous and, if an input is transposed, the axis where that one is; other axes by program.
The kernel's text is printed for each (formula, operand types, loop), as formula.py prints the device function.
"""
from __future__ import annotations

import linecache
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import triton
import triton.language as tl

from ... import _native
from ...hal.dtype import BY_NAME, DType
from ...hal.registry import at as device_at
from ...hal.tensor import Tensor
from ..ops import OPS, formula
from ..ops.record import Op
from . import convert, scalar
from .launch import F64, I64, Data, Step, by_signature, capped, lacks, launch, next_power_of_2, programs

__all__ = ["KERNELS", "WHEN", "device_function", "elementwise", "matrix", "move", "users"]

BLOCK = 1024  # elements a program holds: 8 a thread at 4 warps of 32, two 16-byte loads of float32
_UINT8 = BY_NAME["uint8"]


# ---- what is computed --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Loop:
    """A formula over element types: what a kernel's text depends on besides the way through memory.

    name: of the kernel.  operands, attrs: names of the inputs and of the number arguments.  convert: the
    Triton type attributes are converted to ("" leaves them).  load: per operand, the loaded value's text with {}.
    value: the stored value as text over operands and attributes.  function: the device function ``f`` in it.
    """

    name: str
    operands: tuple[str, ...]
    attrs: tuple[str, ...]
    convert: str
    loads: tuple[str, ...]
    value: str
    function: Any


_loops: dict[tuple[int, int], Loop] = {}


def _loop(body: formula.Body, dtype: DType) -> Loop:
    """A formula over one case dtype, kept: bodies live as long as their formula, so their id will do."""
    key = id(body), dtype.code
    found = _loops.get(key)
    if found is None:
        found = _loops.setdefault(key, _read_loop(body, dtype))
    return found


def _read_loop(body: formula.Body, dtype: DType) -> Loop:
    """A formula over one case dtype: float16 and bfloat16 compute in float32, bool in int32, integers in themselves."""
    truth = dtype.kind == "b"
    compute = "int32" if truth else "float64" if dtype.itemsize == 8 and dtype.is_floating else "float32" if dtype.is_floating else dtype.name
    loads = tuple("({} != 0)" if t in body.booleans else f"{{}}.to(tl.{compute})" for t in body.tensors)
    # numbered names: a formula may call an operand whatever it likes, block or n among it
    operands, attrs = tuple(f"x{k}" for k in range(len(body.tensors))), tuple(f"a{k}" for k in range(len(body.attrs)))
    value = f"f({', '.join((*operands, *attrs))})"
    if truth:
        value = f"({value} != 0).to(tl.int8)"
    elif body.boolean:
        value += ".to(tl.int8)"
    else:
        value += f".to(tl.{dtype.name})"
    return Loop(body.name, operands, attrs, "" if dtype.is_floating else compute, loads, value, device_function(body, truth))


@cache
def _moved(source: DType, target: DType) -> Loop:
    """Elements as they are, or cast from one dtype to another."""
    if source is target:
        return Loop("copy", ("x0",), (), "", ("{}",), "x0", None)
    return Loop(f"cast_{source.short}_{target.short}", ("x0",), (), "", ("{}",), convert.conversion(source, target, "x0"), None)


# ---- ways through memory -----------------------------------------------------------------------------------------------
@cache
def _flat(loop: Loop, single: tuple[bool, ...]) -> Any:
    """A kernel over contiguous operands; ``single`` says which of them are one element."""
    lines = ["for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):",
             "    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK) if BIG else block * BLOCK + tl.arange(0, BLOCK)",
             "    live = at < n"]
    for name, load, one in zip(loop.operands, loop.loads, single):
        if one:
            value = load.format(f"tl.load({name}_ptr)")
            lines.append(f"    {name} = tl.broadcast_to({value}, (BLOCK,))")
        else:
            lines.append(f"    {name} = {load.format(f'tl.load({name}_ptr + at, mask=live)')}")
    lines.append(f"    tl.store(out_ptr + at, {loop.value}, mask=live)")
    return _kernel(loop, f"{loop.name}__flat{''.join('1' if s else 'n' for s in single) if any(single) else ''}",
                   ["n", "BIG: tl.constexpr", "BLOCK: tl.constexpr"], lines)


@cache
def _tile(loop: Loop, batch: int) -> Any:
    """A kernel over strided operands: tiles of BLOCK_R x BLOCK_C, the other ``batch`` axes one index a program."""
    names = (*loop.operands, "out")
    sizes = [f"size_{k}" for k in range(batch)]
    steps = [f"{name}_{axis}" for name in names for axis in ("r", "c", *(str(k) for k in range(batch)))]
    lines = ["for block in range(tl.program_id(0), blocks, tl.num_programs(0)):",
             "    tiles_c = tl.cdiv(columns, BLOCK_C)",
             "    tiles_r = tl.cdiv(rows, BLOCK_R)",
             "    first_c = (block % tiles_c) * BLOCK_C",
             "    rest = block // tiles_c",
             "    first_r = (rest % tiles_r) * BLOCK_R",
             "    rest = rest // tiles_r"]
    for k in reversed(range(batch)):
        lines += [f"    i_{k} = (rest % size_{k}).to(tl.int64)", f"    rest = rest // size_{k}"]
    lines += ["    r = tl.arange(0, BLOCK_R)[:, None]",
              "    c = tl.arange(0, BLOCK_C)[None, :]",
              "    live = (r < rows - first_r) & (c < columns - first_c)"]

    def pointer(name: str) -> str:
        origin = [f"first_r.to(tl.int64) * {name}_r", f"first_c.to(tl.int64) * {name}_c", *(f"i_{k} * {name}_{k}" for k in range(batch))]
        return f"{name}_ptr + ({' + '.join(origin)}) + r * {name}_r + c * {name}_c"

    for name, load in zip(loop.operands, loop.loads):
        lines.append(f"    {name} = {load.format(f'tl.load({pointer(name)}, mask=live)')}")
    lines.append(f"    tl.store({pointer('out')}, {loop.value}, mask=live)")
    return _kernel(loop, f"{loop.name}__tile{batch + 2}", ["blocks", "rows", "columns", *sizes, *steps, "BLOCK_R: tl.constexpr",
                                                           "BLOCK_C: tl.constexpr"], lines)


def _printed(text: str, name: str, world: dict[str, Any]) -> Any:
    """A jitted function from text that this file or formula.py printed."""
    # triton.jit reads the source through inspect: linecache is where inspect looks for files that do not exist
    file = f"<haian {name} {zlib.crc32(text.encode()):08x}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    found = {"tl": tl, "__name__": f"{__name__}.{name}", **world}
    exec(compile(text, file, "exec"), found)
    return triton.jit(found[name])


def device_function(body: formula.Body, truth: bool = False) -> Any:
    """A formula as a device function; how to call it: ``Body.triton_source``."""
    return _device_function(body.triton_source(truth), f"{body.name}_formula")


@cache
def _device_function(text: str, name: str) -> Any:
    return _printed(text, name, {"m": scalar})


def _kernel(loop: Loop, name: str, parameters: list[str], lines: list[str]) -> Any:
    first = [f"{a} = {a}.to(tl.{loop.convert})" for a in loop.attrs if loop.convert]
    heads = [f"{n}_ptr" for n in (*loop.operands, "out")]
    text = f"def {name}({', '.join([*heads, *loop.attrs, *parameters])}):\n" + "".join(f"    {line}\n" for line in (*first, *lines))
    return _printed(text, name, {"f": loop.function, "convert": convert})


@dataclass(frozen=True)
class Way:
    """How operands (the output last) are walked: ``flat`` with its single ones, or tiles with sizes and steps."""

    single: tuple[bool, ...] | None
    n: int
    rows: int = 1
    columns: int = 1
    sizes: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()  # r, c, batch axes of each operand in turn
    block: tuple[int, int] = (1, 1)

    @property
    def blocks(self) -> int:
        n = programs(self.rows, self.block[0]) * programs(self.columns, self.block[1])
        for s in self.sizes:
            n *= s
        return n


def merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Axes that all operands walk alike become one; axes of size 1 go.  Sorted by the last operand's strides, widest first.

    Args:
        shape: common shape.  strides: one sequence an operand, 0 where it is broadcast.

    Returns:
        (sizes, strides by axis: one list of operands' strides an axis).
    """
    axes = sorted(((n, [s[k] for s in strides]) for k, n in enumerate(shape) if n != 1), key=lambda a: -abs(a[1][-1]))
    sizes: list[int] = []
    steps: list[list[int]] = []
    for n, step in axes:
        if sizes and all(outer == inner * n for outer, inner in zip(steps[-1], step)):
            sizes[-1] *= n
            steps[-1] = step
        else:
            sizes.append(n)
            steps.append(step)
    return sizes, steps


@lru_cache(maxsize=4096)
def way(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...], item: int) -> Way:
    """The way through operands of these strides (output last), ``item`` bytes an element of the widest."""
    sizes, steps = merged(shape, strides)
    n = 1
    for s in sizes:
        n *= s
    if len(sizes) <= 1 and all(s in (0, 1) for s in (steps[0] if steps else ())) and (not steps or steps[0][-1] == 1):
        return Way(tuple(s == 0 for s in steps[0][:-1]) if steps else (False,) * (len(strides) - 1), n)
    column = len(sizes) - 1  # the output's narrowest step
    others = [k for k in range(len(sizes)) if k != column]
    turned = [k for k in others if any(s == 1 for s in steps[k][:-1])]
    row = max(turned or others, key=lambda k: sizes[k], default=None)
    rows = 1 if row is None else sizes[row]
    columns = sizes[column]
    if turned:
        # both sides coalesced: a tile of 64 bytes and more each way goes through shared memory
        side = 64 if item <= 2 else 32
        across = min(next_power_of_2(columns), side if rows >= side else BLOCK // next_power_of_2(rows))
    else:
        across = min(next_power_of_2(columns), BLOCK)
    down = min(next_power_of_2(rows), max((4096 if turned and item <= 2 else BLOCK) // across, 1))
    batch = [k for k in others if k != row]
    steps_of = [step for operand in range(len(strides))
                for step in ((steps[row][operand] if row is not None else 0), steps[column][operand], *(steps[k][operand] for k in batch))]
    return Way(None, n, rows, columns, tuple(sizes[k] for k in batch), tuple(steps_of), (down, across))


def _broadcast(t: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor seen in a broadcast shape."""
    own, steps = t.shape, t.strides
    if own == shape:
        return steps
    return (0,) * (len(shape) - len(own)) + tuple(0 if n == 1 else s for n, s in zip(own, steps))


def _step(step: int, block: int) -> int:
    """A stride as a kernel argument: 64 bits where a tile of it would pass 2**31."""
    return Step(step) if abs(step) * block < 2**31 else I64(step)


@lru_cache(maxsize=4096)
def _prepared(loop: Loop, place: int, shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...], item: int) -> tuple[Any, tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """(kernel, grid, integer arguments, constants) of a loop over operands of these strides on a device."""
    found = way(shape, strides, item)
    device = device_at(place)
    if found.single is not None:
        return _flat(loop, found.single), (capped(device, programs(found.n, BLOCK)),), (found.n,), {"BIG": found.n + BLOCK > 2**31, "BLOCK": BLOCK}
    down, across = found.block
    blocks = (down, across, *(1 for _ in found.sizes))
    steps = [_step(s, b) for s, b in zip(found.steps, blocks * len(strides))]
    return (_tile(loop, len(found.sizes)), (capped(device, found.blocks),), (found.blocks, found.rows, found.columns, *found.sizes, *steps),
            {"BLOCK_R": down, "BLOCK_C": across})


def _run(loop: Loop, tensors: Sequence[Tensor], numbers: Sequence[float | int], out: Tensor) -> None:
    if out.numel == 0:
        return
    shape = out.shape
    strides = (*[t.strides if t.shape == shape else _broadcast(t, shape) for t in tensors], out.strides)
    item = max([out.itemsize, *[t.itemsize for t in tensors]])
    kernel, grid, sizes, constants = _prepared(loop, out.device_index, shape, strides, item)
    launch(kernel, grid, *tensors, out, *numbers, *sizes, **constants)


# ---- running -----------------------------------------------------------------------------------------------------------
def _number(value: float, dtype: DType) -> float | int:
    """An attribute as the kernel argument of a case dtype."""
    if dtype.kind == "b":
        return Data(value != 0)
    if dtype.is_integer:
        return Data(value)
    if dtype.itemsize == 8:
        return F64(value)
    with np.errstate(over="ignore"):
        return float(np.float32(value))


class Runner:
    """A formula as ``run(*tensors, **attrs, out)``, over tensors that broadcast to ``out``'s shape.

    The case dtype is that of the first tensor that is not boolean by declaration.
    """

    def __init__(self, fn: Callable) -> None:
        self.formula = formula.read(fn)
        variants = self.formula.variants()
        self.body = self.formula.body(**variants[0]) if len(variants) == 1 else None
        names = self.formula.tensors
        self.carrier = next((k for k, name in enumerate(names) if name not in self.formula.booleans), -1)

    def __call__(self, *tensors: Tensor, out: Tensor, **attrs: Any) -> None:
        body = self.body or self.formula.body(**attrs)
        dtype = tensors[self.carrier].dtype if self.carrier >= 0 else out.dtype
        _run(_loop(body, dtype), tensors, [_number(attrs[a], dtype) for a, _ in body.attrs], out)


def elementwise(fn: Callable, *tensors: Tensor, out: Tensor, **attrs: Any) -> None:
    """Run a formula (a function in the scalar language) once; see Runner."""
    _runner_of("", fn)(*tensors, out=out, **attrs)


def _bytes_view(t: Tensor) -> Tensor:
    """A float8 tensor as its bytes."""
    if not t.dtype.name.startswith("float8"):
        return t
    owner = t.owner
    return _native.wrap(t.address, _UINT8.code, t.shape, t.strides, t.device_index, t if owner is None else owner)


def move(x: Tensor, *, out: Tensor) -> None:
    """x into ``out`` of the same shape, any strides to any strides, cast where the dtypes differ."""
    _run(_moved(x.dtype, out.dtype), (_bytes_view(x),), (), _bytes_view(out))


def cast(x: Tensor, *, dtype: DType, out: Tensor) -> None:
    move(x, out=out)


class _Formulas(Mapping):
    """Operator name -> run, for every record with a formula, users' own among them."""

    def __getitem__(self, name: str) -> Callable[..., None]:
        record = OPS[name]
        if record.formula is None:
            raise KeyError(name)
        return _runner(record)

    def __iter__(self) -> Iterator[str]:
        return (o.name for o in OPS.values() if o.formula is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@cache
def _runner_of(name: str, fn: Callable) -> Callable[..., None]:
    return cast if name == "cast" else Runner(fn)


def _runner(record: Op) -> Callable[..., None]:
    return _runner_of(record.name, record.formula)


@cache
def _wide_inside(fn: Callable) -> frozenset[str]:
    """64-bit types that a floating formula computes in whatever its dtype: scalar.py's pow in float64, its fmod in int64."""
    f = formula.read(fn)
    bodies = [f.body(**{**f.attrs, **v}) for v in f.variants()]
    inside = (("float64", ("pow",)), ("int64", ("fmod", "remainder", "floor_divide")))
    return frozenset(wide for wide, functions in inside if any(b.uses(*functions) for b in bodies))


@cache
def _when(fn: Callable) -> Callable[..., str]:
    @by_signature
    def when(specs: Sequence[Any], attrs: dict[str, Any], facts: Any) -> str:
        used = {s.dtype.name for s in specs if s is not None} | ({attrs["dtype"].name} if attrs.get("dtype") else set())
        if attrs.get("dtype") and facts.dtypes_load and attrs["dtype"].name not in facts.dtypes_load:
            return f"the device does not store {attrs['dtype']}"
        wide = used & {"float64", "int64", "uint64"}
        if any(s is not None and s.dtype.is_floating for s in specs):
            wide |= _wide_inside(fn)
        return lacks(facts, *sorted(wide)) or ("64-bit integers are no vector type of the device" if wide - {"float64"} and not facts.int64_math
                                               else "")
    return when


class _Whens(Mapping):
    def __getitem__(self, name: str) -> Callable[..., str]:
        return _when(OPS[name].formula) if name in KERNELS else {}[name]

    def __iter__(self) -> Iterator[str]:
        return iter(KERNELS)

    def __len__(self) -> int:
        return len(KERNELS)


def users(fn: Callable) -> tuple[Callable[..., None], Callable[..., str]]:
    """A user's formula: how it runs, and what says why it does not take a signature."""
    return _runner_of("", fn), _when(fn)


KERNELS: Mapping[str, Callable[..., None]] = _Formulas()
WHEN: Mapping[str, Callable[..., str]] = _Whens()


def matrix() -> Iterator[tuple[str, Any, tuple, dict[str, Any], int]]:
    """Typical signatures: (name, kernel, signature, constants, num_warps); see tests/matrix.py."""
    def pointer(dtype: DType) -> tuple[str, bool]:
        return "*" + ("i8" if dtype.kind == "b" else "u8" if dtype.name.startswith("float8") else dtype.triton), True

    f32, bf16, f64, i32 = (BY_NAME[n] for n in ("float32", "bfloat16", "float64", "int32"))
    for name, dtype in (("add", f32), ("add", bf16), ("add", i32), ("exp", f32), ("exp", f64), ("gelu", bf16), ("tanh", f32), ("log", f32),
                        ("div", f32), ("sin", f32), ("erf", f32), ("pow", f32), ("where", f32), ("silu_backward", bf16)):
        record = OPS[name]
        body = formula.read(record.formula).body(**record.attributes({}))
        tensors = [BY_NAME["bool"] if t in body.booleans else dtype for t in body.tensors]
        result = BY_NAME["bool"] if body.boolean else dtype
        number = "fp64" if dtype is f64 else "fp32" if dtype.is_floating else "i32"
        heads = (*map(pointer, (*tensors, result)), *((number, False) for _ in body.attrs))
        loop = _loop(body, dtype)
        yield f"{name} {dtype} flat", _flat(loop, (False,) * len(tensors)), (*heads, ("i32", True)), {"BIG": False, "BLOCK": BLOCK}, 4
        if name == "add":
            ones = (("i32", True), ("=1", False))
            steps = ones + (("=0", False), ("=1", False)) + ones
            yield f"{name} {dtype} row broadcast", _tile(loop, 0), (*heads, ("i32", False), ("i32", True), ("i32", True), *steps), \
                {"BLOCK_R": 1, "BLOCK_C": BLOCK}, 4
    for dtype, side in ((f32, 32), (bf16, 64)):
        steps = (("=1", False), ("i32", True), ("i32", True), ("=1", False))
        yield f"copy {dtype} transposed", _tile(_moved(dtype, dtype), 0), (pointer(dtype), pointer(dtype), ("i32", False), ("i32", True), ("i32", True), *steps), \
            {"BLOCK_R": side, "BLOCK_C": side}, 4
    for a, b in ((f32, BY_NAME["bfloat16"]), (f32, BY_NAME["float8_e4m3fn"]), (BY_NAME["float8_e5m2"], f32), (f64, bf16), (f32, BY_NAME["int8"])):
        yield f"cast {a} to {b}", _flat(_moved(a, b), (False,)), (pointer(a), pointer(b), ("i32", True)), {"BIG": False, "BLOCK": BLOCK}, 4
