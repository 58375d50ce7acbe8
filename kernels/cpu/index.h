/* Index tensors: their checks, and lookups out[...] = x[..., index[...], ...] over any strides.
 * For: index.c, scatter.c, index_put.c, embedding_bag.c.  Not here: sums and stores by index (each file has its own schedules). */
#ifndef HAIAN_INDEX_H
#define HAIAN_INDEX_H
#include "strided.h"

#define CACHE_BYTES (512 << 10) /* what columns that are visited at random may take: most of a small L2 */

/* ---- indices ----------------------------------------------------------------------------------------------------- */
static inline int64_t index_at(const void *index, int64_t i, bool wide) {
  return wide ? ((const int64_t *)index)[i] : ((const int32_t *)index)[i];
}

typedef struct check_job {
  haian_walk walk; /* tensor 0 = index, row-major */
  const void *index;
  uint64_t shift, size; /* allowed: 0 <= value + shift < size */
  bool wide;
  int32_t outside, negative; /* atomic */
} check_job;

#define CHECK_ONE(v)                                             \
  {                                                              \
    outside |= (uint64_t)(int64_t)(v) + shift >= size ? 1u : 0u; \
    all |= (uint64_t)(int64_t)(v);                               \
  }
/* Units: rows of the innermost axis. */
static inline void check_rows(void *ctx, int64_t lo, int64_t hi) {
  check_job *job = ctx;
  const haian_walk *w = &job->walk;
  int64_t n = w->shape[w->ndim - 1], step = w->stride[w->ndim - 1][0];
  uint64_t size = job->size, shift = job->shift;
  haian_place place;
  haian_place_seek(&place, w, w->ndim - 1, lo);
  uint64_t outside = 0, all = 0; /* all: every value or-ed together, whose sign says whether one was negative */
  for (; lo < hi; lo++) {
    if (job->wide) {
      const int64_t *index = (const int64_t *)job->index + place.offset[0];
      if (step == 1)
        for (int64_t i = 0; i < n; i++) CHECK_ONE(index[i])
      else
        for (int64_t i = 0; i < n; i++) CHECK_ONE(index[i * step])
    } else {
      const int32_t *index = (const int32_t *)job->index + place.offset[0];
      if (step == 1)
        for (int64_t i = 0; i < n; i++) CHECK_ONE(index[i])
      else
        for (int64_t i = 0; i < n; i++) CHECK_ONE(index[i * step])
    }
    haian_place_next(&place, w, w->ndim - 1);
  }
  if (outside) __atomic_store_n(&job->outside, 1, __ATOMIC_RELAXED);
  if (all >> 63) __atomic_store_n(&job->negative, 1, __ATOMIC_RELAXED);
}

/* Every value of t within lowest <= value < size; lowest is 0, or -size where values may count from the end.
 * negative: whether one did; NULL where nobody asks. */
static inline int32_t check_within(const char *op, const char *name, const haian_tensor *t, int64_t lowest,
                                   int64_t size, bool *negative) {
  if (negative) *negative = false;
  HAIAN_REQUIRE(t->dtype == HAIAN_I64 || t->dtype == HAIAN_I32, HAIAN_DTYPE, "%s: %s is %s; takes int32, int64", op,
                name, haian_dtype_name(t->dtype));
  if (t->numel == 0) return HAIAN_OK;
  check_job job = {.walk = {.ndim = t->ndim, .tensors = 1},
                   .index = t->data,
                   .shift = (uint64_t)-lowest,
                   .size = (uint64_t)(size - lowest),
                   .wide = t->dtype == HAIAN_I64};
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
    job.negative = rest.negative;
    job.walk.ndim = 2;
    job.walk.shape[0] = n / length;
    job.walk.stride[0][0] = length * step;
    job.walk.shape[1] = length;
    job.walk.stride[1][0] = step;
    n = length;
  }
  haian_parallel_for(haian_walk_rows(&job.walk, job.walk.ndim - 1), 1 + (1 << 15) / n, check_rows, &job);
  if (negative) *negative = job.negative != 0;
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
    if (value >= lowest && value < size) continue;
    return haian_fail(HAIAN_INDEX, "%s: %s %lld at position %lld is outside %lld <= %s < %lld", op, name,
                      (long long)value, (long long)i, (long long)lowest, name, (long long)size);
  }
  return haian_fail(HAIAN_INVALID_ARGUMENT, "%s: %s changed while it was read; needs indices nobody writes to", op,
                    name);
}

