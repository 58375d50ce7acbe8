/* Reductions for one type (each_real.h): folding a stretch of one row, and columns side by side.
 * A sum, its mean and the moments of a variance are kept in WIDE; the bits depend on shape and strides, never on how
 * many threads took part: stretches are cut by position alone and merged in order. */

#if REAL_IS_FLOAT
#define REAL_ABS haian_absf
#define REAL_POW haian_powf
#else
#define REAL_ABS haian_abs
#define REAL_POW pow
#endif

typedef struct FN(partial) {
  WIDE
      sum; /* SUM, MEAN, PROD, COUNT, SQUARES; VAR: the mean of `count` values; EXPONENTIALS: of the distances from value */
  WIDE squares; /* VAR: the sum of squared distances from it */
  int64_t count;
  REAL value; /* AMAX, AMIN; ANY, ALL: 1 when a value decides the result; RANGE, EXPONENTIALS: the largest */
  REAL low;   /* RANGE: the smallest */
} FN(partial);

/* n values as the operation takes them, into buf (which may be p). */
ROW_INLINE const REAL *FN(mapped)(const reduce_job *job, const REAL *p, int64_t n, REAL *buf) {
  switch (job->map) {
    case AS_IS:
      return p;
    case NOT_ZERO:
      _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) buf[i] = p[i] != 0;
      return buf;
#if !REAL_IS_INT
    case SIZES:
      _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) buf[i] = REAL_ABS(p[i]);
      return buf;
    default:
      _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) buf[i] = REAL_POW(REAL_ABS(p[i]), (REAL)job->power);
      return buf;
#else
    default:
      return p;
#endif
  }
}

/* Sum of squares (0: product) of n <= ROW_CHUNK values, sixteen at a time in WIDE. */
static __attribute__((noinline)) WIDE FN(wide_fold)(const REAL *p, int64_t n, bool product) {
  WIDE a[16];
  for (int k = 0; k < 16; k++) a[k] = product;
  int64_t i = 0;
  if (product) {
    for (; i + 16 <= n; i += 16)
      for (int k = 0; k < 16; k++) a[k] *= (WIDE)p[i + k];
    for (; i < n; i++) a[0] *= (WIDE)p[i];
  } else {
    for (; i + 16 <= n; i += 16)
      for (int k = 0; k < 16; k++) a[k] += (WIDE)p[i + k] * (WIDE)p[i + k];
    for (; i < n; i++) a[0] += (WIDE)p[i] * (WIDE)p[i];
  }
  for (int w = 8; w; w /= 2)
    for (int k = 0; k < w; k++) a[k] = product ? a[k] * a[k + w] : a[k] + a[k + w];
  return a[0];
}

/* Values that decide any (not zero; NaN counts) and all (zero) among n. */
ROW_INLINE bool FN(exists)(const REAL *p, int64_t n, bool zero) {
  int64_t found = 0;
  if (zero) {
    for (int64_t i = 0; i < n; i++) found += p[i] == 0;
  } else {
    for (int64_t i = 0; i < n; i++) found += p[i] != 0;
  }
  return found != 0;
}

#if REAL_IS_INT
#define SMALL_SQUARES 0
#elif REAL_IS_FLOAT
#define SMALL_SQUARES 0x1p-90f /* below it the squares of a chunk may have lost digits to underflow */
#else
#define SMALL_SQUARES 0
#endif
/* Sum of the squares of n <= REDUCE_CHUNK values: in REAL, and again in WIDE where that may not be enough. */
ROW_INLINE WIDE FN(squares)(const REAL *p, int64_t n) {
#if REAL_IS_INT
  return FN(wide_fold)(p, n, false);
#else
  WIDE sum = FN(dot)(p, p, n); /* falls back on WIDE itself where it overflows */
  return sum < SMALL_SQUARES ? FN(wide_fold)(p, n, false) : sum;
#endif
}
#undef SMALL_SQUARES

#if !REAL_IS_INT
/* A function of its own: its buffer would weigh on every other reduction's stack. */
static __attribute__((noinline)) void FN(exponentials)(const REAL *p, int64_t n, FN(partial) * chunk) {
  REAL e[REDUCE_CHUNK] __attribute__((aligned(64)));
  chunk->value = FN(largest)(p, n);
  FN(exp_shifted)(e, p, FN(shift_of)(chunk->value), n, p + n);
  chunk->sum = FN(sum_chunk)(e, n);
}
#endif

