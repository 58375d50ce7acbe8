/* Layer and RMS normalisation of a sum, which is a second result: argument checks, partition into rows.
 * Not here: the arithmetic (add_norm_real.h), normalisation alone (norm.c). */
#include "gemm/gemm.h"
#include "row.h"
#include <stdatomic.h>

#define SUM_RUN 1024  /* elements added and written at a time */
#define SUM_ROOM 2048 /* elements of a row that the stack holds: 8 KiB of f32 */

typedef struct sum_job {
  bool layer, stream;
  int64_t n;
  double eps;
  row_axes x, skip, w, b, extra, y, sum;
  const char *x_data, *skip_data, *w_data, *b_data, *extra_data; /* NULL: not given (the last three) */
  char *y_data, *sum_data;
  haian_walk in, out; /* rows of x and skip; of the result and the sum */
  atomic_bool failed; /* a thread had no memory for a long row */
} sum_job;

#define TEMPLATE "add_norm_real.h"
#include "each_real.h"

static int32_t check_row(const char *name, const char *what, const haian_tensor *w, const haian_tensor *x) {
  if (!w) return HAIAN_OK;
  HAIAN_REQUIRE(w->dtype == x->dtype, HAIAN_DTYPE, "%s: %s has dtype %s and x %s; they must be equal", name, what,
                haian_dtype_name(w->dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(w->ndim == 1 && w->shape[0] == x->shape[x->ndim - 1], HAIAN_SHAPE,
                "%s: %s is %s for x of %s; needs the last size", name, what, row_shape(w).text, row_shape(x).text);
  return HAIAN_OK;
}

static int32_t run(const char *name, const haian_args *args, const haian_tensor *w, const haian_tensor *b,
                   const haian_tensor *extra, bool layer, double eps) {
  const haian_tensor *x = args->in[0], *skip = args->in[1], *y = args->out[0], *sum = args->out[1];
  HAIAN_REQUIRE(row_is_float(x->dtype), HAIAN_DTYPE,
                "%s: dtype %s; accepts float32, float16, bfloat16, float64; cast it first", name,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(x->ndim >= 1, HAIAN_SHAPE, "%s: x has shape (); needs an axis to normalise over", name);
  const haian_tensor *like[3] = {skip, y, sum};
  static const char *const what[3] = {"the residual", "the result", "the sum"};
  for (int i = 0; i < 3; i++)
    HAIAN_REQUIRE(like[i]->dtype == x->dtype && haian_same_shape(like[i], x), HAIAN_SHAPE,
                  "%s: %s is %s %s and x %s %s; they must be equal", name, what[i], haian_dtype_name(like[i]->dtype),
                  row_shape(like[i]).text, haian_dtype_name(x->dtype), row_shape(x).text);
  int32_t bad;
  if ((bad = check_row(name, "weight", w, x)) || (bad = check_row(name, "beta", b, x)) ||
      (bad = check_row(name, "bias", extra, x)))
    return bad;
  if (x->numel == 0) return HAIAN_OK;
  sum_job job = {.layer = layer, .n = x->shape[x->ndim - 1], .eps = eps};
  uint32_t last = 1u << (x->ndim - 1);
  const haian_tensor *in[2] = {x, skip}, *out[2] = {y, sum};
  row_of(&job.x, x, last);
  row_of(&job.skip, skip, last);
  row_of(&job.y, y, last);
  row_of(&job.sum, sum, last);
  row_walk(&job.in, in, 2, ~last);
  row_walk(&job.out, out, 2, ~last);
  job.x_data = x->data;
  job.skip_data = skip->data;
  job.y_data = y->data;
  job.sum_data = sum->data;
  if (w) row_of(&job.w, w, ~0u), job.w_data = w->data;
  if (b) row_of(&job.b, b, ~0u), job.b_data = b->data;
  if (extra) row_of(&job.extra, extra, ~0u), job.extra_data = extra->data;
  job.stream = x->numel * job.y.item >= HAIAN_STREAM_BYTES;
  haian_parallel_for(x->numel / job.n, row_grain(job.n, 4 * job.x.item),
                     x->dtype == HAIAN_F64 ? sum_rows_f64 : sum_rows_f32, &job);
  HAIAN_REQUIRE(!atomic_load(&job.failed), HAIAN_OUT_OF_MEMORY, "%s: no memory for a row of %lld elements", name,
                (long long)job.n);
  return HAIAN_OK;
}

static double number(const haian_attr *a) { return a->kind == HAIAN_INT ? (double)a->i : a->f; }

static int32_t add_rms_norm(const haian_args *args) {
  return run("add_rms_norm", args, args->in[2], NULL, NULL, false, number(&args->attr[0]));
}
static int32_t add_layer_norm(const haian_args *args) {
  return run("add_layer_norm", args, args->in[2], args->in[3], NULL, true, number(&args->attr[0]));
}
static int32_t skip_layer_norm(const haian_args *args) {
  return run("skip_layer_norm", args, args->in[2], args->in[3], args->in[4], true, number(&args->attr[0]));
}

const haian_kernel_entry HAIAN_TABLE(add_norm)[] = {
    {"add_rms_norm", add_rms_norm, HAIAN_FLOATS, NULL},
    {"add_layer_norm", add_layer_norm, HAIAN_FLOATS, NULL},
    {"skip_layer_norm", skip_layer_norm, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
