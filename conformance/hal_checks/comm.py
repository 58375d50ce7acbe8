"""Check 68: communicators, with real values, in worlds of one and two ranks, and of three and four where devices or the host allow it.

Every buffer has guards around it.  Values are small integers, exact in every dtype whatever the operation, and "edges": all
bits of the dtype used, signs, NaN; of those each sum has one part that is not 0, so that it is exact too.
"""
from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from ...hal import comm as hal_comm
from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, HaianError, InvalidHandle, Timeout, Unsupported
from .check import Guarded, NotOffered, Subject, check, require
from .stream import start

_DTYPES = ("float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8", "int8", "uint16", "int16", "uint32", "uint64")
_N = 133  # elements of most calls: no multiple of anything
_LARGE = 270_001  # one call larger than any staging buffer's slot
_LATE_S = 0.01  # how late a copy is that a collective must wait for
_LIMIT_S = 1.0  # after which ranks that differ must have given up
_OPS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "sum": lambda parts, world: parts.sum(0), "prod": lambda parts, world: parts.prod(0), "max": lambda parts, world: parts.max(0),
    "min": lambda parts, world: parts.min(0), "avg": lambda parts, world: parts.sum(0) / world,
}


def _values(rank: int, n: int) -> np.ndarray:
    """What a rank brings, in float64: sums, products and averages of two ranks are exact in every dtype."""
    return (np.arange(n) * 7 % 5 + 1.0) + rank


@functools.lru_cache(maxsize=64)
def _edges(dtype: str, n: int) -> np.ndarray:
    """The same values on every rank: for integers the whole range, for floats whole mantissas of both signs.  # (n,) of the dtype"""
    kind, rng = BY_NAME[dtype].numpy, np.random.default_rng(n)
    if BY_NAME[dtype].kind == "f":
        return ((rng.random(n) + 1.0) * rng.choice([-1.0, 1.0], n) * 2.0 ** rng.integers(-9, 10, n)).astype(kind)
    info = np.iinfo(kind)
    found = rng.integers(info.min, info.max, n, kind, endpoint=True)
    found[:4] = info.min, info.max, 0, 1
    return found


def _extreme(op: str, parts: list[np.ndarray]) -> np.ndarray:
    """max or min of arrays of one dtype."""
    found = parts[0].copy()
    with np.errstate(invalid="ignore"):  # NaN lies at one place in all of them
        for part in parts[1:]:
            found = np.where((part > found) if op == "max" else (part < found), part, found)
    return found


