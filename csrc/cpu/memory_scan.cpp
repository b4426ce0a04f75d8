// CPU implementation of stmeta::memory_scan. Reference: stmeta/ops/memory_scan.py
// check -> pack the weights -> parallel over tiles of the batch, each through all steps
#include "memory_call.h"
#include "memory_scan_problem.h"

#define STMETA_KERNELS "../cpu/memory_scan_kernels.h"
#include "../common/each_isa.h"

namespace stmeta {
namespace {

constexpr int64_t kTileRows = 16;

// [inner][width], or with `turned` [width][inner], as panels.
Panels pack(const Tensor& matrix, bool turned, Buffer<float>& buffer) {
  const int64_t inner = matrix.size(turned ? 1 : 0), width = matrix.size(turned ? 0 : 1);
  const float* from = matrix.const_data_ptr<float>();
  const int64_t row = turned ? 1 : width, column = turned ? inner : 1;
  const Panels panels = {nullptr, inner, round_up(width, kPanel)};
  buffer = Buffer<float>(std::max<int64_t>(1, panels.wide * inner));
  float* to = buffer.get();
  for (int64_t n = 0; n < panels.wide; n += kPanel) {
    for (int64_t k = 0; k < inner; ++k) {
      for (int64_t i = 0; i < kPanel; ++i) {
        *to++ = n + i < width ? from[k * row + (n + i) * column] : 0.0f;
      }
    }
  }
  return {buffer.get(), inner, panels.wide};
}

const float* data_of(Tensor& tensor) {
  tensor = torch::stable::contiguous(tensor);
  return tensor.const_data_ptr<float>();
}

struct Tensors {  // kept alive during a call; some are replaced by dense copies
  Tensor recurrent, interface, memory, previous, c;
  std::optional<Tensor> lengths;
};

struct Options {
  bool read_first, shared, strength, write_key;
  double decay, eps;
};

MemoryScan make_scan(Tensors& t, int64_t steps, const Options& o) {
  const int64_t heads = t.previous.size(1), hidden = t.c.size(1);
  MemoryScan p = {};
  p.sizes = memory_sizes(t.memory, heads, heads, heads, 1);
  const MemorySizes& s = p.sizes;
  p.steps = steps;
  p.hidden = hidden;
  p.fed = t.recurrent.size(1);
  p.per_head = (o.write_key ? 1 : 2) * s.width + 2;
  p.every = 1;
  while (p.every * p.every < steps) ++p.every;
  p.options = {static_cast<float>(o.decay), static_cast<float>(o.eps), o.read_first, o.shared};
  p.strength = o.strength;
  p.write_key = o.write_key;
  const ScalarType dtype = ScalarType::Float;
  STD_TORCH_CHECK(p.fed == hidden || p.fed == hidden + heads * s.width,
                  "memory_scan: recurrent has a wrong shape");
  check_memory(t.recurrent, {4 * hidden, p.fed}, dtype, "memory_scan: recurrent");
  check_memory(t.interface, {heads * p.per_head, hidden}, dtype, "memory_scan: interface");
  check_memory(t.memory, {s.batch, s.rows, s.width}, dtype, "memory_scan: memory");
  check_memory(t.previous, {s.batch, heads, s.rows}, dtype, "memory_scan: previous");
  check_memory(t.c, {s.batch, hidden}, dtype, "memory_scan: c");
  if (t.lengths.has_value()) {
    check_memory(*t.lengths, {s.batch}, ScalarType::Long, "memory_scan: lengths");
    t.lengths = torch::stable::contiguous(*t.lengths);
    p.lengths = t.lengths->const_data_ptr<int64_t>();
  }
  STD_TORCH_CHECK(heads <= s.rows || s.batch == 0, "memory_scan: more heads than rows");
  t.recurrent = torch::stable::contiguous(t.recurrent);
  t.interface = torch::stable::contiguous(t.interface);
  p.memory = data_of(t.memory);
  p.previous = data_of(t.previous);
  p.c = data_of(t.c);
  return p;
}

int64_t marks_of(const MemoryScan& p) { return (p.steps + p.every - 1) / p.every; }

// Floats of a thread's scratch, for a tile of `rows`.
int64_t scratch_floats(const MemoryScan& p, int64_t rows, bool backward) {
  const MemorySizes& s = p.sizes;
  const int64_t size = s.rows * s.wide, weights = s.heads * s.padded, vectors = s.heads * s.wide;
  const int64_t gates = 4 * p.hidden + kPanel, heads = s.heads * p.per_head + kPanel;
  int64_t floats = rows * (p.fed + p.hidden + gates + heads + size + s.padded + 2 * weights) +
                   3 * vectors + 2 * size + 8 * weights + 8 * vectors + 8 * s.padded + 4096;
  if (backward) {
    floats += rows * (p.fed + 2 * kPanel + 2 * p.hidden + size + 2 * weights + gates + heads +
                      p.every * size) +
              3 * vectors + 2048;
  }
  return floats + 64 * (rows + 32);
}

template <typename F>
void over_tiles(const MemoryScan& p, bool backward, const F& f) {
  const int64_t batch = p.sizes.batch;
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t rows = std::min(kTileRows, (batch + threads - 1) / threads);
  if (batch == 0 || p.steps == 0) return;
  const int64_t tiles = (batch + rows - 1) / rows;
  torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    const Buffer<float> scratch(scratch_floats(p, rows, backward));
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * rows;
      f(first, std::min(rows, batch - first), scratch.get());
    }
  });
}

