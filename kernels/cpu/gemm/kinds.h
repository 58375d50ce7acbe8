/* The kinds of matrix product: micro kernels and packers for every dtype, as a table.  Included by gemm.c alone.
 * Not here: blocking, threads. */
/* ---- runs of contiguous values to float -------------------------------------------------------------------------- */
INLINE void run_f16(float *dst, const uint16_t *src, int64_t n) {
  int64_t i = 0;
  for (; i + LANES32 <= n; i += LANES32) *(v_f32 *)(dst + i) = load_f16(src + i);
  for (; i < n; i++) dst[i] = haian_f16_load(src[i]);
}
INLINE void run_bf16(float *dst, const uint16_t *src, int64_t n) {
  int64_t i = 0;
  for (; i + LANES32 <= n; i += LANES32) *(v_f32 *)(dst + i) = load_bf16(src + i);
  for (; i < n; i++) dst[i] = haian_bf16_load(src[i]);
}
#define WIDEN_RUN(dst, src, n) \
  for (int64_t run_i = 0; run_i < (n); run_i++) (dst)[run_i] = (src)[run_i]

/* ---- kinds: tile shapes leave room for the operands beside the accumulators -------------------------------------- */
#if defined(__AVX512F__)
#define ROWS 14     /* 28 accumulators of 32 registers, 2 for B, 1 for A */
#define ROWS_INT 12 /* an integer product needs a register of its own */
#elif defined(__AVX__)
#define ROWS 6 /* 12 of 16 */
#define ROWS_INT 4
#elif defined(__x86_64__)
#define ROWS 4 /* 8 of 16; without FMA every product needs a register of its own */
#define ROWS_INT 4
#else
#define ROWS 8 /* 16 of 32 (NEON, RVV, LSX) */
#define ROWS_INT 8
#endif

#define M_(n) f32_##n
#define M_GROUP float
#define M_ACC float
#define M_GV v_f32
#define M_AV v_f32
#define M_MR ROWS
#define M_DIRECT
#include "micro.h"

#define M_(n) f64_##n
#define M_GROUP double
#define M_ACC double
#define M_GV v_f64
#define M_AV v_f64
#define M_MR ROWS
#include "micro.h"

#define M_(n) u32_##n
#define M_GROUP uint32_t
#define M_ACC uint32_t
#define M_GV v_u32
#define M_AV v_u32
#define M_MR ROWS_INT
#include "micro.h"

#define M_(n) u64_##n
#define M_GROUP uint64_t
#define M_ACC uint64_t
#define M_GV v_u64
#define M_AV v_u64
#define M_MR ROWS_INT
#include "micro.h"

#define P_(n) f32_##n
#define P_SRC float
#define P_GROUP float
#include "pack.h"

#define P_(n) f32_f16_##n
#define P_SRC uint16_t
#define P_GROUP float
#define P_ONE(p, s) haian_f16_load((p)[0])
#define P_RUN run_f16
#define P_RAW 0
#include "pack.h"

#define P_(n) f32_bf16_##n
#define P_SRC uint16_t
#define P_GROUP float
#define P_ONE(p, s) haian_bf16_load((p)[0])
#define P_RUN run_bf16
#define P_RAW 0
#include "pack.h"

#define P_(n) f64_##n
#define P_SRC double
#define P_GROUP double
#include "pack.h"

#define P_(n) u64_##n
#define P_SRC uint64_t
#define P_GROUP uint64_t
#define P_MR ROWS_INT
#include "pack.h"

#define P_(n) u32_##n
#define P_SRC uint32_t
#define P_GROUP uint32_t
#define P_MR ROWS_INT
#include "pack.h"

#define P_(n) u32_u8_##n
#define P_SRC uint8_t
#define P_GROUP uint32_t
#define P_MR ROWS_INT
#define P_ONE(p, s) ((uint32_t)(p)[0])
#define P_RUN WIDEN_RUN
#define P_RAW 0
#include "pack.h"

#define P_(n) u32_i8_##n
#define P_SRC int8_t
#define P_GROUP uint32_t
#define P_MR ROWS_INT
#define P_ONE(p, s) ((uint32_t)(p)[0])
#define P_RUN WIDEN_RUN
#define P_RAW 0
#include "pack.h"

#if !defined(__AVX512VNNI__)
#define P_(n) u32_i16_##n
#define P_SRC int16_t
#define P_GROUP uint32_t
#define P_MR ROWS_INT
#define P_ONE(p, s) ((uint32_t)(p)[0])
#define P_RUN WIDEN_RUN
#define P_RAW 0
#include "pack.h"
#endif

#if defined(__AVX512VNNI__)
/* i16 pairs: vpdpwssd multiplies signed pairs and adds modulo 2^32, all that a result modulo 2^16 needs */
#define M_(n) i16_##n
#define M_GROUP uint32_t
#define M_ACC uint32_t
#define M_GV v_u32
#define M_AV v_u32
#define M_MR ROWS
#define M_MADD(acc, x, y) ((v_u32)_mm512_dpwssd_epi32((__m512i)(acc), (__m512i)(x), (__m512i)(y)))
#include "micro.h"

