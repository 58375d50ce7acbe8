/* Best fit with splitting and coalescing, small and large requests in separate segments.
 * Free blocks of a stream stand in two treaps ordered by (bytes, address), one for small and one for large segments, so
 * that every operation is O(log n).  In front of them, 64 slots of last-freed blocks of one size each: a block freed and
 * asked for again skips splitting and merging.  They are merged before any search that is not an exact hit, so the search
 * sees what immediate merging would show.  haian.bench.fragmentation measures what the policy reserves. */
#include "cache.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "tensor.h"

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)
const haian_cache_policy haian_cache_default_policy = {64 * KIB, 2 * MIB, 10 * MIB, 20 * MIB, 2 * MIB};
enum {
  QUANTUM = 256,      /* blocks are multiples of this or of the device's alignment */
  SEGMENT_SHARE = 16, /* room beyond the request never makes a segment larger than 1/16 of the device */
  N_QUICK = 64,
  N_CHAINS = 64,       /* of the table of streams */
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

static void lock(haian_cache *c) {
  for (int i = 0; atomic_flag_test_and_set_explicit(&c->lock, memory_order_acquire); i++) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (i > 100) sched_yield(); /* its holder lost the processor */
  }
}
static void unlock(haian_cache *c) { atomic_flag_clear_explicit(&c->lock, memory_order_release); }

static uint64_t mix(uint64_t x) { return x * 0x9E3779B97F4A7C15u; }

/* ---- treap ---------------------------------------------------------------------------------------------------------- */
static int less(const block *a, uint64_t bytes, uint64_t address) {
  return a->face.bytes < bytes || (a->face.bytes == bytes && a->face.address < address);
}
static block **step(block *at, const block *b) {
  return less(at, b->face.bytes, b->face.address) ? &at->right : &at->left;
}
static void tree_insert(block **at, block *b) {
  while (*at && (*at)->rank >= b->rank) at = step(*at, b);
  block *rest = *at, **left = &b->left, **right = &b->right;
  *at = b;
  while (rest) {
    if (less(rest, b->face.bytes, b->face.address)) {
      *left = rest;
      left = &rest->right;
      rest = rest->right;
    } else {
      *right = rest;
      right = &rest->left;
      rest = rest->left;
    }
  }
  *left = *right = NULL;
}
static void tree_remove(block **at, block *b) {
  while (*at != b) at = step(*at, b);
  block *left = b->left, *right = b->right;
  while (left && right) {
    if (left->rank > right->rank) {
      *at = left;
      at = &left->right;
      left = left->right;
    } else {
      *at = right;
      at = &right->left;
      right = right->left;
    }
  }
  *at = left ? left : right;
}
/* The first block from (bytes, address) on. */
static block *tree_from(block *at, uint64_t bytes, uint64_t address) {
  block *best = NULL;
  while (at) {
    if (less(at, bytes, address)) {
      at = at->right;
    } else {
      best = at;
      at = at->left;
    }
  }
  return best;
}

/* ---- blocks and orders, under the lock ------------------------------------------------------------------------------- */
static block *block_new(haian_cache *c, uint64_t address, uint64_t bytes, segment *s) {
  block *b = c->spare;
  if (b) {
    c->spare = b->right;
  } else {
    b = malloc(sizeof *b);
    if (!b) return NULL;
    c->random = c->random * 1664525u + 1013904223u;
    b->rank = c->random >> 1;
  }
  b->face.address = address;
  b->face.bytes = bytes;
  b->before = b->after = NULL;
  b->segment = s;
  b->order = c->zero;
  b->serial = c->zero->serial;
  b->stream = b->epoch = 0;
  b->handles = NULL;
  b->n_handles = 0;
  b->state = AWAY;
  b->until_trim = 0;
  return b;
}
static void block_drop(haian_cache *c, block *b) {
  b->right = c->spare;
  c->spare = b;
}

static order *order_of(haian_cache *c, uint64_t stream) {
  if (c->last->handle == stream) return c->last;
  for (order *o = c->chains[mix(stream) >> 58]; o; o = o->next)
    if (o->handle == stream) return c->last = o;
  return NULL;
}

