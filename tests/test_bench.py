"""haian.bench: the timer takes turns, rows compare the same computation, reports hold what they promise.  No speed is asserted."""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from haian.bench import cases as bench_cases
from haian.bench import check, compare, machine, peers, report, roofline, runner, timer
from haian.bench.cases import Case, cases
from haian.bench.timer import Call, Timing
from haian.hal.dtype import BY_NAME
from haian.hal.errors import ArgumentError, EnvironmentMissing, HaianError
from haian.kernels.ops import OPS
from haian.kernels.ops.record import Cost, In, Spec

import haian

PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)
INFO = {"op", "case", "device", "dtype", "threads", "gbps", "gflops", "roofline_pct", "peers", "ratio", "spread"}  # docs/design.md


def small(case: Case) -> Case:
    """The case with every long axis replaced by a prime, equal ones by equal ones."""
    seen: dict[int, int] = {}

    def size(n: int) -> int:
        return n if n <= 40 else seen.setdefault(n, PRIMES[len(seen)])

    def one(i):
        if isinstance(i, tuple):
            return tuple(map(one, i))
        return i and replace(i, shape=tuple(map(size, i.shape)), high=size(i.high) if i.high else 0)

    attrs = {k: tuple(map(size, v)) if k in ("normalized_shape", "shape") else size(v) if k == "num_weights" else v for k, v in case.sample.attrs.items()}
    return Case(case.record, replace(case.sample, inputs=tuple(map(one, case.sample.inputs)), attrs=attrs), case.dtype, case.suite)


@pytest.fixture(scope="module")
def ours():
    return runner.Ours(haian.device("cpu:0"))


@pytest.fixture(scope="module", params=peers.NAMES)
def peer(request):
    pytest.importorskip(request.param)
    found, absent = peers.find(request.param)
    assert not absent
    with runner.conditions(found, 1):
        yield found[0]


# ---- timer ----------------------------------------------------------------------------------------------------------
def test_takes_turns():
    said = []
    times = timer.interleave({n: Call(said.append, (n,)) for n in "ABC"}, 0.0, least=5, sample_ns=1)
    assert [t.inner for t in times.values()] == [1, 1, 1]
    assert "".join(said[-15:]) == "ABC" * 5
    assert [len(t.samples) for t in times.values()] == [5, 5, 5]


def test_goes_on_until_the_budget_is_spent():
    start = time.perf_counter()
    times = timer.interleave({"quick": Call(len, ("",)), "other": Call(len, ((),))}, 0.1)
    assert 0.1 <= time.perf_counter() - start < 5
    counts = [len(t.samples) for t in times.values()]
    assert counts[0] == counts[1] > timer.LEAST


def test_who_is_far_behind_leaves_and_keeps_its_time():
    times = timer.interleave({"fast": Call(time.sleep, (0.001,)), "slow": Call(time.sleep, (0.03,))}, 0.1)
    assert len(times["slow"].samples) == timer.LEAST < len(times["fast"].samples)
    assert times["slow"].best >= 0.03e9
    assert 0.001e9 <= times["fast"].best < 0.03e9


def test_who_is_far_behind_but_cheap_stays():
    times = timer.interleave({"fast": Call(len, ("",)), "slow": Call(sum, (range(500),))}, 0.05)
    assert times["slow"].best > timer.FAR * times["fast"].best
    assert len(times["slow"].samples) == len(times["fast"].samples)


def test_loop_overhead_is_taken_off(monkeypatch):
    assert 0 < timer.overhead() < 1000
    monkeypatch.setattr(timer, "loop", lambda call: lambda n: 100 * n)
    monkeypatch.setattr(timer, "overhead", lambda: 30.0)
    assert timer.interleave({"A": Call(len)}, 0.0)["A"].samples == pytest.approx([70.0] * timer.LEAST)
    monkeypatch.setattr(timer, "overhead", lambda: 1000.0)
    assert timer.interleave({"A": Call(len)}, 0.0)["A"].best == 0.0  # never negative


