"""A vendor's own operator library as candidates: what the op group of a driver (``op_query``, ``op_run``) offers dispatch.

For drivers that leave ``Driver.kernels`` as it is, in Python or in C.  A "preferred" operator stands before haian's Triton
kernel, a "supported" one behind it, before the host.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..hal.driver import Driver, offers
from ..hal.memory import use

if TYPE_CHECKING:
    from ..hal.device import Device
    from .ops.record import Op, Spec

__all__ = ["offered", "runner", "asks"]


def offered(driver: Driver) -> bool:
    """Whether the driver answers for its operators call by call rather than through ``Driver.kernels``."""
    inner = getattr(driver, "inner", driver)  # what the validation layer wraps
    return type(inner).kernels is Driver.kernels and offers(driver, "op")


def asks(record: Op, device: Device, wanted: str) -> Callable[[Sequence[Spec | None], dict[str, Any], Any], str]:
    """``when`` of a candidate: the driver must answer ``wanted`` for the dtypes, packed or not."""

    def when(specs: Sequence[Spec | None], attrs: dict[str, Any], capabilities: Any) -> str:
        answer = _answer(device, record.name, tuple(s.dtype.name for s in specs if s is not None))[0]
        return "" if answer == wanted else f"the library says {answer or 'not offered'!r}"

    when.by_signature = True  # type: ignore[attr-defined]  # the answer depends on dtypes only
    return when


@functools.cache
def _answer(device: Device, name: str, dtypes: tuple[str, ...]) -> tuple[str, bool]:
    """(answer, whether tensors must be packed for it); pure by the driver page, so asked once."""
    for contiguous in (False, True):
        answer = device.driver.op_query(device.index, name, dtypes, contiguous)
        if answer:
            return answer, contiguous
    return "", True


def runner(record: Op, device: Device) -> Callable[..., None]:
    """``run`` of a candidate: the library's operator on the current stream, on packed copies where it takes no strides."""
    listed = any(p.kind == "tensors" for p in record.params)

    def run(*tensors: Any, out: Any, **attrs: Any) -> None:
        given = tuple(tensors[0]) if listed else tensors
        outs = out if isinstance(out, tuple) else (out,)
        packed = _answer(device, record.name, tuple(t.dtype.name for t in given if t is not None))[1]
        ins = tuple(t.contiguous() if packed and t is not None else t for t in given)
        results = tuple(o if not packed or o.is_contiguous else device.empty(o.shape, o.dtype) for o in outs)
        stream = device.current_stream
        use(stream, [t for t in ins if t is not None], results)
        device.driver.op_run(device.index, record.name, ins, results, attrs, stream.handle)
        for o, r in zip(outs, results):
            if o is not r:
                o.copy_(r)

    return run
