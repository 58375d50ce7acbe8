"""Finds a vendor's shared libraries, declares the calls of a table, and binds them.

Looking costs a few stat calls; nothing is opened before a file was found.  A file anyone may write to is refused.
Declarations are made from the table: pointers and handles are integers of pointer size, so that no object is made per argument.
"""
from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from ...hal.errors import ArgumentError, EnvironmentMissing, one_line
from .table import CALLS, TYPES, Runtime

__all__ = ["Found", "bind", "find", "parse"]

_SPEC = re.compile(r"(?:(text) )?([A-Za-z_]\w*(?:\|[A-Za-z_]\w*)*)\((.*)\)", re.ASCII)
_CONSTANT = re.compile(r"-?(?:0x[0-9a-fA-F]+|0|[1-9][0-9]*)", re.ASCII)
_CTYPE = re.compile(r"[A-Za-z_]\w*(?: [A-Za-z_]\w*)*(?: ?\*)*|void \(\*\)\(void \*\)", re.ASCII)  # whether there is such a type cffi knows
_SAYS = "const char *haian_stand_in(void);"  # a library that is no vendor's says so by having this function


class Found:
    """Outcome of looking for a runtime: ``paths`` to open in order, or empty with ``why``; ``looked`` at these files."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.looked: list[str] = []
        self.why = ""
        self.by_search = False  # the first library came from LD_LIBRARY_PATH, not from a folder of the vendor's or the system's


@lru_cache(maxsize=1)
def _system(loader_path: str) -> tuple[str, ...]:
    machine = os.uname().machine
    return tuple(filter(None, loader_path.split(os.pathsep))) + (
        f"/usr/lib/{machine}-linux-gnu", f"/lib/{machine}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")


def _expand(path: str) -> str:
    """The path with its leading $VARIABLE replaced, "" where that is not set."""
    if not path.startswith("$"):
        return path
    name, _, rest = path[1:].partition("/")
    value = os.environ.get(name, "")
    return os.path.join(value, rest) if value and rest else value


def _present(marks: tuple[str, ...]) -> str:
    """The first mark that is there: a set $VARIABLE or an existing path."""
    return next((m for m in marks if (m.startswith("$") and _expand(m)) or (not m.startswith("$") and os.path.exists(m))), "")


def _trusted(path: str) -> bool:
    return not os.stat(path).st_mode & stat.S_IWOTH


def _loadable(name: str) -> bool:
    """Whether the dynamic loader finds a library by name.  cffi would go on to ask ldconfig and gcc, 0.1 s for a no."""
    import ctypes
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def find(table: Runtime) -> Found:
    """Where the libraries of a table are."""
    found = Found()
    if table.needs and not _present(table.needs):
        found.why = f"not here: none of {', '.join(table.needs)}"
        return found
    other = _present(table.unless)
    if other:
        found.why = f"{other} is there: another vendor's runtime answers to {table.libraries[0][0]}"
        return found
    folders = [p for p in map(_expand, table.paths) if os.path.isabs(p)]
    if not table.only_paths:
        folders += [p for p in _system(os.environ.get("LD_LIBRARY_PATH", "")) if os.path.isabs(p)]
    known = {p for p in map(_expand, table.paths)} | {*_system("")}
    for names in table.libraries:
        path = refused = ""
        for name, folder in ((n, f) for n in names for f in dict.fromkeys(folders)):
            candidate = os.path.join(folder, name)
            found.looked.append(candidate)
            if not os.path.exists(candidate):
                continue
            if _trusted(candidate):
                path = candidate
                if not found.paths:
                    found.by_search = folder not in known
                break
            refused = found.why = f"{candidate} is writable by everyone; chmod o-w it"
        if not path and not refused and table.by_name:
            found.looked.append(f"the dynamic loader: {names[0]}")
            path = names[0] if _loadable(names[0]) else ""
        if path:
            found.paths.append(path)
        elif not found.paths:
            found.why = found.why or f"no {' or '.join(names)} in {', '.join(folders[:3])}{', ...' if len(folders) > 3 else ''}"
            return found
    return found


def parse(call: str, spec: str, own: Mapping[str, str] | None = None) -> tuple[bool, tuple[str, ...], list[tuple[str, str]]]:
    """(returns text, symbols, [(argument, C type)]) of one line of a table.

    Raises:
        ArgumentError: not a call of the engine, not of the form, or an argument the call does not have.
    """
    match = _SPEC.fullmatch(spec) if isinstance(spec, str) else None
    known = {**CALLS, **(own or {})}
    if call not in known or not match:
        raise ArgumentError(f"call {call!r} = {spec!r}; needs a name of CALLS and 'symbol|alternate(argument, ...)'")
    given = known[call].split()
    arguments = []
    for part in (p.strip() for p in match[3].split(",")) if match[3].strip() else ():
        name, colon, ctype = part.partition(":")
        constant = _CONSTANT.fullmatch(name) is not None
        if not constant and (name not in given or not name.isidentifier()):
            raise ArgumentError(f"call {call!r} = {spec!r}: argument {name!r}; it has {', '.join(given) or 'none'}, and numbers such as 7, -1, 0x10")
        ctype = ctype if colon else "unsigned" if constant else TYPES.get(name, "")
        if not _CTYPE.fullmatch(ctype):
            raise ArgumentError(f"call {call!r} = {spec!r}: {part!r} has no C type such as {name}:int")
        arguments.append((name, ctype))
    return match[1] is not None, tuple(match[2].split("|")), arguments


class Bound:
    """The calls of a table over opened libraries: ``calls[name](*arguments in CALLS order) -> status``."""

    def __init__(self, ffi: Any) -> None:
        self.ffi = ffi
        self.calls: dict[str, Callable[..., Any]] = {}
        self.addresses: dict[str, int] = {}
        self.missing: list[str] = []
        self.stand_in = ""  # what the first library says of itself where it is no vendor's


@lru_cache(maxsize=32)
def _declared(text: str) -> Any:
    """An FFI with these declarations; parsing a table's 60 takes 8 ms."""
    from cffi import FFI
    ffi = FFI()
    ffi.cdef(text)
    return ffi


