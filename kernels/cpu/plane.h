/* Windows over images: the geometry of convolution and pooling, and padded copies of image planes in which every tap of
 * every window reads a contiguous run.  For: conv.c, pooling.c.  The copying itself, for float and double: plane_real.h.
 * A plane has three axes (d, h, w); missing leading ones have size 1. */
#ifndef HAIAN_PLANE_H
#define HAIAN_PLANE_H
#include "gemm/gemm.h"
#include "gemm/vec.h"

#include <stdio.h>

typedef struct plane_axis {
  int64_t in, out, kernel, stride, pad, dilation;
  int64_t size; /* positions of the padded copy */
} plane_axis;

/* Padded copy: [size d][size h][phases][width], position q of w at phase q % phases, place q / phases: with as many
 * phases as the stride, results side by side read elements side by side. */
typedef struct plane {
  plane_axis axis[3];
  int64_t phases, width, row, slice, total; /* elements; total includes room for vectors that reach over the end */
} plane;

enum { PLANE_SLACK = 4 * VBYTES / 4 };

static inline int64_t plane_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* sizes from axis[].size; phases is 1 or the stride along w */
static inline void plane_layout(plane *g, int64_t phases) {
  g->phases = phases;
  g->width = (g->axis[2].size + phases - 1) / phases;
  g->row = g->width * phases;
  g->slice = g->row * g->axis[1].size;
  g->total = plane_up(g->slice * g->axis[0].size + PLANE_SLACK, 16);
}
/* the copy that windows of the axes need, and no more */
static inline void plane_of_windows(plane *g) {
  for (int i = 0; i < 3; i++)
    g->axis[i].size = (g->axis[i].out - 1) * g->axis[i].stride + g->axis[i].dilation * (g->axis[i].kernel - 1) + 1;
  plane_layout(g, g->axis[2].stride);
}
/* where tap (kd, kh, kw) of the window at the origin lies */
static inline int64_t plane_tap(const plane *g, int64_t kd, int64_t kh, int64_t kw) {
  const int64_t q = kw * g->axis[2].dilation;
  return kd * g->axis[0].dilation * g->slice + kh * g->axis[1].dilation * g->row + q % g->phases * g->width +
         q / g->phases;
}
/* where the window of result (d, h, 0) starts */
static inline int64_t plane_window(const plane *g, int64_t d, int64_t h) {
  return d * g->axis[0].stride * g->slice + h * g->axis[1].stride * g->row;
}

/* "(2, 3)" for messages */
typedef struct plane_text {
  char s[HAIAN_MAX_RANK * 21 + 4];
} plane_text;
static inline plane_text plane_show(int64_t n, const int64_t *shape) {
  plane_text t;
  size_t used = (size_t)snprintf(t.s, sizeof t.s, "(");
  for (int64_t i = 0; i < n && i < HAIAN_MAX_RANK; i++)
    used += (size_t)snprintf(t.s + used, sizeof t.s - used, i ? ", %lld" : "%lld", (long long)shape[i]);
  snprintf(t.s + used, sizeof t.s - used, n == 1 ? ",)" : ")");
  return t;
}
#define PLANE_TEXT(t) plane_show((t)->ndim, (t)->shape).s

/* attribute i as one entry a spatial axis, into to[3 - axes ..]; one entry holds for all.  The others keep their values */
static inline int32_t plane_ints(const char *op, const haian_args *args, int i, const char *name, int axes,
                                 int64_t least, int64_t *to) {
  HAIAN_REQUIRE(i < args->n_attr && args->attr[i].kind == HAIAN_INTS, HAIAN_INVALID_ARGUMENT,
                "%s: %s is missing; pass integers", op, name);
  const haian_attr *a = &args->attr[i];
  HAIAN_REQUIRE(a->count == 1 || a->count == axes, HAIAN_SHAPE,
                "%s: %s %s has %d entries; needs 1 or %d, one a spatial axis", op, name, plane_show(a->count, a->v).s,
                a->count, axes);
  for (int k = 0; k < axes; k++) {
    const int64_t v = a->v[a->count == 1 ? 0 : k];
    HAIAN_REQUIRE(v >= least && v < (int64_t)1 << 31, HAIAN_INVALID_ARGUMENT,
                  "%s: %s %s; needs %lld or more in every entry", op, name, plane_show(a->count, a->v).s,
                  (long long)least);
    to[3 - axes + k] = v;
  }
  return HAIAN_OK;
}
static inline bool plane_flag(const haian_args *args, int i) {
  return i < args->n_attr && args->attr[i].kind == HAIAN_INT && args->attr[i].i != 0;
}

#define PLANE_TRY(call)                      \
  do {                                       \
    const int32_t status_ = (call);          \
    if (status_ != HAIAN_OK) return status_; \
  } while (0)
#endif
