// CUDA implementation of stmeta::gather_tokens. Reference: stmeta/ops/gather_tokens.py, which has
// checked the arguments. allocate -> dispatch dtype -> launch.
#include "../common/cuda_torch.cuh"
#include "gather_tokens.cuh"
#include "token_rows_torch.cuh"

namespace {

using namespace stmeta;
using token_rows::rows_of;
using Ints = std::vector<int64_t>;

Tensor gather_tokens_cuda(const Tensor& x, const std::optional<Tensor>& pos, const Tensor& ids_keep,
                          const std::optional<Tensor>&) {
  const DeviceScope scope(x);
  const Tensor ids = torch::stable::contiguous(ids_keep);
  const int64_t batch = x.size(0), kept = ids.size(1), width = x.size(2);
  Tensor out = empty(x, {batch, kept, width}, x.scalar_type());
  with_device_float(x.scalar_type(), "gather_tokens: x", [&](auto number) {
    using T = decltype(number);
    token_rows::with_position<T>(pos, width, [&](auto table) {
      gather_tokens::forward<T>(rows_of<T>(x), table, data<const int64_t>(ids), batch, x.size(1),
                                kept, width, data<T>(out), scope.stream);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> gather_tokens_backward_cuda(const Tensor& grad, const Tensor& ids_keep,
                                                       const Tensor& ids_restore,
                                                       std::vector<bool> needs) {
  (void)ids_keep;  // ids_restore says the same, and makes the scatter a gather
  const DeviceScope scope(grad);
  const Tensor restore = torch::stable::contiguous(ids_restore);
  const int64_t batch = grad.size(0), tokens = restore.size(1), width = grad.size(2);
  Tensor grad_x = empty(grad, needs[0] ? Ints{batch, tokens, width} : Ints{0}, grad.scalar_type());
  Tensor grad_pos = empty(grad, needs[1] ? Ints{tokens, width} : Ints{0}, ScalarType::Float);
  with_device_float(grad.scalar_type(), "gather_tokens: grad", [&](auto number) {
    using T = decltype(number);
    gather_tokens::backward<T>(rows_of<T>(grad), data<const int64_t>(restore), batch, tokens,
                               grad.size(1), width, data<T>(grad_x), data<float>(grad_pos),
                               scope.stream);
  });
  return {grad_x, grad_pos};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("gather_tokens", TORCH_BOX(&gather_tokens_cuda));
  m.impl("gather_tokens_backward", TORCH_BOX(&gather_tokens_backward_cuda));
}
