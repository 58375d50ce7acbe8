/* Sorting and selecting packs (sort.c): the key of an element above its position, so that no two are equal and every way
 * of sorting them gives the one stable order.  Included for each pack:
 *   PACK   unsigned integer     SHIFT   bits of the position     KEY   unsigned integer of a key     P(name)   its names */

#define KEY_OF(p) ((KEY)((p) >> SHIFT))
#define PLACE_OF(p) ((int64_t)((p) & (((PACK)1 << SHIFT) - 1)))

/* ---- keys from elements and back ---------------------------------------------------------------------------------- */
#define FLOAT_KEY(U, S, bits) \
  ((U)(b & ~sign) > infinite ? (U) ~(U)0 : (U)(b & ~sign) == 0 ? sign : (U)(b ^ ((U)((S)b >> (bits - 1)) | sign)))
#define KEY_LOOP(U, expression)        \
  for (int64_t i = 0; i < n; i++) {    \
    U b = s[i * step];                 \
    out[i] = (U)((expression) ^ flip); \
  }
#define DEFINE_LOAD(U, S, bits)                                                                                   \
  static inline void P(keys_##U)(const sort_kind *k, const char *x, int64_t step, int64_t n, KEY *restrict out) { \
    const U *s = (const U *)x;                                                                                    \
    const U sign = (U)1 << (bits - 1), infinite = (U)k->infinite, flip = k->descending ? (U) ~(U)0 : 0;           \
    const U turn = k->is_signed ? sign : 0;                                                                       \
    if (k->floating && step == 1) {                                                                               \
      enum { step = 1 };                                                                                          \
      KEY_LOOP(U, FLOAT_KEY(U, S, bits))                                                                          \
    } else if (k->floating) KEY_LOOP(U, FLOAT_KEY(U, S, bits))                                                    \
    else KEY_LOOP(U, b ^ turn)                                                                                    \
  }                                                                                                               \
  /* The elements themselves, but +0 for -0 and one NaN for all: P(values) mends those. */                        \
  static inline void P(store_##U)(const sort_kind *k, const PACK *restrict a, int64_t n, char *y, int64_t step) { \
    U *d = (U *)y;                                                                                                \
    const U sign = (U)1 << (bits - 1), flip = k->descending ? (U) ~(U)0 : 0, turn = k->is_signed ? sign : 0;      \
    if (k->floating)                                                                                              \
      for (int64_t i = 0; i < n; i++) {                                                                           \
        U b = (U)KEY_OF(a[i]) ^ flip;                                                                             \
        d[i * step] = b & sign ? b ^ sign : (U)~b;                                                                \
      }                                                                                                           \
    else                                                                                                          \
      for (int64_t i = 0; i < n; i++) d[i * step] = (U)KEY_OF(a[i]) ^ flip ^ turn;                                \
  }
DEFINE_LOAD(uint8_t, int8_t, 8)
DEFINE_LOAD(uint16_t, int16_t, 16)
DEFINE_LOAD(uint32_t, int32_t, 32)
DEFINE_LOAD(uint64_t, int64_t, 64)
#undef DEFINE_LOAD
#undef KEY_LOOP
#undef FLOAT_KEY

/* Keys of positions [first, first + n) of the row at x. */
static void P(keys)(const sort_kind *k, const char *x, int64_t step, int64_t first, int64_t n, KEY *out) {
  x += first * step * k->item;
  if (k->item == 1) P(keys_uint8_t)(k, x, step, n, out);
  else if (k->item == 2) P(keys_uint16_t)(k, x, step, n, out);
  else if (k->item == 4) P(keys_uint32_t)(k, x, step, n, out);
  else P(keys_uint64_t)(k, x, step, n, out);
}

static inline PACK P(pack)(KEY key, int64_t place) { return (PACK)key << SHIFT | (PACK)(uint64_t)place; }

/* Packs of the same. */
static void P(load)(const sort_kind *k, const char *x, int64_t step, int64_t first, int64_t n, PACK *restrict out) {
  KEY key[SORT_CHUNK];
  for (int64_t at = 0; at < n; at += SORT_CHUNK) {
    int64_t m = n - at < SORT_CHUNK ? n - at : SORT_CHUNK;
    P(keys)(k, x, step, first + at, m, key);
    for (int64_t i = 0; i < m; i++) out[at + i] = P(pack)(key[i], first + at + i);
  }
}

