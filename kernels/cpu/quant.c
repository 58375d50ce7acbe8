/* Quantised tensors: codes and scales by group, back again, and products of quantised matrices.
 * weight_int8_mm, weight_int4_mm and scaled_mm_fp8 decode the weight block by block into float panels of the packed
 * product (few rows: into a line of float, one pass over the weight); qlinear_int8 sums in int32.
 * Not here: choosing scales from data (calibration), quantised convolution. */
#include "float8.h"
#include "gemm/gemm.h"
#include "strided.h"
#include <stdatomic.h>

#define DEEP 256        /* terms of a block: 32 columns of it are 32 KiB of float */
#define LANES 32        /* partial sums of a row that is multiplied as it is read */
#define NARROW 4        /* rows of x up to which that pays */
#define ROWS 512        /* rows of x packed together: 8 MiB of float at 4096 terms */
#define COLUMNS 128     /* columns a task makes */
#define MOST_INT 131071 /* terms of -128 * -128 that int32 holds */
#define CODES (HAIAN_BIT(HAIAN_I8) | HAIAN_BIT(HAIAN_U8) | HAIAN_BIT(HAIAN_F8E4M3) | HAIAN_BIT(HAIAN_F8E5M2))
#define NUMBERS (HAIAN_BIT(HAIAN_F32) | HAIAN_BIT(HAIAN_F16) | HAIAN_BIT(HAIAN_BF16))
#define IS(t, set) (((set) >> (t)->dtype) & 1)

/* ---- runs ------------------------------------------------------------------------------------------------------- */
/* n elements `step` apart, n at most DEEP, to float */
static void read_line(int32_t dtype, const void *from, int64_t step, int64_t n, float *restrict to) {
  const uint8_t *b = from;
  const uint16_t *h = from;
  uint8_t bytes[DEEP];
  uint16_t halves[DEEP];
  switch (dtype) {
    case HAIAN_F32:
      for (int64_t i = 0; i < n; i++) to[i] = ((const float *)from)[i * step];
      return;
    case HAIAN_F16:
    case HAIAN_BF16:
      if (step != 1) {
        for (int64_t i = 0; i < n; i++) halves[i] = h[i * step];
        h = halves;
      }
      if (dtype == HAIAN_F16) HAIAN_SYM(f16_to_f32)(h, to, n);
      else HAIAN_SYM(bf16_to_f32)(h, to, n);
      return;
    default:
      if (step != 1) {
        for (int64_t i = 0; i < n; i++) bytes[i] = b[i * step];
        b = bytes;
      }
  }
  if (dtype == HAIAN_I8)
    for (int64_t i = 0; i < n; i++) to[i] = (float)(int8_t)b[i];
  else if (dtype == HAIAN_U8)
    for (int64_t i = 0; i < n; i++) to[i] = (float)b[i];
  else if (dtype == HAIAN_F8E4M3)
    for (int64_t i = 0; i < n; i++) to[i] = haian_load_f8e4m3(b[i]);
  else
    for (int64_t i = 0; i < n; i++) to[i] = haian_load_f8e5m2(b[i]);
}

/* n floats, n at most DEEP, to elements `step` apart */
static void write_line(int32_t dtype, const float *restrict from, void *to, int64_t step, int64_t n) {
  uint16_t halves[DEEP];
  if (dtype == HAIAN_F32) {
    float *y = to;
    for (int64_t i = 0; i < n; i++) y[i * step] = from[i];
    return;
  }
  uint16_t *h = step == 1 ? to : halves;
  if (dtype == HAIAN_F16) HAIAN_SYM(f32_to_f16)(from, h, n);
  else HAIAN_SYM(f32_to_bf16)(from, h, n);
  if (step != 1)
    for (int64_t i = 0; i < n; i++) ((uint16_t *)to)[i * step] = h[i];
}

static void read_long(const haian_tensor *t, int64_t at, int64_t step, int64_t n, float *to) {
  for (int64_t i = 0; i < n; i += DEEP)
    read_line(t->dtype, (const char *)t->data + (at + i * step) * haian_itemsize(t->dtype), step,
              n - i < DEEP ? n - i : DEEP, to + i);
}

/* ---- by group --------------------------------------------------------------------------------------------------- */
typedef struct group_job {
  const haian_tensor *x, *codes, *scales, *zeros, *y;
  int64_t group, per; /* elements of a group, groups of a row */
  float least;        /* of the largest magnitude */
} group_job;

