/* Packed matrix product: blocking, packing, kinds, threads, epilogue.  See gemm.h.
 * Not here: micro kernels (micro.h), packing loops (pack.h), products with a few rows (skinny.h). */
#include "gemm.h"

#include "transpose.h"
#include "vec.h"
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

/* ---- workspace ------------------------------------------------------------------------------------------------- */
typedef struct scratch {
  void *data[HAIAN_SLOTS];
  size_t size[HAIAN_SLOTS];
} scratch;
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static int scratch_key_made;
static _Thread_local scratch *scratch_mine;

static void scratch_free(void *p) {
  scratch *s = p;
  for (int i = 0; i < HAIAN_SLOTS; i++) free(s->data[i]);
  free(s);
}
static void scratch_make_key(void) { scratch_key_made = pthread_key_create(&scratch_key, scratch_free) == 0; }

void *HAIAN_SYM(workspace)(int slot, size_t bytes) {
  scratch *s = scratch_mine;
  if (!s) {
    pthread_once(&scratch_once, scratch_make_key);
    s = calloc(1, sizeof *s);
    if (!s) return NULL;
    if (scratch_key_made) pthread_setspecific(scratch_key, s);
    scratch_mine = s;
  }
  if (s->size[slot] < bytes) {
    const size_t size = (bytes + bytes / 4 + 4095) & ~(size_t)4095;
    free(s->data[slot]);
    s->size[slot] = 0;
    s->data[slot] = aligned_alloc(4096, size);
    if (!s->data[slot]) return NULL;
    s->size[slot] = size;
  }
  return s->data[slot];
}

/* as haian_micro_fn, with A unpacked: rows lda apart, contiguous along k */
typedef void (*haian_direct_fn)(int64_t groups, const void *a, int64_t lda, const void *b, int64_t ldb, void *c,
                                int64_t ldc, int first);
#include "kinds.h"

const haian_kind *HAIAN_SYM(gemm_kind)(int32_t dtype, int32_t c_dtype, bool wide) {
  (void)wide;
  switch (dtype) {
    case HAIAN_F32:
      return &kind_f32;
    case HAIAN_F16:
      return &kind_f32_f16;
    case HAIAN_BF16:
#if defined(__AVX512BF16__)
      if (!wide && dpbf16_pays()) return &kind_bf16;
#endif
      return &kind_f32_bf16;
    case HAIAN_F64:
      return &kind_f64;
    case HAIAN_I8:
    case HAIAN_U8:
#if defined(__AVX512VNNI__)
      if (c_dtype == dtype) return &kind_i8;
#endif
      return dtype == HAIAN_U8 ? &kind_u32_u8 : &kind_u32_i8;
    case HAIAN_I16:
    case HAIAN_U16:
      return c_dtype == dtype ? &kind_i16 : NULL;
    case HAIAN_I32:
    case HAIAN_U32:
      return &kind_u32;
    case HAIAN_I64:
    case HAIAN_U64:
      return &kind_u64;
    default:
      return NULL;
  }
}

haian_skinny_fn HAIAN_SYM(gemm_skinny)(int32_t dtype, bool rows) {
  switch (dtype) {
    case HAIAN_F16:
      return rows ? f16_rows : f16_dots;
    case HAIAN_BF16:
      return rows ? bf16_rows : bf16_dots;
    case HAIAN_F32:
      return rows ? f32_rows : f32_dots;
    case HAIAN_F64:
      return rows ? f64_rows : f64_dots;
    default:
      return NULL;
  }
}

/* ---- rows of A, D and C in any dtype ----------------------------------------------------------------------------- */
typedef uint32_t u32;
typedef uint64_t u64;
#define ROW_LOOP(type, expr)          \
  do {                                \
    const type *p = src;              \
    for (int64_t i = 0; i < n; i++) { \
      const type x = p[i * stride];   \
      dst[i] = expr;                  \
    }                                 \
    return;                           \
  } while (0)
