/* Losses element by element and their gradients: argument checks, broadcasting, partition into blocks.
 * A loss is computed in runs that lie in L1 and summed from there: nothing of the input's size is kept.  Blocks are cut
 * by position alone and added in order.  Not here: the formulas (element_loss_real.h). */
#include "elementary.h"
#include "row.h"

#define LOSS_RUN 1024   /* elements computed at a time */
#define LOSS_BLOCK 8192 /* elements of a block at least: ~5 us */
#define LOSS_BLOCKS 256 /* partial sums at most */
#define LOSS_OPERANDS 5 /* dy, x, target, weight, pos_weight */

enum element_loss { L1, MSE, SMOOTH_L1, HUBER, ENTROPY, LOGITS, DIVERGENCE, LOG_DIVERGENCE, FOCAL };
enum operand { DY, X, TARGET, WEIGHT, POS_WEIGHT };
enum reduction { REDUCTION_NONE, REDUCTION_MEAN, REDUCTION_SUM }; /* index in the schema */

typedef struct element_job {
  enum element_loss loss;
  bool slope, sum, stream; /* the gradient; the losses are added up; store past the caches */
  int64_t n, block;
  double a, b, scale; /* attributes of the loss; what the gradient is multiplied by */
  row_axes in[LOSS_OPERANDS], y;
  const char *data[LOSS_OPERANDS]; /* NULL: not given */
  const char *one;                 /* dy where it is one number, else NULL */
  char *y_data;
  double part[LOSS_BLOCKS];
} element_job;

#define TEMPLATE "element_loss_real.h"
#include "each_real.h"

/* *shape grows to what it and t broadcast to. */
static bool widen(haian_tensor *shape, const haian_tensor *t) {
  if (!t) return true;
  int ndim = t->ndim > shape->ndim ? t->ndim : shape->ndim;
  haian_tensor wide = {.ndim = ndim};
  for (int i = 0; i < ndim; i++) {
    int a = i - ndim + shape->ndim, b = i - ndim + t->ndim;
    int64_t m = a < 0 ? 1 : shape->shape[a], n = b < 0 ? 1 : t->shape[b];
    if (m != n && m != 1 && n != 1) return false;
    wide.shape[i] = m == 1 ? n : m;
  }
  *shape = wide;
  return true;
}

/* t as a row over all elements of the common shape, stride 0 where it repeats. */
static void spread(element_job *job, enum operand which, const haian_tensor *t, const haian_tensor *shape) {
  if (!t) return;
  haian_tensor wide = *shape;
  wide.dtype = t->dtype;
  for (int i = 0; i < wide.ndim; i++) {
    int a = i - wide.ndim + t->ndim;
    wide.stride[i] = a < 0 || t->shape[a] == 1 ? 0 : t->stride[a];
  }
  row_of(&job->in[which], &wide, ~0u);
  job->data[which] = t->data;
}

static double number(const haian_attr *a) { return a->kind == HAIAN_INT ? (double)a->i : a->f; }

/* in: [dy,] x, target[, weight[, pos_weight]]; equal: weights may not make the result larger than x and target. */
static int32_t run(const char *name, enum element_loss loss, const haian_args *args, bool slope, int64_t reduction,
                   double a, double b, bool equal) {
  const haian_tensor *x = args->in[slope], *target = args->in[slope + 1], *y = args->out[0],
                     *dy = slope ? args->in[0] : NULL;
  HAIAN_REQUIRE(row_is_float(x->dtype), HAIAN_DTYPE,
                "%s: x has dtype %s; accepts float32, float16, bfloat16, float64; cast it first", name,
                haian_dtype_name(x->dtype));
  haian_tensor shape = *x;
  for (int i = 0; i < args->n_in + 1; i++) {
    const haian_tensor *t = i < args->n_in ? args->in[i] : y;
    HAIAN_REQUIRE(!t || t->dtype == x->dtype, HAIAN_DTYPE, "%s: dtypes %s and %s differ; cast one first", name,
                  haian_dtype_name(x->dtype), haian_dtype_name(t->dtype));
    if (i < slope || i == args->n_in) continue;
    HAIAN_REQUIRE(widen(&shape, t), HAIAN_SHAPE, "%s: %s and %s do not broadcast; make the sizes equal or 1", name,
                  row_shape(x).text, row_shape(t).text);
  }
  HAIAN_REQUIRE(!equal || (haian_same_shape(x, target) && haian_same_shape(x, &shape)), HAIAN_SHAPE,
                "%s: x is %s, target %s and with the weights %s; they must be equal", name, row_shape(x).text,
                row_shape(target).text, row_shape(&shape).text);
  HAIAN_REQUIRE(reduction >= REDUCTION_NONE && reduction <= REDUCTION_SUM, HAIAN_INVALID_ARGUMENT,
                "%s: reduction %lld; needs 0 (none), 1 (mean) or 2 (sum)", name, (long long)reduction);
  bool each = reduction == REDUCTION_NONE;
  HAIAN_REQUIRE(slope || each ? haian_same_shape(y, &shape) : y->ndim == 0, HAIAN_SHAPE,
                "%s: the result is %s; needs %s for this reduction", name, row_shape(y).text,
                slope || each ? row_shape(&shape).text : "()");
  HAIAN_REQUIRE(!dy || dy->ndim == 0 || (each && haian_same_shape(dy, &shape)), HAIAN_SHAPE,
                "%s: dy is %s; needs %s for this reduction", name, row_shape(dy).text,
                each ? row_shape(&shape).text : "()");
  element_job job;
  job.loss = loss;
  job.slope = slope;
  job.sum = !slope && !each;
  job.a = a;
  job.b = b;
  job.n = 1;
  for (int i = 0; i < shape.ndim; i++) job.n *= shape.shape[i];
  job.scale = reduction == REDUCTION_MEAN ? 1 / (double)job.n : 1;
  for (int i = 0; i < LOSS_OPERANDS; i++) job.data[i] = NULL;
  job.one = dy && dy->ndim == 0 ? dy->data : NULL;
  if (dy && dy->ndim) spread(&job, DY, dy, &shape);
  for (int i = slope; i < args->n_in; i++) spread(&job, (enum operand)(X + i - slope), args->in[i], &shape);
  row_of(&job.y, y, ~0u);
  job.y_data = y->data;
  job.stream = !job.sum && job.y.stride[job.y.ndim - 1] == 1 && job.n * job.y.item >= HAIAN_STREAM_BYTES;
  job.block = (job.n + LOSS_BLOCKS - 1) / LOSS_BLOCKS;
  job.block = !job.sum || job.block < LOSS_BLOCK ? LOSS_BLOCK : (job.block + LOSS_RUN - 1) / LOSS_RUN * LOSS_RUN;
  int64_t blocks = (job.n + job.block - 1) / job.block;
  bool f64 = x->dtype == HAIAN_F64;
  haian_parallel_for(blocks, row_grain(job.block, 2 * job.in[X].item), f64 ? element_blocks_f64 : element_blocks_f32,
                     &job);
  if (job.sum) {
    double sum = 0;
    for (int64_t i = 0; i < blocks; i++) sum += job.part[i];
    if (reduction == REDUCTION_MEAN) sum /= (double)job.n;
    if (f64) store_one_f64(y->dtype, y->data, sum);
    else store_one_f32(y->dtype, y->data, (float)sum);
  }
  return HAIAN_OK;
}

