/* Transposition of a plane, y[b][a] = x[a][b], for elements of 1, 2, 4 and 8 bytes; rows contiguous on both sides.
 * For: the copy engine in shape.c.  Not here: which axes of a tensor make a plane, threads.
 * A square tile of LANES x LANES elements goes through vector registers: log2(LANES) rounds of zipping halves. */
#ifndef HAIAN_TRANSPOSE_H
#define HAIAN_TRANSPOSE_H
#include "strided.h"

/* Bits are moved, never interpreted. */
typedef uint8_t __attribute__((may_alias)) bits1;
typedef uint16_t __attribute__((may_alias)) bits2;
typedef uint32_t __attribute__((may_alias)) bits4;
typedef uint64_t __attribute__((may_alias)) bits8;
typedef struct __attribute__((may_alias)) bits16 {
  uint64_t word[2];
} bits16;

#define ZIP_2(p, q, k) __builtin_shufflevector(p, q, k, 2 + k)
#define ZIP_4(p, q, k) __builtin_shufflevector(p, q, 2 * k, 4 + 2 * k, 2 * k + 1, 5 + 2 * k)
#define ZIP_8(p, q, k) \
  __builtin_shufflevector(p, q, 4 * k, 8 + 4 * k, 4 * k + 1, 9 + 4 * k, 4 * k + 2, 10 + 4 * k, 4 * k + 3, 11 + 4 * k)
#define ZIP_16(p, q, k)                                                                                               \
  __builtin_shufflevector(p, q, 8 * k, 16 + 8 * k, 8 * k + 1, 17 + 8 * k, 8 * k + 2, 18 + 8 * k, 8 * k + 3,           \
                          19 + 8 * k, 8 * k + 4, 20 + 8 * k, 8 * k + 5, 21 + 8 * k, 8 * k + 6, 22 + 8 * k, 8 * k + 7, \
                          23 + 8 * k)
#define ZIP_32(p, q, k)                                                                                              \
  __builtin_shufflevector(p, q, 16 * k, 32 + 16 * k, 16 * k + 1, 33 + 16 * k, 16 * k + 2, 34 + 16 * k, 16 * k + 3,   \
                          35 + 16 * k, 16 * k + 4, 36 + 16 * k, 16 * k + 5, 37 + 16 * k, 16 * k + 6, 38 + 16 * k,    \
                          16 * k + 7, 39 + 16 * k, 16 * k + 8, 40 + 16 * k, 16 * k + 9, 41 + 16 * k, 16 * k + 10,    \
                          42 + 16 * k, 16 * k + 11, 43 + 16 * k, 16 * k + 12, 44 + 16 * k, 16 * k + 13, 45 + 16 * k, \
                          16 * k + 14, 46 + 16 * k, 16 * k + 15, 47 + 16 * k)

/* Lanes: a vector register a row; one byte stays at 16 lanes (64 rows of 64 lanes would not fit the registers). */
#if defined(__AVX512BW__)
#define LANES_bits1 16
#define LANES_bits2 32
#define LANES_bits4 16
#define LANES_bits8 8
#elif defined(__AVX2__)
#define LANES_bits1 16
#define LANES_bits2 16
#define LANES_bits4 8
#define LANES_bits8 4
#else
#define LANES_bits1 16
#define LANES_bits2 8
#define LANES_bits4 4
#define LANES_bits8 2
#endif

/* A tile's row that is a whole cache line may go past the caches directly; narrower rows go through a buffer (half
 * lines streamed one after the other took twice as long as the buffer). */
#if defined(HAIAN_LINE) && HAIAN_LINE == 64
#define STREAMS(bytes) ((bytes) == 64)
#define STREAM_ROW(to, row) haian_line_stream(to, haian_line_load(&row))
#else
#define STREAMS(bytes) 0
#define STREAM_ROW(to, row) (void)(to)
#endif

#define PANEL 64 /* rows of x a pass: 64 open pages; 16 and 256 rows take 1.5x as long (4096 x 4096 float32) */
#define STREAM_PLANES_BYTES (1 << 20) /* as HAIAN_STREAM_BYTES; rows a power of two apart share cache sets: 2x here */
#define RUN_BYTES 512                 /* bytes of a row of y that go out together from the buffer */

