/* Movement of elements: copy between any strides, cat, tril, triu; and the fills arange and full.
 * Not here: casts (pointwise) and lookups by index (index.c). */
#include "transpose.h"
#include <math.h>

/* ---- copies by pattern ------------------------------------------------------------------------------------------- */
/* rows x n elements: y[j * y_row + i * y_step] = x[j * x_row + i * x_step]. */
#define DEFINE_PLANE(T)                                                                                         \
  static void plane_##T(void *y_, int64_t y_row, int64_t y_step, const void *x_, int64_t x_row, int64_t x_step, \
                        int64_t rows, int64_t n) {                                                              \
    for (int64_t j = 0; j < rows; j++) {                                                                        \
      T *restrict y = (T *)y_ + j * y_row;                                                                      \
      const T *restrict x = (const T *)x_ + j * x_row;                                                          \
      if (y_step != 1) {                                                                                        \
        for (int64_t i = 0; i < n; i++) y[i * y_step] = x[i * x_step];                                          \
      } else if (x_step == 1) {                                                                                 \
        for (int64_t i = 0; i < n; i++) y[i] = x[i];                                                            \
      } else if (x_step == 0) {                                                                                 \
        for (int64_t i = 0; i < n; i++) y[i] = x[0];                                                            \
      } else if (x_step == -1) {                                                                                \
        for (int64_t i = 0; i < n; i++) y[i] = x[-i];                                                           \
      } else {                                                                                                  \
        for (int64_t i = 0; i < n; i++) y[i] = x[i * x_step];                                                   \
      }                                                                                                         \
    }                                                                                                           \
  }
DEFINE_PLANE(bits1)
DEFINE_PLANE(bits2)
DEFINE_PLANE(bits4)
DEFINE_PLANE(bits8)
DEFINE_PLANE(bits16)

/* Rows of at most 64 bytes, contiguous on both sides: first and last vector of each row, overlapping in the middle. */
#define COPY_ENDS(size)                                        \
  for (int64_t j = 0; j < rows; j++, y += y_row, x += x_row) { \
    char head[size], tail[size];                               \
    memcpy(head, x, size);                                     \
    memcpy(tail, x + bytes - size, size);                      \
    memcpy(y, head, size);                                     \
    memcpy(y + bytes - size, tail, size);                      \
  }
static void plane_short(char *y, int64_t y_row, const char *x, int64_t x_row, int64_t rows, int64_t bytes) {
  if (bytes >= 32) COPY_ENDS(32)
  else if (bytes >= 16) COPY_ENDS(16)
  else if (bytes >= 8) COPY_ENDS(8)
  else if (bytes >= 4) COPY_ENDS(4)
  else if (bytes >= 2) COPY_ENDS(2)
  else
    for (int64_t j = 0; j < rows; j++) y[j * y_row] = x[j * x_row];
}

typedef void (*plane_copy)(void *, int64_t, int64_t, const void *, int64_t, int64_t, int64_t, int64_t);
typedef void (*plane_transpose)(void *, int64_t, const void *, int64_t, int64_t, int64_t, bool);

static plane_copy plane_of(int64_t item) {
  return item == 1   ? plane_bits1
         : item == 2 ? plane_bits2
         : item == 4 ? plane_bits4
         : item == 8 ? plane_bits8
                     : plane_bits16;
}
static plane_transpose transpose_of(int64_t item) {
  return item == 1 ? transpose_bits1 : item == 2 ? transpose_bits2 : item == 4 ? transpose_bits4 : transpose_bits8;
}

/* Fills n elements with one value. */
static void fill_run(char *y, const char *value, int64_t n, int64_t item, bool stream) {
  _Alignas(64) char line[64];
  for (int64_t i = 0; i < 64; i += item) memcpy(line + i, value, (size_t)item);
  int64_t bytes = n * item, i = 0;
  if ((uintptr_t)y % (uintptr_t)item) { /* a complex128 at 8 modulo 16: the pattern would not line up */
    for (; i < bytes; i += item) memcpy(y + i, value, (size_t)item);
    return;
  }
  i = (int64_t)(-(uintptr_t)y & 63u);
  if (i > bytes) i = bytes;
  memcpy(y, line, (size_t)i);
#if defined(HAIAN_LINE)
  haian_line lines[64 / HAIAN_LINE];
  memcpy(lines, line, 64);
  for (; stream && i + 64 <= bytes; i += 64)
    for (int k = 0; k < 64 / HAIAN_LINE; k++) haian_line_stream(y + i + k * HAIAN_LINE, lines[k]);
#endif
  (void)stream;
  for (; i + 64 <= bytes; i += 64) memcpy(y + i, line, 64);
  memcpy(y + i, line, (size_t)(bytes - i));
}

