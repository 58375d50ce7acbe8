/* cdist and pdist: argument checks, batches, partition into tiles.  Distances are summed from differences, not from the
 * product of the two matrices, which cancels where points lie close together.  Not here: the tile (distance_real.h). */
#include "elementary.h"
#include "gemm/gemm.h"
#include "row.h"
#include <stdatomic.h>

#define DISTANCE_ROWS 64  /* rows of the first matrix a task takes: a packed panel of the second serves that many */
#define DISTANCE_DEEP 256 /* differences summed in one accumulator before they join the total */

enum distance_kind { UNEQUAL, ONE, TWO, LARGEST, ANY_POWER };

typedef struct distance_job {
  enum distance_kind kind;
  bool pairs; /* pdist: only j > i, one after another */
  double p;
  int64_t rows, columns, n; /* of the result; length of a point */
  int64_t tiles, panels;    /* tiles of rows, panels of columns in one batch */
  int32_t dtype, y_dtype, item;
  const char *a, *b;
  char *y;
  int64_t a_row, a_n, b_row, b_n, y_row, y_column;
  haian_walk batch;   /* of the result, x1, x2 */
  atomic_bool failed; /* a thread had no memory for its panel */
} distance_job;

#define TEMPLATE "distance_real.h"
#include "each_real.h"

static int32_t kind_of(const char *name, double p, enum distance_kind *kind) {
  HAIAN_REQUIRE(p >= 0, HAIAN_INVALID_ARGUMENT, "%s: p is %g; needs 0 or more", name, p);
  *kind = p == 0 ? UNEQUAL : p == 1 ? ONE : p == 2 ? TWO : p == INFINITY ? LARGEST : ANY_POWER;
  return HAIAN_OK;
}

static int32_t run(distance_job *job, const haian_tensor *y) {
  if (y->numel == 0) return HAIAN_OK;
  bool f64 = job->dtype == HAIAN_F64;
  int64_t width = f64 ? distance_width_f64 : distance_width_f32;
  job->item = (int32_t)row_item(job->dtype);
  job->y_dtype = y->dtype;
  job->y = y->data;
  job->tiles = (job->rows + DISTANCE_ROWS - 1) / DISTANCE_ROWS;
  job->panels = (job->columns + width - 1) / width;
  int64_t tasks = haian_walk_rows(&job->batch, job->batch.ndim) * job->tiles * job->panels;
  haian_parallel_for(tasks, row_grain(job->n * DISTANCE_ROWS, 8 * 4), f64 ? distance_tasks_f64 : distance_tasks_f32,
                     job);
  HAIAN_REQUIRE(!atomic_load(&job->failed), HAIAN_OUT_OF_MEMORY,
                "distance: no memory for %lld coordinates of %lld points", (long long)job->n, (long long)width);
  return HAIAN_OK;
}

static int32_t cdist(const haian_args *args) {
  const haian_tensor *a = args->in[0], *b = args->in[1], *y = args->out[0];
  HAIAN_REQUIRE(row_is_float(a->dtype) && b->dtype == a->dtype && y->dtype == a->dtype, HAIAN_DTYPE,
                "cdist: dtypes %s, %s and result %s; needs one floating dtype; cast first", haian_dtype_name(a->dtype),
                haian_dtype_name(b->dtype), haian_dtype_name(y->dtype));
  HAIAN_REQUIRE(a->ndim >= 2 && b->ndim >= 2 && a->shape[a->ndim - 1] == b->shape[b->ndim - 1], HAIAN_SHAPE,
                "cdist: x1 is %s and x2 %s; both need (..., points, length) with one length", row_shape(a).text,
                row_shape(b).text);
  distance_job job = {.dtype = a->dtype, .a = a->data, .b = b->data};
  const haian_attr *p = &args->attr[0];
  job.p = p->kind == HAIAN_INT ? (double)p->i : p->f;
  int32_t bad = kind_of("cdist", job.p, &job.kind);
  if (bad) return bad;
  int lead = (a->ndim > b->ndim ? a->ndim : b->ndim) - 2;
  bool fits =
      y->ndim == lead + 2 && y->shape[lead] == a->shape[a->ndim - 2] && y->shape[lead + 1] == b->shape[b->ndim - 2];
  job.batch.tensors = 3;
  for (int i = 0; i < lead && fits; i++) {
    int ia = i - lead + a->ndim - 2, ib = i - lead + b->ndim - 2;
    int64_t m = ia < 0 ? 1 : a->shape[ia], n = ib < 0 ? 1 : b->shape[ib];
    HAIAN_REQUIRE(m == n || m == 1 || n == 1, HAIAN_SHAPE, "cdist: the batches of x1 %s and x2 %s do not broadcast",
                  row_shape(a).text, row_shape(b).text);
    fits = y->shape[i] == (m == 1 ? n : m);
    job.batch.shape[i] = y->shape[i];
    job.batch.stride[i][0] = y->stride[i];
    job.batch.stride[i][1] = m == 1 ? 0 : a->stride[ia];
    job.batch.stride[i][2] = n == 1 ? 0 : b->stride[ib];
  }
  HAIAN_REQUIRE(fits, HAIAN_SHAPE, "cdist: the result is %s for x1 %s and x2 %s; needs (..., points of x1, of x2)",
                row_shape(y).text, row_shape(a).text, row_shape(b).text);
  job.batch.ndim = lead;
  job.rows = y->shape[lead];
  job.columns = y->shape[lead + 1];
  job.n = a->shape[a->ndim - 1];
  job.a_row = a->stride[a->ndim - 2];
  job.a_n = a->stride[a->ndim - 1];
  job.b_row = b->stride[b->ndim - 2];
  job.b_n = b->stride[b->ndim - 1];
  job.y_row = y->stride[lead];
  job.y_column = y->stride[lead + 1];
  return run(&job, y);
}

static int32_t pdist(const haian_args *args) {
  const haian_tensor *x = args->in[0], *y = args->out[0];
  HAIAN_REQUIRE(row_is_float(x->dtype) && y->dtype == x->dtype, HAIAN_DTYPE,
                "pdist: dtype %s and result %s; needs one floating dtype; cast first", haian_dtype_name(x->dtype),
                haian_dtype_name(y->dtype));
  HAIAN_REQUIRE(x->ndim == 2, HAIAN_SHAPE, "pdist: x has shape %s; needs (points, length)", row_shape(x).text);
  int64_t n = x->shape[0];
  HAIAN_REQUIRE(y->ndim == 1 && y->shape[0] == n * (n - 1) / 2, HAIAN_SHAPE,
                "pdist: the result is %s; needs one number for each of the %lld pairs", row_shape(y).text,
                (long long)(n * (n - 1) / 2));
  const haian_attr *p = &args->attr[0];
  distance_job job = {.dtype = x->dtype,
                      .pairs = true,
                      .p = p->kind == HAIAN_INT ? (double)p->i : p->f,
                      .rows = n,
                      .columns = n,
                      .n = x->shape[1],
                      .a = x->data,
                      .b = x->data,
                      .a_row = x->stride[0],
                      .a_n = x->stride[1],
                      .b_row = x->stride[0],
                      .b_n = x->stride[1],
                      .y_column = y->stride[0]};
  int32_t bad = kind_of("pdist", job.p, &job.kind);
  return bad ? bad : run(&job, y);
}

const haian_kernel_entry HAIAN_TABLE(distance)[] = {
    {"cdist", cdist, HAIAN_FLOATS, NULL},
    {"pdist", pdist, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
