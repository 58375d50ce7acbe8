"""`haian doctor`: what was found on this machine, vendor by vendor, and what is missing and why.

Not here: looking for it (hal/registry.py, adapters/engine/library.py).
"""
from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from typing import Any

from . import __version__
from .terminal import table

__all__ = ["examine", "show"]

_PACKAGES = {"triton": "operators on devices fall back to the host; install haian[triton] or the vendor's Triton",
             "torch": "no PyTorch bridge; install haian[torch]", "onnxruntime": "no onnxruntime in benchmarks; install haian[bench]",
             "scipy": "some references of the conformance suite; install haian[conformance]"}


def examine() -> dict[str, Any]:
    """Everything as plain data: ``host`` and ``packages`` (what: found), ``adapters`` (one dict each).

    An adapter: name, source, status, error, devices, vendor, version; those made from a table also library (the file opened), stand_in (what
    it says of itself where it is no vendor's), note (why there is no device), looked
    (the files and folders looked at), missing (symbols the library lacks), unconfirmed (subject: what no public source settles),
    query_tool, query_tool_path ("" where it is not installed) and visible_devices (the variable that restricts).
    """
    from . import _native
    from .hal.registry import records

    host = {"haian": __version__, "python": f"{platform.python_version()} ({sys.executable})",
            "host kernels": f"{_native.isa()} (this build runs {_native.isa_list()}), {_native.num_threads()} threads"}
    if _native.isa_error():
        host["HAIAN_CPU_ISA"] = _native.isa_error()
    packages = {}
    for package, without in _PACKAGES.items():
        try:
            packages[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            packages[package] = f"not installed: {without}"
    adapters = []
    for record in records():
        row = record.row()
        driver = record.driver
        if driver is not None:
            remark, library = getattr(driver, "remark", ""), getattr(driver, "library_path", "")
            row |= {"vendor": f"{driver.vendor} ({remark})" if remark else driver.vendor, "version": driver.version}
            row |= {"library": library, "stand_in": getattr(driver, "stand_in", "")} if library else {}
            about: Any = getattr(driver, "table", None)
            if hasattr(about, "query_tool"):
                row |= {"query_tool": about.query_tool, "query_tool_path": about.query_tool and shutil.which(about.query_tool) or "",
                        "visible_devices": about.visible_devices}
        adapters.append(row)
    return {"host": host, "packages": packages, "adapters": adapters}


def _count(row: dict[str, Any], field: str, what: str) -> str:
    n = len(row.get(field, ()))
    return f"{n} {what if n > 1 else what.replace('s ', ' ', 1)}" if n else ""


def _tool(row: dict[str, Any]) -> str:
    name = row.get("query_tool", "")
    return f"{name} {'found' if row['query_tool_path'] else 'not found'}" if name else ""


def show(found: dict[str, Any], verbose: bool) -> None:
    """Prints what ``examine`` gave; ``verbose``: also every place looked at, missing symbol and unconfirmed fact."""
    table(["what", "found"], [[k, v] for k, v in {**found["host"], **found["packages"]}.items()])
    print()
    rows, left_out = [], []
    for a in found["adapters"]:
        if a["status"] == "skipped" and not verbose:
            left_out.append(a["name"])
            continue
        more = [_count(a, "missing", "symbols missing"), _count(a, "unconfirmed", "facts unconfirmed"), _tool(a)]
        there = "failed" if a["error"] and a["status"] == "failed" else a["status"] if a["status"] != "loaded" else "found" if a["devices"] else "not here"
        rows.append([a["name"], there, ", ".join(a["devices"]) or a["error"] or a.get("note") or "no device present",
                     a.get("version") or "-", ", ".join(filter(None, more)) or "-", a["source"]])
    table(["adapter", "status", "devices or reason", "version", "more", "from"], rows)
    if left_out:
        print(f"\n{len(left_out)} skipped, since HAIAN_ADAPTERS={os.environ.get('HAIAN_ADAPTERS', '')} does not name them: {', '.join(left_out)}")
    details = []
    for a in found["adapters"]:
        if (verbose or a["devices"]) and a.get("library"):
            details.append([a["name"], "library" if not a["stand_in"] else f"stand-in: {a['stand_in']}", a["library"]])
        if verbose or a["devices"]:
            details += [[a["name"], "not in the library", symbol] for symbol in a.get("missing", ())]
        if verbose:
            details += [[a["name"], f"unconfirmed: {subject}", text] for subject, text in a.get("unconfirmed", {}).items()]
            details += [[a["name"], "looked at", place] for place in a.get("looked", ())]
    if details:
        print()
        table(["adapter", "what", "which"], details)
    if not verbose and any(a.get("unconfirmed") for a in found["adapters"]):
        print("\n`haian doctor --verbose` lists the unconfirmed facts and every place looked at; README.md of an adapter says what they mean.")
