/* haian._native.Allocator over cache.c, above a driver in Python or in C.  Not here: Buffer (py_buffer.c).
 *
 * A driver in Python is called with the GIL; around calls that may reach a driver in C it is given up. */
#include "py_cache.h"
#include <sched.h>
#include <string.h>

static PyObject *haian_error; /* errors.HaianError */

/* ---- a driver in Python ---------------------------------------------------------------------------------------------- */
enum {
  DO_ALLOC,
  DO_FREE,
  DO_SYNC,
  DO_STREAM_SYNC,
  DO_STREAM_DESTROY,
  DO_WAIT,
  DO_CREATE,
  DO_RECORD,
  DO_QUERY,
  DO_EVENT_SYNC,
  DO_INFO,
  DO_POOL,
  DO_CARVE,
  DO_UNCARVE,
  N_CALLS
};
static const char *const call_names[N_CALLS] = {
    "alloc",        "free",         "sync",        "stream_sync", "stream_destroy", "stream_wait_event",
    "event_create", "event_record", "event_query", "event_sync",  "mem_info",       "pool",
    "carve",        "uncarve"};
static PyObject *names[N_CALLS], *name_code;

/* The code of the exception that is set, which stays set; HAIAN_CACHE_RAISED for one that is not haian's. */
static int32_t failure(void) {
  if (!PyErr_ExceptionMatches(haian_error)) return HAIAN_CACHE_RAISED;
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyObject *code = PyObject_GetAttr(type, name_code);
  const long n = code ? PyLong_AsLong(code) : -1;
  Py_XDECREF(code);
  PyErr_Restore(type, value, trace); /* replaces what the two lines above may have set */
  return n > 0 ? (int32_t)n : HAIAN_CACHE_RAISED;
}

