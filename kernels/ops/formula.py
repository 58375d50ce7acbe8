"""The scalar language: a pointwise operator is one Python function of scalars, read in three ways.

``Body.c_lines`` makes C of it (kernels/cpu/generate.py), ``Body.triton_source`` a Triton device function, ``Body.evaluate``
float64 values with the largest intermediate magnitude.  Not here: which operators there are (pointwise.py) and loops.

Positional parameters are tensors (annotated ``bool`` where they are boolean whatever the case's dtype), keyword-only ones
are attributes: numbers, ``Literal["none", "tanh"]`` choices, or numbers that may be None.  Choices and None-ness are
resolved while reading, so each combination becomes a function of its own.

    def clamp(x, *, min=None, max=None):
        low = x if min is None else m.maximum(x, min)
        return low if max is None else m.minimum(low, max)

Allowed: numbers, module-level number constants, + - * /, unary minus, & | ^ ~, one comparison at a time, locals assigned
once, ``if`` on a choice or on None, calls of m.<name> and of other such functions, a final return.
"""
from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...hal.errors import ArgumentError

__all__ = ["Body", "Formula", "FormulaError", "m", "magnitude", "read"]


class FormulaError(ArgumentError):
    """A construct that is not in the scalar language; names file, line and construct."""


# name -> (number of arguments, what it is in float64 NumPy)
def _erf(x):
    from scipy.special import erf

    return erf(x)


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


def _erfinv(x):
    from scipy.special import erfinv

    return erfinv(x)


def _whole(fn: Callable) -> Callable:
    """A rounding to integers, which leaves integers as they are."""
    return lambda x: fn(x) if np.asarray(x).dtype.kind == "f" else x


VOCABULARY: dict[str, tuple[int, Callable]] = {
    "exp": (1, np.exp), "log": (1, np.log), "sqrt": (1, np.sqrt), "rsqrt": (1, lambda x: 1 / np.sqrt(x)),
    "sin": (1, np.sin), "cos": (1, np.cos), "tanh": (1, np.tanh), "sigmoid": (1, _sigmoid), "erf": (1, _erf),
    "abs": (1, np.abs), "maximum": (2, np.maximum), "minimum": (2, np.minimum), "pow": (2, np.power),
    "where": (3, np.where), "expm1": (1, np.expm1), "log1p": (1, np.log1p), "exp2": (1, np.exp2), "log2": (1, np.log2),
    "log10": (1, np.log10), "tan": (1, np.tan), "asin": (1, np.arcsin), "acos": (1, np.arccos), "atan": (1, np.arctan),
    "erfinv": (1, _erfinv), "floor": (1, _whole(np.floor)), "ceil": (1, _whole(np.ceil)), "trunc": (1, _whole(np.trunc)),
    "round": (1, _whole(np.rint)),
    "fmod": (2, np.fmod), "remainder": (2, np.remainder), "floor_divide": (2, np.floor_divide), "copysign": (2, np.copysign),
    "signbit": (1, lambda x: np.signbit(x) if np.asarray(x).dtype.kind == "f" else x < 0),
}
_CONDITIONS = {"signbit"}  # of the vocabulary: the result is a condition
_OF_INTEGERS = {"add", "sub", "mul", "not", "max", "min", "neg", "abs", "pow", "floor", "ceil", "trunc", "round", "fmod", "remainder",
                "floor_divide", "signbit"}


class _Vocabulary:
    """``m``: the functions a formula may call, callable on NumPy values too."""

    def __getattr__(self, name: str) -> Callable:
        if name in VOCABULARY:
            return VOCABULARY[name][1]
        raise AttributeError(f"m.{name} is not in the scalar language; it has {', '.join('m.' + n for n in VOCABULARY)}")


m = _Vocabulary()

_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_BITS = {ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^"}
_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_NUMPY = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "&": np.bitwise_and, "|": np.bitwise_or,
          "^": np.bitwise_xor, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal,
          "!=": np.not_equal}
