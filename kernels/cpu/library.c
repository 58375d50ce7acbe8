/* The host kernels as one library: choice of instruction set at run time, lookup by operator, the guarded call.
 * Not here: kernels, and the list of variants and families, which the build writes into kernel_tables.h. */
#include "library.h"
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__) && !defined(__x86_64__) && !defined(__i386__)
#include <sys/auxv.h>
#endif
#include "kernel_tables.h"

/* ---- variants: what each needs of the processor and the system; the build may contain any subset ---------------- */
#define MAYBE_UNUSED __attribute__((unused))
MAYBE_UNUSED static bool runs_base(void) { return true; }
#if defined(__x86_64__) || defined(__i386__)
/* __builtin_cpu_supports asks xgetbv too: registers the system does not save count as absent. */
MAYBE_UNUSED static bool runs_avx2(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
}
MAYBE_UNUSED static bool runs_avx512(void) {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
MAYBE_UNUSED static bool runs_avx512vnni(void) { return runs_avx512() && __builtin_cpu_supports("avx512vnni"); }
MAYBE_UNUSED static bool runs_avx512bf16(void) { return runs_avx512vnni() && __builtin_cpu_supports("avx512bf16"); }
#elif defined(__linux__) && defined(__aarch64__)
MAYBE_UNUSED static bool runs_neon(void) { return true; }                                 /* part of AArch64 */
MAYBE_UNUSED static bool runs_sve(void) { return (getauxval(AT_HWCAP) >> 22) & 1; }       /* HWCAP_SVE */
MAYBE_UNUSED static bool runs_neonbf16(void) { return (getauxval(AT_HWCAP2) >> 14) & 1; } /* HWCAP2_BF16 */
#elif defined(__linux__) && defined(__riscv)
MAYBE_UNUSED static bool runs_rvv(void) { return (getauxval(AT_HWCAP) >> ('V' - 'A')) & 1; } /* COMPAT_HWCAP_ISA_V */
#elif defined(__linux__) && defined(__loongarch__)
MAYBE_UNUSED static bool runs_lsx(void) { return (getauxval(AT_HWCAP) >> 4) & 1; }  /* HWCAP_LOONGARCH_LSX */
MAYBE_UNUSED static bool runs_lasx(void) { return (getauxval(AT_HWCAP) >> 5) & 1; } /* HWCAP_LOONGARCH_LASX */
#endif

typedef struct variant {
  const char *name;
  bool (*runs)(void);
  const haian_kernel_entry *const *tables; /* one a family, NULL at the end */
} variant;

static const variant variants[] = {
#define ROW(isa) {#isa, runs_##isa, haian_variant_##isa},
    HAIAN_VARIANTS(ROW)
#undef ROW
};
#define N_VARIANTS ((int)(sizeof variants / sizeof variants[0]))

/* ---- the index: one row an operator, made once ------------------------------------------------------------------- */
typedef struct row {
  const haian_kernel_entry *entry;
  const char *isa;
} row;

static struct {
  row *rows; /* (count), sorted by name */
  int count;
  const char *isa;
  char list[128];
  char error[384];
} library;

static int by_name(const void *a, const void *b) {
  return strcmp(((const row *)a)->entry->op, ((const row *)b)->entry->op);
}

/* The first variant to use: HAIAN_CPU_ISA if it can be had, else the most specific one that runs here. */
static int first_variant(void) {
  int best = 0;
  while (best < N_VARIANTS - 1 && !variants[best].runs()) best++;
  const char *forced = getenv("HAIAN_CPU_ISA");
  if (!forced || !*forced) return best;
  char names[128] = "";
  for (int v = 0; v < N_VARIANTS; v++) {
    bool runs = variants[v].runs();
    if (strcmp(variants[v].name, forced) == 0 && runs) return v;
    if (runs) {
      size_t used = strlen(names);
      snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", variants[v].name);
    }
  }
  snprintf(library.error, sizeof library.error,
           "HAIAN_CPU_ISA=%.40s is not in this build or not run by this processor; using %s; set one of %s, or unset "
           "it",
           forced, variants[best].name, names);
  return best;
}

static void build_index(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
#endif
  int first = first_variant(), total = 0;
  library.isa = variants[first].name;
  for (int v = first; v < N_VARIANTS; v++)
    for (const haian_kernel_entry *const *table = variants[v].tables; *table; table++)
      for (const haian_kernel_entry *e = *table; e->op; e++) total++;
  library.rows = malloc((size_t)(total ? total : 1) * sizeof *library.rows);
  if (!library.rows) {
    snprintf(library.error, sizeof library.error, "no memory for the index of %d kernels", total);
    return;
  }
  size_t used = 0;
  for (int v = first; v < N_VARIANTS; v++) {
    if (!variants[v].runs()) continue;
    if (used < sizeof library.list)
      used +=
          (size_t)snprintf(library.list + used, sizeof library.list - used, "%s%s", used ? "," : "", variants[v].name);
    int known = library.count; /* rows of more specific variants, sorted: a lower variant only fills gaps */
    for (const haian_kernel_entry *const *table = variants[v].tables; *table; table++)
      for (const haian_kernel_entry *e = *table; e->op; e++) {
        row candidate = {e, variants[v].name};
        if (!bsearch(&candidate, library.rows, (size_t)known, sizeof candidate, by_name))
          library.rows[library.count++] = candidate;
      }
    qsort(library.rows, (size_t)library.count, sizeof *library.rows, by_name);
  }
}

static void need_index(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, build_index);
}

