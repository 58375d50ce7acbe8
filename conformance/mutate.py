"""Makers of mutants: each takes a right implementation and gives it one mistake.  Which there are: mutants.py.

A maker is ``make(op, right) -> f(tensors, attrs)``; a function with the attribute ``raw`` is ``f(tensors, attrs, outs)`` and
does the whole call itself (target.FunctionTarget).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ..hal.dtype import dtype as to_dtype
from ..kernels.ops.record import Op
from .compare import result_specs
from .witness import in_precision

__all__ = [
    "Maker",
    "Row",
    "attr",
    "bf16_cut",
    "contiguous_reads",
    "drop_tail",
    "element_by_element",
    "f16_sums",
    "flush",
    "forget_axis_end",
    "gradient",
    "ignores_out",
    "inputs",
    "no_checks",
    "noise",
    "only_first",
    "past_end",
    "precise",
    "raw",
    "reads_back",
    "result",
    "results",
    "strides_of",
    "swap",
    "tf32",
    "threads_order",
    "widths",
    "writes_input",
]

Function = Callable[..., Any]
Maker = Callable[[Op, Function], Any]
Row = tuple[str, str, str, Maker]  # operator, mistake, kind of case meant to refuse it, maker


# ---- before, after ----------------------------------------------------------------------------------------------------------
def attr(**changes: Any) -> Maker:
    """Attributes replaced (or computed from the given one)."""

    def make(op: Op, right: Function) -> Function:
        return lambda t, a: right(t, a | {k: v(a[k]) if callable(v) else v for k, v in changes.items()})

    return make


def inputs(fn: Callable) -> Maker:
    """Inputs replaced."""
    return lambda op, right: lambda t, a: right(fn(list(t)), a)


def result(fn: Callable) -> Maker:
    """The (first) result replaced by ``fn(result, inputs, attrs)``."""

    def make(op: Op, right: Function) -> Function:
        def call(t, a):
            y = right(t, a)
            return (np.asarray(fn(np.asarray(y[0]), list(t), a)), *y[1:])

        return call

    return make


def results(fn: Callable) -> Maker:
    """All results replaced."""
    return lambda op, right: lambda t, a: tuple(fn(right(t, a), list(t), a))


def swap(i: int, j: int) -> Maker:
    def exchanged(t):
        t[i], t[j] = t[j], t[i]
        return t

    return inputs(exchanged)


def gradient(fn: Callable) -> Maker:
    """The record's gradient replaced."""
    return lambda op, right: {"gradient": fn}


# ---- precision --------------------------------------------------------------------------------------------------------------
def precise(compute: Any) -> Maker:
    """Arithmetic in another dtype."""
    return lambda op, right: in_precision(op, lambda dt: compute)


def _each(fn: Callable, t: Any) -> list:
    return [None if x is None else [fn(y) for y in x] if isinstance(x, (list, tuple)) else fn(x) for x in t]


def tf32() -> Maker:
    """float32 inputs cut to 11 significant bits."""

    def cut(x: np.ndarray) -> np.ndarray:
        return (
            (np.array(x, order="C").view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).reshape(x.shape)
            if x.dtype == np.float32
            else x
        )

    return inputs(lambda t: _each(cut, t))


def bf16_cut(source: Callable | None = None) -> Maker:
    """bfloat16 results cut towards zero from the float32 value."""

    def make(op: Op, right: Function) -> Function:
        wide = in_precision(op, lambda dt: np.float32)

        def call(t, a):
            y = right(t, a)
            if y[0].dtype != ml_dtypes.bfloat16:
                return y
            if source is not None:
                exact = source(t).astype(np.float32)
            else:
                exact = np.asarray(
                    wide(_each(lambda x: x.astype(np.float32) if to_dtype(x.dtype).is_floating else x, t), a)[0],
                    np.float32,
                )
            cut = (
                (np.array(exact, order="C").view(np.uint32) & np.uint32(0xFFFF0000))
                .view(np.float32)
                .reshape(exact.shape)
            )
            return (np.where(np.isnan(exact), exact, cut).astype(ml_dtypes.bfloat16), *y[1:])

        return call

    return make


def f16_sums() -> Maker:
    """float16 terms added one by one in float16 (NumPy's own sums and products of float16 are kept in float32)."""

    def add_up(x: np.ndarray, axis: int) -> np.ndarray:
        total = np.zeros_like(np.take(x, 0, axis))
        for i in range(x.shape[axis]):
            total = (total + np.take(x, i, axis)).astype(np.float16)
        return total

    def make(op: Op, right: Function) -> Function:
        def call(t, a):
            x = np.asarray(t[0])
            if x.dtype != np.float16 or not x.size or not x.ndim:
                return right(t, a)
            if op.family == "matmul":
                if x.ndim != 2 or t[1].ndim != 2 or not x.shape[1]:
                    return right(t, a)
                return (add_up((x[:, :, None] * t[1][None]).astype(np.float16), 1),)
            over = tuple(range(x.ndim)) if a["dim"] in (None, ()) else tuple(np.atleast_1d(a["dim"]) % x.ndim)
            kept = [i for i in range(x.ndim) if i not in over]
            flat = np.transpose(x, (*kept, *over)).reshape(*(x.shape[i] for i in kept), -1)
            y = right(t, a)
            return (add_up(flat, flat.ndim - 1).reshape(y[0].shape).astype(y[0].dtype),)

        return call

    return make


