/* haian's operators as Python callables: bind arguments, look the signature up in the plan cache, make the output, run.
 * A signature is the tags (dtype, rank, layout, alignment, device) of all tensors plus dtype-valued attributes; shapes
 * are checked on every call.  Whatever does not fit the fast path goes to Python (kernels/dispatch.py), which converts,
 * or raises the error. */
#include "../../hal/native/py_tensor.h"
#include "../cpu/library.h"
#include "../cpu/pointwise.h"

#include <structmember.h>

enum { KIND_TENSOR, KIND_TENSORS, KIND_INT, KIND_FLOAT, KIND_BOOL, KIND_INTS, KIND_DTYPE, KIND_CHOICE };
enum { RULE_PYTHON, RULE_SAME, RULE_BROADCAST, RULE_REDUCE };
enum { MODE_KERNEL, MODE_PYTHON };
enum { MAX_INTS = 8 }; /* lists of integers in one call: convolution_backward has 6 */
enum { MAX_PARAMS = 24, MAX_KEY = HAIAN_MAX_OPERANDS + HAIAN_MAX_ATTRS, N_PLANS = 64, MAX_OUT = 6, MAX_CHOICES = 6 };
enum {
  GIL_CUTOFF = 1 << 14
}; /* elements in and out: about 3 us of work, where giving the GIL up (0.1 us) starts to pay */

typedef struct {
  PyObject *name;
  int kind, optional, keyword_only, has_default;
  int slot; /* position among the tensor inputs, or among the attributes */
  PyObject *choices[MAX_CHOICES];
  int64_t ints[2 * HAIAN_MAX_RANK]; /* the default of a list of integers */
} param;

/* What was chosen for a signature.  Copied out of the plan by every call: another thread may replace the plan while
 * this one runs Python or has given up the GIL. */
typedef struct {
  int mode, rule, n_out, elementwise;
  int32_t out_dtype[MAX_OUT];
  haian_kernel run;
  haian_tile tile;    /* contiguous same-shape operands of a pointwise operator; NULL otherwise */
  PyObject *callable; /* a call takes its own reference: Python code it runs may drop the plan */
} choice;

typedef struct {
  uint32_t n_key, key[MAX_KEY];
  choice chosen;
} plan;

/* The last signature of a call with tensors only, all contiguous and of one shape: it needs no binding, no plan and no
 * shape rule, which are 35 of 65 ns.  tile is NULL until there is one. */
enum { MAX_SHORT = 4 };
typedef struct {
  haian_tile tile;
  uint32_t tag[MAX_SHORT];
  int64_t item[MAX_SHORT], out_item;
  int32_t out_dtype;
} shortcut;

typedef struct {
  PyObject_HEAD vectorcallfunc call;
  PyObject *name, *resolve, *slow, *infer, *doc, *dict;
  int n_params, n_in, n_attr, n_out, reduce_dim, reduce_keepdim;
  uint32_t required; /* bits of parameters that must be given */
  int tensors_first; /* the first n_in parameters are the tensors, and nothing else is required */
  shortcut last;
  int n_keyed, keyed[MAX_PARAMS]; /* attribute slots that are part of the signature: choices and dtypes */
  param params[MAX_PARAMS];
  haian_attr defaults[HAIAN_MAX_ATTRS];
  plan *plans[N_PLANS];
  uint64_t misses;
} op_object;

static PyObject *s_out, *alloc_hook;
static PyTypeObject *op_type;
static PyObject *dtype_type;
static _Thread_local int stream_depth; /* > 0: a host stream other than the default one is current */

/* One bound call. */
typedef struct {
  haian_tensor *in[HAIAN_MAX_OPERANDS];
  PyObject *in_obj[HAIAN_MAX_OPERANDS];
  haian_attr attr[HAIAN_MAX_ATTRS];
  int64_t ints[MAX_INTS][2 * HAIAN_MAX_RANK];
  int n_in, n_ints;
  PyObject *out;
  PyObject **held; /* references released when the call ends: the plan's callable, a list argument as a tuple */
} bound;

