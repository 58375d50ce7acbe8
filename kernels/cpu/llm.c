/* Small operators of language-model servers: rotary embeddings, writing key-value caches, penalties, sampling.
 * Checks and strides are here, the arithmetic is llm_real.h.  Not here: attention over caches (attention_serve.c). */
#include "gemm/gemm.h"
#include "pointwise.h"
#include "row.h"
#include <stdlib.h>

/* ---- operands ---------------------------------------------------------------------------------------------------- */
static inline int64_t index1(const haian_tensor *t, int64_t i) {
  const int64_t at = i * t->stride[0];
  return t->dtype == HAIAN_I64 ? ((const int64_t *)t->data)[at] : ((const int32_t *)t->data)[at];
}
static inline int64_t index2(const haian_tensor *t, int64_t i, int64_t j) {
  const int64_t at = i * t->stride[0] + j * t->stride[1];
  return t->dtype == HAIAN_I64 ? ((const int64_t *)t->data)[at] : ((const int32_t *)t->data)[at];
}
static inline char *at1(const haian_tensor *t, int64_t i) {
  return (char *)t->data + i * t->stride[0] * row_item(t->dtype);
}
static inline char *at2(const haian_tensor *t, int64_t i, int64_t j) {
  return (char *)t->data + (i * t->stride[0] + j * t->stride[1]) * row_item(t->dtype);
}

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
static int32_t need_float(const char *op, const char *name, const haian_tensor *t) {
  HAIAN_REQUIRE(row_is_float(t->dtype), HAIAN_DTYPE, "%s: %s has dtype %s; accepts float32, float16, bfloat16, float64",
                op, name, haian_dtype_name(t->dtype));
  return HAIAN_OK;
}
/* t is a float of `like`'s dtype or of its accumulator's */
static int32_t need_acc(const char *op, const char *name, const haian_tensor *t, int32_t like) {
  HAIAN_REQUIRE(t->dtype == like || (t->dtype == HAIAN_F32 && row_item(like) == 2), HAIAN_DTYPE,
                "%s: %s has dtype %s beside %s; needs that or its accumulator's", op, name, haian_dtype_name(t->dtype),
                haian_dtype_name(like));
  return HAIAN_OK;
}
static int32_t need_vector(const char *op, const char *name, const haian_tensor *t, int64_t n) {
  HAIAN_REQUIRE(t->ndim == 1 && t->shape[0] == n, HAIAN_SHAPE, "%s: %s is %s; needs (%lld,)", op, name,
                row_shape(t).text, (long long)n);
  return HAIAN_OK;
}
static int32_t need_like(const char *op, const char *name, const haian_tensor *t, const haian_tensor *x) {
  HAIAN_REQUIRE(t->dtype == x->dtype && haian_same_shape(t, x), HAIAN_SHAPE, "%s: %s is %s %s; needs %s %s", op, name,
                haian_dtype_name(t->dtype), row_shape(t).text, haian_dtype_name(x->dtype), row_shape(x).text);
  return HAIAN_OK;
}
static int32_t need_within(const char *op, const char *what, int64_t value, int64_t at, int64_t size) {
  HAIAN_REQUIRE(value >= 0 && value < size, HAIAN_INDEX, "%s: %s %lld at position %lld is outside 0 <= %s < %lld", op,
                what, (long long)value, (long long)at, what, (long long)size);
  return HAIAN_OK;
}
static int32_t out_of_memory(const char *op) {
  return haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for a row; free some", op);
}
static int32_t needs_all(const char *op, const haian_args *args, int n_in, int n_out, int n_attr) {
  HAIAN_REQUIRE(args->n_in == n_in && args->n_out == n_out && args->n_attr == n_attr, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs %d, %d, %d", op, args->n_in, args->n_out, args->n_attr,
                n_in, n_out, n_attr);
  return HAIAN_OK;
}
/* Runs body with copies of the inputs that an output is exactly, but for its own one (own[output]), which it may be: the
 * others would be written before they are read. */
