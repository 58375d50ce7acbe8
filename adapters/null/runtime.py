"""Driver of null, a chip that does not exist: the template to clone for a new vendor (README.md).

Every required method says what to fill in.  Optional ones are absent, and the host does without (hal/driver.py says how).
"""
from __future__ import annotations

from haian.hal.driver import Capabilities, Copy, Driver
from haian.hal.errors import Unsupported

__all__ = ["NullDriver"]


class NullDriver(Driver):
    """No device until ``device_count`` says so."""

    name = "null"
    vendor = "nobody"
    version = "0"

    # ---- core ------------------------------------------------------------------------------------------------------
    def device_count(self) -> int:
        return 0  # ask the vendor's runtime; no library or no chip is 0, not an error

    def props(self, device: int) -> Capabilities:
        raise Unsupported("null: fill in props: model, total_bytes, max_alloc_bytes, align_bytes, then each capability you claim")

    def sync(self, device: int) -> None:
        raise Unsupported("null: fill in sync: wait for everything queued on the device")

    def reset(self, device: int) -> None:
        raise Unsupported("null: fill in reset: drop all handles and allocations of the device")

    # ---- memory ----------------------------------------------------------------------------------------------------
    def alloc(self, device: int, nbytes: int, align: int = 0) -> int:
        raise Unsupported("null: fill in alloc: a device address as an int; OutOfMemory when there is none, ArgumentError for 0 bytes")

    def free(self, device: int, address: int) -> None:
        raise Unsupported("null: fill in free: give the allocation at this base address back")

    def copy(self, device: int, desc: Copy, stream: int = 0) -> None:
        raise Unsupported("null: fill in copy: desc.kind h2d, d2h, d2d; desc.rows rows of desc.nbytes; stream 0 is synchronous")
