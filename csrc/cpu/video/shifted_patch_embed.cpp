// CPU implementation of stmeta::shifted_patch_embed. Reference:
// stmeta/ops/video/shifted_patch_embed.py
//
// Tokens are made some megabytes at a time, in one buffer that stays in cache, and torch's own
// matrix product takes them from there. The backward makes them again, without LayerNorm's affine
// part: with G = grad^T xhat every gradient is a cheap pass over G.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "cpu/video/patch_shift_call.h"

namespace stmeta {

// Rows of [B * K, D], and what belongs to them.
struct EmbedRows {
  void* rows;
  int64_t count, dim;
  const int64_t* ids;  // [B, K], or null: row n is token n % tokens
  int64_t tokens;
  const float* bias;  // [D], or null
  const float* pos;   // [N, D], or null
  float* sum;         // [D]
  float* grad_pos;    // [N, D], or null
  int64_t token(int64_t row) const { return ids == nullptr ? row % tokens : ids[row]; }
};

// The Linear and the LayerNorm before it.
struct EmbedNorm {
  int64_t dim, features;
  const void* weight;  // [D, F]
  float* product;      // [D, F]: grad^T xhat, then the gradient of weight
  const float *sum, *gamma, *beta;
  float *grad_gamma, *grad_beta;
};

}  // namespace stmeta

#define STMETA_KERNELS "cpu/video/shifted_patch_embed_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

constexpr int64_t kChunkBytes = 4 << 20;  // of tokens: stays in L3, hides the cost of a product

using Optional = std::optional<Tensor>;

const float* data(const Optional& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr<float>() : nullptr;
}

// A contiguous fp32 tensor of a given size on the CPU, or nothing.
Optional dense(const Optional& tensor, const Ints& size, const char* name) {
  if (!tensor.has_value()) return std::nullopt;
  const auto sizes = tensor->sizes();
  STD_TORCH_CHECK(Ints(sizes.begin(), sizes.end()) == size && tensor->is_cpu() &&
                      tensor->scalar_type() == ScalarType::Float,
                  "shifted_patch_embed: ", name, " has a wrong shape, dtype or device");
  return torch::stable::contiguous(*tensor);
}

// Token `item` begins at this row of [B * K].
int64_t first_row(const PatchShift& p, int64_t item) {
  return p.picked ? item : item / p.groups * p.grid[kWidth] + item % p.groups * p.group;
}

// Calls f(tokens [rows, F], first row, rows) for some tokens after the other.
template <typename F>
void for_chunks(const Call& call, const Tensor& video, ScalarType dtype, float* mean, float* rstd,
                bool known, const F& f) {
  const PatchShift& p = call.p;
  const int64_t number_bytes = dtype == ScalarType::Float ? 4 : 2;
  const int64_t token_bytes = std::max<int64_t>(1, p.features * number_bytes);
  const int64_t wanted = std::max<int64_t>(64, kChunkBytes / token_bytes);
  const int64_t items = std::max<int64_t>(1, wanted / p.group);
  const int64_t most = std::min(items * p.group, p.batch * p.kept);
  Tensor buffer = new_tensor(video, {most, p.features}, dtype);
  for (int64_t begin = 0; begin < p.items; begin += items) {
    const int64_t end = std::min(begin + items, p.items);
    const int64_t row = first_row(p, begin);
    const int64_t rows = (end == p.items ? p.batch * p.kept : first_row(p, end)) - row;
    make_tokens(call, {p, buffer.mutable_data_ptr(), row, mean, rstd, known, false},
                video.scalar_type(), dtype, begin, end);
    f(torch::stable::narrow(buffer, 0, 0, rows), row, rows);
  }
}

void multiply(Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

void check_weight(const Tensor& weight, const PatchShift& p, ScalarType dtype) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == p.features && weight.is_cpu() &&
                      weight.scalar_type() == dtype,
                  "shifted_patch_embed: weight must be [D, F] in the result's dtype on the CPU");
}

