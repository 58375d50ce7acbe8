/* haian_hal.h: what a vendor's driver in C gives to haian.  One symbol, hal_get_adapter; everything else hangs off its table.
 *
 * Rules
 *  1. The adapter owns its tables: static, const, alive until the process ends.  The host only reads them.
 *  2. Every struct starts with struct_size, the writer's sizeof, and only grows at its end.  A field exists if and only if
 *     offset + size <= struct_size and, for a pointer, it is not NULL.  Structs the caller passes for output are filled to
 *     min(caller's struct_size, own size); bytes behind are untouched.  Another size is never a reason to refuse; another
 *     HAL_ABI_MAJOR is: then hal_get_adapter returns NULL.
 *  3. NULL means absent: a group (the whole table) or one function.  The comment says what the host does then.  Flag bits
 *     that are not known must be 0, else HAL_UNSUPPORTED.
 *  4. Fixed-width types only; no enum, bool, size_t, bit-field, struct by value or varargs in a signature.
 *  5. A handle is generation << 32 | index with generation < 2^24 and is never 0; bits 56 to 63 stay 0.  A destroyed handle
 *     is refused with HAL_INVALID_HANDLE, also after its index is used again.  Device memory is an address, interior
 *     addresses are legal in copies and fills, only base addresses may be freed.
 *  6. Every call names the device; there is no current device.  Stream 0 is the device's synchronous default: a copy or fill
 *     on it has happened when the call returns (a launch may still run; sync waits for it).
 *  7. A status is HAL_OK or a code below; last_error has the calling thread's message of its last failure.  What fails later
 *     is kept by its stream and delivered once, by that stream's next sync or query.  HAL_DEVICE_LOST stays until reset.
 *  8. Who creates, destroys.  Strings live as long as the adapter.  The caller keeps host memory given to an asynchronous
 *     call valid until its stream has passed it.  Device memory and events may go earlier.  mem.free of memory that queued
 *     work uses waits for it, takes effect behind it, or is HAL_BUSY: in each case the work sees its own bytes (check 22).
 *     event.destroy kills the handle at once, and a record or wait of it that is queued still happens (check 55).
 *  9. Calls on different handles may come from any threads at once; calls on one stream too, unless HAL_CAP_SERIAL_STREAMS
 *     asks the host to serialise them.  alloc, free and props always.  Callbacks run with no lock of the adapter held and do
 *     not call back into their stream.
 * 10. An adapter does not validate what the host's validation layer does (bounds, stale handles, leaks).  It refuses by
 *     itself: another ABI major, a device number out of range, zero bytes, more than max_alloc_bytes, a bad image or kernel.
 *     A success of alloc gives an address above 0.  mem.info counts what alloc gave: free is at most total less that; of the
 *     machine's own memory (HAL_CAP_HOST_ACCESS) at most total less what of it was written.
 * 11. Capability bits are claims.  The conformance suite checks HOST_ACCESS (its check 11), ASYNC_COPY (40), MEMMOVE (30),
 *     PEER (34), BLOCKING_DEFAULT (45), CROSS_DEVICE_EVENTS (56), FATAL_ERRORS (58) and FLUSHES_SUBNORMALS (66).  The others
 *     are only reported: BF16_ATOMICS, NO_INT64, TF32_MATMUL, and those that excuse from a check, SERIAL_STREAMS (62) and
 *     INIT_ONCE (6); the report lists them beside the level.
 *
 * The text between CFFI-BEGIN and CFFI-END is read verbatim by cffi: no macros in there.
 *
 * Changes
 *   1.0  first version.
 */
#ifndef HAIAN_HAL_H
#define HAIAN_HAL_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HAL_ABI_MAJOR 1
#define HAL_ABI_MINOR 0

/* Fixed numbers of hal_status. */
#define HAL_OK 0
#define HAL_INVALID_ARGUMENT 1
#define HAL_INVALID_HANDLE 2
#define HAL_OUT_OF_RANGE 3
#define HAL_OUT_OF_MEMORY 4
#define HAL_UNSUPPORTED 5
#define HAL_NOT_FOUND 6
#define HAL_NOT_READY 7
#define HAL_TIMEOUT 8
#define HAL_BUSY 9
#define HAL_DEVICE_LOST 10
#define HAL_VERSION_MISMATCH 11
#define HAL_PERMISSION_DENIED 12
#define HAL_INTERNAL 13

