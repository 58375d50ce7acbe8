/* haian._native.DriverTable: the calls of a driver in C that happen often, straight from Python to its function pointers.
 *
 * The rest of a table is called through cffi (hal/c_driver.py).  Python's handles carry the device in bits 56 to 63, which
 * the contract keeps 0 in the driver's own; so a handle alone says where it belongs.  Measured with the smallest driver:
 * event_query 30 ns, against 267 ns for a function pointer cached in cffi.  Every call that may wait for a stream gives up the
 * GIL, since that stream's host functions need it. */
#include "py_tensor.h" /* Python.h comes before the standard headers */

#include "hal_table.h"
#include <stddef.h>
#include <string.h>
#include <structmember.h>

#define QUICK_BYTES 4096 /* copied in less time than the GIL takes to change hands twice */

typedef struct {
  PyObject_HEAD const hal_adapter *adapter;
  char name[32];
  int inline_copies; /* stream 0 is the host's own memory and waits for nobody: a small copy keeps the GIL */
  __typeof__(((hal_core *)0)->last_error) last_error;
  __typeof__(((hal_core *)0)->sync) sync;
  __typeof__(((hal_mem *)0)->alloc) alloc;
  __typeof__(((hal_mem *)0)->free) free;
  __typeof__(((hal_mem *)0)->copy) copy;
  __typeof__(((hal_mem *)0)->fill) fill;
  __typeof__(((hal_stream *)0)->sync) stream_sync;
  __typeof__(((hal_stream *)0)->query) stream_query;
  __typeof__(((hal_stream *)0)->wait_event) stream_wait_event;
  __typeof__(((hal_event *)0)->record) event_record;
  __typeof__(((hal_event *)0)->query) event_query;
  __typeof__(((hal_event *)0)->sync) event_sync;
  __typeof__(((hal_module *)0)->launch) launch;
} table_object;

static PyObject *fail(const table_object *t, const char *call, hal_status status) {
  char text[400] = "";
  if (t->last_error) t->last_error(text, sizeof text);
  text[sizeof text - 1] = 0;
  return haian_raise_text(status, "%s: %s: %s", t->name, call, text[0] ? text : "no message from the driver");
}

static PyObject *absent(const table_object *t, const char *call) {
  return haian_raise_text(HAL_UNSUPPORTED, "%s: no %s; the driver's table leaves it out", t->name, call);
}

/* Non-negative ints of up to three digits of 30 bits, read where they lie: PyLong_AsUnsignedLongLong goes through a byte
 * array, 20 ns an address. */
static inline int plain(PyObject *o, uint64_t *out) {
  if (!PyLong_CheckExact(o)) return 0;
#if PY_VERSION_HEX >= 0x030c0000
  const uintptr_t tag = ((PyLongObject *)o)->long_value.lv_tag;
  const digit *d = ((PyLongObject *)o)->long_value.ob_digit;
  const size_t n = (tag & 3) == 1 ? 0 : tag >> 3;
  if ((tag & 3) == 2) return 0;
#else
  const size_t n = (size_t)Py_SIZE(o); /* negative: huge */
  const digit *d = ((PyLongObject *)o)->ob_digit;
#endif
  if (n > 3 || (n == 3 && d[2] >> 4)) return 0;
  uint64_t v = 0;
  for (size_t i = n; i-- > 0;) v = v << 30 | d[i];
  *out = v;
  return 1;
}

/* A number that `plain` does not read.  A negative one passes where it is the driver's to refuse: a device, a time limit. */
__attribute__((noinline, cold)) static int odd_number(const table_object *t, const char *call, PyObject *o,
                                                      int negative, uint64_t *out) {
  if (!PyLong_Check(o)) {
    haian_raise_text(HAL_INVALID_ARGUMENT, "%s: %s: a %s came; needs a whole number", t->name, call,
                     Py_TYPE(o)->tp_name);
    return -1;
  }
  int beyond;
  const long long value = PyLong_AsLongLongAndOverflow(o, &beyond);
  *out = (uint64_t)value;
  if (!beyond && (value >= 0 || negative)) return 0;
  if (!beyond) {
    haian_raise_text(HAL_INVALID_ARGUMENT, "%s: %s: the negative number %lld came; needs 0 or more", t->name, call,
                     value);
    return -1;
  }
  *out = PyLong_AsUnsignedLongLong(o);
  if (!PyErr_Occurred()) return 0;
  PyErr_Clear();
  haian_raise_text(HAL_INVALID_ARGUMENT, "%s: %s: a number beyond 64 bits; needs one below 2^64", t->name, call);
  return -1;
}

