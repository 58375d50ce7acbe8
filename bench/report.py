"""What a run leaves behind: bench.json (pytest-benchmark's format), one HTML page, a line of history; comparing two.

Not here: measuring (runner.py), the look of a page (reporting).
"""
from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..hal.errors import ArgumentError, EnvironmentMissing
from .roofline import Ceilings
from .runner import Row, Summary, geometric_mean
from .timer import Timing

__all__ = ["as_json", "compare", "folder_of", "page", "read", "text", "write"]

FORMAT = "5.0.0"  # of pytest-benchmark, whose reader looks at it
LOSS = 0.95  # below this share of the best peer's speed a row counts as lost; the rest is noise
LOADED = 0.5  # a load average above this before the run deserves a warning


def duration(ns: float) -> str:
    """Three digits with a unit: 12.3 ns, 4.56 us, 789 us, 1.23 ms."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 1000 * size else f"{ns / size:.0f} {unit}"
    return f"{ns:.3g} ns"


# ---- text -----------------------------------------------------------------------------------------------------------
def text(summary: Summary) -> str:
    """The table for a terminal, losses first, then the geometric means."""
    names = list(dict.fromkeys(n for r in summary.rows for n in (*r.peers, *r.missing)))
    head = ["operator", "case", "dtype", "thr", "haian", "rate", "roof", "spread", *[f"vs {n}" for n in names]]
    lines = [head]
    for r in summary.timed:
        pct = r.roofline_pct
        lines.append([r.case.record.name, r.case.sample.name, r.case.dtype.name, str(r.threads), duration(r.ns), _rate(r),
                      "-" if pct is None else f"{pct:.0f} %", f"{100 * r.timings['haian'].spread:.0f} %", *[_versus(r, n) for n in names]])
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    out = ["  ".join(cell.ljust(w) if k < 3 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths))).rstrip() for line in lines]
    out += [f"{r.case.id} ({r.threads} threads): no time: {r.error}" for r in summary.failed]
    for threads in sorted({r.threads for r in summary.timed}):
        rows = [r for r in summary.timed if r.threads == threads]
        said = ", ".join(f"{v:.2f}x {n}" for n, v in summary.means(rows).items() if math.isfinite(v))
        lost = sum(r.worst < LOSS for r in rows)
        out.append(f"geometric mean, {threads} thread{'s' * (threads > 1)}: {said or 'no peer'}; {lost} of {len(rows)} rows below {LOSS}x the best peer")
    out += [f"peer {name}: skipped, {why}" for name, why in summary.absent.items()]
    if summary.facts.get("load_before", 0) > LOADED:
        out.append(f"the machine was busy: load average {summary.facts['load_before']} before the run, {summary.facts.get('load_after')} after")
    out.append("* makes its result anew; compared with haian doing the same.   ! its result is not the reference's; not compared.")
    if summary.page:
        out.append(f"report: {summary.page}")
    return "\n".join(out)


def _rate(r: Row) -> str:
    compute = r.case.cost.flops > 8 * r.case.cost.bytes
    return f"{r.gflops:.1f} GFLOP/s" if compute else f"{r.gbps:.1f} GB/s"


def _versus(r: Row, name: str) -> str:
    if name in r.differs:
        return "!"
    return f"{r.ratio[name]:.2f}x{'*' * (name in r.allocating)}" if name in r.ratio else "-"


# ---- JSON -----------------------------------------------------------------------------------------------------------
def _stats(t: Timing) -> dict[str, Any]:
    """pytest-benchmark's statistics, in seconds."""
    s = sorted(v * 1e-9 for v in t.samples)
    q1, median, q3 = statistics.quantiles(s, n=4, method="inclusive") if len(s) > 1 else (s[0],) * 3
    mean, iqr = statistics.fmean(s), q3 - q1
    low, high = q1 - 1.5 * iqr, q3 + 1.5 * iqr
    deviation = statistics.stdev(s) if len(s) > 1 else 0.0
    far = sum(not low <= v <= high for v in s)
    odd = sum(abs(v - mean) > deviation for v in s)
    return {"min": s[0], "max": s[-1], "mean": mean, "stddev": deviation, "rounds": len(s), "median": median, "iqr": iqr, "q1": q1, "q3": q3,
            "iqr_outliers": far, "stddev_outliers": odd, "outliers": f"{odd};{far}", "ld15iqr": min(v for v in s if v >= low),
            "hd15iqr": max(v for v in s if v <= high), "ops": 1 / mean if mean else 0.0, "total": sum(s), "iterations": t.inner}


