/* Attention in one accumulator type.  Included twice by attention.c with R_(name), REAL, VEC, INTS (its comparisons).
 * Scores are kept transposed, [keys][queries]: the softmax runs down the keys with queries as lanes, and the
 * probabilities are then already the B panel of the second product, out' = value' P'.  No horizontal operations. */
#define LANES ((int64_t)(sizeof(VEC) / sizeof(REAL)))
#define MINUS_INF ((REAL) - INFINITY)
#define EXP R_(exp)
#define MAX R_(max)

INLINE VEC R_(pick)(INTS where, VEC x, VEC y) { return (VEC)(((INTS)x & where) | ((INTS)y & ~where)); }

/* mask of keys k0 .. k0 + n, queries q0 .. q0 + nq as numbers to add, [n][BQ]; -inf where a bool mask is false */
static void R_(load_mask)(const attention *t, REAL *dst, int64_t b, int64_t h, int64_t q0, int64_t nq, int64_t k0,
                          int64_t n) {
  const haian_tensor *m = t->mask;
  const int64_t size = haian_itemsize(m->dtype), sq = t->mask_stride[2], sk = t->mask_stride[3];
  const char *base = (const char *)m->data + (b * t->mask_stride[0] + h * t->mask_stride[1] + q0 * sq + k0 * sk) * size;
  REAL square[LANES][LANES] __attribute__((aligned(64)));
  for (int64_t q = 0; q < nq; q += LANES)
    for (int64_t k = 0; k < n; k += LANES) {
      const int64_t rows = nq - q < LANES ? nq - q : LANES, cols = n - k < LANES ? n - k : LANES;
      for (int64_t i = 0; i < LANES; i++)
        for (int64_t j = 0; j < LANES; j++) square[i][j] = 0;
      for (int64_t i = 0; i < rows; i++) {
        const char *p = base + ((q + i) * sq + k * sk) * size;
        if (m->dtype == HAIAN_BOOL)
          for (int64_t j = 0; j < cols; j++) square[i][j] = p[j * sk] ? 0 : MINUS_INF;
        else
          for (int64_t j = 0; j < cols; j++) square[i][j] = R_(load1)(p + j * sk * size, m->dtype);
      }
      TRANSPOSE(REAL, square, (int64_t)sizeof square[0], square, (int64_t)sizeof square[0]);
      for (int64_t j = 0; j < cols; j++) memcpy(dst + (k + j) * BQ + q, square[j], sizeof square[j]);
    }
}

/* scores *= scale, + mask, -inf where a key is not to be seen; lanes past nq stay finite */
static void R_(mask_scores)(const attention *t, REAL *s, REAL *mask, int64_t b, int64_t h, int64_t q0, int64_t nq,
                            int64_t k0, int64_t n) {
  const int64_t lanes = round_up(nq, LANES);
  const REAL scale = (REAL)t->scale;
  if (t->mask) R_(load_mask)(t, mask, b, h, q0, nq, k0, n);
  const bool add = t->mask && t->mask->dtype != HAIAN_BOOL, drop = t->mask && !add;
  for (int64_t k = 0; k < n; k++)
    for (int64_t q = 0; q < lanes; q += LANES) {
      VEC x = *(VEC *)(s + k * BQ + q) * scale;
      if (add) x += *(VEC *)(mask + k * BQ + q);
      if (drop) x = R_(pick)(*(VEC *)(mask + k * BQ + q) < 0, (VEC){0} + MINUS_INF, x);
      *(VEC *)(s + k * BQ + q) = x;
    }
  if (t->causal)
    for (int64_t k = 0; k < n; k++) /* key k0 + k is hidden from queries before it */
      for (int64_t q = 0; q < lanes && q0 + q < k0 + k; q++) s[k * BQ + q] = MINUS_INF;
}

/* Online softmax of a tile: updates top and total (of the tile's queries), leaves P in s and the factor for what was
 * summed before in `factor`.  scale: what scores are still to be multiplied with.  pairs: P as bf16 pairs of keys. */
