/* layer_norm, rms_norm, their forms that return statistics, and the gradients: argument checks and partition into rows.
 * Not here: the arithmetic (norm_real.h). */
#include "row.h"
#include <stdlib.h>

#define NORM_ROOM 8192  /* values of a row converted once and kept: 32 KiB of f32 */
#define NORM_RUN 1024   /* values written at a time */
#define GRAD_ROWS 8     /* rows of a gradient between two additions to dweight and dbias */
#define GRAD_BLOCKS 32  /* partial dweight and dbias at most */
#define GRAD_SMALL 2048 /* partial sums that fit on the stack */

typedef struct norm_job {
  bool layer, stream, ahead; /* mean is subtracted; store past the caches; rows follow one another in memory */
  int64_t n;                 /* length of a row */
  double eps;
  row_axes x, y, w, b;
  const char *x_data, *w_data, *b_data;
  char *y_data, *stat_data[2];
  const haian_tensor *mean, *rstd; /* NULL: not asked for */
  haian_walk walk, stats;          /* the rows of x and y; of mean and rstd */
} norm_job;

typedef struct grad_job {
  bool layer, stream;
  int64_t n, rows, block, blocks, sums; /* sums: 2 (dweight, dbias) or 1 */
  row_axes dy, x, dx, w, dw, db;
  const char *dy_data, *x_data, *w_data;
  char *dx_data, *dw_data, *db_data;
  const haian_tensor *mean, *rstd;
  haian_walk walk, stats;
  double *partial; /* (blocks, sums, n) */
} grad_job;

#define TEMPLATE "norm_real.h"
#include "each_real.h"

static int32_t check_x(const char *name, const haian_tensor *x) {
  HAIAN_REQUIRE(row_is_float(x->dtype), HAIAN_DTYPE,
                "%s: dtype %s; accepts float32, float16, bfloat16, float64; cast it first", name,
                haian_dtype_name(x->dtype));
  return HAIAN_OK;
}

/* The last `count` axes of x are exactly shape. */
static int32_t check_tail(const char *name, const char *what, const haian_tensor *x, const int64_t *shape,
                          int32_t count) {
  bool fits = count <= x->ndim;
  for (int32_t i = 0; i < count && fits; i++) fits = shape[i] == x->shape[x->ndim - count + i];
  if (fits) return HAIAN_OK;
  haian_tensor t = {.ndim = count < HAIAN_MAX_RANK ? count : HAIAN_MAX_RANK};
  memcpy(t.shape, shape, sizeof shape[0] * (size_t)t.ndim);
  return haian_fail(HAIAN_SHAPE, "%s: %s is %s and the input %s; it must be the last sizes of the input", name, what,
                    row_shape(&t).text, row_shape(x).text);
}

static int32_t check_shape(const char *name, const haian_attr *shape, const haian_tensor *x) {
  HAIAN_REQUIRE(shape->kind == HAIAN_INTS && shape->count >= 1, HAIAN_SHAPE,
                "%s: normalized_shape is (); name at least the last size of the input %s", name, row_shape(x).text);
  return check_tail(name, "normalized_shape", x, shape->v, shape->count);
}

