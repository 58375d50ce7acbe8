/* Normalisation over the channels of x (N, C, ...): group, instance and batch norm, the pieces of a batch norm split over
 * devices, and the gradients: argument checks and partition into units, each with statistics of its own: a group of
 * channels of one sample, or a channel over all samples.  Not here: the arithmetic (batch_norm_real.h). */
#include "row.h"
#include <stdlib.h>

#define UNIT_RUN 1024 /* values converted, computed and written at a time */

/* Numbers at even steps: one a channel, or (samples, groups). */
typedef struct unit_vector {
  const char *data; /* NULL: not given */
  int64_t step, step_n;
  int32_t dtype, item;
} unit_vector;

/* A tensor of x's shape as units. */
typedef struct unit_tensor {
  char *data;
  row_axes row;           /* one channel of a unit: the axes behind it, for a batch norm the samples too */
  int64_t step_n, step_c; /* bytes between samples (0 for a batch norm) and channels */
  int64_t segments, n;    /* a unit as so many runs of n: one where its channels follow one another */
} unit_tensor;

enum unit_task { NORM, STATS, SUMS, GRAD, GRAD_GIVEN };

typedef struct unit_job {
  enum unit_task task;
  bool grouped, given, variance, train, stream; /* statistics given; the second one is a variance; dx through them */
  int64_t units, groups, d, inner;              /* channels of a unit, elements of each */
  double eps, momentum, total;                  /* total: elements a channel on all devices (GRAD_GIVEN) */
  unit_tensor x, y, dy;                         /* y: the result, dx for gradients */
  unit_vector w, b, mean, rstd, mean_out, rstd_out, run_mean, run_var, new_mean, new_var;
  unit_vector sum, sum_xmu, sum_out, xmu_out, dw, db;
  double *part; /* (units, d, 2): sums of dy and of dy (x - mean) rstd; NULL: written to dw and db at once */
} unit_job;

typedef struct gather_job {
  int64_t devices;
  double eps, momentum;
  unit_vector mean, rstd, counts, run_mean, run_var, mean_out, rstd_out, new_mean, new_var;
} gather_job;

#define TEMPLATE "batch_norm_real.h"
#include "each_real.h"

/* ---- checks ------------------------------------------------------------------------------------------------------ */
static int32_t accumulator_of(int32_t dtype) { return row_item(dtype) == 2 ? HAIAN_F32 : dtype; }