/* 1 bound, 0 not for the fast path (no exception set). */
static int bind_attr(const param *p, PyObject *v, bound *b) {
  haian_attr *a = &b->attr[p->slot];
  if (v == Py_None) {
    if (!p->optional) return 0;
    a->kind = HAIAN_NONE;
    return 1;
  }
  a->count = 0;
  switch (p->kind) {
    case KIND_INT:
      if (!PyLong_Check(v) || PyBool_Check(v)) return 0;
      a->kind = HAIAN_INT;
      a->i = PyLong_AsLongLong(v);
      break;
    case KIND_FLOAT:
      a->kind = HAIAN_FLOAT;
      if (PyFloat_Check(v)) a->f = PyFloat_AS_DOUBLE(v);
      else if (PyLong_Check(v)) a->f = PyLong_AsDouble(v);
      else return 0;
      break;
    case KIND_BOOL:
      if (!PyBool_Check(v)) return 0;
      a->kind = HAIAN_INT;
      a->i = v == Py_True;
      break;
    case KIND_INTS: {
      if (b->n_ints >= MAX_INTS) return 0;
      int64_t *out = b->ints[b->n_ints];
      if (PyLong_CheckExact(v)) { /* not a bool */
        out[0] = PyLong_AsLongLong(v);
        a->count = 1;
      } else {
        int tuple = PyTuple_Check(v);
        if (!tuple && !PyList_Check(v)) return 0;
        Py_ssize_t n = tuple ? PyTuple_GET_SIZE(v) : PyList_GET_SIZE(v);
        if (n > 2 * HAIAN_MAX_RANK) return 0;
        for (Py_ssize_t i = 0; i < n; i++) {
          PyObject *item = tuple ? PyTuple_GET_ITEM(v, i) : PyList_GET_ITEM(v, i);
          if (!PyLong_CheckExact(item)) return 0;
          out[i] = PyLong_AsLongLong(item);
        }
        a->count = (int32_t)n;
      }
      b->n_ints++;
      a->kind = HAIAN_INTS;
      a->v = out;
      break;
    }
    case KIND_DTYPE: {
      if (!PyObject_TypeCheck(v, (PyTypeObject *)dtype_type)) return 0;
      a->kind = HAIAN_INT;
      a->i = 0;
      for (int i = 1; i < HAIAN_DTYPE_END; i++)
        if (haian_dtypes[i] == v) a->i = i;
      if (!a->i) return 0;
      break;
    }
    case KIND_CHOICE:
      a->kind = HAIAN_INT;
      for (int i = 0; i < MAX_CHOICES && p->choices[i]; i++)
        if (p->choices[i] == v || (PyUnicode_Check(v) && PyUnicode_Compare(p->choices[i], v) == 0)) {
          a->i = i;
          return 1;
        }
      return 0;
    default:
      return 0;
  }
  if (p->kind != KIND_BOOL && p->kind != KIND_DTYPE && PyErr_Occurred()) { /* an integer past 64 bits */
    PyErr_Clear();
    return 0;
  }
  return 1;
}

static int bind_tensor(const param *p, PyObject *v, bound *b) {
  if (HAIAN_TENSOR_CHECK(v)) {
    b->in[p->slot] = &((haian_py_tensor *)v)->t;
    b->in_obj[p->slot] = v;
    return 1;
  }
  return v == Py_None && p->optional;
}

static int bind_list(PyObject *v, bound *b) {
  if ((!PyTuple_Check(v) && !PyList_Check(v)) || b->held[1]) return 0;
  PyObject *items = b->held[1] = PySequence_Tuple(v); /* another thread may change a list while the kernel runs */
  if (!items) {
    PyErr_Clear();
    return 0;
  }
  Py_ssize_t n = PyTuple_GET_SIZE(items);
  if (n < 1 || n > HAIAN_MAX_OPERANDS - 2) return 0;
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject *item = PyTuple_GET_ITEM(items, i);
    if (!HAIAN_TENSOR_CHECK(item)) return 0;
    b->in[i] = &((haian_py_tensor *)item)->t;
    b->in_obj[i] = item;
  }
  b->n_in = (int)n;
  return 1;
}

/* Names in a call are interned and compare by address; names out of a ** dictionary may not be. */
static int find_param(const op_object *op, PyObject *key) {
  for (int i = 0; i < op->n_params; i++)
    if (op->params[i].name == key) return i;
  for (int i = 0; i < op->n_params; i++)
    if (PyUnicode_Compare(op->params[i].name, key) == 0) return i;
  return op->n_params;
}

static int bind_arguments(op_object *op, PyObject *const *args, Py_ssize_t n, PyObject *kwnames, bound *b) {
  b->n_in = op->n_in;
  b->n_ints = 0;
  b->out = NULL;
  for (int i = 0; i < op->n_in; i++) {
    b->in[i] = NULL;
    b->in_obj[i] = NULL;
  }
  for (int i = 0; i < op->n_attr; i++) b->attr[i] = op->defaults[i];
  if (n > op->n_params) return 0;
  uint32_t seen = 0;
  for (Py_ssize_t i = 0; i < n; i++) {
    const param *p = &op->params[i];
    if (p->keyword_only) return 0;
    if (!(p->kind == KIND_TENSOR    ? bind_tensor(p, args[i], b)
          : p->kind == KIND_TENSORS ? bind_list(args[i], b)
                                    : bind_attr(p, args[i], b)))
      return 0;
    seen |= 1u << i;
  }
  Py_ssize_t n_kw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
  for (Py_ssize_t k = 0; k < n_kw; k++) {
    PyObject *key = PyTuple_GET_ITEM(kwnames, k), *v = args[n + k];
    if (key == s_out || (find_param(op, key) == op->n_params && PyUnicode_Compare(key, s_out) == 0)) {
      b->out = v == Py_None ? NULL : v;
      continue;
    }
    int i = find_param(op, key);
    if (i == op->n_params || (seen >> i & 1)) return 0;
    const param *p = &op->params[i];
    if (!(p->kind == KIND_TENSOR    ? bind_tensor(p, v, b)
          : p->kind == KIND_TENSORS ? bind_list(v, b)
                                    : bind_attr(p, v, b)))
      return 0;
    seen |= 1u << i;
  }
  return (seen & op->required) == op->required;
}

static inline int same_sizes(const int64_t *a, const int64_t *b, int n) {
  for (int i = 0; i < n; i++)
    if (a[i] != b[i]) return 0;
  return 1;
}

