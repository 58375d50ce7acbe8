/* matmul, mm, bmm, addmm, baddbmm, linear: shape rules and broadcasting over the packed product of gemm/gemm.h.
 * Semantics of NumPy and PyTorch: integers wrap, K = 0 gives zeros, beta = 0 ignores input even where it is NaN.
 * Not here: blocking and threads (gemm/gemm.c), quantised products (quant.c). */
#include "gemm/gemm.h"

#include <math.h>
#include <stdio.h>

#define DTYPES                                                                                              \
  (HAIAN_FLOATS | HAIAN_BIT(HAIAN_U8) | HAIAN_BIT(HAIAN_I8) | HAIAN_BIT(HAIAN_I16) | HAIAN_BIT(HAIAN_I32) | \
   HAIAN_BIT(HAIAN_I64))

typedef struct shape_text {
  char s[HAIAN_MAX_RANK * 21 + 4];
} shape_text;

static shape_text text_of(int64_t ndim, const int64_t *shape) { /* "(2, 3)" */
  shape_text t;
  size_t used = (size_t)snprintf(t.s, sizeof t.s, "(");
  for (int64_t i = 0; i < ndim; i++)
    used += (size_t)snprintf(t.s + used, sizeof t.s - used, i ? ", %lld" : "%lld", (long long)shape[i]);
  snprintf(t.s + used, sizeof t.s - used, ndim == 1 ? ",)" : ")");
  return t;
}
#define TEXT(t) text_of((t)->ndim, (t)->shape).s

static int32_t check_operands(const char *op, const haian_args *args, int least, int most) {
  HAIAN_REQUIRE(args->n_in >= least && args->n_in <= most && args->n_out == 1, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs and %d outputs; needs %d to %d inputs and 1 output", op, args->n_in, args->n_out, least,
                most);
  for (int i = 0; i < least; i++)
    HAIAN_REQUIRE(args->in[i], HAIAN_INVALID_ARGUMENT, "%s: input %d is missing; pass a tensor", op, i);
  HAIAN_REQUIRE(args->out[0], HAIAN_INVALID_ARGUMENT, "%s: no output; pass a tensor", op);
  const int32_t dtype = args->in[0]->dtype;
  HAIAN_REQUIRE(dtype > 0 && dtype < HAIAN_DTYPE_END && (DTYPES & HAIAN_BIT(dtype)), HAIAN_DTYPE,
                "%s: dtype %s; accepts float16, bfloat16, float32, float64, uint8 and signed integers; cast first", op,
                haian_dtype_name(dtype));
  for (int i = 0; i < args->n_in; i++)
    HAIAN_REQUIRE(!args->in[i] || args->in[i]->dtype == dtype, HAIAN_DTYPE,
                  "%s: inputs are %s and %s; needs one dtype; cast first", op, haian_dtype_name(dtype),
                  haian_dtype_name(args->in[i]->dtype));
  HAIAN_REQUIRE(args->out[0]->dtype == dtype, HAIAN_DTYPE, "%s: out is %s and the inputs %s; needs one dtype", op,
                haian_dtype_name(args->out[0]->dtype), haian_dtype_name(dtype));
  for (int i = 0; i <= args->n_in; i++) {
    const haian_tensor *t = i < args->n_in ? args->in[i] : args->out[0];
    HAIAN_REQUIRE(!t || (t->ndim >= 0 && t->ndim <= HAIAN_MAX_RANK), HAIAN_SHAPE,
                  "%s: a tensor of rank %d; ranks up to %d are supported", op, t->ndim, HAIAN_MAX_RANK);
  }
  return HAIAN_OK;
}

/* the matrix in the last two axes of t; a vector has one axis, and its other stride is 0 */
static haian_matrix matrix_of(const haian_tensor *t, int row_axis, int col_axis) {
  haian_matrix x = {.data = t->data, .dtype = t->dtype};
  if (row_axis >= 0) x.row = t->stride[row_axis];
  if (col_axis >= 0) x.col = t->stride[col_axis];
  return x;
}

