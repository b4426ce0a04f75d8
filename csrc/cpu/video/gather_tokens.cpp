// CPU implementation of stmeta::gather_tokens. Reference: stmeta/ops/video/gather_tokens.py
// check -> allocate -> parallel over rows; the backward gathers too, through ids_restore
#include "cpu/video/token_rows.h"

#define STMETA_KERNELS "cpu/video/token_rows_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

constexpr int64_t kStreamBytes = 16 << 20;  // below, the next op may find them in L3
constexpr int64_t kPlaceKib = 16, kSumKib = 8;

// f's kernel for rows of `row` and positions of `pos`.
auto place_kernel(ScalarType row, ScalarType pos, const char* op) {
  return with_float_type(row, op, [&](auto t) {
    using T = decltype(t);
    return pos == ScalarType::Float ? STMETA_BY_ISA(place_rows<T, float>)
                                    : STMETA_BY_ISA(place_rows<T, T>);
  });
}

}  // namespace

void place_all_rows(TokenRows& f, const char* op, int64_t batch, ScalarType dtype,
                    const std::optional<Tensor>& pos) {
  const int64_t rows = batch * f.rows;
  if (rows == 0 || f.dim == 0) return;
  Tensor positions;  // outlives the kernel
  ScalarType pos_type = ScalarType::Float;
  if (pos.has_value()) {
    pos_type = pos->scalar_type();
    STD_TORCH_CHECK(pos->dim() == 2 && pos->size(1) == f.dim && pos->is_cpu() &&
                        (pos_type == ScalarType::Float || pos_type == dtype),
                    op, ": pos must be [N, D] on the CPU, float32 or of the tokens' dtype");
    positions = with_dense_rows(*pos);
    f.pos = positions.const_data_ptr();
    f.pos_stride = positions.stride(0);
  }
  f.tile = f.pos == nullptr || f.pos_by_id ? f.rows : tile_rows(f.dim, kPlaceKib);
  const int64_t row_bytes = f.dim * (dtype == ScalarType::Float ? 4 : 2);
  const bool lines = row_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(f.out) % 64 == 0;
  f.stream = lines && rows * row_bytes >= kStreamBytes;
  const auto kernel = place_kernel(dtype, pos_type, op);
  parallel(rows, f.dim, 0, [&](int64_t begin, int64_t end, float*) { kernel(f, begin, end); });
}

namespace {

void check_rows(const Tensor& rows, const Tensor& ids, const char* what) {
  STD_TORCH_CHECK(rows.dim() == 3 && rows.is_cpu(), "gather_tokens: ", what,
                  " must have 3 axes and lie on the CPU");
  STD_TORCH_CHECK(ids.dim() == 2 && ids.size(0) == rows.size(0) && ids.is_cpu() &&
                      ids.scalar_type() == ScalarType::Long,
                  "gather_tokens: ids must be [B, K] or [B, N], int64 on the CPU");
}

Tensor gather_tokens(Tensor x, std::optional<Tensor> pos, Tensor ids_keep,
                     std::optional<Tensor> /*ids_restore*/) {
  check_rows(x, ids_keep, "x");
  const int64_t batch = x.size(0), tokens = x.size(1), dim = x.size(2), kept = ids_keep.size(1);
  STD_TORCH_CHECK(!pos.has_value() || pos->size(0) == tokens,
                  "gather_tokens: pos must have N = ", tokens, " rows");
  x = with_dense_rows(x);
  ids_keep = torch::stable::contiguous(ids_keep);
  Tensor out = new_tensor(x, {batch, kept, dim}, x.scalar_type());
  TokenRows f = {};
  f.source = x.const_data_ptr();
  f.source_stride[0] = x.stride(0);
  f.source_stride[1] = x.stride(1);
  f.ids = ids_keep.const_data_ptr<int64_t>();
  check_ids("gather_tokens: ids_keep", f.ids, batch * kept, tokens);
  f.kept = tokens;
  f.pos_by_id = true;
  f.out = out.mutable_data_ptr();
  f.rows = kept;
  f.dim = dim;
  place_all_rows(f, "gather_tokens", batch, x.scalar_type(), pos);
  return out;
}

std::tuple<Tensor, Tensor> gather_tokens_backward(Tensor grad, Tensor ids_keep, Tensor ids_restore,
                                                  std::vector<bool> needs) {
  check_rows(grad, ids_restore, "grad");
  STD_TORCH_CHECK(needs.size() == 2, "gather_tokens: needs must be [x, pos]");
  const int64_t batch = grad.size(0), kept = grad.size(1), dim = grad.size(2);
  const int64_t tokens = ids_restore.size(1);
  const ScalarType dtype = grad.scalar_type();
  grad = with_dense_rows(grad);
  ids_restore = torch::stable::contiguous(ids_restore);
  const int64_t* ids = ids_restore.const_data_ptr<int64_t>();
  check_ids("gather_tokens: ids_restore", ids, batch * tokens, std::max(tokens, kept + 1));
  using Ints = std::vector<int64_t>;
  Tensor grad_x = new_tensor(grad, needs[0] ? Ints{batch, tokens, dim} : Ints{0}, dtype);
  Tensor grad_pos = new_tensor(grad, needs[1] ? Ints{tokens, dim} : Ints{0}, ScalarType::Float);
  if (needs[0]) {
    const Buffer<float> zeros(dim);
    std::fill_n(zeros.get(), dim, 0.0f);
    TokenRows f = {};
    f.source = grad.const_data_ptr();
    f.source_stride[0] = grad.stride(0);
    f.source_stride[1] = grad.stride(1);
    f.ids = ids;
    f.kept = kept;
    f.fill = zeros.get();
    f.out = grad_x.mutable_data_ptr();
    f.rows = tokens;
    f.dim = dim;
    place_all_rows(f, "gather_tokens", batch, dtype, std::nullopt);
  }
  if (needs[1] && dim > 0) {
    TokenSums f = {};
    f.grad = grad.const_data_ptr();
    f.grad_stride[0] = grad.stride(0);
    f.grad_stride[1] = grad.stride(1);
    f.ids = ids;
    f.batch = batch;
    f.tokens = tokens;
    f.kept = kept;
    f.dim = dim;
    f.tile = tile_rows(dim, kSumKib);
    f.pos = grad_pos.mutable_data_ptr<float>();
    const auto kernel = with_float_type(dtype, "gather_tokens: grad", [](auto t) {
      return STMETA_BY_ISA(sum_gathered<decltype(t)>);
    });
    const int64_t tiles = (tokens + f.tile - 1) / f.tile;
    parallel(tiles, batch * kept * dim / std::max<int64_t>(1, tiles), 0,
             [&](int64_t begin, int64_t end, float*) { kernel(f, begin, end); });
  }
  return {grad_x, grad_pos};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("gather_tokens", TORCH_BOX(&gather_tokens));
  m.impl("gather_tokens_backward", TORCH_BOX(&gather_tokens_backward));
}

}  // namespace stmeta
