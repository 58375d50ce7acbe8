/* fused_linear_cross_entropy and its gradients: argument checks, the chunks of logits, the products around them.
 * The logits x weight^T + bias never exist as a whole: the loss takes chunks of rows, the gradients chunks of classes, so
 * that each row of dweight is one product over all rows.  Not here: the arithmetic of a row (fused_loss_real.h). */
#include "gemm/gemm.h"
#include "row.h"
#include <stdlib.h>

#define LINEAR_LOGITS (1 << 16) /* elements of a chunk where that is more than LINEAR_LEAST rows or classes */
#define LINEAR_LEAST 128        /* rows, and classes, of a chunk at least: fewer leave the product bound by memory */

#define LINEAR_ROWS 512 /* long rows of x: no more of them at a time */
#define LINEAR_CLASSES 2048

enum reduction { REDUCTION_NONE, REDUCTION_MEAN, REDUCTION_SUM }; /* index in the schema */

typedef struct linear_job {
  int64_t rows, classes, n; /* n: length of a row of x */
  int64_t first, wide;      /* the chunk: its first row or class, elements of one row of logits */
  int64_t ignore;
  double smoothing;
  const int64_t *target;
  int64_t target_step;
  char *logits, *slope; /* slope: of a 16-bit dtype, else NULL: it takes the place of the logits */
  double *loss, *scale; /* one a row; scale: what the gradient of a row is multiplied by, 0 where it is ignored */
  const char *lse_in;
  char *lse_out, *dx, *db;
  int64_t lse_step, db_step;
  int32_t dtype, acc, item;
  row_axes dx_rows;
  const char *dx_sum;
} linear_job;

#define TEMPLATE "fused_loss_real.h"
#include "each_real.h"

#define TRY(call)                            \
  do {                                       \
    const int32_t status_ = (call);          \
    if (status_ != HAIAN_OK) return status_; \
  } while (0)

static int32_t check(const char *name, const haian_tensor *x, const haian_tensor *w, const haian_tensor *target,
                     const haian_tensor *bias, int64_t reduction, int64_t ignore, double smoothing) {
  HAIAN_REQUIRE(row_is_float(x->dtype) && w->dtype == x->dtype && (!bias || bias->dtype == x->dtype), HAIAN_DTYPE,
                "%s: x has dtype %s, weight %s; needs one floating dtype for them and bias; cast first", name,
                haian_dtype_name(x->dtype), haian_dtype_name(w->dtype));
  HAIAN_REQUIRE(target->dtype == HAIAN_I64, HAIAN_DTYPE, "%s: target has dtype %s; needs int64 class numbers", name,
                haian_dtype_name(target->dtype));
  HAIAN_REQUIRE(x->ndim == 2 && w->ndim == 2 && x->shape[1] == w->shape[1], HAIAN_SHAPE,
                "%s: x is %s and weight %s; needs (rows, n) and (classes, n)", name, row_shape(x).text,
                row_shape(w).text);
  HAIAN_REQUIRE(target->ndim == 1 && target->shape[0] == x->shape[0], HAIAN_SHAPE,
                "%s: x is %s and target %s; needs one class number a row", name, row_shape(x).text,
                row_shape(target).text);
  HAIAN_REQUIRE(!bias || (bias->ndim == 1 && bias->shape[0] == w->shape[0]), HAIAN_SHAPE,
                "%s: bias is %s for %lld classes", name, row_shape(bias).text, (long long)w->shape[0]);
  HAIAN_REQUIRE(reduction >= REDUCTION_NONE && reduction <= REDUCTION_SUM && smoothing >= 0 && smoothing <= 1,
                HAIAN_INVALID_ARGUMENT, "%s: reduction %lld, label_smoothing %g; needs 0 to 2 and 0 to 1", name,
                (long long)reduction, smoothing);
  const int64_t *t = target->data, step = target->stride[0], classes = w->shape[0];
  for (int64_t i = 0; i < target->numel; i++)
    HAIAN_REQUIRE(t[i * step] == ignore || (t[i * step] >= 0 && t[i * step] < classes), HAIAN_INDEX,
                  "%s: target %lld at position %lld is outside 0 <= target < %lld and is not ignore_index (%lld)", name,
                  (long long)t[i * step], (long long)i, (long long)classes, (long long)ignore);
  return HAIAN_OK;
}