static void R_(softmax_tile)(REAL *s, int64_t lanes, int64_t n, REAL scale, REAL *top, REAL *total, REAL *factor,
                             bool pairs) {
  for (int64_t q = 0; q < lanes; q += LANES) {
    VEC high[4] = {*(VEC *)(top + q), *(VEC *)(top + q), *(VEC *)(top + q), *(VEC *)(top + q)};
    int64_t k = 0;
    for (; k + 4 <= n; k += 4)
      for (int i = 0; i < 4; i++) high[i] = MAX(*(VEC *)(s + (k + i) * BQ + q) * scale, high[i]);
    for (; k < n; k++) high[0] = MAX(*(VEC *)(s + k * BQ + q) * scale, high[0]);
    const VEC new_top = MAX(MAX(high[0], high[1]), MAX(high[2], high[3]));
    const VEC base = R_(pick)(new_top == (VEC){0} + MINUS_INF, (VEC){0}, new_top); /* nothing seen yet: exp(-inf - 0) */
    const VEC shrink = EXP(*(VEC *)(top + q) - base);
    VEC sum[4] = {{0}, {0}, {0}, {0}};
    for (k = 0; k + 4 <= n; k += 4) {
      VEC p[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        p[i] = EXP(*(VEC *)(s + (k + i) * BQ + q) * scale - base);
        sum[i] += p[i];
        if (!pairs) *(VEC *)(s + (k + i) * BQ + q) = p[i];
      }
      if (pairs) {
        R_(store_pair)(s, k / 2, q, p[0], p[1]);
        R_(store_pair)(s, k / 2 + 1, q, p[2], p[3]);
      }
    }
    for (; k < n; k += 2) {
      const VEC p0 = EXP(*(VEC *)(s + k * BQ + q) * scale - base);
      const VEC p1 = k + 1 < n ? EXP(*(VEC *)(s + (k + 1) * BQ + q) * scale - base) : (VEC){0};
      sum[0] += p0;
      sum[1] += p1;
      if (pairs) {
        R_(store_pair)(s, k / 2, q, p0, p1);
      } else {
        *(VEC *)(s + k * BQ + q) = p0;
        if (k + 1 < n) *(VEC *)(s + (k + 1) * BQ + q) = p1;
      }
    }
    *(VEC *)(total + q) = *(VEC *)(total + q) * shrink + ((sum[0] + sum[1]) + (sum[2] + sum[3]));
    *(VEC *)(top + q) = new_top;
    *(VEC *)(factor + q) = shrink;
  }
}

/* out[q][v] = o[v][q] / total[q] for one tile; a query that saw nothing gives 0 */
static void R_(store_tile)(const haian_tensor *to, const REAL *o, const REAL *factor, int64_t width, int64_t b,
                           int64_t h, int64_t q0, int64_t nq) {
  REAL square[LANES][LANES] __attribute__((aligned(64)));
  for (int64_t q = 0; q < nq; q += LANES)
    for (int64_t v = 0; v < width; v += LANES) {
      const int64_t rows = nq - q < LANES ? nq - q : LANES, cols = width - v < LANES ? width - v : LANES;
      const VEC f = *(const VEC *)(factor + q);
      for (int64_t i = 0; i < cols; i++) *(VEC *)square[i] = *(const VEC *)(o + (v + i) * BQ + q) * f;
      for (int64_t i = cols; i < LANES; i++) *(VEC *)square[i] = (VEC){0};
      TRANSPOSE(REAL, square, (int64_t)sizeof square[0], square, (int64_t)sizeof square[0]);
      const int64_t step = to->stride[3] * haian_itemsize(to->dtype);
      for (int64_t i = 0; i < rows; i++) {
        char *p = (char *)at4(to, b, h, q0 + q + i, v);
        if (cols == LANES && to->stride[3] == 1) R_(store_vector)(p, to->dtype, *(VEC *)square[i]);
        else
          for (int64_t j = 0; j < cols; j++) R_(store1)(p + j * step, to->dtype, square[i][j]);
      }
    }
}

static char *R_(take)(char **at, int64_t bytes) { /* the next piece of a workspace */
  char *p = *at;
  *at += round_up(bytes + VBYTES, 64);
  return p;
}

