/* convolution and its gradients, causal_conv1d, im2col, col2im: checks, geometry and the choice of a method.
 * A convolution is a product of weights (out channel, in channel and tap) with columns gathered from padded copies of the
 * input (plane.h), packed panel by panel and never as a whole; the adjoint (transposed) is one such product for each
 * residue of the result's places modulo the stride.  1x1 goes to gemm, one input channel a group to direct taps.
 * Same bits for any thread count: every sum runs over its terms in an order that shapes alone decide.
 * Not here: the arithmetic (conv_real.h, gemm/). */
#include "plane.h"
#include "simd.h"

#include <stdlib.h>

enum {
  KC = 512, /* terms of a block: 32 columns of f32 are 64 KB */
  NC = 256, /* columns of a task */
  MP = 256, /* rows of a task: 512 KB of weights beside 512 KB of columns and 256 KB of sums in a 2 MB L2 */
  PLANES_BYTES = 16 << 20, /* padded copies that are held at a time */
  DIRECT = 8,              /* most channels out for one in that taps serve: a product shares its columns among more */
};

/* y = the product over w of what x shows.  Strides in elements: x, y (image, channel, d, h, w), w of (out channel,
 * in channel of the group, group).  For gradients of weights y is read and w written, for those of bias, bias. */
typedef struct conv {
  const char *op;
  int32_t dtype;
  int64_t item, N, C, groups, cg, og; /* cg, og: channels in and out of a group */
  plane_axis axis[3];                 /* in and out belong to x and y; in a transposed one the windows lie in y */
  int64_t xs[5], ys[5], wo, wc, wg, wk[3], bias_stride;
  const char *x, *w, *bias;
  char *y;
} conv;

/* Results with one residue modulo the stride (all of them where nothing is transposed). */
typedef struct conv_phase {
  int64_t taps, out[3], step[3], y_base, y_step[3];
  int64_t *offset, *weight; /* [taps]: in a plane, in w */
} conv_phase;

typedef struct conv_run { /* columns side by side */
  int64_t col, count, src, dst;
} conv_run;

typedef struct conv_job {
  const conv *c;
  plane g;
  conv_phase *list, *phase; /* all, the one at work */
  int64_t phases;
  const haian_kind *kind, *plain; /* of w, of the accumulator */
  int64_t K, kc, kblocks, mp, parts, nc, blocks, columns, image0;
  int64_t *offset; /* [K] in the planes of a group */
  void *planes, *packed, *dense;
  int32_t failed;
} conv_job;

enum { PACK_SLACK = VBYTES / 4 };
/* where a block of packed weights starts */
static int64_t conv_packed_at(const conv_job *j, int64_t g, int64_t part, int64_t kb, int64_t rows) {
  return (g * j->parts + part) * (j->mp * j->K + j->kblocks * PACK_SLACK) + rows * kb * j->kc + kb * PACK_SLACK;
}

typedef struct causal {
  const haian_tensor *x, *weight, *bias, *y;
  bool silu;
  int32_t *failed;
} causal;

typedef struct columns { /* images and their columns */
  plane_axis axis[3];
  int32_t dtype;
  int64_t item, channels, xs[4], ys[4];
  const char *x;
  char *y;
  int32_t failed;
} columns;

static inline float exp_f32_one(float x) { return haian_expf(x); }
static inline double exp_f64_one(double x) { return haian_exp(x); }

#define R_(name) name##_r32
#define REAL float
#define VEC v_f32
#define exp_r32 exp_f32_one
#include "plane_real.h"
#include "conv_real.h"
#undef R_
#undef REAL
#undef VEC
#undef R_LANES

#define R_(name) name##_r64
#define REAL double
#define VEC v_f64
#define exp_r64 exp_f64_one
#include "plane_real.h"
#include "conv_real.h"
#undef R_
#undef REAL
#undef VEC
#undef R_LANES

#define PICK(c, name) ((c)->dtype == HAIAN_F64 ? name##_r64 : name##_r32)

static int64_t count_of(const int64_t *shape, int n) {
  int64_t all = 1;
  for (int i = 0; i < n; i++) all *= shape[i];
  return all;
}
static int32_t out_of_memory(const char *op) {
  return haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for padded planes; free some", op);
}

/* ---- phases -------------------------------------------------------------------------------------------------------- */
/* Along one axis: results with residue r, and their taps as (tap, position).  The positions of a transposed axis are
 * shifted by its margin, axis->pad of the plane. */
static int64_t axis_taps(const plane_axis *a, const plane_axis *padded, bool transposed, int64_t r, int64_t *tap,
                         int64_t *position) {
  int64_t n = 0;
  for (int64_t k = 0; k < a->kernel; k++) {
    const int64_t at = r + a->pad - k * a->dilation;
    if (!transposed) {
      tap[n] = k;
      position[n++] = k * a->dilation;
    } else if (at % a->stride == 0) {
      tap[n] = k;
      position[n++] = at / a->stride + padded->pad;
    }
  }
  return n;
}

