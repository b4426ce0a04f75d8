// CUDA implementation of stmeta::lrua_step. Reference: stmeta/ops/memory/lrua_step.py, which has
// checked the arguments. allocate -> dispatch dtype -> launch; the kernels are in lrua_step.cuh and
// lrua_step_backward.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/memory/lrua_step_backward.cuh"
#include "cuda/memory/memory_torch.cuh"

namespace {

using namespace stmeta;
using torch::stable::contiguous;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Five lrua_step_cuda(const Tensor& memory, const Tensor& usage, const Tensor& previous,
                    const Tensor& key, const Tensor& strength, const Tensor& gate,
                    const Tensor& add, double decay, bool read_first, bool shared, double eps) {
  const DeviceScope scope(memory);
  const Tensor usages = contiguous(usage), previouses = contiguous(previous);
  const Tensor keys = contiguous(key), strengths = contiguous(strength);
  const Tensor gates = contiguous(gate), adds = contiguous(add);
  const auto sizes = memory::sizes_of(memory, key.size(1));
  Tensor out = memory::new_like(memory), usage_out = memory::new_like(usage);
  Tensor weight = memory::new_like(previous), read = memory::new_like(key);
  Tensor rows = empty(memory, {sizes[0], sizes[3]}, ScalarType::Long);
  with_device_float(memory.scalar_type(), "lrua_step: memory", [&](auto zero) {
    using T = decltype(zero);
    using namespace lrua_step;
    const auto s = shape_of<T, Shared>(sizes[0], sizes[1], sizes[2], sizes[3], 0);
    const Inputs<T> inputs{memory::strided<T>(s, memory),
                           data<const T>(previouses),
                           data<const T>(keys),
                           data<const T>(strengths),
                           data<const T>(gates),
                           data<const T>(adds),
                           read_first,
                           shared,
                           static_cast<float>(eps)};
    const Forward<T> p{
        inputs,          data<const T>(usages), data<T>(out),        data<T>(usage_out),
        data<T>(weight), data<T>(read),         data<int64_t>(rows), static_cast<float>(decay)};
    const Tensor scratch = memory::scratch_like(memory, scratch_size(s, p));
    forward(s, p, data<float>(scratch), scope.stream);
  });
  return {out, usage_out, weight, read, rows};
}

Six lrua_step_backward_cuda(const Tensor& grad_memory, const Tensor& grad_weight,
                            const Tensor& grad_read, const Tensor& memory, const Tensor& previous,
                            const Tensor& key, const Tensor& strength, const Tensor& gate,
                            const Tensor& add, const Tensor& weight, const Tensor& rows,
                            bool read_first, bool shared, double eps) {
  const DeviceScope scope(memory);
  const Tensor grad_weights = contiguous(grad_weight), grad_reads = contiguous(grad_read);
  const Tensor previouses = contiguous(previous), keys = contiguous(key);
  const Tensor strengths = contiguous(strength), gates = contiguous(gate);
  const Tensor adds = contiguous(add), weights = contiguous(weight), least = contiguous(rows);
  const auto sizes = memory::sizes_of(memory, key.size(1));
  Tensor d_memory = memory::new_like(memory), d_previous = memory::new_like(previous);
  Tensor d_key = memory::new_like(key), d_strength = memory::new_like(strength);
  Tensor d_gate = memory::new_like(gate), d_add = memory::new_like(add);
  with_device_float(memory.scalar_type(), "lrua_step: memory", [&](auto zero) {
    using T = decltype(zero);
    using namespace lrua_step;
    const auto s = shape_of<T, BackwardShared>(sizes[0], sizes[1], sizes[2], sizes[3], 0);
    const Inputs<T> inputs{memory::strided<T>(s, memory),
                           data<const T>(previouses),
                           data<const T>(keys),
                           data<const T>(strengths),
                           data<const T>(gates),
                           data<const T>(adds),
                           read_first,
                           shared,
                           static_cast<float>(eps)};
    const Backward<T> p{inputs,
                        memory::strided<T>(s, grad_memory),
                        data<const T>(grad_weights),
                        data<const T>(grad_reads),
                        data<const T>(weights),
                        data<const int64_t>(least),
                        data<T>(d_memory),
                        data<T>(d_previous),
                        data<T>(d_key),
                        data<T>(d_strength),
                        data<T>(d_gate),
                        data<T>(d_add)};
    const Tensor scratch = memory::scratch_like(memory, scratch_size(s, p));
    backward(s, p, data<float>(scratch), scope.stream);
  });
  return {d_memory, d_previous, d_key, d_strength, d_gate, d_add};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("lrua_step", TORCH_BOX(&lrua_step_cuda));
  m.impl("lrua_step_backward", TORCH_BOX(&lrua_step_backward_cuda));
}
