// CPU implementation of stmeta::lrua_step. Reference: stmeta/ops/memory/lrua_step.py
// check -> allocate -> dispatch dtype -> parallel over batch elements
#include "cpu/memory/memory_call.h"

namespace stmeta {

struct LruaStep {
  MemorySizes sizes;  // R heads read and write
  Source memory, usage, previous, key, strength, gate, add;
  LruaOptions options;
  void *memory_out, *usage_out, *weight_out, *read_out;
  int64_t* rows_out;
  Source grad_memory, grad_weight, grad_read, weight;  // of the backward
  const int64_t* rows_in;
  void *d_memory, *d_previous, *d_key, *d_strength, *d_gate, *d_add;
};

}  // namespace stmeta

#define STMETA_KERNELS "cpu/memory/lrua_step_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

struct Tensors {  // kept alive during a call; some are replaced by dense copies
  Tensor memory, previous, key, strength, gate, add;
};

LruaStep make_step(Tensors& t, bool read_first, bool shared, double eps) {
  const int64_t heads = t.key.size(1);
  LruaStep p = {};
  p.sizes = memory_sizes(t.memory, heads, heads, heads, 1);
  const MemorySizes& s = p.sizes;
  const ScalarType dtype = t.memory.scalar_type();
  check_memory(t.previous, {s.batch, heads, s.rows}, dtype, "lrua_step: previous");
  check_memory(t.key, {s.batch, heads, s.width}, dtype, "lrua_step: key");
  check_memory(t.strength, {s.batch, heads}, dtype, "lrua_step: strength");
  check_memory(t.gate, {s.batch, heads}, dtype, "lrua_step: gate");
  check_memory(t.add, {s.batch, heads, s.width}, dtype, "lrua_step: add");
  STD_TORCH_CHECK(heads <= s.rows || s.batch == 0, "lrua_step: more heads than rows");
  p.memory = rows_of(t.memory);
  p.previous = small(t.previous);
  p.key = small(t.key);
  p.strength = small(t.strength);
  p.gate = small(t.gate);
  p.add = small(t.add);
  p.options = {0.0f, static_cast<float>(eps), read_first, shared};
  return p;
}

int64_t scratch_floats(const MemorySizes& s) {
  return 3 * s.rows * s.wide + s.heads * (11 * s.wide + 8 * s.padded + 96) + 6 * s.padded + 1024;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lrua_step(
    Tensor memory, Tensor usage, Tensor previous, Tensor key, Tensor strength, Tensor gate,
    Tensor add, double decay, bool read_first, bool shared, double eps) {
  Tensors t = {memory, previous, key, strength, gate, add};
  LruaStep p = make_step(t, read_first, shared, eps);
  const MemorySizes& s = p.sizes;
  check_memory(usage, {s.batch, s.rows}, memory.scalar_type(), "lrua_step: usage");
  p.usage = small(usage);
  p.options.decay = static_cast<float>(decay);
  Tensor out = like(memory, {s.batch, s.rows, s.width});
  Tensor used = like(memory, {s.batch, s.rows});
  Tensor weight = like(memory, {s.batch, s.heads, s.rows});
  Tensor read = like(memory, {s.batch, s.heads, s.width});
  Tensor rows = new_tensor(memory, {s.batch, s.heads}, ScalarType::Long);
  p.memory_out = out.mutable_data_ptr();
  p.usage_out = used.mutable_data_ptr();
  p.weight_out = weight.mutable_data_ptr();
  p.read_out = read.mutable_data_ptr();
  p.rows_out = rows.mutable_data_ptr<int64_t>();
  const auto kernel = with_float_type(memory.scalar_type(), "lrua_step: memory", [](auto number) {
    return STMETA_BY_ISA(forward<decltype(number)>);
  });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return {out, used, weight, read, rows};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lrua_step_backward(
    Tensor grad_memory, Tensor grad_weight, Tensor grad_read, Tensor memory, Tensor previous,
    Tensor key, Tensor strength, Tensor gate, Tensor add, Tensor weight, Tensor rows,
    bool read_first, bool shared, double eps) {
  Tensors t = {memory, previous, key, strength, gate, add};
  LruaStep p = make_step(t, read_first, shared, eps);
  const MemorySizes& s = p.sizes;
  const ScalarType dtype = memory.scalar_type();
  check_memory(grad_memory, {s.batch, s.rows, s.width}, dtype, "lrua_step: grad_memory");
  check_memory(grad_weight, {s.batch, s.heads, s.rows}, dtype, "lrua_step: grad_weight");
  check_memory(grad_read, {s.batch, s.heads, s.width}, dtype, "lrua_step: grad_read");
  check_memory(weight, {s.batch, s.heads, s.rows}, dtype, "lrua_step: weight");
  check_memory(rows, {s.batch, s.heads}, ScalarType::Long, "lrua_step: rows");
  rows = torch::stable::contiguous(rows);
  p.grad_memory = rows_of(grad_memory);
  p.grad_weight = small(grad_weight);
  p.grad_read = small(grad_read);
  p.weight = small(weight);
  p.rows_in = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    STD_TORCH_CHECK(p.rows_in[i] >= 0 && p.rows_in[i] < s.rows,
                    "lrua_step: rows must have values below N = ", s.rows, ", got ", p.rows_in[i]);
  }
  void** targets[] = {&p.d_memory, &p.d_previous, &p.d_key, &p.d_strength, &p.d_gate, &p.d_add};
  const Tensor* sources[] = {&memory, &previous, &key, &strength, &gate, &add};
  std::vector<Tensor> made;
  for (int i = 0; i < 6; ++i) {
    const auto size = sources[i]->sizes();
    made.push_back(like(memory, Ints(size.begin(), size.end())));
    *targets[i] = made.back().mutable_data_ptr();
  }
  const auto kernel = with_float_type(dtype, "lrua_step: memory", [](auto number) {
    return STMETA_BY_ISA(backward<decltype(number)>);
  });
  over_batch(s, scratch_floats(s),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(p, begin, end, scratch); });
  return {made[0], made[1], made[2], made[3], made[4], made[5]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("lrua_step", TORCH_BOX(&lrua_step));
  m.impl("lrua_step_backward", TORCH_BOX(&lrua_step_backward));
}

}  // namespace stmeta