static inline void P(copy_one)(const sort_kind *k, char *y, const char *x, int64_t from) {
  memcpy(y, x + from * k->item, (size_t)k->item);
}

/* The first of sorted packs whose key is at least `key`. */
static int64_t P(bound)(const PACK *a, int64_t n, KEY key) {
  int64_t lo = 0;
  while (n > 0) {
    int64_t half = n / 2;
    bool below = KEY_OF(a[lo + half]) < key;
    lo += below ? half + 1 : 0;
    n = below ? n - half - 1 : half;
  }
  return lo;
}

/* y[i] = the element of sorted pack i of the row at x; n of them. */
static void P(values)(const sort_kind *k, const PACK *a, int64_t n, const char *x, int64_t x_step, char *y,
                      int64_t y_step) {
  if (n <= SORT_FEW) {
    for (int64_t i = 0; i < n; i++) P(copy_one)(k, y + i * y_step * k->item, x, PLACE_OF(a[i]) * x_step);
    return;
  }
  if (k->item == 1) P(store_uint8_t)(k, a, n, y, y_step);
  else if (k->item == 2) P(store_uint16_t)(k, a, n, y, y_step);
  else if (k->item == 4) P(store_uint32_t)(k, a, n, y, y_step);
  else P(store_uint64_t)(k, a, n, y, y_step);
  if (!k->floating) return;
  KEY all = (KEY)(k->item == 8 ? ~(uint64_t)0 : ((uint64_t)1 << (8 * k->item)) - 1), zero = all - all / 2;
  KEY mend[2] = {k->descending ? all ^ zero : zero, k->descending ? 0 : all};
  for (int m = 0; m < 2; m++)
    for (int64_t i = P(bound)(a, n, mend[m]); i < n && KEY_OF(a[i]) == mend[m]; i++)
      P(copy_one)(k, y + i * y_step * k->item, x, PLACE_OF(a[i]) * x_step);
}

static void P(places)(const PACK *a, int64_t n, int64_t *w, int64_t step) {
  if (step == 1)
    for (int64_t i = 0; i < n; i++) w[i] = PLACE_OF(a[i]);
  else
    for (int64_t i = 0; i < n; i++) w[i * step] = PLACE_OF(a[i]);
}

/* ---- sorting -------------------------------------------------------------------------------------------------------- */
static inline void P(insertion)(PACK *a, int64_t n) {
  for (int64_t i = 1; i < n; i++) {
    PACK v = a[i];
    int64_t j = i;
    for (; j > 0 && a[j - 1] > v; j--) a[j] = a[j - 1];
    a[j] = v;
  }
}

/* Sorts n packs by their keys of `bits` bits, equal keys staying in order; b: as many.  Returns a or b. */
static PACK *P(sort)(PACK *a, PACK *b, int64_t n, int bits, int64_t *counts) {
  if (n <= SORT_INSERTION) {
    P(insertion)(a, n);
    return a;
  }
  int width = sort_digit(n, bits), passes = (bits + width - 1) / width;
  int64_t size = (int64_t)1 << width;
  const uint64_t mask = (uint64_t)size - 1;
  memset(counts, 0, (size_t)(passes * size) * sizeof *counts);
  if (passes == 4)
    for (int64_t i = 0; i < n; i++) {
      uint32_t key = (uint32_t)KEY_OF(a[i]);
      counts[key & 255]++;
      counts[256 + (key >> 8 & 255)]++;
      counts[512 + (key >> 16 & 255)]++;
      counts[768 + (key >> 24)]++;
    }
  else
    for (int64_t i = 0; i < n; i++) {
      uint64_t key = KEY_OF(a[i]);
      for (int d = 0; d < passes; d++) counts[d * size + (int64_t)(key >> (d * width) & mask)]++;
    }
  for (int d = 0; d < passes; d++) {
    int64_t *count = counts + d * size, sum = 0;
    int shift = SHIFT + d * width;
    if (count[(uint64_t)(a[0] >> shift) & mask] == n) continue; /* one digit only */
    for (int64_t k = 0; k < size; k++) {
      int64_t c = count[k];
      count[k] = sum;
      sum += c;
    }
    for (int64_t i = 0; i < n; i++) b[count[(uint64_t)(a[i] >> shift) & mask]++] = a[i];
    PACK *other = a;
    a = b;
    b = other;
  }
  return a;
}

