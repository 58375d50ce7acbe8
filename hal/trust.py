"""Which files may be loaded as adapters: loading native code is trusting whoever could have written it.

A file passes when neither it nor anything on the way to it, through every symbolic link, could have been put there by
somebody else, and when HAIAN_ADAPTER_ALLOW, where it is set, lists a folder around it.  Nothing is opened or run here.
"""
from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import EnvironmentMissing, PermissionRefused

__all__ = ["allowed_folders", "check_file"]

_LINKS = 40  # the kernel's own limit


def _trusted_owners() -> set[int]:
    """The user, root, and the owner of haian's own files, who could change this very check.

    The owner of ``/`` counts as root: in a user namespace the system's root shows under another number.
    """
    return {os.geteuid(), 0, Path(__file__).stat().st_uid, os.stat("/").st_uid}


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every folder, link and file that is passed from ``/`` to the file, in that order, each as itself (lstat).

    Raises:
        EnvironmentMissing: something on the way does not exist.  PermissionRefused: more than 40 links.
    """
    at, rest, links = Path("/"), list(path.parts[1:]), 0
    yield at, at.lstat()
    while rest:
        part = rest.pop(0)
        if part == "..":
            at = at.parent
            continue
        here = at / part
        try:
            found = here.lstat()
        except OSError as error:
            raise EnvironmentMissing(f"adapter {path}: no such file ({here}: {error.strerror})") from None
        yield here, found
        if not stat.S_ISLNK(found.st_mode):
            at = here
            continue
        links += 1
        if links > _LINKS:
            raise PermissionRefused(f"adapter {path}: more than {_LINKS} symbolic links; give the file itself")
        target = Path(os.readlink(here))
        rest = [p for p in target.parts if p != "/"] + rest
        at = Path("/") if target.is_absolute() else at


def allowed_folders() -> list[Path] | None:
    """The folders of HAIAN_ADAPTER_ALLOW with their links resolved; None where it is not set.

    Set and empty, it allows nothing; relative entries count for nothing.
    """
    text = os.environ.get("HAIAN_ADAPTER_ALLOW")
    if text is None:
        return None
    return [Path(os.path.realpath(p)) for p in text.split(os.pathsep) if os.path.isabs(p)]


def check_file(path: Path) -> None:
    """Refuses a file that somebody else could have written, or that the allow-list lacks.

    Raises:
        EnvironmentMissing: it does not exist.
        PermissionRefused: a relative path; it, a folder above it or what a link leads to is writable by everyone or
            belongs to neither the user nor root; it lies in no folder of HAIAN_ADAPTER_ALLOW.
    """
    if not path.is_absolute():
        raise PermissionRefused(f"adapter {path}: a relative path could name anything; give the absolute one")
    owners = _trusted_owners()
    for here, found in _way(path):
        said = f"adapter {path}" if here == path else f"adapter {path}: {here}"
        if found.st_uid not in owners:
            raise PermissionRefused(f"{said}: belongs to user {found.st_uid}, neither to you nor to root; chown it, or copy the adapter to a folder of yours")
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX  # as /tmp: nobody can replace others' files there
        if found.st_mode & stat.S_IWOTH and not sticky and not stat.S_ISLNK(found.st_mode):  # a link's own mode is always 0777
            raise PermissionRefused(f"{said}: writable by everyone; chmod o-w it")
    folders, real = allowed_folders(), Path(os.path.realpath(path))
    if folders is not None and not any(real.is_relative_to(f) for f in folders):
        raise PermissionRefused(f"adapter {path}: in no folder of HAIAN_ADAPTER_ALLOW={os.environ['HAIAN_ADAPTER_ALLOW']}; add its folder there to use it")
