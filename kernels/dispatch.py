"""Which kernel computes an operator for a signature: candidates, most specific first, the host kernel last.

The native Op (kernels/native/py_op.c) asks ``resolve`` once a signature and keeps the answer as its plan; it asks
``infer`` for shapes it cannot work out itself, and hands every call that does not fit its fast path to ``call_slowly``.
Not here: what an operator means (kernels/ops), how a Triton kernel is compiled (kernels/triton/launch.py).
"""
from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _native
from ..hal.dtype import BY_NAME, DType, dtype
from ..hal.errors import (
    AliasError,
    ArgumentError,
    DTypeError,
    HaianError,
    InternalError,
    ShapeError,
    Unsupported,
)
from ..hal.geometry import Geometry
from . import library, triton
from .ops.record import Op, Spec

if TYPE_CHECKING:
    from ..hal.device import Device
    from ..hal.driver import Driver

__all__ = ["Candidate", "OperatorsOn", "candidates", "counters", "explain", "fallback_policy", "lacks_triton", "naming", "register_kernel", "set_fallback_policy", "set_num_threads"]

_log = logging.getLogger("haian")
_RULES = {"": 0, "same": 1, "broadcast": 2, "reduce": 3}  # RULE_* of py_op.c
POLICIES = ("error", "warn", "allow")

#: How often an operator ran on the host because its device had no kernel for it, by operator name.
counters: Counter[str] = Counter()
#: (operator, candidate name) pairs that resolved signatures chose.
chosen: Counter[tuple[str, str]] = Counter()

_policy = os.environ.get("HAIAN_FALLBACK") or "warn"
if _policy not in POLICIES:
    raise ArgumentError(f"HAIAN_FALLBACK={_policy}; needs one of {', '.join(POLICIES)}")
_warned: set[str] = set()
_registered: dict[tuple[str, str], list[Candidate]] = {}
_lock = threading.RLock()


@dataclass(frozen=True)
class Candidate:
    """One kernel for one operator on one family of devices.

    Attributes:
        op: operator name.
        name: ``what__how``, as it stands in reports.
        device: adapter name (``ascend``), ``triton`` for every device with a Triton target, ``any`` for what is made of other
            operators, or ``cpu``.
        dtypes: accepted dtypes of the tensors that carry data, None for all the operator accepts.
        when: ``when(specs, attrs, capabilities) -> str``: why it does not take a signature, "" when it does.  Its attribute
            ``by_signature`` (True): it looks at dtypes and choices only, and is asked once a signature.
        run: ``run(*tensors, **attrs, out)``; None for host kernels, which the native side calls by address.
        address, pointwise: the host kernel and its tiles.
    """

    op: str
    name: str
    device: str
    dtypes: frozenset[DType] | None = None
    when: Callable[[Sequence[Spec | None], dict[str, Any], Any], str] | None = None
    run: Callable[..., Any] | None = None
    address: int = 0
    pointwise: int = 0
    call: Callable[..., Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.run is not None:
            run = self.run

            def call(inputs: tuple, attrs: dict[str, Any], outs: tuple) -> None:
                run(*inputs, **attrs, out=outs[0] if len(outs) == 1 else outs)

            object.__setattr__(self, "call", call)

    def refuses(self, specs: Sequence[Spec | None], attrs: dict[str, Any], capabilities: Any) -> str:
        """Why the candidate does not take this signature; "" when it does."""
        if self.dtypes is not None:
            for s in specs:
                if s is not None and s.dtype not in self.dtypes:
                    return f"{s.dtype} is not among its dtypes ({', '.join(sorted(d.name for d in self.dtypes))})"
        if self.device not in ("cpu", "any"):
            lacking = [s.dtype.name for s in specs if s is not None and capabilities.dtypes_load and s.dtype.name not in capabilities.dtypes_load]
            if lacking:
                return f"the device does not load {lacking[0]}"
        return self.when(specs, attrs, capabilities) if self.when else ""


def set_fallback_policy(policy: str) -> None:
    """What happens when a device has no kernel for a call: ``error``, ``warn`` (once an operator, the default), ``allow``.

    Every fallback is counted in ``counters`` whatever the policy.  HAIAN_FALLBACK sets the first value.
    """
    global _policy
    if policy not in POLICIES:
        raise ArgumentError(f"fallback policy {policy!r}; needs one of {', '.join(POLICIES)}")
    _policy = policy
    from . import api
    api.forget()


def fallback_policy() -> str:
    return _policy


def set_num_threads(n: int) -> None:
    """How many threads host kernels may use from now on, in the whole process.

    Raises:
        ArgumentError: not an integer of 1 or more, or more than this build runs.
    """
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool) or not 1 <= n < 2**31:
        raise ArgumentError(f"set_num_threads: {n!r}; needs an integer of 1 or more")
    before = _native.num_threads()
    _native.set_num_threads(int(n))
    most = _native.num_threads()
    if most != n:
        _native.set_num_threads(before)
        raise ArgumentError(f"set_num_threads: {n} threads; this build runs {most} at most")


