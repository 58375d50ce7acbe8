"""The simulated chip through C: the same bits as the NumPy executor, the same errors, and a compiler that is not there.

All launches of a sample of operators run in both executors; `python -m haian.adapters.sim.compare` does it for the whole suite.
"""
from __future__ import annotations

import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from haian.adapters.sim import SimDriver
from haian.adapters.sim.to_c import build, native
from haian.hal.driver import Copy, Launch
from haian.hal.errors import ArgumentError, OutOfRange

AXPY = b"""module {
  tt.func public @axpy(%x: !tt.ptr<f32>, %o: !tt.ptr<f32>, %a: f32) {
    %c64 = arith.constant 64 : i32
    %p = tt.get_program_id x : i32
    %base = arith.muli %p, %c64 : i32
    %r = tt.make_range {end = 64 : i32, start = 0 : i32} : tensor<64xi32>
    %b = tt.splat %base : i32 -> tensor<64xi32>
    %i = arith.addi %r, %b : tensor<64xi32>
    %xs = tt.splat %x : !tt.ptr<f32> -> tensor<64x!tt.ptr<f32>>
    %xp = tt.addptr %xs, %i : tensor<64x!tt.ptr<f32>>, tensor<64xi32>
    %v = tt.load %xp : tensor<64x!tt.ptr<f32>>
    %as = tt.splat %a : f32 -> tensor<64xf32>
    %m = arith.mulf %v, %as : tensor<64xf32>
    %os = tt.splat %o : !tt.ptr<f32> -> tensor<64x!tt.ptr<f32>>
    %op = tt.addptr %os, %i : tensor<64x!tt.ptr<f32>>, tensor<64xi32>
    tt.store %op, %m : tensor<64x!tt.ptr<f32>>
    tt.return
  }
}
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build._folder.cache_clear()
    yield tmp_path / "haian" / "sim"
    build._folder.cache_clear()


def launch(image=AXPY, n=256, grid=4):
    """Runs axpy on a fresh driver: (result, launches by executor)."""
    driver = SimDriver(total_bytes=1 << 24)
    x = np.arange(n, dtype="f")
    a, b = driver.alloc(0, x.nbytes), driver.alloc(0, x.nbytes)
    driver.copy(0, Copy("h2d", a, x.ctypes.data, x.nbytes))
    module = driver.module_load(0, image, "ttir")
    driver.launch(0, Launch(driver.get_kernel(module, "axpy"), (grid, 1, 1), 1, 0, [("*fp32", a), ("*fp32", b), ("fp32", 2.5)]))
    driver.sync(0)
    out = np.empty_like(x)
    driver.copy(0, Copy("d2h", out.ctypes.data, b, out.nbytes))
    return out, driver.compiled


def unlike(number):
    """The module under another text, so that no earlier test's compiled form is found."""
    return AXPY.replace(b"module {", b"// %d\nmodule {" % number, 1) if number else AXPY


needs_compiler = pytest.mark.skipif(bool(native.available()), reason="no C compiler here: sim runs in NumPy")


@needs_compiler
def test_c_computes_what_numpy_does(cache, monkeypatch):
    monkeypatch.setenv("HAIAN_SIM_EXECUTOR", "numpy")
    want, counts = launch(unlike(1))
    assert counts == {"c": 0, "numpy": 1, "refused": {}}
    monkeypatch.setenv("HAIAN_SIM_EXECUTOR", "c")
    got, counts = launch(unlike(2))
    assert counts == {"c": 1, "numpy": 0, "refused": {}} and got.tobytes() == want.tobytes()
    (made,) = cache.glob("*.so")
    assert stat.S_IMODE(made.lstat().st_mode) == 0o700 and stat.S_IMODE(cache.lstat().st_mode) == 0o700


@needs_compiler
def test_errors_are_those_of_numpy(cache, monkeypatch):
    said = []
    for how in ("numpy", "c"):
        monkeypatch.setenv("HAIAN_SIM_EXECUTOR", how)
        with pytest.raises(OutOfRange) as caught:
            launch(unlike(3), n=200, grid=4)
        said.append(str(caught.value))
    assert all("axpy" in text and "illegal access" in text for text in said), said


def test_without_a_compiler_numpy_runs(cache, monkeypatch):
    monkeypatch.setenv("CC", "/nowhere/cc")
    monkeypatch.setenv("HAIAN_SIM_EXECUTOR", "c")
    got, counts = launch(unlike(4))
    np.testing.assert_array_equal(got, np.arange(256, dtype="f") * np.float32(2.5))
    assert counts["numpy"] == 1 and "no C compiler" in counts["refused"]["axpy"]


def test_a_compiler_that_fails_is_not_the_end(cache, monkeypatch, tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && { echo broken 1.0; exit 0; }\necho 'x.c: error: it never works' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("HAIAN_SIM_EXECUTOR", "c")
    _, counts = launch(unlike(5))
    assert counts["numpy"] == 1 and "it never works" in counts["refused"]["axpy"]
    assert not list(cache.glob("*.so"))


@needs_compiler
def test_what_others_may_write_is_not_loaded(cache, monkeypatch):
    monkeypatch.setenv("HAIAN_SIM_EXECUTOR", "c")
    launch(unlike(6))
    (made,) = cache.glob("*.so")
    compiler = build.compiler()
    assert compiler is not None and build.library(unlike(6), compiler) == made
    made.chmod(0o777)
    assert build.library(unlike(6), compiler) is None


def test_executor_is_one_of_four(monkeypatch):
    monkeypatch.setenv("HAIAN_SIM_EXECUTOR", "fast")
    with pytest.raises(ArgumentError, match="auto, c, numpy, both"):
        native.mode()


@needs_compiler
def test_a_sample_of_operators_in_both_executors(tmp_path):
    pytest.importorskip("triton", reason="kernels of operators need Triton")
    ops = "softmax/f32/prime*,sum/f32/past*,add/bf16/*,mm/f32/prime*,cumsum/f32/prime*,gather/f32/p*"
    done = subprocess.run([sys.executable, "-m", "haian.adapters.sim.compare", "--ops", ops], capture_output=True, text=True, check=False,
                          env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    line = next(text for text in done.stdout.splitlines() if "launches differ" in text)
    kernels, in_c, different = (int(part.split()[0]) for part in line.split(", "))
    assert kernels >= 5 and in_c >= kernels - 1 and different == 0, line
