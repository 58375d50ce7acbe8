/* embedding_bag: sums, means and maxima of rows of a weight, one bag of indices a result row.
 * Each bag is one thread's, its rows taken in order and summed in float32 (float64 for float64). */
#include "index.h"

#define BLOCK 512 /* accumulators of one row kept at once: 4 KiB of doubles */
#define SAME(v) (v)

/* ---- embedding_bag --------------------------------------------------------------------------------------------------- */
enum { BAG_SUM, BAG_MEAN, BAG_MAX, BAG_END };

typedef struct bag_job {
  const haian_tensor *weight, *indices, *offsets, *scale;
  haian_tensor *const *out;
  int64_t bags, padding, mode;
  bool wide;
} bag_job;

static inline void store_index(const haian_tensor *t, int64_t at, int64_t value) {
  if (t->dtype == HAIAN_I64) ((int64_t *)t->data)[at] = value;
  else ((int32_t *)t->data)[at] = (int32_t)value;
}
static inline int64_t bag_offset(const bag_job *job, int64_t bag) {
  if (bag >= job->offsets->numel) return job->indices->numel;
  return index_at(job->offsets->data, bag * job->offsets->stride[0], job->wide);
}

#define PREFETCH_BYTES 512 /* of the next row: what is longer is found by the processor itself */

#define DEFINE_BAG(NAME, T, A, LOAD, STORE)                                                                            \
  /* Rows first .. last of a bag, n columns from column `from` on, added up. */                                        \
  static void sum_##NAME(const bag_job *job, int64_t first, int64_t last, int64_t from, int64_t n, A *sum) {           \
    const haian_tensor *weight = job->weight;                                                                          \
    int64_t ws = weight->stride[1], is = job->indices->stride[0], ahead = n * (int64_t)sizeof(T);                      \
    if (ahead > PREFETCH_BYTES) ahead = PREFETCH_BYTES;                                                                \
    const T *some[4];                                                                                                  \
    int waiting = 0;                                                                                                   \
    for (int64_t c = 0; c < n; c++) sum[c] = 0;                                                                        \
    for (int64_t i = first; i < last; i++) {                                                                           \
      int64_t row = index_at(job->indices->data, i * is, job->wide);                                                   \
      if (i + 2 < job->indices->numel && ws == 1) { /* also of the next bag */                                         \
        int64_t next = index_at(job->indices->data, (i + 2) * is, job->wide);                                          \
        const char *w = (const char *)((const T *)weight->data + next * weight->stride[0] + from);                     \
        for (int64_t b = 0; b < ahead; b += 64) __builtin_prefetch(w + b);                                             \
      }                                                                                                                \
      if (row == job->padding) continue;                                                                               \
      const T *w = (const T *)weight->data + row * weight->stride[0] + from * ws;                                      \
      if (job->scale || ws != 1) {                                                                                     \
        A scale = job->scale ? (A)LOAD(((const T *)job->scale->data)[i * job->scale->stride[0]]) : (A)1;               \
        for (int64_t c = 0; c < n; c++) sum[c] += scale * (A)LOAD(w[c * ws]);                                          \
        continue;                                                                                                      \
      }                                                                                                                \
      some[waiting++] = w;                                                                                             \
      if (waiting < 4) continue; /* four rows a pass over the sums, in their order */                                  \
      for (int64_t c = 0; c < n; c++)                                                                                  \
        sum[c] = (((sum[c] + (A)LOAD(some[0][c])) + (A)LOAD(some[1][c])) + (A)LOAD(some[2][c])) + (A)LOAD(some[3][c]); \
      waiting = 0;                                                                                                     \
    }                                                                                                                  \
    for (int k = 0; k < waiting; k++)                                                                                  \
      for (int64_t c = 0; c < n; c++) sum[c] += (A)LOAD(some[k][c]);                                                   \
  }                                                                                                                    \
  /* The largest of them, and the first row that has it. */                                                            \
  static void max_##NAME(const bag_job *job, int64_t first, int64_t last, int64_t from, int64_t n, A *sum,             \
                         int64_t *best) {                                                                              \
    const haian_tensor *weight = job->weight;                                                                          \
    int64_t ws = weight->stride[1], is = job->indices->stride[0];                                                      \
    bool empty = true;                                                                                                 \
    for (int64_t c = 0; c < n; c++) sum[c] = 0, best[c] = -1;                                                          \
    for (int64_t i = first; i < last; i++) {                                                                           \
      int64_t row = index_at(job->indices->data, i * is, job->wide);                                                   \
      if (row == job->padding) continue;                                                                               \
      const T *w = (const T *)weight->data + row * weight->stride[0] + from * ws;                                      \
      for (int64_t c = 0; c < n; c++) {                                                                                \
        A v = (A)LOAD(w[c * ws]);                                                                                      \
        bool more = empty || v > sum[c];                                                                               \
        sum[c] = more ? v : sum[c];                                                                                    \
        best[c] = more ? row : best[c];                                                                                \
      }                                                                                                                \
      empty = false;                                                                                                   \
    }                                                                                                                  \
  }                                                                                                                    \
  static void bag_##NAME(void *ctx, int64_t lo, int64_t hi) {                                                          \
    const bag_job *job = ctx;                                                                                          \
    const haian_tensor *out = job->out[0], *top = job->out[3];                                                         \
    int64_t columns = job->weight->shape[1], is = job->indices->stride[0], ys = out->stride[1];                        \
    A sum[BLOCK];                                                                                                      \
    int64_t best[BLOCK];                                                                                               \
    for (; lo < hi; lo++) {                                                                                            \
      int64_t first = bag_offset(job, lo), last = bag_offset(job, lo + 1), count = 0;                                  \
      for (int64_t i = first; i < last; i++) {                                                                         \
        count += index_at(job->indices->data, i * is, job->wide) != job->padding;                                      \
        store_index(job->out[1], i * job->out[1]->stride[0], lo);                                                      \
      }                                                                                                                \
      store_index(job->out[2], lo * job->out[2]->stride[0], count);                                                    \
      for (int64_t from = 0; from < columns; from += BLOCK) {                                                          \
        int64_t n = columns - from < BLOCK ? columns - from : BLOCK;                                                   \
        if (job->mode == BAG_MAX) max_##NAME(job, first, last, from, n, sum, best);                                    \
        else sum_##NAME(job, first, last, from, n, sum);                                                               \
        if (job->mode == BAG_MEAN && count)                                                                            \
          for (int64_t c = 0; c < n; c++) sum[c] /= (A)count;                                                          \
        T *y = (T *)out->data + lo * out->stride[0] + from * ys;                                                       \
        if (ys == 1)                                                                                                   \
          for (int64_t c = 0; c < n; c++) y[c] = (T)STORE(sum[c]);                                                     \
        else                                                                                                           \
          for (int64_t c = 0; c < n; c++) y[c * ys] = (T)STORE(sum[c]);                                                \
        if (job->mode == BAG_MAX)                                                                                      \
          for (int64_t c = 0; c < n; c++)                                                                              \
            store_index(top, lo * top->stride[0] + (from + c) * top->stride[1], best[c]);                              \
      }                                                                                                                \
    }                                                                                                                  \
  }
