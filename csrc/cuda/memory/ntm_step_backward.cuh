// CUDA kernels of the backward of stmeta::ntm_step and their launches; see ntm_step.cuh.
//
// Memory and its gradient are read once where an element fits one block. Else twice: a first pass
// over tiles gives the gradient of the weights, and that of erase and add; then come the weights of
// the whole element; a second pass gives the gradients of the memory and the keys.
#pragma once

#include "cuda/memory/ntm_step.cuh"

namespace stmeta::ntm_step {

template <typename T>
struct Backward {
  Strided<T> memory, grad_memory;  // [B, N, M]
  const T* grad_weight;            // [B, H, N]
  const T* grad_read;              // [B, R, M]
  const T* key;                    // [B, H, M]
  const T* strength;               // [B, H]
  Location<T> location;            // previous [B, H, N], gate, shift, sharpen
  const T* erase;                  // [B, W, M]
  const T* add;                    // [B, W, M]
  const T* weight;                 // [B, H, N]
  const T* content;                // [B, H, N]
  T* d_memory;                     // [B, N, M]
  T* d_key;                        // [B, H, M]
  T* d_strength;                   // [B, H]
  location_addressing::LocationGrads<T> d_location;
  T* d_erase;  // [B, W, M]
  T* d_add;    // [B, W, M]
  Heads heads;
  float eps;

  Finish<T> finish() const {
    return {{d_erase, d_add}, {heads.writes, heads.writes}, key, d_key, {d_strength, nullptr}, eps};
  }
};

template <typename T>
struct BackwardShared {
  T* tile;
  float *grad_tile, *weights, *grad, *other, *squares;
  float *keys, *grad_read, *erase, *add, *sums, *scratch;

  __host__ __device__ BackwardShared(Arena& arena, const Shape& s)
      : tile(arena.take<T>(s.tile * s.pitch)),
        grad_tile(arena.take<float>(s.tile * s.pitch)),
        weights(arena.take<float>(s.tile * s.slots)),
        grad(arena.take<float>(s.tile * s.slots)),
        other(arena.take<float>(s.tile * s.slots)),
        squares(arena.take<float>(s.tile)),
        keys(arena.take<float>(s.heads * s.pitch)),
        grad_read(arena.take<float>(s.heads * s.pitch)),
        erase(arena.take<float>(s.heads * s.pitch)),
        add(arena.take<float>(s.heads * s.pitch)),
        sums(arena.take<float>(3 * s.heads * s.pitch + kScalars * s.slots)),
        scratch(arena.take<float>(column_scratch(s))) {}
};

// Stages a tile, its gradient and the weights; a barrier follows.
template <typename T>
__device__ inline void begin(const Shape& s, const Place& at, const Backward<T>& p,
                             const BackwardShared<T>& shared) {
  stage(s, at, p.memory, shared.tile);
  stage(s, at, p.grad_memory, shared.grad_tile);
  load_heads(s, at, p.weight, shared.weights);
  load_vectors(s, at.batch, p.grad_read, p.heads.reads, shared.grad_read);
  load_vectors(s, at.batch, p.erase, p.heads.writes, shared.erase);
  load_vectors(s, at.batch, p.add, p.heads.writes, shared.add);
  __syncthreads();
}

// The gradients of an access, in shared memory.
struct AccessGrads {
  const float* read;             // [R, pitch]
  float *weights, *tile;         // [rows, slots], added to; [rows, pitch]
  float *erase, *add, *scratch;  // [W, pitch] x2, results; see column_scratch
};

// Adds the read's part to a staged gradient of the memory that was read.
__device__ inline void add_read(const Shape& s, int rows, const Access& a, const AccessGrads& g) {
  add_outer(s, rows, a.weights, g.read, a.heads.reads, true, g.tile);
}

// The gradient of the weights, and of erase and add; tile: the memory before the write. Afterwards
// the staged gradient is that of the memory after the write. Barriers inside; call after one.
template <typename T>
__device__ inline void access_backward(const Shape& s, int rows, const Access& a, const T* tile,
                                       const AccessGrads& g) {
  const erase_add::Writes writes = a.writes(s);
  if (a.heads.read_first) {
    row_dots(s, rows, Rows<T>{tile, s.pitch}, g.read, a.heads.reads, true, g.weights, nullptr);
  } else {
    const erase_add::Written<T> written{tile, s.pitch, s.slots, writes};
    row_dots(s, rows, written, g.read, a.heads.reads, true, g.weights, nullptr);
    add_read(s, rows, a, g);
  }
  const erase_add::WriteGrads grads{g.weights + s.heads - writes.heads, g.erase, g.add};
  erase_add::write_backward(s, rows, writes, tile, g.tile, grads, g.scratch);
  __syncthreads();
}

// From the staged gradient of the memory after the write to that of the memory before it. No
// barriers; call after one.
__device__ inline void pass_write(const Shape& s, int rows, const Access& a, const AccessGrads& g) {
  erase_add::write<true, false>(s, rows, a.writes(s), g.tile);
  if (a.heads.read_first) add_read(s, rows, a, g);
}

template <typename T>
__device__ inline Access access_of(const Backward<T>& p, const BackwardShared<T>& shared) {
  return {p.heads, shared.weights, shared.erase, shared.add};
}

template <typename T>
__device__ inline AccessGrads grads_of(const Shape& s, const Backward<T>& p,
                                       const BackwardShared<T>& shared) {
  return {shared.grad_read,
          shared.grad,
          shared.grad_tile,
          shared.sums,
          shared.sums + p.heads.writes * s.pitch,
          shared.scratch};
}

// See `access_backward`.
template <typename T>
__device__ inline void write_backward(const Shape& s, const Place& at, const Backward<T>& p,
                                      const BackwardShared<T>& shared) {
  load_heads(s, at, p.grad_weight, shared.grad);
  __syncthreads();
  access_backward(s, at.rows, access_of(p, shared), shared.tile, grads_of(s, p, shared));
}

// From the gradient of an element's weights to that of its scores, in place. Barriers inside; needs
// none before where the same thread made `grad`.
template <typename T>
__device__ inline void address_backward(const Shape& s, const Place& at, const Backward<T>& p,
                                        float* grad, float* gated, float* shifted) {
  location_addressing::locate_backward(s, at, p.location, p.content, p.d_location, grad, gated,
                                       shifted);
  content_addressing::softmax_backward(s, at, p.content, grad);
}

// The gradients of memory and keys from that of the scores. The staged gradient is that of the
// memory after the write; `weights` is used up. Barriers inside; call after one.
template <typename T>
__device__ inline void score_backward(const Shape& s, const Place& at, const Backward<T>& p,
                                      const BackwardShared<T>& shared) {
  pass_write(s, at.rows, access_of(p, shared), grads_of(s, p, shared));
  content_addressing::load_keys(s, at.batch, p.key, p.eps, shared.keys);  // and a barrier
  float* grad_keys = shared.sums + 2 * p.heads.writes * s.pitch;
  float* strengths = grad_keys + s.heads * s.pitch;
  if (static_cast<int>(threadIdx.x) < s.slots) strengths[s.slots + threadIdx.x] = 0.0f;
  const content_addressing::RowsBackward rows{shared.keys,    shared.grad,      shared.other,
                                              shared.squares, shared.grad_tile, shared.scratch,
                                              grad_keys,      strengths};
  content_addressing::backward_rows(s, at, Rows<T>{shared.tile, s.pitch}, p.strength, p.eps, true,
                                    rows);
  __syncthreads();
  unstage(s, at, shared.grad_tile, p.d_memory);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    whole_backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p,
                          const __grid_constant__ Finish<T> f) {
  Arena arena{dynamic_shared()};
  const BackwardShared<T> shared(arena, s);
  const Place at = tile_of(s);
  begin(s, at, p, shared);
  write_backward(s, at, p, shared);
  // The weights lend their place as scratch, and are read again: two reads of them take less than
  // the shared memory of one more array.
  address_backward(s, at, p, shared.grad, shared.other, shared.weights);
  load_heads(s, at, p.weight, shared.weights);
  __syncthreads();
  score_backward(s, at, p, shared);
  conclude(s, at, f, shared.sums, nullptr);
}

// The sums of the first pass are erase and add; the rest belongs to the second.
template <typename T>
__device__ inline float* partial_of(const Shape& s, const Finish<T>& f, float* partials) {
  return partials + static_cast<int64_t>(blockIdx.x) * f.size(s);
}

// grads: fp32 [B, N, slots].
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    write_backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p,
                          const __grid_constant__ Finish<T> f, float* __restrict__ grads,
                          float* __restrict__ partials) {
  Arena arena{dynamic_shared()};
  const BackwardShared<T> shared(arena, s);
  const Place at = tile_of(s);
  begin(s, at, p, shared);
  write_backward(s, at, p, shared);
  copy(shared.grad, at.rows * s.slots, weights_at(s, at, grads));
  copy(shared.sums, 2 * p.heads.writes * s.pitch, partial_of(s, f, partials));
}