static int32_t apart(const char *op, const haian_args *args, const int *own, int32_t (*body)(const haian_args *args)) {
  enum { MOST = 8 };
  haian_tensor copy[MOST], *in[MOST];
  void *memory[MOST] = {NULL};
  haian_args given = *args;
  int32_t status = HAIAN_OK;
  given.in = in;
  for (int i = 0; i < args->n_in && i < MOST; i++) {
    in[i] = args->in[i];
    for (int o = 0; o < args->n_out && in[i] == args->in[i] && status == HAIAN_OK; o++) {
      if (!in[i] || !args->out[o] || in[i]->numel == 0 || in[i]->data != args->out[o]->data || own[o] == i) continue;
      int64_t low = 0, high = 0; /* elements before and behind the first one */
      for (int d = 0; d < in[i]->ndim; d++) {
        const int64_t reach = (in[i]->shape[d] - 1) * in[i]->stride[d];
        if (reach < 0) low -= reach;
        else high += reach;
      }
      const int64_t item = row_item(in[i]->dtype);
      memory[i] = malloc((size_t)((low + high + 1) * item));
      if (!memory[i]) {
        status = haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for a copy of input %d; free some", op, i);
        continue;
      }
      memcpy(memory[i], (const char *)in[i]->data - low * item, (size_t)((low + high + 1) * item));
      copy[i] = *in[i];
      copy[i].data = (char *)memory[i] + low * item;
      in[i] = &copy[i];
    }
  }
  if (status == HAIAN_OK) status = body(args->n_in <= MOST ? &given : args);
  for (int i = 0; i < MOST; i++) free(memory[i]);
  return status;
}
/* Units a thread takes at least, of `bytes` bytes each. */
static int64_t grain_of(int64_t bytes) { return bytes >= HAIAN_GRAIN_BYTES ? 1 : HAIAN_GRAIN_BYTES / (bytes + 1) + 1; }

/* ---- what the real types share ----------------------------------------------------------------------------------- */
typedef struct rope_side { /* query or key */
  int32_t dtype;
  int64_t heads, x_token[2], y_token[2], x_head, y_head, x_step, y_step; /* strides: of token axes, heads, elements */
  const char *x;
  char *y;
} rope_side;

typedef struct rope_job {
  const haian_tensor *positions, *table;
  int64_t tokens, inner;       /* inner: tokens of the second axis, 0 where there is one axis */
  int64_t width, half;         /* of a head; pairs that turn */
  int sections;                /* coordinates of a position */
  int64_t bound[4];            /* coordinate a turns frequencies bound[a] .. bound[a + 1] */
  bool neox, backward, stream; /* stream: the results leave the caches anyway: 1.5 times as fast past them */
  rope_side side[2];
  int32_t failed;
} rope_job;

/* coordinate a of token t */
static inline int64_t position_of(const rope_job *job, int a, int64_t t) {
  const haian_tensor *p = job->positions;
  const int lead = job->sections > 1;
  int64_t at = lead ? a * p->stride[0] : 0;
  if (job->inner) at += t / job->inner * p->stride[lead] + t % job->inner * p->stride[lead + 1];
  else at += t * p->stride[lead];
  return p->dtype == HAIAN_I64 ? ((const int64_t *)p->data)[at] : ((const int32_t *)p->data)[at];
}

typedef struct penalty_job {
  const haian_tensor *logits, *out, *mask[2], *presence, *frequency, *repetition, *ids, *counts, *ends;
  int64_t runs; /* of ROW_CHUNK logits in a row */
} penalty_job;

typedef struct reducev_job {
  const haian_tensor *logics, *v, *table, *request, *start, *length, *out;
  int64_t shared; /* heads that share one of v's */
  int32_t failed;
} reducev_job;

typedef struct sample_job {
  const haian_tensor *logits, *k, *p, *out;
  uint64_t seed, offset;
  int32_t failed;
} sample_job;

/* (word i >> 8) 2^-24 of Philox 4x32-10: word i % 4 of counter (i / 4, offset), key seed */
static double philox_uniform(uint64_t seed, uint64_t offset, uint64_t i) {
  uint32_t c[4] = {(uint32_t)(i / 4), (uint32_t)(i / 4 >> 32), (uint32_t)offset, (uint32_t)(offset >> 32)};
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t p = (uint64_t)c[0] * 0xD2511F53u, q = (uint64_t)c[2] * 0xCD9E8D57u;
    c[0] = (uint32_t)(q >> 32) ^ c[1] ^ k0;
    c[1] = (uint32_t)q;
    c[2] = (uint32_t)(p >> 32) ^ c[3] ^ k1;
    c[3] = (uint32_t)p;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (double)(c[i % 4] >> 8) * 0x1p-24;
}

#define TEMPLATE "llm_real.h"
#include "each_real.h"