const char *haian_isa(void) {
  need_index();
  return library.isa;
}

const char *haian_isa_list(void) {
  need_index();
  return library.list;
}

const char *haian_isa_error(void) {
  need_index();
  return library.error;
}

const haian_kernel_entry *haian_kernel_at(int32_t i, const char **isa) {
  need_index();
  if (i < 0 || i >= library.count) return NULL;
  if (isa) *isa = library.rows[i].isa;
  return library.rows[i].entry;
}

/* Edits (insert, delete, replace) between two names, both cut at 63 characters. */
static int edit_distance(const char *a, const char *b) {
  int previous[64], n = (int)strnlen(b, 63);
  for (int j = 0; j <= n; j++) previous[j] = j;
  for (int i = 1; i <= 63 && a[i - 1]; i++) {
    int diagonal = previous[0];
    previous[0] = i;
    for (int j = 1; j <= n; j++) {
      int best = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = previous[j];
      if (previous[j] + 1 < best) best = previous[j] + 1;
      if (previous[j - 1] + 1 < best) best = previous[j - 1] + 1;
      previous[j] = best;
    }
  }
  return previous[n];
}

const haian_kernel_entry *haian_find_kernel(const char *op, const char **isa) {
  need_index();
  if (!op) {
    haian_fail(HAIAN_INVALID_ARGUMENT, "find_kernel: the operator's name is NULL; needs a name such as \"add\"");
    return NULL;
  }
  const haian_kernel_entry wanted = {.op = op};
  const row key = {&wanted, NULL};
  const row *found = library.count ? bsearch(&key, library.rows, (size_t)library.count, sizeof key, by_name) : NULL;
  if (found) {
    if (isa) *isa = found->isa;
    return found->entry;
  }
  const char *nearest = "";
  int distance = 1 << 20;
  for (int i = 0; i < library.count; i++) {
    int d = edit_distance(op, library.rows[i].entry->op);
    if (d < distance) distance = d, nearest = library.rows[i].entry->op;
  }
  haian_fail(HAIAN_NOT_FOUND, "%.63s: no host kernel of that name among %d; the nearest is %s", op, library.count,
             nearest);
  return NULL;
}

/* ---- the guard --------------------------------------------------------------------------------------------------- */
typedef struct operand {
  const haian_tensor *t;
  const char *op;
  const char *role; /* "input" or "output" */
  int32_t number;
  int64_t low, high; /* bytes [data + low, data + high) are touched; both 0 when there are no elements */
} operand;

#define REFUSE(o, code, format, ...) \
  return haian_fail(code, "%s: %s %d: " format, (o)->op, (o)->role, (int)(o)->number, __VA_ARGS__)

/* Elements before and after `data` that the strides reach.  False on overflow. */
static bool reach(const haian_tensor *t, int64_t *before, int64_t *after) {
  *before = *after = 0;
  for (int d = 0; d < t->ndim; d++) {
    int64_t extent;
    if (__builtin_mul_overflow(t->shape[d] - 1, t->stride[d], &extent)) return false;
    if (extent < 0 ? __builtin_add_overflow(*before, extent, before) : __builtin_add_overflow(*after, extent, after))
      return false;
  }
  return true;
}

static bool strides_are_contiguous(const haian_tensor *t) {
  int64_t expected = 1;
  for (int d = t->ndim - 1; d >= 0; d--) {
    if (t->shape[d] != 1 && t->stride[d] != expected) return false;
    expected *= t->shape[d];
  }
  return true;
}

