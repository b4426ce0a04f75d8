// Forward and backward of csrc/cuda/memory/content_addressing.cuh on the CPU.
#include "cuda/memory/content_addressing.cuh"

#include "memory_case.h"

using namespace stmeta::content_addressing;

template <typename T>
void run(Case& io) {
  const MemoryCase<T> c(io);
  const Matrix<T> memory(io);
  const auto key = io.array<T>(), strength = io.array<T>();
  const auto eps = static_cast<float>(io.real());
  const auto grad = io.array<T>();

  auto weight = c.weights();
  const auto s = shape_of<T, Shared>(c.batch, c.rows, c.width, c.heads, c.tile);
  const Forward<T> p{memory.strided(s), key.data(), strength.data(), weight.data(), eps};
  auto scratch = scratch_of(scratch_size(s));
  forward(s, p, scratch.data(), nullptr);
  io.result(weight);

  auto grad_memory = c.matrix(), grad_key = c.vectors(), grad_strength = c.numbers();
  const auto b = shape_of<T, BackwardShared>(c.batch, c.rows, c.width, c.heads, c.tile);
  const Backward<T> q{memory.strided(b), grad.data(),          key.data(),
                      strength.data(),   weight.data(),        grad_memory.data(),
                      grad_key.data(),   grad_strength.data(), eps};
  scratch = scratch_of(scratch_size(b, q));
  backward(b, q, scratch.data(), nullptr);
  io.result(grad_memory);
  io.result(grad_key);
  io.result(grad_strength);
}

STMETA_MEMORY_MAIN(run)