/* driver.<call>([index,] *v), with the GIL; a new reference or NULL. */
static PyObject *ask(allocator *a, int call, int with_index, int n, const uint64_t *v) {
  PyObject *args[6] = {a->driver, a->index};
  const int first = with_index ? 2 : 1;
  int made = 0;
  for (; made < n; made++)
    if (!(args[first + made] = PyLong_FromUnsignedLongLong(v[made]))) break;
  PyObject *r = made == n ? PyObject_VectorcallMethod(names[call], args, (size_t)(first + n), NULL) : NULL;
  for (int i = 0; i < made; i++) Py_DECREF(args[first + i]);
  return r;
}
static int32_t tell(void *ctx, int call, int with_index, int n, const uint64_t *v) {
  const PyGILState_STATE gil = PyGILState_Ensure();
  PyObject *r = ask(ctx, call, with_index, n, v);
  const int32_t status = r ? HAIAN_OK : failure();
  Py_XDECREF(r);
  PyGILState_Release(gil);
  return status;
}
static int32_t py_alloc(void *ctx, uint64_t bytes, uint64_t align, uint64_t *address) {
  const PyGILState_STATE gil = PyGILState_Ensure();
  PyObject *r = ask(ctx, DO_ALLOC, 1, 2, (const uint64_t[]){bytes, align});
  if (r) *address = PyLong_AsUnsignedLongLong(r);
  if (r && !*address)
    haian_raise_text(HAIAN_INTERNAL,
                     "alloc of %llu bytes succeeded and gave address 0; needs one above 0, or OutOfMemory",
                     (unsigned long long)bytes);
  int32_t status = PyErr_Occurred() ? failure() : HAIAN_OK;
  Py_XDECREF(r);
  if (status == HAIAN_OUT_OF_MEMORY) PyErr_Clear();
  PyGILState_Release(gil);
  return status;
}
static int32_t py_free(void *ctx, uint64_t address) { return tell(ctx, DO_FREE, 1, 1, &address); }
static int32_t py_sync(void *ctx) { return tell(ctx, DO_SYNC, 1, 0, NULL); }
static int32_t py_stream_sync(void *ctx, uint64_t stream) { return tell(ctx, DO_STREAM_SYNC, 0, 1, &stream); }
static int32_t py_stream_destroy(void *ctx, uint64_t stream) { return tell(ctx, DO_STREAM_DESTROY, 0, 1, &stream); }
static void py_abandon(void *ctx, uint64_t stream) {
  const PyGILState_STATE gil = PyGILState_Ensure();
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyObject *r = ask(ctx, DO_STREAM_DESTROY, 0, 1, &stream);
  Py_XDECREF(r);
  PyErr_Restore(type, value, trace);
  PyGILState_Release(gil);
}
static int32_t py_wait(void *ctx, uint64_t stream, uint64_t event) {
  return tell(ctx, DO_WAIT, 0, 2, (const uint64_t[]){stream, event});
}
static int32_t py_event_create(void *ctx, uint64_t *event) {
  const PyGILState_STATE gil = PyGILState_Ensure();
  allocator *a = ctx;
  PyObject *args[3] = {a->driver, a->index, Py_False /* no timing */};
  PyObject *r = PyObject_VectorcallMethod(names[DO_CREATE], args, 3, NULL);
  if (r) *event = PyLong_AsUnsignedLongLong(r);
  const int32_t status = PyErr_Occurred() ? failure() : HAIAN_OK;
  Py_XDECREF(r);
  PyGILState_Release(gil);
  return status;
}
static int32_t py_event_record(void *ctx, uint64_t event, uint64_t stream) {
  return tell(ctx, DO_RECORD, 0, 2, (const uint64_t[]){event, stream});
}
static int32_t py_event_query(void *ctx, uint64_t event) {
  const PyGILState_STATE gil = PyGILState_Ensure();
  PyObject *r = ask(ctx, DO_QUERY, 0, 1, &event);
  const int yes = r ? PyObject_IsTrue(r) : -1;
  const int32_t status = yes < 0 ? failure() : yes ? HAIAN_OK : HAIAN_NOT_READY;
  Py_XDECREF(r);
  PyGILState_Release(gil);
  return status;
}
static int32_t py_event_sync(void *ctx, uint64_t event) { return tell(ctx, DO_EVENT_SYNC, 0, 1, &event); }
static int32_t py_mem_info(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes) {
  const PyGILState_STATE gil = PyGILState_Ensure();
  unsigned long long unused = 0, total = 0;
  PyObject *r = ask(ctx, DO_INFO, 1, 0, NULL);
  const int ok = r && PyArg_ParseTuple(r, "KK:mem_info", &unused, &total);
  const int32_t status = ok ? HAIAN_OK : failure();
  Py_XDECREF(r);
  PyGILState_Release(gil);
  *free_bytes = unused;
  *total_bytes = total;
  return status;
}
static int32_t py_pool(void *ctx, uint64_t segment) { return tell(ctx, DO_POOL, 1, 1, &segment); }
static int32_t py_carve(void *ctx, uint64_t address, uint64_t bytes) {
  return tell(ctx, DO_CARVE, 1, 2, (const uint64_t[]){address, bytes});
}
static int32_t py_uncarve(void *ctx, uint64_t address) { return tell(ctx, DO_UNCARVE, 1, 1, &address); }
static void py_forget(void *ctx) {
  (void)ctx;
  const PyGILState_STATE gil = PyGILState_Ensure();
  PyErr_Clear();
  PyGILState_Release(gil);
}
static void py_pause(void *ctx) {
  (void)ctx;
  const PyGILState_STATE gil = PyGILState_Ensure();
  PyThreadState *saved = PyEval_SaveThread();
  sched_yield();
  PyEval_RestoreThread(saved);
  PyGILState_Release(gil);
}