/* ---- shapes ----------------------------------------------------------------------------------------------------------- */
static int broadcast_shape(const bound *b, int64_t *shape) {
  int rank = 0;
  for (int k = 0; k < b->n_in; k++)
    if (b->in[k] && b->in[k]->ndim > rank) rank = b->in[k]->ndim;
  for (int i = 0; i < rank; i++) shape[i] = 1;
  for (int k = 0; k < b->n_in; k++) {
    const haian_tensor *t = b->in[k];
    if (!t) continue;
    for (int i = 0; i < t->ndim; i++) {
      int64_t s = t->shape[i], *o = &shape[rank - t->ndim + i];
      if (s == *o || s == 1) continue;
      if (*o != 1) return -1;
      *o = s;
    }
  }
  return rank;
}

static int reduce_shape(const op_object *op, const bound *b, int64_t *shape) {
  const haian_tensor *x = b->in[0];
  const haian_attr *dim = &b->attr[op->reduce_dim], *keep = &b->attr[op->reduce_keepdim];
  uint32_t over = 0;
  int64_t one = dim->kind == HAIAN_INT ? dim->i : 0;
  const int64_t *dims = dim->kind == HAIAN_INTS ? dim->v : &one;
  int n = dim->kind == HAIAN_NONE ? 0 : dim->kind == HAIAN_INT ? 1 : dim->count;
  if (n == 0) over = (1u << x->ndim) - 1;
  for (int i = 0; i < n; i++) {
    int64_t d = dims[i], r = x->ndim ? x->ndim : 1;
    if (d < -r || d >= r) return -1;
    if (d < 0) d += r;
    if (over >> d & 1) return -1;
    over |= 1u << d;
  }
  int rank = 0;
  for (int i = 0; i < x->ndim; i++) {
    if (!(over >> i & 1)) shape[rank++] = x->shape[i];
    else if (keep->i) shape[rank++] = 1;
  }
  return rank;
}

/* ---- Python's half ------------------------------------------------------------------------------------------------------ */
static PyObject *inputs_tuple(const bound *b) {
  PyObject *t = PyTuple_New(b->n_in);
  for (int i = 0; t && i < b->n_in; i++) PyTuple_SET_ITEM(t, i, Py_NewRef(b->in_obj[i] ? b->in_obj[i] : Py_None));
  return t;
}
static PyObject *attrs_dict(const op_object *op, const bound *b) {
  PyObject *d = PyDict_New();
  for (int i = 0; d && i < op->n_params; i++) {
    const param *p = &op->params[i];
    if (p->kind == KIND_TENSOR || p->kind == KIND_TENSORS) continue;
    const haian_attr *a = &b->attr[p->slot];
    PyObject *v;
    if (a->kind == HAIAN_NONE) v = Py_NewRef(Py_None);
    else if (p->kind == KIND_BOOL) v = PyBool_FromLong((long)a->i);
    else if (p->kind == KIND_DTYPE) v = Py_NewRef(haian_dtypes[a->i & 31]);
    else if (p->kind == KIND_CHOICE) v = Py_NewRef(p->choices[a->i]);
    else if (a->kind == HAIAN_FLOAT) v = PyFloat_FromDouble(a->f);
    else if (a->kind == HAIAN_INTS) v = haian_shape_tuple(a->v, a->count);
    else v = PyLong_FromLongLong(a->i);
    if (!v || PyDict_SetItem(d, p->name, v)) {
      Py_XDECREF(v);
      Py_DECREF(d);
      return NULL;
    }
    Py_DECREF(v);
  }
  return d;
}
static PyObject *call_with(PyObject *fn, const op_object *op, const bound *b, PyObject *outs) {
  PyObject *inputs = inputs_tuple(b), *attrs = inputs ? attrs_dict(op, b) : NULL, *r = NULL;
  if (attrs)
    r = outs ? PyObject_CallFunctionObjArgs(fn, inputs, attrs, outs, NULL)
             : PyObject_CallFunctionObjArgs(fn, inputs, attrs, NULL);
  Py_XDECREF(inputs);
  Py_XDECREF(attrs);
  return r;
}
/* infer(inputs, attrs) raises the operator's own error; where it finds none, the kernel's message stands. */
static PyObject *explain_failure(op_object *op, const bound *b, int32_t status) {
  char message[512];
  snprintf(message, sizeof message, "%s", haian_last_error());
  PyObject *r = call_with(op->infer, op, b, NULL);
  if (!r) return NULL;
  Py_DECREF(r);
  return haian_raise_text(status, "%s", message);
}

/* Shapes of the n results by infer; 0 with an exception set where they cannot be had. */
__attribute__((noinline)) static int infer_shapes(const op_object *op, const bound *b, int n, int *rank,
                                                  int64_t (*shape)[HAIAN_MAX_RANK]) {
  PyObject *r = call_with(op->infer, op, b, NULL); /* a tuple of shapes */
  if (!r) return 0;
  const char *name = PyUnicode_AsUTF8(op->name);
  int ok = PyTuple_Check(r) && PyTuple_GET_SIZE(r) == n;
  if (!ok) haian_raise_text(HAIAN_INTERNAL, "%s: infer gave no shapes", name);
  for (int i = 0; ok && i < n; i++) {
    rank[i] = haian_read_ints(PyTuple_GET_ITEM(r, i), shape[i], HAIAN_MAX_RANK, name);
    ok = rank[i] >= 0;
  }
  Py_DECREF(r);
  return ok;
}