static order *order_open(haian_cache *c, uint64_t stream) {
  if (c->n_orders == c->room_orders) {
    uint32_t room = c->room_orders ? 2 * c->room_orders : 16;
    order **more = realloc(c->orders, room * sizeof *more);
    if (!more) return NULL;
    c->orders = more;
    c->room_orders = room;
  }
  order *o = c->spare_orders;
  if (o) c->spare_orders = o->next;
  else o = calloc(1, sizeof *o);
  if (!o) return NULL;
  o->handle = stream;
  o->epoch = 1;
  o->newest = o->passed = o->event = o->closing = 0;
  o->closed = o->busy = 0;
  o->index = c->n_orders;
  c->orders[c->n_orders++] = o;
  order **chain = &c->chains[mix(stream) >> 58];
  o->next = *chain;
  *chain = o;
  return o;
}

static void event_keep(haian_cache *c, uint64_t event) {
  if (!event) return;
  if (c->n_events == c->room_events) {
    uint32_t room = c->room_events ? 2 * c->room_events : 16;
    uint64_t *more = realloc(c->events, room * sizeof *more);
    if (!more) return; /* an event is lost, nothing else */
    c->events = more;
    c->room_events = room;
  }
  c->events[c->n_events++] = event;
}

static void join(haian_cache *c, block *left, block *right) {
  left->face.bytes += right->face.bytes;
  if (right->epoch > left->epoch) left->epoch = right->epoch;
  left->after = right->after;
  if (right->after) right->after->before = left;
  block_drop(c, right);
}

/* Adds a free block, merged with free neighbours of the same stream. */
static void put(haian_cache *c, block *b) {
  order *o = b->order;
  block **tree = &o->tree[b->segment->small];
  block *left = b->before, *right = b->after;
  if (left && left->state == TREE && left->order == o) {
    tree_remove(tree, left);
    join(c, left, b);
    b = left;
  }
  if (right && right->state == TREE && right->order == o) {
    tree_remove(tree, right);
    join(c, b, right);
  }
  b->state = TREE;
  tree_insert(tree, b);
}

/* A block becomes free in its stream's present epoch; a closed stream was drained, so its blocks are anyone's. */
static void stamp(haian_cache *c, block *b) {
  order *o = b->order;
  if (o->serial == b->serial) {
    b->epoch = o->newest = o->epoch;
  } else {
    b->order = c->zero;
    b->serial = c->zero->serial;
    b->epoch = 0;
  }
}

/* Gives a stamped block without users to its stream. */
static void settle(haian_cache *c, block *b) {
  if (b->order->serial != b->serial) stamp(c, b);
  order *o = b->order;
  const uint64_t bytes = b->face.bytes;
  const unsigned slot = (unsigned)(mix(bytes >> c->shift) >> 58);
  const uint64_t bit = (uint64_t)1 << slot;
  if (!(o->quick_used & bit)) {
    o->quick_used |= bit;
    o->quick[slot].bytes = bytes;
    o->quick[slot].head = NULL;
  } else if (o->quick[slot].bytes != bytes) {
    put(c, b);
    return;
  }
  b->state = QUICK;
  b->right = o->quick[slot].head;
  o->quick[slot].head = b;
}

static block *quick_take(haian_cache *c, order *o, uint64_t bytes) {
  const unsigned slot = (unsigned)(mix(bytes >> c->shift) >> 58);
  const uint64_t bit = (uint64_t)1 << slot;
  if (!(o->quick_used & bit) || o->quick[slot].bytes != bytes) return NULL;
  block *b = o->quick[slot].head;
  o->quick[slot].head = b->right;
  if (!b->right) o->quick_used &= ~bit;
  return b;
}
static void quick_merge(haian_cache *c, order *o) {
  while (o->quick_used) {
    const int slot = __builtin_ctzll(o->quick_used);
    o->quick_used &= o->quick_used - 1;
    for (block *b = o->quick[slot].head, *next; b; b = next) {
      next = b->right;
      put(c, b);
    }
  }
}

/* The best fitting free block of an order whose epoch is at most `passed`. */
static block *fit(haian_cache *c, order *o, uint64_t bytes, int small, uint64_t passed) {
  quick_merge(c, o);
  block *b = tree_from(o->tree[small], bytes, 0);
  while (b && b->epoch > passed) b = tree_from(o->tree[small], b->face.bytes, b->face.address + 1);
  if (b) {
    tree_remove(&o->tree[small], b);
    b->state = AWAY;
  }
  return b;
}

