/* DLPack in and out, versions 0 ("dltensor") and 1 ("dltensor_versioned").  Struct layout: the DLPack 1.0 specification. */
#include "py_tensor.h"

typedef struct {
  int32_t type, id;
} dl_device;
typedef struct {
  uint8_t code, bits;
  uint16_t lanes;
} dl_dtype;
typedef struct {
  void *data;
  dl_device device;
  int32_t ndim;
  dl_dtype dtype;
  int64_t *shape;
  int64_t *strides; /* NULL in old exporters: contiguous */
  uint64_t byte_offset;
} dl_tensor;
typedef struct dl_managed {
  dl_tensor t;
  void *context;
  void (*deleter)(struct dl_managed *);
} dl_managed;
typedef struct dl_versioned {
  uint32_t major, minor;
  void *context;
  void (*deleter)(struct dl_versioned *);
  uint64_t flags; /* bit 0 read-only, bit 1 copied */
  dl_tensor t;
} dl_versioned;

/* (type code, bits) of DLPack by haian code; the numbers of hal/dtype.py */
static const dl_dtype dl_of[HAIAN_DTYPE_END] = {
    [HAIAN_BOOL] = {6, 8, 1},  [HAIAN_U8] = {1, 8, 1},      [HAIAN_U16] = {1, 16, 1},    [HAIAN_U32] = {1, 32, 1},
    [HAIAN_U64] = {1, 64, 1},  [HAIAN_I8] = {0, 8, 1},      [HAIAN_I16] = {0, 16, 1},    [HAIAN_I32] = {0, 32, 1},
    [HAIAN_I64] = {0, 64, 1},  [HAIAN_F16] = {2, 16, 1},    [HAIAN_BF16] = {4, 16, 1},   [HAIAN_F32] = {2, 32, 1},
    [HAIAN_F64] = {2, 64, 1},  [HAIAN_F8E4M3] = {10, 8, 1}, [HAIAN_F8E5M2] = {12, 8, 1}, [HAIAN_C64] = {5, 64, 1},
    [HAIAN_C128] = {5, 128, 1}};

/* What a capsule keeps alive: the tensor, and room for shape and strides. */
typedef struct {
  union {
    dl_managed v0;
    dl_versioned v1;
  };
  int64_t dims[2 * HAIAN_MAX_RANK];
  PyObject *tensor;
} exported;

static void drop(exported *e) {
  PyGILState_STATE gil = PyGILState_Ensure(); /* a consumer may delete from any thread */
  Py_DECREF(e->tensor);
  PyGILState_Release(gil);
  free(e);
}
static void delete_v0(dl_managed *m) { drop(m->context); }
static void delete_v1(dl_versioned *m) { drop(m->context); }
static void capsule_free(PyObject *c) { /* an unused capsule still owns its tensor; a used one was renamed */
  if (PyCapsule_IsValid(c, "dltensor")) delete_v0(PyCapsule_GetPointer(c, "dltensor"));
  if (PyCapsule_IsValid(c, "dltensor_versioned")) delete_v1(PyCapsule_GetPointer(c, "dltensor_versioned"));
}

static PyObject *py_to_dlpack(PyObject *m, PyObject *args) {
  (void)m;
  PyObject *obj;
  int versioned;
  long type, id;
  unsigned long long flags = 0;
  if (!PyArg_ParseTuple(args, "Opll|K:to_dlpack", &obj, &versioned, &type, &id, &flags)) return NULL;
  if (!HAIAN_TENSOR_CHECK(obj)) {
    PyErr_SetString(PyExc_TypeError, "to_dlpack takes a haian Tensor");
    return NULL;
  }
  haian_tensor *t = &((haian_py_tensor *)obj)->t;
  exported *e = calloc(1, sizeof *e);
  if (!e) return PyErr_NoMemory();
  for (int i = 0; i < t->ndim; i++) {
    e->dims[i] = t->shape[i];
    e->dims[HAIAN_MAX_RANK + i] = t->stride[i];
  }
  e->tensor = Py_NewRef(obj);
  dl_tensor d = {t->data, {(int32_t)type, (int32_t)id}, t->ndim, dl_of[t->dtype], e->dims, e->dims + HAIAN_MAX_RANK, 0};
  PyObject *capsule;
  if (versioned) {
    e->v1 = (dl_versioned){1, 0, e, delete_v1, flags, d};
    capsule = PyCapsule_New(&e->v1, "dltensor_versioned", capsule_free);
  } else {
    e->v0 = (dl_managed){d, e, delete_v0};
    capsule = PyCapsule_New(&e->v0, "dltensor", capsule_free);
  }
  if (!capsule) {
    Py_DECREF(e->tensor);
    free(e);
  }
  return capsule;
}

