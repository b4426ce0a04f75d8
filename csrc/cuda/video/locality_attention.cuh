// Device code of locality_attention, and how it is launched.
//
// A row (a query, or in one kernel a key) belongs to kSplit neighbouring lanes that hold sixteen
// features each, in registers; a dot product is sixteen multiply-adds and some shuffles. What the
// rows meet comes in tiles through shared memory, as fp32. The N x N weights are never stored.
#pragma once

#include "common/cuda_reduce.cuh"
#include "common/cuda_vector.cuh"

namespace stmeta::locality_attention {

constexpr int kThreads = 128;
constexpr int kEach = 16;  // features of a lane
constexpr int kTile = 32;  // rows in shared memory
constexpr int kChunk = 8;  // logits of a row that are in registers
constexpr float kLog2e = 1.44269504f;
constexpr float kLow = -1e30f;

struct Problem {
  int64_t tokens, heads, width;  // N, H, E
  int64_t stride[4];             // of B, N, 3, H in qkv; the last axis is dense
  bool exclude_self;
  int blocks;  // of rows in one (clip, head)
};

// The rows [N, E] of one (clip, head): queries, keys or values.
template <typename T>
struct Rows {
  T* data;
  int64_t step;
};

template <typename T>
__device__ inline Rows<const T> packed(const Problem& p, const T* qkv, int64_t index, int which) {
  const int64_t b = index / p.heads, h = index % p.heads;
  return {qkv + b * p.stride[0] + which * p.stride[2] + h * p.stride[3], p.stride[1]};
}

template <typename T>
__device__ inline Rows<T> dense(const Problem& p, T* data, int64_t index) {
  const int64_t b = index / p.heads, h = index % p.heads;
  return {data + (b * p.tokens * p.heads + h) * p.width, p.heads * p.width};
}

template <typename T>
__device__ inline Rows<T> packed_grad(const Problem& p, T* grad, int64_t index, int which) {
  const int64_t b = index / p.heads, h = index % p.heads;
  return {grad + ((b * p.tokens * 3 + which) * p.heads + h) * p.width, 3 * p.heads * p.width};
}

// The sixteen features from `first` on, of a row that may lie outside.
template <typename T>
__device__ inline void load_part(const Problem& p, Rows<const T> rows, int64_t row, int first,
                                 float (&out)[kEach]) {
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const bool inside = row < p.tokens && first + e < p.width;
    out[e] = inside ? to_float(rows.data[row * rows.step + first + e]) : 0.0f;
  }
}

template <typename T>
__device__ inline void store_part(const Problem& p, Rows<T> rows, int64_t row, int first,
                                  float factor, const float (&x)[kEach]) {
  if (row >= p.tokens) return;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    if (first + e < p.width) {
      rows.data[row * rows.step + first + e] = from_float<T>(x[e] * factor);
    }
  }
}

// Rows [first, first + kTile) to shared memory [kTile][kSplit * kEach], zero outside.
template <int kSplit, typename T>
__device__ inline void load_tile(const Problem& p, Rows<const T> rows, int64_t first, float* out) {
  constexpr int kWide = kSplit * kEach;
#pragma unroll(kSplit == 2 ? 2 : 4)  // 4 spills on 8.0 with two lanes a row
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kWide; i += kThreads) {
    const int64_t row = first + i / kWide;
    const int e = i % kWide;
    const bool inside = row < p.tokens && e < p.width;
    out[i] = inside ? to_float(rows.data[row * rows.step + e]) : 0.0f;
  }
}

template <int kSplit>
__device__ inline float dot(const float (&a)[kEach], const float* b) {
  float sum = 0.0f;
#pragma unroll
  for (int e = 0; e < kEach; e += 4) {
    float four[4];
    load_floats<4>(b + e, four);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += a[e + k] * four[k];
  }
#pragma unroll
  for (int lane = kSplit / 2; lane > 0; lane /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  }
  return sum;
}