static const haian_cache_driver python_calls = {.alloc = py_alloc,
                                                .free = py_free,
                                                .sync = py_sync,
                                                .stream_sync = py_stream_sync,
                                                .stream_destroy = py_stream_destroy,
                                                .abandon = py_abandon,
                                                .stream_wait_event = py_wait,
                                                .event_create = py_event_create,
                                                .event_record = py_event_record,
                                                .event_query = py_event_query,
                                                .event_sync = py_event_sync,
                                                .mem_info = py_mem_info,
                                                .forget = py_forget,
                                                .pause = py_pause};

/* Calls that may reach the driver stand between these. */
static PyThreadState *enter(const allocator *a) { return a->python ? NULL : PyEval_SaveThread(); }
static void leave(PyThreadState *saved) {
  if (saved) PyEval_RestoreThread(saved);
}
/* The exception for a status of the cache: the driver's own where it set one. */
static PyObject *raise(int32_t status) {
  if (PyErr_Occurred()) return NULL;
  return haian_raise(status);
}

/* ---- numbers from Python --------------------------------------------------------------------------------------------- */
int haian_any_u64(PyObject *o, uint64_t *out, int saturate, const char *what) {
  PyObject *index = PyNumber_Index(o);
  if (!index) return -1;
  int overflow = 0;
  const long long low = PyLong_AsLongLongAndOverflow(index, &overflow);
  if (!overflow) {
    *out = (uint64_t)low;
    overflow = low < 0 ? -1 : 0;
  } else if (overflow > 0) {
    *out = PyLong_AsUnsignedLongLong(index);
    if (PyErr_Occurred()) {
      PyErr_Clear();
      *out = UINT64_MAX;
    } else {
      overflow = 0;
    }
  }
  Py_DECREF(index);
  if (!overflow || (saturate && overflow > 0)) return 0;
  haian_raise_text(HAIAN_INVALID_ARGUMENT, "%s is %s; needs %s", what, overflow < 0 ? "negative" : "2^64 or more",
                   saturate ? "at least 1" : "0 to 2^64 - 1");
  return -1;
}

/* Attribute with an unsigned integer. */
static int read_fact(PyObject *facts, const char *name, uint64_t *out) {
  PyObject *value = PyObject_GetAttrString(facts, name);
  const int bad = !value || haian_read_u64(value, out, 1, name);
  Py_XDECREF(value);
  return bad ? -1 : 0;
}

/* Integers of an iterable; a new array (PyMem_Free), NULL with an exception. */
static uint64_t *read_handles(PyObject *iterable, uint32_t *n) {
  PyObject *all = PySequence_Tuple(iterable);
  if (!all) return NULL;
  const Py_ssize_t count = PyTuple_GET_SIZE(all);
  uint64_t *out = PyMem_Malloc(sizeof *out * (size_t)(count + 1));
  if (!out) PyErr_NoMemory();
  for (Py_ssize_t i = 0; out && i < count; i++) {
    if (haian_read_u64(PyTuple_GET_ITEM(all, i), &out[i], 0, "a stream's handle")) {
      PyMem_Free(out);
      out = NULL;
    }
  }
  Py_DECREF(all);
  *n = (uint32_t)count;
  return out;
}

