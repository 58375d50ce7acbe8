/* Packing of one (source dtype, kind): copies n rows of k values into panels, dst[panel][group][row in panel].
 * Included once per pair with P_(name), P_SRC, P_GROUP (packed element) defined, and where they are not the default
 * P_KG (values of k in a group, 1), P_MR (ROWS), P_ONE(p, s) (the group of p[0], p[s], ...: p[0]),
 * P_RUN(dst, p, groups) (groups from contiguous values: a copy; else P_RAW is 0 too); undefines them.
 * The destination needs VBYTES of slack behind its end, and panels must be packed in increasing order. */
#ifndef P_KG
#define P_KG 1
#endif
#ifndef P_MR
#define P_MR ROWS
#endif
#ifndef P_ONE
#define P_ONE(p, s) ((p)[0])
#endif
#ifndef P_RUN
#define P_RUN(dst, p, groups) memcpy(dst, p, (size_t)(groups) * sizeof(P_GROUP))
#endif
#ifndef P_RAW
#define P_RAW 1
#endif
#define P_NR (2 * P_LANES)
#define P_LANES ((int)(VBYTES / sizeof(P_GROUP)))

/* the group at p with only `valid` of its P_KG values there: zeros for the rest */
INLINE P_GROUP P_(tail)(const P_SRC *p, int64_t stride, int valid) {
  P_SRC v[P_KG] = {0};
  for (int i = 0; i < valid; i++) v[i] = p[i * stride];
  return P_ONE(v, 1);
}

/* one panel whose rows are contiguous along k: blocks of LANES rows by LANES groups, transposed in registers */
static void P_(across)(P_GROUP *restrict dst, const P_SRC *restrict src, int64_t sn, int n, int width, int64_t k) {
  const int64_t groups = (k + P_KG - 1) / P_KG, whole = k / P_KG;
  P_GROUP tile[P_LANES][P_LANES] __attribute__((aligned(64))), turned[P_LANES][P_LANES] __attribute__((aligned(64)));
  for (int i0 = 0; i0 < width; i0 += P_LANES) {
    const int rows = n - i0 < P_LANES ? (n - i0 > 0 ? n - i0 : 0) : P_LANES;
    const int store = width - i0 < P_LANES ? width - i0 : P_LANES;
    for (int64_t g0 = 0; g0 < groups; g0 += P_LANES) {
      const int count = groups - g0 < P_LANES ? (int)(groups - g0) : P_LANES;
      const P_SRC *from = src + i0 * sn + g0 * P_KG;
      P_GROUP *out = dst + g0 * width + i0;
      const P_GROUP *square = tile[0];
      int64_t square_stride = sizeof tile[0];
      if (P_RAW && rows == P_LANES && g0 + P_LANES <= whole) {
        square = (const P_GROUP *)from;
        square_stride = sn * (int64_t)sizeof(P_SRC);
      } else if (g0 + P_LANES <= whole) {
        for (int r = 0; r < rows; r++) P_RUN(tile[r], from + r * sn, P_LANES);
      } else {
        const int full = whole - g0 > 0 ? (int)(whole - g0) : 0;
        for (int r = 0; r < rows; r++) {
          const P_SRC *row = from + r * sn;
          for (int g = 0; g < P_LANES; g++) tile[r][g] = 0;
          for (int g = 0; g < full; g++) tile[r][g] = P_ONE(row + g * P_KG, 1);
          if (full < count) tile[r][full] = P_(tail)(row + full * P_KG, 1, (int)(k - whole * P_KG));
        }
      }
      if (square == tile[0])
        for (int r = rows; r < P_LANES; r++)
          for (int g = 0; g < P_LANES; g++) tile[r][g] = 0;
      if (count == P_LANES && (store == P_LANES || width < P_LANES)) {
        /* what spills over a narrow row is overwritten by the next row, or is slack */
        TRANSPOSE(P_GROUP, out, width * (int64_t)sizeof(P_GROUP), square, square_stride);
      } else {
        TRANSPOSE(P_GROUP, turned, (int64_t)sizeof turned[0], square, square_stride);
        for (int g = 0; g < count; g++)
          for (int i = 0; i < store; i++) out[(int64_t)g * width + i] = turned[g][i];
      }
    }
  }
}

/* groups g0 .. g1 of one panel whose rows are contiguous across (sn == 1) */
INLINE void P_(along)(P_GROUP *restrict dst, const P_SRC *restrict src, int64_t sk, int n, const int width, int64_t k,
                      int64_t g0, int64_t g1) {
  for (int64_t g = g0; g < g1; g++) {
    P_GROUP *out = dst + g * width;
    const P_SRC *row = src + g * P_KG * sk;
    if ((g + 1) * P_KG <= k) {
      if (P_KG == 1 && n == width) {
        P_RUN(out, row, width);
      } else {
        for (int i = 0; i < n; i++) out[i] = P_ONE(row + i, sk);
      }
    } else {
      for (int i = 0; i < n; i++) out[i] = P_(tail)(row + i, sk, (int)(k - g * P_KG));
    }
    for (int i = n; i < width; i++) out[i] = 0;
  }
}

INLINE void P_(panels)(P_GROUP *dst, const P_SRC *src, int64_t sn, int64_t sk, int64_t n, int64_t k, const int is_a) {
  const int64_t groups = (k + P_KG - 1) / P_KG;
  /* eight groups at a time, over all panels: eight forward streams of reads that the prefetcher follows */
  const int64_t step = sn == 1 && sk != 1 ? 8 : groups > 0 ? groups : 1;
  for (int64_t g0 = 0; g0 < groups; g0 += step) {
    const int64_t g1 = g0 + step < groups ? g0 + step : groups;
    for (int64_t i = 0, width; i < n; i += width) {
      width = is_a ? haian_panel_rows(n - i, P_MR) : P_NR;
      const int valid = (int)(n - i < width ? n - i : width);
      P_GROUP *panel = dst + i * groups;
      const P_SRC *from = src + i * sn;
      if (sk == 1) {
        P_(across)(panel, from, sn, valid, (int)width, k);
      } else if (sn == 1) {
        if (is_a && width == P_MR) P_(along)(panel, from, sk, P_MR, P_MR, k, g0, g1);
        else if (!is_a && valid == P_NR) P_(along)(panel, from, sk, P_NR, P_NR, k, g0, g1);
        else P_(along)(panel, from, sk, valid, (int)width, k, g0, g1);
      } else {
        for (int64_t g = g0; g < g1; g++)
          for (int r = 0; r < width; r++) {
            const P_SRC *p = from + r * sn + g * P_KG * sk;
            const int64_t left = k - g * P_KG;
            panel[g * width + r] = r < valid ? P_(tail)(p, sk, left < P_KG ? (int)left : P_KG) : (P_GROUP)0;
          }
      }
    }
  }
}
static void P_(pack_a)(void *dst, const void *src, int64_t sn, int64_t sk, int64_t n, int64_t k) {
  P_(panels)(dst, src, sn, sk, n, k, 1);
}
static void P_(pack_b)(void *dst, const void *src, int64_t sn, int64_t sk, int64_t n, int64_t k) {
  P_(panels)(dst, src, sn, sk, n, k, 0);
}
#undef P_LANES
#undef P_
#undef P_SRC
#undef P_GROUP
#undef P_KG
#undef P_MR
#undef P_NR
#undef P_ONE
#undef P_RUN
#undef P_RAW