static int32_t check_tensor(operand *o) {
  const haian_tensor *t = o->t;
  if (t->ndim < 0 || t->ndim > HAIAN_MAX_RANK)
    REFUSE(o, HAIAN_SHAPE, "ndim %d; needs 0 to %d", t->ndim, HAIAN_MAX_RANK);
  int64_t item = haian_itemsize(t->dtype), numel = 1;
  if (!item) REFUSE(o, HAIAN_DTYPE, "dtype code %d; needs 1 to %d", t->dtype, HAIAN_DTYPE_END - 1);
  if (t->device != 0)
    REFUSE(o, HAIAN_INVALID_ARGUMENT, "lives on device %d; host kernels need device 0; copy it to the host", t->device);
  bool empty = false, overflow = false;
  for (int d = 0; d < t->ndim; d++) {
    if (t->shape[d] < 0) REFUSE(o, HAIAN_SHAPE, "shape[%d] is %lld; needs 0 or more", d, (long long)t->shape[d]);
    empty |= t->shape[d] == 0;
  }
  for (int d = 0; d < t->ndim && !empty; d++) overflow |= __builtin_mul_overflow(numel, t->shape[d], &numel);
  if (empty) numel = 0;
  if (overflow) REFUSE(o, HAIAN_SHAPE, "the product of its %d sizes passes 2^63; needs fewer elements", t->ndim);
  if (t->numel != numel)
    REFUSE(o, HAIAN_SHAPE, "numel is %lld; its shape has %lld elements", (long long)t->numel, (long long)numel);
  o->low = o->high = 0;
  if (empty) return HAIAN_OK;
  if (!t->data) REFUSE(o, HAIAN_INVALID_ARGUMENT, "data is NULL; needs memory for %lld elements", (long long)numel);
  int64_t before, after, low, high;
  if (!reach(t, &before, &after) || __builtin_mul_overflow(before, item, &low) ||
      __builtin_add_overflow(after, 1, &high) || __builtin_mul_overflow(high, item, &high) ||
      0 - (uint64_t)low > (uint64_t)(uintptr_t)t->data || (uint64_t)high > UINTPTR_MAX - (uint64_t)(uintptr_t)t->data)
    REFUSE(o, HAIAN_OUT_OF_RANGE, "its strides reach past the address space from %p; needs smaller strides", t->data);
  int64_t alignment = item > 8 ? 8 : item; /* a complex128 is two doubles */
  if ((uintptr_t)t->data % (uintptr_t)alignment)
    REFUSE(o, HAIAN_INVALID_ARGUMENT, "data at %p; %s needs a multiple of %d bytes; copy it", t->data,
           haian_dtype_name(t->dtype), (int)alignment);
  if ((t->tag & HAIAN_TAG_CONTIGUOUS) && !strides_are_contiguous(t))
    REFUSE(o, HAIAN_INVALID_ARGUMENT, "tag %#x says contiguous and the strides do not; clear bit 9 of the tag",
           (unsigned)t->tag);
  if ((t->tag & HAIAN_TAG_ALIGNED) && (uintptr_t)t->data % 64)
    REFUSE(o, HAIAN_INVALID_ARGUMENT, "tag %#x says aligned to 64 bytes and data is %p; clear bit 10 of the tag",
           (unsigned)t->tag, t->data);
  o->low = low;
  o->high = high;
  return HAIAN_OK;
}

/* One term of the question below: an integer k in [low, high] times a step in bytes. */
typedef struct term {
  int64_t step, low, high;
} term;

/* Whether target = sum of k_i * step_i has a solution; `reach_low/high` bound the terms from i on.  The search visits
 * few nodes for nested strides (one or two values of k a level); `budget` bounds the rest, and running out means
 * "may", so that the caller refuses. */
static bool may_hit(const term *terms, int n, int i, __int128 target, const __int128 *reach_low,
                    const __int128 *reach_high, int *budget) {
  if (i == n) return target == 0;
  if (target < reach_low[i] || target > reach_high[i]) return false;
  __int128 step = terms[i].step, lowest = target - reach_high[i + 1], highest = target - reach_low[i + 1];
  __int128 first = lowest / step + (lowest % step > 0), last = highest / step - (highest % step < 0);
  if (first < terms[i].low) first = terms[i].low;
  if (last > terms[i].high) last = terms[i].high;
  for (__int128 k = first; k <= last; k++) {
    if (--*budget < 0) return true;
    if (may_hit(terms, n, i + 1, target - k * step, reach_low, reach_high, budget)) return true;
  }
  return false;
}

