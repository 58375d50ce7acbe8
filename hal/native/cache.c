/* What the caching allocator asks of its driver: new segments, marks in streams, trim, another try after giving the cache
 * back.  Not here: the structures and what needs no driver (cache_blocks.c).
 *
 * The lock is never held here across a call of the driver, which may be anyone's code: each step decides under the lock,
 * asks, and enters the answer under the lock again.  An order whose stream a call names is pinned meanwhile. */
#include <stdlib.h>

#include "cache_inside.h"

static uint64_t round_up(uint64_t n, uint64_t step) { return step ? (n + step - 1) / step * step : n; }
static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
/* ---- the driver, without the lock ------------------------------------------------------------------------------------ */
static void forget(haian_cache *c) {
  if (c->driver.forget) c->driver.forget(c->driver.ctx);
}

/* An order that a driver call is going to name stays until it is unpinned; NULL: no such stream. */
static order *pin(haian_cache *c, uint64_t stream) {
  cache_lock(c);
  order *o = cache_order_of(c, stream);
  if (o) o->pins++;
  cache_unlock(c);
  return o;
}
static void unpin(haian_cache *c, order *o) {
  cache_lock(c);
  const uint64_t stream = o->handle;
  const int destroy = --o->pins == 0 && o->closed;
  if (destroy) {
    cache_event_keep(c, o->event);
    o->next = c->spare_orders;
    c->spare_orders = o;
  }
  cache_unlock(c);
  if (destroy) c->driver.abandon(c->driver.ctx, stream); /* its closer has returned already */
}

static int32_t event_get(haian_cache *c, uint64_t *event) {
  cache_lock(c);
  *event = c->n_events ? c->events[--c->n_events] : 0;
  cache_unlock(c);
  return *event ? HAIAN_OK : c->driver.event_create(c->driver.ctx, event);
}
static void event_put(haian_cache *c, uint64_t event) {
  cache_lock(c);
  cache_event_keep(c, event);
  cache_unlock(c);
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
  cache_lock(c);
  block *b = *list;
  *list = NULL;
  if (b) c->away++;
  cache_unlock(c);
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
  cache_lock(c);
  cache_stamp(c, b);
  if (n || b->until_trim) {
    b->right = c->waiting;
    c->waiting = b;
  } else {
    free(b->handles);
    b->handles = NULL;
    cache_settle(c, b);
  }
  cache_unlock(c);
  return status;
}

static void waited(haian_cache *c, block *b, int idle) { /* under the lock */
  for (uint32_t i = 0; i < b->n_handles; i++) cache_event_keep(c, b->handles[i]);
  free(b->handles);
  b->handles = NULL;
  b->n_handles = 0;
  b->until_trim = 0;
  if (idle) b->epoch = 0;
  cache_settle(c, b);
}

/* Takes in what finalisers freed and what other streams have passed.  Asks no more once `patience` blocks have not passed;
 * *early says so. */
static int32_t collect(haian_cache *c, uint32_t patience, int *early) {
  int32_t status = HAIAN_OK;
  *early = 0;
  block *list = take_list(c, &c->freed);
  if (list) {
    while (list && !status) {
      block *b = list;
      list = b->right;
      status = take_in(c, b);
    }
    cache_lock(c);
    back_to_list(&c->freed, list);
    c->away--;
    cache_unlock(c);
  }
  if (status) return status;
  list = take_list(c, &c->waiting);
  if (!list) return HAIAN_OK;
  block *still = NULL, **end = &still; /* in their old order, behind those not asked about */
  while (list && !status && patience) {
    block *b = list;
    list = b->right;
    int passed = !b->until_trim;
    for (uint32_t i = 0; i < b->n_handles && passed && !status; i++) {
      status = c->driver.event_query(c->driver.ctx, b->handles[i]);
      if (status) passed = 0;
      if (status == HAIAN_NOT_READY) status = HAIAN_OK;
    }
    if (passed) {
      cache_lock(c);
      waited(c, b, 0);
      cache_unlock(c);
    } else {
      patience--;
      *end = b;
      end = &b->right;
    }
  }
  *early = list != NULL;
  block **last = &list;
  while (*last) last = &(*last)->right;
  *last = still;
  if (!still) end = last;
  cache_lock(c);
  *end = c->waiting;
  c->waiting = list;
  c->away--;
  cache_unlock(c);
  return status;
}

