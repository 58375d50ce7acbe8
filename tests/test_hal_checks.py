"""The HAL suite: it passes on cpu, sim and the C examples, every wrong driver fails the check it should, crash and hang are results."""
from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from haian.adapters.cpu import CpuDriver
from haian.adapters.null import NullDriver
from haian.adapters.sim import SimDriver
from haian.conformance import hal_runner, list_cases, report
from haian.conformance.allowances import Allowances, Rule, read
from haian.conformance.hal_checks import check as checks
from haian.conformance.hal_checks import loading, memory
from haian.conformance.hal_checks.check import CHECKS, NotOffered, Subject, check, find, of_file, of_name
from haian.conformance.hal_checks.claims import claims
from haian.conformance.hal_checks.images import image_of
from haian.conformance.hal_runner import check_driver, hal_cases, hal_counts, run_hal
from haian.conformance.levels import HAL_LEVELS, granted_hal, hal_level
from haian.conformance.runner import run
from haian.hal.driver import DEVICE_TO_DEVICE, HOST_TO_DEVICE, PEER, Driver, PointerInfo
from haian.hal.errors import ArgumentError, HaianError, InternalError, OutOfMemory, OutOfRange, Unsupported
from haian.hal.validate import Validated
from typer.testing import CliRunner

from haian.cli import app

ROOT = Path(__file__).resolve().parent.parent
MINE = [c for c in hal_cases() if c.check.number <= 36]


def numbered(*numbers):
    return [c for c in hal_cases() if c.check.number in numbers]


def judged(factory, *numbers, **more):
    """{id without hal/: result} of these checks in this process."""
    return {x["id"].removeprefix("hal/"): x["result"] for x in check_driver(factory, chosen=numbered(*numbers), **more)}


# ---- good drivers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("device", ["cpu:0", "sim:0"])
def test_our_drivers_pass_in_a_child(device):
    wanted = [c.id for c in MINE]
    summary = run(device, suite="hal", ops=wanted, quiet=True)
    assert summary.ok and summary.present and sum(summary.counts.values()) == len(wanted), [(x["id"], x["message"]) for x in summary.failures]
    assert summary.counts["pass"] >= len(wanted) - 8


@pytest.mark.parametrize("example", ["minimal", "inline"])
def test_the_examples_in_c_pass_with_their_tables_checked(example, tmp_path):
    path = build((ROOT / "examples" / f"{example}_adapter" / f"{example}.c").read_text(), tmp_path / f"{example}.so")
    summary = run(f"{path}:0", suite="hal", ops=[c.id for c in MINE], quiet=True, report=tmp_path / "report")
    assert summary.ok, [(x["id"], x["message"]) for x in summary.failures]
    lines = {x["id"]: x["result"] for x in report.read(tmp_path / "report")[1]}
    assert all(lines[c.id] == "pass" for c in numbered(1, 2, 3, 4, 5, 6, 7, 13, 14))


def test_the_suite_has_its_checks():
    cases = hal_cases()
    assert len({c.id for c in cases}) == len(cases) and set(range(1, 37)) <= {c.check.number for c in cases}
    assert all(c.check.title and not c.check.title.endswith("_") for c in cases)
    assert {c.check.number for c in cases if c.dtype == "on" and len(c.check.modes) == 1} >= {15, 19, 20, 31}
    assert all("off" in CHECKS[n].modes for n in (2, 12, 14, 17))  # what an adapter itself must refuse
    assert list_cases(suite="hal") == [c.id for c in cases] and list_cases("L0", suite="hal")[-1].startswith("hal/13")


