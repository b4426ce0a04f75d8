// stmeta._C: what Python asks about the build and the CPU. Ops register themselves with torch.
#include <pybind11/pybind11.h>

#include <string>

#include "common/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of stmeta, and questions about them.";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = __VERSION__;
        info["cuda"] = STMETA_CUDA_ARCHS[0] != '\0';
        info["cuda_archs"] = STMETA_CUDA_ARCHS;
        return info;
      },
      "compiler (str), cuda (bool): kernels compiled or not, cuda_archs (str, as in "
      "TORCH_CUDA_ARCH_LIST)");
  m.def(
      "cpu_capability", [] { return stmeta::isa_name(stmeta::current_isa()); },
      "Instruction set that CPU kernels use: plain, avx2, avx512 or bf16dot.");
  m.def(
      "set_cpu_capability",
      [](const std::string& name) {
        for (const stmeta::Isa isa :
             {stmeta::Isa::plain, stmeta::Isa::avx2, stmeta::Isa::avx512, stmeta::Isa::bf16dot}) {
          if (name != stmeta::isa_name(isa)) continue;
          if (isa > stmeta::best_isa()) throw py::value_error("this CPU has no " + name);
          stmeta::chosen_isa() = isa;
          return;
        }
        throw py::value_error("CPU capability must be plain, avx2, avx512 or bf16dot, got " + name);
      },
      py::arg("name"), "Use another instruction set from now on, for tests.");
}
