/* index and index_put by several index tensors at once, and masked_scatter.
 * Every index is checked before the first store.  index_put sorts its terms by destination, stably, and gives each
 * destination to one thread: the last term stays, or sums take their terms in index order, whatever the number of threads. */
#include "index.h"
#include <stdlib.h>

#define BLOCK 512 /* accumulators of one row kept at once: 4 KiB of doubles */
#define SAME(v) (v)

/* ---- several index tensors ---------------------------------------------------------------------------------------- */
typedef struct picks {
  int n, axis[HAIAN_MAX_RANK]; /* the axes of x that are indexed, in order */
  const haian_tensor *index[HAIAN_MAX_RANK];
  int ndim; /* of the broadcast index tensors */
  int64_t shape[HAIAN_MAX_RANK], count;
  int at;                                           /* where their axes stand in the result */
  int rest, rest_axis[HAIAN_MAX_RANK], result_ndim; /* x's other axes */
  int64_t result[HAIAN_MAX_RANK];
  bool negative;
} picks;

/* index: one entry an axis of x, NULL for axes that are kept whole. */
static int32_t read_picks(const char *op, const haian_tensor *x, haian_tensor *const *index, picks *p) {
  memset(p, 0, sizeof *p);
  p->count = 1;
  for (int d = 0; d < HAIAN_MAX_RANK; d++) {
    const haian_tensor *t = index[d];
    if (!t) {
      if (d < x->ndim) p->rest_axis[p->rest++] = d;
      continue;
    }
    HAIAN_REQUIRE(d < x->ndim, HAIAN_SHAPE, "%s: index%d is given and x is %s; x has no axis %d", op, d,
                  HAIAN_SHAPE_OF(x), d);
    HAIAN_REQUIRE(t->dtype == HAIAN_I64 || t->dtype == HAIAN_I32, HAIAN_DTYPE, "%s: index%d is %s; takes int32, int64",
                  op, d, haian_dtype_name(t->dtype));
    p->axis[p->n] = d;
    p->index[p->n++] = t;
    if (t->ndim > p->ndim) {
      memmove(p->shape + (t->ndim - p->ndim), p->shape, (size_t)p->ndim * sizeof p->shape[0]);
      for (int k = 0; k < t->ndim - p->ndim; k++) p->shape[k] = 1;
      p->ndim = t->ndim;
    }
    for (int k = 0; k < t->ndim; k++) {
      int64_t *have = &p->shape[p->ndim - t->ndim + k];
      HAIAN_REQUIRE(*have == t->shape[k] || *have == 1 || t->shape[k] == 1, HAIAN_SHAPE,
                    "%s: index%d is %s, which does not broadcast with the other index tensors", op, d,
                    HAIAN_SHAPE_OF(t));
      if (t->shape[k] != 1) *have = t->shape[k];
    }
  }
  HAIAN_REQUIRE(p->n > 0, HAIAN_INVALID_ARGUMENT, "%s: no index tensor came; needs one at least", op);
  HAIAN_REQUIRE(p->ndim + p->rest <= HAIAN_MAX_RANK, HAIAN_SHAPE, "%s: the result has %d axes; at most %d", op,
                p->ndim + p->rest, HAIAN_MAX_RANK);
  for (int k = 0; k < p->ndim; k++) p->count *= p->shape[k];
  bool together = p->axis[p->n - 1] - p->axis[0] == p->n - 1;
  p->at = together ? p->axis[0] : 0;
  for (int k = 0; k < p->rest; k++) p->result[k + (k < p->at ? 0 : p->ndim)] = x->shape[p->rest_axis[k]];
  for (int k = 0; k < p->ndim; k++) p->result[p->at + k] = p->shape[k];
  p->result_ndim = p->rest + p->ndim;
  for (int i = 0; i < p->n && p->count; i++) {
    char name[] = "index0";
    bool negative = false;
    name[5] = (char)('0' + p->axis[i]);
    int64_t size = x->shape[p->axis[i]];
    TRY(check_within(op, name, p->index[i], -size, size, &negative));
    p->negative |= negative;
  }
  return HAIAN_OK;
}

