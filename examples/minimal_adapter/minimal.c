/* The smallest driver: the ten required functions, over host memory.  haian runs everything on it synchronously.
 * Build: make   Try: HAIAN_ADAPTER_PATH=$PWD/minimal.so haian devices   Prove: haian conformance run --suite hal --device minimal:0
 * With streams, events and kernels: ../inline_adapter/inline.c. */
#include "haian_hal.h"
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEVICES 2
#define TOTAL (1ull << 30)

static _Thread_local const char *message = "";
static hal_status fail(hal_status code, const char *text) {
  message = text;
  return code;
}
#define NEED(condition, code, text) \
  if (!(condition)) return fail(code, text)
#define DEVICE(d) NEED((d) >= 0 && (d) < DEVICES, HAL_INVALID_ARGUMENT, "device must be 0 or 1")

/* ---- core */
static _Atomic uint64_t used[DEVICES];
static hal_status nothing(void) { return HAL_OK; }
static hal_status device_count(int32_t *count) {
  *count = DEVICES;
  return HAL_OK;
}
static hal_status device_ok(int32_t d) {
  DEVICE(d);
  return HAL_OK;
}
static uint64_t last_error(char *buffer, uint64_t capacity) {
  if (capacity) snprintf(buffer, capacity, "%s", message);
  return strlen(message);
}
static hal_status props(int32_t d, hal_props *p) {
  DEVICE(d);
  hal_props v = {.index = d,
                 .model = "minimal host memory",
                 .vendor = "example",
                 .total_bytes = TOTAL,
                 .max_alloc_bytes = TOTAL / 4};
  v.align_bytes = 64;
  v.caps = HAL_CAP_HOST_ACCESS | HAL_CAP_MEMMOVE | HAL_CAP_PEER;
  snprintf(v.uuid, sizeof v.uuid, "minimal-%d", d);
  v.struct_size = p->struct_size < sizeof v ? p->struct_size : sizeof v;
  memcpy(p, &v, v.struct_size);
  return HAL_OK;
}

/* ---- memory: the 64 bytes before a block hold where malloc began and how large it is */
static hal_status alloc(int32_t d, const hal_alloc_desc *a, hal_dptr *out) {
  *out = 0;
  DEVICE(d);
  NEED(a->bytes && !(a->align & (a->align - 1)), HAL_INVALID_ARGUMENT,
       "needs at least 1 byte and a power of two as alignment");
  NEED(a->kind == HAL_MEM_DEVICE && !a->flags, HAL_UNSUPPORTED, "unknown kind of memory or flag");
  NEED(a->bytes <= TOTAL / 4, HAL_OUT_OF_MEMORY, "more than max_alloc_bytes");
  uint64_t align = a->align > 64 ? a->align : 64;
  int fits = atomic_fetch_add(&used[d], a->bytes) + a->bytes <= TOTAL;
  char *start = fits ? malloc(a->bytes + align + 64) : NULL;
  if (!start) {
    used[d] -= a->bytes;
    return fail(HAL_OUT_OF_MEMORY, fits ? "the host has no memory left" : "device memory is full");
  }
  char *base = (char *)(((uintptr_t)start + 64 + align - 1) & ~(align - 1));
  memcpy(base - 64, &start, 8);
  memcpy(base - 56, &a->bytes, 8);
  *out = (uintptr_t)base;
  return HAL_OK;
}
static hal_status release(int32_t d, hal_dptr address) {
  DEVICE(d);
  char *base = (char *)(uintptr_t)address, *start;
  uint64_t bytes;
  memcpy(&start, base - 64, 8);
  memcpy(&bytes, base - 56, 8);
  used[d] -= bytes;
  free(start);
  return HAL_OK;
}
static hal_status copy(int32_t d, hal_handle stream, const hal_copy_desc *c) {
  DEVICE(d);
  DEVICE(c->dst_device);
  NEED(!stream, HAL_INVALID_HANDLE, "this driver has no streams");
  for (uint64_t r = 0; r < c->rows && c->bytes; r++)
    memmove((char *)(uintptr_t)c->dst + r * c->dst_pitch, (const char *)(uintptr_t)c->src + r * c->src_pitch, c->bytes);
  return HAL_OK;
}
static hal_status info(int32_t d, uint64_t *free_bytes, uint64_t *total) {
  DEVICE(d);
  *total = TOTAL;
  *free_bytes = TOTAL - used[d];
  return HAL_OK;
}

static const hal_core core = {sizeof core, 0, nothing, nothing, device_count, props, device_ok, device_ok, last_error};
static const hal_mem mem = {.struct_size = sizeof mem, .alloc = alloc, .free = release, .copy = copy, .info = info};
static const hal_adapter adapter = {.struct_size = sizeof adapter,
                                    .abi_major = HAL_ABI_MAJOR,
                                    .name = "minimal",
                                    .vendor = "example",
                                    .version = "1.0",
                                    .core = &core,
                                    .mem = &mem};
HAL_EXPORT const hal_adapter *hal_get_adapter(const hal_host *host) {
  return host && host->abi_major == HAL_ABI_MAJOR ? &adapter : NULL;
}