/* where row number `row` of the leading axes begins, in elements */
static int64_t row_start(const haian_tensor *t, int64_t row) {
  int64_t at = 0;
  for (int d = t->ndim - 2; d >= 0; d--) {
    at += row % t->shape[d] * t->stride[d];
    row /= t->shape[d];
  }
  return at;
}
static int64_t last_step(const haian_tensor *t) { return t->stride[t->ndim - 1]; }
static int64_t place_of(const haian_tensor *t, int64_t row, int64_t i) { return row_start(t, row) + i * last_step(t); }

static void encode(int32_t dtype, const float *restrict x, float scale, void *to, int64_t step, int64_t n) {
  uint8_t made[DEEP];
  float scaled[DEEP];
  uint8_t *restrict code = step == 1 ? to : made;
  if (dtype == HAIAN_I8) {
    for (int64_t i = 0; i < n; i++) {
      float q = rintf(x[i] / scale);
      q = q > 127.0f ? 127.0f : q;
      q = q < -127.0f ? -127.0f : q;
      code[i] = (uint8_t)(int8_t)(int32_t)(q == q ? q : 0.0f);
    }
  } else {
    for (int64_t i = 0; i < n; i++) {
      float q = x[i] / scale;
      q = haian_pickf(q > 448.0f, 448.0f, q);
      scaled[i] = haian_pickf(q < -448.0f, -448.0f, q);
    }
    for (int64_t i = 0; i < n; i++) code[i] = haian_store_f8e4m3(scaled[i]);
  }
  if (step != 1)
    for (int64_t i = 0; i < n; i++) ((uint8_t *)to)[i * step] = code[i];
}

static void quantize_groups(void *ctx, int64_t lo, int64_t hi) {
  const group_job *j = ctx;
  float line[DEEP], most_code = j->codes->dtype == HAIAN_I8 ? 127.0f : 448.0f;
  int64_t item = haian_itemsize(j->x->dtype), step = last_step(j->x), code_step = last_step(j->codes);
  for (; lo < hi; lo++) {
    int64_t row = lo / j->per, g = lo % j->per, first = g * j->group;
    const char *x = (const char *)j->x->data + place_of(j->x, row, first) * item;
    char *code = (char *)j->codes->data + place_of(j->codes, row, first);
    uint32_t most = haian_bits32(j->least); /* magnitudes are in order of their bits, NaN above all */
    for (int64_t i = 0; i < j->group; i += DEEP) {
      int64_t n = j->group - i < DEEP ? j->group - i : DEEP;
      read_line(j->x->dtype, x + i * step * item, step, n, line);
      for (int64_t k = 0; k < n; k++) {
        uint32_t size = haian_bits32(line[k]) & 0x7fffffffu;
        most = size > most ? size : most;
      }
    }
    float scale = haian_float(most) / most_code;
    ((float *)j->scales->data)[place_of(j->scales, row, g)] = scale;
    for (int64_t i = 0; i < j->group; i += DEEP) {
      int64_t n = j->group - i < DEEP ? j->group - i : DEEP;
      if (j->group > DEEP) read_line(j->x->dtype, x + i * step * item, step, n, line);
      encode(j->codes->dtype, line, scale, code + i * code_step, code_step, n);
    }
  }
}

static void dequantize_groups(void *ctx, int64_t lo, int64_t hi) {
  const group_job *j = ctx;
  float line[DEEP], scale, zero = 0.0f;
  int64_t item = haian_itemsize(j->y->dtype), step = last_step(j->y), code_step = last_step(j->codes);
  for (; lo < hi; lo++) {
    int64_t row = lo / j->per, g = lo % j->per, first = g * j->group;
    const char *code = (const char *)j->codes->data + place_of(j->codes, row, first);
    char *y = (char *)j->y->data + place_of(j->y, row, first) * item;
    read_long(j->scales, place_of(j->scales, row, g), 1, 1, &scale);
    if (j->zeros) read_long(j->zeros, place_of(j->zeros, row, g), 1, 1, &zero);
    for (int64_t i = 0; i < j->group; i += DEEP) {
      int64_t n = j->group - i < DEEP ? j->group - i : DEEP;
      read_line(j->codes->dtype, code + i * code_step, code_step, n, line);
      for (int64_t k = 0; k < n; k++) line[k] = (line[k] - zero) * scale;
      write_line(j->y->dtype, line, y + i * step * item, step, n);
    }
  }
}

/* whole and parts have the same leading axes, and whole's last axis is part's times group */
static int32_t check_groups(const char *op, const haian_tensor *whole, const haian_tensor *part, const char *name,
                            int64_t group) {
  HAIAN_REQUIRE(group >= 1, HAIAN_INVALID_ARGUMENT, "%s: group_size is %lld; needs 1 or more", op, (long long)group);
  bool fits = whole->ndim >= 1 && part->ndim == whole->ndim;
  for (int d = 0; fits && d < whole->ndim; d++)
    fits = d < whole->ndim - 1 ? part->shape[d] == whole->shape[d]
                               : whole->shape[d] % group == 0 && part->shape[d] == whole->shape[d] / group;
  HAIAN_REQUIRE(fits, HAIAN_SHAPE, "%s: %s is %s for %s in groups of %lld; needs one number a group of the last axis",
                op, name, HAIAN_SHAPE_OF(part), HAIAN_SHAPE_OF(whole), (long long)group);
  return HAIAN_OK;
}