/* Brings order.passed up to date; queues the next mark where none is on its way.  The order is pinned. */
static int32_t advance(haian_cache *c, order *o) {
  if (!c->facts.events) return HAIAN_OK;
  cache_lock(c);
  const int mine = !o->busy && !o->closed && (o->closing || o->passed < o->newest);
  const uint64_t closing = o->closing;
  uint64_t event = o->event;
  if (mine) o->busy = 1;
  cache_unlock(c);
  if (!mine) return HAIAN_OK;
  int32_t status = HAIAN_OK;
  int again = 1;
  if (closing) {
    status = c->driver.event_query(c->driver.ctx, event);
    again = status == HAIAN_OK;
  }
  if (again) {
    cache_lock(c);
    if (closing) {
      if (o->passed < closing) o->passed = closing;
      o->closing = 0;
    }
    again = o->passed < o->newest;
    if (again) o->closing = o->epoch++; /* before the mark: what is freed from now on may come after it */
    cache_unlock(c);
  }
  if (again) {
    status = event ? mark(c, event, o->handle) : mark_new(c, o->handle, &event);
    const int32_t marked = status;
    if (!status) status = c->driver.event_query(c->driver.ctx, event);
    cache_lock(c);
    o->event = event;
    if (!status && o->passed < o->closing) o->passed = o->closing;
    if (!status || marked) o->closing = 0; /* (not marked: a later mark closes this epoch too) */
    cache_unlock(c);
  }
  cache_lock(c);
  o->busy = 0;
  cache_unlock(c);
  return status == HAIAN_NOT_READY ? HAIAN_OK : status;
}