/* `least` to `most` integers below 2^64; those that did not come are 0.  0 on success, else -1 with an exception. */
static inline int read_numbers(const table_object *t, const char *call, PyObject *const *args, Py_ssize_t n,
                               Py_ssize_t least, Py_ssize_t most, int negative, uint64_t *out) {
  if (n < least || n > most) {
    PyErr_Format(PyExc_TypeError, "%s: %s takes %zd to %zd arguments, %zd came", t->name, call, least, most, n);
    return -1;
  }
  for (Py_ssize_t i = 0; i < n; i++) {
    if (!plain(args[i], &out[i]) && odd_number(t, call, args[i], negative, &out[i])) return -1;
  }
  for (Py_ssize_t i = n; i < most; i++) out[i] = 0;
  return 0;
}
static int numbers(const table_object *t, const char *call, PyObject *const *args, Py_ssize_t n, Py_ssize_t least,
                   Py_ssize_t most, uint64_t *out) {
  return read_numbers(t, call, args, n, least, most, 1, out);
}
/* Exactly `n` of them, sizes and addresses. */
static int sizes_of(const table_object *t, const char *call, PyObject *const *args, Py_ssize_t n, uint64_t *out) {
  return read_numbers(t, call, args, n, n, n, 0, out);
}

/* Devices are int32: one beyond is refused here, since cut to 32 bits it would name another. */
__attribute__((noinline, cold)) static int beyond_32(const table_object *t, const char *call, const char *what,
                                                     uint64_t value, int is_signed) {
  if (is_signed)
    haian_raise_text(HAL_INVALID_ARGUMENT, "%s: %s: %s %lld; needs one that fits 32 bits", t->name, call, what,
                     (long long)value);
  else
    haian_raise_text(HAL_INVALID_ARGUMENT, "%s: %s: %llu %s; needs 0 to 2^32 - 1", t->name, call,
                     (unsigned long long)value, what);
  return -1;
}
static inline int device_fits(const table_object *t, const char *call, uint64_t device) {
  if (device + 0x80000000u <= UINT32_MAX) return 0;
  return beyond_32(t, call, "device", device, 1);
}

/* The driver's own number of a stream of `device`; -1 with an exception for another device's. */
static int own_stream(const table_object *t, const char *call, uint64_t device, uint64_t stream, uint64_t *raw) {
  if (stream && (uint64_t)DEVICE(stream) != device) {
    haian_raise_text(HAL_INVALID_HANDLE,
                     "%s: %s on device %lld with stream %#llx of device %d; use a stream of that device", t->name, call,
                     (long long)device, (unsigned long long)stream, DEVICE(stream));
    return -1;
  }
  *raw = RAW(stream);
  return 0;
}

/* ---- core and memory ------------------------------------------------------------------------------------------- */
static PyObject *table_sync(table_object *t, PyObject *const *args, Py_ssize_t n) {
  uint64_t v[1];
  if (numbers(t, "sync", args, n, 1, 1, v) || device_fits(t, "sync", v[0])) return NULL;
  hal_status status;
  Py_BEGIN_ALLOW_THREADS status = t->sync((int32_t)v[0]);
  Py_END_ALLOW_THREADS if (status) return fail(t, "sync", status);
  Py_RETURN_NONE;
}

static PyObject *table_alloc(table_object *t, PyObject *const *args, Py_ssize_t n) {
  uint64_t v[3];
  if (numbers(t, "alloc", args, n, 2, 3, v) || device_fits(t, "alloc", v[0])) return NULL;
  int beyond;
  if (PyLong_AsLongLongAndOverflow(args[1], &beyond) < 0 && beyond <= 0)
    return haian_raise_text(HAL_INVALID_ARGUMENT, "%s: alloc of %lld bytes; needs at least 1", t->name,
                            (long long)v[1]);
  hal_alloc_desc desc = {sizeof desc, HAL_MEM_DEVICE, v[1], v[2], 0, 0};
  hal_dptr out = 0;
  hal_status status;
  Py_BEGIN_ALLOW_THREADS status = t->alloc((int32_t)v[0], &desc, &out);
  Py_END_ALLOW_THREADS if (status) return fail(t, "alloc", status);
  if (!out)
    return haian_raise_text(
        HAL_INTERNAL, "%s: alloc of %llu bytes succeeded and gave address 0; needs one above 0, or HAL_OUT_OF_MEMORY",
        t->name, (unsigned long long)v[1]);
  return PyLong_FromUnsignedLongLong(out);
}

