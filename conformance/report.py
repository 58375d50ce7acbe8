"""The report: JSON lines, JUnit XML and one HTML page; recomputing a level from it; comparing two.

Not here: the look of a page (reporting).
"""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..hal.errors import ArgumentError
from ..kernels.ops import OPS
from ..reporting.page import Cell, Facts, Note, Section, Table, Text, render
from .audit import audit
from .cases import SUITE_VERSION, cases, counts, digest
from .levels import LEVELS, granted, granted_hal

__all__ = ["diff", "read", "verify", "write"]

RESULTS = ("pass", "fail", "crash", "timeout", "not-offered", "xfail", "xpass")
BAD = ("fail", "crash", "timeout", "xpass")
_KIND = {"pass": "good", "not-offered": "warn", "xfail": "warn"} | dict.fromkeys(BAD, "bad")
_BETTER = {"pass": 3, "xfail": 1, "not-offered": 2} | dict.fromkeys(BAD, 0)
_SAID = {
    "pass": Text("pass", "通过"),
    "fail": Text("fail", "失败"),
    "crash": Text("crash", "崩溃"),
    "timeout": Text("timeout", "超时"),
    "not-offered": Text("not offered", "不支持"),
    "xfail": Text("expected failure", "预期失败"),
    "xpass": Text("unexpected pass", "意外通过"),
}


def write(folder: Path, header: dict[str, Any], lines: Sequence[dict[str, Any]], seconds: float) -> Path:
    """Write report.jsonl, report.xml and index.html; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    level, why = _grant(header, lines, header["expected"])
    footer = {
        "kind": "footer",
        "level_granted": level,
        "why_not_more": why,
        "seconds": round(seconds, 3),
        "counts": dict(Counter(line["result"] for line in lines)),
    }
    (folder / "report.jsonl").write_text(
        "".join(json.dumps(x) + "\n" for x in (header, *lines, footer)), encoding="utf-8"
    )
    _junit(header, lines, seconds).write(folder / "report.xml", encoding="utf-8", xml_declaration=True)
    page = folder / "index.html"
    page.write_text(_page(header, lines, seconds, level, why), encoding="utf-8")
    return page


def _grant(header: dict[str, Any], lines: Sequence[dict[str, Any]], expected: dict[str, int]) -> tuple[str, str]:
    """(level, why not more) by the rules of the header's suite."""
    if header.get("absent"):
        return "", f"not present: {header['absent']}"
    return (granted_hal if header["suite"] == "hal" else granted)(lines, expected)


# ---- JUnit ------------------------------------------------------------------------------------------------------------------
def _junit(header: dict[str, Any], lines: Sequence[dict[str, Any]], seconds: float) -> ElementTree.ElementTree:
    tally = Counter(line["result"] for line in lines)
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=f"haian conformance {header['device']}",
        tests=str(len(lines)),
        failures=str(tally["fail"] + tally["xpass"]),
        errors=str(tally["crash"] + tally["timeout"]),
        skipped=str(tally["not-offered"] + tally["xfail"]),
        time=f"{seconds:.3f}",
        timestamp=header["started"].rstrip("Z"),
    )
    properties = ElementTree.SubElement(suite, "properties")
    for key in ("suite_version", "cases", "level", "seed", "model"):
        ElementTree.SubElement(properties, "property", name=key, value=str(header.get(key)))
    for line in lines:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{line['op']}.{line['dtype']}",
            name=line["id"],
            time=f"{line['ns'] * 1e-9:.6f}",
        )
        result, message = line["result"], _printable(line["message"])
        if result in ("fail", "xpass"):
            ElementTree.SubElement(case, "failure", message=message, type=result)
        elif result in ("crash", "timeout"):
            ElementTree.SubElement(case, "error", message=message, type=result)
        elif result != "pass":
            ElementTree.SubElement(case, "skipped", message=f"{result}: {message}")
    return ElementTree.ElementTree(root)


