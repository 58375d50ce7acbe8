/* Masked softmax for one type (each_real.h): a row's scaled scores are kept with -inf where they are masked; of a causal
 * row only the part that is seen is looked at. */

/* Scores [at, at + n) of a row as they count, into e. */
ROW_INLINE void FN(scores)(const masked_job *job, const char *x, const char *mask, int64_t at, int64_t n, REAL *e) {
  REAL hidden[MASKED_RUN], scale = (REAL)job->scale;
  const REAL *p = FN(fetch)(&job->x, x, at, n, e);
  if (!mask) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) e[i] = p[i] * scale;
    return;
  }
  const uint8_t *bytes = (const uint8_t *)mask + at;
  if (job->mask.ndim == 1 && job->mask.stride[0] == 1) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) {
      REAL z = p[i] * scale;
      e[i] = bytes[i] ? -(REAL)INFINITY : z;
    }
    return;
  }
  const REAL *h = FN(fetch)(&job->mask, mask, at, n, hidden);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; i++) {
    REAL z = p[i] * scale;
    e[i] = h[i] != 0 ? -(REAL)INFINITY : z;
  }
}

static void FN(masked_row)(const masked_job *job, const char *x, const char *mask, char *y, int64_t seen, REAL *e) {
  static const REAL zero[MASKED_RUN];
  bool keep = seen <= MASKED_ROOM;
  REAL top = -(REAL)INFINITY;
  for (int64_t at = 0; at < seen; at += MASKED_RUN) {
    int64_t n = seen - at < MASKED_RUN ? seen - at : MASKED_RUN;
    REAL *run = keep ? e + at : e;
    FN(scores)(job, x, mask, at, n, run);
    top = FN(pick_largest)(top, FN(largest)(run, n));
  }
  bool none = top == -(REAL)INFINITY;
  WIDE sum = 0;
  for (int64_t at = 0; at < seen && !none; at += MASKED_RUN) {
    int64_t n = seen - at < MASKED_RUN ? seen - at : MASKED_RUN;
    REAL *run = keep ? e + at : e;
    if (!keep) FN(scores)(job, x, mask, at, n, run);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) { /* a masked score is 0 at once: its tiny exponential would underflow slowly */
      REAL z = run[i], v = FN(row_exp)(z - top);
      run[i] = z == -(REAL)INFINITY ? 0 : v;
    }
    sum += FN(sum_chunk)(run, n);
  }
  REAL factor = (REAL)(1 / sum);
  bool lost = REAL_IS_NAN(sum); /* NaN or an infinite score: what is masked still comes out as 0 */
  for (int64_t at = 0; at < job->n; at += MASKED_RUN) {
    int64_t n = job->n - at < MASKED_RUN ? job->n - at : MASKED_RUN, live = none ? 0 : seen - at;
    live = live < 0 ? 0 : live > n ? n : live;
    if (live == 0) {
      FN(put)(&job->y, y, at, n, zero, job->stream);
      continue;
    }
    REAL *run = keep ? e + at : e, out[MASKED_RUN];
    if (!keep || lost) FN(scores)(job, x, mask, at, live, run);
    if (lost) {
      for (int64_t i = 0; i < live; i++) run[i] = run[i] == -(REAL)INFINITY ? 0 : (REAL)NAN;
      factor = 1;
    } else if (!keep) {
      for (int64_t i = 0; i < live; i++) run[i] = FN(row_exp)(run[i] - top);
    }
    REAL *to = FN(target)(&job->y, y, at, out, job->stream);
    for (int64_t i = 0; i < live; i++) to[i] = run[i] * factor;
    for (int64_t i = live; i < n; i++) to[i] = 0;
    FN(put)(&job->y, y, at, n, to, job->stream);
  }
}

static void FN(masked_rows)(void *ctx, int64_t lo, int64_t hi) {
  const masked_job *job = ctx;
  REAL e[MASKED_ROOM] __attribute__((aligned(64)));
  haian_place at;
  haian_place_seek(&at, &job->walk, job->walk.ndim, lo);
  for (int64_t row = lo; row < hi; row++) {
    FN(masked_row)(job, job->x_data + at.offset[0] * job->x.item, job->mask_data ? job->mask_data + at.offset[2] : NULL,
                   job->y_data + at.offset[1] * job->y.item, job->queries ? row % job->queries + 1 : job->n, e);
    if (row + 1 < hi) haian_place_next(&at, &job->walk, job->walk.ndim);
  }
  if (job->stream) haian_stream_fence();
}
