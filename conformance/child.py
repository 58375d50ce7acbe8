"""The process that cases run in: a crash or a hang is a result, the child is replaced and the run goes on.

Not here: what runs in it (``_serve`` of runner.py and hal_runner.py).  Imports no operator: a child of the HAL suite needs none.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hal.errors import EnvironmentMissing, HaianError, InternalError, Unsupported, from_code

if TYPE_CHECKING:
    from .cases import Case
    from .hal_runner import HalCase

__all__ = ["Child", "refusal"]

START_S = 120.0  # a child may import, find devices and compile its first kernel in this time


def refusal(error: Exception) -> dict[str, Any]:
    """Why there is nothing to judge, as a child process sends it: the message, and the code of the class to raise again."""
    usual = Unsupported if isinstance(error, NotImplementedError) else EnvironmentMissing  # of errors that are not ours
    code = error.code if isinstance(error, HaianError) else usual.code
    return {"error": str(error) if isinstance(error, HaianError) else f"{type(error).__name__}: {error}", "code": code}


class Child:
    """One warm process that runs cases.

    ``serve(connection, stacks, *arguments)`` runs in it: it sends {"facts": ...} or a ``refusal``, then answers every
    (id, factor, seconds) it receives with a line; ``stacks`` is the file that faulthandler writes to.

    Raises:
        HaianError: the child's refusal.  InternalError: the child died or hung before its first answer.
    """

    def __init__(self, serve: Callable[..., None], arguments: tuple) -> None:
        self._serve, self._arguments = serve, arguments
        self._folder = tempfile.TemporaryDirectory(prefix="haian-")
        self._stacks = os.path.join(self._folder.name, "stacks")
        self.facts: dict[str, Any] = {}
        self._dead = ""  # why there is no process any more
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit driver state that drivers do not survive
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=self._serve, args=(theirs, self._stacks, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        answer = self._answer(START_S)
        if "facts" not in answer:
            self.close()
            raise from_code(answer.get("code", InternalError.code), f"conformance: {answer.get('error') or answer['message']}")
        self.facts = answer["facts"]

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        if not self._pipe.poll(timeout_s):
            return {"result": "timeout", "message": f"no answer within {timeout_s:g} s"}
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            code = self._process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return {"result": "crash", "message": f"the process died: {how}"}

    def run(self, case: Case | HalCase, factor: float, timeout_s: float) -> dict[str, Any]:
        if self._dead:
            return {"result": "crash", "message": f"not run: {self._dead}"}
        self._pipe.send((case.id, factor, timeout_s))
        line = self._answer(timeout_s)
        if line["result"] == "timeout":
            line["message"] += self._hanging()
        if line["result"] in ("crash", "timeout"):
            self.close()
            try:
                self._start()
                self._dead = self.facts.get("absent", "")
            except HaianError as error:  # the device did not survive; the other cases must be in the report too
                self._dead = f"after {case.id} no new process could be started: {error}"
        return line

    def _hanging(self) -> str:
        """Where the main thread of a hung child is: the innermost lines faulthandler wrote shortly before the limit."""
        text = Path(self._stacks).read_text(encoding="utf-8", errors="replace") if os.path.exists(self._stacks) else ""
        main = re.split(r"\n(?=Thread |Current thread )", text.strip())[-1]  # the main thread comes last
        frames = re.findall(r'File "[^"]*?([^/"]+)", line (\d+) in (\S+)', main)[:4]
        return "; in " + " < ".join(f"{name}:{line} {function}" for name, line, function in frames) if frames else ""

    def close(self) -> None:
        self._pipe.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join(5)
