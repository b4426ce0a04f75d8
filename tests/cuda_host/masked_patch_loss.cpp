// Forward and backward of csrc/cuda/video/masked_patch_loss.cuh on the CPU; videos of bytes and of
// fp32.
#include "cuda/video/masked_patch_loss.cuh"

#include "token_case.h"

using namespace stmeta::masked_patch_loss;

template <typename T, typename In>
void run_video(Case& io) {
  const Strided<In> video(io);
  const Strided<T> pred(io);
  auto ids = io.array<int64_t>();
  auto mask = io.array<uint8_t>();
  const auto patch = io.array<int64_t>();
  const auto scale = io.array<double>(), offset = io.array<double>();
  const bool norm = io.integer() != 0;
  const auto eps = static_cast<float>(io.real());
  const auto grad = io.array<float>();

  const Problem p = make_problem(video.storage.data(), video.sizes.data(), video.strides.data(),
                                 or_null(ids), or_null(mask), pred.sizes[1], patch, scale, offset);
  const auto prediction = make_prediction(p, pred.storage.data(), pred.strides.data());
  auto mean = scratch_of(p.total()), rstd = scratch_of(p.total());
  auto partial = scratch_of(2 * forward_blocks<In, T>(p));
  auto loss = scratch_of(1), inverse = scratch_of(1);
  forward(p, video.storage.data(), prediction, norm, eps, mean.data(), rstd.data(), partial.data(),
          loss.data(), inverse.data(), nullptr);
  io.result(loss);
  std::vector<T> out(int64_t{p.total()} * p.features);
  backward(p, video.storage.data(), prediction, grad.data(), inverse.data(), mean.data(),
           rstd.data(), out.data(), nullptr);
  io.result(out);
}

template <typename T>
void run(Case& io) {
  if (io.integer() != 0) return run_video<T, uint8_t>(io);
  if constexpr (std::is_same_v<T, float>) return run_video<T, float>(io);
  throw std::runtime_error("built for videos of bytes");
}

STMETA_TOKEN_MAIN(run)