/* The loops over a tile's vectors must vanish, or the vectors live in memory: 2x slower with gcc 12. */
#define UNROLL _Pragma("GCC unroll 32")
#define ZIP_ROUND(N, from, to)                            \
  UNROLL for (int i = 0; i < N / 2; i++) {                \
    to[2 * i] = ZIP_##N(from[i], from[i + N / 2], 0);     \
    to[2 * i + 1] = ZIP_##N(from[i], from[i + N / 2], 1); \
  }

#define DEFINE_TRANSPOSE(T, N) DEFINE_TRANSPOSE_(T, N)
#define DEFINE_TRANSPOSE_(T, N)                                                                                        \
  typedef T lanes_##T __attribute__((vector_size(N * sizeof(T))));                                                     \
  static __attribute__((noinline)) void tile_##T(T *y, int64_t y_row, const T *x, int64_t x_row, bool stream) {        \
    lanes_##T u[N], v[N];                                                                                              \
    UNROLL for (int i = 0; i < N; i++) memcpy(&u[i], x + i * x_row, sizeof u[i]);                                      \
    ZIP_ROUND(N, u, v)                                                                                                 \
    if (N > 2) { ZIP_ROUND(N, v, u) }                                                                                  \
    if (N > 4) { ZIP_ROUND(N, u, v) }                                                                                  \
    if (N > 8) { ZIP_ROUND(N, v, u) }                                                                                  \
    if (N > 16) { ZIP_ROUND(N, u, v) }                                                                                 \
    UNROLL for (int i = 0; i < N; i++) {                                                                               \
      lanes_##T row = N == 4 || N == 16 ? u[i] : v[i];                                                                 \
      if (stream && STREAMS(sizeof row)) STREAM_ROW(y + i * y_row, row);                                               \
      else memcpy(y + i * y_row, &row, sizeof row);                                                                    \
    }                                                                                                                  \
  }                                                                                                                    \
  /* Out of line, as is the tile: inlined, their registers and the loops' compete and the tile spills. */              \
  static __attribute__((noinline)) void edge_##T(T *y, int64_t y_row, const T *x, int64_t x_row, int64_t na,           \
                                                 int64_t nb) {                                                         \
    for (int64_t b = 0; b < nb; b++)                                                                                   \
      for (int64_t a = 0; a < na; a++) y[b * y_row + a] = x[a * x_row + b];                                            \
  }                                                                                                                    \
  /* na rows of x, nb columns, straight to y; squares of one cache line a side, so that a line is used up at once. */  \
  static void direct_##T(T *y, int64_t y_row, const T *x, int64_t x_row, int64_t na, int64_t nb, bool stream) {        \
    enum { LINE = 64 / sizeof(T) };                                                                                    \
    for (int64_t b0 = 0; b0 < nb; b0 += LINE) {                                                                        \
      int64_t b1 = b0 + LINE < nb ? b0 + LINE : nb;                                                                    \
      for (int64_t a0 = 0; a0 < na; a0 += LINE) {                                                                      \
        int64_t a1 = a0 + LINE < na ? a0 + LINE : na;                                                                  \
        for (int64_t b = b0; b < b1; b += N) {                                                                         \
          for (int64_t a = a0; a < a1; a += N) {                                                                       \
            if (a + N <= a1 && b + N <= b1) {                                                                          \
              tile_##T(y + b * y_row + a, y_row, x + a * x_row + b, x_row, stream);                                    \
              continue;                                                                                                \
            }                                                                                                          \
            edge_##T(y + b * y_row + a, y_row, x + a * x_row + b, x_row, a1 - a < N ? a1 - a : N,                      \
                     b1 - b < N ? b1 - b : N);                                                                         \
          }                                                                                                            \
        }                                                                                                              \
      }                                                                                                                \
    }                                                                                                                  \
  }                                                                                                                    \
  /* Two to four rows of x interleaved into one of y, and one row of x dealt out to two to four of y. */               \
  static void interleave_##T(T *restrict y, const T *restrict x, int64_t x_row, int64_t na, int64_t nb) {              \
    const T *x1 = x + x_row, *x2 = x + 2 * x_row, *x3 = x + 3 * x_row;                                                 \
    if (na == 2)                                                                                                       \
      for (int64_t b = 0; b < nb; b++) y[2 * b] = x[b], y[2 * b + 1] = x1[b];                                          \
    if (na == 3)                                                                                                       \
      for (int64_t b = 0; b < nb; b++) y[3 * b] = x[b], y[3 * b + 1] = x1[b], y[3 * b + 2] = x2[b];                    \
    if (na == 4)                                                                                                       \
      for (int64_t b = 0; b < nb; b++)                                                                                 \
        y[4 * b] = x[b], y[4 * b + 1] = x1[b], y[4 * b + 2] = x2[b], y[4 * b + 3] = x3[b];                             \
  }                                                                                                                    \
  static void deal_##T(T *y_, int64_t y_row, const T *restrict x, int64_t na, int64_t nb) {                            \
    T *restrict y = y_, *restrict y1 = y_ + y_row, *restrict y2 = y_ + 2 * y_row, *restrict y3 = y_ + 3 * y_row;       \
    if (nb == 2)                                                                                                       \
      for (int64_t a = 0; a < na; a++) y[a] = x[2 * a], y1[a] = x[2 * a + 1];                                          \
    if (nb == 3)                                                                                                       \
      for (int64_t a = 0; a < na; a++) y[a] = x[3 * a], y1[a] = x[3 * a + 1], y2[a] = x[3 * a + 2];                    \
    if (nb == 4)                                                                                                       \
      for (int64_t a = 0; a < na; a++)                                                                                 \
        y[a] = x[4 * a], y1[a] = x[4 * a + 1], y2[a] = x[4 * a + 2], y3[a] = x[4 * a + 3];                             \
  }                                                                                                                    \
  /* stream: the destination is too large for the caches. */                                                           \
  static void transpose_##T(void *y_, int64_t y_row, const void *x_, int64_t x_row, int64_t na, int64_t nb,            \
                            bool stream) {                                                                             \
    T *y = y_;                                                                                                         \
    const T *x = x_;                                                                                                   \
    if (na <= 4 && na > 1 && y_row == na) {                                                                            \
      interleave_##T(y, x, x_row, na, nb);                                                                             \
    } else if (nb <= 4 && nb > 1 && x_row == nb) {                                                                     \
      deal_##T(y, y_row, x, na, nb);                                                                                   \
    } else if (!stream) {                                                                                              \
      for (int64_t a = 0; a < na; a += PANEL)                                                                          \
        direct_##T(y + a, y_row, x + a * x_row, x_row, na - a < PANEL ? na - a : PANEL, nb, false);                    \
    } else if (STREAMS(sizeof(lanes_##T)) && (uintptr_t)y % 64 == 0 && y_row * (int64_t)sizeof(T) % 64 == 0) {         \
      for (int64_t a = 0; a < na; a += PANEL)                                                                          \
        direct_##T(y + a, y_row, x + a * x_row, x_row, na - a < PANEL ? na - a : PANEL, nb, true);                     \
    } else { /* through a buffer, so that lines of y are written whole wherever they begin */                          \
      enum { A = RUN_BYTES / sizeof(T), B = 64 / sizeof(T) };                                                          \
      _Alignas(64) T buffer[A * B]; /* (B, A) */                                                                       \
      for (int64_t a = 0; a < na; a += A) {                                                                            \
        int64_t la = na - a < A ? na - a : A;                                                                          \
        for (int64_t b = 0; b < nb; b += B) {                                                                          \
          int64_t lb = nb - b < B ? nb - b : B;                                                                        \
          direct_##T(buffer, A, x + a * x_row + b, x_row, la, lb, false);                                              \
          for (int64_t i = 0; i < lb; i++)                                                                             \
            haian_copy_run((char *)(y + (b + i) * y_row + a), (const char *)(buffer + i * A), la * (int64_t)sizeof(T), \
                           true);                                                                                      \
        }                                                                                                              \
      }                                                                                                                \
    }                                                                                                                  \
  }
DEFINE_TRANSPOSE(bits1, LANES_bits1)
DEFINE_TRANSPOSE(bits2, LANES_bits2)
DEFINE_TRANSPOSE(bits4, LANES_bits4)
DEFINE_TRANSPOSE(bits8, LANES_bits8)

#endif
