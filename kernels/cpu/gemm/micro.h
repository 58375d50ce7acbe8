/* The micro kernels of one kind, for 1 .. M_MR rows: C[rows][M_NV vectors] (+)= A panel times B panel.
 * Included once per kind with M_(name), M_GROUP (packed element), M_ACC, M_GV, M_AV (their vectors), M_MR and, where it
 * is not acc + x * b, M_MADD(acc, x, b) defined; undefines them.  M_DIRECT adds kernels that read A unpacked. */
#ifndef M_MADD
#define M_MADD(acc, x, b) ((acc) + (x) * (b))
#endif
#define M_NV 2
#define M_LANES ((int)(sizeof(M_AV) / sizeof(M_ACC)))
INLINE void M_(body)(const int rows, int64_t groups, const M_GROUP *a, const M_GROUP *b, int64_t ldb, M_ACC *c,
                     int64_t ldc, int first) {
  M_AV acc[M_MR][M_NV];
#pragma GCC unroll 32
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < M_NV; j++) acc[i][j] = (M_AV){0};
  /* C is wanted some thousand cycles from now */
#pragma GCC unroll 32
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < M_NV * (int)sizeof(M_AV); j += 64) __builtin_prefetch((char *)(c + i * ldc) + j, 1);
  for (int64_t k = 0; k < groups; k++) {
    M_GV y[M_NV];
#pragma GCC unroll 4
    for (int j = 0; j < M_NV; j++) y[j] = *(const M_GV *)(b + j * M_LANES);
#pragma GCC unroll 32
    for (int i = 0; i < rows; i++) {
      M_GV x = SPLAT(M_GV, a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < M_NV; j++) acc[i][j] = M_MADD(acc[i][j], x, y[j]);
    }
    a += rows;
    b += ldb;
  }
  if (first) {
#pragma GCC unroll 32
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
      for (int j = 0; j < M_NV; j++) *(M_AV *)(c + i * ldc + j * M_LANES) = acc[i][j];
  } else {
#pragma GCC unroll 32
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
      for (int j = 0; j < M_NV; j++) *(M_AV *)(c + i * ldc + j * M_LANES) += acc[i][j];
  }
}
#define M_ROWS(r)                                                                                           \
  static void M_(rows_##r)(int64_t groups, const void *a, const void *b, int64_t ldb, void *c, int64_t ldc, \
                           int first) {                                                                     \
    M_(body)(r <= M_MR ? r : 1, groups, a, b, ldb, c, ldc, first);                                          \
  }
/* clang-format off */
M_ROWS(1)
M_ROWS(2)
M_ROWS(3)
M_ROWS(4)
#if M_MR > 4
M_ROWS(5)
M_ROWS(6)
#endif
#if M_MR > 6
M_ROWS(7)
M_ROWS(8)
#endif
#if M_MR > 8
    M_ROWS(9) M_ROWS(10) M_ROWS(11) M_ROWS(12)
#endif
#if M_MR > 12
        M_ROWS(13) M_ROWS(14)
#endif
    /* clang-format on */
    static const haian_micro_fn M_(micro)[] = {
        M_(rows_1),  M_(rows_2),  M_(rows_3),  M_(rows_4),
#if M_MR > 4
        M_(rows_5),  M_(rows_6),
#endif
#if M_MR > 6
        M_(rows_7),  M_(rows_8),
#endif
#if M_MR > 8
        M_(rows_9),  M_(rows_10), M_(rows_11), M_(rows_12),
#endif
#if M_MR > 12
        M_(rows_13), M_(rows_14),
#endif
};
#if defined(M_DIRECT)
/* the same with A where it lies, rows lda apart and contiguous along k: small products do not pay for packing A.
 * Three rows share a base pointer (base, + lda, + 2 lda): fourteen pointers would not fit the registers. */
INLINE void M_(direct_body)(const int rows, int64_t groups, const M_GROUP *a, int64_t lda, const M_GROUP *b,
                            int64_t ldb, M_ACC *c, int64_t ldc, int first) {
  M_AV acc[M_MR][M_NV];
  const M_GROUP *base[(M_MR + 2) / 3];
#pragma GCC unroll 8
  for (int i = 0; i < (rows + 2) / 3; i++) base[i] = a + 3 * i * lda;
#pragma GCC unroll 32
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < M_NV; j++) acc[i][j] = (M_AV){0};
  for (int64_t k = 0; k < groups; k++) {
    M_GV y[M_NV];
#pragma GCC unroll 4
    for (int j = 0; j < M_NV; j++) y[j] = *(const M_GV *)(b + j * M_LANES);
#pragma GCC unroll 32
    for (int i = 0; i < rows; i++) {
      M_GV x = SPLAT(M_GV, base[i / 3][i % 3 * lda]);
#pragma GCC unroll 4
      for (int j = 0; j < M_NV; j++) acc[i][j] = M_MADD(acc[i][j], x, y[j]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < (rows + 2) / 3; i++) base[i]++;
    b += ldb;
  }
#pragma GCC unroll 32
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < M_NV; j++) {
      M_AV *to = (M_AV *)(c + i * ldc + j * M_LANES);
      if (!first) acc[i][j] += *to;
      *to = acc[i][j];
    }
}
#define M_DIRECT_ROWS(r)                                                                                      \
  static void M_(direct_##r)(int64_t groups, const void *a, int64_t lda, const void *b, int64_t ldb, void *c, \
                             int64_t ldc, int first) {                                                        \
    M_(direct_body)(r <= M_MR ? r : 1, groups, a, lda, b, ldb, c, ldc, first);                                \
  }
/* clang-format off */
M_DIRECT_ROWS(1)
M_DIRECT_ROWS(2)
M_DIRECT_ROWS(3)
M_DIRECT_ROWS(4)
#if M_MR > 4
M_DIRECT_ROWS(5)
M_DIRECT_ROWS(6)
#endif
#if M_MR > 6
M_DIRECT_ROWS(7)
M_DIRECT_ROWS(8)
#endif
#if M_MR > 8
    M_DIRECT_ROWS(9) M_DIRECT_ROWS(10) M_DIRECT_ROWS(11) M_DIRECT_ROWS(12)
#endif
#if M_MR > 12
        M_DIRECT_ROWS(13) M_DIRECT_ROWS(14)
#endif
    /* clang-format on */
    static const haian_direct_fn M_(direct)[] = {
        M_(direct_1),  M_(direct_2),  M_(direct_3),  M_(direct_4),
#if M_MR > 4
        M_(direct_5),  M_(direct_6),
#endif
#if M_MR > 6
        M_(direct_7),  M_(direct_8),
#endif
#if M_MR > 8
        M_(direct_9),  M_(direct_10), M_(direct_11), M_(direct_12),
#endif
#if M_MR > 12
        M_(direct_13), M_(direct_14),
#endif
};
#undef M_DIRECT
#undef M_DIRECT_ROWS
#endif
#undef M_ROWS
#undef M_LANES
#undef M_
#undef M_GROUP
#undef M_ACC
#undef M_GV
#undef M_AV
#undef M_MR
#undef M_NV
#undef M_MADD
