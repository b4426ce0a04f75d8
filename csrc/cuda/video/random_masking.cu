// CUDA implementation of stmeta::random_masking. Reference: stmeta/ops/video/random_masking.py,
// which has checked the arguments. allocate -> launch; the kernel is in random_masking.cuh.
#include "common/cuda_torch.cuh"
#include "cuda/video/random_masking.cuh"

namespace {

using namespace stmeta;
using Ints = std::vector<int64_t>;

std::tuple<Tensor, Tensor, Tensor, Tensor> random_masking_cuda(const Tensor& noise, int64_t keep,
                                                               Ints units, Ints grid) {
  const DeviceScope scope(noise);
  const auto numbers = contiguous_as(noise, ScalarType::Float);
  const auto p = random_masking::make_problem(noise.size(0), keep, units.data(), grid.data());
  const int64_t batch = p.batch, tokens = p.tokens, kept = p.kept();
  Tensor ids_keep = empty(noise, {batch, kept}, ScalarType::Long);
  Tensor ids_restore = empty(noise, {batch, tokens}, ScalarType::Long);
  Tensor ids_masked = empty(noise, {batch, tokens - kept}, ScalarType::Long);
  Tensor mask = empty(noise, {batch, tokens}, ScalarType::Bool);
  const Tensor places = empty(noise, {batch, p.units}, ScalarType::Int);
  random_masking::forward(p, data<const float>(numbers), data<int>(places), data<int64_t>(ids_keep),
                          data<int64_t>(ids_restore), data<int64_t>(ids_masked),
                          data<uint8_t>(mask), scope.stream);
  return {ids_keep, ids_restore, ids_masked, mask};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("random_masking", TORCH_BOX(&random_masking_cuda));
}