def test_loop_passes_arguments_and_waits_for_the_device():
    got = []

    def fn(*args, **kwargs):
        got.append((args, kwargs))

    def sync():
        got.append("sync")

    assert timer.loop(Call(fn, (1, 2), {"out": 3}, sync=sync))(2) > 0
    assert got == ["sync", ((1, 2), {"out": 3}), ((1, 2), {"out": 3}), "sync"]


def test_timing_statistics():
    t = Timing(1, [4.0, 1.0, 2.0, 3.0, 100.0])
    assert t.best == 1.0 and t.median == 3.0
    assert t.spread == pytest.approx((4.0 - 2.0) / 3.0)
    assert Timing(1, [5.0]).spread == 0.0


# ---- cases ----------------------------------------------------------------------------------------------------------
def test_quick_is_short_and_holds_the_headlines():
    ids = {c.id for c in cases("quick")}
    assert 12 <= len(ids) <= 24
    assert {"exp/square_4096/float32", "gelu/square_4096_tanh/float32", "where/square_4096/float32", "add/square_4096/float32",
            "softmax/square_4096/float32", "rms_norm/square_4096/float32", "layer_norm/square_4096/float32", "sum/square_last/float32",
            "matmul/cube_1024/float32", "matmul/cube_1024/bfloat16", "copy/square_4096_transposed/float32", "embedding/rows_8192/float32",
            "scaled_dot_product_attention/llama_prefill_1024/float32", "scaled_dot_product_attention/llama_decode_4096/bfloat16"} <= ids


def test_full_has_a_row_for_every_operator():
    assert {c.record.name for c in cases("full")} == {n for n, r in OPS.items() if r.takes_out}


@pytest.mark.parametrize("suite", bench_cases.SUITES)
def test_ids_are_unique_and_costs_known(suite):
    found = cases(suite)
    assert len({c.id for c in found}) == len(found)
    for c in found:
        in_place = c.record.family in ("shape", "llm")  # of a cache that is written in part, only the part counts
        assert c.cost.bytes >= c.written > 0 or c.cost.bytes >= 0 and in_place, c.id


def test_patterns_and_refusals():
    assert {c.record.name for c in cases("full", "softmax, mm*")} == {"softmax", "mm"}
    with pytest.raises(ArgumentError, match="fast"):
        cases("fast")
    for ops, words in (("nothing*", r"'nothing\*' matches no case"), ("exp,nosuch", "'nosuch' matches no case"), (",", "names nothing")):
        with pytest.raises(ArgumentError, match=words):
            cases("quick", ops)


@pytest.mark.parametrize("layout", ["", "transposed"])
def test_large_inputs_repeat_a_drawn_block(monkeypatch, layout):
    monkeypatch.setattr(bench_cases, "BLOCK", 64)
    case = Case(OPS["copy"], replace(OPS["copy"].samples[0], inputs=(In((13, 17), layout=layout),)), BY_NAME["float32"], "quick")
    (a,) = bench_cases.host_inputs(case)
    assert a.shape == (13, 17) and np.isfinite(a).all()
    assert a.flags.c_contiguous == (not layout)
    rows = a if not layout else a.T
    period = 64 // rows.shape[1]
    assert np.array_equal(rows[0], rows[period]) and not np.array_equal(rows[0], rows[1])


# Whose inputs' sizes and values depend on one another: a core sample instead of a case with its sizes replaced.
LINKED = ("llm", "attention_serve", "moe", "quant", "ctc", "fused_loss")
# torch has these in pieces only, in place (batch norms and optimisers), or with other random bits
WITHOUT_TORCH = ("gated", "optim", "recurrent", "llm", "moe", "attention_serve", "quant", "random")
ALONE = ("fused_rms_norm_backward", "causal_conv1d", "matmul_bias_activation", "sigmoid_focal_loss", "sigmoid_focal_loss_backward",
         "binary_cross_entropy_with_logits_backward", "fused_linear_cross_entropy_backward")