static void copy_run(char *y, int64_t y_step, const char *x, int64_t x_step, int64_t n, int64_t item, bool stream) {
  if (y_step == 1 && x_step == 1) {
    haian_copy_run(y, x, n * item, stream);
  } else if (y_step == 1 && x_step == 0) {
    fill_run(y, x, n, item, stream);
  } else if (y_step == 1 && stream) {
    _Alignas(64) char buffer[4096];
    int64_t part = (int64_t)sizeof buffer / item;
    for (int64_t i = 0; i < n; i += part) {
      int64_t m = n - i < part ? n - i : part;
      plane_of(item)(buffer, 0, 1, x + i * x_step * item, 0, x_step, 1, m);
      haian_copy_run(y + i * item, buffer, m * item, true);
    }
  } else {
    plane_of(item)(y, 0, y_step, x, 0, x_step, 1, n);
  }
}

/* ---- the copy engine --------------------------------------------------------------------------------------------- */
#define BLOCK_A 512 /* of a transposed plane: rows of x and columns of x that one unit of work takes */
#define BLOCK_B 1024

typedef struct copy_job {
  haian_walk walk; /* at least two axes; tensor 0 = y, tensor 1 = x */
  char *y;
  const char *x;
  int64_t item, pieces, piece; /* of the innermost axis; or blocks along a and along b */
  bool stream;
} copy_job;

/* Units: rows of the innermost axis. */
static void copy_rows(void *ctx, int64_t lo, int64_t hi) {
  const copy_job *job = ctx;
  const haian_walk *w = &job->walk;
  const int64_t *inner = w->stride[w->ndim - 1], *row = w->stride[w->ndim - 2];
  int64_t n = w->shape[w->ndim - 1], rows = w->shape[w->ndim - 2], at = lo % rows;
  bool contiguous = inner[0] == 1 && inner[1] == 1, brief = n * job->item <= 64;
  bool runs = !brief && (contiguous || (inner[0] == 1 && (inner[1] == 0 || job->stream)));
  haian_place place;
  haian_place_seek(&place, w, w->ndim - 2, lo / rows);
  while (lo < hi) {
    int64_t take = rows - at < hi - lo ? rows - at : hi - lo;
    char *y = job->y + (place.offset[0] + at * row[0]) * job->item;
    const char *x = job->x + (place.offset[1] + at * row[1]) * job->item;
    if (contiguous && brief) {
      plane_short(y, row[0] * job->item, x, row[1] * job->item, take, n * job->item);
    } else if (runs) {
      for (int64_t j = 0; j < take; j++)
        copy_run(y + j * row[0] * job->item, 1, x + j * row[1] * job->item, inner[1], n, job->item, job->stream);
    } else {
      plane_of(job->item)(y, row[0], inner[0], x, row[1], inner[1], take, n);
    }
    lo += take;
    at = 0;
    haian_place_next(&place, w, w->ndim - 2);
  }
  if (job->stream) haian_stream_fence();
}

/* Units: pieces of long rows. */
static void copy_pieces(void *ctx, int64_t lo, int64_t hi) {
  const copy_job *job = ctx;
  const haian_walk *w = &job->walk;
  const int64_t *inner = w->stride[w->ndim - 1];
  for (; lo < hi; lo++) {
    haian_place place;
    haian_place_seek(&place, w, w->ndim - 1, lo / job->pieces);
    int64_t first = lo % job->pieces * job->piece, n = w->shape[w->ndim - 1] - first;
    copy_run(job->y + (place.offset[0] + first * inner[0]) * job->item, inner[0],
             job->x + (place.offset[1] + first * inner[1]) * job->item, inner[1], n < job->piece ? n : job->piece,
             job->item, job->stream);
  }
  if (job->stream) haian_stream_fence();
}

