/* sum, mean, prod, amax, amin, aminmax, var, std, their forms with the mean, norms, logsumexp, any, all, count_nonzero:
 * argument checks, the axes, and the choice between rows and columns.
 * Not here: the arithmetic (reduce_real.h), argmax, argmin, max and min along an axis (reduce_index.c). */
#include "elementary.h"
#include "row.h"
#include <stdlib.h>

#define REDUCE_CHUNK ROW_CHUNK
#define REDUCE_BLOCKS 256  /* partial results of one long row at most */
#define REDUCE_BLOCK 65536 /* values in each at least: ~10 us, what another thread has to be worth */
/* Columns of a strip.  4096 x 4096 f32, first axis, one thread: 256 take 1.2 to 1.3 times less than 1024. */
#define REDUCE_WIDTH 256
#define REDUCE_AHEAD 16 /* rows between a prefetch and its use */
#define REDUCE_PARTS 16 /* blocks of rows of a strip that all threads share */
#define REDUCE_PARALLEL (1 << 18)

enum reduce_op { SUM, MEAN, AMAX, AMIN, VAR, ANY, ALL, PROD, COUNT, SQUARES, RANGE, EXPONENTIALS };
/* What is done to the elements first, and to the result at last. */
enum reduce_map { AS_IS, SIZES, NOT_ZERO, POWERS };
enum reduce_end { AS_WELL, SQUARE_ROOT, POWER_ROOT };

typedef struct reduce_job {
  enum reduce_op op;
  enum reduce_map map;
  enum reduce_end end;
  bool columns; /* results side by side */
  int32_t y_dtype, y_item;
  const char *x;
  char *y, *z; /* z: the second result (mean of VAR, largest of RANGE), or NULL */
  double power;
  int64_t n, block, level; /* values of one result; of one block of a row; rows of a strip between two levels of sums */
  double correction;
  row_axes row;             /* the reduced axes of x as one row */
  haian_walk reduced, kept; /* the reduced axes of x; the others, of x and the result */
} reduce_job;

/* Whether one of n bytes is zero (or, is not): bool and 8-bit integers, unconverted. */
static bool reduce_bytes(const uint8_t *p, int64_t n, bool zero) {
  for (int64_t i = 0; i < n; i += 4096) {
    int64_t end = n - i < 4096 ? n : i + 4096;
    uint8_t hit = 0;
    if (zero) {
      for (int64_t k = i; k < end; k++) hit |= p[k] == 0;
    } else {
      for (int64_t k = i; k < end; k++) hit |= p[k];
    }
    if (hit) return true;
  }
  return false;
}

/* How many of n bytes are not zero. */
static int64_t count_bytes(const uint8_t *p, int64_t n) {
  int64_t total = 0;
  for (int64_t i = 0; i < n; i += 4096) {
    int64_t end = n - i < 4096 ? n : i + 4096;
    uint16_t some = 0;
    for (int64_t k = i; k < end; k++) some += p[k] != 0;
    total += some;
  }
  return total;
}

#define EACH_INT
#define TEMPLATE "reduce_real.h"
#include "each_real.h"

#define REDUCIBLE                                                                                    \
  (HAIAN_FLOATS | HAIAN_SIGNED | HAIAN_BIT(HAIAN_U8) | HAIAN_BIT(HAIAN_U16) | HAIAN_BIT(HAIAN_U32) | \
   HAIAN_BIT(HAIAN_BOOL))

/* The axes that dim names as bits; none given: all of them. */
static int32_t axes_of(const char *name, const haian_attr *dim, int32_t ndim, uint32_t *mask) {
  int64_t one = dim->i;
  const int64_t *dims = dim->kind == HAIAN_INTS ? dim->v : &one;
  int32_t count = dim->kind == HAIAN_NONE ? 0 : dim->kind == HAIAN_INTS ? dim->count : 1;
  *mask = count ? 0 : ~0u;
  for (int32_t i = 0; i < count; i++) {
    int axis;
    HAIAN_REQUIRE(row_axis(dims[i], ndim, &axis), HAIAN_SHAPE,
                  "%s: dim %lld is outside a tensor of %d axes; needs %d <= dim < %d", name, (long long)dims[i], ndim,
                  ndim ? -ndim : -1, ndim ? ndim : 1);
    HAIAN_REQUIRE(!(*mask >> axis & 1), HAIAN_SHAPE, "%s: dim names axis %d twice; name each once", name, axis);
    *mask |= 1u << axis;
  }
  return HAIAN_OK;
}

