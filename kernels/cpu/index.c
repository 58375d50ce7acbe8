/* Lookups by index: embedding, gather, index_select; sums by index: scatter_add, index_add, embedding_dense_backward.
 * Not here: indexing by masks or by several indices at once.
 * Every index is checked before the first store.  Sums take their terms in index order, each destination in one thread
 * with one final rounding, so that results do not depend on the number of threads. */
#include "strided.h"
#include <stdlib.h>

#define BLOCK 512               /* accumulators of one destination row kept at once: 4 KiB of doubles */
#define CACHE_BYTES (512 << 10) /* what columns that are visited at random may take: most of a small L2 */

/* ---- indices ----------------------------------------------------------------------------------------------------- */
static inline int64_t index_at(const void *index, int64_t i, bool wide) {
  return wide ? ((const int64_t *)index)[i] : ((const int32_t *)index)[i];
}

typedef struct check_job {
  haian_walk walk; /* tensor 0 = index, row-major */
  const void *index;
  uint64_t size;
  bool wide;
  int32_t outside; /* atomic */
} check_job;

/* Units: rows of the innermost axis. */
static void check_rows(void *ctx, int64_t lo, int64_t hi) {
  check_job *job = ctx;
  const haian_walk *w = &job->walk;
  int64_t n = w->shape[w->ndim - 1], step = w->stride[w->ndim - 1][0];
  uint64_t size = job->size;
  haian_place place;
  haian_place_seek(&place, w, w->ndim - 1, lo);
  bool outside = false;
  for (; lo < hi; lo++) {
    if (job->wide) {
      const int64_t *index = (const int64_t *)job->index + place.offset[0];
      if (step == 1)
        for (int64_t i = 0; i < n; i++) outside |= (uint64_t)index[i] >= size;
      else
        for (int64_t i = 0; i < n; i++) outside |= (uint64_t)index[i * step] >= size;
    } else {
      const int32_t *index = (const int32_t *)job->index + place.offset[0];
      if (step == 1)
        for (int64_t i = 0; i < n; i++) outside |= (uint64_t)(int64_t)index[i] >= size;
      else
        for (int64_t i = 0; i < n; i++) outside |= (uint64_t)(int64_t)index[i * step] >= size;
    }
    haian_place_next(&place, w, w->ndim - 1);
  }
  if (outside) __atomic_store_n(&job->outside, 1, __ATOMIC_RELAXED);
}

static int32_t check_indices(const char *op, const char *name, const haian_tensor *t, int64_t size) {
  HAIAN_REQUIRE(t->dtype == HAIAN_I64 || t->dtype == HAIAN_I32, HAIAN_DTYPE, "%s: %s is %s; takes int32, int64", op,
                name, haian_dtype_name(t->dtype));
  if (t->numel == 0) return HAIAN_OK;
  check_job job = {
      .walk = {.ndim = t->ndim, .tensors = 1}, .index = t->data, .size = (uint64_t)size, .wide = t->dtype == HAIAN_I64};
  for (int d = 0; d < t->ndim; d++) {
    job.walk.shape[d] = t->stride[d] ? t->shape[d] : 1; /* an expanded axis repeats what was seen */
    job.walk.stride[d][0] = t->stride[d];
  }
  haian_walk_merge(&job.walk);
  if (job.walk.ndim == 0) {
    job.walk.ndim = 1;
    job.walk.shape[0] = 1;
    job.walk.stride[0][0] = 1;
  }
  int64_t n = job.walk.shape[job.walk.ndim - 1];
  if (job.walk.ndim == 1 && n >= 1 << 16) { /* long vectors in rows, for the threads; the rest of the last row alone */
    int64_t length = 1 << 14, step = job.walk.stride[0][0];
    check_job rest = job;
    rest.walk.shape[0] = n % length;
    rest.index = (const char *)t->data + n / length * length * step * haian_itemsize(t->dtype);
    if (n % length) check_rows(&rest, 0, 1);
    job.outside = rest.outside;
    job.walk.ndim = 2;
    job.walk.shape[0] = n / length;
    job.walk.stride[0][0] = length * step;
    job.walk.shape[1] = length;
    job.walk.stride[1][0] = step;
    n = length;
  }
  haian_parallel_for(haian_walk_rows(&job.walk, job.walk.ndim - 1), 1 + (1 << 15) / n, check_rows, &job);
  if (!job.outside) return HAIAN_OK;
  haian_walk w = {.ndim = t->ndim, .tensors = 1}; /* find the first one, for the message */
  for (int d = 0; d < t->ndim; d++) {
    w.shape[d] = t->shape[d];
    w.stride[d][0] = t->stride[d];
  }
  haian_place place;
  haian_place_seek(&place, &w, w.ndim, 0);
  for (int64_t i = 0; i < t->numel; i++, haian_place_next(&place, &w, w.ndim)) {
    int64_t value = index_at(t->data, place.offset[0], job.wide);
    if ((uint64_t)value < (uint64_t)size) continue;
    return haian_fail(HAIAN_INDEX, "%s: %s %lld at position %lld is outside 0 <= %s < %lld", op, name, (long long)value,
                      (long long)i, name, (long long)size);
  }
  return haian_fail(HAIAN_INVALID_ARGUMENT, "%s: %s changed while it was read; needs indices nobody writes to", op,
                    name);
}

/* ---- lookups: out[...] = x[..., index[...], ...] ----------------------------------------------------------------- */
typedef struct take_job {
  haian_walk walk; /* out's axes; tensor 0 = out, 1 = index, 2 = x without the looked-up axis */
  char *y;
  const void *index;
  const char *x;
  int64_t item, x_stride; /* x's stride along the looked-up axis */
  bool wide, stream;
} take_job;

