// CPU implementation of stmeta::erase_add. Reference: stmeta/ops/memory/erase_add.py
// check -> allocate -> dispatch dtype -> parallel over batch elements
#include "cpu/memory/memory_call.h"

namespace stmeta {

struct EraseAdd {
  MemorySizes sizes;
  Source memory, weight, erase, add, grad;
  void *out, *d_memory, *d_weight, *d_erase, *d_add;
};

}  // namespace stmeta

#define STMETA_KERNELS "cpu/memory/erase_add_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

EraseAdd make_write(Tensor& memory, Tensor& weight, Tensor& erase, Tensor& add) {
  EraseAdd p = {};
  p.sizes = memory_sizes(memory, weight.size(1), 0, weight.size(1), 1);
  const MemorySizes& s = p.sizes;
  const ScalarType dtype = memory.scalar_type();
  check_memory(weight, {s.batch, s.writes, s.rows}, dtype, "erase_add: weight");
  check_memory(erase, {s.batch, s.writes, s.width}, dtype, "erase_add: erase");
  check_memory(add, {s.batch, s.writes, s.width}, dtype, "erase_add: add");
  p.memory = rows_of(memory);
  p.weight = small(weight);
  p.erase = small(erase);
  p.add = small(add);
  return p;
}

int64_t scratch_floats(const MemorySizes& s) {
  return 2 * s.rows * s.wide + s.writes * (6 * s.wide + 2 * s.padded) + 256;
}

Tensor erase_add(Tensor memory, Tensor weight, Tensor erase, Tensor add) {
  EraseAdd p = make_write(memory, weight, erase, add);
  const MemorySizes& s = p.sizes;
  Tensor out = like(memory, {s.batch, s.rows, s.width});
  p.out = out.mutable_data_ptr();
  const auto kernel = with_float_type(memory.scalar_type(), "erase_add: memory", [](auto number) {
    return STMETA_BY_ISA(forward<decltype(number)>);
  });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> erase_add_backward(Tensor grad, Tensor memory,
                                                              Tensor weight, Tensor erase,
                                                              Tensor add) {
  EraseAdd p = make_write(memory, weight, erase, add);
  const MemorySizes& s = p.sizes;
  check_memory(grad, {s.batch, s.rows, s.width}, memory.scalar_type(), "erase_add: grad");
  p.grad = rows_of(grad);
  Tensor grad_memory = like(memory, {s.batch, s.rows, s.width});
  Tensor grad_weight = like(memory, {s.batch, s.writes, s.rows});
  Tensor grad_erase = like(memory, {s.batch, s.writes, s.width});
  Tensor grad_add = like(memory, {s.batch, s.writes, s.width});
  p.d_memory = grad_memory.mutable_data_ptr();
  p.d_weight = grad_weight.mutable_data_ptr();
  p.d_erase = grad_erase.mutable_data_ptr();
  p.d_add = grad_add.mutable_data_ptr();
  const auto kernel = with_float_type(memory.scalar_type(), "erase_add: memory", [](auto number) {
    return STMETA_BY_ISA(backward<decltype(number)>);
  });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return {grad_memory, grad_weight, grad_erase, grad_add};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("erase_add", TORCH_BOX(&erase_add));
  m.impl("erase_add_backward", TORCH_BOX(&erase_add_backward));
}

}  // namespace stmeta
