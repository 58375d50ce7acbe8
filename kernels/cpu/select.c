/* nonzero_static: the indices of elements that are not zero, counted in blocks first, then written by all threads.
 * Not here: gathering by them (index.c). */
#include "row.h"
#include <stdlib.h>

#define SELECT_BLOCK 8192 /* elements whose hits are counted as one */
#define SELECT_RUN 512    /* of one innermost axis, looked at before their indices are written */

typedef struct select_job {
  int32_t item, ndim;
  uint64_t mask; /* bits that make an element not zero: all but the sign of a float */
  const char *x;
  int64_t shape[HAIAN_MAX_RANK], stride[HAIAN_MAX_RANK]; /* of x; ndim >= 1 */
  int64_t numel, size;
  int64_t *y, step, across; /* result (size, ndim), and its strides */
  int64_t *before;          /* hits before each block */
} select_job;

/* Positions of the elements [from, from + n) of a run that are not zero, in order; how many.  n <= SELECT_RUN. */
#define HITS(U)                             \
  {                                         \
    const U *s = (const U *)x;              \
    const U mask = (U)job->mask;            \
    for (int32_t i = 0; i < n; i++) {       \
      hits[count] = i;                      \
      count += (s[i * stride] & mask) != 0; \
    }                                       \
  }
static int32_t find_hits(const select_job *job, const char *x, int64_t stride, int32_t n, int32_t *hits) {
  int32_t count = 0;
  if (job->item == 1) HITS(uint8_t)
  else if (job->item == 2) HITS(uint16_t)
  else if (job->item == 4) HITS(uint32_t)
  else HITS(uint64_t)
  return count;
}
#undef HITS
#define HITS(U)                                                                    \
  {                                                                                \
    const U *s = (const U *)x;                                                     \
    const U mask = (U)job->mask;                                                   \
    U sum = 0; /* n <= SELECT_RUN: bytes would wrap, so those are counted wider */ \
    if (stride == 1 && sizeof(U) > 1)                                              \
      for (int32_t i = 0; i < n; i++) sum = (U)(sum + ((s[i] & mask) != 0));       \
    else                                                                           \
      for (int32_t i = 0; i < n; i++) wide += (s[i * stride] & mask) != 0;         \
    return wide + (int32_t)sum;                                                    \
  }
static int32_t count_hits(const select_job *job, const char *x, int64_t stride, int32_t n) {
  int32_t wide = 0;
  if (job->item == 1) HITS(uint8_t)
  else if (job->item == 2) HITS(uint16_t)
  else if (job->item == 4) HITS(uint32_t)
  else HITS(uint64_t)
}
#undef HITS

/* Visits block `number` run by run; writes hits from row `row` on, or only counts them (row < 0). */
static int64_t visit(const select_job *job, int64_t number, int64_t row) {
  int last = job->ndim - 1;
  int64_t at[HAIAN_MAX_RANK], rest = number * SELECT_BLOCK, left = job->numel - rest, offset = 0, count = 0;
  int32_t hits[SELECT_RUN];
  left = left < SELECT_BLOCK ? left : SELECT_BLOCK;
  for (int d = last; d >= 0; d--) {
    at[d] = rest % job->shape[d];
    rest /= job->shape[d];
    offset += at[d] * job->stride[d];
  }
  while (left > 0) {
    int64_t n = job->shape[last] - at[last];
    n = n < left ? n : left;
    n = n < SELECT_RUN ? n : SELECT_RUN;
    const char *x = job->x + offset * job->item;
    if (row < 0) {
      count += count_hits(job, x, job->stride[last], (int32_t)n);
    } else {
      int64_t found = find_hits(job, x, job->stride[last], (int32_t)n, hits), room = job->size - row;
      found = found < room ? found : room;
      int64_t *y = job->y + row * job->step;
      for (int64_t i = 0; i < found; i++, y += job->step) {
        for (int d = 0; d < last; d++) y[d * job->across] = at[d];
        y[last * job->across] = at[last] + hits[i];
      }
      row += found;
      if (row == job->size) return 0;
    }
    left -= n;
    at[last] += n;
    offset += n * job->stride[last];
    for (int d = last; d > 0 && at[d] == job->shape[d]; d--) {
      offset += job->stride[d - 1] - at[d] * job->stride[d];
      at[d] = 0;
      at[d - 1]++;
    }
  }
  return count;
}

static void count_blocks(void *ctx, int64_t lo, int64_t hi) {
  const select_job *job = ctx;
  for (int64_t b = lo; b < hi; b++) job->before[b] = visit(job, b, -1);
}

static void write_blocks(void *ctx, int64_t lo, int64_t hi) {
  const select_job *job = ctx;
  for (int64_t b = lo; b < hi; b++)
    if (job->before[b] < job->size) visit(job, b, job->before[b]);
}

static int32_t nonzero_static(const haian_args *args) {
  const haian_tensor *x = args->in[0], *y = args->out[0];
  int64_t size = args->attr[0].i, fill = args->attr[1].i;
  HAIAN_REQUIRE(HAIAN_BIT(x->dtype) & HAIAN_ANY, HAIAN_DTYPE,
                "nonzero_static: dtype %s; accepts floats, integers, bool", haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(size >= 0, HAIAN_INVALID_ARGUMENT, "nonzero_static: size is %lld; needs 0 at least", (long long)size);
  HAIAN_REQUIRE(y->dtype == HAIAN_I64, HAIAN_DTYPE, "nonzero_static: the result has dtype %s; needs int64",
                haian_dtype_name(y->dtype));
  HAIAN_REQUIRE(y->ndim == 2 && y->shape[0] == size && y->shape[1] == x->ndim, HAIAN_SHAPE,
                "nonzero_static: the result is %s; needs (%lld, %d)", row_shape(y).text, (long long)size, x->ndim);
  if (y->numel == 0) return HAIAN_OK;

  select_job job = {
      .item = (int32_t)row_item(x->dtype), .ndim = x->ndim, .x = x->data, .numel = x->numel, .size = size};
  job.mask = row_is_float(x->dtype) ? ~((uint64_t)1 << (8 * job.item - 1)) : ~(uint64_t)0;
  job.y = y->data;
  job.step = y->stride[0];
  job.across = y->stride[1];
  memcpy(job.shape, x->shape, sizeof job.shape);
  memcpy(job.stride, x->stride, sizeof job.stride);
  int64_t blocks = (x->numel + SELECT_BLOCK - 1) / SELECT_BLOCK, total = 0, few[64];
  job.before = blocks <= 64 ? few : malloc(sizeof(int64_t) * (size_t)blocks);
  HAIAN_REQUIRE(job.before, HAIAN_OUT_OF_MEMORY, "nonzero_static: no memory for %lld counts", (long long)blocks);
  int64_t grain = row_grain(SELECT_BLOCK, job.item);
  haian_parallel_for(blocks, grain, count_blocks, &job);
  for (int64_t b = 0; b < blocks; b++) {
    int64_t count = job.before[b];
    job.before[b] = total;
    total += count;
  }
  haian_parallel_for(blocks, grain, write_blocks, &job);
  for (int64_t row = total; row < size; row++)
    for (int d = 0; d < x->ndim; d++) job.y[row * job.step + d * job.across] = fill;
  if (job.before != few) free(job.before);
  return HAIAN_OK;
}

const haian_kernel_entry HAIAN_TABLE(select)[] = {
    {"nonzero_static", nonzero_static, HAIAN_ANY, NULL},
    {NULL, NULL, 0, NULL},
};
