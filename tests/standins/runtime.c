/* Stand-in for a runtime of CUDA's shape.  build.py gives the vendor's words:
 *   P             prefix of every name                  MODEL, ARCH   texts in the properties struct
 *   ATTRIBUTES    {number, value}, ... of the vendor    ARCH_OFFSET   where ARCH stands there
 *   MALLOC PINNED PINNED_FREE HOST_FUNC                 names that differ
 *   PINNED_FLAGS  pinned memory takes flags             STREAM_FIRST  the stream stands before the copy direction
 *   NO_AUTO       direction 4 does not exist            NO_WAIT_FLAGS StreamWaitEvent takes two arguments
 *   M LAUNCH MODULE_SIZE                                see modules.h; without M the runtime has no modules
 *   MODULE_INIT   the module API wants <M>Init first    NO_GRAPH NO_EXTRAS NO_MEMSET NO_INFO  what the runtime lacks
 */
#include <stdlib.h>
#include <string.h>
#include "cuda_codes.h"

#define JOIN_(a, b) a##b
#define NAME(a, b) JOIN_(a, b)
#define F(name) NAME(P, name)

#ifndef MALLOC
#define MALLOC Malloc
#endif
#ifndef PINNED
#define PINNED MallocHost
#endif
#ifndef PINNED_FREE
#define PINNED_FREE FreeHost
#endif
#ifndef HOST_FUNC
#define HOST_FUNC LaunchHostFunc
#endif
#ifndef PROPERTIES
#define PROPERTIES GetDeviceProperties
#endif
#ifndef ARCH_OFFSET
#define ARCH_OFFSET 600
#define ARCH ""
#endif

static _Thread_local int current, last;
#ifdef MODULE_INIT
static int module_api_ready;
#endif

static int done(int code) {
  int number = cuda_code(code);
  if (number && number != 600) last = number;
  return number;
}

/* ---- device */
int F(GetDeviceCount)(int *count) {
  *count = SI_DEVICES;
  return 0;
}

int F(SetDevice)(int device) {
  int state = si_state(device);
  if (state == SI_ORDINAL) return done(state);
  current = device;
  return done(state);
}

int F(GetDevice)(int *device) {
  *device = current;
  return 0;
}

int F(DeviceSynchronize)(void) { return done(si_sync(current)); }
int F(DeviceReset)(void) { return done(si_reset(current)); }

int F(GetLastError)(void) {
  int code = last;
  last = 0;
  return code;
}

#ifndef NO_INFO
const char *F(GetErrorString)(int code) { return cuda_text(code); }

int F(PROPERTIES)(void *properties, int device) {
  if (si_state(device) == SI_ORDINAL) return done(SI_ORDINAL);
  memset(properties, 0, ARCH_OFFSET + 256);
  strcpy(properties, MODEL);
  strcpy((char *)properties + ARCH_OFFSET, ARCH);
  return 0;
}

int F(DeviceGetAttribute)(int *value, int attribute, int device) {
  static const int known[][2] = {ATTRIBUTES};
  if (si_state(device) == SI_ORDINAL) return done(SI_ORDINAL);
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i][0] == attribute) return *value = known[i][1], 0;
  return done(SI_INVALID);
}

int F(MemGetInfo)(size_t *free_bytes, size_t *total) {
  uint64_t f, t;
  si_meminfo(current, &f, &t);
  *free_bytes = f;
  *total = t;
  return done(si_state(current));
}
#endif

#ifndef NO_EXTRAS
int F(DeviceGetPCIBusId)(char *text, int length, int device) {
  if (si_state(device) == SI_ORDINAL || length < 13) return done(SI_INVALID);
  memcpy(text, "0000:0", 7);
  text[6] = (char)('1' + device);
  strcpy(text + 7, ":00.0");
  return 0;
}

int F(RuntimeGetVersion)(int *version) {
  *version = 60200000;
  return 0;
}

int F(MallocManaged)(void **p, size_t n, unsigned flags) {
  return flags != 1 ? done(SI_INVALID) : done(si_managed(current, n, p));
}
int F(HostRegister)(void *p, size_t n, unsigned flags) { return flags ? done(SI_INVALID) : done(si_register(p, n)); }
int F(HostUnregister)(void *p) { return done(si_unregister(p)); }
#endif

/* ---- memory */
int F(MALLOC)(void **p, size_t n) { return done(si_malloc(current, n, p)); }
int F(Free)(void *p) { return p ? done(si_free(p)) : 0; }
#ifdef PINNED_FLAGS
int F(PINNED)(void **p, size_t n, unsigned flags) {
  return flags & ~PINNED_FLAGS ? done(SI_INVALID) : done(si_host_alloc(n, p));
}
#else
int F(PINNED)(void **p, size_t n) { return done(si_host_alloc(n, p)); }
#endif
int F(PINNED_FREE)(void *p) { return p ? done(si_host_free(p)) : 0; }

