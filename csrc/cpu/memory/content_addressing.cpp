// CPU implementation of stmeta::content_addressing. Reference:
// stmeta/ops/memory/content_addressing.py check -> allocate -> dispatch dtype -> parallel over
// batch elements
#include "cpu/memory/memory_call.h"

namespace stmeta {

struct ContentAddressing {
  MemorySizes sizes;
  Source memory, key, strength, grad, weight;
  float eps;
  void *weight_out, *d_memory, *d_key, *d_strength;
};

}  // namespace stmeta

#define STMETA_KERNELS "cpu/memory/content_addressing_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

ContentAddressing make_lookup(Tensor& memory, Tensor& key, Tensor& strength, double eps) {
  ContentAddressing p = {};
  p.sizes = memory_sizes(memory, key.size(1), 0, 0, 1);
  const MemorySizes& s = p.sizes;
  const ScalarType dtype = memory.scalar_type();
  check_memory(key, {s.batch, s.heads, s.width}, dtype, "content_addressing: key");
  check_memory(strength, {s.batch, s.heads}, dtype, "content_addressing: strength");
  p.memory = rows_of(memory);
  p.key = small(key);
  p.strength = small(strength);
  p.eps = static_cast<float>(eps);
  return p;
}

int64_t scratch_floats(const MemorySizes& s) {
  return 2 * s.rows * s.wide + s.heads * (5 * s.wide + 4 * s.padded + 48) + 3 * s.padded + 512;
}

Tensor content_addressing(Tensor memory, Tensor key, Tensor strength, double eps) {
  ContentAddressing p = make_lookup(memory, key, strength, eps);
  const MemorySizes& s = p.sizes;
  Tensor weight = like(memory, {s.batch, s.heads, s.rows});
  p.weight_out = weight.mutable_data_ptr();
  const auto kernel =
      with_float_type(memory.scalar_type(), "content_addressing: memory",
                      [](auto number) { return STMETA_BY_ISA(forward<decltype(number)>); });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return weight;
}

std::tuple<Tensor, Tensor, Tensor> content_addressing_backward(Tensor grad, Tensor memory,
                                                               Tensor key, Tensor strength,
                                                               Tensor weight, double eps) {
  ContentAddressing p = make_lookup(memory, key, strength, eps);
  const MemorySizes& s = p.sizes;
  const ScalarType dtype = memory.scalar_type();
  check_memory(grad, {s.batch, s.heads, s.rows}, dtype, "content_addressing: grad");
  check_memory(weight, {s.batch, s.heads, s.rows}, dtype, "content_addressing: weight");
  p.grad = small(grad);
  p.weight = small(weight);
  Tensor grad_memory = like(memory, {s.batch, s.rows, s.width});
  Tensor grad_key = like(memory, {s.batch, s.heads, s.width});
  Tensor grad_strength = like(memory, {s.batch, s.heads});
  p.d_memory = grad_memory.mutable_data_ptr();
  p.d_key = grad_key.mutable_data_ptr();
  p.d_strength = grad_strength.mutable_data_ptr();
  const auto kernel =
      with_float_type(memory.scalar_type(), "content_addressing: memory",
                      [](auto number) { return STMETA_BY_ISA(backward<decltype(number)>); });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return {grad_memory, grad_key, grad_strength};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("content_addressing", TORCH_BOX(&content_addressing));
  m.impl("content_addressing_backward", TORCH_BOX(&content_addressing_backward));
}

}  // namespace stmeta
