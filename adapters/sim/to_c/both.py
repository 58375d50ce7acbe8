"""Every launch through both executors: what C writes must be what NumPy writes, bit for bit; NaNs count as alike.

HAIAN_SIM_EXECUTOR=both turns it on for any program.  HAIAN_SIM_BOTH_LOG names a file that gets a line of JSON for each kernel seen
and for each difference; ``python -m haian.adapters.sim.compare`` reads it.
"""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ....hal.errors import HaianError, InternalError, OutOfRange
from ..memory import Heap
from ..vector import numpy_type

if TYPE_CHECKING:
    from ..execute import Kernel
    from .native import Native

__all__ = ["run_both"]

_seen: set[tuple[bytes, str]] = set()


def _log(line: dict[str, Any]) -> None:
    path = os.environ.get("HAIAN_SIM_BOTH_LOG", "")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


def _differences(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Indices of elements that differ; a, b: bytes."""
    whole = a.size // dtype.itemsize * dtype.itemsize
    x, y = a[:whole].view(dtype), b[:whole].view(dtype)
    bits = np.dtype(f"u{dtype.itemsize}")
    other = np.flatnonzero(x.view(bits) != y.view(bits))
    if dtype.kind in "fV":
        with np.errstate(all="ignore"):
            other = other[~((x[other] != x[other]) & (y[other] != y[other]))]
    return other


def run_both(native: Native, kernel: Kernel, heap: Heap, grid: tuple[int, int, int], values: Sequence[np.ndarray]) -> bool:
    """Run a launch in C, put the memory behind its pointers back, run it in NumPy, compare.  NumPy's result stays.

    Raises:
        InternalError: they differ; names the argument and the first element.
        What the launch raises in NumPy, where C raises the same kind.
    """
    in_c = native.ready(True)
    if (native.image, native.name) not in _seen:
        _seen.add((native.image, native.name))
        _log({"kernel": native.name, "refused": native.refusal})
    if not in_c:
        kernel.run(heap, grid, values)
        return False
    pointers = [(k, int(v[0]), numpy_type(t.pointee)) for k, (v, t) in enumerate(zip(values, kernel.params)) if t.elem == "ptr"]
    blocks = {}
    for k, address, dtype in pointers:
        try:
            blocks[k] = (heap.inside(address, 1, "compare").data, dtype)
        except OutOfRange:
            continue  # a pointer nobody follows, or an illegal one, which both must report
    before = {id(data): data.copy() for data, _ in blocks.values()}
    errors: list[HaianError | None] = [None, None]
    try:
        native.call(heap, grid, values, 0, grid[0] * grid[1] * grid[2])
    except HaianError as error:
        errors[0] = error
    after = {id(data): data.copy() for data, _ in blocks.values()}
    for data, _ in blocks.values():
        data[...] = before[id(data)]
    try:
        kernel.run(heap, grid, values)
    except HaianError as error:
        errors[1] = error
    if type(errors[0]) is not type(errors[1]):
        _fail(native, grid, f"C ended with {errors[0]!r}, NumPy with {errors[1]!r}")
    if errors[1] is not None:
        raise errors[1]
    for k, (data, dtype) in blocks.items():
        other = _differences(after[id(data)], data, dtype)
        if other.size:
            at, whole = int(other[0]), data.size // dtype.itemsize * dtype.itemsize
            _fail(native, grid, f"argument {k}: {other.size} elements of {dtype} differ, at {at} C wrote "
                                f"{after[id(data)][:whole].view(dtype)[at]!r}, NumPy {data[:whole].view(dtype)[at]!r}")
    return True


def _fail(native: Native, grid: tuple[int, int, int], what: str) -> None:
    _log({"kernel": native.name, "different": what, "grid": grid})
    raise InternalError(f"{native.name}, grid {grid}: the executors differ, {what}; HAIAN_SIM_EXECUTOR=numpy is the reference")