typedef struct offset_job {
  haian_walk walk; /* the broadcast index axes; tensor 0 = offsets, 1 = index */
  int64_t *to;
  const void *index;
  int64_t size, step;
  bool wide, first;
} offset_job;

/* Units: rows of the innermost axis. */
static void offset_rows(void *ctx, int64_t lo, int64_t hi) {
  const offset_job *job = ctx;
  const haian_walk *w = &job->walk;
  int64_t n = w->shape[w->ndim - 1], step = w->stride[w->ndim - 1][1];
  haian_place place;
  haian_place_seek(&place, w, w->ndim - 1, lo);
  for (; lo < hi; lo++) {
    int64_t *to = job->to + place.offset[0];
    for (int64_t i = 0; i < n; i++) {
      int64_t k = index_at(job->index, place.offset[1] + i * step, job->wide);
      k = (k < 0 ? k + job->size : k) * job->step;
      to[i] = job->first ? k : to[i] + k;
    }
    haian_place_next(&place, w, w->ndim - 1);
  }
}

/* The sum of index * step over the index tensors, for every term in order: (count,), or NULL; the caller frees it. */
static int64_t *offsets_of(const picks *p, const haian_tensor *x, const int64_t *step) {
  int64_t *to = malloc((size_t)(p->count + 1) * sizeof *to);
  for (int i = 0; i < p->n && to; i++) {
    const haian_tensor *t = p->index[i];
    offset_job job = {.walk = {.ndim = p->ndim, .tensors = 2},
                      .to = to,
                      .index = t->data,
                      .size = x->shape[p->axis[i]],
                      .step = step[i],
                      .wide = t->dtype == HAIAN_I64,
                      .first = i == 0};
    int64_t row = 1;
    for (int k = p->ndim - 1; k >= 0; k--) {
      int own = k - (p->ndim - t->ndim);
      job.walk.shape[k] = p->shape[k];
      job.walk.stride[k][0] = row;
      job.walk.stride[k][1] = own >= 0 && t->shape[own] != 1 ? t->stride[own] : 0;
      row *= p->shape[k];
    }
    haian_walk_merge(&job.walk);
    pad_to_two_axes(&job.walk);
    int64_t n = job.walk.shape[job.walk.ndim - 1];
    if (p->count) haian_parallel_for(p->count / n, 1 + (1 << 14) / n, offset_rows, &job);
  }
  return to;
}

static int32_t need_result(const char *op, const picks *p, const haian_tensor *out) {
  HAIAN_REQUIRE(
      out->ndim == p->result_ndim && memcmp(out->shape, p->result, (size_t)out->ndim * sizeof out->shape[0]) == 0,
      HAIAN_SHAPE, "%s: out is %s; needs %d axes: x's, with those of the index tensors for the indexed ones", op,
      HAIAN_SHAPE_OF(out), p->result_ndim);
  return HAIAN_OK;
}

static int32_t run_index(const haian_args *args) {
  static const char op[] = "index";
  HAIAN_REQUIRE(args->n_in == 1 + HAIAN_MAX_RANK && args->n_out == 1 && args->in[0], HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs; needs x and %d index tensors, some left out", op, args->n_in, args->n_out,
                HAIAN_MAX_RANK);
  const haian_tensor *x = args->in[0], *out = args->out[0];
  picks p;
  TRY(need_dtype(op, "out", out, "x", x));
  TRY(read_picks(op, x, args->in + 1, &p));
  TRY(need_result(op, &p, out));
  if (out->numel == 0) return HAIAN_OK;
  bool direct = p.n == 1 && !p.negative; /* the index tensor itself says where to look */
  int64_t step[HAIAN_MAX_RANK], *offsets = NULL, row = 1, size = 1;
  for (int i = 0; i < p.n; i++) {
    step[i] = x->stride[p.axis[i]];
    size *= x->shape[p.axis[i]];
  }
  if (!direct) {
    offsets = offsets_of(&p, x, step);
    HAIAN_REQUIRE(offsets, HAIAN_OUT_OF_MEMORY, "%s: no memory for %lld offsets", op, (long long)p.count);
  }
  haian_tensor where = {.data = direct ? p.index[0]->data : offsets, .dtype = direct ? p.index[0]->dtype : HAIAN_I64};
  haian_walk w = {.ndim = out->ndim};
  for (int d = out->ndim - 1; d >= 0; d--) {
    int k = d - p.at, rest = d < p.at ? d : d - p.ndim;
    bool picked = k >= 0 && k < p.ndim;
    w.shape[d] = out->shape[d];
    w.stride[d][0] = out->stride[d];
    w.stride[d][1] = !picked ? 0 : direct ? p.index[0]->stride[k] : row;
    w.stride[d][2] = picked ? 0 : x->stride[p.rest_axis[rest]];
    if (picked) row *= p.shape[k];
  }
  take(w, out, &where, x, direct ? step[0] : 1, size);
  free(offsets);
  return HAIAN_OK;
}