__device__ inline void add(float factor, const float* b, float (&sum)[kEach]) {
#pragma unroll
  for (int e = 0; e < kEach; e += 4) {
    float four[4];
    load_floats<4>(b + e, four);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum[e + k] += factor * four[k];
  }
}

__device__ inline bool counts(const Problem& p, int64_t query, int64_t key) {
  return key < p.tokens && !(p.exclude_self && key == query);
}

// Where a thread stands: its row and the first of its features. Blocks lie along x alone, those of
// a (clip, head) side by side: along y there may be at most 65,535, and clips times heads can be
// more.
template <int kSplit>
struct Place {
  int64_t index;  // of (clip, head)
  int block;      // of the rows of that
  int64_t row;
  int first;

  __device__ explicit Place(const Problem& p)
      : index(blockIdx.x / static_cast<unsigned>(p.blocks)),
        block(static_cast<int>(blockIdx.x % static_cast<unsigned>(p.blocks))),
        row(int64_t{block} * (kThreads / kSplit) + threadIdx.x / kSplit),
        first(static_cast<int>(threadIdx.x % kSplit) * kEach) {}
};

template <int kSplit, typename T>
__global__ void __launch_bounds__(kThreads, 4)
    forward_kernel(Problem p, const T* __restrict__ qkv, const float* __restrict__ temperature,
                   T* __restrict__ out, float* __restrict__ stats) {
  constexpr int kWide = kSplit * kEach;
  auto* keys = reinterpret_cast<float*>(dynamic_shared());
  float* values = keys + kTile * kWide;
  const Place<kSplit> at(p);
  const float scale = temperature[at.index % p.heads] * kLog2e;
  float query[kEach], sum[kEach] = {};
  load_part(p, packed(p, qkv, at.index, 0), at.row, at.first, query);
  float largest = 2 * kLow, total = 0.0f;
  for (int64_t begin = 0; begin < p.tokens; begin += kTile) {
    load_tile<kSplit>(p, packed(p, qkv, at.index, 1), begin, keys);
    load_tile<kSplit>(p, packed(p, qkv, at.index, 2), begin, values);
    __syncthreads();
    for (int k = 0; k < kTile; k += kChunk) {
      float x[kChunk], top = largest;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        x[i] = dot<kSplit>(query, keys + (k + i) * kWide + at.first) * scale;
        x[i] = counts(p, at.row, begin + k + i) ? x[i] : 2 * kLow;
        top = max(top, x[i]);
      }
      const float fade = exp2f(largest - top);
      total *= fade;
#pragma unroll
      for (int e = 0; e < kEach; ++e) sum[e] *= fade;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const float w = x[i] > kLow ? exp2f(x[i] - top) : 0.0f;
        total += w;
        add(w, values + (k + i) * kWide + at.first, sum);
      }
      largest = top;
    }
    __syncthreads();
  }
  const float inverse = 1.0f / total;
  store_part(p, dense(p, out, at.index), at.row, at.first, inverse, sum);
  if (at.row < p.tokens && at.first == 0) {
    stats[(at.index * p.tokens + at.row) * 2] = largest;
    stats[(at.index * p.tokens + at.row) * 2 + 1] = inverse;
  }
}

// What the backward knows of a query: largest logit, inverse of the sum, out . grad.
constexpr int kKnown = 3;

template <int kSplit, typename T>
__global__ void __launch_bounds__(kThreads)
    know_kernel(Problem p, const T* __restrict__ out, const T* __restrict__ grad,
                const float* __restrict__ stats, float* __restrict__ known) {
  const Place<kSplit> at(p);
  float a[kEach], b[kEach];
  load_part(p, dense(p, out, at.index), at.row, at.first, a);
  load_part(p, dense(p, grad, at.index), at.row, at.first, b);
  const float centre = dot<kSplit>(a, b);
  if (at.row >= p.tokens || at.first != 0) return;
  const int64_t place = at.index * p.tokens + at.row;
  known[place * kKnown] = stats[place * 2];
  known[place * kKnown + 1] = stats[place * 2 + 1];
  known[place * kKnown + 2] = centre;
}