/* Refuses a result that is not x without the axes of mask. */
static int32_t check_result(const char *name, const haian_tensor *x, const haian_tensor *y, uint32_t mask,
                            bool keepdim) {
  int d = 0;
  bool fits = true;
  for (int i = 0; i < x->ndim && fits; i++) {
    bool gone = mask >> i & 1;
    if (gone && !keepdim) continue;
    fits = d < y->ndim && y->shape[d] == (gone ? 1 : x->shape[i]);
    d++;
  }
  HAIAN_REQUIRE(fits && d == y->ndim, HAIAN_SHAPE,
                "%s: the result is %s for an input of %s; needs the input's shape %s the reduced axes", name,
                row_shape(y).text, row_shape(x).text, keepdim ? "with 1 for" : "without");
  return HAIAN_OK;
}

static int64_t least_stride(const haian_walk *w) {
  int64_t s = w->ndim ? w->stride[w->ndim - 1][0] : 0;
  return s < 0 ? -s : s;
}

static void set_axis(haian_walk *w, int64_t shape, int64_t x_stride, int64_t y_stride) {
  if (shape == 1) return;
  w->shape[w->ndim] = shape;
  w->stride[w->ndim][0] = x_stride;
  w->stride[w->ndim][1] = y_stride;
  w->stride[w->ndim++][2] = y_stride;
}

/* plan for contiguous x and y and neighbouring reduced axes: (outer, n, inner), without looking at strides. */
static void plan_contiguous(reduce_job *job, const haian_tensor *x, uint32_t mask) {
  int64_t outer = 1, inner = 1;
  job->n = 1;
  for (int d = 0; d < x->ndim; d++) {
    if (mask >> d & 1) job->n *= x->shape[d];
    else if (mask >> d) outer *= x->shape[d];
    else inner *= x->shape[d];
  }
  set_axis(&job->kept, outer, job->n * inner, inner);
  set_axis(&job->kept, inner, 1, 1);
  set_axis(&job->reduced, job->n, inner, 0);
  job->row.ndim = 1;
  job->row.shape[0] = job->n;
  job->row.stride[0] = inner;
}

/* t with x's axes: its strides for those kept. */
static haian_tensor with_axes(const haian_tensor *t, const haian_tensor *x, uint32_t mask, bool keepdim) {
  haian_tensor result = *t;
  for (int i = 0, d = 0; i < x->ndim; i++) {
    bool gone = mask >> i & 1;
    result.stride[i] = gone && !keepdim ? 0 : t->stride[d];
    d += !gone || keepdim;
  }
  return result;
}

/* Splits x into the reduced axes and the rest and decides how to walk them; z: a second result, or NULL. */
static void plan(reduce_job *job, const haian_tensor *x, const haian_tensor *y, const haian_tensor *z, uint32_t mask,
                 bool keepdim) {
  job->x = x->data;
  job->y = y->data;
  job->z = z ? z->data : NULL;
  job->y_dtype = y->dtype;
  job->y_item = (int32_t)row_item(y->dtype);
  job->columns = false;
  job->row.dtype = x->dtype;
  job->row.item = (int32_t)row_item(x->dtype);
  job->kept.ndim = job->reduced.ndim = 0;
  job->kept.tensors = z ? 3 : 2;
  job->reduced.tensors = 1;
  mask &= (1u << x->ndim) - 1;
  uint32_t low = mask & (0u - mask); /* adding the lowest bit carries through bits without a gap */
  if (haian_is_contiguous(x) && haian_is_contiguous(y) && (!z || haian_is_contiguous(z)) &&
      (mask & (mask + low)) == 0) {
    plan_contiguous(job, x, mask);
  } else {
    haian_tensor result = with_axes(y, x, mask, keepdim), second = with_axes(z ? z : y, x, mask, keepdim);
    const haian_tensor *both[3] = {x, &result, &second};
    int64_t offset[HAIAN_WALK_TENSORS] = {0};
    row_walk(&job->kept, both, z ? 3 : 2, ~mask);
    row_walk(&job->reduced, both, 1, mask);
    haian_walk_sort(&job->kept, offset); /* the order of results and, in a row, of terms does not matter */
    haian_walk_sort(&job->reduced, offset);
    haian_walk_merge(&job->kept);
    haian_walk_merge(&job->reduced);
    job->row.ndim = job->reduced.ndim;
    job->n = 1;
    for (int d = 0; d < job->reduced.ndim; d++) {
      job->row.shape[d] = job->reduced.shape[d];
      job->row.stride[d] = job->reduced.stride[d][0];
      job->n *= job->row.shape[d];
    }
    if (!job->row.ndim) {
      job->row.ndim = 1;
      job->row.shape[0] = job->row.stride[0] = 1;
    }
    job->x += offset[0] * job->row.item;
    job->y += offset[1] * job->y_item;
    if (z) job->z += offset[2] * job->y_item;
  }
  if (job->kept.ndim) { /* columns when the kept axis lies closer together, or when rows are too short to be worth their
                           set-up of ~10 ns */
    bool closer = least_stride(&job->kept) < least_stride(&job->reduced);
    job->columns = job->n > 0 && job->kept.shape[job->kept.ndim - 1] >= 16 && ((closer && job->n > 1) || job->n < 16);
  }
  job->block = REDUCE_BLOCK;
  job->level = 8;
  if (job->n > (int64_t)REDUCE_BLOCK * REDUCE_BLOCKS)
    job->block = ((job->n + REDUCE_BLOCKS - 1) / REDUCE_BLOCKS + REDUCE_CHUNK - 1) / REDUCE_CHUNK * REDUCE_CHUNK;
  while (job->columns && job->level * job->level < 8 * job->n) job->level *= 2;
}

