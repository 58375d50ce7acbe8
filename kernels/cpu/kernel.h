/* What every host kernel file includes: the ABI, names per instruction set, conversions, argument checks.
 * Each .c file is compiled once per instruction set with -DHAIAN_ISA=base|avx2|avx512|avx512bf16|...; everything in
 * it is static except its table, so the variants live side by side in one library. */
#ifndef HAIAN_KERNEL_H
#define HAIAN_KERNEL_H
#include "../../hal/native/tensor.h"
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#define HAIAN_PASTE_(a, b, c) a##b##__##c
#define HAIAN_PASTE(a, b, c) HAIAN_PASTE_(a, b, c)
#define HAIAN_TABLE(family) HAIAN_PASTE(haian_table_, family, HAIAN_ISA) /* haian_table_softmax__avx2 */
#define HAIAN_SYM(name) HAIAN_PASTE(haian_, name, HAIAN_ISA)             /* shared by files of one variant */
#define HAIAN_BIT(dtype) (1u << (dtype))
#define HAIAN_FLOATS (HAIAN_BIT(HAIAN_F16) | HAIAN_BIT(HAIAN_BF16) | HAIAN_BIT(HAIAN_F32) | HAIAN_BIT(HAIAN_F64))
#define HAIAN_SIGNED (HAIAN_BIT(HAIAN_I8) | HAIAN_BIT(HAIAN_I16) | HAIAN_BIT(HAIAN_I32) | HAIAN_BIT(HAIAN_I64))
#define HAIAN_UNSIGNED (HAIAN_BIT(HAIAN_U8) | HAIAN_BIT(HAIAN_U16) | HAIAN_BIT(HAIAN_U32) | HAIAN_BIT(HAIAN_U64))
#define HAIAN_INTEGERS (HAIAN_SIGNED | HAIAN_UNSIGNED)
#define HAIAN_NUMBERS (HAIAN_FLOATS | HAIAN_INTEGERS)
#define HAIAN_ANY (HAIAN_NUMBERS | HAIAN_BIT(HAIAN_BOOL))

/* A kernel refuses before it writes:  HAIAN_REQUIRE(x->ndim >= 1, HAIAN_SHAPE, "softmax: x has no axis; ..."); */
#define HAIAN_REQUIRE(condition, code, ...)                                      \
  do {                                                                           \
    if (__builtin_expect(!(condition), 0)) return haian_fail(code, __VA_ARGS__); \
  } while (0)

static inline bool haian_same_shape(const haian_tensor *a, const haian_tensor *b) {
  return a->ndim == b->ndim && memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof a->shape[0]) == 0;
}
static inline bool haian_is_contiguous(const haian_tensor *t) { return (t->tag & HAIAN_TAG_CONTIGUOUS) != 0; }

/* ---- 16-bit floats: storage is uint16_t, arithmetic is float --------------------------------------------------- */
static inline float haian_bf16_load(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
/* Round to nearest even; NaN stays NaN (quiet), written without branches so that loops vectorise. */
static inline uint16_t haian_bf16_store(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  uint32_t nan = (u >> 16) | 0x40u;
  return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}
static inline float haian_f16_load(uint16_t h) {
#if defined(__F16C__) || defined(__ARM_FP16_FORMAT_IEEE)
  _Float16 v;
  memcpy(&v, &h, 2);
  return (float)v;
#else
  /* exponent rebias by multiplication; exact for normals and subnormals, infinities and NaN patched */
  uint32_t m = (uint32_t)(h & 0x7fffu) << 13, s = (uint32_t)(h & 0x8000u) << 16, u;
  float f;
  memcpy(&f, &m, 4);
  f *= 0x1p112f;
  memcpy(&u, &f, 4);
  u = (h & 0x7c00u) == 0x7c00u ? (m | 0x7f800000u) : u;
  u |= s;
  memcpy(&f, &u, 4);
  return f;
#endif
}
static inline uint16_t haian_f16_store(float f) {
#if defined(__F16C__) || defined(__ARM_FP16_FORMAT_IEEE)
  _Float16 v = (_Float16)f;
  uint16_t h;
  memcpy(&h, &v, 2);
  return h;
#else
  uint32_t u, s;
  memcpy(&u, &f, 4);
  s = (u >> 16) & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return (uint16_t)(s | 0x7e00u | ((u >> 13) & 0x3ffu));
  if (u >= 0x477ff000u) return (uint16_t)(s | 0x7c00u); /* 65520 and up round to infinity */
  if (u < 0x38800000u) {                                /* below 2^-14: a float add rounds to the subnormal grid */
    float a;
    memcpy(&a, &u, 4);
    a += 0.5f; /* grid of 0.5f's binade is 2^-24, the subnormal spacing of f16 */
    memcpy(&u, &a, 4);
    return (uint16_t)(s | (u - 0x3f000000u));
  }
  u += 0xc8000fffu + ((u >> 13) & 1u); /* rebias 127 -> 15 and round to nearest even */
  return (uint16_t)(s | (u >> 13));
#endif
}

/* ---- conversions of runs, vectorised; elements contiguous ------------------------------------------------------ */
void HAIAN_SYM(f16_to_f32)(const uint16_t *x, float *y, int64_t n);
void HAIAN_SYM(f32_to_f16)(const float *x, uint16_t *y, int64_t n);
void HAIAN_SYM(bf16_to_f32)(const uint16_t *x, float *y, int64_t n);
void HAIAN_SYM(f32_to_bf16)(const float *x, uint16_t *y, int64_t n);

#endif
