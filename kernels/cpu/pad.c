/* Padding: constant_pad_nd, reflection and replication pads of 1 to 3 spatial axes with their gradients, and pad, the face
 * over them with circular padding.  One engine: a table of source positions an axis, then whole rows.  Negative pads crop.
 * A gradient gathers: each element of dx adds the elements of dy that show it in a fixed order, in one thread. */
#include "strided.h"
#include <math.h>
#include <stdlib.h>

#define TRY(call)                            \
  do {                                       \
    int32_t status_ = (call);                \
    if (status_ != HAIAN_OK) return status_; \
  } while (0)

enum { MODE_CONSTANT, MODE_REFLECT, MODE_REPLICATE, MODE_CIRCULAR, MODE_END };
static const char *const mode_name[MODE_END] = {"constant", "reflect", "replicate", "circular"};

typedef struct geometry {
  int ndim;
  int64_t in[HAIAN_MAX_RANK], out[HAIAN_MAX_RANK], before[HAIAN_MAX_RANK];
  int64_t low[HAIAN_MAX_RANK],
      high[HAIAN_MAX_RANK]; /* what is repeated: all of x, or what is left of a crop (circular) */
} geometry;

/* pad: pairs (before, after), the last axis first.  last: how many axes may be padded. */
static int32_t read_geometry(const char *op, const haian_tensor *x, const haian_attr *pad, int mode, int last,
                             geometry *g) {
  HAIAN_REQUIRE(pad->kind == HAIAN_INTS && pad->count % 2 == 0 && pad->count / 2 <= last, HAIAN_SHAPE,
                "%s: pad has %d entries and x is %s; needs a pair an axis, for %d axes at most", op,
                pad->kind == HAIAN_INTS ? pad->count : 0, HAIAN_SHAPE_OF(x), last);
  g->ndim = x->ndim;
  for (int d = 0; d < x->ndim; d++) {
    int k = 2 * (x->ndim - 1 - d);
    int64_t before = k < pad->count ? pad->v[k] : 0, after = k < pad->count ? pad->v[k + 1] : 0, n = x->shape[d];
    HAIAN_REQUIRE(before > -(1LL << 40) && before < 1LL << 40 && after > -(1LL << 40) && after < 1LL << 40, HAIAN_SHAPE,
                  "%s: pad (%lld, %lld) on axis %d; needs entries below 2^40", op, (long long)before, (long long)after,
                  d);
    HAIAN_REQUIRE(n + before + after >= 0, HAIAN_SHAPE,
                  "%s: pad (%lld, %lld) crops axis %d of %lld elements below nothing", op, (long long)before,
                  (long long)after, d, (long long)n);
    g->low[d] = mode == MODE_CIRCULAR && before < 0 ? -before : 0;
    g->high[d] = mode == MODE_CIRCULAR && after < 0 ? n + after : n;
    int64_t most = mode == MODE_REFLECT ? n - 1 : mode == MODE_CIRCULAR ? g->high[d] - g->low[d] : INT64_MAX;
    if (mode != MODE_CONSTANT && k < pad->count)
      HAIAN_REQUIRE((before <= most && after <= most) || (before <= 0 && after <= 0), HAIAN_SHAPE,
                    "%s: pad (%lld, %lld) on axis %d of %lld elements; mode %s takes up to %lld", op, (long long)before,
                    (long long)after, d, (long long)n, mode_name[mode], (long long)most);
    g->in[d] = n;
    g->out[d] = n + before + after;
    g->before[d] = before;
    HAIAN_REQUIRE(mode == MODE_CONSTANT || n > 0 || g->out[d] == 0, HAIAN_SHAPE,
                  "%s: axis %d of x is empty; mode %s needs an element to repeat", op, d, mode_name[mode]);
  }
  return HAIAN_OK;
}