static void FN(merge)(enum reduce_op op, FN(partial) * into, const FN(partial) * from) {
  if (into->count == 0) {
    *into = *from;
    return;
  }
  if (from->count == 0) return;
  if (op == SUM || op == MEAN || op == COUNT || op == SQUARES) {
    into->sum += from->sum;
  } else if (op == PROD) {
    into->sum *= from->sum;
  } else if (op == RANGE) {
    into->value = FN(pick_largest)(into->value, from->value);
    into->low = FN(pick_smallest)(into->low, from->low);
  } else if (op == EXPONENTIALS) {
#if !REAL_IS_INT
    REAL both = FN(pick_largest)(into->value, from->value);
    into->sum = into->sum * FN(rescale)(into->value, both) + from->sum * FN(rescale)(from->value, both);
    into->value = both;
#endif
  } else if (op == AMAX) {
    into->value = FN(pick_largest)(into->value, from->value);
  } else if (op == AMIN) {
    into->value = FN(pick_smallest)(into->value, from->value);
  } else if (op == VAR) { /* Chan, Golub, LeVeque 1979: means and squares of two sets give those of their union */
    WIDE n = (WIDE)(into->count + from->count), delta = from->sum - into->sum;
    into->squares += from->squares + delta * delta * ((WIDE)into->count * (WIDE)from->count / n);
    into->sum += delta * ((WIDE)from->count / n);
  } else {
    into->value = into->value != 0 || from->value != 0;
  }
  into->count += from->count;
}

/* One chunk that lies in L1. */
ROW_INLINE void FN(fold)(enum reduce_op op, FN(partial) * into, const REAL *p, int64_t n) {
  FN(partial) chunk = {.count = n};
  switch (op) {
    case SUM:
    case MEAN:
    case COUNT:
      chunk.sum = FN(sum_chunk)(p, n);
      break;
    case PROD:
      chunk.sum = FN(wide_fold)(p, n, true);
      break;
    case SQUARES:
      chunk.sum = FN(squares)(p, n);
      break;
    case RANGE:
      chunk.value = FN(largest)(p, n);
      chunk.low = FN(smallest)(p, n);
      break;
    case EXPONENTIALS:
#if !REAL_IS_INT
      FN(exponentials)(p, n, &chunk);
#endif
      break;
    case AMAX:
      chunk.value = FN(largest)(p, n);
      break;
    case AMIN:
      chunk.value = FN(smallest)(p, n);
      break;
    case ANY:
      chunk.value = FN(exists)(p, n, false);
      break;
    case ALL:
      chunk.value = FN(exists)(p, n, true);
      break;
    default: {
#if !REAL_IS_INT
      REAL shift = (REAL)(FN(sum_chunk)(p, n) / (WIDE)n); /* the second pass corrects for its rounding */
      WIDE first = 0;
      FN(moments)(p, shift, n, &first, &chunk.squares);
      chunk.sum = (WIDE)shift + first / (WIDE)n;
      chunk.squares -= first * (first / (WIDE)n);
      if (chunk.squares < 0) chunk.squares = 0;
#endif
    }
  }
  FN(merge)(op, into, &chunk);
}

/* Positions [lo, hi) of the row at x. */
static void FN(stretch)(const reduce_job *job, const char *x, int64_t lo, int64_t hi, FN(partial) * out) {
  REAL buf[REDUCE_CHUNK] __attribute__((aligned(64)));
  *out = (FN(partial)){0};
#if REAL_IS_INT
  if ((job->op == ANY || job->op == ALL) && job->row.item == 1 && job->row.ndim == 1 && job->row.stride[0] == 1) {
    out->value = reduce_bytes((const uint8_t *)x + lo, hi - lo, job->op == ALL);
    out->count = hi - lo;
    return;
  }
  if (job->op == COUNT && job->row.item == 1 && job->row.ndim == 1 && job->row.stride[0] == 1) {
    out->sum = (WIDE)count_bytes((const uint8_t *)x + lo, hi - lo);
    out->count = hi - lo;
    return;
  }
#endif
  for (int64_t at = lo; at < hi; at += REDUCE_CHUNK) {
    int64_t n = hi - at < REDUCE_CHUNK ? hi - at : REDUCE_CHUNK;
    FN(fold)(job->op, out, FN(mapped)(job, FN(fetch)(&job->row, x, at, n, buf), n, buf), n);
    if ((job->op == ANY || job->op == ALL) && out->value != 0) return;
  }
}

