"""NumPy's inner loops as C function pointers, so that C computes exp or a matrix product with the very code NumPy uses.

A ufunc's documented C structure (PyUFuncObject of NumPy's C API) holds one loop a type; they need no GIL for floats.
``loops`` reads them and tries each against NumPy; where that fails there is no C executor, and the reason says so.
"""
from __future__ import annotations

import ctypes
import functools

import numpy as np

from ....hal.errors import Unsupported
from .scalars import LOOPS

__all__ = ["loops"]

_LOOP = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class _UFunc(ctypes.Structure):
    """The public head of PyUFuncObject (numpy/ufuncobject.h), after the object's own header."""

    _fields_ = [
        ("head", ctypes.c_char * object.__basicsize__), ("nin", ctypes.c_int), ("nout", ctypes.c_int), ("nargs", ctypes.c_int),
        ("identity", ctypes.c_int), ("functions", ctypes.POINTER(ctypes.c_void_p)), ("data", ctypes.POINTER(ctypes.c_void_p)),
        ("ntypes", ctypes.c_int), ("reserved", ctypes.c_int), ("name", ctypes.c_char_p), ("types", ctypes.POINTER(ctypes.c_char)),
    ]  # fmt: skip


def _find(name: str, code: str) -> tuple[int, int]:
    """(function, data) of the ufunc's loop whose operands all are of the type code."""
    ufunc = getattr(np, name)
    found = _UFunc.from_address(id(ufunc))
    if (found.nin, found.nout, found.name) != (ufunc.nin, ufunc.nout, name.encode()) or found.ntypes != ufunc.ntypes:
        raise Unsupported(f"np.{name} is not laid out as NumPy's C API says")
    wanted, count = bytes([np.dtype(code).num]) * found.nargs, found.nargs
    for k in range(found.ntypes):
        if found.types[k * count : (k + 1) * count] == wanted:
            return found.functions[k] or 0, found.data[k] or 0 if found.data else 0
    raise Unsupported(f"np.{name} has no loop for {code}")


def _call(found: tuple[int, int], arrays: list[np.ndarray], dims: list[int], steps: list[int]) -> None:
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    sizes = (ctypes.c_ssize_t * len(dims))(*dims)
    strides = (ctypes.c_ssize_t * len(steps))(*steps)
    _LOOP(found[0])(ctypes.addressof(pointers), ctypes.addressof(sizes), ctypes.addressof(strides), found[1])


def _try(name: str, code: str, found: tuple[int, int]) -> None:
    """Unsupported unless the loop, called as sim.h calls it, gives NumPy's bits."""
    dtype = np.dtype(code)
    if name == "matmul":
        a, b = (np.linspace(-1, 1, n, dtype=dtype) for n in (2 * 5 * 33, 2 * 33 * 7))
        a, b, got = a.reshape(2, 5, 33), b.reshape(2, 33, 7), np.empty((2, 5, 7), dtype)
        _call(found, [a, b, got], [2, 5, 33, 7], [x.strides[k] for x in (a, b, got) for k in (0,)] +
              [x.strides[k] for x in (a, b, got) for k in (1, 2)])
        want = np.matmul(a, b)
    else:
        given = [np.linspace(0.01, 0.99, 37), np.linspace(-2.0, 3.0, 37)][: getattr(np, name).nin]
        got = np.empty(37)
        _call(found, [*given, got], [37], [8] * (len(given) + 1))
        want = getattr(np, name)(*given)
    if got.tobytes() != want.tobytes():
        raise Unsupported(f"np.{name}'s loop for {code} gives other bits than np.{name}")


@functools.cache
def loops() -> tuple[ctypes.Array, ctypes.Array]:
    """C arrays of the functions and their data, in the order of ``scalars.LOOPS``.

    Raises:
        Unsupported: this NumPy does not keep its loops where its C API says.
    """
    found = [_find(name, code) for name, code in LOOPS]
    for (name, code), one in zip(LOOPS, found):
        _try(name, code, one)
    pointers = ctypes.c_void_p * len(found)
    return pointers(*(f for f, _ in found)), pointers(*(d or None for _, d in found))
