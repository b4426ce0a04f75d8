// CPU implementation of stmeta::ntm_step. Reference: stmeta/ops/memory/ntm_step.py
// check -> allocate -> dispatch dtype -> parallel over batch elements
#include "cpu/memory/memory_call.h"

namespace stmeta {

struct NtmStep {
  MemorySizes sizes;
  Source memory, previous, key, strength, gate, shift, sharpen, erase, add;
  bool read_first;
  float eps;
  void *memory_out, *weight_out, *content_out, *read_out;
  Source grad_memory, grad_weight, grad_read, weight, content;  // of the backward
  void *d_memory, *d_previous, *d_key, *d_strength, *d_gate, *d_shift, *d_sharpen, *d_erase, *d_add;
};

}  // namespace stmeta

#define STMETA_KERNELS "cpu/memory/ntm_step_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

struct Tensors {  // kept alive during a call; some are replaced by dense copies
  Tensor memory, previous, key, strength, gate, shift, sharpen, erase, add;
};

NtmStep make_step(Tensors& t, int64_t reads, bool read_first, double eps) {
  const int64_t heads = t.key.size(1), writes = t.erase.size(1), taps = t.shift.size(2);
  NtmStep p = {};
  p.sizes = memory_sizes(t.memory, heads, reads, writes, taps);
  const MemorySizes& s = p.sizes;
  const ScalarType dtype = t.memory.scalar_type();
  const Ints per_head = {s.batch, heads};
  check_memory(t.previous, {s.batch, heads, s.rows}, dtype, "ntm_step: previous");
  check_memory(t.key, {s.batch, heads, s.width}, dtype, "ntm_step: key");
  check_memory(t.strength, per_head, dtype, "ntm_step: strength");
  check_memory(t.gate, per_head, dtype, "ntm_step: gate");
  check_memory(t.shift, {s.batch, heads, taps}, dtype, "ntm_step: shift");
  check_memory(t.sharpen, per_head, dtype, "ntm_step: sharpen");
  check_memory(t.erase, {s.batch, writes, s.width}, dtype, "ntm_step: erase");
  check_memory(t.add, {s.batch, writes, s.width}, dtype, "ntm_step: add");
  STD_TORCH_CHECK(
      reads >= 0 && reads <= heads && writes <= heads && taps <= std::max<int64_t>(s.rows, 1),
      "ntm_step: reads, writes or taps are out of range");
  p.memory = rows_of(t.memory);
  p.previous = small(t.previous);
  p.key = small(t.key);
  p.strength = small(t.strength);
  p.gate = small(t.gate);
  p.shift = small(t.shift);
  p.sharpen = small(t.sharpen);
  p.erase = small(t.erase);
  p.add = small(t.add);
  p.read_first = read_first;
  p.eps = static_cast<float>(eps);
  return p;
}

int64_t scratch_floats(const MemorySizes& s) {
  const int64_t vectors = s.heads * (6 * s.wide + 8 * s.padded + s.taps + 96);
  return 2 * s.rows * s.wide + vectors + s.reads * s.wide + 6 * s.writes * s.wide +
         6 * (s.padded + s.taps + 64) + 1024;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ntm_step(Tensor memory, Tensor previous, Tensor key,
                                                    Tensor strength, Tensor gate, Tensor shift,
                                                    Tensor sharpen, Tensor erase, Tensor add,
                                                    int64_t reads, bool read_first, double eps) {
  Tensors t = {memory, previous, key, strength, gate, shift, sharpen, erase, add};
  NtmStep p = make_step(t, reads, read_first, eps);
  const MemorySizes& s = p.sizes;
  Tensor out = like(memory, {s.batch, s.rows, s.width});
  Tensor weight = like(memory, {s.batch, s.heads, s.rows});
  Tensor read = like(memory, {s.batch, reads, s.width});
  Tensor content = like(memory, {s.batch, s.heads, s.rows});
  p.memory_out = out.mutable_data_ptr();
  p.weight_out = weight.mutable_data_ptr();
  p.read_out = read.mutable_data_ptr();
  p.content_out = content.mutable_data_ptr();
  const auto kernel = with_float_type(memory.scalar_type(), "ntm_step: memory", [](auto number) {
    return STMETA_BY_ISA(forward<decltype(number)>);
  });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return {out, weight, read, content};
}

using Nine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Nine ntm_step_backward(Tensor grad_memory, Tensor grad_weight, Tensor grad_read, Tensor memory,
                       Tensor previous, Tensor key, Tensor strength, Tensor gate, Tensor shift,
                       Tensor sharpen, Tensor erase, Tensor add, Tensor weight, Tensor content,
                       int64_t reads, bool read_first, double eps) {
  Tensors t = {memory, previous, key, strength, gate, shift, sharpen, erase, add};
  NtmStep p = make_step(t, reads, read_first, eps);
  const MemorySizes& s = p.sizes;
  const ScalarType dtype = memory.scalar_type();
  check_memory(grad_memory, {s.batch, s.rows, s.width}, dtype, "ntm_step: grad_memory");
  check_memory(grad_weight, {s.batch, s.heads, s.rows}, dtype, "ntm_step: grad_weight");
  check_memory(grad_read, {s.batch, reads, s.width}, dtype, "ntm_step: grad_read");
  check_memory(weight, {s.batch, s.heads, s.rows}, dtype, "ntm_step: weight");
  check_memory(content, {s.batch, s.heads, s.rows}, dtype, "ntm_step: content");
  p.grad_memory = rows_of(grad_memory);
  p.grad_weight = small(grad_weight);
  p.grad_read = small(grad_read);
  p.weight = small(weight);
  p.content = small(content);
  void** targets[] = {&p.d_memory, &p.d_previous, &p.d_key,   &p.d_strength, &p.d_gate,
                      &p.d_shift,  &p.d_sharpen,  &p.d_erase, &p.d_add};
  const Tensor* sources[] = {&memory, &previous, &key,   &strength, &gate,
                             &shift,  &sharpen,  &erase, &add};
  std::vector<Tensor> made;
  for (int i = 0; i < 9; ++i) {
    const auto size = sources[i]->sizes();
    made.push_back(like(memory, Ints(size.begin(), size.end())));
    *targets[i] = made.back().mutable_data_ptr();
  }
  const auto kernel = with_float_type(dtype, "ntm_step: memory", [](auto number) {
    return STMETA_BY_ISA(backward<decltype(number)>);
  });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return {made[0], made[1], made[2], made[3], made[4], made[5], made[6], made[7], made[8]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("ntm_step", TORCH_BOX(&ntm_step));
  m.impl("ntm_step_backward", TORCH_BOX(&ntm_step_backward));
}

}  // namespace stmeta
