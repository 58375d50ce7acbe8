/* A driver with streams, events and kernels on two devices of host memory; work is done as it is queued ("inline").
 * Build: make   Try: HAIAN_ADAPTER_PATH=$PWD/inline.so haian devices   Prove: haian conformance run --suite hal --device inline:0
 * The smallest driver is ../minimal_adapter/minimal.c. */
#define _GNU_SOURCE
#include "haian_hal.h"
#include <dlfcn.h>
#include <elf.h>
#include <elf.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DEVICES 2
#define TOTAL (1ull << 30)
#define SLOTS 4096
typedef void (*kernel_fn)(const void *const *args, const uint32_t grid[3], const uint32_t program[3]);
enum { STREAM = 1, EVENT, MODULE, KERNEL };

static _Thread_local const char *message = "";
static hal_status fail(hal_status code, const char *text) { return message = text, code; }
#define NEED(condition, code, text) \
  if (!(condition)) return fail(code, text)
#define DEVICE(d) NEED((d) >= 0 && (d) < DEVICES, HAL_INVALID_ARGUMENT, "device must be 0 or 1")

/* ---- handles: generation << 32 | slot */
static struct slot {
  atomic_int kind;
  atomic_int device;
  _Atomic uint32_t generation;
  atomic_int timing;
  atomic_ullong ns;
  void *_Atomic object;
} slots[SLOTS];
static hal_status make(int device, int kind, void *object, hal_handle *out) {
  DEVICE(device);
  for (uint32_t i = 1; i < SLOTS; i++) {
    int unused = 0;
    if (!atomic_compare_exchange_strong(&slots[i].kind, &unused, -1)) continue;
    uint32_t generation = (slots[i].generation + 1) & 0xffffff;
    slots[i].device = device;
    slots[i].object = object;
    slots[i].ns = 0;
    slots[i].generation = generation;
    slots[i].kind = kind;
    *out = (uint64_t)generation << 32 | i;
    return HAL_OK;
  }
  return fail(HAL_OUT_OF_MEMORY, "no handle left of 4095");
}
static struct slot *find(int device, int kind, hal_handle h) {
  struct slot *s = &slots[h & 0xffffffff & (SLOTS - 1)];
  return h && (uint32_t)h < SLOTS && s->kind == kind && s->generation == h >> 32 && s->device == device ? s : NULL;
}
static hal_status drop(int device, int kind, hal_handle h) {
  struct slot *s = find(device, kind, h);
  NEED(s, HAL_INVALID_HANDLE, "no such handle, or destroyed already");
  s->kind = 0;
  return HAL_OK;
}
#define STREAM_OF(d, s) NEED(!(s) || find(d, STREAM, s), HAL_INVALID_HANDLE, "no such stream on this device")

/* ---- core */
static _Atomic uint64_t used[DEVICES];
static hal_status nothing(void) { return HAL_OK; }
static hal_status device_count(int32_t *count) { return *count = DEVICES, HAL_OK; }
static hal_status sync_device(int32_t d) {
  DEVICE(d);
  return HAL_OK;
}
static hal_status reset(int32_t d) {
  DEVICE(d);
  for (int i = 1; i < SLOTS; i++)
    if (slots[i].kind > 0 && slots[i].device == d) slots[i].kind = 0;
  return HAL_OK;
}
static uint64_t last_error(char *buffer, uint64_t capacity) {
  if (capacity) snprintf(buffer, capacity, "%s", message);
  return strlen(message);
}
static hal_status props(int32_t d, hal_props *p) {
  DEVICE(d);
  hal_props v = {.index = d,
                 .model = "inline host memory",
                 .vendor = "example",
                 .arch = "host",
                 .driver_version = "1",
                 .total_bytes = TOTAL,
                 .max_alloc_bytes = TOTAL / 4,
                 .align_bytes = 64,
                 .caps = HAL_CAP_HOST_ACCESS | HAL_CAP_MEMMOVE | HAL_CAP_PEER,
                 .dtypes_load = 0x3ffe,
                 .dtypes_math = 0x3ffe,
                 .compute_units = 1,
                 .warp_size = 1,
                 .max_threads = 1,
                 .max_grid = {65535, 65535, 65535},
                 .event_unit_ns = 1,
                 .image_format = "so"};
  snprintf(v.uuid, sizeof v.uuid, "inline-%d", d);
  uint32_t n = p->struct_size < sizeof v ? p->struct_size : sizeof v;
  v.struct_size = n;
  return memcpy(p, &v, n), HAL_OK;
}

