// Forward and backward of csrc/cuda/memory/location_addressing.cuh on the CPU. A tile means that
// the arrays do not fit shared memory.
#include "cuda/memory/location_addressing.cuh"

#include "memory_case.h"

using namespace stmeta::location_addressing;

template <typename T>
void run(Case& io) {
  const MemoryCase<T> c(io);
  const auto content = io.array<T>(), previous = io.array<T>(), gate = io.array<T>();
  const auto shift = io.array<T>(), sharpen = io.array<T>(), grad = io.array<T>();
  const int taps = static_cast<int>(io.integer());

  const auto s = shape_of(c.batch, c.rows, c.heads);
  const Location<T> p{previous.data(), gate.data(), shift.data(), sharpen.data(), taps};
  auto weight = c.weights();
  auto scratch = scratch_of(scratch_size(s, 2, c.tile == 0));
  forward(s, p, content.data(), weight.data(), or_null(scratch), nullptr);
  io.result(weight);

  auto grad_content = c.weights(), grad_previous = c.weights();
  auto grad_gate = c.numbers(), grad_sharpen = c.numbers();
  std::vector<T> grad_shift(shift.size());
  const LocationGrads<T> out{grad_previous.data(), grad_gate.data(), grad_shift.data(),
                             grad_sharpen.data()};
  scratch = scratch_of(scratch_size(s, 3, c.tile == 0));
  backward(s, p, out, content.data(), grad.data(), grad_content.data(), or_null(scratch), nullptr);
  for (const auto& result : {grad_content, grad_previous, grad_gate, grad_shift, grad_sharpen}) {
    io.result(result);
  }
}

STMETA_MEMORY_MAIN(run)
