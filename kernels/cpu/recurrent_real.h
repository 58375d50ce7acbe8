/* Recurrences for one type (each_real.h).  States are of that type; sums over a state run in order, lane by lane. */

/* ---- selective_scan ---------------------------------------------------------------------------------------------------- */
/* One projection of every (batch, group) as (length, state), so that a step reads it in one piece. */
static void FN(turn_rows)(void *ctx, int64_t lo, int64_t hi) {
  const selective_job *job = ctx;
  for (int64_t task = lo; task < hi; task++) {
    int64_t which = task % 2, row = task / 2;
    const projection *p = &job->p[which];
    if (!p->turned) continue;
    int64_t steps = (job->length + TURN_STEPS - 1) / TURN_STEPS, from = row % steps * TURN_STEPS, place = row / steps;
    if (place >= job->batch * p->groups) continue;
    int64_t n = job->length - from < TURN_STEPS ? job->length - from : TURN_STEPS;
    int64_t offset = place / p->groups * p->batch_step + place % p->groups * p->group_step + from * p->time_step;
    REAL in[TURN_STEPS], *out = (REAL *)p->turned + (place * job->length + from) * job->state;
    for (int64_t s = 0; s < job->state; s++) {
      FN(load)(p->t->dtype, (const char *)p->t->data + (offset + s * p->state_step) * row_item(p->t->dtype),
               p->time_step, n, in);
      for (int64_t t = 0; t < n; t++) out[t * job->state + s] = in[t];
    }
  }
}

/* One step of a channel; returns sum(h C). */
ROW_INLINE REAL FN(selective_step)(REAL *restrict h, const REAL *restrict a, const REAL *restrict b,
                                   const REAL *restrict c, int64_t n, REAL dt, REAL dtu) {
  REAL sum[STATE_LANES] = {0}, total = 0;
  int64_t s = 0;
  for (; s + STATE_LANES <= n; s += STATE_LANES)
    for (int i = 0; i < STATE_LANES; i++) {
      REAL v = REAL_EXP(dt * a[s + i]) * h[s + i] + dtu * b[s + i];
      h[s + i] = v;
      sum[i] += v * c[s + i];
    }
  for (; s < n; s++) {
    REAL v = REAL_EXP(dt * a[s]) * h[s] + dtu * b[s];
    h[s] = v;
    total += v * c[s];
  }
  for (int w = STATE_LANES / 2; w; w /= 2)
    for (int i = 0; i < w; i++) sum[i] += sum[i + w];
  return total + sum[0];
}

