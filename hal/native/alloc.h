/* The host's caching allocator: 64-byte aligned blocks in size classes, so that a result does not fault its pages in
 * again (torch's allocating 4096x4096 add spends 40 of 47 ms there).  Threads: every call is safe from any thread. */
#ifndef HAIAN_ALLOC_H
#define HAIAN_ALLOC_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct haian_alloc_stats {
  uint64_t live_bytes, cached_bytes, peak_bytes, allocations, hits;
} haian_alloc_stats;

/* A block of at least nbytes (0 counts as 1), or NULL when the system has none left even after trimming. */
void *haian_host_alloc(size_t nbytes);
/* nbytes as passed to haian_host_alloc; p may be NULL. */
void haian_host_free(void *p, size_t nbytes);
/* Gives cached blocks back to the system; returns how many bytes. */
size_t haian_host_trim(void);
void haian_host_stats(haian_alloc_stats *out);

#ifdef __cplusplus
}
#endif
#endif