/* Brings the k smallest of n packs to the front, in any order; spare: n more. */
static void P(select)(PACK *a, PACK *spare, int64_t n, int64_t k, int bits, int64_t *counts) {
  int64_t lo = 0, hi = n - 1;
  for (int turns = 0; hi - lo >= SORT_INSERTION; turns++) {
    if (turns > 64) { /* pivots that keep missing the middle */
      PACK *sorted = P(sort)(a + lo, spare, hi - lo + 1, bits, counts);
      if (sorted != a + lo) memcpy(a + lo, sorted, (size_t)(hi - lo + 1) * sizeof *a);
      return;
    }
    PACK x = a[lo], y = a[lo + (hi - lo) / 2], z = a[hi];
    PACK pivot = x < y ? (y < z ? y : x < z ? z : x) : (x < z ? x : y < z ? z : y);
    int64_t i = lo, j = hi;
    while (i <= j) {
      while (a[i] < pivot) i++;
      while (a[j] > pivot) j--;
      if (i <= j) {
        PACK t = a[i];
        a[i++] = a[j];
        a[j--] = t;
      }
    }
    if (k - 1 <= j) hi = j;
    else if (k - 1 >= i) lo = i;
    else return;
  }
  P(insertion)(a + lo, hi - lo + 1);
}

/* Sorts n packs in any order; b: as many.  Returns a or b. */
static PACK *P(merge_sort)(PACK *a, PACK *b, int64_t n) {
  for (int64_t i = 0; i < n; i += SORT_RUN) P(insertion)(a + i, n - i < SORT_RUN ? n - i : SORT_RUN);
  for (int64_t run = SORT_RUN; run < n; run *= 2) {
    for (int64_t lo = 0; lo < n; lo += 2 * run) {
      int64_t middle = n - lo < run ? n : lo + run, hi = n - lo < 2 * run ? n : lo + 2 * run;
      int64_t i = lo, j = middle, to = lo;
      while (i < middle && j < hi) {
        bool right = a[j] < a[i];
        b[to++] = right ? a[j] : a[i];
        j += right;
        i += !right;
      }
      memcpy(b + to, a + i, (size_t)(middle - i) * sizeof *a);
      memcpy(b + to + (middle - i), a + j, (size_t)(hi - j) * sizeof *a);
    }
    PACK *other = a;
    a = b;
    b = other;
  }
  return a;
}

/* Visits the row of n at x in groups that hold a key below `top`, or all while `full` is false: those are candidates. */
#define EACH_CANDIDATE(...)                                                                              \
  for (int64_t at = 0; at < n; at += SORT_CHUNK) {                                                       \
    int64_t m = n - at < SORT_CHUNK ? n - at : SORT_CHUNK;                                               \
    P(keys)(kind, x, step, at, m, key);                                                                  \
    for (int64_t i = m; i < (m + SORT_GROUP - 1) / SORT_GROUP * SORT_GROUP; i++) key[i] = (KEY) ~(KEY)0; \
    for (int64_t i = 0; i < m; i += SORT_GROUP) {                                                        \
      KEY any = !full;                                                                                   \
      for (int j = 0; j < SORT_GROUP; j++) any |= (KEY)(key[i + j] < top);                               \
      if (!any) continue;                                                                                \
      int64_t end = m - i < SORT_GROUP ? m : i + SORT_GROUP;                                             \
      __VA_ARGS__                                                                                        \
    }                                                                                                    \
    AFTER_CHUNK                                                                                          \
  }

/* The k smallest of a row in order, at a: for k of 16 at most, which are kept sorted. */
static void P(fewest)(const sort_kind *kind, const char *x, int64_t step, int64_t n, int64_t k, PACK *a) {
  KEY key[SORT_CHUNK], top = 0; /* keys from top on are no longer among the smallest, once there are k */
  int64_t held = 0;
  bool full = false;
#define AFTER_CHUNK
  EACH_CANDIDATE(for (int64_t j = i; j < end; j++) {
    if (full && key[j] >= top) continue; /* an equal key that comes later is no better */
    PACK v = P(pack)(key[j], at + j);
    int64_t to = full ? k - 1 : held++;
    for (; to > 0 && a[to - 1] > v; to--) a[to] = a[to - 1];
    a[to] = v;
    full = held == k;
    if (full) top = KEY_OF(a[k - 1]);
  })
#undef AFTER_CHUNK
}

