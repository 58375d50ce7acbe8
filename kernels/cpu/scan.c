/* cumsum, cumprod, cummax, cummin, logcumsumexp: argument checks, and the choice between rows and columns.
 * Not here: the arithmetic (scan_real.h). */
#include "row.h"
#include <stdlib.h>

#define SCAN_BLOCK 32768 /* values whose sum is carried as one: 128 KiB of f32; whole chunks */
#define SCAN_WIDTH 1024  /* columns of a strip */

enum scan_op { CUMSUM, CUMPROD, CUMMAX, CUMMIN, LOGCUMSUMEXP };

typedef struct scan_job {
  enum scan_op op;
  bool stream, columns; /* stream: the result leaves the caches anyway, store past them */
  int64_t n;            /* length of the axis */
  row_axes x, y, w;     /* the axis: input, result, indices */
  const char *x_data;
  char *y_data;
  int64_t *w_data; /* NULL where there are no indices */
  haian_walk walk; /* the other axes; tensor 0 is x, 1 the result, 2 the indices */
} scan_job;

#define EACH_INT
#define TEMPLATE "scan_real.h"
#include "each_real.h"

/* The dtype of a cumulative sum or product of x: what `wanted` says, else int64 for integers and bools. */
static bool scan_dtype(const haian_tensor *x, const haian_attr *wanted, int32_t *dtype) {
  int32_t own = row_is_float(x->dtype) ? x->dtype : HAIAN_I64;
  *dtype = wanted->kind == HAIAN_NONE ? own : (int32_t)wanted->i;
  return *dtype == own || (row_is_float(*dtype) && row_item(*dtype) >= 4 &&
                           (!row_is_float(x->dtype) || row_item(*dtype) >= row_item(x->dtype)));
}

/* w: the tensor of indices, or NULL; wanted: the attribute dtype, or NULL. */
static int32_t run(enum scan_op op, const char *name, const haian_args *args, const haian_attr *wanted,
                   const haian_tensor *w) {
  const haian_tensor *x = args->in[0], *y = args->out[0];
  int64_t dim = args->attr[0].i;
  int axis;
  int32_t dtype = x->dtype;
  HAIAN_REQUIRE(HAIAN_BIT(x->dtype) & (op == LOGCUMSUMEXP ? HAIAN_FLOATS : HAIAN_ANY & ~HAIAN_BIT(HAIAN_U64)),
                HAIAN_DTYPE, "%s: dtype %s; accepts floats%s; cast it first", name, haian_dtype_name(x->dtype),
                op == LOGCUMSUMEXP ? "" : ", integers and bool");
  HAIAN_REQUIRE(row_axis(dim, x->ndim, &axis), HAIAN_SHAPE,
                "%s: dim %lld is outside a tensor of %d axes; needs %d <= dim < %d", name, (long long)dim, x->ndim,
                x->ndim ? -x->ndim : -1, x->ndim ? x->ndim : 1);
  HAIAN_REQUIRE(!wanted || scan_dtype(x, wanted, &dtype), HAIAN_DTYPE,
                "%s: dtype %s for a %s input; needs its own or a wider floating dtype; cast the result", name,
                haian_dtype_name(dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(y->dtype == dtype, HAIAN_DTYPE, "%s: the result has dtype %s; needs %s", name,
                haian_dtype_name(y->dtype), haian_dtype_name(dtype));
  HAIAN_REQUIRE(haian_same_shape(y, x), HAIAN_SHAPE, "%s: the result is %s and the input %s; they must be equal", name,
                row_shape(y).text, row_shape(x).text);
  HAIAN_REQUIRE(!w || w->dtype == HAIAN_I64, HAIAN_DTYPE, "%s: the indices have dtype %s; needs int64", name,
                haian_dtype_name(w->dtype));
  HAIAN_REQUIRE(!w || haian_same_shape(w, x), HAIAN_SHAPE,
                "%s: the indices are %s and the input %s; they must be equal", name, row_shape(w).text,
                row_shape(x).text);
  if (x->numel == 0) return HAIAN_OK;

  scan_job job;
  const haian_tensor *tensors[3] = {x, y, w};
  int64_t offset[3] = {0};
  uint32_t mask = 1u << axis;
  job.op = op;
  job.n = x->ndim ? x->shape[axis] : 1;
  row_of(&job.x, x, mask);
  row_of(&job.y, y, mask);
  if (w) row_of(&job.w, w, mask);
  row_walk(&job.walk, tensors, w ? 3 : 2, ~mask);
  haian_walk_sort(&job.walk, offset);
  haian_walk_merge(&job.walk);
  job.x_data = (const char *)x->data + offset[0] * job.x.item;
  job.y_data = (char *)y->data + offset[1] * job.y.item;
  job.w_data = w ? (int64_t *)w->data + offset[2] : NULL;
  int last = job.walk.ndim - 1;
  job.columns =
      last >= 0 && job.n > 1 && job.x.stride[0] != 1 && job.walk.shape[last] >= 8 && job.walk.stride[last][0] == 1;
  job.stream =
      (job.columns ? job.walk.stride[last][1] : job.y.stride[0]) == 1 && x->numel * job.y.item >= HAIAN_STREAM_BYTES;
  if (!row_is_float(dtype)) scan_i64(&job);
  else if (dtype == HAIAN_F64) scan_f64(&job);
  else scan_f32(&job);
  return HAIAN_OK;
}

static int32_t cumsum(const haian_args *args) { return run(CUMSUM, "cumsum", args, &args->attr[1], NULL); }
static int32_t cumprod(const haian_args *args) { return run(CUMPROD, "cumprod", args, &args->attr[1], NULL); }
static int32_t cummax(const haian_args *args) { return run(CUMMAX, "cummax", args, NULL, args->out[1]); }
static int32_t cummin(const haian_args *args) { return run(CUMMIN, "cummin", args, NULL, args->out[1]); }
static int32_t logcumsumexp(const haian_args *args) { return run(LOGCUMSUMEXP, "logcumsumexp", args, NULL, NULL); }

#define SCANNED (HAIAN_ANY & ~HAIAN_BIT(HAIAN_U64))
const haian_kernel_entry HAIAN_TABLE(scan)[] = {
    {"cumsum", cumsum, SCANNED, NULL},
    {"cumprod", cumprod, SCANNED, NULL},
    {"cummax", cummax, SCANNED, NULL},
    {"cummin", cummin, SCANNED, NULL},
    {"logcumsumexp", logcumsumexp, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