def flush() -> Maker:
    """Subnormal inputs become zero."""

    def zero(x: np.ndarray) -> np.ndarray:
        if not to_dtype(x.dtype).is_floating:
            return x
        return np.where(np.abs(x) < ml_dtypes.finfo(x.dtype).smallest_normal, x * 0, x).astype(x.dtype)

    return inputs(lambda t: _each(zero, t))


def noise() -> Maker:
    """The last bit differs from call to call."""

    def make(op: Op, right: Function) -> Function:
        calls = [0]

        def call(t, a):
            calls[0] += 1
            y = right(t, a)
            first = np.array(y[0])
            if calls[0] % 2 and first.size:
                first.reshape(-1)[-1] = np.nextafter(first.reshape(-1)[-1], first.dtype.type(0))
            return (first, *y[1:])

        return call

    return make


# ---- memory -----------------------------------------------------------------------------------------------------------------
def _as_if_contiguous(x: np.ndarray, when: Callable | None) -> np.ndarray:
    """What a kernel reads that takes the first element's address and ignores strides; inside the buffer at all times."""
    if x.flags.c_contiguous or not x.size or (when is not None and not when(x)):
        return x
    return _read(x, np.arange(x.size * x.itemsize))


def _bytes(x: np.ndarray) -> tuple[np.ndarray, int]:
    """The whole buffer that x lies in, and where its first element begins."""
    root: Any = x  # at the bottom may lie any object with a buffer
    while isinstance(getattr(root, "base", None), np.ndarray) or (root.base is not None and hasattr(root.base, "base")):
        root = root.base
    flat = np.frombuffer(root, np.uint8) if not isinstance(root, np.ndarray) else root.reshape(-1).view(np.uint8)
    return flat, x.ctypes.data - flat.ctypes.data


