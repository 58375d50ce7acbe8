"""Host memory for drivers whose devices live in this process: pages that can be shared, page locking, plain moves.

One memory file (memfd) a driver, given out in page ranges that are never used twice; a range that is freed is punched out,
so it costs nothing more.  Where the system has no such files the pages are private and cannot be shared.
"""
from __future__ import annotations

import ctypes
import functools
import mmap
import os
import struct
import sys
import threading
from typing import Any

import numpy as np

from .errors import ArgumentError, InvalidHandle, PermissionRefused, Unsupported

__all__ = ["Arena", "Pages", "can_lock", "can_share", "fill", "lock", "move", "open_shared", "unlock"]

PAGE = mmap.PAGESIZE
_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_FAILED = ctypes.c_void_p(-1).value
_HANDLE = struct.Struct("<4s4xIIQQQQ")  # adapter, process, file, inode, offset, bytes of the mapping, first byte in it
HANDLE_BYTES = 64
_STEP = 1 << 30


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    size, off = ctypes.c_size_t, ctypes.c_longlong if sys.maxsize > 1 << 32 else ctypes.c_long
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, (ctypes.c_void_p, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, off)
    libc.munmap.argtypes = (ctypes.c_void_p, size)
    libc.mlock.argtypes = libc.munlock.argtypes = (ctypes.c_void_p, size)
    if hasattr(libc, "fallocate"):
        libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, off, off)
    return libc