def as_json(summary: Summary) -> dict[str, Any]:
    """The whole run in pytest-benchmark's format; what is ours stands in ``extra_info`` of each row and in ``haian``."""
    benchmarks = []
    for r in summary.timed:
        t = r.timings["haian"]
        label = f"{r.case.id}/{r.threads}"
        benchmarks.append({"group": r.case.record.family, "name": label, "fullname": f"haian.bench::{label}", "params": None, "param": label,
                           "extra_info": r.extra_info(), "options": {"disable_gc": True, "timer": "perf_counter_ns", "min_rounds": 3, "warmup": True},
                           "stats": _stats(t)})
    return {"machine_info": summary.facts, "commit_info": {"id": summary.facts["haian"], "dirty": False}, "benchmarks": benchmarks,
            "datetime": summary.facts["started"], "version": FORMAT,
            "haian": {"suite": summary.suite, "ceilings": {str(k): v.as_dict() for k, v in summary.ceilings.items()}, "absent": summary.absent,
                      "notes": summary.notes, "means": {k: round(v, 4) for k, v in summary.means().items() if math.isfinite(v)},
                      "failed": [{"op": r.case.record.name, "case": r.case.id, "threads": r.threads, "reason": r.error} for r in summary.failed]}}


def folder_of(report: str) -> Path | None:
    """The folder a report goes to, made and tried before anything is timed; None where none is wanted.

    Raises:
        ArgumentError: it cannot be written to.  EnvironmentMissing: what makes the page is not installed.
    """
    from ..reporting.page import lacking, unwritable

    if not report:
        return None
    if why := lacking():
        raise EnvironmentMissing(f"bench: {why}; install haian[bench]")
    if why := unwritable(report):
        raise ArgumentError(f"bench: {why}")
    return Path(report)


