/* Stand-in for the CUDA driver API: cuInit first, a current context for all that touches a device, device pointers are integers. */
#include <stdlib.h>
#include <string.h>
#include "cuda_codes.h"

typedef unsigned long long CUdeviceptr;
#define NAME(a, b) a##b

static _Thread_local void *context; /* 1 + device, as a pointer */
static int ready, retained[SI_DEVICES];

#define DEVICE ((int)((uintptr_t)context >> 4) - 1)
#define INIT \
  if (!ready) return 3
#define ENTER \
  INIT;       \
  if (!context || !retained[DEVICE]) return 201
#define PTR(p) ((void *)(uintptr_t)(p))

int cuInit(unsigned flags) { return flags ? 1 : (ready = 1, 0); }

int cuDriverGetVersion(int *version) {
  *version = 12080;
  return 0;
}

int cuGetErrorString(int code, const char **text) {
  *text = cuda_text(code);
  return 0;
}

int cuDeviceGetCount(int *count) {
  INIT;
  *count = SI_DEVICES;
  return 0;
}

int cuDeviceGet(int *device, int ordinal) {
  INIT;
  if (si_state(ordinal) == SI_ORDINAL) return 101;
  *device = ordinal + 100; /* a CUdevice is not the ordinal: who mixes them up is refused below */
  return 0;
}

static int ordinal(int device) { return device - 100; }

int cuDeviceGetName(char *name, int length, int device) {
  INIT;
  if (si_state(ordinal(device)) == SI_ORDINAL) return 101;
  strncpy(name, "stand-in GPU", (size_t)length);
  return 0;
}

int cuDeviceGetUuid_v2(char *uuid, int device) {
  INIT;
  if (si_state(ordinal(device)) == SI_ORDINAL) return 101;
  memset(uuid, 0xA0 + ordinal(device), 16);
  return 0;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  INIT;
  *bytes = SI_BYTES;
  return si_state(ordinal(device)) == SI_ORDINAL ? 101 : 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  static const int known[][2] = {{1, SI_MAX_THREADS},
                                 {5, 2147483647},
                                 {6, SI_MAX_GRID},
                                 {7, SI_MAX_GRID},
                                 {8, 48 << 10},
                                 {10, 32},
                                 {16, 4},
                                 {75, 9},
                                 {76, 0},
                                 {97, SI_SHARED}};
  INIT;
  if (si_state(ordinal(device)) == SI_ORDINAL) return 101;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i][0] == attribute) return *value = known[i][1], 0;
  return 1;
}

int cuDevicePrimaryCtxRetain(void **out, int device) {
  INIT;
  if (si_state(ordinal(device)) == SI_ORDINAL) return 101;
  retained[ordinal(device)]++;
  *out = PTR((uintptr_t)(ordinal(device) + 1) << 4);
  return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  INIT;
  if (si_state(ordinal(device)) == SI_ORDINAL) return 101;
  if (!retained[ordinal(device)]) return 201;
  retained[ordinal(device)]--;
  return 0;
}

int cuCtxSetCurrent(void *wanted) {
  INIT;
  int device = (int)((uintptr_t)wanted >> 4) - 1;
  if (wanted && (si_state(device) == SI_ORDINAL || !retained[device])) return 201;
  context = wanted;
  return 0;
}

int cuCtxSynchronize(void) {
  ENTER;
  return cuda_code(si_sync(DEVICE));
}

/* ---- memory */
int cuMemAlloc_v2(CUdeviceptr *p, size_t n) {
  ENTER;
  void *made = NULL;
  int code = n ? si_malloc(DEVICE, n, &made) : SI_INVALID;
  *p = (uintptr_t)made;
  return cuda_code(code);
}

int cuMemFree_v2(CUdeviceptr p) {
  ENTER;
  return cuda_code(si_free(PTR(p)));
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  ENTER;
  uint64_t f, t;
  si_meminfo(DEVICE, &f, &t);
  *free_bytes = f;
  *total = t;
  return 0;
}

int cuMemAllocHost_v2(void **p, size_t n) {
  ENTER;
  return cuda_code(si_host_alloc(n, p));
}

int cuMemFreeHost(void *p) {
  ENTER;
  return cuda_code(si_host_free(p));
}

int cuMemAllocManaged(CUdeviceptr *p, size_t n, unsigned flags) {
  ENTER;
  void *made = NULL;
  int code = flags == 1 ? si_managed(DEVICE, n, &made) : SI_INVALID;
  *p = (uintptr_t)made;
  return cuda_code(code);
}

int cuMemHostRegister_v2(void *p, size_t n, unsigned flags) {
  ENTER;
  return cuda_code(flags ? SI_INVALID : si_register(p, n));
}

