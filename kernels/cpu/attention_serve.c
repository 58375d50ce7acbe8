/* Attention as servers run it: packed sequences of unequal lengths, caches in blocks, latent caches (Dao et al. 2022).
 * Checks and strides are here; the arithmetic is attention_serve_real.h.  Not here: equal lengths (attention.c).
 * Axes: B sequences, H heads, G key heads, L queries and S keys of one sequence, E and V widths. */
#include "gemm/gemm.h"
#include "row.h"
#include <stdlib.h>

enum {
  BQ = 64,      /* queries of a tile: lanes of the softmax */
  BK = 128,     /* keys of a tile: with BQ, 32 KB of scores; of 256 a causal mask of 512 tokens wastes twice as many */
  TOGETHER = 8, /* tiles of queries that share packed keys: packing is then 4 % */
  SPLIT = 512,  /* keys of a decoding task; fixed, as it orders the sums */
};

typedef struct varlen_job {
  const haian_tensor *q, *k, *v, *ends_q, *ends_k, *slopes, *out;
  int64_t B, G, E, V, shared, per; /* query heads that share a key head; tiles of a task */
  int64_t *begin;                  /* (B,) the first task of each sequence */
  double scale, softcap;
  int32_t left, right; /* how far before and behind its position a query sees */
  const haian_kind *kind;
  int32_t failed;
} varlen_job;

typedef struct cache_job {
  const haian_tensor *q, *q2, *k, *v, *table, *lengths, *slopes, *out; /* latent: q2 the rotary part, v NULL */
  int64_t B, G, E, E2, V, shared, positions, window, splits;
  double scale, softcap;
  char *partial; /* (B, G, splits, shared, 2 + V): largest score, sum, weighted values of each split */
  int32_t failed;
} cache_job;

static inline int64_t index1(const haian_tensor *t, int64_t i) {
  const int64_t at = i * t->stride[0];
  return t->dtype == HAIAN_I64 ? ((const int64_t *)t->data)[at] : ((const int32_t *)t->data)[at];
}
static inline int64_t index2(const haian_tensor *t, int64_t i, int64_t j) {
  const int64_t at = i * t->stride[0] + j * t->stride[1];
  return t->dtype == HAIAN_I64 ? ((const int64_t *)t->data)[at] : ((const int32_t *)t->data)[at];
}

#define TEMPLATE "attention_serve_real.h"
#include "each_real.h"

/* ---- checks ------------------------------------------------------------------------------------------------------ */
#define TRY(call)                            \
  do {                                       \
    const int32_t status_ = (call);          \
    if (status_ != HAIAN_OK) return status_; \
  } while (0)

