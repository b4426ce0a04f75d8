// CUDA implementation of stmeta::shifted_patch_embed. Reference: stmeta/ops/shifted_patch_embed.py,
// which has checked the arguments. allocate -> dispatch dtype -> launch; torch multiplies.
#include "../common/cuda_torch.cuh"
#include "shifted_patch_embed.cuh"

namespace {

using namespace stmeta;
using Ints = std::vector<int64_t>;
using Reals = std::vector<double>;
using Optional = std::optional<Tensor>;

// `ids` must be contiguous and outlive the problem.
patch_shift::Problem problem_of(const Tensor& video, const Optional& ids, const Ints& patch,
                                const Ints& shifts, const Reals& scale, const Reals& offset) {
  const int64_t all =
      (video.size(2) / patch[0]) * (video.size(3) / patch[1]) * (video.size(4) / patch[1]);
  return patch_shift::make_problem(video.sizes().data(), video.strides().data(),
                                   ids ? data<int64_t>(*ids) : nullptr, ids ? ids->size(1) : all,
                                   patch, shifts, scale, offset);
}

// out = a b, by torch, on its current stream.
void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack = {torch::stable::detail::from(a),
                                       torch::stable::detail::from(b),
                                       torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes the handle that came back
}

// What makes the tokens; gamma and beta may be null: no LayerNorm.
struct Maker {
  const patch_shift::Problem& p;
  const Tensor& video;
  ScalarType dtype;
  const float *gamma, *beta;
  float eps;
  float *mean, *rstd;  // [B, K]
  Stream stream;
};

// Calls f(tokens [rows, F], first row, rows) for some clips after the other.
template <typename F>
void for_tokens(const Maker& m, const F& f) {
  const int64_t clips =
      shifted_patch_embed::chunk_clips(m.p, m.dtype == ScalarType::Float ? 4 : 2);
  Tensor buffer = empty(m.video, {clips * m.p.kept, m.p.features}, m.dtype);
  with_device_video(m.video.scalar_type(), "shifted_patch_embed: video", [&](auto in) {
    with_device_float(m.dtype, "shifted_patch_embed: dtype", [&](auto out) {
      using In = decltype(in);
      using Out = decltype(out);
      shifted_patch_embed::for_chunks(
          m.p, clips, data<const In>(m.video),
          [&](const patch_shift::Problem& part, const In* video, int64_t row) {
            patch_shift::forward(part, video, m.gamma, m.beta, m.eps, data<Out>(buffer),
                                 m.gamma ? m.mean + row : nullptr,
                                 m.gamma ? m.rstd + row : nullptr, m.stream);
            f(torch::stable::narrow(buffer, 0, 0, part.total()), row, part.total());
          });
    });
  });
}

std::tuple<Tensor, Tensor, Tensor> shifted_patch_embed_cuda(
    const Tensor& video, const Optional& ids_keep, const Optional& norm_weight,
    const Optional& norm_bias, const Tensor& weight, const Optional& bias, const Optional& pos,
    Ints patch, Ints shifts, Reals scale, Reals offset, double eps, ScalarType dtype) {
  const DeviceScope scope(video);
  const auto ids = contiguous_as(ids_keep, ScalarType::Long);
  const auto gamma = contiguous_as(norm_weight, ScalarType::Float);
  const auto beta = contiguous_as(norm_bias, ScalarType::Float);
  const auto shift = contiguous_as(bias, ScalarType::Float);
  const auto place = contiguous_as(pos, ScalarType::Float);
  const auto p = problem_of(video, ids, patch, shifts, scale, offset);
  const int64_t dim = weight.size(0);
  const Ints rows = gamma ? Ints{p.batch, p.kept} : Ints{0};
  Tensor mean = empty(video, rows, ScalarType::Float), rstd = empty(video, rows, ScalarType::Float);
  Tensor out = empty(video, {p.batch, p.kept, dim}, dtype);
  if (out.numel() == 0) return {out, mean, rstd};
  Tensor flat = torch::stable::view(out, {p.total(), dim});
  Tensor matrix = weight;
  const Tensor columns = torch::stable::transpose(matrix, 0, 1);
  const Maker maker = {p,
                       video,
                       dtype,
                       data<const float>(gamma),
                       data<const float>(beta),
                       static_cast<float>(eps),
                       data<float>(mean),
                       data<float>(rstd),
                       scope.stream};
  for_tokens(maker, [&](const Tensor& tokens, int64_t row, int64_t count) {
    multiply(tokens, columns, torch::stable::narrow(flat, 0, row, count));
  });
  with_device_float(dtype, "shifted_patch_embed: dtype", [&](auto number) {
    using T = decltype(number);
    shifted_patch_embed::add(p, dim, data<const float>(shift), data<const float>(place),
                             data<T>(out), scope.stream);
  });
  return {out, mean, rstd};
}

// product [D, F] = grad^T xhat, in fp32 over the chunks; grad is [B * K, D].
template <typename T>
void multiply_tokens(const patch_shift::Problem& p, const Tensor& video, Tensor& grad, bool norm,
                     float eps, Tensor& product, Stream stream) {
  const int64_t rows = norm ? p.total() : 0, features = norm ? p.features : 0;
  Tensor ones = empty(grad, {features}, ScalarType::Float);
  if (norm) torch::stable::fill_(ones, 1.0);
  const Tensor none = zeros(grad, {features}, ScalarType::Float);
  const Tensor stats = empty(grad, {2, rows}, ScalarType::Float);
  const Tensor part = empty(grad, {grad.size(1), p.features}, grad.scalar_type());
  float* mean = data<float>(stats);
  const Maker maker = {p,    video, grad.scalar_type(), data<const float>(ones),
                       data<const float>(none), eps, mean, norm ? mean + rows : nullptr, stream};
  for_tokens(maker, [&](const Tensor& tokens, int64_t row, int64_t count) {
    Tensor own = torch::stable::narrow(grad, 0, row, count);
    multiply(torch::stable::transpose(own, 0, 1), tokens, part);
    shifted_patch_embed::accumulate(data<const T>(part), data<float>(product), part.numel(),
                                    row == 0, stream);
  });
}

}  // namespace
