/* The softmax family for one type (each_real.h): rows along an axis that is contiguous or the only way to walk, and
 * columns side by side where another axis is contiguous.
 * A chunk is exponentiated while it lies in L1, relative to its own maximum; the factor that brings all chunks to the
 * row's maximum joins the final division.  So x is read from memory once and exp is taken once. */

ROW_INLINE void FN(scaled)(REAL *y, const REAL *p, REAL factor, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; i++) y[i] = p[i] * factor;
}

/* buf holds `room` values, ROW_SHORT or SOFTMAX_ROOM; a longer row is exponentiated twice. */
ROW_INLINE void FN(softmax_row)(const softmax_job *job, const char *x, char *y, REAL *buf, int64_t room) {
  int64_t n = job->n, chunk = room < ROW_CHUNK ? room : ROW_CHUNK;
  REAL maxima[SOFTMAX_ROOM / ROW_CHUNK], maximum = -(REAL)INFINITY;
  bool keep = n <= room;
  WIDE sum = 0;
  for (int64_t c = 0; c < n; c += chunk) {
    int64_t m = n - c < chunk ? n - c : chunk;
    REAL *e = keep ? buf + c : buf;
    const REAL *p = FN(fetch)(&job->x, x, c, m, e);
    REAL top = FN(top)(p, m);
    FN(exp_shifted)(e, p, FN(shift_of)(top), m, p + m);
    WIDE part = FN(sum_chunk)(e, m);
    if (n <= chunk) {
      maximum = top;
      sum = part;
      break;
    }
    REAL both = FN(pick_largest)(maximum, top);
    sum = sum * FN(rescale)(maximum, both) + part * FN(rescale)(top, both);
    maximum = both;
    if (keep) maxima[c / chunk] = top;
  }
  REAL inverse = maximum == -(REAL)INFINITY ? (REAL)NAN : 1 / (REAL)sum; /* the row is -inf throughout: 0 / 0 */
  for (int64_t c = 0; c < n; c += chunk) {
    int64_t m = n - c < chunk ? n - c : chunk;
    REAL *e = keep ? buf + c : buf, factor = inverse;
    REAL *t = FN(target)(&job->y, y, c, e, job->stream);
    if (!keep) FN(exp_shifted)(e, FN(fetch)(&job->x, x, c, m, e), FN(shift_of)(maximum), m, e);
    else if (n > chunk) factor = (REAL)(FN(rescale)(maxima[c / chunk], maximum) / sum);
    FN(scaled)(t, e, factor, m);
    FN(put)(&job->y, y, c, m, t, job->stream);
  }
}

ROW_INLINE void FN(log_softmax_row)(const softmax_job *job, const char *x, char *y, REAL *buf, int64_t room) {
  int64_t n = job->n, chunk = room / 2 < ROW_CHUNK ? room / 2 : ROW_CHUNK;
  REAL maximum;
  const REAL *p;
  WIDE sum = FN(exp_sum)(&job->x, x, n, buf, chunk, &maximum, &p);
  REAL shift = FN(shift_of)(maximum);
  REAL logarithm = (REAL)FN(log_of)(sum, maximum);
  for (int64_t c = 0; c < n; c += chunk) {
    int64_t m = n - c < chunk ? n - c : chunk;
    if (n > chunk) p = FN(fetch)(&job->x, x, c, m, buf);
    REAL *t = FN(target)(&job->y, y, c, buf, job->stream);
#pragma GCC ivdep
    for (int64_t i = 0; i < m; i++) t[i] = (p[i] - shift) - logarithm;
    FN(put)(&job->y, y, c, m, t, job->stream);
  }
}

