"""Discovery: order, laziness, what happens to broken, doubled, restricted and untrusted adapters."""
import os
import subprocess
import sys
import textwrap
import threading
from importlib.metadata import EntryPoint

import pytest
from haian.hal import registry
from haian.hal.driver import Capabilities, Driver
from haian.hal.errors import ArgumentError, EnvironmentMissing, PermissionRefused, Unsupported
from haian.hal.registry import Registry
from haian.hal.validate import Validated

HERE = __name__
MADE = []


class Chip(Driver):
    """A driver with as many devices as its class says."""

    name, count = "chip", 1

    def __init__(self):
        MADE.append(type(self).__name__)

    def device_count(self):
        return self.count

    def props(self, device):
        return Capabilities(model=f"Model {self.name}", total_bytes=1 << 20, max_alloc_bytes=1 << 20)


class Host(Chip):
    name = "cpu"


class Twin(Chip):
    name, count = "zeta", 2


class Fake(Chip):
    name = "sim"


class Empty(Chip):
    name, count = "absent", 0


class Broken(Chip):
    def __init__(self):
        raise OSError("libchip.so.1: cannot open shared object file")


class Nameless(Chip):
    name = "My Chip!"


class BadCount(Chip):
    name, count = "badcount", -1


class BadProps(Chip):
    name = "badprops"

    def props(self, device):
        raise Unsupported("badprops: fill in props")


NOT_A_DRIVER = object()


class Installed:
    """As much of a distribution as the registry reads."""

    metadata = {"Name": "chips"}

    def __init__(self, points):
        self.entry_points = points

    def read_text(self, name):
        return "there"


def point(name, what):
    return EntryPoint(name, f"{HERE}:{what}", registry.GROUP)


def make(*points, host=True):
    found = [point(n, w) for n, w in points]
    return Registry(lambda: [*([point("cpu", "Host")] if host else []), *found])


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("HAIAN_ADAPTERS", "HAIAN_ADAPTER_PATH", "HAIAN_ADAPTER_ALLOW", "HAIAN_VALIDATE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HAIAN_ADAPTER_PROBE", "0")  # classes of this file: a child process each would import pytest; test_probe.py has it on
    MADE.clear()


def names(r):
    return [d.name for d in r.devices()]


def status(r):
    return {x.name: x.status for x in r.records()}


def test_order_and_positions(monkeypatch):
    points = [point("zeta", "Twin"), point("sim", "Fake"), point("alpha", "Chip"), point("cpu", "Host")]
    monkeypatch.setattr("importlib.metadata.distributions", lambda path: [Installed(points)])
    r = Registry()
    assert names(r) == ["cpu:0", "chip:0", "zeta:0", "zeta:1", "sim:0"]  # host, real ones by entry point, simulator
    assert [d.position for d in r.devices()] == list(range(5))
    assert all(r.at(d.position) is d for d in r.devices())


def test_nothing_is_made_before_it_is_asked_for():
    r = make(("zeta", "Twin"))
    assert not MADE
    assert names(r) == ["cpu:0", "zeta:0", "zeta:1"] == names(r) and MADE == ["Host", "Twin"]


def test_installed_adapters():
    assert names(registry._registry)[0] == "cpu:0"
    rows = {r["name"]: r for r in registry.report()}
    assert rows["cpu"]["status"] == rows["sim"]["status"] == "loaded" and rows["sim"]["devices"][0].startswith("sim:0 (")


def test_names_that_find_a_device():
    r = make(("zeta", "Twin"))
    assert r.device("zeta") is r.device("zeta:0") is r.device(1) and r.device("zeta:1") is r.device(2)
    assert r.device(r.device("cpu")) is r.devices()[0]


@pytest.mark.parametrize("spec", ["nope", "zeta:2", "zeta:-1", "zeta:", "", -1, 3, True, 1.5, None])
def test_names_that_do_not(spec):
    r = make(("zeta", "Twin"))
    with pytest.raises(ArgumentError) as e:
        r.device(spec)
    assert "cpu:0, zeta:0, zeta:1" in str(e.value) and "haian doctor" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("what,why", [
    ("Broken", "cannot open shared object"), ("missing_name", "missing_name"), ("NOT_A_DRIVER", "needs|must give"),
    ("Nameless", "lower-case word"), ("BadCount", "device_count")])