/* ---- Allocator ------------------------------------------------------------------------------------------------------- */
static PyObject *allocator_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *keys[] = {"driver", "index", "name", "facts", "policy", NULL};
  PyObject *driver, *index, *facts, *policy = Py_None;
  const char *name;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!sO|O:Allocator", keys, &driver, &PyLong_Type, &index, &name,
                                   &facts, &policy))
    return NULL;
  if (!haian_error) {
    PyObject *errors = PyImport_ImportModule("haian.hal.errors");
    haian_error = errors ? PyObject_GetAttrString(errors, "HaianError") : NULL;
    Py_XDECREF(errors);
    if (!haian_error) return NULL;
  }
  haian_cache_facts f = {.name = name, .policy = haian_cache_default_policy};
  uint64_t events, safe = 1;
  if (read_fact(facts, "total_bytes", &f.total_bytes) || read_fact(facts, "max_alloc_bytes", &f.max_alloc_bytes) ||
      read_fact(facts, "align_bytes", &f.align_bytes) || read_fact(facts, "events", &events) ||
      read_fact(facts, "thread_safe_streams", &safe))
    return NULL;
  f.events = events != 0;
  if (policy != Py_None) {
    unsigned long long p[5];
    if (!PyArg_ParseTuple(policy, "KKKKK;policy is (small, small_segment, medium, medium_segment, large_step) in bytes",
                          &p[0], &p[1], &p[2], &p[3], &p[4]))
      return NULL;
    f.policy = (haian_cache_policy){p[0], p[1], p[2], p[3], p[4]};
  }
  PyObject *carve = PyObject_GetAttrString(driver, "carve"); /* of a validating driver, which must see every call */
  if (!carve) PyErr_Clear();
  uint64_t table = 0;
  if (!carve && safe) { /* (calls on one stream are serialised by the Python methods only) */
    PyObject *t = PyObject_GetAttrString(driver, "hal_table");
    if (!t) PyErr_Clear();
    const int bad = t && t != Py_None && haian_read_u64(t, &table, 0, "hal_table");
    Py_XDECREF(t);
    if (bad) return NULL;
  }
  allocator *a = (allocator *)type->tp_alloc(type, 0);
  if (!a) {
    Py_XDECREF(carve);
    return NULL;
  }
  a->driver = Py_NewRef(driver);
  a->index = Py_NewRef(index);
  a->python = !table;
  int32_t status = HAIAN_OK;
  if (table) {
    status = haian_cache_hal_driver((const void *)(uintptr_t)table, (int32_t)PyLong_AsLong(index), &a->calls);
  } else {
    a->calls = python_calls;
    a->calls.ctx = a;
    if (carve && carve != Py_None) {
      a->calls.pool = py_pool;
      a->calls.carve = py_carve;
      a->calls.uncarve = py_uncarve;
    }
  }
  Py_XDECREF(carve);
  if (!status) {
    a->cache = haian_cache_create(&a->calls, &f);
    if (!a->cache) status = haian_fail(HAIAN_OUT_OF_MEMORY, "%s: the host has no memory for an allocator", name);
  } else {
    a->calls.ctx = NULL;
  }
  if (status) {
    Py_DECREF(a);
    return raise(status);
  }
  return (PyObject *)a;
}

static void allocator_dealloc(PyObject *self) {
  allocator *a = (allocator *)self;
  if (a->cache) haian_cache_destroy(a->cache); /* and the context of a C driver */
  else if (!a->python) free(a->calls.ctx);
  for (int i = 0; i < N_SEEN; i++) Py_XDECREF(a->seen[i].ref);
  Py_XDECREF(a->driver);
  Py_XDECREF(a->index);
  Py_TYPE(self)->tp_free(self);
}

haian_cache_block *haian_allocator_ask(allocator *a, uint64_t nbytes, uint64_t stream) {
  haian_cache_block *b = NULL;
  PyThreadState *saved = enter(a);
  const int32_t status = haian_cache_take(a->cache, nbytes, stream, &b);
  leave(saved);
  if (status) raise(status);
  return b;
}

static PyObject *allocator_take(PyObject *self, PyObject *const *args, Py_ssize_t n) {
  allocator *a = (allocator *)self;
  uint64_t nbytes, stream = 0;
  if (n < 1 || n > 2) return PyErr_Format(PyExc_TypeError, "take(nbytes, stream=0): %zd arguments came", n);
  if (haian_read_u64(args[0], &nbytes, 1, "nbytes") || (n > 1 && haian_read_u64(args[1], &stream, 0, "stream")))
    return NULL;
  haian_cache_block *b = haian_allocator_take(a, nbytes, stream);
  if (!b) return NULL;
  const int32_t status = haian_cache_list(a->cache, b);
  if (status) {
    haian_cache_give(a->cache, b, &stream, 1);
    return raise(status);
  }
  return PyLong_FromUnsignedLongLong(b->address);
}