_OWN = ("asarray: ", "from_dlpack: ", "empty: ")  # what an operator calls for a user who did not


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Lets errors of what an operator calls say which operator, and which argument of it, was meant."""
    try:
        yield
    except HaianError as error:
        text = str(error)
        raise type(error)(f"{where}: {text.removeprefix(next((w for w in _OWN if text.startswith(w)), ''))}") from error


def register_kernel(op: str, fn: Callable[..., Any], *, device: str, dtypes: Sequence[object] | None = None,
                    when: Callable[..., str] | None = None, name: str = "") -> Candidate:
    """Add a kernel: it is tried before haian's own on the devices of adapter ``device``.

    Args:
        op: operator name, as in ``haian ops list``.
        fn: ``fn(*tensors, **attrs, out)``; writes ``out`` (a tuple for several results); tensors are on the device.
        device: adapter name (``"ascend"``) or ``"triton"``.
        dtypes: dtypes it takes, all of the operator's when None.
        when: ``when(specs, attrs, capabilities)`` returns why a signature is refused, "" to take it.
        name: how it is called in reports; default ``op__device``.

    Raises:
        ArgumentError: no such operator, or ``fn`` or ``when`` cannot be called.  DTypeError: no such dtype.
    """
    from .ops import OPS
    if op not in OPS:
        raise ArgumentError(f"register_kernel: no operator {op!r}; `haian ops list` names them")
    for what, value in (("fn", fn), ("when", when)):
        if not callable(value) and (value is not None or what == "fn"):
            raise ArgumentError(f"register_kernel: {op}: {what} is {_what(value)}; needs a function")
    with naming(f"register_kernel: {op}"):
        made = _candidate(device, op, fn, dtypes, when, name)
    with _lock:
        _registered.setdefault((op, device), []).insert(0, made)
    from . import api
    api.forget()
    return made


def _candidate(device: str, op: str, fn: Callable[..., Any], dtypes: Sequence[object] | None = None,
               when: Callable[..., str] | None = None, name: str = "") -> Candidate:
    return Candidate(op, name or f"{op}__{device}", device, frozenset(dtype(d) for d in dtypes) if dtypes is not None else None, when, fn)


# What drivers bring themselves, by operator; asked once a driver.
_brought: weakref.WeakKeyDictionary[Driver, dict[str, list[Candidate]]] = weakref.WeakKeyDictionary()


def _of_driver(driver: Driver, family: str) -> dict[str, list[Candidate]]:
    """``Driver.kernels()``: each a mapping of the arguments of ``register_kernel``, without ``device``."""
    if driver not in _brought:
        from .ops import OPS
        found: dict[str, list[Candidate]] = {}
        for row in driver.kernels():
            made = _candidate(family, **row)  # type: ignore[arg-type]
            if made.op in OPS:
                found.setdefault(made.op, []).append(made)
            else:
                _log.warning("%s: brings a kernel for %s, an operator that haian does not have; left out", family, made.op)
        _brought[driver] = found
    return _brought[driver]


def _of_library(record: Op, device: Device, wanted: str) -> list[Candidate]:
    """The driver's op group as a candidate, see library.py."""
    if record.slot or not library.offered(device.driver):
        return []
    name = f"{record.name}__{device.driver.name}_library"
    return [Candidate(record.name, name, device.driver.name, None, library.asks(record, device, wanted), library.runner(record, device))]


def _host(record: Op) -> Candidate | None:
    found = _native.find_kernel(record.slot or record.name)
    if found is None:
        return None
    address, bits, pointwise, isa = found
    return Candidate(record.name, f"{record.name}__{isa}", "cpu", None, None, None, address, pointwise)


