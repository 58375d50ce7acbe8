"""What this machine is and how it is doing: model, memory, processors, sensors, read from /proc and /sys where they exist."""
from __future__ import annotations

import hashlib
import os
import platform
import threading
from pathlib import Path

from haian.hal.driver import Telemetry

__all__ = ["Sensors", "cores", "maker", "memory", "model", "uuid"]

_NAN = float("nan")
# what /proc/cpuinfo calls it on: x86; LoongArch; MIPS; Arm; RISC-V
_MODEL = ("model name", "Model Name", "cpu model", "Hardware", "uarch")
_MAKERS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "HygonGenuine": "Hygon", "CentaurHauls": "Zhaoxin", "  Shanghai  ": "Zhaoxin",
           "0x41": "Arm", "0x48": "HiSilicon", "0x70": "Phytium", "0xc0": "Ampere"}  # vendor_id on x86, CPU implementer on Arm


def _cpuinfo(*names: str) -> list[str]:
    """The values of the first of these fields that /proc/cpuinfo has, one a processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
    pairs = [(key.strip(), value[1:]) for key, _, value in (line.partition(":") for line in lines)]
    return next((found for n in names if (found := [v for k, v in pairs if k == n and v.strip()])), [])


def model() -> str:
    """The processor's marketing name; keys tuning tables."""
    found = _cpuinfo(*_MODEL)
    return " ".join(found[0].split()) if found else platform.processor() or platform.machine() or "unknown processor"


def maker() -> str:
    """Who made the processor, "host" where the system does not say."""
    found = _cpuinfo("vendor_id", "CPU implementer")
    return (_MAKERS.get(found[0]) or found[0].strip()) if found else "host"


def uuid() -> str:
    """Names the machine: a digest of its machine-id, which is not to be shown itself; "" where there is none."""
    try:
        own = Path("/etc/machine-id").read_bytes().strip()
    except OSError:
        return ""
    return "CPU-" + hashlib.sha256(b"haian cpu " + own).hexdigest()[:32] if own else ""


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """(free, total) bytes: the machine's, or the control group's where that is less."""
    free = total = 0
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == "MemTotal":
                total = int(value.split()[0]) * 1024
            elif key == "MemAvailable":
                free = int(value.split()[0]) * 1024
    except OSError:  # no /proc: not Linux
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = total
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no group, or "max"
        return free, total
    return min(free, max(limit - used, 0)), min(total, limit)


def _number(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return _NAN


def _first(values: list[float]) -> float:
    return next((v for v in values if v == v), _NAN)


def _temperature() -> float:
    """Of the processor's package, degrees Celsius: x86_pkg_temp and the like, else coretemp's or k10temp's first sensor."""
    zones = sorted(Path("/sys/class/thermal").glob("thermal_zone*"))
    named = []
    for zone in zones:
        try:
            kind = (zone / "type").read_text().strip().lower()
        except OSError:
            continue
        if "cpu" in kind or "pkg" in kind or "soc" in kind:
            named.append(_number(zone / "temp"))
    for chip in sorted(Path("/sys/class/hwmon").glob("hwmon*")):
        try:
            if (chip / "name").read_text().strip() in ("coretemp", "k10temp", "zenpower", "cpu_thermal"):
                named.append(_number(chip / "temp1_input"))
        except OSError:
            continue
    return _first(named) / 1000


def _clock() -> float:
    """Mean over the processors, MHz."""
    khz = [_number(p) for p in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    known = [v / 1000 for v in khz if v == v]
    if not known:
        known = [float(v) for v in _cpuinfo("cpu MHz", "CPU MHz")]
    return sum(known) / len(known) if known else _NAN


class Sensors:
    """Samples; the load is that since the previous sample, of the first one since the machine started."""

    def __init__(self) -> None:
        self._seen = (0, 0)  # (busy, all) ticks of all processors
        self._load = _NAN
        self._lock = threading.Lock()

    def sample(self) -> Telemetry:
        free, total = memory()
        return Telemetry(util_percent=self._util(), temperature_c=_temperature(), clock_mhz=_clock(), mem_used_bytes=float(total - free))

    def _util(self) -> float:
        try:
            ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return _NAN
        now = (sum(ticks) - ticks[3] - ticks[4], sum(ticks))  # idle, iowait
        with self._lock:
            busy, all_ = now[0] - self._seen[0], now[1] - self._seen[1]
            if all_ > 0:  # else: two samples within a tick, 10 ms
                self._load = min(max(100.0 * busy / all_, 0.0), 100.0)
                self._seen = now
            return self._load
