/* Conversions between 16-bit floats and float32 over contiguous runs: exact one way, nearest-even the other, NaN stays
 * NaN.  Not here: the cast operator, which takes any dtypes and strides (pointwise). */
#include "kernel.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

void HAIAN_SYM(f16_to_f32)(const uint16_t *x, float *y, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) _mm512_storeu_ps(y + i, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(x + i))));
#endif
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(x + i))));
#endif
  for (; i < n; i++) y[i] = haian_f16_load(x[i]);
}

void HAIAN_SYM(f32_to_f16)(const float *x, uint16_t *y, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256((void *)(y + i),
                        _mm512_cvtps_ph(_mm512_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((void *)(y + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  for (; i < n; i++) y[i] = haian_f16_store(x[i]);
}

void HAIAN_SYM(bf16_to_f32)(const uint16_t *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = haian_bf16_load(x[i]);
}

void HAIAN_SYM(f32_to_bf16)(const float *x, uint16_t *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = haian_bf16_store(x[i]);
}
