"""Communicators of the host: ranks are threads or processes of one machine, data goes through shared memory.

Every pair of ranks holds two Unix sockets, one for the steps of collectives and one for messages, so that a rank that dies is
seen at once and nothing is left behind: the memory has no name, the sockets' names are removed when all have met.
Not here: several machines (hal/comm_mpi.py), what users call (hal/comm.py).
"""
from __future__ import annotations

import array
import fcntl
import hashlib
import mmap
import os
import re
import secrets
import select
import socket
import stat
import struct
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from haian.hal.comm import REDUCTIONS, check_call, check_reduction, check_world, combine, timeout_s
from haian.hal.dtype import BY_CODE, DType
from haian.hal.errors import (
    ArgumentError,
    EnvironmentMissing,
    HaianError,
    InternalError,
    InvalidHandle,
    OutOfMemory,
    PermissionRefused,
    RanksDiffer,
    Timeout,
)
from haian.hal.host_queues import CALL, Handles, Work

__all__ = ["HostCommunicators"]

SLOT = 1 << 20  # bytes a rank puts forward a step; two slots a rank, so that one step overlaps the reading of the last
SMALL = 1 << 15  # bytes below which every rank reduces everything: one step instead of two
_ID = struct.Struct("<8s16s16s")  # magic, token, machine; the folder's path follows
_MAGIC = b"haianhc1"
_HELLO = struct.Struct("<16sIII")  # token, rank, world, channel
_CALLS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "send")
_STEP, _BYE, _ABORT = 1, 2, 3
_WORD = struct.Struct("<BBBBiQQ")  # what, call, dtype, reduction, root, number of the call, elements
_POLL_S = 0.5  # rendezvous: pause while a rank's socket is not there yet grows to 1/50 of this


