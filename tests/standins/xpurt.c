/* Stand-in for XRE: own direction numbers, no memset, no memory info, no elapsed time, no query of a stream, copies between
 * devices with each device before its pointer, a launch in three calls.  Some errors come back negative. */
#include <stdlib.h>
#include <string.h>
#include "device.h"

static _Thread_local int current;

static int done(int code) {
  static const int numbers[] = {
      [SI_OK] = 0,        [SI_INVALID] = 707,   [SI_OOM] = 705,        [SI_HANDLE] = 707,       [SI_NOT_READY] = 716,
      [SI_ORDINAL] = 701, [SI_DIRECTION] = 707, [SI_FAULT] = 714,      [SI_IMAGE] = 714,        [SI_SYMBOL] = 708,
      [SI_TIMING] = 707,  [SI_CAPTURE] = 707,   [SI_REGISTERED] = 816, [SI_UNREGISTERED] = 707, [SI_UNSUPPORTED] = 712};
  return numbers[code];
}

/* ---- device */
int xpu_device_count(int *count) {
  *count = SI_DEVICES;
  return 0;
}

int xpu_set_device(int device) {
  if (si_state(device) == SI_ORDINAL) return 701;
  current = device;
  return done(si_state(device));
}

int xpu_device_get_attr(uint64_t *value, int attribute, int device) {
  if (si_state(device) == SI_ORDINAL) return 701;
  uint64_t known[] = {
      [0] = 0x1A00ull + (unsigned)device, [4] = 331, [5] = SI_BYTES, [6] = 96 << 20, [7] = 12, [8] = 12};
  if (attribute < 0 || attribute > 8 || (attribute && attribute < 4)) return 707;
  *value = known[attribute];
  return 0;
}

/* ---- memory */
int xpu_malloc(void **p, uint64_t n, int kind) {
  return kind != 0 && kind != 1 && kind != 16 ? 707 : done(si_malloc(current, n, p));
}
int xpu_free(void *p) { return done(si_free(p)); }
int xpu_host_alloc(void **p, uint64_t n, int flags) { return flags ? 707 : done(si_host_alloc(n, p)); }
int xpu_host_free(void *p) { return done(si_host_free(p)); }
int xpu_host_register(void *p, uint64_t n, int flags) { return flags ? 707 : done(si_register(p, n)); }
int xpu_host_unregister(void *p) { return done(si_unregister(p)); }

static int direction(int kind) {
  static const int directions[] = {SI_D2H, SI_H2D, SI_D2D};
  return kind < 0 || kind > 2 ? -1 : directions[kind];
}

int xpu_memcpy(void *dst, const void *src, uint64_t n, int kind) {
  return done(si_copy(current, NULL, dst, src, n, direction(kind), 0));
}
int xpu_memcpy_async(void *dst, const void *src, uint64_t n, int kind, void *stream) {
  return done(si_copy(current, stream, dst, src, n, direction(kind), 1));
}
int xpu_memcpy_peer(int dst_device, void *dst, int src_device, const void *src, uint64_t n) {
  return done(si_copy_peer(current, NULL, dst, dst_device, src, src_device, n, 0));
}

/* ---- streams and events */
int xpu_stream_create(void **stream) { return done(si_stream_new(current, 0, stream)); }
int xpu_stream_destroy(void *stream) { return done(si_stream_destroy(stream)); }
int xpu_wait(void *stream) { return done(si_stream_sync(current, stream)); }
int xpu_stream_wait_event(void *stream, void *event) { return done(si_stream_wait(current, stream, event)); }
int xpu_event_create(void **event) { return done(si_event_new(current, 0, event)); }
int xpu_event_destroy(void *event) { return done(si_event_destroy(event)); }
int xpu_event_record(void *event, void *stream) { return done(si_event_record(current, event, stream)); }
int xpu_event_wait(void *event) { return done(si_event_sync(event)); }
int xpu_event_query(void *event) { return done(si_event_query(event)); }

/* ---- launch: arguments, then the shape, then the kernel */
struct xpu_kernel { /* what the runtime reads of a kernel */
  uint32_t type : 16, place : 16;
  uint64_t code;
  uint32_t code_bytes, pc, words;
  uint64_t hash;
  const char *name;
  void *own;
  uint64_t printf_offset;
};

static _Thread_local struct {
  char arguments[256];
  size_t n;
  int configured;
  void *stream;
} next;

int xpu_launch_argument_set(const void *value, size_t n, size_t offset) {
  if (!value || offset % 4 || offset + n > sizeof next.arguments) return -707;
  memcpy(next.arguments + offset, value, n);
  if (offset + n > next.n) next.n = offset + n;
  next.configured = 0;
  return 0;
}

int xpu_launch_config(int clusters, int cores, void *stream) {
  if (clusters < 1 || clusters > 12 || cores != 64) return -707;
  next.configured = 1;
  next.stream = stream;
  return 0;
}

int xpu_launch_async(const struct xpu_kernel *kernel) {
  int configured = next.configured;
  size_t n = next.n, at = 0;
  next.configured = 0;
  next.n = 0;
  if (!configured || !kernel || kernel->type || kernel->place || !kernel->code) return -707;
  si_handle module, function;
  int code = si_module_load(current, (const char *)(uintptr_t)kernel->code, &module);
  if (code) return -done(code);
  code = si_module_function(module, kernel->name, &function);
  const char *types = code ? "" : si_arguments(function);
  uint64_t values[SI_ARGS] = {0};
  for (int i = 0; types[i]; i++) {
    size_t size = types[i] == 'p' ? 8 : 4;
    at = (at + size - 1) / size * size;
    memcpy(&values[i], next.arguments + at, size);
    at += size;
  }
  unsigned grid[3];
  memcpy(grid, next.arguments + at, 12); /* the grid stands behind the arguments */
  if (!code && at + 12 != n) code = SI_INVALID;
  if (!code) code = si_launch(current, next.stream, function, grid, (unsigned[]){1, 1, 1}, 0, values);
  si_module_unload(module);
  return -done(code);
}