using Eleven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                          Tensor, Tensor>;

Eleven memory_scan(Tensor gates, std::optional<Tensor> key, std::optional<Tensor> add,
                   Tensor recurrent, Tensor interface, Tensor bias, Tensor memory, Tensor usage,
                   Tensor previous, Tensor reads, Tensor h, Tensor c, std::optional<Tensor> lengths,
                   double decay, bool read_first, bool shared, bool strength, bool write_key,
                   double eps) {
  const int64_t steps = gates.size(1);
  Tensors t = {recurrent, interface, memory, previous, c, lengths};
  MemoryScan p = make_scan(t, steps, {read_first, shared, strength, write_key, decay, eps});
  const MemorySizes& s = p.sizes;
  const ScalarType dtype = ScalarType::Float;
  const int64_t all = s.heads * p.per_head, vectors = s.heads * s.width;
  check_memory(gates, {s.batch, steps, 4 * p.hidden}, dtype, "memory_scan: gates");
  check_memory(bias, {all}, dtype, "memory_scan: bias");
  check_memory(usage, {s.batch, s.rows}, dtype, "memory_scan: usage");
  check_memory(reads, {s.batch, vectors}, dtype, "memory_scan: reads");
  check_memory(h, {s.batch, p.hidden}, dtype, "memory_scan: h");
  for (std::optional<Tensor>* extra : {&key, &add}) {
    if (!extra->has_value()) continue;
    check_memory(**extra, {s.batch, steps, s.heads, s.width}, dtype, "memory_scan: key or add");
    (extra == &key ? p.key : p.add) = data_of(**extra);
  }
  p.gates = data_of(gates);
  p.bias = data_of(bias);
  p.usage = data_of(usage);
  p.reads = data_of(reads);
  p.h = data_of(h);
  Buffer<float> first, second;
  p.recurrent = pack(t.recurrent, true, first);
  p.interface = pack(t.interface, true, second);
  Tensor y = like(gates, {s.batch, steps, p.hidden + vectors});
  Tensor memory_out = like(memory, {s.batch, s.rows, s.width});
  Tensor usage_out = like(memory, {s.batch, s.rows});
  Tensor weight_out = like(memory, {s.batch, s.heads, s.rows});
  Tensor c_out = like(memory, {s.batch, p.hidden});
  Tensor gates_out = like(memory, {s.batch, steps, 4 * p.hidden});
  Tensor cells = like(memory, {s.batch, steps, p.hidden});
  Tensor heads = like(memory, {s.batch, steps, all});
  Tensor weights = like(memory, {s.batch, steps, s.heads, s.rows});
  Tensor rows = new_tensor(memory, {s.batch, steps, s.heads}, ScalarType::Long);
  Tensor marks = like(memory, {s.batch, marks_of(p), s.rows, s.width});
  p.y = y.mutable_data_ptr<float>();
  p.memory_out = memory_out.mutable_data_ptr<float>();
  p.usage_out = usage_out.mutable_data_ptr<float>();
  p.weight_out = weight_out.mutable_data_ptr<float>();
  p.c_out = c_out.mutable_data_ptr<float>();
  p.gates_out = gates_out.mutable_data_ptr<float>();
  p.cells = cells.mutable_data_ptr<float>();
  p.heads = heads.mutable_data_ptr<float>();
  p.weights = weights.mutable_data_ptr<float>();
  p.rows = rows.mutable_data_ptr<int64_t>();
  p.checkpoints = marks.mutable_data_ptr<float>();
  const auto kernel = STMETA_BY_ISA(forward);
  over_tiles(p, false,
             [&](int64_t b, int64_t count, float* scratch) { kernel(p, b, count, scratch); });
  return {y,     memory_out, usage_out, weight_out, c_out, gates_out,
          cells, heads,      weights,   rows,       marks};
}

