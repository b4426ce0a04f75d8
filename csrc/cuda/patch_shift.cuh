// CUDA kernels of stmeta::patch_shift and their launches. Reference: stmeta/ops/patch_shift.py.
//
// A block makes one token after another: it stages the token's window of pixels, then every thread
// takes a few groups of eight features, keeps them in registers through LayerNorm, and writes them
// 16 bytes at a time.
#pragma once

#include "../common/cuda_reduce.cuh"
#include "patch_shift_window.cuh"

namespace stmeta::patch_shift {

constexpr int kForwardGroups = 4;   // groups of a thread: all of the token in registers
constexpr int kBackwardGroups = 2;  // fewer: each feature has two sums beside its value
constexpr int kForwardThreads = 1024;
constexpr int kBackwardThreads = 512;
constexpr int kVideoThreads = 256;
constexpr int kVideoChannels = 4;  // of the video gradient, summed at a time

// Mean and 1 / standard deviation of the block's features, in two passes over registers.
template <int kGroups>
__device__ inline void statistics(const float (&x)[kGroups][kGroup], int features, float eps,
                                  float& mean, float& rstd) {
  const int stride = static_cast<int>(blockDim.x) * kGroup;
  const int own = static_cast<int>(threadIdx.x) * kGroup;
  float centre = 0.0f;
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    float sum[1] = {};
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        const float d = x[g][k] - centre;
        if (own + g * stride + k < features) sum[0] += pass == 0 ? d : d * d;
      }
    }
    block_sum(sum);
    (pass == 0 ? centre : rstd) = sum[0] / features;
  }
  mean = centre;
  rstd = rsqrtf(rstd + eps);
}

// Reads at most the pixels of the tokens' windows, writes B * K * F features.
template <typename In, typename Out>
__global__ void __launch_bounds__(kForwardThreads)
    forward_kernel(const __grid_constant__ Problem p, const __grid_constant__ Window w,
                   const In* __restrict__ video,
                   const float* __restrict__ weight,  // [F], or null: no LayerNorm
                   const float* __restrict__ bias,    // [F]
                   float eps, bool wide,
                   Out* __restrict__ tokens,  // [B, K, F]
                   float* __restrict__ mean, float* __restrict__ rstd) {  // [B, K]
  const Shared shared(w, p);
  const int stride = static_cast<int>(blockDim.x) * kGroup;
  const int own = static_cast<int>(threadIdx.x) * kGroup;
  prepare(p, w, shared, 0, whole_groups(p.features));
  __syncthreads();
  for (int index = blockIdx.x; index < p.total(); index += gridDim.x) {
    stage_token(p, w, video, find_token(p, index), shared);
    __syncthreads();
    float x[kForwardGroups][kGroup] = {};
#pragma unroll
    for (int g = 0; g < kForwardGroups; ++g) {
      if (own + g * stride < p.features) gather(shared, own + g * stride, x[g]);
    }
    __syncthreads();  // the window may be overwritten from here on

    float centre = 0.0f, scale = 1.0f;
    if (weight) {
      statistics(x, p.features, eps, centre, scale);
      if (threadIdx.x == 0) mean[index] = centre, rstd[index] = scale;
    }
    Out* row = tokens + static_cast<int64_t>(index) * p.features;
#pragma unroll
    for (int g = 0; g < kForwardGroups; ++g) {
      const int f = own + g * stride;
      if (f >= p.features) break;
      if (weight) {
        float w8[kGroup], b8[kGroup];
        load_row(weight, f, p.features, 1, wide, w8);
        load_row(bias, f, p.features, 1, wide, b8);
#pragma unroll
        for (int k = 0; k < kGroup; ++k) x[g][k] = (x[g][k] - centre) * scale * w8[k] + b8[k];
      }
      store_row(row, f, p.features, wide, x[g]);
    }
  }
}

// The gradient of the tokens, [B, K, F] through its strides.
template <typename T>
struct Gradient {
  const T* data;
  int64_t stride_b, stride_k, stride_f;
  bool wide;  // see load_row
};

// What LayerNorm leaves for its backward; all null without LayerNorm.
struct Norm {
  const float* weight;  // [F]
  const float* mean;    // [B, K]
  const float* rstd;    // [B, K]
  bool wide;            // see load_row; of the weight
};