/* fills j->g and j->list; memory of the lists is one block, returned for free() */
static void *make_phases(conv_job *j, bool transposed) {
  const conv *c = j->c;
  int64_t residues[3] = {1, 1, 1}, kernel = 1, longest = 0;
  for (int i = 0; i < 3; i++) {
    j->g.axis[i] = c->axis[i];
    plane_axis *a = &j->g.axis[i];
    if (transposed) {
      residues[i] = a->stride < a->out ? a->stride : a->out;
      const int64_t reach = a->dilation * (a->kernel - 1) - a->pad, last = (a->out - 1 + a->pad) / a->stride + 1;
      const int64_t margin = reach > 0 ? (reach + a->stride - 1) / a->stride : 0;
      a->size = margin + (last > a->in ? last : a->in);
      a->pad = margin;
    }
    kernel *= a->kernel;
    longest = a->kernel > longest ? a->kernel : longest;
  }
  if (transposed) plane_layout(&j->g, 1);
  else plane_of_windows(&j->g);
  j->phases = residues[0] * residues[1] * residues[2];
  char *memory = malloc((size_t)j->phases * sizeof(conv_phase) + (size_t)(2 * kernel + 6 * longest) * 8);
  if (!memory) return NULL;
  j->list = (conv_phase *)(void *)memory;
  int64_t *next = (int64_t *)(void *)(j->list + j->phases), *tap[3], *position[3];
  for (int i = 0; i < 3; i++, next += 2 * longest) tap[i] = next, position[i] = next + longest;
  conv_phase *p = j->list;
  int64_t r[3];
  for (r[0] = 0; r[0] < residues[0]; r[0]++)
    for (r[1] = 0; r[1] < residues[1]; r[1]++)
      for (r[2] = 0; r[2] < residues[2]; r[2]++, p++) {
        int64_t n[3];
        p->y_base = 0;
        for (int i = 0; i < 3; i++) {
          const plane_axis *a = &c->axis[i];
          const int64_t step = transposed ? a->stride : 1;
          n[i] = axis_taps(a, &j->g.axis[i], transposed, r[i], tap[i], position[i]);
          p->out[i] = (a->out - r[i] + step - 1) / step;
          p->y_base += r[i] * c->ys[2 + i];
          p->y_step[i] = step * c->ys[2 + i];
        }
        p->step[0] = (transposed ? 1 : c->axis[0].stride) * j->g.slice;
        p->step[1] = (transposed ? 1 : c->axis[1].stride) * j->g.row;
        p->step[2] = 1;
        p->taps = n[0] * n[1] * n[2];
        p->offset = next;
        p->weight = next + p->taps;
        next += 2 * p->taps;
        for (int64_t t = 0; t < p->taps; t++) {
          const int64_t w = t % n[2], h = t / n[2] % n[1], d = t / n[2] / n[1], q = position[2][w];
          p->offset[t] =
              position[0][d] * j->g.slice + position[1][h] * j->g.row + q % j->g.phases * j->g.width + q / j->g.phases;
          p->weight[t] = tap[0][d] * c->wk[0] + tap[1][h] * c->wk[1] + tap[2][w] * c->wk[2];
        }
      }
  return memory;
}

/* ---- methods ------------------------------------------------------------------------------------------------------- */
/* whether the axes of x (or y) from the third on are one: *stride is its step */
static bool one_axis(const plane_axis *axis, const int64_t *s, bool in, int64_t *stride) {
  *stride = 1;
  int64_t step = -1;
  for (int i = 2; i >= 0; i--) {
    const int64_t n = in ? axis[i].in : axis[i].out;
    if (n == 1) continue;
    if (step >= 0 && s[i] != step) return false;
    if (step < 0) *stride = s[i];
    step = s[i] * n;
  }
  return true;
}

/* 1x1: a plain product */
static bool pointwise(const conv *c, int32_t *status) {
  haian_gemm g = {
      .m = c->og, .k = c->cg, .n = 1, .batch_ndim = 2, .batch = {c->N, c->groups}, .alpha = 1.0, .beta = 1.0};
  for (int i = 0; i < 3; i++) {
    const plane_axis *a = &c->axis[i];
    if (a->kernel != 1 || a->stride != 1 || a->pad != 0 || a->in != a->out) return false;
    g.n *= a->out;
  }
  int64_t x_step, y_step;
  if (!one_axis(c->axis, c->xs + 2, true, &x_step) || !one_axis(c->axis, c->ys + 2, false, &y_step)) return false;
  g.a = (haian_matrix){.data = c->w, .row = c->wo, .col = c->wc, .batch = {0, c->wg}, .dtype = c->dtype};
  g.b = (haian_matrix){
      .data = c->x, .row = c->xs[1], .col = x_step, .batch = {c->xs[0], c->cg * c->xs[1]}, .dtype = c->dtype};
  g.c = (haian_matrix){
      .data = c->y, .row = c->ys[1], .col = y_step, .batch = {c->ys[0], c->og * c->ys[1]}, .dtype = c->dtype};
  if (c->bias)
    g.d =
        (haian_matrix){.data = c->bias, .row = c->bias_stride, .batch = {0, c->og * c->bias_stride}, .dtype = c->dtype};
  *status = HAIAN_SYM(gemm)(c->op, &g);
  return true;
}

/* weights of an untransposed convolution whose rows lie as [in channel][tap] already */
static bool rows_of_weights(const conv *c, int64_t K) {
  int64_t step = 1;
  const int64_t n[4] = {c->cg, c->axis[0].kernel, c->axis[1].kernel, c->axis[2].kernel},
                s[4] = {c->wc, c->wk[0], c->wk[1], c->wk[2]};
  for (int i = 3; i >= 0; step *= n[i--])
    if (n[i] != 1 && s[i] != step) return false;
  return K > 0;
}

