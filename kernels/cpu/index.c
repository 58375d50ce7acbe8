/* Lookups by index: embedding, gather, index_select; sums by index: scatter_add, index_add, embedding_dense_backward.
 * Not here: indexing by masks or by several indices at once.
 * Every index is checked before the first store.  Sums take their terms in index order, each destination in one thread
 * with one final rounding, so that results do not depend on the number of threads. */
#include "index.h"
#include <stdlib.h>

#define BLOCK 512 /* accumulators of one destination row kept at once: 4 KiB of doubles */

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
