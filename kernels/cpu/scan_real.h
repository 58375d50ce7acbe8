/* Scans for one type (each_real.h).  Sums: prefixes of one vector by shifts, carried on in WIDE; products and logarithms
 * of sums in WIDE, one by one.  A row is cut into blocks of SCAN_BLOCK whose totals are added in order, so that one
 * thread and many give the same bits. */

typedef struct FN(scan_state) {
  WIDE base, local; /* cumsum: the blocks before, and this block so far */
  WIDE total;       /* cumprod; logcumsumexp: the sum of exp(x - top) */
  double top;
  REAL best; /* cummax, cummin */
  int64_t at;
} FN(scan_state);

ROW_INLINE void FN(scan_begin)(FN(scan_state) * s) {
  memset(s, 0, sizeof *s);
  s->total = 1;
  s->top = -INFINITY;
}

/* Lane i becomes the sum of lanes 0..i. */
ROW_INLINE FN(sums) FN(prefix)(FN(sums) v) {
  const FN(sums) zero = {0};
#pragma GCC unroll 4
  for (int w = 1; w < LANES; w *= 2) v += __builtin_shuffle(v, zero, (IOTA - w) & (2 * LANES - 1));
  return v;
}

/* y[i] = base + local + p[0] + ... + p[i] (unless y is NULL), and local grows by the sum. */
ROW_INLINE void FN(sum_run)(const REAL *p, REAL *y, int64_t n, WIDE base, WIDE *local) {
  WIDE carry = *local;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    FN(sums) v = FN(prefix)((FN(sums))VEC(p + i));
    if (y) *(FN(vec) *)(y + i) = (FN(vec))(v + (ACC)(base + carry));
    carry += (WIDE)v[LANES - 1];
  }
  ACC tail = 0, before = (ACC)(base + carry);
  for (; i < n; i++) {
    tail += (ACC)p[i];
    if (y) y[i] = (REAL)(tail + before);
  }
  *local = carry + (WIDE)tail;
}

ROW_INLINE void FN(product_run)(const REAL *p, REAL *y, int64_t n, WIDE *total) {
  WIDE t = *total;
  int64_t i = 0;
#if REAL_IS_FLOAT || REAL_IS_INT
  for (; i + 4 <= n; i += 4) { /* four floats have a product within double: one step of the chain for all */
    WIDE two = (WIDE)p[i] * (WIDE)p[i + 1], three = two * (WIDE)p[i + 2];
    WIDE four = two * ((WIDE)p[i + 2] * (WIDE)p[i + 3]);
    y[i] = (REAL)(t * (WIDE)p[i]);
    y[i + 1] = (REAL)(t * two);
    y[i + 2] = (REAL)(t * three);
    y[i + 3] = (REAL)(t *= four);
  }
#endif
  for (; i < n; i++) y[i] = (REAL)(t *= (WIDE)p[i]);
  *total = t;
}

/* Of equals the last one counts, and a NaN wins for good. */
ROW_INLINE void FN(extreme_run)(bool smallest, const REAL *p, REAL *y, int64_t *w, int64_t n, int64_t first,
                                FN(scan_state) * s) {
  REAL best = first ? s->best : p[0];
  int64_t at = first ? s->at : 0, i = 0;
  for (; i < n && !REAL_IS_NAN(best); i++) {
    if (!(smallest ? p[i] > best : p[i] < best)) {
      best = p[i];
      at = first + i;
    }
    y[i] = best;
    w[i] = at;
  }
  for (; i < n; i++) {
    at = REAL_IS_NAN(p[i]) ? first + i : at;
    y[i] = best;
    w[i] = at;
  }
  s->best = best;
  s->at = at;
}

#if !REAL_IS_INT
/* One step of log(sum of exp): the sum is kept relative to the largest value so far. */
ROW_INLINE double FN(log_step)(double x, double *top, double *total) {
  bool above = x > *top;
  double high = above ? x : *top, low = above ? *top : x;
  double e = haian_exp(high == low ? 0.0 : low - high); /* two infinities of one sign have no difference */
  *total = above ? *total * e + 1.0 : *total + e;
  *top = high;
  return high + haian_log(*total);
}
#endif

ROW_INLINE void FN(scan_run)(const scan_job *job, const REAL *p, REAL *y, int64_t *w, int64_t n, int64_t at,
                             FN(scan_state) * s) {
  switch (job->op) {
    case CUMSUM:
      FN(sum_run)(p, y, n, s->base, &s->local);
      break;
    case CUMPROD:
      FN(product_run)(p, y, n, &s->total);
      break;
    case CUMMAX:
      FN(extreme_run)(false, p, y, w, n, at, s);
      break;
    case CUMMIN:
      FN(extreme_run)(true, p, y, w, n, at, s);
      break;
    default:
#if !REAL_IS_INT
    {
      double total = at ? (double)s->total : 0.0;
      for (int64_t i = 0; i < n; i++) y[i] = (REAL)FN(log_step)((double)p[i], &s->top, &total);
      s->total = total;
    }
#endif
    break;
  }
}

