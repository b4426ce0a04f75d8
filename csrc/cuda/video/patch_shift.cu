// CUDA implementation of stmeta::patch_shift. Reference: stmeta/ops/video/patch_shift.py, which has
// checked the arguments. allocate -> dispatch dtype -> launch; the kernels are in patch_shift.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/video/patch_shift.cuh"

namespace {

using namespace stmeta;
using Ints = std::vector<int64_t>;
using Reals = std::vector<double>;
using Optional = std::optional<Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

// `ids` must be contiguous and outlive the problem.
patch_shift::Problem problem_of(const Tensor& video, const Optional& ids, const Ints& patch,
                                const Ints& shifts, const Reals& scale, const Reals& offset) {
  const int64_t all =
      (video.size(2) / patch[0]) * (video.size(3) / patch[1]) * (video.size(4) / patch[1]);
  return patch_shift::make_problem(video.sizes().data(), video.strides().data(),
                                   ids ? data<int64_t>(*ids) : nullptr, ids ? ids->size(1) : all,
                                   patch, shifts, scale, offset);
}

Three patch_shift_cuda(const Tensor& video, const Optional& ids_keep, const Optional& weight,
                       const Optional& bias, Ints patch, Ints shifts, Reals scale, Reals offset,
                       double eps, ScalarType dtype) {
  const DeviceScope scope(video);
  const auto ids = contiguous_as(ids_keep, ScalarType::Long);
  const auto gamma = contiguous_as(weight, ScalarType::Float);
  const auto beta = contiguous_as(bias, ScalarType::Float);
  const auto p = problem_of(video, ids, patch, shifts, scale, offset);
  const Ints rows = gamma ? Ints{p.batch, p.kept} : Ints{0};
  Tensor tokens = empty(video, {p.batch, p.kept, p.features}, dtype);
  Tensor mean = empty(video, rows, ScalarType::Float);
  Tensor rstd = empty(video, rows, ScalarType::Float);
  with_device_video(video.scalar_type(), "patch_shift: video", [&](auto in) {
    with_device_float(dtype, "patch_shift: dtype", [&](auto out) {
      using In = decltype(in);
      using Out = decltype(out);
      patch_shift::forward(p, data<const In>(video), data<const float>(gamma),
                           data<const float>(beta), static_cast<float>(eps), data<Out>(tokens),
                           data<float>(mean), data<float>(rstd), scope.stream);
    });
  });
  return {tokens, mean, rstd};
}

Three patch_shift_backward_cuda(const Tensor& grad, const Tensor& video, const Optional& ids_keep,
                                const Optional& weight, const Tensor& mean, const Tensor& rstd,
                                Ints patch, Ints shifts, Reals scale, Reals offset,
                                std::vector<bool> needs) {
  const DeviceScope scope(video);
  const auto ids = contiguous_as(ids_keep, ScalarType::Long);
  const auto gamma = contiguous_as(weight, ScalarType::Float);
  const Tensor means = torch::stable::contiguous(mean), rstds = torch::stable::contiguous(rstd);
  const auto p = problem_of(video, ids, patch, shifts, scale, offset);
  const auto video_sizes = video.sizes();
  const bool work = p.total() > 0;  // else the gradients are zero
  const auto make = work ? empty : zeros;
  const Ints none = {0}, row = {p.features};
  Tensor grad_video = make(video, needs[0] ? Ints(video_sizes.begin(), video_sizes.end()) : none,
                           video.scalar_type());
  Tensor grad_weight = make(video, needs[1] ? row : none, ScalarType::Float);
  Tensor grad_bias = make(video, needs[2] ? row : none, ScalarType::Float);
  if (!work) return {grad_video, grad_weight, grad_bias};

  const patch_shift::BackwardGrid grid(p);
  const auto norm = patch_shift::make_norm(p, data<const float>(gamma), data<const float>(means),
                                           data<const float>(rstds));
  const Ints row_means_size = {grid.chunks, gamma && needs[0] ? p.total() : 0, 2};
  const Ints partials_size = {2, gamma && (needs[1] || needs[2]) ? grid.blocks : 0, p.features};
  const Tensor row_means = empty(video, row_means_size, ScalarType::Float);
  const Tensor partials = empty(video, partials_size, ScalarType::Float);
  const Tensor slots = empty(video, {ids && needs[0] ? p.batch : 0, p.sites}, ScalarType::Int);
  with_device_float(grad.scalar_type(), "patch_shift: grad", [&](auto out) {
    using Out = decltype(out);
    const auto dy = patch_shift::make_gradient(p, data<const Out>(grad), grad.strides().data());
    if (row_means.numel() + partials.numel() > 0) {
      with_device_video(video.scalar_type(), "patch_shift: video", [&](auto in) {
        using In = decltype(in);
        patch_shift::backward_rows(p, grid, data<const In>(video), dy, norm, data<float>(row_means),
                                   data<float>(partials), scope.stream);
      });
    }
    if (needs[0]) {
      with_device_float(video.scalar_type(), "patch_shift: video", [&](auto in) {
        using In = decltype(in);
        patch_shift::backward_video(p, grid, data<const In>(video), dy, norm,
                                    data<const float>(row_means), data<int>(slots),
                                    data<In>(grad_video), scope.stream);
      });
    }
  });
  const float* partial = data<const float>(partials);
  for (float* sum : {data<float>(grad_weight), data<float>(grad_bias)}) {
    if (sum) column_sum(partial, sum, grid.blocks, p.features, scope.stream);
    partial += int64_t{grid.blocks} * p.features;
  }
  return {grad_video, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("patch_shift", TORCH_BOX(&patch_shift_cuda));
  m.impl("patch_shift_backward", TORCH_BOX(&patch_shift_backward_cuda));
}