/* y, and z where there is one, from all values of a result. */
static void FN(finish)(const reduce_job *job, const FN(partial) * p, char *y, char *z) {
  WIDE v = p->sum;
  switch (job->op) {
    case SUM:
    case SQUARES:
      break;
    case PROD:
      v = job->n ? v : 1;
      break;
    case COUNT:
      *(int64_t *)y = (int64_t)v;
      return;
#if !REAL_IS_INT
    case MEAN:
      v /= (WIDE)job->n;
      break;
    case VAR: {
      WIDE freedom = (WIDE)job->n - job->correction;
      v = job->n ? p->squares / (freedom > 0 ? freedom : 0) : (WIDE)NAN;
      if (z) FN(store_one)(job->y_dtype, z, job->n ? (REAL)p->sum : (REAL)NAN);
      break;
    }
    case EXPONENTIALS: /* infinite maxima are the result themselves; no values have the logarithm of 0 */
      v = !job->n                 ? -(WIDE)INFINITY
          : isinf(p->value)       ? (WIDE)p->value
          : REAL_IS_NAN(p->value) ? (WIDE)NAN
                                  : (WIDE)p->value + log((double)(v / ROW_EXP_SCALE));
      break;
#endif
    case ANY:
      *(uint8_t *)y = p->value != 0;
      return;
    case ALL:
      *(uint8_t *)y = p->value == 0;
      return;
    case RANGE:
      FN(store_one)(job->y_dtype, y, p->low);
      FN(store_one)(job->y_dtype, z, p->value);
      return;
    default:
      FN(store_one)(job->y_dtype, y, p->value);
      return;
  }
#if !REAL_IS_INT
  if (job->end == SQUARE_ROOT) v = sqrt(v);
  else if (job->end == POWER_ROOT) v = pow(v, 1 / job->power);
#endif
  FN(store_one)(job->y_dtype, y, (REAL)v);
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */
typedef struct FN(blocks) {
  const reduce_job *job;
  const char *x;
  FN(partial) part[REDUCE_BLOCKS];
} FN(blocks);

static void FN(reduce_blocks)(void *ctx, int64_t lo, int64_t hi) {
  FN(blocks) *b = ctx;
  for (int64_t i = lo; i < hi; i++) {
    int64_t end = (i + 1) * b->job->block;
    FN(stretch)(b->job, b->x, i * b->job->block, end < b->job->n ? end : b->job->n, &b->part[i]);
  }
}

/* A row of several blocks, one after the other or on all threads: the same partial results in the same order. */
static __attribute__((noinline)) void FN(reduce_long)(const reduce_job *job, const char *x, FN(partial) * out,
                                                      bool parallel) {
  FN(blocks) b;
  b.job = job;
  b.x = x;
  int64_t blocks = (job->n + job->block - 1) / job->block;
  if (parallel) haian_parallel_for(blocks, 1, FN(reduce_blocks), &b);
  else FN(reduce_blocks)(&b, 0, blocks);
  *out = (FN(partial)){0};
  for (int64_t i = 0; i < blocks; i++) FN(merge)(job->op, out, &b.part[i]);
}

ROW_INLINE void FN(reduce_row)(const reduce_job *job, const haian_place *at, bool parallel) {
  const char *x = job->x + at->offset[0] * job->row.item;
  char *y = job->y + at->offset[1] * job->y_item, *z = job->z ? job->z + at->offset[2] * job->y_item : NULL;
  FN(partial) p;
  if (job->n <= job->block) FN(stretch)(job, x, 0, job->n, &p);
  else FN(reduce_long)(job, x, &p, parallel);
  FN(finish)(job, &p, y, z);
}

static void FN(reduce_rows)(void *ctx, int64_t lo, int64_t hi) {
  const reduce_job *job = ctx;
  const haian_walk *w = &job->kept;
  haian_place at;
  haian_place_seek(&at, w, w->ndim, lo);
  for (int64_t row = lo; row < hi; row++) {
    FN(reduce_row)(job, &at, false);
    if (row + 1 < hi) haian_place_next(&at, w, w->ndim);
  }
}

/* ---- columns: up to REDUCE_WIDTH results along the last kept axis at once -----------------------------------------
 */
typedef struct FN(strip) {
  WIDE sum[REDUCE_WIDTH], squares[REDUCE_WIDTH], part[REDUCE_WIDTH], part_squares[REDUCE_WIDTH];
  REAL value[REDUCE_WIDTH], low[REDUCE_WIDTH], shift[REDUCE_WIDTH];
} FN(strip);

/* What a pass over a strip adds up: the values; their distances from shift and the squares of those; the same in WIDE;
 * the exponentials of the distances. */
enum FN(pass) { FN(VALUES), FN(DISTANCES), FN(WIDE_DISTANCES), FN(POWERS_OF_E) };

/* The operation of a pass: of a variance and of a sum of exponentials the first is another one. */
ROW_INLINE enum reduce_op FN(op_of)(enum reduce_op op, enum FN(pass) pass) {
  if (op == EXPONENTIALS) return pass == FN(VALUES) ? AMAX : SUM;
  return op == VAR ? SUM : op;
}

/* The extremes of n columns and up to eight rows into best. */
ROW_INLINE void FN(extremes)(bool largest, REAL *best, const REAL *const p[8], int rows, int64_t n) {
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) {
    FN(vec) v = VEC(best + j);
    if (largest) {
      for (int k = 0; k < rows; k++) v = FN(pick_vec_largest)(v, VEC(p[k] + j));
    } else {
      for (int k = 0; k < rows; k++) v = FN(pick_vec_smallest)(v, VEC(p[k] + j));
    }
    memcpy(best + j, &v, sizeof v);
  }
  for (; j < n; j++)
    for (int k = 0; k < rows; k++)
      best[j] = largest ? FN(pick_largest)(best[j], p[k][j]) : FN(pick_smallest)(best[j], p[k][j]);
}