typedef uint8_t __attribute__((may_alias)) bits1;
typedef uint16_t __attribute__((may_alias)) bits2;
typedef uint32_t __attribute__((may_alias)) bits4;
typedef uint64_t __attribute__((may_alias)) bits8;
typedef struct __attribute__((may_alias)) bits16 {
  uint64_t word[2];
} bits16;

/* y[i * ys] = x[index[i * is] * x_stride + i * xs] */
#define TAKE_LOOP(T, I)                                                                 \
  {                                                                                     \
    const I *index = (const I *)index_;                                                 \
    if (ys == 1 && is == 1 && xs == 0)                                                  \
      for (int64_t i = 0; i < n; i++) y[i] = x[index[i] * x_stride];                    \
    else                                                                                \
      for (int64_t i = 0; i < n; i++) y[i * ys] = x[index[i * is] * x_stride + i * xs]; \
  }
#define DEFINE_TAKE(T)                                                                                              \
  static void take_##T(void *y_, int64_t ys, const void *index_, int64_t is, bool wide, const void *x_, int64_t xs, \
                       int64_t x_stride, int64_t n) {                                                               \
    T *restrict y = y_;                                                                                             \
    const T *restrict x = x_;                                                                                       \
    if (wide) TAKE_LOOP(T, int64_t) else TAKE_LOOP(T, int32_t)                                                      \
  }
DEFINE_TAKE(bits1)
DEFINE_TAKE(bits2)
DEFINE_TAKE(bits4)
DEFINE_TAKE(bits8)
DEFINE_TAKE(bits16)

typedef void (*take_loop)(void *, int64_t, const void *, int64_t, bool, const void *, int64_t, int64_t, int64_t);
static take_loop take_of(int64_t item) {
  return item == 1   ? take_bits1
         : item == 2 ? take_bits2
         : item == 4 ? take_bits4
         : item == 8 ? take_bits8
                     : take_bits16;
}

/* One index for the n elements of a run. */
#define RUN_LOOP(T) \
  for (int64_t i = 0; i < n; i++) ((T *)y)[i * ys] = ((const T *)x)[i * xs]
static inline void take_run(char *y, int64_t ys, const char *x, int64_t xs, int64_t n, int64_t item, bool stream) {
  if (ys == 1 && xs == 1) haian_copy_run(y, x, n * item, stream);
  else if (item == 1) RUN_LOOP(bits1);
  else if (item == 2) RUN_LOOP(bits2);
  else if (item == 4) RUN_LOOP(bits4);
  else if (item == 8) RUN_LOOP(bits8);
  else RUN_LOOP(bits16);
}

/* Units: rows of the innermost axis. */
static void take_rows(void *ctx, int64_t lo, int64_t hi) {
  const take_job *job = ctx;
  const haian_walk *w = &job->walk;
  const int64_t *inner = w->stride[w->ndim - 1], *row = w->stride[w->ndim - 2];
  int64_t n = w->shape[w->ndim - 1], rows = w->shape[w->ndim - 2], at = lo % rows, item = job->item;
  int64_t ahead = 4, lines = n * item < 256 ? n * item : 256; /* bytes of a row to come that are asked for early */
  haian_place place;
  haian_place_seek(&place, w, w->ndim - 2, lo / rows);
  while (lo < hi) {
    int64_t end = at + (rows - at < hi - lo ? rows - at : hi - lo);
    lo += end - at;
    if (inner[1] == 0) { /* the index does not vary along a row */
      for (; at < end; at++) {
        if (at + ahead < end && inner[2] == 1) {
          int64_t next = index_at(job->index, place.offset[1] + (at + ahead) * row[1], job->wide);
          const char *x = job->x + (place.offset[2] + (at + ahead) * row[2] + next * job->x_stride) * item;
          for (int64_t i = 0; i < lines; i += 64) __builtin_prefetch(x + i);
        }
        int64_t k = index_at(job->index, place.offset[1] + at * row[1], job->wide);
        take_run(job->y + (place.offset[0] + at * row[0]) * item, inner[0],
                 job->x + (place.offset[2] + at * row[2] + k * job->x_stride) * item, inner[2], n, item, job->stream);
      }
    } else {
      for (; at < end; at++)
        take_of(item)(job->y + (place.offset[0] + at * row[0]) * item, inner[0],
                      (const char *)job->index + (place.offset[1] + at * row[1]) * (job->wide ? 8 : 4), inner[1],
                      job->wide, job->x + (place.offset[2] + at * row[2]) * item, inner[2], job->x_stride, n);
    }
    at = 0;
    haian_place_next(&place, w, w->ndim - 2);
  }
  if (job->stream) haian_stream_fence();
}

static void pad_to_two_axes(haian_walk *w) {
  while (w->ndim < 2) {
    memmove(w->shape + 1, w->shape, sizeof w->shape - sizeof w->shape[0]);
    memmove(w->stride + 1, w->stride, sizeof w->stride - sizeof w->stride[0]);
    w->shape[0] = 1;
    memset(w->stride[0], 0, sizeof w->stride[0]);
    w->ndim++;
  }
}

/* How many neighbouring columns of `size` elements fit the second cache together; whole lines of 64 bytes. */
static int64_t lines_in_cache(int64_t size, int64_t item) {
  int64_t line = 64 / item, lines = CACHE_BYTES / 64 / (size + 1);
  return (lines < 1 ? 1 : lines) * line;
}

/* walk: sorted and merged, at least two axes; job: the rest. */
static void take_part(const take_job *base, const haian_walk *walk, int64_t first, int64_t n) {
  take_job job = *base;
  const int64_t *inner = walk->stride[walk->ndim - 1];
  job.walk = *walk;
  job.walk.shape[walk->ndim - 1] = n;
  job.y += first * inner[0] * job.item;
  job.index = (const char *)job.index + first * inner[1] * (job.wide ? 8 : 4);
  job.x += first * inner[2] * job.item;
  if (n > 0)
    haian_parallel_for(haian_walk_rows(walk, walk->ndim - 1), 1 + HAIAN_GRAIN_BYTES / (n * job.item), take_rows, &job);
}

