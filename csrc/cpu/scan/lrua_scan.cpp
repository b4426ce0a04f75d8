// CPU implementation of stmeta::lrua_scan. Reference: stmeta/ops/scan/lrua_scan.py
// check -> pack the weights -> parallel over tiles of the batch, each through all steps
#include "cpu/scan/lrua_scan_problem.h"
#include "cpu/scan/scan_call.h"

#define STMETA_BF16DOT
#define STMETA_KERNELS "cpu/scan/lrua_scan_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

struct Options {
  bool read_first, shared, strength, write_key;
  double decay, eps;
};

LruaScan make_scan(ScanInputs& t, const Tensor& memory, int64_t steps, bool transposed,
                   const Options& o, bool lean) {
  const int64_t heads = t.previous.size(1);
  LruaScan p = {};
  p.sizes = memory_sizes(memory, heads, heads, heads, 1);
  const MemorySizes& s = p.sizes;
  p.per_head = (o.write_key ? 1 : 2) * s.width + 2;
  p.numbers = heads * p.per_head;
  p.options = {static_cast<float>(o.decay), static_cast<float>(o.eps), o.read_first, o.shared};
  p.strength = o.strength;
  p.write_key = o.write_key;
  STD_TORCH_CHECK(heads <= s.rows || s.batch == 0, "lrua_scan: more heads than rows");
  start_call(p, t, steps, transposed);
  p.lean = lean;
  p.inner_every = 1;
  while (p.inner_every * p.inner_every < p.every) ++p.inner_every;
  p.slots = (p.every + p.inner_every - 1) / p.inner_every + p.inner_every;
  return p;
}

// Floats of a thread's scratch for the memory's own part.
int64_t own_floats(const LruaScan& p, bool backward) {
  const MemorySizes& s = p.sizes;
  const int64_t rows = std::min(tile_rows(s, backward), s.batch);
  const int64_t segment = backward ? rows * (p.every + 1) : 0;
  const int64_t size = s.rows * s.wide, weight_floats = s.heads * s.padded,
                vectors = s.heads * s.wide;
  const int64_t found = weight_floats + vectors + s.padded + 96;  // what `compare` gives
  return segment * (weight_floats + p.hidden + found) + rows * s.padded + 2 * size +
         8 * weight_floats + 15 * vectors + 8 * s.padded + 4096;
}

using Eleven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                          Tensor, Tensor>;

template <bool kLean>
Eleven lrua_scan(Tensor gates, std::optional<Tensor> key, std::optional<Tensor> add,
                 Tensor recurrent, Tensor interface, Tensor bias, Tensor memory, Tensor usage,
                 Tensor previous, Tensor reads, Tensor h, Tensor c, std::optional<Tensor> lengths,
                 double decay, bool read_first, bool shared, bool strength, bool write_key,
                 double eps) {
  const int64_t steps = gates.size(1);
  ScanInputs t = {recurrent, interface, previous, c, lengths};
  LruaScan p = make_scan(t, memory, steps, true,
                         {read_first, shared, strength, write_key, decay, eps}, kLean);
  const MemorySizes& s = p.sizes;
  const int64_t kept = kLean ? p.num_checkpoints() : steps;
  const Ints extra = {s.batch, steps, s.heads, s.width};
  p.gates = scan_data(gates, {s.batch, steps, 4 * p.hidden}, "lrua_scan: gates");
  p.bias = scan_data(bias, {p.numbers}, "lrua_scan: bias");
  p.memory = scan_data(memory, {s.batch, s.rows, s.width}, "lrua_scan: memory");
  p.usage = scan_data(usage, {s.batch, s.rows}, "lrua_scan: usage");
  p.reads = scan_data(reads, {s.batch, p.read()}, "lrua_scan: reads");
  p.h = scan_data(h, {s.batch, p.hidden}, "lrua_scan: h");
  if (key.has_value()) p.key = scan_data(*key, extra, "lrua_scan: key");
  if (add.has_value()) p.add = scan_data(*add, extra, "lrua_scan: add");
  Tensor y = scan_output(memory, {s.batch, steps, p.hidden + p.read()}, p.y);
  Tensor memory_out = scan_output(memory, {s.batch, s.rows, s.width}, p.memory_out);
  Tensor usage_out = scan_output(memory, {s.batch, s.rows}, p.usage_out);
  Tensor weight_out = scan_output(memory, {s.batch, s.heads, s.rows}, p.weight_out);
  Tensor c_out = scan_output(memory, {s.batch, p.hidden}, p.c_out);
  Tensor gates_out = scan_output(memory, {s.batch, steps, 4 * p.hidden}, p.gates_out);
  Tensor cells = scan_output(memory, {s.batch, kept, p.hidden}, p.cells);
  Tensor heads = scan_output(memory, {s.batch, steps, p.numbers}, p.heads);
  Tensor weights = scan_output(memory, {s.batch, kept, s.heads, s.rows}, p.weights);
  Tensor rows = new_tensor(memory, {s.batch, steps, s.heads}, ScalarType::Long);
  p.rows = rows.mutable_data_ptr<int64_t>();
  Tensor checkpoints =
      scan_output(memory, {s.batch, p.num_checkpoints(), s.rows, s.width}, p.checkpoints);
  const auto kernel = STMETA_BY_ISA(forward);
  over_tiles(p, own_floats(p, false), false,
             [&](int64_t b, int64_t count, float* scratch) { kernel(p, b, count, scratch); });
  return {y,     memory_out, usage_out, weight_out, c_out,      gates_out,
          cells, heads,      weights,   rows,       checkpoints};
}

