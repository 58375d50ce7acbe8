/* Best fit with splitting and coalescing, small and large requests in separate segments.
 * Free blocks of a stream stand in two treaps ordered by (bytes, address), one for small and one for large segments, so
 * that every operation is O(log n).  In front of them, 64 slots of last-freed blocks of one size each: a block freed and
 * asked for again skips splitting and merging.  They are merged before any search that is not an exact hit, so the search
 * sees what immediate merging would show.  haian.bench.fragmentation measures what the policy reserves. */
#include <stdlib.h>
#include <string.h>

#include "cache_inside.h"

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)
/* Reserved over peak live bytes / driver allocations on the traces of haian.bench.fragmentation: a 12-layer training step of
 * changing length; key-value caches concatenated at each token; ResNet-50 at batch 1 to 32; sizes log-uniform to 64 MiB; to
 * 16 KiB.  Merging at once, without slots, gives the same figures.
 *   this                      1.45 / 204    1.32 / 5        1.51 / 9      1.24 / 54     1.13 / 2
 *   small up to 1 MiB         1.45 / 204    1.62 / 14       1.44 / 10     1.22 / 72     1.13 / 2
 *   segments of exact size    1.38 / 549    219.45 / 7218   1.44 / 31     1.29 / 112    1.15 / 345
 *   power-of-two bins         2.03 / 644    2.16 / 103      2.24 / 43     1.84 / 514    1.51 / 1667
 *   bins of 1/8 octave        4.34 / 1356   12.23 / 681     9.49 / 148    2.45 / 879    1.36 / 1793 */