static void load_f32(float *dst, const void *src, int64_t stride, int64_t n, int32_t dtype) {
  if (stride == 1) switch (dtype) {
      case HAIAN_F32:
        memcpy(dst, src, (size_t)n * 4);
        return;
      case HAIAN_F16:
        run_f16(dst, src, n);
        return;
      case HAIAN_BF16:
        run_bf16(dst, src, n);
        return;
      default:
        break;
    }
  switch (dtype) {
    case HAIAN_F32:
      ROW_LOOP(float, x);
    case HAIAN_F16:
      ROW_LOOP(uint16_t, haian_f16_load(x));
    case HAIAN_BF16:
      ROW_LOOP(uint16_t, haian_bf16_load(x));
    default:
      break;
  }
}
static void load_f64(double *dst, const void *src, int64_t stride, int64_t n, int32_t dtype) {
  (void)dtype;
  ROW_LOOP(double, x);
}
static void load_u32(u32 *dst, const void *src, int64_t stride, int64_t n, int32_t dtype) {
  switch (dtype) {
    case HAIAN_U8:
      ROW_LOOP(uint8_t, x);
    case HAIAN_I8:
      ROW_LOOP(int8_t, (u32)x);
    case HAIAN_U16:
      ROW_LOOP(uint16_t, x);
    case HAIAN_I16:
      ROW_LOOP(int16_t, (u32)x);
    default:
      ROW_LOOP(u32, x);
  }
}
static void load_u64(u64 *dst, const void *src, int64_t stride, int64_t n, int32_t dtype) {
  (void)dtype;
  ROW_LOOP(u64, x);
}
#define STORE_LOOP(type, expr)                                    \
  do {                                                            \
    type *p = dst;                                                \
    for (int64_t i = 0; i < n; i++) p[i * stride] = (type)(expr); \
    return;                                                       \
  } while (0)
static void save_f32(void *dst, const float *src, int64_t stride, int64_t n, int32_t dtype) {
  int64_t i = 0;
  uint16_t *half = dst;
  if (stride == 1) switch (dtype) {
      case HAIAN_F32:
        memcpy(dst, src, (size_t)n * 4);
        return;
      case HAIAN_F16:
        for (; i + LANES32 <= n; i += LANES32) store_f16(half + i, *(const v_f32 *)(src + i));
        for (; i < n; i++) half[i] = haian_f16_store(src[i]);
        return;
      case HAIAN_BF16:
        for (; i + LANES32 <= n; i += LANES32) store_bf16(half + i, *(const v_f32 *)(src + i));
        for (; i < n; i++) half[i] = haian_bf16_store(src[i]);
        return;
      default:
        break;
    }
  switch (dtype) {
    case HAIAN_F32:
      STORE_LOOP(float, src[i]);
    case HAIAN_F16:
      STORE_LOOP(uint16_t, haian_f16_store(src[i]));
    case HAIAN_BF16:
      STORE_LOOP(uint16_t, haian_bf16_store(src[i]));
    default:
      break;
  }
}
static void save_f64(void *dst, const double *src, int64_t stride, int64_t n, int32_t dtype) {
  (void)dtype;
  STORE_LOOP(double, src[i]);
}
static void save_u32(void *dst, const u32 *src, int64_t stride, int64_t n, int32_t dtype) {
  switch (haian_itemsize(dtype)) {
    case 1:
      STORE_LOOP(uint8_t, src[i]);
    case 2:
      STORE_LOOP(uint16_t, src[i]);
    default:
      STORE_LOOP(u32, src[i]);
  }
}
static void save_u64(void *dst, const u64 *src, int64_t stride, int64_t n, int32_t dtype) {
  (void)dtype;
  STORE_LOOP(u64, src[i]);
}

/* ---- one product, planned ---------------------------------------------------------------------------------------- */
enum {
  KC = 512,           /* 14 rows of A: 28 KB, 32 columns of B: 64 KB, in f32: L1 and L2 */
  MC_BYTES = 5 << 17, /* packed block of A, 640 KB: 312 rows of f32 in an L2 of 1 or 2 MB */
  A_ONCE_BYTES = 1 << 22,
  NC = 2048,     /* columns of packed B, 4 MB: L3 */
  NC_NEAR = 256, /* the same, 512 KB: L2 */
  SCRATCH_ROWS = 1024,
  SKINNY = 16, /* rows of A up to which B is not packed */
  MAX_TILE = 14 * 2 * LANES32,
};
typedef enum { CLASS_F32, CLASS_F64, CLASS_U32, CLASS_U64 } acc_class;
typedef enum { PACKED, ROWS_OF_B, COLUMNS_OF_B } method;

