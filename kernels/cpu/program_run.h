/* The loops of users' pointwise operators (program.h), one set a compute type; part of pointwise.c.
 * A block of 256 elements goes through all steps before the next one: registers stay in L1, and memory is read and written
 * once, as by a built-in operator's tile. */
#ifndef HAIAN_PROGRAM_RUN_H
#define HAIAN_PROGRAM_RUN_H
#include "program.h"

#define PROGRAM_BLOCK 256
#include "program_steps.inc"

/* load and store: how an element of the storage type S becomes one of the compute type T, and back; direct: S is T, so that
 * steps read the inputs and the last one writes the result where they lie. */
#define PROGRAM_RUN(kind, T, steps, S, load, store, direct)                                                      \
  static void program_##kind(const haian_program *p, const void *const *in, void *out, int64_t n,                \
                             const haian_attr *attr) {                                                           \
    static _Thread_local _Alignas(64) T r[HAIAN_PROGRAM_REGISTERS][PROGRAM_BLOCK];                               \
    static _Thread_local const haian_program *last; /* whose constants stand in r */                             \
    static _Thread_local double known[HAIAN_PROGRAM_CONSTANTS];                                                  \
    for (int k = 0; k < p->n_constants; k++) {                                                                   \
      const int at = p->constant[k].attr;                                                                        \
      const double number = at < 0 ? p->constant[k].value : haian_attr_float(attr + at);                         \
      if (last == p && memcmp(&number, &known[k], sizeof number) == 0) continue;                                 \
      known[k] = number;                                                                                         \
      for (int64_t i = 0; i < PROGRAM_BLOCK; i++) r[p->constant[k].to][i] = (T)number;                           \
    }                                                                                                            \
    last = p;                                                                                                    \
    const T *at[HAIAN_PROGRAM_REGISTERS]; /* where the value of each register lies */                            \
    const bool into_out = direct && !p->boolean_result && p->n_steps && p->step[p->n_steps - 1].to == p->result; \
    const int staged = p->n_steps - into_out;                                                                    \
    for (int k = p->n_in; k < HAIAN_PROGRAM_REGISTERS; k++) at[k] = r[k];                                        \
    for (int64_t lo = 0; lo < n; lo += PROGRAM_BLOCK) {                                                          \
      const int64_t count = n - lo < PROGRAM_BLOCK ? n - lo : PROGRAM_BLOCK;                                     \
      for (int k = 0; k < p->n_in; k++) {                                                                        \
        at[k] = r[k];                                                                                            \
        if (p->boolean >> k & 1) {                                                                               \
          const uint8_t *x = (const uint8_t *)in[k] + lo;                                                        \
          for (int64_t i = 0; i < count; i++) r[k][i] = (T)(x[i] != 0);                                          \
        } else if (direct) {                                                                                     \
          at[k] = (const T *)in[k] + lo;                                                                         \
        } else {                                                                                                 \
          const S *x = (const S *)in[k] + lo;                                                                    \
          for (int64_t i = 0; i < count; i++) r[k][i] = load(x[i]);                                              \
        }                                                                                                        \
      }                                                                                                          \
      for (int k = 0; k < staged; k++) {                                                                         \
        const haian_step *s = &p->step[k];                                                                       \
        steps(s->op, r[s->to], at[s->a], at[s->b], at[s->c], count);                                             \
        at[s->to] = r[s->to];                                                                                    \
      }                                                                                                          \
      if (into_out) {                                                                                            \
        const haian_step *s = &p->step[staged];                                                                  \
        steps(s->op, (T *)out + lo, at[s->a], at[s->b], at[s->c], count);                                        \
        continue;                                                                                                \
      }                                                                                                          \
      const T *y = at[p->result];                                                                                \
      if (p->boolean_result) {                                                                                   \
        uint8_t *to = (uint8_t *)out + lo;                                                                       \
        for (int64_t i = 0; i < count; i++) to[i] = y[i] != 0;                                                   \
      } else {                                                                                                   \
        S *to = (S *)out + lo;                                                                                   \
        for (int64_t i = 0; i < count; i++) to[i] = store(y[i]);                                                 \
      }                                                                                                          \
    }                                                                                                            \
  }
