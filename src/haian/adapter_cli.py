"""`haian adapter new | check | include`: what a chip vendor types first (docs/adapter.md is the way through).

Not here: loading (hal/registry.py), trying in a child process (hal/probe.py), the checks (conformance).
"""
from __future__ import annotations

import json
import keyword
import os
import re
import sys
from pathlib import Path
from typing import Any

import typer

from .hal.errors import HaianError, PermissionRefused
from .terminal import ENVIRONMENT, FINDINGS, size, table, usage

__all__ = ["adapter_app", "write"]

adapter_app = typer.Typer(no_args_is_help=True, help="A chip's adapter: write a new one, check one, where the C header is.")

TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_PROBE_S = 60.0  # somebody waits and can see it: longer than discovery has

# kind -> (what the entry point names, {file: template}, {its lines in the README}, commands); @name@ and the like are replaced everywhere
_COMMON = {"README.md": "README.md", "pyproject.toml": "pyproject.toml", "tests/test_@name@.py": "test.py", "haian_@name@/conformance.toml": "conformance.toml"}
_STANDIN = "`haian_@name@/standin.c` | plays the chip's runtime until there is one: asynchronous, over host memory"
_KINDS: dict[str, tuple[str, dict[str, str], list[str], list[str]]] = {
    "table": ("@Name@Driver", {**_COMMON, "setup.py": "setup.py", "Makefile": "table_Makefile", "haian_@name@/__init__.py": "runtime_init.py",
                               "haian_@name@/runtime.py": "table_runtime.py", "haian_@name@/standin.c": "standin.c"},
              ["`haian_@name@/runtime.py` | the runtime's names, argument order and numbers, as a table", _STANDIN],
              ["make check", "pip install -e .", "haian conformance run --suite hal --device @name@:0 --report report"]),
    "c": ("library", {**_COMMON, "setup.py": "setup.py", "Makefile": "c_Makefile", "haian_@name@/__init__.py": "c_init.py",
                      "haian_@name@/@name@.c": "driver.c", "haian_@name@/standin.c": "standin.c"},
          ["`haian_@name@/@name@.c` | the driver", "`haian_@name@/haian_hal.h` | the contract it was written for", _STANDIN],
          ["make check", "pip install -e .", "haian conformance run --suite hal --device @name@:0 --report report"]),
    "python": ("@Name@Driver", {**_COMMON, "Makefile": "python_Makefile", "haian_@name@/__init__.py": "runtime_init.py", "haian_@name@/runtime.py": "python_runtime.py"},
               ["`haian_@name@/runtime.py` | the driver: the seven methods that every driver has, and mem_info"],
               ["make check", "pip install -e .", "haian conformance run --suite hal --device @name@:0 --report report"]),
}
_WAYS = {"table": "as a table", "c": "in C", "python": "in Python"}
# group -> what a device gains with it, in the order that shows something soonest
_GAINS = {
    "stream": "work is queued instead of waited for; level L2 needs it (with copies that return before they happen)",
    "event": "order between streams, and device time; level L2 needs it",
    "module": "haian's Triton kernels run on the chip, with Capabilities.triton_target and image_format; until then operators run on the host",
    "op": "operators of your own library come before haian's kernels (or Driver.kernels())",
    "fill": "fills happen on the device instead of through the host", "mem_info": "free and total memory as the runtime sees it",
    "pinned": "faster copies from the host", "ptr_info": "the validation layer knows foreign pointers", "graph": "recorded work replays in one call",
    "comm": "collectives without the host", "ipc": "memory shared between processes", "prof": "kernel times in traces", "telemetry": "temperature, power, clock",
    "pool_trim": "the runtime's own cache can be emptied",
}


