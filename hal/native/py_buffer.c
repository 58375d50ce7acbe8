/* haian._native.Buffer: bytes on a device, from its Allocator (py_cache.c), and the streams that use them.
 *
 * Buffer(device, nbytes, stream) and its end are a hot pair: headers are recycled, and the handle of the stream is kept
 * with a weak reference to it, since fetching stream.device and stream.handle costs as much as the allocation.
 * The type is not tracked by the cycle collector: what a buffer refers to (device, allocator) refers to no buffer. */
#include "py_cache.h"

#include <string.h>
#include <structmember.h>

#if PY_VERSION_HEX < 0x030D0000
#define Py_BEGIN_CRITICAL_SECTION(o) {
#define Py_END_CRITICAL_SECTION() }
#endif

enum { N_SPARE = 256, N_INLINE = 2 };
static PyObject *name_allocator, *name_device, *name_handle, *name_name;

static PyObject *buffer_repr(PyObject *self);

/* A stream whose queued work uses the bytes; after: that work comes after the latest write; mark: the buffer's clock when
 * the stream last said so. */
typedef struct user {
  uint64_t stream;
  int after;
  uint32_t mark;
} user;

typedef struct buffer {
  PyObject_HEAD PyObject *device;
  allocator *allocator;
  haian_cache_block *block; /* NULL: freed */
  uint64_t address, nbytes, writer;
  uint32_t n_users, room, clock; /* clock: writes that had others to wait for */
  user *users;                   /* own, or more on the heap */
  user own[N_INLINE];
} buffer;

#ifndef Py_GIL_DISABLED
static buffer *spare[N_SPARE];
static int n_spare;
#endif

static PyObject *referent(PyObject *ref) { /* borrowed: only for comparing */
#if PY_VERSION_HEX < 0x030D0000
  return PyWeakref_GET_OBJECT(ref);
#else
  PyObject *o = NULL;
  PyWeakref_GetRef(ref, &o);
  Py_XDECREF(o);
  return o;
#endif
}

/* The stream's handle, where it is of this device; -1 with an exception. */
static int handle_of(allocator *a, PyObject *device, PyObject *stream, uint64_t *handle) {
#ifndef Py_GIL_DISABLED
  const unsigned slot = (unsigned)((uintptr_t)stream >> 5) % N_SEEN;
  if (a->seen[slot].ref && referent(a->seen[slot].ref) == stream) {
    *handle = a->seen[slot].handle;
    return 0;
  }
#endif
  PyObject *of = PyObject_GetAttr(stream, name_device);
  if (!of) return -1;
  const int same = of == device ? 1 : PyObject_RichCompareBool(of, device, Py_EQ);
  if (same == 0) {
    PyObject *here = PyObject_GetAttr(device, name_name), *there = PyObject_GetAttr(of, name_name);
    PyObject *text = here && there
                         ? PyUnicode_FromFormat("%U: memory for a stream of %U; use a stream of %U", here, there, here)
                         : NULL;
    if (text) haian_raise_text(HAIAN_INVALID_ARGUMENT, "%s", PyUnicode_AsUTF8(text));
    Py_XDECREF(here);
    Py_XDECREF(there);
    Py_XDECREF(text);
  }
  Py_DECREF(of);
  if (same != 1) return -1;
  PyObject *number = PyObject_GetAttr(stream, name_handle);
  const int bad = !number || haian_read_u64(number, handle, 0, "stream.handle");
  Py_XDECREF(number);
  if (bad) return -1;
#ifndef Py_GIL_DISABLED
  PyObject *ref = PyWeakref_NewRef(stream, NULL);
  if (!ref) {
    PyErr_Clear(); /* a stream without weak references is asked each time */
    return 0;
  }
  a->seen[slot].handle = *handle;
  Py_XSETREF(a->seen[slot].ref, ref);
#endif
  return 0;
}

static void too_few(PyObject *device, long long nbytes) {
  PyObject *name = PyObject_GetAttr(device, name_name);
  if (name)
    haian_raise_text(HAIAN_INVALID_ARGUMENT, "%s: %lld bytes asked for; ask for at least 1", PyUnicode_AsUTF8(name),
                     nbytes);
  Py_XDECREF(name);
}