/* one attribute a: what it is called and the least value (strict: which it may not have itself) */
static int32_t with_number(const char *name, enum element_loss loss, const haian_args *args, bool slope,
                           const char *what, bool strict) {
  double a = number(&args->attr[1]);
  HAIAN_REQUIRE(strict ? a > 0 : a >= 0, HAIAN_INVALID_ARGUMENT, "%s: %s is %g; needs %s", name, what, a,
                strict ? "more than 0" : "0 or more");
  return run(name, loss, args, slope, args->attr[0].i, a, 0, false);
}

#define LOSS(name, kind, equal) \
  static int32_t name(const haian_args *args) { return run(#name, kind, args, false, args->attr[0].i, 0, 0, equal); }
#define SLOPE(name, kind, equal) \
  static int32_t name(const haian_args *args) { return run(#name, kind, args, true, args->attr[0].i, 0, 0, equal); }
LOSS(mse_loss, MSE, false)
SLOPE(mse_loss_backward, MSE, false)
LOSS(l1_loss, L1, false)
LOSS(binary_cross_entropy, ENTROPY, true)
SLOPE(binary_cross_entropy_backward, ENTROPY, true)
LOSS(binary_cross_entropy_with_logits, LOGITS, false)
SLOPE(binary_cross_entropy_with_logits_backward, LOGITS, false)

#define NUMBER(name, kind, slope, what, strict) \
  static int32_t name(const haian_args *args) { return with_number(#name, kind, args, slope, what, strict); }
NUMBER(smooth_l1_loss, SMOOTH_L1, false, "beta", false)
NUMBER(smooth_l1_loss_backward, SMOOTH_L1, true, "beta", false)
NUMBER(huber_loss, HUBER, false, "delta", true)
NUMBER(huber_loss_backward, HUBER, true, "delta", true)

static int32_t kl_div(const haian_args *args) {
  bool log_target = args->attr[1].kind == HAIAN_INT && args->attr[1].i != 0;
  return run("kl_div", log_target ? LOG_DIVERGENCE : DIVERGENCE, args, false, args->attr[0].i, 0, 0, false);
}

static int32_t focal(const char *name, const haian_args *args, bool slope) {
  double gamma = number(&args->attr[1]);
  HAIAN_REQUIRE(gamma >= 0, HAIAN_INVALID_ARGUMENT, "%s: gamma is %g; needs 0 or more", name, gamma);
  return run(name, FOCAL, args, slope, args->attr[2].i, number(&args->attr[0]), gamma, false);
}
static int32_t sigmoid_focal_loss(const haian_args *args) { return focal("sigmoid_focal_loss", args, false); }
static int32_t sigmoid_focal_loss_backward(const haian_args *args) {
  return focal("sigmoid_focal_loss_backward", args, true);
}

#define ENTRY(name) {#name, name, HAIAN_FLOATS, NULL}
const haian_kernel_entry HAIAN_TABLE(element_loss)[] = {
    ENTRY(mse_loss),
    ENTRY(mse_loss_backward),
    ENTRY(l1_loss),
    ENTRY(smooth_l1_loss),
    ENTRY(smooth_l1_loss_backward),
    ENTRY(huber_loss),
    ENTRY(huber_loss_backward),
    ENTRY(binary_cross_entropy),
    ENTRY(binary_cross_entropy_backward),
    ENTRY(binary_cross_entropy_with_logits),
    ENTRY(binary_cross_entropy_with_logits_backward),
    ENTRY(kl_div),
    ENTRY(sigmoid_focal_loss),
    ENTRY(sigmoid_focal_loss_backward),
    {NULL, NULL, 0, NULL},
};
