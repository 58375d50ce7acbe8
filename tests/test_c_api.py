"""haian_ops.h: every operator through C, on the host and staged on a C driver, gives the bits that Python gives; errors; the example."""
from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import cffi
import numpy as np
import pytest
from haian.hal.dtype import dtype
from haian.kernels.ops import OPS, draw

import haian
from haian import _native

ROOT = Path(__file__).resolve().parent.parent
PLACE = Path(_native.__file__).parent
CODES = {"b": 6, "u": 1, "i": 0, "f": 2, "c": 5}
SPECIAL = {"bfloat16": 4, "float8_e4m3fn": 10, "float8_e5m2": 12}
NAMES = [name for name, op in OPS.items() if not op.views and not op.composite]


def declarations(name):
    text = (PLACE / "include" / name).read_text()
    text = re.sub(r'#ifdef __cplusplus\nextern "C" \{\n#endif|#ifdef __cplusplus\n\}\n#endif', "", text)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


@pytest.fixture(scope="module")
def ffi():
    made = cffi.FFI()
    made.cdef(declarations("haian_context.h"))
    made.cdef(declarations("haian_ops.h"))
    return made


@pytest.fixture(scope="module")
def lib(ffi):
    return ffi.dlopen(str(PLACE / "libhaian.so"))


@pytest.fixture(scope="module")
def minimal(tmp_path_factory):
    out = tmp_path_factory.mktemp("c_api") / "minimal.so"
    subprocess.run(["cc", "-std=c11", "-O2", "-fPIC", "-shared", f"-I{ROOT / 'hal/include'}", str(ROOT / "examples/minimal_adapter/minimal.c"),
                    "-o", str(out)], check=True)
    return out


class Program:
    """What a C program does: descriptors of arrays, on the host or copied to a device."""

    def __init__(self, ffi, lib, device):
        self.ffi, self.lib, self.kept, self.memory = ffi, lib, [], []
        place = ffi.new("haian_context **")
        self.need(lib.haian_context_open(device.encode(), place))
        self.context, self.host = place[0], device == "cpu"

    def need(self, status):
        assert status == 0, self.error()

    def error(self):
        return self.ffi.string(self.lib.haian_last_error()).decode()

    def keep(self, value):
        self.kept.append(value)
        return value

    def tensor(self, array):
        ffi = self.ffi
        t = self.keep(ffi.new("DLTensor *"))
        kind = dtype(array.dtype)
        t.dtype.code, t.dtype.bits, t.dtype.lanes = SPECIAL.get(kind.name, CODES[kind.kind]), kind.itemsize * 8, 1
        t.ndim, t.shape, t.strides = array.ndim, self.keep(ffi.new("int64_t[]", list(array.shape) or [0])), ffi.NULL
        if self.host:
            t.device.device_type, t.data = 1, ffi.cast("void *", array.ctypes.data)
        else:
            t.device.device_type = 12
            place = ffi.new("void **")
            self.need(self.lib.haian_context_alloc(self.context, max(array.nbytes, 1), place))
            t.data = place[0]
            self.memory.append(place[0])
            self.need(self.lib.haian_context_copy(self.context, t.data, ffi.cast("void *", array.ctypes.data), array.nbytes, 1))
        self.keep(array)
        return t

    def read(self, t, array):
        if not self.host:
            self.need(self.lib.haian_context_copy(self.context, self.ffi.cast("void *", array.ctypes.data), t.data, array.nbytes, 0))
            self.need(self.lib.haian_context_sync(self.context))

    def attribute(self, p, value):
        ffi = self.ffi
        if p.kind == "ints":
            if value is None:
                return [ffi.NULL, 0]
            values = [value] if isinstance(value, int) else list(value)
            return [self.keep(ffi.new("int64_t[]", values or [0])), len(values)]
        if p.kind == "dtype":
            return [0 if value is None else value.code]
        if p.kind == "choice":
            return [p.choices.index(value)]
        if p.optional:
            return [ffi.NULL if value is None else self.keep(ffi.new({"int": "int64_t *", "float": "double *"}[p.kind], value))]
        return [int(value) if p.kind in ("int", "bool") else float(value)]

    def call(self, op, arrays, attrs, outs):
        tensors, args = iter(arrays), [self.context]
        for p in op.params:
            if p.kind == "tensors":
                group = [self.tensor(a) for a in next(tensors)]
                args += [self.keep(self.ffi.new("DLTensor *[]", group)), len(group)]
            elif p.kind == "tensor":
                a = next(tensors)
                args.append(self.ffi.NULL if a is None else self.tensor(a))
            else:
                args += self.attribute(p, attrs[p.name])
        made = [self.tensor(y) for y in outs]
        status = getattr(self.lib, f"haian_op_{op.name}")(*args, *made)
        for t, y in zip(made, outs):
            self.read(t, y)
        return status

    def statistics(self):
        s = self.ffi.new("haian_context_stats *")
        self.need(self.lib.haian_context_statistics(self.context, s))
        return s

    def close(self):
        for memory in self.memory:
            self.need(self.lib.haian_context_free(self.context, memory))
        self.lib.haian_context_close(self.context)