/* Where position o of padded axis d comes from; -1: from nowhere. */
static inline int64_t source_of(const geometry *g, int mode, int d, int64_t o) {
  int64_t i = o - g->before[d], low = g->low[d], high = g->high[d];
  if (i >= low && i < high) return i;
  if (mode == MODE_CONSTANT) return -1;
  if (mode == MODE_REPLICATE) return i < 0 ? 0 : high - 1;
  if (mode == MODE_REFLECT) return i < 0 ? -i : 2 * (high - 1) - i;
  return i < low ? i + (high - low) : i - (high - low);
}

/* ---- forward ------------------------------------------------------------------------------------------------------ */
typedef uint8_t __attribute__((may_alias)) bits1;
typedef uint16_t __attribute__((may_alias)) bits2;
typedef uint32_t __attribute__((may_alias)) bits4;
typedef uint64_t __attribute__((may_alias)) bits8;

typedef struct pad_job {
  const geometry *g;
  const char *x;
  char *y;
  int mode, axis; /* axis: the last one that is padded; behind it both sides lie packed */
  int64_t item;   /* bytes of an element times what lies behind the axis */
  int64_t cell;   /* bytes of an element */
  const char *value;
  int64_t first, last; /* positions [first, last) along the axis come straight from x */
  bool stream;
} pad_job;

static void fill(char *y, const char *value, int64_t n, int64_t cell) {
  if (cell == 1) memset(y, *value, (size_t)n);
  else if (cell == 2)
    for (int64_t i = 0; i < n; i++) ((bits2 *)y)[i] = *(const bits2 *)value;
  else if (cell == 4)
    for (int64_t i = 0; i < n; i++) ((bits4 *)y)[i] = *(const bits4 *)value;
  else if (cell == 8)
    for (int64_t i = 0; i < n; i++) ((bits8 *)y)[i] = *(const bits8 *)value;
  else
    for (int64_t i = 0; i < n; i++) memcpy(y + i * cell, value, (size_t)cell);
}

/* Positions [from, to) of the axis that do not come straight from x. */
static void pad_edge(const pad_job *job, char *y, const char *x, int64_t from, int64_t to) {
  const geometry *g = job->g;
  int64_t item = job->item;
  if (job->mode == MODE_CONSTANT) fill(y + from * item, job->value, (to - from) * (item / job->cell), job->cell);
  else if (item == 4)
    for (int64_t o = from; o < to; o++) ((bits4 *)y)[o] = ((const bits4 *)x)[source_of(g, job->mode, job->axis, o)];
  else
    for (int64_t o = from; o < to; o++)
      memcpy(y + o * item, x + source_of(g, job->mode, job->axis, o) * item, (size_t)item);
}

/* Units: rows of the axes up to and with the last padded one. */
static void pad_rows(void *ctx, int64_t lo, int64_t hi) {
  const pad_job *job = ctx;
  const geometry *g = job->g;
  const int axis = job->axis, near = axis - 1;
  const int64_t row = g->out[axis], from_row = g->in[axis], rows = near < 0 ? 1 : g->out[near];
  while (lo < hi) { /* rows of one plane: what lies further out is worked out once */
    int64_t first = lo % rows, plane = lo / rows, count = rows - first < hi - lo ? rows - first : hi - lo;
    int64_t at = 0, step = near < 0 ? 1 : g->in[near];
    bool nowhere = false;
    for (int d = near - 1; d >= 0; d--) {
      int64_t i = source_of(g, job->mode, d, plane % g->out[d]);
      plane /= g->out[d];
      nowhere |= i < 0;
      at += i * step;
      step *= g->in[d];
    }
    for (int64_t o = first; o < first + count; o++, lo++) {
      char *y = job->y + lo * row * job->item;
      int64_t i = near < 0 ? 0 : source_of(g, job->mode, near, o);
      if (nowhere || i < 0) {
        fill(y, job->value, row * (job->item / job->cell), job->cell);
        continue;
      }
      const char *x = job->x + (at + i) * from_row * job->item;
      if (job->first) pad_edge(job, y, x, 0, job->first);
      if (job->last > job->first)
        haian_copy_run(y + job->first * job->item, x + (job->first - g->before[axis]) * job->item,
                       (job->last - job->first) * job->item, job->stream);
      if (job->last < row) pad_edge(job, y, x, job->last, row);
    }
  }
  if (job->stream) haian_stream_fence();
}

