/* Optimiser steps for one type (each_real.h): p param, g gradient (negated and with weight decay), a, b, c the states, each
 * read and written as one run. */

typedef struct FN(step_runs_of) {
  const REAL *in[STEP_TENSORS];
  REAL *out[STEP_TENSORS];
} FN(step_run);

#if REAL_IS_FLOAT
#define REAL_SQRT sqrtf
#else
#define REAL_SQRT sqrt
#endif
#define EACH_OF_RUN _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++)

/* g[i] = the gradient as the rules use it. */
ROW_INLINE void FN(step_gradient)(const step_job *job, const REAL *p, const REAL *d, REAL *g, int64_t n) {
  REAL sign = job->k.maximize ? -1 : 1, decay = job->rule == ADAMW ? 0 : (REAL)job->k.decay;
  if (decay != 0) {
    EACH_OF_RUN g[i] = sign * d[i] + decay * p[i];
  } else {
    EACH_OF_RUN g[i] = sign * d[i];
  }
}

ROW_INLINE void FN(step_sgd)(const step_job *job, const FN(step_run) * r, const REAL *g, int64_t n) {
  const REAL *p = r->in[0], *a = r->in[2];
  REAL *y = r->out[0], *to = r->out[2], lr = (REAL)job->k.lr, m = (REAL)job->k.momentum;
  REAL fresh = (REAL)(job->k.first ? 1 : 1 - job->k.dampening), kept = job->k.first ? 0 : m;
  if (m == 0) {
    EACH_OF_RUN y[i] = p[i] - lr * g[i];
    if (a && a != to) memmove(to, a, sizeof(REAL) * (size_t)n);
  } else if (job->k.first) { /* what the buffer holds does not count, NaN included */
    REAL by = job->k.nesterov ? 1 + m : 1;
    EACH_OF_RUN {
      y[i] = p[i] - lr * (by * g[i]);
      to[i] = g[i];
    }
  } else {
    EACH_OF_RUN {
      REAL buffer = kept * a[i] + fresh * g[i];
      y[i] = p[i] - lr * (job->k.nesterov ? g[i] + m * buffer : buffer);
      to[i] = buffer;
    }
  }
}

ROW_INLINE void FN(step_adam)(const step_job *job, const FN(step_run) * r, const REAL *g, int64_t n) {
  const REAL *p = r->in[0], *a = r->in[2], *b = r->in[3], *c = r->in[4];
  REAL *y = r->out[0], *ya = r->out[2], *yb = r->out[3], *yc = r->out[4];
  REAL beta1 = (REAL)job->k.beta1, beta2 = (REAL)job->k.beta2, new1 = (REAL)(1 - job->k.beta1),
       new2 = (REAL)(1 - job->k.beta2);
  REAL size = (REAL)(job->k.lr / job->k.fix1), scale = (REAL)(1 / sqrt(job->k.fix2)), eps = (REAL)job->k.eps;
  REAL keep = job->rule == ADAMW ? (REAL)(1 - job->k.lr * job->k.decay) : 1;
  if (c) {
    EACH_OF_RUN {
      REAL m = a[i] * beta1 + g[i] * new1, v = b[i] * beta2 + g[i] * g[i] * new2, old = c[i];
      REAL top = (v > old) | (v != v) ? v : old; /* NaN wins */
      y[i] = p[i] * keep - size * (m / (REAL_SQRT(top) * scale + eps));
      ya[i] = m;
      yb[i] = v;
      yc[i] = top;
    }
  } else {
    EACH_OF_RUN {
      REAL m = a[i] * beta1 + g[i] * new1, v = b[i] * beta2 + g[i] * g[i] * new2;
      y[i] = p[i] * keep - size * (m / (REAL_SQRT(v) * scale + eps));
      ya[i] = m;
      yb[i] = v;
    }
  }
}

