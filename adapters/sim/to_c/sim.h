/* Runtime of kernels that adapters/sim/compile turned into C: memory with bounds, rounding, the loops NumPy lends.
 *
 * Every function gives the bits of its namesake in numeric.py, vector.py and memory.py. It is put in front of each kernel's
 * text, so it stays small; what a kernel does not use is dropped by the compiler. Not here: anything of one kernel. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
#error "float arithmetic with excess precision would round differently"
#endif

#define COLD static __attribute__((noinline, unused))
#define INLINE static inline __attribute__((unused))
#define EACH(i, n) for (int64_t i = 0; i < (int64_t)(n); ++i)

/* ---- what a launch brings ---------------------------------------------------------------------------------------------- */
typedef void (*sim_ufunc)(char **args, const intptr_t *dims, const intptr_t *steps,
                          void *data); /* PyUFuncGenericFunction */

enum { SIM_OK, SIM_OUTSIDE, SIM_MISALIGNED, SIM_ASSERT, SIM_MEMORY };

typedef struct {
  int64_t blocks;          /* live allocations, sorted by address */
  const int64_t *starts;   /* (blocks,) first device address */
  const int64_t *ends;     /* (blocks,) one past the last */
  const int64_t *deltas;   /* (blocks,) host address minus device address */
  const int32_t *grid;     /* (3,) */
  const double *erf;       /* (7, 1537) Taylor coefficients, numeric._erf_table */
  const sim_ufunc *ufuncs; /* NumPy's inner loops, in the order of numpy_loops.LOOPS */
  void *const *ufunc_data;
  int64_t site, size, address, bad, lanes; /* of the first illegal access */
} sim_env;

typedef union {
  int64_t i;
  double d;
} sim_arg;

/* ---- bits --------------------------------------------------------------------------------------------------------------- */
INLINE uint32_t f32_bits(float x) {
  uint32_t y;
  memcpy(&y, &x, 4);
  return y;
}
INLINE float bits_f32(uint32_t x) {
  float y;
  memcpy(&y, &x, 4);
  return y;
}
INLINE uint64_t f64_bits(double x) {
  uint64_t y;
  memcpy(&y, &x, 8);
  return y;
}
INLINE double bits_f64(uint64_t x) {
  double y;
  memcpy(&y, &x, 8);
  return y;
}

/* ---- narrow floats: bits to float32 and back, to nearest even ------------------------------------------------------------- */
INLINE float bf16_f32(uint16_t x) { return bits_f32((uint32_t)x << 16); }
INLINE uint16_t f32_bf16(float x) {
  uint32_t b = f32_bits(x);
  uint32_t r = (b + 0x7FFFu + (b >> 16 & 1)) >> 16;
  return x != x ? (uint16_t)(b >> 16 | 0x40) : (uint16_t)r;
}

INLINE float f16_f32(uint16_t x) {
  uint32_t sign = (uint32_t)(x & 0x8000) << 16, rest = (uint32_t)(x & 0x7FFF) << 13;
  float normal = bits_f32(rest + 0x38000000u), wide = bits_f32(rest | 0x7F800000u);
  float small = bits_f32(rest + 0x38800000u) - 6.103515625e-05f; /* 2^-14: subnormals, exact */
  float y = rest >= 0x0F800000u ? wide : rest < 0x00800000u ? small : normal;
  return bits_f32(f32_bits(y) | sign);
}
INLINE uint16_t f32_f16(float x) {
  uint32_t b = f32_bits(x), sign = b >> 16 & 0x8000, a = b & 0x7FFFFFFFu;
  uint32_t normal = (a + 0xC8000FFFu + (a >> 13 & 1)) >> 13;
  uint32_t small = f32_bits(bits_f32(a) + 0.5f) - 0x3F000000u; /* the addition rounds at 2^-24 */
  uint32_t y = a > 0x7F800000u ? 0x7E00 : a >= 0x477FF000u ? 0x7C00 : a < 0x38800000u ? small : normal;
  return (uint16_t)(y | sign);
}

