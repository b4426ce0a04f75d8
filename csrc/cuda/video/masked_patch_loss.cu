// CUDA implementation of stmeta::masked_patch_loss. Reference:
// stmeta/ops/video/masked_patch_loss.py, which has checked the arguments. allocate -> dispatch
// dtype -> launch.
#include "common/cuda_torch.cuh"
#include "cuda/video/masked_patch_loss.cuh"

namespace {

using namespace stmeta;
using Ints = std::vector<int64_t>;
using Reals = std::vector<double>;
using Optional = std::optional<Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Calls f(problem, video, prediction) with their C++ types. `ids` and `mask` must be contiguous.
template <typename F>
void dispatch(const Tensor& pred, const Tensor& video, const Optional& ids, const Optional& mask,
              const Ints& patch, const Reals& scale, const Reals& offset, F&& f) {
  with_device_video(video.scalar_type(), "masked_patch_loss: video", [&](auto in) {
    using In = decltype(in);
    const In* pixels = data<const In>(video);
    const auto p = masked_patch_loss::make_problem(
        pixels, video.sizes().data(), video.strides().data(), data<const int64_t>(ids),
        data<const uint8_t>(mask), pred.size(1), patch, scale, offset);
    with_device_float(pred.scalar_type(), "masked_patch_loss: pred", [&](auto out) {
      using T = decltype(out);
      f(p, pixels,
        masked_patch_loss::make_prediction(p, data<const T>(pred), pred.strides().data()));
    });
  });
}

Four masked_patch_loss_cuda(const Tensor& pred, const Tensor& video, const Optional& ids,
                            const Optional& mask, Ints patch, Reals scale, Reals offset,
                            bool norm_pix, double eps) {
  const DeviceScope scope(pred);
  const Optional tokens = contiguous_as(ids, ScalarType::Long);
  const Optional counts = contiguous_as(mask, ScalarType::Bool);
  const Ints rows = {pred.size(0), pred.size(1)};
  Tensor mean = empty(pred, rows, ScalarType::Float), rstd = empty(pred, rows, ScalarType::Float);
  Tensor loss = empty(pred, {}, ScalarType::Float), inverse = empty(pred, {}, ScalarType::Float);
  dispatch(pred, video, tokens, counts, patch, scale, offset,
           [&](const auto& p, const auto* pixels, const auto& prediction) {
             using In = std::remove_const_t<std::remove_pointer_t<decltype(pixels)>>;
             using T = std::remove_const_t<std::remove_pointer_t<decltype(prediction.data)>>;
             const Ints size = {masked_patch_loss::forward_blocks<In, T>(p), 2};
             const Tensor partial = empty(pred, size, ScalarType::Float);
             masked_patch_loss::forward(p, pixels, prediction, norm_pix, static_cast<float>(eps),
                                        data<float>(mean), data<float>(rstd), data<float>(partial),
                                        data<float>(loss), data<float>(inverse), scope.stream);
           });
  return {loss, mean, rstd, inverse};
}

Tensor masked_patch_loss_backward_cuda(const Tensor& grad, const Tensor& pred, const Tensor& video,
                                       const Optional& ids, const Optional& mask,
                                       const Tensor& mean, const Tensor& rstd,
                                       const Tensor& inverse, Ints patch, Reals scale,
                                       Reals offset) {
  const DeviceScope scope(pred);
  const Optional tokens = contiguous_as(ids, ScalarType::Long);
  const Optional counts = contiguous_as(mask, ScalarType::Bool);
  const Tensor means = torch::stable::contiguous(mean), rstds = torch::stable::contiguous(rstd);
  const auto sizes = pred.sizes();
  Tensor out = empty(pred, Ints(sizes.begin(), sizes.end()), pred.scalar_type());
  dispatch(pred, video, tokens, counts, patch, scale, offset,
           [&](const auto& p, const auto* pixels, const auto& prediction) {
             using T = std::remove_const_t<std::remove_pointer_t<decltype(prediction.data)>>;
             masked_patch_loss::backward(p, pixels, prediction, data<const float>(grad),
                                         data<const float>(inverse), data<const float>(means),
                                         data<const float>(rstds), data<T>(out), scope.stream);
           });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("masked_patch_loss", TORCH_BOX(&masked_patch_loss_cuda));
  m.impl("masked_patch_loss_backward", TORCH_BOX(&masked_patch_loss_backward_cuda));
}
