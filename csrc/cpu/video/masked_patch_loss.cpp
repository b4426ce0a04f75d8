// CPU implementation of stmeta::masked_patch_loss. Reference: stmeta/ops/video/masked_patch_loss.py
// check -> lay out the tokens -> allocate -> parallel over blocks of rows; the backward makes the
// targets again from the bytes of the video
#include "common/cpu_host.h"

namespace stmeta {

enum class PixelLayout {
  interleaved,  // memory [.., W, C]: a run of p pixels is p * C numbers
  planar,       // memory [.., W]: a run of p pixels is p numbers of one channel
  strided,
};

constexpr int64_t kBlockRows = 64;  // rows are summed in such blocks, whatever the threads do

struct PatchLoss {
  const void* video;  // [B, C, T, H, W] through `stride`, in elements
  int64_t stride[5];
  PixelLayout layout;
  int64_t channels, tubelet, patch;
  int64_t last, end;       // a token's last number from its corner; the video's, plus one
  const int64_t* corners;  // [N]: a token's first number, in its clip
  const float* scale;      // [padded], per feature, then zeros; planar: [C]
  const float* offset;
  const void* pred;  // [B, rows, F] through `pred_stride`, in elements; F is dense
  int64_t pred_stride[2];
  const int64_t* ids;               // [B, rows], or null: row n is token n
  const uint8_t* mask;              // [B, rows], or null: all rows count
  int64_t count, rows;              // B * rows, rows of one batch element
  int64_t features, padded, plane;  // F, rounded up; floats of a plane: t * p * p, rounded up
  bool norm;
  float eps;
  int64_t scratch;                       // floats of a packed token, of planes, or of values
  float *mean, *rstd;                    // [B, rows], of the forward
  const float *known_mean, *known_rstd;  // of the backward
  double* partial;                       // [blocks]: sums of squared errors
  void* grad;                            // [B, rows, F]
  float factor;                          // of pred - target in the gradient
  bool stream;                           // write around the caches
};

}  // namespace stmeta

#define STMETA_KERNELS "cpu/video/masked_patch_loss_kernels.h"
#include "common/each_isa.h"

namespace stmeta {
namespace {

constexpr int64_t kStreamBytes = 16 << 20;  // below, the next op may find them in L3

using Ints = std::vector<int64_t>;
using Doubles = std::vector<double>;
using Optional = std::optional<Tensor>;

// The numbers of a call, and the memory they point to.
struct LossCall {
  PatchLoss p = {};
  Tensor pred, ids, mask;
  Ints corners;
  std::vector<float> scale, offset;
  int64_t clips = 0, tokens = 0;