def _refused(line: str) -> str:
    """Why cffi does not take a declaration, "" where it does."""
    from cffi import FFI
    ffi = FFI()
    try:
        ffi.cdef(line)
        ffi.typeof(f"int(*){line[line.index('('):-1]}")  # a struct by value is found only here
    except Exception as error:  # noqa: BLE001 - cffi's and its parser's own errors have no common class
        return f"{type(error).__name__}: {one_line(error)}"
    return ""


def bind(table: Runtime, paths: list[str]) -> Bound:
    """Opens the libraries and binds every call whose symbol is there.

    Raises:
        EnvironmentMissing: a library cannot be opened.  ArgumentError: a line of the table is not of the form; it is named.
    """
    parsed = {call: parse(call, spec, table.own) for call, spec in table.calls.items()}
    passes = {call: (table.own.get(call) or CALLS.get(call, "")).split() for call in parsed}
    declared: dict[str, str] = {}
    for text, symbols, arguments in parsed.values():
        for symbol in symbols:
            result = "const char *" if text else "int"
            line = f"{result} {symbol}({', '.join(t for _, t in arguments) or 'void'});"
            if declared.setdefault(symbol, line) != line:
                raise ArgumentError(f"{table.name}: {symbol} is declared twice with different arguments")
    try:
        ffi = _declared("\n".join([*declared.values(), _SAYS]))
        for line in declared.values():
            if "struct " in line or "union " in line:
                ffi.typeof(f"int(*){line[line.index('('):-1]}")
    except Exception as error:  # noqa: BLE001 - cffi's and its parser's own errors have no common class
        wrong = next(((call, why) for call, (_, symbols, _) in parsed.items() for s in symbols if (why := _refused(declared[s]))), ("?", one_line(error)))
        raise ArgumentError(f"{table.name}: call {wrong[0]!r} = {table.calls.get(wrong[0])!r} is no declaration in C ({wrong[1]}); correct its types") from None
    libraries = []
    for i, path in enumerate(paths):
        try:
            libraries.append(ffi.dlopen(path))
        except OSError as error:
            if i == 0:
                raise EnvironmentMissing(f"{table.name}: {path} cannot be loaded ({error})") from None
    bound = Bound(ffi)
    if libraries and (says := getattr(libraries[0], "haian_stand_in", None)) is not None:
        said = says()
        bound.stand_in = ffi.string(said).decode(errors="replace") if said != ffi.NULL else "a library that says so"
    for call, (_, symbols, arguments) in parsed.items():
        for library, symbol in ((lib, s) for s in symbols for lib in libraries):
            try:
                function = getattr(library, symbol)
            except AttributeError:  # cffi's word for a symbol that the library does not have
                continue
            # functools.partial would not permute; a lambda of our own text costs one frame and no checks
            passed = ", ".join(a for a, _ in arguments)
            source = f"lambda {', '.join(passes[call])}: _f({passed})"
            bound.calls[call] = function if [a for a, _ in arguments] == passes[call] else eval(source, {"_f": function})
            bound.addresses[call] = int(ffi.cast("uintptr_t", ffi.addressof(library, symbol)))
            break
        else:
            bound.missing.append("|".join(symbols))
    return bound
