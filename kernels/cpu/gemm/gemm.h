/* The packed matrix product behind matmul, linear, attention and convolution:  C = alpha A B + beta D, batched.
 * A (m, k), B (k, n), C (m, n), D (m, n); any strides, in elements.  One rounding, at the store.
 * Not here: shape rules of operators (matmul.c).  Same bits for any thread count: every element of C sums its k terms
 * in one order, which depends on k and the dtype alone. */
#ifndef HAIAN_GEMM_H
#define HAIAN_GEMM_H
#include "../kernel.h"

#define HAIAN_GEMM_BATCH (HAIAN_MAX_RANK - 2)

typedef struct haian_matrix {
  const void *data;
  int64_t row, col;                /* strides */
  int64_t batch[HAIAN_GEMM_BATCH]; /* strides of the batch axes, 0 to broadcast */
  int32_t dtype;
} haian_matrix;

typedef struct haian_gemm {
  haian_matrix a, b, c, d; /* d.data NULL: nothing added.  c.data is written */
  int64_t m, n, k;
  int32_t batch_ndim;
  int64_t batch[HAIAN_GEMM_BATCH];
  double alpha, beta;
} haian_gemm;

/* dtypes: a and b alike; c and d like a, or f32 for f16 and bf16, or i32 for u8, i8 (exact int32 sums of the true
 * products, signed or not; a and b may then differ in sign).  Returns HAIAN_OK, HAIAN_UNSUPPORTED or
 * HAIAN_OUT_OF_MEMORY with a message that starts with `op`. */
int32_t HAIAN_SYM(gemm)(const char *op, const haian_gemm *g);

/* At least `bytes` of this thread's scratch, 64-byte aligned, NULL when memory is out.  Kept until the thread ends; the
 * next call with the same slot may move it.  gemm uses slot 0; a kernel that calls gemm must use another. */
enum { HAIAN_SLOTS = 4 };
void *HAIAN_SYM(workspace)(int slot, size_t bytes);

/* ---- pieces for kernels that tile themselves (attention, convolution) ------------------------------------------
 * A kind is one accumulator type with its packed element ("group" of kgroup values along k).
 * Packed A: panels of `rows_of_panel` rows, each [groups][rows]; panel starting at row i lies at i * groups.
 * Packed B: panels of nr columns, each [groups][nr], zero padded; panel p lies at p * nr * groups. */
typedef struct haian_kind haian_kind;
typedef void (*haian_pack_fn)(void *dst, const void *src, int64_t sn, int64_t sk, int64_t n, int64_t k);
typedef void (*haian_micro_fn)(int64_t groups, const void *a, const void *b, int64_t ldb, void *c, int64_t ldc,
                               int first);
struct haian_kind {
  int32_t mr, nr; /* tile of the micro kernel, in elements of C */
  int32_t kgroup; /* values along k in one packed element: 1, 2 (bf16, i16 pairs), 4 (bytes) */
  int32_t group_bytes, acc_bytes;
  const haian_micro_fn *micro; /* [rows - 1] */
  haian_pack_fn pack_a, pack_b;
};
/* The kind for operands of a dtype and results of another, NULL where there is none; wide: one whose packed elements
 * are accumulators (kgroup 1), so that packed bf16 and f32 multiply one another. */
const haian_kind *HAIAN_SYM(gemm_kind)(int32_t dtype, int32_t c_dtype, bool wide);
/* Products of a few rows of packed accumulators a [m][k] and an unpacked float matrix b: acc [m][ld] = a b.
 * rows: b (k, n) with rows of contiguous n, ldb apart; else b (n, k) with rows of contiguous k. */
typedef void (*haian_skinny_fn)(int64_t m, int64_t n, int64_t k, const void *a, const void *b, int64_t ldb, void *acc,
                                int64_t ld);
haian_skinny_fn HAIAN_SYM(gemm_skinny)(int32_t dtype, bool rows);
/* C[m, n] (float, ldc) = or += packed A times B.  B is packed (panel_stride = nr * groups, ldb = nr) or rows of plain
 * groups (panel_stride = nr, ldb = row stride; columns up to the next multiple of nr are read). n columns are written
 * in whole panels: C needs room for n rounded up to nr. */
void HAIAN_SYM(gemm_packed)(const haian_kind *kind, int64_t m, int64_t n, int64_t groups, const void *a, const void *b,
                            int64_t ldb, int64_t panel_stride, void *c, int64_t ldc, int first);
static inline int64_t haian_panel_rows(int64_t left, int64_t mr) {
  /* the last two panels share their rows, so that no panel is left with one or two (1024 = 72 * 14 + 8 + 8) */
  if (left <= mr) return left;
  return left < mr + (mr + 1) / 2 ? (left + 1) / 2 : mr;
}
#endif
