"""Runs a vendor's runtime from a table: table.py (what a vendor writes), shapes.py (tables that vendors share),
library.py (finding and binding a shared library), driver.py (the Driver over it).
"""
from .driver import TableDriver
from .shapes import CUDA_DRIVER, CUDA_ERRORS, CUDA_FATAL, cuda_runtime
from .table import NCCL, Facts, Runtime, Xccl

__all__ = ["CUDA_DRIVER", "CUDA_ERRORS", "CUDA_FATAL", "Facts", "NCCL", "Runtime", "TableDriver", "Xccl", "cuda_runtime"]
