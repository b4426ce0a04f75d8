// CUDA kernels of stmeta::ntm_step and their launches. Reference: stmeta/ops/memory/ntm_step.py.
//
// Where an element fits the shared memory of a block, one kernel reads its memory once, addresses,
// writes and reads it there, and writes it once. Else tiles of its rows pass through three kernels:
// scores of the rows, weights of all of them, write and read; the second reading of the memory
// comes from the L2 cache as far as that goes. ntm_step_backward.cuh is cut the same way.
#pragma once

#include "cuda/memory/content_addressing.cuh"
#include "cuda/memory/erase_add.cuh"
#include "cuda/memory/location_addressing.cuh"

namespace stmeta::ntm_step {

using namespace stmeta::memory;
using location_addressing::Location;

// How many of the H heads do what: the first R read, the last W write.
struct Heads {
  int reads, writes;
  bool read_first;
};

// What the heads of a tile write and read by, in shared memory.
struct Access {
  Heads heads;
  const float *weights, *erase, *add;  // [rows, slots], [W, pitch] x2

  __device__ erase_add::Writes writes(const Shape& s) const {
    return {weights + s.heads - heads.writes, erase, add, heads.writes};
  }
};

template <typename T>
struct Forward {
  Strided<T> memory;     // [B, N, M]
  const T* key;          // [B, H, M]
  const T* strength;     // [B, H]
  Location<T> location;  // previous [B, H, N], gate, shift, sharpen
  const T* erase;        // [B, W, M]
  const T* add;          // [B, W, M]
  T* out;                // [B, N, M]
  T* weight;             // [B, H, N]
  T* read;               // [B, R, M]
  T* content;            // [B, H, N]
  Heads heads;
  float eps;

  Finish<T> finish() const { return {{read, nullptr}, {heads.reads, 0}, nullptr, nullptr, {}, 0}; }
};

template <typename T>
struct Shared {
  T* tile;
  float *weights, *other, *squares, *keys, *erase, *add, *sums, *scratch;

