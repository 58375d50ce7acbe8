/* Routing, sums and gates of experts for one type (each_real.h). */

/* ---- choosing experts ---------------------------------------------------------------------------------------------- */
/* The k largest of n values where `open` (NULL: all), largest first, of equals the first; places in `at`.  At least k are open. */
static void FN(best)(const REAL *x, const uint8_t *open, int64_t n, int64_t k, int32_t *at) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; i++) {
    if (open && !open[i]) continue;
    if (found == k && !(x[i] > x[at[k - 1]])) continue;
    int64_t to = found < k ? found++ : k - 1;
    for (; to > 0 && x[i] > x[at[to - 1]]; to--) at[to] = at[to - 1];
    at[to] = (int32_t)i;
  }
}

/* scores of one token: softmax, or 1 / (1 + exp(-x)) */
ROW_INLINE void FN(score)(REAL *x, int64_t n, bool sigmoid) {
  if (sigmoid) {
    for (int64_t i = 0; i < n; i++) {
      const REAL e = REAL_EXP(x[i] < 0 ? x[i] : -x[i]); /* of |x|: never infinite */
      x[i] = x[i] < 0 ? e / (1 + e) : 1 / (1 + e);
    }
    return;
  }
  const REAL top = FN(largest)(x, n);
  for (int64_t i = 0; i < n; i++) x[i] = REAL_EXP(x[i] - top);
  const REAL sum = (REAL)FN(sum)(x, n);
  for (int64_t i = 0; i < n; i++) x[i] /= sum;
}