/* strides of t's `lead` batch axes, right-aligned against `axes` axes of shape `batch`; 0 where t has one element */
static void batch_strides(haian_matrix *x, const haian_tensor *t, int lead, int axes) {
  for (int i = 0; i < axes; i++) {
    const int axis = i - (axes - lead);
    x->batch[i] = axis >= 0 && t->shape[axis] != 1 ? t->stride[axis] : 0;
  }
}

static int32_t check_out(const char *op, const haian_tensor *out, int ndim, const int64_t *shape) {
  bool same = out->ndim == ndim;
  for (int i = 0; same && i < ndim; i++) same = out->shape[i] == shape[i];
  HAIAN_REQUIRE(same, HAIAN_SHAPE, "%s: out is %s; the result is %s; pass an output of that shape", op, TEXT(out),
                text_of(ndim, shape).s);
  return HAIAN_OK;
}

/* alpha, beta: a number, 1 when not given; integral for integer dtypes, as int64 arithmetic is meant then */
static int32_t scale_of(const char *op, const haian_args *args, int index, const char *name, int32_t dtype,
                        double *value) {
  *value = 1.0;
  if (index < args->n_attr && args->attr[index].kind != HAIAN_NONE) {
    const haian_attr *attr = &args->attr[index];
    HAIAN_REQUIRE(attr->kind == HAIAN_FLOAT || attr->kind == HAIAN_INT, HAIAN_INVALID_ARGUMENT,
                  "%s: %s is not a number; pass one", op, name);
    *value = attr->kind == HAIAN_INT ? (double)attr->i : attr->f;
  }
  if (!(HAIAN_FLOATS & HAIAN_BIT(dtype)))
    HAIAN_REQUIRE(*value == floor(*value) && fabs(*value) < 0x1p62, HAIAN_INVALID_ARGUMENT,
                  "%s: %s is %g; integer tensors need an integer", op, name, *value);
  return HAIAN_OK;
}

#define TRY(call)                            \
  do {                                       \
    const int32_t status_ = (call);          \
    if (status_ != HAIAN_OK) return status_; \
  } while (0)

/* a (..., m, k) or (k), b (..., k, n) or (k) -> out with broadcast batch axes */
static int32_t matmul(const haian_args *args) {
  TRY(check_operands("matmul", args, 2, 2));
  const haian_tensor *a = args->in[0], *b = args->in[1], *out = args->out[0];
  HAIAN_REQUIRE(a->ndim >= 1 && b->ndim >= 1, HAIAN_SHAPE,
                "matmul: a is %s and b is %s; both need at least one axis; use mul for scalars", TEXT(a), TEXT(b));
  const int a_row = a->ndim - 2, a_col = a->ndim - 1, b_row = b->ndim >= 2 ? b->ndim - 2 : 0, b_col = b->ndim - 1;
  const int64_t k = a->shape[a_col];
  HAIAN_REQUIRE(b->shape[b_row] == k, HAIAN_SHAPE,
                "matmul: a is %s and b is %s; a's last axis (%lld) must equal b's %s (%lld)", TEXT(a), TEXT(b),
                (long long)k, b->ndim >= 2 ? "second to last" : "only one", (long long)b->shape[b_row]);
  const int a_lead = a->ndim >= 2 ? a->ndim - 2 : 0, b_lead = b->ndim >= 2 ? b->ndim - 2 : 0;
  const int axes = a_lead > b_lead ? a_lead : b_lead;
  haian_gemm g = {.m = a_row >= 0 ? a->shape[a_row] : 1,
                  .n = b->ndim >= 2 ? b->shape[b_col] : 1,
                  .k = k,
                  .batch_ndim = axes,
                  .alpha = 1.0,
                  .beta = 0.0};
  int64_t shape[HAIAN_MAX_RANK];
  int ndim = 0;
  for (int i = 0; i < axes; i++) {
    const int ia = i - (axes - a_lead), ib = i - (axes - b_lead);
    const int64_t sa = ia >= 0 ? a->shape[ia] : 1, sb = ib >= 0 ? b->shape[ib] : 1;
    HAIAN_REQUIRE(sa == sb || sa == 1 || sb == 1, HAIAN_SHAPE,
                  "matmul: a is %s and b is %s; batch axes must be equal or 1", TEXT(a), TEXT(b));
    shape[ndim++] = g.batch[i] = sa == 1 ? sb : sa;
  }
  if (a->ndim >= 2) shape[ndim++] = g.m;
  if (b->ndim >= 2) shape[ndim++] = g.n;
  TRY(check_out("matmul", out, ndim, shape));
  g.a = matrix_of(a, a_row, a_col);
  g.b = matrix_of(b, b_row, b->ndim >= 2 ? b_col : -1);
  g.c = matrix_of(out, a->ndim >= 2 ? axes : -1, b->ndim >= 2 ? out->ndim - 1 : -1);
  batch_strides(&g.a, a, a_lead, axes);
  batch_strides(&g.b, b, b_lead, axes);
  batch_strides(&g.c, out, axes, axes);
  return HAIAN_SYM(gemm)("matmul", &g);
}