/* images whose padded planes are held at a time */
static int64_t chunk_of(const conv_job *j) {
  const int64_t bytes = j->c->C * j->g.total * (j->c->dtype == HAIAN_F64 ? 8 : 4);
  const int64_t images = PLANES_BYTES / (bytes < 1 ? 1 : bytes);
  return images < 1 ? 1 : images < j->c->N ? images : j->c->N;
}

static void plan_phase(conv_job *j) {
  const conv *c = j->c;
  for (int64_t ic = 0; ic < c->cg; ic++)
    for (int64_t t = 0; t < j->phase->taps; t++)
      j->offset[ic * j->phase->taps + t] = ic * j->g.total + j->phase->offset[t];
}

static int64_t grain_of(int64_t work) { return work >= 32768 ? 1 : 32768 / (work < 1 ? 1 : work) + 1; }

static void product_phase(conv_job *j, int64_t images, bool pack) {
  const conv *c = j->c;
  const conv_phase *p = j->phase;
  const int64_t threads = haian_num_threads(), nr = j->plain->nr;
  j->K = c->cg * p->taps;
  j->kblocks = j->K <= KC + KC / 2 ? j->K > 0 : (j->K + KC - 1) / KC;
  j->kc = j->kblocks ? (j->K + j->kblocks - 1) / j->kblocks : 0;
  j->columns = images * p->out[0] * p->out[1] * p->out[2];
  j->nc = NC;
  const int64_t all = j->columns * c->groups * j->parts;
  if (threads > 1 && all < 2 * threads * NC) j->nc = plane_up((all + 2 * threads - 1) / (2 * threads), nr);
  if (j->nc > plane_up(j->columns, nr)) j->nc = plane_up(j->columns, nr);
  j->blocks = (j->columns + j->nc - 1) / j->nc;
  if (pack) {
    plan_phase(j);
    if (j->dense) haian_parallel_for(c->groups * c->og, grain_of(j->K * 4), PICK(c, gather_weights), j);
    haian_parallel_for(c->groups * j->parts * j->kblocks, grain_of(j->mp * j->kc), PICK(c, pack_weights), j);
  }
  haian_parallel_for(c->groups * j->blocks * j->parts, grain_of(j->mp * j->nc * (j->K + 1)), PICK(c, product_tasks), j);
}

static int32_t run_product(conv_job *j, bool transposed) {
  const conv *c = j->c;
  const int64_t real = c->dtype == HAIAN_F64 ? 8 : 4;
  int64_t taps = 1;
  for (int64_t q = 0; q < j->phases; q++) taps = j->list[q].taps > taps ? j->list[q].taps : taps;
  const int64_t K = c->cg * taps, images = chunk_of(j);
  j->plain = HAIAN_SYM(gemm_kind)(c->dtype == HAIAN_F64 ? HAIAN_F64 : HAIAN_F32, HAIAN_F32, true);
  j->kind = HAIAN_SYM(gemm_kind)(c->dtype, HAIAN_F32, true);
  j->parts = (c->og + MP - 1) / MP;
  j->mp = plane_up((c->og + j->parts - 1) / j->parts, j->plain->mr);
  j->parts = (c->og + j->mp - 1) / j->mp;
  const bool in_place = !transposed && rows_of_weights(c, K);
  const int64_t planes = plane_up(images * c->C * j->g.total, 64);
  const int64_t packed = plane_up(c->groups * j->parts * (j->mp * K + (K / KC + 2) * PACK_SLACK), 64);
  const int64_t dense = in_place ? 0 : plane_up(c->groups * c->og * K, 64);
  char *memory = HAIAN_SYM(workspace)(1, (size_t)((planes + packed + dense) * real + K * 8));
  if (!memory) return out_of_memory(c->op);
  j->planes = memory;
  j->packed = memory + planes * real;
  j->dense = in_place ? NULL : memory + (planes + packed) * real;
  j->offset = (int64_t *)(void *)(memory + (planes + packed + dense) * real);
  for (j->image0 = 0; j->image0 < c->N; j->image0 += images) {
    const int64_t n = c->N - j->image0 < images ? c->N - j->image0 : images;
    haian_parallel_for(n * c->C, grain_of(j->g.total), PICK(c, fill_planes), j);
    for (int64_t q = 0; q < j->phases; q++) {
      j->phase = &j->list[q];
      product_phase(j, n, j->phases > 1 || j->image0 == 0);
    }
  }
  return j->failed ? out_of_memory(c->op) : HAIAN_OK;
}

/* y from x and w, all of it written */
static int32_t forward(const conv *c, bool transposed) {
  int32_t status = HAIAN_OK;
  if (c->N == 0 || c->og * c->groups == 0) return HAIAN_OK;
  if (c->cg > 1 && pointwise(c, &status)) return status;
  conv_job j = {.c = c};
  void *memory = make_phases(&j, transposed);
  if (!memory) return out_of_memory(c->op);
  if (c->cg == 1 && c->og <= DIRECT) {
    haian_parallel_for(c->N * c->groups, grain_of(j.g.total * c->og), PICK(c, direct_planes), &j);
    status = j.failed ? out_of_memory(c->op) : HAIAN_OK;
  } else {
    status = run_product(&j, transposed);
  }
  free(memory);
  return status;
}