static int add_term(term *terms, int n, int64_t step, int64_t low, int64_t high) {
  if (step < 0) {
    int64_t swapped = -low;
    step = -step, low = -high, high = swapped;
  }
  int at = 0;
  while (at < n && terms[at].step > step) at++; /* largest step first */
  if (at < n && terms[at].step == step) {
    terms[at].low += low;
    terms[at].high += high;
    return n;
  }
  memmove(terms + at + 1, terms + at, (size_t)(n - at) * sizeof *terms);
  terms[at] = (term){step, low, high};
  return n + 1;
}

/* Whether two operands share a byte (or may, where deciding costs more than 4096 steps). */
static bool may_share(const operand *a, const operand *b) {
  if (a->low == a->high || b->low == b->high) return false;
  uintptr_t pa = (uintptr_t)a->t->data, pb = (uintptr_t)b->t->data;
  if (pa + (uintptr_t)a->high <= pb + (uintptr_t)b->low || pb + (uintptr_t)b->high <= pa + (uintptr_t)a->low)
    return false;
  int64_t item_a = haian_itemsize(a->t->dtype), item_b = haian_itemsize(b->t->dtype);
  term terms[2 * HAIAN_MAX_RANK + 1];
  int n = add_term(terms, 0, 1, -(item_b - 1), item_a - 1);
  for (int d = 0; d < a->t->ndim; d++)
    if (a->t->shape[d] > 1 && a->t->stride[d]) n = add_term(terms, n, a->t->stride[d] * item_a, 0, a->t->shape[d] - 1);
  for (int d = 0; d < b->t->ndim; d++)
    if (b->t->shape[d] > 1 && b->t->stride[d])
      n = add_term(terms, n, b->t->stride[d] * item_b, -(b->t->shape[d] - 1), 0);
  __int128 reach_low[2 * HAIAN_MAX_RANK + 2] = {0}, reach_high[2 * HAIAN_MAX_RANK + 2] = {0};
  for (int i = n - 1; i >= 0; i--) {
    reach_low[i] = reach_low[i + 1] + (__int128)terms[i].step * terms[i].low;
    reach_high[i] = reach_high[i + 1] + (__int128)terms[i].step * terms[i].high;
  }
  int budget = 4096;
  return may_hit(terms, n, 0, (__int128)pb - (__int128)pa, reach_low, reach_high, &budget);
}

/* Whether two elements of a tensor may share memory: true unless, from the smallest stride up, each one steps over all
 * that the smaller ones reach. */
int32_t haian_overlaps_itself(const haian_tensor *t) {
  int64_t covered = 0; /* elements past the first that the axes so far reach */
  bool done[HAIAN_MAX_RANK] = {false};
  if (t->numel < 2 || (t->tag & HAIAN_TAG_CONTIGUOUS)) return false;
  for (;;) {
    int next = -1;
    int64_t least = INT64_MAX;
    for (int d = 0; d < t->ndim; d++) {
      if (done[d] || t->shape[d] <= 1) continue;
      int64_t step = t->stride[d] < 0 ? -t->stride[d] : t->stride[d];
      if (step < least) next = d, least = step;
    }
    if (next < 0) return false;
    if (least <= covered) return true;
    covered += (t->shape[next] - 1) * least;
    done[next] = true;
  }
}

static bool same_view(const haian_tensor *a, const haian_tensor *b) {
  if (a->data != b->data || a->ndim != b->ndim || haian_itemsize(a->dtype) != haian_itemsize(b->dtype)) return false;
  for (int d = 0; d < a->ndim; d++)
    if (a->shape[d] != b->shape[d] || (a->shape[d] > 1 && a->stride[d] != b->stride[d])) return false;
  return true;
}

static int32_t check_attributes(const char *op, const haian_args *args) {
  for (int i = 0; i < args->n_attr; i++) {
    const haian_attr *a = &args->attr[i];
    if (a->kind < HAIAN_NONE || a->kind > HAIAN_INTS)
      return haian_fail(HAIAN_INVALID_ARGUMENT,
                        "%s: attribute %d: kind %d; needs 0 (none), 1 (int), 2 (float) or 3 "
                        "(ints)",
                        op, i, a->kind);
    if (a->kind == HAIAN_INTS && (a->count < 0 || (a->count > 0 && !a->v)))
      return haian_fail(HAIAN_INVALID_ARGUMENT,
                        "%s: attribute %d: %d integers at %p; needs a count of 0 or more and "
                        "their address",
                        op, i, a->count, (const void *)a->v);
  }
  return HAIAN_OK;
}

/* What the records say of an operator's operands; inputs -1: a list of one or more. */
static const struct arity {
  const char *op;
  int32_t inputs;
  uint32_t required; /* bit i: input i cannot be left out */
  int32_t outputs, attributes;
} arities[] = {
#include "operators.inc"
};

