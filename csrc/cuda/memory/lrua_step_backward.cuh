// CUDA kernels of the backward of stmeta::lrua_step and their launches; see lrua_step.cuh.
#pragma once

#include "cuda/memory/lrua_step.cuh"

namespace stmeta::lrua_step {

template <typename T>
struct Backward : Inputs<T> {
  Strided<T> grad_memory;  // [B, N, M]
  const T* grad_weight;    // [B, R, N]
  const T* grad_read;      // [B, R, M]
  const T* weight;         // [B, R, N]
  const int64_t* rows;     // [B, R]
  T* d_memory;             // [B, N, M]
  T* d_previous;           // [B, R, N]
  T* d_key;                // [B, R, M]
  T* d_strength;           // [B, R]
  T* d_gate;               // [B, R]
  T* d_add;                // [B, R, M]

  Finish<T> finish(const Shape& s) const {
    return {{d_add, nullptr}, {s.heads, 0}, this->key, d_key, {d_strength, d_gate}, this->eps};
  }
};

template <typename T>
struct BackwardShared {
  T* tile;
  int* least;
  float *grad_tile, *weights, *write, *grad, *other, *squares;
  float *keys, *grad_read, *add, *sums, *scratch;

  __host__ __device__ BackwardShared(Arena& arena, const Shape& s)
      : tile(arena.take<T>(s.tile * s.pitch)),
        least(arena.take<int>(kMaxHeads)),
        grad_tile(arena.take<float>(s.tile * s.pitch)),
        weights(arena.take<float>(s.tile * s.slots)),
        write(arena.take<float>(s.tile * s.slots)),
        grad(arena.take<float>(s.tile * s.slots)),
        other(arena.take<float>(s.tile * s.slots)),
        squares(arena.take<float>(s.tile)),
        keys(arena.take<float>(s.heads * s.pitch)),
        grad_read(arena.take<float>(s.heads * s.pitch)),
        add(arena.take<float>(s.heads * s.pitch)),
        sums(arena.take<float>(2 * s.heads * s.pitch + kScalars * s.slots)),
        scratch(arena.take<float>(column_scratch(s))) {}
};

// Stages the memory that was read, and what its gradient needs. Ends with a barrier.
template <typename T>
__device__ inline void begin(const Shape& s, const Place& at, const Backward<T>& p,
                             const BackwardShared<T>& shared) {
  stage(s, at, p.memory, shared.tile);
  load_least(s, at.batch, p.rows, shared.least);
  load_vectors(s, at.batch, p.grad_read, s.heads, shared.grad_read);
  load_vectors(s, at.batch, p.add, s.heads, shared.add);
  __syncthreads();
  write_weights(s, at, p, shared.least, shared.write);
  if (!p.read_first) write(s, at, shared.least, shared.write, shared.add, shared.tile);
  __syncthreads();
}

// grad = the gradient of the weights, [rows, slots]. Call after a barrier; ends with one.
template <typename T>
__device__ inline void read_backward(const Shape& s, const Place& at, const Backward<T>& p,
                                     const BackwardShared<T>& shared) {
  load_heads(s, at, p.grad_weight, shared.grad);
  __syncthreads();
  const Rows<T> rows{shared.tile, s.pitch};
  row_dots(s, at.rows, rows, shared.grad_read, s.heads, true, shared.grad, nullptr);
  __syncthreads();
}

// The staged gradient, of the memory after the write, becomes that of the memory before it. Gives
// the gradients of previous, gate and add. Barriers inside; call after one.
template <typename T>
__device__ inline void write_backward(const Shape& s, const Place& at, const Backward<T>& p,
                                      const BackwardShared<T>& shared) {
  const Rows<float> rows{shared.grad_tile, s.pitch};
  row_dots(s, at.rows, rows, shared.add, s.heads, false, shared.other, nullptr);
  column_sums(s, at.rows, rows, shared.write, s.heads, shared.scratch, shared.sums);
  clear(s, at, shared.least, shared.grad_tile);  // and a barrier, for `other`
  const int h = own_head(s);
  const float gate = of_head(s, at, p.gate, h);
  float sum = 0.0f;
  for (int i = threadIdx.x; h < s.heads && i < at.rows * s.slots; i += blockDim.x) {
    const int n = i / s.slots;
    const int64_t index = head_index(s, at, n, h);
    const float to = is_least(s, p.shared, shared.least, at.first + n, h) ? 1.0f : 0.0f;
    sum += shared.other[i] * (to_float(p.previous[index]) - to);
    p.d_previous[index] = from_float<T>(gate * shared.other[i]);
  }
  sum = head_sum(s, sum);
  float* gates = shared.sums + 2 * s.heads * s.pitch + s.slots;
  if (static_cast<int>(threadIdx.x) < s.slots) gates[threadIdx.x] = sum;
}

// Adds the gradient of the memory that was read to the staged one; `grad` holds that of the scores.
// Gives the gradients of key and strength. Barriers inside; call after one.
template <typename T>
__device__ inline void score_backward(const Shape& s, const Place& at, const Backward<T>& p,
                                      const BackwardShared<T>& shared) {
  add_outer(s, at.rows, shared.weights, shared.grad_read, s.heads, true, shared.grad_tile);
  float* grad_keys = shared.sums + s.heads * s.pitch;
  const content_addressing::RowsBackward rows{
      shared.keys,      shared.grad,    shared.other, shared.squares,
      shared.grad_tile, shared.scratch, grad_keys,    grad_keys + s.heads * s.pitch};
  content_addressing::backward_rows(s, at, Rows<T>{shared.tile, s.pitch}, p.strength, p.eps, true,
                                    rows);
}

// All but the gradient of the weights. `grad` holds that of the scores.
template <typename T>
__device__ inline void end(const Shape& s, const Place& at, const Backward<T>& p,
                           const Finish<T>& f, const BackwardShared<T>& shared, float* partials) {
  stage(s, at, p.grad_memory, shared.grad_tile);
  load_heads(s, at, p.weight, shared.weights);
  content_addressing::load_keys(s, at.batch, p.key, p.eps, shared.keys);  // and a barrier
  if (p.read_first) write_backward(s, at, p, shared);
  score_backward(s, at, p, shared);
  if (!p.read_first) {
    __syncthreads();
    write_backward(s, at, p, shared);
  }
  __syncthreads();
  unstage(s, at, shared.grad_tile, p.d_memory);
  conclude(s, at, f, shared.sums, partials);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    whole_backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p,
                          const __grid_constant__ Finish<T> f) {
  Arena arena{dynamic_shared()};
  const BackwardShared<T> shared(arena, s);
  const Place at = tile_of(s);
  begin(s, at, p, shared);
  read_backward(s, at, p, shared);
  content_addressing::softmax_backward(s, at, p.weight, shared.grad);
  end(s, at, p, f, shared, nullptr);
}

// grads: fp32 [B, N, slots].
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    read_backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p,
                         float* __restrict__ grads) {
  Arena arena{dynamic_shared()};
  const BackwardShared<T> shared(arena, s);
  const Place at = tile_of(s);
  begin(s, at, p, shared);
  read_backward(s, at, p, shared);
  copy(shared.grad, at.rows * s.slots, weights_at(s, at, grads));
}