std::tuple<Tensor, Tensor, Tensor> shifted_patch_embed(Tensor video, Optional ids,
                                                       Optional norm_weight, Optional norm_bias,
                                                       Tensor weight, Optional bias, Optional pos,
                                                       Ints patch, Ints shifts, Doubles scale,
                                                       Doubles offset, double eps,
                                                       ScalarType dtype) {
  const auto call = prepare(video, ids, norm_weight, norm_bias, patch, shifts, scale, offset);
  PatchShift& p = call->p;
  p.eps = static_cast<float>(eps);
  check_weight(weight, p, dtype);
  const int64_t dim = weight.size(0);
  bias = dense(bias, {dim}, "bias");
  pos = dense(pos, {p.tokens, dim}, "pos");
  const Ints rows = p.norm ? Ints{p.batch, p.kept} : Ints{0};
  Tensor mean = new_tensor(video, rows, ScalarType::Float);
  Tensor rstd = new_tensor(video, rows, ScalarType::Float);
  Tensor out = new_tensor(video, {p.batch, p.kept, dim}, dtype);
  if (out.numel() == 0) return {out, mean, rstd};
  Tensor flat = torch::stable::view(out, {p.batch * p.kept, dim});
  Tensor columns = torch::stable::transpose(weight, 0, 1);
  EmbedRows e = {};
  e.rows = out.mutable_data_ptr();
  e.dim = dim;
  e.ids = p.picked ? p.ids : nullptr;
  e.tokens = p.tokens;
  e.bias = data(bias);
  e.pos = data(pos);
  const auto finish = with_float_type(dtype, "shifted_patch_embed: dtype",
                                      [](auto t) { return STMETA_BY_ISA(add_rows<decltype(t)>); });
  for_chunks(*call, video, dtype, mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>(),
             false, [&](const Tensor& tokens, int64_t row, int64_t count) {
               Tensor part = torch::stable::narrow(flat, 0, row, count);
               multiply(part, tokens, columns);
               if (e.bias == nullptr && e.pos == nullptr) return;
               parallel(count, dim, 0, [&](int64_t begin, int64_t end, float*) {
                 finish(e, row + begin, row + end);
               });
             });
  return {out, mean, rstd};
}