def linked(case: Case) -> Case:
    """The operator's core sample called prime, or the first one with elements."""
    core = [s for s in case.record.samples if s.level == "core"]
    chosen = next((s for s in core if s.name == "prime"), None) or next(s for s in core if all(i is None or np.prod(i.shape) for i in s.inputs))
    return Case(case.record, chosen, case.record.dtypes[0], case.suite)


# ---- peers compute the same thing -----------------------------------------------------------------------------------
CHECKS = [c for suite in ("full", "calls") for c in cases(suite)]


@pytest.mark.parametrize("name", list(dict.fromkeys(c.record.name for c in CHECKS)))
def test_peers_agree(ours, peer, name):
    agreed = 0
    record = OPS[name]
    # sizes that hang together (groups and channels, halves, windows and images): those cases stay as they are
    whole = record.family in ("batch_norm", "conv", "pool", "gated", "scatter", "embedding_bag", "pad", "moves", "recurrent") or name in ("topk", "kthvalue")
    for case in (c if c.suite == "calls" or whole else linked(c) if record.family in LINKED else small(c) for c in CHECKS if c.record.name == name):
        calls, row = runner.contestants(case, ours, [peer])
        assert not row.differs, case.id
        agreed += peer.name in calls
        assert (peer.name in calls) != (peer.name in row.missing)
    # what a peer must not silently lose
    no_peer = record.family in WITHOUT_TORCH or name in ALONE or "batch_norm" in name or "_and_mul" in name
    if peer.name == "torch" and not no_peer or name in ("add", "exp", "sum", "matmul"):
        assert agreed


def test_a_peer_that_computes_something_else_is_found(ours):
    (case,) = cases("quick", "exp")
    case = small(case)

    class Liar(peers.Peer):
        name = "liar"

        def calls(self, work):
            return [Call(np.exp2, work.arrays)]

    class Silent(peers.Peer):
        name = "silent"

        def calls(self, work):
            raise peers.Refusal("no such operator")

    calls, row = runner.contestants(case, ours, [Liar(), Silent()])
    assert row.differs == ["liar"] and row.missing == {"silent": "no such operator"}
    row.timings = timer.interleave(calls, 0.0)
    assert "liar" in row.peers and row.ratio == {} and row.worst == math.inf


