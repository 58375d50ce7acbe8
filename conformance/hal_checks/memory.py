"""Checks 14 to 26: allocation, exhaustion, lifetime, pinned memory, what an address is.

Totals are compared exactly where mem_info is the driver's own count, which is seen from its answers.  Where it is not (the
host's memory, which every process uses) the address space of this process is what may not grow.
"""
from __future__ import annotations

import ctypes
import os
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np

from ...hal.driver import DEVICE_TO_DEVICE, Copy
from ...hal.errors import ArgumentError, Busy, HaianError, InvalidHandle, OutOfMemory, Unsupported
from .check import NotOffered, Subject, check, host, require
from .module import Axpy

_LOOPS = 10_000
_ROUND_S = 8.0  # a slow runtime does fewer of them
_PROBE_BYTES = 8 << 20
_GROWTH_BYTES = 20 << 20  # of the address space; 10,000 leaked blocks of 4 KiB are 40 MB
_MOST_BLOCKS = 4096  # a device that gives more blocks of its largest size backs them with nothing


def _used(s: Subject) -> int | None:
    """Bytes in use on the device; None where mem_info does not follow allocations one by one."""
    if not s.offers("mem_info"):
        return None
    n, seen = min(_PROBE_BYTES, s.caps.max_alloc_bytes), [_in_use(s)]
    for _ in range(3):
        address = s.driver.alloc(s.device, n)
        seen.append(_in_use(s))
        s.driver.free(s.device, address)
        if not n <= seen[-1] - seen[0] <= n + (4 << 20):  # runtimes round up to their pages, 2 MiB with CUDA
            return None
        seen[0] = _in_use(s)
    return seen[0]


def _in_use(s: Subject) -> int:
    free, total = s.driver.mem_info(s.device)
    require(0 <= free <= total, f"mem_info gave {free} free of {total}")
    return total - free


