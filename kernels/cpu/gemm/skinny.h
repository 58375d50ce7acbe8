/* Products with a few rows in A, where B is read once from memory and never packed: 1 x 4096 x 11008 in bf16 is 90 MB
 * of B and no arithmetic worth a name.  Included once per source dtype with S_(name), S_SRC, S_ACC, S_V, S_LOAD(p)
 * (a vector from contiguous source values), S_ONE(x) and S_SUM(v) defined; undefines them.  a is packed [m][k].
 * Each element's sum has one order: it depends on k alone. */
#define S_LANES ((int64_t)(sizeof(S_V) / sizeof(S_ACC)))
/* an address that may lie past the end, so not a pointer sum */
#define S_AHEAD(p, n) \
  __builtin_prefetch((const void *)((uintptr_t)(p) + (uintptr_t)((n) * (int64_t)sizeof(S_SRC))), 0, 2)

/* acc[m][n] = a times B, rows of B contiguous along n: STEP rows of B at a time, as many forward streams */
INLINE void S_(rows_step)(const int step, int64_t m, int64_t n, int64_t k, const S_ACC *a, const S_SRC *b, int64_t ldb,
                          S_ACC *acc, int64_t lda, int64_t ld) {
  const bool near = n <= 512; /* 128 wide bf16 values: 0.80 -> 0.89 of read; hardware follows long rows by itself */
  (void)k;
  int64_t j = 0;
  if (m > 1) /* two columns of vectors share each element of A */
    for (; j + 2 * S_LANES <= n; j += 2 * S_LANES) {
      S_V y[8], z[8];
#pragma GCC unroll 8
      for (int s = 0; s < step; s++) {
        y[s] = S_LOAD(b + s * ldb + j);
        z[s] = S_LOAD(b + s * ldb + j + S_LANES);
      }
      for (int64_t i = 0; i < m; i++) {
        S_V x = SPLAT(S_V, a[i * lda]), t = x * y[0], u = x * z[0];
#pragma GCC unroll 8
        for (int s = 1; s < step; s++) {
          x = SPLAT(S_V, a[i * lda + s]);
          t += x * y[s];
          u += x * z[s];
        }
        *(S_V *)(acc + i * ld + j) += t;
        *(S_V *)(acc + i * ld + j + S_LANES) += u;
      }
    }
  for (; j + S_LANES <= n; j += S_LANES) {
    S_V y[8];
#pragma GCC unroll 8
    for (int s = 0; s < step; s++) {
      y[s] = S_LOAD(b + s * ldb + j);
      if (near) S_AHEAD(b, (s + 16) * ldb + j);
    }
    for (int64_t i = 0; i < m; i++) {
      S_V t = SPLAT(S_V, a[i * lda]) * y[0];
#pragma GCC unroll 8
      for (int s = 1; s < step; s++) t += SPLAT(S_V, a[i * lda + s]) * y[s];
      *(S_V *)(acc + i * ld + j) += t;
    }
  }
  for (; j < n; j++)
    for (int64_t i = 0; i < m; i++) {
      S_ACC t = a[i * lda] * S_ONE(b[j]);
      for (int s = 1; s < step; s++) t += a[i * lda + s] * S_ONE(b[s * ldb + j]);
      acc[i * ld + j] += t;
    }
}
static void S_(rows)(int64_t m, int64_t n, int64_t k, const void *av, const void *bv, int64_t ldb, void *accv,
                     int64_t ld) {
  const S_ACC *a = av;
  const S_SRC *b = bv;
  S_ACC *acc = accv;
  for (int64_t i = 0; i < m; i++) memset(acc + i * ld, 0, (size_t)n * sizeof *acc);
  int64_t p = 0;
  for (; p + 8 <= k; p += 8) S_(rows_step)(8, m, n, k, a + p, b + p * ldb, ldb, acc, k, ld);
  for (; p < k; p++) S_(rows_step)(1, m, n, k, a + p, b + p * ldb, ldb, acc, k, ld);
}

