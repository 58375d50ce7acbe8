/* selective_scan and gated_delta_rule: argument checks and scratch memory.  Not here: the arithmetic (recurrent_real.h).
 * Rows of time are walked one after the other; channels, heads and columns of a state run beside each other. */
#include "row.h"
#include <stdlib.h>

#define TURN_STEPS 256 /* steps of one channel that are loaded at once */
#define STATE_LANES 16 /* partial sums over a state: a vector of AVX-512 floats */
#define MAX_STATE 256  /* elements of a selective state that fit the stack; Mamba-1 has 16 */
#define DELTA_TILE 32  /* columns of a delta state worked on at once: 16 KiB for 128 rows of f32, half an L1 */

/* B or C of selective_scan: constant in time, or turned to (batch, group, length, state) in scratch. */
typedef struct projection {
  const haian_tensor *t;
  int64_t groups, batch_step, group_step, state_step, time_step;
  void *turned;
} projection;

typedef struct selective_job {
  int64_t batch, dim, length, state;
  bool softplus;
  const haian_tensor *u, *delta, *a, *skip, *z, *bias, *out, *last;
  projection p[2];
} selective_job;

typedef struct delta_job {
  int64_t length, width, values, v_heads, each; /* each: value heads of one head of q and k */
  bool unit;
  double scale;
  const haian_tensor *q, *k, *v, *g, *beta, *first, *out, *last;
  char *scratch; /* state_bytes a task */
  int64_t state_bytes, tasks, slots;
} delta_job;

#define TEMPLATE "recurrent_real.h"
#include "each_real.h"

static int32_t acc_of(int32_t dtype) { return row_item(dtype) == 2 ? HAIAN_F32 : dtype; }

#define NEED(op, t, name, wanted, ...)                                                                  \
  do {                                                                                                  \
    const int64_t shape_[] = {__VA_ARGS__};                                                             \
    const int ndim_ = (int)(sizeof shape_ / sizeof *shape_);                                            \
    HAIAN_REQUIRE((t)->dtype == (wanted), HAIAN_DTYPE, op ": " name " has dtype %s; needs %s",          \
                  haian_dtype_name((t)->dtype), haian_dtype_name(wanted));                              \
    HAIAN_REQUIRE((t)->ndim == ndim_ && memcmp((t)->shape, shape_, sizeof shape_) == 0, HAIAN_SHAPE,    \
                  op ": " name " is %s, which does not fit the other tensors; see the operator's help", \
                  row_shape(t).text);                                                                   \
  } while (0)

static int32_t selective_scan(const haian_args *args) {
  haian_tensor *const *in = args->in;
  selective_job job = {.u = in[0],
                       .delta = in[1],
                       .a = in[2],
                       .skip = in[5],
                       .z = in[6],
                       .bias = in[7],
                       .out = args->out[0],
                       .last = args->out[1],
                       .softplus = args->attr[0].i != 0};
  const haian_tensor *u = job.u;
  HAIAN_REQUIRE(row_is_float(u->dtype), HAIAN_DTYPE, "selective_scan: dtype %s; accepts floats; cast it first",
                haian_dtype_name(u->dtype));
  HAIAN_REQUIRE(u->ndim == 3, HAIAN_SHAPE, "selective_scan: u is %s; needs (batch, dim, length)", row_shape(u).text);
  HAIAN_REQUIRE(job.a->ndim == 2, HAIAN_SHAPE, "selective_scan: A is %s; needs (dim, state)", row_shape(job.a).text);
  int32_t own = u->dtype, acc = acc_of(own);
  int64_t batch = job.batch = u->shape[0], dim = job.dim = u->shape[1], length = job.length = u->shape[2];
  int64_t state = job.state = job.a->shape[1];
  HAIAN_REQUIRE(state <= MAX_STATE, HAIAN_UNSUPPORTED, "selective_scan: a state of %lld; this kernel takes %d at most",
                (long long)state, MAX_STATE);
  NEED("selective_scan", job.delta, "delta", own, batch, dim, length);
  NEED("selective_scan", job.a, "A", acc, dim, state);
  for (int which = 0; which < 2; which++) {
    projection *p = &job.p[which];
    const haian_tensor *t = p->t = in[3 + which];
    p->groups = t->ndim == 4 ? t->shape[1] : 1;
    if (t->ndim == 2) {
      NEED("selective_scan", t, "B or C", acc, dim, state);
      continue;
    }
    HAIAN_REQUIRE(p->groups > 0 && dim % p->groups == 0, HAIAN_SHAPE,
                  "selective_scan: B or C has %lld groups for %lld channels; needs a divisor", (long long)p->groups,
                  (long long)dim);
    if (t->ndim == 4) NEED("selective_scan", t, "B or C", own, batch, p->groups, state, length);
    else NEED("selective_scan", t, "B or C", own, batch, state, length);
    p->batch_step = t->stride[0];
    p->group_step = t->ndim == 4 ? t->stride[1] : 0;
    p->state_step = t->stride[t->ndim - 2];
    p->time_step = t->stride[t->ndim - 1];
  }
  if (job.skip) NEED("selective_scan", job.skip, "D", acc, dim);
  if (job.z) NEED("selective_scan", job.z, "z", own, batch, dim, length);
  if (job.bias) NEED("selective_scan", job.bias, "delta_bias", acc, dim);
  NEED("selective_scan", job.out, "out", own, batch, dim, length);
  NEED("selective_scan", job.last, "last_state", acc, batch, dim, state);
  if (job.last->numel == 0 && job.out->numel == 0) return HAIAN_OK;
  return acc == HAIAN_F64 ? selective_f64(&job) : selective_f32(&job);
}

