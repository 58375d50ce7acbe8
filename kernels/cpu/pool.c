/* The thread pool behind haian_parallel_for: persistent workers, bounded spinning, then sleep; the caller takes part.
 * Not here: what is parallel (each kernel says so) and futures or task graphs (no kernel needs them).
 * One job at a time.  A second caller at the same moment, and a call from inside a body, run serially: a framework's
 * own threads calling in parallel therefore never multiply into threads x threads. */
#define _GNU_SOURCE
#include "../../hal/native/tensor.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MAX_WORKERS 511
#define CHUNKS_PER_THREAD 8 /* enough for balance when a core is taken away; an atomic add of ~20 ns each */
#define SPIN_NS 30000       /* longer than a sleep and wake (5 to 15 us), shorter than what a busy machine would miss */

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() atomic_signal_fence(memory_order_seq_cst)
#endif

/* Rounding and flush-to-zero modes are the caller's; workers take them over, or results would depend on the split. */
#if defined(__SSE__)
#define GET_FLOAT_MODE() __builtin_ia32_stmxcsr()
#define SET_FLOAT_MODE(mode) __builtin_ia32_ldmxcsr(mode)
#elif defined(__aarch64__)
#define GET_FLOAT_MODE() __builtin_aarch64_get_fpcr()
#define SET_FLOAT_MODE(mode) __builtin_aarch64_set_fpcr(mode)
#else
#define GET_FLOAT_MODE() 0u
#define SET_FLOAT_MODE(mode) (void)(mode)
#endif

/* The state word: generation << 24 | limit << 12 | joined << 2 | waiting << 1 | open.
 * A worker with index < limit may join while the job is open; the caller closes it and waits for joined == 0.  Workers
 * that wake too late find it closed and never touch it: nobody waits for a thread that the system has not scheduled. */
#define OPEN 1u
#define WAITING 2u
#define JOINED_ONE 4u
#define JOINED(s) (((s) >> 2) & 1023u)
#define LIMIT(s) (((s) >> 12) & 4095u)
#define GENERATION(s) ((s) >> 24)

struct worker {
  _Alignas(64) pthread_mutex_t lock;
  pthread_cond_t wake;
  atomic_bool asleep;
};

