/* Status messages per thread and the facts of element types that C code needs.
 * Not here: the Python exceptions (hal/errors.py) and the dtype table with its other names (hal/dtype.py). */
#include "tensor.h"
#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[512];

int32_t haian_fail(int32_t code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return code;
}

const char *haian_last_error(void) { return last_error; }

static const char *const names[HAIAN_DTYPE_END] = {
    [HAIAN_BOOL] = "bool",          [HAIAN_U8] = "uint8",
    [HAIAN_U16] = "uint16",         [HAIAN_U32] = "uint32",
    [HAIAN_U64] = "uint64",         [HAIAN_I8] = "int8",
    [HAIAN_I16] = "int16",          [HAIAN_I32] = "int32",
    [HAIAN_I64] = "int64",          [HAIAN_F16] = "float16",
    [HAIAN_BF16] = "bfloat16",      [HAIAN_F32] = "float32",
    [HAIAN_F64] = "float64",        [HAIAN_F8E4M3] = "float8_e4m3fn",
    [HAIAN_F8E5M2] = "float8_e5m2", [HAIAN_C64] = "complex64",
    [HAIAN_C128] = "complex128",
};

/* The name Python uses; "?" for a code that is no dtype. */
const char *haian_dtype_name(int32_t dtype) { return dtype > 0 && dtype < HAIAN_DTYPE_END ? names[dtype] : "?"; }