/* Adds n columns of up to eight rows to the strip: one pass over the accumulators for eight over x. */
ROW_INLINE void FN(add_rows)(enum reduce_op op, FN(strip) * s, const REAL *const p[8], int rows, int64_t n,
                             enum FN(pass) pass) {
#define EACH(...) _Pragma("GCC ivdep") for (int64_t j = 0; j < n; j++) __VA_ARGS__
  if (op == AMAX || op == AMIN) {
    FN(extremes)(op == AMAX, s->value, p, rows, n);
  } else if (op == RANGE) {
    FN(extremes)(true, s->value, p, rows, n);
    FN(extremes)(false, s->low, p, rows, n);
  } else if (op == PROD || op == SQUARES) {
    for (int k = 0; k < rows; k++) {
      const REAL *v = p[k];
      if (op == PROD) EACH(s->part[j] *= (WIDE)(ACC)v[j]);
      else EACH(s->part[j] += (WIDE)(ACC)v[j] * (WIDE)(ACC)v[j]);
    }
#if !REAL_IS_INT
  } else if (pass == FN(POWERS_OF_E)) {
    for (int k = 0; k < rows; k++) {
      const REAL *v = p[k];
      EACH(s->part[j] += (WIDE)FN(row_exp)(v[j] - s->shift[j]));
    }
#endif
  } else if (op == ANY || op == ALL) {
    for (int k = 0; k < rows; k++) {
      const REAL *v = p[k];
      if (op == ANY) EACH(s->value[j] = (v[j] != 0) | (s->value[j] != 0));
      else EACH(s->value[j] = (v[j] == 0) | (s->value[j] != 0));
    }
  } else if (pass == FN(DISTANCES) && rows == 8) {
    EACH({
      ACC m = (ACC)s->shift[j];
      ACC a = (ACC)p[0][j] - m, b = (ACC)p[1][j] - m, c = (ACC)p[2][j] - m, d = (ACC)p[3][j] - m;
      ACC e = (ACC)p[4][j] - m, f = (ACC)p[5][j] - m, g = (ACC)p[6][j] - m, h = (ACC)p[7][j] - m;
      s->part[j] += (WIDE)(((a + b) + (c + d)) + ((e + f) + (g + h)));
      s->part_squares[j] += (WIDE)(((a * a + b * b) + (c * c + d * d)) + ((e * e + f * f) + (g * g + h * h)));
    });
  } else if (pass != FN(VALUES)) {
    for (int k = 0; k < rows; k++) {
      const REAL *v = p[k];
      EACH({
        WIDE d = (WIDE)v[j] - (WIDE)s->shift[j];
        s->part[j] += d;
        s->part_squares[j] += d * d;
      });
    }
  } else if (rows == 8) {
    EACH({
      ACC a = ((ACC)p[0][j] + (ACC)p[1][j]) + ((ACC)p[2][j] + (ACC)p[3][j]);
      ACC b = ((ACC)p[4][j] + (ACC)p[5][j]) + ((ACC)p[6][j] + (ACC)p[7][j]);
      s->part[j] += (WIDE)(a + b);
    });
  } else {
    for (int k = 0; k < rows; k++) {
      const REAL *v = p[k];
      EACH(s->part[j] += (WIDE)(ACC)v[j]);
    }
  }
#undef EACH
}

