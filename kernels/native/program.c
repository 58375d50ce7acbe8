/* Where users' pointwise operators are kept; what they are: kernels/cpu/program.h. */
#include "../cpu/program.h"
#include "../cpu/library.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

haian_program haian_programs[HAIAN_PROGRAMS];
static int32_t kept;
static pthread_mutex_t defining = PTHREAD_MUTEX_INITIALIZER;

#define NEED(condition, ...) \
  if (!(condition)) return haian_fail(HAIAN_INVALID_ARGUMENT, __VA_ARGS__)

static int32_t check(const haian_program *p, const haian_pointwise *d) {
  const int32_t registers = HAIAN_PROGRAM_REGISTERS;
  NEED(p->n_in >= 1 && p->n_in <= HAIAN_TILE_INPUTS && p->n_in == d->n_in, "%s: a program of %d inputs; needs 1 to %d",
       d->name, p->n_in, HAIAN_TILE_INPUTS);
  NEED(p->n_steps >= 0 && p->n_steps <= HAIAN_PROGRAM_STEPS, "%s: a program of %d steps; at most %d", d->name,
       p->n_steps, HAIAN_PROGRAM_STEPS);
  NEED(p->n_constants >= 0 && p->n_constants <= HAIAN_PROGRAM_CONSTANTS, "%s: a program of %d constants; at most %d",
       d->name, p->n_constants, HAIAN_PROGRAM_CONSTANTS);
  NEED(p->result >= 0 && p->result < registers, "%s: the result is register %d of %d", d->name, p->result, registers);
  for (int32_t i = 0; i < p->n_steps; i++) {
    const haian_step *s = &p->step[i];
    NEED(s->to < registers && s->a < registers && s->b < registers && s->c < registers,
         "%s: step %d names a register past %d", d->name, i, registers - 1);
  }
  for (int32_t i = 0; i < p->n_constants; i++)
    NEED(p->constant[i].to >= 0 && p->constant[i].to < registers && p->constant[i].attr >= -1 &&
             p->constant[i].attr < d->n_attr,
         "%s: constant %d is for register %d and attribute %d; there are %d and %d", d->name, i, p->constant[i].to,
         p->constant[i].attr, registers, d->n_attr);
  return HAIAN_OK;
}

int32_t haian_define_program(const haian_program *p, const haian_pointwise *d, uint32_t dtypes, char kernel[16]) {
  int32_t status = check(p, d);
  if (status) return status;
  pthread_mutex_lock(&defining);
  const int32_t slot = kept < HAIAN_PROGRAMS ? kept++ : -1;
  pthread_mutex_unlock(&defining);
  if (slot < 0)
    return haian_fail(HAIAN_OUT_OF_RANGE,
                      "%s: %d pointwise operators are defined, the most a process may have; reuse one", d->name,
                      HAIAN_PROGRAMS);
  snprintf(kernel, 16, "user_%d", slot);
  const haian_kernel_entry *entry = haian_find_kernel(kernel, NULL);
  if (!entry) return HAIAN_NOT_FOUND;
  haian_pointwise *made = (haian_pointwise *)entry->pointwise; /* program_run.h defines it without const */
  made->name = strdup(d->name);
  made->n_in = d->n_in;
  made->boolean = d->boolean;
  made->result = d->result;
  made->n_attr = d->n_attr;
  made->numbers = d->numbers;
  for (int32_t i = 0; i < d->n_in; i++) made->input[i] = strdup(d->input[i]);
  for (int32_t i = 0; i < d->n_attr; i++) made->attr[i] = strdup(d->attr[i]);
  for (int32_t i = 0; i < HAIAN_DTYPE_END; i++)
    if (!(dtypes >> i & 1)) made->tile[i] = NULL;
  haian_programs[slot] = *p;
  return HAIAN_OK;
}
