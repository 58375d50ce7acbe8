/* Mixtures of experts: choosing experts, sorting tokens by expert, products by group, the whole layer.
 * Checks, order and memory are here; the products are gemm/gemm.h, the arithmetic beside them moe_real.h.
 * Axes: T tokens, X experts, K experts of a token, D width of the model, I width of an expert. */
#include "gemm/gemm.h"
#include "row.h"
#include <stdlib.h>

enum {
  ROWS = 256,    /* rows of an expert that go through the layer together: their activations stay in L2 and L3 */
  ADD_RUN = 256, /* columns that one task adds up */
};

typedef struct route_job {
  const haian_tensor *gating, *bias, *weights, *indices, *rows;
  int64_t topk, groups, topk_group;
  bool plain, sigmoid, renormalize; /* plain: no groups and no bias */
  double factor;
  int32_t failed;
} route_job;

typedef struct sum_job {
  const haian_tensor *x, *y;
  int64_t runs; /* of ROW_CHUNK elements in a row */
  bool stream;  /* the result leaves the caches anyway */
} sum_job;

typedef struct layer_job {
  const haian_tensor *x, *weights, *out;
  int64_t inner, first, rows; /* I; which of `order` the chunk has */
  const int64_t *order;       /* places of topk_ids by expert */
  char *gathered, *hidden, *act, *result, *sums;
} layer_job;

#define TEMPLATE "moe_real.h"
#include "each_real.h"

/* ---- checks ------------------------------------------------------------------------------------------------------------ */
static inline int64_t index1(const haian_tensor *t, int64_t i) {
  const int64_t at = i * t->stride[0];
  return t->dtype == HAIAN_I64 ? ((const int64_t *)t->data)[at] : ((const int32_t *)t->data)[at];
}
/* element i of an index tensor of any rank, in row-major order */
static int64_t index_any(const haian_tensor *t, int64_t i) {
  int64_t at = i;
  if (!haian_is_contiguous(t)) {
    at = 0;
    for (int d = t->ndim - 1; d >= 0; d--) {
      at += i % t->shape[d] * t->stride[d];
      i /= t->shape[d];
    }
  }
  return t->dtype == HAIAN_I64 ? ((const int64_t *)t->data)[at] : ((const int32_t *)t->data)[at];
}

#define TRY(call)                            \
  do {                                       \
    const int32_t status_ = (call);          \
    if (status_ != HAIAN_OK) return status_; \
  } while (0)

