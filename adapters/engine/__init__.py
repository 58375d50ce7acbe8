"""Runs a vendor's runtime from a table: table.py (what a vendor writes), shapes.py (tables that vendors share),
library.py (finding and binding a shared library), core.py and
driver.py (the Driver over it).
"""
from .driver import TableDriver
from .shapes import CUDA_DRIVER, CUDA_ERRORS, CUDA_FATAL, HIP, HIP_ATTRIBUTES, HIP_FORMATS, cuda_runtime, gfx, modules
from .table import Facts, Runtime

__all__ = ["CUDA_DRIVER", "CUDA_ERRORS", "CUDA_FATAL", "Facts", "HIP", "HIP_ATTRIBUTES", "HIP_FORMATS", "Runtime", "TableDriver",
           "cuda_runtime", "gfx", "modules"]
