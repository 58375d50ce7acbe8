/* argmax, argmin, and max and min along an axis with their places: argument checks, the axes, and the choice between
 * rows and columns.
 * Not here: the search (reduce_index_real.h). */
#include "row.h"

#define INDEX_CHUNK 1024  /* values searched for their largest before looking where it is */
#define INDEX_BLOCKS 256  /* partial results of one long row at most */
#define INDEX_BLOCK 65536 /* values in each at least */
#define INDEX_WIDTH 1024  /* columns of a strip */

typedef struct index_job {
  bool smallest, columns;
  const char *x;
  char *values; /* the elements found, or NULL */
  int64_t *y;
  int64_t n, block; /* values of one result; of one block of a row */
  row_axes row;     /* the reduced axes in row-major order: a position is the result */
  haian_walk kept;  /* the others, of x, the result and the values */
} index_job;

/* Result number `to` of the walk takes the element at position `at` of the row that starts at x (one axis). */
static inline void index_take(const index_job *job, const char *x, int64_t at, int64_t to) {
  memcpy(job->values + to * job->row.item, x + at * job->row.stride[0] * job->row.item, (size_t)job->row.item);
}

#define EACH_INT
#define TEMPLATE "reduce_index_real.h"
#include "each_real.h"

#define ORDERED (HAIAN_FLOATS | HAIAN_SIGNED | HAIAN_BIT(HAIAN_U8) | HAIAN_BIT(HAIAN_U16) | HAIAN_BIT(HAIAN_U32))

/* t's strides with x's axes, into *result; whether t has the shape of x without those of mask. */
static bool with_axes(const haian_tensor *t, const haian_tensor *x, uint32_t mask, bool keepdim, haian_tensor *result) {
  int d = 0;
  bool fits = true;
  *result = *t;
  for (int i = 0; i < x->ndim && fits; i++) {
    bool gone = mask >> i & 1;
    result->stride[i] = 0;
    if (gone && !keepdim) continue;
    fits = d < t->ndim && t->shape[d] == (gone ? 1 : x->shape[i]);
    result->stride[i] = t->stride[d < t->ndim ? d : 0];
    d++;
  }
  return fits && d == t->ndim;
}

/* values: where the elements go, or NULL. */
static int32_t run(bool smallest, const char *name, const haian_args *args, const haian_tensor *values,
                   const haian_tensor *y) {
  const haian_tensor *x = args->in[0];
  const haian_attr *dim = &args->attr[0];
  bool keepdim = args->attr[1].kind == HAIAN_INT && args->attr[1].i != 0;
  int axis = -1;
  HAIAN_REQUIRE(HAIAN_BIT(x->dtype) & ORDERED, HAIAN_DTYPE, "%s: dtype %s; accepts floats and integers; cast it first",
                name, haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(y->dtype == HAIAN_I64, HAIAN_DTYPE, "%s: the result has dtype %s; needs int64", name,
                haian_dtype_name(y->dtype));
  HAIAN_REQUIRE(dim->kind == HAIAN_NONE || row_axis(dim->i, x->ndim, &axis), HAIAN_SHAPE,
                "%s: dim %lld is outside a tensor of %d axes; needs %d <= dim < %d", name, (long long)dim->i, x->ndim,
                x->ndim ? -x->ndim : -1, x->ndim ? x->ndim : 1);
  uint32_t mask = axis < 0 ? ~0u : 1u << axis;
  haian_tensor result, second;
  bool fits = with_axes(y, x, mask, keepdim, &result) && (!values || with_axes(values, x, mask, keepdim, &second));
  HAIAN_REQUIRE(!values || values->dtype == x->dtype, HAIAN_DTYPE,
                "%s: the values have dtype %s and the input %s; they must be equal", name,
                haian_dtype_name(values->dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(fits, HAIAN_SHAPE,
                "%s: the result is %s for an input of %s; needs the input's shape %s the reduced axes", name,
                row_shape(y).text, row_shape(x).text, keepdim ? "with 1 for" : "without");
  int64_t n = axis < 0 ? x->numel : x->ndim ? x->shape[axis] : 1;
  HAIAN_REQUIRE(n > 0, HAIAN_SHAPE, "%s: x has shape %s and no element along the reduced axes; needs one at least",
                name, row_shape(x).text);
  if (y->numel == 0) return HAIAN_OK;

  index_job job;
  const haian_tensor *both[3] = {x, &result, &second};
  int64_t offset[HAIAN_WALK_TENSORS] = {0};
  job.smallest = smallest;
  job.n = n;
  row_of(&job.row, x, mask);
  row_walk(&job.kept, both, values ? 3 : 2, ~mask);
  haian_walk_sort(&job.kept, offset);
  haian_walk_merge(&job.kept);
  job.x = (const char *)x->data + offset[0] * job.row.item;
  job.y = (int64_t *)y->data + offset[1];
  job.values = values ? (char *)values->data + offset[2] * job.row.item : NULL;
  job.block = INDEX_BLOCK;
  if (n > (int64_t)INDEX_BLOCK * INDEX_BLOCKS)
    job.block = ((n + INDEX_BLOCKS - 1) / INDEX_BLOCKS + INDEX_CHUNK - 1) / INDEX_CHUNK * INDEX_CHUNK;
  int64_t kept = job.kept.ndim ? job.kept.shape[job.kept.ndim - 1] : 0;
  int64_t side = kept ? job.kept.stride[job.kept.ndim - 1][0] : 0,
          step = job.row.stride[0] < 0 ? -job.row.stride[0] : job.row.stride[0];
  job.columns = job.row.ndim == 1 && kept >= 16 && ((side < step && n > 1) || n < 16) && n < INT32_MAX;
  return !row_is_float(x->dtype) ? index_i64(&job) : x->dtype == HAIAN_F64 ? index_f64(&job) : index_f32(&job);
}

static int32_t argmax(const haian_args *args) { return run(false, "argmax", args, NULL, args->out[0]); }
static int32_t argmin(const haian_args *args) { return run(true, "argmin", args, NULL, args->out[0]); }

static int32_t with_values(bool smallest, const char *name, const haian_args *args) {
  HAIAN_REQUIRE(args->attr[0].kind == HAIAN_INT, HAIAN_INVALID_ARGUMENT, "%s: dim is not given; name an axis", name);
  return run(smallest, name, args, args->out[0], args->out[1]);
}
static int32_t max_along(const haian_args *args) { return with_values(false, "max", args); }
static int32_t min_along(const haian_args *args) { return with_values(true, "min", args); }

const haian_kernel_entry HAIAN_TABLE(reduce_index)[] = {
    {"argmax", argmax, ORDERED, NULL},
    {"argmin", argmin, ORDERED, NULL},
    {"max", max_along, ORDERED, NULL},
    {"min", min_along, ORDERED, NULL},
    {NULL, NULL, 0, NULL},
};
