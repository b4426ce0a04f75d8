// CUDA kernels of stmeta::masked_patch_loss and their launches. Reference:
// stmeta/ops/video/masked_patch_loss.py.
//
// A block takes one row of the prediction after another. Its threads hold eight features of the
// token's pixels and of the prediction at a time, from both passes of the statistics to the error.
//
// Letters: B batch, C channels, T frames, H W pixels, (t, p, p) tubelet, N tokens of a clip, R rows
// of the prediction of a clip, F = t*p*p*C features.
#pragma once

#include <vector>

#include "common/cuda_reduce.cuh"
#include "common/cuda_vector.cuh"

namespace stmeta::masked_patch_loss {

constexpr int kMaxChannels = 32;
constexpr int kGroup = 8;   // features that a thread takes at a time: 16 bytes of a 16-bit type
constexpr int kGroups = 2;  // of a thread
constexpr int kThreads = 256;

// What all kernels know. Strides count elements.
struct Problem {
  const int64_t* ids;                                        // [B, R]: the rows' tokens; or null
  const uint8_t* mask;                                       // [B, R]: which rows count; or null
  int64_t stride_b, stride_c, stride_t, stride_y, stride_x;  // of the video [B, C, T, H, W]
  int batch, channels, tubelet, patch, sites, rows, features;
  int run;  // features that lie side by side in the video and can be loaded at once: 8, 4 or 1
  float scale[kMaxChannels], offset[kMaxChannels];
  Divider by_rows, by_token_columns, by_token_rows, by_line, by_patch, by_channels;

  __host__ __device__ int total() const { return batch * rows; }
};

// The prediction, [B, R, F] through its strides.
template <typename T>
struct Prediction {
  const T* data;
  int64_t stride_b, stride_r, stride_f;
  bool wide;  // see load_row
};

struct Row {
  int batch, slot;
  bool counts;
  int64_t corner;  // where the token's first pixel lies in the video
};

__device__ inline Row find_row(const Problem& p, int index) {
  uint32_t slot = index;
  const int batch = p.by_rows.split(slot);
  const int64_t token = p.ids ? p.ids[index] : slot;
  const bool known = static_cast<uint64_t>(token) < static_cast<uint64_t>(p.sites);
  const bool counts = known && (!p.mask || p.mask[index]);  // nobody has checked ids on a GPU
  uint32_t x = known ? static_cast<uint32_t>(token) : 0;
  uint32_t y = p.by_token_columns.split(x);
  const int64_t t = p.by_token_rows.split(y);
  const int64_t corner = batch * p.stride_b + t * p.tubelet * p.stride_t +
                         static_cast<int64_t>(y) * p.patch * p.stride_y +
                         static_cast<int64_t>(x) * p.patch * p.stride_x;
  return {batch, static_cast<int>(slot), counts, corner};
}

using Affine = Pack<float, 2>;  // scale and offset of a channel

__device__ inline void stage_affine(const Problem& p, Affine* affine) {
  for (int c = threadIdx.x; c < p.channels; c += blockDim.x) affine[c] = {p.scale[c], p.offset[c]};
  __syncthreads();
}

// Features [first, first + kGroup) of the token at `corner`, normalised; zero past the last one.
template <int kRun, typename In>
__device__ inline void load_features(const Problem& p, const Affine* affine,
                                     const In* __restrict__ corner, int first, float (&x)[kGroup]) {
#pragma unroll
  for (int i = 0; i < kGroup; i += kRun) {
    float run[kRun] = {};
    if (first + i < p.features) {
      uint32_t step = first + i;  // in a line of p pixels
      uint32_t y = p.by_line.split(step);
      const uint32_t t = p.by_patch.split(y);
      uint32_t c = step;
      const uint32_t pixel = p.by_channels.split(c);
      const int64_t line = t * p.stride_t + y * p.stride_y;
      load_floats<kRun>(corner + line + pixel * p.stride_x + c * p.stride_c, run);
#pragma unroll
      for (int k = 0; k < kRun; ++k) {
        run[k] = run[k] * affine[c].at[0] + affine[c].at[1];
        if (++c == static_cast<uint32_t>(p.channels)) c = 0;
      }
    }
#pragma unroll
    for (int k = 0; k < kRun; ++k) x[i + k] = run[k];
  }
}

// Where group g of this thread begins in the block's chunk of features.
__device__ inline int own_feature(int g) {
  return (g * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * kGroup;
}

template <typename In>
__device__ inline void take(const Problem& p, const Affine* affine, const In* __restrict__ corner,
                            int chunk, float (&x)[kGroups][kGroup]) {
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int f = chunk + own_feature(g);
    if (p.run == 8) {
      load_features<8>(p, affine, corner, f, x[g]);
    } else if (p.run == 4) {
      load_features<4>(p, affine, corner, f, x[g]);
    } else {
      load_features<1>(p, affine, corner, f, x[g]);
    }
  }
}

template <typename T>
__device__ inline void take(const Prediction<T>& pred, const Row& row, int chunk, int features,
                            float (&x)[kGroups][kGroup]) {
  const T* data = pred.data + row.batch * pred.stride_b + row.slot * pred.stride_r;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    load_row(data, chunk + own_feature(g), features, pred.stride_f, pred.wide, x[g]);
  }
}

