"""What the HAL's tests share: devices over validated drivers, and a way to block a stream."""
from __future__ import annotations

import gc
import itertools
import threading
from contextlib import contextmanager

from haian.adapters.cpu import CpuDriver
from haian.adapters.sim import SimDriver
from haian.hal.device import Device
from haian.hal.registry import load_adapter
from haian.hal.validate import Validated, validate

MAKE = {"cpu": CpuDriver, "sim": lambda: SimDriver(total_bytes=256 << 20)}
_names = itertools.count()


def bare(name: str) -> Device:
    """Device 0 of a new validated driver, in no registry: for buffers, streams, events, modules."""
    return Device(validate(MAKE[name]()), 0, 1)


def registered(devices: int = 2, total_bytes: int = 256 << 20) -> list[Device]:
    """Devices of a new validated simulator under a name of its own, known to the registry: for tensors."""
    driver = SimDriver(devices, total_bytes)
    driver.name = f"simt{next(_names)}"
    return load_adapter(validate(driver))


def no_leaks(*devices: Device) -> None:
    """After the test: nothing but what is still referenced may be alive in the devices' one driver."""
    gc.collect()
    for device in devices:
        device.synchronize()
        device.trim()
    driver = devices[0].driver
    assert isinstance(driver, Validated)
    left = [x for x in driver.close() if x.kind != "event"]  # spare events stay for reuse
    assert not left, "\n".join(map(str, left))


@contextmanager
def blocked(stream, seconds: float = 20.0):
    """The stream stands still until the end of the block."""
    gate, started = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        gate.wait(seconds)

    stream.host_func(wait)
    assert started.wait(5), "the stream did not start its work"
    try:
        yield gate
    finally:
        gate.set()