typedef struct plan {
  haian_gemm g;
  const haian_kind *kind;
  acc_class acc;
  method how;
  int64_t kc, kblocks;    /* fixed by k alone: they fix the order of every sum */
  int64_t mt, nt, tm, tn; /* rows and columns of a task, tasks along m and n */
  bool direct;            /* C itself accumulates: its dtype is the accumulator's and its rows are contiguous */
  bool plain;             /* C = A B */
  int32_t failed;         /* a thread ran out of memory */
} plan;
typedef struct operands { /* of one batch element */
  const char *a, *b, *d;
  char *c;
} operands;

static const char *at(const haian_matrix *x, const char *base, int64_t i, int64_t j) {
  return base + (i * x->row + j * x->col) * haian_itemsize(x->dtype);
}

/* rows of finished sums -> alpha, beta D, the one rounding, C */
#define FINISH(T, CLASS, SCALAR)                                                                                 \
  static void finish_##CLASS(const plan *p, const operands *o, const T *acc, int64_t ld, int64_t i0, int64_t j0, \
                             int64_t rows, int64_t cols) {                                                       \
    const haian_gemm *g = &p->g;                                                                                 \
    enum { STRIP = 256 };                                                                                        \
    T line[STRIP], add[STRIP];                                                                                   \
    const T alpha = (T)(SCALAR)g->alpha, beta = (T)(SCALAR)g->beta;                                              \
    for (int64_t i = 0; i < rows; i++)                                                                           \
      for (int64_t j = 0; j < cols; j += STRIP) {                                                                \
        const int64_t n = cols - j < STRIP ? cols - j : STRIP;                                                   \
        const T *src = acc + i * ld + j;                                                                         \
        char *dst = (char *)at(&g->c, o->c, i0 + i, j0 + j);                                                     \
        if (!p->plain) {                                                                                         \
          if (o->d) {                                                                                            \
            load_##CLASS(add, at(&g->d, o->d, i0 + i, j0 + j), g->d.col, n, g->d.dtype);                         \
            if (alpha == 1 && beta == 1)                                                                         \
              for (int64_t q = 0; q < n; q++) line[q] = src[q] + add[q];                                         \
            else                                                                                                 \
              for (int64_t q = 0; q < n; q++) line[q] = alpha * src[q] + beta * add[q];                          \
          } else {                                                                                               \
            for (int64_t q = 0; q < n; q++) line[q] = alpha * src[q];                                            \
          }                                                                                                      \
          src = line;                                                                                            \
        }                                                                                                        \
        save_##CLASS(dst, src, g->c.col, n, g->c.dtype);                                                         \
      }                                                                                                          \
  }
FINISH(float, f32, double)
FINISH(double, f64, double)
FINISH(u32, u32, int64_t)
FINISH(u64, u64, int64_t)

static void finish(const plan *p, const operands *o, const void *acc, int64_t ld, int64_t i, int64_t j, int64_t rows,
                   int64_t cols) {
  switch (p->acc) {
    case CLASS_F32:
      finish_f32(p, o, acc, ld, i, j, rows, cols);
      break;
    case CLASS_F64:
      finish_f64(p, o, acc, ld, i, j, rows, cols);
      break;
    case CLASS_U32:
      finish_u32(p, o, acc, ld, i, j, rows, cols);
      break;
    case CLASS_U64:
      finish_u64(p, o, acc, ld, i, j, rows, cols);
      break;
  }
}