# ---- new -----------------------------------------------------------------------------------------------------------------
def write(name: str, kind: str, parent: Path) -> Path:
    """Writes a working adapter into ``parent/name``; the folder.

    Raises:
        ArgumentError: a name that cannot be a device's, or is taken, or a folder that exists already.
    """
    from .hal.c_driver import HEADER
    from .hal.errors import ArgumentError
    from .hal.registry import TAKEN, installed

    if not _NAME.fullmatch(name):
        raise ArgumentError(f"adapter name {name!r}; needs a lower-case word of at most 31 letters, digits and _, such as 'mychip': devices are called mychip:0")
    if name in TAKEN or keyword.iskeyword(name):
        raise ArgumentError(f"adapter name {name!r} is a word of {'haian' if name in TAKEN else 'Python'}; choose another, such as 'mychip'")
    if name in installed():
        raise ArgumentError(f"adapter name {name!r} is taken by an installed adapter; choose another, or work on that one")
    folder = parent / name
    if folder.exists():
        raise ArgumentError(f"{folder} exists already; choose another name or --folder, nothing was written")
    entry, files, about, commands = _KINDS[kind]
    words = {"@name@": name, "@Name@": "".join(p.capitalize() for p in name.split("_")), "@NAME@": name.upper(), "@lib@": f"lib{name}_rt.so", "@kind@": kind,
             "@entry@": entry, "@files@": "\n".join(f"| {line} |" for line in about), "@commands@": "\n    ".join(commands),
             "@build@": "`python -m pytest`." if kind == "python" else "`make`, then `python -m pytest`."}

    def fill(text: str) -> str:
        for _ in range(2):  # what is put in may hold words too
            text = re.sub(r"@\w+@", lambda m: words[m[0]], text)
        return text

    for target, template in files.items():
        path = folder / fill(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(fill((TEMPLATES / f"{template}.in").read_text(encoding="utf-8")), encoding="utf-8")
    if kind == "c":
        (folder / fill("haian_@name@/haian_hal.h")).write_text(HEADER.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


@adapter_app.command("new")
def adapter_new(name: str, table_: bool = typer.Option(False, "--table", help="The runtime as a table, run by haian's engine (the default): for runtimes of CUDA's shape."),
                c: bool = typer.Option(False, "--c", help="A driver in C: a .so with hal_get_adapter."),
                python: bool = typer.Option(False, "--python", help="A driver in Python: a class with the page's methods."),
                folder: str = typer.Option(".", help="Where the new folder goes.")) -> None:
    """Write a working adapter into the new folder NAME: it passes as it stands, on host memory labelled "template"."""
    chosen = [kind for kind, wanted in (("table", table_), ("c", c), ("python", python)) if wanted]
    if len(chosen) > 1:
        usage(f"--{' and --'.join(chosen)}; needs one of them")
    kind = (chosen or ["table"])[0]
    made = write(name, kind, Path(folder))
    print(f"{made}: an adapter {_WAYS[kind]}, on host memory until you fill it in")
    for path in sorted(p for p in made.rglob("*") if p.is_file()):
        print(f"  {path.relative_to(made)}")
    print(f"next: cd {made} && make check; then grep -rn 'FILL IN' .")


@adapter_app.command("include")
def adapter_include() -> None:
    """Print the folder of haian_hal.h, for the compiler's -I."""
    from .hal.c_driver import HEADER
    print(HEADER.parent)


# ---- check ---------------------------------------------------------------------------------------------------------------
def _find(where: str) -> tuple[Any, str]:
    """(what the probe takes, what the suite calls its device) of a path or of an installed adapter's name."""
    from .hal.errors import EnvironmentMissing
    from .hal.registry import adapter_file, installed
    from .hal.trust import check_file

    path = Path(os.path.abspath(where))  # typed by hand, so relative to where the person stands
    if os.sep in where or path.exists():
        file = adapter_file(path)
        check_file(file)
        return file, str(file)
    points = installed()
    if where not in points:
        raise EnvironmentMissing(f"adapter {where!r}: no such file or folder here, and not installed; installed are {', '.join(points)}")
    return points[where], where


def _facts(facts: dict[str, Any], device: int) -> list[list[Any]]:
    caps = facts["capabilities"][device] if device < len(facts["capabilities"]) else {}
    rows = [["adapter", f"{facts['name']} {facts['version']}"], ["vendor", facts["vendor"]],
            ["made as", facts["kind"] + (f", ABI {facts['abi']}" if facts["abi"] else "")], ["devices", facts["count"]]]
    if "error" in caps:
        rows.append(["props", caps["error"]])
    elif caps:
        rows += [["model", caps["model"]], ["memory", f"{size(caps['total_bytes'])}, one allocation {size(caps['max_alloc_bytes'])}, aligned to {caps['align_bytes']}"],
                 ["image format", caps["image_format"] or "-"], ["triton target", ":".join(map(str, caps["triton_target"])) if caps["triton_target"] else "-"],
                 ["claims", ", ".join(k for k, v in caps.items() if v is True) or "-"], ["dtypes", ", ".join(caps["dtypes_math"]) or "-"]]
    rows.append(["groups", ", ".join(facts["groups"]) or "-"])
    if facts.get("missing"):
        rows.append(["not in the library", ", ".join(facts["missing"])])
    if facts.get("unconfirmed"):
        rows.append(["unconfirmed", ", ".join(facts["unconfirmed"])])
    return rows


def _next(facts: dict[str, Any], granted: str, level: str, why: str) -> list[str]:
    """What is missing, the nearest first."""
    steps = []
    order = ("L0", "L1", "L2", "L3")
    if granted[:2] < level:
        steps.append(f"{why}; that keeps the next level" if why else f"{level} is not granted")
    elif level != "L3":
        steps.append(f"--level {order[order.index(level) + 1]}: the next checks")
    caps = (facts["capabilities"] or [{}])[0]
    if "stream" in facts["groups"] and not caps.get("async_copy"):
        steps.append("async_copy is not claimed: level L2 needs copies on a stream that return before they happen")
    if not caps.get("dtypes_math") and "error" not in caps:
        steps.append("dtypes -: props names none (dtypes_load, dtypes_math), so every dtype is tried on the device, proven by no check here; the suite of operators says which work")
    steps += [f"{group}: {gain}" for group, gain in _GAINS.items() if group not in facts["groups"]]
    if "template" in f"{caps.get('model', '')} {facts['vendor']}":
        steps.insert(0, "it is still the template's host memory: nothing here is said of a chip; grep -rn 'FILL IN' shows the places")
    return steps


@adapter_app.command("check")
def adapter_check(path: str = typer.Argument(help="A .so, a .py, an adapter's folder, or the name of an installed adapter."),
                  level: str = typer.Option("L0", help="L0 (it loads: checks 1 to 13), L1 (core), L2 (streams and events) or L3 (optional groups)."),
                  device: int = typer.Option(0, help="Number of the device."), report: str = typer.Option("", help="Folder for report.jsonl, report.xml and index.html."),
                  as_json: bool = typer.Option(False, "--json", help="One JSON object.")) -> None:
    """Load an adapter in a child process, say what it is, run the suite up to a level, and name what is missing next.

    Exit codes: 0 the level is granted, 1 it is not or the adapter crashed, 2 usage, 3 no such adapter, library or device, or a file
    that haian refuses to load.
    """
    from .conformance import run
    from .conformance.levels import HAL_LEVELS
    from .hal import probe

    if level not in HAL_LEVELS:
        usage(f"level {level!r}; needs one of {', '.join(HAL_LEVELS)}")
    try:
        source, name = _find(path)
    except PermissionRefused as error:
        print(f"haian: {error}", file=sys.stderr)
        raise typer.Exit(ENVIRONMENT) from None
    outcome = probe.start(source, _PROBE_S)()
    said: dict[str, Any] = {"path": name, "died": outcome.died, "error": outcome.error, "said": outcome.said, "facts": outcome.facts}
    code, why = 0, ""
    if outcome.died or outcome.error:
        code = ENVIRONMENT if outcome.error.startswith("EnvironmentMissing") else FINDINGS
        why = outcome.error or f"the adapter {outcome.died}"
    elif not 0 <= device < outcome.facts["count"]:
        code, why = ENVIRONMENT, outcome.facts.get("why_none") or f"{outcome.facts['name']} has {outcome.facts['count']} devices, numbered from 0; number {device} was asked for"
    if not as_json:
        print(f"{name}  (tried in a child process, {outcome.seconds:.1f} s)", flush=True)  # what follows may take minutes
        if outcome.facts:
            table(["what", "says"], _facts(outcome.facts, device))
            sys.stdout.flush()
        if code:
            print(f"not checked: {why}")
            for line in (outcome.said.splitlines() if outcome.died else outcome.facts.get("looked", ())[:10]):
                print(f"  {'it wrote:' if outcome.died else 'looked at'} {line}")
    if not code:
        try:
            summary = run(f"{name}:{device}", suite="hal", level=level, report=report, quiet=True)
        except HaianError as error:  # it was there a moment ago
            code, said["error"] = FINDINGS, str(error)
            if not as_json:
                print(f"not checked: {error}")
        else:
            code = 0 if summary.ok and summary.level[:2] >= level else FINDINGS
            failures = [{"id": f["id"], "result": f["result"], "message": f["message"]} for f in summary.failures]
            steps = _next(outcome.facts, summary.level, level, summary.why)
            said |= {"level": summary.level, "why": summary.why, "counts": summary.counts, "failures": failures, "next": steps}
            if not as_json:
                print(f"\n{summary}")
                for f in failures:
                    print(f"  {f['result'].upper()} {f['id']}: {f['message']}")
                print("next:")
                for step in steps:
                    print(f"  {step}")
    if as_json:
        print(json.dumps(said | {"exit_code": code}, indent=1))
    if code:
        raise typer.Exit(code)
