// CPU implementation of stmeta::random_masking. Reference: stmeta/ops/video/random_masking.py
// check -> allocate -> parallel over the rows of the batch
#include "common/cpu_host.h"

namespace stmeta {

struct Masks {
  const float* noise;  // [B, units]
  int64_t units, keep;
  int64_t frames, places;         // T, P
  int64_t frame_step, unit_step;  // from a token's unit to that of the next frame, the next place
  int64_t kept;                   // K
  int64_t *ids_keep, *ids_restore, *ids_masked;
  uint8_t* mask;
};

}  // namespace stmeta

#define STMETA_KERNELS "cpu/video/random_masking_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

using Ints = std::vector<int64_t>;

void check(const Tensor& noise, int64_t keep, const Ints& units, const Ints& grid) {
  STD_TORCH_CHECK(units.size() == 2 && grid.size() == 2 && grid[0] >= 0 && grid[1] >= 0,
                  "random_masking: units and grid must be [time, space]");
  check_product("random_masking: grid", {grid[0], grid[1]});
  for (int a = 0; a < 2; ++a) {
    STD_TORCH_CHECK(units[a] == 1 || units[a] == grid[a], "random_masking: units must be 1 or ",
                    grid[a], " on axis ", a, ", as grid is, got ", units[a]);
  }
  STD_TORCH_CHECK(noise.dim() == 2 && noise.size(1) == units[0] * units[1] && noise.is_cpu() &&
                      noise.scalar_type() == ScalarType::Float,
                  "random_masking: noise must be [B, ", units[0] * units[1],
                  "] float32 on the CPU");
  STD_TORCH_CHECK(keep >= 0 && keep <= noise.size(1),
                  "random_masking: keep must be in [0, units] = [0, ", noise.size(1), "], got ",
                  keep);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> random_masking(Tensor noise, int64_t keep, Ints units,
                                                          Ints grid) {
  check(noise, keep, units, grid);
  noise = torch::stable::contiguous(noise);
  const int64_t batch = noise.size(0), tokens = grid[0] * grid[1];
  Masks f = {};
  f.noise = noise.const_data_ptr<float>();
  f.units = noise.size(1);
  f.keep = keep;
  f.frames = grid[0];
  f.places = grid[1];
  f.unit_step = units[1] > 1 ? 1 : 0;
  f.frame_step = units[0] > 1 ? units[1] : 0;
  f.kept = keep * tokens / std::max<int64_t>(1, f.units);
  Tensor ids_keep = new_tensor(noise, {batch, f.kept}, ScalarType::Long);
  Tensor ids_restore = new_tensor(noise, {batch, tokens}, ScalarType::Long);
  Tensor ids_masked = new_tensor(noise, {batch, tokens - f.kept}, ScalarType::Long);
  Tensor mask = new_tensor(noise, {batch, tokens}, ScalarType::Bool);
  f.ids_keep = ids_keep.mutable_data_ptr<int64_t>();
  f.ids_restore = ids_restore.mutable_data_ptr<int64_t>();
  f.ids_masked = ids_masked.mutable_data_ptr<int64_t>();
  f.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
  const auto kernel = STMETA_BY_ISA(draw_rows);
  parallel(batch, 16 * (tokens + f.units), f.units + f.units / 4 + 1,
           [&](int64_t begin, int64_t end, float* scratch) { kernel(f, begin, end, scratch); });
  return {ids_keep, ids_restore, ids_masked, mask};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) { m.impl("random_masking", TORCH_BOX(&random_masking)); }

}  // namespace stmeta