static PyObject *allocator_give(PyObject *self, PyObject *const *args, Py_ssize_t n) {
  allocator *a = (allocator *)self;
  uint64_t address, *users = NULL;
  uint32_t n_users = 0;
  if (n < 1 || n > 2) return PyErr_Format(PyExc_TypeError, "give(address, users=()): %zd arguments came", n);
  if (haian_read_u64(args[0], &address, 0, "address")) return NULL;
  if (n > 1 && !(users = read_handles(args[1], &n_users))) return NULL;
  haian_cache_block *b = haian_cache_claim(a->cache, address);
  if (b) haian_cache_give(a->cache, b, users, n_users);
  PyMem_Free(users);
  if (!b)
    return haian_raise_text(HAIAN_INVALID_HANDLE,
                            "give: %#llx was not taken here, or is given back already; give each address of take once",
                            (unsigned long long)address);
  Py_RETURN_NONE;
}

int haian_allocator_order(allocator *a, const uint64_t *users, uint32_t n, uint64_t stream) {
  PyThreadState *saved = enter(a);
  const int32_t status = haian_cache_order(a->cache, users, n, stream);
  leave(saved);
  if (status) raise(status);
  return status ? -1 : 0;
}
static PyObject *allocator_order(PyObject *self, PyObject *const *args, Py_ssize_t n) {
  uint64_t stream;
  uint32_t n_users;
  if (n != 2) return PyErr_Format(PyExc_TypeError, "order(users, stream): %zd arguments came", n);
  if (haian_read_u64(args[1], &stream, 0, "stream")) return NULL;
  uint64_t *users = read_handles(args[0], &n_users);
  if (!users) return NULL;
  const int bad = haian_allocator_order((allocator *)self, users, n_users, stream);
  PyMem_Free(users);
  if (bad) return NULL;
  Py_RETURN_NONE;
}

static PyObject *allocator_opened(PyObject *self, PyObject *arg) {
  uint64_t stream;
  if (haian_read_u64(arg, &stream, 0, "stream")) return NULL;
  const int32_t status = haian_cache_stream_opened(((allocator *)self)->cache, stream);
  if (status) return raise(status);
  Py_RETURN_NONE;
}
static PyObject *allocator_close(PyObject *self, PyObject *arg) {
  uint64_t stream;
  if (haian_read_u64(arg, &stream, 0, "stream")) return NULL;
  PyThreadState *saved = enter((allocator *)self);
  const int32_t status = haian_cache_stream_close(((allocator *)self)->cache, stream);
  leave(saved);
  if (status) return raise(status);
  Py_RETURN_NONE;
}

static PyObject *allocator_stats(PyObject *self, PyObject *none) {
  (void)none;
  haian_cache_stats s;
  PyThreadState *saved = enter((allocator *)self);
  const int32_t status = haian_cache_statistics(((allocator *)self)->cache, &s);
  leave(saved);
  if (status) return raise(status);
#define ROW(name, value) name, (unsigned long long)(value)
  return Py_BuildValue("{sKsKsKsKsKsKsKsK}", ROW("live_bytes", s.live_bytes),
                       ROW("cached_bytes", s.reserved_bytes - s.live_bytes), ROW("peak_bytes", s.peak_bytes),
                       ROW("reserved_bytes", s.reserved_bytes), ROW("allocations", s.allocations), ROW("hits", s.hits),
                       ROW("segments", s.segments), ROW("oom_retries", s.oom_retries));
}
static PyObject *allocator_trim(PyObject *self, PyObject *none) {
  (void)none;
  uint64_t released;
  PyThreadState *saved = enter((allocator *)self);
  const int32_t status = haian_cache_trim(((allocator *)self)->cache, &released);
  leave(saved);
  return status ? raise(status) : PyLong_FromUnsignedLongLong(released);
}
static PyObject *allocator_segments(PyObject *self, void *closure) {
  (void)closure;
  haian_cache *c = ((allocator *)self)->cache;
  const uint64_t room = haian_cache_segments(c, NULL, 0);
  haian_cache_block *all = PyMem_Malloc(sizeof *all * (size_t)(room + 1));
  if (!all) return PyErr_NoMemory();
  const uint64_t n = haian_cache_segments(c, all, room);
  PyObject *dict = PyDict_New();
  for (uint64_t i = 0; dict && i < n && i < room; i++) {
    PyObject *key = PyLong_FromUnsignedLongLong(all[i].address), *value = PyLong_FromUnsignedLongLong(all[i].bytes);
    if (!key || !value || PyDict_SetItem(dict, key, value)) Py_CLEAR(dict);
    Py_XDECREF(key);
    Py_XDECREF(value);
  }
  PyMem_Free(all);
  return dict;
}

