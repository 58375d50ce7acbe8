"""`haian adapter new | check | include` as a vendor types them; every kind of template passes as it is written."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from haian.hal.c_driver import HEADER
from haian.hal.errors import ArgumentError

from haian import adapter_cli

CC = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
MAKE = shutil.which("make")
needs_compiler = pytest.mark.skipif(not (CC and MAKE), reason="templates in C are compiled: no C compiler or no make here")
KINDS = {"table": "L2", "c": "L2", "python": "L1"}  # and the level each reaches as written
ENV = {**{k: v for k, v in os.environ.items() if not k.startswith("HAIAN_")}, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(*args, cwd=None, **env):
    return subprocess.run([sys.executable, "-m", "haian.cli", "adapter", *args], capture_output=True, text=True, cwd=cwd, env={**ENV, **env})


def build(kind, parent, name="mychip"):
    folder = adapter_cli.write(name, kind, parent)
    if kind != "python":
        done = subprocess.run(["make", "-s", *([] if CC.endswith("/cc") else [f"CC={CC}"])], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    return folder


# ---- new -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_new_writes_a_package_without_leftover_words(kind, tmp_path):
    done = run("new", "my_chip", f"--{kind}", cwd=tmp_path)
    assert done.returncode == 0 and "FILL IN" in done.stdout, done.stderr
    files = {p.relative_to(tmp_path / "my_chip").as_posix(): p.read_text() for p in (tmp_path / "my_chip").rglob("*") if p.is_file()}
    assert {"README.md", "pyproject.toml", "tests/test_my_chip.py", "haian_my_chip/__init__.py", "haian_my_chip/conformance.toml"} <= set(files)
    for name, text in files.items():
        assert not re.search(r"@\w+@", text), name
        if name.endswith(".py"):
            compile(text, name, "exec")
    assert f'my_chip = "haian_my_chip:{"library" if kind == "c" else "MyChipDriver"}"' in files["pyproject.toml"]
    assert any("FILL IN" in text for name, text in files.items() if name != "README.md")
    listed = set(re.findall(r"^\| `([^`]+)`", files["README.md"], re.M))
    assert listed <= set(files), "README.md names a file that is not there"
    if kind == "c":
        assert files["haian_my_chip/haian_hal.h"] == HEADER.read_text()


def test_a_table_is_what_new_writes_by_default(tmp_path):
    assert run("new", "mychip", "--folder", str(tmp_path)).returncode == 0
    assert "Runtime(" in (tmp_path / "mychip/haian_mychip/runtime.py").read_text()


@pytest.mark.parametrize("name", ["", "MyChip", "9chip", "my-chip", "my chip", "../chip", "a" * 32, "chíp", "cpu", "sim", "cuda", "haian", "class", "import"])
def test_bad_and_taken_names(name, tmp_path):
    with pytest.raises(ArgumentError, match="needs a lower-case word|is taken|is a word of") as error:
        adapter_cli.write(name, "c", tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("args", "words"), [
    (("new", "My Chip"), "lower-case word"), (("new", "mychip"), "exists already"), (("new", "other", "--c", "--python"), "needs one of them"),
    (("new", "sim"), "taken by an installed adapter"), (("check", "mychip", "--level", "L9"), "L0, L1, L2, L3")])
def test_usage_errors_are_one_line_and_exit_2(args, words, tmp_path):
    (tmp_path / "mychip").mkdir()
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list((tmp_path / "mychip").iterdir())


def test_include():
    done = run("include")
    assert done.returncode == 0 and (Path(done.stdout.strip()) / "haian_hal.h").is_file()


# ---- check -----------------------------------------------------------------------------------------------------------------
@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_every_template_passes_L0_as_written(kind, tmp_path):
    folder = build(kind, tmp_path)
    done = run("check", ".", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("level L0 granted", "template", "next:", "still the template's host memory", "FILL IN", {"c": "made as\tC, ABI 1.0", "table": "made as\ttable", "python": "made as\tPython"}[kind]):
        assert word in done.stdout, word


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_and_reaches_further(kind, tmp_path):
    """All checks of its level behind L0 but three that load the machine for seconds; `make check` runs them all."""
    from haian.conformance.hal_runner import hal_cases, run_device

    folder = build(kind, tmp_path)
    wanted = [c.id for c in hal_cases(KINDS[kind]) if c.level != "L0" and c.check.name not in ("many_streams", "reuse", "shared_stream")]
    file = {"c": folder / "haian_mychip/mychip.so"}.get(kind, folder / "haian_mychip/runtime.py")
    summary = run_device(f"{file}:0", level=KINDS[kind], patterns=wanted, quiet=True)
    assert summary.ok, [(f["id"], f["message"]) for f in summary.failures]
    assert summary.counts["pass"] >= (30 if kind == "python" else 75)


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_make_check_works_before_and_behind_an_installation(kind, tmp_path):
    """`pip install .` leaves build/ and haian_mychip.egg-info beside haian_mychip; neither is an adapter."""
    folder = build(kind, tmp_path)
    (folder / "haian_mychip.egg-info").mkdir()
    (folder / "build" / "lib").mkdir(parents=True)
    text = (folder / "Makefile").read_text()
    assert f"--level {KINDS[kind]}" in text
    (folder / "Makefile").write_text(text.replace(f"--level {KINDS[kind]}", "--level L0"))
    done = subprocess.run(["make", "-s", "check"], cwd=folder, capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and "level L0 granted" in done.stdout, done.stdout + done.stderr
    (folder / "haian_other").mkdir()
    assert run("check", ".", cwd=folder).returncode == 3  # two packages: which one is not guessed


def test_what_a_device_that_cannot_say_what_it_is_costs(tmp_path):
    """`haian devices` lists the others, and says on stderr why it and broken adapters are not there."""
    folder = adapter_cli.write("mychip", "python", tmp_path)
    path = folder / "haian_mychip/runtime.py"
    path.write_text(path.read_text().replace("        self._check(device)  # FILL IN: your facts", "        raise ArgumentError('no\\nfacts')  # FILL IN: your facts"))
    (tmp_path / "many.py").write_text("from haian.hal.driver import Driver\nclass Many(Driver):\n    name = 'many'\n    def device_count(self):\n        return 2_000_000_000\n")
    (tmp_path / "boom.py").write_text("raise RuntimeError('boom\\nsecond line')\n")
    (tmp_path / "odd.py").write_text("from haian.hal.driver import Driver\nclass Odd(Driver):\n    name = 'odd'\n    def device_count(self):\n        return 1\n"
                                     "    def props(self, device):\n        raise KeyError('no\\nfact')\n")
    (tmp_path / "own.py").write_text("from haian.hal.driver import Driver\nclass Own(Driver):\n    name = 'haian'\n    def device_count(self):\n        return 1\n")
    env = {**ENV, "HAIAN_ADAPTER_PATH": os.pathsep.join(map(str, (path, tmp_path / "many.py", tmp_path / "boom.py", tmp_path / "odd.py", tmp_path / "own.py")))}

    def haian(*words):
        return subprocess.run([sys.executable, "-m", "haian.cli", *words], capture_output=True, text=True, env=env, timeout=60)

    done = haian("devices")
    assert done.returncode == 0 and "cpu:0" in done.stdout and "sim:0" in done.stdout and "mychip" not in done.stdout, done.stderr
    for words in ("mychip:0: its props failed: ArgumentError: no facts", "odd:0: its props failed: KeyError: ", "many failed: adapter 'many': device_count() gave 2000000000; needs 0 to 256",
                  "boom failed: adapter boom: RuntimeError: boom second line", "haian failed: adapter name 'haian' is haian's own"):
        assert sum(words in line for line in done.stderr.splitlines()) == 1, (words, done.stderr)
    rows = json.loads(haian("devices", "--json").stdout)
    assert {r["device"]: r.get("error") for r in rows}["mychip:1"] == "ArgumentError: no facts"
    done = haian("doctor")
    assert done.returncode == 1 and "boom second line" in done.stdout and "odd:0 (props failed: 'no" in done.stdout and "Traceback" not in done.stderr


def test_doctor_folds_what_is_left_out():
    for words, folded in ((["doctor"], True), (["doctor", "--verbose"], False)):
        done = subprocess.run([sys.executable, "-m", "haian.cli", *words], capture_output=True, text=True, env={**ENV, "HAIAN_ADAPTERS": "sim"})
        assert done.returncode == 0 and ("skipped, since HAIAN_ADAPTERS=sim does not name them: ascend, " in done.stdout) == folded, done.stdout
        assert ("\nascend\t" in done.stdout) != folded


def test_load_adapter_raises_one_line(tmp_path):
    from haian.hal.errors import InternalError
    from haian.hal.registry import Registry

    for text, error, words in (("raise RuntimeError('boom\\nsecond line')", InternalError, "adapter boom: RuntimeError: boom second line"),
                               ("from haian.hal.errors import ArgumentError\nraise ArgumentError('a\\nb')", ArgumentError, "a b"), ("1 / 0", ZeroDivisionError, "zero")):
        (tmp_path / "boom.py").write_text(text)
        with pytest.raises(error, match=words) as said:
            Registry().load_adapter(tmp_path / "boom.py")
        assert "\n" not in str(said.value)


def test_a_report_says_what_it_is_about(tmp_path):
    """The adapter's file by its digest, haian's version, what was not offered, and that validation is not the environment's affair."""
    import hashlib

    folder = adapter_cli.write("mychip", "python", tmp_path)
    path = folder / "haian_mychip/runtime.py"
    done = run("check", str(path), "--report", str(tmp_path / "report"), HAIAN_VALIDATE="1")
    assert done.returncode == 0, done.stdout
    header = json.loads((tmp_path / "report/report.jsonl").read_text().splitlines()[0])
    assert header["extra"]["adapter sha256"].split()[0] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert header["extra"]["haian"].startswith("0.") and "stream" in header["extra"]["not offered, so not checked"]
    assert header["validation"] == ["off", "on"]
    page = (tmp_path / "report/index.html").read_text()
    assert header["extra"]["adapter sha256"].split()[0] in page and "HAIAN_VALIDATE changes neither" in page


