/* Layer and RMS normalisation and their gradients for one type (each_real.h).
 * Mean and variance take two passes over a row that lies in L1 or L2; the second corrects what rounding the mean left.
 */

typedef struct FN(norm_buffers) {
  REAL *x, *w, *b, *y; /* job->room values each; y: NORM_RUN */
} FN(norm_buffers);

/* y = (x - shift) r + c, times w, plus b, over one run. */
ROW_INLINE void FN(affine)(REAL *y, const REAL *x, const REAL *w, const REAL *b, REAL shift, REAL r, REAL c,
                           int64_t n) {
  if (w && b) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = ((x[i] - shift) * r + c) * w[i] + b[i];
  } else if (w) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = ((x[i] - shift) * r + c) * w[i];
  } else if (b) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = ((x[i] - shift) * r + c) + b[i];
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - shift) * r + c;
  }
}

ROW_INLINE void FN(scale)(REAL *y, const REAL *x, const REAL *w, REAL r, int64_t n) {
  if (w) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * r * w[i];
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * r;
  }
}

/* One row: its statistics, then the result in runs of NORM_RUN.  A row of at most `room` values is converted once. */
ROW_INLINE void FN(norm_row)(const norm_job *job, const char *x, char *y, char *mean_at, char *rstd_at, const REAL *w,
                             const REAL *b, const FN(norm_buffers) * buf, int64_t room) {
  int64_t n = job->n;
  bool once = n <= room;
  const REAL *p = once ? FN(fetch)(&job->x, x, 0, n, buf->x) : NULL;
  WIDE sum = 0, squares = 0;
  REAL shift = 0, c = 0;
  if (job->layer) {
    for (int64_t at = 0; at < n; at += room) {
      int64_t m = n - at < room ? n - at : room;
      sum += FN(sum)(once ? p : FN(fetch)(&job->x, x, at, m, buf->x), m);
    }
    WIDE mean = sum / (WIDE)n, first = 0;
    shift = (REAL)mean;
    for (int64_t at = 0; at < n; at += room) {
      int64_t m = n - at < room ? n - at : room;
      FN(moments)(once ? p : FN(fetch)(&job->x, x, at, m, buf->x), shift, m, &first, &squares);
    }
    first /= (WIDE)n;
    squares = squares / (WIDE)n - first * first;
    squares = squares < 0 ? 0 : squares;
    if (mean_at) FN(store_one)(job->mean->dtype, mean_at, (REAL)((WIDE)shift + first));
    c = (REAL)first;
  } else {
    for (int64_t at = 0; at < n; at += room) {
      int64_t m = n - at < room ? n - at : room;
      const REAL *q = once ? p : FN(fetch)(&job->x, x, at, m, buf->x);
      squares += FN(dot)(q, q, m);
    }
    squares /= (WIDE)n;
  }
  WIDE rstd = 1 / sqrt(squares + job->eps);
  REAL r = (REAL)rstd;
  if (rstd_at) FN(store_one)(job->rstd->dtype, rstd_at, r);
  c = (REAL)(-(WIDE)c * rstd);
  for (int64_t at = 0; at < n; at += NORM_RUN) {
    int64_t m = n - at < NORM_RUN ? n - at : NORM_RUN;
    const REAL *q = once ? p + at : FN(fetch)(&job->x, x, at, m, buf->x);
    const REAL *v = !job->w_data ? NULL : once ? w + at : FN(fetch)(&job->w, job->w_data, at, m, buf->w);
    const REAL *u = !job->b_data ? NULL : once ? b + at : FN(fetch)(&job->b, job->b_data, at, m, buf->b);
    REAL *t = FN(target)(&job->y, y, at, buf->y, job->stream);
    if (job->ahead) /* the row that comes next: arithmetic hides the memory */
      for (int64_t i = 0; i < m; i += 64 / (int64_t)sizeof(REAL)) __builtin_prefetch(q + i + n);
    if (job->layer) FN(affine)(t, q, v, u, shift, r, c, m);
    else FN(scale)(t, q, v, r, m);
    FN(put)(&job->y, y, at, m, t, job->stream);
  }
}

