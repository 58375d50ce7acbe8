"""AMD's HIP runtime as a table.  Numbers are those of the public header hip_runtime_api.h of HIP 6."""
from __future__ import annotations

import re

from ..engine import CUDA_ERRORS, CUDA_FATAL, Facts, Runtime, TableDriver, Xccl, cuda_runtime
from ..engine.shapes import modules

__all__ = ["HipDriver"]


def _arch(f: Facts) -> str:
    """The gfx name stands in the properties struct, whose layout moved with HIP 6; the text is found in either."""
    found = re.search(r"gfx[0-9a-f]{3,4}", f.text)
    return found[0] if found else ""


TABLE = Runtime(
    name="hip", vendor="AMD",
    libraries=(("libamdhip64.so.6", "libamdhip64.so.7", "libamdhip64.so.5", "libamdhip64.so"),),
    paths=("$ROCM_PATH/lib", "$HIP_PATH/lib", "/opt/rocm/lib"),
    unless=("/opt/hyhal", "/opt/dtk"),
    visible_devices="HIP_VISIBLE_DEVICES", query_tool="rocm-smi",
    calls=cuda_runtime(
        "hip", properties="hipGetDevicePropertiesR0600|hipGetDeviceProperties(text, device)", host_malloc="hipHostMalloc(out, n, 0)",
        host_free="hipHostFree(ptr)", copy_2d="hipMemcpy2DAsync(dst, pitch_d, src, pitch_s, width, height, kind, stream)",
        memset16="hipMemsetD16Async(ptr, value:unsigned short, n, stream)", memset32="hipMemsetD32Async(ptr, value, n, stream)",
    ) | modules("hip", "ModuleLaunchKernel"),
    errors=CUDA_ERRORS, fatal=CUDA_FATAL,
    attributes={"max_threads": 56, "grid_x": 29, "grid_y": 30, "grid_z": 31, "multiprocessors": 63, "shared": 74, "warp": 87},
    version=lambda v: f"HIP {v // 10_000_000}.{v // 100_000 % 100}",
    target=lambda f: ("hip", _arch(f), f.attributes.get("warp", 64)),
    arch=_arch,
    formats={"hsaco": (b"\x7fELF", b"__CLANG_OFFLOAD_BUNDLE__")},
    default_shared=64 << 10,
    xccl=Xccl(("librccl.so.1", "librccl.so"), "nccl", ("$ROCM_PATH/lib", "/opt/rocm/lib")),
    unconfirmed={"device": "written from AMD's public header; never ran on an AMD GPU"},
)


class HipDriver(TableDriver):
    """AMD GPUs."""

    table = TABLE
