"""Triton is the compiler, the HAL is the runtime: compile a kernel for a device's target, load it, launch it.

``launch(kernel, grid, *args, CONSTANTS...)`` takes haian Tensors and numbers.  No torch, no active Triton driver.  What a
launch needs beyond its arguments is kept in a Plan; native code will take plans over from here (see ``Plan``).
Not here: the kernels (the family files), block sizes (tuning.py).
"""
from __future__ import annotations

import inspect
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# 3.9 warns that the default flips in 3.10; haian's error budgets allow fused multiply-adds either way.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ... import _native
from ...hal.device import Device
from ...hal.driver import Capabilities, Launch
from ...hal.errors import ArgumentError, Unsupported
from ...hal.memory import buffer_of, use
from ...hal.registry import at
from ...hal.tensor import Tensor
from ...hal.validate import Validated

__all__ = ["Compiled", "Data", "F64", "I64", "Step", "by_signature", "capped", "compile_for", "lacks", "launch", "next_power_of_2", "programs", "signature_of"]

# Triton's code generators append pointers of their own behind a kernel's arguments (scratch memory; none in 3.0, two in
# 3.6): where to count them, (stage, the pattern of one argument, the pattern of the text that lists them)
_ARGUMENTS = {"cuda": ("ptx", r"\.param \.", r"\.entry [^(]*\(([^)]*)\)"),
              "hip": ("amdgcn", r"\.value_kind:\s+(?!hidden_)", r"(?s)amdhsa\.kernels:(.*)")}


class I64(int):
    """An integer argument that travels as i64 even when it would fit 32 bits (offsets, seeds)."""


class F64(float):
    """A number that travels as fp64 (attributes of float64 operators); plain floats travel as fp32."""


class Data(int):
    """A number the kernel computes with: nothing is compiled in, whatever it is a multiple of."""


class Step(int):
    """A stride: compiled in when it is 0 or 1, so that loads are known to be broadcast or contiguous; i64 only past 32 bits."""


@dataclass(frozen=True)
class Compiled:
    """A kernel for one target and signature, with everything a launch must know."""

    name: str
    image: bytes
    format: str
    threads: int
    shared_bytes: int
    types: tuple[str, ...]  # of the arguments, in order; "" where the value was compiled in
    hidden: int  # null pointers to pass behind the arguments