static int fill_plan(op_object *op, const bound *b, choice *p) {
  op->misses++;
  PyObject *r =
      call_with(op->resolve, op, b, NULL); /* (kernel address, pointwise address, dtype codes, rule, callable) */
  if (!r) return -1;
  unsigned long long run, pointwise;
  PyObject *codes, *callable;
  int rule;
  if (!PyArg_ParseTuple(r, "KKO!iO", &run, &pointwise, &PyTuple_Type, &codes, &rule, &callable)) {
    Py_DECREF(r);
    return -1;
  }
  p->mode = callable == Py_None ? MODE_KERNEL : MODE_PYTHON;
  p->rule = rule;
  p->run = (haian_kernel)(uintptr_t)run;
  Py_XSETREF(p->callable, Py_NewRef(callable));
  p->n_out = (int)PyTuple_GET_SIZE(codes);
  if (p->n_out != op->n_out) {
    PyErr_Format(PyExc_ValueError, "%U: resolve gave %d results; the operator has %d", op->name, p->n_out, op->n_out);
    Py_DECREF(r);
    return -1;
  }
  for (int i = 0; i < p->n_out && i < MAX_OUT; i++)
    p->out_dtype[i] = (int32_t)PyLong_AsLong(PyTuple_GET_ITEM(codes, i));
  p->tile = NULL;
  p->elementwise = pointwise != 0;
  if (pointwise &&
      p->mode == MODE_KERNEL) { /* every operand contiguous, of one compute dtype: its tile runs directly */
    const haian_pointwise *pw = (const haian_pointwise *)(uintptr_t)pointwise;
    int ok = 1, dtype = 0;
    for (int i = 0; i < b->n_in; i++) {
      ok &= b->in[i] && (b->in[i]->tag & HAIAN_TAG_CONTIGUOUS) != 0;
      if (b->in[i] && b->in[i]->dtype != HAIAN_BOOL && !dtype) dtype = b->in[i]->dtype;
    }
    if (!dtype) dtype = HAIAN_BOOL;
    if (ok) p->tile = haian_pointwise_tile(pw, dtype, p->out_dtype[0], b->attr);
  }
  Py_DECREF(r);
  return PyErr_Occurred() ? -1 : 0;
}

static void extent(const haian_tensor *t, uintptr_t *lo, uintptr_t *hi) {
  int64_t item = haian_itemsize(t->dtype), min = 0, max = 0;
  if (t->tag & HAIAN_TAG_CONTIGUOUS) max = t->numel - 1;
  else
    for (int i = 0; i < t->ndim; i++) {
      int64_t reach = (t->shape[i] - 1) * t->stride[i];
      if (reach < 0) min += reach;
      else max += reach;
    }
  *lo = (uintptr_t)t->data + (uintptr_t)(min * item);
  *hi = (uintptr_t)t->data + (uintptr_t)((max + 1) * item);
}
static int overlaps(const haian_tensor *a, const haian_tensor *b) {
  if (!a->numel || !b->numel || a->device != b->device) return 0;
  uintptr_t alo, ahi, blo, bhi;
  extent(a, &alo, &ahi);
  extent(b, &blo, &bhi);
  return alo < bhi && blo < ahi;
}
static int same_layout(const haian_tensor *a, const haian_tensor *b) {
  return a->data == b->data && a->dtype == b->dtype && a->ndim == b->ndim && same_sizes(a->shape, b->shape, a->ndim) &&
         same_sizes(a->stride, b->stride, a->ndim);
}

static PyObject *wrong_out(const op_object *op, const haian_tensor *have, int i, int rank, const int64_t *shape,
                           int32_t dtype) {
  PyObject *a = haian_shape_tuple(have->shape, have->ndim), *w = a ? haian_shape_tuple(shape, rank) : NULL;
  PyObject *ar = w ? PyObject_Repr(a) : NULL, *wr = ar ? PyObject_Repr(w) : NULL;
  if (wr)
    haian_raise_text(have->dtype == dtype ? HAIAN_SHAPE : HAIAN_DTYPE, "%s: out%s is %s %s; needs %s %s",
                     PyUnicode_AsUTF8(op->name), i ? " (a later one)" : "", haian_dtype_name(have->dtype),
                     PyUnicode_AsUTF8(ar), haian_dtype_name(dtype), PyUnicode_AsUTF8(wr));
  Py_XDECREF(a);
  Py_XDECREF(w);
  Py_XDECREF(ar);
  Py_XDECREF(wr);
  return NULL;
}

__attribute__((noinline)) static PyObject *make_device_out(const op_object *op, int32_t device, int32_t dtype, int rank,
                                                           const int64_t *shape) {
  PyObject *s = haian_shape_tuple(shape, rank);
  PyObject *r = s ? PyObject_CallFunction(alloc_hook, "iiOO", (int)device, (int)dtype, s, op->name) : NULL;
  Py_XDECREF(s);
  if (r && !HAIAN_TENSOR_CHECK(r)) {
    Py_DECREF(r);
    return haian_raise_text(HAIAN_INTERNAL, "the allocator of device %d returned no tensor", (int)device);
  }
  return r;
}