def write(folder: Path, summary: Summary) -> Path:
    """bench.json, index.html and one more line of history.jsonl; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    data = as_json(summary)
    (folder / "bench.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    history = folder / "history.jsonl"
    with history.open("a", encoding="utf-8") as f:
        f.write(json.dumps({"started": data["datetime"], "haian": data["machine_info"]["haian"], "device": data["machine_info"]["device"],
                            "suite": summary.suite, "means": data["haian"]["means"]}) + "\n")
    runs = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    target = folder / "index.html"
    target.write_text(page(summary, [r for r in runs if r["suite"] == summary.suite]), encoding="utf-8")
    return target


# What compare reads of a row, and what can be compared with it.
_ROW: dict[str, Any] = {"op": str, "case": str, "dtype": str, "threads": int, "roofline_pct": (int, float, type(None))}


def _is_row(b: Any) -> bool:
    info = b.get("extra_info") if isinstance(b, dict) else None
    stats = b.get("stats") if isinstance(b, dict) else None
    return isinstance(info, dict) and all(k in info and isinstance(info[k], kind) for k, kind in _ROW.items()) \
        and isinstance(stats, dict) and isinstance(stats.get("min"), (int, float)) and stats["min"] > 0


def read(path: Path) -> dict[str, Any]:
    """The bench.json of a report: its folder, or the file itself.

    Raises:
        ArgumentError: no such file, or not a report of this bench.
    """
    path = Path(path)
    path = path / "bench.json" if path.is_dir() else path
    needs = "pass the folder of `haian bench run --report`, or its bench.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as why:
        raise ArgumentError(f"bench: {path} is no bench report ({why.strerror}); {needs}") from why
    except ValueError as why:  # no JSON, or no UTF-8
        raise ArgumentError(f"bench: {path} is no bench report ({why}); {needs}") from why
    rows = data.get("benchmarks") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows or not all(map(_is_row, rows)) or not isinstance(data.get("machine_info"), dict) or "datetime" not in data:
        raise ArgumentError(f"bench: {path} holds no rows of haian's bench; {needs}")
    return data


# ---- comparing ------------------------------------------------------------------------------------------------------
def _keyed(data: dict[str, Any]) -> dict[tuple, dict[str, Any]]:
    rows = [b["extra_info"] | {"seconds": b["stats"]["min"]} for b in data["benchmarks"]]
    return {(r["op"], r["case"], r["dtype"], r["threads"]): r for r in rows}


def compare(a: Path, b: Path) -> str:
    """See haian.bench.compare."""
    first, second = read(a), read(b)
    left, right = _keyed(first), _keyed(second)
    both = [k for k in left if k in right]
    if not both:
        raise ArgumentError(f"bench: {a} and {b} have no row in common; run the same suite with the same threads")
    rows = sorted(both, key=lambda k: left[k]["seconds"] / right[k]["seconds"])
    lines = [["operator", "case", "dtype", "thr", "a", "b", "a/b", "roof a", "roof b"]]
    for k in rows:
        x, y = left[k], right[k]
        lines.append([*k[:3], str(k[3]), duration(x["seconds"] * 1e9), duration(y["seconds"] * 1e9), f"{x['seconds'] / y['seconds']:.2f}x",
                      *["-" if r["roofline_pct"] is None else f"{r['roofline_pct']:.0f} %" for r in (x, y)]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    out = [f"{n}: {d['machine_info'].get('device')}, {d['machine_info'].get('model')}, haian {d['machine_info'].get('haian')}, {d['datetime']}"
           for n, d in (("a", first), ("b", second))]
    out += ["  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip() for line in lines]
    mean = geometric_mean([left[k]["seconds"] / right[k]["seconds"] for k in both])
    out.append(f"geometric mean of a/b over {len(both)} rows: {mean:.3f}x (above 1: b is faster)")
    for name, here, there in (("a", left, right), ("b", right, left)):
        alone = [k for k in here if k not in there]
        if alone:
            out.append(f"only in {name}: {', '.join('/'.join(map(str, k)) for k in alone)}")
    return "\n".join(out)


# ---- the page -------------------------------------------------------------------------------------------------------
def page(summary: Summary, history: Sequence[dict[str, Any]] = ()) -> str:
    """The HTML page: summary, losses first, every operator, plots, facts."""
    from ..reporting.page import Facts, Figure, Note, Section, Text, render
    from ..reporting.svg import bars, roofline
    from ..reporting.svg import history as lines

    timed = summary.timed
    by_threads: dict[int, list[Row]] = defaultdict(list)
    for r in timed:
        by_threads[r.threads].append(r)
    sections = [Section(Text("Summary", "总结"), [*_warnings(summary), *(_mean_table(summary, by_threads),)]),
                Section(Text("Rows, losses first", "各行，落后者在前"), [_row_table(summary)])]
    figures: list[Any] = []
    for n, rows in sorted(by_threads.items()):
        label = f"{n} thread{'s' * (n > 1)}"
        ratios = [(f"{r.case.record.name} {r.case.sample.name} {r.case.dtype.name}", r.worst) for r in rows if math.isfinite(r.worst)]
        if ratios:
            figures.append(Figure(bars(ratios, title=f"best peer's time over haian's, {label}"),
                                  Text(f"Best peer's time over haian's, {label}: right of 1x haian is faster.", f"最快同类库用时与 haian 用时之比，{n} 线程：1x 右侧表示 haian 更快。")))
        if n in summary.ceilings:
            figures.append(_roofline_figure(rows, summary.ceilings[n], label, roofline, Figure, Text))
    if len(history) > 1:
        names = list(dict.fromkeys(k for h in history for k in h["means"]))
        series = [(k, [h["means"].get(k, math.nan) for h in history]) for k in names]
        figures.append(Figure(lines(series, [h["started"][5:16] for h in history]),
                              Text("Geometric mean of the ratios over the runs in this folder.", "本目录历次运行的几何平均。")))
    sections += [Section(Text("Plots", "图"), figures), Section(Text("Every operator", "全部算子"), [_operator_table(summary)]),
                 Section(Text("Machine, versions, ceilings", "机器、版本与上限"), [Facts(_fact_pairs(summary)), *_ceiling_tables(summary)]),
                 Section(Text("How it was measured", "测量方法"), [Note(t) for t in _METHOD])]
    facts = summary.facts
    return render(Text("haian benchmark", "haian 性能测试"), sections, f"{facts['device']}, {facts['model']}, suite {summary.suite}, {facts['started']}")


def _texts() -> list[Any]:
    from ..reporting.page import Text
    return [Text("All contestants run in one process on the same input arrays, in turn (A B C A B C ...), with the same number of threads; "
                 "the time is the minimum over rounds, the spread the interquartile range over the median.",
                 "所有参赛者在同一进程、同一输入上轮流运行（A B C A B C……），线程数相同；时间取各轮最小值，离散度为四分位距除以中位数。"),
            Text("Results go to memory given by out= on both sides. A peer marked * has no out=; it is compared with haian making its result too. "
                 "Every result is checked against the operator's reference on evenly spread elements before it is timed: haian has no time where it is wrong, a peer marked ! is not compared.",
                 "双方都写入 out= 给定的内存；带 * 的同类库没有 out=，与同样新建结果的 haian 比较。计时前每个结果都在均匀选取的元素上与算子的参考实现核对：haian 结果有误则没有时间，标 ! 的同类库不作比较。"),
            Text("Percent of the roofline: the longer of bytes over measured bandwidth (for that working set and share of writes) and arithmetic over "
                 "measured rate, divided by the time. Bandwidth and rate are the best of several bursts before and after the suite and of its own streaming rows and products, "
                 "whoever computed them, not a datasheet's. "
                 "Inputs larger than a million elements repeat a drawn block.",
                 "屋顶线百分比：按实测带宽搬运字节与按实测速率完成运算两者中较长的时间，除以用时。带宽与速率取测试前后多次突发测量以及本次运行中流式算子和矩阵乘的最大值（不论由谁算出），而非标称值。超过一百万元素的输入由随机块重复而成。")]


class _Method:
    """The method's paragraphs, made when a page is (reporting is optional to import)."""

    def __iter__(self):
        return iter(_texts())


