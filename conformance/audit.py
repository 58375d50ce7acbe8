"""Whether a report agrees with itself: its header and footer against its rows, and both against what the suite would have run.

Not here: the level that the rows grant (levels.py), reading the file (report.py).  A report that agrees with itself may still be
invented as a whole; whoever doubts it runs the suite again, with its seed.
"""
from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..hal.driver import GROUPS, MAX_DEVICES
from ..hal.errors import ArgumentError
from .cases import cases, find, matching

__all__ = ["audit"]

Rows = Sequence[Mapping[str, Any]]
_CORE = {"stream", "event"}  # a check of streams is never excused where one of them is absent
_NOT_CHECKED = "not offered, so not checked"


def audit(header: Mapping[str, Any], lines: Rows, footer: Mapping[str, Any]) -> list[str]:
    """What does not fit, each in one line; ``lines`` are of cases that the suite has."""
    found = [*_selection(header, lines, bool(footer)), *_times(lines, footer), *_allowances(header, lines)]
    return found + list(_driver(header, lines)) if header["suite"] == "hal" and not header.get("absent") else found


def _selection(header: Mapping[str, Any], lines: Rows, finished: bool) -> Iterator[str]:
    """The rows are those that the header's level, patterns and shard choose."""
    level, patterns, shard, total = (header.get(k) for k in ("level", "ops", "shard", "total"))
    if not isinstance(level, str) or not _texts(patterns) or not (isinstance(shard, list) and len(shard) == 2 and all(type(n) is int for n in shard) and 1 <= shard[0] <= shard[1]):
        yield f"its header's level {level!r}, ops {patterns!r} and shard {shard!r} are no selection"
        return
    if finished and total != len(lines):
        yield f"its header says {total!r} cases, it has {len(lines)}"
    if header.get("absent"):
        return
    try:
        choices = list(_choices(header["suite"], level, patterns or [], (shard[0], shard[1])))
    except ArgumentError as error:
        yield f"its header's selection means nothing here: {error}"
        return
    have = {x["id"] for x in lines}
    if not any(have == c if finished else have <= c for c in choices):
        more, fewer = sorted(have - choices[0]), sorted(choices[0] - have)
        said = f"{len(more)} rows too many, such as {more[0]}" if more else f"{len(fewer)} rows are missing, such as {fewer[0]}"
        yield f"its header asks for level {level}, {', '.join(patterns or []) or 'everything'}, shard {shard[0]}/{shard[1]}: {said}"


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _choices(suite: str, level: str, patterns: Sequence[str], shard: tuple[int, int]) -> Iterator[set[str]]:
    """The ids that a header may mean: one entry can be a pattern or a single case, whatever its level."""
    choose: Callable[[], Sequence[Any]]
    if suite == "hal":
        from .hal_checks.check import find as find_check
        from .hal_runner import hal_cases

        everything = "" if level == "all" else level
        single = [c.id(mode) for c, mode in _tried(find_check, patterns)]
        choose = functools.partial(hal_cases, everything, patterns, shard)
    else:
        single = [c.id for c in _tried(find, patterns)]
        choose = functools.partial(cases, level, patterns, shard)
    try:
        yield {c.id for c in choose()}
    except ArgumentError:
        if not single:
            raise
    if single:
        yield set(single)


def _tried(find: Any, patterns: Sequence[str]) -> list[Any]:
    if len(patterns) != 1:
        return []
    try:
        return [find(patterns[0])]
    except ArgumentError:
        return []


