// CUDA kernels of stmeta::erase_add and their launches, and the pieces of them that ntm_step is
// made of. Reference: stmeta/ops/memory/erase_add.py.
// Forward: B * N * M read and written once. Backward: twice as much read.
#pragma once

#include "cuda/memory/memory_launch.cuh"
#include "cuda/memory/memory_pass.cuh"

namespace stmeta::erase_add {

using namespace stmeta::memory;

constexpr int kRowsAtOnce = 4;  // that share a load of erase and add

// The write heads, in shared memory.
struct Writes {
  const float* weights;  // [rows, slots], from the first write head on
  const float* erase;    // [W, pitch]
  const float* add;      // [W, pitch]
  int heads;             // W
};

// Rows after the write, made on the fly.
template <typename T>
struct Written {
  const T* tile;
  int pitch, slots;
  Writes writes;

  __device__ void load(int n, int column, float (&x)[kQuad]) const {
    float sum[kQuad] = {};
    load_floats(tile + n * pitch + column, x);
    for (int h = 0; h < writes.heads; ++h) {
      const float w = writes.weights[n * slots + h];
      float e[kQuad], a[kQuad];
      load_floats(writes.erase + h * pitch + column, e);
      load_floats(writes.add + h * pitch + column, a);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        x[j] *= 1.0f - w * e[j];
        sum[j] += w * a[j];
      }
    }
#pragma unroll
    for (int j = 0; j < kQuad; ++j) x[j] += sum[j];
  }
};

// The write, or one half of it, in place. The erasure alone is the backward to the memory.
template <bool kErase, bool kAdd, typename T>
__device__ inline void write(const Shape& s, int rows, const Writes& p, T* tile) {
  const Lanes by(s.lanes);
  for (int column = by.own * kQuad; column < s.pitch; column += by.count * kQuad) {
    for (int start = by.row; start < rows; start += kRowsAtOnce * by.step) {
      float x[kRowsAtOnce][kQuad] = {}, sum[kRowsAtOnce][kQuad] = {};
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const int n = start + r * by.step;
        if (n < rows) load_floats(tile + n * s.pitch + column, x[r]);
      }
      for (int h = 0; h < p.heads; ++h) {
        float e[kQuad] = {}, a[kQuad] = {};
        if (kErase) load_floats(p.erase + h * s.pitch + column, e);
        if (kAdd) load_floats(p.add + h * s.pitch + column, a);
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
          const int n = start + r * by.step;
          const float w = n < rows ? p.weights[n * s.slots + h] : 0.0f;
#pragma unroll
          for (int j = 0; j < kQuad; ++j) {
            if (kErase) x[r][j] *= 1.0f - w * e[j];
            if (kAdd) sum[r][j] += w * a[j];
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const int n = start + r * by.step;
#pragma unroll
        for (int j = 0; j < kQuad; ++j) x[r][j] += sum[r][j];
        if (n < rows) store_floats(tile + n * s.pitch + column, x[r]);
      }
    }
  }
}

// Multiplies x by the erasures of the heads outside of [first, first + 4).
__device__ inline void erase_others(const Shape& s, const Writes& p, int n, int column, int first,
                                    float (&x)[kQuad]) {
  for (int h = 0; h < p.heads; ++h) {
    if (h >= first && h < first + kHeads) continue;
    const float w = p.weights[n * s.slots + h];
    float e[kQuad];
    load_floats(p.erase + h * s.pitch + column, e);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) x[j] *= 1.0f - w * e[j];
  }
}

// The sums of four heads over a thread's rows, and the heads' erase and add.
struct FourHeads {
  float erase[kHeads][kQuad], add[kHeads][kQuad];
  float grad_erase[kHeads][kQuad] = {}, grad_add[kHeads][kQuad] = {};