def _printable(text: str) -> str:
    """XML 1.0 has no control characters."""
    return "".join(ch if ch >= " " else " " for ch in text)


# ---- the page ---------------------------------------------------------------------------------------------------------------
def _page(header: dict[str, Any], lines: Sequence[dict[str, Any]], seconds: float, level: str, why: str) -> str:
    tally = Counter(line["result"] for line in lines)
    bad = [line for line in lines if line["result"] in BAD]
    head: list[object] = [
        Note(
            Text(
                f"Level {level} granted." if level else f"No level granted: {why}.",
                f"达到级别:{level}。" if level else f"未达到任何级别:{why}。",
            ),
            "good" if level and not bad else "bad",
        )
    ]
    if level and why:
        head.append(Note(Text(f"Not more, because {why}.", f"未达到更高级别:{why}。")))
    head += _declared(header)
    head.append(
        Table(
            [_SAID[r] for r in RESULTS],
            [[Cell(tally[r], _KIND[r] if tally[r] else "") for r in RESULTS]],
            range(len(RESULTS)),
        )
    )
    head.append(Facts(_facts(header, seconds)))
    sections = [
        Section("", head),
        Section(Text(f"Failures ({len(bad)})", f"失败({len(bad)})"), _failures(bad), folded=False),
    ]
    fallen = _fallen(lines)
    if fallen:
        sections.append(
            Section(
                Text("Fell back to the host", "回退到主机"),
                [
                    Note(
                        Text(
                            "The device has no kernel for these calls; the host computed them. They count as not offered.",
                            "设备没有这些算子的内核,由主机计算;计为不支持。",
                        ),
                        "warn",
                    ),
                    Table([Text("operator", "算子"), Text("calls", "次数")], fallen, (1,)),
                ],
            )
        )
    if header["suite"] == "hal":
        sections += [
            Section(Text("Checks", "检查"), [_checks(lines)]),
            Section(Text("By subject", "按主题"), [_by(lines, "op", Text("subject", "主题"))]),
            Section(Text("By level", "按级别"), [_by(lines, "level", Text("level", "级别"))]),
        ]
    else:
        sections += _of_operators(lines)
    sections.append(Section(Text("Not offered and expected failures", "不支持与预期失败"), [_others(lines)], folded=True))
    return render(
        Text(f"haian conformance: {header['device']}", f"haian 一致性测试:{header['device']}"),
        sections,
        Text(
            f"{len(lines)} cases, suite {header['suite']} {header['suite_version']}, {header['started']}",
            f"{len(lines)} 个用例,套件 {header['suite']} {header['suite_version']},{header['started']}",
        ),
    )


def _of_operators(lines: Sequence[dict[str, Any]]) -> list[Section]:
    return [
        Section(Text("Operators", "算子"), [_by(lines, "op", Text("operator", "算子"))]),
        Section(Text("Error classes", "误差类别"), [_by_class(lines)]),
        Section(Text("Element types", "数据类型"), [_by(lines, "dtype", Text("element type", "数据类型"))]),
        Section(Text("Closest passes", "最接近上限的通过"), [_closest(lines)], folded=True),
    ]


def _checks(lines: Sequence[dict[str, Any]]) -> Table:
    """One row a check of the HAL suite, its result without and with validation side by side."""
    from .hal_checks.check import load_checks

    titles = {c.id(mode): c.title for c in load_checks().values() for mode in c.modes}
    rows: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        rows[line["id"].rpartition("/")[0]][line["dtype"]] = line

    def cell(line: dict[str, Any] | None) -> Cell:
        return Cell(_SAID[line["result"]], _KIND[line["result"]]) if line else Cell("-", "")

    return Table(
        [Text("check", "检查"), Text("what", "内容"), Text("kind", "类别"), Text("level", "级别"), Text("bare", "无校验层"), Text("validated", "有校验层"),
         Text("ms", "毫秒")],
        [[k.removeprefix("hal/"), titles.get(next(iter(r.values()))["id"], ""), next(iter(r.values()))["kind"], next(iter(r.values()))["level"] or "-",
          cell(r.get("off")), cell(r.get("on")), f"{max(x['ns'] for x in r.values()) * 1e-6:.1f}"] for k, r in rows.items()],
        (6,),
        True,
    )  # fmt: skip


