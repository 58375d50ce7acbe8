"""Communicator: collectives and messages between ranks, each with one device, in one process or many.

Over the driver's comm group where it has one; otherwise staged through the host, which is counted and stands in ``repr``.
Not here: the transports (adapters/cpu/comm.py shared memory, comm_mpi.py, vendors' libraries), the choice of algorithms.
"""
from __future__ import annotations

import math
import operator
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from . import registry
from .driver import Driver, offers
from .dtype import BY_NAME, DType
from .errors import (
    AliasError,
    ArgumentError,
    DeviceLost,
    DTypeError,
    HaianError,
    InternalError,
    InvalidHandle,
    ShapeError,
    Timeout,
    Unsupported,
    wrong_type,
)
from .memory import copy, is_readonly, use
from .stream import Event, Stream
from .tensor import Tensor, empty

if TYPE_CHECKING:
    from .device import Device

__all__ = ["Communicator", "REDUCTIONS", "check_call", "check_reduction", "check_world", "combine", "timeout_s"]

# Reduction -> kinds of DType.kind it is defined for.  On bool, max is "any" and min is "all".
REDUCTIONS: dict[str, str] = {"sum": "uifc", "prod": "uifc", "max": "buif", "min": "buif", "avg": "fc"}
_KINDS = {"b": "bool", "u": "unsigned", "i": "signed", "f": "floating", "c": "complex"}
_FUNCTION: dict[str, Callable[..., Any]] = {"sum": np.add, "avg": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}
_BLOCK = 1 << 15  # elements combined at a time: accumulator and one operand stay in a 256 KiB L2 in float32

DEFAULT_TIMEOUT_S = 30.0
LONGEST_S = 1e6  # 11 days: poll() counts milliseconds in 32 bits
_timeout: ContextVar[float] = ContextVar("haian_comm_timeout_s", default=DEFAULT_TIMEOUT_S)


def timeout_s() -> float:
    """Inside a driver's ``comm_init``: seconds that the communicator being made is to wait for other ranks."""
    return _timeout.get()


def check_world(name: str, world: int, rank: int) -> None:
    """For drivers' ``comm_init``: raises ArgumentError unless 0 <= rank < world < 2^31."""
    for what, value, least, above in (("world", world, 1, 1 << 31), ("rank", rank, 0, world)):
        if not isinstance(value, int) or not least <= value < above:
            raise ArgumentError(f"{name}: comm_init: {what} {value!r}; needs a whole number from {least} to {above - 1}")


def check_call(name: str, count: int, dtype: str) -> DType:
    """For drivers' collectives and messages, before they are queued: the dtype by its name; ArgumentError for none, or a count below 0."""
    if not isinstance(count, int) or not 0 <= count < 1 << 63:
        raise ArgumentError(f"{name}: a communicator's call with count {count!r}; needs a whole number, 0 or more")
    if dtype not in BY_NAME:
        raise ArgumentError(f"{name}: a communicator's call with dtype {dtype!r}; one of {', '.join(BY_NAME)}")
    return BY_NAME[dtype]


def check_reduction(op: str, kind: DType) -> None:
    """Raises DTypeError where ``op`` means nothing for the dtype, ArgumentError for an op that does not exist."""
    if op not in REDUCTIONS:
        raise ArgumentError(f"reduction {op!r}; one of {', '.join(REDUCTIONS)}")
    if kind.kind not in REDUCTIONS[op]:
        takes = ", ".join(_KINDS[k] for k in REDUCTIONS[op])
        hint = "use max for any, min for all" if kind.kind == "b" else "cast first"
        raise DTypeError(f"{op} of {kind.name}; {op} takes {takes} dtypes, {hint}")