class _Rank:
    """One rank: a device, its communicator and stream."""

    def __init__(self, s: Subject, device: int, world: int, rank: int, unique: bytes, limit_s: float = 10.0) -> None:
        self.s, self.device, self.world, self.rank = s, device, world, rank
        self.rooms: dict[int, Guarded] = {}
        token = hal_comm._timeout.set(limit_s)  # drivers that keep the time themselves ask for it in comm_init
        try:
            self.comm = s.driver.comm_init(device, world, rank, unique)
        finally:
            hal_comm._timeout.reset(token)
        self.stream = s.stream(device=device) if s.offers("stream") else 0

    def put(self, values: np.ndarray, dtype: str) -> int:
        """The address of the values on the rank's device, with guards around."""
        data = np.ascontiguousarray(values.astype(BY_NAME[dtype].numpy))
        room = self.s.guard(data.nbytes, device=self.device)
        self.rooms[room.address] = room
        self.s.upload(room.address, data.view(np.uint8), device=self.device)
        return room.address

    def expect(self, address: int, wanted: np.ndarray, dtype: str, what: str) -> None:
        """Waits and compares; every wanted value is exact in the dtype, NaN is NaN.  What lies around the buffer must be whole."""
        if self.stream:
            self.s.until(start(self.s, lambda: self.s.driver.stream_sync(self.stream)), f"rank {self.rank}: {what}", 12)
        self.s.driver.sync(self.device) if self.world == 1 else None
        kind = BY_NAME[dtype]
        room = next(r for base, r in self.rooms.items() if base <= address <= base + r.nbytes)
        at = address - room.address
        inside = room.check(f"rank {self.rank} of {self.world}: {what} of {dtype}")
        seen, right = inside[at : at + wanted.size * kind.itemsize].view(kind.numpy), wanted.astype(kind.numpy)
        wrong = np.flatnonzero((seen != right) & ((seen == seen) | (right == right)))
        require(not wrong.size, f"rank {self.rank} of {self.world}: {what} of {dtype}: {wrong.size} of {wanted.size} values are wrong" + (
            f", the first at {wrong[0]}: {seen[wrong[0]]}, needs {right[wrong[0]]}" if wrong.size else ""))

    def all(self, dtype: str) -> None:
        """Every collective in one dtype, out of place and in place."""
        d, world, rank, size = self.s.driver, self.world, self.rank, BY_NAME[dtype].itemsize
        inputs = np.stack([_values(r, _N) for r in range(world)])
        wide = np.stack([_values(r, world * _N) for r in range(world)])
        for op, reference in _OPS.items():
            if op == "avg" and BY_NAME[dtype].kind != "f":
                continue
            send, recv = self.put(inputs[rank], dtype), self.put(np.zeros(_N), dtype)
            d.comm_all_reduce(self.comm, send, recv, _N, dtype, op, self.stream)
            d.comm_all_reduce(self.comm, send, recv, 0, dtype, op, self.stream)
            self.expect(recv, reference(inputs, world), dtype, f"all_reduce {op}")
            self.expect(send, inputs[rank], dtype, f"the input of all_reduce {op}")
            d.comm_all_reduce(self.comm, send, send, _N, dtype, op, self.stream)
            self.expect(send, reference(inputs, world), dtype, f"all_reduce {op} in place")
            send, recv = self.put(wide[rank], dtype), self.put(np.zeros(_N), dtype)
            mine = reference(wide, world)[rank * _N : (rank + 1) * _N]
            d.comm_reduce_scatter(self.comm, send, recv, _N, dtype, op, self.stream)
            d.comm_reduce_scatter(self.comm, send, recv, 0, dtype, op, self.stream)
            self.expect(recv, mine, dtype, f"reduce_scatter {op}")
            self.expect(send, wide[rank], dtype, f"the input of reduce_scatter {op}")
            d.comm_reduce_scatter(self.comm, send, send + rank * _N * size, _N, dtype, op, self.stream)
            self.expect(send + rank * _N * size, mine, dtype, f"reduce_scatter {op} in place")
        self._edged(dtype)
        self.moves(dtype, _N)

    def _edged(self, dtype: str) -> None:
        """Reductions whose values use all bits of the dtype."""
        d, world, rank = self.s.driver, self.world, self.rank
        values, wide = _edges(dtype, _N), _edges(dtype, world * _N)
        zero = values.dtype.type(0)
        send, recv = self.put(np.where(np.arange(_N) % world == rank, values, zero), dtype), self.put(np.zeros(_N), dtype)
        d.comm_all_reduce(self.comm, send, recv, _N, dtype, "sum", self.stream)
        self.expect(recv, values, dtype, "all_reduce sum of values and zeros")
        send, recv = self.put(np.where(np.arange(world * _N) % world == rank, wide, zero), dtype), self.put(np.zeros(_N), dtype)
        d.comm_reduce_scatter(self.comm, send, recv, _N, dtype, "sum", self.stream)
        self.expect(recv, wide[rank * _N : (rank + 1) * _N], dtype, "reduce_scatter sum of values and zeros")
        for op in ("max", "min"):
            parts = [np.roll(values, 5 * r) for r in range(world)]
            if BY_NAME[dtype].kind == "f":
                for part in parts:
                    part[3] = np.nan  # of all ranks: libraries differ in what one NaN among numbers gives
            send, recv = self.put(parts[rank], dtype), self.put(np.zeros(_N), dtype)
            d.comm_all_reduce(self.comm, send, recv, _N, dtype, op, self.stream)
            self.expect(recv, _extreme(op, parts), dtype, f"all_reduce {op} of both signs")

    def moves(self, dtype: str, n: int) -> None:
        """What only moves: all_gather, broadcast and, with others, messages of ``n`` elements each."""
        d, world, rank, size = self.s.driver, self.world, self.rank, BY_NAME[dtype].itemsize
        inputs = np.stack([np.roll(_edges(dtype, n), 3 * r) for r in range(world)])
        send, recv = self.put(inputs[rank], dtype), self.put(np.zeros(world * n), dtype)
        d.comm_all_gather(self.comm, send, recv, n, dtype, self.stream)
        d.comm_all_gather(self.comm, send, recv, 0, dtype, self.stream)
        self.expect(recv, inputs.reshape(-1), dtype, "all_gather")
        self.expect(send, inputs[rank], dtype, "the input of all_gather")
        place = np.zeros_like(inputs)
        place[rank] = inputs[rank]
        recv = self.put(place.reshape(-1), dtype)
        d.comm_all_gather(self.comm, recv + rank * n * size, recv, n, dtype, self.stream)
        self.expect(recv, inputs.reshape(-1), dtype, "all_gather in place")
        for root in range(world):
            send, recv = self.put(inputs[rank], dtype), self.put(np.zeros(n), dtype)
            d.comm_broadcast(self.comm, send, recv, n, dtype, root, self.stream)
            d.comm_broadcast(self.comm, send, recv, 0, dtype, root, self.stream)
            self.expect(recv, inputs[root], dtype, f"broadcast from {root}")
            self.expect(send, inputs[rank], dtype, f"the input of broadcast from {root}")
            d.comm_broadcast(self.comm, send, send, n, dtype, root, self.stream)
            self.expect(send, inputs[root], dtype, f"broadcast from {root} in place")
        if world > 1:
            self._messages(dtype, inputs)

    def _messages(self, dtype: str, inputs: np.ndarray) -> None:
        """From rank 0 to rank 1, then around in a group."""
        d, n = self.s.driver, inputs.shape[1]
        after, before = (self.rank + 1) % self.world, (self.rank - 1) % self.world
        send, recv = self.put(inputs[self.rank], dtype), self.put(np.zeros(n), dtype)
        if self.rank == 0:
            d.comm_send(self.comm, send, n, dtype, 1, self.stream)
        elif self.rank == 1:
            d.comm_recv(self.comm, recv, n, dtype, 0, self.stream)
            self.expect(recv, inputs[0], dtype, "recv")
        recv = self.put(np.zeros(n), dtype)
        d.comm_group_begin(self.comm)
        d.comm_send(self.comm, send, n, dtype, after, self.stream)
        d.comm_recv(self.comm, recv, n, dtype, before, self.stream)
        d.comm_group_end(self.comm)
        self.expect(recv, inputs[before], dtype, "both ways in a group")
        self.expect(send, inputs[self.rank], dtype, "what was sent")

    def grouped(self, other: _Rank) -> None:
        """A collective in a group, and groups of two communicators at once."""
        d, parts = self.s.driver, [_values(r, 8) for r in range(self.world)]
        send, recv = self.put(parts[self.rank], "float32"), self.put(np.zeros(8), "float32")
        d.comm_group_begin(self.comm)
        try:
            d.comm_all_reduce(self.comm, send, recv, 8, "float32", "sum", self.stream)
            taken = True
        except (Unsupported, ArgumentError):  # an answer too
            taken = False
        d.comm_group_end(self.comm)
        if taken:
            self.expect(recv, np.sum(parts, axis=0), "float32", "all_reduce in a group")
        to = (self.rank + 1) % self.world
        both = [(me, me.put(parts[self.rank] + i, "float32"), me.put(np.zeros(8), "float32")) for i, me in enumerate((self, other))]
        for me, send, recv in both:
            d.comm_group_begin(me.comm)
            d.comm_send(me.comm, send, 8, "float32", to, me.stream)
            d.comm_recv(me.comm, recv, 8, "float32", (self.rank - 1) % self.world, me.stream)
        for me, _, _ in both:
            d.comm_group_end(me.comm)
        for i, (me, _, recv) in enumerate(both):
            me.expect(recv, parts[(self.rank - 1) % self.world] + i, "float32", f"a message in group {i + 1} of two at once")

    def in_order(self) -> None:
        """A collective sees what was queued on its stream before it."""
        if not self.stream or not self.s.offers("host_func"):
            return
        send, recv, values = self.put(np.zeros(_N), "float32"), self.put(np.zeros(_N), "float32"), _values(0, _N).astype(np.float32)
        self.s.driver.host_func(self.stream, lambda: time.sleep(_LATE_S))
        self.s.upload(send, values.view(np.uint8), self.stream, self.device)
        self.s.driver.comm_all_reduce(self.comm, send, recv, _N, "float32", "sum", self.stream)
        self.expect(recv, values, "float32", "all_reduce behind a copy that is late")

    def quit(self) -> None:
        self.s.driver.comm_destroy(self.comm)
        self.s.expect(InvalidHandle, self.s.driver.comm_destroy, self.comm)


