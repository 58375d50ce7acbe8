/* float8_e4m3fn and float8_e5m2 as bytes: to float and back, vectorisable.  For: cast.h and quant.c. */
#ifndef HAIAN_FLOAT8_H
#define HAIAN_FLOAT8_H
#include "simd.h"

/* 8-bit floats by bits: `exponent` and `mantissa` bits, bias 2^(exponent-1) - 1.  e4m3fn has no infinity, its largest
 * value is 448 and all ones is NaN; e5m2 is IEEE. */
HAIAN_INLINE float haian_f8_load(uint8_t h, int mantissa, int bias, bool infinities) {
  uint32_t magnitude = h & 0x7fu, top = 0x7fu >> mantissa; /* the largest exponent field */
  float v = haian_float(magnitude << (23 - mantissa)) * haian_float((uint32_t)(254 - bias) << 23);
  bool special = infinities ? magnitude >> mantissa == top : magnitude == 0x7fu;
  float odd = infinities && (magnitude & ((1u << mantissa) - 1u)) == 0 ? INFINITY : NAN;
  return haian_copysignf(special ? odd : v, haian_float((uint32_t)(h & 0x80u) << 24));
}
HAIAN_INLINE uint8_t haian_f8_store(float f, int mantissa, int bias, bool infinities) {
  uint32_t u = haian_bits32(f), sign = u >> 24 & 0x80u, a = u & 0x7fffffffu, cut = (uint32_t)(23 - mantissa);
  uint32_t normal = (a + ((1u << (cut - 1)) - 1u) + (a >> cut & 1u)) >> cut; /* nearest even on the bits */
  normal -= (uint32_t)(127 - bias) << mantissa;
  /* below the least normal: adding 2^(23 + 1 - bias - mantissa) leaves multiples of the subnormal step in the low bits */
  float shift = haian_float((uint32_t)(127 + 24 - bias - mantissa) << 23);
  uint32_t small = haian_bits32(haian_float(a) + shift) - haian_bits32(shift);
  uint32_t r = a < (uint32_t)(128 - bias) << 23 ? small : normal;
  uint32_t most = infinities ? 0x7cu : 0x7fu; /* infinity, or NaN where there is none */
  r = a >= 0x7f800000u || r > most ? most : r;
  r = a > 0x7f800000u ? 0x7fu : r;
  return (uint8_t)(sign | r);
}
HAIAN_INLINE float haian_load_f8e4m3(uint8_t h) { return haian_f8_load(h, 3, 7, false); }
HAIAN_INLINE float haian_load_f8e5m2(uint8_t h) { return haian_f8_load(h, 2, 15, true); }
HAIAN_INLINE uint8_t haian_store_f8e4m3(float f) { return haian_f8_store(f, 3, 7, false); }
HAIAN_INLINE uint8_t haian_store_f8e5m2(float f) { return haian_f8_store(f, 2, 15, true); }
#endif
