/* Stores and reductions by index along one axis: scatter, scatter_reduce, index_fill, index_copy; scatters into a view.
 * Every index is checked before the first store.  Terms that meet in one place are taken in index order by one thread,
 * so that the last one stays (or the sum is rounded the same way) whatever the number of threads. */
#include "index.h"
#include <math.h>
#include <stdlib.h>

/* ---- along one axis: out = x; out[..., index[..., j, ...], ...] = or op= source[..., j, ...] ---------------------- */
enum { REDUCE_SUM, REDUCE_PROD, REDUCE_MEAN, REDUCE_AMAX, REDUCE_AMIN, REDUCE_END };

typedef struct along_job {
  haian_walk walk; /* axes other than dim; tensor 0 = out, 1 = index, 2 = source */
  char *y;
  const void *index;
  const char *source;
  int64_t y_stride, index_stride, source_stride; /* along dim */
  int64_t size, n;                               /* places and terms along dim */
  int64_t group;                                 /* columns that one unit takes */
  int64_t item;
  int64_t reduce;
  bool include_self, wide;
  int32_t status; /* atomic */
} along_job;

/* One unit's columns as two loops: `rows` times `n`, with the memory of out followed by the inner one. */
typedef struct loops {
  bool along; /* the inner loop goes through the terms of one column */
  int64_t rows, n, index_row, index_step, source_row, source_step, to_row, to_step, to_stride;
} loops;

static inline loops loops_of(const along_job *job, int64_t columns, int64_t to_stride, int64_t to_step, int64_t is,
                             int64_t ss) {
  if (columns == 1 || to_step > to_stride)
    return (loops){true, columns, job->n, is, job->index_stride, ss, job->source_stride, to_step, 0, to_stride};
  return (loops){false, job->n, columns, job->index_stride, is, job->source_stride, ss, 0, to_step, to_stride};
}

#define PUT_TERMS(I)                                                                                                 \
  for (int64_t r = 0; r < l.rows; r++) {                                                                             \
    const I *at = (const I *)job->index + index + r * l.index_row;                                                   \
    T_ *to = y + r * l.to_row;                                                                                       \
    const T_ *s = source + r * l.source_row;                                                                         \
    for (int64_t i = 0; i < l.n; i++) to[at[i * l.index_step] * l.to_stride + i * l.to_step] = s[i * l.source_step]; \
  }
#define DEFINE_PUT(T)                                                                                             \
  static void put_##T(const along_job *job, char *y_, int64_t ys, int64_t index, int64_t is, const char *source_, \
                      int64_t ss, int64_t columns) {                                                              \
    typedef T T_;                                                                                                 \
    T_ *y = (T_ *)y_;                                                                                             \
    const T_ *source = (const T_ *)source_;                                                                       \
    loops l = loops_of(job, columns, job->y_stride, ys, is, ss);                                                  \
    if (job->wide) {                                                                                              \
      PUT_TERMS(int64_t)                                                                                          \
    } else {                                                                                                      \
      PUT_TERMS(int32_t)                                                                                          \
    }                                                                                                             \
  }
DEFINE_PUT(bits1)
DEFINE_PUT(bits2)
DEFINE_PUT(bits4)
DEFINE_PUT(bits8)
DEFINE_PUT(bits16)

