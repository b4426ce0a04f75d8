// CUDA kernels of stmeta::temporal_link and their launches. Reference:
// stmeta/ops/memory/temporal_link.py.
//
// A block takes a tile of rows of one head's links, a warp four of them, a lane four columns at a
// time. Sums over a tile's columns are partial: finish_kernel adds them, tile by tile in order.
// Forward: 2 * B * W * N * N numbers moved. Backward: 3 * B * W * N * N, and a sixteenth of B * W *
// N * N floats for the partial sums, written and read.
//
// Letters: B batch, W write heads, N rows.
#pragma once

#include "cuda/memory/memory_launch.cuh"

namespace stmeta::temporal_link {

constexpr int kQuad = 4;   // columns of a lane
constexpr int kRows = 4;   // of a warp
constexpr int kWarps = 8;  // the most of a block
constexpr int kTile = kWarps * kRows;
constexpr int kThreads = kWarps * kWarp;
constexpr int kColumns = kWarp * kQuad;  // of a warp
constexpr int kSums = 2;                 // over rows, of each column

struct Shape {
  int batch, heads, rows;  // B, W, N
  int tile, tiles;         // rows of a tile; tiles of a head
  int threads;

  __host__ __device__ int64_t all_heads() const { return int64_t{batch} * heads; }
};

// [B, W, N, N] of any strides. wide: see load_row.
template <typename T>
struct Links {
  const T* data;
  int64_t stride_b, stride_w, stride_n, stride_m;
  bool wide;

  __device__ const T* head(const Shape& s, int64_t head) const {
    return data + head / s.heads * stride_b + head % s.heads * stride_w;
  }
};

// The weights and the precedence of each head, [B, W, N].
template <typename T>
struct Vectors {
  const T* weight;
  const T* precedence;
  bool wide;
};

// The rows of a warp, and where a lane's columns begin.
struct Place {
  int64_t head;
  int tile, first, count, column;

  __device__ explicit Place(const Shape& s)
      : head(static_cast<int64_t>(blockIdx.x) / s.tiles),
        tile(static_cast<int>(blockIdx.x) - static_cast<int>(head) * s.tiles),
        first(tile * s.tile + static_cast<int>(threadIdx.x) / kWarp * kRows),
        count(max(0, min(kRows, min((tile + 1) * s.tile, s.rows) - first))),
        column(static_cast<int>(threadIdx.x) % kWarp * kQuad) {}
};

template <typename T>
__device__ inline void weights_of_rows(const T* weight, const Place& at, float (&out)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) out[r] = r < at.count ? to_float(weight[at.first + r]) : 0.0f;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Links<T> link,
                   const __grid_constant__ Vectors<T> v, T* __restrict__ link_out,
                   T* __restrict__ precedence_out) {
  const Place at(s);
  const int64_t vector = at.head * s.rows;
  const T* source = link.head(s, at.head);
  const bool wide = s.rows % kQuad == 0;  // the result is an allocation, so it is aligned
  float after[kRows];
  weights_of_rows(v.weight + vector, at, after);
  for (int c = at.column; c < s.rows; c += kColumns) {
    float weight[kQuad], precedence[kQuad];
    load_row(v.weight + vector, c, s.rows, 1, v.wide, weight);
    load_row(v.precedence + vector, c, s.rows, 1, v.wide, precedence);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= at.count) continue;
      const int i = at.first + r;
      float x[kQuad];
      load_row(source + i * link.stride_n, c, s.rows, link.stride_m, link.wide, x);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        x[k] = (1.0f - after[r] - weight[k]) * x[k] + after[r] * precedence[k];
        if (c + k == i) x[k] = 0.0f;
      }
      store_row(link_out + (vector + i) * s.rows, c, s.rows, wide, x);
    }
  }
  if (at.tile > 0) return;
  float total[1] = {0.0f};
  for (int n = threadIdx.x; n < s.rows; n += blockDim.x) total[0] += to_float(v.weight[vector + n]);
  block_sum(total);
  for (int n = threadIdx.x; n < s.rows; n += blockDim.x) {
    const float weight = to_float(v.weight[vector + n]);
    const float precedence = to_float(v.precedence[vector + n]);
    precedence_out[vector + n] = from_float<T>((1.0f - total[0]) * precedence + weight);
  }
}

