/* Attention over packed sequences and over caches in blocks, for one type (each_real.h).
 * Packed: scores are kept transposed, [keys][queries], so that the softmax runs down the keys with queries as lanes and the
 * probabilities are the B panel of the second product.  Caches: rows of keys are gathered, then few rows of queries read them. */
#if REAL_IS_FLOAT
#define REAL_TANH haian_tanhf
#else
#define REAL_TANH haian_tanh
#endif
#define MINUS_INF ((REAL) - INFINITY)

ROW_INLINE char *FN(piece)(char **at, int64_t count) { /* the next `count` values of a workspace */
  char *p = *at;
  *at += (count * (int64_t)sizeof(REAL) + ROW_VBYTES + 63) / 64 * 64;
  return p;
}

/* ---- packed sequences -------------------------------------------------------------------------------------------- */
/* scores of keys k0 .. k0 + n, queries q0 .. q0 + lanes: scaled, capped, biased, -inf where a key is not to be seen */
static void FN(finish_scores)(const varlen_job *job, REAL *s, int64_t n, int64_t lanes, int64_t k0, int64_t q0,
                              int64_t off, REAL slope, bool masked) {
  const REAL scale = (REAL)job->scale, cap = (REAL)job->softcap;
  for (int64_t k = 0; k < n; k++) {
    REAL *x = s + k * BQ;
    const int32_t first = (int32_t)(k0 + k - q0 - off); /* key minus position of query q0 */
    if (cap > 0)
      for (int64_t q = 0; q < lanes; q++) x[q] = cap * REAL_TANH(x[q] * scale / cap);
    else
      for (int64_t q = 0; q < lanes; q++) x[q] *= scale;
    if (slope != 0)
      for (int32_t q = 0; q < lanes; q++) x[q] -= slope * (REAL)(first < q ? q - first : first - q);
    if (masked) {
      const int32_t left = job->left, right = job->right;
      for (int32_t q = 0; q < lanes; q++) x[q] = (first - q > right) | (q - first > left) ? MINUS_INF : x[q];
    }
  }
}

/* online softmax down the keys: top and total of each query, P in s, the factor of what was summed before */
static void FN(softmax_down)(REAL *s, int64_t n, int64_t lanes, REAL *restrict top, REAL *restrict total,
                             REAL *restrict factor) {
  for (int64_t q = 0; q < lanes; q += LANES) {
    FN(vec) high = VEC(top + q), sum[4] = {{0}}, zero = {0};
    for (int64_t k = 0; k < n; k++) {
      const FN(vec) x = VEC(s + k * BQ + q);
      high = REAL_VMAX(x, high); /* NaN is passed over here and comes back in P */
    }
    const FN(mask) none = high == zero + MINUS_INF; /* nothing seen yet: exp(-inf - 0) */
    const FN(vec) base = (FN(vec))((FN(mask))high & ~none);
    REAL shift[LANES], shrink[LANES];
    memcpy(shift, &base, sizeof shift);
    for (int64_t i = 0; i < LANES; i++) shrink[i] = REAL_EXP(top[q + i] - shift[i]);
    for (int64_t k = 0; k < n; k++) {
      REAL *x = s + k * BQ + q;
      for (int64_t i = 0; i < LANES; i++) x[i] = REAL_EXP(x[i] - shift[i]);
      sum[k & 3] += VEC(x);
    }
    const FN(vec) all = (sum[0] + sum[1]) + (sum[2] + sum[3]), by = VEC(shrink);
    const FN(vec) grown = VEC(total + q) * by + all;
    memcpy(total + q, &grown, sizeof grown);
    memcpy(top + q, &high, sizeof high);
    memcpy(factor + q, &by, sizeof by);
  }
}

