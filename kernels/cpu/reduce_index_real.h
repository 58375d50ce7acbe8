/* argmax and argmin for one type (each_real.h): the largest value of each block first, at the speed of amax, then its
 * position in the one block that holds it.  NaN wins, the first of equals wins; -0 equals 0. */

typedef struct FN(found) {
  REAL value;
  int64_t at; /* -1: nothing yet */
} FN(found);

ROW_INLINE bool FN(better)(bool smallest, REAL v, REAL best) {
  return ((smallest ? v < best : v > best) | REAL_IS_NAN(v)) & !REAL_IS_NAN(best);
}

/* First position among n of the value best or, where best is NaN, of a NaN. */
ROW_INLINE int64_t FN(first)(const REAL *p, int64_t n, REAL best) {
#define HIT(v) (((v) == best) | (REAL_IS_NAN(v) & REAL_IS_NAN(best)))
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    REAL_INT hits = 0;
    for (int k = 0; k < 64; k++) hits += HIT(p[i + k]);
    if (hits) break;
  }
  for (; i < n; i++)
    if (HIT(p[i])) return i;
  return 0;
#undef HIT
}

/* Positions [lo, hi) of the row at x. */
static void FN(search)(const index_job *job, const char *x, int64_t lo, int64_t hi, FN(found) * out) {
  REAL buf[INDEX_CHUNK] __attribute__((aligned(64)));
  int64_t block = -1;
  REAL best = 0;
  for (int64_t at = lo; at < hi; at += INDEX_CHUNK) {
    int64_t n = hi - at < INDEX_CHUNK ? hi - at : INDEX_CHUNK;
    const REAL *p = FN(fetch)(&job->row, x, at, n, buf);
    REAL v = job->smallest ? FN(smallest)(p, n) : FN(largest)(p, n);
    if (block >= 0 && !FN(better)(job->smallest, v, best)) continue;
    best = v;
    block = at;
    if (REAL_IS_NAN(best)) break;
  }
  int64_t n = hi - block < INDEX_CHUNK ? hi - block : INDEX_CHUNK;
  out->value = best;
  out->at = block + FN(first)(FN(fetch)(&job->row, x, block, n, buf), n, best);
}

typedef struct FN(index_blocks) {
  const index_job *job;
  const char *x;
  FN(found) part[INDEX_BLOCKS];
} FN(index_blocks);

static void FN(search_blocks)(void *ctx, int64_t lo, int64_t hi) {
  FN(index_blocks) *b = ctx;
  for (int64_t i = lo; i < hi; i++) {
    int64_t end = (i + 1) * b->job->block;
    FN(search)(b->job, b->x, i * b->job->block, end < b->job->n ? end : b->job->n, &b->part[i]);
  }
}

static __attribute__((noinline)) int64_t FN(search_long)(const index_job *job, const char *x, bool parallel) {
  FN(index_blocks) b;
  b.job = job;
  b.x = x;
  int64_t blocks = (job->n + job->block - 1) / job->block;
  b.part[0].at = -1;
  if (parallel) haian_parallel_for(blocks, 1, FN(search_blocks), &b);
  else FN(search_blocks)(&b, 0, blocks);
  FN(found) best = b.part[0];
  for (int64_t i = 1; i < blocks; i++)
    if (FN(better)(job->smallest, b.part[i].value, best.value)) best = b.part[i];
  return best.at;
}

ROW_INLINE int64_t FN(index_row)(const index_job *job, const char *x, bool parallel) {
  if (job->n > job->block) return FN(search_long)(job, x, parallel);
  FN(found) f;
  FN(search)(job, x, 0, job->n, &f);
  return f.at;
}

/* One result of a row: where, and what if that is asked for. */
ROW_INLINE void FN(index_one)(const index_job *job, const haian_place *at, bool parallel) {
  const char *x = job->x + at->offset[0] * job->row.item;
  int64_t found = FN(index_row)(job, x, parallel);
  job->y[at->offset[1]] = found;
  if (job->values) index_take(job, x, found, at->offset[2]);
}