static haian_walk walk_pair(const haian_tensor *t, bool packed_first) {
  haian_walk w = {.ndim = t->ndim, .tensors = 2};
  int64_t row = 1;
  for (int d = t->ndim - 1; d >= 0; d--) {
    w.shape[d] = t->shape[d];
    w.stride[d][!packed_first] = row;
    w.stride[d][packed_first] = t->stride[d];
    row *= t->shape[d];
  }
  return w;
}

/* t's elements packed: its own memory where it is contiguous, else *own, which the caller frees. */
static const void *packed(const haian_tensor *t, void **own) {
  *own = NULL;
  if (haian_is_contiguous(t) || t->numel == 0) return t->data;
  *own = malloc((size_t)(t->numel * haian_itemsize(t->dtype)));
  if (*own) HAIAN_SYM(copy_walk)(walk_pair(t, true), *own, t->data, haian_itemsize(t->dtype));
  return *own;
}

static int32_t need_out(const char *op, const geometry *g, const haian_tensor *like, const haian_tensor *out,
                        const int64_t *shape) {
  HAIAN_REQUIRE(out->dtype == like->dtype, HAIAN_DTYPE, "%s: out is %s and x is %s; they must be equal; cast first", op,
                haian_dtype_name(out->dtype), haian_dtype_name(like->dtype));
  HAIAN_REQUIRE(out->ndim == g->ndim && memcmp(out->shape, shape, (size_t)g->ndim * sizeof *shape) == 0, HAIAN_SHAPE,
                "%s: out is %s; needs x's sizes %s the pads", op, HAIAN_SHAPE_OF(out),
                shape == g->out ? "with" : "without");
  return HAIAN_OK;
}

