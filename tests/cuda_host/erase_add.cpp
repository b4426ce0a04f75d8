// Forward and backward of csrc/cuda/memory/erase_add.cuh on the CPU.
#include "cuda/memory/erase_add.cuh"

#include "memory_case.h"

using namespace stmeta::erase_add;

template <typename T>
void run(Case& io) {
  const MemoryCase<T> c(io);
  const Matrix<T> memory(io);
  const auto weight = io.array<T>(), erase = io.array<T>(), add = io.array<T>();
  const Matrix<T> grad(io);

  auto out = c.matrix();
  const auto s = forward_shape<T>(c.batch, c.rows, c.width, c.heads, c.tile);
  forward(s, Forward<T>{memory.strided(s), weight.data(), erase.data(), add.data(), out.data()},
          nullptr);
  io.result(out);

  auto grad_memory = c.matrix(), grad_weight = c.weights();
  auto grad_erase = c.vectors(), grad_add = c.vectors();
  const auto b = backward_shape<T>(c.batch, c.rows, c.width, c.heads, c.tile);
  const Backward<T> q{memory.strided(b),  grad.strided(b),   weight.data(),
                      erase.data(),       add.data(),        grad_memory.data(),
                      grad_weight.data(), grad_erase.data(), grad_add.data()};
  auto scratch = scratch_of(scratch_size(b, q));
  backward(b, q, scratch.data(), nullptr);
  for (const auto& result : {grad_memory, grad_weight, grad_erase, grad_add}) io.result(result);
}

STMETA_MEMORY_MAIN(run)
