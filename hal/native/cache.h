/* The stream-ordered caching allocator of one device, above any driver.
 * For: _native.Allocator and Buffer (py_cache.c), C programs (cache_hal.c).  Not for: host tensors (alloc.h).
 *
 * A block freed by work of stream A is reused on A without waiting; on B only after a mark in A, made on B's first request
 * for it, has passed: so a program with one stream never makes an event.
 *
 * Threads: every call is safe from any thread.  One lock guards the structures, is held for tens of nanoseconds and never
 * across a driver's function: haian_cache_give may run anywhere, inside a driver's own locks too. */
#ifndef HAIAN_CACHE_H
#define HAIAN_CACHE_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* A driver function failed and its error is with the caller already (a Python exception that is no HaianError). */
#define HAIAN_CACHE_RAISED (-1)

/* What the cache asks of a driver.  Functions return haian_status (tensor.h), with haian_fail's or the caller's own message,
 * or HAIAN_CACHE_RAISED.  Those marked so may be NULL.  Event functions are called only where facts.events says so. */
typedef struct haian_cache_driver {
  void *ctx;
  int32_t (*alloc)(void *ctx, uint64_t bytes, uint64_t align, uint64_t *address); /* HAIAN_OUT_OF_MEMORY is no error */
  int32_t (*free)(void *ctx, uint64_t address);
  int32_t (*sync)(void *ctx);
  int32_t (*stream_sync)(void *ctx, uint64_t stream);
  int32_t (*stream_destroy)(void *ctx, uint64_t stream);
  void (*abandon)(void *ctx, uint64_t stream); /* stream_destroy that tells no error and keeps the one told before */
  int32_t (*stream_wait_event)(void *ctx, uint64_t stream, uint64_t event);
  int32_t (*event_create)(void *ctx, uint64_t *event);
  int32_t (*event_record)(void *ctx, uint64_t event, uint64_t stream);
  int32_t (*event_query)(void *ctx, uint64_t event); /* HAIAN_OK or HAIAN_NOT_READY, which is no error */
  int32_t (*event_sync)(void *ctx, uint64_t event);
  int32_t (*mem_info)(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes); /* may be NULL */
  /* A validating driver hears of every segment and block, to check bounds within segments; all three or NULL. */
  int32_t (*pool)(void *ctx, uint64_t segment);
  int32_t (*carve)(void *ctx, uint64_t address, uint64_t bytes);
  int32_t (*uncarve)(void *ctx, uint64_t address);
  void (*forget)(void *ctx); /* drops the message of the last failure; may be NULL */
  void (*pause)(void *ctx);  /* lets other threads run; may be NULL */
  void (*end)(void *ctx);    /* the cache is destroyed; may be NULL */
} haian_cache_driver;

/* Bytes.  Requests up to `small` share segments of `small_segment`, those below `medium` segments of `medium_segment`;
 * larger ones get a segment each, rounded up to `large_step`.  Zeros: segments are of exact size. */
typedef struct haian_cache_policy {
  uint64_t small, small_segment, medium, medium_segment, large_step;
} haian_cache_policy;
extern const haian_cache_policy haian_cache_default_policy;

typedef struct haian_cache_facts {
  const char *name; /* "sim:0", copied */
  uint64_t total_bytes, max_alloc_bytes, align_bytes;
  int32_t events, reserved;
  haian_cache_policy policy;
} haian_cache_facts;

typedef struct haian_cache_stats {
  uint64_t live_bytes, peak_bytes, reserved_bytes; /* reserved - live is cached */
  uint64_t allocations, hits, segments,
      oom_retries; /* hits: without driver memory; oom_retries: after giving the cache back */
} haian_cache_stats;

typedef struct haian_cache haian_cache;
typedef struct haian_cache_block { /* the cache's own fields follow */
  uint64_t address, bytes;
} haian_cache_block;

/* NULL when the host has no memory. */
haian_cache *haian_cache_create(const haian_cache_driver *driver, const haian_cache_facts *facts);
/* Frees the bookkeeping, not the driver's memory: it may run inside a driver's locks.  Trim before. */
void haian_cache_destroy(haian_cache *c);

/* A live block of at least nbytes for work of `stream`, without any call to the driver; NULL: ask haian_cache_take. */
haian_cache_block *haian_cache_take_cached(haian_cache *c, uint64_t nbytes, uint64_t stream);
/* HAIAN_INVALID_ARGUMENT: nbytes is 0.  HAIAN_OUT_OF_MEMORY: even after giving the cache back and asking again. */
int32_t haian_cache_take(haian_cache *c, uint64_t nbytes, uint64_t stream, haian_cache_block **out);
/* Takes a block back whose queued work is in the streams `users`. */
void haian_cache_give(haian_cache *c, haian_cache_block *block, const uint64_t *users, uint32_t n_users);
/* Blocks by address, for callers that keep nothing else: list after taking, claim before giving (NULL: not listed). */
int32_t haian_cache_list(haian_cache *c, haian_cache_block *block);
haian_cache_block *haian_cache_claim(haian_cache *c, uint64_t address);

/* Makes later work of `stream` (0: the host) wait for what the streams `users` have queued. */
int32_t haian_cache_order(haian_cache *c, const uint64_t *users, uint32_t n_users, uint64_t stream);
int32_t haian_cache_stream_opened(haian_cache *c, uint64_t stream);
/* Destroys a stream that has been drained; its blocks are anyone's. */
int32_t haian_cache_stream_close(haian_cache *c, uint64_t stream);
/* Waits for the device and gives every unused segment back to the driver. */
int32_t haian_cache_trim(haian_cache *c, uint64_t *released);
/* Takes in what was freed and has passed first. */
int32_t haian_cache_statistics(haian_cache *c, haian_cache_stats *out);
/* Addresses and bytes of up to n segments; returns how many there are. */
uint64_t haian_cache_segments(haian_cache *c, haian_cache_block *out, uint64_t n);

/* Over a C driver's tables (struct hal_adapter of haian_hal.h), with neither Python nor its lock; facts come from the
 * driver.  HAIAN_UNSUPPORTED: the adapter lacks core or memory functions. */
int32_t haian_cache_over(const void *hal_adapter, int32_t device, haian_cache **out);
/* The functions alone; haian_cache_destroy frees their context. */
int32_t haian_cache_hal_driver(const void *hal_adapter, int32_t device, haian_cache_driver *out);

#ifdef __cplusplus
}
#endif
#endif