/* Cuts the block to size, gives the rest to the taker's stream and counts.  Without host memory the block stays whole. */
static void hand_out(haian_cache *c, block *b, order *o, uint64_t bytes, int hit) {
  const uint64_t rest = b->face.bytes - bytes;
  block *tail = rest >> c->shift ? block_new(c, b->face.address + bytes, rest, b->segment) : NULL;
  if (tail) {
    tail->before = b;
    tail->after = b->after;
    if (b->after) b->after->before = tail;
    b->after = tail;
    b->face.bytes = bytes;
    tail->order = o;
    tail->serial = o->serial;
    tail->epoch = b->order == o ? b->epoch : 0;
    put(c, tail);
  }
  b->order = o;
  b->serial = o->serial;
  b->stream = o->handle;
  b->state = LIVE;
  c->stats.live_bytes += b->face.bytes;
  if (c->stats.live_bytes > c->stats.peak_bytes) c->stats.peak_bytes = c->stats.live_bytes;
  c->stats.allocations++;
  c->stats.hits += (uint64_t)hit;
}

static uint64_t round_up(uint64_t n, uint64_t step) { return step ? (n + step - 1) / step * step : n; }
static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* ---- the driver, without the lock ------------------------------------------------------------------------------------ */
static void forget(haian_cache *c) {
  if (c->driver.forget) c->driver.forget(c->driver.ctx);
}

/* An order that a driver call is going to name stays until it is unpinned; NULL: no such stream. */
static order *pin(haian_cache *c, uint64_t stream) {
  lock(c);
  order *o = order_of(c, stream);
  if (o) o->pins++;
  unlock(c);
  return o;
}
static void unpin(haian_cache *c, order *o) {
  lock(c);
  const uint64_t stream = o->handle;
  const int destroy = --o->pins == 0 && o->closed;
  if (destroy) {
    event_keep(c, o->event);
    o->next = c->spare_orders;
    c->spare_orders = o;
  }
  unlock(c);
  if (destroy) c->driver.abandon(c->driver.ctx, stream); /* its closer has returned already */
}

static int32_t event_get(haian_cache *c, uint64_t *event) {
  lock(c);
  *event = c->n_events ? c->events[--c->n_events] : 0;
  unlock(c);
  return *event ? HAIAN_OK : c->driver.event_create(c->driver.ctx, event);
}
static void event_put(haian_cache *c, uint64_t event) {
  lock(c);
  event_keep(c, event);
  unlock(c);
}
static int32_t mark(haian_cache *c, uint64_t event, uint64_t stream) {
  int32_t status = c->driver.event_record(c->driver.ctx, event, stream);
  if (status > 0 && !stream) { /* a driver that marks nothing in its default stream: wait for it */
    forget(c);
    status = c->driver.sync(c->driver.ctx);
  }
  return status;
}
/* Gets an event and records it; *event is 0 on failure. */
static int32_t mark_new(haian_cache *c, uint64_t stream, uint64_t *event) {
  int32_t status = event_get(c, event);
  if (status) return status;
  status = mark(c, *event, stream);
  if (status) {
    event_put(c, *event);
    *event = 0;
  }
  return status;
}

/* Takes a list out, so that the driver may be asked about its blocks; away says that somebody has it. */
static block *take_list(haian_cache *c, block **list) {
  lock(c);
  block *b = *list;
  *list = NULL;
  if (b) c->away++;
  unlock(c);
  return b;
}
static void back_to_list(block **list, block *b) { /* under the lock */
  while (b) {
    block *next = b->right;
    b->right = *list;
    *list = b;
    b = next;
  }
}

