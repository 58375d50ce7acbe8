/* The chip behind every stand-in runtime, see device.h.  Not fast and not meant to be: one lock for everything. */
#define _GNU_SOURCE
#include "device.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

const char *haian_stand_in(void); /* asked by adapters/engine/library.py */
const char *haian_stand_in(void) { return "host memory behind the vendor's names"; }

#define ALIGN 256u
#define GAP ALIGN /* between blocks, so that one past the end of a block is nobody's */
#define ARENA (2ull * SI_BYTES)
#define OBJECTS 65536u
#define RANGES 4096

/* ---- state ------------------------------------------------------------------------------------------------------------ */
typedef struct task {
  struct task *next;
  enum { COPY, FILL, LAUNCH, RECORD, WAIT_EVENT, WAIT_STREAM, HOST } kind;
  int async;
  char *dst;
  const char *src;
  uint64_t n;     /* bytes; FILL: elements */
  uint32_t value; /* FILL */
  int size;       /* FILL: bytes of an element */
  struct event *event;
  struct mark *mark; /* of an event: what RECORD completes and WAIT_EVENT waits for */
  struct stream *other;
  uint64_t sequence; /* of the other stream: what must be done first */
  void (*fn)(void *);
  void *user;
  int kernel;
  unsigned grid[3], block[3], shared;
  uint64_t values[SI_ARGS];
} task;

typedef struct graph {
  task *head, **tail;
  int device;
} graph;

typedef struct stream {
  int device, blocking, stopping;
  pthread_t thread;
  pthread_cond_t work;
  task *head, **tail;
  uint64_t submitted, done;
  graph *capture;
} stream;

typedef struct mark { /* one record of an event; who waits for it keeps it alive */
  int references, done;
  int64_t ns;
} mark;

typedef struct event {
  int device, timing;
  mark *last;
} event;

typedef struct module {
  int device;
  uint32_t kernels; /* bits */
} module;

typedef struct function {
  int device, kernel;
  si_handle module;
} function;

typedef struct object {
  int kind, device;
  uint32_t generation;
  void *body;
} object;

typedef struct block {
  uint64_t start, bytes, asked;
} block;

typedef struct device {
  char *base, *shadow; /* what programs see (no access), what the stand-in uses */
  int fd;
  block *blocks;
  int count, room, fault;
  uint64_t used;
  stream *idle; /* the default stream */
} device;

typedef struct range {
  char *start;
  uint64_t n;
  int kind; /* 1 pinned, 2 managed, 3 registered */
} range;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t progress = PTHREAD_COND_INITIALIZER;
static device devices[SI_DEVICES];
static object objects[OBJECTS];
static uint32_t objects_used = 1, spare[OBJECTS], spare_count;
static range ranges[RANGES];
static int range_count;

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- objects: a handle is a number no pointer of this process has, with the generation in it ------------------------------ */
static si_handle object_new(int kind, int dev, void *body) {
  uint32_t index = spare_count ? spare[--spare_count] : objects_used < OBJECTS ? objects_used++ : 0;
  if (!index) return NULL;
  objects[index].kind = kind;
  objects[index].device = dev;
  objects[index].body = body;
  uint32_t generation = ++objects[index].generation & 0xFFFF;
  return (si_handle)(uintptr_t)(0x7A0000000000ull | (uint64_t)generation << 20 | (uint64_t)index << 4);
}

static void *object_body(si_handle handle, int kind) {
  uint64_t h = (uint64_t)(uintptr_t)handle;
  uint32_t index = h >> 4 & 0xFFFF;
  if (h >> 40 != 0x7A || !index || index >= objects_used || objects[index].kind != kind) return NULL;
  return (objects[index].generation & 0xFFFF) == (h >> 20 & 0xFFFF) ? objects[index].body : NULL;
}

static void object_drop(si_handle handle) {
  uint32_t index = (uint64_t)(uintptr_t)handle >> 4 & 0xFFFF;
  objects[index].kind = 0;
  objects[index].body = NULL;
  spare[spare_count++] = index;
}