class Pages:
    """Mapped memory, unmapped when nobody refers to it; NumPy reads it as bytes.

    Attributes:
        address, nbytes: the first usable byte and how many there are.
    """

    def __init__(self, arena: Arena | None, fd: int, offset: int, mapped: int, start: int, nbytes: int, align: int = 1) -> None:
        self._base = 0
        sharing = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        base = _libc().mmap(None, mapped, mmap.PROT_READ | mmap.PROT_WRITE, sharing, fd, offset)
        if base == _FAILED or base is None:
            raise MemoryError(os.strerror(ctypes.get_errno()))
        self._base, self._arena, self._offset, self._mapped = base, arena, offset, mapped
        self._pid = os.getpid()
        self.address = base + start
        self.address += -self.address % align
        self.nbytes = nbytes
        self.__array_interface__ = {"data": (self.address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}

    def export(self, adapter: str) -> bytes:
        """What ``open_shared`` takes in another process, as long as this memory lives.

        Raises:
            Unsupported: the pages are private.
        """
        if self._arena is None:
            raise Unsupported(f"{adapter}: this memory cannot be shared; the system has no memory files (memfd)")
        fd = self._arena.fd
        made = _HANDLE.pack(adapter.encode()[:4], self._pid, fd, os.fstat(fd).st_ino, self._offset, self._mapped, self.address - self._base)
        return (made + self.nbytes.to_bytes(8, "little")).ljust(HANDLE_BYTES, b"\0")

    def __del__(self) -> None:
        if not self._base:
            return
        _libc().munmap(self._base, self._mapped)
        if self._arena is not None and self._pid == os.getpid():  # a child of fork shares the file and must leave it alone
            _libc().fallocate(self._arena.fd, _PUNCH, self._offset, self._mapped)


class Arena:
    """Gives out pages; ``fd`` is -1 until the first ones and wherever there are no memory files."""

    def __init__(self) -> None:
        self.fd = -1
        self._next = self._size = 0
        self._lock = threading.Lock()

    def pages(self, nbytes: int, align: int = PAGE) -> Pages:
        """Zeroed memory.  The byte behind it belongs to nobody.

        Raises:
            MemoryError: the system gives no more.
        """
        mapped = -(-(nbytes + 1 + (align if align > PAGE else 0)) // PAGE) * PAGE
        if not can_share():
            return Pages(None, -1, 0, mapped, 0, nbytes, align)
        with self._lock:
            if self.fd < 0:
                self.fd = os.memfd_create("haian", os.MFD_CLOEXEC)
            offset, self._next = self._next, self._next + mapped
            if self._next > self._size:  # the length of the file costs nothing, asking for it 2 us
                self._size = self._next + _STEP
                os.ftruncate(self.fd, self._size)
        return Pages(self, self.fd, offset, mapped, 0, nbytes, align)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


@functools.cache
def can_share() -> bool:
    """Whether the system has memory files whose pages can be given back one range at a time."""
    if not hasattr(os, "memfd_create") or not hasattr(_libc(), "fallocate"):
        return False
    try:
        fd = os.memfd_create("haian", os.MFD_CLOEXEC)
    except OSError:
        return False
    try:
        os.ftruncate(fd, PAGE)
        return _libc().fallocate(fd, _PUNCH, 0, PAGE) == 0
    finally:
        os.close(fd)


def open_shared(handle: bytes, adapter: str) -> Pages:
    """The exported memory, mapped here.

    Raises:
        ArgumentError: not a handle of this adapter.  InvalidHandle: its process or its memory is gone.
        PermissionRefused: the system does not let this process look at the other's files.
    """
    if len(handle) != HANDLE_BYTES or handle[:4] != adapter.encode()[:4].ljust(4, b"\0"):
        raise ArgumentError(f"{adapter}: ipc_open of {len(handle)} bytes that ipc_export of this adapter did not make; pass its {HANDLE_BYTES} bytes on")
    _, pid, fd, inode, offset, mapped, start = _HANDLE.unpack_from(handle)
    nbytes = int.from_bytes(handle[_HANDLE.size:_HANDLE.size + 8], "little")
    try:
        mine = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as e:
        raise PermissionRefused(f"{adapter}: ipc_open: the system refuses the memory of process {pid} ({e.strerror}); run both as one user") from None
    except OSError as e:
        raise InvalidHandle(f"{adapter}: ipc_open: process {pid} or its memory is gone ({e.strerror}); export it again") from None
    try:
        facts = os.fstat(mine)
        if facts.st_ino != inode or offset + mapped > facts.st_size or start + nbytes > mapped:
            raise InvalidHandle(f"{adapter}: ipc_open: process {pid} no longer has that memory; export it again")
        return Pages(None, mine, offset, mapped, start, nbytes)
    finally:
        os.close(mine)


# ---- page locking --------------------------------------------------------------------------------------------------------
def lock(address: int, nbytes: int) -> bool:
    """Keeps the pages in memory; False where the system does not allow it (RLIMIT_MEMLOCK) or the pages do not exist."""
    return _libc().mlock(address, nbytes) == 0


def unlock(address: int, nbytes: int) -> None:
    _libc().munlock(address, nbytes)


@functools.cache
def can_lock() -> bool:
    """Whether the system lets this process lock one page."""
    pages = Pages(None, -1, 0, PAGE, 0, PAGE)
    return lock(pages.address, PAGE)


# ---- moves ---------------------------------------------------------------------------------------------------------------
class _Rows:
    """Shows memory to NumPy as rows of bytes."""

    __slots__ = ("__array_interface__",)

    def __init__(self, address: int, rows: int, nbytes: int, pitch: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (rows, nbytes), "strides": (pitch, 1), "typestr": "|u1", "version": 3}


def move(dst: int, src: int, nbytes: int, rows: int = 1, dst_pitch: int = 0, src_pitch: int = 0) -> None:
    """memmove of ``rows`` rows of ``nbytes`` bytes between host addresses; ranges may overlap; pitches in bytes."""
    if nbytes == 0 or rows == 0:
        return
    if rows == 1:
        ctypes.memmove(dst, src, nbytes)
    else:  # through a temporary where they overlap
        np.copyto(np.asarray(_Rows(dst, rows, nbytes, dst_pitch)), np.asarray(_Rows(src, rows, nbytes, src_pitch)))


def fill(address: int, pattern: bytes, nbytes: int) -> None:
    """Repeats the pattern over ``nbytes`` bytes, a multiple of its length."""
    if len(set(pattern)) == 1:
        ctypes.memset(address, pattern[0], nbytes)
    elif nbytes:
        size = len(pattern)
        np.asarray(_Rows(address, nbytes // size, size, size))[:] = np.frombuffer(pattern, np.uint8)
