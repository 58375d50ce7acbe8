"""Triton's compiler up to Triton IR, which is the simulated chip's machine code.

Stages: ``ttir`` (the optimised module) and ``simbin`` (its text as bytes, with the kernel's name on the first line).
Written for Triton 3.0 to 3.9; passes that a version lacks are left out.
"""
from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from typing import Any

from triton._C.libtriton import ir, passes
from triton.backends.compiler import BaseBackend

__all__ = ["SimBackend"]

# (group, pass) in the order in which Triton's own backends run them on TTIR
_PASSES = (
    ("common", "add_inliner"),
    ("ttir", "add_rewrite_tensor_pointer"),
    ("ttir", "add_rewrite_tensor_descriptor_to_pointer"),
    ("common", "add_canonicalizer"),
    ("ttir", "add_combine"),
    ("ttir", "add_reorder_broadcast"),
    ("common", "add_cse"),
    ("common", "add_symbol_dce"),
    ("ttir", "add_loop_unroll"),
)


@dataclass(frozen=True)
class SimOptions:
    """Compile options Triton's front end reads.  The chip has no warps; ``num_warps`` is accepted and ignored."""

    num_warps: int = 1
    num_ctas: int = 1
    num_stages: int = 1
    warp_size: int = 1
    cluster_dims: tuple[int, ...] = (1, 1, 1)
    enable_fp_fusion: bool = False
    launch_cooperative_grid: bool = False
    launch_pdl: bool = False
    debug: bool = False
    sanitize_overflow: bool = False
    arch: str = "sim0"
    backend_name: str = "haian_sim"
    extern_libs: Any = None
    supported_fp8_dtypes: tuple[str, ...] = ("fp8e4nv", "fp8e5", "fp8e4b8", "fp8e5b16")
    deprecated_fp8_dtypes: tuple[str, ...] = ()
    deprecated_fp8_dot_operand_dtypes: tuple[str, ...] = ()
    default_dot_input_precision: str = "ieee"
    # tl.dot without input_precision takes tf32 wherever it is allowed, whatever the default says
    allowed_dot_input_precisions: tuple[str, ...] = ("ieee",)
    max_num_imprecise_acc_default: int = 0
    allow_fp8e4nv: bool = True  # read by 3.0, with the next
    allow_fp8e4b15: bool = False
    instrumentation_mode: str = ""
    fpsan_homomorphic_casts: bool = False
    ir_override: str | None = None

    def hash(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


class SimBackend(BaseBackend):
    """Target ``GPUTarget("haian_sim", "sim0", 1)``."""

    binary_ext = "simbin"

    @staticmethod
    def supports_target(target) -> bool:
        return target.backend == "haian_sim"

    def hash(self) -> str:
        return "haian-sim-1"

    def get_target_name(self, options: SimOptions) -> str:
        return f"haian_sim:{options.arch}"

    def parse_options(self, options: dict) -> SimOptions:
        return SimOptions(**{f.name: options[f.name] for f in fields(SimOptions) if options.get(f.name) is not None})

    def pack_metadata(self, metadata):
        return metadata

    def get_codegen_implementation(self, options=None) -> dict:
        return {"min_dot_size": lambda lhs, rhs: (1, 1, 1)}

    def get_module_map(self) -> dict:
        return {}

    def load_dialects(self, context) -> None:
        """Triton's own dialects are enough."""

    def add_stages(self, stages: dict, options: SimOptions, language=None) -> None:
        stages["ttir"] = _optimise
        stages["simbin"] = _binary


def _optimise(module, metadata: dict):
    """Run the TTIR passes in place and return the module."""
    manager = ir.pass_manager(module.context)
    manager.enable_debug()
    for group, name in _PASSES:
        add = getattr(getattr(passes, group), name, None)
        if add is not None:
            add(manager)
    try:
        manager.run(module, "make_ttir")
    except TypeError:  # before 3.5 run() takes the module alone
        manager.run(module)
    return module


def _binary(module, metadata: dict) -> bytes:
    """The module's text under a first line that names the kernel."""
    text = str(module)
    found = re.search(r'tt\.func public @"?([\w.$-]+)"?', text)
    if found is None:
        raise RuntimeError("the module has no public function; compile a kernel, not a device function")
    metadata["name"] = found[1]
    metadata["shared"] = 0
    return f"// haian-sim kernel: {found[1]}\n{text}".encode()
