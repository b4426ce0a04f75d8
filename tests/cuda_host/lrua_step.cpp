// Forward and backward of csrc/cuda/memory/lrua_step.cuh on the CPU.
#include "cuda/memory/lrua_step_backward.cuh"
#include "memory_case.h"

using namespace stmeta::lrua_step;

template <typename T>
void run(Case& io) {
  const MemoryCase<T> c(io);
  const Matrix<T> memory(io);
  const auto usage = io.array<T>(), previous = io.array<T>(), key = io.array<T>();
  const auto strength = io.array<T>(), gate = io.array<T>(), add = io.array<T>();
  const auto decay = static_cast<float>(io.real());
  const auto options = io.array<int64_t>();  // read_first, shared
  const auto eps = static_cast<float>(io.real());
  const Matrix<T> grad_memory(io);
  const auto grad_weight = io.array<T>(), grad_read = io.array<T>();

  const auto inputs = [&](const auto& s) {
    return Inputs<T>{memory.strided(s),  previous.data(),    key.data(),
                     strength.data(),    gate.data(),        add.data(),
                     options.at(0) != 0, options.at(1) != 0, eps};
  };
  auto out = c.matrix(), weight = c.weights(), read = c.vectors();
  std::vector<T> usage_out(usage.size());
  std::vector<int64_t> rows(c.batch * c.heads);
  const auto s = shape_of<T, Shared>(c.batch, c.rows, c.width, c.heads, c.tile);
  const Forward<T> p{inputs(s),     usage.data(), out.data(),  usage_out.data(),
                     weight.data(), read.data(),  rows.data(), decay};
  auto scratch = scratch_of(scratch_size(s, p));
  forward(s, p, scratch.data(), nullptr);
  for (const auto& result : {out, usage_out, weight, read}) io.result(result);
  io.result(rows);

  auto d_memory = c.matrix(), d_previous = c.weights(), d_key = c.vectors(), d_add = c.vectors();
  auto d_strength = c.numbers(), d_gate = c.numbers();
  const auto b = shape_of<T, BackwardShared>(c.batch, c.rows, c.width, c.heads, c.tile);
  const Backward<T> q{inputs(b),         grad_memory.strided(b), grad_weight.data(),
                      grad_read.data(),  weight.data(),          rows.data(),
                      d_memory.data(),   d_previous.data(),      d_key.data(),
                      d_strength.data(), d_gate.data(),          d_add.data()};
  scratch = scratch_of(scratch_size(b, q));
  backward(b, q, scratch.data(), nullptr);
  for (const auto& result : {d_memory, d_previous, d_key, d_strength, d_gate, d_add}) {
    io.result(result);
  }
}

STMETA_MEMORY_MAIN(run)
