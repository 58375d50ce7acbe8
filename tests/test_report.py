"""conformance/report.py and reporting/: what a report holds, and that it cannot be talked up."""
from __future__ import annotations

import json
import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from haian.conformance import allowances, report, witness
from haian.conformance.allowances import Allowances, Rule
from haian.conformance.cases import cases, counts
from haian.conformance.runner import run
from haian.hal.errors import ArgumentError, EnvironmentMissing
from haian.reporting import svg
from haian.reporting.page import Cell, Facts, Figure, Note, Section, Table, Text, lacking, render, unwritable


def with_a_failure():
    target = witness.numpy_target()
    right = target.table["softmax"]

    def wrong(tensors, attrs):
        y = right(tensors, attrs)
        return (np.asarray(y[0] * y[0].dtype.type(1.5)),) if tensors[0].shape == (7, 13) else y

    target.table["softmax"] = wrong
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    rules = Allowances(not_offered=(Rule("topk/f64/*", "no double precision units"),))  # whatever the host's own file says
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allowances, "load", lambda device: rules)
        run(ops="softmax", make=with_a_failure, arguments=(), quiet=True, report=path)
    return path


class Tags(HTMLParser):
    """Counts tags and checks that they close."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "input", "br", "circle", "line", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("circle", "line", "rect", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_self_contained_and_in_two_languages(folder):
    html = (folder / "index.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert not re.search(r"(src|href)\s*=|@import|url\(", html)
    text = " ".join(tags.text)
    assert "softmax/f32/prime" in text and "No level granted" in text and "未达到任何级别" in text and "失败" in text
    assert html.index("The vendor changed the suite") < html.index("Failures (") < html.index(">Operators<")


def test_junit_counts_what_the_lines_say(folder):
    header, lines, footer = report.read(folder)
    suite = ElementTree.parse(folder / "report.xml").getroot()[0]
    failed = [x for x in lines if x["result"] == "fail"]
    assert failed and int(suite.get("failures")) == len(failed) == len(suite.findall("testcase/failure"))
    assert int(suite.get("tests")) == len(lines) == len(suite.findall("testcase")) == footer["counts"]["pass"] + len(failed)
    assert header["seed"] == 0 and header["suite_version"] and header["device"] == "cpu:0"


def test_control_characters_do_not_break_the_xml(folder, tmp_path):
    header, lines, _ = report.read(folder)
    report.write(tmp_path, header, [{**lines[0], "result": "fail", "message": "a\x00b\x1b[31m < & \" ]]>"}], 0.1)
    assert ElementTree.parse(tmp_path / "report.xml").getroot()[0].find("testcase/failure") is not None
    assert "\x1b[31m &lt;" in (tmp_path / "index.html").read_text(encoding="utf-8")


# ---- verify --------------------------------------------------------------------------------------------------------------------
def forged(tmp_path, header, lines, footer):
    path = tmp_path / "report.jsonl"
    path.write_text("\n".join(map(json.dumps, (header, *lines, *([footer] if footer else [])))))
    return path


def passing(header, level):
    order = [c for c in cases(level)]
    lines = [{"id": c.id, "op": c.op, "dtype": c.dtype, "kind": c.kind, "level": c.level, "preferred": c.preferred, "result": "pass",
              "message": "", "worst": 0.0, "metric": "", "ns": 1, "fallbacks": 0} for c in order]
    return lines, {"kind": "footer", "level_granted": level, "counts": {"pass": len(lines)}}


def test_verify_recomputes_the_level(folder, tmp_path):
    header, _, _ = report.read(folder)
    assert report.verify(folder)[1] and "level none" in report.verify(folder)[0]
    lines, footer = passing(header, "inference")
    header = {**header, "level": "inference", "ops": [], "total": len(lines), "allowances": []}
    assert report.verify(forged(tmp_path, header, lines, footer)) == (report.verify(tmp_path / "report.jsonl")[0], True)
    assert "level inference" in report.verify(tmp_path / "report.jsonl")[0]
    # claims more than its lines give
    assert not report.verify(forged(tmp_path, header, lines, {**footer, "level_granted": "full"}))[1]
    # one case missing, one failed, one twice, no footer, another suite
    cut = [x for x in lines if x["id"] != "softmax/f32/prime"]
    for wrong_lines, wrong_footer in ((cut, {**footer, "counts": {"pass": len(cut)}}), ([{**lines[0], "result": "fail"}, *lines[1:]], footer),
                                      ([*lines, lines[0]], {**footer, "counts": {"pass": len(lines) + 1}}), (lines, None)):
        text, holds = report.verify(forged(tmp_path, header, wrong_lines, wrong_footer))
        assert not holds and "does not hold" in text
    assert not report.verify(forged(tmp_path, {**header, "cases": "0" * 16}, lines, footer))[1]
    # ids the suite does not have, cases under another level or without a weight, a header that expects less
    known = {c.id: c for c in cases("full")}
    at = next(i for i, x in enumerate(lines) if x["preferred"])
    for change in ({"id": "made/up/case"}, {"level": "full"}, {"preferred": False, "result": "not-offered"}, {"op": "exp"}, {"kind": "probe"}):
        assert lines[at]["id"] in known
        wrong_lines = [*lines[:at], {**lines[at], **change}, *lines[at + 1:]]
        counted = {**footer, "counts": dict(Counter(x["result"] for x in wrong_lines))}
        assert not report.verify(forged(tmp_path, header, wrong_lines, counted))[1], change
    for wrong_header in ({k: v for k, v in header.items() if k != "expected"}, {**header, "expected": {"core": 1}},
                         {k: v for k, v in header.items() if k != "cases"}):
        assert not report.verify(forged(tmp_path, wrong_header, lines, footer))[1]
    assert sum(counts().values()) > len(lines)


def test_a_report_that_contradicts_itself(folder, tmp_path):
    header, lines, footer = report.read(folder)

    def said(changes, change=lambda line: line, end=None):
        rows = [change(dict(x)) for x in lines]
        end = {**footer, "counts": dict(Counter(x["result"] for x in rows)), **(end or {})}
        return report.verify(forged(tmp_path, {**header, **changes}, rows, end))

    assert said({})[1]
    for changes, words in (({"total": 3}, "says 3 cases, it has"), ({"total": None}, "says None cases"), ({"ops": []}, "rows are missing"), ({"ops": ["exp"]}, "rows too many"),
                           ({"ops": ["nothing*"]}, "selection means nothing"), ({"shard": [1, 2]}, "rows too many"), ({"shard": [2, 1]}, "no selection"),
                           ({"level": "llm"}, "rows are missing"), ({"level": "L0"}, "selection means nothing"), ({"ops": "softmax"}, "no selection")):
        text, holds = said(changes)
        assert not holds and words in text, (changes, text)
    for ns in (-1, None, "1", True, float("nan"), float("inf")):
        text, holds = said({}, lambda line, ns=ns: line | {"ns": ns})
        assert not holds and "ns" in text, ns
    assert "took any time" in said({}, lambda line: line | {"ns": 0})[0]
    assert "seconds" in said({}, end={"seconds": -1})[0]
    assert "keeps it from more" in said({}, end={"why_not_more": "no reason"})[0]
    assert "no expected failure is declared" in said({}, lambda line: line | {"result": "xfail"})[0]
    assert "a rule that the header does not have" in said({}, lambda line: line | ({"result": "not-offered", "message": "declared: we like it so"}))[0]
    rule = {"kind": "not offered", "cases": "softmax/f32/*", "what": "none here"}
    assert "but declared as not offered" in said({"allowances": [rule]})[0]
    single = next(x for x in lines if x["result"] == "pass")
    alone = {**header, "ops": [single["id"]], "total": 1}
    assert "rows" not in report.verify(forged(tmp_path, alone, [single], {**footer, "counts": {"pass": 1}}))[0]


def test_one_header_first_and_one_footer_last(folder, tmp_path):
    header, lines, footer = report.read(folder)
    for rows in ([header, *lines, footer, {**footer, "level_granted": "full"}], [{**header, "device": "other:0"}, header, *lines, footer],
                 [*lines, header, footer], [header, footer, *lines]):
        (tmp_path / "report.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for read in (report.verify, lambda path: report.diff(folder, path)):
            with pytest.raises(ArgumentError, match="one header as its first line and, when it is finished, one footer"):
                read(tmp_path)


# ---- verify: the HAL suite ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def of_a_driver(tmp_path_factory):
    path = tmp_path_factory.mktemp("hal")
    run("sim:0", suite="hal", ops="3,6,14,22,33,40", quiet=True, report=path)
    return path


def test_a_hal_report_that_contradicts_itself(of_a_driver, tmp_path):
    header, lines, footer = report.read(of_a_driver)
    assert report.verify(of_a_driver)[1], report.verify(of_a_driver)
    assert {x["result"] for x in lines} == {"pass", "not-offered"}

    def said(changes, change=lambda line: None):
        rows = [{**x, **(change(x) or {})} for x in lines]
        return report.verify(forged(tmp_path, {**header, **changes}, rows, {**footer, "counts": dict(Counter(x["result"] for x in rows))}))

    left_out = {**header["extra"], "not offered, so not checked": "fill"}
    without_fill = [g for g in header["groups"] if g != "fill"]
    for changes, words in (({"level": "L0", "ops": ["1"], "total": 3}, "says 3 cases"), ({"level": "L0"}, "selection means nothing"), ({"level": "L0", "ops": ["3", "6"]}, "rows too many"),
                           ({"ops": []}, "rows are missing"),
                           ({"validation": ["off"]}, "says validation ['off']"), ({"groups": []}, "not offered, so not checked"), ({"groups": ["fill", "?"]}, "no list of groups"),
                           ({"groups": None}, "no list of groups"), ({"groups": without_fill, "extra": left_out}, "needs fill, which the header says is not there"),
                           ({"devices": 0}, "says 0 devices"), ({"devices": 999}, "says 999 devices")):
        text, holds = said(changes)
        assert not holds and words in text, (changes, text)

    def not_offered(message):
        return lambda x: {"result": "not-offered", "exempt": True, "message": message} if "/33_" in x["id"] else None

    for message, words in (("", "no reason"), ("no", "no check of the suite says that"), ("the driver has no fill", "the header's groups have fill"),
                           ("1 device; needs two", "says 2 devices")):
        text, holds = said({"devices": 2} if "device;" in message else {}, not_offered(message))
        assert not holds and words in text, (message, text)
    assert "took any time" in said({}, lambda x: {"ns": 0})[0]
    assert "is a pass that says 'broken'" in said({}, lambda x: {"message": "broken"} if x["result"] == "pass" else None)[0]


def test_files_that_are_no_report(folder, tmp_path):
    header, lines, footer = report.read(folder)
    broken = [[header, [1, 2]], [[1, 2], header], [header, 3], [header, {k: v for k, v in lines[0].items() if k != "result"}],
              [header, {**lines[0], "result": "fine"}], [header, {**lines[0], "id": 3}], [{**header, "allowances": [1]}], [header, {"kind": "footer"}]]
    for text in ("", "nonsense", "\xff", json.dumps({"id": "softmax/f32/prime"}), *("\n".join(map(json.dumps, rows)) for rows in broken)):
        (tmp_path / "report.jsonl").write_text(text, encoding="latin-1")
        for read in (report.verify, lambda path: report.diff(folder, path)):
            with pytest.raises(ArgumentError, match="needs the folder or the report.jsonl") as info:
                read(tmp_path)
            assert "\n" not in str(info.value)
    with pytest.raises(ArgumentError):
        report.read(tmp_path / "nowhere")


# ---- diff ----------------------------------------------------------------------------------------------------------------------
def test_diff_says_what_got_worse(folder, tmp_path):
    header, lines, footer = report.read(folder)
    assert report.diff(folder, folder)[1] is False
    good = [{**x, "result": "pass"} for x in lines]
    path = forged(tmp_path, header, good, footer)
    text, worse = report.diff(path, folder)
    assert worse and "worse   softmax/f32/prime: pass -> fail" in text
    text, worse = report.diff(folder, path)
    assert not worse and "better  softmax/f32/prime: fail -> pass" in text
    rule = {"kind": "tolerance", "cases": "softmax/*", "what": "x; budgets times 9"}
    assert report.diff(path, forged_in(tmp_path / "b", {**header, "allowances": [rule]}, good, footer))[1]
    text, worse = report.diff(path, forged_in(tmp_path / "c", header, good[2:], footer))
    assert worse and "2 gone, 2 of them passed before" in text
    failed = [{**x, "result": "fail"} for x in good]
    assert report.diff(forged_in(tmp_path / "d", header, failed, footer), forged_in(tmp_path / "e", header, failed[1:], footer))[1] is False


def forged_in(folder, *rows):
    folder.mkdir()
    return forged(folder, *rows)


# ---- before a run ----------------------------------------------------------------------------------------------------------------
def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, monkeypatch):
    def must_not_run(*args, **kwargs):
        raise AssertionError("a case ran")

    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "inside", "/proc/nope"):
        assert "name a folder that you may write to" in unwritable(wrong)
        with pytest.raises(ArgumentError, match="cannot hold a report"):
            run(ops="softmax", make=must_not_run, arguments=(), quiet=True, report=wrong)
    assert not unwritable(tmp_path / "new" / "one") and (tmp_path / "new" / "one").is_dir() and not list((tmp_path / "new" / "one").iterdir())
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "jinja2" in lacking()
    with pytest.raises(EnvironmentMissing, match=r"jinja2.*haian\[conformance\]"):
        run(ops="softmax", make=must_not_run, arguments=(), quiet=True, report=tmp_path / "never")
    assert not (tmp_path / "never").exists()


# ---- reporting ------------------------------------------------------------------------------------------------------------------
def test_page_escapes_and_closes():
    blocks = [Note(Text("<b>one</b>", "一"), "warn"), Facts([("k", "<v>")]), Figure(svg.bars([("a<b", 2.0)]), "cap"),
              Table(["name", Text("value", "值")], [["<x>", Cell(1.5, "bad", 1.5)], ["y", 2]], (1,), True)]
    html = render(Text("Title & more", "标题"), [Section("one", blocks), Section(Text("two", "二"), [Note("plain")], folded=True)])
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert "&lt;b&gt;one" in html and "&lt;x&gt;" in html and 'data-order="1.5"' in html and "<svg" in html and "<details>" in html


@pytest.mark.parametrize("text", [svg.bars([("slow & low", 0.5), ("fast", 4.0), ("none", math.nan), ("zero", 0.0)]), svg.bars([]),
                                  svg.roofline([("add", 0.08, 3.0), ("mm <1024>", 170.0, 150.0), ("bad", 0.0, 1.0)], 20.0, 200.0),
                                  svg.history([("add", [1.0, math.nan, 2.0]), ("mm", [])], ["a", "b", "c"])])
def test_plots_are_xml(text):
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and "nan" not in text.lower().replace("none", "")


def test_bars_lie_on_the_side_of_the_baseline():
    root = ElementTree.fromstring(svg.bars([("slow", 0.5), ("fast", 2.0)]))
    slow, fast = root.findall("{http://www.w3.org/2000/svg}rect")
    middle = float(fast.get("x"))
    assert float(slow.get("x")) + float(slow.get("width")) == pytest.approx(middle, abs=0.2)
    assert float(slow.get("width")) == pytest.approx(float(fast.get("width")), abs=0.2)