static int32_t check_vector(const char *name, const char *what, const haian_tensor *t, int32_t dtype, int64_t n) {
  HAIAN_REQUIRE(t->dtype == dtype && t->ndim == 1 && t->shape[0] == n, HAIAN_SHAPE, "%s: %s is %s %s; needs %s (%lld,)",
                name, what, haian_dtype_name(t->dtype), row_shape(t).text, haian_dtype_name(dtype), (long long)n);
  return HAIAN_OK;
}

static void job_of(linear_job *job, const haian_tensor *x, const haian_tensor *w, const haian_tensor *target,
                   int64_t ignore, double smoothing) {
  *job = (linear_job){.rows = x->shape[0],
                      .classes = w->shape[0],
                      .n = x->shape[1],
                      .ignore = ignore,
                      .smoothing = smoothing,
                      .target = target->data,
                      .target_step = target->stride[0],
                      .dtype = x->dtype,
                      .acc = row_item(x->dtype) == 2 ? HAIAN_F32 : x->dtype,
                      .item = (int32_t)row_item(x->dtype)};
}

/* logits (rows, classes) of rows [i, i + rows) and classes [c, c + classes), packed */
static int32_t logits(const char *name, const linear_job *job, const haian_tensor *x, const haian_tensor *w,
                      const haian_tensor *bias, int64_t i, int64_t rows, int64_t c, int64_t classes) {
  haian_gemm g = {.m = rows, .n = classes, .k = job->n, .alpha = 1, .beta = 1};
  g.a = (haian_matrix){.data = (const char *)x->data + i * x->stride[0] * job->item,
                       .row = x->stride[0],
                       .col = x->stride[1],
                       .dtype = x->dtype};
  g.b = (haian_matrix){.data = (const char *)w->data + c * w->stride[0] * job->item,
                       .row = w->stride[1],
                       .col = w->stride[0],
                       .dtype = w->dtype};
  g.c = (haian_matrix){.data = job->logits, .row = classes, .col = 1, .dtype = job->acc};
  if (bias)
    g.d = (haian_matrix){.data = (const char *)bias->data + c * bias->stride[0] * job->item,
                         .col = bias->stride[0],
                         .dtype = bias->dtype};
  return HAIAN_SYM(gemm)(name, &g);
}

static double number(const haian_attr *a) { return a->kind == HAIAN_INT ? (double)a->i : a->f; }

/* Rows (classes) of a chunk: as many as a product needs to run from the caches, which grows with the length of a row. */
static int64_t chunk_of(int64_t all, int64_t other, int64_t length, int64_t most) {
  int64_t n = LINEAR_LOGITS / (other > 0 ? other : 1), deep = length < most ? length : most;
  n = n < LINEAR_LEAST ? LINEAR_LEAST : n;
  n = n < deep ? deep : n;
  return n < all ? n : all > 0 ? all : 1;
}

static int32_t forward_rows(const char *name, linear_job *job, const haian_args *args, int64_t reduction) {
  const haian_tensor *x = args->in[0], *w = args->in[1], *bias = args->in[3], *y = args->out[0];
  bool f64 = x->dtype == HAIAN_F64;
  int64_t chunk = chunk_of(job->rows, job->classes, job->n, LINEAR_ROWS), kept = 0;
  for (job->first = 0; job->first < job->rows; job->first += chunk) {
    int64_t rows = job->rows - job->first < chunk ? job->rows - job->first : chunk;
    TRY(logits(name, job, x, w, bias, job->first, rows, 0, job->classes));
    haian_parallel_for(rows, row_grain(job->classes, 8), f64 ? linear_losses_f64 : linear_losses_f32, job);
  }
  double sum = 0;
  for (int64_t i = 0; i < job->rows; i++) {
    kept += job->target[i * job->target_step] != job->ignore;
    sum += job->loss[i];
    if (reduction != REDUCTION_NONE) continue;
    char *to = (char *)y->data + i * y->stride[0] * job->item;
    if (f64) store_one_f64(y->dtype, to, job->loss[i]);
    else store_one_f32(y->dtype, to, (float)job->loss[i]);
  }
  if (reduction == REDUCTION_NONE) return HAIAN_OK;
  if (reduction == REDUCTION_MEAN) sum /= (double)kept;
  if (f64) store_one_f64(y->dtype, y->data, sum);
  else store_one_f32(y->dtype, y->data, (float)sum);
  return HAIAN_OK;
}