/* ---- memory --------------------------------------------------------------------------------------------------------------- */
static device *open_device(int d) {
  device *dev = &devices[d];
  if (!dev->base) {
    dev->fd = memfd_create("standin", MFD_CLOEXEC);
    if (dev->fd < 0 || ftruncate(dev->fd, ARENA)) abort();
    dev->base = mmap(NULL, ARENA, PROT_NONE, MAP_SHARED, dev->fd, 0);
    dev->shadow = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED, dev->fd, 0);
    if (dev->base == MAP_FAILED || dev->shadow == MAP_FAILED) abort();
  }
  return dev;
}

int si_state(int d) { return d < 0 || d >= SI_DEVICES ? SI_ORDINAL : devices[d].fault ? SI_FAULT : SI_OK; }

int si_owner(const void *p) {
  for (int d = 0; d < SI_DEVICES; d++)
    if (devices[d].base && (const char *)p >= devices[d].base && (const char *)p < devices[d].base + ARENA) return d;
  return -1;
}

/* Where the stand-in itself reaches n bytes at p; NULL when they are device memory outside one live block. */
static char *reach(const void *p, uint64_t n) {
  int d = si_owner(p);
  if (d < 0) return (char *)(uintptr_t)p;
  device *dev = &devices[d];
  uint64_t offset = (uint64_t)((const char *)p - dev->base);
  for (int i = 0; i < dev->count; i++)
    if (offset >= dev->blocks[i].start && offset + n <= dev->blocks[i].start + dev->blocks[i].asked)
      return dev->shadow + offset;
  return NULL;
}

int si_malloc(int d, uint64_t n, void **out) {
  *out = NULL;
  if (si_state(d)) return si_state(d);
  if (n > SI_BYTES) return SI_OOM;
  uint64_t bytes = (n + ALIGN - 1) / ALIGN * ALIGN, at = 0;
  if (!bytes) bytes = ALIGN;
  pthread_mutex_lock(&lock);
  device *dev = open_device(d);
  int i = 0;
  for (; i < dev->count && dev->blocks[i].start - at < bytes + GAP; i++)
    at = dev->blocks[i].start + dev->blocks[i].bytes + GAP;
  if (dev->used + bytes > SI_BYTES || at + bytes > ARENA) {
    pthread_mutex_unlock(&lock);
    return SI_OOM;
  }
  if (dev->count == dev->room)
    dev->blocks = realloc(dev->blocks, sizeof(block) * (dev->room = dev->room ? 2 * dev->room : 64));
  memmove(dev->blocks + i + 1, dev->blocks + i, sizeof(block) * (dev->count++ - i));
  dev->blocks[i] = (block){at, bytes, n ? n : ALIGN};
  dev->used += bytes;
  memset(dev->shadow + at, 0xFF, bytes);
  *out = dev->base + at;
  pthread_mutex_unlock(&lock);
  return SI_OK;
}

static int range_find(const void *p) {
  for (int i = 0; i < range_count; i++)
    if (ranges[i].start == p) return i;
  return -1;
}

static int range_add(void *p, uint64_t n, int kind) {
  if (range_count == RANGES) return SI_OOM;
  ranges[range_count++] = (range){p, n, kind};
  return SI_OK;
}

static int host_map(uint64_t n, int kind, void **out) {
  *out = NULL;
  if (!n || n > 1ull << 40) return n ? SI_OOM : SI_INVALID;
  void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return SI_OOM;
  pthread_mutex_lock(&lock);
  int code = range_add(*out = p, n, kind);
  pthread_mutex_unlock(&lock);
  return code;
}

static int host_unmap(void *p, int kind) {
  pthread_mutex_lock(&lock);
  int i = range_find(p);
  range found = {0};
  if (i >= 0 && ranges[i].kind == kind) {
    found = ranges[i];
    ranges[i] = ranges[--range_count];
  }
  pthread_mutex_unlock(&lock);
  if (!found.start) return SI_INVALID;
  if (kind != 3) munmap(found.start, found.n);
  return SI_OK;
}

int si_host_alloc(uint64_t n, void **out) { return host_map(n, 1, out); }
int si_host_free(void *p) { return host_unmap(p, 1); }
int si_managed(int d, uint64_t n, void **out) { return si_state(d) ? si_state(d) : host_map(n, 2, out); }
int si_unregister(void *p) { return host_unmap(p, 3) ? SI_UNREGISTERED : SI_OK; }

