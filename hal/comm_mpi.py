"""The ranks of an MPI communicator as a transport of hal/comm.py: host memory, synchronous, across machines.  Extra ``mpi``.

MPI moves bytes only; sums run here in rank order, since MPI leaves the order to the implementation and knows no bfloat16.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .comm import REDUCTIONS, check_call, check_reduction, combine, timeout_s
from .dtype import BY_CODE, DType
from .errors import ArgumentError, EnvironmentMissing, InvalidHandle, RanksDiffer, Timeout
from .memory import _Window

__all__ = ["MpiTransport"]

_CALLS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
_CHUNK = 1 << 28  # bytes a request: MPI counts are 32-bit ints
_PAUSE_S = 50e-6
_TAG = 77


class MpiTransport:
    """Has the methods of a driver's comm group; one communicator each.

    Args:
        comm: an mpi4py intracommunicator, which is duplicated; COMM_WORLD by default.

    Raises:
        EnvironmentMissing: no mpi4py, or it finds no MPI library.
    """

    comm_keeps_timeout = True

    def __init__(self, comm: Any = None) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as e:  # mpi4py raises RuntimeError where it finds no MPI library
            raise EnvironmentMissing(f"communicator over MPI: {e}; install haian[mpi] and an MPI library, start with mpirun") from None
        self._mpi = MPI
        self._comm = (MPI.COMM_WORLD if comm is None else comm).Dup()
        self.world, self.rank = self._comm.Get_size(), self._comm.Get_rank()
        self._limit_s = 0.0
        self._error: Exception | None = None
        self._number = 0
        self._group: list[tuple[bool, int, int, DType, int]] | None = None
        self._then: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"mpi: communicator rank {self.rank} of {self.world}"

    def comm_unique_id(self) -> bytes:
        return b""

    def comm_init(self, device: int, world: int, rank: int, unique_id: bytes) -> int:
        self._limit_s = timeout_s()
        return 1

    def comm_destroy(self, comm: int) -> None:
        """Frees the duplicate, which all ranks do together; after an error it is left to MPI's end."""
        if self._error is None:
            self._comm.Free()
        self._error = InvalidHandle(f"{self!r}: closed; make a new one")

    def comm_abort(self, comm: int) -> None:
        """This rank only: the others notice by their time limit."""
        self._error = self._error or Timeout(f"{self!r}: aborted; make a new one")

    def comm_async_error(self, comm: int) -> None:
        if self._error is not None:
            raise self._error

    # ---- collectives -----------------------------------------------------------------------------------------------
    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        kind = check_call("mpi", count, dtype)
        check_reduction(op, kind)
        self._later(lambda: self._all_reduce(send, recv, count, kind, op))

    def comm_all_gather(self, comm: int, send: int, recv: int, count: int, dtype: str, stream: int) -> None:
        kind = check_call("mpi", count, dtype)
        self._later(lambda: self._all_gather(send, recv, count, kind))

    def comm_reduce_scatter(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        kind = check_call("mpi", count, dtype)
        check_reduction(op, kind)
        self._later(lambda: self._reduce_scatter(send, recv, count, kind, op))

    def comm_broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        kind = check_call("mpi", count, dtype)
        self._later(lambda: self._broadcast(send, recv, count, kind, root))

    def _all_reduce(self, send: int, recv: int, count: int, kind: DType, op: str) -> None:
        """Each rank reduces its part, then all gather the parts."""
        self._agree(1, count, kind, op, 0)
        edges = [count * r // self.world for r in range(self.world + 1)]
        mine = np.empty(edges[self.rank + 1] - edges[self.rank], kind.numpy)
        source, out = _view(send, count, kind), _view(recv, count, kind)
        self._reduce([source[edges[r]:edges[r + 1]] for r in range(self.world)], mine, kind, op)
        self._spread(mine, [out[edges[r]:edges[r + 1]] for r in range(self.world)])

    def _all_gather(self, send: int, recv: int, count: int, kind: DType) -> None:
        self._agree(2, count, kind, "", 0)
        self._spread(_view(send, count, kind).copy(), list(_view(recv, count * self.world, kind).reshape(self.world, count)))

    def _reduce_scatter(self, send: int, recv: int, count: int, kind: DType, op: str) -> None:
        self._agree(3, count, kind, op, 0)
        mine = np.empty(count, kind.numpy)
        self._reduce(list(_view(send, count * self.world, kind).reshape(self.world, count)), mine, kind, op)
        _view(recv, count, kind).view(np.uint8)[:] = mine.view(np.uint8)

    def _broadcast(self, send: int, recv: int, count: int, kind: DType, root: int) -> None:
        self._agree(4, count, kind, "", root)
        out = _view(recv, count, kind)
        if self.rank == root and send != recv:
            out.view(np.uint8)[:] = _view(send, count, kind).view(np.uint8)
        others = [r for r in range(self.world) if r != root]
        self._move([(r, out) for r in others] if self.rank == root else [], [] if self.rank == root else [(root, out)], "broadcast")

    def _reduce(self, pieces: list[np.ndarray], mine: np.ndarray, kind: DType, op: str) -> None:
        """Sends piece r to rank r and combines what the ranks sent, in their order, into ``mine``."""
        parts = [pieces[r] if r == self.rank else np.empty_like(mine) for r in range(self.world)]
        self._move([(r, pieces[r]) for r in range(self.world) if r != self.rank], [(r, parts[r]) for r in range(self.world) if r != self.rank], "reduction")
        combine(op, kind, parts, mine)

    def _spread(self, mine: np.ndarray, places: list[np.ndarray]) -> None:
        """Every rank's ``mine`` into its place on all ranks."""
        places[self.rank].view(np.uint8)[:] = mine.view(np.uint8)
        others = [r for r in range(self.world) if r != self.rank]
        self._move([(r, mine) for r in others], [(r, places[r]) for r in others], "gathering")

    # ---- messages --------------------------------------------------------------------------------------------------
    def comm_send(self, comm: int, send: int, count: int, dtype: str, peer: int, stream: int) -> None:
        self._message((True, peer, count, check_call("mpi", count, dtype), send))

    def comm_recv(self, comm: int, recv: int, count: int, dtype: str, peer: int, stream: int) -> None:
        self._message((False, peer, count, check_call("mpi", count, dtype), recv))

    def comm_group_begin(self, comm: int) -> None:
        self._alive()
        self._group = []

    def comm_group_end(self, comm: int) -> None:
        """Messages first, all together, then collectives in the order of their calls."""
        messages, self._group = self._group, None
        then, self._then = self._then, []
        if messages is None:
            raise ArgumentError(f"{self!r}: comm_group_end without comm_group_begin")
        self._exchange(messages)
        for call in then:
            call()

    def _message(self, message: tuple[bool, int, int, DType, int]) -> None:
        self._alive()
        if self._group is None:
            self._exchange([message])
        else:
            self._group.append(message)

    def _exchange(self, messages: list[tuple[bool, int, int, DType, int]]) -> None:
        heads = [np.array([kind.code, count], np.int64) if sends else np.empty(2, np.int64) for sends, _, count, kind, _ in messages]
        self._move([(m[1], h) for m, h in zip(messages, heads) if m[0]], [(m[1], h) for m, h in zip(messages, heads) if not m[0]], "messages")
        for (sends, peer, count, kind, _), head in zip(messages, heads):
            if not sends and (int(head[0]), int(head[1])) != (kind.code, count):
                raise self._fail(f"ranks differ: rank {peer} sent {head[1]} {BY_CODE[int(head[0])].name}, rank {self.rank} receives {count} {kind.name}; "
                                 f"make them equal", RanksDiffer)
        data = [(sends, peer, _view(address, count, kind)) for sends, peer, count, kind, address in messages]
        self._move([(p, v) for s, p, v in data if s], [(p, v) for s, p, v in data if not s], "messages")

    # ---- inside ----------------------------------------------------------------------------------------------------
    def _later(self, call: Callable[[], None]) -> None:
        self._alive()
        if self._group is None:
            call()
        else:
            self._then.append(call)

    def _alive(self) -> None:
        if self._error is not None:
            raise self._error

    def _fail(self, text: str, kind: type[Timeout] = Timeout) -> Timeout:
        self._error = error = kind(f"{self!r}: {text}")
        return error

    def _agree(self, call: int, count: int, kind: DType, op: str, root: int) -> None:
        """All ranks are at the same call with the same arguments."""
        self._alive()
        self._number += 1
        mine = np.array([call, self._number, count, kind.code, list(REDUCTIONS).index(op) if op else 0, root], np.int64)
        all_ = np.empty((self.world, mine.size), np.int64)
        self._wait([self._comm.Iallgather(mine, all_)], f"{_said(mine)}: not all ranks came")
        for rank, theirs in enumerate(all_):
            if (theirs != mine).any():
                raise self._fail(f"ranks differ: rank {self.rank} is at {_said(mine)}, rank {rank} at {_said(theirs)}; make the same calls on every rank",
                                 RanksDiffer)

    def _move(self, sends: list[tuple[int, np.ndarray]], receives: list[tuple[int, np.ndarray]], what: str) -> None:
        requests = []
        for post, pairs in ((self._comm.Irecv, receives), (self._comm.Isend, sends)):
            for rank, values in pairs:
                data = values.view(np.uint8)
                requests += [post([data[i:i + _CHUNK], self._mpi.BYTE], rank, _TAG) for i in range(0, data.size, _CHUNK)]
        self._wait(requests, f"{what} with rank {', '.join(str(r) for r, _ in [*sends, *receives])}: not finished")

    def _wait(self, requests: list[Any], what: str) -> None:
        deadline = time.monotonic() + self._limit_s
        while not self._mpi.Request.Testall(requests):
            if self._error is not None:
                raise self._error
            if time.monotonic() > deadline:
                raise self._fail(f"{what} within {self._limit_s:g} s")
            time.sleep(_PAUSE_S)


def _view(address: int, count: int, kind: DType) -> np.ndarray:
    if not count:
        return np.empty(0, kind.numpy)
    return np.asarray(_Window(address, (count * kind.itemsize,), (1,), "|u1", False, None)).view(kind.numpy)


def _said(word: np.ndarray) -> str:
    call, number, count, code, op, root = (int(v) for v in word)
    name = _CALLS[call - 1]
    how = f" {list(REDUCTIONS)[op]}" if name in ("all_reduce", "reduce_scatter") else f" from {root}" if name == "broadcast" else ""
    return f"call {number}, {name}{how} of {count} {BY_CODE[code].name}"
