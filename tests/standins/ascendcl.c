/* Stand-in for AscendCL: aclInit once, a context for each thread, capacities, statuses by out-parameter, callbacks on
 * subscribed threads, kernel arguments in one struct. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "device.h"

static int ready, finalised, peers[SI_DEVICES][SI_DEVICES];
static _Thread_local int current = -1;
static _Thread_local char said[96];
static uint64_t sync_word[SI_DEVICES]; /* what aclrtGetHardwareSyncAddr points at */

static int done(int code) {
  static const int numbers[] = {[SI_OK] = 0,
                                [SI_INVALID] = 107000,
                                [SI_OOM] = 207001,
                                [SI_HANDLE] = 107000,
                                [SI_NOT_READY] = 507006,
                                [SI_ORDINAL] = 107001,
                                [SI_DIRECTION] = 107000,
                                [SI_FAULT] = 507015,
                                [SI_IMAGE] = 107000,
                                [SI_SYMBOL] = 100029,
                                [SI_TIMING] = 107000,
                                [SI_CAPTURE] = 107000,
                                [SI_REGISTERED] = 107000,
                                [SI_UNREGISTERED] = 107000,
                                [SI_UNSUPPORTED] = 207000};
  if (code) strcpy(said, "the latest message of this thread");
  return numbers[code];
}

#define INIT \
  if (!ready) return 100001
#define ENTER \
  INIT;       \
  if (current < 0) return 107002

int aclInit(const char *config) {
  (void)config;
  if (finalised) return 100001;
  if (ready) return 100002;
  ready = 1;
  return 0;
}

int aclFinalize(void) {
  if (!ready) return 100037;
  ready = 0;
  finalised = 1;
  return 0;
}

const char *aclGetRecentErrMsg(void) { return said[0] ? said : NULL; }
const char *aclrtGetSocName(void) { return "Ascend910B3"; }

/* ---- device */
int aclrtGetDeviceCount(uint32_t *count) {
  INIT;
  *count = SI_DEVICES;
  return 0;
}

int aclrtSetDevice(int32_t device) {
  INIT;
  if (si_state(device) == SI_ORDINAL) return 107001;
  current = device;
  return done(si_state(device));
}

int aclrtSynchronizeDevice(void) {
  ENTER;
  return done(si_sync(current));
}

int aclrtGetDeviceInfo(uint32_t device, int attribute, int64_t *value) {
  static const int known[][2] = {{1, 2}, {101, 4}, {201, 8}, {204, SI_SHARED}, {209, SI_MAX_THREADS}};
  INIT;
  if (si_state((int)device) == SI_ORDINAL) return 107001;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i][0] == attribute) return *value = known[i][1], 0;
  return 107000;
}

int aclrtDeviceGetUuid(int32_t device, char *uuid) {
  INIT;
  if (si_state(device) == SI_ORDINAL) return 107001;
  memset(uuid, 0xB0 + device, 16);
  return 0;
}

int aclrtGetMemInfo(int attribute, size_t *free_bytes, size_t *total) {
  ENTER;
  if (attribute < 0 || attribute > 11) return 107000;
  uint64_t f, t;
  si_meminfo(current, &f, &t);
  *free_bytes = attribute == 1 ? f : 0; /* this chip has HBM and no DDR */
  *total = attribute == 1 ? t : 0;
  return 0;
}

int aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags) {
  ENTER;
  if (flags || si_state(peer) == SI_ORDINAL) return 107000;
  peers[current][peer] = 1;
  return 0;
}

/* ---- memory */
int aclrtMalloc(void **p, size_t n, int policy) {
  ENTER;
  if (!n || policy & ~0x1107 || (policy & 7) > 7) return 100000;
  return done(si_malloc(current, n, p));
}

int aclrtFree(void *p) {
  ENTER;
  return done(si_free(p));
}

int aclrtMallocHost(void **p, size_t n) {
  ENTER;
  return done(si_host_alloc(n, p));
}

int aclrtFreeHost(void *p) {
  ENTER;
  return done(si_host_free(p));
}

/* Whether n bytes at p are mapped, or a device's: arguments that stand in the wrong place end here and not in a crash. */
static int plausible(const void *p, size_t n) {
  if (si_owner(p) >= 0) return 1;
  uintptr_t from = (uintptr_t)p & ~4095ul, to = ((uintptr_t)p + n + 4095) & ~4095ul;
  if (!p || n > 1ull << 30 || to < from) return 0;
  unsigned char *seen = malloc((to - from) / 4096 + 1);
  int mapped = !mincore((void *)from, to - from, seen);
  free(seen);
  return mapped;
}