/* One block that a finaliser left: to its stream, or to the waiting ones behind marks in the other streams that use it. */
static int32_t take_in(haian_cache *c, block *b) {
  int32_t status = HAIAN_OK;
  uint32_t n = 0; /* events take the places of streams already read */
  if (c->driver.uncarve) status = c->driver.uncarve(c->driver.ctx, b->face.address);
  for (uint32_t i = 0; i < b->n_handles && !status && !b->until_trim; i++) {
    const uint64_t user = b->handles[i];
    order *o = user == b->stream ? NULL : pin(c, user);
    if (!o) continue;
    if (c->facts.events) {
      status = mark_new(c, user, &b->handles[n]);
      n += !status;
    } else if (user) {
      status = c->driver.stream_sync(c->driver.ctx, user);
    }
    unpin(c, o);
  }
  if (status) b->until_trim = 1; /* who knows what still runs; the device's sync does */
  b->n_handles = n;
  lock(c);
  stamp(c, b);
  if (n || b->until_trim) {
    b->right = c->waiting;
    c->waiting = b;
  } else {
    free(b->handles);
    b->handles = NULL;
    settle(c, b);
  }
  unlock(c);
  return status;
}

static void waited(haian_cache *c, block *b, int idle) { /* under the lock */
  for (uint32_t i = 0; i < b->n_handles; i++) event_keep(c, b->handles[i]);
  free(b->handles);
  b->handles = NULL;
  b->n_handles = 0;
  b->until_trim = 0;
  if (idle) b->epoch = 0;
  settle(c, b);
}

/* Takes in what finalisers freed and what other streams have passed. */
static int32_t collect(haian_cache *c) {
  int32_t status = HAIAN_OK;
  block *list = take_list(c, &c->freed);
  if (list) {
    while (list && !status) {
      block *b = list;
      list = b->right;
      status = take_in(c, b);
    }
    lock(c);
    back_to_list(&c->freed, list);
    c->away--;
    unlock(c);
  }
  if (status) return status;
  list = take_list(c, &c->waiting);
  if (!list) return HAIAN_OK;
  while (list && !status) {
    block *b = list;
    list = b->right;
    int passed = !b->until_trim;
    for (uint32_t i = 0; i < b->n_handles && passed && !status; i++) {
      status = c->driver.event_query(c->driver.ctx, b->handles[i]);
      if (status) passed = 0;
      if (status == HAIAN_NOT_READY) status = HAIAN_OK;
    }
    lock(c);
    if (passed) {
      waited(c, b, 0);
    } else {
      b->right = c->waiting;
      c->waiting = b;
    }
    unlock(c);
  }
  lock(c);
  back_to_list(&c->waiting, list);
  c->away--;
  unlock(c);
  return status;
}

/* Brings order.passed up to date; queues the next mark where none is on its way.  The order is pinned. */
static int32_t advance(haian_cache *c, order *o) {
  if (!c->facts.events) return HAIAN_OK;
  lock(c);
  const int mine = !o->busy && !o->closed && (o->closing || o->passed < o->newest);
  const uint64_t closing = o->closing;
  uint64_t event = o->event;
  if (mine) o->busy = 1;
  unlock(c);
  if (!mine) return HAIAN_OK;
  int32_t status = HAIAN_OK;
  int again = 1;
  if (closing) {
    status = c->driver.event_query(c->driver.ctx, event);
    again = status == HAIAN_OK;
  }
  if (again) {
    lock(c);
    if (closing) {
      if (o->passed < closing) o->passed = closing;
      o->closing = 0;
    }
    again = o->passed < o->newest;
    if (again) o->closing = o->epoch++; /* before the mark: what is freed from now on may come after it */
    unlock(c);
  }
  if (again) {
    status = event ? mark(c, event, o->handle) : mark_new(c, o->handle, &event);
    const int32_t marked = status;
    if (!status) status = c->driver.event_query(c->driver.ctx, event);
    lock(c);
    o->event = event;
    if (!status && o->passed < o->closing) o->passed = o->closing;
    if (!status || marked) o->closing = 0; /* (not marked: a later mark closes this epoch too) */
    unlock(c);
  }
  lock(c);
  o->busy = 0;
  unlock(c);
  return status == HAIAN_NOT_READY ? HAIAN_OK : status;
}

