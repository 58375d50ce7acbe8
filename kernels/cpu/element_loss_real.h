/* Formulas of element-wise losses for one type (each_real.h): p is x, q the target, v the result of a run. */
#if REAL_IS_FLOAT
#define REAL_LOG1P haian_log1pf
#define REAL_MAX haian_maxf
#define REAL_ABS haian_absf
#define REAL_PICK haian_pickf
#define REAL_POW haian_powf
#else
#define REAL_LOG1P haian_log1p
#define REAL_MAX haian_max
#define REAL_ABS haian_abs
#define REAL_PICK haian_pick
#define REAL_POW pow
#endif

/* sigmoid(x), sigmoid(-x) and log(1 + exp(-|x|)) */
typedef struct FN(logit_of) {
  REAL p, q, l;
} FN(logit);
ROW_INLINE FN(logit) FN(logit_parts)(REAL x) {
  REAL e = REAL_EXP(-REAL_ABS(x)), whole = 1 / (1 + e), small = e * whole;
  return (FN(logit)){REAL_PICK(x < 0, small, whole), REAL_PICK(x < 0, whole, small), REAL_LOG1P(e)};
}

/* -(w t log p + (1 - t) log(1 - p)), p = sigmoid(x): the linear part of the side x lies on, and what curves */
ROW_INLINE REAL FN(logit_loss)(REAL x, REAL t, REAL w, REAL l) {
  REAL rest = 1 - t;
  return REAL_PICK(x >= 0, rest, -w * t) * x + (w * t + rest) * l;
}

ROW_INLINE REAL FN(divergence)(REAL x, REAL t) { return REAL_PICK(t == 0, 0, t * REAL_LOG(t)) - t * x; }

/* base^gamma for base >= 0 */
ROW_INLINE void FN(powers)(REAL *v, double gamma, int64_t n) {
  if (gamma == 2) {
    for (int64_t i = 0; i < n; i++) v[i] *= v[i];
  } else if (gamma == 0) {
    for (int64_t i = 0; i < n; i++) v[i] = 1;
  } else if (gamma != 1) {
    for (int64_t i = 0; i < n; i++) v[i] = (REAL)REAL_POW(v[i], (REAL)gamma);
  }
}

#define EACH(expression)                                   \
  do {                                                     \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) { \
      const REAL x = p[i], t = q[i];                       \
      v[i] = (expression);                                 \
    }                                                      \
    return;                                                \
  } while (0)

/* weight (1 - p)^gamma times the loss of logits, p the chance given to the target; with slope its derivative.  Every step
 * is a loop of its own: conditions inside one keep it from being vectorised. */
static void FN(focal)(const element_job *job, const REAL *restrict p, const REAL *restrict q, REAL *restrict v,
                      int64_t n) {
  REAL miss[LOSS_RUN], loss[LOSS_RUN], bend[LOSS_RUN], lower[LOSS_RUN];
  const REAL alpha = (REAL)job->a, gamma = (REAL)job->b;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; i++) {
    const REAL x = p[i], t = q[i];
    FN(logit) s = FN(logit_parts)(x);
    miss[i] = s.p * (1 - t) + s.q * t;
    loss[i] = FN(logit_loss)(x, t, 1, s.l);
    bend[i] = s.p * s.q * (1 - 2 * t); /* of miss */
    v[i] = (1 - t) * s.p - t * s.q;    /* of the loss */
  }
  if (job->slope && gamma != 0) {
    memcpy(lower, miss, sizeof(REAL) * (size_t)n);
    FN(powers)(lower, job->b - 1, n);
    FN(powers)(miss, job->b, n);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) v[i] = miss[i] * v[i] + gamma * lower[i] * bend[i] * loss[i];
  } else if (!job->slope) {
    FN(powers)(miss, job->b, n);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) v[i] = miss[i] * loss[i];
  }
  if (alpha < 0) return;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; i++) v[i] *= alpha * q[i] + (1 - alpha) * (1 - q[i]);
}

