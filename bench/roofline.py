"""The device's ceilings, measured in the same run: bandwidth by size of the working set, arithmetic rate by dtype.

A ceiling is the best rate that any of the contestants reached, ours or a peer's, in BURSTS bursts before the suite and as many
after it, or in a row of the suite that only streams (pointwise, reduce) or multiplies; it is a floor of what the hardware can
do, not the datasheet's number, so a share slightly above 100 % is possible in other families and is shown as it is.
"""
from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..hal.dtype import BY_NAME, DType
from ..kernels.ops.record import Cost, In, Sample
from .cases import Case, empty_host
from .check import CHECKED, same
from .peers import Peer, Refusal, Work
from .timer import Call, interleave

__all__ = ["Ceilings", "measure"]

KIB, MIB = 1 << 10, 1 << 20
# bytes read plus bytes written: a private cache, its edges, a shared cache, and memory beyond any cache of a core
SIZES = (256 * KIB, 2 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
CUBE_HOST, CUBE_DEVICE = 1024, 8192
BURSTS = 3  # sweeps over all points: what disturbs the machine for some 0.1 s then spoils one of them, not a point's only one
_MATRIX = ("matmul", "attention")
_KINDS = ("read", "copy", "write")  # share of written bytes 0, 1/2, 1


@dataclass
class Ceilings:
    """gbps[kind]: (bytes, GB/s) by size, kinds read, copy, write; gflops: rate of products by dtype name."""

    gbps: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    gflops: dict[str, float] = field(default_factory=dict)
    who: dict[str, str] = field(default_factory=dict)

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements, point by point: noise only ever lowers one."""
        merged = Ceilings(who={**other.who, **self.who})
        for kind in {**self.gbps, **other.gbps}:
            a, b = dict(self.gbps.get(kind, ())), dict(other.gbps.get(kind, ()))
            merged.gbps[kind] = [(size, max(a.get(size, 0.0), b.get(size, 0.0))) for size in sorted({**a, **b})]
            better = [_point(kind, size) for size in b if b[size] > a.get(size, 0.0)]
            merged.who.update({point: other.who[point] for point in better if point in other.who})
        for name in {**self.gflops, **other.gflops}:
            mine, theirs = self.gflops.get(name, 0.0), other.gflops.get(name, 0.0)
            merged.gflops[name] = max(mine, theirs)
            if theirs > mine and name in other.who:
                merged.who[name] = other.who[name]
        return merged

    def bandwidth(self, nbytes: int, written: int) -> float:
        """GB/s for a working set of nbytes of which ``written`` are results: between read, copy and write ceilings."""
        read, copy, write = (_at(self.gbps[kind], nbytes) for kind in _KINDS)
        share = written / nbytes if nbytes else 0.0
        return read + (copy - read) * 2 * share if share <= 0.5 else copy + (write - copy) * (2 * share - 1)

    def raise_bandwidth(self, nbytes: int, written: int, rate: float, who: str) -> None:
        """Somebody moved nbytes, ``written`` of them results, at ``rate`` GB/s: where that is faster, the ceilings go up to it."""
        share = written / nbytes if nbytes else 0.0
        factor = rate / self.bandwidth(nbytes, written)
        if factor <= 1:
            return
        kinds = _KINDS[:2] if share < 0.5 else _KINDS[1:2] if share == 0.5 else _KINDS[1:]
        for kind in kinds:
            points = dict(self.gbps[kind])
            points[nbytes] = _at(self.gbps[kind], nbytes) * factor
            self.gbps[kind] = sorted(points.items())
            self.who[_point(kind, nbytes)] = who

    def rate(self, family: str, dtype: DType) -> float:
        """GFLOP/s: products run at their dtype's rate, everything else in the vector units of float32 (float64)."""
        name = dtype.name if family in _MATRIX or dtype.name == "float64" else "float32"
        return self.gflops.get(name) or self.gflops.get("float32", 0.0)

    def least_ns(self, family: str, dtype: DType, cost: Cost, written: int) -> float:
        """The roofline: the longer of moving the bytes and doing the arithmetic."""
        rate = self.rate(family, dtype)
        moving = cost.bytes / self.bandwidth(cost.bytes, written) if cost.bytes else 0.0
        return max(moving, cost.flops / rate if rate else 0.0)

    def as_dict(self) -> dict[str, Any]:
        return {"gbps": {k: [[s, round(v, 3)] for s, v in points] for k, points in self.gbps.items()},
                "gflops": {k: round(v, 3) for k, v in self.gflops.items()}, "who": dict(self.who)}


def _point(kind: str, nbytes: int) -> str:
    return f"{kind} {nbytes // KIB} KiB"


def _at(points: Sequence[tuple[int, float]], nbytes: int) -> float:
    """Interpolated over the logarithm of the size, flat outside."""
    sizes = [s for s, _ in points]
    k = bisect.bisect_left(sizes, nbytes)
    if k == 0:
        return points[0][1]
    if k == len(points):
        return points[-1][1]
    (s0, v0), (s1, v1) = points[k - 1], points[k]
    return v0 + (v1 - v0) * math.log(nbytes / s0) / math.log(s1 / s0)


def _case(op: str, shapes: Sequence[tuple[int, ...]], kind: str, **attrs: Any) -> Case:
    from ..kernels.ops import OPS

    ins = tuple(In(s, "uniform") for s in shapes)
    return Case(OPS[op], Sample("ceiling", ins, attrs), BY_NAME[kind], "quick")


def _probes(kind: str, nbytes: int) -> list[Case]:
    n = nbytes // 4
    if kind == "read":
        return [_case("amax", [(n,)], "float32"), _case("sum", [(n,)], "float32")]
    if kind == "copy":
        return [_case("copy", [(n // 2,)], "float32")]
    return [_case("full", [], "float32", shape=(n,), value=1.0, dtype=BY_NAME["float32"])]


def measure(ours: Any, peers: Sequence[Peer], dtypes: Sequence[str], *, on_host: bool = True, budget_s: float = 0.06) -> Ceilings:
    """Measure all ceilings.

    Args:
        ours: ``ours(work) -> Call``, haian's own call (runner.py).
        peers: all compete in products; bandwidth is tried by haian, by NumPy (the C library's memcpy) and by torch's reductions.
        dtypes: names of dtypes whose product rate is wanted; float32 always is.
        budget_s: seconds a point, all bursts together.
    """
    found = Ceilings()
    for _ in range(BURSTS):
        found = found.best(_burst(ours, peers, dtypes, on_host, budget_s / BURSTS))
    return found


def _burst(ours: Any, peers: Sequence[Peer], dtypes: Sequence[str], on_host: bool, budget_s: float) -> Ceilings:
    found = Ceilings()
    for kind in _KINDS:
        points = []
        movers = [p for p in peers if p.name == ("torch" if kind == "read" or not on_host else "numpy")]  # memcpy, memset; torch's sum
        for nbytes in SIZES:
            calls: dict[str, Call] = {}
            for case in _probes(kind, nbytes):
                calls.update({f"{who} {case.record.name}": c for who, c in _contestants(case, ours, movers).items()})
            best, name = _fastest(calls, budget_s)
            points.append((nbytes, nbytes / best))
            found.who[_point(kind, nbytes)] = name
        found.gbps[kind] = points
    n = CUBE_HOST if on_host else CUBE_DEVICE
    for dtype in dict.fromkeys(["float32", *dtypes]):
        case = _case("matmul", [(n, n), (n, n)], dtype)
        best, name = _fastest(_contestants(case, ours, peers), 4 * budget_s)
        found.gflops[dtype] = case.cost.flops / best
        found.who[dtype] = name
    return found


def _contestants(case: Case, ours: Any, peers: Sequence[Peer]) -> Mapping[str, Call]:
    """Those who compute the probe: a rate of work that was not done would be nobody's ceiling."""
    arrays = []
    for s in case.inputs:
        a = empty_host(s.shape, s.dtype.numpy)
        a.fill(0.5 if s.size < 1 << 21 else 1.0)
        arrays.append(a)
    work = Work(case, tuple(arrays))
    calls = {"haian": ours(work)}
    for peer in peers:
        try:
            calls[peer.name] = peer.calls(work)[0]
        except Refusal:
            continue
    want = _constant(case, arrays)
    return {n: c for n, c in calls.items() if not c.allocates and _right(c, want, case)}


def _constant(case: Case, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The result of a probe, whose inputs are constants: a reference of 8192^3 products would take the host a minute."""
    x = float(arrays[0].flat[0]) if arrays else 0.0
    n = arrays[0].shape[-1] if arrays else 0
    value = {"amax": x, "sum": n * x, "copy": x, "full": case.attrs.get("value", 0.0), "matmul": n * x * x}[case.record.name]
    return (np.full(min(math.prod(case.outputs[0].shape), CHECKED), value),)


def _right(call: Call, want: tuple[np.ndarray, ...], case: Case) -> bool:
    got = call()
    return same(call.result(got) if call.result else got, want, case)


def _fastest(calls: Mapping[str, Call], budget_s: float) -> tuple[float, str]:
    times = interleave(calls, budget_s, sample_ns=300_000)
    name = min(times, key=lambda k: times[k].best)
    best = times[name].best
    assert best > 0 and np.isfinite(best)
    return best, name