/* ---- memory: 64 bytes before each block hold its start and size */
static hal_status alloc(int32_t d, const hal_alloc_desc *a, hal_dptr *out) {
  *out = 0;
  DEVICE(d);
  NEED(a->bytes && !(a->align & (a->align - 1)), HAL_INVALID_ARGUMENT,
       "alloc needs at least 1 byte and an alignment that is a power of two");
  NEED(a->kind <= HAL_MEM_MANAGED && !a->flags, HAL_UNSUPPORTED, "unknown kind of memory or flag");
  uint64_t align = a->align > 64 ? a->align : 64;
  NEED(a->bytes <= TOTAL / 4, HAL_OUT_OF_MEMORY, "more than max_alloc_bytes");
  int fits = atomic_fetch_add(&used[d], a->bytes) + a->bytes <= TOTAL;
  char *start = fits ? malloc(a->bytes + align + 64) : NULL;
  if (!start) {
    used[d] -= a->bytes;
    return fail(HAL_OUT_OF_MEMORY, fits ? "the host has no memory left" : "device memory is full");
  }
  char *base = (char *)(((uintptr_t)start + 64 + align - 1) & ~(align - 1));
  memcpy(base - 64, &start, 8), memcpy(base - 56, &a->bytes, 8);
  return *out = (uintptr_t)base, HAL_OK;
}
static hal_status release(int32_t d, hal_dptr address) {
  DEVICE(d);
  char *base = (char *)(uintptr_t)address, *start;
  uint64_t bytes;
  memcpy(&start, base - 64, 8), memcpy(&bytes, base - 56, 8);
  used[d] -= bytes;
  free(start);
  return HAL_OK;
}
static hal_status copy(int32_t d, hal_handle stream, const hal_copy_desc *c) {
  DEVICE(d);
  DEVICE(c->dst_device);
  STREAM_OF(d, stream);
  NEED(c->rows <= TOTAL && c->bytes <= TOTAL, HAL_INVALID_ARGUMENT, "more rows or bytes than any memory here has");
  for (uint64_t r = 0; r < c->rows && c->bytes; r++)
    memmove((char *)(uintptr_t)c->dst + r * c->dst_pitch, (const char *)(uintptr_t)c->src + r * c->src_pitch, c->bytes);
  return HAL_OK;
}
static hal_status fill(int32_t d, hal_handle stream, hal_dptr p, uint32_t pattern, uint32_t size, uint64_t bytes) {
  DEVICE(d);
  STREAM_OF(d, stream);
  NEED((size == 1 || size == 2 || size == 4) && bytes % size == 0, HAL_INVALID_ARGUMENT,
       "fill needs 1, 2 or 4 byte patterns, and whole ones");
  for (uint64_t i = 0; i < bytes; i += size) memcpy((char *)(uintptr_t)p + i, &pattern, size);
  return HAL_OK;
}
static hal_status info(int32_t d, uint64_t *free_bytes, uint64_t *total) {
  DEVICE(d);
  return *total = TOTAL, *free_bytes = TOTAL - used[d], HAL_OK;
}

/* ---- streams and events: everything has happened when a call returns */
static hal_status stream_create(int32_t d, uint32_t flags, hal_handle *out) {
  NEED(!flags, HAL_UNSUPPORTED, "unknown stream flags");
  return make(d, STREAM, NULL, out);
}
static hal_status stream_destroy(int32_t d, hal_handle s) { return drop(d, STREAM, s); }
static hal_status stream_done(int32_t d, hal_handle s) {
  NEED(find(d, STREAM, s), HAL_INVALID_HANDLE, "no such stream");
  return HAL_OK;
}
static hal_status stream_wait(int32_t d, hal_handle s, hal_handle e) {
  NEED(find(d, STREAM, s) && find(d, EVENT, e), HAL_INVALID_HANDLE, "no such stream or event");
  return HAL_OK;
}
static hal_status host_func(int32_t d, hal_handle s, void (*fn)(void *), void *user) {
  STREAM_OF(d, s);
  return fn(user), HAL_OK;
}
static hal_status event_create(int32_t d, uint32_t flags, hal_handle *out) {
  NEED(flags <= HAL_EVENT_TIMING, HAL_UNSUPPORTED, "unknown event flags");
  hal_status status = make(d, EVENT, NULL, out);
  if (!status) find(d, EVENT, *out)->timing = (int)flags;
  return status;
}
static hal_status event_destroy(int32_t d, hal_handle e) { return drop(d, EVENT, e); }
static hal_status event_record(int32_t d, hal_handle e, hal_handle s) {
  struct slot *event = find(d, EVENT, e);
  NEED(event, HAL_INVALID_HANDLE, "no such event");
  STREAM_OF(d, s);
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  event->ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
  return HAL_OK;
}
static hal_status event_query(int32_t d, hal_handle e) {
  NEED(find(d, EVENT, e), HAL_INVALID_HANDLE, "no such event");
  return HAL_OK;
}
static hal_status event_sync(int32_t d, hal_handle e, int64_t timeout_ns) {
  (void)timeout_ns;
  return event_query(d, e);
}
static hal_status elapsed(int32_t d, hal_handle a, hal_handle b, int64_t *ns) {
  struct slot *start = find(d, EVENT, a), *end = find(d, EVENT, b);
  NEED(start && end, HAL_INVALID_HANDLE, "no such event");
  NEED(start->timing && end->timing, HAL_INVALID_ARGUMENT, "an event was made without timing");
  NEED(start->ns && end->ns, HAL_NOT_READY, "an event was never recorded");
  return *ns = (int64_t)(end->ns - start->ns), HAL_OK;
}