_METHOD = _Method()


def _warnings(summary: Summary) -> list[Any]:
    from ..reporting.page import Note, Text

    found = []
    facts = summary.facts
    if facts.get("load_before", 0) > LOADED:
        found.append(Note(Text(f"The machine was busy: load average {facts['load_before']} before, {facts.get('load_after')} after the run.",
                               f"机器繁忙：运行前负载 {facts['load_before']}，运行后 {facts.get('load_after')}。"), "warn"))
    if facts["governor"] == "not exposed":
        found.append(Note(Text("The clock governor is not exposed here; clock changes cannot be excluded.", "此机器不显示调频策略，无法排除频率变化。"), "warn"))
    found += [Note(Text(f"Peer {n} is absent: {why}.", f"同类库 {n} 缺席：{why}。"), "warn") for n, why in summary.absent.items()]
    found += [Note(Text(f"{n}: {note}.", f"{n}：{note}。")) for n, note in summary.notes.items()]
    lost = [r for r in summary.timed if r.worst < LOSS]
    if lost:
        found.append(Note(Text(f"{len(lost)} of {len(summary.timed)} rows are slower than {LOSS} times the best peer; they stand first below.",
                               f"{len(summary.timed)} 行中有 {len(lost)} 行慢于最快同类库的 {LOSS} 倍，列在最前。"), "bad"))
    if summary.failed:
        found.append(Note(Text(f"{len(summary.failed)} rows have no time; see every operator below.", f"{len(summary.failed)} 行没有结果，见下方全部算子。"), "bad"))
    return found


def _mean_table(summary: Summary, by_threads: dict[int, list[Row]]) -> Any:
    from ..reporting.page import Cell, Table, Text

    rows = []
    for n, here in sorted(by_threads.items()):
        for who, value in summary.means(here).items():
            counted = [r for r in here if (math.isfinite(r.worst) if who == "best peer" else who in r.ratio)]
            values = [r.worst if who == "best peer" else r.ratio[who] for r in counted]
            with_out = [v for v, r in zip(values, counted) if not (set(r.allocating) & (set(r.ratio) if who == "best peer" else {who}))]
            if values:
                rows.append([n, who, Cell(f"{value:.2f}x", "good" if value >= 1 else "bad", value), len(values), sum(v < LOSS for v in values),
                             f"{geometric_mean(with_out):.2f}x" if with_out else "-"])
    return Table([Text("threads", "线程"), Text("against", "对手"), Text("geometric mean", "几何平均"), Text("rows", "行数"),
                  Text("rows lost", "落后行数"), Text("mean where the peer has out=", "对手有 out= 时的平均")], rows, numbers=(0, 2, 3, 4, 5))


