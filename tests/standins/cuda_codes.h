/* The numbers that CUDA's driver and runtime, and the runtimes of their shape, share. */
#ifndef STANDIN_CUDA_CODES_H
#define STANDIN_CUDA_CODES_H
#include "device.h"

#ifndef CODE_OOM
#define CODE_OOM 2
#endif
#ifndef CODE_CAPTURE
#define CODE_CAPTURE 900
#endif

__attribute__((unused)) static int cuda_code(int code) {
  static const int numbers[] = {[SI_OK] = 0,           [SI_INVALID] = 1,        [SI_OOM] = CODE_OOM,
                                [SI_HANDLE] = 400,     [SI_NOT_READY] = 600,    [SI_ORDINAL] = 101,
                                [SI_DIRECTION] = 21,   [SI_FAULT] = 700,        [SI_IMAGE] = 200,
                                [SI_SYMBOL] = 500,     [SI_TIMING] = 400,       [SI_CAPTURE] = CODE_CAPTURE,
                                [SI_REGISTERED] = 712, [SI_UNREGISTERED] = 713, [SI_UNSUPPORTED] = 801};
  return numbers[code];
}

__attribute__((unused)) static const char *cuda_text(int code) {
  switch (code) {
    case 0:
      return "no error";
    case 1:
      return "invalid argument";
    case CODE_OOM:
      return "out of memory";
    case 3:
      return "initialization error";
    case 21:
      return "invalid copy direction for memcpy";
    case 101:
      return "invalid device ordinal";
    case 200:
      return "device kernel image is invalid";
    case 201:
      return "invalid device context";
    case 400:
      return "invalid resource handle";
    case 500:
      return "named symbol not found";
    case 600:
      return "device not ready";
    case 700:
      return "an illegal memory access was encountered";
    case CODE_CAPTURE:
      return "operation not permitted when stream is capturing";
    default:
      return "unrecognized error code";
  }
}

/* Kernel parameters are pointers to values of the kernel's own types; read now, as a launch does. */
__attribute__((unused)) static int launch(int device, void *stream, void *function, const unsigned grid[3],
                                          const unsigned block[3], unsigned shared, void **params) {
  const char *types = si_arguments(function);
  uint64_t values[SI_ARGS] = {0};
  if (!types) return SI_HANDLE;
  for (int i = 0; types[i]; i++) {
    if (!params || !params[i]) return SI_INVALID;
    __builtin_memcpy(&values[i], params[i], types[i] == 'p' ? 8 : 4);
  }
  return si_launch(device, stream, function, grid, block, shared, values);
}
#endif