def combine(op: str, kind: DType, parts: Sequence[np.ndarray], out: np.ndarray) -> None:
    """Reduces equally long 1-D arrays, in the order given, into ``out``, which may be one of them.

    Floating types of 16 bits and less accumulate in float32 and are rounded once; integers wrap; max and min pass NaN on.
    """
    wide = np.dtype(np.float32) if kind.is_floating and kind.itemsize < 4 else kind.numpy
    fn = _FUNCTION[op]
    if len(parts) == 1:
        out[:] = parts[0]
        return
    room = np.empty(min(len(out), _BLOCK), wide)
    with np.errstate(all="ignore"):
        for start in range(0, len(out), _BLOCK):
            block = slice(start, start + _BLOCK)
            if wide != kind.numpy:
                total = room[:len(out[block])]
                total[:] = parts[0][block]
                rest = parts[1:]
            else:  # with two parts straight into out: it may be one of them, since NumPy allows exact overlap
                total = out[block] if len(parts) == 2 else room[:len(out[block])]
                fn(parts[0][block], parts[1][block], out=total)
                rest = parts[2:]
            for part in rest:
                fn(total, part[block].astype(wide, copy=False), out=total)
            if op == "avg":
                total /= len(parts)
            if wide != kind.numpy or len(parts) > 2:
                out[block] = total


class _Watch:
    """Aborts a communicator whose oldest unfinished call is overdue: for drivers that would wait for ever themselves."""

    INTERVAL_S = 0.02  # a call may overrun its time by this; only while calls are unfinished

    def __init__(self, limit_s: float, expire: Callable[[str], None]) -> None:
        self._limit_s, self._expire = limit_s, expire
        self._change = threading.Condition()
        self._calls: deque[tuple[float, str, list[Event | None]]] = deque()  # deadline, what, [its end; None: still being queued]
        self._thread: threading.Thread | None = None
        self._ended = False

    def begin(self, what: str) -> list[Event | None]:
        mark: list[Event | None] = [None]
        with self._change:
            self._calls.append((time.monotonic() + self._limit_s, what, mark))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="haian-comm-watch", daemon=True)
                self._thread.start()
            self._change.notify()
        return mark

    def drop(self, mark: list[Event | None]) -> None:
        with self._change:
            self._calls = deque(c for c in self._calls if c[2] is not mark)

    def end(self) -> None:
        with self._change:
            self._ended = True
            self._change.notify()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._calls or self._ended)
                if self._ended:
                    return
                deadline, what, mark = self._calls[0]
                event = mark[0]
            try:
                done = event is not None and event.query()
            except HaianError:  # the device is lost or reset: nothing to wait for
                done = True
            if done:
                self.drop(mark)
            elif time.monotonic() > deadline:
                self._expire(what)
                return
            else:
                with self._change:
                    self._change.wait(self.INTERVAL_S)


