/* cast: tiles of one source dtype each, the target in attribute 0.  Included by pointwise.c only.
 * A run goes through L1 in a wide type that holds the source exactly (float, double, int64, uint64) and is narrowed from
 * there once.  float -> integer truncates; NaN and values outside int32 (int64 for 64-bit targets and uint32) become
 * that range's least value, then wrap to the target: what C does on x86-64, here on every processor. */
#ifndef HAIAN_CAST_H
#define HAIAN_CAST_H
#include "float8.h"

#define CAST_TILE 512
#define HAIAN_CAST_DTYPES (HAIAN_ANY | HAIAN_BIT(HAIAN_F8E4M3) | HAIAN_BIT(HAIAN_F8E5M2))

/* double -> float rounded to odd: a later rounding to 11 bits or fewer is then the only one (Boldo & Melquiond 2008) */
HAIAN_INLINE float haian_odd(double d) {
  float f = (float)d;
  double back = f;
  uint32_t u =
      haian_bits32(f) - (haian_abs(back) > haian_abs(d) ? 1u : 0u); /* toward zero; infinity becomes the largest */
  return haian_float(d == back || d != d ? haian_bits32(f) : u | 1u);
}
/* integers past 2^53 keep a sticky bit so that double holds what matters to a 16-bit float */
HAIAN_INLINE double haian_sticky(uint64_t magnitude) {
  uint64_t cut = magnitude >> 16 << 16 | (magnitude & 0xffffu ? 0x8000u : 0u);
  return (double)(int64_t)((magnitude >> 40 ? cut : magnitude) >> 1) * 2.0 +
         (magnitude >> 40 ? 0.0 : (double)(int64_t)(magnitude & 1));
}
HAIAN_INLINE float haian_odd_i64(int64_t i) {
  double d = haian_sticky(i < 0 ? 0 - (uint64_t)i : (uint64_t)i);
  return haian_odd(i < 0 ? -d : d);
}
HAIAN_INLINE float haian_odd_u64(uint64_t i) { return haian_odd(haian_sticky(i)); }

HAIAN_INLINE int32_t haian_whole32f(float x) { return x >= -0x1p31f && x < 0x1p31f ? (int32_t)x : INT32_MIN; }
HAIAN_INLINE int32_t haian_whole32(double x) { return x > -0x1p31 - 1.0 && x < 0x1p31 ? (int32_t)x : INT32_MIN; }
HAIAN_INLINE int64_t haian_whole64(double x) { return x >= -0x1p63 && x < 0x1p63 ? (int64_t)x : INT64_MIN; }
HAIAN_INLINE uint64_t haian_whole64u(double x) {
  return x >= 0x1p63 ? (x < 0x1p64 ? (uint64_t)(int64_t)(x - 0x1p63) + 0x8000000000000000u : 0x8000000000000000u)
                     : (uint64_t)haian_whole64(x);
}

/* wide[i] = from[i] and to[i] = wide[i] */
#define LOOP(to, expression) \
  do { HAIAN_INDEPENDENT for (int64_t i = 0; i < n; i++)(to)[i] = (expression); } while (0)
#define CASE_LOAD(code, T, expression) \
  case code: {                         \
    const T *x = from;                 \
    LOOP(wide, expression);            \
    return;                            \
  }
#define CASE_STORE(code, T, expression) \
  case code: {                          \
    T *y = to;                          \
    LOOP(y, expression);                \
    return;                             \
  }