/* ---- few rows ---------------------------------------------------------------------------------------------------- */
static bool skinny_block(const plan *p, const operands *o, int64_t n0, int64_t n1) {
  const haian_gemm *g = &p->g;
  const int64_t m = g->m, k = g->k, bytes = p->kind->acc_bytes;
  const int64_t strip = p->how == ROWS_OF_B ? 4096 / m / 64 * 64 : 256;
  char *a = HAIAN_SYM(workspace)(0, (size_t)((m * k + m * strip) * bytes + 2 * VBYTES));
  if (!a) return false;
  char *acc = a + (m * k * bytes + VBYTES - 1) / VBYTES * VBYTES;
  for (int64_t i = 0; i < m; i++)
    if (p->acc == CLASS_F64) load_f64((double *)a + i * k, at(&g->a, o->a, i, 0), g->a.col, k, g->a.dtype);
    else load_f32((float *)a + i * k, at(&g->a, o->a, i, 0), g->a.col, k, g->a.dtype);
  const bool rows = p->how == ROWS_OF_B;
  const haian_skinny_fn run = HAIAN_SYM(gemm_skinny)(g->b.dtype, rows);
  for (int64_t j = n0; j < n1; j += strip) {
    const int64_t n = n1 - j < strip ? n1 - j : strip;
    run(m, n, k, a, at(&g->b, o->b, 0, j), rows ? g->b.row : g->b.col, acc, strip);
    finish(p, o, acc, strip, 0, j, m, n);
  }
  return true;
}

/* ---- packed ------------------------------------------------------------------------------------------------------ */
/* One micro kernel call: rows x w of C at (i, j), sums of earlier k blocks in C itself (direct), in `sums`, or none. */
typedef struct tile_job {
  const plan *p;
  const operands *o;
  char *sums;  /* NULL: C accumulates, or there is one k block */
  int64_t ld;  /* of sums */
  int64_t lda; /* of A where it is read in place, 0 where it is packed */
  int first, last;
} tile_job;

static void multiply(const tile_job *t, int64_t groups, const void *a, const void *b, int64_t ldb, void *c, int64_t ldc,
                     int64_t rows) {
  if (t->lda) f32_direct[rows - 1](groups, a, t->lda, b, ldb, c, ldc, t->first);
  else t->p->kind->micro[rows - 1](groups, a, b, ldb, c, ldc, t->first);
}
static void run_tile(const tile_job *t, int64_t groups, const void *pa, const void *pb, int64_t ldb, int64_t i,
                     int64_t j, int64_t rows, int64_t w, char *sum) {
  const plan *p = t->p;
  const int64_t nr = p->kind->nr, bytes = p->kind->acc_bytes;
  float space[MAX_TILE] __attribute__((aligned(64)));
  char *tile = (char *)space;
  if (p->direct) {
    char *c = (char *)at(&p->g.c, t->o->c, i, j);
    const int64_t step = p->g.c.row * bytes;
    if (w == nr) {
      multiply(t, groups, pa, pb, ldb, c, p->g.c.row, rows);
      if (t->last && !p->plain) finish(p, t->o, c, p->g.c.row, i, j, rows, w);
      return;
    }
    for (int64_t r = 0; r < rows && !t->first; r++) {
      memset(tile + r * nr * bytes, 0, (size_t)(nr * bytes));
      memcpy(tile + r * nr * bytes, c + r * step, (size_t)(w * bytes));
    }
    multiply(t, groups, pa, pb, ldb, tile, nr, rows);
    if (t->last && !p->plain) finish(p, t->o, tile, nr, i, j, rows, w);
    else
      for (int64_t r = 0; r < rows; r++) memcpy(c + r * step, tile + r * nr * bytes, (size_t)(w * bytes));
    return;
  }
  if (!sum) sum = tile;
  const int64_t ld = sum == tile ? nr : t->ld;
  multiply(t, groups, pa, pb, ldb, sum, ld, rows);
  if (t->last) finish(p, t->o, sum, ld, i, j, rows, w);
}

static int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* rows m0 .. m1, columns n0 .. n1 of C.  Few rows: A is packed once, for all of k, and B in strips that stay in L2.
 * Many rows: strips of B wait in L3 while blocks of A pass through L2. */
