/* Between py_cache.c (Allocator) and py_buffer.c (Buffer). */
#ifndef HAIAN_PY_CACHE_H
#define HAIAN_PY_CACHE_H
#include "py_tensor.h"

#include "cache.h"

enum { N_SEEN = 8 };

typedef struct allocator {
  PyObject_HEAD haian_cache *cache;
  haian_cache_driver calls;
  PyObject *driver, *index;
  int python; /* the driver is called through its Python methods */
  struct {    /* streams of this device: Buffer's shortcut */
    PyObject *ref;
    uint64_t handle;
  } seen[N_SEEN];
} allocator;

extern PyTypeObject haian_allocator_type, haian_buffer_type;

/* A block; NULL with an exception.  haian_allocator_take looks into the cache first. */
haian_cache_block *haian_allocator_ask(allocator *a, uint64_t nbytes, uint64_t stream);
static inline haian_cache_block *haian_allocator_take(allocator *a, uint64_t nbytes, uint64_t stream) {
  haian_cache_block *b = haian_cache_take_cached(a->cache, nbytes, stream);
  return b ? b : haian_allocator_ask(a, nbytes, stream);
}
/* haian_cache_order; -1 with an exception. */
int haian_allocator_order(allocator *a, const uint64_t *users, uint32_t n, uint64_t stream);
/* Any integer as 64 bits: saturates where `saturate`, else refuses; -1 with an exception. */
int haian_any_u64(PyObject *o, uint64_t *out, int saturate, const char *what);
static inline int haian_read_u64(PyObject *o, uint64_t *out, int saturate, const char *what) {
  if (PyLong_CheckExact(o)) {
    int overflow;
    const long long n = PyLong_AsLongLongAndOverflow(o, &overflow);
    *out = (uint64_t)n;
    if (!overflow && n >= 0) return 0;
  }
  return haian_any_u64(o, out, saturate, what);
}
int haian_init_buffer(PyObject *module);
#endif