// Mean and 1 / sqrt(unbiased variance + eps) of a token. `x` holds its first chunk of features,
// which nearly always is all of it; other chunks are taken anew in each pass.
template <typename In>
__device__ inline void statistics(const Problem& p, const Affine* affine,
                                  const In* __restrict__ corner, float eps,
                                  float (&x)[kGroups][kGroup], float& mean, float& rstd) {
  const int chunk = static_cast<int>(blockDim.x) * kGroup * kGroups;
  float result[2] = {};
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    float sum[1] = {};
    for (int first = 0; first < p.features; first += chunk) {
      if (p.features > chunk) take(p, affine, corner, first, x);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          const float d = x[g][k] - result[0];
          if (first + own_feature(g) + k < p.features) sum[0] += pass == 0 ? d : d * d;
        }
      }
    }
    block_sum(sum);
    result[pass] = sum[0] / static_cast<float>(p.features - pass);
  }
  mean = result[0];
  rstd = rsqrtf(result[1] + eps);
}

// Reads the counting rows of the prediction and their pixels once.
template <typename In, typename T>
__global__ void __launch_bounds__(kThreads, 3)
    forward_kernel(const __grid_constant__ Problem p, const In* __restrict__ video,
                   const __grid_constant__ Prediction<T> pred, bool norm, float eps,
                   float* __restrict__ mean, float* __restrict__ rstd,  // [B, R]
                   float* __restrict__ partial) {  // [blocks, 2]: squared errors, rows that count
  __shared__ Affine affine[kMaxChannels];
  stage_affine(p, affine);
  const int chunk = static_cast<int>(blockDim.x) * kGroup * kGroups;
  float sum[1] = {}, counting = 0.0f;
  for (int index = blockIdx.x; index < p.total(); index += gridDim.x) {
    const Row row = find_row(p, index);
    float centre = 0.0f, scale = 1.0f;
    if (row.counts) {
      const In* corner = video + row.corner;
      float guess[kGroups][kGroup], x[kGroups][kGroup];
      take(pred, row, 0, p.features, guess);
      take(p, affine, corner, 0, x);
      if (norm) statistics(p, affine, corner, eps, x, centre, scale);
      for (int first = 0; first < p.features; first += chunk) {
        if (p.features > chunk) {
          take(pred, row, first, p.features, guess);
          take(p, affine, corner, first, x);
        }
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
#pragma unroll
          for (int k = 0; k < kGroup; ++k) {
            const float error = guess[g][k] - (x[g][k] - centre) * scale;
            if (first + own_feature(g) + k < p.features) sum[0] += error * error;
          }
        }
      }
      counting += 1.0f;
    }
    if (threadIdx.x == 0) mean[index] = centre, rstd[index] = scale;
  }
  block_sum(sum);
  if (threadIdx.x == 0) {
    partial[2 * blockIdx.x] = sum[0];
    partial[2 * blockIdx.x + 1] = counting;
  }
}

