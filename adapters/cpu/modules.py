"""Modules of the host: shared objects given as bytes, and the C functions in them.  README.md says how such a kernel looks.

Loading one runs its code with the rights of this process: images are to be trusted like a library.
"""
from __future__ import annotations

import _ctypes
import ctypes
import functools
import os
import struct
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from haian.hal.errors import ArgumentError, Unsupported

__all__ = ["FORMAT", "Function", "Library"]

FORMAT = "so"
_Triple = ctypes.c_uint32 * 3
_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)  # args, grid, program
# Triton's names -> the C type an argument points to.  Floats of 16 bits travel as float: C11 has no such type.
_C = {"i1": ctypes.c_bool, "i8": ctypes.c_int8, "i16": ctypes.c_int16, "i32": ctypes.c_int32, "i64": ctypes.c_int64,
      "u1": ctypes.c_bool, "u8": ctypes.c_uint8, "u16": ctypes.c_uint16, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64,
      "fp16": ctypes.c_float, "bf16": ctypes.c_float, "fp32": ctypes.c_float, "fp64": ctypes.c_double}


@functools.cache
def _own() -> bytes:
    """The first bytes of this process's own program: class, byte order and machine that an image must share."""
    with open("/proc/self/exe" if os.path.exists("/proc/self/exe") else sys.executable, "rb") as f:
        return f.read(64)


def _check(image: bytes) -> None:
    """ArgumentError for what dlopen would refuse late or, where the file is cut short, die of."""
    own = _own()
    if own[:4] != b"\x7fELF":  # not an ELF system: the loader decides alone
        return
    if image[:4] != b"\x7fELF" or len(image) < 64:
        raise ArgumentError("cpu: the image is not a shared object (no ELF header); pass the bytes of a .so file")
    if image[4:6] != own[4:6] or image[18:20] != own[18:20]:
        raise ArgumentError("cpu: the image is made for another machine; compile it for this one")
    order = "<" if own[5] == 1 else ">"
    if struct.unpack_from(order + "H", image, 16)[0] != 3:  # ET_DYN
        raise ArgumentError("cpu: the image is not a shared object; link it with -shared")
    wide = own[4] == 2
    at = struct.unpack_from(order + ("Q" if wide else "I"), image, 32 if wide else 28)[0]
    size, count = struct.unpack_from(order + "HH", image, 54 if wide else 42)
    for k in range(count):
        where = at + k * size
        if where + size > len(image):
            raise ArgumentError("cpu: the image is cut short; pass the whole file")
        offset, length = (struct.unpack_from(order + "8xQ16xQ", image, where) if wide else struct.unpack_from(order + "4xI8xI", image, where))
        if offset + length > len(image):
            raise ArgumentError(f"cpu: the image is cut short, {len(image)} bytes of {offset + length}; pass the whole file")


class Library:
    """A loaded shared object; closed when nothing refers to it, queued launches included."""

    def __init__(self, image: bytes) -> None:
        self._handle = 0
        _check(image)
        # Not a memory file: the loader takes a path it has seen for the library it has, and /proc/self/fd/N comes again.
        with tempfile.TemporaryDirectory(prefix="haian-") as folder:  # only its owner may enter
            path = os.path.join(folder, "image.so")
            with open(path, "wb") as f:
                f.write(image)
            try:
                self._loaded = ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL)
            except OSError as e:
                raise ArgumentError(f"cpu: the system does not load the image ({str(e).replace(path, 'image')}); link it completely") from None
        self._handle = self._loaded._handle

    def function(self, name: str) -> Function:
        """ArgumentError where there is none of this name."""
        try:
            address = ctypes.cast(getattr(self._loaded, name), ctypes.c_void_p).value
        except AttributeError:
            raise ArgumentError(f"cpu: no function {name!r} in the module; export it (extern \"C\", not static)") from None
        try:
            text = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(self._loaded, f"{name}_args"))).decode()
        except ValueError:  # not exported: nothing is known
            return Function(self, name, address or 0, None)
        args = tuple(a.strip() for a in text.split(",")) if text.strip() else ()
        odd = [a for a in args if not a.startswith("*") and a not in _C]
        if odd:
            raise ArgumentError(f"cpu: {name}_args names the type {odd[0]!r}; needs *... or one of {', '.join(_C)}")
        return Function(self, name, address or 0, args)

    def __del__(self) -> None:
        if self._handle:
            _ctypes.dlclose(self._handle)


class Function:
    """A kernel: called once a program of the grid."""

    def __init__(self, library: Library, name: str, address: int, args: tuple[str, ...] | None) -> None:
        self.library, self.name, self.args = library, name, args
        self._call = _CALL(address)

    def pack(self, args: Sequence[tuple[str, int | float]]) -> list[ctypes._SimpleCData]:
        """The values in C.  ArgumentError for a wrong number or type."""
        if self.args is not None:
            if len(args) != len(self.args):
                raise ArgumentError(f"cpu: {self.name}: {len(args)} arguments came, {len(self.args)} are needed ({', '.join(self.args)})")
            for k, ((kind, _), wanted) in enumerate(zip(args, self.args)):
                if kind != wanted and not (kind.startswith("*") and wanted.startswith("*")):
                    raise ArgumentError(f"cpu: {self.name}: argument {k} came as {kind}, the kernel takes {wanted}; pass it as that")
        found: list[ctypes._SimpleCData] = []
        for k, (kind, value) in enumerate(args):
            c: Any = ctypes.c_void_p if kind.startswith("*") else _C.get(kind)
            if c is None:
                raise Unsupported(f"cpu: {self.name}: argument {k} has type {kind!r}; takes pointers and {', '.join(_C)}")
            try:
                found.append(c(value))
            except TypeError:
                raise ArgumentError(f"cpu: {self.name}: argument {k} is {value!r}; needs a {kind}") from None
        return found

    def run(self, grid: tuple[int, int, int], values: list[ctypes._SimpleCData]) -> None:
        """Every program of the grid, x fastest."""
        pointers = (ctypes.c_void_p * max(1, len(values)))(*[ctypes.addressof(v) for v in values])
        sizes, program = _Triple(*grid), _Triple()
        args, size, at, call = ctypes.addressof(pointers), ctypes.addressof(sizes), ctypes.addressof(program), self._call
        for z in range(grid[2]):
            program[2] = z
            for y in range(grid[1]):
                program[1] = y
                for x in range(grid[0]):
                    program[0] = x
                    call(args, size, at)