ROW_INLINE void FN(norm_rows)(const norm_job *job, int64_t lo, int64_t hi, const FN(norm_buffers) * buf, int64_t room) {
  const haian_walk *w = &job->walk, *s = &job->stats;
  haian_place at, stat;
  haian_place_seek(&at, w, w->ndim, lo);
  haian_place_seek(&stat, s, s->ndim, lo);
  const REAL *weight = NULL, *bias = NULL;
  if (job->n <= room) {
    if (job->w_data) weight = FN(fetch)(&job->w, job->w_data, 0, job->n, buf->w);
    if (job->b_data) bias = FN(fetch)(&job->b, job->b_data, 0, job->n, buf->b);
  }
  for (int64_t row = lo; row < hi; row++) {
    char *mean_at = job->mean ? job->stat_data[0] + stat.offset[0] * row_item(job->mean->dtype) : NULL;
    char *rstd_at = job->rstd ? job->stat_data[1] + stat.offset[1] * row_item(job->rstd->dtype) : NULL;
    FN(norm_row)(job, job->x_data + at.offset[0] * job->x.item, job->y_data + at.offset[1] * job->y.item, mean_at,
                 rstd_at, weight, bias, buf, room);
    if (row + 1 == hi) break;
    haian_place_next(&at, w, w->ndim);
    if (job->rstd) haian_place_next(&stat, s, s->ndim);
  }
  if (job->stream) haian_stream_fence();
}

static void FN(norm_long)(void *ctx, int64_t lo, int64_t hi) {
  REAL x[NORM_ROOM], w[NORM_ROOM], b[NORM_ROOM], y[NORM_RUN];
  FN(norm_buffers) buf = {x, w, b, y};
  FN(norm_rows)(ctx, lo, hi, &buf, NORM_ROOM);
}

static __attribute__((noinline)) void FN(norm_short)(void *ctx, int64_t lo, int64_t hi) {
  REAL x[ROW_SHORT], w[ROW_SHORT], b[ROW_SHORT], y[ROW_SHORT];
  FN(norm_buffers) buf = {x, w, b, y};
  FN(norm_rows)(ctx, lo, hi, &buf, ROW_SHORT);
}

/* ---- gradients ----------------------------------------------------------------------------------------------------
 */
/* With g = dy w and h = (x - mean) rstd:  dx = rstd (g - mean(g) - h mean(g h)), dweight = sum over rows of dy h,
 * dbias = sum over rows of dy; RMS has no mean: neither mean(g) nor dbias.  Rows are taken GRAD_ROWS at a time; within
 * a block of rows dweight and dbias gather in WIDE, one array a block, and the blocks are added in order. */
typedef struct FN(grad_scratch) {
  REAL dy[NORM_RUN], x[NORM_RUN], w[NORM_RUN], g[NORM_RUN], h[NORM_RUN], dx[NORM_RUN], dw[NORM_RUN], db[NORM_RUN];
} FN(grad_scratch);