def _world(s: Subject, limit_s: float = 10.0, world: int = 2) -> list[_Rank]:
    """Ranks, each made on a thread of its own: making one waits for the others.  Each has a device of its own where there are."""
    unique = s.driver.comm_unique_id()
    require(isinstance(unique, bytes) and 0 < len(unique) <= 128, f"comm_unique_id gave {unique!r}; needs 1 to 128 bytes")
    ranks: dict[int, _Rank] = {}

    def make(rank: int) -> None:
        ranks[rank] = _Rank(s, (s.device + rank) % s.count, world, rank, unique, limit_s)

    s.threads(world, make, 12)
    return [ranks[r] for r in range(world)]


def _together(s: Subject, worlds: list[list[_Rank]], work: Callable[[int], None], seconds: float = 30) -> None:
    """``work(rank)`` on a thread a rank; the first failure ends all, since the others would wait for that rank."""
    def guarded(rank: int) -> None:
        try:
            work(rank)
        except BaseException as error:  # noqa: BLE001 - raised below; the other ranks' failures follow from it
            wrong.append(error)
            for me in (me for world in worlds for me in world):
                with suppress(HaianError):
                    s.driver.comm_abort(me.comm)

    wrong: list[BaseException] = []
    s.threads(len(worlds[0]), guarded, seconds)
    if wrong:
        raise wrong[0]


