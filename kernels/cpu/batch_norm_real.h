/* Group and batch normalisation and their gradients for one type (each_real.h): one unit of statistics at a time, so
 * that all passes but the first find it in L2.  Statistics take two passes; the second corrects what rounding the mean
 * left. */

typedef struct FN(unit_scratch) {
  REAL x[UNIT_RUN], dy[UNIT_RUN], h[UNIT_RUN];
} FN(unit_scratch);

ROW_INLINE REAL FN(vector_get)(const unit_vector *v, int64_t n, int64_t i) {
  return FN(load_one)(v->dtype, v->data + (n * v->step_n + i * v->step) * v->item);
}
ROW_INLINE void FN(vector_put)(const unit_vector *v, int64_t n, int64_t i, WIDE value) {
  if (v->data) FN(store_one)(v->dtype, (char *)v->data + (n * v->step_n + i * v->step) * v->item, (REAL)value);
}

/* mean (rounded to *shift), what that rounding left (*rest) and the variance of a unit whose first value is at x. */
static WIDE FN(unit_moments)(const unit_job *job, const char *x, REAL *shift, WIDE *rest, FN(unit_scratch) * s) {
  const unit_tensor *t = &job->x;
  WIDE sum = 0, first = 0, squares = 0, terms = (WIDE)(job->d * job->inner);
  for (int64_t k = 0; k < t->segments; k++)
    for (int64_t at = 0; at < t->n; at += UNIT_RUN) {
      int64_t m = t->n - at < UNIT_RUN ? t->n - at : UNIT_RUN;
      sum += FN(sum)(FN(fetch)(&t->row, x + k * t->step_c, at, m, s->x), m);
    }
  *shift = (REAL)(sum / terms);
  for (int64_t k = 0; k < t->segments; k++)
    for (int64_t at = 0; at < t->n; at += UNIT_RUN) {
      int64_t m = t->n - at < UNIT_RUN ? t->n - at : UNIT_RUN;
      FN(moments)(FN(fetch)(&t->row, x + k * t->step_c, at, m, s->x), *shift, m, &first, &squares);
    }
  *rest = first / terms;
  WIDE variance = squares / terms - *rest * *rest;
  return variance < 0 ? 0 : variance;
}

/* y = (x - shift) a + c over one channel. */
static void FN(unit_affine)(const unit_job *job, const char *x, char *y, REAL shift, REAL a, REAL c,
                            FN(unit_scratch) * s) {
  for (int64_t at = 0; at < job->inner; at += UNIT_RUN) {
    int64_t m = job->inner - at < UNIT_RUN ? job->inner - at : UNIT_RUN;
    const REAL *p = FN(fetch)(&job->x.row, x, at, m, s->x);
    REAL *t = FN(target)(&job->y.row, y, at, s->h, job->stream);
#pragma GCC ivdep
    for (int64_t i = 0; i < m; i++) t[i] = (p[i] - shift) * a + c;
    FN(put)(&job->y.row, y, at, m, t, job->stream);
  }
}

/* dx = (dy p - a - (x - shift) q) r over one channel. */
static void FN(unit_dx)(const unit_job *job, const char *dy, const char *x, char *dx, REAL shift, REAL p, REAL a,
                        REAL q, REAL r, FN(unit_scratch) * s) {
  for (int64_t at = 0; at < job->inner; at += UNIT_RUN) {
    int64_t m = job->inner - at < UNIT_RUN ? job->inner - at : UNIT_RUN;
    const REAL *d = FN(fetch)(&job->dy.row, dy, at, m, s->dy), *v = FN(fetch)(&job->x.row, x, at, m, s->x);
    REAL *t = FN(target)(&job->y.row, dx, at, s->h, job->stream);
#pragma GCC ivdep
    for (int64_t i = 0; i < m; i++) t[i] = ((d[i] * p - a) - (v[i] - shift) * q) * r;
    FN(put)(&job->y.row, dx, at, m, t, job->stream);
  }
}