/* Units: groups of neighbouring columns. */
static void put_columns(void *ctx, int64_t lo, int64_t hi) {
  const along_job *job = ctx;
  const haian_walk *w = &job->walk;
  const int64_t *inner = w->stride[w->ndim - 1];
  int64_t length = w->shape[w->ndim - 1], groups = (length + job->group - 1) / job->group, item = job->item;
  for (; lo < hi; lo++) {
    int64_t at = lo % groups * job->group, take = length - at < job->group ? length - at : job->group;
    haian_place place;
    haian_place_seek(&place, w, w->ndim - 1, lo / groups);
    char *y = job->y + (place.offset[0] + at * inner[0]) * item;
    const char *source = job->source + (place.offset[2] + at * inner[2]) * item;
    int64_t index = place.offset[1] + at * inner[1];
    if (inner[1] == 0 && take > 1 && inner[0] <= job->y_stride) { /* whole rows go to one place each */
      for (int64_t j = 0; j < job->n; j++) {
        int64_t k = index_at(job->index, index + j * job->index_stride, job->wide);
        take_run(y + k * job->y_stride * item, inner[0], source + j * job->source_stride * item, inner[2], take, item,
                 false);
      }
    } else if (item == 1) put_bits1(job, y, inner[0], index, inner[1], source, inner[2], take);
    else if (item == 2) put_bits2(job, y, inner[0], index, inner[1], source, inner[2], take);
    else if (item == 4) put_bits4(job, y, inner[0], index, inner[1], source, inner[2], take);
    else if (item == 8) put_bits8(job, y, inner[0], index, inner[1], source, inner[2], take);
    else put_bits16(job, y, inner[0], index, inner[1], source, inner[2], take);
  }
}

#define SAME(v) (v)
#define DIVIDE_FLOAT(a, n) ((a) / (n))
#define DIVIDE_FLOOR(a, n) ((a) / (int64_t)(n) - ((a) % (int64_t)(n) < 0))

#define TERM_SUM *a = (A_)(1u * *a + v)
#define TERM_PROD *a = (A_)(1u * *a * v)
/* | and no branch: half of them would be mispredicted */
#define TERM_MAX *a = ((S_)v > (S_)(*a)) | (v != v) ? v : *a
#define TERM_MIN *a = ((S_)v < (S_)(*a)) | (v != v) ? v : *a
#define TERM_START *a = identity
#define TERM_COUNT count[k * columns + c]++
/* BODY for every term: k its place, c its column, a the accumulator, v the value. */
#define EACH_TERM(I, BODY)                                                               \
  do {                                                                                   \
    for (int64_t r = 0; r < l.rows; r++) {                                               \
      const I *at = (const I *)job->index + index + r * l.index_row;                     \
      const T_ *s = source + r * l.source_row;                                           \
      for (int64_t i = 0; i < l.n; i++) {                                                \
        int64_t k = at[i * l.index_step], c = r * l.along + i * !l.along;                \
        A_ *a = to + k * l.to_stride + c * to_step, v = (A_)LOAD_(s[i * l.source_step]); \
        (void)a, (void)c, (void)v, BODY;                                                 \
      }                                                                                  \
    }                                                                                    \
  } while (0)
/* The same where a row of terms goes to one place and everything lies side by side. */
#define EACH_ROW(BODY)                                                                                \
  do {                                                                                                \
    for (int64_t r = 0; r < l.rows; r++) {                                                            \
      A_ *restrict row = to + index_at(job->index, index + r * l.index_row, job->wide) * l.to_stride; \
      const T_ *restrict s = source + r * l.source_row;                                               \
      for (int64_t i = 0; i < l.n; i++) {                                                             \
        A_ *a = row + i, v = (A_)LOAD_(s[i]);                                                         \
        (void)v, BODY;                                                                                \
      }                                                                                               \
    }                                                                                                 \
  } while (0)
#define ALL_TERMS(BODY)                      \
  do {                                       \
    if (job->wide) EACH_TERM(int64_t, BODY); \
    else EACH_TERM(int32_t, BODY);           \
  } while (0)
#define TERMS(BODY)                 \
  do {                              \
    if (rows_apart) EACH_ROW(BODY); \
    else ALL_TERMS(BODY);           \
  } while (0)