/* [input (broadcast to out),] a (batch..., m, k), b (batch..., k, n) -> out; `axes` batch axes, all of equal size */
static int32_t product(const char *op, const haian_args *args, int axes, const haian_tensor *input) {
  const int skip = input ? 1 : 0, rank = axes + 2;
  const haian_tensor *a = args->in[skip], *b = args->in[skip + 1], *out = args->out[0];
  HAIAN_REQUIRE(a->ndim == rank && b->ndim == rank, HAIAN_SHAPE, "%s: operands are %s and %s; both need %d axes", op,
                TEXT(a), TEXT(b), rank);
  haian_gemm g = {.m = a->shape[axes],
                  .n = b->shape[axes + 1],
                  .k = a->shape[axes + 1],
                  .batch_ndim = axes,
                  .alpha = 1.0,
                  .beta = 0.0};
  HAIAN_REQUIRE(b->shape[axes] == g.k, HAIAN_SHAPE,
                "%s: operands are %s and %s; the first's last axis (%lld) must equal the second's second to last "
                "(%lld)",
                op, TEXT(a), TEXT(b), (long long)g.k, (long long)b->shape[axes]);
  int64_t shape[3];
  for (int i = 0; i < axes; i++) {
    HAIAN_REQUIRE(a->shape[i] == b->shape[i], HAIAN_SHAPE,
                  "%s: operands are %s and %s; batch axes must be equal; use matmul to broadcast", op, TEXT(a),
                  TEXT(b));
    shape[i] = g.batch[i] = a->shape[i];
  }
  shape[axes] = g.m;
  shape[axes + 1] = g.n;
  TRY(check_out(op, out, rank, shape));
  g.a = matrix_of(a, axes, axes + 1);
  g.b = matrix_of(b, axes, axes + 1);
  g.c = matrix_of(out, axes, axes + 1);
  batch_strides(&g.a, a, axes, axes);
  batch_strides(&g.b, b, axes, axes);
  batch_strides(&g.c, out, axes, axes);
  if (input) {
    bool fits = input->ndim <= rank;
    for (int i = 1; fits && i <= input->ndim; i++)
      fits = input->shape[input->ndim - i] == 1 || input->shape[input->ndim - i] == shape[rank - i];
    HAIAN_REQUIRE(fits, HAIAN_SHAPE, "%s: input is %s; it must broadcast to %s", op, TEXT(input),
                  text_of(rank, shape).s);
    TRY(scale_of(op, args, 0, "beta", a->dtype, &g.beta));
    TRY(scale_of(op, args, 1, "alpha", a->dtype, &g.alpha));
    if (g.beta != 0.0) {
      int64_t stride[3] = {0, 0, 0};
      for (int i = 0; i < input->ndim; i++)
        if (input->shape[i] != 1) stride[rank - input->ndim + i] = input->stride[i];
      g.d = (haian_matrix){.data = input->data, .row = stride[axes], .col = stride[axes + 1], .dtype = input->dtype};
      if (axes) g.d.batch[0] = stride[0];
    }
  }
  return HAIAN_SYM(gemm)(op, &g);
}

