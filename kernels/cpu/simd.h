/* Elementary functions that compilers vectorise: branch-free C, one scalar function each, used inside plain loops.
 * For: every host kernel.  Not for: intrinsics, loops, dtypes other than float and double.
 * float: within 3 ulp everywhere (tests/test_pointwise.py measures it), with gradual underflow and the C99 / aten
 * values at +-0, infinities and NaN.  double: within 3 ulp; erf, sin, cos and pow are libm's, one element at a time.
 * Polynomials are ours: Remez exchange at 60 digits (mpmath), coefficients then rounded to the type. */
#ifndef HAIAN_SIMD_H
#define HAIAN_SIMD_H
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define HAIAN_INLINE static inline __attribute__((always_inline, unused))
#else
#define HAIAN_INLINE static inline
#endif

HAIAN_INLINE uint32_t haian_bits32(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
HAIAN_INLINE float haian_float(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
HAIAN_INLINE uint64_t haian_bits64(double x) {
  uint64_t u;
  memcpy(&u, &x, 8);
  return u;
}
HAIAN_INLINE double haian_double(uint64_t u) {
  double x;
  memcpy(&x, &u, 8);
  return x;
}

/* c ? a : b on the bits: gcc turns chains of ?: with constants into jumps, which do not vectorise */
HAIAN_INLINE float haian_pickf(bool c, float a, float b) {
  uint32_t mask = 0 - (uint32_t)c;
  return haian_float((haian_bits32(a) & mask) | (haian_bits32(b) & ~mask));
}
HAIAN_INLINE double haian_pick(bool c, double a, double b) {
  uint64_t mask = 0 - (uint64_t)c;
  return haian_double((haian_bits64(a) & mask) | (haian_bits64(b) & ~mask));
}

/* NaN wins, as in NumPy and aten (C's fmaxf drops it). */
HAIAN_INLINE float haian_maxf(float a, float b) { return haian_pickf((a > b) | (a != a), a, b); }
HAIAN_INLINE float haian_minf(float a, float b) { return haian_pickf((a < b) | (a != a), a, b); }
HAIAN_INLINE double haian_max(double a, double b) { return haian_pick((a > b) | (a != a), a, b); }
HAIAN_INLINE double haian_min(double a, double b) { return haian_pick((a < b) | (a != a), a, b); }
HAIAN_INLINE float haian_absf(float x) { return haian_float(haian_bits32(x) & 0x7fffffffu); }
HAIAN_INLINE double haian_abs(double x) { return haian_double(haian_bits64(x) & 0x7fffffffffffffffu); }
HAIAN_INLINE float haian_copysignf(float x, float s) {
  return haian_float((haian_bits32(x) & 0x7fffffffu) | (haian_bits32(s) & 0x80000000u));
}
HAIAN_INLINE double haian_copysign(double x, double s) {
  return haian_double((haian_bits64(x) & 0x7fffffffffffffffu) | (haian_bits64(s) & 0x8000000000000000u));
}
HAIAN_INLINE float haian_sqrtf(float x) { return sqrtf(x); } /* one instruction under -fno-math-errno */
HAIAN_INLINE double haian_sqrt(double x) { return sqrt(x); }
HAIAN_INLINE float haian_rsqrtf(float x) { return 1.0f / sqrtf(x); }
HAIAN_INLINE double haian_rsqrt(double x) { return 1.0 / sqrt(x); }

/* ---- float ----------------------------------------------------------------------------------------------------- */
#define HAIAN_ROUNDERF 0x1.8p23f  /* x + this - this rounds |x| < 2^22 to an integer, left in the low bits of the sum */
#define HAIAN_LN2_HIF 0x1.62ep-1f /* 12 bits: its product with |n| < 2^12 is exact */
#define HAIAN_LN2_LOF 0x1.0bfbe8p-15f

/* exp(x) = 2^n exp(r), |r| <= ln2 / 2; polynomial error 2^-28.  n goes straight into the exponent bits; below -86 with 64
 * to spare, so that one multiplication rounds a subnormal result once. */
HAIAN_INLINE float haian_expf(float x) {
  x = x < -104.0f ? -104.0f : x; /* exp(-104) rounds to 0; NaN passes */
  float t = x * 0x1.715476p+0f + HAIAN_ROUNDERF, n = t - HAIAN_ROUNDERF;
  float r = (x - n * HAIAN_LN2_HIF) - n * HAIAN_LN2_LOF;
  float p = 0x1.6ac686p-10f;
  p = p * r + 0x1.123ddep-7f;
  p = p * r + 0x1.555858p-5f;
  p = p * r + 0x1.55548cp-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * (r * r) + r;
  bool low = x < -86.0f;
  uint32_t power = (haian_bits32(t) + (low ? 64u : 0u)) << 23; /* the rounder's own bits leave at the top */
  float y = haian_float(haian_bits32(p + 1.0f) + power) * (low ? 0x1p-64f : 1.0f);
  return x <= 0x1.62e42ep+6f ? y : x + INFINITY; /* the last x whose exp is finite, 88.72283; NaN stays NaN */
}

/* exp(x) - 1 for x in [-88, 88], exact to 2 ulp at both ends; polynomial error 2^-31 */
HAIAN_INLINE float haian_expm1_coref(float x) {
  float t = x * 0x1.715476p+0f + HAIAN_ROUNDERF, n = t - HAIAN_ROUNDERF;
  float r = (x - n * HAIAN_LN2_HIF) - n * HAIAN_LN2_LOF;
  float p = 0x1.9c6056p-13f;
  p = p * r + 0x1.6d4c58p-10f;
  p = p * r + 0x1.1113acp-7f;
  p = p * r + 0x1.5554eap-5f;
  p = p * r + 0x1.555554p-3f;
  p = p * r + 0.5f;
  p = p * (r * r) + r; /* exp(r) - 1 */
  float s = haian_float(((haian_bits32(t) - haian_bits32(HAIAN_ROUNDERF)) + 127u) << 23);
  return p * s + (s - 1.0f);
}

/* log(x) = e ln2 + log(1 + f), 1 + f in [sqrt(1/2), sqrt(2)); polynomial error 2^-28 */
HAIAN_INLINE float haian_logf(float x) {
  bool tiny = x < 0x1p-126f;
  uint32_t u = haian_bits32(tiny ? x * 0x1p23f : x) - 0x3f3504f3u; /* bits of sqrt(1/2) */
  float e = (float)((int32_t)u >> 23) - (tiny ? 23.0f : 0.0f);
  float f = haian_float((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f, f2 = f * f;
  float p = 0x1.1457a0p-4f;
  p = p * f - 0x1.de3c18p-4f;
  p = p * f + 0x1.e6f070p-4f;
  p = p * f - 0x1.fc2208p-4f;
  p = p * f + 0x1.233768p-3f;
  p = p * f - 0x1.555c4ep-3f;
  p = p * f + 0x1.99a4b6p-3f;
  p = p * f - 0x1.000006p-2f;
  p = p * f + 0x1.555548p-2f;
  p = p * f * f2 + (e * HAIAN_LN2_LOF - 0.5f * f2);
  float y = (p + f) + e * HAIAN_LN2_HIF;
  y = x < INFINITY ? y : x; /* inf and NaN */
  y = x == 0.0f ? -INFINITY : y;
  return x < 0.0f ? NAN : y;
}

/* tanh|x| = m / (m + 2), m = exp(2|x|) - 1; from |x| = 9.1 on the quotient rounds to 1 */
HAIAN_INLINE float haian_tanhf(float x) {
  float a = haian_absf(x);
  a = a > 10.0f ? 10.0f : a;
  float m = haian_expm1_coref(a + a);
  return haian_copysignf(m / (m + 2.0f), x);
}

/* 1 / (1 + exp(-x)); written with exp(-|x|) so that the far negative side underflows gradually */
HAIAN_INLINE float haian_sigmoidf(float x) {
  float e = haian_expf(-haian_absf(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* erf|x| = 1 - exp(-q), q = -log(erfc|x|) = |x| P(|x|): one polynomial (2^-27 relative to erf) for all x, because the
 * difference is exp(-q) - 1 taken accurately; 20 % more work than exp.  erf rounds to 1 from 3.92 on. */
HAIAN_INLINE float haian_erff(float x) {
  float a = haian_absf(x);
  a = a > 4.0f ? 4.0f : a;
  float p = -0x1.3695a2p-17f;
  p = p * a + 0x1.ed6b54p-14f;
  p = p * a - 0x1.4bc986p-11f;
  p = p * a + 0x1.b4fffap-10f;
  p = p * a - 0x1.505d48p-13f;
  p = p * a - 0x1.39cdc8p-6f;
  p = p * a + 0x1.a4fa5ep-4f;
  p = p * a + 0x1.45f2fap-1f;
  p = p * a + 0x1.06eba8p-3f; /* 2 / sqrt(pi) - 1 */
  return haian_copysignf(haian_expm1_coref(-(p * a + a)), x);
}

/* sin and cos reduce by pi / 2 in double: right to 2 ulp for |x| <= HAIAN_TRIG_MAX, NaN for infinities.  Beyond it the
 * caller uses libm (pointwise.c looks at each tile first); a call in here would end vectorisation. */
#define HAIAN_TRIG_MAX 1.0e6f
HAIAN_INLINE float haian_sincosf(float x, uint64_t quarter) {
  double t = (double)x * 0x1.45f306dc9c883p-1 + 0x1.8p52, n = t - 0x1.8p52;
  double r = ((double)x - n * 0x1.921fb544p+0) - n * 0x1.0b4611a626331p-34, s = r * r;
  uint64_t q = haian_bits64(t) + quarter;
  double sine = 0x1.6ccf5dfbcd597p-19; /* error 2^-37 */
  sine = sine * s - 0x1.a00f745f0ec5fp-13;
  sine = sine * s + 0x1.1111085d055e5p-7;
  sine = sine * s - 0x1.5555554c5f779p-3;
  sine = (sine * s + 1.0) * r;           /* in this order -0 stays -0 */
  double cosine = 0x1.9912fef3baa42p-16; /* error 2^-33 */
  cosine = cosine * s - 0x1.6c07e1fe33cacp-10;
  cosine = cosine * s + 0x1.55553c5191771p-5;
  cosine = cosine * s - 0x1.ffffffcb14598p-2;
  cosine = cosine * s + 1.0;
  uint64_t odd = 0 - (q & 1), sign = (q & 2) << 62;
  return (float)haian_double(((haian_bits64(cosine) & odd) | (haian_bits64(sine) & ~odd)) ^ sign);
}
HAIAN_INLINE float haian_sinf(float x) { return haian_sincosf(x, 0); }
HAIAN_INLINE float haian_cosf(float x) { return haian_sincosf(x, 1); }

/* x^y = 2^(y log2|x|) in double (2^-45 in the logarithm, 2^-37 in the power), rounded to float once; then C99's cases */
HAIAN_INLINE float haian_powf(float x, float y) {
  float size = haian_absf(x);
  double a = size;
  uint64_t u = haian_bits64(a) - 0x3fe6a09e667f3bcdu; /* bits of sqrt(1/2); floats are normal doubles */
  double e = haian_double(((u + 0x3ff0000000000000u) >> 52) | 0x4330000000000000u) - (0x1p52 + 1023.0);
  double f = haian_double((u & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu);
  double s = (f - 1.0) / (f + 1.0), z = s * s;
  double l = 0x1.21b076757fa15p-2;
  l = l * z + 0x1.47955dda4ee6fp-2;
  l = l * z + 0x1.a61a2e9d57330p-2;
  l = l * z + 0x1.2776c29372229p-1;
  l = l * z + 0x1.ec709dc53c3eap-1;
  l = l * z + 0x1.71547652b8251p+1;
  l = l * s + e;
  l = haian_pick(a == 0.0, -INFINITY, l);
  l = haian_pick(a < INFINITY, l, a);
  double w = (double)haian_pickf(size == 1.0f, 0.0f, y) * haian_pick(a == 1.0, 0.0, l); /* 1^inf is 1 */
  w = haian_pick(w > 200.0, 200.0, w);
  w = haian_pick(w < -200.0, -200.0, w);
  double t = w + 0x1.8p52, r = w - (t - 0x1.8p52);
  double p = 0x1.61af9d501892fp-20;
  p = p * r + 0x1.00daeac794bc6p-16;
  p = p * r + 0x1.430acd110fd83p-13;
  p = p * r + 0x1.5d874813fa562p-10;
  p = p * r + 0x1.3b2ab5c4bf403p-7;
  p = p * r + 0x1.c6b08dd48b27cp-5;
  p = p * r + 0x1.ebfbdff93210cp-3;
  p = p * r + 0x1.62e42fef860a2p-1;
  p = p * r + 1.0;
  float v = (float)(p * haian_double((haian_bits64(t) - haian_bits64(0x1.8p52) + 1023u) << 52));
  float m = haian_absf(y), k = haian_pickf(m < 0x1p24f, m, 0.0f); /* from 2^24 on a float is an even integer */
  int32_t i = (int32_t)k;
  bool whole = (float)i == k;
  uint32_t odd = ((uint32_t)i & (uint32_t)whole) << 31;
  v = haian_float(haian_bits32(v) | (haian_bits32(x) & odd));
  v = haian_pickf((x < 0.0f) & !whole & (size < INFINITY), NAN, v);
  v = haian_pickf((x != x) | (y != y), x + y, v);
  return haian_pickf((x == 1.0f) | (y == 0.0f), 1.0f, v);
}

/* ---- double ---------------------------------------------------------------------------------------------------- */
#define HAIAN_ROUNDER 0x1.8p52
#define HAIAN_LN2_HI 0x1.62e42fee00000p-1 /* 33 bits */
#define HAIAN_LN2_LO 0x1.a39ef35793c76p-33

HAIAN_INLINE double haian_exp(double x) {
  x = x > 710.0 ? 710.0 : x;
  x = x < -746.0 ? -746.0 : x;
  double t = x * 0x1.71547652b82fep+0 + HAIAN_ROUNDER, n = t - HAIAN_ROUNDER;
  double r = (x - n * HAIAN_LN2_HI) - n * HAIAN_LN2_LO;
  double p = 0x1.1e3d4b83a5a1bp-29; /* error 2^-60 */
  p = p * r + 0x1.af6be71c3f187p-26;
  p = p * r + 0x1.27e5b430e4e87p-22;
  p = p * r + 0x1.71ddf0214766fp-19;
  p = p * r + 0x1.a01a01369a86ap-16;
  p = p * r + 0x1.a01a01b37e03ep-13;
  p = p * r + 0x1.6c16c16c30464p-10;
  p = p * r + 0x1.111111110ec5ep-7;
  p = p * r + 0x1.5555555555503p-5;
  p = p * r + 0x1.555555555555bp-3;
  p = p * r + 0.5;
  p = p * (r * r) + r;
  uint64_t k = haian_bits64(t) - haian_bits64(HAIAN_ROUNDER), half = ((k + 4096) >> 1) - 2048; /* arithmetic k >> 1 */
  return (p + 1.0) * haian_double((half + 1023) << 52) * haian_double((k - half + 1023) << 52);
}

/* exp(x) - 1 for x in [-700, 700] */
HAIAN_INLINE double haian_expm1_core(double x) {
  double t = x * 0x1.71547652b82fep+0 + HAIAN_ROUNDER, n = t - HAIAN_ROUNDER;
  double r = (x - n * HAIAN_LN2_HI) - n * HAIAN_LN2_LO;
  double p = 0x1.612818ed5a3afp-33; /* error 2^-59 */
  p = p * r + 0x1.1f8ab4d18dd22p-29;
  p = p * r + 0x1.ae6499638825ep-26;
  p = p * r + 0x1.27e4cc7cb383cp-22;
  p = p * r + 0x1.71de3a3d701d8p-19;
  p = p * r + 0x1.a01a01ad8e3e8p-16;
  p = p * r + 0x1.a01a01a020950p-13;
  p = p * r + 0x1.6c16c16c14e3bp-10;
  p = p * r + 0x1.1111111111105p-7;
  p = p * r + 0x1.5555555555559p-5;
  p = p * r + 0x1.5555555555555p-3;
  p = p * r + 0.5;
  p = p * (r * r) + r;
  double s = haian_double((haian_bits64(t) - haian_bits64(HAIAN_ROUNDER) + 1023) << 52);
  return p * s + (s - 1.0);
}

/* log(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2)), s = f / (2 + f): the classic reduction of fdlibm's e_log, own R (2^-58) */
HAIAN_INLINE double haian_log(double x) {
  bool tiny = x < 0x1p-1022;
  uint64_t u = haian_bits64(tiny ? x * 0x1p54 : x) - 0x3fe6a09e667f3bcdu;
  double e =
      haian_double(((u + 0x3ff0000000000000u) >> 52) | 0x4330000000000000u) - (0x1p52 + 1023.0) - (tiny ? 54.0 : 0.0);
  double f = haian_double((u & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu) - 1.0;
  double s = f / (f + 2.0), z = s * s, h = 0.5 * f * f;
  double p = 0x1.2f0589bef3be6p-3;
  p = p * z + 0x1.39a1b71acff41p-3;
  p = p * z + 0x1.74663f0a75155p-3;
  p = p * z + 0x1.c71c5208bfbb0p-3;
  p = p * z + 0x1.24924941f1dd1p-2;
  p = p * z + 0x1.999999997fdabp-2;
  p = p * z + 0x1.5555555555592p-1;
  double y = e * HAIAN_LN2_HI - ((h - (s * (h + p * z) + e * HAIAN_LN2_LO)) - f);
  y = x < INFINITY ? y : x;
  y = x == 0.0 ? -INFINITY : y;
  return x < 0.0 ? NAN : y;
}

HAIAN_INLINE double haian_tanh(double x) {
  double a = haian_abs(x);
  a = a > 20.0 ? 20.0 : a; /* from 19.06 on the quotient rounds to 1 */
  double m = haian_expm1_core(a + a);
  return haian_copysign(m / (m + 2.0), x);
}
HAIAN_INLINE double haian_sigmoid(double x) {
  double e = haian_exp(-haian_abs(x));
  return (x < 0.0 ? e : 1.0) / (1.0 + e);
}
HAIAN_INLINE double haian_erf(double x) { return erf(x); }
HAIAN_INLINE double haian_sin(double x) { return sin(x); }
HAIAN_INLINE double haian_cos(double x) { return cos(x); }
HAIAN_INLINE double haian_pow(double x, double y) { return pow(x, y); }

#endif