static PyObject *buffer_make(PyObject *type, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
  (void)type;
  uint64_t nbytes, stream;
  if (PyVectorcall_NARGS(nargsf) != 3 || kwnames)
    return PyErr_Format(PyExc_TypeError,
                        "Buffer(device, nbytes, stream): needs these three by position; use device.allocate");
  PyObject *device = args[0];
  PyObject *found = PyObject_GetAttr(device, name_allocator);
  if (!found) return NULL;
  if (Py_TYPE(found) != &haian_allocator_type) {
    PyErr_Format(PyExc_TypeError, "Buffer: device.allocator is a %s; needs haian's Allocator", Py_TYPE(found)->tp_name);
    Py_DECREF(found);
    return NULL;
  }
  allocator *a = (allocator *)found;
  haian_cache_block *block = NULL;
  if (!handle_of(a, device, args[2], &stream)) {
    int overflow;
    const long long n =
        PyLong_CheckExact(args[1]) ? PyLong_AsLongLongAndOverflow(args[1], &overflow) : (overflow = 1, 0);
    if (!overflow && n > 0) nbytes = (uint64_t)n;
    else if (!overflow) too_few(device, n);
    if (!PyErr_Occurred() && (!overflow || !haian_read_u64(args[1], &nbytes, 1, "nbytes")))
      block = haian_allocator_take(a, nbytes, stream);
  }
  buffer *b = NULL;
  if (block) {
#ifndef Py_GIL_DISABLED
    if (n_spare) {
      b = spare[--n_spare];
      PyObject_Init((PyObject *)b, &haian_buffer_type);
    } else
#endif
      b = PyObject_New(buffer, &haian_buffer_type);
    if (!b) haian_cache_give(a->cache, block, &stream, 1);
  }
  if (!b) {
    Py_DECREF(found);
    return NULL;
  }
  b->device = Py_NewRef(device);
  b->allocator = a;
  b->block = block;
  b->address = block->address;
  b->nbytes = nbytes;
  b->writer = stream;
  b->n_users = 1;
  b->room = N_INLINE;
  b->clock = 0;
  b->users = b->own;
  b->own[0] = (user){stream, 1, 0};
  return (PyObject *)b;
}

/* Gives the block back; 0 where that was done before. */
static int give_back(buffer *b) {
  haian_cache_block *block = NULL;
  uint64_t few[8], *handles = few;
  uint32_t n = 0;
  Py_BEGIN_CRITICAL_SECTION(b);
  block = b->block;
  b->block = NULL;
  n = b->n_users;
  if (n > 8) handles = malloc(sizeof *handles * n);
  if (!handles) { /* (8 streams' marks are lost only where the host has no memory at all) */
    handles = few;
    n = 8;
  }
  for (uint32_t i = 0; i < n; i++) handles[i] = b->users[i].stream;
  Py_END_CRITICAL_SECTION();
  if (block) haian_cache_give(b->allocator->cache, block, handles, n);
  if (handles != few) free(handles);
  return block != NULL;
}

static void buffer_dealloc(PyObject *self) {
  buffer *b = (buffer *)self;
  if (b->block) {
    if (b->n_users == 1) haian_cache_give(b->allocator->cache, b->block, &b->users[0].stream, 1);
    else give_back(b);
  }
  if (b->users != b->own) PyMem_Free(b->users);
  PyObject *device = b->device;
  allocator *a = b->allocator;
#ifndef Py_GIL_DISABLED
  if (n_spare < N_SPARE) spare[n_spare++] = b;
  else
#endif
    PyObject_Free(b);
  Py_DECREF(a);
  Py_DECREF(device);
}

/* In the critical section. */
static user *user_find(buffer *b, uint64_t stream) {
  for (uint32_t i = 0; i < b->n_users; i++)
    if (b->users[i].stream == stream) return &b->users[i];
  return NULL;
}
static int user_set(buffer *b, uint64_t stream, int after, int keep) {
  user *u = user_find(b, stream);
  if (u) {
    if (!keep) u->after = after;
    u->mark = b->clock;
    return 0;
  }
  if (b->n_users == b->room) {
    user *more = PyMem_Malloc(sizeof *more * 2 * b->room);
    if (!more) return -1;
    memcpy(more, b->users, sizeof *more * b->n_users);
    if (b->users != b->own) PyMem_Free(b->users);
    b->users = more;
    b->room *= 2;
  }
  b->users[b->n_users++] = (user){stream, after, b->clock};
  return 0;
}

