/* The pointwise engine: runs a formula's tiles over operands of any strides, broadcast, on all threads.
 * The tiles come from kernels/ops/pointwise*.py (generate.py) and, for cast, from cast.h.  Not here: what operators mean.
 * Every result is cut into the same tiles for any number of threads, and an element's bits do not depend on its tile. */
#include <stdio.h>

#include "pointwise.h"
#include "simd.h"
#include "elementary.h"
#include "strided.h"

#pragma GCC diagnostic ignored "-Wtype-limits" /* uint8 formulas compare with 0 */

#define HAIAN_INDEPENDENT \
  _Pragma("GCC ivdep") /* out may be exactly an input, which is no dependence between elements */
#define LOW_TILE 512   /* elements of a tile of float16: 2 KB a float32 buffer */
#define TILE 1024      /* elements of a gathered tile: (4 + 1) x 8 KB at most, in L1 */
#define SPAN 16384     /* elements below which a second thread does not pay (about 5 us of add) */
/* Outputs of DRAM size are computed into a small buffer and stored past the caches.  Small tiles let those stores drain
 * while the next tile is computed, and its inputs are asked for STREAM_AHEAD tiles early: 4096 x 4096 float32 on a Xeon with
 * AVX-512 takes 7.7 ms for exp, 10.1 with tiles of 1024 and without asking. */
#define STREAM_TILE 256
#define STREAM_AHEAD 3

/* ---- what generated tiles call ---------------------------------------------------------------------------------- */
static inline double haian_attr_float(const haian_attr *a) { return a->kind == HAIAN_INT ? (double)a->i : a->f; }
static inline int64_t haian_attr_int(const haian_attr *a) { return a->kind == HAIAN_INT ? a->i : (int64_t)a->f; }
static inline int32_t haian_attr_truth(const haian_attr *a) { return a->kind == HAIAN_INT ? a->i != 0 : a->f != 0; }

HAIAN_INLINE float haian_far_sinf(float x) { return haian_absf(x) > HAIAN_TRIG_MAX ? sinf(x) : haian_sinf(x); }
HAIAN_INLINE float haian_far_cosf(float x) { return haian_absf(x) > HAIAN_TRIG_MAX ? cosf(x) : haian_cosf(x); }
HAIAN_INLINE float haian_far_tanf(float x) { return haian_absf(x) > HAIAN_TRIG_MAX ? tanf(x) : haian_tanf(x); }
HAIAN_INLINE float haian_far_fmodf(float x, float y) {
  return haian_absf(x) > HAIAN_FMOD_MAX * haian_absf(y) ? fmodf(x, y) : haian_fmodf(x, y);
}
HAIAN_INLINE float haian_far_remainderf(float x, float y) { return haian_moved_restf(haian_far_fmodf(x, y), y); }
HAIAN_INLINE float haian_far_floor_dividef(float x, float y) {
  return haian_floor_quotientf(haian_far_fmodf(x, y), x, y);
}

/* Integers wrap: the arithmetic is unsigned.  pow of a negative exponent is 0, or +-1 for a base of +-1 (aten).  Division
 * by 0 gives 0, as NumPy's; by -1 it is a negation, since the least integer's quotient would trap. */