static int direction(int kind) {
#ifdef NO_AUTO
  if (kind == SI_AUTO) return -1;
#endif
  return kind;
}

int F(Memcpy)(void *dst, const void *src, size_t n, int kind) {
  return done(si_copy(current, NULL, dst, src, n, direction(kind), 0));
}
#ifdef STREAM_FIRST
int F(MemcpyAsync)(void *dst, const void *src, size_t n, void *stream, int kind) {
#else
int F(MemcpyAsync)(void *dst, const void *src, size_t n, int kind, void *stream) {
#endif
  return done(si_copy(current, stream, dst, src, n, direction(kind), 1));
}

#ifndef NO_MEMSET
int F(Memset)(void *p, int value, size_t n) { return done(si_fill(current, NULL, p, (uint8_t)value, 1, n, 0)); }
int F(MemsetAsync)(void *p, int value, size_t n, void *stream) {
  return done(si_fill(current, stream, p, (uint8_t)value, 1, n, 1));
}
#endif

#ifndef NO_EXTRAS
int F(MemcpyPeerAsync)(void *dst, int dst_device, const void *src, int src_device, size_t n, void *stream) {
  return done(si_copy_peer(current, stream, dst, dst_device, src, src_device, n, 1));
}

int F(MemsetD16Async)(void *p, unsigned short value, size_t count, void *stream) {
  return done(si_fill(current, stream, p, value, 2, count, 1));
}
int F(MemsetD32Async)(void *p, int value, size_t count, void *stream) {
  return done(si_fill(current, stream, p, (uint32_t)value, 4, count, 1));
}

int F(Memcpy2DAsync)(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t height,
                     int kind, void *stream) {
  if (width > dst_pitch || width > src_pitch) return done(SI_INVALID);
  for (size_t row = 0; row < height; row++) {
    int code = si_copy(current, stream, (char *)dst + row * dst_pitch, (const char *)src + row * src_pitch, width,
                       direction(kind), 1);
    if (code) return done(code);
  }
  return 0;
}
#endif

/* ---- streams and events */
int F(StreamCreateWithFlags)(void **stream, unsigned flags) {
  return flags > 1 ? done(SI_INVALID) : done(si_stream_new(current, !flags, stream));
}
int F(StreamCreate)(void **stream) { return done(si_stream_new(current, 1, stream)); }
int F(StreamDestroy)(void *stream) { return done(si_stream_destroy(stream)); }
int F(StreamSynchronize)(void *stream) { return done(si_stream_sync(current, stream)); }
int F(StreamQuery)(void *stream) { return done(si_stream_query(current, stream)); }
#ifdef NO_WAIT_FLAGS
int F(StreamWaitEvent)(void *stream, void *event) { return done(si_stream_wait(current, stream, event)); }
int F(EventCreate)(void **event) { return done(si_event_new(current, 1, event)); }
#else
int F(StreamWaitEvent)(void *stream, void *event, unsigned flags) {
  return flags ? done(SI_INVALID) : done(si_stream_wait(current, stream, event));
}
int F(EventCreateWithFlags)(void **event, unsigned flags) {
  return flags > 7 ? done(SI_INVALID) : done(si_event_new(current, !(flags & 2), event));
}
#endif
int F(HOST_FUNC)(void *stream, void (*fn)(void *), void *user) { return done(si_host_func(current, stream, fn, user)); }
int F(EventDestroy)(void *event) { return done(si_event_destroy(event)); }
int F(EventRecord)(void *event, void *stream) { return done(si_event_record(current, event, stream)); }
int F(EventQuery)(void *event) { return done(si_event_query(event)); }
int F(EventSynchronize)(void *event) { return done(si_event_sync(event)); }
int F(EventElapsedTime)(float *ms, void *start, void *end) { return done(si_elapsed(ms, start, end)); }

/* ---- graphs */
#ifndef NO_GRAPH
int F(StreamBeginCapture)(void *stream, int mode) {
  return mode < 0 || mode > 2 ? done(SI_INVALID) : done(si_capture_begin(current, stream));
}
int F(StreamEndCapture)(void *stream, void **graph) { return done(si_capture_end(stream, graph)); }
int F(GraphInstantiateWithFlags)(void **exec, void *graph, unsigned long long flags) {
  return flags ? done(SI_INVALID) : done(si_instantiate(graph, exec));
}
int F(GraphLaunch)(void *exec, void *stream) { return done(si_graph_launch(current, exec, stream)); }
int F(GraphDestroy)(void *graph) { return done(si_graph_destroy(graph)); }
int F(GraphExecDestroy)(void *exec) { return done(si_graph_destroy(exec)); }
#endif

/* ---- modules */
#ifdef M
#ifdef MODULE_INIT
int NAME(M, Init)(unsigned flags) {
  module_api_ready = 1;
  return flags ? 1 : 0;
}
#define ENTER \
  if (!module_api_ready) return 3
#else
#define ENTER (void)0
#endif
#define DEVICE current
#include "modules.h"
#endif