def test_ids_patterns_and_refusals():
    assert find("hal/14_zero_bytes/on")[1] == "on" and find("hal/14_zero_bytes")[0].number == 14
    assert {c.check.number for c in hal_cases("", ("14", "hal/3?_*", "device"))} >= {14, 30, 36, 10, 13}
    for call in (lambda: find("hal/99_nothing/on"), lambda: run("cpu:0", suite="hal", ops="nothing", quiet=True),
                 lambda: run("cpu:0", suite="hal", level="gold", quiet=True), lambda: run_hal("haian.hal.driver:GROUPS")):
        with pytest.raises(ArgumentError):
            call()
    for wrong in ({"number": 0}, {"level": "Z"}, {"validation": "maybe"}, {"needs": ("teleport",)}):
        with pytest.raises(ValueError, match="number 1..72"):
            check(**{"number": 72, "name": "x", "level": "C"} | wrong)
    with pytest.raises(ValueError, match="already"):
        check(14, "another", "C")(lambda s: None)


# ---- wrong drivers ------------------------------------------------------------------------------------------------------------
SMALL = 256 << 20


class Sim(SimDriver):
    def __init__(self):
        super().__init__(2, SMALL)


def wrong(base=Sim, **methods):
    return type("Wrong", (base,), methods)


def sim_props(**changes):
    return wrong(props=lambda self, d: dataclasses.replace(Sim.props(self, d), **changes))


class Leaks(Sim):
    def init(self):
        os.open(os.devnull, os.O_RDONLY)


class LeaksThreads(Sim):
    def init(self):
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()


class OpensDevices(Sim):
    def __init__(self):
        super().__init__()
        os.open("/dev/full", os.O_RDONLY)


class OnlyOnce(Sim):
    made = 0

    def __init__(self):
        type(self).made += 1
        self.mine = type(self).made
        super().__init__()

    def device_count(self):
        return 2 if self.mine == 1 else 0


class DiesWithFork(Sim):
    def _begin(self):
        if getattr(self, "pid", os.getpid()) == os.getpid():
            self.pid = os.getpid()
            super()._begin()


class Changes(Sim):
    calls = 0

    def props(self, d):
        self.calls += 1
        return dataclasses.replace(super().props(d), max_threads=self.calls)


class BumpAllocator(Sim):
    spent = 0

    def alloc(self, d, nbytes, align=0):
        if nbytes + self.spent > 2 * SMALL:
            raise OutOfMemory("bump")
        self.spent += max(nbytes, 0)
        return super().alloc(d, nbytes, align)


class LeakingOom(Sim):
    def alloc(self, d, nbytes, align=0):
        try:
            return super().alloc(d, nbytes, align)
        except OutOfMemory:
            self._devices[d].heap.used_bytes += 4096
            raise


class Deferred(Sim):
    """Copies on stream 0 happen at the next copy."""

    late = None

    def copy(self, d, desc, stream=0):
        if self.late:
            late, self.late = self.late, None
            super().copy(*late)
        if desc.kind == HOST_TO_DEVICE and not stream:
            self.late = (d, desc)
        else:
            super().copy(d, desc, stream)


class Overlaps(Sim):
    last = (0, 0)

    def alloc(self, d, nbytes, align=0):
        if self.last[0] >= nbytes > 0 and align == 0 and nbytes < 1 << 16 and nbytes != 4096:
            size, address = self.last
            self.last = (0, 0)
            return address
        address = super().alloc(d, nbytes, align)
        self.last = (nbytes, address)
        return address

    def free(self, d, address):
        with contextlib.suppress(HaianError):
            super().free(d, address)


class LeakyFree(Sim):
    frees = 0

    def free(self, d, address):
        self.frees += 1
        if self.frees % 300:
            super().free(d, address)


class UnmapsAtOnce(Sim):
    def _leave(self, found, address, end):
        end(address, reserve=False)


class Swallows(Sim):
    def copy(self, d, desc, stream=0):
        with contextlib.suppress(OutOfRange):
            super().copy(d, desc, stream)


class NoSync(Driver):
    name, vendor, version = "nosync", "x", "1"

    def device_count(self):
        return 1