/* in: x, weight, target, bias; attr: reduction, ignore_index, label_smoothing; out: loss, logsumexp */
static int32_t fused_linear_cross_entropy(const haian_args *args) {
  static const char name[] = "fused_linear_cross_entropy";
  const haian_tensor *x = args->in[0], *w = args->in[1], *target = args->in[2], *y = args->out[0], *lse = args->out[1];
  int64_t reduction = args->attr[0].i, ignore = args->attr[1].i;
  double smoothing = number(&args->attr[2]);
  TRY(check(name, x, w, target, args->in[3], reduction, ignore, smoothing));
  linear_job job;
  job_of(&job, x, w, target, ignore, smoothing);
  HAIAN_REQUIRE(y->dtype == x->dtype && (reduction == REDUCTION_NONE ? haian_same_shape(y, target) : y->ndim == 0),
                HAIAN_SHAPE, "%s: the result is %s %s; needs x's dtype and %s", name, haian_dtype_name(y->dtype),
                row_shape(y).text, reduction == REDUCTION_NONE ? row_shape(target).text : "()");
  TRY(check_vector(name, "logsumexp", lse, job.acc, job.rows));
  job.lse_out = lse->data;
  job.lse_step = lse->stride[0];
  size_t item = job.acc == HAIAN_F64 ? 8 : 4;
  job.logits = malloc((size_t)chunk_of(job.rows, job.classes, job.n, LINEAR_ROWS) * (size_t)(job.classes + 1) * item);
  job.loss = malloc(sizeof(double) * (size_t)(job.rows + 1));
  int32_t status = job.logits && job.loss
                       ? forward_rows(name, &job, args, reduction)
                       : haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for a chunk of logits of %lld classes", name,
                                    (long long)job.classes);
  free(job.logits);
  free(job.loss);
  return status;
}

static int32_t backward_classes(const char *name, linear_job *job, const haian_args *args) {
  const haian_tensor *x = args->in[1], *w = args->in[2], *bias = args->in[4], *dx = args->out[0], *dw = args->out[1];
  bool f64 = x->dtype == HAIAN_F64, narrow = job->item == 2;
  int64_t chunk = chunk_of(job->classes, job->rows, job->n, LINEAR_CLASSES);
  haian_matrix total =
      narrow ? (haian_matrix){.data = job->dx_sum, .row = job->n, .col = 1, .dtype = job->acc}
             : (haian_matrix){.data = dx->data, .row = dx->stride[0], .col = dx->stride[1], .dtype = dx->dtype};
  for (job->first = 0; job->first < job->classes; job->first += chunk) {
    int64_t classes = job->classes - job->first < chunk ? job->classes - job->first : chunk;
    job->wide = classes;
    TRY(logits(name, job, x, w, bias, 0, job->rows, job->first, classes));
    haian_parallel_for(job->rows, row_grain(classes, 8), f64 ? linear_slopes_f64 : linear_slopes_f32, job);
    haian_matrix slope = {
        .data = narrow ? job->slope : job->logits, .row = classes, .col = 1, .dtype = narrow ? job->dtype : job->acc};
    haian_matrix turned = {.data = slope.data, .row = 1, .col = classes, .dtype = slope.dtype};
    haian_matrix weight = {.data = (const char *)w->data + job->first * w->stride[0] * job->item,
                           .row = w->stride[0],
                           .col = w->stride[1],
                           .dtype = w->dtype};
    haian_gemm of_w = {.a = turned, .m = classes, .n = job->n, .k = job->rows, .alpha = 1, .beta = 1};
    of_w.b = (haian_matrix){.data = x->data, .row = x->stride[0], .col = x->stride[1], .dtype = x->dtype};
    of_w.c = (haian_matrix){.data = (char *)dw->data + job->first * dw->stride[0] * job->item,
                            .row = dw->stride[0],
                            .col = dw->stride[1],
                            .dtype = dw->dtype};
    TRY(HAIAN_SYM(gemm)(name, &of_w));
    haian_gemm of_x = {
        .a = slope, .b = weight, .c = total, .m = job->rows, .n = job->n, .k = classes, .alpha = 1, .beta = 1};
    if (job->first) of_x.d = total;
    TRY(HAIAN_SYM(gemm)(name, &of_x));
    haian_parallel_for(classes, row_grain(job->rows, 8), f64 ? linear_columns_f64 : linear_columns_f32, job);
  }
  if (narrow) haian_parallel_for(job->rows, row_grain(job->n, 8), linear_rounded_f32, job);
  return HAIAN_OK;
}

