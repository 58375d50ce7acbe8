/* nll_loss, cross_entropy and the gradient of nll_loss: argument checks, class numbers, partition into rows.
 * Not here: the arithmetic (loss_real.h). */
#include "row.h"

#define LOSS_BLOCKS 256 /* partial sums of the losses at most */

enum reduction { REDUCTION_NONE, REDUCTION_MEAN, REDUCTION_SUM }; /* index in the schema */

typedef struct loss_job {
  bool entropy, mean; /* x are logits, not log-probabilities; the mean is asked for */
  int64_t rows, classes, block, ignore;
  double smoothing;
  row_axes x, w; /* the classes */
  const char *x_data, *w_data;
  const int64_t *target;
  char *each; /* losses row by row, or NULL */
  int64_t x_step, target_step, each_step;
  double loss[LOSS_BLOCKS], weights[LOSS_BLOCKS];
} loss_job;

typedef struct loss_grad_job {
  int64_t classes, ignore;
  row_axes dx, w;
  char *dx_data;
  const char *w_data, *dy, *total; /* total: the sum of weights of a mean, else NULL */
  const int64_t *target;
  bool dy_step_used; /* one dy a row */
  int64_t dx_step, target_step, dy_step;
} loss_grad_job;

#define TEMPLATE "loss_real.h"
#include "each_real.h"