/* Positions [lo, hi) of the row at x. */
static void FN(scan_part)(const scan_job *job, const char *x, char *y, int64_t *w, int64_t lo, int64_t hi,
                          FN(scan_state) * s) {
  REAL in[ROW_CHUNK] __attribute__((aligned(64))), out[ROW_CHUNK] __attribute__((aligned(64)));
  int64_t places[ROW_CHUNK];
  bool indexed = job->op == CUMMAX || job->op == CUMMIN;
  for (int64_t c = lo; c < hi; c += ROW_CHUNK) {
    int64_t n = hi - c < ROW_CHUNK ? hi - c : ROW_CHUNK;
    const REAL *p = FN(fetch)(&job->x, x, c, n, in);
    REAL *run = FN(target)(&job->y, y, c, out, job->stream);
    int64_t *where = indexed && job->w.stride[0] == 1 ? w + c : places;
    FN(scan_run)(job, p, run, where, n, c, s);
    FN(put)(&job->y, y, c, n, run, job->stream);
    if (indexed && where == places)
      for (int64_t i = 0; i < n; i++) w[(c + i) * job->w.stride[0]] = places[i];
  }
}

static void FN(scan_row)(const scan_job *job, const char *x, char *y, int64_t *w) {
  FN(scan_state) s;
  FN(scan_begin)(&s);
  for (int64_t lo = 0; lo < job->n; lo += SCAN_BLOCK) {
    FN(scan_part)(job, x, y, w, lo, job->n - lo < SCAN_BLOCK ? job->n : lo + SCAN_BLOCK, &s);
    s.base += s.local;
    s.local = 0;
  }
}

static void FN(scan_rows)(void *ctx, int64_t lo, int64_t hi) {
  const scan_job *job = ctx;
  const haian_walk *walk = &job->walk;
  haian_place at;
  haian_place_seek(&at, walk, walk->ndim, lo);
  for (int64_t row = lo; row < hi; row++) {
    FN(scan_row)(job, job->x_data + at.offset[0] * job->x.item, job->y_data + at.offset[1] * job->y.item,
                 job->w_data ? job->w_data + at.offset[2] : NULL);
    if (row + 1 < hi) haian_place_next(&at, walk, walk->ndim);
  }
  if (job->stream) haian_stream_fence();
}

/* ---- one long row for several threads: the totals of its blocks first -------------------------------------------- */
typedef struct FN(scan_blocks) {
  const scan_job *job;
  const char *x;
  char *y;
  WIDE *base;
} FN(scan_blocks);

static void FN(scan_totals)(void *ctx, int64_t lo, int64_t hi) {
  const FN(scan_blocks) *b = ctx;
  REAL in[ROW_CHUNK] __attribute__((aligned(64)));
  for (int64_t k = lo; k < hi; k++) {
    int64_t begin = k * SCAN_BLOCK, end = b->job->n - begin < SCAN_BLOCK ? b->job->n : begin + SCAN_BLOCK;
    WIDE local = 0;
    for (int64_t c = begin; c < end; c += ROW_CHUNK) {
      int64_t n = end - c < ROW_CHUNK ? end - c : ROW_CHUNK;
      FN(sum_run)(FN(fetch)(&b->job->x, b->x, c, n, in), NULL, n, 0, &local);
    }
    b->base[k] = local;
  }
}

static void FN(scan_from_totals)(void *ctx, int64_t lo, int64_t hi) {
  const FN(scan_blocks) *b = ctx;
  for (int64_t k = lo; k < hi; k++) {
    int64_t begin = k * SCAN_BLOCK, end = b->job->n - begin < SCAN_BLOCK ? b->job->n : begin + SCAN_BLOCK;
    FN(scan_state) s;
    FN(scan_begin)(&s);
    s.base = b->base[k];
    FN(scan_part)(b->job, b->x, b->y, NULL, begin, end, &s);
  }
  if (b->job->stream) haian_stream_fence();
}

/* False: no memory for the totals, nothing done. */
static bool FN(scan_long)(const scan_job *job, const char *x, char *y) {
  int64_t blocks = (job->n + SCAN_BLOCK - 1) / SCAN_BLOCK;
  FN(scan_blocks) b = {job, x, y, malloc(sizeof(WIDE) * (size_t)blocks)};
  if (!b.base) return false;
  haian_parallel_for(blocks, 1, FN(scan_totals), &b);
  WIDE base = 0;
  for (int64_t k = 0; k < blocks; k++) {
    WIDE local = b.base[k];
    b.base[k] = base;
    base += local;
  }
  haian_parallel_for(blocks, 1, FN(scan_from_totals), &b);
  free(b.base);
  return true;
}