static int32_t gated_delta_rule(const haian_args *args) {
  haian_tensor *const *in = args->in;
  delta_job job = {.q = in[0],
                   .k = in[1],
                   .v = in[2],
                   .g = in[3],
                   .beta = in[4],
                   .first = in[5],
                   .out = args->out[0],
                   .last = args->out[1],
                   .unit = args->attr[1].i != 0};
  const haian_tensor *q = job.q, *v = job.v;
  HAIAN_REQUIRE(row_is_float(q->dtype), HAIAN_DTYPE, "gated_delta_rule: dtype %s; accepts floats; cast it first",
                haian_dtype_name(q->dtype));
  HAIAN_REQUIRE(q->ndim == 4 && v->ndim == 4, HAIAN_SHAPE, "gated_delta_rule: q is %s and v %s; needs four axes each",
                row_shape(q).text, row_shape(v).text);
  int32_t own = q->dtype, acc = acc_of(own);
  int64_t batch = q->shape[0], heads = q->shape[2];
  job.length = q->shape[1];
  job.width = q->shape[3];
  job.v_heads = v->shape[2];
  job.values = v->shape[3];
  HAIAN_REQUIRE(heads > 0 && job.v_heads % heads == 0 && job.width > 0, HAIAN_SHAPE,
                "gated_delta_rule: v has %lld heads and q %lld; needs a multiple of q's", (long long)job.v_heads,
                (long long)heads);
  job.each = job.v_heads / heads;
  NEED("gated_delta_rule", job.k, "k", own, batch, job.length, heads, job.width);
  NEED("gated_delta_rule", v, "v", own, batch, job.length, job.v_heads, job.values);
  NEED("gated_delta_rule", job.g, "g", acc, batch, job.length, job.v_heads);
  NEED("gated_delta_rule", job.beta, "beta", own, batch, job.length, job.v_heads);
  if (job.first) NEED("gated_delta_rule", job.first, "initial_state", acc, batch, job.v_heads, job.width, job.values);
  NEED("gated_delta_rule", job.out, "out", own, batch, job.length, job.v_heads, job.values);
  NEED("gated_delta_rule", job.last, "final_state", acc, batch, job.v_heads, job.width, job.values);
  job.scale = args->attr[0].kind == HAIAN_NONE ? 1 / sqrt((double)job.width) : args->attr[0].f;
  job.tasks = batch * job.v_heads * ((job.values + DELTA_TILE - 1) / DELTA_TILE);
  if (job.tasks == 0) return HAIAN_OK;
  int64_t bytes = job.width * (DELTA_TILE + 2) * row_item(acc), threads = haian_num_threads();
  job.state_bytes = (bytes + 63) & ~(int64_t)63;
  job.slots = job.tasks < threads ? job.tasks : threads;
  job.scratch = malloc((size_t)(job.state_bytes * job.slots));
  HAIAN_REQUIRE(job.scratch, HAIAN_OUT_OF_MEMORY, "gated_delta_rule: no memory for %lld bytes of states",
                (long long)(job.state_bytes * job.slots));
  haian_parallel_for(job.slots, 1 + (1 << 14) / ((job.length + 1) * job.width * DELTA_TILE * job.tasks / job.slots + 1),
                     acc == HAIAN_F64 ? delta_tiles_f64 : delta_tiles_f32, &job);
  free(job.scratch);
  return HAIAN_OK;
}

const haian_kernel_entry HAIAN_TABLE(recurrent)[] = {
    {"selective_scan", selective_scan, HAIAN_FLOATS, NULL},
    {"gated_delta_rule", gated_delta_rule, HAIAN_FLOATS, NULL},
    {NULL, NULL, 0, NULL},
};
