/* Rotations, penalties, decode sums and sampling for one type (each_real.h).  x, y: one run of elements. */

/* ---- rotary embeddings ------------------------------------------------------------------------------------------- */
/* the first 2 * half elements of a head turn; y may be x: a pair is read before it is written */
ROW_INLINE void FN(turn)(const rope_job *job, const REAL *x, const REAL *c, const REAL *s, REAL *y) {
  const int64_t half = job->half;
  if (job->neox) {
    _Pragma("GCC ivdep") for (int64_t i = 0; i < half; i++) {
      const REAL a = x[i], b = x[i + half];
      y[i] = a * c[i] - b * s[i];
      y[i + half] = b * c[i] + a * s[i];
    }
  } else {
    _Pragma("GCC ivdep") for (int64_t i = 0; i < half; i++) {
      const REAL a = x[2 * i], b = x[2 * i + 1];
      y[2 * i] = a * c[i] - b * s[i];
      y[2 * i + 1] = b * c[i] + a * s[i];
    }
  }
  for (int64_t i = 2 * half; i < job->width; i++) y[i] = x[i];
}

static void FN(rope_tokens)(void *ctx, int64_t lo, int64_t hi) {
  rope_job *job = ctx;
  const int64_t half = job->half, width = job->width, item = row_item(job->table->dtype);
  const int64_t room = width > ROW_CHUNK ? width : ROW_CHUNK; /* values converted together */
  REAL *space = HAIAN_SYM(workspace)(1, (size_t)(2 * half + 2 * room) * sizeof(REAL));
  if (!space) {
    __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *c = space, *s = c + half, *from = s + half, *to = from + room;
  for (int64_t t = lo; t < hi; t++) {
    for (int a = 0; a < job->sections; a++) { /* cosines and sines of the frequencies that this coordinate turns */
      const int64_t first = job->bound[a], n = job->bound[a + 1] - first, step = job->table->stride[1];
      const char *row = (const char *)job->table->data + position_of(job, a, t) * job->table->stride[0] * item;
      if (n <= 0) continue;
      FN(load)(job->table->dtype, row + first * step * item, step, n, c + first);
      FN(load)(job->table->dtype, row + (half + first) * step * item, step, n, s + first);
    }
    if (job->backward)
      for (int64_t i = 0; i < half; i++) s[i] = -s[i];
    for (int k = 0; k < 2; k++) {
      const rope_side *side = &job->side[k];
      const int64_t bytes = row_item(side->dtype);
      const int64_t outer = job->inner ? t / job->inner : t, inner = job->inner ? t % job->inner : 0;
      const char *x = side->x + (outer * side->x_token[0] + inner * side->x_token[1]) * bytes;
      char *y = side->y + (outer * side->y_token[0] + inner * side->y_token[1]) * bytes;
      const bool plain = side->dtype == REAL_DTYPE && side->x_step == 1 && side->y_step == 1;
      const bool direct = plain && !(job->stream && side->x != side->y);
      if (direct) {
        for (int64_t h = 0; h < side->heads; h++)
          FN(turn)(job, (const REAL *)x + h * side->x_head, c, s, (REAL *)y + h * side->y_head);
        continue;
      }
      /* heads side by side are converted together: 16 of 128 elements */
      const bool packed = side->x_step == 1 && side->y_step == 1 && side->x_head == width && side->y_head == width;
      const int64_t together = packed && width <= ROW_CHUNK ? ROW_CHUNK / width : 1;
      for (int64_t h = 0; h < side->heads; h += together) {
        const int64_t count = side->heads - h < together ? side->heads - h : together, n = count * width;
        const char *here = x + h * side->x_head * bytes;
        char *there = y + h * side->y_head * bytes;
        if (!plain) FN(load)(side->dtype, here, side->x_step, n, from);
        for (int64_t i = 0; i < count; i++)
          FN(turn)(job, (plain ? (const REAL *)here : from) + i * width, c, s, to + i * width);
        for (int64_t i = 0; i < n; i += ROW_CHUNK)
          FN(store)(side->dtype, there + i * side->y_step * bytes, side->y_step, n - i < ROW_CHUNK ? n - i : ROW_CHUNK,
                    to + i, job->stream);
      }
    }
  }
  if (job->stream) haian_stream_fence();
}

/* ---- penalties --------------------------------------------------------------------------------------------------- */
/* units: runs of ROW_CHUNK logits of a row */
static void FN(repetition_runs)(void *ctx, int64_t lo, int64_t hi) {
  const penalty_job *job = ctx;
  REAL from[ROW_CHUNK], to[ROW_CHUNK];
  uint8_t seen[ROW_CHUNK];
  for (int64_t u = lo; u < hi; u++) {
    const int64_t b = u / job->runs, at = u % job->runs * ROW_CHUNK;
    const int64_t n = job->logits->shape[1] - at < ROW_CHUNK ? job->logits->shape[1] - at : ROW_CHUNK;
    const REAL p = FN(load_one)(job->repetition->dtype, at1(job->repetition, b)), *x;
    const uint8_t *m[2];
    int64_t step[2];
    for (int k = 0; k < 2; k++) {
      m[k] = (const uint8_t *)job->mask[k]->data + b * job->mask[k]->stride[0] + at * job->mask[k]->stride[1];
      step[k] = job->mask[k]->stride[1];
    }
    if (step[0] == 1 && step[1] == 1)
      for (int64_t i = 0; i < n; i++) seen[i] = m[0][i] | m[1][i];
    else
      for (int64_t i = 0; i < n; i++) seen[i] = m[0][i * step[0]] | m[1][i * step[1]];
    const int64_t xs = job->logits->stride[1], ys = job->out->stride[1];
    x = (const REAL *)at2(job->logits, b, at);
    if (xs != 1 || job->logits->dtype != REAL_DTYPE) {
      FN(load)(job->logits->dtype, (const char *)x, xs, n, from);
      x = from;
    }
    for (int64_t i = 0; i < n; i++) {
      const REAL less = x[i] > 0 ? x[i] / p : x[i] * p;
      to[i] = seen[i] ? less : x[i];
    }
    FN(store)(job->out->dtype, at2(job->out, b, at), ys, n, to, false);
  }
}

/* units: sequences; out holds the logits */
static void FN(penalty_rows)(void *ctx, int64_t lo, int64_t hi) {
  const penalty_job *job = ctx;
  for (int64_t b = lo; b < hi; b++) {
    const REAL presence = FN(load_one)(job->presence->dtype, at1(job->presence, b));
    const REAL frequency = FN(load_one)(job->frequency->dtype, at1(job->frequency, b));
    const REAL repetition = FN(load_one)(job->repetition->dtype, at1(job->repetition, b));
    const int64_t end = index1(job->ends, b + 1);
    for (int64_t i = index1(job->ends, b); i < end; i++) {
      const int64_t id = index1(job->ids, i);
      const REAL x = FN(load_one)(job->logits->dtype, at2(job->logits, b, id));
      const REAL less = x > 0 ? x / repetition : x * repetition;
      FN(store_one)(job->out->dtype, at2(job->out, b, id), less - (REAL)index1(job->counts, i) * frequency - presence);
    }
  }
}

/* ---- softmax over a sequence's columns, times the values of its slots ---------------------------------------------- */
/* units: (sequence, head of v) */
static void FN(reducev_items)(void *ctx, int64_t lo, int64_t hi) {
  reducev_job *job = ctx;
  const haian_tensor *v = job->v;
  const int64_t shared = job->shared, width = v->shape[2], item = row_item(v->dtype);
  for (int64_t u = lo; u < hi; u++) {
    const int64_t b = u / v->shape[1], g = u % v->shape[1], n = index1(job->length, b), start = index1(job->start, b);
    const int64_t request = index1(job->request, b);
    REAL *p = HAIAN_SYM(workspace)(1, (size_t)(shared * n + (2 * shared + 4) * width + 1) * sizeof(REAL));
    if (!p) {
      __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
      return;
    }
    REAL *part = p + shared * n, *sum = part + shared * width, *row = sum + shared * width;
    for (int64_t i = 0; i < shared * width; i++) part[i] = sum[i] = 0;
    for (int64_t r = 0; r < shared; r++) {
      REAL *q = p + r * n;
      const int64_t step = job->logics->stride[1];
      FN(load)(job->logics->dtype, at2(job->logics, g * shared + r, start), step, n, q);
      if (n == 0) continue;
      const REAL top = FN(largest)(q, n),
                 shift = top == -(REAL)INFINITY ? (REAL)NAN : top; /* all -inf: NaN, as 0 / 0 */
      for (int64_t i = 0; i < n; i++) q[i] = REAL_EXP(q[i] - shift);
      const REAL total = (REAL)FN(sum)(q, n);
      for (int64_t i = 0; i < n; i++) q[i] /= total;
    }
    for (int64_t j0 = 0; j0 < n; j0 += 128) { /* partial sums of 128 terms */
      const int64_t j1 = j0 + 128 < n ? j0 + 128 : n;
      for (int64_t j = j0; j < j1; j += 4) {
        const int64_t count = j1 - j < 4 ? j1 - j : 4;
        for (int64_t k = 0; k < 4; k++) {
          if (k < count)
            FN(load)(
                v->dtype,
                (const char *)v->data + (index2(job->table, request, j + k) * v->stride[0] + g * v->stride[1]) * item,
                v->stride[2], width, row + k * width);
          else
            for (int64_t i = 0; i < width; i++) row[k * width + i] = 0;
        }
        const REAL *restrict a = row, *restrict d = row + width, *restrict e = row + 2 * width,
                             *restrict f = row + 3 * width;
        for (int64_t r = 0; r < shared; r++) {
          REAL *restrict to = part + r * width, w[4] = {0};
          for (int64_t k = 0; k < count; k++) w[k] = p[r * n + j + k];
          for (int64_t i = 0; i < width; i++) to[i] += (w[0] * a[i] + w[1] * d[i]) + (w[2] * e[i] + w[3] * f[i]);
        }
      }
      for (int64_t i = 0; i < shared * width; i++) sum[i] += part[i], part[i] = 0;
    }
    for (int64_t r = 0; r < shared; r++) {
      char *y = (char *)job->out->data +
                (b * job->out->stride[0] + (g * shared + r) * job->out->stride[1]) * row_item(job->out->dtype);
      for (int64_t i = 0; i < width; i += ROW_CHUNK)
        FN(store)(job->out->dtype, y + i * job->out->stride[2] * row_item(job->out->dtype), job->out->stride[2],
                  width - i < ROW_CHUNK ? width - i : ROW_CHUNK, sum + r * width + i, false);
    }
  }
}

/* ---- sampling ---------------------------------------------------------------------------------------------------- */
#if REAL_IS_FLOAT
#define KEY uint32_t
#else
#define KEY uint64_t
#endif
/* as an unsigned number in the order of the values; -0 is 0 */
ROW_INLINE KEY FN(key)(REAL x) {
  REAL_INT bits;
  x += 0;
  memcpy(&bits, &x, sizeof bits);
  return (KEY)bits ^ ((KEY)(bits >> (8 * sizeof bits - 1)) | (KEY)1 << (8 * sizeof bits - 1));
}

/* The smallest value (as a key) whose larger ones weigh less than `target`, the largest at least: by 11 bits of the keys at a
 * time, from the top.  weight: NULL counts, and a value without weight is not there; key, place: room for n. */
static KEY FN(border)(const REAL *x, const REAL *weight, int64_t n, double target, KEY *key, int32_t *place) {
  enum { BITS = 11, ALL = 8 * sizeof(KEY) };
  double above = 0, mass[1 << BITS];
  int32_t count[1 << BITS];
  int64_t left = 0;
  for (int64_t i = 0; i < n; i++)
    if (!weight || weight[i] > 0) key[left] = FN(key)(x[i]), place[left++] = (int32_t)i;
  KEY found = 0;
  for (int shift = ALL; shift > 0 && left > 0;) {
    const int bits = shift < BITS ? shift : BITS, buckets = 1 << bits;
    shift -= bits;
    for (int b = 0; b < buckets; b++) mass[b] = 0, count[b] = 0;
    for (int64_t i = 0; i < left; i++) {
      const int b = (int)(key[i] >> shift & (KEY)(buckets - 1));
      count[b]++;
      mass[b] += weight ? (double)weight[place[i]] : 1.0;
    }
    int chosen = -1; /* the lowest bucket with a value to keep; `above` is what weighs over it */
    for (int b = buckets - 1; b >= 0; b--) {
      if (!count[b]) continue;
      if (chosen >= 0) {
        if (!(above + mass[chosen] < target)) break;
        above += mass[chosen];
      }
      chosen = b;
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < left; i++)
      if ((int)(key[i] >> shift & (KEY)(buckets - 1)) == chosen) key[kept] = key[i], place[kept++] = place[i];
    left = kept;
    found = key[0];
  }
  return found;
}

static void FN(sample_rows)(void *ctx, int64_t lo, int64_t hi) {
  sample_job *job = ctx;
  const int64_t n = job->logits->shape[1], item = row_item(job->logits->dtype);
  char *space = HAIAN_SYM(workspace)(1, (size_t)n * (2 * sizeof(REAL) + sizeof(KEY) + sizeof(int32_t)) + 64);
  if (!space) {
    __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *x = (REAL *)space, *w = x + n;
  KEY *key = (KEY *)(w + n);
  int32_t *place = (int32_t *)(key + n);
  for (int64_t b = lo; b < hi; b++) {
    int64_t *to = (int64_t *)job->out->data + b * job->out->stride[0];
    FN(load)(job->logits->dtype, (const char *)job->logits->data + b * job->logits->stride[0] * item,
             job->logits->stride[1], n, x);
    const REAL top = FN(largest)(x, n);
    *to = -1;
    if (!isfinite(top)) continue;
    for (int64_t i = 0; i < n; i++) w[i] = REAL_EXP(x[i] - top);
    const int64_t k = job->k ? index1(job->k, b) : 0;
    if (k > 0 && k < n) {
      const KEY least = FN(border)(x, NULL, n, (double)k, key, place);
      for (int64_t i = 0; i < n; i++) w[i] = FN(key)(x[i]) >= least ? w[i] : 0;
    }
    double total = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) total += (double)w[i];
    const double p = job->p ? (double)FN(load_one)(job->p->dtype, at1(job->p, b)) : 1.0;
    if (p < 1) {
      const KEY least = FN(border)(x, w, n, p * total, key, place);
      total = 0;
      for (int64_t i = 0; i < n; i++) {
        w[i] = FN(key)(x[i]) >= least ? w[i] : 0;
        total += (double)w[i];
      }
    }
    const double target = philox_uniform(job->seed, job->offset, (uint64_t)b) * total;
    for (int64_t i = 0; i < n; i++) {
      sum += (double)w[i];
      if (w[i] > 0) *to = i; /* the last one with any probability, should rounding pass the others by */
      if (sum > target) break;
    }
  }
}
#undef KEY
