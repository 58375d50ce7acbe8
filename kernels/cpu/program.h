/* Users' pointwise operators on the host: a formula as a list of steps over vector registers in L1, run by precompiled loops,
 * so that no compiler is needed where they are defined.
 * kernels/ops/program.py writes programs; kernels/native/program.c keeps them; program_run.h runs them. */
#ifndef HAIAN_PROGRAM_H
#define HAIAN_PROGRAM_H
#include "pointwise.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HAIAN_PROGRAMS 64 /* users' operators in one process */
#define HAIAN_PROGRAM_STEPS 96
#define HAIAN_PROGRAM_REGISTERS 24 /* of 256 elements: 24 KB of float32 */
#define HAIAN_PROGRAM_CONSTANTS 24

typedef struct haian_step {
  uint8_t op, to, a, b, c; /* op: the numbers of gen/program_steps.inc; registers otherwise */
} haian_step;

typedef struct haian_program {
  int32_t n_in, n_steps, n_constants, result; /* inputs are registers 0 .. n_in - 1; result: a register */
  uint32_t boolean;                           /* bit i: input i is bool */
  int32_t boolean_result;
  haian_step step[HAIAN_PROGRAM_STEPS];
  struct {
    int32_t to, attr; /* the register; attr -1: the number beside it, else that attribute's value */
    double value;
  } constant[HAIAN_PROGRAM_CONSTANTS];
} haian_program;

extern haian_program haian_programs[HAIAN_PROGRAMS];

/* Keeps a program for an operator of that description (tile is ignored, names are copied) and writes the name of its host
 * kernel ("user_7") to kernel.  Returns haian_status: HAIAN_INVALID_ARGUMENT for a program that names registers, steps or
 * attributes it does not have, HAIAN_OUT_OF_RANGE when HAIAN_PROGRAMS are kept already.  dtypes: bits of those it takes. */
int32_t haian_define_program(const haian_program *program, const haian_pointwise *description, uint32_t dtypes,
                             char kernel[16]);

#ifdef __cplusplus
}
#endif
#endif
