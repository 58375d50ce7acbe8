"""The simulated chip's memory: a private heap, and the loads, stores and atomics of all programs at once.

Addresses lie outside what a host can map (bit 62 set, non-canonical on every 64-bit host), so a kernel that leaks one
into host code fails at once.  Every access is checked for bounds and alignment against the live allocations.
"""
from __future__ import annotations

import threading
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...hal import host_memory
from ...hal.driver import PointerInfo
from ...hal.errors import ArgumentError, InvalidHandle, OutOfMemory, OutOfRange

__all__ = ["Heap", "RMW_KINDS", "Site", "atomic_cas", "atomic_rmw", "load", "store"]

_BASE = 0x7F00_0000_0000_0000  # below 2**63: fits a signed 64-bit register
_SPAN = 1 << 52  # addresses a device may hand out in its life; they are never used twice
_GUARD = 4096  # unmapped bytes after every block: small overruns cannot land in a neighbour
_POISON_LIMIT = 1 << 20  # larger blocks stay lazily zero, so that a big allocation costs no physical memory


@dataclass(frozen=True)
class Site:
    """Where an access stands, for error messages."""

    kernel: str
    what: str
    where: str  # file.py:12, or empty

    def __str__(self) -> str:
        return f"{self.kernel}: {self.what}" + (f" ({self.where})" if self.where else "")