/* T: storage; A: accumulator; S: how A compares; LEAST, MOST: the identities of amax and amin. */
#define DEFINE_REDUCE(NAME, T, A, S, LOAD, STORE, LEAST, MOST, DIVIDE)                                            \
  static void reduce_terms_##NAME(const along_job *job, A *to, int64_t to_stride, int64_t to_step, int64_t index, \
                                  int64_t is, const T *source, int64_t ss, int64_t columns, uint32_t *count) {    \
    typedef T T_;                                                                                                 \
    typedef A A_;                                                                                                 \
    typedef S S_;                                                                                                 \
    const int64_t reduce = job->reduce;                                                                           \
    const loops l = loops_of(job, columns, to_stride, to_step, is, ss);                                           \
    const bool rows_apart = !l.along && l.index_step == 0 && l.source_step == 1 && to_step == 1;                  \
    if (!job->include_self) {                                                                                     \
      const A identity = reduce == REDUCE_PROD   ? (A)1                                                           \
                         : reduce == REDUCE_AMAX ? (A)(LEAST)                                                     \
                         : reduce == REDUCE_AMIN ? (A)(MOST)                                                      \
                                                 : (A)0;                                                          \
      TERMS(TERM_START);                                                                                          \
    }                                                                                                             \
    if (reduce == REDUCE_PROD) TERMS(TERM_PROD);                                                                  \
    else if (reduce == REDUCE_AMAX) TERMS(TERM_MAX);                                                              \
    else if (reduce == REDUCE_AMIN) TERMS(TERM_MIN);                                                              \
    else TERMS(TERM_SUM);                                                                                         \
    if (!count) return;                                                                                           \
    if (rows_apart) { /* all columns of a place have met as many terms */                                         \
      memset(count, 0, (size_t)job->size * sizeof *count);                                                        \
      for (int64_t r = 0; r < l.rows; r++) count[index_at(job->index, index + r * l.index_row, job->wide)]++;     \
    } else {                                                                                                      \
      memset(count, 0, (size_t)(job->size * columns) * sizeof *count);                                            \
      ALL_TERMS(TERM_COUNT);                                                                                      \
    }                                                                                                             \
    for (int64_t k = 0; k < job->size; k++) {                                                                     \
      A *row = to + k * to_stride;                                                                                \
      if (rows_apart) {                                                                                           \
        int64_t n = (int64_t)count[k] + job->include_self;                                                        \
        for (int64_t c = 0; c < columns && count[k]; c++) row[c] = (A)DIVIDE((S)row[c], n);                       \
      } else {                                                                                                    \
        const uint32_t *met = count + k * columns;                                                                \
        for (int64_t c = 0; c < columns; c++)                                                                     \
          if (met[c]) row[c * to_step] = (A)DIVIDE((S)row[c * to_step], (int64_t)met[c] + job->include_self);     \
      }                                                                                                           \
    }                                                                                                             \
  }                                                                                                               \
  /* Units: groups of neighbouring columns. */                                                                    \
  static void reduce_columns_##NAME(void *ctx, int64_t lo, int64_t hi) {                                          \
    along_job *job = ctx;                                                                                         \
    const haian_walk *w = &job->walk;                                                                             \
    const int64_t *inner = w->stride[w->ndim - 1];                                                                \
    bool direct = sizeof(T) == sizeof(A), mean = job->reduce == REDUCE_MEAN;                                      \
    size_t cells = (size_t)(job->size * job->group);                                                              \
    A *scratch = direct ? NULL : malloc(cells * sizeof(A)); /* (size, group) */                                   \
    uint32_t *count = mean ? malloc(cells * sizeof *count) : NULL;                                                \
    if ((!direct && !scratch) || (mean && !count)) {                                                              \
      __atomic_store_n(&job->status, HAIAN_OUT_OF_MEMORY, __ATOMIC_RELAXED);                                      \
      hi = lo;                                                                                                    \
    }                                                                                                             \
    int64_t length = w->shape[w->ndim - 1], groups = (length + job->group - 1) / job->group;                      \
    for (; lo < hi; lo++) {                                                                                       \
      int64_t at = lo % groups * job->group, take = length - at < job->group ? length - at : job->group;          \
      haian_place place;                                                                                          \
      haian_place_seek(&place, w, w->ndim - 1, lo / groups);                                                      \
      T *y = (T *)(void *)job->y + place.offset[0] + at * inner[0];                                               \
      const T *source = (const T *)(const void *)job->source + place.offset[2] + at * inner[2];                   \
      int64_t index = place.offset[1] + at * inner[1], ys = job->y_stride, step = inner[0];                       \
      if (direct) {                                                                                               \
        reduce_terms_##NAME(job, (A *)(void *)y, ys, step, index, inner[1], source, inner[2], take, count);       \
        continue;                                                                                                 \
      }                                                                                                           \
      for (int64_t k = 0; k < job->size; k++)                                                                     \
        for (int64_t c = 0; c < take; c++) scratch[k * take + c] = (A)LOAD(y[k * ys + c * step]);                 \
      reduce_terms_##NAME(job, scratch, take, 1, index, inner[1], source, inner[2], take, count);                 \
      for (int64_t k = 0; k < job->size; k++)                                                                     \
        for (int64_t c = 0; c < take; c++) y[k * ys + c * step] = (T)STORE(scratch[k * take + c]);                \
    }                                                                                                             \
    free(count);                                                                                                  \
    free(scratch);                                                                                                \
  }