/* walk: out's axes as in take_job; x has `size` entries along the looked-up axis; indices are checked. */
static void take(haian_walk walk, const haian_tensor *out, const haian_tensor *index, const haian_tensor *x,
                 int64_t x_stride, int64_t size) {
  if (out->numel == 0) return;
  int64_t offset[HAIAN_WALK_TENSORS] = {0}, item = haian_itemsize(out->dtype);
  walk.tensors = 3;
  haian_walk_sort(&walk, offset);
  haian_walk_merge(&walk);
  pad_to_two_axes(&walk);
  take_job job = {.item = item, .x_stride = x_stride, .wide = index->dtype == HAIAN_I64};
  job.y = (char *)out->data + offset[0] * item;
  job.index = (const char *)index->data + offset[1] * (job.wide ? 8 : 4);
  job.x = (const char *)x->data + offset[2] * item;
  int last = walk.ndim - 1;
  int64_t n = walk.shape[last], rows = out->numel / n, block = n;
  int64_t *inner = walk.stride[last];
  job.stream = out->numel * item >= HAIAN_STREAM_BYTES && inner[1] == 0 && inner[0] == 1 && inner[2] == 1;
  if (inner[1] != 0 && rows == 1) block = 1 << 13; /* one long row: cut it for the threads */
  else if (inner[1] != 0 && inner[2] != 0) block = lines_in_cache(size, item); /* columns whose x stays in the cache */
  if (block >= n || walk.ndim == HAIAN_MAX_RANK) {
    take_part(&job, &walk, 0, n);
    return;
  }
  haian_walk cut = walk; /* axes (blocks, ..., block) */
  memmove(cut.shape + 1, walk.shape, (size_t)walk.ndim * sizeof walk.shape[0]);
  memmove(cut.stride + 1, walk.stride, (size_t)walk.ndim * sizeof walk.stride[0]);
  cut.ndim++;
  cut.shape[0] = n / block;
  for (int t = 0; t < 3; t++) cut.stride[0][t] = inner[t] * block;
  take_part(&job, &cut, 0, block);
  take_part(&job, &walk, n / block * block, n % block);
}

static int32_t need_three(const char *op, const haian_args *args, int n_in, int n_attr) {
  HAIAN_REQUIRE(args->n_in == n_in && args->n_out == 1 && args->n_attr == n_attr, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs %d, 1, %d", op, args->n_in, args->n_out, args->n_attr,
                n_in, n_attr);
  for (int i = 0; i < n_in; i++)
    HAIAN_REQUIRE(args->in[i], HAIAN_INVALID_ARGUMENT, "%s: input %d is missing; needs %d tensors", op, i, n_in);
  return HAIAN_OK;
}

static int32_t need_dtype(const char *op, const char *name, const haian_tensor *t, const char *like,
                          const haian_tensor *other) {
  HAIAN_REQUIRE(t->dtype == other->dtype, HAIAN_DTYPE, "%s: %s is %s and %s is %s; they must be equal; cast first", op,
                name, haian_dtype_name(t->dtype), like, haian_dtype_name(other->dtype));
  return HAIAN_OK;
}

/* The axis an attribute names; a 0-d tensor counts as one axis of size 1. */
static int32_t need_dim(const char *op, const haian_attr *attr, const haian_tensor *x, int *dim) {
  int n = x->ndim ? x->ndim : 1;
  HAIAN_REQUIRE(attr->kind == HAIAN_INT && attr->i >= -n && attr->i < n, HAIAN_SHAPE,
                "%s: dim %lld is outside a "
                "tensor of %d axes; needs %d <= dim < %d",
                op, attr->kind == HAIAN_INT ? (long long)attr->i : 0LL, x->ndim, -n, n);
  *dim = (int)(attr->i < 0 ? attr->i + n : attr->i);
  return HAIAN_OK;
}

#define TRY(call)                            \
  do {                                       \
    int32_t status_ = (call);                \
    if (status_ != HAIAN_OK) return status_; \
  } while (0)

static int32_t run_embedding(const haian_args *args) {
  TRY(need_three("embedding", args, 2, 0));
  const haian_tensor *weight = args->in[0], *indices = args->in[1], *out = args->out[0];
  HAIAN_REQUIRE(weight->ndim == 2, HAIAN_SHAPE, "embedding: weight is %s; needs two axes", HAIAN_SHAPE_OF(weight));
  TRY(need_dtype("embedding", "out", out, "weight", weight));
  int last = indices->ndim;
  HAIAN_REQUIRE(out->ndim == last + 1 && out->shape[last] == weight->shape[1] &&
                    memcmp(out->shape, indices->shape, (size_t)last * sizeof out->shape[0]) == 0,
                HAIAN_SHAPE, "embedding: out is %s; needs indices' shape %s and then weight's %lld columns",
                HAIAN_SHAPE_OF(out), HAIAN_SHAPE_OF(indices), (long long)weight->shape[1]);
  TRY(check_indices("embedding", "indices", indices, weight->shape[0]));
  haian_walk w = {.ndim = out->ndim};
  for (int d = 0; d < out->ndim; d++) {
    w.shape[d] = out->shape[d];
    w.stride[d][0] = out->stride[d];
    w.stride[d][1] = d < last ? indices->stride[d] : 0;
    w.stride[d][2] = d < last ? 0 : weight->stride[1];
  }
  take(w, out, indices, weight, weight->stride[0], weight->shape[0]);
  return HAIAN_OK;
}