static inline PyObject *make_out(const op_object *op, int32_t device, int32_t dtype, int rank, const int64_t *shape) {
  return device ? make_device_out(op, device, dtype, rank, shape)
                : (PyObject *)haian_tensor_empty(dtype, rank, shape, op->name);
}

static void drop_plan(plan *p) {
  Py_XDECREF(p->chosen.callable);
  PyMem_Free(p);
}

static PyObject *slow_call(op_object *op, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
  return PyObject_Vectorcall(op->slow, args, (size_t)n, kwnames);
}

static inline int only_out(PyObject *kwnames) {
  return !kwnames || (PyTuple_GET_SIZE(kwnames) == 1 && PyTuple_GET_ITEM(kwnames, 0) == s_out);
}

static void keep_shortcut(op_object *op, const bound *b, const choice *c) {
  shortcut *s = &op->last;
  for (int k = 1; k < b->n_in; k++)
    if (b->in[k]->ndim != b->in[0]->ndim) return; /* (1,) beside (): of one size, but not of one shape */
  for (int k = 0; k < b->n_in; k++) {
    s->tag[k] = b->in[k]->tag;
    s->item[k] = haian_itemsize(b->in[k]->dtype);
  }
  s->out_dtype = c->out_dtype[0];
  s->out_item = haian_itemsize(s->out_dtype);
  s->tile = c->tile;
}

