// What the CUDA memory ops share: tiles of memory rows in shared memory, and sums over threads.
// Passes over a tile are in memory_pass.cuh.
//
// A block takes one batch element, or a tile of its rows where all of them do not fit. What a pass
// works on is fp32, but for the memory itself:
//   tile     [rows, pitch]   rows of the memory, padded with zeros
//   vectors  [heads, pitch]  keys, erase, add, gradients of reads, ...; padded with zeros
//   weights  [rows, slots]   a number for each row and head, heads innermost
//
// Letters: B batch, N rows, M width of a row, H heads.
#pragma once

#include <cmath>

#include "common/cuda_reduce.cuh"
#include "common/cuda_vector.cuh"

namespace stmeta::memory {

constexpr int kQuad = 4;        // columns that a thread takes at a time
constexpr int kHeads = 4;       // heads that a thread holds in registers at a time
constexpr int kMaxHeads = 16;   // the most that there may be
constexpr int kMaxWidth = 256;  // of a row
constexpr int kThreads = 512;
constexpr int kTile = 64;  // rows of a tile, where an element has several

struct Shape {
  int batch, rows, width, heads;  // B, N, M, H
  int pitch, slots;               // of a row of the tile; of a row of weights: 4, 8 or 16
  int lanes;                      // neighbouring threads that share a row; a power of two
  int tile, tiles;                // rows of a tile; tiles of an element
  int threads;

  int64_t weights() const { return int64_t{batch} * rows * slots; }
  unsigned blocks() const { return static_cast<unsigned>(batch) * tiles; }
};

// The rows of a block.
struct Place {
  int batch, tile, first, rows;
};

__device__ inline Place tile_of(const Shape& s) {
  const int batch = static_cast<int>(blockIdx.x) / s.tiles;
  const int tile = static_cast<int>(blockIdx.x) - batch * s.tiles;
  return {batch, tile, tile * s.tile, min(s.tile, s.rows - tile * s.tile)};
}

__device__ inline Place element_of(const Shape& s) {
  return {static_cast<int>(blockIdx.x), 0, 0, s.rows};
}

// Cuts shared memory into arrays; without a base it only counts.
struct Arena {
  unsigned char* base;
  size_t used = 0;

  template <typename T>
  __host__ __device__ T* take(int64_t count) {
    T* array = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (count * sizeof(T) + 15) / 16 * 16;
    return array;
  }
};

// A matrix [B, N, M] of any strides.
template <typename T>
struct Strided {
  const T* data;
  int64_t stride_b, stride_n, stride_m;
  bool wide;  // see load_row
};

// Threads on a tile: `count` neighbours share a row, in steps of `step` rows.
struct Lanes {
  int count, own, row, step;

  __device__ explicit Lanes(int lanes)
      : count(lanes),
        own(static_cast<int>(threadIdx.x) & (lanes - 1)),
        row(static_cast<int>(threadIdx.x) / lanes),
        step(static_cast<int>(blockDim.x) / lanes) {}
};

__host__ __device__ inline int lanes_for(int columns, int each) {
  int lanes = 1;
  while (lanes < kWarp && lanes * each < columns) lanes *= 2;
  return lanes;
}

// ---- between main memory and shared memory ----

template <typename T, typename U>
__device__ inline void stage(const Shape& s, const Place& at, const Strided<T>& from, U* tile) {
  constexpr int kEach = 16 / sizeof(T);
  const Lanes by(lanes_for(s.pitch, kEach));
  const T* source = from.data + at.batch * from.stride_b + at.first * from.stride_n;
  for (int c = by.own * kEach; c < s.pitch; c += by.count * kEach) {
#pragma unroll 4
    for (int n = by.row; n < at.rows; n += by.step) {
      float x[kEach];
      load_row(source + n * from.stride_n, c, s.width, from.stride_m, from.wide, x);
      store_floats(tile + n * s.pitch + c, x);
    }
  }
}

// To [B, N, M], contiguous.
template <typename T, typename U>
__device__ inline void unstage(const Shape& s, const Place& at, const U* tile, T* out) {
  constexpr int kEach = 16 / sizeof(T);
  const Lanes by(lanes_for(s.pitch, kEach));
  T* target = out + (static_cast<int64_t>(at.batch) * s.rows + at.first) * s.width;
  const bool wide = s.width % kEach == 0;  // `out` is an allocation, so it is aligned
  for (int c = by.own * kEach; c < s.width; c += by.count * kEach) {
    for (int n = by.row; n < at.rows; n += by.step) {
      float x[kEach];
      load_floats(tile + n * s.pitch + c, x);
      store_row(target + static_cast<int64_t>(n) * s.width, c, s.width, wide, x);
    }
  }
}

// `count` vectors of [B, count, M].
template <typename T>
__device__ inline void load_vectors(const Shape& s, int batch, const T* from, int count,
                                    float* vectors) {
  from += static_cast<int64_t>(batch) * count * s.width;
  for (int i = threadIdx.x; i < count * s.pitch; i += blockDim.x) {
    const int h = i / s.pitch, m = i % s.pitch;
    vectors[i] = m < s.width ? to_float(from[h * s.width + m]) : 0.0f;
  }
}

template <typename T>
__device__ inline void store_vectors(const Shape& s, int batch, const float* vectors, int count,
                                     T* out) {
  out += static_cast<int64_t>(batch) * count * s.width;
  for (int i = threadIdx.x; i < count * s.width; i += blockDim.x) {
    out[i] = from_float<T>(vectors[i / s.width * s.pitch + i % s.width]);
  }
}

// The head of a number of weights, whichever row it is in: strides of the block keep it.
__device__ inline int own_head(const Shape& s) {
  return static_cast<int>(threadIdx.x) & (s.slots - 1);
}

// Where the weights of row `n` and head `h` lie in [B, H, N].
__device__ inline int64_t head_index(const Shape& s, const Place& at, int n, int h) {
  return (static_cast<int64_t>(at.batch) * s.heads + h) * s.rows + at.first + n;
}

// From [B, H, N].
template <typename T>
__device__ inline void load_heads(const Shape& s, const Place& at, const T* from, float* weights) {
  const int h = own_head(s);
  for (int i = threadIdx.x; i < at.rows * s.slots; i += blockDim.x) {
    weights[i] = h < s.heads ? to_float(from[head_index(s, at, i / s.slots, h)]) : 0.0f;
  }
}

template <typename T>
__device__ inline void store_heads(const Shape& s, const Place& at, const float* weights, T* out) {
  const int h = own_head(s);
  if (h >= s.heads) return;
  for (int i = threadIdx.x; i < at.rows * s.slots; i += blockDim.x) {
    out[head_index(s, at, i / s.slots, h)] = from_float<T>(weights[i]);
  }
}

// The weights of a block's rows among those of all, fp32 [B, N, slots].
template <typename T>
__device__ inline T* weights_at(const Shape& s, const Place& at, T* all) {
  return all + (static_cast<int64_t>(at.batch) * s.rows + at.first) * s.slots;
}

__device__ inline void copy(const float* from, int64_t count, float* to) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
}