def _row_table(summary: Summary) -> Any:
    from ..reporting.page import Cell, Table, Text

    names = list(dict.fromkeys(n for r in summary.timed for n in (*r.peers, *r.missing)))
    rows = []
    for r in summary.timed:
        pct = r.roofline_pct
        cells: list[Any] = [r.case.record.name, f"{r.case.sample.name}{f' ({r.case.sample.model})' if r.case.sample.model else ''}", r.case.dtype.name,
                            r.threads, Cell(duration(r.ns), order=r.ns), Cell(f"{r.gbps:.1f}", order=r.gbps), Cell(f"{r.gflops:.1f}", order=r.gflops),
                            Cell("-" if pct is None else f"{pct:.0f} %", order=pct or 0.0), Cell(f"{100 * r.timings['haian'].spread:.0f} %", order=r.timings["haian"].spread)]
        for n in names:
            v = r.ratio.get(n)
            cells.append(Cell(_versus(r, n), "" if v is None else "good" if v >= 1 else "warn" if v >= LOSS else "bad", v if v is not None else math.inf))
        rows.append(cells)
    head = [Text("operator", "算子"), Text("case", "用例"), "dtype", Text("threads", "线程"), Text("time", "用时"), "GB/s", "GFLOP/s", Text("roofline", "屋顶线"),
            Text("spread", "离散度"), *[Text(f"vs {n}", f"对 {n}") for n in names]]
    return Table(head, rows, numbers=tuple(range(3, len(head))), filterable=True)


def _operator_table(summary: Summary) -> Any:
    from ..kernels.ops import OPS
    from ..reporting.page import Cell, Table, Text

    rows = []
    for name, record in OPS.items():
        here = [r for r in summary.rows if r.case.record.name == name]
        timed = [r for r in here if not r.error]
        ratios = [r.worst for r in timed if math.isfinite(r.worst)]
        if timed:
            low = min(ratios, default=math.nan)
            said = Cell(f"{geometric_mean(ratios):.2f}x, worst {low:.2f}x", "good" if low >= LOSS else "bad", low) if ratios else Cell("no peer computes it", order=math.inf)
        else:
            said = Cell(here[0].error if here else f"not in suite {summary.suite}", "bad" if here else "", 0.0 if here else math.inf)
        rows.append([name, record.family, len(timed), said])
    return Table([Text("operator", "算子"), Text("family", "类别"), Text("rows", "行数"), Text("against the best peer", "对最快同类库")], rows, numbers=(2,), filterable=True)


def _roofline_figure(rows: Sequence[Row], ceilings: Ceilings, label: str, plot: Any, figure: Any, say: Any) -> Any:
    points = [(f"{r.case.record.name} {r.case.dtype.name}", r.case.cost.flops / r.case.cost.bytes, r.gflops)
              for r in rows if r.case.cost.flops and r.case.cost.bytes]
    top = max(ceilings.gflops.values())
    memory = max(v for points_ in ceilings.gbps.values() for _, v in points_[-1:])
    return figure(plot(points, memory, top, title=f"roofline, {label}"),
                  say(f"Roofline, {label}: the slope is memory bandwidth beyond the caches (rows that fit a cache may stand above it), the top the fastest measured product.",
                      f"屋顶线（{label}）：斜线为缓存之外的内存带宽（能放进缓存的行可高于它），顶线为实测最快矩阵乘。"))


def _fact_pairs(summary: Summary) -> list[tuple[Any, Any]]:
    from ..reporting.page import Text

    said = {"device": Text("device", "设备"), "model": Text("model", "型号"), "host_isa": Text("host kernels", "主机内核"), "cores": Text("cores", "核数"),
            "caches": Text("caches", "缓存"), "governor": Text("clock governor", "调频策略"), "huge_pages": Text("huge pages", "大页"),
            "load_before": Text("load average before", "运行前负载"), "load_after": Text("load average after", "运行后负载"), "system": Text("system", "系统"),
            "python": "Python", "haian": "haian", "started": Text("started", "开始时间"), "suite": Text("suite", "套件")}
    pairs = [(said.get(k, k), v) for k, v in summary.facts.items() if k != "peers"]
    return pairs + list(summary.facts["peers"].items())


def _ceiling_tables(summary: Summary) -> list[Any]:
    from ..reporting.page import Table, Text

    found = []
    for n, c in sorted(summary.ceilings.items()):
        sizes = [s for s, _ in next(iter(c.gbps.values()))]
        found.append(Table([Text(f"GB/s, {n} thread{'s' * (n > 1)}", f"GB/s，{n} 线程"), *[f"{s / 2**20:g} MiB" for s in sizes]],
                           [[kind, *[f"{v:.1f}" for _, v in points]] for kind, points in c.gbps.items()], numbers=tuple(range(1, len(sizes) + 1))))
        found.append(Table([Text("product, GFLOP/s", "矩阵乘 GFLOP/s"), Text("rate", "速率"), Text("reached by", "由谁达到")],
                           [[name, f"{v:.1f}", c.who.get(name, "")] for name, v in c.gflops.items()], numbers=(1,)))
    return found
