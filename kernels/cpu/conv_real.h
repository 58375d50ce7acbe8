/* Convolution for one type: products of gathered columns, direct taps for depthwise, gradients of weights.
 * Included by conv.c with R_(name), REAL, VEC, INTS, REAL_DTYPE defined, behind plane_real.h. */

/* one value of a dtype that computes in REAL */
INLINE REAL R_(load_one)(const char *p, int32_t dtype) {
  uint16_t half;
  REAL x;
  if (dtype == HAIAN_F16 || dtype == HAIAN_BF16) {
    memcpy(&half, p, 2);
    return dtype == HAIAN_F16 ? haian_f16_load(half) : haian_bf16_load(half);
  }
  memcpy(&x, p, sizeof x);
  return x;
}

static void R_(fill_planes)(void *ctx, int64_t lo, int64_t hi) {
  conv_job *j = ctx;
  const conv *c = j->c;
  REAL *line = HAIAN_SYM(workspace)(2, (size_t)(j->g.row + PLANE_SLACK) * sizeof(REAL));
  if (!line) {
    __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  for (int64_t i = lo; i < hi; i++) {
    const char *src = c->x + ((j->image0 + i / c->C) * c->xs[0] + i % c->C * c->xs[1]) * c->item;
    R_(plane_fill)((REAL *)j->planes + i * j->g.total, &j->g, src, c->dtype, c->xs + 2, 0, line);
  }
}

/* weights of one phase as rows [group, out channel][in channel, tap] */
static void R_(gather_weights)(void *ctx, int64_t lo, int64_t hi) {
  conv_job *j = ctx;
  const conv *c = j->c;
  const conv_phase *p = j->phase;
  for (int64_t row = lo; row < hi; row++) {
    REAL *dst = (REAL *)j->dense + row * j->K;
    const char *w = c->w + (row / c->og * c->wg + row % c->og * c->wo) * c->item;
    for (int64_t ic = 0; ic < c->cg; ic++, w += c->wc * c->item)
      for (int64_t t = 0; t < p->taps; t++) *dst++ = R_(load_one)(w + p->weight[t] * c->item, c->dtype);
  }
}
/* block b: (group, part of the rows, block of K) */
static void R_(pack_weights)(void *ctx, int64_t lo, int64_t hi) {
  conv_job *j = ctx;
  const conv *c = j->c;
  for (int64_t b = lo; b < hi; b++) {
    const int64_t kb = b % j->kblocks, part = b / j->kblocks % j->parts, g = b / j->kblocks / j->parts;
    const int64_t row = part * j->mp, rows = c->og - row < j->mp ? c->og - row : j->mp;
    const int64_t k0 = kb * j->kc, kn = j->K - k0 < j->kc ? j->K - k0 : j->kc;
    REAL *dst = (REAL *)j->packed + conv_packed_at(j, g, part, kb, rows);
    if (j->dense) j->plain->pack_a(dst, (REAL *)j->dense + (g * c->og + row) * j->K + k0, j->K, 1, rows, kn);
    else j->kind->pack_a(dst, c->w + (g * c->wg + row * c->wo + k0) * c->item, c->wo, 1, rows, kn);
  }
}

/* columns [from, from + n) of all images of the chunk as runs that end with their row of results or with a panel */
static int64_t R_(find_runs)(const conv_job *j, int64_t from, int64_t n, int64_t panel, conv_run *run) {
  const conv *c = j->c;
  const conv_phase *p = j->phase;
  const int64_t area = p->out[1] * p->out[2], volume = p->out[0] * area;
  int64_t found = 0;
  for (int64_t col = 0, count; col < n; col += count) {
    const int64_t at = from + col, image = at / volume, d = at % volume / area, h = at % area / p->out[2],
                  w = at % p->out[2];
    count = p->out[2] - w;
    if (count > n - col) count = n - col;
    if (count > panel - col % panel) count = panel - col % panel;
    run[found++] =
        (conv_run){col, count, image * c->C * j->g.total + d * p->step[0] + h * p->step[1] + w,
                   (j->image0 + image) * c->ys[0] + p->y_base + d * p->y_step[0] + h * p->y_step[1] + w * p->y_step[2]};
  }
  return found;
}

/* [kn][nr] of one panel: whole vectors are copied, what spills over is overwritten by the next run or row, or is slack */
static void R_(pack_panel)(REAL *dst, const REAL *planes, const int64_t *offset, int64_t kn, const conv_run *run,
                           int64_t runs, int64_t nr) {
  const int64_t first = run[0].col, width = run[runs - 1].col + run[runs - 1].count - first;
  if (width < nr) memset(dst, 0, (size_t)(kn * nr) * sizeof(REAL));
  if (runs == 1 && width == nr) {
    const REAL *src = planes + run[0].src;
    for (int64_t k = 0; k < kn; k++, dst += nr) {
      const REAL *from = src + offset[k];
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++) *(VEC *)(dst + v * R_LANES) = *(const VEC *)(from + v * R_LANES);
    }
    return;
  }
  for (int64_t k = 0; k < kn; k++, dst += nr) {
    const REAL *src = planes + offset[k];
    for (int64_t r = 0; r < runs; r++) {
      REAL *to = dst + run[r].col - first;
      const REAL *from = src + run[r].src;
      for (int64_t i = 0; i < run[r].count; i += R_LANES) *(VEC *)(to + i) = *(const VEC *)(from + i);
    }
  }
}

