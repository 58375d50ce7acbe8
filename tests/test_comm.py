"""Communicators: values against NumPy, bits, groups, what goes wrong between ranks; vendors' tables over stand-in libraries.

Ranks are threads wherever that proves the same thing; spawned processes cost an import each.
"""
from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from haian.adapters import xccl
from haian.adapters.cpu import CpuDriver
from haian.adapters.cpu import comm as host
from haian.hal import Communicator, asarray, empty, load_adapter
from haian.hal.comm import REDUCTIONS, check_reduction, combine
from haian.hal.dtype import ALL, BY_NAME
from haian.hal.errors import (
    AliasError,
    ArgumentError,
    DTypeError,
    EnvironmentMissing,
    InternalError,
    InvalidHandle,
    PermissionRefused,
    RanksDiffer,
    ShapeError,
    Timeout,
    Unsupported,
)
from hal_support import registered

COUNTS = (0, 1, 7, 16385)
CC = shutil.which(os.environ.get("CC", "cc"))
needs_cc = pytest.mark.skipif(CC is None, reason="stand-ins need a C compiler (cc)")


def ranks(comms, fn, catch=False):
    """fn(communicator) on a thread each; the results, or the errors with ``catch``."""
    out = [None] * len(comms)

    def go(i):
        try:
            out[i] = fn(comms[i])
        except Exception as e:  # noqa: BLE001 - carried to the calling thread
            out[i] = e

    threads = [threading.Thread(target=go, args=(i,)) for i in range(len(comms))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
        assert not t.is_alive(), "a rank hangs"
    wrong = [o for o in out if isinstance(o, Exception)]
    if wrong and not catch:
        raise wrong[0]
    return out


def close(comms):
    for c in comms:
        c.close()


@pytest.fixture(params=[1, 2, 3, 4])
def world(request):
    comms = Communicator.local(["cpu"] * request.param, timeout_s=20)
    yield comms
    close(comms)


def values(rank, count, kind):
    rng = np.random.default_rng((rank, count))
    if kind.kind == "b":
        return rng.integers(0, 2, count).astype(np.bool_)
    if kind.kind in "iu":
        return rng.integers(0, 6, count).astype(kind.numpy)
    x = rng.standard_normal(count)
    return (x + 1j * rng.standard_normal(count) if kind.kind == "c" else x).astype(kind.numpy)


def expected(op, parts, kind):
    """By another route than combine: NumPy in the widest type, rounded once, compared with the accumulator's error."""
    wide = {"f": np.float64, "c": np.complex128}.get(kind.kind, kind.numpy)
    stack = np.stack([p.astype(wide) for p in parts])
    if op == "avg":
        return stack.mean(0)
    with np.errstate(over="ignore"):
        return {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}[op](stack, axis=0, **({"dtype": wide} if op in ("sum", "prod") else {}))


def check(got, want, kind):
    if kind.kind in "biu":
        np.testing.assert_array_equal(got, want)
    else:
        u = max(kind.roundoff, 2.0**-24) if kind.kind == "f" and kind.itemsize < 8 else 2.0**-23 if kind.name == "complex64" else kind.roundoff
        wide = np.complex128 if kind.kind == "c" else np.float64
        scale = np.abs(want) + 16
        assert (np.abs(got.astype(wide) - want) <= 4 * u * scale).all()


# ---- values ----------------------------------------------------------------------------------------------------------
def test_every_reduction_of_every_dtype_has_the_same_bits_everywhere():
    comms = Communicator.local(["cpu"] * 3, timeout_s=20)
    table = [(d, op) for d in ALL if not d.name.startswith("float8") for op in REDUCTIONS if d.kind in REDUCTIONS[op]]

    def work(c):
        out = []
        for kind, op in table:
            for n in (0, 1, 33):
                out.append(c.all_reduce(asarray(values(c.rank, n, kind)), op).numpy())
            out.append(c.reduce_scatter(asarray(values(c.rank, 33, kind)), op).numpy())
        return out

    got = ranks(comms, work)
    i = 0
    for kind, op in table:
        for n in (0, 1, 33):
            want = expected(op, [values(r, n, kind) for r in range(3)], kind)
            check(got[0][i], want, kind)
            assert got[0][i].tobytes() == got[1][i].tobytes() == got[2][i].tobytes()
            i += 1
        want = expected(op, [values(r, 33, kind) for r in range(3)], kind)
        check(np.concatenate([g[i] for g in got]), want, kind)
        i += 1
    assert len(table) == 8 * 4 + 2 + 4 * 5 + 2 * 3
    close(comms)


def test_sizes_around_the_slot(world):
    """Counts on both sides of the one-step and the one-slot limit, with results of numpy."""
    n = len(world)
    counts = (0, 1, host.SMALL // 4, host.SMALL // 4 + 1, host.SLOT // 4, host.SLOT // 4 + 3)

    def work(c):
        out = []
        for count in counts:
            x = asarray(np.arange(count * n, dtype=np.int32) * (c.rank + 1))
            part = asarray(np.arange(count, dtype=np.int32) + c.rank)
            out += [c.all_reduce(part).numpy(), c.all_gather(part).numpy(), c.reduce_scatter(x).numpy(), c.broadcast(part, n - 1).numpy()]
        return out

    got = ranks(world, work)
    for r in range(n):
        for i, count in enumerate(counts):
            base = np.arange(count, dtype=np.int32)
            reduce, gather, scatter, cast = got[r][4 * i:4 * i + 4]
            np.testing.assert_array_equal(reduce, base * n + sum(range(n)))
            np.testing.assert_array_equal(gather, np.concatenate([base + k for k in range(n)]))
            np.testing.assert_array_equal(scatter, (np.arange(count) + r * count) * sum(range(1, n + 1)))
            np.testing.assert_array_equal(cast, base + n - 1)


def test_sixteen_bits_accumulate_in_float32_in_rank_order():
    kind = BY_NAME["bfloat16"]
    parts = [np.array(v, ml_dtypes.bfloat16) for v in ([256, 1, 1], [1, 256, 1], [1, 1, -1])]
    out = np.empty(3, ml_dtypes.bfloat16)
    combine("sum", kind, parts, out)
    assert out.astype(np.float32).tolist() == [258, 258, 1]  # in bfloat16 256 + 1 + 1 is 256
    f = [np.array([v], np.float32) for v in (1e8, 1, -1e8)]
    out = np.empty(1, np.float32)
    combine("sum", BY_NAME["float32"], f, out)
    assert out[0] == (np.float32(1e8) + np.float32(1)) + np.float32(-1e8)
    combine("max", BY_NAME["float32"], [np.array([np.nan], np.float32), np.array([1], np.float32)], out)
    assert np.isnan(out[0])


def test_the_same_bits_in_every_run():
    def once():
        comms = Communicator.local(["cpu"] * 3, timeout_s=20)
        out = ranks(comms, lambda c: c.all_reduce(asarray(np.random.default_rng(c.rank).standard_normal(100_003).astype(np.float32))).numpy().tobytes())
        close(comms)
        return out
    a, b = once(), once()
    assert len({*a, *b}) == 1


def test_in_place_layouts_and_shapes(world):
    n = len(world)

    def work(c):
        x = asarray(np.full((4, 3), c.rank + 1.0, np.float32))
        assert c.all_reduce(x, out=x) is x and x.tolist()[0][0] == n * (n + 1) / 2
        y = asarray(np.arange(12, dtype=np.float32).reshape(3, 4) + c.rank)
        t = c.all_reduce(y.T, "max")  # packed
        assert t.shape == (4, 3) and t.tolist() == (np.arange(12).reshape(3, 4).T + n - 1).tolist()
        z = empty((4, 3))
        assert c.all_reduce(y, out=z.T) is not None and z.numpy().T.tolist() == (np.arange(12).reshape(3, 4) * n + sum(range(n))).tolist()
        gathered = asarray(np.zeros((n * 2, 3), np.float32))
        mine = gathered[2 * c.rank:2 * c.rank + 2]
        mine[...] = np.full((2, 3), c.rank, np.float32)
        c.all_gather(mine, out=gathered)  # in place, as in NCCL
        assert gathered.numpy()[:, 0].tolist() == [r for r in range(n) for _ in range(2)]
        assert c.all_gather(asarray(np.float32(c.rank))).tolist() == list(range(n))
        if n > 1:
            with pytest.raises(AliasError):
                c.all_gather(gathered[1:3], out=gathered)
        with pytest.raises(ShapeError):
            c.all_reduce(x, out=empty((5, 3)))
        with pytest.raises(DTypeError):
            c.all_reduce(x, out=empty((4, 3), "int32"))
        with pytest.raises(ArgumentError, match="root"):
            c.broadcast(x, root=n)
        with pytest.raises(ArgumentError, match="haian tensor"):
            c.all_reduce(np.zeros(3))
        with pytest.raises(ArgumentError, match="read-only"):
            c.broadcast(x, out=asarray(np.broadcast_to(np.float32(1), (4, 3)).copy()) if False else _readonly((4, 3)))
        with pytest.raises(AliasError):
            c.all_reduce(x, out=empty((1, 3)).expand(4, 3))
        return True

    assert all(ranks(world, work))


def _readonly(shape):
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return asarray(array)


def test_reductions_that_mean_nothing_are_refused():
    for op, name in (("sum", "bool"), ("avg", "int32"), ("max", "complex64"), ("prod", "bool")):
        with pytest.raises(DTypeError):
            check_reduction(op, BY_NAME[name])
    with pytest.raises(ArgumentError, match="one of sum"):
        check_reduction("mean", BY_NAME["float32"])


# ---- streams, messages, groups ---------------------------------------------------------------------------------------
def test_on_streams_it_is_queued_and_in_order():
    comms = Communicator.local(["cpu"] * 2, timeout_s=20)

    def work(c):
        s, seen = c.device.stream(), []
        gate = threading.Event()
        with s:
            s.host_func(lambda: gate.wait(10))
            x = asarray(np.full(8, c.rank + 1, np.int64))
            y = c.all_reduce(x)  # returns before it happens
            s.host_func(lambda: seen.append(y.tolist()))
            assert not s.query()
            gate.set()
        s.synchronize()
        c.check()
        s.close()
        return seen

    assert ranks(comms, work) == [[[3] * 8]] * 2
    close(comms)


def test_messages_and_groups(world):
    n = len(world)
    big = 200_000  # past what a socket buffers

    def work(c):
        x = asarray(np.full(big, c.rank, np.int64))
        y, small = empty(big, "int64"), empty((), "float32")
        after, before = (c.rank + 1) % n, (c.rank - 1) % n
        with c.group():
            c.send(x, after)
            c.send(asarray(np.float32(c.rank + 0.5)), after)
            c.recv(y, before)
            c.recv(small, before)
            total = c.all_reduce(asarray(np.int32(1)))
        with c.group():
            c.send(empty(0), after)
            c.recv(empty(0), before)
        assert (y.numpy() == before).all() and small.item() == before + 0.5 and total.item() == n
        if n > 1 and c.rank < 2:  # without a group: one sends, one receives
            strided = asarray(np.zeros((3, 2), np.float32)).T
            if c.rank == 0:
                c.send(asarray(np.arange(6, dtype=np.float32).reshape(2, 3)), 1)
            else:
                assert c.recv(strided, 0).tolist() == [[0, 1, 2], [3, 4, 5]]
        return True

    assert all(ranks(world, work))


def test_an_error_in_a_group_aborts():
    comms = Communicator.local(["cpu"] * 2, timeout_s=20)
    with pytest.raises(ZeroDivisionError), comms[0].group():
        comms[0].send(empty(1), 1)
        raise ZeroDivisionError
    with pytest.raises(Timeout, match="aborted"):
        comms[0].check()
    with pytest.raises(Timeout, match="rank 0 gave up"):
        comms[1].all_reduce(empty(1))
    close(comms)


# ---- what goes wrong between ranks -----------------------------------------------------------------------------------
@pytest.mark.parametrize("other, said", [
    (lambda c: c.all_reduce(empty(5)), "5 float32"), (lambda c: c.all_reduce(empty(4, "float64")), "4 float64"),
    (lambda c: c.all_reduce(empty(4), "max"), "all_reduce max"), (lambda c: c.all_gather(empty(4)), "all_gather of 4"),
], ids=["count", "dtype", "op", "call"])
def test_ranks_that_differ_are_named_and_all_die(other, said):
    comms = Communicator.local(["cpu"] * 3, timeout_s=20)
    start = time.monotonic()
    got = ranks(comms, lambda c: other(c) if c.rank == 1 else c.all_reduce(empty(4)), catch=True)
    assert time.monotonic() - start < 10  # seen, not timed out
    for e in got:
        assert isinstance(e, RanksDiffer if "ranks differ" in str(e) else Timeout) and said in str(e) and "4 float32" in str(e) and "rank 1" in str(e)
    for c in comms:
        with pytest.raises(Timeout):
            c.check()
        with pytest.raises(InvalidHandle, match="new communicator"):
            c.all_reduce(empty(4))
        assert "dead" in repr(c)
        c.close()
        c.close()
    comms = Communicator.local(["cpu"] * 2, timeout_s=20)  # the process goes on
    assert ranks(comms, lambda c: c.all_reduce(asarray(np.float32(1))).item()) == [2, 2]
    close(comms)


def test_messages_that_differ():
    comms = Communicator.local(["cpu"] * 2, timeout_s=5)
    got = ranks(comms, lambda c: c.send(empty(5), 1) if c.rank == 0 else c.recv(empty(4), 0), catch=True)
    assert isinstance(got[1], RanksDiffer) and "rank 0 sent 5 float32, rank 1 receives 4 float32" in str(got[1])
    with pytest.raises(Timeout, match="rank 1"):
        comms[0].check()
    close(comms)


def test_a_rank_that_does_not_come():
    comms = Communicator.local(["cpu"] * 3, timeout_s=0.3)
    got = ranks(comms[:2], lambda c: c.all_reduce(empty(4)), catch=True)
    for e in got:
        assert isinstance(e, Timeout) and "rank 2" in str(e) and "0.3 s" in str(e)
    close(comms)
    comms = Communicator.local(["cpu"] * 2, timeout_s=0.3)
    with pytest.raises(Timeout, match="rank 1 did not send"):
        comms[0].recv(empty(4), 1)
    close(comms)
    token = Communicator.unique_id()
    with pytest.raises(Timeout, match="rank 1, 2 did not come"):
        Communicator("cpu", 3, 0, token, timeout_s=0.3)
    with pytest.raises(Timeout, match="rank 0"):
        Communicator("cpu", 2, 1, token, timeout_s=0.3)


def test_abort_ends_a_call_that_waits():
    comms = Communicator.local(["cpu"] * 2, timeout_s=30)
    s = comms[0].device.stream()
    with s:
        comms[0].all_reduce(empty(4))
    time.sleep(0.05)
    start = time.monotonic()
    comms[0].abort()
    with pytest.raises(Timeout, match="aborted"):
        s.synchronize()
    with pytest.raises(Timeout, match="aborted"):
        comms[0].check()
    assert time.monotonic() - start < 10
    with pytest.raises(Timeout, match="rank 0"):
        comms[1].check()
    s.close()
    close(comms)


def test_a_rank_that_closes_is_no_error_until_it_is_needed():
    comms = Communicator.local(["cpu"] * 2, timeout_s=5)
    ranks(comms, lambda c: c.all_reduce(empty(4)))
    comms[1].close()
    comms[0].check()
    with pytest.raises(Timeout, match="rank 1 closed"):
        comms[0].all_reduce(empty(4))
    with pytest.raises(InvalidHandle, match="closed"):
        comms[1].all_reduce(empty(4))
    comms[0].close()


def test_what_comm_init_refuses():
    token = Communicator.unique_id()
    with pytest.raises(ArgumentError, match="rank 2 of 2"):
        Communicator("cpu", 2, 2, token)
    with pytest.raises(ArgumentError, match="not the host's"):
        Communicator("cpu", 2, 0, b"x" * 64, timeout_s=1)
    with pytest.raises(ArgumentError, match="another machine"):
        Communicator("cpu", 2, 0, token[:24] + bytes(16) + token[40:], timeout_s=1)
    with pytest.raises(ArgumentError, match="timeout_s"):
        Communicator("cpu", 1, 0, token, timeout_s=0)
    with pytest.raises(ArgumentError, match="at least one"):
        Communicator.local([])
    got = [None, None]

    def go(rank, worlds):
        try:
            got[rank] = Communicator("cpu", worlds[rank], rank, token, timeout_s=2)
        except Exception as e:  # noqa: BLE001 - looked at below
            got[rank] = e

    threads = [threading.Thread(target=go, args=(r, (2, 3))) for r in (0, 1)]
    [t.start() for t in threads]
    [t.join(20) for t in threads]
    assert all(isinstance(e, ArgumentError) and "ranks; give all ranks the same number" in str(e) for e in got), got


def _sockets(c):
    ranks_ = getattr(c._driver, "inner", c._driver)._handles.get(c._handle, host._Ranks)
    return [s for p in ranks_._peers for s in (p.steps, p.messages)]


def test_the_meeting_place_is_private_and_left_clean(tmp_path, monkeypatch):
    base = host._folder()
    assert base.stat().st_mode & 0o777 == 0o700
    comms = Communicator.local(["cpu"] * 3, timeout_s=20)
    token = Communicator.unique_id()
    assert len(token) <= 128
    assert len(_sockets(comms[0])) == 4 and all(not s.getsockname() or not os.path.exists(s.getsockname()) for s in _sockets(comms[0]))
    left, lock = host._room(base, "ab" * 16)  # as a rank killed while meeting leaves it
    os.close(lock)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(left / "0"))
    place, lock = host._room(base, "cd" * 16)
    assert not left.exists() and place.exists()
    host._sweep(base, "")
    assert place.exists()  # someone is in it
    os.close(lock)
    host._sweep(base, "")
    assert not place.exists()
    close(comms)
    wide = tmp_path / "haian"
    wide.mkdir(mode=0o755)
    wide.chmod(0o755)
    with pytest.raises(PermissionRefused, match="this user alone"):
        host._private(wide)


def test_an_id_removes_nothing(tmp_path, monkeypatch):
    """A made-up id and one cut short name folders that are the user's own: nothing is made or removed there."""
    mine = tmp_path / "victim"
    (mine / "thesis" / "chapters").mkdir(parents=True)
    mine.chmod(0o700)
    token = Communicator.unique_id()
    with tempfile.TemporaryDirectory(prefix="run", dir="/tmp") as short:  # as /run/user/1000: others keep folders there
        (Path(short) / "systemd" / "units").mkdir(parents=True)
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        cut = Communicator.unique_id()
        assert cut[40:] == f"{short}/haian".encode()
        for wrong in (token[:40] + os.fsencode(mine), cut[:-6], cut[:-1], cut + b"/x", token[:40], token[:40] + b".."):
            with pytest.raises(ArgumentError, match="where this user's ranks do not meet"):
                Communicator("cpu", 2, 0, wrong, timeout_s=0.1)
        assert sorted(os.listdir(short)) == ["haian", "systemd"] and (Path(short) / "systemd" / "units").exists()
    assert [p.name for p in mine.rglob("*")] == ["thesis", "chapters"]


def test_the_sweep_takes_only_what_ranks_made(tmp_path):
    base = tmp_path / "b"
    base.mkdir(mode=0o700)
    kept = []
    for name, files, mark in (("notes", (), True), ("ranks-" + "0" * 31, (), True), ("ranks-" + "1" * 32, (), False),
                              ("ranks-" + "2" * 32, ("letter.txt",), True), ("ranks-" + "3" * 32, ("0",), True), ("a" * 32, (), True)):
        (base / name).mkdir()
        for file in (*files, *([host._MARK] if mark else [])):
            (base / name / file).touch()
            kept.append(base / name / file)
        kept.append(base / name)
    (base / "elsewhere").mkdir()
    (base / "elsewhere" / host._MARK).touch()
    (base / ("ranks-" + "4" * 32)).symlink_to(base / "elsewhere")
    (base / ("ranks-" + "5" * 32)).mkdir()
    (base / ("ranks-" + "5" * 32) / host._MARK).touch()
    host._sweep(base, "")
    assert all(p.exists() for p in (*kept, base / "elsewhere" / host._MARK, base / ("ranks-" + "4" * 32)))
    assert not (base / ("ranks-" + "5" * 32)).exists()


def test_the_driver_refuses_what_no_communicator_has():
    """World, rank, root, peer, count and dtype out of range are one line each, and the communicator lives on."""
    driver = CpuDriver()
    driver.init()
    token = driver.comm_unique_id()
    for world, rank in ((0, 0), (-3, 0), (1, 5), (1, -1), (2, 2), ("2", 0), (1 << 40, 0)):
        with pytest.raises(ArgumentError, match="comm_init: (world|rank)"):
            driver.comm_init(0, world, rank, token)
    comm = driver.comm_init(0, 1, 0, token)
    a = np.arange(4, dtype=np.float32)
    at = a.ctypes.data
    for call in (lambda n, d: driver.comm_all_reduce(comm, at, at, n, d, "sum", 0), lambda n, d: driver.comm_all_gather(comm, at, at, n, d, 0),
                 lambda n, d: driver.comm_reduce_scatter(comm, at, at, n, d, "sum", 0), lambda n, d: driver.comm_broadcast(comm, at, at, n, d, 0, 0),
                 lambda n, d: driver.comm_send(comm, at, n, d, 0, 0), lambda n, d: driver.comm_recv(comm, at, n, d, 0, 0)):
        with pytest.raises(ArgumentError, match="with count -1; needs"):
            call(-1, "float32")
        with pytest.raises(ArgumentError, match="with dtype 'float33'; one of"):
            call(4, "float33")
    for call in (lambda r: driver.comm_broadcast(comm, at, at, 4, "float32", r, 0), lambda r: driver.comm_send(comm, at, 4, "float32", r, 0),
                 lambda r: driver.comm_recv(comm, at, 4, "float32", r, 0)):
        for rank in (-1, 1):
            with pytest.raises(ArgumentError, match="needs a rank from 0 to 0"):
                call(rank)
    driver.comm_all_reduce(comm, at, at, 4, "float32", "sum", 0)
    driver.comm_async_error(comm)
    driver.comm_destroy(comm)
    assert a.tolist() == [0, 1, 2, 3]


# ---- processes -------------------------------------------------------------------------------------------------------
def _process(rank, world, token, path):
    """A spawned rank: exchanges, then rank 1 dies and the others say what they saw."""
    import numpy as np
    from haian.hal import Communicator, asarray
    from haian.hal.errors import Timeout
    c = Communicator("cpu", world, rank, token, timeout_s=20)
    x = asarray(np.random.default_rng(rank).standard_normal(300_001).astype(np.float32))
    y = c.all_reduce(x)
    gathered = c.all_gather(asarray(np.arange(3, dtype=np.int16) + 10 * rank))
    other = empty(50_000, "float64")
    with c.group():
        c.send(asarray(np.full(50_000, rank, np.float64)), (rank + 1) % world)
        c.recv(other, (rank - 1) % world)
    np.savez(f"{path}/{rank}", reduced=y.numpy(), gathered=gathered.numpy(), other=other.numpy())
    c.all_reduce(asarray(np.zeros(1, np.float32)))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    try:
        c.all_reduce(x)
    except Timeout as e:
        Path(f"{path}/{rank}.txt").write_text(f"{time.monotonic() - start:.3f} {e}")
    c.close()


def test_processes_and_a_rank_that_is_killed(tmp_path):
    world = 3
    context = multiprocessing.get_context("spawn")
    token = Communicator.unique_id()
    made = [context.Process(target=_process, args=(r, world, token, str(tmp_path))) for r in range(world)]
    for p in made:
        p.start()
    for p in made:
        p.join(60)
    assert [p.exitcode for p in made] == [0, -signal.SIGKILL, 0]
    got = [np.load(tmp_path / f"{r}.npz") for r in range(world)]
    want = sum(np.random.default_rng(r).standard_normal(300_001).astype(np.float32) for r in range(world))
    for r in range(world):
        np.testing.assert_array_equal(got[r]["reduced"], want)  # float32, in rank order: exact
        assert got[r]["gathered"].tolist() == [10 * k + i for k in range(world) for i in range(3)]
        assert (got[r]["other"] == (r - 1) % world).all()
    for r in (0, 2):
        seconds, text = (tmp_path / f"{r}.txt").read_text().split(" ", 1)
        assert float(seconds) < 15 and "rank 1 died" in text
    assert not (host._folder() / f"ranks-{token[8:24].hex()}").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_of_fork_has_no_ranks():
    """The child's copies of the sockets are closed: otherwise a dead parent would look alive."""
    code = """
import os, sys, threading
import numpy as np
from haian.hal import Communicator, asarray
from haian.adapters.cpu.comm import _Ranks
comms = Communicator.local(["cpu"] * 2, timeout_s=5)
fds = {s.fileno() for c in comms for p in getattr(c._driver, "inner", c._driver)._handles.get(c._handle, _Ranks)._peers for s in (p.steps, p.messages)}
pid = os.fork()
if pid == 0:
    still = [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")]
    try:
        comms[0].all_reduce(asarray(np.zeros(1, np.float32)))
    except Exception as e:
        os._exit(3 if type(e).__name__ == "InvalidHandle" and not still else 4)
    os._exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
out = []
t = [threading.Thread(target=lambda c=c: out.append(c.all_reduce(asarray(np.ones(1, np.float32))).item())) for c in comms]
[x.start() for x in t]; [x.join() for x in t]
assert out == [2, 2]
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


# ---- staged through the host -----------------------------------------------------------------------------------------
def test_a_driver_without_communicators_is_staged_and_says_so():
    devices = registered(2)
    comms = Communicator.local(devices, timeout_s=20)
    assert all(c.staged for c in comms)

    def work(c):
        x = asarray(np.arange(6, dtype=np.float32) + c.rank, device=c.device)
        total = c.all_reduce(x)
        assert total.device == c.device
        assert c.all_reduce(x, "max", out=x) is x
        y = empty(6, "float32", c.device)
        with c.group():
            c.send(total, 1 - c.rank)
            c.recv(y, 1 - c.rank)
        with pytest.raises(ArgumentError, match="use .to first"):
            c.all_reduce(asarray(np.zeros(2, np.float32)))
        return total.tolist(), x.tolist(), y.tolist()

    for got in ranks(comms, work):
        assert got == ([2 * i + 1 for i in range(6)], [i + 1 for i in range(6)], [2 * i + 1 for i in range(6)])
    assert "staged through the host (4 calls)" in repr(comms[0]) and comms[0].staged_calls == 4
    close(comms)


# ---- vendors' tables over stand-ins ----------------------------------------------------------------------------------
BKCL_HEADER = """
/* the stand-in's numbers */
typedef enum { BKCL_FLOAT = 0, BKCL_FLOAT16, BKCL_FLOAT64, BKCL_BFLOAT16, BKCL_INT32, BKCL_INT64 = 0x5, // hexadecimal
               BKCL_UINT8 } BKCLDataType;
enum BKCLOp { BKCL_ADD, BKCL_PRODUCT, BKCL_MAX, BKCL_MIN, BKCL_AVG };
"""
STANDINS = {  # table -> how tests/standins/xccl.c is compiled
    "nccl": ("STANDIN_NCCL", "NAME(x)=nccl##x"), "rccl": ("STANDIN_NCCL", "NAME(x)=nccl##x"), "eccl": ("STANDIN_NCCL", "NAME(x)=eccl##x"),
    "mccl_musa": ("STANDIN_NCCL", "NAME(x)=mccl##x", "WITNESS=mcclCommMuDevice"),
    "mccl_maca": ("STANDIN_NCCL", "NAME(x)=mccl##x", "WITNESS=mcclCommMcDevice"),
    "pccl": ("STANDIN_NCCL", "NAME(x)=pccl##x", "BF16=8"), "hccl": ("STANDIN_HCCL",), "cncl": ("STANDIN_CNCL",), "bkcl": ("STANDIN_BKCL",),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Path of a stand-in library, compiled once a module."""
    folder, made = tmp_path_factory.mktemp("xccl"), {}
    (folder / "bkcl.h").write_text(BKCL_HEADER)

    def build(name):
        if name not in made:
            made[name] = str(folder / f"lib{name}.so")
            subprocess.run([CC, "-std=gnu11", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", *(f"-D{d}" for d in STANDINS[name]),
                            str(Path(__file__).parent / "standins" / "xccl.c"), "-o", made[name], "-lrt"], check=True)
        return made[name]

    build.header = str(folder / "bkcl.h")
    return build


_names = itertools.count()


class StandinDriver(xccl.VendorCommunicators, CpuDriver):
    """Host memory, a vendor's collectives: what an adapter's driver does with the mix-in."""

    def __init__(self, library):
        super().__init__()
        self.name = f"standin{next(_names)}"
        self._library = library
        self.entered = set()

    def _comm_enter(self, device):
        self.entered.add(device)

    def _comm_stream(self, stream):
        return stream  # the stand-ins ignore it


def _standin(built, name, ranks_=2, **options):
    library = xccl.Library(xccl.LIBRARIES[name], built(name), built.header if name == "bkcl" else None)
    device = load_adapter(StandinDriver(library))[0]
    return library, Communicator.local([device] * ranks_, timeout_s=options.get("timeout_s", 20))


@needs_cc
@pytest.mark.parametrize("name", list(STANDINS))
def test_tables_run_their_libraries(built, name):
    """Stand-in result: symbols, argument orders and numbers fit a library that was written from the same public facts."""
    library, comms = _standin(built, name)
    device = comms[0].device
    assert not comms[0].staged and device.driver.inner.entered == {0}
    kinds = [k for k in ("float32", "bfloat16", "int32", "int64", "float64") if k in library.table.dtypes]
    assert ("float64" in kinds) == (name not in ("pccl", "cncl"))

    def work(c):
        out = []
        for kind, count in itertools.product(kinds, COUNTS):
            d = BY_NAME[kind]
            x = asarray(values(c.rank, count, d), device=device)
            out += [c.all_reduce(x, op).numpy() for op in library.table.reductions if d.kind in REDUCTIONS[op]]
            out.append(c.all_gather(x).numpy())
            out.append(c.reduce_scatter(asarray(values(c.rank, 2 * count, d), device=device)).numpy())
            out.append(c.broadcast(x, root=1).numpy())
            y = empty(count, kind, device)
            with c.group():
                c.send(x, 1 - c.rank)
                c.recv(y, 1 - c.rank)
            out.append(y.numpy())
        flags = asarray(np.array([True, False, c.rank == 1]), device=device)
        out.append(c.all_gather(asarray(np.arange(3) + 1j * c.rank, device=device)).numpy())  # moved as a narrower type
        if "uint8" in library.table.dtypes:
            out.append(c.all_reduce(flags, "max").numpy())
        c.check()
        return out

    got = ranks(comms, work)
    for rank in (0, 1):
        it = iter(got[rank])
        for kind, count in itertools.product(kinds, COUNTS):
            d = BY_NAME[kind]
            parts = [values(r, count, d) for r in (0, 1)]
            for op in library.table.reductions:
                if d.kind in REDUCTIONS[op]:
                    check(next(it), expected(op, parts, d), d)
            np.testing.assert_array_equal(next(it), np.concatenate(parts))
            check(next(it), expected("sum", [values(r, 2 * count, d) for r in (0, 1)], d)[rank * count:(rank + 1) * count], d)
            np.testing.assert_array_equal(next(it), parts[1])
            np.testing.assert_array_equal(next(it), parts[1 - rank])
        assert next(it).tolist() == [0, 1, 2, 1j, 1 + 1j, 2 + 1j]
        assert next(it).tolist() == [True, False, True]
        assert next(it, None) is None
    if "avg" not in library.table.reductions:
        with pytest.raises(Unsupported, match="has no avg"):
            comms[0].all_reduce(empty(1, "float32", device), "avg")
        comms[0].check()  # refused before it was queued: nothing is lost
    close(comms)


@needs_cc
@pytest.mark.parametrize("name", ["nccl", "cncl", "bkcl"])
def test_a_library_that_waits_for_ever_is_aborted(built, name):
    """The watch above the driver: the rank alone gets Timeout within its limit, the other sees the abort."""
    _, comms = _standin(built, name, timeout_s=0.4)
    start = time.monotonic()
    with pytest.raises(Timeout, match="all_reduce of 4 float32 not finished after 0.4 s"):
        comms[0].all_reduce(empty(4, "float32", comms[0].device))
    assert time.monotonic() - start < 10
    with pytest.raises(InvalidHandle, match="dead"):
        comms[0].all_reduce(empty(4, "float32", comms[0].device))
    with pytest.raises(InternalError if name == "bkcl" else Timeout):  # what BKCL's results mean is in no public text
        comms[1].all_reduce(empty(4, "float32", comms[0].device))
    close(comms)


@needs_cc
def test_it_joins_a_vendors_runtime_table(built):
    """Mixed into a TableDriver: its current device and its streams' pointers are used.  One rank and no elements, since one
    stand-in cannot reach the other's memory."""
    from haian.adapters.hip import HipDriver
    from standins import build

    class Joined(HipDriver):
        collectives = replace(xccl.RCCL, libraries=(built("rccl"),))

    driver = Joined(str(build("hip")))
    assert driver.device_count() and driver.has_collectives()
    stream = driver.stream_create(1)
    comm = driver.comm_init(1, 1, 0, driver.comm_unique_id())
    seen = []
    library = driver._load()
    original = library._calls["all_reduce"]
    library._calls["all_reduce"] = (lambda *a: seen.append(int(library.ffi.cast("uintptr_t", a[-1]))) or original[0](*a), original[1])
    driver.comm_all_reduce(comm, 0, 0, 0, "float32", "sum", stream)
    assert seen == [driver.native(stream)] and seen[0] not in (0, stream)
    driver.comm_async_error(comm)
    driver.comm_destroy(comm)
    with pytest.raises(InvalidHandle):
        driver.comm_async_error(comm)
    driver.stream_destroy(stream)
    driver.fini()


@needs_cc
def test_libraries_are_told_apart_and_missing_ones_are_named(built, tmp_path, monkeypatch):
    musa, maca = built("mccl_musa"), built("mccl_maca")
    table = replace(xccl.MCCL_MACA, libraries=("$NO_SUCH_ROOT_HERE/libmccl.so", musa, maca))
    assert xccl.Library(table).path == maca
    with pytest.raises(EnvironmentMissing, match="another vendor's"):
        xccl.Library(xccl.MCCL_MACA, musa)
    with pytest.raises(EnvironmentMissing, match="lacks HcclGetRootInfo"):
        xccl.Library(xccl.HCCL, musa)
    with pytest.raises(EnvironmentMissing, match="no library"):
        xccl.Library(replace(xccl.NCCL, libraries=(str(tmp_path / "libnccl.so"),)))
    with pytest.raises(EnvironmentMissing, match="needs the numbers of its header"):
        xccl.Library(xccl.BKCL, built("bkcl"), str(tmp_path / "none.h"))
    monkeypatch.setenv("XCCL_TOOLKIT_ROOT", str(tmp_path))
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "bkcl.h").write_text(BKCL_HEADER)
    assert xccl.Library(xccl.BKCL, built("bkcl")).table.dtypes["int64"] == 5
    driver = xccl.VendorCommunicators()
    assert not driver.has_collectives() and "known for this vendor" in str(driver._library_error)
    driver = xccl.VendorCommunicators()
    driver.collectives = replace(xccl.PCCL, libraries=(built("pccl"),))
    assert driver.has_collectives() and len(driver.comm_unique_id()) == 128
    with pytest.raises(InvalidHandle, match="not alive"):
        driver.comm_abort(1)
    library = xccl.Library(xccl.HCCL, built("hccl"))
    assert len(library.unique_id()) == 4108
    with pytest.raises(ArgumentError, match="4108"):
        library.init(0, 1, 0, bytes(128))


