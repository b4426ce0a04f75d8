// csrc/cuda/random_masking.cuh on the CPU. Driven by tests/ops/test_tokens_cuda.py, which lists the
// arguments in the same order.
#include "../../csrc/cuda/random_masking.cuh"

#include "case_io.h"

using namespace stmeta::random_masking;

int main(int argc, char** argv) {
  Case io(argc, argv);
  const auto noise = io.array<float>();
  const int64_t batch = io.integer(), keep = io.integer();
  const auto units = io.array<int64_t>(), grid = io.array<int64_t>();

  const Problem p = make_problem(batch, keep, units.data(), grid.data());
  const int64_t tokens = batch * p.tokens, kept = batch * p.kept;
  std::vector<int64_t> ids_keep(kept), ids_restore(tokens), ids_masked(tokens - kept);
  const auto mask = std::make_unique<bool[]>(tokens);  // std::vector packs bits
  forward(p, noise.data(), {ids_keep.data(), ids_restore.data(), ids_masked.data(), mask.get()},
          nullptr);
  io.result(ids_keep);
  io.result(ids_restore);
  io.result(ids_masked);
  io.result(std::vector<uint8_t>(mask.get(), mask.get() + tokens));
}