  __host__ __device__ Shared(Arena& arena, const Shape& s)
      : tile(arena.take<T>(s.tile * s.pitch)),
        weights(arena.take<float>(s.tile * s.slots)),
        other(arena.take<float>(s.tile * s.slots)),
        squares(arena.take<float>(s.tile)),
        keys(arena.take<float>(s.heads * s.pitch)),
        erase(arena.take<float>(s.heads * s.pitch)),
        add(arena.take<float>(s.heads * s.pitch)),
        sums(arena.take<float>(s.heads * s.pitch + kScalars * s.slots)),
        scratch(arena.take<float>(column_scratch(s))) {}
};

// Scores of a block's rows, in shared memory. Ends without a barrier.
template <typename T>
__device__ inline void score(const Shape& s, const Place& at, const Forward<T>& p,
                             const Shared<T>& shared, float* scores) {
  stage(s, at, p.memory, shared.tile);
  content_addressing::load_keys(s, at.batch, p.key, p.eps, shared.keys);
  const Rows<T> rows{shared.tile, s.pitch};
  row_dots(s, at.rows, rows, shared.keys, s.heads, false, scores, shared.squares);
  __syncthreads();
  content_addressing::to_scores(s, at, shared.squares, p.strength, p.eps, scores);
}

// From the scores of an element to its weights. Ends without a barrier.
template <typename T>
__device__ inline void address(const Shape& s, const Place& at, const Forward<T>& p, float* scores,
                               float* weights) {
  content_addressing::softmax(s, scores);
  store_heads(s, at, scores, p.content);
  location_addressing::locate(s, at, p.location, scores, weights);
  store_heads(s, at, weights, p.weight);
}

// Writes and reads a staged tile; read: [R, pitch]. Barriers inside, of which one is behind `read`;
// call after one.
template <typename T>
__device__ inline void access_rows(const Shape& s, int rows, const Access& a, T* tile,
                                   float* scratch, float* read) {
  const Rows<T> source{tile, s.pitch};
  const auto sum = [&] { column_sums(s, rows, source, a.weights, a.heads.reads, scratch, read); };
  if (a.heads.read_first) sum();
  erase_add::write<true, true>(s, rows, a.writes(s), tile);
  if (!a.heads.read_first) sum();
}

// Writes and reads a staged tile with the weights of its rows. Call after a barrier.
template <typename T>
__device__ inline void write_and_read(const Shape& s, const Place& at, const Forward<T>& p,
                                      const Finish<T>& f, const Shared<T>& shared,
                                      float* partials) {
  const int reads = p.heads.reads, writes = p.heads.writes;
  load_vectors(s, at.batch, p.erase, writes, shared.erase);
  load_vectors(s, at.batch, p.add, writes, shared.add);
  for (int i = threadIdx.x; i < kScalars * s.slots; i += blockDim.x) {
    shared.sums[reads * s.pitch + i] = 0.0f;
  }
  __syncthreads();
  const Access a{p.heads, shared.weights, shared.erase, shared.add};
  access_rows(s, at.rows, a, shared.tile, shared.scratch, shared.sums);
  __syncthreads();
  unstage(s, at, shared.tile, p.out);
  conclude(s, at, f, shared.sums, partials);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    whole_kernel(const __grid_constant__ Shape s, const __grid_constant__ Forward<T> p,
                 const __grid_constant__ Finish<T> f) {
  Arena arena{dynamic_shared()};
  const Shared<T> shared(arena, s);
  const Place at = tile_of(s);
  score(s, at, p, shared, shared.other);
  address(s, at, p, shared.other, shared.weights);
  __syncthreads();
  write_and_read(s, at, p, f, shared, nullptr);
}

// scores: fp32 [B, N, slots].
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    score_kernel(const __grid_constant__ Shape s, const __grid_constant__ Forward<T> p,
                 float* __restrict__ scores) {
  Arena arena{dynamic_shared()};
  const Shared<T> shared(arena, s);
  const Place at = tile_of(s);
  score(s, at, p, shared, shared.other);
  copy(shared.other, at.rows * s.slots, weights_at(s, at, scores));
}

// A block is an element. scores, weights: fp32 [B, N, slots]; in main memory, as N may be large.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    address_kernel(const __grid_constant__ Shape s, const __grid_constant__ Forward<T> p,
                   float* scores, float* weights) {
  const Place at = element_of(s);
  address(s, at, p, weights_at(s, at, scores), weights_at(s, at, weights));
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    write_kernel(const __grid_constant__ Shape s, const __grid_constant__ Forward<T> p,
                 const __grid_constant__ Finish<T> f, const float* __restrict__ weights,
                 float* __restrict__ partials) {
  Arena arena{dynamic_shared()};
  const Shared<T> shared(arena, s);
  const Place at = tile_of(s);
  stage(s, at, p.memory, shared.tile);
  copy(weights_at(s, at, weights), at.rows * s.slots, shared.weights);
  write_and_read(s, at, p, f, shared, partials);
}

// ---- host ----

// tile: see cut().
template <typename T, template <typename> typename Layout>
Shape shape_of(int64_t batch, int64_t rows, int64_t width, int64_t heads, int tile) {
  Shape s = make_shape("ntm_step", batch, rows, width, heads);
  cut(s, tile, true, shared_bytes<T, Layout>);
  return s;
}

// Numbers of scratch.
template <typename T>
int64_t scratch_size(const Shape& s, const Forward<T>& p) {
  return s.tiles == 1 ? 0 : 2 * s.weights() + partial_size(s, p.finish());
}

template <typename T>
void forward(const Shape& s, const Forward<T>& p, float* scratch, Stream stream) {
  if (s.batch == 0) return;
  const Finish<T> f = p.finish();
  const dim3 blocks(s.blocks()), elements(static_cast<unsigned>(s.batch));
  const size_t shared = shared_bytes<T, Shared>(s);
  if (s.tiles == 1) return launch(whole_kernel<T>, blocks, s.threads, shared, stream, s, p, f);
  float *scores = scratch, *weights = scores + s.weights(), *partials = weights + s.weights();
  launch(score_kernel<T>, blocks, s.threads, shared, stream, s, p, scores);
  launch(address_kernel<T>, elements, element_threads(s), 0, stream, s, p, scores, weights);
  launch(write_kernel<T>, blocks, s.threads, shared, stream, s, p, f, weights, partials);
  finish_partials(s, f, partials, stream);
}

}  // namespace stmeta::ntm_step
