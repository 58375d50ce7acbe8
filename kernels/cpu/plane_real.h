/* Padded copies of planes and rows of taps, for one type.  Included with R_(name), REAL, VEC, INTS defined. */
#define R_LANES ((int64_t)(sizeof(VEC) / sizeof(REAL)))

/* n values at src, `stride` elements apart, of a dtype that computes in REAL */
static void R_(load_row)(REAL *dst, const char *src, int32_t dtype, int64_t stride, int64_t n) {
  const uint16_t *half = (const uint16_t *)(const void *)src;
  const REAL *real = (const REAL *)(const void *)src;
  if (dtype == HAIAN_F16) {
    int64_t i = 0;
    for (; stride == 1 && sizeof(REAL) == 4 && i + LANES32 <= n; i += LANES32)
      *(v_f32 *)(void *)(dst + i) = load_f16(half + i);
    for (; i < n; i++) dst[i] = haian_f16_load(half[i * stride]);
  } else if (dtype == HAIAN_BF16) {
    int64_t i = 0;
    for (; stride == 1 && sizeof(REAL) == 4 && i + LANES32 <= n; i += LANES32)
      *(v_f32 *)(void *)(dst + i) = load_bf16(half + i);
    for (; i < n; i++) dst[i] = haian_bf16_load(half[i * stride]);
  } else if (stride == 1) {
    memcpy(dst, real, (size_t)n * sizeof(REAL));
  } else {
    for (int64_t i = 0; i < n; i++) dst[i] = real[i * stride];
  }
}
static void R_(store_row)(char *dst, const REAL *src, int32_t dtype, int64_t stride, int64_t n) {
  uint16_t *half = (uint16_t *)(void *)dst;
  REAL *real = (REAL *)(void *)dst;
  if (dtype == HAIAN_F16) {
    int64_t i = 0;
    for (; stride == 1 && sizeof(REAL) == 4 && i + LANES32 <= n; i += LANES32)
      store_f16(half + i, *(const v_f32 *)(const void *)(src + i));
    for (; i < n; i++) half[i * stride] = haian_f16_store((float)src[i]);
  } else if (dtype == HAIAN_BF16) {
    int64_t i = 0;
    for (; stride == 1 && sizeof(REAL) == 4 && i + LANES32 <= n; i += LANES32)
      store_bf16(half + i, *(const v_f32 *)(const void *)(src + i));
    for (; i < n; i++) half[i * stride] = haian_bf16_store((float)src[i]);
  } else if (stride == 1) {
    memcpy(real, src, (size_t)n * sizeof(REAL));
  } else {
    for (int64_t i = 0; i < n; i++) real[i * stride] = src[i];
  }
}
INLINE void R_(fill_row)(REAL *dst, REAL value, int64_t n) {
  for (int64_t i = 0; i < n; i++) dst[i] = value;
}

/* the padded copy of the plane at src; `line` holds a row of it */
static void R_(plane_fill)(REAL *dst, const plane *g, const char *src, int32_t dtype, const int64_t *stride, REAL pad,
                           REAL *line) {
  const plane_axis *d = &g->axis[0], *h = &g->axis[1], *w = &g->axis[2];
  const int64_t item = haian_itemsize(dtype), width = g->width;
  const int64_t left = w->pad < w->size ? w->pad : w->size, seen = w->size - left < w->in ? w->size - left : w->in;
  for (int64_t qd = 0; qd < d->size; qd++)
    for (int64_t qh = 0; qh < h->size; qh++, dst += g->row) {
      const int64_t id = qd - d->pad, ih = qh - h->pad;
      if (id < 0 || id >= d->in || ih < 0 || ih >= h->in || seen <= 0) {
        R_(fill_row)(dst, pad, g->row);
        continue;
      }
      REAL *to = g->phases == 1 ? dst : line;
      R_(fill_row)(to, pad, left);
      R_(load_row)(to + left, src + (id * stride[0] + ih * stride[1]) * item, dtype, stride[2], seen);
      R_(fill_row)(to + left + seen, pad, g->row - left - seen);
      if (g->phases == 2) {
        REAL *even = dst, *odd = dst + width;
        for (int64_t i = 0; i < width; i++) {
          even[i] = line[2 * i];
          odd[i] = line[2 * i + 1];
        }
      } else if (g->phases > 1) {
        for (int64_t p = 0; p < g->phases; p++)
          for (int64_t i = 0; i < width; i++) dst[p * width + i] = line[i * g->phases + p];
      }
    }
  memset(dst, 0, PLANE_SLACK * sizeof(REAL));
}

/* acc[nv] vectors of sums over taps of weight times run */
INLINE void R_(tap_block)(const int nv, const REAL *src, const int64_t *offset, const REAL *weight, int64_t taps,
                          REAL start, REAL *dst) {
  VEC acc[4];
#pragma GCC unroll 4
  for (int v = 0; v < nv; v++) acc[v] = SPLAT(VEC, start);
  for (int64_t t = 0; t < taps; t++) {
    const REAL *run = src + offset[t];
    const VEC w = SPLAT(VEC, weight[t]);
#pragma GCC unroll 4
    for (int v = 0; v < nv; v++) acc[v] += w * *(const VEC *)(run + v * R_LANES);
  }
#pragma GCC unroll 4
  for (int v = 0; v < nv; v++) *(VEC *)(dst + v * R_LANES) = acc[v];
}
/* dst[n] = start + sum over taps of weight[t] src[offset[t] + i]; dst has room for a whole last vector */
static __attribute__((unused)) void R_(tap_row)(const REAL *src, const int64_t *offset, const REAL *weight,
                                                int64_t taps, REAL start, REAL *dst, int64_t n) {
  int64_t left = (n + R_LANES - 1) / R_LANES;
  for (; left >= 4; left -= 4, src += 4 * R_LANES, dst += 4 * R_LANES)
    R_(tap_block)(4, src, offset, weight, taps, start, dst);
  if (left == 3) R_(tap_block)(3, src, offset, weight, taps, start, dst);
  else if (left == 2) R_(tap_block)(2, src, offset, weight, taps, start, dst);
  else if (left == 1) R_(tap_block)(1, src, offset, weight, taps, start, dst);
}