/* ---- rotary embeddings ------------------------------------------------------------------------------------------- */
/* (tokens..., heads * width) or (tokens..., heads, width) */
static int32_t rope_side_of(const char *op, const char *name, rope_job *job, rope_side *side, const haian_tensor *x,
                            const haian_tensor *y, int token_axes, const int64_t *tokens) {
  TRY(need_like(op, "a result", y, x));
  bool fits = x->ndim >= token_axes + 1 && x->ndim <= token_axes + 2;
  for (int i = 0; fits && i < token_axes; i++) fits = x->shape[i] == tokens[i];
  const int last = x->ndim - 1;
  const bool apart = fits && x->ndim == token_axes + 2;
  fits = fits && (apart ? x->shape[last] == job->width : x->shape[last] % job->width == 0);
  HAIAN_REQUIRE(fits, HAIAN_SHAPE, "%s: %s is %s; needs the tokens and then heads * %lld, or heads and %lld", op, name,
                row_shape(x).text, (long long)job->width, (long long)job->width);
  *side = (rope_side){.dtype = x->dtype,
                      .heads = apart ? x->shape[last - 1] : x->shape[last] / job->width,
                      .x_head = apart ? x->stride[last - 1] : job->width * x->stride[last],
                      .y_head = apart ? y->stride[last - 1] : job->width * y->stride[last],
                      .x_step = x->stride[last],
                      .y_step = y->stride[last],
                      .x = x->data,
                      .y = y->data};
  for (int i = 0; i < token_axes; i++) side->x_token[i] = x->stride[i], side->y_token[i] = y->stride[i];
  return HAIAN_OK;
}

/* positions, query, key, table; section: three counts or NULL */
static int32_t rope(const char *op, const haian_args *args, const haian_attr *size, const haian_attr *section,
                    const haian_attr *neox, bool backward) {
  const haian_tensor *positions = args->in[0], *query = args->in[1], *key = args->in[2], *table = args->in[3];
  rope_job job = {.positions = positions, .table = table, .sections = 1, .backward = backward};
  HAIAN_REQUIRE(size->kind == HAIAN_INT && size->i > 0 && size->i < INT64_MAX / 64, HAIAN_INVALID_ARGUMENT,
                "%s: head_size is %lld; needs 1 or more", op, (long long)(size->kind == HAIAN_INT ? size->i : 0));
  job.width = size->i;
  job.neox = neox->kind != HAIAN_INT || neox->i != 0;
  TRY(need_float(op, "query", query));
  HAIAN_REQUIRE(key->dtype == query->dtype, HAIAN_DTYPE, "%s: dtypes %s and %s differ", op,
                haian_dtype_name(query->dtype), haian_dtype_name(key->dtype));
  TRY(need_acc(op, "cos_sin_cache", table, query->dtype));
  HAIAN_REQUIRE(table->ndim == 2 && table->shape[1] % 2 == 0 && table->shape[1] <= job.width, HAIAN_SHAPE,
                "%s: cos_sin_cache is %s; its rows need an even width of head_size (%lld) at most", op,
                row_shape(table).text, (long long)job.width);
  job.half = table->shape[1] / 2;
  job.bound[1] = job.half;
  if (section && section->kind == HAIAN_INTS) {
    HAIAN_REQUIRE(section->count == 3, HAIAN_INVALID_ARGUMENT, "%s: mrope_section has %d numbers; needs 3", op,
                  section->count);
    job.sections = 3;
    for (int a = 0; a < 3; a++) {
      HAIAN_REQUIRE(section->v[a] >= 0 && section->v[a] <= job.half, HAIAN_INVALID_ARGUMENT,
                    "%s: mrope_section has %lld; needs 0 to %lld", op, (long long)section->v[a], (long long)job.half);
      job.bound[a + 1] = job.bound[a] + section->v[a];
    }
    HAIAN_REQUIRE(job.bound[3] == job.half, HAIAN_INVALID_ARGUMENT, "%s: mrope_section adds up to %lld; needs %lld", op,
                  (long long)job.bound[3], (long long)job.half);
  }
  const int lead = job.sections > 1, axes = positions->ndim - lead;
  HAIAN_REQUIRE(positions->dtype == HAIAN_I64 || positions->dtype == HAIAN_I32, HAIAN_DTYPE,
                "%s: positions has dtype %s; needs int64 or int32", op, haian_dtype_name(positions->dtype));
  HAIAN_REQUIRE((axes == 1 || axes == 2) && (!lead || positions->shape[0] == 3), HAIAN_SHAPE,
                "%s: positions is %s; needs 1 or 2 axes of tokens, after 3 coordinates where there are sections", op,
                row_shape(positions).text);
  job.tokens = positions->shape[lead] * (axes == 2 ? positions->shape[lead + 1] : 1);
  job.inner = axes == 2 ? positions->shape[lead + 1] : 0;
  TRY(rope_side_of(op, "query", &job, &job.side[0], query, args->out[0], axes, positions->shape + lead));
  TRY(rope_side_of(op, "key", &job, &job.side[1], key, args->out[1], axes, positions->shape + lead));
  for (int a = 0; a < job.sections; a++)
    for (int64_t t = 0; t < job.tokens; t++)
      TRY(need_within(op, "position", position_of(&job, a, t), a * job.tokens + t, table->shape[0]));
  if (job.tokens == 0) return HAIAN_OK;
  const int64_t bytes = (job.side[0].heads + job.side[1].heads) * job.width * 2 * row_item(query->dtype);
  job.stream = bytes / 2 * job.tokens >= HAIAN_STREAM_BYTES;
  haian_parallel_for(job.tokens, grain_of(bytes), query->dtype == HAIAN_F64 ? rope_tokens_f64 : rope_tokens_f32, &job);
  return job.failed ? out_of_memory(op) : HAIAN_OK;
}