/* Rows [lo, hi) of the strip of n columns at x into s->sum (squares, value). */
static void FN(strip_rows)(const reduce_job *job, const char *x, int64_t lo, int64_t hi, int64_t n, enum FN(pass) pass,
                           FN(strip) * s) {
  REAL buf[8][REDUCE_WIDTH];
  const haian_walk *w = &job->reduced;
  int64_t side = job->kept.stride[job->kept.ndim - 1][0], level = job->level;
  bool direct = side == 1 && job->row.dtype == REAL_DTYPE;
  enum reduce_op op = FN(op_of)(job->op, pass);
  int64_t ahead = direct && w->ndim == 1 ? REDUCE_AHEAD * w->stride[0][0] : 0; /* processors do not foresee these */
  haian_place at;
  haian_place_seek(&at, w, w->ndim, lo);
  for (int64_t j = 0; j < n; j++) s->sum[j] = op == PROD;
  memset(s->squares, 0, sizeof(WIDE) * (size_t)n);
  for (int64_t i = lo; i < hi;) {
    int64_t stop = hi - i < level ? hi : i + level;
    for (int64_t j = 0; j < n; j++) s->part[j] = op == PROD;
    memset(s->part_squares, 0, sizeof(WIDE) * (size_t)n);
    while (i < stop) {
      int rows = stop - i < 8 ? (int)(stop - i) : 8;
      const REAL *p[8];
      for (int k = 0; k < rows; k++) {
        const char *from = x + at.offset[0] * job->row.item;
        p[k] = direct ? (const REAL *)from : buf[k];
        if (!direct) FN(load)(job->row.dtype, from, side, n, buf[k]);
        if (job->map != AS_IS) p[k] = FN(mapped)(job, p[k], n, buf[k]);
        if (i + k + 1 < hi) haian_place_next(&at, w, w->ndim);
      }
      if (i == lo && (op == AMAX || op == AMIN || op == RANGE)) memcpy(s->value, p[0], sizeof(REAL) * (size_t)n);
      if (i == lo && op == RANGE) memcpy(s->low, p[0], sizeof(REAL) * (size_t)n);
      if (i == lo && (op == ANY || op == ALL)) memset(s->value, 0, sizeof(REAL) * (size_t)n);
      for (int k = 0; k < rows && ahead; k++)
        for (int64_t j = 0; j < n; j += 64 / (int64_t)sizeof(REAL)) __builtin_prefetch(p[k] + j + ahead);
      FN(add_rows)(op, s, p, rows, n, pass);
      i += rows;
    }
    if (op == PROD) {
      for (int64_t j = 0; j < n; j++) s->sum[j] *= s->part[j];
    } else {
      for (int64_t j = 0; j < n; j++) s->sum[j] += s->part[j];
    }
    if (pass == FN(DISTANCES) || pass == FN(WIDE_DISTANCES))
      for (int64_t j = 0; j < n; j++) s->squares[j] += s->part_squares[j];
  }
#if REAL_IS_FLOAT
  if (pass == FN(WIDE_DISTANCES) || pass == FN(POWERS_OF_E) || (op != SUM && op != MEAN)) return;
  bool finite = true;
  for (int64_t j = 0; j < n; j++) finite &= isfinite(s->sum[j]) && isfinite(s->squares[j]);
  if (finite) return;
  if (pass == FN(VALUES)) memset(s->shift, 0, sizeof(REAL) * (size_t)n);
  FN(strip_rows)(job, x, lo, hi, n, FN(WIDE_DISTANCES),
                 s); /* eight values may overflow where the sum in WIDE does not */
#endif
}

