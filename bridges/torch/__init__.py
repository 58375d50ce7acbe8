"""PyTorch on haian: ``haian.bridges.torch.enable()`` and an unchanged model runs on haian's kernels.

enable() overrides aten's CPU kernels below autograd, leaf overloads only, so autograd works as ever; calls that haian
does not take go to torch's own kernel and are counted.  It serves host memory.
"""
from __future__ import annotations

import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from ...hal.errors import ArgumentError, DTypeError, EnvironmentMissing, Unsupported

try:
    import torch
except ModuleNotFoundError as missing:
    raise EnvironmentMissing("haian.bridges.torch: PyTorch is not installed; pip install 'haian[torch]'") from missing

if not hasattr(torch.library, "get_kernel"):
    raise EnvironmentMissing(f"haian.bridges.torch: PyTorch {torch.__version__} has no torch.library.get_kernel; needs 2.9 or newer")

from ..common import Hits, Pass
from .census import Census
from .overloads import aten_table
from .tensors import NUMBER, boxed

__all__ = ["Census", "Enabled", "aten_table", "enable"]

#: torch's own kernels, fetched before anything of ours stands in their place: a nested ``enable`` would find the outer one's.
_OWN: dict[str, Any] = {}


class Enabled:
    """What ``enable`` returns: counters, and a context manager that ends the override.

    Attributes:
        hits: Counter of calls served by haian, by overload ("aten.add.Tensor").
        passed: Counter of calls of overridden overloads that were left to torch.
        reasons: Counter of (overload, reason) of those.
    """

    def __init__(self, names: list[str]) -> None:
        self._count = Hits()
        self.hits, self.passed, self.reasons = self._count.hits, self._count.passed, self._count.reasons
        self.names = tuple(names)
        table = aten_table()
        self._library: torch.library.Library | None = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")  # what enable() is for
            for name in names:
                self._override(name, table[name])

    def _override(self, name: str, serve: Any) -> None:
        key = name.removeprefix("aten.").removesuffix(".default")
        if key not in _OWN:
            _OWN[key] = torch.library.get_kernel(f"aten::{key}", "CPU")
        own = _OWN[key]
        packet, _, which = name.removeprefix("aten.").partition(".")
        schema = getattr(getattr(torch.ops.aten, packet), which)._schema
        tensors = {i for i, a in enumerate(schema.arguments) if str(a.type) == "Tensor"}
        count = self._count

        def call(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                result = serve(*args, **kwargs)
            except Exception as left:  # noqa: BLE001 - nothing was written: torch's kernel gives its own result, or its own error, for what haian refuses
                expected = isinstance(left, (Pass, Unsupported, DTypeError))
                count.left(name, str(left) if expected else f"{type(left).__name__}: {left}")
            else:
                count.served(name)
                return result
            # outside the except: torch's error is not one "during the handling of" haian's
            return own.call_boxed(keyset, *(boxed(a, args) if i in tensors and isinstance(a, NUMBER) else a for i, a in enumerate(args)), **kwargs)

        assert self._library is not None  # only __init__ calls this
        self._library.impl(key, call, "CPU", with_keyset=True, allow_override=True)

    def close(self) -> None:
        """torch's own kernels again.  The counters stay readable; a second call does nothing."""
        if self._library is not None:
            self._library._destroy()
            self._library = None

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __str__(self) -> str:
        return str(self._count)


def enable(only: Iterable[str] | None = None, exclude: Iterable[str] = ()) -> Enabled:
    """Let haian compute torch's CPU operators in this process, until ``close`` or the end of the ``with`` block.

    Args:
        only: overloads to serve, patterns allowed (``"aten.add.*"``); all of ``aten_table()`` when None.
        exclude: overloads to leave to torch.

    Raises:
        ArgumentError: a pattern matches no overload.
    """
    table = aten_table()
    excluded = tuple(exclude)
    patterns = tuple(only) if only is not None else ("*",)
    for pattern in (*patterns, *excluded):
        if not any(fnmatchcase(name, pattern) for name in table):
            raise ArgumentError(f"enable: {pattern!r} matches none of the {len(table)} overloads haian serves; see aten_table()")
    names = [n for n in table if any(fnmatchcase(n, p) for p in patterns) and not any(fnmatchcase(n, p) for p in excluded)]
    return Enabled(names)