INLINE float f8E5M2_f32(uint8_t x) { return f16_f32((uint16_t)(x << 8)); }
INLINE float f8E4M3FN_f32(uint8_t x) {
  uint32_t sign = (uint32_t)(x & 0x80) << 24, rest = (uint32_t)(x & 0x7F) << 20;
  float normal = bits_f32(rest + 0x3C000000u);
  float small = bits_f32(rest + 0x3C800000u) - 0.015625f; /* 2^-6 */
  float y = rest == 0x07F00000u ? bits_f32(0x7FC00000u) : rest < 0x00800000u ? small : normal;
  return bits_f32(f32_bits(y) | sign);
}
INLINE uint8_t f32_f8E5M2(float x) {
  uint32_t b = f32_bits(x), sign = b >> 24 & 0x80, a = b & 0x7FFFFFFFu;
  uint32_t normal = (a + 0xC80FFFFFu + (a >> 21 & 1)) >> 21;
  uint32_t small = f32_bits(bits_f32(a) + 128.0f) - 0x43000000u; /* rounds at 2^-16 */
  uint32_t y = a > 0x7F800000u ? 0x7E : a >= 0x47700000u ? 0x7C : a < 0x38800000u ? small : normal;
  return (uint8_t)(y | sign);
}
INLINE uint8_t f32_f8E4M3FN(float x) {
  uint32_t b = f32_bits(x), sign = b >> 24 & 0x80, a = b & 0x7FFFFFFFu;
  uint32_t normal = (a + 0xC407FFFFu + (a >> 20 & 1)) >> 20;
  uint32_t small = f32_bits(bits_f32(a) + 16384.0f) - 0x46800000u;        /* rounds at 2^-9 */
  uint32_t y = a > 0x43E80000u ? 0x7F : a < 0x3C800000u ? small : normal; /* above 464: NaN */
  return (uint8_t)(y | sign);
}

/* float64 to float32 rounded to odd: a second rounding to 22 bits or fewer is then exact. */
INLINE float f64_odd(double x) {
  float y = (float)x;
  double back = (double)y, size = x < 0 ? -x : x, got = back < 0 ? -back : back;
  uint32_t b = f32_bits(y);
  int fix = back != x && !(b & 1) && size <= 1.7976931348623157e308;
  return fix ? bits_f32(got > size ? b - 1 : b + 1) : y;
}
INLINE double add_odd(double a, double b) {
  double s = a + b, t = s - a, error = (a - (s - t)) + (b - t);
  uint64_t bits = f64_bits(s);
  int fix = error != 0 && !(bits & 1) && fabs(s) <= 1.7976931348623157e308;
  return fix ? bits_f64((error > 0) == (s > 0) ? bits + 1 : bits - 1) : s;
}
INLINE uint16_t f64_f16(double x) { return f32_f16(f64_odd(x)); }
INLINE uint16_t f64_bf16(double x) { return f32_bf16(f64_odd(x)); }
INLINE uint8_t f64_f8E5M2(double x) { return f32_f8E5M2(f64_odd(x)); }
INLINE uint8_t f64_f8E4M3FN(double x) { return f32_f8E4M3FN(f64_odd(x)); }

/* ---- integers and floats ---------------------------------------------------------------------------------------------------- */
INLINE double i64_odd(int64_t x) { /* 53 significant bits and a sticky one */
  int64_t low = x & 0x7FF;
  if (x < (1LL << 53) && x > -(1LL << 53)) return (double)x;
  return (double)((x ^ low) | (int64_t)(low != 0) << 11);
}
INLINE double u64_odd(uint64_t x) {
  uint64_t low = x & 0x7FF;
  if (x < (1ULL << 53)) return (double)x;
  return (double)((x ^ low) | (uint64_t)(low != 0) << 11);
}
/* Toward zero, saturating, NaN to 0. */
INLINE int32_t f64_s32(double x) {
  return x >= 2147483648.0 ? INT32_MAX : x <= -2147483649.0 ? INT32_MIN : x == x ? (int32_t)x : 0;
}
INLINE uint32_t f64_u32(double x) { return x >= 4294967296.0 ? UINT32_MAX : x > -1.0 ? (uint32_t)(int64_t)x : 0; }
INLINE int64_t f64_s64(double x) {
  return x >= 9223372036854775808.0 ? INT64_MAX : x < -9223372036854775808.0 ? INT64_MIN : x == x ? (int64_t)x : 0;
}
INLINE uint64_t f64_u64(double x) { return x >= 18446744073709551616.0 ? UINT64_MAX : x > -1.0 ? (uint64_t)x : 0; }