// Adds up what each warp has for its 4 columns a lane, and leaves it in sums[kind * rows + column].
__device__ inline void store_columns(const Shape& s, int first, const float (&kept)[kQuad],
                                     const float (&added)[kQuad], float* sums) {
  __shared__ Pack<float, kQuad> of_warp[kWarps][kSums][kWarp];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  store_floats(of_warp[warp][0][lane].at, kept);
  store_floats(of_warp[warp][1][lane].at, added);
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int i = threadIdx.x; i < kSums * kColumns; i += blockDim.x) {
    const int kind = i / kColumns, column = i % kColumns;
    if (first + column >= s.rows) continue;
    float sum = 0.0f;
    for (int w = 0; w < warps; ++w) sum += of_warp[w][kind][column / kQuad].at[column % kQuad];
    sums[static_cast<int64_t>(kind) * s.rows + first + column] = sum;
  }
  __syncthreads();
}

// With G the gradient of the new links, 0 on the diagonal, and g that of the new precedence:
//   dL[i, j] = (1 - w[i] - w[j]) G[i, j]
//   dw[i]    = sum_j G[i, j] (p[j] - L[i, j]) - sum_k G[k, i] L[k, i] + g[i] - sum_j g[j] p[j]
//   dp[j]    = sum_i w[i] G[i, j] + (1 - sum w) g[j]
template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Links<T> link,
                    const __grid_constant__ Links<T> grad, const __grid_constant__ Vectors<T> v,
                    T* __restrict__ d_link,
                    float* __restrict__ row_sums,    // [B, W, N]: sum_j G (p - L)
                    float* __restrict__ partials) {  // [B, W, tiles, 2, N]
  const Place at(s);
  const int64_t vector = at.head * s.rows;
  const T* source = link.head(s, at.head);
  const T* grads = grad.head(s, at.head);
  const bool wide = s.rows % kQuad == 0;
  float after[kRows], sum[kRows] = {};
  weights_of_rows(v.weight + vector, at, after);
  partials += static_cast<int64_t>(blockIdx.x) * kSums * s.rows;
  for (int start = 0; start < s.rows; start += kColumns) {  // the same for all threads
    const int c = start + at.column;
    float weight[kQuad], precedence[kQuad], kept[kQuad] = {}, added[kQuad] = {};
    load_row(v.weight + vector, c, s.rows, 1, v.wide, weight);
    load_row(v.precedence + vector, c, s.rows, 1, v.wide, precedence);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= at.count) continue;
      const int i = at.first + r;
      float x[kQuad], g[kQuad];
      load_row(source + i * link.stride_n, c, s.rows, link.stride_m, link.wide, x);
      load_row(grads + i * grad.stride_n, c, s.rows, grad.stride_m, grad.wide, g);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        if (c + k == i) g[k] = 0.0f;
        const float own = g[k] * x[k];
        kept[k] += own;
        added[k] += after[r] * g[k];
        sum[r] += g[k] * precedence[k] - own;
        g[k] *= 1.0f - after[r] - weight[k];
      }
      store_row(d_link + (vector + i) * s.rows, c, s.rows, wide, g);
    }
    store_columns(s, start, kept, added, partials);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float total = warp_sum(sum[r]);
    if (at.column == 0 && r < at.count) row_sums[vector + at.first + r] = total;
  }
}

