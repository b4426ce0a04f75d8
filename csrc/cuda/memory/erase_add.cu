// CUDA implementation of stmeta::erase_add. Reference: stmeta/ops/memory/erase_add.py, which has
// checked the arguments. allocate -> dispatch dtype -> launch; the kernels are in erase_add.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/memory/erase_add.cuh"
#include "cuda/memory/memory_torch.cuh"

namespace {

using namespace stmeta;
using torch::stable::contiguous;

Tensor erase_add_cuda(const Tensor& memory, const Tensor& weight, const Tensor& erase,
                      const Tensor& add) {
  const DeviceScope scope(memory);
  const Tensor weights = contiguous(weight), erases = contiguous(erase), adds = contiguous(add);
  const auto sizes = memory::sizes_of(memory, weight.size(1));
  Tensor out = memory::new_like(memory);
  with_device_float(memory.scalar_type(), "erase_add: memory", [&](auto zero) {
    using T = decltype(zero);
    const auto s = erase_add::forward_shape<T>(sizes[0], sizes[1], sizes[2], sizes[3], 0);
    const erase_add::Forward<T> p{memory::strided<T>(s, memory), data<const T>(weights),
                                  data<const T>(erases), data<const T>(adds), data<T>(out)};
    erase_add::forward(s, p, scope.stream);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> erase_add_backward_cuda(const Tensor& grad,
                                                                   const Tensor& memory,
                                                                   const Tensor& weight,
                                                                   const Tensor& erase,
                                                                   const Tensor& add) {
  const DeviceScope scope(memory);
  const Tensor weights = contiguous(weight), erases = contiguous(erase), adds = contiguous(add);
  const auto sizes = memory::sizes_of(memory, weight.size(1));
  Tensor grad_memory = memory::new_like(memory), grad_weight = memory::new_like(weight);
  Tensor grad_erase = memory::new_like(erase), grad_add = memory::new_like(add);
  with_device_float(memory.scalar_type(), "erase_add: memory", [&](auto zero) {
    using T = decltype(zero);
    const auto s = erase_add::backward_shape<T>(sizes[0], sizes[1], sizes[2], sizes[3], 0);
    const erase_add::Backward<T> p{
        memory::strided<T>(s, memory), memory::strided<T>(s, grad), data<const T>(weights),
        data<const T>(erases),         data<const T>(adds),         data<T>(grad_memory),
        data<T>(grad_weight),          data<T>(grad_erase),         data<T>(grad_add)};
    const Tensor scratch = memory::scratch_like(memory, erase_add::scratch_size(s, p));
    erase_add::backward(s, p, data<float>(scratch), scope.stream);
  });
  return {grad_memory, grad_weight, grad_erase, grad_add};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("erase_add", TORCH_BOX(&erase_add_cuda));
  m.impl("erase_add_backward", TORCH_BOX(&erase_add_backward_cuda));
}
