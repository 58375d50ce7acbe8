"""Run a suite: for every case make the inputs once, let haian and every peer compute it, time them interleaved.

Not here: which cases (cases.py), the clock (timer.py), files and pages (report.py).
"""
from __future__ import annotations

import contextlib
import datetime
import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..hal.errors import ArgumentError, HaianError
from . import machine
from .cases import BUDGET_S, Case, cases, host_inputs
from .check import expected, proved, same, spoil
from .peers import Peer, Refusal, Work, fastest, find, host_threads
from .roofline import Ceilings, measure
from .timer import Call, Timing, interleave

__all__ = ["Ours", "Row", "Summary", "contestants", "run", "thread_counts", "time_case"]

ALLOCATING = "haian, allocating"
SETTLE_S = 0.002  # with several threads: longer than a library's workers spin after their work


class Ours:
    """haian's own calls on a device."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def call(self, work: Work, *, allocating: bool = False) -> Call:
        """The operator as a user writes it: attributes left out where they are the default, out= given unless allocating."""
        import haian

        asarray = haian.asarray

        case = work.case
        given = iter(work.arrays)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        positional = True
        for p in case.record.params:
            if p.is_tensor:
                a = next(given)
                value: Any = None if a is None else [asarray(x, device=self.device) for x in a] if isinstance(a, tuple) else asarray(a, device=self.device)
            else:
                value = case.attrs[p.name]
            default = None if p.optional and p.default is inspect.Parameter.empty else p.default
            left_out = value is default or (not p.is_tensor and value == default)
            positional = positional and not p.keyword_only and not left_out
            if positional:
                args.append(value)
            elif not left_out:
                kwargs[p.name] = value
        outs = tuple(self.device.empty(s.shape, s.dtype) for s in case.outputs)
        if not case.record.views:
            spoil(outs)  # without out= the allocator hands this very memory to the first call
        if not case.record.tensors:
            kwargs["device"] = self.device
        if not allocating and not case.record.views:
            kwargs["out"] = outs[0] if len(outs) == 1 else outs
            if not case.record.tensors:
                del kwargs["device"]
        sync = None if self.device.is_host else self.device.synchronize
        return Call(getattr(haian.ops, case.record.name), tuple(args), kwargs, _arrays, allocating, sync)


def _arrays(returned: Any) -> Any:
    return tuple(t.numpy() for t in returned) if isinstance(returned, tuple) else returned.numpy()


@dataclass
class Row:
    """One line of a report; times in ns.

    Attributes:
        timings: by contestant, ``haian`` first.  missing: peers without a time, and why.  differs: peers whose result is
        not the reference's.  allocating: peers that cannot write to out=; their ratio is against haian without out= too.
        error: why haian has no time; the row then has none.
    """

    case: Case
    device: str
    threads: int
    timings: dict[str, Timing] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)
    allocating: list[str] = field(default_factory=list)
    error: str = ""
    least_ns: float = 0.0

    @property
    def ns(self) -> float:
        return self.timings["haian"].best

    @property
    def peers(self) -> dict[str, float]:
        return {n: t.best for n, t in self.timings.items() if not n.startswith("haian")}

    def ours(self, peer: str) -> float:
        """haian's ns under the same conditions as the peer: with out=, or making the result."""
        return self.timings[ALLOCATING].best if peer in self.allocating and ALLOCATING in self.timings else self.ns

    @property
    def ratio(self) -> dict[str, float]:
        """Peer's ns over haian's: above 1 haian is faster."""
        return {n: ns / self.ours(n) for n, ns in self.peers.items() if n not in self.differs}

    @property
    def worst(self) -> float:
        """Against the best peer; infinity when no peer computes it."""
        return min(self.ratio.values(), default=math.inf)

    @property
    def gbps(self) -> float:
        return self.case.cost.bytes / self.ns

    @property
    def gflops(self) -> float:
        return self.case.cost.flops / self.ns

    @property
    def roofline_pct(self) -> float | None:
        """Share of the roofline; None for calls of a few elements, which measure something else."""
        return 100.0 * self.least_ns / self.ns if self.least_ns and self.case.suite != "calls" else None

    def extra_info(self) -> dict[str, Any]:
        """What pytest-benchmark's format keeps beside the times."""
        c = self.case
        pct = self.roofline_pct
        return {"op": c.record.name, "case": c.sample.name, "device": self.device, "dtype": c.dtype.name, "threads": self.threads,
                "gbps": round(self.gbps, 4), "gflops": round(self.gflops, 4), "roofline_pct": None if pct is None else round(pct, 2),
                "peers": {n: round(v, 2) for n, v in self.peers.items()}, "ratio": {n: round(v, 4) for n, v in self.ratio.items()},
                "spread": round(self.timings["haian"].spread, 4), "ns": round(self.ns, 2), "model": c.sample.model,
                "flops": c.cost.flops, "bytes": c.cost.bytes, "allocating": self.allocating, "differs": self.differs, "missing": self.missing,
                "ns_allocating": round(self.timings[ALLOCATING].best, 2) if ALLOCATING in self.timings else None}


