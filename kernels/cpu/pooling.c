/* Average and maximum pooling, adaptive pooling and their gradients: checks, windows and the choice of a method.
 * Windows of one size are taps over padded copies of planes (plane.h); maxima of contiguous float rows take the largest of
 * the rows first.  A plane is one task, so results do not depend on the number of threads.
 * Not here: the arithmetic (pooling_real.h), the thread pool (pool.c). */
#include "plane.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_ROWS = 16 }; /* rows of a window up to which maxima are read in place */
typedef enum { MEAN, MAX, MAX_INDEX } pooling_how;

/* x images, y results (of gradients: dx and dy), index beside y; strides (image, channel, d, h, w) in elements */
typedef struct pooling {
  const char *op;
  pooling_how how;
  int32_t dtype, failed;
  int64_t item, planes, channels, taps, divisor; /* divisor 0: the count */
  plane g;
  int64_t xs[5], ys[5], is[5];
  char *x, *y, *index;
  int64_t *offset, *step;                   /* [taps] in a padded plane, in the image */
  int64_t *first[3], *seen[3], *counted[3]; /* [out] of each axis: first position, how many, how many count */
} pooling;

typedef struct pooled {
  char *x, *y, *index;
} pooled;
static pooled pooled_plane(const pooling *p, int64_t i) {
  const int64_t n = i / p->channels, c = i % p->channels;
  return (pooled){p->x + (n * p->xs[0] + c * p->xs[1]) * p->item, p->y + (n * p->ys[0] + c * p->ys[1]) * p->item,
                  p->index ? p->index + (n * p->is[0] + c * p->is[1]) * 8 : NULL};
}

#define R_(name) name##_r32
#define REAL float
#define INT int32_t
#define VEC v_f32
#define INTS v_i32
#include "plane_real.h"
#include "pooling_real.h"
#undef R_
#undef REAL
#undef INT
#undef VEC
#undef INTS
#undef R_LANES

#define R_(name) name##_r64
#define REAL double
#define INT int64_t
#define VEC v_f64
#define INTS v_i64
#include "plane_real.h"
#include "pooling_real.h"
#undef R_
#undef REAL
#undef INT
#undef VEC
#undef INTS
#undef R_LANES

#define PICK(p, name) ((p)->dtype == HAIAN_F64 ? name##_r64 : name##_r32)

/* ---- checks ---------------------------------------------------------------------------------------------------------- */
static void strides_of(int64_t *to, const haian_tensor *t, int axes) {
  const int lead = t->ndim - axes; /* 1 or 2 */
  to[0] = lead == 2 ? t->stride[0] : 0;
  to[1] = t->stride[lead - 1];
  for (int i = 0; i < 3; i++) to[2 + i] = i < 3 - axes ? 0 : t->stride[lead + i - (3 - axes)];
}