#define LOAD_ SAME
DEFINE_REDUCE(i8, uint8_t, uint8_t, int8_t, SAME, SAME, INT8_MIN, INT8_MAX, DIVIDE_FLOOR)
DEFINE_REDUCE(u8, uint8_t, uint8_t, uint8_t, SAME, SAME, 0, UINT8_MAX, DIVIDE_FLOOR)
DEFINE_REDUCE(i16, uint16_t, uint16_t, int16_t, SAME, SAME, INT16_MIN, INT16_MAX, DIVIDE_FLOOR)
DEFINE_REDUCE(i32, uint32_t, uint32_t, int32_t, SAME, SAME, INT32_MIN, INT32_MAX, DIVIDE_FLOOR)
DEFINE_REDUCE(i64, uint64_t, uint64_t, int64_t, SAME, SAME, INT64_MIN, INT64_MAX, DIVIDE_FLOOR)
DEFINE_REDUCE(f32, float, float, float, SAME, SAME, -INFINITY, INFINITY, DIVIDE_FLOAT)
DEFINE_REDUCE(f64, double, double, double, SAME, SAME, -INFINITY, INFINITY, DIVIDE_FLOAT)
#undef LOAD_
#define LOAD_ haian_f16_load
DEFINE_REDUCE(f16, uint16_t, float, float, haian_f16_load, haian_f16_store, -INFINITY, INFINITY, DIVIDE_FLOAT)
#undef LOAD_
#define LOAD_ haian_bf16_load
DEFINE_REDUCE(bf16, uint16_t, float, float, haian_bf16_load, haian_bf16_store, -INFINITY, INFINITY, DIVIDE_FLOAT)
#undef LOAD_

static void (*const reducers[HAIAN_DTYPE_END])(void *, int64_t, int64_t) = {
    [HAIAN_I8] = reduce_columns_i8,     [HAIAN_U8] = reduce_columns_u8,   [HAIAN_I16] = reduce_columns_i16,
    [HAIAN_I32] = reduce_columns_i32,   [HAIAN_I64] = reduce_columns_i64, [HAIAN_F16] = reduce_columns_f16,
    [HAIAN_BF16] = reduce_columns_bf16, [HAIAN_F32] = reduce_columns_f32, [HAIAN_F64] = reduce_columns_f64,
};

