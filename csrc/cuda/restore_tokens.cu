// CUDA implementation of stmeta::restore_tokens. Reference: stmeta/ops/restore_tokens.py, which has
// checked the arguments. allocate -> dispatch dtype -> launch.
#include "../common/cuda_torch.cuh"
#include "restore_tokens.cuh"
#include "token_rows_torch.cuh"

namespace {

using namespace stmeta;
using token_rows::rows_of;
using Ints = std::vector<int64_t>;

Tensor restore_tokens_cuda(const Tensor& latent, const Tensor& mask_token,
                           const std::optional<Tensor>& pos, const Tensor& ids_restore) {
  const DeviceScope scope(latent);
  const Tensor restore = torch::stable::contiguous(ids_restore);
  const auto mask = contiguous_as(mask_token, ScalarType::Float);
  const int64_t batch = latent.size(0), tokens = restore.size(1), width = latent.size(2);
  Tensor out = empty(latent, {batch, tokens, width}, latent.scalar_type());
  with_device_float(latent.scalar_type(), "restore_tokens: latent", [&](auto number) {
    using T = decltype(number);
    token_rows::with_position<T>(pos, width, [&](auto table) {
      restore_tokens::forward<T>(rows_of<T>(latent), data<const float>(mask), table,
                                 data<const int64_t>(restore), batch, tokens, latent.size(1), width,
                                 data<T>(out), scope.stream);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> restore_tokens_backward_cuda(const Tensor& grad,
                                                                const Tensor& ids_restore,
                                                                int64_t keep,
                                                                std::vector<bool> needs) {
  const DeviceScope scope(grad);
  const Tensor restore = torch::stable::contiguous(ids_restore);
  const int64_t batch = grad.size(0), tokens = grad.size(1), width = grad.size(2);
  Tensor grad_latent =
      empty(grad, needs[0] ? Ints{batch, keep, width} : Ints{0}, grad.scalar_type());
  Tensor grad_mask = empty(grad, {needs[1] ? width : 0}, ScalarType::Float);
  Tensor grad_pos = empty(grad, needs[2] ? Ints{tokens, width} : Ints{0}, ScalarType::Float);
  const restore_tokens::BackwardGrid cut(batch, tokens, width, needs[2]);
  const Tensor partial = empty(grad, {needs[1] ? cut.blocks() : 0, width}, ScalarType::Float);
  with_device_float(grad.scalar_type(), "restore_tokens: grad", [&](auto number) {
    using T = decltype(number);
    restore_tokens::backward<T>(cut, rows_of<T>(grad), data<const int64_t>(restore), batch, tokens,
                                keep, data<T>(grad_latent), data<float>(partial),
                                data<float>(grad_mask), data<float>(grad_pos), scope.stream);
  });
  return {grad_latent, grad_mask, grad_pos};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("restore_tokens", TORCH_BOX(&restore_tokens_cuda));
  m.impl("restore_tokens_backward", TORCH_BOX(&restore_tokens_backward_cuda));
}