/* ---- modules: the bytes of a shared object; a kernel is a function of it, called once a program */
static int whole_elf(const char *image,
                     uint64_t bytes) { /* dlopen maps what the headers promise: a cut-off file is a SIGBUS */
  Elf64_Ehdr head;
  if (bytes < sizeof head) return 0;
  memcpy(&head, image, sizeof head);
  if (memcmp(head.e_ident, ELFMAG, SELFMAG) || head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_phoff > bytes) return 0;
  for (uint64_t i = 0; i < head.e_phnum; i++) {
    Elf64_Phdr part;
    uint64_t at = head.e_phoff + i * head.e_phentsize;
    if (at + sizeof part > bytes) return 0;
    memcpy(&part, image + at, sizeof part);
    if (part.p_type == PT_LOAD && (part.p_offset > bytes || part.p_filesz > bytes - part.p_offset)) return 0;
  }
  return 1;
}
static hal_status load(int32_t d, const void *image, uint64_t bytes, const char *format, hal_handle *out) {
  DEVICE(d);
  NEED(!strcmp(format, "so") && whole_elf(image, bytes), HAL_INVALID_ARGUMENT,
       "the image must be a whole shared object, format so");
  Elf64_Ehdr head; /* its last part is the section table: without it the file is cut off, and dlopen would die of it */
  NEED(bytes > sizeof head, HAL_INVALID_ARGUMENT, "the image is cut off");
  memcpy(&head, image, sizeof head);
  NEED(head.e_shoff + (uint64_t)head.e_shnum * head.e_shentsize <= bytes, HAL_INVALID_ARGUMENT, "the image is cut off");
  char path[] = "/tmp/inline_adapter_XXXXXX"; /* a name never used before: dlopen gives a known name's library again */
  int file = mkstemp(path);
  NEED(file >= 0, HAL_INTERNAL, "no file can be made in /tmp");
  void *library = write(file, image, bytes) == (int64_t)bytes ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
  close(file);
  unlink(path);
  NEED(library, HAL_INVALID_ARGUMENT, "the image cannot be loaded, perhaps it is cut off");
  return make(d, MODULE, library, out);
}
static hal_status unload(int32_t d, hal_handle m) {
  struct slot *module = find(d, MODULE, m);
  NEED(module, HAL_INVALID_HANDLE, "no such module");
  return dlclose(module->object), drop(d, MODULE, m);
}
static hal_status get_kernel(int32_t d, hal_handle m, const char *name, hal_handle *out) {
  struct slot *module = find(d, MODULE, m);
  NEED(module, HAL_INVALID_HANDLE, "no such module");
  void *fn = dlsym(module->object, name);
  NEED(fn, HAL_NOT_FOUND, "the module has no such kernel");
  return make(d, KERNEL, fn, out);
}
static hal_status launch(int32_t d, hal_handle s, const hal_launch_desc *l) {
  DEVICE(d);
  STREAM_OF(d, s);
  struct slot *kernel = find(d, KERNEL, l->kernel);
  NEED(kernel, HAL_INVALID_HANDLE, "no such kernel");
  NEED(l->grid[0] && l->grid[1] && l->grid[2] && l->threads <= 1 && !l->shared_bytes, HAL_INVALID_ARGUMENT,
       "a grid of at least 1, one thread, no shared memory");
  uint32_t at[3];
  for (at[2] = 0; at[2] < l->grid[2]; at[2]++)
    for (at[1] = 0; at[1] < l->grid[1]; at[1]++)
      for (at[0] = 0; at[0] < l->grid[0]; at[0]++) ((kernel_fn)kernel->object)(l->args, l->grid, at);
  return HAL_OK;
}

static const hal_core core = {sizeof core, 0, nothing, nothing, device_count, props, sync_device, reset, last_error};
static const hal_mem mem = {sizeof mem, 0, alloc, release, copy, fill, info, NULL, NULL, NULL, NULL};
static const hal_stream stream = {sizeof stream, 0,           stream_create, stream_destroy,
                                  stream_done,   stream_done, stream_wait,   host_func};
static const hal_event event = {sizeof event, 0,           event_create, event_destroy,
                                event_record, event_query, event_sync,   elapsed};
static const hal_module module = {sizeof module, 0, load, unload, get_kernel, launch, NULL};
static const hal_adapter adapter = {.struct_size = sizeof adapter,
                                    .abi_major = HAL_ABI_MAJOR,
                                    .abi_minor = HAL_ABI_MINOR,
                                    .name = "inline",
                                    .vendor = "example",
                                    .version = "1.0",
                                    .core = &core,
                                    .mem = &mem,
                                    .stream = &stream,
                                    .event = &event,
                                    .module = &module};
HAL_EXPORT const hal_adapter *hal_get_adapter(const hal_host *host) {
  return host && host->abi_major == HAL_ABI_MAJOR ? &adapter : NULL;
}