using Eight = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Gradients of gates, raw heads, what is written, memory, previous, reads, h, c. Those of the
// weights are products of these with what the forward gave; torch's own product makes them.
template <bool kLean>
Eight lrua_scan_backward(Tensor grad_y, Tensor grad_memory, Tensor grad_weight, Tensor grad_c,
                         std::optional<Tensor> add, Tensor recurrent, Tensor interface,
                         Tensor memory, Tensor previous, Tensor c, std::optional<Tensor> lengths,
                         Tensor gates, Tensor cells, Tensor heads, Tensor weights, Tensor rows,
                         Tensor checkpoints, double decay, bool read_first, bool shared,
                         bool strength, bool write_key, double eps) {
  const int64_t steps = gates.size(1);
  ScanInputs t = {recurrent, interface, previous, c, lengths};
  LruaScan p = make_scan(t, memory, steps, false,
                         {read_first, shared, strength, write_key, decay, eps}, kLean);
  const MemorySizes& s = p.sizes;
  const int64_t kept = kLean ? p.num_checkpoints() : steps;
  const Ints written = {s.batch, steps, s.heads, s.width}, all = {s.batch, s.rows, s.width};
  take_grad(p, grad_y, "lrua_scan: grad_y");
  p.grad_memory = scan_data(grad_memory, all, "lrua_scan: grad_memory");
  p.grad_weight = scan_data(grad_weight, {s.batch, s.heads, s.rows}, "lrua_scan: grad_weight");
  p.grad_c = scan_data(grad_c, {s.batch, p.hidden}, "lrua_scan: grad_c");
  if (add.has_value()) p.add = scan_data(*add, written, "lrua_scan: add");
  p.gates_out = scan_kept(gates, {s.batch, steps, 4 * p.hidden}, "lrua_scan: gates");
  p.cells = scan_kept(cells, {s.batch, kept, p.hidden}, "lrua_scan: cells");
  p.heads = scan_kept(heads, {s.batch, steps, p.numbers}, "lrua_scan: heads");
  p.weights = scan_kept(weights, {s.batch, kept, s.heads, s.rows}, "lrua_scan: weights");
  p.checkpoints = scan_kept(checkpoints, {s.batch, p.num_checkpoints(), s.rows, s.width},
                            "lrua_scan: checkpoints");
  check_memory(rows, {s.batch, steps, s.heads}, ScalarType::Long, "lrua_scan: rows");
  rows = torch::stable::contiguous(rows);
  check_ids("lrua_scan: rows", rows.const_data_ptr<int64_t>(), rows.numel(), s.rows);
  p.rows = const_cast<int64_t*>(rows.const_data_ptr<int64_t>());
  Tensor d_gates = gates, d_heads = heads, d_written;
  p.d_gates = p.gates_out;
  p.d_heads = p.heads;
  if (!kLean) {
    d_gates = scan_output(gates, {s.batch, steps, 4 * p.hidden}, p.d_gates);
    d_heads = scan_output(gates, {s.batch, steps, p.numbers}, p.d_heads);
  }
  d_written =
      kLean && !add.has_value() ? like(gates, {0}) : scan_output(gates, written, p.d_written);
  Tensor d_memory = scan_output(gates, all, p.d_memory);
  Tensor d_previous = scan_output(gates, {s.batch, s.heads, s.rows}, p.d_previous);
  Tensor d_reads = scan_output(gates, {s.batch, p.read()}, p.d_reads);
  Tensor d_h = scan_output(gates, {s.batch, p.hidden}, p.d_h);
  Tensor d_c = scan_output(gates, {s.batch, p.hidden}, p.d_c);
  const auto kernel = STMETA_BY_ISA(backward);
  over_tiles(p, own_floats(p, true), true,
             [&](int64_t b, int64_t count, float* scratch) { kernel(p, b, count, scratch); });
  return {d_gates, d_heads, d_written, d_memory, d_previous, d_reads, d_h, d_c};
}

using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The same over what the forward kept: `gates` and `heads` become their gradients.
Six lrua_scan_lean_backward(Tensor grad_y, Tensor grad_memory, Tensor grad_weight, Tensor grad_c,
                            std::optional<Tensor> add, Tensor recurrent, Tensor interface,
                            Tensor memory, Tensor previous, Tensor c, std::optional<Tensor> lengths,
                            Tensor gates, Tensor cells, Tensor heads, Tensor weights, Tensor rows,
                            Tensor checkpoints, double decay, bool read_first, bool shared,
                            bool strength, bool write_key, double eps) {
  STD_TORCH_CHECK(gates.is_contiguous() && heads.is_contiguous(),
                  "lrua_scan: what is written over must be contiguous");
  auto [d_gates, d_heads, d_written, d_memory, d_previous, d_reads, d_h, d_c] =
      lrua_scan_backward<true>(grad_y, grad_memory, grad_weight, grad_c, add, recurrent, interface,
                               memory, previous, c, lengths, gates, cells, heads, weights, rows,
                               checkpoints, decay, read_first, shared, strength, write_key, eps);
  return {d_written, d_memory, d_previous, d_reads, d_h, d_c};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("lrua_scan", TORCH_BOX(&lrua_scan<false>));
  m.impl("lrua_scan_backward", TORCH_BOX(&lrua_scan_backward<false>));
  m.impl("lrua_scan_lean", TORCH_BOX(&lrua_scan<true>));
  m.impl("lrua_scan_lean_backward", TORCH_BOX(&lrua_scan_lean_backward));
}

}  // namespace stmeta