/* hal_props.caps */
#define HAL_CAP_HOST_ACCESS 0x1u          /* the host may dereference device addresses */
#define HAL_CAP_ASYNC_COPY 0x2u           /* copies on a stream return before they happen */
#define HAL_CAP_MEMMOVE 0x4u              /* d2d ranges of a row may overlap; else such a copy is refused */
#define HAL_CAP_PEER 0x8u                 /* copies between two devices of this adapter */
#define HAL_CAP_SERIAL_STREAMS 0x10u      /* the host must serialise calls on one stream */
#define HAL_CAP_BLOCKING_DEFAULT 0x20u    /* stream 0 waits for all streams and they for it; else it is independent */
#define HAL_CAP_CROSS_DEVICE_EVENTS 0x40u /* a stream may wait for another device's event */
#define HAL_CAP_FATAL_ERRORS 0x80u        /* an asynchronous error loses the device until reset */
#define HAL_CAP_INIT_ONCE 0x100u          /* init works once in a process */
#define HAL_CAP_BF16_ATOMICS 0x200u
#define HAL_CAP_NO_INT64 0x400u /* kernels cannot compute in 64-bit integers */
#define HAL_CAP_FLUSHES_SUBNORMALS 0x800u
#define HAL_CAP_TF32_MATMUL 0x1000u /* float32 products are rounded to tf32 first */

/* Kinds of memory (hal_alloc_desc), copies (hal_copy_desc), reductions (comm) and of a kernel's argument that is an address. */
#define HAL_MEM_DEVICE 0
#define HAL_MEM_PINNED 1
#define HAL_MEM_MANAGED 2
#define HAL_COPY_H2D 0
#define HAL_COPY_D2H 1
#define HAL_COPY_D2D 2
#define HAL_COPY_PEER 3
#define HAL_REDUCE_SUM 0
#define HAL_REDUCE_PROD 1
#define HAL_REDUCE_MAX 2
#define HAL_REDUCE_MIN 3
#define HAL_REDUCE_AVG 4
#define HAL_ARG_POINTER 64
#define HAL_EVENT_TIMING 0x1u

/* CFFI-BEGIN */
typedef int32_t hal_status;
typedef uint64_t hal_handle;
typedef uint64_t hal_dptr;
/* Element types: bool 1, uint8 2, uint16 3, uint32 4, uint64 5, int8 6, int16 7, int32 8, int64 9, float16 10, bfloat16 11,
 * float32 12, float64 13, float8_e4m3fn 14, float8_e5m2 15, complex64 16, complex128 17. */
typedef int32_t hal_dtype;

/* What the host offers the adapter. */
typedef struct hal_host {
  uint32_t struct_size, abi_major, abi_minor, flags;
  void (*log)(void *user, int32_t level, const char *message); /* 0 debug, 1 info, 2 warning, 3 error; may be NULL */
  void *user;
} hal_host;

typedef struct hal_props {
  uint32_t struct_size;
  int32_t index;
  char model[64], vendor[32], arch[32], uuid[40], driver_version[32];
  uint64_t total_bytes, max_alloc_bytes, align_bytes;
  uint64_t caps;                     /* HAL_CAP_* */
  uint64_t dtypes_load, dtypes_math; /* bit 1 << hal_dtype */
  uint32_t compute_units, warp_size, max_threads, max_shared_bytes;
  uint32_t max_grid[3], event_unit_ns;
  uint64_t max_grid_product;                                  /* programs of a whole grid; 0: no limit */
  char image_format[16], triton_backend[16], triton_arch[32]; /* "" where the device has no kernels, no Triton target */
} hal_props;