def small(op):
    """The largest core sample below 20000 elements, in the operator's preferred dtype."""
    def size(s):
        return sum(math.prod(i.shape) for x in s.inputs if x is not None for i in (x if isinstance(x, tuple) else (x,)))

    fit = [s for s in op.samples if s.level == "core" and size(s) < 20_000]
    return max(fit, key=size) if fit else None


def prepared(name):
    op = OPS[name]
    s, case = small(op), op.dtypes[0]
    if s is None:
        pytest.fail(f"{name}: no small core sample")
    x = tuple(tuple(map(np.ascontiguousarray, a)) if isinstance(a, tuple) else None if a is None else np.array(a, order="C")
              for a in draw.inputs(s, case, np.random.default_rng(zlib.crc32(name.encode()))))
    attrs = draw.attributes(op, s.attrs, case)
    args, kwargs, given = [], {}, iter(x)
    for p in op.params:
        value = next(given) if p.is_tensor else attrs[p.name]
        value = [haian.asarray(v) for v in value] if isinstance(value, tuple) and p.is_tensor else haian.asarray(value) if isinstance(value, np.ndarray) else value
        if p.keyword_only:
            kwargs[p.name] = value
        else:
            args.append(value)
    want = getattr(haian.ops, name)(*args, **kwargs)
    want = tuple(np.array(y.numpy()) for y in (want if isinstance(want, tuple) else (want,)))
    return op, x, attrs, want


@pytest.mark.parametrize("where", ["cpu", "minimal:0"])
@pytest.mark.parametrize("name", NAMES)
def test_every_operator(ffi, lib, minimal, name, where):
    if where != "cpu":
        assert lib.haian_load_driver(str(minimal).encode(), ffi.NULL) == 0
    op, x, attrs, want = prepared(name)
    p = Program(ffi, lib, where)
    outs = [np.full_like(y, 7) if y.dtype.kind in "biuf" else np.ones_like(y) for y in want]
    assert p.call(op, x, attrs, outs) == 0, p.error()
    for y, r in zip(outs, want):
        assert y.tobytes() == r.tobytes(), name
    s = p.statistics()
    assert (s.calls, s.host, s.staged, s.library) == (1, int(where == "cpu"), int(where != "cpu"), 0)
    p.close()


def test_the_drivers_own_library_comes_first(ffi, lib, tmp_path):
    """add is the chip's; sub is nobody's there."""
    chip = tmp_path / "library.so"
    subprocess.run(["cc", "-std=c11", "-O1", "-fPIC", "-shared", f"-I{ROOT / 'hal/include'}", str(ROOT / "tests/library_chip.c"), "-o", str(chip)],
                   check=True)
    name = ffi.new("const char **")
    assert lib.haian_load_driver(str(chip).encode(), name) == 0
    p = Program(ffi, lib, ffi.string(name[0]).decode() + ":0")
    x, y, out = np.arange(6, dtype="f"), np.full(6, 2, "f"), np.zeros(6, "f")
    for op, want in (("add", x + y), ("sub", x - y)):
        assert p.call(OPS[op], (x, y), {"alpha": 1.0}, [out]) == 0, p.error()
        np.testing.assert_array_equal(out, want)
    s = p.statistics()
    assert (s.calls, s.library, s.staged) == (2, 1, 1)
    p.close()


def test_errors_write_nothing_and_say_what_is_needed(ffi, lib, minimal):
    assert lib.haian_load_driver(str(minimal).encode(), ffi.NULL) == 0
    x = np.ones((3, 4), "f")
    for where in ("cpu", "minimal:0"):
        p = Program(ffi, lib, where)
        for wrong, words in ((np.zeros((3, 5), "f"), ("softmax", "(3, 5)", "(3, 4)")), (np.zeros((3, 4), "d"), ("softmax", "float64"))):
            before = wrong.tobytes()
            assert p.call(OPS["softmax"], (x,), {"dim": -1}, [wrong]) != 0
            assert all(w in p.error() for w in words), p.error()
            assert "\n" not in p.error() and wrong.tobytes() == before
        out = np.zeros((3, 4), "f")
        assert p.call(OPS["softmax"], (x,), {"dim": 2}, [out]) != 0 and "dim 2" in p.error() and not out.any()
        assert p.call(OPS["softmax"], (x,), {"dim": -1}, [out]) == 0  # still alive
        p.close()