/* ---- index_put: terms in the order of their destinations, each destination in one thread ------------------------- */
typedef struct put_term {
  int64_t key, from; /* number of the destination; where the values begin */
} put_term;

typedef struct put_job {
  haian_walk walk; /* x's other axes; tensor 0 = out, 2 = values */
  const picks *p;
  const haian_tensor *out;
  const char *values;
  char *y;
  const put_term *term;
  const int64_t *start; /* segment s: terms start[s] .. start[s + 1], of one destination */
  int64_t item, blocks, block;
} put_job;

/* Stable sort by key, 11 bits a pass; spare: as many again.  Returns the one of the two that has the result. */
static put_term *sort_terms(put_term *a, put_term *spare, int64_t n, uint64_t keys) {
  bool sorted = true;
  for (int64_t i = 1; i < n; i++) sorted &= a[i - 1].key <= a[i].key;
  for (int shift = 0; !sorted && shift < 64 && (keys - 1) >> shift; shift += 11) {
    int64_t at[1 << 11] = {0}, total = 0;
    for (int64_t i = 0; i < n; i++) at[(uint64_t)a[i].key >> shift & 2047]++;
    for (int b = 0; b < 2048; b++) {
      int64_t count = at[b];
      at[b] = total;
      total += count;
    }
    for (int64_t i = 0; i < n; i++) spare[at[(uint64_t)a[i].key >> shift & 2047]++] = a[i];
    put_term *t = a;
    a = spare;
    spare = t;
  }
  return a;
}

/* Offset in elements of the destination with this number. */
static inline int64_t destination(const put_job *job, int64_t key) {
  int64_t offset = 0;
  for (int i = job->p->n - 1; i > 0; i--) {
    int axis = job->p->axis[i];
    offset += key % job->out->shape[axis] * job->out->stride[axis];
    key /= job->out->shape[axis];
  }
  return offset + key * job->out->stride[job->p->axis[0]];
}

/* What a unit (destination, outer row, block of the row) works on: n elements, offsets in out and values, its terms. */
typedef struct put_place {
  int64_t to, from, n, term, end;
} put_place;

static inline put_place unit_of(const put_job *job, int64_t unit) {
  const haian_walk *w = &job->walk;
  const int64_t *inner = w->stride[w->ndim - 1];
  int64_t outer = haian_walk_rows(w, w->ndim - 1), segment = unit / (outer * job->blocks);
  int64_t first = unit % job->blocks * job->block, n = w->shape[w->ndim - 1] - first;
  put_place at = {.n = n < job->block ? n : job->block, .term = job->start[segment], .end = job->start[segment + 1]};
  at.to = destination(job, job->term[at.term].key) + first * inner[0];
  at.from = first * inner[2];
  if (outer > 1) {
    haian_place place;
    haian_place_seek(&place, w, w->ndim - 1, unit / job->blocks % outer);
    at.to += place.offset[0];
    at.from += place.offset[2];
  }
  return at;
}

/* The last term stays. */
static void put_last(void *ctx, int64_t lo, int64_t hi) {
  const put_job *job = ctx;
  const int64_t *inner = job->walk.stride[job->walk.ndim - 1];
  for (; lo < hi; lo++) {
    put_place at = unit_of(job, lo);
    take_run(job->y + at.to * job->item, inner[0], job->values + (at.from + job->term[at.end - 1].from) * job->item,
             inner[2], at.n, job->item, false);
  }
}