static int copy(void *dst, size_t capacity, const void *src, size_t n, int kind, void *stream, int async) {
  static const int directions[] = {SI_H2H, SI_H2D, SI_D2H, SI_D2D, SI_AUTO};
  ENTER;
  if (kind < 0 || kind > 4 || capacity < n || !plausible(dst, n) || !plausible(src, n)) return done(SI_INVALID);
  int to = si_owner(dst), from = si_owner(src);
  if (kind == 3 && to >= 0 && from >= 0 && to != from && !(peers[to][from] && peers[from][to])) return done(SI_INVALID);
  return done(si_copy(current, stream, dst, src, n, directions[kind], async));
}

int aclrtMemcpy(void *dst, size_t capacity, const void *src, size_t n, int kind) {
  return copy(dst, capacity, src, n, kind, NULL, 0);
}
int aclrtMemcpyAsync(void *dst, size_t capacity, const void *src, size_t n, int kind, void *stream) {
  return copy(dst, capacity, src, n, kind, stream, 1);
}

static int set(void *p, size_t capacity, int32_t value, size_t n, void *stream, int async) {
  ENTER;
  if (capacity < n) return done(SI_INVALID);
  return done(si_fill(current, stream, p, (uint8_t)value, 1, n, async));
}

int aclrtMemset(void *p, size_t capacity, int32_t value, size_t n) { return set(p, capacity, value, n, NULL, 0); }
int aclrtMemsetAsync(void *p, size_t capacity, int32_t value, size_t n, void *stream) {
  return set(p, capacity, value, n, stream, 1);
}

/* ---- streams and events */
#define CALL(name, parameters, result) \
  int name parameters {                \
    ENTER;                             \
    return done(result);               \
  }
CALL(aclrtCreateStream, (void **stream), si_stream_new(current, 0, stream))
CALL(aclrtDestroyStream, (void *stream), si_stream_destroy(stream))
CALL(aclrtSynchronizeStream, (void *stream), si_stream_sync(current, stream))
CALL(aclrtStreamWaitEvent, (void *stream, void *event), si_stream_wait(current, stream, event))
CALL(aclrtDestroyEvent, (void *event), si_event_destroy(event))
CALL(aclrtRecordEvent, (void *event, void *stream), si_event_record(current, event, stream))
CALL(aclrtSynchronizeEvent, (void *event), si_event_sync(event))
CALL(aclrtEventElapsedTime, (float *ms, void *start, void *end), si_elapsed(ms, start, end))

int aclrtStreamQuery(void *stream, int *status) { /* 0 complete, 1 not ready */
  ENTER;
  int code = si_stream_query(current, stream);
  *status = code == SI_NOT_READY ? 1 : code ? 0xFFFF : 0;
  return code == SI_NOT_READY ? 0 : done(code);
}

int aclrtQueryEventStatus(void *event, int *status) { /* 0 not ready, 1 complete */
  ENTER;
  int code = si_event_query(event);
  *status = code == SI_OK;
  return code == SI_NOT_READY ? 0 : done(code);
}

int aclrtQueryEventWaitStatus(void *event, int *status) { /* 0 complete, 1 not ready */
  ENTER;
  int code = si_event_query(event);
  *status = code == SI_NOT_READY ? 1 : code ? 0xFFFF : 0;
  return code == SI_NOT_READY ? 0 : done(code);
}

int aclrtCreateEventExWithFlag(void **event, uint32_t flag) {
  ENTER;
  return !flag || flag & ~0x7Bu ? done(SI_INVALID) : done(si_event_new(current, !!(flag & 8), event));
}

/* ---- callbacks: they run on the thread that subscribed to the stream, inside its aclrtProcessReport */
typedef struct report {
  struct report *next;
  void (*fn)(void *);
  void *user, *stream;
  int finished, block;
} report;

static struct {
  uint64_t thread;
  void *stream;
} subscribers[4096];
static int subscribed;
static report *reports;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static int subscriber(void *stream) {
  for (int i = 0; i < subscribed; i++)
    if (subscribers[i].stream == stream) return i;
  return -1;
}

