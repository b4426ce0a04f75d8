// Checks and lays out a call of patch_shift.
#include "cpu/video/patch_shift_call.h"

namespace stmeta {
namespace {

constexpr int64_t kWindowBytes = 192 << 10;  // of a staged window: a part of L2

void check(const Tensor& video, const Ints& patch, const Ints& shifts, const Doubles& scale,
           const Doubles& offset) {
  STD_TORCH_CHECK(video.dim() == 5, "patch_shift: video must be [B, C, T, H, W]");
  const size_t channels = static_cast<size_t>(video.size(1));
  STD_TORCH_CHECK(scale.size() == channels && offset.size() == channels,
                  "patch_shift: scale and offset must have C = ", channels, " numbers");
  STD_TORCH_CHECK(patch.size() == 2 && patch[0] > 0 && patch[1] > 0,
                  "patch_shift: patch must be [t, p], both positive");
  STD_TORCH_CHECK(video.size(2) % patch[0] == 0 && video.size(3) % patch[1] == 0 &&
                      video.size(4) % patch[1] == 0,
                  "patch_shift: [T, H, W] must be multiples of [t, p, p]");
  STD_TORCH_CHECK(!shifts.empty() && shifts.size() % 3 == 0,
                  "patch_shift: shifts must be S triples (dt, dy, dx)");
  const int64_t count = static_cast<int64_t>(shifts.size()) / 3;
  check_product("patch_shift: patch", {patch[0], patch[1], patch[1], video.size(1), count});
  check_product("patch_shift: a line of the video", {video.size(4), video.size(1), 1 << 14});
}

// Windows: as many neighbouring tokens as fit, or one where tokens are picked by ids.
void lay_out(Call& call, bool one_token) {
  PatchShift& p = call.p;
  const int64_t steps[3] = {p.tubelet, p.patch, p.patch};
  int64_t after[3] = {};
  p.tokens = 1;
  for (int a = 0; a < 3; ++a) {
    p.grid[a] = p.size[a] / steps[a];
    p.tokens *= p.grid[a];
    for (int64_t s = 0; s < p.shift_count; ++s) {
      int64_t& shift = call.shifts[3 * s + a];  // farther than the clip is as good as the clip
      shift = std::clamp(shift, -p.size[a], p.size[a]);
      p.reach[a] = std::max(p.reach[a], -shift);
      after[a] = std::max(after[a], shift);
    }
  }
  p.window[kTime] = p.tubelet + p.reach[kTime] + after[kTime];
  p.window[kHeight] = p.patch + p.reach[kHeight] + after[kHeight];
  check_product("patch_shift: a window", {p.window[kTime], p.window[kHeight], p.channels, 16});
  const int64_t around = p.reach[kWidth] + after[kWidth];
  const int64_t column = p.window[kTime] * p.window[kHeight] * p.channels * int64_t{sizeof(float)};
  const int64_t fit = (kWindowBytes / std::max<int64_t>(1, column) - around) / p.patch;
  const int64_t most =
      one_token ? 1 : std::clamp<int64_t>(fit, 1, std::max<int64_t>(1, p.grid[kWidth]));
  p.groups = std::max<int64_t>(1, (p.grid[kWidth] + most - 1) / most);
  p.group = one_token ? 1 : (p.grid[kWidth] + p.groups - 1) / p.groups;
  p.window[kWidth] = p.group * p.patch + around;
  p.pitch = p.window[kWidth] * p.channels;
  check_product("patch_shift: a window", {p.window[kTime], p.window[kHeight], p.pitch});
  p.window_floats = round_up(p.window[kTime] * p.window[kHeight] * p.pitch + 16, 16);
  STD_TORCH_CHECK(p.window_floats < INT32_MAX, "patch_shift: shifts reach too far for this clip");
  p.plane = round_up(std::max(p.window[kWidth], p.size[kWidth]), 16);
  p.features = p.tubelet * p.patch * p.patch * p.shift_count * p.channels;
  p.padded = round_up(p.features, 64);
  for (int64_t dx = 0; dx < p.patch; ++dx) {
    for (int64_t s = 0; s < p.shift_count; ++s) {
      const int64_t* shift = &call.shifts[3 * s];
      const int64_t row = (shift[0] + p.reach[0]) * p.window[kHeight] + shift[1] + p.reach[1];
      const int64_t place = row * p.pitch + (dx + shift[2] + p.reach[2]) * p.channels;
      call.sources.push_back(static_cast<int32_t>(place));
    }
  }
}

void take_ids(Call& call, const std::optional<Tensor>& ids) {
  PatchShift& p = call.p;
  p.kept = p.tokens;
  p.items = p.tokens == 0 ? 0 : p.batch * p.grid[kTime] * p.grid[kHeight] * p.groups;
  if (!ids.has_value()) return;
  STD_TORCH_CHECK(ids->dim() == 2 && ids->size(0) == p.batch && ids->is_cpu() &&
                      ids->scalar_type() == ScalarType::Long,
                  "patch_shift: ids_keep must be [B, K] int64 on the CPU");
  call.ids = torch::stable::contiguous(*ids);
  p.picked = true;
  p.ids = call.ids.const_data_ptr<int64_t>();
  p.kept = ids->size(1);
  p.items = p.batch * p.kept;
  for (int64_t i = 0; i < p.items; ++i) {
    STD_TORCH_CHECK(p.ids[i] >= 0 && p.ids[i] < p.tokens,
                    "patch_shift: ids_keep must have values below N = ", p.tokens, ", got ",
                    p.ids[i]);
  }
}

// A parameter as the kernels want it: aligned, and zero behind its end.
const float* take_parameter(const std::optional<Tensor>& tensor, const Call& call, float fill,
                            Buffer<float>& out, const char* name) {
  out = Buffer<float>(call.p.padded);
  std::fill_n(out.get(), call.p.padded, tensor.has_value() ? 0.0f : fill);
  if (!tensor.has_value()) return out.get();
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == call.p.features && tensor->is_cpu() &&
                      tensor->scalar_type() == ScalarType::Float,
                  "patch_shift: ", name, " must be [F] = [", call.p.features,
                  "] float32 on the CPU");
  const float* data = tensor->const_data_ptr<float>();
  const int64_t stride = tensor->stride(0);
  for (int64_t i = 0; i < call.p.features; ++i) out[i] = data[i * stride];
  return out.get();
}

}  // namespace

