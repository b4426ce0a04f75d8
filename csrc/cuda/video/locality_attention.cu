// CUDA implementation of stmeta::locality_attention. Reference:
// stmeta/ops/video/locality_attention.py, which has checked the arguments. allocate -> dispatch
// dtype -> launch.
#include "common/cuda_torch.cuh"
#include "cuda/video/locality_attention.cuh"

namespace {

using namespace stmeta;
using Two = std::tuple<Tensor, Tensor>;

locality_attention::Problem problem_of(const Tensor& qkv, bool exclude_self) {
  return locality_attention::make_problem(qkv.size(1), qkv.size(3), qkv.size(4),
                                          qkv.strides().data(), exclude_self);
}

Tensor dense_rows(const Tensor& qkv) {
  return qkv.stride(4) == 1 ? qkv : torch::stable::contiguous(qkv);
}

Two locality_attention_cuda(const Tensor& packed, const Tensor& temperature, bool exclude_self) {
  const DeviceScope scope(packed);
  const Tensor qkv = dense_rows(packed);
  const auto tau = contiguous_as(temperature, ScalarType::Float);
  const int64_t batch = qkv.size(0), tokens = qkv.size(1), heads = qkv.size(3);
  Tensor out = empty(qkv, {batch, tokens, heads, qkv.size(4)}, qkv.scalar_type());
  Tensor stats = empty(qkv, {batch, heads, tokens, 2}, ScalarType::Float);
  if (out.numel() == 0) return {out, stats};
  with_device_float(qkv.scalar_type(), "locality_attention: qkv", [&](auto number) {
    using T = decltype(number);
    locality_attention::forward(problem_of(qkv, exclude_self), batch, data<const T>(qkv),
                                data<const float>(tau), data<T>(out), data<float>(stats),
                                scope.stream);
  });
  return {out, stats};
}

Two locality_attention_backward_cuda(const Tensor& gradient, const Tensor& packed,
                                     const Tensor& temperature, const Tensor& output,
                                     const Tensor& statistics, bool exclude_self) {
  const DeviceScope scope(packed);
  const Tensor qkv = dense_rows(packed);
  const auto tau = contiguous_as(temperature, ScalarType::Float);
  const auto grad = contiguous_as(gradient, qkv.scalar_type());
  const Tensor out = torch::stable::contiguous(output);
  const Tensor stats = torch::stable::contiguous(statistics);
  const int64_t batch = qkv.size(0), tokens = qkv.size(1), heads = qkv.size(3);
  Tensor grad_qkv = empty(qkv, {batch, tokens, 3, heads, qkv.size(4)}, qkv.scalar_type());
  if (out.numel() == 0) return {grad_qkv, zeros(qkv, {heads}, ScalarType::Float)};
  const auto p = problem_of(qkv, exclude_self);
  Tensor grad_temperature = empty(qkv, {heads}, ScalarType::Float);
  const Tensor known =
      empty(qkv, {batch, heads, tokens, locality_attention::kKnown}, ScalarType::Float);
  const Tensor partial = empty(qkv, {batch, p.blocks, heads}, ScalarType::Float);
  with_device_float(qkv.scalar_type(), "locality_attention: qkv", [&](auto number) {
    using T = decltype(number);
    locality_attention::backward(p, batch, data<const T>(qkv), data<const float>(tau),
                                 data<const T>(out), data<const T>(grad), data<const float>(stats),
                                 data<float>(known), data<float>(partial), data<T>(grad_qkv),
                                 data<float>(grad_temperature), scope.stream);
  });
  return {grad_qkv, grad_temperature};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("locality_attention", TORCH_BOX(&locality_attention_cuda));
  m.impl("locality_attention_backward", TORCH_BOX(&locality_attention_backward_cuda));
}