static PyObject *table_free(table_object *t, PyObject *const *args, Py_ssize_t n) {
  uint64_t v[2];
  if (numbers(t, "free", args, n, 2, 2, v) || device_fits(t, "free", v[0])) return NULL;
  hal_status status;
  Py_BEGIN_ALLOW_THREADS status = t->free((int32_t)v[0], v[1]);
  Py_END_ALLOW_THREADS if (status) return fail(t, "free", status);
  Py_RETURN_NONE;
}

static PyObject *kinds[4]; /* "h2d", ..., interned like the constants of hal/driver.py: most calls compare pointers */

static int kind_of(PyObject *kind) {
  for (int i = 0; i < 4; i++)
    if (kind == kinds[i]) return i;
  for (int i = 0; PyUnicode_Check(kind) && i < 4; i++)
    if (PyUnicode_Compare(kind, kinds[i]) == 0) return i;
  return -1;
}

/* copy(device, desc, stream=0): desc is a hal.driver.Copy, a tuple
 * (kind, dst, src, nbytes, rows, dst_pitch, src_pitch, dst_device). */
static PyObject *table_copy(table_object *t, PyObject *const *args, Py_ssize_t n) {
  if (n < 2 || n > 3 || !PyTuple_Check(args[1]) || PyTuple_GET_SIZE(args[1]) != 8) {
    PyErr_Format(PyExc_TypeError, "%s: copy takes a device, a Copy and a stream", t->name);
    return NULL;
  }
  PyObject *const *field = ((PyTupleObject *)args[1])->ob_item;
  const int kind = kind_of(field[0]);
  if (kind < 0) {
    const char *said = PyUnicode_Check(field[0]) ? PyUnicode_AsUTF8(field[0]) : Py_TYPE(field[0])->tp_name;
    if (!said) PyErr_Clear(); /* a lone surrogate has no UTF-8 */
    return haian_raise_text(HAL_INVALID_ARGUMENT, "%s: copy kind %s; one of h2d, d2h, d2d, peer", t->name,
                            said ? said : "that is no text");
  }
  uint64_t where[2] = {0, 0}, v[7], raw;
  PyObject *const place[2] = {args[0], n > 2 ? args[2] : NULL};
  if (numbers(t, "copy", place, n > 2 ? 2 : 1, 1, 2, where) || sizes_of(t, "copy", field + 1, 6, v)) return NULL;
  if (device_fits(t, "copy", where[0]) || own_stream(t, "copy", where[0], where[1], &raw)) return NULL;
  /* -1 in all other copies: not read, since a negative number costs 150 ns */
  if (kind == HAL_COPY_PEER && (numbers(t, "copy", field + 7, 1, 1, 1, v + 6) || device_fits(t, "copy", v[6])))
    return NULL;
  const int32_t device = (int32_t)where[0];
  hal_copy_desc desc = {sizeof desc,
                        (uint32_t)kind,
                        v[0],
                        v[1],
                        v[2],
                        v[3],
                        v[4],
                        v[5],
                        kind == HAL_COPY_PEER ? (int32_t)v[6] : device,
                        device,
                        0,
                        0};
  hal_status status;
  if (t->inline_copies && !raw && desc.rows == 1 && desc.bytes <= QUICK_BYTES) {
    status = t->copy(device, raw, &desc);
  } else {
    Py_BEGIN_ALLOW_THREADS status = t->copy(device, raw, &desc);
    Py_END_ALLOW_THREADS
  }
  if (status) return fail(t, "copy", status);
  Py_RETURN_NONE;
}

