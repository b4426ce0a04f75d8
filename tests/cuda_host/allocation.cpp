// Forward and backward of csrc/cuda/memory/allocation.cuh on the CPU. A tile means that the items
// do not fit shared memory.
#include "cuda/memory/allocation.cuh"

#include "memory_case.h"

using namespace stmeta::allocation;

template <typename T>
void run(Case& io) {
  const MemoryCase<T> c(io);
  const auto usage = io.array<T>(), grad = io.array<T>();

  const Problem p = make_problem(c.batch, c.rows);
  std::vector<T> out(usage.size());
  std::vector<int> order(usage.size());
  auto scratch = scratch_of(scratch_size(p, p.padded, c.tile == 0));
  forward(p, usage.data(), out.data(), order.data(), or_null(scratch), nullptr);
  io.result(out);

  std::vector<T> grad_usage(usage.size());
  scratch = scratch_of(scratch_size(p, p.rows, c.tile == 0));
  backward(p, usage.data(), grad.data(), order.data(), grad_usage.data(), or_null(scratch),
           nullptr);
  io.result(grad_usage);
}

STMETA_MEMORY_MAIN(run)