COMPARISONS = frozenset(_COMPARE.values())
_RESERVED = {"in", "out", "n", "i", "attr", "m", "tl", "far", "result", "lo", "hi"}  # names the generated loops use


# ---- the resolved form: a list of assignments and a result ----------------------------------------------------------
@dataclass(frozen=True)
class Node:
    """One expression.  op: ``const name`` or an operator sign, ``neg``, ``~``, or a vocabulary name."""

    op: str
    args: tuple[Node, ...] = ()
    value: Any = None  # of const: the number; of name: the name
    boolean: bool = False


@dataclass(frozen=True)
class Body:
    """A formula with its choices made: what C, Triton and the evaluator read.

    Attributes:
        name: the operator's name, with its choices (``gelu_tanh``).
        tensors, booleans: all tensor parameters; those that are boolean whatever the dtype.
        attrs: number attributes that remain, each with its position in the schema.
        steps: (local name, expression) in order; result: the value.
    """

    name: str
    tensors: tuple[str, ...]
    booleans: frozenset[str]
    attrs: tuple[tuple[str, int], ...]
    steps: tuple[tuple[str, Node], ...]
    result: Node
    source: str = field(default="", compare=False)

    @property
    def boolean(self) -> bool:
        """Whether the result is boolean whatever the dtype."""
        return self.result.boolean

    def nodes(self):
        """Every expression node, operands before their users."""
        def walk(node):
            for a in node.args:
                yield from walk(a)
            yield node

        for _, node in self.steps:
            yield from walk(node)
        yield from walk(self.result)

    @property
    def operations(self) -> int:
        """Arithmetic operations per element, a function call counting as one."""
        return max(sum(n.op not in ("const", "name") for n in self.nodes()), 1)

    def uses(self, *names: str) -> bool:
        return any(n.op in names for n in self.nodes())

    # ---- (a) C ---------------------------------------------------------------------------------------------------
    def c_lines(self, kind: str, spell: Callable[[str], str] | None = None) -> tuple[list[str], str]:
        """The body as C for one element: declarations of the locals, and the expression of the result.

        kind: ``f32 f64 i8 i16 i32 i64 u8`` (the compute type), or ``b8`` (bool held as int32, 0 or 1).
        spell: replaces the C name of a vocabulary function (``sin`` for tiles with huge arguments).
        """
        c_type = {"f32": "float", "f64": "double", "b8": "int32_t", "u8": "uint8_t"}.get(kind, f"int{kind[1:]}_t")
        show = functools.partial(_c, kind=kind, spell=spell or (lambda name: ""))
        return [f"const {'bool' if e.boolean else c_type} {name} = {show(e)};" for name, e in self.steps], show(self.result)

    def c_expression(self, node: Node, kind: str) -> str:
        """One of ``nodes()`` as a C expression over the parameters and locals of ``c_lines``."""
        return _c(node, kind, lambda name: "")

    # ---- (b) Triton ----------------------------------------------------------------------------------------------
    def triton_source(self, truth: bool = False) -> str:
        """The body as the source of a Triton device function over ``m``, kernels/triton/scalar.py; named ``<name>_formula``.

        It takes the tensors (float16 and bfloat16 already float32, boolean parameters as int1) and then the number
        attributes in schema order, all positional, already in the compute dtype (integers as integers).  Choices and
        attributes that are None are not parameters.  The result may be of a wider integer type, or int1 where
        ``boolean``: cast it.  truth: the case's dtype is bool: tensors come as int32 0 or 1, store ``result != 0``.
        """
        lines = [f"    {name} = {_python(e, truth)}" for name, e in self.steps]
        parameters = ", ".join((*self.tensors, *(a for a, _ in self.attrs)))
        # not the operator's bare name: Triton 3.0 mangles without the module, and exp would be its own m.exp
        return f"def {self.name}_formula({parameters}):\n" + "".join(line + "\n" for line in lines) + f"    return {_python(self.result, truth)}\n"

    # ---- (c) float64 ---------------------------------------------------------------------------------------------
    def evaluate(self, *inputs: Any, **attrs: Any) -> tuple[np.ndarray, np.ndarray]:
        """The value on NumPy arrays, and the largest magnitude among the intermediate results, element by element."""
        known = {name: (value, 0.0) for name, value in zip(self.tensors, inputs, strict=True)}
        known.update({name: (attrs[name], 0.0) for name, _ in self.attrs})
        with np.errstate(all="ignore"):
            for name, e in self.steps:
                known[name] = _evaluate(e, known)
            value, magnitude = _evaluate(self.result, known)
        return np.asarray(value), np.broadcast_to(magnitude, np.shape(value))


