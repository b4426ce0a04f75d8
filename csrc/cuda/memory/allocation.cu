// CUDA implementation of stmeta::allocation. Reference: stmeta/ops/memory/allocation.py, which has
// checked the arguments. allocate -> dispatch dtype -> launch; the kernels are in allocation.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/memory/allocation.cuh"
#include "cuda/memory/memory_torch.cuh"

namespace {

using namespace stmeta;
using torch::stable::contiguous;

std::tuple<Tensor, Tensor> allocation_cuda(const Tensor& usage) {
  const DeviceScope scope(usage);
  const Tensor usages = contiguous(usage);
  Tensor out = memory::new_like(usage);
  Tensor order = empty(usage, {usage.size(0), usage.size(1)}, ScalarType::Int);
  with_device_float(usage.scalar_type(), "allocation: usage", [&](auto zero) {
    using T = decltype(zero);
    const auto p = allocation::make_problem(usage.size(0), usage.size(1));
    const int64_t size = allocation::scratch_size(p, p.padded, true);
    const Tensor scratch = memory::scratch_like(usage, size);
    allocation::forward(p, data<const T>(usages), data<T>(out), data<int>(order),
                        data<float>(scratch), scope.stream);
  });
  return {out, order};
}

Tensor allocation_backward_cuda(const Tensor& grad, const Tensor& usage, const Tensor& order) {
  const DeviceScope scope(usage);
  const Tensor grads = contiguous(grad), usages = contiguous(usage), orders = contiguous(order);
  Tensor out = memory::new_like(usage);
  with_device_float(usage.scalar_type(), "allocation: usage", [&](auto zero) {
    using T = decltype(zero);
    const auto p = allocation::make_problem(usage.size(0), usage.size(1));
    const int64_t size = allocation::scratch_size(p, p.rows, true);
    const Tensor scratch = memory::scratch_like(usage, size);
    allocation::backward(p, data<const T>(usages), data<const T>(grads), data<const int>(orders),
                         data<T>(out), data<float>(scratch), scope.stream);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("allocation", TORCH_BOX(&allocation_cuda));
  m.impl("allocation_backward", TORCH_BOX(&allocation_backward_cuda));
}
