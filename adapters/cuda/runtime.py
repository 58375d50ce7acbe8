"""NVIDIA's CUDA driver API as a table.  Names, argument order and numbers are those of its public reference."""
from __future__ import annotations

from ..engine import CUDA_DRIVER, CUDA_ERRORS, CUDA_FATAL, Runtime, TableDriver

__all__ = ["CudaDriver"]

TABLE = Runtime(
    name="cuda", vendor="NVIDIA",
    libraries=(("libcuda.so.1",),),  # libcuda.so alone may be the toolkit's stub
    paths=("/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"),
    by_name=True,  # containers mount it where only the loader's cache knows
    unless=("$PPU_SDK", "$COREX_ROOT", "/usr/local/corex"),
    visible_devices="CUDA_VISIBLE_DEVICES", query_tool="nvidia-smi",
    calls=CUDA_DRIVER, errors=CUDA_ERRORS, fatal=CUDA_FATAL,
    attributes={"max_threads": 1, "grid_x": 5, "grid_y": 6, "grid_z": 7, "warp": 10, "multiprocessors": 16, "major": 75, "minor": 76, "shared": 97},
    version=lambda v: f"CUDA driver API {v // 1000}.{v % 1000 // 10}",
    more_dtypes=lambda f: ("float8_e4m3fn", "float8_e5m2") if f.capability >= 89 else (),
    target=lambda f: ("cuda", f.capability, 32),
    arch=lambda f: f"sm_{f.capability}",
    formats={"cubin": (b"\x7fELF",), "ptx": ()},
    facts={"bf16_atomics": lambda f: f.capability >= 90},
    xccl="nccl",
)


class CudaDriver(TableDriver):
    """NVIDIA GPUs."""

    table = TABLE