static int32_t need_index(const char *op, const char *name, const haian_tensor *t, int ndim) {
  HAIAN_REQUIRE(t->dtype == HAIAN_I64 || t->dtype == HAIAN_I32, HAIAN_DTYPE,
                "%s: %s has dtype %s; needs int64 or int32", op, name, haian_dtype_name(t->dtype));
  HAIAN_REQUIRE(t->ndim == ndim, HAIAN_SHAPE, "%s: %s is %s; needs %d axes", op, name, row_shape(t).text, ndim);
  return HAIAN_OK;
}
static int32_t need_within(const char *op, const char *what, int64_t value, int64_t at, int64_t size) {
  HAIAN_REQUIRE(value >= 0 && value < size, HAIAN_INDEX, "%s: %s %lld at position %lld is outside 0 <= %s < %lld", op,
                what, (long long)value, (long long)at, what, (long long)size);
  return HAIAN_OK;
}
/* heads and widths: query (lead, H, E), key (..., G, E), value (..., G, V) of one dtype, out (lead, H, V) */
static int32_t check_heads(const char *op, const haian_tensor *q, const haian_tensor *k, const haian_tensor *v,
                           const haian_tensor *out, int rank) {
  HAIAN_REQUIRE(row_is_float(q->dtype), HAIAN_DTYPE, "%s: query is %s; accepts float32, float16, bfloat16, float64", op,
                haian_dtype_name(q->dtype));
  HAIAN_REQUIRE(k->dtype == q->dtype && v->dtype == q->dtype && out->dtype == q->dtype, HAIAN_DTYPE,
                "%s: query is %s, key %s, value %s, result %s; needs one dtype", op, haian_dtype_name(q->dtype),
                haian_dtype_name(k->dtype), haian_dtype_name(v->dtype), haian_dtype_name(out->dtype));
  bool fits = q->ndim == 3 && k->ndim == rank && v->ndim == rank && q->shape[2] == k->shape[rank - 1];
  for (int i = 0; fits && i < rank - 1; i++) fits = k->shape[i] == v->shape[i];
  HAIAN_REQUIRE(fits, HAIAN_SHAPE,
                "%s: query is %s, key %s, value %s; needs 3, %d and %d axes, equal widths and equal keys", op,
                row_shape(q).text, row_shape(k).text, row_shape(v).text, rank, rank);
  const int64_t h = q->shape[1], g = k->shape[rank - 2];
  HAIAN_REQUIRE(g > 0 && h % g == 0, HAIAN_SHAPE,
                "%s: query has %lld heads and key %lld; the first must be divisible by the second", op, (long long)h,
                (long long)g);
  HAIAN_REQUIRE(
      out->ndim == 3 && out->shape[0] == q->shape[0] && out->shape[1] == h && out->shape[2] == v->shape[rank - 1],
      HAIAN_SHAPE, "%s: the result is %s; needs (%lld, %lld, %lld)", op, row_shape(out).text, (long long)q->shape[0],
      (long long)h, (long long)v->shape[rank - 1]);
  return HAIAN_OK;
}
static int32_t check_slopes(const char *op, const haian_tensor *t, const haian_tensor *q, int64_t sequences) {
  if (!t) return HAIAN_OK;
  HAIAN_REQUIRE(t->dtype == q->dtype || (t->dtype == HAIAN_F32 && row_item(q->dtype) == 2), HAIAN_DTYPE,
                "%s: alibi_slopes has dtype %s beside %s; needs that or its accumulator's", op,
                haian_dtype_name(t->dtype), haian_dtype_name(q->dtype));
  HAIAN_REQUIRE((t->ndim == 1 && t->shape[0] == q->shape[1]) ||
                    (t->ndim == 2 && t->shape[0] == sequences && t->shape[1] == q->shape[1]),
                HAIAN_SHAPE, "%s: alibi_slopes is %s; needs (%lld,) or (%lld, %lld)", op, row_shape(t).text,
                (long long)q->shape[1], (long long)sequences, (long long)q->shape[1]);
  return HAIAN_OK;
}
static double number(const haian_attr *a, double otherwise) {
  return a->kind == HAIAN_FLOAT ? a->f : a->kind == HAIAN_INT ? (double)a->i : otherwise;
}
static int64_t whole(const haian_attr *a, int64_t otherwise) { return a->kind == HAIAN_INT ? a->i : otherwise; }
static double scale_of(const haian_attr *a, int64_t width) {
  return number(a, width > 0 ? 1.0 / sqrt((double)width) : 1.0);
}
static int32_t check_softcap(const char *op, double cap) {
  HAIAN_REQUIRE(cap >= 0, HAIAN_INVALID_ARGUMENT, "%s: softcap is %g; needs 0 (none) or more", op, cap);
  return HAIAN_OK;
}
static int32_t out_of_memory(const char *op) {
  return haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for tiles; free some", op);
}