  // One row of the memory and of its gradient. `product` is memory * gradient * the erasures of
  // all other heads: each head's own is left out by products of those before and after it, as
  // 1 - w * e may be 0.
  __device__ void step(const float (&w)[kHeads], const float (&grad)[kQuad],
                       const float (&product)[kQuad], float (&dot)[kHeads]) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      float after[kHeads];
      after[kHeads - 1] = 1.0f;
#pragma unroll
      for (int k = kHeads - 1; k > 0; --k) after[k - 1] = after[k] * (1.0f - w[k] * erase[k][j]);
      float before = product[j];
#pragma unroll
      for (int k = 0; k < kHeads; ++k) {
        const float others = before * after[k];
        dot[k] += grad[j] * add[k][j] - erase[k][j] * others;
        grad_erase[k][j] -= w[k] * others;
        grad_add[k][j] += w[k] * grad[j];
        before *= 1.0f - w[k] * erase[k][j];
      }
    }
  }
};

// What the backward of the write gives besides the gradient of the memory.
struct WriteGrads {
  float* weights;  // [rows, slots], from the first write head on; added to
  float* erase;    // [W, pitch]
  float* add;      // [W, pitch]
};

// memory: [rows, pitch]; grad: the same of fp32, of the memory after the write. Barriers inside.
template <typename T>
__device__ inline void write_backward(const Shape& s, int rows, const Writes& p, const T* memory,
                                      const float* grad, const WriteGrads& out, float* scratch) {
  const Lanes by(s.lanes);
  for (int base = 0; base < s.pitch; base += by.count * kQuad) {
    const int column = base + by.own * kQuad;
    for (int first = 0; first < p.heads; first += kHeads) {
      FourHeads four;
      take(s, p.erase, first, p.heads, column, four.erase);
      take(s, p.add, first, p.heads, column, four.add);
      for (int start = 0; start < rows; start += by.step) {  // the same for all lanes of a warp
        const int n = start + by.row;
        float dot[kHeads] = {};
        if (n < rows && column < s.pitch) {
          float g[kQuad], product[kQuad], w[kHeads];
          load_floats(memory + n * s.pitch + column, product);
          load_floats(grad + n * s.pitch + column, g);
#pragma unroll
          for (int j = 0; j < kQuad; ++j) product[j] *= g[j];
          erase_others(s, p, n, column, first, product);
          take(p.weights + n * s.slots, first, p.heads, w);
          four.step(w, g, product, dot);
        }
        lane_sums(s, dot);
        if (n >= rows || by.own > 0) continue;
#pragma unroll
        for (int k = 0; k < kHeads; ++k) {
          if (first + k < p.heads) out.weights[n * s.slots + first + k] += dot[k];
        }
      }
      store_columns(s, four.grad_erase, base, first, p.heads, scratch, out.erase);
      store_columns(s, four.grad_add, base, first, p.heads, scratch, out.add);
    }
  }
}

// ---- kernels of the op ----

template <typename T>
struct Forward {
  Strided<T> memory;  // [B, N, M]
  const T* weight;    // [B, W, N]
  const T* erase;     // [B, W, M]
  const T* add;       // [B, W, M]
  T* out;             // [B, N, M]
};

template <typename T>
struct Shared {
  T* tile;
  float *weights, *erase, *add;

  __host__ __device__ Shared(Arena& arena, const Shape& s)
      : tile(arena.take<T>(s.tile * s.pitch)),
        weights(arena.take<float>(s.tile * s.slots)),
        erase(arena.take<float>(s.heads * s.pitch)),
        add(arena.take<float>(s.heads * s.pitch)) {}
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Forward<T> p) {
  Arena arena{dynamic_shared()};
  const Shared<T> shared(arena, s);
  const Place at = tile_of(s);
  stage(s, at, p.memory, shared.tile);
  load_heads(s, at, p.weight, shared.weights);
  load_vectors(s, at.batch, p.erase, s.heads, shared.erase);
  load_vectors(s, at.batch, p.add, s.heads, shared.add);
  __syncthreads();
  const Writes writes{shared.weights, shared.erase, shared.add, s.heads};
  write<true, true>(s, at.rows, writes, shared.tile);
  __syncthreads();
  unstage(s, at, shared.tile, p.out);
}

