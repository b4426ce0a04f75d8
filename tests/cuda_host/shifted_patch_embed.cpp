// Forward and backward of csrc/cuda/video/shifted_patch_embed.cuh on the CPU, from videos of bytes,
// with plain loops for the matrix product.
#include "cuda/video/shifted_patch_embed.cuh"

#include "token_case.h"

using namespace stmeta::shifted_patch_embed;
using stmeta::from_float;
using stmeta::to_float;

template <typename T>
void run(Case& io) {
  const Strided<uint8_t> video(io);
  auto ids = io.array<int64_t>();
  const int64_t kept = io.integer();
  auto gamma = io.array<float>(), beta = io.array<float>();
  const auto weight = io.array<T>();  // [D, F]
  const int64_t dim = io.integer();
  auto bias = io.array<float>(), pos = io.array<float>();
  const auto patch = io.array<int64_t>(), shifts = io.array<int64_t>();
  const auto scale = io.array<double>(), offset = io.array<double>();
  const auto eps = static_cast<float>(io.real());
  const auto grad = io.array<T>();  // [B, K, D]

  const Problem p = stmeta::patch_shift::make_problem(
      video.sizes.data(), video.strides.data(), or_null(ids), kept, patch, shifts, scale, offset);
  const int64_t features = p.features;
  std::vector<T> tokens(chunk_clips(p, sizeof(T)) * kept * features), out(p.total() * dim);
  auto mean = scratch_of(gamma.empty() ? 0 : p.total()), rstd = mean;
  const Norm norm{or_null(gamma), or_null(beta), eps, mean.data(), rstd.data()};
  forward(p, video.storage.data(), norm, or_null(bias), or_null(pos), dim, tokens.data(),
          out.data(), nullptr, [&](int64_t row, int64_t rows) {
            for (int64_t i = 0; i < rows * dim; ++i) {
              double sum = 0.0;
              for (int64_t f = 0; f < features; ++f) {
                sum += double{to_float(tokens[i / dim * features + f])} *
                       to_float(weight[i % dim * features + f]);
              }
              out[row * dim + i] = from_float<T>(static_cast<float>(sum));
            }
          });
  io.result(out);

  std::vector<float> total(dim * features);  // stays zero without tokens
  auto part = scratch_of(dim * features), sum = scratch_of(dim);
  auto grad_pos = scratch_of(pos.size()), partial = scratch_of(partial_rows(p) * dim);
  auto grad_gamma = scratch_of(gamma.size()), grad_beta = scratch_of(gamma.size());
  std::vector<int> slots(ids.empty() ? 0 : int64_t{p.batch} * p.sites);
  product(p, video.storage.data(), or_null(mean), or_null(rstd), dim, tokens.data(), part.data(),
          total.data(), nullptr, [&](int64_t row, int64_t rows, float* target) {
            for (int64_t i = 0; i < dim * features; ++i) {
              double value = 0.0;
              for (int64_t r = 0; r < rows; ++r) {
                value += double{to_float(grad[(row + r) * dim + i / features])} *
                         to_float(tokens[r * features + i % features]);
              }
              target[i] = static_cast<float>(value);
            }
          });
  if (p.total() > 0) {
    sums(p, grad.data(), dim, or_null(slots), partial.data(), sum.data(), or_null(grad_pos),
         nullptr);
  } else {  // the caller returns zeros
    sum.assign(sum.size(), 0.0f), grad_pos.assign(grad_pos.size(), 0.0f);
  }
  if (!gamma.empty()) {
    finish(Finish<T>{weight.data(), sum.data(), gamma.data(), beta.data(), total.data(),
                     grad_gamma.data(), grad_beta.data(), static_cast<int>(dim), p.features, false},
           nullptr);
  }
  for (const auto& result : {grad_gamma, grad_beta, total, sum, grad_pos}) io.result(result);
}

STMETA_TOKEN_MAIN(run)
