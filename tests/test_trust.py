"""Which files may be loaded: nobody else may have written them, and the allow-list must have their folder."""
from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from haian.hal import registry, trust
from haian.hal.errors import EnvironmentMissing, PermissionRefused
from haian.hal.registry import Registry

SOURCE = """
from haian.hal.driver import Capabilities, Driver

class MineDriver(Driver):
    name = "mine"
    def device_count(self):
        return 1
    def props(self, device):
        return Capabilities(model="Mine 1", total_bytes=1, max_alloc_bytes=1)
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("HAIAN_ADAPTERS", "HAIAN_ADAPTER_PATH", "HAIAN_ADAPTER_ALLOW", "HAIAN_VALIDATE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HAIAN_ADAPTER_PROBE", "0")  # refused in this process; that a probe does not run it either is asserted below


@pytest.fixture
def chip(tmp_path):
    """tmp/open/mine.py, which is trusted."""
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    (folder / "mine.py").write_text(SOURCE)
    return folder / "mine.py"


@pytest.fixture
def others(monkeypatch):
    """Makes a path belong to somebody else, for lstat only: the test need not be root."""
    theirs: set[str] = set()
    real = Path.lstat

    def lstat(self):
        found = real(self)
        fields = list(found)
        if str(self) in theirs:
            fields[4] = 54321
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "lstat", lstat)
    return theirs


def refused(path, match):
    with pytest.raises(PermissionRefused, match=match) as error:
        trust.check_file(path)
    assert "\n" not in str(error.value)


def test_a_file_of_the_user_passes(chip):
    trust.check_file(chip)


@pytest.mark.parametrize("what", ["file", "folder", "grandparent"])
def test_writable_by_everyone(chip, what):
    path = {"file": chip, "folder": chip.parent, "grandparent": chip.parent.parent}[what]
    mode = path.stat().st_mode
    path.chmod(mode | 0o002)
    refused(chip, "writable by everyone; chmod o-w it")
    if what != "file":
        path.chmod(mode | 0o1002)  # sticky, as /tmp: nobody else can put another file there
        trust.check_file(chip)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_belongs_to_somebody_else(chip, others, what):
    others.add(str(chip if what == "file" else chip.parent))
    refused(chip, "belongs to user 54321, neither to you nor to root")


def test_links(chip, tmp_path, others):
    link = tmp_path / "link.py"
    link.symlink_to(chip)
    trust.check_file(link)
    over = tmp_path / "over"
    over.symlink_to("open/../open")  # a relative link, with a step up
    trust.check_file(over / "mine.py")
    chip.parent.chmod(0o777)
    refused(link, f"{chip.parent}: writable by everyone")
    refused(over / "mine.py", "writable by everyone")
    chip.parent.chmod(0o755)
    others.add(str(link))
    refused(link, "belongs to user 54321")
    round_trip = tmp_path / "round.py"
    round_trip.symlink_to(round_trip)
    refused(round_trip, "more than 40 symbolic links")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    with pytest.raises(EnvironmentMissing, match="no such file"):
        trust.check_file(tmp_path / "gone.py")


def test_relative_paths_and_the_current_directory(chip, monkeypatch):
    monkeypatch.chdir(chip.parent)
    r = Registry()
    for path in ("mine.py", "./mine.py", Path("mine.py")):
        with pytest.raises(PermissionRefused, match="relative path"):
            r.load_adapter(path)
    monkeypatch.setenv("HAIAN_ADAPTER_PATH", os.pathsep.join(["mine.py", ".", ""]))
    r = Registry()
    assert all(not d.name.startswith("mine") for d in r.devices())
    assert [type(x.error) for x in r.records() if "HAIAN_ADAPTER_PATH" in x.source] == [PermissionRefused] * 2


def test_packages_that_lie_in_the_current_directory_are_not_found(tmp_path):
    """python -c has the current directory on its path; whoever fills it must not choose what is loaded."""
    info = tmp_path / "evil-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[haian.adapters]\nevil = evil:Evil\n")
    (tmp_path / "evil.py").write_text("print('the evil code ran')\n")
    code = "import haian.hal.registry as r; r.devices(); print([x['name'] for x in r.report()])"
    there = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "HAIAN_ADAPTER_PROBE": "20"})
    assert there.returncode == 0 and "evil" not in there.stdout + there.stderr, there.stdout + there.stderr
    meant = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert "'evil'" in meant.stdout, "on PYTHONPATH it is installed"


def test_the_allow_list(chip, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    link = other / "mine.py"
    link.symlink_to(chip)
    monkeypatch.setenv("HAIAN_ADAPTER_ALLOW", str(other))
    refused(chip, "in no folder of HAIAN_ADAPTER_ALLOW")
    refused(link, "in no folder of HAIAN_ADAPTER_ALLOW")  # where it lies counts, not what leads there
    monkeypatch.setenv("HAIAN_ADAPTER_ALLOW", f"{other}{os.pathsep}{chip.parent}")
    trust.check_file(chip)
    trust.check_file(link)
    for nothing in ("", "open", os.pathsep):
        monkeypatch.setenv("HAIAN_ADAPTER_ALLOW", nothing)
        refused(chip, "in no folder")
    r = Registry()
    assert r.devices()[0].name == "cpu:0", "haian's own are no guests"
    with pytest.raises(PermissionRefused, match="HAIAN_ADAPTER_ALLOW"):
        r.load_adapter(chip)


def test_installed_packages_are_held_to_the_same(tmp_path, monkeypatch):
    (tmp_path / "guest_chip.py").write_text("print('ran')\n" + SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint("cpu", "haian.adapters.cpu:CpuDriver", registry.GROUP), EntryPoint("mine", "guest_chip:MineDriver", registry.GROUP)]
    assert [d.name for d in Registry(lambda: points).devices()] == ["cpu:0", "mine:0"]
    monkeypatch.delitem(sys.modules, "guest_chip")
    for change in ("write", "allow"):
        if change == "write":
            (tmp_path / "guest_chip.py").chmod(0o666)
        else:
            (tmp_path / "guest_chip.py").chmod(0o644)
            monkeypatch.setenv("HAIAN_ADAPTER_ALLOW", "/nowhere")
        monkeypatch.setenv("HAIAN_ADAPTER_PROBE", "20")
        r = Registry(lambda: points)
        assert [d.name for d in r.devices()] == ["cpu:0"] and isinstance(r.records()[1].error, PermissionRefused)
        assert "guest_chip" not in sys.modules, "it ran"


def test_the_restriction_reaches_files(chip, tmp_path, monkeypatch):
    lib = tmp_path / "libmine.py"
    lib.write_text(SOURCE)
    folder = tmp_path / "haian_mine"
    folder.mkdir(mode=0o755)
    (folder / "runtime.py").write_text(SOURCE)
    for path in (chip, lib, folder, folder / "runtime.py"):
        monkeypatch.setenv("HAIAN_ADAPTER_PATH", str(path))
        monkeypatch.setenv("HAIAN_ADAPTERS", "mine")
        assert "mine:0" in [d.name for d in Registry().devices()], path
        monkeypatch.setenv("HAIAN_ADAPTERS", "sim")
        monkeypatch.setattr(registry, "_driver_of_file", lambda _: pytest.fail("its code ran"))
        r = Registry()
        assert [d.name for d in r.devices()] == ["cpu:0", "sim:0", "sim:1"]
        assert "not in HAIAN_ADAPTERS=sim" in str(next(x for x in r.records() if x.status == "skipped" and "HAIAN_ADAPTER_PATH" in x.source).error)
        monkeypatch.undo()
        for name in ("HAIAN_ADAPTERS", "HAIAN_ADAPTER_PATH"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HAIAN_ADAPTER_PROBE", "0")
