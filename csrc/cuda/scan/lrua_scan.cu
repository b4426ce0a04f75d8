// CUDA implementation of stmeta::lrua_scan. Reference: stmeta/ops/scan/lrua_scan.py, which has
// checked the arguments. allocate -> launch; the kernels are in lrua_scan.cuh and
// lrua_scan_backward.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/memory/memory_torch.cuh"
#include "cuda/scan/lrua_scan.cuh"
#include "cuda/scan/lrua_scan_backward.cuh"

namespace {

using namespace stmeta;
using torch::stable::contiguous;
using Optional = std::optional<Tensor>;
using Eleven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                          Tensor, Tensor>;
using Eight = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Optional dense(const Optional& x) {
  if (!x) return std::nullopt;
  return contiguous(*x);
}

void check_single(const Tensor& memory) {
  STD_TORCH_CHECK(memory.scalar_type() == ScalarType::Float,
                  "lrua_scan: memory must be float32, got ",
                  torch::headeronly::toString(memory.scalar_type()));
}

struct Options {
  double decay;
  bool read_first, shared, strength, write_key;
  double eps;
};

// recurrent, interface and lengths are contiguous and outlive the result.
lrua_scan::Scan scan_of(const Tensor& memory, const Tensor& previous, const Tensor& c,
                        int64_t steps, const Tensor& recurrent, const Tensor& interface,
                        const Optional& lengths, const Options& o) {
  lrua_scan::Scan p =
      lrua_scan::make_scan(memory.size(0), memory.size(1), memory.size(2), previous.size(1), steps,
                           c.size(1), recurrent.size(1), o.write_key);
  STD_TORCH_CHECK(recurrent.size(0) == 4 * c.size(1) && interface.size(0) == p.numbers() &&
                      interface.size(1) == c.size(1),
                  "lrua_scan: recurrent or interface has a wrong shape");
  p.recurrent = data<const float>(recurrent);
  p.interface = data<const float>(interface);
  p.lengths = data<const int64_t>(lengths);
  p.read_first = o.read_first, p.shared = o.shared, p.strength = o.strength;
  p.decay = static_cast<float>(o.decay), p.eps = static_cast<float>(o.eps);
  return p;
}

Eleven lrua_scan_cuda(const Tensor& gates, const Optional& key, const Optional& add,
                      const Tensor& recurrent, const Tensor& interface, const Tensor& bias,
                      const Tensor& memory, const Tensor& usage, const Tensor& previous,
                      const Tensor& reads, const Tensor& h, const Tensor& c,
                      const Optional& lengths, double decay, bool read_first, bool shared,
                      bool strength, bool write_key, double eps) {
  const DeviceScope scope(memory);
  check_single(memory);
  const Tensor inputs[] = {contiguous(gates), contiguous(bias),     contiguous(memory),
                           contiguous(usage), contiguous(previous), contiguous(reads),
                           contiguous(h),     contiguous(c)};
  const Tensor weights[] = {contiguous(recurrent), contiguous(interface)};
  const Optional keys = dense(key), adds = dense(add), ends = dense(lengths);
  const int64_t batch = memory.size(0), steps = gates.size(1), heads = previous.size(1);
  lrua_scan::Forward p{};
  static_cast<lrua_scan::Scan&>(p) =
      scan_of(memory, previous, c, steps, weights[0], weights[1], ends,
              {decay, read_first, shared, strength, write_key, eps});
  const auto make = [&](std::vector<int64_t> sizes) {
    return empty(memory, sizes, ScalarType::Float);
  };
  const int64_t rows = memory.size(1), hidden = p.hidden;
  const Tensor y = make({batch, steps, hidden + p.vectors()});
  const Tensor last[] = {make({batch, rows, memory.size(2)}), make({batch, rows}),
                         make({batch, heads, rows}), make({batch, hidden})};
  const Tensor kept[] = {make({batch, steps, 4 * hidden}), make({batch, steps, hidden}),
                         make({batch, steps, p.numbers()}), make({batch, steps, heads, rows}),
                         make({batch, p.num_checkpoints(), rows, memory.size(2)})};
  const Tensor least = empty(memory, {batch, steps, heads}, ScalarType::Long);
  p.gates = data<const float>(inputs[0]), p.bias = data<const float>(inputs[1]);
  p.key = data<const float>(keys), p.add = data<const float>(adds);
  p.memory = data<const float>(inputs[2]), p.usage = data<const float>(inputs[3]);
  p.previous = data<const float>(inputs[4]), p.reads = data<const float>(inputs[5]);
  p.h = data<const float>(inputs[6]), p.c = data<const float>(inputs[7]);
  p.y = data<float>(y), p.memory_out = data<float>(last[0]), p.usage_out = data<float>(last[1]);
  p.weight_out = data<float>(last[2]), p.c_out = data<float>(last[3]);
  p.activated = data<float>(kept[0]), p.cells = data<float>(kept[1]),
  p.heads = data<float>(kept[2]);
  p.weights = data<float>(kept[3]), p.checkpoints = data<float>(kept[4]);
  p.rows = data<int64_t>(least);
  const scan::Plan way = plan(p);
  const Tensor scratch = memory::scratch_like(memory, way.floats());
  forward(p, way, data<float>(scratch), scope.stream);
  return {y,       last[0], last[1], last[2], last[3], kept[0],
          kept[1], kept[2], kept[3], least,   kept[4]};
}

Eight lrua_scan_backward_cuda(const Tensor& grad_y, const Tensor& grad_memory,
                              const Tensor& grad_weight, const Tensor& grad_c, const Optional& add,
                              const Tensor& recurrent, const Tensor& interface,
                              const Tensor& memory, const Tensor& previous, const Tensor& c,
                              const Optional& lengths, const Tensor& activated, const Tensor& cells,
                              const Tensor& heads, const Tensor& weights, const Tensor& rows,
                              const Tensor& checkpoints, double decay, bool read_first, bool shared,
                              bool strength, bool write_key, double eps) {
  const DeviceScope scope(memory);
  check_single(memory);
  const Tensor grads[] = {contiguous(grad_y), contiguous(grad_memory), contiguous(grad_weight),
                          contiguous(grad_c)};
  const Tensor kept[] = {contiguous(activated), contiguous(cells),       contiguous(heads),
                         contiguous(weights),   contiguous(checkpoints), contiguous(rows)};
  const Tensor state[] = {contiguous(previous), contiguous(c)};
  const Tensor matrices[] = {contiguous(recurrent), contiguous(interface)};
  const Optional adds = dense(add), ends = dense(lengths);
  const int64_t batch = memory.size(0), steps = activated.size(1), count = previous.size(1);
  lrua_scan::Backward p{};
  static_cast<lrua_scan::Scan&>(p) =
      scan_of(memory, previous, c, steps, matrices[0], matrices[1], ends,
              {decay, read_first, shared, strength, write_key, eps});
  const auto make = [&](std::vector<int64_t> sizes) {
    return empty(memory, sizes, ScalarType::Float);
  };
  const int64_t hidden = p.hidden, width = memory.size(2);
  const Tensor out[] = {make({batch, steps, 4 * hidden}),
                        make({batch, steps, p.numbers()}),
                        make({batch, steps, count, width}),
                        make({batch, memory.size(1), width}),
                        make({batch, count, memory.size(1)}),
                        make({batch, p.vectors()}),
                        make({batch, hidden}),
                        make({batch, hidden})};
  p.grad_y = data<const float>(grads[0]), p.grad_memory = data<const float>(grads[1]);
  p.grad_weight = data<const float>(grads[2]), p.grad_c = data<const float>(grads[3]);
  p.add = data<const float>(adds), p.previous = data<const float>(state[0]);
  p.c = data<const float>(state[1]), p.activated = data<const float>(kept[0]);
  p.cells = data<const float>(kept[1]), p.heads = data<const float>(kept[2]);
  p.weights = data<const float>(kept[3]), p.checkpoints = data<const float>(kept[4]);
  p.rows = data<const int64_t>(kept[5]);
  p.d_gates = data<float>(out[0]), p.d_heads = data<float>(out[1]);
  p.d_written = data<float>(out[2]), p.d_memory = data<float>(out[3]);
  p.d_previous = data<float>(out[4]), p.d_reads = data<float>(out[5]);
  p.d_h = data<float>(out[6]), p.d_c = data<float>(out[7]);
  const scan::Plan way = plan(p);
  const Tensor scratch = memory::scratch_like(memory, way.floats());
  backward(p, way, data<float>(scratch), scope.stream);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("lrua_scan", TORCH_BOX(&lrua_scan_cuda));
  m.impl("lrua_scan_backward", TORCH_BOX(&lrua_scan_backward_cuda));
}