static bool packed_block(const plan *p, const operands *o, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  const haian_gemm *g = &p->g;
  const haian_kind *kind = p->kind;
  const int64_t mr = kind->mr, nr = kind->nr, gb = kind->group_bytes, ab = kind->acc_bytes, m = m1 - m0;
  const int64_t groups_max = p->kc > 0 ? (p->kc + kind->kgroup - 1) / kind->kgroup : 1;
  const int64_t mc_most = MC_BYTES / gb / groups_max > mr ? MC_BYTES / gb / groups_max : mr;
  const int64_t blocks = (m + mc_most - 1) / mc_most, mc = round_up((m + blocks - 1) / blocks, mr);
  const int64_t a_block = mc * groups_max * gb;
  const bool a_once = blocks == 1 && a_block * p->kblocks <= A_ONCE_BYTES;
  int64_t nc = a_once && p->kblocks > 1 ? NC_NEAR : NC;
  nc = n1 - n0 < nc ? round_up(n1 - n0, nr) : nc;
  const bool keep = !p->direct && p->kblocks > 1; /* sums of several k blocks wait in scratch */
  const int64_t mb = keep && m > SCRATCH_ROWS ? round_up(SCRATCH_ROWS, mc) : m;
  /* B in place: plain elements, contiguous rows, few passes, and rows that do not all fall into the same cache sets */
  const bool in_place = kind == &kind_f32 && g->b.col == 1 && g->b.row > 0 && g->b.row * 4 < 4096 && g->k > 0 &&
                        p->kc * g->b.row <= 1 << 17;
  /* A in place: contiguous along k, a block that stays in L2, few columns to pay for packing (at 128 columns it is 11 %
   * of the time), and 14 rows that do not share a set of L1 */
  const bool a_here = kind == &kind_f32 && g->a.col == 1 && g->a.row > 0 && g->a.row * 4 % 2048 != 0 &&
                      n1 - n0 <= 512 && mc * p->kc <= 1 << 16;
  const size_t a_bytes = a_here ? 0 : (size_t)round_up(a_block * (a_once ? p->kblocks : 1) + 2 * VBYTES, 4096);
  const size_t b_bytes = (size_t)round_up((in_place ? nr : nc) * groups_max * gb + 2 * VBYTES, 4096);
  char *pa = HAIAN_SYM(workspace)(0, a_bytes + b_bytes + (keep ? (size_t)(mb * nc * ab) : 0));
  if (!pa) return false;
  char *pb = pa + a_bytes, *sums = keep ? pb + b_bytes : NULL;
  for (int64_t kb = 0; a_once && !a_here && kb < p->kblocks; kb++) {
    const int64_t k0 = kb * p->kc, kn = g->k - k0 < p->kc ? g->k - k0 : p->kc;
    kind->pack_a(pa + kb * a_block, at(&g->a, o->a, m0, k0), g->a.row, g->a.col, m, kn);
  }
  for (int64_t jc = n0; jc < n1; jc += nc) {
    const int64_t jn = n1 - jc < nc ? n1 - jc : nc;
    for (int64_t im = m0; im < m1; im += mb) {
      const int64_t in = m1 - im < mb ? m1 - im : mb;
      for (int64_t kb = 0; kb < p->kblocks; kb++) {
        const int64_t k0 = kb * p->kc, kn = g->k - k0 < p->kc ? g->k - k0 : p->kc;
        const int64_t groups = (kn + kind->kgroup - 1) / kind->kgroup;
        const tile_job job = {p, o, sums, nc, a_here ? g->a.row : 0, kb == 0, kb == p->kblocks - 1};
        const char *b = at(&g->b, o->b, k0, jc);
        if (!in_place) kind->pack_b(pb, b, g->b.col, g->b.row, jn, kn);
        else if (jn % nr) kind->pack_b(pb, at(&g->b, b, 0, jn / nr * nr), g->b.col, g->b.row, jn % nr, kn);
        for (int64_t ic = im; ic < im + in; ic += mc) {
          const int64_t mn = im + in - ic < mc ? im + in - ic : mc;
          const char *block = a_once ? pa + kb * a_block : pa;
          if (a_here) block = at(&g->a, o->a, ic, k0);
          else if (!a_once) kind->pack_a(pa, at(&g->a, o->a, ic, k0), g->a.row, g->a.col, mn, kn);
          for (int64_t j = 0; j < jn; j += nr) {
            const int64_t w = jn - j < nr ? jn - j : nr;
            const bool here = in_place && w == nr;
            const char *panel = here ? b + j * 4 : in_place ? pb : pb + j * groups * gb;
            for (int64_t i = 0, rows; i < mn; i += rows) {
              rows = haian_panel_rows(mn - i, mr);
              run_tile(&job, groups, block + i * (a_here ? g->a.row : groups) * gb, panel, here ? g->b.row : nr, ic + i,
                       jc + j, rows, w, sums ? sums + ((ic - im + i) * nc + j) * ab : NULL);
            }
          }
        }
      }
    }
  }
  return true;
}

