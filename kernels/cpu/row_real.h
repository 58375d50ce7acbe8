/* Runs of one type, included once per type by each_real.h, which defines REAL (float, double or int64_t) and what
 * belongs to it: reading and writing any dtype and stride, sums, largest and smallest.
 * A run is contiguous and of type REAL; fetch and put convert from and to any dtype and stride. */

typedef REAL FN(vec) __attribute__((vector_size(ROW_VBYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL_INT FN(mask) __attribute__((vector_size(ROW_VBYTES))); /* what comparing two vecs gives */
#define LANES ((int)(ROW_VBYTES / sizeof(REAL)))
#define VEC(p) (*(const FN(vec) *)(p))

#if ROW_VBYTES / REAL_BYTES == 16
#define IOTA (FN(mask)){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif ROW_VBYTES / REAL_BYTES == 8
#define IOTA (FN(mask)){0, 1, 2, 3, 4, 5, 6, 7}
#elif ROW_VBYTES / REAL_BYTES == 4
#define IOTA (FN(mask)){0, 1, 2, 3}
#else
#define IOTA (FN(mask)){0, 1}
#endif
/* Lane i takes what lane i ^ w holds. */
#define SWAP(v, w) __builtin_shuffle(v, IOTA ^ (w))

/* ---- reading and writing -------------------------------------------------------------------------------------- */
#if REAL_IS_INT
/* Values outside int64 and NaN become the smallest int64, as the processor's own conversion does on x86. */
#define FROM_FLOAT(v) ((v) >= -0x1p63 && (v) < 0x1p63 ? (REAL)(v) : INT64_MIN)
#else
#define FROM_FLOAT(v) ((REAL)(v))
#endif

#define RUN(type, convert)                                           \
  do {                                                               \
    const type *s = (const type *)x;                                 \
    if (stride == 1) {                                               \
      for (int64_t i = 0; i < n; i++) y[i] = convert(s[i]);          \
    } else {                                                         \
      for (int64_t i = 0; i < n; i++) y[i] = convert(s[i * stride]); \
    }                                                                \
    return;                                                          \
  } while (0)
#define FROM_INT(v) ((REAL)(v))
#define FROM_F16(v) FROM_FLOAT(haian_f16_load(v))
#define FROM_BF16(v) FROM_FLOAT(haian_bf16_load(v))

ROW_UNUSED static
    __attribute__((noinline)) void FN(load)(int32_t dtype, const char *x, int64_t stride, int64_t n, REAL *restrict y) {
  switch (dtype) {
    case HAIAN_F32:
      RUN(float, FROM_FLOAT);
    case HAIAN_F64:
      RUN(double, FROM_FLOAT);
    case HAIAN_F16:
#if REAL_IS_FLOAT
      if (stride == 1) {
        HAIAN_SYM(f16_to_f32)((const uint16_t *)x, y, n);
        return;
      }
#endif
      RUN(uint16_t, FROM_F16);
    case HAIAN_BF16:
      RUN(uint16_t, FROM_BF16);
    case HAIAN_BOOL:
    case HAIAN_U8:
      RUN(uint8_t, FROM_INT);
    case HAIAN_I8:
      RUN(int8_t, FROM_INT);
    case HAIAN_I16:
      RUN(int16_t, FROM_INT);
    case HAIAN_U16:
      RUN(uint16_t, FROM_INT);
    case HAIAN_I32:
      RUN(int32_t, FROM_INT);
    case HAIAN_U32:
      RUN(uint32_t, FROM_INT);
    default:
      RUN(int64_t, FROM_INT);
  }
}
#undef RUN
#undef FROM_INT
#undef FROM_F16
#undef FROM_BF16
#undef FROM_FLOAT

#define RUN(type, convert)                                           \
  do {                                                               \
    type *d = (type *)y;                                             \
    if (stride == 1) {                                               \
      for (int64_t i = 0; i < n; i++) d[i] = convert(x[i]);          \
    } else {                                                         \
      for (int64_t i = 0; i < n; i++) d[i * stride] = convert(x[i]); \
    }                                                                \
    return;                                                          \
  } while (0)
#define TO(type) (type)

/* n <= ROW_CHUNK.  Floating types write floating dtypes, int64_t writes integers (wrapping) and bool (not zero). */
ROW_UNUSED static __attribute__((noinline)) void FN(store)(int32_t dtype, char *y, int64_t stride, int64_t n,
                                                           const REAL *restrict x, bool stream) {
#if REAL_IS_INT
  (void)stream;
  switch (dtype) {
    case HAIAN_BOOL:
      RUN(uint8_t, 0 !=);
    case HAIAN_U8:
      RUN(uint8_t, TO(uint8_t));
    case HAIAN_I8:
      RUN(int8_t, TO(int8_t));
    case HAIAN_I16:
      RUN(int16_t, TO(int16_t));
    case HAIAN_U16:
      RUN(uint16_t, TO(uint16_t));
    case HAIAN_I32:
      RUN(int32_t, TO(int32_t));
    case HAIAN_U32:
      RUN(uint32_t, TO(uint32_t));
    default:
      RUN(int64_t, TO(int64_t));
  }
#else
  if (stride == 1 && dtype == REAL_DTYPE) {
    haian_copy_run(y, (const char *)x, n * (int64_t)sizeof(REAL), stream);
    return;
  }
#if REAL_IS_FLOAT
  if (stride == 1 && (dtype == HAIAN_F16 || dtype == HAIAN_BF16)) {
    uint16_t half[ROW_CHUNK];
    uint16_t *d = stream ? half : (uint16_t *)y;
    if (dtype == HAIAN_F16) HAIAN_SYM(f32_to_f16)(x, d, n);
    else HAIAN_SYM(f32_to_bf16)(x, d, n);
    if (stream) haian_copy_run(y, (const char *)half, n * 2, true);
    return;
  }
#endif
  switch (dtype) {
    case HAIAN_F16:
      RUN(uint16_t, haian_f16_store);
    case HAIAN_BF16:
      RUN(uint16_t, haian_bf16_store);
    case HAIAN_F32:
      RUN(float, TO(float));
    default:
      RUN(double, TO(double));
  }
#endif
}
#undef RUN
#undef TO

/* The number of elements from position `at` that one innermost axis holds, and the offset in elements of `at`. */
ROW_UNUSED static int64_t FN(seek)(const row_axes *r, int64_t at, int64_t *offset) {
  int last = r->ndim - 1;
  int64_t left = r->shape[last] - at % r->shape[last], sum = 0;
  for (int d = last; d >= 0; d--) {
    sum += at % r->shape[d] * r->stride[d];
    at /= r->shape[d];
  }
  *offset = sum;
  return left;
}

/* Positions [at, at + n) of a row whose position 0 is at x: where they lie, or buf filled with them. */
ROW_INLINE const REAL *FN(fetch)(const row_axes *r, const char *x, int64_t at, int64_t n, REAL *buf) {
  int64_t stride = r->stride[r->ndim - 1], offset = at * stride;
  if (__builtin_expect(r->ndim > 1, 0)) {
    for (int64_t done = 0; done < n;) {
      int64_t run = FN(seek)(r, at + done, &offset);
      if (run >= n - done) run = n - done;
      if (run == n) break;
      FN(load)(r->dtype, x + offset * r->item, stride, run, buf + done);
      done += run;
      if (done == n) return buf;
    }
  }
  x += offset * r->item;
  if (stride == 1 && r->dtype == REAL_DTYPE) return (const REAL *)x;
  FN(load)(r->dtype, x, stride, n, buf);
  return buf;
}

/* Where a run for positions [at, at + n) may be computed: in place when nothing has to be converted, else in buf. */
ROW_INLINE REAL *FN(target)(const row_axes *r, char *y, int64_t at, REAL *buf, bool stream) {
  return r->ndim == 1 && r->stride[0] == 1 && r->dtype == REAL_DTYPE && !stream ? (REAL *)y + at : buf;
}

/* Writes what was computed at FN(target); n <= ROW_CHUNK. */
ROW_INLINE void FN(put)(const row_axes *r, char *y, int64_t at, int64_t n, const REAL *run, bool stream) {
  int64_t stride = r->stride[r->ndim - 1], offset = at * stride;
  if (__builtin_expect(r->ndim > 1, 0)) {
    for (int64_t done = 0; done < n;) {
      int64_t part = FN(seek)(r, at + done, &offset);
      if (part > n - done) part = n - done;
      FN(store)(r->dtype, y + offset * r->item, stride, part, run + done, stream && stride == 1);
      done += part;
    }
    return;
  }
  y += offset * r->item;
  if ((const char *)run != y) FN(store)(r->dtype, y, stride, n, run, stream);
}

ROW_INLINE REAL FN(load_one)(int32_t dtype, const char *x) {
  REAL v;
  if (dtype == REAL_DTYPE) return *(const REAL *)x;
  FN(load)(dtype, x, 1, 1, &v);
  return v;
}

ROW_INLINE void FN(store_one)(int32_t dtype, char *y, REAL v) {
  if (dtype == REAL_DTYPE) *(REAL *)y = v;
  else FN(store)(dtype, y, 1, 1, &v, false);
}

/* ---- sums ------------------------------------------------------------------------------------------------------ */
/* Eight vector accumulators, so a chunk of ROW_CHUNK is a sum of 16 (AVX-512) to 64 (SSE2) terms a lane; its error
 * stays below the 0.5 sqrt(n) u S of a conforming reduction even for constant data.  Chunks are added in WIDE. */
typedef ACC FN(sums) __attribute__((vector_size(ROW_VBYTES)));

ROW_INLINE WIDE FN(across)(FN(sums) a[8], ACC tail) {
  for (int k = 0; k < 4; k++) a[k] += a[k + 4];
  a[0] = (a[0] + a[1]) + (a[2] + a[3]);
#pragma GCC unroll 4
  for (int w = LANES / 2; w; w /= 2) a[0] += SWAP(a[0], w);
  return (WIDE)(a[0][0] + tail);
}

/* Sum of n <= ROW_CHUNK values. */
ROW_INLINE WIDE FN(sum_chunk)(const REAL *p, int64_t n) {
  FN(sums) a[8] = {{0}};
  int64_t i = 0;
  for (; i + 8 * LANES <= n; i += 8 * LANES) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) a[k] += (FN(sums))VEC(p + i + k * LANES);
  }
  for (; i + LANES <= n; i += LANES) a[0] += (FN(sums))VEC(p + i);
  ACC tail = 0;
  for (; i < n; i++) tail += (ACC)p[i];
  WIDE sum = FN(across)(a, tail);
  if (REAL_OVERFLOWED(sum)) { /* perhaps only on the way: then the sum in WIDE is finite */
    sum = 0;
    for (i = 0; i < n; i++) sum += (WIDE)p[i];
  }
  return sum;
}

ROW_UNUSED static WIDE FN(sum)(const REAL *p, int64_t n) {
  WIDE sum = 0;
  for (int64_t i = 0; i < n; i += ROW_CHUNK) sum += FN(sum_chunk)(p + i, n - i < ROW_CHUNK ? n - i : ROW_CHUNK);
  return sum;
}

#if !REAL_IS_INT
/* Sum of a[i] * b[i]. */
ROW_UNUSED static WIDE FN(dot)(const REAL *p, const REAL *q, int64_t n) {
  WIDE total = 0;
  for (int64_t begin = 0; begin < n; begin += ROW_CHUNK) {
    int64_t i = begin, end = n - begin < ROW_CHUNK ? n : begin + ROW_CHUNK;
    FN(sums) a[8] = {{0}};
    for (; i + 8 * LANES <= end; i += 8 * LANES) {
#pragma GCC unroll 8
      for (int k = 0; k < 8; k++) a[k] += VEC(p + i + k * LANES) * VEC(q + i + k * LANES);
    }
    for (; i + LANES <= end; i += LANES) a[0] += VEC(p + i) * VEC(q + i);
    ACC tail = 0;
    for (; i < end; i++) tail += p[i] * q[i];
    WIDE sum = FN(across)(a, tail);
    if (REAL_OVERFLOWED(sum)) {
      sum = 0;
      for (i = begin; i < end; i++) sum += (WIDE)p[i] * (WIDE)q[i];
    }
    total += sum;
  }
  return total;
}

/* first += sum of p[i] - shift, second += sum of its squares. */
ROW_UNUSED static void FN(moments)(const REAL *p, REAL shift, int64_t n, WIDE *first, WIDE *second) {
  for (int64_t begin = 0; begin < n; begin += ROW_CHUNK) {
    int64_t i = begin, end = n - begin < ROW_CHUNK ? n : begin + ROW_CHUNK;
    FN(sums) a[8] = {{0}}, b[8] = {{0}};
    for (; i + 4 * LANES <= end; i += 4 * LANES) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) {
        FN(sums) d = VEC(p + i + k * LANES) - shift;
        a[k] += d;
        b[k] += d * d;
      }
    }
    for (; i + LANES <= end; i += LANES) {
      FN(sums) d = VEC(p + i) - shift;
      a[0] += d;
      b[0] += d * d;
    }
    ACC tail_a = 0, tail_b = 0;
    for (; i < end; i++) {
      REAL d = p[i] - shift;
      tail_a += d;
      tail_b += d * d;
    }
    WIDE sum_a = FN(across)(a, tail_a), sum_b = FN(across)(b, tail_b);
    if (REAL_OVERFLOWED(sum_b)) {
      sum_a = sum_b = 0;
      for (i = begin; i < end; i++) {
        WIDE d = (WIDE)p[i] - (WIDE)shift;
        sum_a += d;
        sum_b += d * d;
      }
    }
    *first += sum_a;
    *second += sum_b;
  }
}
#endif

