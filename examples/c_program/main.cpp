// haian without Python: one layer of a network on the host, and on every device of the drivers named on the command line.
// Build: make   Run: ./program   or: ./program /absolute/path/of/driver.so
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "haian_ops.h"

static void need(int32_t status) {
  if (status == 0) return;
  std::fprintf(stderr, "%s\n", haian_last_error());
  std::exit(1);
}

// A float32 tensor on a context's device; the shape lives as long as the tensor.
struct Tensor {
  haian_context *context;
  std::vector<int64_t> shape;
  DLTensor dl;
  uint64_t bytes = 4;

  Tensor(haian_context *c, DLDevice device, std::vector<int64_t> sizes, const float *values = nullptr)
      : context(c), shape(std::move(sizes)) {
    for (int64_t n : shape) bytes *= static_cast<uint64_t>(n);
    dl = DLTensor{nullptr, device, static_cast<int32_t>(shape.size()), {2, 32, 1}, shape.data(), nullptr, 0};
    need(haian_context_alloc(c, bytes, &dl.data));
    if (values) need(haian_context_copy(c, dl.data, values, bytes, 1));
  }
  Tensor(const Tensor &) = delete;
  ~Tensor() { haian_context_free(context, dl.data); }
  std::vector<float> values() const {
    std::vector<float> host(bytes / 4);
    need(haian_context_copy(context, host.data(), dl.data, bytes, 0));
    need(haian_context_sync(context));
    return host;
  }
};

// softmax(gelu(rms_norm(x)) W^T) on one device
static std::vector<float> layer(const char *device, DLDevice place) {
  constexpr int64_t rows = 5, width = 64, classes = 10;
  std::vector<float> x(rows * width), w(classes * width), scale(width, 1.0f);
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i * 37 % 101) / 50.0f - 1.0f;
  for (size_t i = 0; i < w.size(); i++) w[i] = static_cast<float>(i * 53 % 97) / 97.0f - 0.5f;
  haian_context *c = nullptr;
  need(haian_context_open(device, &c));
  std::vector<float> result;
  {
    Tensor input(c, place, {rows, width}, x.data()), weight(c, place, {classes, width}, w.data()),
        one(c, place, {width}, scale.data());
    Tensor hidden(c, place, {rows, width}), active(c, place, {rows, width}), scores(c, place, {rows, classes}),
        y(c, place, {rows, classes});
    need(haian_op_rms_norm(c, &input.dl, &one.dl, 1e-6, &hidden.dl));
    need(haian_op_gelu(c, &hidden.dl, HAIAN_GELU_APPROXIMATE_NONE, &active.dl));
    need(haian_op_linear(c, &active.dl, &weight.dl, nullptr, &scores.dl));
    need(haian_op_softmax(c, &scores.dl, -1, &y.dl));
    result = y.values();
    // what is wrong is said in one line, and nothing is written
    if (haian_op_softmax(c, &scores.dl, 7, &y.dl) == 0) std::exit(2);
    std::printf("%-12s refused as it should: %s\n", device, haian_last_error());
  }
  haian_context_stats s;
  need(haian_context_statistics(c, &s));
  std::printf("%-12s %llu calls: %llu on the host, %llu by the driver's library, %llu staged (%llu bytes)\n", device,
              static_cast<unsigned long long>(s.calls), static_cast<unsigned long long>(s.host),
              static_cast<unsigned long long>(s.library), static_cast<unsigned long long>(s.staged),
              static_cast<unsigned long long>(s.staged_bytes));
  haian_context_close(c);
  return result;
}

int main(int argc, char **argv) {
  const std::vector<float> host = layer("cpu", DLDevice{1, 0});
  float sum = 0;
  for (size_t i = 0; i < 10; i++) sum += host[i];
  std::printf("first row: %.6f %.6f ... sums to %.6f\n", host[0], host[1], sum);
  for (int i = 1; i < argc; i++) {
    const char *name = nullptr;
    need(haian_load_driver(argv[i], &name));
    const std::string device = std::string(name) + ":0";
    const std::vector<float> there = layer(device.c_str(), DLDevice{12, 0});
    const bool equal = std::memcmp(host.data(), there.data(), host.size() * sizeof(float)) == 0;
    std::printf("%-12s %s\n", device.c_str(), equal ? "the same bits as the host" : "DIFFERS from the host");
    if (!equal) return 1;
  }
  return 0;
}
