/* sort, argsort, topk, kthvalue, unique: argument checks, the axes, and who sorts what.  Not here: the sorting
 * (sort_pack.h).  NaN counts as larger than every number, -0 equals 0; of equal elements the first one comes first. */
#include "row.h"
#include <stdlib.h>

#define SORT_INSERTION \
  40                    /* rows up to this length are sorted by insertion: ~400 moves, as long as clearing the counts */
#define SORT_RUN 16     /* runs a merge sort starts from */
#define SORT_SHORT 4096 /* rows up to this length take digits of 8 bits: the counts of 11 bits would cost more */
#define SORT_CHUNK 256  /* elements looked at before the buffer of the smallest is checked */
#define SORT_GROUP 16   /* of those, compared at once */
#define SORT_SPARE 32   /* elements over twice as many as wanted that the buffer of the smallest holds */
#define SORT_FEW 64     /* results that are copied one by one */
#define SORT_LONG 16384 /* rows from this length on are cut for the threads where there are fewer rows than those */
#define SORT_PARTS 32
#define SORT_KEPT 16 /* results up to this many are kept sorted while a row is read */

/* How elements become keys. */
typedef struct sort_kind {
  int32_t item;
  bool floating, is_signed, descending;
  uint64_t infinite; /* bits of infinity */
} sort_kind;

typedef struct sort_job {
  sort_kind kind;
  int64_t n, k, from; /* length of the axis; results [from, k) of each row are wanted */
  bool one;           /* that is one of many */
  int64_t rows, parts, part_bytes;
  int64_t x_step, y_step, w_step; /* along the axis, in elements */
  const char *x;
  char *y;         /* values, or NULL */
  int64_t *w;      /* places, or NULL */
  char *scratch;   /* part_bytes a part */
  haian_walk walk; /* the other axes; tensor 0 is x, 1 the values, 2 the places */
} sort_job;

/* Packs that finding the k smallest of n needs room for. */
static inline int64_t sort_room(int64_t n, int64_t k) {
  int64_t room = 2 * k + SORT_SPARE + SORT_CHUNK; /* the bound is sharpened after k + SORT_SPARE better ones */
  return k >= n / 4 || room >= n ? n : room;
}

static inline int sort_digit(int64_t n, int bits) { return n > SORT_SHORT && bits > 16 ? 11 : 8; }

#define PACK uint64_t
#define SHIFT 32
#define KEY uint32_t
#define P(name) name##_narrow
#include "sort_pack.h"

#define PACK unsigned __int128
#define SHIFT 64
#define KEY uint64_t
#define P(name) name##_wide
#include "sort_pack.h"

#define SORTED (HAIAN_FLOATS | HAIAN_INTEGERS | HAIAN_BIT(HAIAN_BOOL))

static sort_kind kind_of(const haian_tensor *x, bool descending) {
  sort_kind k = {(int32_t)row_item(x->dtype), row_is_float(x->dtype), (HAIAN_BIT(x->dtype) & HAIAN_SIGNED) != 0,
                 descending, 0};
  k.infinite = x->dtype == HAIAN_F16    ? 0x7c00u
               : x->dtype == HAIAN_BF16 ? 0x7f80u
               : x->dtype == HAIAN_F32  ? 0x7f800000u
                                        : 0x7ff0000000000000u;
  return k;
}

/* Sorts the rows of a job that lacks its scratch. */
static int32_t sort_all(const char *name, sort_job *job) {
  bool wide = job->kind.item == 8 || job->n >> 32;
  int64_t pack = wide ? 16 : 8, threads = haian_num_threads(), n = job->n;
  job->one = job->from > 0 && job->k - job->from == 1 && n > SORT_CHUNK;
  bool cut = !job->one && job->rows < threads && n >= SORT_LONG && sort_room(n, job->k) == n;
  int64_t width = sort_digit(n, job->kind.item * 8), counts = ((int64_t)8 << width),
          room = job->one ? n : sort_room(n, job->k), bytes;
  if (cut) {
    job->parts = threads < SORT_PARTS ? threads : SORT_PARTS;
    bytes = 2 * n * pack + job->parts * counts;
  } else {
    int64_t work = job->rows * n / 2048 + 1; /* shares of 10 us at least */
    job->parts = work < threads ? work : threads;
    job->parts = job->rows < job->parts ? job->rows : job->parts;
    counts *= (job->kind.item * 8 + width - 1) / width;
    if (job->one && counts < 8 << 11) counts = 8 << 11;
    job->part_bytes = 2 * room * pack + counts;
    bytes = job->parts * job->part_bytes;
  }
  job->scratch = malloc((size_t)bytes);
  HAIAN_REQUIRE(job->scratch, HAIAN_OUT_OF_MEMORY,
                "%s: no memory for %lld bytes of scratch; sort fewer elements at once", name, (long long)bytes);
  if (cut) (wide ? sort_long_rows_wide : sort_long_rows_narrow)(job);
  else haian_parallel_for(job->parts, 1, wide ? sort_rows_wide : sort_rows_narrow, job);
  free(job->scratch);
  return HAIAN_OK;
}