/* softmax: y (dy - sum(dy y)); log_softmax: dy - exp(y) sum(dy). */
ROW_INLINE void FN(softmax_grad_row)(const softmax_job *job, const char *dy, const char *y, char *dx, REAL *buf,
                                     int64_t room, bool logarithm) {
  int64_t n = job->n, chunk = room / 2 < ROW_CHUNK ? room / 2 : ROW_CHUNK;
  const REAL *p = NULL, *q = NULL;
  WIDE sum = 0;
  for (int64_t c = 0; c < n; c += chunk) {
    int64_t m = n - c < chunk ? n - c : chunk;
    p = FN(fetch)(&job->x, dy, c, m, buf);
    if (!logarithm) q = FN(fetch)(&job->b, y, c, m, buf + chunk);
    sum += logarithm ? FN(sum_chunk)(p, m) : FN(dot)(p, q, m);
  }
  REAL s = (REAL)sum;
  for (int64_t c = 0; c < n; c += chunk) {
    int64_t m = n - c < chunk ? n - c : chunk;
    if (n > chunk) p = FN(fetch)(&job->x, dy, c, m, buf);
    if (n > chunk || logarithm) q = FN(fetch)(&job->b, y, c, m, buf + chunk);
    REAL *t = FN(target)(&job->y, dx, c, buf, job->stream);
    if (logarithm) {
#pragma GCC ivdep
      for (int64_t i = 0; i < m; i++) t[i] = p[i] - REAL_EXP(q[i]) * s;
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < m; i++) t[i] = q[i] * (p[i] - s);
    }
    FN(put)(&job->y, dx, c, m, t, job->stream);
  }
}

ROW_INLINE void FN(softmax_rows)(const softmax_job *job, int64_t lo, int64_t hi, REAL *buf, int64_t room) {
  const haian_walk *w = &job->walk;
  haian_place at;
  haian_place_seek(&at, w, w->ndim, lo);
  for (int64_t row = lo; row < hi; row++) {
    const char *x = job->x_data + at.offset[0] * job->x.item, *b = job->b_data;
    if (job->op > LOG_SOFTMAX) b += at.offset[2] * job->x.item;
    char *y = job->y_data + at.offset[1] * job->x.item;
    switch (job->op) {
      case SOFTMAX:
        FN(softmax_row)(job, x, y, buf, room);
        break;
      case LOG_SOFTMAX:
        FN(log_softmax_row)(job, x, y, buf, room);
        break;
      case SOFTMAX_BACKWARD:
        FN(softmax_grad_row)(job, x, b, y, buf, room, false);
        break;
      default:
        FN(softmax_grad_row)(job, x, b, y, buf, room, true);
    }
    if (row + 1 < hi) haian_place_next(&at, w, w->ndim);
  }
  if (job->stream) haian_stream_fence();
}

static void FN(softmax_long)(void *ctx, int64_t lo, int64_t hi) {
  REAL buf[SOFTMAX_ROOM] __attribute__((aligned(64)));
  FN(softmax_rows)(ctx, lo, hi, buf, SOFTMAX_ROOM);
}

static __attribute__((noinline)) void FN(softmax_short)(void *ctx, int64_t lo, int64_t hi) {
  REAL buf[ROW_SHORT] __attribute__((aligned(64)));
  FN(softmax_rows)(ctx, lo, hi, buf, ROW_SHORT);
}

/* ---- columns: job->width neighbours along the walk's last axis at once ------------------------------------------- */
ROW_INLINE const REAL *FN(column_run)(const softmax_job *job, const row_axes *axis, const char *x, int which, int64_t i,
                                      int64_t n, REAL *buf) {
  int64_t side = job->walk.stride[job->walk.ndim - 1][which];
  x += i * axis->stride[0] * axis->item;
  if (side == 1 && axis->dtype == REAL_DTYPE) return (const REAL *)x;
  FN(load)(axis->dtype, x, side, n, buf);
  return buf;
}