/* v = the loss of each element of a run; w: pos_weight or NULL. */
static void FN(losses)(const element_job *job, const REAL *restrict p, const REAL *restrict q, const REAL *restrict w,
                       REAL *restrict v, int64_t n) {
  const REAL a = (REAL)job->a, half = (REAL)0.5, slack = half * a;
  switch (job->loss) {
    case L1:
      EACH(REAL_ABS(x - t));
    case MSE:
      EACH((x - t) * (x - t));
    case SMOOTH_L1: {
      const REAL scale = a > 0 ? half / a : 0;
      EACH(REAL_PICK(REAL_ABS(x - t) < a, (x - t) * (x - t) * scale, REAL_ABS(x - t) - slack));
    }
    case HUBER:
      EACH(REAL_PICK(REAL_ABS(x - t) <= a, half * (x - t) * (x - t), a * (REAL_ABS(x - t) - slack)));
    case ENTROPY:
      EACH((t - 1) * REAL_MAX(REAL_LOG1P(-x), -100) - t * REAL_MAX(REAL_LOG(x), -100));
    case LOGITS:
      if (w) EACH(FN(logit_loss)(x, t, w[i], FN(logit_parts)(x).l));
      EACH(FN(logit_loss)(x, t, 1, FN(logit_parts)(x).l));
    case DIVERGENCE:
      EACH(FN(divergence)(x, t));
    case LOG_DIVERGENCE:
      EACH(REAL_EXP(t) * (t - x));
    default:
      FN(focal)(job, p, q, v, n);
  }
}

/* v = the derivative with respect to x. */
static void FN(slopes)(const element_job *job, const REAL *restrict p, const REAL *restrict q, const REAL *restrict w,
                       REAL *restrict v, int64_t n) {
  const REAL a = (REAL)job->a, tiny = (REAL)1e-12;
  switch (job->loss) {
    case MSE:
      EACH(2 * (x - t));
    case SMOOTH_L1:
      EACH(REAL_PICK(x - t <= -a, -1, REAL_PICK(x - t >= a, 1, (x - t) / a)));
    case HUBER:
      EACH(REAL_PICK(x - t <= -a, -a, REAL_PICK(x - t >= a, a, x - t)));
    case ENTROPY:
      EACH((x - t) / REAL_MAX((1 - x) * x, tiny));
    case LOGITS:
      if (w) EACH((1 - t) * FN(logit_parts)(x).p - t * w[i] * FN(logit_parts)(x).q);
      EACH((1 - t) * FN(logit_parts)(x).p - t * FN(logit_parts)(x).q);
    default:
      FN(focal)(job, p, q, v, n);
  }
}
#undef EACH

static void FN(element_blocks)(void *ctx, int64_t lo, int64_t hi) {
  element_job *job = ctx;
  REAL room[LOSS_OPERANDS][LOSS_RUN] __attribute__((aligned(64))), out[LOSS_RUN] __attribute__((aligned(64)));
  for (int64_t block = lo; block < hi; block++) {
    int64_t end = (block + 1) * job->block < job->n ? (block + 1) * job->block : job->n;
    double sum = 0;
    for (int64_t at = block * job->block; at < end; at += LOSS_RUN) {
      int64_t n = end - at < LOSS_RUN ? end - at : LOSS_RUN;
      const REAL *in[LOSS_OPERANDS];
      for (int k = 0; k < LOSS_OPERANDS; k++)
        in[k] = job->data[k] ? FN(fetch)(&job->in[k], job->data[k], at, n, room[k]) : NULL;
      (job->slope ? FN(slopes) : FN(losses))(job, in[X], in[TARGET], in[POS_WEIGHT], out, n);
      if (in[WEIGHT])
        for (int64_t i = 0; i < n; i++) out[i] *= in[WEIGHT][i];
      if (job->slope) {
        REAL scale = (REAL)job->scale;
        if (job->one) scale *= FN(load_one)(job->in[X].dtype, job->one);
        for (int64_t i = 0; i < n; i++) out[i] *= scale;
        if (in[DY])
          for (int64_t i = 0; i < n; i++) out[i] *= in[DY][i];
      }
      if (job->sum) sum += (double)FN(sum_chunk)(out, n);
      else FN(put)(&job->y, job->y_data, at, n, out, job->stream);
    }
    if (job->sum) job->part[block] = sum;
  }
  if (job->stream) haian_stream_fence();
}
#undef REAL_LOG1P
#undef REAL_MAX
#undef REAL_ABS
#undef REAL_PICK
#undef REAL_POW