/* The k smallest of the row of n at x in order, somewhere in the scratch; a and b: sort_room(n, k) packs each.  Few of
 * many are kept in a buffer: what is not below the k-th so far is passed by in groups. */
static PACK *P(smallest)(const sort_kind *kind, const char *x, int64_t step, int64_t n, int64_t k, PACK *a, PACK *b,
                         int64_t *counts) {
  int bits = kind->item * 8;
  int64_t held = 0, most = sort_room(n, k);
  if (k <= SORT_KEPT && n > SORT_INSERTION) {
    P(fewest)(kind, x, step, n, k, a);
    return a;
  }
  if (most == n) {
    P(load)(kind, x, step, 0, n, a);
    return P(sort)(a, b, n, bits, counts);
  }
  KEY key[SORT_CHUNK], top = 0;
  bool full = false;
#define AFTER_CHUNK                                                      \
  if (held > most - SORT_CHUNK) {                                        \
    P(select)(a, b, held, k, bits, counts);                              \
    held = k;                                                            \
    PACK worst = 0;                                                      \
    for (int64_t j = 0; j < k; j++) worst = a[j] > worst ? a[j] : worst; \
    top = KEY_OF(worst);                                                 \
    full = true;                                                         \
  }
  EACH_CANDIDATE(for (int64_t j = i; j < end; j++) {
    a[held] = P(pack)(key[j], at + j);
    held += !full | (key[j] < top);
  })
#undef AFTER_CHUNK
#undef EACH_CANDIDATE
  if (held > k) P(select)(a, b, held, k, bits, counts);
  return P(merge_sort)(a, b, k);
}

/* The k-th smallest of the row of n at x alone: the leading digit it has is found by counting, and only elements with
 * that digit are kept.  a, b: n packs each. */
static PACK *P(kth)(const sort_kind *kind, const char *x, int64_t step, int64_t n, int64_t k, PACK *a, PACK *b,
                    int64_t *counts) {
  int bits = kind->item * 8, shift = bits > 11 ? bits - 11 : 0;
  KEY key[SORT_CHUNK];
  int64_t before = 0, held = 0;
  KEY digit = 0;
  memset(counts, 0, sizeof *counts << (bits - shift));
  for (int64_t at = 0; at < n; at += SORT_CHUNK) {
    int64_t m = n - at < SORT_CHUNK ? n - at : SORT_CHUNK;
    P(keys)(kind, x, step, at, m, key);
    for (int64_t i = 0; i < m; i++) counts[key[i] >> shift]++;
  }
  for (; before + counts[digit] < k; digit++) before += counts[digit];
  for (int64_t at = 0; at < n; at += SORT_CHUNK) {
    int64_t m = n - at < SORT_CHUNK ? n - at : SORT_CHUNK;
    P(keys)(kind, x, step, at, m, key);
    for (int64_t i = 0; i < m && held < n; i++) {
      a[held] = P(pack)(key[i], at + i);
      held += key[i] >> shift == digit;
    }
  }
  k -= before;
  P(select)(a, b, held, k, bits, counts);
  for (int64_t i = 1; i < k; i++)
    if (a[i] > a[0]) a[0] = a[i];
  return a;
}

/* ---- rows: part p of `parts` takes its share, with scratch of its own ------------------------------------------------ */
static void P(sort_rows)(void *ctx, int64_t lo, int64_t hi) {
  const sort_job *job = ctx;
  const haian_walk *walk = &job->walk;
  int64_t room = job->one ? job->n : sort_room(job->n, job->k);
  for (int64_t part = lo; part < hi; part++) {
    int64_t row = part * job->rows / job->parts, end = (part + 1) * job->rows / job->parts;
    PACK *a = (PACK *)(job->scratch + part * job->part_bytes), *b = a + room;
    int64_t *counts = (int64_t *)(b + room);
    haian_place at;
    haian_place_seek(&at, walk, walk->ndim, row);
    for (; row < end; row++, haian_place_next(&at, walk, walk->ndim)) {
      const char *x = job->x + at.offset[0] * job->kind.item;
      int64_t n = job->k - job->from;
      const PACK *sorted = job->one ? P(kth)(&job->kind, x, job->x_step, job->n, job->k, a, b, counts)
                                    : P(smallest)(&job->kind, x, job->x_step, job->n, job->k, a, b, counts) + job->from;
      if (job->w) P(places)(sorted, n, job->w + at.offset[2], job->w_step);
      if (job->y) P(values)(&job->kind, sorted, n, x, job->x_step, job->y + at.offset[1] * job->kind.item, job->y_step);
    }
  }
}