def copies(change, base=Sim):
    """A driver whose copies are changed: ``change(desc)`` gives the desc that is done, or raises."""
    return wrong(base, copy=lambda self, d, desc, stream=0: base.copy(self, d, change(desc), stream))


def raises(error):
    def do(*_):
        raise error
    return do


def no_zero(desc):
    if not (desc.nbytes and desc.rows):
        raise ArgumentError("nothing to copy")
    return desc


def no_pitch(desc):
    return desc._replace(dst_pitch=desc.nbytes, src_pitch=desc.nbytes) if desc.rows > 1 else desc


def forward(self, d, desc, stream=0):
    """memcpy in blocks of 16, so that overlapping ranges smear."""
    if desc.kind != DEVICE_TO_DEVICE or desc.rows != 1:
        return Sim.copy(self, d, desc, stream)
    heap = self._devices[d].heap
    dst, src = (heap.host_pointer(a, desc.nbytes, "copy") for a in (desc.dst, desc.src))
    import ctypes

    for i in range(0, desc.nbytes, 16):
        ctypes.memmove(dst + i, src + i, min(16, desc.nbytes - i))


def no_alignment(self, d, nbytes, align=0):
    address = Sim.alloc(self, d, nbytes + 64, 0)
    self.moved = {**getattr(self, "moved", {}), address + 64: address}
    return address + 64 if align > 256 or nbytes % 3 == 1 else address