static int32_t needs_all(const char *op, const haian_args *args, int n_in, int n_out, int n_attr) {
  HAIAN_REQUIRE(args->n_in == n_in && args->n_out == n_out && args->n_attr == n_attr, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs %d, %d, %d", op, args->n_in, args->n_out, args->n_attr,
                n_in, n_out, n_attr);
  return HAIAN_OK;
}
static int32_t need_float(const char *op, const char *name, const haian_tensor *t, int ndim) {
  HAIAN_REQUIRE(row_is_float(t->dtype), HAIAN_DTYPE, "%s: %s has dtype %s; accepts float32, float16, bfloat16, float64",
                op, name, haian_dtype_name(t->dtype));
  HAIAN_REQUIRE(t->ndim == ndim, HAIAN_SHAPE, "%s: %s is %s; needs %d axes", op, name, row_shape(t).text, ndim);
  return HAIAN_OK;
}
static int32_t need_index(const char *op, const char *name, const haian_tensor *t) {
  HAIAN_REQUIRE(t->dtype == HAIAN_I64 || t->dtype == HAIAN_I32, HAIAN_DTYPE,
                "%s: %s has dtype %s; needs int64 or int32", op, name, haian_dtype_name(t->dtype));
  return HAIAN_OK;
}
static int32_t need_acc(const char *op, const char *name, const haian_tensor *t, int32_t like) {
  HAIAN_REQUIRE(t->dtype == like || (t->dtype == HAIAN_F32 && row_item(like) == 2), HAIAN_DTYPE,
                "%s: %s has dtype %s beside %s; needs that or its accumulator's", op, name, haian_dtype_name(t->dtype),
                haian_dtype_name(like));
  return HAIAN_OK;
}
static int32_t need_form(const char *op, const char *name, const haian_tensor *t, int32_t dtype, int ndim, int64_t a,
                         int64_t b) {
  HAIAN_REQUIRE(t->dtype == dtype && t->ndim == ndim && t->shape[0] == a && (ndim < 2 || t->shape[1] == b), HAIAN_SHAPE,
                "%s: %s is %s %s; needs %s of %d axes, (%lld, %lld)", op, name, haian_dtype_name(t->dtype),
                row_shape(t).text, haian_dtype_name(dtype), ndim, (long long)a, (long long)b);
  return HAIAN_OK;
}
static int32_t check_experts(const char *op, const haian_tensor *ids, int64_t experts) {
  for (int64_t i = 0; i < ids->numel; i++) {
    const int64_t id = index_any(ids, i);
    HAIAN_REQUIRE(id >= 0 && id < experts, HAIAN_INDEX,
                  "%s: expert %lld at position %lld is outside 0 <= expert < %lld", op, (long long)id, (long long)i,
                  (long long)experts);
  }
  return HAIAN_OK;
}
static int32_t out_of_memory(const char *op) {
  return haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for the tokens by expert; free some", op);
}
static int64_t whole(const haian_attr *a, int64_t otherwise) { return a->kind == HAIAN_INT ? a->i : otherwise; }
static double number(const haian_attr *a, double otherwise) {
  return a->kind == HAIAN_FLOAT ? a->f : a->kind == HAIAN_INT ? (double)a->i : otherwise;
}
static int64_t grain_of(int64_t bytes) { return bytes >= HAIAN_GRAIN_BYTES ? 1 : HAIAN_GRAIN_BYTES / (bytes + 1) + 1; }

/* ---- choosing experts ---------------------------------------------------------------------------------------------------- */
static int32_t route(const char *op, route_job *job) {
  const int64_t tokens = job->gating->shape[0], experts = job->gating->shape[1];
  const int32_t acc = row_item(job->gating->dtype) == 2 ? HAIAN_F32 : job->gating->dtype;
  HAIAN_REQUIRE(experts < INT32_MAX && job->topk >= 1 && job->topk <= experts, HAIAN_INVALID_ARGUMENT,
                "%s: topk is %lld of %lld experts; needs 1 to as many as there are", op, (long long)job->topk,
                (long long)experts);
  HAIAN_REQUIRE(job->groups >= 1 && experts % job->groups == 0 && job->topk_group >= 1 &&
                    job->topk_group <= job->groups && job->topk <= experts / job->groups * job->topk_group,
                HAIAN_INVALID_ARGUMENT, "%s: num_groups is %lld and topk_group %lld for %lld experts and topk %lld", op,
                (long long)job->groups, (long long)job->topk_group, (long long)experts, (long long)job->topk);
  TRY(need_form(op, "weights", job->weights, acc, 2, tokens, job->topk));
  TRY(need_form(op, "indices", job->indices, HAIAN_I32, 2, tokens, job->topk));
  if (job->rows) TRY(need_form(op, "token_expert_indices", job->rows, HAIAN_I32, 2, tokens, job->topk));
  if (tokens == 0) return HAIAN_OK;
  haian_parallel_for(tokens, grain_of(experts * 16), acc == HAIAN_F64 ? route_rows_f64 : route_rows_f32, job);
  return job->failed ? out_of_memory(op) : HAIAN_OK;
}