static int32_t run_gather(const haian_args *args) {
  TRY(need_three("gather", args, 2, 1));
  const haian_tensor *x = args->in[0], *index = args->in[1], *out = args->out[0];
  int dim = 0;
  TRY(need_dim("gather", &args->attr[0], x, &dim));
  TRY(need_dtype("gather", "out", out, "x", x));
  HAIAN_REQUIRE(index->ndim == x->ndim, HAIAN_SHAPE, "gather: index is %s and x is %s; needs as many axes",
                HAIAN_SHAPE_OF(index), HAIAN_SHAPE_OF(x));
  HAIAN_REQUIRE(haian_same_shape(index, out), HAIAN_SHAPE, "gather: out is %s; needs index's shape %s",
                HAIAN_SHAPE_OF(out), HAIAN_SHAPE_OF(index));
  for (int d = 0; d < x->ndim; d++)
    HAIAN_REQUIRE(d == dim || index->numel == 0 || index->shape[d] <= x->shape[d], HAIAN_SHAPE,
                  "gather: index is %s and x is %s; index may not be larger on axis %d", HAIAN_SHAPE_OF(index),
                  HAIAN_SHAPE_OF(x), d);
  TRY(check_indices("gather", "index", index, x->ndim ? x->shape[dim] : 1));
  haian_walk w = {.ndim = out->ndim};
  for (int d = 0; d < out->ndim; d++) {
    w.shape[d] = out->shape[d];
    w.stride[d][0] = out->stride[d];
    w.stride[d][1] = index->stride[d];
    w.stride[d][2] = d == dim ? 0 : x->stride[d];
  }
  take(w, out, index, x, x->ndim ? x->stride[dim] : 0, x->ndim ? x->shape[dim] : 1);
  return HAIAN_OK;
}

static int32_t run_index_select(const haian_args *args) {
  TRY(need_three("index_select", args, 2, 1));
  const haian_tensor *x = args->in[0], *index = args->in[1], *out = args->out[0];
  int dim = 0;
  TRY(need_dim("index_select", &args->attr[0], x, &dim));
  TRY(need_dtype("index_select", "out", out, "x", x));
  HAIAN_REQUIRE(index->ndim <= 1, HAIAN_SHAPE, "index_select: index is %s; needs one axis", HAIAN_SHAPE_OF(index));
  bool fits = out->ndim == x->ndim && (x->ndim > 0 || index->numel == 1);
  for (int d = 0; d < x->ndim && fits; d++) fits = out->shape[d] == (d == dim ? index->numel : x->shape[d]);
  HAIAN_REQUIRE(fits, HAIAN_SHAPE, "index_select: out is %s; needs x's shape %s with %lld elements on axis %d",
                HAIAN_SHAPE_OF(out), HAIAN_SHAPE_OF(x), (long long)index->numel, dim);
  TRY(check_indices("index_select", "index", index, x->ndim ? x->shape[dim] : 1));
  haian_walk w = {.ndim = out->ndim};
  for (int d = 0; d < out->ndim; d++) {
    w.shape[d] = out->shape[d];
    w.stride[d][0] = out->stride[d];
    w.stride[d][1] = d == dim && index->ndim ? index->stride[0] : 0;
    w.stride[d][2] = d == dim ? 0 : x->stride[d];
  }
  take(w, out, index, x, x->ndim ? x->stride[dim] : 0, x->ndim ? x->shape[dim] : 1);
  return HAIAN_OK;
}

/* ---- sums: out = x; out[..., index[...], ...] += alpha * source[...] --------------------------------------------- */
/* Two schedules.  By destination: the index is the same for a whole row, terms are sorted by destination (stable), and
 * each destination row is read, summed and written once.  By column: each column along the summed axis goes through its
 * terms in order.  The first where rows are contiguous, the second where the index varies within a row. */
typedef struct add_job {
  haian_walk walk; /* axes other than the summed one; tensor 0 = out, 1 = x or index (see above), 2 = source */
  char *y;
  const char *x; /* NULL: zeros */
  const char *source;
  const void *index;
  const int64_t *start, *term; /* by destination: terms start[v] .. start[v + 1], each the offset of its source row */
  int64_t y_stride, x_stride, index_stride, source_stride; /* along the summed axis */
  int64_t size, n;                                         /* destinations, terms */
  int64_t blocks;                                          /* of BLOCK elements along a row */
  int64_t group;                                           /* columns that one unit takes */
  double alpha;
  int64_t alpha_int;
  bool wide, stream;
  int32_t status; /* atomic */
} add_job;

#define SAME(v) (v)
#define ADD_FLOAT(a, alpha, v) ((a) + (alpha) * (v))
#define ADD_INTEGER(a, alpha, v) ((a) + 1u * (alpha) * (v)) /* 1u: small unsigned types would promote to int */
#define ADD_BOOL(a, alpha, v) ((a) | ((alpha) & (v)))

#define ADD_LOOP(T, A, LOAD, ADD, I)                            \
  {                                                             \
    const I *at = (const I *)job->index + index;                \
    for (int64_t i = 0; i < n; i++) {                           \
      A *a = to + at[i * index_step] * to_stride + i * to_step; \
      *a = (A)ADD(*a, alpha, (A)LOAD(source[i * source_step])); \
    }                                                           \
  }

