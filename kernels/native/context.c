/* Contexts: operators on DLPack tensors from C, on the host and on the devices of C drivers, without Python.
 * On a device the driver's own library (group op) comes first; what it does not offer is staged through the host's kernels,
 * counted.  Interface: kernels/include/haian_context.h.  Not here: the operators' functions (gen/haian_ops.c). */
#define _GNU_SOURCE
#include "../include/haian_context.h"
#include "../../hal/native/hal_table.h"
#include "../cpu/library.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

_Static_assert(sizeof(haian_op_attr) == sizeof(haian_attr), "one layout");
_Static_assert(offsetof(haian_op_attr, i) == offsetof(haian_attr, i), "one layout");
enum { DL_HOST = 1, DL_HOST_PINNED = 3, DL_DEVICE = 12, MAX_DRIVERS = 32 };
#define NEED(condition, code, ...) \
  if (!(condition)) return haian_fail(code, __VA_ARGS__)

typedef struct driver {
  char *path;
  const hal_adapter *table;
  int32_t devices;
} driver;

static driver drivers[MAX_DRIVERS];
static int n_drivers;
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

struct haian_context {
  const driver *of; /* NULL: the host */
  int32_t index;
  hal_handle stream;
  bool staging;
  uint8_t *scratch;
  uint64_t capacity;
  haian_context_stats stats;
};

/* ---- drivers ---------------------------------------------------------------------------------------------------------- */
static int32_t driver_failed(const hal_adapter *table, const char *what, hal_status status) {
  char text[256] = "";
  if (HAS(table->core, last_error)) table->core->last_error(text, sizeof text);
  return haian_fail(status >= HAIAN_INVALID_ARGUMENT && status <= HAIAN_INTERNAL ? status : HAIAN_INTERNAL,
                    "%s: %s: %s", table->name, what, *text ? text : "failed without a message");
}
#define DRIVER(c, call, what)                                                   \
  do {                                                                          \
    hal_status status_ = (c)->of->table->call;                                  \
    if (status_ != HAL_OK) return driver_failed((c)->of->table, what, status_); \
  } while (0)

static int32_t check_table(const char *path, const hal_adapter *t) {
  NEED(t, HAIAN_VERSION_MISMATCH, "%s: hal_get_adapter refused ABI %d.%d; needs a driver of ABI %d", path,
       HAL_ABI_MAJOR, HAL_ABI_MINOR, HAL_ABI_MAJOR);
  NEED(HAS(t, name) && t->abi_major == HAL_ABI_MAJOR, HAIAN_VERSION_MISMATCH,
       "%s: a table of %u bytes and ABI %u; needs a name and ABI %d", path, t->struct_size, t->abi_major,
       HAL_ABI_MAJOR);
  NEED(HAS(t, core) && HAS(t->core, init) && HAS(t->core, device_count) && HAS(t->core, props) && HAS(t->core, sync) &&
           HAS(t, mem) && HAS(t->mem, alloc) && HAS(t->mem, free) && HAS(t->mem, copy),
       HAIAN_INVALID_ARGUMENT, "%s: its table lacks a required function; `haian adapter check %s` says which", path,
       path);
  return HAIAN_OK;
}

static int32_t load(const char *path, driver *d) {
  static const hal_host host = {sizeof host, HAL_ABI_MAJOR, HAL_ABI_MINOR, 0, NULL, NULL};
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  NEED(library, HAIAN_NOT_FOUND, "%s; needs a shared object for this machine", dlerror());
  const hal_adapter *(*get)(const hal_host *) = NULL;
  *(void **)&get = dlsym(library, "hal_get_adapter");
  int32_t status = get ? check_table(path, d->table = get(&host))
                       : haian_fail(HAIAN_NOT_FOUND, "%s: has no hal_get_adapter; needs a driver of haian_hal.h", path);
  if (status == HAIAN_OK) {
    hal_status said = d->table->core->init();
    if (said == HAL_OK) said = d->table->core->device_count(&d->devices);
    if (said != HAL_OK) status = driver_failed(d->table, "init", said);
  }
  if (status == HAIAN_OK && !(d->path = strdup(path))) status = haian_fail(HAIAN_OUT_OF_MEMORY, "%s: no memory", path);
  if (status != HAIAN_OK) dlclose(library);
  return status;
}

