"""Peers: other libraries that compute the same operator, each in its best spelling, on the very same inputs.

One file a library: peer_numpy.py, peer_torch.py, peer_onnxruntime.py.  Not here: timing (timer.py).
"""
from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..hal.errors import ArgumentError
from .cases import Case, empty_host
from .timer import Call

__all__ = ["NAMES", "Peer", "Refusal", "Work", "fastest", "find", "host_threads"]

NAMES = ("torch", "numpy", "onnxruntime")


class Refusal(Exception):
    """This peer does not compute this case; the text says why and stands in the report."""


@dataclass(frozen=True)
class Work:
    """A case with its inputs in host memory.

    Attributes:
        arrays: inputs in schema order, None where not given, a tuple for a list of tensors.
    """

    case: Case
    arrays: tuple[Any, ...]

    def outs(self) -> tuple[np.ndarray, ...]:
        """Fresh memory for the results, pages already touched."""
        made = tuple(empty_host(s.shape, s.dtype.numpy) for s in self.case.outputs)
        for a in made:
            a.fill(0)
        return made


class Peer:
    """What runner.py asks of a library."""

    name = ""
    version = ""
    note = ""  # what the report should know about how it was run

    def set_threads(self, n: int) -> None:
        """Use n threads from now on."""

    def session(self) -> AbstractContextManager[Any]:
        """Held around all measuring: inference mode and the like."""
        return nullcontext()

    def calls(self, work: Work) -> list[Call]:
        """Every spelling worth trying; the fastest stands for the peer.

        Raises:
            Refusal: it does not compute this case.
        """
        raise NotImplementedError


def find(names: str | Iterable[str], device: str = "cpu:0") -> tuple[list[Peer], dict[str, str]]:
    """The peers that are there, and why each other one is not.

    Raises:
        ArgumentError: a name that is no peer.
    """
    wanted = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    found: list[Peer] = []
    absent: dict[str, str] = {}
    for name in filter(None, wanted):
        if name not in NAMES:
            raise ArgumentError(f"bench: no peer {name!r}; needs some of {', '.join(NAMES)}")
        if importlib.util.find_spec(name) is None:
            absent[name] = "not installed"
            continue
        try:
            found.append(_make(name, device))
        except Refusal as why:
            absent[name] = str(why)
        except ImportError as why:  # present but broken, or onnx missing beside onnxruntime
            absent[name] = f"does not import: {why}"
    return found, absent


def _make(name: str, device: str) -> Peer:
    if name == "torch":
        from .peer_torch import Torch
        return Torch(device)
    if not device.startswith("cpu:"):
        raise Refusal(f"runs on the host, not on {device}")
    if name == "numpy":
        from .peer_numpy import NumPy
        return NumPy()
    from .peer_onnxruntime import OnnxRuntime
    return OnnxRuntime()


def fastest(calls: list[Call]) -> Call:
    """The spelling with the lowest time of two; the first call of each only warms up.  One call is taken as it is.

    Raises:
        Refusal: none of them runs; the last one's error.
    """
    from .timer import estimate, loop

    if len(calls) == 1:
        return calls[0]
    best: tuple[float, Call] | None = None
    why = Refusal("no spelling")
    for call in calls:
        try:
            timed = loop(call)
            t = min(estimate(timed), estimate(timed))
        except (RuntimeError, NotImplementedError) as error:  # a spelling this version or device does not have
            why = Refusal(str(error).splitlines()[0])
            continue
        if best is None or t < best[0]:
            best = t, call
    if best is None:
        raise why
    return best[1]


def host_threads() -> int:
    """Cores this process may use; its affinity is left as it is."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