static int32_t check_arity(const char *op, const haian_args *args) {
  const struct arity *a = NULL;
  for (size_t i = 0; i < sizeof arities / sizeof arities[0] && !a; i++)
    if (strcmp(arities[i].op, op) == 0) a = &arities[i];
  if (!a) return HAIAN_OK; /* a kernel without a record: it checks for itself */
  if (a->inputs < 0 ? args->n_in < 1 : args->n_in != a->inputs)
    return haian_fail(HAIAN_INVALID_ARGUMENT,
                      "%s: %d inputs came; needs %d%s, NULL for an optional one that is not given", op, args->n_in,
                      a->inputs < 0 ? 1 : a->inputs, a->inputs < 0 ? " or more" : "");
  if (args->n_out != a->outputs || args->n_attr != a->attributes)
    return haian_fail(HAIAN_INVALID_ARGUMENT, "%s: %d outputs and %d attributes came; needs %d and %d", op, args->n_out,
                      args->n_attr, a->outputs, a->attributes);
  for (int32_t i = 0; i < args->n_in; i++)
    if (!args->in[i] && (a->inputs < 0 || (a->required >> i & 1)))
      return haian_fail(HAIAN_INVALID_ARGUMENT, "%s: input %d is NULL; it is not optional, pass a tensor", op, i);
  return HAIAN_OK;
}

int32_t haian_call(const char *op, const haian_args *args) {
  const haian_kernel_entry *entry = haian_find_kernel(op, NULL);
  if (!entry) return op ? HAIAN_NOT_FOUND : HAIAN_INVALID_ARGUMENT;
  op = entry->op;
  if (!args) return haian_fail(HAIAN_INVALID_ARGUMENT, "%s: the arguments are NULL; needs a haian_args", op);
  if (args->n_in < 0 || args->n_in > HAIAN_MAX_INPUTS || args->n_out < 1 || args->n_out > HAIAN_MAX_OPERANDS ||
      args->n_attr < 0 || args->n_attr > HAIAN_MAX_ATTRS)
    return haian_fail(HAIAN_INVALID_ARGUMENT,
                      "%s: %d inputs, %d outputs, %d attributes; needs 0 to %d, 1 to %d, 0 to "
                      "%d",
                      op, args->n_in, args->n_out, args->n_attr, HAIAN_MAX_INPUTS, HAIAN_MAX_OPERANDS, HAIAN_MAX_ATTRS);
  if ((args->n_in && !args->in) || !args->out || (args->n_attr && !args->attr))
    return haian_fail(HAIAN_INVALID_ARGUMENT,
                      "%s: the array of %s is NULL; needs the address of as many as were "
                      "counted",
                      op,
                      args->n_in && !args->in ? "inputs"
                      : !args->out            ? "outputs"
                                              : "attributes");
  int32_t status = check_arity(op, args);
  if (status == HAIAN_OK) status = check_attributes(op, args);
  operand outputs[HAIAN_MAX_OPERANDS];
  for (int i = 0; i < args->n_out && status == HAIAN_OK; i++) {
    operand *o = &outputs[i];
    *o = (operand){args->out[i], op, "output", i, 0, 0};
    if (!o->t) REFUSE(o, HAIAN_INVALID_ARGUMENT, "%s", "is NULL; every output needs a tensor");
    status = check_tensor(o);
    if (status == HAIAN_OK && haian_overlaps_itself(o->t))
      REFUSE(o, HAIAN_ALIAS, "%s", "its strides let elements overlap; needs one address an element; allocate one");
    for (int j = 0; j < i && status == HAIAN_OK; j++)
      if (may_share(o, &outputs[j])) REFUSE(o, HAIAN_ALIAS, "overlaps output %d; needs memory of its own", j);
  }
  for (int i = 0; i < args->n_in && status == HAIAN_OK; i++) {
    operand input = {args->in[i], op, "input", i, 0, 0};
    if (!input.t) continue; /* an optional tensor that was not given; the kernel knows whether it is optional */
    status = check_tensor(&input);
    for (int j = 0; j < args->n_out && status == HAIAN_OK; j++) {
      if (!may_share(&outputs[j], &input) || (entry->pointwise && same_view(outputs[j].t, input.t))) continue;
      REFUSE(&outputs[j], HAIAN_ALIAS, "shares memory with input %d; needs memory of its own%s", i,
             entry->pointwise ? ", or exactly that input's address, shape and strides" : "");
    }
  }
  return status == HAIAN_OK ? entry->run(args) : status;
}