#define HAIAN_INTEGER(kind, T, U)                                                                           \
  HAIAN_INLINE T haian_add_##kind(T x, T y) { return (T)((U)x + (U)y); }                                    \
  HAIAN_INLINE T haian_sub_##kind(T x, T y) { return (T)((U)x - (U)y); }                                    \
  HAIAN_INLINE T haian_mul_##kind(T x, T y) { return (T)((U)x * (U)y); }                                    \
  HAIAN_INLINE T haian_neg_##kind(T x) { return (T)(0 - (U)x); }                                            \
  HAIAN_INLINE T haian_not_##kind(T x) { return (T)~x; }                                                    \
  HAIAN_INLINE T haian_abs_##kind(T x) { return x < 0 ? (T)(0 - (U)x) : x; }                                \
  HAIAN_INLINE T haian_max_##kind(T x, T y) { return x > y ? x : y; }                                       \
  HAIAN_INLINE T haian_min_##kind(T x, T y) { return x < y ? x : y; }                                       \
  HAIAN_INLINE T haian_pow_##kind(T x, T y) {                                                               \
    U power = 1, base = (U)x;                                                                               \
    if (y < 0) return (T)(x == 1 ? 1 : x == (T) - 1 ? ((y & 1) ? -1 : 1) : 0);                              \
    for (U e = (U)y; e; e >>= 1, base *= base) power *= (e & 1) ? base : 1;                                 \
    return (T)power;                                                                                        \
  }                                                                                                         \
  HAIAN_INLINE T haian_floor_##kind(T x) { return x; }                                                      \
  HAIAN_INLINE T haian_ceil_##kind(T x) { return x; }                                                       \
  HAIAN_INLINE T haian_round_##kind(T x) { return x; }                                                      \
  HAIAN_INLINE T haian_trunc_##kind(T x) { return x; }                                                      \
  HAIAN_INLINE bool haian_signbit_##kind(T x) { return x < 0; }                                             \
  HAIAN_INLINE T haian_fmod_##kind(T x, T y) { return y == 0 || (y < 0 && y == (T) - 1) ? 0 : (T)(x % y); } \
  HAIAN_INLINE T haian_remainder_##kind(T x, T y) {                                                         \
    T r = haian_fmod_##kind(x, y);                                                                          \
    return (r != 0) & ((r < 0) != (y < 0)) ? (T)(r + y) : r;                                                \
  }                                                                                                         \
  HAIAN_INLINE T haian_floor_divide_##kind(T x, T y) {                                                      \
    if (y == 0) return 0;                                                                                   \
    if (y < 0 && y == (T) - 1) return (T)(0 - (U)x);                                                        \
    return (T)(x / y - ((x % y != 0) & ((x < 0) != (y < 0))));                                              \
  }
HAIAN_INTEGER(u8, uint8_t, uint32_t)
HAIAN_INTEGER(i8, int8_t, uint32_t)
HAIAN_INTEGER(i16, int16_t, uint32_t)
HAIAN_INTEGER(i32, int32_t, uint32_t)
HAIAN_INTEGER(i64, int64_t, uint64_t)

/* A tile of float16: float32 tiles between conversions.  boolean: bit i, input i is bool and goes as it is. */
static void haian_half_tile(haian_tile tile, int n_in, uint32_t boolean, int bool_result, const void *const *in,
                            void *out, int64_t n, const haian_attr *attr) {
  float wide[HAIAN_TILE_INPUTS][LOW_TILE], y[LOW_TILE];
  const void *operand[HAIAN_TILE_INPUTS];
  for (int64_t lo = 0; lo < n; lo += LOW_TILE) {
    int64_t count = n - lo < LOW_TILE ? n - lo : LOW_TILE;
    for (int k = 0; k < n_in; k++) {
      if (boolean >> k & 1) {
        operand[k] = (const uint8_t *)in[k] + lo;
      } else {
        HAIAN_SYM(f16_to_f32)((const uint16_t *)in[k] + lo, wide[k], count);
        operand[k] = wide[k];
      }
    }
    if (bool_result) {
      tile(operand, (uint8_t *)out + lo, count, attr);
    } else {
      tile(operand, y, count, attr);
      HAIAN_SYM(f32_to_f16)(y, (uint16_t *)out + lo, count);
    }
  }
}