/* ---- largest and smallest --------------------------------------------------------------------------------------- */
#define EXTREME(name, op, fast)                                                                                        \
  ROW_INLINE REAL FN(pick_##name)(REAL best, REAL v) { return (v op best) | REAL_IS_NAN(v) ? v : best; }               \
  ROW_INLINE FN(vec) FN(pick_vec_##name)(FN(vec) best, FN(vec) v) {                                                    \
    FN(mask) take = (v op best) | (v != v); /* once best is NaN, only a NaN takes its place */                         \
    return (FN(vec))(((FN(mask))v & take) | ((FN(mask))best & ~take));                                                 \
  }                                                                                                                    \
  /* n >= 1 values; NaN wins. */                                                                                       \
  ROW_UNUSED static __attribute__((noinline)) REAL FN(careful_##name)(const REAL *p, int64_t n) {                      \
    REAL best = p[0];                                                                                                  \
    int64_t i = 0;                                                                                                     \
    if (n >= 4 * LANES) {                                                                                              \
      FN(vec) a[4] = {VEC(p), VEC(p), VEC(p), VEC(p)};                                                                 \
      for (; i + 4 * LANES <= n; i += 4 * LANES)                                                                       \
        for (int k = 0; k < 4; k++) a[k] = FN(pick_vec_##name)(a[k], VEC(p + i + k * LANES));                          \
      for (int k = 0; k < 4 * LANES; k++) best = FN(pick_##name)(best, a[k / LANES][k % LANES]);                       \
    }                                                                                                                  \
    for (; i < n; i++) best = FN(pick_##name)(best, p[i]);                                                             \
    return best;                                                                                                       \
  }                                                                                                                    \
  /* The same: the processor's own maximum, which may drop NaN, beside a sum of zeros that NaN and infinities spoil. \
   */ \
  ROW_UNUSED static REAL FN(name)(const REAL *p, int64_t n) {                                                          \
    if (n < LANES) return FN(careful_##name)(p, n);                                                                    \
    FN(vec) a[4] = {VEC(p), VEC(p), VEC(p), VEC(p)}, zero[4] = {{0}};                                                  \
    int64_t i = 0;                                                                                                     \
    for (; i + 4 * LANES <= n; i += 4 * LANES) {                                                                       \
      _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) {                                                            \
        FN(vec) v = VEC(p + i + k * LANES);                                                                            \
        a[k] = fast(a[k], v);                                                                                          \
        zero[k] += v * 0;                                                                                              \
      }                                                                                                                \
    }                                                                                                                  \
    for (; i < n; i += LANES) {                                                                                        \
      FN(vec) v = VEC(p + (i + LANES <= n ? i : n - LANES)); /* a value may count twice */                             \
      a[0] = fast(a[0], v);                                                                                            \
      zero[0] += v * 0;                                                                                                \
    }                                                                                                                  \
    a[0] = fast(fast(a[0], a[1]), fast(a[2], a[3]));                                                                   \
    zero[0] = (zero[0] + zero[1]) + (zero[2] + zero[3]);                                                               \
    _Pragma("GCC unroll 4") for (int w = LANES / 2; w; w /= 2) {                                                       \
      a[0] = fast(a[0], SWAP(a[0], w));                                                                                \
      zero[0] += SWAP(zero[0], w);                                                                                     \
    }                                                                                                                  \
    return __builtin_expect(zero[0][0] != 0, 0) ? FN(careful_##name)(p, n) : a[0][0];                                  \
  }
EXTREME(largest, >, REAL_VMAX)
EXTREME(smallest, <, REAL_VMIN)
#undef EXTREME

#if !REAL_IS_INT
/* The largest of n >= 1 values; where there are NaN, any of the others or NaN. */
ROW_UNUSED static REAL FN(top)(const REAL *p, int64_t n) {
  if (n < LANES) return FN(careful_largest)(p, n);
  FN(vec) a[4] = {VEC(p), VEC(p), VEC(p), VEC(p)};
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) a[k] = REAL_VMAX(a[k], VEC(p + i + k * LANES));
  }
  for (; i + LANES <= n; i += LANES) a[0] = REAL_VMAX(a[0], VEC(p + i));
  if (i < n) a[1] = REAL_VMAX(a[1], VEC(p + n - LANES));
  a[0] = REAL_VMAX(REAL_VMAX(a[0], a[1]), REAL_VMAX(a[2], a[3]));
#pragma GCC unroll 4
  for (int w = LANES / 2; w; w /= 2) a[0] = REAL_VMAX(a[0], SWAP(a[0], w));
  return a[0][0];
}

/* ---- exponentials relative to a maximum ---------------------------------------------------------------------------
 */
/* e[i] = exp(p[i] - shift) ROW_EXP_SCALE; e may be p.  Meanwhile asks for the n values at `ahead`, which come next: the
 * arithmetic then hides the memory; it is worth 1.3x at
 * 4096 x 4096. */
ROW_INLINE void FN(exp_shifted)(REAL *e, const REAL *p, REAL shift, int64_t n, const REAL *ahead) {
  enum { BLOCK = 512 / sizeof(REAL) };
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    int64_t end = n - begin < BLOCK ? n : begin + BLOCK;
    for (int64_t i = begin; i < end; i += 64 / (int64_t)sizeof(REAL)) __builtin_prefetch(ahead + i);
#pragma GCC ivdep
    for (int64_t i = begin; i < end; i++) e[i] = FN(row_exp)(p[i] - shift);
  }
}

/* A chunk of -inf only is exponentiated relative to 0, and the row tells from its maximum that it has no sum. */
ROW_INLINE REAL FN(shift_of)(REAL maximum) { return maximum == -(REAL)INFINITY ? 0 : maximum; }

/* exp(from - to) with from <= to; 0 for from = -inf whatever to is. */
ROW_INLINE WIDE FN(rescale)(REAL from, REAL to) {
  return from == -(REAL)INFINITY ? 0 : (WIDE)exp((double)from - (double)to);
}

/* The sum of exp(x - maximum) ROW_EXP_SCALE over a row, and its maximum (any number where the row holds NaN: the sum is
 * NaN then).  A row of one chunk is left at *run.  buf: 2 * chunk values, chunk <= ROW_CHUNK. */
ROW_INLINE WIDE FN(exp_sum)(const row_axes *r, const char *x, int64_t n, REAL *buf, int64_t chunk, REAL *maximum,
                            const REAL **run) {
  REAL *e = buf + chunk;
  WIDE sum = 0;
  *maximum = -(REAL)INFINITY;
  for (int64_t c = 0; c < n; c += chunk) {
    int64_t m = n - c < chunk ? n - c : chunk;
    const REAL *p = FN(fetch)(r, x, c, m, buf);
    REAL top = FN(top)(p, m), both = FN(pick_largest)(*maximum, top);
    FN(exp_shifted)(e, p, FN(shift_of)(top), m, p + m);
    WIDE part = FN(sum_chunk)(e, m);
    sum = n <= chunk ? part : sum * FN(rescale)(*maximum, both) + part * FN(rescale)(top, both);
    *maximum = both;
    *run = p;
  }
  return sum;
}

/* log of FN(exp_sum), NaN for a row of -inf only. */
ROW_INLINE WIDE FN(log_of)(WIDE sum, REAL maximum) {
  return maximum == -(REAL)INFINITY ? (WIDE)NAN : log(sum / ROW_EXP_SCALE);
}
#endif
