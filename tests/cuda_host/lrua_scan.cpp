// Forward and backward of csrc/cuda/scan/lrua_scan.cuh on the CPU; driven by
// tests/ops/scan/test_lrua_scan_cuda.py.
#include "cuda/scan/lrua_scan.cuh"

#include <limits>

#include "case_io.h"
#include "cuda/scan/lrua_scan_backward.cuh"

using namespace stmeta::lrua_scan;
using Floats = std::vector<float>;

// What both take first.
struct Common {
  Floats recurrent, interface;
  std::vector<int64_t> lengths;
  BlockLimits limits;
  Scan scan;

  explicit Common(Case& io) {
    const auto sizes = io.array<int64_t>();  // B, T, H, R, N, M, K
    const auto options = io.array<int64_t>();
    recurrent = io.array<float>(), interface = io.array<float>();
    lengths = io.array<int64_t>();
    limits = {options.at(4) != 0, static_cast<int>(options.at(5))};
    scan = make_scan(sizes.at(0), sizes.at(4), sizes.at(5), sizes.at(3), sizes.at(1), sizes.at(2),
                     sizes.at(6), options.at(3) != 0);
    scan.recurrent = or_null(recurrent), scan.interface = or_null(interface);
    scan.lengths = or_null(lengths);
    scan.read_first = options.at(0) != 0, scan.shared = options.at(1) != 0;
    scan.strength = options.at(2) != 0;
    scan.decay = static_cast<float>(io.real()), scan.eps = static_cast<float>(io.real());
  }
};

// Not zero, so that a read before the first write shows.
Floats unset(int64_t size) { return Floats(size, std::numeric_limits<float>::quiet_NaN()); }

void run_forward(Case& io) {
  Common c(io);
  Forward p{};
  static_cast<Scan&>(p) = c.scan;
  std::vector<Floats> in;
  for (int i = 0; i < 10; ++i) in.push_back(io.array<float>());
  p.gates = in[0].data(), p.key = or_null(in[1]), p.add = or_null(in[2]), p.bias = in[3].data();
  p.memory = in[4].data(), p.usage = in[5].data(), p.previous = in[6].data();
  p.reads = in[7].data(), p.h = in[8].data(), p.c = in[9].data();
  const int64_t batch = p.s.batch, all = batch * p.steps;
  const int64_t sizes[] = {all * (p.hidden + p.vectors()),
                           batch * p.memory_size(),
                           batch * p.s.rows,
                           batch * p.weight_size(),
                           batch * p.hidden,
                           all * 4 * p.hidden,
                           all * p.hidden,
                           all * p.numbers(),
                           all * p.weight_size(),
                           batch * p.num_checkpoints() * p.memory_size()};
  std::vector<Floats> out;
  for (const int64_t size : sizes) out.push_back(unset(size));
  float** places[] = {&p.y,         &p.memory_out, &p.usage_out, &p.weight_out, &p.c_out,
                      &p.activated, &p.cells,      &p.heads,     &p.weights,    &p.checkpoints};
  for (int i = 0; i < 10; ++i) *places[i] = out[i].data();
  std::vector<int64_t> rows(all * p.s.heads, -1);
  p.rows = rows.data();
  const Plan way = plan(p, c.limits);
  auto scratch = unset(way.floats());
  forward(p, way, scratch.data(), nullptr);
  for (int i = 0; i < 9; ++i) io.result(out[i]);
  io.result(rows);
  io.result(out[9]);
}

void run_backward(Case& io) {
  Common c(io);
  Backward p{};
  static_cast<Scan&>(p) = c.scan;
  std::vector<Floats> in;
  for (int i = 0; i < 12; ++i) in.push_back(io.array<float>());
  const auto rows = io.array<int64_t>();
  p.grad_y = in[0].data(), p.grad_memory = in[1].data(), p.grad_weight = in[2].data();
  p.grad_c = in[3].data(), p.add = or_null(in[4]), p.previous = in[5].data(), p.c = in[6].data();
  p.activated = in[7].data(), p.cells = in[8].data(), p.heads = in[9].data();
  p.weights = in[10].data(), p.checkpoints = in[11].data(), p.rows = rows.data();
  const int64_t batch = p.s.batch, all = batch * p.steps;
  const int64_t sizes[] = {all * 4 * p.hidden,      all * p.numbers(),       all * p.vectors(),
                           batch * p.memory_size(), batch * p.weight_size(), batch * p.vectors(),
                           batch * p.hidden,        batch * p.hidden};
  std::vector<Floats> out;
  for (const int64_t size : sizes) out.push_back(unset(size));
  float** places[] = {&p.d_gates,    &p.d_heads, &p.d_written, &p.d_memory,
                      &p.d_previous, &p.d_reads, &p.d_h,       &p.d_c};
  for (int i = 0; i < 8; ++i) *places[i] = out[i].data();
  const Plan way = plan(p, c.limits);
  auto scratch = unset(way.floats());
  backward(p, way, scratch.data(), nullptr);
  for (const auto& result : out) io.result(result);
}

// The blocks of a cluster, and whether the rows are in shared memory, of both kernels.
void run_plan(Case& io) {
  Common c(io);
  Forward forward{};
  Backward backward{};
  static_cast<Scan&>(forward) = static_cast<Scan&>(backward) = c.scan;
  const Plan first = plan(forward, c.limits), second = plan(backward, c.limits);
  io.result(std::vector<int64_t>{forward.cluster, first.whole, backward.cluster, second.whole});
}

int main(int argc, char** argv) {
  Case io(argc, argv);
  const int64_t mode = io.integer();
  if (mode == 2) run_plan(io);
  if (mode == 0) run_forward(io);
  if (mode == 1) run_backward(io);
}