int si_register(void *p, uint64_t n) {
  pthread_mutex_lock(&lock);
  int code = !p || !n ? SI_INVALID : range_find(p) >= 0 ? SI_REGISTERED : range_add(p, n, 3);
  pthread_mutex_unlock(&lock);
  return code;
}

int si_free(void *p) {
  int d = si_owner(p);
  if (d < 0) return host_unmap(p, 2);
  if (si_state(d)) return si_state(d);
  int code = si_sync(d); /* work that still uses the block ends first */
  device *dev = &devices[d];
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < dev->count && dev->base + dev->blocks[i].start != p) i++;
  if (i == dev->count) {
    pthread_mutex_unlock(&lock);
    return SI_INVALID;
  }
  dev->used -= dev->blocks[i].bytes;
  if (dev->blocks[i].bytes >= 1u << 20)
    fallocate(dev->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)dev->blocks[i].start,
              (off_t)dev->blocks[i].bytes);
  memmove(dev->blocks + i, dev->blocks + i + 1, sizeof(block) * (--dev->count - i));
  pthread_mutex_unlock(&lock);
  return code;
}

void si_meminfo(int d, uint64_t *free_bytes, uint64_t *total) {
  pthread_mutex_lock(&lock);
  *total = SI_BYTES;
  *free_bytes = SI_BYTES - devices[d].used;
  pthread_mutex_unlock(&lock);
}

/* ---- kernels -------------------------------------------------------------------------------------------------------------- */
static const struct kernel {
  const char *name, *arguments;
} kernels[] = {{"axpy", "ppfi"},       {"increment", "pi"},   {"geometry", "p"},
               {"spin", "i"},          {"fault", ""},         {"conform_axpy", "ppf"},
               {"conform_leave", "p"}, {"conform_grid", "p"}, {"conform_args", "ipfip"}};
enum { AXPY, INCREMENT, GEOMETRY, SPIN, FAULT, CONFORM_AXPY, CONFORM_LEAVE, CONFORM_GRID, CONFORM_ARGS, KERNELS };