/* tiles first .. first + count of the queries of all heads that share key head g */
static bool R_(forward_item)(const attention *t, int64_t b, int64_t g, int64_t first, int64_t count) {
  const haian_kind *kind = t->kind;
  const int64_t kg = kind->kgroup, gb = kind->group_bytes, nr = kind->nr, size = sizeof(REAL);
  const int64_t groups = (t->E + kg - 1) / kg, q_tile = groups * BQ * gb, o_tile = t->V * BQ * size;
  const int64_t shared = t->H / t->G, per_head = (t->L + BQ - 1) / BQ;
  char *w = HAIAN_SYM(workspace)(1, (size_t)(count * (q_tile + o_tile + 2 * BQ * size) + BK * (groups + t->V) * gb +
                                             2 * BK * BQ * size + BQ * size + 16 * 128));
  if (!w) return false;
  char *qp = R_(take)(&w, count * q_tile);
  REAL *o = (REAL *)R_(take)(&w, count * o_tile), *top = (REAL *)R_(take)(&w, count * BQ * size);
  REAL *total = (REAL *)R_(take)(&w, count * BQ * size), *factor = (REAL *)R_(take)(&w, BQ * size);
  char *kp = R_(take)(&w, BK * groups * gb), *vp = R_(take)(&w, BK * t->V * gb);
  REAL *s = (REAL *)R_(take)(&w, BK * BQ * size), *mask = (REAL *)R_(take)(&w, BK * BQ * size);
  int64_t last_query = -1;
  for (int64_t i = 0; i < count; i++) {
    const int64_t h = g * shared + (first + i) / per_head, q0 = (first + i) % per_head * BQ;
    const int64_t nq = t->L - q0 < BQ ? t->L - q0 : BQ;
    kind->pack_b(qp + i * q_tile, at4(t->q, b, h, q0, 0), t->q->stride[2], t->q->stride[3], nq, t->E);
    if (q0 + nq - 1 > last_query) last_query = q0 + nq - 1;
    for (int64_t q = 0; q < BQ; q++) top[i * BQ + q] = MINUS_INF, total[i * BQ + q] = 0;
  }
  const int64_t keys = t->causal && last_query + 1 < t->S ? last_query + 1 : t->S;
  const bool fused = !t->mask && t->scale >= 0; /* scores are scaled inside the softmax */
  for (int64_t k0 = 0; k0 < keys; k0 += BK) {
    const int64_t n = t->S - k0 < BK ? t->S - k0 : BK;
    kind->pack_a(kp, at4(t->k, b, g, k0, 0), t->k->stride[2], t->k->stride[3], n, t->E);
    kind->pack_a(vp, at4(t->v, b, g, k0, 0), t->v->stride[3], t->v->stride[2], t->V, n);
    for (int64_t i = 0; i < count; i++) {
      const int64_t h = g * shared + (first + i) / per_head, q0 = (first + i) % per_head * BQ;
      const int64_t nq = t->L - q0 < BQ ? t->L - q0 : BQ, lanes = round_up(nq, nr);
      if (t->causal && k0 > q0 + nq - 1) continue;
      REAL *oi = o + i * t->V * BQ;
      HAIAN_SYM(gemm_packed)(kind, n, lanes, groups, kp, qp + i * q_tile, nr, nr * groups, s, BQ, 1);
      const bool masked = !fused || (t->causal && k0 + n - 1 > q0);
      if (masked) R_(mask_scores)(t, s, mask, b, h, q0, nq, k0, n);
      R_(softmax_tile)(s, round_up(nq, LANES), n, masked ? 1 : (REAL)t->scale, top + i * BQ, total + i * BQ, factor,
                       kg == 2);
      if (k0 > 0)
        for (int64_t v = 0; v < t->V; v++)
          for (int64_t q = 0; q < round_up(nq, LANES); q += LANES) *(VEC *)(oi + v * BQ + q) *= *(VEC *)(factor + q);
      HAIAN_SYM(gemm_packed)(kind, t->V, lanes, (n + kg - 1) / kg, vp, s, BQ, nr, oi, BQ, k0 == 0);
    }
  }
  for (int64_t i = 0; i < count; i++) {
    const int64_t h = g * shared + (first + i) / per_head, q0 = (first + i) % per_head * BQ;
    const int64_t nq = t->L - q0 < BQ ? t->L - q0 : BQ;
    for (int64_t q = 0; q < BQ; q++) factor[q] = total[i * BQ + q] == 0 ? 0 : 1 / total[i * BQ + q];
    if (keys == 0) memset(o + i * t->V * BQ, 0, (size_t)o_tile);
    R_(store_tile)(t->out, o + i * t->V * BQ, factor, t->V, b, h, q0, nq);
    for (int64_t q = 0; t->lse && q < nq; q++) {
      const REAL sum = total[i * BQ + q], value = sum == 0 ? MINUS_INF : top[i * BQ + q] + R_(log1)(sum);
      ((REAL *)t->lse->data)[b * t->lse->stride[0] + h * t->lse->stride[1] + (q0 + q) * t->lse->stride[2]] = value;
    }
  }
  return true;
}