def _composite(record: Op) -> list[Candidate]:
    if record.compose is None:
        return []
    from . import api
    compose = record.compose

    def run(*tensors: Any, out: Any, **attrs: Any) -> None:
        compose(api, *tensors, out=out, **attrs)

    return [Candidate(record.name, f"{record.name}__composite", "any", None, None, run)]


def _no_triton(missing: ImportError) -> str:
    found = "is not installed" if isinstance(missing, ModuleNotFoundError) else f"does not import ({missing})"
    return f"its kernels need Triton, which {found}; install haian[triton] or the vendor's Triton"


def _triton(record: Op, device: Device) -> list[Candidate]:
    try:
        module = importlib.import_module(f".triton.{record.family}", __package__)
    except ImportError as missing:
        if missing.name and missing.name.split(".")[0] == "haian":
            return []
        why = _no_triton(missing)

        def refuse(specs: Sequence[Spec | None], attrs: dict[str, Any], facts: Any) -> str:
            return why

        refuse.by_signature = True  # type: ignore[attr-defined]
        return [Candidate(record.name, f"{record.name}__triton", "triton", None, refuse)] if triton.has(record) else []
    if record.slot:
        run, when = module.users(record.formula)
    else:
        run, when = module.KERNELS.get(record.name), getattr(module, "WHEN", {}).get(record.name)
    if run is None:
        return []
    return [Candidate(record.name, f"{record.name}__triton", "triton", None, when, run)]


def lacks_triton(device: Device) -> str:
    """Why haian's kernels cannot run on a device with a Triton target, so that most calls would fall back to the host; "" where they can."""
    if device.is_host or not device.capabilities.triton_target:
        return ""
    try:
        importlib.import_module("triton")
    except ImportError as missing:
        return _no_triton(missing)
    return ""


_cache: dict[tuple[str, int, bool], list[Candidate]] = {}


def candidates(record: Op, device: Device) -> list[Candidate]:
    """All candidates of an operator for a device, most specific first; the host kernel stands last."""
    family = device.name.partition(":")[0]
    name = record.slot or record.name  # a user's operator may be called what one of haian's is
    key = (name, device.position, bool(device.capabilities.triton_target))
    with _lock:
        if key not in _cache:
            found: list[Candidate] = []
            if not device.is_host and device.capabilities.triton_target:
                found += _triton(record, device)
            if not device.is_host:
                found = _of_library(record, device, "preferred") + found + _of_library(record, device, "supported")
            host = _host(record)
            _cache[key] = found + ([host] if host else []) + _composite(record)
        vendor = [*_registered.get((name, family), ()), *_of_driver(device.driver, family).get(name, ())]
        if not device.is_host and device.capabilities.triton_target:
            vendor += _registered.get((name, "triton"), ())
        return vendor + _cache[key]


def _spec(t: Any) -> Spec | None:
    return None if t is None else Spec(t.shape, t.dtype)


def infer_specs(record: Op, inputs: Sequence[Any], attrs: dict[str, Any]) -> tuple[Spec, ...]:
    """Result specs of a call; raises the operator's own errors."""
    specs = [_spec(t) for t in inputs]
    if any(p.kind == "tensors" for p in record.params):
        result = record.infer(specs, **attrs)
    else:
        result = record.infer(*specs, **attrs)
    return result if isinstance(result, tuple) else (result,)


def _device_of(inputs: Sequence[Any]) -> Device:
    from ..hal.registry import at
    return at(next((t.device_index for t in inputs if t is not None), 0))


def choose(record: Op, device: Device, inputs: Sequence[Any], attrs: dict[str, Any]) -> tuple[Candidate, list[tuple[Candidate, str]]]:
    """The candidate for a call, and every candidate with the reason it was refused ("" for the chosen one)."""
    specs = [_spec(t) for t in inputs]
    looked: list[tuple[Candidate, str]] = []
    for candidate in candidates(record, device):
        why = candidate.refuses(specs, attrs, device.capabilities)
        looked.append((candidate, why))
        if not why:
            return candidate, looked
    raise Unsupported(f"{record.name}: no kernel for {', '.join(str(s.dtype) for s in specs if s)} on {device.name}; "
                      f"haian.explain(haian.ops.{record.name}, ...) says why each was refused")