static void FN(strip_finish)(const reduce_job *job, FN(strip) * s, char *y, char *z, int64_t n) {
  int last = job->kept.ndim - 1;
  int64_t step = job->kept.stride[last][1] * job->y_item, z_step = z ? job->kept.stride[last][2] * job->y_item : 0;
  for (int64_t j = 0; j < n; j++) {
    FN(partial)
    p = {.sum = s->sum[j], .squares = s->squares[j], .value = s->value[j], .low = s->low[j], .count = job->n};
#if !REAL_IS_INT
    if (job->op == VAR)
      p.sum = (WIDE)s->shift[j] + s->sum[j] / (WIDE)job->n; /* the mean: s->sum are distances from shift */
#endif
    FN(finish)(job, &p, y + j * step, z ? z + j * z_step : NULL);
  }
}

#if !REAL_IS_INT
/* The first pass of a variance left sums: means become the shift of the second. */
static void FN(strip_means)(const reduce_job *job, FN(strip) * s, int64_t n) {
  for (int64_t j = 0; j < n; j++) s->shift[j] = (REAL)(s->sum[j] / (WIDE)job->n);
}
static void FN(strip_variance)(const reduce_job *job, FN(strip) * s, int64_t n) {
  for (int64_t j = 0; j < n; j++) {
    s->squares[j] -= s->sum[j] * (s->sum[j] / (WIDE)job->n);
    s->squares[j] = s->squares[j] < 0 ? 0 : s->squares[j];
  }
}
#endif

/* The largest of each column is what exponentials are relative to. */
#if !REAL_IS_INT
static void FN(strip_shifts)(FN(strip) * s, int64_t n) {
  for (int64_t j = 0; j < n; j++) s->shift[j] = FN(shift_of)(s->value[j]);
}
#endif

ROW_INLINE const char *FN(strip_of)(const reduce_job *job, int64_t task, char **y, char **z, int64_t *n) {
  const haian_walk *w = &job->kept;
  int last = w->ndim - 1;
  int64_t strips = (w->shape[last] + REDUCE_WIDTH - 1) / REDUCE_WIDTH, first = task % strips * REDUCE_WIDTH;
  haian_place at;
  haian_place_seek(&at, w, last, task / strips);
  *n = w->shape[last] - first < REDUCE_WIDTH ? w->shape[last] - first : REDUCE_WIDTH;
  *y = job->y + (at.offset[1] + first * w->stride[last][1]) * job->y_item;
  *z = job->z ? job->z + (at.offset[2] + first * w->stride[last][2]) * job->y_item : NULL;
  return job->x + (at.offset[0] + first * w->stride[last][0]) * job->row.item;
}

static void FN(reduce_strips)(void *ctx, int64_t lo, int64_t hi) {
  const reduce_job *job = ctx;
  FN(strip) s;
  for (int64_t task = lo; task < hi; task++) {
    int64_t n;
    char *y, *z;
    const char *x = FN(strip_of)(job, task, &y, &z, &n);
    FN(strip_rows)(job, x, 0, job->n, n, FN(VALUES), &s);
#if !REAL_IS_INT
    if (job->op == VAR) {
      FN(strip_means)(job, &s, n);
      FN(strip_rows)(job, x, 0, job->n, n, FN(DISTANCES), &s);
      FN(strip_variance)(job, &s, n);
    } else if (job->op == EXPONENTIALS) {
      FN(strip_shifts)(&s, n);
      FN(strip_rows)(job, x, 0, job->n, n, FN(POWERS_OF_E), &s);
    }
#endif
    FN(strip_finish)(job, &s, y, z, n);
  }
}

/* Few strips of many rows: each strip on all threads, in REDUCE_PARTS blocks of rows that are merged in order. */
typedef struct FN(parts) {
  const reduce_job *job;
  const char *x;
  int64_t n, rows; /* columns, rows of a block */
  enum FN(pass) pass;
  FN(strip) part[REDUCE_PARTS];
} FN(parts);

