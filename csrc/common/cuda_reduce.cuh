// Sums over a warp, a block and the rows of a matrix; the order of every addition is fixed.
#pragma once

#include "cuda_base.cuh"

namespace stmeta {

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, lane);
  }
  return value;
}

// Sums of K values over the block, for every thread. The block has whole warps, and all of its
// threads call. Starts and ends such that a second call, or other use of memory shared before,
// needs no barrier in between.
template <int K>
__device__ inline void block_sum(float (&value)[K]) {
  __shared__ float of_warp[K][kWarp];
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    value[k] = warp_sum(value[k]);
    if (lane == 0) of_warp[k][warp] = value[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) value[k] = warp_sum(lane < warps ? of_warp[k][lane] : 0.0f);
  __syncthreads();
}

// Sum of the values of the threads before this one, and `total` of all. As block_sum otherwise.
template <typename T>
__device__ inline T block_prefix(T value, T& total) {
  __shared__ T of_warp[kWarp];
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  T sum = value;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T before = __shfl_up_sync(0xffffffffu, sum, distance);
    if (lane >= distance) sum += before;
  }
  if (lane == kWarp - 1) of_warp[warp] = sum;
  __syncthreads();
  T prefix = sum - value;
  total = 0;
  for (int w = 0; w < warps; ++w) {
    if (w == warp) prefix += total;
    total += of_warp[w];
  }
  __syncthreads();
  return prefix;
}

// out[column] = sum of partial[row, column] over the rows: one lane a column, kWarps warps that
// share the rows.
template <int kWarps>
__global__ void column_sum_kernel(const float* __restrict__ partial, float* __restrict__ out,
                                  int64_t rows, int64_t columns) {
  __shared__ float of_warp[kWarps][kWarp];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float sum = 0.0f;
  if (column < columns) {
#pragma unroll 4
    for (int64_t row = warp; row < rows; row += kWarps) sum += partial[row * columns + column];
  }
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && column < columns) {
    for (int w = 1; w < kWarps; ++w) sum += of_warp[w][lane];
    out[column] = sum;
  }
}

// The second stage of a deterministic reduction: fp32 [rows, columns] -> [columns].
inline void column_sum(const float* partial, float* out, int64_t rows, int64_t columns,
                       Stream stream) {
  constexpr int kWarps = 8;
  const dim3 grid(static_cast<unsigned>(ceil_divide(columns, kWarp)));
  launch(column_sum_kernel<kWarps>, grid, kWarps * kWarp, 0, stream, partial, out, rows, columns);
}

}  // namespace stmeta
