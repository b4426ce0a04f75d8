// stmeta._C: what Python asks about the build and the CPU. Ops register themselves with torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "common/isa.h"
#include "cpu/yuv_clip.h"

namespace py = pybind11;

namespace {

using Pictures = py::array_t<int64_t, py::array::c_style>;
using Pixels = py::array_t<uint8_t, py::array::c_style>;

void crop_resize_yuv(const Pictures& pictures, std::array<int64_t, 2> size,
                     std::array<int16_t, 6> colours, std::array<int64_t, 5> window, Pixels& out) {
  if (pictures.ndim() != 2 || pictures.shape(1) != 5 || out.ndim() != 4 || out.shape(3) != 3 ||
      out.shape(0) != pictures.shape(0)) {
    throw std::invalid_argument("crop_resize_yuv: pictures must be [F, 5] and out [F, h, w, 3]");
  }
  stmeta::YuvClip clip = {};
  clip.pictures = pictures.data();
  clip.frames = out.shape(0);
  clip.height = size[0];
  clip.width = size[1];
  clip.top = window[0];
  clip.left = window[1];
  clip.rows = window[2];
  clip.columns = window[3];
  clip.flip = window[4] != 0;
  clip.colours = {colours[0], colours[1], colours[2], colours[3], colours[4], colours[5]};
  clip.out = out.mutable_data();
  clip.out_rows = out.shape(1);
  clip.out_columns = out.shape(2);
  const py::gil_scoped_release release;
  stmeta::crop_resize_yuv(clip);
}

}  // namespace

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
          if (!stmeta::is_built(isa)) throw py::value_error("stmeta._C was built without " + name);
          stmeta::chosen_isa() = isa;
          return;
        }
        throw py::value_error("CPU capability must be plain, avx2, avx512 or bf16dot, got " + name);
      },
      py::arg("name"), "Use another instruction set from now on, for tests.");
  m.def("crop_resize_yuv", &crop_resize_yuv, py::arg("pictures"), py::arg("size"),
        py::arg("colours"), py::arg("window"), py::arg("out").noconvert(),
        "Cut, resize and convert frames of YUV 4:2:0; see stmeta.data.decode.yuv.");
}