const haian_cache_policy haian_cache_default_policy = {64 * KIB, 2 * MIB, 10 * MIB, 20 * MIB, 2 * MIB};

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
void cache_tree_remove(block **at, block *b) {
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
block *cache_block_new(haian_cache *c, uint64_t address, uint64_t bytes, segment *s) {
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
void cache_block_drop(haian_cache *c, block *b) {
  b->right = c->spare;
  c->spare = b;
}

order *cache_order_of(haian_cache *c, uint64_t stream) {
  if (c->last->handle == stream) return c->last;
  for (order *o = c->chains[cache_mix(stream) >> 58]; o; o = o->next)
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
  order **chain = &c->chains[cache_mix(stream) >> 58];
  o->next = *chain;
  *chain = o;
  return o;
}

void cache_event_keep(haian_cache *c, uint64_t event) {
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

void cache_join(haian_cache *c, block *left, block *right) {
  left->face.bytes += right->face.bytes;
  if (right->epoch > left->epoch) left->epoch = right->epoch;
  left->after = right->after;
  if (right->after) right->after->before = left;
  cache_block_drop(c, right);
}

/* Adds a free block, merged with free neighbours of the same stream. */
void cache_put(haian_cache *c, block *b) {
  order *o = b->order;
  block **tree = &o->tree[b->segment->small];
  block *left = b->before, *right = b->after;
  if (left && left->state == TREE && left->order == o) {
    cache_tree_remove(tree, left);
    cache_join(c, left, b);
    b = left;
  }
  if (right && right->state == TREE && right->order == o) {
    cache_tree_remove(tree, right);
    cache_join(c, b, right);
  }
  b->state = TREE;
  tree_insert(tree, b);
}

/* A block becomes free in its stream's present epoch; a closed stream was drained, so its blocks are anyone's. */
void cache_stamp(haian_cache *c, block *b) {
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
void cache_settle(haian_cache *c, block *b) {
  if (b->order->serial != b->serial) cache_stamp(c, b);
  order *o = b->order;
  const uint64_t bytes = b->face.bytes;
  const unsigned slot = (unsigned)(cache_mix(bytes >> c->shift) >> 58);
  const uint64_t bit = (uint64_t)1 << slot;
  if (!(o->quick_used & bit)) {
    o->quick_used |= bit;
    o->quick[slot].bytes = bytes;
    o->quick[slot].head = NULL;
  } else if (o->quick[slot].bytes != bytes) {
    cache_put(c, b);
    return;
  }
  b->state = QUICK;
  b->right = o->quick[slot].head;
  o->quick[slot].head = b;
}

block *cache_quick_take(haian_cache *c, order *o, uint64_t bytes) {
  const unsigned slot = (unsigned)(cache_mix(bytes >> c->shift) >> 58);
  const uint64_t bit = (uint64_t)1 << slot;
  if (!(o->quick_used & bit) || o->quick[slot].bytes != bytes) return NULL;
  block *b = o->quick[slot].head;
  o->quick[slot].head = b->right;
  if (!b->right) o->quick_used &= ~bit;
  return b;
}
void cache_quick_merge(haian_cache *c, order *o) {
  while (o->quick_used) {
    const int slot = __builtin_ctzll(o->quick_used);
    o->quick_used &= o->quick_used - 1;
    for (block *b = o->quick[slot].head, *next; b; b = next) {
      next = b->right;
      cache_put(c, b);
    }
  }
}

/* The best fitting free block of an order whose epoch is at most `passed`. */
block *cache_fit(haian_cache *c, order *o, uint64_t bytes, int small, uint64_t passed) {
  cache_quick_merge(c, o);
  block *b = tree_from(o->tree[small], bytes, 0);
  while (b && b->epoch > passed) b = tree_from(o->tree[small], b->face.bytes, b->face.address + 1);
  if (b) {
    cache_tree_remove(&o->tree[small], b);
    b->state = AWAY;
  }
  return b;
}

/* Cuts the block to size, gives the rest to the taker's stream and counts.  Without host memory the block stays whole. */
void cache_hand_out(haian_cache *c, block *b, order *o, uint64_t bytes, int hit) {
  const uint64_t rest = b->face.bytes - bytes;
  block *tail = rest >> c->shift ? cache_block_new(c, b->face.address + bytes, rest, b->segment) : NULL;
  if (tail) {
    tail->before = b;
    tail->after = b->after;
    if (b->after) b->after->before = tail;
    b->after = tail;
    b->face.bytes = bytes;
    tail->order = o;
    tail->serial = o->serial;
    tail->epoch = b->order == o ? b->epoch : 0;
    cache_put(c, tail);
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

static void all_to_zero(haian_cache *c, order *from, int small) {
  for (block *b; (b = from->tree[small]);) {
    cache_tree_remove(&from->tree[small], b);
    b->order = c->zero;
    b->serial = c->zero->serial;
    b->epoch = 0;
    cache_put(c, b);
  }
}
/* A stream is gone: its free blocks are anyone's, its live and waiting ones will notice that the serial has changed. */
void cache_order_end(haian_cache *c, order *o) {
  cache_quick_merge(c, o);
  o->serial++;
  all_to_zero(c, o, 0);
  all_to_zero(c, o, 1);
  c->orders[o->index] = c->orders[--c->n_orders];
  c->orders[o->index]->index = o->index;
  order **at = &c->chains[cache_mix(o->handle) >> 58];
  while (*at != o) at = &(*at)->next;
  *at = o->next;
  if (c->last == o) c->last = c->zero;
  o->closed = 1;
}

/* ---- the face, as far as no driver is asked -------------------------------------------------------------------------- */
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
  if (c->driver.end) c->driver.end(c->driver.ctx);
  free(c);
}
haian_cache_block *haian_cache_take_cached(haian_cache *c, uint64_t nbytes, uint64_t stream) {
  if (nbytes - 1 >= c->facts.max_alloc_bytes || c->driver.carve) return NULL;
  const uint64_t bytes = ((nbytes - 1) >> c->shift << c->shift) + ((uint64_t)1 << c->shift);
  block *b = NULL;
  cache_lock(c);
  order *o = cache_order_of(c, stream);
  if (o && !c->freed) { /* else there are blocks to take in first */
    b = cache_quick_take(c, o, bytes);
    if (!b) b = cache_fit(c, o, bytes, bytes <= c->facts.policy.small, UINT64_MAX);
    if (b) cache_hand_out(c, b, o, bytes, 1);
  }
  cache_unlock(c);
  return (haian_cache_block *)b;
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
  cache_lock(c);
  c->stats.live_bytes -= b->face.bytes;
  if (others || c->driver.uncarve) {
    b->state = AWAY;
    b->right = c->freed;
    c->freed = b;
  } else {
    cache_stamp(c, b);
    cache_settle(c, b);
  }
  cache_unlock(c);
}

int32_t haian_cache_list(haian_cache *c, haian_cache_block *taken) {
  block *b = (block *)taken;
  block **more = NULL;
  int32_t status = HAIAN_OK;
  cache_lock(c);
  if (c->n_listed == c->room_listed) {
    const uint64_t room = c->room_listed ? 2 * c->room_listed : 64;
    more = calloc(room, sizeof *more);
    for (uint64_t i = 0; more && i < c->room_listed; i++) {
      for (block *at = c->listed[i], *next; at; at = next) {
        next = at->right;
        block **chain = &more[cache_mix(at->face.address >> c->shift) >> 32 & (room - 1)];
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
    block **chain = &c->listed[cache_mix(b->face.address >> c->shift) >> 32 & (c->room_listed - 1)];
    b->right = *chain;
    *chain = b;
    c->n_listed++;
  }
  cache_unlock(c);
  free(more);
  return status ? haian_fail(status, "%s: the host has no memory for the allocator's books; free some", c->name)
                : HAIAN_OK;
}

haian_cache_block *haian_cache_claim(haian_cache *c, uint64_t address) {
  block *b = NULL;
  cache_lock(c);
  if (c->room_listed) {
    block **at = &c->listed[cache_mix(address >> c->shift) >> 32 & (c->room_listed - 1)];
    while (*at && (*at)->face.address != address) at = &(*at)->right;
    b = *at;
    if (b) {
      *at = b->right;
      c->n_listed--;
    }
  }
  cache_unlock(c);
  return (haian_cache_block *)b;
}
int32_t haian_cache_stream_opened(haian_cache *c, uint64_t stream) {
  cache_lock(c);
  order *o = cache_order_of(c, stream);
  if (!o) o = order_open(c, stream);
  cache_unlock(c);
  return o ? HAIAN_OK
           : haian_fail(HAIAN_OUT_OF_MEMORY, "%s: the host has no memory for another stream; close some", c->name);
}
uint64_t haian_cache_segments(haian_cache *c, haian_cache_block *out, uint64_t n) {
  uint64_t count = 0;
  cache_lock(c);
  for (segment *s = c->segments; s; s = s->next, count++)
    if (count < n) out[count] = (haian_cache_block){s->address, s->bytes};
  cache_unlock(c);
  return count;
}