/* task: (group, part of the rows, block of columns) */
static void R_(product_tasks)(void *ctx, int64_t lo, int64_t hi) {
  conv_job *j = ctx;
  const conv *c = j->c;
  const conv_phase *p = j->phase;
  const int64_t nr = j->plain->nr, nc = j->nc, panels = nc / nr;
  const int64_t pb_size = j->kc * nc + PLANE_SLACK, sums_size = j->mp * nc;
  const size_t bytes =
      (size_t)(pb_size + sums_size) * sizeof(REAL) + (size_t)nc * sizeof(conv_run) + (size_t)(panels + 1) * 8;
  char *space = HAIAN_SYM(workspace)(2, bytes);
  if (!space) {
    __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *pb = (REAL *)(void *)space, *sums = pb + pb_size;
  conv_run *run = (conv_run *)(void *)(sums + sums_size);
  int64_t *first = (int64_t *)(void *)(run + nc);
  for (int64_t task = lo; task < hi; task++) {
    const int64_t part = task % j->parts, block = task / j->parts % j->blocks, g = task / j->parts / j->blocks;
    const int64_t row = part * j->mp, rows = c->og - row < j->mp ? c->og - row : j->mp;
    const int64_t from = block * nc, n = j->columns - from < nc ? j->columns - from : nc;
    const int64_t runs = R_(find_runs)(j, from, n, nr, run);
    for (int64_t r = 0, q = 0; r <= runs; r++)
      if (r == runs || run[r].col >= q * nr) first[q++] = r;
    const REAL *planes = (const REAL *)j->planes + g * c->cg * j->g.total;
    for (int64_t kb = 0; kb < j->kblocks; kb++) {
      const int64_t k0 = kb * j->kc, kn = j->K - k0 < j->kc ? j->K - k0 : j->kc;
      for (int64_t q = 0; q * nr < n; q++)
        R_(pack_panel)(pb + q * nr * kn, planes, j->offset + k0, kn, run + first[q], first[q + 1] - first[q], nr);
      HAIAN_SYM(gemm_packed)(j->plain, rows, n, kn, (REAL *)j->packed + conv_packed_at(j, g, part, kb, rows), pb, nr,
                             nr * kn, sums, nc, kb == 0);
    }
    if (j->kblocks == 0) memset(sums, 0, (size_t)(rows * nc) * sizeof(REAL));
    for (int64_t i = 0; i < rows; i++) {
      const int64_t oc = g * c->og + row + i;
      REAL *line = sums + i * nc;
      if (c->bias) {
        const REAL b = R_(load_one)(c->bias + oc * c->bias_stride * c->item, c->dtype);
        for (int64_t q = 0; q < n; q++) line[q] += b;
      }
      for (int64_t r = 0, next; r < runs; r = next) {
        int64_t count = run[r].count;
        for (next = r + 1; next < runs && run[next].dst == run[r].dst + count * p->y_step[2]; next++)
          count += run[next].count;
        R_(store_row)(c->y + (run[r].dst + oc * c->ys[1]) * c->item, line + run[r].col, c->dtype, p->y_step[2], count);
      }
    }
  }
}

/* one channel in, c->og out: taps of one plane at a time.  Item: (image, group) */
static void R_(direct_planes)(void *ctx, int64_t lo, int64_t hi) {
  conv_job *j = ctx;
  const conv *c = j->c;
  int64_t longest = 0, taps = 1;
  for (int64_t q = 0; q < j->phases; q++) {
    if (j->list[q].out[2] > longest) longest = j->list[q].out[2];
    if (j->list[q].taps > taps) taps = j->list[q].taps;
  }
  const int64_t room = plane_up(longest, 16) + PLANE_SLACK;
  REAL *copy = HAIAN_SYM(workspace)(2, (size_t)(j->g.total + j->g.row + PLANE_SLACK + room + taps) * sizeof(REAL));
  if (!copy) {
    __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *line = copy + j->g.total, *row = line + j->g.row + PLANE_SLACK, *weight = row + room;
  for (int64_t item = lo; item < hi; item++) {
    const int64_t image = item / c->groups, g = item % c->groups;
    R_(plane_fill)(copy, &j->g, c->x + (image * c->xs[0] + g * c->xs[1]) * c->item, c->dtype, c->xs + 2, 0, line);
    for (int64_t o = 0; o < c->og; o++) {
      const int64_t oc = g * c->og + o;
      const REAL b = c->bias ? R_(load_one)(c->bias + oc * c->bias_stride * c->item, c->dtype) : 0;
      for (int64_t q = 0; q < j->phases; q++) {
        const conv_phase *p = &j->list[q];
        const char *w = c->w + (g * c->wg + o * c->wo) * c->item;
        char *y = c->y + (image * c->ys[0] + oc * c->ys[1] + p->y_base) * c->item;
        for (int64_t t = 0; t < p->taps; t++) weight[t] = R_(load_one)(w + p->weight[t] * c->item, c->dtype);
        for (int64_t d = 0; d < p->out[0]; d++)
          for (int64_t h = 0; h < p->out[1]; h++) {
            char *to = y + (d * p->y_step[0] + h * p->y_step[1]) * c->item;
            R_(tap_row)(copy + d * p->step[0] + h * p->step[1], p->offset, weight, p->taps, b, row, p->out[2]);
            R_(store_row)(to, row, c->dtype, p->y_step[2], p->out[2]);
          }
      }
    }
  }
}

/* ---- gradients --------------------------------------------------------------------------------------------------- */
/* dw[o][k] = sum over columns of dy[o][column] and what tap k of the column sees.  Task: (group, rows, block of k) */
static void R_(weight_tasks)(void *ctx, int64_t lo, int64_t hi) {
  conv_job *j = ctx;
  const conv *c = j->c;
  const conv_phase *p = j->phase;
  const int64_t nr = j->plain->nr, nc = j->nc, kc = j->kc, ld = kc + R_LANES;
  const int64_t taken = nc * ld + PLANE_SLACK, pb_size = nc * kc + PLANE_SLACK, a_size = j->mp * ld + PLANE_SLACK;
  const size_t reals = (size_t)(taken + pb_size + 2 * a_size + j->mp * nc);
  char *space = HAIAN_SYM(workspace)(2, reals * sizeof(REAL) + (size_t)kc * sizeof(conv_run));
  if (!space) {
    __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *seen = (REAL *)(void *)space, *pb = seen + taken, *rows_dy = pb + pb_size, *pa = rows_dy + a_size,
       *sums = pa + a_size;
  conv_run *run = (conv_run *)(void *)(sums + j->mp * nc);
  for (int64_t task = lo; task < hi; task++) {
    const int64_t block = task % j->blocks, part = task / j->blocks % j->parts, g = task / j->blocks / j->parts;
    const int64_t row = part * j->mp, rows = c->og - row < j->mp ? c->og - row : j->mp;
    const int64_t k0 = block * nc, kn = j->K - k0 < nc ? j->K - k0 : nc;
    REAL *total = (REAL *)j->dense + ((g * c->og) + row) * j->K + k0;
    const REAL *planes = (const REAL *)j->planes + g * c->cg * j->g.total;
    for (int64_t from = 0; from < j->columns; from += kc) {
      const int64_t n = j->columns - from < kc ? j->columns - from : kc;
      const int64_t runs = R_(find_runs)(j, from, n, INT64_MAX, run);
      for (int64_t k = 0; k < kn; k++) {
        const REAL *src = planes + j->offset[k0 + k];
        for (int64_t r = 0; r < runs; r++) {
          REAL *to = seen + k * ld + run[r].col;
          const REAL *from_run = src + run[r].src;
          for (int64_t i = 0; i < run[r].count; i += R_LANES) *(VEC *)(to + i) = *(const VEC *)(from_run + i);
        }
      }
      j->plain->pack_b(pb, seen, ld, 1, kn, n);
      for (int64_t i = 0; i < rows; i++)
        for (int64_t r = 0; r < runs; r++)
          R_(load_row)(rows_dy + i * ld + run[r].col, c->y + (run[r].dst + (g * c->og + row + i) * c->ys[1]) * c->item,
                       c->dtype, p->y_step[2], run[r].count);
      j->plain->pack_a(pa, rows_dy, ld, 1, rows, n);
      HAIAN_SYM(gemm_packed)(j->plain, rows, kn, n, pa, pb, nr, nr * n, sums, nc, from == 0);
    }
    for (int64_t i = 0; i < rows; i++)
      for (int64_t k = 0; k < kn; k++) total[i * j->K + k] = (j->image0 ? total[i * j->K + k] : 0) + sums[i * nc + k];
  }
}
/* dense [group, out channel][in channel, tap] -> dw */
static void R_(scatter_weights)(void *ctx, int64_t lo, int64_t hi) {
  conv_job *j = ctx;
  const conv *c = j->c;
  const conv_phase *p = j->phase;
  for (int64_t row = lo; row < hi; row++) {
    const REAL *src = (const REAL *)j->dense + row * j->K;
    char *w = (char *)c->w + (row / c->og * c->wg + row % c->og * c->wo) * c->item;
    for (int64_t ic = 0; ic < c->cg; ic++, w += c->wc * c->item)
      for (int64_t t = 0; t < p->taps; t++, src++) R_(store_row)(w + p->weight[t] * c->item, src, c->dtype, 1, 1);
  }
}

/* the same for one channel in: dot products of rows with runs.  Item: group */
static void R_(direct_weights)(void *ctx, int64_t lo, int64_t hi) {
  conv_job *j = ctx;
  const conv *c = j->c;
  const conv_phase *p = j->phase;
  const int64_t n = p->out[2], whole = n / R_LANES * R_LANES, sums = c->og * p->taps * R_LANES;
  REAL *copy = HAIAN_SYM(workspace)(
      2, (size_t)(j->g.total + j->g.row + 2 * PLANE_SLACK + plane_up(n, 16) + sums) * sizeof(REAL));
  if (!copy) {
    __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *line = copy + j->g.total, *dy = line + j->g.row + PLANE_SLACK, *acc = dy + plane_up(n, 16) + PLANE_SLACK;
  for (int64_t g = lo; g < hi; g++) {
    memset(acc, 0, (size_t)sums * sizeof(REAL));
    for (int64_t image = 0; image < c->N; image++) {
      R_(plane_fill)(copy, &j->g, c->x + (image * c->xs[0] + g * c->xs[1]) * c->item, c->dtype, c->xs + 2, 0, line);
      for (int64_t o = 0; o < c->og; o++)
        for (int64_t d = 0; d < p->out[0]; d++)
          for (int64_t h = 0; h < p->out[1]; h++) {
            const char *from =
                c->y + (image * c->ys[0] + (g * c->og + o) * c->ys[1] + d * p->y_step[0] + h * p->y_step[1]) * c->item;
            const REAL *window = copy + d * p->step[0] + h * p->step[1];
            R_(load_row)(dy, from, c->dtype, p->y_step[2], n);
            for (int64_t t = 0; t < p->taps; t++) {
              REAL *sum = acc + (o * p->taps + t) * R_LANES;
              const REAL *run = window + p->offset[t];
              VEC v = *(VEC *)sum;
              for (int64_t i = 0; i < whole; i += R_LANES) v += *(const VEC *)(dy + i) * *(const VEC *)(run + i);
              *(VEC *)sum = v;
              for (int64_t i = whole; i < n; i++) sum[i - whole] += dy[i] * run[i];
            }
          }
    }
    for (int64_t o = 0; o < c->og; o++)
      for (int64_t t = 0; t < p->taps; t++) {
        REAL total = 0;
        for (int64_t i = 0; i < R_LANES; i++) total += acc[(o * p->taps + t) * R_LANES + i];
        R_(store_row)((char *)c->w + (g * c->wg + o * c->wo + p->weight[t]) * c->item, &total, c->dtype, 1, 1);
      }
  }
}

/* bias[o] = sum of y over images and positions.  Item: channel */
static void R_(channel_sums)(void *ctx, int64_t lo, int64_t hi) {
  conv_job *j = ctx;
  const conv *c = j->c;
  enum { CHUNK = 1024 };
  REAL line[CHUNK];
  for (int64_t o = lo; o < hi; o++) {
    double total = 0;
    for (int64_t image = 0; image < c->N; image++)
      for (int64_t d = 0; d < c->axis[0].out; d++)
        for (int64_t h = 0; h < c->axis[1].out; h++) {
          const char *row = c->y + (image * c->ys[0] + o * c->ys[1] + d * c->ys[2] + h * c->ys[3]) * c->item;
          for (int64_t w = 0; w < c->axis[2].out; w += CHUNK) {
            const int64_t n = c->axis[2].out - w < CHUNK ? c->axis[2].out - w : CHUNK;
            R_(load_row)(line, row + w * c->ys[4] * c->item, c->dtype, c->ys[4], n);
            VEC acc = {0};
            int64_t i = 0;
            for (; i + R_LANES <= n; i += R_LANES) acc += *(const VEC *)(line + i);
            for (int64_t k = 0; k < R_LANES; k++) total += acc[k];
            for (; i < n; i++) total += line[i];
          }
        }
    const REAL rounded = (REAL)total;
    R_(store_row)((char *)c->bias + o * c->bias_stride * c->item, &rounded, c->dtype, 1, 1);
  }
}

/* ---- causal_conv1d, col2im ----------------------------------------------------------------------------------------- */
static void R_(causal_rows)(void *ctx, int64_t lo, int64_t hi) {
  const causal *c = ctx;
  const int64_t item = haian_itemsize(c->x->dtype), length = c->x->shape[2], width = c->weight->shape[1],
                channels = c->x->shape[1];
  const int64_t room = plane_up(length + width, 16) + PLANE_SLACK;
  REAL *line = HAIAN_SYM(workspace)(2, (size_t)(2 * room + width) * sizeof(REAL) + (size_t)width * 8);
  if (!line) {
    __atomic_store_n(c->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *row = line + room, *weight = row + room;
  int64_t *offset = (int64_t *)(void *)HAIAN_SYM(workspace)(3, (size_t)width * 8);
  if (!offset) {
    __atomic_store_n(c->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  for (int64_t t = 0; t < width; t++) offset[t] = t;
  R_(fill_row)(line, 0, width - 1);
  R_(fill_row)(line + width - 1 + length, 0, room - width + 1 - length);
  for (int64_t i = lo; i < hi; i++) {
    const int64_t b = i / channels, ch = i % channels;
    const char *bias = c->bias ? (const char *)c->bias->data + ch * c->bias->stride[0] * item : NULL;
    R_(load_row)(line + width - 1, (const char *)c->x->data + (b * c->x->stride[0] + ch * c->x->stride[1]) * item,
                 c->x->dtype, c->x->stride[2], length);
    R_(load_row)(weight, (const char *)c->weight->data + ch * c->weight->stride[0] * item, c->x->dtype,
                 c->weight->stride[1], width);
    R_(tap_row)(line, offset, weight, width, bias ? R_(load_one)(bias, c->x->dtype) : 0, row, length);
    if (c->silu)
      for (int64_t q = 0; q < plane_up(length, R_LANES); q++) row[q] = row[q] / (1 + R_(exp)(-row[q]));
    R_(store_row)((char *)c->y->data + (b * c->y->stride[0] + ch * c->y->stride[1]) * item, row, c->x->dtype,
                  c->y->stride[2], length);
  }
}

/* item: (image, channel) */
static void R_(fold_planes)(void *ctx, int64_t lo, int64_t hi) {
  columns *c = ctx;
  const plane_axis *h = &c->axis[1], *w = &c->axis[2];
  REAL *sum = HAIAN_SYM(workspace)(2, (size_t)(h->in * w->in + w->out) * sizeof(REAL));
  if (!sum) {
    __atomic_store_n(&c->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *line = sum + h->in * w->in;
  for (int64_t i = lo; i < hi; i++) {
    const int64_t n = i / c->channels, ch = i % c->channels;
    R_(fill_row)(sum, 0, h->in * w->in);
    for (int64_t tap = 0; tap < h->kernel * w->kernel; tap++) {
      const int64_t up = tap / w->kernel * h->dilation - h->pad, across = tap % w->kernel * w->dilation - w->pad;
      const int64_t first = across < 0 ? (-across + w->stride - 1) / w->stride : 0;
      const int64_t fits = w->in - across <= 0 ? 0 : (w->in - 1 - across) / w->stride + 1,
                    last = fits < w->out ? fits : w->out;
      for (int64_t oh = 0; oh < h->out; oh++) {
        const int64_t ih = oh * h->stride + up;
        if (ih < 0 || ih >= h->in || first >= last) continue;
        const int64_t at =
            (n * c->xs[0] + (ch * h->kernel * w->kernel + tap) * c->xs[1] + (oh * w->out + first) * c->xs[2]) * c->item;
        REAL *to = sum + ih * w->in + first * w->stride + across;
        R_(load_row)(line, c->x + at, c->dtype, c->xs[2], last - first);
        if (w->stride == 1)
          for (int64_t q = 0; q < last - first; q++) to[q] += line[q];
        else
          for (int64_t q = 0; q < last - first; q++) to[q * w->stride] += line[q];
      }
    }
    for (int64_t ih = 0; ih < h->in; ih++)
      R_(store_row)(c->y + (n * c->ys[0] + ch * c->ys[1] + ih * c->ys[2]) * c->item, sum + ih * w->in, c->dtype,
                    c->ys[3], w->in);
  }
}
