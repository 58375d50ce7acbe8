/* Scaled dot-product attention, forward and backward, in one pass over the keys (Dao et al. 2022): scores in tiles.
 * Checks and strides are here; the arithmetic, for float and double, is attention_real.h.
 * Not here: projections (matmul.c), paged caches.
 * Axes: B batch, H heads, G key heads, L queries, S keys, E and V widths. */
#include "gemm/gemm.h"
#include "gemm/transpose.h"
#include "gemm/vec.h"
#include "simd.h"

#include <stdio.h>

enum {
  BQ = 64,             /* queries of a tile: lanes of the softmax, 4 vectors of 16 */
  BK = 256,            /* keys of a tile: with BQ, 64 KB of scores in L2 */
  ITEM_QUERIES = 1024, /* queries that share a packed tile of keys: packing is then 2 % */
  FEW = 16,            /* (queries x heads that share keys) up to which keys are read in place: decoding */
  SPLIT = 1024,        /* keys of a decoding task; fixed, as it orders the sums */
};

typedef struct attention {
  const haian_tensor *q, *k, *v, *mask, *out, *lse, *dy, *dq, *dk, *dv; /* lse: the last input of backward */
  int64_t B, H, G, L, S, E, V;
  double scale;
  bool causal;
  int64_t mask_stride[4];
  const haian_kind *kind;     /* of the dtype; its accumulator is float or double */
  const haian_kind *plain;    /* of the accumulator's own dtype */
  int64_t item_blocks, items; /* tiles of queries in a task, tasks of a (batch, key head) */
  char *partial;              /* decoding: (B, G, splits, rows, 2 + V) sums of each split */
  int64_t splits;
  int32_t failed;
} attention;

static int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static const char *at4(const haian_tensor *t, int64_t b, int64_t h, int64_t i, int64_t j) {
  return (const char *)t->data +
         (b * t->stride[0] + h * t->stride[1] + i * t->stride[2] + j * t->stride[3]) * haian_itemsize(t->dtype);
}
static float load1_f32(const void *p, int32_t dtype) {
  uint16_t half;
  float x;
  switch (dtype) {
    case HAIAN_F16:
      memcpy(&half, p, 2);
      return haian_f16_load(half);
    case HAIAN_BF16:
      memcpy(&half, p, 2);
      return haian_bf16_load(half);
    default:
      memcpy(&x, p, 4);
      return x;
  }
}
static double load1_f64(const void *p, int32_t dtype) {
  double x;
  if (dtype != HAIAN_F64) return load1_f32(p, dtype);
  memcpy(&x, p, 8);
  return x;
}
static void store1_f32(void *p, int32_t dtype, float x) {
  uint16_t half;
  switch (dtype) {
    case HAIAN_F16:
      half = haian_f16_store(x);
      memcpy(p, &half, 2);
      break;
    case HAIAN_BF16:
      half = haian_bf16_store(x);
      memcpy(p, &half, 2);
      break;
    default:
      memcpy(p, &x, 4);
  }
}
static void store1_f64(void *p, int32_t dtype, double x) {
  (void)dtype;
  memcpy(p, &x, 8);
}
INLINE v_f64 exp_f64(v_f64 x) {
  double y[LANES64];
  for (int i = 0; i < LANES64; i++) y[i] = haian_exp(x[i]);
  return *(const v_f64 *)y;
}

INLINE v_f32 exp_any_f32(v_f32 x) { /* of any x: backward takes logsumexp as given */
  const v_f32 high = (v_f32){0} + 88.0f;
  const v_i32 above = x > 88.0f;
  const v_f32 y = (v_f32)(((v_i32)high & above) | ((v_i32)x & ~above));
  return exp_f32(y) * exp_f32((v_f32)((v_i32)(x - y) & above));
}
INLINE v_f64 exp_any_f64(v_f64 x) { return exp_f64(x); }
static float log1_f32(float x) { return haian_logf(x); }
static double log1_f64(double x) { return haian_log(x); }
static float exp1_f32(float x) { return haian_expf(x); }
static double exp1_f64(double x) { return haian_exp(x); }
INLINE void store_vector_f32(void *p, int32_t dtype, v_f32 x) {
  if (dtype == HAIAN_F32) *(v_f32 *)p = x;
  else if (dtype == HAIAN_BF16) store_bf16(p, x);
  else store_f16(p, x);
}
INLINE void store_vector_f64(void *p, int32_t dtype, v_f64 x) {
  (void)dtype;
  *(v_f64 *)p = x;
}
/* probabilities of keys 2 j and 2 j + 1 as bf16 pairs, in row j of the tile, whose scores have been read */
INLINE void store_pair_f32(float *s, int64_t j, int64_t q, v_f32 even, v_f32 odd) {
  const v_u32 e = (v_u32)even, o = (v_u32)odd; /* in [0, 1] or NaN, whose low bits must not round up */
  const v_u32 nan = (v_u32)((v_i32)(even != even) | (v_i32)(odd != odd));
  const v_u32 low = (e + 0x7fffu + ((e >> 16) & 1u)) >> 16, high = (o + 0x7fffu + ((o >> 16) & 1u)) & 0xffff0000u;
  *(v_u32 *)((uint32_t *)s + j * BQ + q) = ((low | high) & ~nan) | (nan & 0x7fc07fc0u);
}
INLINE void store_pair_f64(double *s, int64_t j, int64_t q, v_f64 even, v_f64 odd) {
  (void)s, (void)j, (void)q, (void)even, (void)odd; /* double has no packed pairs */
}

