/* Pooling for one type: windows as taps over padded planes, adaptive windows, gradients.
 * Included by pooling.c with R_(name), REAL, VEC, INTS, INT defined, behind plane_real.h. */

INLINE VEC R_(choose)(INTS mask, VEC a, VEC b) { return (VEC)(((INTS)a & mask) | ((INTS)b & ~mask)); }

/* the largest of every window of a row of results, NaN winning; with `best` also the number of the tap, -1 for none: the
 * first of equals, the last NaN */
INLINE void R_(max_block)(const int nv, const REAL *src, const int64_t *offset, int64_t taps, REAL *dst, INT *best) {
  VEC top[4];
  INTS at[4];
#pragma GCC unroll 4
  for (int v = 0; v < nv; v++) {
    top[v] = SPLAT(VEC, -(REAL)INFINITY);
    at[v] = (INTS){0} - 1;
  }
  for (int64_t t = 0; t < taps; t++) {
    const REAL *run = src + offset[t];
#pragma GCC unroll 4
    for (int v = 0; v < nv; v++) {
      const VEC x = *(const VEC *)(run + v * R_LANES);
      const INTS wins = (x > top[v]) | (x != x);
      top[v] = R_(choose)(wins, x, top[v]);
      if (best) at[v] = (((INTS){0} + (INT)t) & wins) | (at[v] & ~wins);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < nv; v++) {
    *(VEC *)(dst + v * R_LANES) = top[v];
    if (best) *(INTS *)(best + v * R_LANES) = at[v];
  }
}
static void R_(max_row)(const REAL *src, const int64_t *offset, int64_t taps, REAL *dst, int64_t n) {
  for (int64_t i = 0; i < n; i += 2 * R_LANES) R_(max_block)(2, src + i, offset, taps, dst + i, NULL);
}
static void R_(max_index_row)(const REAL *src, const int64_t *offset, int64_t taps, REAL *dst, INT *best, int64_t n) {
  for (int64_t i = 0; i < n; i += 2 * R_LANES) R_(max_block)(2, src + i, offset, taps, dst + i, best + i);
}
/* the same without indices where rows of the image can be read in place: the largest of the rows first, then along the row */
static void R_(top_of_rows)(REAL *line, const REAL *const *row, int rows, int64_t n) {
  memcpy(line, row[0], (size_t)n * sizeof(REAL));
  for (int r = 1; r < rows; r++) {
    const REAL *x = row[r];
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) line[i] = (x[i] > line[i]) | (x[i] != x[i]) ? x[i] : line[i];
  }
}

/* position in the image of the first tap of result (d, h, w) that lies inside it */
static int64_t R_(first_inside)(const pooling *p, int64_t d, int64_t h, int64_t w) {
  const plane_axis *a = p->g.axis;
  int64_t at[3] = {d * a[0].stride - a[0].pad, h * a[1].stride - a[1].pad, w * a[2].stride - a[2].pad};
  for (int i = 0; i < 3; i++)
    if (at[i] < 0) at[i] += (-at[i] + a[i].dilation - 1) / a[i].dilation * a[i].dilation;
  return (at[0] * a[1].in + at[1]) * a[2].in + at[2];
}