static int32_t mm(const haian_args *args) {
  TRY(check_operands("mm", args, 2, 2));
  return product("mm", args, 0, NULL);
}
static int32_t bmm(const haian_args *args) {
  TRY(check_operands("bmm", args, 2, 2));
  return product("bmm", args, 1, NULL);
}
/* beta * input + alpha * (mat1 @ mat2) */
static int32_t addmm(const haian_args *args) {
  TRY(check_operands("addmm", args, 3, 3));
  return product("addmm", args, 0, args->in[0]);
}
static int32_t baddbmm(const haian_args *args) {
  TRY(check_operands("baddbmm", args, 3, 3));
  return product("baddbmm", args, 1, args->in[0]);
}

/* x (..., k), weight (n, k), bias (n) or not given -> (..., n) */
static int32_t linear(const haian_args *args) {
  TRY(check_operands("linear", args, 2, 3));
  const haian_tensor *x = args->in[0], *weight = args->in[1], *bias = args->n_in > 2 ? args->in[2] : NULL;
  const haian_tensor *out = args->out[0];
  HAIAN_REQUIRE(x->ndim >= 1, HAIAN_SHAPE, "linear: x is a scalar; needs (..., in_features)");
  HAIAN_REQUIRE(weight->ndim == 2, HAIAN_SHAPE, "linear: weight is %s; needs (out_features, in_features)",
                TEXT(weight));
  const int last = x->ndim - 1;
  HAIAN_REQUIRE(x->shape[last] == weight->shape[1], HAIAN_SHAPE,
                "linear: x is %s and weight %s; x's last axis (%lld) must equal weight's (%lld)", TEXT(x), TEXT(weight),
                (long long)x->shape[last], (long long)weight->shape[1]);
  HAIAN_REQUIRE(!bias || (bias->ndim == 1 && bias->shape[0] == weight->shape[0]), HAIAN_SHAPE,
                "linear: bias is %s; needs (%lld,)", TEXT(bias), (long long)weight->shape[0]);
  int64_t shape[HAIAN_MAX_RANK];
  for (int i = 0; i < last; i++) shape[i] = x->shape[i];
  shape[last] = weight->shape[0];
  TRY(check_out("linear", out, x->ndim, shape));
  const int axes = last >= 1 ? last - 1 : 0; /* leading axes beyond the rows */
  haian_gemm g = {.m = last >= 1 ? x->shape[last - 1] : 1,
                  .n = weight->shape[0],
                  .k = weight->shape[1],
                  .batch_ndim = axes,
                  .alpha = 1.0,
                  .beta = 1.0};
  g.a = matrix_of(x, last - 1, last);
  g.b = matrix_of(weight, 1, 0);
  g.c = matrix_of(out, last - 1, last);
  if (bias) g.d = matrix_of(bias, -1, 0);
  for (int i = 0; i < axes; i++) {
    g.batch[i] = x->shape[i];
    g.a.batch[i] = x->stride[i];
    g.c.batch[i] = out->stride[i];
  }
  return HAIAN_SYM(gemm)("linear", &g);
}

const haian_kernel_entry HAIAN_TABLE(matmul)[] = {
    {"matmul", matmul, DTYPES, NULL},
    {"mm", mm, DTYPES, NULL},
    {"bmm", bmm, DTYPES, NULL},
    {"addmm", addmm, DTYPES, NULL},
    {"baddbmm", baddbmm, DTYPES, NULL},
    {"linear", linear, DTYPES, NULL},
    {NULL, NULL, 0, NULL},
};
