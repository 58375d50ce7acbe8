"""Triton is the compiler, the HAL is the runtime: compile a kernel for a device's target, load it, launch it.

``launch(kernel, grid, *args, CONSTANTS...)`` takes haian Tensors and numbers.  No torch, no active Triton driver.
Not here: the kernels (the family files), block sizes (tuning.py).
"""
from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# 3.9 warns that the default flips in 3.10; haian's error budgets allow fused multiply-adds either way.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ...hal.device import Device
from ...hal.driver import Launch
from ...hal.errors import ArgumentError, Unsupported
from ...hal.registry import at
from ...hal.tensor import Tensor

__all__ = ["F64", "I64", "compile_for", "launch", "next_power_of_2", "programs", "signature_of"]

_ASM = {"ttir": "ttir", "cubin": "cubin", "hsaco": "hsaco"}
#: Pointers that Triton's own launcher appends behind the kernel's arguments (global and profiling scratch).
_HIDDEN_POINTERS = {"cuda": 2, "hip": 2}


class I64(int):
    """An integer argument that travels as i64 even when it would fit 32 bits (offsets, seeds)."""


class F64(float):
    """A number that travels as fp64 (attributes of float64 operators); plain floats travel as fp32."""


@dataclass(frozen=True)
class Compiled:
    """A kernel for one target and signature, with everything a launch must know."""

    name: str
    image: bytes
    format: str
    threads: int
    shared_bytes: int
    types: tuple[str, ...]  # of the arguments that travel, in order
    hidden: int


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n; 1 for n < 1."""
    return 1 << max(n - 1, 0).bit_length()


def programs(n: int, block: int) -> int:
    """How many blocks cover n elements."""
    return -(-n // block)


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + (value.dtype.triton if value.dtype.name != "bool" else "i8")
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, I64):
        return "i64"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, F64):
        return "fp64"
    if isinstance(value, float):
        return "fp32"
    raise ArgumentError(f"a Triton kernel argument is a {type(value).__name__}; needs a Tensor or a number")


def _divisible(value: Any) -> bool:
    """Triton widens loads where it knows a multiple of 16 (bytes for pointers, elements for integers)."""
    if isinstance(value, Tensor):
        return value.address % 16 == 0
    return isinstance(value, int) and not isinstance(value, bool) and value % 16 == 0


def signature_of(args: Sequence[Any]) -> tuple[tuple[str, bool], ...]:
    """(type, divisible by 16) of each argument: what a compiled kernel depends on besides its constants."""
    return tuple((_type_of(a), _divisible(a)) for a in args)


def compile_for(kernel: Any, target: tuple[str, Any, int], image_format: str, signature: tuple[tuple[str, bool], ...],
                constants: dict[str, Any], num_warps: int = 4, num_stages: int = 3) -> Compiled:
    """Compile a @triton.jit kernel ahead of time; no device needed.

    Args:
        kernel: the JITFunction; its parameters not named in ``constants`` take the arguments in order.
        target: (backend, arch, warp size), as Capabilities.triton_target.
        image_format: which stage of the compiler is the image ("cubin", "hsaco", "ttir").

    Raises:
        ArgumentError: more or fewer arguments than the kernel has parameters.
    """
    names = [n for n in kernel.arg_names if n not in constants]
    if len(names) != len(signature):
        raise ArgumentError(f"{kernel.__name__}: {len(signature)} arguments for parameters {', '.join(names)}")
    if target[0] == "haian_sim":
        _register_simulator()
    position = {n: i for i, n in enumerate(kernel.arg_names)}
    types = {n: t for n, (t, _) in zip(names, signature)}
    source = ASTSource(fn=kernel, signature={n: types.get(n, "constexpr") for n in kernel.arg_names},
                       constexprs={(position[n],): v for n, v in constants.items()},
                       attrs={(position[n],): [["tt.divisibility", 16]] for n, (_, d) in zip(names, signature) if d})
    built = triton.compile(source, target=GPUTarget(*target), options={"num_warps": num_warps, "num_stages": num_stages})
    image = built.asm[_ASM[image_format]]
    metadata = built.metadata
    return Compiled(name=metadata.name, image=image if isinstance(image, bytes) else str(image).encode(), format=image_format,
                    threads=metadata.num_warps * target[2], shared_bytes=metadata.shared, types=tuple(t for t, _ in signature),
                    hidden=_HIDDEN_POINTERS.get(target[0], 0))


def _register_simulator() -> None:
    """The sim's Triton backend comes by entry point; a vendor's Triton fork may have read its entry points already."""
    from triton.backends import backends
    if "haian_sim" not in backends:
        raise Unsupported("Triton does not list the haian_sim backend; reinstall haian so that its entry point "
                          "'triton.backends' is found")


_loaded: dict[tuple[Any, ...], tuple[int, Compiled]] = {}
_lock = threading.Lock()


def _load(device: Device, kernel: Any, args: Sequence[Any], constants: dict[str, Any], num_warps: int, num_stages: int) -> tuple[int, Compiled]:
    signature = signature_of(args)
    key = (device.position, kernel, signature, tuple(constants.items()), num_warps, num_stages)
    found = _loaded.get(key)
    if found is None:
        facts = device.capabilities
        if facts.triton_target is None:
            raise Unsupported(f"{device.name} has no Triton target; its adapter must say one in Capabilities.triton_target")
        compiled = compile_for(kernel, facts.triton_target, facts.image_format, signature, constants, num_warps, num_stages)
        with _lock:
            found = _loaded.get(key)
            if found is None:
                module = device.driver.module_load(device.index, compiled.image, compiled.format)
                found = _loaded[key] = (device.driver.get_kernel(module, compiled.name), compiled)
    return found


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any) -> None:
    """Run a kernel on the device of its first Tensor argument, on the calling thread's current stream.

    Args:
        kernel: a @triton.jit function.
        grid: programs along up to three axes; an empty grid does nothing.
        args: Tensors and numbers for the parameters that are not constants, in order.
        constants: the tl.constexpr parameters (hashable).
    """
    if 0 in grid:
        return
    device = at(next(a.device_index for a in args if isinstance(a, Tensor)))
    handle, compiled = _load(device, kernel, args, constants, num_warps, num_stages)
    values = [(t, a.address if isinstance(a, Tensor) else a) for t, a in zip(compiled.types, args)]
    values += [("*i8", 0)] * compiled.hidden
    full = (*grid, 1, 1)[:3]
    stream = device.current_stream
    device.driver.launch(device.index, Launch(handle, full, compiled.threads, compiled.shared_bytes, values), stream.handle)
    if stream.handle:
        stream.hold(*(a for a in args if isinstance(a, Tensor)))
