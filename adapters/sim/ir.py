"""Text of Triton IR (TTIR, pretty-printed by Triton 3.0 to 3.9) to a small typed tree.

Generic on purpose: an operation is its name, operands, attributes, types and regions; what it means, and whether it
is known at all, is decided in ``execute.py``.  Nothing here runs per launch.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, field

from ...hal.errors import ArgumentError

__all__ = ["Block", "Function", "Module", "Op", "Type", "parse", "parse_type"]


@dataclass(frozen=True)
class Type:
    """A scalar (``shape == ()``) or tensor type.  ``elem`` is MLIR's word (``f32``, ``i1``) or ``ptr``."""

    shape: tuple[int, ...]
    elem: str
    pointee: str = ""  # element type behind a pointer

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        n = 1
        for s in self.shape:
            n *= s
        return n

    def __str__(self) -> str:
        elem = f"!tt.ptr<{self.pointee}>" if self.elem == "ptr" else self.elem
        return f"tensor<{'x'.join(map(str, self.shape))}x{elem}>" if self.shape else elem


@dataclass
class Op:
    """One operation.  ``pairs`` are ``%arg = %init`` bindings (loops), ``words`` bare keywords and strings in order."""

    name: str
    line: int
    results: list[str] = field(default_factory=list)
    operands: list[str] = field(default_factory=list)
    attrs: dict[str, object] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    in_types: list[Type] = field(default_factory=list)
    out_types: list[Type] = field(default_factory=list)
    regions: list[list[Block]] = field(default_factory=list)
    successors: list[tuple[str, list[str]]] = field(default_factory=list)
    symbol: str = ""
    loc: str = ""


@dataclass
class Block:
    label: str
    args: list[tuple[str, Type]]
    ops: list[Op] = field(default_factory=list)


@dataclass
class Function:
    name: str
    public: bool
    args: list[tuple[str, Type]]
    results: list[Type]
    blocks: list[Block]


@dataclass
class Module:
    functions: dict[str, Function]
    locations: dict[str, str]  # alias (#loc3) -> text

    def where(self, loc: str) -> str:
        """``file.py:12`` for a location, or an empty string."""
        seen = set()
        while loc:
            found = re.search(r'"([^"]+)":(\d+):\d+', loc)
            if found:
                return f"{found[1].rsplit('/', 1)[-1]}:{found[2]}"
            alias = next((a for a in re.findall(r"#\w+", loc) if a not in seen), "")
            seen.add(alias)
            loc = self.locations.get(alias, "")
        return ""