static void run_tasks(void *ctx, int64_t lo, int64_t hi) {
  plan *p = ctx;
  const haian_gemm *g = &p->g;
  for (int64_t t = lo; t < hi; t++) {
    int64_t e = t / (p->tm * p->tn), tile = t % (p->tm * p->tn);
    operands o = {g->a.data, g->b.data, g->d.data, (char *)g->c.data};
    for (int q = g->batch_ndim - 1; q >= 0; q--) {
      const int64_t i = e % g->batch[q];
      e /= g->batch[q];
      o.a += i * g->a.batch[q] * haian_itemsize(g->a.dtype);
      o.b += i * g->b.batch[q] * haian_itemsize(g->b.dtype);
      o.c += i * g->c.batch[q] * haian_itemsize(g->c.dtype);
      if (o.d) o.d += i * g->d.batch[q] * haian_itemsize(g->d.dtype);
    }
    const int64_t m0 = tile / p->tn * p->mt, n0 = tile % p->tn * p->nt;
    const int64_t m1 = g->m - m0 < p->mt ? g->m : m0 + p->mt, n1 = g->n - n0 < p->nt ? g->n : n0 + p->nt;
    if (m0 >= m1 || n0 >= n1) continue;
    const bool ok = p->how == PACKED ? packed_block(p, &o, m0, m1, n0, n1) : skinny_block(p, &o, n0, n1);
    if (!ok) __atomic_store_n(&p->failed, 1, __ATOMIC_RELAXED);
  }
}

static void swap_operands(haian_gemm *g) { /* C' = B' A' */
  const haian_matrix a = g->a;
  const int64_t m = g->m;
  g->a = g->b;
  g->b = a;
  g->m = g->n;
  g->n = m;
  haian_matrix *each[4] = {&g->a, &g->b, &g->c, &g->d};
  for (int i = 0; i < 4; i++) {
    const int64_t row = each[i]->row;
    each[i]->row = each[i]->col;
    each[i]->col = row;
  }
}

/* tasks along m and n for `threads`: the least of (slowest thread's products + its packing, 16 products an element) */
static void split(plan *p, int64_t batch, int64_t threads) {
  const int64_t m = p->g.m, n = p->g.n;
  const int64_t mr = p->how == PACKED ? p->kind->mr : m, nr = p->how == PACKED ? p->kind->nr : 64;
  p->mt = m;
  p->nt = n;
  const double work = (double)m * (double)n * (double)(p->g.k + 8);
  if (threads > 1 && batch % threads != 0 && work * (double)batch > 32768) {
    double best = INFINITY;
    for (int64_t tm = 1; tm <= threads && (tm - 1) * mr < m; tm++)
      for (int64_t tn = 1; tn <= 2 * threads && (tn - 1) * nr < n; tn++) {
        const int64_t mt = ((m + tm - 1) / tm + mr - 1) / mr * mr, nt = ((n + tn - 1) / tn + nr - 1) / nr * nr;
        const int64_t tasks = batch * ((m + mt - 1) / mt) * ((n + nt - 1) / nt);
        const double rounds = (double)((tasks + threads - 1) / threads);
        const double cost = rounds * ((double)mt * (double)nt + 16.0 * (double)(mt + nt));
        if (cost < best) best = cost, p->mt = mt, p->nt = nt;
      }
  }
  p->tm = (m + p->mt - 1) / p->mt;
  p->tn = (n + p->nt - 1) / p->nt;
}