def _declared(header: dict[str, Any]) -> list[object]:
    """What the vendor changed, on top."""
    found: list[object] = []
    said = f"{header.get('model')} {header.get('vendor')}"
    stand_in = header.get("stand_in") or (header.get("extra") or {}).get("stand-in") or ("its model says so" if "stand-in" in said else "")
    if stand_in:
        found.append(
            Note(
                Text(
                    f"A stand-in ({stand_in}), not the vendor's hardware: passes prove calling conventions.",
                    f"替代运行库({stand_in}),不是厂商硬件:通过只说明调用约定正确。",
                ),
                "bad",
            )
        )
    if header.get("unconfirmed"):
        found.append(Note(Text("Taken as true, in no public source of the vendor's:", "厂商公开资料未证实的前提:"), "warn"))
        found.append(Table([Text("subject", "主题"), Text("what", "内容")], [[k, v] for k, v in header["unconfirmed"].items()]))
    if header.get("reduced_matmul"):
        found.append(
            Note(
                Text(
                    f"Reduced precision declared: float32 products are rounded to {header['reduced_matmul']} first.",
                    f"声明了降低精度:float32 乘积先舍入为 {header['reduced_matmul']}。",
                ),
                "warn",
            )
        )
    if header.get("flushes_subnormals"):
        found.append(Note(Text("Declared: subnormal numbers are flushed to zero.", "声明:次正规数被置零。"), "warn"))
    if header.get("claims"):
        found.append(Note(Text("Claims that no check proves, or that excuse from some:", "未经检查的声明,或免除部分检查的声明:"), "warn"))
        found.append(Table([Text("claim", "声明"), Text("what", "内容")], [[r["claim"], r["what"]] for r in header["claims"]]))
    if header["device"].startswith("sim") and header["suite"] == "ops":
        found.append(
            Note(
                Text(
                    "A simulated device: passes are of TTIR semantics, not the binary.",
                    "模拟设备:结果针对 TTIR 语义,而非二进制代码。",
                ),
                "warn",
            )
        )
    if header["allowances"]:
        found.append(Note(Text("The vendor changed the suite:", "厂商对套件的改动:"), "warn"))
        found.append(
            Table(
                [Text("kind", "类别"), Text("cases", "用例"), Text("what", "内容")],
                [[r["kind"], r["cases"], r["what"]] for r in header["allowances"]],
            )
        )
    else:
        found.append(
            Note(Text("No tolerance, skip or expected failure is declared.", "没有声明任何容差、跳过或预期失败。"))
        )
    return found


def _facts(header: dict[str, Any], seconds: float) -> list[tuple[object, object]]:
    pairs: list[tuple[object, object]] = [
        (Text("device", "设备"), f"{header['device']} ({header.get('model')})"),
        (Text("level asked", "请求级别"), header["level"]),
        (Text("suite", "套件"), f"{header['suite_version']} ({header['cases']})"),
        (Text("seed", "种子"), header["seed"]),
        (Text("host", "主机"), f"{header['host']}, Python {header['python']}, NumPy {header['numpy']}"),
        (Text("time", "用时"), f"{seconds:.1f} s"),
    ]
    if header["suite"] == "hal":
        pairs[1:1] = [
            (Text("driver", "驱动"), f"{header.get('driver')} {header.get('driver_version')}, {header.get('vendor')}"),
            (Text("adapter file", "适配器文件"), header.get("adapter_path") or "Python"),
            *([(Text("vendor's library", "厂商库"), header["library"])] if header.get("library") else ()),
            (Text("groups offered", "提供的功能组"), ", ".join(header.get("groups", ())) or "-"),
            (Text("asynchronous", "异步"), Text("yes", "是") if header.get("async") else Text("no", "否")),
            (Text("validation", "校验层"), ", ".join(header["validation"])),
        ]
    else:
        pairs[1:1] = [
            (Text("compiler", "编译器"), header["compiler"]),
            (Text("image format", "镜像格式"), header.get("image_format") or "-"),
        ]
    if header["ops"] or header["shard"] != [1, 1]:
        pairs.append(
            (
                Text("part", "部分"),
                f"{', '.join(header['ops']) or '*'}; shard {header['shard'][0]}/{header['shard'][1]}",
            )
        )
    return pairs + [(k, v) for k, v in (header.get("extra") or {}).items()]