#define P_(n) i16_##n
#define P_SRC uint16_t
#define P_GROUP uint32_t
#define P_KG 2
#define P_ONE(p, s) ((uint32_t)(p)[0] | (uint32_t)(p)[s] << 16)
#include "pack.h"

/* bytes: vpdpbusd multiplies unsigned by signed; modulo 2^8 the signs of a and b do not matter, and for exact int32
 * sums of u8 times i8 they are right; other signs take the u32 kind */
#define M_(n) i8_##n
#define M_GROUP uint32_t
#define M_ACC uint32_t
#define M_GV v_u32
#define M_AV v_u32
#define M_MR ROWS
#define M_MADD(acc, x, y) ((v_u32)_mm512_dpbusd_epi32((__m512i)(acc), (__m512i)(x), (__m512i)(y)))
#include "micro.h"

#define P_(n) i8_##n
#define P_SRC uint8_t
#define P_GROUP uint32_t
#define P_KG 4
#define P_ONE(p, s) \
  ((uint32_t)(p)[0] | (uint32_t)(p)[s] << 8 | (uint32_t)(p)[2 * (s)] << 16 | (uint32_t)(p)[3 * (s)] << 24)
#include "pack.h"
#endif

#if defined(__AVX512BF16__)
#define M_(n) bf16_##n
#define M_GROUP uint32_t
#define M_ACC float
#define M_GV v_u32
#define M_AV v_f32
#define M_MR ROWS
#define M_MADD(acc, x, y) ((v_f32)_mm512_dpbf16_ps((__m512)(acc), (__m512bh)(x), (__m512bh)(y)))
#include "micro.h"

#define P_(n) bf16_##n
#define P_SRC uint16_t
#define P_GROUP uint32_t
#define P_KG 2
#define P_ONE(p, s) ((uint32_t)(p)[0] | (uint32_t)(p)[s] << 16)
#include "pack.h"
#endif

/* ---- products with a few rows, by source dtype ----------------------------------------------------------------- */
#define S_(n) f32_##n
#define S_SRC float
#define S_ACC float
#define S_V v_f32
#define S_SUM sum_f32
#define S_LOAD(p) (*(const v_f32 *)(p))
#define S_ONE(x) (x)
#include "skinny.h"

#define S_(n) bf16_##n
#define S_SRC uint16_t
#define S_ACC float
#define S_V v_f32
#define S_SUM sum_f32
#define S_LOAD load_bf16
#define S_ONE haian_bf16_load
#include "skinny.h"

#define S_(n) f16_##n
#define S_SRC uint16_t
#define S_ACC float
#define S_V v_f32
#define S_SUM sum_f32
#define S_LOAD load_f16
#define S_ONE haian_f16_load
#include "skinny.h"

#define S_(n) f64_##n
#define S_SRC double
#define S_ACC double
#define S_V v_f64
#define S_SUM sum_f64
#define S_LOAD(p) (*(const v_f64 *)(p))
#define S_ONE(x) (x)
#include "skinny.h"

#define KIND(name, mr, lanes, kg, group, acc, micro, pack) \
  static const haian_kind kind_##name = {mr, 2 * (lanes), kg, group, acc, micro##_micro, pack##_pack_a, pack##_pack_b};
KIND(f32, ROWS, LANES32, 1, 4, 4, f32, f32)
KIND(f32_f16, ROWS, LANES32, 1, 4, 4, f32, f32_f16)
KIND(f32_bf16, ROWS, LANES32, 1, 4, 4, f32, f32_bf16)
KIND(f64, ROWS, LANES64, 1, 8, 8, f64, f64)
KIND(u32, ROWS_INT, LANES32, 1, 4, 4, u32, u32)
KIND(u64, ROWS_INT, LANES64, 1, 8, 8, u64, u64)
KIND(u32_u8, ROWS_INT, LANES32, 1, 4, 4, u32, u32_u8)
KIND(u32_i8, ROWS_INT, LANES32, 1, 4, 4, u32, u32_i8)
#if defined(__AVX512VNNI__)
KIND(i16, ROWS, LANES32, 2, 4, 4, i16, i16)
KIND(i8, ROWS, LANES32, 4, 4, 4, i8, i8)
#else
KIND(i16, ROWS_INT, LANES32, 1, 4, 4, u32, u32_i16)
#endif
#if defined(__AVX512BF16__)
KIND(bf16, ROWS, LANES32, 2, 4, 4, bf16, bf16)

/* dpbf16 pays where it runs at the rate of FMA: Zen 4 reaches 235 GFLOP/s with it and 117 without.  Sapphire Rapids
 * reaches 88 with it and 183 with f32 FMA, so there bf16 is widened while it is packed, which also keeps subnormals. */
static bool dpbf16_pays(void) {
#if defined(HAIAN_FORCE_DPBF16)
  return HAIAN_FORCE_DPBF16;
#else
  return __builtin_cpu_is("amd") != 0;
#endif
}
#endif
