"""Counts every aten call of a block of code, served or not: the share that haian computed, not only what it saw.

Views and allocations compute nothing and are left out.  Not for production: it costs microseconds a call.
"""
from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from . import Enabled

__all__ = ["Census"]

#: Overloads that allocate or ask, and compute nothing.
_NO_COMPUTE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh", "_local_scalar_dense", "alias", "is_same_size",
               "_unsafe_view", "resize_", "set_", "_has_compatible_shallow_copy_type", "record_stream"}
#: Overloads that torch itself composes of others (CompositeExplicitAutograd): allocation or a view, then a served leaf such as
#: copy_, fill_ or zero_.  Any other overload counts as served only when haian overrides that very overload.
_COMPOSED = {"_to_copy", "clone", "expand_copy", "full", "full_like", "masked_fill", "new_full", "new_ones", "new_zeros", "ones", "ones_like", "rsub",
             "select_backward", "slice_backward", "slice_scatter", "select_scatter", "zeros", "zeros_like", "arange", "scalar_tensor"}


class Census(TorchDispatchMode):
    """``with enable() as on, Census(on) as census: model(x)``; then ``census.share``.

    Attributes:
        served: Counter of compute calls that haian computed: the overload itself, or all leaves of a composed one.
        missed: Counter of the other compute calls.
    """

    def __init__(self, enabled: Enabled) -> None:
        super().__init__()
        self.enabled = enabled
        self.served: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        hits, passed = sum(self.enabled.hits.values()), sum(self.enabled.passed.values())
        result = func(*args, **kwargs)
        name = str(func)
        if func.is_view or func.namespace != "aten" or func._schema.name.removeprefix("aten::") in _NO_COMPUTE:
            return result
        if any(isinstance(a, torch.Tensor) and a.numel() == 0 for a in args):
            return result
        own = f"aten.{name.removeprefix('aten.')}" in self.enabled.names or func._schema.name.removeprefix("aten::") in _COMPOSED
        worked = own and sum(self.enabled.hits.values()) > hits and sum(self.enabled.passed.values()) == passed
        (self.served if worked else self.missed)[name] += 1
        return result

    @property
    def share(self) -> float:
        """Compute calls served, of all compute calls; 1.0 when there were none."""
        total = sum(self.served.values()) + sum(self.missed.values())
        return sum(self.served.values()) / total if total else 1.0

    def __str__(self) -> str:
        lines = [f"{sum(self.served.values())} of {sum(self.served.values()) + sum(self.missed.values())} compute calls served ({self.share:.1%})"]
        return "\n".join(lines + [f"  not served {n:>5} x {name}" for name, n in self.missed.most_common()])
