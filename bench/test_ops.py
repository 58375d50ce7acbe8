"""The same cases for pytest-benchmark: ``pytest bench/ --benchmark-only [-k softmax]``; HAIAN_BENCH_SUITE names the suite.

pytest-benchmark times haian's call; the interleaved times of the peers (timer.py) stand in extra_info.
"""
from __future__ import annotations

import os

import pytest
from haian.bench import runner
from haian.bench.cases import BUDGET_S, cases
from haian.bench.peers import find
from haian.bench.roofline import measure

SUITE = os.environ.get("HAIAN_BENCH_SUITE", "quick")
DEVICE = os.environ.get("HAIAN_BENCH_DEVICE", "cpu:0")


@pytest.fixture(scope="module")
def ours():
    return runner.Ours(runner.open_device(DEVICE))


@pytest.fixture(scope="module")
def peers(ours):
    found, _ = find("torch,numpy,onnxruntime", ours.device.name)
    with runner.conditions(found, 1):
        yield found


@pytest.fixture(scope="module")
def ceilings(ours, peers):
    return measure(ours.call, peers, ["float32", "bfloat16"], on_host=ours.device.is_host)


@pytest.mark.parametrize("case", cases(SUITE), ids=lambda c: c.id)
def test_op(benchmark, case, ours, peers, request):
    benchmark.group = case.record.family
    calls, row = runner.contestants(case, ours, peers)
    assert not row.differs, f"{case.id}: {row.differs} are not the reference's results"
    if benchmark.enabled:
        row.timings = runner.interleave(calls, BUDGET_S[SUITE])
        if SUITE != "calls":
            runner.set_roofline(row, request.getfixturevalue("ceilings"))
        benchmark.extra_info.update(row.extra_info())
    call = calls["haian"]
    benchmark.pedantic(call.fn, call.args, dict(call.kwargs), rounds=5, iterations=row.timings["haian"].inner if row.timings else 1)