static PyObject *call_holding(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames,
                              PyObject **held) {
  op_object *op = (op_object *)self;
  Py_ssize_t n = PyVectorcall_NARGS(nargsf);
  bound b;
  b.held = held;
  if (!bind_arguments(op, args, n, kwnames, &b)) return slow_call(op, args, n, kwnames);

  uint32_t key[MAX_KEY];
  uint32_t n_key = 0, device = 0;
  uint64_t hash = 0;
  int have_device = 0;
  for (int i = 0; i < b.n_in; i++) {
    uint32_t tag = b.in[i] ? b.in[i]->tag : 0;
    if (tag) {
      if (have_device && tag >> 11 != device)
        return slow_call(op, args, n, kwnames); /* devices differ: Python says so */
      device = tag >> 11;
      have_device = 1;
    }
    key[n_key++] = tag;
    hash = (hash ^ tag) * 0x9E3779B97F4A7C15ull;
  }
  for (int i = 0; i < op->n_keyed; i++) { /* choices pick a kernel, dtypes pick the output */
    const haian_attr *a = &b.attr[op->keyed[i]];
    uint32_t v = a->kind == HAIAN_NONE ? 0xffu : (uint32_t)a->i;
    key[n_key++] = v;
    hash = (hash ^ v) * 0x9E3779B97F4A7C15ull;
  }
  if (device == 0 && stream_depth) return slow_call(op, args, n, kwnames);
  if (!have_device && b.out && HAIAN_TENSOR_CHECK(b.out) && ((haian_py_tensor *)b.out)->t.device != 0)
    return slow_call(op, args, n, kwnames);

  plan **slot = &op->plans[hash >> 58], *p = *slot, *old = NULL;
  if (!p || p->n_key != n_key || memcmp(p->key, key, n_key * sizeof key[0])) {
    plan *fresh = PyMem_Calloc(1, sizeof *fresh);
    if (!fresh) return PyErr_NoMemory();
    if (fill_plan(op, &b, &fresh->chosen)) {
      Py_XDECREF(fresh->chosen.callable);
      PyMem_Free(fresh);
      return NULL;
    }
    fresh->n_key = n_key;
    memcpy(fresh->key, key, sizeof key[0] * n_key);
    p = *slot; /* the resolver ran Python: look again before replacing */
    *slot = fresh;
    old = p;
    p = fresh;
  }
  const choice c = p->chosen;
  if (c.mode == MODE_PYTHON) held[0] = Py_NewRef(c.callable);
  if (old) drop_plan(old); /* runs finalisers, which may replace any plan: not before the choice is copied */

  /* output shapes */
  int64_t shape[MAX_OUT][HAIAN_MAX_RANK];
  int rank[MAX_OUT];
  if (c.rule == RULE_SAME) {
    rank[0] = b.in[0]->ndim;
    memcpy(shape[0], b.in[0]->shape, (size_t)rank[0] * 8);
  } else if (c.rule == RULE_BROADCAST) {
    const haian_tensor *x = b.in[0];
    int same = 1;
    for (int k = 1; k < b.n_in; k++)
      same &= b.in[k] && b.in[k]->ndim == x->ndim && same_sizes(b.in[k]->shape, x->shape, x->ndim);
    if (same) {
      rank[0] = x->ndim;
      memcpy(shape[0], x->shape, (size_t)rank[0] * 8);
    } else {
      rank[0] = broadcast_shape(&b, shape[0]);
    }
  } else if (c.rule == RULE_REDUCE) {
    rank[0] = reduce_shape(op, &b, shape[0]);
  } else {
    if (!infer_shapes(op, &b, c.n_out, rank, shape)) return NULL;
  }
  if (rank[0] < 0) {
    haian_fail(HAIAN_SHAPE, "%s: the shapes do not fit", PyUnicode_AsUTF8(op->name));
    return explain_failure(op, &b, HAIAN_SHAPE);
  }

  /* outputs */
  PyObject *outs[MAX_OUT] = {NULL};
  haian_tensor *out[MAX_OUT];
  if (b.out) {
    for (int i = 0; i < c.n_out; i++) {
      PyObject *o = b.out;
      if (c.n_out > 1) {
        if (!PyTuple_Check(o) || PyTuple_GET_SIZE(o) != c.n_out) return slow_call(op, args, n, kwnames);
        o = PyTuple_GET_ITEM(o, i);
      }
      if (!HAIAN_TENSOR_CHECK(o)) return slow_call(op, args, n, kwnames);
      haian_tensor *t = &((haian_py_tensor *)o)->t;
      if (t->dtype != c.out_dtype[i] || t->ndim != rank[i] || !same_sizes(t->shape, shape[i], rank[i]))
        return wrong_out(op, t, i, rank[i], shape[i], c.out_dtype[i]);
      if ((uint32_t)t->device != device) return slow_call(op, args, n, kwnames);
      if (((haian_py_tensor *)o)->readonly)
        return haian_raise_text(HAIAN_INVALID_ARGUMENT, "%s: out is read-only memory; give writable memory",
                                PyUnicode_AsUTF8(op->name));
      for (int k = 0; k < b.n_in; k++)
        if (b.in[k] && overlaps(t, b.in[k]) && !(c.elementwise && same_layout(t, b.in[k])))
          return slow_call(op, args, n, kwnames);
      if (!(t->tag & HAIAN_TAG_CONTIGUOUS) && haian_overlaps_itself(t))
        return haian_raise_text(
            HAIAN_ALIAS,
            "%s: out has strides (stride 0 or overlapping rows) that let elements share memory; give it its own",
            PyUnicode_AsUTF8(op->name));
      for (int k = 0; k < i; k++)
        if (overlaps(t, out[k]))
          return haian_raise_text(HAIAN_ALIAS, "%s: out %d and out %d overlap; give each its own memory",
                                  PyUnicode_AsUTF8(op->name), k, i);
      out[i] = t;
      outs[i] = o;
    }
    for (int i = 0; i < c.n_out; i++) Py_INCREF(outs[i]);
  } else {
    for (int i = 0; i < c.n_out; i++) {
      outs[i] = make_out(op, (int32_t)device, c.out_dtype[i], rank[i], shape[i]);
      if (!outs[i]) {
        while (i--) Py_DECREF(outs[i]);
        return NULL;
      }
      out[i] = &((haian_py_tensor *)outs[i])->t;
    }
  }

  /* run */
  int failed = 0;
  int64_t work = out[0]->numel;
  for (int k = 0; k < b.n_in; k++) work += b.in[k] ? b.in[k]->numel : 0;
  if (c.mode == MODE_KERNEL) {
    int direct = c.tile && work <= GIL_CUTOFF && (out[0]->tag & HAIAN_TAG_CONTIGUOUS);
    for (int k = 0; direct && k < b.n_in; k++) direct = b.in[k]->numel == out[0]->numel;
    if (direct) {
      if (op->tensors_first && n == op->n_in && only_out(kwnames)) keep_shortcut(op, &b, &c);
      const void *data[HAIAN_MAX_OPERANDS];
      for (int k = 0; k < b.n_in; k++) data[k] = b.in[k]->data;
      c.tile(data, out[0]->data, out[0]->numel, b.attr);
    } else {
      haian_args call = {b.n_in, c.n_out, op->n_attr, 0, b.in, out, b.attr};
      int32_t status;
      if (work > GIL_CUTOFF) {
        PyThreadState *state = PyEval_SaveThread();
        status = c.run(&call);
        PyEval_RestoreThread(state);
      } else {
        status = c.run(&call);
      }
      if (status) {
        explain_failure(op, &b, status);
        failed = 1;
      }
    }
  } else {
    PyObject *tuple = PyTuple_New(c.n_out);
    for (int i = 0; tuple && i < c.n_out; i++) PyTuple_SET_ITEM(tuple, i, Py_NewRef(outs[i]));
    PyObject *r = tuple ? call_with(c.callable, op, &b, tuple) : NULL;
    failed = !r;
    Py_XDECREF(r);
    Py_XDECREF(tuple);
  }
  if (failed) {
    for (int i = 0; i < c.n_out; i++) Py_DECREF(outs[i]);
    return NULL;
  }
  if (c.n_out == 1) return outs[0];
  PyObject *tuple = PyTuple_New(c.n_out);
  for (int i = 0; i < c.n_out; i++) {
    if (tuple) PyTuple_SET_ITEM(tuple, i, outs[i]);
    else Py_DECREF(outs[i]);
  }
  return tuple;
}