static float as_float(uint64_t v) {
  uint32_t bits = (uint32_t)v;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

/* Elements past grid * block are left alone, as by a grid that is too small. */
static int run_kernel(const task *t) {
  uint64_t threads = (uint64_t)t->grid[0] * t->grid[1] * t->grid[2] * t->block[0] * t->block[1] * t->block[2];
  if (t->kernel == AXPY) {
    uint64_t n = (uint32_t)t->values[3] < threads ? (uint32_t)t->values[3] : threads;
    const float *x = (const float *)reach((void *)t->values[0], 4 * n);
    float *y = (float *)reach((void *)t->values[1], 4 * n), a = as_float(t->values[2]);
    if (!x || !y) return SI_FAULT;
    for (uint64_t i = 0; i < n; i++) y[i] += a * x[i];
  } else if (t->kernel == CONFORM_AXPY) { /* the HAL suite's: one thread a program */
    const float *x = (const float *)reach((void *)t->values[0], 4ull * t->grid[0]);
    float *y = (float *)reach((void *)t->values[1], 4ull * t->grid[0]), a = as_float(t->values[2]);
    if (!x || !y) return SI_FAULT;
    for (unsigned i = 0; i < t->grid[0]; i++) y[i] += a * x[i];
  } else if (t->kernel == CONFORM_GRID) { /* once a program, however many threads it has */
    uint64_t n = (uint64_t)t->grid[0] * t->grid[1] * t->grid[2];
    int32_t *out = (int32_t *)reach((void *)t->values[0], 24 * n);
    if (!out) return SI_FAULT;
    for (uint64_t i = 0; i < n; i++, out += 6) {
      unsigned at[3] = {(unsigned)(i % t->grid[0]), (unsigned)(i / t->grid[0] % t->grid[1]),
                        (unsigned)(i / t->grid[0] / t->grid[1])};
      for (int k = 0; k < 3; k++) out[k] += (int32_t)at[k], out[3 + k] += (int32_t)t->grid[k];
    }
  } else if (t->kernel == CONFORM_ARGS) {
    int32_t *x = (int32_t *)reach((void *)t->values[1], 8), *y = (int32_t *)reach((void *)t->values[4], 4);
    if (!x || !y) return SI_FAULT;
    x[0] = (int32_t)t->values[0], x[1] = (int32_t)t->values[3], y[0] = (int32_t)t->values[2];
  } else if (t->kernel == INCREMENT) {
    uint64_t n = (uint32_t)t->values[1] < threads ? (uint32_t)t->values[1] : threads;
    int32_t *p = (int32_t *)reach((void *)t->values[0], 4 * n);
    if (!p) return SI_FAULT;
    for (uint64_t i = 0; i < n; i++) p[i]++;
  } else if (t->kernel == GEOMETRY) {
    uint32_t *p = (uint32_t *)reach((void *)t->values[0], 28);
    if (!p) return SI_FAULT;
    for (int i = 0; i < 3; i++) p[i] = t->grid[i], p[3 + i] = t->block[i];
    p[6] = t->shared;
  } else if (t->kernel == SPIN) {
    usleep(1000 * (uint32_t)t->values[0]);
  } else {
    return SI_FAULT;
  }
  return SI_OK;
}

/* ---- streams -------------------------------------------------------------------------------------------------------------- */
static int run_task(const task *t) {
  if (t->kind == COPY) {
    memmove(t->dst, t->src, t->n);
  } else if (t->kind == FILL) {
    for (uint64_t i = 0; i < t->n; i++) memcpy(t->dst + i * t->size, &t->value, t->size);
  } else if (t->kind == LAUNCH) {
    return run_kernel(t);
  } else if (t->kind == HOST) {
    t->fn(t->user);
  }
  return SI_OK;
}

static void mark_drop(mark *m) {
  if (m && !--m->references) free(m);
}

/* A new record of an event, for a RECORD task: one reference is the event's, one the task's. */
static mark *mark_new(event *e) {
  mark *m = calloc(1, sizeof *m);
  m->references = 2;
  mark_drop(e->last);
  return e->last = m;
}

static void *worker(void *argument) {
  stream *s = argument;
  pthread_mutex_lock(&lock);
  for (;;) {
    while (!s->head && !s->stopping) pthread_cond_wait(&s->work, &lock);
    task *t = s->head;
    if (!t) break;
    if (t->kind == WAIT_EVENT) {
      while (!t->mark->done) pthread_cond_wait(&progress, &lock);
      mark_drop(t->mark);
    } else if (t->kind == WAIT_STREAM) {
      while (t->other->done < t->sequence) pthread_cond_wait(&progress, &lock);
    } else if (t->kind == RECORD) {
      t->mark->ns = now_ns();
      t->mark->done = 1;
      mark_drop(t->mark);
    } else if (!devices[s->device].fault || t->kind == HOST) {
      int large = t->kind != LAUNCH || t->kernel == SPIN;
      if (large) pthread_mutex_unlock(&lock); /* kernels look at the blocks, so they run under the lock */
      if (t->async && t->kind != HOST) usleep(SI_DELAY_US);
      int code = run_task(t);
      if (large) pthread_mutex_lock(&lock);
      if (code) devices[s->device].fault = code;
    }
    s->head = t->next;
    if (!s->head) s->tail = &s->head;
    s->done++;
    free(t);
    pthread_cond_broadcast(&progress);
  }
  pthread_mutex_unlock(&lock);
  return NULL;
}

static stream *stream_open(int d, int blocking) {
  stream *s = calloc(1, sizeof *s);
  s->device = d;
  s->blocking = blocking;
  s->tail = &s->head;
  pthread_cond_init(&s->work, NULL);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 1 << 20); /* a host function of Python runs on it */
  int failed = pthread_create(&s->thread, &attributes, worker, s);
  pthread_attr_destroy(&attributes);
  if (!failed) return s;
  free(s);
  return NULL;
}

/* The stream of a handle; NULL means the device's default one.  Under the lock. */
static stream *stream_of(int d, si_handle handle) {
  if (handle) return object_body(handle, SI_STREAM);
  if (!devices[d].idle) devices[d].idle = stream_open(d, 1);
  return devices[d].idle;
}

