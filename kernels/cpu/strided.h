/* Walking several tensors of one shape together, whatever their strides, and copying runs of bytes.
 * For: the movement, index and random kernels.  Not here: arithmetic on elements.
 * A walk holds the axes with one stride a tensor; merged axes make the innermost one long. */
#ifndef HAIAN_STRIDED_H
#define HAIAN_STRIDED_H
#include "kernel.h"
#include <stdio.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define HAIAN_WALK_TENSORS 3
#define HAIAN_GRAIN_BYTES (64 << 10) /* work of ~5 us: below this another thread does not pay */
/* Outputs this large leave the private caches (2 MiB here) anyway: store around them.  4 MiB copied 1.26x as fast. */
#define HAIAN_STREAM_BYTES (4 << 20)

typedef struct haian_walk {
  int ndim, tensors;
  int64_t shape[HAIAN_MAX_RANK];
  int64_t stride[HAIAN_MAX_RANK][HAIAN_WALK_TENSORS]; /* in elements of the respective tensor */
} haian_walk;

static inline bool haian_walk_empty(const haian_walk *w) {
  for (int d = 0; d < w->ndim; d++)
    if (w->shape[d] == 0) return true;
  return false;
}

/* Drops axes of size 1 and merges neighbours that every tensor steps through evenly; keeps the row-major order. */
static inline void haian_walk_merge(haian_walk *w) {
  int n = 0;
  for (int d = 0; d < w->ndim; d++) {
    if (w->shape[d] == 1) continue;
    bool even = n > 0;
    for (int t = 0; t < w->tensors && even; t++) even = w->stride[n - 1][t] == w->stride[d][t] * w->shape[d];
    if (even) {
      w->shape[n - 1] *= w->shape[d];
    } else {
      w->shape[n] = w->shape[d];
      n++;
    }
    memcpy(w->stride[n - 1], w->stride[d], sizeof w->stride[d]);
  }
  w->ndim = n;
}

/* Reorders axes so that tensor 0 is walked forwards through memory, its smallest stride innermost; adds to offset[]
 * (elements, one a tensor) what turning negative axes around moves.  For work whose order does not matter. */
static inline void haian_walk_sort(haian_walk *w, int64_t *offset) {
  for (int d = 0; d < w->ndim; d++) {
    if (w->stride[d][0] >= 0) continue;
    for (int t = 0; t < w->tensors; t++) {
      offset[t] += (w->shape[d] - 1) * w->stride[d][t];
      w->stride[d][t] = -w->stride[d][t];
    }
  }
  for (int d = 1; d < w->ndim; d++) {
    int64_t shape = w->shape[d], stride[HAIAN_WALK_TENSORS];
    memcpy(stride, w->stride[d], sizeof stride);
    int at = d;
    for (; at > 0 && w->stride[at - 1][0] < stride[0]; at--) {
      w->shape[at] = w->shape[at - 1];
      memcpy(w->stride[at], w->stride[at - 1], sizeof stride);
    }
    w->shape[at] = shape;
    memcpy(w->stride[at], stride, sizeof stride);
  }
}

/* A place in a walk's outer axes [0, ndim): counters and the offset of each tensor there, in elements. */
typedef struct haian_place {
  int64_t at[HAIAN_MAX_RANK];
  int64_t offset[HAIAN_WALK_TENSORS];
} haian_place;

/* The place of row-major number `index` among axes [0, ndim). */
static inline void haian_place_seek(haian_place *p, const haian_walk *w, int ndim, int64_t index) {
  memset(p, 0, sizeof *p);
  for (int d = ndim - 1; d >= 0; d--) {
    p->at[d] = index % w->shape[d];
    index /= w->shape[d];
    for (int t = 0; t < w->tensors; t++) p->offset[t] += p->at[d] * w->stride[d][t];
  }
}

static inline void haian_place_next(haian_place *p, const haian_walk *w, int ndim) {
  for (int d = ndim - 1; d >= 0; d--) {
    for (int t = 0; t < w->tensors; t++) p->offset[t] += w->stride[d][t];
    if (++p->at[d] < w->shape[d]) return;
    for (int t = 0; t < w->tensors; t++) p->offset[t] -= w->shape[d] * w->stride[d][t];
    p->at[d] = 0;
  }
}

/* Product of the sizes of axes [0, ndim). */
static inline int64_t haian_walk_rows(const haian_walk *w, int ndim) {
  int64_t rows = 1;
  for (int d = 0; d < ndim; d++) rows *= w->shape[d];
  return rows;
}

/* "(3, 4)" into text, for messages. */
typedef struct haian_shape_text {
  char s[180];
} haian_shape_text;
static inline haian_shape_text haian_show_shape(const haian_tensor *t) {
  haian_shape_text text = {"("};
  size_t used = 1;
  for (int d = 0; d < t->ndim; d++)
    used += (size_t)snprintf(text.s + used, sizeof text.s - used, "%s%lld", d ? ", " : "", (long long)t->shape[d]);
  snprintf(text.s + used, sizeof text.s - used, t->ndim == 1 ? ",)" : ")");
  return text;
}
#define HAIAN_SHAPE_OF(t) haian_show_shape(t).s

/* ---- runs of bytes ----------------------------------------------------------------------------------------------- */
#if defined(__AVX512F__)
#define HAIAN_LINE 64
typedef __m512i haian_line;
static inline haian_line haian_line_load(const void *x) { return _mm512_loadu_si512(x); }
static inline void haian_line_stream(void *y, haian_line v) { _mm512_stream_si512(y, v); }
#elif defined(__AVX__)
#define HAIAN_LINE 32
typedef __m256i haian_line;
static inline haian_line haian_line_load(const void *x) { return _mm256_loadu_si256(x); }
static inline void haian_line_stream(void *y, haian_line v) { _mm256_stream_si256(y, v); }
#elif defined(__SSE2__)
#define HAIAN_LINE 16
typedef __m128i haian_line;
static inline haian_line haian_line_load(const void *x) { return _mm_loadu_si128(x); }
static inline void haian_line_stream(void *y, haian_line v) { _mm_stream_si128(y, v); }
#endif

/* memcpy that may store past the caches; a body that used it ends with haian_stream_fence(). */
static inline void haian_copy_run(char *y, const char *x, int64_t bytes, bool stream) {
#if defined(HAIAN_LINE)
  if (stream && bytes >= 256) {
    int64_t head = (int64_t)(-(uintptr_t)y & 63u), i = head;
    memcpy(y, x, (size_t)head);
    for (; i + 64 <= bytes; i += 64) {
      haian_line line[64 / HAIAN_LINE];
      for (int k = 0; k < 64 / HAIAN_LINE; k++) line[k] = haian_line_load(x + i + k * HAIAN_LINE);
      for (int k = 0; k < 64 / HAIAN_LINE; k++) haian_line_stream(y + i + k * HAIAN_LINE, line[k]);
    }
    memcpy(y + i, x + i, (size_t)(bytes - i));
    return;
  }
#endif
  (void)stream;
  memcpy(y, x, (size_t)bytes);
}

static inline void haian_stream_fence(void) {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

/* The copy engine (shape.c): elements of `item` bytes, any strides, tensor 0 = destination, tensor 1 = source. */
void HAIAN_SYM(copy_walk)(haian_walk walk, char *y, const char *x, int64_t item);

#endif