static void FN(reduce_parts)(void *ctx, int64_t lo, int64_t hi) {
  FN(parts) *b = ctx;
  for (int64_t i = lo; i < hi; i++) {
    int64_t begin = i * b->rows, end = begin + b->rows < b->job->n ? begin + b->rows : b->job->n;
    FN(strip_rows)(b->job, b->x, begin, end, b->n, b->pass, &b->part[i]);
  }
}

static void FN(all_parts)(FN(parts) * b, enum FN(pass) pass) {
  int64_t parts = (b->job->n + b->rows - 1) / b->rows;
  b->pass = pass;
  haian_parallel_for(parts, 1, FN(reduce_parts), b);
  FN(strip) *s = &b->part[0];
  for (int64_t i = 1; i < parts; i++) {
    const FN(strip) *from = &b->part[i];
    for (int64_t j = 0; j < b->n; j++) {
      FN(partial)
      p = {.sum = s->sum[j], .value = s->value[j], .low = s->low[j], .count = 1},
      q = {.sum = from->sum[j], .value = from->value[j], .low = from->low[j], .count = 1};
      FN(merge)(FN(op_of)(b->job->op, pass), &p, &q);
      s->sum[j] = p.sum;
      s->value[j] = p.value;
      s->low[j] = p.low;
      s->squares[j] += from->squares[j];
    }
  }
}

static int32_t FN(reduce_tall)(const reduce_job *job, int64_t tasks) {
  FN(parts) *b = malloc(sizeof *b);
  if (!b) return haian_fail(HAIAN_OUT_OF_MEMORY, "reduction: no memory for %zu bytes of partial results", sizeof *b);
  b->job = job;
  b->rows = (job->n + REDUCE_PARTS - 1) / REDUCE_PARTS;
  for (int64_t task = 0; task < tasks; task++) {
    char *y, *z;
    b->x = FN(strip_of)(job, task, &y, &z, &b->n);
    FN(all_parts)(b, FN(VALUES));
#if !REAL_IS_INT
    if (job->op == VAR) {
      FN(strip_means)(job, &b->part[0], b->n);
      for (int i = 1; i < REDUCE_PARTS; i++) memcpy(b->part[i].shift, b->part[0].shift, sizeof(REAL) * (size_t)b->n);
      FN(all_parts)(b, FN(DISTANCES));
      FN(strip_variance)(job, &b->part[0], b->n);
    } else if (job->op == EXPONENTIALS) {
      FN(strip_shifts)(&b->part[0], b->n);
      for (int i = 1; i < REDUCE_PARTS; i++) memcpy(b->part[i].shift, b->part[0].shift, sizeof(REAL) * (size_t)b->n);
      FN(all_parts)(b, FN(POWERS_OF_E));
    }
#endif
    FN(strip_finish)(job, &b->part[0], y, z, b->n);
  }
  free(b);
  return HAIAN_OK;
}

static int32_t FN(reduce)(const reduce_job *job) {
  int64_t results = haian_walk_rows(&job->kept, job->kept.ndim), bytes = job->n * job->row.item;
  if (job->columns) {
    int64_t size = job->kept.shape[job->kept.ndim - 1],
            tasks = results / size * ((size + REDUCE_WIDTH - 1) / REDUCE_WIDTH);
    int64_t width = size < REDUCE_WIDTH ? size : REDUCE_WIDTH;
    if (tasks < REDUCE_PARTS && job->n >= 1024 && job->n * width >= REDUCE_PARALLEL) return FN(reduce_tall)(job, tasks);
    haian_parallel_for(tasks, row_grain(width, bytes), FN(reduce_strips), (void *)(uintptr_t)job);
  } else if (results == 1) {
    haian_place at = {.offset = {0}};
    FN(reduce_row)(job, &at, true);
  } else if (results < REDUCE_BLOCKS / 4 && job->n > job->block) {
    const haian_walk *w = &job->kept;
    haian_place at;
    haian_place_seek(&at, w, w->ndim, 0);
    for (int64_t i = 0; i < results; i++) {
      FN(reduce_row)(job, &at, true);
      if (i + 1 < results) haian_place_next(&at, w, w->ndim);
    }
  } else {
    haian_parallel_for(results, row_grain(1, bytes), FN(reduce_rows), (void *)(uintptr_t)job);
  }
  return HAIAN_OK;
}
#undef REAL_ABS
#undef REAL_POW
