// haian._native: the module.  Hot types are plain CPython (py_tensor.c, py_op.c); pybind11 binds what is called rarely.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "../../kernels/cpu/library.h"
#include "../../kernels/cpu/program.h"
#include "alloc.h"
#include "py_tensor.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  m.doc() = "haian's native side: Tensor, Op, the host allocator and the host kernel library.";
  if (haian_init_tensor(m.ptr()) || haian_init_dlpack(m.ptr()) || haian_init_op(m.ptr()) ||
      haian_init_driver(m.ptr()) || haian_init_launch(m.ptr()) || haian_init_cache(m.ptr()))
    throw py::error_already_set();

  m.def(
      "alloc_stats",
      [] {
        haian_alloc_stats s;
        haian_host_stats(&s);
        return py::dict(py::arg("live_bytes") = s.live_bytes, py::arg("cached_bytes") = s.cached_bytes,
                        py::arg("peak_bytes") = s.peak_bytes, py::arg("allocations") = s.allocations,
                        py::arg("hits") = s.hits);
      },
      "Host allocator: live, cached and peak bytes, allocations, and how many were served from the cache.");
  m.def("alloc_trim", [] { return haian_host_trim(); }, "Give cached host blocks back to the system; returns bytes.");
  m.def("num_threads", [] { return haian_num_threads(); }, "Threads host kernels may use.");
  m.def(
      "set_num_threads",
      [](int n) {
        if (n < 1) throw py::value_error("set_num_threads: " + std::to_string(n) + " threads; needs at least 1");
        haian_set_num_threads(n);
      },
      py::arg("n"));
  m.def("isa", [] { return std::string(haian_isa()); }, "Instruction set of the host kernels in use.");
  m.def(
      "isa_list", [] { return std::string(haian_isa_list()); },
      "Instruction sets this build has and this machine runs.");
  m.def(
      "isa_error", [] { return std::string(haian_isa_error() ? haian_isa_error() : ""); },
      "Why HAIAN_CPU_ISA was not followed, or ''.");
  m.def(
      "find_kernel",
      [](const std::string &op) -> py::object {
        const char *isa = nullptr;
        const haian_kernel_entry *e = haian_find_kernel(op.c_str(), &isa);
        if (!e) return py::none();
        return py::make_tuple(reinterpret_cast<uintptr_t>(e->run), e->dtypes, reinterpret_cast<uintptr_t>(e->pointwise),
                              std::string(isa));
      },
      py::arg("op"), "(kernel address, accepted dtypes as bits, pointwise address, isa), or None.");
  m.def(
      "define_program",
      [](const std::string &name, const std::vector<std::string> &inputs, const std::vector<std::string> &attrs,
         uint32_t boolean, bool boolean_result, uint32_t dtypes, const std::vector<std::array<int, 5>> &steps,
         const std::vector<std::tuple<int, int, double>> &constants, int result) {
        if (inputs.size() > HAIAN_TILE_INPUTS || attrs.size() > HAIAN_MAX_ATTRS || steps.size() > HAIAN_PROGRAM_STEPS ||
            constants.size() > HAIAN_PROGRAM_CONSTANTS)
          throw py::value_error(name + ": more inputs, attributes, steps or constants than program.h has room for");
        haian_pointwise d{};
        d.name = name.c_str();
        d.n_in = static_cast<int32_t>(inputs.size());
        d.n_attr = static_cast<int32_t>(attrs.size());
        d.boolean = boolean;
        d.result = boolean_result ? HAIAN_RESULT_BOOL : HAIAN_RESULT_SAME;
        d.numbers = (1u << attrs.size()) - 1;
        for (size_t i = 0; i < inputs.size(); i++) d.input[i] = inputs[i].c_str();
        for (size_t i = 0; i < attrs.size(); i++) d.attr[i] = attrs[i].c_str();
        haian_program p{};
        p.n_in = d.n_in;
        p.boolean = boolean;
        p.boolean_result = boolean_result;
        p.result = result;
        p.n_steps = static_cast<int32_t>(steps.size());
        p.n_constants = static_cast<int32_t>(constants.size());
        for (size_t i = 0; i < steps.size(); i++) {
          uint8_t *field[] = {&p.step[i].op, &p.step[i].to, &p.step[i].a, &p.step[i].b, &p.step[i].c};
          for (size_t k = 0; k < 5; k++) *field[k] = static_cast<uint8_t>(steps[i][k]);
        }
        for (size_t i = 0; i < constants.size(); i++)
          std::tie(p.constant[i].to, p.constant[i].attr, p.constant[i].value) = constants[i];
        char kernel[16] = "";
        if (int32_t status = haian_define_program(&p, &d, dtypes, kernel)) {
          haian_raise(status);
          throw py::error_already_set();
        }
        return std::string(kernel);
      },
      py::arg("name"), py::arg("inputs"), py::arg("attrs"), py::arg("boolean"), py::arg("boolean_result"),
      py::arg("dtypes"), py::arg("steps"), py::arg("constants"), py::arg("result"),
      "Keeps a user's pointwise program; the name of its host kernel.");
}