def test_broken_adapter_is_recorded_and_skipped(what, why):
    r = make(("bad", what), ("zeta", "Twin"))
    assert names(r) == ["cpu:0", "zeta:0", "zeta:1"]
    record = next(x for x in r.records() if x.status == "failed")
    assert record.error is not None and record.driver is None
    assert __import__("re").search(why, str(record.error))
    assert any(row["status"] == "failed" and row["error"] for row in r.report())
    if what == "Broken":
        with pytest.raises(ArgumentError, match="cannot open shared object"):
            r.device("bad")  # the message says why it is not there


def test_missing_module_is_recorded():
    r = Registry(lambda: [point("cpu", "Host"), EntryPoint("gone", "no.such.module:Driver", registry.GROUP)])
    assert status(r) == {"cpu": "loaded", "gone": "failed"}


def test_device_that_cannot_say_what_it_is_stays_in_the_report():
    r = make(("badprops", "BadProps"))
    assert "props failed: badprops: fill in props" in r.report()[1]["devices"][0]


def test_driver_without_devices_is_loaded():
    r = make(("absent", "Empty"))
    assert status(r)["absent"] == "loaded" and names(r) == ["cpu:0"]


def test_second_adapter_of_a_name_is_refused():
    r = make(("a", "Chip"), ("b", "Chip"), ("absent", "Empty"), ("absent2", "Empty"))
    assert names(r) == ["cpu:0", "chip:0"]
    assert [x.status for x in r.records()] == ["loaded", "loaded", "failed", "loaded", "failed"]


def test_host_is_needed():
    for r in (make(host=False), Registry(lambda: [point("cpu", "Broken")])):
        for _ in range(2):
            with pytest.raises(EnvironmentMissing, match="reinstall haian"):
                r.devices()
    assert len(r._records) == 1


def test_restriction(monkeypatch):
    monkeypatch.setenv("HAIAN_ADAPTERS", " sim , other,")
    r = make(("zeta", "Twin"), ("sim", "Fake"))
    assert names(r) == ["cpu:0", "sim:0"]  # the host is always there
    assert status(r) == {"cpu": "loaded", "zeta": "skipped", "sim": "loaded", "other": "failed"} and "Twin" not in MADE
    with pytest.raises(ArgumentError, match="not in HAIAN_ADAPTERS"):
        r.device("zeta")


def test_validation_by_environment(monkeypatch):
    monkeypatch.setenv("HAIAN_VALIDATE", "1")
    assert all(isinstance(d.driver, Validated) for d in make(("zeta", "Twin")).devices())
    monkeypatch.setenv("HAIAN_VALIDATE", "0")
    assert not any(isinstance(d.driver, Validated) for d in make(("zeta", "Twin")).devices())
    monkeypatch.setenv("HAIAN_VALIDATE", "foo")
    for _ in range(2):
        with pytest.raises(ArgumentError, match="HAIAN_VALIDATE=foo; needs 0 or 1"):
            make(("zeta", "Twin")).devices()


def test_broken_shared_objects_are_recorded(monkeypatch, tmp_path):
    (tmp_path / "mychip.so").write_bytes(b"\x7fELF")
    monkeypatch.setenv("HAIAN_ADAPTER_PATH", f"{tmp_path}{os.pathsep}/nowhere/gone.so{os.pathsep}relative.so")
    r = make()
    assert names(r) == ["cpu:0"]
    errors = {x.name: x.error for x in r.records()}
    assert isinstance(errors["mychip"], EnvironmentMissing) and "hal_get_adapter" in str(errors["mychip"])
    assert isinstance(errors["gone"], EnvironmentMissing) and isinstance(errors["relative"], PermissionRefused)
    with pytest.raises(EnvironmentMissing, match="hal_get_adapter"):
        r.load_adapter(tmp_path / "mychip.so")