/* weight or bias: the shape of the normalised axes; x's dtype, or float32 beside a 16-bit x (aten's mixed case). */
static int32_t check_weight(const char *name, const char *what, const haian_tensor *w, const haian_tensor *x,
                            int32_t count) {
  if (!w) return HAIAN_OK;
  HAIAN_REQUIRE(w->dtype == x->dtype || (w->dtype == HAIAN_F32 && row_item(x->dtype) == 2), HAIAN_DTYPE,
                "%s: %s has dtype %s and the input %s; they must be equal", name, what, haian_dtype_name(w->dtype),
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(w->ndim == count, HAIAN_SHAPE, "%s: %s is %s; needs the last %d sizes of the input %s", name, what,
                row_shape(w).text, count, row_shape(x).text);
  return check_tail(name, what, x, w->shape, w->ndim);
}

static int32_t check_like(const char *name, const char *what, const haian_tensor *t, const haian_tensor *x) {
  HAIAN_REQUIRE(t->dtype == x->dtype, HAIAN_DTYPE, "%s: %s has dtype %s and the input %s; they must be equal", name,
                what, haian_dtype_name(t->dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(haian_same_shape(t, x), HAIAN_SHAPE, "%s: %s is %s and the input %s; they must be equal", name, what,
                row_shape(t).text, row_shape(x).text);
  return HAIAN_OK;
}

/* mean, rstd: x's shape with 1 for the normalised axes. */
static int32_t check_stat(const char *name, const char *what, const haian_tensor *t, const haian_tensor *x,
                          int32_t count) {
  int32_t dtype = row_item(x->dtype) == 2 ? HAIAN_F32 : x->dtype;
  HAIAN_REQUIRE(t->dtype == dtype, HAIAN_DTYPE, "%s: %s has dtype %s; needs %s for %s input", name, what,
                haian_dtype_name(t->dtype), haian_dtype_name(dtype), haian_dtype_name(x->dtype));
  bool fits = t->ndim == x->ndim;
  for (int i = 0; i < x->ndim && fits; i++) fits = t->shape[i] == (i < x->ndim - count ? x->shape[i] : 1);
  if (fits) return HAIAN_OK;
  haian_tensor want = *x;
  for (int i = x->ndim - count; i < x->ndim; i++) want.shape[i] = 1;
  return haian_fail(HAIAN_SHAPE, "%s: %s is %s; needs %s for an input of %s", name, what, row_shape(t).text,
                    row_shape(&want).text, row_shape(x).text);
}

static uint32_t tail_mask(const haian_tensor *x, int32_t count) { return ((1u << count) - 1) << (x->ndim - count); }

static bool follows(const row_axes *r, const haian_walk *w, int64_t n, int32_t item_dtype) {
  return r->dtype == item_dtype && r->ndim == 1 && r->stride[0] == 1 && w->ndim == 1 && w->stride[0][0] == n;
}

/* Checked arguments to rows: count axes are normalised. */
static int32_t run(const haian_tensor *x, const haian_tensor *w, const haian_tensor *b, const haian_tensor *y,
                   const haian_tensor *mean, const haian_tensor *rstd, int32_t count, double eps, bool layer) {
  if (x->numel == 0) return HAIAN_OK;
  uint32_t mask = tail_mask(x, count);
  norm_job job; /* not cleared: see row_of */
  job.layer = layer;
  job.n = 1;
  job.eps = eps;
  job.mean = mean;
  job.rstd = rstd;
  job.x_data = x->data;
  job.y_data = y->data;
  job.stats.ndim = job.stats.tensors = 0;
  const haian_tensor *both[2] = {x, y};
  for (int i = x->ndim - count; i < x->ndim; i++) job.n *= x->shape[i];
  row_of(&job.x, x, mask);
  row_of(&job.y, y, mask);
  row_walk(&job.walk, both, 2, ~mask);
  job.w_data = w ? w->data : NULL;
  job.b_data = b ? b->data : NULL;
  if (w) row_of(&job.w, w, ~0u);
  if (b) row_of(&job.b, b, ~0u);
  if (rstd) {
    const haian_tensor *stats[2] = {mean ? mean : rstd, rstd};
    row_walk(&job.stats, stats, 2, ~0u);
    job.stat_data[0] = stats[0]->data;
    job.stat_data[1] = rstd->data;
  }
  job.stream = job.y.stride[job.y.ndim - 1] == 1 && x->numel * job.y.item >= HAIAN_STREAM_BYTES;
  bool f64 = x->dtype == HAIAN_F64, brief = job.n <= ROW_SHORT;
  job.ahead = !brief && follows(&job.x, &job.walk, job.n, f64 ? HAIAN_F64 : HAIAN_F32);
  void (*body)(void *, int64_t, int64_t) =
      brief ? (f64 ? norm_short_f64 : norm_short_f32) : (f64 ? norm_long_f64 : norm_long_f32);
  if (x->numel == job.n) body(&job, 0, 1);
  else haian_parallel_for(x->numel / job.n, row_grain(job.n, 2 * job.x.item), body, &job);
  return HAIAN_OK;
}

/* Rows without values still have statistics: mean NaN, rstd NaN, as a mean of nothing is. */
static void empty_stats(const haian_tensor *t) {
  if (t->numel == 0) return;
  const haian_tensor *one[1] = {t};
  haian_walk w;
  haian_place at;
  row_walk(&w, one, 1, ~0u);
  haian_place_seek(&at, &w, w.ndim, 0);
  for (int64_t i = 0; i < t->numel; i++) {
    char *to = (char *)t->data + at.offset[0] * row_item(t->dtype);
    if (t->dtype == HAIAN_F64) store_one_f64(t->dtype, to, (double)NAN);
    else store_one_f32(t->dtype, to, NAN);
    haian_place_next(&at, &w, w.ndim);
  }
}

/* in: x, weight, bias (weight only for RMS); attr: normalized_shape, eps */
static int32_t with_shape(const char *name, const haian_args *args, bool layer, bool stats) {
  const haian_tensor *x = args->in[0], *w = args->in[1], *b = layer ? args->in[2] : NULL, *y = args->out[0];
  const haian_tensor *mean = stats && layer ? args->out[1] : NULL, *rstd = stats ? args->out[layer ? 2 : 1] : NULL;
  int32_t bad = check_x(name, x), count = args->attr[0].count;
  if (bad || (bad = check_shape(name, &args->attr[0], x)) || (bad = check_weight(name, "weight", w, x, count)) ||
      (bad = check_weight(name, "bias", b, x, count)) || (bad = check_like(name, "the result", y, x)) ||
      (mean && (bad = check_stat(name, "mean", mean, x, count))) ||
      (rstd && (bad = check_stat(name, "rstd", rstd, x, count))))
    return bad;
  if (x->numel == 0 && rstd) {
    if (mean) empty_stats(mean);
    empty_stats(rstd);
  }
  return run(x, w, b, y, mean, rstd, count, args->attr[1].f, layer);
}

static int32_t layer_norm(const haian_args *args) { return with_shape("layer_norm", args, true, false); }
static int32_t native_layer_norm(const haian_args *args) { return with_shape("native_layer_norm", args, true, true); }
static int32_t fused_rms_norm(const haian_args *args) { return with_shape("fused_rms_norm", args, false, true); }

static int32_t rms_norm(const haian_args *args) {
  const haian_tensor *x = args->in[0], *w = args->in[1];
  int32_t count = w ? w->ndim : 1, bad = check_x("rms_norm", x);
  HAIAN_REQUIRE(bad || (x->ndim && count), HAIAN_SHAPE, "rms_norm: x has shape %s%s; needs an axis to normalise over",
                row_shape(x).text, x->ndim ? " and weight ()" : "");
  if (bad || (bad = check_weight("rms_norm", "weight", w, x, count)) ||
      (bad = check_like("rms_norm", "the result", args->out[0], x)))
    return bad;
  return run(x, w, NULL, args->out[0], NULL, NULL, count, args->attr[0].f, false);
}

static void zero(const haian_tensor *t) {
  if (t->numel == 0) return;
  row_axes all;
  row_of(&all, t, ~0u);
  for (int64_t at = 0; at < t->numel; at += NORM_RUN) {
    int64_t n = t->numel - at < NORM_RUN ? t->numel - at : NORM_RUN;
    if (t->dtype == HAIAN_F64) put_f64(&all, t->data, at, n, (const double[NORM_RUN]){0}, false);
    else put_f32(&all, t->data, at, n, (const float[NORM_RUN]){0}, false);
  }
}

/* in: dy, x, [mean,] rstd, weight[, bias]; out: dx, dweight[, dbias]; attr: normalized_shape */
static int32_t backward(const char *name, const haian_args *args, bool layer) {
  const haian_tensor *dy = args->in[0], *x = args->in[1], *mean = layer ? args->in[2] : NULL,
                     *rstd = args->in[layer ? 3 : 2];
  const haian_tensor *w = args->in[layer ? 4 : 3], *b = layer ? args->in[5] : NULL;
  const haian_tensor *dx = args->out[0], *dw = args->out[1], *db = layer ? args->out[2] : NULL;
  int32_t bad = check_x(name, x), count = args->attr[0].count;
  if (bad || (bad = check_shape(name, &args->attr[0], x)) || (bad = check_like(name, "dy", dy, x)) ||
      (bad = check_like(name, "dx", dx, x)) || (mean && (bad = check_stat(name, "mean", mean, x, count))) ||
      (bad = check_stat(name, "rstd", rstd, x, count)) || (bad = check_weight(name, "weight", w, x, count)) ||
      (bad = check_weight(name, "bias", b, x, count)) || (bad = check_weight(name, "dweight", dw, x, count)) ||
      (db && (bad = check_weight(name, "dbias", db, x, count))))
    return bad;
  if (x->numel == 0) { /* no rows: their sum is zero */
    zero(dw);
    if (db) zero(db);
    return HAIAN_OK;
  }
  uint32_t mask = tail_mask(x, count);
  grad_job job = {.layer = layer,
                  .n = 1,
                  .sums = layer ? 2 : 1,
                  .mean = mean,
                  .rstd = rstd,
                  .dy_data = dy->data,
                  .x_data = x->data,
                  .dx_data = dx->data,
                  .dw_data = dw->data,
                  .db_data = db ? db->data : NULL};
  for (int i = x->ndim - count; i < x->ndim; i++) job.n *= x->shape[i];
  job.rows = x->numel / job.n;
  const haian_tensor *three[3] = {dy, x, dx}, *stats[2] = {mean ? mean : rstd, rstd};
  row_of(&job.dy, dy, mask);
  row_of(&job.x, x, mask);
  row_of(&job.dx, dx, mask);
  row_walk(&job.walk, three, 3, ~mask);
  row_walk(&job.stats, stats, 2, ~0u);
  if (w) row_of(&job.w, w, ~0u), job.w_data = w->data;
  row_of(&job.dw, dw, ~0u);
  if (db) row_of(&job.db, db, ~0u);
  job.stream = job.dx.stride[job.dx.ndim - 1] == 1 && x->numel * job.dx.item >= HAIAN_STREAM_BYTES;
  int64_t least = 16 * GRAD_ROWS; /* fewer rows are not worth another pair of sums */
  job.block = (job.rows + GRAD_BLOCKS - 1) / GRAD_BLOCKS;
  job.block = job.block < least ? least : (job.block + GRAD_ROWS - 1) / GRAD_ROWS * GRAD_ROWS;
  job.blocks = (job.rows + job.block - 1) / job.block;
  double few[GRAD_SMALL], *many = NULL;
  job.partial = few;
  if (job.blocks * job.sums * job.n > GRAD_SMALL) {
    job.partial = many = malloc(sizeof(double) * (size_t)(job.blocks * job.sums * job.n));
    HAIAN_REQUIRE(many, HAIAN_OUT_OF_MEMORY, "%s: no memory for %lld partial sums of dweight", name,
                  (long long)(job.blocks * job.sums * job.n));
  }
  bool f64 = x->dtype == HAIAN_F64;
  haian_parallel_for(job.blocks, row_grain(job.n * job.block, 3 * job.x.item), f64 ? grad_blocks_f64 : grad_blocks_f32,
                     &job);
  haian_parallel_for(job.n, row_grain(job.blocks, 16), f64 ? grad_sums_f64 : grad_sums_f32, &job);
  free(many);
  return HAIAN_OK;
}

static int32_t native_layer_norm_backward(const haian_args *args) {
  return backward("native_layer_norm_backward", args, true);
}
static int32_t fused_rms_norm_backward(const haian_args *args) {
  return backward("fused_rms_norm_backward", args, false);
}

const haian_kernel_entry HAIAN_TABLE(norm)[] = {
    {"layer_norm", layer_norm, HAIAN_FLOATS, NULL},
    {"native_layer_norm", native_layer_norm, HAIAN_FLOATS, NULL},
    {"native_layer_norm_backward", native_layer_norm_backward, HAIAN_FLOATS, NULL},
    {"rms_norm", rms_norm, HAIAN_FLOATS, NULL},
    {"fused_rms_norm", fused_rms_norm, HAIAN_FLOATS, NULL},
    {"fused_rms_norm_backward", fused_rms_norm_backward, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