static double number_of(const haian_attr *a) { return a->kind == HAIAN_INT ? (double)a->i : a->f; }

static int32_t quantize(const haian_args *args) {
  const char *op = "quantize_per_token_group";
  HAIAN_REQUIRE(
      args->n_in == 1 && args->n_out == 2 && args->n_attr == 3 && args->in[0] && args->attr[0].kind == HAIAN_INT,
      HAIAN_INVALID_ARGUMENT, "%s: needs x, outputs codes and scales, attributes group_size, dtype, eps", op);
  group_job j = {.x = args->in[0], .codes = args->out[0], .scales = args->out[1], .group = args->attr[0].i};
  HAIAN_REQUIRE(IS(j.x, NUMBERS), HAIAN_DTYPE, "%s: x is %s; takes float32, float16, bfloat16", op,
                haian_dtype_name(j.x->dtype));
  HAIAN_REQUIRE((j.codes->dtype == HAIAN_I8 || j.codes->dtype == HAIAN_F8E4M3) && j.scales->dtype == HAIAN_F32,
                HAIAN_DTYPE, "%s: codes are %s and scales %s; needs int8 or float8_e4m3fn, and float32", op,
                haian_dtype_name(j.codes->dtype), haian_dtype_name(j.scales->dtype));
  HAIAN_REQUIRE(haian_same_shape(j.x, j.codes), HAIAN_SHAPE, "%s: x is %s and codes %s; they must be equal", op,
                HAIAN_SHAPE_OF(j.x), HAIAN_SHAPE_OF(j.codes));
  int32_t bad = check_groups(op, j.x, j.scales, "scales", j.group);
  if (bad) return bad;
  double least = number_of(&args->attr[2]);
  HAIAN_REQUIRE(least >= 1e-30 && least <= 1e30, HAIAN_INVALID_ARGUMENT, "%s: eps is %g; needs 1e-30 to 1e30", op,
                least);
  j.least = (float)least;
  j.per = j.x->shape[j.x->ndim - 1] / j.group;
  if (j.x->numel == 0) return HAIAN_OK;
  haian_parallel_for(j.scales->numel, 1 + HAIAN_GRAIN_BYTES / 8 / j.group, quantize_groups, &j);
  return HAIAN_OK;
}

static int32_t dequantize(const haian_args *args) {
  const char *op = "dequantize_per_group";
  HAIAN_REQUIRE(args->n_in == 3 && args->n_out == 1 && args->n_attr == 2 && args->in[0] && args->in[1] &&
                    args->attr[0].kind == HAIAN_INT,
                HAIAN_INVALID_ARGUMENT, "%s: needs codes, scales, zeros or none, one output, group_size and dtype", op);
  group_job j = {
      .codes = args->in[0], .scales = args->in[1], .zeros = args->in[2], .y = args->out[0], .group = args->attr[0].i};
  HAIAN_REQUIRE(IS(j.codes, CODES), HAIAN_DTYPE, "%s: codes are %s; takes int8, uint8, float8_e4m3fn, float8_e5m2", op,
                haian_dtype_name(j.codes->dtype));
  HAIAN_REQUIRE(IS(j.scales, NUMBERS) && IS(j.y, NUMBERS) && (!j.zeros || j.zeros->dtype == j.scales->dtype),
                HAIAN_DTYPE, "%s: scales are %s, the result %s; takes float32, float16, bfloat16, zeros like scales",
                op, haian_dtype_name(j.scales->dtype), haian_dtype_name(j.y->dtype));
  HAIAN_REQUIRE(haian_same_shape(j.codes, j.y), HAIAN_SHAPE, "%s: codes are %s and the result %s; they must be equal",
                op, HAIAN_SHAPE_OF(j.codes), HAIAN_SHAPE_OF(j.y));
  int32_t bad = check_groups(op, j.codes, j.scales, "scales", j.group);
  if (!bad && j.zeros) bad = check_groups(op, j.codes, j.zeros, "zeros", j.group);
  if (bad) return bad;
  j.per = j.codes->shape[j.codes->ndim - 1] / j.group;
  if (j.codes->numel == 0) return HAIAN_OK;
  haian_parallel_for(j.scales->numel, 1 + HAIAN_GRAIN_BYTES / 8 / j.group, dequantize_groups, &j);
  return HAIAN_OK;
}