def test_what_is_missing_next(tmp_path):
    folder = adapter_cli.write("mychip", "python", tmp_path)
    done = run("check", str(folder / "haian_mychip/runtime.py"), "--json")
    said = json.loads(done.stdout)
    assert done.returncode == said["exit_code"] == 0 and said["level"] == "L0" and not said["failures"]
    assert [s.partition(":")[0] for s in said["next"]][:6] == ["it is still the template's host memory", "--level L1", "dtypes -", "stream", "event", "module"]
    assert said["facts"]["count"] == 2 and said["facts"]["capabilities"][0]["total_bytes"] == 256 << 20


def test_a_failing_check_exits_1_and_names_it(tmp_path):
    folder = adapter_cli.write("mychip", "python", tmp_path)
    path = folder / "haian_mychip/runtime.py"
    path.write_text(path.read_text().replace("total_bytes=TOTAL", "total_bytes=0"))
    done = run("check", str(folder))
    assert done.returncode == 1 and "FAIL hal/10" in done.stdout and "total_bytes" in done.stdout, done.stdout


CRASHES = {"import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": (1, "died of SIGSEGV"), "print('last words'); import os; os._exit(3)": (1, "exit code 3"),
           "1 / 0": (1, "ZeroDivisionError"), "from haian.hal.errors import EnvironmentMissing\nraise EnvironmentMissing('no libchip.so')": (3, "no libchip.so")}


