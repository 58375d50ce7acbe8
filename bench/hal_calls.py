"""What a call of a driver in C costs from Python above the driver's own function: event query, copy, launch, cached allocation.

    python -m haian.bench.hal_calls        prints a table; needs a C compiler and the source tree's examples/inline_adapter

Both sides take the fastest of many rounds, since the machine is shared; the loop's own cost is taken off Python's side.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from haian.hal.c_driver import HEADER, CDriver
from haian.hal.driver import DEVICE_TO_DEVICE, Copy
from haian.hal.errors import EnvironmentMissing, HaianError

from haian import _native

__all__ = ["main", "measure"]

HERE = Path(__file__).parent
#: nanoseconds above the driver's own cost that a call may take
LIMITS = {"event_query": 100, "alloc_free": 80, "copy": 200, "launch": 300}
_NOP = "#include <stdint.h>\nvoid nop(const void *const *a, const uint32_t g[3], const uint32_t p[3]) { (void)a; (void)g; (void)p; }\n"


def _cc(*args: str) -> None:
    try:
        subprocess.run([os.environ.get("CC", "cc"), "-O2", f"-I{HEADER.parent}", *args], check=True)
    except (OSError, subprocess.CalledProcessError) as e:
        raise EnvironmentMissing(f"hal_calls: {e}; needs a C compiler (CC) and the source tree") from None


def _ns(fn: Callable[..., Any], *args: Any, calls: int = 100_000, rounds: int = 15) -> float:
    """Nanoseconds a call, the loop's own taken off; the fastest of the rounds."""
    best = empty = float("inf")
    for _ in range(rounds):
        start = time.perf_counter_ns()
        for _ in range(calls):
            pass
        empty = min(empty, (time.perf_counter_ns() - start) / calls)
        start = time.perf_counter_ns()
        for _ in range(calls):
            fn(*args)
        best = min(best, (time.perf_counter_ns() - start) / calls)
    return best - empty


def measure(source: Path = HERE.parent / "examples" / "inline_adapter" / "inline.c") -> dict[str, tuple[float, float]]:
    """(from Python, the driver's own) in nanoseconds, by call.

    Raises:
        EnvironmentMissing: no compiler, or the source tree is not there.
    """
    from haian.hal.registry import Registry
    if not source.exists() or not (HERE / "hal_calls.c").exists():
        raise EnvironmentMissing("hal_calls: needs the source tree, with bench/hal_calls.c and examples/inline_adapter; run it in a checkout")
    with tempfile.TemporaryDirectory(prefix="haian-") as folder:
        place = Path(folder)
        (place / "nop.c").write_text(_NOP)
        _cc("-shared", "-fPIC", str(place / "nop.c"), "-o", str(place / "nop.so"))
        _cc("-std=c11", "-shared", "-fPIC", str(source), "-o", str(place / "inline.so"))
        _cc(str(HERE / "hal_calls.c"), "-ldl", "-o", str(place / "hal_calls"))
        said = subprocess.run([str(place / "hal_calls"), str(place / "inline.so"), str(place / "nop.so")], capture_output=True, text=True, check=True)
        own = {name: float(ns) for name, ns in (line.split() for line in said.stdout.splitlines())}
        registry = Registry()
        device = registry.load_adapter(place / "inline.so")[0]
        driver = device.driver
        assert isinstance(driver, CDriver)
        driver.props(0)  # as every user of a device does; the driver then knows which copies wait for nobody
        p, event = driver.alloc(0, 64), driver.event_create(0)
        driver.event_record(event, 0)
        kernel = driver.get_kernel(driver.module_load(0, (place / "nop.so").read_bytes(), "so"), "nop")
        launcher = _native.Launcher("nop", 0, device.position, kernel, 1, 0, ("*fp32",) * 3 + ("i32",) * 4, table=driver.hal_table)
        stream, buffer, copy = device.default_stream, _native.Buffer, Copy(DEVICE_TO_DEVICE, p + 8, p, 4)
        found = {"event_query": _ns(driver.event_query, event), "copy": _ns(driver.copy, 0, copy),
                 "launch": _ns(launcher, 0, 1, 1, 1, p, p, p, 1, 2, 3, 4), "alloc_free": _ns(buffer, device, 64, stream)}
        own["alloc_free"] = 0.0  # from the cache: the driver is not asked
        return {name: (found[name], own[name]) for name in LIMITS}


def main() -> int:
    print(f"{'call':<12}{'from Python':>14}{'driver':>10}{'above it':>10}{'limit':>8}")
    over = 0
    for name, (ns, own) in measure().items():
        over += ns - own > LIMITS[name]
        print(f"{name:<12}{ns:>11.0f} ns{own:>7.0f} ns{ns - own:>7.0f} ns{LIMITS[name]:>5} ns")
    return int(over > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HaianError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