/* batch axes of one element go; an axis whose B stands still and whose rows of A, C, D follow one another joins m */
static void fold_batch(haian_gemm *g) {
  int kept = 0;
  for (int i = 0; i < g->batch_ndim; i++) {
    if (g->batch[i] == 1) continue;
    haian_matrix *each[4] = {&g->a, &g->b, &g->c, &g->d};
    for (int q = 0; q < 4; q++) each[q]->batch[kept] = each[q]->batch[i];
    g->batch[kept++] = g->batch[i];
  }
  for (; kept > 0; kept--) {
    const int i = kept - 1;
    haian_matrix *rows[3] = {&g->a, &g->c, &g->d};
    if (g->b.batch[i] != 0) break;
    if (g->m != 1 && (g->a.batch[i] != g->a.row * g->m || g->c.batch[i] != g->c.row * g->m ||
                      (g->d.data && g->d.batch[i] != g->d.row * g->m)))
      break;
    for (int q = 0; q < 3 && g->m == 1; q++) rows[q]->row = rows[q]->batch[i];
    g->m *= g->batch[i];
  }
  g->batch_ndim = kept;
}

int32_t HAIAN_SYM(gemm)(const char *op, const haian_gemm *given) {
  plan p = {.g = *given};
  haian_gemm *g = &p.g;
  fold_batch(g);
  int64_t batch = 1;
  for (int i = 0; i < g->batch_ndim; i++) batch *= g->batch[i];
  if (batch == 0 || g->m == 0 || g->n == 0) return HAIAN_OK;
  p.kind = HAIAN_SYM(gemm_kind)(g->a.dtype, g->c.dtype, false);
  if (!p.kind)
    return haian_fail(HAIAN_UNSUPPORTED, "%s: dtype %s; no matrix product for it on the host", op,
                      haian_dtype_name(g->a.dtype));
  const bool is_float = g->a.dtype == HAIAN_F32 || g->a.dtype == HAIAN_F16 || g->a.dtype == HAIAN_BF16;
  p.acc = is_float ? CLASS_F32 : g->a.dtype == HAIAN_F64 ? CLASS_F64 : p.kind->acc_bytes == 8 ? CLASS_U64 : CLASS_U32;
  const bool skinny_type = p.acc == CLASS_F32 || p.acc == CLASS_F64;
  if (skinny_type && g->n <= SKINNY && g->n < g->m) swap_operands(g);
  else if (g->c.col != 1 && g->c.row == 1 && !(skinny_type && g->m <= SKINNY)) swap_operands(g);
  p.how = PACKED;
  if (skinny_type && g->m <= SKINNY && g->k > 0) {
    if (g->b.col == 1 && g->n >= 8) p.how = ROWS_OF_B;
    else if (g->b.row == 1) p.how = COLUMNS_OF_B;
  }
  p.kblocks = g->k <= KC + KC / 2 ? 1 : (g->k + KC - 1) / KC;
  p.kc = ((g->k + p.kblocks - 1) / p.kblocks + 3) & ~(int64_t)3;
  p.plain = g->alpha == 1.0 && !g->d.data;
  p.direct = g->c.col == 1 && p.kind->acc_bytes == haian_itemsize(g->c.dtype) && g->d.data != g->c.data;
  const int64_t threads = haian_num_threads();
  split(&p, batch, threads);
  const double work = (double)p.mt * (double)p.nt * (double)(g->k + 8);
  const int64_t grain = work >= 32768 ? 1 : (int64_t)(32768 / work) + 1;
  haian_parallel_for(batch * p.tm * p.tn, grain, run_tasks, &p);
  if (p.failed) return haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for packed panels; free some", op);
  return HAIAN_OK;
}

void HAIAN_SYM(gemm_packed)(const haian_kind *kind, int64_t m, int64_t n, int64_t groups, const void *a, const void *b,
                            int64_t ldb, int64_t panel_stride, void *c, int64_t ldc, int first) {
  for (int64_t j = 0; j < n; j += kind->nr) {
    const char *panel = (const char *)b + j / kind->nr * panel_stride * kind->group_bytes;
    for (int64_t i = 0, rows; i < m; i += rows) {
      rows = haian_panel_rows(m - i, kind->mr);
      kind->micro[rows - 1](groups, (const char *)a + i * groups * kind->group_bytes, panel, ldb,
                            (char *)c + (i * ldc + j) * kind->acc_bytes, ldc, first);
    }
  }
}
