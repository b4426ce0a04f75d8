// CPU implementation of stmeta::memory_read. Reference: stmeta/ops/memory/memory_read.py
// check -> allocate -> dispatch dtype -> parallel over batch elements
#include "cpu/memory/memory_call.h"

namespace stmeta {

struct MemoryRead {
  MemorySizes sizes;
  Source memory, weight, grad;
  void *read_out, *d_memory, *d_weight;
};

}  // namespace stmeta

#define STMETA_KERNELS "cpu/memory/memory_read_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

MemoryRead make_read(Tensor& memory, Tensor& weight) {
  MemoryRead p = {};
  p.sizes = memory_sizes(memory, weight.size(1), weight.size(1), 0, 1);
  check_memory(weight, {p.sizes.batch, p.sizes.reads, p.sizes.rows}, memory.scalar_type(),
               "memory_read: weight");
  p.memory = rows_of(memory);
  p.weight = small(weight);
  return p;
}

int64_t scratch_floats(const MemorySizes& s) {
  return 2 * s.rows * s.wide + 2 * s.reads * (s.wide + s.padded) + 256;
}

Tensor memory_read(Tensor memory, Tensor weight) {
  MemoryRead p = make_read(memory, weight);
  const MemorySizes& s = p.sizes;
  Tensor read = like(memory, {s.batch, s.reads, s.width});
  p.read_out = read.mutable_data_ptr();
  const auto kernel = with_float_type(memory.scalar_type(), "memory_read: memory", [](auto number) {
    return STMETA_BY_ISA(forward<decltype(number)>);
  });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return read;
}

std::tuple<Tensor, Tensor> memory_read_backward(Tensor grad, Tensor memory, Tensor weight) {
  MemoryRead p = make_read(memory, weight);
  const MemorySizes& s = p.sizes;
  check_memory(grad, {s.batch, s.reads, s.width}, memory.scalar_type(), "memory_read: grad");
  p.grad = small(grad);
  Tensor grad_memory = like(memory, {s.batch, s.rows, s.width});
  Tensor grad_weight = like(memory, {s.batch, s.reads, s.rows});
  p.d_memory = grad_memory.mutable_data_ptr();
  p.d_weight = grad_weight.mutable_data_ptr();
  const auto kernel = with_float_type(memory.scalar_type(), "memory_read: memory", [](auto number) {
    return STMETA_BY_ISA(backward<decltype(number)>);
  });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return {grad_memory, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("memory_read", TORCH_BOX(&memory_read));
  m.impl("memory_read_backward", TORCH_BOX(&memory_read_backward));
}

}  // namespace stmeta