class Communicator:
    """``Communicator(device, world, rank, unique_id)``: one of ``world`` ranks; blocks until all have come.

    Calls queue work in the device's current stream and return at once where that stream is asynchronous.  Every rank makes
    the same calls in the same order.  Every floating result has the same bits on every rank, and on the host in every run
    (sums run in rank order).  One thread at a time uses a communicator.  Ranks that are threads on one device each use a
    stream of their own, and wait for that, not for the device: synchronizing the device waits for the other ranks' calls too.

    A rank that does not come, dies, or brings other counts or dtypes ends the call with Timeout (RanksDiffer, at once, where the
    transport sees that the calls are not the same), raised by the call, by its stream's synchronize, or by ``check``; the
    communicator is dead from then on and the process goes on.

    Args:
        device: where this rank's tensors are.
        world: number of ranks, 1 or more.
        rank: this one, from 0.
        unique_id: what ``Communicator.unique_id`` gave to one rank, which passes it to the others by any means.
        timeout_s: seconds to wait for other ranks, here and in every call.

    Raises:
        ArgumentError: a rank outside the world, or the id of another transport.  Timeout: not all ranks came.

    Attributes:
        device, world, rank: as given.
        staged: whether tensors go through the host because the device's driver has no communicators.
        staged_calls: how many did.
    """

    def __init__(self, device: Device | str | int, world: int, rank: int, unique_id: bytes, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        place = registry.device(device)
        driver, index, staged = _transport(place)
        self._start(place, driver, index, staged, world, rank, unique_id, timeout_s)

    def _start(self, place: Device, driver: Any, index: int, staged: bool, world: int, rank: int, unique_id: bytes, limit_s: float) -> None:
        self._handle = 0
        try:
            world, rank = operator.index(world), operator.index(rank)
        except TypeError:
            raise ArgumentError(f"communicator: rank {rank!r} of {world!r}; needs two whole numbers, 0 <= rank < world") from None
        if not isinstance(limit_s, (int, float)):
            raise wrong_type("communicator: timeout_s", limit_s, "a number of seconds")
        if not isinstance(unique_id, (bytes, bytearray, memoryview)):
            raise wrong_type("communicator: unique_id", unique_id, "the bytes that Communicator.unique_id gave to one rank")
        self.device, self.world, self.rank, self.staged = place, world, rank, staged
        self.staged_calls = 0
        self._driver, self._timeout_s = driver, limit_s
        self._dead: HaianError | None = None
        self._after: list[Callable[[], None]] | None = None  # inside a group: what is left to do after its end
        self._grouped: tuple[list[Tensor], list[Tensor]] = ([], [])  # what the calls of the open group read and write
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._watch: _Watch | None = None
        if not 0 <= rank < world:
            raise ArgumentError(f"communicator: rank {rank} of {world}; needs 0 <= rank < world")
        if not 0 < limit_s <= LONGEST_S:
            raise ArgumentError(f"communicator: timeout_s={limit_s}; needs a number above 0, at most {LONGEST_S:g}")
        token = _timeout.set(limit_s)
        try:
            self._handle = driver.comm_init(index, world, rank, bytes(unique_id))
        finally:
            _timeout.reset(token)
        if not getattr(driver, "comm_keeps_timeout", False):
            this = weakref.ref(self)

            def expire(what: str) -> None:
                comm = this()
                if comm is not None:
                    comm._expired(what)

            self._watch = _Watch(limit_s, expire)

    def __repr__(self) -> str:
        how = f", staged through the host ({self.staged_calls} calls)" if self.staged else ""
        state = f", dead: {self._dead}" if self._dead else "" if self._handle else ", closed"
        return f"<haian communicator rank {self.rank} of {self.world} on {self.device.name}{how}{state}>"

    # ---- making ----------------------------------------------------------------------------------------------------
    @staticmethod
    def unique_id(device: Device | str | int = "cpu") -> bytes:
        """A new id for communicators on devices of this kind: one rank makes it, all ranks need it."""
        return _transport(registry.device(device))[0].comm_unique_id()

    @classmethod
    def local(cls, devices: Sequence[Device | str | int], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Communicator]:
        """One communicator a device, all in this process; each is then used by a thread of its own.

        Raises:
            ArgumentError: no devices, or devices of different drivers.
        """
        places = [registry.device(d) for d in devices]
        if len({id(_transport(p)[0]) for p in places}) != 1:
            raise ArgumentError(f"Communicator.local: {[p.name for p in places]}; needs at least one, all of one driver")
        token = cls.unique_id(places[0])
        made: list[Communicator | BaseException] = [InternalError("not started")] * len(places)

        def make(rank: int) -> None:
            try:
                made[rank] = cls(places[rank], len(places), rank, token, timeout_s=timeout_s)
            except BaseException as e:  # noqa: BLE001 - carried to the calling thread
                made[rank] = e

        threads = [threading.Thread(target=make, args=(r,), name=f"haian-comm-{r}") for r in range(len(places))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        wrong = [m for m in made if isinstance(m, BaseException)]
        if wrong:
            for m in made:
                if isinstance(m, Communicator):
                    m.abort()
            raise wrong[0]
        return [m for m in made if isinstance(m, Communicator)]

    @classmethod
    def mpi(cls, device: Device | str | int = "cpu", comm: Any = None, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Communicator:
        """The ranks of an mpi4py communicator (COMM_WORLD by default); also across machines.  Needs ``haian[mpi]``.

        Raises:
            EnvironmentMissing: no mpi4py, or no MPI library.
        """
        from .comm_mpi import MpiTransport
        transport = MpiTransport(comm)
        self = cls.__new__(cls)
        place = registry.device(device)
        self._start(place, transport, 0, not place.is_host, transport.world, transport.rank, b"", timeout_s)
        return self

    # ---- collectives -----------------------------------------------------------------------------------------------
    def all_reduce(self, tensor: Tensor, op: str = "sum", out: Tensor | None = None) -> Tensor:
        """The elementwise reduction over all ranks, on every rank; ``out`` may be ``tensor``.

        Args:
            op: sum, prod, max, min, avg.  Floating types of 16 bits and less accumulate in float32 on the host.
        """
        self._tensor("all_reduce", tensor)
        check_reduction(op, tensor.dtype)
        out = self._out("all_reduce", out, tensor, tensor.shape, tensor.numel)
        d, n = self._driver, tensor.numel
        return self._do("all_reduce", tensor, out, 0,
                        lambda s, r, q: d.comm_all_reduce(self._handle, s, r, n, tensor.dtype.name, op, q))

    def all_gather(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        """All ranks' tensors, one after the other along axis 0: (n, ...) gives (world * n, ...), no axes give (world,)."""
        self._tensor("all_gather", tensor)
        shape = (self.world * tensor.shape[0], *tensor.shape[1:]) if tensor.ndim else (self.world,)
        out = self._out("all_gather", out, tensor, shape, self.world * tensor.numel)
        d, n = self._driver, tensor.numel
        return self._do("all_gather", tensor, out, self.rank * tensor.nbytes,
                        lambda s, r, q: d.comm_all_gather(self._handle, s, r, n, tensor.dtype.name, q))

    def reduce_scatter(self, tensor: Tensor, op: str = "sum", out: Tensor | None = None) -> Tensor:
        """The reduction over all ranks, of which each rank gets its part along axis 0: (world * n, ...) gives (n, ...)."""
        self._tensor("reduce_scatter", tensor)
        check_reduction(op, tensor.dtype)
        if not tensor.ndim or tensor.shape[0] % self.world:
            raise ShapeError(f"reduce_scatter: shape {tensor.shape} on {self.world} ranks; axis 0 must be a multiple of {self.world}")
        n = tensor.numel // self.world
        out = self._out("reduce_scatter", out, tensor, (tensor.shape[0] // self.world, *tensor.shape[1:]), n)
        d = self._driver
        return self._do("reduce_scatter", tensor, out, -self.rank * out.nbytes,
                        lambda s, r, q: d.comm_reduce_scatter(self._handle, s, r, n, tensor.dtype.name, op, q))

    def broadcast(self, tensor: Tensor, root: int = 0, out: Tensor | None = None) -> Tensor:
        """The root's tensor on every rank; the others' give shape and dtype.  ``out`` may be ``tensor``."""
        self._tensor("broadcast", tensor)
        self._peer("broadcast", "root", root)
        out = self._out("broadcast", out, tensor, tensor.shape, tensor.numel)
        d, n = self._driver, tensor.numel
        return self._do("broadcast", tensor, out, 0,
                        lambda s, r, q: d.comm_broadcast(self._handle, s, r, n, tensor.dtype.name, root, q))

    # ---- messages --------------------------------------------------------------------------------------------------
    def send(self, tensor: Tensor, peer: int) -> None:
        """To rank ``peer``, which calls ``recv`` with as many elements of the same dtype.

        Two ranks that send to one another use a group, else each may wait for the other to receive.
        """
        self._tensor("send", tensor)
        self._peer("send", "peer", peer)
        d, n = self._driver, tensor.numel
        self._do("send", tensor, None, 0, lambda s, r, q: d.comm_send(self._handle, s, n, tensor.dtype.name, peer, q))

    def recv(self, tensor: Tensor, peer: int) -> Tensor:
        """From rank ``peer`` into ``tensor``, which is returned."""
        self._tensor("recv", tensor)
        self._peer("recv", "peer", peer)
        self._writable("recv", tensor)
        d, n = self._driver, tensor.numel
        return self._do("recv", None, tensor, 0, lambda s, r, q: d.comm_recv(self._handle, r, n, tensor.dtype.name, peer, q))

    @contextmanager
    def group(self) -> Iterator[Communicator]:
        """Calls inside make progress together and are queued at the end of the block.

        An exception inside aborts the communicator: other ranks would wait for calls that never come.
        """
        self._check("group")
        if self._after is not None:
            raise ArgumentError(f"{self!r}: a group inside a group; end the first one")
        self._driver.comm_group_begin(self._handle)
        after: list[Callable[[], None]] = []
        reads: list[Tensor] = []
        writes: list[Tensor] = []
        self._after, self._grouped = after, (reads, writes)
        try:
            yield self
        except BaseException:
            self._after = None
            self.abort()
            raise
        self._after = None
        self._queue("group", lambda _: self._driver.comm_group_end(self._handle), reads, writes)
        for step in after:
            step()

    # ---- state -----------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Raises what went wrong in a queued call, or that a rank is gone; every time from then on."""
        if self._dead is None:
            if not self._handle:
                raise InvalidHandle(f"{self!r}: make a new one")
            try:
                self._driver.comm_async_error(self._handle)
            except HaianError as e:
                self._fail(e)
        if self._dead is not None:
            raise self._dead

    def abort(self) -> None:
        """Ends queued calls that wait for others; the communicator is dead, here and soon on the other ranks."""
        if self._handle and self._dead is None:
            self._fail(Timeout(f"communicator rank {self.rank} of {self.world}: aborted; make a new one"))

    def close(self) -> None:
        """Waits for the queued calls and gives the communicator back; a second call is a no-op.

        Raises:
            HaianError: a queued call failed.
        """
        handle, self._handle = self._handle, 0
        if not handle:
            return
        try:
            if self._dead is None:
                for stream in list(self._streams):
                    if stream._alive:
                        stream.synchronize()
        finally:
            if self._watch is not None:
                self._watch.end()
            self._driver.comm_destroy(handle)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is not None:
            self.abort()
        self.close()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", 0)
        if handle:
            if self._watch is not None:
                self._watch.end()
            self.device._later.append(partial(self._driver.comm_destroy, handle))

    # ---- inside ----------------------------------------------------------------------------------------------------
    def _check(self, what: str) -> None:
        if self._dead is not None or not self._handle:
            raise InvalidHandle(f"{what}: {self!r}; make a new communicator")

    def _tensor(self, what: str, tensor: Tensor) -> None:
        self._check(what)
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{what}: a {type(tensor).__name__}; needs a haian tensor, use haian.asarray")
        if tensor.device != self.device:
            raise ArgumentError(f"{what}: a tensor on {tensor.device.name}, the communicator is on {self.device.name}; use .to first")

    def _peer(self, what: str, name: str, rank: int) -> None:
        if not isinstance(rank, int) and not hasattr(rank, "__index__") or not 0 <= rank < self.world:
            raise ArgumentError(f"{what}: {name} {rank!r} of {self.world} ranks; needs 0 to {self.world - 1}")

    def _writable(self, what: str, out: Tensor) -> None:
        if out.device_index == 0 and is_readonly(out):
            raise ArgumentError(f"{what}: out of shape {out.shape} shows read-only memory; use a tensor of its own")
        if any(s == 0 and n > 1 for n, s in zip(out.shape, out.strides)) and out.numel:
            raise AliasError(f"{what}: out of shape {out.shape} has strides {out.strides}, so elements overlap; use a tensor of its own")

    def _out(self, what: str, out: Tensor | None, tensor: Tensor, shape: tuple[int, ...], numel: int) -> Tensor:
        """``out`` checked (as many elements, the same dtype), or a new tensor of ``shape``."""
        if out is None:
            return empty(shape, tensor.dtype, self.device)
        self._tensor(what, out)
        self._writable(what, out)
        if out.dtype is not tensor.dtype:
            raise DTypeError(f"{what}: out is {out.dtype}, the input {tensor.dtype}; make them equal")
        if out.numel != numel:
            raise ShapeError(f"{what}: out has shape {out.shape}, {out.numel} elements; needs {numel}, as {shape}")
        return out

    def _do(self, what: str, source: Tensor | None, out: Tensor | None, inside: int, call: Callable[[int, int, int], None]) -> Any:
        """Queues ``call(send address, recv address, stream)``.

        Args:
            inside: where ``source`` may start within ``out``, in bytes, besides not overlapping at all.
        """
        if source is not None and out is not None and source.numel and out.numel:
            a, b = _reach(source), _reach(out)
            exact = source.is_contiguous and out.is_contiguous and a[0] - b[0] == inside
            if a[0] < b[1] and b[0] < a[1] and not exact and not (source is out or _same(source, out)):
                raise AliasError(f"{what}: out overlaps the input in part; use out=tensor, or memory of its own")
        packed = None if source is None else source.contiguous()
        target = out
        if self.staged:
            self.staged_calls += 1
            packed = None if packed is None else packed.cpu()
            target = None if out is None else empty(out.shape, out.dtype)
        elif out is not None and not out.is_contiguous:
            target = empty(out.shape, out.dtype, self.device)
        send = packed.address if packed is not None and packed.numel else 0
        recv = target.address if target is not None and target.numel else 0
        self._queue(what, lambda q: call(send, recv, q), [t for t in (packed,) if t is not None], [t for t in (target,) if t is not None])
        if out is not None and target is not None and target is not out:
            finish = partial(copy, out, target)
            if self._after is None:
                finish()
            else:
                self._after.append(finish)
        return out

    def _queue(self, what: str, call: Callable[[int], None], reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        stream = self.device.current_stream
        queue = 0 if self.staged else stream.handle
        if not self.staged:
            use(stream, reads, writes)
        mark = None if self._watch is None or self._after is not None else self._watch.begin(f"{what} of {_brief(reads or writes)}")
        try:
            call(queue)
        except (Timeout, InternalError, DeviceLost) as e:
            if self._dead is None:
                self._fail(e)
            raise (self._dead or e) from e
        except HaianError:
            if mark is not None and self._watch is not None:
                self._watch.drop(mark)
            raise
        if self._after is not None:  # the group's end queues the work
            self._grouped[0].extend(reads)
            self._grouped[1].extend(writes)
        elif queue:
            self._streams.add(stream)
            stream.hold(*reads, *writes)
        if mark is not None:
            mark[0] = stream.record()

    def _expired(self, what: str) -> None:
        self._fail(Timeout(f"communicator rank {self.rank} of {self.world} on {self.device.name}: {what} not finished after {self._timeout_s:g} s; "
                           f"look at the other ranks, aborted"))

    def _fail(self, error: HaianError) -> None:
        self._dead = error
        with suppress(HaianError):  # it may be dead to the driver already
            self._driver.comm_abort(self._handle)


def _transport(place: Device) -> tuple[Driver, int, bool]:
    """The driver that carries a device's collectives, the device's number there, and whether that is the host's instead."""
    for device in (place, registry.device()):
        if offers(device.driver, "comm"):
            return device.driver, device.index, device is not place
    raise Unsupported(f"communicator on {place.name}: neither its driver nor the host's has communicators; use Communicator.mpi")


def _reach(t: Tensor) -> tuple[int, int]:
    """Addresses of the first byte and one past the last."""
    ends = [(n - 1) * s * t.itemsize for n, s in zip(t.shape, t.strides)]
    return t.address + sum(e for e in ends if e < 0), t.address + sum(e for e in ends if e > 0) + t.itemsize


def _same(a: Tensor, b: Tensor) -> bool:
    return a.address == b.address and a.shape == b.shape and a.strides == b.strides


def _brief(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{math.prod(t.shape)} {t.dtype.name}" for t in tensors) or "queued calls"
