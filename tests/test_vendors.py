"""Every vendor's adapter runs the whole HAL suite over its stand-in runtime, and every trap of those runtimes is caught.

Stand-in results: they prove calling conventions, never a chip.
"""
from __future__ import annotations

import collections
import ctypes
import fnmatch
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standins
from haian.adapters.engine.library import parse
from haian.conformance import allowances
from haian.hal.driver import Copy, Driver, Launch
from haian.hal.errors import ArgumentError, NotReady, OutOfMemory, Unsupported
from standins.traps import INVISIBLE, TRAPS, two_threads

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="stand-ins are compiled: no C compiler here")
CHILDREN = 4  # most of a check is waiting
NOT_VENDORS = ("cpu", "sim")


def children(commands: list[list[str]]) -> list[list[dict]]:
    """What each call of standins/suite.py printed, in order; a few at once."""
    def run(words: list[str]) -> list[dict]:
        done = subprocess.run([sys.executable, str(Path(standins.__file__).parent / "suite.py"), *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}: {done.stderr[-2000:]}"
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(CHILDREN) as pool:
        return list(pool.map(run, commands))


# ---- the suite ---------------------------------------------------------------------------------------------------------------
def test_every_adapter_passes_the_hal_suite_on_its_stand_in(capsys):
    for vendor in standins.STANDINS:  # compiled one by one before several processes ask
        standins.build(vendor)
    start = time.monotonic()
    excused = {v: {r.cases: r.reason for r in allowances.load(v.partition("-")[0]).not_offered} for v in standins.STANDINS}
    results = dict(zip(standins.STANDINS, children([["suite", v, *excused[v]] for v in standins.STANDINS])))
    wrong, table = [], []
    for vendor, lines in results.items():
        counts = collections.Counter(line["result"] for line in lines)
        table.append(f"  {vendor:18s} " + "  ".join(f"{k} {counts[k]:3d}" for k in ("pass", "not-offered", "fail", "timeout")))
        wrong += [f"{vendor} {line['id']}: {line['result']}: {line['message']}" for line in lines if line["result"] not in ("pass", "not-offered")]
        for line in lines:
            if line["result"] == "not-offered":
                said = line["message"] or next((why for p, why in excused[vendor].items() if fnmatch.fnmatchcase(line["id"], p)), "")
                assert said, f"{vendor} {line['id']}: not offered without a reason"
    with capsys.disabled():
        print(f"\nHAL suite over stand-ins, {time.monotonic() - start:.0f} s:\n" + "\n".join(table))
    assert not wrong, "\n".join(wrong)
    assert len({len(lines) for lines in results.values()}) == 1  # everybody ran everything
    for vendor, lines in results.items():
        assert sum(line["result"] == "pass" for line in lines) >= (85 if vendor == "kunlunxin" else 105), vendor


def test_every_trap_is_caught():
    assert len({t.name for t in TRAPS}) == len(TRAPS) and all(INVISIBLE.values())
    assert {t.vendor for t in TRAPS} >= {"cuda", "hip", "biren", "metax", "mthreads", "enflame", "sunrise", "ascend", "cambricon", "kunlunxin"}
    for vendor in {t.vendor for t in TRAPS}:
        standins.build(vendor)
    results = sum(children([["traps", str(i), str(CHILDREN)] for i in range(CHILDREN)]), [])
    assert len(results) == len(TRAPS)
    alive = [f"{r['vendor']} {r['name']}: check {r['check']} did not see it" for r in results if not r["said"]]
    assert not alive, "\n".join(alive)


# ---- all of them -------------------------------------------------------------------------------------------------------------
def test_every_vendor_has_an_entry_point_a_stand_in_and_its_papers():
    named = {e.name for e in entry_points(group="haian.adapters")} | set(_declared())
    vendors = {v.partition("-")[0] for v in standins.STANDINS}
    assert vendors == named - set(NOT_VENDORS) - {"null"}
    for vendor in vendors:
        module = import_module(f"haian.adapters.{vendor}")
        folder = Path(module.__file__).parent
        assert (folder / "README.md").read_text().startswith(f"# {vendor}")
        assert allowances.read(folder / "conformance.toml") is not None
        table = getattr(module, module.__all__[0]).table
        assert table.name == vendor and table.vendor and table.calls and table.libraries and all(table.unconfirmed.values())
        assert vendor == "cuda" or table.unconfirmed  # what no public source settles is said


def _declared() -> list[str]:
    """Entry points that pyproject.toml names: the installed list may be older."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    block = text.partition('[project.entry-points."haian.adapters"]\n')[2].partition("\n\n")[0]
    return [line.partition(" =")[0] for line in block.splitlines()]


@pytest.mark.parametrize("vendor", list(standins.STANDINS))
def test_each_thread_has_its_own_device(vendor):
    """Two threads, two devices, turn by turn: no call lands on the other thread's device."""
    driver = standins.driver(vendor)
    before = [driver.mem_info(d) for d in (0, 1)] if driver.offers("mem_info") else []
    assert two_threads(driver)
    assert not before or before == [driver.mem_info(d) for d in (0, 1)]


@pytest.mark.parametrize("vendor", ["ascend", "cambricon", "kunlunxin"])
def test_lines_of_the_tables(vendor):
    table = type(standins.driver(vendor)).table
    assert all(parse(call, spec, table.own) for call, spec in table.calls.items())
    with pytest.raises(ArgumentError):
        parse("soc", "f()")  # a call of one vendor only
    assert not standins.driver(vendor).missing


# ---- what the stand-ins of the three answer, in their vendors' numbers ---------------------------------------------------------
def raw(vendor: str) -> ctypes.CDLL:
    """A stand-in nobody else uses, called without the engine."""
    with tempfile.TemporaryDirectory() as scratch:
        return ctypes.CDLL(shutil.copy(standins.build(vendor), scratch))


def pointer(function: Any, *arguments: Any) -> tuple[int, ctypes.c_void_p]:
    """(code, what was written) of a call whose first argument is a pointer to a pointer."""
    out = ctypes.c_void_p()
    return function(ctypes.byref(out), *arguments), out


def test_ascendcl_codes():
    lib, size = raw("ascend"), ctypes.c_size_t
    count, status = ctypes.c_uint32(), ctypes.c_int(-1)
    assert lib.aclrtGetDeviceCount(ctypes.byref(count)) == 100001 and [lib.aclInit(None), lib.aclInit(None)] == [0, 100002]
    assert lib.aclrtGetDeviceCount(ctypes.byref(count)) == 0 and count.value == 2
    assert pointer(lib.aclrtMalloc, size(64), 0)[0] == 107002 and lib.aclrtSetDevice(2) == 107001 and lib.aclrtSetDevice(1) == 0
    code, a = pointer(lib.aclrtMalloc, size(64), 0)
    host = (ctypes.c_char * 64)()
    assert code == 0 and pointer(lib.aclrtMalloc, size(65 << 20), 0)[0] == 207001
    assert lib.aclrtMemcpy(a, size(63), host, size(64), 1) == 107000 and lib.aclrtMemcpy(a, size(64), host, size(64), 1) == 0
    assert lib.aclrtMemcpy(a, size(64), host, size(64), 5) == 107000 and lib.aclrtMemset(a, size(63), 7, size(64)) == 107000
    assert lib.aclrtFree(a) == 0 and lib.aclrtFree(a) == 107000
    code, stream = pointer(lib.aclrtCreateStream)
    assert lib.aclrtStreamQuery(stream, ctypes.byref(status)) == 0 and status.value == 0
    (_, plain), (_, timed) = pointer(lib.aclrtCreateEventExWithFlag, 1), pointer(lib.aclrtCreateEventExWithFlag, 8)
    for event in (plain, timed):
        assert lib.aclrtRecordEvent(event, stream) == lib.aclrtSynchronizeEvent(event) == 0
        assert lib.aclrtQueryEventStatus(event, ctypes.byref(status)) == 0 and status.value == 1
        assert lib.aclrtQueryEventWaitStatus(event, ctypes.byref(status)) == 0 and status.value == 0
    ms = ctypes.c_float()
    assert lib.aclrtEventElapsedTime(ctypes.byref(ms), timed, timed) == 0 and lib.aclrtEventElapsedTime(ctypes.byref(ms), plain, timed) == 107000
    assert lib.aclrtDestroyStream(stream) == 0 and lib.aclrtDestroyStream(stream) == 107000
    assert lib.aclFinalize() == 0 and lib.aclInit(None) == 100001


def test_cnrt_codes():
    lib, size = raw("cambricon"), ctypes.c_size_t
    code, a = pointer(lib.cnrtMalloc, size(64))
    host, ms = (ctypes.c_char * 64)(), ctypes.c_float()
    assert code == 0 and pointer(lib.cnrtMalloc, size(65 << 20))[0] == 100100 and lib.cnrtSetDevice(2) == 100005
    assert [lib.cnrtMemcpy(a, host, size(64), d) for d in (0, 1, 2, 3, 4, 5, 6)] == [0, 100006, 100006, 100006, 632013, 0, 632013]
    assert lib.cnrtFree(a) == 0 and lib.cnrtFree(a) == 100006 and lib.cnrtFree(None) == 0
    (_, plain), (_, timed), (_, queue) = pointer(lib.cnrtNotifierCreateWithFlags, 4), pointer(lib.cnrtNotifierCreateWithFlags, 0), pointer(lib.cnrtQueueCreate)
    assert pointer(lib.cnrtNotifierCreateWithFlags, 8)[0] == 100006  # interprocess goes with 4 only
    assert lib.cnrtNotifierElapsedTime(timed, timed, ctypes.byref(ms)) == 632015
    for notifier in (plain, timed):
        assert lib.cnrtPlaceNotifier(notifier, queue) == lib.cnrtWaitNotifier(notifier) == 0
    assert lib.cnrtNotifierElapsedTime(timed, timed, ctypes.byref(ms)) == 0 and lib.cnrtNotifierElapsedTime(plain, timed, ctypes.byref(ms)) == 100006
    assert lib.cnrtPeekAtLastError() == 100006 == lib.cnrtGetLastError() and lib.cnrtGetLastError() == 0
    assert lib.cnCtxSetCurrent(ctypes.c_void_p(0x1000)) == 100002  # cnInit was not called


def test_xre_codes():
    lib, size = raw("kunlunxin"), ctypes.c_uint64
    code, a = pointer(lib.xpu_malloc, size(64), 0)
    host = (ctypes.c_char * 64)()
    assert code == 0 and pointer(lib.xpu_malloc, size(65 << 20), 0)[0] == 705 and pointer(lib.xpu_malloc, size(64), 2)[0] == 707
    assert lib.xpu_set_device(2) == 701 and [lib.xpu_memcpy(a, host, size(64), kind) for kind in (0, 1, 2, 3)] == [707, 0, 707, 707]
    assert lib.xpu_free(a) == 0 and lib.xpu_free(a) == 707
    assert lib.xpu_launch_argument_set(host, size(4), size(2)) == -707 and lib.xpu_launch_async(host) == -707
    for missing in ("xpu_memset", "xpu_stream_query", "xpu_event_elapsed_time", "xpu_mem_info", "xpu_strerror"):
        assert not hasattr(lib, missing)


# ---- Ascend ------------------------------------------------------------------------------------------------------------------
def h2d(driver: Driver, address: int, array: np.ndarray, stream: int = 0) -> None:
    driver.copy(0, Copy("h2d", address, array.ctypes.data, array.nbytes), stream)


def d2h(driver: Driver, array: np.ndarray, address: int, stream: int = 0) -> None:
    driver.copy(0, Copy("d2h", array.ctypes.data, address, array.nbytes), stream)


def run_axpy(driver: Driver, grid: tuple[int, int, int], threads: int = 1) -> None:
    """axpy(x, y, a, n) over 1000 elements is exact."""
    module = driver.module_load(0, standins.image("axpy"), driver.props(0).image_format)
    kernel, n = driver.get_kernel(module, "axpy"), 1000
    x, y = np.arange(n, dtype=np.float32), np.ones(n, np.float32)
    px, py = driver.alloc(0, x.nbytes), driver.alloc(0, y.nbytes)
    stream = driver.stream_create(0)
    h2d(driver, px, x, stream)
    h2d(driver, py, y, stream)
    driver.launch(0, Launch(kernel, grid, threads, 0, [("*fp32", px), ("*fp32", py), ("fp32", 0.5), ("i32", n)]), stream)
    back = np.zeros(n, np.float32)
    d2h(driver, back, py, stream)
    driver.stream_sync(stream)
    assert np.array_equal(back, y + np.float32(0.5) * x)
    driver.module_unload(module)
    driver.stream_destroy(stream)
    driver.free(0, px)
    driver.free(0, py)


def test_ascend_begins_once_and_wants_a_context_on_each_thread():
    driver = standins.driver("ascend", private=True)
    calls, out = driver._calls, driver._ffi.new("uintptr_t *")
    assert calls["init"]() == 100002 and 100002 in driver.table.ignore
    seen = []
    other = threading.Thread(target=lambda: seen.append(calls["malloc"](out, 64)))
    other.start()
    other.join()
    assert seen == [107002]
    again = type(driver)(driver._given)  # a second driver of the process finds it begun
    assert again.device_count() == 2
    driver.fini()
    assert driver.device_count() == 2 and again.device_count() == 2


def test_ascend_capacities_statuses_and_launches():
    driver = standins.driver("ascend")
    facts = driver.props(0)
    assert facts.model == "Ascend910B3 (stand-in)" and facts.triton_target == ("npu", "Ascend910B3", 0) and facts.max_grid_product == 65535
    assert "float64" not in facts.dtypes_load and facts.max_shared_bytes == 64 << 10 and len(facts.uuid) == 32
    run_axpy(driver, (1000, 1, 1))
    run_axpy(driver, (10, 10, 10))
    module = driver.module_load(0, standins.image("increment"), "npubin")
    kernel, p = driver.get_kernel(module, "increment"), driver.alloc(0, 64)
    for grid in ((65536, 1, 1), (256, 256, 1), (0, 1, 1)):
        with pytest.raises(ArgumentError, match="65535"):
            driver.launch(0, Launch(kernel, grid, 1, 0, [("*i32", p), ("i32", 1)]))
    with pytest.raises(ArgumentError):  # an argument is missing: the struct has the wrong size
        driver.launch(0, Launch(kernel, (1, 1, 1), 1, 0, [("*i32", p)]))
    driver.module_unload(module)
    driver.free(0, p)


def test_ascend_callbacks_hold_their_own_stream_only():
    driver = standins.driver("ascend")
    a, b, gate, done = driver.stream_create(0), driver.stream_create(0), threading.Event(), []
    driver.host_func(a, gate.wait)
    driver.host_func(b, lambda: done.append(1))
    driver.stream_sync(b)
    assert done == [1] and not driver.stream_query(a)
    gate.set()
    driver.stream_sync(a)
    driver.host_func(0, lambda: done.append(2))
    assert done == [1, 2]
    threads = threading.active_count()
    for stream in (a, b):
        driver.stream_destroy(stream)
    assert threading.active_count() <= threads - 2


# ---- Cambricon ---------------------------------------------------------------------------------------------------------------
def test_cambricon_counts_cores_clusters_and_mib():
    driver = standins.driver("cambricon")
    facts = driver.props(0)
    assert facts.total_bytes == 64 << 20 and facts.triton_target == ("mlu", 592, 0) and facts.arch == "mtp_592" and facts.multiprocessors == 8
    run_axpy(driver, (1000, 1, 1))
    run_axpy(driver, (1000, 1, 1), 4)  # four cores a program
    seen = []
    plain = driver._calls["launch"]
    driver._calls["launch"] = lambda *a: seen.append((a[1:4], a[4])) or plain(*a)
    try:
        module = driver.module_load(0, standins.image("geometry"), "cnbin")
        kernel, p = driver.get_kernel(module, "geometry"), driver.alloc(0, 64)
        for grid, warps in (((8, 1, 1), 1), ((7, 1, 1), 1), ((12, 1, 1), 1), ((3, 2, 1), 4)):
            driver.launch(0, Launch(kernel, grid, warps, 0, [("*i32", p)]))
        with pytest.raises(ArgumentError, match="num_warps 5"):
            driver.launch(0, Launch(kernel, (1, 1, 1), 5, 0, [("*i32", p)]))
        driver.sync(0)
        driver.free(0, p)
        driver.module_unload(module)
    finally:
        driver._calls["launch"] = plain
    # a cluster's union where x fills clusters and the grid fits the chip; else a core; with num_warps 4 always four
    assert seen == [((8, 1, 1), 4), ((7, 1, 1), 1), ((12, 1, 1), 1), ((12, 2, 1), 4)]


def test_cambricon_has_two_codes_for_not_ready():
    driver = standins.driver("cambricon")
    stream, event, gate = driver.stream_create(0), driver.event_create(0), threading.Event()
    driver.host_func(stream, gate.wait)
    driver.event_record(event, stream)
    status = driver._ffi.new("int *")
    codes = [driver._calls[call](driver.native(h), status) for call, h in (("stream_query", stream), ("event_query", event))]
    assert codes == [1, 632014] and set(codes) <= driver.table.not_ready
    assert not driver.stream_query(stream) and not driver.event_query(event)
    gate.set()
    driver.stream_sync(stream)
    assert driver.event_query(event)
    for number, error in ((1, NotReady), (100100, OutOfMemory), (100006, ArgumentError), (100050, Unsupported)):
        assert type(driver._error(number, "malloc")) is error
    driver.event_destroy(event)
    driver.stream_destroy(stream)


# ---- Kunlunxin ---------------------------------------------------------------------------------------------------------------
def test_kunlunxin_launches_in_three_calls():
    driver = standins.driver("kunlunxin")
    facts = driver.props(0)
    assert facts.triton_target == ("xpu", 3, 1) and facts.model == "KL3 (stand-in)" and facts.multiprocessors == 12 and facts.total_bytes == 64 << 20
    order = []
    plain = dict(driver._calls)
    for name in ("argument_set", "config", "launch"):
        driver._calls[name] = lambda *a, name=name: order.append((name, a[1:] if name == "argument_set" else a[:2] if name == "config" else ())) or plain[name](*a)
    try:
        run_axpy(driver, (1000, 1, 1))
    finally:
        driver._calls.update(plain)
    assert [o for o in order if o[0] != "argument_set"] == [("config", (12, 64)), ("launch", ())] and order[-2][0] == "config"
    # two pointers, a float, an int, then the grid
    assert [o[1] for o in order[:-2]] == [(8, 0), (8, 8), (4, 16), (4, 20), (4, 24), (4, 28), (4, 32)]
    run_axpy(driver, (2, 500, 1))
    module = driver.module_load(0, standins.image("axpy"), "xpubin")
    kernel = driver.get_kernel(module, "no_such_kernel")
    with pytest.raises(ArgumentError):  # the runtime sees it here first, and answers with a negative number
        driver.launch(0, Launch(kernel, (1, 1, 1), 1, 0, []))
    driver.module_unload(module)


def test_kunlunxin_asks_an_event_for_a_stream():
    driver = standins.driver("kunlunxin")
    stream, a = driver.stream_create(0), driver.alloc(0, 1 << 20)
    data = np.zeros(1 << 20, np.uint8)
    assert driver.stream_query(stream)
    for _ in range(3):
        h2d(driver, a, data, stream)
        assert not driver.stream_query(stream)  # the stand-in starts after 0.5 ms
        end = time.monotonic() + 5
        while not driver.stream_query(stream):
            assert time.monotonic() < end
        assert driver.stream_query(stream)
    driver.fill(0, a, b"\x05", 1 << 20, stream)
    driver.stream_sync(stream)
    assert driver.stream_query(stream)
    driver.stream_destroy(stream)
    driver.free(0, a)
    assert not driver._marks and not driver._work


def test_kunlunxin_without_newer_calls_is_synchronous():
    newer = ("event_query", "copy_async")
    driver = standins.driver("kunlunxin", True, lambda cls: type("Older", (cls,), {"table": _without(cls.table, newer)}))
    assert not driver.offers("stream") and not driver.offers("event") and driver.offers("pinned")
    facts = driver.props(0)
    assert not facts.async_copy and not facts.streams
    a, back = driver.alloc(0, 1000), np.zeros(1000, np.uint8)
    driver.fill(0, a, b"\x07", 1000)
    d2h(driver, back, a)
    assert (back == 7).all()
    driver.free(0, a)
    with pytest.raises(Unsupported):
        driver.event_elapsed_ns(1, 2)


def _without(table: Any, calls: tuple[str, ...]) -> Any:
    return replace(table, calls={k: v for k, v in table.calls.items() if k not in calls})


def test_kunlunxin_takes_the_newer_route_where_it_is(monkeypatch):
    from haian.adapters.kunlunxin import runtime
    assert type(runtime.kunlunxin()) is runtime.KunlunxinDriver  # nothing is installed: XRE's, which says why
    assert runtime.kunlunxin().device_count() == 0
    monkeypatch.setattr(runtime, "XCUDART", replace(runtime.XCUDART, paths=(str(standins.library("kunlunxin-xcudart")),)))
    monkeypatch.setattr(runtime.XcudartDriver, "table", runtime.XCUDART)
    found = runtime.kunlunxin()
    assert type(found) is runtime.XcudartDriver and found.name == "kunlunxin" and found.device_count() == 2
    assert found.offers("stream") and found.offers("mem_info") and not found.offers("module")