def test_tables_are_complete():
    for name, table in xccl.LIBRARIES.items():
        assert set(xccl._REQUIRED) <= set(table.calls), name
        for _, order in table.calls.values():
            assert set(order.split()) <= set(xccl._TYPES), name
        assert set(table.dtypes) <= set(BY_NAME) and set(table.reductions) <= set(REDUCTIONS), name
        assert len(set(table.dtypes.values())) == len(table.dtypes) and table.note, name
    assert xccl.enumerators("enum { A, B = 3, C, D = B, E }; enum x { F = 1 << 2, G };") == {"A": 0, "B": 3, "C": 4, "D": 3, "E": 4}


# ---- MPI -------------------------------------------------------------------------------------------------------------
MPI_RANK = """
import sys, time
import numpy as np
from haian.hal import Communicator, asarray, empty
from haian.hal.errors import Timeout
c = Communicator.mpi(timeout_s=5)
x = asarray((np.arange(7) + c.rank).astype("float32"))
assert c.all_reduce(x).tolist() == [c.world * i + sum(range(c.world)) for i in range(7)]
assert c.all_gather(asarray(np.int16(c.rank))).tolist() == list(range(c.world))
assert c.reduce_scatter(asarray(np.arange(2 * c.world, dtype=np.int64)), "max").tolist() == [2 * c.rank, 2 * c.rank + 1]
assert c.broadcast(x, 1).tolist() == [i + 1 for i in range(7)]
assert c.all_reduce(empty(0)).shape == (0,)
y = empty(300_000)
with c.group():
    c.send(asarray(np.full(300_000, c.rank, np.float32)), (c.rank + 1) % c.world)
    c.recv(y, (c.rank - 1) % c.world)
assert (y.numpy() == (c.rank - 1) % c.world).all()
h = c.all_reduce(asarray(np.array([0.1, 0.2]).astype("float16")), out=empty(2, "float16"))
print("bits", c.rank, h.numpy().tobytes().hex(), flush=True)
try:
    c.all_reduce(empty(3 + c.rank))
except Timeout as e:
    assert "ranks differ" in str(e)
    print("differ", c.rank, flush=True)
"""


def test_over_mpi(tmp_path):
    if shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])) is None:
        pytest.skip("mpirun is not installed")
    pytest.importorskip("mpi4py", reason="mpi4py is not installed (extra mpi)")
    script = tmp_path / "rank.py"
    script.write_text(MPI_RANK)
    mpirun = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    done = subprocess.run([mpirun, "-n", "2", sys.executable, str(script)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert len({line.split()[2] for line in lines if line.startswith("bits")}) == 1 and sum(line.startswith("differ") for line in lines) == 2


def test_mpi_says_what_is_missing():
    if "mpi4py" in sys.modules or __import__("importlib.util", fromlist=["util"]).find_spec("mpi4py"):
        pytest.skip("mpi4py is installed")
    with pytest.raises(EnvironmentMissing, match="haian\\[mpi\\]"):
        Communicator.mpi()
