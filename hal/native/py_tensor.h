/* The Python type haian.Tensor over a haian_tensor descriptor; shared by the files of haian._native. */
#ifndef HAIAN_PY_TENSOR_H
#define HAIAN_PY_TENSOR_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "alloc.h"
#include "tensor.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct haian_py_tensor {
  PyObject_HEAD haian_tensor t;
  void *block; /* from haian_host_alloc, or NULL when owner keeps the memory alive */
  size_t block_bytes;
  int readonly;    /* the memory must not be written: views inherit it */
  PyObject *owner; /* another tensor, a buffer, an array, a capsule holder; or NULL */
} haian_py_tensor;

extern PyTypeObject *haian_tensor_type;
#define HAIAN_TENSOR_CHECK(o) (Py_TYPE(o) == haian_tensor_type)

/* A tensor header with undefined fields (block and owner NULL); NULL with MemoryError. */
haian_py_tensor *haian_tensor_new(void);
/* A contiguous host tensor from the caching allocator; shape may alias nothing of the result.  who (NULL: "empty") asked,
 * and stands in front of the error. */
haian_py_tensor *haian_tensor_empty(int32_t dtype, int32_t ndim, const int64_t *shape, PyObject *who);
/* Fills numel and tag from the other fields. */
void haian_tensor_finish(haian_tensor *t);
/* Raises the exception class for a status code with haian_last_error()'s text; returns NULL. */
PyObject *haian_raise(int32_t status);
/* Raises the exception class for a code with a message. */
PyObject *haian_raise_text(int32_t status, const char *format, ...);
PyObject *haian_shape_tuple(const int64_t *v, int32_t n);
/* Sequence of ints to out; -1 with an exception on failure, otherwise the count. */
int haian_read_ints(PyObject *seq, int64_t *out, int max, const char *what);
extern PyObject *haian_dtypes[32]; /* DType objects by code */

int haian_init_tensor(PyObject *module);
int haian_init_dlpack(PyObject *module);
int haian_init_op(PyObject *module);
int haian_init_driver(PyObject *module);
int haian_init_launch(PyObject *module);
int haian_init_cache(PyObject *module);

#ifdef __cplusplus
}
#endif
#endif
