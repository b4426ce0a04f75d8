// Forward and backward of csrc/cuda/memory/memory_read.cuh on the CPU.
#include "cuda/memory/memory_read.cuh"

#include "memory_case.h"

using namespace stmeta::memory_read;

template <typename T>
void run(Case& io) {
  const MemoryCase<T> c(io);
  const Matrix<T> memory(io);
  const auto weight = io.array<T>(), grad = io.array<T>();

  auto out = c.vectors();
  const auto s = forward_shape<T>(c.batch, c.rows, c.width, c.heads, c.tile);
  const Forward<T> p{memory.strided(s), weight.data(), out.data()};
  auto scratch = scratch_of(scratch_size(s, p));
  forward(s, p, scratch.data(), nullptr);
  io.result(out);

  auto grad_memory = c.matrix(), grad_weight = c.weights();
  const auto b = backward_shape<T>(c.batch, c.rows, c.width, c.heads, c.tile);
  const Backward<T> q{memory.strided(b), grad.data(), weight.data(), grad_memory.data(),
                      grad_weight.data()};
  backward(b, q, nullptr);
  io.result(grad_memory);
  io.result(grad_weight);
}

STMETA_MEMORY_MAIN(run)