@dataclass(frozen=True)
class Plan:
    """A loaded kernel: what repeated launches of one (kernel, signature, constants, device) share.

    ``native`` is a ``_native.Launcher`` where the driver can be called from C: then packing the arguments and the launch
    itself take no Python.
    """

    device: Device
    kernel: Any  # kept alive: plans are looked up by its id, since a JITFunction hashes its source
    handle: int
    threads: int
    shared_bytes: int
    types: tuple[str, ...]
    hidden: tuple[tuple[str, int], ...]
    native: Any = None
    enter: Callable[[int], None] | None = None  # to be called with the device before ``native``


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n; 1 for n < 1."""
    return 1 << max(n - 1, 0).bit_length()


def programs(n: int, block: int) -> int:
    """How many blocks cover n elements."""
    return -(-n // block)


def capped(device: Device, blocks: int) -> int:
    """Programs to launch along x for so many blocks: kernels walk ``range(program_id, blocks, num_programs)``."""
    facts = device.capabilities
    return min(blocks, facts.max_grid[0], facts.max_grid_product)


def lacks(facts: Capabilities, *names: str) -> str:
    """Why the device cannot compute in these dtypes; "" when it can (a device that lists none is taken to)."""
    for name in names:
        if facts.dtypes_math and name not in facts.dtypes_math:
            return f"the device does not compute in {name}"
    return ""


def by_signature(when: Callable[..., str]) -> Callable[..., str]:
    """Marks a WHEN that looks at dtypes and choices only: dispatch asks it once a signature, not at every call."""
    when.by_signature = True  # type: ignore[attr-defined]
    return when


_native.set_argument_marks(I64, F64, Data, Step)


# ---- signatures --------------------------------------------------------------------------------------------------------
_POINTERS = {"bool": "*i8"}


def _one(value: Any) -> tuple[str, bool]:
    """(Triton's type, known multiple of 16) of an argument.  Triton widens loads where it knows the multiple: of bytes for
    pointers, of elements for integers."""
    kind = type(value)
    if kind is Tensor:
        name = value.dtype.name
        return _POINTERS.get(name) or _POINTERS.setdefault(name, "*" + value.dtype.triton), value.address % 16 == 0
    if kind is Step and 0 <= value <= 1:
        return f"={int(value)}", False
    if kind is int or kind is Step or kind is I64:
        return "i32" if kind is not I64 and -(2**31) <= value < 2**31 else "i64", value % 16 == 0
    if kind is Data:
        return "i32" if -(2**31) <= value < 2**31 else "i64", False
    if kind is float:
        return "fp32", False
    if kind is F64:
        return "fp64", False
    if kind is bool:
        return "i1", False
    raise ArgumentError(f"a Triton kernel argument is a {type(value).__name__}; needs a Tensor or a number")


def signature_of(args: Sequence[Any]) -> tuple[tuple[str, bool], ...]:
    """(type, divisible by 16) of each argument: what a compiled kernel depends on besides its constants.

    The type of a Step that is compiled in is ``"=0"`` or ``"=1"``.
    """
    return tuple(map(_one, args))


# ---- compiling ---------------------------------------------------------------------------------------------------------
def _source(kernel: Any, types: dict[str, str], constants: dict[str, Any], divisible: set[int]) -> Any:
    """ASTSource of the installed Triton: 3.3 and later say ``constexprs``, 3.0 to 3.2 ``constants`` (and vendors' forks of them)."""
    names = kernel.arg_names
    if "constexprs" in inspect.signature(ASTSource.__init__).parameters:
        return ASTSource(fn=kernel, signature={n: types.get(n, "constexpr") for n in names},
                         constexprs={(names.index(n),): v for n, v in constants.items()},
                         attrs={(i,): [["tt.divisibility", 16]] for i in sorted(divisible)})
    from triton.compiler.compiler import AttrsDescriptor
    if "divisible_by_16" in getattr(AttrsDescriptor, "__dataclass_fields__", {}):  # 3.0, 3.1: by position
        ones = {names.index(n) for n, v in constants.items() if v == 1 and not isinstance(v, (bool, float))}
        return ASTSource(fn=kernel, signature={i: types[n] for i, n in enumerate(names) if n in types},
                         constants={names.index(n): v for n, v in constants.items()},
                         attrs=AttrsDescriptor(divisible_by_16=divisible, equal_to_1=ones))
    attrs = AttrsDescriptor.from_dict({"arg_properties": {"tt.divisibility": sorted(divisible)}, "cls": "AttrsDescriptor"})
    return ASTSource(fn=kernel, signature=dict(types), constants=dict(constants), attrs=attrs)


def compile_for(kernel: Any, target: tuple[str, Any, int], image_format: str, signature: tuple[tuple[str, bool], ...],
                constants: dict[str, Any], num_warps: int = 4, num_stages: int = 3) -> Compiled:
    """Compile a @triton.jit kernel ahead of time; no device needed.

    Args:
        kernel: the JITFunction; its parameters not named in ``constants`` take the arguments in order.
        target: (backend, arch, warp size), as Capabilities.triton_target.
        image_format: which stage of the compiler is the image ("cubin", "hsaco", "ttir").

    Raises:
        ArgumentError: more or fewer arguments than the kernel has parameters.
        Unsupported: the compiler makes no such image.
    """
    return _compiled(build(kernel, target, signature, constants, num_warps, num_stages), target, image_format, signature)


def build(kernel: Any, target: tuple[str, Any, int], signature: tuple[tuple[str, bool], ...], constants: dict[str, Any],
          num_warps: int = 4, num_stages: int = 3) -> Any:
    """What ``triton.compile`` returns for a signature: every stage's text or bytes in ``asm``, and ``metadata``."""
    names = [n for n in kernel.arg_names if n not in constants]
    if len(names) != len(signature):
        raise ArgumentError(f"{kernel.__name__}: {len(signature)} arguments for parameters {', '.join(names)}")
    if target[0] == "haian_sim":
        _register_simulator()
    position = {n: i for i, n in enumerate(kernel.arg_names)}
    types = {n: t for n, (t, _) in zip(names, signature) if t[0] != "="}
    fixed = constants | {n: int(t[1:]) for n, (t, _) in zip(names, signature) if t[0] == "="}
    divisible = {position[n] for n, (t, d) in zip(names, signature) if d and t[0] != "="}
    return triton.compile(_source(kernel, types, fixed, divisible), target=GPUTarget(*target),
                          options={"num_warps": num_warps, "num_stages": num_stages})


def _compiled(built: Any, target: tuple[str, Any, int], image_format: str, signature: tuple[tuple[str, bool], ...]) -> Compiled:
    image = built.asm.get(image_format)
    if image is None:
        raise Unsupported(f"{built.metadata.name}: Triton makes {', '.join(built.asm)} for {target[0]}, not {image_format!r}; "
                          f"the adapter's Capabilities.image_format must be one of them")
    metadata = built.metadata
    types = tuple("" if t[0] == "=" else t for t, _ in signature)
    return Compiled(name=metadata.name, image=image if isinstance(image, bytes) else str(image).encode(), format=image_format,
                    threads=max(1, metadata.num_warps) * max(1, target[2]), shared_bytes=metadata.shared, types=types,
                    hidden=_hidden(built.asm, target[0], sum(t != "" for t in types)))


def _hidden(asm: Any, backend: str, travelling: int) -> int:
    if backend not in _ARGUMENTS:
        return 0
    stage, one, listed = _ARGUMENTS[backend]
    found = re.search(listed, asm[stage])
    return max(len(re.findall(one, found[1])) - travelling, 0) if found else 0


def _register_simulator() -> None:
    """Triton reads its entry points once, when it is imported, and forks of 3.0 not at all: add what is missing."""
    from importlib import import_module
    from importlib.metadata import entry_points

    import triton.backends as known
    from triton.backends.compiler import BaseBackend
    from triton.backends.driver import DriverBase

    if "haian_sim" in known.backends:
        return

    def concrete(module: Any, base: type) -> type:
        return next(c for c in vars(module).values()
                    if isinstance(c, type) and issubclass(c, base) and c is not base and c.__module__ == module.__name__)

    for ep in entry_points(group="triton.backends"):
        if ep.name not in known.backends:
            known.backends[ep.name] = known.Backend(concrete(import_module(ep.value + ".compiler"), BaseBackend),
                                                    concrete(import_module(ep.value + ".driver"), DriverBase))
    if "haian_sim" not in known.backends:
        raise Unsupported("Triton does not list the haian_sim backend; reinstall haian so that its entry point "
                          "'triton.backends' is found")


# ---- launching ---------------------------------------------------------------------------------------------------------
_plans: dict[tuple[Any, ...], Plan] = {}
_lock = threading.Lock()


def _plan(key: tuple[Any, ...], device: Device, kernel: Any, signature: tuple[tuple[str, bool], ...], constants: dict[str, Any],
          num_warps: int, num_stages: int) -> Plan:
    facts = device.capabilities
    if facts.triton_target is None:
        raise Unsupported(f"{device.name} has no Triton target; its adapter must say one in Capabilities.triton_target")
    compiled = compile_for(kernel, facts.triton_target, facts.image_format, signature, constants, num_warps, num_stages)
    if compiled.shared_bytes > facts.max_shared_bytes > 0:
        raise Unsupported(f"{compiled.name}: needs {compiled.shared_bytes} bytes of shared memory, {device.name} has "
                          f"{facts.max_shared_bytes}; choose smaller blocks")
    with _lock:
        found = _plans.get(key)
        if found is None:
            module = device.driver.module_load(device.index, compiled.image, compiled.format)
            handle = device.driver.get_kernel(module, compiled.name)
            found = _plans[key] = Plan(device, kernel, handle, compiled.threads, compiled.shared_bytes, compiled.types,
                                       (("*i8", 0),) * compiled.hidden, native_launcher(device, compiled, handle),
                                       getattr(device.driver, "make_current", None))
    return found


def native_launcher(device: Device, compiled: Compiled, handle: int) -> Any:
    """A ``_native.Launcher`` of a loaded kernel, or None where the driver is not to be called from C.

    A driver in C has ``hal_table``; a table driver says through ``native_launch`` which function of its vendor's takes which
    pointers, and makes the device current through ``make_current``.  A validating driver has neither, so that its checks see every launch.
    """
    own = getattr(device.driver, "native_launch", None)
    table = getattr(device.driver, "hal_table", 0)
    if isinstance(device.driver, Validated) or not (own or table):
        return None
    how = own(handle, compiled.threads, compiled.shared_bytes) if own else {"table": table, "kernel": handle}
    if how is None:
        return None
    return _native.Launcher(**{"name": compiled.name, "device": device.index, "tensor_device": device.position, "threads": compiled.threads,
                               "shared_bytes": compiled.shared_bytes, "types": compiled.types, "hidden": compiled.hidden, **how})


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any) -> None:
    """Run a kernel on the device of its first Tensor argument, on the calling thread's current stream.

    Args:
        kernel: a @triton.jit function.
        grid: programs along up to three axes; an empty grid does nothing.
        args: Tensors and numbers for the parameters that are not constants, in order.
        constants: the tl.constexpr parameters (hashable).

    Raises:
        ArgumentError: no Tensor among the arguments, or not as many as the kernel has parameters.
        Unsupported: the device has no Triton target, or too little shared memory.
    """
    if 0 in grid:
        return
    tensors = [a for a in args if type(a) is Tensor]
    if not tensors:
        raise ArgumentError(f"{kernel.__name__}: no Tensor argument says on which device to run; pass the output")
    place = tensors[0].device_index
    key = (place, id(kernel), _native.signature(args), tuple(constants.items()), num_warps, num_stages)
    plan = _plans.get(key) or _plan(key, at(place), kernel, signature_of(args), constants, num_warps, num_stages)
    device = plan.device
    stream = device.current_stream
    use(stream, writes=tensors)  # behind other streams' work on them; which ones the kernel writes is not known here
    if plan.native:
        if plan.enter:
            plan.enter(device.index)
        plan.native(stream.native, *grid, *(1, 1)[len(grid) - 1:], *args)
    else:
        values = [(t, a.address if type(a) is Tensor else a) for t, a in zip(plan.types, args) if t]
        device.driver.launch(device.index, Launch(plan.handle, (*grid, 1, 1)[:3], plan.threads, plan.shared_bytes,
                                                  [*values, *plan.hidden]), stream.handle)
    foreign = [t for t in tensors if t.owner is not None and buffer_of(t) is None] if stream.handle else ()
    if foreign:  # another framework's memory: nothing but the reference keeps it
        stream.hold(*foreign)
