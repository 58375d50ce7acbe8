"""A kernel's C form: when it is built, how it is called, and what its refusals mean.

HAIAN_SIM_EXECUTOR: ``numpy`` never uses C, ``c`` wherever a kernel has a C form, ``auto`` (the default) once it is in the cache or
has cost NumPy about as long as compiling takes, ``both`` runs every launch twice and raises where the bits differ (both.py).
Not here: the text (emit.py), the compiler (build.py).
"""
from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ....hal.errors import ArgumentError, HaianError, InternalError, OutOfMemory, OutOfRange, Unsupported
from ..ir import parse
from ..memory import Heap, Site
from ..numeric import erf_table
from . import build
from .emit import Emitter
from .numpy_loops import loops
from .scalars import NoCode

if TYPE_CHECKING:
    from ..execute import Kernel

__all__ = ["EXECUTORS", "Native", "available", "mode"]

EXECUTORS = ("auto", "c", "numpy", "both")
# Seconds of NumPy after which a kernel is compiled: what compiling takes (measured 0.2 to 0.5 s for most kernels of the library)
PAYS_S = 0.5
OUTSIDE, MISALIGNED, ASSERT, MEMORY = 1, 2, 3, 4  # sim.h's status


def mode() -> str:
    """HAIAN_SIM_EXECUTOR.  ArgumentError for a word that is none."""
    found = os.environ.get("HAIAN_SIM_EXECUTOR", "") or "auto"
    if found not in EXECUTORS:
        raise ArgumentError(f"HAIAN_SIM_EXECUTOR={found}; it takes {', '.join(EXECUTORS)}")
    return found


def available() -> str:
    """Why kernels cannot be compiled here; "" when they can."""
    if build.compiler() is None:
        return f"no C compiler answers to {os.environ.get('CC', '') or 'cc'}; install one or set CC"
    return _no_loops()


@functools.cache
def _no_loops() -> str:
    try:
        loops()
    except Unsupported as error:
        return str(error)
    return ""


class _Env(ctypes.Structure):
    """sim_env of sim.h."""

    _fields_ = [("blocks", ctypes.c_int64), ("starts", ctypes.c_void_p), ("ends", ctypes.c_void_p), ("deltas", ctypes.c_void_p),
                ("grid", ctypes.c_void_p), ("erf", ctypes.c_void_p), ("ufuncs", ctypes.c_void_p),
                ("ufunc_data", ctypes.c_void_p), ("site", ctypes.c_int64), ("size", ctypes.c_int64), ("address", ctypes.c_int64),
                ("bad", ctypes.c_int64), ("lanes", ctypes.c_int64)]  # fmt: skip


class _Arg(ctypes.Union):
    _fields_ = [("i", ctypes.c_int64), ("d", ctypes.c_double)]


def _emit(image: bytes) -> dict[str, tuple[str, list[Site], str]]:
    """Kernel -> (C text or "", the sites of its accesses, why there is no text)."""
    module = parse(image.decode())
    found = {}
    for k, function in enumerate(f for f in module.functions.values() if f.public):
        emitter = Emitter(module, function)
        try:
            found[function.name] = (emitter.function_text(f"kernel{k}"), emitter.sites, "")
        except NoCode as why:
            found[function.name] = ("", [], str(why))
    return found


