// CPU implementation of stmeta::location_addressing. Reference:
// stmeta/ops/memory/location_addressing.py check -> allocate -> dispatch dtype -> parallel over
// batch elements
#include "cpu/memory/memory_call.h"

namespace stmeta {

struct LocationAddressing {
  MemorySizes sizes;
  Source content, previous, gate, shift, sharpen, grad, weight;
  void *weight_out, *d_content, *d_previous, *d_gate, *d_shift, *d_sharpen;
};

}  // namespace stmeta

#define STMETA_KERNELS "cpu/memory/location_addressing_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

LocationAddressing make_move(Tensor& content, Tensor& previous, Tensor& gate, Tensor& shift,
                             Tensor& sharpen) {
  const int64_t heads = content.size(1);
  LocationAddressing p = {};
  p.sizes = memory_sizes(content, heads, 0, 0, shift.size(2));
  p.sizes.rows = content.size(2);  // the weights are [B, H, N]
  p.sizes.width = 1;
  p.sizes.padded = round_up(p.sizes.rows, 16);
  const MemorySizes& s = p.sizes;
  const ScalarType dtype = content.scalar_type();
  check_memory(previous, {s.batch, heads, s.rows}, dtype, "location_addressing: previous");
  check_memory(gate, {s.batch, heads}, dtype, "location_addressing: gate");
  check_memory(shift, {s.batch, heads, s.taps}, dtype, "location_addressing: shift");
  check_memory(sharpen, {s.batch, heads}, dtype, "location_addressing: sharpen");
  STD_TORCH_CHECK(s.taps <= std::max<int64_t>(s.rows, 1), "location_addressing: too many taps");
  p.content = small(content);
  p.previous = small(previous);
  p.gate = small(gate);
  p.shift = small(shift);
  p.sharpen = small(sharpen);
  return p;
}

int64_t scratch_floats(const MemorySizes& s) {
  return s.heads * (7 * s.padded + 2 * s.taps + 128) + 6 * (s.padded + s.taps + 64) + 512;
}

Tensor location_addressing(Tensor content, Tensor previous, Tensor gate, Tensor shift,
                           Tensor sharpen) {
  LocationAddressing p = make_move(content, previous, gate, shift, sharpen);
  const MemorySizes& s = p.sizes;
  Tensor weight = like(content, {s.batch, s.heads, s.rows});
  p.weight_out = weight.mutable_data_ptr();
  const auto kernel =
      with_float_type(content.scalar_type(), "location_addressing: memory",
                      [](auto number) { return STMETA_BY_ISA(forward<decltype(number)>); });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return weight;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> location_addressing_backward(
    Tensor grad, Tensor content, Tensor previous, Tensor gate, Tensor shift, Tensor sharpen,
    Tensor weight) {
  LocationAddressing p = make_move(content, previous, gate, shift, sharpen);
  const MemorySizes& s = p.sizes;
  check_memory(grad, {s.batch, s.heads, s.rows}, content.scalar_type(),
               "location_addressing: grad");
  check_memory(weight, {s.batch, s.heads, s.rows}, content.scalar_type(),
               "location_addressing: weight");
  p.grad = small(grad);
  p.weight = small(weight);
  const Ints size = {s.batch, s.heads, s.rows}, per_head = {s.batch, s.heads};
  Tensor grad_content = like(content, size), grad_previous = like(content, size);
  Tensor grad_gate = like(content, per_head), grad_sharpen = like(content, per_head);
  Tensor grad_shift = like(content, {s.batch, s.heads, s.taps});
  p.d_content = grad_content.mutable_data_ptr();
  p.d_previous = grad_previous.mutable_data_ptr();
  p.d_gate = grad_gate.mutable_data_ptr();
  p.d_shift = grad_shift.mutable_data_ptr();
  p.d_sharpen = grad_sharpen.mutable_data_ptr();
  const auto kernel =
      with_float_type(content.scalar_type(), "location_addressing: memory",
                      [](auto number) { return STMETA_BY_ISA(backward<decltype(number)>); });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return {grad_content, grad_previous, grad_gate, grad_shift, grad_sharpen};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("location_addressing", TORCH_BOX(&location_addressing));
  m.impl("location_addressing_backward", TORCH_BOX(&location_addressing_backward));
}

}  // namespace stmeta