/* Division by zero gives 0; the least integer by -1 wraps. */
#define SIM_INT(N)                                                                                               \
  INLINE int##N##_t div_i##N(int##N##_t a, int##N##_t b) {                                                       \
    return b == 0 ? 0 : b == -1 ? (int##N##_t)(0 - (uint##N##_t)a) : (int##N##_t)(a / b);                        \
  }                                                                                                              \
  INLINE int##N##_t rem_i##N(int##N##_t a, int##N##_t b) { return b == 0 || b == -1 ? 0 : (int##N##_t)(a % b); } \
  INLINE int##N##_t divu_i##N(int##N##_t a, int##N##_t b) {                                                      \
    return b == 0 ? 0 : (int##N##_t)((uint##N##_t)a / (uint##N##_t)b);                                           \
  }                                                                                                              \
  INLINE int##N##_t remu_i##N(int##N##_t a, int##N##_t b) {                                                      \
    return b == 0 ? 0 : (int##N##_t)((uint##N##_t)a % (uint##N##_t)b);                                           \
  }                                                                                                              \
  INLINE int##N##_t floordiv_i##N(int##N##_t a, int##N##_t b) {                                                  \
    int##N##_t q = div_i##N(a, b);                                                                               \
    return b != 0 && (a < 0) != (b < 0) && rem_i##N(a, b) != 0 ? (int##N##_t)(q - 1) : q;                        \
  }                                                                                                              \
  INLINE int##N##_t ceildiv_i##N(int##N##_t a, int##N##_t b) {                                                   \
    return (int##N##_t)(0 - (uint##N##_t)floordiv_i##N((int##N##_t)(0 - (uint##N##_t)a), b));                    \
  }                                                                                                              \
  INLINE int##N##_t shl_i##N(int##N##_t a, int##N##_t b) {                                                       \
    return (uint##N##_t)b < N ? (int##N##_t)((uint##N##_t)a << b) : 0;                                           \
  }                                                                                                              \
  INLINE int##N##_t shr_i##N(int##N##_t a, int##N##_t b) {                                                       \
    return (int##N##_t)(a >> ((uint##N##_t)b < N ? b : N - 1));                                                  \
  }                                                                                                              \
  INLINE int##N##_t shru_i##N(int##N##_t a, int##N##_t b) {                                                      \
    return (uint##N##_t)b < N ? (int##N##_t)((uint##N##_t)a >> b) : 0;                                           \
  }
SIM_INT(8)
SIM_INT(16)
SIM_INT(32)
SIM_INT(64)

/* maximum and minimum pass NaN on; max_num and min_num prefer the number. +0 is above -0 in all four. */
#define SIM_EXTREME(T, F, B, toT)                                                    \
  INLINE T max_##F(T a, T b) {                                                       \
    T y = a == b ? toT(B(a) & B(b)) : a > b ? a : b;                                 \
    return a != a ? a : b != b ? b : y;                                              \
  }                                                                                  \
  INLINE T min_##F(T a, T b) {                                                       \
    T y = a == b ? toT(B(a) | B(b)) : a < b ? a : b;                                 \
    return a != a ? a : b != b ? b : y;                                              \
  }                                                                                  \
  INLINE T max_num_##F(T a, T b) { return a != a ? b : b != b ? a : max_##F(a, b); } \
  INLINE T min_num_##F(T a, T b) { return a != a ? b : b != b ? a : min_##F(a, b); }
SIM_EXTREME(float, f32, f32_bits, bits_f32)
SIM_EXTREME(double, f64, f64_bits, bits_f64)

INLINE double fma_wide(double a, double b, double c) {
  return add_odd(a * b, c);
} /* of factors with 24 bits: exact to odd */
INLINE double fma_f64(double a, double b, double c) { /* Boldo and Melquiond 2008, as numeric.fma has it */
  double high = a * b, plain = high + c;
  double ah = 134217729.0 * a - (134217729.0 * a - a), bh = 134217729.0 * b - (134217729.0 * b - b);
  double al = a - ah, bl = b - bh, low = ((ah * bh - high) + ah * bl + al * bh) + al * bl;
  double th = c + low, t = th - c, tl = (c - (th - t)) + (low - t);
  double vh = high + th, v = vh - high, vl = (high - (vh - v)) + (th - v);
  double exact = vh + add_odd(tl, vl);
  return isfinite(exact) && isfinite(plain) ? exact : plain;
}

