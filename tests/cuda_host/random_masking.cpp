// csrc/cuda/video/random_masking.cuh on the CPU.
#include "cuda/video/random_masking.cuh"

#include "token_case.h"

using namespace stmeta::random_masking;

int main(int argc, char** argv) {
  Case io(argc, argv);
  const auto noise = io.array<float>();
  const auto sizes = io.array<int64_t>();  // B, keep
  const auto units = io.array<int64_t>(), grid = io.array<int64_t>();
  const Problem p = make_problem(sizes[0], sizes[1], units.data(), grid.data());
  const int64_t batch = p.batch, kept = p.kept();
  std::vector<int> places(batch * p.units);
  std::vector<int64_t> ids_keep(batch * kept), ids_restore(batch * p.tokens);
  std::vector<int64_t> ids_masked(batch * (p.tokens - kept));
  std::vector<uint8_t> mask(batch * p.tokens);
  forward(p, noise.data(), places.data(), ids_keep.data(), ids_restore.data(), ids_masked.data(),
          mask.data(), nullptr);
  for (const auto& result : {ids_keep, ids_restore, ids_masked}) io.result(result);
  io.result(mask);
}