// One pass over the gradient; blockIdx.y is a chunk of the features.
template <typename In, typename Grad>
__global__ void __launch_bounds__(kBackwardThreads)
    backward_rows_kernel(const __grid_constant__ Problem p, const __grid_constant__ Window w,
                         const In* __restrict__ video, const __grid_constant__ Gradient<Grad> grad,
                         const __grid_constant__ Norm norm,
                         float* __restrict__ row_means,  // [chunks, B*K, 2] or null: g*w, g*w*xhat
                         float* __restrict__ partials) {  // [2, blocks, F] or null: g*xhat, g
  const Shared shared(w, p);
  const int stride = static_cast<int>(blockDim.x) * kGroup;
  const int own = static_cast<int>(threadIdx.x) * kGroup;
  const int first = static_cast<int>(blockIdx.y) * stride * kBackwardGroups;
  prepare(p, w, shared, first, stride * kBackwardGroups);
  __syncthreads();
  float grad_weight[kBackwardGroups][kGroup] = {}, grad_bias[kBackwardGroups][kGroup] = {};
  for (int index = blockIdx.x; index < p.total(); index += gridDim.x) {
    const Token token = find_token(p, index);
    stage_token(p, w, video, token, shared);
    __syncthreads();
    const int slot = index - token.batch * p.kept;
    const Grad* row = grad.data + token.batch * grad.stride_b + slot * grad.stride_k;
    const float mean = norm.mean[index], rstd = norm.rstd[index];
    float sums[2] = {};
#pragma unroll
    for (int g = 0; g < kBackwardGroups; ++g) {
      const int f = first + own + g * stride;
      if (f >= p.features) break;
      float x[kGroup], dy[kGroup], w8[kGroup] = {};
      gather(shared, own + g * stride, x);
      load_row(row, f, p.features, grad.stride_f, grad.wide, dy);
      if (row_means) load_row(norm.weight, f, p.features, 1, norm.wide, w8);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        const float xhat = (x[k] - mean) * rstd;
        grad_weight[g][k] += dy[k] * xhat;
        grad_bias[g][k] += dy[k];
        sums[0] += dy[k] * w8[k];
        sums[1] += dy[k] * w8[k] * xhat;
      }
    }
    __syncthreads();  // the window may be overwritten from here on
    if (row_means) {
      block_sum(sums);
      float* out = row_means + (static_cast<int64_t>(blockIdx.y) * p.total() + index) * 2;
      if (threadIdx.x == 0) out[0] = sums[0] / p.features, out[1] = sums[1] / p.features;
    }
  }
  if (!partials) return;
#pragma unroll
  for (int g = 0; g < kBackwardGroups; ++g) {
    const int f = first + own + g * stride;
    float* out = partials + static_cast<int64_t>(blockIdx.x) * p.features;
    store_row(out, f, p.features, norm.wide, grad_weight[g]);
    out += static_cast<int64_t>(gridDim.x) * p.features;
    store_row(out, f, p.features, norm.wide, grad_bias[g]);
  }
}

// slots[b, n] = where token n lies among the kept ones of sample b, or -1. A block is a sample.
template <int kThreads>
__global__ void slots_kernel(const int64_t* __restrict__ ids, int* __restrict__ slots, int kept,
                             int tokens) {
  ids += static_cast<int64_t>(blockIdx.x) * kept;
  slots += static_cast<int64_t>(blockIdx.x) * tokens;
  for (int n = threadIdx.x; n < tokens; n += kThreads) slots[n] = -1;
  __syncthreads();
  for (int k = threadIdx.x; k < kept; k += kThreads) slots[ids[k]] = k;
}

// The gradient of one pixel through shift s: dx of the feature at the pixel minus the shift.
struct Reader {
  int64_t row;      // of [B * K]; negative: no token reads the pixel so
  int64_t slot;     // of K
  int feature;      // of channel 0
};

__device__ inline Reader find_reader(const Problem& p, const int* __restrict__ slots, int batch,
                                     int t, int y, int x, int s) {
  t -= p.shift_t[s], y -= p.shift_y[s], x -= p.shift_x[s];
  if (static_cast<unsigned>(t) >= static_cast<unsigned>(p.frames) ||
      static_cast<unsigned>(y) >= static_cast<unsigned>(p.height) ||
      static_cast<unsigned>(x) >= static_cast<unsigned>(p.width)) {
    return {-1, 0, 0};
  }
  uint32_t dt = t, dy = y, dx = x;
  const int frame = p.by_tubelet.split(dt), row = p.by_patch.split(dy), col = p.by_patch.split(dx);
  int64_t slot = (static_cast<int64_t>(frame) * (p.height / p.patch) + row) *
                     (p.width / p.patch) + col;
  if (slots) slot = slots[batch * (static_cast<int64_t>(p.frames / p.tubelet) * (p.height / p.patch) * (p.width / p.patch)) + slot];
  const int pixel = (dt * p.patch + dy) * p.patch + dx;
  return {slot < 0 ? -1 : static_cast<int64_t>(batch) * p.kept + slot, slot,
          (pixel * p.shifts + s) * p.channels};
}
