// CUDA kernels of stmeta::patch_shift and their launches. Reference:
// stmeta/ops/video/patch_shift.py.
//
// A block makes one token after another: it stages the token's window of pixels, then every thread
// takes a few groups of eight features, keeps them in registers through LayerNorm, and writes them
// 16 bytes at a time.
#pragma once

#include "common/cuda_reduce.cuh"
#include "cuda/video/patch_shift_window.cuh"

namespace stmeta::patch_shift {

constexpr int kGroups = 2;  // of a thread at a time; more of them spill
constexpr int kThreads = 512;
constexpr int kVideoThreads = 256;
constexpr int kVideoChannels = 4;  // of the video gradient, summed at a time

// Where group g of this thread begins in the block's chunk of features.
__device__ inline int own_feature(int g) {
  return (g * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * kGroup;
}

// Loads the groups of this thread from feature `first` on; those past the end keep what they hold.
__device__ inline void take(const Shared& shared, int first, int features,
                            float (&x)[kGroups][kGroup]) {
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int f = first + own_feature(g);
    if (f < features) gather(shared, f, x[g]);
  }
}

// Mean and 1 / standard deviation of a token, in two passes. `x` holds its first chunk of features,
// which nearly always is all of it; other chunks are taken anew in each pass.
__device__ inline void statistics(const Shared& shared, int features, float eps,
                                  float (&x)[kGroups][kGroup], float& mean, float& rstd) {
  const int chunk = static_cast<int>(blockDim.x) * kGroup * kGroups;
  float result[2] = {};
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    float sum[1] = {};
    for (int first = 0; first < features; first += chunk) {
      if (features > chunk) take(shared, first, features, x);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int f = first + own_feature(g);
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          const float d = x[g][k] - result[0];
          if (f + k < features) sum[0] += pass == 0 ? d : d * d;
        }
      }
    }
    block_sum(sum);
    result[pass] = sum[0] / features;
  }
  mean = result[0];
  rstd = rsqrtf(result[1] + eps);
}