/* T: storage; A: accumulator. */
#define DEFINE_ADD(NAME, T, A, LOAD, STORE, ADD, ALPHA)                                                                \
  /* Units: (destination, outer row, block of the row). */                                                             \
  static void add_by_destination_##NAME(void *ctx, int64_t lo, int64_t hi) {                                           \
    const add_job *job = ctx;                                                                                          \
    const haian_walk *w = &job->walk;                                                                                  \
    const int64_t *inner = w->stride[w->ndim - 1];                                                                     \
    int64_t outer = haian_walk_rows(w, w->ndim - 1), ys = inner[0], xs = inner[1], ss = inner[2];                      \
    A alpha = (A)(ALPHA), sum[BLOCK];                                                                                  \
    for (; lo < hi; lo++) {                                                                                            \
      int64_t v = lo / (outer * job->blocks), first = lo % job->blocks * BLOCK, n = w->shape[w->ndim - 1] - first;     \
      haian_place place;                                                                                               \
      haian_place_seek(&place, w, w->ndim - 1, lo / job->blocks % outer);                                              \
      if (n > BLOCK) n = BLOCK;                                                                                        \
      T *y = (T *)job->y + v * job->y_stride + place.offset[0] + first * ys;                                           \
      const T *x = (const T *)job->x + v * job->x_stride + place.offset[1] + first * xs;                               \
      const T *source = (const T *)job->source + place.offset[2] + first * ss;                                         \
      int64_t term = job->start[v], end = job->start[v + 1];                                                           \
      if (term == end && job->x == job->y) continue;                                                                   \
      if (job->x && xs == 1)                                                                                           \
        for (int64_t i = 0; i < n; i++) sum[i] = (A)LOAD(x[i]);                                                        \
      else if (job->x)                                                                                                 \
        for (int64_t i = 0; i < n; i++) sum[i] = (A)LOAD(x[i * xs]);                                                   \
      else                                                                                                             \
        for (int64_t i = 0; i < n; i++) sum[i] = 0;                                                                    \
      for (; term < end; term++) {                                                                                     \
        const T *s = source + job->term[term];                                                                         \
        if (term + 2 < end) __builtin_prefetch(source + job->term[term + 2]);                                          \
        if (ss == 1)                                                                                                   \
          for (int64_t i = 0; i < n; i++) sum[i] = (A)ADD(sum[i], alpha, (A)LOAD(s[i]));                               \
        else                                                                                                           \
          for (int64_t i = 0; i < n; i++) sum[i] = (A)ADD(sum[i], alpha, (A)LOAD(s[i * ss]));                          \
      }                                                                                                                \
      if (job->stream) {                                                                                               \
        T row[BLOCK];                                                                                                  \
        for (int64_t i = 0; i < n; i++) row[i] = (T)STORE(sum[i]);                                                     \
        haian_copy_run((char *)y, (const char *)row, n * (int64_t)sizeof(T), true);                                    \
      } else if (ys == 1)                                                                                              \
        for (int64_t i = 0; i < n; i++) y[i] = (T)STORE(sum[i]);                                                       \
      else                                                                                                             \
        for (int64_t i = 0; i < n; i++) y[i * ys] = (T)STORE(sum[i]);                                                  \
    }                                                                                                                  \
    if (job->stream) haian_stream_fence();                                                                             \
  }                                                                                                                    \
  /* `columns` neighbouring columns: to[destination * to_stride + c * to_step]. */                                     \
  static inline __attribute__((always_inline)) void add_columns_##NAME(                                                \
      const add_job *job, A *to, int64_t to_stride, int64_t to_step, int64_t index, int64_t index_step,                \
      const T *source, int64_t source_step, int64_t columns) {                                                         \
    A alpha = (A)(ALPHA);                                                                                              \
    bool along = columns == 1 || (job->source_stride < source_step && job->source_stride >= 0); /* follow memory */    \
    int64_t rows = along ? columns : job->n, n = along ? job->n : columns;                                             \
    int64_t index_row = along ? index_step : job->index_stride, source_row = along ? source_step : job->source_stride; \
    int64_t to_row = along ? to_step : 0;                                                                              \
    if (along) to_step = 0, index_step = job->index_stride, source_step = job->source_stride;                          \
    for (int64_t j = 0; j < rows; j++, index += index_row, source += source_row, to += to_row) {                       \
      if (job->wide) ADD_LOOP(T, A, LOAD, ADD, int64_t)                                                                \
      else ADD_LOOP(T, A, LOAD, ADD, int32_t)                                                                          \
    }                                                                                                                  \
  }                                                                                                                    \
  /* Units: groups of neighbouring columns. */                                                                         \
  static void add_by_column_##NAME(void *ctx, int64_t lo, int64_t hi) {                                                \
    add_job *job = ctx;                                                                                                \
    const haian_walk *w = &job->walk;                                                                                  \
    const int64_t *inner = w->stride[w->ndim - 1];                                                                     \
    bool direct = sizeof(T) == sizeof(A);                                                                              \
    A *scratch = direct ? NULL : malloc((size_t)(job->size * job->group) * sizeof(A)); /* (size, group) */             \
    if (!direct && !scratch) {                                                                                         \
      __atomic_store_n(&job->status, HAIAN_OUT_OF_MEMORY, __ATOMIC_RELAXED);                                           \
      return;                                                                                                          \
    }                                                                                                                  \
    int64_t length = w->shape[w->ndim - 1], groups = (length + job->group - 1) / job->group;                           \
    for (; lo < hi; lo++) {                                                                                            \
      int64_t at = lo % groups * job->group, take = length - at < job->group ? length - at : job->group;               \
      haian_place place;                                                                                               \
      haian_place_seek(&place, w, w->ndim - 1, lo / groups);                                                           \
      T *y = (T *)job->y + place.offset[0] + at * inner[0];                                                            \
      const T *source = (const T *)job->source + place.offset[2] + at * inner[2];                                      \
      int64_t index = place.offset[1] + at * inner[1];                                                                 \
      if (direct) {                                                                                                    \
        add_columns_##NAME(job, (A *)(void *)y, job->y_stride, inner[0], index, inner[1], source, inner[2], take);     \
      } else {                                                                                                         \
        for (int64_t v = 0; v < job->size; v++)                                                                        \
          for (int64_t c = 0; c < take; c++) scratch[v * take + c] = (A)LOAD(y[v * job->y_stride + c * inner[0]]);     \
        add_columns_##NAME(job, scratch, take, 1, index, inner[1], source, inner[2], take);                            \
        for (int64_t v = 0; v < job->size; v++)                                                                        \
          for (int64_t c = 0; c < take; c++) y[v * job->y_stride + c * inner[0]] = (T)STORE(scratch[v * take + c]);    \
      }                                                                                                                \
    }                                                                                                                  \
    free(scratch);                                                                                                     \
  }
