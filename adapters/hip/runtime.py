"""AMD's HIP runtime as a table.  Numbers are those of the public header hip_runtime_api.h of HIP 6."""
from __future__ import annotations

from ..engine import CUDA_ERRORS, CUDA_FATAL, HIP, HIP_ATTRIBUTES, HIP_FORMATS, Runtime, TableDriver, gfx

__all__ = ["HipDriver"]

TABLE = Runtime(
    name="hip", vendor="AMD",
    libraries=(("libamdhip64.so.6", "libamdhip64.so.7", "libamdhip64.so.5", "libamdhip64.so"),),
    paths=("$ROCM_PATH/lib", "$HIP_PATH/lib", "/opt/rocm/lib"),
    unless=("/opt/hyhal", "/opt/dtk"),
    visible_devices="HIP_VISIBLE_DEVICES", query_tool="rocm-smi",
    calls=HIP, errors=CUDA_ERRORS, fatal=CUDA_FATAL, attributes=HIP_ATTRIBUTES,
    version=lambda v: f"HIP {v // 10_000_000}.{v // 100_000 % 100}",
    target=lambda f: ("hip", gfx(f), f.attributes.get("warp", 64)),
    arch=gfx,
    formats=HIP_FORMATS,
    default_shared=64 << 10,
    xccl="rccl",
    unconfirmed={"device": "written from AMD's public header; never ran on an AMD GPU"},
)


class HipDriver(TableDriver):
    """AMD GPUs."""

    table = TABLE