#define ADD_NUMBER(a, v) (1u * (a) + (v)) /* 1u: small unsigned types would promote to int */
#define ADD_BOOL(a, v) ((a) | (v))
#define DEFINE_PUT_ADD(NAME, T, A, LOAD, STORE, ADD)                                                    \
  static void put_add_##NAME(void *ctx, int64_t lo, int64_t hi) {                                       \
    const put_job *job = ctx;                                                                           \
    int64_t ys = job->walk.stride[job->walk.ndim - 1][0], ss = job->walk.stride[job->walk.ndim - 1][2]; \
    A sum[BLOCK];                                                                                       \
    for (; lo < hi; lo++) {                                                                             \
      put_place at = unit_of(job, lo);                                                                  \
      T *y = (T *)(void *)job->y + at.to;                                                               \
      for (int64_t i = 0; i < at.n; i++) sum[i] = (A)LOAD(y[i * ys]);                                   \
      for (; at.term < at.end; at.term++) {                                                             \
        const T *s = (const T *)(const void *)job->values + at.from + job->term[at.term].from;          \
        if (ss == 1)                                                                                    \
          for (int64_t i = 0; i < at.n; i++) sum[i] = (A)ADD(sum[i], (A)LOAD(s[i]));                    \
        else                                                                                            \
          for (int64_t i = 0; i < at.n; i++) sum[i] = (A)ADD(sum[i], (A)LOAD(s[i * ss]));               \
      }                                                                                                 \
      for (int64_t i = 0; i < at.n; i++) y[i * ys] = (T)STORE(sum[i]);                                  \
    }                                                                                                   \
  }
DEFINE_PUT_ADD(bool, uint8_t, uint8_t, SAME, SAME, ADD_BOOL)
DEFINE_PUT_ADD(i8, uint8_t, uint8_t, SAME, SAME, ADD_NUMBER)
DEFINE_PUT_ADD(i16, uint16_t, uint16_t, SAME, SAME, ADD_NUMBER)
DEFINE_PUT_ADD(i32, uint32_t, uint32_t, SAME, SAME, ADD_NUMBER)
DEFINE_PUT_ADD(i64, uint64_t, uint64_t, SAME, SAME, ADD_NUMBER)
DEFINE_PUT_ADD(f16, uint16_t, float, haian_f16_load, haian_f16_store, ADD_NUMBER)
DEFINE_PUT_ADD(bf16, uint16_t, float, haian_bf16_load, haian_bf16_store, ADD_NUMBER)
DEFINE_PUT_ADD(f32, float, float, SAME, SAME, ADD_NUMBER)
DEFINE_PUT_ADD(f64, double, double, SAME, SAME, ADD_NUMBER)

static void (*const putters[HAIAN_DTYPE_END])(void *, int64_t, int64_t) = {
    [HAIAN_BOOL] = put_add_bool, [HAIAN_U8] = put_add_i8,   [HAIAN_I8] = put_add_i8,   [HAIAN_I16] = put_add_i16,
    [HAIAN_I32] = put_add_i32,   [HAIAN_I64] = put_add_i64, [HAIAN_F16] = put_add_f16, [HAIAN_BF16] = put_add_bf16,
    [HAIAN_F32] = put_add_f32,   [HAIAN_F64] = put_add_f64,
};