/* What a kernel asks of reduce: numbers of its operation, and where in attr dim and keepdim stand. */
typedef struct reduce_how {
  enum reduce_op op;
  enum reduce_map map;
  enum reduce_end end;
  int dim_at, keep_at;
  double correction, power;
  bool nonempty; /* no elements have no result */
} reduce_how;

/* compute: the dtype whose arithmetic it is. */
static int32_t reduce_as(const char *name, const haian_args *args, const reduce_how *how, int32_t compute) {
  const haian_tensor *x = args->in[0], *y = args->out[0], *z = args->n_out > 1 ? args->out[1] : NULL;
  reduce_job job;
  uint32_t mask;
  int32_t bad = axes_of(name, &args->attr[how->dim_at], x->ndim, &mask);
  if (bad) return bad;
  bool keepdim = args->attr[how->keep_at].kind == HAIAN_INT && args->attr[how->keep_at].i != 0;
  for (int i = 0; i < x->ndim && how->nonempty; i++)
    HAIAN_REQUIRE(x->shape[i] || !(mask >> i & 1), HAIAN_SHAPE,
                  "%s: x has shape %s and no element along axis %d; needs one at least", name, row_shape(x).text, i);
  if ((bad = check_result(name, x, y, mask, keepdim)) || (z && (bad = check_result(name, x, z, mask, keepdim))))
    return bad;
  job.op = how->op;
  job.map = how->map;
  job.end = how->end;
  job.correction = how->correction;
  job.power = how->power;
  plan(&job, x, y, z, mask, keepdim);
  if (y->numel == 0) return HAIAN_OK;
  return !row_is_float(compute) ? reduce_i64(&job) : compute == HAIAN_F64 ? reduce_f64(&job) : reduce_f32(&job);
}

static int32_t reduce(enum reduce_op op, const char *name, const haian_args *args, int keep_at, double correction,
                      int32_t compute) {
  reduce_how how = {.op = op, .keep_at = keep_at, .correction = correction, .nonempty = op == AMAX || op == AMIN};
  return reduce_as(name, args, &how, compute);
}

static int32_t check_input(const char *name, const haian_tensor *x, uint32_t accepted, const char *what) {
  HAIAN_REQUIRE(HAIAN_BIT(x->dtype) & accepted, HAIAN_DTYPE, "%s: dtype %s; accepts %s; cast it first", name,
                haian_dtype_name(x->dtype), what);
  return HAIAN_OK;
}

static int32_t check_like_x(const char *name, const haian_tensor *x, const haian_tensor *y) {
  HAIAN_REQUIRE(y->dtype == x->dtype, HAIAN_DTYPE, "%s: the result has dtype %s and the input %s; they must be equal",
                name, haian_dtype_name(y->dtype), haian_dtype_name(x->dtype));
  return HAIAN_OK;
}