/* tiles of queries first .. first + count of key head g of sequence b; they share packed keys and values */
static bool FN(varlen_item)(const varlen_job *job, int64_t b, int64_t g, int64_t first, int64_t count) {
  const haian_kind *kind = job->kind;
  const int64_t nr = kind->nr, E = job->E, V = job->V, item = row_item(job->q->dtype);
  const int64_t q_from = index1(job->ends_q, b), k_from = index1(job->ends_k, b);
  const int64_t L = index1(job->ends_q, b + 1) - q_from, S = index1(job->ends_k, b + 1) - k_from, off = S - L;
  const int64_t per_head = (L + BQ - 1) / BQ, q_tile = BQ * E, o_tile = V * BQ;
  const int64_t values = count * (q_tile + o_tile + 2 * BQ) + BQ + BK * (E + V + BQ);
  char *w = HAIAN_SYM(workspace)(1, (size_t)(values * (int64_t)sizeof(REAL) + 9 * (ROW_VBYTES + 128)));
  if (!w) return false;
  REAL *qp = (REAL *)FN(piece)(&w, count * q_tile), *o = (REAL *)FN(piece)(&w, count * o_tile);
  REAL *top = (REAL *)FN(piece)(&w, count * BQ), *total = (REAL *)FN(piece)(&w, count * BQ);
  REAL *factor = (REAL *)FN(piece)(&w, BQ), *kp = (REAL *)FN(piece)(&w, BK * E), *vp = (REAL *)FN(piece)(&w, BK * V);
  REAL *s = (REAL *)FN(piece)(&w, BK * BQ);
  int64_t lowest = S, highest = -1; /* keys that any of the queries sees */
  for (int64_t i = 0; i < count; i++) {
    const int64_t h = g * job->shared + (first + i) / per_head, q0 = (first + i) % per_head * BQ,
                  nq = L - q0 < BQ ? L - q0 : BQ;
    kind->pack_b(qp + i * q_tile,
                 (const char *)job->q->data + ((q_from + q0) * job->q->stride[0] + h * job->q->stride[1]) * item,
                 job->q->stride[0], job->q->stride[2], nq, E);
    for (int64_t q = 0; q < BQ; q++) top[i * BQ + q] = MINUS_INF, total[i * BQ + q] = 0;
    if (q0 + off - job->left < lowest) lowest = q0 + off - job->left;
    if (q0 + nq - 1 + off + job->right > highest) highest = q0 + nq - 1 + off + job->right;
  }
  for (int64_t i = 0; i < count * o_tile; i++) o[i] = 0;
  lowest = lowest < 0 ? 0 : lowest / BK * BK; /* tiles lie where they lie without a window: one order of sums */
  highest = highest + 1 < S ? highest + 1 : S;
  for (int64_t k0 = lowest; k0 < highest; k0 += BK) {
    const int64_t n = S - k0 < BK ? S - k0 : BK;
    const char *k = (const char *)job->k->data + ((k_from + k0) * job->k->stride[0] + g * job->k->stride[1]) * item;
    const char *v = (const char *)job->v->data + ((k_from + k0) * job->v->stride[0] + g * job->v->stride[1]) * item;
    kind->pack_a(kp, k, job->k->stride[0], job->k->stride[2], n, E);
    kind->pack_a(vp, v, job->v->stride[2], job->v->stride[0], V, n);
    for (int64_t i = 0; i < count; i++) {
      const int64_t h = g * job->shared + (first + i) / per_head, q0 = (first + i) % per_head * BQ,
                    nq = L - q0 < BQ ? L - q0 : BQ;
      const int64_t lanes = (nq + nr - 1) / nr * nr, low = q0 + off, high = low + nq - 1; /* positions of the queries */
      if (k0 > high + job->right || k0 + n - 1 < low - job->left) continue;
      const bool masked = k0 + n - 1 > low + job->right || k0 < high - job->left;
      REAL slope = 0;
      if (job->slopes)
        slope = FN(load_one)(job->slopes->dtype,
                             (const char *)job->slopes->data +
                                 (job->slopes->ndim == 2 ? b * job->slopes->stride[0] + h * job->slopes->stride[1]
                                                         : h * job->slopes->stride[0]) *
                                     row_item(job->slopes->dtype));
      HAIAN_SYM(gemm_packed)(kind, n, lanes, E, kp, qp + i * q_tile, nr, nr * E, s, BQ, 1);
      if (E == 0)
        for (int64_t j = 0; j < n * BQ; j++) s[j] = 0;
      const int64_t wide = (nq + LANES - 1) / LANES * LANES;
      FN(finish_scores)(job, s, n, wide, k0, q0, off, slope, masked);
      FN(softmax_down)(s, n, wide, top + i * BQ, total + i * BQ, factor);
      REAL *oi = o + i * o_tile;
      for (int64_t c = 0; c < V; c++)
        for (int64_t q = 0; q < wide; q++) oi[c * BQ + q] *= factor[q];
      HAIAN_SYM(gemm_packed)(kind, V, lanes, n, vp, s, BQ, nr, oi, BQ, 0);
    }
  }
  for (int64_t i = 0; i < count; i++) {
    const int64_t h = g * job->shared + (first + i) / per_head, q0 = (first + i) % per_head * BQ,
                  nq = L - q0 < BQ ? L - q0 : BQ;
    for (int64_t q = 0; q < nq; q++) {
      const REAL sum = total[i * BQ + q], by = sum == 0 ? 0 : 1 / sum;
      char *y = (char *)job->out->data + ((q_from + q0 + q) * job->out->stride[0] + h * job->out->stride[1]) * item;
      for (int64_t c0 = 0; c0 < V; c0 += BK) {
        const int64_t n = V - c0 < BK ? V - c0 : BK;
        REAL part[BK];
        for (int64_t c = 0; c < n; c++) part[c] = sum == 0 ? 0 : o[i * o_tile + (c0 + c) * BQ + q] * by;
        FN(store)(job->out->dtype, y + c0 * job->out->stride[2] * item, job->out->stride[2], n, part, false);
      }
    }
  }
  return true;
}