@check(68, "comm", "X", needs=("comm",), timeout_s=60)
def comm(s: Subject) -> None:
    """Every collective gives exact values for one rank and for two, in place too; ranks that differ time out; abort ends.

    And for three and four, where there are devices, or the host is one for all.
    """
    d = s.driver
    require(d.comm_unique_id() != d.comm_unique_id(), "two unique ids are the same")
    alone = _Rank(s, s.device, 1, 0, d.comm_unique_id())
    taken = [dtype for dtype in _DTYPES if _taken(alone, dtype)]
    require({"float32", "int32"} <= set(taken), f"collectives take {', '.join(taken)} only; needs float32 and int32 at least")
    dtypes = [dtype for dtype in taken if not s.validated or dtype in ("float32", "int32")]  # the layer above passes the same calls on
    for dtype in dtypes:
        alone.all(dtype)
    alone.in_order()
    s.expect((ArgumentError, Unsupported), d.comm_all_reduce, alone.comm, *(alone.put(_values(0, 4), "float32"),) * 2, 4, "float32", "no such op", alone.stream)
    alone.quit()
    if s.count < 2 and not s.caps.host_access:
        raise NotOffered("a world of one works; a world of two needs two devices")

    pair, second = _world(s), _world(s)

    def work(rank: int) -> None:
        me = pair[rank]
        for dtype in dtypes:
            me.all(dtype)
        if not s.validated:
            parts = np.stack([_values(r, _LARGE) for r in range(2)])
            send = me.put(parts[rank], "float32")
            d.comm_all_reduce(me.comm, send, send, _LARGE, "float32", "sum", me.stream)
            me.expect(send, parts.sum(0), "float32", f"all_reduce of {_LARGE} elements")
            me.moves("float32", _LARGE)
        me.grouped(second[rank])
        d.comm_async_error(me.comm)

    _together(s, [pair, second], work)
    for me in (*pair, *second):
        me.quit()
    for world in (3, 4):
        if s.count >= world or s.caps.host_access and not s.validated:
            several = _world(s, world=world)

            def small(rank: int) -> None:
                for dtype in ("float32", "int32"):
                    several[rank].all(dtype)  # noqa: B023 - called in this round

            _together(s, [several], small)
            for me in several:
                me.quit()
    _no_such_rank(s)
    _mismatch(s)
    _abort(s)


