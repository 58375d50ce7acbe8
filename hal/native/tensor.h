/* The tensor descriptor and the calling convention of every host kernel.
 * For: kernels (C), the plan cache, the Python types.  Not for: vendors, who see hal/include/haian_hal.h.
 * Plain C11, no Python.  Strides are in elements.  A descriptor owns nothing. */
#ifndef HAIAN_TENSOR_H
#define HAIAN_TENSOR_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HAIAN_MAX_RANK 8
#define HAIAN_MAX_OPERANDS 16 /* inputs + outputs of one operator */
#define HAIAN_MAX_ATTRS 12

/* Numbers of hal/dtype.py; tests/test_dtype.py compares the two lists. */
enum haian_dtype {
  HAIAN_BOOL = 1,
  HAIAN_U8,
  HAIAN_U16,
  HAIAN_U32,
  HAIAN_U64,
  HAIAN_I8,
  HAIAN_I16,
  HAIAN_I32,
  HAIAN_I64,
  HAIAN_F16,
  HAIAN_BF16,
  HAIAN_F32,
  HAIAN_F64,
  HAIAN_F8E4M3,
  HAIAN_F8E5M2,
  HAIAN_C64,
  HAIAN_C128,
  HAIAN_DTYPE_END
};

/* Numbers of hal/errors.py. */
enum haian_status {
  HAIAN_OK = 0,
  HAIAN_INVALID_ARGUMENT = 1,
  HAIAN_INVALID_HANDLE = 2,
  HAIAN_OUT_OF_RANGE = 3,
  HAIAN_OUT_OF_MEMORY = 4,
  HAIAN_UNSUPPORTED = 5,
  HAIAN_NOT_FOUND = 6,
  HAIAN_NOT_READY = 7,
  HAIAN_TIMEOUT = 8,
  HAIAN_BUSY = 9,
  HAIAN_DEVICE_LOST = 10,
  HAIAN_VERSION_MISMATCH = 11,
  HAIAN_PERMISSION_DENIED = 12,
  HAIAN_INTERNAL = 13,
  HAIAN_SHAPE = 32,
  HAIAN_DTYPE = 33,
  HAIAN_ALIAS = 34,
  HAIAN_INDEX = 35
};

typedef struct haian_tensor {
  void *data; /* address of element [0, ..., 0]; a device address on devices */
  int64_t numel;
  uint32_t tag;   /* dtype | ndim << 5 | contiguous << 9 | aligned64 << 10 | device << 11 */
  int32_t dtype;  /* enum haian_dtype */
  int32_t ndim;   /* 0 .. HAIAN_MAX_RANK */
  int32_t device; /* 0 is the host */
  int64_t shape[HAIAN_MAX_RANK];
  int64_t stride[HAIAN_MAX_RANK]; /* in elements; any sign, 0 for broadcast */
} haian_tensor;

#define HAIAN_TAG_CONTIGUOUS (1u << 9)
#define HAIAN_TAG_ALIGNED (1u << 10)

enum haian_attr_kind { HAIAN_NONE = 0, HAIAN_INT = 1, HAIAN_FLOAT = 2, HAIAN_INTS = 3 };

/* An operator's attribute.  bool, dtype and choice attributes travel as HAIAN_INT (a choice as its index in the schema). */
typedef struct haian_attr {
  int32_t kind;  /* HAIAN_NONE: an optional attribute that was not given */
  int32_t count; /* HAIAN_INTS: how many */
  union {
    int64_t i;
    double f;
    const int64_t *v;
  };
} haian_attr;

/* One call.  Tensors and attributes stand in schema order; an optional tensor that was not given is NULL.
 * Outputs are allocated by the caller and do not overlap inputs, except exactly (same data, shape and strides)
 * for pointwise operators. */
typedef struct haian_args {
  int32_t n_in, n_out, n_attr, reserved;
  haian_tensor *const *in;
  haian_tensor *const *out;
  const haian_attr *attr;
} haian_args;

/* Returns haian_status; on failure haian_last_error() has the message and no output was written. */
typedef int32_t (*haian_kernel)(const haian_args *args);

/* A row of a family's table; the last row has op == NULL.  dtypes: bit 1 << code of the accepted dtypes of the
 * operator's first floating or integer operand. */
typedef struct haian_kernel_entry {
  const char *op;
  haian_kernel run;
  uint32_t dtypes;
  const void *pointwise; /* struct haian_pointwise of a pointwise operator, else NULL */
} haian_kernel_entry;

/* Records the message of this thread and returns code: `return haian_fail(HAIAN_SHAPE, "softmax: dim %d ...", d);` */
int32_t haian_fail(int32_t code, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;
const char *haian_last_error(void);

/* Splits [0, n) into chunks of at least `grain` and runs body(ctx, lo, hi) on the pool; serial inside a body.
 * Chunk borders may depend on the thread count: a body must give the same bits for any split. */
void haian_parallel_for(int64_t n, int64_t grain, void (*body)(void *ctx, int64_t lo, int64_t hi), void *ctx);
int32_t haian_num_threads(void);
void haian_set_num_threads(int32_t n);

/* Bytes per element; 0 for an unknown code. */
static inline int32_t haian_itemsize(int32_t dtype) {
  static const uint8_t size[HAIAN_DTYPE_END] = {0, 1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 1, 1, 8, 16};
  return (uint32_t)dtype < HAIAN_DTYPE_END ? size[dtype] : 0;
}
const char *haian_dtype_name(int32_t dtype);

#ifdef __cplusplus
}
#endif
#endif