static void FN(varlen_items)(void *ctx, int64_t lo, int64_t hi) {
  varlen_job *job = ctx;
  for (int64_t u = lo; u < hi; u++) {
    int64_t b = 0, high = job->B - 1; /* the last sequence whose items begin at u or before */
    while (b < high) {
      const int64_t middle = (b + high + 1) / 2;
      if (job->begin[middle] <= u) b = middle;
      else high = middle - 1;
    }
    const int64_t L = index1(job->ends_q, b + 1) - index1(job->ends_q, b), blocks = job->shared * ((L + BQ - 1) / BQ);
    const int64_t items = (blocks + job->per - 1) / job->per, at = u - job->begin[b], first = at % items * job->per;
    const int64_t count = blocks - first < job->per ? blocks - first : job->per;
    if (!FN(varlen_item)(job, b, at / items, first, count)) __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
  }
}

/* ---- caches in blocks -------------------------------------------------------------------------------------------- */
/* rows of keys first .. first + n of sequence b and head g, packed [n][width] in the cache's dtype */
static void FN(gather)(const cache_job *job, const haian_tensor *cache, int64_t b, int64_t g, int64_t first, int64_t n,
                       int64_t width, char *to) {
  const int64_t item = row_item(cache->dtype), last = cache->ndim - 1,
                head = cache->ndim == 4 ? g * cache->stride[2] : 0;
  for (int64_t j = 0; j < n; j++, to += width * item) {
    const int64_t at = first + j, block = index2(job->table, b, at / job->positions);
    const char *from =
        (const char *)cache->data + (block * cache->stride[0] + at % job->positions * cache->stride[1] + head) * item;
    if (cache->stride[last] == 1) memcpy(to, from, (size_t)(width * item));
    else
      for (int64_t i = 0; i < width; i++) memcpy(to + i * item, from + i * cache->stride[last] * item, (size_t)item);
  }
}

