/* Threads on one allocator with no interpreter lock: argv: threads, rounds, MiB of the device (up to 64).  Prints what does not balance.
 * tests/test_cache.py compiles it with cache.c, cache_blocks.c and status.c, under the thread sanitizer where there is one.
 * The driver has addresses and no memory; each live block is marked in a table of bytes, so an overlap shows. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../hal/native/cache.h"
#include "../hal/native/tensor.h"

enum { ROOM = 1 << 18, QUANTUM = 256, STREAMS = 16 }; /* quanta of address space: 64 MiB */
static pthread_mutex_t books = PTHREAD_MUTEX_INITIALIZER;
static uint64_t sizes[ROOM]; /* of the driver's allocations, by first quantum */
static uint64_t used, room = ROOM;
static atomic_uchar live[ROOM];
static atomic_ulong clock_now, events, wrong, taken, refused;
static _Atomic uint64_t due[1 << 16];

static int32_t alloc(void *ctx, uint64_t bytes, uint64_t align, uint64_t *address) {
  (void)ctx, (void)align;
  const uint64_t n = bytes / QUANTUM;
  pthread_mutex_lock(&books);
  int32_t status = HAIAN_OUT_OF_MEMORY;
  for (uint64_t at = 1; at + n < room;) { /* first fit */
    uint64_t end = at;
    while (end < at + n && !sizes[end]) end++;
    if (end == at + n) {
      sizes[at] = n;
      for (uint64_t i = at + 1; i < at + n; i++) sizes[i] = UINT64_MAX;
      used += n;
      *address = at * QUANTUM;
      status = HAIAN_OK;
      break;
    }
    at = end + 1;
  }
  pthread_mutex_unlock(&books);
  return status;
}
static int32_t release(void *ctx, uint64_t address) {
  (void)ctx;
  const uint64_t at = address / QUANTUM;
  pthread_mutex_lock(&books);
  const uint64_t n = sizes[at];
  if (!n || n == UINT64_MAX) wrong++;
  for (uint64_t i = at; i < at + n && i < ROOM; i++) {
    if (live[i]) wrong++; /* freed under a live block */
    sizes[i] = 0;
  }
  used -= n;
  pthread_mutex_unlock(&books);
  return HAIAN_OK;
}
static int32_t done(void *ctx) { return (void)ctx, HAIAN_OK; }
static int32_t stream_done(void *ctx, uint64_t stream) { return (void)ctx, (void)stream, HAIAN_OK; }
static void abandon(void *ctx, uint64_t stream) { (void)ctx, (void)stream; }
static int32_t wait_event(void *ctx, uint64_t stream, uint64_t event) {
  return (void)ctx, (void)stream, (void)event, HAIAN_OK;
}
static int32_t event_create(void *ctx, uint64_t *event) {
  (void)ctx;
  *event = 1 + atomic_fetch_add(&events, 1);
  if (*event >= sizeof due / sizeof *due) abort();
  return HAIAN_OK;
}
static int32_t event_record(void *ctx, uint64_t event, uint64_t stream) {
  (void)ctx;
  due[event] = atomic_fetch_add(&clock_now, 1) + 5 + stream; /* passes a little later */
  return HAIAN_OK;
}
static int32_t event_query(void *ctx, uint64_t event) {
  (void)ctx;
  return atomic_fetch_add(&clock_now, 1) > due[event] ? HAIAN_OK : HAIAN_NOT_READY;
}

static haian_cache *cache;
static int rounds;

static void paint(const haian_cache_block *b, int was, int is) {
  for (uint64_t i = b->address / QUANTUM; i < (b->address + b->bytes) / QUANTUM; i++)
    if (atomic_exchange(&live[i], (unsigned char)is) != was) wrong++;
}

static void *work(void *arg) {
  const uint64_t me = (uint64_t)(uintptr_t)arg;
  uint64_t seed = me * 7919;
  haian_cache_block *held[40];
  uint64_t other[40];
  int n = 0;
  for (int round = 0; round < rounds; round++) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const uint64_t stream = me + STREAMS * (uint64_t)(round / 100 % 2), r = seed >> 33;
    if (round % 100 == 0) {
      haian_cache_stream_opened(cache, stream);
      haian_cache_stream_close(cache, me + STREAMS * (uint64_t)((round / 100 + 1) % 2));
    }
    const uint64_t bytes = r % 5 ? 1 + r % 3000 : 1 + r % 900000;
    haian_cache_block *b = r % 3 ? haian_cache_take_cached(cache, bytes, stream) : NULL;
    const int32_t status = b ? HAIAN_OK : haian_cache_take(cache, bytes, stream, &b);
    if (status == HAIAN_OUT_OF_MEMORY) refused++;
    else if (status) wrong++;
    if (b) {
      taken++;
      paint(b, 0, 1);
      held[n] = b;
      other[n++] = r % 7 ? stream : 1 + r % STREAMS;
    }
    while (n == 40 || (n && (status || r % 2))) {
      const int i = (int)(r % (uint64_t)n);
      const uint64_t users[2] = {stream, other[i]};
      paint(held[i], 1, 0);
      haian_cache_give(cache, held[i], users, 2);
      held[i] = held[--n];
      other[i] = other[n];
      if (!status || n < 20) break;
    }
    if (r % 97 == 0) {
      uint64_t released;
      haian_cache_trim(cache, &released);
    }
    if (r % 31 == 0) haian_cache_order(cache, (uint64_t[]){1 + r % STREAMS, 2}, 2, stream);
  }
  while (n--) {
    paint(held[n], 1, 0);
    haian_cache_give(cache, held[n], &other[n], 1);
  }
  return NULL;
}

int main(int argc, char **argv) {
  const haian_cache_driver driver = {.alloc = alloc,
                                     .free = release,
                                     .sync = done,
                                     .stream_sync = stream_done,
                                     .stream_destroy = stream_done,
                                     .abandon = abandon,
                                     .stream_wait_event = wait_event,
                                     .event_create = event_create,
                                     .event_record = event_record,
                                     .event_query = event_query,
                                     .event_sync = stream_done};
  const haian_cache_facts facts = {.name = "threads:0",
                                   .total_bytes = (uint64_t)ROOM * QUANTUM,
                                   .max_alloc_bytes = (uint64_t)ROOM * QUANTUM / 2,
                                   .align_bytes = QUANTUM,
                                   .events = 1,
                                   .policy = haian_cache_default_policy};
  pthread_t threads[STREAMS];
  const int n = argc > 1 ? atoi(argv[1]) : 4;
  rounds = argc > 2 ? atoi(argv[2]) : 20000;
  if (argc > 3) room = (uint64_t)atoi(argv[3]) << 12;
  cache = haian_cache_create(&driver, &facts);
  if (!cache || n > STREAMS) return 2;
  for (int i = 0; i < n; i++) pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(i + 1));
  for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
  uint64_t released;
  haian_cache_trim(cache, &released);
  haian_cache_stats s;
  haian_cache_statistics(cache, &s);
  haian_cache_destroy(cache);
  printf("allocations %lu counted %llu refused %lu retried %llu live %llu reserved %llu driver %llu wrong %lu\n", taken,
         (unsigned long long)s.allocations, refused, (unsigned long long)s.oom_retries,
         (unsigned long long)s.live_bytes, (unsigned long long)s.reserved_bytes, (unsigned long long)used, wrong);
  return wrong || s.allocations != taken || s.live_bytes || s.reserved_bytes || used;
}