/* ---- products ---------------------------------------------------------------------------------------------------- */
typedef struct product_job {
  const haian_kind *kind; /* of float */
  const haian_tensor *x, *weight, *y;
  const haian_tensor *scales, *zeros; /* of nibbles: (n, k / group); else NULL */
  int64_t m, n, k, group, w_n, w_k;   /* strides of the weight along columns of the result and along terms */
  int64_t from, rows;                 /* rows of x in hand */
  float *a;                           /* narrow: (m, k); else packed blocks of DEEP terms, `block` apart */
  int64_t block;
  const float *by_row, *by_column, *bias; /* (m), (n), (n) or NULL: the factors of a result, and what is added */
  atomic_bool failed;                     /* a thread had no memory for its panels */
  float value[256];                       /* of each byte of the weight (not of nibbles) */
} product_job;

static void look_up(const product_job *j, const uint8_t *from, int64_t step, int64_t n, float *restrict to) {
  const float *value = j->value;
  for (int64_t i = 0; i < n; i++) to[i] = value[from[i * step]];
}

/* terms [k0, k0 + n) of the weight's column `column`, n at most DEEP */
static void decode(const product_job *j, int64_t column, int64_t k0, int64_t n, float *restrict to) {
  const uint8_t *w = (const uint8_t *)j->weight->data + column * j->w_n;
  if (!j->scales) { /* a table beats taking float8 apart; int8 is converted by vectors */
    if (j->weight->dtype == HAIAN_I8) read_line(HAIAN_I8, w + k0 * j->w_k, j->w_k, n, to);
    else look_up(j, w + k0 * j->w_k, j->w_k, n, to);
    return;
  }
  uint8_t bytes[DEEP / 2];
  float scale[DEEP], zero[DEEP];
  const uint8_t *b = w + k0 / 2 * j->w_k;
  if (j->w_k != 1) {
    for (int64_t i = 0; i < n / 2; i++) bytes[i] = b[i * j->w_k];
    b = bytes;
  }
  for (int64_t i = 0; i < n / 2; i++) {
    to[2 * i] = (float)(b[i] & 15);
    to[2 * i + 1] = (float)(b[i] >> 4);
  }
  int64_t g0 = k0 / j->group, groups = (k0 + n - 1) / j->group - g0 + 1;
  const haian_tensor *s = j->scales, *z = j->zeros;
  read_long(s, column * s->stride[0] + g0 * s->stride[1], s->stride[1], groups, scale);
  read_long(z, column * z->stride[0] + g0 * z->stride[1], z->stride[1], groups, zero);
  for (int64_t g = 0; g < groups; g++) {
    int64_t first = (g0 + g) * j->group - k0, end = first + j->group < n ? first + j->group : n;
    for (int64_t i = first < 0 ? 0 : first; i < end; i++) to[i] = (to[i] - zero[g]) * scale[g];
  }
}

static void finish(const product_job *j, int64_t row, int64_t column, int64_t n, float *restrict line) {
  float factor = j->by_row[row];
  for (int64_t i = 0; i < n; i++) line[i] = line[i] * factor * j->by_column[column + i];
  if (j->bias)
    for (int64_t i = 0; i < n; i++) line[i] += j->bias[column + i];
  write_line(j->y->dtype, line,
             (char *)j->y->data + (row * j->y->stride[0] + column * j->y->stride[1]) * haian_itemsize(j->y->dtype),
             j->y->stride[1], n);
}

static void narrow_columns(void *ctx, int64_t lo, int64_t hi) {
  const product_job *j = ctx;
  float w[DEEP] __attribute__((aligned(64))), sums[NARROW][LANES] __attribute__((aligned(64)));
  for (; lo < hi; lo++) {
    memset(sums, 0, sizeof sums);
    for (int64_t k = 0; k < j->k; k += DEEP) {
      int64_t n = j->k - k < DEEP ? j->k - k : DEEP, whole = (n + LANES - 1) / LANES * LANES;
      decode(j, lo, k, n, w);
      for (int64_t i = n; i < whole; i++) w[i] = 0.0f;
      for (int64_t r = 0; r < j->m; r++) { /* rows of a are padded with zeros to whole LANES */
        const float *restrict a = j->a + r * j->block + k;
        float *restrict s = sums[r];
        for (int64_t i = 0; i < whole; i += LANES)
          for (int l = 0; l < LANES; l++) s[l] += a[i + l] * w[i + l];
      }
    }
    for (int64_t r = 0; r < j->m; r++) {
      for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) sums[r][l] += sums[r][l + half];
      finish(j, r, lo, 1, sums[r]);
    }
  }
}