/* The best fitting free block of the stream, else of another whose work on it has passed; *out NULL: there is none. */
static int32_t cached(haian_cache *c, uint64_t bytes, int small, uint64_t stream, block **out) {
  *out = NULL;
  int32_t status = collect(c);
  if (status) return status;
  lock(c);
  order *mine = order_of(c, stream);
  if (!mine) mine = c->zero; /* closed, or nobody's */
  block *b = quick_take(c, mine, bytes);
  if (!b) b = fit(c, mine, bytes, small, UINT64_MAX);
  uint32_t n = 0;
  order **others = NULL;
  if (b) {
    hand_out(c, b, mine, bytes, 1);
  } else {
    mine->pins++;
    others = c->n_orders > 1 ? malloc(c->n_orders * sizeof *others) : NULL;
    for (uint32_t i = 0; others && i < c->n_orders; i++) {
      order *o = c->orders[i];
      if (o == mine || !(o->tree[small] || o->quick_used)) continue;
      o->pins++;
      others[n++] = o;
    }
  }
  unlock(c);
  if (b) {
    *out = b;
    return HAIAN_OK;
  }
  for (uint32_t i = 0; i < n; i++) {
    if (!b && !status) {
      status = advance(c, others[i]);
      lock(c);
      if (!status && !others[i]->closed && !mine->closed) b = fit(c, others[i], bytes, small, others[i]->passed);
      if (b) hand_out(c, b, mine, bytes, 1);
      unlock(c);
    }
    unpin(c, others[i]);
  }
  free(others);
  unpin(c, mine);
  *out = b;
  return status;
}

/* A new segment, of the comfortable size or else just large enough; *out NULL: the driver has no memory. */
static int32_t grow(haian_cache *c, uint64_t bytes, int small, uint64_t stream, block **out) {
  const haian_cache_policy *p = &c->facts.policy;
  const uint64_t share = least(c->facts.total_bytes / SEGMENT_SHARE, c->facts.max_alloc_bytes) >> c->shift << c->shift;
  uint64_t roomy = small ? p->small_segment : bytes < p->medium ? p->medium_segment : round_up(bytes, p->large_step);
  roomy = least(roomy, share);
  *out = NULL;
  if (bytes > c->facts.max_alloc_bytes) return HAIAN_OK;
  for (int i = roomy <= bytes; i < 2; i++) {
    const uint64_t n = i ? bytes : roomy;
    uint64_t address = 0;
    int32_t status = c->driver.alloc(c->driver.ctx, n, (uint64_t)1 << c->shift, &address);
    if (status == HAIAN_OUT_OF_MEMORY) continue;
    if (!status && c->driver.pool) status = c->driver.pool(c->driver.ctx, address);
    if (status) return status;
    segment *s = malloc(sizeof *s);
    lock(c);
    block *b = s ? block_new(c, address, n, s) : NULL;
    if (b) {
      *s = (segment){.address = address, .bytes = n, .next = c->segments, .first = b, .small = small};
      if (c->segments) c->segments->previous = s;
      c->segments = s;
      c->stats.segments++;
      c->stats.reserved_bytes += n;
      order *o = order_of(c, stream);
      hand_out(c, b, o ? o : c->zero, bytes, 0);
    }
    unlock(c);
    if (b) {
      *out = b;
      return HAIAN_OK;
    }
    free(s);
    if (c->driver.free(c->driver.ctx, address)) forget(c);
    return haian_fail(HAIAN_OUT_OF_MEMORY, "%s: the host has no memory for the allocator's books; free some", c->name);
  }
  return HAIAN_OK;
}

static int32_t no_memory(haian_cache *c, uint64_t nbytes) {
  const uint64_t total = c->facts.total_bytes;
  if (nbytes > c->facts.max_alloc_bytes)
    return haian_fail(HAIAN_OUT_OF_MEMORY,
                      "%s: %llu bytes asked for; one allocation may have %llu of the device's %llu; split the tensor",
                      c->name, (unsigned long long)nbytes, (unsigned long long)c->facts.max_alloc_bytes,
                      (unsigned long long)total);
  uint64_t unused = 0, all = 0;
  int32_t status = c->driver.mem_info ? c->driver.mem_info(c->driver.ctx, &unused, &all) : HAIAN_UNSUPPORTED;
  if (status < 0) return status;
  lock(c);
  const haian_cache_stats s = c->stats;
  unlock(c);
  if (status) {
    if (c->driver.mem_info) forget(c);
    unused = total - least(total, s.reserved_bytes);
  }
  return haian_fail(
      HAIAN_OUT_OF_MEMORY,
      "%s: %llu bytes asked for, %llu of %llu free, %llu in live haian tensors (cache given back); release "
      "tensors or use smaller ones",
      c->name, (unsigned long long)nbytes, (unsigned long long)unused, (unsigned long long)total,
      (unsigned long long)s.live_bytes);
}