int32_t haian_load_driver(const char *path, const char **name) {
  NEED(path && *path == '/', HAIAN_INVALID_ARGUMENT, "haian_load_driver: %s; needs an absolute path",
       path ? path : "NULL");
  struct stat file;
  NEED(stat(path, &file) == 0, HAIAN_NOT_FOUND, "haian_load_driver: %s is not there; give the path of a .so", path);
  NEED(!(file.st_mode & S_IWOTH), HAIAN_PERMISSION_DENIED,
       "haian_load_driver: %s may be written by anyone; chmod o-w it first", path);
  pthread_mutex_lock(&loading);
  int32_t status = HAIAN_OK;
  int i = 0;
  while (i < n_drivers && strcmp(drivers[i].path, path)) i++;
  if (i == MAX_DRIVERS)
    status = haian_fail(HAIAN_OUT_OF_RANGE, "haian_load_driver: %d drivers are loaded, the most there may be", i);
  else if (i == n_drivers) status = load(path, &drivers[i]);
  for (int k = 0; status == HAIAN_OK && i == n_drivers && k < n_drivers; k++)
    if (!strcmp(drivers[k].table->name, drivers[i].table->name))
      status = haian_fail(HAIAN_BUSY, "haian_load_driver: %s is called %s as %s is; load one of them", path,
                          drivers[i].table->name, drivers[k].path);
  if (status == HAIAN_OK) {
    n_drivers += i == n_drivers;
    if (name) *name = drivers[i].table->name;
  }
  pthread_mutex_unlock(&loading);
  return status;
}

/* ---- contexts --------------------------------------------------------------------------------------------------------- */
static const driver *find(const char *device, int32_t *index) {
  const char *colon = strrchr(device, ':');
  size_t length = colon ? (size_t)(colon - device) : strlen(device);
  char *end = NULL;
  long number = colon ? strtol(colon + 1, &end, 10) : 0;
  *index = colon && (end == colon + 1 || *end || number < 0 || number > INT32_MAX) ? -1 : (int32_t)number;
  const driver *found = NULL;
  pthread_mutex_lock(&loading);
  for (int i = 0; i < n_drivers && !found; i++)
    if (strlen(drivers[i].table->name) == length && !memcmp(drivers[i].table->name, device, length))
      found = &drivers[i];
  pthread_mutex_unlock(&loading);
  return found;
}

int32_t haian_context_open(const char *device, haian_context **out) {
  NEED(device && out, HAIAN_INVALID_ARGUMENT,
       "haian_context_open: NULL came; needs a device's name and where to put the context");
  *out = NULL;
  int32_t index = 0;
  const driver *of = NULL;
  if (strcmp(device, "cpu") && strcmp(device, "cpu:0")) {
    of = find(device, &index);
    NEED(of, HAIAN_NOT_FOUND,
         "haian_context_open: no device %s; needs cpu, or name:index of a driver that haian_load_driver loaded",
         device);
    NEED(index >= 0 && index < of->devices, HAIAN_NOT_FOUND,
         "haian_context_open: %s; the driver has %d devices, %s:0 and so on", device, of->devices, of->table->name);
  }
  haian_context *c = calloc(1, sizeof *c);
  NEED(c, HAIAN_OUT_OF_MEMORY, "haian_context_open: no memory");
  *c = (haian_context){.of = of, .index = index, .staging = true};
  *out = c;
  return HAIAN_OK;
}

void haian_context_close(haian_context *c) {
  if (!c) return;
  haian_context_sync(c);
  free(c->scratch);
  free(c);
}

#define CONTEXT(c, where) \
  NEED(c, HAIAN_INVALID_ARGUMENT, where ": the context is NULL; open one with haian_context_open")

int32_t haian_context_set_stream(haian_context *c, uint64_t stream) {
  CONTEXT(c, "haian_context_set_stream");
  NEED(!stream || (c->of && HAS(c->of->table, stream)), HAIAN_UNSUPPORTED,
       "haian_context_set_stream: the device has no streams; needs 0, its synchronous default");
  c->stream = stream;
  return HAIAN_OK;
}

int32_t haian_context_allow_staging(haian_context *c, int32_t allow) {
  CONTEXT(c, "haian_context_allow_staging");
  c->staging = allow != 0;
  return HAIAN_OK;
}