static void FN(index_rows)(void *ctx, int64_t lo, int64_t hi) {
  const index_job *job = ctx;
  const haian_walk *w = &job->kept;
  haian_place at;
  haian_place_seek(&at, w, w->ndim, lo);
  for (int64_t row = lo; row < hi; row++) {
    FN(index_one)(job, &at, false);
    if (row + 1 < hi) haian_place_next(&at, w, w->ndim);
  }
}

/* Columns: up to INDEX_WIDTH results along the last kept axis at once, the reduced axis being a single one. */
static void FN(index_strips)(void *ctx, int64_t lo, int64_t hi) {
#if REAL_IS_FLOAT
  typedef int32_t
      position; /* as wide as REAL, so that the loop vectorises; reduce_index.c sends longer axes elsewhere */
#else
  typedef int64_t position;
#endif
  const index_job *job = ctx;
  const haian_walk *w = &job->kept;
  int last = w->ndim - 1;
  int64_t size = w->shape[last], strips = (size + INDEX_WIDTH - 1) / INDEX_WIDTH, side = w->stride[last][0];
  REAL buf[INDEX_WIDTH], best[INDEX_WIDTH];
  position where[INDEX_WIDTH];
  for (int64_t task = lo; task < hi; task++) {
    haian_place at;
    haian_place_seek(&at, w, last, task / strips);
    int64_t begin = task % strips * INDEX_WIDTH, n = size - begin < INDEX_WIDTH ? size - begin : INDEX_WIDTH;
    const char *x = job->x + (at.offset[0] + begin * side) * job->row.item, *first = x;
    int64_t *y = job->y + at.offset[1] + begin * w->stride[last][1];
    for (int64_t i = 0; i < job->n; i++, x += job->row.stride[0] * job->row.item) {
      const REAL *p = (const REAL *)x;
      if (side != 1 || job->row.dtype != REAL_DTYPE) {
        FN(load)(job->row.dtype, x, side, n, buf);
        p = buf;
      }
      if (i == 0) {
        memcpy(best, p, sizeof(REAL) * (size_t)n);
        memset(where, 0, sizeof where);
      } else if (job->smallest) {
        for (int64_t j = 0; j < n; j++) {
          bool take = FN(better)(true, p[j], best[j]);
          best[j] = take ? p[j] : best[j];
          where[j] = take ? (position)i : where[j];
        }
      } else {
        for (int64_t j = 0; j < n; j++) {
          bool take = FN(better)(false, p[j], best[j]);
          best[j] = take ? p[j] : best[j];
          where[j] = take ? (position)i : where[j];
        }
      }
    }
    for (int64_t j = 0; j < n; j++) y[j * w->stride[last][1]] = where[j];
    for (int64_t j = 0; j < n && job->values; j++)
      index_take(job, first + j * side * job->row.item, where[j], at.offset[2] + (begin + j) * w->stride[last][2]);
  }
}

static int32_t FN(index)(const index_job *job) {
  const haian_walk *w = &job->kept;
  int64_t results = haian_walk_rows(w, w->ndim), bytes = job->n * job->row.item;
  if (job->columns) {
    int64_t size = w->shape[w->ndim - 1], width = size < INDEX_WIDTH ? size : INDEX_WIDTH;
    haian_parallel_for(results / size * ((size + INDEX_WIDTH - 1) / INDEX_WIDTH), row_grain(width, bytes),
                       FN(index_strips), (void *)(uintptr_t)job);
  } else if (results < INDEX_BLOCKS / 4 && job->n > job->block) {
    haian_place at;
    haian_place_seek(&at, w, w->ndim, 0);
    for (int64_t i = 0; i < results; i++) {
      FN(index_one)(job, &at, true);
      if (i + 1 < results) haian_place_next(&at, w, w->ndim);
    }
  } else {
    haian_parallel_for(results, row_grain(1, bytes), FN(index_rows), (void *)(uintptr_t)job);
  }
  return HAIAN_OK;
}
