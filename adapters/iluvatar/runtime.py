"""Iluvatar's CoreX as a table: CUDA's own names from CoreX's folder, at the level of CUDA 10.2."""
from __future__ import annotations

from ..engine import CUDA_ERRORS, CUDA_FATAL, Runtime, TableDriver, cuda_runtime, modules

__all__ = ["IluvatarDriver"]

_PATHS = ("$COREX_ROOT/lib", "$COREX_ROOT/lib64", "/usr/local/corex/lib", "/usr/local/corex/lib64")

TABLE = Runtime(
    name="iluvatar", vendor="Iluvatar CoreX",
    libraries=(("libcudart.so", "libcudart.so.10.2"), ("libcuda.so.1", "libcuda.so")),
    paths=_PATHS, only_paths=True,  # elsewhere these names are NVIDIA's
    visible_devices="ILUVATAR_VISIBLE_DEVICES", query_tool="ixsmi",
    calls=cuda_runtime("cuda") | modules("cu") | {"driver_init": "cuInit(0)"},
    errors=CUDA_ERRORS, fatal=CUDA_FATAL, touch=True,
    attributes={"max_threads": 1, "grid_x": 5, "grid_y": 6, "grid_z": 7, "shared": 8, "warp": 10, "multiprocessors": 16, "major": 75, "minor": 76},
    version=lambda v: f"CUDA runtime API {v // 1000}.{v % 1000 // 10} of CoreX",
    dtypes=("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"),
    target=lambda f: ("cuda", f.capability, 64),  # triton's backend has NVIDIA's name here
    arch=lambda f: {70: "ivcore10", 71: "ivcore11", 80: "ivcore20"}.get(f.capability, ""),
    formats={"cubin": (b"\x7fELF",)},
    xccl="nccl",
    unconfirmed={
        "level": "headers of CUDA 10.2 are what FlagGems compiles against; the current release may offer more",
        "graph": "cudaGraphInstantiateWithFlags came with CUDA 11.4; absent, graphs are not offered",
        "elapsed": "FlagCX leaves elapsed time unwired for this vendor",
        "align": "256 bytes is CUDA's; CoreX's is not documented"},
)


class IluvatarDriver(TableDriver):
    """Iluvatar GPUs."""

    table = TABLE