struct Pair {
  float weight, grad;  // of a query and a key; the gradient of its logit
};

__device__ inline Pair weigh(const Problem& p, float product, float grad_value, float scale,
                             const float* known, int64_t query, int64_t key) {
  const bool live = query < p.tokens && counts(p, query, key);
  const float w = live ? exp2f(product * scale - known[0]) * known[1] : 0.0f;
  return {w, w * (grad_value - known[2])};
}

// Rows are keys: their gradients, and those of the values.
template <int kSplit, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    backward_keys_kernel(Problem p, const T* __restrict__ qkv,
                         const float* __restrict__ temperature, const T* __restrict__ grad,
                         const float* __restrict__ known, T* __restrict__ grad_qkv) {
  constexpr int kWide = kSplit * kEach;
  auto* queries = reinterpret_cast<float*>(dynamic_shared());
  float* grads = queries + kTile * kWide;
  float* about = grads + kTile * kWide;  // [kTile][kKnown]
  const Place<kSplit> at(p);
  const float tau = temperature[at.index % p.heads];
  float key[kEach], value[kEach], grad_key[kEach] = {}, grad_value[kEach] = {};
  load_part(p, packed(p, qkv, at.index, 1), at.row, at.first, key);
  load_part(p, packed(p, qkv, at.index, 2), at.row, at.first, value);
  for (int64_t begin = 0; begin < p.tokens; begin += kTile) {
    load_tile<kSplit>(p, packed(p, qkv, at.index, 0), begin, queries);
    load_tile<kSplit>(p, dense(p, grad, at.index), begin, grads);
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kKnown; i += kThreads) {
      const bool inside = begin + i / kKnown < p.tokens;
      about[i] = inside ? known[(at.index * p.tokens + begin) * kKnown + i] : 0.0f;
    }
    __syncthreads();
    for (int i = 0; i < kTile; ++i) {
      const float* query = queries + i * kWide + at.first;
      const float* g = grads + i * kWide + at.first;
      const float product = dot<kSplit>(key, query), other = dot<kSplit>(value, g);
      const Pair w = weigh(p, product, other, tau * kLog2e, about + i * kKnown, begin + i, at.row);
      add(w.weight, g, grad_value);
      add(w.grad, query, grad_key);
    }
    __syncthreads();
  }
  store_part(p, packed_grad(p, grad_qkv, at.index, 1), at.row, at.first, tau, grad_key);
  store_part(p, packed_grad(p, grad_qkv, at.index, 2), at.row, at.first, 1.0f, grad_value);
}

// Rows are queries: their gradients, and a share of the temperature's: partial [B, blocks, H].
template <int kSplit, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    backward_queries_kernel(Problem p, const T* __restrict__ qkv,
                            const float* __restrict__ temperature, const T* __restrict__ grad,
                            const float* __restrict__ known, T* __restrict__ grad_qkv,
                            float* __restrict__ partial) {
  constexpr int kWide = kSplit * kEach;
  auto* keys = reinterpret_cast<float*>(dynamic_shared());
  float* values = keys + kTile * kWide;
  const Place<kSplit> at(p);
  const int64_t b = at.index / p.heads, h = at.index % p.heads;
  const float tau = temperature[h];
  float query[kEach], g[kEach], sum[kEach] = {}, about[kKnown] = {};
  load_part(p, packed(p, qkv, at.index, 0), at.row, at.first, query);
  load_part(p, dense(p, grad, at.index), at.row, at.first, g);
  if (at.row < p.tokens) {
#pragma unroll
    for (int i = 0; i < kKnown; ++i) {
      about[i] = known[(at.index * p.tokens + at.row) * kKnown + i];
    }
  }
  for (int64_t begin = 0; begin < p.tokens; begin += kTile) {
    load_tile<kSplit>(p, packed(p, qkv, at.index, 1), begin, keys);
    load_tile<kSplit>(p, packed(p, qkv, at.index, 2), begin, values);
    __syncthreads();
    for (int i = 0; i < kTile; ++i) {
      const float* key = keys + i * kWide + at.first;
      const float product = dot<kSplit>(query, key);
      const float other = dot<kSplit>(g, values + i * kWide + at.first);
      const Pair w = weigh(p, product, other, tau * kLog2e, about, at.row, begin + i);
      add(w.grad, key, sum);
    }
    __syncthreads();
  }
  store_part(p, packed_grad(p, grad_qkv, at.index, 0), at.row, at.first, tau, sum);
  float tilt[1] = {0.0f};
#pragma unroll
  for (int e = 0; e < kEach; ++e) tilt[0] += sum[e] * query[e];
  block_sum(tilt);
  if (threadIdx.x == 0) partial[(b * p.blocks + at.block) * p.heads + h] = tilt[0];
}