/* The result by the shortcut; NULL without an exception where the call does not fit it. */
static PyObject *call_short(const op_object *op, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
  const shortcut *s = &op->last;
  const haian_tensor *x = &((haian_py_tensor *)args[0])->t, *t;
  const void *data[MAX_SHORT];
  for (Py_ssize_t k = 0; k < n; k++) {
    if (!HAIAN_TENSOR_CHECK(args[k])) return NULL;
    t = &((haian_py_tensor *)args[k])->t;
    if (t->tag != s->tag[k] || (k && !same_sizes(t->shape, x->shape, x->ndim))) return NULL;
    data[k] = t->data;
  }
  if (x->numel > GIL_CUTOFF / (MAX_SHORT + 1) || stream_depth) return NULL;
  const haian_tile tile = s->tile; /* allocating may run finalisers, which may call this operator */
  PyObject *out;
  if (kwnames) {
    out = args[n];
    if (!HAIAN_TENSOR_CHECK(out) || ((haian_py_tensor *)out)->readonly) return NULL;
    t = &((haian_py_tensor *)out)->t;
    if (t->dtype != s->out_dtype || t->device || !(t->tag & HAIAN_TAG_CONTIGUOUS) || t->ndim != x->ndim ||
        !same_sizes(t->shape, x->shape, x->ndim))
      return NULL;
    uintptr_t lo = (uintptr_t)t->data, hi = lo + (uintptr_t)(x->numel * s->out_item);
    for (Py_ssize_t k = 0; k < n; k++) {
      uintptr_t a = (uintptr_t)data[k];
      int itself = a == lo && (int32_t)(s->tag[k] & 31u) == s->out_dtype;
      if (!itself && a < hi && lo < a + (uintptr_t)(x->numel * s->item[k])) return NULL;
    }
    Py_INCREF(out);
  } else {
    out = (PyObject *)haian_tensor_empty(s->out_dtype, x->ndim, x->shape, op->name);
    if (!out) return NULL;
    t = &((haian_py_tensor *)out)->t;
  }
  tile(data, t->data, x->numel, op->defaults);
  return out;
}

static PyObject *op_vectorcall(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
  const op_object *op = (const op_object *)self;
  Py_ssize_t n = PyVectorcall_NARGS(nargsf);
  if (op->last.tile && n == op->n_in && only_out(kwnames)) {
    PyObject *r = call_short(op, args, n, kwnames);
    if (r || PyErr_Occurred()) return r;
  }
  PyObject *held[2] = {NULL, NULL};
  PyObject *r = call_holding(self, args, nargsf, kwnames, held);
  Py_XDECREF(held[0]);
  Py_XDECREF(held[1]);
  return r;
}

/* ---- the type ----------------------------------------------------------------------------------------------------------- */
static void op_dealloc(PyObject *self) {
  op_object *op = (op_object *)self;
  for (int i = 0; i < N_PLANS; i++)
    if (op->plans[i]) drop_plan(op->plans[i]);
  for (int i = 0; i < op->n_params; i++) {
    Py_XDECREF(op->params[i].name);
    for (int k = 0; k < MAX_CHOICES; k++) Py_XDECREF(op->params[i].choices[k]);
  }
  Py_XDECREF(op->name);
  Py_XDECREF(op->resolve);
  Py_XDECREF(op->slow);
  Py_XDECREF(op->infer);
  Py_XDECREF(op->doc);
  Py_XDECREF(op->dict);
  PyTypeObject *type = Py_TYPE(self);
  PyObject_Free(self);
  Py_DECREF(type);
}

static int read_default(param *p, PyObject *v, op_object *op) {
  bound b = {0};
  if (p->kind == KIND_TENSOR || p->kind == KIND_TENSORS) return 0;
  int slot = p->slot;
  if (!bind_attr(p, v, &b)) {
    PyErr_Format(PyExc_ValueError, "%U: default of %U does not fit its kind", op->name, p->name);
    return -1;
  }
  if (b.attr[slot].kind == HAIAN_INTS) { /* they outlive the call that read them */
    memcpy(p->ints, b.ints[0], sizeof p->ints);
    b.attr[slot].v = p->ints;
  }
  op->defaults[slot] = b.attr[slot];
  return 0;
}

/* Op(name, params, n_out, resolve, slow, infer, doc); params: (name, kind, optional, keyword_only, has_default, default, choices) */
static PyObject *op_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  (void)kwargs;
  PyObject *name, *params, *resolve, *slow, *infer, *doc;
  int n_out;
  if (!PyArg_ParseTuple(args, "UO!iOOOU:Op", &name, &PyTuple_Type, &params, &n_out, &resolve, &slow, &infer, &doc))
    return NULL;
  op_object *op = (op_object *)type->tp_alloc(type, 0);
  if (!op) return NULL;
  op->call = op_vectorcall;
  op->name = Py_NewRef(name);
  op->resolve = Py_NewRef(resolve);
  op->slow = Py_NewRef(slow);
  op->infer = Py_NewRef(infer);
  op->doc = Py_NewRef(doc);
  op->n_out = n_out;
  if (n_out < 1 || n_out > MAX_OUT) {
    PyErr_Format(PyExc_ValueError, "%U: %d results; needs 1 to %d", name, n_out, (int)MAX_OUT);
    goto bad;
  }
  Py_ssize_t n = PyTuple_GET_SIZE(params);
  if (n > MAX_PARAMS) {
    PyErr_Format(PyExc_ValueError, "%U: %zd parameters; at most %d", name, n, MAX_PARAMS);
    goto bad;
  }
  for (Py_ssize_t i = 0; i < n; i++) {
    param *p = &op->params[i];
    PyObject *pname, *def, *choices;
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(params, i), "UippiOO!", &pname, &p->kind, &p->optional, &p->keyword_only,
                          &p->has_default, &def, &PyTuple_Type, &choices))
      goto bad;
    p->name = Py_NewRef(pname);
    PyUnicode_InternInPlace(&p->name);
    op->n_params++;
    if (PyTuple_GET_SIZE(choices) > MAX_CHOICES) {
      PyErr_Format(PyExc_ValueError, "%U: %U has %zd choices; at most %d", name, pname, PyTuple_GET_SIZE(choices),
                   (int)MAX_CHOICES);
      goto bad;
    }
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(choices); k++) {
      p->choices[k] = Py_NewRef(PyTuple_GET_ITEM(choices, k));
      PyUnicode_InternInPlace(&p->choices[k]);
    }
    int tensor = p->kind == KIND_TENSOR || p->kind == KIND_TENSORS;
    p->slot = tensor ? op->n_in++ : op->n_attr++;
    if (p->kind == KIND_DTYPE || p->kind == KIND_CHOICE) op->keyed[op->n_keyed++] = p->slot;
    if (!p->optional && !p->has_default) op->required |= 1u << i;
    if (op->n_in + n_out > HAIAN_MAX_OPERANDS || op->n_attr > HAIAN_MAX_ATTRS) {
      PyErr_Format(PyExc_ValueError, "%U: too many operands or attributes", name);
      goto bad;
    }
    if (PyUnicode_CompareWithASCIIString(p->name, "dim") == 0) op->reduce_dim = p->slot;
    if (PyUnicode_CompareWithASCIIString(p->name, "keepdim") == 0) op->reduce_keepdim = p->slot;
    if (p->has_default && read_default(p, def, op)) goto bad;
  }
  op->tensors_first = op->n_in >= 1 && op->n_in <= MAX_SHORT && op->required == (1u << op->n_in) - 1;
  for (int i = 0; i < op->n_in && op->tensors_first; i++)
    op->tensors_first = op->params[i].kind == KIND_TENSOR && !op->params[i].keyword_only;
  return (PyObject *)op;
