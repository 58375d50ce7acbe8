/* How libhaian and the native module read a driver's table, its handles and the types of a launch's arguments.
 * For: cache_hal.c, py_driver.c, py_launch.c.  Not for: vendors, who see hal/include/haian_hal.h alone. */
#ifndef HAIAN_HAL_TABLE_H
#define HAIAN_HAL_TABLE_H
#include "../include/haian_hal.h"
#include "tensor.h"
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* Python's handles carry the device in bits 56 to 63, which the contract keeps 0 in the driver's own (rule 5). */
#define RAW(handle) ((handle) & (((uint64_t)1 << 56) - 1))
#define DEVICE(handle) ((int32_t)((handle) >> 56))

/* A field exists iff it lies inside the size its writer declared and is not NULL (rule 2). */
#define HAS(table, field) \
  ((table) && offsetof(__typeof__(*(table)), field) + sizeof((table)->field) <= (table)->struct_size && (table)->field)
#define GET(table, field) (HAS(table, field) ? (table)->field : NULL)

#define HAIAN_LAUNCH_ARGS 64

/* One launch argument as C holds it. */
typedef union {
  uint64_t u;
  double d;
  float f;
} haian_cell;

/* What Triton's name of a type says: "*fp32" is an address, "i32" and "u8" integers, "i1" a bool, "fp32", "fp64" floats.
 * Returns 'p', 'i', 'f' or 'd', and 0 for another name. */
static inline char haian_argument_type(const char *type, uint32_t *size, hal_dtype *code) {
  static const hal_dtype integers[2][4] = {{HAIAN_I8, HAIAN_I16, HAIAN_I32, HAIAN_I64},
                                           {HAIAN_U8, HAIAN_U16, HAIAN_U32, HAIAN_U64}};
  const int bits = type[0] == 'i' || type[0] == 'u' ? atoi(type + 1) : 0;
  const int log = bits == 64 ? 3 : bits == 32 ? 2 : bits == 16 ? 1 : 0;
  if (type[0] == '*') return *size = 8, *code = HAL_ARG_POINTER, 'p';
  if (bits) return *size = 1u << log, *code = bits == 1 ? HAIAN_BOOL : integers[type[0] == 'u'][log], 'i';
  if (!strcmp(type, "fp32")) return *size = 4, *code = HAIAN_F32, 'f';
  if (!strcmp(type, "fp64")) return *size = 8, *code = HAIAN_F64, 'd';
  return 0;
}

#endif