/* planes through windows of equal size.  Item: plane */
static void R_(window_planes)(void *ctx, int64_t lo, int64_t hi) {
  pooling *p = ctx;
  const plane_axis *a = p->g.axis;
  const int64_t n = a[2].out, room = plane_up(n, 16) + PLANE_SLACK;
  REAL *copy =
      HAIAN_SYM(workspace)(2, (size_t)(p->g.total + p->g.row + PLANE_SLACK + 4 * room + p->taps) * sizeof(REAL));
  if (!copy) {
    __atomic_store_n(&p->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *line = copy + p->g.total, *row = line + p->g.row + PLANE_SLACK, *count = row + room, *one = count + 2 * room;
  INT *best = (INT *)(void *)(count + room);
  for (int64_t t = 0; t < p->taps; t++) one[t] = 1;
  for (int64_t w = 0; w < n; w++) count[w] = (REAL)p->counted[2][w];
  for (int64_t i = lo; i < hi; i++) {
    const pooled at = pooled_plane(p, i);
    const REAL pad = p->how == MEAN ? 0 : -(REAL)INFINITY;
    R_(plane_fill)(copy, &p->g, at.x, p->dtype, p->xs + 2, pad, line);
    for (int64_t d = 0; d < a[0].out; d++)
      for (int64_t h = 0; h < a[1].out; h++) {
        const REAL *window = copy + plane_window(&p->g, d, h);
        if (p->how == MEAN) {
          R_(tap_row)(window, p->offset, one, p->taps, 0, row, n);
          const REAL outer = (REAL)(p->counted[0][d] * p->counted[1][h]);
          if (p->divisor)
            for (int64_t w = 0; w < n; w++) row[w] /= (REAL)p->divisor;
          else
            for (int64_t w = 0; w < n; w++) row[w] /= outer * count[w];
        } else if (p->how == MAX) {
          R_(max_row)(window, p->offset, p->taps, row, n);
        } else {
          R_(max_index_row)(window, p->offset, p->taps, row, best, n);
          int64_t *index = (int64_t *)(void *)at.index + d * p->is[2] + h * p->is[3];
          const int64_t from =
              ((d * a[0].stride - a[0].pad) * a[1].in + h * a[1].stride - a[1].pad) * a[2].in - a[2].pad;
          for (int64_t w = 0; w < n; w++)
            index[w * p->is[4]] =
                best[w] < 0 ? R_(first_inside)(p, d, h, w) : from + w * a[2].stride + p->step[best[w]];
        }
        R_(store_row)(at.y + (d * p->ys[2] + h * p->ys[3]) * p->item, row, p->dtype, p->ys[4], n);
      }
  }
}

/* maxima of float rows that lie side by side, without a copy of the plane.  Item: plane */
static void R_(row_planes)(void *ctx, int64_t lo, int64_t hi) {
  pooling *p = ctx;
  const plane_axis *h = &p->g.axis[1], *w = &p->g.axis[2];
  const int64_t n = w->out, width = p->g.width, room = plane_up(n, 16) + PLANE_SLACK;
  const int64_t left = w->pad < w->size ? w->pad : w->size, seen = w->size - left < w->in ? w->size - left : w->in;
  REAL *line = HAIAN_SYM(workspace)(2, (size_t)(2 * p->g.row + 2 * PLANE_SLACK + room) * sizeof(REAL));
  if (!line) {
    __atomic_store_n(&p->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *split = line + p->g.row + PLANE_SLACK, *to = split + p->g.row + PLANE_SLACK;
  R_(fill_row)(line, -(REAL)INFINITY, p->g.row + PLANE_SLACK);
  R_(fill_row)(split, -(REAL)INFINITY, p->g.row + PLANE_SLACK);
  for (int64_t i = lo; i < hi; i++) {
    const pooled at = pooled_plane(p, i);
    for (int64_t oh = 0; oh < h->out; oh++) {
      const REAL *row[MAX_ROWS];
      int rows = 0;
      for (int64_t k = 0; k < h->kernel; k++) {
        const int64_t ih = oh * h->stride - h->pad + k * h->dilation;
        if (ih >= 0 && ih < h->in) row[rows++] = (const REAL *)(const void *)(at.x + ih * p->xs[3] * p->item);
      }
      R_(top_of_rows)(line + left, row, rows, seen);
      const REAL *from = line;
      if (p->g.phases == 2) {
        for (int64_t q = 0; q < width; q++) {
          split[q] = line[2 * q];
          split[width + q] = line[2 * q + 1];
        }
        from = split;
      } else if (p->g.phases > 2) {
        for (int64_t r = 0; r < p->g.phases; r++)
          for (int64_t q = 0; q < width; q++) split[r * width + q] = line[q * p->g.phases + r];
        from = split;
      }
      R_(max_row)(from, p->offset, w->kernel, to, n); /* the first taps are those of one row */
      R_(store_row)(at.y + oh * p->ys[3] * p->item, to, p->dtype, p->ys[4], n);
    }
  }
}

/* the whole plane at x, packed */
static void R_(load_plane)(REAL *dst, const pooling *p, const char *x) {
  const plane_axis *a = p->g.axis;
  if (p->xs[4] == 1 && p->xs[3] == a[2].in && (a[0].in == 1 || p->xs[2] == a[1].in * a[2].in)) {
    R_(load_row)(dst, x, p->dtype, 1, a[0].in * a[1].in * a[2].in);
    return;
  }
  for (int64_t d = 0; d < a[0].in; d++)
    for (int64_t h = 0; h < a[1].in; h++)
      R_(load_row)(dst + (d * a[1].in + h) * a[2].in, x + (d * p->xs[2] + h * p->xs[3]) * p->item, p->dtype, p->xs[4],
                   a[2].in);
}

static REAL R_(run_sum)(const REAL *x, int64_t n) {
  VEC acc = {0};
  int64_t i = 0;
  REAL sum = 0;
  for (; i + R_LANES <= n; i += R_LANES) acc += *(const VEC *)(x + i);
  for (int64_t k = 0; k < R_LANES && i; k++) sum += acc[k];
  for (; i < n; i++) sum += x[i];
  return sum;
}

/* windows whose borders are tables (adaptive).  Item: plane */
static void R_(table_planes)(void *ctx, int64_t lo, int64_t hi) {
  pooling *p = ctx;
  const plane_axis *a = p->g.axis;
  REAL *copy = HAIAN_SYM(workspace)(2, (size_t)(a[0].in * a[1].in * a[2].in + a[2].out) * sizeof(REAL));
  if (!copy) {
    __atomic_store_n(&p->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *row = copy + a[0].in * a[1].in * a[2].in;
  const bool whole_rows = a[1].out == 1 && a[2].out == 1;
  for (int64_t i = lo; i < hi; i++) {
    const pooled at = pooled_plane(p, i);
    R_(load_plane)(copy, p, at.x);
    for (int64_t d = 0; d < a[0].out; d++)
      for (int64_t h = 0; h < a[1].out; h++) {
        for (int64_t w = 0; w < a[2].out; w++) {
          const int64_t first[3] = {p->first[0][d], p->first[1][h], p->first[2][w]},
                        n[3] = {p->seen[0][d], p->seen[1][h], p->seen[2][w]};
          const REAL *from = copy + (first[0] * a[1].in + first[1]) * a[2].in + first[2];
          REAL sum = 0, top = -(REAL)INFINITY;
          int64_t best = from - copy;
          if (p->how == MEAN && whole_rows) {
            sum = R_(run_sum)(from, n[0] * n[1] * n[2]);
          } else {
            for (int64_t q = 0; q < n[0]; q++)
              for (int64_t r = 0; r < n[1]; r++) {
                const REAL *x = from + (q * a[1].in + r) * a[2].in;
                if (p->how == MEAN) sum += R_(run_sum)(x, n[2]);
                else
                  for (int64_t s = 0; s < n[2]; s++)
                    if (x[s] > top || x[s] != x[s]) top = x[s], best = x + s - copy;
              }
          }
          row[w] = p->how == MEAN ? sum / (REAL)(n[0] * n[1] * n[2]) : top;
          if (p->how == MAX_INDEX) ((int64_t *)(void *)at.index)[d * p->is[2] + h * p->is[3] + w * p->is[4]] = best;
        }
        R_(store_row)(at.y + (d * p->ys[2] + h * p->ys[3]) * p->item, row, p->dtype, p->ys[4], a[2].out);
      }
  }
}

/* x here is the result dx, y is dy.  Item: plane */
static void R_(back_planes)(void *ctx, int64_t lo, int64_t hi) {
  pooling *p = ctx;
  const plane_axis *a = p->g.axis;
  const int64_t size = a[0].in * a[1].in * a[2].in;
  REAL *sum = HAIAN_SYM(workspace)(2, (size_t)(size + a[2].out) * sizeof(REAL));
  if (!sum) {
    __atomic_store_n(&p->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  REAL *dy = sum + size;
  for (int64_t i = lo; i < hi; i++) {
    const pooled at = pooled_plane(p, i);
    R_(fill_row)(sum, 0, size);
    for (int64_t d = 0; d < a[0].out; d++)
      for (int64_t h = 0; h < a[1].out; h++) {
        R_(load_row)(dy, at.y + (d * p->ys[2] + h * p->ys[3]) * p->item, p->dtype, p->ys[4], a[2].out);
        if (p->how != MEAN) {
          const int64_t *index = (const int64_t *)(const void *)at.index + d * p->is[2] + h * p->is[3];
          for (int64_t w = 0; w < a[2].out; w++) sum[index[w * p->is[4]]] += dy[w];
          continue;
        }
        const int64_t outer = p->counted[0][d] * p->counted[1][h];
        for (int64_t w = 0; w < a[2].out; w++) dy[w] /= (REAL)(p->divisor ? p->divisor : outer * p->counted[2][w]);
        for (int64_t q = 0; q < p->seen[0][d]; q++)
          for (int64_t r = 0; r < p->seen[1][h]; r++) {
            REAL *line = sum + ((p->first[0][d] + q) * a[1].in + p->first[1][h] + r) * a[2].in;
            for (int64_t w = 0; w < a[2].out; w++) {
              REAL *to = line + p->first[2][w];
              for (int64_t s = 0; s < p->seen[2][w]; s++) to[s] += dy[w];
            }
          }
      }
    for (int64_t d = 0; d < a[0].in; d++)
      for (int64_t h = 0; h < a[1].in; h++)
        R_(store_row)((char *)at.x + (d * p->xs[2] + h * p->xs[3]) * p->item, sum + (d * a[1].in + h) * a[2].in,
                      p->dtype, p->xs[4], a[2].in);
  }
}