MUTANTS = {
    "name is no word": (wrong(name="Sim!"), 1), "no version": (wrong(version=""), 1),
    "another version each time": (wrong(__init__=lambda self: (SimDriver.__init__(self), setattr(self, "version", str(id(self))))[0]), 1),
    "required methods absent": (NoSync, 5), "half a group": (wrong(CpuDriver, event_query=Driver.event_query), 5),
    "files leak": (Leaks, 6), "threads leak": (LeaksThreads, 6), "loading opens a device": (OpensDevices, 7),
    "a second object has no devices": (OnlyOnce, 8), "a fork leaves no worker": (DiesWithFork, 9),
    "properties change": (Changes, 10), "one uuid": (sim_props(uuid="same"), 10), "count changes": (wrong(device_count=lambda self: 2 + (time.monotonic_ns() & 1)), 10),
    "alignment of 3": (sim_props(align_bytes=3), 11), "computes what it cannot load": (sim_props(dtypes_load=("int8",)), 11),
    "claims no streams": (sim_props(streams=False), 11), "allocates more than all": (sim_props(max_alloc_bytes=2 * SMALL), 11), "no model": (sim_props(model=""), 11),
    "negative numbers": (wrong(_ordinal=lambda self, d: self._devices[d % 2]), 12), "bad number is unsupported": (wrong(telemetry=raises(Unsupported("no"))), 12),
    "errors say nothing": (wrong(alloc=lambda self, d, n, align=0: raises(ArgumentError())() if n == 0 else Sim.alloc(self, d, n, align)), 13),
    "errors of several lines": (wrong(alloc=lambda self, d, n, align=0: raises(ArgumentError("a\nb"))() if n == 0 else Sim.alloc(self, d, n, align)), 13),
    "zero bytes are one": (wrong(alloc=lambda self, d, n, align=0: Sim.alloc(self, d, n or 1, align)), 14),
    "alignment ignored": (wrong(alloc=no_alignment), 15),
    "blocks too small": (wrong(alloc=lambda self, d, n, align=0: Sim.alloc(self, d, n & ~63 if n > 64 else n, align)), 16),
    "sizes wrap": (wrong(alloc=lambda self, d, n, align=0: Sim.alloc(self, d, n % 2**32 if n else n, align)), 17),
    "too large is an argument": (wrong(alloc=lambda self, d, n, align=0: raises(ArgumentError("too large"))() if n > SMALL else Sim.alloc(self, d, n, align)), 17),
    "exhaustion leaks": (LeakingOom, 18), "never gives back": (BumpAllocator, 24), "blocks overlap": (Overlaps, 21),
    "freed under a queued copy": (UnmapsAtOnce, 22),
    "frees leak now and then": (LeakyFree, 23),
    "registers twice": (wrong(host_register=lambda self, d, a, n: None, host_unregister=lambda self, d, a: None), 25),
    "base is what was asked": (wrong(ptr_info=lambda self, d, a: PointerInfo("device", d, a, 4096)), 26),
    "large copies are cut": (copies(lambda c: c._replace(nbytes=min(c.nbytes, 65536)) if c.rows == 1 else c), 27),
    "offsets rounded down": (copies(lambda c: c._replace(dst=c.dst & ~3) if c.kind != "d2h" else c), 27),
    "lengths rounded up": (copies(lambda c: c._replace(nbytes=-(-c.nbytes // 4) * 4) if c.kind == "h2d" and c.rows == 1 else c), 28),
    "d2d rounded up": (copies(lambda c: c._replace(nbytes=-(-c.nbytes // 4) * 4) if c.kind == "d2d" and c.rows == 1 else c), 28),
    "zero bytes refused": (copies(no_zero), 29), "zero rows copy one": (copies(lambda c: c._replace(rows=max(c.rows, 1))), 29),
    "overlap smears": (wrong(copy=forward), 30), "overlap without the claim": (sim_props(memmove=False), 30),
    "pitch ignored": (copies(no_pitch), 32), "only the first row": (copies(lambda c: c._replace(rows=min(c.rows, 1))), 32),
    "rows as one block": (copies(lambda c: c._replace(nbytes=(c.rows - 1) * c.dst_pitch + c.nbytes, rows=1) if c.rows > 1 and c.dst_pitch <= c.src_pitch else c), 32),
    "memset takes one byte": (wrong(fill=lambda self, d, a, p, n, stream=0: Sim.fill(self, d, a, p[:1], n, stream)), 33),
    "fill stops early": (wrong(fill=lambda self, d, a, p, n, stream=0: Sim.fill(self, d, a, p, n - n % 64 if n > 64 else n, stream)), 33),
    "peer copies do nothing": (copies(lambda c: c._replace(nbytes=0) if c.kind == PEER else c), 34),
    "peer copies without the claim": (sim_props(peer=False), 34), "copies happen later": (Deferred, 35),
    "pitch of 32 bits": (copies(lambda c: c._replace(src_pitch=c.src_pitch & 0xFFFFFFFF), SimDriver), 36),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_driver_fails_its_check(name, monkeypatch):
    monkeypatch.setattr(loading, "_FORK_S", 0.5)
    monkeypatch.setattr(loading, "_SETTLE_S", 0.1)
    monkeypatch.setattr(memory, "_LOOPS", 1000)
    factory, number = MUTANTS[name]
    found = judged(factory, number)
    assert "fail" in found.values(), found
    assert set(found.values()) <= {"fail", "pass"}


@pytest.mark.parametrize("method,replaced,factory,number", [
    ("free", lambda self, d, a: None, Sim, 19), ("free", lambda self, d, a: None, Sim, 20),
    ("_bounds", lambda self, *_: None, Swallows, 31), ("alloc", lambda self, d, n, align=0: self.inner.alloc(d, n, 0), Sim, 15)])
def test_a_layer_that_does_not_check_fails(method, replaced, factory, number, monkeypatch):
    monkeypatch.setattr(Validated, method, replaced)
    assert set(judged(factory, number).values()) == {"fail"}


def test_a_wrong_driver_fails_nothing_else():
    found = {x["id"]: x["result"] for x in check_driver(MUTANTS["memset takes one byte"][0], chosen=MINE)}
    assert {k.split("/")[1] for k, v in found.items() if v not in ("pass", "not-offered")} == {"33_fill"}


# ---- claims -------------------------------------------------------------------------------------------------------------------
def test_claims_that_excuse_stand_beside_the_level(tmp_path):
    driver = sim_props(init_once=True, thread_safe_streams=False, int64_math=False, reduced_matmul="tf32", event_unit_ns=100_000)()
    named = {row["claim"] for row in claims(driver, driver.props(0))}
    assert named == {"init_once", "thread_safe_streams=False", "int64_math=False", "bf16_atomics", "reduced_matmul=tf32", "event_unit_ns=100000"}
    plain = CpuDriver()
    assert {"host_access", "no lose_device", "image_format=so"} <= {row["claim"] for row in claims(plain, plain.props(0))}
    summary = run("sim:0", suite="hal", ops="11", quiet=True, report=tmp_path)
    assert "claims bf16_atomics" in str(summary) and summary.claims == ["bf16_atomics"]
    assert "bf16_atomics" in (tmp_path / "index.html").read_text() and "claim: bf16_atomics" in report.verify(tmp_path)[0]


def test_own_images_say_which_kernels_they_have():
    facts = dataclasses.replace(Sim().props(0), image_format="bin", extra={"conformance_image": (b"code", "bin", "axpy", "", "grid")})
    image = image_of(facts, True)
    assert (image.data, image.name, image.leave, image.grid, image.args, image.twin) == (b"code", "axpy", "", "grid", "", b"")
    with pytest.raises(NotOffered):
        image_of(dataclasses.replace(facts, extra={"conformance_image": (b"code", "bin")}), True)


# ---- wrong tables in C --------------------------------------------------------------------------------------------------------
def build(source, out):
    out.with_suffix(".c").write_text(source)
    subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-O1", "-fPIC", "-shared", f"-I{ROOT / 'hal' / 'include'}", str(out.with_suffix(".c")),
                    "-o", str(out), "-ldl"], check=True)
    return out


TABLES = {  # what is replaced in examples/minimal_adapter/minimal.c, by what, and the check that must fail
    "a new table each time": ("host->abi_major == HAL_ABI_MAJOR ? &adapter :", "host->abi_major == HAL_ABI_MAJOR ? memcpy(malloc(sizeof adapter), &adapter, sizeof adapter) :", 1),
    "any major": ("host && host->abi_major == HAL_ABI_MAJOR ?", "host ?", 2),
    "refuses other sizes": ("host && host->abi_major", "host && host->struct_size == sizeof *host && host->abi_major", 3),
    "props ignores the size": ("memcpy(p, &v, v.struct_size);", "memcpy(p, &v, sizeof v);", 4),
    "props refuses the size": ("v.struct_size = p->struct_size <", "NEED(p->struct_size >= sizeof v, HAL_INVALID_ARGUMENT, \"old\"); v.struct_size = p->struct_size <", 4),
    "init leaks a file": ("nothing(void) { return HAL_OK; }", "nothing(void) { return fopen(\"/dev/null\", \"r\") ? HAL_OK : HAL_INTERNAL; }", 6),
    "wrong index": (".index = d", ".index = 0", 10),
    "negative device": ("(d) >= 0 && (d) < DEVICES", "(d) < DEVICES", 12),
    "one message for all threads": ("static _Thread_local const char", "static const char", 13),
    "message behind the capacity": ("if (capacity) snprintf(buffer, capacity, \"%s\", message);", "if (capacity) strcpy(buffer, message);", 13),
    "out is left alone": ("  *out = 0;\n", "", 14),
    "refused memory stays counted": ("    used[d] -= a->bytes;\n    return fail", "    return fail", 18),
    "memcpy": ("memmove((char *)(uintptr_t)c->dst + r * c->dst_pitch, (const char *)(uintptr_t)c->src + r * c->src_pitch, c->bytes)",
               "for (uint64_t i = 0; i < c->bytes; i++) ((char *)(uintptr_t)c->dst)[r * c->dst_pitch + i] = ((volatile char *)(uintptr_t)c->src)[r * c->src_pitch + i]", 30),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_wrong_table_fails_its_check(name, tmp_path):
    old, new, number = TABLES[name]
    source = (ROOT / "examples" / "minimal_adapter" / "minimal.c").read_text()
    assert old in source
    path = build(source.replace(old, new), tmp_path / "wrong.so")
    assert "fail" in judged(of_file, number, arguments=(str(path),)).values()


def test_a_table_that_crashes_is_a_result(tmp_path):
    source = (ROOT / "examples" / "minimal_adapter" / "minimal.c").read_text()
    limit = '  NEED(a->bytes <= TOTAL / 4, HAL_OUT_OF_MEMORY, "more than max_alloc_bytes");\n'
    count = "atomic_fetch_add(&used[d], a->bytes) + a->bytes <= TOTAL"
    assert limit in source and count in source
    path = build(source.replace(limit, "").replace(count, "1"), tmp_path / "wrong.so")
    summary = run(str(path), suite="hal", ops="17", quiet=True)
    assert not summary.ok and summary.counts["pass"] == 0


# ---- crash, hang, absence -------------------------------------------------------------------------------------------------------
class Crashing(Sim):
    """Dies at 65 bytes, hangs at a fill of 3 bytes."""

    def alloc(self, d, nbytes, align=0):
        if nbytes == 65:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().alloc(d, nbytes, align)

    def fill(self, d, address, pattern, nbytes, stream=0):
        if nbytes == 3:
            time.sleep(60)
        super().fill(d, address, pattern, nbytes, stream)


def test_crash_and_hang_are_results_and_the_run_goes_on(tmp_path):
    summary = run_hal(Crashing, patterns=("14", "hal/16*/off", "hal/33*/on", "35"), quiet=True, timeout_s=4, report=tmp_path)
    header, lines, footer = report.read(tmp_path)
    found = {x["id"].removeprefix("hal/"): x for x in lines}
    assert {k: x["result"] for k, x in found.items()} == {
        "14_zero_bytes/off": "pass", "14_zero_bytes/on": "pass", "16_sizes/off": "crash", "33_fill/on": "timeout",
        "35_source_captured/off": "pass", "35_source_captured/on": "pass"}
    assert "SIGKILL" in found["16_sizes/off"]["message"] and "in test_hal_checks.py:" in found["33_fill/on"]["message"]
    assert not summary.ok and summary.level == "" and footer["level_granted"] == ""
    assert header["driver"] == "sim" and header["validation"] == ["off", "on"] and header["driver_version"] == "1.0"
    cases = ElementTree.parse(tmp_path / "report.xml").getroot().findall(".//testcase")
    assert len(cases) == 6 and sum(c.find("error") is not None for c in cases) == 2
    assert "33_fill" in (tmp_path / "index.html").read_text()
    assert report.verify(tmp_path)[1]
    rows = (tmp_path / "report.jsonl").read_text().splitlines()
    (tmp_path / "report.jsonl").write_text("\n".join(rows[:4]))  # cut off: the header and three results
    again = run_hal(Crashing, patterns=("14", "hal/16*/off"), quiet=True, timeout_s=4, report=tmp_path, resume=True)
    assert again.counts == {**dict.fromkeys(again.counts, 0), "pass": 2, "crash": 1}


def test_hang_in_process_is_a_timeout():
    chosen = [c for c in numbered(33) if c.dtype == "off"] + numbered(14)
    lines = check_driver(Crashing, chosen=chosen, timeout_s=0.5)
    assert [x["result"] for x in lines] == ["timeout", "pass", "pass"]
    assert len(check_driver(Crashing, chosen=chosen, timeout_s=0.5, stop_at_failure=True)) == 1


def test_no_device_is_not_present_and_never_passed(tmp_path):
    for summary in (run_hal(NullDriver, quiet=True, report=tmp_path), run_hal(of_name, ("nochip",), quiet=True)):
        assert not summary.present and not summary.ok and not summary.level and "not present" in str(summary)
    assert "not present" in report.read(tmp_path)[2]["why_not_more"]


def test_a_driver_that_does_not_load_is_refused():
    with pytest.raises(InternalError, match="this plugin is broken"):
        run_hal(loading._broken, quiet=True)


def test_command_line(tmp_path):
    def haian(*args):
        done = CliRunner().invoke(app, ["conformance", *args])
        return done.exit_code, done.output

    code, said = haian("run", "--suite", "hal", "--device", "cpu:0", "--case", "hal/14_zero_bytes/off", "--report", str(tmp_path))
    assert code == 0 and "1 pass" in said, said
    assert haian("verify", str(tmp_path))[0] == 0
    code, said = haian("run", "--suite", "hal", "--device", "sim:9")
    assert code == 3 and "not present" in said, said
    assert haian("list", "--suite", "hal", "--ops", "14")[1].split() == ["hal/14_zero_bytes/off", "hal/14_zero_bytes/on"]


# ---- levels and a vendor's rules ------------------------------------------------------------------------------------------------
def lines_of(**changes):
    """All lines of the suite passed, but for ``changes``: name of a check -> fields."""
    return [{"id": c.id, "level": c.level, "result": "pass"} | changes.get(c.check.name, {}) for c in hal_cases()]


def test_levels():
    expected = hal_counts()
    assert [hal_level(n, k) for n, k in ((1, "C"), (13, "C"), (14, "C"), (37, "S"), (66, "X"), (36, "P"))] == ["L0", "L0", "L1", "L2", "L3", ""]
    level, why = granted_hal(lines_of(), expected)
    assert level.startswith("L3 (") and "pinned" in level and not why
    absent, excused = {"result": "not-offered"}, {"result": "not-offered", "exempt": True}
    for changes, granted in (({"identity": absent}, ""), ({"abi_major": excused}, "L3"), ({"zero_bytes": absent}, "L0"), ({"zero_bytes": {"result": "xfail"}}, "L0"),
                             ({"peer": absent}, "L1"), ({"peer": excused}, "L3"), ({"pinned": absent}, "L3"), ({"pinned": {"result": "fail"}}, "L2"),
                             ({"beyond_4gib": {"result": "fail"}}, "L3")):
        assert granted_hal(lines_of(**changes), expected)[0][:2] == granted, changes
    assert "pinned" not in granted_hal(lines_of(pinned=absent), expected)[0]
    assert granted_hal(lines_of()[:5], expected)[1].startswith("L0: 5 of") and HAL_LEVELS[0] == "L0"


def test_streams_are_never_excused_from_their_level():
    """A driver without streams is not granted L2 by checks that excuse a missing peer or clock."""
    from haian.conformance.hal_checks.check import Check
    from haian.conformance.hal_runner import HalCase, _run_one

    def nothing(s):
        raise NotOffered("no such thing")

    case = HalCase("hal/48_x/off", "x", "off", "S", "L2", Check(48, "x", "S", nothing, exempt=True))
    blind = wrong(stream_create=Driver.stream_create)
    assert _run_one(case, Sim(), 0, Sim, (), 0)["exempt"] and not _run_one(case, blind(), 0, blind, (), 0)["exempt"]


def test_allowances_apply(tmp_path):
    (tmp_path / "conformance.toml").write_text(
        '[not_offered]\n"hal/34_peer" = "one chip a board"\n[expected_failure]\n"33" = {reason = "firmware 2", until = "2099-01-01"}\n'
        '"hal/14*" = {reason = "gone", until = "2099-01-01"}\n')
    rules = read(tmp_path / "conformance.toml")
    summary = run_hal(FillsOneByte, patterns=("14", "33", "34"), quiet=True, allowed=rules, report=tmp_path / "report")
    found = {x["id"]: x["result"] for x in report.read(tmp_path / "report")[1]}
    assert [found[f"hal/{n}/off"] for n in ("14_zero_bytes", "33_fill", "34_peer")] == ["xpass", "xfail", "not-offered"]
    assert not summary.ok and "firmware 2" in json.dumps(report.read(tmp_path / "report")[0]["allowances"])
    assert Allowances(not_offered=(Rule("hal/1?_*", "no"),)).missing(numbered(14)[0]) == "no"


class FillsOneByte(Sim):
    def fill(self, d, address, pattern, nbytes, stream=0):
        super().fill(d, address, pattern[:1], nbytes, stream)


# ---- the subject's helpers -----------------------------------------------------------------------------------------------------
def subject(validated=True, factory=Sim):
    return Subject(factory(), 0, validated, factory, (), 0, "test")


def test_leftovers_are_given_back():
    s = subject()
    before = s.driver.mem_info(0)
    stream, _ = s.stream(), s.event()
    s.alloc(4096)
    s.driver.alloc(0, 64)  # without the helper
    gate = s.blocked(stream)
    gate.__enter__()
    assert not s.driver.stream_query(stream)
    s.close()
    assert s.raw.mem_info(0) == before and not s.raw._streams


def test_expect_says_what_came():
    s = subject()
    s.expect(ArgumentError, s.driver.alloc, 0, 0)
    with pytest.raises(AssertionError, match=r"alloc\(0, 0\) raised ArgumentError: .*; needs OutOfMemory"):
        s.expect(OutOfMemory, s.driver.alloc, 0, 0)
    with pytest.raises(AssertionError, match=r"succeeded \(gave 0x.*\); needs OutOfMemory or ArgumentError"):
        s.expect((OutOfMemory, ArgumentError), s.driver.alloc, 0, 64)
    s.close()


def test_guard_sees_one_byte():
    s = subject(False)
    g = s.guard(33, 5)
    s.upload(g.address, b"x" * 33)
    assert g.check("a copy").tobytes() == b"x" * 33 == g.read().tobytes()
    for at in (-1, 33):
        s.fill(g.address + at, 0, 1)
        with pytest.raises(AssertionError, match=re.escape(f"outside the 33 asked for were changed, the first at {at:+d}")):
            g.check("a copy")
        s.fill(g.address + at, 0xA5, 1)
    s.close()


def test_elsewhere_runs_in_another_process():
    s = subject(factory=CpuDriver)
    assert s.elsewhere(_count_elsewhere, 3) == (3, 1) and _count_elsewhere(CpuDriver, (), 1)[1] == 1
    with pytest.raises(AssertionError, match="exit code 1; ZeroDivisionError"):
        s.elsewhere(_fails_elsewhere)
    local = wrong(CpuDriver)
    with pytest.raises(NotOffered, match="another process"):
        subject(factory=local).elsewhere(_count_elsewhere, 3)
    assert np.array_equal(checks.Subject.pattern(subject(), 9), subject().pattern(9))  # drawn from the check and the seed


def _count_elsewhere(factory, arguments, x):
    return x, factory(*arguments).device_count()


def _fails_elsewhere(factory, arguments):
    return 1 // 0


def test_waiting_helpers_and_threads():
    s = subject()
    with pytest.raises(AssertionError, match="never: not within"):
        s.until(lambda: False, "never", 0.02)
    with pytest.raises(AssertionError, match="early"):
        s.quiet(lambda: True, "early")
    with pytest.raises(ZeroDivisionError):
        s.threads(3, lambda i: 1 // (i - 1))
    with pytest.raises(AssertionError, match="1 of 2 threads"):
        s.threads(2, lambda i: time.sleep(0.5 * i), seconds=0.1)
    with pytest.raises(NotOffered, match="capability fatal_errors"):
        s.need("stream", "caps.fatal_errors")
    assert s.other() == 1 and s.offers("host_func") and not subject(factory=NullDriver).offers("stream_wait_event")
    assert hal_runner.hal_digest() == hal_runner.hal_digest()