// product [D, F] = grad^T tokens, in fp32 over the chunks.
void accumulate(const Call& call, const Tensor& video, Tensor& grad, const Tensor& mean,
                const Tensor& rstd, float* product) {
  const PatchShift& p = call.p;
  const int64_t dim = grad.size(1);
  const ScalarType dtype = grad.scalar_type();
  std::fill_n(product, dim * p.features, 0.0f);
  Tensor part = new_tensor(grad, {dim, p.features}, dtype);
  const auto add = with_float_type(dtype, "shifted_patch_embed: grad",
                                   [](auto t) { return STMETA_BY_ISA(add_part<decltype(t)>); });
  for_chunks(call, video, dtype, mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>(),
             true, [&](const Tensor& tokens, int64_t row, int64_t count) {
               Tensor rows = torch::stable::narrow(grad, 0, row, count);
               multiply(part, torch::stable::transpose(rows, 0, 1), tokens);
               parallel(dim * p.features, 1, 0, [&](int64_t begin, int64_t end, float*) {
                 add(part.const_data_ptr(), product, begin, end);
               });
             });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> shifted_patch_embed_backward(
    Tensor grad, Tensor video, Optional ids, Optional norm_weight, Optional norm_bias,
    Tensor weight, Tensor mean, Tensor rstd, Ints patch, Ints shifts, Doubles scale, Doubles offset,
    int64_t tokens, std::vector<bool> needs) {
  // gamma = 1, beta = 0 make xhat.
  Optional ones, zeros;
  if (norm_weight.has_value()) {
    ones = torch::stable::new_empty(*norm_weight, {norm_weight->numel()}, ScalarType::Float);
    zeros = torch::stable::new_empty(*norm_weight, {norm_weight->numel()}, ScalarType::Float);
    std::fill_n(ones->mutable_data_ptr<float>(), ones->numel(), 1.0f);
    std::fill_n(zeros->mutable_data_ptr<float>(), zeros->numel(), 0.0f);
  }
  const auto call = prepare(video, ids, ones, zeros, patch, shifts, scale, offset);
  const PatchShift& p = call->p;
  check_weight(weight, p, grad.scalar_type());
  STD_TORCH_CHECK(needs.size() == 5 && tokens == p.tokens && grad.dim() == 3 &&
                      grad.size(0) == p.batch && grad.size(1) == p.kept &&
                      grad.size(2) == weight.size(0),
                  "shifted_patch_embed: grad must be [B, K, D], tokens N, needs [5]");
  const int64_t rows = p.norm ? p.batch * p.kept : 0;
  STD_TORCH_CHECK(mean.numel() == rows && rstd.numel() == rows,
                  "shifted_patch_embed: mean and rstd must be [B, K]");
  mean = torch::stable::contiguous(mean);
  rstd = torch::stable::contiguous(rstd);
  const int64_t dim = weight.size(0), features = p.features;
  norm_weight = dense(norm_weight, {features}, "norm_weight");
  norm_bias = dense(norm_bias, {features}, "norm_bias");
  weight = torch::stable::contiguous(weight);
  grad = torch::stable::view(torch::stable::contiguous(grad), {p.batch * p.kept, dim});
  const auto make = [&](const Ints& size, bool need) {
    Tensor out = new_tensor(grad, need ? size : Ints{0}, ScalarType::Float);
    std::fill_n(out.mutable_data_ptr<float>(), out.numel(), 0.0f);
    return out;
  };
  const bool norm = p.norm && (needs[0] || needs[1]), product = needs[2] || norm;
  Tensor grad_gamma = make({features}, norm), grad_beta = make({features}, norm);
  Tensor grad_weight = make({dim, features}, product);
  Tensor grad_bias = make({dim}, true), grad_pos = make({tokens, dim}, needs[4]);

  EmbedRows e = {};
  e.rows = grad.mutable_data_ptr();
  e.count = grad.size(0);
  e.dim = dim;
  e.ids = p.picked ? p.ids : nullptr;
  e.tokens = p.tokens;
  e.sum = grad_bias.mutable_data_ptr<float>();
  e.grad_pos = needs[4] ? grad_pos.mutable_data_ptr<float>() : nullptr;
  const auto sum = with_float_type(grad.scalar_type(), "shifted_patch_embed: grad",
                                   [](auto t) { return STMETA_BY_ISA(sum_rows<decltype(t)>); });
  constexpr int64_t kColumns = 16;
  parallel((dim + kColumns - 1) / kColumns, e.count * kColumns, dim,
           [&](int64_t begin, int64_t end, float* scratch) {
             sum(e, begin * kColumns, std::min(end * kColumns, dim), scratch);
           });
  if (product && e.count > 0) {
    accumulate(*call, video, grad, mean, rstd, grad_weight.mutable_data_ptr<float>());
  }
  if (p.norm && product) {
    Buffer<float> unused(2 * features);
    const EmbedNorm n = {dim,
                         features,
                         weight.const_data_ptr(),
                         grad_weight.mutable_data_ptr<float>(),
                         e.sum,
                         data(norm_weight),
                         data(norm_bias),
                         norm ? grad_gamma.mutable_data_ptr<float>() : unused.get(),
                         norm ? grad_beta.mutable_data_ptr<float>() : unused.get() + features};
    const auto finish =
        with_float_type(weight.scalar_type(), "shifted_patch_embed: weight",
                        [](auto t) { return STMETA_BY_ISA(finish_columns<decltype(t)>); });
    parallel((features + kColumns - 1) / kColumns, dim * kColumns, 2 * features,
             [&](int64_t begin, int64_t end, float* scratch) {
               finish(n, begin * kColumns, std::min(end * kColumns, features), scratch);
             });
  }
  return {needs[0] ? grad_gamma : make({}, false), needs[1] ? grad_beta : make({}, false),
          needs[2] ? grad_weight : make({}, false), needs[3] ? grad_bias : make({}, false),
          grad_pos};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("shifted_patch_embed", TORCH_BOX(&shifted_patch_embed));
  m.impl("shifted_patch_embed_backward", TORCH_BOX(&shifted_patch_embed_backward));
}

}  // namespace stmeta