/* ---- the work of one call ---------------------------------------------------------------------------------------- */
typedef struct work {
  const haian_pointwise *pw;
  haian_tile tile;
  const haian_attr *attr;
  int n_in, ndim; /* operands 0 .. n_in - 1 are inputs, n_in is the output */
  const char *data[HAIAN_TILE_INPUTS + 1];
  int64_t item[HAIAN_TILE_INPUTS + 1];
  int64_t shape[HAIAN_MAX_RANK];
  int64_t stride[HAIAN_TILE_INPUTS + 1][HAIAN_MAX_RANK]; /* bytes; a broadcast axis has 0 */
  int64_t n;                                             /* elements */
  int64_t width, height;                                 /* of a gathered tile: elements of axes `inner` and `second` */
  int inner, second;
  int64_t across, down; /* tiles along those axes */
  bool turned, stream;  /* turned: some input is contiguous along `second` rather than `inner` */
} work;

static inline void ask_ahead(const char *at, int64_t bytes) { /* may pass the operand's end: a request never faults */
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + STREAM_AHEAD * bytes + b);
}

/* Contiguous operands of one shape: [lo, hi) in units of TILE elements. */
static void run_span(void *ctx, int64_t lo, int64_t hi) {
  const work *w = ctx;
  const void *in[HAIAN_TILE_INPUTS];
  int64_t end = hi * TILE < w->n ? hi * TILE : w->n, item = w->item[w->n_in];
  char *out = (char *)w->data[w->n_in];
  if (!w->stream) {
    for (int k = 0; k < w->n_in; k++) in[k] = w->data[k] + lo * TILE * w->item[k];
    w->tile(in, out + lo * TILE * item, end - lo * TILE, w->attr);
    return;
  }
  _Alignas(64) char buffer[STREAM_TILE * 8];
  for (int64_t at = lo * TILE; at < end; at += STREAM_TILE) {
    int64_t count = end - at < STREAM_TILE ? end - at : STREAM_TILE;
    for (int k = 0; k < w->n_in; k++) {
      in[k] = w->data[k] + at * w->item[k];
      ask_ahead(in[k], STREAM_TILE * w->item[k]);
    }
    w->tile(in, buffer, count, w->attr);
    haian_copy_run(out + at * item, buffer, count * item, true);
  }
  haian_stream_fence();
}

/* to[r][i] = from[r * down + i * right] (bytes), r < rows, i < columns, to compact: the loop that reads neighbours is inside. */
#define GATHER(T)                                                                                                \
  static void gather_##T(T *to, const char *from, int64_t right, int64_t down, int64_t rows, int64_t columns) {  \
    int64_t a = right < 0 ? -right : right, b = down < 0 ? -down : down;                                         \
    if (rows == 1 || a <= b || !b) {                                                                             \
      for (int64_t r = 0; r < rows; r++)                                                                         \
        for (int64_t i = 0; i < columns; i++) to[r * columns + i] = *(const T *)(from + r * down + i * right);   \
    } else {                                                                                                     \
      for (int64_t i = 0; i < columns; i++) {                                                                    \
        __builtin_prefetch(from + i * right + 2 * rows * down); /* the tile after the next one below */          \
        for (int64_t r = 0; r < rows; r++) to[r * columns + i] = *(const T *)(from + r * down + i * right);      \
      }                                                                                                          \
    }                                                                                                            \
  }                                                                                                              \
  static void scatter_##T(char *to, const T *from, int64_t right, int64_t down, int64_t rows, int64_t columns) { \
    for (int64_t r = 0; r < rows; r++)                                                                           \
      for (int64_t i = 0; i < columns; i++) *(T *)(to + r * down + i * right) = from[r * columns + i];           \
  }
GATHER(uint8_t)
GATHER(uint16_t)
GATHER(uint32_t)
GATHER(uint64_t)