static int32_t rotary_embedding_apart(const haian_args *args) {
  TRY(needs_all("rotary_embedding", args, 4, 2, 2));
  return rope("rotary_embedding", args, &args->attr[0], NULL, &args->attr[1], false);
}
static int32_t rotary_embedding(const haian_args *args) {
  static const int own[] = {1, 2};
  return apart("rotary_embedding", args, own, rotary_embedding_apart);
}
static int32_t rope_backward_apart(const haian_args *args) {
  TRY(needs_all("rope_backward", args, 4, 2, 3));
  return rope("rope_backward", args, &args->attr[0], &args->attr[1], &args->attr[2], true);
}
static int32_t rope_backward(const haian_args *args) {
  static const int own[] = {1, 2};
  return apart("rope_backward", args, own, rope_backward_apart);
}
static int32_t mrope_apart(const haian_args *args) {
  TRY(needs_all("mrope", args, 4, 2, 3));
  HAIAN_REQUIRE(args->attr[1].kind == HAIAN_INTS, HAIAN_INVALID_ARGUMENT,
                "mrope: mrope_section is missing; pass three numbers");
  return rope("mrope", args, &args->attr[0], &args->attr[1], &args->attr[2], false);
}
static int32_t mrope(const haian_args *args) {
  static const int own[] = {1, 2};
  return apart("mrope", args, own, mrope_apart);
}

/* ---- writing caches ---------------------------------------------------------------------------------------------- */
enum { PARTS = 32 }; /* slots of one remainder are written by one thread, in order: of two tokens the last one stands */

/* rows (heads, width) of tokens into slots, several sources side by side */
typedef struct put_job {
  const haian_tensor *source, *cache, *out, *index;
  int lead;                                   /* axes of slots: 2 for blocks and positions, 1 for slots */
  int64_t tokens, positions, slots, heads, n; /* positions of a block; n elements of a row of the source */
  int64_t column, columns;                    /* where the source's rows begin in the cache's, of so many */
  bool skip;                                  /* negative slots */
} put_job;

static void move_run(char *y, int64_t ys, const char *x, int64_t xs, int64_t n, int64_t item) {
  if (ys == 1 && xs == 1) {
    memcpy(y, x, (size_t)(n * item));
    return;
  }
  for (int64_t i = 0; i < n; i++) memcpy(y + i * ys * item, x + i * xs * item, (size_t)item);
}
static int64_t slot_offset(const put_job *job, const haian_tensor *t, int64_t slot) {
  return job->lead == 2 ? slot / job->positions * t->stride[0] + slot % job->positions * t->stride[1]
                        : slot * t->stride[0];
}
/* (heads, columns) rows; a tensor without an axis of heads has one */
static int64_t head_stride(const haian_tensor *t, int lead) { return t->ndim == lead + 2 ? t->stride[lead] : 0; }

static void put_parts(void *ctx, int64_t lo, int64_t hi) {
  const put_job *job = ctx;
  const int64_t item = row_item(job->out->dtype), last = job->out->ndim - 1;
  for (int64_t t = 0; t < job->tokens; t++) {
    const int64_t slot = index1(job->index, t), part = slot % PARTS;
    if (slot < 0 || part < lo || part >= hi) continue;
    const char *x = (const char *)job->source->data + t * job->source->stride[0] * item;
    char *y = (char *)job->out->data + (slot_offset(job, job->out, slot) + job->column * job->out->stride[last]) * item;
    for (int64_t h = 0; h < job->heads; h++)
      move_run(y + h * head_stride(job->out, job->lead) * item, job->out->stride[last],
               x + h * head_stride(job->source, 1) * item, job->source->stride[job->source->ndim - 1], job->n, item);
  }
}
static void copy_slots(void *ctx, int64_t lo, int64_t hi) {
  const put_job *job = ctx;
  const int64_t item = row_item(job->out->dtype), last = job->out->ndim - 1;
  if (haian_is_contiguous(job->out) && haian_is_contiguous(job->cache)) {
    const int64_t row = job->heads * job->columns * item;
    memcpy((char *)job->out->data + lo * row, (const char *)job->cache->data + lo * row, (size_t)((hi - lo) * row));
    return;
  }
  for (int64_t s = lo; s < hi; s++) {
    const char *x = (const char *)job->cache->data + slot_offset(job, job->cache, s) * item;
    char *y = (char *)job->out->data + slot_offset(job, job->out, s) * item;
    for (int64_t h = 0; h < job->heads; h++)
      move_run(y + h * head_stride(job->out, job->lead) * item, job->out->stride[last],
               x + h * head_stride(job->cache, job->lead) * item, job->cache->stride[last], job->columns, item);
  }
}

