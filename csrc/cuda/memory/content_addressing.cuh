// CUDA kernels of stmeta::content_addressing and their launches, and the pieces of them that
// ntm_step and lrua_step are made of. Reference: stmeta/ops/memory/content_addressing.py.
// Forward: B * N * M read once. Backward: the same, and as much written.
//
// In the backward, with unit keys u_h = k_h / (|k_h| + eps), q_n = 1 / (|m_n| + eps) and dz the
// gradient of the scores: dm_n = sum_h a_nh u_h - m_n (q_n / |m_n|) sum_h a_nh (u_h . m_n) and
// du_h = sum_n a_nh m_n, where a_nh = strength_h dz_nh q_n.
#pragma once

#include "cuda/memory/memory_launch.cuh"
#include "cuda/memory/memory_pass.cuh"

namespace stmeta::content_addressing {

using namespace stmeta::memory;

// Keys in shared memory, made k / (|k| + eps). Ends with a barrier.
template <typename T>
__device__ inline void load_keys(const Shape& s, int batch, const T* key, float eps, float* keys) {
  load_vectors(s, batch, key, s.heads, keys);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int h = static_cast<int>(threadIdx.x) / kWarp; h < s.heads; h += warps) {
    float square = 0.0f;
    for (int m = lane; m < s.pitch; m += kWarp) {
      square += keys[h * s.pitch + m] * keys[h * s.pitch + m];
    }
    const float scale = 1.0f / (sqrtf(warp_sum(square)) + eps);
    for (int m = lane; m < s.pitch; m += kWarp) keys[h * s.pitch + m] *= scale;
  }
  __syncthreads();
}

// Products with the unit keys become scores: strength * cosine.
template <typename T>
__device__ inline void to_scores(const Shape& s, const Place& at, const float* squares,
                                 const T* strength, float eps, float* scores) {
  const int h = own_head(s);
  const float beta = of_head(s, at, strength, h);
  for (int i = threadIdx.x; i < at.rows * s.slots; i += blockDim.x) {
    scores[i] = h < s.heads ? beta * scores[i] / (sqrtf(squares[i / s.slots]) + eps) : 0.0f;
  }
}

// Softmax over the N rows, in place. A thread keeps its numbers: no barrier before or after, where
// the same thread made them.
__device__ inline void softmax(const Shape& s, float* weights) {
  const int count = s.rows * s.slots;
  float top = -INFINITY, sum = 0.0f;
  for (int i = threadIdx.x; i < count; i += blockDim.x) top = larger(top, weights[i]);
  top = head_largest(s, top);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    weights[i] = expf(weights[i] - top);
    sum += weights[i];
  }
  sum = head_sum(s, sum);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    weights[i] = own_head(s) < s.heads ? weights[i] / sum : 0.0f;
  }
}

// Gradient of the weights [B, H, N] becomes that of the scores, in place.
template <typename T>
__device__ inline void softmax_backward(const Shape& s, const Place& at, const T* weight,
                                        float* grad) {
  const int h = own_head(s), count = s.rows * s.slots;
  const auto value = [&](int i) {
    return h < s.heads ? to_float(weight[head_index(s, at, i / s.slots, h)]) : 0.0f;
  };
  float sum = 0.0f;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += value(i) * grad[i];
  sum = head_sum(s, sum);
  for (int i = threadIdx.x; i < count; i += blockDim.x) grad[i] = value(i) * (grad[i] - sum);
}

// What a pass of the backward over a tile works on.
struct RowsBackward {
  const float* keys;  // [H, pitch], of unit length
  float* grad;        // [rows, slots], of the scores; becomes `a`
  float* dots;        // [rows, slots], scratch
  float* squares;     // [rows], scratch
  float* grad_tile;   // [rows, pitch] fp32
  float* scratch;
  float* grad_keys;      // [H, pitch], result
  float* grad_strength;  // [slots], result
};