static int32_t topk_softmax(const haian_args *args) {
  const char *op = "topk_softmax";
  TRY(needs_all(op, args, 1, 3, 2));
  TRY(need_float(op, "gating", args->in[0], 2));
  route_job job = {.gating = args->in[0],
                   .weights = args->out[0],
                   .indices = args->out[1],
                   .rows = args->out[2],
                   .groups = 1,
                   .topk_group = 1,
                   .plain = true,
                   .factor = 1.0};
  job.topk = whole(&args->attr[0], 0);
  job.renormalize = whole(&args->attr[1], 0) != 0;
  HAIAN_REQUIRE(job.gating->shape[0] < INT32_MAX / (job.topk > 0 ? job.topk : 1), HAIAN_SHAPE,
                "%s: gating is %s; rows by experts must stay below 2^31", op, row_shape(job.gating).text);
  return route(op, &job);
}

static int32_t grouped_topk(const haian_args *args) {
  const char *op = "grouped_topk";
  TRY(needs_all(op, args, 2, 2, 6));
  TRY(need_float(op, "gating", args->in[0], 2));
  route_job job = {.gating = args->in[0], .bias = args->in[1], .weights = args->out[0], .indices = args->out[1]};
  if (job.bias) {
    TRY(need_acc(op, "bias", job.bias, job.gating->dtype));
    TRY(need_form(op, "bias", job.bias, job.bias->dtype, 1, job.gating->shape[1], 0));
  }
  job.topk = whole(&args->attr[0], 0);
  job.groups = whole(&args->attr[1], 0);
  job.topk_group = whole(&args->attr[2], 0);
  job.sigmoid = whole(&args->attr[3], 0) == 1;
  job.renormalize = whole(&args->attr[4], 1) != 0;
  job.factor = number(&args->attr[5], 1.0);
  return route(op, &job);
}

/* ---- tokens by expert ---------------------------------------------------------------------------------------------------- */
static int32_t moe_align_block_size(const haian_args *args) {
  const char *op = "moe_align_block_size";
  TRY(needs_all(op, args, 1, 3, 2));
  const haian_tensor *ids = args->in[0], *sorted = args->out[0], *experts = args->out[1], *used = args->out[2];
  const int64_t count = whole(&args->attr[0], 0), block = whole(&args->attr[1], 0), n = ids->numel;
  TRY(need_index(op, "topk_ids", ids));
  HAIAN_REQUIRE(count >= 1 && block >= 1 && count < INT32_MAX && block < INT32_MAX, HAIAN_INVALID_ARGUMENT,
                "%s: num_experts is %lld and block_size is %lld; needs 1 or more", op, (long long)count,
                (long long)block);
  const int64_t most = n + count * (block - 1);
  HAIAN_REQUIRE(n < INT32_MAX && most < INT32_MAX, HAIAN_SHAPE, "%s: %lld places; needs less than 2^31", op,
                (long long)most);
  TRY(need_form(op, "sorted_token_ids", sorted, HAIAN_I32, 1, most, 0));
  TRY(need_form(op, "expert_ids", experts, HAIAN_I32, 1, (most + block - 1) / block, 0));
  TRY(need_form(op, "num_tokens_post_padded", used, HAIAN_I32, 1, 1, 0));
  TRY(check_experts(op, ids, count));
  int64_t *next = calloc((size_t)count, sizeof *next); /* where an expert's next place goes */
  if (!next) return out_of_memory(op);
  for (int64_t i = 0; i < n; i++) next[index_any(ids, i)]++;
  int32_t *to = sorted->data, *of = experts->data;
  for (int64_t i = 0; i < most; i++) to[i * sorted->stride[0]] = (int32_t)n;
  int64_t at = 0;
  for (int64_t x = 0; x < count; x++) {
    const int64_t blocks = (next[x] + block - 1) / block;
    for (int64_t i = 0; i < blocks; i++) of[(at / block + i) * experts->stride[0]] = (int32_t)x;
    next[x] = at;
    at += blocks * block;
  }
  for (int64_t i = at / block; i < experts->shape[0]; i++) of[i * experts->stride[0]] = -1;
  for (int64_t i = 0; i < n; i++) to[next[index_any(ids, i)]++ * sorted->stride[0]] = (int32_t)i;
  *(int32_t *)used->data = (int32_t)at;
  free(next);
  return HAIAN_OK;
}

