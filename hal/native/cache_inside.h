/* Inside the caching allocator: its structures, between cache_blocks.c (which never asks the driver) and cache.c (which
 * does).  Nobody else includes this. */
#ifndef HAIAN_CACHE_INSIDE_H
#define HAIAN_CACHE_INSIDE_H
#include <sched.h>
#include <stdatomic.h>

#include "cache.h"
#include "tensor.h"

enum {
  QUANTUM = 256,      /* blocks are multiples of this or of the device's alignment */
  SEGMENT_SHARE = 16, /* room beyond the request never makes a segment larger than 1/16 of the device */
  N_QUICK = 64,
  N_CHAINS = 64,       /* of the table of streams */
  PATIENCE = 16,       /* waiting blocks not passed before a request stops asking: each costs a driver call */
  MAX_OOM_PAUSES = 100 /* how often to wait for memory that another thread is just giving back */
};

typedef struct block block;
typedef struct segment segment;
typedef struct order order;

enum { LIVE, QUICK, TREE, AWAY }; /* block.state; AWAY: freed and not yet reusable, or in the hands of a caller here */

struct block { /* a piece of a segment */
  haian_cache_block face;
  block *before, *after; /* neighbours in the segment */
  block *left, *right;   /* treap; right also links lists of spare, QUICK and AWAY blocks and chains of listed ones */
  segment *segment;
  order *order;
  uint64_t serial; /* of order when the block came to it: another one now means that the stream was closed */
  uint64_t stream; /* of the taker */
  uint64_t epoch;
  uint64_t *handles; /* AWAY: streams that use it, then events that must pass */
  uint32_t n_handles;
  uint32_t rank; /* treap priority */
  uint8_t state, until_trim;
};

struct segment { /* one allocation of the driver */
  uint64_t address, bytes;
  segment *next, *previous;
  block *first;
  int small;
};

/* How far a stream has come: blocks freed in an epoch are anyone's once the mark that closed it has passed. */
struct order {
  uint64_t handle, serial;
  uint64_t epoch;      /* of blocks freed now */
  uint64_t newest;     /* epoch of the last block freed */
  uint64_t passed;     /* all blocks of epochs up to this are idle */
  uint64_t event;      /* the mark */
  uint64_t closing;    /* epoch that the queued mark closes; 0: no mark is queued */
  uint32_t pins;       /* calls of the driver under way that name the stream */
  uint32_t index;      /* in haian_cache.orders */
  uint8_t busy;        /* a thread is at the mark */
  uint8_t closed;      /* while it was pinned: the last call destroys it */
  order *next;         /* in its chain, or spare */
  uint64_t quick_used; /* bit per slot */
  struct {
    uint64_t bytes;
    block *head;
  } quick[N_QUICK];
  block *tree[2]; /* [small] */
};

struct haian_cache {
  atomic_flag lock;
  int shift;      /* blocks are multiples of 1 << shift */
  order *last;    /* order of the latest look-up */
  block *freed;   /* AWAY: finalisers left them for the next call that may ask the driver */
  block *waiting; /* AWAY: freed while other streams used them */
  uint32_t away;  /* threads that hold AWAY blocks or segments outside the lists */
  haian_cache_stats stats;
  order *zero; /* of the default stream */
  order *chains[N_CHAINS];
  order **orders, *spare_orders;
  uint32_t n_orders, room_orders;
  segment *segments;
  block *spare;
  uint64_t *events; /* spare */
  uint32_t n_events, room_events;
  block **listed;
  uint64_t n_listed, room_listed; /* room: a power of two, or 0 */
  uint32_t random;
  haian_cache_driver driver;
  haian_cache_facts facts;
  char name[64];
};
static inline void cache_lock(haian_cache *c) {
  for (int i = 0; atomic_flag_test_and_set_explicit(&c->lock, memory_order_acquire); i++) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (i > 100) sched_yield(); /* its holder lost the processor */
  }
}
static inline void cache_unlock(haian_cache *c) { atomic_flag_clear_explicit(&c->lock, memory_order_release); }

static inline uint64_t cache_mix(uint64_t x) { return x * 0x9E3779B97F4A7C15u; }

#pragma GCC visibility push(hidden)
/* All under the lock. */
block *cache_block_new(haian_cache *c, uint64_t address, uint64_t bytes, segment *s);
void cache_block_drop(haian_cache *c, block *b);
order *cache_order_of(haian_cache *c, uint64_t stream); /* NULL: no such stream */
void cache_order_end(haian_cache *c, order *o);
void cache_event_keep(haian_cache *c, uint64_t event); /* 0: none */
void cache_tree_remove(block **at, block *b);
void cache_join(haian_cache *c, block *left, block *right);
void cache_put(haian_cache *c, block *b);
void cache_stamp(haian_cache *c, block *b);
void cache_settle(haian_cache *c, block *b);
block *cache_quick_take(haian_cache *c, order *o, uint64_t bytes);
void cache_quick_merge(haian_cache *c, order *o);
block *cache_fit(haian_cache *c, order *o, uint64_t bytes, int small, uint64_t passed);
void cache_hand_out(haian_cache *c, block *b, order *o, uint64_t bytes, int hit);
#pragma GCC visibility pop
#endif
