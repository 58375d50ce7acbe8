"""Buffer (bytes on a device), the caching allocator above every driver, and copies between devices.

Stream-ordered: freed memory is at once reusable by later work of its stream, by other streams once that work has passed.
Not here: the host's own allocator (native/alloc.c), shapes and strides as users see them (tensor.py).
"""
from __future__ import annotations

import itertools
import math
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .driver import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, PEER, Capabilities, Copy, Driver
from .errors import (
    AliasError,
    ArgumentError,
    DTypeError,
    HaianError,
    InvalidHandle,
    OutOfMemory,
    ShapeError,
    Unsupported,
)

if TYPE_CHECKING:
    from .device import Device
    from .stream import Stream
    from .tensor import Tensor

__all__ = ["Allocator", "Buffer", "buffer_of", "copy", "host_view", "is_readonly", "use"]

KIB, MIB = 1 << 10, 1 << 20

# Best fit with splitting and coalescing, small and large requests in separate segments.  Reserved over peak live bytes,
# and driver allocations, on five traces (12-layer training step with changing length; growing key-value cache, 25,376
# requests; ResNet-50 at batch 1 to 32; sizes log-uniform to 64 MiB; to 16 KiB):
#   this                      1.17 / 100   1.25 / 5     1.37 / 3   1.81 / 16    1.64 / 3
#   small up to 1 MiB         1.17 / 100   1.87 / 21    1.39 / 4   1.82 / 20    1.64 / 3
#   segments of exact size    1.15 / 166   96.4 / 5896  1.41 / 7   1.99 / 34    1.13 / 346
#   power-of-two bins         2.20 / 248   2.56 / 265   2.09 / 11  2.25 / 161   1.44 / 2002
#   bins of 1/8 octave        1.71 / 284   12.1 / 1440  2.04 / 19  4.52 / 363   1.25 / 2128
QUANTUM = 256  # blocks are multiples of this or of the device's alignment
SMALL = 64 * KIB
SMALL_SEGMENT = 2 * MIB
MEDIUM = 10 * MIB
MEDIUM_SEGMENT = 20 * MIB
LARGE_STEP = 2 * MIB
SEGMENT_SHARE = 16  # room beyond the request never makes a segment larger than 1/16 of the device

# A copy that needs more strided pieces than this reads the whole span instead, or goes through the host.
MAX_PIECES = 64


class _Block:
    """A piece of a segment, free or live."""

    __slots__ = ("address", "size", "segment", "before", "after", "free", "stream", "epoch")

    def __init__(self, address: int, size: int, segment: _Segment) -> None:
        self.address, self.size, self.segment = address, size, segment
        self.before: _Block | None = None
        self.after: _Block | None = None
        self.free = False
        self.stream = 0
        self.epoch = 0


class _Segment:
    """One allocation of the driver."""

    __slots__ = ("address", "size", "small", "first")

    def __init__(self, address: int, size: int, small: bool) -> None:
        self.address, self.size, self.small = address, size, small
        self.first = _Block(address, size, self)


class _Order:
    """How far a stream has come: blocks freed in an epoch are anyone's once the mark that closed it has passed."""

    __slots__ = ("epoch", "passed", "event", "closing")

    def __init__(self) -> None:
        self.epoch = 1  # of blocks freed now
        self.passed = 0  # all blocks of epochs up to this are idle
        self.event = 0
        self.closing = 0  # epoch that the queued mark closes; 0: no mark is queued