int32_t haian_context_reserve(haian_context *c, uint64_t bytes) {
  CONTEXT(c, "haian_context_reserve");
  if (bytes <= c->capacity) return HAIAN_OK;
  void *fresh = NULL;
  NEED(bytes <= PTRDIFF_MAX && !posix_memalign(&fresh, 64, bytes), HAIAN_OUT_OF_MEMORY,
       "haian_context_reserve: no %llu bytes of host memory", (unsigned long long)bytes);
  free(c->scratch);
  c->scratch = fresh;
  c->capacity = bytes;
  return HAIAN_OK;
}

int32_t haian_context_statistics(const haian_context *c, haian_context_stats *out) {
  NEED(c && out, HAIAN_INVALID_ARGUMENT,
       "haian_context_statistics: NULL came; needs a context and where to put its numbers");
  *out = c->stats;
  return HAIAN_OK;
}

int32_t haian_context_alloc(haian_context *c, uint64_t bytes, void **out) {
  CONTEXT(c, "haian_context_alloc");
  NEED(out && bytes, HAIAN_INVALID_ARGUMENT,
       "haian_context_alloc: %llu bytes to %p; needs one byte at least and where to put the address",
       (unsigned long long)bytes, (void *)out);
  *out = NULL;
  if (!c->of) {
    NEED(bytes <= PTRDIFF_MAX && !posix_memalign(out, 64, bytes), HAIAN_OUT_OF_MEMORY,
         "haian_context_alloc: no %llu bytes of host memory", (unsigned long long)bytes);
    return HAIAN_OK;
  }
  hal_alloc_desc desc = {sizeof desc, HAL_MEM_DEVICE, bytes, 0, 0, 0};
  hal_dptr address = 0;
  DRIVER(c, mem->alloc(c->index, &desc, &address), "alloc");
  NEED(address, HAIAN_INTERNAL, "%s: alloc: success with address 0; needs an address", c->of->table->name);
  *out = (void *)(uintptr_t)address;
  return HAIAN_OK;
}

int32_t haian_context_free(haian_context *c, void *memory) {
  CONTEXT(c, "haian_context_free");
  if (!memory) return HAIAN_OK;
  if (!c->of) return free(memory), HAIAN_OK;
  DRIVER(c, mem->free(c->index, (uintptr_t)memory), "free");
  return HAIAN_OK;
}

static int32_t copy(haian_context *c, uint64_t dst, uint64_t src, uint64_t bytes, bool to_device) {
  hal_copy_desc desc = {.struct_size = sizeof desc,
                        .kind = to_device ? HAL_COPY_H2D : HAL_COPY_D2H,
                        .dst = dst,
                        .src = src,
                        .bytes = bytes,
                        .rows = 1,
                        .dst_pitch = bytes,
                        .src_pitch = bytes,
                        .dst_device = c->index,
                        .src_device = c->index};
  DRIVER(c, mem->copy(c->index, c->stream, &desc), "copy");
  return HAIAN_OK;
}

int32_t haian_context_copy(haian_context *c, void *dst, const void *src, uint64_t bytes, int32_t to_device) {
  CONTEXT(c, "haian_context_copy");
  NEED(!bytes || (dst && src), HAIAN_INVALID_ARGUMENT,
       "haian_context_copy: %llu bytes from %p to %p; needs two addresses", (unsigned long long)bytes, src, dst);
  if (!bytes) return HAIAN_OK;
  if (!c->of) return memmove(dst, src, bytes), HAIAN_OK;
  return copy(c, (uintptr_t)dst, (uintptr_t)src, bytes, to_device != 0);
}

int32_t haian_context_sync(haian_context *c) {
  CONTEXT(c, "haian_context_sync");
  if (!c->of) return HAIAN_OK;
  if (c->stream && HAS(c->of->table->stream, sync)) DRIVER(c, stream->sync(c->index, c->stream), "stream sync");
  else DRIVER(c, core->sync(c->index), "sync");
  return HAIAN_OK;
}

