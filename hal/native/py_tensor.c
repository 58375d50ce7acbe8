/* haian.Tensor: the hot half of the type (fields, buffer protocol, views).  The cold half is hal/tensor.py. */
#include "py_tensor.h"

#include <stdarg.h>
#include <structmember.h>

PyTypeObject *haian_tensor_type;
PyObject *haian_dtypes[32];
static PyObject *error_from_code; /* hal.errors.from_code */

/* Headers are recycled: building one through the allocator costs about 25 ns of a 60 ns call. */
enum { N_SPARE = 128 };
static haian_py_tensor *spare[N_SPARE];
static int n_spare;

haian_py_tensor *haian_tensor_new(void) {
  haian_py_tensor *t;
  if (n_spare) {
    t = spare[--n_spare];
    PyObject_Init((PyObject *)t, haian_tensor_type);
  } else {
    t = PyObject_New(haian_py_tensor, haian_tensor_type);
    if (!t) return NULL;
  }
  t->block = NULL;
  t->owner = NULL;
  t->readonly = 0;
  return t;
}

static void tensor_dealloc(PyObject *self) {
  haian_py_tensor *t = (haian_py_tensor *)self;
  if (t->block) haian_host_free(t->block, t->block_bytes);
  Py_CLEAR(t->owner);
  if (n_spare < N_SPARE) spare[n_spare++] = t;
  else PyObject_Free(t);
  Py_DECREF(haian_tensor_type);
}

void haian_tensor_finish(haian_tensor *t) {
  int64_t n = 1;
  int contiguous = 1;
  for (int i = t->ndim - 1; i >= 0; i--) {
    if (t->shape[i] != 1 && t->stride[i] != n) contiguous = 0;
    n *= t->shape[i];
  }
  t->numel = n;
  if (n <= 1) contiguous = 1;
  t->tag = (uint32_t)t->dtype | (uint32_t)t->ndim << 5 | (contiguous ? HAIAN_TAG_CONTIGUOUS : 0u) |
           (((uintptr_t)t->data & 63) == 0 ? HAIAN_TAG_ALIGNED : 0u) | (uint32_t)t->device << 11;
}

PyObject *haian_raise_text(int32_t status, const char *format, ...) {
  char text[512];
  va_list ap;
  va_start(ap, format);
  vsnprintf(text, sizeof text, format, ap);
  va_end(ap);
  if (!error_from_code) { /* native types may be used before hal/tensor.py is imported */
    PyObject *errors = PyImport_ImportModule("haian.hal.errors");
    error_from_code = errors ? PyObject_GetAttrString(errors, "from_code") : NULL;
    Py_XDECREF(errors);
    if (!error_from_code) return NULL;
  }
  PyObject *e = PyObject_CallFunction(error_from_code, "is", (int)status, text);
  if (e) {
    PyErr_SetObject((PyObject *)Py_TYPE(e), e);
    Py_DECREF(e);
  }
  return NULL;
}
PyObject *haian_raise(int32_t status) { return haian_raise_text(status, "%s", haian_last_error()); }

PyObject *haian_shape_tuple(const int64_t *v, int32_t n) {
  PyObject *tuple = PyTuple_New(n);
  for (int32_t i = 0; tuple && i < n; i++) {
    PyObject *item = PyLong_FromLongLong(v[i]);
    if (!item) {
      Py_DECREF(tuple);
      return NULL;
    }
    PyTuple_SET_ITEM(tuple, i, item);
  }
  return tuple;
}

int haian_read_ints(PyObject *seq, int64_t *out, int max, const char *what) {
  PyObject *fast = PySequence_Tuple(seq) /* a copy: an __index__ below may change a list */;
  if (!fast) return -1;
  Py_ssize_t n = PyTuple_GET_SIZE(fast);
  if (n > max) {
    haian_raise_text(HAIAN_SHAPE, "%s: %zd values; haian tensors have at most %d axes", what, n, max);
    Py_DECREF(fast);
    return -1;
  }
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject *index = PyNumber_Index(PyTuple_GET_ITEM(fast, i));
    out[i] = index ? PyLong_AsLongLong(index) : -1;
    Py_XDECREF(index);
    if (out[i] == -1 && PyErr_Occurred()) {
      if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        haian_raise_text(HAIAN_SHAPE, "%s: axis %zd has a size past 2^63; give a smaller one", what, i);
      }
      Py_DECREF(fast);
      return -1;
    }
  }
  Py_DECREF(fast);
  return (int)n;
}

