// CUDA implementation of stmeta::restore_tokens. Reference: stmeta/ops/video/restore_tokens.py,
// which has checked the arguments. allocate -> dispatch dtype -> launch.
#include "common/cuda_torch.cuh"
#include "cuda/video/restore_tokens.cuh"

namespace {

using namespace stmeta;
using Ints = std::vector<int64_t>;

Tensor restore_tokens_cuda(const Tensor& latent, const Tensor& mask_token,
                           const std::optional<Tensor>& pos, const Tensor& ids_restore) {
  const DeviceScope scope(latent);
  const ScalarType dtype = latent.scalar_type();
  const Tensor rows = with_dense_rows(latent), mask = torch::stable::contiguous(mask_token);
  const Tensor ids = torch::stable::contiguous(ids_restore);
  const Tensor positions = pos ? with_dense_rows(*pos) : rows;
  const bool single_mask = is_single(mask, dtype, "restore_tokens: mask_token");
  const bool single_pos = pos && is_single(*pos, dtype, "restore_tokens: pos");
  Tensor out = empty(latent, {latent.size(0), ids.size(1), latent.size(2)}, dtype);
  with_device_float(dtype, "restore_tokens: latent", [&](auto zero) {
    using T = decltype(zero);
    const auto fill = restore_tokens::make_table<T>(data<const void>(mask), single_mask, 0);
    const auto table = restore_tokens::make_table<T>(pos ? data<const void>(positions) : nullptr,
                                                     single_pos, positions.stride(0));
    restore_tokens::forward(data<const T>(rows), rows.sizes().data(), rows.strides().data(), fill,
                            table, data<const int64_t>(ids), ids.size(1), data<T>(out),
                            scope.stream);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> restore_tokens_backward_cuda(const Tensor& grad,
                                                                const Tensor& ids_restore,
                                                                int64_t keep,
                                                                std::vector<bool> needs) {
  const DeviceScope scope(grad);
  const Tensor rows = with_dense_rows(grad), ids = torch::stable::contiguous(ids_restore);
  const int64_t batch = grad.size(0), tokens = grad.size(1), dim = grad.size(2);
  const auto make = grad.numel() > 0 ? empty : zeros;
  const Ints none = {0};
  Tensor grad_latent = make(grad, needs[0] ? Ints{batch, keep, dim} : none, grad.scalar_type());
  Tensor grad_mask = make(grad, {needs[1] ? dim : 0}, ScalarType::Float);
  Tensor grad_pos = make(grad, needs[2] ? Ints{tokens, dim} : none, ScalarType::Float);
  if (grad.numel() == 0) return {grad_latent, grad_mask, grad_pos};
  const Ints partial_size = {needs[1] ? restore_tokens::partial_rows(tokens) : 0, dim};
  const Tensor partial = empty(grad, partial_size, ScalarType::Float);
  with_device_float(grad.scalar_type(), "restore_tokens: grad", [&](auto zero) {
    using T = decltype(zero);
    restore_tokens::backward(data<const T>(rows), rows.sizes().data(), rows.strides().data(),
                             data<const int64_t>(ids), keep, data<T>(grad_latent),
                             data<float>(grad_mask), data<float>(grad_pos), data<float>(partial),
                             scope.stream);
  });
  return {grad_latent, grad_mask, grad_pos};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("restore_tokens", TORCH_BOX(&restore_tokens_cuda));
  m.impl("restore_tokens_backward", TORCH_BOX(&restore_tokens_backward_cuda));
}