ROW_INLINE void FN(step_rmsprop)(const step_job *job, const FN(step_run) * r, REAL *g, int64_t n) {
  const REAL *p = r->in[0], *a = r->in[2], *b = r->in[3], *c = r->in[4];
  REAL *y = r->out[0], *ya = r->out[2], *yb = r->out[3], *yc = r->out[4];
  REAL alpha = (REAL)job->k.beta2, fresh = (REAL)(1 - job->k.beta2), eps = (REAL)job->k.eps, lr = (REAL)job->k.lr,
       momentum = (REAL)job->k.momentum;
  if (job->k.centered) {
    EACH_OF_RUN {
      REAL square = a[i] * alpha + g[i] * g[i] * fresh, average = c[i] * alpha + g[i] * fresh;
      ya[i] = square;
      yc[i] = average;
      g[i] = g[i] / (REAL_SQRT(square - average * average) + eps);
    }
  } else {
    EACH_OF_RUN {
      REAL square = a[i] * alpha + g[i] * g[i] * fresh;
      ya[i] = square;
      g[i] = g[i] / (REAL_SQRT(square) + eps);
    }
    if (c && c != yc) memmove(yc, c, sizeof(REAL) * (size_t)n);
  }
  if (momentum != 0) {
    EACH_OF_RUN {
      REAL buffer = momentum * b[i] + g[i];
      yb[i] = buffer;
      g[i] = buffer;
    }
  } else if (b && b != yb) {
    memmove(yb, b, sizeof(REAL) * (size_t)n);
  }
  EACH_OF_RUN y[i] = p[i] - lr * g[i];
}

ROW_INLINE void FN(step_adadelta)(const step_job *job, const FN(step_run) * r, const REAL *g, int64_t n) {
  const REAL *p = r->in[0], *a = r->in[2], *b = r->in[3];
  REAL *y = r->out[0], *ya = r->out[2], *yb = r->out[3];
  REAL rho = (REAL)job->k.beta2, fresh = (REAL)(1 - job->k.beta2), eps = (REAL)job->k.eps, lr = (REAL)job->k.lr;
  EACH_OF_RUN {
    REAL square = a[i] * rho + g[i] * g[i] * fresh, old = b[i];
    REAL delta = REAL_SQRT(old + eps) / REAL_SQRT(square + eps) * g[i];
    y[i] = p[i] - lr * delta;
    ya[i] = square;
    yb[i] = old * rho + delta * delta * fresh;
  }
}

static void FN(step_runs)(void *ctx, int64_t lo, int64_t hi) {
  const step_job *job = ctx;
  REAL in[STEP_TENSORS][STEP_RUN], out[STEP_TENSORS][STEP_RUN], g[STEP_RUN];
  for (int64_t run = lo; run < hi; run++) {
    int64_t at = run * STEP_RUN, n = job->n - at < STEP_RUN ? job->n - at : STEP_RUN;
    FN(step_run) r = {{NULL}, {NULL}};
    for (int k = 0; k < job->tensors; k++)
      if (job->in_data[k]) r.in[k] = FN(fetch)(&job->in[k], job->in_data[k], at, n, in[k]);
    FN(step_gradient)(job, r.in[0], r.in[1], g, n);
    /* results go through buffers: an output may be another one's input, and is written once all of the run is read */
    for (int k = 0; k < job->tensors; k++)
      if (job->out_data[k]) r.out[k] = out[k];
    switch (job->rule) {
      case SGD:
        FN(step_sgd)(job, &r, g, n);
        break;
      case ADAM:
      case ADAMW:
        FN(step_adam)(job, &r, g, n);
        break;
      case RMSPROP:
        FN(step_rmsprop)(job, &r, g, n);
        break;
      default:
        FN(step_adadelta)(job, &r, g, n);
    }
    for (int k = 0; k < job->tensors; k++)
      if (job->out_data[k]) FN(put)(&job->out[k], job->out_data[k], at, n, r.out[k], false);
  }
}
#undef EACH_OF_RUN
#undef REAL_SQRT
