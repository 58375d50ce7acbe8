"""The command line as a person types it: output, one-line errors, exit codes 0 1 2 3."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest
from haian.kernels.ops import OPS


def run(*args, **env):
    import os
    return subprocess.run([sys.executable, "-m", "haian.cli", *args], capture_output=True, text=True, env={**os.environ, **env})


def test_devices():
    done = run("devices", "--json")
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    assert rows[0]["device"] == "cpu:0" and any(r["device"] == "sim:0" for r in rows)
    assert rows[0]["memory_bytes"] > 2**20
    assert "cpu:0" in run("devices").stdout


def test_doctor_names_every_adapter_and_what_is_missing():
    done = run("doctor", HAIAN_CPU_ISA="nonsense")
    assert done.returncode == 0
    for word in ("cpu", "sim", "cuda", "triton", "host kernels", "nonsense"):
        assert word in done.stdout, word


def test_doctor_as_data_says_where_it_looked_and_what_is_unconfirmed():
    done = run("doctor", "--json", LD_LIBRARY_PATH="/nowhere/at/all")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    adapters = {a["name"]: a for a in found["adapters"]}
    assert adapters["cpu"]["devices"] and adapters["cpu"]["version"] and found["host"]["python"]
    hip = adapters["hip"]
    if not hip["devices"]:
        assert hip["note"] and any(place.startswith("/nowhere/at/all") for place in hip["looked"]) and hip["status"] == "loaded"
    assert hip["query_tool"] == "rocm-smi" and "query_tool_path" in hip and hip["visible_devices"] == "HIP_VISIBLE_DEVICES"
    assert set(hip["unconfirmed"]) == {"device"}
    shown = run("doctor").stdout
    assert "1 fact unconfirmed" in shown and "rocm-smi" in shown and "never ran on an AMD GPU" not in shown
    assert "never ran on an AMD GPU" in run("doctor", "--verbose").stdout


def test_ops_list_is_the_records():
    rows = json.loads(run("ops", "list", "--json").stdout)
    assert [r["name"] for r in rows] == list(OPS)
    for r in rows:
        assert set(r) == {"name", "family", "schema", "dtypes", "impl", "cases", "grad", "aten", "onnx"}
        assert r["impl"] == {"c": True, "triton": True}, r["name"]
        assert r["cases"] > 0
    assert len(run("ops", "list").stdout.splitlines()) >= len(OPS)


def test_ops_show():
    done = run("ops", "show", "softmax")
    assert done.returncode == 0 and OPS["softmax"].schema in done.stdout and "llama_vocab" in done.stdout


@pytest.mark.parametrize(("args", "code", "words"), [
    (("ops", "show", "sofmax"), 2, "did you mean softmax"),
    (("conformance", "run", "--device", "moon:0"), 2, "cpu:0"),
    (("conformance", "run", "--level", "extreme"), 2, "core"),
    (("conformance", "run", "--shard", "9/3"), 2, "shard"),
    (("bench", "run", "--device", "sim:0"), 2, "sim"),
    (("nonsense",), 2, "nonsense"),
])
def test_usage_errors_are_short_and_exit_2(args, code, words):
    done = run(*args)
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr


def test_conformance_run_verify_and_diff(tmp_path):
    done = run("conformance", "run", "--ops", "softmax", "--report", str(tmp_path / "a"))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("report.jsonl", "index.html"):
        assert (tmp_path / "a" / name).exists()
    lines = (tmp_path / "a" / "report.jsonl").read_text().splitlines()
    assert len(lines) > 50
    case = next(json.loads(line)["id"] for line in lines if '"id"' in line)
    one = run("conformance", "run", "--case", case)
    assert one.returncode == 0 and "1 pass" in one.stdout
    same = run("conformance", "diff", str(tmp_path / "a"), str(tmp_path / "a"))
    assert same.returncode == 0, same.stdout + same.stderr


def test_a_missing_extra_is_an_environment_error():
    code = "import sys; sys.modules['jinja2'] = None; sys.argv = ['haian', 'conformance', 'run', '--ops', 'full', '--report', '/nonexistent/x']\nimport haian.cli; haian.cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode in (1, 2, 3) and "Traceback" not in done.stderr
