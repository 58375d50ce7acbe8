/* Softmax of scaled scores of which some are masked, by a tensor or by position: argument checks, partition into rows.
 * Not here: the arithmetic (masked_softmax_real.h). */
#include "row.h"

#define MASKED_ROOM 8192 /* scores of a row kept between its passes: 32 KiB of f32; longer rows are read again */
#define MASKED_RUN 1024  /* scores written at a time */

typedef struct masked_job {
  bool stream;
  int64_t n, queries; /* keys; queries of a causal matrix, 0 where a tensor masks */
  double scale;
  row_axes x, y, mask;
  const char *x_data, *mask_data;
  char *y_data;
  haian_walk walk; /* the other axes of x, the result and the mask */
} masked_job;

#define TEMPLATE "masked_softmax_real.h"
#include "each_real.h"

static int32_t run(const char *name, const haian_tensor *x, const haian_tensor *mask, const haian_tensor *y,
                   double scale) {
  HAIAN_REQUIRE(row_is_float(x->dtype), HAIAN_DTYPE,
                "%s: dtype %s; accepts float32, float16, bfloat16, float64; cast it first", name,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(x->ndim >= 2, HAIAN_SHAPE, "%s: x has shape %s; needs (..., queries, keys)", name, row_shape(x).text);
  HAIAN_REQUIRE(y->dtype == x->dtype && haian_same_shape(y, x), HAIAN_SHAPE,
                "%s: the result is %s %s and x %s %s; they must be equal", name, haian_dtype_name(y->dtype),
                row_shape(y).text, haian_dtype_name(x->dtype), row_shape(x).text);
  HAIAN_REQUIRE(mask || x->shape[x->ndim - 1] == x->shape[x->ndim - 2], HAIAN_SHAPE,
                "%s: x is %s; needs as many queries as keys", name, row_shape(x).text);
  haian_tensor wide = *x; /* the mask with x's axes */
  if (mask) {
    bool fits = mask->ndim <= x->ndim;
    for (int i = 0; i < x->ndim && fits; i++) {
      int d = i - x->ndim + mask->ndim;
      fits = d < 0 || mask->shape[d] == 1 || mask->shape[d] == x->shape[i];
      wide.stride[i] = d < 0 || mask->shape[d] == 1 ? 0 : mask->stride[d];
    }
    HAIAN_REQUIRE(mask->dtype == HAIAN_BOOL && fits, HAIAN_SHAPE,
                  "%s: mask is %s %s for x of %s; needs bool that broadcasts to it", name,
                  haian_dtype_name(mask->dtype), row_shape(mask).text, row_shape(x).text);
    wide.dtype = HAIAN_BOOL;
  }
  if (x->numel == 0) return HAIAN_OK;
  masked_job job;
  const haian_tensor *three[3] = {x, y, &wide};
  uint32_t last = 1u << (x->ndim - 1);
  job.n = x->shape[x->ndim - 1];
  job.queries = mask ? 0 : job.n;
  job.scale = scale;
  row_of(&job.x, x, last);
  row_of(&job.y, y, last);
  row_of(&job.mask, &wide, last);
  row_walk(&job.walk, three, 3, ~last);
  job.x_data = x->data;
  job.y_data = y->data;
  job.mask_data = mask ? mask->data : NULL;
  job.stream = job.y.stride[0] == 1 && x->numel * job.y.item >= HAIAN_STREAM_BYTES;
  haian_parallel_for(x->numel / job.n, row_grain(job.n, 3 * job.x.item),
                     x->dtype == HAIAN_F64 ? masked_rows_f64 : masked_rows_f32, &job);
  return HAIAN_OK;
}

static double number(const haian_attr *a) { return a->kind == HAIAN_INT ? (double)a->i : a->f; }

static int32_t scaled_masked_softmax(const haian_args *args) {
  HAIAN_REQUIRE(args->in[1], HAIAN_INVALID_ARGUMENT, "scaled_masked_softmax: no mask; use softmax");
  return run("scaled_masked_softmax", args->in[0], args->in[1], args->out[0], number(&args->attr[0]));
}
static int32_t scaled_upper_triang_masked_softmax(const haian_args *args) {
  return run("scaled_upper_triang_masked_softmax", args->in[0], NULL, args->out[0], number(&args->attr[0]));
}

const haian_kernel_entry HAIAN_TABLE(masked_softmax)[] = {
    {"scaled_masked_softmax", scaled_masked_softmax, HAIAN_FLOATS, NULL},
    {"scaled_upper_triang_masked_softmax", scaled_upper_triang_masked_softmax, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
