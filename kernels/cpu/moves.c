/* Movement of whole tensors: flip, roll, repeat, repeat_interleave, stack, diag_embed; and the fills one_hot, fill, linspace.
 * Each is a few calls of the copy engine (shape.c) over views of x and out.  Not here: copy, cat, tril, triu, arange, full. */
#include "strided.h"
#include <math.h>

#define TRY(call)                            \
  do {                                       \
    int32_t status_ = (call);                \
    if (status_ != HAIAN_OK) return status_; \
  } while (0)

#define MOST (1LL << 40) /* repeats and offsets: products with sizes stay below 2^63 */

static int32_t need_args(const char *op, const haian_args *args, int n_in, int n_attr) {
  HAIAN_REQUIRE(args->n_in >= 1 && (n_in < 0 || args->n_in == n_in) && args->n_out == 1 && args->n_attr == n_attr,
                HAIAN_INVALID_ARGUMENT, "%s: %d inputs, %d outputs, %d attributes; needs %d, 1, %d", op, args->n_in,
                args->n_out, args->n_attr, n_in < 0 ? 1 : n_in, n_attr);
  for (int i = 0; i < args->n_in; i++)
    HAIAN_REQUIRE(args->in[i], HAIAN_INVALID_ARGUMENT, "%s: input %d is missing; needs a tensor", op, i);
  return HAIAN_OK;
}

