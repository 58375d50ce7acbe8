"""The C compiler: which one there is, one shared object a module, cached under the user's cache folder.

The compiler runs in a child process with a time limit; the folder is the user's alone (0700), files appear whole by rename,
and one process at a time builds an entry.  Not here: the text (emit.py), when it pays (native.py).
"""
from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ....hal.errors import Unsupported

__all__ = ["Compiler", "build", "compiler", "folder", "library", "source_digest"]

# Rounding must stay that of each operation (no contraction), signed overflow wraps, tiles are reused under other types.
FLAGS = ("-std=gnu11", "-O2", "-ftree-vectorize", "-ffp-contract=off", "-fno-fast-math", "-fwrapv", "-fno-strict-aliasing", "-fno-math-errno",
         "-fno-trapping-math", "-w", "-fPIC", "-shared")  # fmt: skip
LIMIT_S = 60.0  # of one compilation; the slowest kernel of the library takes 3 s on a busy core
MOST_FILES = 4000  # in the cache, about 20 KB each; the oldest quarter goes when there are more
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Compiler:
    """words: the command; version: its first line; flags: FLAGS, with what this machine's processor allows; machine: names the latter."""

    words: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    machine: str


def compiler() -> Compiler | None:
    """The compiler of $CC, else ``cc``; None where there is none that answers."""
    return _compiler(os.environ.get("CC", "") or "cc", os.environ.get("PATH", ""))


@functools.lru_cache(maxsize=8)
def _compiler(command: str, path: str) -> Compiler | None:
    words = shlex.split(command)
    program = shutil.which(words[0], path=path) if words else None
    if program is None:
        return None
    try:
        found = subprocess.run([*words, "--version"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if found.returncode or not found.stdout:
        return None
    machine = _processor()
    native = ("-march=native",) if machine and platform.machine() in ("x86_64", "AMD64") else ()
    return Compiler((program, *words[1:]), found.stdout.splitlines()[0], (*FLAGS, *native), machine)


def _processor() -> str:
    """The processor's features as the system lists them; "" where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


@functools.cache
def source_digest() -> bytes:
    """Of what decides the C text of a module: files of this folder and those that say what operations mean."""
    digest = hashlib.sha256()
    for path in sorted((*_HERE.glob("*.py"), *_HERE.glob("*.h"), *(_HERE.parent / f"{n}.py" for n in ("ir", "vector", "execute")))):
        digest.update(path.read_bytes())
    return digest.digest()


def key(image: bytes, cc: Compiler) -> str:
    """Names the shared object of a module: its text, our sources, the compiler, its flags, the processor."""
    digest = hashlib.sha256(source_digest())
    for part in ("\0".join(cc.words), cc.version, "\0".join(cc.flags), cc.machine):
        digest.update(part.encode() + b"\0")
    digest.update(image)
    return digest.hexdigest()[:40]


def _private(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


@functools.lru_cache(maxsize=8)
def _folder(home: str) -> Path:
    path = Path(home) / "haian" / "sim"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _private(path) and os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="haian-sim-"))  # nobody else's, for this process only


def folder() -> Path:
    """Where shared objects are kept: $XDG_CACHE_HOME/haian/sim, else ~/.cache/haian/sim; a temporary one where that is not private."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return _folder(home if os.path.isabs(home) else os.path.expanduser("~/.cache"))


def library(image: bytes, cc: Compiler) -> Path | None:
    """The shared object of a module that was built before, or None."""
    path = folder() / f"{key(image, cc)}.so"
    try:
        found = path.lstat()
    except OSError:
        return None
    mine = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
    return path if mine else None


def build(image: bytes, cc: Compiler, text: Callable[[], str]) -> Path:
    """The shared object of a module, built unless it is there.

    Args:
        text: the C text, asked for only when it is needed.

    Raises:
        Unsupported: the compiler refused the text or took longer than LIMIT_S.
    """
    place = folder()
    target = place / f"{key(image, cc)}.so"
    with open(place / f"{target.name[:2]}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := library(image, cc)) is not None:
            return found
        made = place / f".{target.stem}.{os.getpid()}.so"
        try:
            _run([*cc.words, *cc.flags, "-x", "c", "-", "-o", str(made), "-lm"], (_HERE / "sim.h").read_text() + text())
            os.chmod(made, 0o700)
            os.replace(made, target)
        finally:
            made.unlink(missing_ok=True)
    _trim(place)
    return target


def _run(command: list[str], text: str) -> None:
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, said = child.communicate(text.encode(), timeout=LIMIT_S)
    except BaseException as error:
        os.killpg(child.pid, signal.SIGKILL)  # the driver's children too: cc1 would go on
        child.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Unsupported(f"{command[0]} took longer than {LIMIT_S:.0f} s") from None
        raise
    if child.returncode:
        lines = said.decode(errors="replace").splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise Unsupported(f"{command[0]} ended with {child.returncode}: {first[:200]}")


def _trim(place: Path) -> None:
    files = list(place.glob("*.so"))
    if len(files) <= MOST_FILES:
        return
    def age(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:
            return 0.0
    for path in sorted(files, key=age)[: MOST_FILES // 4]:
        path.unlink(missing_ok=True)


def load(path: Path) -> ctypes.CDLL:
    """Its calls release the GIL.  Unsupported where the system refuses the file."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unsupported(f"{path.name} cannot be loaded ({error})") from None
