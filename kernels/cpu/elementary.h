/* Elementary functions of the pointwise family beyond simd.h's, in the same way: branch-free C that compilers vectorise.
 * float: within 3 ulp everywhere (tests/test_elementary.py measures it), zeros keep their sign, C99's values at infinities
 * and NaN.  double: within 4 ulp; tan and fmod are libm's, one element at a time.  Not here: anything simd.h has. */
#ifndef HAIAN_ELEMENTARY_H
#define HAIAN_ELEMENTARY_H
#include "simd.h"

#define HAIAN_PI 0x1.921fb54442d18p+1
#define HAIAN_PI_2 0x1.921fb54442d18p+0
#define HAIAN_PIf 0x1.921fb6p+1f
#define HAIAN_PI_2f 0x1.921fb6p+0f

/* one instruction each where SSE4.1, NEON or the like is there */
HAIAN_INLINE float haian_floorf(float x) { return floorf(x); }
HAIAN_INLINE double haian_floor(double x) { return floor(x); }
HAIAN_INLINE float haian_ceilf(float x) { return ceilf(x); }
HAIAN_INLINE double haian_ceil(double x) { return ceil(x); }
HAIAN_INLINE float haian_truncf(float x) { return truncf(x); }
HAIAN_INLINE double haian_trunc(double x) { return trunc(x); }
HAIAN_INLINE float haian_roundf(float x) { return rintf(x); }
HAIAN_INLINE double haian_round(double x) { return rint(x); }
HAIAN_INLINE bool haian_signbitf(float x) { return haian_bits32(x) >> 31; }
HAIAN_INLINE bool haian_signbit(double x) { return haian_bits64(x) >> 63; }

/* exp(x) - 1 with 2^(n - 1) instead of 2^n, so that n = 128 needs no case of its own; -1 from -17.4 down */
HAIAN_INLINE float haian_expm1f(float x) {
  float a = x < -25.0f ? -25.0f : x;
  a = a > 89.0f ? 89.0f : a;
  float t = a * 0x1.715476p+0f + HAIAN_ROUNDERF, n = t - HAIAN_ROUNDERF;
  float r = (a - n * HAIAN_LN2_HIF) - n * HAIAN_LN2_LOF;
  float p = 0x1.9c6056p-13f; /* coefficients of haian_expm1_coref */
  p = p * r + 0x1.6d4c58p-10f;
  p = p * r + 0x1.1113acp-7f;
  p = p * r + 0x1.5554eap-5f;
  p = p * r + 0x1.555554p-3f;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  float s = haian_float(((haian_bits32(t) - haian_bits32(HAIAN_ROUNDERF)) + 126u) << 23);
  float y = 2.0f * (p * s + (s - 0.5f));
  return haian_pickf(haian_absf(x) < 0x1p-24f, x, y); /* -0 and subnormals */
}
HAIAN_INLINE double haian_expm1(double x) {
  double a = x < -40.0 ? -40.0 : x;
  double far = haian_exp(a), y = haian_expm1_core(a > 600.0 ? 600.0 : a);
  return haian_pick(haian_abs(x) < 0x1p-53, x, haian_pick(a > 600.0, far, y));
}

/* log(1 + x) = log u + (x - (u - 1)) / u, u = 1 + x rounded: what the rounding lost comes back to first order */
HAIAN_INLINE float haian_log1pf(float x) {
  float u = 1.0f + x, l = haian_logf(u), y = l + (x - (u - 1.0f)) / u;
  y = haian_pickf((u > 0.0f) & (u < INFINITY), y, l);
  return haian_pickf(haian_absf(x) < 0x1p-25f, x, y);
}
HAIAN_INLINE double haian_log1p(double x) {
  double u = 1.0 + x, l = haian_log(u), y = l + (x - (u - 1.0)) / u;
  y = haian_pick((u > 0.0) & (u < INFINITY), y, l);
  return haian_pick(haian_abs(x) < 0x1p-54, x, y);
}