class HostCommunicators:
    """The comm group of the host's driver; mixed into CpuDriver, which is a HostDriver and knows its memory (``_at``)."""

    comm_keeps_timeout = True  # no watch above is needed
    _handles: Handles
    _do: Callable[[int, int, Work], None]
    _at: Callable[[int], object]
    _check: Callable[[int], None]

    def comm_unique_id(self) -> bytes:
        """56 to 128 bytes: a random token, this machine, and the private folder where the ranks meet."""
        return _ID.pack(_MAGIC, secrets.token_bytes(16), _machine()) + os.fsencode(_folder())

    def comm_init(self, device: int, world: int, rank: int, unique_id: bytes) -> int:
        self._check(device)
        check_world("cpu", world, rank)
        return self._handles.add(_Ranks(world, rank, unique_id, timeout_s()))

    def comm_destroy(self, comm: int) -> None:
        self._handles.remove(comm, _Ranks).close()

    def comm_abort(self, comm: int) -> None:
        self._handles.get(comm, _Ranks).abort()

    def comm_async_error(self, comm: int) -> None:
        self._handles.get(comm, _Ranks).look()

    def comm_all_reduce(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        check_reduction(op, kind := check_call("cpu", count, dtype))
        self._queue(comm, stream, partial(_Ranks.all_reduce, count=count, kind=kind, op=op), send, recv)

    def comm_all_gather(self, comm: int, send: int, recv: int, count: int, dtype: str, stream: int) -> None:
        self._queue(comm, stream, partial(_Ranks.all_gather, count=count, kind=check_call("cpu", count, dtype)), send, recv)

    def comm_reduce_scatter(self, comm: int, send: int, recv: int, count: int, dtype: str, op: str, stream: int) -> None:
        check_reduction(op, kind := check_call("cpu", count, dtype))
        self._queue(comm, stream, partial(_Ranks.reduce_scatter, count=count, kind=kind, op=op), send, recv)

    def comm_broadcast(self, comm: int, send: int, recv: int, count: int, dtype: str, root: int, stream: int) -> None:
        self._rank(comm, "broadcast from root", root)
        self._queue(comm, stream, partial(_Ranks.broadcast, count=count, kind=check_call("cpu", count, dtype), root=root), send, recv)

    def comm_send(self, comm: int, send: int, count: int, dtype: str, peer: int, stream: int) -> None:
        self._rank(comm, "send to", peer)
        self._queue(comm, stream, (True, peer, count, check_call("cpu", count, dtype)), send, 0)

    def comm_recv(self, comm: int, recv: int, count: int, dtype: str, peer: int, stream: int) -> None:
        self._rank(comm, "receive from", peer)
        self._queue(comm, stream, (False, peer, count, check_call("cpu", count, dtype)), 0, recv)

    def comm_group_begin(self, comm: int) -> None:
        ranks = self._handles.get(comm, _Ranks)
        if ranks.group is not None:
            raise ArgumentError("cpu: comm_group_begin inside a group; end the first one")
        ranks.group = []

    def comm_group_end(self, comm: int) -> None:
        """Messages first, all together, then collectives in the order of their calls."""
        ranks = self._handles.get(comm, _Ranks)
        calls, ranks.group = ranks.group, None
        if calls is None:
            raise ArgumentError("cpu: comm_group_end without comm_group_begin")
        if len({c[0] for c in calls}) > 1:
            raise ArgumentError("cpu: a group on several streams; use one stream in a group")
        if calls:
            self._do(ranks.device, calls[0][0], _Calls(ranks, [c[1:] for c in calls]))

    def _rank(self, comm: int, what: str, rank: int) -> None:
        world = self._handles.get(comm, _Ranks).world
        if not isinstance(rank, int) or not 0 <= rank < world:
            raise ArgumentError(f"cpu: {what} {rank!r}; needs a rank from 0 to {world - 1}")

    def _queue(self, comm: int, stream: int, call: Any, send: int, recv: int) -> None:
        """``call``: a collective of _Ranks, or (whether it is a send, peer, count, dtype) of a message."""
        ranks = self._handles.get(comm, _Ranks)
        entry = (call, send, recv, (self._at(send), self._at(recv)))
        if ranks.group is not None:
            ranks.group.append((stream, *entry))
        else:
            self._do(ranks.device, stream, _Calls(ranks, [entry]))


class _Calls(Work):
    """What ``_Ranks.run`` gets, as a stream's work: it runs after a failure of the stream, since other ranks wait for it."""

    __slots__ = ("ranks",)

    def __init__(self, ranks: _Ranks, calls: list[tuple]) -> None:
        name = "group" if len(calls) > 1 else "message" if isinstance(calls[0][0], tuple) else calls[0][0].func.__name__
        super().__init__(CALL, partial(ranks.run, calls), "comm", name)
        self.ranks = ranks

    def now(self) -> Work:
        self.ranks.queued()  # also at each replay of a recording
        return self


class _Peer:
    """The two sockets to one other rank."""

    __slots__ = ("rank", "steps", "messages", "words", "last", "gone")

    def __init__(self, rank: int, steps: socket.socket, messages: socket.socket) -> None:
        self.rank, self.steps, self.messages = rank, steps, messages
        self.words = bytearray()  # received, not yet used
        self.last = 0  # what the last word said
        self.gone = False  # nothing more comes


class _Ranks:
    """One rank of a communicator.  ``run`` is called by one thread at a time: a lock sees to it."""

    def __init__(self, world: int, rank: int, unique_id: bytes, limit_s: float) -> None:
        self.device, self.world, self.rank, self.limit_s = 0, world, rank, limit_s
        self.group: list[tuple] | None = None
        self.error: HaianError | None = None
        self._lock = threading.Lock()
        self._change = threading.Condition()
        self._pending = 0
        self._number = 0  # of the call
        self._turn = 0  # which of the two slots
        self._peers: list[_Peer] = []
        self._slots = np.empty((0, 2, SLOT), np.uint8)
        if not hasattr(socket, "AF_UNIX"):
            raise EnvironmentMissing("cpu: communicators need Unix sockets; use Communicator.mpi here")
        if world > 1:
            self._meet(unique_id)
        _alive.add(self)

    def __repr__(self) -> str:
        return f"cpu: communicator rank {self.rank} of {self.world}"

    # ---- rendezvous ------------------------------------------------------------------------------------------------
    def _meet(self, unique_id: bytes) -> None:
        magic, token, machine = _ID.unpack_from(unique_id) if len(unique_id) >= _ID.size else (b"", b"", b"")
        if magic != _MAGIC:
            raise ArgumentError(f"{self!r}: an id of {len(unique_id)} bytes that is not the host's; make it with Communicator.unique_id")
        if machine != _machine():
            raise ArgumentError(f"{self!r}: the id was made on another machine; use Communicator.mpi across machines")
        base = Path(os.fsdecode(unique_id[_ID.size:].rstrip(b"\0")))
        if base not in _bases():
            raise ArgumentError(f"{self!r}: the id names the folder {str(base)!r}, where this user's ranks do not meet "
                                f"({', '.join(map(str, _bases()))}); pass it on whole, or set the same XDG_RUNTIME_DIR for all ranks")
        deadline = time.monotonic() + self.limit_s
        place, lock = _room(base, token.hex())
        sockets: dict[tuple[int, int], socket.socket] = {}  # (rank, channel)
        memory = -1
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
                try:
                    door.bind(str(place / str(self.rank)))
                except OSError as e:
                    raise ArgumentError(f"{self!r}: the rank is taken ({e.strerror}); give each rank its own number, each world its own id") from None
                door.listen(2 * self.world)
                for other in range(self.rank):
                    for channel in (0, 1):
                        sockets[other, channel] = self._call(place / str(other), token, other, channel, deadline, sockets)
                while len(sockets) < 2 * (self.world - 1):
                    self._answer(door, token, deadline, sockets)
            if self.rank == 0:
                memory = _memory(self.world * 2 * SLOT)
                for other in range(1, self.world):
                    _send_fd(sockets[other, 0], memory)
            else:
                memory = _recv_fd(sockets[0, 0], deadline, self)
            self._slots = np.frombuffer(mmap.mmap(memory, self.world * 2 * SLOT), np.uint8).reshape(self.world, 2, SLOT)
            for s in sockets.values():
                s.setblocking(False)
            self._peers = [_Peer(r, sockets[r, 0], sockets[r, 1]) for r in range(self.world) if r != self.rank]
            self._step(0, 0, None, "", 0)  # all have the memory: names can go
        except HaianError:  # Timeout is an OSError too
            self._drop(sockets)
            raise
        except OSError as e:
            self._drop(sockets)
            raise Timeout(f"{self!r}: a rank left while the ranks met ({e.strerror or e}); look at the other ranks") from None
        except BaseException:
            self._drop(sockets)
            raise
        finally:
            if memory >= 0:
                os.close(memory)
            with suppress(OSError):
                os.unlink(place / str(self.rank))
            with suppress(OSError):  # the last one finds only the mark
                if os.listdir(place) == [_MARK]:
                    os.unlink(place / _MARK)
                    os.rmdir(place)
            os.close(lock)

    def _drop(self, sockets: dict[tuple[int, int], socket.socket]) -> None:
        for s in sockets.values():
            s.close()
        self._peers = []

    def _late(self, sockets: dict[tuple[int, int], socket.socket]) -> Timeout:
        came = {r for r, _ in sockets} | {self.rank}
        missing = ", ".join(str(r) for r in range(self.world) if r not in came)
        return Timeout(f"{self!r}: rank {missing} did not come within {self.limit_s:g} s; start all ranks, or give timeout_s")

    def _call(self, path: Path, token: bytes, other: int, channel: int, deadline: float,
              sockets: dict[tuple[int, int], socket.socket]) -> socket.socket:
        """Connects to a lower rank, which may not be there yet."""
        pause = 0.0005
        while True:
            s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                s.settimeout(max(deadline - time.monotonic(), 0.001))
                s.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError, TimeoutError):
                s.close()
                if time.monotonic() > deadline:
                    raise self._late(sockets) from None
                time.sleep(pause)
                pause = min(pause * 2, _POLL_S / 50)
        try:
            s.sendall(_HELLO.pack(token, self.rank, self.world, channel))
            self._greeting(s, token, other)
        except TimeoutError:
            s.close()
            raise self._late(sockets) from None
        except BaseException:
            s.close()
            raise
        return s

    def _answer(self, door: socket.socket, token: bytes, deadline: float, sockets: dict[tuple[int, int], socket.socket]) -> None:
        """Takes one connection of a higher rank."""
        try:
            door.settimeout(max(deadline - time.monotonic(), 0.001))
            s, _ = door.accept()
        except TimeoutError:
            raise self._late(sockets) from None
        s.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            s.sendall(_HELLO.pack(token, self.rank, self.world, 0))
            rank, channel = self._greeting(s, token, None)
        except TimeoutError:
            s.close()
            raise self._late(sockets) from None
        except BaseException:
            s.close()
            raise
        sockets[rank, channel] = s

    def _greeting(self, s: socket.socket, token: bytes, expected: int | None) -> tuple[int, int]:
        data = b""
        while len(data) < _HELLO.size:
            more = s.recv(_HELLO.size - len(data))
            if not more:
                raise ConnectionResetError(0, "its socket closed")
            data += more
        their, rank, world, channel = _HELLO.unpack(data)
        if their != token or (expected is not None and rank != expected):
            raise ArgumentError(f"{self!r}: met rank {rank} of another communicator; give each world its own id")
        if world != self.world:
            raise ArgumentError(f"{self!r}: rank {rank} says the world has {world} ranks; give all ranks the same number")
        return rank, channel

    # ---- running ---------------------------------------------------------------------------------------------------
    def queued(self) -> None:
        if self.error is not None:
            raise InvalidHandle(f"{self!r}: dead since: {self.error}; make a new one")
        with self._change:
            self._pending += 1

    def done(self) -> None:
        with self._change:
            self._pending -= 1
            self._change.notify_all()

    def run(self, calls: list[tuple]) -> None:
        """Messages together, then collectives.  Whatever goes wrong ends the communicator."""
        try:
            with self._lock:
                if self.error is not None:
                    raise self.error
                messages = [(*c[0], c[1] or c[2]) for c in calls if isinstance(c[0], tuple)]
                if messages:
                    self._exchange(messages)
                for call, send, recv, _ in calls:
                    if not isinstance(call, tuple):
                        self._number += 1
                        call(self, send, recv)
        except HaianError as e:
            raise self._die(e) from None
        except MemoryError:
            raise self._die(OutOfMemory(f"{self!r}: the host ran out of memory; use smaller tensors")) from None
        except (OSError, ValueError) as e:  # a socket that abort closed under the call
            raise self._die(InternalError(f"{self!r}: {e}")) from e
        finally:
            self.done()

    def _die(self, error: HaianError) -> HaianError:
        """Keeps the first error, says goodbye to the others."""
        with self._change:
            if self.error is None:
                self.error = error
        self._leave(_ABORT)
        return self.error

    def _leave(self, word: int) -> None:
        for peer in self._peers:
            with suppress(OSError):
                peer.steps.send(_WORD.pack(word, 0, 0, 0, 0, self._number, 0))
            for s in (peer.steps, peer.messages):
                with suppress(OSError):
                    s.shutdown(socket.SHUT_WR if word == _BYE else socket.SHUT_RDWR)  # wakes a thread that polls it

    def abort(self) -> None:
        self._die(Timeout(f"{self!r}: aborted; make a new one"))

    def close(self) -> None:
        """After the queued calls, each of which ends by itself."""
        with self._change:
            self._change.wait_for(lambda: not self._pending)
        with self._lock:
            if self.error is None:
                self._leave(_BYE)
                self.error = InvalidHandle(f"{self!r}: closed; make a new one")
            self.let_go()

    def let_go(self) -> None:
        """Closes this process's descriptors and says nothing to anyone: also what a child of fork does."""
        for peer in self._peers:
            peer.steps.close()
            peer.messages.close()
        self._peers = []
        self._slots = np.empty((0, 2, SLOT), np.uint8)

    def look(self) -> None:
        """Raises what ended the communicator, or that a rank died, as far as it is known now."""
        if self.error is None and self._lock.acquire(blocking=False):  # a running call notices by itself
            try:
                for peer in self._peers:
                    self._read(peer)
                    if peer.last == _ABORT or peer.gone and peer.last != _BYE:
                        self._die(self._lost(peer))
            finally:
                self._lock.release()
        if self.error is not None:
            raise self.error

    # ---- steps: every rank tells every other that it has come, and what for -------------------------------------------
    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.steps.recv(64 * _WORD.size)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            peer.gone = True
        peer.words += data
        if len(data) >= _WORD.size:
            peer.last = data[-_WORD.size]

    def _lost(self, peer: _Peer) -> Timeout:
        how = {_BYE: "closed its communicator", _ABORT: "gave up"}.get(peer.last, "died")
        return Timeout(f"{self!r}: rank {peer.rank} {how}; make a new communicator with the ranks that are left")

    def _step(self, call: int, count: int, kind: DType | None, op: str, root: int) -> None:
        """Returns when all ranks are at this step of the same call.

        Raises:
            Timeout: a rank brought another call, count, dtype, op or root; did not come in time; or is gone.
        """
        mine = (_STEP, call, kind.code if kind else 0, list(REDUCTIONS).index(op) if op else 0, root, self._number, count)
        word = _WORD.pack(*mine)
        for peer in self._peers:
            with suppress(OSError):  # gone: its last words are read below
                peer.steps.send(word)
        waiting = {p.rank: p for p in self._peers}
        poll = select.poll()
        for peer in self._peers:
            poll.register(peer.steps.fileno(), select.POLLIN)
        by_fd = {p.steps.fileno(): p for p in self._peers}
        deadline = time.monotonic() + self.limit_s
        while True:
            for peer in list(waiting.values()):
                if len(peer.words) >= _WORD.size:
                    theirs = _WORD.unpack_from(peer.words)
                    if theirs[0] != _STEP:
                        raise self._lost(peer)
                    del peer.words[:_WORD.size]
                    if theirs != mine:
                        raise RanksDiffer(f"{self!r}: ranks differ: rank {self.rank} is at {_said(mine)}, rank {peer.rank} at {_said(theirs)}; "
                                          f"make the same calls on every rank")
                    del waiting[peer.rank]
                elif peer.gone:
                    raise self._lost(peer)
            if self.error is not None:
                raise self.error
            if not waiting:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise Timeout(f"{self!r}: {_said(mine)}: rank {', '.join(map(str, waiting))} did not come within {self.limit_s:g} s")
            for fd, _ in poll.poll(left * 1000 + 1):
                self._read(by_fd[fd])
                if by_fd[fd].gone:
                    poll.unregister(fd)

    def _half(self) -> np.ndarray:
        """(world, SLOT) bytes for the next step.  They are free: a rank that is past the last step has read the step before."""
        self._turn ^= 1
        return self._slots[:, self._turn] if self.world > 1 else self._slots

    # ---- collectives -----------------------------------------------------------------------------------------------
    def all_reduce(self, send: int, recv: int, count: int, kind: DType, op: str) -> None:
        src, dst = _view(send, count, kind), _view(recv, count, kind)
        if self.world == 1:
            combine(op, kind, [src], dst)
            return
        step = partial(self._step, 1, count, kind, op, 0)
        item, chunk = kind.itemsize, SLOT // kind.itemsize
        for start in range(0, max(count, 1), chunk):
            n = min(chunk, count - start)
            slots = self._half()
            parts = [slots[r, :n * item].view(kind.numpy) for r in range(self.world)]
            parts[self.rank].view(np.uint8)[:] = src[start:start + n].view(np.uint8)
            step()
            if n * item <= SMALL:
                combine(op, kind, parts, dst[start:start + n])
                continue
            edges = [n * r // self.world for r in range(self.world + 1)]
            lo, hi = edges[self.rank], edges[self.rank + 1]
            combine(op, kind, [p[lo:hi] for p in parts], parts[self.rank][lo:hi])  # this part of the slot is read by this rank only
            step()
            for r in range(self.world):
                dst[start + edges[r]:start + edges[r + 1]].view(np.uint8)[:] = parts[r][edges[r]:edges[r + 1]].view(np.uint8)

    def all_gather(self, send: int, recv: int, count: int, kind: DType) -> None:
        n = count * kind.itemsize
        src, dst = _bytes(send, n), _bytes(recv, n * self.world).reshape(self.world, n)
        if self.world == 1:
            _move(dst[0], src)
            return
        for start in range(0, max(n, 1), SLOT):
            end = min(start + SLOT, n)
            slots = self._half()
            slots[self.rank, :end - start] = src[start:end]
            self._step(2, count, kind, "", 0)
            dst[:, start:end] = slots[:, :end - start]

    def reduce_scatter(self, send: int, recv: int, count: int, kind: DType, op: str) -> None:
        src, dst = _view(send, count * self.world, kind).reshape(self.world, count), _view(recv, count, kind)
        if self.world == 1:
            combine(op, kind, [src[0]], dst)
            return
        item = kind.itemsize
        chunk = SLOT // item // self.world
        for start in range(0, max(count, 1), chunk):
            n = min(chunk, count - start)
            slots = self._half()
            mine = slots[self.rank, :self.world * n * item].reshape(self.world, n * item)
            for r in range(self.world):
                mine[r] = src[r, start:start + n].view(np.uint8)
            self._step(3, count, kind, op, 0)
            at = self.rank * n * item
            combine(op, kind, [slots[r, at:at + n * item].view(kind.numpy) for r in range(self.world)], dst[start:start + n])

    def broadcast(self, send: int, recv: int, count: int, kind: DType, root: int) -> None:
        n = count * kind.itemsize
        dst = _bytes(recv, n)
        if self.rank == root:
            src = _bytes(send, n)
            _move(dst, src)
        if self.world == 1:
            return
        for start in range(0, max(n, 1), SLOT):
            end = min(start + SLOT, n)
            slots = self._half()
            if self.rank == root:
                slots[root, :end - start] = src[start:end]
            self._step(4, count, kind, "", root)
            if self.rank != root:
                dst[start:end] = slots[root, :end - start]

    # ---- messages --------------------------------------------------------------------------------------------------
    def _exchange(self, messages: list[tuple[bool, int, int, DType, int]]) -> None:
        """All (is a send, peer, count, dtype, address) at once, in order between two ranks; count and dtype precede the elements.

        Raises:
            Timeout: nothing moved for the time limit, a rank is gone, or what came is not what was expected.
        """
        out: dict[int, deque[memoryview]] = {}
        into: dict[int, deque[tuple[memoryview, DType | None, int]]] = {}  # (where to, header's dtype or None for elements, count)
        to_self: tuple[list, list] = ([], [])
        for is_send, peer, count, kind, address in messages:
            n = count * kind.itemsize
            data = _bytes(address, n).data
            if peer == self.rank:
                to_self[0 if is_send else 1].append((count, kind, address))
            elif is_send:
                word = memoryview(_WORD.pack(_STEP, 5, kind.code, 0, 0, 0, count))
                out.setdefault(peer, deque()).extend((word, data) if n else (word,))
            else:
                header = memoryview(bytearray(_WORD.size))
                queue = into.setdefault(peer, deque())
                queue.append((header, kind, count))
                if n:
                    queue.append((data, None, count))
        self._within(to_self)
        by_rank = {p.rank: p for p in self._peers}
        moved = time.monotonic()
        poll = select.poll()
        fds = {by_rank[r].messages.fileno(): by_rank[r] for r in {*out, *into}}
        full: dict[int, memoryview] = {}  # the header as it was queued, whole
        for fd, other in fds.items():
            poll.register(fd, (select.POLLOUT if out.get(other.rank) else 0) | (select.POLLIN if into.get(other.rank) else 0))
        while fds:
            if self.error is not None:
                raise self.error
            left = moved + self.limit_s - time.monotonic()
            ready = poll.poll(left * 1000 + 1) if left > 0 else []
            if not ready and left <= 0:
                named = ", ".join(str(p.rank) for p in fds.values())
                raise Timeout(f"{self!r}: messages: rank {named} did not {'receive' if any(out.values()) else 'send'} within {self.limit_s:g} s")
            for fd, events in ready:
                other = fds[fd]
                sends, receives = out.get(other.rank), into.get(other.rank)
                try:
                    if sends and events & (select.POLLOUT | select.POLLERR | select.POLLHUP):
                        n = other.messages.send(sends[0])
                        moved = time.monotonic()
                        if n == len(sends[0]):
                            sends.popleft()
                        else:
                            sends[0] = sends[0][n:]
                    if receives and events & (select.POLLIN | select.POLLERR | select.POLLHUP):
                        where, kind_, count = receives[0]
                        n = other.messages.recv_into(where)
                        if not n:
                            raise self._gone(other)
                        moved = time.monotonic()
                        if kind_ is not None and fd not in full:
                            full[fd] = where
                        if n == len(where):
                            receives.popleft()
                            if kind_ is not None:
                                self._expect(other.rank, full.pop(fd), count, kind_)
                        else:
                            receives[0] = (where[n:], kind_, count)
                except HaianError:  # Timeout is an OSError too
                    raise
                except BlockingIOError:
                    continue
                except OSError:
                    raise self._gone(other) from None
                if not sends and not receives:
                    poll.unregister(fd)
                    del fds[fd]
                else:
                    poll.modify(fd, (select.POLLOUT if sends else 0) | (select.POLLIN if receives else 0))

    def _gone(self, peer: _Peer) -> Timeout:
        self._read(peer)
        return self._lost(peer)

    def _expect(self, rank: int, header: memoryview, count: int, kind: DType) -> None:
        word = _WORD.unpack(header)
        if (word[2], word[6]) != (kind.code, count):
            raise RanksDiffer(f"{self!r}: ranks differ: rank {rank} sent {word[6]} {BY_CODE[word[2]].name}, "
                              f"rank {self.rank} receives {count} {kind.name}; make them equal")

    def _within(self, to_self: tuple[list, list]) -> None:
        sends, receives = to_self
        if [c[:2] for c in sends] != [c[:2] for c in receives]:
            raise RanksDiffer(f"{self!r}: {len(sends)} messages to itself, {len(receives)} received; put both, equal, in one group")
        for (count, kind, a), (_, _, b) in zip(sends, receives):
            _move(_bytes(b, count * kind.itemsize), _bytes(a, count * kind.itemsize))


class _Memory:
    """Shows memory to NumPy."""

    __slots__ = ("__array_interface__",)

    def __init__(self, address: int, nbytes: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}


def _bytes(address: int, nbytes: int) -> np.ndarray:
    return np.asarray(_Memory(address, nbytes)) if nbytes else np.empty(0, np.uint8)


def _view(address: int, count: int, kind: DType) -> np.ndarray:
    return _bytes(address, count * kind.itemsize).view(kind.numpy)


def _move(dst: np.ndarray, src: np.ndarray) -> None:
    if dst.size and dst.__array_interface__["data"][0] != src.__array_interface__["data"][0]:
        dst[:] = src


def _said(word: Sequence[int]) -> str:
    _, call, code, op, root, number, count = word
    if call == 0:
        return "the beginning"
    name = _CALLS[call - 1]
    how = f" {list(REDUCTIONS)[op]}" if name in ("all_reduce", "reduce_scatter") else f" from {root}" if name == "broadcast" else ""
    return f"call {number}, {name}{how} of {count} {BY_CODE[code].name}"


# ---- where ranks meet ------------------------------------------------------------------------------------------------
def _machine() -> bytes:
    """16 bytes that are the same for all processes of one running system."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:  # no /proc: not Linux
        boot = b""
    return hashlib.sha256(boot + socket.gethostname().encode()).digest()[:16]


_MARK = "haian-ranks"  # a file in each room that says who made it
_ROOM = re.compile("ranks-[0-9a-f]{32}")


def _bases() -> list[Path]:
    """Folders where this user's ranks may meet, the first one for new ids; short enough for a socket's name, whose limit is 104
    bytes or more.  No id can name another: the ranks make and remove things there."""
    run = os.environ.get("XDG_RUNTIME_DIR", "")
    found = [Path(run) / "haian"] if os.path.isabs(run) and len(run) < 30 and os.access(run, os.W_OK) else []
    found += [Path("/tmp") / f"haian-{os.getuid()}", Path(f"/run/user/{os.getuid()}/haian")]  # what ranks without the variable use, and with it
    return list(dict.fromkeys(found))


def _folder() -> Path:
    """The user's private folder, 0700."""
    base = _bases()[0]
    _private(base)
    return base


def _private(path: Path) -> None:
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionRefused(f"cpu: {path} is not a folder of this user alone; remove it, or set XDG_RUNTIME_DIR")


def _room(base: Path, token: str) -> tuple[Path, int]:
    """The folder of one communicator and a descriptor whose shared lock says that someone is in it."""
    _private(base)
    place = base / f"ranks-{token}"
    _sweep(base, place.name)
    while True:
        _private(place)
        try:
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # swept in between
            continue
        fcntl.flock(fd, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.stat(place).st_ino == os.fstat(fd).st_ino:
                os.close(os.open(_MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd))
                return place, fd
        os.close(fd)


def _sweep(base: Path, mine: str) -> None:
    """Removes what ranks that were killed while they met have left: rooms with the mark that nobody holds a lock on.

    Only the mark and sockets named by a rank are removed, one by one; a folder with anything else in it stays.
    """
    for entry in list(os.scandir(base)):
        if entry.name == mine or not _ROOM.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
            continue
        with suppress(OSError):  # held (BlockingIOError), or gone meanwhile
            fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_uid == os.getuid() and _ours(fd, names := os.listdir(fd)):
                    for name in sorted(names, key=_MARK.__eq__):  # the mark last
                        os.unlink(name, dir_fd=fd)
                    os.rmdir(entry.path)
            finally:
                os.close(fd)


def _ours(folder: int, names: list[str]) -> bool:
    """Whether a room holds the mark and beside it only sockets of ranks."""
    def socket_of_a_rank(name: str) -> bool:
        return name.isascii() and name.isdigit() and stat.S_ISSOCK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)

    return _MARK in names and all(name == _MARK or socket_of_a_rank(name) for name in names)


def _memory(nbytes: int) -> int:
    """A descriptor of shared memory without a name."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryFile(dir=place) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, nbytes)  # now, since a page that cannot be had later is a SIGBUS
        except OSError as e:
            raise OutOfMemory(f"cpu: {nbytes} bytes of shared memory asked for ({e.strerror}); free {place or tempfile.gettempdir()}") from None
        return os.dup(file.fileno())


def _send_fd(s: socket.socket, fd: int) -> None:
    s.sendmsg([b"m"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])


def _recv_fd(s: socket.socket, deadline: float, who: object) -> int:
    s.settimeout(max(deadline - time.monotonic(), 0.001))
    try:
        data, extra, _, _ = s.recvmsg(1, socket.CMSG_SPACE(4))
    except TimeoutError:
        raise Timeout(f"{who!r}: rank 0 is still waiting for ranks; start all of them") from None
    if not data or not extra:
        raise ConnectionResetError(0, "rank 0 gave no memory")
    fds = array.array("i")
    fds.frombytes(extra[0][2][:4])
    os.set_inheritable(fds[0], False)
    return fds[0]


# A child of fork has the sockets of its parent: it closes its copies, so that the parent's death is still seen by others.
_alive: weakref.WeakSet[_Ranks] = weakref.WeakSet()


def _after_fork() -> None:
    for ranks in list(_alive):
        ranks.error = InvalidHandle(f"{ranks!r}: made before fork; make a new one in the child")
        ranks.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