/* x of `axes` spatial axes: its place in p */
static int32_t check_images(pooling *p, const char *what, const haian_tensor *x, int axes) {
  HAIAN_REQUIRE(x, HAIAN_INVALID_ARGUMENT, "%s: %s is missing; pass a tensor", p->op, what);
  HAIAN_REQUIRE(x->dtype > 0 && x->dtype < HAIAN_DTYPE_END && (HAIAN_FLOATS & HAIAN_BIT(x->dtype)), HAIAN_DTYPE,
                "%s: %s has dtype %s; accepts float32, float16, bfloat16, float64; cast it first", p->op, what,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(x->ndim == axes + 1 || x->ndim == axes + 2, HAIAN_SHAPE, "%s: %s has shape %s; needs %d or %d axes",
                p->op, what, PLANE_TEXT(x), axes + 1, axes + 2);
  const int lead = x->ndim - axes;
  for (int i = lead - 1; i < x->ndim; i++)
    HAIAN_REQUIRE(x->shape[i] > 0 && x->shape[i] < (int64_t)1 << 31, HAIAN_SHAPE,
                  "%s: %s is %s; only the batch may be empty", p->op, what, PLANE_TEXT(x));
  p->dtype = x->dtype;
  p->item = haian_itemsize(x->dtype);
  p->channels = x->shape[lead - 1];
  p->planes = p->channels * (lead == 2 ? x->shape[0] : 1);
  p->x = x->data;
  strides_of(p->xs, x, axes);
  for (int i = 0; i < 3; i++) {
    p->g.axis[i] = (plane_axis){.in = 1, .out = 1, .kernel = 1, .stride = 1, .dilation = 1};
    if (i >= 3 - axes) p->g.axis[i].in = x->shape[lead + i - (3 - axes)];
  }
  return HAIAN_OK;
}

/* kernel_size, stride, padding[, dilation], ceil_mode from attribute `first` on; *next is the attribute behind them */
static int32_t check_windows(pooling *p, const haian_args *args, int first, int axes, bool dilated, int *next) {
  int64_t kernel[3] = {1, 1, 1}, stride[3] = {1, 1, 1}, pad[3] = {0, 0, 0}, dilation[3] = {1, 1, 1};
  PLANE_TRY(plane_ints(p->op, args, first, "kernel_size", axes, 1, kernel));
  const bool own =
      first + 1 < args->n_attr && args->attr[first + 1].kind == HAIAN_INTS && args->attr[first + 1].count > 0;
  if (own) PLANE_TRY(plane_ints(p->op, args, first + 1, "stride", axes, 1, stride));
  else memcpy(stride, kernel, sizeof stride);
  PLANE_TRY(plane_ints(p->op, args, first + 2, "padding", axes, 0, pad));
  if (dilated) PLANE_TRY(plane_ints(p->op, args, first + 3, "dilation", axes, 1, dilation));
  const bool up = plane_flag(args, first + 3 + dilated);
  for (int i = 3 - axes; i < 3; i++) {
    plane_axis *a = &p->g.axis[i];
    const int64_t reach = dilation[i] * (kernel[i] - 1) + 1, room = a->in + 2 * pad[i] - reach;
    HAIAN_REQUIRE(2 * pad[i] <= reach, HAIAN_INVALID_ARGUMENT,
                  "%s: padding %lld with kernel_size %lld; needs half of the kernel at most", p->op, (long long)pad[i],
                  (long long)kernel[i]);
    *a = (plane_axis){.in = a->in, .kernel = kernel[i], .stride = stride[i], .pad = pad[i], .dilation = dilation[i]};
    const int64_t more = room + (up ? stride[i] - 1 : 0);
    a->out = more < 0 ? 0 : more / stride[i] + 1;
    if (up && (a->out - 1) * stride[i] >= a->in + pad[i]) a->out--;
    HAIAN_REQUIRE(
        a->out >= 1, HAIAN_SHAPE,
        "%s: images of size %lld along an axis with kernel_size %s, padding %lld give %lld results; needs 1 or more",
        p->op, (long long)a->in, plane_show(args->attr[first].count, args->attr[first].v).s, (long long)pad[i],
        (long long)a->out);
    for (int64_t o = 0; a->in < a->dilation && o * a->stride < a->pad; o++) {
      const int64_t start = o * a->stride - a->pad, back = -start % a->dilation;
      HAIAN_REQUIRE((back ? a->dilation - back : 0) < a->in, HAIAN_SHAPE,
                    "%s: images of size %lld with padding %lld, dilation %lld: a window sees no position of the image",
                    p->op, (long long)a->in, (long long)a->pad, (long long)a->dilation);
    }
  }
  *next = first + 4 + dilated;
  return HAIAN_OK;
}

/* a tensor of the results' shape */
static int32_t check_like(const pooling *p, const char *what, const haian_tensor *t, const haian_tensor *x, int axes,
                          int32_t dtype) {
  HAIAN_REQUIRE(t, HAIAN_INVALID_ARGUMENT, "%s: %s is missing; pass a tensor", p->op, what);
  HAIAN_REQUIRE(t->dtype == dtype, HAIAN_DTYPE, "%s: %s has dtype %s; accepts %s; cast it first", p->op, what,
                haian_dtype_name(t->dtype), haian_dtype_name(dtype));
  int64_t shape[HAIAN_MAX_RANK];
  for (int i = 0; i < x->ndim; i++) shape[i] = i < x->ndim - axes ? x->shape[i] : p->g.axis[3 - x->ndim + i].out;
  bool same = t->ndim == x->ndim;
  for (int i = 0; same && i < x->ndim; i++) same = t->shape[i] == shape[i];
  HAIAN_REQUIRE(same, HAIAN_SHAPE, "%s: %s is %s; needs %s", p->op, what, PLANE_TEXT(t), plane_show(x->ndim, shape).s);
  return HAIAN_OK;
}
static int32_t check_dx(const pooling *p, const haian_tensor *dx, const haian_tensor *x) {
  HAIAN_REQUIRE(dx && dx->dtype == x->dtype && haian_same_shape(dx, x), HAIAN_SHAPE,
                "%s: the result is %s; needs %s of %s", p->op, dx ? PLANE_TEXT(dx) : "missing", PLANE_TEXT(x),
                haian_dtype_name(x->dtype));
  return HAIAN_OK;
}

/* every index inside an image; walks them in their own order */
static int32_t check_indices(const pooling *p, const haian_tensor *index, int axes) {
  const plane_axis *a = p->g.axis;
  const int64_t size = a[0].in * a[1].in * a[2].in;
  int64_t s[5];
  strides_of(s, index, axes);
  for (int64_t i = 0; i < p->planes; i++)
    for (int64_t row = 0; row < a[0].out * a[1].out; row++) {
      const int64_t at =
          i / p->channels * s[0] + i % p->channels * s[1] + row / a[1].out * s[2] + row % a[1].out * s[3];
      const int64_t *v = (const int64_t *)index->data + at;
      uint64_t most = 0; /* negative ones are the largest */
      for (int64_t w = 0; w < a[2].out; w++) most = (uint64_t)v[w * s[4]] > most ? (uint64_t)v[w * s[4]] : most;
      for (int64_t w = 0; most >= (uint64_t)size && w < a[2].out; w++)
        HAIAN_REQUIRE(v[w * s[4]] >= 0 && v[w * s[4]] < size, HAIAN_INDEX,
                      "%s: index %lld at position %lld is outside 0 <= index < %lld", p->op, (long long)v[w * s[4]],
                      (long long)((i * a[0].out * a[1].out + row) * a[2].out + w), (long long)size);
    }
  return HAIAN_OK;
}

/* ---- running ------------------------------------------------------------------------------------------------------- */
static int64_t grain_of(const pooling *p) {
  const plane_axis *a = p->g.axis;
  const int64_t work = a[0].in * a[1].in * a[2].in + a[0].out * a[1].out * a[2].out * p->taps;
  return work >= 16384 ? 1 : 16384 / (work + 1) + 1;
}

/* the tables of windows: `adaptive` ones or those of kernel, stride and padding.  Returns memory for free() */
static void *make_tables(pooling *p, bool adaptive, bool with_pad) {
  plane_axis *a = p->g.axis;
  p->taps = adaptive ? 1 : a[0].kernel * a[1].kernel * a[2].kernel;
  int64_t *memory = malloc((size_t)(3 * (a[0].out + a[1].out + a[2].out) + 2 * p->taps) * 8), *next = memory;
  if (!memory) return NULL;
  for (int i = 0; i < 3; i++) {
    p->first[i] = next;
    p->seen[i] = next + a[i].out;
    p->counted[i] = next + 2 * a[i].out;
    next += 3 * a[i].out;
    for (int64_t o = 0; o < a[i].out; o++) {
      int64_t start = o * a[i].stride - a[i].pad, end = start + a[i].kernel, room = a[i].in + a[i].pad;
      if (adaptive) start = o * a[i].in / a[i].out, end = ((o + 1) * a[i].in + a[i].out - 1) / a[i].out, room = end;
      const int64_t all = (end < room ? end : room) - start;
      if (start < 0) start = 0;
      if (end > a[i].in) end = a[i].in;
      p->first[i][o] = start;
      p->seen[i][o] = end > start ? end - start : 0;
      p->counted[i][o] = with_pad ? all : p->seen[i][o];
    }
  }
  p->offset = next;
  p->step = next + p->taps;
  if (adaptive) return memory;
  plane_of_windows(&p->g);
  for (int64_t t = 0; t < p->taps; t++) {
    const int64_t d = t / (a[1].kernel * a[2].kernel), h = t / a[2].kernel % a[1].kernel, w = t % a[2].kernel;
    p->offset[t] = plane_tap(&p->g, d, h, w);
    p->step[t] = (d * a[0].dilation * a[1].in + h * a[1].dilation) * a[2].in + w * a[2].dilation;
  }
  return memory;
}

static int32_t run(pooling *p, bool adaptive, bool with_pad, bool backward) {
  if (p->planes == 0) return HAIAN_OK;
  const plane_axis *a = p->g.axis;
  HAIAN_REQUIRE(a[0].in * a[1].in <= INT64_MAX / 8 / a[2].in, HAIAN_SHAPE, "%s: images of more than 2^60 positions",
                p->op);
  void *memory = make_tables(p, adaptive, with_pad);
  if (!memory) return haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for windows; free some", p->op);
  const bool in_place = p->how == MAX && a[0].in == 1 && a[0].kernel == 1 && a[1].kernel <= MAX_ROWS && p->xs[4] == 1 &&
                        (p->dtype == HAIAN_F32 || p->dtype == HAIAN_F64);
  haian_parallel_for(p->planes, grain_of(p),
                     backward   ? PICK(p, back_planes)
                     : adaptive ? PICK(p, table_planes)
                     : in_place ? PICK(p, row_planes)
                                : PICK(p, window_planes),
                     p);
  free(memory);
  return p->failed ? haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for a padded plane; free some", p->op) : HAIAN_OK;
}

#define REQUIRE_COUNTS(op, inputs, outputs, attrs)                                                                     \
  HAIAN_REQUIRE(args->n_in == (inputs) && args->n_out == (outputs) && args->n_attr == (attrs), HAIAN_INVALID_ARGUMENT, \
                "%s: %d inputs, %d outputs, %d attributes; needs %d, %d, %d", op, args->n_in, args->n_out,             \
                args->n_attr, inputs, outputs, attrs)

static int32_t check_divisor(pooling *p, const haian_args *args, int i) {
  if (i >= args->n_attr || args->attr[i].kind == HAIAN_NONE) return HAIAN_OK;
  p->divisor = args->attr[i].i;
  HAIAN_REQUIRE(p->divisor != 0, HAIAN_INVALID_ARGUMENT, "%s: divisor_override 0; needs another number, or None",
                p->op);
  return HAIAN_OK;
}

static int32_t avg_forward(const char *op, const haian_args *args, int axes) {
  REQUIRE_COUNTS(op, 1, 1, axes == 1 ? 5 : 6);
  pooling p = {.op = op, .how = MEAN};
  int next;
  PLANE_TRY(check_images(&p, "x", args->in[0], axes));
  PLANE_TRY(check_windows(&p, args, 0, axes, false, &next));
  PLANE_TRY(check_divisor(&p, args, next + 1));
  PLANE_TRY(check_like(&p, "the result", args->out[0], args->in[0], axes, p.dtype));
  p.y = args->out[0]->data;
  strides_of(p.ys, args->out[0], axes);
  return run(&p, false, plane_flag(args, next), false);
}

static int32_t avg_backward(const char *op, const haian_args *args, int axes) {
  REQUIRE_COUNTS(op, 2, 1, 6);
  pooling p = {.op = op, .how = MEAN};
  int next;
  const haian_tensor *dy = args->in[0], *x = args->in[1];
  PLANE_TRY(check_images(&p, "x", x, axes));
  PLANE_TRY(check_windows(&p, args, 0, axes, false, &next));
  PLANE_TRY(check_divisor(&p, args, next + 1));
  PLANE_TRY(check_like(&p, "dy", dy, x, axes, p.dtype));
  PLANE_TRY(check_dx(&p, args->out[0], x));
  p.x = args->out[0]->data;
  strides_of(p.xs, args->out[0], axes);
  p.y = dy->data;
  strides_of(p.ys, dy, axes);
  return run(&p, false, plane_flag(args, next), true);
}

static int32_t max_forward(const char *op, const haian_args *args, int axes, bool indices) {
  REQUIRE_COUNTS(op, 1, indices ? 2 : 1, 5);
  pooling p = {.op = op, .how = indices ? MAX_INDEX : MAX};
  int next;
  PLANE_TRY(check_images(&p, "x", args->in[0], axes));
  PLANE_TRY(check_windows(&p, args, 0, axes, true, &next));
  PLANE_TRY(check_like(&p, "the result", args->out[0], args->in[0], axes, p.dtype));
  p.y = args->out[0]->data;
  strides_of(p.ys, args->out[0], axes);
  if (indices) {
    PLANE_TRY(check_like(&p, "indices", args->out[1], args->in[0], axes, HAIAN_I64));
    p.index = args->out[1]->data;
    strides_of(p.is, args->out[1], axes);
  }
  return run(&p, false, false, false);
}

/* dy, indices and the result's shape are checked; windows play no part, indices are sums' places */
static int32_t back_through(pooling *p, const haian_tensor *dy, const haian_tensor *index, const haian_tensor *dx,
                            const haian_tensor *x, int axes) {
  PLANE_TRY(check_like(p, "dy", dy, x, axes, p->dtype));
  PLANE_TRY(check_like(p, "indices", index, x, axes, HAIAN_I64));
  PLANE_TRY(check_dx(p, dx, x));
  PLANE_TRY(check_indices(p, index, axes));
  p->x = dx->data;
  strides_of(p->xs, dx, axes);
  p->y = dy->data;
  strides_of(p->ys, dy, axes);
  p->index = index->data;
  strides_of(p->is, index, axes);
  return run(p, true, false, true);
}

static int32_t max_backward(const char *op, const haian_args *args, int axes) {
  REQUIRE_COUNTS(op, 3, 1, 5);
  pooling p = {.op = op, .how = MAX_INDEX};
  int next;
  PLANE_TRY(check_images(&p, "x", args->in[1], axes));
  PLANE_TRY(check_windows(&p, args, 0, axes, true, &next));
  return back_through(&p, args->in[0], args->in[2], args->out[0], args->in[1], axes);
}

static int32_t adaptive_forward(const char *op, const haian_args *args, int axes, bool max) {
  REQUIRE_COUNTS(op, 1, max ? 2 : 1, 1);
  pooling p = {.op = op, .how = max ? MAX_INDEX : MEAN};
  int64_t size[3] = {1, 1, 1};
  PLANE_TRY(check_images(&p, "x", args->in[0], axes));
  PLANE_TRY(plane_ints(op, args, 0, "output_size", axes, 1, size));
  for (int i = 0; i < 3; i++) p.g.axis[i].out = size[i];
  PLANE_TRY(check_like(&p, "the result", args->out[0], args->in[0], axes, p.dtype));
  p.y = args->out[0]->data;
  strides_of(p.ys, args->out[0], axes);
  if (max) {
    PLANE_TRY(check_like(&p, "indices", args->out[1], args->in[0], axes, HAIAN_I64));
    p.index = args->out[1]->data;
    strides_of(p.is, args->out[1], axes);
  }
  return run(&p, true, false, false);
}

static int32_t adaptive_backward(const char *op, const haian_args *args, int axes, bool max) {
  REQUIRE_COUNTS(op, max ? 3 : 2, 1, 0);
  pooling p = {.op = op, .how = max ? MAX_INDEX : MEAN};
  const haian_tensor *dy = args->in[0], *x = args->in[1];
  PLANE_TRY(check_images(&p, "x", x, axes));
  bool fits = dy && dy->ndim == x->ndim;
  for (int i = 0; fits && i < x->ndim; i++) fits = i < x->ndim - axes ? dy->shape[i] == x->shape[i] : dy->shape[i] > 0;
  HAIAN_REQUIRE(fits, HAIAN_SHAPE, "%s: dy is %s and x %s; only the last %d axes may differ, and none of dy's be empty",
                op, dy ? PLANE_TEXT(dy) : "missing", PLANE_TEXT(x), axes);
  for (int i = 0; i < axes; i++) p.g.axis[3 - axes + i].out = dy->shape[x->ndim - axes + i];
  if (max) return back_through(&p, dy, args->in[2], args->out[0], x, axes);
  PLANE_TRY(check_like(&p, "dy", dy, x, axes, p.dtype));
  PLANE_TRY(check_dx(&p, args->out[0], x));
  p.x = args->out[0]->data;
  strides_of(p.xs, args->out[0], axes);
  p.y = dy->data;
  strides_of(p.ys, dy, axes);
  return run(&p, true, false, true);
}

#define OPERATOR(name, call) \
  static int32_t name(const haian_args *args) { return call; }
OPERATOR(avg_pool1d, avg_forward("avg_pool1d", args, 1))
OPERATOR(avg_pool2d, avg_forward("avg_pool2d", args, 2))
OPERATOR(avg_pool3d, avg_forward("avg_pool3d", args, 3))
OPERATOR(avg_pool2d_backward, avg_backward("avg_pool2d_backward", args, 2))
OPERATOR(avg_pool3d_backward, avg_backward("avg_pool3d_backward", args, 3))
OPERATOR(max_pool1d, max_forward("max_pool1d", args, 1, false))
OPERATOR(max_pool2d, max_forward("max_pool2d", args, 2, false))
OPERATOR(max_pool3d, max_forward("max_pool3d", args, 3, false))
OPERATOR(max_pool2d_with_indices, max_forward("max_pool2d_with_indices", args, 2, true))
OPERATOR(max_pool3d_with_indices, max_forward("max_pool3d_with_indices", args, 3, true))
OPERATOR(max_pool2d_with_indices_backward, max_backward("max_pool2d_with_indices_backward", args, 2))
OPERATOR(max_pool3d_with_indices_backward, max_backward("max_pool3d_with_indices_backward", args, 3))
OPERATOR(adaptive_avg_pool1d, adaptive_forward("adaptive_avg_pool1d", args, 1, false))
OPERATOR(adaptive_avg_pool2d, adaptive_forward("adaptive_avg_pool2d", args, 2, false))
OPERATOR(adaptive_avg_pool3d, adaptive_forward("adaptive_avg_pool3d", args, 3, false))
OPERATOR(adaptive_max_pool1d, adaptive_forward("adaptive_max_pool1d", args, 1, true))
OPERATOR(adaptive_max_pool2d, adaptive_forward("adaptive_max_pool2d", args, 2, true))
OPERATOR(adaptive_max_pool3d, adaptive_forward("adaptive_max_pool3d", args, 3, true))
OPERATOR(adaptive_avg_pool2d_backward, adaptive_backward("adaptive_avg_pool2d_backward", args, 2, false))
OPERATOR(adaptive_avg_pool3d_backward, adaptive_backward("adaptive_avg_pool3d_backward", args, 3, false))
OPERATOR(adaptive_max_pool2d_backward, adaptive_backward("adaptive_max_pool2d_backward", args, 2, true))
OPERATOR(adaptive_max_pool3d_backward, adaptive_backward("adaptive_max_pool3d_backward", args, 3, true))

#define ROW(name) {#name, name, HAIAN_FLOATS, NULL}
const haian_kernel_entry HAIAN_TABLE(pool)[] = {
    ROW(avg_pool1d),
    ROW(avg_pool2d),
    ROW(avg_pool3d),
    ROW(avg_pool2d_backward),
    ROW(avg_pool3d_backward),
    ROW(max_pool1d),
    ROW(max_pool2d),
    ROW(max_pool3d),
    ROW(max_pool2d_with_indices),
    ROW(max_pool3d_with_indices),
    ROW(max_pool2d_with_indices_backward),
    ROW(max_pool3d_with_indices_backward),
    ROW(adaptive_avg_pool1d),
    ROW(adaptive_avg_pool2d),
    ROW(adaptive_avg_pool3d),
    ROW(adaptive_max_pool1d),
    ROW(adaptive_max_pool2d),
    ROW(adaptive_max_pool3d),
    ROW(adaptive_avg_pool2d_backward),
    ROW(adaptive_avg_pool3d_backward),
    ROW(adaptive_max_pool2d_backward),
    ROW(adaptive_max_pool3d_backward),
    {NULL, NULL, 0, NULL},
};
