"""Imports point down (docs/design.md): read every import of every file, and what `import haian` really loads."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("kernels/triton", "kernels/cpu", "kernels/ops", "kernels", "hal", "adapters", "conformance", "bench", "bridges", "reporting", "src/haian")
# who may import whom; "" is the face (src/haian), which may import everything
ALLOWED = {
    "reporting": set(),
    "hal": set(),
    "kernels/ops": {"hal.dtype", "hal.errors", "hal.geometry"},
    "kernels/triton": {"kernels.ops", "hal", "kernels.triton"},
    "kernels/cpu": {"kernels.ops", "hal"},
    "kernels": {"kernels", "hal"},
    "adapters": {"hal"},
    "bridges": {"kernels", "hal", "bridges"},
    "conformance": {"kernels", "hal", "reporting", "adapters.sim"},
    "bench": {"kernels", "hal", "reporting", "bridges"},
}
FRAMEWORKS = {"torch", "triton", "paddle", "tensorflow", "jax", "onnx", "onnxruntime", "scipy", "mpmath", "transformers", "matplotlib"}
NATIVE = {"_native", "__version__", ""}  # `from .. import _native`, and the package itself (its lazy face, its version)


def _files():
    for place in ("hal", "kernels", "adapters", "conformance", "bench", "bridges", "reporting"):
        for path in sorted((ROOT / place).rglob("*.py")):
            if "__pycache__" not in path.parts:
                yield path


def _place(path: Path) -> str:
    rel = path.relative_to(ROOT).as_posix()
    return next(p for p in PLACES if rel.startswith(p + "/"))


def _module(path: Path) -> list[str]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def _imports(path: Path):
    """Dotted names below haian that a file imports, with the line, and whether at module level."""
    tree = ast.parse(path.read_text())
    package = _module(path) if path.name == "__init__.py" else _module(path)[:-1]
    top = {id(n) for n in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] if node.level <= len(package) + 1 else None
            assert base is not None, f"{path}:{node.lineno}: import leaves the package"
            for alias in node.names:
                yield ".".join([*base, *(node.module or "").split("."), *([alias.name] if not node.module else [])]).strip("."), node.lineno, id(node) in top
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "haian":
            yield ".".join([*node.module.split(".")[1:], *([a.name for a in node.names][:1] if node.module == "haian" else [])]), node.lineno, id(node) in top
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "haian":
                    yield ".".join(alias.name.split(".")[1:]), node.lineno, id(node) in top


@pytest.mark.parametrize("path", list(_files()), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    place = _place(path)
    here = place.replace("/", ".")
    for name, line, _ in _imports(path):
        target = name.replace("/", ".")
        if target in NATIVE or target == here or target.startswith(here + "."):
            if place == "adapters":  # one adapter never imports another, except the engine and the collective libraries' tables
                shared = (".".join(_module(path)[:2]), "adapters.engine", "adapters.xccl")
                assert not target.startswith("adapters.") or target.startswith(shared), f"{path}:{line}: imports {target}"
            continue
        assert any(target == a or target.startswith(a + ".") for a in ALLOWED[place]), f"{path}:{line}: {place} must not import {target}"


@pytest.mark.parametrize("path", [p for p in _files() if not p.as_posix().startswith((f"{ROOT}/kernels/triton", f"{ROOT}/adapters/sim/triton_backend"))],
                         ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_framework_at_module_level(path):
    if "bridges" in path.parts:
        return
    for node in ast.parse(path.read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            assert name.split(".")[0] not in FRAMEWORKS, f"{path}:{node.lineno}: imports {name} at module level"


def test_import_loads_no_framework():
    code = "import sys, haian, json; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    loaded = set(__import__("json").loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout))
    assert not loaded & FRAMEWORKS