/* 2^n exp(r ln2), r = x - n exact: powers of two come out exact.  Layout of haian_expf and haian_exp. */
HAIAN_INLINE float haian_exp2f(float x) {
  float a = x < -151.0f ? -151.0f : x;
  float t = a + HAIAN_ROUNDERF, n = t - HAIAN_ROUNDERF, r = (a - n) * 0x1.62e43p-1f;
  float p = 0x1.6ac686p-10f;
  p = p * r + 0x1.123ddep-7f;
  p = p * r + 0x1.555858p-5f;
  p = p * r + 0x1.55548cp-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * (r * r) + r;
  bool low = a < -120.0f;
  uint32_t power = (haian_bits32(t) + (low ? 64u : 0u)) << 23;
  float y = haian_float(haian_bits32(p + 1.0f) + power) * (low ? 0x1p-64f : 1.0f);
  return a < 128.0f ? y : a + INFINITY;
}
HAIAN_INLINE double haian_exp2(double x) {
  double a = x > 1025.0 ? 1025.0 : x;
  a = a < -1076.0 ? -1076.0 : a;
  double n = (a + HAIAN_ROUNDER) - HAIAN_ROUNDER, t = a + HAIAN_ROUNDER, r = a - n;
  uint64_t k = haian_bits64(t) - haian_bits64(HAIAN_ROUNDER), half = ((k + 4096) >> 1) - 2048;
  return haian_exp(r * 0x1.62e42fefa39efp-1) * haian_double((half + 1023) << 52) *
         haian_double((k - half + 1023) << 52);
}