static void widen_f32(int32_t dtype, const void *from, float *wide, int64_t n) {
  switch (dtype) {
    case HAIAN_F16:
      HAIAN_SYM(f16_to_f32)(from, wide, n);
      return;
    case HAIAN_BF16:
      HAIAN_SYM(bf16_to_f32)(from, wide, n);
      return;
      CASE_LOAD(HAIAN_F8E4M3, uint8_t, haian_load_f8e4m3(x[i]))
      CASE_LOAD(HAIAN_F8E5M2, uint8_t, haian_load_f8e5m2(x[i]))
    default:
      memcpy(wide, from, (size_t)n * 4);
      return;
  }
}
static void widen_i64(int32_t dtype, const void *from, int64_t *wide, int64_t n) {
  switch (dtype) {
    CASE_LOAD(HAIAN_BOOL, uint8_t, x[i] != 0)
    CASE_LOAD(HAIAN_U8, uint8_t, x[i])
    CASE_LOAD(HAIAN_U16, uint16_t, x[i])
    CASE_LOAD(HAIAN_U32, uint32_t, x[i])
    CASE_LOAD(HAIAN_I8, int8_t, x[i])
    CASE_LOAD(HAIAN_I16, int16_t, x[i])
    CASE_LOAD(HAIAN_I32, int32_t, x[i])
    default:
      memcpy(wide, from, (size_t)n * 8);
      return; /* int64, and uint64's bits */
  }
}

static void narrow_f32(int32_t dtype, const float *x, void *to, int64_t n) {
  switch (dtype) {
    case HAIAN_F16:
      HAIAN_SYM(f32_to_f16)(x, to, n);
      return;
    case HAIAN_BF16:
      HAIAN_SYM(f32_to_bf16)(x, to, n);
      return;
      CASE_STORE(HAIAN_F8E4M3, uint8_t, haian_store_f8e4m3(x[i]))
      CASE_STORE(HAIAN_F8E5M2, uint8_t, haian_store_f8e5m2(x[i]))
      CASE_STORE(HAIAN_F64, double, (double)x[i])
      CASE_STORE(HAIAN_BOOL, uint8_t, x[i] != 0)
      CASE_STORE(HAIAN_U8, uint8_t, (uint8_t)haian_whole32f(x[i]))
      CASE_STORE(HAIAN_I8, int8_t, (int8_t)haian_whole32f(x[i]))
      CASE_STORE(HAIAN_U16, uint16_t, (uint16_t)haian_whole32f(x[i]))
      CASE_STORE(HAIAN_I16, int16_t, (int16_t)haian_whole32f(x[i]))
      CASE_STORE(HAIAN_I32, int32_t, haian_whole32f(x[i]))
      CASE_STORE(HAIAN_U32, uint32_t, (uint32_t)haian_whole64((double)x[i]))
      CASE_STORE(HAIAN_I64, int64_t, haian_whole64((double)x[i]))
      CASE_STORE(HAIAN_U64, uint64_t, haian_whole64u((double)x[i]))
    default:
      memcpy(to, x, (size_t)n * 4);
      return;
  }
}