def _failures(bad: Sequence[dict[str, Any]]) -> list[object]:
    if not bad:
        return [Note(Text("None.", "无。"), "good")]
    return [
        Note(
            Text(
                "Rerun one with: haian conformance run --device ... --case ID",
                "重跑单个用例:haian conformance run --device ... --case ID",
            )
        ),
        Table(
            [
                Text("case", "用例"),
                Text("result", "结果"),
                Text("error / budget", "误差/上限"),
                Text("message", "信息"),
            ],
            [[line["id"], Cell(_SAID[line["result"]], "bad"), _number(line["worst"]), line["message"]] for line in bad],
            (2,),
            True,
        ),
    ]


def _number(value: float) -> Cell:
    return Cell("-" if value != value or value == float("inf") else f"{value:.3g}", "", min(value, 1e300))


def _fallen(lines: Sequence[dict[str, Any]]) -> list[list[object]]:
    fallen: Counter[str] = Counter()
    for line in lines:
        fallen[line["op"]] += line["fallbacks"]
    return [[k, v] for k, v in fallen.most_common() if v]


def _by(lines: Sequence[dict[str, Any]], key: str, name: Text) -> Table:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line[key]].append(line)
    rows = []
    for group in sorted(groups, key=lambda g: (-sum(x["result"] in BAD for x in groups[g]), g)):
        tally = Counter(x["result"] for x in groups[group])
        worst = max((x["worst"] for x in groups[group] if x["result"] == "pass"), default=0.0)
        rows.append(
            [
                group,
                *(Cell(tally[r] or "", _KIND[r] if tally[r] else "", tally[r]) for r in RESULTS),
                _number(worst),
                f"{sum(x['ns'] for x in groups[group]) * 1e-9:.2f}",
            ]
        )
    columns = [name, *(_SAID[r] for r in RESULTS), Text("worst pass", "最差通过"), Text("seconds", "秒")]
    return Table(columns, rows, range(1, len(columns)), len(rows) > 12)


def _by_class(lines: Sequence[dict[str, Any]]) -> Table:
    letters = [
        {
            **line,
            "class": f"{OPS[line['op']].budget.letter} ({type(OPS[line['op']].budget).__name__})"
            if line["op"] in OPS
            else "?",
        }
        for line in lines
    ]
    return _by(letters, "class", Text("class", "类别"))


def _closest(lines: Sequence[dict[str, Any]]) -> Table:
    near = sorted((x for x in lines if x["result"] == "pass"), key=lambda x: -x["worst"])[:40]
    return Table(
        [Text("case", "用例"), Text("error / budget", "误差/上限"), Text("test", "检验")],
        [[x["id"], _number(x["worst"]), x["metric"]] for x in near],
        (1,),
    )


def _others(lines: Sequence[dict[str, Any]]) -> Table:
    return Table(
        [Text("case", "用例"), Text("result", "结果"), Text("reason", "原因")],
        [
            [x["id"], Cell(_SAID[x["result"]], "warn"), x["message"]]
            for x in lines
            if x["result"] in ("not-offered", "xfail")
        ],
        (),
        True,
    )


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


def _rules(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(r, dict) and {"kind", "cases", "what"} <= r.keys() for r in value)