def geometric_mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    finite = [v for v in values if v > 0 and math.isfinite(v)]
    return math.exp(sum(map(math.log, finite)) / len(finite)) if finite else math.nan


@dataclass
class Summary:
    """A finished run; ``str()`` is the table."""

    rows: list[Row]
    facts: dict[str, Any]
    ceilings: dict[int, Ceilings]
    absent: dict[str, str]
    notes: dict[str, str]
    suite: str
    page: Path | None = None

    @property
    def timed(self) -> list[Row]:
        """Rows with a time, losses first."""
        return sorted((r for r in self.rows if not r.error), key=lambda r: r.worst)

    @property
    def failed(self) -> list[Row]:
        return [r for r in self.rows if r.error]

    def means(self, rows: Sequence[Row] | None = None) -> dict[str, float]:
        """Geometric means of the ratios: ``best peer`` and each peer by name."""
        rows = self.timed if rows is None else rows
        names = dict.fromkeys(n for r in rows for n in r.ratio)
        return {"best peer": geometric_mean([r.worst for r in rows]),
                **{n: geometric_mean([r.ratio[n] for r in rows if n in r.ratio]) for n in names}}

    def __str__(self) -> str:
        from .report import text
        return text(self)


def thread_counts(threads: str, on_host: bool = True) -> list[int]:
    """``"1,all"`` -> [1, cores]; devices other than the host have one entry.

    Raises:
        ArgumentError: neither a positive number nor ``all``, or more than the CPUs this process may use: threads that wait
            for one another's CPU would be timed.
    """
    found, most = [], host_threads()
    for word in threads.split(","):
        word = word.strip()
        if word != "all" and not (word.isdecimal() and int(word) > 0):
            raise ArgumentError(f"bench: threads {word!r}; needs positive numbers or 'all', comma separated")
        if on_host and word != "all" and int(word) > most:
            raise ArgumentError(f"bench: threads {word}; this process may use {most} CPU{'s' * (most > 1)}, give at most that or 'all'")
        found.append(most if word == "all" else int(word))
    return list(dict.fromkeys(found)) if on_host else found[:1]


def _as_arrays(result: Any) -> Any:
    """A peer's own result in NumPy; several as a tuple."""
    if isinstance(result, (tuple, list)):
        return tuple(map(_as_arrays, result))
    return np.asarray(result.cpu() if hasattr(result, "cpu") else result)


def _making(call: Call) -> Call:
    """A peer's call without out=, for rows that compare calls which make their result.

    Raises:
        Refusal: this spelling only writes to memory it is given.
    """
    if call.allocates:
        return call
    if "out" not in call.kwargs:
        raise Refusal("no spelling that makes its result")
    return replace(call, kwargs={k: v for k, v in call.kwargs.items() if k != "out"}, allocates=True,
                   result=_as_arrays)


def contestants(case: Case, ours: Ours, peers: Sequence[Peer]) -> tuple[dict[str, Call], Row]:
    """Everyone's call on the same inputs, each result checked against the record's reference; and the row they will fill.

    Raises:
        HaianError: haian has no kernel for the case, its result is wrong, or the reference cannot run here.
    """
    row = Row(case, ours.device.name, 1)
    work = Work(case, host_inputs(case))
    call = ours.call(work, allocating=case.sample.name.endswith("_allocating"))
    want = expected(case, work.arrays)
    proved(call, want, case)
    calls = {"haian": call}
    for peer in peers:
        try:
            theirs = fastest([_making(c) for c in peer.calls(work)] if call.allocates else peer.calls(work))
            value = theirs()
        except (Refusal, NotImplementedError, RuntimeError, TypeError) as why:  # a kernel or a dtype it lacks
            row.missing[peer.name] = (str(why).splitlines() or [type(why).__name__])[0]
            continue
        calls[peer.name] = theirs
        if theirs.allocates:
            row.allocating.append(peer.name)
        if not same(theirs.result(value) if theirs.result else value, want, case, ours=False):
            row.differs.append(peer.name)
        del value
    if row.allocating and not call.allocates:
        calls[ALLOCATING] = ours.call(work, allocating=True)
        proved(calls[ALLOCATING], want, case)
    return calls, row


