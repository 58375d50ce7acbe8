"""Plugins that crash, exit or hang while loading end a child process, never this one; their reason is recorded."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import EntryPoint

import pytest
from haian.hal import probe, registry
from haian.hal.c_driver import HEADER
from haian.hal.errors import ArgumentError, InternalError
from haian.hal.registry import Registry

CC = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
needs_compiler = pytest.mark.skipif(CC is None, reason="broken plugins are compiled: no C compiler here")

# one line of C each, and what the record says of it
BROKEN = {
    "segfault": ("__attribute__((constructor)) void die(void) { *(volatile int *)0 = 1; }", "died of SIGSEGV while it was loaded"),
    "abort": ("__attribute__((constructor)) void die(void) { abort(); }", "died of SIGABRT while it was loaded"),
    "exits": ("__attribute__((constructor)) void die(void) { exit(3); }", "ended the process with exit code 3 while it was loaded"),
    "leaves": ("__attribute__((constructor)) void die(void) { _exit(0); }", "ended the process with exit code 0 while it was loaded"),
    "hangs": ("__attribute__((constructor)) void die(void) { for (;;) pause(); }", "did not end within 2 s while it was loaded"),
    "in_get": ("const hal_adapter *hal_get_adapter(const hal_host *h) { return *(const hal_adapter *const *)(uintptr_t)(h->abi_major * 8); }", "died of SIGSEGV while it was loaded"),
}
HEAD = '#include "haian_hal.h"\n#include <stdlib.h>\n#include <unistd.h>\n'
GOOD = """
from haian.hal.driver import Capabilities, Driver