static void pack_rows(void *ctx, int64_t lo, int64_t hi) {
  product_job *j = ctx;
  float *lines = HAIAN_SYM(workspace)(2, (size_t)(j->rows * DEEP) * sizeof(float));
  if (!lines) {
    atomic_store(&j->failed, true);
    return;
  }
  const haian_tensor *x = j->x;
  for (; lo < hi; lo++) {
    int64_t k = lo * DEEP, n = j->k - k < DEEP ? j->k - k : DEEP;
    for (int64_t r = 0; r < j->rows; r++)
      read_long(x, (j->from + r) * x->stride[0] + k * x->stride[1], x->stride[1], n, lines + r * n);
    j->kind->pack_a(j->a + lo * j->block, lines, n, 1, j->rows, n);
  }
}

static void wide_columns(void *ctx, int64_t lo, int64_t hi) {
  product_job *j = ctx;
  int64_t nr = j->kind->nr, width = (COLUMNS + nr - 1) / nr * nr;
  float *panel = HAIAN_SYM(workspace)(2, (size_t)(2 * width * DEEP + 64 + j->rows * width) * sizeof(float));
  if (!panel) {
    atomic_store(&j->failed, true);
    return;
  }
  float *lines = panel + width * DEEP + 64, *sums = lines + width * DEEP;
  for (; lo < hi; lo++) {
    int64_t first = lo * width, columns = j->n - first < width ? j->n - first : width;
    if (j->k == 0) memset(sums, 0, (size_t)(j->rows * width) * sizeof(float));
    for (int64_t k = 0; k < j->k; k += DEEP) {
      int64_t n = j->k - k < DEEP ? j->k - k : DEEP;
      if (j->w_n == 1 && j->w_k != 1 && !j->scales) { /* columns lie side by side */
        for (int64_t i = 0; i < n; i++)
          look_up(j, (const uint8_t *)j->weight->data + first + (k + i) * j->w_k, 1, columns, lines + i * columns);
        j->kind->pack_b(panel, lines, 1, columns, columns, n);
      } else {
        for (int64_t c = 0; c < columns; c++) decode(j, first + c, k, n, lines + c * n);
        j->kind->pack_b(panel, lines, n, 1, columns, n);
      }
      HAIAN_SYM(gemm_packed)(j->kind, j->rows, columns, n, j->a + k / DEEP * j->block, panel, nr, nr * n, sums, width,
                             k == 0);
    }
    for (int64_t r = 0; r < j->rows; r++) finish(j, j->from + r, first, columns, sums + r * width);
  }
}

/* the factors of rows and columns as floats, and the bias; NULL: no memory.  A tensor of one value counts everywhere. */
static bool factors(product_job *j, const haian_tensor *row, const haian_tensor *column, const haian_tensor *bias) {
  float *f = HAIAN_SYM(workspace)(3, (size_t)(j->m + 2 * j->n + 1) * sizeof(float));
  if (!f) return false;
  const haian_tensor *from[] = {row, column, bias};
  const float **to[] = {&j->by_row, &j->by_column, &j->bias};
  for (int i = 0; i < 3; i++) {
    int64_t n = i ? j->n : j->m;
    if (from[i]) read_long(from[i], 0, from[i]->shape[0] == n ? from[i]->stride[0] : 0, n, f);
    else
      for (int64_t k = 0; k < n; k++) f[k] = 1.0f;
    *to[i] = i < 2 || from[i] ? f : NULL;
    f += n;
  }
  return true;
}

#define NO_MEMORY(j, op)                                                                                        \
  haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory for blocks of %lld rows by %lld terms", op, (long long)(j)->m, \
             (long long)(j)->k)

