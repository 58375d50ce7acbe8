"""What is being judged: a device through haian's public face, or a table of functions over NumPy arrays.

Both speak one protocol (Target): memory in (memory.Placed), arrays out.  A table lets NumPy, torch and the mutants be judged
by the same cases as a chip.  Not here: which cases (cases.py), what is right (compare.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..hal.driver import Capabilities
from ..hal.dtype import DType
from ..hal.dtype import dtype as to_dtype
from ..hal.errors import AliasError, DTypeError, EnvironmentMissing, ShapeError, Unsupported
from ..hal.geometry import Geometry, reach
from ..kernels.ops.record import OPS, Op
from .compare import result_specs
from .memory import Placed

__all__ = ["DeviceTarget", "FunctionTarget", "Target", "arguments", "bind"]


def bind(op: Op, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments of a call as (tensors in schema order, every attribute)."""
    values = {p.name: v for p, v in zip([p for p in op.params if not p.keyword_only], args)} | kwargs
    unknown = set(values) - {p.name for p in op.params}
    if unknown:
        raise TypeError(f"{op.name}: unknown argument {sorted(unknown)[0]!r}")
    tensors = tuple(values.get(p.name) for p in op.tensors)
    return tensors, {
        p.name: values.get(p.name, None if p.default is inspect.Parameter.empty else p.default) for p in op.attrs
    }


def arguments(op: Op, tensors: tuple, attrs: dict[str, Any]) -> tuple[list, dict[str, Any]]:
    """The reverse of bind: schema order, keyword-only parameters by name."""
    given = iter(tensors)
    values = {p.name: next(given) if p.is_tensor else attrs[p.name] for p in op.params}
    return (
        [values[p.name] for p in op.params if not p.keyword_only],
        {p.name: values[p.name] for p in op.params if p.keyword_only},
    )


def _map(fn: Callable, tensors: tuple) -> tuple:
    return tuple(None if t is None else [fn(x) for x in t] if isinstance(t, (tuple, list)) else fn(t) for t in tensors)


class Target:
    """The protocol.

    name: stands in the report.  capabilities: what compare.py reads.  host: memory is the host's, so guards are seen
    directly.  fallbacks(): how often the host computed each operator for the device so far.
    """

    name = ""
    host = True
    capabilities: Any = Capabilities(model="", total_bytes=0, max_alloc_bytes=0)

    def offers(self, op: Op, dt: DType) -> str:
        """Why the target has no such operator or dtype; "" when it has."""
        return ""

    def run(
        self, op: Op, inputs: tuple, attrs: dict[str, Any], outs: tuple[Placed, ...] | None
    ) -> tuple[np.ndarray, ...]:
        """Call the operator on Placed inputs (None, tuples of them); raises the operator's errors.

        With ``outs`` the results are read back from there.  Bytes around inputs and outputs are brought back too.
        """
        raise NotImplementedError

    def gradient(self, op: Op, inputs: tuple, attrs: dict[str, Any], dy: np.ndarray) -> tuple[tuple, tuple]:
        """(results, gradients) of op.grad on NumPy arrays; dy belongs to the first result."""
        raise NotImplementedError

    def shares(self, op: Op, inputs: tuple, attrs: dict[str, Any]) -> bool:
        """Whether every result of a view operator lies on the memory of its input."""
        raise NotImplementedError

    def fallbacks(self) -> dict[str, int]:
        return {}

    def set_threads(self, n: int) -> bool:
        """Whether the target can compute with n threads (and now does); 0: as many as it had."""
        return False


# ---- a table of functions -----------------------------------------------------------------------------------------------
class _Array(np.ndarray):
    """NumPy array with the dtype object and the views gradients use (kernels/ops/gradient.py)."""

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return to_dtype(np.asarray(self).dtype)

    def expand(self, shape):
        return np.broadcast_to(self, shape).view(_Array)

    def permute(self, dims):
        return np.transpose(self, dims)

    def transpose(self, a, b):  # type: ignore[override]
        return np.swapaxes(self, a, b)


class _Namespace:
    """``o`` of a gradient over a table: operators on _Arrays."""

    def __init__(self, target: FunctionTarget) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Callable:
        op = OPS[name]

        def call(*args, **kwargs):
            tensors, attrs = bind(op, args, kwargs)
            plain = _map(lambda x: np.asarray(x), tensors)
            got = tuple(np.asarray(y).view(_Array) for y in self._target.call(op, plain, attrs, None))
            return got if len(op.results) > 1 or op.lists else got[0]

        return call


