/* Connectionist temporal classification for one type (each_real.h), after Graves et al. 2006 in the logarithm: states are
 * the labels with blanks between and around them; each is reached from itself, the one before and, where two labels
 * differ, the one before that. */
typedef struct FN(ctc_states_of) {
  int64_t count;      /* 2 labels + 1 */
  int64_t *label;     /* of each state */
  REAL *skip, *emit;  /* 0 where the state two before leads here, else -inf; log_probs of the states' labels */
  REAL *now, *before; /* log alpha or beta with two states of -inf at each end */
  REAL *line;         /* log_probs of all classes at one step */
} FN(ctc_states);

static bool FN(ctc_open)(const ctc_job *job, int64_t n, FN(ctc_states) * s) {
  size_t most = (size_t)(2 * job->labels + 1) + 4, classes = (size_t)job->classes;
  char *memory = HAIAN_SYM(workspace)(1, most * 8 + (4 * most + classes) * sizeof(REAL));
  if (!memory) return false;
  s->count = 2 * job->target_lengths[n * job->target_lengths_n] + 1;
  s->label = (int64_t *)memory;
  s->skip = (REAL *)(memory + most * 8);
  s->emit = s->skip + most;
  s->now = s->emit + most + 2;
  s->before = s->now + most;
  s->line = s->before + most - 2;
  for (int64_t k = 0; k < s->count; k++)
    s->label[k] = k % 2 ? job->targets[n * job->targets_n + k / 2 * job->targets_s] : job->blank;
  return true;
}

/* emit = log_probs of the states' labels at a step */
ROW_INLINE void FN(ctc_emit)(const ctc_job *job, int64_t n, int64_t t, FN(ctc_states) * s) {
  const char *x = job->logp + (t * job->logp_t + n * job->logp_n) * row_item(job->dtype);
  const REAL *p = (const REAL *)x;
  if (job->logp_c != 1 || job->dtype != REAL_DTYPE) {
    FN(load)(job->dtype, x, job->logp_c, job->classes, s->line);
    p = s->line;
  }
  for (int64_t k = 0; k < s->count; k++) s->emit[k] = p[s->label[k]];
}

/* now = emit + log(exp(before) + exp(before, one state over) + exp(before, two states over) where that counts) */
ROW_INLINE void FN(ctc_step)(FN(ctc_states) * s, int64_t over) {
  const REAL *a = s->before, *b = s->before - over, *c = s->before - 2 * over, *skip = s->skip, *emit = s->emit;
  REAL *to = s->now;
#pragma GCC ivdep
  for (int64_t k = 0; k < s->count; k++) {
    REAL u = a[k], v = b[k], w = skip[k] == 0 ? c[k] : skip[k], top = u > v ? u : v;
    top = top > w ? top : w;
    REAL shift = top == -(REAL)INFINITY ? 0 : top;
    to[k] = REAL_LOG(REAL_EXP(u - shift) + REAL_EXP(v - shift) + REAL_EXP(w - shift)) + shift + emit[k];
  }
}

ROW_INLINE void FN(ctc_clear)(FN(ctc_states) * s) {
  for (int64_t k = -2; k < s->count + 2; k++) s->now[k] = s->before[k] = -(REAL)INFINITY;
}

ROW_INLINE void FN(ctc_swap)(FN(ctc_states) * s) {
  REAL *was = s->now;
  s->now = s->before;
  s->before = was;
}

/* log(exp(a) + exp(b)) */
ROW_INLINE double FN(ctc_sum)(double a, double b) {
  double top = a > b ? a : b;
  return top == -INFINITY ? top : top + log(exp(a - top) + exp(b - top));
}

