"""The examples run as printed; the models' own checks (error at most 2x torch's, 95 % served) decide their exit codes."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
README = EXAMPLES.parent / "README.md"


def run(*args):
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True)


def test_tour():
    done = run(EXAMPLES / "tour.py")
    assert done.returncode == 0, done.stderr
    assert "tanh__toy" in done.stdout and "refused: takes 3 elements only" in done.stdout


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_transformers_models(model):
    pytest.importorskip("torch", reason="PyTorch not installed")
    pytest.importorskip("transformers", reason="transformers not installed")
    done = run(EXAMPLES / "transformers_models.py", model)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compute calls served" in done.stdout and "holds" in done.stdout


def blocks():
    text, found = README.read_text(), []
    while "```python\n" in text:
        block, _, text = text.partition("```python\n")[2].partition("```")
        found.append(block)
    return found


@pytest.mark.parametrize("code", blocks(), ids=lambda c: c.splitlines()[0])
def test_readme_examples_run(code):
    pytest.importorskip("torch", reason="PyTorch not installed")
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_import_is_light():
    code = ("import sys, time; t = time.perf_counter(); import haian; haian.ops; took = time.perf_counter() - t\n"
            "assert not {'torch', 'triton', 'scipy', 'onnxruntime'} & set(sys.modules); print(took)")
    assert run("-c", code).returncode == 0
