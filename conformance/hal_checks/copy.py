"""Checks 27 to 36: copies and fills bring exactly the bytes asked for, wherever they lie, and no others."""
from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from ...hal.driver import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, PEER, Copy
from ...hal.errors import ArgumentError, InvalidHandle, OutOfMemory, OutOfRange, Unsupported
from .check import NotOffered, Subject, check, host, require
from .stream import start, sync_within

_SIZES = (1, 3, 63, 64, 65, 255, 4095, 4097, 65535, 65537)
_OFFSETS = (0, 1, 7)
_MIB = 1 << 20
_LARGE = (_MIB + 1, 16 * _MIB)  # copied on a stream, where there are streams
_MOST = 64 * _MIB  # of the largest allocation: one copy from its start to its end; new pages may cost 1 ms a MiB
_HOST_BYTES_S = 45e9  # memory that fills faster is not the host's
_PIECE = 64 << 10  # the large are looked at through copies of this size, which round_trip has proven by then


def _differ(seen: np.ndarray, wanted: np.ndarray, what: str) -> None:
    if np.array_equal(seen, wanted):
        return
    wrong = np.flatnonzero(seen != wanted)
    require(not wrong.size, f"{what}: {wrong.size} of {wanted.size} bytes are wrong, the first at {int(wrong[0]) if wrong.size else 0}")


@check(27, "round_trip", "C")
def round_trip(s: Subject) -> None:
    """Host to device, on the device and back: sizes around lines and pages at offsets of 0, 1 and 7; 1, 16, 64 MiB; the largest block."""
    span = max(_SIZES) + 16
    a, b, source = s.alloc(span), s.alloc(span), s.pattern(span)
    back = np.empty(span, np.uint8)
    for n in _SIZES:
        for i in _OFFSETS:
            for j in _OFFSETS:
                back[: n + 16] = 0
                try:
                    s.driver.copy(s.device, Copy(HOST_TO_DEVICE, a + j, host(source) + i, n))
                    s.driver.copy(s.device, Copy(DEVICE_TO_DEVICE, b + i, a + j, n))
                    s.driver.copy(s.device, Copy(DEVICE_TO_HOST, host(back) + j, b + i, n))
                except Unsupported:
                    require(i or j, f"an aligned copy of {n} bytes is Unsupported; only misaligned ones may be")
                    continue
                _differ(back[j : j + n], source[i : i + n], f"{n} bytes, offsets {i} and {j}, there and back")
    s.free(a)
    s.free(b)
    if not s.validated:  # the layer above passes the same copies on: once is enough for what takes time
        _large(s)