DEFINE_ADD(bool, uint8_t, uint8_t, SAME, SAME, ADD_BOOL, job->alpha != 0)
DEFINE_ADD(i8, uint8_t, uint8_t, SAME, SAME, ADD_INTEGER, job->alpha_int)
DEFINE_ADD(i16, uint16_t, uint16_t, SAME, SAME, ADD_INTEGER, job->alpha_int)
DEFINE_ADD(i32, uint32_t, uint32_t, SAME, SAME, ADD_INTEGER, job->alpha_int)
DEFINE_ADD(i64, uint64_t, uint64_t, SAME, SAME, ADD_INTEGER, job->alpha_int)
DEFINE_ADD(f16, uint16_t, float, haian_f16_load, haian_f16_store, ADD_FLOAT, job->alpha)
DEFINE_ADD(bf16, uint16_t, float, haian_bf16_load, haian_bf16_store, ADD_FLOAT, job->alpha)
DEFINE_ADD(f32, float, float, SAME, SAME, ADD_FLOAT, job->alpha)
DEFINE_ADD(f64, double, double, SAME, SAME, ADD_FLOAT, job->alpha)

typedef void (*add_body)(void *, int64_t, int64_t);
typedef struct add_bodies {
  add_body by_destination, by_column;
} add_bodies;
#define BODIES(name) {add_by_destination_##name, add_by_column_##name}
static const add_bodies adders[HAIAN_DTYPE_END] = {
    [HAIAN_BOOL] = BODIES(bool), [HAIAN_U8] = BODIES(i8),   [HAIAN_U16] = BODIES(i16),   [HAIAN_U32] = BODIES(i32),
    [HAIAN_U64] = BODIES(i64),   [HAIAN_I8] = BODIES(i8),   [HAIAN_I16] = BODIES(i16),   [HAIAN_I32] = BODIES(i32),
    [HAIAN_I64] = BODIES(i64),   [HAIAN_F16] = BODIES(f16), [HAIAN_BF16] = BODIES(bf16), [HAIAN_F32] = BODIES(f32),
    [HAIAN_F64] = BODIES(f64),
};

/* Sorts terms by destination.  places: the index tensor's axes, tensor 0 = index, 1 = source rows.  skip: a destination
 * whose terms do not count, or -1.  Returns start (size + 1) with the terms behind it, or NULL; the caller frees it. */
static int64_t *sort_terms(const haian_walk *places, const haian_tensor *index, int64_t size, int64_t skip) {
  int64_t *start = calloc((size_t)(size + 2 + index->numel), sizeof *start), *term = start + size + 2;
  if (!start) return NULL;
  bool wide = index->dtype == HAIAN_I64;
  haian_place place;
  /* Count into start[v + 2]; then place, which moves start[v + 1] from v's beginning up to its end. */
  for (int pass = 0; pass < 2 && index->numel; pass++) {
    haian_place_seek(&place, places, places->ndim, 0);
    for (int64_t i = 0; i < index->numel; i++, haian_place_next(&place, places, places->ndim)) {
      int64_t v = index_at(index->data, place.offset[0], wide);
      if (v == skip) continue;
      if (pass == 0) start[v + 2]++;
      else term[start[v + 1]++] = place.offset[1];
    }
    if (pass == 0)
      for (int64_t v = 0; v <= size; v++) start[v + 1] += start[v];
  }
  return start;
}

static int32_t add_by_destination(const char *op, add_job *job, const haian_walk *places, const haian_tensor *index,
                                  int32_t dtype, int64_t skip) {
  int64_t *start = sort_terms(places, index, job->size, skip);
  HAIAN_REQUIRE(start, HAIAN_OUT_OF_MEMORY, "%s: no memory to sort %lld indices into %lld rows", op,
                (long long)index->numel, (long long)job->size);
  int64_t offset[HAIAN_WALK_TENSORS] = {0}, item = haian_itemsize(dtype);
  haian_walk *w = &job->walk;
  w->tensors = 3;
  haian_walk_sort(w, offset);
  haian_walk_merge(w);
  pad_to_two_axes(w);
  job->start = start;
  job->term = start + job->size + 2;
  job->y += offset[0] * item;
  if (job->x) job->x += offset[1] * item;
  job->source += offset[2] * item;
  int64_t row = w->shape[w->ndim - 1], units;
  job->blocks = (row + BLOCK - 1) / BLOCK;
  units = job->size * haian_walk_rows(w, w->ndim - 1) * job->blocks;
  job->stream = w->stride[w->ndim - 1][0] == 1 && row >= 64 && units / job->blocks * row * item >= HAIAN_STREAM_BYTES;
  int64_t work = (row < BLOCK ? row : BLOCK) * (1 + index->numel / (job->size ? job->size : 1)) + 16;
  haian_parallel_for(units, 1 + (1 << 14) / work, adders[dtype].by_destination, job);
  free(start);
  return HAIAN_OK;
}

static int32_t need_summable(const char *op, const haian_tensor *x) {
  HAIAN_REQUIRE((HAIAN_ANY >> x->dtype) & 1, HAIAN_DTYPE, "%s: x is %s; takes bool, integers, float16 to float64", op,
                haian_dtype_name(x->dtype));
  return HAIAN_OK;
}

