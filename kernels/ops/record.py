"""What an operator is: one record (Op), and OPS, the table of all of them.

Everything else derives from it: the Python function, dispatch, conformance cases, benchmarks, docs, framework
registrations.  Not here: how anything is computed on a device (kernels/triton, kernels/cpu).
"""
from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...hal.dtype import BY_NAME, DType, dtype
from .budget import Budget

__all__ = ["ANY", "Bad", "Cost", "FLOATS", "INTEGERS", "In", "NUMBERS", "OPS", "Op", "Param", "Sample", "Spec", "op"]


def _names(*names: str) -> tuple[DType, ...]:
    return tuple(BY_NAME[n] for n in names)


FLOATS = _names("float32", "float16", "bfloat16", "float64")
SIGNED = _names("int8", "int16", "int32", "int64")
INTEGERS = SIGNED + _names("uint8")
NUMBERS = FLOATS + INTEGERS
BOOL = _names("bool")
ANY = NUMBERS + BOOL


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor, without data: what ``infer`` sees and returns."""

    shape: tuple[int, ...]
    dtype: DType

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        n = 1
        for s in self.shape:
            n *= s
        return n


@dataclass(frozen=True)
class Param:
    """One parameter of a schema.  kind: tensor, tensors (a list), int, float, bool, ints, dtype, choice."""

    name: str
    kind: str
    optional: bool = False  # may be None
    default: Any = inspect.Parameter.empty
    keyword_only: bool = False
    choices: tuple[str, ...] = ()

    @property
    def is_tensor(self) -> bool:
        return self.kind in ("tensor", "tensors")


@dataclass(frozen=True)
class In:
    """How a sample makes one tensor.

    draw: ``normal``, ``uniform`` (-1, 1), ``positive`` (0.1, 4), ``unit`` (0, 1), ``wide`` (the operator's whole domain
    with special values), ``int`` (-9, 9), ``index`` (0 <= i < high), ``mask`` (bool), ``float_mask`` (0 and -inf),
    ``prob`` (rows that sum to 1), ``logp`` (log of such rows), ``distinct`` (a permutation: no ties).
    dtype: None means the dtype of the case; ``acc`` its accumulator (float32 for float16 and bfloat16, else the dtype).
    high: bound of index draws.  values: these elements in row-major order instead of a draw.  layout: "" row-major,
    ``transposed`` (the last two axes swapped in memory).
    """

    shape: tuple[int, ...]
    draw: str = "normal"
    dtype: str | None = None
    high: int = 0
    values: tuple[float, ...] | None = None
    layout: str = ""


@dataclass(frozen=True)
class Sample:
    """One set of arguments.  inputs stand in schema order (None: optional, not given; a tuple: a list of tensors).

    Operators without tensors (arange, full, rand) get the dtype of the case as attribute ``dtype``, unless attrs has it.
    model: where the shape comes from ("bert_base ffn"), "" for ugly shapes.  level: the first conformance level that
    runs it (core, inference, training, llm, full); bench: the bench suites that time it.
    cover: how much of the suite a core sample gets: "" its share of dtypes, layouts and special values; "once" one value
    case in the preferred dtype, on one and on three threads (large samples just past a size where a kernel of the
    host or of Triton goes another way); "each" a value case in every dtype besides.
    """

    name: str
    inputs: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    level: str = "core"
    bench: tuple[str, ...] = ()
    cover: str = ""


@dataclass(frozen=True)
class Bad:
    """Arguments that must be refused: error is the class, words must all stand in its one-line message."""

    name: str
    inputs: tuple[Any, ...]
    error: type[Exception]
    words: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"


@dataclass(frozen=True)
class Cost:
    """Least work of one call: arithmetic operations, and bytes with each input read and each output written once."""

    flops: int
    bytes: int


_PARAM = re.compile(r"^(Tensor\[\]|Tensor\?|Tensor|int\[\]\?|int\[\]|int\?|int|float\?|float|bool|dtype\?|dtype|\{[\w|]+\})\s+(\w+)(?:=(.+))?$")


def parse_schema(schema: str) -> tuple[str, tuple[Param, ...], tuple[str, ...]]:
    """``"softmax(Tensor x, int dim=-1) -> Tensor"`` -> name, parameters, result names ("" when unnamed)."""
    m = re.match(r"^(\w+)\((.*)\) -> (.+)$", schema)
    if not m:
        raise ValueError(f"schema {schema!r}: expected 'name(params) -> results'")
    params: list[Param] = []
    keyword_only = False
    depth, start, parts = 0, 0, []
    for i, ch in enumerate(m[2]):
        depth += ch in "[{(" and 1 or ch in "]})" and -1 or 0
        if ch == "," and depth == 0:
            parts.append(m[2][start:i])
            start = i + 1
    parts.append(m[2][start:])
    for part in (p.strip() for p in parts):
        if not part:
            continue
        if part == "*":
            keyword_only = True
            continue
        p = _PARAM.match(part)
        if not p:
            raise ValueError(f"schema {schema!r}: cannot read parameter {part!r}")
        kind, name, default = p[1], p[2], p[3]
        optional, choices = kind.endswith("?"), ()
        kind = kind.rstrip("?")
        if kind.startswith("{"):
            choices, kind = tuple(kind[1:-1].split("|")), "choice"
        value = inspect.Parameter.empty if default is None else _literal(kind, default)
        if optional and default is None:
            value = None
        params.append(Param(name, {"Tensor": "tensor", "Tensor[]": "tensors", "int[]": "ints"}.get(kind, kind), optional,
                            value, keyword_only, choices))
    results = m[3].strip()
    results = results[1:-1] if results.startswith("(") else results
    if results == "Tensor[]":
        return m[1], tuple(params), ("*",)
    names = tuple((r.split() + [""])[1] if r.split()[0] == "Tensor" else _bad_result(schema) for r in results.split(","))
    return m[1], tuple(params), names


def _bad_result(schema: str) -> str:
    raise ValueError(f"schema {schema!r}: results are 'Tensor', '(Tensor a, Tensor b)' or, of a view, 'Tensor[]'")


def _literal(kind: str, text: str) -> Any:
    text = text.strip()
    if text == "None":
        return None
    if kind == "bool":
        return {"true": True, "false": False}[text]
    if kind == "choice":
        return text.strip("'\"")
    if kind == "dtype":
        return dtype(text)
    if kind == "int[]":
        return tuple(int(t) for t in text.strip("[]").split(",") if t.strip())
    return int(text) if kind == "int" else float(text)


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator of the standard.

    Attributes:
        schema: ``name(Tensor x, Tensor? w, int dim=-1, *, float eps=1e-5) -> Tensor``; see ``parse_schema``.
        family: the file it stands in: pointwise, reduce, softmax, ...
        doc: one sentence, then shapes and errors; becomes the docstring.
        dtypes: accepted dtypes of the case dtype, the preferred one first.
        infer: ``infer(*Spec | None, **attrs) -> Spec | tuple[Spec, ...]``; raises ShapeError or DTypeError.
        rule: name of the native shape rule that equals ``infer`` (``broadcast``, ``same``: the first tensor's shape, ``reduce``);
            "" runs infer.  Result dtypes always come from infer, once a signature.
        reference: NumPy on float64 arrays (integers and bools as they are), independent of ``formula``.
        budget: when a result is right (budget.py, DESIGN section 7).
        samples: arguments to try; real models' shapes named.
        bad: arguments to refuse.
        cost: ``cost(item_bytes, *Spec | None, **attrs) -> Cost``.
        grad: ``grad(o, dy, inputs, outputs, attrs) -> tuple`` of gradients, one an input (None: not differentiable),
            written with the operators of ``o``; None: the operator has no gradient.
        names: {"aten": ("add.Tensor", ...), "onnx": ("Add",), ...}
        formula: the pointwise formula (formula.py) C and Triton read; None for other families.
        compose: ``compose(o, *tensors, out, **attrs)`` writes the result into ``out`` (a tuple for several) with the operators of ``o``,
            on any device; with it there is no kernel of its own.  composite: why not.
        dynamic: ``dynamic(o, *tensors, **attrs)`` returns the results, whose shape depends on the data: no out=; ``infer`` then gives the
            largest shape there can be.  Stands in the place of ``compose``.
        view: ``view(*Geometry, **attrs) -> Geometry | tuple[Geometry | (input number, Geometry), ...]`` (hal/geometry.py; several: the
            result is a list): the result shares memory with an input: no out=, no kernel.
        by_strides: the view depends on how the input lies in memory.
        slot: the host kernel's name where it is not the operator's: a user's pointwise operator (kernels/user.py).
        random: takes its values from the Philox stream of (seed, offset).
    """

    schema: str
    family: str
    doc: str
    dtypes: tuple[DType, ...]
    infer: Callable[..., Any]
    reference: Callable[..., Any]
    budget: Budget
    samples: Sequence[Sample]
    bad: Sequence[Bad] = ()
    cost: Callable[..., Cost] | None = None
    grad: Callable[..., tuple] | None = None
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rule: str = ""
    formula: Callable[..., Any] | None = None
    golden: tuple = ()
    composite: str = ""
    compose: Callable[..., None] | None = None
    dynamic: Callable[..., Any] | None = None
    view: Callable[..., Any] | None = None
    by_strides: bool = False
    slot: str = ""
    random: bool = False
    since: int = 1  # version of the operator standard that introduced this meaning
    name: str = field(init=False)
    params: tuple[Param, ...] = field(init=False)
    results: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        name, params, results = parse_schema(self.schema)
        for key, value in (("name", name), ("params", params), ("results", results)):
            object.__setattr__(self, key, value)
        if (self.compose is None and self.dynamic is None) == bool(self.composite):
            raise ValueError(f"{name}: a composite says both what it is made of (compose, dynamic) and why (composite)")

    @property
    def views(self) -> bool:
        return self.view is not None

    @property
    def takes_out(self) -> bool:
        """Whether results of known shape can be written into tensors of the caller's."""
        return self.view is None and self.dynamic is None

    @property
    def lists(self) -> bool:
        """Whether the result is a list of tensors, as many as the arguments say."""
        return self.results == ("*",)

    @property
    def tensors(self) -> tuple[Param, ...]:
        return tuple(p for p in self.params if p.is_tensor)

    @property
    def attrs(self) -> tuple[Param, ...]:
        return tuple(p for p in self.params if not p.is_tensor)

    def attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        """All attributes with defaults filled in."""
        return {p.name: given.get(p.name, p.default) for p in self.attrs}


class _Ops(dict[str, Op]):
    """All operators by name; iterates in order of definition."""

    def add(self, record: Op) -> Op:
        if record.name in self:
            raise ValueError(f"{record.name}: already defined")
        self[record.name] = record
        return record

    def families(self) -> Iterator[str]:
        return iter(dict.fromkeys(o.family for o in self.values()))


OPS = _Ops()


def op(schema: str, **fields: Any) -> Op:
    """Define an operator and add it to OPS."""
    return OPS.add(Op(schema=schema, **fields))
