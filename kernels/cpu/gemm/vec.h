/* Vector types of the matrix product, from GCC's vector extension: one width per instruction set.
 * Not for: elementwise mathematics. */
#ifndef HAIAN_GEMM_VEC_H
#define HAIAN_GEMM_VEC_H
#include "../kernel.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VBYTES 64
#elif defined(__AVX__)
#define VBYTES 32
#else
#define VBYTES 16
#endif
#define LANES32 (VBYTES / 4)
#define LANES64 (VBYTES / 8)
#define INLINE static inline __attribute__((always_inline))
#define VECTOR(type) type __attribute__((vector_size(VBYTES), aligned(sizeof(type)), may_alias))

typedef VECTOR(float) v_f32;
typedef VECTOR(double) v_f64;
typedef VECTOR(uint32_t) v_u32;
typedef VECTOR(int32_t) v_i32;
typedef VECTOR(uint64_t) v_u64;
typedef VECTOR(int64_t) v_i64;

/* x - 0 is x for every float, -0 and NaN included, so this is a plain broadcast (x + 0 would turn -0 into 0) */
#define SPLAT(V, x) ((x) - (V){0})

/* LANES32 values of 16 bits at p, widened */
typedef uint16_t v_half __attribute__((vector_size(VBYTES / 2), aligned(2), may_alias));
INLINE v_u32 widen_half(v_half x) { /* gcc 12 makes __builtin_convertvector into two halves and an insert */
#if defined(__AVX512F__)
  return (v_u32)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
  return (v_u32)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, v_u32);
#endif
}
INLINE v_half narrow_half(v_u32 x) {
#if defined(__AVX512F__)
  return (v_half)_mm512_cvtepi32_epi16((__m512i)x);
#else
  return __builtin_convertvector(x, v_half);
#endif
}
INLINE v_f32 load_bf16(const uint16_t *p) { return (v_f32)(widen_half(*(const v_half *)p) << 16); }
INLINE v_f32 load_f16(const uint16_t *p) {
#if defined(__AVX512F__)
  return (v_f32)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
#elif defined(__F16C__)
  return (v_f32)_mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
#else
  float v[LANES32];
  for (int i = 0; i < LANES32; i++) v[i] = haian_f16_load(p[i]);
  return *(const v_f32 *)v;
#endif
}
/* round to nearest even; NaN stays NaN */
INLINE void store_bf16(uint16_t *p, v_f32 x) {
  const v_u32 u = (v_u32)x;
  const v_u32 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const v_u32 is_nan = (v_u32)((u & 0x7fffffffu) > 0x7f800000u);
  *(v_half *)p = narrow_half((rounded & ~is_nan) | (((u >> 16) | 0x40u) & is_nan));
}
INLINE void store_f16(uint16_t *p, v_f32 x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((void *)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  _mm_storeu_si128((void *)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int i = 0; i < LANES32; i++) p[i] = haian_f16_store(x[i]);
#endif
}

/* the larger of x and y; y where x is NaN, so a running maximum y passes NaN over */
INLINE v_f32 max_f32(v_f32 x, v_f32 y) {
#if defined(__AVX512F__)
  return (v_f32)_mm512_max_ps((__m512)x, (__m512)y);
#elif defined(__AVX__)
  return (v_f32)_mm256_max_ps((__m256)x, (__m256)y);
#else
  const v_i32 greater = x > y;
  return (v_f32)(((v_i32)x & greater) | ((v_i32)y & ~greater));
#endif
}
INLINE v_f64 max_f64(v_f64 x, v_f64 y) {
#if defined(__AVX512F__)
  return (v_f64)_mm512_max_pd((__m512d)x, (__m512d)y);
#elif defined(__AVX__)
  return (v_f64)_mm256_max_pd((__m256d)x, (__m256d)y);
#else
  const v_i64 greater = x > y;
  return (v_f64)(((v_i64)x & greater) | ((v_i64)y & ~greater));
#endif
}
/* sums of all lanes, by halves, as log2(lanes) shuffles: an array of lanes would go through memory */
#if VBYTES == 64
INLINE float sum_f32(v_f32 x) {
  x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return x[0] + x[1];
}
INLINE double sum_f64(v_f64 x) {
  x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
  x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
  return x[0] + x[1];
}
#elif VBYTES == 32
INLINE float sum_f32(v_f32 x) {
  x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
  x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
  return x[0] + x[1];
}
INLINE double sum_f64(v_f64 x) {
  x += __builtin_shufflevector(x, x, 2, 3, 0, 1);
  return x[0] + x[1];
}
#else
INLINE float sum_f32(v_f32 x) {
  x += __builtin_shufflevector(x, x, 2, 3, 0, 1);
  return x[0] + x[1];
}
INLINE double sum_f64(v_f64 x) { return x[0] + x[1]; }
#endif
/* exp of x <= 88.7 within 2 ulp, 0 below -87; NaN stays.  The polynomial is haian_expf's (simd.h) with one scaling:
 * a probability below 2^-125 counts for nothing. */
INLINE v_f32 exp_f32(v_f32 x) {
  const v_i32 below = x < -87.0f;
  const v_f32 y = max_f32((v_f32){0} - 87.0f, x);
  const v_f32 t = y * 0x1.715476p+0f + (0x1.8p23f + 127.0f), n = t - (0x1.8p23f + 127.0f); /* low bits of t: n + 127 */
  const v_f32 r = (y - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f;
  v_f32 p = r * 0x1.6ac686p-10f + 0x1.123ddep-7f;
  p = p * r + 0x1.555858p-5f;
  p = p * r + 0x1.55548cp-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * (r * r) + r + 1.0f;
  return (v_f32)((v_i32)(p * (v_f32)((v_i32)t << 23)) & ~below);
}

#endif
