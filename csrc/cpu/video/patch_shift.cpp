// CPU implementation of stmeta::patch_shift. Reference: stmeta/ops/video/patch_shift.py
// check -> lay out the windows -> allocate -> parallel over windows of tokens
#include "cpu/video/patch_shift_call.h"

#define STMETA_KERNELS "cpu/video/patch_shift_kernels.h"
#include "common/each_isa.h"

namespace stmeta {

void make_tokens(const Call& call, const Forward& f, ScalarType video, ScalarType tokens,
                 int64_t begin, int64_t end) {
  const auto kernel = with_video_type(video, "patch_shift: video", [&](auto in) {
    return with_float_type(tokens, "patch_shift: dtype", [](auto out) {
      return STMETA_BY_ISA(forward<decltype(in), decltype(out)>);
    });
  });
  parallel(end - begin, call.work(), call.scratch(),
           [&](int64_t i, int64_t j, float* scratch) { kernel(f, begin + i, begin + j, scratch); });
}

namespace {

constexpr int64_t kStreamBytes = 16 << 20;  // below, the next op may find them in L3
constexpr int64_t kBlocks = 64;             // partial sums of the parameters' gradients

std::tuple<Tensor, Tensor, Tensor> patch_shift(Tensor video, std::optional<Tensor> ids,
                                               std::optional<Tensor> weight,
                                               std::optional<Tensor> bias, Ints patch, Ints shifts,
                                               Doubles scale, Doubles offset, double eps,
                                               ScalarType dtype) {
  const auto call = prepare(video, ids, weight, bias, patch, shifts, scale, offset);
  PatchShift& p = call->p;
  p.eps = static_cast<float>(eps);
  Tensor tokens = new_tensor(video, {p.batch, p.kept, p.features}, dtype);
  const Ints rows = p.norm ? Ints{p.batch, p.kept} : Ints{0};
  Tensor mean = new_tensor(video, rows, ScalarType::Float);
  Tensor rstd = new_tensor(video, rows, ScalarType::Float);
  const int64_t row_bytes = p.features * static_cast<int64_t>(tokens.element_size());
  const bool lines =
      row_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(tokens.data_ptr()) % 64 == 0;
  const bool stream = lines && p.batch * p.kept * row_bytes >= kStreamBytes;
  make_tokens(*call,
              {p, tokens.mutable_data_ptr(), 0, mean.mutable_data_ptr<float>(),
               rstd.mutable_data_ptr<float>(), false, stream},
              video.scalar_type(), dtype, 0, p.items);
  return {tokens, mean, rstd};
}

// Sums the blocks in their order: [blocks][2][padded] to two rows of F.
void sum_blocks(const Backward& f, float* weight, float* bias) {
  const PatchShift& p = f.problem;
  float* const outs[2] = {weight, bias};
  for (int which = 0; which < 2; ++which) {
    if (outs[which] == nullptr) continue;
    std::fill_n(outs[which], p.features, 0.0f);
    for (int64_t block = 0; block < f.blocks; ++block) {
      const float* row = f.partial + (2 * block + which) * p.padded;
      for (int64_t i = 0; i < p.features; ++i) outs[which][i] += row[i];
    }
  }
}

// Where each of N tokens lies among the K kept ones, or -1.
Ints invert_ids(const PatchShift& p) {
  Ints kept(p.batch * p.tokens, -1);
  for (int64_t i = 0; i < p.items; ++i) {
    int64_t& place = kept[i / p.kept * p.tokens + p.ids[i]];
    STD_TORCH_CHECK(place < 0, "patch_shift: ids_keep must have no value twice in a row, got ",
                    p.ids[i], " twice in row ", i / p.kept);
    place = i % p.kept;
  }
  return kept;
}

void run_video(Backward& f, const Call& call, const Tensor& video, ScalarType grad_type) {
  const PatchShift& p = f.problem;
  Ints kept;
  if (p.picked) {
    kept = invert_ids(p);
    f.kept = kept.data();
  }
  const auto kernel = with_float_type(video.scalar_type(), "patch_shift: video", [&](auto in) {
    return with_float_type(grad_type, "patch_shift: grad", [](auto grad) {
      return STMETA_BY_ISA(backward_video<decltype(in), decltype(grad)>);
    });
  });
  const int64_t numbers = p.size[kWidth] * p.channels;
  parallel(p.batch * p.size[kTime] * p.size[kHeight], numbers * p.shift_count,
           3 * p.plane + 2 * numbers + 16,
           [&](int64_t begin, int64_t end, float* scratch) { kernel(f, begin, end, scratch); });
}

std::tuple<Tensor, Tensor, Tensor> patch_shift_backward(
    Tensor grad, Tensor video, std::optional<Tensor> ids, std::optional<Tensor> weight, Tensor mean,
    Tensor rstd, Ints patch, Ints shifts, Doubles scale, Doubles offset, std::vector<bool> needs) {
  const auto call = prepare(video, ids, weight, std::nullopt, patch, shifts, scale, offset);
  const PatchShift& p = call->p;
  STD_TORCH_CHECK(grad.dim() == 3 && grad.size(0) == p.batch && grad.size(1) == p.kept &&
                      grad.size(2) == p.features,
                  "patch_shift: grad must be [B, K, F]");
  const int64_t rows = p.norm ? p.batch * p.kept : 0;
  STD_TORCH_CHECK(mean.numel() == rows && rstd.numel() == rows && needs.size() == 3,
                  "patch_shift: mean and rstd must be [B, K], needs [3]");
  mean = torch::stable::contiguous(mean);
  rstd = torch::stable::contiguous(rstd);
  const auto sizes = video.sizes();
  const Ints same(sizes.begin(), sizes.end());
  Tensor grad_video = new_tensor(video, needs[0] ? same : Ints{0}, video.scalar_type());
  Tensor grad_weight = new_tensor(video, {needs[1] ? p.features : 0}, ScalarType::Float);
  Tensor grad_bias = new_tensor(video, {needs[2] ? p.features : 0}, ScalarType::Float);

  Backward f = {};
  f.problem = p;
  f.grad = grad.const_data_ptr();
  for (int a = 0; a < 3; ++a) f.grad_stride[a] = grad.stride(a);
  std::vector<TokenTerms> terms(needs[0] ? p.batch * p.kept : 0,
                                TokenTerms{0.0f, 1.0f, 0.0f, 0.0f});
  f.terms = needs[0] ? terms.data() : nullptr;
  if (p.norm) {
    f.mean = mean.const_data_ptr<float>();
    f.rstd = rstd.const_data_ptr<float>();
    f.blocks = std::min(p.items, kBlocks);
    const Buffer<float> partial(f.blocks * 2 * p.padded);
    f.partial = partial.get();
    const auto kernel = with_video_type(video.scalar_type(), "patch_shift: video", [&](auto in) {
      return with_float_type(grad.scalar_type(), "patch_shift: grad", [](auto g) {
        return STMETA_BY_ISA(backward_tokens<decltype(in), decltype(g)>);
      });
    });
    parallel(f.blocks, call->work() * p.items / std::max<int64_t>(1, f.blocks), call->scratch(),
             [&](int64_t begin, int64_t end, float* scratch) { kernel(f, begin, end, scratch); });
    sum_blocks(f, needs[1] ? grad_weight.mutable_data_ptr<float>() : nullptr,
               needs[2] ? grad_bias.mutable_data_ptr<float>() : nullptr);
  }
  if (needs[0]) {
    f.grad_video = grad_video.mutable_data_ptr();
    run_video(f, *call, video, grad.scalar_type());
  }
  return {grad_video, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("patch_shift", TORCH_BOX(&patch_shift));
  m.impl("patch_shift_backward", TORCH_BOX(&patch_shift_backward));
}

}  // namespace stmeta
