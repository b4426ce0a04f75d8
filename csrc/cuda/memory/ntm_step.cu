// CUDA implementation of stmeta::ntm_step. Reference: stmeta/ops/memory/ntm_step.py, which has
// checked the arguments. allocate -> dispatch dtype -> launch; the kernels are in ntm_step.cuh and
// ntm_step_backward.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/memory/memory_torch.cuh"
#include "cuda/memory/ntm_step_backward.cuh"

namespace {

using namespace stmeta;
using torch::stable::contiguous;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Nine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

ntm_step::Heads heads_of(const Tensor& erase, const Tensor& key, int64_t reads, bool read_first) {
  const int64_t heads = key.size(1), writes = erase.size(1);
  STD_TORCH_CHECK(1 <= reads && reads <= heads && 1 <= writes && writes <= heads,
                  "ntm_step: reads and the W of erase must be in [1, H] = [1, ", heads, "], got ",
                  reads, " and ", writes);
  return {static_cast<int>(reads), static_cast<int>(writes), read_first};
}

Four ntm_step_cuda(const Tensor& memory, const Tensor& previous, const Tensor& key,
                   const Tensor& strength, const Tensor& gate, const Tensor& shift,
                   const Tensor& sharpen, const Tensor& erase, const Tensor& add, int64_t reads,
                   bool read_first, double eps) {
  const DeviceScope scope(memory);
  const Tensor previouses = contiguous(previous), keys = contiguous(key);
  const Tensor strengths = contiguous(strength), gates = contiguous(gate);
  const Tensor shifts = contiguous(shift), sharpens = contiguous(sharpen);
  const Tensor erases = contiguous(erase), adds = contiguous(add);
  const auto heads = heads_of(erase, key, reads, read_first);
  const auto sizes = memory::sizes_of(memory, key.size(1));
  Tensor out = memory::new_like(memory), weight = memory::new_like(previous);
  Tensor read = memory::vectors_like(memory, reads), content = memory::new_like(previous);
  with_device_float(memory.scalar_type(), "ntm_step: memory", [&](auto zero) {
    using T = decltype(zero);
    using namespace ntm_step;
    const auto s = shape_of<T, Shared>(sizes[0], sizes[1], sizes[2], sizes[3], 0);
    const Location<T> location{data<const T>(previouses), data<const T>(gates),
                               data<const T>(shifts), data<const T>(sharpens),
                               static_cast<int>(shift.size(2))};
    const Forward<T> p{memory::strided<T>(s, memory),
                       data<const T>(keys),
                       data<const T>(strengths),
                       location,
                       data<const T>(erases),
                       data<const T>(adds),
                       data<T>(out),
                       data<T>(weight),
                       data<T>(read),
                       data<T>(content),
                       heads,
                       static_cast<float>(eps)};
    const Tensor scratch = memory::scratch_like(memory, scratch_size(s, p));
    forward(s, p, data<float>(scratch), scope.stream);
  });
  return {out, weight, read, content};
}

Nine ntm_step_backward_cuda(const Tensor& grad_memory, const Tensor& grad_weight,
                            const Tensor& grad_read, const Tensor& memory, const Tensor& previous,
                            const Tensor& key, const Tensor& strength, const Tensor& gate,
                            const Tensor& shift, const Tensor& sharpen, const Tensor& erase,
                            const Tensor& add, const Tensor& weight, const Tensor& content,
                            int64_t reads, bool read_first, double eps) {
  const DeviceScope scope(memory);
  const Tensor grad_weights = contiguous(grad_weight), grad_reads = contiguous(grad_read);
  const Tensor previouses = contiguous(previous), keys = contiguous(key);
  const Tensor strengths = contiguous(strength), gates = contiguous(gate);
  const Tensor shifts = contiguous(shift), sharpens = contiguous(sharpen);
  const Tensor erases = contiguous(erase), adds = contiguous(add);
  const Tensor weights = contiguous(weight), contents = contiguous(content);
  const auto heads = heads_of(erase, key, reads, read_first);
  const auto sizes = memory::sizes_of(memory, key.size(1));
  Tensor d_memory = memory::new_like(memory), d_previous = memory::new_like(previous);
  Tensor d_key = memory::new_like(key), d_strength = memory::new_like(strength);
  Tensor d_gate = memory::new_like(gate), d_shift = memory::new_like(shift);
  Tensor d_sharpen = memory::new_like(sharpen), d_erase = memory::new_like(erase);
  Tensor d_add = memory::new_like(add);
  with_device_float(memory.scalar_type(), "ntm_step: memory", [&](auto zero) {
    using T = decltype(zero);
    using namespace ntm_step;
    const auto s = shape_of<T, BackwardShared>(sizes[0], sizes[1], sizes[2], sizes[3], 0);
    const Location<T> location{data<const T>(previouses), data<const T>(gates),
                               data<const T>(shifts), data<const T>(sharpens),
                               static_cast<int>(shift.size(2))};
    const Backward<T> p{
        memory::strided<T>(s, memory),
        memory::strided<T>(s, grad_memory),
        data<const T>(grad_weights),
        data<const T>(grad_reads),
        data<const T>(keys),
        data<const T>(strengths),
        location,
        data<const T>(erases),
        data<const T>(adds),
        data<const T>(weights),
        data<const T>(contents),
        data<T>(d_memory),
        data<T>(d_key),
        data<T>(d_strength),
        {data<T>(d_previous), data<T>(d_gate), data<T>(d_shift), data<T>(d_sharpen)},
        data<T>(d_erase),
        data<T>(d_add),
        heads,
        static_cast<float>(eps)};
    const Tensor scratch = memory::scratch_like(memory, scratch_size(s, p));
    backward(s, p, data<float>(scratch), scope.stream);
  });
  return {d_memory, d_previous, d_key, d_strength, d_gate, d_shift, d_sharpen, d_erase, d_add};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("ntm_step", TORCH_BOX(&ntm_step_cuda));
  m.impl("ntm_step_backward", TORCH_BOX(&ntm_step_backward_cuda));
}
