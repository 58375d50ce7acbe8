/* Stand-in for CNRT 6 and CNDrv: own direction numbers, queue before direction, two codes for "not ready", memory in MiB, a
 * context of CNDrv on each thread. */
#include <stdlib.h>
#include <string.h>
#include "cuda_codes.h"

static _Thread_local int current, last;
static _Thread_local void *context;
static int driver_ready;

static int done(int code) {
  static const int numbers[] = {[SI_OK] = 0,
                                [SI_INVALID] = 100006,
                                [SI_OOM] = 100100,
                                [SI_HANDLE] = 100006,
                                [SI_NOT_READY] = 1,
                                [SI_ORDINAL] = 100005,
                                [SI_DIRECTION] = 632013,
                                [SI_FAULT] = 999991,
                                [SI_IMAGE] = 100006,
                                [SI_SYMBOL] = 100006,
                                [SI_TIMING] = 100006,
                                [SI_CAPTURE] = 100006,
                                [SI_REGISTERED] = 100006,
                                [SI_UNREGISTERED] = 100006,
                                [SI_UNSUPPORTED] = 100050};
  if (code && code != SI_NOT_READY) last = numbers[code];
  return numbers[code];
}

const char *cnrtGetErrorStr(int code) {
  switch (code) {
    case 0:
      return "no error";
    case 100006:
      return "invalid argument";
    case 100100:
      return "no memory left on the device";
    case 632013:
      return "invalid copy direction";
    default:
      return "unknown error";
  }
}

int cnrtGetLastError(void) {
  int code = last;
  last = 0;
  return code;
}

int cnrtPeekAtLastError(void) { return last; }

/* ---- device */
int cnrtGetDeviceCount(unsigned *count) {
  *count = SI_DEVICES;
  return 0;
}

int cnrtSetDevice(int device) {
  if (si_state(device) == SI_ORDINAL) return done(SI_ORDINAL);
  current = device;
  return done(si_state(device));
}

int cnrtSyncDevice(void) { return done(si_sync(current)); }
int cnrtDeviceReset(void) { return done(si_reset(current)); }

int cnrtDeviceGetAttribute(int *value, int attribute, int device) {
  static const int known[][2] = {
      {0x01, 5},  {0x02, 9},    {0x201, 2147483647}, {0x202, SI_MAX_GRID}, {0x203, SI_MAX_GRID},   {0x205, 2},
      {0x206, 4}, {0x20A, 592}, {0x302, 768 << 10},  {0x306, SI_SHARED},   {0x405, SI_BYTES >> 20}};
  if (si_state(device) == SI_ORDINAL) return done(SI_ORDINAL);
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i][0] == attribute) return *value = known[i][1], 0;
  return done(SI_INVALID);
}

int cnrtGetDeviceProperties_V3(void *properties, int device) {
  if (si_state(device) == SI_ORDINAL) return done(SI_ORDINAL);
  strcpy(properties, "stand-in MLU590");
  return 0;
}

int cnrtDeviceGetPCIBusId(char *text, int length, int device) {
  if (si_state(device) == SI_ORDINAL || length < 13) return done(SI_INVALID);
  memcpy(text, "0000:0", 7);
  text[6] = (char)('1' + device);
  strcpy(text + 7, ":00.0");
  return 0;
}

int cnrtMemGetInfo(size_t *free_bytes, size_t *total) {
  uint64_t f, t;
  si_meminfo(current, &f, &t);
  *free_bytes = f;
  *total = t;
  return done(si_state(current));
}

/* ---- memory */
int cnrtMalloc(void **p, size_t n) { return done(si_malloc(current, n, p)); }
int cnrtFree(void *p) { return p ? done(si_free(p)) : 0; }
int cnrtHostMalloc(void **p, size_t n) { return done(si_host_alloc(n, p)); }
int cnrtFreeHost(void *p) { return done(si_host_free(p)); }

static int direction(int number) {
  static const int directions[] = {SI_H2D, SI_D2D, SI_D2H, SI_H2H, -1, SI_AUTO}; /* 4: peer, for cnrtMemcpyPeer only */
  return number < 0 || number > 5 ? -1 : directions[number];
}