// A number of head `h` in [B, H]; zero for heads that are not there.
template <typename T>
__device__ inline float of_head(const Shape& s, const Place& at, const T* from, int h) {
  return h < s.heads ? to_float(from[static_cast<int64_t>(at.batch) * s.heads + h]) : 0.0f;
}

// ---- sums ----

// NaN is larger than anything, so that it is not lost.
__device__ inline float larger(float a, float b) { return a >= b || a != a ? a : b; }

// Sums (or largest numbers) over the threads of the same head, for every thread. Barriers inside:
// needs none before the next call.
template <bool kLargest, int K>
__device__ inline void over_heads(const Shape& s, float (&value)[K]) {
  struct Tag {};
  auto& of_warp = block_array<Tag, float[K][kThreads / kWarp][kMaxHeads]>();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    for (int offset = kWarp / 2; offset >= s.slots; offset /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, value[k], offset);
      value[k] = kLargest ? larger(value[k], other) : value[k] + other;
    }
    if (lane < s.slots) of_warp[k][warp][lane] = value[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) {
    value[k] = of_warp[k][0][own_head(s)];
    for (int w = 1; w < warps; ++w) {
      const float other = of_warp[k][w][own_head(s)];
      value[k] = kLargest ? larger(value[k], other) : value[k] + other;
    }
  }
  __syncthreads();
}

template <int K>
__device__ inline void head_sums(const Shape& s, float (&value)[K]) {
  over_heads<false>(s, value);
}

__device__ inline float head_sum(const Shape& s, float value) {
  float one[1] = {value};
  over_heads<false>(s, one);
  return one[0];
}

__device__ inline float head_largest(const Shape& s, float value) {
  float one[1] = {value};
  over_heads<true>(s, one);
  return one[0];
}

// Floats of scratch that `store_columns` needs.
inline __host__ __device__ int column_scratch(const Shape& s) {
  return s.threads / kWarp * kHeads * s.lanes * kQuad;
}

// out[h, base + column] = sum over the threads that hold the column, for heads [first, first + 4)
// of `heads`. Barriers inside.
__device__ inline void store_columns(const Shape& s, float (&sum)[kHeads][kQuad], int base,
                                     int first, int heads, float* scratch, float* out) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int columns = s.lanes * kQuad;
  for (int offset = kWarp / 2; offset >= s.lanes; offset /= 2) {
#pragma unroll
    for (int k = 0; k < kHeads; ++k) {
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        sum[k][j] += __shfl_xor_sync(0xffffffffu, sum[k][j], offset);
      }
    }
  }
  if (lane < s.lanes) {
#pragma unroll
    for (int k = 0; k < kHeads; ++k) {
      store_floats(scratch + (warp * kHeads + k) * columns + lane * kQuad, sum[k]);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kHeads * columns; i += blockDim.x) {
    const int h = first + i / columns, m = base + i % columns;
    if (h >= heads || m >= s.pitch) continue;
    float total = 0.0f;
    for (int w = 0; w < warps; ++w) total += scratch[w * kHeads * columns + i];
    out[h * s.pitch + m] = total;
  }
  __syncthreads();
}

}  // namespace stmeta::memory