// Subtracts m_n (q_n / |m_n|) sum_h a_nh (u_h . m_n) from the gradient's rows.
template <typename Source>
__device__ inline void subtract_radial(const Shape& s, int rows, const Source& source, float eps,
                                       const RowsBackward& p) {
  const Lanes by(s.lanes);
  for (int n = by.row; n < rows; n += by.step) {
    const float length = sqrtf(p.squares[n]);
    if (length == 0.0f) continue;
    float sum = 0.0f;
    for (int h = 0; h < s.heads; ++h) sum += p.grad[n * s.slots + h] * p.dots[n * s.slots + h];
    sum /= length * (length + eps);
    for (int column = by.own * kQuad; column < s.pitch; column += by.count * kQuad) {
      float m[kQuad], x[kQuad];
      float* row = p.grad_tile + n * s.pitch + column;
      source.load(n, column, m);
      load_floats(row, x);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) x[j] -= sum * m[j];
      store_floats(row, x);
    }
  }
}

// Writes the gradient of the rows, or adds it to what there is. Barriers inside; call after one.
template <typename T, typename Source>
__device__ inline void backward_rows(const Shape& s, const Place& at, const Source& source,
                                     const T* strength, float eps, bool add,
                                     const RowsBackward& p) {
  row_dots(s, at.rows, source, p.keys, s.heads, false, p.dots, p.squares);
  __syncthreads();
  const int h = own_head(s);
  const float beta = of_head(s, at, strength, h);
  float sum = 0.0f;
  for (int i = threadIdx.x; h < s.heads && i < at.rows * s.slots; i += blockDim.x) {
    const float slope = p.grad[i] / (sqrtf(p.squares[i / s.slots]) + eps);
    sum += slope * p.dots[i];
    p.grad[i] = beta * slope;
  }
  sum = head_sum(s, sum);  // and a barrier, for `grad`
  if (static_cast<int>(threadIdx.x) < s.slots) p.grad_strength[threadIdx.x] = sum;
  add_outer(s, at.rows, p.grad, p.keys, s.heads, add, p.grad_tile);
  subtract_radial(s, at.rows, source, eps, p);
  column_sums(s, at.rows, source, p.grad, s.heads, p.scratch, p.grad_keys);
}

// ---- kernels of the op ----

template <typename T>
struct Forward {
  Strided<T> memory;  // [B, N, M]
  const T* key;       // [B, H, M]
  const T* strength;  // [B, H]
  T* weight;          // [B, H, N]
  float eps;
};

template <typename T>
struct Shared {
  T* tile;
  float *keys, *scores, *squares;

  __host__ __device__ Shared(Arena& arena, const Shape& s)
      : tile(arena.take<T>(s.tile * s.pitch)),
        keys(arena.take<float>(s.heads * s.pitch)),
        scores(arena.take<float>(s.tile * s.slots)),
        squares(arena.take<float>(s.tile)) {}
};

