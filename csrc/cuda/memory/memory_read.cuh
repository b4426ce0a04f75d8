// CUDA kernels of stmeta::memory_read and their launches. Reference:
// stmeta/ops/memory/memory_read.py. Forward: B * N * (M + H) read once. Backward: the same, and as
// much written.
#pragma once

#include "cuda/memory/memory_launch.cuh"
#include "cuda/memory/memory_pass.cuh"

namespace stmeta::memory_read {

using namespace stmeta::memory;

template <typename T>
struct Forward {
  Strided<T> memory;  // [B, N, M]
  const T* weight;    // [B, H, N]
  T* read;            // [B, H, M]

  Finish<T> finish(const Shape& s) const {
    return {{read, nullptr}, {s.heads, 0}, nullptr, nullptr, {}, 0};
  }
};

template <typename T>
struct Shared {
  T* tile;
  float *weights, *sums, *scratch;

  __host__ __device__ Shared(Arena& arena, const Shape& s)
      : tile(arena.take<T>(s.tile * s.pitch)),
        weights(arena.take<float>(s.tile * s.slots)),
        sums(arena.take<float>(s.heads * s.pitch + kScalars * s.slots)),
        scratch(arena.take<float>(column_scratch(s))) {}
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Forward<T> p,
                   const __grid_constant__ Finish<T> f, float* __restrict__ partials) {
  Arena arena{dynamic_shared()};
  const Shared<T> shared(arena, s);
  const Place at = tile_of(s);
  stage(s, at, p.memory, shared.tile);
  load_heads(s, at, p.weight, shared.weights);
  for (int i = threadIdx.x; i < kScalars * s.slots; i += blockDim.x) {
    shared.sums[s.heads * s.pitch + i] = 0.0f;
  }
  __syncthreads();
  const Rows<T> rows{shared.tile, s.pitch};
  column_sums(s, at.rows, rows, shared.weights, s.heads, shared.scratch, shared.sums);
  conclude(s, at, f, shared.sums, partials);
}

template <typename T>
struct Backward {
  Strided<T> memory;  // [B, N, M]
  const T* grad;      // [B, H, M]
  const T* weight;    // [B, H, N]
  T* grad_memory;     // [B, N, M]
  T* grad_weight;     // [B, H, N]
};

template <typename T>
struct BackwardShared {
  T* tile;
  float *grad_tile, *weights, *dots, *grad;

  __host__ __device__ BackwardShared(Arena& arena, const Shape& s)
      : tile(arena.take<T>(s.tile * s.pitch)),
        grad_tile(arena.take<float>(s.tile * s.pitch)),
        weights(arena.take<float>(s.tile * s.slots)),
        dots(arena.take<float>(s.tile * s.slots)),
        grad(arena.take<float>(s.heads * s.pitch)) {}
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p) {
  Arena arena{dynamic_shared()};
  const BackwardShared<T> shared(arena, s);
  const Place at = tile_of(s);
  stage(s, at, p.memory, shared.tile);
  load_heads(s, at, p.weight, shared.weights);
  load_vectors(s, at.batch, p.grad, s.heads, shared.grad);
  __syncthreads();
  const Rows<T> rows{shared.tile, s.pitch};
  row_dots(s, at.rows, rows, shared.grad, s.heads, false, shared.dots, nullptr);
  add_outer(s, at.rows, shared.weights, shared.grad, s.heads, false, shared.grad_tile);
  __syncthreads();
  unstage(s, at, shared.grad_tile, p.grad_memory);
  store_heads(s, at, shared.dots, p.grad_weight);
}

// ---- host ----

// tile: see cut(); scratch of `scratch_size` floats.
template <typename T>
Shape forward_shape(int64_t batch, int64_t rows, int64_t width, int64_t heads, int tile) {
  Shape s = make_shape("memory_read", batch, rows, width, heads);
  cut(s, tile, true, shared_bytes<T, Shared>);
  return s;
}

template <typename T>
int64_t scratch_size(const Shape& s, const Forward<T>& p) {
  return partial_size(s, p.finish(s));
}

template <typename T>
void forward(const Shape& s, const Forward<T>& p, float* scratch, Stream stream) {
  if (s.batch == 0) return;
  const Finish<T> f = p.finish(s);
  launch(forward_kernel<T>, dim3(s.blocks()), s.threads, shared_bytes<T, Shared>(s), stream, s, p,
         f, scratch);
  finish_partials(s, f, scratch, stream);
}

template <typename T>
Shape backward_shape(int64_t batch, int64_t rows, int64_t width, int64_t heads, int tile) {
  Shape s = make_shape("memory_read", batch, rows, width, heads);
  cut(s, tile, false, shared_bytes<T, BackwardShared>);  // tiles share nothing
  return s;
}

template <typename T>
void backward(const Shape& s, const Backward<T>& p, Stream stream) {
  if (s.batch == 0) return;
  launch(backward_kernel<T>, dim3(s.blocks()), s.threads, shared_bytes<T, BackwardShared>(s),
         stream, s, p);
}

}  // namespace stmeta::memory_read