static void FN(grad_group)(const grad_job *job, int64_t lo, int64_t hi, WIDE *dw, WIDE *db, FN(grad_scratch) * s) {
  const char *dy[GRAD_ROWS], *x[GRAD_ROWS];
  char *dx[GRAD_ROWS];
  REAL mean[GRAD_ROWS], rstd[GRAD_ROWS], first[GRAD_ROWS], second[GRAD_ROWS];
  int rows = (int)(hi - lo);
  int64_t n = job->n;
  haian_place at, stat;
  haian_place_seek(&at, &job->walk, job->walk.ndim, lo);
  haian_place_seek(&stat, &job->stats, job->stats.ndim, lo);
  for (int k = 0; k < rows; k++) {
    dy[k] = job->dy_data + at.offset[0] * job->dy.item;
    x[k] = job->x_data + at.offset[1] * job->x.item;
    dx[k] = job->dx_data + at.offset[2] * job->dx.item;
    mean[k] = job->layer ? FN(load_one)(job->mean->dtype,
                                        (char *)job->mean->data + stat.offset[0] * row_item(job->mean->dtype))
                         : 0;
    rstd[k] = FN(load_one)(job->rstd->dtype, (char *)job->rstd->data + stat.offset[1] * row_item(job->rstd->dtype));
    if (k + 1 < rows) {
      haian_place_next(&at, &job->walk, job->walk.ndim);
      haian_place_next(&stat, &job->stats, job->stats.ndim);
    }
  }
  for (int k = 0; k < rows; k++) {
    WIDE sum_g = 0, sum_gh = 0;
    for (int64_t c = 0; c < n; c += NORM_RUN) {
      int64_t m = n - c < NORM_RUN ? n - c : NORM_RUN;
      const REAL *d = FN(fetch)(&job->dy, dy[k], c, m, s->dy), *v = FN(fetch)(&job->x, x[k], c, m, s->x);
      const REAL *w = job->w_data ? FN(fetch)(&job->w, job->w_data, c, m, s->w) : NULL;
      REAL shift = mean[k], r = rstd[k];
      if (w) {
#pragma GCC ivdep
        for (int64_t i = 0; i < m; i++) s->g[i] = d[i] * w[i];
        d = s->g;
      }
#pragma GCC ivdep
      for (int64_t i = 0; i < m; i++) s->h[i] = (v[i] - shift) * r;
      if (job->layer) sum_g += FN(sum)(d, m);
      sum_gh += FN(dot)(d, s->h, m);
    }
    first[k] = (REAL)(sum_g / (WIDE)n);
    second[k] = (REAL)(sum_gh / (WIDE)n);
  }
  for (int64_t c = 0; c < n; c += NORM_RUN) {
    int64_t m = n - c < NORM_RUN ? n - c : NORM_RUN;
    const REAL *w = job->w_data ? FN(fetch)(&job->w, job->w_data, c, m, s->w) : NULL;
    memset(s->dw, 0, sizeof(REAL) * (size_t)m);
    memset(s->db, 0, sizeof(REAL) * (size_t)m);
    for (int k = 0; k < rows; k++) {
      const REAL *d = FN(fetch)(&job->dy, dy[k], c, m, s->dy), *v = FN(fetch)(&job->x, x[k], c, m, s->x);
      REAL *t = FN(target)(&job->dx, dx[k], c, s->dx, job->stream), shift = mean[k], r = rstd[k], a = first[k],
           b = second[k];
      if (w) {
#pragma GCC ivdep
        for (int64_t i = 0; i < m; i++) {
          REAL h = (v[i] - shift) * r;
          t[i] = r * ((d[i] * w[i] - a) - h * b);
          s->dw[i] += d[i] * h;
          s->db[i] += d[i];
        }
      } else {
#pragma GCC ivdep
        for (int64_t i = 0; i < m; i++) {
          REAL h = (v[i] - shift) * r;
          t[i] = r * ((d[i] - a) - h * b);
          s->dw[i] += d[i] * h;
          s->db[i] += d[i];
        }
      }
      FN(put)(&job->dx, dx[k], c, m, t, job->stream);
    }
#pragma GCC ivdep
    for (int64_t i = 0; i < m; i++) dw[c + i] += s->dw[i];
    if (job->layer) {
#pragma GCC ivdep
      for (int64_t i = 0; i < m; i++) db[c + i] += s->db[i];
    }
  }
}

static void FN(grad_blocks)(void *ctx, int64_t lo, int64_t hi) {
  const grad_job *job = ctx;
  FN(grad_scratch) s;
  for (int64_t block = lo; block < hi; block++) {
    WIDE *dw = job->partial + block * job->sums * job->n, *db = dw + (job->sums - 1) * job->n;
    int64_t end = (block + 1) * job->block < job->rows ? (block + 1) * job->block : job->rows;
    memset(dw, 0, sizeof(WIDE) * (size_t)(job->sums * job->n));
    for (int64_t row = block * job->block; row < end; row += GRAD_ROWS)
      FN(grad_group)(job, row, row + GRAD_ROWS < end ? row + GRAD_ROWS : end, dw, db, &s);
  }
  if (job->stream) haian_stream_fence();
}

/* Positions [lo, hi) of dweight and dbias. */
static void FN(grad_sums)(void *ctx, int64_t lo, int64_t hi) {
  const grad_job *job = ctx;
  REAL run[NORM_RUN];
  for (int64_t at = lo; at < hi; at += NORM_RUN) {
    int64_t m = hi - at < NORM_RUN ? hi - at : NORM_RUN;
    for (int which = 0; which < job->sums; which++) {
      for (int64_t i = 0; i < m; i++) {
        WIDE sum = 0;
        for (int64_t block = 0; block < job->blocks; block++)
          sum += job->partial[(block * job->sums + which) * job->n + at + i];
        run[i] = (REAL)sum;
      }
      FN(put)(which ? &job->db : &job->dw, which ? job->db_data : job->dw_data, at, m, run, false);
    }
  }
}
