// CUDA implementation of stmeta::content_addressing. Reference:
// stmeta/ops/memory/content_addressing.py, which has checked the arguments. allocate -> dispatch
// dtype -> launch; the kernels are in content_addressing.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/memory/content_addressing.cuh"
#include "cuda/memory/memory_torch.cuh"

namespace {

using namespace stmeta;
using torch::stable::contiguous;

Tensor content_addressing_cuda(const Tensor& memory, const Tensor& key, const Tensor& strength,
                               double eps) {
  const DeviceScope scope(memory);
  const Tensor keys = contiguous(key), strengths = contiguous(strength);
  const auto sizes = memory::sizes_of(memory, key.size(1));
  Tensor weight = memory::weights_like(memory, key.size(1));
  with_device_float(memory.scalar_type(), "content_addressing: memory", [&](auto zero) {
    using T = decltype(zero);
    using namespace content_addressing;
    const auto s = shape_of<T, Shared>(sizes[0], sizes[1], sizes[2], sizes[3], 0);
    const Forward<T> p{memory::strided<T>(s, memory), data<const T>(keys), data<const T>(strengths),
                       data<T>(weight), static_cast<float>(eps)};
    const Tensor scratch = memory::scratch_like(memory, scratch_size(s));
    forward(s, p, data<float>(scratch), scope.stream);
  });
  return weight;
}

std::tuple<Tensor, Tensor, Tensor> content_addressing_backward_cuda(
    const Tensor& grad, const Tensor& memory, const Tensor& key, const Tensor& strength,
    const Tensor& weight, double eps) {
  const DeviceScope scope(memory);
  const Tensor grads = contiguous(grad), keys = contiguous(key);
  const Tensor strengths = contiguous(strength), weights = contiguous(weight);
  const auto sizes = memory::sizes_of(memory, key.size(1));
  Tensor grad_memory = memory::new_like(memory), grad_key = memory::new_like(key);
  Tensor grad_strength = memory::new_like(strength);
  with_device_float(memory.scalar_type(), "content_addressing: memory", [&](auto zero) {
    using T = decltype(zero);
    using namespace content_addressing;
    const auto s = shape_of<T, BackwardShared>(sizes[0], sizes[1], sizes[2], sizes[3], 0);
    const Backward<T> p{memory::strided<T>(s, memory),
                        data<const T>(grads),
                        data<const T>(keys),
                        data<const T>(strengths),
                        data<const T>(weights),
                        data<T>(grad_memory),
                        data<T>(grad_key),
                        data<T>(grad_strength),
                        static_cast<float>(eps)};
    const Tensor scratch = memory::scratch_like(memory, scratch_size(s, p));
    backward(s, p, data<float>(scratch), scope.stream);
  });
  return {grad_memory, grad_key, grad_strength};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("content_addressing", TORCH_BOX(&content_addressing_cuda));
  m.impl("content_addressing_backward", TORCH_BOX(&content_addressing_backward_cuda));
}