def _times(lines: Rows, footer: Mapping[str, Any]) -> Iterator[str]:
    for x in lines:
        if not _is_time(x.get("ns")):
            yield f"{x['id']} took {x.get('ns')!r} ns"
            return
    ran = [x["ns"] for x in lines if x["result"] in ("pass", "fail")]
    if ran and not any(ran):
        yield f"none of {len(ran)} cases took any time"
    if footer and not _is_time(footer.get("seconds", 0)):
        yield f"it took {footer['seconds']!r} seconds"


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _allowances(header: Mapping[str, Any], lines: Rows) -> Iterator[str]:
    """A row that only a rule of the vendor's explains has its rule in the header, and a rule is kept to."""
    rules = header["allowances"]

    def ruled(kind: str, line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [r for r in rules if r["kind"] == kind and _means(header["suite"], line["id"], r["cases"])]

    for x in lines:
        declared = x["result"] == "not-offered" and x["message"].startswith("declared: ")
        if x["result"] in ("xfail", "xpass") and not ruled("expected failure", x):
            yield f"{x['id']} is {x['result']}, and no expected failure is declared for it"
            return
        own = declared and x["message"] in _reasons_as_they_stand()
        if declared and not own and not any(r["what"] == x["message"].removeprefix("declared: ") for r in ruled("not offered", x)):
            yield f"{x['id']} is not offered because of a rule that the header does not have ({x['message']})"
            return
        if not declared and ruled("not offered", x):
            yield f"{x['id']} is {x['result']}, but declared as not offered"
            return


def _means(suite: str, case_id: str, pattern: str) -> bool:
    if suite != "hal":
        return matching(find(case_id), (pattern,))
    from .hal_runner import hal_cases

    return any(c.id == case_id for c in hal_cases() if c.matches(pattern))


# ---- the HAL suite: what the header says of the driver ------------------------------------------------------------------------
def _driver(header: Mapping[str, Any], lines: Rows) -> Iterator[str]:
    """Modes, groups and devices as the rows have them."""
    from .hal_runner import hal_cases

    groups, devices = header.get("groups"), header.get("devices")
    if header.get("validation") != ["off", "on"]:
        yield f"its header says validation {header.get('validation')!r}; the suite runs every check as it is made for, off and on"
    if not _texts(groups) or groups != [g for g in GROUPS if g in (groups or ())]:
        yield f"its header's groups {groups!r} are no list of groups in their order"
        return
    if type(devices) is not int or not 1 <= devices <= MAX_DEVICES:
        yield f"its header says {devices!r} devices"
        return
    absent = [g for g in GROUPS if g not in groups]
    said = (header.get("extra") or {}).get(_NOT_CHECKED)
    if said != (", ".join(absent) or "-"):
        yield f"its header says {_NOT_CHECKED}: {said}, its groups leave out {', '.join(absent) or 'none'}"
    needs = {c.id: (c.check.needs, c.kind) for c in hal_cases()}
    for x in lines:
        wanted, kind = needs[x["id"]]
        lacking = [n for n in wanted if _group(n) in absent or n == "devices>1" and devices < 2]
        if lacking and x["result"] in ("pass", "fail"):
            yield f"{x['id']} is {x['result']}, but needs {', '.join(lacking)}, which the header says is not there"
            return
        if x["result"] == "pass" and x["message"]:
            yield f"{x['id']} is a pass that says {x['message']!r}"
            return
        if x["result"] != "not-offered" or x["message"].startswith("declared: "):
            continue
        if x.get("exempt") and kind == "S" and _CORE & set(absent):
            yield f"{x['id']} counts as exempt without {', '.join(sorted(_CORE & set(absent)))}"
            return
        if why := _not_so(x["message"], absent, devices):
            yield f"{x['id']} is not offered ({x['message'] or 'no reason'}), but {why}"
            return


def _group(need: str) -> str:
    """The group of a word of ``check(needs=...)``; "" for capabilities and devices."""
    return need if need in GROUPS else next((g for g, methods in GROUPS.items() if need in methods or f"{need}?" in methods), "")


def _not_so(reason: str, absent: Sequence[str], devices: int) -> str:
    """What speaks against a reason for not being offered, "" where nothing does."""
    if not any(p.fullmatch(reason) for p in _reasons()):
        return "no check of the suite says that"
    if match := re.fullmatch(r"the driver has no (\w+)", reason):
        word = {"modules": "module"}.get(match[1], match[1])
        group = _group(word)
        if group not in absent and (word in GROUPS or word in GROUPS.get(group, ())):  # not a method that the group may leave out
            return f"the header's groups have {group}"
    if (match := re.fullmatch(r"(\d+) device; needs two", reason)) and devices != int(match[1]):
        return f"the header says {devices} devices"
    return ""


@functools.cache
def _reasons() -> tuple[re.Pattern[str], ...]:
    """Every reason in the source of the checks, as a pattern: what an f-string fills in is anything."""
    found = set()
    for path in sorted((Path(__file__).parent / "hal_checks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "NotOffered" and node.args:
                found.add(_pattern(node.args[0]))
    return tuple(re.compile(p, re.DOTALL) for p in sorted(found))


@functools.cache
def _reasons_as_they_stand() -> frozenset[str]:
    return frozenset(re.sub(r"\\(.)", r"\1", p.pattern) for p in _reasons() if ".*" not in p.pattern)


def _pattern(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return re.escape(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(re.escape(str(v.value)) if isinstance(v, ast.Constant) else ".*" for v in node.values)
    if isinstance(node, ast.BinOp):
        return _pattern(node.left) + _pattern(node.right)
    return ".*"  # made elsewhere
