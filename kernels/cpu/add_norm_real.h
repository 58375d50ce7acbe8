/* Normalised sums for one type (each_real.h): a row is added up once into memory that stays in the caches, written as the
 * second result from there, and normalised. */
static void FN(sum_row)(const sum_job *job, const char *x, const char *skip, char *y, char *sum, REAL *row,
                        const REAL *const weights[2]) {
  REAL run[2][SUM_RUN] __attribute__((aligned(64)));
  int64_t n = job->n;
  WIDE total = 0, squares = 0, first = 0;
  for (int64_t at = 0; at < n; at += SUM_RUN) {
    int64_t m = n - at < SUM_RUN ? n - at : SUM_RUN;
    const REAL *p = FN(fetch)(&job->x, x, at, m, run[0]), *q = FN(fetch)(&job->skip, skip, at, m, run[1]);
    REAL *s = row + at;
#pragma GCC ivdep
    for (int64_t i = 0; i < m; i++) s[i] = p[i] + q[i];
    if (job->extra_data) {
      const REAL *e = FN(fetch)(&job->extra, job->extra_data, at, m, run[0]);
      for (int64_t i = 0; i < m; i++) s[i] += e[i];
    }
    FN(put)(&job->sum, sum, at, m, s, job->stream);
    if (job->layer) total += FN(sum_chunk)(s, m);
    else squares += FN(dot)(s, s, m);
  }
  REAL shift = job->layer ? (REAL)(total / (WIDE)n) : 0;
  if (job->layer) {
    FN(moments)(row, shift, n, &first, &squares);
    first /= (WIDE)n;
  }
  squares = squares / (WIDE)n - first * first; /* what rounding the mean left comes off */
  squares = squares < 0 ? 0 : squares;
  WIDE rstd = 1 / sqrt(squares + job->eps);
  REAL r = (REAL)rstd, c = (REAL)(-first * rstd);
  for (int64_t at = 0; at < n; at += SUM_RUN) {
    int64_t m = n - at < SUM_RUN ? n - at : SUM_RUN;
    REAL *t = FN(target)(&job->y, y, at, run[0], job->stream);
    const REAL *s = row + at, *w = weights[0] ? weights[0] + at : NULL, *b = weights[1] ? weights[1] + at : NULL;
    if (w && b) {
#pragma GCC ivdep
      for (int64_t i = 0; i < m; i++) t[i] = ((s[i] - shift) * r + c) * w[i] + b[i];
    } else if (w) {
#pragma GCC ivdep
      for (int64_t i = 0; i < m; i++) t[i] = ((s[i] - shift) * r + c) * w[i];
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < m; i++) t[i] = ((s[i] - shift) * r + c) + (b ? b[i] : 0);
    }
    FN(put)(&job->y, y, at, m, t, job->stream);
  }
}

static void FN(sum_rows)(void *ctx, int64_t lo, int64_t hi) {
  sum_job *job = ctx;
  REAL small[3][SUM_ROOM], *row[3] = {small[0], small[1], small[2]};
  const REAL *weights[2] = {NULL, NULL};
  if (job->n > SUM_ROOM) { /* three rows side by side */
    size_t each = ((size_t)job->n + 15) & ~(size_t)15;
    REAL *memory = HAIAN_SYM(workspace)(1, 3 * each * sizeof(REAL));
    if (!memory) {
      atomic_store(&job->failed, true);
      return;
    }
    for (int k = 0; k < 3; k++) row[k] = memory + (size_t)k * each;
  }
  for (int64_t at = 0; at < job->n; at += SUM_RUN) { /* weights once for all rows */
    int64_t m = job->n - at < SUM_RUN ? job->n - at : SUM_RUN;
    const REAL *v;
    if (job->w_data && (v = FN(fetch)(&job->w, job->w_data, at, m, row[1] + at)) != row[1] + at)
      memcpy(row[1] + at, v, (size_t)m * sizeof(REAL));
    if (job->b_data && (v = FN(fetch)(&job->b, job->b_data, at, m, row[2] + at)) != row[2] + at)
      memcpy(row[2] + at, v, (size_t)m * sizeof(REAL));
  }
  if (job->w_data) weights[0] = row[1];
  if (job->b_data) weights[1] = row[2];
  haian_place in, out;
  haian_place_seek(&in, &job->in, job->in.ndim, lo);
  haian_place_seek(&out, &job->out, job->out.ndim, lo);
  for (int64_t i = lo; i < hi; i++) {
    FN(sum_row)(job, job->x_data + in.offset[0] * job->x.item, job->skip_data + in.offset[1] * job->skip.item,
                job->y_data + out.offset[0] * job->y.item, job->sum_data + out.offset[1] * job->sum.item, row[0],
                weights);
    if (i + 1 == hi) break;
    haian_place_next(&in, &job->in, job->in.ndim);
    haian_place_next(&out, &job->out, job->out.ndim);
  }
  if (job->stream) haian_stream_fence();
}
