// CUDA kernels of stmeta::masked_patch_loss and their launches. Reference:
// stmeta/ops/masked_patch_loss.py.
//
// A warp takes a row; a lane takes eight neighbouring features at a time. The target of a row stays
// in shared memory between the passes, where each lane reads only what it wrote itself.
#pragma once

#include <cmath>

#include "patch_shift_window.cuh"
#include "token_rows.cuh"

namespace stmeta::masked_patch_loss {

using patch_shift::kGroup;
using patch_shift::kMaxChannels;
using patch_shift::Problem;
using patch_shift::whole_groups;
using token_rows::dense_rows;
using token_rows::make_rows;
using token_rows::Rows;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kFinishThreads = 512;

// Which rows count, and what is taken out of the target.
struct Options {
  const bool* mask;  // [B, N], or null: all rows count
  bool norm_pix, wide;  // wide: eight features are one aligned piece of the video's memory
  float eps;
};

struct Affine {
  float scale[kMaxChannels], offset[kMaxChannels];
};

__device__ inline void load_affine(const Problem& p, Affine& affine) {
  for (int c = threadIdx.x; c < p.channels; c += kThreads) {
    affine.scale[c] = p.scale[c], affine.offset[c] = p.offset[c];
  }
  __syncthreads();
}

// The first pixel of the token of a row; null where its id is out of range.
template <typename In>
__device__ inline const In* find_pixels(const Problem& p, const In* video, int row) {
  if (p.ids && (p.ids[row] < 0 || p.ids[row] >= p.sites)) return nullptr;
  const auto at = patch_shift::find_token(p, row);
  return video + at.batch * p.stride_b + at.t * p.stride_t + at.y * p.stride_y + at.x * p.stride_x;
}

// Features [first, first + kGroup) of the target before it is normalised, zero past its end.
template <typename In>
__device__ inline void load_pixels(const Problem& p, const In* pixels, int first, bool wide,
                                   const Affine& affine, float (&out)[kGroup]) {
  uint32_t c = first;
  uint32_t x = p.by_channels.split(c);
  uint32_t y = p.by_patch.split(x);
  uint32_t t = p.by_patch.split(y);
  const auto place = [&] { return t * p.stride_t + y * p.stride_y + x * p.stride_x + c * p.stride_c; };
  if (pixels && wide) load_floats<kGroup>(pixels + place(), out);
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    if (first + k >= p.features) {
      out[k] = 0.0f;
      continue;
    }
    if (!wide && pixels) out[k] = to_float(pixels[place()]);
    out[k] = pixels ? out[k] * affine.scale[c] + affine.offset[c] : NAN;
    if (++c < static_cast<uint32_t>(p.channels)) continue;
    c = 0;
    if (++x < static_cast<uint32_t>(p.patch)) continue;
    x = 0;
    if (++y < static_cast<uint32_t>(p.patch)) continue;
    y = 0, ++t;
  }
}

// Sum over the warp of f(d) for d = target - centre over the features of the row.
template <typename F>
__device__ inline float sum_of(const float* target, int features, float centre, const F& f) {
  float sum = 0.0f;
  for (int first = threadIdx.x % kWarp * kGroup; first < features; first += kWarp * kGroup) {
    float x[kGroup];
    load_floats<kGroup>(target + first, x);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) sum += first + k < features ? f(x[k] - centre) : 0.0f;
  }
  return warp_sum(sum);
}

// Reads the pixels and the predictions of the rows that count.
template <typename In, typename T>
__global__ void __launch_bounds__(kThreads, 4)
    rows_kernel(const __grid_constant__ Problem p, const __grid_constant__ Options options,
                const In* __restrict__ video, const __grid_constant__ Rows<const T> pred,
                float* __restrict__ sums,  // [B, rows]: of the squared errors
                float* __restrict__ mean, float* __restrict__ rstd) {  // [B, rows]
  __shared__ Affine affine;
  load_affine(p, affine);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (row >= p.total()) return;
  const bool counts = !options.mask || options.mask[row];
  float error = 0.0f, centre = 0.0f, scale = 1.0f;
  if (counts) {
    float* target = reinterpret_cast<float*>(dynamic_shared()) + warp * whole_groups(p.features);
    const In* pixels = find_pixels(p, video, row);
    for (int first = lane * kGroup; first < p.features; first += kWarp * kGroup) {
      float x[kGroup];
      load_pixels(p, pixels, first, options.wide, affine, x);
      store_floats<kGroup>(target + first, x);
    }
    if (options.norm_pix) {
      centre = sum_of(target, p.features, 0.0f, [](float d) { return d; }) / p.features;
      const float squares = sum_of(target, p.features, centre, [](float d) { return d * d; });
      scale = rsqrtf(squares / (p.features - 1) + options.eps);
    }
    uint32_t slot = row;
    const uint32_t b = p.by_kept.split(slot);
    const T* predicted = pred.row(b, slot);
    for (int first = lane * kGroup; first < p.features; first += kWarp * kGroup) {
      float x[kGroup], y[kGroup];
      load_floats<kGroup>(target + first, x);
      load_row(predicted, first, p.features, pred.stride_d, pred.wide, y);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        const float d = y[k] - (x[k] - centre) * scale;
        error += first + k < p.features ? d * d : 0.0f;
      }
    }
    error = warp_sum(error);
  }
  if (lane == 0) sums[row] = error, mean[row] = centre, rstd[row] = scale;
}

