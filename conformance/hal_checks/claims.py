"""Claims of a driver that no check of the suite proves, or that excuse it from some: named beside the level.

Not here: checks.  The rest of a driver's claims is checked by the check that the header haian_hal.h names.
"""
from __future__ import annotations

from collections.abc import Iterator

from ...hal.driver import Capabilities, Driver, offers
from .check import NotOffered
from .images import image_of

__all__ = ["claims"]

_FINE_NS = 10_000  # event times of this resolution or better bound every time that the suite measures


def claims(driver: Driver, caps: Capabilities) -> list[dict[str, str]]:
    """Rows of {"claim", "what"}: what the driver says of the device or leaves out, and what is therefore not known."""
    return [{"claim": claim, "what": what} for claim, what in (*_of_caps(caps), *_of_driver(driver, caps))]


def _of_caps(caps: Capabilities) -> Iterator[tuple[str, str]]:
    rows = (
        (caps.init_once, "init_once", "check 6 does not run: what fini leaves behind is not known"),
        (not caps.thread_safe_streams, "thread_safe_streams=False", "check 62 queues on one stream from one thread at a time"),
        (caps.host_access, "host_access", "checked (11); memory that other processes use too is not counted exactly (18, 23, 59, 61)"),
        (not caps.int64_math, "int64_math=False", "not checked: 64-bit arguments of kernels are left out (66), and int64 operators may fall back"),
        (caps.bf16_atomics, "bf16_atomics", "not checked"),
        (bool(caps.reduced_matmul), f"reduced_matmul={caps.reduced_matmul}", "not checked: products of float32 are judged by its tolerance"),
        (caps.event_unit_ns > _FINE_NS, f"event_unit_ns={caps.event_unit_ns}", "event and profile times are judged within two of them (54, 70)"),
    )
    for holds, claim, what in rows:
        if holds:
            yield claim, what


def _of_driver(driver: Driver, caps: Capabilities) -> Iterator[tuple[str, str]]:
    if offers(driver, "comm") and not getattr(driver, "comm_keeps_timeout", False):
        yield "comm_keeps_timeout=False", "ranks that differ are not tried in check 68: the host's Communicator watches and aborts"
    if offers(driver, "stream") and not hasattr(driver, "lose_device"):
        yield "no lose_device", "check 60 does not run: nothing can lose the device on demand"
    if not offers(driver, "module"):
        return
    try:
        image = image_of(caps, True)
    except (NotOffered, RuntimeError, TypeError, ValueError) as error:  # the last two: a conformance_image that is none
        yield f"image_format={caps.image_format}", f"no kernel ran: {error}"
        return
    lacking = {"conform_leave": image.leave, "conform_grid": image.grid, "conform_args": image.args, "conform_wide": image.wide, "another image": image.twin}
    absent = [name for name, there in lacking.items() if not there]
    if absent:
        yield "conformance_image" if "conformance_image" in caps.extra else f"image_format={caps.image_format}", f"without {', '.join(absent)}: see images.py"
    if caps.image_format != "ttir" and (caps.dtypes_load or caps.dtypes_math):
        yield "dtypes_load, dtypes_math", "not checked here: kernels of this image format are not written for each dtype; the operators' suite does it"