static void FN(route_rows)(void *ctx, int64_t lo, int64_t hi) {
  route_job *job = ctx;
  const int64_t n = job->gating->shape[1], k = job->topk, size = n / job->groups, item = row_item(job->gating->dtype);
  char *space = HAIAN_SYM(workspace)(
      1, (size_t)((3 * n + job->groups + k) * (int64_t)sizeof(REAL) + (n + job->groups + k) * 5 + 64));
  if (!space) {
    __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *x = (REAL *)space, *choice = x + n, *bias = choice + n, *value = bias + n, *w = value + job->groups;
  int32_t *at = (int32_t *)(w + k), *kept = at + k;
  uint8_t *open = (uint8_t *)(kept + job->groups);
  if (job->bias) FN(load)(job->bias->dtype, job->bias->data, job->bias->stride[0], n, bias);
  for (int64_t t = lo; t < hi; t++) {
    FN(load)(job->gating->dtype, (const char *)job->gating->data + t * job->gating->stride[0] * item,
             job->gating->stride[1], n, x);
    if (job->plain) {
      FN(best)(x, NULL, n, k, at); /* the order of the scores is that of what they are made of */
      FN(score)(x, n, false);
    } else {
      FN(score)(x, n, job->sigmoid);
      const REAL *by = x;
      if (job->bias) {
        for (int64_t i = 0; i < n; i++) choice[i] = x[i] + bias[i];
        by = choice;
      }
      for (int64_t g = 0; g < job->groups; g++) {
        int32_t first[2];
        const int64_t two = job->bias && size > 1 ? 2 : 1;
        FN(best)(by + g * size, NULL, size, two, first);
        value[g] = by[g * size + first[0]] + (two == 2 ? by[g * size + first[1]] : 0);
      }
      FN(best)(value, NULL, job->groups, job->topk_group, kept);
      memset(open, 0, (size_t)n);
      for (int64_t i = 0; i < job->topk_group; i++) memset(open + kept[i] * size, 1, (size_t)size);
      FN(best)(by, open, n, k, at);
    }
    REAL sum = 0;
    for (int64_t i = 0; i < k; i++) w[i] = x[at[i]], sum += w[i];
    const REAL factor = (REAL)job->factor;
    for (int64_t i = 0; i < k; i++) {
      const REAL share = job->renormalize ? w[i] / sum : w[i];
      ((REAL *)job->weights->data)[t * job->weights->stride[0] + i * job->weights->stride[1]] = share * factor;
      ((int32_t *)job->indices->data)[t * job->indices->stride[0] + i * job->indices->stride[1]] = at[i];
      if (job->rows)
        ((int32_t *)job->rows->data)[t * job->rows->stride[0] + i * job->rows->stride[1]] =
            (int32_t)(i * job->gating->shape[0] + t);
    }
  }
}

/* ---- sums over the experts of a token ---------------------------------------------------------------------------------- */
/* units: runs of ROW_CHUNK elements of a token */
static void FN(sum_runs)(void *ctx, int64_t lo, int64_t hi) {
  const sum_job *job = ctx;
  const haian_tensor *x = job->x, *y = job->y;
  REAL sum[ROW_CHUNK], buffer[ROW_CHUNK];
  const int64_t item = row_item(x->dtype);
  for (int64_t u = lo; u < hi; u++) {
    const int64_t t = u / job->runs, at = u % job->runs * ROW_CHUNK,
                  n = y->shape[1] - at < ROW_CHUNK ? y->shape[1] - at : ROW_CHUNK;
    const char *from = (const char *)x->data + (t * x->stride[0] + at * x->stride[2]) * item;
    for (int64_t i = 0; i < n; i++) sum[i] = 0;
    for (int64_t k = 0; k < x->shape[1]; k++, from += x->stride[1] * item) {
      const REAL *row = (const REAL *)from;
      if (x->dtype != REAL_DTYPE || x->stride[2] != 1) {
        FN(load)(x->dtype, from, x->stride[2], n, buffer);
        row = buffer;
      }
      for (int64_t i = 0; i < n; i++) sum[i] += row[i];
    }
    FN(store)(y->dtype, (char *)y->data + (t * y->stride[0] + at * y->stride[1]) * item, y->stride[1], n, sum,
              job->stream);
  }
  if (job->stream) haian_stream_fence();
}

/* ---- the layer ------------------------------------------------------------------------------------------------------- */
/* units: rows of a chunk; act = silu(gate) * up of hidden (rows, 2 I), in the dtype of the weights */
static void FN(gate_rows)(void *ctx, int64_t lo, int64_t hi) {
  const layer_job *job = ctx;
  const int64_t n = job->inner, item = row_item(job->x->dtype);
  REAL y[ROW_CHUNK];
  for (int64_t r = lo; r < hi; r++)
    for (int64_t at = 0; at < n; at += ROW_CHUNK) {
      const int64_t count = n - at < ROW_CHUNK ? n - at : ROW_CHUNK;
      const REAL *gate = (const REAL *)job->hidden + r * 2 * n + at, *up = gate + n;
      for (int64_t i = 0; i < count; i++) y[i] = gate[i] / (1 + REAL_EXP(-gate[i])) * up[i];
      FN(store)(job->x->dtype, job->act + (r * n + at) * item, 1, count, y, false);
    }
}

/* units: runs of ROW_CHUNK columns; each token's sum takes the chunk's rows in order */
static void FN(add_columns)(void *ctx, int64_t lo, int64_t hi) {
  const layer_job *job = ctx;
  const int64_t d = job->x->shape[1], per = job->weights->shape[1];
  const int64_t from = lo * ADD_RUN, to = hi * ADD_RUN < d ? hi * ADD_RUN : d;
  for (int64_t r = 0; r < job->rows; r++) {
    const int64_t place = job->order[job->first + r], t = place / per;
    const REAL w =
        FN(load_one)(job->weights->dtype, (const char *)job->weights->data +
                                              (t * job->weights->stride[0] + place % per * job->weights->stride[1]) *
                                                  row_item(job->weights->dtype));
    REAL *restrict sum = (REAL *)job->sums + t * d;
    const REAL *restrict y = (const REAL *)job->result + r * d;
    for (int64_t i = from; i < to; i++) sum[i] += w * y[i];
  }
}

static void FN(store_tokens)(void *ctx, int64_t lo, int64_t hi) {
  const layer_job *job = ctx;
  const int64_t d = job->x->shape[1], item = row_item(job->x->dtype);
  for (int64_t t = lo; t < hi; t++)
    for (int64_t at = 0; at < d; at += ROW_CHUNK)
      FN(store)(job->out->dtype, (char *)job->out->data + (t * job->out->stride[0] + at * job->out->stride[1]) * item,
                job->out->stride[1], d - at < ROW_CHUNK ? d - at : ROW_CHUNK, (const REAL *)job->sums + t * d + at,
                false);
}