static int32_t run_embedding_dense_backward(const haian_args *args) {
  static const char op[] = "embedding_dense_backward";
  TRY(need_three(op, args, 2, 2));
  const haian_tensor *dy = args->in[0], *indices = args->in[1], *out = args->out[0];
  TRY(need_dtype(op, "out", out, "dy", dy));
  HAIAN_REQUIRE((HAIAN_FLOATS >> dy->dtype) & 1, HAIAN_DTYPE, "%s: dy is %s; takes float16, bfloat16, float32, float64",
                op, haian_dtype_name(dy->dtype));
  HAIAN_REQUIRE(args->attr[0].kind == HAIAN_INT && args->attr[1].kind == HAIAN_INT, HAIAN_INVALID_ARGUMENT,
                "%s: num_weights or padding_idx is missing; needs two integers", op);
  int last = indices->ndim;
  HAIAN_REQUIRE(dy->ndim == last + 1 && memcmp(dy->shape, indices->shape, (size_t)last * sizeof dy->shape[0]) == 0,
                HAIAN_SHAPE, "%s: dy is %s and indices %s; dy needs indices' axes and one more", op, HAIAN_SHAPE_OF(dy),
                HAIAN_SHAPE_OF(indices));
  HAIAN_REQUIRE(out->ndim == 2 && out->shape[0] == args->attr[0].i && out->shape[1] == dy->shape[last], HAIAN_SHAPE,
                "%s: out is %s; needs (%lld, %lld)", op, HAIAN_SHAPE_OF(out), (long long)args->attr[0].i,
                (long long)dy->shape[last]);
  TRY(check_indices(op, "indices", indices, out->shape[0]));
  if (out->numel == 0) return HAIAN_OK;
  haian_walk places = {.ndim = last, .tensors = 2};
  for (int d = 0; d < last; d++) {
    places.shape[d] = indices->shape[d];
    places.stride[d][0] = indices->stride[d];
    places.stride[d][1] = dy->stride[d];
  }
  haian_walk_merge(&places);
  add_job job = {.walk = {.ndim = 1},
                 .y = out->data,
                 .source = dy->data,
                 .y_stride = out->stride[0],
                 .size = out->shape[0],
                 .alpha = 1,
                 .alpha_int = 1};
  job.walk.shape[0] = out->shape[1];
  job.walk.stride[0][0] = out->stride[1];
  job.walk.stride[0][2] = dy->stride[last];
  return add_by_destination(op, &job, &places, indices, out->dtype, args->attr[1].i);
}

/* scatter_add and index_add.  index_strides: of index along out's axes; shape: of the terms. */
static int32_t add_along(const char *op, const haian_tensor *x, int dim, const haian_tensor *index,
                         const int64_t *index_strides, const haian_tensor *source, const int64_t *shape, double alpha,
                         int64_t alpha_int, const haian_tensor *out) {
  int64_t item = haian_itemsize(out->dtype), columns = 1;
  bool uniform = true, whole = true;
  haian_walk copy = {.ndim = out->ndim, .tensors = 2};
  add_job job = {.y = out->data,
                 .source = source->data,
                 .index = index->data,
                 .y_stride = out->ndim ? out->stride[dim] : 0,
                 .x_stride = x->ndim ? x->stride[dim] : 0,
                 .index_stride = index_strides[dim],
                 .source_stride = source->ndim ? source->stride[dim] : 0,
                 .size = x->ndim ? x->shape[dim] : 1,
                 .n = shape[dim],
                 .alpha = alpha,
                 .alpha_int = alpha_int,
                 .wide = index->dtype == HAIAN_I64};
  haian_walk *w = &job.walk;
  w->tensors = 3;
  for (int d = 0; d < out->ndim; d++) {
    copy.shape[d] = out->shape[d];
    copy.stride[d][0] = out->stride[d];
    copy.stride[d][1] = x->stride[d];
    if (d == dim) continue;
    w->shape[w->ndim] = shape[d];
    w->stride[w->ndim][0] = out->stride[d];
    w->stride[w->ndim][1] = index_strides[d];
    w->stride[w->ndim][2] = source->stride[d];
    w->ndim++;
    columns *= shape[d];
    uniform &= shape[d] <= 1 || index_strides[d] == 0;
    whole &= shape[d] == out->shape[d];
  }
  bool none = columns == 0 || job.n == 0, rows_lie_together = false;
  for (int d = 0; d < out->ndim; d++) rows_lie_together |= d != dim && shape[d] >= 8 && out->stride[d] == 1;
  bool by_destination = !none && uniform && rows_lie_together;
  if (!by_destination || !whole) HAIAN_SYM(copy_walk)(copy, out->data, x->data, item);
  if (none || out->numel == 0) return HAIAN_OK;
  if (by_destination) {
    const haian_tensor *base = whole ? x : out;
    job.x = base->data;
    job.x_stride = base->stride[dim];
    for (int d = 0, k = 0; d < out->ndim; d++)
      if (d != dim) w->stride[k++][1] = base->stride[d];
    haian_walk places = {.ndim = 1, .tensors = 2, .shape = {job.n}};
    places.stride[0][0] = job.index_stride;
    places.stride[0][1] = job.source_stride;
    haian_tensor terms = {.data = index->data, .numel = job.n, .dtype = index->dtype};
    return add_by_destination(op, &job, &places, &terms, out->dtype, -1);
  }
  int64_t offset[HAIAN_WALK_TENSORS] = {0};
  haian_walk_sort(w, offset);
  haian_walk_merge(w);
  pad_to_two_axes(w);
  job.y += offset[0] * item;
  job.index = (const char *)index->data + offset[1] * (job.wide ? 8 : 4);
  job.source += offset[2] * item;
  bool scratch = out->dtype == HAIAN_F16 || out->dtype == HAIAN_BF16;
  int64_t length = w->shape[w->ndim - 1], share = columns / 64 / 16 * 16 + 16; /* 64 units or more where possible */
  job.group = lines_in_cache(job.size, scratch ? (int64_t)sizeof(float) : item);
  if (job.group > share) job.group = share;
  if (job.group > length) job.group = length;
  int64_t units = columns / length * ((length + job.group - 1) / job.group);
  haian_parallel_for(units, 1 + (1 << 14) / ((job.n + job.size) * job.group), adders[out->dtype].by_column, &job);
  HAIAN_REQUIRE(job.status == HAIAN_OK, job.status, "%s: no memory for %lld accumulators", op,
                (long long)(job.size * job.group));
  return HAIAN_OK;
}