class Allocator:
    """Caches the memory of one device.  Thread-safe.  Use ``Device.allocate``.

    A block freed by work of stream A is reused on A without waiting; on B only after a mark in A, made on B's first
    request for it, has passed: so a program with one stream never makes an event.
    """

    def __init__(self, driver: Driver, index: int, name: str, facts: Capabilities) -> None:
        self._driver, self._index, self._name, self._facts = driver, index, name, facts
        self._quantum = max(QUANTUM, facts.align_bytes)
        self._lock = threading.Lock()
        self._freed: deque[tuple[_Block, tuple[int, ...]]] = deque()  # by finalisers, which must not take the lock
        self._waiting: list[tuple[list[int], _Block]] = []  # freed while other streams used them: events, block
        self._free: dict[tuple[int, bool], list[tuple[int, int, _Block]]] = {}  # (stream, small): sorted (size, address, block)
        self._orders: dict[int, _Order] = {0: _Order()}
        self._segments: dict[int, _Segment] = {}
        self._events: list[int] = []  # spare
        # A validating driver hears of every block, so that it can check bounds within segments.
        self._carve = getattr(driver, "carve", None)
        self._uncarve = getattr(driver, "uncarve", None)
        self._live = self._reserved = self._peak = self._allocations = self._hits = 0

    # ---- asked by Buffer -------------------------------------------------------------------------------------------
    def take(self, nbytes: int, stream: int) -> _Block:
        """A live block of at least ``nbytes`` bytes for work of ``stream``.

        Raises:
            ArgumentError: nbytes < 1.  OutOfMemory: even after giving the cache back and asking again.
        """
        if nbytes < 1:
            raise ArgumentError(f"{self._name}: {nbytes} bytes asked for; ask for at least 1")
        size = -(-nbytes // self._quantum) * self._quantum
        small = size <= SMALL
        with self._lock:
            block = self._cached(size, small, stream)
            hit = block is not None
            if block is None:
                block = self._grow(size, small)
        if block is None:
            self.trim()
            with self._lock:
                block = self._cached(size, small, stream) or self._grow(size, small)
        if block is None:
            raise OutOfMemory(self._no_memory(nbytes))
        with self._lock:
            self._split(block, size, stream)
            block.stream = stream
            self._live += block.size
            self._peak = max(self._peak, self._live)
            self._allocations += 1
            self._hits += hit
        if self._carve:
            self._carve(self._index, block.address, nbytes)
        return block

    def give(self, block: _Block, users: Iterable[int]) -> None:
        """Takes a block back whose queued work is in the streams ``users``.  Safe inside a finaliser: it only queues."""
        self._freed.append((block, tuple(users)))

    def order(self, users: Iterable[int], stream: int) -> None:
        """Makes later work of ``stream`` (0: the host) wait for what the streams ``users`` have queued."""
        for user in users:
            if user == stream or user not in self._orders:
                continue
            if not self._facts.events:
                if user:
                    self._driver.stream_sync(user)
                continue
            with self._lock:
                if user not in self._orders:  # closed meanwhile
                    continue
                event = self._event()
                self._mark(event, user)
            if stream:
                self._driver.stream_wait_event(stream, event)
            else:
                self._driver.event_sync(event)
            with self._lock:
                self._events.append(event)

    def stream_opened(self, stream: int) -> None:
        with self._lock:
            self._orders[stream] = _Order()

    def stream_close(self, stream: int) -> None:
        """Destroys a stream without queued work: its blocks are anyone's.

        Under the lock, so that no mark goes to a stream that is gone; drained before, so that this waits for nothing.
        """
        with self._lock:
            self._collect()
            self._driver.stream_destroy(stream)
            order = self._orders.pop(stream, None)
            if order and order.event:
                self._events.append(order.event)
            for small in (True, False):
                for _, _, block in self._free.pop((stream, small), ()):
                    block.free = False
                    self._put(block)

    # ---- asked by users --------------------------------------------------------------------------------------------
    def stats(self) -> dict[str, int]:
        """Bytes and counts: live, cached, peak (of live), reserved (live + cached), allocations, hits (no driver call)."""
        with self._lock:
            self._collect()
            return {"live_bytes": self._live, "cached_bytes": self._reserved - self._live, "peak_bytes": self._peak,
                    "reserved_bytes": self._reserved, "allocations": self._allocations, "hits": self._hits,
                    "segments": len(self._segments)}

    def trim(self) -> int:
        """Waits for the device and gives every unused segment back to the driver; returns how many bytes."""
        with self._lock:
            self._collect()
            closed = {}
            for stream, order in self._orders.items():  # what is freed during the wait belongs to the next epoch
                closed[stream] = order.epoch
                order.epoch += 1
            waiting = self._waiting
            self._waiting = []
        self._driver.sync(self._index)  # without the lock: host functions that it waits for may allocate
        with self._lock:
            for stream, epoch in closed.items():
                if stream in self._orders:  # else closed during the wait
                    self._orders[stream].passed = max(self._orders[stream].passed, epoch)
            for events, block in waiting:
                self._events += events
                block.epoch = 0
                self._put(block)
            return self._release()

    # ---- under the lock --------------------------------------------------------------------------------------------
    def _collect(self) -> None:
        """Takes in what finalisers freed and what other streams have passed."""
        while self._freed:
            block, users = self._freed.popleft()
            self._live -= block.size
            if self._uncarve:
                self._uncarve(self._index, block.address)
            if block.stream in self._orders:
                block.epoch = self._orders[block.stream].epoch
            others = [u for u in users if u != block.stream and u in self._orders]
            if others and self._facts.events:
                events = []
                for user in others:
                    events.append(self._event())
                    self._mark(events[-1], user)
                self._waiting.append((events, block))
            elif others:
                for user in others:
                    if user:
                        self._driver.stream_sync(user)
                self._put(block)
            else:
                self._put(block)
        if self._waiting:
            still = []
            for events, block in self._waiting:
                if all(self._driver.event_query(e) for e in events):
                    self._events += events
                    self._put(block)
                else:
                    still.append((events, block))
            self._waiting = still

    def _cached(self, size: int, small: bool, stream: int) -> _Block | None:
        """The best fitting free block of the stream, else of another whose work on it has passed."""
        self._collect()
        block = self._fit(size, small, stream, None)
        if block is None:
            for other, kind in list(self._free):
                if kind == small and other != stream:
                    block = self._fit(size, small, other, self._passed(other))
                    if block is not None:
                        break
        return block

    def _fit(self, size: int, small: bool, stream: int, passed: int | None) -> _Block | None:
        blocks = self._free.get((stream, small), [])
        for i in range(bisect_left(blocks, (size,)), len(blocks)):  # type: ignore[arg-type]
            if passed is None or blocks[i][2].epoch <= passed:
                block = blocks.pop(i)[2]
                block.free = False
                return block
        return None

    def _passed(self, stream: int) -> int:
        """Up to which epoch the stream's freed blocks are idle; queues the next mark where none is on its way."""
        order = self._orders[stream]
        if not self._facts.events:
            return order.passed
        if order.closing and self._driver.event_query(order.event):
            order.passed, order.closing = max(order.passed, order.closing), 0
        if not order.closing and order.passed < order.epoch:
            order.event = order.event or self._event()
            self._mark(order.event, stream)
            order.closing = order.epoch
            order.epoch += 1
            if self._driver.event_query(order.event):
                order.passed, order.closing = order.closing, 0
        return order.passed

    def _event(self) -> int:
        return self._events.pop() if self._events else self._driver.event_create(self._index, False)

    def _mark(self, event: int, stream: int) -> None:
        try:
            self._driver.event_record(event, stream)
        except HaianError:
            if stream:
                raise
            self._driver.sync(self._index)  # a driver that marks nothing in its default stream: wait for it

    def _grow(self, size: int, small: bool) -> _Block | None:
        """A new segment, of the comfortable size or else just large enough; None when the driver has no memory."""
        if size > self._facts.max_alloc_bytes:
            return None
        roomy = SMALL_SEGMENT if small else MEDIUM_SEGMENT if size < MEDIUM else -(-size // LARGE_STEP) * LARGE_STEP
        share = min(self._facts.total_bytes // SEGMENT_SHARE, self._facts.max_alloc_bytes)
        roomy = min(roomy, share // self._quantum * self._quantum)
        for n in (roomy, size) if roomy > size else (size,):
            try:
                address = self._driver.alloc(self._index, n, self._quantum)
            except OutOfMemory:
                continue
            segment = self._segments[address] = _Segment(address, n, small)
            self._reserved += n
            if self._carve:
                self._driver.pool(self._index, address)  # type: ignore[attr-defined]
            return segment.first
        return None

    def _split(self, block: _Block, size: int, stream: int) -> None:
        rest = block.size - size
        if rest < self._quantum:
            return
        tail = _Block(block.address + size, rest, block.segment)
        tail.before, tail.after = block, block.after
        if block.after:
            block.after.before = tail
        block.after = tail
        block.size = size
        tail.stream, tail.epoch = stream, block.epoch if block.stream == stream else 0
        self._put(tail)

    def _put(self, block: _Block) -> None:
        """Adds a free block, merged with free neighbours of the same stream."""
        if block.stream not in self._orders:  # closed, so drained
            block.stream, block.epoch = 0, 0
        for near in (block.before, block.after):
            if near is not None and near.free and near.stream == block.stream:
                blocks = self._free[near.stream, near.segment.small]
                del blocks[bisect_left(blocks, (near.size, near.address))]  # type: ignore[arg-type]
                self._join(near, block) if near is block.before else self._join(block, near)
                if near is block.before:
                    block = near
        block.free = True
        insort(self._free.setdefault((block.stream, block.segment.small), []), (block.size, block.address, block))

    @staticmethod
    def _join(left: _Block, right: _Block) -> None:
        left.size += right.size
        left.epoch = max(left.epoch, right.epoch)
        left.after = right.after
        if right.after:
            right.after.before = left

    def _release(self) -> int:
        """Frees the segments in which every block is idle."""
        released = 0
        for segment in list(self._segments.values()):
            blocks = []
            block: _Block | None = segment.first
            while block is not None:
                blocks.append(block)
                block = block.after
            if not all(b.free and b.epoch <= self._orders[b.stream].passed for b in blocks):
                continue
            for b in blocks:
                row = self._free[b.stream, segment.small]
                del row[bisect_left(row, (b.size, b.address))]  # type: ignore[arg-type]
            self._driver.free(self._index, segment.address)
            del self._segments[segment.address]
            self._reserved -= segment.size
            released += segment.size
        return released

    def _no_memory(self, nbytes: int) -> str:
        total = self._facts.total_bytes
        if nbytes > self._facts.max_alloc_bytes:
            return (f"{self._name}: {nbytes} bytes asked for; one allocation may have {self._facts.max_alloc_bytes} of the "
                    f"device's {total}; split the tensor")
        try:
            free = f"{self._driver.mem_info(self._index)[0]} of {total} free"
        except Unsupported:
            free = f"{total - self._reserved} of {total} free"
        return (f"{self._name}: {nbytes} bytes asked for, {free}, {self._live} in live haian tensors (cache given back); "
                f"release tensors or use smaller ones")


class Buffer:
    """``nbytes`` bytes on a device; freed when no longer referenced.  Made by ``Device.allocate``.

    Attributes:
        device: where.
        nbytes: as asked for.
        address: of the first byte; aligned to the device's ``align_bytes``.
    """

    __slots__ = ("device", "nbytes", "address", "_block", "_users", "_writer")

    def __init__(self, device: Device, nbytes: int, stream: Stream) -> None:
        if stream.device != device:
            raise ArgumentError(f"{device.name}: memory for a stream of {stream.device.name}; use a stream of {device.name}")
        self._block: _Block | None = None
        self.device = device
        self.nbytes = nbytes
        self._block = device.allocator.take(nbytes, stream.handle)
        self.address = self._block.address
        # Streams whose queued work uses the bytes: True where that work comes after the latest write.
        self._users = {stream.handle: True}
        self._writer = stream.handle

    def __repr__(self) -> str:
        return f"<haian buffer of {self.nbytes} bytes at {self.address:#x} on {self.device.name}{'' if self.alive else ', freed'}>"

    @property
    def alive(self) -> bool:
        return self._block is not None

    def used_on(self, stream: Stream) -> None:
        """Says that work queued in ``stream`` uses these bytes, so that they are not reused before it has passed.

        Order is the caller's business here; ``use`` does both.
        """
        self._users.setdefault(stream.handle, False)

    def free(self) -> None:
        """Gives the bytes back before the last reference goes; a second call is an InvalidHandle."""
        if self._block is None:
            raise InvalidHandle(f"{self!r}: freed twice; drop the second call")
        block, self._block = self._block, None
        self.device.allocator.give(block, self._users)

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is not None:
            self.device.allocator.give(block, self._users)


# ---- copies ----------------------------------------------------------------------------------------------------------
class _Window:
    """Shows host memory to NumPy and keeps its owner alive."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], type: str, readonly: bool, owner: object) -> None:
        self.__array_interface__ = {"data": (address, readonly), "shape": shape, "strides": strides, "typestr": type, "version": 3}
        self.owner = owner


def is_readonly(t: Tensor) -> bool:
    """Whether the tensor shows memory that its owner does not let anyone write (a read-only NumPy array, bytes)."""
    owner = t.owner
    while owner is not None and type(owner) is type(t):
        owner = owner.owner
    return isinstance(owner, np.ndarray) and not owner.flags.writeable


def host_view(t: Tensor) -> np.ndarray:
    """A NumPy array over a host tensor's memory, of its shape, strides and dtype (ml_dtypes' for bfloat16 and float8)."""
    if t.numel == 0:
        return np.empty(t.shape, t.dtype.numpy)
    item = t.itemsize
    raw = np.asarray(_Window(t.address, t.shape, tuple(s * item for s in t.strides), f"|V{item}", is_readonly(t), t))
    return raw.view(t.dtype.numpy)


def buffer_of(t: Tensor) -> Buffer | None:
    """The Buffer a device tensor lies in; None for memory of another framework.

    Raises:
        InvalidHandle: it was freed.
    """
    owner = None if t.device_index == 0 else t.owner
    while owner is not None and not isinstance(owner, Buffer):
        owner = getattr(owner, "owner", None)
    if owner is not None and not owner.alive:
        raise InvalidHandle(f"tensor of shape {t.shape} on {owner.device.name}: its buffer was freed; drop tensors before Buffer.free()")
    return owner


def use(stream: Stream, reads: Iterable[Tensor | Buffer] = (), writes: Iterable[Tensor | Buffer] = ()) -> None:
    """To be called before queuing work in ``stream`` that reads and writes these tensors or buffers of its device.

    Orders the work behind what other streams have queued: a read behind the latest write, a write behind everything (two
    streams that read the same weights do not wait for each other).  Keeps the memory from reuse before the work has passed.
    Costs two dictionary look-ups a tensor while one stream is used, an event for each first use in another.

    Raises:
        InvalidHandle: a freed buffer.
    """
    handle = stream.handle
    for thing in reads:
        buffer = thing if isinstance(thing, Buffer) else buffer_of(thing)
        if buffer is not None and not buffer._users.get(handle):
            buffer.device.allocator.order((buffer._writer,), handle)
            buffer._users[handle] = True
    for thing in writes:
        buffer = thing if isinstance(thing, Buffer) else buffer_of(thing)
        if buffer is not None:
            if len(buffer._users) > 1 or handle not in buffer._users:
                buffer.device.allocator.order(tuple(buffer._users), handle)
                buffer._users = {handle: True}
            buffer._writer = handle


def copy(dst: Tensor, src: Tensor, stream: Stream | None = None, blocking: bool = True) -> None:
    """Copies ``src`` into ``dst``, any strides to any strides, between any two devices.

    In order with everything queued on both buffers.  Blocking, ``src`` may change and ``dst`` be read on return.  Otherwise
    a host ``src`` must stay unchanged, and a host ``dst`` unread, until the stream has passed.

    Args:
        stream: of the device at hand (``dst``'s, or ``src``'s where ``dst`` is on the host); its current one by default.

    Raises:
        ShapeError, DTypeError: they differ.  AliasError: ``dst`` overlaps itself.  InvalidHandle: a freed buffer.
    """
    if dst.shape != src.shape:
        raise ShapeError(f"copy: src is {src.shape}, dst is {dst.shape}; make them equal (expand or reshape src)")
    if dst.dtype is not src.dtype:
        raise DTypeError(f"copy: src is {src.dtype}, dst is {dst.dtype}; cast first")
    if dst.numel == 0:
        return
    if any(s == 0 and n > 1 for n, s in zip(dst.shape, dst.strides)):
        raise AliasError(f"copy: dst of shape {dst.shape} has strides {dst.strides}, so elements overlap; use a tensor with its own elements")
    if dst.device_index == 0 and is_readonly(dst):
        raise ArgumentError(f"copy: dst of shape {dst.shape} shows read-only memory; copy into a tensor of its own")
    here = src.device if dst.device.is_host else dst.device
    if stream is None:
        stream = here.current_stream
    elif stream.device != here:
        raise ArgumentError(f"copy: stream of {stream.device.name}; needs one of {here.name}")
    use(stream, [src] if src.device == here else (), [dst] if dst.device == here else ())
    if dst.device_index == 0 and src.device_index == 0:
        _within_host(dst, src, stream)
    elif src.device_index == 0:
        _up(dst, src, stream)
    elif dst.device_index == 0:
        _down(dst, src, stream, blocking)
    elif dst.device_index == src.device_index:
        _within_device(dst, src, stream)
    else:
        _between(dst, src, stream)
    if blocking and stream.handle:
        stream.synchronize()


def _within_host(dst: Tensor, src: Tensor, stream: Stream) -> None:
    to, source = host_view(dst), host_view(src)
    if stream.handle:
        stream.host_func(lambda: np.copyto(to, source))
    else:
        np.copyto(to, source)  # NumPy handles overlap


def _up(dst: Tensor, src: Tensor, stream: Stream) -> None:
    packed = np.ascontiguousarray(host_view(src)).reshape(src.shape)  # (no copy where src is contiguous)
    _send(HOST_TO_DEVICE, stream, _Pieces(dst.shape, dst.strides, _steps(packed), dst.itemsize), dst.address, _address(packed))
    stream.hold(packed)


def _down(dst: Tensor, src: Tensor, stream: Stream, blocking: bool) -> None:
    to = host_view(dst)
    pieces = _Pieces(src.shape, dst.strides, src.strides, src.itemsize)
    if pieces.count <= MAX_PIECES:
        _send(DEVICE_TO_HOST, stream, pieces, dst.address, src.address)
        stream.hold(to)
        return
    # Too scattered: read the span between the first and the last element once and pick on the host.
    low, high = _span(src)
    span = np.empty(high - low, np.uint8)
    stream.device.driver.copy(stream.device.index, Copy(DEVICE_TO_HOST, _address(span), src.address + low, high - low), stream.handle)
    picked = np.ndarray(src.shape, src.dtype.numpy, span, -low, tuple(s * src.itemsize for s in src.strides))
    if blocking:
        stream.synchronize()
        np.copyto(to, picked)
    else:
        stream.host_func(lambda: np.copyto(to, picked))


def _within_device(dst: Tensor, src: Tensor, stream: Stream) -> None:
    pieces = _Pieces(dst.shape, dst.strides, src.strides, dst.itemsize)
    a, b = _span(dst), _span(src)
    apart = dst.address + a[1] <= src.address + b[0] or src.address + b[1] <= dst.address + a[0]
    if pieces.count * pieces.rows == 1 or (apart and pieces.count <= MAX_PIECES):  # one row may overlap: it is a memmove
        _send(DEVICE_TO_DEVICE, stream, pieces, dst.address, src.address)
    else:  # a kernel does this better where the device has one (operator copy)
        _staged(dst, src, stream, stream)


def _between(dst: Tensor, src: Tensor, stream: Stream) -> None:
    """Two devices: a peer copy where one driver has both and offers it, else through the host."""
    a, b = src.device, dst.device
    for buffer in (buffer_of(src), buffer_of(dst)):
        if buffer is not None:  # drivers promise no order across devices: the host waits
            buffer.device.allocator.order(tuple(buffer._users), 0)
    if a.driver is b.driver and dst.is_contiguous and src.is_contiguous:
        try:
            b.driver.copy(a.index, Copy(PEER, dst.address, src.address, src.nbytes, dst_device=b.index), 0)
            return
        except Unsupported:
            pass
    _staged(dst, src, stream, a.default_stream)


def _staged(dst: Tensor, src: Tensor, stream: Stream, source: Stream) -> None:
    from .tensor import empty
    packed = empty(src.shape, src.dtype)
    _down(packed, src, source, True)
    source.synchronize()
    _up(dst, packed, stream)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _steps(array: np.ndarray) -> tuple[int, ...]:
    """Strides in elements."""
    return tuple(s // array.itemsize for s in array.strides)


def _span(t: Tensor) -> tuple[int, int]:
    """First byte and one past the last, relative to element [0, ..., 0]."""
    reach = [(n - 1) * s * t.itemsize for n, s in zip(t.shape, t.strides)]
    return sum(r for r in reach if r < 0), sum(r for r in reach if r > 0) + t.itemsize


class _Pieces:
    """A strided copy as few 2D copies as its strides (in elements) allow.  ``shape`` has no zero.

    Attributes:
        nbytes, rows: of each piece.
        count: number of pieces; iterating gives their (dst, src) offsets in bytes.
    """

    def __init__(self, shape: Sequence[int], dst: Sequence[int], src: Sequence[int], item: int) -> None:
        self.first_dst = self.first_src = 0
        axes = []
        for n, d, s in zip(shape, dst, src):
            if n > 1:
                d, s = d * item, s * item
                if d < 0:  # walk dst upwards
                    self.first_dst, self.first_src = self.first_dst + (n - 1) * d, self.first_src + (n - 1) * s
                    d, s = -d, -s
                axes.append((n, d, s))
        axes.sort(key=lambda a: a[1])  # innermost of dst first
        self.nbytes = item
        while axes and axes[0][1] == axes[0][2] == self.nbytes:
            self.nbytes *= axes.pop(0)[0]
        self.outer: list[tuple[int, int, int]] = []
        for n, d, s in axes:
            if self.outer:
                m, e, t = self.outer[-1]
                if d == m * e and s == m * t:
                    self.outer[-1] = (m * n, e, t)
                    continue
            self.outer.append((n, d, s))
        self.rows, self.dst_pitch, self.src_pitch = 1, 0, 0
        able = [a for a in self.outer if a[1] >= self.nbytes and a[2] >= self.nbytes]  # smaller pitches are no 2D copy
        if able:
            self.outer.remove(max(able))
            self.rows, self.dst_pitch, self.src_pitch = max(able)
        self.count = math.prod(n for n, _, _ in self.outer)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in itertools.product(*(range(n) for n, _, _ in self.outer)):
            yield (self.first_dst + sum(i * d for i, (_, d, _) in zip(index, self.outer)),
                   self.first_src + sum(i * s for i, (_, _, s) in zip(index, self.outer)))


def _send(kind: str, stream: Stream, pieces: _Pieces, dst: int, src: int) -> None:
    driver, index, handle = stream.device.driver, stream.device.index, stream.handle
    for d, s in pieces:
        driver.copy(index, Copy(kind, dst + d, src + s, pieces.nbytes, pieces.rows, pieces.dst_pitch, pieces.src_pitch), handle)
