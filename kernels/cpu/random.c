/* rand, uniform, normal, randint, bernoulli, dropout and native_dropout from counter-based Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy
 * as 1, 2, 3", SC 2011).  Not here: generators that keep state (a caller advances `offset`).
 * key = (seed low, seed high), counter = (block low, block high, offset low, offset high); element i of the row-major
 * order takes word i % 4 of block i / 4 (float64: words 2i and 2i + 1), whatever the strides and the thread count. */
#include "simd.h"
#include "strided.h"

#define BLOCKS 64 /* made together: the rounds run over them as vectors */
#define WORDS (4 * BLOCKS)
#define GRAIN (16 << 10) /* elements: ~10 us of rounds */

/* Lanes of 64 bits hold 32-bit words; what stands above them is ignored, as the multiplications do.  That leaves six
 * instructions a round: two products, two shifts, two three-way exclusive ors. */
#if defined(__AVX512F__)
#define LANES 8
#define PRODUCT(a, b) (lanes) _mm512_mul_epu32((__m512i)(a), (__m512i)(b))
#elif defined(__AVX2__)
#define LANES 4
#define PRODUCT(a, b) (lanes) _mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#elif defined(__SSE2__)
#define LANES 2
#define PRODUCT(a, b) (lanes) _mm_mul_epu32((__m128i)(a), (__m128i)(b))
#else
#define LANES 2
#define PRODUCT(a, b) (((a) & 0xffffffffu) * (b))
#endif
#if LANES == 8
#define ZIP(p, q, k) \
  __builtin_shufflevector(p, q, 4 * k, 8 + 4 * k, 4 * k + 1, 9 + 4 * k, 4 * k + 2, 10 + 4 * k, 4 * k + 3, 11 + 4 * k)
#elif LANES == 4
#define ZIP(p, q, k) __builtin_shufflevector(p, q, 2 * k, 4 + 2 * k, 2 * k + 1, 5 + 2 * k)
#else
#define ZIP(p, q, k) __builtin_shufflevector(p, q, k, 2 + k)
#endif
typedef uint64_t lanes __attribute__((vector_size(8 * LANES)));
#define TOGETHER (LANES == 8 ? 4 : 2) /* vectors under way at once hide a product's latency; 32 or 16 registers */
#define EACH for (int v = 0; v < TOGETHER; v++)