@pytest.mark.parametrize("op", ["exp", "sum", "argmax", "eq"])
def test_a_kernel_that_computes_nothing_has_no_time(op):
    """Registered for the host as a vendor's would be (in a process of its own: kernels are chosen once)."""
    code = f"""
import haian
from haian.bench import runner
x = haian.asarray([1.0] * 16)
haian.register_kernel({op!r}, lambda *args, out, **attrs: None, device="cpu", name="nothing")
summary = runner.run(ops={op!r}, suite="calls", peers="numpy", budget_s=0.01)
print(len(summary.timed), *(row.error for row in summary.rows), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    timed, *errors = done.stdout.splitlines()
    assert timed == "0" and len(errors) == 2 and all("is not the reference's, so it has no time" in e for e in errors), done.stdout + done.stderr


def test_without_its_reference_s_library_an_operator_has_no_time(ours, monkeypatch):
    (case,) = (c for c in cases("quick", "gelu") if c.dtype.name == "float32")
    for name in ("scipy", "scipy.special"):
        monkeypatch.setitem(sys.modules, name, None)
    row = runner.time_case(small(case), ours, [], 1, 0.0)
    assert "its reference needs scipy" in row.error and "haian[bench]" in row.error


def test_a_probe_that_was_not_computed_is_no_ceiling(ours):
    case = roofline._probes("read", 1 << 16)[0]
    lazy = roofline._contestants(case, lambda work: replace(ours.call(work), fn=lambda *args, out, **attrs: out), [])
    assert lazy == {} and list(roofline._contestants(case, ours.call, [])) == ["haian"]


def test_every_reference_is_that_of_the_whole_case(ours):
    """expected computes a pointwise operator on a part only; broadcast and transposed inputs keep their places."""
    case = Case(OPS["add"], replace(OPS["add"].samples[0], inputs=(In((97, 101), layout="transposed"), In((101,)))), BY_NAME["float32"], "quick")
    x, y = bench_cases.host_inputs(case)
    (part,) = check.expected(case, (x, y))
    assert part.size == check.CHECKED and check.same(x + y, (part,), case)
    other = x + y
    other[50:] = 0
    assert not check.same(other, (part,), case)


def test_spoiled_memory_is_no_result():
    for name in ("float32", "bfloat16", "float16", "float64", "int64", "uint8", "bool"):
        bad = check.spoiled(Spec((5, 3), BY_NAME[name]))
        assert bad.shape == (5, 3) and bad.dtype == BY_NAME[name].numpy
        assert name == "bool" and bad.any() and not bad.all() or name != "bool" and not (bad == 0).any() and not (bad == 1).any()


def test_a_peer_s_random_numbers_have_the_right_law(ours):
    case = Case(OPS["dropout"], replace(OPS["dropout"].samples[0], inputs=(In((5000,)),), attrs={"p": 0.25, "seed": 1, "offset": 0}), BY_NAME["float32"], "quick")
    (x,) = bench_cases.host_inputs(case)
    want = check.expected(case, (x,))
    kept = np.random.default_rng(0).random(5000) > 0.25
    assert check.same(x * kept / 0.75, want, case, ours=False) and not check.same(x * kept / 0.75, want, case)
    assert not check.same(np.zeros_like(x), want, case, ours=False) and not check.same(x, want, case, ours=False)


def test_the_fastest_spelling_stands_for_a_peer():
    quick, slow = Call(time.sleep, (0.0005,)), Call(time.sleep, (0.005,))
    assert peers.fastest([slow, quick]) is quick

    def broken():
        raise RuntimeError("not on this device")

    assert peers.fastest([Call(broken), slow]) is slow
    with pytest.raises(peers.Refusal, match="not on this device"):
        peers.fastest([Call(broken), Call(broken)])


def test_find_names_absent_and_unknown_peers(monkeypatch):
    with pytest.raises(ArgumentError, match="cupy"):
        peers.find("cupy")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.find("numpy,onnxruntime") == ([], {"numpy": "not installed", "onnxruntime": "not installed"})


def test_host_peers_do_not_time_an_accelerator():
    found, absent = peers.find("numpy,onnxruntime", "cuda:0")
    assert found == [] and set(absent) == {"numpy", "onnxruntime"}


def test_numpy_threads_can_be_set():
    from haian.bench.peer_numpy import NumPy
    before = NumPy()
    assert before.note == "" or "thread" in before.note


# ---- roofline -------------------------------------------------------------------------------------------------------
def _ceilings() -> roofline.Ceilings:
    return roofline.Ceilings({"read": [(1000, 40.0), (100000, 10.0)], "copy": [(1000, 30.0), (100000, 8.0)], "write": [(1000, 20.0), (100000, 4.0)]},
                             {"float32": 100.0, "bfloat16": 400.0}, {"float32": "torch"})


def test_bandwidth_follows_size_and_share_of_writes():
    c = _ceilings()
    assert c.bandwidth(500, 0) == 40 and c.bandwidth(10**9, 0) == 10
    assert c.bandwidth(10000, 0) == pytest.approx(25)  # half way on a logarithmic axis
    assert c.bandwidth(1000, 500) == 30 and c.bandwidth(1000, 1000) == 20 and c.bandwidth(1000, 250) == 35


def test_least_time_is_the_longer_of_moving_and_computing():
    c, f32, bf16 = _ceilings(), BY_NAME["float32"], BY_NAME["bfloat16"]
    assert c.least_ns("matmul", f32, Cost(flops=10**6, bytes=1000), 0) == 10**4
    assert c.least_ns("matmul", bf16, Cost(flops=10**6, bytes=1000), 0) == 2500
    assert c.least_ns("pointwise", bf16, Cost(flops=10**6, bytes=1000), 0) == 10**4  # float32's vector units
    assert c.least_ns("pointwise", f32, Cost(flops=1, bytes=10**9), 0) == 10**8


def test_the_better_of_two_measurements_counts():
    c = _ceilings()
    d = _ceilings()
    d.gbps["read"][0] = (1000, 55.0)
    d.gflops["float32"], d.who["float32"] = 120.0, "numpy"
    both = c.best(d)
    assert both.gbps["read"] == [(1000, 55.0), (100000, 10.0)] and both.gbps["copy"] == c.gbps["copy"]
    assert both.gflops == {"float32": 120.0, "bfloat16": 400.0} and both.who["float32"] == "numpy"


def test_a_faster_product_of_the_suite_raises_the_ceiling(ours):
    c = _ceilings()
    case = next(c for c in cases("quick", "matmul") if c.sample.name == "cube_1024" and c.dtype.name == "float32")
    row = runner.Row(case, "cpu:0", 1, {"haian": Timing(1, [1e9]), "torch": Timing(1, [1e7])})
    runner._raise_ceilings(c, [row, replace(row, timings={"haian": Timing(1, [1e8])})])
    assert c.gflops["float32"] == pytest.approx(2 * 1024**3 / 1e7) and c.who["float32"].startswith("torch in matmul/cube_1024")
    runner.set_roofline(row, c)
    assert row.roofline_pct == pytest.approx(1.0)


@pytest.mark.parametrize(("op", "kinds"), [("sum", {"read", "copy"}), ("exp", {"copy"}), ("add", {"read", "copy"})])
def test_a_faster_stream_of_the_suite_raises_the_ceiling(op, kinds):
    c, before = _ceilings(), _ceilings()
    case = next(x for x in cases("quick", op) if x.dtype.name == "float32")
    fast = case.cost.bytes / (1.5 * c.bandwidth(case.cost.bytes, case.written))
    row = runner.Row(case, "cpu:0", 1, {"haian": Timing(1, [fast]), "liar": Timing(1, [fast / 9])}, differs=["liar"])
    runner._raise_ceilings(c, [row, replace(row, timings={"haian": Timing(1, [9 * fast])})])
    runner.set_roofline(row, c)
    assert c.bandwidth(case.cost.bytes, case.written) == pytest.approx(row.gbps) and row.roofline_pct <= 100.001
    assert {k for k in c.gbps if c.gbps[k] != before.gbps[k]} == kinds
    assert any(who == f"haian in {case.id}" for who in c.who.values())


def test_a_disturbed_burst_does_not_lower_a_ceiling(monkeypatch):
    rates = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr(roofline, "_burst", lambda *args: roofline.Ceilings({"read": [(1 << 20, r := next(rates))]}, {"float32": r}, {"read 1024 KiB": f"at {r}"}))
    c = roofline.measure(None, [], [])
    assert c.gbps == {"read": [(1 << 20, 30.0)]} and c.gflops == {"float32": 30.0} and c.who == {"read 1024 KiB": "at 30.0"}


def test_ceilings_are_measured(ours, monkeypatch):
    monkeypatch.setattr(roofline, "SIZES", (1 << 16, 1 << 18))
    monkeypatch.setattr(roofline, "CUBE_HOST", 64)
    found, _ = peers.find("numpy")
    c = roofline.measure(ours.call, found, ["float32"], budget_s=0.0)
    assert set(c.gbps) == {"read", "copy", "write"} and all(v > 0 for points in c.gbps.values() for _, v in points)
    assert c.gflops["float32"] > 0 and c.who["float32"] in ("haian", "numpy")
    json.dumps(c.as_dict())


# ---- a run and its report -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three small rows with real peers, written to a folder twice (a history needs two runs)."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "cases", lambda suite, ops: [small(c) for c in cases(suite, ops)])
        patch.setattr(roofline, "SIZES", (1 << 16, 1 << 18))
        patch.setattr(roofline, "CUBE_HOST", 64)
        for _ in range(2):
            summary = runner.run(suite="quick", ops="exp,matmul,layer_norm", peers="torch,numpy,onnxruntime", report=str(folder), budget_s=0.01)
    return folder, summary


def test_json_is_pytest_benchmarks_with_our_facts(finished):
    folder, summary = finished
    data = json.loads((folder / "bench.json").read_text())
    assert {"machine_info", "commit_info", "benchmarks", "datetime", "version"} <= set(data)
    assert {b["extra_info"]["op"] for b in data["benchmarks"]} == {"exp", "matmul", "layer_norm"}
    for b in data["benchmarks"]:
        info, stats = b["extra_info"], b["stats"]
        assert set(info) >= INFO
        assert {"min", "max", "mean", "stddev", "median", "iqr", "q1", "q3", "rounds", "iterations", "ops", "outliers", "ld15iqr", "hd15iqr"} <= set(stats)
        assert 0 < stats["min"] <= stats["q1"] <= stats["median"] <= stats["q3"] <= stats["max"]
        assert info["threads"] == 1 and info["device"] == "cpu:0" and info["roofline_pct"] > 0
        assert info["gbps"] == pytest.approx(info["bytes"] / (stats["min"] * 1e9), rel=0.01, abs=1e-3)
        for name, ratio in info["ratio"].items():
            ours_ns = info["ns_allocating"] if name in info["allocating"] else info["ns"]
            assert ratio == pytest.approx(info["peers"][name] / ours_ns, rel=1e-2)
    assert {"model", "host_isa", "governor", "load_before", "load_after", "peers"} <= set(data["machine_info"])
    assert data["haian"]["ceilings"]["1"]["gflops"]["float32"] > 0


def test_pytest_benchmark_reads_it(finished, capsys, monkeypatch):
    cli = pytest.importorskip("pytest_benchmark.cli")
    monkeypatch.setattr(sys, "argv", ["pytest-benchmark", "compare", str(finished[0] / "bench.json"), "--columns=min,median"])
    cli.main()
    assert "exp/square_4096" in capsys.readouterr().out


def test_the_same_cases_run_under_pytest_benchmark(tmp_path):
    out = tmp_path / "out.json"
    root = Path(__file__).resolve().parent.parent
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}  # pytest-benchmark refuses to measure in a worker
    env["HAIAN_BENCH_SUITE"] = "calls"
    run = subprocess.run([sys.executable, "-m", "pytest", "bench/", "--benchmark-only", "-p", "no:cacheprovider", "-k", "exp/call_16",
                          f"--benchmark-json={out}"], cwd=root, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = json.loads(out.read_text())["benchmarks"]
    assert {b["extra_info"]["case"] for b in rows} == {"call_16", "call_16_allocating"}
    assert all(set(b["extra_info"]) >= INFO for b in rows)


def test_page_is_whole(finished):
    folder, summary = finished
    page = (folder / "index.html").read_text()
    assert page == report.page(summary, [json.loads(x) for x in (folder / "history.jsonl").read_text().splitlines()])
    assert page.count("<svg") >= 3  # ratios, roofline, history
    assert "http-equiv" not in page and "src=" not in page and "<link" not in page
    for name in OPS:
        assert f">{name}<" in page, name
    for word in ("losses first", "geometric mean", "AVX" if "avx" in summary.facts["host_isa"].lower() else summary.facts["host_isa"], "性能测试"):
        assert word.lower() in page.lower(), word


def test_losses_come_first(finished):
    worst = [r.worst for r in finished[1].timed]
    assert worst == sorted(worst)
    lines = str(finished[1]).splitlines()
    assert lines[0].split()[:3] == ["operator", "case", "dtype"]
    assert finished[1].timed[0].case.sample.name in lines[1]


def test_compare(finished, tmp_path):
    path = finished[0] / "bench.json"
    data = json.loads(path.read_text())
    for b in data["benchmarks"]:
        b["stats"]["min"] /= 2
    dropped = data["benchmarks"].pop()["extra_info"]
    other = tmp_path / "b.json"
    other.write_text(json.dumps(data))
    said = compare(path, other)
    assert "geometric mean of a/b over 3 rows: 2.000x" in said if len(data["benchmarks"]) == 3 else "2.000x" in said
    assert f"only in a: {dropped['op']}/{dropped['case']}" in said
    assert compare(path, path).count("1.00x") == len(data["benchmarks"]) + 1
    assert compare(finished[0], finished[0]) == compare(path, path)  # folders
    row = data["benchmarks"][0]
    for broken in ({}, [1, 2], {**data, "benchmarks": []}, {**data, "benchmarks": [3]}, {**data, "benchmarks": [{**row, "stats": {}}]},
                   {**data, "benchmarks": [{**row, "extra_info": {"op": "exp"}}]}, {"benchmarks": [row]}):
        (tmp_path / "c.json").write_text(json.dumps(broken))
        with pytest.raises(ArgumentError, match="no rows|no bench"):
            compare(path, tmp_path / "c.json")
    with pytest.raises(ArgumentError, match="missing.json"):
        compare(path, tmp_path / "missing.json")


def test_an_operator_without_a_kernel_is_shown(ours, monkeypatch):
    (case,) = cases("quick", "exp")

    def refuse(*args, **kwargs):
        raise HaianError("exp: no kernel")

    monkeypatch.setattr(runner.Ours, "call", refuse)
    row = runner.time_case(small(case), ours, [], 1, 0.0)
    assert row.error == "exp: no kernel"
    summary = runner.Summary([row], machine.facts(haian.device("cpu:0"), {}) | {"started": "2000-01-01T00:00:00", "suite": "quick"}, {}, {}, {}, "quick")
    assert "exp: no kernel" in str(summary) and "exp: no kernel" in report.page(summary)
    assert report.as_json(summary)["haian"]["failed"][0]["reason"] == "exp: no kernel"


def test_simulated_devices_are_refused():
    with pytest.raises(ArgumentError, match="never benchmarked"):
        runner.run("sim:0")


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "time_case", None)
    monkeypatch.setattr(runner, "measure", None)
    (tmp_path / "file").write_text("")
    for wrong in ("/proc/nope", tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ArgumentError, match="bench: .*cannot hold a report"):
            runner.run(ops="exp", report=str(wrong))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(EnvironmentMissing, match=r"jinja2.*haian\[bench\]"):
        runner.run(ops="exp", report=str(tmp_path / "never"))
    assert not (tmp_path / "never").exists()


def test_thread_counts():
    assert runner.thread_counts("1,all") == list(dict.fromkeys([1, peers.host_threads()]))
    assert runner.thread_counts("2, 3", on_host=False) == [2]
    for bad in ("0", "many", "", "²", str(peers.host_threads() + 1)):
        with pytest.raises(ArgumentError, match="threads"):
            runner.thread_counts(bad)


def test_threads_are_put_back():
    before = haian.num_threads()
    with runner.conditions([], before + 1):
        assert haian.num_threads() == before + 1
    assert haian.num_threads() == before


def test_durations():
    assert [report.duration(x) for x in (12.34, 4560, 789_000, 1_230_000, 2e9)] == ["12.3 ns", "4.56 us", "789 us", "1.23 ms", "2 s"]


def test_geometric_mean():
    assert runner.geometric_mean([1, 4]) == pytest.approx(2) and math.isnan(runner.geometric_mean([]))
    assert runner.geometric_mean([2, math.inf]) == 2