/* ---- packed sequences -------------------------------------------------------------------------------------------- */
static int32_t check_ends(const char *op, const char *name, const haian_tensor *ends, int64_t tokens) {
  for (int64_t i = 0; i < ends->shape[0]; i++) {
    const int64_t end = index1(ends, i), low = i ? index1(ends, i - 1) : 0;
    HAIAN_REQUIRE(end >= low && end <= tokens, HAIAN_INDEX,
                  "%s: %s %lld at position %lld is outside %lld <= %s <= %lld", op, name, (long long)end, (long long)i,
                  (long long)low, name, (long long)tokens);
  }
  return HAIAN_OK;
}
static void clear_rows(const haian_tensor *out, int64_t from, int64_t to) {
  const int64_t item = row_item(out->dtype);
  for (int64_t t = from; t < to; t++)
    for (int64_t h = 0; h < out->shape[1]; h++) {
      char *y = (char *)out->data + (t * out->stride[0] + h * out->stride[1]) * item;
      for (int64_t i = 0; i < out->shape[2]; i++) memset(y + i * out->stride[2] * item, 0, (size_t)item);
    }
}
/* a window as int32: -1 and whatever passes any sequence are INT32_MAX / 2, which no sum below overflows */
static int32_t reach(int64_t window) { return window < 0 || window > INT32_MAX / 2 ? INT32_MAX / 2 : (int32_t)window; }

