// CPU implementation of stmeta::restore_tokens. Reference: stmeta/ops/video/restore_tokens.py
// forward: parallel over rows. Backward: parallel over tiles of tokens with the batch inside, so
// that one pass over grad gives all three gradients, and no two threads add to the same number.
#include "cpu/video/token_rows.h"

#define STMETA_KERNELS "cpu/video/token_rows_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

constexpr int64_t kSumKib = 8;

using Ints = std::vector<int64_t>;

void check_rows(const Tensor& rows, const Tensor& ids, const char* what) {
  STD_TORCH_CHECK(rows.dim() == 3 && rows.is_cpu(), "restore_tokens: ", what,
                  " must have 3 axes and lie on the CPU");
  STD_TORCH_CHECK(ids.dim() == 2 && ids.size(0) == rows.size(0) && ids.is_cpu() &&
                      ids.scalar_type() == ScalarType::Long,
                  "restore_tokens: ids_restore must be [B, N], int64 on the CPU");
}

// The mask token as a row of `dtype`.
template <typename T>
Buffer<T> take_mask_token(const Tensor& token, int64_t dim) {
  Buffer<T> out(dim);
  const int64_t stride = token.stride(0);
  with_float_type(token.scalar_type(), "restore_tokens: mask_token", [&](auto zero) {
    const auto* data = static_cast<const decltype(zero)*>(token.const_data_ptr());
    for (int64_t d = 0; d < dim; ++d) from_float(to_float(data[d * stride]), &out[d]);
  });
  return out;
}

Tensor restore_tokens(Tensor latent, Tensor mask_token, std::optional<Tensor> pos,
                      Tensor ids_restore) {
  check_rows(latent, ids_restore, "latent");
  const int64_t batch = latent.size(0), dim = latent.size(2), tokens = ids_restore.size(1);
  STD_TORCH_CHECK(mask_token.dim() == 1 && mask_token.size(0) == dim && mask_token.is_cpu(),
                  "restore_tokens: mask_token must be [D] = [", dim, "] on the CPU");
  STD_TORCH_CHECK(!pos.has_value() || pos->size(0) == tokens,
                  "restore_tokens: pos must have N = ", tokens, " rows");
  latent = with_dense_rows(latent);
  ids_restore = torch::stable::contiguous(ids_restore);
  const ScalarType dtype = latent.scalar_type();
  Tensor out = new_tensor(latent, {batch, tokens, dim}, dtype);
  TokenRows f = {};
  f.source = latent.const_data_ptr();
  f.source_stride[0] = latent.stride(0);
  f.source_stride[1] = latent.stride(1);
  f.ids = ids_restore.const_data_ptr<int64_t>();
  check_ids("restore_tokens: ids_restore", f.ids, batch * tokens, tokens);
  f.kept = latent.size(1);
  f.out = out.mutable_data_ptr();
  f.rows = tokens;
  f.dim = dim;
  with_float_type(dtype, "restore_tokens: latent", [&](auto t) {
    const auto fill = take_mask_token<decltype(t)>(mask_token, dim);
    f.fill = fill.get();
    place_all_rows(f, "restore_tokens", batch, dtype, pos);
  });
  return out;
}

// Sums the tiles in their order: [tiles][D] to [D].
void sum_partials(const double* partial, int64_t tiles, int64_t dim, float* out) {
  std::vector<double> total(dim);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t d = 0; d < dim; ++d) total[d] += partial[tile * dim + d];
  }
  for (int64_t d = 0; d < dim; ++d) out[d] = static_cast<float>(total[d]);
}

// Each row of the latents must have been written, and no row twice.
void check_written(const TokenSums& f, int64_t tiles) {
  int64_t written = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) written += f.kept_rows[tile];
  for (int64_t i = 0; i < f.batch * f.kept; ++i) {
    STD_TORCH_CHECK(f.seen[i] != 0,
                    "restore_tokens: ids_restore must have each value below K = ", f.kept,
                    " once a row, got no ", i % f.kept, " in row ", i / f.kept);
  }
  STD_TORCH_CHECK(written == f.batch * f.kept,
                  "restore_tokens: ids_restore must have each value below K = ", f.kept,
                  " once a row, got some twice");
}

std::tuple<Tensor, Tensor, Tensor> restore_tokens_backward(Tensor grad, Tensor ids_restore,
                                                           int64_t keep, std::vector<bool> needs) {
  check_rows(grad, ids_restore, "grad");
  STD_TORCH_CHECK(needs.size() == 3 && grad.size(1) == ids_restore.size(1),
                  "restore_tokens: grad must be [B, N, D], needs [latent, mask_token, pos]");
  STD_TORCH_CHECK(keep >= 0 && (keep <= grad.size(1) || grad.size(0) == 0),
                  "restore_tokens: keep must be in [0, N] = [0, ", grad.size(1), "], got ", keep);
  grad = with_dense_rows(grad);
  ids_restore = torch::stable::contiguous(ids_restore);
  const ScalarType dtype = grad.scalar_type();
  TokenSums f = {};
  f.grad = grad.const_data_ptr();
  f.grad_stride[0] = grad.stride(0);
  f.grad_stride[1] = grad.stride(1);
  f.ids = ids_restore.const_data_ptr<int64_t>();
  f.batch = grad.size(0);
  f.tokens = grad.size(1);
  f.dim = grad.size(2);
  f.kept = keep;
  f.tile = tile_rows(f.dim, kSumKib);
  check_ids("restore_tokens: ids_restore", f.ids, f.batch * f.tokens, f.tokens);
  const int64_t tiles = (f.tokens + f.tile - 1) / f.tile;
  Tensor latent = new_tensor(grad, needs[0] ? Ints{f.batch, keep, f.dim} : Ints{0}, dtype);
  Tensor mask = new_tensor(grad, {needs[1] ? f.dim : 0}, ScalarType::Float);
  Tensor pos = new_tensor(grad, needs[2] ? Ints{f.tokens, f.dim} : Ints{0}, ScalarType::Float);
  std::vector<uint8_t> seen(needs[0] ? f.batch * keep : 0);
  std::vector<int64_t> kept_rows(tiles);
  const Buffer<double> partial(needs[1] ? tiles * f.dim : 0);
  f.seen = seen.data();
  f.kept_rows = kept_rows.data();
  f.mask = needs[1] ? partial.get() : nullptr;
  f.latent = needs[0] ? latent.mutable_data_ptr() : nullptr;
  f.pos = needs[2] ? pos.mutable_data_ptr<float>() : nullptr;
  const auto kernel = with_float_type(dtype, "restore_tokens: grad",
                                      [](auto t) { return STMETA_BY_ISA(sum_tiles<decltype(t)>); });
  if (f.dim == 0) return {latent, mask, pos};
  parallel(tiles, f.batch * f.tile * f.dim, (1 + f.tile) * f.dim,
           [&](int64_t begin, int64_t end, float* scratch) { kernel(f, begin, end, scratch); });
  if (needs[0]) check_written(f, tiles);
  if (needs[1]) sum_partials(f.mask, tiles, f.dim, mask.mutable_data_ptr<float>());
  return {latent, mask, pos};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("restore_tokens", TORCH_BOX(&restore_tokens));
  m.impl("restore_tokens_backward", TORCH_BOX(&restore_tokens_backward));
}

}  // namespace stmeta