def test_null_and_wrong_places(ffi, lib):
    p = Program(ffi, lib, "cpu")
    x = p.tensor(np.ones(3, "f"))
    assert lib.haian_op_exp(p.context, ffi.NULL, x) != 0 and "exp" in p.error()
    assert lib.haian_op_exp(p.context, x, ffi.NULL) != 0 and "out 0 is NULL" in p.error()
    assert lib.haian_op_exp(ffi.NULL, x, x) != 0 and "haian_context_open" in p.error()
    y = p.tensor(np.ones(3, "f"))
    y.device.device_type = 2
    assert lib.haian_op_exp(p.context, x, y) != 0 and "DLPack device (2, 0)" in p.error()
    y.device.device_type, y.ndim = 1, 9
    assert lib.haian_op_exp(p.context, x, y) != 0 and "9 axes" in p.error()
    y.ndim, y.dtype.bits = 1, 7
    assert lib.haian_op_exp(p.context, x, y) != 0 and "7 bits" in p.error()
    assert lib.haian_op_exp(p.context, x, x) == 0  # in place
    p.close()


def test_drivers_are_refused_by_reason(ffi, lib, tmp_path, minimal):
    def said():
        return ffi.string(lib.haian_last_error()).decode()

    place = ffi.new("haian_context **")
    assert lib.haian_context_open(b"nowhere:0", place) != 0 and "haian_load_driver" in said()
    assert lib.haian_load_driver(b"minimal.so", ffi.NULL) != 0 and "absolute" in said()
    text = tmp_path / "text.so"
    text.write_text("not a library")
    assert lib.haian_load_driver(str(text).encode(), ffi.NULL) != 0 and "shared object" in said()
    anyone = tmp_path / "anyone.so"
    shutil.copy(minimal, anyone)
    anyone.chmod(0o666)
    assert lib.haian_load_driver(str(anyone).encode(), ffi.NULL) != 0 and "chmod" in said()
    assert lib.haian_load_driver(str(minimal).encode(), ffi.NULL) == 0
    assert lib.haian_context_open(b"minimal:9", place) != 0 and "minimal:0" in said()
    assert lib.haian_context_open(b"minimal:0", place) == 0
    assert lib.haian_context_allow_staging(place[0], 0) == 0
    p = Program(ffi, lib, "minimal:0")
    assert lib.haian_context_allow_staging(p.context, 0) == 0
    out = np.zeros(3, "f")
    assert p.call(OPS["exp"], (np.ones(3, "f"),), {}, [out]) != 0 and "staging is off" in said()
    p.close()
    lib.haian_context_close(place[0])


def test_shared_memory_is_shared_in_staging(ffi, lib, minimal):
    """exp in place on a device, and an output between the elements of an input: the bytes between come back."""
    assert lib.haian_load_driver(str(minimal).encode(), ffi.NULL) == 0
    p = Program(ffi, lib, "minimal:0")
    data = np.arange(12, dtype="f") / 8
    whole = p.tensor(data.copy())
    even = ffi.new("DLTensor *", whole[0])
    shape, strides = ffi.new("int64_t[]", [6]), ffi.new("int64_t[]", [2])
    even.shape, even.strides, even.ndim = shape, strides, 1
    assert lib.haian_op_neg(p.context, even, even) == 0, p.error()
    back = np.zeros(12, "f")
    p.read(whole, back)
    want = data.copy()
    want[::2] *= -1
    np.testing.assert_array_equal(back, want)
    p.close()


def test_the_example_program(tmp_path, minimal):
    folder = tmp_path / "c_program"
    shutil.copytree(ROOT / "examples/c_program", folder, ignore=shutil.ignore_patterns("program"))
    script = shutil.which("haian", path=str(Path(sys.executable).parent))
    subprocess.run(["make", "-s", f"HAIAN={script}"], cwd=folder, check=True)
    done = subprocess.run(["./program", str(minimal)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "minimal:0    the same bits as the host" in done.stdout and "4 staged" in done.stdout and "sums to 1.000000" in done.stdout


def test_libhaian_needs_no_python():
    needed = subprocess.run(["ldd", str(PLACE / "libhaian.so")], capture_output=True, text=True, check=True).stdout
    assert "libc" in needed and "python" not in needed