def _read(x: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """x made of the bytes at these distances from its first element, wrapped around inside its buffer."""
    flat, start = _bytes(x)
    return flat[(start + offsets) % flat.size].view(x.dtype).reshape(x.shape)


def strides_of(i: int, j: int) -> Maker:
    """Input i is read with the strides of input j, over the axes that both have."""

    def fn(t: list) -> list:
        x, other = t[i], t[j]
        if x is None or other is None or not x.size:
            return t
        strides = list(x.strides)
        for k in range(1, min(x.ndim, other.ndim) + 1):
            if x.shape[-k] == other.shape[-k]:
                strides[-k] = other.strides[-k] // other.itemsize * x.itemsize
        if tuple(strides) == x.strides:
            return t
        at = np.zeros(1, np.int64)
        for n, s in zip(x.shape, strides):
            at = (at[:, None] + np.arange(n) * s).reshape(-1)
        at = at[:, None] + np.arange(x.itemsize)
        return [_read(y, at.reshape(-1)) if k == i else y for k, y in enumerate(t)]

    return inputs(fn)


def contiguous_reads(when: Callable | None = None) -> Maker:
    """Strides ignored (of inputs for which ``when`` holds)."""
    return inputs(lambda t: _each(lambda x: _as_if_contiguous(x, when), t))


def raw(fn: Callable) -> Function:
    """A function that takes ``outs`` too, unchecked, and writes them itself."""
    fn.raw = True  # type: ignore[attr-defined]
    return fn


def _checked(op: Op, t: Any, a: dict) -> None:
    result_specs(op, tuple(tuple(x) if isinstance(x, list) else x for x in t), a)


def _stored(y: tuple, outs: tuple | None) -> tuple:
    if outs is None:
        return y
    for o, v in zip(outs, y):
        o[...] = v
    return outs


def past_end(nbytes: int) -> Maker:
    """A vector store reaches over the end of a contiguous out."""

    def make(op: Op, right: Function) -> Function:
        def call(t, a, outs):
            _checked(op, t, a)
            y = right(t, a)
            if outs is not None and outs[0].flags.c_contiguous and outs[0].shape == y[0].shape and outs[0].size:
                past = np.lib.stride_tricks.as_strided(
                    outs[0].reshape(-1)[-1:], (1 + nbytes // outs[0].itemsize,), (outs[0].itemsize,)
                )
                past[...] = 0  # lands in the guard behind
            return _stored(y, outs)

        return raw(call)

    return make


def element_by_element() -> Maker:
    """Copies inputs block by block while writing out, so that an overlapping out changes what is read next."""

    def make(op: Op, right: Function) -> Function:
        def call(t, a, outs):
            _checked(op, t, a)
            y = right(t, a)
            if outs is None or not any(np.shares_memory(x, outs[0]) for x in t) or outs[0].ndim == 0:
                return _stored(y, outs)
            for i in range(outs[0].shape[0]):
                outs[0][i] = right([np.broadcast_to(x, outs[0].shape)[i] for x in t], a)[0]
            return outs

        return raw(call)

    return make


def writes_input() -> Maker:
    """Uses the input as workspace."""

    def make(op: Op, right: Function) -> Function:
        def call(t, a):
            y = right(t, a)
            if t[0].size and t[0].flags.writeable:
                t[0].reshape(-1)[:1] = 0
            return y

        return call

    return make


def reads_back() -> Maker:
    """A strided out is written as if contiguous."""

    def make(op: Op, right: Function) -> Function:
        def call(t, a, outs):
            _checked(op, t, a)
            y = right(t, a)
            if outs is None or outs[0].flags.c_contiguous or outs[0].shape != y[0].shape:
                return _stored(y, outs)
            flat, start = _bytes(outs[0])  # inside the buffer at all times, backwards ones too
            flat[(start + np.arange(outs[0].nbytes)) % flat.size] = np.ascontiguousarray(y[0]).reshape(-1).view(np.uint8)
            return outs

        return raw(call)

    return make


def ignores_out() -> Maker:
    """out is checked, and never written."""

    def make(op: Op, right: Function) -> Function:
        def call(t, a, outs):
            _checked(op, t, a)
            return right(t, a)

        return raw(call)

    return make


def no_checks(
    before: Callable | None, after: Callable | None = None, after_all: Callable | None = None, skip: bool = False
) -> Maker:
    """Bad arguments are bent into something computable instead of refused; or the result's form is not checked.

    skip: a call that fails all the same returns its first input.
    """

    def make(op: Op, right: Function) -> Function:
        def call(t, a, outs):
            given = list(t) if before is None else before(list(t), a)
            try:
                _checked(op, t, a)
                from .compare import reference

                reference(op, tuple(tuple(x) if isinstance(x, list) else x for x in t), a)
                y = right(t, a)
            except Exception:  # exactly what this mutant leaves out: whatever was refused is bent and computed
                if skip:
                    return (np.asarray(t[0]),)
                if before is None:
                    raise
                y = right(given, a)
            y = tuple(np.asarray(v) for v in y)
            if after is not None:
                y = (after(y[0], t, a), *y[1:])
            if after_all is not None:
                y = tuple(after_all(y, t, a))
            return _stored(y, outs)

        return raw(call)

    return make


# ---- shapes and orders ------------------------------------------------------------------------------------------------------
def drop_tail(n: int) -> Maker:
    """The last ``n`` elements of more than a vector's 8 stay 0."""

    def cut(y, t, a):
        y = np.array(y)
        if y.size > 8:
            y.reshape(-1)[-n:] = 0
        return y

    return result(cut)


def widths(limit: int) -> Maker:
    """Offsets wrap at ``limit`` elements, as 32 bits do at 2**31."""

    def wrapped(y, t, a):
        return y.reshape(-1)[np.arange(y.size) % limit].reshape(y.shape)

    return result(wrapped)


def forget_axis_end() -> Maker:
    """A reduction in tiles of 1024 drops the last, partial one."""

    def make(op: Op, right: Function) -> Function:
        def call(t, a):
            x = np.array(t[0])
            over = range(x.ndim) if a["dim"] in (None, ()) else [a["dim"]] if isinstance(a["dim"], int) else a["dim"]
            for d in over:
                if x.ndim and x.shape[d] > 1024:
                    at = [slice(None)] * x.ndim
                    at[d] = slice(x.shape[d] // 1024 * 1024, None)
                    x[tuple(at)] = 0
            return right([x], a)

        return call

    return make


def only_first() -> Maker:
    """A reduction looks at the first element along the last axis it reduces."""

    def make(op: Op, right: Function) -> Function:
        def call(t, a):
            x = t[0]
            if not x.ndim or not x.size:
                return right(t, a)
            d = (
                a["dim"][-1]
                if isinstance(a["dim"], tuple) and a["dim"]
                else a["dim"]
                if isinstance(a["dim"], int)
                else -1
            )
            return right([np.broadcast_to(np.take(x, [0], d), x.shape)], a)

        return call

    return make


def threads_order() -> Maker:
    """Partial sums are split by the number of threads."""

    def make(op: Op, right: Function) -> Function:
        def call(t, a):
            x, n = t[0], call.target.threads
            if n == 1 or x.dtype != np.float32 or not x.ndim:
                return right(t, a)
            parts = [
                right([np.where(np.arange(x.size).reshape(x.shape) % n == i, x, x.dtype.type(0))], a)[0]
                for i in range(n)
            ]
            return (np.sum(np.stack(parts), axis=0, dtype=np.float32).astype(parts[0].dtype),)

        call.wants_target = True  # type: ignore[attr-defined]
        return call

    return make