/* ---- sums and products --------------------------------------------------------------------------------------------------- */
static int32_t moe_sum(const haian_args *args) {
  TRY(needs_all("moe_sum", args, 1, 1, 0));
  sum_job job = {.x = args->in[0], .y = args->out[0]};
  TRY(need_float("moe_sum", "x", job.x, 3));
  TRY(need_form("moe_sum", "the result", job.y, job.x->dtype, 2, job.x->shape[0], job.x->shape[2]));
  if (job.y->numel == 0) return HAIAN_OK;
  job.runs = (job.y->shape[1] + ROW_CHUNK - 1) / ROW_CHUNK;
  job.stream = job.y->stride[1] == 1 && job.y->numel * row_item(job.x->dtype) >= HAIAN_STREAM_BYTES;
  const int64_t run = job.y->shape[1] < ROW_CHUNK ? job.y->shape[1] : ROW_CHUNK;
  haian_parallel_for(job.y->shape[0] * job.runs, grain_of(run * (job.x->shape[1] + 1) * row_item(job.x->dtype)),
                     job.x->dtype == HAIAN_F64 ? sum_runs_f64 : sum_runs_f32, &job);
  return HAIAN_OK;
}

static int32_t grouped_mm(const haian_args *args) {
  const char *op = "grouped_mm";
  TRY(needs_all(op, args, 3, 1, 0));
  const haian_tensor *a = args->in[0], *b = args->in[1], *ends = args->in[2], *out = args->out[0];
  TRY(need_float(op, "a", a, 2));
  TRY(need_float(op, "b", b, 3));
  TRY(need_index(op, "offs", ends));
  HAIAN_REQUIRE(a->dtype == b->dtype, HAIAN_DTYPE, "%s: a is %s and b %s; needs one dtype", op,
                haian_dtype_name(a->dtype), haian_dtype_name(b->dtype));
  HAIAN_REQUIRE(ends->ndim == 1 && ends->shape[0] == b->shape[0], HAIAN_SHAPE, "%s: offs is %s; needs (%lld,)", op,
                row_shape(ends).text, (long long)b->shape[0]);
  HAIAN_REQUIRE(a->shape[1] == b->shape[1], HAIAN_SHAPE, "%s: a is %s and b %s; a's last axis must equal b's second",
                op, row_shape(a).text, row_shape(b).text);
  TRY(need_form(op, "the result", out, a->dtype, 2, a->shape[0], b->shape[2]));
  for (int64_t g = 0; g < ends->shape[0]; g++) {
    const int64_t end = index1(ends, g), low = g ? index1(ends, g - 1) : 0;
    HAIAN_REQUIRE(end >= low && end <= a->shape[0], HAIAN_INDEX,
                  "%s: offs %lld at position %lld is outside %lld <= offs <= %lld", op, (long long)end, (long long)g,
                  (long long)low, (long long)a->shape[0]);
  }
  const int64_t item = row_item(a->dtype);
  int64_t from = 0;
  for (int64_t g = 0; g < ends->shape[0]; g++) {
    const int64_t end = index1(ends, g);
    const haian_gemm product = {.a = {.data = (const char *)a->data + from * a->stride[0] * item,
                                      .row = a->stride[0],
                                      .col = a->stride[1],
                                      .dtype = a->dtype},
                                .b = {.data = (const char *)b->data + g * b->stride[0] * item,
                                      .row = b->stride[1],
                                      .col = b->stride[2],
                                      .dtype = a->dtype},
                                .c = {.data = (char *)out->data + from * out->stride[0] * item,
                                      .row = out->stride[0],
                                      .col = out->stride[1],
                                      .dtype = a->dtype},
                                .m = end - from,
                                .n = b->shape[2],
                                .k = a->shape[1],
                                .alpha = 1.0};
    TRY(HAIAN_SYM(gemm)(op, &product));
    from = end;
  }
  for (; from < out->shape[0]; from++) /* rows of no group */
    for (int64_t i = 0; i < out->shape[1]; i++)
      memset((char *)out->data + (from * out->stride[0] + i * out->stride[1]) * item, 0, (size_t)item);
  return HAIAN_OK;
}