int cnrtMemcpy(void *dst, void *src, size_t n, int dir) {
  return done(si_copy(current, NULL, dst, src, n, direction(dir), 0));
}
int cnrtMemcpyAsync_V3(void *dst, void *src, size_t n, void *queue, int dir) {
  return done(si_copy(current, queue, dst, src, n, direction(dir), 1));
}
int cnrtMemcpyPeerAsync(void *dst, int dst_device, void *src, int src_device, size_t n, void *queue) {
  return done(si_copy_peer(current, queue, dst, dst_device, src, src_device, n, 1));
}
int cnrtMemset(void *p, int value, size_t n) { return done(si_fill(current, NULL, p, (uint8_t)value, 1, n, 0)); }
int cnrtMemsetAsync(void *p, int value, size_t n, void *queue) {
  return done(si_fill(current, queue, p, (uint8_t)value, 1, n, 1));
}

/* ---- queues and notifiers */
int cnrtQueueCreate(void **queue) { return done(si_stream_new(current, 1, queue)); }
int cnrtQueueDestroy(void *queue) { return done(si_stream_destroy(queue)); }
int cnrtQueueSync(void *queue) { return done(si_stream_sync(current, queue)); }
int cnrtQueueQuery(void *queue) { return done(si_stream_query(current, queue)); }
int cnrtQueueWaitNotifier(void *notifier, void *queue, unsigned flags) {
  return flags ? done(SI_INVALID) : done(si_stream_wait(current, queue, notifier));
}
int cnrtInvokeHostFunc(void *queue, void (*fn)(void *), void *user) {
  return done(si_host_func(current, queue, fn, user));
}
int cnrtNotifierCreateWithFlags(void **notifier, unsigned flags) {
  if (flags & ~14u || (flags & 8 && !(flags & 4))) return done(SI_INVALID);
  return done(si_event_new(current, !(flags & 4), notifier));
}
int cnrtNotifierDestroy(void *notifier) { return done(si_event_destroy(notifier)); }
int cnrtPlaceNotifier(void *notifier, void *queue) { return done(si_event_record(current, notifier, queue)); }
int cnrtWaitNotifier(void *notifier) { return done(si_event_sync(notifier)); }
int cnrtQueryNotifier(void *notifier) {
  int code = si_event_query(notifier);
  return code == SI_NOT_READY ? 632014 : done(code);
}
int cnrtNotifierElapsedTime(void *start, void *end, float *ms) {
  int code = si_elapsed(ms, start, end);
  if (code == SI_TIMING && !(si_recorded(start) && si_recorded(end))) return last = 632015; /* never placed */
  return done(code);
}
int cnrtNotifierDuration(void *start, void *end, float *us) { /* the hardware's clock, in microseconds */
  int code = done(si_elapsed(us, start, end));
  if (!code) *us *= 1000;
  return code;
}

/* ---- CNDrv */
int cnInit(unsigned flags) {
  driver_ready = !flags;
  return flags ? 100006 : 0;
}

int cnSharedContextAcquire(void **out, int device) {
  if (!driver_ready) return 100002;
  if (si_state(device) == SI_ORDINAL) return 100005;
  *out = (void *)(uintptr_t)(0x1000 + device);
  return 0;
}

int cnSharedContextRelease(int device) { return si_state(device) == SI_ORDINAL ? 100005 : 0; }

int cnCtxSetCurrent(void *wanted) {
  if (!driver_ready || (uintptr_t)wanted < 0x1000 || (uintptr_t)wanted >= 0x1000 + SI_DEVICES) return 100002;
  context = wanted;
  return 0;
}

#define DEVICE ((int)((uintptr_t)context - 0x1000))
#define ENTER \
  if (!context) return 100002
int cnModuleLoadFatBinary(const void *image, void **module) {
  ENTER;
  return done(si_module_load(DEVICE, image, module));
}
int cnModuleUnload(void *module) {
  ENTER;
  return done(si_module_unload(module));
}
int cnModuleGetKernel(void *module, const char *name, void **kernel) {
  ENTER;
  return done(si_module_function(module, name, kernel));
}

/* x counts cores: a task of class 4, 8, 16 or 32 takes that many at once. */
int cnInvokeKernel(void *kernel, unsigned x, unsigned y, unsigned z, unsigned class, unsigned reserve, void *queue,
                   void **params, void **extra) {
  ENTER;
  if (reserve || extra || (class != 1 && class != 4 && class != 8 && class != 16 && class != 32) || x % class)
    return done(SI_INVALID);
  return done(launch(DEVICE, queue, kernel, (unsigned[]){x, y, z}, (unsigned[]){1, 1, 1}, 0, params));
}