/* log x / log b = e log_b 2 + log_b(1 + f): exact at powers of two, and of ten as far as the constant's two halves reach */
HAIAN_INLINE float haian_log_partsf(float x, float *e) {
  bool tiny = x < 0x1p-126f;
  uint32_t u = haian_bits32(tiny ? x * 0x1p23f : x) - 0x3f3504f3u;
  *e = (float)((int32_t)u >> 23) - (tiny ? 23.0f : 0.0f);
  return haian_logf(haian_float((u & 0x007fffffu) + 0x3f3504f3u));
}
HAIAN_INLINE float haian_log_endsf(float x, float y) {
  y = haian_pickf(x < INFINITY, y, x);
  y = haian_pickf(x == 0.0f, -INFINITY, y);
  return haian_pickf(x < 0.0f, NAN, y);
}
HAIAN_INLINE float haian_log2f(float x) {
  float e, l = haian_log_partsf(x, &e);
  return haian_log_endsf(x, e + l * 0x1.715476p+0f);
}
HAIAN_INLINE float haian_log10f(float x) {
  float e, l = haian_log_partsf(x, &e);
  return haian_log_endsf(x, e * 0x1.344p-2f + (e * 0x1.3509f8p-18f + l * 0x1.bcb7b2p-2f));
}
HAIAN_INLINE double haian_log_parts(double x, double *e) {
  bool tiny = x < 0x1p-1022;
  uint64_t u = haian_bits64(tiny ? x * 0x1p54 : x) - 0x3fe6a09e667f3bcdu;
  *e = haian_double(((u + 0x3ff0000000000000u) >> 52) | 0x4330000000000000u) - (0x1p52 + 1023.0) - (tiny ? 54.0 : 0.0);
  return haian_log(haian_double((u & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu));
}
HAIAN_INLINE double haian_log_ends(double x, double y) {
  y = haian_pick(x < INFINITY, y, x);
  y = haian_pick(x == 0.0, -INFINITY, y);
  return haian_pick(x < 0.0, NAN, y);
}
HAIAN_INLINE double haian_log2(double x) {
  double e, l = haian_log_parts(x, &e);
  return haian_log_ends(x, e + l * 0x1.71547652b82fep+0);
}
HAIAN_INLINE double haian_log10(double x) {
  double e, l = haian_log_parts(x, &e);
  return haian_log_ends(x, e * 0x1.34413509f8p-2 - (e * 0x1.80433b83b532ap-44 - l * 0x1.bcb7b1526e50ep-2));
}

/* (1 - x) exact from 0.5 on, so that acos keeps its digits near 1: asin(s) = s + s z P(z), z = s^2 <= 1/4 */
HAIAN_INLINE float haian_asin_coref(float a, bool far) { /* asin(a), or with far asin(sqrt((1 - a) / 2)) */
  float z = haian_pickf(far, (1.0f - a) * 0.5f, a * a), s = haian_pickf(far, sqrtf(z), a);
  float p = 0x1.50d012p-5f;
  p = p * z + 0x1.973b5ep-6f;
  p = p * z + 0x1.733e9ap-5f;
  p = p * z + 0x1.331082p-4f;
  p = p * z + 0x1.55559p-3f;
  return s + s * (z * p);
}
HAIAN_INLINE float haian_asinf(float x) {
  float a = haian_absf(x);
  bool far = a > 0.5f;
  float r = haian_asin_coref(a, far);
  return haian_copysignf(haian_pickf(far, HAIAN_PI_2f - (r + r), r), x);
}
HAIAN_INLINE float haian_acosf(float x) {
  float a = haian_absf(x);
  bool far = a > 0.5f;
  float r = haian_asin_coref(a, far), twice = r + r;
  float outer = haian_pickf(x > 0.0f, twice, HAIAN_PIf - twice);
  return haian_pickf(far, outer, HAIAN_PI_2f - haian_copysignf(r, x));
}
/* atan a = base + atan t, t = a, (a - 1) / (a + 1) or -1 / a, |t| <= tan(pi / 8) */
HAIAN_INLINE float haian_atanf(float x) {
  float a = haian_absf(x);
  bool high = a > 0x1.3504f4p+1f, middle = (a > 0x1.a8279ap-2f) & !high;
  float n = haian_pickf(high, -1.0f, haian_pickf(middle, a - 1.0f, a));
  float t = n / haian_pickf(high, a, haian_pickf(middle, a + 1.0f, 1.0f)), z = t * t;
  float p = -0x1.fdce7ep-5f;
  p = p * z + 0x1.b47e62p-4f;
  p = p * z - 0x1.23e6dp-3f;
  p = p * z + 0x1.999498p-3f;
  p = p * z - 0x1.55555p-2f;
  float base = haian_pickf(high, HAIAN_PI_2f, haian_pickf(middle, 0.5f * HAIAN_PI_2f, 0.0f));
  return haian_copysignf(base + (t + t * (z * p)), x);
}

/* (1 - x) exact from 0.5 on, so that acos keeps its digits near 1: asin(s) = s + s z P(z), z = s^2 <= 1/4 */
HAIAN_INLINE double haian_asin_core(double a, bool far) { /* asin(a), or with far asin(sqrt((1 - a) / 2)) */
  double z = haian_pick(far, (1.0 - a) * 0.5, a * a), s = haian_pick(far, sqrt(z), a);
  double p = 0x1.0092e6ff91f0fp-5;
  p = p * z - 0x1.34a288aebc50dp-6;
  p = p * z + 0x1.49bf552428c38p-6;
  p = p * z + 0x1.1f1b5a9d77aa5p-8;
  p = p * z + 0x1.5b28664b7a816p-7;
  p = p * z + 0x1.76a758b713a2ep-7;
  p = p * z + 0x1.c9fa7481c98fap-7;
  p = p * z + 0x1.1c4b90c4bf9b5p-6;
  p = p * z + 0x1.6e8bc66802ad9p-6;
  p = p * z + 0x1.f1c71b80b4fap-6;
  p = p * z + 0x1.6db6db6f74302p-5;
  p = p * z + 0x1.3333333331d5cp-4;
  p = p * z + 0x1.5555555555559p-3;
  return s + s * (z * p);
}
HAIAN_INLINE double haian_asin(double x) {
  double a = haian_abs(x);
  bool far = a > 0.5;
  double r = haian_asin_core(a, far);
  return haian_copysign(haian_pick(far, HAIAN_PI_2 - (r + r), r), x);
}
HAIAN_INLINE double haian_acos(double x) {
  double a = haian_abs(x);
  bool far = a > 0.5;
  double r = haian_asin_core(a, far), twice = r + r;
  double outer = haian_pick(x > 0.0, twice, HAIAN_PI - twice);
  return haian_pick(far, outer, HAIAN_PI_2 - haian_copysign(r, x));
}
/* atan a = base + atan t, t = a, (a - 1) / (a + 1) or -1 / a, |t| <= tan(pi / 8) */
HAIAN_INLINE double haian_atan(double x) {
  double a = haian_abs(x);
  bool high = a > 0x1.3504f4p+1, middle = (a > 0x1.a8279ap-2) & !high;
  double n = haian_pick(high, -1.0, haian_pick(middle, a - 1.0, a));
  double t = n / haian_pick(high, a, haian_pick(middle, a + 1.0, 1.0)), z = t * t;
  double p = 0x1.00d04d1c19cbp-6;
  p = p * z - 0x1.164c1c17994e2p-5;
  p = p * z + 0x1.72c7e3963313p-5;
  p = p * z - 0x1.abf976b43029bp-5;
  p = p * z + 0x1.e1868a242dc78p-5;
  p = p * z - 0x1.110d928884c3bp-4;
  p = p * z + 0x1.3b13832bea96cp-4;
  p = p * z - 0x1.745d15bb531a6p-4;
  p = p * z + 0x1.c71c71bf14322p-4;
  p = p * z - 0x1.2492492486febp-3;
  p = p * z + 0x1.99999999998c5p-3;
  p = p * z - 0x1.5555555555555p-2;
  double base = haian_pick(high, HAIAN_PI_2, haian_pick(middle, 0.5 * HAIAN_PI_2, 0.0));
  return haian_copysign(base + (t + t * (z * p)), x);
}

/* erfinv(x) = x Q(w), w = -log(1 - x^2): in w below 5, in sqrt(w) beyond (the split of Giles 2011, own coefficients) */
HAIAN_INLINE float haian_erfinvf(float x) {
  float a = haian_absf(x), w = -haian_logf((1.0f - a) * (1.0f + a)), s = sqrtf(w) - 3.0f, v = w - 2.5f;
  float p = 0x1.70e91ap-32f;
  p = p * v - 0x1.2d6e82p-27f;
  p = p * v + 0x1.35e1c2p-26f;
  p = p * v + 0x1.f43f6cp-22f;
  p = p * v - 0x1.ccfc6cp-19f;
  p = p * v - 0x1.4cfcfep-18f;
  p = p * v + 0x1.c9c598p-13f;
  p = p * v - 0x1.486646p-10f;
  p = p * v - 0x1.11c42p-8f;
  p = p * v + 0x1.f91e8cp-3f;
  p = p * v + 0x1.805c5ep+0f;
  float q = -0x1.ea36fep-16f;
  q = q * s + 0x1.50419ap-13f;
  q = q * s - 0x1.2384c6p-12f;
  q = q * s - 0x1.f64d32p-14f;
  q = q * s + 0x1.82c7ep-10f;
  q = q * s - 0x1.d38fc6p-9f;
  q = q * s + 0x1.74be2ap-8f;
  q = q * s - 0x1.f4e008p-8f;
  q = q * s + 0x1.358106p-7f;
  q = q * s + 0x1.006dcap+0f;
  q = q * s + 0x1.6a9efcp+1f;
  float y = haian_pickf(w < 5.0f, p, q) * x;
  return haian_pickf(a == 1.0f, x * INFINITY, y);
}

HAIAN_INLINE double haian_erfinv(double x) {
  double a = haian_abs(x), w = -haian_log((1.0 - a) * (1.0 + a)), r = sqrt(w), s = r - 3.25, u = r - 5.0, v = w - 3.125;
  double p = -0x1.119096ae4b947p-75;
  p = p * v - 0x1.9c70d0fd796e8p-72;
  p = p * v + 0x1.737d89f2a4d67p-68;
  p = p * v + 0x1.6587191bf5892p-66;
  p = p * v - 0x1.d08f30db09033p-62;
  p = p * v + 0x1.76bfc1942efe6p-61;
  p = p * v + 0x1.2b505ca2f73bcp-56;
  p = p * v - 0x1.1a9a7288d0c22p-53;
  p = p * v - 0x1.acc73e0b34c81p-55;
  p = p * v + 0x1.d62ef45ae67bdp-48;
  p = p * v - 0x1.680bc3aa9049p-45;
  p = p * v - 0x1.6ba1d7b36a2e3p-44;
  p = p * v + 0x1.722f2581aba81p-39;
  p = p * v - 0x1.c8a5d2100df58p-37;
  p = p * v - 0x1.dc3dd8dd207b4p-35;
  p = p * v + 0x1.20f5402369f6ep-30;
  p = p * v - 0x1.1a9eb59bf32ffp-28;
  p = p * v - 0x1.f36cee52e276cp-26;
  p = p * v + 0x1.c6b4f8a1bbe41p-22;
  p = p * v - 0x1.6e8a53c9b9c1dp-20;
  p = p * v - 0x1.d1d1f7ca9347bp-17;
  p = p * v + 0x1.879c2a20b0da9p-13;
  p = p * v - 0x1.8457694834e41p-11;
  p = p * v - 0x1.8b6c33114ea67p-8;
  p = p * v + 0x1.ebd80d9b13df9p-3;
  p = p * v + 0x1.a755e7c99ae86p+0;
  double q = 0x1.06b84defb6a3dp-27;
  q = q * s - 0x1.0691caba25129p-26;
  q = q * s - 0x1.65b014873ba45p-26;
  q = q * s + 0x1.1a7481b7a4cedp-23;
  q = q * s - 0x1.07b887236ff7p-22;
  q = q * s - 0x1.d95629dd98ed5p-26;
  q = q * s + 0x1.8dbb93d2a384ap-20;
  q = q * s - 0x1.0b7a9876225b9p-18;
  q = q * s + 0x1.8999a8b73ee45p-19;
  q = q * s + 0x1.a241e7150a40dp-17;
  q = q * s - 0x1.8cf45f91475c6p-15;
  q = q * s + 0x1.1e6abb03fa1d2p-14;
  q = q * s + 0x1.932e8ebb7d7ap-16;
  q = q * s - 0x1.7448bcc19808fp-12;
  q = q * s + 0x1.f3cc545e58745p-11;
  q = q * s - 0x1.ba9240d897536p-10;
  q = q * s + 0x1.468eeca942c99p-9;
  q = q * s - 0x1.ebadabba0239p-9;
  q = q * s + 0x1.5ffcfe5b6cd7ap-8;
  q = q * s + 0x1.0158a6d641d55p+0;
  q = q * s + 0x1.8abcc380d5a48p+1;
  double t = -0x1.d747fcc5512fap-41;
  t = t * u + 0x1.9ce45781b6175p-38;
  t = t * u - 0x1.1d9c5d2e0de8p-36;
  t = t * u + 0x1.041e5ff49145dp-36;
  t = t * u + 0x1.0b3fd7aff5879p-34;
  t = t * u - 0x1.a2c30ba841e6bp-32;
  t = t * u + 0x1.6c97b94f22ba7p-30;
  t = t * u - 0x1.e5b8a10ecc39bp-29;
  t = t * u + 0x1.0c7c56e971cebp-27;
  t = t * u - 0x1.055e71a543929p-26;
  t = t * u + 0x1.f298286b171d5p-26;
  t = t * u - 0x1.22390417acfbep-24;
  t = t * u + 0x1.ebe29b5148f1ep-23;
  t = t * u - 0x1.0a9031375c765p-20;
  t = t * u + 0x1.2fbcfe2d57a6ep-18;
  t = t * u - 0x1.4a3490490c4dap-16;
  t = t * u + 0x1.3ebf4efa3e6c2p-14;
  t = t * u - 0x1.c2f36aa152309p-13;
  t = t * u - 0x1.22ea5df1c8536p-13;
  t = t * u + 0x1.02a30d1fba10bp+0;
  t = t * u + 0x1.3664ddd1ad7fbp+2;
  double y = haian_pick(w < 6.25, p, haian_pick(w < 16.0, q, t)) * x;
  return haian_pick(a == 1.0, x * INFINITY, y);
}

/* tan by the quotient of haian_sincosf's two polynomials, before they are rounded; same range as they */
HAIAN_INLINE float haian_tanf(float x) {
  double t = (double)x * 0x1.45f306dc9c883p-1 + 0x1.8p52, n = t - 0x1.8p52;
  double r = ((double)x - n * 0x1.921fb544p+0) - n * 0x1.0b4611a626331p-34, s = r * r;
  double sine = 0x1.6ccf5dfbcd597p-19;
  sine = sine * s - 0x1.a00f745f0ec5fp-13;
  sine = sine * s + 0x1.1111085d055e5p-7;
  sine = sine * s - 0x1.5555554c5f779p-3;
  sine = (sine * s + 1.0) * r;
  double cosine = 0x1.9912fef3baa42p-16;
  cosine = cosine * s - 0x1.6c07e1fe33cacp-10;
  cosine = cosine * s + 0x1.55553c5191771p-5;
  cosine = cosine * s - 0x1.ffffffcb14598p-2;
  cosine = cosine * s + 1.0;
  bool odd = haian_bits64(t) & 1;
  return (float)(haian_pick(odd, -cosine, sine) / haian_pick(odd, sine, cosine));
}
HAIAN_INLINE double haian_tan(double x) { return tan(x); }

/* ---- remainders ------------------------------------------------------------------------------------------------ */
/* fmod is exact.  float: the quotient and its product with y in double are exact for |x / y| <= HAIAN_FMOD_MAX (28 + 24
 * bits); beyond it the caller uses libm, as for sin.  A quotient that rounds up to an integer leaves r < 0: add y back. */
#define HAIAN_FMOD_MAX 0x1p28f
HAIAN_INLINE float haian_fmodf(float x, float y) {
  double a = haian_absf(x), b = haian_absf(y), q = (double)(int32_t)(a / b), r = a - q * b;
  r += haian_pick(r < 0.0, b, 0.0);
  float f = haian_pickf((b == INFINITY) & (a < INFINITY), haian_absf(x), (float)r);
  f = haian_pickf((b == 0.0) | !(a < INFINITY), NAN, f);
  return haian_copysignf(f, x);
}
HAIAN_INLINE double haian_fmod(double x, double y) { return fmod(x, y); }

/* r = fmod(x, y) moved to y's sign, as Python's % */
HAIAN_INLINE float haian_moved_restf(float r, float y) {
  return haian_pickf((r != 0.0f) & ((r < 0.0f) != (y < 0.0f)), r + y, r);
}
/* floor(x / y) from r = fmod(x, y), as Python's //: the quotient of x - r is an integer up to rounding */
HAIAN_INLINE float haian_floor_quotientf(float r, float x, float y) {
  float d = (x - r) / y;
  d -= haian_pickf((r != 0.0f) & ((r < 0.0f) != (y < 0.0f)), 1.0f, 0.0f);
  float w = floorf(d);
  w += haian_pickf(d - w > 0.5f, 1.0f, 0.0f);
  w = haian_pickf(d == 0.0f, haian_copysignf(0.0f, x / y), w);
  return haian_pickf(y == 0.0f, x / y, w);
}
HAIAN_INLINE float haian_remainderf(float x, float y) { return haian_moved_restf(haian_fmodf(x, y), y); }
HAIAN_INLINE float haian_floor_dividef(float x, float y) { return haian_floor_quotientf(haian_fmodf(x, y), x, y); }

/* r = fmod(x, y) moved to y's sign, as Python's % */
HAIAN_INLINE double haian_moved_rest(double r, double y) {
  return haian_pick((r != 0.0) & ((r < 0.0) != (y < 0.0)), r + y, r);
}
/* floor(x / y) from r = fmod(x, y), as Python's //: the quotient of x - r is an integer up to rounding */
HAIAN_INLINE double haian_floor_quotient(double r, double x, double y) {
  double d = (x - r) / y;
  d -= haian_pick((r != 0.0) & ((r < 0.0) != (y < 0.0)), 1.0, 0.0);
  double w = floor(d);
  w += haian_pick(d - w > 0.5, 1.0, 0.0);
  w = haian_pick(d == 0.0, haian_copysign(0.0, x / y), w);
  return haian_pick(y == 0.0, x / y, w);
}
HAIAN_INLINE double haian_remainder(double x, double y) { return haian_moved_rest(haian_fmod(x, y), y); }
HAIAN_INLINE double haian_floor_divide(double x, double y) { return haian_floor_quotient(haian_fmod(x, y), x, y); }

#endif