#define R_(name) name##_f32
#define REAL float
#define VEC v_f32
#define INTS v_i32
#include "attention_real.h"

#define R_(name) name##_f64
#define REAL double
#define VEC v_f64
#define INTS v_i64
#include "attention_real.h"

/* ---- checks ------------------------------------------------------------------------------------------------------ */
typedef struct shape_text {
  char s[HAIAN_MAX_RANK * 21 + 4];
} shape_text;
static shape_text text_of(const haian_tensor *t) {
  shape_text x;
  size_t used = (size_t)snprintf(x.s, sizeof x.s, "(");
  for (int i = 0; i < t->ndim; i++)
    used += (size_t)snprintf(x.s + used, sizeof x.s - used, i ? ", %lld" : "%lld", (long long)t->shape[i]);
  snprintf(x.s + used, sizeof x.s - used, ")");
  return x;
}
#define TEXT(t) text_of(t).s
#define TRY(call)                            \
  do {                                       \
    const int32_t status_ = (call);          \
    if (status_ != HAIAN_OK) return status_; \
  } while (0)

static bool is_shape4(const haian_tensor *t, int64_t a, int64_t b, int64_t c, int64_t d) {
  return t->ndim == 4 && t->shape[0] == a && t->shape[1] == b && t->shape[2] == c && t->shape[3] == d;
}