/* Units: (batch, channel). */
static void FN(selective_channels)(void *ctx, int64_t lo, int64_t hi) {
  const selective_job *job = ctx;
  const haian_tensor *u = job->u, *z = job->z, *delta = job->delta, *out = job->out;
  int64_t n = job->state, item = row_item(u->dtype), wide = (int64_t)sizeof(REAL);
  REAL h[MAX_STATE], a[MAX_STATE], fixed[2][MAX_STATE];
  REAL uu[TURN_STEPS], dd[TURN_STEPS], zz[TURN_STEPS], yy[TURN_STEPS];
  for (int64_t task = lo; task < hi; task++) {
    int64_t batch = task / job->dim, d = task % job->dim;
    REAL skip = 0, bias = 0;
    if (job->skip) skip = ((const REAL *)job->skip->data)[d * job->skip->stride[0]];
    if (job->bias) bias = ((const REAL *)job->bias->data)[d * job->bias->stride[0]];
    FN(load)(job->a->dtype, (const char *)job->a->data + d * job->a->stride[0] * wide, job->a->stride[1], n, a);
    for (int which = 0; which < 2; which++)
      if (job->p[which].t->ndim == 2) {
        const haian_tensor *t = job->p[which].t;
        FN(load)(t->dtype, (const char *)t->data + d * t->stride[0] * wide, t->stride[1], n, fixed[which]);
      }
    memset(h, 0, sizeof *h * (size_t)n);
    for (int64_t from = 0; from < job->length; from += TURN_STEPS) {
      int64_t m = job->length - from < TURN_STEPS ? job->length - from : TURN_STEPS;
#define RUN_AT(t) \
  ((t)->data ? (char *)(t)->data + (batch * (t)->stride[0] + d * (t)->stride[1] + from * (t)->stride[2]) * item : NULL)
      FN(load)(u->dtype, RUN_AT(u), u->stride[2], m, uu);
      FN(load)(delta->dtype, RUN_AT(delta), delta->stride[2], m, dd);
      for (int64_t t = 0; t < m; t++) dd[t] += bias;
      if (job->softplus)
        for (int64_t t = 0; t < m; t++)
          dd[t] =
              dd[t] > 20 ? dd[t] + REAL_EXP(-dd[t]) : (REAL)log1p((double)REAL_EXP(dd[t])); /* the tail of its series */
      const REAL *b = fixed[0], *c = fixed[1];
      int64_t step[2] = {0, 0};
      const REAL *turned[2] = {b, c};
      for (int which = 0; which < 2; which++)
        if (job->p[which].turned) {
          int64_t groups = job->p[which].groups, group = d / (job->dim / groups);
          turned[which] = (const REAL *)job->p[which].turned + ((batch * groups + group) * job->length + from) * n;
          step[which] = n;
        }
      for (int64_t t = 0; t < m; t++)
        yy[t] = FN(selective_step)(h, a, turned[0] + t * step[0], turned[1] + t * step[1], n, dd[t], dd[t] * uu[t]) +
                skip * uu[t];
      if (z) {
        FN(load)(z->dtype, RUN_AT(z), z->stride[2], m, zz);
        for (int64_t t = 0; t < m; t++) yy[t] *= zz[t] / (1 + REAL_EXP(-zz[t]));
      }
      FN(store)(out->dtype, RUN_AT(out), out->stride[2], m, yy, false);
#undef RUN_AT
    }
    const haian_tensor *last = job->last;
    REAL *to = (REAL *)last->data + batch * last->stride[0] + d * last->stride[1];
    for (int64_t s = 0; s < n; s++) to[s * last->stride[2]] = h[s];
  }
}

static int32_t FN(selective)(selective_job *job) {
  int64_t turned[2], bytes = 0;
  for (int which = 0; which < 2; which++) {
    projection *p = &job->p[which];
    turned[which] = p->t->ndim > 2 ? job->batch * p->groups * job->length * job->state : 0;
    bytes += turned[which] * (int64_t)sizeof(REAL);
  }
  REAL *memory = malloc((size_t)bytes + 64);
  HAIAN_REQUIRE(memory, HAIAN_OUT_OF_MEMORY, "selective_scan: no memory for %lld bytes of scratch", (long long)bytes);
  job->p[0].turned = turned[0] ? memory : NULL;
  job->p[1].turned = turned[1] ? memory + turned[0] : NULL;
  int64_t groups = job->p[0].groups > job->p[1].groups ? job->p[0].groups : job->p[1].groups;
  int64_t steps = (job->length + TURN_STEPS - 1) / TURN_STEPS;
  if (bytes)
    haian_parallel_for(2 * job->batch * groups * steps, row_grain(TURN_STEPS, job->state * 4), FN(turn_rows), job);
  haian_parallel_for(job->batch * job->dim, row_grain(job->length + 1, job->state * 8), FN(selective_channels), job);
  free(memory);
  return HAIAN_OK;
}

/* ---- gated_delta_rule ---------------------------------------------------------------------------------------------------- */
/* Row (batch, t, head) of q or k as REAL, divided by its length if wanted, times scale. */
static void FN(delta_row)(const delta_job *job, const haian_tensor *x, int64_t batch, int64_t t, int64_t head,
                          REAL scale, REAL *out) {
  int64_t offset = batch * x->stride[0] + t * x->stride[1] + head * x->stride[2];
  FN(load)(x->dtype, (const char *)x->data + offset * row_item(x->dtype), x->stride[3], job->width, out);
  if (job->unit) scale = (REAL)((double)scale / sqrt((double)FN(dot)(out, out, job->width) + 1e-6));
  for (int64_t i = 0; i < job->width; i++) out[i] *= scale;
}

