// CUDA implementation of stmeta::shifted_patch_embed. Reference:
// stmeta/ops/video/shifted_patch_embed.py, which has checked the arguments. Torch's matrix product
// (cuBLAS, with torch's own settings) takes the tokens chunk by chunk; the kernels around it are in
// shifted_patch_embed.cuh.
#include <array>

#include "common/cuda_torch.cuh"
#include "cuda/video/shifted_patch_embed.cuh"

namespace {

using namespace stmeta;
using torch::stable::narrow;
using torch::stable::transpose;
using Ints = std::vector<int64_t>;
using Reals = std::vector<double>;
using Optional = std::optional<Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// out = a b. The products of 16-bit numbers are summed up in fp32; `out` may be fp32 too. Overloads
// with `out` take part neither in autocast nor in autograd.
void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack = {from(a), from(b), from(out), 0};
  const char* overload = "out";
  if (out.scalar_type() != a.scalar_type()) {
    overload = "dtype_out";
    stack[3] = stack[2], stack[2] = from(out.scalar_type());
  }
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", overload, stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // another handle of `out`: let it go
}

// `ids` must be contiguous and outlive the problem.
patch_shift::Problem problem_of(const Tensor& video, const Optional& ids, const Ints& patch,
                                const Ints& shifts, const Reals& scale, const Reals& offset) {
  const int64_t all =
      (video.size(2) / patch[0]) * (video.size(3) / patch[1]) * (video.size(4) / patch[1]);
  return patch_shift::make_problem(video.sizes().data(), video.strides().data(),
                                   ids ? data<int64_t>(*ids) : nullptr, ids ? ids->size(1) : all,
                                   patch, shifts, scale, offset);
}

Tensor chunk_of_tokens(const Tensor& video, const patch_shift::Problem& p, ScalarType dtype) {
  const size_t bytes = dtype == ScalarType::Float ? 4 : 2;
  const int64_t rows = int64_t{shifted_patch_embed::chunk_clips(p, bytes)} * p.kept;
  return empty(video, {rows, p.features}, dtype);
}

// Calls f with zeros of the types of the video and of the tokens.
template <typename F>
void dispatch(const Tensor& video, ScalarType dtype, F&& f) {
  with_device_video(video.scalar_type(), "shifted_patch_embed: video", [&](auto in) {
    with_device_float(dtype, "shifted_patch_embed: dtype", [&](auto out) { f(in, out); });
  });
}

Three shifted_patch_embed_cuda(const Tensor& video, const Optional& ids_keep,
                               const Optional& norm_weight, const Optional& norm_bias,
                               const Tensor& weight, const Optional& bias, const Optional& pos,
                               Ints patch, Ints shifts, Reals scale, Reals offset, double eps,
                               ScalarType dtype) {
  const DeviceScope scope(video);
  const auto ids = contiguous_as(ids_keep, ScalarType::Long);
  const auto gamma = contiguous_as(norm_weight, ScalarType::Float);
  const auto beta = contiguous_as(norm_bias, ScalarType::Float);
  const auto shift = contiguous_as(bias, ScalarType::Float);
  const auto positions = contiguous_as(pos, ScalarType::Float);
  const auto p = problem_of(video, ids, patch, shifts, scale, offset);
  const int64_t dim = weight.size(0);
  const Ints rows = gamma ? Ints{p.batch, p.kept} : Ints{0};
  Tensor mean = empty(video, rows, ScalarType::Float);
  Tensor rstd = empty(video, rows, ScalarType::Float);
  Tensor out = empty(video, {p.batch, p.kept, dim}, dtype);
  if (p.total() == 0) return {out, mean, rstd};
  Tensor flat = torch::stable::view(out, {p.total(), dim});
  Tensor tokens = chunk_of_tokens(video, p, dtype);
  const Tensor columns = transpose(weight, 0, 1);
  const shifted_patch_embed::Norm norm{data<const float>(gamma), data<const float>(beta),
                                       static_cast<float>(eps), data<float>(mean),
                                       data<float>(rstd)};
  dispatch(video, dtype, [&](auto in, auto number) {
    using In = decltype(in);
    using T = decltype(number);
    shifted_patch_embed::forward(
        p, data<const In>(video), norm, data<const float>(shift), data<const float>(positions), dim,
        data<T>(tokens), data<T>(out), scope.stream, [&](int64_t row, int64_t count) {
          multiply(narrow(flat, 0, row, count), narrow(tokens, 0, 0, count), columns);
        });
  });
  return {out, mean, rstd};
}