/* The error of a shape that no tensor can have, or that no memory is left for (nbytes > 0). */
__attribute__((noinline, cold)) static haian_py_tensor *refuse_shape(PyObject *who, int32_t dtype, int32_t ndim,
                                                                     const int64_t *shape, int64_t nbytes) {
  PyObject *tuple = haian_shape_tuple(shape, ndim), *said = tuple ? PyObject_Repr(tuple) : NULL;
  const char *name = who ? PyUnicode_AsUTF8(who) : "empty", *text = said ? PyUnicode_AsUTF8(said) : NULL;
  const char *kind = haian_dtype_name(dtype);
  if (!name || !text) goto end;
  if (nbytes)
    haian_raise_text(HAIAN_OUT_OF_MEMORY,
                     "%s: %s of shape %s needs %lld bytes on cpu:0 and the system has none left; free tensors or use "
                     "smaller ones",
                     name, kind, text, (long long)nbytes);
  else
    haian_raise_text(HAIAN_SHAPE, "%s: %s of shape %s has a negative size or passes 2^63 bytes; give a shape that fits",
                     name, kind, text);
end:
  Py_XDECREF(tuple);
  Py_XDECREF(said);
  return NULL;
}

haian_py_tensor *haian_tensor_empty(int32_t dtype, int32_t ndim, const int64_t *shape, PyObject *who) {
  haian_py_tensor *r = haian_tensor_new();
  if (!r) return NULL;
  int64_t n = 1, item = haian_itemsize(dtype);
  int overflow = 0;
  for (int i = ndim - 1; i >= 0; i--) {
    r->t.shape[i] = shape[i];
    r->t.stride[i] = n;
    overflow |= shape[i] < 0;
    if (shape[i] != 0) overflow |= __builtin_mul_overflow(n, shape[i], &n);
  }
  int64_t numel = n, bytes;
  for (int i = 0; i < ndim; i++)
    if (shape[i] == 0) numel = 0;
  overflow |= __builtin_mul_overflow(n, item, &bytes);
  if (overflow) {
    Py_DECREF(r);
    return refuse_shape(who, dtype, ndim, shape, 0);
  }
  r->block_bytes = (size_t)(numel * item);
  r->block = haian_host_alloc(r->block_bytes);
  if (!r->block) {
    Py_DECREF(r);
    return refuse_shape(who, dtype, ndim, shape, numel * item);
  }
  r->t.data = r->block;
  r->t.numel = numel;
  r->t.dtype = dtype;
  r->t.ndim = ndim;
  r->t.device = 0;
  r->t.tag = (uint32_t)dtype | (uint32_t)ndim << 5 | HAIAN_TAG_CONTIGUOUS | HAIAN_TAG_ALIGNED;
  return r;
}