INLINE double sim_erf(const double *table, double x) {
  double size = fabs(x), step, y;
  int64_t near;
  size = size != size ? size : size > 6.0 ? 6.0 : size;
  near = size != size ? 0 : (int64_t)rint(size * 256.0);
  step = size - (double)near / 256.0;
  y = table[6 * 1537 + near];
  for (int n = 5; n >= 0; --n) y = y * step + table[n * 1537 + near];
  return copysign(y, x);
}

INLINE float tf32(float x) {
  float y = bits_f32((f32_bits(x) + 0x1000u) & 0xFFFFE000u);
  return x - x == 0 ? y : x;
}

/* ---- NumPy's own loops: the very function the NumPy executor calls, so that its last bit is the same --------------------------- */
INLINE double call1(const sim_env *E, int k, double x) {
  double y;
  char *args[2] = {(char *)&x, (char *)&y};
  intptr_t n = 1, steps[2] = {8, 8};
  E->ufuncs[k](args, &n, steps, E->ufunc_data[k]);
  return y;
}
INLINE double call2(const sim_env *E, int k, double a, double b) {
  double y;
  char *args[3] = {(char *)&a, (char *)&b, (char *)&y};
  intptr_t n = 1, steps[3] = {8, 8, 8};
  E->ufuncs[k](args, &n, steps, E->ufunc_data[k]);
  return y;
}
/* y may be x.  b of one element has step 0. */
COLD void map1(const sim_env *E, int k, const double *x, double *y, int64_t n) {
  char *args[2] = {(char *)x, (char *)y};
  intptr_t count = n, steps[2] = {8, 8};
  E->ufuncs[k](args, &count, steps, E->ufunc_data[k]);
}
COLD void map2(const sim_env *E, int k, const double *a, int sa, const double *b, int sb, double *y, int64_t n) {
  char *args[3] = {(char *)a, (char *)b, (char *)y};
  intptr_t count = n, steps[3] = {8 * sa, 8 * sb, 8};
  E->ufuncs[k](args, &count, steps, E->ufunc_data[k]);
}
/* y (b, m, n) = left (b, m, d) @ right (b, d, n); item: bytes of an element. */
COLD void matmul(const sim_env *E, int k, int item, const void *left, const void *right, void *y, int64_t b, int64_t m,
                 int64_t d, int64_t n) {
  char *args[3] = {(char *)left, (char *)right, (char *)y};
  intptr_t dims[4] = {b, m, d, n};
  intptr_t steps[9] = {m * d * item, d * n * item, m * n * item, d * item, item, n * item, item, n * item, item};
  E->ufuncs[k](args, dims, steps, E->ufunc_data[k]);
}

/* ---- memory -------------------------------------------------------------------------------------------------------------------- */
/* Index of the block that holds [low, high), or -1. */
INLINE int64_t sim_block(const sim_env *E, int64_t low, int64_t high) {
  int64_t a = 0, b = E->blocks;
  while (a < b) {
    int64_t mid = (a + b) / 2;
    if (E->starts[mid] <= low) a = mid + 1;
    else b = mid;
  }
  return a > 0 && low <= E->ends[a - 1] - (high - low) ? a - 1 : -1;
}
COLD int sim_fault(sim_env *E, int kind, int64_t site, int64_t size, const int64_t *p, const uint8_t *m, int ms,
                   int64_t n) {
  E->site = site, E->size = size, E->bad = 0, E->lanes = 0, E->address = 0;
  EACH(i, n) {
    if (m && !m[i * ms]) continue;
    ++E->lanes;
    if (kind == SIM_MISALIGNED ? (p[i] & (size - 1)) == 0 : sim_block(E, p[i], p[i] + size) >= 0) continue;
    if (!E->bad++) E->address = p[i];
  }
  return kind;
}
/* Finds the one block that holds all lanes (*delta, and 1 in *one), or sees that each lane lies in some block (0 in *one). */
COLD int sim_check(sim_env *E, int64_t site, int64_t size, const int64_t *p, const uint8_t *m, int ms, int64_t n,
                   int64_t *delta, int *one) {
  int64_t low = INT64_MAX, high = INT64_MIN, all = 0, k;
  *delta = 0, *one = 1;
  if (!m) {
    EACH(i, n) {
      low = p[i] < low ? p[i] : low;
      high = p[i] > high ? p[i] : high;
      all |= p[i];
    }
  } else {
    EACH(i, n) {
      int64_t on = -(int64_t)(m[i * ms] != 0), at = p[i];
      int64_t least = (at & on) | (INT64_MAX & ~on), most = (at & on) | (INT64_MIN & ~on);
      low = least < low ? least : low;
      high = most > high ? most : high;
      all |= at & on;
    }
  }
  if (low > high) return SIM_OK;
  if (all & (size - 1)) return sim_fault(E, SIM_MISALIGNED, site, size, p, m, ms, n);
  k = high - low >= 0 ? sim_block(E, low, high + size) : -1;
  if (k >= 0) {
    *delta = E->deltas[k];
    return SIM_OK;
  }
  *one = 0;
  EACH(i, n)
  if ((!m || m[i * ms]) && sim_block(E, p[i], p[i] + size) < 0)
    return sim_fault(E, SIM_OUTSIDE, site, size, p, m, ms, n);
  return SIM_OK;
}
INLINE char *sim_host(const sim_env *E, int64_t p, int64_t size) {
  int64_t k = sim_block(E, p, p + size);
  return k < 0 ? 0 : (char *)(intptr_t)(p + E->deltas[k]); /* never null after sim_check */
}

