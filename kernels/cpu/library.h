/* The host kernels as one library: choice of instruction set at run time, lookup by operator, the guarded call.
 * For: the plan cache, the Python module, and any C program.  Not here: the kernels (one .c file a family). */
#ifndef HAIAN_LIBRARY_H
#define HAIAN_LIBRARY_H
#include "../../hal/native/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HAIAN_MAX_INPUTS 4096 /* of operators that take a list of tensors; all others stay below HAIAN_MAX_OPERANDS */

/* The kernel of an operator in the most specific variant that has it and that this processor runs, or NULL with
 * HAIAN_NOT_FOUND's message recorded.  *isa (may be NULL) becomes the variant's name.  Constant within a process. */
const haian_kernel_entry *haian_find_kernel(const char *op, const char **isa);

/* Entry number i of the operators in alphabetical order, with its variant; NULL past the end. */
const haian_kernel_entry *haian_kernel_at(int32_t i, const char **isa);

/* The most specific variant in use ("avx512"), and those in use with the ones below it ("avx512,avx2,base"). */
const char *haian_isa(void);
const char *haian_isa_list(void);

/* Why the value of HAIAN_CPU_ISA could not be honoured (the automatic choice is in use then); "" when it was. */
const char *haian_isa_error(void);

/* Validates every descriptor and attribute, then runs the kernel: nothing that can be seen in the descriptors makes it
 * read or write outside of them.  Returns haian_status; on failure haian_last_error() says what was wrong.
 * An output may be exactly an input (same address, shape, strides, item size) for pointwise operators only. */
int32_t haian_call(const char *op, const haian_args *args);

/* 1 where two elements of a tensor may share memory (its strides interleave or are 0), so it cannot be an output. */
int32_t haian_overlaps_itself(const haian_tensor *t);

#ifdef __cplusplus
}
#endif
#endif