def _c(e: Node, kind: str, spell: Callable[[str], str]) -> str:
    a = [_c(x, kind, spell) for x in e.args]
    floating = kind[0] == "f"
    suffix = "f" if kind == "f32" else ""
    if e.op == "name":
        return e.value
    if e.op == "const":
        if floating:
            return f"{float(e.value)!r}{suffix}".replace("inf" + suffix, "INFINITY")
        if e.value != int(e.value):
            raise FormulaError(f"constant {e.value!r} has no integer form; the operator cannot take {kind}")
        return f"(int64_t){int(e.value)}" if kind == "i64" else f"{int(e.value)}"
    if e.op in _COMPARE.values() or (e.boolean and e.op in _BITS.values()):
        return f"({a[0]} {e.op} {a[1]})"
    if e.op == "~" and (e.boolean or kind == "b8"):
        return f"(!{a[0]})"
    if e.op == "where":
        return f"({a[0]} ? {a[1]} : {a[2]})"
    if floating:
        if e.op in _ARITHMETIC.values():
            return f"({a[0]} {e.op} {a[1]})"
        if e.op == "neg":
            return f"(-{a[0]})"
        c_name = spell(e.op) or "haian_" + {"maximum": "max", "minimum": "min"}.get(e.op, e.op) + suffix
        return f"{c_name}({', '.join(a)})"
    if e.op in _BITS.values():
        return f"({a[0]} {e.op} {a[1]})"
    name = {"+": "add", "-": "sub", "*": "mul", "~": "not", "maximum": "max", "minimum": "min"}.get(e.op, e.op)
    if name not in _OF_INTEGERS:
        raise FormulaError(f"{e.op} is for floating dtypes; the operator cannot take {kind}")
    return f"haian_{name}_{'i32' if kind == 'b8' else kind}({', '.join(a)})"


c_text = _c  # one node as C: tiles of users' programs (kernels/cpu/generate.py) are made of single nodes


def _python(e: Node, truth: bool) -> str:
    a = [_python(x, truth) for x in e.args]
    if e.op == "name":
        return e.value
    if e.op == "const":
        return f"float('{e.value}')" if e.value in (float("inf"), -float("inf")) else repr(e.value)
    if e.op == "neg":
        return f"(-{a[0]})"
    if e.op == "~":
        return f"({a[0]} == 0)" if e.boolean or truth else f"(~{a[0]})"
    if e.op == "/":  # "/" is approximate on some targets; scalar.py says which division is meant
        left, right = (f"m.like({t}, {u})" if x.op == "const" else t for x, t, u in zip(e.args, a, a[::-1]))
        return f"m.div({left}, {right})"
    if e.op in _NUMPY:
        return f"({a[0]} {e.op} {a[1]})"
    if e.op in ("fmod", "remainder", "floor_divide"):  # scalar.py asks both operands for their dtype
        a = [f"m.like({t}, {u})" if x.op == "const" else t for x, t, u in zip(e.args, a, a[::-1])]
    return f"m.{e.op}({', '.join(a)})"


