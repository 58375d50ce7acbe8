"""conformance/runner.py and allowances.py: child processes, crash and hang as results, resume, shards, a vendor's rules."""
from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from haian.conformance import allowances, list_cases, runner, witness
from haian.conformance.allowances import Allowances, Rule
from haian.conformance.cases import cases, find
from haian.conformance.runner import parse_shard, patterns, run
from haian.conformance.target import DeviceTarget, FunctionTarget
from haian.hal.errors import ArgumentError, EnvironmentMissing, InternalError, Unsupported


# ---- targets a child process makes by name ----------------------------------------------------------------------------------
def crashing():
    """Dies at log_softmax, hangs at argmax, else NumPy."""
    target = witness.numpy_target()

    def die(tensors, attrs):
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(tensors, attrs):
        time.sleep(60)

    target.table["log_softmax"] = die
    target.table["argmax"] = hang
    return target


class FallsBack(FunctionTarget):
    """Counts one fallback a call of exp, as dispatch does on a device without a kernel."""

    def __init__(self):
        super().__init__("fallback", witness.numpy_target().table)
        self.count = 0

    def call(self, op, tensors, attrs, outs):
        self.count += op.name == "exp"
        return super().call(op, tensors, attrs, outs)

    def fallbacks(self):
        return {"exp": self.count}


def local(ops, target=witness.numpy_target, **more):
    return run(ops=ops, make=target, arguments=(), quiet=True, **more)


def some(pattern):
    """The id of one case; which samples a second dtype gets is the suite's choice."""
    return cases("core", (pattern,))[0].id


# ---- runs -------------------------------------------------------------------------------------------------------------------
def test_crash_and_hang_are_results_and_the_run_goes_on(tmp_path):
    ids = ("softmax/f32/prime", "log_softmax/f32/prime", "argmax/f32/prime", "softmax/f32/one")
    summary = local(ids, crashing, timeout_s=5, report=tmp_path)
    lines = {x["id"]: x for x in map(json.loads, (tmp_path / "report.jsonl").read_text().splitlines()) if "id" in x}
    assert {k: x["result"] for k, x in lines.items()} == {ids[0]: "pass", ids[1]: "crash", ids[2]: "timeout", ids[3]: "pass"}
    assert "SIGKILL" in lines[ids[1]]["message"] and "5 s; in test_runner.py:" in lines[ids[2]]["message"]
    assert summary.counts["crash"] == summary.counts["timeout"] == 1 and not summary.ok and len(summary.failures) == 2


def test_resume_runs_what_is_missing(tmp_path):
    full = local("softmax", report=tmp_path)
    rows = (tmp_path / "report.jsonl").read_text().splitlines()
    kept = rows[:11]  # the header and ten results, then a line cut off in the middle
    (tmp_path / "report.jsonl").write_text("\n".join(kept) + "\n" + rows[11][:20])
    first = json.loads(kept[1])
    first["message"] = "from the first run"
    (tmp_path / "report.jsonl").write_text("\n".join([kept[0], json.dumps(first), *kept[2:], rows[11][:20]]))
    again = local("softmax", report=tmp_path, resume=True)
    assert again.counts == full.counts
    lines = [json.loads(t) for t in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert sum(x.get("message") == "from the first run" for x in lines) == 1
    with pytest.raises(ArgumentError, match="seed"):
        local("softmax", report=tmp_path, resume=True, seed=5)


def test_shard_one_case_and_refusals():
    assert local("softmax", shard="2/5").counts["pass"] == len(cases("core", ("softmax",), (2, 5)))
    assert sum(local("", case="sum/f32/past_tile").counts.values()) == 1
    assert parse_shard("3/8") == (3, 8) and patterns("softmax, mm*") == ("softmax", "mm*") and patterns("") == ()
    for wrong in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(ArgumentError, match="i/n"):
            parse_shard(wrong)
    for call, words in ((lambda: local("softmaz"), "'softmaz' matches no case"), (lambda: local("add,softmaz,soft?"), "'softmaz', 'soft\\?' matches no case"),
                        (lambda: local("", case="no/such/case"), "no case"), (lambda: local("softmax", level="gold"), "level"),
                        (lambda: local("softmax", suite="everything"), "suite"), (lambda: local(","), "names nothing"),
                        (lambda: local("add", case="sign/f32/prime"), "together with ops"), (lambda: local("tril", shard="900/900"), "holds no case"),
                        (lambda: local("", case="sign/f32/prime", shard="1/2"), "together with shard"),
                        (lambda: list_cases(ops="nosuch"), "'nosuch' matches no case"), (lambda: list_cases("foo"), "level 'foo'"),
                        (lambda: list_cases(ops="99", suite="hal"), "'99' matches no check"), (lambda: list_cases("L9", suite="hal"), "level 'L9'")):
        with pytest.raises(ArgumentError, match=words):
            call()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("suite", ["ops", "hal"])
def test_time_limits_are_checked(seconds, suite):
    with pytest.raises(ArgumentError, match="timeout_s"):
        run(suite=suite, timeout_s=seconds, quiet=True)


def no_target():
    raise Unsupported("props: not there")


def not_implemented():
    raise NotImplementedError("props")


def not_installed():
    import nowhere_to_be_found  # noqa: F401


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("make", "error", "words"), [(no_target, Unsupported, "props: not there"), (not_implemented, Unsupported, "NotImplementedError: props"),
                                                     (not_installed, EnvironmentMissing, "nowhere_to_be_found"), (dies, InternalError, "SIGKILL")])