/* Masked-off lanes read o, or all bits set. m, o: null, or one element with step 0. */
#define SIM_MEMORY_OF(N)                                                                                              \
  COLD int load_##N(sim_env *E, int64_t site, const int64_t *p, const uint8_t *m, int ms, const void *other, int os,  \
                    void *result, int64_t n) {                                                                        \
    uint##N##_t *out = result;                                                                                        \
    static const uint##N##_t ones = (uint##N##_t) - 1;                                                                \
    const uint##N##_t *o = other ? other : &ones;                                                                     \
    int64_t delta;                                                                                                    \
    int one, status = sim_check(E, site, N / 8, p, m, ms, n, &delta, &one);                                           \
    if (status) {                                                                                                     \
      E->lanes = n; /* of a load all lanes count */                                                                   \
      return status;                                                                                                  \
    }                                                                                                                 \
    if (!one) {                                                                                                       \
      EACH(i, n) {                                                                                                    \
        if (!m || m[i * ms]) memcpy(&out[i], sim_host(E, p[i], N / 8), N / 8);                                        \
        else out[i] = o[i * os];                                                                                      \
      }                                                                                                               \
    } else if (!m) {                                                                                                  \
      EACH(i, n) out[i] = *(const uint##N##_t *)(intptr_t)(p[i] + delta);                                             \
    } else {                                                                                                          \
      EACH(i, n) out[i] = m[i * ms] ? *(const uint##N##_t *)(intptr_t)(p[i] + delta) : o[i * os];                     \
    }                                                                                                                 \
    return SIM_OK;                                                                                                    \
  }                                                                                                                   \
  COLD int store_##N(sim_env *E, int64_t site, const int64_t *p, const uint8_t *m, int ms, const void *value, int vs, \
                     int64_t n) {                                                                                     \
    const uint##N##_t *v = value;                                                                                     \
    int64_t delta;                                                                                                    \
    int one, status = sim_check(E, site, N / 8, p, m, ms, n, &delta, &one);                                           \
    if (status) return status;                                                                                        \
    if (!one) {                                                                                                       \
      EACH(i, n) if (!m || m[i * ms]) memcpy(sim_host(E, p[i], N / 8), &v[i * vs], N / 8);                            \
    } else if (!m) {                                                                                                  \
      EACH(i, n) * (uint##N##_t *)(intptr_t)(p[i] + delta) = v[i * vs];                                               \
    } else {                                                                                                          \
      EACH(i, n) if (m[i * ms]) * (uint##N##_t *)(intptr_t)(p[i] + delta) = v[i * vs];                                \
    }                                                                                                                 \
    return SIM_OK;                                                                                                    \
  }
SIM_MEMORY_OF(8)
SIM_MEMORY_OF(16)
SIM_MEMORY_OF(32)
SIM_MEMORY_OF(64)

COLD int sim_assert(sim_env *E, int64_t site, const uint8_t *c, int64_t n) {
  E->site = site, E->bad = 0, E->lanes = n;
  EACH(i, n) E->bad += !c[i];
  return E->bad ? SIM_ASSERT : SIM_OK;
}
