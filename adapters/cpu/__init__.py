"""The host as a device: real asynchronous streams and events over ordinary memory.  See runtime.py."""
from .runtime import CpuDriver

__all__ = ["CpuDriver"]
