"""CpuDriver: modules of the host (shared objects), its memory limits and its facts.

The groups it shares with sim are in test_host_driver.py; streams, events and copies in test_stream.py, test_memory.py.
"""
from __future__ import annotations

import os
import subprocess
import sysconfig
import threading

import numpy as np
import pytest
from haian.adapters.cpu import CpuDriver, facts
from haian.hal.driver import Copy, Launch
from haian.hal.errors import ArgumentError, InvalidHandle, OutOfMemory, Unsupported

WAIT_S = 5.0
SOURCE = r"""
#include <stdint.h>
const char axpy_args[] = "*fp32, *fp32, i32, fp32";
/* y[i] = a * x[i] + y[i], 64 elements a program */
void axpy(const void *const *args, const uint32_t grid[3], const uint32_t program[3]) {
  const float *x = *(const float *const *)args[0];
  float *y = *(float *const *)args[1];
  const int32_t n = *(const int32_t *)args[2];
  const float a = *(const float *)args[3];
  for (int32_t i = 64 * program[0]; i < n && i < 64 * (int32_t)(program[0] + 1); ++i) y[i] += a * x[i];
  (void)grid;
}
/* where each program of the grid was: out[call] = x + 10 y + 100 z; without _args nothing is checked */
void visit(const void *const *args, const uint32_t grid[3], const uint32_t program[3]) {
  int64_t *out = *(int64_t *const *)args[0];
  out[program[0] + grid[0] * (program[1] + grid[1] * program[2])] = program[0] + 10 * program[1] + 100 * program[2];
}
const char none_args[] = "";
static int calls;
void none(const void *const *args, const uint32_t grid[3], const uint32_t program[3]) { (void)args, (void)grid, (void)program, ++calls; }
void count(const void *const *args, const uint32_t grid[3], const uint32_t program[3]) { (void)grid, (void)program, **(int *const *)args[0] = calls; }
const char odd_args[] = "*fp32, float";
void odd(const void *const *args, const uint32_t grid[3], const uint32_t program[3]) { (void)args, (void)grid, (void)program; }
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    place = tmp_path_factory.mktemp("module")
    (place / "k.c").write_text(SOURCE)
    cc = os.environ.get("CC") or (sysconfig.get_config_var("CC") or "cc").split()[0]
    subprocess.run([cc, "-O1", "-shared", "-fPIC", "-o", place / "k.so", place / "k.c"], check=True)
    return (place / "k.so").read_bytes()


@pytest.fixture
def driver():
    return CpuDriver()


def test_launch_is_exact_and_visits_every_program(driver, image):
    module = driver.module_load(0, image, "so")
    axpy, visit = driver.get_kernel(module, "axpy"), driver.get_kernel(module, "visit")
    x, y = np.arange(1000, dtype=np.float32), np.full(1000, 2, np.float32)
    args = [("*fp32", x.ctypes.data), ("*fp32", y.ctypes.data), ("i32", 1000), ("fp32", 0.5)]
    driver.launch(0, Launch(axpy, (16, 1, 1), 128, 0, args))
    np.testing.assert_array_equal(y, 2 + np.float32(0.5) * x)
    out = np.full(24, -1, np.int64)
    driver.launch(0, Launch(visit, (4, 3, 2), 1, 0, [("*i64", out.ctypes.data)]))
    assert out.tolist() == [x + 10 * y + 100 * z for z in range(2) for y in range(3) for x in range(4)]


def test_kernel_info(driver, image):
    module = driver.module_load(0, image, "so")
    info = driver.kernel_info(driver.get_kernel(module, "axpy"))
    assert (info.name, info.args, info.max_threads) == ("axpy", ("*fp32", "*fp32", "i32", "fp32"), driver.props(0).max_threads)
    assert driver.kernel_info(driver.get_kernel(module, "visit")).args is None
    assert driver.kernel_info(driver.get_kernel(module, "none")).args == ()


def test_wrong_launches_are_refused_and_nothing_runs(driver, image):
    module = driver.module_load(0, image, "so")
    axpy = driver.get_kernel(module, "axpy")
    x = np.ones(4, np.float32)
    good = [("*fp32", x.ctypes.data), ("*fp32", x.ctypes.data), ("i32", 4), ("fp32", 1.0)]
    most = driver.props(0).max_threads
    for grid in ((0, 1, 1), (1, 0, 1), (-1, 1, 1), (1, 65536, 1), (1, 1)):
        with pytest.raises(ArgumentError, match="grid"):
            driver.launch(0, Launch(axpy, grid, 1, 0, good))
    for threads, shared in ((0, 0), (most + 1, 0), (1, 1), (1, -1)):
        with pytest.raises(ArgumentError, match="threads"):
            driver.launch(0, Launch(axpy, (1, 1, 1), threads, shared, good))
    for args in (good[:3], [*good, ("i32", 1)], [("i64", 1), *good[1:]], [*good[:2], ("i64", 4), good[3]], [*good[:3], ("fp64", 1.0)],
                 [*good[:2], ("i32", 4.5), good[3]]):
        with pytest.raises(ArgumentError, match="argument"):
            driver.launch(0, Launch(axpy, (1, 1, 1), 1, 0, args))
    with pytest.raises(Unsupported, match="cluster"):
        driver.launch(0, Launch(axpy, (1, 1, 1), 1, 0, good, (2, 1, 1)))
    with pytest.raises(ArgumentError):
        driver.launch(1, Launch(axpy, (1, 1, 1), 1, 0, good))
    with pytest.raises(Unsupported, match="fp128"):
        driver.launch(0, Launch(driver.get_kernel(module, "visit"), (1, 1, 1), 1, 0, [("fp128", 1)]))
    assert x.tolist() == [1] * 4


def test_bad_images_and_names(driver, image):
    other = bytearray(image)
    other[18] ^= 0xFF  # e_machine
    program = bytearray(image)
    program[16:18] = (2).to_bytes(2, "little")  # ET_EXEC
    for bad in (b"not an image", b"\x7fELF", image[:64], image[:1000], image[: len(image) // 2], bytes(other), bytes(program), b"\x7fELF" + bytes(500)):
        with pytest.raises(ArgumentError, match="image"):
            driver.module_load(0, bad, "so")
    with pytest.raises(ArgumentError, match="cubin"):
        driver.module_load(0, image, "cubin")
    with pytest.raises(ArgumentError):
        driver.module_load(1, image, "so")
    module = driver.module_load(0, image, "so")
    with pytest.raises(ArgumentError, match="nothing"):
        driver.get_kernel(module, "nothing")
    with pytest.raises(ArgumentError, match="float"):
        driver.get_kernel(module, "odd")


def test_two_loads_of_one_image_are_two_modules_and_no_file_stays(driver, image, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = np.zeros(2, np.int32)
    for k in range(2):
        module = driver.module_load(0, image, "so")
        assert not list(tmp_path.iterdir())
        driver.launch(0, Launch(driver.get_kernel(module, "none"), (5, 1, 1), 1, 0, []))
        driver.launch(0, Launch(driver.get_kernel(module, "count"), (1, 1, 1), 1, 0, [("*i32", seen[k:].ctypes.data)]))
    assert seen.tolist() == [5, 5]  # each has its own variables


def test_unload_while_the_launch_is_queued(driver, image):
    stream, gate = driver.stream_create(0), threading.Event()
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    module = driver.module_load(0, image, "so")
    kernel = driver.get_kernel(module, "axpy")
    driver.host_func(stream, lambda: gate.wait(WAIT_S))
    a, b = driver.alloc(0, 256), driver.alloc(0, 256)
    driver.copy(0, Copy("h2d", a, x.ctypes.data, 256))
    driver.fill(0, b, b"\0", 256)
    launch = Launch(kernel, (1, 1, 1), 1, 0, [("*fp32", a), ("*fp32", b), ("i32", 64), ("fp32", 3.0)])
    driver.launch(0, launch, stream)
    driver.copy(0, Copy("d2h", y.ctypes.data, b, 256), stream)
    driver.module_unload(module)
    driver.free(0, a)
    driver.free(0, b)
    for call in (lambda: driver.launch(0, launch), lambda: driver.get_kernel(module, "axpy"), lambda: driver.kernel_info(kernel),
                 lambda: driver.module_unload(module)):
        with pytest.raises(InvalidHandle):
            call()
    gate.set()
    driver.stream_sync(stream)
    assert y.tolist() == [3] * 64


def test_launches_in_graphs_and_profiles(driver, image):
    stream = driver.stream_create(0)
    module = driver.module_load(0, image, "so")
    x, y = np.ones(10, np.float32), np.zeros(10, np.float32)
    launch = Launch(driver.get_kernel(module, "axpy"), (1, 1, 1), 1, 0,
                    [("*fp32", x.ctypes.data), ("*fp32", y.ctypes.data), ("i32", 10), ("fp32", 1.0)])
    driver.graph_begin(stream)
    driver.launch(0, launch, stream)
    driver.launch(0, launch, stream)
    executable = driver.graph_instantiate(driver.graph_end(stream))
    driver.module_unload(module)  # the graph keeps what it needs
    driver.prof_start(0)
    for _ in range(100):
        driver.graph_launch(executable, stream)
    driver.stream_sync(stream)
    records = driver.prof_drain(0)
    assert y.tolist() == [200] * 10 and len(records) == 200 and {(r.kind, r.name) for r in records} == {("launch", "axpy")}


def test_memory_is_bounded_by_the_machine(driver):
    total = driver.props(0).total_bytes
    held = [driver.alloc(0, total // 2) for _ in range(2)]  # backed as it is touched
    with pytest.raises(OutOfMemory):
        driver.alloc(0, total // 2)
    for address in held:
        driver.free(0, address)
    driver.free(0, driver.alloc(0, total))
    for huge in (total + 1, 1 << 63):
        with pytest.raises(OutOfMemory):
            driver.alloc(0, huge)
    for align in (0, 64, 256, 4096, 1 << 20):
        assert driver.alloc(0, 5, align) % max(align, 64) == 0
    with pytest.raises(ArgumentError):
        driver.alloc(0, 5, 3)


def test_copies_in_rows_may_overlap_and_peers_are_refused(driver):
    x = np.arange(64, dtype=np.uint8)
    want = x.copy().reshape(8, 8)
    want[1:5, :6] = want[0:4, :6].copy()
    a = driver.alloc(0, 64)
    driver.copy(0, Copy("h2d", a, x.ctypes.data, 64))
    driver.copy(0, Copy("d2d", a + 8, a, 6, 4, 8, 8))
    got = np.empty_like(x)
    driver.copy(0, Copy("d2h", got.ctypes.data, a, 64))
    np.testing.assert_array_equal(got.reshape(8, 8), want)
    with pytest.raises(Unsupported, match="one device"):
        driver.copy(0, Copy("peer", a, a, 8, dst_device=0))
    with pytest.raises(ArgumentError, match="pitch"):
        driver.copy(0, Copy("d2d", a, a + 32, 6, 2, 5, 8))


def test_facts_come_from_this_machine():
    sensors = facts.Sensors()
    first, second = sensors.sample(), sensors.sample()
    for t in (first, second):
        assert np.isnan(t.util_percent) or 0 <= t.util_percent <= 100
        assert t.mem_used_bytes > 0 and np.isnan(t.power_w)
    assert facts.model() and facts.maker() and facts.cores() >= 1
    assert facts.uuid() == facts.uuid()
