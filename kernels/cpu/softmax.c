/* softmax, log_softmax and their gradients: argument checks and the choice between rows and columns.
 * Not here: the arithmetic (softmax_real.h). */
#include "row.h"

#define SOFTMAX_ROOM 32768 /* values of a row kept between its passes: 128 KiB of f32, a sixteenth of a 2 MiB L2 */
#define SOFTMAX_WIDTH 256  /* widest column tile */

enum softmax_op { SOFTMAX, LOG_SOFTMAX, SOFTMAX_BACKWARD, LOG_SOFTMAX_BACKWARD };

typedef struct softmax_job {
  enum softmax_op op;
  bool stream;      /* the result leaves the caches anyway: store past them */
  int64_t n, width; /* length of the axis, columns of a tile */
  row_axes x, y, b; /* the axis: input or dy, result, y of the gradients */
  const char *x_data, *b_data;
  char *y_data;
  haian_walk walk; /* the other axes; tensor 0 is x, 1 the result, 2 b */
} softmax_job;

#define TEMPLATE "softmax_real.h"
#include "each_real.h"

/* x and b have the same shape and dtype; b is NULL for the forward operators. */
static int32_t run(enum softmax_op op, const char *name, const haian_tensor *x, const haian_tensor *b,
                   const haian_tensor *y, int64_t dim) {
  int axis;
  HAIAN_REQUIRE(row_is_float(x->dtype), HAIAN_DTYPE,
                "%s: dtype %s; accepts float32, float16, bfloat16, float64; cast it first", name,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(row_axis(dim, x->ndim, &axis), HAIAN_SHAPE,
                "%s: dim %lld is outside a tensor of %d axes; needs %d <= dim < %d", name, (long long)dim, x->ndim,
                x->ndim ? -x->ndim : -1, x->ndim ? x->ndim : 1);
  HAIAN_REQUIRE(y->dtype == x->dtype, HAIAN_DTYPE, "%s: the result has dtype %s and the input %s; they must be equal",
                name, haian_dtype_name(y->dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(haian_same_shape(y, x), HAIAN_SHAPE, "%s: the result is %s and the input %s; they must be equal", name,
                row_shape(y).text, row_shape(x).text);
  if (x->numel == 0) return HAIAN_OK;

  softmax_job job;
  const haian_tensor *tensors[3] = {x, y, b};
  int64_t offset[3] = {0};
  uint32_t mask = 1u << axis;
  job.op = op;
  job.n = x->ndim ? x->shape[axis] : 1;
  row_of(&job.x, x, mask);
  row_of(&job.y, y, mask);
  if (b) row_of(&job.b, b, mask);
  row_walk(&job.walk, tensors, b ? 3 : 2, ~mask);
  if (job.walk.ndim > 1) {
    haian_walk_sort(&job.walk, offset);
    haian_walk_merge(&job.walk);
  }
  job.x_data = (const char *)x->data + offset[0] * job.x.item;
  job.y_data = (char *)y->data + offset[1] * job.x.item;
  job.b_data = b ? (const char *)b->data + offset[2] * job.x.item : NULL;
  job.stream = job.y.stride[0] == 1 && x->numel * job.x.item >= HAIAN_STREAM_BYTES;

  bool f64 = x->dtype == HAIAN_F64;
  int64_t bytes = job.x.item * (b ? 3 : 2), last = job.walk.ndim - 1;
  if (last >= 0 && job.x.stride[0] != 1 && job.n > 1 && job.walk.shape[last] >= 8 && job.walk.stride[last][0] == 1) {
    int64_t width = SOFTMAX_ROOM / job.n & ~15;
    job.width = width < 16 ? 64 : width > SOFTMAX_WIDTH ? SOFTMAX_WIDTH : width;
    int64_t tiles = haian_walk_rows(&job.walk, (int)last) * ((job.walk.shape[last] + job.width - 1) / job.width);
    haian_parallel_for(tiles, row_grain(job.n * job.width, bytes), f64 ? softmax_columns_f64 : softmax_columns_f32,
                       &job);
    return HAIAN_OK;
  }
  int64_t rows = haian_walk_rows(&job.walk, job.walk.ndim);
  void (*body)(void *, int64_t, int64_t) = job.n <= ROW_SHORT / 2 ? (f64 ? softmax_short_f64 : softmax_short_f32)
                                                                  : (f64 ? softmax_long_f64 : softmax_long_f32);
  if (rows == 1) body(&job, 0, 1);
  else haian_parallel_for(rows, row_grain(job.n, bytes), body, &job);
  return HAIAN_OK;
}

static int32_t softmax(const haian_args *args) {
  return run(SOFTMAX, "softmax", args->in[0], NULL, args->out[0], args->attr[0].i);
}

static int32_t log_softmax(const haian_args *args) {
  return run(LOG_SOFTMAX, "log_softmax", args->in[0], NULL, args->out[0], args->attr[0].i);
}

static int32_t softmax_backward(const haian_args *args) {
  ROW_REQUIRE_LIKE("softmax_backward", "y", args->in[1], "dy", args->in[0]);
  return run(SOFTMAX_BACKWARD, "softmax_backward", args->in[0], args->in[1], args->out[0], args->attr[0].i);
}

static int32_t log_softmax_backward(const haian_args *args) {
  ROW_REQUIRE_LIKE("log_softmax_backward", "y", args->in[1], "dy", args->in[0]);
  return run(LOG_SOFTMAX_BACKWARD, "log_softmax_backward", args->in[0], args->in[1], args->out[0], args->attr[0].i);
}

const haian_kernel_entry HAIAN_TABLE(softmax)[] = {
    {"softmax", softmax, HAIAN_FLOATS, NULL},
    {"log_softmax", log_softmax, HAIAN_FLOATS, NULL},
    {"softmax_backward", softmax_backward, HAIAN_FLOATS, NULL},
    {"log_softmax_backward", log_softmax_backward, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
