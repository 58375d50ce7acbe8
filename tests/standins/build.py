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


def _attributes(threads: int, grid: int, shared: int, units: int, *more: tuple[int, int], most: int = 1024) -> str:
    """Device attributes at the vendor's numbers: threads a block, x of three grid sizes, shared bytes, multiprocessors."""
    pairs = [(threads, most), (grid, 2**31 - 1), (grid + 1, _GRID), (grid + 2, _GRID), (shared, 64 << 10), (units, 4), *more]
    return ",".join(f"{{{a},{b}}}" for a, b in pairs)


_HIP = {"P": "hip", "M": "hip", "LAUNCH": "ModuleLaunchKernel", "PROPERTIES": "GetDevicePropertiesR0600", "PINNED": "HostMalloc", "PINNED_FLAGS": "7",
        "PINNED_FREE": "HostFree", "ARCH_OFFSET": "1160", "ATTRIBUTES": _attributes(56, 29, 74, 63, (87, 64))}
# SI_DELAY_US: nothing can hold a stream of XRE, so that it must be slow for unfinished work to be seen
# name -> (front end, definitions, file name of the vendor's library)
STANDINS: dict[str, tuple[str, dict[str, str], str]] = {
    "cuda": ("cuda_driver.c", {}, "libcuda.so.1"),
    "thead": ("cuda_driver.c", {}, "libcuda.so.1"),
    "hip": ("runtime.c", _HIP | {"MODEL": '"stand-in Instinct"', "ARCH": '"gfx942:sramecc+:xnack-"'}, "libamdhip64.so.6"),
    "hygon": ("runtime.c", _HIP | {"MODEL": '"stand-in DCU"', "ARCH": '"gfx928:sramecc+:xnack-"'}, "libgalaxyhip.so.5"),
    "iluvatar": ("runtime.c", {"P": "cuda", "M": "cu", "MODULE_INIT": "1", "LAUNCH": "LaunchKernel", "MODEL": '"stand-in BI-V150"',
                               "ATTRIBUTES": _attributes(1, 5, 8, 16, (10, 64), (75, 7), (76, 1))}, "libcudart.so"),
    "mthreads": ("runtime.c", {"P": "musa", "M": "mu", "MODULE_INIT": "1", "LAUNCH": "LaunchKernel", "MODEL": '"stand-in MTT S5000"',
                               "ATTRIBUTES": _attributes(1, 5, 97, 16, (10, 32), (75, 3), (76, 1))}, "libmusart.so.5"),
    "metax": ("runtime.c", {"P": "mc", "M": "mc", "LAUNCH": "ModuleLaunchKernel", "MODEL": '"stand-in C500"', "CODE_OOM": "10007",
                            "ATTRIBUTES": _attributes(0, 4, 7, 16, (9, 64), (21, 10), (22, 0))}, "libmcruntime.so"),
    "enflame": ("runtime.c", {"P": "tops", "M": "tops", "LAUNCH": "ModuleLaunchKernel", "MODEL": '"stand-in S60"', "ARCH": '"gcu300"',
                              "ARCH_OFFSET": "700", "PINNED": "HostMalloc", "PINNED_FLAGS": "7", "PINNED_FREE": "HostFree",
                              "UNIT": "256", "ATTRIBUTES": _attributes(9, 6, 11, 10, most=256)}, "libtopsrt.so"),
    "sunrise": ("runtime.c", {"P": "tang", "M": "ta", "MODULE_INIT": "1", "MODULE_SIZE": "1", "LAUNCH": "LaunchKernel", "MODEL": '"stand-in S2"',
                              "NO_AUTO": "1", "CODE_OOM": "3006", "CODE_CAPTURE": "306", "ATTRIBUTES": _attributes(4, 8, 0, 13, (2, 32))},
                "libtangrt_shared.so"),
    "biren": ("runtime.c", {"P": "su", "MODEL": '"stand-in BR100"', "MALLOC": "MallocDevice", "PINNED_FLAGS": "7", "STREAM_FIRST": "1", "NO_EXTRAS": "1",
                            "NO_GRAPH": "1", "ATTRIBUTES": "{-1,0}"}, "libsupa-runtime.so"),
    "tsingmicro": ("runtime.c", {"P": "tx", "MODEL": '"stand-in TX81"', "NO_WAIT_FLAGS": "1", "NO_MEMSET": "1", "NO_AUTO": "1", "NO_EXTRAS": "1",
                                 "NO_GRAPH": "1", "NO_INFO": "1", "ATTRIBUTES": "{-1,0}"}, "libhpgr.so"),
    "sdaa": ("runtime.c", {"P": "sdaa", "MODEL": '"stand-in T100"', "NO_AUTO": "1", "NO_EXTRAS": "1", "NO_GRAPH": "1", "ATTRIBUTES": "{-1,0}"},
             "libsdaart.so"),
    "ascend": ("ascendcl.c", {}, "libascendcl.so"),
    "cambricon": ("cnrt.c", {}, "libcnrt.so"),
    "kunlunxin": ("xpurt.c", {"SI_DELAY_US": "500"}, "libxpurt.so"),
    "kunlunxin-xcudart": ("runtime.c", {"P": "cuda", "MODEL": '"stand-in P800"', "NO_GRAPH": "1",
                                        "ATTRIBUTES": _attributes(1, 5, 8, 16)}, "libcudart.so"),
}


def build(name: str, **more: str) -> Path:
    """The path of a stand-in library, compiled now unless its sources were compiled before; more: further definitions.

    Raises:
        FileNotFoundError: no C compiler.  subprocess.CalledProcessError: it refused.
    """
    front, definitions, library = STANDINS[name]
    definitions = definitions | more
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