int aclrtSubscribeReport(uint64_t thread, void *stream) {
  ENTER;
  pthread_mutex_lock(&lock);
  int code = subscriber(stream) >= 0 ? 100033 : subscribed == 4096 ? 107000 : 0;
  if (!code) {
    subscribers[subscribed].thread = thread;
    subscribers[subscribed++].stream = stream;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

int aclrtUnSubscribeReport(uint64_t thread, void *stream) {
  INIT;
  pthread_mutex_lock(&lock);
  int i = subscriber(stream), code = i < 0 ? 100034 : subscribers[i].thread != thread ? 100035 : 0;
  if (!code) subscribers[i] = subscribers[--subscribed];
  pthread_mutex_unlock(&lock);
  return code;
}

static void post(void *argument) { /* on the stream's thread */
  report *mine = argument, **last = &reports;
  pthread_mutex_lock(&lock);
  while (*last) last = &(*last)->next;
  *last = mine;
  pthread_cond_broadcast(&changed);
  while (mine->block && !mine->finished) pthread_cond_wait(&changed, &lock);
  int mine_to_free = mine->block;
  pthread_mutex_unlock(&lock);
  if (mine_to_free) free(mine);
}

int aclrtProcessReport(int32_t timeout_ms) {
  INIT;
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
  until.tv_sec += timeout_ms / 1000 + until.tv_nsec / 1000000000;
  until.tv_nsec %= 1000000000;
  uint64_t self = (uint64_t)pthread_self();
  pthread_mutex_lock(&lock);
  for (;;) {
    report **at = &reports;
    for (int s; *at; at = &(*at)->next)
      if ((s = subscriber((*at)->stream)) >= 0 && subscribers[s].thread == self) break;
    if (*at) {
      report *found = *at;
      *at = found->next;
      pthread_mutex_unlock(&lock);
      found->fn(found->user);
      pthread_mutex_lock(&lock);
      found->finished = 1;
      pthread_cond_broadcast(&changed);
      if (!found->block) free(found);
      pthread_mutex_unlock(&lock);
      return 0;
    }
    if (pthread_cond_timedwait(&changed, &lock, &until)) {
      pthread_mutex_unlock(&lock);
      return 100036;
    }
  }
}

int aclrtLaunchCallback(void (*fn)(void *), void *user, int block, void *stream) {
  ENTER;
  if (!fn || block < 0 || block > 1) return done(SI_INVALID);
  pthread_mutex_lock(&lock);
  int known = subscriber(stream) >= 0;
  pthread_mutex_unlock(&lock);
  if (!known) return 100034;
  report *made = calloc(1, sizeof *made);
  *made = (report){.fn = fn, .user = user, .stream = stream, .block = block};
  int code = si_host_func(current, stream, post, made);
  if (code) free(made);
  return done(code);
}

/* ---- recordings: what a capture gives runs as it is */
int aclmdlRICaptureBegin(void *stream, int mode) {
  ENTER;
  return mode < 0 || mode > 2 ? done(SI_INVALID) : done(si_capture_begin(current, stream));
}

int aclmdlRICaptureEnd(void *stream, void **model) {
  ENTER;
  si_handle graph;
  *model = NULL;
  int code = si_capture_end(stream, &graph);
  if (code) return done(code);
  code = si_instantiate(graph, model);
  si_graph_destroy(graph);
  return done(code);
}

CALL(aclmdlRIExecuteAsync, (void *model, void *stream), si_graph_launch(current, model, stream))
CALL(aclmdlRIDestroy, (void *model), si_graph_destroy(model))

/* ---- modules */
int aclrtBinaryLoadFromData(const void *data, size_t n, const void *options, void **module) {
  ENTER;
  *module = NULL;
  if (!data || !n || options) return done(SI_INVALID);
  return done(si_module_load(current, data, module));
}

CALL(aclrtBinaryUnLoad, (void *module), si_module_unload(module))
CALL(aclrtBinaryGetFunction, (void *module, const char *name, void **function),
     si_module_function(module, name, function))

int aclrtGetHardwareSyncAddr(void **address) {
  ENTER;
  *address = &sync_word[current];
  return 0;
}

/* The struct: sync address, lock, workspace, the kernel's arguments, the grid, debug. */
int aclrtLaunchKernelWithHostArgs(void *function, uint32_t blocks, void *stream, void *config, void *packed, size_t n,
                                  void *places, size_t place_count) {
  ENTER;
  const char *types = si_arguments(function);
  if (!types) return done(SI_HANDLE);
  if (config || places || place_count || !packed || blocks > 65535) return done(SI_INVALID);
  uint64_t values[SI_ARGS] = {0}, head;
  size_t at = 24;
  for (int i = 0; types[i]; i++) {
    size_t size = types[i] == 'p' ? 8 : 4;
    at = (at + size - 1) / size * size;
    if (at + size <= n) memcpy(&values[i], (char *)packed + at, size);
    at += size;
  }
  size_t grid_at = at;
  if ((at + 12 + 7) / 8 * 8 + 8 != n) return done(SI_INVALID);
  unsigned grid[3];
  memcpy(grid, (char *)packed + grid_at, 12);
  memcpy(&head, packed, 8);
  if (head != (uintptr_t)&sync_word[current] || (uint64_t)grid[0] * grid[1] * grid[2] != blocks)
    return done(SI_INVALID);
  return done(si_launch(current, stream, function, grid, (unsigned[]){1, 1, 1}, 0, values));
}