/* sum, prod and mean: the terms are converted to the result's dtype, attribute dtype when given (aten: x.to(dtype).sum()). */
static int32_t total(enum reduce_op op, const char *name, const haian_args *args) {
  const haian_tensor *x = args->in[0], *y = args->out[0];
  int32_t bad = check_input(name, x, REDUCIBLE, "floats, integers and bool");
  if (bad) return bad;
  int32_t want = args->attr[2].kind == HAIAN_INT ? (int32_t)args->attr[2].i
                 : row_is_float(x->dtype)        ? x->dtype
                                                 : HAIAN_I64;
  HAIAN_REQUIRE(y->dtype == want && (HAIAN_BIT(want) & REDUCIBLE), HAIAN_DTYPE, "%s: the result has dtype %s; needs %s",
                name, haian_dtype_name(y->dtype), haian_dtype_name(want));
  if (want == HAIAN_BOOL) return reduce(op == SUM ? ANY : ALL, name, args, 1, 0, x->dtype);
  return reduce(op, name, args, 1, 0, want);
}
static int32_t sum(const haian_args *args) { return total(SUM, "sum", args); }
static int32_t prod(const haian_args *args) { return total(PROD, "prod", args); }

static int32_t mean(const haian_args *args) {
  const haian_tensor *x = args->in[0], *y = args->out[0];
  int32_t want = args->attr[2].kind == HAIAN_INT ? (int32_t)args->attr[2].i : x->dtype;
  int32_t bad = check_input("mean", x, REDUCIBLE, "floats, integers and bool");
  if (bad) return bad;
  HAIAN_REQUIRE(row_is_float(want), HAIAN_DTYPE,
                "mean: dtype %s; a mean is float32, float16, bfloat16 or float64; give dtype=", haian_dtype_name(want));
  HAIAN_REQUIRE(y->dtype == want, HAIAN_DTYPE, "mean: the result has dtype %s; needs %s", haian_dtype_name(y->dtype),
                haian_dtype_name(want));
  return reduce(MEAN, "mean", args, 1, 0, want);
}

static int32_t extreme(enum reduce_op op, const char *name, const haian_args *args) {
  const haian_tensor *x = args->in[0], *y = args->out[0];
  int32_t bad = check_input(name, x, REDUCIBLE, "floats, integers and bool");
  if (bad) return bad;
  HAIAN_REQUIRE(y->dtype == x->dtype, HAIAN_DTYPE, "%s: the result has dtype %s and the input %s; they must be equal",
                name, haian_dtype_name(y->dtype), haian_dtype_name(x->dtype));
  return reduce(op, name, args, 1, 0, x->dtype);
}
static int32_t amax(const haian_args *args) { return extreme(AMAX, "amax", args); }
static int32_t amin(const haian_args *args) { return extreme(AMIN, "amin", args); }

/* var, std and their forms with the mean as a second result */
static int32_t spread(const char *name, const haian_args *args, enum reduce_end end) {
  const haian_tensor *x = args->in[0];
  const haian_attr *c = &args->attr[1];
  int32_t bad = check_input(name, x, HAIAN_FLOATS, "float32, float16, bfloat16, float64");
  for (int i = 0; i < args->n_out && !bad; i++) bad = check_like_x(name, x, args->out[i]);
  if (bad) return bad;
  reduce_how how = {.op = VAR,
                    .end = end,
                    .keep_at = 2,
                    .correction = c->kind == HAIAN_NONE  ? 1
                                  : c->kind == HAIAN_INT ? (double)c->i
                                                         : c->f};
  return reduce_as(name, args, &how, x->dtype);
}
static int32_t var(const haian_args *args) { return spread("var", args, AS_WELL); }
static int32_t std(const haian_args *args) { return spread("std", args, SQUARE_ROOT); }
static int32_t var_mean(const haian_args *args) { return spread("var_mean", args, AS_WELL); }
static int32_t std_mean(const haian_args *args) { return spread("std_mean", args, SQUARE_ROOT); }

static int32_t aminmax(const haian_args *args) {
  const haian_tensor *x = args->in[0];
  int32_t bad = check_input("aminmax", x, REDUCIBLE, "floats, integers and bool");
  for (int i = 0; i < args->n_out && !bad; i++) bad = check_like_x("aminmax", x, args->out[i]);
  if (bad) return bad;
  reduce_how how = {.op = RANGE, .keep_at = 1, .nonempty = true};
  return reduce_as("aminmax", args, &how, x->dtype);
}