/* (m, k) x weight (n columns, k terms) -> (m, n) */
static int32_t run_product(const char *op, product_job *j, const haian_tensor *row, const haian_tensor *column,
                           const haian_tensor *bias) {
  if (j->y->numel == 0) return HAIAN_OK;
  if (!factors(j, row, column, bias)) return NO_MEMORY(j, op);
  uint8_t byte[256];
  for (int i = 0; i < 256; i++) byte[i] = (uint8_t)i;
  if (!j->scales) read_line(j->weight->dtype, byte, 1, 256, j->value);
  if (j->m <= NARROW && (j->w_k == 1 || j->scales)) {
    j->block = (j->k + LANES - 1) / LANES * LANES;
    j->a = HAIAN_SYM(workspace)(1, (size_t)(j->m * j->block + 1) * sizeof(float));
    if (!j->a) return NO_MEMORY(j, op);
    memset(j->a, 0, (size_t)(j->m * j->block) * sizeof(float));
    for (int64_t r = 0; r < j->m; r++) read_long(j->x, r * j->x->stride[0], j->x->stride[1], j->k, j->a + r * j->block);
    haian_parallel_for(j->n, 1 + HAIAN_GRAIN_BYTES / (j->k + 64), narrow_columns, j);
    return HAIAN_OK;
  }
  j->kind = HAIAN_SYM(gemm_kind)(HAIAN_F32, HAIAN_F32, true);
  int64_t blocks = (j->k + DEEP - 1) / DEEP, most = j->m < ROWS ? j->m : ROWS;
  int64_t width = (COLUMNS + j->kind->nr - 1) / j->kind->nr * j->kind->nr;
  j->block = most * DEEP + 64; /* packing may write a vector past its end */
  j->a = HAIAN_SYM(workspace)(1, (size_t)(blocks * j->block + 64) * sizeof(float));
  if (!j->a) return NO_MEMORY(j, op);
  for (j->from = 0; j->from < j->m && !atomic_load(&j->failed); j->from += ROWS) {
    j->rows = j->m - j->from < ROWS ? j->m - j->from : ROWS;
    haian_parallel_for(blocks, 1, pack_rows, j);
    if (!atomic_load(&j->failed)) haian_parallel_for((j->n + width - 1) / width, 1, wide_columns, j);
  }
  return atomic_load(&j->failed) ? NO_MEMORY(j, op) : HAIAN_OK;
}

/* scale_a, scale_b, bias: one value, or one a row or column */
static int32_t check_vector(const char *op, const haian_tensor *t, const char *name, int64_t n, bool single) {
  HAIAN_REQUIRE(t->ndim == 1 && (t->shape[0] == n || (single && t->shape[0] == 1)), HAIAN_SHAPE,
                "%s: %s is %s; needs (%lld,)%s", op, name, HAIAN_SHAPE_OF(t), (long long)n, single ? " or (1,)" : "");
  return HAIAN_OK;
}

static int32_t check_product(const char *op, const haian_args *args, int inputs, int attrs, int64_t terms_a_byte,
                             product_job *j) {
  HAIAN_REQUIRE(args->n_in == inputs && args->n_out == 1 && args->n_attr == attrs, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs %d, 1, %d", op, args->n_in, args->n_out, args->n_attr,
                inputs, attrs);
  for (int i = 0; i < 3; i++)
    HAIAN_REQUIRE(args->in[i], HAIAN_INVALID_ARGUMENT, "%s: input %d is missing; pass a tensor", op, i);
  j->x = args->in[0];
  j->weight = args->in[1];
  j->y = args->out[0];
  HAIAN_REQUIRE(j->x->ndim == 2 && j->weight->ndim == 2 && j->y->ndim == 2, HAIAN_SHAPE,
                "%s: operands are %s and %s, the result %s; each needs 2 axes", op, HAIAN_SHAPE_OF(j->x),
                HAIAN_SHAPE_OF(j->weight), HAIAN_SHAPE_OF(j->y));
  bool turned = terms_a_byte == 0; /* (k, n) instead of (n, k) */
  j->m = j->x->shape[0];
  j->k = j->x->shape[1];
  j->n = j->weight->shape[turned ? 1 : 0];
  j->w_n = j->weight->stride[turned ? 1 : 0];
  j->w_k = j->weight->stride[turned ? 0 : 1];
  HAIAN_REQUIRE(j->weight->shape[turned ? 0 : 1] * (turned ? 1 : terms_a_byte) == j->k, HAIAN_SHAPE,
                "%s: operands are %s and %s; they do not share %lld terms", op, HAIAN_SHAPE_OF(j->x),
                HAIAN_SHAPE_OF(j->weight), (long long)j->k);
  HAIAN_REQUIRE(j->y->shape[0] == j->m && j->y->shape[1] == j->n, HAIAN_SHAPE,
                "%s: the result is %s; needs (%lld, %lld)", op, HAIAN_SHAPE_OF(j->y), (long long)j->m, (long long)j->n);
  HAIAN_REQUIRE(IS(j->y, NUMBERS), HAIAN_DTYPE, "%s: the result is %s; takes float32, float16, bfloat16", op,
                haian_dtype_name(j->y->dtype));
  return HAIAN_OK;
}

static int32_t weight_int8_mm(const haian_args *args) {
  const char *op = "weight_int8_mm";
  product_job j = {0};
  int32_t bad = check_product(op, args, 3, 0, 1, &j);
  if (bad) return bad;
  const haian_tensor *scales = args->in[2];
  HAIAN_REQUIRE(j.weight->dtype == HAIAN_I8 && j.x->dtype == j.y->dtype && scales->dtype == j.x->dtype, HAIAN_DTYPE,
                "%s: x is %s, weight %s, scales %s; needs int8 weight, scales and result like x", op,
                haian_dtype_name(j.x->dtype), haian_dtype_name(j.weight->dtype), haian_dtype_name(scales->dtype));
  bad = check_vector(op, scales, "scales", j.n, false);
  return bad ? bad : run_product(op, &j, NULL, scales, NULL);
}