/* w from x and y: the weights whose product over x has gradient y */
static int32_t weights(const conv *c) {
  int32_t status = HAIAN_OK;
  if (c->cg * c->og * c->groups == 0) return HAIAN_OK;
  conv_job j = {.c = c};
  void *memory = make_phases(&j, false);
  if (!memory) return out_of_memory(c->op);
  j.phase = j.list;
  if (c->cg == 1 && c->og <= DIRECT) {
    haian_parallel_for(c->groups, 1, PICK(c, direct_weights), &j);
    status = j.failed ? out_of_memory(c->op) : HAIAN_OK;
    free(memory);
    return status;
  }
  const int64_t real = c->dtype == HAIAN_F64 ? 8 : 4, images = chunk_of(&j), threads = haian_num_threads();
  j.plain = HAIAN_SYM(gemm_kind)(c->dtype == HAIAN_F64 ? HAIAN_F64 : HAIAN_F32, HAIAN_F32, true);
  j.K = c->cg * j.phase->taps;
  j.kc = KC;
  j.parts = (c->og + MP - 1) / MP;
  j.mp = plane_up((c->og + j.parts - 1) / j.parts, j.plain->mr);
  j.parts = (c->og + j.mp - 1) / j.mp;
  j.nc = NC;
  const int64_t all = j.K * c->groups * j.parts;
  if (threads > 1 && all < 2 * threads * NC) j.nc = plane_up((all + 2 * threads - 1) / (2 * threads), j.plain->nr);
  if (j.nc > plane_up(j.K, j.plain->nr)) j.nc = plane_up(j.K, j.plain->nr);
  j.blocks = (j.K + j.nc - 1) / j.nc;
  const int64_t planes = plane_up(images * c->C * j.g.total, 64), dense = plane_up(c->groups * c->og * j.K, 64);
  char *space = HAIAN_SYM(workspace)(1, (size_t)((planes + dense) * real + j.K * 8));
  if (!space) {
    free(memory);
    return out_of_memory(c->op);
  }
  j.planes = space;
  j.dense = space + planes * real;
  j.offset = (int64_t *)(void *)(space + (planes + dense) * real);
  plan_phase(&j);
  if (c->N == 0) memset(j.dense, 0, (size_t)(dense * real));
  for (j.image0 = 0; j.image0 < c->N; j.image0 += images) {
    const int64_t n = c->N - j.image0 < images ? c->N - j.image0 : images;
    j.columns = n * j.phase->out[0] * j.phase->out[1] * j.phase->out[2];
    haian_parallel_for(n * c->C, grain_of(j.g.total), PICK(c, fill_planes), &j);
    haian_parallel_for(c->groups * j.parts * j.blocks, 1, PICK(c, weight_tasks), &j);
  }
  haian_parallel_for(c->groups * c->og, grain_of(j.K * 4), PICK(c, scatter_weights), &j);
  free(memory);
  return j.failed ? out_of_memory(c->op) : HAIAN_OK;
}

/* ---- checks ---------------------------------------------------------------------------------------------------------- */
typedef struct spatial {
  int axes;
  int64_t stride[3], pad[3], dilation[3], extra[3], groups;
  bool transposed;
  int64_t shape[HAIAN_MAX_RANK]; /* of the result */
} spatial;

