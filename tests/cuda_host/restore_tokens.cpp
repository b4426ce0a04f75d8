// Forward and backward of csrc/cuda/video/restore_tokens.cuh on the CPU.
#include "cuda/video/restore_tokens.cuh"

#include "token_case.h"

using namespace stmeta::restore_tokens;

template <typename T>
void run(Case& io) {
  const Strided<T> latent(io);
  const auto mask_token = io.array<float>();
  const Strided<char> pos(io);
  const bool single = io.integer() != 0;  // pos is fp32, else of T
  const auto ids = io.array<int64_t>();
  const int64_t tokens = io.integer();
  const Strided<T> grad(io);
  const auto needs = io.array<int64_t>();

  const auto fill = make_table<T>(mask_token.data(), true, 0);
  const bool has_pos = !pos.sizes.empty();
  const auto table =
      has_pos ? make_table<T>(pos.storage.data(), single, pos.strides[0]) : Table<T>{};
  const int64_t batch = latent.sizes[0], kept = latent.sizes[1], dim = latent.sizes[2];
  std::vector<T> out(batch * tokens * dim), grad_latent(needs[0] * batch * kept * dim);
  forward(latent.storage.data(), latent.sizes.data(), latent.strides.data(), fill, table,
          ids.data(), tokens, out.data(), nullptr);
  io.result(out);

  auto grad_mask = scratch_of(needs[1] * dim), grad_pos = scratch_of(needs[2] * tokens * dim);
  auto partial = scratch_of(needs[1] * partial_rows(tokens) * dim);
  backward(grad.storage.data(), grad.sizes.data(), grad.strides.data(), ids.data(), kept,
           or_null(grad_latent), or_null(grad_mask), or_null(grad_pos), or_null(partial), nullptr);
  for (const auto& result : {grad_mask, grad_pos}) io.result(result);
  io.result(grad_latent);
}

STMETA_TOKEN_MAIN(run)