/* ---- operands ---------------------------------------------------------------------------------------------------------- */
static int32_t dtype_of(DLDataType d) {
  static const struct {
    uint8_t code, bits;
  } known[HAIAN_DTYPE_END] = {[HAIAN_BOOL] = {6, 8}, [HAIAN_U8] = {1, 8},      [HAIAN_U16] = {1, 16},
                              [HAIAN_U32] = {1, 32}, [HAIAN_U64] = {1, 64},    [HAIAN_I8] = {0, 8},
                              [HAIAN_I16] = {0, 16}, [HAIAN_I32] = {0, 32},    [HAIAN_I64] = {0, 64},
                              [HAIAN_F16] = {2, 16}, [HAIAN_BF16] = {4, 16},   [HAIAN_F32] = {2, 32},
                              [HAIAN_F64] = {2, 64}, [HAIAN_F8E4M3] = {10, 8}, [HAIAN_F8E5M2] = {12, 8},
                              [HAIAN_C64] = {5, 64}, [HAIAN_C128] = {5, 128}};
  for (int32_t i = 1; i < HAIAN_DTYPE_END; i++)
    if (known[i].code == d.code && known[i].bits == d.bits && d.lanes == 1) return i;
  return 0;
}

/* The descriptor of a DLPack tensor on the context's device. */
static int32_t describe(const haian_context *c, const char *op, const char *role, int32_t number, const DLTensor *d,
                        haian_tensor *t) {
  memset(t, 0, sizeof *t);
  t->dtype = dtype_of(d->dtype);
  NEED(t->dtype, HAIAN_DTYPE,
       "%s: %s %d has DLPack dtype code %d, %d bits, %d lanes; needs one of haian's (haian_context.h)", op, role,
       number, d->dtype.code, d->dtype.bits, d->dtype.lanes);
  NEED(d->ndim >= 0 && d->ndim <= HAIAN_MAX_RANK, HAIAN_SHAPE, "%s: %s %d has %d axes; haian tensors have at most %d",
       op, role, number, d->ndim, HAIAN_MAX_RANK);
  NEED(d->ndim == 0 || d->shape, HAIAN_INVALID_ARGUMENT, "%s: %s %d has %d axes and no shape; needs its sizes", op,
       role, number, d->ndim);
  const int32_t kind = (int32_t)d->device.device_type;
  const bool host = kind == DL_HOST || kind == DL_HOST_PINNED;
  NEED(c->of ? kind == DL_DEVICE && d->device.device_id == c->index : host, HAIAN_INVALID_ARGUMENT,
       "%s: %s %d is on DLPack device (%d, %d); the context's is (%d, %d), copy it there", op, role, number, kind,
       d->device.device_id, c->of ? DL_DEVICE : DL_HOST, c->index);
  t->ndim = d->ndim;
  t->numel = 1;
  t->data = (uint8_t *)d->data + d->byte_offset;
  for (int32_t i = d->ndim; i--;) {
    NEED(d->shape[i] >= 0, HAIAN_SHAPE, "%s: %s %d has size %lld on axis %d; sizes must not be negative", op, role,
         number, (long long)d->shape[i], i);
    t->shape[i] = d->shape[i];
    NEED(!__builtin_mul_overflow(t->numel, d->shape[i], &t->numel), HAIAN_SHAPE,
         "%s: %s %d has more elements than 63 bits count", op, role, number);
  }
  bool contiguous = true;
  int64_t step = 1;
  for (int32_t i = d->ndim; i--;) {
    t->stride[i] = d->strides ? d->strides[i] : step;
    contiguous = contiguous && (t->shape[i] == 1 || t->stride[i] == step);
    step *= t->shape[i] > 1 ? t->shape[i] : 1;
  }
  t->tag = (uint32_t)t->dtype | (uint32_t)t->ndim << 5 | (contiguous || !t->numel ? HAIAN_TAG_CONTIGUOUS : 0) |
           (((uintptr_t)t->data & 63) == 0 ? HAIAN_TAG_ALIGNED : 0);
  return HAIAN_OK;
}

