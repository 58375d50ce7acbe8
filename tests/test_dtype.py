"""The table of element types against C, NumPy, torch's DLPack and Triton's names."""
import pickle
import re
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from haian.hal import dtype as table
from haian.hal.dtype import ALL, BY_CODE, BY_NAME, dtype
from haian.hal.errors import CODES, DTypeError, HaianError, InternalError, from_code

ROOT = Path(__file__).resolve().parent.parent
HEADER = (ROOT / "hal/native/tensor.h").read_text()


def enum(name):
    """Numbers of a C enum."""
    body = re.search(rf"enum {name} \{{(.*?)\}}", HEADER, re.S).group(1)
    out, n = {}, -1
    for part in filter(None, (p.strip() for p in body.replace("\n", " ").split(","))):
        key, _, value = part.partition("=")
        n = int(value) if value else n + 1
        out[key.strip()] = n
    return out


def test_codes_are_those_of_the_header():
    c = enum("haian_dtype")
    assert c.pop("HAIAN_DTYPE_END") == len(ALL) + 1 <= 32  # five bits of a tag
    short = {"bool": "BOOL", "float8_e4m3fn": "F8E4M3", "float8_e5m2": "F8E5M2"}
    assert {f"HAIAN_{short.get(d.name, d.short.upper())}": d.code for d in ALL} == c
    assert [d.code for d in ALL] == list(range(1, len(ALL) + 1))


def test_error_codes_are_those_of_the_header():
    c = enum("haian_status")
    assert c.pop("HAIAN_OK") == 0 and set(c.values()) == set(CODES)
    for cls in CODES.values():
        e = from_code(cls.code, "x: y; z")
        assert type(e) is cls and isinstance(e, HaianError) and str(e) == "x: y; z"
    assert isinstance(from_code(99, "odd"), InternalError) and "99" in str(from_code(99, "odd"))


@pytest.mark.parametrize("d", ALL, ids=str)
def test_row(d):
    assert d.numpy.itemsize == d.itemsize and d.dlpack[1] == 8 * d.itemsize
    kind = {"V": "f"}.get(d.numpy.kind, d.numpy.kind)  # ml_dtypes' types are kind V to NumPy
    assert kind == d.kind or d.numpy.name.startswith("float8")
    assert d.is_floating == (d.kind == "f") and d.is_integer == (d.kind in "iu")
    if d.is_floating:
        info = ml_dtypes.finfo(d.numpy)
        assert d.digits == info.nmant + 1 and d.roundoff == float(info.eps) / 2
    elif d.kind == "c":
        assert d.digits == np.finfo(d.numpy).nmant + 1
    else:
        assert d.roundoff == 0.0
    c = {"uint8_t": "B", "uint16_t": "H", "uint32_t": "I", "uint64_t": "Q", "int8_t": "b", "int16_t": "h", "int32_t": "i", "int64_t": "q",
         "float": "f", "double": "d"}[d.c]
    assert struct.calcsize(c) * (2 if d.kind == "c" else 1) == d.itemsize


@pytest.mark.parametrize("d", ALL, ids=str)
def test_every_spelling_finds_the_singleton(d):
    for spelling in (d, d.name, d.short, d.code, d.numpy, d.numpy.type):
        assert dtype(spelling) is d
    assert BY_CODE[d.code] is BY_NAME[d.name] is getattr(table, d.name) is d
    assert pickle.loads(pickle.dumps(d)) is d
    assert str(d) == d.name and repr(d) == f"haian.{d.name}"


def test_python_types():
    assert dtype(float) is BY_NAME["float64"] and dtype(bool) is BY_NAME["bool"] and dtype(complex) is BY_NAME["complex128"]


@pytest.mark.parametrize("bad", ["float31", "", 0, 99, -1, np.dtype(">f4"), np.dtype("U3"), np.dtype("M8[s]"), object, "longdouble", [1], None.__class__])
def test_others_are_refused(bad):
    if bad is object or isinstance(bad, type):
        bad = np.dtype("O")
    with pytest.raises(DTypeError, match="use one of bool, uint8"):
        dtype(bad)


def test_dlpack_numbers_are_torchs():
    torch = pytest.importorskip("torch")
    from haian.hal.tensor import from_dlpack
    for d in ALL:
        kind = getattr(torch, d.name, None)
        if kind is None:
            continue
        try:
            t = torch.zeros(3, dtype=kind)
            assert from_dlpack(t).dtype is d
        except (BufferError, NotImplementedError):
            assert d.name in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"), d.name  # not every torch exports these


def test_triton_names():
    tl = pytest.importorskip("triton.language")
    for d in ALL:
        if d.triton:
            found = tl.str_to_ty(d.triton, None) if d.triton != "i1" else tl.int1
            assert found.primitive_bitwidth in (8 * d.itemsize, 1)