// The second stage: one block. fp64, since rows may be more than fp32 can count.
template <int kBlock>
__global__ void finish_kernel(const float* __restrict__ partial, int blocks, int features,
                              float* __restrict__ loss, float* __restrict__ inverse) {
  __shared__ double sums[2][kBlock];
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0.0, counting = 0.0;
#pragma unroll 4
  for (int i = thread; i < blocks; i += kBlock) {
    sum += partial[2 * i];
    counting += partial[2 * i + 1];
  }
  sums[0][thread] = sum, sums[1][thread] = counting;
  __syncthreads();
  for (int half = kBlock / 2; half > 0; half /= 2) {
    if (thread < half) {
      sums[0][thread] += sums[0][thread + half];
      sums[1][thread] += sums[1][thread + half];
    }
    __syncthreads();
  }
  if (thread > 0) return;
  const double share = sums[1][0] > 0.0 ? 1.0 / (sums[1][0] * features) : 0.0;
  *loss = static_cast<float>(sums[0][0] * share);
  *inverse = static_cast<float>(share);
}

// Reads what the forward reads, writes B * R * F numbers.
template <typename In, typename T>
__global__ void __launch_bounds__(kThreads, 3)
    backward_kernel(const __grid_constant__ Problem p, const In* __restrict__ video,
                    const __grid_constant__ Prediction<T> pred, const float* __restrict__ grad,
                    const float* __restrict__ inverse,                               // []
                    const float* __restrict__ mean, const float* __restrict__ rstd,  // [B, R]
                    bool wide, T* __restrict__ out) {                                // [B, R, F]
  __shared__ Affine affine[kMaxChannels];
  stage_affine(p, affine);
  const int chunk = static_cast<int>(blockDim.x) * kGroup * kGroups;
  const float factor = 2.0f * *grad * *inverse;
  for (int index = blockIdx.x; index < p.total(); index += gridDim.x) {
    const Row row = find_row(p, index);
    const float centre = mean[index], scale = rstd[index];
    T* target = out + static_cast<int64_t>(index) * p.features;
    for (int first = 0; first < p.features; first += chunk) {
      float guess[kGroups][kGroup] = {}, x[kGroups][kGroup] = {};
      if (row.counts) {
        take(pred, row, first, p.features, guess);
        take(p, affine, video + row.corner, first, x);
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          const float error = guess[g][k] - (x[g][k] - centre) * scale;
          x[g][k] = row.counts ? factor * error : 0.0f;
        }
        store_row(target, first + own_feature(g), p.features, wide, x[g]);
      }
    }
  }
}

// ---- host ----

