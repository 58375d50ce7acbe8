"""Checks 1 to 9: an adapter loads, says who it is, speaks the ABI, ends and starts again.

Those about the C table (2, 3, 4) are not offered by drivers in Python; 1 and 5 check the same rule there.
"""
from __future__ import annotations

import os
import re
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...hal.c_driver import _CALLS
from ...hal.driver import DEVICE_TO_HOST, GROUPS, HOST_TO_DEVICE, Copy, Driver
from ...hal.errors import HaianError, InternalError
from ...hal.registry import Registry
from .check import NotOffered, Subject, check, host, of_name, require

_FORK_S = 5.0  # the child of a fork must have answered
_LOAD_S = 3.0  # processor seconds that loading may take; CPU and sim take 0.05
_CYCLES = 20
_SETTLE_S = 3.0  # threads may need a moment to end
_GROWTH_BYTES = 8 << 20  # resident growth over the cycles that still counts as noise of Python's own heap


def _table_only(s: Subject) -> Any:
    """cffi's view of the .so."""
    if not s.path:
        raise NotOffered("a driver in Python has no C table")
    return s.raw


def _host(ffi: Any, size: int, major: int, nbytes: int = 256) -> tuple[Any, Any]:
    """(keeps it alive, hal_host *) that says it has ``size`` bytes; what lies behind is no valid pointer."""
    memory = ffi.new("char[]", b"\x01" * nbytes)
    found = ffi.cast("hal_host *", memory)
    found.struct_size, found.abi_major, found.abi_minor, found.flags = size, major, 0, 0
    if size >= ffi.sizeof("hal_host"):
        found.log, found.user = ffi.NULL, ffi.NULL
    return memory, found


@check(1, "identity", "C", validation="off")
def identity(s: Subject) -> None:
    """Name, vendor and version are there; the symbol gives the same table every time."""
    for field in ("name", "vendor", "version"):
        value = getattr(s.raw, field)
        require(isinstance(value, str) and value.strip(), f"{field} is {value!r}; needs a text that is not empty")
    require(re.fullmatch(r"[a-z][a-z0-9_]*", s.raw.name), f"name {s.raw.name!r}; needs a lower-case word such as 'mychip'")
    if s.path:
        raw = _table_only(s)
        kept, found = _host(raw.ffi, raw.ffi.sizeof("hal_host"), raw.table.abi_major)
        again = [raw.lib.hal_get_adapter(found) for _ in range(2)]
        require(again[0] != raw.ffi.NULL and again[0] == again[1] == raw.table, f"hal_get_adapter gave {again}, the first time {raw.table}; "
                "needs one static table")
        del kept
    else:
        other = s.fresh(validated=False)
        same = (other.name, other.vendor, other.version) == (s.raw.name, s.raw.vendor, s.raw.version)
        require(same, f"another object of the adapter says {other.name} {other.vendor} {other.version}")


@check(2, "abi_major", "C", exempt=True)
def abi_major(s: Subject) -> None:
    """A host of another ABI major gets NULL, and the adapter still works."""
    raw = _table_only(s)
    for major in (0, raw.table.abi_major + 1, 2**32 - 1):
        kept, found = _host(raw.ffi, raw.ffi.sizeof("hal_host"), major)
        require(raw.lib.hal_get_adapter(found) == raw.ffi.NULL, f"hal_get_adapter accepted a host of ABI {major}; needs NULL")
        del kept
    require(s.driver.device_count() == s.count, "device_count changed after a refused host")


@check(3, "host_sizes", "C", validation="off", exempt=True)
def host_sizes(s: Subject) -> None:
    """An older, smaller host and a newer, larger one are accepted; nothing behind struct_size is used."""
    raw = _table_only(s)
    ffi = raw.ffi
    for size in (ffi.offsetof("hal_host", "log"), ffi.offsetof("hal_host", "user"), ffi.sizeof("hal_host") + 8, 256):
        kept, found = _host(ffi, size, raw.table.abi_major)
        table = raw.lib.hal_get_adapter(found)
        require(table == raw.table, f"a host of {size} bytes got {table}; needs the table, whatever the size")
        require(s.driver.device_count() == s.count, f"device_count changed after a host of {size} bytes")
        del kept
    kept, found = _host(ffi, ffi.sizeof("hal_host"), raw.table.abi_major)
    raw.lib.hal_get_adapter(found)  # an adapter may keep the host: leave it one that stays valid
    _hosts.append(kept)


_hosts: list[Any] = []