static int32_t check_put(const char *op, const char *name, put_job *job, const haian_tensor *source,
                         const haian_tensor *cache, const haian_tensor *out, int64_t columns) {
  TRY(need_like(op, "a result", out, cache));
  const int rank = job->lead + source->ndim - 1;
  HAIAN_REQUIRE(source->dtype == cache->dtype, HAIAN_DTYPE, "%s: dtypes %s and %s differ", op,
                haian_dtype_name(source->dtype), haian_dtype_name(cache->dtype));
  HAIAN_REQUIRE(cache->ndim == rank && (source->ndim < 3 || cache->shape[job->lead] == source->shape[1]) &&
                    cache->shape[rank - 1] == columns,
                HAIAN_SHAPE, "%s: %s is %s; its rows need those of the source %s, %lld wide", op, name,
                row_shape(cache).text, row_shape(source).text, (long long)columns);
  job->source = source, job->cache = cache, job->out = out;
  job->columns = columns;
  job->heads = source->ndim == 3 ? source->shape[1] : 1;
  job->n = source->shape[source->ndim - 1];
  job->positions = job->lead == 2 ? cache->shape[1] : 1;
  job->slots = cache->shape[0] * job->positions;
  job->tokens = job->index->shape[0];
  HAIAN_REQUIRE(job->tokens <= source->shape[0], HAIAN_SHAPE, "%s: %lld slots for %lld tokens; needs as many or fewer",
                op, (long long)job->tokens, (long long)source->shape[0]);
  return HAIAN_OK;
}
static int32_t check_slots(const char *op, const put_job *job) {
  for (int64_t t = 0; t < job->tokens; t++) {
    const int64_t slot = index1(job->index, t);
    if (!(job->skip && slot < 0)) TRY(need_within(op, "slot", slot, t, job->slots));
  }
  return HAIAN_OK;
}
static void copy_cache(put_job *job) { /* an output that is its input is there already */
  const int64_t row = job->heads * job->columns * row_item(job->out->dtype);
  if (job->out->data != job->cache->data && job->slots > 0 && row > 0)
    haian_parallel_for(job->slots, grain_of(2 * row), copy_slots, job);
}
static void put_rows(put_job *job) {
  const int64_t row = job->heads * job->n * row_item(job->out->dtype);
  if (job->tokens > 0 && row > 0) haian_parallel_for(PARTS, grain_of(2 * row * job->tokens / PARTS), put_parts, job);
}

static int32_t reshape_and_cache_apart(const haian_args *args) {
  const char *op = "reshape_and_cache";
  TRY(needs_all(op, args, 5, 2, 0));
  put_job job[2] = {{.lead = 2, .skip = true, .index = args->in[4]}, {.lead = 2, .skip = true, .index = args->in[4]}};
  TRY(need_index(op, "slot_mapping", args->in[4], 1));
  for (int i = 0; i < 2; i++) {
    HAIAN_REQUIRE(args->in[i]->ndim == 3, HAIAN_SHAPE, "%s: %s is %s; needs 3 axes", op, i ? "value" : "key",
                  row_shape(args->in[i]).text);
    TRY(check_put(op, i ? "value_cache" : "key_cache", &job[i], args->in[i], args->in[2 + i], args->out[i],
                  args->in[i]->shape[2]));
  }
  HAIAN_REQUIRE(args->in[0]->dtype == args->in[1]->dtype, HAIAN_DTYPE, "%s: key is %s and value %s; needs one dtype",
                op, haian_dtype_name(args->in[0]->dtype), haian_dtype_name(args->in[1]->dtype));
  HAIAN_REQUIRE(args->in[0]->shape[0] == args->in[1]->shape[0] && job[0].positions == job[1].positions &&
                    job[0].slots == job[1].slots,
                HAIAN_SHAPE,
                "%s: key is %s, value %s, key_cache %s, value_cache %s; tokens, blocks and positions must be equal", op,
                row_shape(args->in[0]).text, row_shape(args->in[1]).text, row_shape(args->in[2]).text,
                row_shape(args->in[3]).text);
  TRY(check_slots(op, &job[0]));
  for (int i = 0; i < 2; i++) copy_cache(&job[i]), put_rows(&job[i]);
  return HAIAN_OK;
}
static int32_t reshape_and_cache(const haian_args *args) {
  static const int own[] = {2, 3};
  return apart("reshape_and_cache", args, own, reshape_and_cache_apart);
}