/* ---- columns: up to SCAN_WIDTH rows that lie side by side --------------------------------------------------------- */
static void FN(scan_columns)(void *ctx, int64_t lo, int64_t hi) {
  const scan_job *job = ctx;
  const haian_walk *walk = &job->walk;
  int last = walk->ndim - 1;
  int64_t size = walk->shape[last], strips = (size + SCAN_WIDTH - 1) / SCAN_WIDTH;
  bool indexed = job->op == CUMMAX || job->op == CUMMIN, smallest = job->op == CUMMIN;
  REAL in[SCAN_WIDTH] __attribute__((aligned(64))), out[SCAN_WIDTH] __attribute__((aligned(64))), best[SCAN_WIDTH];
  WIDE total[SCAN_WIDTH] __attribute__((aligned(64)));
  int64_t place[SCAN_WIDTH];
#if !REAL_IS_INT
  double top[SCAN_WIDTH];
#endif
  for (int64_t task = lo; task < hi; task++) {
    haian_place at;
    haian_place_seek(&at, walk, last, task / strips);
    int64_t begin = task % strips * SCAN_WIDTH, m = size - begin < SCAN_WIDTH ? size - begin : SCAN_WIDTH;
    const char *x = job->x_data + (at.offset[0] + begin) * job->x.item;
    char *y = job->y_data + (at.offset[1] + begin * walk->stride[last][1]) * job->y.item;
    int64_t *w = indexed ? job->w_data + at.offset[2] + begin * walk->stride[last][2] : NULL;
    for (int64_t j = 0; j < m; j++) {
      total[j] = job->op == CUMPROD;
#if !REAL_IS_INT
      top[j] = -INFINITY;
#endif
    }
    for (int64_t i = 0; i < job->n; i++) {
      const REAL *p = (const REAL *)x;
      const char *next =
          x + job->x.stride[0] * job->x.item; /* asked for early: rows lie pages apart, which is worth 1.6x */
      for (int64_t b = 0; b < m * job->x.item; b += 64) __builtin_prefetch(next + b);
      if (job->x.dtype != REAL_DTYPE) {
        FN(load)(job->x.dtype, x, 1, m, in);
        p = in;
      }
      bool direct = walk->stride[last][1] == 1 && job->y.dtype == REAL_DTYPE && !job->stream;
      REAL *restrict q = direct ? (REAL *)y : out;
      const REAL *made = q;
      if (job->op == CUMSUM) {
        for (int64_t j = 0; j < m; j++) q[j] = (REAL)(total[j] += (WIDE)p[j]);
      } else if (job->op == CUMPROD) {
        for (int64_t j = 0; j < m; j++) q[j] = (REAL)(total[j] *= (WIDE)p[j]);
      } else if (indexed) {
        if (i == 0) memcpy(best, p, sizeof(REAL) * (size_t)m);
        for (int64_t j = 0; j < m; j++) {
          bool keep = smallest ? p[j] > best[j] : p[j] < best[j];
          keep |= REAL_IS_NAN(best[j]) & !REAL_IS_NAN(p[j]);
          best[j] = keep ? best[j] : p[j];
          place[j] = keep ? place[j] : i;
        }
        made = best;
        int64_t step = walk->stride[last][2];
        for (int64_t j = 0; j < m; j++) w[j * step] = place[j];
        w += job->w.stride[0];
      }
#if !REAL_IS_INT
      else
        for (int64_t j = 0; j < m; j++) q[j] = (REAL)FN(log_step)((double)p[j], &top[j], &total[j]);
#endif
      if (made != (const REAL *)y)
        FN(store)(job->y.dtype, y, walk->stride[last][1], m, made, job->stream && walk->stride[last][1] == 1);
      x += job->x.stride[0] * job->x.item;
      y += job->y.stride[0] * job->y.item;
    }
  }
  if (job->stream) haian_stream_fence();
}

static void FN(scan)(const scan_job *job) {
  const haian_walk *walk = &job->walk;
  int64_t rows = haian_walk_rows(walk, walk->ndim), bytes = job->x.item + job->y.item + (job->w_data ? 8 : 0);
  void *ctx = (void *)(uintptr_t)job;
  if (job->columns) {
    int64_t size = walk->shape[walk->ndim - 1], width = size < SCAN_WIDTH ? size : SCAN_WIDTH;
    haian_parallel_for(rows / size * ((size + SCAN_WIDTH - 1) / SCAN_WIDTH), row_grain(job->n * width, bytes),
                       FN(scan_columns), ctx);
    return;
  }
  if (job->op == CUMSUM && rows < haian_num_threads() && job->n > 2 * SCAN_BLOCK) {
    haian_place at;
    haian_place_seek(&at, walk, walk->ndim, 0);
    for (int64_t row = 0; row < rows; row++) {
      const char *x = job->x_data + at.offset[0] * job->x.item;
      char *y = job->y_data + at.offset[1] * job->y.item;
      if (!FN(scan_long)(job, x, y)) FN(scan_row)(job, x, y, NULL);
      if (row + 1 < rows) haian_place_next(&at, walk, walk->ndim);
    }
    return;
  }
  haian_parallel_for(rows, row_grain(job->n, bytes), FN(scan_rows), ctx);
}
