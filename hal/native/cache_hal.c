/* The caching allocator over a vendor's C tables: no Python, no interpreter lock.  Not here: checks (hal/validate.py). */
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "hal_table.h"
#include "cache.h"
#include "tensor.h"

_Static_assert(HAL_OUT_OF_MEMORY == HAIAN_OUT_OF_MEMORY && HAL_NOT_READY == HAIAN_NOT_READY &&
                   HAL_INTERNAL == HAIAN_INTERNAL,
               "hal_status and haian_status are the same numbers");

typedef struct hal_context {
  const hal_adapter *hal;
  int32_t device;
} hal_context;

/* The adapter's message becomes this thread's; what is no error passes. */
static int32_t told(const hal_context *x, int32_t status, const char *what) {
  if (status == HAL_OK || status == HAL_NOT_READY) return status;
  char text[400] = "";
  if (HAS(x->hal->core, last_error)) x->hal->core->last_error(text, sizeof text);
  return haian_fail(status < 0 ? HAIAN_INTERNAL : status, "%s:%d: %s failed: %s", x->hal->name, (int)x->device, what,
                    text[0] ? text : "no message");
}
static int32_t absent(const hal_context *x, const char *what) {
  return haian_fail(HAIAN_UNSUPPORTED, "%s:%d: the adapter has no %s", x->hal->name, (int)x->device, what);
}

static int32_t hal_alloc(void *ctx, uint64_t bytes, uint64_t align, uint64_t *address) {
  const hal_context *x = ctx;
  const hal_alloc_desc desc = {.struct_size = sizeof desc, .kind = HAL_MEM_DEVICE, .bytes = bytes, .align = align};
  hal_dptr at = 0;
  const int32_t status = x->hal->mem->alloc(x->device, &desc, &at);
  *address = at;
  if (!status && !at)
    return haian_fail(
        HAIAN_INTERNAL,
        "%s:%d: alloc of %llu bytes succeeded and gave address 0; needs one above 0, or HAL_OUT_OF_MEMORY",
        x->hal->name, (int)x->device, (unsigned long long)bytes);
  return status == HAL_OUT_OF_MEMORY ? status : told(x, status, "alloc");
}
static int32_t hal_free(void *ctx, uint64_t address) {
  const hal_context *x = ctx;
  return told(x, x->hal->mem->free(x->device, address), "free");
}
static int32_t hal_sync(void *ctx) {
  const hal_context *x = ctx;
  return told(x, x->hal->core->sync(x->device), "sync");
}
static int32_t hal_stream_sync(void *ctx, uint64_t stream) {
  const hal_context *x = ctx;
  if (!HAS(x->hal->stream, sync)) return absent(x, "stream.sync");
  return told(x, x->hal->stream->sync(x->device, RAW(stream)), "stream.sync");
}
static int32_t hal_stream_destroy(void *ctx, uint64_t stream) {
  const hal_context *x = ctx;
  if (!HAS(x->hal->stream, destroy)) return absent(x, "stream.destroy");
  return told(x, x->hal->stream->destroy(x->device, RAW(stream)), "stream.destroy");
}
static void hal_abandon(void *ctx, uint64_t stream) {
  const hal_context *x = ctx;
  if (HAS(x->hal->stream, destroy)) x->hal->stream->destroy(x->device, RAW(stream));
}
static int32_t hal_event_create(void *ctx, uint64_t *event) {
  const hal_context *x = ctx;
  if (!HAS(x->hal->event, create)) return absent(x, "event.create");
  return told(x, x->hal->event->create(x->device, 0, event), "event.create");
}
static int32_t hal_event_record(void *ctx, uint64_t event, uint64_t stream) {
  const hal_context *x = ctx;
  if (!HAS(x->hal->event, record)) return absent(x, "event.record");
  return told(x, x->hal->event->record(x->device, event, RAW(stream)), "event.record");
}
static int32_t hal_event_query(void *ctx, uint64_t event) {
  const hal_context *x = ctx;
  if (!HAS(x->hal->event, query)) return absent(x, "event.query");
  return told(x, x->hal->event->query(x->device, event), "event.query");
}
static int32_t hal_event_sync(void *ctx, uint64_t event) {
  const hal_context *x = ctx;
  if (!HAS(x->hal->event, sync)) return absent(x, "event.sync");
  return told(x, x->hal->event->sync(x->device, event, -1), "event.sync");
}
static int32_t hal_stream_wait_event(void *ctx, uint64_t stream, uint64_t event) {
  const hal_context *x = ctx;
  if (!HAS(x->hal->stream, wait_event)) return hal_event_sync(ctx, event); /* documented: then the host waits */
  return told(x, x->hal->stream->wait_event(x->device, RAW(stream), event), "stream.wait_event");
}
static int32_t hal_mem_info(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes) {
  const hal_context *x = ctx;
  if (!HAS(x->hal->mem, info)) return HAIAN_UNSUPPORTED;
  return x->hal->mem->info(x->device, free_bytes, total_bytes);
}
static void hal_pause(void *ctx) {
  (void)ctx;
  sched_yield();
}

int32_t haian_cache_hal_driver(const void *hal_adapter_, int32_t device, haian_cache_driver *out) {
  const hal_adapter *hal = hal_adapter_;
  if (!HAS(hal->core, sync) || !HAS(hal->core, props) || !HAS(hal->mem, alloc) || !HAS(hal->mem, free))
    return haian_fail(HAIAN_UNSUPPORTED, "%s: the adapter lacks sync, props, alloc or free; a driver needs them",
                      hal->name);
  hal_context *x = malloc(sizeof *x);
  if (!x) return haian_fail(HAIAN_OUT_OF_MEMORY, "%s: the host has no memory for an allocator", hal->name);
  *x = (hal_context){hal, device};
  *out = (haian_cache_driver){.ctx = x,
                              .alloc = hal_alloc,
                              .free = hal_free,
                              .sync = hal_sync,
                              .stream_sync = hal_stream_sync,
                              .stream_destroy = hal_stream_destroy,
                              .abandon = hal_abandon,
                              .stream_wait_event = hal_stream_wait_event,
                              .event_create = hal_event_create,
                              .event_record = hal_event_record,
                              .event_query = hal_event_query,
                              .event_sync = hal_event_sync,
                              .mem_info = hal_mem_info,
                              .pause = hal_pause,
                              .end = free};
  return HAIAN_OK;
}

int32_t haian_cache_over(const void *hal_adapter_, int32_t device, haian_cache **out) {
  const hal_adapter *hal = hal_adapter_;
  haian_cache_driver driver;
  *out = NULL;
  int32_t status = haian_cache_hal_driver(hal, device, &driver);
  if (status) return status;
  hal_props props = {.struct_size = sizeof props};
  status = told(driver.ctx, hal->core->props(device, &props), "props");
  if (!status) {
    char name[64];
    snprintf(name, sizeof name, "%s:%d", hal->name, (int)device);
    const haian_cache_facts facts = {.name = name,
                                     .total_bytes = props.total_bytes,
                                     .max_alloc_bytes = props.max_alloc_bytes,
                                     .align_bytes = props.align_bytes,
                                     .events = HAS(hal->event, record) != 0,
                                     .policy = haian_cache_default_policy};
    *out = haian_cache_create(&driver, &facts);
    if (!*out) status = haian_fail(HAIAN_OUT_OF_MEMORY, "%s: the host has no memory for an allocator", name);
  }
  if (status) free(driver.ctx);
  return status;
}