/* ---- the driver's own library ------------------------------------------------------------------------------------------- */
static int32_t by_library(haian_context *c, const haian_op_info *op, haian_tensor *const *in, int32_t n_in,
                          haian_tensor *const *out, int32_t n_out, const haian_op_attr *attr, bool *done) {
  const hal_op *group = HAS(c->of->table, op) ? c->of->table->op : NULL;
  if (!HAS(group, query) || !HAS(group, run) || n_in + n_out > HAIAN_MAX_OPERANDS) return HAIAN_OK;
  hal_dtype dtypes[HAIAN_MAX_OPERANDS];
  hal_tensor tensors[HAIAN_MAX_OPERANDS];
  bool contiguous = true;
  for (int32_t i = 0; i < n_in + n_out; i++) {
    const haian_tensor *t = i < n_in ? in[i] : out[i - n_in];
    dtypes[i] = t ? t->dtype : 0;
    tensors[i] = (hal_tensor){.struct_size = sizeof tensors[i]};
    if (!t) continue; /* an optional tensor that was not given: dtype 0 */
    contiguous = contiguous && (t->tag & HAIAN_TAG_CONTIGUOUS);
    tensors[i] = (hal_tensor){sizeof tensors[i], t->dtype, (uintptr_t)t->data, t->ndim, 0, t->shape, t->stride};
  }
  int32_t answer = 0;
  DRIVER(c, op->query(c->index, op->name, dtypes, n_in, contiguous, &answer), "op query");
  if (answer <= 0) return HAIAN_OK;
  hal_attr attrs[HAIAN_MAX_ATTRS];
  for (int32_t i = 0; i < op->n_attr; i++) {
    attrs[i] = (hal_attr){.name = op->attr[i], .kind = attr[i].kind, .count = attr[i].count};
    if (attr[i].kind == HAIAN_INT) attrs[i].i = attr[i].i;
    if (attr[i].kind == HAIAN_FLOAT) attrs[i].f = attr[i].f;
    if (attr[i].kind == HAIAN_INTS) attrs[i].ints = attr[i].v;
  }
  hal_status status =
      group->run(c->index, c->stream, op->name, tensors, n_in, tensors + n_in, n_out, attrs, op->n_attr);
  if (status == HAL_UNSUPPORTED) return HAIAN_OK; /* not these values after all */
  if (status != HAL_OK) return driver_failed(c->of->table, op->name, status);
  *done = true;
  c->stats.library++;
  return HAIAN_OK;
}

/* ---- staging -------------------------------------------------------------------------------------------------------------- */
typedef struct range { /* device addresses lo <= a < hi, and where their copy stands in the scratch memory */
  uint64_t lo, hi, at;
  bool read, written;
} range;

static int by_address(const void *a, const void *b) {
  const range *x = a, *y = b;
  return x->lo < y->lo ? -1 : x->lo > y->lo;
}

static range reach(const haian_tensor *t, bool output) {
  int64_t low = 0, high = 0, item = haian_itemsize(t->dtype);
  for (int32_t d = 0; d < t->ndim; d++) {
    int64_t far = (t->shape[d] - 1) * t->stride[d];
    if (far < 0) low += far;
    else high += far;
  }
  const uint64_t base = (uintptr_t)t->data;
  return (range){base + (uint64_t)(low * item), base + (uint64_t)((high + 1) * item), 0,
                 !output || !(t->tag & HAIAN_TAG_CONTIGUOUS), output};
}