static void R_(forward_items)(void *ctx, int64_t lo, int64_t hi) {
  attention *t = ctx;
  const int64_t blocks = t->H / t->G * ((t->L + BQ - 1) / BQ);
  for (int64_t i = lo; i < hi; i++) {
    const int64_t bg = i / t->items, first = i % t->items * t->item_blocks;
    const int64_t count = blocks - first < t->item_blocks ? blocks - first : t->item_blocks;
    if (count > 0 && !R_(forward_item)(t, bg / t->G, bg % t->G, first, count))
      __atomic_store_n(&t->failed, 1, __ATOMIC_RELAXED);
  }
}

/* ---- decoding: rows = queries of all heads that share keys; one split of the keys -------------------------------- */
static bool R_(decode_item)(const attention *t, int64_t b, int64_t g, int64_t split) {
  const int64_t shared = t->H / t->G, rows = shared * t->L, size = sizeof(REAL), k0 = split * SPLIT;
  const int64_t n = t->S - k0 < SPLIT ? t->S - k0 : SPLIT;
  char *w = HAIAN_SYM(workspace)(1, (size_t)(rows * (t->E + n + t->V) * size + 1024));
  if (!w) return false;
  REAL *q = (REAL *)R_(take)(&w, rows * t->E * size), *s = (REAL *)R_(take)(&w, rows * n * size);
  REAL *o = (REAL *)R_(take)(&w, rows * t->V * size);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t e = 0; e < t->E; e++)
      q[r * t->E + e] = R_(load1)(at4(t->q, b, g * shared + r / t->L, r % t->L, e), t->q->dtype);
  if (n > 0)
    HAIAN_SYM(gemm_skinny)(t->k->dtype, false)(rows, n, t->E, q, at4(t->k, b, g, k0, 0), t->k->stride[2], s, n);
  REAL *to = (REAL *)t->partial + ((b * t->G + g) * t->splits + split) * rows * (t->V + 2);
  for (int64_t r = 0; r < rows; r++) {
    REAL *x = s + r * n, top = MINUS_INF, sum = 0;
    const int64_t h = g * shared + r / t->L, i = r % t->L;
    for (int64_t k = 0; k < n; k++) x[k] *= (REAL)t->scale;
    if (t->mask) {
      const int64_t bytes = haian_itemsize(t->mask->dtype), step = t->mask_stride[3];
      const char *m = (const char *)t->mask->data +
                      (b * t->mask_stride[0] + h * t->mask_stride[1] + i * t->mask_stride[2] + k0 * step) * bytes;
      if (t->mask->dtype == HAIAN_BOOL)
        for (int64_t k = 0; k < n; k++) x[k] = m[k * step] ? x[k] : MINUS_INF;
      else
        for (int64_t k = 0; k < n; k++) x[k] += R_(load1)(m + k * step * bytes, t->mask->dtype);
    }
    for (int64_t k = i + 1 - k0 > 0 ? i + 1 - k0 : 0; t->causal && k < n; k++) x[k] = MINUS_INF;
    int64_t k = 0;
    VEC high = (VEC){0} + MINUS_INF, part[2] = {{0}, {0}};
    for (; k + LANES <= n; k += LANES) high = MAX(*(VEC *)(x + k), high);
    for (; k < n; k++) top = x[k] > top ? x[k] : top;
    for (int64_t j = 0; j < LANES; j++) top = high[j] > top ? high[j] : top;
    const REAL base = top == MINUS_INF ? 0 : top;
    for (k = 0; k + LANES <= n; k += LANES) {
      const VEC p = EXP(*(VEC *)(x + k) - base);
      *(VEC *)(x + k) = p;
      part[k / LANES & 1] += p;
    }
    if (k < n) {
      REAL edge[LANES];
      for (int64_t j = 0; j < LANES; j++) edge[j] = k + j < n ? x[k + j] : MINUS_INF;
      const VEC p = EXP(*(const VEC *)edge - base);
      memcpy(x + k, &p, (size_t)((n - k) * size));
      part[0] += p;
    }
    part[0] += part[1];
    for (int64_t j = 0; j < LANES; j++) sum += part[0][j];
    to[r * (t->V + 2)] = top;
    to[r * (t->V + 2) + 1] = sum;
  }
  HAIAN_SYM(gemm_skinny)(t->v->dtype, true)(rows, t->V, n, s, at4(t->v, b, g, k0, 0), t->v->stride[2], o, t->V);
  for (int64_t r = 0; r < rows; r++) memcpy(to + r * (t->V + 2) + 2, o + r * t->V, (size_t)(t->V * size));
  return true;
}
static void R_(decode_items)(void *ctx, int64_t lo, int64_t hi) {
  attention *t = ctx;
  for (int64_t i = lo; i < hi; i++) {
    const int64_t bg = i / t->splits;
    if (!R_(decode_item)(t, bg / t->G, bg % t->G, i % t->splits)) __atomic_store_n(&t->failed, 1, __ATOMIC_RELAXED);
  }
}
static void R_(join_splits)(void *ctx, int64_t lo, int64_t hi) {
  const attention *t = ctx;
  const int64_t shared = t->H / t->G, rows = shared * t->L, step = rows * (t->V + 2);
  const int64_t size = haian_itemsize(t->out->dtype);
  for (int64_t bg = lo; bg < hi; bg++)
    for (int64_t r = 0; r < rows; r++) {
      REAL *part = (REAL *)t->partial + bg * t->splits * step + r * (t->V + 2), top = MINUS_INF, sum = 0;
      const int64_t b = bg / t->G, h = bg % t->G * shared + r / t->L, i = r % t->L;
      for (int64_t p = 0; p < t->splits; p++) top = part[p * step] > top ? part[p * step] : top;
      const REAL base = top == MINUS_INF ? 0 : top;
      for (int64_t p = 0; p < t->splits; p++) { /* the first split's row becomes the sum of all */
        const REAL f = R_(exp1)(part[p * step] - base);
        sum += part[p * step + 1] * f;
        for (int64_t v = 2; v < t->V + 2; v++) part[v] = (p ? part[v] : 0) + part[p * step + v] * f;
      }
      const REAL f = sum == 0 ? 0 : 1 / sum;
      char *to = (char *)at4(t->out, b, h, i, 0);
      for (int64_t v = 0; v < t->V; v++) R_(store1)(to + v * t->out->stride[3] * size, t->out->dtype, part[v + 2] * f);
      if (t->lse)
        ((REAL *)t->lse->data)[b * t->lse->stride[0] + h * t->lse->stride[1] + i * t->lse->stride[2]] =
            sum == 0 ? MINUS_INF : top + R_(log1)(sum);
    }
}