static inline int32_t check_indices(const char *op, const char *name, const haian_tensor *t, int64_t size) {
  return check_within(op, name, t, 0, size, NULL);
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
static inline take_loop take_of(int64_t item) {
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
static inline void take_rows(void *ctx, int64_t lo, int64_t hi) {
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

static inline void pad_to_two_axes(haian_walk *w) {
  while (w->ndim < 2) {
    memmove(w->shape + 1, w->shape, sizeof w->shape - sizeof w->shape[0]);
    memmove(w->stride + 1, w->stride, sizeof w->stride - sizeof w->stride[0]);
    w->shape[0] = 1;
    memset(w->stride[0], 0, sizeof w->stride[0]);
    w->ndim++;
  }
}

/* How many neighbouring columns of `size` elements fit the second cache together; whole lines of 64 bytes. */
static inline int64_t lines_in_cache(int64_t size, int64_t item) {
  int64_t line = 64 / item, lines = CACHE_BYTES / 64 / (size + 1);
  return (lines < 1 ? 1 : lines) * line;
}

/* walk: sorted and merged, at least two axes; job: the rest. */
static inline void take_part(const take_job *base, const haian_walk *walk, int64_t first, int64_t n) {
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
static inline void take(haian_walk walk, const haian_tensor *out, const haian_tensor *index, const haian_tensor *x,
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

static inline int32_t need_three(const char *op, const haian_args *args, int n_in, int n_attr) {
  HAIAN_REQUIRE(args->n_in == n_in && args->n_out == 1 && args->n_attr == n_attr, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs %d, 1, %d", op, args->n_in, args->n_out, args->n_attr,
                n_in, n_attr);
  for (int i = 0; i < n_in; i++)
    HAIAN_REQUIRE(args->in[i], HAIAN_INVALID_ARGUMENT, "%s: input %d is missing; needs %d tensors", op, i, n_in);
  return HAIAN_OK;
}

static inline int32_t need_dtype(const char *op, const char *name, const haian_tensor *t, const char *like,
                                 const haian_tensor *other) {
  HAIAN_REQUIRE(t->dtype == other->dtype, HAIAN_DTYPE, "%s: %s is %s and %s is %s; they must be equal; cast first", op,
                name, haian_dtype_name(t->dtype), like, haian_dtype_name(other->dtype));
  return HAIAN_OK;
}

/* The axis an attribute names; a 0-d tensor counts as one axis of size 1. */
static inline int32_t need_dim(const char *op, const haian_attr *attr, const haian_tensor *x, int *dim) {
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

static inline haian_walk index_pair(const haian_tensor *y, const haian_tensor *x) {
  haian_walk w = {.ndim = y->ndim, .tensors = 2};
  for (int d = 0; d < y->ndim; d++) {
    w.shape[d] = y->shape[d];
    w.stride[d][0] = y->stride[d];
    w.stride[d][1] = x->stride[d];
  }
  return w;
}

static inline void copy_tensor(const haian_tensor *out, const haian_tensor *x) {
  HAIAN_SYM(copy_walk)(index_pair(out, x), out->data, x->data, haian_itemsize(out->dtype));
}

static inline int32_t need_same_shape(const char *op, const char *name, const haian_tensor *t, const char *like,
                                      const haian_tensor *other) {
  HAIAN_REQUIRE(haian_same_shape(t, other), HAIAN_SHAPE, "%s: %s is %s and %s is %s; they must be equal", op, name,
                HAIAN_SHAPE_OF(t), like, HAIAN_SHAPE_OF(other));
  return HAIAN_OK;
}

#define INDEX_MOVED \
  (HAIAN_ANY | HAIAN_BIT(HAIAN_C64) | HAIAN_BIT(HAIAN_C128) | HAIAN_BIT(HAIAN_F8E4M3) | HAIAN_BIT(HAIAN_F8E5M2))
#endif