/* The best fitting free block of the stream, else of another whose work on it has passed; *out NULL: there is none. */
static int32_t search(haian_cache *c, uint64_t bytes, int small, uint64_t stream, block **out) {
  int32_t status = HAIAN_OK;
  cache_lock(c);
  order *mine = cache_order_of(c, stream);
  if (!mine) mine = c->zero; /* closed, or nobody's */
  block *b = cache_quick_take(c, mine, bytes);
  if (!b) b = cache_fit(c, mine, bytes, small, UINT64_MAX);
  uint32_t n = 0;
  order **others = NULL;
  if (b) {
    cache_hand_out(c, b, mine, bytes, 1);
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
  cache_unlock(c);
  if (b) {
    *out = b;
    return HAIAN_OK;
  }
  for (uint32_t i = 0; i < n; i++) {
    if (!b && !status) {
      status = advance(c, others[i]);
      cache_lock(c);
      if (!status && !others[i]->closed && !mine->closed) b = cache_fit(c, others[i], bytes, small, others[i]->passed);
      if (b) cache_hand_out(c, b, mine, bytes, 1);
      cache_unlock(c);
    }
    unpin(c, others[i]);
  }
  free(others);
  unpin(c, mine);
  *out = b;
  return status;
}

/* The same after taking in what was freed; asks about every waiting block only where nothing else fits. */
static int32_t cached(haian_cache *c, uint64_t bytes, int small, uint64_t stream, block **out) {
  int early = 1;
  int32_t status = HAIAN_OK;
  *out = NULL;
  for (uint32_t patience = PATIENCE; !status && !*out && early; patience = UINT32_MAX) {
    status = collect(c, patience, &early);
    if (!status) status = search(c, bytes, small, stream, out);
  }
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
    cache_lock(c);
    block *b = s ? cache_block_new(c, address, n, s) : NULL;
    if (b) {
      *s = (segment){.address = address, .bytes = n, .next = c->segments, .first = b, .small = small};
      if (c->segments) c->segments->previous = s;
      c->segments = s;
      c->stats.segments++;
      c->stats.reserved_bytes += n;
      order *o = cache_order_of(c, stream);
      cache_hand_out(c, b, o ? o : c->zero, bytes, 0);
    }
    cache_unlock(c);
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
  cache_lock(c);
  const haian_cache_stats s = c->stats;
  cache_unlock(c);
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
  cache_lock(c);
  for (uint32_t i = 0; i < c->n_orders; i++) cache_quick_merge(c, c->orders[i]);
  for (segment *s = c->segments, *next; s; s = next) {
    next = s->next;
    int idle = 1;
    for (block *b = s->first; b && idle; b = b->after) idle = b->state == TREE && b->epoch <= b->order->passed;
    if (!idle) continue;
    for (block *b = s->first; b; b = b->after) cache_tree_remove(&b->order->tree[s->small], b);
    block *b = s->first;
    while (b->after) cache_join(c, b, b->after);
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
  cache_unlock(c);
  int32_t status = HAIAN_OK;
  while (gone) {
    segment *s = gone;
    gone = s->next;
    if (!status) status = c->driver.free(c->driver.ctx, s->address);
    cache_lock(c);
    if (!status) {
      c->stats.reserved_bytes -= s->bytes;
      c->stats.segments--;
      *released += s->bytes;
      cache_block_drop(c, s->first);
    } else { /* it stays cached */
      s->previous = NULL;
      s->next = c->segments;
      if (s->next) s->next->previous = s;
      c->segments = s;
      s->first->epoch = 0;
      cache_put(c, s->first);
      s = NULL;
    }
    cache_unlock(c);
    free(s);
  }
  cache_lock(c);
  c->away--;
  cache_unlock(c);
  return status;
}
/* ---- the face ------------------------------------------------------------------------------------------------------- */
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
    cache_lock(c);
    c->stats.oom_retries += tries == 0;
    const int others = c->away != 0; /* another thread is giving memory back, or sorting what was freed */
    cache_unlock(c);
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
      cache_lock(c);
      c->stats.live_bytes -= b->face.bytes;
      cache_stamp(c, b);
      cache_settle(c, b);
      cache_unlock(c);
      return status;
    }
  }
  *out = &b->face;
  return HAIAN_OK;
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
int32_t haian_cache_stream_close(haian_cache *c, uint64_t stream) {
  int early;
  int32_t status = collect(c, UINT32_MAX, &early);
  if (status) return status;
  cache_lock(c);
  order *o = stream ? cache_order_of(c, stream) : NULL;
  int later = 0;
  if (o) {
    cache_order_end(c, o);
    later = o->pins != 0; /* a call on its way names the stream: the last one destroys it */
    if (!later) {
      cache_event_keep(c, o->event);
      o->next = c->spare_orders;
      c->spare_orders = o;
    }
  }
  cache_unlock(c);
  return later ? HAIAN_OK : c->driver.stream_destroy(c->driver.ctx, stream);
}
int32_t haian_cache_trim(haian_cache *c, uint64_t *released) {
  *released = 0;
  int early;
  int32_t status = collect(c, UINT32_MAX, &early);
  if (status) return status;
  typedef struct {
    order *order;
    uint64_t serial, epoch;
  } closed;
  cache_lock(c);
  const uint32_t n = c->n_orders;
  closed *ends = malloc(n * sizeof *ends);
  for (uint32_t i = 0; ends && i < n; i++) { /* what is freed during the wait belongs to the next epoch */
    order *o = c->orders[i];
    ends[i] = (closed){o, o->serial, o->epoch++};
  }
  block *list = c->waiting;
  c->waiting = NULL;
  c->away++;
  cache_unlock(c);
  status = c->driver.sync(c->driver.ctx); /* without the lock: host functions that it waits for may allocate */
  cache_lock(c);
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
  cache_unlock(c);
  free(ends);
  return status ? status : release(c, released);
}

int32_t haian_cache_statistics(haian_cache *c, haian_cache_stats *out) {
  int early;
  int32_t status = collect(c, UINT32_MAX, &early);
  cache_lock(c);
  *out = c->stats;
  cache_unlock(c);
  return status;
}