static void gather(int64_t item, void *to, const char *from, int64_t right, int64_t down, int64_t rows,
                   int64_t columns) {
  if (item == 4) gather_uint32_t(to, from, right, down, rows, columns);
  else if (item == 2) gather_uint16_t(to, from, right, down, rows, columns);
  else if (item == 1) gather_uint8_t(to, from, right, down, rows, columns);
  else gather_uint64_t(to, from, right, down, rows, columns);
}
static void scatter(int64_t item, char *to, const void *from, int64_t right, int64_t down, int64_t rows,
                    int64_t columns) {
  if (item == 4) scatter_uint32_t(to, from, right, down, rows, columns);
  else if (item == 2) scatter_uint16_t(to, from, right, down, rows, columns);
  else if (item == 1) scatter_uint8_t(to, from, right, down, rows, columns);
  else scatter_uint64_t(to, from, right, down, rows, columns);
}

/* Tiles [lo, hi) of any strides.  An operand that is compact in the tile is used where it lies, the others are gathered. */
static void run_tiles(void *ctx, int64_t lo, int64_t hi) {
  const work *w = ctx;
  _Alignas(64) char buffer[HAIAN_TILE_INPUTS + 1][TILE * 8];
  const char *held[HAIAN_TILE_INPUTS] = {NULL}; /* what lies in the buffer: a broadcast operand is gathered once */
  int64_t held_rows = 0, held_columns = 0;
  for (int64_t number = lo; number < hi; number++) {
    int64_t rest = number, place[HAIAN_MAX_RANK] = {0}, a, b;
    if (w->turned) b = rest % w->down, rest /= w->down, a = rest % w->across, rest /= w->across;
    else a = rest % w->across, rest /= w->across, b = rest % w->down, rest /= w->down;
    place[w->inner] = a * w->width;
    if (w->second >= 0) place[w->second] = b * w->height;
    for (int d = w->ndim - 1; d >= 0; d--)
      if (d != w->inner && d != w->second) place[d] = rest % w->shape[d], rest /= w->shape[d];
    int64_t columns = w->shape[w->inner] - place[w->inner],
            rows = w->second < 0 ? 1 : w->shape[w->second] - place[w->second];
    if (columns > w->width) columns = w->width;
    if (rows > w->height) rows = w->height;

    const char *base[HAIAN_TILE_INPUTS + 1] = {NULL}, *from[HAIAN_TILE_INPUTS + 1] = {NULL};
    int64_t step[HAIAN_TILE_INPUTS + 1]; /* bytes from a row to the next one in `from` */
    bool whole = true;                   /* every operand compact: one call for all rows */
    for (int k = 0; k <= w->n_in; k++) {
      base[k] = w->data[k];
      for (int d = 0; d < w->ndim; d++) base[k] += place[d] * w->stride[k][d];
      int64_t right = w->stride[k][w->inner], down = w->second < 0 ? 0 : w->stride[k][w->second];
      bool unit = right == w->item[k] || columns == 1, compact = unit && (rows == 1 || down == columns * w->item[k]);
      if (compact || (unit && columns >= 64)) {
        from[k] = base[k];
        step[k] = down;
        whole &= compact;
      } else {
        from[k] = buffer[k];
        step[k] = columns * w->item[k];
        if (k == w->n_in) continue;
        if (held[k] != base[k] || held_rows != rows || held_columns != columns)
          gather(w->item[k], buffer[k], base[k], right, down, rows, columns);
        held[k] = base[k];
      }
    }
    held_rows = rows, held_columns = columns;
    const int out = w->n_in;
    bool stream = w->stream && from[out] == base[out];
    int64_t count = whole ? rows * columns : columns;
    for (int64_t r = 0; r < (whole ? 1 : rows); r++) {
      const void *in[HAIAN_TILE_INPUTS];
      for (int k = 0; k < out; k++) {
        in[k] = from[k] + r * step[k];
        if (stream && from[k] == base[k]) ask_ahead(in[k], columns * w->item[k]);
      }
      char *y = (char *)from[out] + r * step[out];
      w->tile(in, stream ? buffer[out] : y, count, w->attr);
      if (stream) haian_copy_run(y, buffer[out], count * w->item[out], true);
    }
    if (from[w->n_in] != base[w->n_in])
      scatter(w->item[w->n_in], (char *)base[w->n_in], from[w->n_in], w->stride[w->n_in][w->inner],
              w->second < 0 ? 0 : w->stride[w->n_in][w->second], rows, columns);
  }
  if (w->stream) haian_stream_fence();
}