static void FN(ctc_forward)(void *ctx, int64_t lo, int64_t hi) {
  ctc_job *job = ctx;
  FN(ctc_states) s;
  for (int64_t n = lo; n < hi; n++) {
    if (!FN(ctc_open)(job, n, &s)) {
      atomic_store(&job->failed, true);
      return;
    }
    int64_t steps = job->lengths[n * job->lengths_n], width = 2 * job->labels + 1;
    for (int64_t k = 0; k < s.count; k++)
      s.skip[k] = k % 2 && k > 1 && s.label[k] != s.label[k - 2] ? 0 : -(REAL)INFINITY;
    FN(ctc_clear)(&s);
    for (int64_t t = 0; t < job->steps; t++) {
      char *alpha = job->alpha + (n * job->alpha_n + t * job->alpha_t) * (int64_t)sizeof(REAL);
      if (t < steps) {
        FN(ctc_emit)(job, n, t, &s);
        if (t) {
          FN(ctc_step)(&s, 1);
        } else {
          s.now[0] = s.emit[0];
          if (s.count > 1) s.now[1] = s.emit[1];
        }
        FN(ctc_swap)(&s);
      }
      for (int64_t k = 0; k < width; k++)
        *(REAL *)(alpha + k * job->alpha_s * (int64_t)sizeof(REAL)) =
            t < steps && k < s.count ? s.before[k] : -(REAL)INFINITY;
    }
    double last = steps ? (double)s.before[s.count - 1] : s.count > 1 ? -INFINITY : 0;
    if (steps && s.count > 1) last = FN(ctc_sum)(last, (double)s.before[s.count - 2]);
    FN(store_one)(job->dtype, job->nll + n * job->nll_n * row_item(job->dtype), (REAL)-last);
  }
}

/* exp(log_probs) - the chance that a path of the labels is in a class at a step, times dy */
static void FN(ctc_backward)(void *ctx, int64_t lo, int64_t hi) {
  ctc_job *job = ctx;
  FN(ctc_states) s;
  int64_t item = row_item(job->dtype);
  for (int64_t n = lo; n < hi; n++) {
    if (!FN(ctc_open)(job, n, &s)) {
      atomic_store(&job->failed, true);
      return;
    }
    int64_t steps = job->lengths[n * job->lengths_n];
    REAL nll = FN(load_one)(job->dtype, job->nll_in + n * job->nll_n * item);
    REAL dy = FN(load_one)(job->dtype, job->dy + n * job->dy_n * item);
    bool none = job->zero_infinity && nll == (REAL)INFINITY;
    for (int64_t k = 0; k < s.count; k++) /* going back, a state is reached from the one two behind it */
      s.skip[k] = k % 2 && k + 2 < s.count && s.label[k] != s.label[k + 2] ? 0 : -(REAL)INFINITY;
    FN(ctc_clear)(&s);
    for (int64_t t = job->steps - 1; t >= 0; t--) {
      char *to = job->grad + (t * job->grad_t + n * job->grad_n) * item;
      if (none || t >= steps) {
        for (int64_t c = 0; c < job->classes; c++) FN(store_one)(job->dtype, to + c * job->grad_c * item, 0);
        continue;
      }
      FN(ctc_emit)(job, n, t, &s);
      if (t < steps - 1) {
        FN(ctc_step)(&s, -1);
      } else {
        s.now[s.count - 1] = s.emit[s.count - 1];
        if (s.count > 1) s.now[s.count - 2] = s.emit[s.count - 2];
      }
      FN(ctc_swap)(&s);
      FN(load)(job->dtype, job->logp + (t * job->logp_t + n * job->logp_n) * item, job->logp_c, job->classes, s.line);
      REAL *g = s.line;
      for (int64_t c = 0; c < job->classes; c++) g[c] = REAL_EXP(g[c]);
      const char *alpha = job->alpha_in + (n * job->alpha_n + t * job->alpha_t) * (int64_t)sizeof(REAL);
      for (int64_t k = 0; k < s.count; k++) { /* alpha and beta both hold the step's own log_probs */
        REAL a = *(const REAL *)(alpha + k * job->alpha_s * (int64_t)sizeof(REAL));
        REAL both = a + s.before[k];
        g[s.label[k]] -= both == -(REAL)INFINITY ? 0 : REAL_EXP(both - s.emit[k] + nll);
      }
      if (!(nll < (REAL)INFINITY)) /* no path at all */
        for (int64_t c = 0; c < job->classes; c++) g[c] = (REAL)NAN;
      for (int64_t c = 0; c < job->classes; c++) FN(store_one)(job->dtype, to + c * job->grad_c * item, g[c] * dy);
    }
  }
}