/* one split of the keys: its largest score, sum and weighted values of every query head of g into `partial` */
static bool FN(cache_item)(const cache_job *job, int64_t b, int64_t g, int64_t split) {
  const int64_t rows = job->shared, E = job->E + job->E2, V = job->V, item = row_item(job->k->dtype);
  const int64_t length = index1(job->lengths, b),
                begin = job->window > 0 && length > job->window ? length - job->window : 0;
  const int64_t k0 = split * SPLIT > begin ? split * SPLIT : begin;
  const int64_t end = (split + 1) * SPLIT < length ? (split + 1) * SPLIT : length, n = end > k0 ? end - k0 : 0;
  REAL *to = (REAL *)job->partial + ((b * job->G + g) * job->splits + split) * rows * (V + 2);
  if (n == 0) {
    for (int64_t r = 0; r < rows; r++) {
      to[r * (V + 2)] = MINUS_INF;
      for (int64_t i = 1; i < V + 2; i++) to[r * (V + 2) + i] = 0;
    }
    return true;
  }
  char *w = HAIAN_SYM(workspace)(
      1, (size_t)((rows * (E + n + V) * (int64_t)sizeof(REAL)) + n * (E + V) * item + 5 * (ROW_VBYTES + 128)));
  if (!w) return false;
  REAL *q = (REAL *)FN(piece)(&w, rows * E), *s = (REAL *)FN(piece)(&w, rows * n), *o = (REAL *)FN(piece)(&w, rows * V);
  char *keys = w, *values = keys + (n * E * item + 127) / 64 * 64;
  for (int64_t r = 0; r < rows; r++) {
    const int64_t h = g * rows + r;
    FN(load)(job->q->dtype, (const char *)job->q->data + (b * job->q->stride[0] + h * job->q->stride[1]) * item,
             job->q->stride[2], job->E, q + r * E);
    if (job->E2)
      FN(load)(job->q->dtype, (const char *)job->q2->data + (b * job->q2->stride[0] + h * job->q2->stride[1]) * item,
               job->q2->stride[2], job->E2, q + r * E + job->E);
  }
  FN(gather)(job, job->k, b, g, k0, n, E, keys);
  if (job->v) FN(gather)(job, job->v, b, g, k0, n, V, values);
  HAIAN_SYM(gemm_skinny)(job->k->dtype, false)(rows, n, E, q, keys, E, s, n);
  for (int64_t r = 0; r < rows; r++) {
    REAL *x = s + r * n;
    const REAL scale = (REAL)job->scale, cap = (REAL)job->softcap;
    if (cap > 0)
      for (int64_t k = 0; k < n; k++) x[k] = cap * REAL_TANH(x[k] * scale / cap);
    else
      for (int64_t k = 0; k < n; k++) x[k] *= scale;
    if (job->slopes) {
      const int64_t h = g * rows + r;
      const REAL slope = FN(load_one)(
          job->slopes->dtype, (const char *)job->slopes->data +
                                  (job->slopes->ndim == 2 ? b * job->slopes->stride[0] + h * job->slopes->stride[1]
                                                          : h * job->slopes->stride[0]) *
                                      row_item(job->slopes->dtype));
      for (int64_t k = 0; k < n; k++) x[k] -= slope * (REAL)(int32_t)(length - 1 - k0 - k);
    }
    const REAL top = FN(largest)(x, n), base = top == MINUS_INF ? 0 : top;
    for (int64_t k = 0; k < n; k++) x[k] = REAL_EXP(x[k] - base);
    to[r * (V + 2)] = top;
    to[r * (V + 2) + 1] = (REAL)FN(sum)(x, n);
  }
  HAIAN_SYM(gemm_skinny)(job->k->dtype, true)(rows, V, n, s, job->v ? values : keys, job->v ? V : E, o, V);
  for (int64_t r = 0; r < rows; r++) memcpy(to + r * (V + 2) + 2, o + r * V, (size_t)V * sizeof(REAL));
  return true;
}

static void FN(cache_items)(void *ctx, int64_t lo, int64_t hi) {
  cache_job *job = ctx;
  for (int64_t u = lo; u < hi; u++) {
    const int64_t bg = u / job->splits;
    if (!FN(cache_item)(job, bg / job->G, bg % job->G, u % job->splits))
      __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
  }
}

/* units: (sequence, key head); the first split's row becomes the sum of all */
static void FN(join_caches)(void *ctx, int64_t lo, int64_t hi) {
  const cache_job *job = ctx;
  const int64_t rows = job->shared, V = job->V, step = rows * (V + 2), item = row_item(job->out->dtype);
  for (int64_t u = lo; u < hi; u++)
    for (int64_t r = 0; r < rows; r++) {
      REAL *part = (REAL *)job->partial + u * job->splits * step + r * (V + 2), top = MINUS_INF, sum = 0;
      for (int64_t p = 0; p < job->splits; p++) top = FN(pick_largest)(top, part[p * step]);
      const REAL base = top == MINUS_INF ? 0 : top;
      for (int64_t p = 0; p < job->splits; p++) {
        const REAL f = REAL_EXP(part[p * step] - base);
        const REAL *from = part + p * step;
        sum += from[1] * f;
        for (int64_t i = 2; i < V + 2; i++) part[i] = (p ? part[i] : 0) + from[i] * f;
      }
      const REAL by = sum == 0 ? 0 : 1 / sum;
      for (int64_t i = 2; i < V + 2; i++) part[i] = sum == 0 ? 0 : part[i] * by;
      char *y = (char *)job->out->data +
                (u / job->G * job->out->stride[0] + (u % job->G * rows + r) * job->out->stride[1]) * item;
      for (int64_t i = 0; i < V; i += ROW_CHUNK)
        FN(store)(job->out->dtype, y + i * job->out->stride[2] * item, job->out->stride[2],
                  V - i < ROW_CHUNK ? V - i : ROW_CHUNK, part + 2 + i, false);
    }
}
#undef REAL_TANH
#undef MINUS_INF
