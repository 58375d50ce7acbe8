"""docs/adapter.md: its blocks run as printed, the made-up chip as a table and in C."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
needs_compiler = pytest.mark.skipif(not all(map(shutil.which, ("cc", "make", "bash"))), reason="the page compiles: no cc, make or bash here")
ENV = {**{k: v for k, v in os.environ.items() if not k.startswith("HAIAN_")}, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@needs_compiler
@pytest.mark.parametrize("heading", ["A table", "In C"])
def test_the_page_runs_as_printed(heading, tmp_path):
    """Its blocks in order; levels are cut to L0, and pip installs into a folder, without the network."""
    page = (ROOT / "docs/adapter.md").read_text()
    section = page[page.index(f"\n## {heading}\n") :].split("\n## ")[1]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.S)
    assert blocks and "pip install ." in "".join(blocks)
    script = "set -eo pipefail\n" + "".join(blocks).replace("--level L2", "--level L0")
    if heading == "In C":  # comes behind the other
        script = script.replace("set -eo pipefail\n", "set -eo pipefail\nmkdir -p chip/lib && export MYCHIP_HOME=$(realpath chip)\n")
    site = tmp_path / "site"
    env = {**ENV, "PIP_TARGET": str(site), "PYTHONPATH": str(site), "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_QUIET": "1"}
    made = tmp_path / "made"
    made.mkdir()
    for name in ("mychip", "mychip_c"):  # `make check` runs the level that stands in its Makefile
        script = script.replace(f"cd {name}\n", f"cd {name}\n[ ! -f Makefile ] || sed -i 's/--level L2/--level L0/' Makefile\n", 1)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=made, env=env)
    if "No module named 'setuptools'" in done.stdout + done.stderr:
        pytest.skip("setuptools is not installed here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("level L0 granted") == (3 if heading == "A table" else 2)
    assert "Mychip 1" in done.stdout and "Mychip Inc." in done.stdout
    if heading == "A table":
        assert "mychip\tfound\tmychip:0 (Mychip 1)" in done.stdout and "2.718281" in done.stdout
