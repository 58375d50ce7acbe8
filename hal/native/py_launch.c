/* haian._native.Launcher: a loaded kernel that Python calls with its arguments; and signature(), what a compiled kernel depends on.
 *
 * A launcher packs numbers and tensors into C values and calls the driver's own launch: a haian_hal.h table, or a function
 * shaped like cuLaunchKernel (CUDA, HIP and their kin).  Python drivers are launched from kernels/triton/launch.py.
 * Not here: compiling, loading, order between streams. */
#include "py_tensor.h" /* Python.h comes before the standard headers */

#include "hal_table.h"
#include <stddef.h>
#include <string.h>

/* CUresult cuLaunchKernel(f, gridX, gridY, gridZ, blockX, blockY, blockZ, sharedBytes, stream, params, extra) */
typedef int (*driver_launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
                             void **, void **);

typedef struct {
  PyObject_HEAD vectorcallfunc call;
  hal_status (*table_launch)(int32_t, hal_handle, const hal_launch_desc *);
  uint64_t (*last_error)(char *, uint64_t);
  driver_launch symbol;
  PyObject *translate; /* for a symbol: called with (status), raises the error */
  PyObject *name;
  uint64_t kernel; /* the driver's own handle, or the function's address */
  uint32_t threads, shared;
  int32_t device, tensor_device;
  int32_t count, travelling, hidden;
  uint8_t kind
      [HAIAN_LAUNCH_ARGS]; /* of each Python argument: 0 compiled in, 'p' address, 'i' integer, 'f' float, 'd' double */
  uint32_t size[HAIAN_LAUNCH_ARGS]; /* of each value that travels, hidden pointers behind the others */
  hal_dtype type[HAIAN_LAUNCH_ARGS];
} launcher;

static PyObject *fail(launcher *l, int status) {
  if (l->symbol) {
    PyObject *r = PyObject_CallFunction(l->translate, "i", status);
    if (r) {
      Py_DECREF(r);
      return haian_raise_text(HAIAN_INTERNAL, "%s: launch failed with status %d", PyUnicode_AsUTF8(l->name), status);
    }
    return NULL;
  }
  char text[400] = "";
  if (l->last_error) l->last_error(text, sizeof text);
  text[sizeof text - 1] = 0;
  return haian_raise_text(status, "%s: launch: %s", PyUnicode_AsUTF8(l->name),
                          text[0] ? text : "no message from the driver");
}

/* One argument as a C value; -1 with an exception. */
static int pack(launcher *l, Py_ssize_t i, PyObject *value, haian_cell *to) {
  if (HAIAN_TENSOR_CHECK(value)) {
    const haian_tensor *t = &((haian_py_tensor *)value)->t;
    if (l->kind[i] != 'p' || t->device != l->tensor_device) {
      haian_raise_text(HAIAN_INVALID_ARGUMENT, "%s: argument %zd is a tensor of device %d; needs %s of device %d",
                       PyUnicode_AsUTF8(l->name), i, t->device, l->kind[i] == 'p' ? "one" : "a number, not a tensor",
                       l->tensor_device);
      return -1;
    }
    to->u = (uint64_t)(uintptr_t)t->data;
    return 0;
  }
  switch (l->kind[i]) {
    case 'p':
    case 'i':
      to->u = PyLong_AsUnsignedLongLongMask(value);
      return to->u == (uint64_t)-1 && PyErr_Occurred() ? -1 : 0;
    case 'f':
      to->u = 0;
      to->f = (float)PyFloat_AsDouble(value);
      return to->f == -1.0f && PyErr_Occurred() ? -1 : 0;
    default:
      to->d = PyFloat_AsDouble(value);
      return to->d == -1.0 && PyErr_Occurred() ? -1 : 0;
  }
}