/* index_strides, source_strides: along out's axes; shape: of the terms.  reduce: REDUCE_END stores. */
static int32_t along(const char *op, const haian_tensor *x, int dim, const haian_tensor *index,
                     const int64_t *index_strides, const haian_tensor *source, const int64_t *source_strides,
                     const int64_t *shape, int64_t reduce, bool include_self, const haian_tensor *out) {
  int64_t item = haian_itemsize(out->dtype), columns = 1, offset[HAIAN_WALK_TENSORS] = {0};
  along_job job = {.y_stride = out->ndim ? out->stride[dim] : 0,
                   .index_stride = index_strides[dim],
                   .source_stride = source_strides[dim],
                   .size = out->ndim ? out->shape[dim] : 1,
                   .n = shape[dim],
                   .item = item,
                   .reduce = reduce,
                   .include_self = include_self,
                   .wide = index->dtype == HAIAN_I64};
  haian_walk *w = &job.walk;
  w->tensors = 3;
  for (int d = 0; d < out->ndim; d++) {
    if (d == dim) continue;
    w->shape[w->ndim] = shape[d];
    w->stride[w->ndim][0] = out->stride[d];
    w->stride[w->ndim][1] = index_strides[d];
    w->stride[w->ndim][2] = source_strides[d];
    w->ndim++;
    columns *= shape[d];
  }
  copy_tensor(out, x);
  if (columns == 0 || job.n == 0 || out->numel == 0) return HAIAN_OK;
  haian_walk_sort(w, offset);
  haian_walk_merge(w);
  pad_to_two_axes(w);
  job.y = (char *)out->data + offset[0] * item;
  job.index = (const char *)index->data + offset[1] * (job.wide ? 8 : 4);
  job.source = (const char *)source->data + offset[2] * item;
  int64_t length = w->shape[w->ndim - 1], share = columns / 64 / 16 * 16 + 16; /* 64 units or more where possible */
  bool whole_rows = w->stride[w->ndim - 1][1] == 0 && reduce == REDUCE_END;
  bool scratch = out->dtype == HAIAN_F16 || out->dtype == HAIAN_BF16;
  int64_t cell = (scratch ? (int64_t)sizeof(float) : item) + (reduce == REDUCE_MEAN ? 4 : 0);
  job.group = whole_rows ? (share < 1024 ? 1024 : share) : lines_in_cache(job.size, cell);
  if (!whole_rows && job.group > share) job.group = share;
  if (reduce != REDUCE_END && job.size > (8 << 20) / (cell * job.group)) job.group = 1; /* scratch a thread: 8 MiB */
  if (job.group > length) job.group = length;
  int64_t units = columns / length * ((length + job.group - 1) / job.group);
  int64_t work = (job.n + (reduce == REDUCE_END ? 0 : job.size)) * job.group;
  haian_parallel_for(units, 1 + (1 << 14) / work, reduce == REDUCE_END ? put_columns : reducers[out->dtype], &job);
  HAIAN_REQUIRE(job.status == HAIAN_OK, job.status, "%s: no memory for %lld accumulators", op,
                (long long)(job.size * job.group));
  return HAIAN_OK;
}

/* What scatter and scatter_reduce ask of index and src. */
static int32_t need_terms(const char *op, const haian_tensor *x, int dim, const haian_tensor *index,
                          const haian_tensor *src, const haian_tensor *out) {
  TRY(need_dtype(op, "out", out, "x", x));
  TRY(need_dtype(op, "src", src, "x", x));
  TRY(need_same_shape(op, "out", out, "x", x));
  HAIAN_REQUIRE(index->ndim == x->ndim, HAIAN_SHAPE, "%s: index is %s and x is %s; needs as many axes", op,
                HAIAN_SHAPE_OF(index), HAIAN_SHAPE_OF(x));
  HAIAN_REQUIRE(src->ndim == x->ndim || src->ndim == 0, HAIAN_SHAPE, "%s: src is %s and x is %s; needs as many axes",
                op, HAIAN_SHAPE_OF(src), HAIAN_SHAPE_OF(x));
  for (int d = 0; d < x->ndim && index->numel; d++)
    HAIAN_REQUIRE((src->ndim == 0 || index->shape[d] <= src->shape[d]) && (d == dim || index->shape[d] <= x->shape[d]),
                  HAIAN_SHAPE, "%s: x is %s, index %s, src %s; index may not be larger on axis %d", op,
                  HAIAN_SHAPE_OF(x), HAIAN_SHAPE_OF(index), HAIAN_SHAPE_OF(src), d);
  return check_indices(op, "index", index, x->ndim ? x->shape[dim] : 1);
}

