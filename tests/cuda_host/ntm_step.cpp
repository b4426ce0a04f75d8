// Forward and backward of csrc/cuda/memory/ntm_step.cuh on the CPU.
#include "cuda/memory/ntm_step_backward.cuh"
#include "memory_case.h"

using namespace stmeta::ntm_step;
using stmeta::location_addressing::LocationGrads;

template <typename T>
void run(Case& io) {
  const MemoryCase<T> c(io);
  const Matrix<T> memory(io);
  const auto previous = io.array<T>(), key = io.array<T>(), strength = io.array<T>();
  const auto gate = io.array<T>(), shift = io.array<T>(), sharpen = io.array<T>();
  const auto erase = io.array<T>(), add = io.array<T>();
  const auto options = io.array<int64_t>();  // S, R, W, read_first
  const auto eps = static_cast<float>(io.real());
  const Matrix<T> grad_memory(io);
  const auto grad_weight = io.array<T>(), grad_read = io.array<T>();

  const Location<T> location{previous.data(), gate.data(), shift.data(), sharpen.data(),
                             static_cast<int>(options.at(0))};
  const Heads heads{static_cast<int>(options.at(1)), static_cast<int>(options.at(2)),
                    options.at(3) != 0};
  auto out = c.matrix(), weight = c.weights(), content = c.weights();
  std::vector<T> read(grad_read.size());
  const auto s = shape_of<T, Shared>(c.batch, c.rows, c.width, c.heads, c.tile);
  const Forward<T> p{memory.strided(s), key.data(),     strength.data(), location,
                     erase.data(),      add.data(),     out.data(),      weight.data(),
                     read.data(),       content.data(), heads,           eps};
  auto scratch = scratch_of(scratch_size(s, p));
  forward(s, p, scratch.data(), nullptr);
  for (const auto& result : {out, weight, read}) io.result(result);

  auto d_memory = c.matrix(), d_previous = c.weights(), d_key = c.vectors();
  auto d_strength = c.numbers(), d_gate = c.numbers(), d_sharpen = c.numbers();
  std::vector<T> d_shift(shift.size()), d_erase(erase.size()), d_add(add.size());
  const auto b = shape_of<T, BackwardShared>(c.batch, c.rows, c.width, c.heads, c.tile);
  const LocationGrads<T> d_location{d_previous.data(), d_gate.data(), d_shift.data(),
                                    d_sharpen.data()};
  const Backward<T> q{memory.strided(b),
                      grad_memory.strided(b),
                      grad_weight.data(),
                      grad_read.data(),
                      key.data(),
                      strength.data(),
                      location,
                      erase.data(),
                      add.data(),
                      weight.data(),
                      content.data(),
                      d_memory.data(),
                      d_key.data(),
                      d_strength.data(),
                      d_location,
                      d_erase.data(),
                      d_add.data(),
                      heads,
                      eps};
  scratch = scratch_of(scratch_size(b, q));
  backward(b, q, scratch.data(), nullptr);
  for (const auto& result :
       {d_memory, d_previous, d_key, d_strength, d_gate, d_shift, d_sharpen, d_erase, d_add}) {
    io.result(result);
  }
}

STMETA_MEMORY_MAIN(run)