@pytest.mark.parametrize("code", CRASHES)
def test_what_does_not_load(code, tmp_path):
    (tmp_path / "bad.py").write_text(code)
    done = run("check", str(tmp_path / "bad.py"))
    assert done.returncode == CRASHES[code][0] and CRASHES[code][1] in done.stdout and "Traceback" not in done.stderr, done.stdout + done.stderr
    if "last words" in code:
        assert "last words" in done.stdout


def test_no_such_adapter_no_device_and_not_built(tmp_path):
    for path, words in ((str(tmp_path / "gone.so"), "no such file"), ("gone", "not installed")):
        done = run("check", path)
        assert done.returncode == 3 and words in done.stderr and len(done.stderr.splitlines()) == 1
    done = run("check", "cuda" if not shutil.which("nvidia-smi") else "sdaa")
    assert done.returncode == 3 and "looked at" in done.stdout
    for kind, words in (("c", "build it first, `make`"), ("table", "libmychip_rt.so")):
        (tmp_path / kind).mkdir()
        done = run("check", str(adapter_cli.write("mychip", kind, tmp_path / kind)))
        assert done.returncode == 3 and words in done.stdout + done.stderr, done.stdout + done.stderr
    folder = adapter_cli.write("other", "python", tmp_path)
    (folder / "haian_other/runtime.py").chmod(0o666)
    done = run("check", str(folder))
    assert done.returncode == 3 and "writable by everyone" in done.stderr


def test_an_installed_adapter_by_name():
    done = run("check", "sim", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["facts"]["name"] == "sim"


# ---- as a package ------------------------------------------------------------------------------------------------------------
@needs_compiler
def test_the_package_installs_and_its_entry_point_gives_a_path(tmp_path):
    """A driver in C: the entry point names a function that gives the .so; its rules come from the package."""
    folder = build("c", tmp_path)
    shutil.rmtree(folder / "tests")
    (folder / "haian_mychip/conformance.toml").write_text('[not_offered]\n"hal/13*" = "said by the package"\n')
    site = tmp_path / "site"
    pip = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index", "--target", str(site), str(folder)],
                         capture_output=True, text=True, env=ENV)
    if "setuptools" in pip.stderr and "No module named" in pip.stderr:
        pytest.skip("setuptools is not installed here")
    assert pip.returncode == 0, pip.stderr
    code = ("import haian\nx = haian.asarray([1.0, 2.0], device='mychip:1')\nassert x.tolist() == [1.0, 2.0]\n"
            "from haian.conformance.allowances import load\nprint(load('mychip:0').not_offered[0].reason)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**ENV, "PYTHONPATH": str(site)})
    assert done.stdout.strip() == "said by the package", done.stderr