static int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }

static void swap_axes(work *w, int a, int b) {
  int64_t s = w->shape[a];
  w->shape[a] = w->shape[b], w->shape[b] = s;
  for (int k = 0; k <= w->n_in; k++) {
    s = w->stride[k][a];
    w->stride[k][a] = w->stride[k][b], w->stride[k][b] = s;
  }
}

/* Orders axes by the output's strides, largest first, and merges those that every operand steps through evenly. */
static void arrange(work *w) {
  const int out = w->n_in;
  for (int d = 0; d < w->ndim; d++) {
    if (w->stride[out][d] >= 0) continue;
    for (int k = 0; k <= w->n_in; k++)
      w->data[k] += (w->shape[d] - 1) * w->stride[k][d], w->stride[k][d] = -w->stride[k][d];
  }
  for (int d = 1; d < w->ndim; d++)
    for (int at = d; at > 0 && w->stride[out][at - 1] < w->stride[out][at]; at--) swap_axes(w, at - 1, at);
  int n = 0;
  for (int d = 1; d < w->ndim; d++) {
    bool even = true;
    for (int k = 0; k <= w->n_in; k++) even &= w->stride[k][n] == w->stride[k][d] * w->shape[d];
    if (even) w->shape[n] *= w->shape[d];
    else w->shape[++n] = w->shape[d];
    for (int k = 0; k <= w->n_in; k++) w->stride[k][n] = w->stride[k][d];
  }
  w->ndim = n + 1;
}

/* Chooses the two axes of a tile and its size. */
static void choose_tiles(work *w) {
  w->inner = w->ndim - 1;
  w->second = w->ndim - 2;
  for (int k = 0; k < w->n_in && !w->turned && w->ndim > 1; k++) {
    if (magnitude(w->stride[k][w->inner]) <= w->item[k]) continue;
    for (int d = 0; d < w->inner; d++)
      if (w->shape[d] > 1 && magnitude(w->stride[k][d]) == w->item[k]) w->second = d, w->turned = true;
  }
  int64_t n = w->shape[w->inner], rows = w->second < 0 ? 1 : w->shape[w->second];
  /* turned: 16 float32 of a row make a cache line, so a tile 16 high reads whole lines of the turned input */
  w->height = w->turned ? 16 : 1;
  int64_t widest = w->turned ? TILE / 16 : w->stream ? STREAM_TILE : TILE;
  w->width = n < widest ? n : widest;
  if (w->width * 2 <= TILE) w->height = TILE / w->width;
  if (w->height > rows) w->height = rows;
  w->across = (n + w->width - 1) / w->width;
  w->down = (rows + w->height - 1) / w->height;
}

static int32_t refuse_shapes(const char *name, const haian_pointwise *pw, const haian_args *args) {
  char text[400] = "";
  size_t used = 0;
  for (int k = 0; k < args->n_in && used < sizeof text; k++)
    used += (size_t)snprintf(text + used, sizeof text - used, "%s%s is %s", k ? ", " : "", pw->input[k],
                             HAIAN_SHAPE_OF(args->in[k]));
  return haian_fail(HAIAN_SHAPE, "%s: %s; the output is %s; shapes must broadcast to the output's", name, text,
                    HAIAN_SHAPE_OF(args->out[0]));
}