@check(4, "output_sizes", "C", validation="off", exempt=True)
def output_sizes(s: Subject) -> None:
    """Output structs are filled to the caller's size, and bytes behind it are untouched."""
    raw = _table_only(s)
    ffi, table = raw.ffi, raw.table
    address = s.alloc(64)
    calls: dict[str, Callable[[Any], int]] = {"hal_props": lambda p: table.core.props(s.device, p)}
    if s.offers("ptr_info"):
        calls["hal_ptr_info"] = lambda p: table.mem.ptr_info(s.device, address, p)
    if s.offers("telemetry"):
        calls["hal_telemetry"] = lambda p: table.telemetry.sample(s.device, p)
    for kind, call in calls.items():
        whole = ffi.sizeof(kind)
        full = _filled(ffi, kind, whole, call)
        for size in (*range(8, whole + 1, 4), whole + 32):
            seen = _filled(ffi, kind, size, call)
            require(seen[size:] == b"\xa5" * (len(seen) - size), f"{kind} of struct_size {size}: bytes behind it were written")
            if kind != "hal_telemetry":  # sensors move between two calls
                end = min(size, whole)
                require(seen[4:end] == full[4:end], f"{kind} of struct_size {size}: its first {end} bytes differ from those of a full call")


def _filled(ffi: Any, kind: str, size: int, call: Callable[[Any], int]) -> bytes:
    nbytes = max(size, ffi.sizeof(kind)) + 64
    memory = ffi.new("char[]", b"\xa5" * nbytes)
    out = ffi.cast(f"{kind} *", memory)
    out.struct_size = size
    status = call(out)
    require(status == 0, f"{kind} of struct_size {size}: status {status}; another size is no reason to refuse")
    return bytes(ffi.buffer(memory, nbytes))


@check(5, "groups_whole", "C", validation="off")
def groups_whole(s: Subject) -> None:
    """Every required function is there, and every optional group is there whole or not at all."""
    if s.path:
        raw = _table_only(s)
        has = {"core": ("init", "fini", "device_count", "props", "sync", "reset", "last_error"), "mem": ("alloc", "free", "copy")}
        lacking = [f"{g}.{f}" for g, names in has.items() for f in names if (g, f) not in raw._functions]
        present = {name for name in _methods() if _CALLS[name] in raw._functions}  # one by one: a group that is not whole is not offered
    else:
        required = ("device_count", "props", "sync", "reset", "alloc", "free", "copy")
        lacking = [name for name in required if not _overridden(s.raw, name)]
        present = {name for name in _methods() if _overridden(s.raw, name)}
    require(not lacking, f"required and absent: {', '.join(lacking)}")
    for group, names in GROUPS.items():
        own = [n for n in names if not n.endswith("?")]
        missing = [n for n in own if n not in present]
        some = [n.rstrip("?") for n in names if n.rstrip("?") in present]
        if s.path and group == "pinned":
            continue  # a kind of allocation in C, not a function
        require(not (some and missing), f"group {group} has {', '.join(some)} but lacks {', '.join(missing)}; all or none")


def _methods() -> list[str]:
    return [name.rstrip("?") for names in GROUPS.values() for name in names]


def _overridden(driver: Driver, name: str) -> bool:
    found = getattr(driver, name, None)
    return found is not None and getattr(found, "__func__", found) is not getattr(Driver, name)


# ---- begin and end --------------------------------------------------------------------------------------------------------
@check(6, "init_fini", "C", validation="off", exempt=True)
def init_fini(s: Subject) -> None:
    """Twenty rounds of init, work, fini leave no file, thread or memory behind."""
    if s.caps.init_once:
        raise NotOffered("declared: the runtime starts once in a process")
    grown = s.elsewhere(_rounds, s.device) if s.path else _rounds(s.factory, s.arguments, s.device)
    require(not grown, f"{_CYCLES} rounds of init and fini: {grown}")


def _rounds(factory: Callable[..., Driver], arguments: tuple, device: int) -> str:
    """What grew, "" for nothing."""
    driver = factory(*arguments)

    def one() -> None:
        driver.init()
        driver.device_count()
        address = driver.alloc(device, 1 << 16)
        data = np.arange(256, dtype=np.uint8)
        driver.copy(device, Copy(HOST_TO_DEVICE, address, host(data), 256))
        driver.free(device, address)
        driver.fini()

    for _ in range(3):
        one()
    before = _resources()
    for _ in range(_CYCLES):
        one()
    end = time.monotonic() + _SETTLE_S
    while True:
        after = _resources()
        grown = [f"{after[k] - before[k]} {k} more" for k in ("files", "threads") if after[k] > before[k]]
        if after["bytes"] - before["bytes"] > _GROWTH_BYTES:
            grown.append(f"{after['bytes'] - before['bytes']} resident bytes more")
        if not grown or time.monotonic() > end:
            return ", ".join(grown)
        time.sleep(0.02)


def _resources() -> dict[str, int]:
    """Open files, threads and resident bytes of this process; 0 where the system does not say (no /proc)."""
    try:
        with open("/proc/self/statm") as f:
            pages = int(f.read().split()[1])
        return {"files": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task")),
                "bytes": pages * os.sysconf("SC_PAGE_SIZE")}
    except OSError:
        return {"files": 0, "threads": threading.active_count(), "bytes": 0}