static int32_t check(const char *op, attention *t, const haian_args *args, int first, int mask, int n_in, int n_out,
                     const haian_attr *causal, const haian_attr *scale, bool gqa) {
  HAIAN_REQUIRE((args->n_in == n_in || args->n_in == n_in - 1) && args->n_out == n_out, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs and %d outputs; needs %d and %d", op, args->n_in, args->n_out, n_in, n_out);
  for (int i = 0; i < mask; i++)
    HAIAN_REQUIRE(args->in[i], HAIAN_INVALID_ARGUMENT, "%s: input %d is missing; pass a tensor", op, i);
  for (int i = 0; i < n_out; i++)
    HAIAN_REQUIRE(args->out[i], HAIAN_INVALID_ARGUMENT, "%s: output %d is missing; pass a tensor", op, i);
  t->q = args->in[first];
  t->k = args->in[first + 1];
  t->v = args->in[first + 2];
  t->mask = mask < args->n_in ? args->in[mask] : NULL;
  const int32_t dtype = t->q->dtype;
  HAIAN_REQUIRE(dtype > 0 && dtype < HAIAN_DTYPE_END && (HAIAN_FLOATS & HAIAN_BIT(dtype)), HAIAN_DTYPE,
                "%s: query is %s; accepts float16, bfloat16, float32, float64; cast first", op,
                haian_dtype_name(dtype));
  HAIAN_REQUIRE(t->k->dtype == dtype && t->v->dtype == dtype, HAIAN_DTYPE,
                "%s: query is %s, key %s, value %s; needs one dtype; cast first", op, haian_dtype_name(dtype),
                haian_dtype_name(t->k->dtype), haian_dtype_name(t->v->dtype));
  HAIAN_REQUIRE(t->q->ndim == 4 && t->k->ndim == 4 && t->v->ndim == 4, HAIAN_SHAPE,
                "%s: query is %s, key %s, value %s; each needs 4 axes (batch, heads, length, width)", op, TEXT(t->q),
                TEXT(t->k), TEXT(t->v));
  t->B = t->q->shape[0], t->H = t->q->shape[1], t->L = t->q->shape[2], t->E = t->q->shape[3];
  t->G = t->k->shape[1], t->S = t->k->shape[2], t->V = t->v->shape[3];
  HAIAN_REQUIRE(is_shape4(t->k, t->B, t->G, t->S, t->E), HAIAN_SHAPE,
                "%s: query is %s and key %s; batches and last axes must be equal", op, TEXT(t->q), TEXT(t->k));
  HAIAN_REQUIRE(is_shape4(t->v, t->B, t->G, t->S, t->V), HAIAN_SHAPE,
                "%s: key is %s and value %s; batch, heads and length must be equal", op, TEXT(t->k), TEXT(t->v));
  HAIAN_REQUIRE(t->G == t->H || (gqa && t->G > 0 && t->H % t->G == 0), HAIAN_SHAPE,
                "%s: query has %lld heads and key %lld; they must be equal, or divisible with enable_gqa", op,
                (long long)t->H, (long long)t->G);
  if (t->mask) {
    const haian_tensor *m = t->mask;
    const int64_t full[4] = {t->B, t->H, t->L, t->S};
    HAIAN_REQUIRE(m->dtype == HAIAN_BOOL || m->dtype == dtype || (m->dtype == HAIAN_F32 && dtype != HAIAN_F64),
                  HAIAN_DTYPE, "%s: attn_mask is %s; needs bool or %s; cast it first", op, haian_dtype_name(m->dtype),
                  haian_dtype_name(dtype));
    bool fits = m->ndim <= 4;
    for (int i = 0; fits && i < m->ndim; i++) {
      const int axis = 4 - m->ndim + i;
      fits = m->shape[i] == 1 || m->shape[i] == full[axis];
      if (m->shape[i] != 1) t->mask_stride[axis] = m->stride[i];
    }
    HAIAN_REQUIRE(fits, HAIAN_SHAPE, "%s: attn_mask is %s; it must broadcast to (%lld, %lld, %lld, %lld)", op, TEXT(m),
                  (long long)t->B, (long long)t->H, (long long)t->L, (long long)t->S);
  }
  t->causal = causal && causal->kind == HAIAN_INT && causal->i != 0;
  t->scale = t->E > 0 ? 1.0 / sqrt((double)t->E) : 1.0;
  if (scale && scale->kind == HAIAN_FLOAT) t->scale = scale->f;
  if (scale && scale->kind == HAIAN_INT) t->scale = (double)scale->i;
  t->kind = HAIAN_SYM(gemm_kind)(dtype, dtype, first != 0);
  t->plain = HAIAN_SYM(gemm_kind)(dtype == HAIAN_F64 ? HAIAN_F64 : HAIAN_F32, HAIAN_F32, true);
  return HAIAN_OK;
}

static int32_t check_result(const char *op, const attention *t) {
  HAIAN_REQUIRE(t->out->dtype == t->q->dtype, HAIAN_DTYPE, "%s: out is %s; needs %s", op,
                haian_dtype_name(t->out->dtype), haian_dtype_name(t->q->dtype));
  HAIAN_REQUIRE(is_shape4(t->out, t->B, t->H, t->L, t->V), HAIAN_SHAPE,
                "%s: out is %s; the result is (%lld, %lld, %lld, %lld)", op, TEXT(t->out), (long long)t->B,
                (long long)t->H, (long long)t->L, (long long)t->V);
  if (t->lse) {
    const int32_t want = t->q->dtype == HAIAN_F64 ? HAIAN_F64 : HAIAN_F32;
    HAIAN_REQUIRE(t->lse->dtype == want, HAIAN_DTYPE, "%s: logsumexp is %s; needs %s", op,
                  haian_dtype_name(t->lse->dtype), haian_dtype_name(want));
    HAIAN_REQUIRE(t->lse->ndim == 3 && t->lse->shape[0] == t->B && t->lse->shape[1] == t->H && t->lse->shape[2] == t->L,
                  HAIAN_SHAPE, "%s: logsumexp is %s; needs (%lld, %lld, %lld)", op, TEXT(t->lse), (long long)t->B,
                  (long long)t->H, (long long)t->L);
  }
  return HAIAN_OK;
}

static int32_t out_of_memory(const char *op) {
  return haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for tiles; free some", op);
}

/* few queries for many keys: keys are read where they lie, each split of them a task, then the splits are joined */
static int32_t decode(const char *op, attention *t) {
  const bool f64 = t->q->dtype == HAIAN_F64;
  const int64_t rows = t->H / t->G * t->L;
  t->splits = t->S > 0 ? (t->S + SPLIT - 1) / SPLIT : 1;
  const size_t bytes = (size_t)(t->B * t->G * t->splits * rows * (t->V + 2)) * (f64 ? 8 : 4);
  t->partial = HAIAN_SYM(workspace)(2, bytes);
  if (!t->partial) return out_of_memory(op);
  const int64_t work = rows * (t->S < SPLIT ? t->S : SPLIT) * (t->E + t->V);
  haian_parallel_for(t->B * t->G * t->splits, work < 65536 ? 65536 / (work + 1) + 1 : 1,
                     f64 ? decode_items_f64 : decode_items_f32, t);
  if (t->failed) return out_of_memory(op);
  haian_parallel_for(t->B * t->G, 64, f64 ? join_splits_f64 : join_splits_f32, t);
  return HAIAN_OK;
}

static int32_t forward(const char *op, attention *t) {
  TRY(check_result(op, t));
  if (t->B == 0 || t->H == 0 || t->L == 0) return HAIAN_OK;
  const int64_t shared = t->H / t->G;
  if (shared * t->L <= FEW && t->k->stride[3] == 1 && t->v->stride[3] == 1 && t->E > 0) return decode(op, t);
  const int64_t blocks = shared * ((t->L + BQ - 1) / BQ), threads = haian_num_threads();
  int64_t per = ITEM_QUERIES / BQ;
  while (per > 1 && t->B * t->G * ((blocks + per - 1) / per) < 2 * threads && threads > 1) per = (per + 1) / 2;
  t->item_blocks = per;
  t->items = (blocks + per - 1) / per;
  const int64_t work = (per < blocks ? per : blocks) * (t->L < BQ ? t->L : BQ) * t->S * (t->E + t->V);
  haian_parallel_for(t->B * t->G * t->items, work < 65536 ? 65536 / (work + 1) + 1 : 1,
                     t->q->dtype == HAIAN_F64 ? forward_items_f64 : forward_items_f32, t);
  return t->failed ? out_of_memory(op) : HAIAN_OK;
}

static const haian_attr *attr_at(const haian_args *args, int i) { return i < args->n_attr ? &args->attr[i] : NULL; }

/* query (B, H, L, E), key (B, G, S, E), value (B, G, S, V) -> (B, H, L, V) */
static int32_t scaled_dot_product_attention(const haian_args *args) {
  const char *op = "scaled_dot_product_attention";
  attention t = {.out = args->n_out > 0 ? args->out[0] : NULL};
  const haian_attr *dropout = attr_at(args, 0), *gqa = attr_at(args, 3);
  TRY(check(op, &t, args, 0, 3, 4, 1, attr_at(args, 1), attr_at(args, 2), gqa && gqa->kind == HAIAN_INT && gqa->i));
  double p = 0.0;
  if (dropout && dropout->kind == HAIAN_FLOAT) p = dropout->f;
  if (dropout && dropout->kind == HAIAN_INT) p = (double)dropout->i;
  HAIAN_REQUIRE(p == 0.0, HAIAN_UNSUPPORTED,
                "%s: dropout_p is %g; attention has no dropout here; pass 0 and use dropout", op, p);
  return forward(op, &t);
}

/* the same with logsumexp (B, H, L) of the scores, -inf for a query that sees no key */
static int32_t flash_attention(const haian_args *args) {
  const char *op = "scaled_dot_product_flash_attention";
  attention t = {.out = args->n_out > 0 ? args->out[0] : NULL, .lse = args->n_out > 1 ? args->out[1] : NULL};
  TRY(check(op, &t, args, 0, 3, 4, 2, attr_at(args, 0), attr_at(args, 1), true));
  return forward(op, &t);
}

/* dy (B, H, L, V), query, key, value, out, logsumexp, mask -> dquery, dkey, dvalue */
static int32_t flash_attention_backward(const haian_args *args) {
  const char *op = "scaled_dot_product_flash_attention_backward";
  attention t = {0};
  TRY(check(op, &t, args, 1, 6, 7, 3, attr_at(args, 0), attr_at(args, 1), true));
  t.dy = args->in[0];
  t.out = args->in[4];
  t.lse = args->in[5];
  TRY(check_result(op, &t));
  HAIAN_REQUIRE(t.dy->dtype == t.q->dtype && haian_same_shape(t.dy, t.out), HAIAN_SHAPE,
                "%s: dy is %s %s; needs %s %s, as the result", op, haian_dtype_name(t.dy->dtype), TEXT(t.dy),
                haian_dtype_name(t.q->dtype), TEXT(t.out));
  const haian_tensor *like[3] = {t.q, t.k, t.v};
  for (int i = 0; i < 3; i++)
    HAIAN_REQUIRE(args->out[i]->dtype == like[i]->dtype && haian_same_shape(args->out[i], like[i]), HAIAN_SHAPE,
                  "%s: output %d is %s %s; needs %s %s", op, i, haian_dtype_name(args->out[i]->dtype),
                  TEXT(args->out[i]), haian_dtype_name(like[i]->dtype), TEXT(like[i]));
  t.dq = args->out[0], t.dk = args->out[1], t.dv = args->out[2];
  haian_parallel_for(t.B * t.G, 1, t.q->dtype == HAIAN_F64 ? backward_items_f64 : backward_items_f32, &t);
  return t.failed ? out_of_memory(op) : HAIAN_OK;
}

const haian_kernel_entry HAIAN_TABLE(attention)[] = {
    {"scaled_dot_product_attention", scaled_dot_product_attention, HAIAN_FLOATS, NULL},
    {"scaled_dot_product_flash_attention", flash_attention, HAIAN_FLOATS, NULL},
    {"scaled_dot_product_flash_attention_backward", flash_attention_backward, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