static int32_t weight_int4_mm(const haian_args *args) {
  const char *op = "weight_int4_mm";
  product_job j = {0};
  int32_t bad = check_product(op, args, 4, 1, 2, &j);
  if (bad) return bad;
  HAIAN_REQUIRE(args->in[3] && args->attr[0].kind == HAIAN_INT, HAIAN_INVALID_ARGUMENT,
                "%s: needs x, weight, scales, zeros and group_size", op);
  j.scales = args->in[2];
  j.zeros = args->in[3];
  j.group = args->attr[0].i;
  HAIAN_REQUIRE(j.weight->dtype == HAIAN_U8 && j.x->dtype == j.y->dtype && j.scales->dtype == j.x->dtype &&
                    j.zeros->dtype == j.x->dtype,
                HAIAN_DTYPE, "%s: x is %s, weight %s, scales %s; needs uint8 weight, scales, zeros and result like x",
                op, haian_dtype_name(j.x->dtype), haian_dtype_name(j.weight->dtype), haian_dtype_name(j.scales->dtype));
  HAIAN_REQUIRE(j.group >= 1 && j.k % j.group == 0, HAIAN_SHAPE, "%s: %lld terms in groups of %lld; needs whole groups",
                op, (long long)j.k, (long long)j.group);
  for (int i = 2; i < 4; i++) {
    const haian_tensor *t = args->in[i];
    HAIAN_REQUIRE(t->ndim == 2 && t->shape[0] == j.n && t->shape[1] == j.k / j.group, HAIAN_SHAPE,
                  "%s: %s is %s; needs (%lld, %lld)", op, i == 2 ? "scales" : "zeros", HAIAN_SHAPE_OF(t),
                  (long long)j.n, (long long)(j.k / j.group));
  }
  return run_product(op, &j, NULL, NULL, NULL);
}

static int32_t check_scaled(const char *op, const haian_args *args, const product_job *j) {
  for (int i = 2; i < 5; i++) {
    const haian_tensor *t = args->in[i];
    HAIAN_REQUIRE(t || i == 4, HAIAN_INVALID_ARGUMENT, "%s: input %d is missing; pass a tensor", op, i);
    if (!t) continue;
    HAIAN_REQUIRE(t->dtype == HAIAN_F32, HAIAN_DTYPE, "%s: input %d is %s; scales and bias are float32", op, i,
                  haian_dtype_name(t->dtype));
    int32_t bad = check_vector(op, t,
                               i == 4   ? "bias"
                               : i == 2 ? "the rows' scale"
                                        : "the columns' scale",
                               i == 2 ? j->m : j->n, i < 4);
    if (bad) return bad;
  }
  return HAIAN_OK;
}

static int32_t scaled_mm_fp8(const haian_args *args) {
  const char *op = "scaled_mm_fp8";
  const uint32_t eight = HAIAN_BIT(HAIAN_F8E4M3) | HAIAN_BIT(HAIAN_F8E5M2);
  product_job j = {0};
  int32_t bad = check_product(op, args, 5, 1, 0, &j);
  if (bad) return bad;
  HAIAN_REQUIRE(IS(j.x, eight) && IS(j.weight, eight), HAIAN_DTYPE,
                "%s: operands are %s and %s; needs float8_e4m3fn or float8_e5m2", op, haian_dtype_name(j.x->dtype),
                haian_dtype_name(j.weight->dtype));
  bad = check_scaled(op, args, &j);
  return bad ? bad : run_product(op, &j, args->in[2], args->in[3], args->in[4]);
}

/* ---- int8 by int8 ------------------------------------------------------------------------------------------------ */
typedef struct int8_job {
  product_job p;
  const int8_t *x; /* narrow: (m, k) */
  int32_t *sums;   /* wide: (rows, n) */
} int8_job;