/* Sums over one channel of dy and of dy (x - shift) r. */
static void FN(unit_sums)(const unit_job *job, const char *dy, const char *x, REAL shift, REAL r, WIDE *plain,
                          WIDE *product, FN(unit_scratch) * s) {
  *plain = *product = 0;
  for (int64_t at = 0; at < job->inner; at += UNIT_RUN) {
    int64_t m = job->inner - at < UNIT_RUN ? job->inner - at : UNIT_RUN;
    const REAL *d = FN(fetch)(&job->dy.row, dy, at, m, s->dy), *v = FN(fetch)(&job->x.row, x, at, m, s->x);
#pragma GCC ivdep
    for (int64_t i = 0; i < m; i++) s->h[i] = (v[i] - shift) * r;
    *plain += FN(sum)(d, m);
    *product += FN(dot)(d, s->h, m);
  }
}

static void FN(new_running)(const unit_vector *to, const unit_vector *from, int64_t i, double momentum, WIDE value) {
  if (!to->data) return;
  WIDE old = (WIDE)FN(vector_get)(from, 0, i);
  FN(vector_put)(to, 0, i, momentum < 0 ? old : (1 - momentum) * old + momentum * value);
}

static void FN(norm_unit)(const unit_job *job, int64_t n, int64_t g, FN(unit_scratch) * s) {
  int64_t first = job->grouped ? g * job->d : g;
  const char *x = job->x.data + n * job->x.step_n + first * job->x.step_c;
  REAL shift;
  WIDE rest = 0, r;
  if (job->given) {
    shift = FN(vector_get)(&job->mean, n, g);
    r = (WIDE)FN(vector_get)(&job->rstd, n, g);
    if (job->variance) r = 1 / sqrt(r + job->eps);
    FN(new_running)(&job->new_mean, &job->run_mean, g, -1, 0);
    FN(new_running)(&job->new_var, &job->run_var, g, -1, 0);
  } else {
    WIDE variance = FN(unit_moments)(job, x, &shift, &rest, s), terms = (WIDE)(job->d * job->inner);
    r = 1 / sqrt(variance + job->eps);
    FN(vector_put)(&job->mean_out, n, g, (WIDE)shift + rest);
    FN(vector_put)(&job->rstd_out, n, g, r);
    double momentum = job->inner ? job->momentum : -1; /* no elements: as they were */
    FN(new_running)(&job->new_mean, &job->run_mean, g, momentum, (WIDE)shift + rest);
    FN(new_running)(&job->new_var, &job->run_var, g, momentum, variance * (terms / (terms - 1)));
  }
  if (job->task == STATS || !job->inner) return;
  char *y = job->y.data + n * job->y.step_n + first * job->y.step_c;
  for (int64_t k = 0; k < job->d; k++) {
    WIDE a = job->w.data ? r * (WIDE)FN(vector_get)(&job->w, 0, first + k) : r;
    WIDE c = (job->b.data ? (WIDE)FN(vector_get)(&job->b, 0, first + k) : 0) - rest * a;
    FN(unit_affine)(job, x + k * job->x.step_c, y + k * job->y.step_c, shift, (REAL)a, (REAL)c, s);
  }
}