def _claims(value: object) -> bool:
    """Of the HAL suite; reports of operators have none."""
    return value is None or isinstance(value, list) and all(isinstance(r, dict) and {"claim", "what"} <= r.keys() for r in value)


# What verify and diff read of each kind of line.
_FIELDS: dict[str, dict[str, Callable[[object], bool]]] = {
    "header": {"suite": _is(str), "device": _is(str), "started": _is(str), "seed": _is(int), "allowances": _rules, "claims": _claims},
    "line": {**dict.fromkeys(("id", "op", "dtype", "kind", "level", "message"), _is(str)), "result": RESULTS.__contains__},
    "footer": {"level_granted": _is(str), "counts": _is(dict)},
}


# ---- reading back -----------------------------------------------------------------------------------------------------------
def read(report: str | os.PathLike[str]) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """(header, lines, footer) of a report: its folder, its report.jsonl, or a file of that form.

    Raises:
        ArgumentError: no such file, or not a report.
    """
    path = Path(report)
    path = path / "report.jsonl" if path.is_dir() else path
    needs = "needs the folder or the report.jsonl of a run"
    try:
        rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]
    except OSError as error:
        raise ArgumentError(f"report {path}: {error.strerror}; {needs}") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise ArgumentError(f"report {path}: {error}; {needs}") from error
    kinds: dict[str, list[dict[str, Any]]] = {"header": [], "line": [], "footer": []}
    for n, row in enumerate(rows, 1):
        kind = row.get("kind") if isinstance(row, dict) else None
        kind = kind if kind in ("header", "footer") else "line"
        wrong = [f for f, fits in _FIELDS[kind].items() if not isinstance(row, dict) or not fits(row.get(f))]
        if wrong:
            raise ArgumentError(f"report {path}: line {n} has no {wrong[0]!r} as a {kind} has; {needs}")
        kinds[kind].append(row)
    if not kinds["header"]:
        raise ArgumentError(f"report {path}: has no header line; {needs}")
    if len(kinds["header"]) > 1 or len(kinds["footer"]) > 1 or rows[0] is not kinds["header"][0] or kinds["footer"] and rows[-1] is not kinds["footer"][0]:
        raise ArgumentError(f"report {path}: {len(kinds['header'])} header and {len(kinds['footer'])} footer lines; {needs}, which has one header as its "
                            "first line and, when it is finished, one footer as its last")
    return kinds["header"][0], kinds["line"], kinds["footer"][0] if kinds["footer"] else {}


