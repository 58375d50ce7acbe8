/* The chip behind every stand-in runtime: memory, streams, events, modules and graphs, in no vendor's words.
 *
 * A front end (runtime.c, cuda_driver.c, ...) gives it a vendor's names, argument order and numbers.  What is proven with a
 * stand-in is calling conventions, never hardware.  Made so that mistakes show:
 *  - device memory is a mapping the host may not touch (a load there is SIGSEGV); fresh memory is all 0xFF;
 *  - asynchronous work happens later, on a thread per stream, SI_DELAY_US after it was submitted;
 *  - memory ends at SI_BYTES a device; frees wait for the device; addresses outside a live block are refused;
 *  - dead handles stay dead: a handle carries a generation.
 */
#ifndef STANDIN_DEVICE_H
#define STANDIN_DEVICE_H
#include <stddef.h>
#include <stdint.h>

#define SI_DEVICES 2
#define SI_BYTES (64u << 20) /* memory of a device */
#ifndef SI_DELAY_US
#define SI_DELAY_US 100
#endif
#define SI_MAX_THREADS 1024
#define SI_MAX_GRID 65535
#define SI_SHARED (64 << 10)
#define SI_ARGS 8 /* of a kernel */

/* Outcomes; a front end maps them to the vendor's numbers. */
enum si_code {
  SI_OK,
  SI_INVALID, /* an argument, or addresses that do not fit the direction */
  SI_OOM,
  SI_HANDLE, /* dead or never alive */
  SI_NOT_READY,
  SI_ORDINAL,   /* no such device */
  SI_DIRECTION, /* no such copy direction number */
  SI_FAULT,     /* a kernel faulted: the device is lost until si_reset */
  SI_IMAGE,
  SI_SYMBOL,     /* no such kernel */
  SI_TIMING,     /* event made without timing, or never recorded */
  SI_CAPTURE,    /* not allowed while the stream is captured */
  SI_REGISTERED, /* host memory is registered already */
  SI_UNREGISTERED,
  SI_UNSUPPORTED,
};
enum si_direction { SI_H2H, SI_H2D, SI_D2H, SI_D2D, SI_AUTO };
enum si_kind { SI_STREAM = 1, SI_EVENT, SI_MODULE, SI_FUNCTION, SI_GRAPH, SI_EXEC };

typedef void *si_handle; /* opaque; NULL is a device's default stream where a stream is meant */

/* ---- device */
int si_state(int device); /* SI_OK, SI_ORDINAL or SI_FAULT */
int si_sync(int device);
int si_reset(int device);

/* ---- memory */
int si_malloc(int device, uint64_t n, void **out);
int si_free(void *p); /* device or managed memory */
int si_host_alloc(uint64_t n, void **out);
int si_host_free(void *p);
int si_managed(int device, uint64_t n, void **out);
int si_register(void *p, uint64_t n);
int si_unregister(void *p);
void si_meminfo(int device, uint64_t *free_bytes, uint64_t *total);
int si_owner(const void *p); /* device of an address, -1: the host's */

/* ---- work; device says whose default stream NULL is.  async 0 waits. */
int si_copy(int device, si_handle stream, void *dst, const void *src, uint64_t n, int direction, int async);
int si_copy_peer(int device, si_handle stream, void *dst, int dst_device, const void *src, int src_device, uint64_t n,
                 int async);
int si_fill(int device, si_handle stream, void *dst, uint32_t value, int size, uint64_t count, int async);
int si_host_func(int device, si_handle stream, void (*fn)(void *), void *user);

/* ---- streams and events */
int si_stream_new(int device, int blocking,
                  si_handle *out); /* blocking: waits for the default stream, and it for this one */
int si_stream_destroy(si_handle stream);
int si_stream_sync(int device, si_handle stream);
int si_stream_query(int device, si_handle stream);
int si_stream_wait(int device, si_handle stream, si_handle event);
int si_event_new(int device, int timing, si_handle *out);
int si_event_destroy(si_handle event);
int si_event_record(int device, si_handle event, si_handle stream);
int si_event_query(si_handle event);
int si_event_sync(si_handle event);
int si_elapsed(float *ms, si_handle start, si_handle end);
int si_recorded(si_handle event); /* whether it ever was */

/* ---- modules: an image is text, "standin:axpy,fault", after an optional \x7fELF */
int si_module_load(int device, const char *image, si_handle *out);
int si_module_unload(si_handle module);
int si_module_function(si_handle module, const char *name, si_handle *out);
const char *si_arguments(si_handle function); /* a letter each: p pointer, i int32, f float; NULL for a dead handle */
/* values: one 8-byte slot an argument */
int si_launch(int device, si_handle stream, si_handle function, const unsigned grid[3], const unsigned block[3],
              unsigned shared, const uint64_t *values);

/* ---- graphs */
int si_capture_begin(int device, si_handle stream);
int si_capture_end(si_handle stream, si_handle *graph);
int si_instantiate(si_handle graph, si_handle *exec);
int si_graph_launch(int device, si_handle exec, si_handle stream);
int si_graph_destroy(si_handle graph); /* graph or exec */

#endif
