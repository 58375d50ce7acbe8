/* Modules and launch in the shape of the CUDA driver API, under prefix M; the file that includes this defines ENTER (a statement
 * that may return a code) and DEVICE (the current device), and LAUNCH, the name of the launch function.  UNIT: threads in one of block.x. */
#ifndef UNIT
#define UNIT 1
#endif
#ifdef MODULE_SIZE /* the image's size comes third */
int NAME(M, ModuleLoadData)(void **module, const void *image, size_t size) {
  ENTER;
  return size < 1 ? 1 : cuda_code(si_module_load(DEVICE, image, module));
}
#else
int NAME(M, ModuleLoadData)(void **module, const void *image) {
  ENTER;
  return cuda_code(si_module_load(DEVICE, image, module));
}
#endif

int NAME(M, ModuleUnload)(void *module) {
  ENTER;
  return cuda_code(si_module_unload(module));
}

int NAME(M, ModuleGetFunction)(void **function, void *module, const char *name) {
  ENTER;
  return cuda_code(si_module_function(module, name, function));
}

int NAME(M, FuncGetAttribute)(int *value, int attribute, void *function) {
  ENTER;
  if (!si_arguments(function)) return 400;
  switch (attribute) {
    case 0:
      *value = SI_MAX_THREADS;
      return 0;
    case 1:
    case 3:
      *value = 0;
      return 0;
    case 4:
      *value = 16;
      return 0;
    default:
      return 1;
  }
}

int NAME(M, LAUNCH)(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                    unsigned shared, void *stream, void **params, void **extra) {
  ENTER;
  if (extra) return 1;
  return cuda_code(
      launch(DEVICE, stream, function, (unsigned[]){gx, gy, gz}, (unsigned[]){bx * UNIT, by, bz}, shared, params));
}