/* Units: blocks of planes whose last axis is contiguous in y (a) and whose last but one is contiguous in x (b). */
static void copy_planes(void *ctx, int64_t lo, int64_t hi) {
  const copy_job *job = ctx;
  const haian_walk *w = &job->walk;
  int64_t na = w->shape[w->ndim - 1], nb = w->shape[w->ndim - 2];
  int64_t y_row = w->stride[w->ndim - 2][0], x_row = w->stride[w->ndim - 1][1];
  int64_t across = (nb + BLOCK_B - 1) / BLOCK_B, blocks = (na + BLOCK_A - 1) / BLOCK_A * across;
  for (; lo < hi; lo++) {
    haian_place place;
    haian_place_seek(&place, w, w->ndim - 2, lo / blocks);
    int64_t a = lo % blocks / across * BLOCK_A, b = lo % across * BLOCK_B;
    int64_t la = na - a < BLOCK_A ? na - a : BLOCK_A, lb = nb - b < BLOCK_B ? nb - b : BLOCK_B;
    transpose_of(job->item)(job->y + (place.offset[0] + b * y_row + a) * job->item, y_row,
                            job->x + (place.offset[1] + a * x_row + b) * job->item, x_row, la, lb, job->stream);
  }
  if (job->stream) haian_stream_fence();
}

static int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }

/* The axis that is contiguous in x and long enough for tiles, or -1. */
static int transposed_axis(const haian_walk *w, int64_t item) {
  int last = w->ndim - 1;
  if (item > 8 || w->stride[last][0] != 1 || w->stride[last][1] == 1 || w->stride[last][1] == 0) return -1;
  for (int d = 0; d < last; d++)
    if (w->stride[d][1] == 1 && (w->shape[d] >= 8 || w->shape[last] >= 8)) return d;
  return -1;
}