/* words[4 * j + w] = word w of block first + j, for BLOCKS blocks. */
static void philox(uint64_t seed, uint64_t offset, uint64_t first, uint32_t *words) {
  lanes count;
  for (int i = 0; i < LANES; i++) count[i] = (uint64_t)i;
  for (int j = 0; j < BLOCKS; j += TOGETHER * LANES) {
    lanes c0[TOGETHER], c1[TOGETHER], c2[TOGETHER], c3[TOGETHER], zero = {0};
    EACH {
      c0[v] = count + (first + (uint64_t)(j + v * LANES));
      c1[v] = c0[v] >> 32;
      c2[v] = zero + offset;
      c3[v] = zero + (offset >> 32);
    }
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
      EACH {
        lanes p = PRODUCT(c0[v], zero + 0xD2511F53u), q = PRODUCT(c2[v], zero + 0xCD9E8D57u);
        c0[v] = (q >> 32) ^ c1[v] ^ (zero + k0);
        c1[v] = q;
        c2[v] = (p >> 32) ^ c3[v] ^ (zero + k1);
        c3[v] = p;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    EACH { /* words 0 and 1, then 2 and 3 of a block stand in one lane (little endian); zipping makes blocks whole */
      lanes low = (c0[v] & 0xffffffffu) | c1[v] << 32, high = (c2[v] & 0xffffffffu) | c3[v] << 32;
      lanes one = ZIP(low, high, 0), two = ZIP(low, high, 1);
      memcpy(words + 4 * (j + v * LANES), &one, sizeof one);
      memcpy(words + 4 * (j + v * LANES) + 2 * LANES, &two, sizeof two);
    }
  }
}

enum made { RAND, UNIFORM, NORMAL, WHOLE, CHANCE, DROPPED };

typedef struct random_job {
  enum made made;
  double first, spread; /* UNIFORM: low, high - low; NORMAL: mean, standard deviation */
  int64_t low;          /* WHOLE: low + (word * count >> 32) */
  uint64_t count;
  haian_walk walk;  /* row-major; tensor 0 = out, 1 = x, 2 = mask */
  char *out, *mask; /* mask may be NULL */
  const char *x;
  uint64_t seed, offset;
  uint32_t threshold; /* an element is kept where word >> 8 reaches it: 0 keeps all, 2^24 none */
  int32_t dtype;
  double scale;
  bool contiguous, stream;
} random_job;

/* n elements from their words; n at most WORDS (float64: WORDS / 2). */
static void uniform(int32_t dtype, const uint32_t *restrict w, void *restrict to, int64_t n) {
  float wide[WORDS];
  if (dtype == HAIAN_F32) {
    float *y = to;
    for (int64_t i = 0; i < n; i++) y[i] = (float)(int32_t)(w[i] >> 8) * 0x1p-24f;
  } else if (dtype == HAIAN_F64) {
    double *y = to;
    for (int64_t i = 0; i < n; i++) {
      uint64_t k = ((uint64_t)w[2 * i] << 21) ^ (w[2 * i + 1] >> 11); /* 53 bits */
      uint64_t low = (k & 0xffffffffu) | 0x4330000000000000u, high = (k >> 32) | 0x4530000000000000u;
      double below, above; /* 2^52 + low half, 2^84 + 2^32 * high half: exact, and vector code without AVX-512 too */
      memcpy(&below, &low, 8);
      memcpy(&above, &high, 8);
      y[i] = ((above - (0x1p84 + 0x1p52)) + below) * 0x1p-53;
    }
  } else if (dtype == HAIAN_F16) { /* 11 bits, 8 bits: exactly representable, the conversions do not round */
    for (int64_t i = 0; i < n; i++) wide[i] = (float)(int32_t)(w[i] >> 21) * 0x1p-11f;
    HAIAN_SYM(f32_to_f16)(wide, to, n);
  } else {
    for (int64_t i = 0; i < n; i++) wide[i] = (float)(int32_t)(w[i] >> 24) * 0x1p-8f;
    HAIAN_SYM(f32_to_bf16)(wide, to, n);
  }
}

/* sin(f pi / 2) and cos(f pi / 2) for |f| <= 1/2: Taylor series, whose next term is below 2^-28 and 2^-57 of the result */
#define QUARTER_TURN(T, name, half_pi, sine, cosine)          \
  HAIAN_INLINE void name(T f, T *restrict s, T *restrict c) { \
    T x = f * half_pi, z = x * x, p, q;                       \
    sine;                                                     \
    cosine;                                                   \
    *s = x + x * (z * p);                                     \
    *c = (T)1 + z * q;                                        \
  }
QUARTER_TURN(float, quarter_turnf, 0x1.921fb6p+0f,
             p = ((z * (1 / 362880.0f) - 1 / 5040.0f) * z + 1 / 120.0f) * z - 1 / 6.0f,
             q = (((z * (-1 / 3628800.0f) + 1 / 40320.0f) * z - 1 / 720.0f) * z + 1 / 24.0f) * z - 0.5f)
QUARTER_TURN(
    double, quarter_turn, 0x1.921fb54442d18p+0,
    p = ((((((z * (1 / 355687428096000.0) - 1 / 1307674368000.0) * z + 1 / 6227020800.0) * z - 1 / 39916800.0) * z +
           1 / 362880.0) *
              z -
          1 / 5040.0) *
             z +
         1 / 120.0) *
            z -
        1 / 6.0,
    q = (((((((z * (1 / 20922789888000.0) - 1 / 87178291200.0) * z + 1 / 479001600.0) * z - 1 / 3628800.0) * z +
            1 / 40320.0) *
               z -
           1 / 720.0) *
              z +
          1 / 24.0) *
             z -
         0.5))

/* n normal numbers, in pairs r cos(2 pi v), r sin(2 pi v) with r = sqrt(-2 log u), u in (0, 1], v in [0, 1) (Box & Muller
 * 1958).  A whole number of quarter turns leaves v exactly, so that values near 0 keep their digits. */
static void normal(const random_job *job, const uint32_t *restrict w, void *to, int64_t n) {
  if (job->dtype == HAIAN_F64) {
    double made[WORDS / 2], mean = job->first, std = job->spread;
    for (int64_t i = 0; i < (n + 1) / 2; i++) {
      double u = (double)(int64_t)((((uint64_t)w[4 * i] << 21) ^ (w[4 * i + 1] >> 11)) + 1) * 0x1p-53;
      double t = (double)(int64_t)(((uint64_t)w[4 * i + 2] << 21) ^ (w[4 * i + 3] >> 11)) * 0x1p-51, s, c;
      double turns = rint(t), r = sqrt(-2.0 * haian_log(u));
      int64_t q = (int64_t)turns;
      quarter_turn(t - turns, &s, &c);
      double x = q & 1 ? -s : c, y = q & 1 ? c : s;
      made[2 * i] = mean + std * (r * (q & 2 ? -x : x));
      made[2 * i + 1] = mean + std * (r * (q & 2 ? -y : y));
    }
    memcpy(to, made, (size_t)n * sizeof(double));
    return;
  }
  float made[WORDS], mean = (float)job->first, std = (float)job->spread;
  for (int64_t i = 0; i < (n + 1) / 2; i++) {
    float u = (float)(int32_t)((w[2 * i] >> 8) + 1) * 0x1p-24f, t = (float)(int32_t)(w[2 * i + 1] >> 8) * 0x1p-22f;
    float turns = rintf(t), r = sqrtf(-2.0f * haian_logf(u)), s, c;
    int32_t q = (int32_t)turns;
    quarter_turnf(t - turns, &s, &c);
    float x = haian_pickf(q & 1, -s, c), y = haian_pickf(q & 1, c, s);
    made[2 * i] = mean + std * (r * haian_pickf(q & 2, -x, x));
    made[2 * i + 1] = mean + std * (r * haian_pickf(q & 2, -y, y));
  }
  if (job->dtype == HAIAN_F32) memcpy(to, made, (size_t)n * sizeof(float));
  else if (job->dtype == HAIAN_F16) HAIAN_SYM(f32_to_f16)(made, to, n);
  else HAIAN_SYM(f32_to_bf16)(made, to, n);
}

/* low + spread * u with the 24 bits of float32, or 53 of float64 */
static void between(const random_job *job, const uint32_t *restrict w, void *to, int64_t n) {
  double wide[WORDS];
  float made[WORDS], low = (float)job->first, spread = (float)job->spread;
  if (job->dtype == HAIAN_F64) {
    uniform(HAIAN_F64, w, wide, n);
    for (int64_t i = 0; i < n; i++) wide[i] = job->first + job->spread * wide[i];
    memcpy(to, wide, (size_t)n * sizeof(double));
    return;
  }
  for (int64_t i = 0; i < n; i++) made[i] = low + spread * ((float)(int32_t)(w[i] >> 8) * 0x1p-24f);
  if (job->dtype == HAIAN_F32) memcpy(to, made, (size_t)n * sizeof(float));
  else if (job->dtype == HAIAN_F16) HAIAN_SYM(f32_to_f16)(made, to, n);
  else HAIAN_SYM(f32_to_bf16)(made, to, n);
}

#define WHOLE_AS(T) \
  for (int64_t i = 0; i < n; i++) ((T *)to)[i] = (T)(job->low + (int64_t)((uint64_t)w[i] * job->count >> 32))
static void whole(const random_job *job, const uint32_t *restrict w, void *to, int64_t n) {
  switch (haian_itemsize(job->dtype)) { /* count at most 2^32: no product passes 64 bits */
    case 1:
      WHOLE_AS(uint8_t);
      return;
    case 2:
      WHOLE_AS(uint16_t);
      return;
    case 4:
      WHOLE_AS(uint32_t);
      return;
    default:
      WHOLE_AS(uint64_t);
  }
}

/* 1 where the 24-bit uniform number is below the element of p, else 0 (NaN: 0) */
static void chance(int32_t dtype, const uint32_t *restrict w, const void *from, void *to, int64_t n) {
  float p[WORDS];
  if (dtype == HAIAN_F64) {
    const double *wide = from;
    for (int64_t i = 0; i < n; i++) ((double *)to)[i] = (double)(int32_t)(w[i] >> 8) * 0x1p-24 < wide[i] ? 1.0 : 0.0;
    return;
  }
  if (dtype == HAIAN_F32) memcpy(p, from, (size_t)n * sizeof(float));
  else if (dtype == HAIAN_F16) HAIAN_SYM(f16_to_f32)(from, p, n);
  else HAIAN_SYM(bf16_to_f32)(from, p, n);
  if (dtype == HAIAN_F32) {
    for (int64_t i = 0; i < n; i++) ((float *)to)[i] = (float)(int32_t)(w[i] >> 8) * 0x1p-24f < p[i] ? 1.0f : 0.0f;
  } else {
    uint16_t one = dtype == HAIAN_F16 ? 0x3c00 : 0x3f80;
    for (int64_t i = 0; i < n; i++) ((uint16_t *)to)[i] = (float)(int32_t)(w[i] >> 8) * 0x1p-24f < p[i] ? one : 0;
  }
}

static void make(const random_job *job, const uint32_t *words, const void *from, void *to, int64_t n) {
  if (job->made == UNIFORM) between(job, words, to, n);
  else if (job->made == NORMAL) normal(job, words, to, n);
  else if (job->made == WHOLE) whole(job, words, to, n);
  else if (job->made == CHANCE) chance(job->dtype, words, from, to, n);
  else uniform(job->dtype, words, to, n);
}

/* y = x * scale where kept, else 0; keep gets 1 or 0. */
static void drop(const random_job *job, const uint32_t *restrict w, const void *from, void *to, uint8_t *restrict keep,
                 int64_t n) {
  uint32_t threshold = job->threshold;
  double scale64 = job->scale;
  float scale = (float)scale64;
  if (job->mask)
    for (int64_t i = 0; i < n; i++) keep[i] = (w[i] >> 8) >= threshold;
  if (job->dtype == HAIAN_F32) {
    const float *restrict x = from;
    float *restrict y = to;
    for (int64_t i = 0; i < n; i++) y[i] = (w[i] >> 8) >= threshold ? x[i] * scale : 0.0f;
  } else if (job->dtype == HAIAN_F64) {
    const double *restrict x = from;
    double *restrict y = to;
    for (int64_t i = 0; i < n; i++) y[i] = (w[i] >> 8) >= threshold ? x[i] * scale64 : 0.0;
  } else {
    float wide[WORDS];
    if (job->dtype == HAIAN_F16) HAIAN_SYM(f16_to_f32)(from, wide, n);
    else HAIAN_SYM(bf16_to_f32)(from, wide, n);
    for (int64_t i = 0; i < n; i++) wide[i] = (w[i] >> 8) >= threshold ? wide[i] * scale : 0.0f;
    if (job->dtype == HAIAN_F16) HAIAN_SYM(f32_to_f16)(wide, to, n);
    else HAIAN_SYM(f32_to_bf16)(wide, to, n);
  }
}

/* Moves n elements between a row-major place of tensor t and a packed array; advances the place. */
static void exchange(const haian_walk *w, haian_place *place, int t, char *memory, char *packed, int64_t n,
                     int64_t item, bool gather) {
  int last = w->ndim - 1;
  while (n > 0) {
    int64_t room = last < 0 ? 1 : w->shape[last] - place->at[last], step = last < 0 ? 0 : w->stride[last][t];
    if (room > n) room = n;
    for (int64_t i = 0; i < room; i++, packed += item) {
      char *element = memory + (place->offset[t] + i * step) * item;
      memcpy(gather ? packed : element, gather ? element : packed, (size_t)item);
    }
    n -= room;
    if (last < 0) return;
    place->at[last] += room - 1;
    for (int k = 0; k < w->tensors; k++) place->offset[k] += (room - 1) * w->stride[last][k];
    haian_place_next(place, w, w->ndim);
  }
}

/* Units: groups of WORDS elements (float64: WORDS / 2), so that a group begins at a block. */
static void random_groups(void *ctx, int64_t lo, int64_t hi) {
  const random_job *job = ctx;
  int64_t item = haian_itemsize(job->dtype), total = haian_walk_rows(&job->walk, job->walk.ndim);
  int64_t group = job->x || job->dtype != HAIAN_F64 ? WORDS : WORDS / 2;
  _Alignas(64) uint32_t words[WORDS];
  _Alignas(64) char made[WORDS * 8], taken[WORDS * 8];
  _Alignas(64) uint8_t keep[WORDS];
  haian_place out, x, mask;
  haian_place_seek(&out, &job->walk, job->walk.ndim, lo * group);
  x = mask = out;
  for (; lo < hi; lo++) {
    int64_t i = lo * group, n = total - i < group ? total - i : group;
    philox(job->seed, job->offset, (uint64_t)lo * BLOCKS, words);
    const char *from = taken;
    if (job->x && job->contiguous) from = job->x + i * item;
    else if (job->x) exchange(&job->walk, &x, 1, (char *)(uintptr_t)job->x, taken, n, item, true);
    char *to = job->contiguous && !job->stream ? job->out + i * item : made;
    if (job->made == DROPPED) drop(job, words, from, to, keep, n);
    else make(job, words, from, to, n);
    if (job->contiguous && job->stream) haian_copy_run(job->out + i * item, made, n * item, true);
    if (!job->contiguous) exchange(&job->walk, &out, 0, job->out, made, n, item, false);
    if (job->mask && job->contiguous) memcpy(job->mask + i, keep, (size_t)n);
    else if (job->mask) exchange(&job->walk, &mask, 2, job->mask, (char *)keep, n, 1, false);
  }
  if (job->stream) haian_stream_fence();
}

/* x and mask may be NULL. */
static void run_job(random_job *job, const haian_tensor *out, const haian_tensor *x, const haian_tensor *mask) {
  haian_walk *w = &job->walk;
  w->ndim = out->ndim;
  w->tensors = 3;
  for (int d = 0; d < out->ndim; d++) {
    w->shape[d] = out->shape[d];
    w->stride[d][0] = out->stride[d];
    w->stride[d][1] = (x ? x : out)->stride[d];
    w->stride[d][2] = (mask ? mask : out)->stride[d];
  }
  if (out->numel == 0) return;
  haian_walk_merge(w);
  job->out = out->data;
  job->x = x ? x->data : NULL;
  job->mask = mask ? mask->data : NULL;
  job->dtype = out->dtype;
  job->contiguous = haian_is_contiguous(out) && (!x || haian_is_contiguous(x)) && (!mask || haian_is_contiguous(mask));
  job->stream = job->contiguous && out->numel * haian_itemsize(out->dtype) >= HAIAN_STREAM_BYTES;
  int64_t group = x || out->dtype != HAIAN_F64 ? WORDS : WORDS / 2;
  haian_parallel_for((out->numel + group - 1) / group, GRAIN / WORDS, random_groups, job);
}

static double number_of(const haian_attr *a) { return a->kind == HAIAN_INT ? (double)a->i : a->f; }

/* Fills out from shape, `numbers` numbers, seed, offset and dtype. */
static int32_t run_made(const haian_args *args, const char *op, int numbers, uint32_t dtypes, random_job *job) {
  int seed = 1 + numbers;
  HAIAN_REQUIRE(args->n_out == 1 && args->n_attr == numbers + 4 && args->attr[0].kind == HAIAN_INTS &&
                    args->attr[seed].kind == HAIAN_INT && args->attr[seed + 1].kind == HAIAN_INT,
                HAIAN_INVALID_ARGUMENT,
                "%s: %d outputs, %d attributes; needs out, and shape, %d numbers, seed, offset, dtype", op, args->n_out,
                args->n_attr, numbers);
  for (int i = 1; i <= numbers; i++)
    HAIAN_REQUIRE(args->attr[i].kind == HAIAN_INT || (args->attr[i].kind == HAIAN_FLOAT && job->made != WHOLE),
                  HAIAN_INVALID_ARGUMENT, "%s: attribute %d is no number; pass one", op, i);
  const haian_tensor *out = args->out[0];
  const haian_attr *shape = &args->attr[0];
  HAIAN_REQUIRE((dtypes >> out->dtype) & 1, HAIAN_DTYPE, "%s: out is %s; takes %s", op, haian_dtype_name(out->dtype),
                job->made == WHOLE ? "int8 to int64, uint8" : "float16, bfloat16, float32, float64");
  HAIAN_REQUIRE(shape->count == out->ndim && memcmp(shape->v, out->shape, (size_t)out->ndim * sizeof *shape->v) == 0,
                HAIAN_SHAPE, "%s: out is %s; needs the given shape of %d axes", op, HAIAN_SHAPE_OF(out), shape->count);
  job->seed = (uint64_t)args->attr[seed].i;
  job->offset = (uint64_t)args->attr[seed + 1].i;
  if (job->made == WHOLE) {
    int64_t low = args->attr[1].i, high = args->attr[2].i;
    int bits = 8 * haian_itemsize(out->dtype), sign = out->dtype == HAIAN_U8 ? 0 : 1;
    int64_t most = bits == 64 ? INT64_MAX : (INT64_C(1) << (bits - sign)) - 1, least = sign ? -most - 1 : 0;
    HAIAN_REQUIRE(low < high && low >= least && high - 1 <= most && (uint64_t)high - (uint64_t)low <= UINT64_C(1) << 32,
                  HAIAN_INVALID_ARGUMENT,
                  "%s: low %lld, high %lld; needs low < high, 2^32 numbers at most, all of them %s", op, (long long)low,
                  (long long)high, haian_dtype_name(out->dtype));
    job->low = low;
    job->count = (uint64_t)high - (uint64_t)low;
  } else if (numbers == 2) {
    job->first = number_of(&args->attr[1]);
    job->spread = number_of(&args->attr[2]) - (job->made == UNIFORM ? job->first : 0.0);
    HAIAN_REQUIRE(job->spread >= 0 && job->spread < INFINITY && job->first - job->first == 0, HAIAN_INVALID_ARGUMENT,
                  "%s: %g and %g; needs %s", op, job->first, number_of(&args->attr[2]),
                  job->made == UNIFORM ? "finite low <= high" : "a finite mean and a standard deviation of 0 or more");
  }
  run_job(job, out, NULL, NULL);
  return HAIAN_OK;
}
#define INTS \
  (HAIAN_BIT(HAIAN_I8) | HAIAN_BIT(HAIAN_I16) | HAIAN_BIT(HAIAN_I32) | HAIAN_BIT(HAIAN_I64) | HAIAN_BIT(HAIAN_U8))
static int32_t run_rand(const haian_args *args) {
  return run_made(args, "rand", 0, HAIAN_FLOATS, &(random_job){.made = RAND});
}
static int32_t run_uniform(const haian_args *args) {
  return run_made(args, "uniform", 2, HAIAN_FLOATS, &(random_job){.made = UNIFORM});
}
static int32_t run_normal(const haian_args *args) {
  return run_made(args, "normal", 2, HAIAN_FLOATS, &(random_job){.made = NORMAL});
}
static int32_t run_randint(const haian_args *args) {
  return run_made(args, "randint", 2, INTS, &(random_job){.made = WHOLE});
}

static int32_t run_bernoulli(const haian_args *args) {
  HAIAN_REQUIRE(args->n_in == 1 && args->n_out == 1 && args->n_attr == 2 && args->in[0] &&
                    args->attr[0].kind == HAIAN_INT && args->attr[1].kind == HAIAN_INT,
                HAIAN_INVALID_ARGUMENT,
                "bernoulli: %d inputs, %d outputs, %d attributes; needs p, out, and seed, offset", args->n_in,
                args->n_out, args->n_attr);
  const haian_tensor *p = args->in[0], *out = args->out[0];
  HAIAN_REQUIRE(((HAIAN_FLOATS >> p->dtype) & 1) && out->dtype == p->dtype, HAIAN_DTYPE,
                "bernoulli: p is %s and out %s; needs one floating dtype", haian_dtype_name(p->dtype),
                haian_dtype_name(out->dtype));
  HAIAN_REQUIRE(haian_same_shape(p, out), HAIAN_SHAPE, "bernoulli: p is %s and out %s; they must be equal",
                HAIAN_SHAPE_OF(p), HAIAN_SHAPE_OF(out));
  random_job job = {.made = CHANCE, .seed = (uint64_t)args->attr[0].i, .offset = (uint64_t)args->attr[1].i};
  run_job(&job, out, p, NULL);
  return HAIAN_OK;
}

static int32_t run_dropout_as(const haian_args *args, const char *op, int outputs) {
  HAIAN_REQUIRE(args->n_in == 1 && args->n_out == outputs && args->n_attr == 3 && args->in[0] &&
                    (args->attr[0].kind == HAIAN_FLOAT || args->attr[0].kind == HAIAN_INT) &&
                    args->attr[1].kind == HAIAN_INT && args->attr[2].kind == HAIAN_INT,
                HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs x, %d outputs, and p, seed, offset", op, args->n_in,
                args->n_out, args->n_attr, outputs);
  const haian_tensor *x = args->in[0], *out = args->out[0], *mask = outputs == 2 ? args->out[1] : NULL;
  HAIAN_REQUIRE((HAIAN_FLOATS >> x->dtype) & 1, HAIAN_DTYPE, "%s: x is %s; takes float16, bfloat16, float32, float64",
                op, haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(out->dtype == x->dtype, HAIAN_DTYPE, "%s: out is %s and x is %s; they must be equal", op,
                haian_dtype_name(out->dtype), haian_dtype_name(x->dtype));
  HAIAN_REQUIRE(!mask || mask->dtype == HAIAN_BOOL, HAIAN_DTYPE, "%s: mask is %s; needs bool", op,
                haian_dtype_name(mask->dtype));
  HAIAN_REQUIRE(haian_same_shape(x, out) && (!mask || haian_same_shape(x, mask)), HAIAN_SHAPE,
                "%s: x is %s, out %s%s%s; they must be equal", op, HAIAN_SHAPE_OF(x), HAIAN_SHAPE_OF(out),
                mask ? ", mask " : "", mask ? HAIAN_SHAPE_OF(mask) : "");
  double p = args->attr[0].kind == HAIAN_INT ? (double)args->attr[0].i : args->attr[0].f;
  HAIAN_REQUIRE(p >= 0 && p <= 1, HAIAN_INVALID_ARGUMENT, "%s: p is %g; needs 0 <= p <= 1", op, p);
  double steps = p * 0x1p24; /* exact; word * 2^-24 >= p where word >= the next integer */
  uint32_t threshold = (uint32_t)steps + ((double)(uint32_t)steps < steps);
  random_job job = {.made = DROPPED,
                    .seed = (uint64_t)args->attr[1].i,
                    .offset = (uint64_t)args->attr[2].i,
                    .threshold = threshold,
                    .scale = p < 1 ? 1.0 / (1.0 - p) : 0.0};
  run_job(&job, out, x, mask);
  return HAIAN_OK;
}

static int32_t run_dropout(const haian_args *args) { return run_dropout_as(args, "dropout", 1); }
static int32_t run_native_dropout(const haian_args *args) { return run_dropout_as(args, "native_dropout", 2); }

const haian_kernel_entry HAIAN_TABLE(random)[] = {
    {"rand", run_rand, HAIAN_FLOATS, NULL},
    {"uniform", run_uniform, HAIAN_FLOATS, NULL},
    {"normal", run_normal, HAIAN_FLOATS, NULL},
    {"randint", run_randint, INTS, NULL},
    {"bernoulli", run_bernoulli, HAIAN_FLOATS, NULL},
    {"dropout", run_dropout, HAIAN_FLOATS, NULL},
    {"native_dropout", run_native_dropout, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