/* Frees the segments in which every block is idle. */
static int32_t release(haian_cache *c, uint64_t *released) {
  segment *gone = NULL;
  lock(c);
  for (uint32_t i = 0; i < c->n_orders; i++) quick_merge(c, c->orders[i]);
  for (segment *s = c->segments, *next; s; s = next) {
    next = s->next;
    int idle = 1;
    for (block *b = s->first; b && idle; b = b->after) idle = b->state == TREE && b->epoch <= b->order->passed;
    if (!idle) continue;
    for (block *b = s->first; b; b = b->after) tree_remove(&b->order->tree[s->small], b);
    block *b = s->first;
    while (b->after) join(c, b, b->after);
    b->state = AWAY;
    b->order = c->zero;
    b->serial = c->zero->serial;
    if (s->previous) s->previous->next = s->next;
    else c->segments = s->next;
    if (s->next) s->next->previous = s->previous;
    s->next = gone;
    gone = s;
  }
  c->away++;
  unlock(c);
  int32_t status = HAIAN_OK;
  while (gone) {
    segment *s = gone;
    gone = s->next;
    if (!status) status = c->driver.free(c->driver.ctx, s->address);
    lock(c);
    if (!status) {
      c->stats.reserved_bytes -= s->bytes;
      c->stats.segments--;
      *released += s->bytes;
      block_drop(c, s->first);
    } else { /* it stays cached */
      s->previous = NULL;
      s->next = c->segments;
      if (s->next) s->next->previous = s;
      c->segments = s;
      s->first->epoch = 0;
      put(c, s->first);
      s = NULL;
    }
    unlock(c);
    free(s);
  }
  lock(c);
  c->away--;
  unlock(c);
  return status;
}

/* ---- the face -------------------------------------------------------------------------------------------------------- */
haian_cache *haian_cache_create(const haian_cache_driver *driver, const haian_cache_facts *facts) {
  haian_cache *c = calloc(1, sizeof *c);
  if (!c) return NULL;
  c->driver = *driver;
  c->facts = *facts;
  strncpy(c->name, facts->name, sizeof c->name - 1);
  c->facts.name = c->name;
  atomic_flag_clear(&c->lock);
  while (((uint64_t)1 << c->shift) < QUANTUM || ((uint64_t)1 << c->shift) < facts->align_bytes) c->shift++;
  c->random = 12345;
  c->zero = c->last = order_open(c, 0);
  if (!c->zero) {
    free(c->orders);
    free(c);
    return NULL;
  }
  return c;
}

void haian_cache_destroy(haian_cache *c) {
  for (segment *s = c->segments, *next; s; s = next) {
    next = s->next;
    for (block *b = s->first, *after; b; b = after) {
      after = b->after;
      free(b->handles);
      free(b);
    }
    free(s);
  }
  for (block *b = c->spare, *next; b; b = next) {
    next = b->right;
    free(b);
  }
  for (uint32_t i = 0; i < c->n_orders; i++) free(c->orders[i]);
  for (order *o = c->spare_orders, *next; o; o = next) {
    next = o->next;
    free(o);
  }
  free(c->orders);
  free(c->events);
  free(c->listed);
  free(c);
}

haian_cache_block *haian_cache_take_cached(haian_cache *c, uint64_t nbytes, uint64_t stream) {
  if (nbytes - 1 >= c->facts.max_alloc_bytes || c->driver.carve) return NULL;
  const uint64_t bytes = ((nbytes - 1) >> c->shift << c->shift) + ((uint64_t)1 << c->shift);
  block *b = NULL;
  lock(c);
  order *o = order_of(c, stream);
  if (o && !c->freed) { /* else there are blocks to take in first */
    b = quick_take(c, o, bytes);
    if (!b) b = fit(c, o, bytes, bytes <= c->facts.policy.small, UINT64_MAX);
    if (b) hand_out(c, b, o, bytes, 1);
  }
  unlock(c);
  return (haian_cache_block *)b;
}