static int32_t need_like(const char *op, const haian_tensor *x, const haian_tensor *out, bool shape) {
  HAIAN_REQUIRE(out->dtype == x->dtype, HAIAN_DTYPE, "%s: out is %s and x is %s; they must be equal; cast first", op,
                haian_dtype_name(out->dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(!shape || haian_same_shape(x, out), HAIAN_SHAPE, "%s: out is %s and x is %s; they must be equal", op,
                HAIAN_SHAPE_OF(out), HAIAN_SHAPE_OF(x));
  return HAIAN_OK;
}

/* An axis out of n; a tensor without axes has axis 0 and -1. */
static int32_t need_dim(const char *op, int64_t value, int ndim, int *dim) {
  int n = ndim ? ndim : 1;
  HAIAN_REQUIRE(value >= -n && value < n, HAIAN_SHAPE,
                "%s: dim %lld is outside a tensor of %d axes; needs %d <= dim < %d", op, (long long)value, ndim, -n, n);
  *dim = (int)(value < 0 ? value + n : value);
  return HAIAN_OK;
}

static haian_walk walk_pair(const haian_tensor *y, const haian_tensor *x) {
  haian_walk w = {.ndim = y->ndim, .tensors = 2};
  for (int d = 0; d < y->ndim; d++) {
    w.shape[d] = y->shape[d];
    w.stride[d][0] = y->stride[d];
    w.stride[d][1] = x->stride[d];
  }
  return w;
}

static int32_t run_flip(const haian_args *args) {
  TRY(need_args("flip", args, 1, 1));
  const haian_tensor *x = args->in[0], *out = args->out[0];
  TRY(need_like("flip", x, out, true));
  HAIAN_REQUIRE(args->attr[0].kind == HAIAN_INTS, HAIAN_INVALID_ARGUMENT, "flip: dims is missing; needs integers");
  haian_walk w = walk_pair(out, x);
  int64_t item = haian_itemsize(x->dtype), offset = 0;
  unsigned seen = 0;
  for (int i = 0; i < args->attr[0].count; i++) {
    int d = 0;
    TRY(need_dim("flip", args->attr[0].v[i], x->ndim, &d));
    HAIAN_REQUIRE(!(seen >> d & 1), HAIAN_SHAPE, "flip: dims name axis %d twice; name each once", d);
    seen |= 1u << d;
    if (x->ndim == 0 || x->shape[d] < 2) continue;
    offset += (x->shape[d] - 1) * x->stride[d];
    w.stride[d][1] = -x->stride[d];
  }
  HAIAN_SYM(copy_walk)(w, out->data, (const char *)x->data + offset * item, item);
  return HAIAN_OK;
}

/* Each rolled axis falls into two parts; 2^axes copies. */
static int32_t run_roll(const haian_args *args) {
  TRY(need_args("roll", args, 1, 2));
  const haian_tensor *x = args->in[0], *out = args->out[0];
  const haian_attr *shifts = &args->attr[0], *dims = &args->attr[1];
  TRY(need_like("roll", x, out, true));
  HAIAN_REQUIRE(shifts->kind == HAIAN_INTS && dims->kind == HAIAN_INTS &&
                    (dims->count == shifts->count || (dims->count == 0 && shifts->count == 1)),
                HAIAN_SHAPE, "roll: %d shifts and %d dims; needs a shift an axis, or one shift and no dims",
                shifts->kind == HAIAN_INTS ? shifts->count : 0, dims->kind == HAIAN_INTS ? dims->count : 0);
  haian_walk w = walk_pair(out, x);
  haian_tensor flat_x = *x, flat_out = *out;
  int64_t shift[HAIAN_MAX_RANK] = {0}, item = haian_itemsize(x->dtype);
  int ndim = x->ndim;
  for (int i = 0; i < dims->count; i++) {
    int d = 0;
    TRY(need_dim("roll", dims->v[i], x->ndim, &d));
    if (ndim && x->shape[d]) shift[d] = (shift[d] + shifts->v[i] % x->shape[d]) % x->shape[d];
  }
  if (x->numel == 0) return HAIAN_OK;
  if (dims->count == 0) { /* over the flattened tensor: two runs where both lie packed, else element by element rows */
    int64_t s = shifts->v[0] % x->numel;
    s = s < 0 ? s + x->numel : s;
    if (haian_is_contiguous(x) && haian_is_contiguous(out)) {
      ndim = 1;
      flat_x.shape[0] = x->numel;
      flat_x.stride[0] = flat_out.stride[0] = 1;
      w = (haian_walk){.ndim = 1, .tensors = 2, .shape = {x->numel}};
      w.stride[0][0] = w.stride[0][1] = 1;
      shift[0] = s;
    } else {
      haian_place to, from;
      haian_place_seek(&to, &w, w.ndim, s);
      haian_place_seek(&from, &w, w.ndim, 0);
      for (int64_t i = 0; i < x->numel; i++) {
        memcpy((char *)out->data + to.offset[0] * item, (const char *)x->data + from.offset[1] * item, (size_t)item);
        haian_place_next(&to, &w, w.ndim);
        haian_place_next(&from, &w, w.ndim);
      }
      return HAIAN_OK;
    }
  }
  int split[HAIAN_MAX_RANK], n = 0;
  for (int d = 0; d < ndim; d++) {
    if (shift[d] < 0) shift[d] += flat_x.shape[d];
    if (shift[d]) split[n++] = d;
  }
  for (int part = 0; part < 1 << n; part++) {
    haian_walk piece = w;
    int64_t y = 0, from = 0;
    for (int i = 0; i < n; i++) {
      int d = split[i];
      int64_t s = shift[d], size = flat_x.shape[d];
      bool front = part >> i & 1; /* out's first s places come from x's end */
      piece.shape[d] = front ? s : size - s;
      y += (front ? 0 : s) * w.stride[d][0];
      from += (front ? size - s : 0) * w.stride[d][1];
    }
    HAIAN_SYM(copy_walk)(piece, (char *)out->data + y * item, (const char *)x->data + from * item, item);
  }
  return HAIAN_OK;
}

/* Copies with up to 2 * MAX_RANK axes: what does not fit the walk is looped over. */
static void repeat_into(const haian_tensor *out, const haian_tensor *x, const int64_t *times, int d, haian_walk w,
                        char *y, int64_t item) {
  for (; d < out->ndim; d++) {
    int own = d - (out->ndim - x->ndim);
    int64_t size = own >= 0 ? x->shape[own] : 1, step = own >= 0 ? x->stride[own] : 0;
    int left = 2 * (out->ndim - d);
    if (times[d] > 1 && w.ndim + left > HAIAN_MAX_RANK) {
      int64_t again[HAIAN_MAX_RANK];
      memcpy(again, times, sizeof again);
      again[d] = 1;
      for (int64_t i = 0; i < times[d]; i++)
        repeat_into(out, x, again, d, w, y + i * size * out->stride[d] * item, item);
      return;
    }
    if (times[d] > 1) {
      w.shape[w.ndim] = times[d];
      w.stride[w.ndim][0] = size * out->stride[d];
      w.stride[w.ndim++][1] = 0;
    }
    if (size != 1) {
      w.shape[w.ndim] = size;
      w.stride[w.ndim][0] = out->stride[d];
      w.stride[w.ndim++][1] = step;
    }
  }
  HAIAN_SYM(copy_walk)(w, y, x->data, item);
}

static int32_t run_repeat(const haian_args *args) {
  TRY(need_args("repeat", args, 1, 1));
  const haian_tensor *x = args->in[0], *out = args->out[0];
  const haian_attr *times = &args->attr[0];
  TRY(need_like("repeat", x, out, false));
  HAIAN_REQUIRE(
      times->kind == HAIAN_INTS && times->count >= x->ndim && times->count == out->ndim, HAIAN_SHAPE,
      "repeat: repeats has %d entries, x %d axes and out %d; needs an entry an axis of out, as many as x's at "
      "least",
      times->kind == HAIAN_INTS ? times->count : 0, x->ndim, out->ndim);
  int64_t n[HAIAN_MAX_RANK] = {0};
  for (int d = 0; d < out->ndim; d++) {
    int own = d - (out->ndim - x->ndim);
    n[d] = times->v[d];
    HAIAN_REQUIRE(n[d] >= 0 && n[d] < MOST, HAIAN_INVALID_ARGUMENT,
                  "repeat: repeats has %lld; needs 0 or more, below 2^40", (long long)n[d]);
    HAIAN_REQUIRE(out->shape[d] == n[d] * (own >= 0 ? x->shape[own] : 1), HAIAN_SHAPE,
                  "repeat: out is %s; needs x's size times %lld on axis %d", HAIAN_SHAPE_OF(out), (long long)n[d], d);
  }
  if (out->numel) repeat_into(out, x, n, 0, (haian_walk){.tensors = 2}, out->data, haian_itemsize(x->dtype));
  return HAIAN_OK;
}

typedef uint8_t __attribute__((may_alias)) bits1;
typedef uint16_t __attribute__((may_alias)) bits2;
typedef uint32_t __attribute__((may_alias)) bits4;
typedef uint64_t __attribute__((may_alias)) bits8;

typedef struct echo_job {
  const char *x;
  char *y;
  int64_t times, item;
} echo_job;

/* y[i * times + r] = x[i]; a constant number of times makes whole vectors. */
#define ECHO(T, TIMES)              \
  for (int64_t i = lo; i < hi; i++) \
    for (int64_t r = 0; r < (TIMES); r++) ((T *)job->y)[i * (TIMES) + r] = ((const T *)job->x)[i]
#define ECHOES(T)                         \
  do {                                    \
    if (job->times == 2) ECHO(T, 2);      \
    else if (job->times == 4) ECHO(T, 4); \
    else ECHO(T, job->times);             \
  } while (0)
static void echo_run(void *ctx, int64_t lo, int64_t hi) {
  const echo_job *job = ctx;
  if (job->item == 1) ECHOES(bits1);
  else if (job->item == 2) ECHOES(bits2);
  else if (job->item == 4) ECHOES(bits4);
  else ECHOES(bits8);
}

static int32_t run_repeat_interleave(const haian_args *args) {
  static const char op[] = "repeat_interleave";
  TRY(need_args(op, args, 1, 2));
  const haian_tensor *x = args->in[0], *out = args->out[0];
  int64_t times = args->attr[0].i, item = haian_itemsize(x->dtype), row = 1;
  bool flat = args->attr[1].kind == HAIAN_NONE, fits;
  int dim = 0;
  TRY(need_like(op, x, out, false));
  HAIAN_REQUIRE(args->attr[0].kind == HAIAN_INT && times >= 0 && times < MOST, HAIAN_INVALID_ARGUMENT,
                "%s: repeats is %lld; needs 0 or more, below 2^40", op, (long long)times);
  if (!flat) TRY(need_dim(op, args->attr[1].i, x->ndim, &dim));
  fits = out->ndim == (flat || !x->ndim ? 1 : x->ndim) && (!flat || out->numel == x->numel * times);
  for (int d = 0; d < out->ndim && fits && !flat; d++)
    fits = out->shape[d] == (x->ndim ? x->shape[d] : 1) * (d == dim ? times : 1);
  HAIAN_REQUIRE(fits, HAIAN_SHAPE, "%s: out is %s and x is %s; needs %lld times as much, along one axis", op,
                HAIAN_SHAPE_OF(out), HAIAN_SHAPE_OF(x), (long long)times);
  if (out->numel == 0) return HAIAN_OK;
  haian_walk w = {.tensors = 2, .ndim = x->ndim}; /* x's axes: where the first copy of each element goes */
  for (int d = x->ndim - 1; d >= 0; row *= x->shape[d--]) {
    w.shape[d] = x->shape[d];
    w.stride[d][0] = flat ? row * times * out->stride[0] : out->stride[d] * (d == dim ? times : 1);
    w.stride[d][1] = x->stride[d];
  }
  haian_walk_merge(&w);
  bool beside = w.ndim == 1 && w.stride[0][1] == 1 && w.stride[0][0] == times && out->stride[flat ? 0 : dim] == 1;
  if (beside && times * item <= 64 && item <= 8) {
    echo_job job = {.x = x->data, .y = out->data, .times = times, .item = item};
    haian_parallel_for(w.shape[0], HAIAN_GRAIN_BYTES / (times * item), echo_run, &job);
    return HAIAN_OK;
  }
  bool room = w.ndim < HAIAN_MAX_RANK; /* for an axis of the repeats */
  if (room) {
    w.shape[w.ndim] = times;
    w.stride[w.ndim][0] = out->stride[flat ? 0 : dim];
    w.stride[w.ndim++][1] = 0;
  }
  for (int64_t i = 0; i < (room ? 1 : times); i++)
    HAIAN_SYM(copy_walk)(w, (char *)out->data + i * out->stride[flat ? 0 : dim] * item, x->data, item);
  return HAIAN_OK;
}

static int32_t run_stack(const haian_args *args) {
  TRY(need_args("stack", args, -1, 1));
  const haian_tensor *first = args->in[0], *out = args->out[0];
  int dim = 0;
  HAIAN_REQUIRE(args->attr[0].kind == HAIAN_INT && out->ndim == first->ndim + 1, HAIAN_SHAPE,
                "stack: out is %s; needs one axis more than the tensors", HAIAN_SHAPE_OF(out));
  TRY(need_dim("stack", args->attr[0].i, out->ndim, &dim));
  HAIAN_REQUIRE(out->shape[dim] == args->n_in, HAIAN_SHAPE, "stack: out is %s; needs %d on axis %d",
                HAIAN_SHAPE_OF(out), args->n_in, dim);
  for (int i = 0; i < args->n_in; i++) {
    const haian_tensor *x = args->in[i];
    HAIAN_REQUIRE(x->dtype == out->dtype, HAIAN_DTYPE,
                  "stack: tensor %d is %s and out is %s; they must be equal; cast first", i, haian_dtype_name(x->dtype),
                  haian_dtype_name(out->dtype));
    bool fits = x->ndim == first->ndim;
    for (int d = 0; d < x->ndim && fits; d++) fits = x->shape[d] == out->shape[d < dim ? d : d + 1];
    HAIAN_REQUIRE(fits, HAIAN_SHAPE, "stack: tensor %d is %s and out is %s; the tensors' shapes must be equal", i,
                  HAIAN_SHAPE_OF(x), HAIAN_SHAPE_OF(out));
  }
  int64_t item = haian_itemsize(out->dtype);
  for (int i = 0; i < args->n_in; i++) {
    const haian_tensor *x = args->in[i];
    haian_walk w = {.ndim = x->ndim, .tensors = 2};
    for (int d = 0; d < x->ndim; d++) {
      w.shape[d] = x->shape[d];
      w.stride[d][0] = out->stride[d < dim ? d : d + 1];
      w.stride[d][1] = x->stride[d];
    }
    HAIAN_SYM(copy_walk)(w, (char *)out->data + i * out->stride[dim] * item, x->data, item);
  }
  return HAIAN_OK;
}

static const char zeros[16];

static int32_t run_diag_embed(const haian_args *args) {
  static const char op[] = "diag_embed";
  TRY(need_args(op, args, 1, 3));
  const haian_tensor *x = args->in[0], *out = args->out[0];
  int a = 0, b = 0;
  TRY(need_like(op, x, out, false));
  HAIAN_REQUIRE(x->ndim >= 1 && out->ndim == x->ndim + 1, HAIAN_SHAPE,
                "%s: x is %s and out %s; needs one axis at least, and "
                "one more",
                op, HAIAN_SHAPE_OF(x), HAIAN_SHAPE_OF(out));
  HAIAN_REQUIRE(args->attr[0].kind == HAIAN_INT && args->attr[0].i < MOST && args->attr[0].i > -MOST, HAIAN_SHAPE,
                "%s: offset %lld; needs less than 2^40 either way", op, (long long)args->attr[0].i);
  int64_t offset = args->attr[0].i, n = x->shape[x->ndim - 1], size = n + (offset < 0 ? -offset : offset);
  TRY(need_dim(op, args->attr[1].i, out->ndim, &a));
  TRY(need_dim(op, args->attr[2].i, out->ndim, &b));
  HAIAN_REQUIRE(a != b, HAIAN_SHAPE, "%s: dim1 and dim2 are both axis %d; they must differ", op, a);
  bool fits = out->shape[a] == size && out->shape[b] == size;
  haian_walk all = walk_pair(out, out), w = {.tensors = 2};
  for (int d = 0; d < out->ndim; d++) {
    all.stride[d][1] = 0;
    if (d == a || d == b) continue;
    fits &= out->shape[d] == x->shape[w.ndim];
    w.shape[w.ndim] = x->shape[w.ndim];
    w.stride[w.ndim][0] = out->stride[d];
    w.stride[w.ndim][1] = x->stride[w.ndim];
    w.ndim++;
  }
  HAIAN_REQUIRE(fits, HAIAN_SHAPE, "%s: out is %s and x is %s; needs (%lld, %lld) matrices of x's last axis", op,
                HAIAN_SHAPE_OF(out), HAIAN_SHAPE_OF(x), (long long)size, (long long)size);
  int64_t item = haian_itemsize(x->dtype);
  w.shape[w.ndim] = n;
  w.stride[w.ndim][0] = out->stride[a] + out->stride[b];
  w.stride[w.ndim++][1] = x->stride[x->ndim - 1];
  HAIAN_SYM(copy_walk)(all, out->data, zeros, item);
  int64_t start = offset < 0 ? -offset * out->stride[a] : offset * out->stride[b];
  if (x->numel) HAIAN_SYM(copy_walk)(w, (char *)out->data + start * item, x->data, item);
  return HAIAN_OK;
}

/* ---- fills ---------------------------------------------------------------------------------------------------------- */
typedef struct hot_job {
  haian_walk walk; /* x's axes; tensor 0 = out without its last axis, 1 = x */
  const void *x;
  int64_t *y, step, classes;
  bool wide;
} hot_job;

static void hot_rows(void *ctx, int64_t lo, int64_t hi) {
  const hot_job *job = ctx;
  haian_place place;
  haian_place_seek(&place, &job->walk, job->walk.ndim, lo);
  for (; lo < hi; lo++, haian_place_next(&place, &job->walk, job->walk.ndim)) {
    int64_t k = job->wide ? ((const int64_t *)job->x)[place.offset[1]] : ((const int32_t *)job->x)[place.offset[1]];
    int64_t *y = job->y + place.offset[0];
    if (job->step == 1) memset(y, 0, (size_t)job->classes * sizeof *y);
    else
      for (int64_t c = 0; c < job->classes; c++) y[c * job->step] = 0;
    y[k * job->step] = 1;
  }
}

static int32_t run_one_hot(const haian_args *args) {
  static const char op[] = "one_hot";
  TRY(need_args(op, args, 1, 1));
  const haian_tensor *x = args->in[0], *out = args->out[0];
  int64_t classes = args->attr[0].i;
  HAIAN_REQUIRE(x->dtype == HAIAN_I64 || x->dtype == HAIAN_I32, HAIAN_DTYPE, "%s: x is %s; takes int32, int64", op,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(out->dtype == HAIAN_I64, HAIAN_DTYPE, "%s: out is %s; needs int64", op, haian_dtype_name(out->dtype));
  HAIAN_REQUIRE(args->attr[0].kind == HAIAN_INT && classes > 0, HAIAN_INVALID_ARGUMENT,
                "%s: num_classes is %lld; needs 1 or more", op, (long long)classes);
  HAIAN_REQUIRE(out->ndim == x->ndim + 1 && out->shape[x->ndim] == classes &&
                    memcmp(out->shape, x->shape, (size_t)x->ndim * sizeof x->shape[0]) == 0,
                HAIAN_SHAPE, "%s: out is %s and x is %s; needs x's shape and then %lld", op, HAIAN_SHAPE_OF(out),
                HAIAN_SHAPE_OF(x), (long long)classes);
  hot_job job = {
      .x = x->data, .y = out->data, .step = out->stride[x->ndim], .classes = classes, .wide = x->dtype == HAIAN_I64};
  job.walk.tensors = 2;
  job.walk.ndim = x->ndim;
  for (int d = 0; d < x->ndim; d++) {
    job.walk.shape[d] = x->shape[d];
    job.walk.stride[d][0] = out->stride[d];
    job.walk.stride[d][1] = x->stride[d];
  }
  haian_place place;
  if (x->numel) haian_place_seek(&place, &job.walk, job.walk.ndim, 0);
  for (int64_t i = 0; i < x->numel; i++, haian_place_next(&place, &job.walk, job.walk.ndim)) {
    int64_t k = job.wide ? ((const int64_t *)x->data)[place.offset[1]] : ((const int32_t *)x->data)[place.offset[1]];
    HAIAN_REQUIRE(k >= 0 && k < classes, HAIAN_INDEX, "%s: class %lld at position %lld is outside 0 <= class < %lld",
                  op, (long long)k, (long long)i, (long long)classes);
  }
  haian_parallel_for(x->numel, 1 + HAIAN_GRAIN_BYTES / (8 * classes), hot_rows, &job);
  return HAIAN_OK;
}

/* double to float, inexact results to the odd neighbour: rounding that to 16 bits is then right in one step. */
static float round_to_odd(double value) {
  float f = (float)value;
  uint32_t u;
  memcpy(&u, &f, 4);
  if ((double)f == value || value != value || (u & 1)) return f;
  u = fabs((double)f) < fabs(value) ? u + 1 : u - 1;
  memcpy(&f, &u, 4);
  return f;
}
static double number_of(const haian_attr *a) { return a->kind == HAIAN_INT ? (double)a->i : a->f; }

static int32_t run_fill(const haian_args *args) {
  static const char op[] = "fill";
  TRY(need_args(op, args, 2, 0));
  const haian_tensor *x = args->in[0], *value = args->in[1], *out = args->out[0];
  TRY(need_like(op, x, out, true));
  HAIAN_REQUIRE(value->ndim == 0, HAIAN_SHAPE, "%s: value is %s; needs a number or a tensor without axes", op,
                HAIAN_SHAPE_OF(value));
  HAIAN_REQUIRE(value->dtype == x->dtype, HAIAN_DTYPE, "%s: value is %s and x is %s; they must be equal; cast first",
                op, haian_dtype_name(value->dtype), haian_dtype_name(x->dtype));
  haian_walk w = walk_pair(out, out);
  for (int d = 0; d < out->ndim; d++) w.stride[d][1] = 0;
  HAIAN_SYM(copy_walk)(w, out->data, value->data, haian_itemsize(out->dtype));
  return HAIAN_OK;
}

typedef struct line_job {
  char *y;
  int64_t stride, n;
  double start, end, step;
  int32_t dtype;
} line_job;

/* Elements [lo, lo + n) in a row: counted from the start in the first half, from the end in the second. */
#define LINE_LOOP(T, STORE)                                                                  \
  {                                                                                          \
    T *restrict y = to;                                                                      \
    for (int64_t i = 0; i < n; i++) y[i] = (T)STORE(from + (double)(first + i) * job->step); \
  }
#define SAME(v) (v)
#define TO_F16(v) haian_f16_store(round_to_odd(v))
#define TO_BF16(v) haian_bf16_store(round_to_odd(v))
static void line_part(const line_job *job, void *to, int64_t lo, int64_t n, bool front) {
  const double from = front ? job->start : job->end;
  const int64_t first = front ? lo : lo - (job->n - 1);
  if (job->dtype == HAIAN_F64) LINE_LOOP(double, SAME)
  else if (job->dtype == HAIAN_F32) LINE_LOOP(float, SAME)
  else if (job->dtype == HAIAN_F16) LINE_LOOP(uint16_t, TO_F16)
  else LINE_LOOP(uint16_t, TO_BF16)
}

static void line_run(void *ctx, int64_t lo, int64_t hi) {
  const line_job *job = ctx;
  const int64_t item = haian_itemsize(job->dtype), half = job->n == 1 ? 1 : job->n / 2;
  _Alignas(64) char buffer[4096];
  while (lo < hi) {
    bool front = lo < half;
    int64_t end = front && half < hi ? half : hi, n = end - lo < 4096 / item ? end - lo : 4096 / item;
    char *y = job->y + lo * job->stride * item;
    line_part(job, job->stride == 1 ? y : buffer, lo, n, front);
    for (int64_t i = 0; i < n && job->stride != 1; i++)
      memcpy(y + i * job->stride * item, buffer + i * item, (size_t)item);
    lo += n;
  }
}

static int32_t run_linspace(const haian_args *args) {
  static const char op[] = "linspace";
  HAIAN_REQUIRE(args->n_out == 1 && args->n_attr == 4 && args->attr[2].kind == HAIAN_INT, HAIAN_INVALID_ARGUMENT,
                "%s: %d outputs, %d attributes; needs out, and start, end, steps, dtype", op, args->n_out,
                args->n_attr);
  const haian_tensor *out = args->out[0];
  int64_t n = args->attr[2].i;
  double start = number_of(&args->attr[0]), end = number_of(&args->attr[1]);
  HAIAN_REQUIRE((HAIAN_FLOATS >> out->dtype) & 1, HAIAN_DTYPE, "%s: out is %s; takes float16 to float64", op,
                haian_dtype_name(out->dtype));
  HAIAN_REQUIRE(isfinite(start) && isfinite(end) && n >= 0, HAIAN_INVALID_ARGUMENT,
                "%s: start %g, end %g, steps %lld; needs finite ends and 0 steps or more", op, start, end,
                (long long)n);
  HAIAN_REQUIRE(out->ndim == 1 && out->numel == n, HAIAN_SHAPE, "%s: out is %s; needs one axis of %lld", op,
                HAIAN_SHAPE_OF(out), (long long)n);
  line_job job = {.y = out->data, .stride = out->stride[0], .n = n, .start = start, .end = end, .dtype = out->dtype};
  job.step = n > 1 ? (end - start) / (double)(n - 1) : 0;
  haian_parallel_for(n, 1 << 14, line_run, &job);
  return HAIAN_OK;
}

#define MOVED \
  (HAIAN_ANY | HAIAN_BIT(HAIAN_C64) | HAIAN_BIT(HAIAN_C128) | HAIAN_BIT(HAIAN_F8E4M3) | HAIAN_BIT(HAIAN_F8E5M2))
const haian_kernel_entry HAIAN_TABLE(moves)[] = {
    {"flip", run_flip, MOVED, NULL},
    {"roll", run_roll, MOVED, NULL},
    {"repeat", run_repeat, MOVED, NULL},
    {"repeat_interleave", run_repeat_interleave, MOVED, NULL},
    {"stack", run_stack, MOVED, NULL},
    {"diag_embed", run_diag_embed, MOVED, NULL},
    {"one_hot", run_one_hot, HAIAN_BIT(HAIAN_I64) | HAIAN_BIT(HAIAN_I32), NULL},
    {"fill", run_fill, MOVED, NULL},
    {"linspace", run_linspace, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