static int32_t pad_into(const char *op, const geometry *g, const haian_tensor *x, const haian_tensor *out, int mode,
                        const char *value) {
  TRY(need_out(op, g, x, out, g->out));
  if (out->numel == 0) return HAIAN_OK;
  int64_t item = haian_itemsize(x->dtype), rows = 1;
  pad_job job = {.g = g, .mode = mode, .cell = item, .item = item, .value = value};
  for (int d = 1; d < g->ndim; d++)
    if (g->out[d] != g->in[d] || g->before[d] != 0) job.axis = d;
  for (int d = job.axis + 1; d < g->ndim; d++) job.item *= g->out[d];
  geometry scalar = *g;
  if (g->ndim == 0) { /* one element, no axis: an axis of one */
    scalar.in[0] = scalar.out[0] = 1;
    scalar.before[0] = scalar.low[0] = 0;
    scalar.high[0] = 1;
    job.g = &scalar;
  }
  int64_t row = job.g->out[job.axis], before = job.g->before[job.axis];
  int64_t first = before + job.g->low[job.axis], last = before + job.g->high[job.axis];
  job.first = first > 0 ? first : 0;
  job.last = last < row ? last : row;
  if (job.first > row) job.first = row;
  if (job.last < job.first) job.last = job.first;
  for (int d = 0; d < job.axis; d++) rows *= g->out[d];
  void *own_x, *own_y = NULL;
  job.x = packed(x, &own_x);
  job.y = haian_is_contiguous(out) ? out->data : (own_y = malloc((size_t)(out->numel * item)));
  bool memory = (job.x || x->numel == 0) && job.y;
  job.stream = !own_y && out->numel * item >= HAIAN_STREAM_BYTES;
  if (memory) {
    haian_parallel_for(rows, 1 + HAIAN_GRAIN_BYTES / (row * job.item), pad_rows, &job);
    if (own_y) HAIAN_SYM(copy_walk)(walk_pair(out, false), out->data, own_y, item);
  }
  free(own_x);
  free(own_y);
  HAIAN_REQUIRE(memory, HAIAN_OUT_OF_MEMORY, "%s: no memory for %lld elements", op, (long long)out->numel);
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

static int32_t store_value(const char *op, int32_t dtype, double v, char *to) {
  float f = (float)v;
  uint16_t h = 0;
  switch (dtype) {
    case HAIAN_BOOL:
      *to = v != 0;
      return HAIAN_OK;
    case HAIAN_F16:
    case HAIAN_BF16:
      h = dtype == HAIAN_F16 ? haian_f16_store(round_to_odd(v)) : haian_bf16_store(round_to_odd(v));
      memcpy(to, &h, 2);
      return HAIAN_OK;
    case HAIAN_F32:
      memcpy(to, &f, 4);
      return HAIAN_OK;
    case HAIAN_F64:
      memcpy(to, &v, 8);
      return HAIAN_OK;
    default: {
      HAIAN_REQUIRE((HAIAN_INTEGERS >> dtype) & 1, HAIAN_DTYPE, "%s: x is %s; takes bool, integers, float16 to float64",
                    op, haian_dtype_name(dtype));
      bool is_signed = (HAIAN_SIGNED >> dtype) & 1;
      int bits = 8 * haian_itemsize(dtype);
      double high = ldexp(1.0, is_signed ? bits - 1 : bits), low = is_signed ? -high : 0;
      HAIAN_REQUIRE(trunc(v) >= low && trunc(v) < high, HAIAN_INVALID_ARGUMENT,
                    "%s: value %g does not fit %s; needs %g <= value < %g", op, v, haian_dtype_name(dtype), low, high);
      uint64_t u = v < 0 ? (uint64_t)(int64_t)v : (uint64_t)v;
      memcpy(to, &u, (size_t)haian_itemsize(dtype));
      return HAIAN_OK;
    }
  }
}

static int32_t need_args(const char *op, const haian_args *args, int n_in, int n_attr) {
  HAIAN_REQUIRE(args->n_in == n_in && args->n_out == 1 && args->n_attr == n_attr && args->in[0] && args->in[n_in - 1],
                HAIAN_INVALID_ARGUMENT, "%s: %d inputs, %d outputs, %d attributes; needs %d, 1, %d", op, args->n_in,
                args->n_out, args->n_attr, n_in, n_attr);
  return HAIAN_OK;
}
static double number_of(const haian_attr *a) { return a->kind == HAIAN_INT ? (double)a->i : a->f; }

static int32_t run_constant_pad_nd(const haian_args *args) {
  static const char op[] = "constant_pad_nd";
  _Alignas(16) char value[16];
  geometry g;
  TRY(need_args(op, args, 1, 2));
  TRY(read_geometry(op, args->in[0], &args->attr[0], MODE_CONSTANT, args->in[0]->ndim, &g));
  TRY(store_value(op, args->in[0]->dtype, number_of(&args->attr[1]), value));
  return pad_into(op, &g, args->in[0], args->out[0], MODE_CONSTANT, value);
}

static int32_t run_pad(const haian_args *args) {
  static const char op[] = "pad";
  _Alignas(16) char value[16] = {0};
  geometry g;
  TRY(need_args(op, args, 1, 3));
  int64_t mode = args->attr[1].kind == HAIAN_INT ? args->attr[1].i : MODE_END;
  HAIAN_REQUIRE(mode >= 0 && mode < MODE_END, HAIAN_INVALID_ARGUMENT,
                "%s: mode is missing; needs constant, reflect, replicate or circular", op);
  TRY(read_geometry(op, args->in[0], &args->attr[0], (int)mode, args->in[0]->ndim, &g));
  TRY(store_value(op, args->in[0]->dtype, mode == MODE_CONSTANT ? number_of(&args->attr[2]) : 0, value));
  return pad_into(op, &g, args->in[0], args->out[0], (int)mode, value);
}

static int32_t pad_spatial(const char *op, const haian_args *args, int mode, int axes) {
  geometry g;
  TRY(need_args(op, args, 1, 1));
  const haian_tensor *x = args->in[0];
  HAIAN_REQUIRE(x->ndim == axes + 1 || x->ndim == axes + 2, HAIAN_SHAPE, "%s: x is %s; needs %d or %d axes", op,
                HAIAN_SHAPE_OF(x), axes + 1, axes + 2);
  HAIAN_REQUIRE(args->attr[0].kind == HAIAN_INTS && args->attr[0].count == 2 * axes, HAIAN_SHAPE,
                "%s: pad needs %d entries, a pair a spatial axis", op, 2 * axes);
  TRY(read_geometry(op, x, &args->attr[0], mode, axes, &g));
  return pad_into(op, &g, x, args->out[0], mode, NULL);
}

/* ---- gradient of reflection and replication ------------------------------------------------------------------------- */
typedef struct back_job {
  geometry g; /* always (batch, d, h, w) */
  const void *dy;
  void *dx;
  int mode;
  int32_t status; /* atomic */
} back_job;

/* Positions of a padded axis that show position i, at most `room` of them; returns how many. */
static int shown_at(const back_job *job, int d, int64_t i, int64_t *from, int64_t *to) {
  int64_t before = job->g.before[d], n = job->g.in[d], out = job->g.out[d];
  int count = 0;
#define SPAN(a, b)                                                   \
  {                                                                  \
    int64_t first = (a) < 0 ? 0 : (a), last = (b) > out ? out : (b); \
    if (first < last) from[count] = first, to[count++] = last;       \
  }
  if (job->mode == MODE_REPLICATE) {
    SPAN(i == 0 ? 0 : i + before, i == n - 1 ? out : i + before + 1)
    return count;
  }
  if (i >= 1 && i <= before) SPAN(before - i, before - i + 1)
  SPAN(i + before, i + before + 1)
  if (i <= n - 2) SPAN(before + 2 * (n - 1) - i, before + 2 * (n - 1) - i + 1)
#undef SPAN
  return count;
}

#define SAME(v) (v)
#define DEFINE_BACK(NAME, T, A, LOAD, STORE)                                                                   \
  /* Units: rows (batch, d, h) of dx. */                                                                       \
  static void back_##NAME(void *ctx, int64_t lo, int64_t hi) {                                                 \
    back_job *job = ctx;                                                                                       \
    const geometry *g = &job->g;                                                                               \
    const int64_t n = g->in[3], wide = g->out[3], before = g->before[3];                                       \
    A *row = malloc((size_t)(wide + 1) * sizeof(A));                                                           \
    if (!row) {                                                                                                \
      __atomic_store_n(&job->status, HAIAN_OUT_OF_MEMORY, __ATOMIC_RELAXED);                                   \
      return;                                                                                                  \
    }                                                                                                          \
    for (; lo < hi; lo++) {                                                                                    \
      int64_t h = lo % g->in[2], d = lo / g->in[2] % g->in[1], image = lo / g->in[2] / g->in[1];               \
      int64_t hf[3], ht[3], df[3], dt[3];                                                                      \
      int hs = shown_at(job, 2, h, hf, ht), ds = shown_at(job, 1, d, df, dt);                                  \
      bool first = true;                                                                                       \
      for (int a = 0; a < ds; a++)                                                                             \
        for (int64_t od = df[a]; od < dt[a]; od++)                                                             \
          for (int b = 0; b < hs; b++)                                                                         \
            for (int64_t oh = hf[b]; oh < ht[b]; oh++, first = false) {                                        \
              const T *dy = (const T *)job->dy + ((image * g->out[1] + od) * g->out[2] + oh) * wide;           \
              if (first)                                                                                       \
                for (int64_t i = 0; i < wide; i++) row[i] = (A)LOAD(dy[i]);                                    \
              else                                                                                             \
                for (int64_t i = 0; i < wide; i++) row[i] += (A)LOAD(dy[i]);                                   \
            }                                                                                                  \
      if (first)                                                                                               \
        for (int64_t i = 0; i < wide; i++) row[i] = 0;                                                         \
      T *dx = (T *)job->dx + lo * n;                                                                           \
      int64_t plain = before > 0 ? before : 0, last = n - 1 - (wide - n - before > 0 ? wide - n - before : 0); \
      if (job->mode == MODE_REPLICATE) plain = 0, last = n - 1;                                                \
      for (int64_t i = 0; i < n; i++) { /* elements that one position shows: plain < i < last */               \
        if (i > plain && i < last && i + before >= 0 && i + before < wide) {                                   \
          int64_t end = last < wide - before ? last : wide - before;                                           \
          const A *from = row + before;                                                                        \
          for (; i < end; i++) dx[i] = (T)STORE(from[i]);                                                      \
          i--;                                                                                                 \
          continue;                                                                                            \
        }                                                                                                      \
        int64_t wf[3], wt[3];                                                                                  \
        A sum = 0;                                                                                             \
        int ws = shown_at(job, 3, i, wf, wt);                                                                  \
        for (int c = 0; c < ws; c++)                                                                           \
          for (int64_t o = wf[c]; o < wt[c]; o++) sum += row[o];                                               \
        dx[i] = (T)STORE(sum);                                                                                 \
      }                                                                                                        \
    }                                                                                                          \
    free(row);                                                                                                 \
  }
