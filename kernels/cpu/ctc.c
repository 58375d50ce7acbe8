/* ctc_loss_forward and its gradient: argument checks, one sequence a task.  Not here: the recursions (ctc_real.h). */
#include "elementary.h"
#include "gemm/gemm.h"
#include "row.h"
#include <stdatomic.h>

typedef struct ctc_job {
  int64_t steps, batch, classes, labels, blank; /* T, N, C, S; states are 2 S + 1 */
  bool zero_infinity;
  int32_t dtype;
  const char *logp, *dy, *nll_in, *alpha_in;
  int64_t logp_t, logp_n, logp_c, dy_n, nll_n, alpha_n, alpha_t, alpha_s, grad_t, grad_n, grad_c;
  const int64_t *targets, *lengths, *target_lengths;
  int64_t targets_n, targets_s, lengths_n, target_lengths_n;
  char *nll, *alpha, *grad;
  atomic_bool failed; /* a thread had no memory for its states */
} ctc_job;

#define TEMPLATE "ctc_real.h"
#include "each_real.h"

/* in: log_probs (T, N, C), targets (N, S), input_lengths (N), target_lengths (N) */
static int32_t check(const char *name, const haian_tensor *const *in, int64_t blank, ctc_job *job) {
  const haian_tensor *x = in[0];
  HAIAN_REQUIRE(x->dtype == HAIAN_F32 || x->dtype == HAIAN_F64, HAIAN_DTYPE,
                "%s: log_probs has dtype %s; accepts float32, float64; cast it first", name,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(in[1]->dtype == HAIAN_I64 && in[2]->dtype == HAIAN_I64 && in[3]->dtype == HAIAN_I64, HAIAN_DTYPE,
                "%s: targets and lengths are %s, %s, %s; need int64", name, haian_dtype_name(in[1]->dtype),
                haian_dtype_name(in[2]->dtype), haian_dtype_name(in[3]->dtype));
  HAIAN_REQUIRE(x->ndim == 3 && in[1]->ndim == 2 && in[2]->ndim == 1 && in[3]->ndim == 1 &&
                    in[1]->shape[0] == x->shape[1] && in[2]->shape[0] == x->shape[1] && in[3]->shape[0] == x->shape[1],
                HAIAN_SHAPE, "%s: log_probs is %s, targets %s, lengths %s and %s; needs (T, N, C), (N, S), (N,), (N,)",
                name, row_shape(x).text, row_shape(in[1]).text, row_shape(in[2]).text, row_shape(in[3]).text);
  job->steps = x->shape[0];
  job->batch = x->shape[1];
  job->classes = x->shape[2];
  job->labels = in[1]->shape[1];
  job->blank = blank;
  HAIAN_REQUIRE(blank >= 0 && blank < job->classes, HAIAN_INVALID_ARGUMENT,
                "%s: blank is %lld; needs 0 <= blank < %lld", name, (long long)blank, (long long)job->classes);
  job->dtype = x->dtype;
  job->logp = x->data;
  job->logp_t = x->stride[0];
  job->logp_n = x->stride[1];
  job->logp_c = x->stride[2];
  job->targets = in[1]->data;
  job->targets_n = in[1]->stride[0];
  job->targets_s = in[1]->stride[1];
  job->lengths = in[2]->data;
  job->lengths_n = in[2]->stride[0];
  job->target_lengths = in[3]->data;
  job->target_lengths_n = in[3]->stride[0];
  for (int64_t n = 0; n < job->batch; n++) {
    int64_t steps = job->lengths[n * job->lengths_n], labels = job->target_lengths[n * job->target_lengths_n];
    HAIAN_REQUIRE(steps >= 0 && steps <= job->steps && labels >= 0 && labels <= job->labels, HAIAN_INDEX,
                  "%s: sequence %lld has input length %lld and target length %lld; needs at most %lld and %lld", name,
                  (long long)n, (long long)steps, (long long)labels, (long long)job->steps, (long long)job->labels);
    for (int64_t s = 0; s < labels; s++) {
      int64_t c = job->targets[n * job->targets_n + s * job->targets_s];
      HAIAN_REQUIRE(c >= 0 && c < job->classes, HAIAN_INDEX,
                    "%s: target %lld at position (%lld, %lld) is outside 0 <= target < %lld", name, (long long)c,
                    (long long)n, (long long)s, (long long)job->classes);
    }
  }
  return HAIAN_OK;
}

static int32_t run(const char *name, ctc_job *job, void (*body)(void *, int64_t, int64_t)) {
  haian_parallel_for(job->batch, 1, body, job);
  HAIAN_REQUIRE(!atomic_load(&job->failed), HAIAN_OUT_OF_MEMORY, "%s: no memory for %lld states", name,
                (long long)(2 * job->labels + 1));
  return HAIAN_OK;
}

static int32_t check_alpha(const char *name, const ctc_job *job, const haian_tensor *nll, const haian_tensor *alpha) {
  HAIAN_REQUIRE(nll->dtype == job->dtype && nll->ndim == 1 && nll->shape[0] == job->batch, HAIAN_SHAPE,
                "%s: neg_log_likelihood is %s %s; needs %s (%lld,)", name, haian_dtype_name(nll->dtype),
                row_shape(nll).text, haian_dtype_name(job->dtype), (long long)job->batch);
  HAIAN_REQUIRE(alpha->dtype == job->dtype && alpha->ndim == 3 && alpha->shape[0] == job->batch &&
                    alpha->shape[1] == job->steps && alpha->shape[2] == 2 * job->labels + 1,
                HAIAN_SHAPE, "%s: log_alpha is %s %s; needs %s (%lld, %lld, %lld)", name,
                haian_dtype_name(alpha->dtype), row_shape(alpha).text, haian_dtype_name(job->dtype),
                (long long)job->batch, (long long)job->steps, (long long)(2 * job->labels + 1));
  return HAIAN_OK;
}

static bool is_true(const haian_attr *a) { return a->kind == HAIAN_INT && a->i != 0; }

static int32_t ctc_loss_forward(const haian_args *args) {
  static const char name[] = "ctc_loss_forward";
  ctc_job job = {.zero_infinity = false};
  const haian_tensor *nll = args->out[0], *alpha = args->out[1];
  int32_t bad = check(name, (const haian_tensor *const *)args->in, args->attr[0].i, &job);
  if (bad || (bad = check_alpha(name, &job, nll, alpha))) return bad;
  job.nll = nll->data;
  job.nll_n = nll->stride[0];
  job.alpha = alpha->data;
  job.alpha_n = alpha->stride[0];
  job.alpha_t = alpha->stride[1];
  job.alpha_s = alpha->stride[2];
  return run(name, &job, job.dtype == HAIAN_F64 ? ctc_forward_f64 : ctc_forward_f32);
}

/* in: dy (N), log_probs, targets, input_lengths, target_lengths, neg_log_likelihood (N), log_alpha */
static int32_t ctc_loss_backward(const haian_args *args) {
  static const char name[] = "ctc_loss_backward";
  ctc_job job = {.zero_infinity = is_true(&args->attr[1])};
  const haian_tensor *dy = args->in[0], *x = args->in[1], *nll = args->in[5], *alpha = args->in[6],
                     *grad = args->out[0];
  int32_t bad = check(name, (const haian_tensor *const *)args->in + 1, args->attr[0].i, &job);
  if (bad || (bad = check_alpha(name, &job, nll, alpha))) return bad;
  HAIAN_REQUIRE(dy->dtype == x->dtype && dy->ndim == 1 && dy->shape[0] == job.batch, HAIAN_SHAPE,
                "%s: dy is %s %s; needs %s (%lld,)", name, haian_dtype_name(dy->dtype), row_shape(dy).text,
                haian_dtype_name(x->dtype), (long long)job.batch);
  HAIAN_REQUIRE(grad->dtype == x->dtype && haian_same_shape(grad, x), HAIAN_SHAPE, "%s: the result is %s; needs %s",
                name, row_shape(grad).text, row_shape(x).text);
  job.dy = dy->data;
  job.dy_n = dy->stride[0];
  job.nll_in = nll->data;
  job.nll_n = nll->stride[0];
  job.alpha_in = alpha->data;
  job.alpha_n = alpha->stride[0];
  job.alpha_t = alpha->stride[1];
  job.alpha_s = alpha->stride[2];
  job.grad = grad->data;
  job.grad_t = grad->stride[0];
  job.grad_n = grad->stride[1];
  job.grad_c = grad->stride[2];
  return run(name, &job, job.dtype == HAIAN_F64 ? ctc_backward_f64 : ctc_backward_f32);
}

const haian_kernel_entry HAIAN_TABLE(ctc)[] = {
    {"ctc_loss_forward", ctc_loss_forward, HAIAN_BIT(HAIAN_F32) | HAIAN_BIT(HAIAN_F64), NULL},
    {"ctc_loss_backward", ctc_loss_backward, HAIAN_BIT(HAIAN_F32) | HAIAN_BIT(HAIAN_F64), NULL},
    {NULL, NULL, 0, NULL},
};