// G = grad^T xhat, [D, F] in fp32; grad is [B * K, D].
void product_of(const patch_shift::Problem& p, const Tensor& video, const float* mean,
                const float* rstd, Tensor& grad, Tensor& total, Stream stream) {
  const ScalarType dtype = grad.scalar_type();
  const int64_t dim = grad.size(1);
  Tensor tokens = chunk_of_tokens(video, p, dtype);
  const bool chunks = tokens.size(0) < p.total();
  const Tensor part = empty(video, {chunks ? dim : 0, p.features}, ScalarType::Float);
  dispatch(video, dtype, [&](auto in, auto number) {
    using In = decltype(in);
    using T = decltype(number);
    shifted_patch_embed::product(
        p, data<const In>(video), mean, rstd, dim, data<T>(tokens), data<float>(part),
        data<float>(total), stream, [&](int64_t row, int64_t count, const float* target) {
          multiply(target == data<float>(total) ? total : part,
                   transpose(narrow(grad, 0, row, count), 0, 1), narrow(tokens, 0, 0, count));
        });
  });
}

// Turns G, in `product`, into the gradients of the Linear's weight and of LayerNorm.
void finish_norm(const Tensor& weight, const Tensor& gamma, const Tensor& beta, const Tensor& sum,
                 const Tensor& product, const Tensor& grad_gamma, const Tensor& grad_beta,
                 Stream stream) {
  with_device_float(weight.scalar_type(), "shifted_patch_embed: weight", [&](auto number) {
    using T = decltype(number);
    shifted_patch_embed::Finish<T> f{};
    f.weight = data<const T>(weight), f.sum = data<const float>(sum);
    f.gamma = data<const float>(gamma), f.beta = data<const float>(beta);
    f.product = data<float>(product);
    f.grad_gamma = data<float>(grad_gamma), f.grad_beta = data<float>(grad_beta);
    f.dim = static_cast<int>(weight.size(0)), f.features = static_cast<int>(weight.size(1));
    shifted_patch_embed::finish(f, stream);
  });
}

Five shifted_patch_embed_backward_cuda(const Tensor& gradient, const Tensor& video,
                                       const Optional& ids_keep, const Optional& norm_weight,
                                       const Optional& norm_bias, const Tensor& weight,
                                       const Tensor& mean, const Tensor& rstd, Ints patch,
                                       Ints shifts, Reals scale, Reals offset, int64_t tokens,
                                       std::vector<bool> needs) {
  const DeviceScope scope(video);
  const auto ids = contiguous_as(ids_keep, ScalarType::Long);
  const auto gamma = contiguous_as(norm_weight, ScalarType::Float);
  const auto beta = contiguous_as(norm_bias, ScalarType::Float);
  const auto dense = contiguous_as(weight, weight.scalar_type());
  const auto means = contiguous_as(mean, ScalarType::Float);
  const auto rstds = contiguous_as(rstd, ScalarType::Float);
  auto grad = contiguous_as(gradient, weight.scalar_type());
  const auto p = problem_of(video, ids, patch, shifts, scale, offset);
  const int64_t dim = weight.size(0), features = p.features;
  const bool work = grad->numel() > 0;  // else the gradients are zero
  const auto make = [&](Ints size, bool need) {
    return (work ? empty : zeros)(video, need ? size : Ints{0}, ScalarType::Float);
  };
  const bool norm = gamma && (needs[0] || needs[1]);
  Tensor grad_gamma = make({features}, needs[0]), grad_beta = make({features}, needs[1]);
  Tensor product = make({dim, features}, needs[2] || norm);  // the gradient of weight
  Tensor sum = make({dim}, needs[3] || needs[4] || (gamma && product.numel() > 0));
  Tensor grad_pos = make({tokens, dim}, needs[4]);
  const Tensor none = zeros(video, {0}, ScalarType::Float);
  if (work) {
    if (sum.numel() > 0) {
      const Tensor slots = empty(video, {ids ? p.batch : 0, p.sites}, ScalarType::Int);
      const Ints size = {shifted_patch_embed::partial_rows(p), dim};
      const Tensor partial = empty(video, size, ScalarType::Float);
      with_device_float(grad->scalar_type(), "shifted_patch_embed: grad", [&](auto number) {
        using T = decltype(number);
        shifted_patch_embed::sums(p, data<const T>(*grad), dim, data<int>(slots),
                                  data<float>(partial), data<float>(sum), data<float>(grad_pos),
                                  scope.stream);
      });
    }
    if (product.numel() > 0) {
      Tensor rows = torch::stable::view(*grad, {p.total(), dim});
      product_of(p, video, data<const float>(means), data<const float>(rstds), rows, product,
                 scope.stream);
      if (gamma) {
        finish_norm(*dense, *gamma, *beta, sum, product, grad_gamma, grad_beta, scope.stream);
      }
    }
  }
  return {grad_gamma, grad_beta, needs[2] ? product : none, needs[3] ? sum : none, grad_pos};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("shifted_patch_embed", TORCH_BOX(&shifted_patch_embed_cuda));
  m.impl("shifted_patch_embed_backward", TORCH_BOX(&shifted_patch_embed_backward_cuda));
}
