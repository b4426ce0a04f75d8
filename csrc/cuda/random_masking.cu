// CUDA implementation of stmeta::random_masking. Reference: stmeta/ops/random_masking.py.
#include "../common/cuda_torch.cuh"
#include "random_masking.cuh"

namespace {

using namespace stmeta;
using Ints = std::vector<int64_t>;

std::tuple<Tensor, Tensor, Tensor, Tensor> random_masking_cuda(const Tensor& given, int64_t keep,
                                                               Ints units, Ints grid) {
  STD_TORCH_CHECK(units.size() == 2 && grid.size() == 2,
                  "random_masking: units and grid must have two numbers each");
  STD_TORCH_CHECK(given.dim() == 2 && given.size(1) == units[0] * units[1],
                  "random_masking: noise must be [B, units]");
  const DeviceScope scope(given);
  const auto noise = contiguous_as(given, ScalarType::Float);
  const auto p = random_masking::make_problem(given.size(0), keep, units.data(), grid.data());
  Tensor ids_keep = empty(given, {p.batch, p.kept}, ScalarType::Long);
  Tensor ids_restore = empty(given, {p.batch, p.tokens}, ScalarType::Long);
  Tensor ids_masked = empty(given, {p.batch, p.tokens - p.kept}, ScalarType::Long);
  Tensor mask = empty(given, {p.batch, p.tokens}, ScalarType::Bool);
  random_masking::forward(p, data<const float>(noise),
                          {data<int64_t>(ids_keep), data<int64_t>(ids_restore),
                           data<int64_t>(ids_masked), data<bool>(mask)},
                          scope.stream);
  return {ids_keep, ids_restore, ids_masked, mask};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CUDA, m) {
  m.impl("random_masking", TORCH_BOX(&random_masking_cuda));
}