def _evaluate(e: Node, known: dict[str, tuple]) -> tuple:
    if e.op == "name":
        return known[e.value]
    if e.op == "const":
        return e.value, 0.0
    pairs = [_evaluate(x, known) for x in e.args]
    values = [v for v, _ in pairs]
    if e.op == "where":
        condition = values[0]
        return np.where(*values), np.maximum(pairs[0][1], np.where(condition, pairs[1][1], pairs[2][1]))
    if e.op == "neg":
        result = np.negative(values[0])
    elif e.op == "~":
        result = np.invert(values[0])
    else:
        result = (_NUMPY.get(e.op) or VOCABULARY[e.op][1])(*values)
    magnitude = functools.reduce(np.maximum, [p for _, p in pairs])
    if np.asarray(result).dtype.kind == "f":
        size = np.abs(result)
        magnitude = np.maximum(magnitude, np.where(np.isfinite(size), size, 0.0))
    return result, magnitude


# ---- reading ---------------------------------------------------------------------------------------------------------
class Formula:
    """A function in the scalar language, parsed; ``body(**choices)`` resolves it.

    Attributes:
        name, doc: of the function.
        tensors: tensor parameters in order; booleans: those annotated ``bool``.
        attrs: keyword-only parameters in order -> default; choices: attribute -> its strings.
    """

    def __init__(self, fn: Callable) -> None:
        self.fn = fn
        self.name = fn.__name__
        self.doc = inspect.getdoc(fn) or ""
        try:
            lines, first = inspect.getsourcelines(fn)
        except (OSError, TypeError) as error:
            raise FormulaError(f"{self.name}: its source cannot be read ({error}); define it in a file") from error
        self.file, self.first = inspect.getsourcefile(fn) or "?", first
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
        if not isinstance(tree, ast.FunctionDef):
            raise self.error(tree, "a formula is a def")
        a = tree.args
        if a.vararg or a.kwarg or a.defaults:
            raise self.error(tree, "*args, **kwargs and defaults of tensors")
        positional = [*a.posonlyargs, *a.args]
        self.tensors = tuple(p.arg for p in positional)
        self.booleans = frozenset(p.arg for p in positional if isinstance(p.annotation, ast.Name) and p.annotation.id == "bool")
        self.attrs: dict[str, Any] = {}
        self.choices: dict[str, tuple[str, ...]] = {}
        for p, default in zip(a.kwonlyargs, a.kw_defaults, strict=True):
            self.attrs[p.arg] = inspect.Parameter.empty if default is None else ast.literal_eval(default)
            if isinstance(p.annotation, ast.Subscript):
                listed = ast.literal_eval(p.annotation.slice)
                self.choices[p.arg] = (listed,) if isinstance(listed, str) else tuple(listed)
        for name in (*self.tensors, *self.attrs):
            if name in _RESERVED:
                raise self.error(tree, f"a parameter named {name}")
        self.statements = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body

    def error(self, node: ast.AST, what: str) -> FormulaError:
        line = self.first + getattr(node, "lineno", 1) - 1
        return FormulaError(f"{self.file}:{line}: {self.name}: {what}: not in the scalar language; see the top of formula.py")

    def __call__(self, *inputs: Any, **attrs: Any) -> np.ndarray:
        """The value on NumPy arrays."""
        given = self.complete(attrs)
        return self.body(**given).evaluate(*inputs, **given)[0]

    def complete(self, given: dict[str, Any]) -> dict[str, Any]:
        """All attributes, defaults filled in."""
        return {name: given.get(name, default) for name, default in self.attrs.items()}

    def variants(self) -> list[dict[str, Any]]:
        """Every combination of choices and of None or a number: attributes to resolve -> choice, None or 1.0."""
        options = [[(name, c) for c in self.choices[name]] if name in self.choices else
                   [(name, None), (name, 1.0)] for name, default in self.attrs.items() if name in self.choices or default is None]
        return [dict(combination) for combination in itertools.product(*options)]

    def body(self, **attrs: Any) -> Body:
        """The formula with these choices; numbers stay symbols, only whether they are None matters.

        Raises:
            FormulaError: a construct outside the language, a name that is not defined.
        """
        key = tuple((name, value if isinstance(value, str) or value is None else 1.0) for name, value in self.complete(attrs).items()
                    if name in self.choices or self.attrs[name] is None)
        return self._body(key)

    @functools.cache  # noqa: B019  formulas live as long as the process
    def _body(self, key: tuple) -> Body:
        fixed = dict(key)
        steps: list[tuple[str, Node]] = []
        known = {t: Node("name", value=t, boolean=t in self.booleans) for t in self.tensors}
        known.update({a: Node("name", value=a) for a in self.attrs if a not in self.choices and fixed.get(a, 1.0) is not None})
        result = _Reader(self, fixed, known, steps, prefix="").run()
        name = "_".join([self.name, *(v if isinstance(v, str) else a for a, v in key if v not in (None, "none"))])
        attrs = tuple((a, i) for i, a in enumerate(self.attrs) if a in known)
        return Body(name, self.tensors, self.booleans, attrs, tuple(steps), result, f"{self.file}:{self.first}")