def test_what_keeps_a_target_from_being_made_keeps_its_class(make, error, words):
    with pytest.raises(error, match=f"conformance: .*{words}"):
        local("tril", make)


def test_references_need_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(EnvironmentMissing, match=r"scipy.*haian\[conformance\]"):
        local("tril")


def test_a_fallback_is_never_a_pass():
    summary = local(("exp/f32/prime", "log/f32/prime"), FallsBack)
    assert summary.counts["not-offered"] == 1 and summary.counts["pass"] == 1
    assert summary.fallbacks == {"exp": 1} and summary.ok


def test_a_fallback_inside_a_gradient_is_counted():
    """softmax's own kernel runs on the chip, the one that its gradient calls does not (in a process of its own: kernels are chosen once)."""
    pytest.importorskip("triton", reason="Triton not installed")
    code = """
from haian.conformance import runner
from haian.conformance.cases import cases
from haian.conformance.target import DeviceTarget
from haian.kernels.triton import softmax
del softmax.KERNELS["softmax_backward"]
case = next(c for c in cases("core", ("softmax",)) if c.kind == "gradient")
line = {**runner.run_case(case, DeviceTarget("sim:0")).line(), "op": "softmax", "level": "core"}
print(line["result"], line["message"], runner.summarise("sim:0", {"suite": "ops", "expected": {}}, [line], 0.0).fallbacks, sep="; ")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "not-offered; fell back to the host: softmax_backward in 1 calls; {'softmax': 1}", done.stderr


def test_the_host_conforms_through_the_public_face():
    summary = run("cpu:0", ops=("softmax/f32/*", "add/*/row*", "sum/f16/*", "embedding/f32/bad/*", "copy/f32/*/sliced", "*/threads"), quiet=True)
    assert summary.counts["pass"] > 100, summary.failures[:3]
    assert not [x for x in summary.failures if x["kind"] in ("threads", "twice", "alias", "out")], summary.failures[:3]


def test_no_such_device():
    with pytest.raises(ArgumentError, match="nochip"):
        run("nochip:0", ops="softmax", quiet=True)


def test_progress_prints_plain_lines(capsys):
    run(ops="tril", make=witness.numpy_target, arguments=())
    out = capsys.readouterr().out
    assert f"{len(cases('core', ('tril',)))} cases, 0 bad" in out and "\x1b" not in out


def test_a_device_reads_results_and_guards_back():
    """DeviceTarget on the host shares memory: what it writes lands in the Placed buffers."""
    from haian.conformance.memory import place
    from haian.kernels.ops import OPS

    target = DeviceTarget("cpu:0")
    x, out = place(np.arange(15, dtype=np.float32).reshape(3, 5), "transposed"), place(np.empty((3, 5), np.float32), "sliced", fill=True)
    got = target.run(OPS["neg"], (x,), {}, (out,))
    np.testing.assert_array_equal(got[0], -np.arange(15, dtype=np.float32).reshape(3, 5))
    np.testing.assert_array_equal(out.view, got[0])
    assert out.guards_intact() and x.untouched()


# ---- a vendor's rules ---------------------------------------------------------------------------------------------------------
def write(tmp_path, text):
    path = tmp_path / "conformance.toml"
    path.write_text(text)
    return path


def test_rules_are_read(tmp_path):
    rules = allowances.read(write(tmp_path, '''
adapter = "mychip"
[not_offered]
"*/f64/*" = "no double precision"
[expected_failure]
"softmax/bf16/*" = { reason = "rounds exp", until = "2099-01-31" }
"exp" = { reason = "was fixed", until = 2001-01-31 }
[tolerance]
"sin/f32/*" = { reason = "hardware sine", factor = 2 }
[precision]
matmul = "tf32"
subnormals = "flushed"
'''))
    assert rules.missing(find(some("softmax/f64/*"))) == "no double precision" and not rules.missing(find("softmax/f32/prime"))
    assert rules.failure(find(some("softmax/bf16/*"))).startswith("rounds exp")
    assert rules.failure(find("exp/f32/prime")) == ""  # expired
    assert rules.failure(find("exp/f32/prime"), datetime.date(2000, 1, 1))
    assert rules.factor(find("sin/f32/prime")) == 2.0 and rules.factor(find("cos/f32/prime")) == 1.0
    facts = rules.capabilities(witness.numpy_target().capabilities)
    assert facts.reduced_matmul == "tf32" and facts.flushes_subnormals
    assert len(rules.summary()) == 6


@pytest.mark.parametrize(("text", "words"), [
    ("[skip]\n", "unknown table"), ('[not_offered]\n"a" = ""\n', "no reason"), ('[expected_failure]\n"a" = "b"\n', "needs a day"),
    ('[expected_failure]\n"a" = {reason = "b", until = "soon"}\n', "needs a day"), ('[tolerance]\n"a" = {reason = "b", factor = 0.5}\n', "factor"),
    ('[precision]\nmatmul = "fp4"\n', "tf32"), ("not toml", "conformance.toml")])
def test_bad_rules_are_refused(tmp_path, text, words):
    with pytest.raises(ArgumentError, match=words):
        allowances.read(write(tmp_path, text))


def test_shipped_rules_are_readable():
    for vendor in ("cpu", "sim", "null", "cuda", "nowhere"):
        assert isinstance(allowances.load(f"{vendor}:0"), Allowances)


@pytest.mark.parametrize(("adapter", "rules", "first"), [
    ("libmychip.so", "conformance.toml", ""), ("mychip.py", "conformance.toml", ""), ("mychip/runtime.py", "mychip/conformance.toml", ""),
    ("other.so", "conformance.toml", 'adapter = "mychip"\n'), ("project", "project/haian_mychip/conformance.toml", 'adapter = "mychip"\n')])
def test_rules_lie_beside_an_adapter_of_the_path(tmp_path, monkeypatch, adapter, rules, first):
    file = tmp_path / ("project/haian_mychip/runtime.py" if adapter == "project" else adapter)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    if adapter == "project":
        (tmp_path / "project/pyproject.toml").write_text("")
    (tmp_path / rules).write_text(f'{first}[not_offered]\n"exp" = "no exponential"\n')
    assert allowances.load("mychip:0") == Allowances()
    monkeypatch.setenv("HAIAN_ADAPTER_PATH", str(tmp_path / adapter))
    assert allowances.load("mychip:0").not_offered == (Rule("exp", "no exponential"),)
    assert allowances.load("yourchip:0") == allowances.load("nowhere") == Allowances()
    (tmp_path / rules).write_text("not toml")
    assert allowances.load("yourchip:0") == Allowances()
    if not first:
        with pytest.raises(ArgumentError, match=r"conformance\.toml"):
            allowances.load("mychip:0")


def results(rules, ids, target):
    chosen = [find(i) for i in ids]
    return [x["result"] for x in runner.lines_of(chosen, lambda c, factor: runner.run_case(c, target, 0, factor).line(), rules)]


def test_rules_change_results():
    far = datetime.date(2099, 1, 1)
    wrong = witness.numpy_target()
    wrong.table["exp"] = lambda t, a: (np.exp(t[0]) * t[0].dtype.type(1.01),)
    ids = ("exp/f32/prime", "log/f32/prime", some("log/f64/*"))
    rules = Allowances(not_offered=(Rule("*/f64/*", "none"),), expected_failure=(Rule("exp", "known", far), Rule("log", "gone", far)))
    assert results(rules, ids, wrong) == ["xfail", "xpass", "not-offered"]
    assert results(Allowances(), ids, wrong) == ["fail", "pass", "pass"]
    old = Allowances(expected_failure=(Rule("exp", "known", datetime.date(2001, 1, 1)),))
    assert results(old, ids[:1], wrong) == ["fail"]
    near = witness.numpy_target()
    near.table["exp"] = lambda t, a: (np.exp(t[0].astype(np.float64)).astype(np.float32) * np.float32(1 + 6e-7),)
    assert results(Allowances(), ("exp/f32/lanes",), near) == ["fail"]
    assert results(Allowances(tolerance=(Rule("exp", "table", factor=4.0),)), ("exp/f32/lanes",), near) == ["pass"]
