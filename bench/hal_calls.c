/* What a driver's own functions cost, called in a loop from C: the floor under bench/hal_calls.py.
 * Usage: hal_calls ADAPTER.so IMAGE.so   prints "name nanoseconds" a line. */
#include "haian_hal.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}
#define CALLS 200000
#define TIME(name, call)                                       \
  do {                                                         \
    double best = 1e30;                                        \
    for (int round = 0; round < 9; round++) {                  \
      double start = now();                                    \
      for (int i = 0; i < CALLS; i++)                          \
        if (call) return fprintf(stderr, name " failed\n"), 1; \
      double each = (now() - start) / CALLS;                   \
      if (each < best) best = each;                            \
    }                                                          \
    printf(name " %.2f\n", best);                              \
  } while (0)

int main(int argc, char **argv) {
  if (argc != 3) return fprintf(stderr, "usage: hal_calls ADAPTER.so IMAGE.so\n"), 2;
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
  const hal_adapter *(*get)(const hal_host *) =
      (const hal_adapter *(*)(const hal_host *))dlsym(library, "hal_get_adapter");
  hal_host host = {.struct_size = sizeof host, .abi_major = HAL_ABI_MAJOR};
  const hal_adapter *a = get ? get(&host) : NULL;
  if (!a || a->core->init()) return fprintf(stderr, "no adapter\n"), 1;

  FILE *file = fopen(argv[2], "rb");
  static char image[1 << 20];
  size_t bytes = file ? fread(image, 1, sizeof image, file) : 0;
  hal_handle module, kernel, event;
  hal_dptr p;
  hal_alloc_desc need = {sizeof need, HAL_MEM_DEVICE, 64, 0, 0, 0};
  if (a->mem->alloc(0, &need, &p) || a->event->create(0, 0, &event) || a->event->record(0, event, 0)) return 1;
  if (a->module->load(0, image, bytes, "so", &module) || a->module->get_kernel(0, module, "nop", &kernel)) return 1;
  hal_copy_desc copy = {sizeof copy, HAL_COPY_D2D, p + 8, p, 4, 1, 0, 0, 0, 0, 0, 0};
  int64_t values[7] = {(int64_t)p, (int64_t)p, (int64_t)p, 1, 2, 3, 4};
  const void *args[7] = {&values[0], &values[1], &values[2], &values[3], &values[4], &values[5], &values[6]};
  const uint32_t sizes[7] = {8, 8, 8, 4, 4, 4, 4};
  const hal_dtype types[7] = {HAL_ARG_POINTER, HAL_ARG_POINTER, HAL_ARG_POINTER, 8, 8, 8, 8};
  hal_launch_desc launch = {sizeof launch, 0, kernel, {1, 1, 1}, {1, 1, 1}, 1, 0, 7, 0, args, sizes, types};
  TIME("event_query", a->event->query(0, event));
  TIME("copy", a->mem->copy(0, 0, &copy));
  TIME("launch", a->module->launch(0, 0, &launch));
  hal_dptr q;
  TIME("alloc_free", a->mem->alloc(0, &need, &q) || a->mem->free(0, q));
  return 0;
}
