// CUDA implementation of stmeta::masked_patch_loss. Reference: stmeta/ops/masked_patch_loss.py,
// which has checked the arguments. allocate -> dispatch dtype -> launch.
#include "../common/cuda_torch.cuh"
#include "masked_patch_loss.cuh"
#include "token_rows_torch.cuh"

namespace {

using namespace stmeta;
using token_rows::rows_of;
using Ints = std::vector<int64_t>;
using Reals = std::vector<double>;
using Optional = std::optional<Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// ids and mask, contiguous; and the problem, which they must outlive.
struct Call {
  Optional ids, mask;
  patch_shift::Problem p;

  Call(const Tensor& pred, const Tensor& video, const Optional& ids_or_none,
       const Optional& mask_or_none, const Ints& patch, const Reals& scale, const Reals& offset)
      : ids(contiguous_as(ids_or_none, ScalarType::Long)),
        mask(contiguous_as(mask_or_none, ScalarType::Bool)),
        p(patch_shift::make_problem(video.sizes().data(), video.strides().data(),
                                    ids ? data<const int64_t>(*ids) : nullptr, pred.size(1), patch,
                                    {0, 0, 0}, scale, offset)) {}
};

Four masked_patch_loss_cuda(const Tensor& pred, const Tensor& video, const Optional& ids,
                            const Optional& mask, Ints patch, Reals scale, Reals offset,
                            bool norm_pix, double eps) {
  const DeviceScope scope(pred);
  const Call call(pred, video, ids, mask, patch, scale, offset);
  const Ints rows = {pred.size(0), pred.size(1)};
  Tensor loss = empty(pred, {}, ScalarType::Float), inverse = empty(pred, {}, ScalarType::Float);
  Tensor mean = empty(pred, rows, ScalarType::Float), rstd = empty(pred, rows, ScalarType::Float);
  const Tensor sums = empty(pred, rows, ScalarType::Float);
  with_device_video(video.scalar_type(), "masked_patch_loss: video", [&](auto in) {
    with_device_float(pred.scalar_type(), "masked_patch_loss: pred", [&](auto number) {
      using In = decltype(in);
      using T = decltype(number);
      const In* pixels = data<const In>(video);
      const auto options = masked_patch_loss::make_options(
          call.p, pixels, data<const bool>(call.mask), norm_pix, eps);
      masked_patch_loss::forward<In, T>(call.p, options, pixels, rows_of<T>(pred),
                                        data<float>(sums), data<float>(mean), data<float>(rstd),
                                        data<float>(loss), data<float>(inverse), scope.stream);
    });
  });
  return {loss, mean, rstd, inverse};
}

Tensor masked_patch_loss_backward_cuda(const Tensor& grad, const Tensor& pred, const Tensor& video,
                                       const Optional& ids, const Optional& mask,
                                       const Tensor& mean, const Tensor& rstd,
                                       const Tensor& inverse, Ints patch, Reals scale,
                                       Reals offset) {
  const DeviceScope scope(pred);
  const Call call(pred, video, ids, mask, patch, scale, offset);
  const Tensor means = torch::stable::contiguous(mean), rstds = torch::stable::contiguous(rstd);
  const auto slope = contiguous_as(grad, ScalarType::Float);
  Tensor out = empty(pred, {pred.size(0), pred.size(1), pred.size(2)}, pred.scalar_type());
  with_device_video(video.scalar_type(), "masked_patch_loss: video", [&](auto in) {
    with_device_float(pred.scalar_type(), "masked_patch_loss: pred", [&](auto number) {
      using In = decltype(in);
      using T = decltype(number);
      const In* pixels = data<const In>(video);
      const auto options = masked_patch_loss::make_options(
          call.p, pixels, data<const bool>(call.mask), false, 0.0);
      masked_patch_loss::backward<In, T>(call.p, options, pixels, rows_of<T>(pred),
                                         data<const float>(slope), data<const float>(means),
                                         data<const float>(rstds), data<const float>(inverse),
                                         data<T>(out), scope.stream);
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("masked_patch_loss", TORCH_BOX(&masked_patch_loss_cuda));
  m.impl("masked_patch_loss_backward", TORCH_BOX(&masked_patch_loss_backward_cuda));
}