static void narrow_f64(int32_t dtype, const double *x, void *to, int64_t n) {
  float odd[CAST_TILE];
  switch (dtype) {
    CASE_STORE(HAIAN_F32, float, (float)x[i])
    CASE_STORE(HAIAN_BOOL, uint8_t, x[i] != 0)
    CASE_STORE(HAIAN_U8, uint8_t, (uint8_t)haian_whole32(x[i]))
    CASE_STORE(HAIAN_I8, int8_t, (int8_t)haian_whole32(x[i]))
    CASE_STORE(HAIAN_U16, uint16_t, (uint16_t)haian_whole32(x[i]))
    CASE_STORE(HAIAN_I16, int16_t, (int16_t)haian_whole32(x[i]))
    CASE_STORE(HAIAN_I32, int32_t, haian_whole32(x[i]))
    CASE_STORE(HAIAN_U32, uint32_t, (uint32_t)haian_whole64(x[i]))
    CASE_STORE(HAIAN_I64, int64_t, haian_whole64(x[i]))
    CASE_STORE(HAIAN_U64, uint64_t, haian_whole64u(x[i]))
    case HAIAN_F64:
      memcpy(to, x, (size_t)n * 8);
      return;
    default:
      LOOP(odd, haian_odd(x[i]));
      narrow_f32(dtype, odd, to, n);
      return;
  }
}
/* bytes: of the source's type; up to 2 it is exact in float, up to 4 in double */
static void narrow_i64(int32_t dtype, int64_t bytes, const int64_t *x, void *to, int64_t n) {
  float odd[CAST_TILE];
  switch (dtype) {
    CASE_STORE(HAIAN_BOOL, uint8_t, x[i] != 0)
    CASE_STORE(HAIAN_U8, uint8_t, (uint8_t)x[i])
    CASE_STORE(HAIAN_I8, uint8_t, (uint8_t)x[i])
    CASE_STORE(HAIAN_U16, uint16_t, (uint16_t)x[i])
    CASE_STORE(HAIAN_I16, uint16_t, (uint16_t)x[i])
    CASE_STORE(HAIAN_U32, uint32_t, (uint32_t)x[i])
    CASE_STORE(HAIAN_I32, uint32_t, (uint32_t)x[i])
    CASE_STORE(HAIAN_F32, float, (float)x[i])
    CASE_STORE(HAIAN_F64, double, (double)x[i])
    case HAIAN_I64:
    case HAIAN_U64:
      memcpy(to, x, (size_t)n * 8);
      return;
    default:
      if (bytes <= 2) LOOP(odd, (float)x[i]);
      else if (bytes <= 4) LOOP(odd, haian_odd((double)x[i]));
      else LOOP(odd, haian_odd_i64(x[i]));
      narrow_f32(dtype, odd, to, n);
      return;
  }
}
static void narrow_u64(int32_t dtype, const int64_t *bits, void *to, int64_t n) {
  float odd[CAST_TILE];
  const uint64_t *x = (const uint64_t *)bits;
  switch (dtype) {
    CASE_STORE(HAIAN_F32, float, (float)x[i])
    CASE_STORE(HAIAN_F64, double, (double)x[i])
    case HAIAN_F16:
    case HAIAN_BF16:
    case HAIAN_F8E4M3:
    case HAIAN_F8E5M2:
      LOOP(odd, haian_odd_u64(x[i]));
      narrow_f32(dtype, odd, to, n);
      return;
    default:
      narrow_i64(dtype, 8, bits, to, n);
      return;
  }
}

/* Pairs that models use all the time, in one step. */
#define DIRECT(name, S, T, expression)                               \
  static void direct_##name(const void *from, void *to, int64_t n) { \
    const S *x = from;                                               \
    T *y = to;                                                       \
    LOOP(y, expression);                                             \
  }
DIRECT(f32_f64, float, double, (double)x[i])
DIRECT(f64_f32, double, float, (float)x[i])
DIRECT(i32_f32, int32_t, float, (float)x[i])
DIRECT(i64_f32, int64_t, float, (float)x[i])
DIRECT(u8_f32, uint8_t, float, (float)x[i])
DIRECT(b8_f32, uint8_t, float, x[i] ? 1.0f : 0.0f)
DIRECT(f32_i32, float, int32_t, haian_whole32f(x[i]))
DIRECT(i32_i64, int32_t, int64_t, x[i])
DIRECT(i64_i32, int64_t, uint32_t, (uint32_t)x[i])

static bool direct(int32_t from, int32_t to, const void *x, void *y, int64_t n) {
  static void (*const table[HAIAN_DTYPE_END][HAIAN_DTYPE_END])(const void *, void *, int64_t) = {
      [HAIAN_F32][HAIAN_F64] = direct_f32_f64, [HAIAN_F64][HAIAN_F32] = direct_f64_f32,
      [HAIAN_I32][HAIAN_F32] = direct_i32_f32, [HAIAN_I64][HAIAN_F32] = direct_i64_f32,
      [HAIAN_U8][HAIAN_F32] = direct_u8_f32,   [HAIAN_BOOL][HAIAN_F32] = direct_b8_f32,
      [HAIAN_F32][HAIAN_I32] = direct_f32_i32, [HAIAN_I32][HAIAN_I64] = direct_i32_i64,
      [HAIAN_I64][HAIAN_I32] = direct_i64_i32};
  if (from == to) {
    if (x != y) memcpy(y, x, (size_t)(n * haian_itemsize(from)));
  } else if (to == HAIAN_F32 && (from == HAIAN_F16 || from == HAIAN_BF16)) {
    (from == HAIAN_F16 ? HAIAN_SYM(f16_to_f32) : HAIAN_SYM(bf16_to_f32))(x, y, n);
  } else if (from == HAIAN_F32 && (to == HAIAN_F16 || to == HAIAN_BF16)) {
    (to == HAIAN_F16 ? HAIAN_SYM(f32_to_f16) : HAIAN_SYM(f32_to_bf16))(x, y, n);
  } else if (table[from][to]) {
    table[from][to](x, y, n);
  } else {
    return false;
  }
  return true;
}