/* One (batch, value head, tile of DELTA_TILE values): columns of the state do not meet. */
static void FN(delta_tile)(const delta_job *job, int64_t task, REAL *state) {
  int64_t tiles = (job->values + DELTA_TILE - 1) / DELTA_TILE, width = job->width;
  int64_t tile = task % tiles, head = task / tiles % job->v_heads, batch = task / tiles / job->v_heads;
  int64_t from = tile * DELTA_TILE, n = job->values - from < DELTA_TILE ? job->values - from : DELTA_TILE;
  REAL *q = state + width * DELTA_TILE, *k = q + width;
  const haian_tensor *first = job->first, *last = job->last, *v = job->v, *out = job->out;
  memset(state, 0, sizeof(REAL) * (size_t)(width * DELTA_TILE));
  if (first)
    for (int64_t i = 0; i < width; i++)
      FN(load)(first->dtype,
               (const char *)first->data + (batch * first->stride[0] + head * first->stride[1] + i * first->stride[2] +
                                            from * first->stride[3]) *
                                               (int64_t)sizeof(REAL),
               first->stride[3], n, state + i * DELTA_TILE);
  for (int64_t t = 0; t < job->length; t++) {
    REAL value[DELTA_TILE] = {0}, known[DELTA_TILE] = {0}, made[DELTA_TILE] = {0};
    FN(delta_row)(job, job->q, batch, t, head / job->each, (REAL)job->scale, q);
    FN(delta_row)(job, job->k, batch, t, head / job->each, 1, k);
    int64_t offset = batch * v->stride[0] + t * v->stride[1] + head * v->stride[2] + from * v->stride[3];
    FN(load)(v->dtype, (const char *)v->data + offset * row_item(v->dtype), v->stride[3], n, value);
    const haian_tensor *g = job->g, *b = job->beta;
    REAL decay = ((const REAL *)g->data)[batch * g->stride[0] + t * g->stride[1] + head * g->stride[2]];
    REAL beta =
        FN(load_one)(b->dtype, (const char *)b->data + (batch * b->stride[0] + t * b->stride[1] + head * b->stride[2]) *
                                                           row_item(b->dtype));
    decay = REAL_EXP(decay);
    for (int64_t i = 0; i < width; i++) {
      REAL *row = state + i * DELTA_TILE, ki = k[i];
      for (int j = 0; j < DELTA_TILE; j++) {
        row[j] *= decay;
        known[j] += row[j] * ki;
      }
    }
    for (int j = 0; j < DELTA_TILE; j++) value[j] = (value[j] - known[j]) * beta;
    for (int64_t i = 0; i < width; i++) {
      REAL *row = state + i * DELTA_TILE, ki = k[i], qi = q[i];
      for (int j = 0; j < DELTA_TILE; j++) {
        row[j] += ki * value[j];
        made[j] += row[j] * qi;
      }
    }
    offset = batch * out->stride[0] + t * out->stride[1] + head * out->stride[2] + from * out->stride[3];
    FN(store)(out->dtype, (char *)out->data + offset * row_item(out->dtype), out->stride[3], n, made, false);
  }
  for (int64_t i = 0; i < width; i++) {
    REAL *to = (REAL *)last->data + batch * last->stride[0] + head * last->stride[1] + i * last->stride[2] +
               from * last->stride[3];
    for (int64_t j = 0; j < n; j++) to[j * last->stride[3]] = state[i * DELTA_TILE + j];
  }
}

/* Slot s takes its share of the tasks, with scratch of its own. */
static void FN(delta_tiles)(void *ctx, int64_t lo, int64_t hi) {
  const delta_job *job = ctx;
  for (int64_t slot = lo; slot < hi; slot++)
    for (int64_t task = slot * job->tasks / job->slots; task < (slot + 1) * job->tasks / job->slots; task++)
      FN(delta_tile)(job, task, (REAL *)(job->scratch + slot * job->state_bytes));
}