static int32_t check_x(const char *name, const haian_tensor *x) {
  HAIAN_REQUIRE(row_is_float(x->dtype), HAIAN_DTYPE,
                "%s: dtype %s; accepts float32, float16, bfloat16, float64; cast it first", name,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(x->ndim >= 2, HAIAN_SHAPE, "%s: x has shape %s; needs (N, C, ...)", name, row_shape(x).text);
  return HAIAN_OK;
}

static int32_t check_like(const char *name, const char *what, const haian_tensor *t, const haian_tensor *x) {
  HAIAN_REQUIRE(t->dtype == x->dtype, HAIAN_DTYPE, "%s: %s has dtype %s and x %s; they must be equal", name, what,
                haian_dtype_name(t->dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(haian_same_shape(t, x), HAIAN_SHAPE, "%s: %s is %s and x is %s; they must be equal", name, what,
                row_shape(t).text, row_shape(x).text);
  return HAIAN_OK;
}

/* One number a channel, of x's dtype or its accumulator's; NULL: not given. */
static int32_t check_vector(const char *name, const char *what, const haian_tensor *t, const haian_tensor *x) {
  if (!t) return HAIAN_OK;
  HAIAN_REQUIRE(t->dtype == x->dtype || t->dtype == accumulator_of(x->dtype), HAIAN_DTYPE,
                "%s: %s has dtype %s and x %s; needs that, or its accumulator's; cast it first", name, what,
                haian_dtype_name(t->dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(t->ndim == 1 && t->shape[0] == x->shape[1], HAIAN_SHAPE,
                "%s: %s has shape %s; needs (%lld,), one number a channel", name, what, row_shape(t).text,
                (long long)x->shape[1]);
  return HAIAN_OK;
}

/* Statistics (n,), or (n, m) where m >= 0, in the accumulator's dtype. */
static int32_t check_stat(const char *name, const char *what, const haian_tensor *t, const haian_tensor *x, int64_t n,
                          int64_t m) {
  HAIAN_REQUIRE(t, HAIAN_INVALID_ARGUMENT, "%s: no %s; give it", name, what);
  HAIAN_REQUIRE(t->dtype == accumulator_of(x->dtype), HAIAN_DTYPE, "%s: %s has dtype %s; needs %s for %s input", name,
                what, haian_dtype_name(t->dtype), haian_dtype_name(accumulator_of(x->dtype)),
                haian_dtype_name(x->dtype));
  bool fits = m < 0 ? t->ndim == 1 && t->shape[0] == n : t->ndim == 2 && t->shape[0] == n && t->shape[1] == m;
  HAIAN_REQUIRE(fits, HAIAN_SHAPE, "%s: %s is %s; needs %lld%s%.0lld numbers", name, what, row_shape(t).text,
                (long long)n, m < 0 ? "" : " x ", (long long)(m < 0 ? 0 : m));
  return HAIAN_OK;
}

/* A new running statistic: like the old one, (0,) in the accumulator's dtype where none came. */
static int32_t check_new(const char *name, const char *what, const haian_tensor *t, const haian_tensor *old,
                         const haian_tensor *x) {
  if (!old) return check_stat(name, what, t, x, 0, -1);
  HAIAN_REQUIRE(t->dtype == old->dtype && haian_same_shape(t, old), HAIAN_SHAPE, "%s: %s is %s %s; needs %s %s", name,
                what, haian_dtype_name(t->dtype), row_shape(t).text, haian_dtype_name(old->dtype), row_shape(old).text);
  return HAIAN_OK;
}

/* A gradient of a weight: (C,) of the weight's dtype, x's where there is none. */
static int32_t check_grad(const char *name, const char *what, const haian_tensor *t, const haian_tensor *w,
                          const haian_tensor *x) {
  HAIAN_REQUIRE(t->dtype == (w ? w->dtype : x->dtype), HAIAN_DTYPE, "%s: %s has dtype %s; needs %s", name, what,
                haian_dtype_name(t->dtype), haian_dtype_name(w ? w->dtype : x->dtype));
  HAIAN_REQUIRE(t->ndim == 1 && t->shape[0] == x->shape[1], HAIAN_SHAPE, "%s: %s is %s; needs (%lld,)", name, what,
                row_shape(t).text, (long long)x->shape[1]);
  return HAIAN_OK;
}

/* ---- units ------------------------------------------------------------------------------------------------------- */
static unit_vector vector_of(const haian_tensor *t) {
  if (!t || !t->numel) return (unit_vector){0};
  return (unit_vector){.data = t->data,
                       .step = t->stride[t->ndim - 1],
                       .step_n = t->ndim == 2 ? t->stride[0] : 0,
                       .dtype = t->dtype,
                       .item = (int32_t)row_item(t->dtype)};
}

static void tensor_of(unit_tensor *u, const haian_tensor *t, const unit_job *job) {
  u->data = t->data;
  row_of(&u->row, t, job->grouped ? ~3u : ~2u);
  u->step_n = job->grouped ? t->stride[0] * u->row.item : 0;
  u->step_c = t->stride[1] * u->row.item;
  bool whole = u->row.ndim == 1 && (u->row.stride[0] == 1 || job->inner == 1) && t->stride[1] == job->inner;
  u->segments = whole ? 1 : job->d;
  u->n = whole ? job->d * job->inner : job->inner;
  if (whole) u->row.shape[0] = u->n, u->row.stride[0] = 1;
}

/* Units of x: groups 0 for a channel over all samples. */
static void units_of(unit_job *job, const haian_tensor *x, int64_t groups, double eps) {
  *job = (unit_job){.grouped = groups > 0, .groups = groups ? groups : 1, .eps = eps, .d = 1, .units = x->shape[1]};
  job->inner = groups ? 1 : x->shape[0];
  for (int i = 2; i < x->ndim; i++) job->inner *= x->shape[i];
  if (groups) {
    job->d = x->shape[1] / groups;
    job->units = x->shape[0] * groups;
  }
  tensor_of(&job->x, x, job);
}

static void result_of(unit_job *job, const haian_tensor *y) {
  tensor_of(&job->y, y, job);
  int64_t stride = job->y.row.stride[job->y.row.ndim - 1];
  job->stream = stride == 1 && y->numel * job->y.row.item >= HAIAN_STREAM_BYTES;
}

static int32_t run_units(unit_job *job) {
  haian_parallel_for(job->units, row_grain(job->d * job->inner, 3 * job->x.row.item),
                     job->x.row.dtype == HAIAN_F64 ? units_f64 : units_f32, job);
  return HAIAN_OK;
}

/* ---- group norm -------------------------------------------------------------------------------------------------- */
static int32_t group(const char *name, const haian_tensor *x, const haian_tensor *w, const haian_tensor *b,
                     const haian_tensor *y, const haian_tensor *mean, const haian_tensor *rstd, int64_t groups,
                     double eps) {
  int32_t bad = check_x(name, x);
  if (bad) return bad;
  HAIAN_REQUIRE(groups >= 1 && x->shape[1] % groups == 0, HAIAN_INVALID_ARGUMENT,
                "%s: %lld groups of %lld channels; needs a number of groups that divides the channels", name,
                (long long)groups, (long long)x->shape[1]);
  if ((bad = check_vector(name, "weight", w, x)) || (bad = check_vector(name, "bias", b, x)) ||
      (bad = check_like(name, "the result", y, x)) ||
      (mean && (bad = check_stat(name, "mean", mean, x, x->shape[0], groups))) ||
      (rstd && (bad = check_stat(name, "rstd", rstd, x, x->shape[0], groups))))
    return bad;
  unit_job job;
  units_of(&job, x, groups, eps);
  result_of(&job, y);
  job.w = vector_of(w);
  job.b = vector_of(b);
  job.mean_out = vector_of(mean);
  job.rstd_out = vector_of(rstd);
  return run_units(&job);
}

/* The sizes that aten's argument lists repeat. */
static int32_t check_sizes(const char *name, const haian_tensor *x, const haian_attr *a) {
  int64_t inner = 1;
  for (int i = 2; i < x->ndim; i++) inner *= x->shape[i];
  HAIAN_REQUIRE(x->ndim >= 2 && a[0].i == x->shape[0] && a[1].i == x->shape[1] && a[2].i == inner, HAIAN_SHAPE,
                "%s: N %lld, C %lld, HxW %lld for x of shape %s; needs its sizes", name, (long long)a[0].i,
                (long long)a[1].i, (long long)a[2].i, row_shape(x).text);
  return HAIAN_OK;
}

static int32_t native_group_norm(const haian_args *args) {
  static const char name[] = "native_group_norm";
  int32_t bad = check_sizes(name, args->in[0], args->attr);
  return bad ? bad
             : group(name, args->in[0], args->in[1], args->in[2], args->out[0], args->out[1], args->out[2],
                     args->attr[3].i, args->attr[4].f);
}

static int32_t group_norm(const haian_args *args) {
  return group("group_norm", args->in[0], args->in[1], args->in[2], args->out[0], NULL, NULL, args->attr[0].i,
               args->attr[1].f);
}

static int32_t instance_norm(const haian_args *args) {
  const haian_tensor *x = args->in[0];
  HAIAN_REQUIRE(x->ndim >= 3, HAIAN_SHAPE, "instance_norm: x has shape %s; needs (N, C, ...), 3 axes at least",
                row_shape(x).text);
  return group("instance_norm", x, args->in[1], args->in[2], args->out[0], NULL, NULL, x->shape[1] ? x->shape[1] : 1,
               args->attr[0].f);
}

static int32_t native_group_norm_backward(const haian_args *args) {
  static const char name[] = "native_group_norm_backward";
  const haian_tensor *dy = args->in[0], *x = args->in[1], *mean = args->in[2], *rstd = args->in[3], *w = args->in[4];
  const haian_tensor *dx = args->out[0], *dw = args->out[1], *db = args->out[2];
  int64_t groups = args->attr[3].i;
  int32_t bad = check_x(name, x);
  if (bad || (bad = check_sizes(name, x, args->attr))) return bad;
  HAIAN_REQUIRE(groups >= 1 && x->shape[1] % groups == 0, HAIAN_INVALID_ARGUMENT,
                "%s: %lld groups of %lld channels; needs a number of groups that divides the channels", name,
                (long long)groups, (long long)x->shape[1]);
  if ((bad = check_like(name, "dy", dy, x)) || (bad = check_like(name, "dx", dx, x)) ||
      (bad = check_stat(name, "mean", mean, x, x->shape[0], groups)) ||
      (bad = check_stat(name, "rstd", rstd, x, x->shape[0], groups)) || (bad = check_vector(name, "weight", w, x)) ||
      (bad = check_grad(name, "dweight", dw, w, x)) || (bad = check_grad(name, "dbias", db, w, x)))
    return bad;
  unit_job job;
  units_of(&job, x, groups, 0);
  job.task = GRAD;
  job.given = job.train = true;
  result_of(&job, dx);
  tensor_of(&job.dy, dy, &job);
  job.mean = vector_of(mean);
  job.rstd = vector_of(rstd);
  job.w = vector_of(w);
  job.dw = vector_of(dw);
  job.db = vector_of(db);
  int64_t sums = x->shape[0] * x->shape[1];
  job.part = malloc(sizeof(double) * (size_t)(2 * sums + 1));
  HAIAN_REQUIRE(job.part, HAIAN_OUT_OF_MEMORY, "%s: no memory for %lld partial sums of dweight", name,
                (long long)(2 * sums));
  run_units(&job);
  haian_parallel_for(x->shape[1], row_grain(x->shape[0], 16), x->dtype == HAIAN_F64 ? add_samples_f64 : add_samples_f32,
                     &job);
  free(job.part);
  return HAIAN_OK;
}

/* ---- batch norm -------------------------------------------------------------------------------------------------- */
static bool is_true(const haian_attr *a) { return a->kind == HAIAN_INT && a->i != 0; }

typedef struct batch_results {
  const haian_tensor *y, *mean, *rstd, *new_mean, *new_var;
} batch_results;

static int32_t batch(const char *name, const haian_args *args, bool training, double momentum, double eps,
                     batch_results r) {
  const haian_tensor *x = args->in[0], *w = args->in[1], *b = args->in[2];
  const haian_tensor *run_mean = args->n_in > 3 ? args->in[3] : NULL, *run_var = args->n_in > 4 ? args->in[4] : NULL;
  int32_t bad = check_x(name, x);
  if (bad) return bad;
  int64_t kept = training ? x->shape[1] : 0;
  HAIAN_REQUIRE(training || (run_mean && run_var), HAIAN_INVALID_ARGUMENT,
                "%s: no %s and training is false; give both, or train", name,
                run_mean ? "running_var" : "running_mean");
  if ((bad = check_vector(name, "weight", w, x)) || (bad = check_vector(name, "bias", b, x)) ||
      (bad = check_vector(name, "running_mean", run_mean, x)) ||
      (bad = check_vector(name, "running_var", run_var, x)) || (bad = check_like(name, "the result", r.y, x)) ||
      (r.mean && (bad = check_stat(name, "save_mean", r.mean, x, kept, -1))) ||
      (r.rstd && (bad = check_stat(name, "save_invstd", r.rstd, x, kept, -1))) ||
      (r.new_mean && (bad = check_new(name, "new_running_mean", r.new_mean, run_mean, x))) ||
      (r.new_var && (bad = check_new(name, "new_running_var", r.new_var, run_var, x))))
    return bad;
  unit_job job;
  units_of(&job, x, 0, eps);
  result_of(&job, r.y);
  job.momentum = momentum;
  job.given = job.variance = !training;
  job.w = vector_of(w);
  job.b = vector_of(b);
  job.mean = job.run_mean = vector_of(run_mean);
  job.rstd = job.run_var = vector_of(run_var);
  job.mean_out = vector_of(training ? r.mean : NULL);
  job.rstd_out = vector_of(training ? r.rstd : NULL);
  job.new_mean = vector_of(r.new_mean);
  job.new_var = vector_of(r.new_var);
  return run_units(&job);
}

static int32_t native_batch_norm(const haian_args *args) {
  haian_tensor *const *o = args->out;
  return batch("native_batch_norm", args, is_true(&args->attr[0]), args->attr[1].f, args->attr[2].f,
               (batch_results){o[0], o[1], o[2], o[3], o[4]});
}

static int32_t native_batch_norm_no_training(const haian_args *args) {
  haian_tensor *const *o = args->out;
  return batch("native_batch_norm_no_training", args, false, 0, args->attr[1].f,
               (batch_results){o[0], o[1], o[2], NULL, NULL});
}

static int32_t native_batch_norm_no_stats(const haian_args *args) {
  haian_tensor *const *o = args->out;
  return batch("native_batch_norm_no_stats", args, true, 0, args->attr[1].f,
               (batch_results){o[0], o[1], o[2], NULL, NULL});
}

static int32_t batch_norm(const haian_args *args) {
  return batch("batch_norm", args, is_true(&args->attr[0]), 0, args->attr[2].f,
               (batch_results){args->out[0], NULL, NULL, NULL, NULL});
}

static int32_t batch_norm_stats(const haian_args *args) {
  static const char name[] = "batch_norm_stats";
  const haian_tensor *x = args->in[0];
  int32_t bad = check_x(name, x);
  if (bad || (bad = check_stat(name, "mean", args->out[0], x, x->shape[1], -1)) ||
      (bad = check_stat(name, "invstd", args->out[1], x, x->shape[1], -1)))
    return bad;
  unit_job job;
  units_of(&job, x, 0, args->attr[0].f);
  job.task = STATS;
  job.mean_out = vector_of(args->out[0]);
  job.rstd_out = vector_of(args->out[1]);
  return run_units(&job);
}

static int32_t batch_norm_elemt(const haian_args *args) {
  static const char name[] = "batch_norm_elemt";
  const haian_tensor *x = args->in[0];
  int32_t bad = check_x(name, x);
  if (bad || (bad = check_vector(name, "weight", args->in[1], x)) ||
      (bad = check_vector(name, "bias", args->in[2], x)) ||
      (bad = check_stat(name, "mean", args->in[3], x, x->shape[1], -1)) ||
      (bad = check_stat(name, "invstd", args->in[4], x, x->shape[1], -1)) ||
      (bad = check_like(name, "the result", args->out[0], x)))
    return bad;
  unit_job job;
  units_of(&job, x, 0, 0);
  result_of(&job, args->out[0]);
  job.given = true;
  job.w = vector_of(args->in[1]);
  job.b = vector_of(args->in[2]);
  job.mean = vector_of(args->in[3]);
  job.rstd = vector_of(args->in[4]);
  return run_units(&job);
}

static int32_t native_batch_norm_backward(const haian_args *args) {
  static const char name[] = "native_batch_norm_backward";
  const haian_tensor *dy = args->in[0], *x = args->in[1], *w = args->in[2];
  const haian_tensor *dx = args->out[0], *dw = args->out[1], *db = args->out[2];
  bool train = is_true(&args->attr[0]);
  const haian_tensor *mean = args->in[train ? 5 : 3], *rstd = args->in[train ? 6 : 4];
  int32_t bad = check_x(name, x);
  HAIAN_REQUIRE(bad || (mean && rstd), HAIAN_INVALID_ARGUMENT, "%s: no %s and train is %s; give both", name,
                train ? "save_mean or save_invstd" : "running_mean or running_var", train ? "true" : "false");
  if (bad || (bad = check_like(name, "dy", dy, x)) || (bad = check_like(name, "dx", dx, x)) ||
      (bad = check_vector(name, "weight", w, x)) || (bad = check_vector(name, "running_mean", args->in[3], x)) ||
      (bad = check_vector(name, "running_var", args->in[4], x)) ||
      (train && (bad = check_stat(name, "save_mean", mean, x, x->shape[1], -1))) ||
      (train && (bad = check_stat(name, "save_invstd", rstd, x, x->shape[1], -1))) ||
      (bad = check_grad(name, "dweight", dw, w, x)) || (bad = check_grad(name, "dbias", db, w, x)))
    return bad;
  unit_job job;
  units_of(&job, x, 0, args->attr[1].f);
  job.task = GRAD;
  job.given = true;
  job.train = train;
  job.variance = !train;
  result_of(&job, dx);
  tensor_of(&job.dy, dy, &job);
  job.mean = vector_of(mean);
  job.rstd = vector_of(rstd);
  job.w = vector_of(w);
  job.dw = vector_of(dw);
  job.db = vector_of(db);
  return run_units(&job);
}

static int32_t batch_norm_backward_reduce(const haian_args *args) {
  static const char name[] = "batch_norm_backward_reduce";
  const haian_tensor *dy = args->in[0], *x = args->in[1], *w = args->in[4];
  int32_t bad = check_x(name, x);
  if (bad || (bad = check_like(name, "dy", dy, x)) ||
      (bad = check_stat(name, "mean", args->in[2], x, x->shape[1], -1)) ||
      (bad = check_stat(name, "invstd", args->in[3], x, x->shape[1], -1)) ||
      (bad = check_vector(name, "weight", w, x)) ||
      (bad = check_stat(name, "sum_dy", args->out[0], x, x->shape[1], -1)) ||
      (bad = check_stat(name, "sum_dy_xmu", args->out[1], x, x->shape[1], -1)) ||
      (bad = check_grad(name, "dweight", args->out[2], w, x)) || (bad = check_grad(name, "dbias", args->out[3], w, x)))
    return bad;
  unit_job job;
  units_of(&job, x, 0, 0);
  job.task = SUMS;
  job.given = true;
  tensor_of(&job.dy, dy, &job);
  job.mean = vector_of(args->in[2]);
  job.rstd = vector_of(args->in[3]);
  job.sum_out = vector_of(args->out[0]);
  job.xmu_out = vector_of(args->out[1]);
  job.dw = vector_of(args->out[2]);
  job.db = vector_of(args->out[3]);
  return run_units(&job);
}

static int32_t batch_norm_backward_elemt(const haian_args *args) {
  static const char name[] = "batch_norm_backward_elemt";
  const haian_tensor *dy = args->in[0], *x = args->in[1], *w = args->in[4], *counts = args->in[7];
  int32_t bad = check_x(name, x);
  HAIAN_REQUIRE(bad || (counts->dtype == HAIAN_I32 && counts->ndim == 1), HAIAN_DTYPE,
                "%s: counts is %s %s; needs int32 (devices,)", name, haian_dtype_name(counts->dtype),
                row_shape(counts).text);
  if (bad || (bad = check_like(name, "dy", dy, x)) ||
      (bad = check_stat(name, "mean", args->in[2], x, x->shape[1], -1)) ||
      (bad = check_stat(name, "invstd", args->in[3], x, x->shape[1], -1)) ||
      (bad = check_vector(name, "weight", w, x)) ||
      (bad = check_stat(name, "sum_dy", args->in[5], x, x->shape[1], -1)) ||
      (bad = check_stat(name, "sum_dy_xmu", args->in[6], x, x->shape[1], -1)) ||
      (bad = check_like(name, "the result", args->out[0], x)))
    return bad;
  unit_job job;
  units_of(&job, x, 0, 0);
  job.task = GRAD_GIVEN;
  job.given = true;
  result_of(&job, args->out[0]);
  tensor_of(&job.dy, dy, &job);
  job.mean = vector_of(args->in[2]);
  job.rstd = vector_of(args->in[3]);
  job.w = vector_of(w);
  job.sum = vector_of(args->in[5]);
  job.sum_xmu = vector_of(args->in[6]);
  for (int64_t i = 0; i < counts->numel; i++) job.total += ((const int32_t *)counts->data)[i * counts->stride[0]];
  return run_units(&job);
}

static int32_t batch_norm_gather_stats_with_counts(const haian_args *args) {
  static const char name[] = "batch_norm_gather_stats_with_counts";
  const haian_tensor *x = args->in[0], *counts = args->in[5];
  int32_t bad = check_x(name, x);
  HAIAN_REQUIRE(bad || counts->ndim == 1, HAIAN_SHAPE, "%s: counts is %s; needs (devices,)", name,
                row_shape(counts).text);
  if (bad) return bad;
  int64_t devices = counts->shape[0], channels = x->shape[1];
  if ((bad = check_stat(name, "mean", args->in[1], x, devices, channels)) ||
      (bad = check_stat(name, "invstd", args->in[2], x, devices, channels)) ||
      (bad = check_vector(name, "running_mean", args->in[3], x)) ||
      (bad = check_vector(name, "running_var", args->in[4], x)) ||
      (bad = check_stat(name, "counts", counts, x, devices, -1)) ||
      (bad = check_stat(name, "mean_all", args->out[0], x, channels, -1)) ||
      (bad = check_stat(name, "invstd_all", args->out[1], x, channels, -1)) ||
      (bad = check_new(name, "new_running_mean", args->out[2], args->in[3], x)) ||
      (bad = check_new(name, "new_running_var", args->out[3], args->in[4], x)))
    return bad;
  gather_job job = {.devices = devices,
                    .momentum = args->attr[0].f,
                    .eps = args->attr[1].f,
                    .mean = vector_of(args->in[1]),
                    .rstd = vector_of(args->in[2]),
                    .run_mean = vector_of(args->in[3]),
                    .run_var = vector_of(args->in[4]),
                    .counts = vector_of(counts),
                    .mean_out = vector_of(args->out[0]),
                    .rstd_out = vector_of(args->out[1]),
                    .new_mean = vector_of(args->out[2]),
                    .new_var = vector_of(args->out[3])};
  haian_parallel_for(channels, row_grain(devices, 16), x->dtype == HAIAN_F64 ? gather_f64 : gather_f32, &job);
  return HAIAN_OK;
}

const haian_kernel_entry HAIAN_TABLE(batch_norm)[] = {
    {"native_group_norm", native_group_norm, HAIAN_FLOATS, NULL},
    {"native_group_norm_backward", native_group_norm_backward, HAIAN_FLOATS, NULL},
    {"group_norm", group_norm, HAIAN_FLOATS, NULL},
    {"instance_norm", instance_norm, HAIAN_FLOATS, NULL},
    {"native_batch_norm", native_batch_norm, HAIAN_FLOATS, NULL},
    {"native_batch_norm_no_training", native_batch_norm_no_training, HAIAN_FLOATS, NULL},
    {"native_batch_norm_no_stats", native_batch_norm_no_stats, HAIAN_FLOATS, NULL},
    {"batch_norm", batch_norm, HAIAN_FLOATS, NULL},
    {"native_batch_norm_backward", native_batch_norm_backward, HAIAN_FLOATS, NULL},
    {"batch_norm_stats", batch_norm_stats, HAIAN_FLOATS, NULL},
    {"batch_norm_elemt", batch_norm_elemt, HAIAN_FLOATS, NULL},
    {"batch_norm_gather_stats_with_counts", batch_norm_gather_stats_with_counts, HAIAN_FLOATS, NULL},
    {"batch_norm_backward_reduce", batch_norm_backward_reduce, HAIAN_FLOATS, NULL},
    {"batch_norm_backward_elemt", batch_norm_backward_elemt, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