/* terms: room for 2 * count; start: for count + 1. */
static void put_terms(put_job *job, put_term *terms, int64_t *start, const int64_t *keys, const int64_t *value_steps,
                      bool accumulate) {
  const picks *p = job->p;
  const haian_tensor *out = job->out;
  haian_walk places = {.ndim = p->ndim, .tensors = 1};
  haian_place place;
  uint64_t destinations = 1;
  for (int k = 0; k < p->ndim; k++) {
    places.shape[k] = p->shape[k];
    places.stride[k][0] = value_steps[p->at + k];
  }
  for (int i = 0; i < p->n; i++) destinations *= (uint64_t)out->shape[p->axis[i]];
  haian_walk_merge(&places);
  haian_place_seek(&place, &places, places.ndim, 0);
  for (int64_t i = 0; i < p->count; i++, haian_place_next(&place, &places, places.ndim))
    terms[i] = (put_term){keys[i], place.offset[0]};
  terms = sort_terms(terms, terms + p->count, p->count, destinations);
  int64_t segments = 0;
  for (int64_t i = 0; i < p->count; i++)
    if (i == 0 || terms[i].key != terms[i - 1].key) start[segments++] = i;
  start[segments] = p->count;
  job->term = terms;
  job->start = start;
  haian_walk *w = &job->walk;
  int64_t offset[HAIAN_WALK_TENSORS] = {0}, row;
  w->tensors = 3;
  for (int k = 0; k < p->rest; k++) {
    w->shape[k] = out->shape[p->rest_axis[k]];
    w->stride[k][0] = out->stride[p->rest_axis[k]];
    w->stride[k][2] = value_steps[k < p->at ? k : k + p->ndim];
  }
  w->ndim = p->rest;
  haian_walk_sort(w, offset);
  haian_walk_merge(w);
  pad_to_two_axes(w);
  job->y = (char *)out->data + offset[0] * job->item;
  job->values += offset[2] * job->item;
  row = w->shape[w->ndim - 1];
  job->block = accumulate ? BLOCK : 4 * BLOCK;
  job->blocks = (row + job->block - 1) / job->block;
  int64_t units = segments * haian_walk_rows(w, w->ndim - 1) * job->blocks;
  haian_parallel_for(units, 1 + (1 << 14) / ((row < job->block ? row : job->block) + 16),
                     accumulate ? putters[out->dtype] : put_last, job);
}

/* Terms one after another: y[to[i] + c * ys] = or += values[places + c * ss].  For rows too short for sorting to pay. */
#define DEFINE_SERIAL(NAME, T, PUT)                                                                                 \
  static void serial_##NAME(void *y_, const int64_t *to, int64_t count, int64_t n, int64_t ys, const void *values_, \
                            const haian_walk *places, int64_t ss) {                                                 \
    T *y = y_;                                                                                                      \
    const T *values = values_;                                                                                      \
    haian_place place;                                                                                              \
    haian_place_seek(&place, places, places->ndim, 0);                                                              \
    for (int64_t i = 0; i < count; i++, haian_place_next(&place, places, places->ndim)) {                           \
      T *a = y + to[i];                                                                                             \
      const T *v = values + place.offset[0];                                                                        \
      for (int64_t c = 0; c < n; c++) a[c * ys] = (T)PUT(a[c * ys], v[c * ss]);                                     \
    }                                                                                                               \
  }
#define PUT_LAST(a, v) (v)
DEFINE_SERIAL(bits1, bits1, PUT_LAST)
DEFINE_SERIAL(bits2, bits2, PUT_LAST)
DEFINE_SERIAL(bits4, bits4, PUT_LAST)
DEFINE_SERIAL(bits8, bits8, PUT_LAST)
DEFINE_SERIAL(add_bool, uint8_t, ADD_BOOL)
DEFINE_SERIAL(add_i8, uint8_t, ADD_NUMBER)
DEFINE_SERIAL(add_i16, uint16_t, ADD_NUMBER)
DEFINE_SERIAL(add_i32, uint32_t, ADD_NUMBER)
DEFINE_SERIAL(add_i64, uint64_t, ADD_NUMBER)
DEFINE_SERIAL(add_f32, float, ADD_NUMBER)
DEFINE_SERIAL(add_f64, double, ADD_NUMBER)

typedef void (*serial_body)(void *, const int64_t *, int64_t, int64_t, int64_t, const void *, const haian_walk *,
                            int64_t);
/* NULL: float16 and bfloat16, whose sums are rounded once and so need all terms of a place together; complex128 */
static serial_body serial_of(const haian_tensor *out, bool accumulate) {
  static const serial_body adders[HAIAN_DTYPE_END] = {
      [HAIAN_BOOL] = serial_add_bool, [HAIAN_U8] = serial_add_i8,   [HAIAN_I8] = serial_add_i8,
      [HAIAN_I16] = serial_add_i16,   [HAIAN_I32] = serial_add_i32, [HAIAN_I64] = serial_add_i64,
      [HAIAN_F32] = serial_add_f32,   [HAIAN_F64] = serial_add_f64,
  };
  if (accumulate) return adders[out->dtype];
  switch (haian_itemsize(out->dtype)) {
    case 1:
      return serial_bits1;
    case 2:
      return serial_bits2;
    case 4:
      return serial_bits4;
    case 8:
      return serial_bits8;
    default:
      return NULL;
  }
}