/* What a freed buffer no longer has. */
__attribute__((noinline, cold)) static PyObject *freed(PyObject *self, const char *what) {
  PyObject *text = buffer_repr(self);
  if (text) haian_raise_text(HAIAN_INVALID_HANDLE, "%s: %s; allocate another", PyUnicode_AsUTF8(text), what);
  Py_XDECREF(text);
  return NULL;
}

static PyObject *buffer_used_on(PyObject *self, PyObject *stream) {
  uint64_t handle;
  if (!((buffer *)self)->block) return freed(self, "its bytes may be another's, no stream can use them");
  PyObject *number = PyObject_GetAttr(stream, name_handle);
  if (!number && PyErr_ExceptionMatches(PyExc_AttributeError)) {
    PyErr_Clear();
    return haian_raise_text(HAIAN_INVALID_ARGUMENT, "used_on: a %s came; needs a stream", Py_TYPE(stream)->tp_name);
  }
  const int bad = !number || haian_read_u64(number, &handle, 0, "stream.handle");
  Py_XDECREF(number);
  if (bad) return NULL;
  int failed;
  Py_BEGIN_CRITICAL_SECTION(self);
  failed = user_set((buffer *)self, handle, 0, 1);
  Py_END_CRITICAL_SECTION();
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

static PyObject *buffer_reads(PyObject *self, PyObject *arg) {
  buffer *b = (buffer *)self;
  uint64_t handle, writer;
  int done, failed;
  if (haian_read_u64(arg, &handle, 0, "stream")) return NULL;
  Py_BEGIN_CRITICAL_SECTION(self);
  user *u = user_find(b, handle);
  done = u && u->after;
  if (done) u->mark = b->clock;
  writer = b->writer;
  Py_END_CRITICAL_SECTION();
  if (done) Py_RETURN_NONE;
  if (haian_allocator_order(b->allocator, &writer, 1, handle)) return NULL;
  Py_BEGIN_CRITICAL_SECTION(self);
  failed = user_set(b, handle, b->writer == writer,
                    0); /* another may have written meanwhile: then this comes after the one before */
  Py_END_CRITICAL_SECTION();
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

static PyObject *buffer_writes(PyObject *self, PyObject *arg) {
  buffer *b = (buffer *)self;
  uint64_t handle, *users = NULL;
  uint32_t n, start = 0;
  if (haian_read_u64(arg, &handle, 0, "stream")) return NULL;
  Py_BEGIN_CRITICAL_SECTION(self);
  n = b->n_users == 1 && b->users[0].stream == handle ? 0 : b->n_users;
  if (!n) {
    b->writer = handle;
    b->users[0].mark = b->clock;
  } else {
    start = ++b->clock;
    users = PyMem_Malloc(sizeof *users * n);
    for (uint32_t i = 0; users && i < n; i++) users[i] = b->users[i].stream;
  }
  Py_END_CRITICAL_SECTION();
  if (!n) Py_RETURN_NONE;
  if (!users) return PyErr_NoMemory();
  const int bad = haian_allocator_order(b->allocator, users, n, handle);
  PyMem_Free(users);
  if (bad) return NULL;
  int failed;
  Py_BEGIN_CRITICAL_SECTION(self);
  uint32_t kept = 0; /* whoever came while this thread waited in the driver: the write does not come after that work */
  for (uint32_t i = 0; i < b->n_users; i++)
    if ((int32_t)(b->users[i].mark - start) >= 0) b->users[kept++] = (user){b->users[i].stream, 0, b->users[i].mark};
  b->n_users = kept;
  failed = user_set(b, handle, 1, 0);
  b->writer = handle;
  Py_END_CRITICAL_SECTION();
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

static PyObject *buffer_repr(PyObject *self) {
  buffer *b = (buffer *)self;
  PyObject *name = PyObject_GetAttr(b->device, name_name);
  char at[32];
  snprintf(at, sizeof at, "%#llx", (unsigned long long)b->address);
  PyObject *text = name ? PyUnicode_FromFormat("<haian buffer of %llu bytes at %s on %S%s>",
                                               (unsigned long long)b->nbytes, at, name, b->block ? "" : ", freed")
                        : NULL;
  Py_XDECREF(name);
  return text;
}

static PyObject *buffer_free(PyObject *self, PyObject *none) {
  (void)none;
  if (give_back((buffer *)self)) Py_RETURN_NONE;
  PyObject *text = buffer_repr(self);
  if (!text) return NULL;
  haian_raise_text(HAIAN_INVALID_HANDLE, "%s: freed twice; drop the second call", PyUnicode_AsUTF8(text));
  Py_DECREF(text);
  return NULL;
}

static PyObject *buffer_address(PyObject *self, void *closure) {
  (void)closure;
  if (!((buffer *)self)->block) return freed(self, "it has no address any more");
  return PyLong_FromUnsignedLongLong(((buffer *)self)->address);
}
static PyObject *buffer_alive(PyObject *self, void *closure) {
  (void)closure;
  return PyBool_FromLong(((buffer *)self)->block != NULL);
}
static PyObject *buffer_users(PyObject *self, void *closure) {
  (void)closure;
  buffer *b = (buffer *)self;
  PyObject *list = PyList_New(0);
  Py_BEGIN_CRITICAL_SECTION(self);
  for (uint32_t i = 0; list && i < b->n_users; i++) {
    PyObject *number = PyLong_FromUnsignedLongLong(b->users[i].stream);
    if (!number || PyList_Append(list, number)) Py_CLEAR(list);
    Py_XDECREF(number);
  }
  Py_END_CRITICAL_SECTION();
  return list;
}

static PyMethodDef buffer_methods[] = {
    {"used_on", buffer_used_on, METH_O,
     "used_on(stream)\n\nSays that work queued in the stream uses these bytes, so that they are not reused before it "
     "has passed.\n\n"
     "Order is the caller's business here; hal.memory.use does both."},
    {"free", buffer_free, METH_NOARGS,
     "Gives the bytes back before the last reference goes; a second call is an InvalidHandle."},
    {"_reads", buffer_reads, METH_O,
     "_reads(handle): work to be queued in the stream reads the bytes (hal.memory.use)."},
    {"_writes", buffer_writes, METH_O,
     "_writes(handle): work to be queued in the stream writes the bytes (hal.memory.use)."},
    {0}};
static PyMemberDef buffer_members[] = {{"device", T_OBJECT_EX, offsetof(buffer, device), READONLY, "Where."},
                                       {"nbytes", T_ULONGLONG, offsetof(buffer, nbytes), READONLY, "As asked for."},
                                       {0}};
static PyGetSetDef buffer_getset[] = {
    {"address", buffer_address, NULL,
     "Of the first byte; aligned to the device's align_bytes.  InvalidHandle once the buffer was freed.", NULL},
    {"alive", buffer_alive, NULL, "Whether the bytes are still this buffer's.", NULL},
    {"_users", buffer_users, NULL, "Handles of the streams whose queued work uses the bytes.", NULL},
    {0}};
PyTypeObject haian_buffer_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "haian.hal.memory.Buffer",
    .tp_basicsize = sizeof(buffer),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "nbytes bytes on a device; freed when no longer referenced.  Made by Device.allocate.",
    .tp_dealloc = buffer_dealloc,
    .tp_repr = buffer_repr,
    .tp_vectorcall = buffer_make,
    .tp_methods = buffer_methods,
    .tp_members = buffer_members,
    .tp_getset = buffer_getset};

int haian_init_buffer(PyObject *module) {
  name_allocator = PyUnicode_InternFromString("allocator");
  name_device = PyUnicode_InternFromString("device");
  name_handle = PyUnicode_InternFromString("handle");
  name_name = PyUnicode_InternFromString("name");
  if (!name_allocator || !name_device || !name_handle || !name_name || PyType_Ready(&haian_buffer_type)) return -1;
  return PyModule_AddObjectRef(module, "Buffer", (PyObject *)&haian_buffer_type);
}