static int32_t check_numbers(const haian_pointwise *pw, int32_t dtype, const haian_attr *attr) {
  static const int64_t low[] = {0, INT8_MIN, INT16_MIN, INT32_MIN, INT64_MIN},
                       high[] = {UINT8_MAX, INT8_MAX, INT16_MAX, INT32_MAX, INT64_MAX};
  int row = dtype == HAIAN_U8 ? 0 : dtype - HAIAN_I8 + 1;
  for (int i = 0; i < pw->n_attr; i++) {
    if (!(pw->numbers >> i & 1) || attr[i].kind == HAIAN_NONE) continue;
    bool fits = attr[i].kind == HAIAN_INT ? attr[i].i >= low[row] && attr[i].i <= high[row]
                                          : attr[i].f >= (double)low[row] && attr[i].f < (double)high[row] + 1.0 &&
                                                attr[i].f == (double)(int64_t)attr[i].f;
    HAIAN_REQUIRE(fits, HAIAN_INVALID_ARGUMENT,
                  "%s: %s is %g and the tensors are %s; needs an integer from %lld to %lld; cast the tensors to a "
                  "floating dtype first",
                  pw->name, pw->attr[i], haian_attr_float(attr + i), haian_dtype_name(dtype), (long long)low[row],
                  (long long)high[row]);
  }
  return HAIAN_OK;
}

/* Checks dtypes; *dtype becomes the one that chooses the tile. */
static int32_t check_dtypes(const haian_pointwise *pw, const haian_args *args, int32_t *dtype) {
  int first = -1;
  for (int k = 0; k < args->n_in; k++) {
    int32_t have = args->in[k]->dtype;
    if (pw->boolean >> k & 1) {
      HAIAN_REQUIRE(have == HAIAN_BOOL, HAIAN_DTYPE, "%s: %s is %s; needs bool; compare it with something first",
                    pw->name, pw->input[k], haian_dtype_name(have));
      continue;
    }
    if (first < 0) first = k;
    HAIAN_REQUIRE(have == args->in[first]->dtype, HAIAN_DTYPE, "%s: %s is %s, %s is %s; cast one first", pw->name,
                  pw->input[first], haian_dtype_name(args->in[first]->dtype), pw->input[k], haian_dtype_name(have));
  }
  *dtype = args->in[first]->dtype;
  HAIAN_REQUIRE(*dtype > 0 && *dtype < HAIAN_DTYPE_END && pw->tile[*dtype], HAIAN_DTYPE,
                "%s: %s is %s, which it does not take; cast it first", pw->name, pw->input[first],
                haian_dtype_name(*dtype));
  int32_t want = pw->result == HAIAN_RESULT_BOOL   ? HAIAN_BOOL
                 : pw->result == HAIAN_RESULT_ATTR ? (int32_t)args->attr[0].i
                                                   : *dtype;
  HAIAN_REQUIRE(args->out[0]->dtype == want, HAIAN_DTYPE, "%s: the output is %s; needs %s", pw->name,
                haian_dtype_name(args->out[0]->dtype), haian_dtype_name(want));
  return HAIAN_OK;
}

/* Runs a pointwise operator; the haian_kernel of each is a call of this with its descriptor.
 * Returns HAIAN_INVALID_ARGUMENT, HAIAN_DTYPE or HAIAN_SHAPE before anything is written. */
