/* nll_loss and cross_entropy for one type (each_real.h): one number a row, in double, gathered in fixed blocks of rows.
 */

/* The loss of a row before reduction; weights: of its class t, or of all classes for label smoothing. */
ROW_INLINE double FN(nll_row)(const loss_job *job, const char *x, int64_t t, double weight) {
  return -weight * (double)FN(load_one)(job->x.dtype, x + t * job->x.stride[0] * job->x.item);
}

static double FN(entropy_row)(const loss_job *job, const char *x, int64_t t, double weight) {
  REAL buf[2 * ROW_CHUNK], maximum;
  const REAL *p = NULL;
  int64_t n = job->classes;
  WIDE exponentials = FN(exp_sum)(&job->x, x, n, buf, ROW_CHUNK, &maximum, &p);
  double logarithm = (double)FN(log_of)(exponentials, maximum);
  REAL shift = FN(shift_of)(maximum), at = FN(load_one)(job->x.dtype, x + t * job->x.stride[0] * job->x.item);
  double loss = -weight * (((double)at - (double)shift) - logarithm);
  if (job->smoothing == 0) return loss;
  double sum = 0, weights = 0, spread = job->smoothing / (double)n;
  REAL *d = buf + ROW_CHUNK;
  for (int64_t c = 0; c < n; c += ROW_CHUNK) {
    int64_t m = n - c < ROW_CHUNK ? n - c : ROW_CHUNK;
    if (n > ROW_CHUNK) p = FN(fetch)(&job->x, x, c, m, buf);
    for (int64_t i = 0; i < m; i++) d[i] = p[i] - shift;
    if (job->w_data) {
      REAL room[ROW_CHUNK];
      const REAL *w = FN(fetch)(&job->w, job->w_data, c, m, room);
      sum += FN(dot)(d, w, m);
      weights += FN(sum)(w, m);
    } else {
      sum += FN(sum)(d, m);
      weights += (double)m;
    }
  }
  return (1 - job->smoothing) * loss - spread * (sum - logarithm * weights);
}

static void FN(loss_blocks)(void *ctx, int64_t lo, int64_t hi) {
  loss_job *job = ctx;
  for (int64_t block = lo; block < hi; block++) {
    int64_t end = (block + 1) * job->block < job->rows ? (block + 1) * job->block : job->rows;
    double loss = 0, weights = 0, part = 0, part_weights = 0;
    for (int64_t row = block * job->block; row < end; row++) {
      int64_t t = job->target[row * job->target_step];
      double value = 0;
      if (t != job->ignore) {
        double weight =
            job->w_data ? (double)FN(load_one)(job->w.dtype, job->w_data + t * job->w.stride[0] * job->w.item) : 1;
        const char *x = job->x_data + row * job->x_step * job->x.item;
        value = job->entropy ? FN(entropy_row)(job, x, t, weight) : FN(nll_row)(job, x, t, weight);
        part_weights += weight;
      }
      part += value;
      if (job->each) FN(store_one)(job->x.dtype, job->each + row * job->each_step * job->x.item, (REAL)value);
      if (row % 64 == 63 || row == end - 1) { /* two levels of sums: see row_real.h */
        loss += part;
        weights += part_weights;
        part = part_weights = 0;
      }
    }
    job->loss[block] = loss;
    job->weights[block] = weights;
  }
}

static void FN(loss_finish)(const loss_job *job, int64_t blocks, char *y, char *total) {
  double loss = 0, weights = 0;
  for (int64_t i = 0; i < blocks; i++) {
    loss += job->loss[i];
    weights += job->weights[i];
  }
  if (!job->each) FN(store_one)(job->x.dtype, y, (REAL)(job->mean ? loss / weights : loss));
  if (total) FN(store_one)(job->x.dtype, total, (REAL)(job->each ? 0 : weights));
}

static void FN(loss_grad_rows)(void *ctx, int64_t lo, int64_t hi) {
  const loss_grad_job *job = ctx;
  static const REAL zero[ROW_CHUNK];
  double all = job->dy_step_used ? 0 : (double)FN(load_one)(job->dx.dtype, job->dy);
  double total = job->total ? (double)FN(load_one)(job->dx.dtype, job->total) : 1;
  for (int64_t row = lo; row < hi; row++) {
    char *dx = job->dx_data + row * job->dx_step * job->dx.item;
    for (int64_t c = 0; c < job->classes; c += ROW_CHUNK)
      FN(put)(&job->dx, dx, c, job->classes - c < ROW_CHUNK ? job->classes - c : ROW_CHUNK, zero, false);
    int64_t t = job->target[row * job->target_step];
    if (t == job->ignore) continue;
    double weight =
        job->w_data ? (double)FN(load_one)(job->w.dtype, job->w_data + t * job->w.stride[0] * job->w.item) : 1;
    double dy =
        job->dy_step_used ? (double)FN(load_one)(job->dx.dtype, job->dy + row * job->dy_step * job->dx.item) : all;
    FN(store_one)(job->dx.dtype, dx + t * job->dx.stride[0] * job->dx.item, (REAL)(-weight * dy / total));
  }
}