#define PROGRAM_SAME(x) (x)
#define PROGRAM_TRUTH(x) ((x) != 0)
PROGRAM_RUN(f32, float, program_steps_f32, float, PROGRAM_SAME, PROGRAM_SAME, 1)
PROGRAM_RUN(bf16, float, program_steps_f32, uint16_t, haian_bf16_load, haian_bf16_store, 0)
PROGRAM_RUN(f16, float, program_steps_f32, uint16_t, haian_f16_load, haian_f16_store, 0)
PROGRAM_RUN(f64, double, program_steps_f64, double, PROGRAM_SAME, PROGRAM_SAME, 1)
PROGRAM_RUN(u8, uint8_t, program_steps_u8, uint8_t, PROGRAM_SAME, PROGRAM_SAME, 1)
PROGRAM_RUN(i8, int8_t, program_steps_i8, int8_t, PROGRAM_SAME, PROGRAM_SAME, 1)
PROGRAM_RUN(i16, int16_t, program_steps_i16, int16_t, PROGRAM_SAME, PROGRAM_SAME, 1)
PROGRAM_RUN(i32, int32_t, program_steps_i32, int32_t, PROGRAM_SAME, PROGRAM_SAME, 1)
PROGRAM_RUN(i64, int64_t, program_steps_i64, int64_t, PROGRAM_SAME, PROGRAM_SAME, 1)
PROGRAM_RUN(b8, int32_t, program_steps_i32, uint8_t, PROGRAM_TRUTH, PROGRAM_TRUTH, 0)

/* A tile has no place for its program: each of the HAIAN_PROGRAMS has tiles of its own. */
#define PROGRAM_TILE(kind, slot)                                                                             \
  static void program_##slot##_##kind(const void *const *in, void *out, int64_t n, const haian_attr *attr) { \
    program_##kind(&haian_programs[slot], in, out, n, attr);                                                 \
  }
#define PROGRAM_SLOT(slot)                                                                       \
  PROGRAM_TILE(f32, slot)                                                                        \
  PROGRAM_TILE(bf16, slot)                                                                       \
  PROGRAM_TILE(f16, slot)                                                                        \
  PROGRAM_TILE(f64, slot)                                                                        \
  PROGRAM_TILE(u8, slot)                                                                         \
  PROGRAM_TILE(i8, slot)                                                                         \
  PROGRAM_TILE(i16, slot)                                                                        \
  PROGRAM_TILE(i32, slot)                                                                        \
  PROGRAM_TILE(i64, slot)                                                                        \
  PROGRAM_TILE(b8, slot)                                                                         \
  static haian_pointwise pointwise_user_##slot = {.tile = {[HAIAN_F32] = program_##slot##_f32,   \
                                                           [HAIAN_BF16] = program_##slot##_bf16, \
                                                           [HAIAN_F16] = program_##slot##_f16,   \
                                                           [HAIAN_F64] = program_##slot##_f64,   \
                                                           [HAIAN_U8] = program_##slot##_u8,     \
                                                           [HAIAN_I8] = program_##slot##_i8,     \
                                                           [HAIAN_I16] = program_##slot##_i16,   \
                                                           [HAIAN_I32] = program_##slot##_i32,   \
                                                           [HAIAN_I64] = program_##slot##_i64,   \
                                                           [HAIAN_BOOL] = program_##slot##_b8}}; \
  static int32_t run_user_##slot(const haian_args *args) { return haian_pointwise_run(&pointwise_user_##slot, args); }
#define PROGRAM_ROW(slot) {"user_" #slot, run_user_##slot, HAIAN_ANY, &pointwise_user_##slot},
/* clang-format off */
#define PROGRAM_EACH(X) \
  X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) \
  X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31) \
  X(32) X(33) X(34) X(35) X(36) X(37) X(38) X(39) X(40) X(41) X(42) X(43) X(44) X(45) X(46) X(47) \
  X(48) X(49) X(50) X(51) X(52) X(53) X(54) X(55) X(56) X(57) X(58) X(59) X(60) X(61) X(62) X(63)
/* clang-format on */
PROGRAM_EACH(PROGRAM_SLOT)
#endif
