"""Builds the stand-in runtimes with the host's C compiler, and caches them by what they are made of.

    python tests/standins/build.py [name ...]      prints the path of each

The vendors' words and numbers here are typed a second time on purpose: a table of adapters/ that is wrong disagrees with them.
"""
from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["STANDINS", "build"]

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / "build" / "standins"
_GRID = 65535


def _attributes(threads: int, grid: int, shared: int, units: int, *more: tuple[int, int]) -> str:
    """Device attributes at the vendor's numbers: threads a block, x of three grid sizes, shared bytes, multiprocessors."""
    pairs = [(threads, 1024), (grid, 2**31 - 1), (grid + 1, _GRID), (grid + 2, _GRID), (shared, 64 << 10), (units, 4), *more]
    return ",".join(f"{{{a},{b}}}" for a, b in pairs)


# name -> (front end, definitions, file name of the vendor's library)
STANDINS: dict[str, tuple[str, dict[str, str], str]] = {
    "cuda": ("cuda_driver.c", {}, "libcuda.so.1"),
    "hip": ("runtime.c", {"P": "hip", "M": "hip", "LAUNCH": "ModuleLaunchKernel", "PROPERTIES": "GetDevicePropertiesR0600", "PINNED": "HostMalloc",
                          "PINNED_FLAGS": "7", "PINNED_FREE": "HostFree", "MODEL": '"stand-in Instinct"', "ARCH": '"gfx942:sramecc+:xnack-"',
                          "ARCH_OFFSET": "1160", "ATTRIBUTES": _attributes(56, 29, 74, 63, (87, 64))}, "libamdhip64.so.6"),
}


def build(name: str) -> Path:
    """The path of a stand-in library, compiled now unless its sources were compiled before.

    Raises:
        FileNotFoundError: no C compiler.  subprocess.CalledProcessError: it refused.
    """
    front, definitions, library = STANDINS[name]
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise FileNotFoundError("stand-ins need a C compiler (cc, gcc or clang); install one")
    sources = [HERE / front, HERE / "device.c"]
    flags = ["-std=gnu11", "-O1", "-g", "-fPIC", "-shared", "-Wall", "-Wextra", *(f"-D{k}={v}" for k, v in definitions.items())]
    text = "\0".join([compiler, *flags, *(p.read_text() for p in sorted(HERE.glob("*.[ch]")))])
    folder = CACHE / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = folder / library
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # several test processes may build at once
            made = Path(scratch) / library
            subprocess.run([compiler, *flags, "-o", str(made), *map(str, sources), "-lpthread"], check=True)
            made.chmod(0o755)
            made.replace(path)
    return path


if __name__ == "__main__":
    for wanted in sys.argv[1:] or STANDINS:
        print(build(wanted))
