/* Rows of strided tensors for kernels that work along axes: splitting the axes of a tensor into a row and the rest,
 * walking the rest, and what the real types share.  row_real.h adds reading, writing and summing runs of one type.
 * For: reduce, softmax, norm, loss.  Not for: pointwise work, movement (strided.h). */
#ifndef HAIAN_ROW_H
#define HAIAN_ROW_H
#include "kernel.h"
#include "simd.h"
#include "strided.h"
#include <math.h>
#include <stdio.h>

#if defined(__AVX512F__)
#define ROW_VBYTES 64
#elif defined(__AVX__)
#define ROW_VBYTES 32
#else
#define ROW_VBYTES 16
#endif

/* Larger and smaller of two vectors of floats or doubles, lane by lane, either one where a lane is NaN. */
#if defined(__AVX512F__)
#define ROW_X86_F32(op, a, b) ((vec_f32)_mm512_##op##_ps((__m512)(a), (__m512)(b)))
#define ROW_X86_F64(op, a, b) ((vec_f64)_mm512_##op##_pd((__m512d)(a), (__m512d)(b)))
#elif defined(__AVX__)
#define ROW_X86_F32(op, a, b) ((vec_f32)_mm256_##op##_ps((__m256)(a), (__m256)(b)))
#define ROW_X86_F64(op, a, b) ((vec_f64)_mm256_##op##_pd((__m256d)(a), (__m256d)(b)))
#elif defined(__SSE2__)
#define ROW_X86_F32(op, a, b) ((vec_f32)_mm_##op##_ps((__m128)(a), (__m128)(b)))
#define ROW_X86_F64(op, a, b) ((vec_f64)_mm_##op##_pd((__m128d)(a), (__m128d)(b)))
#endif
#if defined(ROW_X86_F32)
#define ROW_VMAX_F32(a, b) ROW_X86_F32(max, a, b)
#define ROW_VMIN_F32(a, b) ROW_X86_F32(min, a, b)
#define ROW_VMAX_F64(a, b) ROW_X86_F64(max, a, b)
#define ROW_VMIN_F64(a, b) ROW_X86_F64(min, a, b)
#else
#define ROW_VMAX_F32 pick_vec_largest_f32
#define ROW_VMIN_F32 pick_vec_smallest_f32
#define ROW_VMAX_F64 pick_vec_largest_f64
#define ROW_VMIN_F64 pick_vec_smallest_f64
#endif

#define ROW_INLINE static inline __attribute__((always_inline, unused))
#define ROW_UNUSED __attribute__((unused))

/* Elements that a kernel converts, sums or writes at a time: 8 KiB of f32, so a few such runs stay in a 32 KiB L1. */
#define ROW_CHUNK 2048
/* Rows up to this length use the small stack frame: big frames are probed page by page where the compiler guards the
 * stack. */
#define ROW_SHORT 512

/* The axes of one tensor that make up a row; position p of the row is the row-major number of an index over them. */
typedef struct row_axes {
  int32_t dtype, item, ndim;
  int64_t shape[HAIAN_MAX_RANK], stride[HAIAN_MAX_RANK]; /* ndim >= 1; merged where the strides allow it */
} row_axes;

static inline int64_t row_item(int32_t dtype) {
  switch (dtype) {
    case HAIAN_BOOL:
    case HAIAN_U8:
    case HAIAN_I8:
      return 1;
    case HAIAN_F16:
    case HAIAN_BF16:
    case HAIAN_I16:
    case HAIAN_U16:
      return 2;
    case HAIAN_F32:
    case HAIAN_I32:
    case HAIAN_U32:
      return 4;
    default:
      return 8;
  }
}

static inline bool row_is_float(int32_t dtype) { return (HAIAN_BIT(dtype) & HAIAN_FLOATS) != 0; }

/* *r becomes the row made of the axes whose bit is set in `mask`, in order.  Only what counts is written: a 16-element
 * call spends as long on clearing descriptors as on arithmetic. */
static inline void row_of(row_axes *r, const haian_tensor *t, uint32_t mask) {
  int n = 0;
  r->dtype = t->dtype;
  r->item = (int32_t)row_item(t->dtype);
  r->shape[0] = r->stride[0] = 1;
  for (int d = 0; d < t->ndim; d++) {
    if (!(mask >> d & 1) || t->shape[d] == 1) continue;
    if (n && r->stride[n - 1] == t->stride[d] * t->shape[d]) {
      r->shape[n - 1] *= t->shape[d];
    } else {
      r->shape[n++] = t->shape[d];
    }
    r->stride[n - 1] = t->stride[d];
  }
  r->ndim = n ? n : 1;
}