static void int8_columns(void *ctx, int64_t lo, int64_t hi) {
  int8_job *j = ctx;
  const product_job *p = &j->p;
  int8_t line[4 * DEEP];
  for (; lo < hi; lo++) {
    int32_t sums[NARROW] = {0};
    const int8_t *w = (const int8_t *)p->weight->data + lo * p->w_n;
    for (int64_t k = 0; k < p->k; k += 4 * DEEP) {
      int64_t n = p->k - k < 4 * DEEP ? p->k - k : 4 * DEEP;
      const int8_t *b = w + k;
      if (p->w_k != 1) {
        for (int64_t i = 0; i < n; i++) line[i] = w[(k + i) * p->w_k];
        b = line;
      }
      for (int64_t r = 0; r < p->m; r++) {
        const int8_t *a = j->x + r * p->k + k;
        int32_t sum = 0;
        for (int64_t i = 0; i < n; i++) sum += (int32_t)a[i] * b[i];
        sums[r] += sum;
      }
    }
    for (int64_t r = 0; r < p->m; r++) {
      float y = (float)sums[r];
      finish(p, r, lo, 1, &y);
    }
  }
}

static void int8_rows(void *ctx, int64_t lo, int64_t hi) {
  int8_job *j = ctx;
  float line[DEEP];
  for (; lo < hi; lo++)
    for (int64_t c = 0; c < j->p.n; c += DEEP) {
      int64_t n = j->p.n - c < DEEP ? j->p.n - c : DEEP;
      for (int64_t i = 0; i < n; i++) line[i] = (float)j->sums[lo * j->p.n + c + i];
      finish(&j->p, j->p.from + lo, c, n, line);
    }
}

static int32_t qlinear_int8(const haian_args *args) {
  const char *op = "qlinear_int8";
  int8_job job = {0};
  product_job *j = &job.p;
  int32_t bad = check_product(op, args, 5, 1, 1, j);
  if (bad) return bad;
  HAIAN_REQUIRE(j->x->dtype == HAIAN_I8 && j->weight->dtype == HAIAN_I8, HAIAN_DTYPE,
                "%s: x is %s and weight %s; needs int8", op, haian_dtype_name(j->x->dtype),
                haian_dtype_name(j->weight->dtype));
  HAIAN_REQUIRE(j->k <= MOST_INT, HAIAN_SHAPE, "%s: %lld terms; int32 sums hold %d at most", op, (long long)j->k,
                MOST_INT);
  bad = check_scaled(op, args, j);
  if (bad) return bad;
  if (j->y->numel == 0) return HAIAN_OK;
  if (!factors(j, args->in[2], args->in[3], args->in[4])) return NO_MEMORY(j, op);
  const int8_t *x = j->x->data;
  int64_t sm = j->x->stride[0], sk = j->x->stride[1];
  if (j->m <= NARROW) {
    int8_t *lines = HAIAN_SYM(workspace)(1, (size_t)(j->m * j->k + 1));
    if (!lines) return NO_MEMORY(j, op);
    for (int64_t r = 0; r < j->m; r++)
      for (int64_t i = 0; i < j->k; i++) lines[r * j->k + i] = x[r * sm + i * sk];
    job.x = lines;
    haian_parallel_for(j->n, 1 + HAIAN_GRAIN_BYTES / (j->k + 64), int8_columns, &job);
    return HAIAN_OK;
  }
  int64_t most = j->m < ROWS ? j->m : ROWS;
  job.sums = HAIAN_SYM(workspace)(1, (size_t)(most * j->n) * sizeof(int32_t));
  if (!job.sums) return NO_MEMORY(j, op);
  for (j->from = 0; j->from < j->m; j->from += ROWS) {
    j->rows = j->m - j->from < ROWS ? j->m - j->from : ROWS;
    haian_gemm g = {.m = j->rows,
                    .n = j->n,
                    .k = j->k,
                    .alpha = 1.0,
                    .a = {.data = x + j->from * sm, .row = sm, .col = sk, .dtype = HAIAN_I8},
                    .b = {.data = j->weight->data, .row = j->w_k, .col = j->w_n, .dtype = HAIAN_I8},
                    .c = {.data = job.sums, .row = j->n, .col = 1, .dtype = HAIAN_I32}};
    bad = HAIAN_SYM(gemm)(op, &g);
    if (bad) return bad;
    haian_parallel_for(j->rows, 1 + HAIAN_GRAIN_BYTES / 8 / (j->n + 1), int8_rows, &job);
  }
  return HAIAN_OK;
}

const haian_kernel_entry HAIAN_TABLE(quant)[] = {
    {"quantize_per_token_group", quantize, NUMBERS, NULL},
    {"dequantize_per_group", dequantize, CODES, NULL},
    {"weight_int8_mm", weight_int8_mm, NUMBERS, NULL},
    {"weight_int4_mm", weight_int4_mm, NUMBERS, NULL},
    {"scaled_mm_fp8", scaled_mm_fp8, HAIAN_BIT(HAIAN_F8E4M3) | HAIAN_BIT(HAIAN_F8E5M2), NULL},
    {"qlinear_int8", qlinear_int8, HAIAN_BIT(HAIAN_I8), NULL},
    {NULL, NULL, 0, NULL},
};