int cuMemHostUnregister(void *p) {
  ENTER;
  return cuda_code(si_unregister(p));
}

int cuMemcpyHtoDAsync_v2(CUdeviceptr dst, const void *src, size_t n, void *stream) {
  ENTER;
  return cuda_code(si_copy(DEVICE, stream, PTR(dst), src, n, SI_H2D, 1));
}

int cuMemcpyDtoHAsync_v2(void *dst, CUdeviceptr src, size_t n, void *stream) {
  ENTER;
  return cuda_code(si_copy(DEVICE, stream, dst, PTR(src), n, SI_D2H, 1));
}

int cuMemcpyDtoDAsync_v2(CUdeviceptr dst, CUdeviceptr src, size_t n, void *stream) {
  ENTER;
  return cuda_code(si_copy(DEVICE, stream, PTR(dst), PTR(src), n, SI_D2D, 1));
}

int cuMemcpyPeerAsync(CUdeviceptr dst, void *dst_context, CUdeviceptr src, void *src_context, size_t n, void *stream) {
  ENTER;
  int to = (int)((uintptr_t)dst_context >> 4) - 1, from = (int)((uintptr_t)src_context >> 4) - 1;
  return si_state(to) || si_state(from) ? 201
                                        : cuda_code(si_copy_peer(DEVICE, stream, PTR(dst), to, PTR(src), from, n, 1));
}

int cuMemsetD8Async(CUdeviceptr p, unsigned char value, size_t n, void *stream) {
  ENTER;
  return cuda_code(si_fill(DEVICE, stream, PTR(p), value, 1, n, 1));
}

int cuMemsetD16Async(CUdeviceptr p, unsigned short value, size_t n, void *stream) {
  ENTER;
  return cuda_code(si_fill(DEVICE, stream, PTR(p), value, 2, n, 1));
}

int cuMemsetD32Async(CUdeviceptr p, unsigned value, size_t n, void *stream) {
  ENTER;
  return cuda_code(si_fill(DEVICE, stream, PTR(p), value, 4, n, 1));
}

/* ---- streams, events, graphs */
#define CALL(name, parameters, result) \
  int name parameters {                \
    ENTER;                             \
    return cuda_code(result);          \
  }
CALL(cuStreamCreate, (void **stream, unsigned flags), flags > 1 ? SI_INVALID : si_stream_new(DEVICE, !flags, stream))
CALL(cuStreamDestroy_v2, (void *stream), si_stream_destroy(stream))
CALL(cuStreamSynchronize, (void *stream), si_stream_sync(DEVICE, stream))
CALL(cuStreamQuery, (void *stream), si_stream_query(DEVICE, stream))
CALL(cuStreamWaitEvent, (void *stream, void *event, unsigned flags),
     flags ? SI_INVALID : si_stream_wait(DEVICE, stream, event))
CALL(cuLaunchHostFunc, (void *stream, void (*fn)(void *), void *user), si_host_func(DEVICE, stream, fn, user))
CALL(cuEventCreate, (void **event, unsigned flags), flags > 7 ? SI_INVALID : si_event_new(DEVICE, !(flags & 2), event))
CALL(cuEventDestroy_v2, (void *event), si_event_destroy(event))
CALL(cuEventRecord, (void *event, void *stream), si_event_record(DEVICE, event, stream))
CALL(cuEventQuery, (void *event), si_event_query(event))
CALL(cuEventSynchronize, (void *event), si_event_sync(event))
CALL(cuEventElapsedTime, (float *ms, void *start, void *end), si_elapsed(ms, start, end))
CALL(cuStreamBeginCapture_v2, (void *stream, int mode),
     mode < 0 || mode > 2 ? SI_INVALID : si_capture_begin(DEVICE, stream))
CALL(cuStreamEndCapture, (void *stream, void **graph), si_capture_end(stream, graph))
CALL(cuGraphInstantiateWithFlags, (void **exec, void *graph, unsigned long long flags),
     flags ? SI_INVALID : si_instantiate(graph, exec))
CALL(cuGraphLaunch, (void *exec, void *stream), si_graph_launch(DEVICE, exec, stream))
CALL(cuGraphDestroy, (void *graph), si_graph_destroy(graph))
CALL(cuGraphExecDestroy, (void *exec), si_graph_destroy(exec))
CALL(cuFuncSetAttribute, (void *function, int attribute, int value),
     !si_arguments(function)               ? SI_HANDLE
     : attribute != 8 || value > SI_SHARED ? SI_INVALID
                                           : SI_OK)

#define M cu
#define LAUNCH LaunchKernel
#undef NAME
#define JOIN_(a, b) a##b
#define NAME(a, b) JOIN_(a, b)
#include "modules.h"
