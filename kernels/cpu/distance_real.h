/* A tile of distances for one type (each_real.h): a few rows of points against a packed panel of others, which lie side
 * by side, so that a vector holds one coordinate of many points. */
#define WIDTH (4 * LANES)
#if ROW_VBYTES == 64
#define TILE_ROWS 4
#else
#define TILE_ROWS 2 /* 8 accumulators of 16 registers */
#endif
enum { FN(distance_width) = WIDTH };

#if REAL_IS_FLOAT
#define REAL_POW haian_powf
#define REAL_ABS haian_absf
#define ABS_BITS 0x7fffffff
#else
#define REAL_POW pow
#define REAL_ABS haian_abs
#define ABS_BITS 0x7fffffffffffffff
#endif

/* panel[k][j] = coordinate k of point first + j; points past the last one are copies of it */
static void FN(pack_panel)(const distance_job *job, const char *b, int64_t first, REAL *panel) {
  REAL line[DISTANCE_DEEP];
  for (int64_t j = 0; j < WIDTH; j++) {
    int64_t point = first + j < job->columns ? first + j : job->columns - 1;
    for (int64_t k = 0; k < job->n; k += DISTANCE_DEEP) {
      int64_t m = job->n - k < DISTANCE_DEEP ? job->n - k : DISTANCE_DEEP;
      FN(load)(job->dtype, b + (point * job->b_row + k * job->b_n) * job->item, job->b_n, m, line);
      for (int64_t i = 0; i < m; i++) panel[(k + i) * WIDTH + j] = line[i];
    }
  }
}

#define BLOCK(name, step)                                                                                     \
  static void FN(block_##name)(const REAL *const a[TILE_ROWS], const REAL *panel, int64_t n, FN(vec) * out) { \
    FN(vec) acc[TILE_ROWS][4];                                                                                \
    _Pragma("GCC unroll 4") for (int r = 0; r < TILE_ROWS; r++) {                                             \
      _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) acc[r][v] = out[r * 4 + v];                         \
    }                                                                                                         \
    for (int64_t k = 0; k < n; k++) {                                                                         \
      _Pragma("GCC unroll 4") for (int r = 0; r < TILE_ROWS; r++) {                                           \
        _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) {                                                 \
          FN(vec) d = a[r][k] - VEC(panel + k * WIDTH + v * LANES), s = acc[r][v];                            \
          acc[r][v] = step;                                                                                   \
        }                                                                                                     \
      }                                                                                                       \
    }                                                                                                         \
    _Pragma("GCC unroll 4") for (int r = 0; r < TILE_ROWS; r++) {                                             \
      _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) out[r * 4 + v] = acc[r][v];                         \
    }                                                                                                         \
  }
#define SIZE_OF(d) ((FN(vec))((FN(mask))(d) & ABS_BITS))
BLOCK(one, s + SIZE_OF(d))
BLOCK(two, s + d * d)
BLOCK(largest, FN(pick_vec_largest)(s, SIZE_OF(d)))
#undef BLOCK
#undef SIZE_OF

static void FN(block_slow)(const distance_job *job, const REAL *const a[TILE_ROWS], const REAL *panel, int64_t n,
                           REAL *out) {
  REAL p = (REAL)job->p;
  for (int64_t k = 0; k < n; k++)
    for (int r = 0; r < TILE_ROWS; r++) {
      const REAL x = a[r][k], *q = panel + k * WIDTH;
      REAL *to = out + r * WIDTH;
      if (job->kind == UNEQUAL) {
        for (int j = 0; j < WIDTH; j++) to[j] += x != q[j];
      } else {
        for (int j = 0; j < WIDTH; j++) to[j] += (REAL)REAL_POW(REAL_ABS(x - q[j]), p);
      }
    }
}

