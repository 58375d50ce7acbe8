"""T-Head's PPU SDK as a table: the CUDA driver API under its own names, told apart by PPU_SDK."""
from __future__ import annotations

from ..engine import CUDA_DRIVER, CUDA_ERRORS, CUDA_FATAL, Runtime, TableDriver

__all__ = ["TheadDriver"]

TABLE = Runtime(
    name="thead", vendor="T-Head",
    libraries=(("libcuda.so.1", "libcuda.so"),),
    paths=("/usr/local/cuda/lib64", "/usr/local/cuda/lib"),
    needs=("$PPU_SDK",),  # without it these names are NVIDIA's
    visible_devices="CUDA_VISIBLE_DEVICES", query_tool="ppu-smi",
    calls=CUDA_DRIVER, errors=CUDA_ERRORS, fatal=CUDA_FATAL,
    attributes={"max_threads": 1, "grid_x": 5, "grid_y": 6, "grid_z": 7, "warp": 10, "multiprocessors": 16, "major": 75, "minor": 76, "shared": 97},
    version=lambda v: f"CUDA driver API {v // 1000}.{v % 1000 // 10} of the PPU SDK",
    target=lambda f: ("cuda", f.capability, 32),
    arch=lambda f: f"ppu_{f.capability}",
    formats={"cubin": (b"\x7fELF",), "ptx": ()},
    xccl="nccl",
    unconfirmed={
        "warp": "32 lanes, memory a block and the capability number are not published; they are asked",
        "image": "cubin is the name triton gives the binary; what it holds is the vendor's own",
        "paths": "the libraries stand under /usr/local/cuda according to FlagCX"},
)


class TheadDriver(TableDriver):
    """T-Head PPUs."""

    table = TABLE