int32_t haian_cache_take(haian_cache *c, uint64_t nbytes, uint64_t stream, haian_cache_block **out) {
  *out = NULL;
  if (!nbytes) return haian_fail(HAIAN_INVALID_ARGUMENT, "%s: 0 bytes asked for; ask for at least 1", c->name);
  if (nbytes > c->facts.max_alloc_bytes) return no_memory(c, nbytes);
  const uint64_t bytes = ((nbytes - 1) >> c->shift << c->shift) + ((uint64_t)1 << c->shift);
  const int small = bytes <= c->facts.policy.small;
  block *b = NULL;
  for (int tries = 0;; tries++) {
    int32_t status = cached(c, bytes, small, stream, &b);
    if (!status && !b) status = grow(c, bytes, small, stream, &b);
    if (status) return status;
    if (b) break;
    lock(c);
    c->stats.oom_retries += tries == 0;
    const int others = c->away != 0; /* another thread is giving memory back, or sorting what was freed */
    unlock(c);
    if (tries && (!others || tries > MAX_OOM_PAUSES)) return no_memory(c, nbytes);
    if (others) {
      if (c->driver.pause) c->driver.pause(c->driver.ctx);
      else sched_yield();
    }
    uint64_t released = 0;
    status = haian_cache_trim(c, &released);
    if (status) return status;
  }
  if (c->driver.carve) {
    int32_t status = c->driver.carve(c->driver.ctx, b->face.address, nbytes);
    if (status) {
      lock(c);
      c->stats.live_bytes -= b->face.bytes;
      stamp(c, b);
      settle(c, b);
      unlock(c);
      return status;
    }
  }
  *out = &b->face;
  return HAIAN_OK;
}

void haian_cache_give(haian_cache *c, haian_cache_block *given, const uint64_t *users, uint32_t n_users) {
  block *b = (block *)given;
  int others = 0;
  for (uint32_t i = 0; i < n_users; i++) others |= users[i] != b->stream;
  if (others) {
    b->handles = malloc(n_users * sizeof *users);
    if (b->handles) {
      memcpy(b->handles, users, n_users * sizeof *users);
      b->n_handles = n_users;
    } else {
      b->until_trim = 1;
    }
  }
  lock(c);
  c->stats.live_bytes -= b->face.bytes;
  if (others || c->driver.uncarve) {
    b->state = AWAY;
    b->right = c->freed;
    c->freed = b;
  } else {
    stamp(c, b);
    settle(c, b);
  }
  unlock(c);
}

int32_t haian_cache_list(haian_cache *c, haian_cache_block *taken) {
  block *b = (block *)taken;
  block **more = NULL;
  int32_t status = HAIAN_OK;
  lock(c);
  if (c->n_listed == c->room_listed) {
    const uint64_t room = c->room_listed ? 2 * c->room_listed : 64;
    more = calloc(room, sizeof *more);
    for (uint64_t i = 0; more && i < c->room_listed; i++) {
      for (block *at = c->listed[i], *next; at; at = next) {
        next = at->right;
        block **chain = &more[mix(at->face.address >> c->shift) >> 32 & (room - 1)];
        at->right = *chain;
        *chain = at;
      }
    }
    if (more) {
      block **old = c->listed;
      c->listed = more;
      c->room_listed = room;
      more = old;
    } else if (!c->room_listed) {
      status = HAIAN_OUT_OF_MEMORY;
    }
  }
  if (!status) {
    block **chain = &c->listed[mix(b->face.address >> c->shift) >> 32 & (c->room_listed - 1)];
    b->right = *chain;
    *chain = b;
    c->n_listed++;
  }
  unlock(c);
  free(more);
  return status ? haian_fail(status, "%s: the host has no memory for the allocator's books; free some", c->name)
                : HAIAN_OK;
}

haian_cache_block *haian_cache_claim(haian_cache *c, uint64_t address) {
  block *b = NULL;
  lock(c);
  if (c->room_listed) {
    block **at = &c->listed[mix(address >> c->shift) >> 32 & (c->room_listed - 1)];
    while (*at && (*at)->face.address != address) at = &(*at)->right;
    b = *at;
    if (b) {
      *at = b->right;
      c->n_listed--;
    }
  }
  unlock(c);
  return (haian_cache_block *)b;
}

