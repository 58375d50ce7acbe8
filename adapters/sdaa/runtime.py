"""Tecorigin's SDAA as a table, from what PaddleCustomDevice calls."""
from __future__ import annotations

from ..engine import CUDA_ERRORS, CUDA_FATAL, Runtime, TableDriver, cuda_runtime

__all__ = ["SdaaDriver"]

TABLE = Runtime(
    name="sdaa", vendor="Tecorigin",
    libraries=(("libsdaart.so",),),
    paths=("$SDAA_PATH/lib64", "/opt/tecoai/lib64"),
    visible_devices="SDAA_VISIBLE_DEVICES", query_tool="teco-smi",
    calls=cuda_runtime("sdaa", uuid="", driver_version="", managed_malloc="", attribute="", capture_begin="", capture_end="", graph_instantiate="",
                       graph_launch="", graph_destroy="", exec_destroy=""),
    errors=CUDA_ERRORS, fatal=CUDA_FATAL,
    dtypes=("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"),
    unconfirmed={
        "directions": "0 to 3 were read in a header of an older line",
        "errors": "numbers were not read; CUDA's are taken", "flags": "numbers were not read; CUDA's are taken",
        "visible_devices": "the variable's name is a guess from the prefix", "query_tool": "not confirmed",
        "modules": "kernels are compiled into the program by the vendor's compiler: operators run on the host",
        "xccl": "libtccl.so (the same name as Tsingmicro's), its numbers were not read: collectives go through the host"},
)


class SdaaDriver(TableDriver):
    """Tecorigin chips, beta: the table was never confirmed on a chip."""

    table = TABLE