def _address_space() -> int:
    """Bytes this process has mapped plus those resident; 0 where the system does not say.

    Both: malloc maps 64 MiB at once for a thread, in which a leak of blocks that are touched shows as resident bytes only.
    """
    try:
        with open("/proc/self/statm") as f:
            return sum(int(n) for n in f.read().split()[:2]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _usable(s: Subject, address: int, nbytes: int, what: str) -> None:
    """First and last bytes of an allocation keep what is written."""
    n = min(nbytes, 64)
    head, tail = s.pattern(n), s.pattern(n)
    s.upload(address, head)
    require((s.download(address, n) == head).all(), f"{what}: its first bytes do not keep what is written")
    s.upload(address + nbytes - n, tail)
    require((s.download(address + nbytes - n, n) == tail).all(), f"{what}: its last bytes do not keep what is written")


@check(14, "zero_bytes", "C")
def zero_bytes(s: Subject) -> None:
    """alloc of zero bytes is refused, and the address is 0."""
    for align in (0, 64):
        s.expect(ArgumentError, s.driver.alloc, s.device, 0, align)
    if s.path and not s.validated:
        raw: Any = s.raw
        ffi = raw.ffi
        out = ffi.new("hal_dptr *", 0xDEAD)
        desc = ffi.new("hal_alloc_desc *", {"struct_size": ffi.sizeof("hal_alloc_desc"), "bytes": 0})
        status = raw.table.mem.alloc(s.device, desc, out)
        require(status == 1 and out[0] == 0, f"mem.alloc of zero bytes: status {status}, address {out[0]:#x}; needs 1 and 0")


@check(15, "alignment", "C", validation="on")
def alignment(s: Subject) -> None:
    """Alignments of 0, 64, 256 and 4096 are honoured, 3 is refused."""
    for align in (0, 64, 256, 4096):
        for nbytes in (1, 100, 4097):
            address = s.alloc(nbytes, align)
            step = max(align, s.caps.align_bytes)
            require(address % step == 0, f"alloc({nbytes}, align={align}) gave {address:#x}; needs a multiple of {step}")
    for align in (3, -64, 96):
        s.expect(ArgumentError, s.driver.alloc, s.device, 64, align)


@check(16, "sizes", "C")
def sizes(s: Subject) -> None:
    """Sizes around a cache line and a page work; the largest works or is refused cleanly."""
    live = [(s.alloc(n), n) for n in (1, 63, 64, 65, 4097)]
    for address, n in live:
        require(address > 0, f"alloc of {n} bytes succeeded and gave address {address:#x}; needs one above 0, or OutOfMemory")
        _usable(s, address, n, f"alloc of {n} bytes")
    try:
        address = s.alloc(s.caps.max_alloc_bytes)
    except OutOfMemory:
        return  # others use the device too
    n = s.caps.max_alloc_bytes
    _usable(s, address, n, f"alloc of max_alloc_bytes, {n}")
    s.free(address)


@check(17, "too_large", "C")
def too_large(s: Subject) -> None:
    """More than max_alloc_bytes, and sizes near 2^63 and 2^64, are OutOfMemory; nothing wraps around."""
    before = _used(s)
    exact = before is not None
    largest = s.caps.max_alloc_bytes
    for nbytes in (largest + 1, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1):
        if nbytes > largest:
            s.expect(OutOfMemory, s.driver.alloc, s.device, nbytes)
            s.expect(OutOfMemory, s.driver.alloc, s.device, nbytes, 4096)
    if exact:
        require(_in_use(s) == before, f"{_in_use(s)} bytes in use after refused allocations, {before} before")
    s.free(s.alloc(64))


def _fill_up(s: Subject) -> list[tuple[int, int]]:
    """Allocations (address, bytes) until OutOfMemory, from large ones to small."""
    step = max(min(s.caps.max_alloc_bytes, s.caps.total_bytes // 8), 1)
    least = max(s.caps.total_bytes >> 14, 4096)
    found: list[tuple[int, int]] = []
    while step >= least:
        try:
            found.append((s.driver.alloc(s.device, step), step))
        except OutOfMemory:
            step //= 2
        if len(found) >= _MOST_BLOCKS:
            break
    return found


@check(18, "exhaustion", "C")
def exhaustion(s: Subject) -> None:
    """After OutOfMemory and freeing everything, the totals return exactly and the next allocation works; mem_info counts what is live."""
    exact = _used(s) is not None
    if s.offers("mem_info"):
        _, total = s.driver.mem_info(s.device)
        near = abs(total - s.caps.total_bytes) <= s.caps.total_bytes // 4  # runtimes reserve some
        require(near, f"mem_info says {total} bytes in all, total_bytes is {s.caps.total_bytes}; needs the same device's memory")
    seen: list[tuple[int, int]] = []
    for attempt in range(5):  # the first round warms the runtime up; a device shared with others gets three chances
        blocks = _fill_up(s)
        try:
            require(blocks, "OutOfMemory at once on an idle device")
            if not s.caps.host_access:
                require(len(blocks) < _MOST_BLOCKS, f"{len(blocks)} blocks of up to {s.caps.total_bytes // 8} bytes without OutOfMemory; "
                        f"the device has {s.caps.total_bytes} bytes")
            if s.offers("mem_info") and (exact or not s.caps.host_access):  # of the machine's own memory, untouched pages count as free
                free, total = s.driver.mem_info(s.device)
                held = sum(n for _, n in blocks)
                require(free <= max(total - held, 0), f"mem_info says {free} bytes free of {total} while {held} are allocated; it must count them")
        finally:
            for b, _ in blocks:
                s.driver.free(s.device, b)
        seen.append((_in_use(s) if exact else 0, len(blocks) if exact else 0))
        if attempt and seen[-1] == seen[-2]:
            break
    else:
        require(False, f"bytes in use and blocks given, after each round of filling the device and freeing all: {seen}; must be equal")
    address = s.alloc(4096)
    _usable(s, address, 4096, "an allocation after OutOfMemory")
    if s.offers("mem_info") and not exact and s.caps.host_access:
        _machine(s)


def _machine(s: Subject) -> None:
    """mem_info of memory that others use too cannot be compared exactly; but what is written takes room, and the answer moves."""
    n = min(_PROBE_BYTES, s.caps.max_alloc_bytes, s.caps.total_bytes // 16)
    first, total = s.driver.mem_info(s.device)
    held = 0
    for _ in range(8):  # several blocks: a runtime may have kept the first ones from before
        s.fill(s.alloc(n), 0x5A, n)
        held += n
        free, total = s.driver.mem_info(s.device)
        require(free <= total - held, f"mem_info says {free} bytes free of {total} while {held} are allocated and written; it must count them")
        if free != first:
            return
    # systems count in batches: Linux adds up its processors' every second
    s.until(lambda: s.driver.mem_info(s.device)[0] != first, f"mem_info, {first} bytes free of {total}, moves after {held} were allocated and written")


@check(19, "double_free", "C", validation="on")
def double_free(s: Subject) -> None:
    """Freeing twice is InvalidHandle, also when the address is in use again."""
    address = s.driver.alloc(s.device, 256)
    s.driver.free(s.device, address)
    s.expect(InvalidHandle, s.driver.free, s.device, address)
    keep = [s.alloc(256) for _ in range(4)]
    if address not in keep:
        s.expect(InvalidHandle, s.driver.free, s.device, address)
    s.expect(InvalidHandle, s.driver.free, s.device, 0)
    _usable(s, keep[0], 256, "an allocation after a double free")


@check(20, "foreign_free", "C", validation="on")
def foreign_free(s: Subject) -> None:
    """Freeing an address inside an allocation, another device's, or the host's is refused."""
    address, data = s.alloc(4096), np.zeros(4096, np.uint8)
    for inside in (1, s.caps.align_bytes, 2048, 4096):
        s.expect(InvalidHandle, s.driver.free, s.device, address + inside)
    s.expect(InvalidHandle, s.driver.free, s.device, host(data))
    if s.count > 1:
        s.expect(InvalidHandle, s.driver.free, s.other(), address)
    _usable(s, address, 4096, "an allocation after refused frees")


@check(21, "no_overlap", "C")
def no_overlap(s: Subject) -> None:
    """A thousand random allocations and frees: live ranges never overlap."""
    live: dict[int, int] = {}
    for _ in range(1000):
        if live and s.rng.random() < 0.45:
            address = list(live)[int(s.rng.integers(len(live)))]
            s.free(address)
            del live[address]
        else:
            n = int(2 ** s.rng.uniform(0, 16))
            address = s.alloc(n)
            require(address > 0 and address % s.caps.align_bytes == 0, f"alloc of {n} bytes gave {address:#x}; needs a multiple of {s.caps.align_bytes}")
            live[address] = n
    spans = sorted(live.items())
    _disjoint(spans)
    marks = {a: s.pattern(min(n, 16)) for a, n in spans}
    for a, mark in marks.items():
        s.upload(a, mark)
    for a, mark in marks.items():
        require((s.download(a, mark.size) == mark).all(), f"the allocation {a:#x} lost its bytes to another one")


def _disjoint(spans: list[tuple[int, int]]) -> None:
    """spans: (address, bytes) in order."""
    for (a, n), (b, _) in zip(spans, spans[1:]):
        require(a + n <= b, f"the live allocations {a:#x} of {n} bytes and {b:#x} overlap")


@check(22, "free_in_use", "C", needs=("stream", "host_func", "caps.async_copy"), exempt=True)
def free_in_use(s: Subject) -> None:
    """Memory freed while a copy from it is queued: the copy still sees its bytes, or the free is refused as Busy."""
    nbytes = 4096
    data, other = s.pattern(nbytes), np.full(nbytes, 0x11, np.uint8)
    source, target = s.driver.alloc(s.device, nbytes), s.alloc(nbytes)
    s.upload(source, data)
    first, second = s.stream(), s.stream()
    answer: list[Exception | None] = []

    def free() -> None:
        try:
            s.driver.free(s.device, source)
            answer.append(None)
        except HaianError as error:
            answer.append(error)

    with s.blocked(first) as gate:
        s.driver.copy(s.device, Copy(DEVICE_TO_DEVICE, target, source, nbytes), first)
        worker = threading.Thread(target=free, daemon=True)
        worker.start()
        worker.join(0.2)
        if worker.is_alive():  # a free that waits for the queue is as good as a deferred one
            gate.set()
            worker.join(10)
            require(answer, "free of memory in use did not return within 10 s after its stream was released")
        elif answer[0] is None:  # whoever gets the bytes now must not be seen by the queued copy
            for _ in range(8):
                s.upload(s.alloc(nbytes), other, second)
            s.driver.stream_sync(second)
    s.driver.stream_sync(first)
    seen = s.download(target, nbytes)
    require((seen == data).all(), f"a copy queued before the free brought {int((seen != data).sum())} wrong bytes of {nbytes}")
    if answer[0] is not None:
        require(isinstance(answer[0], Busy), f"free of memory in use raised {type(answer[0]).__name__}: {answer[0]}; needs success or Busy")
        s.driver.free(s.device, source)


@check(23, "leak_loop", "C", timeout_s=60)
def leak_loop(s: Subject) -> None:
    """Ten thousand allocations and frees leave nothing behind (a thousand under validation)."""
    exact = _used(s) is not None
    size = 4096 if exact or s.caps.host_access else min(max(s.caps.total_bytes // 1000, 4096), s.caps.max_alloc_bytes)
    loops = (1000 if s.validated else _LOOPS) if exact or s.caps.host_access else 2000  # twice the device's memory in all: a leak runs out of it
    alloc, free = s.driver.alloc, s.driver.free

    def round_(n: int) -> tuple[int, int]:
        end = time.monotonic() + _ROUND_S
        for _ in range(n):
            free(s.device, alloc(s.device, size))
            if time.monotonic() > end:
                break
        return _in_use(s) if exact else 0, _address_space()

    used, mapped = round_(100)
    again, later = round_(loops)
    for _ in range(3):  # of a device shared with others: they may have moved in between
        if again == used:
            break
        used, _ = again, round_(100)
        again, later = round_(loops)
    require(again == used, f"{again} bytes in use after {loops} allocations and frees of {size} bytes, {used} before")
    if s.caps.host_access:
        require(later - mapped < _GROWTH_BYTES, f"the process grew by {later - mapped} bytes in {loops} allocations and frees of {size}")


@check(24, "fragmentation", "C")
def fragmentation(s: Subject) -> None:
    """Every second block freed is given again, and after freeing all the largest block that went at first goes again."""
    largest = s.caps.max_alloc_bytes
    while largest > 4096:
        try:
            s.driver.free(s.device, s.driver.alloc(s.device, largest))
            break
        except OutOfMemory:
            largest //= 2
    part = max(largest // 32, 1)
    blocks = [s.driver.alloc(s.device, part) for _ in range(16)]
    for b in blocks[::2]:
        s.driver.free(s.device, b)
    again = [s.driver.alloc(s.device, part) for _ in range(8)]
    live = blocks[1::2] + again
    _disjoint([(b, part) for b in sorted(live)])
    for b in live:
        s.driver.free(s.device, b)
    try:
        s.driver.free(s.device, s.driver.alloc(s.device, largest))
    except OutOfMemory as error:
        require(False, f"{largest} bytes went on the empty device, and after freeing 16 smaller blocks do not: {error}")
    if s.offers("pool_trim"):
        _trimmed(s)


def _trimmed(s: Subject) -> None:
    """pool_trim counts what it gave back, and leaves alone what is alive."""
    live = [(s.alloc(n), s.pattern(n)) for n in (64, 4096, 1 << 20)]
    for address, data in live:
        s.upload(address, data)
    for keep in (1 << 20, 0):
        released = s.driver.pool_trim(s.device, keep)
        require(isinstance(released, int) and 0 <= released <= s.caps.total_bytes, f"pool_trim gave {released!r}; needs the bytes it gave back, "
                f"0 to {s.caps.total_bytes}")
        for address, data in live:
            require((s.download(address, data.size) == data).all(), f"pool_trim changed {data.size} bytes that are in use")
    for address, _ in live:
        s.free(address)


# ---- optional kinds -----------------------------------------------------------------------------------------------------------
@check(25, "pinned", "X", needs=("pinned",))
def pinned(s: Subject) -> None:
    """Pinned and managed memory is readable by the host; registering twice and unregistering the unknown are refused."""
    target = s.alloc(4096)
    for managed in (False, True):
        try:
            address = s.driver.host_alloc(s.device, 4096, managed)
        except Unsupported:
            require(managed, "the group pinned is offered, host_alloc is Unsupported")
            continue
        data = s.pattern(4096)
        ctypes.memmove(address, host(data), 4096)
        s.driver.copy(s.device, Copy("h2d", target, address, 4096))
        ctypes.memset(address, 0, 4096)
        s.driver.copy(s.device, Copy("d2h", address, target, 4096))
        require(ctypes.string_at(address, 4096) == data.tobytes(), f"{'managed' if managed else 'pinned'} memory brought wrong bytes back")
        if managed:
            with suppress(NotOffered):
                _in_kernels(s, address)
        elif s.offers("host_func"):
            _read_in_turn(s, address, target)
        s.driver.free(s.device, address)
    s.expect(ArgumentError, s.driver.host_alloc, s.device, 0)
    if s.offers("host_register") and s.offers("host_unregister"):
        _registered(s, target)


def _read_in_turn(s: Subject, address: int, target: int) -> None:
    """A copy on a stream reads page-locked memory when its turn comes, behind a host function that writes there."""
    stream, data = s.stream(), s.pattern(4096)

    def write() -> None:
        time.sleep(0.005)
        ctypes.memmove(address, host(data), 4096)

    ctypes.memset(address, 0, 4096)
    s.driver.host_func(stream, write)
    s.driver.copy(s.device, Copy("h2d", target, address, 4096), stream)
    s.driver.stream_sync(stream)
    require((s.download(target, 4096) == data).all(), "a copy from page-locked memory brought bytes from before the host function in front of it")


def _in_kernels(s: Subject, address: int) -> None:
    """A kernel reads managed memory that the host wrote, and the host what the kernel wrote there."""
    work = Axpy(s)
    ctypes.memmove(address, host(work.host_x), 4 * work.n)
    ctypes.memmove(address + 2048, host(work.expected.copy()), 4 * work.n)
    s.driver.launch(s.device, work.desc()._replace(args=[("*fp32", address), ("*fp32", address + 2048), ("fp32", 2.0)]))
    s.driver.sync(s.device)
    seen = np.frombuffer(ctypes.string_at(address + 2048, 4 * work.n), np.float32)
    require((seen == work.expected + 2 * work.host_x).all(), "a kernel computed wrong values in managed memory")
    work.unload()


def _registered(s: Subject, target: int) -> None:
    """Memory of the host that is page-locked later; a table may say Unsupported where its runtime lacks the call."""
    memory = np.zeros(1 << 16, np.uint8)
    address = host(memory) + -host(memory) % 4096  # some chips register whole pages only
    try:
        s.driver.host_register(s.device, address, 8192)
    except Unsupported:
        return
    try:
        s.expect(ArgumentError, s.driver.host_register, s.device, address, 8192)
        data = s.pattern(4096)
        s.upload(target, data)
        s.driver.copy(s.device, Copy("d2h", address, target, 4096))
        require(ctypes.string_at(address, 4096) == data.tobytes(), "registered memory received wrong bytes")
    finally:
        s.driver.host_unregister(s.device, address)
    s.expect(InvalidHandle, s.driver.host_unregister, s.device, address)
    s.expect(InvalidHandle, s.driver.host_unregister, s.device, address + 4096)


@check(26, "ptr_info", "X", needs=("ptr_info",))
def ptr_info(s: Subject) -> None:
    """The driver knows the base, an inner address, and that one past the end and the host's memory are not the block's."""
    nbytes = 4096
    address, data = s.alloc(nbytes), np.zeros(64, np.uint8)
    for at in (address, address + 1, address + nbytes - 1):
        found = s.driver.ptr_info(s.device, at)
        require(found.kind in ("device", "managed") and found.device == s.device, f"ptr_info of base + {at - address}: {found}")
        require(found.base == address and found.nbytes >= nbytes, f"ptr_info of base + {at - address}: {found}; base is {address:#x} of {nbytes}")
    if s.count > 1:
        other = s.other()
        theirs = s.alloc(nbytes, device=other)
        found = s.driver.ptr_info(other, theirs + 1)
        require(found.device == other and found.base == theirs, f"ptr_info of memory of device {other} at {theirs:#x}: {found}")
    rounded = s.driver.ptr_info(s.device, address).nbytes  # a driver may round sizes up
    beyond = s.driver.ptr_info(s.device, address + rounded)
    require(beyond.base != address, f"ptr_info one past the end of {address:#x} still says {beyond}")
    stranger = s.driver.ptr_info(s.device, host(data))
    require(stranger.kind == "unknown", f"ptr_info of the host's memory: {stranger}; needs kind unknown")
    if s.offers("pinned"):
        mine = s.driver.host_alloc(s.device, 4096)
        found = s.driver.ptr_info(s.device, mine + 1)
        require(found.kind == "pinned" and found.base == mine, f"ptr_info inside pinned memory at {mine:#x}: {found}")
        s.driver.free(s.device, mine)
    s.free(address)
    gone = s.driver.ptr_info(s.device, address)
    require(gone.base != address, f"ptr_info of freed memory: {gone}; needs kind unknown")
