// Rows of tokens, for gather_tokens and restore_tokens: a thread takes eight features of a row,
// neighbouring lanes take what follows, and a block takes several rows.
#pragma once

#include "../common/cuda_reduce.cuh"
#include "../common/cuda_vector.cuh"

namespace stmeta::token_rows {

constexpr int kThreads = 128;
constexpr int kGroup = 8;  // features that a thread takes at a time

// [B, N, D] through its strides.
template <typename T>
struct Rows {
  T* data;
  int64_t stride_b, stride_n, stride_d;
  bool wide;  // see load_row

  __device__ T* row(int64_t b, int64_t n) const { return data + b * stride_b + n * stride_n; }
};

// How threads are laid over rows: `lanes` of them, a power of two, take one row.
struct Layout {
  int width, lanes;

  explicit Layout(int64_t dim) : width(static_cast<int>(dim)), lanes(1) {
    while (lanes < kThreads && lanes * kGroup < width) lanes *= 2;
  }
  __host__ __device__ int rows() const { return kThreads / lanes; }  // of a block
  __device__ int first() const { return static_cast<int>(threadIdx.x) % lanes * kGroup; }
  __device__ int step() const { return lanes * kGroup; }
  __device__ int own_row() const { return static_cast<int>(threadIdx.x) / lanes; }
};

// ---- host ----

template <typename T>
Rows<T> make_rows(T* data, const int64_t* strides, int64_t width) {
  const bool wide = width % kGroup == 0 && strides[0] % kGroup == 0 && strides[1] % kGroup == 0 &&
                    strides[2] == 1 && aligned(data, 16);
  return {data, strides[0], strides[1], strides[2], wide};
}

template <typename T>
Rows<T> dense_rows(T* data, int64_t rows, int64_t width) {
  const int64_t strides[] = {rows * width, width, 1};
  return make_rows(data, strides, width);
}

inline void check_sizes(int64_t batch, int64_t rows, int64_t width) {
  require(batch * rows < (int64_t{1} << 31) && width < (int64_t{1} << 30),
          "tokens: B * N must be below 2^31, and D below 2^30");
}

// Blocks that share the batch where a block takes the same tokens of several samples: as many as
// keep the device busy. One of them sums in order.
inline int64_t batch_blocks(int64_t batch, int64_t token_blocks) {
  const int64_t wanted = ceil_divide(4 * busy_blocks(kThreads), std::max<int64_t>(token_blocks, 1));
  return std::clamp<int64_t>(wanted, 1, std::clamp<int64_t>(batch, 1, 65535));
}

}  // namespace stmeta::token_rows