#define SERIAL_BYTES 32 /* of a row: below, sorting a term (about 100 ns) costs more than storing it */

/* Whether the call is one of those, and then done: rows of one axis at most, few bytes long. */
static bool put_serially(const picks *p, const haian_tensor *x, const haian_tensor *values, const int64_t *value_steps,
                         bool accumulate, const haian_tensor *out, int32_t *status) {
  haian_walk rest = {.tensors = 2}, places = {.ndim = p->ndim, .tensors = 1};
  for (int k = 0; k < p->rest; k++) {
    rest.shape[rest.ndim] = out->shape[p->rest_axis[k]];
    rest.stride[rest.ndim][0] = out->stride[p->rest_axis[k]];
    rest.stride[rest.ndim++][1] = value_steps[k < p->at ? k : k + p->ndim];
  }
  haian_walk_merge(&rest);
  serial_body body = serial_of(out, accumulate);
  int64_t n = rest.ndim ? rest.shape[0] : 1, step[HAIAN_MAX_RANK];
  if (!body || rest.ndim > 1 || n * haian_itemsize(out->dtype) > SERIAL_BYTES) return false;
  for (int i = 0; i < p->n; i++) step[i] = out->stride[p->axis[i]];
  for (int k = 0; k < p->ndim; k++) {
    places.shape[k] = p->shape[k];
    places.stride[k][0] = value_steps[p->at + k];
  }
  haian_walk_merge(&places);
  int64_t *to = offsets_of(p, x, step);
  if (!to) {
    *status = haian_fail(HAIAN_OUT_OF_MEMORY, "index_put: no memory for %lld offsets", (long long)p->count);
    return true;
  }
  copy_tensor(out, x);
  body(out->data, to, p->count, n, rest.ndim ? rest.stride[0][0] : 0, values->data, &places,
       rest.ndim ? rest.stride[0][1] : 0);
  free(to);
  return true;
}

static int32_t run_index_put(const haian_args *args) {
  static const char op[] = "index_put";
  HAIAN_REQUIRE(
      args->n_in == 2 + HAIAN_MAX_RANK && args->n_out == 1 && args->n_attr == 1 && args->in[0] && args->in[1],
      HAIAN_INVALID_ARGUMENT,
      "%s: %d inputs, %d outputs, %d attributes; needs x, values, %d index tensors, some left out; accumulate", op,
      args->n_in, args->n_out, args->n_attr, HAIAN_MAX_RANK);
  const haian_tensor *x = args->in[0], *values = args->in[1], *out = args->out[0];
  bool accumulate = args->attr[0].kind == HAIAN_INT && args->attr[0].i != 0;
  picks p;
  TRY(need_dtype(op, "out", out, "x", x));
  TRY(need_dtype(op, "values", values, "x", x));
  TRY(need_same_shape(op, "out", out, "x", x));
  HAIAN_REQUIRE(!accumulate || putters[x->dtype], HAIAN_DTYPE,
                "%s: x is %s; accumulates bool, int8 to int64, uint8, "
                "float16 to float64",
                op, haian_dtype_name(x->dtype));
  TRY(read_picks(op, x, args->in + 2, &p));
  int64_t value_steps[HAIAN_MAX_RANK] = {0}, step[HAIAN_MAX_RANK], row = 1;
  HAIAN_REQUIRE(values->ndim <= p.result_ndim, HAIAN_SHAPE, "%s: values is %s; needs to broadcast to %d axes", op,
                HAIAN_SHAPE_OF(values), p.result_ndim);
  for (int k = 0; k < values->ndim; k++) {
    int d = p.result_ndim - values->ndim + k;
    HAIAN_REQUIRE(values->shape[k] == p.result[d] || values->shape[k] == 1, HAIAN_SHAPE,
                  "%s: values is %s; needs %lld or 1 on axis %d to broadcast to what is indexed", op,
                  HAIAN_SHAPE_OF(values), (long long)p.result[d], k);
    value_steps[d] = values->shape[k] == 1 ? 0 : values->stride[k];
  }
  for (int i = p.n - 1; i >= 0; i--) {
    step[i] = row;
    row *= x->shape[p.axis[i]];
  }
  if (out->numel == 0 || p.count == 0) {
    copy_tensor(out, x);
    return HAIAN_OK;
  }
  int32_t status = HAIAN_OK;
  if (put_serially(&p, x, values, value_steps, accumulate, out, &status)) return status;
  int64_t *keys = offsets_of(&p, x, step), *start = malloc((size_t)(p.count + 1) * sizeof *start);
  put_term *terms = malloc(2 * (size_t)p.count * sizeof *terms);
  bool memory = keys && start && terms;
  if (memory) {
    put_job job = {.p = &p, .out = out, .values = values->data, .item = haian_itemsize(out->dtype)};
    copy_tensor(out, x);
    put_terms(&job, terms, start, keys, value_steps, accumulate);
  }
  free(keys);
  free(start);
  free(terms);
  HAIAN_REQUIRE(memory, HAIAN_OUT_OF_MEMORY, "%s: no memory to sort %lld indices", op, (long long)p.count);
  return HAIAN_OK;
}