int32_t haian_cache_order(haian_cache *c, const uint64_t *users, uint32_t n_users, uint64_t stream) {
  int32_t status = HAIAN_OK;
  for (uint32_t i = 0; i < n_users && !status; i++) {
    const uint64_t user = users[i];
    order *o = user == stream ? NULL : pin(c, user);
    if (!o) continue;
    if (c->facts.events) {
      uint64_t event = 0;
      status = mark_new(c, user, &event);
      if (!status)
        status = stream ? c->driver.stream_wait_event(c->driver.ctx, stream, event)
                        : c->driver.event_sync(c->driver.ctx, event);
      if (event) event_put(c, event);
    } else if (user) {
      status = c->driver.stream_sync(c->driver.ctx, user);
    }
    unpin(c, o);
  }
  return status;
}

int32_t haian_cache_stream_opened(haian_cache *c, uint64_t stream) {
  lock(c);
  order *o = order_of(c, stream);
  if (!o) o = order_open(c, stream);
  unlock(c);
  return o ? HAIAN_OK
           : haian_fail(HAIAN_OUT_OF_MEMORY, "%s: the host has no memory for another stream; close some", c->name);
}

static void all_to_zero(haian_cache *c, order *from, int small) {
  for (block *b; (b = from->tree[small]);) {
    tree_remove(&from->tree[small], b);
    b->order = c->zero;
    b->serial = c->zero->serial;
    b->epoch = 0;
    put(c, b);
  }
}

int32_t haian_cache_stream_close(haian_cache *c, uint64_t stream) {
  int32_t status = collect(c);
  if (status) return status;
  lock(c);
  order *o = stream ? order_of(c, stream) : NULL;
  int later = 0;
  if (o) {
    quick_merge(c, o);
    o->serial++; /* live and waiting blocks notice */
    all_to_zero(c, o, 0);
    all_to_zero(c, o, 1);
    c->orders[o->index] = c->orders[--c->n_orders];
    c->orders[o->index]->index = o->index;
    order **at = &c->chains[mix(stream) >> 58];
    while (*at != o) at = &(*at)->next;
    *at = o->next;
    if (c->last == o) c->last = c->zero;
    later = o->pins != 0; /* a call on its way names the stream: the last one destroys it */
    o->closed = 1;
    if (!later) {
      event_keep(c, o->event);
      o->next = c->spare_orders;
      c->spare_orders = o;
    }
  }
  unlock(c);
  return later ? HAIAN_OK : c->driver.stream_destroy(c->driver.ctx, stream);
}

int32_t haian_cache_trim(haian_cache *c, uint64_t *released) {
  *released = 0;
  int32_t status = collect(c);
  if (status) return status;
  typedef struct {
    order *order;
    uint64_t serial, epoch;
  } closed;
  lock(c);
  const uint32_t n = c->n_orders;
  closed *ends = malloc(n * sizeof *ends);
  for (uint32_t i = 0; ends && i < n; i++) { /* what is freed during the wait belongs to the next epoch */
    order *o = c->orders[i];
    ends[i] = (closed){o, o->serial, o->epoch++};
  }
  block *list = c->waiting;
  c->waiting = NULL;
  c->away++;
  unlock(c);
  status = c->driver.sync(c->driver.ctx); /* without the lock: host functions that it waits for may allocate */
  lock(c);
  if (status) {
    back_to_list(&c->waiting, list);
  } else {
    for (uint32_t i = 0; ends && i < n; i++) {
      order *o = ends[i].order;
      if (o->serial == ends[i].serial && o->passed < ends[i].epoch)
        o->passed = ends[i].epoch; /* else closed meanwhile */
    }
    for (block *b = list, *next; b; b = next) {
      next = b->right;
      waited(c, b, 1);
    }
  }
  c->away--;
  unlock(c);
  free(ends);
  return status ? status : release(c, released);
}

int32_t haian_cache_statistics(haian_cache *c, haian_cache_stats *out) {
  int32_t status = collect(c);
  lock(c);
  *out = c->stats;
  unlock(c);
  return status;
}

uint64_t haian_cache_segments(haian_cache *c, haian_cache_block *out, uint64_t n) {
  uint64_t count = 0;
  lock(c);
  for (segment *s = c->segments; s; s = s->next, count++)
    if (count < n) out[count] = (haian_cache_block){s->address, s->bytes};
  unlock(c);
  return count;
}