static int32_t scatter_into(const char *op, const haian_args *args, int64_t reduce, bool include_self) {
  const haian_tensor *x = args->in[0], *index = args->in[1], *src = args->in[2], *out = args->out[0];
  int dim = 0;
  TRY(need_dim(op, &args->attr[0], x, &dim));
  TRY(need_terms(op, x, dim, index, src, out));
  int64_t shape[HAIAN_MAX_RANK] = {1}, strides[HAIAN_MAX_RANK] = {0}, steps[HAIAN_MAX_RANK] = {0};
  for (int d = 0; d < x->ndim; d++) {
    shape[d] = index->shape[d];
    strides[d] = index->stride[d];
    steps[d] = src->ndim ? src->stride[d] : 0;
  }
  return along(op, x, dim, index, strides, src, steps, shape, reduce, include_self, out);
}

static int32_t run_scatter(const haian_args *args) {
  TRY(need_three("scatter", args, 3, 1));
  return scatter_into("scatter", args, REDUCE_END, true);
}

static int32_t run_scatter_reduce(const haian_args *args) {
  static const char op[] = "scatter_reduce";
  TRY(need_three(op, args, 3, 3));
  HAIAN_REQUIRE(args->attr[1].kind == HAIAN_INT && args->attr[1].i >= 0 && args->attr[1].i < REDUCE_END,
                HAIAN_INVALID_ARGUMENT, "%s: reduce is missing; needs sum, prod, mean, amax or amin", op);
  HAIAN_REQUIRE(reducers[args->in[0]->dtype], HAIAN_DTYPE,
                "%s: x is %s; takes int8 to int64, uint8, float16 to float64", op,
                haian_dtype_name(args->in[0]->dtype));
  return scatter_into(op, args, args->attr[1].i, args->attr[2].kind == HAIAN_INT && args->attr[2].i != 0);
}

/* A vector (or 0-d) index along dim; strides of the terms' index along out's axes. */
static int32_t need_line(const char *op, const haian_args *args, int *dim, int64_t lowest_of_size, bool *negative) {
  const haian_tensor *x = args->in[0], *index = args->in[1], *out = args->out[0];
  TRY(need_dim(op, &args->attr[0], x, dim));
  TRY(need_dtype(op, "out", out, "x", x));
  TRY(need_same_shape(op, "out", out, "x", x));
  HAIAN_REQUIRE(index->ndim <= 1, HAIAN_SHAPE, "%s: index is %s; needs one axis", op, HAIAN_SHAPE_OF(index));
  int64_t size = x->ndim ? x->shape[*dim] : 1;
  return check_within(op, "index", index, size * lowest_of_size, size, negative);
}

static int32_t run_index_copy(const haian_args *args) {
  static const char op[] = "index_copy";
  TRY(need_three(op, args, 3, 1));
  const haian_tensor *x = args->in[0], *index = args->in[1], *source = args->in[2], *out = args->out[0];
  int dim = 0;
  TRY(need_line(op, args, &dim, 0, NULL));
  TRY(need_dtype(op, "source", source, "x", x));
  bool fits = source->ndim == x->ndim && (x->ndim > 0 || index->numel == 1);
  for (int d = 0; d < x->ndim && fits; d++) fits = source->shape[d] == (d == dim ? index->numel : x->shape[d]);
  HAIAN_REQUIRE(fits, HAIAN_SHAPE, "%s: source is %s; needs x's shape %s with %lld elements on axis %d", op,
                HAIAN_SHAPE_OF(source), HAIAN_SHAPE_OF(x), (long long)index->numel, dim);
  int64_t shape[HAIAN_MAX_RANK] = {1}, strides[HAIAN_MAX_RANK] = {0}, steps[HAIAN_MAX_RANK] = {0};
  for (int d = 0; d < x->ndim; d++) {
    shape[d] = source->shape[d];
    steps[d] = source->stride[d];
  }
  strides[dim] = index->ndim ? index->stride[0] : 0;
  return along(op, x, dim, index, strides, source, steps, shape, REDUCE_END, true, out);
}