/* ---- masked_scatter ------------------------------------------------------------------------------------------------ */
#define CHUNK 16384 /* elements a unit counts and places */

typedef struct masked_job {
  const uint8_t *mask;
  const char *x, *source;
  char *y;
  int64_t n, taken, *before; /* before: how many the mask selects in front of each chunk */
  int64_t item;
} masked_job;

static void count_chunks(void *ctx, int64_t lo, int64_t hi) {
  const masked_job *job = ctx;
  for (; lo < hi; lo++) {
    int64_t end = lo * CHUNK + CHUNK < job->n ? lo * CHUNK + CHUNK : job->n, count = 0;
    for (int64_t i = lo * CHUNK; i < end; i++) count += job->mask[i] != 0;
    job->before[lo] = count;
  }
}

/* In n elements of out: source, from position `at` on, where the mask is true, else x. */
#define DEFINE_PLACE(T)                                                                                    \
  static void place_##T(const masked_job *job, int64_t first, int64_t n, int64_t at) {                     \
    const uint8_t *mask = job->mask + first;                                                               \
    const T *x = (const T *)job->x + first, *source = (const T *)job->source;                              \
    T *y = (T *)job->y + first;                                                                            \
    int64_t last = job->taken ? job->taken - 1 : 0;                                                        \
    for (int64_t i = 0; i < n; i++) { /* without a branch, which would be mispredicted half of the time */ \
      T taken = source[at < last ? at : last];                                                             \
      y[i] = mask[i] ? taken : x[i];                                                                       \
      at += mask[i] != 0;                                                                                  \
    }                                                                                                      \
  }
DEFINE_PLACE(bits1)
DEFINE_PLACE(bits2)
DEFINE_PLACE(bits4)
DEFINE_PLACE(bits8)
DEFINE_PLACE(bits16)

static void place_chunks(void *ctx, int64_t lo, int64_t hi) {
  const masked_job *job = ctx;
  for (; lo < hi; lo++) {
    int64_t first = lo * CHUNK, n = job->n - first < CHUNK ? job->n - first : CHUNK;
    (job->item == 1   ? place_bits1
     : job->item == 2 ? place_bits2
     : job->item == 4 ? place_bits4
     : job->item == 8 ? place_bits8
                      : place_bits16)(job, first, n, job->before[lo]);
  }
}

/* t broadcast to a shape, packed: its own memory where it lies so already, else *own, which the caller frees. */
static const void *packed(const haian_tensor *t, const haian_tensor *like, void **own) {
  *own = NULL;
  if (haian_same_shape(t, like) && haian_is_contiguous(t)) return t->data;
  int64_t item = haian_itemsize(t->dtype), row = 1;
  *own = malloc((size_t)(like->numel * item) + 1);
  if (!*own) return NULL;
  haian_walk w = {.ndim = like->ndim, .tensors = 2};
  for (int d = like->ndim - 1; d >= 0; d--) {
    int k = d - (like->ndim - t->ndim);
    w.shape[d] = like->shape[d];
    w.stride[d][0] = row;
    w.stride[d][1] = k >= 0 && t->shape[k] != 1 ? t->stride[k] : 0;
    row *= like->shape[d];
  }
  HAIAN_SYM(copy_walk)(w, *own, t->data, item);
  return *own;
}