/* ---- streams and events ------------------------------------------------------------------------------------------ */
#define HANDLES(call, least, most)       \
  uint64_t v[3];                         \
  if (!t->call) return absent(t, #call); \
  if (numbers(t, #call, args, n, least, most, v)) return NULL;

static PyObject *answer(table_object *t, const char *call, hal_status status) {
  if (status == HAL_OK) Py_RETURN_TRUE;
  if (status == HAL_NOT_READY) Py_RETURN_FALSE;
  return fail(t, call, status);
}

static PyObject *table_stream_sync(table_object *t, PyObject *const *args, Py_ssize_t n) {
  HANDLES(stream_sync, 1, 1)
  hal_status status;
  Py_BEGIN_ALLOW_THREADS status = t->stream_sync(DEVICE(v[0]), RAW(v[0]));
  Py_END_ALLOW_THREADS if (status) return fail(t, "stream_sync", status);
  Py_RETURN_NONE;
}

static PyObject *table_stream_query(table_object *t, PyObject *arg) {
  PyObject *const args[1] = {arg};
  const Py_ssize_t n = 1;
  HANDLES(stream_query, 1, 1)
  return answer(t, "stream_query", t->stream_query(DEVICE(v[0]), RAW(v[0])));
}

static PyObject *table_event_query(table_object *t, PyObject *arg) {
  PyObject *const args[1] = {arg};
  const Py_ssize_t n = 1;
  HANDLES(event_query, 1, 1)
  return answer(t, "event_query", t->event_query(DEVICE(v[0]), RAW(v[0])));
}

static PyObject *table_stream_wait_event(table_object *t, PyObject *const *args, Py_ssize_t n) {
  HANDLES(stream_wait_event, 2, 2)
  if (DEVICE(v[0]) != DEVICE(v[1]))
    return haian_raise_text(HAL_INVALID_HANDLE,
                            "%s: stream of device %d waits for an event of device %d; let the host wait", t->name,
                            DEVICE(v[0]), DEVICE(v[1]));
  hal_status status;
  Py_BEGIN_ALLOW_THREADS status = t->stream_wait_event(DEVICE(v[0]), RAW(v[0]), RAW(v[1]));
  Py_END_ALLOW_THREADS if (status) return fail(t, "stream_wait_event", status);
  Py_RETURN_NONE;
}

static PyObject *table_event_record(table_object *t, PyObject *const *args, Py_ssize_t n) {
  HANDLES(event_record, 2, 2)
  uint64_t raw;
  if (own_stream(t, "event_record", (uint64_t)DEVICE(v[0]), v[1], &raw)) return NULL;
  hal_status status;
  Py_BEGIN_ALLOW_THREADS status = t->event_record(DEVICE(v[0]), RAW(v[0]), raw);
  Py_END_ALLOW_THREADS if (status) return fail(t, "event_record", status);
  Py_RETURN_NONE;
}

static PyObject *table_event_sync(table_object *t, PyObject *const *args, Py_ssize_t n) {
  HANDLES(event_sync, 1, 2)
  const int64_t timeout = n > 1 ? (int64_t)v[1] : -1;
  hal_status status;
  Py_BEGIN_ALLOW_THREADS status = t->event_sync(DEVICE(v[0]), RAW(v[0]), timeout);
  Py_END_ALLOW_THREADS if (status) return fail(t, "event_sync", status);
  Py_RETURN_NONE;
}

/* ---- launch ------------------------------------------------------------------------------------------------------ */
/* 0, -1 with an exception, or -2 for a type that is none. */
static int pack(const char *type, PyObject *value, haian_cell *cell, uint32_t *size, hal_dtype *code) {
  const char kind = haian_argument_type(type, size, code);
  if (!kind) return -2;
  if (kind == 'p') {
    cell->u = PyLong_AsUnsignedLongLong(value);
  } else if (kind == 'i') {
    cell->u = PyLong_AsUnsignedLongLongMask(value);
  } else {
    const double d = PyFloat_AsDouble(value);
    if (kind == 'f') cell->f = (float)d;
    else cell->d = d;
  }
  return PyErr_Occurred() ? -1 : 0;
}

/* launch(device, desc, stream=0): desc is a hal.driver.Launch, a tuple (kernel, grid, threads, shared_bytes, args, cluster). */
static PyObject *table_launch(table_object *t, PyObject *const *args, Py_ssize_t n) {
  if (!t->launch) return absent(t, "launch");
  if (n < 2 || n > 3 || !PyTuple_Check(args[1]) || PyTuple_GET_SIZE(args[1]) != 6) {
    PyErr_Format(PyExc_TypeError, "%s: launch takes a device, a Launch and a stream", t->name);
    return NULL;
  }
  PyObject *const *field = ((PyTupleObject *)args[1])->ob_item;
  uint64_t where[2] = {0, 0}, head[3], raw;
  PyObject *const place[2] = {args[0], n > 2 ? args[2] : NULL};
  PyObject *const first[3] = {field[0], field[2], field[3]};
  if (numbers(t, "launch", place, n > 2 ? 2 : 1, 1, 2, where) || sizes_of(t, "launch", first, 3, head)) return NULL;
  if (device_fits(t, "launch", where[0]) || own_stream(t, "launch", where[0], where[1], &raw)) return NULL;
  if ((uint64_t)DEVICE(head[0]) != where[0])
    return haian_raise_text(HAL_INVALID_HANDLE,
                            "%s: launch on device %lld of kernel %#llx of device %d; load the module there", t->name,
                            (long long)where[0], (unsigned long long)head[0], DEVICE(head[0]));
  if ((head[1] | head[2]) > UINT32_MAX) {
    const int threads = head[1] > UINT32_MAX;
    beyond_32(t, "launch", threads ? "threads" : "bytes of shared memory", head[threads ? 1 : 2], 0);
    return NULL;
  }
  hal_launch_desc desc = {.struct_size = sizeof desc,
                          .kernel = RAW(head[0]),
                          .threads = (uint32_t)head[1],
                          .shared_bytes = (uint32_t)head[2]};
  PyObject *const triples[2] = {field[1], field[5]};
  for (int k = 0; k < 2; k++) {
    uint32_t *to = k ? desc.cluster : desc.grid;
    if (!PyTuple_Check(triples[k]) || PyTuple_GET_SIZE(triples[k]) != 3)
      return haian_raise_text(HAL_INVALID_ARGUMENT, "%s: launch with a grid or cluster that is no tuple of three",
                              t->name);
    for (int i = 0; i < 3; i++) {
      const long long size = PyLong_AsLongLong(PyTuple_GET_ITEM(triples[k], i));
      if (size == -1 && PyErr_Occurred()) return NULL;
      if (size < 0 || size > UINT32_MAX)
        return haian_raise_text(HAL_INVALID_ARGUMENT,
                                "%s: launch with a grid of %lld programs along an axis; needs 0 to 2^32 - 1", t->name,
                                size);
      to[i] = (uint32_t)size;
    }
  }
  PyObject *list = PySequence_Fast(field[4], "launch: args must be a sequence of (type, value) pairs");
  if (list && PyList_Check(list)) Py_SETREF(list, PyList_AsTuple(list)); /* a value's __float__ may change the list */
  if (!list) return NULL;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(list);
  haian_cell cells[HAIAN_LAUNCH_ARGS];
  const void *pointers[HAIAN_LAUNCH_ARGS];
  uint32_t sizes[HAIAN_LAUNCH_ARGS];
  hal_dtype types[HAIAN_LAUNCH_ARGS];
  PyObject *error = NULL;
  if (count > HAIAN_LAUNCH_ARGS) {
    Py_DECREF(list);
    return haian_raise_text(HAL_INVALID_ARGUMENT, "%s: launch with %zd arguments; at most %d", t->name, count,
                            HAIAN_LAUNCH_ARGS);
  }
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *pair = PySequence_Fast_GET_ITEM(list, i);
    const char *type =
        PyTuple_Check(pair) && PyTuple_GET_SIZE(pair) == 2 ? PyUnicode_AsUTF8(PyTuple_GET_ITEM(pair, 0)) : NULL;
    if (!type) PyErr_Clear();
    const int bad = type ? pack(type, PyTuple_GET_ITEM(pair, 1), &cells[i], &sizes[i], &types[i]) : -2;
    if (bad) {
      if (bad == -2 && !PyErr_Occurred())
        haian_raise_text(HAL_INVALID_ARGUMENT, "%s: launch: argument %zd is no (type, value) pair such as ('i32', 7)",
                         t->name, i);
      Py_DECREF(list);
      return error;
    }
    pointers[i] = &cells[i];
  }
  Py_DECREF(list);
  desc.arg_count = (uint32_t)count;
  desc.args = pointers, desc.arg_sizes = sizes, desc.arg_types = types;
  hal_status status;
  Py_BEGIN_ALLOW_THREADS status = t->launch((int32_t)where[0], raw, &desc);
  Py_END_ALLOW_THREADS if (status) return fail(t, "launch", status);
  Py_RETURN_NONE;
}

/* ---- the type ---------------------------------------------------------------------------------------------------- */
static PyObject *table_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  unsigned long long address;
  static char *names[] = {"address", NULL};
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K", names, &address)) return NULL;
  const hal_adapter *a = (const hal_adapter *)(uintptr_t)address;
  if (!HAS(a, core) || !HAS(a, mem))
    return haian_raise_text(HAL_INVALID_ARGUMENT, "DriverTable: the adapter has no core or mem group");
  table_object *t = (table_object *)type->tp_alloc(type, 0);
  if (!t) return NULL;
  t->adapter = a;
  snprintf(t->name, sizeof t->name, "%s", HAS(a, name) ? a->name : "?");
  t->last_error = GET(a->core, last_error), t->sync = GET(a->core, sync);
  t->alloc = GET(a->mem, alloc), t->free = GET(a->mem, free), t->copy = GET(a->mem, copy), t->fill = GET(a->mem, fill);
  const hal_stream *stream = GET(a, stream);
  const hal_event *event = GET(a, event);
  const hal_module *module = GET(a, module);
  t->stream_sync = GET(stream, sync), t->stream_query = GET(stream, query),
  t->stream_wait_event = GET(stream, wait_event);
  t->event_record = GET(event, record), t->event_query = GET(event, query), t->event_sync = GET(event, sync);
  t->launch = GET(module, launch);
  if (!t->sync || !t->alloc || !t->free || !t->copy) {
    haian_raise_text(HAL_INVALID_ARGUMENT,
                     "%s: a required function is missing; core needs sync, mem needs alloc, free and copy", t->name);
    Py_DECREF(t);
    return NULL;
  }
  return (PyObject *)t;
}

static PyObject *table_address(table_object *t, void *closure) {
  (void)closure;
  return PyLong_FromUnsignedLongLong((uintptr_t)t->adapter);
}

#define FAST(name, doc) {#name, (PyCFunction)(void (*)(void))table_##name, METH_FASTCALL, doc}
static PyMethodDef methods[] = {
    FAST(sync, "sync(device)"),
    FAST(alloc, "alloc(device, nbytes, align=0) -> address"),
    FAST(free, "free(device, address)"),
    FAST(copy, "copy(device, desc, stream=0)"),
    FAST(stream_sync, "stream_sync(stream)"),
    {"stream_query", (PyCFunction)table_stream_query, METH_O, "stream_query(stream) -> bool"},
    FAST(stream_wait_event, "stream_wait_event(stream, event)"),
    FAST(event_record, "event_record(event, stream)"),
    {"event_query", (PyCFunction)table_event_query, METH_O, "event_query(event) -> bool"},
    FAST(event_sync, "event_sync(event, timeout_ns=-1)"),
    FAST(launch, "launch(device, desc, stream=0)"),
    {NULL, NULL, 0, NULL}};
static PyMemberDef members[] = {
    {"inline_copies", T_INT, offsetof(table_object, inline_copies), 0,
     "Whether copies on stream 0 wait for nobody (set by hal/c_driver.py from the capabilities)."},
    {NULL, 0, 0, 0, NULL}};
static PyGetSetDef getset[] = {{"address", (getter)table_address, NULL, "Address of the hal_adapter.", NULL},
                               {NULL, NULL, NULL, NULL, NULL}};

static PyTypeObject table_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "haian._native.DriverTable",
    .tp_doc = "The often called functions of a driver in C: DriverTable(address of its hal_adapter).",
    .tp_basicsize = sizeof(table_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = table_new,
    .tp_methods = methods,
    .tp_getset = getset,
    .tp_members = members,
};

int haian_init_driver(PyObject *module) {
  static const char *const names[] = {"h2d", "d2h", "d2d", "peer"};
  for (int i = 0; i < 4; i++)
    if (!(kinds[i] = PyUnicode_InternFromString(names[i]))) return -1;
  if (PyType_Ready(&table_type)) return -1;
  return PyModule_AddObjectRef(module, "DriverTable", (PyObject *)&table_type);
}
