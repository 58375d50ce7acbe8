/* haian_context.h: where operators run, for programs without Python.  The operators themselves: haian_ops.h, which includes this.
 *
 *   haian_context *c;
 *   if (haian_context_open("cpu", &c)) { fprintf(stderr, "%s\n", haian_last_error()); exit(1); }
 *   haian_op_softmax(c, &x, -1, &y);
 *
 * A context is a device, a stream of it and scratch memory.  One thread uses a context at a time; threads have their own.
 * Tensors are DLPack's; strides may be NULL (row-major), the caller owns all memory, results included: an operator writes the
 * out tensors it is given and refuses wrong shapes and dtypes.  Every function returns a haian_status, 0 for success; then
 * haian_last_error() has this thread's message in one line, and nothing was written.
 * Link with libhaian; `haian config --cflags --libs` prints how. */
#ifndef HAIAN_CONTEXT_H
#define HAIAN_CONTEXT_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* DLPack 1.0's tensor, unless dlpack.h was included before. */
#ifndef DLPACK_DLPACK_H_
typedef struct {
  int32_t device_type; /* 1: host; 12: a device of haian */
  int32_t device_id;
} DLDevice;
typedef struct {
  uint8_t code; /* 0 int, 1 uint, 2 float, 4 bfloat, 5 complex, 6 bool, 10 float8_e4m3fn, 12 float8_e5m2 */
  uint8_t bits;
  uint16_t lanes; /* 1 */
} DLDataType;
typedef struct {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape;
  int64_t *strides; /* in elements; NULL: row-major */
  uint64_t byte_offset;
} DLTensor;
#endif

/* Attributes that are dtypes; 0 where an optional one is left out. */
#define HAIAN_DTYPE_BOOL 1
#define HAIAN_DTYPE_UINT8 2
#define HAIAN_DTYPE_INT8 6
#define HAIAN_DTYPE_INT16 7
#define HAIAN_DTYPE_INT32 8
#define HAIAN_DTYPE_INT64 9
#define HAIAN_DTYPE_FLOAT16 10
#define HAIAN_DTYPE_BFLOAT16 11
#define HAIAN_DTYPE_FLOAT32 12
#define HAIAN_DTYPE_FLOAT64 13
#define HAIAN_DTYPE_FLOAT8_E4M3FN 14
#define HAIAN_DTYPE_FLOAT8_E5M2 15
#define HAIAN_DTYPE_COMPLEX64 16

typedef struct haian_context haian_context;

/* How often a context's operators ran, and where: on the host's kernels, by the driver's own library, or staged through the
 * host because the device has no kernel (device to host, host kernel, host to device). */
typedef struct haian_context_stats {
  uint64_t calls, host, library, staged;
  uint64_t staged_bytes; /* moved for it, both ways */
} haian_context_stats;

/* Loads a driver in C (haian_hal.h).  name (may be NULL): what its devices are called.  Loading a file twice is one driver.
 * Refused: a relative path, a file that anyone may write, another ABI major, a driver without its required functions. */
int32_t haian_load_driver(const char *path, const char **name);

/* device: "cpu", or "name:index" of a loaded driver. */
int32_t haian_context_open(const char *device, haian_context **out);
void haian_context_close(haian_context *context); /* waits for its stream; NULL is fine */

/* stream: a stream handle of the driver; 0 is the device's synchronous default, which a context starts with. */
int32_t haian_context_set_stream(haian_context *context, uint64_t stream);
/* allow 0: an operator the device has no kernel for is refused (HAIAN_UNSUPPORTED) instead of staged; 1 is the start. */
int32_t haian_context_allow_staging(haian_context *context, int32_t allow);
/* Takes bytes of the host's memory for staging now, so that no call has to; it grows by itself otherwise. */
int32_t haian_context_reserve(haian_context *context, uint64_t bytes);
int32_t haian_context_statistics(const haian_context *context, haian_context_stats *out);

/* Memory of the context's device, and copies between it and the host in stream order; to_device 1 or 0.  A copy has happened
 * when haian_context_sync returns. */
int32_t haian_context_alloc(haian_context *context, uint64_t bytes, void **out);
int32_t haian_context_free(haian_context *context, void *memory);
int32_t haian_context_copy(haian_context *context, void *dst, const void *src, uint64_t bytes, int32_t to_device);
int32_t haian_context_sync(haian_context *context);

const char *haian_last_error(void);
int32_t haian_num_threads(void);
void haian_set_num_threads(int32_t n);

/* ---- what haian_ops.h is made of: one call of any operator ---------------------------------------------------------- */
/* kind: 0 not given, 1 integer (bool, dtype, number of a choice), 2 float, 3 integers. */
typedef struct haian_op_attr {
  int32_t kind, count;
  union {
    int64_t i;
    double f;
    const int64_t *v;
  };
} haian_op_attr;

typedef struct haian_op_info {
  const char *name;
  int32_t n_attr;
  const char *const *attr; /* names of the attributes */
} haian_op_info;

int32_t haian_context_call(haian_context *context, const haian_op_info *op, const DLTensor *const *in, int32_t n_in,
                           DLTensor *const *out, int32_t n_out, const haian_op_attr *attr);

#ifdef __cplusplus
}
#endif
#endif