using Eight = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Gradients of gates, raw heads, what is written, memory, previous, reads, h, c. Those of the
// weights are products of these with what the forward gave; torch's own product makes them.
Eight memory_scan_backward(Tensor grad_y, Tensor grad_memory, Tensor grad_weight, Tensor grad_c,
                           std::optional<Tensor> add, Tensor recurrent, Tensor interface,
                           Tensor memory, Tensor previous, Tensor c, std::optional<Tensor> lengths,
                           Tensor gates, Tensor cells, Tensor heads, Tensor weights, Tensor rows,
                           Tensor marks, double decay, bool read_first, bool shared, bool strength,
                           bool write_key, double eps) {
  const int64_t steps = gates.size(1);
  Tensors t = {recurrent, interface, memory, previous, c, lengths};
  MemoryScan p = make_scan(t, steps, {read_first, shared, strength, write_key, decay, eps});
  const MemorySizes& s = p.sizes;
  const ScalarType dtype = ScalarType::Float;
  const int64_t all = s.heads * p.per_head, vectors = s.heads * s.width;
  check_memory(grad_y, {s.batch, steps, p.hidden + vectors}, dtype, "memory_scan: grad_y");
  check_memory(grad_memory, {s.batch, s.rows, s.width}, dtype, "memory_scan: grad_memory");
  check_memory(grad_weight, {s.batch, s.heads, s.rows}, dtype, "memory_scan: grad_weight");
  check_memory(grad_c, {s.batch, p.hidden}, dtype, "memory_scan: grad_c");
  check_memory(gates, {s.batch, steps, 4 * p.hidden}, dtype, "memory_scan: gates");
  check_memory(cells, {s.batch, steps, p.hidden}, dtype, "memory_scan: cells");
  check_memory(heads, {s.batch, steps, all}, dtype, "memory_scan: heads");
  check_memory(weights, {s.batch, steps, s.heads, s.rows}, dtype, "memory_scan: weights");
  check_memory(rows, {s.batch, steps, s.heads}, ScalarType::Long, "memory_scan: rows");
  check_memory(marks, {s.batch, marks_of(p), s.rows, s.width}, dtype, "memory_scan: marks");
  if (add.has_value()) {
    check_memory(*add, {s.batch, steps, s.heads, s.width}, dtype, "memory_scan: add");
    p.add = data_of(*add);
  }
  rows = torch::stable::contiguous(rows);
  check_ids("memory_scan: rows", rows.const_data_ptr<int64_t>(), rows.numel(), s.rows);
  p.grad_y = data_of(grad_y);
  p.grad_memory = data_of(grad_memory);
  p.grad_weight = data_of(grad_weight);
  p.grad_c = data_of(grad_c);
  p.gates_out = const_cast<float*>(data_of(gates));
  p.cells = const_cast<float*>(data_of(cells));
  p.heads = const_cast<float*>(data_of(heads));
  p.weights = const_cast<float*>(data_of(weights));
  p.rows = const_cast<int64_t*>(rows.const_data_ptr<int64_t>());
  p.checkpoints = const_cast<float*>(data_of(marks));
  Buffer<float> first, second;
  p.recurrent = pack(t.recurrent, false, first);
  p.interface = pack(t.interface, false, second);
  Tensor d_gates = like(gates, {s.batch, steps, 4 * p.hidden});
  Tensor d_heads = like(gates, {s.batch, steps, all});
  Tensor d_written = like(gates, {s.batch, steps, s.heads, s.width});
  Tensor d_memory = like(gates, {s.batch, s.rows, s.width});
  Tensor d_previous = like(gates, {s.batch, s.heads, s.rows});
  Tensor d_reads = like(gates, {s.batch, vectors});
  Tensor d_h = like(gates, {s.batch, p.hidden});
  Tensor d_c = like(gates, {s.batch, p.hidden});
  p.d_gates = d_gates.mutable_data_ptr<float>();
  p.d_heads = d_heads.mutable_data_ptr<float>();
  p.d_written = d_written.mutable_data_ptr<float>();
  p.d_memory = d_memory.mutable_data_ptr<float>();
  p.d_previous = d_previous.mutable_data_ptr<float>();
  p.d_reads = d_reads.mutable_data_ptr<float>();
  p.d_h = d_h.mutable_data_ptr<float>();
  p.d_c = d_c.mutable_data_ptr<float>();
  const auto kernel = STMETA_BY_ISA(backward);
  over_tiles(p, true,
             [&](int64_t b, int64_t count, float* scratch) { kernel(p, b, count, scratch); });
  return {d_gates, d_heads, d_written, d_memory, d_previous, d_reads, d_h, d_c};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("memory_scan", TORCH_BOX(&memory_scan));
  m.impl("memory_scan_backward", TORCH_BOX(&memory_scan_backward));
}

}  // namespace stmeta