static int32_t run_index_fill(const haian_args *args) {
  static const char op[] = "index_fill";
  TRY(need_three(op, args, 3, 1));
  const haian_tensor *x = args->in[0], *index = args->in[1], *value = args->in[2], *out = args->out[0];
  int dim = 0;
  bool negative = false;
  TRY(need_line(op, args, &dim, -1, &negative));
  TRY(need_dtype(op, "value", value, "x", x));
  HAIAN_REQUIRE(value->ndim == 0, HAIAN_SHAPE, "%s: value is %s; needs a number or a tensor without axes", op,
                HAIAN_SHAPE_OF(value));
  int64_t shape[HAIAN_MAX_RANK] = {1}, strides[HAIAN_MAX_RANK] = {0}, steps[HAIAN_MAX_RANK] = {0};
  for (int d = 0; d < x->ndim; d++) shape[d] = x->shape[d];
  shape[dim] = index->numel;
  strides[dim] = index->ndim ? index->stride[0] : 0;
  haian_tensor positive = *index;
  int64_t *own = NULL;
  if (negative) {
    own = malloc((size_t)index->numel * sizeof *own);
    HAIAN_REQUIRE(own, HAIAN_OUT_OF_MEMORY, "%s: no memory for %lld indices", op, (long long)index->numel);
    for (int64_t i = 0; i < index->numel; i++) {
      int64_t k = index_at(index->data, i * strides[dim], index->dtype == HAIAN_I64);
      own[i] = k < 0 ? k + (x->ndim ? x->shape[dim] : 1) : k;
    }
    positive.data = own;
    positive.dtype = HAIAN_I64;
    strides[dim] = 1;
  }
  int32_t status = along(op, x, dim, &positive, strides, value, steps, shape, REDUCE_END, true, out);
  free(own);
  return status;
}

/* ---- scatters into a view: out = x; a part of out = src ------------------------------------------------------------ */
static int64_t clamp_to(int64_t i, int64_t n) { return i < 0 ? 0 : i > n ? n : i; }

/* part: the view of out that src goes to. */
static int32_t put_view(const char *op, const haian_tensor *x, const haian_tensor *src, const haian_tensor *out,
                        haian_tensor *part) {
  TRY(need_dtype(op, "out", out, "x", x));
  TRY(need_dtype(op, "src", src, "x", x));
  TRY(need_same_shape(op, "out", out, "x", x));
  HAIAN_REQUIRE(haian_same_shape(src, part), HAIAN_SHAPE, "%s: src is %s; needs %s", op, HAIAN_SHAPE_OF(src),
                HAIAN_SHAPE_OF(part));
  copy_tensor(out, x);
  copy_tensor(part, src);
  return HAIAN_OK;
}

static void drop_axis(haian_tensor *t, int d) {
  memmove(t->shape + d, t->shape + d + 1, (size_t)(t->ndim - d - 1) * sizeof t->shape[0]);
  memmove(t->stride + d, t->stride + d + 1, (size_t)(t->ndim - d - 1) * sizeof t->stride[0]);
  t->ndim--;
}

static int32_t run_select_scatter(const haian_args *args) {
  static const char op[] = "select_scatter";
  TRY(need_three(op, args, 2, 2));
  const haian_tensor *x = args->in[0], *out = args->out[0];
  int dim = 0;
  HAIAN_REQUIRE(x->ndim > 0, HAIAN_SHAPE, "%s: x has no axis; needs one at least", op);
  TRY(need_dim(op, &args->attr[0], x, &dim));
  TRY(need_same_shape(op, "out", out, "x", x));
  int64_t index = args->attr[1].i, n = x->shape[dim];
  HAIAN_REQUIRE(args->attr[1].kind == HAIAN_INT && index >= -n && index < n, HAIAN_INDEX,
                "%s: index %lld is outside %lld <= index < %lld", op, (long long)index, (long long)-n, (long long)n);
  haian_tensor part = *out;
  part.data = (char *)out->data + (index < 0 ? index + n : index) * out->stride[dim] * haian_itemsize(out->dtype);
  drop_axis(&part, dim);
  return put_view(op, x, args->in[1], out, &part);
}