static int32_t run_scatter_add(const haian_args *args) {
  TRY(need_three("scatter_add", args, 3, 1));
  const haian_tensor *x = args->in[0], *index = args->in[1], *source = args->in[2], *out = args->out[0];
  int dim = 0;
  TRY(need_summable("scatter_add", x));
  TRY(need_dim("scatter_add", &args->attr[0], x, &dim));
  TRY(need_dtype("scatter_add", "out", out, "x", x));
  TRY(need_dtype("scatter_add", "src", source, "x", x));
  HAIAN_REQUIRE(haian_same_shape(x, out), HAIAN_SHAPE, "scatter_add: out is %s; needs x's shape %s",
                HAIAN_SHAPE_OF(out), HAIAN_SHAPE_OF(x));
  HAIAN_REQUIRE(index->ndim == x->ndim && source->ndim == x->ndim, HAIAN_SHAPE,
                "scatter_add: x is %s, index %s, src "
                "%s; needs as many axes",
                HAIAN_SHAPE_OF(x), HAIAN_SHAPE_OF(index), HAIAN_SHAPE_OF(source));
  for (int d = 0; d < x->ndim && index->numel; d++)
    HAIAN_REQUIRE(index->shape[d] <= source->shape[d] && (d == dim || index->shape[d] <= x->shape[d]), HAIAN_SHAPE,
                  "scatter_add: x is %s, index %s, src %s; index may not be larger on axis %d", HAIAN_SHAPE_OF(x),
                  HAIAN_SHAPE_OF(index), HAIAN_SHAPE_OF(source), d);
  TRY(check_indices("scatter_add", "index", index, x->ndim ? x->shape[dim] : 1));
  int64_t shape[HAIAN_MAX_RANK] = {1}, strides[HAIAN_MAX_RANK] = {0};
  memcpy(shape, index->shape, (size_t)index->ndim * sizeof shape[0]);
  memcpy(strides, index->stride, (size_t)index->ndim * sizeof strides[0]);
  return add_along("scatter_add", x, dim, index, strides, source, shape, 1, 1, out);
}

static int32_t run_index_add(const haian_args *args) {
  TRY(need_three("index_add", args, 3, 2));
  const haian_tensor *x = args->in[0], *index = args->in[1], *source = args->in[2], *out = args->out[0];
  int dim = 0;
  TRY(need_summable("index_add", x));
  TRY(need_dim("index_add", &args->attr[0], x, &dim));
  TRY(need_dtype("index_add", "out", out, "x", x));
  TRY(need_dtype("index_add", "source", source, "x", x));
  HAIAN_REQUIRE(args->attr[1].kind == HAIAN_FLOAT || args->attr[1].kind == HAIAN_INT, HAIAN_INVALID_ARGUMENT,
                "index_add: alpha is missing; needs a number");
  double alpha = args->attr[1].kind == HAIAN_INT ? (double)args->attr[1].i : args->attr[1].f;
  bool integer = !((HAIAN_FLOATS >> x->dtype) & 1);
  HAIAN_REQUIRE(!integer || (alpha >= -0x1p63 && alpha < 0x1p63 && alpha == (double)(int64_t)alpha),
                HAIAN_INVALID_ARGUMENT, "index_add: alpha is %g and x is %s; needs an integer", alpha,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(haian_same_shape(x, out), HAIAN_SHAPE, "index_add: out is %s; needs x's shape %s", HAIAN_SHAPE_OF(out),
                HAIAN_SHAPE_OF(x));
  HAIAN_REQUIRE(index->ndim <= 1, HAIAN_SHAPE, "index_add: index is %s; needs one axis", HAIAN_SHAPE_OF(index));
  bool fits = source->ndim == x->ndim && (x->ndim > 0 || index->numel == 1);
  for (int d = 0; d < x->ndim && fits; d++) fits = source->shape[d] == (d == dim ? index->numel : x->shape[d]);
  HAIAN_REQUIRE(fits, HAIAN_SHAPE, "index_add: source is %s; needs x's shape %s with %lld elements on axis %d",
                HAIAN_SHAPE_OF(source), HAIAN_SHAPE_OF(x), (long long)index->numel, dim);
  TRY(check_indices("index_add", "index", index, x->ndim ? x->shape[dim] : 1));
  int64_t shape[HAIAN_MAX_RANK] = {1}, strides[HAIAN_MAX_RANK] = {0};
  memcpy(shape, source->shape, (size_t)source->ndim * sizeof shape[0]);
  strides[dim] = index->ndim ? index->stride[0] : 0;
  return add_along("index_add", x, dim, index, strides, source, shape, alpha, integer ? (int64_t)alpha : 0, out);
}

#define MOVED \
  (HAIAN_ANY | HAIAN_BIT(HAIAN_C64) | HAIAN_BIT(HAIAN_C128) | HAIAN_BIT(HAIAN_F8E4M3) | HAIAN_BIT(HAIAN_F8E5M2))
const haian_kernel_entry HAIAN_TABLE(index)[] = {
    {"embedding", run_embedding, MOVED, NULL},
    {"embedding_dense_backward", run_embedding_dense_backward, HAIAN_FLOATS, NULL},
    {"gather", run_gather, MOVED, NULL},
    {"scatter_add", run_scatter_add, HAIAN_ANY, NULL},
    {"index_select", run_index_select, MOVED, NULL},
    {"index_add", run_index_add, HAIAN_ANY, NULL},
    {NULL, NULL, 0, NULL},
};