static int32_t concat_and_cache_mla_apart(const haian_args *args) {
  const char *op = "concat_and_cache_mla";
  TRY(needs_all(op, args, 4, 1, 0));
  const haian_tensor *a = args->in[0], *b = args->in[1], *cache = args->in[2];
  put_job job[2] = {{.lead = 2, .skip = true, .index = args->in[3]}, {.lead = 2, .skip = true, .index = args->in[3]}};
  TRY(need_index(op, "slot_mapping", args->in[3], 1));
  HAIAN_REQUIRE(a->ndim == 2 && b->ndim == 2 && a->shape[0] == b->shape[0], HAIAN_SHAPE,
                "%s: kv_c is %s and k_pe %s; needs 2 axes each and as many tokens", op, row_shape(a).text,
                row_shape(b).text);
  TRY(check_put(op, "kv_cache", &job[0], a, cache, args->out[0], a->shape[1] + b->shape[1]));
  TRY(check_put(op, "kv_cache", &job[1], b, cache, args->out[0], a->shape[1] + b->shape[1]));
  job[1].column = a->shape[1];
  TRY(check_slots(op, &job[0]));
  copy_cache(&job[0]);
  for (int i = 0; i < 2; i++) put_rows(&job[i]);
  return HAIAN_OK;
}
static int32_t concat_and_cache_mla(const haian_args *args) {
  static const int own[] = {2};
  return apart("concat_and_cache_mla", args, own, concat_and_cache_mla_apart);
}

static int32_t destindex_copy_kv_apart(const haian_args *args) {
  const char *op = "destindex_copy_kv";
  TRY(needs_all(op, args, 3, 1, 0));
  put_job job = {.lead = 1, .index = args->in[1]};
  TRY(need_index(op, "dest_index", args->in[1], 1));
  HAIAN_REQUIRE(args->in[0]->ndim == 3 && args->in[1]->shape[0] == args->in[0]->shape[0], HAIAN_SHAPE,
                "%s: key is %s and dest_index %s; needs 3 axes and a slot a token", op, row_shape(args->in[0]).text,
                row_shape(args->in[1]).text);
  TRY(check_put(op, "cache", &job, args->in[0], args->in[2], args->out[0], args->in[0]->shape[2]));
  TRY(check_slots(op, &job));
  copy_cache(&job);
  put_rows(&job);
  return HAIAN_OK;
}
static int32_t destindex_copy_kv(const haian_args *args) {
  static const int own[] = {2};
  return apart("destindex_copy_kv", args, own, destindex_copy_kv_apart);
}

/* ---- penalties --------------------------------------------------------------------------------------------------- */
static int32_t check_logits(const char *op, const haian_tensor *logits) {
  TRY(need_float(op, "logits", logits));
  HAIAN_REQUIRE(logits->ndim == 2, HAIAN_SHAPE, "%s: logits is %s; needs 2 axes", op, row_shape(logits).text);
  return HAIAN_OK;
}
static int32_t check_rates(const char *op, const char *name, const haian_tensor *t, const haian_tensor *logits) {
  TRY(need_acc(op, name, t, logits->dtype));
  return need_vector(op, name, t, logits->shape[0]);
}

static int32_t apply_repetition_penalties_apart(const haian_args *args) {
  const char *op = "apply_repetition_penalties";
  TRY(needs_all(op, args, 4, 1, 0));
  const haian_tensor *logits = args->in[0];
  TRY(check_logits(op, logits));
  TRY(need_like(op, "the result", args->out[0], logits));
  for (int i = 1; i <= 2; i++)
    HAIAN_REQUIRE(args->in[i]->dtype == HAIAN_BOOL && haian_same_shape(args->in[i], logits), HAIAN_SHAPE,
                  "%s: a mask is %s %s; needs bool %s", op, haian_dtype_name(args->in[i]->dtype),
                  row_shape(args->in[i]).text, row_shape(logits).text);
  TRY(check_rates(op, "repetition_penalties", args->in[3], logits));
  if (logits->numel == 0) return HAIAN_OK;
  penalty_job job = {.logits = logits,
                     .out = args->out[0],
                     .mask = {args->in[1], args->in[2]},
                     .repetition = args->in[3],
                     .runs = (logits->shape[1] + ROW_CHUNK - 1) / ROW_CHUNK};
  const int64_t run = logits->shape[1] < ROW_CHUNK ? logits->shape[1] : ROW_CHUNK;
  haian_parallel_for(logits->shape[0] * job.runs, grain_of(run * (2 * row_item(logits->dtype) + 2)),
                     logits->dtype == HAIAN_F64 ? repetition_runs_f64 : repetition_runs_f32, &job);
  return HAIAN_OK;
}
static int32_t apply_repetition_penalties(const haian_args *args) {
  static const int own[] = {0};
  return apart("apply_repetition_penalties", args, own, apply_repetition_penalties_apart);
}

