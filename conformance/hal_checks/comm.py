"""Check 68: communicators, with real values, in worlds of one and two ranks."""
from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from ...hal import comm as hal_comm
from ...hal.dtype import BY_NAME
from ...hal.errors import ArgumentError, DTypeError, HaianError, InvalidHandle, Timeout, Unsupported
from .check import NotOffered, Subject, check, require
from .stream import start

_DTYPES = ("float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8", "int8")
_N = 133  # elements of most calls: no multiple of anything
_LARGE = 400_003  # one call larger than any staging buffer's slot
_LIMIT_S = 1.0  # after which ranks that differ must have given up
_OPS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "sum": lambda parts, world: parts.sum(0), "prod": lambda parts, world: parts.prod(0), "max": lambda parts, world: parts.max(0),
    "min": lambda parts, world: parts.min(0), "avg": lambda parts, world: parts.sum(0) / world,
}


def _values(rank: int, n: int) -> np.ndarray:
    """What a rank brings, in float64: sums, products and averages of two ranks are exact in every dtype."""
    return (np.arange(n) * 7 % 5 + 1.0) + rank


class _Rank:
    """One rank: a device, its communicator and stream."""

    def __init__(self, s: Subject, device: int, world: int, rank: int, unique: bytes, limit_s: float = 10.0) -> None:
        self.s, self.device, self.world, self.rank = s, device, world, rank
        token = hal_comm._timeout.set(limit_s)  # drivers that keep the time themselves ask for it in comm_init
        try:
            self.comm = s.driver.comm_init(device, world, rank, unique)
        finally:
            hal_comm._timeout.reset(token)
        self.stream = s.stream(device=device) if s.offers("stream") else 0

    def put(self, values: np.ndarray, dtype: str) -> int:
        data = np.ascontiguousarray(values.astype(BY_NAME[dtype].numpy))
        address = self.s.alloc(max(data.nbytes, 1), device=self.device)
        self.s.upload(address, data.view(np.uint8), device=self.device)
        return address

    def expect(self, address: int, wanted: np.ndarray, dtype: str, what: str) -> None:
        """Waits and compares; every wanted value is exact in the dtype."""
        if self.stream:
            self.s.until(start(self.s, lambda: self.s.driver.stream_sync(self.stream)), f"rank {self.rank}: {what}", 12)
        self.s.driver.sync(self.device) if self.world == 1 else None
        kind = BY_NAME[dtype]
        seen = self.s.download(address, wanted.size * kind.itemsize, device=self.device).view(kind.numpy)
        wrong = np.flatnonzero(seen != wanted.astype(kind.numpy))
        require(not wrong.size, f"rank {self.rank} of {self.world}: {what} of {dtype}: {wrong.size} of {wanted.size} values are wrong" + (
            f", the first at {wrong[0]}: {seen[wrong[0]]}, needs {wanted[wrong[0]]:g}" if wrong.size else ""))

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
            d.comm_reduce_scatter(self.comm, send, send + rank * _N * size, _N, dtype, op, self.stream)
            self.expect(send + rank * _N * size, mine, dtype, f"reduce_scatter {op} in place")
        send, recv = self.put(inputs[rank], dtype), self.put(np.zeros(world * _N), dtype)
        d.comm_all_gather(self.comm, send, recv, _N, dtype, self.stream)
        d.comm_all_gather(self.comm, send, recv, 0, dtype, self.stream)
        self.expect(recv, inputs.reshape(-1), dtype, "all_gather")
        place = np.zeros((world, _N))
        place[rank] = inputs[rank]
        recv = self.put(place.reshape(-1), dtype)
        d.comm_all_gather(self.comm, recv + rank * _N * size, recv, _N, dtype, self.stream)
        self.expect(recv, inputs.reshape(-1), dtype, "all_gather in place")
        for root in range(world):
            send, recv = self.put(inputs[rank], dtype), self.put(np.zeros(_N), dtype)
            d.comm_broadcast(self.comm, send, recv, _N, dtype, root, self.stream)
            d.comm_broadcast(self.comm, send, recv, 0, dtype, root, self.stream)
            self.expect(recv, inputs[root], dtype, f"broadcast from {root}")
            d.comm_broadcast(self.comm, send, send, _N, dtype, root, self.stream)
            self.expect(send, inputs[root], dtype, f"broadcast from {root} in place")
        if world == 2:
            self._messages(dtype, inputs)

    def _messages(self, dtype: str, inputs: np.ndarray) -> None:
        d, other = self.s.driver, 1 - self.rank
        send, recv = self.put(inputs[self.rank], dtype), self.put(np.zeros(_N), dtype)
        if self.rank == 0:
            d.comm_send(self.comm, send, _N, dtype, 1, self.stream)
        else:
            d.comm_recv(self.comm, recv, _N, dtype, 0, self.stream)
            self.expect(recv, inputs[0], dtype, "recv")
        recv = self.put(np.zeros(_N), dtype)
        d.comm_group_begin(self.comm)
        d.comm_send(self.comm, send, _N, dtype, other, self.stream)
        d.comm_recv(self.comm, recv, _N, dtype, other, self.stream)
        d.comm_group_end(self.comm)
        self.expect(recv, inputs[other], dtype, "both ways in a group")

    def quit(self) -> None:
        self.s.driver.comm_destroy(self.comm)
        self.s.expect(InvalidHandle, self.s.driver.comm_destroy, self.comm)