// Reads at most the pixels of the tokens' windows, writes B * K * F features.
template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(const __grid_constant__ Problem p, const __grid_constant__ Window w,
                   const In* __restrict__ video,
                   const float* __restrict__ weight,  // [F], or null: no LayerNorm
                   const float* __restrict__ bias,    // [F]
                   float eps, bool wide,
                   Out* __restrict__ tokens,                              // [B, K, F]
                   float* __restrict__ mean, float* __restrict__ rstd) {  // [B, K]
  const Shared shared(w, p);
  const int chunk = static_cast<int>(blockDim.x) * kGroup * kGroups;
  prepare(p, w, shared, 0, whole_groups(p.features));
  __syncthreads();
  for (int index = blockIdx.x; index < p.total(); index += gridDim.x) {
    stage_token(p, w, video, find_token(p, index), shared);
    __syncthreads();
    float x[kGroups][kGroup] = {};
    take(shared, 0, p.features, x);
    float centre = 0.0f, scale = 1.0f;
    if (weight) {
      statistics(shared, p.features, eps, x, centre, scale);
      if (threadIdx.x == 0) mean[index] = centre, rstd[index] = scale;
    }
    Out* row = tokens + static_cast<int64_t>(index) * p.features;
    for (int first = 0; first < p.features; first += chunk) {
      if (p.features > chunk) take(shared, first, p.features, x);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int f = first + own_feature(g);
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
    __syncthreads();  // the window may be overwritten from here on
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
__global__ void __launch_bounds__(kThreads)
    backward_rows_kernel(const __grid_constant__ Problem p, const __grid_constant__ Window w,
                         const In* __restrict__ video, const __grid_constant__ Gradient<Grad> grad,
                         const __grid_constant__ Norm norm,
                         float* __restrict__ row_means,   // [chunks, B*K, 2] or null: g*w, g*w*xhat
                         float* __restrict__ partials) {  // [2, blocks, F] or null: g*xhat, g
  const Shared shared(w, p);
  const int chunk = static_cast<int>(blockDim.x) * kGroup * kGroups;
  const int first = static_cast<int>(blockIdx.y) * chunk;
  prepare(p, w, shared, first, chunk);
  __syncthreads();
  float grad_weight[kGroups][kGroup] = {}, grad_bias[kGroups][kGroup] = {};
  for (int index = blockIdx.x; index < p.total(); index += gridDim.x) {
    const Token token = find_token(p, index);
    stage_token(p, w, video, token, shared);
    __syncthreads();
    const int slot = index - token.batch * p.kept;
    const Grad* row = grad.data + token.batch * grad.stride_b + slot * grad.stride_k;
    const float mean = norm.mean[index], rstd = norm.rstd[index];
    float sums[2] = {};
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int f = first + own_feature(g);
      if (f >= p.features) break;
      float x[kGroup], dy[kGroup], w8[kGroup] = {};
      gather(shared, own_feature(g), x);
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
  for (int g = 0; g < kGroups; ++g) {
    const int f = first + own_feature(g);
    float* out = partials + static_cast<int64_t>(blockIdx.x) * p.features;
    store_row(out, f, p.features, norm.wide, grad_weight[g]);
    out += static_cast<int64_t>(gridDim.x) * p.features;
    store_row(out, f, p.features, norm.wide, grad_bias[g]);
  }
}

// slots[b, n] = where token n lies among the kept ones of sample b, or -1. A block is a sample.
template <int kStep>
__global__ void slots_kernel(const int64_t* __restrict__ ids, int* __restrict__ slots, int kept,
                             int tokens) {
  ids += static_cast<int64_t>(blockIdx.x) * kept;
  slots += static_cast<int64_t>(blockIdx.x) * tokens;
  for (int n = threadIdx.x; n < tokens; n += kStep) slots[n] = -1;
  __syncthreads();
  for (int k = threadIdx.x; k < kept; k += kStep) {
    if (ids[k] >= 0 && ids[k] < tokens) slots[ids[k]] = k;  // nobody has checked them on a GPU
  }
}

// The feature that reads pixel (t, y, x) through shift s, channel 0; its token's slot.
struct Reader {
  int slot, feature;  // slot < 0: there is none
};

__device__ inline Reader find_reader(const Problem& p, const int* __restrict__ slots, int t, int y,
                                     int x, int s) {
  uint32_t dt = t - p.shift_t[s], dy = y - p.shift_y[s], dx = x - p.shift_x[s];
  if (dt >= static_cast<uint32_t>(p.frames) || dy >= static_cast<uint32_t>(p.height) ||
      dx >= static_cast<uint32_t>(p.width)) {
    return {-1, 0};  // a negative coordinate is large as an unsigned number
  }
  const int frame = p.by_tubelet.split(dt);
  const int row = p.by_patch.split(dy);
  const int column = p.by_patch.split(dx);
  const int token = (frame * p.rows + row) * p.columns + column;
  const int pixel = (dt * p.patch + dy) * p.patch + dx;
  return {slots ? slots[token] : token, (pixel * p.shifts + s) * p.channels};
}

// A gather: a thread is a pixel and sums over the S features that read it, so no two threads meet.
template <typename In, typename Grad>
__global__ void __launch_bounds__(kVideoThreads, 4)
    backward_video_kernel(const __grid_constant__ Problem p, const In* __restrict__ video,
                          const __grid_constant__ Gradient<Grad> grad,
                          const __grid_constant__ Norm norm,
                          const float* __restrict__ row_means,  // [chunks, B*K, 2], or null
                          int chunks,
                          const int* __restrict__ slots,  // [B, N], or null: all tokens are there
                          In* __restrict__ out) {         // [B, C, T, H, W], contiguous
  const int pixel = static_cast<int>(blockIdx.x * kVideoThreads + threadIdx.x);  // of a frame
  if (pixel >= p.height * p.width) return;
  const int y = pixel / p.width, x = pixel % p.width;
  for (int frame = blockIdx.y; frame < p.batch * p.frames; frame += gridDim.y) {
    const int batch = frame / p.frames, t = frame % p.frames;
    const In* source =
        video + batch * p.stride_b + t * p.stride_t + y * p.stride_y + x * p.stride_x;
    const int* own_slots = slots ? slots + static_cast<int64_t>(batch) * p.sites : nullptr;
    for (int c = 0; c < p.channels; c += kVideoChannels) {
      const int count = min(kVideoChannels, p.channels - c);
      float value[kVideoChannels] = {}, sum[kVideoChannels] = {};
#pragma unroll
      for (int k = 0; k < kVideoChannels; ++k) {
        if (!norm.weight || k >= count) break;
        value[k] = to_float(source[(c + k) * p.stride_c]) * p.scale[c + k] + p.offset[c + k];
      }
      for (int s = 0; s < p.shifts; ++s) {
        const Reader reader = find_reader(p, own_slots, t, y, x, s);
        if (reader.slot < 0) continue;
        const int64_t row = static_cast<int64_t>(batch) * p.kept + reader.slot;
        float mean = 0.0f, rstd = 1.0f, first = 0.0f, second = 0.0f;
        if (norm.weight) mean = norm.mean[row], rstd = norm.rstd[row];
        for (int chunk = 0; norm.weight && chunk < chunks; ++chunk) {
          first += row_means[(static_cast<int64_t>(chunk) * p.total() + row) * 2];
          second += row_means[(static_cast<int64_t>(chunk) * p.total() + row) * 2 + 1];
        }
        const Grad* dy = grad.data + batch * grad.stride_b + reader.slot * grad.stride_k;
#pragma unroll
        for (int k = 0; k < kVideoChannels; ++k) {
          if (k >= count) break;
          const int f = reader.feature + c + k;
          const float weight = norm.weight ? norm.weight[f] : 1.0f;
          const float xhat = (value[k] - mean) * rstd;
          sum[k] += (to_float(dy[f * grad.stride_f]) * weight - first - xhat * second) * rstd;
        }
      }
#pragma unroll
      for (int k = 0; k < kVideoChannels; ++k) {
        if (k >= count) break;
        const int64_t plane = (static_cast<int64_t>(batch) * p.channels + c + k) * p.frames + t;
        out[plane * p.height * p.width + pixel] = from_float<In>(sum[k] * p.scale[c + k]);
      }
    }
  }
}

// ---- host ----

// Shared memory of a block of `kernel` that makes `features` of a token at a time.
template <typename Kernel>
size_t shared_bytes(Kernel* kernel, const Problem& p, const Window& w, int features) {
  const size_t bytes = Shared::bytes(w, p, features);
  require(bytes <= dynamic_limit(kernel),
          "patch_shift: a token's pixels do not fit the shared memory of this GPU; use 'triton'");
  return bytes;
}

// Whole warps that take all of a token at once, if a block can.
inline int threads_of(const Problem& p) {
  const int64_t warps = ceil_divide(p.features, kWarp * kGroup * kGroups);
  return static_cast<int>(std::min<int64_t>(warps * kWarp, kThreads));
}

// weight and bias: [F], or null for no LayerNorm; then mean and rstd, [B, K], may be null too.
template <typename In, typename Out>
void forward(const Problem& p, const In* video, const float* weight, const float* bias, float eps,
             Out* tokens, float* mean, float* rstd, Stream stream) {
  if (p.total() == 0) return;
  const Window w = make_window(p, video);
  const int threads = threads_of(p);
  const auto kernel = forward_kernel<In, Out>;
  const size_t shared = shared_bytes(kernel, p, w, whole_groups(p.features));
  const bool wide =
      p.features % kGroup == 0 && aligned(tokens, 16) && aligned(weight, 16) && aligned(bias, 16);
  const int64_t blocks = std::min<int64_t>(p.total(), resident_blocks(kernel, threads, shared));
  launch(kernel, dim3(static_cast<unsigned>(blocks)), threads, shared, stream, p, w, video, weight,
         bias, eps, wide, tokens, mean, rstd);
}

// How the backward cuts its work: chunks of the features, and blocks that share the tokens.
struct BackwardGrid {
  int threads, chunks, blocks;

  explicit BackwardGrid(const Problem& p) {
    threads = threads_of(p);
    chunks = static_cast<int>(ceil_divide(p.features, int64_t{threads} * kGroup * kGroups));
    blocks = static_cast<int>(std::min<int64_t>(busy_blocks(threads * chunks), p.total()));
  }
};

template <typename In, typename Grad>
void backward_rows(const Problem& p, const BackwardGrid& grid, const In* video,
                   const Gradient<Grad>& grad, const Norm& norm, float* row_means, float* partials,
                   Stream stream) {
  const Window w = make_window(p, video);
  const auto kernel = backward_rows_kernel<In, Grad>;
  const size_t shared = shared_bytes(kernel, p, w, grid.threads * kGroup * kGroups);
  const dim3 size(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.chunks));
  launch(kernel, size, grid.threads, shared, stream, p, w, video, grad, norm, row_means, partials);
}

// `slots` is scratch, [B, N], needed with ids only.
template <typename In, typename Grad>
void backward_video(const Problem& p, const BackwardGrid& grid, const In* video,
                    const Gradient<Grad>& grad, const Norm& norm, const float* row_means,
                    int* slots, In* out, Stream stream) {
  if (p.ids) {
    const dim3 samples(static_cast<unsigned>(p.batch));
    launch(slots_kernel<256>, samples, 256, 0, stream, p.ids, slots, p.kept, p.sites);
  }
  const int64_t blocks = ceil_divide(int64_t{p.height} * p.width, kVideoThreads);
  const int64_t frames = std::min<int64_t>(int64_t{p.batch} * p.frames, 65535);
  launch(backward_video_kernel<In, Grad>,
         dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(frames)), kVideoThreads, 0,
         stream, p, video, grad, norm, row_means, grid.chunks, p.ids ? slots : nullptr, out);
}

template <typename T>
Gradient<T> make_gradient(const Problem& p, const T* data, const int64_t* strides) {
  const bool wide = strides[2] == 1 && p.features % kGroup == 0 && strides[0] % kGroup == 0 &&
                    strides[1] % kGroup == 0 && aligned(data, 16);
  return {data, strides[0], strides[1], strides[2], wide};
}

inline Norm make_norm(const Problem& p, const float* weight, const float* mean, const float* rstd) {
  return {weight, mean, rstd, p.features % kGroup == 0 && aligned(weight, 16)};
}

}  // namespace stmeta::patch_shift
