"""The HAL conformance suite: 72 checks of a driver, one function each.

check.py what a check is and how to write one; loading.py, device.py, memory.py, copy.py, stream.py, event.py, errors.py,
threads.py, module.py, comm.py, optional.py the checks; images.py their kernels; claims.py what they leave unproven.
"""
from .check import CHECKS, Check, NotOffered, Subject, load_checks, require

__all__ = ["CHECKS", "Check", "NotOffered", "Subject", "load_checks", "require"]
