"""Copies between devices, and the order of work on buffers; the names Buffer and Allocator.

Both types are native: native/cache.c has the stream-ordered caching allocator, native/py_cache.c its face in Python.
Not here: the host's own allocator (native/alloc.c), shapes and strides as users see them (tensor.py).
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from .._native import Allocator, Buffer, set_error_factory
from .driver import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, PEER, Copy
from .errors import AliasError, ArgumentError, DTypeError, InvalidHandle, ShapeError, Unsupported, from_code, wrong_type

if TYPE_CHECKING:
    from .stream import Stream
    from .tensor import Tensor

__all__ = ["Allocator", "Buffer", "buffer_of", "copy", "host_view", "is_readonly", "use"]

set_error_factory(from_code)

# A copy that needs more strided pieces than this reads the whole span instead, or goes through the host.
MAX_PIECES = 64


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
    Costs a comparison a buffer while one stream is used, an event for each first use in another.

    Raises:
        InvalidHandle: a freed buffer.
    """
    if stream._recording is not None:  # a graph: the memory must live as long as it
        stream._recording.reads += (reads := tuple(reads))
        stream._recording.writes += (writes := tuple(writes))
    handle = stream.handle
    for thing in reads:
        buffer = thing if isinstance(thing, Buffer) else buffer_of(thing)
        if buffer is not None:
            buffer._reads(handle)
    for thing in writes:
        buffer = thing if isinstance(thing, Buffer) else buffer_of(thing)
        if buffer is not None:
            buffer._writes(handle)


def copy(dst: Tensor, src: Tensor, stream: Stream | None = None, blocking: bool = True) -> None:
    """Copies ``src`` into ``dst``, any strides to any strides, between any two devices.

    In order with everything queued on both buffers.  Blocking, ``src`` may change and ``dst`` be read on return.  Otherwise
    a host ``src`` must stay unchanged, and a host ``dst`` unread, until the stream has passed.

    Args:
        stream: of the device at hand (``dst``'s, or ``src``'s where ``dst`` is on the host); its current one by default.

    Raises:
        ShapeError, DTypeError: they differ.  AliasError: ``dst`` overlaps itself.  InvalidHandle: a freed buffer, a closed stream.
        ArgumentError: not two tensors, another device's stream.
    """
    try:
        alike = dst.shape == src.shape and dst.dtype is src.dtype
    except AttributeError:
        alike = False
    if not alike:
        _refuse(dst, src)
    if dst.numel == 0:
        return
    if any(s == 0 and n > 1 for n, s in zip(dst.shape, dst.strides)):
        raise AliasError(f"copy: dst of shape {dst.shape} has strides {dst.strides}, so elements overlap; use a tensor with its own elements")
    if dst.device_index == 0 and is_readonly(dst):
        raise ArgumentError(f"copy: dst of shape {dst.shape} shows read-only memory; copy into a tensor of its own")
    here = src.device if dst.device.is_host else dst.device
    if stream is None:
        stream = here.current_stream
    else:
        if not hasattr(stream, "hold"):
            raise wrong_type("copy: stream", stream, f"a stream of {here.name} or None")
        if stream.device != here:
            raise ArgumentError(f"copy: stream of {stream.device.name}; needs one of {here.name}")
        stream._check()
    if not isinstance(blocking, int):
        raise wrong_type("copy: blocking", blocking, "True or False")
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


def _refuse(dst: Tensor, src: Tensor) -> NoReturn:
    """Says why two things cannot be copied, the types first: arrays of other libraries have shapes and dtypes too."""
    from .tensor import Tensor
    for side, thing in (("dst", dst), ("src", src)):
        if not isinstance(thing, Tensor):
            raise wrong_type(f"copy: {side}", thing, "a haian tensor, see haian.asarray")
    if dst.shape != src.shape:
        raise ShapeError(f"copy: src is {src.shape}, dst is {dst.shape}; make them equal (expand or reshape src)")
    raise DTypeError(f"copy: src is {src.dtype}, dst is {dst.dtype}; cast first")


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
            buffer.device.allocator.order(buffer._users, 0)
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