static int32_t run_slice_scatter(const haian_args *args) {
  static const char op[] = "slice_scatter";
  TRY(need_three(op, args, 2, 4));
  const haian_tensor *x = args->in[0], *out = args->out[0];
  int dim = 0;
  HAIAN_REQUIRE(x->ndim > 0, HAIAN_SHAPE, "%s: x has no axis; needs one at least", op);
  TRY(need_dim(op, &args->attr[0], x, &dim));
  TRY(need_same_shape(op, "out", out, "x", x));
  int64_t n = x->shape[dim], start = args->attr[1].kind == HAIAN_INT ? args->attr[1].i : 0;
  int64_t end = args->attr[2].kind == HAIAN_INT ? args->attr[2].i : n, step = args->attr[3].i;
  HAIAN_REQUIRE(args->attr[3].kind == HAIAN_INT && step > 0, HAIAN_INVALID_ARGUMENT, "%s: step %lld; needs 1 or more",
                op, (long long)step);
  start = clamp_to(start < 0 ? start + n : start, n);
  end = clamp_to(end < 0 ? end + n : end, n);
  haian_tensor part = *out;
  part.shape[dim] = end > start ? (end - start - 1) / step + 1 : 0;
  part.data = (char *)out->data + start * out->stride[dim] * haian_itemsize(out->dtype);
  part.stride[dim] = part.shape[dim] > 1 ? out->stride[dim] * step : out->stride[dim];
  return put_view(op, x, args->in[1], out, &part);
}

static int32_t run_diagonal_scatter(const haian_args *args) {
  static const char op[] = "diagonal_scatter";
  TRY(need_three(op, args, 2, 3));
  const haian_tensor *x = args->in[0], *out = args->out[0];
  int a = 0, b = 0;
  HAIAN_REQUIRE(x->ndim > 1, HAIAN_SHAPE, "%s: x is %s; needs 2 axes at least", op, HAIAN_SHAPE_OF(x));
  TRY(need_dim(op, &args->attr[1], x, &a));
  TRY(need_dim(op, &args->attr[2], x, &b));
  TRY(need_same_shape(op, "out", out, "x", x));
  HAIAN_REQUIRE(a != b && args->attr[0].kind == HAIAN_INT, HAIAN_SHAPE,
                "%s: dim1 and dim2 are both axis %d; they must "
                "differ",
                op, a);
  int64_t offset = args->attr[0].i, na = x->shape[a], nb = x->shape[b];
  offset = offset > nb ? nb : offset < -na ? -na : offset; /* beyond, the diagonal is empty */
  int64_t row = offset < 0 ? -offset : 0, column = offset > 0 ? offset : 0;
  int64_t n = na - row < nb - column ? na - row : nb - column;
  haian_tensor part = *out;
  part.data =
      (char *)out->data + (n > 0 ? row * out->stride[a] + column * out->stride[b] : 0) * haian_itemsize(out->dtype);
  int64_t stride = out->stride[a] + out->stride[b];
  drop_axis(&part, a > b ? a : b);
  drop_axis(&part, a > b ? b : a);
  part.shape[part.ndim] = n > 0 ? n : 0;
  part.stride[part.ndim++] = stride;
  return put_view(op, x, args->in[1], out, &part);
}

const haian_kernel_entry HAIAN_TABLE(scatter)[] = {
    {"scatter", run_scatter, INDEX_MOVED, NULL},
    {"scatter_reduce", run_scatter_reduce, HAIAN_NUMBERS, NULL},
    {"index_fill", run_index_fill, INDEX_MOVED, NULL},
    {"index_copy", run_index_copy, INDEX_MOVED, NULL},
    {"select_scatter", run_select_scatter, INDEX_MOVED, NULL},
    {"slice_scatter", run_slice_scatter, INDEX_MOVED, NULL},
    {"diagonal_scatter", run_diagonal_scatter, INDEX_MOVED, NULL},
    {NULL, NULL, 0, NULL},
};
