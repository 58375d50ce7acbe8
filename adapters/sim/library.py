"""simblas: what a vendor's own operator library looks like to haian, on the simulated chip: matmul and softmax in NumPy.

The example of the driver page's op group and of ``Driver.kernels``.  Off in dispatch unless HAIAN_SIM_LIBRARY=1, since sim is
there to run haian's kernels.
"""
from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...hal.driver import Capabilities
from ...hal.memory import use
from .memory import Heap

__all__ = ["candidates", "prepare", "query"]

DTYPES = ("float32", "float64", "float16", "bfloat16")


def _matmul(out: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """16-bit floats are summed in float32 and rounded once."""
    wide = np.promote_types(a.dtype, np.float32) if a.dtype.kind == "f" else np.dtype(np.float32)
    out[...] = np.matmul(a.astype(wide), b.astype(wide))


def _softmax(out: np.ndarray, x: np.ndarray, dim: int) -> None:
    """In float64, rounded once."""
    if x.size:
        wide = np.atleast_1d(x.astype(np.float64))
        with np.errstate(all="ignore"):
            e = np.exp(wide - wide.max(dim, keepdims=True))
            out[...] = (e / e.sum(dim, keepdims=True)).reshape(out.shape)


_RUN: dict[str, Callable[..., None]] = {"matmul": _matmul, "softmax": _softmax}


def query(capabilities: Capabilities, name: str, dtypes: Sequence[str]) -> str:
    """"supported" where simblas has the operator for these dtypes, all alike; else "".  Any strides will do."""
    same = len(set(dtypes)) == 1 and dtypes[0] in DTYPES and dtypes[0] in capabilities.dtypes_math
    return "supported" if name in _RUN and same else ""


def prepare(heap: Heap, name: str, inputs: Sequence[Any], outputs: Sequence[Any], attrs: dict[str, Any]) -> Callable[[], None]:
    """The operator on device tensors, to be called when its turn has come; it raises OutOfRange for memory that is gone."""
    where = [(t.address, t.shape, t.strides, t.dtype.numpy) for t in (*outputs, *inputs)]

    def run() -> None:
        with np.errstate(all="ignore"):
            _RUN[name](*(_view(heap, *t) for t in where), **attrs)

    return run


def _view(heap: Heap, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Device memory as an array; strides in elements."""
    if 0 in shape:
        return np.empty(shape, dtype)
    size = dtype.itemsize
    reach = [(n - 1) * s * size for n, s in zip(shape, strides)]
    low = address + sum(r for r in reach if r < 0)
    block = heap.inside(low, sum(map(abs, reach)) + size, "simblas")
    return np.ndarray(shape, dtype, block.data.data, address - block.start, tuple(s * size for s in strides))


def _off(specs: Sequence[Any], attrs: dict[str, Any], capabilities: Capabilities) -> str:
    if os.environ.get("HAIAN_SIM_LIBRARY", "") != "1":
        return "simblas is off, HAIAN_SIM_LIBRARY=1 turns it on"
    return ""


_off.by_signature = True  # type: ignore[attr-defined]  # looks at nothing that changes from call to call


def _call(name: str, *tensors: Any, out: Any, **attrs: Any) -> None:
    device = out.device
    stream = device.current_stream
    use(stream, tensors, (out,))
    device.driver.op_run(device.index, name, tensors, (out,), attrs, stream.handle)


def candidates() -> list[dict[str, Any]]:
    """Arguments of ``haian.register_kernel``, one an operator."""
    return [{"op": name, "fn": functools.partial(_call, name), "dtypes": DTYPES, "when": _off, "name": f"{name}__simblas"} for name in _RUN]