static void cast_run(int32_t from, int32_t to, const char *x, char *y, int64_t n) {
  if (direct(from, to, x, y, n)) return;
  int64_t read = haian_itemsize(from), write = haian_itemsize(to);
  union {
    float f[CAST_TILE];
    double d[CAST_TILE];
    int64_t i[CAST_TILE];
  } wide;
  for (int64_t lo = 0; lo < n; lo += CAST_TILE, x += CAST_TILE * read, y += CAST_TILE * write) {
    int64_t count = n - lo < CAST_TILE ? n - lo : CAST_TILE;
    if (from == HAIAN_F64) {
      memcpy(wide.d, x, (size_t)count * 8);
      narrow_f64(to, wide.d, y, count);
    } else if (from >= HAIAN_F16) {
      widen_f32(from, x, wide.f, count);
      narrow_f32(to, wide.f, y, count);
    } else {
      widen_i64(from, x, wide.i, count);
      if (from == HAIAN_U64) narrow_u64(to, wide.i, y, count);
      else narrow_i64(to, read, wide.i, y, count);
    }
  }
}

#define CAST_TILE_OF(code)                                                                       \
  static void cast_##code(const void *const *in, void *out, int64_t n, const haian_attr *attr) { \
    cast_run(code, (int32_t)attr[0].i, in[0], out, n);                                           \
  }
CAST_TILE_OF(HAIAN_BOOL)
CAST_TILE_OF(HAIAN_U8)
CAST_TILE_OF(HAIAN_U16)
CAST_TILE_OF(HAIAN_U32)
CAST_TILE_OF(HAIAN_U64)
CAST_TILE_OF(HAIAN_I8)
CAST_TILE_OF(HAIAN_I16)
CAST_TILE_OF(HAIAN_I32)
CAST_TILE_OF(HAIAN_I64)
CAST_TILE_OF(HAIAN_F16)
CAST_TILE_OF(HAIAN_BF16)
CAST_TILE_OF(HAIAN_F32)
CAST_TILE_OF(HAIAN_F64)
CAST_TILE_OF(HAIAN_F8E4M3)
CAST_TILE_OF(HAIAN_F8E5M2)
#define ROW(code) [code] = cast_##code
static const haian_pointwise pointwise_cast = {
    "cast",
    1,
    0,
    HAIAN_RESULT_ATTR,
    1,
    0,
    {"x"},
    {"dtype"},
    {ROW(HAIAN_BOOL), ROW(HAIAN_U8), ROW(HAIAN_U16), ROW(HAIAN_U32), ROW(HAIAN_U64), ROW(HAIAN_I8), ROW(HAIAN_I16),
     ROW(HAIAN_I32), ROW(HAIAN_I64), ROW(HAIAN_F16), ROW(HAIAN_BF16), ROW(HAIAN_F32), ROW(HAIAN_F64), ROW(HAIAN_F8E4M3),
     ROW(HAIAN_F8E5M2)}};

static int32_t run_cast(const haian_args *args) {
  HAIAN_REQUIRE(args->n_attr == 1 && args->attr[0].kind == HAIAN_INT && args->attr[0].i > 0 &&
                    args->attr[0].i < HAIAN_DTYPE_END && pointwise_cast.tile[args->attr[0].i],
                HAIAN_DTYPE, "cast: attribute dtype is not a bool, integer or floating dtype; complex has no kernel");
  return haian_pointwise_run(&pointwise_cast, args);
}
#endif
