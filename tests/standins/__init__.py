"""Stand-in runtimes: shared libraries with a vendor's names, argument order, numbers and traps, and no vendor's hardware.

What passes on them proves calling conventions, never a chip.
"""
from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .build import STANDINS, build

if TYPE_CHECKING:
    from haian.hal.driver import Driver

__all__ = ["STANDINS", "build", "driver", "image", "library"]


def driver(name: str, private: bool = False, change: Callable[[type], type] | None = None, path: str = "") -> Driver:
    """A new driver of the adapter ``name`` over its stand-in: two devices of 64 MiB; "adapter-route" takes the adapter's other runtime.

    private: over a library of its own, so that what it breaks is broken for nobody else in this process.
    change: makes another class of the adapter's before anything is opened (traps.py).  path: of a library built already.
    """
    module = import_module(f"haian.adapters.{name.partition('-')[0]}")
    cls = getattr(module, module.__all__["-" in name])
    path = path or str(build(name))
    with TemporaryDirectory() as scratch:
        made = (change(cls) if change else cls)(str(shutil.copy(path, scratch) if private else path))
        made.device_count()  # opens it
    names = ("conform_axpy", "conform_leave", "conform_grid", "conform_args")
    own = {"conformance_image": (image(*names), next(iter(made.table.formats), ""), *names)}
    assumed = {k: 64 << 20 if k == "total_bytes" else v for k, v in made.table.defaults.items()}  # where the runtime cannot say
    made.table = replace(made.table, facts={**made.table.facts, "extra": own}, defaults=assumed)  # own: the HAL suite's kernels
    return made


def library(name: str) -> Path:
    """The folder of a stand-in, under the vendor's file name: for tests of looking for it."""
    return build(name).parent


def image(*kernels: str) -> bytes:
    """A module that the stand-ins load: some of axpy, increment, geometry, spin, fault (device.c says what they do)."""
    return b"\x7fELFstandin:" + ",".join(kernels).encode()