class GoodDriver(Driver):
    name, vendor, version = "good", "nobody", "1"
    def device_count(self):
        return 1
    def props(self, device):
        return Capabilities(model="Good 1", total_bytes=1, max_alloc_bytes=1)
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The folder of all broken plugins, compiled at once."""
    folder = tmp_path_factory.mktemp("broken")
    for name, (code, _) in BROKEN.items():
        (folder / f"{name}.c").write_text(HEAD + code)
        subprocess.run([CC, "-shared", "-fPIC", "-O1", f"-I{HEADER.parent}", "-o", str(folder / f"{name}.so"), str(folder / f"{name}.c")], check=True)
    return folder


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("HAIAN_ADAPTERS", "HAIAN_ADAPTER_PATH", "HAIAN_ADAPTER_ALLOW", "HAIAN_VALIDATE", "HAIAN_ADAPTER_PROBE"):
        monkeypatch.delenv(name, raising=False)


@needs_compiler
def test_every_kind_of_crash_is_recorded_and_the_good_one_works(broken, tmp_path, monkeypatch):
    (tmp_path / "good.py").write_text(GOOD)
    monkeypatch.setenv("HAIAN_ADAPTER_PROBE", "2")
    monkeypatch.setenv("HAIAN_ADAPTER_PATH", os.pathsep.join([str(broken), str(tmp_path / "good.py")]))
    # the limit counts from each child's start, and six of them share the machine: only the hanging one may be late
    monkeypatch.setattr(probe, "limit_s", lambda: 2.0)
    real = probe.start
    monkeypatch.setattr(probe, "start", lambda source, limit: real(source, limit if "hangs" in str(source) else 60.0))
    begin = time.monotonic()
    r = Registry()
    assert "good:0" in [d.name for d in r.devices()]
    assert time.monotonic() - begin < 60
    records = {x.name: x for x in r.records()}
    for name, (_, why) in BROKEN.items():
        assert records[name].status == "failed" and isinstance(records[name].error, InternalError), name
        assert why in str(records[name].error) and "\n" not in str(records[name].error)
    with pytest.raises(ArgumentError, match="died of SIGSEGV"):
        r.device("segfault")


@needs_compiler
@pytest.mark.parametrize("command", ["devices", "doctor"])
def test_the_command_line_survives(broken, command):
    paths = os.pathsep.join(str(broken / f"{n}.so") for n in ("segfault", "exits"))
    done = subprocess.run([sys.executable, "-m", "haian.cli", command, "--json"], capture_output=True, text=True, env={**os.environ, "HAIAN_ADAPTER_PATH": paths})
    assert done.returncode == (1 if command == "doctor" else 0), done.stderr
    said = json.loads(done.stdout)
    if command == "devices":
        assert said[0]["device"] == "cpu:0"
    else:
        errors = {a["name"]: a["error"] for a in said["adapters"]}
        assert "SIGSEGV" in errors["segfault"] and "exit code 3" in errors["exits"]


CASES = {
    "raises": ("raise OSError('no such library')", "", "OSError: no such library"),
    "exits": ("import sys\nsys.exit(4)", "ended the process with exit code 4 while it was loaded", ""),
    "counts": ("device_count", "died of SIGKILL in device_count", ""),
    "props": ("props", "died of SIGKILL in props", ""),
}


@pytest.mark.parametrize("name", CASES)
def test_drivers_in_python(name, tmp_path):
    code, died, error = CASES[name]
    kill = "import os\n        os.kill(os.getpid(), 9)"
    text = {"device_count": GOOD.replace("return 1\n", f"{kill}\n", 1), "props": GOOD.replace("return Capabilities", f"{kill}\n        return Capabilities")}
    path = tmp_path / f"{name}.py"
    path.write_text(text.get(code, code))
    outcome = probe.start(path, 60.0)()
    assert outcome.died == died and outcome.error == error
    assert probe.start(path, 60.0)() is outcome, "an unchanged file is tried once"


def test_facts_and_output(tmp_path):
    path = tmp_path / "good.py"
    path.write_text("print('hello from the plugin')\n" + GOOD)
    outcome = probe.start(path, 60.0)()
    assert not outcome.died and outcome.said == "hello from the plugin" and outcome.seconds > 0
    assert (outcome.facts["name"], outcome.facts["count"], outcome.facts["kind"], outcome.facts["groups"]) == ("good", 1, "Python", [])
    assert outcome.facts["capabilities"][0]["model"] == "Good 1"


def test_foreign_entry_points_are_tried_and_own_ones_are_not(tmp_path, monkeypatch):
    (tmp_path / "probed_chip.py").write_text("import os\nif os.environ.get('HAIAN_ADAPTER_PROBE') == '0':\n    os._exit(5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = []
    real = probe.start
    monkeypatch.setattr(probe, "start", lambda source, limit: asked.append(source.name) or real(source, limit))
    points = [EntryPoint("cpu", "haian.adapters.cpu:CpuDriver", registry.GROUP), EntryPoint("chip", "probed_chip:Chip", registry.GROUP)]
    r = Registry(lambda: points)
    assert [d.name for d in r.devices()] == ["cpu:0"] and asked == ["chip"]
    assert "exit code 5" in str(r.records()[1].error)


def test_it_can_be_turned_off(tmp_path, monkeypatch):
    (tmp_path / "good.py").write_text(GOOD)
    monkeypatch.setenv("HAIAN_ADAPTER_PATH", str(tmp_path / "good.py"))
    monkeypatch.setattr(probe, "start", lambda *_: pytest.fail("tried although it is off"))
    monkeypatch.setenv("HAIAN_ADAPTER_PROBE", "0")
    assert "good:0" in [d.name for d in Registry().devices()]
    (tmp_path / "good.py").write_text("raise SystemExit(3)")
    r = Registry()
    assert [d.name for d in r.devices()][0] == "cpu:0" and "SystemExit 3" in str(next(x for x in r.records() if x.name == "good").error)


@pytest.mark.parametrize(("text", "seconds"), [("", probe.LIMIT_S), ("0", 0.0), ("2.5", 2.5), ("-1", 0.0), ("soon", probe.LIMIT_S)])
def test_the_limit(text, seconds, monkeypatch):
    monkeypatch.setenv("HAIAN_ADAPTER_PROBE", text)
    assert probe.limit_s() == seconds