/* Holders of an imported managed tensor: capsules whose destructor calls its deleter. */
static void release_v0(PyObject *holder) {
  dl_managed *d = PyCapsule_GetPointer(holder, "haian.dlpack");
  if (d && d->deleter) d->deleter(d);
}
static void release_v1(PyObject *holder) {
  dl_versioned *d = PyCapsule_GetPointer(holder, "haian.dlpack");
  if (d && d->deleter) d->deleter(d);
}

static PyObject *py_from_dlpack(PyObject *m, PyObject *args) {
  (void)m;
  PyObject *capsule;
  long device;
  if (!PyArg_ParseTuple(args, "Ol:from_dlpack", &capsule, &device)) return NULL;
  dl_tensor *d;
  void *managed;
  int versioned = PyCapsule_IsValid(capsule, "dltensor_versioned");
  if (versioned) {
    dl_versioned *v = PyCapsule_GetPointer(capsule, "dltensor_versioned");
    if (v->major != 1)
      return haian_raise_text(HAIAN_VERSION_MISMATCH, "from_dlpack: DLPack version %u.%u; haian reads 0 and 1",
                              v->major, v->minor);
    d = &v->t;
    managed = v;
  } else {
    dl_managed *v = PyCapsule_IsValid(capsule, "dltensor") ? PyCapsule_GetPointer(capsule, "dltensor") : NULL;
    if (!v)
      return haian_raise_text(
          HAIAN_INVALID_HANDLE,
          "from_dlpack: not a DLPack capsule, or one already consumed; ask the producer for a new one");
    d = &v->t;
    managed = v;
  }
  int code = 0;
  for (int i = 1; i < HAIAN_DTYPE_END; i++)
    if (dl_of[i].code == d->dtype.code && dl_of[i].bits == d->dtype.bits && d->dtype.lanes == 1) code = i;
  if (!code)
    return haian_raise_text(HAIAN_DTYPE, "from_dlpack: dtype (code %d, %d bits, %d lanes) is not one of haian's",
                            d->dtype.code, d->dtype.bits, d->dtype.lanes);
  if (d->ndim < 0 || d->ndim > HAIAN_MAX_RANK)
    return haian_raise_text(HAIAN_SHAPE, "from_dlpack: %d axes; haian tensors have at most %d", d->ndim,
                            HAIAN_MAX_RANK);
  int empty = 0;
  for (int i = 0; i < d->ndim; i++) empty |= d->shape[i] == 0;
  if (!d->data && !empty)
    return haian_raise_text(HAIAN_INVALID_ARGUMENT,
                            "from_dlpack: elements at a null address; fake and meta tensors have shapes only, give one "
                            "that has data");
  haian_py_tensor *r = haian_tensor_new();
  if (!r) return NULL;
  int64_t step = 1;
  for (int i = d->ndim - 1; i >= 0; i--) {
    r->t.shape[i] = d->shape[i];
    r->t.stride[i] = d->strides ? d->strides[i] : step;
    step *= d->shape[i] > 1 ? d->shape[i] : 1;
  }
  r->t.data = (char *)d->data + d->byte_offset;
  r->t.dtype = code;
  r->t.ndim = d->ndim;
  r->t.device = (int32_t)device;
  haian_tensor_finish(&r->t);
  r->readonly = versioned && (((dl_versioned *)managed)->flags & 1); /* bit 0: read-only */
  r->owner = PyCapsule_New(managed, "haian.dlpack", versioned ? release_v1 : release_v0);
  if (!r->owner || PyCapsule_SetName(capsule, versioned ? "used_dltensor_versioned" : "used_dltensor")) {
    Py_DECREF(r);
    return NULL;
  }
  PyCapsule_SetDestructor(capsule, NULL);
  return (PyObject *)r;
}

static PyMethodDef methods[] = {{"to_dlpack", py_to_dlpack, METH_VARARGS,
                                 "to_dlpack(tensor, versioned, dl_device_type, dl_device_id, flags=0) -> capsule."},
                                {"from_dlpack", py_from_dlpack, METH_VARARGS,
                                 "from_dlpack(capsule, device_index) -> Tensor; consumes the capsule."},
                                {0}};
int haian_init_dlpack(PyObject *module) { return PyModule_AddFunctions(module, methods); }
