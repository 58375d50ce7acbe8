/* A driver whose vendor brings operators of its own: add (preferred, any strides) and neg (supported, packed tensors only).
 * The rest is the inline example's. */
#define hal_get_adapter inner_adapter
#include "../examples/inline_adapter/inline.c"
#undef hal_get_adapter

enum { F32 = 12 };

static hal_status query(int32_t device, const char *name, const hal_dtype *dtypes, int32_t count, int32_t contiguous,
                        int32_t *answer) {
  (void)device;
  int add = !strcmp(name, "add") && count == 2, neg = !strcmp(name, "neg") && count == 1 && contiguous;
  *answer = add ? 2 : neg ? 1 : 0;
  for (int32_t i = 0; i < count; i++)
    if (dtypes[i] != F32) *answer = 0;
  return HAL_OK;
}

static float *at(const hal_tensor *t, const int64_t *index, int32_t ndim) {
  int64_t offset = 0;
  for (int32_t d = 0; d < t->ndim; d++) {
    int32_t from = ndim - t->ndim + d;
    offset += (t->shape[d] == 1 ? 0 : index[from]) * t->strides[d];
  }
  return (float *)(uintptr_t)t->data + offset;
}

static hal_status run(int32_t device, hal_handle stream, const char *name, const hal_tensor *in, int32_t n_in,
                      const hal_tensor *out, int32_t n_out, const hal_attr *attrs, int32_t n_attrs) {
  (void)device, (void)stream, (void)n_out, (void)attrs, (void)n_attrs;
  int64_t index[8] = {0}, left = 1;
  for (int32_t d = 0; d < out->ndim; d++) left *= out->shape[d];
  for (; left > 0; left--) {
    float x = *at(&in[0], index, out->ndim);
    *at(out, index, out->ndim) = n_in == 2 ? x + *at(&in[1], index, out->ndim) : -x;
    for (int32_t d = out->ndim - 1; d >= 0 && ++index[d] == out->shape[d]; d--) index[d] = 0;
  }
  return !strcmp(name, "add") || !strcmp(name, "neg") ? HAL_OK : fail(HAL_UNSUPPORTED, "the library has add and neg");
}

static const hal_op op = {sizeof op, 0, query, run};
HAL_EXPORT const hal_adapter *hal_get_adapter(const hal_host *host) {
  static hal_adapter whole;
  const hal_adapter *base = inner_adapter(host);
  if (!base) return NULL;
  whole = *base;
  whole.name = "library";
  whole.op = &op;
  return &whole;
}