/* ---- attributes --------------------------------------------------------------------------------------------------- */
#define SELF(o) (&((haian_py_tensor *)(o))->t)
static PyObject *get_shape(PyObject *s, void *c) {
  (void)c;
  return haian_shape_tuple(SELF(s)->shape, SELF(s)->ndim);
}
static PyObject *get_strides(PyObject *s, void *c) {
  (void)c;
  return haian_shape_tuple(SELF(s)->stride, SELF(s)->ndim);
}
static PyObject *get_dtype(PyObject *s, void *c) {
  (void)c;
  PyObject *d = haian_dtypes[SELF(s)->dtype & 31];
  if (!d) return haian_raise_text(HAIAN_INTERNAL, "dtype table not set; import haian first");
  return Py_NewRef(d);
}
static PyObject *get_device_index(PyObject *s, void *c) {
  (void)c;
  return PyLong_FromLong(SELF(s)->device);
}
static PyObject *get_ndim(PyObject *s, void *c) {
  (void)c;
  return PyLong_FromLong(SELF(s)->ndim);
}
static PyObject *get_numel(PyObject *s, void *c) {
  (void)c;
  return PyLong_FromLongLong(SELF(s)->numel);
}
static PyObject *get_itemsize(PyObject *s, void *c) {
  (void)c;
  return PyLong_FromLong(haian_itemsize(SELF(s)->dtype));
}
static PyObject *get_nbytes(PyObject *s, void *c) {
  (void)c;
  return PyLong_FromLongLong(SELF(s)->numel * haian_itemsize(SELF(s)->dtype));
}
static PyObject *get_address(PyObject *s, void *c) {
  (void)c;
  return PyLong_FromUnsignedLongLong((uintptr_t)SELF(s)->data);
}
static PyObject *get_contiguous(PyObject *s, void *c) {
  (void)c;
  return PyBool_FromLong((SELF(s)->tag & HAIAN_TAG_CONTIGUOUS) != 0);
}
static PyObject *get_owner(PyObject *s, void *c) {
  (void)c;
  PyObject *o = ((haian_py_tensor *)s)->owner;
  return Py_NewRef(o ? o : Py_None);
}
static PyGetSetDef getset[] = {
    {"shape", get_shape, NULL, "Sizes, one an axis.", NULL},
    {"strides", get_strides, NULL, "Steps between neighbours in elements, one an axis.", NULL},
    {"dtype", get_dtype, NULL, "Element type (haian.float32, ...).", NULL},
    {"device_index", get_device_index, NULL, "Position in haian.devices(); 0 is the host.", NULL},
    {"ndim", get_ndim, NULL, "Number of axes.", NULL},
    {"numel", get_numel, NULL, "Number of elements.", NULL},
    {"itemsize", get_itemsize, NULL, "Bytes per element.", NULL},
    {"nbytes", get_nbytes, NULL, "Bytes of all elements.", NULL},
    {"address", get_address, NULL, "Address of element [0, ..., 0]: a host pointer or a device address.", NULL},
    {"is_contiguous", get_contiguous, NULL, "Whether elements lie in row-major order without gaps.", NULL},
    {"owner", get_owner, NULL, "Object that keeps the memory alive, None where the tensor does.", NULL},
    {0}};

/* ---- buffer protocol: host tensors of dtypes that have a struct code ------------------------------------------------ */
static const char *const format_of[HAIAN_DTYPE_END] = {
    [HAIAN_BOOL] = "?", [HAIAN_U8] = "B",  [HAIAN_U16] = "H",  [HAIAN_U32] = "I",  [HAIAN_U64] = "Q",
    [HAIAN_I8] = "b",   [HAIAN_I16] = "h", [HAIAN_I32] = "i",  [HAIAN_I64] = "q",  [HAIAN_F16] = "e",
    [HAIAN_F32] = "f",  [HAIAN_F64] = "d", [HAIAN_C64] = "Zf", [HAIAN_C128] = "Zd"};