def _large(s: Subject) -> None:
    """One copy of each kind for sizes that runtimes stage, split or hand to another engine, and within the largest block."""
    for n in _LARGE:
        if 2 * n <= s.caps.max_alloc_bytes:
            a = s.alloc(2 * n)
            _three(s, a, a + n, n, s.stream() if s.offers("stream") else 0)
            s.free(a)
    largest = s.caps.max_alloc_bytes
    while largest > 2 * _MIB:
        try:
            a = s.alloc(largest)
        except OutOfMemory:  # others use the device too
            largest //= 2
            continue
        n = min(largest // 2, _MOST)
        _three(s, a, a + largest - n, n, 0)
        s.free(a)
        return


def _three(s: Subject, a: int, b: int, n: int, stream: int) -> None:
    """h2d to a, d2d to b and d2h of n bytes, each one copy on the stream; contents compared after each."""
    tile = s.pattern(_MIB - 3)  # no power of two divides its length
    data = np.resize(tile, n)

    def run(name: str, desc: Copy) -> None:
        s.driver.copy(s.device, desc, stream)
        if stream:
            s.driver.stream_sync(stream)
        _tiled(s, None if name == "d2h" else desc.dst, data, tile, f"one {name} copy of {n} bytes{' on a stream' if stream else ''}")

    run("h2d", Copy(HOST_TO_DEVICE, a, host(data), n))
    run("d2d", Copy(DEVICE_TO_DEVICE, b, a, n))
    np.invert(data, out=data)
    run("d2h", Copy(DEVICE_TO_HOST, host(data), b, n))


def _tiled(s: Subject, address: int | None, data: np.ndarray, tile: np.ndarray, what: str) -> None:
    """Requires ``data``, or as many bytes of the device brought in many small copies, to be the tile over and over."""
    twice, piece = np.concatenate([tile, tile]), np.empty(_PIECE, np.uint8)
    for at in range(0, data.size, _PIECE):
        n = min(_PIECE, data.size - at)
        seen = piece[:n]
        if address is None:
            seen = data[at : at + n]
        else:
            s.driver.copy(s.device, Copy(DEVICE_TO_HOST, host(piece), address + at, n))
        start = at % tile.size
        _differ(seen, twice[start : start + n], f"{what}, bytes {at} to {at + n - 1}")


@check(28, "misaligned", "C")
def misaligned(s: Subject) -> None:
    """Misaligned copies and fills are exact or Unsupported, never rounded: bytes around them stay."""
    for n in (1, 3, 5, 33, 127, 4099):
        for shift in (1, 2, 3, 5, 7):
            target, data = s.guard(n, shift), s.pattern(n)

            def put() -> None:
                s.driver.copy(s.device, Copy(HOST_TO_DEVICE, target.address, host(data), n))  # noqa: B023 - called in this round

            def move() -> None:
                held = s.alloc(n)  # noqa: B023 - as above
                s.upload(held, data)  # noqa: B023 - called in this round
                s.driver.copy(s.device, Copy(DEVICE_TO_DEVICE, target.address, held, n))  # noqa: B023 - as above
                s.free(held)

            for name, call in (("h2d", put), ("d2d", move)):
                s.fill(target.address, 0xA5, n)
                if _done(call):
                    _differ(target.check(f"{name} copy of {n} bytes at {shift}"), data, f"{name} copy of {n} bytes at {shift}")
            s.free(target.base)
        _to_host(s, n)
    if s.offers("fill"):
        for n, shift in ((1, 1), (3, 2), (33, 3), (127, 7)):
            target = s.guard(n, shift)
            if _done(lambda: s.driver.fill(s.device, target.address, b"\x3c", n)):  # noqa: B023 - called in this round
                _differ(target.check(f"fill of {n} bytes at {shift}"), np.full(n, 0x3C, np.uint8), f"fill of {n} bytes at {shift}")


def _done(call: Callable[[], None]) -> bool:
    try:
        call()
    except Unsupported:
        return False
    return True


def _to_host(s: Subject, n: int) -> None:
    """A copy to the middle of a host array leaves its neighbours alone."""
    source, data, out = s.alloc(n + 8), s.pattern(n + 8), np.full(n + 128, 0xA5, np.uint8)
    s.upload(source, data)
    if _done(lambda: s.driver.copy(s.device, Copy(DEVICE_TO_HOST, host(out) + 61, source + 3, n))):
        _differ(out[61 : 61 + n], data[3 : 3 + n], f"d2h copy of {n} bytes at 3")
        around = np.concatenate([out[:61], out[61 + n :]])
        require((around == 0xA5).all(), f"d2h copy of {n} bytes wrote {int((around != 0xA5).sum())} bytes of the host outside")
    s.free(source)


@check(29, "zero_copy", "C")
def zero_copy(s: Subject) -> None:
    """A copy or fill of zero bytes, or of zero rows, succeeds and does nothing."""
    target, data, out = s.guard(64), s.pattern(64), np.full(64, 0xA5, np.uint8)
    source = s.alloc(64)
    s.upload(source, data)
    streams = [0, s.stream()] if s.offers("stream") else [0]
    for stream in streams:
        for n, rows in ((0, 1), (0, 4), (16, 0)):
            for desc in (Copy(HOST_TO_DEVICE, target.address, host(data), n, rows, 16, 16), Copy(DEVICE_TO_HOST, host(out), source, n, rows, 16, 16),
                         Copy(DEVICE_TO_DEVICE, target.address, source, n, rows, 16, 16)):
                s.driver.copy(s.device, desc, stream)
        if s.offers("fill"):
            s.driver.fill(s.device, target.address, b"\x11", 0, stream)
        if stream:
            s.driver.stream_sync(stream)
    seen = target.check("copies of zero bytes")
    require((seen == 0xA5).all() and (out == 0xA5).all(), "copies of zero bytes changed something")


@check(30, "overlap", "C")
def overlap(s: Subject) -> None:
    """Overlapping copies on the device give memmove's result, or are refused where memmove is not claimed."""
    streams = [0, s.stream()] if s.offers("stream") else [0]
    for n, stream in ((n, stream) for stream in streams for n in (257, 65537)):
        address, data = s.alloc(n + 8192), s.pattern(n + 8192)
        for shift in (1, 7, 64, 200, 4096):
            if shift >= n:
                continue
            for dst, src in ((shift, 0), (0, shift)):
                s.upload(address, data)
                desc = Copy(DEVICE_TO_DEVICE, address + dst, address + src, n)
                if not s.caps.memmove:
                    s.expect((ArgumentError, Unsupported), s.driver.copy, s.device, desc, stream)
                    continue
                wanted = data.copy()
                wanted[dst : dst + n] = data[src : src + n]
                if _done(lambda: s.driver.copy(s.device, desc, stream)):  # noqa: B023 - called in this round
                    if stream:
                        s.driver.stream_sync(stream)
                    _differ(s.download(address, n + 8192), wanted, f"overlapping copy of {n} bytes from {src} to {dst}{_on(stream)}")
                else:
                    require(shift % 64, f"an aligned overlapping copy of {n} bytes is Unsupported although memmove is claimed")
        s.free(address)


@check(31, "out_of_range", "C", validation="on")
def out_of_range(s: Subject) -> None:
    """An access that leaves its allocation by one byte is refused, in every kind of copy and in fills."""
    n = 4096
    a, gap, b, data = s.alloc(n), s.alloc(n), s.alloc(2 * n), np.zeros(2 * n, np.uint8)
    before = s.pattern(n)
    s.upload(a, before)
    s.free(gap)  # where blocks lie side by side, what follows a is free now
    wrong = (OutOfRange, InvalidHandle)
    beyond = not s.caps.host_access and not b <= a + n < b + 2 * n  # else one past the end may be anybody's, or b's own first byte
    for at, count in ((0, n + 1), (1, n), (n - 1, 2), *([(n, 1)] if beyond else [])):
        for desc in (Copy(HOST_TO_DEVICE, a + at, host(data), count), Copy(DEVICE_TO_HOST, host(data), a + at, count),
                     Copy(DEVICE_TO_DEVICE, b, a + at, count), Copy(DEVICE_TO_DEVICE, a + at, b, count)):
            s.expect(wrong, s.driver.copy, s.device, desc)
        if s.offers("fill"):
            s.expect(wrong, s.driver.fill, s.device, a + at, b"\x01", count)
    s.expect(wrong, s.driver.copy, s.device, Copy(DEVICE_TO_DEVICE, b, a + 1, 1024, 4, 1024, 1024))  # the last row's last byte
    s.free(b)
    s.expect(wrong, s.driver.copy, s.device, Copy(HOST_TO_DEVICE, b, host(data), 64))  # freed
    _differ(s.download(a, n), before, "the allocation after refused accesses")


@check(32, "pitched", "C")
def pitched(s: Subject) -> None:
    """Rows with a pitch: gaps stay untouched, pitch may equal the row, one row needs none, a smaller pitch is refused."""
    for stream in [0, s.stream()] if s.offers("stream") else [0]:
        for rows, width, dst_pitch, src_pitch in ((5, 33, 64, 40), (4, 64, 64, 64), (3, 7, 7, 129), (17, 1, 16, 2), (1, 100, 0, 0), (1, 100, 7, 3),
                                                  (2, 4096, 4097, 8192), (300, 5, 8, 5)):
            _pitched(s, rows, width, dst_pitch, src_pitch, stream)
    if s.validated:
        address, data = s.alloc(4096), np.zeros(4096, np.uint8)
        for dst_pitch, src_pitch in ((31, 64), (64, 31), (0, 64)):
            s.expect(ArgumentError, s.driver.copy, s.device, Copy(HOST_TO_DEVICE, address, host(data), 32, 4, dst_pitch, src_pitch))


def _pitched(s: Subject, rows: int, width: int, dst_pitch: int, src_pitch: int, stream: int) -> None:
    """To the device, on it and back; what lies between the rows stays."""
    what = f"{rows} rows of {width} bytes, pitches {dst_pitch} and {src_pitch}{_on(stream)}"
    dst_span, src_span = _span(rows, width, dst_pitch), _span(rows, width, src_pitch)
    source, back = s.pattern(src_span), np.full(dst_span, 0xA5, np.uint8)
    s._kept += [source, back]
    first, second = s.guard(dst_span), s.guard(src_span)
    wanted = _rows(np.full(dst_span, 0xA5, np.uint8), source, rows, width, dst_pitch, src_pitch)

    def run(desc: Copy) -> None:
        s.driver.copy(s.device, desc, stream)
        if stream:
            s.driver.stream_sync(stream)

    run(Copy(HOST_TO_DEVICE, first.address, host(source), width, rows, dst_pitch, src_pitch))
    _differ(first.check(f"h2d of {what}"), wanted, f"h2d of {what}")
    run(Copy(DEVICE_TO_DEVICE, second.address, first.address, width, rows, src_pitch, dst_pitch))
    there = _rows(np.full(src_span, 0xA5, np.uint8), wanted, rows, width, src_pitch, dst_pitch)
    _differ(second.check(f"d2d of {what}"), there, f"d2d of {what}")
    run(Copy(DEVICE_TO_HOST, host(back), second.address, width, rows, dst_pitch, src_pitch))
    _differ(back, wanted, f"d2h of {what}")
    s.free(first.base)
    s.free(second.base)


def _on(stream: int) -> str:
    return " on a stream" if stream else ""


def _span(rows: int, width: int, pitch: int) -> int:
    return (rows - 1) * pitch + width if rows > 1 else width


def _rows(dst: np.ndarray, src: np.ndarray, rows: int, width: int, dst_pitch: int, src_pitch: int) -> np.ndarray:
    """dst with the rows of src copied in, on the host."""
    for r in range(rows):
        dst[r * dst_pitch : r * dst_pitch + width] = src[r * src_pitch : r * src_pitch + width]
    return dst


@check(33, "fill", "C", needs=("fill",), exempt=True)
def fill(s: Subject) -> None:
    """Fills repeat patterns of 1, 2 and 4 bytes exactly; lengths that are no multiple are refused."""
    other = s.stream() if s.offers("stream") else 0
    for pattern in (b"\x00", b"\x7f", b"\x01\x02", b"\x05\x05", b"\x01\x02\x03\x04", b"\xff\x00\x00\x80", b"\0\0\0\0"):
        size = len(pattern)
        for count in (1, 3, 64, 1025, 16385):
            n = count * size
            for shift, stream in ((0, 0), (size, 0), *([(size, other)] if other else [])):
                target = s.guard(n, shift)
                s.driver.fill(s.device, target.address, pattern, n, stream)
                if stream:
                    s.driver.stream_sync(stream)
                what = f"fill of {n} bytes with {pattern.hex()}{_on(stream)}"
                _differ(target.check(what), np.frombuffer(pattern * count, np.uint8), what)
                s.free(target.base)
    n = 16 * _MIB
    if not s.validated and n <= s.caps.max_alloc_bytes:
        address = s.alloc(n)
        s.driver.fill(s.device, address, b"\x01\x02\x03\x04", n)
        tile = np.resize(np.arange(1, 5, dtype=np.uint8), _PIECE)
        for at in range(0, n, _PIECE):
            _differ(s.download(address + at, _PIECE), tile, f"fill of {n} bytes, bytes {at} to {at + _PIECE - 1}")
        s.free(address)
    if s.validated:
        address = s.alloc(64)
        for pattern, n in ((b"ab", 63), (b"abcd", 62), (b"abc", 63), (b"", 64), (b"a", -1)):
            s.expect(ArgumentError, s.driver.fill, s.device, address, pattern, n)


@check(34, "peer", "S", exempt=True)
def peer(s: Subject) -> None:
    """Copies between two devices both ways, and to the same one; without the capability they are Unsupported."""
    if s.count < 2 and not s.caps.peer:
        raise NotOffered("one device, and capability peer is not claimed")
    others = [s.device, *[d for d in range(s.count) if d != s.device][:3]]
    for n in (4099,) if s.validated or not s.caps.peer else (4099, 16 * _MIB):
        _peers(s, others, n)
    if s.caps.peer:
        for device in others:
            _peer_rows(s, device)
        if s.count > 1:
            with suppress(NotOffered):
                _peer_waits(s)
        mine = s.alloc(64)
        for device in (s.count, 2**31 - 1):
            s.expect(ArgumentError, s.driver.copy, s.device, Copy(PEER, mine, mine, 64, dst_device=device))


def _peer_rows(s: Subject, device: int) -> None:
    """Rows with pitches to another device; what lies between them stays."""
    rows, width, dst_pitch, src_pitch = 5, 33, 64, 40
    source, target = s.pattern(_span(rows, width, src_pitch)), s.guard(_span(rows, width, dst_pitch), device=device)
    mine = s.alloc(source.size)
    s.upload(mine, source)
    s.driver.copy(s.device, Copy(PEER, target.address, mine, width, rows, dst_pitch, src_pitch, device))
    wanted = _rows(np.full(target.nbytes, 0xA5, np.uint8), source, rows, width, dst_pitch, src_pitch)
    _differ(target.check(f"peer copy of {rows} rows"), wanted, f"{rows} rows copied to device {device}")


def _peer_waits(s: Subject) -> None:
    """A copy to another device takes its turn on the stream."""
    s.need("stream", "host_func", "caps.async_copy")
    other, n = s.other(), 4096
    stream, aside = s.stream(), s.stream(device=other)
    mine, theirs, data = s.alloc(n), s.alloc(n, device=other), s.pattern(n)
    s.upload(mine, data)
    s.upload(theirs, np.zeros(n, np.uint8), device=other)
    with s.blocked(stream):
        copies = start(s, lambda: s.driver.copy(s.device, Copy(PEER, theirs, mine, n, dst_device=other), stream))
        s.until(copies, "queueing a copy to another device on a blocked stream")
        seen = s.download(theirs, n, aside, device=other)
        sync_within(s, aside, "a stream of another device beside a blocked one")
        require(not seen.any(), "a copy to another device queued behind a blocked host function has happened already")
    sync_within(s, stream, "a released stream")
    _differ(s.download(theirs, n, device=other), data, f"peer copy to device {other} on a stream")


def _peers(s: Subject, others: list[int], n: int) -> None:
    mine = s.alloc(n)
    for device in others:
        theirs, data = s.alloc(n, device=device), s.pattern(n)
        s.upload(mine, data)
        there = Copy(PEER, theirs, mine, n, dst_device=device)
        if not s.caps.peer:
            if device != s.device:
                s.expect(Unsupported, s.driver.copy, s.device, there)
            continue
        s.driver.copy(s.device, there)
        _differ(s.download(theirs, n, device=device), data, f"peer copy to device {device}")
        s.fill(mine, 0, n)
        s.driver.copy(device, Copy(PEER, mine, theirs, n, dst_device=s.device))
        _differ(s.download(mine, n), data, f"peer copy from device {device}")


@check(35, "source_captured", "S")
def source_captured(s: Subject) -> None:
    """After a synchronous copy the host's bytes may change; the device keeps what they were."""
    for n in (64, 4096, 1 << 20):
        address, data = s.alloc(n), s.pattern(n)
        source = data.copy()
        for _ in range(4):
            s.driver.copy(s.device, Copy(HOST_TO_DEVICE, address, host(source), n))
            source[:] = 0xEE
            _differ(s.download(address, n), data, f"{n} bytes whose source changed after a synchronous copy")
            source[:] = data
        s.free(address)


@check(36, "beyond_4gib", "P", exempt=True)
def beyond_4gib(s: Subject) -> None:
    """Offsets and pitches beyond 4 GiB reach the right bytes."""
    big, n = 1 << 32, 4096
    nbytes = big + 4 * n
    if s.caps.max_alloc_bytes < nbytes:
        raise NotOffered(f"max_alloc_bytes is {s.caps.max_alloc_bytes}; needs {nbytes}")
    try:
        address = s.alloc(nbytes)
    except OutOfMemory:
        raise NotOffered(f"no {nbytes} bytes free at once") from None
    low, high = s.pattern(n), s.pattern(n)
    s.upload(address, low)
    s.upload(address + big + 1, high)
    _differ(s.download(address, n), low, "bytes at 0 after a copy to 4 GiB + 1")
    _differ(s.download(address + big + 1, n), high, "bytes at 4 GiB + 1")
    back = np.zeros(2 * n, np.uint8)
    s.driver.copy(s.device, Copy(DEVICE_TO_HOST, host(back), address, n, 2, n, big + 1))  # two rows, 4 GiB + 1 apart
    _differ(back, np.concatenate([low, high]), "two rows that lie 4 GiB + 1 apart")
    s.driver.copy(s.device, Copy(DEVICE_TO_DEVICE, address + 2 * n, address + big + 1, n))
    _differ(s.download(address + 2 * n, n), high, "a copy on the device from 4 GiB + 1")
    rows = np.concatenate([high, low])
    s.driver.copy(s.device, Copy(HOST_TO_DEVICE, address, host(rows), n, 2, big + 1, n))
    _differ(s.download(address, n), high, "the first of two rows that go 4 GiB + 1 apart")
    _differ(s.download(address + big + 1, n), low, "the second of two rows that go 4 GiB + 1 apart")
    if s.offers("fill"):
        s.driver.fill(s.device, address + big + n, b"\x05\x06\x07\x08", n)
        _differ(s.download(address + big + n, n), np.resize(np.arange(5, 9, dtype=np.uint8), n), "a fill beyond 4 GiB")
        _differ(s.download(address, n), high, "bytes at 0 after a fill beyond 4 GiB")
        _counts(s, address, big, n)


def _counts(s: Subject, address: int, big: int, n: int) -> None:
    """A fill of more than 4 GiB, where memory is too fast to be the host's: there it would take seconds and real pages."""
    probe = 64 * _MIB
    begin = time.monotonic()
    s.driver.fill(s.device, address, b"\x01", probe)
    if time.monotonic() - begin > probe / _HOST_BYTES_S:
        return
    s.driver.fill(s.device, address, b"\x2a\x2b", big + n)
    for at in (0, probe, big - n, big):
        _differ(s.download(address + at, n), np.resize(np.array([0x2A, 0x2B], np.uint8), n), f"a fill of {big + n} bytes, at {at}")
