"""Checks 58 to 60: failures that come late, reset, and the loss of a device."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...hal.driver import DEVICE_TO_HOST, Copy, Driver, Launch
from ...hal.errors import DeviceLost, HaianError, InternalError, InvalidHandle, Unsupported
from .check import NotOffered, Subject, check, host, require
from .images import image_of
from .stream import holds, start, sync_within

_N = 4096
_LARGE = 32 << 20  # bytes that a reset must give back; a runtime may keep half as much of its own, for streams and modules


@check(58, "async_failure", "S", needs=("stream",))
def async_failure(s: Subject) -> None:
    """What fails on a stream is raised once, by that stream, and harms no other."""
    if s.caps.fatal_errors:
        said = s.elsewhere(_fatal, s.device)
        if said == "nothing to fail":
            raise NotOffered("no kernel that leaves its memory for this image format")
        require(not said, said)
        return
    bad, good, address = s.stream(), s.stream(), s.alloc(_N)
    for deliver in ("sync", "query", "sync after event_sync"):
        wanted = _fail(s, bad)
        if deliver == "sync after event_sync":
            if not s.offers("event"):
                break
            event = s.event()
            s.driver.event_record(event, bad)
            said = _raised(lambda: s.driver.event_sync(event, 5_000_000_000))  # noqa: B023 - called in this round
            require(said is None, f"event_sync raised {said}; a failure is delivered by its stream's sync or query")
        s.fill(address, 3, _N, good)
        sync_within(s, good, "another stream than the one that failed")
        if deliver == "query":
            s.until(lambda: _raised(lambda: s.driver.stream_query(bad)) is not None, "stream_query raises the failure of its stream")
        else:
            found = _raised(lambda: s.driver.stream_sync(bad))
            if found is None and wanted is InternalError:
                raise NotOffered("nothing that fails late: host functions that raise are not the stream's failure here, and there are no kernels")
            require(found is not None, "stream_sync did not raise the failure of its stream")
            require(isinstance(found, wanted), f"stream_sync raised {type(found).__name__}: {found}; needs {wanted.__name__}")
            require(str(found), "the failure came without a message")
        again = _raised(lambda: s.driver.stream_sync(bad)) or _raised(lambda: s.driver.stream_query(bad))
        require(again is None, f"the failure was raised twice, the second time as {again}")
        require(_raised(lambda: s.driver.stream_sync(good)) is None, "another stream raised the failure too")
        require(holds(s.download(address, _N), 3), "work of another stream did not happen beside a failure")
        s.fill(address, 4, _N, bad)
        sync_within(s, bad, "a stream whose failure was raised")
        require(holds(s.download(address, _N), 4), "a stream does not work after its failure was raised")


def _raised(call: Callable[[], object]) -> HaianError | None:
    try:
        call()
    except HaianError as error:
        return error
    return None


def _gave(found: HaianError | None) -> str:
    return "succeeded" if found is None else f"raised {type(found).__name__}: {found}"


def _fail(s: Subject, stream: int) -> type[HaianError]:
    """Queues something that fails when it runs; the error it should come as."""
    try:
        image = image_of(s.caps, s.offers("module"))
    except NotOffered:
        image = None
    if image is not None and image.leave:
        module = s.driver.module_load(s.device, image.data, image.format)
        kernel = s.driver.get_kernel(module, image.leave)
        s.driver.launch(s.device, Launch(kernel, (1, 1, 1), 1, 0, [("*fp32", s.alloc(64))]), stream)
        return HaianError
    if not s.offers("host_func"):
        raise NotOffered("nothing that fails late: no host functions, and no kernel that leaves its memory")

    def fail() -> None:
        raise ValueError("a host function that fails on purpose")

    try:
        s.driver.host_func(stream, fail)
    except ValueError:
        raise NotOffered("work runs as it is queued: nothing fails late") from None
    return InternalError


def _fatal(factory: Callable[..., Driver], arguments: tuple, device: int) -> str:
    """In a process of its own: a failure that loses the device.  "" or what is wrong."""
    driver = factory(*arguments)
    driver.init()
    try:
        image = image_of(driver.props(device), True)
    except NotOffered:
        return "nothing to fail"
    if not image.leave:
        return "nothing to fail"
    stream = driver.stream_create(device)
    kernel = driver.get_kernel(driver.module_load(device, image.data, image.format), image.leave)
    driver.launch(device, Launch(kernel, (1, 1, 1), 1, 0, [("*fp32", 4096)]), stream)
    for what, call in (("stream_sync", lambda: driver.stream_sync(stream)), ("the next call", lambda: driver.sync(device))):
        found = _raised(call)
        if not isinstance(found, DeviceLost):
            return f"after a fatal failure {what} {_gave(found)}; needs DeviceLost until reset"
    return _renewed(driver, device)


def _renewed(driver: Driver, device: int) -> str:
    """"" where reset brings a lost device back, or says that it cannot."""
    found = _raised(lambda: driver.reset(device))
    if isinstance(found, (DeviceLost, Unsupported)):
        return ""
    if found is not None:
        return f"reset of a lost device raised {type(found).__name__}: {found}; needs success, DeviceLost or Unsupported"
    return _works(driver, device)


def _works(driver: Driver, device: int) -> str:
    """"" where memory, copies and streams of a device work."""
    data, out = np.arange(_N, dtype=np.uint32).astype(np.uint8), np.zeros(_N, np.uint8)
    try:
        address = driver.alloc(device, _N)
        driver.copy(device, Copy("h2d", address, host(data), _N))
        driver.copy(device, Copy(DEVICE_TO_HOST, host(out), address, _N))
        driver.free(device, address)
        driver.sync(device)
    except HaianError as error:
        return f"after reset, work raised {type(error).__name__}: {error}"
    return "" if (out == data).all() else "after reset, a round trip gave wrong bytes"


@check(59, "reset", "S")
def reset(s: Subject) -> None:
    """After reset all handles and addresses are dead, and the device works."""
    driver: Any = s.fresh()
    device = s.device
    other = _Bystander(s, driver) if s.count > 1 else None
    idle = _free_bytes(s, driver)
    address = driver.alloc(device, _N)
    old: list[tuple[str, Callable[[], object]]] = []
    if s.offers("stream"):
        stream = driver.stream_create(device)
        old += [("stream_query", lambda: driver.stream_query(stream)), ("stream_sync", lambda: driver.stream_sync(stream)),
                ("stream_destroy", lambda: driver.stream_destroy(stream))]
    if s.offers("event"):
        event = driver.event_create(device)
        if s.offers("stream"):
            driver.event_record(event, stream)
            driver.stream_sync(stream)
        old += [("event_query", lambda: driver.event_query(event)), ("event_sync", lambda: driver.event_sync(event, 0)),
                ("event_destroy", lambda: driver.event_destroy(event))]
    if s.offers("module"):
        try:
            image = image_of(s.caps, True)
        except NotOffered:
            pass
        else:
            module = driver.module_load(device, image.data, image.format)
            driver.get_kernel(module, image.name)
            old.append(("get_kernel", lambda: driver.get_kernel(module, image.name)))
    if s.validated:  # a bare driver need not know its addresses
        old.append(("free", lambda: driver.free(device, address)))
    large = min(_LARGE, s.caps.max_alloc_bytes // 2)
    driver.alloc(device, large)
    driver.reset(device)
    if idle:
        s.until(lambda: _free_bytes(s, driver) >= idle - large // 2, f"after reset about {idle} bytes are free again, as before {large} were allocated")
    if other is not None:
        other.look()
    for attempt in ("after reset", "after reset and new work"):
        for what, call in old:
            found = _raised(call)
            require(isinstance(found, InvalidHandle), f"{attempt}, {what} of an old handle {_gave(found)}; needs InvalidHandle")
        said = _works(driver, device)
        require(not said, said)
        if s.offers("stream"):
            again = driver.stream_create(device)
            require(again != stream, f"a stream made after reset has the old handle {again:#x}")
            driver.stream_sync(again)
            driver.stream_destroy(again)


def _free_bytes(s: Subject, driver: Driver) -> int:
    """What mem_info says is free; 0 where others use the memory too, or nothing counts."""
    return driver.mem_info(s.device)[0] if s.offers("mem_info") and not s.caps.host_access else 0


class _Bystander:
    """Memory and a stream of another device, which a reset must leave alone."""

    def __init__(self, s: Subject, driver: Driver) -> None:
        self._s, self._driver, self._device, self._data = s, driver, s.other(), s.pattern(_N)
        self._address = driver.alloc(self._device, _N)
        s._memory.append((driver, self._device, self._address))
        self._stream = driver.stream_create(self._device) if s.offers("stream") else 0
        if self._stream:
            s._streams.append((driver, self._stream))
        s.upload(self._address, self._data, self._stream, self._device, driver)

    def look(self) -> None:
        try:
            if self._stream:
                self._driver.stream_sync(self._stream)
            seen = self._s.download(self._address, _N, 0, self._device, self._driver)
        except HaianError as error:
            raise AssertionError(f"reset of device {self._s.device} broke device {self._device}: {type(error).__name__}: {error}") from None
        require((seen == self._data).all(), f"reset of device {self._s.device} changed memory of device {self._device}")


@check(60, "device_lost", "S", exempt=True)
def device_lost(s: Subject) -> None:
    """A lost device says so until it is reset; waiting calls end, other devices work on."""
    if not hasattr(s.raw, "lose_device"):
        raise NotOffered("the driver cannot lose a device on demand: no lose_device(device)")
    driver: Any = s.fresh()
    device = s.device
    address = driver.alloc(device, _N)
    other = s.other() if s.count > 1 else -1
    stream = driver.stream_create(device) if s.offers("stream") else 0
    if stream and s.offers("host_func"):
        with s.blocked(stream, driver):
            ended = start(s, lambda: s.expect(DeviceLost, driver.sync, device))
            waits = start(s, lambda: s.expect(DeviceLost, driver.stream_sync, stream))
            s.quiet(ended, "sync of a blocked device returned")
            driver.lose_device(device)
            s.until(lambda: ended() and waits(), "calls that wait for a lost device end")
    else:
        driver.lose_device(device)
    out = np.zeros(_N, np.uint8)
    for _ in range(3):
        s.expect(DeviceLost, driver.sync, device)
        s.expect(DeviceLost, driver.alloc, device, _N)
        s.expect(DeviceLost, driver.copy, device, Copy(DEVICE_TO_HOST, host(out), address, _N))
        if stream:
            s.expect(DeviceLost, driver.stream_sync, stream)
            s.expect(DeviceLost, driver.stream_query, stream)
            s.expect(DeviceLost, driver.stream_create, device)
        if s.offers("event"):
            s.expect(DeviceLost, driver.event_create, device)
    if other >= 0:
        said = _works(driver, other)
        require(not said, f"device {other} beside a lost one: {said}")
    said = _renewed(driver, device)
    require(not said, said)