static int32_t check_conv(const char *op, const haian_args *args, int first, const haian_tensor *x,
                          const haian_tensor *w, spatial *s) {
  HAIAN_REQUIRE(x && w, HAIAN_INVALID_ARGUMENT, "%s: input or weight is missing; pass tensors", op);
  HAIAN_REQUIRE(x->dtype > 0 && x->dtype < HAIAN_DTYPE_END && (HAIAN_FLOATS & HAIAN_BIT(x->dtype)), HAIAN_DTYPE,
                "%s: input has dtype %s; accepts float32, float16, bfloat16, float64; cast it first", op,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(w->dtype == x->dtype, HAIAN_DTYPE, "%s: dtypes %s and %s differ; cast one first", op,
                haian_dtype_name(x->dtype), haian_dtype_name(w->dtype));
  HAIAN_REQUIRE(x->ndim >= 3 && x->ndim <= 5, HAIAN_SHAPE, "%s: input has shape %s; needs 3 or 4 or 5 axes", op,
                PLANE_TEXT(x));
  HAIAN_REQUIRE(w->ndim == x->ndim, HAIAN_SHAPE, "%s: input is %s and weight %s; both need the same number of axes", op,
                PLANE_TEXT(x), PLANE_TEXT(w));
  const int axes = s->axes = x->ndim - 2;
  for (int i = 0; i < 3; i++) s->stride[i] = s->dilation[i] = 1, s->pad[i] = s->extra[i] = 0;
  PLANE_TRY(plane_ints(op, args, first, "stride", axes, 1, s->stride));
  PLANE_TRY(plane_ints(op, args, first + 1, "padding", axes, 0, s->pad));
  PLANE_TRY(plane_ints(op, args, first + 2, "dilation", axes, 1, s->dilation));
  s->transposed = plane_flag(args, first + 3);
  PLANE_TRY(plane_ints(op, args, first + 4, "output_padding", axes, 0, s->extra));
  s->groups = first + 5 < args->n_attr ? args->attr[first + 5].i : 1;
  HAIAN_REQUIRE(s->groups >= 1 && s->groups < (int64_t)1 << 31, HAIAN_INVALID_ARGUMENT,
                "%s: groups %lld; needs 1 or more", op, (long long)s->groups);
  for (int i = 2; i < w->ndim; i++)
    HAIAN_REQUIRE(w->shape[i] > 0 && w->shape[i] < (int64_t)1 << 31, HAIAN_SHAPE,
                  "%s: weight is %s; every spatial axis of it needs one tap at least", op, PLANE_TEXT(w));
  const int64_t takes = s->transposed ? w->shape[0] : w->shape[1] * s->groups;
  HAIAN_REQUIRE(x->shape[1] == takes && w->shape[0] % s->groups == 0, HAIAN_SHAPE,
                "%s: input is %s and weight %s with groups %lld; weight takes %lld channels, input has %lld, and "
                "weight's first axis must "
                "be a multiple of groups",
                op, PLANE_TEXT(x), PLANE_TEXT(w), (long long)s->groups, (long long)takes, (long long)x->shape[1]);
  s->shape[0] = x->shape[0];
  s->shape[1] = s->transposed ? w->shape[1] * s->groups : w->shape[0];
  for (int i = 0; i < axes; i++) {
    const int k = 3 - axes + i;
    const int64_t reach = s->dilation[k] * (w->shape[2 + i] - 1) + 1, n = x->shape[2 + i];
    int64_t size;
    if (s->transposed) {
      HAIAN_REQUIRE(s->extra[k] < s->stride[k] || s->extra[k] < s->dilation[k], HAIAN_INVALID_ARGUMENT,
                    "%s: output_padding %lld with stride %lld and dilation %lld; needs less than the larger of the two",
                    op, (long long)s->extra[k], (long long)s->stride[k], (long long)s->dilation[k]);
      size = (n - 1) * s->stride[k] - 2 * s->pad[k] + reach + s->extra[k];
    } else {
      const int64_t room = n + 2 * s->pad[k] - reach;
      size = room < 0 ? 0 : room / s->stride[k] + 1;
    }
    HAIAN_REQUIRE(size >= 1, HAIAN_SHAPE,
                  "%s: input is %s, weight %s, stride %lld, padding %lld, dilation %lld; spatial axis %d of the result "
                  "would have %lld "
                  "elements; needs 1 or more",
                  op, PLANE_TEXT(x), PLANE_TEXT(w), (long long)s->stride[k], (long long)s->pad[k],
                  (long long)s->dilation[k], i, (long long)size);
    s->shape[2 + i] = size;
  }
  return HAIAN_OK;
}

static int32_t check_result(const char *op, const char *what, const haian_tensor *t, int32_t dtype, int64_t ndim,
                            const int64_t *shape) {
  HAIAN_REQUIRE(t, HAIAN_INVALID_ARGUMENT, "%s: %s is missing; pass a tensor", op, what);
  HAIAN_REQUIRE(t->dtype == dtype, HAIAN_DTYPE, "%s: %s has dtype %s; needs %s", op, what, haian_dtype_name(t->dtype),
                haian_dtype_name(dtype));
  bool same = t->ndim == ndim;
  for (int i = 0; same && i < ndim; i++) same = t->shape[i] == shape[i];
  HAIAN_REQUIRE(same, HAIAN_SHAPE, "%s: %s is %s; needs %s", op, what, PLANE_TEXT(t), plane_show(ndim, shape).s);
  return HAIAN_OK;
}

/* strides (image, channel, d, h, w); missing axes stand still */
static void strides_of(int64_t *to, const haian_tensor *t) {
  const int axes = t->ndim - 2;
  to[0] = t->stride[0];
  to[1] = t->stride[1];
  for (int i = 0; i < 3; i++) to[2 + i] = i < 3 - axes ? 0 : t->stride[2 + i - (3 - axes)];
}

/* What shows input (y is the result of a product over it) or, adjoint, result: x and y change places. */
static conv describe(const char *op, const spatial *s, const haian_tensor *x, const haian_tensor *y,
                     const haian_tensor *w) {
  conv c = {.op = op,
            .dtype = x->dtype,
            .item = haian_itemsize(x->dtype),
            .N = x->shape[0],
            .C = x->shape[1],
            .groups = s->groups};
  c.x = x->data;
  c.y = y->data;
  c.w = w->data;
  c.cg = x->shape[1] / s->groups;
  c.og = y->shape[1] / s->groups;
  strides_of(c.xs, x);
  strides_of(c.ys, y);
  for (int i = 0; i < 3; i++) {
    const int axis = i - (3 - s->axes);
    c.axis[i] = (plane_axis){
        .in = 1, .out = 1, .kernel = 1, .stride = s->stride[i], .pad = s->pad[i], .dilation = s->dilation[i]};
    if (axis < 0) continue;
    c.axis[i].in = x->shape[2 + axis];
    c.axis[i].out = y->shape[2 + axis];
    c.axis[i].kernel = w->shape[2 + axis];
    c.wk[i] = w->stride[2 + axis];
  }
  return c;
}
/* weight (out, in / groups, ...) of a product; adjoint: (in, out / groups, ...) */
static void weigh(conv *c, const haian_tensor *w, bool adjoint) {
  c->wg = (adjoint ? c->cg : c->og) * w->stride[0];
  c->wo = w->stride[adjoint ? 1 : 0];
  c->wc = w->stride[adjoint ? 0 : 1];
}

/* input (N, C, ...), weight, bias (O) or not given -> (N, O, ...) */
static int32_t convolution(const haian_args *args) {
  const char *op = "convolution";
  HAIAN_REQUIRE(args->n_in >= 2 && args->n_out == 1 && args->n_attr == 6, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs 2 or 3, 1, 6", op, args->n_in, args->n_out,
                args->n_attr);
  const haian_tensor *x = args->in[0], *w = args->in[1], *bias = args->n_in > 2 ? args->in[2] : NULL, *y = args->out[0];
  spatial s;
  PLANE_TRY(check_conv(op, args, 0, x, w, &s));
  if (bias) {
    HAIAN_REQUIRE(bias->dtype == x->dtype, HAIAN_DTYPE, "%s: dtypes %s and %s differ; cast one first", op,
                  haian_dtype_name(x->dtype), haian_dtype_name(bias->dtype));
    HAIAN_REQUIRE(bias->ndim == 1 && bias->shape[0] == s.shape[1], HAIAN_SHAPE,
                  "%s: bias is %s; needs (%lld,), one an output channel", op, PLANE_TEXT(bias), (long long)s.shape[1]);
  }
  PLANE_TRY(check_result(op, "the result", y, x->dtype, x->ndim, s.shape));
  conv c = describe(op, &s, x, y, w);
  weigh(&c, w, s.transposed);
  c.bias = bias ? bias->data : NULL;
  c.bias_stride = bias ? bias->stride[0] : 0;
  return forward(&c, s.transposed);
}

/* dy, input, weight -> dinput, dweight, dbias; those the mask leaves out have shape (0) */
static int32_t convolution_backward(const haian_args *args) {
  const char *op = "convolution_backward";
  HAIAN_REQUIRE(args->n_in == 3 && args->n_out == 3 && args->n_attr == 8, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs 3, 3, 8", op, args->n_in, args->n_out, args->n_attr);
  const haian_tensor *dy = args->in[0], *x = args->in[1], *w = args->in[2], *dx = args->out[0], *dw = args->out[1],
                     *db = args->out[2];
  spatial s;
  PLANE_TRY(check_conv(op, args, 1, x, w, &s));
  HAIAN_REQUIRE(dy && dy->dtype == x->dtype, HAIAN_DTYPE, "%s: dtypes %s and %s differ; cast one first", op,
                haian_dtype_name(x->dtype), dy ? haian_dtype_name(dy->dtype) : "none");
  PLANE_TRY(check_result(op, "dy", dy, x->dtype, x->ndim, s.shape));
  const haian_attr *sizes = &args->attr[0], *mask = &args->attr[7];
  HAIAN_REQUIRE(sizes->kind == HAIAN_NONE || (sizes->count == 1 && sizes->v[0] == s.shape[1]), HAIAN_SHAPE,
                "%s: bias_sizes %s; needs (%lld,) or None", op, plane_show(sizes->count, sizes->v).s,
                (long long)s.shape[1]);
  HAIAN_REQUIRE(mask->kind == HAIAN_INTS && mask->count == 3, HAIAN_INVALID_ARGUMENT,
                "%s: output_mask %s; needs 3 entries: input, weight, bias", op, plane_show(mask->count, mask->v).s);
  const int64_t none[1] = {0};
  PLANE_TRY(check_result(op, "dinput", dx, x->dtype, mask->v[0] ? x->ndim : 1, mask->v[0] ? x->shape : none));
  PLANE_TRY(check_result(op, "dweight", dw, x->dtype, mask->v[1] ? w->ndim : 1, mask->v[1] ? w->shape : none));
  PLANE_TRY(check_result(op, "dbias", db, x->dtype, 1, mask->v[2] ? s.shape + 1 : none));
  if (mask->v[0]) { /* the adjoint of what the operator did, from dy to dinput */
    conv c = describe(op, &s, dy, dx, w);
    weigh(&c, w, !s.transposed);
    PLANE_TRY(forward(&c, !s.transposed));
  }
  if (mask->v[1]) { /* transposed: dy shows what input was multiplied with */
    conv c = s.transposed ? describe(op, &s, dy, x, dw) : describe(op, &s, x, dy, dw);
    weigh(&c, dw, false);
    PLANE_TRY(weights(&c));
  }
  if (mask->v[2]) {
    conv c = describe(op, &s, x, dy, w);
    c.bias = db->data;
    c.bias_stride = db->stride[0];
    conv_job j = {.c = &c};
    haian_parallel_for(s.shape[1], grain_of(count_of(s.shape, x->ndim) / (s.shape[1] < 1 ? 1 : s.shape[1])),
                       PICK(&c, channel_sums), &j);
  }
  return HAIAN_OK;
}

/* x (B, C, L), weight (C, width), bias (C) or not given -> (B, C, L) */
static int32_t causal_conv1d(const haian_args *args) {
  const char *op = "causal_conv1d";
  HAIAN_REQUIRE(args->n_in >= 2 && args->n_out == 1 && args->n_attr == 1, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs 2 or 3, 1, 1", op, args->n_in, args->n_out,
                args->n_attr);
  int32_t failed = 0;
  causal c = {.x = args->in[0],
              .weight = args->in[1],
              .bias = args->n_in > 2 ? args->in[2] : NULL,
              .y = args->out[0],
              .failed = &failed};
  HAIAN_REQUIRE(c.x && c.weight, HAIAN_INVALID_ARGUMENT, "%s: x or weight is missing; pass tensors", op);
  const int32_t dtype = c.x->dtype;
  HAIAN_REQUIRE(dtype > 0 && dtype < HAIAN_DTYPE_END && (HAIAN_FLOATS & HAIAN_BIT(dtype)), HAIAN_DTYPE,
                "%s: x has dtype %s; accepts float32, float16, bfloat16, float64; cast it first", op,
                haian_dtype_name(dtype));
  HAIAN_REQUIRE(c.weight->dtype == dtype && (!c.bias || c.bias->dtype == dtype), HAIAN_DTYPE,
                "%s: x has dtype %s and weight %s; cast one first", op, haian_dtype_name(dtype),
                haian_dtype_name(c.weight->dtype));
  HAIAN_REQUIRE(c.x->ndim == 3, HAIAN_SHAPE, "%s: x has shape %s; needs 3 axes", op, PLANE_TEXT(c.x));
  HAIAN_REQUIRE(c.weight->ndim == 2, HAIAN_SHAPE, "%s: weight has shape %s; needs 2 axes", op, PLANE_TEXT(c.weight));
  HAIAN_REQUIRE(c.weight->shape[0] == c.x->shape[1] && c.weight->shape[1] >= 1, HAIAN_SHAPE,
                "%s: x is %s and weight %s; weight needs (%lld, width), width 1 or more", op, PLANE_TEXT(c.x),
                PLANE_TEXT(c.weight), (long long)c.x->shape[1]);
  HAIAN_REQUIRE(!c.bias || (c.bias->ndim == 1 && c.bias->shape[0] == c.x->shape[1]), HAIAN_SHAPE,
                "%s: bias is %s; needs (%lld,)", op, c.bias ? PLANE_TEXT(c.bias) : "", (long long)c.x->shape[1]);
  PLANE_TRY(check_result(op, "the result", c.y, dtype, 3, c.x->shape));
  c.silu = args->attr[0].i == 1;
  if (c.y->numel == 0) return HAIAN_OK;
  haian_parallel_for(c.x->shape[0] * c.x->shape[1], grain_of(c.x->shape[2] * (c.weight->shape[1] + 8)),
                     dtype == HAIAN_F64 ? causal_rows_r64 : causal_rows_r32, &c);
  return failed ? out_of_memory(op) : HAIAN_OK;
}

/* ---- im2col, col2im -------------------------------------------------------------------------------------------------- */
/* kernel_size, dilation, padding, stride from attribute `first` on; axis[].in are set */
static int32_t check_columns(const char *op, const haian_args *args, int first, columns *c) {
  int64_t kernel[3] = {1, 1, 1}, dilation[3] = {1, 1, 1}, pad[3] = {0, 0, 0}, stride[3] = {1, 1, 1};
  PLANE_TRY(plane_ints(op, args, first, "kernel_size", 2, 1, kernel));
  PLANE_TRY(plane_ints(op, args, first + 1, "dilation", 2, 1, dilation));
  PLANE_TRY(plane_ints(op, args, first + 2, "padding", 2, 0, pad));
  PLANE_TRY(plane_ints(op, args, first + 3, "stride", 2, 1, stride));
  for (int i = 1; i < 3; i++) {
    const int64_t room = c->axis[i].in + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1;
    c->axis[i] =
        (plane_axis){c->axis[i].in, room < 0 ? 0 : room / stride[i] + 1, kernel[i], stride[i], pad[i], dilation[i], 0};
    HAIAN_REQUIRE(room >= 0, HAIAN_SHAPE,
                  "%s: images of %lld by %lld with kernel_size %s hold no block; needs 1 or more", op,
                  (long long)c->axis[1].in, (long long)c->axis[2].in, plane_show(2, kernel + 1).s);
  }
  return HAIAN_OK;
}

#define MOVE_RUN(type) \
  for (int64_t i = 0; i < n; i++) ((type *)(void *)y)[i * ys] = x ? ((const type *)(const void *)x)[i * xs] : (type)0
static void move_run(char *y, int64_t ys, const char *x, int64_t xs, int64_t n, int64_t item) { /* x NULL: zeros */
  if (ys == 1 && (xs == 1 || !x)) {
    if (x) memcpy(y, x, (size_t)(n * item));
    else memset(y, 0, (size_t)(n * item));
  } else if (item == 2) {
    MOVE_RUN(uint16_t);
  } else if (item == 4) {
    MOVE_RUN(uint32_t);
  } else {
    MOVE_RUN(uint64_t);
  }
}

/* item: (image, channel, tap) */
static void unfold_rows(void *ctx, int64_t lo, int64_t hi) {
  const columns *c = ctx;
  const plane_axis *h = &c->axis[1], *w = &c->axis[2];
  for (int64_t i = lo; i < hi; i++) {
    const int64_t taps = h->kernel * w->kernel, tap = i % taps, ch = i / taps % c->channels, n = i / taps / c->channels;
    const int64_t up = tap / w->kernel * h->dilation - h->pad, across = tap % w->kernel * w->dilation - w->pad;
    int64_t first = across < 0 ? (-across + w->stride - 1) / w->stride : 0;
    first = first < w->out ? first : w->out;
    const int64_t fits = w->in - across <= 0 ? 0 : (w->in - 1 - across) / w->stride + 1;
    const int64_t last = fits < first ? first : fits < w->out ? fits : w->out;
    for (int64_t oh = 0; oh < h->out; oh++) {
      const int64_t ih = oh * h->stride + up, step = c->ys[2];
      char *y = c->y + (n * c->ys[0] + (ch * taps + tap) * c->ys[1] + oh * w->out * step) * c->item;
      if (ih < 0 || ih >= h->in) {
        move_run(y, step, NULL, 1, w->out, c->item);
        continue;
      }
      const char *x =
          c->x + (n * c->xs[0] + ch * c->xs[1] + ih * c->xs[2] + (first * w->stride + across) * c->xs[3]) * c->item;
      move_run(y, step, NULL, 1, first, c->item);
      if (last > first) move_run(y + first * step * c->item, step, x, w->stride * c->xs[3], last - first, c->item);
      move_run(y + last * step * c->item, step, NULL, 1, w->out - last, c->item);
    }
  }
}

/* x (N, C, H, W) or (C, H, W) -> (N, C * kernel, blocks) */
static int32_t im2col(const haian_args *args) {
  const char *op = "im2col";
  HAIAN_REQUIRE(args->n_in == 1 && args->n_out == 1 && args->n_attr == 4 && args->in[0], HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs 1, 1, 4", op, args->n_in, args->n_out, args->n_attr);
  const haian_tensor *x = args->in[0], *y = args->out[0];
  HAIAN_REQUIRE((HAIAN_FLOATS & HAIAN_BIT(x->dtype)) != 0, HAIAN_DTYPE,
                "%s: x has dtype %s; accepts float32, float16, bfloat16, float64; cast it first", op,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(x->ndim == 3 || x->ndim == 4, HAIAN_SHAPE, "%s: x has shape %s; needs 3 or 4 axes", op, PLANE_TEXT(x));
  const int lead = x->ndim - 3;
  columns c = {.dtype = x->dtype, .item = haian_itemsize(x->dtype), .channels = x->shape[lead], .x = x->data};
  for (int i = 0; i < 2; i++) c.axis[1 + i].in = x->shape[lead + 1 + i];
  PLANE_TRY(check_columns(op, args, 0, &c));
  const int64_t taps = c.axis[1].kernel * c.axis[2].kernel;
  int64_t shape[3] = {x->shape[0], 0, 0};
  shape[lead] = c.channels * taps;
  shape[lead + 1] = c.axis[1].out * c.axis[2].out;
  PLANE_TRY(check_result(op, "the result", y, x->dtype, lead + 2, shape));
  if (y->numel == 0) return HAIAN_OK;
  c.y = y->data;
  for (int i = 0; i < 3; i++) c.xs[1 + i] = x->stride[lead + i];
  for (int i = 0; i < 2; i++) c.ys[1 + i] = y->stride[lead + i];
  c.xs[0] = lead ? x->stride[0] : 0;
  c.ys[0] = lead ? y->stride[0] : 0;
  haian_parallel_for((lead ? x->shape[0] : 1) * c.channels * taps, grain_of(shape[lead + 1]), unfold_rows, &c);
  return HAIAN_OK;
}

/* x (N, C * kernel, blocks) or (C * kernel, blocks) -> (N, C, H, W) */
static int32_t col2im(const haian_args *args) {
  const char *op = "col2im";
  HAIAN_REQUIRE(args->n_in == 1 && args->n_out == 1 && args->n_attr == 5 && args->in[0], HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs 1, 1, 5", op, args->n_in, args->n_out, args->n_attr);
  const haian_tensor *x = args->in[0], *y = args->out[0];
  HAIAN_REQUIRE((HAIAN_FLOATS & HAIAN_BIT(x->dtype)) != 0, HAIAN_DTYPE,
                "%s: x has dtype %s; accepts float32, float16, bfloat16, float64; cast it first", op,
                haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(x->ndim == 2 || x->ndim == 3, HAIAN_SHAPE, "%s: x has shape %s; needs 2 or 3 axes", op, PLANE_TEXT(x));
  const int lead = x->ndim - 2;
  columns c = {.dtype = x->dtype, .item = haian_itemsize(x->dtype), .x = x->data};
  int64_t size[3] = {1, 1, 1};
  PLANE_TRY(plane_ints(op, args, 0, "output_size", 2, 1, size));
  c.axis[1].in = size[1];
  c.axis[2].in = size[2];
  PLANE_TRY(check_columns(op, args, 1, &c));
  const int64_t taps = c.axis[1].kernel * c.axis[2].kernel, blocks = c.axis[1].out * c.axis[2].out;
  HAIAN_REQUIRE(x->shape[lead] % taps == 0 && x->shape[lead + 1] == blocks, HAIAN_SHAPE,
                "%s: x is %s; needs (..., channels * %lld, %lld) for this kernel_size", op, PLANE_TEXT(x),
                (long long)taps, (long long)blocks);
  c.channels = x->shape[lead] / taps;
  int64_t shape[4] = {x->shape[0], 0, 0, 0};
  shape[lead] = c.channels;
  shape[lead + 1] = size[1];
  shape[lead + 2] = size[2];
  PLANE_TRY(check_result(op, "the result", y, x->dtype, lead + 3, shape));
  if (y->numel == 0) return HAIAN_OK;
  c.y = y->data;
  for (int i = 0; i < 2; i++) c.xs[1 + i] = x->stride[lead + i];
  for (int i = 0; i < 3; i++) c.ys[1 + i] = y->stride[lead + i];
  c.xs[0] = lead ? x->stride[0] : 0;
  c.ys[0] = lead ? y->stride[0] : 0;
  haian_parallel_for((lead ? x->shape[0] : 1) * c.channels, grain_of(taps * blocks), PICK(&c, fold_planes), &c);
  return c.failed ? out_of_memory(op) : HAIAN_OK;
}

const haian_kernel_entry HAIAN_TABLE(conv)[] = {
    {"convolution", convolution, HAIAN_FLOATS, NULL},
    {"convolution_backward", convolution_backward, HAIAN_FLOATS, NULL},
    {"causal_conv1d", causal_conv1d, HAIAN_FLOATS, NULL},
    {"im2col", im2col, HAIAN_FLOATS, NULL},
    {"col2im", col2im, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