@functools.cache
def read(fn: Callable) -> Formula:
    """The Formula of a Python function (cached)."""
    return fn if isinstance(fn, Formula) else Formula(fn)


class _Reader:
    """Turns statements into nodes; calls of other formulas are expanded in place, their locals renamed."""

    def __init__(self, formula: Formula, fixed: dict[str, Any], known: dict[str, Node], steps: list, prefix: str) -> None:
        self.f, self.fixed, self.known, self.steps, self.prefix = formula, fixed, known, steps, prefix

    def run(self) -> Node:
        result = self.block(self.f.statements)
        if result is None:
            raise self.f.error(self.f.statements[-1], "a function without a final return")
        return result

    def block(self, statements: list[ast.stmt]) -> Node | None:
        for s in statements:
            if isinstance(s, ast.Return) and s.value is not None:
                return self.expression(s.value)
            if isinstance(s, ast.If):
                result = self.block(s.body if self.decided(s.test) else s.orelse)
                if result is not None:
                    return result
            elif isinstance(s, ast.Assign) and len(s.targets) == 1 and isinstance(s.targets[0], ast.Name):
                self.assign(s, s.targets[0].id)
            else:
                raise self.f.error(s, type(s).__name__)
        return None

    def assign(self, statement: ast.Assign, name: str) -> None:
        if name in self.known or name in _RESERVED:
            raise self.f.error(statement, f"assigning {name} again" if name in self.known else f"a local named {name}")
        node, local = self.expression(statement.value), self.prefix + name
        if node.op not in ("name", "const"):
            self.steps.append((local, node))
            node = Node("name", value=local, boolean=node.boolean)
        self.known[name] = node

    def decided(self, test: ast.expr) -> bool:
        """A condition on choices and None, known while reading."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return not self.decided(test.operand)
        if isinstance(test, ast.BoolOp):
            parts = [self.decided(v) for v in test.values]
            return all(parts) if isinstance(test.op, ast.And) else any(parts)
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.left, ast.Name) and test.left.id in self.f.attrs:
            right, value = test.comparators[0], self.fixed.get(test.left.id, 1.0)
            if isinstance(right, ast.Constant) and (right.value is None or isinstance(right.value, str)):
                equal = value == right.value
                if isinstance(test.ops[0], (ast.Eq, ast.Is)):
                    return equal
                if isinstance(test.ops[0], (ast.NotEq, ast.IsNot)):
                    return not equal
        raise self.f.error(test, "a condition on values (use m.where); 'if' decides on choices and None only")

    def expression(self, e: ast.expr) -> Node:
        if isinstance(e, ast.Constant) and isinstance(e.value, (int, float)) and not isinstance(e.value, bool):
            return Node("const", value=e.value)
        if isinstance(e, ast.Name):
            return self.name(e)
        if isinstance(e, ast.IfExp):
            return self.expression(e.body if self.decided(e.test) else e.orelse)
        if isinstance(e, ast.UnaryOp):
            return self.unary(e)
        if isinstance(e, ast.BinOp):
            return self.binary(e)
        if isinstance(e, ast.Compare) and len(e.ops) == 1 and type(e.ops[0]) in _COMPARE:
            return Node(_COMPARE[type(e.ops[0])], (self.expression(e.left), self.expression(e.comparators[0])), boolean=True)
        if isinstance(e, ast.Call):
            return self.call(e)
        raise self.f.error(e, type(e).__name__)

    def name(self, e: ast.Name) -> Node:
        if e.id in self.known:
            return self.known[e.id]
        value = self.f.fn.__globals__.get(e.id)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return Node("const", value=value)
        if e.id in self.f.attrs:
            raise self.f.error(e, f"{e.id}, which is {self.fixed[e.id]!r} here, used as a number")
        raise self.f.error(e, f"the name {e.id}, neither a parameter, a local nor a module-level number")

    def unary(self, e: ast.UnaryOp) -> Node:
        operand = self.expression(e.operand)
        if isinstance(e.op, ast.USub):
            return Node("const", value=-operand.value) if operand.op == "const" else Node("neg", (self.number(e, operand),))
        if isinstance(e.op, ast.Invert):
            return Node("~", (operand,), boolean=operand.boolean)
        raise self.f.error(e, type(e.op).__name__)

    def number(self, e: ast.expr, node: Node) -> Node:
        if node.boolean:
            raise self.f.error(e, "arithmetic on a condition (use m.where)")
        return node

    def binary(self, e: ast.BinOp) -> Node:
        a, b = self.expression(e.left), self.expression(e.right)
        if type(e.op) in _BITS:
            if a.boolean != b.boolean:
                raise self.f.error(e, "& | ^ between a condition and a number")
            return Node(_BITS[type(e.op)], (a, b), boolean=a.boolean)
        if type(e.op) not in _ARITHMETIC:
            raise self.f.error(e, type(e.op).__name__)
        return Node(_ARITHMETIC[type(e.op)], (self.number(e, a), self.number(e, b)))

    def call(self, e: ast.Call) -> Node:
        args = tuple(self.expression(a) for a in e.args)
        if isinstance(e.func, ast.Attribute) and isinstance(e.func.value, ast.Name) and e.func.value.id == "m":
            count = VOCABULARY.get(e.func.attr, (-1,))[0]
            if count != len(args) or e.keywords:
                raise self.f.error(e, f"m.{e.func.attr} with {len(args) + len(e.keywords)} arguments")
            if e.func.attr == "where" and not args[0].boolean:
                raise self.f.error(e, "m.where on a number (compare it with something)")
            condition = e.func.attr in _CONDITIONS or e.func.attr == "where" and args[1].boolean and args[2].boolean
            return Node(e.func.attr, args, boolean=condition)
        target = self.f.fn.__globals__.get(e.func.id) if isinstance(e.func, ast.Name) else None
        if not callable(target):
            raise self.f.error(e, f"a call of {ast.unparse(e.func)}")
        inner = read(target)
        if len(args) != len(inner.tensors):
            raise self.f.error(e, f"{inner.name} with {len(args)} arguments instead of {len(inner.tensors)}")
        known, fixed = dict(zip(inner.tensors, args, strict=True)), {}
        given = {k.arg: k.value for k in e.keywords}
        for name, default in inner.attrs.items():
            value = given.get(name, ast.Constant(default, lineno=e.lineno))
            if isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, str)):
                fixed[name] = value.value
            else:
                known[name] = self.expression(value)
        count = sum(1 for _ in self.steps)
        return _Reader(inner, fixed, known, self.steps, f"{self.prefix}{inner.name}{count}_").run()


def magnitude(fn: Callable, *inputs: Any, **attrs: Any) -> np.ndarray:
    """The largest intermediate magnitude of a formula at each element, in float64 (M of error class FC)."""
    formula = read(fn)
    given = formula.complete(attrs)
    return formula.body(**given).evaluate(*inputs, **given)[1]
