/* Size classes: powers of two from 64 bytes in four steps each (x1, x1.25, x1.5, x1.75), so at most 25 % is lost to
 * rounding up.  A class is a stack of free blocks under a spin lock held for a few instructions. */
#define _GNU_SOURCE
#include "alloc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MIN_SHIFT = 6, STEPS = 4, N_CLASSES = (48 - MIN_SHIFT) * STEPS };
#define HUGE ((size_t)2 << 20) /* from here on blocks start on a huge page: fewer faults and TLB misses */

typedef struct block {
  struct block *next;
} block;

typedef struct size_class {
  atomic_flag lock;
  block *free;
  uint64_t n_free, live, live_peak, allocations, hits;
} size_class;

static size_class classes[N_CLASSES];
static atomic_uint_fast64_t cached_total;

static void lock(size_class *c) {
  while (atomic_flag_test_and_set_explicit(&c->lock, memory_order_acquire)) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}
static void unlock(size_class *c) { atomic_flag_clear_explicit(&c->lock, memory_order_release); }

static int class_of(size_t n, size_t *bytes) {
  if (n <= (size_t)1 << MIN_SHIFT) {
    *bytes = (size_t)1 << MIN_SHIFT;
    return 0;
  }
  int shift = 63 - __builtin_clzll((unsigned long long)(n - 1)); /* 2^shift < n <= 2^(shift+1) */
  size_t quarter = (size_t)1 << (shift - 2);
  size_t step = (n - ((size_t)1 << shift) + quarter - 1) / quarter; /* 1..4 */
  *bytes = ((size_t)1 << shift) + step * quarter;
  return (shift - MIN_SHIFT) * STEPS + (int)step;
}

/* Cached memory never exceeds a quarter of the machine's: past that a freed block goes back to the system. */
static uint64_t cache_limit(void) {
  static atomic_uint_fast64_t limit;
  uint64_t v = atomic_load_explicit(&limit, memory_order_relaxed);
  if (!v) {
    const char *given = getenv("HAIAN_HOST_CACHE_BYTES");
    v = given ? strtoull(given, NULL, 10) + 1
              : (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGE_SIZE) / 4 + 1;
    atomic_store_explicit(&limit, v, memory_order_relaxed);
  }
  return v;
}

static void *system_alloc(size_t bytes) {
  size_t align = bytes >= HUGE ? HUGE : 64;
  void *p = aligned_alloc(align, (bytes + align - 1) / align * align);
#ifdef MADV_HUGEPAGE
  if (p && bytes >= HUGE) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
}

void *haian_host_alloc(size_t nbytes) {
  size_t bytes;
  if (nbytes > (size_t)1 << 46) return NULL;
  size_class *c = &classes[class_of(nbytes ? nbytes : 1, &bytes)];
  lock(c);
  block *b = c->free;
  c->allocations++;
  if (++c->live > c->live_peak) c->live_peak = c->live;
  if (b) {
    c->free = b->next;
    c->n_free--;
    c->hits++;
  }
  unlock(c);
  if (b) {
    if (bytes >= 4096) atomic_fetch_sub_explicit(&cached_total, bytes, memory_order_relaxed);
    return b;
  }
  void *p = system_alloc(bytes);
  if (!p) {
    haian_host_trim();
    p = system_alloc(bytes);
  }
  if (!p) {
    lock(c);
    c->live--;
    unlock(c);
  }
  return p;
}

void haian_host_free(void *p, size_t nbytes) {
  if (!p) return;
  size_t bytes;
  size_class *c = &classes[class_of(nbytes ? nbytes : 1, &bytes)];
  int keep = 1;
  if (bytes >= 4096) { /* small blocks are not worth the shared counter */
    if (atomic_fetch_add_explicit(&cached_total, bytes, memory_order_relaxed) + bytes > cache_limit()) {
      atomic_fetch_sub_explicit(&cached_total, bytes, memory_order_relaxed);
      keep = 0;
    }
  }
  lock(c);
  c->live--;
  if (keep) {
    block *b = p;
    b->next = c->free;
    c->free = b;
    c->n_free++;
  }
  unlock(c);
  if (!keep) free(p);
}

static size_t class_bytes(int i) {
  if (i == 0) return (size_t)1 << MIN_SHIFT;
  int shift = MIN_SHIFT + (i - 1) / STEPS;
  return ((size_t)1 << shift) + (size_t)((i - 1) % STEPS + 1) * ((size_t)1 << (shift - 2));
}

size_t haian_host_trim(void) {
  size_t released = 0;
  for (int i = 0; i < N_CLASSES; i++) {
    size_class *c = &classes[i];
    lock(c);
    block *b = c->free;
    uint64_t n = c->n_free;
    c->free = NULL;
    c->n_free = 0;
    unlock(c);
    size_t bytes = class_bytes(i);
    released += n * bytes;
    if (bytes >= 4096) atomic_fetch_sub_explicit(&cached_total, n * bytes, memory_order_relaxed);
    while (b) {
      block *next = b->next;
      free(b);
      b = next;
    }
  }
  return released;
}

void haian_host_stats(haian_alloc_stats *out) {
  haian_alloc_stats s = {0, 0, 0, 0, 0};
  for (int i = 0; i < N_CLASSES; i++) {
    size_class *c = &classes[i];
    lock(c);
    uint64_t bytes = class_bytes(i);
    s.live_bytes += c->live * bytes;
    s.cached_bytes += c->n_free * bytes;
    s.peak_bytes += c->live_peak * bytes; /* an upper bound: classes peak at different times */
    s.allocations += c->allocations;
    s.hits += c->hits;
    unlock(c);
  }
  *out = s;
}