/* launcher(stream, grid x, grid y, grid z, *args) */
static PyObject *launcher_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
  launcher *l = (launcher *)self;
  const Py_ssize_t n = PyVectorcall_NARGS(nargsf);
  if (kwnames || n != 4 + l->count)
    return haian_raise_text(HAIAN_INVALID_ARGUMENT,
                            "%s: %zd arguments came; needs a stream, three grid sizes and %d arguments",
                            PyUnicode_AsUTF8(l->name), n, l->count);
  const uint64_t stream = PyLong_AsUnsignedLongLong(args[0]);
  if (stream == (uint64_t)-1 && PyErr_Occurred()) return NULL;
  uint32_t grid[3];
  for (int i = 0; i < 3; i++) {
    const long long size = PyLong_AsLongLong(args[1 + i]);
    if (size == -1 && PyErr_Occurred()) return NULL;
    if (size < 1 || size > UINT32_MAX)
      return haian_raise_text(HAIAN_INVALID_ARGUMENT, "%s: a grid of %lld programs along an axis; needs 1 to 2^32 - 1",
                              PyUnicode_AsUTF8(l->name), size);
    grid[i] = (uint32_t)size;
  }
  haian_cell values[HAIAN_LAUNCH_ARGS];
  const void *pointers[HAIAN_LAUNCH_ARGS];
  int at = 0;
  for (Py_ssize_t i = 0; i < l->count; i++) {
    if (!l->kind[i]) continue;
    if (pack(l, i, args[4 + i], &values[at])) return NULL;
    pointers[at] = &values[at];
    at++;
  }
  for (int i = 0; i < l->hidden; i++, at++) {
    values[at].u = 0;
    pointers[at] = &values[at];
  }
  int status;
  if (l->symbol) {
    Py_BEGIN_ALLOW_THREADS status = l->symbol((void *)(uintptr_t)l->kernel, grid[0], grid[1], grid[2], l->threads, 1, 1,
                                              l->shared, (void *)(uintptr_t)stream, (void **)pointers, NULL);
    Py_END_ALLOW_THREADS
  } else {
    const hal_launch_desc desc = {sizeof desc, 0,          RAW(l->kernel), {grid[0], grid[1], grid[2]},
                                  {1, 1, 1},   l->threads, l->shared,      (uint32_t)at,
                                  0,           pointers,   l->size,        l->type};
    Py_BEGIN_ALLOW_THREADS status = l->table_launch(l->device, RAW(stream), &desc);
    Py_END_ALLOW_THREADS
  }
  if (status) return fail(l, status);
  Py_RETURN_NONE;
}

static int read_type(launcher *l, Py_ssize_t i, const char *type) {
  if (!type[0]) return 0; /* compiled in: kind stays 0 */
  l->kind[i] = (uint8_t)haian_argument_type(type, &l->size[l->travelling], &l->type[l->travelling]);
  if (!l->kind[i]) {
    haian_raise_text(HAIAN_UNSUPPORTED,
                     "launcher: argument %zd has type %s; needs *T, iN, uN, fp32, fp64 or '' for one compiled in", i,
                     type);
    return -1;
  }
  l->travelling++;
  return 0;
}

/* Launcher(name, device, tensor_device, kernel, threads, shared_bytes, types, hidden=0, table=0, symbol=0, translate=None) */
static PyObject *launcher_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"name",  "device", "tensor_device", "kernel", "threads",   "shared_bytes",
                          "types", "hidden", "table",         "symbol", "translate", NULL};
  PyObject *name, *types, *translate = Py_None;
  int device, tensor_device, hidden = 0;
  unsigned threads, shared;
  unsigned long long kernel, table = 0, symbol = 0;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "UiiKIIO!|iKKO", names, &name, &device, &tensor_device, &kernel,
                                   &threads, &shared, &PyTuple_Type, &types, &hidden, &table, &symbol, &translate))
    return NULL;
  if (PyTuple_GET_SIZE(types) + hidden > HAIAN_LAUNCH_ARGS || hidden < 0)
    return haian_raise_text(HAIAN_INVALID_ARGUMENT, "launcher: %zd arguments; at most %d",
                            PyTuple_GET_SIZE(types) + hidden, HAIAN_LAUNCH_ARGS);
  const hal_adapter *a = (const hal_adapter *)(uintptr_t)table;
  const hal_module *module = GET(a, module);
  if (!symbol && !HAS(module, launch))
    return haian_raise_text(HAIAN_UNSUPPORTED, "launcher: the driver has no launch function in C");
  launcher *l = (launcher *)type->tp_alloc(type, 0);
  if (!l) return NULL;
  l->call = launcher_call;
  l->table_launch = symbol ? NULL : module->launch;
  l->last_error = symbol ? NULL : a->core->last_error;
  l->symbol = (driver_launch)(uintptr_t)symbol;
  l->translate = Py_NewRef(translate);
  l->name = Py_NewRef(name);
  l->kernel = kernel;
  l->threads = threads, l->shared = shared, l->device = device, l->tensor_device = tensor_device;
  l->count = (int32_t)PyTuple_GET_SIZE(types);
  for (Py_ssize_t i = 0; i < l->count; i++) {
    const char *text = PyUnicode_AsUTF8(PyTuple_GET_ITEM(types, i));
    if (!text || read_type(l, i, text)) {
      Py_DECREF(l);
      return NULL;
    }
  }
  l->hidden = hidden;
  for (int i = 0; i < hidden; i++) {
    l->size[l->travelling + i] = 8;
    l->type[l->travelling + i] = HAL_ARG_POINTER;
  }
  return (PyObject *)l;
}

