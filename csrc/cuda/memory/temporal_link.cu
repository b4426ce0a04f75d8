// CUDA implementation of stmeta::temporal_link. Reference: stmeta/ops/memory/temporal_link.py,
// which has checked the arguments. allocate -> dispatch dtype -> launch; the kernels are in
// temporal_link.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/memory/memory_torch.cuh"
#include "cuda/memory/temporal_link.cuh"

namespace {

using namespace stmeta;
using torch::stable::contiguous;

template <typename T>
auto links_of(const temporal_link::Shape& s, const Tensor& x) {
  return temporal_link::make_links(s, data<const T>(x), x.strides().data());
}

std::tuple<Tensor, Tensor> temporal_link_cuda(const Tensor& link, const Tensor& precedence,
                                              const Tensor& write_weight) {
  const DeviceScope scope(link);
  const Tensor precedences = contiguous(precedence), weights = contiguous(write_weight);
  const auto s = temporal_link::make_shape(link.size(0), link.size(1), link.size(2), 0);
  Tensor link_out = memory::new_like(link), precedence_out = memory::new_like(precedence);
  with_device_float(link.scalar_type(), "temporal_link: link", [&](auto zero) {
    using T = decltype(zero);
    const auto v =
        temporal_link::make_vectors(s, data<const T>(weights), data<const T>(precedences));
    temporal_link::forward(s, links_of<T>(s, link), v, data<T>(link_out), data<T>(precedence_out),
                           scope.stream);
  });
  return {link_out, precedence_out};
}

std::tuple<Tensor, Tensor, Tensor> temporal_link_backward_cuda(const Tensor& grad_link,
                                                               const Tensor& grad_precedence,
                                                               const Tensor& link,
                                                               const Tensor& precedence,
                                                               const Tensor& write_weight) {
  const DeviceScope scope(link);
  const Tensor precedences = contiguous(precedence), weights = contiguous(write_weight);
  const Tensor grads = contiguous(grad_precedence);
  const auto s = temporal_link::make_shape(link.size(0), link.size(1), link.size(2), 0);
  Tensor d_link = memory::new_like(link), d_precedence = memory::new_like(precedence);
  Tensor d_weight = memory::new_like(write_weight);
  const Tensor scratch = memory::scratch_like(link, temporal_link::scratch_size(s));
  with_device_float(link.scalar_type(), "temporal_link: link", [&](auto zero) {
    using T = decltype(zero);
    const auto v =
        temporal_link::make_vectors(s, data<const T>(weights), data<const T>(precedences));
    const temporal_link::Grads<T> g{links_of<T>(s, grad_link), data<const T>(grads),
                                    data<T>(d_link), data<T>(d_precedence), data<T>(d_weight)};
    temporal_link::backward(s, links_of<T>(s, link), v, g, data<float>(scratch), scope.stream);
  });
  return {d_link, d_precedence, d_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("temporal_link", TORCH_BOX(&temporal_link_cuda));
  m.impl("temporal_link_backward", TORCH_BOX(&temporal_link_backward_cuda));
}