/* Distances of TILE_ROWS points from row `first` of x1 on to the panel, into out. */
static void FN(distance_tile)(const distance_job *job, const char *a, int64_t first, const REAL *panel, REAL *out) {
  REAL line[TILE_ROWS][DISTANCE_DEEP];
  FN(vec) part[TILE_ROWS * 4];
  memset(out, 0, sizeof(REAL) * TILE_ROWS * WIDTH);
  for (int64_t k = 0; k < job->n; k += DISTANCE_DEEP) {
    int64_t m = job->n - k < DISTANCE_DEEP ? job->n - k : DISTANCE_DEEP;
    const REAL *rows[TILE_ROWS];
    for (int r = 0; r < TILE_ROWS; r++) {
      int64_t point = first + r < job->rows ? first + r : job->rows - 1;
      const char *from = a + (point * job->a_row + k * job->a_n) * job->item;
      rows[r] = line[r];
      if (job->a_n == 1 && job->dtype == REAL_DTYPE) rows[r] = (const REAL *)from;
      else FN(load)(job->dtype, from, job->a_n, m, line[r]);
    }
    memset(part, 0, sizeof part);
    switch (job->kind) {
      case ONE:
        FN(block_one)(rows, panel + k * WIDTH, m, part);
        break;
      case TWO:
        FN(block_two)(rows, panel + k * WIDTH, m, part);
        break;
      case LARGEST:
        FN(block_largest)(rows, panel + k * WIDTH, m, part);
        break;
      default:
        FN(block_slow)(job, rows, panel + k * WIDTH, m, (REAL *)part);
    }
    const REAL *some = (const REAL *)part;
    for (int i = 0; i < TILE_ROWS * WIDTH; i++)
      out[i] = job->kind == LARGEST ? FN(pick_largest)(out[i], some[i]) : out[i] + some[i];
  }
  if (job->kind == TWO) {
    for (int i = 0; i < TILE_ROWS * WIDTH; i++) out[i] = (REAL)sqrt(out[i]);
  } else if (job->kind == ANY_POWER) {
    for (int i = 0; i < TILE_ROWS * WIDTH; i++) out[i] = (REAL)REAL_POW(out[i], (REAL)(1 / job->p));
  }
}

static void FN(distance_tasks)(void *ctx, int64_t lo, int64_t hi) {
  distance_job *job = ctx;
  REAL out[TILE_ROWS * WIDTH] __attribute__((aligned(64)));
  REAL *panel = HAIAN_SYM(workspace)(1, (size_t)(job->n > 0 ? job->n : 1) * WIDTH * sizeof(REAL));
  int64_t packed = -1, y_item = row_item(job->y_dtype);
  if (!panel) {
    atomic_store(&job->failed, true);
    return;
  }
  for (int64_t task = lo; task < hi; task++) {
    int64_t tile = task % job->tiles, column = task / job->tiles % job->panels;
    haian_place at;
    haian_place_seek(&at, &job->batch, job->batch.ndim, task / job->tiles / job->panels);
    int64_t first = column * WIDTH, end = (tile + 1) * DISTANCE_ROWS;
    if (end > job->rows) end = job->rows;
    if (job->pairs && first + WIDTH - 1 <= tile * DISTANCE_ROWS) continue; /* all of it at or below the diagonal */
    if (packed != task / job->tiles) {
      FN(pack_panel)(job, job->b + at.offset[2] * job->item, first, panel);
      packed = task / job->tiles;
    }
    for (int64_t i = tile * DISTANCE_ROWS; i < end; i += TILE_ROWS) {
      FN(distance_tile)(job, job->a + at.offset[1] * job->item, i, panel, out);
      for (int r = 0; r < TILE_ROWS && i + r < end; r++) {
        int64_t from = job->pairs && i + r + 1 > first ? i + r + 1 - first : 0;
        int64_t to = job->columns - first < WIDTH ? job->columns - first : WIDTH, row = i + r;
        if (from >= to) continue;
        int64_t place = job->pairs ? row * (2 * job->columns - row - 1) / 2 + (first + from - row - 1) : 0;
        char *y = job->y + (job->pairs ? place * job->y_column
                                       : at.offset[0] + row * job->y_row + (first + from) * job->y_column) *
                               y_item;
        FN(store)(job->y_dtype, y, job->y_column, to - from, out + r * WIDTH + from, false);
      }
    }
  }
}
#undef WIDTH
#undef TILE_ROWS
#undef REAL_POW
#undef REAL_ABS
#undef ABS_BITS