// scores: fp32 [B, N, slots], needed with several tiles.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    rows_kernel(const __grid_constant__ Shape s, const __grid_constant__ Forward<T> p,
                float* __restrict__ scores) {
  Arena arena{dynamic_shared()};
  const Shared<T> shared(arena, s);
  const Place at = tile_of(s);
  stage(s, at, p.memory, shared.tile);
  load_keys(s, at.batch, p.key, p.eps, shared.keys);
  const Rows<T> rows{shared.tile, s.pitch};
  row_dots(s, at.rows, rows, shared.keys, s.heads, false, shared.scores, shared.squares);
  __syncthreads();
  to_scores(s, at, shared.squares, p.strength, p.eps, shared.scores);
  if (s.tiles > 1) {
    copy(shared.scores, at.rows * s.slots, weights_at(s, at, scores));
    return;
  }
  softmax(s, shared.scores);
  store_heads(s, at, shared.scores, p.weight);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    softmax_kernel(const __grid_constant__ Shape s, float* scores, T* __restrict__ weight) {
  const Place at = element_of(s);
  float* own = weights_at(s, at, scores);
  softmax(s, own);
  store_heads(s, at, own, weight);
}

template <typename T>
struct Backward {
  Strided<T> memory;  // [B, N, M]
  const T* grad;      // [B, H, N]
  const T* key;       // [B, H, M]
  const T* strength;  // [B, H]
  const T* weight;    // [B, H, N]
  T* grad_memory;     // [B, N, M]
  T* grad_key;        // [B, H, M]
  T* grad_strength;   // [B, H]
  float eps;

  Finish<T> finish() const { return {{}, {}, key, grad_key, {grad_strength, nullptr}, eps}; }
};

template <typename T>
struct BackwardShared {
  T* tile;
  float *grad_tile, *keys, *grad, *dots, *squares, *sums, *scratch;

  __host__ __device__ BackwardShared(Arena& arena, const Shape& s)
      : tile(arena.take<T>(s.tile * s.pitch)),
        grad_tile(arena.take<float>(s.tile * s.pitch)),
        keys(arena.take<float>(s.heads * s.pitch)),
        grad(arena.take<float>(s.tile * s.slots)),
        dots(arena.take<float>(s.tile * s.slots)),
        squares(arena.take<float>(s.tile)),
        sums(arena.take<float>(s.heads * s.pitch + kScalars * s.slots)),
        scratch(arena.take<float>(column_scratch(s))) {}
};

// Gradient of the scores, fp32 [B, N, slots]: first kernel of several tiles.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    softmax_backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p,
                            float* scores) {
  const Place at = element_of(s);
  float* own = weights_at(s, at, scores);
  load_heads(s, at, p.grad, own);
  softmax_backward(s, at, p.weight, own);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p,
                    const __grid_constant__ Finish<T> f, const float* __restrict__ scores,
                    float* __restrict__ partials) {
  Arena arena{dynamic_shared()};
  const BackwardShared<T> shared(arena, s);
  const Place at = tile_of(s);
  stage(s, at, p.memory, shared.tile);
  load_keys(s, at.batch, p.key, p.eps, shared.keys);
  if (s.tiles == 1) {
    load_heads(s, at, p.grad, shared.grad);
    softmax_backward(s, at, p.weight, shared.grad);
  } else {
    copy(weights_at(s, at, scores), at.rows * s.slots, shared.grad);
  }
  float* strengths = shared.sums + s.heads * s.pitch;
  if (static_cast<int>(threadIdx.x) < s.slots) strengths[s.slots + threadIdx.x] = 0.0f;
  const RowsBackward rows{shared.keys,      shared.grad,    shared.dots, shared.squares,
                          shared.grad_tile, shared.scratch, shared.sums, strengths};
  backward_rows(s, at, Rows<T>{shared.tile, s.pitch}, p.strength, p.eps, false, rows);
  __syncthreads();
  unstage(s, at, shared.grad_tile, p.grad_memory);
  conclude(s, at, f, shared.sums, partials);
}

// ---- host ----

template <typename T, template <typename> typename Layout>
Shape shape_of(int64_t batch, int64_t rows, int64_t width, int64_t heads, int tile) {
  Shape s = make_shape("content_addressing", batch, rows, width, heads);
  cut(s, tile, true, shared_bytes<T, Layout>);
  return s;
}

inline int64_t scratch_size(const Shape& s) { return s.tiles == 1 ? 0 : s.weights(); }

template <typename T>
void forward(const Shape& s, const Forward<T>& p, float* scratch, Stream stream) {
  if (s.batch == 0) return;
  launch(rows_kernel<T>, dim3(s.blocks()), s.threads, shared_bytes<T, Shared>(s), stream, s, p,
         scratch);
  if (s.tiles == 1) return;
  const dim3 elements(static_cast<unsigned>(s.batch));
  launch(softmax_kernel<T>, elements, element_threads(s), 0, stream, s, scratch, p.weight);
}

template <typename T>
int64_t scratch_size(const Shape& s, const Backward<T>& p) {
  return scratch_size(s) + partial_size(s, p.finish());
}

template <typename T>
void backward(const Shape& s, const Backward<T>& p, float* scratch, Stream stream) {
  if (s.batch == 0) return;
  const Finish<T> f = p.finish();
  float* partials = scratch + scratch_size(s);
  if (s.tiles > 1) {
    const dim3 elements(static_cast<unsigned>(s.batch));
    launch(softmax_backward_kernel<T>, elements, element_threads(s), 0, stream, s, p, scratch);
  }
  launch(backward_kernel<T>, dim3(s.blocks()), s.threads, shared_bytes<T, BackwardShared>(s),
         stream, s, p, f, scratch, partials);
  finish_partials(s, f, partials, stream);
}

}  // namespace stmeta::content_addressing