static void append(task ***tail, task t) {
  task *own = malloc(sizeof *own);
  *own = t;
  own->next = NULL;
  **tail = own;
  *tail = &own->next;
}

static void push(stream *s, task t) {
  append(&s->tail, t);
  s->submitted++;
  pthread_cond_signal(&s->work);
}

static void wait_for(stream *s, stream *other) {
  if (other && other != s && other->done < other->submitted)
    push(s, (task){.kind = WAIT_STREAM, .other = other, .sequence = other->submitted});
}

/* Queues work, or records it while the stream is captured.  async 0: returns when it has happened. */
static int submit(int d, si_handle handle, task t) {
  pthread_mutex_lock(&lock);
  stream *s = stream_of(d, handle);
  int code = s ? SI_OK : SI_HANDLE;
  if (s && s->capture) {
    if (t.async) append(&s->capture->tail, t);
    else code = SI_CAPTURE;
  } else if (s) {
    if (!handle) { /* the default stream and blocking streams wait for each other */
      for (uint32_t i = 1; i < objects_used; i++)
        if (objects[i].kind == SI_STREAM && objects[i].device == d && ((stream *)objects[i].body)->blocking)
          wait_for(s, objects[i].body);
    } else if (s->blocking) {
      wait_for(s, devices[s->device].idle);
    }
    push(s, t);
    uint64_t mine = s->submitted;
    while (!t.async && s->done < mine) pthread_cond_wait(&progress, &lock);
    if (!t.async && devices[s->device].fault) code = SI_FAULT;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

int si_stream_new(int d, int blocking, si_handle *out) {
  *out = NULL;
  if (si_state(d)) return si_state(d);
  pthread_mutex_lock(&lock);
  stream *s = stream_open(d, blocking);
  if (s) *out = object_new(SI_STREAM, d, s);
  pthread_mutex_unlock(&lock);
  return *out ? SI_OK : SI_OOM;
}

static void stream_close(stream *s) { /* under the lock, drained by its own thread */
  s->stopping = 1;
  pthread_cond_signal(&s->work);
  pthread_mutex_unlock(&lock);
  pthread_join(s->thread, NULL);
  pthread_mutex_lock(&lock); /* the struct stays: a queued wait of another stream may still name it */
}

int si_stream_destroy(si_handle handle) {
  pthread_mutex_lock(&lock);
  stream *s = handle ? object_body(handle, SI_STREAM) : NULL;
  if (s) {
    object_drop(handle);
    stream_close(s);
  }
  pthread_mutex_unlock(&lock);
  return s ? SI_OK : SI_HANDLE;
}

static int drain(stream *s, int wait) {
  if (s->capture) return SI_CAPTURE;
  if (!wait && s->done < s->submitted) return SI_NOT_READY;
  for (uint64_t mine = s->submitted; s->done < mine;) pthread_cond_wait(&progress, &lock);
  return devices[s->device].fault ? SI_FAULT : SI_OK;
}

static int stream_state(int d, si_handle handle, int wait) {
  pthread_mutex_lock(&lock);
  stream *s = stream_of(d, handle);
  int code = s ? drain(s, wait) : SI_HANDLE;
  pthread_mutex_unlock(&lock);
  return code;
}

int si_stream_sync(int d, si_handle handle) { return stream_state(d, handle, 1); }
int si_stream_query(int d, si_handle handle) { return stream_state(d, handle, 0); }

int si_sync(int d) {
  if (d < 0 || d >= SI_DEVICES) return SI_ORDINAL;
  pthread_mutex_lock(&lock);
  for (uint32_t i = 0; i < objects_used; i++) {
    stream *s = i ? (objects[i].kind == SI_STREAM && objects[i].device == d ? objects[i].body : NULL) : devices[d].idle;
    if (s && !s->capture) drain(s, 1);
  }
  int code = devices[d].fault ? SI_FAULT : SI_OK;
  pthread_mutex_unlock(&lock);
  return code;
}

int si_reset(int d) {
  if (d < 0 || d >= SI_DEVICES) return SI_ORDINAL;
  si_sync(d);
  pthread_mutex_lock(&lock);
  for (uint32_t i = 1; i < objects_used; i++) {
    if (!objects[i].kind || objects[i].device != d) continue;
    stream *s = objects[i].kind == SI_STREAM ? objects[i].body : NULL;
    object_drop((si_handle)(uintptr_t)((uint64_t)i << 4));
    if (s) stream_close(s);
  }
  devices[d].count = 0;
  devices[d].used = 0;
  devices[d].fault = 0;
  pthread_mutex_unlock(&lock);
  return SI_OK;
}

/* ---- work ----------------------------------------------------------------------------------------------------------------- */
int si_copy(int d, si_handle handle, void *dst, const void *src, uint64_t n, int direction, int async) {
  if (si_state(d)) return si_state(d);
  if (direction < SI_H2H || direction > SI_AUTO) return SI_DIRECTION;
  if (!n) return SI_OK;
  pthread_mutex_lock(&lock);
  int to = si_owner(dst) >= 0, from = si_owner(src) >= 0;
  char *there = reach(dst, n), *here = reach(src, n);
  pthread_mutex_unlock(&lock);
  if (!dst || !src || !there || !here) return SI_INVALID;
  if (direction != SI_AUTO &&
      (to != (direction == SI_H2D || direction == SI_D2D) || from != (direction == SI_D2H || direction == SI_D2D)))
    return SI_INVALID;
  return submit(d, handle, (task){.kind = COPY, .async = async, .dst = there, .src = here, .n = n});
}

int si_copy_peer(int d, si_handle handle, void *dst, int dst_device, const void *src, int src_device, uint64_t n,
                 int async) {
  if (si_state(dst_device) || si_state(src_device))
    return si_state(dst_device) ? si_state(dst_device) : si_state(src_device);
  return si_owner(dst) != dst_device || si_owner(src) != src_device ? SI_INVALID
                                                                    : si_copy(d, handle, dst, src, n, SI_D2D, async);
}

int si_fill(int d, si_handle handle, void *dst, uint32_t value, int size, uint64_t count, int async) {
  if (si_state(d)) return si_state(d);
  if (!count) return SI_OK;
  pthread_mutex_lock(&lock);
  char *there = si_owner(dst) >= 0 ? reach(dst, count * size) : NULL;
  pthread_mutex_unlock(&lock);
  if (!there || (uintptr_t)dst % size) return SI_INVALID;
  return submit(d, handle,
                (task){.kind = FILL, .async = async, .dst = there, .value = value, .size = size, .n = count});
}

int si_host_func(int d, si_handle handle, void (*fn)(void *), void *user) {
  if (si_state(d)) return si_state(d);
  return !fn ? SI_INVALID : submit(d, handle, (task){.kind = HOST, .async = 1, .fn = fn, .user = user});
}

/* ---- events --------------------------------------------------------------------------------------------------------------- */
int si_event_new(int d, int timing, si_handle *out) {
  *out = NULL;
  if (si_state(d)) return si_state(d);
  event *e = calloc(1, sizeof *e);
  e->device = d;
  e->timing = timing;
  pthread_mutex_lock(&lock);
  *out = object_new(SI_EVENT, d, e);
  pthread_mutex_unlock(&lock);
  return *out ? SI_OK : SI_OOM;
}

int si_event_destroy(si_handle handle) {
  pthread_mutex_lock(&lock);
  event *e = object_body(handle, SI_EVENT);
  if (e) {
    object_drop(handle);
    mark_drop(e->last);
    e->last = NULL; /* the struct stays: a captured record may still name it */
  }
  pthread_mutex_unlock(&lock);
  return e ? SI_OK : SI_HANDLE;
}

int si_event_record(int d, si_handle handle, si_handle on) {
  pthread_mutex_lock(&lock);
  event *e = object_body(handle, SI_EVENT);
  stream *s = stream_of(d, on);
  int code = e && s && e->device == s->device ? SI_OK : SI_HANDLE;
  if (!code && s->capture) append(&s->capture->tail, (task){.kind = RECORD, .async = 1, .event = e});
  else if (!code) push(s, (task){.kind = RECORD, .async = 1, .event = e, .mark = mark_new(e)});
  pthread_mutex_unlock(&lock);
  return code;
}

int si_stream_wait(int d, si_handle handle, si_handle on) {
  pthread_mutex_lock(&lock);
  event *e = object_body(on, SI_EVENT);
  stream *s = stream_of(d, handle);
  int code = e && s ? SI_OK : SI_HANDLE;
  if (!code && !s->capture && e->last && !e->last->done) {
    e->last->references++;
    push(s, (task){.kind = WAIT_EVENT, .async = 1, .mark = e->last});
  }
  pthread_mutex_unlock(&lock);
  return code;
}

static int event_state(si_handle handle, int wait) {
  pthread_mutex_lock(&lock);
  event *e = object_body(handle, SI_EVENT);
  int code = !e ? SI_HANDLE : !wait && e->last && !e->last->done ? SI_NOT_READY : SI_OK;
  mark *m = e && wait ? e->last : NULL;
  if (m) {
    m->references++;
    while (!m->done) pthread_cond_wait(&progress, &lock);
    mark_drop(m);
  }
  if (!code && devices[e->device].fault) code = SI_FAULT;
  pthread_mutex_unlock(&lock);
  return code;
}

int si_event_query(si_handle handle) { return event_state(handle, 0); }
int si_event_sync(si_handle handle) { return event_state(handle, 1); }

int si_elapsed(float *ms, si_handle start, si_handle end) {
  pthread_mutex_lock(&lock);
  event *a = object_body(start, SI_EVENT), *b = object_body(end, SI_EVENT);
  int code = SI_OK;
  if (!a || !b) code = SI_HANDLE;
  else if (!a->timing || !b->timing || !a->last || !b->last) code = SI_TIMING;
  else if (!a->last->done || !b->last->done) code = SI_NOT_READY;
  else *ms = (float)((double)(b->last->ns - a->last->ns) * 1e-6);
  pthread_mutex_unlock(&lock);
  return code;
}

int si_recorded(si_handle handle) {
  pthread_mutex_lock(&lock);
  event *e = object_body(handle, SI_EVENT);
  int recorded = e && e->last;
  pthread_mutex_unlock(&lock);
  return recorded;
}

/* ---- modules -------------------------------------------------------------------------------------------------------------- */
int si_module_load(int d, const char *image, si_handle *out) {
  *out = NULL;
  if (si_state(d)) return si_state(d);
  if (!image) return SI_INVALID;
  if (!strncmp(image,
               "\x7f"
               "ELF",
               4))
    image += 4;
  if (strncmp(image, "standin:", 8)) return SI_IMAGE;
  module m = {d, 0};
  char text[256] = {0}, *rest = text;
  strncpy(text, image + 8, sizeof text - 1);
  for (char *word; (word = strtok_r(rest, ",", &rest));) {
    int k = 0;
    while (k < KERNELS && strcmp(word, kernels[k].name)) k++;
    if (k == KERNELS) return SI_IMAGE;
    m.kernels |= 1u << k;
  }
  module *own = malloc(sizeof m);
  *own = m;
  pthread_mutex_lock(&lock);
  *out = object_new(SI_MODULE, d, own);
  pthread_mutex_unlock(&lock);
  return *out ? SI_OK : SI_OOM;
}

int si_module_unload(si_handle handle) {
  pthread_mutex_lock(&lock);
  module *m = object_body(handle, SI_MODULE);
  if (m) {
    for (uint32_t i = 1; i < objects_used; i++)
      if (objects[i].kind == SI_FUNCTION && ((function *)objects[i].body)->module == handle)
        object_drop((si_handle)(uintptr_t)((uint64_t)i << 4));
    object_drop(handle);
    free(m);
  }
  pthread_mutex_unlock(&lock);
  return m ? SI_OK : SI_HANDLE;
}

int si_module_function(si_handle handle, const char *name, si_handle *out) {
  *out = NULL;
  pthread_mutex_lock(&lock);
  module *m = object_body(handle, SI_MODULE);
  int code = m ? SI_SYMBOL : SI_HANDLE;
  for (int k = 0; m && k < KERNELS; k++) {
    if (!(m->kernels >> k & 1) || strcmp(name, kernels[k].name)) continue;
    function *f = malloc(sizeof *f);
    *f = (function){m->device, k, handle};
    *out = object_new(SI_FUNCTION, m->device, f);
    code = *out ? SI_OK : SI_OOM;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

const char *si_arguments(si_handle handle) {
  pthread_mutex_lock(&lock);
  function *f = object_body(handle, SI_FUNCTION);
  const char *found = f ? kernels[f->kernel].arguments : NULL;
  pthread_mutex_unlock(&lock);
  return found;
}

int si_launch(int d, si_handle handle, si_handle called, const unsigned grid[3], const unsigned block[3],
              unsigned shared, const uint64_t *values) {
  if (si_state(d)) return si_state(d);
  pthread_mutex_lock(&lock);
  function *f = object_body(called, SI_FUNCTION);
  pthread_mutex_unlock(&lock);
  if (!f) return SI_HANDLE;
  for (int i = 0; i < 3; i++)
    if (!grid[i] || !block[i] || (i && grid[i] > SI_MAX_GRID)) return SI_INVALID;
  if ((uint64_t)block[0] * block[1] * block[2] > SI_MAX_THREADS || shared > SI_SHARED) return SI_INVALID;
  task t = {.kind = LAUNCH, .async = 1, .kernel = f->kernel, .shared = shared};
  memcpy(t.grid, grid, sizeof t.grid);
  memcpy(t.block, block, sizeof t.block);
  memcpy(t.values, values, 8 * strlen(kernels[f->kernel].arguments));
  return submit(d, handle, t);
}

/* ---- graphs --------------------------------------------------------------------------------------------------------------- */
int si_capture_begin(int d, si_handle handle) {
  pthread_mutex_lock(&lock);
  stream *s = handle ? stream_of(d, handle) : NULL;
  int code = !s ? SI_HANDLE : s->capture ? SI_CAPTURE : SI_OK;
  if (!code) {
    s->capture = calloc(1, sizeof(graph));
    s->capture->tail = &s->capture->head;
    s->capture->device = s->device;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

int si_capture_end(si_handle handle, si_handle *out) {
  *out = NULL;
  pthread_mutex_lock(&lock);
  stream *s = object_body(handle, SI_STREAM);
  int code = !s ? SI_HANDLE : !s->capture ? SI_CAPTURE : SI_OK;
  if (!code) {
    *out = object_new(SI_GRAPH, s->device, s->capture);
    s->capture = NULL;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

int si_instantiate(si_handle handle, si_handle *out) {
  *out = NULL;
  pthread_mutex_lock(&lock);
  graph *g = object_body(handle, SI_GRAPH);
  if (g) {
    graph *copy = calloc(1, sizeof *copy);
    copy->tail = &copy->head;
    copy->device = g->device;
    for (task *t = g->head; t; t = t->next) append(&copy->tail, *t);
    *out = object_new(SI_EXEC, g->device, copy);
  }
  pthread_mutex_unlock(&lock);
  return g ? SI_OK : SI_HANDLE;
}

int si_graph_launch(int d, si_handle handle, si_handle on) {
  pthread_mutex_lock(&lock);
  graph *g = object_body(handle, SI_EXEC);
  stream *s = stream_of(d, on);
  int code = !g || !s ? SI_HANDLE : s->capture ? SI_CAPTURE : SI_OK;
  for (task *t = code ? NULL : g->head; t; t = t->next) {
    task mine = *t;
    if (mine.kind == RECORD) mine.mark = mark_new(mine.event);
    push(s, mine);
  }
  pthread_mutex_unlock(&lock);
  return code;
}

int si_graph_destroy(si_handle handle) {
  pthread_mutex_lock(&lock);
  graph *g = object_body(handle, SI_GRAPH);
  if (!g) g = object_body(handle, SI_EXEC);
  if (g) {
    object_drop(handle);
    for (task *t = g->head, *next; t; t = next) {
      next = t->next;
      free(t);
    }
    free(g);
  }
  pthread_mutex_unlock(&lock);
  return g ? SI_OK : SI_HANDLE;
}
