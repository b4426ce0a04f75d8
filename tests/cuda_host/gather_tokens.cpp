// Forward and backward of csrc/cuda/video/gather_tokens.cuh on the CPU.
#include "cuda/video/gather_tokens.cuh"

#include "token_case.h"

using namespace stmeta::gather_tokens;

template <typename T>
void run(Case& io) {
  const Strided<T> x(io);
  const Strided<char> pos(io);
  const bool single = io.integer() != 0;  // pos is fp32, else of T
  const auto ids_keep = io.array<int64_t>(), ids_restore = io.array<int64_t>();
  const int64_t kept = io.integer();
  const Strided<T> grad(io);
  const auto needs = io.array<int64_t>();

  const bool has_pos = !pos.sizes.empty();
  const auto table =
      has_pos ? make_table<T>(pos.storage.data(), single, pos.strides[0]) : Table<T>{};
  const int64_t batch = x.sizes[0], tokens = x.sizes[1], dim = x.sizes[2];
  std::vector<T> out(batch * kept * dim), grad_x(needs[0] * batch * tokens * dim);
  forward(x.storage.data(), x.sizes.data(), x.strides.data(), table, ids_keep.data(), kept,
          out.data(), nullptr);
  io.result(out);

  auto grad_pos = scratch_of(needs[1] * tokens * dim);
  backward(grad.storage.data(), grad.sizes.data(), grad.strides.data(), ids_restore.data(), tokens,
           or_null(grad_x), or_null(grad_pos), nullptr);
  io.result(grad_x);
  io.result(grad_pos);
}

STMETA_TOKEN_MAIN(run)
