"""Hygon's DTK as a table: HIP with other file names."""
from __future__ import annotations

from ..engine import CUDA_ERRORS, CUDA_FATAL, HIP, HIP_ATTRIBUTES, HIP_FORMATS, Runtime, TableDriver, gfx

__all__ = ["HygonDriver"]

TABLE = Runtime(
    name="hygon", vendor="Hygon",
    libraries=(("libgalaxyhip.so.5", "libgalaxyhip.so", "libamdhip64.so"),),
    paths=("$ROCM_PATH/lib", "$HIP_PATH/lib", "/opt/dtk/hip/lib", "/opt/dtk/lib"),
    needs=("/opt/dtk", "/opt/hyhal"),
    visible_devices="HIP_VISIBLE_DEVICES", query_tool="hy-smi",
    calls=HIP, errors=CUDA_ERRORS, fatal=CUDA_FATAL, attributes=HIP_ATTRIBUTES,
    version=lambda v: f"HIP {v // 10_000_000}.{v // 100_000 % 100}",
    target=lambda f: ("hip", gfx(f), f.attributes.get("warp", 64)),
    arch=gfx,
    formats=HIP_FORMATS,
    default_shared=64 << 10,
    xccl="rccl",
    unconfirmed={
        "library": "libgalaxyhip.so.5 comes from a third-party note; DTK's symbol versions differ from AMD's builds",
        "attributes": "the numbers are AMD's of HIP 6; DTK's header was not read",
        "paths": "versioned folders such as /opt/dtk-26.04 are found through LD_LIBRARY_PATH only (source its env.sh)"},
)


class HygonDriver(TableDriver):
    """Hygon DCUs."""

    table = TABLE
