"""The command line as a person types it: output, one-line errors, exit codes 0 1 2 3."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from haian.kernels.ops import OPS

import haian


def run(*args, **env):
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
        record, impl = OPS[r["name"]], r["impl"]
        own = impl["c"] and impl["triton"]
        assert own != bool(impl["composite"] or impl["view"]), (r["name"], impl)  # a reason belongs to those without kernels
        assert impl == {"c": own, "triton": own, "composite": record.composite, "view": record.views}
        assert r["cases"] > 0
    assert len(run("ops", "list").stdout.splitlines()) >= len(OPS)


def test_ops_show():
    done = run("ops", "show", "softmax")
    assert done.returncode == 0 and OPS["softmax"].schema in done.stdout and "llama_vocab" in done.stdout
    assert "terms by the shapes" in done.stdout and " at 0x" not in done.stdout


@pytest.mark.parametrize(("args", "code", "words"), [
    (("ops", "show", "sofmax"), 2, "did you mean softmax"),
    (("conformance", "run", "--device", "moon:0"), 2, "cpu:0"),
    (("conformance", "run", "--level", "extreme"), 2, "core"),
    (("conformance", "run", "--shard", "9/3"), 2, "shard"),
    (("bench", "run", "--device", "sim:0"), 2, "sim"),
    (("nonsense",), 2, "nonsense"),
    (("--nonsense",), 2, "--nonsense"),
    (("devicez",), 2, "did you mean 'devices'"),
    (("ops", "show"), 2, "missing argument"),
    (("conformance", "verify", "a", "b"), 2, "haian conformance verify --help"),
    (("conformance", "run", "--seed", "x"), 2, "--seed"),
    (("conformance", "run", "--devcie", "cpu:0"), 2, "--device"),
    (("conformance", "run", "--ops", ","), 2, "names nothing"),
    (("conformance", "run", "--ops", ""), 2, "'--ops': is empty"),
    (("conformance", "run", "--case", ""), 2, "'--case': is empty"),
    (("conformance", "run", "--shard", ""), 2, "'--shard': is empty"),
    (("conformance", "run", "--report", " "), 2, "'--report': is empty"),
    (("conformance", "run", "--ops", "add,nosuch"), 2, "'nosuch' matches no case"),
    (("conformance", "run", "--ops", "add", "--case", "sign/f32/prime"), 2, "leave one out"),
    (("conformance", "run", "--timeout-s", "nan"), 2, "timeout_s nan"),
    (("conformance", "run", "--timeout-s", "0"), 2, "timeout_s 0"),
    (("conformance", "list", "--level", "foo"), 2, "level 'foo'"),
    (("conformance", "list", "--ops", "nosuch"), 2, "'nosuch' matches no case"),
    (("conformance", "verify", "/nowhere"), 2, "No such file"),
    (("bench", "run", "--ops", "exp,nosuch"), 2, "'nosuch' matches no case"),
    (("bench", "run", "--ops", "exp", "--report", "/proc/nope"), 2, "cannot hold a report"),
    (("bench", "run", "--threads", "100000"), 2, "CPU"),
    (("bench", "compare", "/nowhere", "/nowhere"), 2, "No such file"),
])
def test_usage_errors_are_one_line_and_exit_2(args, code, words):
    done = run(*args)
    assert done.returncode == code, done.stderr
    assert words in done.stderr and done.stderr.startswith("haian: ") and done.stderr.count("\n") == 1 and not done.stdout, done.stderr


def test_version_and_help():
    assert run("--version").stdout == run("version").stdout == f"{haian.__version__}\n"
    assert "conformance" in run("--help").stdout
    done = run("bench")
    assert done.returncode == 2 and "compare" in done.stderr + done.stdout and "Traceback" not in done.stderr


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


UNFINISHED = '''
from haian.hal.driver import Driver
class MychipDriver(Driver):
    name = "mychip"
    def device_count(self):
        return 1
'''


def without(tmp_path, *names):
    """An environment in which some packages are not there, for child processes too."""
    (tmp_path / "sitecustomize.py").write_text(f"""import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in {names!r} else find_spec(name, package)
""")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH", ""))))}


@pytest.mark.parametrize(("absent", "args", "words"), [
    ("scipy", ("-m", "haian.cli", "conformance", "run", "--ops", "full"), "haian[conformance]"),
    ("jinja2", ("-m", "haian.cli", "conformance", "run", "--ops", "full", "--report", "FOLDER"), "haian[conformance]"),
    ("jinja2", ("-m", "haian.cli", "bench", "run", "--ops", "exp", "--report", "FOLDER"), "haian[bench]"),
    ("triton", ("-m", "haian.cli", "conformance", "run", "--device", "sim:0", "--ops", "full"), "haian[triton]"),
    ("jinja2", ("-m", "haian.demo", "--report", "FOLDER"), "haian[conformance]"),
    ("scipy", ("-m", "haian.demo", "--report", "FOLDER"), "haian[conformance]"),
    ("scipy", ("-m", "haian.conformance", "cpu:0"), "haian[conformance]"),
])
def test_a_missing_extra_is_one_line_before_anything_runs(absent, args, words, tmp_path):
    args = [str(tmp_path / "report") if a == "FOLDER" else a for a in args]
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, env={**os.environ, **without(tmp_path, absent)})
    assert done.returncode == 3, done.stderr
    assert absent in done.stderr.lower() and words in done.stderr and done.stderr.count("\n") == 1 and not done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "report").exists()


def test_an_unfinished_driver_is_an_environment_error(tmp_path):
    path = tmp_path / "mychip.py"
    path.write_text(UNFINISHED)
    path.chmod(0o644)
    for args in (("conformance", "run", "--device", "mychip:0"), ("bench", "run", "--device", "mychip:0", "--ops", "exp", "--peers", "")):
        done = run(*args, HAIAN_ADAPTER_PATH=str(path))
        assert done.returncode == 3 and done.stderr.count("\n") == 1 and "mychip: no props; every driver needs it" in done.stderr, done.stdout + done.stderr


def test_wrong_settings_in_the_environment_are_usage_errors():
    for name, args in (("HAIAN_VALIDATE", ("devices",)), ("HAIAN_FALLBACK", ("ops", "show", "exp"))):
        done = run(*args, **{name: "foo"})
        assert done.returncode == 2 and f"{name}=foo; needs" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_bench_compares_folders(tmp_path):
    for name in "ab":
        assert run("bench", "run", "--suite", "calls", "--ops", "exp", "--peers", "", "--report", str(tmp_path / name)).returncode == 0
    done = run("bench", "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert done.returncode == 0 and "geometric mean of a/b over 2 rows" in done.stdout
