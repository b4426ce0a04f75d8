// CUDA implementation of stmeta::location_addressing. Reference:
// stmeta/ops/memory/location_addressing.py, which has checked the arguments. allocate -> dispatch
// dtype -> launch; the kernels are in location_addressing.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/memory/location_addressing.cuh"
#include "cuda/memory/memory_torch.cuh"

namespace {

using namespace stmeta;
using torch::stable::contiguous;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensor location_addressing_cuda(const Tensor& content, const Tensor& previous, const Tensor& gate,
                                const Tensor& shift, const Tensor& sharpen) {
  const DeviceScope scope(content);
  const Tensor contents = contiguous(content), previouses = contiguous(previous);
  const Tensor gates = contiguous(gate), shifts = contiguous(shift);
  const Tensor sharpens = contiguous(sharpen);
  Tensor weight = memory::new_like(content);
  with_device_float(content.scalar_type(), "location_addressing: content", [&](auto zero) {
    using T = decltype(zero);
    using namespace location_addressing;
    const auto s = shape_of(content.size(0), content.size(2), content.size(1));
    const Location<T> p{data<const T>(previouses), data<const T>(gates), data<const T>(shifts),
                        data<const T>(sharpens), static_cast<int>(shift.size(2))};
    const Tensor scratch = memory::scratch_like(content, scratch_size(s, 2, true));
    forward(s, p, data<const T>(contents), data<T>(weight), data<float>(scratch), scope.stream);
  });
  return weight;
}

// `weight` is made anew: it was rounded to the dtype.
Five location_addressing_backward_cuda(const Tensor& grad, const Tensor& content,
                                       const Tensor& previous, const Tensor& gate,
                                       const Tensor& shift, const Tensor& sharpen,
                                       const Tensor& weight) {
  const DeviceScope scope(content);
  const Tensor grads = contiguous(grad), contents = contiguous(content);
  const Tensor previouses = contiguous(previous), gates = contiguous(gate);
  const Tensor shifts = contiguous(shift), sharpens = contiguous(sharpen);
  Tensor grad_content = memory::new_like(content), grad_previous = memory::new_like(previous);
  Tensor grad_gate = memory::new_like(gate), grad_shift = memory::new_like(shift);
  Tensor grad_sharpen = memory::new_like(sharpen);
  with_device_float(content.scalar_type(), "location_addressing: content", [&](auto zero) {
    using T = decltype(zero);
    using namespace location_addressing;
    const auto s = shape_of(content.size(0), content.size(2), content.size(1));
    const Location<T> p{data<const T>(previouses), data<const T>(gates), data<const T>(shifts),
                        data<const T>(sharpens), static_cast<int>(shift.size(2))};
    const LocationGrads<T> out{data<T>(grad_previous), data<T>(grad_gate), data<T>(grad_shift),
                               data<T>(grad_sharpen)};
    const Tensor scratch = memory::scratch_like(content, scratch_size(s, 3, true));
    backward(s, p, out, data<const T>(contents), data<const T>(grads), data<T>(grad_content),
             data<float>(scratch), scope.stream);
  });
  return {grad_content, grad_previous, grad_gate, grad_shift, grad_sharpen};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("location_addressing", TORCH_BOX(&location_addressing_cuda));
  m.impl("location_addressing_backward", TORCH_BOX(&location_addressing_backward_cuda));
}