static void copy_logits(void *ctx, int64_t lo, int64_t hi) {
  const penalty_job *job = ctx;
  for (int64_t u = lo; u < hi; u++) {
    const int64_t b = u / job->runs, at = u % job->runs * ROW_CHUNK, left = job->logits->shape[1] - at;
    move_run(at2(job->out, b, at), job->out->stride[1], at2(job->logits, b, at), job->logits->stride[1],
             left < ROW_CHUNK ? left : ROW_CHUNK, row_item(job->logits->dtype));
  }
}

static int32_t apply_penalty_apart(const haian_args *args) {
  const char *op = "apply_penalty";
  TRY(needs_all(op, args, 7, 1, 0));
  const haian_tensor *logits = args->in[0], *ids = args->in[4], *counts = args->in[5], *ends = args->in[6];
  TRY(check_logits(op, logits));
  TRY(need_like(op, "the result", args->out[0], logits));
  TRY(check_rates(op, "presence_penalty", args->in[1], logits));
  TRY(check_rates(op, "frequency_penalty", args->in[2], logits));
  TRY(check_rates(op, "repetition_penalty", args->in[3], logits));
  TRY(need_index(op, "token_ids", ids, 1));
  TRY(need_index(op, "token_counts", counts, 1));
  TRY(need_index(op, "cumsum_seq_len", ends, 1));
  TRY(need_vector(op, "token_counts", counts, ids->shape[0]));
  TRY(need_vector(op, "cumsum_seq_len", ends, logits->shape[0] + 1));
  for (int64_t i = 0; i < ends->shape[0]; i++) {
    const int64_t end = index1(ends, i), low = i ? index1(ends, i - 1) : 0;
    HAIAN_REQUIRE(end >= low && end <= ids->shape[0], HAIAN_INDEX,
                  "%s: cumsum_seq_len %lld at position %lld is outside %lld <= cumsum_seq_len <= %lld", op,
                  (long long)end, (long long)i, (long long)low, (long long)ids->shape[0]);
  }
  for (int64_t i = 0; i < ids->shape[0]; i++) TRY(need_within(op, "token", index1(ids, i), i, logits->shape[1]));
  if (logits->numel == 0) return HAIAN_OK;
  penalty_job job = {.logits = logits,
                     .out = args->out[0],
                     .presence = args->in[1],
                     .frequency = args->in[2],
                     .repetition = args->in[3],
                     .ids = ids,
                     .counts = counts,
                     .ends = ends,
                     .runs = (logits->shape[1] + ROW_CHUNK - 1) / ROW_CHUNK};
  const int64_t run = logits->shape[1] < ROW_CHUNK ? logits->shape[1] : ROW_CHUNK;
  if (job.out->data != logits->data)
    haian_parallel_for(logits->shape[0] * job.runs, grain_of(2 * run * row_item(logits->dtype)), copy_logits, &job);
  haian_parallel_for(logits->shape[0], 16, logits->dtype == HAIAN_F64 ? penalty_rows_f64 : penalty_rows_f32, &job);
  return HAIAN_OK;
}
static int32_t apply_penalty(const haian_args *args) {
  static const int own[] = {0};
  return apart("apply_penalty", args, own, apply_penalty_apart);
}