# ---- by hand ---------------------------------------------------------------------------------------------------------
def test_load_adapter_appends():
    r = make(("sim", "Fake"))
    assert [d.name for d in r.load_adapter(Twin)] == ["zeta:0", "zeta:1"]
    assert names(r) == ["cpu:0", "sim:0", "zeta:0", "zeta:1"]
    with pytest.raises(ArgumentError, match="exists already"):
        r.load_adapter(Twin())
    with pytest.raises(ArgumentError, match="must give a haian.hal.Driver"):
        r.load_adapter(lambda: 3)
    assert names(r) == ["cpu:0", "sim:0", "zeta:0", "zeta:1"]


SOURCE = """
from haian.hal.driver import Capabilities, Driver

class MineDriver(Driver):
    name = "mine"
    def device_count(self):
        return 1
    def props(self, device):
        return Capabilities(model="Mine 1", total_bytes=1, max_alloc_bytes=1)
"""


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_load_adapter_from_source(tmp_path, layout):
    path = tmp_path / ("mine.py" if layout == "file" else "mine")
    if layout == "folder":
        path.mkdir(mode=0o755)
    (path if layout == "file" else path / "runtime.py").write_text(SOURCE)
    r = make()
    assert [d.name for d in r.load_adapter(path)] == ["mine:0"]
    assert r.report()[-1] == {"name": "mine", "source": str(path), "status": "loaded", "error": "", "devices": ["mine:0 (Mine 1)"]}


def test_what_load_adapter_refuses(tmp_path):
    r = make()
    with pytest.raises(EnvironmentMissing, match="no such file"):
        r.load_adapter(tmp_path / "gone.py")
    empty = tmp_path / "empty.py"
    empty.write_text("from haian.hal.driver import Driver\n")
    with pytest.raises(ArgumentError, match="0 Driver classes"):
        r.load_adapter(empty)
    bad = tmp_path / "bad.py"
    bad.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        r.load_adapter(bad)
    assert "haian_adapter_bad" not in sys.modules
    anyone = tmp_path / "anyone.py"
    anyone.write_text(SOURCE)
    anyone.chmod(0o666)
    with pytest.raises(PermissionRefused, match="writable by everyone"):
        r.load_adapter(anyone)
    anyone.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionRefused, match="writable by everyone"):
        r.load_adapter(anyone)
    tmp_path.chmod(0o755)
    assert r.load_adapter(anyone)
    assert [x.status for x in r.records()].count("failed") == 5  # and each is in the report


def test_the_template_loads_and_says_what_to_fill_in():
    from haian.adapters.null import NullDriver
    r = make()
    assert r.load_adapter(NullDriver) == []
    driver = NullDriver()
    for call in (lambda: driver.props(0), lambda: driver.sync(0), lambda: driver.reset(0), lambda: driver.alloc(0, 1),
                 lambda: driver.free(0, 1), lambda: driver.copy(0, None), lambda: driver.stream_create(0)):
        with pytest.raises(Unsupported, match="^null: (fill in|no )"):
            call()
    required = {"device_count", "props", "sync", "reset", "alloc", "free", "copy"}
    assert required <= set(vars(NullDriver)), "the template must show every required method"


def test_many_threads_discover_once():
    r, seen, barrier = make(("zeta", "Twin")), [], threading.Barrier(8)

    def work():
        barrier.wait()
        seen.append(tuple(r.devices()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(set(seen)) == 1 and MADE == ["Host", "Twin"]


def test_a_fresh_process_starts_nothing_at_import():
    code = textwrap.dedent("""
        import sys, threading
        import haian.hal, haian.hal.tensor, haian.hal.module
        from haian.hal import registry
        assert not registry._registry._ready and not any("adapters" in m for m in sys.modules), "an adapter was loaded at import"
        assert threading.active_count() == 1
        x = haian.hal.asarray([1.0, 2.0])
        assert threading.active_count() == 1, "a thread started although nothing was queued"
        assert x.tolist() == [1.0, 2.0] and x.device.name == "cpu:0"
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


def test_names_of_the_package():
    from haian import hal
    for name in hal.__all__:
        assert getattr(hal, name) is not None
    with pytest.raises(AttributeError, match="Allocator, Buffer"):
        _ = hal.nonsense