static struct {
  _Alignas(64) _Atomic uint64_t state;
  _Alignas(64) _Atomic int64_t next; /* next chunk to take */
  _Alignas(64) void (*body)(void *, int64_t, int64_t);
  void *ctx;
  int64_t n, chunk, count; /* chunk i is [i * chunk, (i + 1) * chunk), the last one ends at n */
  unsigned float_mode;
  atomic_bool owned; /* a caller is using the pool */
  int32_t created;   /* workers that exist; written by the owner */
  bool create_failed;
  pthread_mutex_t done_lock;
  pthread_cond_t done;
} pool = {.done_lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static struct worker workers[MAX_WORKERS];
static _Atomic int32_t thread_count; /* 0: not decided yet */
static _Atomic int32_t cpu_count;
static _Thread_local bool in_body;

static int32_t available_cpus(void) {
  int32_t cpus = atomic_load_explicit(&cpu_count, memory_order_relaxed);
  if (cpus) return cpus;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
#endif
  if (cpus < 1) cpus = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
  if (cpus < 1) cpus = 1;
  atomic_store_explicit(&cpu_count, cpus, memory_order_relaxed);
  return cpus;
}

static int32_t clamp_threads(long n) { return n < 1 ? 1 : n > MAX_WORKERS + 1 ? MAX_WORKERS + 1 : (int32_t)n; }

int32_t haian_num_threads(void) {
  int32_t n = atomic_load_explicit(&thread_count, memory_order_relaxed);
  if (n) return n;
  static const char *const names[] = {"HAIAN_NUM_THREADS", "OMP_NUM_THREADS"};
  for (int i = 0; i < 2 && !n; i++) {
    const char *text = getenv(names[i]);
    char *end;
    if (!text || !*text) continue;
    long value = strtol(text, &end, 10); /* OMP_NUM_THREADS may be a list, "4,2": the first is the outermost level */
    if (end != text && value >= 1) n = clamp_threads(value);
  }
  if (!n) n = clamp_threads(available_cpus());
  int32_t undecided = 0;
  return atomic_compare_exchange_strong(&thread_count, &undecided, n) ? n : undecided;
}

void haian_set_num_threads(int32_t n) { atomic_store(&thread_count, clamp_threads(n)); }

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void take_chunks(void) {
  for (;;) {
    int64_t i = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
    if (i >= pool.count) return;
    int64_t lo = i * pool.chunk;
    pool.body(pool.ctx, lo, i == pool.count - 1 ? pool.n : lo + pool.chunk);
  }
}

/* A job that this worker may join and has not seen. */
static bool offered(uint64_t s, unsigned index, uint64_t seen) {
  return (s & OPEN) && index < LIMIT(s) && GENERATION(s) != seen;
}

/* Spins, then sleeps, until a job is offered; returns the state word that offers it. */
static uint64_t await_job(struct worker *self, unsigned index, uint64_t seen) {
  int64_t spin_until = haian_num_threads() <= available_cpus() ? now_ns() + SPIN_NS : 0;
  do {
    for (int i = 0; i < 64; i++) {
      uint64_t s = atomic_load_explicit(&pool.state, memory_order_acquire);
      if (offered(s, index, seen)) return s;
      RELAX();
    }
  } while (spin_until && now_ns() < spin_until);
  pthread_mutex_lock(&self->lock);
  atomic_store(&self->asleep, true); /* sequentially consistent with the caller's store of state and load of asleep */
  uint64_t s;
  while (s = atomic_load(&pool.state), !offered(s, index, seen)) pthread_cond_wait(&self->wake, &self->lock);
  atomic_store(&self->asleep, false);
  pthread_mutex_unlock(&self->lock);
  return s;
}

static void *worker_main(void *argument) {
  struct worker *self = argument;
  unsigned index = (unsigned)(self - workers);
  uint64_t seen = 0;
  in_body = true; /* whatever runs here is inside a body */
  for (;;) {
    uint64_t s = await_job(self, index, seen);
    bool joined = false;
    while (!joined && offered(s, index, seen)) {
      joined = atomic_compare_exchange_weak_explicit(&pool.state, &s, s + JOINED_ONE, memory_order_acq_rel,
                                                     memory_order_acquire);
    }
    if (!joined) continue;
    seen = GENERATION(s);
    SET_FLOAT_MODE(pool.float_mode);
    take_chunks();
    s = atomic_fetch_sub_explicit(&pool.state, JOINED_ONE, memory_order_acq_rel);
    if ((s & WAITING) && JOINED(s) == 1) { /* the last one out wakes the caller */
      pthread_mutex_lock(&pool.done_lock);
      pthread_cond_signal(&pool.done);
      pthread_mutex_unlock(&pool.done_lock);
    }
  }
  return NULL;
}

/* In the child of a fork only the forking thread exists: forget the workers, they are created again on demand. */
static void reset_after_fork(void) {
  atomic_store(&pool.state, GENERATION(atomic_load(&pool.state)) << 24);
  atomic_store(&pool.owned, false);
  pool.created = 0;
  pool.create_failed = false;
  pthread_mutex_init(&pool.done_lock, NULL);
  pthread_cond_init(&pool.done, NULL);
}

static void register_fork_handler(void) { pthread_atfork(NULL, NULL, reset_after_fork); }

/* Grows the pool to `wanted` workers; called by the owner.  Fewer come to be where the system refuses threads. */
static void create_workers(int32_t wanted) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, register_fork_handler);
  sigset_t all, before;
  pthread_attr_t detached;
  sigfillset(&all); /* signals go to the program's own threads (Python wants them on its main thread) */
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_init(&detached);
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  while (pool.created < wanted && !pool.create_failed) {
    struct worker *w = &workers[pool.created];
    pthread_t thread;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, NULL);
    atomic_store(&w->asleep, false);
    pool.create_failed = pthread_create(&thread, &detached, worker_main, w) != 0;
    if (!pool.create_failed) pool.created++;
  }
  pthread_attr_destroy(&detached);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void await_workers(void) {
  uint64_t s = atomic_fetch_and_explicit(&pool.state, ~(uint64_t)OPEN, memory_order_acq_rel);
  if (JOINED(s) == 0) return;
  int64_t spin_until = now_ns() + SPIN_NS;
  do {
    for (int i = 0; i < 64; i++) {
      if (JOINED(atomic_load_explicit(&pool.state, memory_order_acquire)) == 0) return;
      RELAX();
    }
  } while (now_ns() < spin_until);
  pthread_mutex_lock(&pool.done_lock);
  atomic_fetch_or(&pool.state, WAITING);
  while (JOINED(atomic_load_explicit(&pool.state, memory_order_acquire)) != 0)
    pthread_cond_wait(&pool.done, &pool.done_lock);
  pthread_mutex_unlock(&pool.done_lock);
}

void haian_parallel_for(int64_t n, int64_t grain, void (*body)(void *ctx, int64_t lo, int64_t hi), void *ctx) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  int32_t threads;
  if (n / 2 < grain || in_body || (threads = haian_num_threads()) == 1 || /* two chunks of `grain` do not fit */
      atomic_load_explicit(&pool.owned, memory_order_relaxed) ||
      atomic_exchange_explicit(&pool.owned, true, memory_order_acquire)) {
    body(ctx, 0, n);
    return;
  }
  int64_t wanted = (int64_t)threads * CHUNKS_PER_THREAD;
  int64_t chunk = n / wanted + (n % wanted != 0);
  if (chunk < grain) chunk = grain;
  if (chunk >= 4096) chunk = (chunk + 63) & ~(int64_t)63; /* borders on cache lines for contiguous elements */
  int64_t count = n / chunk + (n % chunk >= grain);       /* a rest below the grain joins the last chunk */
  if (count < 1) count = 1;
  uint64_t limit = (uint64_t)(count < threads ? count : threads) - 1;
  if (pool.created < (int32_t)limit) {
    create_workers((int32_t)limit);
    if (limit > (uint64_t)pool.created) limit = (uint64_t)pool.created;
  }
  in_body = true;
  if (limit == 0) {
    body(ctx, 0, n);
  } else {
    pool.body = body;
    pool.ctx = ctx;
    pool.n = n;
    pool.chunk = chunk;
    pool.count = count;
    pool.float_mode = (unsigned)GET_FLOAT_MODE();
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    uint64_t generation = GENERATION(atomic_load_explicit(&pool.state, memory_order_relaxed)) + 1;
    atomic_store(&pool.state, generation << 24 | limit << 12 | OPEN);
    for (uint64_t i = 0; i < limit; i++) {
      if (!atomic_load(&workers[i].asleep)) continue;
      pthread_mutex_lock(&workers[i].lock);
      pthread_cond_signal(&workers[i].wake);
      pthread_mutex_unlock(&workers[i].lock);
    }
    take_chunks();
    await_workers();
  }
  in_body = false;
  atomic_store_explicit(&pool.owned, false, memory_order_release);
}