static void launcher_dealloc(launcher *l) {
  Py_XDECREF(l->translate);
  Py_XDECREF(l->name);
  Py_TYPE(l)->tp_free((PyObject *)l);
}

static PyTypeObject launcher_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "haian._native.Launcher",
    .tp_doc = "A loaded kernel: launcher(stream, grid x, grid y, grid z, *args).",
    .tp_basicsize = sizeof(launcher),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = launcher_new,
    .tp_dealloc = (destructor)launcher_dealloc,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(launcher, call),
};

/* ---- signatures -------------------------------------------------------------------------------------------------- */
static PyObject *marks[4]; /* I64, F64, Data, Step of kernels/triton/launch.py */

/* Two bytes an argument: what it is, and whether it is a known multiple of 16 (or, of a Step, which value). */
static int describe(PyObject *value, char *to) {
  if (HAIAN_TENSOR_CHECK(value)) {
    const haian_tensor *t = &((haian_py_tensor *)value)->t;
    to[0] = (char)t->dtype, to[1] = (char)(((uintptr_t)t->data & 15) == 0);
    return 0;
  }
  PyObject *kind = (PyObject *)Py_TYPE(value);
  if (PyLong_Check(value) && !PyBool_Check(value)) {
    int beyond;
    const long long v = PyLong_AsLongLongAndOverflow(value, &beyond);
    if (beyond) return haian_raise_text(HAIAN_INVALID_ARGUMENT, "signature: an integer argument beyond 64 bits"), -1;
    const int narrow = v >= -2147483648ll && v < 2147483648ll;
    if (kind == marks[3] && (v == 0 || v == 1)) to[0] = 'S', to[1] = (char)v;
    else if (kind == marks[2]) to[0] = narrow ? 'i' : 'l', to[1] = 0;
    else to[0] = narrow && kind != marks[0] ? 'i' : 'l', to[1] = v % 16 == 0;
  } else if (PyFloat_Check(value)) {
    to[0] = kind == marks[1] ? 'd' : 'f', to[1] = 0;
  } else if (PyBool_Check(value)) {
    to[0] = 'b', to[1] = 0;
  } else {
    return haian_raise_text(HAIAN_INVALID_ARGUMENT, "a Triton kernel argument is a %s; needs a Tensor or a number",
                            Py_TYPE(value)->tp_name),
           -1;
  }
  return 0;
}

static PyObject *signature(PyObject *self, PyObject *args) {
  (void)self;
  if (!PyTuple_Check(args)) return haian_raise_text(HAIAN_INVALID_ARGUMENT, "signature: needs a tuple of arguments");
  char text[2 * HAIAN_LAUNCH_ARGS];
  const Py_ssize_t n = PyTuple_GET_SIZE(args);
  if (n > HAIAN_LAUNCH_ARGS)
    return haian_raise_text(HAIAN_INVALID_ARGUMENT, "signature: %zd arguments; at most %d", n, HAIAN_LAUNCH_ARGS);
  for (Py_ssize_t i = 0; i < n; i++)
    if (describe(PyTuple_GET_ITEM(args, i), text + 2 * i)) return NULL;
  return PyBytes_FromStringAndSize(text, 2 * n);
}

static PyObject *set_marks(PyObject *self, PyObject *args) {
  (void)self;
  PyObject *v[4];
  if (!PyArg_ParseTuple(args, "OOOO", &v[0], &v[1], &v[2], &v[3])) return NULL;
  for (int i = 0; i < 4; i++) Py_XSETREF(marks[i], Py_NewRef(v[i]));
  Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"signature", signature, METH_O,
     "signature(args) -> bytes: dtype and divisibility of each argument of a Triton kernel"},
    {"set_argument_marks", set_marks, METH_VARARGS,
     "set_argument_marks(I64, F64, Data, Step): the classes that say how a number travels"},
    {NULL, NULL, 0, NULL}};

int haian_init_launch(PyObject *module) {
  if (PyType_Ready(&launcher_type)) return -1;
  return PyModule_AddObjectRef(module, "Launcher", (PyObject *)&launcher_type) ||
                 PyModule_AddFunctions(module, functions)
             ? -1
             : 0;
}