typedef struct hal_alloc_desc {
  uint32_t struct_size, kind; /* HAL_MEM_* */
  uint64_t bytes, align;      /* align: a power of two, or 0 for the device's own */
  uint32_t flags, reserved;
} hal_alloc_desc;

typedef struct hal_copy_desc {
  uint32_t struct_size, kind; /* HAL_COPY_* */
  hal_dptr dst, src;          /* host addresses on the host's side */
  uint64_t bytes;             /* of a row; 0 is a success without effect */
  uint64_t rows, dst_pitch, src_pitch;
  int32_t dst_device, src_device; /* differ in peer copies only */
  uint32_t flags, reserved;
} hal_copy_desc;

typedef struct hal_ptr_info {
  uint32_t struct_size;
  int32_t kind; /* HAL_MEM_*, or -1: unknown to this adapter */
  int32_t device, reserved;
  hal_dptr base;
  uint64_t bytes;
} hal_ptr_info;

typedef struct hal_kernel_info { /* -1: unknown */
  uint32_t struct_size;
  int32_t arg_count, max_threads, shared_bytes, registers, local_bytes;
} hal_kernel_info;

typedef struct hal_launch_desc {
  uint32_t struct_size, flags;
  hal_handle kernel;
  uint32_t grid[3], cluster[3], threads, shared_bytes;
  uint32_t arg_count, reserved;
  const void *const *args;    /* each points to its value */
  const uint32_t *arg_sizes;  /* bytes */
  const hal_dtype *arg_types; /* a hal_dtype, or HAL_ARG_POINTER */
} hal_launch_desc;

typedef struct hal_comm_id {
  uint8_t bytes[128];
} hal_comm_id;

typedef struct hal_ipc_handle {
  uint8_t bytes[64];
} hal_ipc_handle;

typedef struct hal_prof_record {
  uint32_t struct_size;
  int32_t kind; /* 0 launch, 1 copy, 2 fill, 3 host function, 4 collective */
  hal_handle stream;
  int64_t start_ns, end_ns; /* the clock of the device's events */
  uint64_t bytes;
  char name[64];
} hal_prof_record;

typedef struct hal_telemetry { /* NaN: unknown */
  uint32_t struct_size, reserved;
  double util_percent, temperature_c, power_w, clock_mhz, mem_used_bytes;
} hal_telemetry;

typedef struct hal_tensor {
  uint32_t struct_size;
  hal_dtype dtype;
  hal_dptr data; /* of element [0, ..., 0] */
  int32_t ndim, reserved;
  const int64_t *shape;
  const int64_t *strides; /* in elements */
} hal_tensor;

typedef struct hal_attr {
  const char *name;
  int32_t kind;  /* 0 none, 1 int (bool, dtype and choice too), 2 float, 3 ints */
  int32_t count; /* of ints */
  int64_t i;
  double f;
  const int64_t *ints;
} hal_attr;

/* ---- required ------------------------------------------------------------------------------------------------------- */
typedef struct hal_core {
  uint32_t struct_size, reserved;
  hal_status (*init)(void); /* once before anything else, and again after fini */
  hal_status (*fini)(void); /* gives back threads, files and memory */
  hal_status (*device_count)(int32_t *count);
  hal_status (*props)(int32_t device, hal_props *props);
  hal_status (*sync)(int32_t device);                      /* waits for all streams */
  hal_status (*reset)(int32_t device);                     /* drops handles and memory, clears HAL_DEVICE_LOST */
  uint64_t (*last_error)(char *buffer, uint64_t capacity); /* truncated, NUL at the end; returns the whole length */
} hal_core;

typedef struct hal_mem {
  uint32_t struct_size, reserved;
  hal_status (*alloc)(int32_t device, const hal_alloc_desc *desc, hal_dptr *out); /* out is 0 on failure */
  hal_status (*free)(int32_t device, hal_dptr address);
  hal_status (*copy)(int32_t device, hal_handle stream, const hal_copy_desc *desc);
  /* optional; without: the host stages bytes, its allocator counts, memory is not pinned, nobody knows, nothing is cached */
  hal_status (*fill)(int32_t device, hal_handle stream, hal_dptr address, uint32_t pattern, uint32_t pattern_size,
                     uint64_t bytes);
  hal_status (*info)(int32_t device, uint64_t *free_bytes, uint64_t *total_bytes);
  hal_status (*host_register)(int32_t device, hal_dptr address, uint64_t bytes);
  hal_status (*host_unregister)(int32_t device, hal_dptr address);
  hal_status (*ptr_info)(int32_t device, hal_dptr address, hal_ptr_info *info);
  hal_status (*pool_trim)(int32_t device, uint64_t keep_bytes, uint64_t *released);
} hal_mem;