static int32_t logsumexp(const haian_args *args) {
  const haian_tensor *x = args->in[0];
  int32_t bad = check_input("logsumexp", x, HAIAN_FLOATS, "float32, float16, bfloat16, float64");
  if (bad || (bad = check_like_x("logsumexp", x, args->out[0]))) return bad;
  reduce_how how = {.op = EXPONENTIALS, .keep_at = 1};
  return reduce_as("logsumexp", args, &how, x->dtype);
}

static int32_t count_nonzero(const haian_args *args) {
  const haian_tensor *x = args->in[0], *y = args->out[0];
  int32_t bad = check_input("count_nonzero", x, REDUCIBLE, "floats, integers and bool");
  if (bad) return bad;
  HAIAN_REQUIRE(y->dtype == HAIAN_I64, HAIAN_DTYPE, "count_nonzero: the result has dtype %s; needs int64",
                haian_dtype_name(y->dtype));
  reduce_how how = {.op = COUNT, .map = NOT_ZERO, .keep_at = 1};
  return reduce_as("count_nonzero", args, &how, x->dtype);
}

/* attr: ord, dim, keepdim, dtype.  Squares of float32 are summed in double: nothing overflows that the result does not. */
static int32_t linalg_vector_norm(const haian_args *args) {
  static const char name[] = "linalg_vector_norm";
  const haian_tensor *x = args->in[0], *y = args->out[0];
  int32_t bad = check_input(name, x, HAIAN_FLOATS, "float32, float16, bfloat16, float64");
  if (bad) return bad;
  double p = args->attr[0].kind == HAIAN_INT ? (double)args->attr[0].i : args->attr[0].f;
  int32_t want = args->attr[3].kind == HAIAN_INT ? (int32_t)args->attr[3].i : x->dtype;
  HAIAN_REQUIRE(row_is_float(want) && y->dtype == want, HAIAN_DTYPE, "%s: the result has dtype %s; needs %s", name,
                haian_dtype_name(y->dtype), haian_dtype_name(want));
  HAIAN_REQUIRE(p == p, HAIAN_INVALID_ARGUMENT, "%s: ord is NaN; needs a number", name);
  reduce_how how = {.op = SUM, .map = SIZES, .dim_at = 1, .keep_at = 2, .power = p, .nonempty = p < 0 || p == INFINITY};
  if (p == INFINITY) how.op = AMAX;
  else if (p == -INFINITY) how.op = AMIN;
  else if (p == 0) how.map = NOT_ZERO;
  else if (p == 2) how = (reduce_how){.op = SQUARES, .end = SQUARE_ROOT, .dim_at = 1, .keep_at = 2};
  else if (p != 1) how.map = POWERS, how.end = POWER_ROOT;
  return reduce_as(name, args, &how, want);
}

static int32_t truth(enum reduce_op op, const char *name, const haian_args *args) {
  const haian_tensor *x = args->in[0], *y = args->out[0];
  int32_t bad = check_input(name, x, REDUCIBLE, "floats, integers and bool");
  if (bad) return bad;
  HAIAN_REQUIRE(y->dtype == HAIAN_BOOL, HAIAN_DTYPE, "%s: the result has dtype %s; needs bool", name,
                haian_dtype_name(y->dtype));
  return reduce(op, name, args, 1, 0, x->dtype);
}
static int32_t any(const haian_args *args) { return truth(ANY, "any", args); }
static int32_t all(const haian_args *args) { return truth(ALL, "all", args); }

const haian_kernel_entry HAIAN_TABLE(reduce)[] = {
    {"sum", sum, REDUCIBLE, NULL},
    {"mean", mean, REDUCIBLE, NULL},
    {"prod", prod, REDUCIBLE, NULL},
    {"amax", amax, REDUCIBLE, NULL},
    {"amin", amin, REDUCIBLE, NULL},
    {"aminmax", aminmax, REDUCIBLE, NULL},
    {"var", var, HAIAN_FLOATS, NULL},
    {"std", std, HAIAN_FLOATS, NULL},
    {"var_mean", var_mean, HAIAN_FLOATS, NULL},
    {"std_mean", std_mean, HAIAN_FLOATS, NULL},
    {"linalg_vector_norm", linalg_vector_norm, HAIAN_FLOATS, NULL},
    {"logsumexp", logsumexp, HAIAN_FLOATS, NULL},
    {"any", any, REDUCIBLE, NULL},
    {"all", all, REDUCIBLE, NULL},
    {"count_nonzero", count_nonzero, REDUCIBLE, NULL},
    {NULL, NULL, 0, NULL},
};
