/* Descriptor of a pointwise operator on the host and its tile functions.
 * For: pointwise.c, which runs any strides, and the plan cache (py_op.c), which calls tiles of contiguous operands directly. */
#ifndef HAIAN_POINTWISE_H
#define HAIAN_POINTWISE_H
#include "../../hal/native/tensor.h"
#include <stddef.h>

#define HAIAN_TILE_INPUTS 4

/* out[i] = op(in[0][i], in[1][i], ...), i < n, all contiguous, no checks; out may be exactly an input.
 * Bits of an element do not depend on n or on where a run starts. */
typedef void (*haian_tile)(const void *const *in, void *out, int64_t n, const haian_attr *attr);

enum haian_result { HAIAN_RESULT_SAME, HAIAN_RESULT_BOOL, HAIAN_RESULT_ATTR /* attribute 0 is the dtype: cast */ };

typedef struct haian_pointwise {
  const char *name;
  int32_t n_in;
  uint32_t boolean; /* bit i: input i is bool whatever the dtype of the others */
  int32_t result;   /* enum haian_result */
  int32_t n_attr;
  uint32_t numbers; /* bit i: attribute i is a number; on integers it must be one */
  const char *input[HAIAN_TILE_INPUTS];
  const char *attr[HAIAN_MAX_ATTRS];
  haian_tile tile[HAIAN_DTYPE_END]; /* by dtype of the inputs that are not in `boolean`; NULL: refused */
} haian_pointwise;

/* The tile to call directly for contiguous operands of one shape, or NULL where the kernel has attributes to check. */
static inline haian_tile haian_pointwise_tile(const haian_pointwise *pw, int32_t dtype, int32_t out_dtype,
                                              const haian_attr *attr) {
  (void)out_dtype;
  (void)attr;
  if (dtype <= 0 || dtype >= HAIAN_DTYPE_END) return NULL;
  int integer = dtype >= HAIAN_U8 && dtype <= HAIAN_I64;
  return integer && pw->numbers ? NULL : pw->tile[dtype];
}

#endif
