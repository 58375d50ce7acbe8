"""Compiles every Triton kernel for real targets, no GPU needed, and checks what can be checked without one.

    python tests/matrix.py [--sample] [--families reduce,norm] [--targets cuda:80,hip:gfx942] [--timeout 120]
    python tests/matrix.py --triton PYTHON     one kernel a family on another Triton (its interpreter's Python), same checks

Each family file's ``matrix()`` yields (name, kernel, signature, constants, num_warps[, num_stages]).  Looked at: shared memory against the
target's limit, registers and spills (cuobjdump that Triton brings; the AMD metadata), the width of loads.  Not a pytest file: minutes.
"""
from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import re
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# name -> (backend, arch, warp size), image, shared memory a program may use (CUDA C programming guide, table of compute
# capabilities; CDNA3 ISA), the matrix instruction
TARGETS: dict[str, tuple[tuple[str, Any, int], str, int]] = {
    "cuda:80": (("cuda", 80, 32), "cubin", 166912),
    "cuda:90": (("cuda", 90, 32), "cubin", 232448),
    "hip:gfx942": (("hip", "gfx942", 64), "hsaco", 65536),
}
HERE = Path(__file__).resolve()
SOURCE = HERE.parent.parent


def families() -> list[str]:
    """Files of kernels/triton with a ``matrix``."""
    found = []
    for file in sorted((SOURCE / "kernels" / "triton").glob("*.py")):
        if re.search(r"^def matrix\(", file.read_text(), re.MULTILINE):
            found.append(file.stem)
    return found


def entries(family: str, target: str) -> Iterator[tuple]:
    """(name, kernel, signature, constants, num_warps[, num_stages]); a family whose blocks depend on shared memory is told of it."""
    matrix = importlib.import_module(f"haian.kernels.triton.{family}").matrix
    told = "shared_bytes" in inspect.signature(matrix).parameters
    yield from matrix(shared_bytes=TARGETS[target][2]) if told else matrix()