_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r]+|//[^\n]*)
    |(?P<newline>\n)
    |(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<value>%[\w$.-]+(?:\#\d+)?)
    |(?P<symbol>@(?:[\w$.-]+|"[^"]*"))
    |(?P<label>\^\w+)
    |(?P<alias>\#[\w.]+)
    |(?P<type>tensor<(?:[^<>]|<[^<>]*>)*>|!tt\.ptr<(?:[^<>]|<[^<>]*>)*>|![\w.]+(?:<(?:[^<>]|<[^<>]*>)*>)?)
    |(?P<number>-?(?:0x[0-9A-Fa-f]+|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?))
    |(?P<word>[A-Za-z_][\w.$]*)
    |(?P<punct>->|<\{|\}>|.)""",
    re.VERBOSE,
)
_TENSOR = re.compile(r"tensor<((?:\d+x)*)(.+)>$", re.DOTALL)
_POINTER = re.compile(r"!tt\.ptr<([\w]+)(?:, *\d+)?>$")
_SCALAR = re.compile(r"(?:i\d+|index|f\d\w*|bf16|none|tf32)$")
_CLOSE = {"(": ")", "[": "]", "{": "}", "<": ">", "<{": "}>"}


def parse_type(text: str) -> Type:
    """The Type for MLIR's spelling; an element nobody knows is kept as it is written."""
    shape: tuple[int, ...] = ()
    elem = text.strip()
    tensor = _TENSOR.match(elem)
    if tensor:
        shape = tuple(int(d) for d in tensor[1].split("x")[:-1])
        elem = tensor[2].split(", #")[0].strip()
    pointer = _POINTER.match(elem)
    if pointer:
        return Type(shape, "ptr", pointer[1])
    return Type(shape, elem)  # of an unknown element: whatever uses it will be refused by name


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str, int]] = []
        line = 1
        for found in _TOKEN.finditer(text):
            kind = found.lastgroup or ""
            if kind == "skip":
                continue
            self.tokens.append((kind, found[0], line))
            if kind == "newline":
                line += 1
        self.tokens.append(("newline", "\n", line))
        self.tokens.append(("end", "", line))
        self.at = 0
        self.types: dict[str, Type] = {}
        self.locations: dict[str, str] = {}

    # ---- tokens ------------------------------------------------------------------------------------------------------
    def peek(self, ahead: int = 0) -> str:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)][1]

    def kind(self, ahead: int = 0) -> str:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)][0]

    def next(self) -> str:
        token = self.tokens[self.at][1]
        if self.at < len(self.tokens) - 1:
            self.at += 1
        return token

    def need(self, text: str) -> None:
        if self.peek() != text:
            self.fail(f"expected {text!r}")
        self.next()

    def fail(self, why: str):
        line = self.tokens[min(self.at, len(self.tokens) - 1)][2]
        raise ArgumentError(f"TTIR line {line}: {why}, came {self.peek()!r}; pass the text that Triton printed")

    def newlines(self) -> None:
        while self.kind() == "newline":
            self.next()

    def balanced(self) -> str:
        """Text of the bracketed group that starts here, brackets left out."""
        stack = [_CLOSE[self.next()]]
        parts: list[str] = []
        while True:
            if self.kind() == "end":
                self.fail(f"{stack[-1]!r} is missing")
            token = self.next()
            if token == stack[-1]:
                stack.pop()
                if not stack:
                    return " ".join(parts)
            elif token in _CLOSE:
                stack.append(_CLOSE[token])
            parts.append(token)

    def type(self) -> Type:
        text = self.next()
        found = self.types.get(text)
        if found is None:
            found = self.types[text] = parse_type(text)
        return found

    def loc(self) -> str:
        self.next()
        return self.balanced().replace(" : ", ":")

    # ---- structure ---------------------------------------------------------------------------------------------------
    def module(self) -> Module:
        functions: dict[str, Function] = {}
        depth = 0
        while self.kind() != "end":
            token = self.peek()
            if self.kind() == "alias" and self.peek(1) == "=":
                self.next(), self.next()
                if self.peek() == "loc":
                    self.locations[token] = self.loc()
                else:
                    self.skip_line()
            elif token in ("module", "builtin.module"):
                depth += 1
                self.next()
                while not self.region_starts():
                    if self.kind() in ("newline", "end"):
                        self.fail("'{' of the module is missing")
                    self.balanced() if self.peek() == "{" else self.next()
                self.next()
            elif token == "tt.func":
                function = self.function()
                functions[function.name] = function
            elif token == "}":
                depth -= 1
                self.next()
                self.trailing()
            elif self.kind() == "newline":
                self.next()
            else:
                self.fail("expected 'module', 'tt.func' or a location")
        if not functions or depth:
            self.fail("no complete module with a tt.func in it")
        return Module(functions, self.locations)

    def skip_line(self) -> None:
        while self.kind() not in ("newline", "end"):
            self.next()

    def trailing(self) -> str:
        """Attributes and location after a closing brace; returns the location."""
        loc = ""
        while self.kind() not in ("newline", "end"):
            if self.peek() == "loc":
                loc = self.loc()
            elif self.peek() in _CLOSE:
                self.balanced()
            else:
                self.next()
        return loc

    def region_starts(self) -> bool:
        return self.peek() == "{" and self.kind(1) == "newline"

    def function(self) -> Function:
        self.next()
        public = True
        while self.kind() == "word":
            public = self.next() != "private"
        name = self.next()[1:].strip('"')
        self.need("(")
        args: list[tuple[str, Type]] = []
        while self.peek() != ")":
            arg = self.next()
            self.need(":")
            args.append((arg, self.type()))
            while self.peek() not in (",", ")"):
                if self.peek() == "loc":
                    self.loc()
                elif self.peek() == "{":
                    self.balanced()
                else:
                    self.fail("expected ',' or ')' among the parameters")
            if self.peek() == ",":
                self.next()
        self.next()
        results: list[Type] = []
        if self.peek() == "->":
            self.next()
            results = self.type_list()
        while not self.region_starts():
            if self.kind() in ("newline", "end"):
                self.fail("the function has no body")
            self.balanced() if self.peek() == "{" else self.next()
        blocks = self.region()
        self.trailing()
        return Function(name, public, args, results, blocks)

    def type_list(self) -> list[Type]:
        if self.peek() != "(":
            return [self.type()]
        self.next()
        found: list[Type] = []
        while self.peek() != ")":
            if self.kind() in ("newline", "end"):
                self.fail("')' of the type list is missing")
            if self.peek() in ("{", "loc"):
                self.balanced() if self.peek() == "{" else self.loc()
            elif self.peek() == ",":
                self.next()
            else:
                found.append(self.type())
        self.next()
        return found

    def region(self) -> list[Block]:
        """Blocks between '{' and '}', both consumed."""
        self.need("{")
        blocks = [Block("", [])]
        while True:
            self.newlines()
            if self.kind() == "end":
                self.fail("'}' of a region is missing")
            if self.peek() == "}":
                self.next()
                return blocks
            if self.kind() == "label":
                label, args = self.next(), []
                if self.peek() == "(":
                    self.next()
                    while self.peek() != ")":
                        name = self.next()
                        self.need(":")
                        args.append((name, self.type()))
                        if self.peek() == "loc":
                            self.loc()
                        if self.peek() == ",":
                            self.next()
                    self.next()
                self.need(":")
                if len(blocks) == 1 and not blocks[0].ops and not blocks[0].label:
                    blocks.pop()
                blocks.append(Block(label, args))
            else:
                blocks[-1].ops.append(self.op())

    def op(self) -> Op:
        op = Op("", self.tokens[self.at][2])
        if self.kind() == "value":
            while self.peek() != "=":
                name = self.next()
                if self.peek() == ":":
                    self.next()
                    op.results += [f"{name}#{k}" for k in range(int(self.next()))]
                else:
                    op.results.append(name)
                if self.peek() == ",":
                    self.next()
                elif self.peek() != "=":
                    self.fail("expected '='")
            self.next()
        if self.kind() not in ("word", "string"):
            self.fail("expected an operation")
        op.name = self.next().strip('"')
        self.rest(op)
        return op

    def rest(self, op: Op) -> None:
        """Everything after the operation's name, up to the end of its line (or of its last region's line)."""
        types: list[Type] | None = None
        while True:
            kind, token = self.kind(), self.peek()
            if kind == "newline" or kind == "end":
                return
            if kind == "value":
                self.next()
                if self.peek() == "=":
                    self.next()
                    op.pairs.append((token, self.peek()))
                    token = self.next()
                op.operands.append(token)
            elif kind == "label":
                self.next()
                op.successors.append((token, self.successor_args()))
            elif kind == "symbol":
                op.symbol = self.next()[1:].strip('"')
            elif token == "loc":
                op.loc = self.loc()
            elif self.region_starts():
                op.regions.append(self.region())
                types = None
            elif token in ("{", "<{"):
                self.attributes(op, _CLOSE[token])
            elif token == "->":
                self.next()
                types = op.out_types
            elif token == ":":
                self.next()
                types = op.in_types
            elif token == "to" and types is not None:
                self.next()
                types = op.out_types
            elif kind == "type":
                (op.in_types if types is None else types).append(self.type())
            elif kind == "word":
                self.word(op, types)
            elif kind == "string" or kind == "number":
                self.next()
                if op.name == "arith.constant":
                    op.attrs["value"] = token
                else:
                    op.words.append(token.strip('"'))
            else:
                self.next()

    def word(self, op: Op, types: list[Type] | None) -> None:
        token = self.peek()
        if types is not None and _SCALAR.match(token):
            types.append(self.type())
            return
        self.next()
        if token == "dense" and self.peek() == "<":
            op.attrs["value"] = "dense " + self.balanced()
        elif op.name == "arith.constant" and token in ("true", "false"):
            op.attrs["value"] = token
            op.out_types.append(parse_type("i1"))
        elif self.peek() == "=" and self.kind(1) in ("word", "number", "string"):
            self.next()
            op.attrs[token] = self.next()
        elif self.peek() == "<":
            self.balanced()  # fastmath<...>, overflow<...>: the exact result is one of the allowed ones
        else:
            op.words.append(token)

    def successor_args(self) -> list[str]:
        names: list[str] = []
        if self.peek() != "(":
            return names
        self.next()
        while self.peek() != ")":
            if self.kind() == "value":
                names.append(self.peek())
            if self.kind() in ("newline", "end"):
                self.fail("')' of the successor is missing")
            self.next()
        self.next()
        return names

    def attributes(self, op: Op, close: str) -> None:
        self.next()
        while self.peek() != close:
            if self.kind() in ("newline", "end"):
                self.fail(f"{close!r} of the attributes is missing")
            key = self.next().strip('"')
            if key == ",":
                continue
            if self.peek() != "=":
                op.attrs[key] = True
                continue
            self.next()
            parts: list[str] = []
            while self.peek() not in (",", close) and self.kind() not in ("newline", "end"):
                if self.peek() in _CLOSE:
                    parts.append(self.peek())
                    parts.append(self.balanced())
                else:
                    parts.append(self.next())
            op.attrs[key] = _attribute(parts)


def _attribute(parts: list[str]) -> object:
    head = parts[0] if parts else ""
    if head == "array":
        return tuple(int(n) for n in re.findall(r"-?\d+", parts[2].split(":", 1)[1] if ":" in parts[2] else ""))
    if re.fullmatch(r"-?\d+", head):
        return int(head)
    if head in ("true", "false"):
        return head == "true"
    return " ".join(parts).strip('"')


def parse(text: str) -> Module:
    """The module in ``text``.

    Raises:
        ArgumentError: the text is not a module of Triton IR; the message names the line.
    """
    return _Parser(text).module()