// One block: loss and inverse, from the rows in fixed order.
template <int kStep>
__global__ void __launch_bounds__(kStep)
    finish_kernel(const float* __restrict__ sums, const bool* __restrict__ mask, int rows,
                  int features, float* __restrict__ loss, float* __restrict__ inverse) {
  float total[2] = {};  // of the errors, of the rows that count
#pragma unroll 4
  for (int row = threadIdx.x; row < rows; row += kStep) {
    total[0] += sums[row];
    total[1] += !mask || mask[row] ? 1.0f : 0.0f;
  }
  block_sum(total);
  if (threadIdx.x != 0) return;
  const float share = total[1] > 0.0f ? 1.0f / (total[1] * features) : 0.0f;
  *loss = total[0] * share;
  *inverse = share;
}

template <typename In, typename T>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(const __grid_constant__ Problem p, const __grid_constant__ Options options,
                    const In* __restrict__ video, const __grid_constant__ Rows<const T> pred,
                    const float* __restrict__ grad, const float* __restrict__ mean,
                    const float* __restrict__ rstd, const float* __restrict__ inverse,
                    const __grid_constant__ Rows<T> out) {
  __shared__ Affine affine;
  load_affine(p, affine);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (row >= p.total()) return;
  const bool counts = !options.mask || options.mask[row];
  const In* pixels = counts ? find_pixels(p, video, row) : nullptr;
  const float factor = 2.0f * *grad * *inverse, centre = mean[row], scale = rstd[row];
  uint32_t slot = row;
  const uint32_t b = p.by_kept.split(slot);
  for (int first = lane * kGroup; first < p.features; first += kWarp * kGroup) {
    float x[kGroup] = {}, y[kGroup];
    if (counts) {
      load_pixels(p, pixels, first, options.wide, affine, x);
      load_row(pred.row(b, slot), first, p.features, pred.stride_d, pred.wide, y);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) x[k] = factor * (y[k] - (x[k] - centre) * scale);
    }
    store_row(out.row(b, slot), first, p.features, out.wide, x);
  }
}

// ---- host ----

// norm_pix and eps matter to the forward alone.
template <typename In>
Options make_options(const Problem& p, const In* video, const bool* mask, bool norm_pix,
                     double eps) {
  const auto whole = [](int64_t n) { return n % kGroup == 0; };
  const bool wide = p.stride_c == 1 && p.stride_x == p.channels &&
                    whole(int64_t{p.patch} * p.channels) && whole(p.stride_b) &&
                    whole(p.stride_t) && whole(p.stride_y) &&
                    aligned(video, std::min<size_t>(16, kGroup * sizeof(In)));
  return {mask, norm_pix, wide, static_cast<float>(eps)};
}

inline dim3 grid_of(const Problem& p) {
  return dim3(static_cast<unsigned>(ceil_divide(p.total(), kWarps)));
}

// sums: scratch, fp32 [B, rows].
template <typename In, typename T>
void forward(const Problem& p, const Options& options, const In* video, const Rows<const T>& pred,
             float* sums, float* mean, float* rstd, float* loss, float* inverse, Stream stream) {
  const size_t shared = sizeof(float) * kWarps * whole_groups(p.features);
  require(shared + sizeof(Affine) <= shared_limit(),
          "masked_patch_loss: four tokens do not fit the shared memory of this GPU; use 'triton'");
  if (p.total() > 0) {
    launch(rows_kernel<In, T>, grid_of(p), kThreads, shared, stream, p, options, video, pred, sums,
           mean, rstd);
  }
  launch(finish_kernel<kFinishThreads>, dim3(1), kFinishThreads, 0, stream, sums, options.mask,
         p.total(), p.features, loss, inverse);
}

template <typename In, typename T>
void backward(const Problem& p, const Options& options, const In* video, const Rows<const T>& pred,
              const float* grad, const float* mean, const float* rstd, const float* inverse, T* out,
              Stream stream) {
  if (p.total() == 0) return;
  launch(backward_kernel<In, T>, grid_of(p), kThreads, 0, stream, p, options, video, pred, grad,
         mean, rstd, inverse, dense_rows(out, p.kept, p.features));
}

}  // namespace stmeta::masked_patch_loss