/* *w becomes a walk over the axes, of up to three tensors of one shape, whose bit is set in `mask`; neighbours merged.
 */
static inline void row_walk(haian_walk *w, const haian_tensor *const *t, int tensors, uint32_t mask) {
  int n = 0;
  w->tensors = tensors;
  for (int d = 0; d < t[0]->ndim; d++) {
    if (!(mask >> d & 1) || t[0]->shape[d] == 1) continue;
    bool even = n > 0;
    for (int k = 0; k < tensors && even; k++) even = w->stride[n - 1][k] == t[k]->stride[d] * t[k]->shape[d];
    if (even) {
      w->shape[n - 1] *= t[0]->shape[d];
    } else {
      w->shape[n++] = t[0]->shape[d];
    }
    for (int k = 0; k < tensors; k++) w->stride[n - 1][k] = t[k]->stride[d];
  }
  w->ndim = n;
}

/* Whether dim names an axis of a tensor of ndim axes (0-d: 0 and -1); *axis is then 0 <= axis < max(ndim, 1). */
static inline bool row_axis(int64_t dim, int32_t ndim, int *axis) {
  int64_t n = ndim ? ndim : 1;
  if (dim < -n || dim >= n) return false;
  *axis = (int)(dim < 0 ? dim + n : dim);
  return true;
}

/* Rows a thread takes at least, for rows of n elements of `bytes` bytes in all operands together. */
static inline int64_t row_grain(int64_t n, int64_t bytes) {
  int64_t row = n * bytes;
  return row >= HAIAN_GRAIN_BYTES ? 1 : HAIAN_GRAIN_BYTES / (row < 16 ? 16 : row);
}

/* exp(x) 2^64 for x <= 0 (softmax shifts by the maximum, and the factor leaves with the division by the sum): exponents
 * stay in the normal range, which saves the second scaling and the upper clamp of haian_expf; half its instructions.
 * x < -104 counts as -104, whose exp is below half the smallest float.  One-step reduction with FMA: the error of ln2
 * adds 2e-9 |x|, a thirtieth of what rounding x itself leaves.  Relative error otherwise below 2^-23. */
#define ROW_EXP_SCALE 0x1p64
ROW_INLINE float row_exp_f32(float x) {
  x = x < -104.0f ? -104.0f : x;            /* NaN stays */
  const float rounder = 0x1.8p23f + 191.0f; /* leaves n + 127 + 64 in the low bits */
  float t = x * 0x1.715476p+0f + rounder, n = t - rounder;
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  float r = x - n * 0x1.62e43p-1f;
#else
  float r = (x - n * HAIAN_LN2_HIF) - n * HAIAN_LN2_LOF; /* the product would be rounded */
#endif
  float p = 0x1.6ac686p-10f; /* coefficients of haian_expf */
  p = p * r + 0x1.123ddep-7f;
  p = p * r + 0x1.555858p-5f;
  p = p * r + 0x1.55548cp-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * (r * r) + r;
  return (p + 1.0f) * haian_float(haian_bits32(t) << 23);
}
ROW_INLINE double row_exp_f64(double x) { return haian_exp(x) * ROW_EXP_SCALE; }

/* "(3, 4)" for messages. */
typedef struct row_text {
  char text[192];
} row_text;

ROW_UNUSED static __attribute__((noinline, cold)) row_text row_shape(const haian_tensor *t) {
  row_text r;
  int at = snprintf(r.text, sizeof r.text, "(");
  for (int d = 0; d < t->ndim; d++)
    at += snprintf(r.text + at, sizeof r.text - (size_t)at, d ? ", %lld" : "%lld", (long long)t->shape[d]);
  snprintf(r.text + at, sizeof r.text - (size_t)at, t->ndim == 1 ? ",)" : ")");
  return r;
}

/* Refuses an output or second operand that is not just like x. */
#define ROW_REQUIRE_LIKE(op, name, t, xname, x)                                                                        \
  do {                                                                                                                 \
    HAIAN_REQUIRE((t)->dtype == (x)->dtype, HAIAN_DTYPE,                                                               \
                  op ": " name " has dtype %s and " xname " has %s; they must be equal", haian_dtype_name((t)->dtype), \
                  haian_dtype_name((x)->dtype));                                                                       \
    HAIAN_REQUIRE(haian_same_shape(t, x), HAIAN_SHAPE, op ": " name " is %s and " xname " is %s; they must be equal",  \
                  row_shape(t).text, row_shape(x).text);                                                               \
  } while (0)

#endif