def time_case(case: Case, ours: Ours, peers: Sequence[Peer], threads: int, budget_s: float, ceilings: Ceilings | None = None) -> Row:
    """One row."""
    try:
        calls, row = contestants(case, ours, peers)
    except HaianError as why:
        return Row(case, ours.device.name, threads, error=str(why))
    row.threads = threads
    row.timings = interleave(calls, budget_s, settle_s=SETTLE_S if threads > 1 and ours.device.is_host else 0.0)
    if ceilings is not None:
        set_roofline(row, ceilings)
    return row


def set_roofline(row: Row, ceilings: Ceilings) -> None:
    row.least_ns = ceilings.least_ns(row.case.record.family, row.case.dtype, row.case.cost, row.case.written)


@contextlib.contextmanager
def conditions(peers: Sequence[Peer], threads: int) -> Iterator[None]:
    """The same thread count for everyone, peers in their fastest mode; ours is put back afterwards."""
    import haian

    before = haian.num_threads()
    haian.set_num_threads(threads)
    with contextlib.ExitStack() as stack:
        for peer in peers:
            peer.set_threads(threads)
            stack.enter_context(peer.session())
        try:
            yield
        finally:
            haian.set_num_threads(before)


def open_device(name: str) -> Any:
    """The device under test.

    Raises:
        ArgumentError: sim.
    """
    from ..hal.registry import device

    if name.partition(":")[0] == "sim":
        raise ArgumentError(f"bench: {name} is a simulated chip and is never benchmarked, its speed says nothing; use cpu:0 or a real device")
    return device(name)


def run(device: str = "cpu:0", *, suite: str = "quick", peers: str = "torch,numpy,onnxruntime", threads: str = "1", ops: str = "",
        report: str = "", budget_s: float = 0.0) -> Summary:
    """See haian.bench.run."""
    from .report import folder_of, write

    place = open_device(device)
    todo = cases(suite, ops)
    counts = thread_counts(threads, place.is_host)
    folder = folder_of(report)
    found, absent = find(peers, place.name)
    if suite == "calls":  # one graph a call: nobody would use it that way
        found = [p for p in found if p.name != "onnxruntime"]
    ours = Ours(place)
    facts = machine.facts(place, {p.name: p.version for p in found})
    facts.update(suite=suite, started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
    wanted = [c.dtype.name for c in todo if c.record.family in ("matmul", "attention") or c.dtype.name == "float64"]
    summary = Summary([], facts, {}, absent, {p.name: p.note for p in found if p.note}, suite)
    for n in counts:
        with conditions(found, n):
            def ceilings() -> Ceilings:
                return measure(ours.call, found, wanted, on_host=place.is_host)

            before = ceilings() if suite != "calls" else None
            rows = []
            for k, case in enumerate(todo):
                _progress(f"{k + 1}/{len(todo)} {case.id} ({n} thread{'s' * (n > 1)})")
                rows.append(time_case(case, ours, found, n, budget_s or BUDGET_S[suite]))
            if before is not None:  # measured again, so that one disturbed moment does not flatter every row
                summary.ceilings[n] = before.best(ceilings())
                _raise_ceilings(summary.ceilings[n], rows)
                for row in rows:
                    if not row.error:
                        set_roofline(row, summary.ceilings[n])
            summary.rows += rows
    _progress("")
    facts["load_after"] = round(machine.load(), 2)
    if folder:
        summary.page = write(folder, summary)
    return summary


STREAMS = ("pointwise", "reduce")  # families that touch every byte of their cost once, and do little else


def _raise_ceilings(ceilings: Ceilings, rows: Sequence[Row]) -> None:
    """A product or a stream of the suite that ran faster than the probe is the better ceiling, whoever computed it."""
    for row in rows:
        if row.error:
            continue
        case, family = row.case, row.case.record.family
        who = min((n for n in row.timings if n not in row.differs), key=lambda k: row.timings[k].best)
        ns, name = row.timings[who].best, case.dtype.name
        if family == "matmul" and case.cost.flops / ns > ceilings.gflops.get(name, math.inf):
            ceilings.gflops[name], ceilings.who[name] = case.cost.flops / ns, f"{who} in {case.id}"
        if family in STREAMS and case.cost.bytes:
            ceilings.raise_bandwidth(case.cost.bytes, case.written, case.cost.bytes / ns, f"{who} in {case.id}")


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