static int tensor_getbuffer(PyObject *self, Py_buffer *view, int flags) {
  haian_tensor *t = SELF(self);
  view->obj = NULL;
  const char *format = format_of[t->dtype];
  if (t->device != 0 || !format) {
    PyObject *place = PyObject_GetAttrString(self, "device"),
             *name = place ? PyObject_GetAttrString(place, "name") : NULL;
    if (name)
      PyErr_Format(PyExc_BufferError, "a haian tensor of dtype %s on %U has no buffer; use .numpy()",
                   haian_dtype_name(t->dtype), name);
    Py_XDECREF(name);
    Py_XDECREF(place);
    return -1;
  }
  int contiguous = (t->tag & HAIAN_TAG_CONTIGUOUS) != 0;
  int long_axes = 0;
  for (int i = 0; i < t->ndim; i++) long_axes += t->shape[i] > 1;
  int by_columns =
      (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS && (flags & PyBUF_ANY_CONTIGUOUS) != PyBUF_ANY_CONTIGUOUS;
  if (by_columns && (!contiguous || long_axes > 1)) {
    PyErr_SetString(PyExc_BufferError, "the haian tensor is not column-major; ask for row-major or strided memory");
    return -1;
  }
  if ((flags & PyBUF_WRITABLE) && ((haian_py_tensor *)self)->readonly) {
    PyErr_SetString(PyExc_BufferError, "the haian tensor is read-only");
    return -1;
  }
  int packed =
      (flags & PyBUF_C_CONTIGUOUS) == PyBUF_C_CONTIGUOUS || (flags & PyBUF_ANY_CONTIGUOUS) == PyBUF_ANY_CONTIGUOUS;
  if (!contiguous && ((flags & PyBUF_STRIDES) != PyBUF_STRIDES || packed)) {
    PyErr_SetString(PyExc_BufferError, "the haian tensor is not contiguous; use .contiguous() first");
    return -1;
  }
  int64_t item = haian_itemsize(t->dtype);
  Py_ssize_t *dims = PyMem_Malloc(sizeof(Py_ssize_t) * 2 * HAIAN_MAX_RANK);
  if (!dims) {
    PyErr_NoMemory();
    return -1;
  }
  for (int i = 0; i < t->ndim; i++) {
    dims[i] = (Py_ssize_t)t->shape[i];
    dims[HAIAN_MAX_RANK + i] = (Py_ssize_t)(t->stride[i] * item);
  }
  view->buf = t->data;
  view->obj = Py_NewRef(self);
  view->len = (Py_ssize_t)(t->numel * item);
  view->readonly = ((haian_py_tensor *)self)->readonly;
  view->itemsize = (Py_ssize_t)item;
  view->format = (flags & PyBUF_FORMAT) ? (char *)format : NULL;
  view->ndim = t->ndim;
  view->shape = (flags & PyBUF_ND) ? dims : NULL;
  view->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? dims + HAIAN_MAX_RANK : NULL;
  view->suboffsets = NULL;
  view->internal = dims;
  return 0;
}
static void tensor_releasebuffer(PyObject *self, Py_buffer *view) {
  (void)self;
  PyMem_Free(view->internal);
}

static PyType_Slot slots[] = {
    {Py_tp_dealloc, tensor_dealloc},
    {Py_tp_getset, getset},
    {Py_bf_getbuffer, tensor_getbuffer},
    {Py_bf_releasebuffer, tensor_releasebuffer},
    {Py_tp_doc, "An n-dimensional array on a device.\n\nShape and strides are in elements; at most 8 axes."},
    {0, NULL}};
static PyType_Spec spec = {"haian.Tensor", sizeof(haian_py_tensor), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

/* ---- module functions ------------------------------------------------------------------------------------------------ */
static int check_dtype(long code) {
  if (code > 0 && code < HAIAN_DTYPE_END) return 1;
  haian_raise_text(HAIAN_DTYPE, "dtype code %ld is not one of haian's; use 1 to %d", code, HAIAN_DTYPE_END - 1);
  return 0;
}

static PyObject *py_empty(PyObject *m, PyObject *args) {
  (void)m;
  PyObject *shape_obj;
  long code;
  int64_t shape[HAIAN_MAX_RANK];
  if (!PyArg_ParseTuple(args, "Ol:empty", &shape_obj, &code) || !check_dtype(code)) return NULL;
  int n = haian_read_ints(shape_obj, shape, HAIAN_MAX_RANK, "empty");
  return n < 0 ? NULL : (PyObject *)haian_tensor_empty((int32_t)code, n, shape, NULL);
}

static PyObject *py_wrap(PyObject *m, PyObject *args) {
  (void)m;
  unsigned long long address;
  long code, device;
  PyObject *shape_obj, *stride_obj, *owner;
  int64_t shape[HAIAN_MAX_RANK], stride[HAIAN_MAX_RANK];
  if (!PyArg_ParseTuple(args, "KlOOlO:wrap", &address, &code, &shape_obj, &stride_obj, &device, &owner) ||
      !check_dtype(code))
    return NULL;
  int n = haian_read_ints(shape_obj, shape, HAIAN_MAX_RANK, "shape");
  if (n < 0) return NULL;
  if (stride_obj == Py_None) {
    int64_t step = 1;
    for (int i = n - 1; i >= 0; i--) {
      stride[i] = step;
      step *= shape[i] > 1 ? shape[i] : 1;
    }
  } else {
    int k = haian_read_ints(stride_obj, stride, HAIAN_MAX_RANK, "strides");
    if (k < 0) return NULL;
    if (k != n) return haian_raise_text(HAIAN_SHAPE, "wrap: %d strides for %d axes; give one an axis", k, n);
  }
  int64_t total = haian_itemsize((int32_t)code);
  for (int i = 0; i < n; i++) {
    if (shape[i] < 0)
      return haian_raise_text(HAIAN_SHAPE, "wrap: axis %d has size %lld; sizes are 0 or more", i, (long long)shape[i]);
    if (shape[i] && __builtin_mul_overflow(total, shape[i], &total))
      return haian_raise_text(HAIAN_SHAPE, "wrap: the shape's bytes pass 2^63; give a smaller one");
  }
  haian_py_tensor *r = haian_tensor_new();
  if (!r) return NULL;
  r->t.data = (void *)(uintptr_t)address;
  r->t.dtype = (int32_t)code;
  r->t.ndim = n;
  r->t.device = (int32_t)device;
  memcpy(r->t.shape, shape, sizeof shape);
  memcpy(r->t.stride, stride, sizeof stride);
  haian_tensor_finish(&r->t);
  r->owner = owner == Py_None ? NULL : Py_NewRef(owner);
  if (HAIAN_TENSOR_CHECK(owner)) {
    r->readonly = ((haian_py_tensor *)owner)->readonly;
  } else if (strcmp(Py_TYPE(owner)->tp_name, "numpy.ndarray") == 0) { /* NumPy says it in flags.writeable */
    PyObject *flags = PyObject_GetAttrString(owner, "flags");
    PyObject *writeable = flags ? PyObject_GetAttrString(flags, "writeable") : NULL;
    r->readonly = writeable == Py_False;
    Py_XDECREF(flags);
    Py_XDECREF(writeable);
    if (!writeable) {
      Py_DECREF(r);
      return NULL;
    }
  }
  return (PyObject *)r;
}

static PyObject *py_set_dtypes(PyObject *m, PyObject *list) {
  (void)m;
  PyObject *all = PySequence_Tuple(list); /* a copy: the end of an old object may run code that changes a list */
  if (!all) return NULL;
  Py_ssize_t n = PyTuple_GET_SIZE(all);
  for (Py_ssize_t i = 0; i < n && i < 32; i++) {
    PyObject *d = PyTuple_GET_ITEM(all, i);
    Py_XSETREF(haian_dtypes[i], d == Py_None ? NULL : Py_NewRef(d));
  }
  Py_DECREF(all);
  Py_RETURN_NONE;
}

static PyObject *py_set_error_factory(PyObject *m, PyObject *fn) {
  (void)m;
  Py_XSETREF(error_from_code, Py_NewRef(fn));
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"empty", py_empty, METH_VARARGS,
     "empty(shape, dtype_code) -> Tensor: uninitialised host memory from the caching allocator."},
    {"wrap", py_wrap, METH_VARARGS,
     "wrap(address, dtype_code, shape, strides, device_index, owner) -> Tensor over existing memory."},
    {"set_dtypes", py_set_dtypes, METH_O, "set_dtypes(list): the DType objects by code."},
    {"set_error_factory", py_set_error_factory, METH_O,
     "set_error_factory(fn): fn(code, message) makes the exceptions."},
    {0}};

int haian_init_tensor(PyObject *module) {
  haian_tensor_type = (PyTypeObject *)PyType_FromSpec(&spec);
  if (!haian_tensor_type || PyModule_AddObjectRef(module, "Tensor", (PyObject *)haian_tensor_type)) return -1;
  return PyModule_AddFunctions(module, methods);
}
