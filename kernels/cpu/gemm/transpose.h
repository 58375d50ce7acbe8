/* Square transposes in registers, of 32- and 64-bit elements: log2(lanes) rounds of interleaving.
 * Not for: whole matrices (see pack.h, which blocks). */
#ifndef HAIAN_GEMM_TRANSPOSE_H
#define HAIAN_GEMM_TRANSPOSE_H
#include "vec.h"

#define SHUFFLE __builtin_shufflevector
#if VBYTES == 64
#define LOW32(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH32(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define LOW64(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH64(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#elif VBYTES == 32
#define LOW32(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH32(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define LOW64(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define HIGH64(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#else
#define LOW32(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define HIGH32(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#define LOW64(a, b) SHUFFLE(a, b, 0, 2)
#define HIGH64(a, b) SHUFFLE(a, b, 1, 3)
#endif

/* dst row i = column i of the square at src; strides in bytes.  src may be bytes read as wider groups: any alignment */
typedef uint32_t v_u32_any __attribute__((vector_size(VBYTES), aligned(1), may_alias));
typedef uint64_t v_u64_any __attribute__((vector_size(VBYTES), aligned(1), may_alias));
#define TRANSPOSE_BODY(V, LANES, LOW, HIGH)                                \
  V r[LANES], s[LANES];                                                    \
  _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) r[i] =          \
      *(const V##_any *)((const char *)src + i * src_stride);              \
  _Pragma("GCC unroll 8") for (int round = 1; round < LANES; round *= 2) { \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES / 2; i++) {         \
      s[2 * i] = LOW(r[i], r[i + LANES / 2]);                              \
      s[2 * i + 1] = HIGH(r[i], r[i + LANES / 2]);                         \
    }                                                                      \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) r[i] = s[i];  \
  }                                                                        \
  _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) * (V *)((char *)dst + i * dst_stride) = r[i];

INLINE void transpose32(void *dst, int64_t dst_stride, const void *src,
                        int64_t src_stride){TRANSPOSE_BODY(v_u32, LANES32, LOW32, HIGH32)} INLINE
    void transpose64(void *dst, int64_t dst_stride, const void *src,
                     int64_t src_stride){TRANSPOSE_BODY(v_u64, LANES64, LOW64, HIGH64)}
#define TRANSPOSE(type, dst, dst_stride, src, src_stride) \
  (sizeof(type) == 4 ? transpose32(dst, dst_stride, src, src_stride) : transpose64(dst, dst_stride, src, src_stride))

#endif