// `sizes` and `strides` are those of the video; patch = {t, p}. Without ids: rows = N.
template <typename In>
Problem make_problem(const In* video, const int64_t* sizes, const int64_t* strides,
                     const int64_t* ids, const uint8_t* mask, int64_t rows,
                     const std::vector<int64_t>& patch, const std::vector<double>& scale,
                     const std::vector<double>& offset) {
  const int64_t channels = sizes[1];
  require(channels <= kMaxChannels,
          "masked_patch_loss: the cuda backend takes at most 32 channels; use 'triton'");
  require(sizes[0] * rows < (int64_t{1} << 30), "masked_patch_loss: B * rows must be below 2^30");
  Problem p{};
  p.ids = ids, p.mask = mask;
  p.stride_b = strides[0], p.stride_c = strides[1], p.stride_t = strides[2];
  p.stride_y = strides[3], p.stride_x = strides[4];
  p.batch = static_cast<int>(sizes[0]), p.channels = static_cast<int>(channels);
  p.tubelet = static_cast<int>(patch[0]), p.patch = static_cast<int>(patch[1]);
  const int64_t token_rows = sizes[3] / patch[1], token_columns = sizes[4] / patch[1];
  p.sites = static_cast<int>(sizes[2] / patch[0] * token_rows * token_columns);
  p.rows = static_cast<int>(rows);
  p.features = p.tubelet * p.patch * p.patch * p.channels;
  const bool packed = p.stride_c == 1 && p.stride_x == channels;
  const auto fits = [&](int run) {
    const auto whole = [&](int64_t n) { return n % run == 0; };
    return packed && whole(patch[1] * channels) && whole(p.stride_b) && whole(p.stride_t) &&
           whole(p.stride_y) && aligned(video, std::min<size_t>(16, run * sizeof(In)));
  };
  p.run = fits(8) ? 8 : fits(4) ? 4 : 1;
  std::copy(scale.begin(), scale.end(), p.scale);
  std::copy(offset.begin(), offset.end(), p.offset);
  const auto by = [](int64_t size) { return Divider(std::max<int64_t>(size, 1)); };
  p.by_rows = by(rows);
  p.by_token_columns = by(token_columns), p.by_token_rows = by(token_rows);
  p.by_line = by(patch[1] * channels), p.by_patch = by(patch[1]), p.by_channels = by(channels);
  return p;
}

template <typename T>
Prediction<T> make_prediction(const Problem& p, const T* data, const int64_t* strides) {
  const bool wide = strides[2] == 1 && p.features % kGroup == 0 && strides[0] % kGroup == 0 &&
                    strides[1] % kGroup == 0 && aligned(data, 16);
  return {data, strides[0], strides[1], strides[2], wide};
}

// Whole warps that take all of a row at once, if a block can.
inline int threads_of(const Problem& p) {
  const int64_t warps = ceil_divide(p.features, kWarp * kGroup * kGroups);
  return static_cast<int>(std::min<int64_t>(warps * kWarp, kThreads));
}

// Rows of `partial`.
template <typename In, typename T>
int forward_blocks(const Problem& p) {
  if (p.total() == 0) return 0;
  const int64_t resident = resident_blocks(forward_kernel<In, T>, threads_of(p), 0);
  return static_cast<int>(std::min<int64_t>(resident, p.total()));
}

// mean, rstd: [B, R]; partial: [forward_blocks, 2]; loss, inverse: [].
template <typename In, typename T>
void forward(const Problem& p, const In* video, const Prediction<T>& pred, bool norm, float eps,
             float* mean, float* rstd, float* partial, float* loss, float* inverse, Stream stream) {
  constexpr int kFinish = 512;
  const int blocks = forward_blocks<In, T>(p);
  if (blocks > 0) {
    launch(forward_kernel<In, T>, dim3(static_cast<unsigned>(blocks)), threads_of(p), 0, stream, p,
           video, pred, norm, eps, mean, rstd, partial);
  }
  launch(finish_kernel<kFinish>, dim3(1), kFinish, 0, stream, partial, blocks, p.features, loss,
         inverse);
}

// out: [B, R, F], contiguous.
template <typename In, typename T>
void backward(const Problem& p, const In* video, const Prediction<T>& pred, const float* grad,
              const float* inverse, const float* mean, const float* rstd, T* out, Stream stream) {
  if (p.total() == 0) return;
  const auto kernel = backward_kernel<In, T>;
  const int threads = threads_of(p);
  const int64_t blocks = std::min<int64_t>(p.total(), resident_blocks(kernel, threads, 0));
  const bool wide = p.features % kGroup == 0 && aligned(out, 16);
  launch(kernel, dim3(static_cast<unsigned>(blocks)), threads, 0, stream, p, video, pred, grad,
         inverse, mean, rstd, wide, out);
}

}  // namespace stmeta::masked_patch_loss