class _Block:
    """kind: device, pinned, managed, or opened (another process's).  All but pinned ones are mapped: kernels may use them."""

    __slots__ = ("kind", "start", "end", "data", "pages")

    def __init__(self, kind: str, start: int, pages: host_memory.Pages, fresh: bool = True) -> None:
        self.kind, self.start, self.end, self.pages = kind, start, start + pages.nbytes, pages
        self.data = np.asarray(pages)
        if fresh and pages.nbytes <= _POISON_LIMIT:
            self.data.fill(0xFF)  # NaN, -1: what nobody wrote must not look like a result

    def view(self, dtype: np.dtype) -> np.ndarray:
        size = dtype.itemsize
        return self.data[: self.data.size // size * size].view(dtype)


class _Table:
    """One consistent picture of the live blocks, sorted by address."""

    def __init__(self, blocks: list[_Block]) -> None:
        self.blocks = blocks
        self.starts = [b.start for b in blocks]
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None
        self._deltas: np.ndarray | None = None

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        if self._arrays is None:
            self._arrays = (np.array(self.starts, np.int64), np.array([b.end for b in self.blocks], np.int64))
        return self._arrays

    def deltas(self) -> np.ndarray:
        """Host address minus device address of each block."""
        if self._deltas is None:
            self._deltas = np.array([b.pages.address - b.start for b in self.blocks], np.int64)
        return self._deltas

    def find(self, low: int, high: int) -> _Block | None:
        """The block that holds all of [low, high), or None."""
        k = bisect_right(self.starts, low) - 1
        return self.blocks[k] if k >= 0 and high <= self.blocks[k].end else None


class Heap:
    """Device memory of one simulated device.  alloc and free may come from any thread."""

    def __init__(self, device: int, total_bytes: int, align_bytes: int = 256, start: int = 0) -> None:
        self.total_bytes, self.align_bytes = total_bytes, align_bytes
        self.used_bytes = 0
        self._next = start or _BASE + device * _SPAN
        self._limit = _BASE + (device + 1) * _SPAN
        self._arena = host_memory.Arena()
        self._blocks: dict[int, _Block] = {}
        self._leaving: set[int] = set()  # freed, but still mapped for work queued before
        self._table: _Table | None = _Table([])
        self._lock = threading.Lock()

    def alloc(self, nbytes: int, align: int = 0) -> int:
        with self._lock:
            if nbytes > self.total_bytes - self.used_bytes:
                raise OutOfMemory(f"sim: {nbytes} bytes asked, {self.total_bytes - self.used_bytes} free; free some")
            start = self._room(nbytes, align)
            self._add(_Block("device", start, self._pages(nbytes)))
            self.used_bytes += nbytes
        return start

    def host_alloc(self, nbytes: int, managed: bool) -> int:
        """Host memory at its host address; managed: kernels may use it too.  It takes nothing of the device's memory."""
        with self._lock:
            if nbytes > self.total_bytes:
                raise OutOfMemory(f"sim: {nbytes} bytes of host memory asked; at most {self.total_bytes}")
            pages = self._pages(nbytes)
            self._add(_Block("managed" if managed else "pinned", pages.address, pages))
        return pages.address

    def open(self, pages: host_memory.Pages) -> int:
        """Maps another process's memory at an address of this device."""
        with self._lock:
            start = self._room(pages.nbytes, 0)
            self._add(_Block("opened", start, pages, fresh=False))
        return start

    def _room(self, nbytes: int, align: int) -> int:
        align = max(align, self.align_bytes)
        start = -(-self._next // align) * align
        if start + nbytes + _GUARD > self._limit:
            raise OutOfMemory("sim: the device's 2**52 addresses are used up; reset the device")
        self._next = start + nbytes + _GUARD
        return start

    def _pages(self, nbytes: int) -> host_memory.Pages:
        try:
            return self._arena.pages(nbytes)
        except (MemoryError, OSError):
            raise OutOfMemory(f"sim: the host has no {nbytes} bytes to back the allocation; free some") from None

    def _add(self, block: _Block) -> None:
        self._blocks[block.start] = block
        self._table = None

    def base(self, address: int, what: str, *kinds: str) -> _Block:
        """The live block of one of these kinds that starts at the address.  InvalidHandle when there is none."""
        block = self._blocks.get(address)
        if block is None or address in self._leaving or block.kind not in kinds:
            raise InvalidHandle(f"sim: {address:#x} is not the base of a live allocation; {what} each address once")
        return block

    def info(self, device: int, address: int) -> PointerInfo:
        for block in [b for b in list(self._blocks.values()) if b.start <= address < b.end and b.start not in self._leaving]:
            return PointerInfo("device" if block.kind == "opened" else block.kind, device, block.start, block.end - block.start)
        return PointerInfo("unknown")

    def free(self, address: int, reserve: bool = False) -> None:
        """Unmap a block.  With ``reserve`` only its bytes are given back; ``release`` unmaps it later."""
        self._end(self.base(address, "free", "device", "pinned", "managed"), reserve)

    def close(self, address: int, reserve: bool = False) -> None:
        """The same for memory that ``open`` mapped."""
        self._end(self.base(address, "ipc_close", "opened"), reserve)

    def _end(self, block: _Block, reserve: bool) -> None:
        with self._lock:
            if block.start not in self._blocks or block.start in self._leaving:
                raise InvalidHandle(f"sim: {block.start:#x} was freed by another thread; free each address once")
            if block.kind == "device":
                self.used_bytes -= block.end - block.start
            if reserve:
                self._leaving.add(block.start)
            else:
                del self._blocks[block.start]
                self._table = None

    def release(self, address: int) -> None:
        """Unmap a block that was freed with ``reserve``."""
        with self._lock:
            self._leaving.discard(address)
            if self._blocks.pop(address, None) is not None:
                self._table = None

    def renew(self, device: int) -> Heap:
        """An empty heap that hands out only addresses this one never did."""
        return Heap(device, self.total_bytes, self.align_bytes, self._next)

    def table(self) -> _Table:
        table = self._table
        if table is None:
            with self._lock:
                mapped = [b for b in self._blocks.values() if b.kind != "pinned"]
                table = self._table = _Table(sorted(mapped, key=lambda b: b.start))
        return table

    def inside(self, address: int, nbytes: int, what: str) -> _Block:
        """The block that holds [address, address + nbytes).  OutOfRange when there is none."""
        block = self.table().find(address, address + nbytes)
        if block is None:
            raise OutOfRange(f"sim: {what} of {nbytes} bytes at {address:#x} is outside every live allocation; check the size")
        return block

    def host_pointer(self, address: int, nbytes: int, what: str) -> int:
        """The host address that backs [address, address + nbytes), good while the block is not freed.

        OutOfRange when it is not inside one block.
        """
        return self.pin(address, nbytes, what)[0]

    def pin(self, address: int, nbytes: int, what: str) -> tuple[int, object]:
        """The same, with what keeps the memory mapped, freed or not, as long as it is referred to."""
        block = self.inside(address, nbytes, what)
        return block.pages.address + (address - block.start), block

    def fill(self, address: int, pattern: bytes, nbytes: int) -> None:
        """Repeat a 1, 2 or 4 byte pattern over [address, address + nbytes)."""
        at, block = self.pin(address, nbytes, "fill")
        host_memory.fill(at, pattern, nbytes)
        del block


# ---- access by all programs at once --------------------------------------------------------------------------------------
def _storage(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype


def _illegal(addresses: np.ndarray, bad: np.ndarray, size: int, site: Site) -> OutOfRange:
    first = int(addresses[bad].flat[0])
    return OutOfRange(
        f"{site}: illegal access of {size} bytes at {first:#x}, {int(bad.sum())} of {bad.size} lanes outside every "
        "live allocation; check the mask and the strides"
    )


def _parts(heap: Heap, addresses: np.ndarray, size: int, site: Site):
    """Yield (block, lanes, element index) for each block touched; lanes is None when one block holds them all."""
    low, high = int(addresses.min()), int(addresses.max())
    if size > 1 and int(np.bitwise_or.reduce(addresses, axis=None)) & (size - 1):
        bad = (addresses & (size - 1)) != 0
        first = int(addresses[bad].flat[0])
        raise ArgumentError(f"{site}: illegal access, {size} bytes at {first:#x} are misaligned in {int(bad.sum())} of "
                            f"{bad.size} lanes; the address must be a multiple of {size}")
    shift = size.bit_length() - 1
    table = heap.table()
    block = table.find(low, high + size)
    if block is not None:
        index = addresses - block.start
        if shift:
            index >>= shift
        yield block, None, index
        return
    starts, ends = table.arrays()
    if not len(starts):
        raise _illegal(addresses, np.ones(addresses.shape, bool), size, site)
    owner = np.searchsorted(starts, addresses, "right") - 1
    # compared as end - size, since a wild address plus size could wrap
    bad = (owner < 0) | (addresses > ends[owner] - size)
    if bad.any():
        raise _illegal(addresses, bad, size, site)
    for k in np.unique(owner):
        lanes = owner == k
        yield table.blocks[k], lanes, (addresses[lanes] - table.blocks[k].start) >> shift


def load(heap: Heap, ptr: np.ndarray, mask: np.ndarray | None, other: np.ndarray | None, dtype: np.dtype,
         site: Site) -> np.ndarray:
    """Gather.  Lanes without a mask bit read ``other``; without ``other`` they are undefined: all bits set (NaN, -1)."""
    storage = _storage(dtype)
    if mask is not None:
        if mask.all():
            mask = None
        else:
            shape = np.broadcast_shapes(ptr.shape, mask.shape)
            if other is None:
                other = np.frombuffer(b"\xff" * storage.itemsize, storage).reshape((1,) * len(shape))
                other = other.view(dtype) if dtype != np.bool_ else other.astype(bool)
            first = int(mask.argmax())
            if not mask.reshape(-1)[first]:
                return np.broadcast_to(other, np.broadcast_shapes(shape, other.shape))
            at = np.unravel_index(first, mask.shape)
            some = ptr[tuple(k if n > 1 else 0 for k, n in zip(at, ptr.shape))]  # an address that will be read anyway
            ptr = np.where(mask, ptr, some)
    got = np.empty(0, storage)
    for block, lanes, index in _parts(heap, ptr, storage.itemsize, site):
        view = block.view(storage)
        if lanes is None:
            got = view[index]
        else:
            if got.shape != ptr.shape:
                got = np.empty(ptr.shape, storage)
            got[lanes] = view[index]
    if dtype == np.bool_:
        got = got != 0
    return got if mask is None or other is None else np.where(mask, got, other)


def _active(mask: np.ndarray | None, shape: tuple[int, ...], *arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays' lanes under the mask, flat, in program and lane order."""
    spread = [np.broadcast_to(a, shape) for a in arrays]
    if mask is None or mask.all():
        return [a.reshape(-1) for a in spread]
    mask = np.broadcast_to(mask, shape)
    return [a[mask] for a in spread]


def store(heap: Heap, ptr: np.ndarray, value: np.ndarray, mask: np.ndarray | None, site: Site) -> None:
    """Scatter in lane order: of several lanes with one address the last one stays."""
    if value.dtype == np.bool_:
        value = value.view(np.uint8)
    shapes = (ptr.shape, value.shape) if mask is None else (ptr.shape, value.shape, mask.shape)
    shape = np.broadcast_shapes(*shapes)
    if mask is not None and not mask.all():
        ptr, value = _active(mask, shape, ptr, value)
        if not ptr.size:
            return
    elif ptr.shape != shape:
        ptr = np.broadcast_to(ptr, shape)  # every lane stores, so the last in order must win
    for block, lanes, index in _parts(heap, ptr, value.dtype.itemsize, site):
        view = block.view(value.dtype)
        view[index] = value if lanes is None else np.broadcast_to(value, ptr.shape)[lanes]


# ---- atomics ---------------------------------------------------------------------------------------------------------------
def _exchange(old, new):
    return new


_RMW: dict[str, Any] = {  # ufuncs, but for the exchange
    "add": np.add, "fadd": np.add, "max": np.maximum, "min": np.minimum, "umax": np.maximum, "umin": np.minimum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "exch": _exchange, "xchg": _exchange,
}  # fmt: skip
RMW_KINDS = tuple(_RMW)


def _rounds(index: np.ndarray):
    """Lane sets such that no set holds an address twice and each address keeps its lanes' order."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    first = np.ones(ordered.size, bool)
    first[1:] = ordered[1:] != ordered[:-1]
    if first.all():
        yield slice(None)
        return
    position = np.arange(ordered.size)
    rank = position - np.maximum.accumulate(np.where(first, position, 0))
    by_rank = np.argsort(rank, kind="stable")
    lanes = order[by_rank]
    yield from np.split(lanes, np.flatnonzero(np.diff(rank[by_rank])) + 1)


def _tickets(view: np.ndarray, index: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Integer add that returns the old values: a prefix sum per address instead of one round per lane."""
    order = np.argsort(index, kind="stable")
    ordered, amount = index[order], value[order]
    before = np.cumsum(amount, dtype=amount.dtype) - amount
    first = np.ones(ordered.size, bool)
    first[1:] = ordered[1:] != ordered[:-1]
    start = np.maximum.accumulate(np.where(first, np.arange(ordered.size), 0))
    old = np.empty_like(value)
    old[order] = view[ordered] + (before - before[start])
    np.add.at(view, index, value)
    return old


def _scatter_back(found: np.ndarray, mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if mask is None or mask.all():
        return found.reshape(shape)
    out = np.zeros(shape, found.dtype)
    out[np.broadcast_to(mask, shape)] = found
    return out


def atomic_rmw(heap: Heap, kind: str, ptr: np.ndarray, value: np.ndarray, mask: np.ndarray | None,
               shape: tuple[int, ...], want_old: bool, site: Site) -> np.ndarray | None:
    """Read-modify-write, lane after lane in program order.  Returns the old values when they are wanted.

    shape: programs and lanes; every one of them acts, even where the address is the same.
    """
    dtype = value.dtype
    work = np.dtype(f"u{dtype.itemsize}") if kind in ("umax", "umin") else dtype
    function = _RMW[kind]
    at, amount = _active(mask, shape, ptr, value)
    amount = amount.view(work)
    found = np.empty(at.shape, work)
    for block, lanes, index in _parts(heap, at, dtype.itemsize, site) if at.size else ():
        view = block.view(work)
        part = amount if lanes is None else amount[lanes]
        if not want_old:
            if function is _exchange:
                view[index] = part
            else:
                function.at(view, index, part)
            continue
        if kind == "add":
            old = _tickets(view, index, part)
        else:
            old = np.empty(part.shape, work)
            for group in _rounds(index):
                where = index[group]
                old[group] = view[where]
                view[where] = function(old[group], part[group])
        if lanes is None:
            found = old
        else:
            found[lanes] = old
    return _scatter_back(found.view(dtype), mask, shape) if want_old else None


def atomic_cas(heap: Heap, ptr: np.ndarray, expected: np.ndarray, value: np.ndarray, mask: np.ndarray | None,
               shape: tuple[int, ...], site: Site) -> np.ndarray:
    """Compare and swap, lane after lane in program order; compares bits.  Returns the old values."""
    dtype = value.dtype
    bits = np.dtype(f"u{dtype.itemsize}")
    at, want, new = _active(mask, shape, ptr, expected, value)
    want, new = want.view(bits), new.view(bits)
    found = np.empty(at.shape, bits)
    for block, lanes, index in _parts(heap, at, dtype.itemsize, site) if at.size else ():
        view = block.view(bits)
        w, n = (want, new) if lanes is None else (want[lanes], new[lanes])
        old = np.empty(w.shape, bits)
        for group in _rounds(index):
            where = index[group]
            old[group] = view[where]
            view[where] = np.where(old[group] == w[group], n[group], old[group])
        if lanes is None:
            found = old
        else:
            found[lanes] = old
    return _scatter_back(found.view(dtype), mask, shape)