@check(7, "load_is_idle", "C", validation="off")
def load_is_idle(s: Subject) -> None:
    """Loading opens no device and takes little time: the chip is first touched by init or device_count."""
    try:
        seconds, opened = s.elsewhere(_load)
    except NotOffered:  # a class of this process only
        seconds, opened = _load(s.factory, s.arguments)
    require(not opened, f"loading opened {', '.join(opened)}; do device work in init or device_count")
    require(seconds < _LOAD_S, f"loading took {seconds:.1f} s of processor time; needs less than {_LOAD_S:g}")


def _load(factory: Callable[..., Driver], arguments: tuple) -> tuple[float, list[str]]:
    """(processor seconds, device files opened) of making a driver."""
    before, start = _device_files(), time.process_time()
    driver = factory(*arguments)
    seconds = time.process_time() - start
    opened = sorted(_device_files() - before)
    del driver
    return seconds, opened


def _device_files() -> set[str]:
    """Files under /dev that this process has open, without those every process uses."""
    found = set()
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the descriptor of the listing itself
        if path.startswith("/dev/") and not path.startswith(("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/dev/tty", "/dev/pts", "/dev/shm")):
            found.add(path)
    return found


# ---- side by side -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Point:
    """As much of an entry point as the registry reads."""

    name: str
    load: Callable[[], object]
    value: str = "conformance"
    dist: None = None


def _broken() -> Driver:
    raise InternalError("this plugin is broken on purpose")


@check(8, "side_by_side", "C", validation="off")
def side_by_side(s: Subject) -> None:
    """Two adapters work at once, and a plugin that fails to load stops neither."""
    second, device = s.second()
    mine, theirs = s.alloc(4096), second.alloc(device, 4096)
    a, b = s.pattern(4096), s.pattern(4096)
    s.upload(mine, a)
    s.upload(theirs, b, device=device, driver=second)
    seen = s.download(mine, 4096), s.download(theirs, 4096, device=device, driver=second)
    second.free(device, theirs)
    require((seen[0] == a).all() and (seen[1] == b).all(), f"bytes of {s.raw.name} and {second.name} got mixed up")
    registry = Registry(lambda: [_Point("cpu", lambda: of_name("cpu")), _Point("broken", lambda: _broken)])  # type: ignore[list-item,return-value]
    registry.devices()
    try:
        registry.load_adapter(_broken)
    except InternalError:
        pass
    else:
        require(False, "a plugin that raises was loaded")
    if not any(r.status == "loaded" and r.name == s.raw.name for r in registry.records()):
        registry.load_adapter((lambda: s.raw) if s.path else lambda: s.fresh(validated=False))
    with suppress(HaianError):  # no adapter of this name is installed; a vendor may have two ways to one chip
        other = of_name(s.raw.name)
        same = isinstance(s.raw, type(other)) and (not s.path or str(getattr(other, "path", s.path)) == s.path)
        require(same or other.vendor == s.raw.vendor, f"the name {s.raw.name!r} is that of the adapter {type(other).__name__} of {other.vendor!r}; needs a name of its own")
    names = [d.name for d in registry.devices()]
    require(f"{s.raw.name}:{s.device}" in names, f"after a broken plugin there are {', '.join(names)}; needs {s.raw.name}:{s.device}")


@check(9, "fork", "C", validation="off")
def fork(s: Subject) -> None:
    """After a fork the child works or gets a clean error; it does not hang or crash."""
    if not hasattr(os, "fork"):
        raise NotOffered("the system has no fork")
    data, address = s.pattern(256), s.alloc(256)
    s.upload(address, data)
    streams = []
    if s.offers("stream"):
        streams.append(s.stream())  # with its worker, if it has one: the child has none
        s.upload(address, data, streams[0])
        s.driver.stream_sync(streams[0])
    out = np.zeros(256, np.uint8)

    def child() -> str:
        try:
            s.driver.device_count()
            for stream in streams:
                s.driver.copy(s.device, Copy(DEVICE_TO_HOST, host(out), address, 256), stream)
                s.driver.stream_sync(stream)
            s.driver.copy(s.device, Copy(DEVICE_TO_HOST, host(out), address, 256))
            mine = s.driver.alloc(s.device, 256)
            s.driver.free(s.device, mine)
        except HaianError as error:
            return f"clean: {type(error).__name__}"
        return "works" if (out == data).all() else "wrong bytes"

    says, writes = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads: that is the case
        pid = os.fork()
    if pid == 0:
        try:
            os.write(writes, child().encode())
        finally:
            os._exit(0)
    os.close(writes)
    try:
        ready, _, _ = select.select([says], [], [], _FORK_S)
        answer = os.read(says, 200).decode() if ready else ""
        if not ready:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(says)
        _, status = os.waitpid(pid, 0)
    require(ready, f"the child of a fork hung for {_FORK_S:g} s; raise an error there instead")
    died = f"it died of signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"it ended with {status >> 8}"
    require(answer.startswith(("clean", "works")), f"the child of a fork: {answer or died}; needs work done right or a HaianError")
    require((s.download(address, 256) == data).all(), "the parent's memory changed after a fork")