static int32_t attention_varlen(const haian_args *args) {
  const char *op = "attention_varlen";
  HAIAN_REQUIRE(args->n_in == 6 && args->n_out == 1 && args->n_attr == 5, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs 6, 1, 5", op, args->n_in, args->n_out, args->n_attr);
  varlen_job job = {.q = args->in[0],
                    .k = args->in[1],
                    .v = args->in[2],
                    .ends_q = args->in[3],
                    .ends_k = args->in[4],
                    .slopes = args->in[5],
                    .out = args->out[0]};
  TRY(check_heads(op, job.q, job.k, job.v, job.out, 3));
  TRY(need_index(op, "cu_seqlens_q", job.ends_q, 1));
  TRY(need_index(op, "cu_seqlens_k", job.ends_k, 1));
  HAIAN_REQUIRE(job.ends_q->shape[0] > 0 && job.ends_k->shape[0] == job.ends_q->shape[0], HAIAN_SHAPE,
                "%s: cu_seqlens_q is %s and cu_seqlens_k %s; needs one end more than sequences in each", op,
                row_shape(job.ends_q).text, row_shape(job.ends_k).text);
  job.B = job.ends_q->shape[0] - 1;
  TRY(check_slopes(op, job.slopes, job.q, job.B));
  job.softcap = number(&args->attr[4], 0.0);
  TRY(check_softcap(op, job.softcap));
  TRY(check_ends(op, "cu_seqlens_q", job.ends_q, job.q->shape[0]));
  TRY(check_ends(op, "cu_seqlens_k", job.ends_k, job.k->shape[0]));
  HAIAN_REQUIRE(job.q->shape[0] < INT32_MAX / 4 && job.k->shape[0] < INT32_MAX / 4, HAIAN_SHAPE,
                "%s: query is %s and key %s; needs less than 2^29 tokens", op, row_shape(job.q).text,
                row_shape(job.k).text);
  if (job.out->numel == 0) return HAIAN_OK;
  job.E = job.q->shape[2], job.V = job.v->shape[2], job.G = job.k->shape[1], job.shared = job.q->shape[1] / job.G;
  job.scale = scale_of(&args->attr[0], job.E);
  job.left = reach(whole(&args->attr[2], -1));
  job.right = whole(&args->attr[1], 0) ? 0 : reach(whole(&args->attr[3], -1));
  job.kind = HAIAN_SYM(gemm_kind)(job.q->dtype, job.q->dtype, true);
  job.begin = malloc((size_t)(job.B + 1) * sizeof *job.begin);
  if (!job.begin) return out_of_memory(op);
  job.per = TOGETHER;
  for (int64_t items = 0; job.per > 1; job.per /= 2, items = 0) { /* two tasks a thread at least */
    for (int64_t b = 0; b < job.B; b++) {
      const int64_t tiles = (index1(job.ends_q, b + 1) - index1(job.ends_q, b) + BQ - 1) / BQ;
      items += job.G * ((job.shared * tiles + job.per - 1) / job.per);
    }
    if (items >= 2 * haian_num_threads()) break;
  }
  int64_t items = 0, work = 0;
  for (int64_t b = 0; b < job.B; b++) {
    const int64_t L = index1(job.ends_q, b + 1) - index1(job.ends_q, b),
                  S = index1(job.ends_k, b + 1) - index1(job.ends_k, b);
    job.begin[b] = items;
    items += job.G * ((job.shared * ((L + BQ - 1) / BQ) + job.per - 1) / job.per);
    work += L * S * job.q->shape[1] * (job.E + job.V);
  }
  clear_rows(job.out, 0, index1(job.ends_q, 0));
  clear_rows(job.out, index1(job.ends_q, job.B), job.out->shape[0]);
  const int64_t each = items > 0 ? work / items : 0;
  if (items > 0)
    haian_parallel_for(items, each < 65536 ? 65536 / (each + 1) + 1 : 1,
                       job.q->dtype == HAIAN_F64 ? varlen_items_f64 : varlen_items_f32, &job);
  free(job.begin);
  return job.failed ? out_of_memory(op) : HAIAN_OK;
}

/* ---- caches in blocks -------------------------------------------------------------------------------------------- */
/* tables and lengths; then all splits of all sequences, and their sums joined */
static int32_t decode(const char *op, cache_job *job) {
  TRY(need_index(op, "block_tables", job->table, 2));
  TRY(need_index(op, "seq_lens", job->lengths, 1));
  job->B = job->q->shape[0];
  HAIAN_REQUIRE(job->table->shape[0] == job->B && job->lengths->shape[0] == job->B, HAIAN_SHAPE,
                "%s: block_tables is %s and seq_lens %s for %lld sequences; needs a row and a length each", op,
                row_shape(job->table).text, row_shape(job->lengths).text, (long long)job->B);
  job->positions = job->k->shape[1];
  HAIAN_REQUIRE(job->positions > 0, HAIAN_SHAPE, "%s: the cache is %s; its blocks need a position or more", op,
                row_shape(job->k).text);
  const int64_t most = job->table->shape[1] * job->positions;
  int64_t longest = 0;
  for (int64_t b = 0; b < job->B; b++) TRY(need_within(op, "seq_lens", index1(job->lengths, b), b, most + 1));
  for (int64_t b = 0; b < job->B; b++) {
    const int64_t n = index1(job->lengths, b);
    for (int64_t j = 0; j * job->positions < n; j++)
      TRY(need_within(op, "block", index2(job->table, b, j), j, job->k->shape[0]));
    longest = n > longest ? n : longest;
  }
  HAIAN_REQUIRE(longest < INT32_MAX / 2, HAIAN_SHAPE, "%s: a sequence of %lld keys; needs less than 2^30", op,
                (long long)longest);
  if (job->out->numel == 0) return HAIAN_OK;
  const bool f64 = job->q->dtype == HAIAN_F64;
  job->splits = longest > 0 ? (longest + SPLIT - 1) / SPLIT : 1;
  job->partial =
      HAIAN_SYM(workspace)(2, (size_t)(job->B * job->G * job->splits * job->shared * (job->V + 2)) * (f64 ? 8 : 4));
  if (!job->partial) return out_of_memory(op);
  const int64_t work = job->shared * (longest < SPLIT ? longest : SPLIT) * (job->E + job->E2 + job->V);
  haian_parallel_for(job->B * job->G * job->splits, work < 65536 ? 65536 / (work + 1) + 1 : 1,
                     f64 ? cache_items_f64 : cache_items_f32, job);
  if (job->failed) return out_of_memory(op);
  haian_parallel_for(job->B * job->G, 64, f64 ? join_caches_f64 : join_caches_f32, job);
  return HAIAN_OK;
}

static int32_t paged_attention(const haian_args *args) {
  const char *op = "paged_attention";
  HAIAN_REQUIRE(args->n_in == 6 && args->n_out == 1 && args->n_attr == 3, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs 6, 1, 3", op, args->n_in, args->n_out, args->n_attr);
  cache_job job = {.q = args->in[0],
                   .k = args->in[1],
                   .v = args->in[2],
                   .table = args->in[3],
                   .lengths = args->in[4],
                   .slopes = args->in[5],
                   .out = args->out[0]};
  TRY(check_heads(op, job.q, job.k, job.v, job.out, 4));
  TRY(check_slopes(op, job.slopes, job.q, job.q->shape[0]));
  job.E = job.q->shape[2], job.V = job.v->shape[3], job.G = job.k->shape[2], job.shared = job.q->shape[1] / job.G;
  job.scale = scale_of(&args->attr[0], job.E);
  job.window = whole(&args->attr[1], 0);
  HAIAN_REQUIRE(job.window >= 0, HAIAN_INVALID_ARGUMENT, "%s: window is %lld; needs 0 (all keys) or more", op,
                (long long)job.window);
  job.softcap = number(&args->attr[2], 0.0);
  TRY(check_softcap(op, job.softcap));
  return decode(op, &job);
}

static int32_t mla_decode(const haian_args *args) {
  const char *op = "mla_decode";
  HAIAN_REQUIRE(args->n_in == 5 && args->n_out == 1 && args->n_attr == 1, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs 5, 1, 1", op, args->n_in, args->n_out, args->n_attr);
  cache_job job = {.q = args->in[0],
                   .q2 = args->in[1],
                   .k = args->in[2],
                   .table = args->in[3],
                   .lengths = args->in[4],
                   .out = args->out[0],
                   .G = 1};
  const haian_tensor *q = job.q, *pe = job.q2, *cache = job.k;
  HAIAN_REQUIRE(
      row_is_float(q->dtype) && pe->dtype == q->dtype && cache->dtype == q->dtype && job.out->dtype == q->dtype,
      HAIAN_DTYPE, "%s: q_nope is %s, q_pe %s, kv_cache %s, the result %s; needs one floating dtype", op,
      haian_dtype_name(q->dtype), haian_dtype_name(pe->dtype), haian_dtype_name(cache->dtype),
      haian_dtype_name(job.out->dtype));
  HAIAN_REQUIRE(
      q->ndim == 3 && pe->ndim == 3 && cache->ndim == 3 && q->shape[0] == pe->shape[0] && q->shape[1] == pe->shape[1] &&
          cache->shape[2] == q->shape[2] + pe->shape[2] && haian_same_shape(job.out, q),
      HAIAN_SHAPE,
      "%s: q_nope is %s, q_pe %s, kv_cache %s, the result %s; needs 3 axes each, equal heads, and rows as wide as both",
      op, row_shape(q).text, row_shape(pe).text, row_shape(cache).text, row_shape(job.out).text);
  HAIAN_REQUIRE(args->attr[0].kind == HAIAN_FLOAT || args->attr[0].kind == HAIAN_INT, HAIAN_INVALID_ARGUMENT,
                "%s: scale is missing; pass the model's", op);
  job.E = q->shape[2], job.E2 = pe->shape[2], job.V = job.E, job.shared = q->shape[1];
  job.scale = number(&args->attr[0], 1.0);
  return decode(op, &job);
}

const haian_kernel_entry HAIAN_TABLE(attention_serve)[] = {
    {"attention_varlen", attention_varlen, HAIAN_FLOATS, NULL},
    {"paged_attention", paged_attention, HAIAN_FLOATS, NULL},
    {"mla_decode", mla_decode, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