// A block is an element.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    address_backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p,
                            float* grads) {
  const Place at = element_of(s);
  content_addressing::softmax_backward(s, at, p.weight, weights_at(s, at, grads));
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    end_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p,
               const __grid_constant__ Finish<T> f, const float* __restrict__ grads,
               float* __restrict__ partials) {
  Arena arena{dynamic_shared()};
  const BackwardShared<T> shared(arena, s);
  const Place at = tile_of(s);
  begin(s, at, p, shared);
  copy(weights_at(s, at, grads), at.rows * s.slots, shared.grad);
  end(s, at, p, f, shared, partials);
}

// ---- host ----

// Numbers of scratch.
template <typename T>
int64_t scratch_size(const Shape& s, const Backward<T>& p) {
  return s.tiles == 1 ? 0 : s.weights() + partial_size(s, p.finish(s));
}

template <typename T>
void backward(const Shape& s, const Backward<T>& p, float* scratch, Stream stream) {
  if (s.batch == 0) return;
  const Finish<T> f = p.finish(s);
  const dim3 blocks(s.blocks()), elements(static_cast<unsigned>(s.batch));
  const size_t shared = shared_bytes<T, BackwardShared>(s);
  if (s.tiles == 1) {
    return launch(whole_backward_kernel<T>, blocks, s.threads, shared, stream, s, p, f);
  }
  float *grads = scratch, *partials = grads + s.weights();
  launch(read_backward_kernel<T>, blocks, s.threads, shared, stream, s, p, grads);
  launch(address_backward_kernel<T>, elements, element_threads(s), 0, stream, s, p, grads);
  launch(end_kernel<T>, blocks, s.threads, shared, stream, s, p, f, grads, partials);
  finish_partials(s, f, partials, stream);
}

}  // namespace stmeta::lrua_step