DEFINE_BACK(f16, uint16_t, float, haian_f16_load, haian_f16_store)
DEFINE_BACK(bf16, uint16_t, float, haian_bf16_load, haian_bf16_store)
DEFINE_BACK(f32, float, float, SAME, SAME)
DEFINE_BACK(f64, double, double, SAME, SAME)

static int32_t pad_back(const char *op, const haian_args *args, int mode, int axes) {
  geometry g;
  TRY(need_args(op, args, 2, 1));
  const haian_tensor *dy = args->in[0], *x = args->in[1], *out = args->out[0];
  HAIAN_REQUIRE((HAIAN_FLOATS >> dy->dtype) & 1, HAIAN_DTYPE, "%s: dy is %s; takes float16 to float64", op,
                haian_dtype_name(dy->dtype));
  HAIAN_REQUIRE(x->ndim == axes + 1 || x->ndim == axes + 2, HAIAN_SHAPE, "%s: x is %s; needs %d or %d axes", op,
                HAIAN_SHAPE_OF(x), axes + 1, axes + 2);
  HAIAN_REQUIRE(args->attr[0].kind == HAIAN_INTS && args->attr[0].count == 2 * axes, HAIAN_SHAPE,
                "%s: pad needs %d entries, a pair a spatial axis", op, 2 * axes);
  TRY(read_geometry(op, x, &args->attr[0], mode, axes, &g));
  HAIAN_REQUIRE(dy->dtype == x->dtype, HAIAN_DTYPE, "%s: dy is %s and x is %s; they must be equal; cast first", op,
                haian_dtype_name(dy->dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(dy->ndim == g.ndim && memcmp(dy->shape, g.out, (size_t)g.ndim * sizeof g.out[0]) == 0, HAIAN_SHAPE,
                "%s: dy is %s and x is %s; dy needs x's sizes with the pads", op, HAIAN_SHAPE_OF(dy),
                HAIAN_SHAPE_OF(x));
  TRY(need_out(op, &g, x, out, g.in));
  if (out->numel == 0) return HAIAN_OK;
  back_job job = {.mode = mode};
  int64_t images = 1, item = haian_itemsize(dy->dtype);
  for (int d = 0; d < g.ndim - axes; d++) images *= g.in[d];
  job.g.ndim = 4;
  for (int d = 0; d < 4; d++) {
    int own = d - (4 - axes);
    job.g.in[d] = own >= 0 ? g.in[g.ndim - axes + own] : 1;
    job.g.out[d] = own >= 0 ? g.out[g.ndim - axes + own] : 1;
    job.g.before[d] = own >= 0 ? g.before[g.ndim - axes + own] : 0;
  }
  void *own_dy, *own_dx = NULL;
  job.dy = packed(dy, &own_dy);
  job.dx = haian_is_contiguous(out) ? out->data : (own_dx = malloc((size_t)(out->numel * item)));
  bool memory = (job.dy || dy->numel == 0) && job.dx;
  if (memory) {
    haian_parallel_for(images * job.g.in[1] * job.g.in[2], 1 + HAIAN_GRAIN_BYTES / (8 * (job.g.in[3] + job.g.out[3])),
                       dy->dtype == HAIAN_F16    ? back_f16
                       : dy->dtype == HAIAN_BF16 ? back_bf16
                       : dy->dtype == HAIAN_F32  ? back_f32
                                                 : back_f64,
                       &job);
    memory = job.status == HAIAN_OK;
    if (own_dx && memory) HAIAN_SYM(copy_walk)(walk_pair(out, false), out->data, own_dx, item);
  }
  free(own_dy);
  free(own_dx);
  HAIAN_REQUIRE(memory, HAIAN_OUT_OF_MEMORY, "%s: no memory for %lld elements", op, (long long)out->numel);
  return HAIAN_OK;
}

#define SPATIAL(AXES)                                                                  \
  static int32_t run_reflection_pad##AXES##d(const haian_args *args) {                 \
    return pad_spatial("reflection_pad" #AXES "d", args, MODE_REFLECT, AXES);          \
  }                                                                                    \
  static int32_t run_replication_pad##AXES##d(const haian_args *args) {                \
    return pad_spatial("replication_pad" #AXES "d", args, MODE_REPLICATE, AXES);       \
  }                                                                                    \
  static int32_t run_reflection_pad##AXES##d_backward(const haian_args *args) {        \
    return pad_back("reflection_pad" #AXES "d_backward", args, MODE_REFLECT, AXES);    \
  }                                                                                    \
  static int32_t run_replication_pad##AXES##d_backward(const haian_args *args) {       \
    return pad_back("replication_pad" #AXES "d_backward", args, MODE_REPLICATE, AXES); \
  }
SPATIAL(1)
SPATIAL(2)
SPATIAL(3)

#define MOVED (HAIAN_ANY | HAIAN_BIT(HAIAN_C64) | HAIAN_BIT(HAIAN_C128))
#define SPATIAL_ROWS(AXES)                                                                               \
  {"reflection_pad" #AXES "d", run_reflection_pad##AXES##d, MOVED, NULL},                                \
      {"replication_pad" #AXES "d", run_replication_pad##AXES##d, MOVED, NULL},                          \
      {"reflection_pad" #AXES "d_backward", run_reflection_pad##AXES##d_backward, HAIAN_FLOATS, NULL}, { \
    "replication_pad" #AXES "d_backward", run_replication_pad##AXES##d_backward, HAIAN_FLOATS, NULL      \
  }
const haian_kernel_entry HAIAN_TABLE(pad)[] = {
    {"constant_pad_nd", run_constant_pad_nd, HAIAN_ANY, NULL},
    {"pad", run_pad, HAIAN_ANY, NULL},
    SPATIAL_ROWS(1),
    SPATIAL_ROWS(2),
    SPATIAL_ROWS(3),
    {NULL, NULL, 0, NULL},
};
