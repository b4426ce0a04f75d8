// Forward and backward of csrc/cuda/video/locality_attention.cuh on the CPU. Driven by
// tests/ops/video/test_locality_attention_cuda.py, which lists the arguments in the same order.
#include "cuda/video/locality_attention.cuh"

#include "case_io.h"

using namespace stmeta::locality_attention;

template <typename T>
void run(Case& io) {
  const auto sizes = io.array<int64_t>(), strides = io.array<int64_t>();  // [B, N, 3, H, E]
  const auto qkv = io.array<T>();
  const auto temperature = io.array<float>();
  const auto grad = io.array<T>();
  const bool exclude_self = io.integer() != 0;

  const Problem p = make_problem(sizes[1], sizes[3], sizes[4], strides.data(), exclude_self);
  const int64_t batch = sizes[0], rows = batch * p.tokens * p.heads;
  std::vector<T> out(rows * p.width), grad_qkv(3 * rows * p.width);
  std::vector<float> stats(2 * rows), known(kKnown * rows);
  std::vector<float> partial(batch * p.blocks * p.heads), grad_temperature(p.heads);
  forward(p, batch, qkv.data(), temperature.data(), out.data(), stats.data(), nullptr);
  backward(p, batch, qkv.data(), temperature.data(), out.data(), grad.data(), stats.data(),
           known.data(), partial.data(), grad_qkv.data(), grad_temperature.data(), nullptr);
  io.result(out);
  io.result(grad_qkv);
  io.result(grad_temperature);
}

int main(int argc, char** argv) {
  Case io(argc, argv);
  const auto types = io.array<char>();
  const std::string name(types.begin(), types.end());
  if (name == "float32") return run<float>(io), 0;
#ifndef __SANITIZE_THREAD__  // every dtype takes seconds to compile; races do not depend on it
  if (name == "bfloat16") return run<__nv_bfloat16>(io), 0;
#endif
  throw std::runtime_error("no such type: " + name);
}
