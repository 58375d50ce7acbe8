/* Rows of logits for one type (each_real.h): their losses, and the slopes that take the logits' place. */
static void FN(linear_losses)(void *ctx, int64_t lo, int64_t hi) {
  linear_job *job = ctx;
  REAL buf[2 * ROW_CHUNK];
  row_axes line = {.dtype = REAL_DTYPE, .item = sizeof(REAL), .ndim = 1, .shape = {job->classes}, .stride = {1}};
  for (int64_t i = lo; i < hi; i++) {
    int64_t row = job->first + i, t = job->target[row * job->target_step];
    double loss = 0, lse = 0;
    if (t != job->ignore) {
      const REAL *z = (const REAL *)job->logits + i * job->classes, *p;
      REAL top;
      WIDE sum = FN(exp_sum)(&line, (const char *)z, job->classes, buf, ROW_CHUNK, &top, &p);
      double logarithm = (double)FN(log_of)(sum, top), shift = (double)FN(shift_of)(top);
      loss = logarithm - ((double)z[t] - shift);
      lse = shift + logarithm;
      if (job->smoothing != 0) {
        double all = 0, n = (double)job->classes;
        for (int64_t c = 0; c < job->classes; c += ROW_CHUNK) {
          int64_t m = job->classes - c < ROW_CHUNK ? job->classes - c : ROW_CHUNK;
          for (int64_t k = 0; k < m; k++) buf[k] = z[c + k] - (REAL)shift;
          all += (double)FN(sum_chunk)(buf, m);
        }
        loss = (1 - job->smoothing) * loss + job->smoothing / n * (n * logarithm - all);
      }
    }
    job->loss[row] = loss;
    FN(store_one)(job->acc, job->lse_out + row * job->lse_step * (int64_t)sizeof(REAL), (REAL)lse);
  }
}

/* logits become scale (exp(z - logsumexp) - (1 - smoothing) [class is target] - smoothing / classes) */
static void FN(linear_slopes)(void *ctx, int64_t lo, int64_t hi) {
  const linear_job *job = ctx;
  for (int64_t row = lo; row < hi; row++) {
    REAL *z = (REAL *)job->logits + row * job->wide;
    int64_t t = job->target[row * job->target_step];
    if (t == job->ignore) {
      memset(z, 0, sizeof(REAL) * (size_t)job->wide);
    } else {
      REAL scale = (REAL)job->scale[row], level = (REAL)(job->smoothing / (double)job->classes);
      REAL lse = FN(load_one)(job->acc, job->lse_in + row * job->lse_step * (int64_t)sizeof(REAL));
#pragma GCC ivdep
      for (int64_t c = 0; c < job->wide; c++) z[c] = scale * (REAL_EXP(z[c] - lse) - level);
      if (t >= job->first && t < job->first + job->wide) z[t - job->first] -= scale * (REAL)(1 - job->smoothing);
    }
    if (!job->slope) continue;
    for (int64_t c = 0; c < job->wide; c += ROW_CHUNK)
      FN(store)(job->dtype, job->slope + (row * job->wide + c) * job->item, 1,
                job->wide - c < ROW_CHUNK ? job->wide - c : ROW_CHUNK, z + c, false);
  }
}

/* dbias of classes [lo, hi) of the chunk: sums over all rows */
static void FN(linear_columns)(void *ctx, int64_t lo, int64_t hi) {
  const linear_job *job = ctx;
  enum { SIDE = 64 };
  for (int64_t c = lo; c < hi; c += SIDE) {
    int64_t m = hi - c < SIDE ? hi - c : SIDE;
    WIDE sum[SIDE] = {0};
    for (int64_t row = 0; row < job->rows; row++) {
      const REAL *z = (const REAL *)job->logits + row * job->wide + c;
      for (int64_t k = 0; k < m; k++) sum[k] += (WIDE)z[k];
    }
    for (int64_t k = 0; k < m; k++)
      FN(store_one)(job->dtype, job->db + (job->first + c + k) * job->db_step * job->item, (REAL)sum[k]);
  }
}

/* rows of dx from their sums */
ROW_UNUSED static void FN(linear_rounded)(void *ctx, int64_t lo, int64_t hi) {
  const linear_job *job = ctx;
  for (int64_t row = lo; row < hi; row++)
    for (int64_t k = 0; k < job->n; k += ROW_CHUNK) {
      int64_t m = job->n - k < ROW_CHUNK ? job->n - k : ROW_CHUNK;
      FN(put)(&job->dx_rows, job->dx, row * job->n + k, m, (const REAL *)job->dx_sum + row * job->n + k, false);
    }
}
