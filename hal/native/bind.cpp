// haian._native: the module.  Hot types are plain CPython (py_tensor.c, py_op.c); pybind11 binds what is called rarely.
#include <pybind11/pybind11.h>

#include "../../kernels/cpu/library.h"
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
}
