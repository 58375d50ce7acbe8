/* Gates over the two halves of a tensor's last axis: the pointwise engine over two views of it, nothing copied.
 * For: pointwise.c, behind the generated tiles.  Not here: what is computed (kernels/ops/pointwise_activation.py). */
#ifndef HAIAN_GATED_H
#define HAIAN_GATED_H

/* Half `which` of t's last axis; t has an axis, of even size. */
static haian_tensor half_of(const haian_tensor *t, int which) {
  haian_tensor h = *t;
  int last = t->ndim - 1;
  h.shape[last] /= 2;
  h.numel /= 2;
  h.data = (char *)h.data + which * h.shape[last] * h.stride[last] * haian_itemsize(t->dtype);
  bool one_row = h.numel == h.shape[last] && h.stride[last] == 1;
  h.tag &= ~HAIAN_TAG_ALIGNED;
  if (!one_row) h.tag &= ~HAIAN_TAG_CONTIGUOUS;
  return h;
}

static int32_t check_halves(const char *op, const char *name, const haian_tensor *t) {
  HAIAN_REQUIRE(t, HAIAN_INVALID_ARGUMENT, "%s: %s was not given; it is not optional", op, name);
  HAIAN_REQUIRE(t->ndim >= 1 && t->shape[t->ndim - 1] % 2 == 0, HAIAN_SHAPE,
                "%s: %s is %s; needs a last axis of even size, gate and up side by side", op, name, HAIAN_SHAPE_OF(t));
  return HAIAN_OK;
}

/* y (..., n) from x (..., 2 n) */
static int32_t run_gated(const haian_pointwise *pw, const char *op, const haian_args *args) {
  HAIAN_REQUIRE(args->n_in == 1 && args->n_out == 1 && args->n_attr == pw->n_attr, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs 1, 1, %d", op, args->n_in, args->n_out, args->n_attr,
                pw->n_attr);
  int32_t status = check_halves(op, "x", args->in[0]);
  if (status) return status;
  haian_tensor gate = half_of(args->in[0], 0), up = half_of(args->in[0], 1), *in[2] = {&gate, &up};
  HAIAN_REQUIRE(haian_same_shape(&gate, args->out[0]), HAIAN_SHAPE,
                "%s: out is %s and x %s; out needs half of the last axis", op, HAIAN_SHAPE_OF(args->out[0]),
                HAIAN_SHAPE_OF(args->in[0]));
  haian_args two = {.n_in = 2, .n_out = 1, .n_attr = args->n_attr, .in = in, .out = args->out, .attr = args->attr};
  return haian_pointwise_run(pw, &two);
}

/* dx (..., 2 n) from dy (..., n) and x: slope(dy, gate, up) beside forward(gate, dy) */
static int32_t run_gated_backward(const haian_pointwise *slope, const haian_pointwise *forward, const char *op,
                                  const haian_args *args) {
  HAIAN_REQUIRE(args->n_in == 2 && args->n_out == 1 && args->n_attr == forward->n_attr, HAIAN_INVALID_ARGUMENT,
                "%s: %d inputs, %d outputs, %d attributes; needs 2, 1, %d", op, args->n_in, args->n_out, args->n_attr,
                forward->n_attr);
  int32_t status = check_halves(op, "x", args->in[1]);
  if (status) return status;
  haian_tensor *dy = args->in[0], *out = args->out[0];
  HAIAN_REQUIRE(dy, HAIAN_INVALID_ARGUMENT, "%s: dy was not given; it is not optional", op);
  HAIAN_REQUIRE(haian_same_shape(args->in[1], out), HAIAN_SHAPE, "%s: out is %s; needs x's shape %s", op,
                HAIAN_SHAPE_OF(out), HAIAN_SHAPE_OF(args->in[1]));
  haian_tensor gate = half_of(args->in[1], 0), up = half_of(args->in[1], 1), left = half_of(out, 0),
               right = half_of(out, 1);
  HAIAN_REQUIRE(haian_same_shape(&gate, dy), HAIAN_SHAPE, "%s: dy is %s and x %s; dy needs half of the last axis", op,
                HAIAN_SHAPE_OF(dy), HAIAN_SHAPE_OF(args->in[1]));
  haian_tensor *three[3] = {dy, &gate, &up}, *two[2] = {&gate, dy}, *to_left[1] = {&left}, *to_right[1] = {&right};
  haian_args first = {.n_in = 3, .n_out = 1, .n_attr = args->n_attr, .in = three, .out = to_left, .attr = args->attr};
  haian_args second = {.n_in = 2, .n_out = 1, .n_attr = args->n_attr, .in = two, .out = to_right, .attr = args->attr};
  status = haian_pointwise_run(slope, &first);
  return status ? status : haian_pointwise_run(forward, &second);
}

#define HAIAN_GATE(name, of)                                                                                           \
  static int32_t run_##name(const haian_args *args) { return run_gated(&pointwise_##of##_and_mul, #name, args); }      \
  static int32_t run_##name##_backward(const haian_args *args) {                                                       \
    return run_gated_backward(&pointwise_##of##_and_mul_backward, &pointwise_##of##_and_mul, #name "_backward", args); \
  }
HAIAN_GATE(swiglu, silu)
HAIAN_GATE(geglu, gelu)
HAIAN_GATE(reglu, relu)

#define HAIAN_GATE_ROWS(name) \
  {#name, run_##name, HAIAN_FLOATS, NULL}, { #name "_backward", run_##name##_backward, HAIAN_FLOATS, NULL }
#endif