class Native:
    """The C form of one kernel of a module.

    Attributes:
        refusal: why there is none, once that is known.
    """

    def __init__(self, image: bytes, name: str, number: int) -> None:
        self.image, self.name, self.number = image, name, number
        self.refusal = ""
        self._function: Callable[..., int] | None = None
        self._looked = False
        self._spent_s = 0.0
        self._lock = threading.Lock()

    # ---- which executor ------------------------------------------------------------------------------------------------------------
    def run(self, kernel: Kernel, heap: Heap, grid: tuple[int, int, int], values: Sequence[np.ndarray]) -> bool:
        """Execute the grid; True where C ran any of it.  Raises what Kernel.run raises."""
        how = mode()
        if how == "numpy":
            kernel.run(heap, grid, values)
            return False
        if how == "both":
            from .both import run_both

            return run_both(self, kernel, heap, grid, values)
        total = grid[0] * grid[1] * grid[2]
        if not self.refusal and self.ready(how == "c"):
            self.call(heap, grid, values, 0, total)
            return True
        if how == "c" or self.refusal:
            kernel.run(heap, grid, values)
            return False
        for first, after in kernel.slabs(total):
            start = time.perf_counter()
            kernel.run_slab(heap, grid, values, first, after)
            self._spent_s += time.perf_counter() - start
            if self._spent_s > PAYS_S and after < total and self.ready(True):
                self.call(heap, grid, values, after, total)
                return True
        return False

    def ready(self, must: bool) -> bool:
        """Whether the C form can be called now.  must: build it if there is one to be built."""
        if self._function is not None:
            return True
        if self.refusal or (self._looked and not must and self._spent_s <= PAYS_S):
            return False
        with self._lock:
            if self._function is None and not self.refusal:
                try:
                    self._open(must or self._spent_s > PAYS_S)
                except HaianError as why:
                    self.refusal = str(why)
                self._looked = True
        return self._function is not None

    def _open(self, must: bool) -> None:
        missing = available()
        cc = build.compiler()
        if missing or cc is None:
            raise Unsupported(missing)
        path = build.library(self.image, cc)
        if path is None and not must:
            return
        if path is None:
            made = _emit(self.image)
            if made[self.name][2]:
                raise Unsupported(f"no C for {made[self.name][2]}")
            path = build.build(self.image, cc, lambda: "".join(text for text, _, _ in made.values()))
        try:
            function = getattr(build.load(path), f"kernel{self.number}")
        except AttributeError:
            raise Unsupported(f"no C for {_emit(self.image)[self.name][2] or self.name}") from None
        function.restype = ctypes.c_int
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        self._function = function

    # ---- the call --------------------------------------------------------------------------------------------------------------------
    def call(self, heap: Heap, grid: tuple[int, int, int], values: Sequence[np.ndarray], first: int, after: int) -> None:
        """Run programs first .. after - 1 in order, without the GIL.

        Raises:
            OutOfRange, ArgumentError: an access outside the live allocations, or misaligned.
            InternalError: a device assertion failed.
            OutOfMemory: the host has no room for one program's tiles.
        """
        assert self._function is not None
        table = heap.table()  # keeps its blocks mapped while the call lasts
        starts, ends = table.arrays()
        deltas = table.deltas()
        size = np.array(grid, np.int32)
        functions, data = loops()
        erf = erf_table()
        env = _Env(len(starts), starts.ctypes.data, ends.ctypes.data, deltas.ctypes.data, size.ctypes.data, erf.ctypes.data,
                   ctypes.addressof(functions), ctypes.addressof(data), 0, 0, 0, 0, 0)
        args = (_Arg * max(1, len(values)))()
        for slot, value in zip(args, values):
            if value.dtype.kind == "f" and value.dtype.itemsize >= 4:
                slot.d = float(value[0])
            else:
                slot.i = int.from_bytes(value.tobytes(), "little", signed=True)
        status = self._function(ctypes.addressof(env), ctypes.addressof(args), first, after)
        if status:
            raise self._error(status, env)

    def _error(self, status: int, env: _Env) -> HaianError:
        if status == MEMORY:
            return OutOfMemory(f"{self.name}: the host has no room for one program's tiles; free some")
        site, size, lanes = _emit(self.image)[self.name][1][env.site], env.size, f"{env.bad} of {env.lanes} lanes"
        if status == ASSERT:
            return InternalError(f"{site} in {env.bad} lanes; see the assertion")
        if status == MISALIGNED:
            return ArgumentError(f"{site}: illegal access, {size} bytes at {env.address:#x} are misaligned in {lanes}; the address must be "
                                 f"a multiple of {size}")
        return OutOfRange(f"{site}: illegal access of {size} bytes at {env.address:#x}, {lanes} outside every live allocation; check the "
                          "mask and the strides")