static int32_t haian_pointwise_run(const haian_pointwise *pw, const haian_args *args) {
  HAIAN_REQUIRE(args->n_in == pw->n_in && args->n_out == 1 && args->n_attr == pw->n_attr, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs %d, 1, %d", pw->name, args->n_in, args->n_out,
                args->n_attr, pw->n_in, pw->n_attr);
  for (int k = 0; k < args->n_in; k++)
    HAIAN_REQUIRE(args->in[k], HAIAN_INVALID_ARGUMENT, "%s: %s was not given; it is not optional", pw->name,
                  pw->input[k]);
  int32_t dtype = 0, status = check_dtypes(pw, args, &dtype);
  if (status) return status;
  if (pw->numbers && dtype >= HAIAN_U8 && dtype <= HAIAN_I64 && (status = check_numbers(pw, dtype, args->attr)))
    return status;

  haian_tensor *out = args->out[0];
  work w = {.pw = pw, .tile = pw->tile[dtype], .attr = args->attr, .n_in = pw->n_in, .n = out->numel};
  bool flat = haian_is_contiguous(out), aliased = false;
  for (int k = 0; k < w.n_in; k++)
    flat = flat && haian_is_contiguous(args->in[k]) && haian_same_shape(args->in[k], out);
  for (int k = 0; k <= w.n_in; k++) {
    const haian_tensor *t = k < w.n_in ? args->in[k] : out;
    w.data[k] = t->data;
    w.item[k] = haian_itemsize(t->dtype);
    aliased |= k < w.n_in && t->data == out->data;
  }
  if (flat) {
    if (w.n <= SPAN) {
      if (w.n) w.tile((const void *const *)w.data, out->data, w.n, args->attr);
      return HAIAN_OK;
    }
    w.stream = !aliased && w.n * w.item[w.n_in] >= HAIAN_STREAM_BYTES;
    haian_parallel_for((w.n + TILE - 1) / TILE, SPAN / TILE, run_span, &w);
    return HAIAN_OK;
  }

  /* axes of size 1 are dropped; an input's axis of size 1 steps by 0 */
  int64_t sizes[HAIAN_MAX_RANK];
  for (int d = 0; d < out->ndim; d++) sizes[d] = 1;
  for (int k = 0; k < w.n_in; k++) {
    const haian_tensor *t = args->in[k];
    if (t->ndim > out->ndim) return refuse_shapes(pw->name, pw, args);
    for (int d = 0; d < t->ndim; d++) {
      int to = out->ndim - t->ndim + d;
      if (t->shape[d] == 1) continue;
      if (sizes[to] != 1 && sizes[to] != t->shape[d]) return refuse_shapes(pw->name, pw, args);
      sizes[to] = t->shape[d];
    }
  }
  for (int d = 0; d < out->ndim; d++) {
    if (sizes[d] != out->shape[d]) return refuse_shapes(pw->name, pw, args);
    if (sizes[d] == 1) continue;
    w.shape[w.ndim] = sizes[d];
    for (int k = 0; k <= w.n_in; k++) {
      const haian_tensor *t = k < w.n_in ? args->in[k] : out;
      int from = d - out->ndim + t->ndim;
      w.stride[k][w.ndim] = from >= 0 && t->shape[from] != 1 ? t->stride[from] * w.item[k] : 0;
    }
    w.ndim++;
  }
  if (w.n == 0) return HAIAN_OK;
  if (w.ndim == 0) {
    w.tile((const void *const *)w.data, out->data, 1, args->attr);
    return HAIAN_OK;
  }
  w.stream = !aliased && w.n * w.item[w.n_in] >= HAIAN_STREAM_BYTES;
  arrange(&w);
  choose_tiles(&w);
  int64_t tiles = w.across * w.down;
  for (int d = 0; d < w.ndim; d++)
    if (d != w.inner && d != w.second) tiles *= w.shape[d];
  int64_t grain = SPAN / (w.width * w.height);
  if (w.n <= SPAN) run_tiles(&w, 0, tiles);
  else haian_parallel_for(tiles, grain > 0 ? grain : 1, run_tiles, &w);
  return HAIAN_OK;
}

#include "pointwise_tiles.inc"
#include "cast.h"
#include "gated.h"
#include "program_run.h"

const haian_kernel_entry HAIAN_TABLE(user)[] = {PROGRAM_EACH(PROGRAM_ROW){NULL, NULL, 0, NULL}};
const haian_kernel_entry HAIAN_TABLE(gated)[] = {
    HAIAN_GATE_ROWS(swiglu), HAIAN_GATE_ROWS(geglu), HAIAN_GATE_ROWS(reglu), {NULL, NULL, 0, NULL}};
const haian_kernel_entry HAIAN_TABLE(pointwise)[] = {
    HAIAN_POINTWISE_ROWS{"cast", run_cast, HAIAN_CAST_DTYPES, &pointwise_cast}, {NULL, NULL, 0, NULL}};