  int64_t blocks() const { return (p.count + kBlockRows - 1) / kBlockRows; }
};

void take_video(LossCall& call, const Tensor& video, const Ints& patch, const Doubles& scale,
                const Doubles& offset) {
  STD_TORCH_CHECK(video.dim() == 5 && video.is_cpu(),
                  "masked_patch_loss: video must be [B, C, T, H, W] on the CPU");
  const size_t channels = static_cast<size_t>(video.size(1));
  STD_TORCH_CHECK(scale.size() == channels && offset.size() == channels,
                  "masked_patch_loss: scale and offset must have C = ", channels, " numbers");
  STD_TORCH_CHECK(patch.size() == 2 && patch[0] > 0 && patch[1] > 0,
                  "masked_patch_loss: patch must be [t, p], both positive");
  check_product("masked_patch_loss: patch", {patch[0], patch[1], patch[1], video.size(1)});
  PatchLoss& p = call.p;
  p.video = video.const_data_ptr();
  p.channels = video.size(1);
  p.tubelet = patch[0];
  p.patch = patch[1];
  const int64_t steps[3] = {p.tubelet, p.patch, p.patch};
  int64_t grid[3];
  p.end = 1;
  for (int a = 0; a < 5; ++a) {
    p.stride[a] = video.stride(a);
    p.end += std::max<int64_t>(0, video.size(a) - 1) * p.stride[a];
  }
  p.last = std::max<int64_t>(0, p.channels - 1) * p.stride[1];
  for (int a = 0; a < 3; ++a) {
    STD_TORCH_CHECK(video.size(2 + a) % steps[a] == 0,
                    "masked_patch_loss: [T, H, W] must be multiples of [t, p, p]");
    grid[a] = video.size(2 + a) / steps[a];
    p.last += (steps[a] - 1) * p.stride[2 + a];
  }
  check_product("masked_patch_loss: video", {grid[0], grid[1], grid[2], 1 << 16});  // a table
  for (int64_t t = 0; t < grid[0]; ++t) {
    for (int64_t y = 0; y < grid[1]; ++y) {
      for (int64_t x = 0; x < grid[2]; ++x) {
        call.corners.push_back(t * p.tubelet * p.stride[2] + y * p.patch * p.stride[3] +
                               x * p.patch * p.stride[4]);
      }
    }
  }
  call.clips = video.size(0);
  call.tokens = grid[0] * grid[1] * grid[2];
  p.corners = call.corners.data();
  p.layout = p.stride[4] == p.channels && (p.stride[1] == 1 || p.channels == 1)
                 ? PixelLayout::interleaved
             : p.stride[4] == 1 ? PixelLayout::planar
                                : PixelLayout::strided;
  const int64_t pixels = p.tubelet * p.patch * p.patch;
  p.features = pixels * p.channels;
  p.padded = round_up(p.features, 64);
  p.plane = round_up(pixels, 16);
  p.scratch = std::max(p.padded, p.channels * p.plane) + 16;  // and the tail of a copy
  call.scale.assign(scale.begin(), scale.end());
  call.offset.assign(offset.begin(), offset.end());
  if (p.layout != PixelLayout::planar) {
    call.scale.resize(p.padded);
    call.offset.resize(p.padded);
    for (int64_t i = p.channels; i < p.features; ++i) {
      call.scale[i] = call.scale[i - p.channels];
      call.offset[i] = call.offset[i - p.channels];
    }
  }
  p.scale = call.scale.data();
  p.offset = call.offset.data();
}

void take_rows(LossCall& call, const Tensor& pred, const Optional& ids, const Optional& mask) {
  PatchLoss& p = call.p;
  STD_TORCH_CHECK(ids.has_value() != mask.has_value(),
                  "masked_patch_loss: exactly one of ids and mask must be given");
  STD_TORCH_CHECK(
      pred.dim() == 3 && pred.size(0) == call.clips && pred.size(2) == p.features && pred.is_cpu(),
      "masked_patch_loss: pred must be [B, rows, F] = [", call.clips, ", rows, ", p.features,
      "] on the CPU");
  call.pred = with_dense_rows(pred);
  p.pred = call.pred.const_data_ptr();
  p.pred_stride[0] = call.pred.stride(0);
  p.pred_stride[1] = call.pred.stride(1);
  p.rows = pred.size(1);
  p.count = call.clips * p.rows;
  const Tensor& which = ids.has_value() ? *ids : *mask;
  STD_TORCH_CHECK(
      which.dim() == 2 && which.size(0) == call.clips && which.size(1) == p.rows &&
          which.is_cpu() && (ids.has_value() || p.rows == call.tokens) &&
          which.scalar_type() == (ids.has_value() ? ScalarType::Long : ScalarType::Bool),
      "masked_patch_loss: ids must be [B, rows] int64, mask [B, N] bool, on the CPU");
  if (ids.has_value()) {
    call.ids = torch::stable::contiguous(which);
    p.ids = call.ids.const_data_ptr<int64_t>();
    check_ids("masked_patch_loss: ids", p.ids, p.count, call.tokens);
  } else {
    call.mask = torch::stable::contiguous(which);
    p.mask = static_cast<const uint8_t*>(call.mask.const_data_ptr());
  }
}

std::unique_ptr<LossCall> prepare_loss(const Tensor& pred, const Tensor& video, const Optional& ids,
                                       const Optional& mask, const Ints& patch,
                                       const Doubles& scale, const Doubles& offset) {
  auto call = std::make_unique<LossCall>();
  take_video(*call, video, patch, scale, offset);
  take_rows(*call, pred, ids, mask);
  return call;
}

// Runs over all blocks the kernel that `pick` takes for the types of video and pred.
template <typename F>
void run_blocks(const LossCall& call, const Tensor& video, const F& pick) {
  if (call.p.count == 0 || call.p.features == 0) return;
  const auto kernel =
      with_video_type(video.scalar_type(), "masked_patch_loss: video", [&](auto in) {
        return with_float_type(call.pred.scalar_type(), "masked_patch_loss: pred",
                               [&](auto out) { return pick(in, out); });
      });
  parallel(
      call.blocks(), kBlockRows * call.p.features, 4 * call.p.scratch,
      [&](int64_t begin, int64_t end, float* scratch) { kernel(call.p, begin, end, scratch); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> masked_patch_loss(Tensor pred, Tensor video,
                                                             Optional ids, Optional mask,
                                                             Ints patch, Doubles scale,
                                                             Doubles offset, bool norm_pix,
                                                             double eps) {
  const auto call = prepare_loss(pred, video, ids, mask, patch, scale, offset);
  PatchLoss& p = call->p;
  STD_TORCH_CHECK(!norm_pix || p.features != 1,
                  "masked_patch_loss: norm_pix needs F of at least 2 for a variance, got 1");
  p.norm = norm_pix;
  p.eps = static_cast<float>(eps);
  Tensor mean = new_tensor(pred, {call->clips, p.rows}, ScalarType::Float);
  Tensor rstd = new_tensor(pred, {call->clips, p.rows}, ScalarType::Float);
  p.mean = mean.mutable_data_ptr<float>();
  p.rstd = rstd.mutable_data_ptr<float>();
  std::fill_n(p.mean, p.count, 0.0f);
  std::fill_n(p.rstd, p.count, 1.0f);
  std::vector<double> partial(call->blocks());
  p.partial = partial.data();
  run_blocks(*call, video, [](auto in, auto out) {
    return STMETA_BY_ISA(sum_errors<decltype(in), decltype(out)>);
  });
  double total = 0.0;
  for (const double block : partial) total += block;
  int64_t counting = p.count;
  if (p.mask != nullptr) counting -= std::count(p.mask, p.mask + p.count, uint8_t{0});
  const double numbers = static_cast<double>(counting) * static_cast<double>(p.features);
  const double share = numbers > 0.0 ? 1.0 / numbers : 0.0;
  Tensor loss = new_tensor(pred, {}, ScalarType::Float);
  Tensor inverse = new_tensor(pred, {}, ScalarType::Float);
  *loss.mutable_data_ptr<float>() = static_cast<float>(total * share);
  *inverse.mutable_data_ptr<float>() = static_cast<float>(share);
  return {loss, mean, rstd, inverse};
}

Tensor masked_patch_loss_backward(Tensor grad, Tensor pred, Tensor video, Optional ids,
                                  Optional mask, Tensor mean, Tensor rstd, Tensor inverse,
                                  Ints patch, Doubles scale, Doubles offset) {
  const auto call = prepare_loss(pred, video, ids, mask, patch, scale, offset);
  PatchLoss& p = call->p;
  for (const Tensor& scalar : {grad, inverse}) {
    STD_TORCH_CHECK(
        scalar.numel() == 1 && scalar.is_cpu() && scalar.scalar_type() == ScalarType::Float,
        "masked_patch_loss: grad and inverse must be float32 scalars on the CPU");
  }
  for (const Tensor& row : {mean, rstd}) {
    STD_TORCH_CHECK(
        row.numel() == p.count && row.is_cpu() && row.scalar_type() == ScalarType::Float,
        "masked_patch_loss: mean and rstd must be [B, rows] float32 on the CPU");
  }
  mean = torch::stable::contiguous(mean);
  rstd = torch::stable::contiguous(rstd);
  p.known_mean = mean.const_data_ptr<float>();
  p.known_rstd = rstd.const_data_ptr<float>();
  p.factor =
      static_cast<float>(2.0 * *grad.const_data_ptr<float>() * *inverse.const_data_ptr<float>());
  Tensor out = new_tensor(pred, {call->clips, p.rows, p.features}, pred.scalar_type());
  p.grad = out.mutable_data_ptr();
  const int64_t row_bytes = p.features * static_cast<int64_t>(out.element_size());
  p.stream = row_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(p.grad) % 64 == 0 &&
             p.count * row_bytes >= kStreamBytes;
  run_blocks(*call, video, [](auto in, auto out_type) {
    return STMETA_BY_ISA(write_grad<decltype(in), decltype(out_type)>);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stmeta, CPU, m) {
  m.impl("masked_patch_loss", TORCH_BOX(&masked_patch_loss));
  m.impl("masked_patch_loss_backward", TORCH_BOX(&masked_patch_loss_backward));
}

}  // namespace stmeta