/* acc[m][n] += a[.., p0 : p0 + k] times B over one block of k, rows of B contiguous along k; MT x NT dot products */
INLINE void S_(dots_tile)(const int mt, const int nt, int64_t k, const S_ACC *a, int64_t lda, const S_SRC *b,
                          int64_t ldb, S_ACC *acc, int64_t ld) {
  S_V sum[4][8];
#pragma GCC unroll 4
  for (int i = 0; i < mt; i++)
#pragma GCC unroll 8
    for (int j = 0; j < nt; j++) sum[i][j] = (S_V){0};
  int64_t p = 0;
  for (; p + S_LANES <= k; p += S_LANES) {
    S_V x[4];
#pragma GCC unroll 4
    for (int i = 0; i < mt; i++) x[i] = *(const S_V *)(a + i * lda + p);
#pragma GCC unroll 8
    for (int j = 0; j < nt; j++) {
      S_V y = S_LOAD(b + j * ldb + p);
      if (mt == 1) S_AHEAD(b, (j + 2 * nt) * ldb + p); /* 128 wide bf16 keys: 0.58 -> 0.93 of a bare read */
#pragma GCC unroll 4
      for (int i = 0; i < mt; i++) sum[i][j] += x[i] * y;
    }
  }
  if (p < k) {
    S_ACC x[4][S_LANES], y[S_LANES];
    for (int i = 0; i < mt; i++)
      for (int64_t q = 0; q < S_LANES; q++) x[i][q] = p + q < k ? a[i * lda + p + q] : 0;
#pragma GCC unroll 8
    for (int j = 0; j < nt; j++) {
      for (int64_t q = 0; q < S_LANES; q++) y[q] = p + q < k ? S_ONE(b[j * ldb + p + q]) : 0;
#pragma GCC unroll 4
      for (int i = 0; i < mt; i++) sum[i][j] += *(const S_V *)x[i] * *(const S_V *)y;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < mt; i++)
#pragma GCC unroll 8
    for (int j = 0; j < nt; j++) acc[i * ld + j] += S_SUM(sum[i][j]);
}
static void S_(dots)(int64_t m, int64_t n, int64_t k, const void *av, const void *bv, int64_t ldb, void *accv,
                     int64_t ld) {
  enum { BLOCK = 2048 }; /* four rows of B, 32 KB, stay in L1 for all rows of A */
  S_ACC *acc = accv;
  for (int64_t i = 0; i < m; i++) memset(acc + i * ld, 0, (size_t)n * sizeof *acc);
  for (int64_t p = 0; p < k; p += BLOCK) {
    const int64_t kb = k - p < BLOCK ? k - p : BLOCK;
    const S_ACC *a = (const S_ACC *)av + p;
    const S_SRC *b = (const S_SRC *)bv + p;
    int64_t j = 0;
    if (m == 1)
      for (; j + 8 <= n; j += 8) S_(dots_tile)(1, 8, kb, a, k, b + j * ldb, ldb, acc + j, ld);
    for (; j < n;) {
      const int nt = n - j >= 4 ? 4 : 1;
      for (int64_t i = 0; i < m;) {
        const S_ACC *ai = a + i * k;
        const S_SRC *bj = b + j * ldb;
        S_ACC *c = acc + i * ld + j;
        const int mt = m - i >= 4 ? 4 : m - i >= 2 ? 2 : 1;
        switch (mt * 8 + nt) {
          case 36:
            S_(dots_tile)(4, 4, kb, ai, k, bj, ldb, c, ld);
            break;
          case 33:
            S_(dots_tile)(4, 1, kb, ai, k, bj, ldb, c, ld);
            break;
          case 20:
            S_(dots_tile)(2, 4, kb, ai, k, bj, ldb, c, ld);
            break;
          case 17:
            S_(dots_tile)(2, 1, kb, ai, k, bj, ldb, c, ld);
            break;
          case 12:
            S_(dots_tile)(1, 4, kb, ai, k, bj, ldb, c, ld);
            break;
          default:
            S_(dots_tile)(1, 1, kb, ai, k, bj, ldb, c, ld);
            break;
        }
        i += mt;
      }
      j += nt;
    }
  }
}
#undef S_LANES
#undef S_AHEAD
#undef S_
#undef S_SRC
#undef S_ACC
#undef S_V
#undef S_LOAD
#undef S_ONE
#undef S_SUM