template <typename T>
struct Backward {
  Strided<T> memory, grad;  // [B, N, M]
  const T* weight;          // [B, W, N]
  const T* erase;           // [B, W, M]
  const T* add;             // [B, W, M]
  T* grad_memory;           // [B, N, M]
  T* grad_weight;           // [B, W, N]
  T* grad_erase;            // [B, W, M]
  T* grad_add;              // [B, W, M]

  Finish<T> finish(const Shape& s) const {
    return {{grad_erase, grad_add}, {s.heads, s.heads}, nullptr, nullptr, {}, 0};
  }
};

template <typename T>
struct BackwardShared {
  T* tile;
  float *grad, *weights, *grad_weights, *erase, *add, *sums, *scratch;

  __host__ __device__ BackwardShared(Arena& arena, const Shape& s)
      : tile(arena.take<T>(s.tile * s.pitch)),
        grad(arena.take<float>(s.tile * s.pitch)),
        weights(arena.take<float>(s.tile * s.slots)),
        grad_weights(arena.take<float>(s.tile * s.slots)),
        erase(arena.take<float>(s.heads * s.pitch)),
        add(arena.take<float>(s.heads * s.pitch)),
        sums(arena.take<float>(2 * s.heads * s.pitch + kScalars * s.slots)),
        scratch(arena.take<float>(column_scratch(s))) {}
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p,
                    const __grid_constant__ Finish<T> f, float* __restrict__ partials) {
  Arena arena{dynamic_shared()};
  const BackwardShared<T> shared(arena, s);
  const Place at = tile_of(s);
  stage(s, at, p.memory, shared.tile);
  stage(s, at, p.grad, shared.grad);
  load_heads(s, at, p.weight, shared.weights);
  load_vectors(s, at.batch, p.erase, s.heads, shared.erase);
  load_vectors(s, at.batch, p.add, s.heads, shared.add);
  for (int i = threadIdx.x; i < at.rows * s.slots; i += blockDim.x) shared.grad_weights[i] = 0.0f;
  float* grad_add = shared.sums + s.heads * s.pitch;
  for (int i = threadIdx.x; i < kScalars * s.slots; i += blockDim.x) {
    grad_add[s.heads * s.pitch + i] = 0.0f;
  }
  __syncthreads();
  const Writes writes{shared.weights, shared.erase, shared.add, s.heads};
  write_backward(s, at.rows, writes, shared.tile, shared.grad,
                 WriteGrads{shared.grad_weights, shared.sums, grad_add}, shared.scratch);
  write<true, false>(s, at.rows, writes, shared.grad);
  __syncthreads();
  unstage(s, at, shared.grad, p.grad_memory);
  store_heads(s, at, shared.grad_weights, p.grad_weight);
  conclude(s, at, f, shared.sums, partials);
}

// ---- host ----

template <typename T>
Shape forward_shape(int64_t batch, int64_t rows, int64_t width, int64_t heads, int tile) {
  Shape s = make_shape("erase_add", batch, rows, width, heads);
  cut(s, tile, false, shared_bytes<T, Shared>);  // tiles share nothing
  return s;
}

template <typename T>
void forward(const Shape& s, const Forward<T>& p, Stream stream) {
  if (s.batch == 0) return;
  launch(forward_kernel<T>, dim3(s.blocks()), s.threads, shared_bytes<T, Shared>(s), stream, s, p);
}

template <typename T>
Shape backward_shape(int64_t batch, int64_t rows, int64_t width, int64_t heads, int tile) {
  Shape s = make_shape("erase_add", batch, rows, width, heads);
  cut(s, tile, true, shared_bytes<T, BackwardShared>);
  return s;
}

template <typename T>
int64_t scratch_size(const Shape& s, const Backward<T>& p) {
  return partial_size(s, p.finish(s));
}

template <typename T>
void backward(const Shape& s, const Backward<T>& p, float* scratch, Stream stream) {
  if (s.batch == 0) return;
  const Finish<T> f = p.finish(s);
  launch(backward_kernel<T>, dim3(s.blocks()), s.threads, shared_bytes<T, BackwardShared>(s),
         stream, s, p, f, scratch);
  finish_partials(s, f, scratch, stream);
}

}  // namespace stmeta::erase_add