def _world(s: Subject, limit_s: float = 10.0) -> list[_Rank]:
    """Two ranks, each made on a thread of its own: making one waits for the other."""
    unique = s.driver.comm_unique_id()
    require(isinstance(unique, bytes) and 0 < len(unique) <= 128, f"comm_unique_id gave {unique!r}; needs 1 to 128 bytes")
    ranks: dict[int, _Rank] = {}

    def make(rank: int) -> None:
        device = s.device if rank == 0 or s.count < 2 else s.other()
        ranks[rank] = _Rank(s, device, 2, rank, unique, limit_s)

    s.threads(2, make, 12)
    return [ranks[0], ranks[1]]


@check(68, "comm", "X", needs=("comm",), timeout_s=60)
def comm(s: Subject) -> None:
    """Every collective gives exact values for one rank and for two, in place too; ranks that differ time out; abort ends."""
    d = s.driver
    require(d.comm_unique_id() != d.comm_unique_id(), "two unique ids are the same")
    alone = _Rank(s, s.device, 1, 0, d.comm_unique_id())
    taken = [dtype for dtype in _DTYPES if _taken(alone, dtype)]
    require({"float32", "int32"} <= set(taken), f"collectives take {', '.join(taken)} only; needs float32 and int32 at least")
    for dtype in taken:
        alone.all(dtype)
    s.expect((ArgumentError, Unsupported), d.comm_all_reduce, alone.comm, *(alone.put(_values(0, 4), "float32"),) * 2, 4, "float32", "no such op", alone.stream)
    alone.quit()
    if s.count < 2 and not s.caps.host_access:
        raise NotOffered("a world of one works; a world of two needs two devices")

    pair = _world(s)

    def work(rank: int) -> None:
        me = pair[rank]
        try:
            for dtype in taken:
                me.all(dtype)
            parts = np.stack([_values(r, _LARGE) for r in range(2)])
            send = me.put(parts[rank], "float32")
            d.comm_all_reduce(me.comm, send, send, _LARGE, "float32", "sum", me.stream)
            me.expect(send, parts.sum(0), "float32", f"all_reduce of {_LARGE} elements")
            d.comm_async_error(me.comm)
        except BaseException as error:  # noqa: BLE001 - raised below; the other rank would wait for this one
            wrong.append(error)
            for both in pair:
                with suppress(HaianError):
                    d.comm_abort(both.comm)

    wrong: list[BaseException] = []
    s.threads(2, work, 30)
    if wrong:  # the first one; the other rank's follows from it
        raise wrong[0]
    for me in pair:
        me.quit()
    _mismatch(s)
    _abort(s)


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