def verify(report: str | os.PathLike[str]) -> tuple[str, bool]:
    """(text, holds): the level recomputed from the lines, against what the report claims.

    A level is recomputed only by the suite that made the report, and from its own list of cases: what a line says of its
    case (operator, dtype, kind, level) must be what the suite says, and a line of no case counts for nothing.
    """
    header, lines, footer = read(report)
    problems = []
    if header["suite"] == "hal":
        from .hal_runner import HAL_VERSION, hal_cases, hal_counts, hal_digest

        version, names, expected = HAL_VERSION, hal_digest(), hal_counts()
        known: dict[str, dict[str, Any]] = {
            c.id: {"op": c.op, "dtype": c.dtype, "kind": c.kind, "level": c.level, "exempt": c.check.exempt} for c in hal_cases()
        }
    else:
        version, names, expected = SUITE_VERSION, digest(), counts()
        known = {
            c.id: {"op": c.op, "dtype": c.dtype, "kind": c.kind, "level": c.level, "preferred": c.preferred}
            for c in cases(LEVELS[-1])
        }
    if (header.get("suite_version"), header.get("cases")) != (version, names):
        problems.append(
            f"made by suite {header.get('suite_version')} ({header.get('cases')}), this is {version} ({names}); "
            "verify it with that version"
        )
    if header.get("expected") != expected:
        problems.append(f"its header expects {header.get('expected')} cases, the suite has {expected}")
    if footer and footer["counts"] != dict(Counter(line["result"] for line in lines)):
        problems.append("its counts do not match its lines")
    strange = [line["id"] for line in lines if line["id"] not in known]
    if strange:
        problems.append(f"{len(strange)} cases are not of this suite: {', '.join(strange[:3])}")
    lines = [line for line in lines if line["id"] in known]
    for line in lines:
        # a line may leave out that it is exempt or preferred, never claim more than its case has
        said = {k: line.get(k, "") for k in known[line["id"]]}
        other = [k for k, v in known[line["id"]].items() if said[k] != v and not (k == "exempt" and not said[k])]
        if other:
            problems.append(f"{line['id']} says {other[0]} {said[other[0]]!r}, in this suite it is {known[line['id']][other[0]]!r}")
            break
    repeated = {k: n for k, n in Counter(line["id"] for line in lines).items() if n > 1}
    if repeated:
        name, times = next(iter(repeated.items()))
        problems.append(f"{len(repeated)} cases stand there more than once: {name} {times} times")
    problems += audit(header, lines, footer)
    if not footer:
        problems.append("the run did not finish: no footer line; continue it with --resume")
    level, why = _grant(header, lines, expected)
    claimed = footer.get("level_granted", "")
    if footer and claimed != level:
        problems.append(f"claims level {claimed or 'none'}, its lines give {level or 'none'} ({why})")
    elif footer and footer.get("why_not_more", why) != why:
        problems.append(f"says {footer['why_not_more']!r} keeps it from more, its lines say {why!r}")
    head = f"{header['device']}: level {level or 'none'}{f' ({why})' if why else ''}, {len(lines)} cases, seed {header['seed']}"
    changed = [f"  {r['kind']}: {r['cases']}: {r['what']}" for r in header["allowances"]]
    changed += [f"  claim: {r['claim']}: {r['what']}" for r in header.get("claims") or ()]
    return "\n".join([head, *changed, *(f"does not hold: {p}" for p in problems)]), not problems


def diff(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> tuple[str, bool]:
    """(text, worse): results that changed, those that got worse first; what the vendor changed too.

    A case that passed and is no longer there counts as worse: a shorter run proves less.
    """
    (a, before, _), (b, after, _) = read(old), read(new)
    was, now = {x["id"]: x for x in before}, {x["id"]: x for x in after}
    changed = [(k, was[k], now[k]) for k in was.keys() & now.keys() if was[k]["result"] != now[k]["result"]]
    worse = sorted(k for k, x, y in changed if _BETTER[y["result"]] < _BETTER[x["result"]])
    better = sorted(k for k, x, y in changed if _BETTER[y["result"]] > _BETTER[x["result"]])
    gone, added = sorted(was.keys() - now.keys()), sorted(now.keys() - was.keys())
    lost = [k for k in gone if was[k]["result"] == "pass"]
    rules = {(r["kind"], r["cases"], r["what"]) for r in b["allowances"]} - {
        (r["kind"], r["cases"], r["what"]) for r in a["allowances"]
    }
    text = [
        f"{a['device']} ({a['started']}) -> {b['device']} ({b['started']}): {len(worse)} worse, {len(better)} better, "
        f"{len(added)} new, {len(gone)} gone" + (f", {len(lost)} of them passed before" if lost else "")
    ]
    text += [f"worse   {k}: {was[k]['result']} -> {now[k]['result']}: {now[k]['message']}" for k in worse]
    text += [f"declared {kind}: {cases}: {what}" for kind, cases, what in sorted(rules)]
    text += [f"gone    {k} ({was[k]['result']})" for k in gone[:20]] + (
        [f"... {len(gone) - 20} more gone"] if len(gone) > 20 else []
    )
    text += [f"better  {k}: {was[k]['result']} -> {now[k]['result']}" for k in better]
    bad_new = [k for k in added if now[k]["result"] in BAD]
    text += [f"new     {k}: {now[k]['result']}: {now[k]['message']}" for k in bad_new]
    return "\n".join(text), bool(worse or lost or bad_new or rules)