class Resolver:
    """The Python half of one operator; its methods are the hooks of the native Op."""

    def __init__(self, record: Op) -> None:
        self.record = record
        self.native: Any = None
        self._entered = threading.local()
        self._fallbacks: dict[tuple[str, str], Callable[..., None]] = {}

    # ---- hooks -----------------------------------------------------------------------------------------------------
    def resolve(self, inputs: tuple, attrs: dict[str, Any]) -> tuple[int, int, tuple[int, ...], int, Callable[..., None] | None]:
        """(kernel address, pointwise address, result dtype codes, shape rule, callable) for a signature."""
        record = self.record
        codes = tuple(s.dtype.code for s in infer_specs(record, inputs, attrs))
        device = _device_of(inputs)
        candidate, looked = choose(record, device, inputs, attrs)
        with _lock:
            chosen[record.name, candidate.name] += 1
        rule = _RULES[record.rule]
        # sizes and values are not part of a signature: ask at every call, unless ``when`` says it looks at dtypes alone
        if any(c.when is not None and not getattr(c.when, "by_signature", False) for c, _ in looked):
            return 0, 0, codes, _RULES[""], self._choose_again
        if device.is_host:
            return candidate.address, candidate.pointwise, codes, rule, candidate.call
        if candidate.device == "cpu":
            return 0, 0, codes, rule, self.fall_back(device, looked)
        if record.attrs or (record.rule == "same" and len(record.tensors) > 1):
            rule = _RULES[""]  # host kernels check attributes and shapes themselves on every call, device kernels do not
        return 0, int(record.formula is not None), codes, rule, candidate.call

    def _choose_again(self, inputs: tuple, attrs: dict[str, Any], outs: tuple) -> None:
        device = _device_of(inputs or outs)
        candidate, looked = choose(self.record, device, inputs, attrs)
        if candidate.call is not None:
            candidate.call(inputs, attrs, outs)
        elif device.is_host:
            args, kwargs = _arguments(self.record, inputs, attrs)
            self.host(*args, **kwargs, out=outs[0] if len(outs) == 1 else outs)
        else:
            self.fall_back(device, looked)(inputs, attrs, outs)

    @cached_property
    def host(self) -> Any:
        """The operator with the host's own kernel as its only candidate."""
        def resolve(inputs: tuple, attrs: dict[str, Any]) -> tuple[int, int, tuple[int, ...], int, None]:
            found = _host(self.record)
            if found is None:
                raise Unsupported(f"{self.record.name}: this build has no host kernel for it")
            codes = tuple(s.dtype.code for s in infer_specs(self.record, inputs, attrs))
            return found.address, found.pointwise, codes, _RULES[self.record.rule], None

        from .api import native_op
        return native_op(self.record, resolve, self)

    def infer(self, inputs: tuple, attrs: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
        """Result shapes; raises the operator's own errors."""
        return tuple(s.shape for s in infer_specs(self.record, inputs, attrs))

    # ---- falling back to the host ------------------------------------------------------------------------------------
    def fall_back(self, device: Device, looked: Sequence[tuple[Candidate, str]]) -> Callable[..., None]:
        """What computes on the host and copies back; ``looked``: the device's candidates and why each was refused."""
        name = self.record.name
        why = next((w for _, w in looked if w), "there is none")
        if _policy == "error":
            raise Unsupported(f"{name}: {device.name} has no kernel for it ({why}) and the fallback policy is 'error'; "
                              f"haian.set_fallback_policy('warn') lets the host compute it")
        made = self._fallbacks.get((device.name, why))
        if made is None:
            def made(inputs: tuple, attrs: dict[str, Any], outs: tuple) -> None:
                with _lock:
                    counters[name] += 1
                if _policy == "warn" and name not in _warned:
                    _warned.add(name)
                    _log.warning("%s: no kernel on %s (%s), the host computes it (said once an operator)", name, device.name, why)
                on_host = [t if t is None else t.cpu() for t in inputs]
                args, kwargs = _arguments(self.record, on_host, attrs)
                results = self.host(*args, **kwargs)
                for out, result in zip(outs, results if isinstance(results, tuple) else (results,)):
                    out.copy_(result)

            self._fallbacks[device.name, why] = made
        return made

    # ---- everything the native fast path does not take ----------------------------------------------------------------
    def call_slowly(self, *args: Any, **kwargs: Any) -> Any:
        """Convert arguments, then call the native operator again; raises what is wrong with them."""
        converted = getattr(self._entered, "converted", ())
        if converted and any(a is b for a in (*args, *kwargs.values()) for b in converted):
            raise InternalError(f"{self.record.name}: converted arguments were refused again: {args!r} {kwargs!r}")
        call = _Call(self.record, args, kwargs)
        self._entered.converted = tuple(t for t in call.inputs if t is not None)
        try:
            return call.run(self)
        finally:
            self._entered.converted = converted


def _arguments(record: Op, inputs: Sequence[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Inputs and attributes as positional and keyword arguments of the native operator."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    tensors = iter(inputs)
    positional = True
    for p in record.params:
        if p.kind == "tensors":
            value: Any = list(tensors)
        elif p.is_tensor:
            value = next(tensors)
        else:
            value = attrs[p.name]
        positional = positional and not p.keyword_only
        if positional:
            args.append(value)
        else:
            kwargs[p.name] = value
    return args, kwargs


class _Call:
    """One call on the slow path: numbers, foreign arrays, devices, overlapping outputs, host streams."""

    def __init__(self, record: Op, args: tuple, kwargs: dict[str, Any]) -> None:
        self.record = record
        self.foreign: list[Any] = []  # the caller's own kinds of array, as they came
        self.arrays = 0  # inputs that are neither numbers nor absent
        self.out = kwargs.pop("out", None)
        wanted = kwargs.pop("device", None)
        self.device: Device | None = None
        values = self._bind(args, kwargs)
        raw = [values[p.name] for p in record.params if p.is_tensor]
        self.listed = any(p.kind == "tensors" for p in record.params)
        if self.listed:
            given = raw[0]
            if not isinstance(given, (list, tuple)):
                raise DTypeError(f"{record.name}: {record.params[0].name} is {_what(given)}; needs a list of tensors")
            if not given:
                raise ArgumentError(f"{record.name}: no tensors; needs a list of one or more")
            if len(given) > 14:
                raise ArgumentError(f"{record.name}: {len(given)} tensors; one call takes at most 14, join in steps")
            raw = list(given)
        self.inputs = self._tensors(raw)
        self.attrs = {p.name: self._attr(p, values[p.name]) for p in record.attrs}
        self.outs = self._outs()
        from ..hal.registry import device as find
        present = {t.device_index: t for t in (*self.inputs, *(self.outs or ())) if t is not None}
        if len(present) > 1:
            places = ", ".join(t.device.name for t in present.values())
            raise ArgumentError(f"{record.name}: tensors are on {places}; needs one device, use .to(device)")
        if wanted is not None:
            self.device = find(wanted)
            if present and self.device.position not in present:
                raise ArgumentError(f"{record.name}: device={self.device.name} but the tensors are on "
                                    f"{next(iter(present.values())).device.name}; use .to(device) first")
        elif present:
            from ..hal.registry import at
            self.device = at(next(iter(present)))

    # ---- arguments ---------------------------------------------------------------------------------------------------
    def _bind(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        record = self.record
        positional = [p for p in record.params if not p.keyword_only]
        if len(args) > len(positional):
            raise ArgumentError(f"{record.name}: {len(args)} positional arguments; takes {len(positional)} "
                                f"({', '.join(p.name for p in positional)})")
        values = {p.name: v for p, v in zip(positional, args)}
        for key, value in kwargs.items():
            if key in values:
                raise ArgumentError(f"{record.name}: argument {key!r} came twice; give it once")
            if all(p.name != key for p in record.params):
                raise ArgumentError(f"{record.name}: unknown argument {key!r}; takes {', '.join(p.name for p in record.params)}, out")
            values[key] = value
        for p in record.params:
            if p.name not in values:
                if p.default is inspect.Parameter.empty and not p.optional:
                    raise ArgumentError(f"{record.name}: argument {p.name!r} is missing; see help(haian.ops.{record.name})")
                values[p.name] = None if p.is_tensor else p.default
        return values

    def _tensors(self, raw: list[Any]) -> list[Any]:
        from ..hal.tensor import Tensor
        params = [p for p in self.record.params if p.is_tensor]
        found: list[Any] = []
        for i, value in enumerate(raw):
            p = params[0] if self.listed else params[i]
            self.arrays += value is not None and not isinstance(value, (bool, int, float))
            if isinstance(value, Tensor) or isinstance(value, (bool, int, float)):
                found.append(value)
            elif value is None:
                if not p.optional:
                    raise ArgumentError(f"{self.record.name}: {p.name} is None; needs a tensor")
                found.append(None)
            elif _is_array(value):
                self.foreign.append(value)
                found.append(_shared(f"{self.record.name}: {p.name}", value))
            else:
                raise DTypeError(f"{self.record.name}: {p.name} is {_what(value)}; needs a haian tensor, or an array with DLPack or the buffer protocol")
        numbers = [i for i, v in enumerate(found) if isinstance(v, (bool, int, float))]
        if numbers:
            data = [t for i, t in enumerate(found) if t is not None and i not in numbers]
            carrier = next((t for t in data if t.dtype.kind != "b"), data[-1] if data else None)
            if carrier is None:
                raise ArgumentError(f"{self.record.name}: only numbers came; at least one argument must be a tensor")
            for i in numbers:
                found[i] = self._number(found[i], params[min(i, len(params) - 1)].name, carrier)
        return found

    def _number(self, value: bool | int | float, name: str, carrier: Any) -> Any:
        """A Python number takes the dtype of the tensors it meets, if that can hold it."""
        d = carrier.dtype
        fits = d.kind in "fc" or isinstance(value, bool) or (isinstance(value, int) and d.kind in "iu")
        if fits and d.kind in "iu":
            bounds = np.iinfo(d.numpy)
            fits = bounds.min <= int(value) <= bounds.max
        if not fits:
            raise DTypeError(f"{self.record.name}: {name} is {value!r}, which {d} cannot hold; cast the tensor or the number first")
        from ..hal.tensor import asarray
        return asarray(np.array(value).astype(d.numpy), device=carrier.device)

    def _attr(self, p: Any, value: Any) -> Any:
        where = f"{self.record.name}: {p.name}"
        if value is None:
            if p.optional:
                return None
            raise ArgumentError(f"{where} is None; needs {_KINDS[p.kind]}")
        if p.kind == "bool" and isinstance(value, (bool, np.bool_)):
            return bool(value)
        if p.kind == "dtype" and not isinstance(value, int):  # the numbers of dtypes are C's
            try:
                return dtype(value)
            except DTypeError:
                raise DTypeError(f"{where} is {value!r}, not one of haian's; needs one of {', '.join(BY_NAME)}") from None
        if p.kind == "choice" and isinstance(value, str):
            if value not in p.choices:
                raise ArgumentError(f"{where} is {value!r}; needs one of {', '.join(p.choices)}")
            return value
        if p.kind == "int" and isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            if not -(2**63) <= int(value) < 2**63:
                raise ArgumentError(f"{where} is {value}; needs an integer of 64 bits")
            return int(value)
        if p.kind == "float" and isinstance(value, (int, float, np.integer, np.floating)):
            try:
                return float(value)
            except OverflowError:
                raise ArgumentError(f"{where} is {value}; needs a number within float64") from None
        if p.kind == "ints":
            values = value if isinstance(value, (list, tuple)) else [value]
            if all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in values):
                if len(values) > 8:
                    raise ShapeError(f"{where} has {len(values)} entries; haian tensors have at most 8 axes")
                if not all(-(2**63) <= int(v) < 2**63 for v in values):
                    raise ArgumentError(f"{where} is {tuple(values)}; needs integers of 64 bits")
                return tuple(int(v) for v in values)
        raise ArgumentError(f"{where} is {value!r}; needs {_KINDS[p.kind]}")

    def _outs(self) -> tuple[Any, ...] | None:
        from ..hal.tensor import Tensor
        if self.out is None:
            return None
        given = self.out if isinstance(self.out, (tuple, list)) else (self.out,)
        if len(given) != len(self.record.results):
            raise ArgumentError(f"{self.record.name}: out has {len(given)} tensors; needs {len(self.record.results)}")
        outs = []
        for o in given:
            if isinstance(o, Tensor):
                outs.append(o)
            elif isinstance(o, np.ndarray) and not o.flags.writeable:
                raise ArgumentError(f"{self.record.name}: out is a read-only array; give a writable one")
            elif isinstance(o, np.ndarray) and not o.dtype.isnative:
                raise DTypeError(f"{self.record.name}: out has byte-swapped dtype {o.dtype}; give one in native byte order")
            elif _is_array(o) and not isinstance(o, np.generic):  # NumPy's scalars have no memory to write to
                outs.append(_shared(f"{self.record.name}: out", o, copy=False))
            else:
                raise DTypeError(f"{self.record.name}: out is {_what(o)}; needs a tensor")
        return tuple(outs)

    # ---- running -------------------------------------------------------------------------------------------------------
    def look(self) -> Any:
        """The result of a view operator, on the memory of its inputs."""
        from ..hal.tensor import with_geometry
        record, tensors = self.record, self.inputs
        assert record.view is not None
        if self.out is not None:
            raise ArgumentError(f"{record.name}: out came, but the result is a view of its input; use copy")
        made = record.view(*(Geometry(t.shape, t.strides) for t in tensors), **self.attrs)
        if isinstance(made, Geometry):
            return self._as_caller(with_geometry(tensors[0], made))
        pairs = (m if isinstance(m[0], int) else (0, m) for m in made)
        return self._as_caller(tuple(with_geometry(tensors[i], g) for i, g in pairs))

    def build(self) -> Any:
        """The result of an operator whose shape depends on the data, from other operators on the device of its inputs."""
        record = self.record
        assert record.dynamic is not None
        if self.out is not None:
            raise ArgumentError(f"{record.name}: out came, but how large the result is depends on the data; copy it into out")
        self._specs()  # refuses what the operator does not take
        return self._as_caller(record.dynamic(OperatorsOn(_device_of(self.inputs)), *self.inputs, **self.attrs))

    def run(self, resolver: Resolver) -> Any:
        native = resolver.native
        args, kwargs = _arguments(self.record, self.inputs, self.attrs)
        if self.device is not None and self.device.is_host and not self.device.current_stream.synchronous:
            result = self._queue(native, args, kwargs)
        elif not any(p.is_tensor for p in self.record.params) and self.device is not None and not self.device.is_host:
            result = self._create(resolver)
        elif self.outs is not None:
            result = self._into_outs(native, args, kwargs)
        else:
            result = native(*args, **kwargs)
        if self.out is not None:
            return self.out
        return self._as_caller(result)

    def _specs(self) -> tuple[Spec, ...]:
        return infer_specs(self.record, self.inputs, self.attrs)

    def _empty(self, specs: Sequence[Spec]) -> tuple[Any, ...]:
        assert self.device is not None
        with naming(self.record.name):
            return tuple(self.device.empty(s.shape, s.dtype) for s in specs)

    def _check_outs(self) -> None:
        for i, (out, spec) in enumerate(zip(self.outs or (), self._specs())):
            if out.shape != spec.shape or out.dtype is not spec.dtype:
                kind = ShapeError if out.dtype is spec.dtype else DTypeError
                raise kind(f"{self.record.name}: out{f' {i}' if i else ''} is {out.dtype} {out.shape}; needs {spec.dtype} {spec.shape}")
            if out.numel and any(n > 1 and not step for n, step in zip(out.shape, out.strides)):
                raise AliasError(f"{self.record.name}: out has strides {out.strides} that let elements share memory; give it its own")

    def _into_outs(self, native: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """An output that overlaps an input is computed apart, then copied, so that no input is read after it changed."""
        outs = self.outs or ()
        self._check_outs()
        if any(t is not None and _may_overlap(o, t) for o in outs for t in self.inputs):
            results = native(*args, **kwargs)
            for out, result in zip(outs, results if isinstance(results, tuple) else (results,)):
                out.copy_(result)
            return None
        return native(*args, **kwargs, out=outs[0] if len(outs) == 1 else outs)

    def _create(self, resolver: Resolver) -> Any:
        """Operators without tensor inputs on a device: full, arange, rand."""
        assert self.device is not None
        specs = self._specs()
        if self.outs is not None:
            self._check_outs()
        outs = self.outs or self._empty(specs)
        candidate, looked = choose(self.record, self.device, (), self.attrs)
        (candidate.call or resolver.fall_back(self.device, looked))((), self.attrs, outs)
        return outs[0] if len(outs) == 1 else outs

    def _queue(self, native: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """On a host stream the call happens later, in stream order; arguments are checked now."""
        assert self.device is not None
        specs = self._specs()
        if self.outs is not None:
            self._check_outs()
        outs = self.outs or self._empty(specs)
        into = outs[0] if len(outs) == 1 else outs
        self.device.current_stream.host_func(lambda: native(*args, **kwargs, out=into))
        return into

    def _as_caller(self, result: Any) -> Any:
        """The caller's own kind of array where all array inputs were of that one kind."""
        kinds = {type(f).__module__.partition(".")[0] for f in self.foreign}
        if len(kinds) != 1 or len(self.foreign) < self.arrays:
            return result
        module = sys.modules.get(kinds.pop())
        if module is np:
            def convert(t: Any) -> Any:
                return t.numpy()
        elif module is not None and hasattr(module, "from_dlpack"):
            convert = module.from_dlpack
        else:
            return result
        return tuple(convert(r) for r in result) if isinstance(result, tuple) else convert(result)


_KINDS = {"int": "an integer", "float": "a number", "bool": "True or False", "ints": "an integer or a list of integers",
          "dtype": "a dtype", "choice": "a string"}


def _what(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _is_array(value: Any) -> bool:
    """Whether a value's type speaks DLPack, NumPy's protocol or the buffer protocol (a class itself does not)."""
    if any(hasattr(type(value), name) for name in ("__dlpack__", "__array__")):
        return True
    try:
        memoryview(value).release()
    except (TypeError, ValueError, BufferError):
        return False
    return True


def _shared(where: str, value: Any, copy: bool | None = None) -> Any:
    """``asarray`` of an argument, whose errors say which it was."""
    from ..hal.tensor import asarray
    try:
        with naming(f"{where} is {_what(value)}"):
            return asarray(value, copy=copy)
    except HaianError:
        raise
    except (BufferError, TypeError, ValueError, RuntimeError) as error:  # the other library's own refusal
        raise ArgumentError(f"{where} is {_what(value)} that cannot be shared ({' '.join(str(error).split())}); detach or convert it first") from error


def _extent(t: Any) -> tuple[int, int]:
    lo = hi = 0
    for n, s in zip(t.shape, t.strides):
        reach = (n - 1) * s
        lo, hi = min(lo, lo + reach), max(hi, hi + reach)
    return t.address + lo * t.itemsize, t.address + (hi + 1) * t.itemsize


def _may_overlap(a: Any, b: Any) -> bool:
    if a.device_index != b.device_index or not a.numel or not b.numel:
        return False
    if a.address == b.address and a.shape == b.shape and a.strides == b.strides and a.dtype is b.dtype:
        return True
    (alo, ahi), (blo, bhi) = _extent(a), _extent(b)
    return alo < bhi and blo < ahi


class OperatorsOn:
    """The operators; those without tensor inputs make their results on one device."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Any:
        from . import api
        from .ops import OPS
        fn = getattr(api, name)
        return fn if self._device.is_host or OPS[name].tensors else partial(fn, device=self._device)


def look(record: Op, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Call an operator that has no plan: its arguments are converted and checked as those of any operator."""
    call = _Call(record, args, kwargs)
    return call.look() if record.views else call.build()


def explain(op: Any, *args: Any, **kwargs: Any) -> str:
    """Which kernel a call would take and why: every candidate, most specific first, with the reason it was refused.

    Args:
        op: a function of haian.ops, or its name.
        args, kwargs: as for the call; nothing is computed.
    """
    from .ops import OPS
    name = op if isinstance(op, str) else getattr(op, "__name__", "")
    record = OPS.get(name)
    if not isinstance(op, str):
        from .user import record_of
        record = record_of(op) or record
    if record is None:
        raise ArgumentError(f"explain: {op!r} is no operator; give a function of haian.ops or its name, `haian ops list` prints them")
    call = _Call(record, args, dict(kwargs))
    from ..hal.registry import at
    device = call.device or at(0)
    results = infer_specs(record, call.inputs, call.attrs)
    if not record.takes_out:
        how = "a view of its input: no kernel" if record.views else f"at most; made of other operators: {record.composite}"
        return f"{name} on {device.name} -> {', '.join(f'{s.dtype} {s.shape}' for s in results)}\n  {how}"
    lines = [f"{name} on {device.name} -> {', '.join(f'{s.dtype} {s.shape}' for s in results)}"]
    specs = [_spec(t) for t in call.inputs]
    taken = False
    for candidate in candidates(record, device):
        why = candidate.refuses(specs, call.attrs, device.capabilities)
        if taken:
            state = "not needed"
        elif why:
            state = f"refused: {why}"
        elif candidate.device == "cpu" and not device.is_host:
            state, taken = f"taken as a fallback to the host (policy {_policy})", True
        else:
            state, taken = "taken", True
        lines.append(f"  {candidate.name:<32} {state}")
    if not taken:
        lines.append("  no candidate takes this call")
    return "\n".join(lines)
