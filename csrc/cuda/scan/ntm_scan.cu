// CUDA implementation of stmeta::ntm_scan. Reference: stmeta/ops/scan/ntm_scan.py, which has
// checked the arguments. allocate -> launch; the kernels are in ntm_scan.cuh and
// ntm_scan_backward.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/memory/memory_torch.cuh"
#include "cuda/scan/ntm_scan.cuh"
#include "cuda/scan/ntm_scan_backward.cuh"

namespace {

using namespace stmeta;
using torch::stable::contiguous;
using Optional = std::optional<Tensor>;
using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Nine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Options {
  int64_t taps;
  bool read_first, tanh_key, tanh_add;
  double eps;
};

// What both take: dense, and outlives the kernels' arguments.
struct Common {
  Tensor recurrent, interface;
  Optional lengths;
};

// memory: any tensor [..., N, M]; read: R * M.
ntm_scan::Scan scan_of(const Common& in, const Tensor& memory, const Tensor& weights,
                       const Tensor& c, int64_t read, int64_t steps, const Options& o) {
  STD_TORCH_CHECK(memory.scalar_type() == ScalarType::Float,
                  "ntm_scan: memory must be float32 on the cuda backend, got ",
                  torch::headeronly::toString(memory.scalar_type()), "; use .float() or 'eager'");
  const int64_t last = memory.dim() - 1, rows = memory.size(last - 1), width = memory.size(last);
  STD_TORCH_CHECK(width > 0 && read % width == 0,
                  "ntm_scan: reads must be [B, R * M] with M = ", width, ", got ", read,
                  " numbers");
  ntm_scan::Scan p =
      ntm_scan::make_scan(weights.size(0), rows, width, weights.size(1), read / width, steps,
                          c.size(1), in.recurrent.size(1), o.taps);
  STD_TORCH_CHECK(in.recurrent.size(0) == 4 * c.size(1) && in.interface.size(0) == p.numbers() &&
                      in.interface.size(1) == c.size(1),
                  "ntm_scan: recurrent or interface has a wrong shape");
  p.recurrent = data<const float>(in.recurrent);
  p.interface = data<const float>(in.interface);
  p.lengths = data<const int64_t>(in.lengths);
  p.read_first = o.read_first, p.tanh_key = o.tanh_key, p.tanh_add = o.tanh_add;
  p.eps = static_cast<float>(o.eps);
  return p;
}

Nine ntm_scan_cuda(const Tensor& gates, const Tensor& recurrent, const Tensor& interface,
                   const Tensor& bias, const Tensor& memory, const Tensor& weights,
                   const Tensor& reads, const Tensor& h, const Tensor& c, const Optional& lengths,
                   int64_t taps, bool read_first, bool tanh_key, bool tanh_add, double eps) {
  const DeviceScope scope(memory);
  const Common common{contiguous(recurrent), contiguous(interface),
                      contiguous_as(lengths, ScalarType::Long)};
  const Tensor in[] = {contiguous(gates), contiguous(bias), contiguous(memory), contiguous(weights),
                       contiguous(reads), contiguous(h),    contiguous(c)};
  const int64_t batch = weights.size(0), heads = weights.size(1), steps = gates.size(1);
  const int64_t rows = memory.size(1), width = memory.size(2), hidden = c.size(1);
  ntm_scan::Forward p{};
  static_cast<ntm_scan::Scan&>(p) = scan_of(common, memory, weights, c, reads.size(1), steps,
                                            {taps, read_first, tanh_key, tanh_add, eps});
  const auto make = [&](const std::vector<int64_t>& sizes) {
    return empty(memory, sizes, ScalarType::Float);
  };
  const Tensor y = make({batch, steps, hidden + p.vectors()});
  const Tensor last[] = {make({batch, rows, width}), make({batch, heads, rows}),
                         make({batch, hidden})};
  const Tensor kept[] = {make({batch, steps, 4 * hidden}), make({batch, steps, hidden}),
                         make({batch, steps, p.numbers()}), make({batch, steps, heads, rows}),
                         make({batch, p.num_checkpoints(), rows, width})};
  p.gates = data<const float>(in[0]), p.bias = data<const float>(in[1]);
  p.memory = data<const float>(in[2]), p.previous = data<const float>(in[3]);
  p.first_reads = data<const float>(in[4]), p.h = data<const float>(in[5]);
  p.c = data<const float>(in[6]), p.y = data<float>(y);
  p.memory_out = data<float>(last[0]), p.weight_out = data<float>(last[1]);
  p.c_out = data<float>(last[2]);
  p.activated = data<float>(kept[0]), p.cells = data<float>(kept[1]),
  p.heads = data<float>(kept[2]);
  p.weights = data<float>(kept[3]), p.checkpoints = data<float>(kept[4]);
  const scan::Plan way = plan(p);
  const Tensor scratch = memory::scratch_like(memory, way.floats());
  forward(p, way, data<float>(scratch), scope.stream);
  return {y, last[0], last[1], last[2], kept[0], kept[1], kept[2], kept[3], kept[4]};
}

Seven ntm_scan_backward_cuda(const Tensor& grad_y, const Tensor& grad_memory,
                             const Tensor& grad_weights, const Tensor& grad_c,
                             const Tensor& recurrent, const Tensor& interface,
                             const Tensor& weights, const Tensor& c, const Optional& lengths,
                             const Tensor& activated, const Tensor& cells, const Tensor& heads,
                             const Tensor& step_weights, const Tensor& checkpoints, int64_t taps,
                             bool read_first, bool tanh_key, bool tanh_add, double eps) {
  const DeviceScope scope(checkpoints);
  const Common common{contiguous(recurrent), contiguous(interface),
                      contiguous_as(lengths, ScalarType::Long)};
  const Tensor in[] = {contiguous(grad_y),       contiguous(grad_memory), contiguous(grad_weights),
                       contiguous(grad_c),       contiguous(weights),     contiguous(c),
                       contiguous(activated),    contiguous(cells),       contiguous(heads),
                       contiguous(step_weights), contiguous(checkpoints)};
  const int64_t batch = weights.size(0), count = weights.size(1), steps = activated.size(1);
  const int64_t rows = checkpoints.size(2), width = checkpoints.size(3), hidden = c.size(1);
  ntm_scan::Backward p{};
  static_cast<ntm_scan::Scan&>(p) =
      scan_of(common, checkpoints, weights, c, grad_y.size(2) - hidden, steps,
              {taps, read_first, tanh_key, tanh_add, eps});
  const auto make = [&](const std::vector<int64_t>& sizes) {
    return empty(checkpoints, sizes, ScalarType::Float);
  };
  const Tensor out[] = {make({batch, steps, 4 * hidden}),
                        make({batch, steps, p.numbers()}),
                        make({batch, rows, width}),
                        make({batch, count, rows}),
                        make({batch, p.vectors()}),
                        make({batch, hidden}),
                        make({batch, hidden})};
  p.grad_y = data<const float>(in[0]), p.grad_memory = data<const float>(in[1]);
  p.grad_weight = data<const float>(in[2]), p.grad_c = data<const float>(in[3]);
  p.previous = data<const float>(in[4]), p.c = data<const float>(in[5]);
  p.activated = data<const float>(in[6]), p.cells = data<const float>(in[7]);
  p.heads = data<const float>(in[8]), p.weights = data<const float>(in[9]);
  p.checkpoints = data<const float>(in[10]);
  p.d_gates = data<float>(out[0]), p.d_heads = data<float>(out[1]);
  p.d_memory = data<float>(out[2]), p.d_previous = data<float>(out[3]);
  p.d_reads = data<float>(out[4]), p.d_h = data<float>(out[5]), p.d_c = data<float>(out[6]);
  const scan::Plan way = plan(p);
  const Tensor scratch = memory::scratch_like(checkpoints, way.floats());
  backward(p, way, data<float>(scratch), scope.stream);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("ntm_scan", TORCH_BOX(&ntm_scan_cuda));
  m.impl("ntm_scan_backward", TORCH_BOX(&ntm_scan_backward_cuda));
}