class FunctionTarget(Target):
    """Operators as functions ``f(tensors, attrs) -> array or tuple`` over NumPy arrays of any strides.

    Arguments are checked by the record (``infer``) before the function sees them; results are copied into ``out``.  A
    function may have an attribute ``raw``: it then is ``f(tensors, attrs, outs)``, gets everything unchecked, and writes
    itself (mutants of the calling convention are made so).  grads replaces records' gradients.
    """

    def __init__(self, name: str, table: Mapping[str, Callable], grads: Mapping[str, Callable] | None = None) -> None:
        self.name, self.table, self.grads, self.threads = name, dict(table), dict(grads or {}), 1

    def set_threads(self, n: int) -> bool:
        self.threads = n or 1
        return True

    def offers(self, op: Op, dt: DType) -> str:
        if op.name not in self.table:
            return f"{self.name} has no {op.name}"
        return ""

    def call(self, op: Op, tensors: tuple, attrs: dict[str, Any], outs: tuple[np.ndarray, ...] | None) -> tuple:
        fn = self.table.get(op.name)
        if fn is None:
            raise Unsupported(f"{self.name} has no {op.name}")
        if getattr(fn, "raw", False):
            got = fn(tensors, attrs, outs)
            return got if isinstance(got, tuple) else (got,)
        specs = result_specs(op, tuple(tuple(t) if isinstance(t, list) else t for t in tensors), attrs)
        if outs is not None:
            for y, s in zip(outs, specs):
                if tuple(y.shape) != tuple(s.shape):
                    raise ShapeError(f"{op.name}: out has shape {y.shape}, needs {s.shape}")
                if to_dtype(y.dtype) is not s.dtype:
                    raise DTypeError(f"{op.name}: out has dtype {y.dtype}, needs {s.dtype}")
                if y.size and any(n > 1 and not step for n, step in zip(y.shape, y.strides)):
                    raise AliasError(f"{op.name}: out repeats elements (strides {y.strides}); give each its own memory")
                for x in (
                    t for group in tensors if group is not None for t in (group if isinstance(group, list) else [group])
                ):
                    same = x.ctypes.data == y.ctypes.data and x.shape == y.shape and x.strides == y.strides
                    if not same and np.shares_memory(x, y):
                        raise AliasError(f"{op.name}: out overlaps an input; give it memory of its own")
        got = fn(tensors, attrs)
        got = got if isinstance(got, tuple) else (got,)
        if outs is None:
            return got
        for y, value in zip(outs, got):
            y[...] = value
        return outs

    def run(self, op, inputs, attrs, outs):
        views = None if outs is None else tuple(p.view for p in outs)
        with np.errstate(all="ignore"):
            got = self.call(op, _map(lambda p: p.view, inputs), attrs, views)
        return tuple(np.array(y) for y in (got if views is None else views))

    def shares(self, op, inputs, attrs):
        raise Unsupported(f"{self.name}: a table of functions computes on copies, so where a view lies says nothing")

    def gradient(self, op, inputs, attrs, dy):
        o = _Namespace(self)
        plain = _map(lambda x: x.view(_Array), inputs)
        with np.errstate(all="ignore"):
            y = tuple(np.asarray(v).view(_Array) for v in self.call(op, _map(np.asarray, inputs), attrs, None))
            grad = self.grads.get(op.name, op.grad)
            return y, grad(o, dy.view(_Array), plain, y[0] if len(op.results) == 1 else y, attrs)