// Lanes of a row; calls f with it as a constant.
template <typename F>
void with_split(int64_t width, const F& f) {
  if (width <= kEach) return f(std::integral_constant<int, 1>{});
  if (width <= 2 * kEach) return f(std::integral_constant<int, 2>{});
  if (width <= 4 * kEach) return f(std::integral_constant<int, 4>{});
  require(width <= 8 * kEach,
          "locality_attention: the CUDA kernel takes heads of at most 128 features; use "
          "backend='triton'");
  f(std::integral_constant<int, 8>{});
}

inline Problem make_problem(int64_t tokens, int64_t heads, int64_t width, const int64_t* stride,
                            bool exclude_self) {
  Problem p = {tokens,
               heads,
               width,
               {stride[0], stride[1], stride[2], stride[3]},
               exclude_self && tokens > 1,
               0};  // a lone token sees itself
  with_split(width, [&](auto split) {
    p.blocks = static_cast<int>(ceil_divide(tokens, kThreads / decltype(split)::value));
  });
  return p;
}

inline dim3 grid_of(const Problem& p, int64_t batch) {
  const int64_t blocks = batch * p.heads * p.blocks;
  require(blocks < (int64_t{1} << 31),
          "locality_attention: the cuda backend takes less than 2^31 blocks of rows in all clips "
          "and heads; use a smaller batch");
  return dim3(static_cast<unsigned>(blocks));
}

template <typename T>
void forward(const Problem& p, int64_t batch, const T* qkv, const float* temperature, T* out,
             float* stats, Stream stream) {
  const dim3 grid = grid_of(p, batch);
  with_split(p.width, [&](auto split) {
    constexpr int kSplit = decltype(split)::value;
    constexpr size_t kShared = 2 * kTile * kSplit * kEach * sizeof(float);
    launch(forward_kernel<kSplit, T>, grid, kThreads, kShared, stream, p, qkv, temperature, out,
           stats);
  });
}

// known: fp32 [B, H, N, 3]; partial: fp32 [B, blocks, H].
template <typename T>
void backward(const Problem& p, int64_t batch, const T* qkv, const float* temperature, const T* out,
              const T* grad, const float* stats, float* known, float* partial, T* grad_qkv,
              float* grad_temperature, Stream stream) {
  const dim3 grid = grid_of(p, batch);
  with_split(p.width, [&](auto split) {
    constexpr int kSplit = decltype(split)::value;
    constexpr size_t kShared = (2 * kTile * kSplit * kEach + kTile * kKnown) * sizeof(float);
    launch(know_kernel<kSplit, T>, grid, kThreads, 0, stream, p, out, grad, stats, known);
    launch(backward_keys_kernel<kSplit, T>, grid, kThreads, kShared, stream, p, qkv, temperature,
           grad, known, grad_qkv);
    launch(backward_queries_kernel<kSplit, T>, grid, kThreads, kShared, stream, p, qkv, temperature,
           grad, known, grad_qkv, partial);
  });
  column_sum(partial, grad_temperature, batch * p.blocks, p.heads, stream);
}

}  // namespace stmeta::locality_attention