static void FN(grad_unit)(const unit_job *job, int64_t unit, int64_t n, int64_t g, FN(unit_scratch) * s) {
  int64_t first = job->grouped ? g * job->d : g;
  const char *x = job->x.data + n * job->x.step_n + first * job->x.step_c;
  const char *dy = job->dy.data + n * job->dy.step_n + first * job->dy.step_c;
  char *dx = job->y.data + n * job->y.step_n + first * job->y.step_c; /* not used by SUMS */
  REAL shift = FN(vector_get)(&job->mean, n, g);
  WIDE r = (WIDE)FN(vector_get)(&job->rstd, n, g), level = 0, along = 0;
  if (job->variance) r = 1 / sqrt(r + job->eps);
  if (job->task == GRAD_GIVEN) {
    WIDE w = job->w.data ? (WIDE)FN(vector_get)(&job->w, 0, g) : 1;
    level = (WIDE)FN(vector_get)(&job->sum, 0, g) / job->total;
    along = (WIDE)FN(vector_get)(&job->sum_xmu, 0, g) / job->total * r * r;
    FN(unit_dx)(job, dy, x, dx, shift, 1, (REAL)level, (REAL)along, (REAL)(r * w), s);
    return;
  }
  REAL by = job->task == SUMS ? 1 : (REAL)r;
  for (int64_t k = 0; k < job->d; k++) {
    WIDE plain, product;
    FN(unit_sums)(job, dy + k * job->dy.step_c, x + k * job->x.step_c, shift, by, &plain, &product, s);
    if (job->task == SUMS) {
      FN(vector_put)(&job->sum_out, 0, g, plain);
      FN(vector_put)(&job->xmu_out, 0, g, product);
      product *= r;
    }
    if (job->part) {
      job->part[2 * (unit * job->d + k)] = (double)plain;
      job->part[2 * (unit * job->d + k) + 1] = (double)product;
    } else {
      FN(vector_put)(&job->dw, 0, g, product);
      FN(vector_put)(&job->db, 0, g, plain);
    }
    WIDE w = job->w.data ? (WIDE)FN(vector_get)(&job->w, 0, first + k) : 1;
    level += plain * w;
    along += product * w;
  }
  if (job->task == SUMS) return;
  WIDE terms = (WIDE)(job->d * job->inner);
  level = job->train ? level / terms : 0;
  along = job->train ? along / terms : 0;
  for (int64_t k = 0; k < job->d && job->inner; k++) {
    WIDE w = job->w.data ? (WIDE)FN(vector_get)(&job->w, 0, first + k) : 1;
    FN(unit_dx)(job, dy + k * job->dy.step_c, x + k * job->x.step_c, dx + k * job->y.step_c, shift, (REAL)w,
                (REAL)level, (REAL)(along * r), (REAL)r, s);
  }
}

static void FN(units)(void *ctx, int64_t lo, int64_t hi) {
  const unit_job *job = ctx;
  FN(unit_scratch) s;
  for (int64_t unit = lo; unit < hi; unit++) {
    int64_t n = job->grouped ? unit / job->groups : 0, g = job->grouped ? unit % job->groups : unit;
    if (job->task == NORM || job->task == STATS) FN(norm_unit)(job, n, g, &s);
    else FN(grad_unit)(job, unit, n, g, &s);
  }
  if (job->stream) haian_stream_fence();
}

/* dweight and dbias of channels [lo, hi) of a group norm from the samples' partial sums. */
static void FN(add_samples)(void *ctx, int64_t lo, int64_t hi) {
  const unit_job *job = ctx;
  int64_t channels = job->groups * job->d, samples = job->units / job->groups;
  for (int64_t c = lo; c < hi; c++) {
    WIDE plain = 0, product = 0;
    for (int64_t n = 0; n < samples; n++) {
      plain += (WIDE)job->part[2 * (n * channels + c)];
      product += (WIDE)job->part[2 * (n * channels + c) + 1];
    }
    FN(vector_put)(&job->dw, 0, c, product);
    FN(vector_put)(&job->db, 0, c, plain);
  }
}

/* Chan, Golub & LeVeque 1979: parts' squared distances from their own means, and their means' from the common one. */
static void FN(gather)(void *ctx, int64_t lo, int64_t hi) {
  const gather_job *job = ctx;
  for (int64_t c = lo; c < hi; c++) {
    WIDE total = 0, sum = 0, squares = 0;
    for (int64_t k = 0; k < job->devices; k++) {
      WIDE count = (WIDE)FN(vector_get)(&job->counts, 0, k);
      total += count;
      sum += count * (WIDE)FN(vector_get)(&job->mean, k, c);
    }
    WIDE mean = sum / total;
    for (int64_t k = 0; k < job->devices; k++) {
      WIDE count = (WIDE)FN(vector_get)(&job->counts, 0, k), r = (WIDE)FN(vector_get)(&job->rstd, k, c);
      WIDE d = (WIDE)FN(vector_get)(&job->mean, k, c) - mean;
      squares += ((1 / (r * r) - job->eps) + d * d) * count;
    }
    FN(vector_put)(&job->mean_out, 0, c, mean);
    FN(vector_put)(&job->rstd_out, 0, c, 1 / sqrt(squares / total + job->eps));
    FN(new_running)(&job->new_mean, &job->run_mean, c, job->momentum, mean);
    FN(new_running)(&job->new_var, &job->run_var, c, job->momentum, squares / (total - 1));
  }
}