# ---- one process: compile one family for one target --------------------------------------------------------------------
def facts(built: Any, target: str) -> dict[str, Any]:
    """Shared memory, registers, spilled bytes and the widest load of a compiled kernel."""
    found: dict[str, Any] = {"shared": built.metadata.shared, "registers": 0, "spills": 0, "load": ""}
    if target.startswith("cuda"):
        tools = Path(importlib.import_module("triton").__file__).parent / "backends" / "nvidia" / "bin"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(built.asm["cubin"])
            file.flush()
            usage = subprocess.run([tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, timeout=60)
            code = subprocess.run([tools / "cuobjdump", "-sass", file.name], capture_output=True, text=True, timeout=60).stdout
        for key, pattern in (("registers", r"REG:(\d+)"), ("stack", r"STACK:(\d+)")):
            numbers = re.findall(pattern, usage.stdout + usage.stderr)
            found[key] = max(map(int, numbers), default=-1)
        found["spills"] = len(re.findall(r"\bSTL\b", code))
        widths = [int(w) for w in re.findall(r"\bLDG\.E(?:\.[A-Z]+)*\.(64|128)\b", code)]
        found["load"] = f"LDG.{max(widths, default=32)}" if "LDG" in code else "LDGSTS" if "LDGSTS" in code else ""
        found["matrix"] = next((op for op in ("HGMMA", "HMMA", "IMMA", "DMMA") if op in code), "")
    elif target.startswith("hip"):
        text = built.asm["amdgcn"]
        for key, pattern in (("registers", r"\.vgpr_count:\s+(\d+)"), ("spills", r"\.vgpr_spill_count:\s+(\d+)")):
            found[key] = max(map(int, re.findall(pattern, text)), default=-1)
        found["load"] = next((f"x{n}" for n in (4, 3, 2) if f"load_dwordx{n}" in text), "x1" if "_load_" in text else "")
        found["matrix"] = "MFMA" if "v_mfma" in text else ""
    return found


def child(family: str, target: str, number: int) -> None:
    """Compile entry ``number`` of a family (all: -1) and print one JSON line for each."""
    # another Triton's Python finds haian and what it needs behind its own packages
    site.addsitedir(os.environ["HAIAN_MATRIX_SITE"])
    from haian.kernels.triton.launch import build
    where, _, _ = TARGETS[target]
    for i, (name, kernel, signature, constants, *how) in enumerate(entries(family, target)):
        if number not in (-1, i):
            continue
        row: dict[str, Any] = {"family": family, "target": target, "name": name, "number": i}
        try:
            row |= facts(build(kernel, where, tuple(signature), constants, *how), target)
        except Exception as error:  # noqa: BLE001  whatever a compiler raises is the finding
            row["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200] if str(error).strip() else ''}"
        print("ROW " + json.dumps(row), flush=True)


# ---- the parent ----------------------------------------------------------------------------------------------------------
def run(python: str, family: str, target: str, sample: bool, timeout: float) -> list[dict[str, Any]]:
    """Rows of one family on one target, each family in a process of its own: a compiler that crashes or hangs is a finding."""
    command = [python, str(HERE), "--child", family, target, "0" if sample else "-1"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**os.environ, "HAIAN_MATRIX_SITE": sysconfig.get_path("purelib")})
        text, why = done.stdout, (done.stderr.strip().splitlines() or [""])[-1][:200] if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        text, why = (late.stdout or b"").decode() if isinstance(late.stdout, bytes) else late.stdout or "", f"not done after {timeout:.0f} s"
    rows = [json.loads(line[4:]) for line in text.splitlines() if line.startswith("ROW ")]
    if why:
        rows.append({"family": family, "target": target, "name": "(process)", "number": -1, "error": why})
    return rows


def judge(row: dict[str, Any]) -> str:
    """What is wrong with a row; "" when nothing is."""
    if "error" in row:
        return row["error"]
    limit = TARGETS[row["target"]][2]
    if row["shared"] > limit:
        return f"{row['shared']} bytes of shared memory; {row['target']} has {limit}"
    if row["spills"]:
        return f"spills {row['spills']}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", action="store_true", help="the first kernel of each family only")
    parser.add_argument("--full", action="store_true", help="every kernel, also with --triton")
    parser.add_argument("--families", default="", help="comma separated; default all")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--triton", default=sys.executable, metavar="PYTHON", help="the Python of an environment with another Triton")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one family on one target")
    parser.add_argument("--child", nargs=3, metavar=("FAMILY", "TARGET", "NUMBER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1], int(args.child[2]))
        return 0
    sample = args.sample or (args.triton != sys.executable and not args.full)
    bad = total = 0
    asked = subprocess.run([args.triton, "-c", "import triton; print(triton.__version__)"], capture_output=True, text=True, timeout=120)
    if asked.returncode:
        print(f"{args.triton}: cannot import triton ({(asked.stderr.strip().splitlines() or ['?'])[-1]}); give the Python of an environment with it")
        return 3
    print(f"Triton {asked.stdout.strip()}")
    print(f"{'kernel':<44} {'target':<11} {'registers':>9} {'shared':>7} {'spills':>6} {'load':<8} {'matrix':<6}")
    for family in args.families.split(",") if args.families else families():
        for target in args.targets.split(","):
            for row in run(args.triton, family, target, sample, args.timeout):
                why = judge(row)
                total, bad = total + 1, bad + bool(why)
                label = f"{family}: {row['name']}"[:44]
                print(f"{label:<44} {target:<11} {row.get('registers', ''):>9} {row.get('shared', ''):>7} {row.get('spills', ''):>6} "
                      f"{row.get('load', ''):<8} {row.get('matrix', ''):<6} {why}", flush=True)
    print(f"{total} kernels compiled, {bad} with a finding")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