void HAIAN_SYM(copy_walk)(haian_walk walk, char *y, const char *x, int64_t item) {
  if (haian_walk_empty(&walk)) return;
  int64_t offset[HAIAN_WALK_TENSORS] = {0};
  walk.tensors = 2;
  haian_walk_sort(&walk, offset);
  haian_walk_merge(&walk);
  while (walk.ndim < 2) { /* the loops below expect two axes; size 1 in front changes nothing */
    memmove(walk.shape + 1, walk.shape, sizeof walk.shape - sizeof walk.shape[0]);
    memmove(walk.stride + 1, walk.stride, sizeof walk.stride - sizeof walk.stride[0]);
    walk.shape[0] = 1;
    memset(walk.stride[0], 0, sizeof walk.stride[0]);
    walk.ndim++;
  }
  if (walk.shape[walk.ndim - 1] == 1) walk.stride[walk.ndim - 1][0] = walk.stride[walk.ndim - 1][1] = 1;
  copy_job job = {.walk = walk, .y = y + offset[0] * item, .x = x + offset[1] * item, .item = item};
  haian_walk *w = &job.walk;
  int64_t rows = haian_walk_rows(w, w->ndim - 1), n = w->shape[w->ndim - 1], bytes = rows * n * item;
  job.stream = bytes >= HAIAN_STREAM_BYTES;
  int b_axis = transposed_axis(w, item);
  if (b_axis >= 0) {
    job.stream = bytes >= STREAM_PLANES_BYTES;
    int64_t size = w->shape[b_axis], stride[HAIAN_WALK_TENSORS];
    memcpy(stride, w->stride[b_axis], sizeof stride);
    for (int d = b_axis; d < w->ndim - 2; d++) { /* the other outer axes keep their order */
      w->shape[d] = w->shape[d + 1];
      memcpy(w->stride[d], w->stride[d + 1], sizeof stride);
    }
    w->shape[w->ndim - 2] = size;
    memcpy(w->stride[w->ndim - 2], stride, sizeof stride);
    int64_t units = haian_walk_rows(w, w->ndim - 2) * ((n + BLOCK_A - 1) / BLOCK_A) * ((size + BLOCK_B - 1) / BLOCK_B);
    haian_parallel_for(units, at_least_one(HAIAN_GRAIN_BYTES * units / bytes), copy_planes, &job);
  } else if (n * item > HAIAN_GRAIN_BYTES) {
    job.piece = HAIAN_GRAIN_BYTES / item;
    job.pieces = (n + job.piece - 1) / job.piece;
    haian_parallel_for(rows * job.pieces, 1, copy_pieces, &job);
  } else {
    haian_parallel_for(rows, HAIAN_GRAIN_BYTES / (n * item), copy_rows, &job);
  }
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

/* ---- operators --------------------------------------------------------------------------------------------------- */
static int32_t need_like(const char *op, const haian_tensor *x, const haian_tensor *out) {
  HAIAN_REQUIRE(out->dtype == x->dtype, HAIAN_DTYPE, "%s: out is %s and x is %s; they must be equal; cast first", op,
                haian_dtype_name(out->dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(haian_same_shape(x, out), HAIAN_SHAPE, "%s: out is %s and x is %s; they must be equal", op,
                HAIAN_SHAPE_OF(out), HAIAN_SHAPE_OF(x));
  return HAIAN_OK;
}

static int32_t run_copy(const haian_args *args) {
  HAIAN_REQUIRE(args->n_in == 1 && args->n_out == 1 && args->in[0], HAIAN_INVALID_ARGUMENT,
                "copy: %d inputs and %d outputs; needs x and out", args->n_in, args->n_out);
  const haian_tensor *x = args->in[0], *out = args->out[0];
  int32_t status = need_like("copy", x, out);
  if (status != HAIAN_OK || out->numel == 0) return status;
  int64_t item = haian_itemsize(x->dtype);
  if (haian_is_contiguous(x) && haian_is_contiguous(out) && x->numel * item <= HAIAN_GRAIN_BYTES)
    memcpy(out->data, x->data, (size_t)(x->numel * item));
  else HAIAN_SYM(copy_walk)(walk_pair(out, x), out->data, x->data, item);
  return HAIAN_OK;
}

/* Everything contiguous: rows of out, each made of one piece from every tensor. */
typedef struct cat_job {
  const haian_args *args;
  int64_t rows, row_bytes, item;
} cat_job;

static void cat_rows(void *ctx, int64_t lo, int64_t hi) {
  const cat_job *job = ctx;
  bool stream = job->rows * job->row_bytes >= HAIAN_STREAM_BYTES;
  int64_t step = at_least_one((16 << 10) / job->row_bytes); /* rows of out that stay in the first cache */
  for (; lo < hi; lo += step) {
    int64_t rows = hi - lo < step ? hi - lo : step;
    char *y = (char *)job->args->out[0]->data + lo * job->row_bytes;
    for (int i = 0; i < job->args->n_in; i++) {
      const haian_tensor *t = job->args->in[i];
      int64_t bytes = t->numel / job->rows * job->item;
      const char *x = (const char *)t->data + lo * bytes;
      if (bytes == 0) continue;
      if (bytes <= 64) plane_short(y, job->row_bytes, x, bytes, rows, bytes);
      else
        for (int64_t j = 0; j < rows; j++)
          haian_copy_run(y + j * job->row_bytes, x + j * bytes, bytes, stream && bytes >= 1024);
      y += bytes;
    }
  }
  if (stream) haian_stream_fence();
}

static int32_t run_cat(const haian_args *args) {
  HAIAN_REQUIRE(args->n_in >= 1 && args->n_out == 1 && args->n_attr == 1 && args->attr[0].kind == HAIAN_INT,
                HAIAN_INVALID_ARGUMENT,
                "cat: %d inputs, %d outputs, %d attributes; needs at least one tensor, out, "
                "dim",
                args->n_in, args->n_out, args->n_attr);
  const haian_tensor *out = args->out[0];
  int64_t dim = args->attr[0].i, length = 0;
  HAIAN_REQUIRE(out->ndim >= 1, HAIAN_SHAPE, "cat: out has no axis; needs tensors of one axis or more");
  HAIAN_REQUIRE(dim >= -out->ndim && dim < out->ndim, HAIAN_SHAPE,
                "cat: dim %lld is outside a tensor of %d axes; "
                "needs %d <= dim < %d",
                (long long)dim, out->ndim, -out->ndim, out->ndim);
  if (dim < 0) dim += out->ndim;
  for (int i = 0; i < args->n_in; i++) {
    const haian_tensor *x = args->in[i];
    HAIAN_REQUIRE(x, HAIAN_INVALID_ARGUMENT, "cat: tensor %d is missing; needs %d tensors", i, args->n_in);
    HAIAN_REQUIRE(x->dtype == out->dtype, HAIAN_DTYPE,
                  "cat: tensor %d is %s and out is %s; they must be equal; cast "
                  "first",
                  i, haian_dtype_name(x->dtype), haian_dtype_name(out->dtype));
    if (x->ndim == 1 && x->numel == 0) continue; /* as in aten: an empty vector joins anything and adds nothing */
    HAIAN_REQUIRE(x->ndim == out->ndim, HAIAN_SHAPE, "cat: tensor %d has %d axes and out has %d; they must be equal", i,
                  x->ndim, out->ndim);
    for (int d = 0; d < out->ndim; d++)
      HAIAN_REQUIRE(d == dim || x->shape[d] == out->shape[d], HAIAN_SHAPE,
                    "cat: tensor %d has size %lld on axis %d "
                    "and out has %lld; sizes differ only on dim %lld",
                    i, (long long)x->shape[d], d, (long long)out->shape[d], (long long)dim);
    length += x->shape[dim];
  }
  HAIAN_REQUIRE(length == out->shape[dim], HAIAN_SHAPE,
                "cat: the tensors have %lld elements along dim %lld and out "
                "has %lld; they must be equal",
                (long long)length, (long long)dim, (long long)out->shape[dim]);
  int64_t item = haian_itemsize(out->dtype), at = 0;
  if (out->numel == 0) return HAIAN_OK;
  bool contiguous = haian_is_contiguous(out);
  for (int i = 0; i < args->n_in; i++) contiguous &= haian_is_contiguous(args->in[i]) || args->in[i]->numel == 0;
  if (contiguous) {
    int64_t rows = 1;
    for (int d = 0; d < dim; d++) rows *= out->shape[d];
    cat_job job = {.args = args, .rows = rows, .row_bytes = out->numel / rows * item, .item = item};
    if (rows > 1 && job.row_bytes <= HAIAN_GRAIN_BYTES) {
      haian_parallel_for(rows, at_least_one(HAIAN_GRAIN_BYTES / job.row_bytes), cat_rows, &job);
      return HAIAN_OK;
    }
  }
  for (int i = 0; i < args->n_in; i++) {
    const haian_tensor *x = args->in[i];
    if (x->numel == 0) {
      at += x->ndim == out->ndim ? x->shape[dim] : 0;
      continue;
    }
    haian_walk w = walk_pair(x, x);
    for (int d = 0; d < out->ndim; d++) w.stride[d][0] = out->stride[d];
    HAIAN_SYM(copy_walk)(w, (char *)out->data + at * out->stride[dim] * item, x->data, item);
    at += x->shape[dim];
  }
  return HAIAN_OK;
}

/* One plane's rows: columns [first, last) are kept, the others become zero. */
typedef struct triangle_job {
  haian_walk walk; /* all axes but the last; tensor 0 = out, tensor 1 = x */
  char *y;
  const char *x; /* NULL: the elements to keep are in place already */
  int64_t item, columns, y_step, diagonal;
  bool upper, stream;
} triangle_job;

static void zero_run(char *y, int64_t step, int64_t n, int64_t item, bool stream) {
  static const char zeros[16];
  if (n <= 0) return;
  copy_run(y, step, zeros, 0, n, item, stream);
}

static void triangle_rows(void *ctx, int64_t lo, int64_t hi) {
  const triangle_job *job = ctx;
  const haian_walk *w = &job->walk;
  haian_place place;
  haian_place_seek(&place, w, w->ndim, lo);
  for (; lo < hi; lo++) {
    char *y = job->y + place.offset[0] * job->item;
    int64_t edge = place.at[w->ndim - 1] + job->diagonal + !job->upper; /* first column of the upper part */
    edge = edge < 0 ? 0 : edge > job->columns ? job->columns : edge;
    int64_t keep = job->upper ? edge : 0, kept = job->upper ? job->columns - edge : edge;
    if (job->x && kept)
      haian_copy_run(y + keep * job->item, job->x + (place.offset[1] + keep) * job->item, kept * job->item,
                     job->stream);
    if (job->upper) zero_run(y, job->y_step, edge, job->item, job->stream);
    else zero_run(y + edge * job->y_step * job->item, job->y_step, job->columns - edge, job->item, job->stream);
    haian_place_next(&place, w, w->ndim);
  }
  if (job->stream) haian_stream_fence();
}

static int32_t run_triangle(const haian_args *args, const char *op, bool upper) {
  HAIAN_REQUIRE(
      args->n_in == 1 && args->n_out == 1 && args->n_attr == 1 && args->in[0] && args->attr[0].kind == HAIAN_INT,
      HAIAN_INVALID_ARGUMENT,
      "%s: %d inputs, %d outputs, %d attributes; "
      "needs x, out, diagonal",
      op, args->n_in, args->n_out, args->n_attr);
  const haian_tensor *x = args->in[0], *out = args->out[0];
  int32_t status = need_like(op, x, out);
  if (status != HAIAN_OK) return status;
  HAIAN_REQUIRE(x->ndim >= 2, HAIAN_SHAPE, "%s: x has %d axes; needs two or more", op, x->ndim);
  if (x->numel == 0) return HAIAN_OK;
  int last = x->ndim - 1;
  int64_t columns = x->shape[last], limit = columns + x->shape[last - 1], diagonal = args->attr[0].i;
  triangle_job job = {.walk = walk_pair(out, x),
                      .y = out->data,
                      .x = x->data,
                      .item = haian_itemsize(x->dtype),
                      .columns = columns,
                      .y_step = out->stride[last],
                      .upper = upper,
                      .diagonal = diagonal > limit    ? limit
                                  : diagonal < -limit ? -limit
                                                      : diagonal};
  job.walk.ndim = last;
  job.stream = out->numel * job.item >= HAIAN_STREAM_BYTES;
  if (columns > 1 && (x->stride[last] != 1 || out->stride[last] != 1)) {
    HAIAN_SYM(copy_walk)(walk_pair(out, x), out->data, x->data, job.item);
    job.x = NULL;
  }
  haian_parallel_for(out->numel / columns, at_least_one(HAIAN_GRAIN_BYTES / (columns * job.item)), triangle_rows, &job);
  return HAIAN_OK;
}

static int32_t run_tril(const haian_args *args) { return run_triangle(args, "tril", false); }
static int32_t run_triu(const haian_args *args) { return run_triangle(args, "triu", true); }

/* ---- values from attributes -------------------------------------------------------------------------------------- */
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

/* Integer dtypes take numbers with low <= trunc(value) < high; exclusive because 2^64 - 1 is no double. */
static bool fits_integer(int32_t dtype, double value, double *low, double *high) {
  int bits = 8 * haian_itemsize(dtype);
  bool is_signed = dtype >= HAIAN_I8 && dtype <= HAIAN_I64;
  *high = ldexp(1.0, is_signed ? bits - 1 : bits);
  *low = is_signed ? -*high : 0;
  return trunc(value) >= *low && trunc(value) < *high;
}

/* The bits of a number in a dtype.  The caller has checked the range of integers. */
static void store_double(int32_t dtype, double value, void *to) {
  float f;
  uint16_t h;
  double pair[2] = {value, 0};
  float pair32[2] = {(float)value, 0};
  uint64_t u = value < 0 ? (uint64_t)(int64_t)value : (uint64_t)value;
  uint8_t truth = value != 0;
  switch (dtype) {
    case HAIAN_BOOL:
      memcpy(to, &truth, 1);
      return;
    case HAIAN_F16:
      h = haian_f16_store(round_to_odd(value));
      memcpy(to, &h, 2);
      return;
    case HAIAN_BF16:
      h = haian_bf16_store(round_to_odd(value));
      memcpy(to, &h, 2);
      return;
    case HAIAN_F32:
      f = (float)value;
      memcpy(to, &f, 4);
      return;
    case HAIAN_F64:
      memcpy(to, &value, 8);
      return;
    case HAIAN_C64:
      memcpy(to, pair32, 8);
      return;
    case HAIAN_C128:
      memcpy(to, pair, 16);
      return;
    default:
      memcpy(to, &u, (size_t)haian_itemsize(dtype));
      return; /* integers; little-endian hosts, as DLPack */
  }
}
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "store_double keeps the low bytes of an integer");

#define FILLED (HAIAN_ANY | HAIAN_BIT(HAIAN_C64) | HAIAN_BIT(HAIAN_C128))
static bool is_integer(int32_t dtype) { return (HAIAN_INTEGERS >> dtype) & 1; }

static int32_t run_full(const haian_args *args) {
  HAIAN_REQUIRE(args->n_out == 1 && args->n_attr == 3 && args->attr[0].kind == HAIAN_INTS &&
                    (args->attr[1].kind == HAIAN_FLOAT || args->attr[1].kind == HAIAN_INT),
                HAIAN_INVALID_ARGUMENT, "full: %d outputs, %d attributes; needs out, and shape, value, dtype",
                args->n_out, args->n_attr);
  const haian_tensor *out = args->out[0];
  const haian_attr *shape = &args->attr[0];
  HAIAN_REQUIRE((FILLED >> out->dtype) & 1, HAIAN_DTYPE,
                "full: out is %s; takes bool, integers, float16 to float64 "
                "and complex",
                haian_dtype_name(out->dtype));
  HAIAN_REQUIRE(shape->count == out->ndim && memcmp(shape->v, out->shape, (size_t)out->ndim * sizeof *shape->v) == 0,
                HAIAN_SHAPE, "full: out has %d axes and %lld elements; needs the given shape of %d axes", out->ndim,
                (long long)out->numel, shape->count);
  _Alignas(16) char value[16];
  if (args->attr[1].kind == HAIAN_INT && is_integer(out->dtype)) {
    memcpy(value, &args->attr[1].i, 8);
  } else {
    double v = args->attr[1].kind == HAIAN_INT ? (double)args->attr[1].i : args->attr[1].f, low, high;
    HAIAN_REQUIRE(!is_integer(out->dtype) || fits_integer(out->dtype, v, &low, &high), HAIAN_INVALID_ARGUMENT,
                  "full: value %g does not fit %s; needs %g <= value < %g", v, haian_dtype_name(out->dtype), low, high);
    store_double(out->dtype, v, value);
  }
  haian_walk w = walk_pair(out, out);
  for (int d = 0; d < out->ndim; d++) w.stride[d][1] = 0;
  HAIAN_SYM(copy_walk)(w, out->data, value, haian_itemsize(out->dtype));
  return HAIAN_OK;
}

typedef struct range_job {
  char *y;
  int64_t stride, first, by; /* integers: first + i * by modulo 2^64 */
  double start, step;
  int32_t dtype;
  bool integer, stream;
} range_job;

/* Elements [lo, lo + n) in a row. */
static void range_part(const range_job *job, void *to, int64_t lo, int64_t n) {
  double start = job->start, step = job->step;
  if (job->dtype == HAIAN_I64) {
    uint64_t *y = to, first = (uint64_t)job->first + (uint64_t)lo * (uint64_t)job->by, by = (uint64_t)job->by;
    for (int64_t i = 0; i < n; i++) y[i] = first + (uint64_t)i * by;
  } else if (job->dtype == HAIAN_I32) {
    uint32_t *y = to, by = (uint32_t)job->by, first = (uint32_t)job->first + (uint32_t)lo * by;
    for (int64_t i = 0; i < n; i++) y[i] = first + (uint32_t)i * by;
  } else if (job->dtype == HAIAN_F32) {
    float *y = to;
    for (int64_t i = 0; i < n; i++) y[i] = (float)(start + (double)(lo + i) * step);
  } else if (job->dtype == HAIAN_F64) {
    double *y = to;
    for (int64_t i = 0; i < n; i++) y[i] = start + (double)(lo + i) * step;
  } else {
    int64_t item = haian_itemsize(job->dtype);
    for (int64_t i = 0; i < n; i++) {
      uint64_t u = (uint64_t)job->first + (uint64_t)(lo + i) * (uint64_t)job->by;
      if (job->integer) memcpy((char *)to + i * item, &u, (size_t)item);
      else store_double(job->dtype, start + (double)(lo + i) * step, (char *)to + i * item);
    }
  }
}

static void range_run(void *ctx, int64_t lo, int64_t hi) {
  const range_job *job = ctx;
  int64_t item = haian_itemsize(job->dtype), part = 4096 / item;
  _Alignas(64) char buffer[4096];
  for (; lo < hi; lo += part) {
    int64_t n = hi - lo < part ? hi - lo : part;
    range_part(job, buffer, lo, n);
    copy_run(job->y + lo * job->stride * item, job->stride, buffer, 1, n, item, job->stream);
  }
  if (job->stream) haian_stream_fence();
}

static double attr_number(const haian_attr *a) { return a->kind == HAIAN_INT ? (double)a->i : a->f; }

static int32_t run_arange(const haian_args *args) {
  HAIAN_REQUIRE(args->n_out == 1 && args->n_attr == 4, HAIAN_INVALID_ARGUMENT,
                "arange: %d outputs, %d attributes; needs out, and start, end, step, dtype", args->n_out, args->n_attr);
  for (int i = 0; i < 3; i++)
    HAIAN_REQUIRE(args->attr[i].kind == HAIAN_FLOAT || args->attr[i].kind == HAIAN_INT, HAIAN_INVALID_ARGUMENT,
                  "arange: attribute %d is missing; needs start, end and step", i);
  const haian_tensor *out = args->out[0];
  double start = attr_number(&args->attr[0]), end = attr_number(&args->attr[1]), step = attr_number(&args->attr[2]);
  HAIAN_REQUIRE((HAIAN_NUMBERS >> out->dtype) & 1, HAIAN_DTYPE,
                "arange: out is %s; takes integers and float16 to "
                "float64",
                haian_dtype_name(out->dtype));
  HAIAN_REQUIRE(isfinite(start) && isfinite(end) && isfinite(step) && step != 0, HAIAN_INVALID_ARGUMENT,
                "arange: start %g, end %g, step %g; needs finite numbers and a step other than 0", start, end, step);
  HAIAN_REQUIRE(step > 0 ? end >= start : end <= start, HAIAN_INVALID_ARGUMENT,
                "arange: step %g leads away from end "
                "%g at start %g; needs the other sign",
                step, end, start);
  double count = ceil((end - start) / step);
  HAIAN_REQUIRE(out->ndim == 1 && (double)out->numel == count, HAIAN_SHAPE,
                "arange: out has %d axes and %lld "
                "elements; needs one axis of %.0f",
                out->ndim, (long long)out->numel, count);
  range_job job = {.y = out->data,
                   .stride = out->stride[0],
                   .start = start,
                   .step = step,
                   .dtype = out->dtype,
                   .integer = is_integer(out->dtype),
                   .stream = out->numel * haian_itemsize(out->dtype) >= HAIAN_STREAM_BYTES};
  if (job.integer) {
    double low, high, last = start + (count - 1) * step;
    HAIAN_REQUIRE(start == trunc(start) && step == trunc(step) && fabs(step) < 0x1p63, HAIAN_INVALID_ARGUMENT,
                  "arange: start %g, step %g; %s needs whole numbers; choose a floating dtype", start, step,
                  haian_dtype_name(out->dtype));
    HAIAN_REQUIRE(
        count == 0 || (fits_integer(out->dtype, start, &low, &high) && fits_integer(out->dtype, last, &low, &high)),
        HAIAN_INVALID_ARGUMENT,
        "arange: %g to %g does not "
        "fit %s; choose a wider dtype",
        start, last, haian_dtype_name(out->dtype));
    job.first = start < 0x1p63 ? (int64_t)start : (int64_t)(uint64_t)start;
    if (args->attr[0].kind == HAIAN_INT) job.first = args->attr[0].i;
    job.by = args->attr[2].kind == HAIAN_INT ? args->attr[2].i : (int64_t)step;
    if (count == 0) job.first = job.by = 0;
  }
  haian_parallel_for(out->numel, HAIAN_GRAIN_BYTES / haian_itemsize(out->dtype), range_run, &job);
  return HAIAN_OK;
}

#define MOVED (FILLED | HAIAN_BIT(HAIAN_F8E4M3) | HAIAN_BIT(HAIAN_F8E5M2))
const haian_kernel_entry HAIAN_TABLE(shape)[] = {
    {"copy", run_copy, MOVED, NULL},
    {"cat", run_cat, MOVED, NULL},
    {"tril", run_tril, MOVED, NULL},
    {"triu", run_triu, MOVED, NULL},
    {"arange", run_arange, HAIAN_NUMBERS, NULL},
    {"full", run_full, FILLED, NULL},
    {NULL, NULL, 0, NULL},
};
