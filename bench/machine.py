"""What machine a report comes from: processor, caches, clock policy, load, versions.  Only reads, changes nothing."""
from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["facts", "load"]


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def load() -> float:
    """Load average of the last minute; -1 where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0


def _caches() -> str:
    found = []
    for k in range(8):
        base = f"/sys/devices/system/cpu/cpu0/cache/index{k}"
        level, kind, size = _read(f"{base}/level"), _read(f"{base}/type"), _read(f"{base}/size")
        if level and kind != "Instruction":
            found.append(f"L{level} {size}")
    return ", ".join(found)


def facts(device: Any, peers: dict[str, str]) -> dict[str, Any]:
    """Facts of the device and of the host, as they stand in the report's head.

    Args:
        device: a haian Device.  peers: versions by name.
    """
    import haian

    from .. import _native
    from .peers import host_threads

    thp = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    return {"device": device.name, "model": device.capabilities.model, "host_isa": _native.isa(), "cores": host_threads(),
            "caches": _caches() or "not exposed",
            "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not exposed",
            "huge_pages": thp[thp.find("[") + 1:thp.find("]")] if "[" in thp else "not exposed",
            "load_before": round(load(), 2), "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "python": platform.python_version(), "haian": haian.__version__, "peers": peers}