static int32_t check(const char *name, const haian_tensor *x, const haian_tensor *target, const haian_tensor *w,
                     int64_t reduction, int64_t ignore) {
  HAIAN_REQUIRE(row_is_float(x->dtype), HAIAN_DTYPE,
                "%s: x has dtype %s; accepts float32, float16, bfloat16, float64; cast it first", name,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(x->ndim == 1 || x->ndim == 2, HAIAN_SHAPE,
                "%s: x has shape %s; needs (N, C) or (C,); move the classes last and reshape", name, row_shape(x).text);
  HAIAN_REQUIRE(target->dtype == HAIAN_I64, HAIAN_DTYPE,
                "%s: target has dtype %s; needs int64 class numbers; cast it first", name,
                haian_dtype_name(target->dtype));
  HAIAN_REQUIRE(target->ndim == x->ndim - 1 && (x->ndim == 1 || target->shape[0] == x->shape[0]), HAIAN_SHAPE,
                "%s: x is %s and target %s; target needs %s%.0lld%s, one class number for each row", name,
                row_shape(x).text, row_shape(target).text, x->ndim == 2 ? "shape (" : "shape ()",
                (long long)(x->ndim == 2 ? x->shape[0] : 0), x->ndim == 2 ? ",)" : "");
  int64_t classes = x->shape[x->ndim - 1], rows = x->ndim == 2 ? x->shape[0] : 1,
          step = x->ndim == 2 ? target->stride[0] : 0;
  if (w) {
    HAIAN_REQUIRE(w->dtype == x->dtype, HAIAN_DTYPE, "%s: weight has dtype %s and x %s; cast one first", name,
                  haian_dtype_name(w->dtype), haian_dtype_name(x->dtype));
    HAIAN_REQUIRE(w->ndim == 1 && w->shape[0] == classes, HAIAN_SHAPE,
                  "%s: weight is %s for %lld classes; needs (%lld,)", name, row_shape(w).text, (long long)classes,
                  (long long)classes);
  }
  HAIAN_REQUIRE(reduction >= REDUCTION_NONE && reduction <= REDUCTION_SUM, HAIAN_INVALID_ARGUMENT,
                "%s: reduction %lld; needs 0 (none), 1 (mean) or 2 (sum)", name, (long long)reduction);
  const int64_t *t = target->data;
  for (int64_t i = 0; i < rows; i++)
    HAIAN_REQUIRE(t[i * step] == ignore || (t[i * step] >= 0 && t[i * step] < classes), HAIAN_INDEX,
                  "%s: target %lld at position %lld is outside 0 <= target < %lld and is not ignore_index (%lld)", name,
                  (long long)t[i * step], (long long)i, (long long)classes, (long long)ignore);
  return HAIAN_OK;
}

/* A result that is one number a row for reduction none, else one number. */
static int32_t check_result(const char *name, const char *what, const haian_tensor *y, const haian_tensor *x,
                            const haian_tensor *target, bool each) {
  HAIAN_REQUIRE(y->dtype == x->dtype, HAIAN_DTYPE, "%s: %s has dtype %s and x %s; they must be equal", name, what,
                haian_dtype_name(y->dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(each ? haian_same_shape(y, target) : y->ndim == 0, HAIAN_SHAPE,
                "%s: %s is %s; needs %s for this reduction", name, what, row_shape(y).text,
                each ? row_shape(target).text : "()");
  return HAIAN_OK;
}

static int32_t loss(const char *name, const haian_args *args, bool entropy, double smoothing) {
  const haian_tensor *x = args->in[0], *target = args->in[1], *w = args->in[2], *y = args->out[0],
                     *total = args->n_out > 1 ? args->out[1] : NULL;
  int64_t reduction = args->attr[0].i, ignore = args->attr[1].i;
  bool each = reduction == REDUCTION_NONE;
  int32_t bad;
  if ((bad = check(name, x, target, w, reduction, ignore)) ||
      (bad = check_result(name, "the result", y, x, target, each)) ||
      (total && (bad = check_result(name, "total_weight", total, x, target, false))))
    return bad;
  uint32_t classes = 1u << (x->ndim - 1);
  loss_job job;
  job.entropy = entropy;
  job.mean = reduction == REDUCTION_MEAN;
  job.rows = x->ndim == 2 ? x->shape[0] : 1;
  job.classes = x->shape[x->ndim - 1];
  job.ignore = ignore;
  job.smoothing = smoothing;
  row_of(&job.x, x, classes);
  job.x_data = x->data;
  job.w_data = NULL;
  if (w) row_of(&job.w, w, 1), job.w_data = w->data;
  job.target = target->data;
  job.each = each ? y->data : NULL;
  job.x_step = x->ndim == 2 ? x->stride[0] : 0;
  job.target_step = x->ndim == 2 ? target->stride[0] : 0;
  job.each_step = each && x->ndim == 2 ? y->stride[0] : 0;
  job.block = (job.rows + LOSS_BLOCKS - 1) / LOSS_BLOCKS;
  if (job.block < 1) job.block = 1;
  int64_t blocks = (job.rows + job.block - 1) / job.block;
  bool f64 = x->dtype == HAIAN_F64;
  haian_parallel_for(blocks, row_grain(job.block * (entropy ? job.classes : 1), job.x.item),
                     f64 ? loss_blocks_f64 : loss_blocks_f32, &job);
  (f64 ? loss_finish_f64 : loss_finish_f32)(&job, blocks, y->data, total ? total->data : NULL);
  return HAIAN_OK;
}

static int32_t nll_loss(const haian_args *args) { return loss("nll_loss", args, false, 0); }
static int32_t nll_loss_forward(const haian_args *args) { return loss("nll_loss_forward", args, false, 0); }

static int32_t cross_entropy(const haian_args *args) {
  double smoothing = args->attr[2].kind == HAIAN_INT     ? (double)args->attr[2].i
                     : args->attr[2].kind == HAIAN_FLOAT ? args->attr[2].f
                                                         : 0;
  HAIAN_REQUIRE(smoothing >= 0 && smoothing <= 1, HAIAN_INVALID_ARGUMENT,
                "cross_entropy: label_smoothing is %g; needs 0 <= label_smoothing <= 1", smoothing);
  return loss("cross_entropy", args, true, smoothing);
}

static int32_t nll_loss_backward(const haian_args *args) {
  static const char name[] = "nll_loss_backward";
  const haian_tensor *dy = args->in[0], *x = args->in[1], *target = args->in[2], *w = args->in[3], *total = args->in[4],
                     *dx = args->out[0];
  int64_t reduction = args->attr[0].i, ignore = args->attr[1].i;
  bool each = reduction == REDUCTION_NONE;
  int32_t bad;
  if ((bad = check(name, x, target, w, reduction, ignore)) || (bad = check_result(name, "dy", dy, x, target, each)) ||
      (bad = check_result(name, "total_weight", total, x, target, false)))
    return bad;
  ROW_REQUIRE_LIKE("nll_loss_backward", "dx", dx, "x", x);
  if (x->numel == 0) return HAIAN_OK;
  loss_grad_job job = {.classes = x->shape[x->ndim - 1],
                       .ignore = ignore,
                       .dx_data = dx->data,
                       .dy = dy->data,
                       .total = reduction == REDUCTION_MEAN ? total->data : NULL,
                       .target = target->data,
                       .dy_step_used = each && x->ndim == 2};
  row_of(&job.dx, dx, 1u << (x->ndim - 1));
  if (w) row_of(&job.w, w, 1), job.w_data = w->data;
  if (x->ndim == 2) {
    job.dx_step = dx->stride[0];
    job.target_step = target->stride[0];
    job.dy_step = each ? dy->stride[0] : 0;
  }
  haian_parallel_for(x->ndim == 2 ? x->shape[0] : 1, row_grain(job.classes, job.dx.item),
                     x->dtype == HAIAN_F64 ? loss_grad_rows_f64 : loss_grad_rows_f32, &job);
  return HAIAN_OK;
}

const haian_kernel_entry HAIAN_TABLE(loss)[] = {
    {"nll_loss", nll_loss, HAIAN_FLOATS, NULL},
    {"nll_loss_forward", nll_loss_forward, HAIAN_FLOATS, NULL},
    {"nll_loss_backward", nll_loss_backward, HAIAN_FLOATS, NULL},
    {"cross_entropy", cross_entropy, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