// A block is an element. scratch: fp32 [2, B, N, slots].
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    address_backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p,
                            float* grads, float* scratch) {
  const Place at = element_of(s);
  const int64_t all = static_cast<int64_t>(s.batch) * s.rows * s.slots;
  float* gated = weights_at(s, at, scratch);
  address_backward(s, at, p, weights_at(s, at, grads), gated, gated + all);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    score_backward_kernel(const __grid_constant__ Shape s, const __grid_constant__ Backward<T> p,
                          const __grid_constant__ Finish<T> f, const float* __restrict__ grads,
                          float* __restrict__ partials) {
  Arena arena{dynamic_shared()};
  const BackwardShared<T> shared(arena, s);
  const Place at = tile_of(s);
  begin(s, at, p, shared);
  copy(weights_at(s, at, grads), at.rows * s.slots, shared.grad);
  if (!p.heads.read_first) add_read(s, at.rows, access_of(p, shared), grads_of(s, p, shared));
  __syncthreads();
  score_backward(s, at, p, shared);
  const int first = 2 * p.heads.writes * s.pitch;
  copy(shared.sums + first, f.size(s) - first, partial_of(s, f, partials) + first);
}

// ---- host ----

// Numbers of scratch.
template <typename T>
int64_t scratch_size(const Shape& s, const Backward<T>& p) {
  return s.tiles == 1 ? 0 : 3 * s.weights() + partial_size(s, p.finish());
}

template <typename T>
void backward(const Shape& s, const Backward<T>& p, float* scratch, Stream stream) {
  if (s.batch == 0) return;
  const Finish<T> f = p.finish();
  const dim3 blocks(s.blocks()), elements(static_cast<unsigned>(s.batch));
  const size_t shared = shared_bytes<T, BackwardShared>(s);
  if (s.tiles == 1) {
    return launch(whole_backward_kernel<T>, blocks, s.threads, shared, stream, s, p, f);
  }
  float *grads = scratch, *others = grads + s.weights(), *partials = others + 2 * s.weights();
  launch(write_backward_kernel<T>, blocks, s.threads, shared, stream, s, p, f, grads, partials);
  launch(address_backward_kernel<T>, elements, element_threads(s), 0, stream, s, p, grads, others);
  launch(score_backward_kernel<T>, blocks, s.threads, shared, stream, s, p, f, grads, partials);
  finish_partials(s, f, partials, stream);
}

}  // namespace stmeta::ntm_step
