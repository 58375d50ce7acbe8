"""The right drivers that the HAL suite's wrong ones derive from, found by their entry points as every adapter is."""
from __future__ import annotations

from typing import Any

from .hal_checks.check import driver_class

__all__ = ["CpuDriver", "SimDriver"]

CpuDriver: Any = driver_class("cpu")
SimDriver: Any = driver_class("sim")
