/* Steps of optimisers: argument checks and partition into runs.  An output may be exactly an input: every run is read before
 * it is written.  Not here: the arithmetic (optim_real.h). */
#include "pointwise.h"
#include "row.h"

#define STEP_RUN 1024  /* elements read, computed and written at a time */
#define STEP_TENSORS 5 /* param, grad and three states */

enum step_rule { SGD, ADAM, ADAMW, RMSPROP, ADADELTA };

/* Numbers of a step; those that a rule does not have stay 0. */
typedef struct step_numbers {
  double lr, decay, eps, beta1, beta2, fix1, fix2, momentum, dampening; /* fix: 1 - beta^step */
  bool nesterov, maximize, first, centered;
} step_numbers;

typedef struct step_job {
  enum step_rule rule;
  step_numbers k;
  int tensors;                                  /* of param, grad, states in schema order */
  row_axes in[STEP_TENSORS], out[STEP_TENSORS]; /* out[1] is not used: a gradient stays */
  const char *in_data[STEP_TENSORS];            /* NULL: not given */
  char *out_data[STEP_TENSORS];
  int64_t n;
} step_job;

#define TEMPLATE "optim_real.h"
#include "each_real.h"

static int32_t step(const char *name, enum step_rule rule, const haian_args *args, const step_numbers *k) {
  const haian_tensor *param = args->in[0];
  HAIAN_REQUIRE(row_is_float(param->dtype), HAIAN_DTYPE,
                "%s: dtype %s; accepts float32, float16, bfloat16, float64; cast it first", name,
                haian_dtype_name(param->dtype));
  int32_t acc = row_item(param->dtype) == 2 ? HAIAN_F32 : param->dtype;
  step_job job = {.rule = rule, .k = *k, .tensors = args->n_in, .n = param->numel};
  for (int i = 0; i < args->n_in; i++) {
    const haian_tensor *t = args->in[i], *y = i == 1 ? NULL : args->out[i ? i - 1 : 0];
    HAIAN_REQUIRE(!t || t->dtype == param->dtype || t->dtype == acc, HAIAN_DTYPE,
                  "%s: %s has dtype %s and param %s; needs that or %s", name, i == 1 ? "grad" : "a state",
                  haian_dtype_name(t->dtype), haian_dtype_name(param->dtype), haian_dtype_name(acc));
    HAIAN_REQUIRE(!t || haian_same_shape(t, param), HAIAN_SHAPE, "%s: %s is %s and param %s; they must be equal", name,
                  i == 1 ? "grad" : "a state", row_shape(t).text, row_shape(param).text);
    HAIAN_REQUIRE(!y || (t ? y->dtype == t->dtype && haian_same_shape(y, t)
                           : y->dtype == acc && y->ndim == 1 && y->shape[0] == 0),
                  HAIAN_SHAPE, "%s: result %d is %s %s; needs the dtype and shape of its state, (0,) where none came",
                  name, i, haian_dtype_name(y->dtype), row_shape(y).text);
  }
  HAIAN_REQUIRE(k->lr >= 0 && k->decay >= 0 && k->eps >= 0 && k->momentum >= 0, HAIAN_INVALID_ARGUMENT,
                "%s: lr %g, weight_decay %g, eps %g, momentum %g; none may be negative", name, k->lr, k->decay, k->eps,
                k->momentum);
  HAIAN_REQUIRE((!(k->momentum != 0) || args->in[rule == SGD ? 2 : 3]) && (!k->centered || args->in[4]),
                HAIAN_INVALID_ARGUMENT, "%s: momentum or centered is set and its state was not given; give zeros",
                name);
  for (int i = 0; i < args->n_in; i++) {
    if (!args->in[i]) continue;
    row_of(&job.in[i], args->in[i], ~0u);
    job.in_data[i] = args->in[i]->data;
    if (i == 1) continue;
    row_of(&job.out[i], args->out[i ? i - 1 : 0], ~0u);
    job.out_data[i] = args->out[i ? i - 1 : 0]->data;
  }
  if (param->numel == 0) return HAIAN_OK;
  haian_parallel_for((job.n + STEP_RUN - 1) / STEP_RUN, row_grain(STEP_RUN, 4 * 2 * job.in[0].item),
                     param->dtype == HAIAN_F64 ? step_runs_f64 : step_runs_f32, &job);
  return HAIAN_OK;
}

static double number(const haian_attr *a) { return a->kind == HAIAN_INT ? (double)a->i : a->f; }
static bool is_true(const haian_attr *a) { return a->kind == HAIAN_INT && a->i != 0; }

static int32_t sgd(const haian_args *args) {
  const haian_attr *a = args->attr;
  step_numbers k = {.lr = number(&a[0]),
                    .momentum = number(&a[1]),
                    .dampening = number(&a[2]),
                    .decay = number(&a[3]),
                    .nesterov = is_true(&a[4]),
                    .maximize = is_true(&a[5]),
                    .first = is_true(&a[6])};
  return step("sgd", SGD, args, &k);
}

static int32_t adaptive(const char *name, enum step_rule rule, const haian_args *args) {
  const haian_attr *a = args->attr;
  HAIAN_REQUIRE(a[0].kind == HAIAN_INT && a[0].i >= 1, HAIAN_INVALID_ARGUMENT, "%s: step is %lld; the first one is 1",
                name, (long long)a[0].i);
  step_numbers k = {.lr = number(&a[1]),
                    .beta1 = number(&a[2]),
                    .beta2 = number(&a[3]),
                    .decay = number(&a[4]),
                    .eps = number(&a[5]),
                    .maximize = is_true(&a[6])};
  HAIAN_REQUIRE(k.beta1 >= 0 && k.beta2 >= 0, HAIAN_INVALID_ARGUMENT, "%s: beta1 %g, beta2 %g; none may be negative",
                name, k.beta1, k.beta2);
  k.fix1 = 1 - pow(k.beta1, (double)a[0].i);
  k.fix2 = 1 - pow(k.beta2, (double)a[0].i);
  return step(name, rule, args, &k);
}
static int32_t adam(const haian_args *args) { return adaptive("adam", ADAM, args); }
static int32_t adamw(const haian_args *args) { return adaptive("adamw", ADAMW, args); }

static int32_t rmsprop(const haian_args *args) {
  const haian_attr *a = args->attr;
  step_numbers k = {.lr = number(&a[0]),
                    .beta2 = number(&a[1]),
                    .eps = number(&a[2]),
                    .decay = number(&a[3]),
                    .momentum = number(&a[4]),
                    .centered = is_true(&a[5]),
                    .maximize = is_true(&a[6])};
  return step("rmsprop", RMSPROP, args, &k);
}

static int32_t adadelta(const haian_args *args) {
  const haian_attr *a = args->attr;
  step_numbers k = {.lr = number(&a[0]),
                    .beta2 = number(&a[1]),
                    .eps = number(&a[2]),
                    .decay = number(&a[3]),
                    .maximize = is_true(&a[4])};
  return step("adadelta", ADADELTA, args, &k);
}

/* Without tiles: says only that an output may be exactly an input. */
static const haian_pointwise in_place;

const haian_kernel_entry HAIAN_TABLE(optim)[] = {
    {"sgd", sgd, HAIAN_FLOATS, &in_place},           {"adam", adam, HAIAN_FLOATS, &in_place},
    {"adamw", adamw, HAIAN_FLOATS, &in_place},       {"rmsprop", rmsprop, HAIAN_FLOATS, &in_place},
    {"adadelta", adadelta, HAIAN_FLOATS, &in_place}, {NULL, NULL, 0, NULL},
};