/* ---- one long row for all threads: every pass counts the digits of each part, then scatters it ------------------------ */
typedef struct P(sort_long) {
  const sort_job *job;
  const char *x;
  char *y;
  int64_t *w;
  PACK *a, *b;
  int64_t *counts; /* (parts, digits) */
  int shift, width;
} P(sort_long);

#define EACH_PART                                        \
  const P(sort_long) *s = ctx;                           \
  const sort_job *job = s->job;                          \
  for (int64_t part = lo, n = job->n; part < hi; part++) \
    for (int64_t begin = part * n / job->parts, end = (part + 1) * n / job->parts, once = 1; once; once = 0)

static void P(long_load)(void *ctx, int64_t lo, int64_t hi) {
  EACH_PART P(load)(&job->kind, s->x, job->x_step, begin, end - begin, s->a + begin);
}

static void P(long_count)(void *ctx, int64_t lo, int64_t hi) {
  EACH_PART {
    int64_t size = (int64_t)1 << s->width, *count = s->counts + part * size;
    memset(count, 0, (size_t)size * sizeof *count);
    for (int64_t i = begin; i < end; i++) count[(uint64_t)(s->a[i] >> s->shift) & (uint64_t)(size - 1)]++;
  }
}

static void P(long_scatter)(void *ctx, int64_t lo, int64_t hi) {
  EACH_PART {
    int64_t size = (int64_t)1 << s->width, *count = s->counts + part * size;
    for (int64_t i = begin; i < end; i++)
      s->b[count[(uint64_t)(s->a[i] >> s->shift) & (uint64_t)(size - 1)]++] = s->a[i];
  }
}

static void P(long_finish)(void *ctx, int64_t lo, int64_t hi) {
  EACH_PART {
    end = end < job->k ? end : job->k;
    begin = begin > job->from ? begin : job->from;
    if (begin >= end) continue;
    int64_t to = begin - job->from;
    if (s->w) P(places)(s->a + begin, end - begin, s->w + to * job->w_step, job->w_step);
    if (s->y)
      P(values)(&job->kind, s->a + begin, end - begin, s->x, job->x_step, s->y + to * job->y_step * job->kind.item,
                job->y_step);
  }
}

/* One row after the other; job->parts shares of each. */
static void P(sort_long_rows)(const sort_job *job) {
  haian_place at;
  haian_place_seek(&at, &job->walk, job->walk.ndim, 0);
  for (int64_t row = 0; row < job->rows; row++, haian_place_next(&at, &job->walk, job->walk.ndim)) {
    P(sort_long) s = {job, job->x + at.offset[0] * job->kind.item, NULL, NULL, (PACK *)job->scratch, NULL, NULL, 0, 0};
    s.b = s.a + job->n;
    s.counts = (int64_t *)(s.b + job->n);
    if (job->y) s.y = job->y + at.offset[1] * job->kind.item;
    if (job->w) s.w = job->w + at.offset[2];
    haian_parallel_for(job->parts, 1, P(long_load), &s);
    int bits = job->kind.item * 8;
    s.width = sort_digit(job->n, bits);
    int64_t size = (int64_t)1 << s.width;
    for (s.shift = SHIFT; s.shift < SHIFT + bits; s.shift += s.width) {
      haian_parallel_for(job->parts, 1, P(long_count), &s);
      int64_t sum = 0;
      for (int64_t k = 0; k < size; k++)
        for (int64_t part = 0; part < job->parts; part++) {
          int64_t c = s.counts[part * size + k];
          s.counts[part * size + k] = sum;
          sum += c;
        }
      haian_parallel_for(job->parts, 1, P(long_scatter), &s);
      PACK *other = s.a;
      s.a = s.b;
      s.b = other;
    }
    haian_parallel_for(job->parts, 1, P(long_finish), &s);
  }
}

#undef EACH_PART
#undef KEY_OF
#undef PLACE_OF
#undef PACK
#undef SHIFT
#undef KEY
#undef P