static int32_t need_broadcast(const char *op, const char *name, const haian_tensor *t, const haian_tensor *out) {
  bool fits = t->ndim <= out->ndim;
  for (int k = 0; k < t->ndim && fits; k++)
    fits = t->shape[k] == 1 || t->shape[k] == out->shape[out->ndim - t->ndim + k];
  HAIAN_REQUIRE(fits, HAIAN_SHAPE, "%s: %s is %s, which does not broadcast to out's %s", op, name, HAIAN_SHAPE_OF(t),
                HAIAN_SHAPE_OF(out));
  return HAIAN_OK;
}

static int32_t run_masked_scatter(const haian_args *args) {
  static const char op[] = "masked_scatter";
  TRY(need_three(op, args, 3, 0));
  const haian_tensor *x = args->in[0], *mask = args->in[1], *source = args->in[2], *out = args->out[0];
  TRY(need_dtype(op, "out", out, "x", x));
  TRY(need_dtype(op, "source", source, "x", x));
  HAIAN_REQUIRE(mask->dtype == HAIAN_BOOL, HAIAN_DTYPE, "%s: mask is %s; needs bool", op,
                haian_dtype_name(mask->dtype));
  TRY(need_broadcast(op, "x", x, out));
  TRY(need_broadcast(op, "mask", mask, out));
  if (out->numel == 0) return HAIAN_OK;
  int64_t chunks = (out->numel + CHUNK - 1) / CHUNK, taken = 0, item = haian_itemsize(out->dtype);
  void *own[4] = {NULL, NULL, NULL, NULL};
  bool direct = haian_is_contiguous(out);
  masked_job job = {.n = out->numel, .item = item, .before = malloc((size_t)chunks * sizeof *job.before)};
  job.mask = packed(mask, out, &own[0]);
  bool memory = job.mask && job.before;
  if (memory) {
    haian_parallel_for(chunks, 4, count_chunks, &job);
    for (int64_t i = 0; i < chunks; i++) {
      int64_t count = job.before[i];
      job.before[i] = taken;
      taken += count;
    }
  }
  job.taken = taken;
  bool enough = taken <= source->numel;
  if (memory && enough) {
    job.x = packed(x, out, &own[1]);
    job.source = taken ? packed(source, source, &own[2]) : job.x; /* taken 0: never read for its value */
    job.y = direct ? out->data : (own[3] = malloc((size_t)(out->numel * item)));
    memory = job.x && job.source && job.y;
    if (memory) haian_parallel_for(chunks, 2, place_chunks, &job);
    if (memory && !direct) {
      haian_tensor flat = {.data = job.y, .ndim = out->ndim};
      int64_t row = 1;
      for (int d = out->ndim - 1; d >= 0; row *= out->shape[d--]) flat.stride[d] = row;
      HAIAN_SYM(copy_walk)(index_pair(out, &flat), out->data, flat.data, item);
    }
  }
  for (int i = 0; i < 4; i++) free(own[i]);
  free(job.before);
  HAIAN_REQUIRE(memory, HAIAN_OUT_OF_MEMORY, "%s: no memory for %lld elements", op, (long long)out->numel);
  HAIAN_REQUIRE(enough, HAIAN_INDEX, "%s: mask selects %lld elements and source has %lld; needs as many at least", op,
                (long long)taken, (long long)source->numel);
  return HAIAN_OK;
}

const haian_kernel_entry HAIAN_TABLE(index_put)[] = {
    {"index", run_index, INDEX_MOVED, NULL},
    {"index_put", run_index_put, INDEX_MOVED, NULL},
    {"masked_scatter", run_masked_scatter, INDEX_MOVED, NULL},
    {NULL, NULL, 0, NULL},
};
