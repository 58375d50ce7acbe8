"""The one table of element types: what each is called in Python, C, DLPack, NumPy and Triton.

Not here: promotion (belongs to the face that needs it) and conversion (an operator, ``cast``).
"""
from __future__ import annotations

import builtins
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from .errors import DTypeError

__all__ = ["ALL", "BY_CODE", "BY_NAME", "DType", "dtype"]


@dataclass(frozen=True, eq=False)
class DType:
    """One element type.  Instances are singletons: compare with ``is`` or ``==``.

    Attributes:
        name: array-API name (``float32``), used in Python.
        short: name in symbols (``f32``).
        code: number in ``haian_tensor.dtype`` (``hal/native/tensor.h``), below 32.
        kind: ``b`` bool, ``u`` unsigned, ``i`` signed, ``f`` floating, ``c`` complex.
        itemsize: bytes per element.
        numpy: the NumPy type (ml_dtypes' for bfloat16 and float8).
        dlpack: (type code, bits) of DLPack 1.0.
        c: the C type of the storage.
        triton: Triton's name, ``""`` where it has none.
        digits: significand bits with the hidden one; 0 where not floating.
    """

    name: str
    short: str
    code: int
    kind: str
    itemsize: int
    numpy: np.dtype
    dlpack: tuple[int, int]
    c: str
    triton: str
    digits: int = 0

    @property
    def is_floating(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def roundoff(self) -> float:
        """Unit roundoff u = 2**-digits (half the spacing just above 1), 0.0 for exact types."""
        return 2.0**-self.digits if self.digits else 0.0

    def __repr__(self) -> str:
        return f"haian.{self.name}"

    def __str__(self) -> str:
        return self.name

    def __reduce__(self):
        return (dtype, (self.name,))


def _d(name, short, code, kind, size, np_type, dl, c, triton, digits=0):
    return DType(name, short, code, kind, size, np.dtype(np_type), dl, c, triton, digits)


# code 0 stays free, so that a zeroed descriptor is recognisably wrong.  DLPack codes: dlpack.h 1.0, DLDataTypeCode.
ALL: tuple[DType, ...] = (
    _d("bool", "b8", 1, "b", 1, np.bool_, (6, 8), "uint8_t", "i1"),
    _d("uint8", "u8", 2, "u", 1, np.uint8, (1, 8), "uint8_t", "u8"),
    _d("uint16", "u16", 3, "u", 2, np.uint16, (1, 16), "uint16_t", "u16"),
    _d("uint32", "u32", 4, "u", 4, np.uint32, (1, 32), "uint32_t", "u32"),
    _d("uint64", "u64", 5, "u", 8, np.uint64, (1, 64), "uint64_t", "u64"),
    _d("int8", "i8", 6, "i", 1, np.int8, (0, 8), "int8_t", "i8"),
    _d("int16", "i16", 7, "i", 2, np.int16, (0, 16), "int16_t", "i16"),
    _d("int32", "i32", 8, "i", 4, np.int32, (0, 32), "int32_t", "i32"),
    _d("int64", "i64", 9, "i", 8, np.int64, (0, 64), "int64_t", "i64"),
    _d("float16", "f16", 10, "f", 2, np.float16, (2, 16), "uint16_t", "fp16", 11),
    _d("bfloat16", "bf16", 11, "f", 2, ml_dtypes.bfloat16, (4, 16), "uint16_t", "bf16", 8),
    _d("float32", "f32", 12, "f", 4, np.float32, (2, 32), "float", "fp32", 24),
    _d("float64", "f64", 13, "f", 8, np.float64, (2, 64), "double", "fp64", 53),
    _d("float8_e4m3fn", "f8e4m3", 14, "f", 1, ml_dtypes.float8_e4m3fn, (10, 8), "uint8_t", "fp8e4nv", 4),
    _d("float8_e5m2", "f8e5m2", 15, "f", 1, ml_dtypes.float8_e5m2, (12, 8), "uint8_t", "fp8e5", 3),
    _d("complex64", "c64", 16, "c", 8, np.complex64, (5, 64), "float", "", 24),
    _d("complex128", "c128", 17, "c", 16, np.complex128, (5, 128), "double", "", 53),
)
BY_NAME: dict[str, DType] = {d.name: d for d in ALL}
BY_CODE: dict[int, DType] = {d.code: d for d in ALL}
_BY_NUMPY: dict[np.dtype, DType] = {d.numpy: d for d in ALL}
_BY_SHORT: dict[str, DType] = {d.short: d for d in ALL}
globals().update(BY_NAME)  # haian.hal.dtype.float32, ...


def dtype(spec: object) -> DType:
    """The DType for a DType, a name (``"float32"``, ``"f32"``), a code, or anything ``numpy.dtype`` accepts.

    Raises:
        DTypeError: no such element type here (byte-swapped and structured types among them).
    """
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, str):
        found = BY_NAME.get(spec) or _BY_SHORT.get(spec)
        if found:
            return found
    if isinstance(spec, int) and not isinstance(spec, builtins.bool):  # bool is a DType here
        found = BY_CODE.get(spec)
        if found:
            return found
    else:
        try:
            found = _BY_NUMPY.get(np.dtype(spec))  # type: ignore[call-overload]
        except (TypeError, ValueError, SyntaxError):  # NumPy's three ways to refuse
            found = None
        if found:
            return found
    raise DTypeError(f"dtype {spec!r} is not one of haian's; use one of {', '.join(BY_NAME)}")