#define FAST(f) ((PyCFunction)(void (*)(void))(f))
static PyMethodDef allocator_methods[] = {
    {"take", FAST(allocator_take), METH_FASTCALL,
     "take(nbytes, stream=0) -> int\n\nAddress of at least nbytes bytes for work of the stream with this handle.  For "
     "callers that\n"
     "keep an address only; others use Device.allocate.\n\nRaises:\n    ArgumentError: nbytes < 1.  OutOfMemory: even "
     "after giving the "
     "cache back and asking again."},
    {"give", FAST(allocator_give), METH_FASTCALL,
     "give(address, users=())\n\nTakes back what take gave, whose queued work is in the streams with these handles.\n\n"
     "Raises:\n    InvalidHandle: it is not from take, or given twice."},
    {"order", FAST(allocator_order), METH_FASTCALL,
     "order(users, stream)\n\nMakes later work of the stream (0: the host) wait for what the streams `users` have "
     "queued."},
    {"stream_opened", allocator_opened, METH_O, "stream_opened(handle): to be called once a stream was made."},
    {"stream_close", allocator_close, METH_O,
     "stream_close(handle)\n\nDestroys a stream without queued work: its blocks are anyone's."},
    {"stats", allocator_stats, METH_NOARGS,
     "Bytes and counts: live, cached, peak (of live), reserved (live + cached), allocations, hits (no memory of the "
     "driver\n"
     "needed), segments, oom_retries (asked again after giving the cache back)."},
    {"trim", allocator_trim, METH_NOARGS,
     "Waits for the device and gives every unused segment back to the driver; returns how many bytes."},
    {0}};
static PyGetSetDef allocator_getset[] = {
    {"_segments", allocator_segments, NULL, "Bytes by address of each segment.", NULL}, {0}};
PyTypeObject haian_allocator_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "haian.hal.memory.Allocator",
    .tp_basicsize = sizeof(allocator),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc =
        "Caches the memory of one device.  Thread-safe.  Use Device.allocate.\n\n"
        "A block freed by work of stream A is reused on A without waiting; on B only after a mark in A, made on B's "
        "first\n"
        "request for it, has passed: so a program with one stream never makes an event.",
    .tp_new = allocator_new,
    .tp_dealloc = allocator_dealloc,
    .tp_methods = allocator_methods,
    .tp_getset = allocator_getset};

int haian_init_cache(PyObject *module) {
  for (int i = 0; i < N_CALLS; i++)
    if (!(names[i] = PyUnicode_InternFromString(call_names[i]))) return -1;
  name_code = PyUnicode_InternFromString("code");
  if (!name_code || PyType_Ready(&haian_allocator_type)) return -1;
  if (PyModule_AddObjectRef(module, "Allocator", (PyObject *)&haian_allocator_type)) return -1;
  return haian_init_buffer(module);
}