// A block is a head: the sums of its tiles, and what comes from the precedence.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ Shape s, const __grid_constant__ Vectors<T> v,
                  const T* __restrict__ grad, const float* __restrict__ row_sums,
                  const float* __restrict__ partials, T* __restrict__ d_precedence,
                  T* __restrict__ d_weight) {
  const int64_t vector = static_cast<int64_t>(blockIdx.x) * s.rows;
  partials += vector * s.tiles * kSums;
  float shared[2] = {};  // sum of w, and of g * p
  for (int n = threadIdx.x; n < s.rows; n += blockDim.x) {
    shared[0] += to_float(v.weight[vector + n]);
    shared[1] += to_float(grad[vector + n]) * to_float(v.precedence[vector + n]);
  }
  block_sum(shared);
  for (int n = threadIdx.x; n < s.rows; n += blockDim.x) {
    float kept = 0.0f, added = 0.0f;
#pragma unroll 4
    for (int t = 0; t < s.tiles; ++t) {
      const int64_t tile = static_cast<int64_t>(t) * kSums * s.rows;
      kept += partials[tile + n];
      added += partials[tile + s.rows + n];
    }
    const float g = to_float(grad[vector + n]);
    d_weight[vector + n] = from_float<T>(row_sums[vector + n] - kept + (g - shared[1]));
    d_precedence[vector + n] = from_float<T>(added + (1.0f - shared[0]) * g);
  }
}

// ---- host ----

// tile: rows of a tile; 0 = as many as a block can have.
inline Shape make_shape(int64_t batch, int64_t heads, int64_t rows, int tile) {
  require(rows < (int64_t{1} << 30), "temporal_link: N must be below 2^30");
  Shape s{};
  s.batch = static_cast<int>(batch), s.heads = static_cast<int>(heads);
  s.rows = static_cast<int>(rows);
  s.tile = std::max(1, std::min(tile > 0 ? std::min(tile, kTile) : kTile, s.rows));
  const int64_t tiles = std::max<int64_t>(1, ceil_divide(s.rows, s.tile));
  require(batch * heads * tiles < (int64_t{1} << 31), "temporal_link: too many links");
  s.tiles = static_cast<int>(tiles);
  s.threads = static_cast<int>(ceil_divide(s.tile, kRows)) * kWarp;
  return s;
}

template <typename T>
Links<T> make_links(const Shape& s, const T* data, const int64_t* strides) {
  const bool wide = strides[3] == 1 && s.rows % kQuad == 0 && strides[0] % kQuad == 0 &&
                    strides[1] % kQuad == 0 && strides[2] % kQuad == 0 && aligned(data, 16);
  return {data, strides[0], strides[1], strides[2], strides[3], wide};
}

template <typename T>
Vectors<T> make_vectors(const Shape& s, const T* weight, const T* precedence) {
  const bool wide = s.rows % kQuad == 0 && aligned(weight, 16) && aligned(precedence, 16);
  return {weight, precedence, wide};
}

template <typename T>
void forward(const Shape& s, const Links<T>& link, const Vectors<T>& v, T* link_out,
             T* precedence_out, Stream stream) {
  if (s.all_heads() * s.rows == 0) return;
  launch(forward_kernel<T>, dim3(static_cast<unsigned>(s.all_heads() * s.tiles)), s.threads, 0,
         stream, s, link, v, link_out, precedence_out);
}

// Floats of scratch: the sums of rows, then the partial sums of columns.
inline int64_t scratch_size(const Shape& s) {
  return s.all_heads() * s.rows * (1 + int64_t{kSums} * s.tiles);
}

template <typename T>
struct Grads {
  Links<T> link;        // in:  [B, W, N, N]
  const T* precedence;  // in:  [B, W, N]
  T* d_link;            // out: [B, W, N, N]
  T* d_precedence;      // out: [B, W, N]
  T* d_weight;          // out: [B, W, N]
};

template <typename T>
void backward(const Shape& s, const Links<T>& link, const Vectors<T>& v, const Grads<T>& grads,
              float* scratch, Stream stream) {
  if (s.all_heads() * s.rows == 0) return;
  float* partials = scratch + s.all_heads() * s.rows;
  launch(backward_kernel<T>, dim3(static_cast<unsigned>(s.all_heads() * s.tiles)), s.threads, 0,
         stream, s, link, grads.link, v, grads.d_link, scratch, partials);
  const int64_t threads = std::min<int64_t>(ceil_divide(s.rows, kWarp) * kWarp, kThreads);
  launch(finish_kernel<T>, dim3(static_cast<unsigned>(s.all_heads())), static_cast<int>(threads), 0,
         stream, s, v, grads.precedence, scratch, partials, grads.d_precedence, grads.d_weight);
}

}  // namespace stmeta::temporal_link