/* ---- the second half of lightllm's decode attention ---------------------------------------------------------------- */
static int32_t token_softmax_reducev(const haian_args *args) {
  const char *op = "token_softmax_reducev";
  TRY(needs_all(op, args, 6, 1, 0));
  reducev_job job = {.logics = args->in[0],
                     .v = args->in[1],
                     .table = args->in[2],
                     .request = args->in[3],
                     .start = args->in[4],
                     .length = args->in[5],
                     .out = args->out[0]};
  TRY(need_float(op, "v", job.v));
  TRY(need_acc(op, "logics", job.logics, job.v->dtype));
  HAIAN_REQUIRE(job.logics->ndim == 2 && job.v->ndim == 3, HAIAN_SHAPE, "%s: logics is %s and v %s; needs 2 and 3 axes",
                op, row_shape(job.logics).text, row_shape(job.v).text);
  const int64_t heads = job.logics->shape[0], total = job.logics->shape[1], groups = job.v->shape[1];
  HAIAN_REQUIRE(groups > 0 && heads % groups == 0, HAIAN_SHAPE,
                "%s: logics has %lld heads and v %lld; the first must be divisible by the second", op, (long long)heads,
                (long long)groups);
  TRY(need_index(op, "req_to_tokens", job.table, 2));
  TRY(need_index(op, "b_req_idx", job.request, 1));
  const int64_t sequences = job.request->shape[0];
  TRY(need_index(op, "b_start_loc", job.start, 1));
  TRY(need_index(op, "b_seq_len", job.length, 1));
  TRY(need_vector(op, "b_start_loc", job.start, sequences));
  TRY(need_vector(op, "b_seq_len", job.length, sequences));
  HAIAN_REQUIRE(job.out->dtype == job.v->dtype && job.out->ndim == 3 && job.out->shape[0] == sequences &&
                    job.out->shape[1] == heads && job.out->shape[2] == job.v->shape[2],
                HAIAN_SHAPE, "%s: the result is %s %s; needs %s (%lld, %lld, %lld)", op,
                haian_dtype_name(job.out->dtype), row_shape(job.out).text, haian_dtype_name(job.v->dtype),
                (long long)sequences, (long long)heads, (long long)job.v->shape[2]);
  const int64_t most = job.table->shape[1] < total ? job.table->shape[1] : total;
  int64_t work = 0;
  for (int64_t b = 0; b < sequences; b++) {
    const int64_t r = index1(job.request, b), n = index1(job.length, b), start = index1(job.start, b);
    TRY(need_within(op, "request", r, b, job.table->shape[0]));
    TRY(need_within(op, "b_seq_len", n, b, most + 1));
    TRY(need_within(op, "b_start_loc", start, b, total + 1));
    TRY(need_within(op, "end", start + n, b, total + 1));
    for (int64_t j = 0; j < n; j++) TRY(need_within(op, "slot", index2(job.table, r, j), j, job.v->shape[0]));
    work += n;
  }
  if (job.out->numel == 0) return HAIAN_OK;
  job.shared = heads / groups;
  const int64_t each = work / sequences * (job.v->shape[2] * row_item(job.v->dtype) + job.shared * 8);
  haian_parallel_for(sequences * groups, grain_of(each),
                     job.v->dtype == HAIAN_F64 ? reducev_items_f64 : reducev_items_f32, &job);
  return job.failed ? out_of_memory(op) : HAIAN_OK;
}

/* ---- sampling ---------------------------------------------------------------------------------------------------- */
static int32_t top_k_top_p_sample(const haian_args *args) {
  const char *op = "top_k_top_p_sample";
  TRY(needs_all(op, args, 3, 1, 2));
  sample_job job = {.logits = args->in[0], .k = args->in[1], .p = args->in[2], .out = args->out[0]};
  TRY(check_logits(op, job.logits));
  const int64_t rows = job.logits->shape[0], n = job.logits->shape[1];
  HAIAN_REQUIRE(n > 0 && n < INT32_MAX, HAIAN_INVALID_ARGUMENT, "%s: logits is %s; needs a vocabulary of 1 to 2^31 - 2",
                op, row_shape(job.logits).text);
  if (job.k) {
    TRY(need_index(op, "k", job.k, 1));
    TRY(need_vector(op, "k", job.k, rows));
  }
  if (job.p) TRY(check_rates(op, "p", job.p, job.logits));
  HAIAN_REQUIRE(job.out->dtype == HAIAN_I64 && job.out->ndim == 1 && job.out->shape[0] == rows, HAIAN_SHAPE,
                "%s: the result is %s %s; needs int64 (%lld,)", op, haian_dtype_name(job.out->dtype),
                row_shape(job.out).text, (long long)rows);
  if (args->attr[0].kind == HAIAN_INT) job.seed = (uint64_t)args->attr[0].i;
  if (args->attr[1].kind == HAIAN_INT) job.offset = (uint64_t)args->attr[1].i;
  if (rows == 0) return HAIAN_OK;
  haian_parallel_for(rows, grain_of(n * 16), job.logits->dtype == HAIAN_F64 ? sample_rows_f64 : sample_rows_f32, &job);
  return job.failed ? out_of_memory(op) : HAIAN_OK;
}

static const haian_pointwise in_place; /* an output may be exactly an input */
#define INDICES (HAIAN_BIT(HAIAN_I64) | HAIAN_BIT(HAIAN_I32))
const haian_kernel_entry HAIAN_TABLE(llm)[] = {
    {"rotary_embedding", rotary_embedding, INDICES, &in_place}, /* of the first operand, the positions */
    {"rope_backward", rope_backward, INDICES, &in_place},
    {"mrope", mrope, INDICES, &in_place},
    {"reshape_and_cache", reshape_and_cache, HAIAN_ANY, &in_place},
    {"concat_and_cache_mla", concat_and_cache_mla, HAIAN_ANY, &in_place},
    {"destindex_copy_kv", destindex_copy_kv, HAIAN_ANY, &in_place},
    {"apply_repetition_penalties", apply_repetition_penalties, HAIAN_FLOATS, &in_place},
    {"apply_penalty", apply_penalty, HAIAN_FLOATS, &in_place},
    {"token_softmax_reducev", token_softmax_reducev, HAIAN_FLOATS, NULL},
    {"top_k_top_p_sample", top_k_top_p_sample, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