/* Operands that share memory share it in the scratch memory too, so that the host's checks of aliasing hold. */
static int32_t staged(haian_context *c, const char *op, haian_args *args, haian_tensor *const *all, int32_t count) {
  range *ranges = calloc((size_t)count + 1, sizeof *ranges);
  NEED(ranges, HAIAN_OUT_OF_MEMORY, "%s: no memory to stage %d operands", op, count);
  int32_t n = 0, status = HAIAN_OK;
  for (int32_t i = 0; i < count; i++)
    if (all[i] && all[i]->numel) ranges[n++] = reach(all[i], i >= args->n_in);
  qsort(ranges, (size_t)n, sizeof *ranges, by_address);
  int32_t merged = 0;
  for (int32_t i = 0; i < n; i++) {
    range *last = merged ? &ranges[merged - 1] : NULL;
    if (last && ranges[i].lo < last->hi) {
      last->hi = last->hi > ranges[i].hi ? last->hi : ranges[i].hi;
      last->read = true; /* the bytes between, too, have to come back as they were */
      last->written = last->written || ranges[i].written;
    } else {
      ranges[merged++] = ranges[i];
    }
  }
  uint64_t bytes = 0;
  for (int32_t i = 0; i < merged; i++) {
    ranges[i].at = bytes + ranges[i].lo % 64; /* alignment is kept */
    bytes = (ranges[i].at + (ranges[i].hi - ranges[i].lo) + 63) / 64 * 64;
  }
  status = haian_context_reserve(c, bytes ? bytes : 64);
  for (int32_t i = 0; i < merged && status == HAIAN_OK; i++)
    if (ranges[i].read) {
      status = copy(c, (uintptr_t)c->scratch + ranges[i].at, ranges[i].lo, ranges[i].hi - ranges[i].lo, false);
      c->stats.staged_bytes += ranges[i].hi - ranges[i].lo;
    }
  if (status == HAIAN_OK) status = haian_context_sync(c);
  for (int32_t i = 0; i < count && status == HAIAN_OK; i++) {
    if (!all[i] || !all[i]->numel) continue;
    int32_t k = 0;
    while ((uintptr_t)all[i]->data >= ranges[k].hi) k++;
    all[i]->data = c->scratch + ranges[k].at + ((uintptr_t)all[i]->data - ranges[k].lo);
  }
  if (status == HAIAN_OK) status = haian_call(op, args);
  for (int32_t i = 0; i < merged && status == HAIAN_OK; i++)
    if (ranges[i].written) {
      status = copy(c, ranges[i].lo, (uintptr_t)c->scratch + ranges[i].at, ranges[i].hi - ranges[i].lo, true);
      c->stats.staged_bytes += ranges[i].hi - ranges[i].lo;
    }
  if (status == HAIAN_OK) status = haian_context_sync(c); /* the scratch memory is the next call's */
  c->stats.staged += status == HAIAN_OK;
  free(ranges);
  return status;
}

/* ---- the call --------------------------------------------------------------------------------------------------------------- */
int32_t haian_context_call(haian_context *c, const haian_op_info *op, const DLTensor *const *in, int32_t n_in,
                           DLTensor *const *out, int32_t n_out, const haian_op_attr *attr) {
  NEED(c, HAIAN_INVALID_ARGUMENT, "%s: the context is NULL; open one with haian_context_open", op->name);
  NEED(n_in >= 0 && n_in <= HAIAN_MAX_INPUTS, HAIAN_INVALID_ARGUMENT, "%s: %d tensors; needs 0 to %d", op->name, n_in,
       HAIAN_MAX_INPUTS);
  const int32_t count = n_in + n_out;
  haian_tensor few[HAIAN_MAX_OPERANDS], *tensors = few, *few_at[HAIAN_MAX_OPERANDS], **all = few_at;
  if (count > HAIAN_MAX_OPERANDS) {
    tensors = malloc((size_t)count * (sizeof *tensors + sizeof *all));
    NEED(tensors, HAIAN_OUT_OF_MEMORY, "%s: no memory for %d operands", op->name, count);
    all = (haian_tensor **)(tensors + count);
  }
  int32_t status = HAIAN_OK;
  for (int32_t i = 0; i < count && status == HAIAN_OK; i++) {
    const bool output = i >= n_in;
    const DLTensor *d = output ? out[i - n_in] : in[i];
    all[i] = d ? &tensors[i] : NULL;
    if (d) status = describe(c, op->name, output ? "out" : "input", output ? i - n_in : i, d, all[i]);
    else if (output)
      status =
          haian_fail(HAIAN_INVALID_ARGUMENT, "%s: out %d is NULL; every result needs a tensor", op->name, i - n_in);
  }
  haian_args args = {n_in, n_out, op->n_attr, 0, all, all + n_in, (const haian_attr *)attr};
  if (status == HAIAN_OK && !c->of) {
    status = haian_call(op->name, &args);
    c->stats.host += status == HAIAN_OK;
  } else if (status == HAIAN_OK) {
    bool done = false;
    status = by_library(c, op, all, n_in, all + n_in, n_out, attr, &done);
    if (status == HAIAN_OK && !done)
      status = c->staging ? staged(c, op->name, &args, all, count)
                          : haian_fail(HAIAN_UNSUPPORTED,
                                       "%s: %s:%d has no kernel for it and staging is off; "
                                       "haian_context_allow_staging(context, 1) lets the host compute it",
                                       op->name, c->of->table->name, c->index);
  }
  c->stats.calls += status == HAIAN_OK;
  if (tensors != few) free(tensors);
  return status;
}