/* ---- the layer ------------------------------------------------------------------------------------------------------------ */
static void gather_rows(void *ctx, int64_t lo, int64_t hi) {
  const layer_job *job = ctx;
  const int64_t d = job->x->shape[1], item = row_item(job->x->dtype), step = job->x->stride[1],
                per = job->weights->shape[1];
  for (int64_t r = lo; r < hi; r++) {
    const char *from = (const char *)job->x->data + job->order[job->first + r] / per * job->x->stride[0] * item;
    char *to = job->gathered + r * d * item;
    if (step == 1) memcpy(to, from, (size_t)(d * item));
    else
      for (int64_t i = 0; i < d; i++) memcpy(to + i * item, from + i * step * item, (size_t)item);
  }
}

/* c (rows, n) of the accumulator = a (rows, k), packed, times the transpose of matrix e of w (experts, n, k) */
static int32_t expert_product(const char *op, const haian_tensor *w, int64_t e, const char *a, char *c, int64_t rows) {
  const int64_t n = w->shape[1], k = w->shape[2], item = row_item(w->dtype);
  const haian_gemm product = {
      .a = {.data = a, .row = k, .col = 1, .dtype = w->dtype},
      .b = {.data = (const char *)w->data + e * w->stride[0] * item,
            .row = w->stride[2],
            .col = w->stride[1],
            .dtype = w->dtype},
      .c = {.data = c, .row = n, .col = 1, .dtype = w->dtype == HAIAN_F64 ? HAIAN_F64 : HAIAN_F32},
      .m = rows,
      .n = n,
      .k = k,
      .alpha = 1.0};
  return HAIAN_SYM(gemm)(op, &product);
}