def _no_such_rank(s: Subject) -> None:
    """A root that does not exist is refused, by the call or by what the queued call comes to."""
    for root in (1, -1):
        alone = _Rank(s, s.device, 1, 0, s.driver.comm_unique_id())
        address = alone.put(_values(0, 8), "float32")
        try:
            s.driver.comm_broadcast(alone.comm, address, address, 8, "float32", root, alone.stream)
            if alone.stream:
                s.driver.stream_sync(alone.stream)
            s.driver.comm_async_error(alone.comm)
        except HaianError:
            pass
        else:
            require(False, f"broadcast from rank {root} of 1 succeeded; needs an error")
        with suppress(HaianError):
            s.driver.comm_destroy(alone.comm)


def _taken(rank: _Rank, dtype: str) -> bool:
    """Whether the driver takes a dtype; one it refuses is its right."""
    address = rank.put(np.ones(4), dtype)
    try:
        rank.s.driver.comm_all_reduce(rank.comm, address, address, 4, dtype, "sum", rank.stream)
    except (Unsupported, DTypeError, ArgumentError):
        return False
    return True


def _mismatch(s: Subject) -> None:
    """Ranks with other counts: both get an error within the limit, one at least Timeout."""
    if not getattr(s.raw, "comm_keeps_timeout", False):
        return  # the host's Communicator watches such drivers and aborts
    pair = _world(s, _LIMIT_S)
    found: dict[int, HaianError] = {}

    def work(rank: int) -> None:
        me = pair[rank]
        address = me.put(_values(rank, 64), "float32")
        end = time.monotonic() + _LIMIT_S + 3
        try:
            s.driver.comm_all_reduce(me.comm, address, address, 32 + 8 * rank, "float32", "sum", me.stream)
            while time.monotonic() < end:
                s.driver.comm_async_error(me.comm)
                time.sleep(0.02)
        except HaianError as error:
            found[rank] = error

    began = time.monotonic()
    s.threads(2, work, _LIMIT_S + 6)
    require(len(found) == 2, f"an all_reduce of 32 elements on one rank and 40 on the other ended well on {2 - len(found)} of 2 ranks; needs Timeout")
    require(any(isinstance(e, Timeout) for e in found.values()), f"ranks with other counts got {', '.join(type(e).__name__ for e in found.values())}; "
            "needs Timeout")
    require(time.monotonic() - began < _LIMIT_S + 4, f"ranks with other counts gave up after {time.monotonic() - began:.1f} s; the limit was {_LIMIT_S:g}")
    _end(s, pair)


def _abort(s: Subject) -> None:
    """A rank that waits for one that never comes is freed by abort; a new world then works."""
    pair = _world(s, 5.0)
    me = pair[0]
    address = me.put(_values(0, 64), "float32")
    if me.stream:
        s.driver.comm_all_reduce(me.comm, address, address, 64, "float32", "sum", me.stream)

        def wait() -> None:
            with suppress(HaianError):
                s.driver.stream_sync(me.stream)

        ended = start(s, wait)
        s.quiet(ended, "an all_reduce ended on one rank without the other", 0.05)
        s.driver.comm_abort(me.comm)
        s.until(ended, "a stream with a collective that was aborted ends", 3)
    else:
        s.driver.comm_abort(me.comm)
    try:
        s.driver.comm_all_reduce(me.comm, address, address, 64, "float32", "sum", me.stream)
    except HaianError:
        pass
    else:
        require(False, "an aborted communicator takes another all_reduce; needs an error")
    _end(s, pair)
    again = _world(s)

    def work(rank: int) -> None:
        mine = again[rank].put(_values(rank, 8), "float32")
        s.driver.comm_all_reduce(again[rank].comm, mine, mine, 8, "float32", "sum", again[rank].stream)
        again[rank].expect(mine, _values(0, 8) + _values(1, 8), "float32", "all_reduce after an abort")

    s.threads(2, work)
    _end(s, again)


def _end(s: Subject, pair: list[_Rank]) -> None:
    """Destroys both, and delivers what their streams still hold."""
    for me in pair:
        s.driver.comm_abort(me.comm)
        if me.stream:
            with suppress(HaianError):
                s.until(start(s, lambda me=me: s.driver.stream_sync(me.stream)), "a stream of a dead communicator ends")  # type: ignore[misc]
        s.until(start(s, lambda me=me: s.driver.comm_destroy(me.comm)), "comm_destroy of a dead communicator")  # type: ignore[misc]
