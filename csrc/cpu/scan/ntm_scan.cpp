// CPU implementation of stmeta::ntm_scan. Reference: stmeta/ops/scan/ntm_scan.py
// check -> pack the weights -> parallel over tiles of the batch, each through all steps
#include "cpu/scan/ntm_scan_problem.h"
#include "cpu/scan/scan_call.h"

#define STMETA_KERNELS "cpu/scan/ntm_scan_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

struct Options {
  int64_t taps;
  bool read_first, tanh_key, tanh_add;
  double eps;
};

// `memory` is any tensor that ends in [N, M]; `read` = R * M.
NtmScan make_scan(ScanInputs& t, const Ints& memory, int64_t read, int64_t steps, bool transposed,
                  const Options& o) {
  const int64_t heads = t.previous.size(1), rows = memory[0], width = memory[1];
  check_product("ntm_scan: memory", {rows, width});
  const int64_t reading = width == 0 ? 0 : read / width, writing = heads - reading;
  STD_TORCH_CHECK(reading >= 1 && writing >= 1 && reading * width == read,
                  "ntm_scan: reads have a wrong shape");
  STD_TORCH_CHECK(heads <= kMaxHeads, "the CPU kernel takes at most ", kMaxHeads,
                  " heads; use backend='eager'");
  STD_TORCH_CHECK(o.taps % 2 == 1 && o.taps >= 1 && o.taps <= std::max<int64_t>(rows, 1),
                  "ntm_scan: taps are out of range");
  NtmScan p = {};
  p.sizes = {t.previous.size(0), rows, width, heads, reading, writing, o.taps, round_up(rows, 16),
             round_up(width, 16)};
  p.per_head = width + 3 + o.taps;
  p.numbers = heads * p.per_head + 2 * writing * width;
  p.read_first = o.read_first;
  p.tanh_key = o.tanh_key;
  p.tanh_add = o.tanh_add;
  p.eps = static_cast<float>(o.eps);
  start_call(p, t, steps, transposed);
  return p;
}

// Floats of a thread's scratch for the memory's own part.
int64_t own_floats(const MemorySizes& s) {
  const int64_t weight_floats = s.heads * s.padded, vectors = (s.heads + s.writes) * s.wide;
  return 4 * weight_floats + 11 * vectors + 8 * (s.padded + s.heads * s.taps + s.taps) + 4096;
}

using Nine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Nine ntm_scan(Tensor gates, Tensor recurrent, Tensor interface, Tensor bias, Tensor memory,
              Tensor weights, Tensor reads, Tensor h, Tensor c, std::optional<Tensor> lengths,
              int64_t taps, bool read_first, bool tanh_key, bool tanh_add, double eps) {
  const int64_t steps = gates.size(1);
  ScanInputs t = {recurrent, interface, weights, c, lengths};
  NtmScan p = make_scan(t, {memory.size(1), memory.size(2)}, reads.size(1), steps, true,
                        {taps, read_first, tanh_key, tanh_add, eps});
  const MemorySizes& s = p.sizes;
  p.gates = scan_data(gates, {s.batch, steps, 4 * p.hidden}, "ntm_scan: gates");
  p.bias = scan_data(bias, {p.numbers}, "ntm_scan: bias");
  p.memory = scan_data(memory, {s.batch, s.rows, s.width}, "ntm_scan: memory");
  p.reads = scan_data(reads, {s.batch, p.read()}, "ntm_scan: reads");
  p.h = scan_data(h, {s.batch, p.hidden}, "ntm_scan: h");
  Tensor y = scan_output(memory, {s.batch, steps, p.hidden + p.read()}, p.y);
  Tensor memory_out = scan_output(memory, {s.batch, s.rows, s.width}, p.memory_out);
  Tensor weights_out = scan_output(memory, {s.batch, s.heads, s.rows}, p.weight_out);
  Tensor c_out = scan_output(memory, {s.batch, p.hidden}, p.c_out);
  Tensor gates_out = scan_output(memory, {s.batch, steps, 4 * p.hidden}, p.gates_out);
  Tensor cells = scan_output(memory, {s.batch, steps, p.hidden}, p.cells);
  Tensor heads = scan_output(memory, {s.batch, steps, p.numbers}, p.heads);
  Tensor step_weights = scan_output(memory, {s.batch, steps, s.heads, s.rows}, p.weights);
  Tensor checkpoints =
      scan_output(memory, {s.batch, p.num_checkpoints(), s.rows, s.width}, p.checkpoints);
  const auto kernel = STMETA_BY_ISA(forward);
  over_tiles(p, own_floats(s), false,
             [&](int64_t b, int64_t count, float* scratch) { kernel(p, b, count, scratch); });
  return {y, memory_out, weights_out, c_out, gates_out, cells, heads, step_weights, checkpoints};
}