/* values, places: results or NULL, of x's shape with k - from instead of the axis (without it for keepdim false). */
static int32_t run(const char *name, const haian_tensor *x, int64_t dim, bool descending, int64_t from, int64_t k,
                   bool keepdim, const haian_tensor *values, const haian_tensor *places) {
  int axis;
  HAIAN_REQUIRE(HAIAN_BIT(x->dtype) & SORTED, HAIAN_DTYPE,
                "%s: dtype %s; accepts floats, integers and bool; cast it first", name, haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(row_axis(dim, x->ndim, &axis), HAIAN_SHAPE,
                "%s: dim %lld is outside a tensor of %d axes; needs %d <= dim < %d", name, (long long)dim, x->ndim,
                x->ndim ? -x->ndim : -1, x->ndim ? x->ndim : 1);
  int64_t n = x->ndim ? x->shape[axis] : 1;
  k = k < 0 ? n : k;
  HAIAN_REQUIRE(from >= 0 && from <= k && k <= n, HAIAN_SHAPE,
                "%s: k is %lld for an axis of %lld; needs one at most as long", name, (long long)k, (long long)n);
  haian_tensor result[2];
  const haian_tensor *given[2] = {values, places};
  for (int t = 0; t < 2; t++) {
    const haian_tensor *y = given[t];
    if (!y) continue;
    HAIAN_REQUIRE(y->dtype == (t ? HAIAN_I64 : x->dtype), HAIAN_DTYPE, "%s: result %d has dtype %s; needs %s", name, t,
                  haian_dtype_name(y->dtype), haian_dtype_name(t ? HAIAN_I64 : x->dtype));
    result[t] = *y; /* with x's axes */
    bool fits = y->ndim == x->ndim - (!keepdim && x->ndim);
    for (int d = 0, from_d = 0; d < x->ndim && fits; d++) {
      bool gone = !keepdim && d == axis;
      result[t].stride[d] = gone ? 0 : y->stride[from_d];
      if (gone) continue;
      fits = y->shape[from_d++] == (d == axis ? k - from : x->shape[d]);
    }
    HAIAN_REQUIRE(fits, HAIAN_SHAPE,
                  "%s: result %d is %s for an input of %s and %lld along axis %d; it has another shape", name, t,
                  row_shape(y).text, row_shape(x).text, (long long)(k - from), axis);
  }
  if (x->numel == 0 || k == from) return HAIAN_OK;

  sort_job job;
  memset(&job, 0, sizeof job);
  const haian_tensor *tensors[3] = {x, values ? &result[0] : x, places ? &result[1] : x};
  int64_t offset[3] = {0};
  job.kind = kind_of(x, descending);
  job.n = n;
  job.k = k;
  job.from = from;
  if (x->ndim) {
    job.x_step = x->stride[axis];
    job.y_step = tensors[1]->stride[axis];
    job.w_step = tensors[2]->stride[axis];
  }
  row_walk(&job.walk, tensors, 3, ~(1u << axis));
  haian_walk_sort(&job.walk, offset);
  haian_walk_merge(&job.walk);
  job.rows = haian_walk_rows(&job.walk, job.walk.ndim);
  job.x = (const char *)x->data + offset[0] * job.kind.item;
  if (values) job.y = (char *)values->data + offset[1] * job.kind.item;
  if (places) job.w = (int64_t *)places->data + offset[2];
  return sort_all(name, &job);
}

static int32_t sort(const haian_args *args) {
  return run("sort", args->in[0], args->attr[0].i, args->attr[1].i != 0, 0, -1, true, args->out[0], args->out[1]);
}

static int32_t argsort(const haian_args *args) {
  return run("argsort", args->in[0], args->attr[0].i, args->attr[1].i != 0, 0, -1, true, NULL, args->out[0]);
}

static int32_t topk(const haian_args *args) {
  int64_t k = args->attr[0].i;
  HAIAN_REQUIRE(k >= 0, HAIAN_SHAPE, "topk: k is %lld; needs 0 at least", (long long)k);
  return run("topk", args->in[0], args->attr[1].i, args->attr[2].i != 0, 0, k, true, args->out[0], args->out[1]);
}

static int32_t kthvalue(const haian_args *args) {
  int64_t k = args->attr[0].i;
  HAIAN_REQUIRE(k >= 1, HAIAN_SHAPE, "kthvalue: k is %lld; needs 1 at least", (long long)k);
  return run("kthvalue", args->in[0], args->attr[1].i, false, k - 1, k, args->attr[2].i != 0, args->out[0],
             args->out[1]);
}

const haian_kernel_entry HAIAN_TABLE(sort)[] = {
    {"sort", sort, SORTED, NULL}, {"argsort", argsort, SORTED, NULL},
    {"topk", topk, SORTED, NULL}, {"kthvalue", kthvalue, SORTED, NULL},
    {NULL, NULL, 0, NULL},
};