std::unique_ptr<Call> prepare(const Tensor& video, const std::optional<Tensor>& ids,
                              const std::optional<Tensor>& weight,
                              const std::optional<Tensor>& bias, const Ints& patch,
                              const Ints& shifts, const Doubles& scale, const Doubles& offset) {
  check(video, patch, shifts, scale, offset);
  auto call = std::make_unique<Call>();
  PatchShift& p = call->p;
  call->shifts = shifts;
  p.shift_count = static_cast<int64_t>(shifts.size()) / 3;
  p.video = video.const_data_ptr();
  p.batch = video.size(0);
  p.channels = video.size(1);
  for (int a = 0; a < 3; ++a) p.size[a] = video.size(2 + a);
  for (int a = 0; a < 5; ++a) p.stride[a] = video.stride(a);
  p.tubelet = patch[0];
  p.patch = patch[1];
  lay_out(*call, ids.has_value());
  take_ids(*call, ids);
  call->scale.assign(scale.begin(), scale.end());
  call->offset.assign(offset.begin(), offset.end());
  for (int64_t i = 0; i < p.plane; ++i) {
    call->scale_row.insert(call->scale_row.end(), call->scale.begin(), call->scale.end());
    call->offset_row.insert(call->offset_row.end(), call->offset.begin(), call->offset.end());
  }
  p.norm = weight.has_value();
  p.weight = take_parameter(weight, *call, 1.0f, call->weight, "weight");
  p.bias = take_parameter(bias, *call, 0.0f, call->bias, "bias");
  p.scale = call->scale.data();
  p.offset = call->offset.data();
  p.scale_row = call->scale_row.data();
  p.offset_row = call->offset_row.data();
  p.shifts = call->shifts.data();
  p.sources = call->sources.data();
  return call;
}

}  // namespace stmeta
