"""The hardware abstraction: devices, memory, streams, tensors, modules; what a vendor implements is driver.py.

Light to import: names load on first use, no adapter is looked for and no thread starts until a device is asked for.
Not here: operators (kernels), vendors (adapters).  hal.dtype and hal.errors work without the native module.
"""
from __future__ import annotations

import importlib

# File of this folder -> names from it, in the order of reading.  Functions called like their file (device, dtype, validate)
# are not among them, since haian.hal.device is the file: use haian.device, haian.dtype, haian.hal.validate.validate.
_FILES = {
    "errors": ("HaianError",),
    "dtype": ("DType",),
    "driver": ("Capabilities", "Copy", "Driver", "Launch"),
    "c_driver": ("CDriver",),
    "registry": ("AdapterRecord", "devices", "load_adapter", "report"),
    "device": ("Device",),
    "memory": ("Allocator", "Buffer", "copy"),
    "stream": ("Event", "Stream"),
    "comm": ("Communicator",),
    "tensor": ("Tensor", "asarray", "empty", "from_dlpack"),
    "module": ("Graph", "Kernel", "Module"),
    "validate": ("Leak", "Validated"),
}
_HOME = {name: file for file, names in _FILES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"haian.hal has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