static int32_t fused_experts(const haian_args *args) {
  const char *op = "fused_experts";
  TRY(needs_all(op, args, 5, 1, 0));
  const haian_tensor *x = args->in[0], *w1 = args->in[1], *w2 = args->in[2], *ids = args->in[4];
  layer_job job = {.x = x, .weights = args->in[3], .out = args->out[0]};
  TRY(need_float(op, "x", x, 2));
  TRY(need_float(op, "w1", w1, 3));
  TRY(need_float(op, "w2", w2, 3));
  HAIAN_REQUIRE(w1->dtype == x->dtype && w2->dtype == x->dtype, HAIAN_DTYPE,
                "%s: x is %s, w1 %s, w2 %s; needs one dtype", op, haian_dtype_name(x->dtype),
                haian_dtype_name(w1->dtype), haian_dtype_name(w2->dtype));
  const int64_t experts = w1->shape[0], d = x->shape[1], inner = w2->shape[2];
  HAIAN_REQUIRE(w1->shape[2] == d && w2->shape[1] == d && w1->shape[1] == 2 * inner && w2->shape[0] == experts,
                HAIAN_SHAPE, "%s: x is %s, w1 %s, w2 %s; needs (tokens, D), (experts, 2 I, D) and (experts, D, I)", op,
                row_shape(x).text, row_shape(w1).text, row_shape(w2).text);
  TRY(need_index(op, "topk_ids", ids));
  HAIAN_REQUIRE(ids->ndim == 2 && ids->shape[0] == x->shape[0], HAIAN_SHAPE,
                "%s: topk_ids is %s for %lld tokens; needs a row each", op, row_shape(ids).text,
                (long long)x->shape[0]);
  TRY(need_acc(op, "topk_weights", job.weights, x->dtype));
  TRY(need_form(op, "topk_weights", job.weights, job.weights->dtype, 2, ids->shape[0], ids->shape[1]));
  TRY(need_form(op, "the result", job.out, x->dtype, 2, x->shape[0], d));
  TRY(check_experts(op, ids, experts));
  if (job.out->numel == 0) return HAIAN_OK;
  const bool f64 = x->dtype == HAIAN_F64;
  const int64_t item = row_item(x->dtype), acc = f64 ? 8 : 4, n = ids->numel, rows = n < ROWS ? n : ROWS;
  const size_t parts[7] = {(size_t)(rows * d * item),
                           (size_t)(rows * 2 * inner * acc),
                           (size_t)(rows * inner * item),
                           (size_t)(rows * d * acc),
                           (size_t)(x->shape[0] * d * acc),
                           (size_t)n * sizeof(int64_t),
                           (size_t)(experts + 1) * sizeof(int64_t)};
  size_t bytes = 0, at[7];
  for (int i = 0; i < 7; i++) at[i] = bytes, bytes += (parts[i] + 191) / 64 * 64;
  char *memory = malloc(bytes + 64);
  if (!memory) return out_of_memory(op);
  char *base = memory + (64 - (uintptr_t)memory % 64) % 64;
  job.inner = inner;
  job.gathered = base + at[0], job.hidden = base + at[1], job.act = base + at[2], job.result = base + at[3],
  job.sums = base + at[4];
  int64_t *order = (int64_t *)(void *)(base + at[5]), *next = (int64_t *)(void *)(base + at[6]);
  job.order = order;
  memset(job.sums, 0, parts[4]);
  memset(next, 0, parts[6]);
  for (int64_t i = 0; i < n; i++) next[index_any(ids, i) + 1]++;
  for (int64_t e = 0; e < experts; e++) next[e + 1] += next[e];
  for (int64_t i = 0; i < n; i++) order[next[index_any(ids, i)]++] = i; /* next[e] is then where expert e ends */
  int32_t status = HAIAN_OK;
  for (int64_t e = 0; e < experts && status == HAIAN_OK; e++) {
    for (int64_t first = e ? next[e - 1] : 0; first < next[e] && status == HAIAN_OK; first += ROWS) {
      job.first = first;
      job.rows = next[e] - first < ROWS ? next[e] - first : ROWS;
      haian_parallel_for(job.rows, grain_of(2 * d * item), gather_rows, &job);
      status = expert_product(op, w1, e, job.gathered, job.hidden, job.rows);
      if (status != HAIAN_OK) break;
      if (inner > 0) haian_parallel_for(job.rows, grain_of(inner * 16), f64 ? gate_rows_f64 : gate_rows_f32, &job);
      status = expert_product(op, w2, e, job.act, job.result, job.rows);
      if (status != HAIAN_OK) break;
      haian_parallel_for((d + ADD_RUN - 1) / ADD_RUN, grain_of(job.rows * ADD_RUN * 3 * acc),
                         f64 ? add_columns_f64 : add_columns_f32, &job);
    }
  }
  if (status == HAIAN_OK)
    haian_parallel_for(x->shape[0], grain_of(d * (acc + item)), f64 ? store_tokens_f64 : store_tokens_f32, &job);
  free(memory);
  return status;
}

#define INDICES (HAIAN_BIT(HAIAN_I64) | HAIAN_BIT(HAIAN_I32))
const haian_kernel_entry HAIAN_TABLE(moe)[] = {
    {"topk_softmax", topk_softmax, HAIAN_FLOATS, NULL},
    {"grouped_topk", grouped_topk, HAIAN_FLOATS, NULL},
    {"moe_align_block_size", moe_align_block_size, INDICES, NULL},
    {"moe_sum", moe_sum, HAIAN_FLOATS, NULL},
    {"grouped_mm", grouped_mm, HAIAN_FLOATS, NULL},
    {"fused_experts", fused_experts, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
