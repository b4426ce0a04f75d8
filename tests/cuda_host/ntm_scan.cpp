// Forward and backward of csrc/cuda/scan/ntm_scan.cuh on the CPU; driven by
// tests/ops/scan/test_ntm_scan_cuda.py.
#include "cuda/scan/ntm_scan.cuh"

#include "cuda/scan/ntm_scan_backward.cuh"
#include "memory_case.h"

using namespace stmeta::ntm_scan;
using Floats = std::vector<float>;

// What both take first.
struct Common {
  Floats recurrent, interface;
  std::vector<int64_t> lengths;
  BlockLimits limits;
  Scan scan;

  explicit Common(Case& io) {
    const auto sizes = io.array<int64_t>();    // B, T, H, A, R, N, M, K, S
    const auto options = io.array<int64_t>();  // read_first, tanh_key, tanh_add, BlockLimits
    recurrent = io.array<float>(), interface = io.array<float>();
    lengths = io.array<int64_t>();
    scan = make_scan(sizes.at(0), sizes.at(5), sizes.at(6), sizes.at(3), sizes.at(4), sizes.at(1),
                     sizes.at(2), sizes.at(7), sizes.at(8));
    scan.recurrent = or_null(recurrent), scan.interface = or_null(interface);
    scan.lengths = or_null(lengths);
    scan.read_first = options.at(0) != 0, scan.tanh_key = options.at(1) != 0;
    scan.tanh_add = options.at(2) != 0;
    limits = {options.at(3) != 0, static_cast<int>(options.at(4))};
    scan.eps = static_cast<float>(io.real());
  }
};

template <size_t kCount>
std::vector<Floats> take(Case& io, const float** (&places)[kCount]) {
  std::vector<Floats> in;
  for (const float** place : places) {
    in.push_back(io.array<float>());
    *place = in.back().data();
  }
  return in;
}

template <size_t kCount>
std::vector<Floats> make(const int64_t (&sizes)[kCount], float** (&places)[kCount]) {
  std::vector<Floats> out;
  for (size_t i = 0; i < kCount; ++i) {
    out.push_back(scratch_of(sizes[i]));
    *places[i] = out.back().data();
  }
  return out;
}

void run_forward(Case& io) {
  Common c(io);
  Forward p{};
  static_cast<Scan&>(p) = c.scan;
  const float** given[] = {&p.gates, &p.bias, &p.memory, &p.previous, &p.first_reads, &p.h, &p.c};
  const auto in = take(io, given);
  const int64_t batch = p.s.batch, all = batch * p.steps;
  const int64_t sizes[] = {all * (p.hidden + p.vectors()),
                           batch * p.memory_size(),
                           batch * p.weight_size(),
                           batch * p.hidden,
                           all * 4 * p.hidden,
                           all * p.hidden,
                           all * p.numbers(),
                           all * p.weight_size(),
                           batch * p.num_checkpoints() * p.memory_size()};
  float** places[] = {&p.y,     &p.memory_out, &p.weight_out, &p.c_out,      &p.activated,
                      &p.cells, &p.heads,      &p.weights,    &p.checkpoints};
  const auto out = make(sizes, places);
  const Plan way = plan(p, c.limits);
  auto scratch = scratch_of(way.floats());
  forward(p, way, scratch.data(), nullptr);
  for (const auto& result : out) io.result(result);
}

void run_backward(Case& io) {
  Common c(io);
  Backward p{};
  static_cast<Scan&>(p) = c.scan;
  const float** given[] = {&p.grad_y,   &p.grad_memory, &p.grad_weight, &p.grad_c,
                           &p.previous, &p.c,           &p.activated,   &p.cells,
                           &p.heads,    &p.weights,     &p.checkpoints};
  const auto in = take(io, given);
  const int64_t batch = p.s.batch, all = batch * p.steps;
  const int64_t sizes[] = {all * 4 * p.hidden,      all * p.numbers(),   batch * p.memory_size(),
                           batch * p.weight_size(), batch * p.vectors(), batch * p.hidden,
                           batch * p.hidden};
  float** places[] = {&p.d_gates, &p.d_heads, &p.d_memory, &p.d_previous,
                      &p.d_reads, &p.d_h,     &p.d_c};
  const auto out = make(sizes, places);
  const Plan way = plan(p, c.limits);
  auto scratch = scratch_of(way.floats());
  backward(p, way, scratch.data(), nullptr);
  for (const auto& result : out) io.result(result);
}

int main(int argc, char** argv) {
  Case io(argc, argv);
  if (io.integer() == 0) {
    run_forward(io);
  } else {
    run_backward(io);
  }
}