# ---- a device -------------------------------------------------------------------------------------------------------------
class DeviceTarget(Target):
    """A device of haian through ``haian.ops``: what a user gets."""

    def __init__(self, device: str) -> None:
        import haian

        from ..kernels import dispatch

        self._haian, self._ops, self._counters = haian, haian.ops, dispatch.counters
        self._threads = haian.num_threads()
        self.device = haian.device(device)
        self.name = device if ":" in device else f"{device}:0"
        self.host = self.device.is_host
        self.capabilities = self.device.capabilities
        self._on = dispatch.OperatorsOn(self.device)
        if why := dispatch.lacks_triton(self.device):  # hundreds of cases on the host would say nothing about the chip
            raise EnvironmentMissing(f"{self.name}: {why}")
        haian.set_fallback_policy("allow")  # counted and reported case by case below, so the warnings say nothing new

    def offers(self, op: Op, dt: DType) -> str:
        have = getattr(self.capabilities, "dtypes_load", ())
        return f"{self.name} does not load {dt.name}" if have and dt.name not in have else ""

    def fallbacks(self) -> dict[str, int]:
        return dict(self._counters)

    def set_threads(self, n: int) -> bool:
        if not self.host:
            return False
        self._haian.set_num_threads(n or self._threads)
        return True

    def _put(self, placed: Placed) -> Any:
        """A tensor over the whole buffer, and the view of it that the operator sees."""
        if self.host:
            return None, self._haian.asarray(placed.view, copy=False)
        whole = self._haian.asarray(placed.base, device=self.device)
        address = whole.address + placed.offset * whole.itemsize
        from .. import _native

        view = _native.wrap(address, whole.dtype.code, placed.shape, placed.strides, self.device.position, whole)
        return whole, view

    def run(self, op, inputs, attrs, outs):
        wholes: list[tuple[Placed, Any]] = []

        def put(placed: Placed) -> Any:
            whole, view = self._put(placed)
            if whole is not None:
                wholes.append((placed, whole))
            return view

        tensors = _map(put, inputs)
        args, kwargs = arguments(op, tensors, attrs)
        targets = None
        if outs is not None:
            shared = {id(p): t for p, t in zip(_flat(inputs), _flat(tensors))}
            targets = tuple(shared[id(p)] if id(p) in shared else self._beside(p, wholes, put) for p in outs)
            kwargs["out"] = targets[0] if len(targets) == 1 else targets
        elif not any(p.is_tensor for p in op.params) and not self.host:
            kwargs["device"] = self.device
        try:
            got = getattr(self._ops, op.name)(*args, **kwargs)
            if outs is None:
                results = got if isinstance(got, tuple) else (got,)
                return tuple(np.array(y.numpy() if y.device.is_host else y.cpu().numpy()) for y in results)
        finally:  # also after a refusal: cases check that nothing was written
            for placed, whole in wholes:
                placed.base[...] = whole.cpu().numpy()
        return tuple(np.array(p.view) for p in outs)

    def shares(self, op, inputs, attrs):
        tensors = _map(lambda p: self._put(p)[1], inputs)
        args, kwargs = arguments(op, tensors, attrs)
        got = getattr(self._ops, op.name)(*args, **kwargs)

        def within(y: Any, x: Any) -> bool:
            first, last = reach(Geometry(x.shape, x.strides))
            return x.address + first * x.itemsize <= y.address <= x.address + last * x.itemsize

        return all(any(within(y, x) for x in _flat(tensors)) for y in (got if isinstance(got, tuple) else (got,)) if y.numel)

    def _beside(self, placed: Placed, wholes, put) -> Any:
        """An output: in a buffer of its own, or in an input's (overlap cases share ``base``)."""
        for other, whole in wholes:
            if other.base is placed.base:
                from .. import _native

                return _native.wrap(
                    whole.address + placed.offset * whole.itemsize,
                    whole.dtype.code,
                    placed.shape,
                    placed.strides,
                    self.device.position,
                    whole,
                )
        return put(placed)

    def gradient(self, op, inputs, attrs, dy):
        def on(x: np.ndarray) -> Any:
            return self._haian.asarray(np.array(x, order="C"), device=self.device)

        def back(t: Any) -> Any:
            return None if t is None else [back(x) for x in t] if isinstance(t, (tuple, list)) else t.cpu().numpy()

        tensors = _map(on, inputs)
        args, kwargs = arguments(op, tensors, attrs)
        y = getattr(self._ops, op.name)(*args, **kwargs)
        found = op.grad(self._on, on(dy), tensors, y, attrs)
        return tuple(map(back, y if isinstance(y, tuple) else (y,))), tuple(map(back, found))


def _flat(tensors: tuple) -> list:
    return [x for t in tensors if t is not None for x in (t if isinstance(t, (tuple, list)) else [t])]


def unsupported(error: BaseException) -> bool:
    """Whether an error says that the device does not offer this (and not that it failed)."""
    return isinstance(error, Unsupported)