/* ---- backward: P = exp(scores - logsumexp), dP = dy value', dS = P (dP - sum(dy out)) (Dao et al. 2022, B.4) ----- */
static void R_(store_rows)(const haian_tensor *to, const REAL *x, int64_t ld, int64_t b, int64_t h, int64_t i0,
                           int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < cols; j++) R_(store1)((char *)at4(to, b, h, i0 + i, j), to->dtype, x[i * ld + j]);
}
/* one query head; its share of a key head's gradients goes to dk_sum (S, E) and dv_sum (S, V) where heads are shared */
static bool R_(backward_item)(const attention *t, int64_t b, int64_t h, REAL *dk_sum, REAL *dv_sum) {
  const int64_t g = h / (t->H / t->G);
  const haian_kind *kind = t->kind, *plain = t->plain;
  const int64_t size = sizeof(REAL), nr = kind->nr, E = t->E, V = t->V, tiles = (t->L + BQ - 1) / BQ;
  const int64_t ew = round_up(E, nr), vw = round_up(V, nr); /* widths as rows of whole panels */
  char *w = HAIAN_SYM(workspace)(
      1, (size_t)((tiles * BQ * (2 * E + V + ew + vw + 2) + BK * (2 * E + V + ew + vw + 4 * BQ)) * size + 16 * 1024));
  if (!w) return false;
  /* for all queries: [e][q] of query and [v][q] of dy (operands of the scores), [q][e] and [q][v] (of dk, dv), dq' */
  REAL *q_across = (REAL *)R_(take)(&w, tiles * BQ * E * size);
  REAL *dy_across = (REAL *)R_(take)(&w, tiles * BQ * V * size);
  REAL *q_along = (REAL *)R_(take)(&w, tiles * BQ * ew * size);
  REAL *dy_along = (REAL *)R_(take)(&w, tiles * BQ * vw * size);
  REAL *dq = (REAL *)R_(take)(&w, tiles * BQ * E * size);
  REAL *delta = (REAL *)R_(take)(&w, tiles * BQ * size), *lse = (REAL *)R_(take)(&w, tiles * BQ * size);
  REAL *kp = (REAL *)R_(take)(&w, BK * E * size), *vp = (REAL *)R_(take)(&w, BK * V * size);
  REAL *k_turned = (REAL *)R_(take)(&w, BK * E * size);
  REAL *dk = (REAL *)R_(take)(&w, BK * ew * size), *dv = (REAL *)R_(take)(&w, BK * vw * size);
  REAL *s = (REAL *)R_(take)(&w, BK * BQ * size), *dp = (REAL *)R_(take)(&w, BK * BQ * size);
  REAL *mask = (REAL *)R_(take)(&w, BK * BQ * size), *packed = (REAL *)R_(take)(&w, BK * BQ * size);
  memset(dq, 0, (size_t)(tiles * BQ * E * size));
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t q0 = i * BQ, nq = t->L - q0 < BQ ? t->L - q0 : BQ;
    const char *query = at4(t->q, b, h, q0, 0), *dy = at4(t->dy, b, h, q0, 0);
    kind->pack_b(q_across + q0 * E, query, t->q->stride[2], t->q->stride[3], nq, E);
    kind->pack_b(dy_across + q0 * V, dy, t->dy->stride[2], t->dy->stride[3], nq, V);
    kind->pack_b(q_along + q0 * ew, query, t->q->stride[3], t->q->stride[2], E, nq);
    kind->pack_b(dy_along + q0 * vw, dy, t->dy->stride[3], t->dy->stride[2], V, nq);
    for (int64_t q = 0; q < BQ; q++) {
      REAL sum = 0;
      for (int64_t v = 0; v < V && q < nq; v++)
        sum += R_(load1)(at4(t->dy, b, h, q0 + q, v), t->dy->dtype) *
               R_(load1)(at4(t->out, b, h, q0 + q, v), t->out->dtype);
      delta[q0 + q] = sum;
      lse[q0 + q] =
          q < nq ? ((const REAL *)
                        t->lse->data)[b * t->lse->stride[0] + h * t->lse->stride[1] + (q0 + q) * t->lse->stride[2]]
                 : 0;
    }
  }
  for (int64_t k0 = 0; k0 < t->S; k0 += BK) {
    const int64_t n = t->S - k0 < BK ? t->S - k0 : BK;
    const char *key = at4(t->k, b, g, k0, 0), *value = at4(t->v, b, g, k0, 0);
    kind->pack_a(kp, key, t->k->stride[2], t->k->stride[3], n, E);
    kind->pack_a(k_turned, key, t->k->stride[3], t->k->stride[2], E, n);
    kind->pack_a(vp, value, t->v->stride[2], t->v->stride[3], n, V);
    memset(dk, 0, (size_t)(n * ew * size));
    memset(dv, 0, (size_t)(n * vw * size));
    for (int64_t i = 0; i < tiles; i++) {
      const int64_t q0 = i * BQ, nq = t->L - q0 < BQ ? t->L - q0 : BQ, lanes = round_up(nq, nr);
      if (t->causal && k0 > q0 + nq - 1) continue;
      HAIAN_SYM(gemm_packed)(kind, n, lanes, E, kp, q_across + q0 * E, nr, nr * E, s, BQ, 1);
      HAIAN_SYM(gemm_packed)(kind, n, lanes, V, vp, dy_across + q0 * V, nr, nr * V, dp, BQ, 1);
      R_(mask_scores)(t, s, mask, b, h, q0, nq, k0, n);
      for (int64_t k = 0; k < n; k++)
        for (int64_t q = 0; q < lanes; q += LANES) {
          const VEC x = *(VEC *)(s + k * BQ + q), d = *(VEC *)(dp + k * BQ + q) - *(VEC *)(delta + q0 + q);
          const VEC p = R_(exp_any)(x - *(VEC *)(lse + q0 + q));
          const VEC seen = R_(pick)(x == (VEC){0} + MINUS_INF, (VEC){0}, p);
          *(VEC *)(s + k * BQ + q) = seen;
          *(VEC *)(dp + k * BQ + q) = seen * d * (REAL)t->scale;
        }
      plain->pack_a(packed, s, BQ, 1, n, nq);
      HAIAN_SYM(gemm_packed)(plain, n, vw, nq, packed, dy_along + q0 * vw, nr, nr * nq, dv, vw, 0);
      plain->pack_a(packed, dp, BQ, 1, n, nq);
      HAIAN_SYM(gemm_packed)(plain, n, ew, nq, packed, q_along + q0 * ew, nr, nr * nq, dk, ew, 0);
      HAIAN_SYM(gemm_packed)(plain, E, lanes, n, k_turned, dp, BQ, nr, dq + q0 * E, BQ, 0);
    }
    if (dk_sum) {
      for (int64_t k = 0; k < n; k++) {
        for (int64_t e = 0; e < E; e++) dk_sum[(k0 + k) * E + e] += dk[k * ew + e];
        for (int64_t v = 0; v < V; v++) dv_sum[(k0 + k) * V + v] += dv[k * vw + v];
      }
    } else {
      R_(store_rows)(t->dk, dk, ew, b, g, k0, n, E);
      R_(store_rows)(t->dv, dv, vw, b, g, k0, n, V);
    }
  }
  REAL *one = delta;
  for (int64_t q = 0; q < BQ; q++) one[q] = 1;
  for (int64_t i = 0; i < tiles; i++)
    R_(store_tile)(t->dq, dq + i * BQ * E, one, E, b, h, i * BQ, t->L - i * BQ < BQ ? t->L - i * BQ : BQ);
  return true;
}
static void R_(backward_items)(void *ctx, int64_t lo, int64_t hi) {
  attention *t = ctx;
  const int64_t shared = t->H / t->G, sums = t->S * (t->E + t->V);
  for (int64_t i = lo; i < hi; i++) { /* one head of keys with all heads of queries that share it, in their order */
    const int64_t b = i / t->G, g = i % t->G;
    REAL *dk = NULL, *dv = NULL;
    bool good = true;
    if (shared != 1) { /* without heads of queries the gradients of the keys are 0 */
      dk = (REAL *)HAIAN_SYM(workspace)(2, (size_t)(sums > 0 ? sums : 1) * sizeof(REAL));
      good = dk != NULL;
      if (good) memset(dk, 0, (size_t)sums * sizeof(REAL));
      dv = good ? dk + t->S * t->E : NULL;
    }
    for (int64_t r = 0; good && r < shared; r++) good = R_(backward_item)(t, b, g * shared + r, dk, dv);
    if (good && dk) {
      R_(store_rows)(t->dk, dk, t->E, b, g, 0, t->S, t->E);
      R_(store_rows)(t->dv, dv, t->V, b, g, 0, t->S, t->V);
    }
    if (!good) __atomic_store_n(&t->failed, 1, __ATOMIC_RELAXED);
  }
}
#undef LANES
#undef MINUS_INF
#undef EXP
#undef MAX
#undef R_
#undef REAL
#undef VEC
#undef INTS
