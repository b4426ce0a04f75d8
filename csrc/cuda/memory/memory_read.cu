// CUDA implementation of stmeta::memory_read. Reference: stmeta/ops/memory/memory_read.py, which
// has checked the arguments. allocate -> dispatch dtype -> launch; the kernels are in
// memory_read.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/memory/memory_read.cuh"
#include "cuda/memory/memory_torch.cuh"

namespace {

using namespace stmeta;
using torch::stable::contiguous;

Tensor memory_read_cuda(const Tensor& memory, const Tensor& weight) {
  const DeviceScope scope(memory);
  const Tensor weights = contiguous(weight);
  const auto sizes = memory::sizes_of(memory, weight.size(1));
  Tensor read = memory::vectors_like(memory, weight.size(1));
  with_device_float(memory.scalar_type(), "memory_read: memory", [&](auto zero) {
    using T = decltype(zero);
    const auto s = memory_read::forward_shape<T>(sizes[0], sizes[1], sizes[2], sizes[3], 0);
    const memory_read::Forward<T> p{memory::strided<T>(s, memory), data<const T>(weights),
                                    data<T>(read)};
    const Tensor scratch = memory::scratch_like(memory, memory_read::scratch_size(s, p));
    memory_read::forward(s, p, data<float>(scratch), scope.stream);
  });
  return read;
}

std::tuple<Tensor, Tensor> memory_read_backward_cuda(const Tensor& grad, const Tensor& memory,
                                                     const Tensor& weight) {
  const DeviceScope scope(memory);
  const Tensor grads = contiguous(grad), weights = contiguous(weight);
  const auto sizes = memory::sizes_of(memory, weight.size(1));
  Tensor grad_memory = memory::new_like(memory), grad_weight = memory::new_like(weight);
  with_device_float(memory.scalar_type(), "memory_read: memory", [&](auto zero) {
    using T = decltype(zero);
    const auto s = memory_read::backward_shape<T>(sizes[0], sizes[1], sizes[2], sizes[3], 0);
    const memory_read::Backward<T> p{memory::strided<T>(s, memory), data<const T>(grads),
                                     data<const T>(weights), data<T>(grad_memory),
                                     data<T>(grad_weight)};
    memory_read::backward(s, p, scope.stream);
  });
  return {grad_memory, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("memory_read", TORCH_BOX(&memory_read_cuda));
  m.impl("memory_read_backward", TORCH_BOX(&memory_read_backward_cuda));
}