using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Gradients of gates, raw heads, memory, weights, reads, h, c. Those of the controller's weights
// are products of these with what the forward gave; torch's own product makes them.
Seven ntm_scan_backward(Tensor grad_y, Tensor grad_memory, Tensor grad_weights, Tensor grad_c,
                        Tensor recurrent, Tensor interface, Tensor weights, Tensor c,
                        std::optional<Tensor> lengths, Tensor gates, Tensor cells, Tensor heads,
                        Tensor step_weights, Tensor checkpoints, int64_t taps, bool read_first,
                        bool tanh_key, bool tanh_add, double eps) {
  const int64_t steps = gates.size(1), read = grad_y.size(2) - c.size(1);
  ScanInputs t = {recurrent, interface, weights, c, lengths};
  NtmScan p = make_scan(t, {checkpoints.size(2), checkpoints.size(3)}, read, steps, false,
                        {taps, read_first, tanh_key, tanh_add, eps});
  const MemorySizes& s = p.sizes;
  take_grad(p, grad_y, "ntm_scan: grad_y");
  p.grad_memory = scan_data(grad_memory, {s.batch, s.rows, s.width}, "ntm_scan: grad_memory");
  p.grad_weight = scan_data(grad_weights, {s.batch, s.heads, s.rows}, "ntm_scan: grad_weights");
  p.grad_c = scan_data(grad_c, {s.batch, p.hidden}, "ntm_scan: grad_c");
  p.gates_out = scan_kept(gates, {s.batch, steps, 4 * p.hidden}, "ntm_scan: activated");
  p.cells = scan_kept(cells, {s.batch, steps, p.hidden}, "ntm_scan: cells");
  p.heads = scan_kept(heads, {s.batch, steps, p.numbers}, "ntm_scan: heads");
  p.weights = scan_kept(step_weights, {s.batch, steps, s.heads, s.rows}, "ntm_scan: step_weights");
  p.checkpoints = scan_kept(checkpoints, {s.batch, p.num_checkpoints(), s.rows, s.width},
                            "ntm_scan: checkpoints");
  Tensor d_gates = scan_output(gates, {s.batch, steps, 4 * p.hidden}, p.d_gates);
  Tensor d_heads = scan_output(gates, {s.batch, steps, p.numbers}, p.d_heads);
  Tensor d_memory = scan_output(gates, {s.batch, s.rows, s.width}, p.d_memory);
  Tensor d_weights = scan_output(gates, {s.batch, s.heads, s.rows}, p.d_previous);
  Tensor d_reads = scan_output(gates, {s.batch, read}, p.d_reads);
  Tensor d_h = scan_output(gates, {s.batch, p.hidden}, p.d_h);
  Tensor d_c = scan_output(gates, {s.batch, p.hidden}, p.d_c);
  const auto kernel = STMETA_BY_ISA(backward);
  over_tiles(p, own_floats(s), true,
             [&](int64_t b, int64_t count, float* scratch) { kernel(p, b, count, scratch); });
  return {d_gates, d_heads, d_memory, d_weights, d_reads, d_h, d_c};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("ntm_scan", TORCH_BOX(&ntm_scan));
  m.impl("ntm_scan_backward", TORCH_BOX(&ntm_scan_backward));
}

}  // namespace stmeta