DEFINE_BAG(f16, uint16_t, float, haian_f16_load, haian_f16_store)
DEFINE_BAG(bf16, uint16_t, float, haian_bf16_load, haian_bf16_store)
DEFINE_BAG(f32, float, float, SAME, SAME)
DEFINE_BAG(f64, double, double, SAME, SAME)

static int32_t check_offsets(const char *op, const bag_job *job) {
  int64_t before = 0, n = job->indices->numel;
  for (int64_t i = 0; i < job->offsets->numel; i++) {
    int64_t at = bag_offset(job, i);
    HAIAN_REQUIRE(at >= before && at <= n && (i || at == 0), HAIAN_INDEX,
                  "%s: offset %lld at position %lld; needs offsets that begin with 0, do not fall and end within %lld "
                  "indices",
                  op, (long long)at, (long long)i, (long long)n);
    before = at;
  }
  return HAIAN_OK;
}

static int32_t run_embedding_bag(const haian_args *args) {
  static const char op[] = "embedding_bag";
  HAIAN_REQUIRE(args->n_in == 4 && args->n_out == 4 && args->n_attr == 3 && args->in[0] && args->in[1] && args->in[2],
                HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs weight, indices, offsets, per_sample_weights or "
                "nothing; 4; mode, include_last_offset, padding_idx",
                op, args->n_in, args->n_out, args->n_attr);
  bag_job job = {.weight = args->in[0],
                 .indices = args->in[1],
                 .offsets = args->in[2],
                 .scale = args->in[3],
                 .out = args->out,
                 .mode = args->attr[0].kind == HAIAN_INT ? args->attr[0].i : BAG_END,
                 .padding = args->attr[2].i,
                 .wide = args->in[1]->dtype == HAIAN_I64};
  const haian_tensor *weight = job.weight, *indices = job.indices;
  bool last = args->attr[1].kind == HAIAN_INT && args->attr[1].i;
  HAIAN_REQUIRE(job.mode >= 0 && job.mode < BAG_END && args->attr[2].kind == HAIAN_INT, HAIAN_INVALID_ARGUMENT,
                "%s: mode or padding_idx is missing; needs sum, mean or max, and an integer", op);
  HAIAN_REQUIRE((HAIAN_FLOATS >> weight->dtype) & 1, HAIAN_DTYPE, "%s: weight is %s; takes float16 to float64", op,
                haian_dtype_name(weight->dtype));
  HAIAN_REQUIRE(weight->ndim == 2 && indices->ndim == 1 && job.offsets->ndim == 1, HAIAN_SHAPE,
                "%s: weight is %s, indices %s, offsets %s; needs 2, 1 and 1 axes", op, HAIAN_SHAPE_OF(weight),
                HAIAN_SHAPE_OF(indices), HAIAN_SHAPE_OF(job.offsets));
  TRY(need_dtype(op, "offsets", job.offsets, "indices", indices));
  HAIAN_REQUIRE(!last || job.offsets->numel, HAIAN_SHAPE, "%s: offsets is empty; include_last_offset needs one", op);
  job.bags = job.offsets->numel - last;
  if (job.scale) {
    TRY(need_dtype(op, "per_sample_weights", job.scale, "weight", weight));
    TRY(need_same_shape(op, "per_sample_weights", job.scale, "indices", indices));
    HAIAN_REQUIRE(job.mode == BAG_SUM, HAIAN_INVALID_ARGUMENT, "%s: per_sample_weights came; needs mode sum", op);
  }
  const haian_tensor *y = args->out[0], *top = args->out[3];
  TRY(need_dtype(op, "output", y, "weight", weight));
  for (int i = 1; i < 4; i++)
    TRY(need_dtype(op, "offset2bag, bag_size or max_indices", args->out[i], "indices", indices));
  TRY(need_same_shape(op, "offset2bag", args->out[1], "indices", indices));
  HAIAN_REQUIRE(y->ndim == 2 && y->shape[0] == job.bags && y->shape[1] == weight->shape[1] && args->out[2]->ndim == 1 &&
                    args->out[2]->shape[0] == job.bags &&
                    (job.mode == BAG_MAX ? haian_same_shape(top, y) : top->ndim == 1 && top->numel == 0),
                HAIAN_SHAPE,
                "%s: output is %s, bag_size %s, max_indices %s; needs (%lld, %lld), one a bag, and output's "
                "shape in mode max, else nothing",
                op, HAIAN_SHAPE_OF(y), HAIAN_SHAPE_OF(args->out[2]), HAIAN_SHAPE_OF(top), (long long)job.bags,
                (long long)weight->shape[1]);
  TRY(check_indices(op, "indices", indices, weight->shape[0]));
  TRY(check_offsets(op, &job));
  /* what stands behind the last offset (include_last_offset) belongs to no bag */
  for (int64_t i = bag_offset(&job, job.bags); i < indices->numel; i++)
    store_index(args->out[1], i * args->out[1]->stride[0], job.bags);
  int64_t work = 16 + (1 + indices->numel / (job.bags + 1)) * (weight->shape[1] + 4);
  haian_parallel_for(job.bags, 1 + (1 << 14) / work,
                     weight->dtype == HAIAN_F16    ? bag_f16
                     : weight->dtype == HAIAN_BF16 ? bag_bf16
                     : weight->dtype == HAIAN_F32  ? bag_f32
                                                   : bag_f64,
                     &job);
  return HAIAN_OK;
}

const haian_kernel_entry HAIAN_TABLE(embedding_bag)[] = {
    {"embedding_bag", run_embedding_bag, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