/* ---- optional groups ------------------------------------------------------------------------------------------------ */
/* Without streams and events everything runs synchronously and reports say async=no. */
typedef struct hal_stream {
  uint32_t struct_size, reserved;
  hal_status (*create)(int32_t device, uint32_t flags, hal_handle *out);
  hal_status (*destroy)(int32_t device, hal_handle stream); /* drains queued work first */
  hal_status (*sync)(int32_t device, hal_handle stream);
  hal_status (*query)(int32_t device, hal_handle stream); /* HAL_OK or HAL_NOT_READY */
  hal_status (*wait_event)(int32_t device, hal_handle stream,
                           hal_handle event); /* the record it has now; without: the host waits */
  hal_status (*host_func)(int32_t device, hal_handle stream, void (*fn)(void *user),
                          void *user); /* without: the host syncs and calls */
} hal_stream;

typedef struct hal_event {
  uint32_t struct_size, reserved;
  hal_status (*create)(int32_t device, uint32_t flags, hal_handle *out); /* HAL_EVENT_TIMING */
  hal_status (*destroy)(int32_t device, hal_handle event);
  hal_status (*record)(int32_t device, hal_handle event, hal_handle stream);
  hal_status (*query)(int32_t device, hal_handle event); /* HAL_OK (also before the first record) or HAL_NOT_READY */
  hal_status (*sync)(int32_t device, hal_handle event, int64_t timeout_ns); /* negative: for ever; else HAL_TIMEOUT */
  hal_status (*elapsed_ns)(int32_t device, hal_handle start, hal_handle end, int64_t *ns); /* without: no timing */
} hal_event;

/* Without modules the device has no kernels of its own and operators fall back to the host. */
typedef struct hal_module {
  uint32_t struct_size, reserved;
  hal_status (*load)(int32_t device, const void *image, uint64_t bytes, const char *format, hal_handle *out);
  hal_status (*unload)(int32_t device, hal_handle module);
  hal_status (*get_kernel)(int32_t device, hal_handle module, const char *name, hal_handle *out); /* HAL_NOT_FOUND */
  hal_status (*launch)(int32_t device, hal_handle stream, const hal_launch_desc *desc);
  hal_status (*kernel_info)(int32_t device, hal_handle kernel, hal_kernel_info *info); /* without: nothing is known */
} hal_module;

/* Without graphs the host queues the work again.  Records and waits of events in a recording order it and mean nothing outside. */
typedef struct hal_graph {
  uint32_t struct_size, reserved;
  hal_status (*begin)(int32_t device, hal_handle stream);
  hal_status (*end)(int32_t device, hal_handle stream, hal_handle *out); /* out NULL: the recording is dropped */
  hal_status (*instantiate)(int32_t device, hal_handle graph, hal_handle *out);
  hal_status (*launch)(int32_t device, hal_handle executable, hal_handle stream);
  hal_status (*destroy)(int32_t device, hal_handle graph_or_executable);
} hal_graph;

/* Without communicators collectives are staged through the host.  Counts are in elements.  Nothing but recv is written; max and
 * min of NaN and numbers may be either, of NaN alone it is NaN. */
