// CUDA implementation of stmeta::gather_tokens. Reference: stmeta/ops/video/gather_tokens.py, which
// has checked the arguments. allocate -> dispatch dtype -> launch.
#include "common/cuda_torch.cuh"
#include "cuda/video/gather_tokens.cuh"

namespace {

using namespace stmeta;
using Ints = std::vector<int64_t>;

Tensor gather_tokens_cuda(const Tensor& x, const std::optional<Tensor>& pos, const Tensor& ids_keep,
                          const std::optional<Tensor>& /*ids_restore*/) {
  const DeviceScope scope(x);
  const Tensor rows = with_dense_rows(x), ids = torch::stable::contiguous(ids_keep);
  const Tensor positions = pos ? with_dense_rows(*pos) : rows;
  const bool single = pos && is_single(*pos, x.scalar_type(), "gather_tokens: pos");
  Tensor out = empty(x, {x.size(0), ids.size(1), x.size(2)}, x.scalar_type());
  with_device_float(x.scalar_type(), "gather_tokens: x", [&](auto zero) {
    using T = decltype(zero);
    const auto table = gather_tokens::make_table<T>(pos ? data<const void>(positions) : nullptr,
                                                    single, positions.stride(0));
    gather_tokens::forward(data<const T>(rows), rows.sizes().data(), rows.strides().data(), table,
                           data<const int64_t>(ids), ids.size(1), data<T>(out), scope.stream);
  });
  return out;
}

std::tuple<Tensor, Tensor> gather_tokens_backward_cuda(const Tensor& grad,
                                                       const Tensor& /*ids_keep*/,
                                                       const Tensor& ids_restore,
                                                       std::vector<bool> needs) {
  const DeviceScope scope(grad);
  const Tensor rows = with_dense_rows(grad), ids = torch::stable::contiguous(ids_restore);
  const int64_t tokens = ids.size(1), dim = grad.size(2);
  const Ints none = {0};
  Tensor grad_x =
      empty(grad, needs[0] ? Ints{grad.size(0), tokens, dim} : none, grad.scalar_type());
  Tensor grad_pos = empty(grad, needs[1] ? Ints{tokens, dim} : none, ScalarType::Float);
  with_device_float(grad.scalar_type(), "gather_tokens: grad", [&](auto zero) {
    using T = decltype(zero);
    gather_tokens::backward(data<const T>(rows), rows.sizes().data(), rows.strides().data(),
                            data<const int64_t>(ids), tokens, data<T>(grad_x),
                            data<float>(grad_pos), scope.stream);
  });
  return {grad_x, grad_pos};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("gather_tokens", TORCH_BOX(&gather_tokens_cuda));
  m.impl("gather_tokens_backward", TORCH_BOX(&gather_tokens_backward_cuda));
}