static void FN(softmax_columns)(void *ctx, int64_t lo, int64_t hi) {
  const softmax_job *job = ctx;
  const haian_walk *w = &job->walk;
  int last = w->ndim - 1;
  int64_t n = job->n, width = job->width, tiles = (w->shape[last] + width - 1) / width;
  REAL kept[SOFTMAX_ROOM] __attribute__((aligned(64))), run_x[SOFTMAX_WIDTH], run_b[SOFTMAX_WIDTH], out[SOFTMAX_WIDTH];
  REAL top[SOFTMAX_WIDTH], part[SOFTMAX_WIDTH], sum[SOFTMAX_WIDTH];
  bool none[SOFTMAX_WIDTH];
  bool forward = job->op == SOFTMAX || job->op == LOG_SOFTMAX, keep = job->op == SOFTMAX && n * width <= SOFTMAX_ROOM;
  for (int64_t task = lo; task < hi; task++) {
    haian_place at;
    haian_place_seek(&at, w, last, task / tiles);
    int64_t first = task % tiles * width, m = w->shape[last] - first < width ? w->shape[last] - first : width;
    const char *x = job->x_data + (at.offset[0] + first * w->stride[last][0]) * job->x.item;
    const char *b = job->b_data;
    if (!forward) b += (at.offset[2] + first * w->stride[last][2]) * job->x.item;
    char *y = job->y_data + (at.offset[1] + first * w->stride[last][1]) * job->x.item;
    if (forward) {
      for (int64_t j = 0; j < m; j++) top[j] = -(REAL)INFINITY;
      for (int64_t i = 0; i < n; i++) {
        const REAL *p = FN(column_run)(job, &job->x, x, 0, i, m, run_x);
        for (int64_t j = 0; j < m; j++) top[j] = FN(pick_largest)(top[j], p[j]);
      }
      for (int64_t j = 0; j < m; j++) {
        none[j] = top[j] == -(REAL)INFINITY;
        top[j] = FN(shift_of)(top[j]);
      }
    }
    memset(sum, 0, (size_t)m * sizeof(REAL));
    memset(part, 0, (size_t)m * sizeof(REAL));
    for (int64_t i = 0; i < n; i++) {
      const REAL *p = FN(column_run)(job, &job->x, x, 0, i, m, run_x), *q = NULL;
      REAL *e = keep ? kept + i * width : out;
      if (job->op == SOFTMAX_BACKWARD) q = FN(column_run)(job, &job->b, b, 2, i, m, run_b);
      if (forward) {
        for (int64_t j = 0; j < m; j++) part[j] += e[j] = FN(row_exp)(p[j] - top[j]);
      } else if (q) {
        for (int64_t j = 0; j < m; j++) part[j] += p[j] * q[j];
      } else {
        for (int64_t j = 0; j < m; j++) part[j] += p[j];
      }
      if (i % 32 == 31 || i == n - 1) { /* two levels: an error of n / 32 + 32 roundings instead of n */
        for (int64_t j = 0; j < m; j++) {
          sum[j] += part[j];
          part[j] = 0;
        }
      }
    }
    if (job->op == SOFTMAX) {
      for (int64_t j = 0; j < m; j++) part[j] = none[j] ? (REAL)NAN : 1 / sum[j];
    } else if (job->op == LOG_SOFTMAX) {
      for (int64_t j = 0; j < m; j++) part[j] = none[j] ? (REAL)NAN : REAL_LOG(sum[j] * (REAL)(1 / ROW_EXP_SCALE));
    } else {
      memcpy(part, sum, (size_t)m * sizeof(REAL));
    }
    for (int64_t i = 0; i < n; i++) {
      const REAL *p = keep ? kept + i * width : FN(column_run)(job, &job->x, x, 0, i, m, run_x), *q = NULL;
      if (!forward) q = FN(column_run)(job, &job->b, b, 2, i, m, run_b);
      int64_t side = w->stride[last][1];
      char *to = y + i * job->y.stride[0] * job->y.item;
      REAL *t = side == 1 && job->y.dtype == REAL_DTYPE ? (REAL *)to : out;
      if (keep) {
#pragma GCC ivdep
        for (int64_t j = 0; j < m; j++) t[j] = p[j] * part[j];
      } else if (job->op == SOFTMAX) {
#pragma GCC ivdep
        for (int64_t j = 0; j < m; j++) t[j] = FN(row_exp)(p[j] - top[j]) * part[j];
      } else if (job->op == LOG_SOFTMAX) {
#pragma GCC ivdep
        for (int64_t j = 0; j < m; j++) t[j] = (p[j] - top[j]) - part[j];
      } else if (job->op == SOFTMAX_BACKWARD) {
#pragma GCC ivdep
        for (int64_t j = 0; j < m; j++) t[j] = q[j] * (p[j] - part[j]);
      } else {
#pragma GCC ivdep
        for (int64_t j = 0; j < m; j++) t[j] = p[j] - REAL_EXP(q[j]) * part[j];
      }
      if (t == out) FN(store)(job->y.dtype, to, side, m, out, false);
    }
  }
}