/* in: dy, x, weight, target, bias, logsumexp; attr: reduction, ignore_index, label_smoothing; out: dx, dweight, dbias */
static int32_t fused_linear_cross_entropy_backward(const haian_args *args) {
  static const char name[] = "fused_linear_cross_entropy_backward";
  const haian_tensor *dy = args->in[0], *x = args->in[1], *w = args->in[2], *target = args->in[3], *lse = args->in[5];
  const haian_tensor *dx = args->out[0], *dw = args->out[1], *db = args->out[2];
  int64_t reduction = args->attr[0].i, ignore = args->attr[1].i;
  double smoothing = number(&args->attr[2]);
  TRY(check(name, x, w, target, args->in[4], reduction, ignore, smoothing));
  linear_job job;
  job_of(&job, x, w, target, ignore, smoothing);
  HAIAN_REQUIRE(dy->dtype == x->dtype && (reduction == REDUCTION_NONE ? haian_same_shape(dy, target) : dy->ndim == 0),
                HAIAN_SHAPE, "%s: dy is %s %s; needs x's dtype and %s", name, haian_dtype_name(dy->dtype),
                row_shape(dy).text, reduction == REDUCTION_NONE ? row_shape(target).text : "()");
  HAIAN_REQUIRE(dx->dtype == x->dtype && haian_same_shape(dx, x) && dw->dtype == x->dtype && haian_same_shape(dw, w),
                HAIAN_SHAPE, "%s: dx is %s and dweight %s; they must be like x %s and weight %s", name,
                row_shape(dx).text, row_shape(dw).text, row_shape(x).text, row_shape(w).text);
  TRY(check_vector(name, "logsumexp", lse, job.acc, job.rows));
  TRY(check_vector(name, "dbias", db, x->dtype, job.classes));
  bool f64 = x->dtype == HAIAN_F64, narrow = job.item == 2;
  size_t item = f64 ? 8 : 4, chunk = (size_t)chunk_of(job.classes, job.rows, job.n, LINEAR_CLASSES),
         rows = (size_t)job.rows;
  job.lse_in = lse->data;
  job.lse_step = lse->stride[0];
  job.db = db->data;
  job.db_step = db->stride[0];
  job.dx = dx->data;
  row_of(&job.dx_rows, dx, ~0u);
  job.logits = malloc(chunk * (rows + 1) * item);
  job.slope = narrow ? malloc(chunk * (rows + 1) * 2) : NULL;
  job.scale = malloc(sizeof(double) * (rows + 1));
  char *sum = narrow ? malloc(rows * (size_t)job.n * 4 + 64) : NULL;
  job.dx_sum = sum;
  int32_t status = HAIAN_OK;
  if (!job.logits || !job.scale || (narrow && (!job.slope || !sum))) {
    status = haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for a chunk of %lld by %zu logits", name,
                        (long long)job.rows, chunk);
  } else {
    int64_t kept = 0;
    for (int64_t i = 0; i < job.rows; i++) kept += job.target[i * job.target_step] != ignore;
    for (int64_t i = 0; i < job.rows; i++) {
      const char *from = (const char *)dy->data + (reduction == REDUCTION_NONE ? i * dy->stride[0] * job.item : 0);
      double g = f64 ? load_one_f64(dy->dtype, from) : (double)load_one_f32(dy->dtype, from);
      g = reduction == REDUCTION_MEAN ? g / (double)kept : g;
      job.scale[i] = job.target[i * job.target_step] == ignore ? 0 : g;
    }
    status = backward_classes(name, &job, args);
  }
  free(job.logits);
  free(job.slope);
  free(job.scale);
  free(sum);
  return status;
}

const haian_kernel_entry HAIAN_TABLE(fused_loss)[] = {
    {"fused_linear_cross_entropy", fused_linear_cross_entropy, HAIAN_FLOATS, NULL},
    {"fused_linear_cross_entropy_backward", fused_linear_cross_entropy_backward, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