bad:
  Py_DECREF(op);
  return NULL;
}

static PyObject *op_repr(PyObject *self) {
  return PyUnicode_FromFormat("<haian operator %U>", ((op_object *)self)->name);
}
static PyObject *op_get_doc(PyObject *self, void *c) {
  (void)c;
  return Py_NewRef(((op_object *)self)->doc);
}
static PyObject *op_get_name(PyObject *self, void *c) {
  (void)c;
  return Py_NewRef(((op_object *)self)->name);
}
static PyObject *op_get_misses(PyObject *self, void *c) {
  (void)c;
  return PyLong_FromUnsignedLongLong(((op_object *)self)->misses);
}
static PyObject *op_forget(PyObject *self, PyObject *unused) {
  (void)unused;
  op_object *op = (op_object *)self;
  op->last.tile = NULL;
  for (int i = 0; i < N_PLANS; i++) {
    plan *p = op->plans[i];
    op->plans[i] = NULL;
    if (p) drop_plan(p);
  }
  Py_RETURN_NONE;
}
static PyGetSetDef op_getset[] = {{"__doc__", op_get_doc, NULL, NULL, NULL},
                                  {"__name__", op_get_name, NULL, NULL, NULL},
                                  {"misses", op_get_misses, NULL, "How often a signature had to be resolved.", NULL},
                                  {0}};
static PyMethodDef op_methods[] = {{"forget", op_forget, METH_NOARGS, "Drop all plans: candidates or policy changed."},
                                   {0}};
static PyMemberDef op_members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(op_object, call), READONLY, NULL},
                                   {"__dictoffset__", T_PYSSIZET, offsetof(op_object, dict), READONLY, NULL},
                                   {0}};
static PyType_Slot op_slots[] = {{Py_tp_dealloc, op_dealloc},     {Py_tp_new, op_new},
                                 {Py_tp_repr, op_repr},           {Py_tp_getset, op_getset},
                                 {Py_tp_methods, op_methods},     {Py_tp_members, op_members},
                                 {Py_tp_call, PyVectorcall_Call}, {0, NULL}};
static PyType_Spec op_spec = {"haian.Op", sizeof(op_object), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
                              op_slots};

static PyObject *py_set_hooks(PyObject *m, PyObject *args) {
  (void)m;
  PyObject *alloc, *type;
  if (!PyArg_ParseTuple(args, "OO:set_hooks", &alloc, &type)) return NULL;
  Py_XSETREF(alloc_hook, Py_NewRef(alloc));
  Py_XSETREF(dtype_type, Py_NewRef(type));
  Py_RETURN_NONE;
}
static PyObject *py_stream_depth(PyObject *m, PyObject *delta) {
  (void)m;
  long d = PyLong_AsLong(delta);
  if (d == -1 && PyErr_Occurred()) return NULL;
  stream_depth += (int)d;
  return PyLong_FromLong(stream_depth);
}
static PyMethodDef module_methods[] = {
    {"set_hooks", py_set_hooks, METH_VARARGS,
     "set_hooks(alloc, dtype_type): alloc(device_index, dtype_code, shape, operator) makes device tensors."},
    {"stream_depth", py_stream_depth, METH_O,
     "stream_depth(delta): enter (+1) or leave (-1) a host stream on this thread."},
    {0}};

int haian_init_op(PyObject *module) {
  s_out = PyUnicode_InternFromString("out");
  op_type = (PyTypeObject *)PyType_FromSpec(&op_spec);
  if (!s_out || !op_type || PyModule_AddObjectRef(module, "Op", (PyObject *)op_type)) return -1;
  return PyModule_AddFunctions(module, module_methods);
}