typedef struct hal_comm {
  uint32_t struct_size, reserved;
  hal_status (*unique_id)(hal_comm_id *out);
  hal_status (*init_rank)(int32_t device, int32_t world, int32_t rank, const hal_comm_id *id, hal_handle *out);
  hal_status (*destroy)(int32_t device, hal_handle comm);
  hal_status (*abort)(int32_t device, hal_handle comm);
  hal_status (*all_reduce)(int32_t device, hal_handle comm, hal_handle stream, hal_dptr send, hal_dptr recv,
                           uint64_t count, hal_dtype dtype, int32_t op);
  hal_status (*all_gather)(int32_t device, hal_handle comm, hal_handle stream, hal_dptr send, hal_dptr recv,
                           uint64_t count, hal_dtype dtype);
  hal_status (*reduce_scatter)(int32_t device, hal_handle comm, hal_handle stream, hal_dptr send, hal_dptr recv,
                               uint64_t count, hal_dtype dtype, int32_t op);
  hal_status (*broadcast)(int32_t device, hal_handle comm, hal_handle stream, hal_dptr send, hal_dptr recv,
                          uint64_t count, hal_dtype dtype, int32_t root);
  hal_status (*send)(int32_t device, hal_handle comm, hal_handle stream, hal_dptr send, uint64_t count, hal_dtype dtype,
                     int32_t peer);
  hal_status (*recv)(int32_t device, hal_handle comm, hal_handle stream, hal_dptr recv, uint64_t count, hal_dtype dtype,
                     int32_t peer);
  hal_status (*group_begin)(int32_t device, hal_handle comm);
  hal_status (*group_end)(int32_t device, hal_handle comm);
  hal_status (*async_error)(int32_t device,
                            hal_handle comm); /* what a queued collective came to; HAL_TIMEOUT: a rank did not come */
} hal_comm;

typedef struct hal_ipc {
  uint32_t struct_size, reserved;
  hal_status (*mem_export)(int32_t device, hal_dptr base, hal_ipc_handle *out);
  hal_status (*mem_open)(int32_t device, const hal_ipc_handle *handle, hal_dptr *out); /* while it is not freed */
  hal_status (*mem_close)(int32_t device, hal_dptr address);
  hal_status (*event_export)(int32_t device, hal_handle event, hal_ipc_handle *out);       /* optional */
  hal_status (*event_open)(int32_t device, const hal_ipc_handle *handle, hal_handle *out); /* optional */
} hal_ipc;

typedef struct hal_prof {
  uint32_t struct_size, reserved;
  hal_status (*start)(int32_t device);
  hal_status (*stop)(int32_t device);
  hal_status (*drain)(int32_t device, hal_prof_record *records, uint64_t capacity,
                      uint64_t *count); /* count: how many were written; records[i].struct_size is set by the caller */
} hal_prof;

typedef struct hal_telemetry_group {
  uint32_t struct_size, reserved;
  hal_status (*sample)(int32_t device, hal_telemetry *out);
} hal_telemetry_group;

/* Operators of haian's standard that the vendor's own library computes. */
typedef struct hal_op {
  uint32_t struct_size, reserved;
  hal_status (*query)(int32_t device, const char *name, const hal_dtype *dtypes, int32_t count, int32_t contiguous,
                      int32_t *answer); /* 0 no, 1 supported, 2 preferred */
  hal_status (*run)(int32_t device, hal_handle stream, const char *name, const hal_tensor *inputs, int32_t n_in,
                    const hal_tensor *outputs, int32_t n_out, const hal_attr *attrs, int32_t n_attrs);
} hal_op;

typedef struct hal_adapter {
  uint32_t struct_size, abi_major, abi_minor, flags;
  const char *name, *vendor, *version; /* name: a lower-case word, "mychip" */
  const hal_core *core;
  const hal_mem *mem;
  const hal_stream *stream;
  const hal_event *event;
  const hal_module *module;
  const hal_graph *graph;
  const hal_comm *comm;
  const hal_ipc *ipc;
  const hal_prof *prof;
  const hal_telemetry_group *telemetry;
  const hal_op *op;
} hal_adapter;

/* Returns the same table every time; NULL for a host of another abi_major.  Does no device work. */
const hal_adapter *hal_get_adapter(const hal_host *host);
/* CFFI-END */

#if defined(_WIN32)
#define HAL_EXPORT __declspec(dllexport)
#else
#define HAL_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
}
#endif
#endif
